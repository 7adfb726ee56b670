//! The few calls of Windows that the service needs and no library wraps.
#![allow(unsafe_code)]

use std::io;
use std::os::windows::ffi::OsStrExt as _;
use std::path::Path;

use windows::Win32::Foundation::{ERROR_ALREADY_EXISTS, HANDLE, HLOCAL, LocalFree};
use windows::Win32::Security::Authorization::{
    ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1, SE_FILE_OBJECT, SetNamedSecurityInfoW,
};
use windows::Win32::Security::{
    ACL, DACL_SECURITY_INFORMATION, GetSecurityDescriptorDacl, GetSecurityDescriptorOwner, OWNER_SECURITY_INFORMATION,
    PROTECTED_DACL_SECURITY_INFORMATION, PSECURITY_DESCRIPTOR, PSID, SECURITY_ATTRIBUTES,
};
use windows::Win32::Storage::FileSystem::CreateDirectoryW;
use windows::Win32::System::EventLog::{
    DeregisterEventSource, EVENTLOG_ERROR_TYPE, EVENTLOG_INFORMATION_TYPE, EVENTLOG_WARNING_TYPE, RegisterEventSourceW,
    ReportEventW,
};
use windows::core::{BOOL, HSTRING, PCWSTR};

use super::super::events::Gravity;

/// The log takes no longer text (`ReportEventW`: 31,839 characters).
const MAX_EVENT_CHARS: usize = 31_000;

/// A source in the event log.
pub struct EventSource(HANDLE);

// SAFETY: the handle is used only through `ReportEventW`, which may be called from any thread, and closed once, in
// `drop`, when nobody else holds it.
unsafe impl Send for EventSource {}
// SAFETY: as above.
unsafe impl Sync for EventSource {}

impl EventSource {
    pub fn open(name: &str) -> io::Result<Self> {
        // SAFETY: the name ends with a zero and lives during the call.
        let handle = unsafe { RegisterEventSourceW(PCWSTR::null(), &HSTRING::from(name)) };
        Ok(Self(handle.map_err(io::Error::from)?))
    }

    pub fn report(&self, gravity: Gravity, id: u32, text: &str) -> io::Result<()> {
        let kind = match gravity {
            Gravity::Information => EVENTLOG_INFORMATION_TYPE,
            Gravity::Warning => EVENTLOG_WARNING_TYPE,
            Gravity::Error => EVENTLOG_ERROR_TYPE,
        };
        let text: String = text.chars().filter(|c| *c != '\0').take(MAX_EVENT_CHARS).collect();
        let text = HSTRING::from(text);
        // SAFETY: the handle is open as long as `self` lives; the text ends with a zero and outlives the call.
        let result = unsafe { ReportEventW(self.0, kind, 0, id, None, 0, Some(&[PCWSTR(text.as_ptr())]), None) };
        result.map_err(io::Error::from)
    }
}

impl Drop for EventSource {
    fn drop(&mut self) {
        // SAFETY: the handle came from `RegisterEventSourceW` and is closed here only.
        let _ = unsafe { DeregisterEventSource(self.0) };
    }
}

/// Makes a folder with owner and access rights given in SDDL; of one that is there, sets them.
pub fn make_folder(path: &Path, sddl: &str) -> io::Result<()> {
    let wide: Vec<u16> = path.as_os_str().encode_wide().chain([0]).collect();
    let descriptor = Descriptor::parse(sddl)?;
    let attributes = SECURITY_ATTRIBUTES {
        nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
        lpSecurityDescriptor: descriptor.0.0,
        bInheritHandle: false.into(),
    };
    // SAFETY: the path ends with a zero; path, attributes and the descriptor they point to live during the call.
    let made = unsafe { CreateDirectoryW(PCWSTR(wide.as_ptr()), Some(&attributes)) };
    match made {
        Ok(()) => Ok(()),
        Err(error) if error.code() == ERROR_ALREADY_EXISTS.to_hresult() => descriptor.set_on(&wide),
        Err(error) => Err(io::Error::from(error)),
    }
}

/// Gives a file that is there the access rights given in SDDL, in place of those that its folder would give it.
pub fn protect_file(path: &Path, sddl: &str) -> io::Result<()> {
    let wide: Vec<u16> = path.as_os_str().encode_wide().chain([0]).collect();
    Descriptor::parse(sddl)?.set_on(&wide)
}

/// A security descriptor that the system allocated.
struct Descriptor(PSECURITY_DESCRIPTOR);

impl Descriptor {
    fn parse(sddl: &str) -> io::Result<Self> {
        let mut descriptor = PSECURITY_DESCRIPTOR::default();
        // SAFETY: the text ends with a zero, and the out pointer is ours.
        unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                &HSTRING::from(sddl),
                SDDL_REVISION_1,
                &mut descriptor,
                None,
            )
        }
        .map_err(io::Error::from)?;
        Ok(Self(descriptor))
    }

    fn set_on(&self, path: &[u16]) -> io::Result<()> {
        let (mut owner, mut defaulted) = (PSID::default(), BOOL::default());
        let (mut dacl, mut present): (*mut ACL, BOOL) = (std::ptr::null_mut(), BOOL::default());
        // SAFETY: the descriptor is valid as long as `self` lives; all out pointers are ours.
        unsafe { GetSecurityDescriptorOwner(self.0, &mut owner, &mut defaulted) }.map_err(io::Error::from)?;
        // SAFETY: as above.
        unsafe { GetSecurityDescriptorDacl(self.0, &mut present, &mut dacl, &mut defaulted) }
            .map_err(io::Error::from)?;
        let mut what = DACL_SECURITY_INFORMATION | PROTECTED_DACL_SECURITY_INFORMATION;
        let owner = (!owner.0.is_null()).then_some(owner);
        if owner.is_some() {
            what |= OWNER_SECURITY_INFORMATION;
        }
        // SAFETY: the path ends with a zero; owner and list point into the descriptor, which outlives the call.
        let result = unsafe {
            SetNamedSecurityInfoW(PCWSTR(path.as_ptr()), SE_FILE_OBJECT, what, owner, None, Some(dacl), None)
        };
        result.ok().map_err(io::Error::from)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: the system allocated it with LocalAlloc, and it is freed here only.
        let _ = unsafe { LocalFree(Some(HLOCAL(self.0.0))) };
    }
}

//! Calls of `virtdisk.dll` and `kernel32.dll` as safe functions. Nothing is decided here.
//!
//! Every error is the Win32 code as it was returned. Source of the calls and their values: `virtdisk.h`, spec 4.7, 5.6.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr;

use vhdx::Guid;
use windows::Win32::Foundation::{
    ERROR_INSUFFICIENT_BUFFER, ERROR_IO_PENDING, ERROR_NOT_ALL_ASSIGNED, GetLastError, HANDLE, LUID, WIN32_ERROR,
};
use windows::Win32::Security::{
    AdjustTokenPrivileges, LUID_AND_ATTRIBUTES, LookupPrivilegeValueW, SE_PRIVILEGE_ENABLED, TOKEN_ADJUST_PRIVILEGES,
    TOKEN_PRIVILEGES, TOKEN_QUERY,
};
use windows::Win32::Storage::FileSystem::{
    FILE_ID_INFO, FileIdInfo, GetDiskFreeSpaceExW, GetFileInformationByHandleEx, ReadFile,
};
use windows::Win32::Storage::Vhd::{
    ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST, ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY, ATTACH_VIRTUAL_DISK_PARAMETERS,
    ATTACH_VIRTUAL_DISK_VERSION_1, AttachVirtualDisk, CREATE_VIRTUAL_DISK_FLAG_NONE, CREATE_VIRTUAL_DISK_PARAMETERS,
    CREATE_VIRTUAL_DISK_PARAMETERS_0, CREATE_VIRTUAL_DISK_PARAMETERS_0_1, CREATE_VIRTUAL_DISK_VERSION_2,
    CreateVirtualDisk, DETACH_VIRTUAL_DISK_FLAG_NONE, DetachVirtualDisk, GET_VIRTUAL_DISK_INFO,
    GET_VIRTUAL_DISK_INFO_0_0, GET_VIRTUAL_DISK_INFO_0_3, GET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE,
    GET_VIRTUAL_DISK_INFO_SIZE, GET_VIRTUAL_DISK_INFO_VERSION, GET_VIRTUAL_DISK_INFO_VHD_PHYSICAL_SECTOR_SIZE,
    GET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID, GetVirtualDiskInformation, OPEN_VIRTUAL_DISK_FLAG_NONE,
    OPEN_VIRTUAL_DISK_PARAMETERS, OPEN_VIRTUAL_DISK_PARAMETERS_0, OPEN_VIRTUAL_DISK_PARAMETERS_0_0,
    OPEN_VIRTUAL_DISK_PARAMETERS_0_1, OPEN_VIRTUAL_DISK_PARAMETERS_0_2, OPEN_VIRTUAL_DISK_VERSION_1,
    OPEN_VIRTUAL_DISK_VERSION_2, OPEN_VIRTUAL_DISK_VERSION_3, OpenVirtualDisk, QUERY_CHANGES_VIRTUAL_DISK_FLAG_NONE,
    QUERY_CHANGES_VIRTUAL_DISK_RANGE, QueryChangesVirtualDisk, VIRTUAL_DISK_ACCESS_DETACH, VIRTUAL_DISK_ACCESS_NONE,
    VIRTUAL_STORAGE_TYPE, VIRTUAL_STORAGE_TYPE_DEVICE_UNKNOWN, VIRTUAL_STORAGE_TYPE_VENDOR_UNKNOWN,
};
use windows::Win32::System::IO::{DeviceIoControl, GetOverlappedResult, OVERLAPPED, OVERLAPPED_0, OVERLAPPED_0_0};
use windows::Win32::System::Ioctl::FSCTL_SET_SPARSE;
use windows::Win32::System::Threading::{CreateEventW, GetCurrentProcess, OpenProcessToken};
use windows::core::{Error, GUID, HSTRING, PCWSTR};

// What the headers of a 64-bit Windows say. A binding that differs would be read wrongly without a sound.
const _: () = assert!(size_of::<QUERY_CHANGES_VIRTUAL_DISK_RANGE>() == 24);
const _: () = assert!(size_of::<OPEN_VIRTUAL_DISK_PARAMETERS>() == 44);
const _: () = assert!(size_of::<ATTACH_VIRTUAL_DISK_PARAMETERS>() == 24);
const _: () = assert!(size_of::<GET_VIRTUAL_DISK_INFO>() == 32);
const _: () = assert!(std::mem::offset_of!(GET_VIRTUAL_DISK_INFO, Anonymous) == 8);
const _: () = assert!(std::mem::offset_of!(GET_VIRTUAL_DISK_INFO_0_3, MostRecentId) == 8);
const _: () = assert!(size_of::<CREATE_VIRTUAL_DISK_PARAMETERS_0_1>() == 120);
const _: () = assert!(size_of::<VIRTUAL_STORAGE_TYPE>() == 20);

/// A Win32 error code.
pub(super) type Code = u32;

/// What a disk is opened for; each needs its own version of the parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum OpenFor {
    /// Version 1, with the right to detach what another handle attached.
    Detaching,
    /// Version 2: read-only, to attach and read or to ask. The only access mask that goes with it is none.
    Reading,
    /// Version 3: as 2, on one snapshot of a VHD set.
    ReadingSnapshot(Guid),
}

/// An open virtual disk; closed when dropped.
pub(super) struct Disk(OwnedHandle);

// Read only; and the handle of `OwnedHandle` may be used from any thread.
impl Disk {
    /// `OpenVirtualDisk`.
    pub(super) fn open(path: &str, purpose: OpenFor) -> Result<Self, Code> {
        let (version, access, parameters) = match purpose {
            OpenFor::Detaching => (
                OPEN_VIRTUAL_DISK_VERSION_1,
                VIRTUAL_DISK_ACCESS_DETACH,
                OPEN_VIRTUAL_DISK_PARAMETERS_0 { Version1: OPEN_VIRTUAL_DISK_PARAMETERS_0_0 { RWDepth: 0 } },
            ),
            OpenFor::Reading => (
                OPEN_VIRTUAL_DISK_VERSION_2,
                VIRTUAL_DISK_ACCESS_NONE,
                OPEN_VIRTUAL_DISK_PARAMETERS_0 {
                    Version2: OPEN_VIRTUAL_DISK_PARAMETERS_0_1 { ReadOnly: true.into(), ..Default::default() },
                },
            ),
            OpenFor::ReadingSnapshot(snapshot) => (
                OPEN_VIRTUAL_DISK_VERSION_3,
                VIRTUAL_DISK_ACCESS_NONE,
                OPEN_VIRTUAL_DISK_PARAMETERS_0 {
                    Version3: OPEN_VIRTUAL_DISK_PARAMETERS_0_2 {
                        ReadOnly: true.into(),
                        SnapshotId: to_system(snapshot),
                        ..Default::default()
                    },
                },
            ),
        };
        let parameters = OPEN_VIRTUAL_DISK_PARAMETERS { Version: version, Anonymous: parameters };
        let path = HSTRING::from(path);
        let mut handle = HANDLE::default();
        // SAFETY: the type, the path and the parameters live over the call; the parameters' version says which field of
        // the union is set; `handle` has room for the result.
        let status = unsafe {
            OpenVirtualDisk(
                &raw const ANY_STORAGE,
                &path,
                access,
                OPEN_VIRTUAL_DISK_FLAG_NONE,
                Some(&raw const parameters),
                &raw mut handle,
            )
        };
        check(status)?;
        // SAFETY: the call succeeded, and nobody else closes the handle it made.
        Ok(Self(unsafe { OwnedHandle::from_raw_handle(handle.0) }))
    }

    /// `AttachVirtualDisk`, read-only and without a local host: no disk appears on this machine.
    pub(super) fn attach_read_only(&self) -> Result<(), Code> {
        let parameters =
            ATTACH_VIRTUAL_DISK_PARAMETERS { Version: ATTACH_VIRTUAL_DISK_VERSION_1, ..Default::default() };
        let flags = ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY | ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST;
        // SAFETY: the handle is open and the parameters live over the call, which has no `OVERLAPPED` and so ends before
        // it returns.
        check(unsafe { AttachVirtualDisk(self.handle(), None, flags, 0, Some(&raw const parameters), None) })
    }

    /// `DetachVirtualDisk`.
    pub(super) fn detach(&self) -> Result<(), Code> {
        // SAFETY: the handle is open; no argument points anywhere.
        check(unsafe { DetachVirtualDisk(self.handle(), DETACH_VIRTUAL_DISK_FLAG_NONE, 0) })
    }

    /// Virtual size and logical sector size, in bytes.
    pub(super) fn size(&self) -> Result<(u64, u32), Code> {
        let info = self.fixed_information(GET_VIRTUAL_DISK_INFO_SIZE)?;
        // SAFETY: this is the field that goes with the version that was asked for; it is plain integers.
        let size: GET_VIRTUAL_DISK_INFO_0_0 = unsafe { info.Anonymous.Size };
        Ok((size.VirtualSize, size.SectorSize))
    }

    /// Physical sector size in bytes.
    pub(super) fn physical_sector_bytes(&self) -> Result<u32, Code> {
        let info = self.fixed_information(GET_VIRTUAL_DISK_INFO_VHD_PHYSICAL_SECTOR_SIZE)?;
        // SAFETY: this is the field that goes with the version that was asked for; it is a plain integer.
        Ok(unsafe { info.Anonymous.VhdPhysicalSectorSize })
    }

    /// `VirtualDiskId`.
    pub(super) fn virtual_disk_id(&self) -> Result<Guid, Code> {
        let info = self.fixed_information(GET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID)?;
        // SAFETY: this is the field that goes with the version that was asked for; it is plain integers.
        Ok(from_system(unsafe { info.Anonymous.VirtualDiskId }))
    }

    fn fixed_information(&self, version: GET_VIRTUAL_DISK_INFO_VERSION) -> Result<GET_VIRTUAL_DISK_INFO, Code> {
        let mut info = GET_VIRTUAL_DISK_INFO { Version: version, ..Default::default() };
        let mut size_bytes = size_of::<GET_VIRTUAL_DISK_INFO>() as u32;
        // SAFETY: the handle is open, and `info` has the size that is said.
        check(unsafe { GetVirtualDiskInformation(self.handle(), &raw mut size_bytes, &raw mut info, None) })?;
        Ok(info)
    }

    /// Whether changes are tracked, whether some came after the newest id, and that id.
    pub(super) fn tracking_state(&self) -> Result<(bool, bool, String), Code> {
        // The id follows the fixed part. It has 256 characters at most; in units of 8 bytes the buffer is aligned.
        let mut buffer = vec![0u64; 128];
        loop {
            let room_bytes = buffer.len() * size_of::<u64>();
            let mut size_bytes = room_bytes as u32;
            let info: *mut GET_VIRTUAL_DISK_INFO = buffer.as_mut_ptr().cast();
            // SAFETY: the buffer is aligned for the structure and longer than it; writing its version is in bounds.
            unsafe { (*info).Version = GET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE };
            // SAFETY: the handle is open, and `info` has the size that is said.
            let status = unsafe { GetVirtualDiskInformation(self.handle(), &raw mut size_bytes, info, None) };
            let wanted = size_bytes as usize;
            if status == ERROR_INSUFFICIENT_BUFFER && (room_bytes + 1..=LONGEST_INFORMATION).contains(&wanted) {
                buffer = vec![0; wanted.div_ceil(size_of::<u64>())];
                continue;
            }
            check(status)?;
            // SAFETY: this is the field that goes with the version that was asked for; the buffer was made of zeroes,
            // so that every byte of it is a value.
            let state = unsafe { (*info).Anonymous.ChangeTrackingState };
            let id_at = std::mem::offset_of!(GET_VIRTUAL_DISK_INFO, Anonymous)
                + std::mem::offset_of!(GET_VIRTUAL_DISK_INFO_0_3, MostRecentId);
            let bytes: Vec<u8> = buffer.iter().flat_map(|unit| unit.to_ne_bytes()).collect();
            return Ok((state.Enabled.as_bool(), state.NewerChanges.as_bool(), text_until_nul(&bytes[id_at..])));
        }
    }

    /// `QueryChangesVirtualDisk`: at most `max_ranges` pairs of offset and length, and how much of the asked region they
    /// cover.
    pub(super) fn query_changes(
        &self,
        id: &str,
        offset_bytes: u64,
        len_bytes: u64,
        max_ranges: u32,
    ) -> Result<(Vec<(u64, u64)>, u64), Code> {
        let id = HSTRING::from(id);
        let mut ranges = vec![QUERY_CHANGES_VIRTUAL_DISK_RANGE::default(); max_ranges as usize];
        let (mut count, mut processed_bytes) = (max_ranges, 0);
        // SAFETY: `ranges` has room for `count` entries, `id` ends in NUL, `self` keeps the handle open.
        check(unsafe {
            QueryChangesVirtualDisk(
                self.handle(),
                &id,
                offset_bytes,
                len_bytes,
                QUERY_CHANGES_VIRTUAL_DISK_FLAG_NONE,
                ranges.as_mut_ptr(),
                &raw mut count,
                &raw mut processed_bytes,
            )
        })?;
        let found = ranges.iter().take(count as usize).map(|range| (range.ByteOffset, range.ByteLength));
        Ok((found.collect(), processed_bytes))
    }

    /// One `ReadFile` at an offset; the number of bytes that it read. Sectors must be whole, and the buffer is best
    /// aligned to them. Other reads may run at the same time.
    pub(super) fn read(&self, buf: &mut [u8], offset_bytes: u64) -> Result<usize, Code> {
        // SAFETY: no argument points anywhere.
        let event = unsafe { CreateEventW(None, true, false, PCWSTR::null()) }.map_err(code)?;
        // SAFETY: the call succeeded, and nobody else closes the handle it made.
        let event = unsafe { OwnedHandle::from_raw_handle(event.0) };
        let position = OVERLAPPED_0_0 { Offset: offset_bytes as u32, OffsetHigh: (offset_bytes >> 32) as u32 };
        let mut overlapped = OVERLAPPED {
            Anonymous: OVERLAPPED_0 { Anonymous: position },
            hEvent: HANDLE(event.as_raw_handle()),
            ..Default::default()
        };
        let place = &raw mut overlapped;
        // SAFETY: both handles are open; `buf`, `overlapped` and the event outlive the operation, for this function
        // returns only after it has ended: at once, or below.
        let started = unsafe { ReadFile(self.handle(), Some(&mut *buf), None, Some(place)) };
        match started.map_err(code) {
            Err(code) if code != ERROR_IO_PENDING.0 => return Err(code),
            _ => {}
        }
        let mut read_bytes = 0;
        // SAFETY: the operation was started on this handle with this `overlapped`; the call waits for its end. It says
        // "failed" only of an operation that has ended.
        unsafe { GetOverlappedResult(self.handle(), place, &raw mut read_bytes, true) }.map_err(code)?;
        Ok(read_bytes as usize)
    }

    fn handle(&self) -> HANDLE {
        HANDLE(self.0.as_raw_handle())
    }
}

/// The library finds out what a file is.
static ANY_STORAGE: VIRTUAL_STORAGE_TYPE = VIRTUAL_STORAGE_TYPE {
    DeviceId: VIRTUAL_STORAGE_TYPE_DEVICE_UNKNOWN,
    VendorId: VIRTUAL_STORAGE_TYPE_VENDOR_UNKNOWN,
};

/// More than any id needs; what claims to be longer is not believed.
const LONGEST_INFORMATION: usize = 64 << 10;

/// `CreateVirtualDisk` of a differencing disk, with the sizes of its parent. An existing file is an error.
pub(super) fn create_child(path: &str, parent: &str) -> Result<(), Code> {
    let (path, parent) = (HSTRING::from(path), HSTRING::from(parent));
    let child = CREATE_VIRTUAL_DISK_PARAMETERS_0_1 { ParentPath: PCWSTR(parent.as_ptr()), ..Default::default() };
    let parameters = CREATE_VIRTUAL_DISK_PARAMETERS {
        Version: CREATE_VIRTUAL_DISK_VERSION_2,
        Anonymous: CREATE_VIRTUAL_DISK_PARAMETERS_0 { Version2: child },
    };
    let mut handle = HANDLE::default();
    // SAFETY: both paths, the type and the parameters live over the call; the version says which field of the union is
    // set; `handle` has room for the result; without an `OVERLAPPED` the call ends before it returns.
    let status = unsafe {
        CreateVirtualDisk(
            &raw const ANY_STORAGE,
            &path,
            VIRTUAL_DISK_ACCESS_NONE,
            None,
            CREATE_VIRTUAL_DISK_FLAG_NONE,
            0,
            &raw const parameters,
            None,
            &raw mut handle,
        )
    };
    check(status)?;
    // SAFETY: the call succeeded, and nobody else closes the handle it made.
    drop(unsafe { OwnedHandle::from_raw_handle(handle.0) });
    Ok(())
}

/// Switches a privilege on that this process has, for example `SeManageVolumePrivilege`. `ERROR_NOT_ALL_ASSIGNED` when
/// it does not have it.
pub(super) fn enable_privilege(name: &str) -> Result<(), Code> {
    let mut token = HANDLE::default();
    // SAFETY: the pseudo handle of this process needs no closing; `token` has room for the result.
    unsafe { OpenProcessToken(GetCurrentProcess(), TOKEN_ADJUST_PRIVILEGES | TOKEN_QUERY, &raw mut token) }
        .map_err(code)?;
    // SAFETY: the call succeeded, and nobody else closes the handle it made.
    let token = unsafe { OwnedHandle::from_raw_handle(token.0) };
    let mut luid = LUID::default();
    // SAFETY: the name lives over the call, `luid` has room for the result.
    unsafe { LookupPrivilegeValueW(PCWSTR::null(), &HSTRING::from(name), &raw mut luid) }.map_err(code)?;
    let privileges = TOKEN_PRIVILEGES {
        PrivilegeCount: 1,
        Privileges: [LUID_AND_ATTRIBUTES { Luid: luid, Attributes: SE_PRIVILEGE_ENABLED }],
    };
    // SAFETY: the token is open; `privileges` lives over the call and holds the one entry that it counts; no earlier
    // state is asked for.
    unsafe { AdjustTokenPrivileges(HANDLE(token.as_raw_handle()), false, Some(&raw const privileges), 0, None, None) }
        .map_err(code)?;
    // The call succeeds even when it could not do it, and says so beside its result.
    // SAFETY: reads a value of this thread.
    let said = unsafe { GetLastError() };
    if said == ERROR_NOT_ALL_ASSIGNED { Err(said.0) } else { Ok(()) }
}

/// The file system's number of an open file, with that of its volume.
pub(super) fn file_id(file: &File) -> Result<(u64, u128), Code> {
    let mut info = FILE_ID_INFO::default();
    // SAFETY: the handle is open; `info` is of the class that is asked for, and of the size that is said.
    unsafe {
        GetFileInformationByHandleEx(
            HANDLE(file.as_raw_handle()),
            FileIdInfo,
            ptr::from_mut(&mut info).cast(),
            size_of::<FILE_ID_INFO>() as u32,
        )
    }
    .map_err(code)?;
    Ok((info.VolumeSerialNumber, u128::from_le_bytes(info.FileId.Identifier)))
}

/// Bytes that the caller may still write below `folder`, quotas considered.
pub(super) fn free_bytes(folder: &str) -> Result<u64, Code> {
    let mut free_bytes = 0;
    // SAFETY: the path lives over the call, and `free_bytes` has room for the one result that is asked for.
    unsafe { GetDiskFreeSpaceExW(&HSTRING::from(folder), Some(&raw mut free_bytes), None, None) }.map_err(code)?;
    Ok(free_bytes)
}

/// `FSCTL_SET_SPARSE`: from now on what is not written takes no space.
pub(super) fn mark_sparse(file: &File) -> Result<(), Code> {
    // SAFETY: the handle is open; the request has neither input nor output, and on a handle of std, which is not
    // overlapped, the call ends before it returns.
    unsafe { DeviceIoControl(HANDLE(file.as_raw_handle()), FSCTL_SET_SPARSE, None, 0, None, 0, None, None) }
        .map_err(code)
}

fn check(status: WIN32_ERROR) -> Result<(), Code> {
    if status.0 == 0 { Ok(()) } else { Err(status.0) }
}

/// The code that the failed call left with its thread.
fn code(error: Error) -> Code {
    WIN32_ERROR::from_error(&error).map_or(error.code().0.cast_unsigned(), |code| code.0)
}

fn text_until_nul(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_ne_bytes([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0)
        .collect();
    String::from_utf16_lossy(&units)
}

fn to_system(guid: Guid) -> GUID {
    let [a0, a1, a2, a3, b0, b1, c0, c1, rest @ ..] = guid.to_stored();
    GUID::from_values(
        u32::from_le_bytes([a0, a1, a2, a3]),
        u16::from_le_bytes([b0, b1]),
        u16::from_le_bytes([c0, c1]),
        rest,
    )
}

fn from_system(guid: GUID) -> Guid {
    Guid::from_u128(guid.to_u128())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_keep_their_parts() {
        let guid: Guid = "83f8638b-8dca-4152-9eda-2ca8b33039b4".parse().unwrap();
        assert_eq!(to_system(guid), GUID::from_u128(0x83f8638b_8dca_4152_9eda_2ca8b33039b4));
        assert_eq!(from_system(to_system(guid)), guid);
    }

    #[test]
    fn text_ends_at_its_nul() {
        for (bytes, text) in [(&b"a\0b\0\0\0c\0"[..], "ab"), (b"a\0", "a"), (b"a\0b", "a"), (b"\0\0", ""), (b"", "")] {
            assert_eq!(text_until_nul(bytes), text, "{bytes:?}");
        }
    }
}

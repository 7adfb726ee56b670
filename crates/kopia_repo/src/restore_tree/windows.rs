//! Folders and files of the target, by paths. Every folder was made here, never taken over, and every name is one that
//! Windows takes as it is.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io;
use std::os::windows::fs::{FileExt, OpenOptionsExt, symlink_file};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::format::random;
use crate::format::snapshot::DirEntry;

/// `FILE_FLAG_BACKUP_SEMANTICS`: without it a folder cannot be opened.
const BACKUP_SEMANTICS: u32 = 0x0200_0000;
/// `FILE_WRITE_ATTRIBUTES`.
const WRITE_ATTRIBUTES: u32 = 0x100;
/// Names of devices, in every folder and with any extension.
const DEVICES: [&str; 6] = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"];

/// Why a name cannot be one file in one folder (Microsoft, "Naming Files, Paths, and Namespaces").
pub(super) fn name_problem(name: &str) -> Option<&'static str> {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_uppercase();
    let is_port = |stem: &str| {
        let number = stem.strip_prefix("COM").or_else(|| stem.strip_prefix("LPT"));
        number.is_some_and(|number| number.chars().count() == 1)
    };
    match name {
        "" => Some("it is empty"),
        "." | ".." => Some("it is a folder's name for itself or its parent"),
        _ if name.contains(['/', '\\', ':']) => Some("it contains a separator"),
        _ if name.contains(|c: char| c < ' ' || "<>\"|?*".contains(c)) => Some("Windows refuses one of its characters"),
        _ if name.ends_with([' ', '.']) => Some("Windows drops the last character"),
        _ if DEVICES.contains(&&*stem) || is_port(&stem) => Some("it is a device of Windows"),
        _ => None,
    }
}

/// Whether an error says that this name does not fit here.
pub(super) fn is_name_error(error: &io::Error) -> bool {
    const ERROR_INVALID_NAME: i32 = 123;
    const ERROR_FILENAME_EXCED_RANGE: i32 = 206;
    matches!(error.raw_os_error(), Some(ERROR_INVALID_NAME | ERROR_FILENAME_EXCED_RANGE))
}

/// Owners of other systems mean nothing here.
pub(super) fn is_root() -> bool {
    false
}

pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Opens the target, made if need be, and says whether it is empty.
    pub(super) fn open_target(target: &Path) -> io::Result<(Self, bool)> {
        fs::create_dir_all(target)?;
        let is_empty = fs::read_dir(target)?.next().is_none();
        // The long form: paths in it may have more than 260 characters.
        Ok((Self { path: target.canonicalize()? }, is_empty))
    }

    pub(super) fn create_folder(&self, name: &str) -> io::Result<Self> {
        let path = self.path.join(name);
        fs::create_dir(&path)?;
        Ok(Self { path })
    }

    pub(super) fn create_symlink(&self, name: &str, link_target: &[u8]) -> io::Result<()> {
        let link_target = std::str::from_utf8(link_target)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the link's target is not UTF-8"))?;
        symlink_file(link_target, self.path.join(name))
    }

    /// Links keep the time of their making: setting it would follow them.
    pub(super) fn set_symlink_attributes(&self, _: &str, _: &DirEntry, _: bool) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn set_attributes(&self, entry: &DirEntry, _set_owner: bool) -> io::Result<()> {
        let folder =
            OpenOptions::new().access_mode(WRITE_ATTRIBUTES).custom_flags(BACKUP_SEMANTICS).open(&self.path)?;
        folder.set_times(times(entry))
    }

    pub(super) fn create_temporary_file(&self) -> io::Result<TemporaryFile> {
        let path = self.path.join(format!(".kopia-restore-{:032x}", u128::from_le_bytes(random::bytes())));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(TemporaryFile { path, file: Some(file), read_only: false.into() })
    }
}

/// A file without a name of its own yet; dropped before it gets one, it is removed.
pub(super) struct TemporaryFile {
    path: PathBuf,
    /// Open until it has its name.
    file: Option<File>,
    read_only: std::sync::atomic::AtomicBool,
}

impl TemporaryFile {
    pub(super) fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.file().set_len(len_bytes)
    }

    pub(super) fn write_all_at(&self, mut bytes: &[u8], mut offset_bytes: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.file().seek_write(bytes, offset_bytes)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[written..];
            offset_bytes += written as u64;
        }
        Ok(())
    }

    pub(super) fn set_attributes(&self, entry: &DirEntry, _set_owner: bool) -> io::Result<()> {
        self.read_only.store(entry.mode.to_posix() & 0o222 == 0, std::sync::atomic::Ordering::Relaxed);
        self.file().set_times(times(entry))
    }

    /// Renames it; something under the name is an error.
    pub(super) fn give_name(mut self, folder: &Folder, name: &str) -> io::Result<()> {
        let path = folder.path.join(name);
        if path.symlink_metadata().is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = self.file.take().expect("open until it has its name");
        let renamed = fs::rename(&self.path, &path);
        if renamed.is_err() {
            self.file = Some(file);
            return renamed;
        }
        if self.read_only.load(std::sync::atomic::Ordering::Relaxed) {
            let mut permissions = file.metadata()?.permissions();
            permissions.set_readonly(true);
            file.set_permissions(permissions)?;
        }
        Ok(())
    }

    fn file(&self) -> &File {
        self.file.as_ref().expect("open until it has its name")
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            drop(file);
            // There is nobody to tell; the name says what it is.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Windows counts from 1601 in steps of 100 ns; what lies before stays out.
fn times(entry: &DirEntry) -> FileTimes {
    let times = FileTimes::new();
    SystemTime::try_from(entry.mtime).map_or(times, |time| times.set_modified(time))
}

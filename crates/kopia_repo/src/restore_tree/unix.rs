//! Folders and files of the target, by handles: every call names one component below an open folder and follows no
//! link, so a path that changes under the restore leads nowhere else.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;

use crate::format::random;
use crate::format::snapshot::DirEntry;

/// Why a name cannot be one file in one folder.
pub(super) fn name_problem(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("it is empty"),
        "." | ".." => Some("it is a folder's name for itself or its parent"),
        _ if name.contains('/') => Some("it contains a slash"),
        _ if name.contains('\0') => Some("it contains a NUL"),
        _ => None,
    }
}

/// Whether an error says that this name or size does not fit here.
pub(super) fn is_name_error(error: &io::Error) -> bool {
    [Errno::NAMETOOLONG, Errno::ILSEQ, Errno::LOOP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(super) struct Folder {
    handle: Arc<OwnedFd>,
}

impl Folder {
    /// Opens the target, made if need be, and says whether it is empty.
    pub(super) fn open_target(target: &Path) -> io::Result<(Self, bool)> {
        fs::create_dir_all(target)?;
        let is_empty = fs::read_dir(target)?.next().is_none();
        // The target itself may be a link: it was named by whoever restores.
        let handle =
            rustix::fs::openat(CWD, target, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok((Self { handle: Arc::new(handle) }, is_empty))
    }

    pub(super) fn create_folder(&self, name: &str) -> io::Result<Self> {
        rustix::fs::mkdirat(&self.handle, name, Mode::RWXU)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = rustix::fs::openat(&self.handle, name, flags, Mode::empty())?;
        Ok(Self { handle: Arc::new(handle) })
    }

    pub(super) fn create_symlink(&self, name: &str, link_target: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(link_target, &self.handle, name)?)
    }

    pub(super) fn set_symlink_attributes(&self, name: &str, entry: &DirEntry, set_owner: bool) -> io::Result<()> {
        if set_owner {
            let (uid, gid) = owner(entry)?;
            rustix::fs::chownat(&self.handle, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(rustix::fs::utimensat(&self.handle, name, &times(entry)?, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    pub(super) fn set_attributes(&self, entry: &DirEntry, set_owner: bool) -> io::Result<()> {
        set_attributes(&self.handle, entry, set_owner)
    }

    pub(super) fn create_temporary_file(&self) -> io::Result<TemporaryFile> {
        // Random, so that no snapshot can hold an entry of this name.
        let name = format!(".kopia-restore-{:032x}", u128::from_le_bytes(random::bytes()));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.handle, &*name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(TemporaryFile { folder: self.handle.clone(), name: Some(name), file: File::from(file) })
    }
}

/// A file without a name of its own yet; dropped before it gets one, it is removed.
pub(super) struct TemporaryFile {
    folder: Arc<OwnedFd>,
    name: Option<String>,
    file: File,
}

impl TemporaryFile {
    pub(super) fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.file.set_len(len_bytes)
    }

    pub(super) fn write_all_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset_bytes)
    }

    pub(super) fn set_attributes(&self, entry: &DirEntry, set_owner: bool) -> io::Result<()> {
        set_attributes(&self.file, entry, set_owner)
    }

    /// Renames it; something under the name is an error.
    pub(super) fn give_name(mut self, folder: &Folder, name: &str) -> io::Result<()> {
        let temporary = self.name.as_deref().expect("present until it has its own");
        let to = &folder.handle;
        match rustix::fs::renameat_with(&self.folder, temporary, to, name, RenameFlags::NOREPLACE) {
            // Some file systems cannot rename so; then looking first has to do.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                match rustix::fs::statat(to, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(_) => return Err(Errno::EXIST.into()),
                    Err(Errno::NOENT) => rustix::fs::renameat(&self.folder, temporary, to, name)?,
                    Err(error) => return Err(error.into()),
                }
            }
            other => other?,
        }
        self.name = None;
        Ok(())
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // There is nobody to tell; the name says what it is.
            let _ = rustix::fs::unlinkat(&self.folder, &**name, AtFlags::empty());
        }
    }
}

/// Owner first: changing it takes set-user-ID and set-group-ID away.
fn set_attributes(handle: impl rustix::fd::AsFd, entry: &DirEntry, set_owner: bool) -> io::Result<()> {
    if set_owner {
        let (uid, gid) = owner(entry)?;
        rustix::fs::fchown(&handle, uid, gid)?;
    }
    rustix::fs::fchmod(&handle, Mode::from_bits_retain(entry.mode.to_posix()))?;
    Ok(rustix::fs::futimens(&handle, &times(entry)?)?)
}

fn owner(entry: &DirEntry) -> io::Result<(Option<Uid>, Option<Gid>)> {
    if entry.uid == u32::MAX || entry.gid == u32::MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "2^32 - 1 is no owner"));
    }
    Ok((Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid))))
}

fn times(entry: &DirEntry) -> io::Result<Timestamps> {
    const SECOND: i128 = 1_000_000_000;
    let nanoseconds = entry.mtime.as_nanosecond();
    let out_of_range = |_| io::Error::new(io::ErrorKind::InvalidInput, "the time is out of range");
    Ok(Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: nanoseconds.div_euclid(SECOND).try_into().map_err(out_of_range)?,
            tv_nsec: nanoseconds.rem_euclid(SECOND).try_into().expect("less than a second"),
        },
    })
}

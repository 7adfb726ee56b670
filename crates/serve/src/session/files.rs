//! The files of a session: its folder, and those that its disks move to.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;

use block_device::{Device, FileDevice};

use super::error::{SessionError, failed};
use crate::base::Base;
use crate::folder::{DiskFolder, Folder as _};
use crate::state::{STATE_NAME, SessionState, State};
use crate::vhdx_disk::VhdxDisk;

/// Held by the process that serves a session.
const LOCK_NAME: &str = "lock";

/// The state of the session in a folder, whoever serves it; `None` where there is none. Nothing is changed.
pub fn read_session(folder: &Path) -> Result<Option<SessionState>, SessionError> {
    if !folder.join(STATE_NAME).exists() {
        return Ok(None);
    }
    let opened = DiskFolder::open_or_create(folder).map_err(failed("open", folder))?;
    SessionState::read(&opened).map_err(failed("read the state in", folder))
}

/// Whether a process serves the session in a folder.
pub fn is_served(folder: &Path) -> Result<bool, SessionError> {
    backup::is_held(&folder.join(LOCK_NAME)).map_err(failed("look at", folder))
}

/// Deletes what a session left: overlays, maps, targets that never became disks, and its folder. May be repeated.
pub fn discard_session(folder: &Path) -> Result<(), SessionError> {
    let opened = DiskFolder::open_or_create(folder).map_err(failed("open", folder))?;
    let alone = lock_folder(folder)?;
    let state = SessionState::read(&opened).map_err(failed("read the state in", folder))?;
    if let Some(mut state) = state {
        if state.state != State::Discarded {
            state.state = State::Stopping;
            state.write(&opened).map_err(failed("write the state in", folder))?;
        }
        let begun = state.disks.iter().filter(|disk| !disk.is_local).filter_map(|disk| disk.target.as_ref());
        for target in begun.map(Path::new) {
            match std::fs::remove_file(target) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", target)(error)),
                _ => {}
            }
        }
        state.state = State::Discarded;
        state.write(&opened).map_err(failed("write the state in", folder))?;
    }
    drop(alone);
    remove_session(folder).map_err(failed("remove", folder))
}

/// The state goes last: until then the rest can be found again. What another process has removed meanwhile is gone.
pub(super) fn remove_session(folder: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            gone(std::fs::remove_dir_all(&path))?;
        } else if path.file_name().is_some_and(|name| name != STATE_NAME) {
            gone(std::fs::remove_file(&path))?;
        }
    }
    gone(std::fs::remove_dir_all(folder))
}

/// So that nobody else does anything to a session, as long as the file is open.
pub(super) fn lock_folder(folder: &Path) -> Result<File, SessionError> {
    let path = folder.join(LOCK_NAME);
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed("open", &path))?;
    match backup::try_lock_past_looks(&file) {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SessionError::Busy { folder: folder.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
    }
}

/// Whether a disk goes to a VHDX: the file's name says so.
fn is_vhdx(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("vhdx"))
}

/// A disk that is all zero and takes no space yet; it is durable that it is there. What an attempt before left is
/// replaced.
pub(super) fn create_target(path: &Path, base: &Arc<dyn Base>) -> Result<Arc<dyn Device>, SessionError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace", path)(error)),
        _ => {}
    }
    if is_vhdx(path) {
        return Ok(Arc::new(VhdxDisk::create(path, base.size_bytes(), base.sector_bytes())?));
    }
    let made = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.set_len(base.size_bytes())?;
        file.sync_all()?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        DiskFolder::open_or_create(folder)?.sync()
    };
    made().map_err(failed("create", path))?;
    open_target(path)
}

pub(super) fn open_target(path: &Path) -> Result<Arc<dyn Device>, SessionError> {
    if is_vhdx(path) {
        return Ok(Arc::new(VhdxDisk::open(path)?));
    }
    let opened = FileDevice::open(path, false);
    Ok(Arc::new(opened.map_err(|source| SessionError::Target { path: path.into(), source })?))
}

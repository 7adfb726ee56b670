//! Why a session does not do what it was asked.

use std::io;
use std::path::{Path, PathBuf};

use block_device::DeviceError;

use crate::base::BaseError;
use crate::moving::MoveError;
use crate::overlay::OverlayError;
use crate::state::State;

/// Why a session does not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// There is one in that folder.
    #[error("begin a session in {}: there is one already; resume or discard it", folder.display())]
    Exists {
        /// Where.
        folder: PathBuf,
    },
    /// There is none.
    #[error("resume the session in {}: there is none", folder.display())]
    Missing {
        /// Where.
        folder: PathBuf,
    },
    /// Another process has it.
    #[error("use the session in {}: another process serves it", folder.display())]
    Busy {
        /// Where.
        folder: PathBuf,
    },
    /// Its state is not one that this program wrote.
    #[error("resume the session in {}: {problem}", folder.display())]
    Damaged {
        /// Where.
        folder: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
    /// It has ended, or was ending.
    #[error("resume a session that is {state:?}: nothing is left to serve; discard it to clear what remains")]
    Over {
        /// Where it stands.
        state: State,
    },
    /// That does not follow.
    #[error("bring a session from {from:?} to {next:?}: that does not follow")]
    Transition {
        /// Where it stands.
        from: State,
        /// Where it was to go.
        next: State,
    },
    /// The base is another one than the guest's writes were made over.
    #[error("resume disk {disk}: its base in the repository is not the one that the guest has written over")]
    OtherBase {
        /// The disk's name.
        disk: String,
    },
    /// As many targets as disks are needed.
    #[error("move {disks} disks: {asked} files were named")]
    Targets {
        /// How many were named.
        asked: usize,
        /// How many are needed.
        disks: usize,
    },
    /// It was to go elsewhere.
    #[error("move a disk: it is on its way to {known} already; name that file, or discard the session")]
    OtherTarget {
        /// Where.
        known: String,
    },
    /// The file is somebody's.
    #[error("move a disk to {}: the file exists; choose another name", path.display())]
    TargetExists {
        /// The file.
        path: PathBuf,
    },
    /// The state is text.
    #[error("move a disk to {}: the name is not Unicode", path.display())]
    TargetName {
        /// The file.
        path: PathBuf,
    },
    /// It would not fit.
    #[error("move a disk to {}: {needed_bytes} bytes are needed, {free_bytes} are free", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// What it takes at most.
        needed_bytes: u64,
        /// What is free.
        free_bytes: u64,
    },
    /// The file that a disk is, or is going to be, cannot be opened.
    #[error("open the file of a disk, {}", path.display())]
    Target {
        /// The file.
        path: PathBuf,
        /// Why.
        source: block_device::OpenFileError,
    },
    /// A file or folder of the session's failed.
    #[error("{attempt} {}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The base cannot be read.
    #[error("read the restore point: {0}")]
    Base(#[from] BaseError),
    /// The overlay cannot be used.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// A disk did not move on.
    #[error(transparent)]
    Move(#[from] MoveError),
    /// A disk failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Says what was attempted with a file.
pub(super) fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SessionError {
    let path = path.to_owned();
    move |source| SessionError::Io { attempt, path, source }
}

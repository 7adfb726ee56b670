//! Why a disk could not be opened.

use std::io;
use std::path::PathBuf;

use crate::{GeometryError, Guid};

/// Why a disk could not be opened. Nothing was changed, except that a log may have been replayed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A system call on a file failed.
    #[error("{action} {}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Reading a structure failed.
    #[error("read {structure} at file offset {offset_bytes:#x}")]
    Read {
        /// Which structure.
        structure: &'static str,
        /// Where it is.
        offset_bytes: u64,
        /// What the file said.
        #[source]
        source: io::Error,
    },
    /// Writing failed while the log was being replayed.
    #[error("replay the log: {action} at file offset {offset_bytes:#x}")]
    Replay {
        /// What was attempted.
        action: &'static str,
        /// Where.
        offset_bytes: u64,
        /// What the file said.
        #[source]
        source: io::Error,
    },
    /// The bytes contradict the format.
    #[error("{structure} at file offset {offset_bytes:#x}: {problem}")]
    Corrupt {
        /// Which structure.
        structure: &'static str,
        /// Where it is.
        offset_bytes: u64,
        /// Which field, what was found, what was expected.
        problem: String,
    },
    /// The metadata describes an impossible disk.
    #[error("metadata describes an impossible disk")]
    Geometry(#[from] GeometryError),
    /// Valid, but not something this library handles.
    #[error("not supported: {what}")]
    Unsupported {
        /// What it is.
        what: String,
    },
    /// The program that creates the file has not finished.
    #[error("the file's creation was never finished")]
    Incomplete,
    /// Neither a VHDX nor a VHD, and raw disks were not allowed.
    #[error("neither a VHDX nor a VHD file")]
    NotADisk,
    /// Another program has the file open for writing.
    #[error("{} is in use by another writer", path.display())]
    Busy {
        /// Which file.
        path: PathBuf,
    },
    /// A differencing file's parent was not found where it may be looked for.
    #[error("parent of {}: none found; tried {tried:?}", child.display())]
    ParentNotFound {
        /// The differencing file.
        child: PathBuf,
        /// What was looked at, and what came of it.
        tried: Vec<ParentAttempt>,
    },
    /// Files exist where the parent should be, but none is the one the child was made from.
    #[error("parent of {}: identity is not {expected}; tried {tried:?}", child.display())]
    ParentMismatch {
        /// The differencing file.
        child: PathBuf,
        /// The identity that the child names.
        expected: Guid,
        /// What was looked at, and what came of it.
        tried: Vec<ParentAttempt>,
    },
    /// Parent and child cannot belong together.
    #[error("{} cannot be the parent of {}: {problem}", parent.display(), child.display())]
    ParentUnfit {
        /// The differencing file.
        child: PathBuf,
        /// Its parent.
        parent: PathBuf,
        /// Why.
        problem: String,
    },
    /// A file is its own ancestor.
    #[error("{} is its own ancestor", path.display())]
    ChainCycle {
        /// The file.
        path: PathBuf,
    },
    /// More than 256 files.
    #[error("chain of more than {limit} files", limit = crate::chain::MAX_CHAIN)]
    ChainTooDeep,
    /// The parent was found but could not be opened.
    #[error("open parent {}", path.display())]
    InParent {
        /// The parent.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<OpenError>,
    },
}

/// A file that was looked at as a possible parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentAttempt {
    /// Where.
    pub path: PathBuf,
    /// Its identity; `None` when there is no such file.
    pub found: Option<Guid>,
}

/// What a caller can do about an [`OpenError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpenErrorKind {
    /// A file or a parent does not exist, or lies where it may not be opened.
    Missing,
    /// The bytes contradict the format.
    Corrupt,
    /// Valid, but not something this library handles.
    Unsupported,
    /// Somebody else has the file open for writing.
    Busy,
    /// A parent exists but is not the one the child was made from.
    ParentMismatch,
    /// Reading or writing failed.
    Io,
}

impl OpenError {
    /// What a caller can do about it.
    pub fn kind(&self) -> OpenErrorKind {
        match self {
            OpenError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => OpenErrorKind::Missing,
            // A structure that lies past the end of the file.
            OpenError::Read { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof => OpenErrorKind::Corrupt,
            OpenError::File { .. } | OpenError::Read { .. } | OpenError::Replay { .. } => OpenErrorKind::Io,
            OpenError::Corrupt { .. } | OpenError::Geometry(_) | OpenError::Incomplete => OpenErrorKind::Corrupt,
            OpenError::ChainCycle { .. } | OpenError::ChainTooDeep => OpenErrorKind::Corrupt,
            OpenError::Unsupported { .. } | OpenError::NotADisk => OpenErrorKind::Unsupported,
            OpenError::Busy { .. } => OpenErrorKind::Busy,
            OpenError::ParentNotFound { .. } => OpenErrorKind::Missing,
            OpenError::ParentMismatch { .. } | OpenError::ParentUnfit { .. } => OpenErrorKind::ParentMismatch,
            OpenError::InParent { source, .. } => source.kind(),
        }
    }

    pub(crate) fn corrupt(structure: &'static str, offset_bytes: u64, problem: impl Into<String>) -> Self {
        OpenError::Corrupt { structure, offset_bytes, problem: problem.into() }
    }

    pub(crate) fn read(structure: &'static str, offset_bytes: u64) -> impl FnOnce(io::Error) -> Self {
        move |source| OpenError::Read { structure, offset_bytes, source }
    }
}

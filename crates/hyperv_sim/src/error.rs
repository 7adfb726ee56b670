//! What can go wrong in the lab itself.

use std::path::PathBuf;

/// An operation of the lab failed. Through the seam it shows as the error that a host would give.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file or folder of the lab.
    #[error("{attempt} {}", .path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// `host.json` cannot be understood.
    #[error("parse {}", .path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A virtual disk file.
    #[error("{attempt} {path}")]
    Disk {
        /// What was attempted.
        attempt: &'static str,
        /// The disk, in the host's form.
        path: String,
        /// What the format library said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A read of guest data failed.
    #[error("read the content of a virtual disk")]
    Read(#[from] vhdx::ReadError),
    /// There is no such VM, by name or id.
    #[error("no VM {0:?}")]
    NoSuchVm(String),
    /// The VM has no such disk.
    #[error("VM {vm:?} has no disk {disk}")]
    NoSuchDisk {
        /// The VM.
        vm: String,
        /// Index of the disk, in slot order.
        disk: usize,
    },
    /// The host refuses: wrong state, wrong input.
    #[error("{attempt}: {reason}")]
    Refused {
        /// What was attempted.
        attempt: &'static str,
        /// Why not.
        reason: String,
    },
    /// The folder already holds a host, or something else.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// The armed crash point was reached; this `LabHost` does nothing any more.
    #[error("the host's process died at write {0}")]
    Crashed(u64),
}

impl LabError {
    pub(crate) fn io(attempt: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { attempt, path, source }
    }

    pub(crate) fn refused(attempt: &'static str, reason: impl Into<String>) -> Self {
        Self::Refused { attempt, reason: reason.into() }
    }

    pub(crate) fn disk<E>(attempt: &'static str, path: &str) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let path = path.to_owned();
        move |source| Self::Disk { attempt, path, source: Box::new(source) }
    }
}

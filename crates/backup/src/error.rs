//! What can go wrong in a backup, a restore or a verification.

use kopia_repo::{OpenError, ReadError, WriteError};

use crate::disk_object::DiskObjectError;
use crate::layout::LayoutError;
use crate::retention::Obstacle;

/// Why a backup, restore or verification failed. Each says what was attempted and on what; the cause is its source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The caller asked to stop.
    #[error("stopped on request")]
    Cancelled,
    /// Hyper-V or the host refused.
    #[error("{attempt}")]
    Host {
        /// What was attempted, on which VM.
        attempt: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The VM cannot be backed up as it is.
    #[error("back up {vm}: {problem}")]
    NotBackupable {
        /// Its name.
        vm: String,
        /// Why not, and what to do.
        problem: String,
    },
    /// A volume of the VM has no room for a checkpoint, or no longer. Nothing is left on it.
    #[error("back up {vm}: {volume} has {} MiB free, and a checkpoint needs {} MiB at least", free_bytes >> 20, needed_bytes >> 20)]
    NoRoom {
        /// Its name.
        vm: String,
        /// Drive, cluster volume or share.
        volume: String,
        /// Free now.
        free_bytes: u64,
        /// The limit.
        needed_bytes: u64,
    },
    /// Earlier merges of the VM were not done: another checkpoint would make it worse.
    #[error("back up {vm}: {disk} is {files} files deep, because earlier checkpoints were not merged")]
    MergeStuck {
        /// Its name.
        vm: String,
        /// The leaf.
        disk: String,
        /// Files of its chain.
        files: usize,
    },
    /// The run took longer than a checkpoint may exist; it was removed.
    #[error("back up {vm}: its checkpoint is {} minutes old, and the run is not done", age.as_secs() / 60)]
    CheckpointTooOld {
        /// Its name.
        vm: String,
        /// How old.
        age: std::time::Duration,
    },
    /// Another run works on the VM.
    #[error("back up {vm}: another run holds it{holder}")]
    Busy {
        /// Its name.
        vm: String,
        /// Who, if known.
        holder: String,
    },
    /// A byte of the source cannot be read; the VM gets no point (law 3).
    #[error("read {len_bytes} bytes at {offset_bytes} of {disk}, five times")]
    SourceRead {
        /// Which disk of which VM.
        disk: String,
        /// Virtual offset.
        offset_bytes: u64,
        /// Length of the range.
        len_bytes: u64,
        /// The last failure.
        #[source]
        source: vhdx::ReadError,
    },
    /// The allocation of the source cannot be read.
    #[error("find out what {disk} holds")]
    SourceMap {
        /// Which disk of which VM.
        disk: String,
        /// Why.
        #[source]
        source: vhdx::ReadError,
    },
    /// A segment that change tracking calls unchanged is not what the base holds.
    #[error("{disk} changed at {offset_bytes} although change tracking says it did not")]
    TrackingLied {
        /// Which disk of which VM.
        disk: String,
        /// Virtual offset of the segment.
        offset_bytes: u64,
    },
    /// The disk has no layout.
    #[error("lay out {disk}")]
    Layout {
        /// Which disk of which VM.
        disk: String,
        /// Why.
        #[source]
        source: LayoutError,
    },
    /// The repository cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The repository cannot be read.
    #[error("read the repository")]
    Read {
        /// Why.
        #[from]
        source: ReadError,
    },
    /// The repository cannot be written.
    #[error("write to the repository")]
    Write {
        /// Why.
        source: WriteError,
    },
    /// A stored disk is not what its point says.
    #[error("read a stored disk")]
    DiskObject {
        /// Why.
        #[from]
        source: DiskObjectError,
    },
    /// A point's own description cannot be used.
    #[error("read point {point}: {problem}")]
    Point {
        /// The point.
        point: String,
        /// What does not hold.
        problem: String,
    },
    /// No such point, or several.
    #[error("{0}")]
    Select(#[from] SelectError),
    /// The journal or the lock of the host failed.
    #[error("{attempt} {path}")]
    State {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The target of a restore failed.
    #[error("write {path}")]
    Target {
        /// The file or device.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The target of a restore is in the way or too small; nothing was written.
    #[error("restore to {path}: {problem}")]
    TargetRefused {
        /// The file or device.
        path: String,
        /// Why.
        problem: String,
    },
    /// Points that have to stay; nothing was deleted.
    #[error("{}", obstacles.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    PointsProtected {
        /// Everything that keeps them.
        obstacles: Vec<Obstacle>,
    },
    /// A restore that was planned has obstacles; nothing was touched.
    #[error("restore {vm}: {problem}")]
    Obstructed {
        /// The VM's name.
        vm: String,
        /// What stands in the way.
        problem: String,
    },
    /// A disk is half-way between two states and must not be used before the restore was run again.
    #[error("restore {vm} in place, which is unfinished: its disks are renamed so that it cannot start")]
    Unfinished {
        /// The VM's name.
        vm: String,
        /// What broke it off.
        #[source]
        source: Box<BackupError>,
    },
    /// What was read back after the commit is not what was written.
    #[error("the point that was just written does not read back: {problem}")]
    ReadBack {
        /// What differs.
        problem: String,
    },
}

/// A selector that names nothing, or more than one thing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// Nothing fits.
    #[error("there is no {what} {selector:?}{hint}")]
    NotFound {
        /// `VM`, `point`, `disk`.
        what: &'static str,
        /// As it was given.
        selector: String,
        /// What there is instead, as ` (…)`; may be empty.
        hint: String,
    },
    /// More than one fits.
    #[error("{what} {selector:?} is ambiguous: {}", candidates.join(", "))]
    Ambiguous {
        /// `VM`, `point`, `disk`.
        what: &'static str,
        /// As it was given.
        selector: String,
        /// What fits.
        candidates: Vec<String>,
    },
}

impl BackupError {
    pub(crate) fn host<E: std::error::Error + Send + Sync + 'static>(
        attempt: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let attempt = attempt.into();
        move |source| Self::Host { attempt, source: Box::new(source) }
    }

    pub(crate) fn state(attempt: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::State { attempt, path, source }
    }

    /// The kind of the storage failure at the bottom, if the repository's storage is to blame.
    pub fn storage_kind(&self) -> Option<bucket::ErrorKind> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<bucket::BucketError>() {
                return Some(error.kind());
            }
            if let Some(error) = error.downcast_ref::<WriteError>()
                && let Some(kind) = error.storage_kind()
            {
                return Some(kind);
            }
            cause = error.source();
        }
        None
    }

    /// Whether stored bytes are missing or not what was written.
    pub fn is_damage(&self) -> bool {
        use kopia_repo::ReadErrorKind::{Damaged, Missing};
        match self {
            Self::Read { source } | Self::DiskObject { source: DiskObjectError::Repository(source) } => {
                matches!(source.kind(), Damaged | Missing)
            }
            Self::DiskObject { .. } | Self::Point { .. } | Self::ReadBack { .. } => true,
            _ => false,
        }
    }
}

/// An error with its causes in one line.
pub(crate) fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

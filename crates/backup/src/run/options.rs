//! What is asked of a backup.

use std::time::Duration;

use kopia_repo::CompressionId;

/// What to do when the guest cannot be frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsistencyPolicy {
    /// Application-consistent, or crash-consistent with a warning.
    PreferApplication,
    /// Application-consistent, or no point.
    RequireApplication,
    /// Do not ask the guest.
    Crash,
}

/// How VMs are backed up.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// Read everything, whatever tracking says.
    pub full: bool,
    /// What to ask of the guest.
    pub consistency: ConsistencyPolicy,
    /// Payload segment size, a power of two from 256 KiB to 4 MiB; `None` for the default of the disk's size, or what
    /// the base has.
    pub segment_bytes: Option<u32>,
    /// Compression of contents.
    pub compression: Option<CompressionId>,
    /// How long the merge is waited for.
    pub merge_wait: Duration,
    /// How long an operation in progress on the VM is waited for.
    pub idle_wait: Duration,
    /// Name and version of the program, for the description.
    pub program: String,
}

impl BackupOptions {
    /// The defaults, for this program.
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            full: false,
            consistency: ConsistencyPolicy::PreferApplication,
            segment_bytes: None,
            compression: Some(CompressionId::ZSTD_FASTEST),
            merge_wait: Duration::from_secs(10 * 60),
            idle_wait: Duration::from_secs(10 * 60),
            program: program.into(),
        }
    }
}

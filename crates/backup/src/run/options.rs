//! What is asked of a backup.

use std::sync::Arc;
use std::time::Duration;

use kopia_repo::CompressionId;

use crate::{ReadLimits, Resources};

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
    /// Pause before a checkpoint is tried again that the host refused because it was busy.
    pub busy_pause: Duration,
    /// Pause before a guest is asked once more that was too slow, or busy with another snapshot.
    pub guest_pause: Duration,
    /// What the run leaves to others on the host.
    pub guard: GuardLimits,
    /// How hard disks may be read.
    pub reads: ReadLimits,
    /// Shared with every other run of the process.
    pub resources: Arc<Resources>,
    /// Check everything that tracking calls unchanged, not a sample.
    pub audit_everything: bool,
    /// Name and version of the program, for the description.
    pub program: String,
}

/// What a run must not do to the host that it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardLimits {
    /// Free bytes below which a volume of the VM's disks gets no checkpoint. While one exists, a run that sees less than
    /// half of this gives up, so that the checkpoint goes before the volume is full (spec hyperv 11, row 11).
    pub min_free_bytes: u64,
    /// How long a checkpoint may exist before the run gives up.
    pub max_checkpoint_age: Duration,
    /// Merges of the VM that may have stayed undone: with deeper chains there is no further checkpoint (row 36).
    pub max_chain_depth: usize,
}

impl Default for GuardLimits {
    fn default() -> Self {
        Self { min_free_bytes: 10 << 30, max_checkpoint_age: Duration::from_secs(24 * 3600), max_chain_depth: 10 }
    }
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
            idle_wait: Duration::from_secs(15 * 60),
            busy_pause: Duration::from_secs(60),
            guest_pause: Duration::from_secs(5 * 60),
            guard: GuardLimits::default(),
            reads: ReadLimits::default(),
            resources: Arc::default(),
            audit_everything: false,
            program: program.into(),
        }
    }
}

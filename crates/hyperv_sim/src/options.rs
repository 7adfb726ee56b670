//! How a host behaves where real ones differ, or where a test wants another pace.

use serde::{Deserialize, Serialize};

/// Behaviour of a host. Kept in `host.json`, so that every process that opens the host sees the same one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LabOptions {
    /// Computer name: the host part of object paths.
    pub host_name: String,
    /// Whose time passes.
    pub clock: ClockKind,
    /// How methods that may start a job answer.
    pub jobs: JobStyle,
    /// Whether `Resulting…` outputs are filled when a method answers 0.
    pub reference_outputs: ReferenceOutputs,
    /// What becomes of a change tracking marker when its reference point is destroyed.
    pub marker_retention: MarkerRetention,
    /// From a call to the end of its job.
    pub job_ms: u64,
    /// From the end of a checkpoint to the end of its merge.
    pub merge_ms: u64,
    /// Wait before a merge that found a file in use is tried again.
    pub merge_retry_ms: u64,
    /// How long a finished job can still be read.
    pub job_retention_ms: u64,
    /// Change tracking rounds outward to multiples of this many bytes; a power of two, at least 512.
    pub granularity_bytes: u64,
    /// Answers about changes hold random ranges besides.
    pub superset: bool,
    /// Answers about changes never hold a range longer than this; neighbours then touch. 0 for no limit.
    pub longest_range_bytes: u64,
    /// A query for the whole disk at once is refused.
    pub refuse_whole_disk_query: bool,
    /// Which ids new instants get after a disk was reverted together with its tracking files.
    pub sequences: Sequences,
    /// What becomes of tracking when a checkpoint is applied.
    pub after_apply: AfterApply,
    /// What becomes of tracking when a disk's files are moved by the host.
    pub after_move: AfterMove,
    /// A second recovery checkpoint on one VM is accepted; else `CreateSnapshot` answers 32775.
    pub allow_second_recovery_checkpoint: bool,
    /// Bytes that the volume says it can still take.
    pub free_bytes: u64,
    /// Logical processors of the host.
    pub processors: u64,
    /// Memory of the host, in MiB.
    pub memory_mib: u64,
    /// Virtual switches. A VM that is put on the host is connected to the first.
    pub switches: Vec<LabSwitch>,
    /// The failover cluster that the host is a node of.
    pub cluster: Option<LabCluster>,
    /// How many physical disks can be passed through.
    pub physical_disks: u32,
    /// From a login to an iSCSI target until its disks are there.
    pub disk_arrival_ms: u64,
    /// Disks that arrive are on-line and writable at once, as on Windows 10; servers bring them up off-line and read-only.
    pub new_disks_online: bool,
    /// The newest configuration version that the host can import and make.
    pub max_configuration_version: String,
}

/// A failover cluster, as one of its nodes sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabCluster {
    /// Its name.
    pub name: String,
    /// 8 for Server 2012 R2, 9 for 2016, and so on.
    pub functional_level: u32,
    /// VMs that are roles, on whichever node: VM id, and owner node.
    pub roles: Vec<(String, String)>,
}

/// A virtual switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabSwitch {
    /// Upper-case GUID.
    pub id: String,
    /// What people call it.
    pub name: String,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            host_name: "LABHOST".into(),
            clock: ClockKind::Virtual,
            jobs: JobStyle::ByJob,
            reference_outputs: ReferenceOutputs::Filled,
            marker_retention: MarkerRetention::DropAtOnce,
            job_ms: 2_000,
            merge_ms: 4_000,
            merge_retry_ms: 30_000,
            job_retention_ms: 300_000,
            granularity_bytes: 64 << 10,
            superset: false,
            longest_range_bytes: 0,
            refuse_whole_disk_query: false,
            sequences: Sequences::NeverReused,
            after_apply: AfterApply::OldIdsFail,
            after_move: AfterMove::Lost,
            allow_second_recovery_checkpoint: false,
            free_bytes: 1 << 40,
            processors: 16,
            memory_mib: 64 << 10,
            switches: vec![LabSwitch { id: "C08CB7B8-9B3C-408E-8E30-5E16A3AEB444".into(), name: "LAN".into() }],
            cluster: None,
            physical_disks: 0,
            disk_arrival_ms: 0,
            new_disks_online: false,
            max_configuration_version: "10.0".into(),
        }
    }
}

impl LabOptions {
    /// Real time, with jobs and merges of tens of milliseconds: for programs that run as processes of their own.
    pub fn real_time() -> Self {
        Self { clock: ClockKind::System, job_ms: 30, merge_ms: 60, merge_retry_ms: 200, ..Self::default() }
    }
}

/// Whose time passes on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClockKind {
    /// A [`VirtualClock`](crate::VirtualClock): only sleeping moves it.
    Virtual,
    /// The machine's.
    System,
}

/// How methods that may start a job answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobStyle {
    /// 4096, and the work is done when the job's time has come.
    ByJob,
    /// Done when the call returns, with 0.
    Synchronous,
}

/// Whether `Resulting…` outputs are filled when a method answers 0. With 4096 they are always null.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReferenceOutputs {
    /// Filled, as on Server 2016 to 2022.
    Filled,
    /// Null, and reference points have the short `InstanceID`, as on Server 2025.
    Null2025,
}

/// What becomes of a change tracking marker when its reference point is destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MarkerRetention {
    /// Its id no longer answers.
    DropAtOnce,
    /// Its id answers for ever.
    Keep,
}

/// Which ids new instants get after a disk was reverted together with its tracking files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sequences {
    /// Always one that was never given out.
    NeverReused,
    /// The ones that follow in the reverted files: an old id then names another instant.
    ReusedAfterRevert,
}

/// What becomes of tracking when a checkpoint is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AfterApply {
    /// It starts anew.
    OldIdsFail,
    /// Ids of the abandoned branch go on answering, without what the revert itself changed: a lie.
    OldIdsAnswerWrongly,
}

/// What becomes of tracking when a disk's files are moved by the host (storage migration).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AfterMove {
    /// The tracking files move along.
    Kept,
    /// They do not.
    Lost,
    /// Ids go on answering, without what was written before the move: a lie.
    KeptButWrong,
}

//! What a backup says of itself.

use std::time::Duration;

use crate::point::{Point, PointDescription};
use crate::source_guard::ReadTimes;

/// What a backup did.
#[derive(Clone, Debug)]
pub struct VmReport {
    /// The new point.
    pub point: Point,
    /// Its description.
    pub description: PointDescription,
    /// What a person should know; with any, the run was not clean.
    pub warnings: Vec<Warning>,
    /// Counters.
    pub stats: RunStats,
    /// What it did to the host.
    pub host: HostCost,
}

/// What a run did to the host that the VM runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostCost {
    /// How long the checkpoint existed.
    pub checkpoint: Duration,
    /// The most bytes that the guest's own files were seen to have beside the frozen ones.
    pub avhdx_peak_bytes: u64,
    /// From the end of the checkpoint until the merge was seen; `None` if it was not.
    pub merge: Option<Duration>,
    /// The source's answers.
    pub reads: ReadTimes,
}

/// Something about a run that a person should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Stable name.
    pub code: WarningCode,
    /// A sentence.
    pub text: String,
}

/// Kinds of warnings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WarningCode {
    /// Less consistency than asked for.
    ConsistencyLowered,
    /// A disk is not in the point.
    DiskLeftOut,
    /// The merge was not seen.
    MergePending,
    /// A volume may be too small for the checkpoint.
    LowSpace,
    /// The host would not make a reference point: the next run goes on from an older instant, or is full.
    ConversionFailed,
    /// The next run of a disk must be full.
    TrackingLost,
    /// Change tracking was wrong; the disk was read in full.
    TrackingLied,
    /// An earlier point cannot be read, and is no base.
    PointDamaged,
    /// Something on the host is not ours and not expected.
    Foreign,
    /// A former run was cut off, and what it left was put in order.
    Recovered,
    /// The host remarked something.
    Host,
}

impl WarningCode {
    /// As scripts see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConsistencyLowered => "CONSISTENCY_LOWERED",
            Self::DiskLeftOut => "DISK_LEFT_OUT",
            Self::MergePending => "MERGE_PENDING",
            Self::LowSpace => "LOW_SPACE",
            Self::ConversionFailed => "CONVERSION_FAILED",
            Self::TrackingLost => "TRACKING_LOST",
            Self::TrackingLied => "TRACKING_LIED",
            Self::PointDamaged => "POINT_DAMAGED",
            Self::Foreign => "FOREIGN_CHECKPOINT",
            Self::Recovered => "RECOVERED",
            Self::Host => "HOST_REMARK",
        }
    }

    /// Whether the run is worth less because of it; a recovered leftover is news, not a defect.
    pub fn is_defect(self) -> bool {
        !matches!(self, Self::Recovered)
    }
}

/// Counters of a run on a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunStats {
    /// Bytes asked of the source, the audit's not included.
    pub read_bytes: u64,
    /// Bytes re-read to check change tracking.
    pub audit_bytes: u64,
    /// Bytes of segments that differ from the base.
    pub changed_bytes: u64,
    /// Stored contents of disks and files, as they lie in packs.
    pub data_bytes: u64,
    /// Stored index streams, directories and manifests, as they lie in packs.
    pub metadata_bytes: u64,
    /// Everything put to the storage.
    pub uploaded_bytes: u64,
    /// Entries of all disks, and how many of them were looked up in a fresh index.
    pub entries: u64,
    /// See `entries`.
    pub entries_checked: u64,
}

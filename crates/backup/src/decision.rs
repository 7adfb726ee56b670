//! Full or incremental: one pure function per disk, its reason recorded with the point.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::layout::LAYOUT_VERSION;
use crate::point::{PointChainFile, PointDescription, PointDisk};

/// Why a disk is read in full (spec hyperv 4.9; names as on the wire).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FullReason {
    /// No earlier point of this disk in this repository.
    First,
    /// The user asked for it.
    Forced,
    /// The earlier point was taken on another host or in another replica role.
    OriginChanged,
    /// The earlier point carries no tracking id for this disk.
    NoBaseId,
    /// Tracking is off, or the disk cannot be tracked.
    NoTracking,
    /// The host does not know the id any more.
    IdUnknown,
    /// The id was given out again after the storage went back in time.
    IdReused,
    /// The disk has another size: its table, and so every offset, may be another.
    Resized,
    /// The disk's sector sizes changed.
    SectorSizeChanged,
    /// A file of the chain was replaced by another.
    FileReplaced,
    /// The chain consists of other files.
    ChainChanged,
    /// A tracking companion of the disk is missing or empty.
    CompanionMissing,
    /// User checkpoints were made, deleted or applied.
    UserCheckpoints,
    /// The base has another layout, block size or segment size.
    LayoutChanged,
    /// The base's object cannot be used.
    BaseUnusable,
    /// Two disks of the VM have the same identity.
    AmbiguousDisk,
    /// The disks were written by a restore in place since the earlier point.
    RestoredInPlace,
    /// A sample showed a change that tracking did not report.
    AuditFailed,
    /// The host could not answer for another reason.
    QueryFailed,
}

impl fmt::Display for FullReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "first run",
            Self::Forced => "asked for",
            Self::OriginChanged => "taken on another host before",
            Self::NoBaseId => "the last point has no tracking id",
            Self::NoTracking => "changes are not tracked",
            Self::IdUnknown => "the tracking id is no longer known",
            Self::IdReused => "the tracking id was given out again",
            Self::Resized => "the disk was resized",
            Self::SectorSizeChanged => "the sector size changed",
            Self::FileReplaced => "the disk file was replaced",
            Self::ChainChanged => "the disk consists of other files",
            Self::CompanionMissing => "a tracking file is missing",
            Self::UserCheckpoints => "user checkpoints changed",
            Self::LayoutChanged => "the storage layout changed",
            Self::BaseUnusable => "the last point cannot be used",
            Self::AmbiguousDisk => "two disks have the same identity",
            Self::RestoredInPlace => "restored in place since",
            Self::AuditFailed => "change tracking was wrong",
            Self::QueryFailed => "the host could not say what changed",
        })
    }
}

/// What is known of a frozen disk before its changes are asked for.
#[derive(Clone, Debug)]
pub struct DiskFacts {
    /// VirtualDiskId, as text.
    pub virtual_disk_id: String,
    /// Another disk of the VM has the same identity.
    pub ambiguous: bool,
    /// Virtual size.
    pub size_bytes: u64,
    /// Logical and physical sector size.
    pub sector_bytes: (u32, u32),
    /// The chain, leaf first.
    pub chain: Vec<PointChainFile>,
    /// Whether the leaf has both companions, not empty.
    pub companions: bool,
    /// Whether tracking is on.
    pub tracking: bool,
    /// The newest id.
    pub most_recent_id: String,
}

/// What is known of the VM.
#[derive(Clone, Debug)]
pub struct VmFacts {
    /// The user asked for a full.
    pub forced: bool,
    /// The host.
    pub host: String,
    /// Hyper-V Replica's role.
    pub replication_mode: u16,
    /// User checkpoints that exist.
    pub user_checkpoints: Vec<String>,
    /// The one that was applied last.
    pub last_applied_checkpoint: Option<String>,
    /// Segment size the job asks for, if it does.
    pub segment_bytes: Option<u32>,
    /// When disks of it were last written by a restore in place, if they were.
    pub restored_in_place: Option<jiff::Timestamp>,
}

/// How a disk is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// All of it.
    Full(FullReason),
    /// The changes since this id, if the host can tell them, on top of the disk with this number of the base.
    Changes {
        /// Number of the disk in the base.
        base_disk: u32,
        /// The id to ask with.
        rct_id: String,
    },
}

/// Decides for one disk. A false "changes" loses data, a needless full costs time; so everything that might have broken
/// the line from the base to now means a full (spec hyperv 4.9).
pub fn decide(vm: &VmFacts, disk: &DiskFacts, base: Option<&PointDescription>) -> Decision {
    let reason = |reason| Decision::Full(reason);
    if vm.forced {
        return reason(FullReason::Forced);
    }
    let Some(base) = base else { return reason(FullReason::First) };
    let mut same_id = base.disks.iter().filter(|one| one.virtual_disk_id.eq_ignore_ascii_case(&disk.virtual_disk_id));
    let Some(of_base) = same_id.next() else { return reason(FullReason::First) };
    if disk.ambiguous || same_id.next().is_some() {
        return reason(FullReason::AmbiguousDisk);
    }
    if base.host != vm.host || base.replication_mode != vm.replication_mode {
        return reason(FullReason::OriginChanged);
    }
    // The time of the restore was noted before its first write, that of the point when its disks were frozen.
    if vm.restored_in_place.is_some_and(|restored| base.frozen <= restored) {
        return reason(FullReason::RestoredInPlace);
    }
    if sorted(&base.user_checkpoints) != sorted(&vm.user_checkpoints)
        || base.last_applied_checkpoint != vm.last_applied_checkpoint
    {
        return reason(FullReason::UserCheckpoints);
    }
    if let Some(broken) = layout_differs(vm, of_base, disk) {
        return reason(broken);
    }
    if let Some(broken) = chain_differs(of_base, disk) {
        return reason(broken);
    }
    let Some(rct_id) = of_base.rct_id.clone().filter(|id| !id.is_empty()) else { return reason(FullReason::NoBaseId) };
    if !disk.tracking {
        return reason(FullReason::NoTracking);
    }
    if !disk.companions {
        return reason(FullReason::CompanionMissing);
    }
    if hyperv::rct_id_is_reused(&rct_id, &disk.most_recent_id) {
        return reason(FullReason::IdReused);
    }
    Decision::Changes { base_disk: of_base.number, rct_id }
}

fn layout_differs(vm: &VmFacts, base: &PointDisk, disk: &DiskFacts) -> Option<FullReason> {
    if disk.size_bytes != base.size_bytes {
        return Some(FullReason::Resized);
    }
    if disk.sector_bytes != (base.logical_sector_bytes, base.physical_sector_bytes) {
        return Some(FullReason::SectorSizeChanged);
    }
    let other_segments = vm.segment_bytes.is_some_and(|asked| asked != base.segment_bytes);
    (base.layout_version != LAYOUT_VERSION || other_segments).then_some(FullReason::LayoutChanged)
}

fn chain_differs(base: &PointDisk, disk: &DiskFacts) -> Option<FullReason> {
    let names = |chain: &[PointChainFile]| chain.iter().map(|file| file.name.to_lowercase()).collect::<Vec<_>>();
    if names(&base.chain) != names(&disk.chain) {
        return Some(FullReason::ChainChanged);
    }
    let same = |(a, b): (&PointChainFile, &PointChainFile)| a.file_id == b.file_id && a.created == b.created;
    (!base.chain.iter().zip(&disk.chain).all(same)).then_some(FullReason::FileReplaced)
}

fn sorted(names: &[String]) -> Vec<&String> {
    let mut names: Vec<&String> = names.iter().collect();
    names.sort();
    names
}

/// The reason that a failed query for changes makes (spec hyperv 4.8). `None`: the error is a mistake of ours or of the
/// host, and a full on the same file would hide it.
pub fn reason_of_failed_query(kind: hyperv::ChangesErrorKind) -> Option<FullReason> {
    use hyperv::ChangesErrorKind as Kind;
    match kind {
        Kind::Disabled => Some(FullReason::NoTracking),
        Kind::InvalidId | Kind::Missing => Some(FullReason::IdUnknown),
        Kind::UnexpectedDisk => Some(FullReason::FileReplaced),
        Kind::WrongFile | Kind::FileGone | Kind::Shared => None,
        _ => Some(FullReason::QueryFailed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point::ReadMode;
    use crate::testing::point_description;

    fn disk() -> DiskFacts {
        let base = &point_description().disks[0];
        DiskFacts {
            virtual_disk_id: base.virtual_disk_id.clone(),
            ambiguous: false,
            size_bytes: base.size_bytes,
            sector_bytes: (base.logical_sector_bytes, base.physical_sector_bytes),
            chain: base.chain.clone(),
            companions: true,
            tracking: true,
            most_recent_id: "rctX:00000000:0000:0000:0000:000000000000:00000009".into(),
        }
    }

    fn vm() -> VmFacts {
        let base = point_description();
        VmFacts {
            forced: false,
            host: base.host,
            replication_mode: base.replication_mode,
            user_checkpoints: base.user_checkpoints,
            last_applied_checkpoint: base.last_applied_checkpoint,
            segment_bytes: None,
            restored_in_place: None,
        }
    }

    #[test]
    fn a_restore_before_the_base_was_frozen_is_over() {
        let base = point_description();
        let before = base.frozen - jiff::SignedDuration::from_secs(1);
        let decision = decide(&VmFacts { restored_in_place: Some(before), ..vm() }, &disk(), Some(&base));
        assert!(matches!(decision, Decision::Changes { .. }), "{decision:?}");
    }

    #[test]
    fn everything_unchanged_reads_changes() {
        let base = point_description();
        let expected = Decision::Changes { base_disk: 0, rct_id: base.disks[0].rct_id.clone().unwrap() };
        assert_eq!(decide(&vm(), &disk(), Some(&base)), expected);
    }

    type Breaker = fn(&mut VmFacts, &mut DiskFacts, &mut PointDescription);

    #[test]
    fn every_break_means_full() {
        let table: [(FullReason, Breaker); 20] = [
            (FullReason::Forced, |vm, _, _| vm.forced = true),
            (FullReason::First, |_, disk, _| disk.virtual_disk_id = "another".into()),
            (FullReason::AmbiguousDisk, |_, disk, _| disk.ambiguous = true),
            (FullReason::AmbiguousDisk, |_, _, base| base.disks.push(base.disks[0].clone())),
            (FullReason::OriginChanged, |vm, _, _| vm.host = "other".into()),
            (FullReason::OriginChanged, |vm, _, _| vm.replication_mode = 2),
            (FullReason::RestoredInPlace, |vm, _, base| vm.restored_in_place = Some(base.frozen)),
            (FullReason::UserCheckpoints, |vm, _, _| vm.user_checkpoints.push("before update".into())),
            (FullReason::UserCheckpoints, |vm, _, _| vm.last_applied_checkpoint = Some("clean".into())),
            (FullReason::Resized, |_, disk, _| disk.size_bytes += 1 << 20),
            (FullReason::SectorSizeChanged, |_, disk, _| disk.sector_bytes.0 = 4096),
            (FullReason::LayoutChanged, |vm, _, _| vm.segment_bytes = Some(256 << 10)),
            (FullReason::LayoutChanged, |_, _, base| base.disks[0].layout_version += 1),
            (FullReason::ChainChanged, |_, disk, _| disk.chain.push(disk.chain[0].clone())),
            (FullReason::FileReplaced, |_, disk, _| disk.chain[0].file_id = "77".into()),
            (FullReason::FileReplaced, |_, disk, _| disk.chain[0].created = Some(jiff::Timestamp::UNIX_EPOCH)),
            (FullReason::NoBaseId, |_, _, base| base.disks[0].rct_id = None),
            (FullReason::NoTracking, |_, disk, _| disk.tracking = false),
            (FullReason::CompanionMissing, |_, disk, _| disk.companions = false),
            (FullReason::IdReused, |_, disk, base| disk.most_recent_id = base.disks[0].rct_id.clone().unwrap()),
        ];
        for (reason, break_it) in table {
            let (mut vm, mut disk, mut base) = (vm(), disk(), point_description());
            break_it(&mut vm, &mut disk, &mut base);
            assert_eq!(decide(&vm, &disk, Some(&base)), Decision::Full(reason));
        }
        assert_eq!(decide(&vm(), &disk(), None), Decision::Full(FullReason::First));
    }

    #[test]
    fn file_names_compare_as_windows_compares_them() {
        let mut other_case = disk();
        other_case.chain[0].name = other_case.chain[0].name.to_uppercase();
        let decision = decide(&vm(), &other_case, Some(&point_description()));
        assert!(matches!(decision, Decision::Changes { .. }), "{decision:?}");
    }

    #[test]
    fn descriptions_keep_their_words() {
        let json = serde_json::to_string(&ReadMode::Full { reason: FullReason::IdReused }).unwrap();
        assert_eq!(json, r#"{"mode":"full","reason":"id_reused"}"#);
    }
}

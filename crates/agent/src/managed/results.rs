//! What came of a VM, in the words of the contract (spec control-api 2.3, 3.8).

use std::collections::BTreeMap;
use std::time::Duration;

use backup::{Consistency, FullReason, Point, PointDescription, PointDisk, ReadMode, Warning, WarningCode};
use control_api::progress::{DiskResult, VmResult};
use control_api::run::RunVm;
use control_api::words::{BackupType, Consistency as WireConsistency};

use super::inventory::signed;
use crate::failure::{Code, Failure};

/// Ids of reference points are at most this long on the wire.
const MAX_REFERENCE_POINT: usize = 255;

/// A VM whose point is in the repository.
pub fn committed(
    vm: &RunVm,
    point: &Point,
    description: &PointDescription,
    warnings: &[Warning],
    elapsed: Option<Duration>,
) -> VmResult {
    let sum = |of: fn(&PointDisk) -> u64| signed(description.disks.iter().map(of).sum());
    let is_incremental = description.disks.iter().any(|disk| matches!(disk.read, ReadMode::Incremental { .. }));
    let defects: Vec<&Warning> = warnings.iter().filter(|warning| warning.code.is_defect()).collect();
    let manifest = point.snapshot.id.clone();
    let disk_manifests: BTreeMap<String, String> = description
        .disks
        .iter()
        .map(|disk| (disk.path.clone(), manifest.clone()))
        .chain([("_config".to_owned(), manifest.clone())])
        .collect();
    let full_reason = description.disks.iter().find_map(|disk| match &disk.read {
        ReadMode::Full { reason } => Some(full_reason(*reason).to_owned()),
        ReadMode::Incremental { .. } => None,
    });
    VmResult {
        vm_name: Some(description.vm_name.clone()),
        backup_type: Some(if is_incremental { BackupType::Incremental } else { BackupType::Full }),
        checkpoint_id: Some(instant_id(description)),
        rct_ids: description.disks.iter().filter_map(|disk| Some((disk.path.clone(), disk.rct_id.clone()?))).collect(),
        changed_bytes: sum(|disk| disk.changed_bytes),
        consistency_level: Some(match description.consistency {
            Consistency::Application => WireConsistency::Application,
            Consistency::Crash | Consistency::Offline => WireConsistency::Crash,
        }),
        consistency_requested: Some(description.consistency_asked.to_string()),
        consistency_reason: match description.consistency {
            Consistency::Offline => Some("the VM was off".to_owned()),
            _ => description.consistency_reason.clone(),
        },
        manifest_id: Some(manifest),
        disk_manifests,
        total_bytes: sum(|disk| disk.size_bytes),
        duration_seconds: elapsed.and_then(|elapsed| signed(elapsed.as_secs())),
        warnings: defects.iter().map(|warning| warning.text.clone()).collect(),
        warning_code: defects.first().map(|warning| warning_code(warning.code).to_owned()),
        full_reason,
        reference_point_id: description
            .reference_point
            .clone()
            .filter(|path| path.chars().count() <= MAX_REFERENCE_POINT),
        disks: description.disks.iter().map(|disk| disk_result(disk, &point.snapshot.id)).collect(),
        snapshot_time: Some(instant(description.frozen)),
        ..empty(vm.vm_id)
    }
}

/// A VM without a new point.
pub fn failed(vm: &RunVm, failure: &Failure, elapsed: Option<Duration>) -> VmResult {
    VmResult {
        vm_name: Some(vm.vm_name.clone()),
        error: Some(failure.to_string()),
        error_code: Some(error_code(failure.code()).to_owned()),
        duration_seconds: elapsed.and_then(|elapsed| signed(elapsed.as_secs())),
        ..empty(vm.vm_id)
    }
}

/// RFC 3339 in UTC, to the millisecond (0.6).
pub fn instant(at: jiff::Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.as_millisecond()).unwrap_or(at).to_string()
}

fn empty(vm_id: i64) -> VmResult {
    VmResult {
        vm_id,
        vm_name: None,
        backup_type: None,
        checkpoint_id: None,
        rct_ids: BTreeMap::new(),
        changed_bytes: None,
        consistency_level: None,
        consistency_requested: None,
        consistency_reason: None,
        error: None,
        error_code: None,
        manifest_id: None,
        disk_manifests: BTreeMap::new(),
        total_bytes: None,
        duration_seconds: None,
        warnings: Vec::new(),
        warning_code: None,
        full_reason: None,
        reference_point_id: None,
        disks: Vec::new(),
        vm_config: None,
        snapshot_time: None,
        base_backup_point_id: None,
    }
}

fn disk_result(disk: &PointDisk, manifest: &str) -> DiskResult {
    let (mode, reason) = match &disk.read {
        ReadMode::Full { reason } => ("allocated", Some(full_reason(*reason).to_owned())),
        ReadMode::Incremental { .. } => ("changed", None),
    };
    let slot: Option<hyperv::DiskSlot> = disk.slot.parse().ok();
    DiskResult {
        virtual_disk_id: disk.virtual_disk_id.clone(),
        path: disk.path.clone(),
        controller_type: disk.slot.split(' ').next().map(str::to_owned),
        controller_number: slot.map(|slot| slot.controller_number.into()),
        controller_location: slot.map(|slot| slot.location.into()),
        manifest_id: Some(manifest.to_owned()),
        object_id: Some(disk.object.clone()),
        virtual_size_bytes: signed(disk.size_bytes),
        read_mode: Some(mode.to_owned()),
        full_reason: reason,
        read_bytes: signed(disk.read_bytes),
        new_bytes: signed(disk.changed_bytes),
        rct_id: disk.rct_id.clone(),
        content_sha256_root: None,
        excluded_reason: None,
    }
}

/// The instant that the next incremental counts from: the GUID in the reference point's path, as later versions of the
/// contract send it, or the point's own id where the host keeps no reference point.
fn instant_id(description: &PointDescription) -> String {
    let path = description.reference_point.as_deref().unwrap_or_default();
    let guid = (0..path.len()).rev().find_map(|at| {
        let part = path.get(at..at + 36)?;
        part.parse::<vhdx::Guid>().ok().map(|_| part.to_ascii_uppercase())
    });
    guid.unwrap_or_else(|| description.point_id.clone())
}

/// Words of 3.8.
fn full_reason(reason: FullReason) -> &'static str {
    match reason {
        FullReason::First => "first_run",
        FullReason::Forced => "forced",
        FullReason::OriginChanged | FullReason::RestoredInPlace => "origin_changed",
        FullReason::NoBaseId | FullReason::CompanionMissing => "no_tracking_state",
        FullReason::NoTracking => "no_rct_support",
        FullReason::IdUnknown => "id_not_found",
        FullReason::IdReused => "id_reused",
        FullReason::Resized | FullReason::SectorSizeChanged | FullReason::LayoutChanged => "layout_changed",
        FullReason::FileReplaced | FullReason::AmbiguousDisk => "disk_identity_changed",
        FullReason::ChainChanged => "disk_moved",
        FullReason::UserCheckpoints => "user_checkpoint_changed",
        FullReason::BaseUnusable => "base_point_missing",
        FullReason::AuditFailed => "sample_mismatch",
        FullReason::QueryFailed => "query_failed",
    }
}

fn warning_code(code: WarningCode) -> &'static str {
    match code {
        WarningCode::MergePending => "MERGE_PENDING",
        WarningCode::ConversionFailed => "REFERENCE_POINT_FAILED",
        WarningCode::TrackingLost => "RCT_CHAIN_BROKEN",
        WarningCode::TrackingLied => "SAMPLE_MISMATCH",
        code => code.as_str(),
    }
}

/// Words of 3.8.
pub fn error_code(code: Code) -> &'static str {
    match code {
        Code::GuestNotFrozen => "VSS_WRITER_FAILED",
        Code::NotFound | Code::Ambiguous => "VM_NOT_FOUND",
        Code::NotBackupable => "VM_BAD_STATE",
        Code::Busy => "VM_BUSY",
        Code::ClockSkew => "CLOCK_SKEW",
        Code::MergeStuck => "MERGE_STUCK",
        Code::HostAccessDenied => "ACCESS_DENIED",
        Code::HostDiskFull => "HOST_DISK_FULL",
        Code::HostFailed | Code::HostServiceDown | Code::CheckpointTooOld => "CHECKPOINT_FAILED",
        Code::SourceUnreadable => "DISK_READ_FAILED",
        Code::StorageUnreachable | Code::StorageFull => "UPLOAD_FAILED",
        Code::RepositoryLocked => "REPOSITORY_LOCKED",
        Code::NoPassword => "CREDENTIALS_UNAVAILABLE",
        Code::StorageDenied
        | Code::StorageUnfit
        | Code::NoRepository
        | Code::WrongPassword
        | Code::Damaged
        | Code::BadLocation => "REPOSITORY_ERROR",
        Code::Preflight => "PREFLIGHT",
        Code::TargetExists => "TARGET_EXISTS",
        Code::TargetFull => "TARGET_FULL",
        _ => "INTERNAL",
    }
}

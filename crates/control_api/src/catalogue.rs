//! VMs and their points in the client area (6.1, console 9).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use std::collections::BTreeMap;

use serde_json::Value;

use crate::Time;
use crate::id::Id;
use crate::protection::VmStatus;

wire! {
    /// `cloudbackup_hyperv_vms.php` (6.1).
    pub struct JobVmsQuery {
        pub job_id: Id,
    }

    /// Answer of `cloudbackup_hyperv_vms.php`.
    pub struct JobVms {
        pub job: JobHead,
        pub vms: Vec<JobVm>,
    }

    /// A job's name and state.
    pub struct JobHead {
        pub id: i64,
        pub name: String,
        pub agent_id: Option<i64>,
        pub status: String,
    }

    /// One VM of a job (6.1), with its protection state.
    pub struct JobVm {
        pub vm_id: i64,
        pub vm_name: String,
        pub vm_guid: String,
        pub generation: i64,
        pub is_linux: bool,
        pub integration_services: bool,
        pub rct_enabled: bool,
        pub backup_enabled: bool,
        pub state: Option<String>,
        pub missing_since: Option<Time>,
        pub disks: Vec<Value>,
        pub status: String,
        pub last_point: Option<LastPoint>,
        pub point_count: i64,
        pub next_read: String,
        pub tracking: Tracking,
        pub protection: Option<VmStatus>,
    }

    /// The newest point of a VM.
    pub struct LastPoint {
        pub id: i64,
        pub run_id: i64,
        pub backup_type: String,
        pub consistency_level: String,
        pub created_at: Time,
        pub total_size_bytes: Option<i64>,
        pub changed_size_bytes: Option<i64>,
        pub has_warnings: bool,
        pub full_reason: Option<String>,
    }

    /// Whether the next run can count from something.
    pub struct Tracking {
        pub active: bool,
        pub since: Option<Time>,
    }

    /// `cloudbackup_hyperv_backup_points.php` (6.1).
    pub struct PointsQuery {
        pub vm_id: i64,
        #[serde(default)]
        pub limit: Option<i64>,
        #[serde(default)]
        pub offset: Option<i64>,
        #[serde(default, rename = "type")]
        pub kind: Option<String>,
    }

    /// Answer of `cloudbackup_hyperv_backup_points.php`.
    pub struct Points {
        pub vm: PointsVm,
        pub disks: Vec<Value>,
        pub backup_points: Vec<Point>,
        pub total: i64,
        pub limit: i64,
        pub offset: i64,
    }

    /// The VM whose points these are.
    pub struct PointsVm {
        pub id: i64,
        pub vm_name: String,
        pub vm_guid: String,
        pub generation: i64,
        pub rct_enabled: bool,
        pub job_id: i64,
        pub job_name: String,
    }

    /// One restore point (6.1).
    pub struct Point {
        pub id: i64,
        pub run_id: i64,
        pub vm_id: i64,
        pub vm_name: String,
        pub backup_type: String,
        pub manifest_id: String,
        pub parent_backup_id: Option<i64>,
        pub disk_manifests: BTreeMap<String, String>,
        pub disk_count: i64,
        pub total_size_bytes: Option<i64>,
        pub changed_size_bytes: Option<i64>,
        pub duration_seconds: Option<i64>,
        pub consistency_level: String,
        pub created_at: Time,
        pub run_started_at: Option<Time>,
        pub run_finished_at: Option<Time>,
        pub has_warnings: bool,
        pub warning_code: Option<String>,
        pub warnings: Vec<String>,
        pub restore_chain: Vec<crate::hyperv::ChainElement>,
        pub restore_chain_length: i64,
        pub is_restorable: bool,
        pub not_restorable_reason: Option<String>,
        pub snapshot_time: Option<Time>,
        pub expires_at: Option<Time>,
        pub hold: bool,
        pub hold_reason: Option<String>,
        pub immutable_until: Option<Time>,
        pub verified_at: Option<Time>,
        pub verify_status: Option<String>,
        pub retained_by: Vec<String>,
    }

    /// `e3backup_restore_points_list.php` (6.2).
    pub struct PointListQuery {
        #[serde(default)]
        pub job_id: Option<Id>,
        #[serde(default)]
        pub vm_id: Option<i64>,
        #[serde(default)]
        pub tenant_id: Option<i64>,
        #[serde(default)]
        pub limit: Option<i64>,
        #[serde(default)]
        pub offset: Option<i64>,
    }

    /// Answer of `e3backup_restore_points_list.php`.
    pub struct PointList {
        pub restore_points: Vec<Point>,
        pub total: i64,
        pub limit: i64,
        pub offset: i64,
    }

    /// `cloudbackup_point_hold.php` (6.2): operators set a hold, releasing one needs an administrator.
    pub struct HoldPoint {
        pub backup_point_id: i64,
        pub hold: bool,
        #[serde(default)]
        pub reason: Option<String>,
    }

    /// `cloudbackup_point_delete.php` (6.2).
    pub struct DeletePoints {
        pub backup_point_ids: Vec<i64>,
        /// Number of points, typed by a person.
        pub confirm_phrase: String,
        #[serde(default)]
        pub reason: Option<String>,
    }

    /// Answer of `cloudbackup_point_delete.php`: it takes effect later and can be undone until then.
    pub struct DeletedPoints {
        pub pending: Vec<i64>,
        pub takes_effect_at: Time,
    }

    /// `cloudbackup_verify_point.php` (6.2, 2.7).
    pub struct VerifyPoint {
        pub backup_point_id: i64,
        #[serde(default)]
        pub level: Option<String>,
        #[serde(default)]
        pub sample_pct: Option<f64>,
    }

    /// `cloudbackup_hyperv_toggle_vm.php` (6.1): a person excludes a VM, or takes it in again.
    pub struct ToggleVm {
        pub vm_id: i64,
        pub enabled: bool,
        #[serde(default)]
        pub reason: Option<String>,
    }

    /// `cloudbackup_hyperv_snapshots.php`: of a job or a VM.
    pub struct SnapshotsQuery {
        #[serde(default)]
        pub job_id: Option<crate::id::Id>,
        #[serde(default)]
        pub vm_id: Option<i64>,
        #[serde(default)]
        pub limit: Option<i64>,
        #[serde(default)]
        pub offset: Option<i64>,
    }

    /// A run with the points that it made (6.1).
    pub struct RunOfPoints {
        pub run_id: i64,
        pub run_uuid: String,
        pub job_id: i64,
        pub status: crate::words::RunStatus,
        pub started_at: Option<Time>,
        pub finished_at: Option<Time>,
        pub vms: Vec<Point>,
    }

    /// Answer of `cloudbackup_hyperv_snapshots.php`: runs that have points, newest first.
    pub struct Snapshots {
        pub snapshots: Vec<RunOfPoints>,
        pub total: i64,
        pub limit: i64,
        pub offset: i64,
    }
}

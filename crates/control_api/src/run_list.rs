//! Runs as the client area sees them (6.2).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use serde_json::Value;

use crate::id::Id;
use crate::words::{Engine, RunStatus};
use crate::{Object, Time};

wire! {
    /// `cloudbackup_start_run.php`.
    pub struct StartRun {
        pub job_id: Id,
        #[serde(default)]
        pub force_full: bool,
        /// Only these VMs.
        #[serde(default)]
        pub vm_ids: Vec<i64>,
    }

    /// A run was queued; of a group, one per host.
    pub struct StartedRun {
        pub run_id: i64,
        pub run_uuid: String,
        pub run_ids: Vec<i64>,
    }

    /// `cloudbackup_cancel_run.php` (3.4).
    pub struct CancelRun {
        pub run_id: Id,
        /// For a host that is gone: the claim is revoked.
        #[serde(default)]
        pub force: bool,
    }

    /// Answer of `cloudbackup_cancel_run.php`.
    pub struct CancelledRun {
        pub run_status: RunStatus,
        pub cancel_requested: bool,
    }

    /// Filters of `cloudbackup_list_runs.php` and `e3backup_run_list.php`.
    pub struct RunFilter {
        #[serde(default)]
        pub job_id: Option<Id>,
        #[serde(default)]
        pub agent_id: Option<Id>,
        #[serde(default)]
        pub tenant_id: Option<i64>,
        #[serde(default)]
        pub statuses: Vec<RunStatus>,
        #[serde(default)]
        pub range_hours: Option<i64>,
        #[serde(default)]
        pub q: Option<String>,
        #[serde(default)]
        pub limit: Option<i64>,
        #[serde(default)]
        pub offset: Option<i64>,
        #[serde(default)]
        pub page: Option<i64>,
        #[serde(default, rename = "pageSize")]
        pub page_size: Option<i64>,
        #[serde(default, rename = "sortBy")]
        pub sort_by: Option<String>,
        #[serde(default, rename = "sortDir")]
        pub sort_dir: Option<String>,
    }

    /// One run of a list.
    pub struct RunRow {
        pub run_id: i64,
        pub run_uuid: String,
        pub job_id: i64,
        pub job_name: String,
        pub tenant_id: Option<i64>,
        pub agent_id: Option<i64>,
        pub hostname: Option<String>,
        pub engine: Engine,
        pub run_type: Option<String>,
        pub trigger_type: String,
        pub status: RunStatus,
        pub error_code: Option<String>,
        pub error_summary: Option<String>,
        pub attempt: i64,
        pub cancel_requested: bool,
        pub progress_pct: Option<f64>,
        pub bytes_transferred: Option<i64>,
        pub bytes_processed: Option<i64>,
        pub bytes_total: Option<i64>,
        pub created_at: Time,
        pub started_at: Option<Time>,
        pub finished_at: Option<Time>,
        pub last_heartbeat_at: Option<Time>,
    }

    /// Answer of `cloudbackup_list_runs.php`.
    pub struct Runs {
        pub runs: Vec<RunRow>,
        pub total: i64,
        pub limit: i64,
        pub offset: i64,
    }

    /// Answer of `e3backup_run_list.php`: the same rows, with counts per status.
    pub struct RunPage {
        pub rows: Vec<RunRow>,
        pub facets: Object,
        pub total: i64,
    }

    /// Names a run.
    pub struct RunRef {
        pub run_id: Id,
    }

    /// Answer of `cloudbackup_get_run.php`.
    pub struct RunDetail {
        pub run: RunRow,
        pub vms: Vec<RunVmRow>,
        pub stats_json: Option<Value>,
    }

    /// What came of one VM of a run.
    pub struct RunVmRow {
        pub vm_id: i64,
        pub vm_name: String,
        pub state: String,
        pub error_code: Option<String>,
        pub error: Option<String>,
        pub backup_point_id: Option<i64>,
    }

    /// Answer of `cloudbackup_progress.php`.
    pub struct RunProgress {
        #[serde(flatten)]
        pub run: RunRow,
        pub run_status: RunStatus,
        pub objects_transferred: Option<i64>,
        pub objects_total: Option<i64>,
        pub speed_bytes_per_sec: Option<i64>,
        pub eta_seconds: Option<i64>,
        pub current_item: Option<String>,
        pub started_at_epoch_ms: Option<i64>,
        pub finished_at_epoch_ms: Option<i64>,
        pub progress_json: Option<Value>,
    }
}

//! What an agent tells of its run: progress, status, results (2.3, 2.10).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use std::collections::BTreeMap;

use crate::id::Id;
use crate::words::{BackupType, Consistency, RunStatus};
use crate::{Object, Time, lenient};

wire! {
    /// `agent_update_run.php` (2.3). A missing number means unchanged, `null` unknown.
    pub struct UpdateRun {
        pub run_id: Id,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub status: Option<RunStatus>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub manifest_id: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub started_at: Option<Time>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub finished_at: Option<Time>,
        #[serde(flatten)]
        pub figures: Figures,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub log_excerpt: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub error_summary: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub error_code: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub validation_status: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub validation_log_excerpt: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub progress_json: Option<Object>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub stats_json: Option<Object>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub log_ref: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub agent_version: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub agent_os: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub agent_arch: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub agent_build: Option<String>,
        #[serde(default, deserialize_with = "lenient::map", skip_serializing_if = "BTreeMap::is_empty")]
        pub disk_manifests_json: BTreeMap<String, String>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub hyperv_results: Vec<VmResult>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub claim_id: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub seq: Option<i64>,
        #[serde(default)]
        pub cancel_ack: bool,
    }

    /// Numbers of a run in progress (2.3, 3.5): uploaded after deduplication, read from the source, expected.
    #[derive(Default)]
    pub struct Figures {
        #[serde(default, deserialize_with = "lenient::present", skip_serializing_if = "Option::is_none")]
        pub progress_pct: Option<Option<f64>>,
        #[serde(default, deserialize_with = "lenient::present", skip_serializing_if = "Option::is_none")]
        pub bytes_transferred: Option<Option<i64>>,
        #[serde(default, deserialize_with = "lenient::present", skip_serializing_if = "Option::is_none")]
        pub bytes_processed: Option<Option<i64>>,
        #[serde(default, deserialize_with = "lenient::present", skip_serializing_if = "Option::is_none")]
        pub bytes_total: Option<Option<i64>>,
        #[serde(default, deserialize_with = "lenient::present", skip_serializing_if = "Option::is_none")]
        pub objects_transferred: Option<Option<i64>>,
        #[serde(default, deserialize_with = "lenient::present", skip_serializing_if = "Option::is_none")]
        pub objects_total: Option<Option<i64>>,
        #[serde(default, deserialize_with = "lenient::present", skip_serializing_if = "Option::is_none")]
        pub speed_bytes_per_sec: Option<Option<i64>>,
        #[serde(default, deserialize_with = "lenient::present", skip_serializing_if = "Option::is_none")]
        pub eta_seconds: Option<Option<i64>>,
        #[serde(default, deserialize_with = "lenient::present", skip_serializing_if = "Option::is_none")]
        pub current_item: Option<Option<String>>,
    }

    /// Answer of `agent_update_run.php`; spares the agent a poll for cancellation.
    pub struct UpdateRunAnswer {
        pub run_status: RunStatus,
        pub cancel_requested: bool,
        pub lease_seconds: i64,
        /// By VM id: reference points that the agent may destroy.
        #[serde(default)]
        pub superseded: BTreeMap<String, Vec<String>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ignored: Option<String>,
    }

    /// What came of one VM (2.3). With a non-empty `error` no point is recorded.
    pub struct VmResult {
        pub vm_id: i64,
        #[serde(default)]
        pub vm_name: Option<String>,
        #[serde(default)]
        pub backup_type: Option<BackupType>,
        #[serde(default)]
        pub checkpoint_id: Option<String>,
        #[serde(default, deserialize_with = "lenient::map")]
        pub rct_ids: BTreeMap<String, String>,
        #[serde(default)]
        pub changed_bytes: Option<i64>,
        #[serde(default)]
        pub consistency_level: Option<Consistency>,
        #[serde(default)]
        pub consistency_requested: Option<String>,
        #[serde(default)]
        pub consistency_reason: Option<String>,
        #[serde(default)]
        pub error: Option<String>,
        #[serde(default)]
        pub error_code: Option<String>,
        #[serde(default)]
        pub manifest_id: Option<String>,
        #[serde(default, deserialize_with = "lenient::map")]
        pub disk_manifests: BTreeMap<String, String>,
        #[serde(default)]
        pub total_bytes: Option<i64>,
        #[serde(default)]
        pub duration_seconds: Option<i64>,
        #[serde(default)]
        pub warnings: Vec<String>,
        #[serde(default)]
        pub warning_code: Option<String>,
        #[serde(default)]
        pub full_reason: Option<String>,
        /// None means that the next run is a full.
        #[serde(default)]
        pub reference_point_id: Option<String>,
        #[serde(default)]
        pub disks: Vec<DiskResult>,
        #[serde(default)]
        pub vm_config: Option<Object>,
        /// Instant of the frozen state.
        #[serde(default)]
        pub snapshot_time: Option<Time>,
        #[serde(default)]
        pub base_backup_point_id: Option<i64>,
    }

    /// What came of one disk (2.3).
    pub struct DiskResult {
        pub virtual_disk_id: String,
        pub path: String,
        #[serde(default)]
        pub controller_type: Option<String>,
        #[serde(default)]
        pub controller_number: Option<i64>,
        #[serde(default)]
        pub controller_location: Option<i64>,
        #[serde(default)]
        pub manifest_id: Option<String>,
        #[serde(default)]
        pub object_id: Option<String>,
        #[serde(default)]
        pub virtual_size_bytes: Option<i64>,
        #[serde(default)]
        pub read_mode: Option<String>,
        #[serde(default)]
        pub full_reason: Option<String>,
        #[serde(default)]
        pub read_bytes: Option<i64>,
        #[serde(default)]
        pub new_bytes: Option<i64>,
        #[serde(default)]
        pub rct_id: Option<String>,
        #[serde(default)]
        pub content_sha256_root: Option<String>,
        #[serde(default)]
        pub excluded_reason: Option<String>,
    }

    /// `agent_hyperv_update_checkpoint.php` (2.10): one VM is committed.
    pub struct UpdateCheckpoint {
        pub run_id: Id,
        /// `prepare` or `commit`; none means commit.
        #[serde(default)]
        pub phase: Option<String>,
        #[serde(default)]
        pub claim_id: Option<String>,
        #[serde(flatten)]
        pub result: VmResult,
    }

    /// Answer of `agent_hyperv_update_checkpoint.php`.
    pub struct UpdateCheckpointAnswer {
        pub backup_point_id: Option<i64>,
        #[serde(default)]
        pub superseded: Vec<String>,
    }
}

//! A run as the agent that works on it sees it (2.2).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use std::collections::BTreeMap;

use serde_json::Value;

use crate::id::Id;
use crate::words::Engine;
use crate::{Object, Time, lenient};

wire! {
    /// `agent_next_run.php`: what the agent can take (2.2).
    pub struct NextRun {
        /// Engines that it can run now; none means all.
        #[serde(default)]
        pub engines: Vec<Engine>,
        /// Free slots.
        #[serde(default)]
        pub slots: Option<i64>,
        #[serde(default)]
        pub boot_id: Option<String>,
    }

    /// Answer of `agent_next_run.php`; status `no_run` without a run.
    pub struct NextRunAnswer {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub run: Option<Run>,
    }

    /// A claimed run with everything that is needed to do it (2.2). Holds secrets.
    pub struct Run {
        pub run_id: Id,
        pub job_id: Id,
        #[serde(default)]
        pub run_uuid: Option<String>,
        #[serde(default)]
        pub job_uuid: Option<String>,
        pub engine: Engine,
        #[serde(default)]
        pub source_type: Option<String>,
        #[serde(default)]
        pub source_path: String,
        #[serde(default)]
        pub source_paths: Vec<String>,
        #[serde(default)]
        pub local_include_glob: Option<String>,
        #[serde(default)]
        pub local_exclude_glob: Option<String>,
        /// Kilobytes per second (4.6, D6); 0 is unlimited.
        #[serde(default)]
        pub local_bandwidth_limit_kbps: i64,
        #[serde(flatten)]
        pub destination: Destination,
        #[serde(default)]
        pub repository_id: Option<String>,
        #[serde(default)]
        pub repository_password: Option<String>,
        #[serde(default)]
        pub repo_password_mode: Option<String>,
        #[serde(default)]
        pub payload_version: Option<String>,
        #[serde(default)]
        pub repository_format: Option<Object>,
        #[serde(default)]
        pub schedule_json: Option<Value>,
        #[serde(default)]
        pub retention_json: Option<Value>,
        #[serde(default)]
        pub policy_json: Option<Value>,
        #[serde(default)]
        pub throttle_json: Option<Value>,
        #[serde(default)]
        pub compression_enabled: bool,
        #[serde(default)]
        pub disk_source_volume: Option<String>,
        #[serde(default)]
        pub disk_image_format: Option<String>,
        #[serde(default)]
        pub disk_temp_dir: Option<String>,
        #[serde(default)]
        pub network_credentials: Option<NetworkCredentials>,
        #[serde(default)]
        pub source_uuid: Option<String>,
        #[serde(default)]
        pub resume: bool,
        #[serde(default)]
        pub last_heartbeat_at: Option<Time>,
        #[serde(default)]
        pub claim_id: Option<String>,
        #[serde(default)]
        pub attempt: Option<i64>,
        #[serde(default)]
        pub lease_seconds: Option<i64>,
        #[serde(default)]
        pub force_full: bool,
        #[serde(default)]
        pub hyperv_config: Option<Object>,
        #[serde(default)]
        pub hyperv_vms: Vec<RunVm>,
    }

    /// Where a run stores (2.2, 4.7). Holds secrets.
    pub struct Destination {
        #[serde(default)]
        pub dest_type: Option<String>,
        #[serde(default)]
        pub dest_bucket_name: Option<String>,
        #[serde(default)]
        pub dest_prefix: Option<String>,
        #[serde(default)]
        pub dest_endpoint: Option<String>,
        #[serde(default)]
        pub dest_region: Option<String>,
        #[serde(default)]
        pub dest_path_style: Option<String>,
        #[serde(default)]
        pub dest_local_path: Option<String>,
        #[serde(default)]
        pub dest_access_key: Option<String>,
        #[serde(default)]
        pub dest_secret_key: Option<String>,
        #[serde(default)]
        pub dest_session_token: Option<String>,
        #[serde(default)]
        pub dest_credentials_expire_at: Option<Time>,
        #[serde(default)]
        pub ca_bundle_pem: Option<String>,
        /// What the server says; an older agent reads the next.
        #[serde(default)]
        pub bucket_auto_create: bool,
        #[serde(default)]
        pub dest_auto_create_bucket: bool,
    }

    /// For a source on a share (8.4). Holds a secret.
    pub struct NetworkCredentials {
        pub username: String,
        pub password: String,
        #[serde(default)]
        pub domain: Option<String>,
    }

    /// One VM of a run, with what the next incremental counts from (2.2).
    pub struct RunVm {
        pub vm_id: i64,
        pub vm_name: String,
        pub vm_guid: String,
        /// None means a full.
        #[serde(default)]
        pub last_checkpoint_id: Option<String>,
        #[serde(default, deserialize_with = "lenient::map")]
        pub last_rct_ids: BTreeMap<String, String>,
        #[serde(default)]
        pub last_reference_point_id: Option<String>,
        #[serde(default)]
        pub last_disks: Vec<BaseDisk>,
        #[serde(default)]
        pub base_backup_point_id: Option<i64>,
        /// Why the fields above are empty.
        #[serde(default)]
        pub full_reason: Option<String>,
        #[serde(default)]
        pub stale_reference_points: Vec<String>,
        /// On resume: this run has this VM's point already.
        #[serde(default)]
        pub committed: bool,
        #[serde(default)]
        pub effective_config: Object,
    }

    /// A disk of the base that an incremental clones from (2.2).
    pub struct BaseDisk {
        pub virtual_disk_id: String,
        pub path: String,
        #[serde(default)]
        pub slot: Option<String>,
        #[serde(default)]
        pub rct_id: Option<String>,
        #[serde(default)]
        pub manifest_id: Option<String>,
        #[serde(default)]
        pub object_id: Option<String>,
        #[serde(default)]
        pub virtual_size_bytes: Option<i64>,
        #[serde(default)]
        pub logical_sector_size: Option<i64>,
    }

    /// `agent_repo_credentials.php` (2.12): one of them, owned by the caller and live.
    pub struct RenewCredentials {
        #[serde(default)]
        pub run_id: Option<Id>,
        #[serde(default)]
        pub session_id: Option<i64>,
        #[serde(default)]
        pub command_id: Option<i64>,
        #[serde(default)]
        pub mount_id: Option<i64>,
    }

    /// Fresh keys (2.12). Holds secrets.
    pub struct RenewedCredentials {
        pub dest_access_key: String,
        pub dest_secret_key: String,
        pub dest_session_token: Option<String>,
        pub dest_credentials_expire_at: Option<Time>,
    }

    /// `agent_start_run.php` (2.12).
    pub struct AgentStartRun {
        pub job_id: Id,
    }
}

//! Restores that the client area asks for (5.5, 6.1).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use std::collections::BTreeMap;

wire! {
    /// `cloudbackup_hyperv_start_restore.php` (6.1).
    pub struct StartRestore {
        #[serde(default)]
        pub backup_point_id: Option<i64>,
        /// `full` or `instant`.
        #[serde(default)]
        pub restore_type: Option<String>,
        #[serde(default)]
        pub target_vm_name: Option<String>,
        #[serde(default)]
        pub target_host: Option<String>,
        #[serde(default)]
        pub target_agent_id: Option<i64>,
        #[serde(default)]
        pub target_path: Option<String>,
        #[serde(default)]
        pub restore_options: Option<RestoreOptions>,
        #[serde(default)]
        pub vms: Vec<RestoreVm>,
    }

    /// One of several VMs.
    pub struct RestoreVm {
        pub backup_point_id: i64,
        #[serde(default)]
        pub disks: Vec<String>,
    }

    /// `restore_options` (5.5).
    #[derive(Default)]
    pub struct RestoreOptions {
        #[serde(default)]
        pub power_on: Option<bool>,
        #[serde(default)]
        pub connect_network: bool,
        #[serde(default)]
        pub overwrite_existing: bool,
        #[serde(default)]
        pub keep_old_days: Option<i64>,
        #[serde(default)]
        pub new_vm_id: Option<bool>,
        #[serde(default)]
        pub storage_path: Option<String>,
        #[serde(default)]
        pub vm_path: Option<String>,
        #[serde(default)]
        pub disks: Option<Vec<String>>,
        #[serde(default)]
        pub network_map: BTreeMap<String, String>,
        #[serde(default)]
        pub disks_only: bool,
    }

    /// Answer of `cloudbackup_hyperv_start_restore.php`.
    pub struct StartedRestore {
        pub restore_run_id: i64,
        pub restore_run_uuid: String,
        pub command_id: i64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub session_id: Option<i64>,
        pub job_id: i64,
        pub vm_name: String,
        pub vm_count: i64,
        pub disks_to_restore: i64,
        pub estimated_size_bytes: i64,
        pub backup_type: String,
    }
}

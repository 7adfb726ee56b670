//! What an agent knows of its host (2.9, 5.1).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use std::collections::BTreeMap;

use crate::id::Id;
use crate::{Object, lenient};

wire! {
    /// `agent_hyperv_discover.php` (2.9). Without VMs the stored inventory is answered.
    pub struct Discover {
        #[serde(default)]
        pub job_id: Option<Id>,
        #[serde(default)]
        pub vms: Vec<Vm>,
        #[serde(default)]
        pub host: Option<Object>,
    }

    /// Answer of `agent_hyperv_discover.php`.
    pub struct DiscoverAnswer {
        pub vms: Vec<DiscoveredVm>,
        pub created: i64,
        pub updated: i64,
        pub vm_ids: Vec<i64>,
    }

    /// What is stored of a VM, with its row in the job, if it has one.
    pub struct DiscoveredVm {
        #[serde(flatten)]
        pub vm: Vm,
        pub vm_id: Option<i64>,
        pub backup_enabled: bool,
    }

    /// One VM of a host (5.1); `id` is Hyper-V's GUID.
    pub struct Vm {
        pub id: String,
        pub name: String,
        #[serde(default)]
        pub state: Option<String>,
        #[serde(default)]
        pub generation: Option<i64>,
        #[serde(default)]
        pub cpu_count: Option<i64>,
        #[serde(default)]
        pub memory_mb: Option<i64>,
        #[serde(default)]
        pub integration_services: Option<bool>,
        #[serde(default)]
        pub is_linux: bool,
        #[serde(default)]
        pub rct_enabled: bool,
        #[serde(default)]
        pub disks: Vec<Disk>,
        #[serde(default)]
        pub config_version: Option<String>,
        #[serde(default)]
        pub guest_os: Option<String>,
        #[serde(default)]
        pub guest_family: Option<String>,
        #[serde(default)]
        pub vss_ready: Option<bool>,
        #[serde(default)]
        pub clustered: Option<bool>,
        #[serde(default)]
        pub replica_role: Option<String>,
        #[serde(default)]
        pub has_vtpm: Option<bool>,
        #[serde(default)]
        pub shielded: Option<bool>,
        #[serde(default)]
        pub user_checkpoints: Option<i64>,
        #[serde(default)]
        pub leftover_checkpoints: Option<i64>,
        #[serde(default)]
        pub backupable: Option<bool>,
        #[serde(default)]
        pub not_backupable_reason: Option<String>,
        #[serde(default)]
        pub expected_consistency: Option<String>,
        #[serde(default)]
        pub rct_supported: Option<bool>,
    }

    /// One disk of a VM (5.1). `size_bytes` is the virtual size, `used_bytes` what the whole chain takes on the host.
    pub struct Disk {
        pub path: String,
        #[serde(default)]
        pub controller_type: Option<String>,
        #[serde(default)]
        pub controller_number: Option<i64>,
        #[serde(default)]
        pub controller_location: Option<i64>,
        #[serde(default)]
        pub size_bytes: Option<i64>,
        #[serde(default)]
        pub used_bytes: Option<i64>,
        #[serde(default)]
        pub vhd_format: Option<String>,
        #[serde(default)]
        pub rct_enabled: bool,
        #[serde(default)]
        pub rct_id: Option<String>,
        #[serde(default)]
        pub virtual_disk_id: Option<String>,
        #[serde(default)]
        pub kind: Option<String>,
        #[serde(default)]
        pub excluded_reason: Option<String>,
        #[serde(default)]
        pub logical_sector_size: Option<i64>,
        #[serde(default)]
        pub physical_sector_size: Option<i64>,
        #[serde(default)]
        pub chain_depth: Option<i64>,
    }

    /// `agent_hyperv_get_restore_info.php` (2.11).
    pub struct RestoreInfoQuery {
        pub backup_point_id: i64,
    }

    /// Answer of `agent_hyperv_get_restore_info.php`.
    pub struct RestoreInfo {
        pub backup_point: RestoreInfoPoint,
        pub restore_chain: Vec<ChainElement>,
        /// Only where a live command of this agent names the point. Holds secrets.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub job_context: Option<Object>,
    }

    /// The point to restore (2.11).
    pub struct RestoreInfoPoint {
        pub id: i64,
        pub vm_name: String,
        pub backup_type: String,
        pub manifest_id: String,
        #[serde(default)]
        pub vm_config: Option<Object>,
        #[serde(default, deserialize_with = "lenient::map")]
        pub disk_manifests: BTreeMap<String, String>,
        #[serde(default)]
        pub vm_guid: Option<String>,
        #[serde(default)]
        pub consistency_level: Option<String>,
        #[serde(default)]
        pub snapshot_time: Option<String>,
        #[serde(default)]
        pub total_size_bytes: Option<i64>,
        #[serde(default)]
        pub repository_id: Option<String>,
    }

    /// The one element of a restore chain (5.4).
    pub struct ChainElement {
        pub id: i64,
        #[serde(rename = "type")]
        pub kind: String,
        pub manifest_id: String,
    }
}

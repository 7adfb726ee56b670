//! Protection states (console 0.4, 9).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use crate::words::Protection;
use crate::{Object, Time};

wire! {
    /// What is said of a VM everywhere: list, dashboard, reports, metrics.
    pub struct VmStatus {
        pub state: Protection,
        /// Why, in words; empty for a VM that is protected.
        pub reason: String,
        /// Age of the newest restorable point.
        pub age_seconds: Option<i64>,
        pub target_seconds: Option<i64>,
        /// What the state was computed from was last said at that time.
        pub as_of: Option<Time>,
    }

    /// `cloudbackup_vms.php` (console 9): filters and sorts of the VM list.
    pub struct VmFilter {
        #[serde(default)]
        pub state: Vec<Protection>,
        #[serde(default)]
        pub host: Option<i64>,
        #[serde(default)]
        pub tenant_id: Option<i64>,
        #[serde(default)]
        pub q: Option<String>,
        /// `name`, `age`, `state`; a minus in front turns it round.
        #[serde(default)]
        pub sort: Option<String>,
        #[serde(default)]
        pub limit: Option<i64>,
        #[serde(default)]
        pub offset: Option<i64>,
    }

    /// One VM of any host and job.
    pub struct VmRow {
        pub vm_guid: String,
        pub vm_name: String,
        pub tenant_id: Option<i64>,
        pub agent_id: Option<i64>,
        pub hostname: Option<String>,
        pub job_ids: Vec<i64>,
        pub vm_ids: Vec<i64>,
        pub point_count: i64,
        pub newest_point_id: Option<i64>,
        pub newest_snapshot_time: Option<Time>,
        pub status: VmStatus,
    }

    /// Answer of `cloudbackup_vms.php`.
    pub struct Vms {
        pub vms: Vec<VmRow>,
        /// How many VMs are in each state, over the whole filter.
        pub states: Object,
        pub total: i64,
        pub limit: i64,
        pub offset: i64,
    }

    /// Answer of `cloudbackup_dashboard.php` (6.2).
    pub struct Dashboard {
        pub states: Object,
        pub runs_last_24h: Object,
        pub agents_online: i64,
        pub agents_silent: i64,
        pub points: i64,
        pub worst: Vec<VmRow>,
    }

    /// One change of a topic (console 0.2): a page that shows it asks again.
    pub struct Change {
        pub id: i64,
        pub topic: String,
        pub version: i64,
    }
}

//! Agents as the client area sees them (6.2), and what an agent reports of its machine (2.12).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use serde_json::Value;

use crate::Time;
use crate::words::AgentStatus;

wire! {
    /// One agent of `e3backup_agent_list.php`.
    pub struct Agent {
        pub agent_id: i64,
        pub agent_uuid: String,
        pub tenant_id: Option<i64>,
        pub hostname: Option<String>,
        pub device_name: Option<String>,
        pub status: AgentStatus,
        pub agent_type: String,
        pub agent_version: Option<String>,
        pub agent_os: Option<String>,
        pub agent_arch: Option<String>,
        pub last_seen_at: Option<Time>,
        pub is_online: bool,
        pub clock_skew_ms: Option<i64>,
        pub vm_count: i64,
    }

    /// Answer of `e3backup_agent_list.php`.
    pub struct Agents {
        pub agents: Vec<Agent>,
        pub online_threshold_seconds: i64,
        pub total: i64,
        pub limit: i64,
        pub offset: i64,
    }

    /// `agent_report_volumes.php` (2.12).
    pub struct ReportVolumes {
        pub volumes: Vec<Value>,
    }

    /// Answer of `agent_report_volumes.php`.
    pub struct ReportVolumesAnswer {
        pub count: i64,
    }

    /// `agent_update_progress.php` (2.12).
    pub struct UpdateProgress {
        pub update_job_id: i64,
        pub state: String,
        #[serde(default)]
        pub detail: Option<String>,
        #[serde(default)]
        pub agent_version: Option<String>,
    }

    /// `e3backup_host_group_create.php`, and with `id` `…_update.php`: a cluster or host group that jobs can target
    /// (4.1). In an update a missing field means unchanged.
    pub struct HostGroupRequest {
        #[serde(default)]
        pub id: Option<i64>,
        #[serde(default)]
        pub name: Option<String>,
        #[serde(default)]
        pub tenant_id: Option<i64>,
        /// `cluster` or `group`.
        #[serde(default)]
        pub kind: Option<String>,
        #[serde(default)]
        pub agent_ids: Option<Vec<i64>>,
    }

    /// A cluster or host group.
    pub struct HostGroup {
        pub id: i64,
        pub name: String,
        pub tenant_id: Option<i64>,
        pub kind: String,
        pub agent_ids: Vec<i64>,
    }

    /// Answer of the calls on one group.
    pub struct HostGroupAnswer {
        pub host_group: HostGroup,
    }

    /// Answer of `e3backup_host_group_list.php`.
    pub struct HostGroups {
        pub host_groups: Vec<HostGroup>,
        pub total: i64,
    }

    /// `e3backup_agent_request_update.php`: a package that the agent fetches, checks and installs (2.7).
    pub struct RequestUpdate {
        pub agent_id: i64,
        pub version_label: String,
        pub download_url: String,
        /// 64 hexadecimal digits.
        pub sha256: String,
        pub size_bytes: i64,
        pub platform: String,
        /// Detached, in base64: a hash alone is not enough.
        pub signature: String,
    }

    /// Names an update.
    pub struct UpdateRef {
        pub update_job_id: i64,
    }

    /// Answer of the calls on one update.
    pub struct UpdateState {
        pub update_job_id: i64,
        pub agent_id: i64,
        pub version_label: String,
        /// As the agent told last, and `success` once it has come back with that version (2.12).
        pub state: String,
        pub detail: Option<String>,
        pub created_at: Time,
        pub updated_at: Time,
    }
}

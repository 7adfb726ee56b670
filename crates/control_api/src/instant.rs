//! Instant restore sessions (5.6, 6.1).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use crate::words::InstantStatus;
use crate::{Object, Time};

wire! {
    /// `agent_hyperv_update_session.php` (5.6).
    pub struct UpdateSession {
        pub session_id: i64,
        pub seq: i64,
        pub status: InstantStatus,
        #[serde(default)]
        pub phase: Option<String>,
        #[serde(default)]
        pub migration_progress: Option<i64>,
        #[serde(default)]
        pub nbd_address: Option<String>,
        #[serde(default)]
        pub iscsi_target_iqn: Option<String>,
        #[serde(default)]
        pub differential_vhdx_path: Option<String>,
        #[serde(default)]
        pub restored_vm_name: Option<String>,
        #[serde(default)]
        pub restored_vm_guid: Option<String>,
        #[serde(default)]
        pub error_message: Option<String>,
        #[serde(default)]
        pub error_code: Option<String>,
        #[serde(default)]
        pub stats: Option<Object>,
    }

    /// Answer of `agent_hyperv_update_session.php`: `keep`, `migrate` or `discard`.
    pub struct UpdateSessionAnswer {
        pub desired: String,
        pub credentials_expire_at: Option<Time>,
    }

    /// Names a session.
    pub struct SessionRef {
        pub session_id: i64,
    }

    /// Answer of `cloudbackup_hyperv_instant_restore_status.php` (6.1).
    pub struct SessionAnswer {
        pub session: Session,
    }

    /// An instant restore session (6.1).
    pub struct Session {
        pub id: i64,
        pub backup_point_id: i64,
        pub target_host: Option<String>,
        pub restored_vm_name: Option<String>,
        pub session_type: String,
        pub nbd_address: Option<String>,
        pub iscsi_target_iqn: Option<String>,
        pub differential_vhdx_path: Option<String>,
        pub status: InstantStatus,
        pub migration_progress: i64,
        pub started_at: Time,
        pub completed_at: Option<Time>,
        pub phase: Option<String>,
        pub outcome: Option<String>,
        pub stale: bool,
        pub error_message: Option<String>,
        pub stats: Option<Object>,
        pub desired: Option<String>,
    }
}

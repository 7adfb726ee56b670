//! What waits: actions for a second administrator, deletions for their hour (6.3, console 5.3).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use crate::words::ApprovalStatus;
use crate::{Object, Time};

wire! {
    /// Answer of an action that waits for a second administrator.
    pub struct AwaitsApproval {
        pub approval_id: i64,
        pub expires_at: Time,
    }

    /// `cloudbackup_approval_list.php`.
    pub struct ApprovalQuery {
        /// Without one, those that are pending.
        #[serde(default)]
        pub approval_status: Option<ApprovalStatus>,
        #[serde(default)]
        pub limit: Option<i64>,
        #[serde(default)]
        pub offset: Option<i64>,
    }

    /// An action that somebody asked for.
    pub struct Approval {
        pub id: i64,
        /// The endpoint that was called.
        pub action: String,
        /// With what.
        pub fields: Object,
        pub entity_type: String,
        pub entity_id: String,
        pub reason: Option<String>,
        pub requested_by: i64,
        pub requested_by_email: String,
        pub approval_status: ApprovalStatus,
        pub decided_by: Option<i64>,
        pub decided_at: Option<Time>,
        pub created_at: Time,
        pub expires_at: Time,
    }

    /// Answer of `cloudbackup_approval_list.php`.
    pub struct Approvals {
        pub approvals: Vec<Approval>,
        pub total: i64,
        pub limit: i64,
        pub offset: i64,
    }

    /// `cloudbackup_approval_decide.php`: never one's own.
    pub struct DecideApproval {
        pub approval_id: i64,
        pub approve: bool,
        #[serde(default)]
        pub reason: Option<String>,
    }

    /// A point that is going to be deleted.
    pub struct PendingDeletion {
        pub backup_point_id: i64,
        pub vm_name: String,
        pub snapshot_time: Time,
        pub total_size_bytes: Option<i64>,
        /// `pending` (can be undone) or `queued` (an agent is at it, or about to be).
        pub delete_state: String,
        pub takes_effect_at: Option<Time>,
    }

    /// Answer of `cloudbackup_pending_list.php`.
    pub struct PendingDeletions {
        pub pending: Vec<PendingDeletion>,
        pub total: i64,
        pub limit: i64,
        pub offset: i64,
    }

    /// `cloudbackup_pending_undo.php`.
    pub struct UndoDeletion {
        pub backup_point_ids: Vec<i64>,
    }
}

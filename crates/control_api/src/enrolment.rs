//! Enrolment of agents and their tokens (1).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use crate::Time;
use crate::id::Id;
use crate::words::{AgentStatus, HostRole};

wire! {
    /// Who an agent is beside its host's name: the same in every form of enrolment (1.2, 1.3).
    #[derive(Default)]
    pub struct Device {
        #[serde(default)]
        pub device_id: Option<String>,
        #[serde(default)]
        pub install_id: Option<String>,
        #[serde(default)]
        pub device_name: Option<String>,
        #[serde(default)]
        pub agent_version: Option<String>,
        #[serde(default)]
        pub agent_os: Option<String>,
        #[serde(default)]
        pub agent_arch: Option<String>,
        #[serde(default)]
        pub agent_build: Option<String>,
        #[serde(default)]
        pub host_role: Option<HostRole>,
    }

    /// `agent_enroll.php` (1.2).
    pub struct Enroll {
        pub token: String,
        pub hostname: String,
        #[serde(flatten)]
        pub device: Device,
    }

    /// What a new agent keeps (1.2). The token is shown once.
    pub struct Enrolled {
        pub message: String,
        pub agent_id: i64,
        pub agent_uuid: String,
        pub agent_token: String,
        pub client_id: i64,
        pub tenant_id: Option<i64>,
        pub api_base_url: String,
        #[serde(default)]
        pub server_key_pins: Vec<String>,
    }

    /// Answer of `agent_rotate_token.php` (1.6): the old token serves until the new one is used, at most 24 h.
    pub struct RotatedToken {
        pub agent_token: String,
        pub rotate_after: Time,
    }

    /// `e3backup_token_create.php` (1.1). `max_uses` 0 means without limit, which must be said; so with the time.
    pub struct CreateEnrolmentToken {
        #[serde(default)]
        pub description: Option<String>,
        #[serde(default)]
        pub tenant_id: Option<i64>,
        #[serde(default)]
        pub max_uses: Option<i64>,
        #[serde(default)]
        pub lifetime_hours: Option<i64>,
    }

    /// A new enrolment token; its value is shown once (1.1).
    pub struct CreatedEnrolmentToken {
        pub id: i64,
        pub token: String,
        pub expires_at: Option<Time>,
        pub max_uses: i64,
    }

    /// An enrolment token as lists show it.
    pub struct EnrolmentToken {
        pub id: i64,
        pub token_prefix: String,
        pub description: Option<String>,
        pub tenant_id: Option<i64>,
        pub max_uses: i64,
        pub use_count: i64,
        pub expires_at: Option<Time>,
        pub revoked_at: Option<Time>,
        pub created_at: Time,
    }

    /// Answer of `e3backup_token_list.php`.
    pub struct EnrolmentTokens {
        pub tokens: Vec<EnrolmentToken>,
        pub total: i64,
    }

    /// `e3backup_token_revoke.php`.
    pub struct RevokeEnrolmentToken {
        pub id: i64,
    }

    /// Names an agent: by `agent_id` or `agent_uuid`.
    pub struct AgentRef {
        #[serde(default)]
        pub agent_id: Option<Id>,
        #[serde(default)]
        pub agent_uuid: Option<Id>,
    }

    /// `e3backup_agent_toggle.php` (1.6).
    pub struct ToggleAgent {
        #[serde(default)]
        pub agent_id: Option<Id>,
        #[serde(default)]
        pub agent_uuid: Option<Id>,
        pub status: AgentStatus,
    }

    /// `agent_disable.php` (1.6).
    pub struct DisableAgent {
        #[serde(default)]
        pub agent_id: Option<Id>,
        #[serde(default)]
        pub agent_uuid: Option<Id>,
        #[serde(default)]
        pub revoke: bool,
    }

    /// `agent_device_code.php` (1.3): without `device_code` it begins, with it it asks whether somebody confirmed.
    pub struct DeviceCode {
        #[serde(default)]
        pub device_code: Option<String>,
        #[serde(default)]
        pub hostname: Option<String>,
        #[serde(flatten)]
        pub device: Device,
    }

    /// First answer of `agent_device_code.php`; later ones are `pending`, or as [`Enrolled`].
    pub struct BegunDeviceCode {
        /// The agent keeps it to itself.
        pub device_code: String,
        /// The agent shows it; a person types it into the console.
        pub user_code: String,
        pub expires_in_secs: i64,
        pub poll_secs: i64,
    }

    /// `e3backup_device_code.php`: what asks under that code.
    pub struct DeviceCodeQuery {
        pub user_code: String,
    }

    /// Answer of `e3backup_device_code.php`.
    pub struct DeviceAsking {
        pub hostname: String,
        pub device_name: Option<String>,
        pub agent_os: Option<String>,
        pub agent_version: Option<String>,
        /// Where it asks from.
        pub ip: String,
        pub created_at: Time,
        pub expires_at: Time,
    }

    /// `e3backup_device_confirm.php`.
    pub struct ConfirmDevice {
        pub user_code: String,
        pub approve: bool,
        #[serde(default)]
        pub tenant_id: Option<i64>,
    }

    /// `agent_login.php` in its form of one step (1.3); off unless the server is told otherwise.
    pub struct AgentLogin {
        pub email: String,
        pub password: String,
        pub hostname: String,
        #[serde(flatten)]
        pub device: Device,
    }
}

//! Polling, and commands outside of runs (2.6, 2.7).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use serde_json::Value;

use crate::id::Id;
use crate::repository::RepoOperation;
use crate::words::CommandStatus;
use crate::{Object, Time};

wire! {
    /// `agent_poll.php` (2.6).
    pub struct Poll {
        /// Holds the answer up to 25 s while nothing is pending.
        #[serde(default)]
        pub long_poll: bool,
        /// Commands that the agent works on: their leases are renewed.
        #[serde(default)]
        pub active_commands: Vec<i64>,
        #[serde(default)]
        pub busy: bool,
        /// That of the last answer: where it is another now, that is news.
        #[serde(default)]
        pub config_epoch: Option<i64>,
    }

    /// Answer of `agent_poll.php`.
    pub struct PollAnswer {
        pub poll_version: i64,
        pub commands: Vec<Command>,
        pub repo_operation: Option<RepoOperation>,
        pub next_poll_secs: i64,
        #[serde(default)]
        pub run_available: bool,
        #[serde(default)]
        pub cancel_runs: Vec<i64>,
        #[serde(default)]
        pub config_epoch: i64,
        #[serde(default)]
        pub min_agent_version: Option<String>,
        #[serde(default)]
        pub open_sessions: Vec<i64>,
    }

    /// One command (2.6).
    pub struct Command {
        pub command_id: i64,
        #[serde(rename = "type")]
        pub kind: String,
        #[serde(default)]
        pub run_id: Option<i64>,
        #[serde(default)]
        pub job_id: Option<i64>,
        #[serde(default)]
        pub payload: Object,
        /// Holds secrets.
        #[serde(default)]
        pub job_context: Option<Object>,
        #[serde(default)]
        pub lease_token: Option<String>,
        #[serde(default)]
        pub lease_expires_at: Option<Time>,
    }

    /// Answer of `agent_poll_pending_commands.php`.
    pub struct PendingCommands {
        pub commands: Vec<Command>,
    }

    /// `agent_poll_commands.php` (2.6).
    pub struct PollRunCommands {
        pub run_id: Id,
    }

    /// A command of a run: `cancel` has no id.
    pub struct RunCommand {
        #[serde(rename = "type")]
        pub kind: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub command_id: Option<i64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub payload: Option<Object>,
    }

    /// Answer of `agent_poll_commands.php`.
    pub struct RunCommands {
        pub commands: Vec<RunCommand>,
    }

    /// `agent_complete_command.php` (2.7).
    pub struct CompleteCommand {
        pub command_id: i64,
        pub status: CommandStatus,
        #[serde(default)]
        pub result_message: Option<String>,
    }

    /// `agent_report_browse.php` (2.7), with the result plain or compact (0.4).
    pub struct ReportBrowse {
        pub command_id: i64,
        #[serde(default)]
        pub result: Option<Value>,
        #[serde(default)]
        pub result_b64: Option<String>,
        #[serde(default)]
        pub result_encoding: Option<String>,
    }

    /// A question to an agent was queued (6.2): ask `cloudbackup_command_status.php` for what came of it.
    pub struct Queued {
        pub command_id: i64,
    }

    /// `cloudbackup_command_status.php`.
    pub struct CommandQuery {
        pub command_id: i64,
    }

    /// Answer of `cloudbackup_command_status.php`.
    pub struct CommandState {
        pub command_id: i64,
        pub command_status: CommandStatus,
        pub result: Option<Value>,
        pub result_message: Option<String>,
    }
}

//! Events and logs (2.4, 2.5).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use crate::id::Id;
use crate::{Object, Time};

wire! {
    /// `agent_push_events.php` (2.4), with the events plain or compact (0.4).
    pub struct PushEvents {
        pub run_id: Id,
        #[serde(default)]
        pub events: Vec<Event>,
        #[serde(default)]
        pub events_b64: Option<String>,
        #[serde(default)]
        pub events_encoding: Option<String>,
        #[serde(default)]
        pub logs: Vec<LogLine>,
        #[serde(default)]
        pub log_ref: Option<String>,
        #[serde(default)]
        pub manifest_id: Option<String>,
        #[serde(default)]
        pub agent_version: Option<String>,
        #[serde(default)]
        pub batch_id: Option<String>,
    }

    /// One event of a run (2.4).
    pub struct Event {
        #[serde(rename = "type", default = "info")]
        pub kind: String,
        #[serde(default = "info")]
        pub level: String,
        pub message_id: String,
        /// The message id, where none is given.
        #[serde(default)]
        pub code: Option<String>,
        #[serde(default)]
        pub params_json: Object,
        #[serde(default)]
        pub ts: Option<Time>,
        #[serde(default)]
        pub seq: Option<i64>,
    }

    /// One line of a run's structured log.
    pub struct LogLine {
        pub level: String,
        #[serde(default)]
        pub code: Option<String>,
        pub message: String,
        #[serde(default)]
        pub details_json: Option<Object>,
    }

    /// Answer of `agent_push_events.php`.
    pub struct PushEventsAnswer {
        pub inserted: i64,
        pub dropped: i64,
        pub truncated: bool,
        pub logs_inserted: i64,
        #[serde(default)]
        pub log_ref: Option<String>,
        #[serde(default)]
        pub duplicate: bool,
    }

    /// `agent_push_agent_events.php` (2.5).
    pub struct PushAgentEvents {
        #[serde(default)]
        pub events: Vec<AgentEvent>,
        #[serde(default)]
        pub events_b64: Option<String>,
        #[serde(default)]
        pub events_encoding: Option<String>,
        #[serde(default)]
        pub agent_version: Option<String>,
    }

    /// An event outside of runs (2.5).
    pub struct AgentEvent {
        pub code: String,
        #[serde(default)]
        pub source: Option<String>,
        #[serde(default = "info")]
        pub level: String,
        #[serde(default)]
        pub ts: Option<Time>,
        #[serde(default)]
        pub message_id: Option<String>,
        #[serde(default)]
        pub params_json: Object,
        #[serde(default)]
        pub dedupe_key: Option<String>,
    }

    /// Answer of `agent_push_agent_events.php`.
    pub struct PushAgentEventsAnswer {
        pub inserted: i64,
        pub dropped: i64,
        pub deduped: i64,
        pub truncated: bool,
    }

    /// `agent_push_log_chunk.php` (2.5).
    pub struct PushLogChunk {
        pub run_id: Id,
        pub chunk_seq: i64,
        #[serde(default)]
        pub source: Option<String>,
        pub content_b64: String,
        pub encoding: String,
        #[serde(default)]
        pub line_count: Option<i64>,
        #[serde(default)]
        pub first_ts: Option<Time>,
        #[serde(default)]
        pub last_ts: Option<Time>,
    }

    /// Answer of `agent_push_log_chunk.php`.
    pub struct PushLogChunkAnswer {
        pub byte_count: i64,
        pub remaining_capacity: i64,
        #[serde(default)]
        pub duplicate: bool,
    }

    /// `cloudbackup_get_run_events.php` (6.2).
    pub struct RunEventsQuery {
        pub run_id: Id,
        #[serde(default)]
        pub since_id: Option<i64>,
        #[serde(default)]
        pub limit: Option<i64>,
    }

    /// A stored event, with its text.
    pub struct StoredEvent {
        pub id: i64,
        pub ts: Time,
        #[serde(rename = "type")]
        pub kind: String,
        pub level: String,
        pub code: String,
        pub message_id: String,
        pub params: Object,
        pub message: String,
    }

    /// Answer of `cloudbackup_get_run_events.php`.
    pub struct RunEvents {
        pub events: Vec<StoredEvent>,
    }

    /// A stored line of a run's log.
    pub struct StoredLogLine {
        pub id: i64,
        pub ts: Time,
        pub level: String,
        pub code: Option<String>,
        pub message: String,
        pub details: Option<Object>,
    }

    /// Answer of `cloudbackup_get_run_logs.php`.
    pub struct RunLogs {
        pub logs: Vec<StoredLogLine>,
    }
}

fn info() -> String {
    "info".to_owned()
}

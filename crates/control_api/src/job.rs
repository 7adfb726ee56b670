//! Jobs: what is wanted (4).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use serde_json::Value;

use crate::id::Id;
use crate::words::{Engine, JobStatus, ScheduleType};
use crate::{Object, Time};

wire! {
    /// `cloudbackup_create_job.php`, `cloudbackup_validate_job.php`, and with `job_id` and `version`
    /// `cloudbackup_update_job.php` (4.1). In an update a missing field means unchanged.
    #[derive(Default)]
    pub struct JobRequest {
        #[serde(default)]
        pub job_id: Option<Id>,
        /// As last read: an update of another version is refused.
        #[serde(default)]
        pub version: Option<i64>,
        #[serde(default)]
        pub name: Option<String>,
        #[serde(default)]
        pub engine: Option<Engine>,
        #[serde(default)]
        pub source_type: Option<String>,
        #[serde(default)]
        pub source_display_name: Option<String>,
        #[serde(default)]
        pub source_path: Option<String>,
        #[serde(default)]
        pub source_paths: Option<Vec<String>>,
        #[serde(default)]
        pub tenant_id: Option<i64>,
        #[serde(default)]
        pub agent_id: Option<Id>,
        #[serde(default)]
        pub agent_uuid: Option<Id>,
        /// A cluster or host group instead of one agent.
        #[serde(default)]
        pub host_group_id: Option<i64>,
        #[serde(default)]
        pub dest_bucket_id: Option<i64>,
        #[serde(default)]
        pub schedule_json: Option<Schedule>,
        #[serde(default)]
        pub timezone: Option<String>,
        #[serde(default)]
        pub retention_json: Option<Object>,
        /// Kilobytes per second (4.6).
        #[serde(default)]
        pub local_bandwidth_limit_kbps: Option<i64>,
        #[serde(default)]
        pub throttle_json: Option<Object>,
        #[serde(default)]
        pub policy_json: Option<Object>,
        #[serde(default)]
        pub parallelism: Option<i64>,
        #[serde(default)]
        pub compression: Option<String>,
        #[serde(default)]
        pub hyperv_config: Option<Object>,
        #[serde(default)]
        pub rpo_target_hours: Option<i64>,
        #[serde(default)]
        pub select: Option<Selection>,
        #[serde(default)]
        pub notify_override_email: Option<String>,
        #[serde(default)]
        pub notify_on_success: Option<bool>,
        #[serde(default)]
        pub notify_on_warning: Option<bool>,
        #[serde(default)]
        pub notify_on_failure: Option<bool>,
        #[serde(default)]
        pub status: Option<JobStatus>,
    }

    /// When a job runs, in plain words or as cron (4.4). Days are 1 = Monday to 7 = Sunday.
    #[derive(Default)]
    pub struct Schedule {
        #[serde(rename = "type", default)]
        pub kind: Option<ScheduleType>,
        /// `HH:MM` on the wall clock of the time zone.
        #[serde(default)]
        pub time: Option<String>,
        /// A number, a list, or text with commas.
        #[serde(default)]
        pub weekday: Option<Value>,
        /// Of each hour, for hourly.
        #[serde(default)]
        pub minute: Option<i64>,
        /// Five fields.
        #[serde(default)]
        pub cron: Option<String>,
        /// A slot missed while the server was away runs once, if it is under a day old.
        #[serde(default)]
        pub catch_up: Option<bool>,
        #[serde(default)]
        pub blackout: Vec<Window>,
    }

    /// A stretch of each of those days, local time; it may reach past midnight. No days means every day.
    pub struct Window {
        #[serde(default)]
        pub days: Vec<i64>,
        pub from: String,
        pub to: String,
    }

    /// Which VMs a job takes (console 9): `all`, `list`, `patterns` or `tags`, and never those in `except`.
    pub struct Selection {
        pub mode: String,
        #[serde(default)]
        pub vms: Vec<String>,
        #[serde(default)]
        pub patterns: Vec<String>,
        #[serde(default)]
        pub tags: Vec<String>,
        #[serde(default)]
        pub except: Vec<String>,
    }

    /// Names a job.
    pub struct JobRef {
        pub job_id: Id,
    }

    /// `cloudbackup_delete_job.php` (6.2): the phrase is the job's name.
    pub struct DeleteJob {
        pub job_id: Id,
        pub confirm_phrase: String,
    }

    /// A job as it is stored, without secrets.
    pub struct Job {
        pub job_id: i64,
        pub job_uuid: String,
        pub tenant_id: Option<i64>,
        pub name: String,
        pub engine: Engine,
        pub source_type: String,
        pub status: JobStatus,
        pub pause_reason: Option<String>,
        pub version: i64,
        pub agent_id: Option<i64>,
        pub host_group_id: Option<i64>,
        pub dest_bucket_id: Option<i64>,
        pub repository_id: Option<String>,
        pub schedule_json: Schedule,
        pub timezone: String,
        pub retention_json: Option<Object>,
        pub throttle_json: Option<Object>,
        pub local_bandwidth_limit_kbps: i64,
        pub hyperv_config: Option<Object>,
        pub rpo_target_hours: Option<i64>,
        pub select: Option<Selection>,
        pub next_run_at: Option<Time>,
        pub created_at: Time,
        pub updated_at: Time,
    }

    /// Answer of the calls on one job.
    pub struct JobAnswer {
        pub job: Job,
    }

    /// Answer of `cloudbackup_list_jobs.php`.
    pub struct Jobs {
        pub jobs: Vec<Job>,
        pub total: i64,
        pub limit: i64,
        pub offset: i64,
    }

    /// Answer of `cloudbackup_validate_job.php` (6.2, console 9).
    pub struct ValidatedJob {
        pub schedule: Schedule,
        pub timezone: String,
        pub next_starts: Vec<Time>,
        pub rpo_target_hours: i64,
        pub selection: Vec<Selected>,
        pub retention: Vec<RetentionVerdict>,
        pub warnings: Vec<String>,
    }

    /// Whether a known VM would be taken, and why.
    pub struct Selected {
        pub vm_guid: String,
        pub vm_name: String,
        pub taken: bool,
        pub reason: String,
    }

    /// What a policy would do to one point: empty `kept_by` means that it goes.
    pub struct RetentionVerdict {
        pub backup_point_id: i64,
        pub snapshot_time: Time,
        pub kept_by: Vec<String>,
    }
}

//! Reports, and who gets a summary every day (6.2, console 3.15).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use crate::protection::VmStatus;
use crate::{Object, Time};

wire! {
    /// `cloudbackup_report.php`: how well every VM was protected in a period.
    pub struct ReportQuery {
        /// A day (`2026-11-01`, in the client's time zone) or an RFC 3339 time; thirty days before `to` without it.
        #[serde(default)]
        pub from: Option<String>,
        /// The same; a day is the period's last one. Now without it.
        #[serde(default)]
        pub to: Option<String>,
        /// `json`, `csv` or `html`.
        #[serde(default)]
        pub format: Option<String>,
        #[serde(default)]
        pub tenant_id: Option<i64>,
    }

    /// One VM of the protection report.
    pub struct ReportRow {
        pub vm_guid: String,
        pub vm_name: String,
        pub tenant: Option<String>,
        pub hostname: Option<String>,
        pub status: VmStatus,
        /// How much of the period a point inside the target existed, in hundredths of a percent; none without a target.
        pub kept_basis_points: Option<i64>,
        pub longest_gap_seconds: Option<i64>,
        /// Points of the period that could be restored.
        pub points: i64,
        pub newest_snapshot_time: Option<Time>,
        pub verified_at: Option<Time>,
        /// Of one that is excluded: who, when, why.
        pub remark: Option<String>,
    }

    /// Answer of `cloudbackup_report.php` as JSON.
    pub struct Report {
        pub client: String,
        pub timezone: String,
        pub from: Time,
        pub to: Time,
        pub made_at: Time,
        pub states: Object,
        /// Over all VMs with a target.
        pub kept_basis_points: Option<i64>,
        pub vms: Vec<ReportRow>,
    }

    /// `e3backup_backup_history.php` (EX): runs, day by day.
    pub struct HistoryQuery {
        /// 1 to 366, today the last one.
        #[serde(default)]
        pub days: Option<i64>,
        #[serde(default)]
        pub tenant_id: Option<i64>,
    }

    /// One day of the client's calendar.
    pub struct HistoryDay {
        pub day: String,
        /// Backups that ended on it, by how they did.
        pub runs: Object,
        pub bytes_transferred: i64,
        pub points: i64,
    }

    /// Answer of `e3backup_backup_history.php`.
    pub struct History {
        pub timezone: String,
        pub days: Vec<HistoryDay>,
    }

    /// `cloudbackup_report_schedule_save.php`: the daily summary of a client, or of a tenant.
    pub struct ReportScheduleRequest {
        #[serde(default)]
        pub tenant_id: Option<i64>,
        /// Addresses with commas between them.
        pub recipients: String,
        /// 0 to 23.
        #[serde(default)]
        pub hour: Option<i64>,
        #[serde(default)]
        pub timezone: Option<String>,
        #[serde(default)]
        pub only_if_wrong: bool,
        #[serde(default)]
        pub enabled: Option<bool>,
    }

    /// A daily summary.
    pub struct ReportSchedule {
        pub id: i64,
        pub tenant_id: Option<i64>,
        pub recipients: String,
        pub hour: i64,
        pub timezone: String,
        pub only_if_wrong: bool,
        pub enabled: bool,
        /// The last day that was told of.
        pub last_day: Option<String>,
    }

    /// Answer of `cloudbackup_report_schedules.php`.
    pub struct ReportSchedules {
        pub schedules: Vec<ReportSchedule>,
    }

    /// `/live` (console 0.2): a page's topics, as server-sent events.
    pub struct LiveQuery {
        /// At most 20, as `run-123`, `vms`, `alerts`.
        #[serde(default)]
        pub topics: Vec<String>,
    }
}

//! Alerts, who is told of them, and what became of that (console 3.14, 9).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use crate::Time;
use crate::words::{AlertChannel, AlertKind, AlertState};

wire! {
    /// `cloudbackup_alerts.php`.
    pub struct AlertFilter {
        /// Without it: those that are not resolved.
        #[serde(default)]
        pub states: Vec<AlertState>,
        #[serde(default)]
        pub kinds: Vec<AlertKind>,
        /// This bad or worse; 1 is worst.
        #[serde(default)]
        pub max_severity: Option<i64>,
        #[serde(default)]
        pub tenant_id: Option<i64>,
        /// Only this one, with its history.
        #[serde(default)]
        pub alert_id: Option<i64>,
        #[serde(default)]
        pub limit: Option<i64>,
        #[serde(default)]
        pub offset: Option<i64>,
    }

    /// One cause, for as long as it is known: it is opened, acknowledged and resolved, and opened again.
    pub struct Alert {
        pub alert_id: i64,
        pub tenant_id: Option<i64>,
        pub kind: AlertKind,
        /// `vm`, `job`, `agent`, `repository` or `server`.
        pub subject_type: String,
        pub subject_id: String,
        pub subject_name: String,
        pub state: AlertState,
        /// 1 is worst.
        pub severity: i64,
        pub title: String,
        pub reason: String,
        /// How often it was opened.
        pub episode: i64,
        pub opened_at: Time,
        pub resolved_at: Option<Time>,
        /// It came and went so often within two hours; it is told of once.
        pub folded: i64,
        pub acknowledged_by: Option<i64>,
        pub acknowledged_at: Option<Time>,
        /// Missing while acknowledged: until the cause is gone.
        pub acknowledged_until: Option<Time>,
        pub note: Option<String>,
        /// How many messages about it were delivered.
        pub delivered: i64,
    }

    /// Answer of `cloudbackup_alerts.php`.
    pub struct Alerts {
        pub alerts: Vec<Alert>,
        /// Of `alert_id` only.
        pub history: Vec<AlertChange>,
        pub total: i64,
        pub limit: i64,
        pub offset: i64,
    }

    /// What happened to an alert.
    pub struct AlertChange {
        pub at: Time,
        pub what: String,
        pub severity: i64,
        pub reason: String,
        pub by_user: Option<i64>,
    }

    /// `cloudbackup_alert_ack.php`: nobody is told again until then.
    pub struct AckAlerts {
        pub alert_ids: Vec<i64>,
        /// Missing: until the cause is gone. There is no "for ever".
        #[serde(default)]
        pub until: Option<Time>,
        #[serde(default)]
        pub note: Option<String>,
        /// Takes an acknowledgement back.
        #[serde(default)]
        pub reopen: bool,
    }

    /// How many alerts that changed.
    pub struct AckedAlerts {
        pub changed: i64,
    }

    /// `cloudbackup_alert_rule_save.php`: without `id` a new rule.
    pub struct AlertRuleRequest {
        #[serde(default)]
        pub id: Option<i64>,
        #[serde(default)]
        pub name: Option<String>,
        #[serde(default)]
        pub tenant_id: Option<i64>,
        /// None or an empty list: every kind.
        #[serde(default)]
        pub kinds: Option<Vec<AlertKind>>,
        /// This bad or worse.
        #[serde(default)]
        pub max_severity: Option<i64>,
        #[serde(default)]
        pub channel: Option<AlertChannel>,
        /// Addresses with commas between them, or an `https://` address.
        #[serde(default)]
        pub target: Option<String>,
        #[serde(default)]
        pub after_minutes: Option<i64>,
        /// 0 is never.
        #[serde(default)]
        pub repeat_hours: Option<i64>,
        /// `HH:MM` of the client's time zone; both, or both empty.
        #[serde(default)]
        pub quiet_from: Option<String>,
        #[serde(default)]
        pub quiet_to: Option<String>,
        #[serde(default)]
        pub on_resolved: Option<bool>,
        #[serde(default)]
        pub enabled: Option<bool>,
    }

    /// A rule: whom to tell of what.
    pub struct AlertRule {
        pub id: i64,
        pub name: String,
        pub tenant_id: Option<i64>,
        pub kinds: Vec<AlertKind>,
        pub max_severity: i64,
        pub channel: AlertChannel,
        pub target: String,
        pub after_minutes: i64,
        pub repeat_hours: i64,
        pub quiet_from: Option<String>,
        pub quiet_to: Option<String>,
        pub on_resolved: bool,
        pub enabled: bool,
    }

    /// A rule was stored. The key that signs its webhooks is shown when it is made, and never again.
    pub struct SavedAlertRule {
        pub rule: AlertRule,
        pub webhook_secret: Option<String>,
    }

    /// Names a rule.
    pub struct AlertRuleRef {
        pub id: i64,
    }

    /// Answer of `cloudbackup_alert_rules.php`.
    pub struct AlertRules {
        pub rules: Vec<AlertRule>,
        pub thresholds: Thresholds,
        /// Whether this server can send mail at all.
        pub mail_configured: bool,
    }

    /// `cloudbackup_alert_thresholds.php`: when something is an alert; settings of the client.
    pub struct Thresholds {
        /// No restorable point for so long, whatever the jobs' targets are. 0: the targets alone decide.
        #[serde(default)]
        pub no_point_hours: Option<i64>,
        #[serde(default)]
        pub checkpoint_hours: Option<i64>,
        #[serde(default)]
        pub silent_minutes: Option<i64>,
        /// A day's upload in percent of what the fortnight before brought a day.
        #[serde(default)]
        pub growth_percent: Option<i64>,
        /// A day that brought less is no growth.
        #[serde(default)]
        pub growth_min_bytes: Option<i64>,
    }

    /// A message that was queued.
    pub struct QueuedDelivery {
        pub delivery_id: i64,
    }

    /// `cloudbackup_alert_deliveries.php`.
    pub struct DeliveryFilter {
        #[serde(default)]
        pub alert_id: Option<i64>,
        #[serde(default)]
        pub id: Option<i64>,
        #[serde(default)]
        pub limit: Option<i64>,
        #[serde(default)]
        pub offset: Option<i64>,
    }

    /// One message to one receiver, and what the receiver said.
    pub struct Delivery {
        pub delivery_id: i64,
        pub alert_id: Option<i64>,
        pub rule_id: Option<i64>,
        /// `opened`, `escalated`, `repeated`, `resolved`, `test` or `summary`.
        pub event: String,
        pub channel: AlertChannel,
        pub target: String,
        /// `waiting`, `sending`, `delivered`, `given_up` or `withdrawn`.
        pub delivery_status: String,
        pub attempts: i64,
        pub created_at: Time,
        pub next_attempt_at: Option<Time>,
        pub finished_at: Option<Time>,
        pub answer: Option<String>,
    }

    /// Answer of `cloudbackup_alert_deliveries.php`.
    pub struct Deliveries {
        pub deliveries: Vec<Delivery>,
        pub total: i64,
        pub limit: i64,
        pub offset: i64,
    }
}

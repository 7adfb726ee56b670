//! Alerts in the database: what is to change, and the change with its messages in one transaction.

use std::collections::BTreeMap;

use control_api::words::{AlertKind, AlertState};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value as Json, json};

use super::causes::{self, Cause};
use super::facts;
use super::rules::{About, Rule};
use super::steps::{Known, Step, steps};
use crate::args;
use crate::changes;
use crate::failure::Failure;
use crate::store::{Row, Tx, Value, time_text};

/// What a look found to change.
#[derive(Debug)]
pub struct Todo {
    steps: Vec<Step>,
    /// Alerts that stay open, with a rule that tells of them again, told last at that time.
    repeats: Vec<(i64, i64, Timestamp)>,
    rules: Vec<Rule>,
    zone: TimeZone,
}

impl Todo {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.repeats.is_empty()
    }
}

/// Looks.
pub async fn todo(tx: &mut Tx, client: i64, chain: Option<bool>, now: Timestamp) -> Result<Todo, Failure> {
    let limits = super::thresholds(tx, client).await?;
    let facts = facts::gather(tx, client, &limits, chain, now).await?;
    let causes = causes::causes(&facts, &limits, now);
    let sql = "SELECT * FROM s3_alerts WHERE client_id = ? AND state <> 'resolved'";
    let mut known: Vec<Known> = tx.rows(sql, args![client]).await?.iter().map(of_row).collect::<Result<_, _>>()?;
    let mut by_key: std::collections::BTreeSet<(AlertKind, String, String)> =
        known.iter().map(|known| (known.kind, known.subject.0.clone(), known.subject.1.clone())).collect();
    for cause in &causes {
        let key = (cause.kind, cause.subject.kind.to_owned(), cause.subject.id.clone());
        if !by_key.insert(key) {
            continue;
        }
        let sql = "SELECT * FROM s3_alerts WHERE client_id = ? AND kind = ? AND subject_type = ? AND subject_id = ?";
        let of = args![client, cause.kind.word(), cause.subject.kind, &cause.subject.id];
        if let Some(row) = tx.row(sql, of).await? {
            known.push(of_row(&row)?);
        }
    }
    let looked = |kind| kind != AlertKind::AuditChainBroken || chain.is_some();
    let steps = steps(&known, &causes, looked, now);
    let sql = "SELECT * FROM s3_alert_rules WHERE client_id = ? AND deleted_at IS NULL AND is_enabled = 1 ORDER BY id";
    let rules: Vec<Rule> = tx.rows(sql, args![client]).await?.iter().map(Rule::of).collect::<Result<_, _>>()?;
    let repeats = repeats(tx, client, &rules, now).await?;
    let zone = tx.row("SELECT timezone FROM s3_clients WHERE id = ?", args![client]).await?;
    let zone = zone.map(|row| row.opt_text("timezone")).transpose()?.flatten();
    let zone = zone.and_then(|zone| TimeZone::get(&zone).ok()).unwrap_or(TimeZone::UTC);
    Ok(Todo { steps, repeats, rules, zone })
}

/// Open alerts that a rule tells of again.
async fn repeats(
    tx: &mut Tx,
    client: i64,
    rules: &[Rule],
    now: Timestamp,
) -> Result<Vec<(i64, i64, Timestamp)>, Failure> {
    if rules.iter().all(|rule| rule.repeat_hours == 0) {
        return Ok(Vec::new());
    }
    let sql = "SELECT d.alert_id, d.rule_id, MAX(d.created_at) AS last FROM s3_alert_deliveries d \
               JOIN s3_alerts l ON l.id = d.alert_id WHERE l.client_id = ? AND l.state = 'open' AND d.episode = l.episode \
               AND d.status IN ('delivered', 'given_up') GROUP BY d.alert_id, d.rule_id";
    let mut due = Vec::new();
    for row in tx.rows(sql, args![client]).await? {
        let (rule, last) = (row.opt_int("rule_id")?, row.time("last")?);
        if let Some(rule) = rules.iter().find(|known| Some(known.id) == rule && known.repeats(last, now)) {
            due.push((row.int("alert_id")?, rule.id, last));
        }
    }
    let waiting = "SELECT COUNT(*) FROM s3_alert_deliveries WHERE alert_id = ? AND rule_id = ? \
                   AND status IN ('waiting', 'sending')";
    let mut free = Vec::new();
    for (alert, rule, last) in due {
        if tx.count(waiting, args![alert, rule]).await? == 0 {
            free.push((alert, rule, last));
        }
    }
    Ok(free)
}

fn of_row(row: &Row) -> Result<Known, Failure> {
    Ok(Known {
        id: row.int("id")?,
        kind: row.word("kind", AlertKind::of_word)?,
        subject: (row.text("subject_type")?, row.text("subject_id")?),
        state: row.word("state", AlertState::of_word)?,
        severity: row.int("severity")?,
        text: (row.text("title")?, row.text("reason")?),
        episode: row.int("episode")?,
        clear_since: row.opt_time("clear_since")?,
        resolved_at: row.opt_time("resolved_at")?,
        flaps: row.int("flaps")?,
        acknowledged_until: row.opt_time("acknowledged_until")?,
    })
}

/// Writes it down, with a message for everybody whom a rule names.
pub async fn apply(tx: &mut Tx, client: i64, todo: Todo, now: Timestamp) -> Result<(), Failure> {
    let Todo { steps, repeats, rules, zone } = todo;
    let told = Told { client, rules: &rules, zone: &zone, now };
    let mut tenants = std::collections::BTreeSet::new();
    for step in &steps {
        tenants.insert(told.step(tx, step).await?);
    }
    for (alert, rule, last) in repeats {
        let row = told.row(tx, alert).await?;
        if let Some(rule) = rules.iter().find(|known| known.id == rule) {
            told.message(tx, &row, rule, "repeated", Some(last)).await?;
        }
    }
    for tenant in tenants {
        changes::touch(tx, client, tenant, "alerts", now).await?;
    }
    Ok(())
}

/// One look's writer.
struct Told<'a> {
    client: i64,
    rules: &'a [Rule],
    zone: &'a TimeZone,
    now: Timestamp,
}

impl Told<'_> {
    async fn row(&self, tx: &mut Tx, id: i64) -> Result<Row, Failure> {
        let sql = "SELECT * FROM s3_alerts WHERE client_id = ? AND id = ?";
        tx.row(sql, args![self.client, id]).await?.ok_or_else(|| Failure::internal("an alert that is gone"))
    }

    /// Writes one step; the tenant whose alert it is.
    async fn step(&self, tx: &mut Tx, step: &Step) -> Result<Option<i64>, Failure> {
        let now = self.now;
        let no_acknowledgement: [(&str, Value); 4] = [
            ("acknowledged_by", Value::Null),
            ("acknowledged_at", Value::Null),
            ("acknowledged_until", Value::Null),
            ("note", Value::Null),
        ];
        let (id, mut columns, event): (i64, Vec<(&str, Value)>, Option<&str>) = match step {
            Step::Open(cause) => (self.insert(tx, cause).await?, vec![], Some("opened")),
            Step::Reopen(id, cause, flaps) => {
                let known = self.row(tx, *id).await?;
                let mut columns = text_of(cause);
                columns.extend(no_acknowledgement);
                columns.extend([
                    ("state", AlertState::Open.word().into()),
                    ("episode", (known.int("episode")? + 1).into()),
                    ("opened_at", now.into()),
                    ("resolved_at", Value::Null),
                    ("clear_since", Value::Null),
                    ("flaps", (*flaps).into()),
                ]);
                (*id, columns, Some("opened"))
            }
            Step::Worsen(id, cause) => {
                let mut columns = text_of(cause);
                columns.extend(no_acknowledgement);
                columns.push(("state", AlertState::Open.word().into()));
                (*id, columns, Some("escalated"))
            }
            Step::Reword(id, cause) => (*id, text_of(cause), None),
            Step::Remind(id) => {
                let mut columns = no_acknowledgement.to_vec();
                columns.push(("state", AlertState::Open.word().into()));
                (*id, columns, Some("repeated"))
            }
            Step::ClearBegins(id) => (*id, vec![("clear_since", now.into())], None),
            Step::ClearEnds(id) => (*id, vec![("clear_since", Value::Null)], None),
            Step::Resolve(id) => {
                let mut columns = no_acknowledgement.to_vec();
                columns.extend([
                    ("state", AlertState::Resolved.word().into()),
                    ("resolved_at", now.into()),
                    ("clear_since", Value::Null),
                ]);
                (*id, columns, Some("resolved"))
            }
        };
        columns.push(("updated_at", now.into()));
        tx.update("s3_alerts", &columns, "client_id = ? AND id = ?", args![self.client, id]).await?;
        let row = self.row(tx, id).await?;
        if let Some(event) = event {
            history(tx, &row, event, None, now).await?;
            self.messages(tx, &row, event).await?;
        }
        Ok(row.opt_int("tenant_id")?)
    }

    async fn insert(&self, tx: &mut Tx, cause: &Cause) -> Result<i64, Failure> {
        let mut columns = text_of(cause);
        columns.extend([
            ("client_id", self.client.into()),
            ("kind", cause.kind.word().into()),
            ("subject_type", cause.subject.kind.into()),
            ("subject_id", cause.subject.id.clone().into()),
            ("opened_at", self.now.into()),
            ("updated_at", self.now.into()),
        ]);
        Ok(tx.insert("s3_alerts", &columns).await?)
    }

    /// A message for each rule: of what began to all that it is for, of what is over to those who heard that it began.
    async fn messages(&self, tx: &mut Tx, alert: &Row, event: &str) -> Result<(), Failure> {
        let id = alert.int("id")?;
        if event != "resolved" {
            let about = About {
                kind: alert.word("kind", AlertKind::of_word)?,
                tenant: alert.opt_int("tenant_id")?,
                severity: alert.int("severity")?,
            };
            for rule in self.rules.iter().filter(|rule| rule.takes(about)) {
                self.message(tx, alert, rule, event, None).await?;
            }
            return Ok(());
        }
        withdraw(tx, id, self.now).await?;
        let sql = "SELECT DISTINCT rule_id FROM s3_alert_deliveries WHERE alert_id = ? AND episode = ? \
                   AND status IN ('waiting', 'sending', 'delivered')";
        let heard = tx.rows(sql, args![id, alert.int("episode")?]).await?;
        let heard: Vec<Option<i64>> = heard.iter().map(|row| row.opt_int("rule_id")).collect::<Result<_, _>>()?;
        for rule in self.rules.iter().filter(|rule| rule.on_resolved && heard.contains(&Some(rule.id))) {
            self.message(tx, alert, rule, event, None).await?;
        }
        Ok(())
    }

    async fn message(
        &self,
        tx: &mut Tx,
        alert: &Row,
        rule: &Rule,
        event: &str,
        after: Option<Timestamp>,
    ) -> Result<(), Failure> {
        let (id, episode) = (alert.int("id")?, alert.int("episode")?);
        // The key makes a message that two instances, or two looks, would write the same one.
        let turn = match event {
            "opened" | "resolved" => 0,
            _ => after.unwrap_or(self.now).as_millisecond(),
        };
        let goes_out = match event {
            "opened" | "escalated" => rule.goes_out(alert.time("opened_at")?, self.zone, self.now),
            _ => Rule { after_minutes: 0, ..rule.clone() }.goes_out(self.now, self.zone, self.now),
        };
        let message = Message {
            client: self.client,
            // Whose rule it is, not whose alert: a tenant does not see whom its provider tells.
            tenant: rule.tenant,
            alert: Some(id),
            rule: Some(rule.id),
            event,
            episode,
            key: format!("alert-{id}-{episode}-{event}-{}-{turn}", rule.id),
            channel: rule.channel.word(),
            target: &rule.target,
            secret: rule.secret,
            payload: payload(alert)?,
            goes_out,
        };
        message.queue(tx, self.now).await?;
        Ok(())
    }
}

fn text_of(cause: &Cause) -> Vec<(&'static str, Value)> {
    let cut = |text: &str, most: usize| -> Value { super::text::line(text, most).into() };
    vec![
        ("tenant_id", cause.tenant.into()),
        ("subject_name", cut(&cause.subject.name, 255)),
        ("severity", cause.severity.into()),
        ("title", cut(&cause.title, 255)),
        ("reason", cut(&cause.reason, 2000)),
    ]
}

/// What happened to an alert, for those who look later.
pub async fn history(tx: &mut Tx, alert: &Row, what: &str, by: Option<i64>, now: Timestamp) -> Result<(), Failure> {
    let columns = [
        ("alert_id", alert.int("id")?.into()),
        ("episode", alert.int("episode")?.into()),
        ("what", what.into()),
        ("severity", alert.int("severity")?.into()),
        ("reason", alert.text("reason")?.into()),
        ("by_user", by.into()),
        ("created_at", now.into()),
    ];
    tx.insert("s3_alert_history", &columns).await?;
    Ok(())
}

/// Messages that nobody needs any more: they were to wait, and were not tried yet.
pub async fn withdraw(tx: &mut Tx, alert: i64, now: Timestamp) -> Result<(), Failure> {
    let columns = [("status", "withdrawn".into()), ("finished_at", now.into())];
    let condition = "alert_id = ? AND status = 'waiting' AND attempts = 0 AND next_attempt_at > ?";
    tx.update("s3_alert_deliveries", &columns, condition, args![alert, now]).await?;
    Ok(())
}

/// An alert as its messages tell of it; no secrets, and nothing that is not the receiver's.
fn payload(alert: &Row) -> Result<Json, Failure> {
    let time = |name: &str| -> Result<Option<String>, Failure> { Ok(alert.opt_time(name)?.map(time_text)) };
    Ok(json!({
        "alert_id": alert.int("id")?,
        "kind": alert.text("kind")?,
        "state": alert.text("state")?,
        "severity": alert.int("severity")?,
        "title": alert.text("title")?,
        "reason": alert.text("reason")?,
        "subject": {
            "type": alert.text("subject_type")?,
            "id": alert.text("subject_id")?,
            "name": alert.text("subject_name")?,
        },
        "tenant_id": alert.opt_int("tenant_id")?,
        "episode": alert.int("episode")?,
        "folded": alert.int("flaps")?,
        "opened_at": time("opened_at")?,
        "resolved_at": time("resolved_at")?,
    }))
}

/// A message to be sent.
#[derive(Debug)]
pub struct Message<'a> {
    /// Whose.
    pub client: i64,
    /// And which tenant's.
    pub tenant: Option<i64>,
    /// About which alert.
    pub alert: Option<i64>,
    /// By which rule.
    pub rule: Option<i64>,
    /// `opened`, `escalated`, `repeated`, `resolved`, `test` or `summary`.
    pub event: &'a str,
    /// The alert's.
    pub episode: i64,
    /// The same message has the same.
    pub key: String,
    /// `mail` or `webhook`.
    pub channel: &'a str,
    /// To whom.
    pub target: &'a str,
    /// The key that signs it.
    pub secret: Option<i64>,
    /// What it says.
    pub payload: Json,
    /// Not before.
    pub goes_out: Timestamp,
}

impl Message<'_> {
    /// Writes it down; its id, none where it was written down before.
    pub async fn queue(self, tx: &mut Tx, now: Timestamp) -> Result<Option<i64>, Failure> {
        let known = "SELECT COUNT(*) FROM s3_alert_deliveries WHERE dedupe_key = ?";
        if tx.count(known, args![&self.key]).await? > 0 {
            return Ok(None);
        }
        let columns: [(&str, Value); 13] = [
            ("client_id", self.client.into()),
            ("tenant_id", self.tenant.into()),
            ("alert_id", self.alert.into()),
            ("rule_id", self.rule.into()),
            ("event", self.event.into()),
            ("episode", self.episode.into()),
            ("dedupe_key", self.key.into()),
            ("channel", self.channel.into()),
            ("target", self.target.into()),
            ("secret_id", self.secret.into()),
            ("payload_json", self.payload.into()),
            ("next_attempt_at", self.goes_out.into()),
            ("created_at", now.into()),
        ];
        Ok(Some(tx.insert("s3_alert_deliveries", &columns).await?))
    }
}

/// How many messages of each of these alerts were delivered.
pub async fn delivered(tx: &mut Tx, alerts: &[i64]) -> Result<BTreeMap<i64, i64>, Failure> {
    let mut counts = BTreeMap::new();
    if alerts.is_empty() {
        return Ok(counts);
    }
    let sql = format!(
        "SELECT alert_id, COUNT(*) AS messages FROM s3_alert_deliveries WHERE alert_id IN ({}) \
         AND status = 'delivered' GROUP BY alert_id",
        crate::store::marks(alerts.len())
    );
    let values: Vec<Value> = alerts.iter().map(|alert| (*alert).into()).collect();
    for row in tx.rows(&sql, &values).await? {
        counts.insert(row.int("alert_id")?, row.int("messages")?);
    }
    Ok(counts)
}

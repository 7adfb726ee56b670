//! Whom alerts are told to, when something is one, and what became of messages (console 3.14, 9).

use control_api::account::Page;
use control_api::alert::{
    AlertRule, AlertRuleRef, AlertRuleRequest, AlertRules, Deliveries, Delivery, DeliveryFilter, QueuedDelivery,
    SavedAlertRule, Thresholds,
};
use control_api::words::{AlertChannel, AlertKind};
use serde_json::json;

use super::{Window, own_row, tenant_for};
use crate::access::audit::{self, Entry};
use crate::access::{Filter, Scope};
use crate::alerts::record::Message;
use crate::alerts::{self, mail, outbox, webhook};
use crate::args;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::schedule::window::clock;
use crate::secret;
use crate::store::{Row, Tx, Value, time_text};
use crate::vault;

/// Rules of a client.
const MOST: i64 = 200;

/// `cloudbackup_alert_rules.php`.
pub async fn list(call: &Call<'_>) -> Result<Answer, Failure> {
    let page: Page = call.read()?;
    let window = Window::new(page.limit, page.offset)?;
    let scope = call.scope()?;
    let filter = Filter::within(scope, "r").and_sql("r.deleted_at IS NULL");
    let mut tx = call.app.db.read().await?;
    let sql = format!("SELECT r.* FROM s3_alert_rules r WHERE {} ORDER BY r.name, r.id{}", filter.sql, window.sql());
    let rows = tx.rows(&sql, &filter.args).await?;
    let rules = rows.iter().map(on_wire).collect::<Result<_, _>>()?;
    let thresholds = thresholds_on_wire(alerts::thresholds(&mut tx, scope.client).await?);
    Answer::ok(AlertRules { rules, thresholds, mail_configured: call.app.settings.mail.is_some() })
}

fn on_wire(row: &Row) -> Result<AlertRule, Failure> {
    let kinds: Vec<AlertKind> = row.opt_json("kinds_json")?.unwrap_or_default();
    Ok(AlertRule {
        id: row.int("id")?,
        name: row.text("name")?,
        tenant_id: row.opt_int("tenant_id")?,
        kinds,
        max_severity: row.int("max_severity")?,
        channel: row.word("channel", AlertChannel::of_word)?,
        target: row.text("target")?,
        after_minutes: row.int("after_minutes")?,
        repeat_hours: row.opt_int("repeat_hours")?.unwrap_or(0),
        quiet_from: row.opt_text("quiet_from")?,
        quiet_to: row.opt_text("quiet_to")?,
        on_resolved: row.flag("on_resolved")?,
        enabled: row.flag("is_enabled")?,
    })
}

/// What a rule says after a change: every field, checked together.
fn merged(call: &Call<'_>, stored: Option<AlertRule>, asked: &AlertRuleRequest) -> Result<AlertRule, Failure> {
    let mut wrong: Vec<(String, String)> = Vec::new();
    let mut say = |field: &str, why: &str| wrong.push((field.to_owned(), why.to_owned()));
    let channel = match (asked.channel, &stored) {
        (Some(channel), Some(stored)) if channel != stored.channel => {
            return Err(Failure::validation(&[("channel".into(), "stays as it was made; make another rule".into())]));
        }
        (Some(channel), _) => channel,
        (None, Some(stored)) => stored.channel,
        (None, None) => return Err(Failure::missing("channel")),
    };
    let mut rule = stored.unwrap_or_else(|| AlertRule {
        id: 0,
        name: String::new(),
        tenant_id: None,
        kinds: Vec::new(),
        max_severity: 4,
        channel,
        target: String::new(),
        after_minutes: 0,
        repeat_hours: 0,
        quiet_from: None,
        quiet_to: None,
        on_resolved: true,
        enabled: true,
    });
    macro_rules! take {
        ($($field:ident),*) => {$( if let Some(value) = &asked.$field { rule.$field = value.clone(); } )*};
    }
    take!(name, kinds, max_severity, target, after_minutes, repeat_hours, on_resolved, enabled);
    let time = |value: &Option<String>, stored: Option<String>| match value {
        Some(value) if value.is_empty() => None,
        Some(value) => Some(value.clone()),
        None => stored,
    };
    rule.quiet_from = time(&asked.quiet_from, rule.quiet_from.take());
    rule.quiet_to = time(&asked.quiet_to, rule.quiet_to.take());
    let name = rule.name.trim().to_owned();
    if name.is_empty() || name.chars().count() > 191 {
        say("name", "has 1 to 191 characters");
    }
    rule.name = name;
    rule.kinds.sort();
    rule.kinds.dedup();
    if !(1..=6).contains(&rule.max_severity) {
        say("max_severity", "is 1 (the worst) to 6");
    }
    if !(0..=10_080).contains(&rule.after_minutes) {
        say("after_minutes", "is 0 to a week");
    }
    if !(0..=744).contains(&rule.repeat_hours) {
        say("repeat_hours", "is 0 (never) to a month");
    }
    let quiet = [&rule.quiet_from, &rule.quiet_to];
    let is_time = |time: &&Option<String>| time.as_ref().is_some_and(|time| time.len() <= 5 && clock(time).is_some());
    if quiet.iter().any(|time| time.is_some()) && (!quiet.iter().all(is_time) || rule.quiet_from == rule.quiet_to) {
        say("quiet_from", "and quiet_to are two times of day like 22:00");
    }
    if rule.target.chars().count() > 1000 {
        say("target", "longer than 1,000 characters");
    }
    let target = match channel {
        AlertChannel::Mail => mail::addresses(&rule.target).map(drop),
        AlertChannel::Webhook => webhook::check(&rule.target, &outbox::reach(call.app)),
    };
    if let Err(why) = target {
        say("target", &why);
    }
    if wrong.is_empty() { Ok(rule) } else { Err(Failure::validation(&wrong)) }
}

/// `cloudbackup_alert_rule_save.php`.
pub async fn save(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: AlertRuleRequest = call.read()?;
    let mut tx = call.app.db.write().await?;
    let stored = match asked.id {
        Some(id) => Some(find(&mut tx, person.scope, id).await?),
        None => None,
    };
    let before = stored.as_ref().map(on_wire).transpose()?;
    let mut rule = merged(call, before.clone(), &asked)?;
    let mut columns: Vec<(&str, Value)> = vec![
        ("name", rule.name.clone().into()),
        ("kinds_json", json!(rule.kinds).into()),
        ("max_severity", rule.max_severity.into()),
        ("target", rule.target.clone().into()),
        ("after_minutes", rule.after_minutes.into()),
        ("repeat_hours", rule.repeat_hours.into()),
        ("quiet_from", rule.quiet_from.clone().into()),
        ("quiet_to", rule.quiet_to.clone().into()),
        ("on_resolved", rule.on_resolved.into()),
        ("is_enabled", rule.enabled.into()),
        ("updated_at", now.into()),
    ];
    let mut webhook_secret = None;
    if stored.is_some() {
        tx.update("s3_alert_rules", &columns, "id = ?", args![rule.id]).await?;
    } else {
        let filter = Filter::within(person.scope, "r").and_sql("r.deleted_at IS NULL");
        let count = format!("SELECT COUNT(*) FROM s3_alert_rules r WHERE {}", filter.sql);
        if tx.count(&count, &filter.args).await? >= MOST {
            return Err(Failure::with(Code::Conflict, "There are 200 rules, and no more are taken"));
        }
        rule.tenant_id = tenant_for(&mut tx, person.scope, asked.tenant_id).await?;
        let secret = match rule.channel {
            AlertChannel::Webhook => {
                let key = secret::token("whs_")?;
                let client = person.scope.client;
                let aad = vault::webhook_aad(client);
                let kept = vault::keep(&mut tx, &call.app.vault, client, "webhook_key", &aad, &key, now).await?;
                webhook_secret = Some(key);
                Some(kept)
            }
            AlertChannel::Mail => None,
        };
        columns.extend([
            ("client_id", person.scope.client.into()),
            ("tenant_id", rule.tenant_id.into()),
            ("channel", rule.channel.word().into()),
            ("secret_id", secret.into()),
            ("created_at", now.into()),
        ]);
        rule.id = tx.insert("s3_alert_rules", &columns).await?;
    }
    let entry = Entry {
        action: "alert_rule.save",
        entity: "alert_rule",
        id: rule.id.to_string(),
        before: before.map(|before| json!(before)),
        after: Some(json!(rule)),
    };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::ok(SavedAlertRule { rule, webhook_secret })
}

async fn find(tx: &mut Tx, scope: Scope, id: i64) -> Result<Row, Failure> {
    let row = own_row(tx, scope, "s3_alert_rules", id, Code::NotFound).await?;
    if row.opt_time("deleted_at")?.is_some() { Err(Code::NotFound.into()) } else { Ok(row) }
}

/// `cloudbackup_alert_rule_delete.php`. What it had said stays in the log of deliveries; what waits is withdrawn.
pub async fn delete(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: AlertRuleRef = call.read()?;
    let mut tx = call.app.db.write().await?;
    let row = find(&mut tx, person.scope, asked.id).await?;
    tx.update("s3_alert_rules", &[("deleted_at", now.into())], "id = ?", args![asked.id]).await?;
    let columns = [("status", "withdrawn".into()), ("finished_at", now.into())];
    tx.update("s3_alert_deliveries", &columns, "rule_id = ? AND status = 'waiting'", args![asked.id]).await?;
    let entry = Entry {
        action: "alert_rule.delete",
        entity: "alert_rule",
        id: asked.id.to_string(),
        before: Some(json!(on_wire(&row)?)),
        after: None,
    };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::done()
}

/// `cloudbackup_alert_rule_test.php`: a message on the way that real ones go.
pub async fn test(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: AlertRuleRef = call.read()?;
    let mut tx = call.app.db.write().await?;
    let row = find(&mut tx, person.scope, asked.id).await?;
    let (name, channel, target) = (row.text("name")?, row.text("channel")?, row.text("target")?);
    let message = Message {
        client: person.scope.client,
        tenant: row.opt_int("tenant_id")?,
        alert: None,
        rule: Some(asked.id),
        event: "test",
        episode: 0,
        key: format!("test-{}-{}", asked.id, secret::id128()?),
        channel: &channel,
        target: &target,
        secret: row.opt_int("secret_id")?,
        payload: json!({ "title": format!("Test of the rule {name}"), "reason": "Nothing is wrong." }),
        goes_out: now,
    };
    let delivery_id = message.queue(&mut tx, now).await?.ok_or_else(|| Failure::internal("a key that is not new"))?;
    let entry = Entry {
        action: "alert_rule.test",
        entity: "alert_rule",
        id: asked.id.to_string(),
        before: None,
        after: Some(json!({ "delivery_id": delivery_id })),
    };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::ok(QueuedDelivery { delivery_id })
}

fn thresholds_on_wire(limits: alerts::Thresholds) -> Thresholds {
    Thresholds {
        no_point_hours: Some(limits.no_point_hours),
        checkpoint_hours: Some(limits.checkpoint_hours),
        silent_minutes: Some(limits.silent_minutes),
        growth_percent: Some(limits.growth_percent),
        growth_min_bytes: Some(limits.growth_min_bytes),
    }
}

/// `cloudbackup_alert_thresholds.php`: of the client, so not for somebody of one tenant.
pub async fn thresholds(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: Thresholds = call.read()?;
    if person.scope.tenant.is_some() {
        return Err(Code::ForbiddenRole.into());
    }
    let client = person.scope.client;
    let mut tx = call.app.db.write().await?;
    let before = alerts::thresholds(&mut tx, client).await?;
    let mut limits = before;
    for (field, value, place, most) in [
        ("no_point_hours", asked.no_point_hours, &mut limits.no_point_hours, 8784),
        ("checkpoint_hours", asked.checkpoint_hours, &mut limits.checkpoint_hours, 8784),
        ("silent_minutes", asked.silent_minutes, &mut limits.silent_minutes, 527_040),
        ("growth_percent", asked.growth_percent, &mut limits.growth_percent, 1_000_000),
        ("growth_min_bytes", asked.growth_min_bytes, &mut limits.growth_min_bytes, i64::MAX / 2),
    ] {
        let Some(value) = value else { continue };
        let least = if field == "silent_minutes" { 5 } else { 0 };
        if !(least..=most).contains(&value) {
            return Err(Failure::invalid(field, format!("is {least} to {most}")));
        }
        *place = value;
    }
    let stored = tx.row("SELECT settings_json FROM s3_cloudbackup_settings WHERE client_id = ?", args![client]).await?;
    let settings: Option<control_api::Object> =
        stored.as_ref().map(|row| row.opt_json("settings_json")).transpose()?.flatten();
    let mut settings = settings.unwrap_or_default();
    settings.insert("alerts".into(), json!(limits));
    let mut columns = vec![("settings_json", json!(settings).into()), ("updated_at", now.into())];
    if stored.is_some() {
        tx.update("s3_cloudbackup_settings", &columns, "client_id = ?", args![client]).await?;
    } else {
        columns.push(("client_id", client.into()));
        tx.insert("s3_cloudbackup_settings", &columns).await?;
    }
    let entry = Entry {
        action: "alert_thresholds.save",
        entity: "settings",
        id: client.to_string(),
        before: Some(json!(before)),
        after: Some(json!(limits)),
    };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::ok(thresholds_on_wire(limits))
}

/// `cloudbackup_alert_deliveries.php`: newest first.
pub async fn deliveries(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: DeliveryFilter = call.read()?;
    let window = Window::new(asked.limit, asked.offset)?;
    let mut filter = Filter::within(call.scope()?, "d");
    if let Some(alert) = asked.alert_id {
        filter = filter.and("d.alert_id = ?", alert);
    }
    if let Some(id) = asked.id {
        filter = filter.and("d.id = ?", id);
    }
    let mut tx = call.app.db.read().await?;
    let count = format!("SELECT COUNT(*) FROM s3_alert_deliveries d WHERE {}", filter.sql);
    let total = tx.count(&count, &filter.args).await?;
    let sql = format!("SELECT d.* FROM s3_alert_deliveries d WHERE {} ORDER BY d.id DESC{}", filter.sql, window.sql());
    let mut deliveries = Vec::new();
    for row in tx.rows(&sql, &filter.args).await? {
        let finished_at = row.opt_time("finished_at")?;
        deliveries.push(Delivery {
            delivery_id: row.int("id")?,
            alert_id: row.opt_int("alert_id")?,
            rule_id: row.opt_int("rule_id")?,
            event: row.text("event")?,
            channel: row.word("channel", AlertChannel::of_word)?,
            target: row.text("target")?,
            delivery_status: row.text("status")?,
            attempts: row.int("attempts")?,
            created_at: time_text(row.time("created_at")?),
            next_attempt_at: if finished_at.is_some() { None } else { Some(time_text(row.time("next_attempt_at")?)) },
            finished_at: finished_at.map(time_text),
            answer: row.opt_text("answer")?,
        });
    }
    Answer::ok(Deliveries { deliveries, total, limit: window.limit, offset: window.offset })
}

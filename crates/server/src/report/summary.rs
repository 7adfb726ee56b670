//! The mail of every morning: what is not safe, what failed, who is silent.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use serde_json::{Value as Json, json};

use super::page::words;
use crate::App;
use crate::access::{Filter, Scope};
use crate::alerts::record::Message;
use crate::alerts::text::{Text, escape, line};
use crate::args;
use crate::client_api::{agents, vms};
use crate::clock::after;
use crate::failure::Failure;
use crate::store::{Row, Tx};

/// VMs that a mail names.
const WORST: usize = 20;

/// The day whose summary is due: today from that hour on, before it yesterday. None where it was sent.
pub fn due(last: Option<Date>, hour: i64, zone: &TimeZone, now: Timestamp) -> Option<Date> {
    let local = zone.to_datetime(now);
    let day = if i64::from(local.hour()) >= hour { local.date() } else { local.date().checked_sub(1.day()).ok()? };
    // After a time of silence one mail, not one for each day; a clock that was set back sends nothing again.
    last.is_none_or(|last| last < day).then_some(day)
}

/// Queues every summary that is due.
pub async fn queue_due(app: &App, now: Timestamp) -> Result<(), Failure> {
    let sql = "SELECT s.* FROM s3_report_schedules s JOIN s3_clients c ON c.id = s.client_id \
               WHERE s.is_enabled = 1 AND c.status = 'active'";
    for row in app.db.read().await?.rows(sql, args![]).await? {
        let zone = TimeZone::get(&row.text("timezone")?).unwrap_or(TimeZone::UTC);
        let last = row.opt_text("last_day")?.and_then(|day| day.parse().ok());
        let Some(day) = due(last, row.int("hour")?, &zone, now) else { continue };
        let mut tx = app.db.write().await?;
        let day = day.to_string();
        let condition = "id = ? AND (last_day IS NULL OR last_day < ?)";
        let columns = [("last_day", day.clone().into()), ("updated_at", now.into())];
        // Whoever sets the day sends its mail; both or neither.
        if tx.update("s3_report_schedules", &columns, condition, args![row.int("id")?, &day]).await? == 1 {
            queue(&mut tx, &row, &day, now).await?;
        }
        tx.commit().await?;
    }
    Ok(())
}

async fn queue(tx: &mut Tx, row: &Row, day: &str, now: Timestamp) -> Result<(), Failure> {
    let scope = Scope { client: row.int("client_id")?, tenant: row.opt_int("tenant_id")? };
    let (payload, is_wrong) = gather(tx, scope, day, now).await?;
    if row.flag("only_if_wrong")? && !is_wrong {
        return Ok(());
    }
    let target = row.text("recipients")?;
    let message = Message {
        client: scope.client,
        tenant: scope.tenant,
        alert: None,
        rule: None,
        event: "summary",
        episode: 0,
        key: format!("summary-{}-{day}", row.int("id")?),
        channel: "mail",
        target: &target,
        secret: None,
        payload,
        goes_out: now,
    };
    message.queue(tx, now).await?;
    Ok(())
}

/// What it says, and whether anything is wrong.
async fn gather(tx: &mut Tx, scope: Scope, day: &str, now: Timestamp) -> Result<(Json, bool), Failure> {
    let all = Filter::within(scope, "s");
    let states = vms::states(tx, &all).await?;
    let worst = format!(
        "{} WHERE {} AND s.severity < 6 ORDER BY s.severity, s.vm_name LIMIT {}",
        vms::SELECT,
        all.sql,
        WORST + 1
    );
    let mut named = Vec::new();
    for row in tx.rows(&worst, &all.args).await? {
        named.push(json!({
            "vm_name": row.text("vm_name")?,
            "hostname": row.opt_text("hostname")?,
            "state": row.text("state")?,
            "reason": row.text("reason")?,
        }));
    }
    let filter = Filter::within(scope, "r").and("r.created_at >= ?", after(now, -86_400));
    let sql =
        format!("SELECT r.status, COUNT(*) AS runs FROM s3_cloudbackup_runs r WHERE {} GROUP BY r.status", filter.sql);
    let mut runs = control_api::Object::new();
    for row in tx.rows(&sql, &filter.args).await? {
        runs.insert(row.text("status")?, json!(row.int("runs")?));
    }
    let filter = Filter::within(scope, "a")
        .and_sql("a.status = 'active'")
        .and("(a.last_seen_at IS NULL OR a.last_seen_at <= ?)", after(now, -agents::ONLINE_SECS));
    let sql =
        format!("SELECT a.hostname FROM s3_cloudbackup_agents a WHERE {} ORDER BY a.hostname LIMIT 20", filter.sql);
    let mut silent = Vec::new();
    for row in tx.rows(&sql, &filter.args).await? {
        silent.push(json!(row.opt_text("hostname")?));
    }
    let filter = Filter::within(scope, "l").and_sql("l.state <> 'resolved'");
    let sql = format!("SELECT COUNT(*) FROM s3_alerts l WHERE {}", filter.sql);
    let alerts = tx.count(&sql, &filter.args).await?;
    let has_failed = ["failed", "partial_success"].iter().any(|status| runs.contains_key(*status));
    let is_wrong = !named.is_empty() || !silent.is_empty() || alerts > 0 || has_failed;
    let payload = json!({
        "day": day, "states": states, "vms": named, "runs_last_24h": runs, "silent_hosts": silent, "open_alerts": alerts,
    });
    Ok((payload, is_wrong))
}

/// The summary as a mail.
pub fn text(payload: &Json, server: &str) -> Text {
    let day = payload["day"].as_str().unwrap_or_default();
    let empty = Vec::new();
    let vms = payload["vms"].as_array().unwrap_or(&empty);
    let counts = |value: &Json| -> Vec<String> {
        let counts = value.as_object().into_iter().flatten();
        let counts = counts.filter(|(_, count)| count.as_i64().is_some_and(|count| count > 0));
        counts.map(|(word, count)| format!("{count} {}", words(word))).collect()
    };
    let listed = |parts: Vec<String>| if parts.is_empty() { "none".to_owned() } else { parts.join(", ") };
    let subject = match vms.len() {
        0 => format!("[e3] {day}: all VMs are safe"),
        1 => format!("[e3] {day}: one VM is not safe"),
        count if count > WORST => format!("[e3] {day}: more than {WORST} VMs are not safe"),
        count => format!("[e3] {day}: {count} VMs are not safe"),
    };
    let mut lines = vec![
        format!("VMs: {}", listed(counts(&payload["states"]))),
        format!("Runs of the last 24 hours: {}", listed(counts(&payload["runs_last_24h"]))),
        format!("Open alerts: {}", payload["open_alerts"]),
    ];
    let silent = payload["silent_hosts"].as_array().unwrap_or(&empty);
    if !silent.is_empty() {
        let names = silent.iter().map(|name| line(name.as_str().unwrap_or("?"), 100)).collect();
        lines.push(format!("Silent hosts: {}", listed(names)));
    }
    for vm in vms.iter().take(WORST) {
        let text = |name: &str| line(vm[name].as_str().unwrap_or("–"), 200);
        lines.push(format!(
            "{} on {}: {}: {}",
            text("vm_name"),
            text("hostname"),
            words(&text("state")),
            text("reason")
        ));
    }
    if vms.len() > WORST {
        lines.push("and more".into());
    }
    lines.push(server.to_owned());
    let html: Vec<String> = lines.iter().map(|line| format!("<p>{}</p>", escape(line))).collect();
    Text { subject, plain: lines.join("\n\n") + "\n", html: html.concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_due_once_a_day_by_the_wall_clock() {
        let zone = TimeZone::get("Europe/Berlin").expect("zone");
        for (case, last, now, expected) in [
            ("before the hour of the first day", None, "2026-11-27T05:59:00Z", Some("2026-11-26")),
            ("at the hour", Some("2026-11-26"), "2026-11-27T06:00:00Z", Some("2026-11-27")),
            ("before it", Some("2026-11-26"), "2026-11-27T05:59:59Z", None),
            ("sent", Some("2026-11-27"), "2026-11-27T23:00:00Z", None),
            ("next day, before the hour", Some("2026-11-27"), "2026-11-28T05:00:00Z", None),
            ("in summer an hour earlier", Some("2026-07-01"), "2026-07-02T05:00:00Z", Some("2026-07-02")),
            ("after days of silence: one", Some("2026-11-20"), "2026-11-27T06:00:00Z", Some("2026-11-27")),
            ("a clock set back", Some("2026-11-27"), "2026-11-25T12:00:00Z", None),
        ] {
            let last = last.map(|day| day.parse().expect("day"));
            let is = due(last, 7, &zone, now.parse().expect("time")).map(|day| day.to_string());
            assert_eq!(is.as_deref(), expected, "{case}");
        }
    }

    #[test]
    fn a_summary_names_what_is_not_safe() {
        let vm = json!({"vm_name": "<b>\r\nDC01", "hostname": "HV01", "state": "at_risk", "reason": "newest point is 60 h old"});
        let payload = json!({
            "day": "2026-11-27", "states": {"at_risk": 1, "late": 0, "protected": 3}, "vms": [vm],
            "runs_last_24h": {"failed": 1}, "silent_hosts": ["HV02"], "open_alerts": 2,
        });
        let text = text(&payload, "https://backup.example.com");
        assert_eq!(text.subject, "[e3] 2026-11-27: one VM is not safe");
        for part in [
            "1 at risk, 3 protected",
            "1 failed",
            "Silent hosts: HV02",
            "<b>  DC01 on HV01: at risk: newest",
            "Open alerts: 2",
        ] {
            assert!(text.plain.contains(part), "{part} in {}", text.plain);
        }
        assert!(text.html.contains("&lt;b&gt;") && !text.html.contains("<b>"), "{}", text.html);
    }
}

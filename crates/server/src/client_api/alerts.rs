//! Alerts as people see and acknowledge them (console 3.14, 9).

use std::collections::BTreeMap;

use control_api::alert::{AckAlerts, AckedAlerts, Alert, AlertChange, AlertFilter, Alerts};
use control_api::words::{AlertKind, AlertState};
use jiff::Timestamp;
use serde_json::json;

use super::{Window, own_row};
use crate::access::Filter;
use crate::access::audit::{self, Entry};
use crate::alerts::record;
use crate::args;
use crate::changes;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::store::{Row, Tx, Value, time_text};

/// So many are acknowledged with one call.
const MOST: usize = 200;

/// `cloudbackup_alerts.php`: the worst first, then the newest.
pub async fn list(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: AlertFilter = call.read()?;
    let window = Window::new(asked.limit, asked.offset)?;
    let mut filter = Filter::within(call.scope()?, "l");
    filter = match (asked.alert_id, asked.states.is_empty()) {
        (Some(id), _) => filter.and("l.id = ?", id),
        (None, true) => filter.and_sql("l.state <> 'resolved'"),
        (None, false) => filter.and_in("l.state", asked.states.iter().map(|state| state.word())),
    };
    if !asked.kinds.is_empty() {
        filter = filter.and_in("l.kind", asked.kinds.iter().map(|kind| kind.word()));
    }
    if let Some(most) = asked.max_severity {
        filter = filter.and("l.severity <= ?", most);
    }
    if let Some(tenant) = asked.tenant_id {
        filter = filter.and("l.tenant_id = ?", tenant);
    }
    let mut tx = call.app.db.read().await?;
    let total = tx.count(&format!("SELECT COUNT(*) FROM s3_alerts l WHERE {}", filter.sql), &filter.args).await?;
    let sql = format!(
        "SELECT l.* FROM s3_alerts l WHERE {} ORDER BY l.severity, l.opened_at DESC, l.id DESC{}",
        filter.sql,
        window.sql()
    );
    let rows = tx.rows(&sql, &filter.args).await?;
    if asked.alert_id.is_some() && rows.is_empty() {
        return Err(Code::NotFound.into());
    }
    let ids: Vec<i64> = rows.iter().map(|row| row.int("id")).collect::<Result<_, _>>()?;
    let delivered = record::delivered(&mut tx, &ids).await?;
    let history = match (asked.alert_id, ids.first()) {
        (Some(_), Some(id)) => history(&mut tx, *id).await?,
        _ => Vec::new(),
    };
    let alerts = rows.iter().map(|row| on_wire(row, &delivered)).collect::<Result<_, _>>()?;
    Answer::ok(Alerts { alerts, history, total, limit: window.limit, offset: window.offset })
}

fn on_wire(row: &Row, delivered: &BTreeMap<i64, i64>) -> Result<Alert, Failure> {
    let time = |name: &str| -> Result<Option<String>, Failure> { Ok(row.opt_time(name)?.map(time_text)) };
    let id = row.int("id")?;
    Ok(Alert {
        alert_id: id,
        tenant_id: row.opt_int("tenant_id")?,
        kind: row.word("kind", AlertKind::of_word)?,
        subject_type: row.text("subject_type")?,
        subject_id: row.text("subject_id")?,
        subject_name: row.text("subject_name")?,
        state: row.word("state", AlertState::of_word)?,
        severity: row.int("severity")?,
        title: row.text("title")?,
        reason: row.text("reason")?,
        episode: row.int("episode")?,
        opened_at: time_text(row.time("opened_at")?),
        resolved_at: time("resolved_at")?,
        folded: row.int("flaps")?,
        acknowledged_by: row.opt_int("acknowledged_by")?,
        acknowledged_at: time("acknowledged_at")?,
        acknowledged_until: time("acknowledged_until")?,
        note: row.opt_text("note")?,
        delivered: delivered.get(&id).copied().unwrap_or(0),
    })
}

/// What happened to an alert lately, newest first.
async fn history(tx: &mut Tx, id: i64) -> Result<Vec<AlertChange>, Failure> {
    let sql = "SELECT * FROM s3_alert_history WHERE alert_id = ? ORDER BY id DESC LIMIT 200";
    let rows = tx.rows(sql, args![id]).await?;
    let change = |row: &Row| -> Result<AlertChange, Failure> {
        Ok(AlertChange {
            at: time_text(row.time("created_at")?),
            what: row.text("what")?,
            severity: row.int("severity")?,
            reason: row.text("reason")?,
            by_user: row.opt_int("by_user")?,
        })
    };
    rows.iter().map(change).collect()
}

/// `cloudbackup_alert_ack.php`: all of them, or none.
pub async fn acknowledge(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: AckAlerts = call.read()?;
    if asked.alert_ids.is_empty() || asked.alert_ids.len() > MOST {
        return Err(Failure::invalid("alert_ids", "names 1 to 200 alerts"));
    }
    if asked.note.as_ref().is_some_and(|note| note.chars().count() > 1000) {
        return Err(Failure::invalid("note", "longer than 1,000 characters"));
    }
    let until = asked.until.as_ref().map(|until| until.parse::<Timestamp>());
    let until = until.transpose().map_err(|_| Failure::invalid("until", "no RFC 3339 time"))?;
    if until.is_some_and(|until| until <= now || until > after(now, 90 * 86_400)) {
        return Err(Failure::invalid("until", "is within the next 90 days"));
    }
    let mut tx = call.app.db.write().await?;
    let mut changed = 0;
    for id in &asked.alert_ids {
        let row = own_row(&mut tx, person.scope, "s3_alerts", *id, Code::NotFound).await?;
        let state = row.word("state", AlertState::of_word)?;
        let is_wanted = match state {
            AlertState::Open => !asked.reopen,
            AlertState::Acknowledged => true,
            AlertState::Resolved => false,
        };
        if !is_wanted {
            continue;
        }
        let (what, columns): (&str, [(&str, Value); 6]) = if asked.reopen {
            ("reopened", columns_of(AlertState::Open, None, None, None, None, now))
        } else {
            let note = asked.note.clone();
            let by = Some(person.user);
            ("acknowledged", columns_of(AlertState::Acknowledged, by, Some(now), until, note, now))
        };
        tx.update("s3_alerts", &columns, "id = ?", args![*id]).await?;
        record::history(&mut tx, &row, what, Some(person.user), now).await?;
        if !asked.reopen {
            record::withdraw(&mut tx, *id, now).await?;
        }
        let entry = Entry {
            action: "alert.acknowledge",
            entity: "alert",
            id: id.to_string(),
            before: Some(json!({ "state": state.word() })),
            after: Some(json!({ "reopen": asked.reopen, "until": asked.until, "note": asked.note })),
        };
        audit::record(&mut tx, &call.actor(), now, entry).await?;
        changes::touch(&mut tx, person.scope.client, row.opt_int("tenant_id")?, "alerts", now).await?;
        changed += 1;
    }
    tx.commit().await?;
    Answer::ok(AckedAlerts { changed })
}

fn columns_of(
    state: AlertState,
    by: Option<i64>,
    at: Option<Timestamp>,
    until: Option<Timestamp>,
    note: Option<String>,
    now: Timestamp,
) -> [(&'static str, Value); 6] {
    [
        ("state", state.word().into()),
        ("acknowledged_by", by.into()),
        ("acknowledged_at", at.into()),
        ("acknowledged_until", until.into()),
        ("note", note.into()),
        ("updated_at", now.into()),
    ]
}

//! Runs that the server ends: silent ones, cancelled ones, those that cannot begin (spec control-api 3.3, 3.4).

use control_api::words::RunStatus;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::transition::{By, may};
use super::{IN_FLIGHT, SILENT_SECS, events, status};
use crate::App;
use crate::args;
use crate::changes;
use crate::failure::{Code, Failure};
use crate::store::{Row, Tx, Value};

/// Ends a run as failed, with a code and a summary.
pub async fn fail(tx: &mut Tx, run: &Row, code: &str, summary: &str, now: Timestamp) -> Result<bool, Failure> {
    let columns = [
        ("status", RunStatus::Failed.word().into()),
        ("error_code", code.into()),
        ("error_summary", summary.into()),
        ("finished_at", now.into()),
        ("claim_id", Value::Null),
        ("lease_until", Value::Null),
        ("updated_at", now.into()),
    ];
    let condition = format!("id = ? AND status IN {IN_FLIGHT}");
    if tx.update("s3_cloudbackup_runs", &columns, &condition, args![run.int("id")?]).await? == 0 {
        return Ok(false);
    }
    let params = json!({ "error": summary, "error_code": code });
    events::write(tx, run.int("id")?, "error", "error", "COMPLETED_FAILED", params, now).await?;
    let (client, tenant) = (run.int("client_id")?, run.opt_int("tenant_id")?);
    changes::touch(tx, client, tenant, &format!("run-{}", run.int("id")?), now).await?;
    Ok(true)
}

/// Ends every run that gave no sign for twelve minutes; how many.
pub async fn fail_silent(app: &App, now: Timestamp) -> Result<u64, Failure> {
    let since = now.saturating_sub(SignedDuration::from_secs(SILENT_SECS)).unwrap_or(now);
    let sql = "SELECT * FROM s3_cloudbackup_runs WHERE status IN ('starting', 'running') AND last_heartbeat_at < ? \
               ORDER BY id LIMIT 100";
    let silent = app.db.read().await?.rows(sql, args![since]).await?;
    let mut ended = 0;
    for run in silent {
        let mut tx = app.db.write().await?;
        let lock = format!(
            "SELECT * FROM s3_cloudbackup_runs WHERE id = ? AND status IN ('starting', 'running') \
             AND last_heartbeat_at < ?{}",
            tx.for_update()
        );
        if let Some(run) = tx.row(&lock, args![run.int("id")?, since]).await? {
            let summary = "The agent gave no sign for twelve minutes";
            ended += u64::from(fail(&mut tx, &run, "AGENT_OFFLINE", summary, now).await?);
        }
        tx.commit().await?;
    }
    Ok(ended)
}

/// Asks for the end of a run, or ends it: a queued one at once, any other with `force`.
///
/// The status afterwards, and whether the agent still has to answer.
pub async fn cancel(
    tx: &mut Tx,
    run: &Row,
    force: bool,
    by: Option<i64>,
    now: Timestamp,
) -> Result<(RunStatus, bool), Failure> {
    let (id, from) = (run.int("id")?, status(run)?);
    if from.is_terminal() {
        return Err(Failure::with(Code::InvalidTransition, format!("The run is over: {from}")));
    }
    let mut columns: Vec<(&str, Value)> = vec![
        ("cancel_requested", true.into()),
        ("cancel_requested_by", by.into()),
        ("cancel_requested_at", now.into()),
        ("updated_at", now.into()),
    ];
    let is_over = may(from, RunStatus::Cancelled, if force { By::Force } else { By::Person });
    if is_over {
        columns.push(("status", RunStatus::Cancelled.word().into()));
        columns.push(("finished_at", now.into()));
        columns.push(("claim_id", Value::Null));
        columns.push(("lease_until", Value::Null));
    }
    tx.update("s3_cloudbackup_runs", &columns, "id = ?", args![id]).await?;
    let message_id = if is_over { "CANCELLED" } else { "CANCEL_REQUESTED" };
    events::write(tx, id, "cancelled", "warn", message_id, json!({}), now).await?;
    changes::touch(tx, run.int("client_id")?, run.opt_int("tenant_id")?, &format!("run-{id}"), now).await?;
    Ok(if is_over { (RunStatus::Cancelled, false) } else { (from, true) })
}

//! What an agent reports of its run (spec control-api 2.3).

use std::collections::BTreeMap;

use control_api::Object;
use control_api::progress::{Figures, UpdateRun, UpdateRunAnswer};
use control_api::words::RunStatus;
use jiff::Timestamp;
use serde_json::{Value as Json, json};

use super::transition::{By, may};
use super::{LEASE_SECS, commit, end, events, follow, of_agent_locked, status};
use crate::App;
use crate::access::agent::Agent;
use crate::args;
use crate::changes;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::store::{Row, Tx, Value};

/// Fails unless the call comes with the claim that the run has now.
///
/// An agent without the ability `claim` sends none and is believed; one that has it never speaks without.
pub fn check_claim(run: &Row, agent: &Agent, in_body: Option<&str>) -> Result<(), Failure> {
    let given = agent.claim.as_deref().or(in_body);
    let current = run.opt_text("claim_id")?;
    match given {
        Some(given) if Some(given) == current.as_deref() => Ok(()),
        None if !agent.has("claim") => Ok(()),
        _ => Err(Code::StaleClaim.into()),
    }
}

/// Takes one report; results, status and figures in one transaction.
pub async fn apply(app: &App, agent: &Agent, update: &UpdateRun) -> Result<UpdateRunAnswer, Failure> {
    let now = app.clock.now();
    let mut tx = app.db.write().await?;
    let run = of_agent_locked(&mut tx, agent.id, &update.run_id).await?;
    let id = run.int("id")?;
    let from = status(&run)?;
    let mut answer = UpdateRunAnswer {
        run_status: from,
        cancel_requested: run.flag("cancel_requested")?,
        lease_seconds: LEASE_SECS,
        superseded: BTreeMap::new(),
        ignored: None,
    };
    if from.is_terminal() {
        answer.ignored = Some("terminal".into());
        return Ok(answer);
    }
    check_claim(&run, agent, update.claim_id.as_deref())?;
    if from == RunStatus::Queued {
        return Err(Failure::with(Code::InvalidTransition, "The run was not claimed"));
    }
    // A report that was overtaken says nothing any more; results are never old.
    if let Some(seq) = update.seq
        && seq <= run.int("seq")?
        && update.hyperv_results.is_empty()
    {
        answer.ignored = Some("stale_seq".into());
        return Ok(answer);
    }

    for result in &update.hyperv_results {
        let committed = commit::record(&mut tx, &run, result, now).await?;
        if !committed.superseded.is_empty() {
            answer.superseded.insert(result.vm_id.to_string(), committed.superseded);
        }
    }

    let wanted = update.status.unwrap_or(RunStatus::Running);
    let is_unable = !wanted.is_terminal() && update.error_summary.as_ref().is_some_and(|text| !text.is_empty());
    if is_unable && !agent.has("claim") {
        // An older agent that cannot begin says so without a status (2.3).
        let summary = cut(update.error_summary.as_deref().unwrap_or_default(), 700);
        end::fail(&mut tx, &run, "AGENT_START_FAILURE", &summary, now).await?;
        tx.commit().await?;
        answer.run_status = RunStatus::Failed;
        return Ok(answer);
    }
    let is_cancel_done = answer.cancel_requested && (update.cancel_ack || !agent.has("claim"));
    let to = if wanted == RunStatus::Queued { RunStatus::Running } else { wanted };
    if !may(from, to, By::Agent { is_cancel_done }) {
        let text = format!("The run cannot go from {from} to {to}");
        return Err(Failure::with(Code::InvalidTransition, text));
    }
    let to = if to.is_terminal() {
        follow::moved(&mut tx, &run, now).await?;
        weigh(&mut tx, id, to).await?
    } else {
        to
    };

    let mut columns = figures(&run, &update.figures, to)?;
    columns.extend([
        ("status", Value::from(to.word())),
        ("last_heartbeat_at", now.into()),
        ("lease_until", after(now, LEASE_SECS).into()),
        ("updated_at", now.into()),
    ]);
    if let Some(seq) = update.seq {
        columns.push(("seq", seq.max(run.int("seq")?).into()));
    }
    if from == RunStatus::Starting && to != RunStatus::Starting && run.opt_time("started_at")?.is_none() {
        columns.push(("started_at", now.into()));
    }
    if to.is_terminal() {
        columns.extend([("finished_at", now.into()), ("lease_until", Value::Null)]);
        columns.retain(|(name, value)| *name != "lease_until" || *value == Value::Null);
    }
    texts(&mut columns, &run, update)?;
    tx.update("s3_cloudbackup_runs", &columns, "id = ?", args![id]).await?;
    if to.is_terminal() {
        let (message_id, level) = match to {
            RunStatus::Success => ("COMPLETED_SUCCESS", "info"),
            RunStatus::Warning => ("COMPLETED_WARNING", "warn"),
            RunStatus::Cancelled => ("CANCELLED", "warn"),
            _ => ("COMPLETED_FAILED", "error"),
        };
        events::write(&mut tx, id, "summary", level, message_id, json!({ "status": to.word() }), now).await?;
    }
    let (client, tenant) = (run.int("client_id")?, run.opt_int("tenant_id")?);
    changes::touch(&mut tx, client, tenant, &format!("run-{id}"), now).await?;
    if to.is_terminal() {
        changes::touch(&mut tx, client, tenant, "runs", now).await?;
    }
    tx.commit().await?;
    answer.run_status = to;
    Ok(answer)
}

/// The word for how a run ended (3.1), from what its VMs came to: an agent cannot call a run green that is not.
async fn weigh(tx: &mut Tx, run: i64, said: RunStatus) -> Result<RunStatus, Failure> {
    let sql = "SELECT r.state, p.has_warnings FROM s3_cloudbackup_run_vm_results r \
               LEFT JOIN s3_hyperv_backup_points p ON p.id = r.backup_point_id WHERE r.run_id = ?";
    let (mut good, mut bad, mut warned) = (0, 0, false);
    for row in tx.rows(sql, args![run]).await? {
        match row.text("state")?.as_str() {
            "committed" => good += 1,
            "moved" => {}
            _ => bad += 1,
        }
        warned |= row.flag("has_warnings")?;
    }
    Ok(outcome(said, good, bad, warned))
}

/// What an agent said, corrected by what is recorded: counts of VMs stored and failed, and whether any has a warning.
fn outcome(said: RunStatus, good: usize, bad: usize, warned: bool) -> RunStatus {
    match said {
        RunStatus::Cancelled => RunStatus::Cancelled,
        RunStatus::Success | RunStatus::Warning | RunStatus::PartialSuccess if bad > 0 => {
            if good > 0 {
                RunStatus::PartialSuccess
            } else {
                RunStatus::Failed
            }
        }
        RunStatus::Failed if good > 0 && bad > 0 => RunStatus::PartialSuccess,
        RunStatus::Success if warned => RunStatus::Warning,
        said => said,
    }
}

/// The columns of what is said of numbers: missing means unchanged, `null` unknown (0.4).
fn figures(run: &Row, figures: &Figures, to: RunStatus) -> Result<Vec<(&'static str, Value)>, Failure> {
    let mut columns: Vec<(&'static str, Value)> = Vec::new();
    for (name, value) in [
        ("bytes_transferred", figures.bytes_transferred),
        ("bytes_processed", figures.bytes_processed),
        ("bytes_total", figures.bytes_total),
        ("objects_transferred", figures.objects_transferred),
        ("objects_total", figures.objects_total),
        ("speed_bytes_per_sec", figures.speed_bytes_per_sec),
        ("eta_seconds", figures.eta_seconds),
    ] {
        if let Some(value) = value {
            if value.is_some_and(|value| value < 0) {
                return Err(Failure::invalid(name, "below zero"));
            }
            columns.push((name, value.into()));
        }
    }
    if let Some(item) = &figures.current_item {
        columns.push(("current_item", item.as_ref().map(|item| cut(item, 1024)).into()));
    }
    // Never falls within an attempt, and is whole only at the end (3.5).
    let before = run.opt_real("progress_pct")?.unwrap_or(0.0);
    let said = figures.progress_pct.flatten().filter(|pct| pct.is_finite()).unwrap_or(before);
    let pct = if to.is_terminal() { 100.0 } else { said.clamp(0.0, 99.9).max(before.min(99.9)) };
    columns.push(("progress_pct", pct.into()));
    Ok(columns)
}

fn texts(columns: &mut Vec<(&'static str, Value)>, run: &Row, update: &UpdateRun) -> Result<(), Failure> {
    for (name, text, most) in [
        ("error_summary", &update.error_summary, 700),
        ("error_code", &update.error_code, 64),
        ("log_excerpt", &update.log_excerpt, 65_536),
        ("log_ref", &update.log_ref.clone().or(update.manifest_id.clone()), 255),
        ("validation_status", &update.validation_status, 32),
        ("validation_log_excerpt", &update.validation_log_excerpt, 65_536),
    ] {
        if let Some(text) = text {
            columns.push((name, cut(text, most).into()));
        }
    }
    if let Some(progress) = &update.progress_json {
        columns.push(("progress_json", json!(progress).into()));
    }
    if let Some(stats) = &update.stats_json {
        let mut merged: Json = run.opt_json("stats_json")?.unwrap_or_else(|| json!({}));
        merge(&mut merged, stats);
        columns.push(("stats_json", merged.into()));
    }
    if !update.disk_manifests_json.is_empty() {
        columns.push(("disk_manifests_json", json!(update.disk_manifests_json).into()));
    }
    for (name, time) in [("agent_started_at", &update.started_at), ("agent_finished_at", &update.finished_at)] {
        if let Some(time) = time {
            let time: Timestamp = time.parse().map_err(|_| Failure::invalid(name, "no RFC 3339 time"))?;
            columns.push((name, time.into()));
        }
    }
    Ok(())
}

/// Puts every value of `from` into `into`, objects into objects.
fn merge(into: &mut Json, from: &Object) {
    for (key, value) in from {
        match (&mut into[key.as_str()], value) {
            (into @ Json::Object(_), Json::Object(from)) => merge(into, from),
            (into, value) => *into = value.clone(),
        }
    }
}

/// At most so many characters.
fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_called_what_its_vms_came_to() {
        use RunStatus::{Cancelled, Failed, PartialSuccess, Success, Warning};
        for (said, good, bad, warned, expected) in [
            (Success, 2, 0, false, Success),
            (Success, 2, 0, true, Warning),
            (Success, 1, 1, false, PartialSuccess),
            (Success, 0, 2, false, Failed),
            (Warning, 2, 0, false, Warning),
            (Failed, 1, 1, false, PartialSuccess),
            (Failed, 0, 1, false, Failed),
            (Failed, 2, 0, false, Failed),
            (Cancelled, 1, 1, true, Cancelled),
            (Success, 0, 0, false, Success),
        ] {
            assert_eq!(outcome(said, good, bad, warned), expected, "{said}, {good} stored, {bad} failed, {warned}");
        }
    }

    #[test]
    fn stats_are_merged_into_each_other() {
        let mut stats = json!({"a": {"x": 1, "y": 2}, "b": 3});
        merge(&mut stats, json!({"a": {"y": 5}, "c": {"z": 1}, "b": {"q": 0}}).as_object().expect("object"));
        assert_eq!(stats, json!({"a": {"x": 1, "y": 5}, "b": {"q": 0}, "c": {"z": 1}}));
    }
}

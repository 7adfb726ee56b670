//! What a command carries beside its own state: the run of a restore, the verification of a point (spec control-api 5.5,
//! 5.7).
//!
//! A restore travels as a command. Its run is claimed with the command's delivery, under the lease as its claim, and so
//! every rule of runs holds for it: who got the command again makes the former one stale.

use std::collections::BTreeSet;

use control_api::words::{CommandStatus, RunStatus, VerifyStatus};
use jiff::Timestamp;
use serde_json::Value as Json;

use crate::access::agent::Agent;
use crate::args;
use crate::changes;
use crate::clock::after;
use crate::failure::Failure;
use crate::runs::transition::{By, may};
use crate::runs::{LEASE_SECS, end as runs_end, status};
use crate::store::{Row, Tx, Value};

/// The restore run that a command carries, locked.
async fn run_of(tx: &mut Tx, command: &Row) -> Result<Option<Row>, Failure> {
    let Some(run) = command.opt_int("run_id")?.filter(|_| is_restore(command)) else { return Ok(None) };
    let sql = format!("SELECT * FROM s3_cloudbackup_runs WHERE id = ?{}", tx.for_update());
    Ok(tx.row(&sql, args![run]).await?)
}

fn is_restore(command: &Row) -> bool {
    command.text("type").is_ok_and(|kind| kind == "hyperv_restore")
}

/// Points that live commands name: one by itself, or several in the list of a restore.
pub async fn named_points(tx: &mut Tx, condition: &str, args: &[Value]) -> Result<BTreeSet<i64>, Failure> {
    let sql = format!(
        "SELECT point_id, payload_json FROM s3_cloudbackup_run_commands WHERE point_id IS NOT NULL \
         AND status IN ('pending', 'processing') AND {condition}"
    );
    let mut points = BTreeSet::new();
    for command in tx.rows(&sql, args).await? {
        points.extend(command.opt_int("point_id")?);
        let payload: Json = command.opt_json("payload_json")?.unwrap_or_default();
        let vms = payload["vms"].as_array().into_iter().flatten();
        points.extend(vms.filter_map(|vm| vm["backup_point_id"].as_i64()));
    }
    Ok(points)
}

/// A command is delivered: its run is claimed by it. False for a run that is over: then the command goes nowhere.
pub async fn begin(
    tx: &mut Tx,
    command: &Row,
    agent: &Agent,
    lease: &str,
    attempt: i64,
    now: Timestamp,
) -> Result<bool, Failure> {
    let Some(run) = run_of(tx, command).await? else { return Ok(true) };
    if !may(status(&run)?, RunStatus::Starting, By::Claim) {
        let columns = [
            ("status", CommandStatus::Cancelled.word().into()),
            ("result_message", "the run is over".into()),
            ("processed_at", now.into()),
            ("lease_until", Value::Null),
        ];
        tx.update("s3_cloudbackup_run_commands", &columns, "id = ?", args![command.int("id")?]).await?;
        return Ok(false);
    }
    let columns = [
        ("status", RunStatus::Starting.word().into()),
        ("claim_id", lease.into()),
        ("claim_boot_id", agent.boot.clone().into()),
        ("attempt", attempt.into()),
        ("seq", 0_i64.into()),
        ("claimed_at", now.into()),
        ("lease_until", after(now, LEASE_SECS).into()),
        ("last_heartbeat_at", now.into()),
        ("progress_pct", Value::Real(0.0)),
        ("updated_at", now.into()),
    ];
    tx.update("s3_cloudbackup_runs", &columns, "id = ?", args![run.int("id")?]).await?;
    touch(tx, &run, now).await?;
    Ok(true)
}

/// A command is done: a run of it that its agent did not end has failed, and a verification stands on its point.
pub async fn end(
    tx: &mut Tx,
    command: &Row,
    is: CommandStatus,
    message: Option<&str>,
    result: Option<&Json>,
    now: Timestamp,
) -> Result<(), Failure> {
    // An agent that ends its run does so before; one of the design document says only that the command is done.
    if let Some(run) = run_of(tx, command).await?
        && !status(&run)?.is_terminal()
    {
        if is == CommandStatus::Completed {
            let columns = [
                ("status", RunStatus::Success.word().into()),
                ("finished_at", now.into()),
                ("progress_pct", Value::Real(100.0)),
                ("lease_until", Value::Null),
                ("updated_at", now.into()),
            ];
            tx.update("s3_cloudbackup_runs", &columns, "id = ?", args![run.int("id")?]).await?;
            touch(tx, &run, now).await?;
        } else {
            let summary: String = message.unwrap_or("The agent could not restore").chars().take(700).collect();
            runs_end::fail(tx, &run, "RESTORE_FAILED", &summary, now).await?;
        }
    }
    if command.text("type")? == "verify_point"
        && let Some(result) = result
    {
        verified(tx, command, result, now).await?;
    }
    Ok(())
}

/// Commands that nobody will do any more: their runs have failed.
pub async fn give_up(tx: &mut Tx, reason: &str, condition: &str, now: Timestamp) -> Result<(), Failure> {
    let sql = format!("SELECT * FROM s3_cloudbackup_run_commands WHERE {condition} AND run_id IS NOT NULL");
    for command in tx.rows(&sql, args![now]).await? {
        if let Some(run) = run_of(tx, &command).await? {
            let summary = format!("No agent did the restore ({reason})");
            runs_end::fail(tx, &run, "AGENT_OFFLINE", &summary, now).await?;
        }
    }
    Ok(())
}

/// Keeps what a verification found (5.7): a damaged point is no base of the next backup any more.
async fn verified(tx: &mut Tx, command: &Row, result: &Json, now: Timestamp) -> Result<(), Failure> {
    let Some(point) = command.opt_int("point_id")? else { return Ok(()) };
    let payload: Json = command.opt_json("payload_json")?.unwrap_or_default();
    let found = result["status"].as_str().and_then(VerifyStatus::of_word).unwrap_or(VerifyStatus::Failed);
    let level: String = payload["level"].as_str().unwrap_or("structure").chars().take(16).collect();
    let columns = [
        ("verified_at", now.into()),
        ("verify_level", level.into()),
        ("verify_status", found.word().into()),
        ("verify_report_json", result.clone().into()),
    ];
    let condition = "id = ? AND deleted_at IS NULL";
    tx.update("s3_hyperv_backup_points", &columns, condition, args![point]).await?;
    if found == VerifyStatus::Damaged {
        let columns = [
            ("is_active", false.into()),
            ("invalidated_at", now.into()),
            ("invalid_reason", "verification found damage".into()),
        ];
        let condition = "backup_point_id = ? AND is_active = 1";
        tx.update("s3_hyperv_checkpoints", &columns, condition, args![point]).await?;
    }
    changes::touch(tx, command.int("client_id")?, command.opt_int("tenant_id")?, "vms", now).await
}

async fn touch(tx: &mut Tx, run: &Row, now: Timestamp) -> Result<(), Failure> {
    let (client, tenant) = (run.int("client_id")?, run.opt_int("tenant_id")?);
    changes::touch(tx, client, tenant, &format!("run-{}", run.int("id")?), now).await?;
    changes::touch(tx, client, tenant, "runs", now).await
}

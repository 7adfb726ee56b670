//! Handing a run to its agent (spec control-api 2.2, 3.3).
//!
//! One conditional update makes the claim, so that any number of instances may answer the same agent at once.

use control_api::words::{Engine, RunStatus};
use jiff::Timestamp;
use serde_json::json;

use super::transition::{By, may};
use super::{IS_BACKUP, LEASE_SECS, MAX_ATTEMPTS, end, events, status};
use crate::App;
use crate::access::agent::Agent;
use crate::args;
use crate::changes;
use crate::clock::after;
use crate::failure::Failure;
use crate::limits;
use crate::secret;
use crate::store::{Row, Tx, Value};

/// A run that an agent holds now.
#[derive(Debug)]
pub struct Claimed {
    /// The run's row, as it was before.
    pub run: Row,
    /// The claim.
    pub claim_id: String,
    /// From 1.
    pub attempt: i64,
    /// Whether it began before.
    pub resume: bool,
}

/// Claims the next run for `agent`, its own unfinished ones first; none if it has nothing to do.
pub async fn next(
    app: &App,
    agent: &Agent,
    engines: &[Engine],
    boot: Option<&str>,
    now: Timestamp,
) -> Result<Option<Claimed>, Failure> {
    let mut tx = app.db.write().await?;
    let claimed = match unfinished(&mut tx, agent, boot, now).await? {
        Some(claimed) => Some(claimed),
        None => queued(&mut tx, agent, engines, boot, now).await?,
    };
    tx.commit().await?;
    Ok(claimed)
}

/// A run that this agent began and lost: after a restart at once, else when its lease is over.
async fn unfinished(
    tx: &mut Tx,
    agent: &Agent,
    boot: Option<&str>,
    now: Timestamp,
) -> Result<Option<Claimed>, Failure> {
    let sql = format!(
        "SELECT * FROM s3_cloudbackup_runs WHERE agent_id = ? AND status IN ('starting', 'running') AND {IS_BACKUP} \
         ORDER BY created_at, id{}",
        tx.for_update_skipping()
    );
    for run in tx.rows(&sql, args![agent.id]).await? {
        let was_restarted = boot.is_some() && run.opt_text("claim_boot_id")?.as_deref() != boot;
        let is_over = run.opt_time("lease_until")?.is_none_or(|until| until <= now);
        if !was_restarted && !is_over {
            continue;
        }
        if run.int("attempt")? >= MAX_ATTEMPTS {
            end::fail(tx, &run, "RESUME_LIMIT", "The run began three times and never ended", now).await?;
            continue;
        }
        if let Some(claimed) = claim(tx, run, boot, now).await? {
            return Ok(Some(claimed));
        }
    }
    Ok(None)
}

async fn queued(
    tx: &mut Tx,
    agent: &Agent,
    engines: &[Engine],
    boot: Option<&str>,
    now: Timestamp,
) -> Result<Option<Claimed>, Failure> {
    let sql = format!(
        "SELECT * FROM s3_cloudbackup_runs WHERE agent_id = ? AND status = 'queued' AND cancel_requested = 0 \
         AND {IS_BACKUP} AND (not_before IS NULL OR not_before <= ?) \
         AND job_id IN (SELECT id FROM s3_cloudbackup_jobs WHERE status = 'active') \
         ORDER BY created_at, id LIMIT 5{}",
        tx.for_update_skipping()
    );
    let candidates = tx.rows(&sql, args![agent.id, now]).await?;
    if candidates.is_empty() {
        return Ok(None);
    }
    let limits = limits::of_client(tx, agent.client).await?;
    let running = "SELECT COUNT(*) FROM s3_cloudbackup_runs WHERE agent_id = ? AND status IN ('starting', 'running')";
    if tx.count(running, args![agent.id]).await? >= limits.runs_per_agent {
        return Ok(None);
    }
    for run in candidates {
        let engine = run.word("engine", Engine::of_word)?;
        if !engines.is_empty() && !engines.contains(&engine) {
            continue;
        }
        if let Some(repository) = run.opt_text("repository_id")? {
            // Locked, so that two agents do not both take the last place.
            let lock = format!("SELECT id FROM s3_cloudbackup_repositories WHERE repository_id = ?{}", tx.for_update());
            tx.row(&lock, args![&repository]).await?;
            let running = "SELECT COUNT(*) FROM s3_cloudbackup_runs WHERE repository_id = ? \
                           AND status IN ('starting', 'running')";
            if tx.count(running, args![&repository]).await? >= limits.runs_per_repository {
                continue;
            }
        }
        if let Some(claimed) = claim(tx, run, boot, now).await? {
            return Ok(Some(claimed));
        }
    }
    Ok(None)
}

async fn claim(tx: &mut Tx, run: Row, boot: Option<&str>, now: Timestamp) -> Result<Option<Claimed>, Failure> {
    let from = status(&run)?;
    if !may(from, RunStatus::Starting, By::Claim) {
        return Ok(None);
    }
    let (id, attempt, claim_id) = (run.int("id")?, run.int("attempt")? + 1, secret::id128()?);
    let columns = [
        ("status", RunStatus::Starting.word().into()),
        ("claim_id", claim_id.clone().into()),
        ("claim_boot_id", boot.into()),
        ("attempt", attempt.into()),
        ("seq", 0_i64.into()),
        ("claimed_at", now.into()),
        ("lease_until", after(now, LEASE_SECS).into()),
        ("last_heartbeat_at", now.into()),
        ("progress_pct", Value::Real(0.0)),
        ("updated_at", now.into()),
    ];
    // The status and attempt that were read: whoever comes second changes nothing.
    let condition = "id = ? AND status = ? AND attempt = ?";
    if tx.update("s3_cloudbackup_runs", &columns, condition, args![id, from.word(), attempt - 1]).await? == 0 {
        return Ok(None);
    }
    let resume = from != RunStatus::Queued;
    if resume {
        let params = json!({ "attempt": attempt });
        events::write(tx, id, "info", "warn", "RUN_RESUMED", params, now).await?;
    }
    changes::touch(tx, run.int("client_id")?, run.opt_int("tenant_id")?, &format!("run-{id}"), now).await?;
    Ok(Some(Claimed { run, claim_id, attempt, resume }))
}

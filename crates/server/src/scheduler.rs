//! What the server does by itself, on every instance at once: slots, silent runs, leases, protection states.
//!
//! Each piece of work is safe to do twice: a slot is a row with a unique key, and the rest are conditional updates.

use std::sync::Arc;
use std::time::{Duration, Instant};

use control_api::words::TriggerType;
use jiff::Timestamp;
use tokio::sync::watch;
use tracing::error;

use crate::App;
use crate::agent_api;
use crate::alerts;
use crate::args;
use crate::changes;
use crate::clock::after;
use crate::deletion;
use crate::failure::{Code, Failure};
use crate::jobs;
use crate::pruning;
use crate::report::summary;
use crate::runs::{self, NewRun, end};
use crate::schedule::{self, Outcome};
use crate::store::{Row, Tx, Value};
use crate::vm_status;

/// Protection states are computed anew after so many ticks.
const STATUS_TICKS: u32 = 15;
/// And rest so many times as long as they take, however many VMs there are: calls are answered meanwhile.
const STATUS_RESTS: u32 = 20;
/// But no longer than this.
const STATUS_LONGEST_REST: Duration = Duration::from_secs(5 * 60);

/// Works until it is stopped.
pub async fn run(app: Arc<App>, mut stopped: watch::Receiver<bool>) {
    let mut states_due = Instant::now();
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(app.settings.tick) => {}
        }
        let begun = Instant::now();
        let with_states = begun >= states_due;
        let done = tick(&app, with_states).await;
        if with_states {
            states_due = begun + rest_of_states(app.settings.tick, begun.elapsed(), done.is_ok());
        }
        if let Err(failure) = done {
            match failure.cause {
                Some(cause) => error!("scheduler: {cause}"),
                None => error!("scheduler: {}", failure.message),
            }
        }
    }
}

/// From one computation of the states to the next. What failed waited for somebody else, which is not what states take.
fn rest_of_states(tick: Duration, took: Duration, is_done: bool) -> Duration {
    let rest = if is_done { (took * STATUS_RESTS).min(STATUS_LONGEST_REST) } else { Duration::ZERO };
    rest.max(tick * STATUS_TICKS)
}

/// One look at everything that is due. Two instances that look at once may deadlock: then one looks again.
pub async fn tick(app: &App, with_states: bool) -> Result<(), Failure> {
    let mut tries = 0;
    loop {
        match look(app, with_states).await {
            Err(failure) if failure.is_transient() && tries < 5 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(20 * tries)).await;
            }
            done => return done,
        }
    }
}

async fn look(app: &App, with_states: bool) -> Result<(), Failure> {
    let now = app.clock.now();
    app.heard.write(app, now).await?;
    start_due(app, now).await?;
    end::fail_silent(app, now).await?;
    agent_api::commands::expire(app, now).await?;
    agent_api::repositories::expire(app, now).await?;
    deletion::tick(app, now).await?;
    if with_states {
        vm_status::refresh_all(app, now).await?;
        // After the states, which alerts are made of.
        alerts::evaluate_all(app, now).await?;
        alerts::check_chain(app, now).await?;
        summary::queue_due(app, now).await?;
        changes::prune(app, now).await?;
        pruning::tick(app, now).await?;
    }
    Ok(())
}

/// Queues the runs of every slot that has come.
async fn start_due(app: &App, now: Timestamp) -> Result<(), Failure> {
    let sql = "SELECT id FROM s3_cloudbackup_jobs WHERE status = 'active' AND next_run_at <= ? ORDER BY next_run_at \
               LIMIT 200";
    let due = app.db.read().await?.rows(sql, args![now]).await?;
    for job in due {
        let mut tx = app.db.write().await?;
        let lock = format!(
            "SELECT * FROM s3_cloudbackup_jobs WHERE id = ? AND status = 'active' AND next_run_at <= ?{}",
            tx.for_update_skipping()
        );
        // Another instance has it, or had it already.
        if let Some(job) = tx.row(&lock, args![job.int("id")?, now]).await? {
            start(app, &mut tx, &job, now).await?;
        }
        tx.commit().await?;
    }
    Ok(())
}

async fn start(app: &App, tx: &mut Tx, job: &Row, now: Timestamp) -> Result<(), Failure> {
    let (id, expected) = (job.int("id")?, job.time("next_run_at")?);
    let due = schedule::due(&jobs::plan_of(job)?, expected, now);
    for (slot, outcome) in due.slots {
        let (mut word, mut reason, mut run) = ("skipped", None, None);
        match outcome {
            Outcome::Skip(why) => reason = Some(why),
            Outcome::Run => {
                let known = "SELECT COUNT(*) FROM s3_schedule_slots WHERE job_id = ? AND slot_utc = ?";
                if tx.count(known, args![id, slot]).await? > 0 {
                    continue;
                }
                match expand(app, tx, job, slot, now).await? {
                    Ok(first) => (word, run) = ("queued", first),
                    Err(why) => reason = Some(why),
                }
            }
        }
        let columns = [
            ("job_id", id.into()),
            ("slot_utc", slot.into()),
            ("run_id", run.into()),
            ("outcome", word.into()),
            ("reason", Value::from(reason)),
        ];
        tx.insert_new("s3_schedule_slots", &columns).await?;
    }
    let columns = [("next_run_at", due.next.into()), ("updated_at", now.into())];
    tx.update("s3_cloudbackup_jobs", &columns, "id = ?", args![id]).await?;
    Ok(())
}

/// One run for the job's host, or for every host of its group that owns any of its VMs now.
async fn expand(
    app: &App,
    tx: &mut Tx,
    job: &Row,
    slot: Timestamp,
    now: Timestamp,
) -> Result<Result<Option<i64>, &'static str>, Failure> {
    let mut first = None;
    let mut why = "no host has any of its VMs";
    for agent in hosts(tx, job).await? {
        let new = NewRun {
            trigger: TriggerType::Schedule,
            by: None,
            slot: Some(slot),
            not_before: Some(after(now, schedule::jitter(agent, job.int("id")?, app.settings.jitter_secs))),
            force_full: false,
            only_vms: Vec::new(),
        };
        let running = format!(
            "SELECT COUNT(*) FROM s3_cloudbackup_runs WHERE job_id = ? AND agent_id = ? AND status IN {} AND {}",
            runs::IN_FLIGHT,
            runs::IS_BACKUP
        );
        // Looked at before: on MySQL a refused row costs nothing, but a transaction that met it may not go on.
        if tx.count(&running, args![job.int("id")?, agent]).await? > 0 {
            why = "a run is in progress";
            continue;
        }
        match runs::queue(tx, job, agent, &new, now).await {
            Ok(run) => first = first.or(Some(run.id)),
            Err(failure) if failure.code == Code::AlreadyRunning => why = "a run is in progress",
            Err(failure) => return Err(failure),
        }
    }
    Ok(if first.is_some() { Ok(first) } else { Err(why) })
}

/// The agents that a job runs on now.
pub async fn hosts(tx: &mut Tx, job: &Row) -> Result<Vec<i64>, Failure> {
    if let Some(agent) = job.opt_int("agent_id")? {
        return Ok(vec![agent]);
    }
    let Some(group) = job.opt_int("host_group_id")? else { return Ok(Vec::new()) };
    let config: control_api::Object = job.opt_json("hyperv_config")?.unwrap_or_default();
    let wanted = crate::selection::Wanted::of_job(job, &config)?;
    let sql = "SELECT m.agent_id FROM s3_host_group_members m JOIN s3_cloudbackup_agents a ON a.id = m.agent_id \
               WHERE m.group_id = ? AND a.status = 'active' AND a.client_id = ? ORDER BY m.agent_id";
    let mut hosts = Vec::new();
    for row in tx.rows(sql, args![group, job.int("client_id")?]).await? {
        let agent = row.int("agent_id")?;
        let there = crate::selection::candidates(tx, agent).await?;
        if there.iter().any(|vm| wanted.decide(vm).0) {
            hosts.push(agent);
        }
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_rest_as_long_as_they_cost_and_never_long() {
        let tick = Duration::from_secs(2);
        for (case, took_s, is_done, expected_s) in [
            ("a few VMs", 0, true, 30),
            ("ten thousand", 4, true, 80),
            ("a database that is slow", 60, true, 300),
            ("a database that was away", 90, false, 30),
        ] {
            let rest = rest_of_states(tick, Duration::from_secs(took_s), is_done);
            assert_eq!(rest, Duration::from_secs(expected_s), "{case}");
        }
    }
}

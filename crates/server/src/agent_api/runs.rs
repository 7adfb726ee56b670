//! Runs, as agents claim and report them (spec control-api 2.2, 2.3, 2.10).

use control_api::progress::{UpdateCheckpoint, UpdateCheckpointAnswer, UpdateRun};
use control_api::run::{AgentStartRun, NextRun, NextRunAnswer, RenewCredentials, RenewedCredentials};
use control_api::words::TriggerType;
use tracing::warn;

use crate::args;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::runs::{self, NewRun, claim, commit, end, payload, update};
use crate::vault;

/// `agent_next_run.php`.
pub async fn next_run(call: &Call<'_>) -> Result<Answer, Failure> {
    let agent = call.agent()?;
    let asked: NextRun = call.read()?;
    let boot = asked.boot_id.as_deref().or(agent.boot.as_deref());
    if asked.slots == Some(0) {
        return Answer::with("no_run", NextRunAnswer { run: None });
    }
    loop {
        let now = call.app.clock.now();
        let Some(claimed) = claim::next(call.app, agent, &asked.engines, boot, now).await? else {
            return Answer::with("no_run", NextRunAnswer { run: None });
        };
        match payload::build(call.app, &claimed).await {
            Ok(run) => return Answer::ok(NextRunAnswer { run: Some(run) }),
            Err(failure) if failure.is_transient() => return Err(failure),
            Err(failure) => {
                // A run without usable keys is never handed out (2.2 rule 5).
                warn!(run_id = claimed.run.int("id")?, cause = ?failure.cause, "a run cannot be handed out");
                let mut tx = call.app.db.write().await?;
                let summary = "The keys of the destination or repository cannot be had";
                end::fail(&mut tx, &claimed.run, "CREDENTIALS_UNAVAILABLE", summary, now).await?;
                tx.commit().await?;
            }
        }
    }
}

/// `agent_update_run.php`.
pub async fn update_run(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: UpdateRun = call.read()?;
    Answer::ok(update::apply(call.app, call.agent()?, &asked).await?)
}

/// `agent_hyperv_update_checkpoint.php`.
pub async fn update_checkpoint(call: &Call<'_>) -> Result<Answer, Failure> {
    let (agent, now) = (call.agent()?, call.app.clock.now());
    let asked: UpdateCheckpoint = call.read()?;
    let mut tx = call.app.db.write().await?;
    let run = runs::of_agent_locked(&mut tx, agent.id, &asked.run_id).await?;
    match asked.phase.as_deref() {
        None | Some("commit") => {}
        // What is prepared is not committed: nothing is stored of it.
        Some("prepare") => return Answer::ok(UpdateCheckpointAnswer { backup_point_id: None, superseded: Vec::new() }),
        Some(other) => return Err(Failure::invalid("phase", format!("{other:?} is neither prepare nor commit"))),
    }
    // The last claim that was issued; the end of a run by the server does not take back what is in the repository.
    if !runs::status(&run)?.is_terminal() {
        update::check_claim(&run, agent, asked.claim_id.as_deref())?;
    }
    let committed = commit::record(&mut tx, &run, &asked.result, now).await?;
    let seen = [("last_heartbeat_at", now.into()), ("updated_at", now.into())];
    tx.update("s3_cloudbackup_runs", &seen, "id = ?", args![run.int("id")?]).await?;
    tx.commit().await?;
    Answer::ok(UpdateCheckpointAnswer { backup_point_id: committed.point, superseded: committed.superseded })
}

/// `agent_start_run.php`: only queues; the run is then claimed as any other.
pub async fn start_run(call: &Call<'_>) -> Result<Answer, Failure> {
    let (agent, now) = (call.agent()?, call.app.clock.now());
    let asked: AgentStartRun = call.read()?;
    let mut tx = call.app.db.write().await?;
    let (condition, value) = crate::jobs::named("", &asked.job_id);
    let sql = format!("SELECT * FROM s3_cloudbackup_jobs WHERE agent_id = ? AND status = 'active' AND {condition}");
    let job = tx.row(&sql, args![agent.id, value]).await?.ok_or(Code::NotFound)?;
    let new = NewRun {
        trigger: TriggerType::Agent,
        by: None,
        slot: None,
        not_before: None,
        force_full: false,
        only_vms: Vec::new(),
    };
    let run = runs::queue(&mut tx, &job, agent.id, &new, now).await?;
    tx.commit().await?;
    Answer::ok(serde_json::json!({ "run_id": run.id, "run_uuid": run.uuid }))
}

/// `agent_repo_credentials.php`: keys of a live run of the caller. Static keys do not expire.
pub async fn renew_credentials(call: &Call<'_>) -> Result<Answer, Failure> {
    let agent = call.agent()?;
    let asked: RenewCredentials = call.read()?;
    let mut tx = call.app.db.write().await?;
    let job = match (&asked.run_id, asked.command_id) {
        (Some(run), _) => {
            let run = runs::of_agent_locked(&mut tx, agent.id, run).await?;
            if runs::status(&run)?.is_terminal() {
                return Err(Code::RunNotFound.into());
            }
            update::check_claim(&run, agent, None)?;
            Some(run.int("job_id")?)
        }
        (None, Some(command)) => {
            let sql = "SELECT job_id FROM s3_cloudbackup_run_commands \
                       WHERE id = ? AND agent_id = ? AND status = 'processing'";
            tx.row(sql, args![command, agent.id]).await?.ok_or(Code::CommandNotFound)?.opt_int("job_id")?
        }
        (None, None) if asked.session_id.is_some() => return Err(Code::SessionNotFound.into()),
        (None, None) if asked.mount_id.is_some() => return Err(Code::NotFound.into()),
        (None, None) => return Err(Failure::missing("run_id")),
    };
    let job = match job {
        Some(job) => tx.row("SELECT * FROM s3_cloudbackup_jobs WHERE id = ?", args![job]).await?,
        None => None,
    };
    let job = job.ok_or(Code::NotFound)?;
    let opened = vault::keys_of_job(&mut tx, &job).await?.open(&call.app.vault)?;
    Answer::ok(RenewedCredentials {
        dest_access_key: opened.destination.dest_access_key.unwrap_or_default(),
        dest_secret_key: opened.destination.dest_secret_key.unwrap_or_default(),
        dest_session_token: None,
        dest_credentials_expire_at: None,
    })
}

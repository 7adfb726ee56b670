//! Polling and commands (spec control-api 2.6, 2.7). Every delivery is a lease; nothing hangs when an agent dies.

use std::sync::Arc;

use control_api::Object;
use control_api::command::{
    Command, CompleteCommand, PendingCommands, Poll, PollAnswer, PollRunCommands, ReportBrowse, RunCommand, RunCommands,
};
use control_api::words::CommandStatus;
use jiff::Timestamp;
use serde_json::Value as Json;

use super::carried;
use super::waiting::News;
use crate::App;
use crate::access::agent::Agent;
use crate::args;
use crate::changes;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::runs::{self, IS_BACKUP, payload};
use crate::secret;
use crate::store::{Row, Tx, time_text};
use crate::vault;

/// A command is the agent's for so long, unless it says that it works on it.
const LEASE_SECS: i64 = 120;
/// So often a command is delivered.
const MAX_DELIVERIES: i64 = 3;
/// A result is at most so large.
const RESULT_BYTES: usize = 8 << 20;

/// `agent_poll.php`: answers at once when there is something, else up to 25 s later.
pub async fn poll(call: &Call<'_>) -> Result<Answer, Failure> {
    let agent = call.agent()?;
    let asked: Poll = call.read()?;
    renew(call.app, agent, &asked.active_commands).await?;
    let started = std::time::Instant::now();
    let mut news = call.app.waiting.sit_down();
    loop {
        let answer = look(call.app, agent, asked.busy).await?;
        let has_news = !answer.commands.is_empty()
            || answer.repo_operation.is_some()
            || answer.run_available
            || !answer.cancel_runs.is_empty()
            || asked.config_epoch.is_some_and(|known| known != answer.config_epoch);
        if has_news || !asked.long_poll || started.elapsed() >= call.app.settings.long_poll {
            return Answer::ok(PollAnswer { next_poll_secs: if has_news { 7 } else { 15 }, ..answer });
        }
        let left = call.app.settings.long_poll.saturating_sub(started.elapsed());
        let is_news = |news: &Arc<News>| news.concerns(agent, asked.busy, asked.config_epoch);
        let came = async { while news.changed().await.is_ok() && !is_news(&news.borrow_and_update()) {} };
        // Without any, one last look of its own.
        let _ = tokio::time::timeout(left, came).await;
    }
}

async fn look(app: &App, agent: &Agent, busy: bool) -> Result<PollAnswer, Failure> {
    let now = app.clock.now();
    let mut tx = app.db.read().await?;
    // One statement: this is asked more often than everything else together, and nearly always there is nothing.
    let cancelled =
        "s3_cloudbackup_runs WHERE agent_id = ? AND status IN ('starting', 'running') AND cancel_requested = 1";
    let open =
        "s3_hyperv_instant_restore_sessions WHERE agent_id = ? AND status IN ('Starting', 'Active', 'Migrating')";
    let sql = format!(
        "SELECT (SELECT COUNT(*) FROM s3_cloudbackup_runs WHERE agent_id = ? AND status = 'queued' \
         AND cancel_requested = 0 AND {IS_BACKUP} AND (not_before IS NULL OR not_before <= ?)) AS queued, \
         (SELECT COUNT(*) FROM {cancelled}) AS cancelled, (SELECT COUNT(*) FROM {open}) AS open_sessions, \
         (SELECT COUNT(*) FROM s3_cloudbackup_run_commands WHERE agent_id = ? AND status = 'pending') AS commands, \
         (SELECT COUNT(*) FROM s3_kopia_repo_operations WHERE client_id = ? AND status = 'queued' \
         AND next_attempt_at <= ?) AS operations, config_epoch FROM s3_cloudbackup_agents WHERE id = ?"
    );
    let of = args![agent.id, now, agent.id, agent.id, agent.id, agent.client, now, agent.id];
    let row = tx.row(&sql, of).await?.ok_or(Code::Unauthorized)?;
    let has = |name: &str| -> Result<bool, Failure> { Ok(row.int(name)? > 0) };
    let (run_available, has_commands) = (has("queued")?, has("commands")?);
    let has_operations = !busy && has("operations")?;
    let (mut cancel_runs, mut open_sessions) = (Vec::new(), Vec::new());
    for (name, table, found) in
        [("cancelled", cancelled, &mut cancel_runs), ("open_sessions", open, &mut open_sessions)]
    {
        if has(name)? {
            *found = ids(&tx.rows(&format!("SELECT id FROM {table}"), args![agent.id]).await?)?;
        }
    }
    drop(tx);
    let commands = if has_commands { deliver(app, agent, now).await? } else { Vec::new() };
    let repo_operation = if has_operations { super::repositories::claim(app, agent, now).await? } else { None };
    Ok(PollAnswer {
        poll_version: 1,
        commands,
        repo_operation,
        next_poll_secs: 15,
        run_available,
        cancel_runs,
        config_epoch: row.int("config_epoch")?,
        min_agent_version: Some(app.settings.min_agent_version.clone()),
        open_sessions,
    })
}

fn ids(rows: &[Row]) -> Result<Vec<i64>, Failure> {
    Ok(rows.iter().map(|row| row.int("id")).collect::<Result<_, _>>()?)
}

/// Renews the leases of what the agent says that it works on.
async fn renew(app: &App, agent: &Agent, active: &[i64]) -> Result<(), Failure> {
    if active.is_empty() {
        return Ok(());
    }
    let now = app.clock.now();
    let mut tx = app.db.write().await?;
    for command in active.iter().take(100) {
        let sql = "UPDATE s3_cloudbackup_run_commands SET lease_until = ? \
                   WHERE id = ? AND agent_id = ? AND status = 'processing'";
        tx.change(sql, args![after(now, LEASE_SECS), *command, agent.id]).await?;
    }
    Ok(tx.commit().await?)
}

/// `agent_poll_pending_commands.php`.
pub async fn poll_pending(call: &Call<'_>) -> Result<Answer, Failure> {
    let commands = deliver(call.app, call.agent()?, call.app.clock.now()).await?;
    Answer::ok(PendingCommands { commands })
}

/// At most five commands, each marked in the same conditional update that takes it.
async fn deliver(app: &App, agent: &Agent, now: Timestamp) -> Result<Vec<Command>, Failure> {
    let mut tx = app.db.write().await?;
    let sql = format!(
        "SELECT * FROM s3_cloudbackup_run_commands WHERE agent_id = ? AND status = 'pending' \
         AND (expires_at IS NULL OR expires_at > ?) ORDER BY id LIMIT 5{}",
        tx.for_update_skipping()
    );
    let mut taken = Vec::new();
    for row in tx.rows(&sql, args![agent.id, now]).await? {
        let lease = secret::id128()?;
        let columns = [
            ("status", "processing".into()),
            ("lease_token", lease.clone().into()),
            ("lease_until", after(now, LEASE_SECS).into()),
            ("delivery_count", (row.int("delivery_count")? + 1).into()),
        ];
        let condition = "id = ? AND status = 'pending'";
        if tx.update("s3_cloudbackup_run_commands", &columns, condition, args![row.int("id")?]).await? == 0 {
            continue;
        }
        let attempt = row.int("delivery_count")? + 1;
        if carried::begin(&mut tx, &row, agent, &lease, attempt, now).await? {
            taken.push((row, lease));
        }
    }
    let mut commands = Vec::new();
    for (row, lease) in taken {
        commands.push(Command {
            command_id: row.int("id")?,
            kind: row.text("type")?,
            run_id: row.opt_int("run_id")?,
            job_id: row.opt_int("job_id")?,
            payload: row.opt_json("payload_json")?.unwrap_or_default(),
            job_context: context(&mut tx, app, &row).await?,
            lease_token: Some(lease),
            lease_expires_at: Some(time_text(after(now, LEASE_SECS))),
        });
    }
    tx.commit().await?;
    Ok(commands)
}

/// The keys that a command needs, never kept in its row.
async fn context(tx: &mut Tx, app: &App, command: &Row) -> Result<Option<Object>, Failure> {
    let kind = command.text("type")?;
    let needs_keys = kind.contains("restore") || ["hyperv_preflight", "verify_point"].contains(&kind.as_str());
    let Some(job) = command.opt_int("job_id")?.filter(|_| needs_keys) else { return Ok(None) };
    let job = tx.row("SELECT * FROM s3_cloudbackup_jobs WHERE id = ?", args![job]).await?;
    let Some(job) = job else { return Ok(None) };
    let opened = vault::keys_of_job(tx, &job).await?.open(&app.vault)?;
    payload::job_context(opened, &job).map(Some)
}

/// `agent_poll_commands.php`.
pub async fn poll_run(call: &Call<'_>) -> Result<Answer, Failure> {
    let agent = call.agent()?;
    let asked: PollRunCommands = call.read()?;
    let mut tx = call.app.db.read().await?;
    let (condition, value) = runs::named("", &asked.run_id);
    let sql = format!("SELECT * FROM s3_cloudbackup_runs WHERE agent_id = ? AND {condition}");
    let run = tx.row(&sql, args![agent.id, value]).await?.ok_or(Code::RunNotFound)?;
    let mut commands = Vec::new();
    if run.flag("cancel_requested")? {
        commands.push(RunCommand { kind: "cancel".into(), command_id: None, payload: None });
    }
    Answer::ok(RunCommands { commands })
}

/// `agent_complete_command.php`.
pub async fn complete(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: CompleteCommand = call.read()?;
    if !matches!(asked.status, CommandStatus::Completed | CommandStatus::Failed) {
        return Err(Failure::invalid("status", "neither completed nor failed"));
    }
    finish(call, asked.command_id, asked.status, asked.result_message.as_deref(), None).await
}

/// `agent_report_browse.php`.
pub async fn report_browse(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: ReportBrowse = call.read()?;
    let result = match (asked.result, &asked.result_b64) {
        (Some(result), _) => result,
        (None, Some(b64)) => super::compact(b64, asked.result_encoding.as_deref(), RESULT_BYTES)?,
        (None, None) => return Err(Failure::missing("result")),
    };
    finish(call, asked.command_id, CommandStatus::Completed, None, Some(&result)).await
}

async fn finish(
    call: &Call<'_>,
    command: i64,
    status: CommandStatus,
    message: Option<&str>,
    result: Option<&Json>,
) -> Result<Answer, Failure> {
    let (agent, now) = (call.agent()?, call.app.clock.now());
    let mut tx = call.app.db.write().await?;
    let sql = format!("SELECT * FROM s3_cloudbackup_run_commands WHERE id = ? AND agent_id = ?{}", tx.for_update());
    let row = tx.row(&sql, args![command, agent.id]).await?.ok_or(Code::CommandNotFound)?;
    let is = row.word("status", CommandStatus::of_word)?;
    if is == status {
        return Answer::done();
    }
    if !matches!(is, CommandStatus::Pending | CommandStatus::Processing) {
        return Err(Code::AlreadyCompleted.into());
    }
    let columns = [
        ("status", status.word().into()),
        ("result_message", message.map(|text| text.chars().take(4000).collect::<String>()).into()),
        ("result_blob", result.map(|result| result.to_string().into_bytes()).into()),
        ("processed_at", now.into()),
        ("lease_until", crate::store::Value::Null),
    ];
    tx.update("s3_cloudbackup_run_commands", &columns, "id = ?", args![command]).await?;
    carried::end(&mut tx, &row, status, message, result, now).await?;
    let topic = format!("command-{command}");
    changes::touch(&mut tx, row.int("client_id")?, row.opt_int("tenant_id")?, &topic, now).await?;
    tx.commit().await?;
    Answer::done()
}

/// Commands whose lease is over are offered again, at most three times; those that nobody fetched in time fail.
pub async fn expire(app: &App, now: Timestamp) -> Result<(), Failure> {
    let mut tx = app.db.write().await?;
    let again = "UPDATE s3_cloudbackup_run_commands SET status = 'pending', lease_token = NULL \
                 WHERE status = 'processing' AND lease_until < ? AND delivery_count < ?";
    tx.change(again, args![now, MAX_DELIVERIES]).await?;
    for (reason, condition) in [
        ("delivery_limit", "status = 'processing' AND lease_until < ?"),
        ("expired", "status = 'pending' AND expires_at < ?"),
    ] {
        carried::give_up(&mut tx, reason, condition, now).await?;
        let sql = format!(
            "UPDATE s3_cloudbackup_run_commands SET status = 'failed', result_message = ?, processed_at = ? \
             WHERE {condition}"
        );
        tx.change(&sql, args![reason, now, now]).await?;
    }
    // A result may list file names: it is kept for an hour.
    let forget = "UPDATE s3_cloudbackup_run_commands SET result_blob = NULL \
                  WHERE result_blob IS NOT NULL AND processed_at < ?";
    tx.change(forget, args![after(now, -3600)]).await?;
    Ok(tx.commit().await?)
}

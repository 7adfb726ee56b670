//! Runs, as people start, watch and cancel them (spec control-api 6.2).

use control_api::events::{RunEvents, RunEventsQuery, RunLogs, StoredEvent, StoredLogLine};
use control_api::id::Id;
use control_api::run_list::{
    CancelRun, CancelledRun, RunDetail, RunFilter, RunPage, RunProgress, RunRef, RunRow, RunVmRow, Runs, StartRun,
    StartedRun,
};
use control_api::words::{Engine, RunStatus, TriggerType};
use serde_json::json;

use super::{Window, jobs, once, remember};
use crate::access::audit::{self, Entry};
use crate::access::{Filter, Scope};
use crate::agent_api;
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::runs::{self, NewRun, end};
use crate::scheduler;
use crate::store::{Row, Tx, time_text};

/// `cloudbackup_start_run.php`.
pub async fn start(call: &Call<'_>) -> Result<Answer, Failure> {
    once(call, "start_run", start_now(call)).await
}

async fn start_now(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: StartRun = call.read()?;
    let mut tx = call.app.db.write().await?;
    let job = jobs::find(&mut tx, person.scope, &asked.job_id).await?;
    if job.text("status")? != "active" {
        return Err(Failure::with(Code::Conflict, "The job is paused"));
    }
    for vm in &asked.vm_ids {
        let sql = "SELECT id FROM s3_hyperv_vms WHERE id = ? AND job_id = ?";
        tx.row(sql, args![*vm, job.int("id")?]).await?.ok_or(Code::NotFound)?;
    }
    let new = NewRun {
        trigger: if person.session.is_some() { TriggerType::Manual } else { TriggerType::Api },
        by: Some(person.user),
        slot: None,
        not_before: None,
        force_full: asked.force_full,
        only_vms: asked.vm_ids.clone(),
    };
    let mut queued = Vec::new();
    for host in scheduler::hosts(&mut tx, &job).await? {
        queued.push(runs::queue(&mut tx, &job, host, &new, now).await?);
    }
    let Some(first) = queued.first() else {
        return Err(Failure::with(Code::Conflict, "No host of the group has any VM of this job"));
    };
    let after = json!({ "job_id": job.int("id")?, "force_full": asked.force_full, "vm_ids": asked.vm_ids });
    let entry =
        Entry { action: "run.start", entity: "run", id: first.id.to_string(), before: None, after: Some(after) };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    let answer = Answer::ok(StartedRun {
        run_id: first.id,
        run_uuid: first.uuid.clone(),
        run_ids: queued.iter().map(|run| run.id).collect(),
    })?;
    remember(&mut tx, call, "start_run", answer.json().cloned()).await?;
    tx.commit().await?;
    Ok(answer)
}

/// `cloudbackup_cancel_run.php`.
pub async fn cancel(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: CancelRun = call.read()?;
    let mut tx = call.app.db.write().await?;
    let run = runs::find_locked(&mut tx, Filter::within(person.scope, "r"), &asked.run_id).await?;
    let (run_status, cancel_requested) = end::cancel(&mut tx, &run, asked.force, Some(person.user), now).await?;
    let after = Some(json!({ "force": asked.force, "status": run_status.word() }));
    let entry = Entry { action: "run.cancel", entity: "run", id: run.int("id")?.to_string(), before: None, after };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::ok(CancelledRun { run_status, cancel_requested })
}

const SELECT: &str = "SELECT r.*, j.name AS job_name, a.hostname";
const FROM: &str = "s3_cloudbackup_runs r JOIN s3_cloudbackup_jobs j ON j.id = r.job_id \
                    LEFT JOIN s3_cloudbackup_agents a ON a.id = r.agent_id";

fn on_wire(row: &Row) -> Result<RunRow, Failure> {
    let time = |name: &str| -> Result<Option<String>, Failure> { Ok(row.opt_time(name)?.map(time_text)) };
    Ok(RunRow {
        run_id: row.int("id")?,
        run_uuid: row.text("run_uuid")?,
        job_id: row.int("job_id")?,
        job_name: row.text("job_name")?,
        tenant_id: row.opt_int("tenant_id")?,
        agent_id: row.opt_int("agent_id")?,
        hostname: row.opt_text("hostname")?,
        engine: row.word("engine", Engine::of_word)?,
        run_type: row.opt_text("run_type")?,
        trigger_type: row.text("trigger_type")?,
        status: row.word("status", RunStatus::of_word)?,
        error_code: row.opt_text("error_code")?,
        error_summary: row.opt_text("error_summary")?,
        attempt: row.int("attempt")?,
        cancel_requested: row.flag("cancel_requested")?,
        progress_pct: row.opt_real("progress_pct")?,
        bytes_transferred: row.opt_int("bytes_transferred")?,
        bytes_processed: row.opt_int("bytes_processed")?,
        bytes_total: row.opt_int("bytes_total")?,
        created_at: time_text(row.time("created_at")?),
        started_at: time("started_at")?,
        finished_at: time("finished_at")?,
        last_heartbeat_at: time("last_heartbeat_at")?,
    })
}

/// What a filter of runs is read from.
struct Selected {
    filter: Filter,
    from: &'static str,
}

/// The rows of a filter, newest first unless asked otherwise, and how many there are.
async fn rows(call: &Call<'_>, asked: &RunFilter, window: Window) -> Result<(Vec<RunRow>, i64, Selected), Failure> {
    let mut filter = Filter::within(call.scope()?, "r");
    if let Some(job) = &asked.job_id {
        let (condition, value) = crate::jobs::named("j.", job);
        filter = filter.and(&condition, value);
    }
    match &asked.agent_id {
        Some(Id::Number(agent)) => filter = filter.and("r.agent_id = ?", *agent),
        Some(Id::Uuid(uuid)) => filter = filter.and("a.agent_uuid = ?", uuid),
        None => {}
    }
    if let Some(tenant) = asked.tenant_id {
        filter = filter.and("r.tenant_id = ?", tenant);
    }
    if let Some(hours) = asked.range_hours {
        if !(1..=24 * 3660).contains(&hours) {
            return Err(Failure::invalid("range_hours", "is 1 to ten years"));
        }
        filter = filter.and("r.created_at >= ?", after(call.app.clock.now(), -hours * 3600));
    }
    if let Some(text) = asked.q.as_ref().filter(|text| !text.is_empty()) {
        filter = filter.and_contains("j.name", text);
    }
    let facets = filter.clone();
    if !asked.statuses.is_empty() {
        filter = filter.and_in("r.status", asked.statuses.iter().map(|status| status.word()));
    }
    let column = match asked.sort_by.as_deref() {
        None | Some("created_at") => "r.created_at",
        Some("started_at") => "r.started_at",
        Some("finished_at") => "r.finished_at",
        Some("status") => "r.status",
        Some("job_name") => "j.name",
        Some(_) => {
            return Err(Failure::invalid("sortBy", "is created_at, started_at, finished_at, status or job_name"));
        }
    };
    let direction = if asked.sort_dir.as_deref() == Some("asc") { "ASC" } else { "DESC" };
    let mut tx = call.app.db.read().await?;
    // Names are joined only where they are asked about: else every run would be looked up to be counted.
    let asks_names = asked.job_id.is_some()
        || matches!(asked.agent_id, Some(Id::Uuid(_)))
        || asked.q.as_ref().is_some_and(|text| !text.is_empty())
        || column == "j.name";
    let from = if asks_names { FROM } else { "s3_cloudbackup_runs r" };
    let total = tx.count(&format!("SELECT COUNT(*) FROM {from} WHERE {}", filter.sql), &filter.args).await?;
    let order = format!("ORDER BY {column} {direction}, r.id {direction}");
    let sql = format!(
        "{SELECT} FROM {FROM} JOIN (SELECT r.id FROM {from} WHERE {} {order}{}) page ON page.id = r.id {order}",
        filter.sql,
        window.sql()
    );
    let rows = tx.rows(&sql, &filter.args).await?;
    Ok((rows.iter().map(on_wire).collect::<Result<_, _>>()?, total, Selected { filter: facets, from }))
}

/// `cloudbackup_list_runs.php`.
pub async fn list(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: RunFilter = call.read()?;
    let window = Window::new(asked.limit, asked.offset)?;
    let (runs, total, _) = rows(call, &asked, window).await?;
    Answer::ok(Runs { runs, total, limit: window.limit, offset: window.offset })
}

/// `e3backup_run_list.php`.
pub async fn page(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: RunFilter = call.read()?;
    let size = asked.page_size.unwrap_or(50);
    let page = asked.page.unwrap_or(1).max(1);
    let window = Window::new(Some(size), Some((page - 1).saturating_mul(size)))?;
    let (rows, total, Selected { filter, from }) = rows(call, &asked, window).await?;
    let sql = format!("SELECT r.status, COUNT(*) AS runs FROM {from} WHERE {} GROUP BY r.status", filter.sql);
    let mut counts = control_api::Object::new();
    for row in call.app.db.read().await?.rows(&sql, &filter.args).await? {
        counts.insert(row.text("status")?, json!(row.int("runs")?));
    }
    let facets = control_api::Object::from_iter([("status".to_owned(), json!(counts))]);
    Answer::ok(RunPage { rows, facets, total })
}

/// One run in scope, with what is joined.
async fn one(tx: &mut Tx, scope: Scope, id: &Id) -> Result<Row, Failure> {
    let (condition, value) = runs::named("r.", id);
    let filter = Filter::within(scope, "r").and(&condition, value);
    let sql = format!("{SELECT} FROM {FROM} WHERE {}", filter.sql);
    tx.row(&sql, &filter.args).await?.ok_or_else(|| Code::RunNotFound.into())
}

/// `cloudbackup_get_run.php`.
pub async fn get(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: RunRef = call.read()?;
    let mut tx = call.app.db.read().await?;
    let row = one(&mut tx, call.scope()?, &asked.run_id).await?;
    let sql = "SELECT x.*, v.vm_name FROM s3_cloudbackup_run_vm_results x JOIN s3_hyperv_vms v ON v.id = x.vm_id \
               WHERE x.run_id = ? ORDER BY v.vm_name, x.id";
    let mut vms = Vec::new();
    for vm in tx.rows(sql, args![row.int("id")?]).await? {
        vms.push(RunVmRow {
            vm_id: vm.int("vm_id")?,
            vm_name: vm.text("vm_name")?,
            state: vm.text("state")?,
            error_code: vm.opt_text("error_code")?,
            error: vm.opt_text("error")?,
            backup_point_id: vm.opt_int("backup_point_id")?,
        });
    }
    Answer::ok(RunDetail { run: on_wire(&row)?, vms, stats_json: row.opt_json("stats_json")? })
}

/// `cloudbackup_progress.php`.
pub async fn progress(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: RunRef = call.read()?;
    let mut tx = call.app.db.read().await?;
    Answer::ok(progress_of(&mut tx, call.scope()?, &asked.run_id).await?.1)
}

/// Where a run stands, and all that is said of it.
pub async fn progress_of(tx: &mut Tx, scope: Scope, id: &Id) -> Result<(RunStatus, serde_json::Value), Failure> {
    let row = one(tx, scope, id).await?;
    let run = on_wire(&row)?;
    let status = run.status;
    let mut answer = serde_json::to_value(RunProgress {
        run_status: run.status,
        run,
        objects_transferred: row.opt_int("objects_transferred")?,
        objects_total: row.opt_int("objects_total")?,
        speed_bytes_per_sec: row.opt_int("speed_bytes_per_sec")?,
        eta_seconds: row.opt_int("eta_seconds")?,
        current_item: row.opt_text("current_item")?,
        started_at_epoch_ms: row.opt_time("started_at")?.map(|at| at.as_millisecond()),
        finished_at_epoch_ms: row.opt_time("finished_at")?.map(|at| at.as_millisecond()),
        progress_json: row.opt_json("progress_json")?,
    })
    .map_err(Failure::internal)?;
    // The envelope's word is `status`; the run's own stands in `run_status`.
    if let Some(fields) = answer.as_object_mut() {
        fields.remove("status");
    }
    Ok((status, answer))
}

/// `cloudbackup_get_run_events.php`.
pub async fn events(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: RunEventsQuery = call.read()?;
    let limit = asked.limit.unwrap_or(200);
    if !(1..=1000).contains(&limit) {
        return Err(Failure::invalid("limit", "is 1 to 1,000"));
    }
    let mut tx = call.app.db.read().await?;
    let events = events_of(&mut tx, call.scope()?, &asked.run_id, asked.since_id.unwrap_or(0), limit).await?;
    Answer::ok(RunEvents { events })
}

/// Events of a run behind that one.
pub async fn events_of(
    tx: &mut Tx,
    scope: Scope,
    id: &Id,
    since: i64,
    limit: i64,
) -> Result<Vec<StoredEvent>, Failure> {
    let run = one(tx, scope, id).await?.int("id")?;
    let sql = format!("SELECT * FROM s3_cloudbackup_run_events WHERE run_id = ? AND id > ? ORDER BY id LIMIT {limit}");
    let mut events = Vec::new();
    for row in tx.rows(&sql, args![run, since]).await? {
        let (message_id, params) = (row.text("message_id")?, agent_api::events::params(&row)?);
        events.push(StoredEvent {
            id: row.int("id")?,
            ts: time_text(row.time("ts")?),
            kind: row.text("type")?,
            level: row.text("level")?,
            code: row.text("code")?,
            message: crate::messages::render(&message_id, &params),
            message_id,
            params,
        });
    }
    Ok(events)
}

/// `cloudbackup_get_run_logs.php`.
pub async fn logs(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: RunEventsQuery = call.read()?;
    let limit = asked.limit.unwrap_or(200);
    if !(1..=1000).contains(&limit) {
        return Err(Failure::invalid("limit", "is 1 to 1,000"));
    }
    let mut tx = call.app.db.read().await?;
    let run = one(&mut tx, call.scope()?, &asked.run_id).await?.int("id")?;
    let sql = format!("SELECT * FROM s3_cloudbackup_run_logs WHERE run_id = ? AND id > ? ORDER BY id LIMIT {limit}");
    let mut logs = Vec::new();
    for row in tx.rows(&sql, args![run, asked.since_id.unwrap_or(0)]).await? {
        logs.push(StoredLogLine {
            id: row.int("id")?,
            ts: time_text(row.time("created_at")?),
            level: row.text("level")?,
            code: row.opt_text("code")?,
            message: row.text("message")?,
            details: row.opt_json("details_json")?,
        });
    }
    Answer::ok(RunLogs { logs })
}

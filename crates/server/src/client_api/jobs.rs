//! Jobs, as people make and change them (spec control-api 4, 6.2).

use control_api::Object;
use control_api::job::{DeleteJob, Job, JobAnswer, JobRef, JobRequest, Jobs, RetentionVerdict, Selected, ValidatedJob};
use control_api::words::{Engine, JobStatus, SourceType};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value as Json, json};

use super::{Window, agents, tenant_for};
use crate::access::audit::{self, Entry};
use crate::access::gate::{self, Deed};
use crate::access::{Filter, Need, Scope, allows};
use crate::args;
use crate::changes;
use crate::deletion;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::jobs::{check, named, next_run, on_wire, plan_of, schedule_columns};
use crate::retention::{self, Policy};
use crate::runs::{self, end};
use crate::schedule::Plan;
use crate::selection::{self, Wanted};
use crate::store::{Row, Tx, Value, time_text};

/// The job of that id in scope, locked.
pub async fn find(tx: &mut Tx, scope: Scope, id: &control_api::id::Id) -> Result<Row, Failure> {
    let (condition, value) = named("j.", id);
    let filter = Filter::within(scope, "j").and_sql("j.status <> 'deleted'").and(&condition, value);
    let sql = format!("SELECT j.* FROM s3_cloudbackup_jobs j WHERE {}{}", filter.sql, tx.for_update());
    tx.row(&sql, &filter.args).await?.ok_or_else(|| Code::NotFound.into())
}

/// What a request names of other rows: each must be in the caller's scope and the job's tenant.
struct References {
    agent: Option<i64>,
    group: Option<i64>,
    destination: Option<i64>,
    repository: Option<String>,
}

async fn references(tx: &mut Tx, scope: Scope, tenant: Option<i64>, asked: &JobRequest) -> Result<References, Failure> {
    let agent = match asked.agent_id.as_ref().or(asked.agent_uuid.as_ref()) {
        Some(id) => {
            let row = agents::find(tx, scope, Some(id), None).await?;
            if row.opt_int("tenant_id")? != tenant {
                return Err(Code::NotFound.into());
            }
            Some(row.int("id")?)
        }
        None => None,
    };
    let inside = Filter::within(scope, "x");
    let same = |filter: Filter| match tenant {
        Some(tenant) => filter.and("x.tenant_id = ?", tenant),
        None => filter.and_sql("x.tenant_id IS NULL"),
    };
    if let Some(group) = asked.host_group_id {
        let filter = same(inside.clone()).and("x.id = ?", group);
        let sql = format!("SELECT x.id FROM s3_host_groups x WHERE {}", filter.sql);
        tx.row(&sql, &filter.args).await?.ok_or(Code::NotFound)?;
    }
    let mut repository = None;
    if let Some(destination) = asked.dest_bucket_id {
        let filter = same(inside).and("x.id = ?", destination).and_sql("x.is_active = 1");
        let sql = format!(
            "SELECT r.repository_id FROM s3_cloudbackup_destinations x \
             LEFT JOIN s3_cloudbackup_repositories r ON r.bucket_id = x.id AND r.status = 'active' WHERE {}",
            filter.sql
        );
        repository = tx.row(&sql, &filter.args).await?.ok_or(Code::NotFound)?.opt_text("repository_id")?;
    }
    Ok(References { agent, group: asked.host_group_id, destination: asked.dest_bucket_id, repository })
}

/// The zone that a job without one has: its client's, else UTC.
async fn default_zone(tx: &mut Tx, scope: Scope) -> Result<String, Failure> {
    let row = tx.row("SELECT timezone FROM s3_clients WHERE id = ?", args![scope.client]).await?;
    let zone = row.map(|row| row.opt_text("timezone")).transpose()?.flatten();
    Ok(zone.unwrap_or_else(|| "UTC".into()))
}

/// `cloudbackup_create_job.php`.
pub async fn create(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: JobRequest = call.read()?;
    let name = asked.name.clone().ok_or_else(|| Failure::missing("name"))?;
    let engine = asked.engine.unwrap_or(Engine::Hyperv);
    let mut tx = call.app.db.write().await?;
    let tenant = tenant_for(&mut tx, person.scope, asked.tenant_id).await?;
    let zone = match &asked.timezone {
        Some(zone) => zone.clone(),
        None => default_zone(&mut tx, person.scope).await?,
    };
    let references = references(&mut tx, person.scope, tenant, &asked).await?;
    let mut wrong = check(&asked, engine, &zone);
    if engine != Engine::Hyperv {
        wrong.push(("engine".into(), "this server runs jobs of engine hyperv".into()));
    } else if asked.hyperv_config.is_none() && asked.select.is_none() {
        wrong.push(("hyperv_config".into(), "names no VM".into()));
    }
    if references.agent.is_none() && references.group.is_none() {
        wrong.push(("agent_id".into(), "a job runs on an agent or a host group".into()));
    }
    if references.agent.is_some() && references.group.is_some() {
        wrong.push(("host_group_id".into(), "not together with agent_id".into()));
    }
    if references.destination.is_none() {
        wrong.push(("dest_bucket_id".into(), "a job stores into a destination".into()));
    }
    if !wrong.is_empty() {
        return Err(Failure::validation(&wrong));
    }
    let schedule = asked.schedule_json.clone().unwrap_or_default();
    let plan = Plan::parse(&schedule, &zone).map_err(|why| Failure::validation(&[why]))?;
    let status = asked.status.unwrap_or(JobStatus::Active);
    let mut columns: Vec<(&str, Value)> = vec![
        ("job_uuid", uuid::Uuid::now_v7().to_string().into()),
        ("client_id", person.scope.client.into()),
        ("tenant_id", tenant.into()),
        ("name", name.clone().into()),
        ("engine", engine.word().into()),
        ("source_type", SourceType::Hyperv.word().into()),
        ("source_display_name", asked.source_display_name.clone().unwrap_or(name).into()),
        ("source_path", asked.source_path.clone().unwrap_or_default().into()),
        ("hyperv_enabled", true.into()),
        ("hyperv_config", json!(asked.hyperv_config.clone().unwrap_or_default()).into()),
        ("agent_id", references.agent.into()),
        ("host_group_id", references.group.into()),
        ("dest_bucket_id", references.destination.into()),
        ("repository_id", references.repository.into()),
        ("timezone", zone.into()),
        ("status", status.word().into()),
        ("next_run_at", next_run(&plan, status, now).into()),
        ("created_at", now.into()),
        ("updated_at", now.into()),
    ];
    columns.extend(schedule_columns(&schedule));
    columns.extend(plain_columns(&asked));
    let id = tx.insert("s3_cloudbackup_jobs", &columns).await?;
    let job = read(&mut tx, id).await?;
    let after = Some(json!(job));
    let entry = Entry { action: "job.create", entity: "job", id: id.to_string(), before: None, after };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    changes::touch(&mut tx, person.scope.client, tenant, "jobs", now).await?;
    tx.commit().await?;
    Answer::ok(JobAnswer { job })
}

/// Columns that are simply what was asked, where it was asked.
fn plain_columns(asked: &JobRequest) -> Vec<(&'static str, Value)> {
    let mut columns: Vec<(&'static str, Value)> = Vec::new();
    let mut set = |name: &'static str, value: Option<Value>| columns.extend(value.map(|value| (name, value)));
    set("retention_json", asked.retention_json.as_ref().map(|policy| json!(policy).into()));
    set("throttle_json", asked.throttle_json.as_ref().map(|throttle| json!(throttle).into()));
    set("policy_json", asked.policy_json.as_ref().map(|policy| json!(policy).into()));
    set("select_json", asked.select.as_ref().map(|select| json!(select).into()));
    set("local_bandwidth_limit_kbps", asked.local_bandwidth_limit_kbps.map(Into::into));
    set("parallelism", asked.parallelism.map(Into::into));
    set("compression", asked.compression.as_ref().map(Into::into));
    set("rpo_target_hours", asked.rpo_target_hours.map(Into::into));
    set("notify_override_email", asked.notify_override_email.as_ref().map(Into::into));
    set("notify_on_success", asked.notify_on_success.map(Into::into));
    set("notify_on_warning", asked.notify_on_warning.map(Into::into));
    set("notify_on_failure", asked.notify_on_failure.map(Into::into));
    columns
}

async fn read(tx: &mut Tx, id: i64) -> Result<Job, Failure> {
    let row = tx.row("SELECT * FROM s3_cloudbackup_jobs WHERE id = ?", args![id]).await?;
    on_wire(&row.ok_or(Code::NotFound)?)
}

/// `cloudbackup_update_job.php`: what is missing stays; another version than the one that was read is refused.
pub async fn update(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: JobRequest = call.read()?;
    let id = asked.job_id.clone().ok_or_else(|| Failure::missing("job_id"))?;
    let mut tx = call.app.db.write().await?;
    let row = find(&mut tx, person.scope, &id).await?;
    let before = on_wire(&row)?;
    let version = asked.version.ok_or_else(|| Failure::missing("version"))?;
    if version != before.version {
        let failure = Failure::with(Code::Conflict, "The job was changed by somebody else since it was read");
        return Err(failure.detail("version", before.version));
    }
    let mut wrong = Vec::new();
    let zone = asked.timezone.clone().unwrap_or_else(|| before.timezone.clone());
    let schedule = asked.schedule_json.clone().unwrap_or_else(|| before.schedule_json.clone());
    // Values are checked as they will stand together.
    let whole = JobRequest {
        schedule_json: Some(schedule.clone()),
        select: asked.select.clone().or_else(|| before.select.clone()),
        ..asked.clone()
    };
    wrong.extend(check(&whole, before.engine, &zone));
    if asked.engine.is_some_and(|engine| engine != before.engine) {
        wrong.push(("engine".into(), "cannot be changed: make a new job".into()));
    }
    if !wrong.is_empty() {
        return Err(Failure::validation(&wrong));
    }
    let references = references(&mut tx, person.scope, before.tenant_id, &asked).await?;
    let is_new_destination = references.destination.is_some() && references.destination != before.dest_bucket_id;
    if is_new_destination {
        call.require(Need::Admin)?;
        let ran = "SELECT COUNT(*) FROM s3_cloudbackup_runs WHERE job_id = ? AND claimed_at IS NOT NULL";
        if tx.count(ran, args![before.job_id]).await? > 0 {
            let why = "the repository of a job never changes after its first run: make a new job";
            return Err(Failure::validation(&[("dest_bucket_id".into(), why.into())]));
        }
    }
    let is_shorter = is_shorter(before.retention_json.as_ref(), asked.retention_json.as_ref());
    if is_shorter {
        if !allows(person.role, Need::Admin) {
            return Err(Failure::with(Code::ForbiddenRole, "This role may not shorten retention"));
        }
        person.require_fresh(now)?;
    }
    let plan = Plan::parse(&schedule, &zone).map_err(|why| Failure::validation(&[why]))?;
    let status = asked.status.unwrap_or(before.status);
    let mut columns = plain_columns(&asked);
    columns.extend([
        ("timezone", zone.into()),
        ("status", status.word().into()),
        ("next_run_at", next_run(&plan, status, now).into()),
        ("version", (before.version + 1).into()),
        ("updated_at", now.into()),
    ]);
    if status == JobStatus::Active {
        columns.push(("pause_reason", Value::Null));
    }
    columns.extend(schedule_columns(&schedule));
    if let Some(name) = &asked.name {
        columns.push(("name", name.into()));
    }
    if let Some(config) = &asked.hyperv_config {
        columns.push(("hyperv_config", json!(config).into()));
    }
    if is_new_destination {
        columns.push(("dest_bucket_id", references.destination.into()));
        columns.push(("repository_id", references.repository.into()));
    }
    if references.agent.is_some() || references.group.is_some() {
        columns.push(("agent_id", references.agent.into()));
        columns.push(("host_group_id", if references.agent.is_some() { Value::Null } else { references.group.into() }));
    }
    let condition = "id = ? AND version = ?";
    if tx.update("s3_cloudbackup_jobs", &columns, condition, args![before.job_id, version]).await? == 0 {
        return Err(Code::Conflict.into());
    }
    let job = read(&mut tx, before.job_id).await?;
    let entry = Entry {
        action: "job.update",
        entity: "job",
        id: before.job_id.to_string(),
        before: Some(json!(before)),
        after: Some(json!(job)),
    };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    // Those that it runs on now, and those that it ran on: a run may go on there.
    let epoch = "UPDATE s3_cloudbackup_agents SET config_epoch = config_epoch + 1 WHERE id IN (?, ?) OR id IN \
                 (SELECT m.agent_id FROM s3_host_group_members m WHERE m.group_id IN (?, ?))";
    let places = args![job.agent_id, before.agent_id, job.host_group_id, before.host_group_id];
    tx.change(epoch, places).await?;
    changes::touch(&mut tx, person.scope.client, before.tenant_id, "jobs", now).await?;
    if is_shorter {
        let deed = Deed { entity: "job", id: before.job_id.to_string(), tenant: before.tenant_id, reason: None };
        if let Some(waits) = gate::finish(tx, call, deed).await? {
            return Ok(waits);
        }
    } else {
        tx.commit().await?;
    }
    Answer::ok(JobAnswer { job })
}

/// Whether any number of a policy goes down, or a policy appears where everything was kept.
fn is_shorter(before: Option<&Object>, after: Option<&Object>) -> bool {
    let Some(after) = after else { return false };
    let numbers = |policy: Option<&Object>, key: &str| {
        let inner = policy.and_then(|policy| policy.get("retention").and_then(Json::as_object).or(Some(policy)));
        inner.and_then(|inner| inner.get(key)).and_then(Json::as_i64).unwrap_or(0)
    };
    const KEYS: [&str; 7] = ["keep_last", "keep_days", "hourly", "daily", "weekly", "monthly", "yearly"];
    let keeps_all = |policy: Option<&Object>| KEYS.iter().all(|key| numbers(policy, key) == 0);
    let is_delete = |policy: Option<&Object>| policy.is_some_and(|policy| policy.contains_key("delete_all"));
    match (keeps_all(before), keeps_all(Some(after))) {
        _ if is_delete(Some(after)) && !is_delete(before) => true,
        (true, true) => false,
        (true, false) => true,
        (false, true) => false,
        (false, false) => KEYS.iter().any(|key| numbers(Some(after), key) < numbers(before, key)),
    }
}

/// `cloudbackup_get_job.php`.
pub async fn get(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: JobRef = call.read()?;
    let (condition, value) = named("j.", &asked.job_id);
    let filter = Filter::within(call.scope()?, "j").and_sql("j.status <> 'deleted'").and(&condition, value);
    let sql = format!("SELECT j.* FROM s3_cloudbackup_jobs j WHERE {}", filter.sql);
    let row = call.app.db.read().await?.row(&sql, &filter.args).await?.ok_or(Code::NotFound)?;
    Answer::ok(JobAnswer { job: on_wire(&row)? })
}

/// `cloudbackup_list_jobs.php`.
pub async fn list(call: &Call<'_>) -> Result<Answer, Failure> {
    let page: control_api::account::Page = call.read()?;
    let window = Window::new(page.limit, page.offset)?;
    let filter = Filter::within(call.scope()?, "j").and_sql("j.status <> 'deleted'");
    let mut tx = call.app.db.read().await?;
    let count = format!("SELECT COUNT(*) FROM s3_cloudbackup_jobs j WHERE {}", filter.sql);
    let total = tx.count(&count, &filter.args).await?;
    let sql =
        format!("SELECT j.* FROM s3_cloudbackup_jobs j WHERE {} ORDER BY j.name, j.id{}", filter.sql, window.sql());
    let jobs = tx.rows(&sql, &filter.args).await?.iter().map(on_wire).collect::<Result<_, _>>()?;
    let Window { limit, offset } = window;
    Answer::ok(Jobs { jobs, total, limit, offset })
}

/// `cloudbackup_delete_job.php`: queued runs end, running ones are told to; points stay (4.5 rule 5).
pub async fn delete(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: DeleteJob = call.read()?;
    let mut tx = call.app.db.write().await?;
    let row = find(&mut tx, person.scope, &asked.job_id).await?;
    if asked.confirm_phrase != row.text("name")? {
        return Err(Failure::validation(&[("confirm_phrase".into(), "is the job's name".into())]));
    }
    let id = row.int("id")?;
    let columns = [
        ("status", "deleted".into()),
        ("deleted_at", now.into()),
        ("next_run_at", Value::Null),
        ("version", (row.int("version")? + 1).into()),
        ("updated_at", now.into()),
    ];
    tx.update("s3_cloudbackup_jobs", &columns, "id = ?", args![id]).await?;
    let sql = format!(
        "SELECT * FROM s3_cloudbackup_runs WHERE job_id = ? AND status IN {} AND {}{}",
        runs::IN_FLIGHT,
        runs::IS_BACKUP,
        tx.for_update()
    );
    for run in tx.rows(&sql, args![id]).await? {
        end::cancel(&mut tx, &run, false, Some(person.user), now).await?;
    }
    let before = Some(json!(on_wire(&row)?));
    let entry = Entry { action: "job.delete", entity: "job", id: id.to_string(), before, after: None };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    changes::touch(&mut tx, person.scope.client, row.opt_int("tenant_id")?, "jobs", now).await?;
    tx.commit().await?;
    Answer::done()
}

/// `cloudbackup_validate_job.php`: what a job would do, before it is saved. Changes nothing.
pub async fn validate(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: JobRequest = call.read()?;
    let mut tx = call.app.db.write().await?;
    let before = match &asked.job_id {
        Some(id) => Some(find(&mut tx, person.scope, id).await?),
        None => None,
    };
    let stored = before.as_ref().map(on_wire).transpose()?;
    let tenant = match &stored {
        Some(job) => job.tenant_id,
        None => tenant_for(&mut tx, person.scope, asked.tenant_id).await?,
    };
    let zone = match (&asked.timezone, &stored) {
        (Some(zone), _) => zone.clone(),
        (None, Some(job)) => job.timezone.clone(),
        (None, None) => default_zone(&mut tx, person.scope).await?,
    };
    let references = references(&mut tx, person.scope, tenant, &asked).await?;
    let wrong = check(&asked, Engine::Hyperv, &zone);
    if !wrong.is_empty() {
        return Err(Failure::validation(&wrong));
    }
    let schedule = asked.schedule_json.clone().or(stored.as_ref().map(|job| job.schedule_json.clone()));
    let schedule = schedule.unwrap_or_default();
    let plan = match &before {
        Some(row) if asked.schedule_json.is_none() && asked.timezone.is_none() => plan_of(row)?,
        _ => Plan::parse(&schedule, &zone).map_err(|why| Failure::validation(&[why]))?,
    };
    let config = asked.hyperv_config.clone().or(stored.as_ref().and_then(|job| job.hyperv_config.clone()));
    let select = asked.select.clone().or(stored.as_ref().and_then(|job| job.select.clone()));
    let wanted = Wanted { select, ..Wanted::of_config(&config.unwrap_or_default()) };
    let agent = references.agent.or(stored.as_ref().and_then(|job| job.agent_id));
    let mut selection = Vec::new();
    if let Some(agent) = agent {
        for vm in selection::candidates(&mut tx, agent).await? {
            let (taken, reason) = wanted.decide(&vm);
            selection.push(Selected { vm_guid: vm.guid, vm_name: vm.name, taken, reason: reason.into() });
        }
    }
    let policy = asked.retention_json.clone().or(stored.as_ref().and_then(|job| job.retention_json.clone()));
    let retention = match &stored {
        Some(job) => preview(&mut tx, job.job_id, &policy.unwrap_or_default(), &zone, now).await?,
        None => Vec::new(),
    };
    let mut warnings = Vec::new();
    if selection.iter().all(|vm| !vm.taken) {
        warnings.push("No known VM would be taken".to_owned());
    }
    if plan.next_after(now).is_none() {
        warnings.push("The job runs only when it is asked to".to_owned());
    }
    Answer::ok(ValidatedJob {
        next_starts: plan.slots(now, 5).into_iter().map(time_text).collect(),
        rpo_target_hours: asked.rpo_target_hours.unwrap_or_else(|| plan.target(now).as_hours()),
        schedule,
        timezone: zone,
        selection,
        retention,
        warnings,
    })
}

/// What a policy would do to the points of a job's VMs.
async fn preview(
    tx: &mut Tx,
    job: i64,
    policy: &Object,
    zone: &str,
    now: Timestamp,
) -> Result<Vec<RetentionVerdict>, Failure> {
    let policy = Policy::parse(policy).map_err(|why| Failure::validation(&[("retention_json".into(), why)]))?;
    let zone = TimeZone::get(zone).unwrap_or(TimeZone::UTC);
    let by_vm = deletion::candidates(tx, job, now).await?;
    let verdicts = by_vm.values().flat_map(|points| retention::verdicts(points, policy, &zone, now));
    Ok(verdicts
        .map(|(point, kept_by)| RetentionVerdict {
            backup_point_id: point.id,
            snapshot_time: time_text(point.at),
            kept_by: kept_by.into_iter().map(str::to_owned).collect(),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_is_shorter_when_any_number_goes_down() {
        for (before, after, expected) in [
            (json!(null), json!({"daily": 7}), true),
            (json!({"daily": 7}), json!({"daily": 7}), false),
            (json!({"daily": 7}), json!({"daily": 6, "weekly": 9}), true),
            (json!({"daily": 7}), json!({"daily": 8, "weekly": 4}), false),
            (json!({"retention": {"daily": 7}}), json!({"daily": 6}), true),
            (json!({"daily": 7}), json!({}), false),
            (json!({"daily": 7}), json!({"delete_all": true}), true),
            (json!(null), json!({}), false),
        ] {
            let is = is_shorter(before.as_object(), after.as_object());
            assert_eq!(is, expected, "{before} to {after}");
        }
        assert!(!is_shorter(None, None));
    }
}

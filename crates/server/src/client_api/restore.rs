//! Starting a restore (spec control-api 5.5, 6.1): a run, a command for the target, and an event, in one transaction.

use control_api::restore::{RestoreVm, StartRestore, StartedRestore};
use control_api::words::{RunStatus, RunType, TriggerType};
use serde_json::{Map, json};

use super::{agents, once, own_row, questions, remember};
use crate::access::Filter;
use crate::access::audit::{self, Entry};
use crate::access::gate::{self, Deed};
use crate::args;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::protection;
use crate::runs::events;
use crate::store::{Row, Tx};

/// `cloudbackup_hyperv_start_restore.php`.
pub async fn start(call: &Call<'_>) -> Result<Answer, Failure> {
    once(call, "start_restore", start_now(call)).await
}

async fn start_now(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: StartRestore = call.read()?;
    match asked.restore_type.as_deref() {
        None | Some("full") => {}
        Some("instant") => return Err(Code::EngineNotAvailable.into()),
        Some(_) => return Err(Failure::invalid("restore_type", "is full or instant")),
    }
    let wanted: Vec<RestoreVm> = match asked.backup_point_id {
        Some(backup_point_id) => vec![RestoreVm { backup_point_id, disks: Vec::new() }],
        None if asked.vms.is_empty() => return Err(Failure::missing("backup_point_id")),
        None => asked.vms.clone(),
    };
    // A VM with the id of the point's gives way: that destroys something, if only after some days (6.3).
    let overwrites = asked.restore_options.as_ref().is_some_and(|options| options.overwrite_existing);
    if overwrites {
        person.require_fresh(now)?;
    }
    let mut tx = call.app.db.write().await?;
    let mut points: Vec<Row> = Vec::new();
    let mut job: Option<Row> = None;
    for vm in &wanted {
        let point =
            own_row(&mut tx, person.scope, "s3_hyperv_backup_points", vm.backup_point_id, Code::PointNotFound).await?;
        let disks = "SELECT COUNT(*) FROM s3_hyperv_backup_point_disks WHERE backup_point_id = ?";
        let has_disks = tx.count(disks, args![vm.backup_point_id]).await? > 0;
        let is_incremental = point.text("backup_type")? == "Incremental";
        let is_deleted = point.opt_time("deleted_at")?.is_some();
        if is_deleted {
            return Err(Code::PointNotFound.into());
        }
        let verify = point.opt_text("verify_status")?;
        if let Err(why) = protection::restorable(is_deleted, verify.as_deref(), is_incremental, has_disks) {
            return Err(Failure::validation(&[("backup_point_id".into(), format!("cannot be restored: {why}"))]));
        }
        let sql = "SELECT j.* FROM s3_hyperv_vms v JOIN s3_cloudbackup_jobs j ON j.id = v.job_id WHERE v.id = ?";
        let of_point = tx.row(sql, args![point.int("vm_id")?]).await?.ok_or(Code::PointNotFound)?;
        if let Some(job) = &job
            && job.int("id")? != of_point.int("id")?
        {
            return Err(Failure::validation(&[("vms".into(), "are of one job".into())]));
        }
        job = Some(of_point);
        points.push(point);
    }
    let job = job.ok_or(Code::PointNotFound)?;
    let target = target(&mut tx, call, &asked, &job).await?;
    let estimated: i64 = points.iter().map(|point| point.opt_int("total_size_bytes").ok().flatten().unwrap_or(0)).sum();

    let uuid = uuid::Uuid::now_v7().to_string();
    let columns = [
        ("run_uuid", uuid.clone().into()),
        ("job_id", job.int("id")?.into()),
        ("client_id", person.scope.client.into()),
        ("tenant_id", job.opt_int("tenant_id")?.into()),
        ("agent_id", target.into()),
        ("repository_id", job.opt_text("repository_id")?.into()),
        ("engine", job.text("engine")?.into()),
        ("run_type", RunType::HypervRestore.word().into()),
        ("trigger_type", if person.session.is_some() { TriggerType::Manual } else { TriggerType::Api }.word().into()),
        ("triggered_by", person.user.into()),
        ("status", RunStatus::Queued.word().into()),
        ("created_at", now.into()),
        ("updated_at", now.into()),
    ];
    let run = tx.insert("s3_cloudbackup_runs", &columns).await?;
    let mut vms = Vec::new();
    for (vm, point) in wanted.iter().zip(&points) {
        vms.push(json!({
            "backup_point_id": vm.backup_point_id,
            "vm_name": point.text("vm_name")?,
            "vm_guid": point.text("vm_guid")?,
            "manifest_id": point.text("manifest_id")?,
            "disks": vm.disks,
        }));
    }
    let payload = Map::from_iter([
        ("restore_run_id".to_owned(), json!(run)),
        ("restore_run_uuid".to_owned(), json!(uuid)),
        ("mode".to_owned(), json!(if asked.target_path.is_some() { "disks_only" } else { "full" })),
        ("target_path".to_owned(), json!(asked.target_path)),
        ("target_vm_name".to_owned(), json!(asked.target_vm_name)),
        ("restore_options".to_owned(), json!(asked.restore_options.clone().unwrap_or_default())),
        ("vms".to_owned(), json!(vms)),
    ]);
    let first = points.first().ok_or(Code::PointNotFound)?;
    let question = questions::Question {
        agent: target,
        kind: "hyperv_restore",
        payload,
        run: Some(run),
        job: Some(job.int("id")?),
        point: Some(first.int("id")?),
    };
    let command_id = questions::queue(&mut tx, person, question, now).await?;
    let (vm_name, kind) = (first.text("vm_name")?, first.text("backup_type")?);
    let params = json!({ "vm_name": vm_name, "vm_count": points.len(), "target_path": asked.target_path });
    events::write(&mut tx, run, "info", "info", "HYPERV_RESTORE_QUEUED", params, now).await?;
    let after = json!({
        "points": wanted.iter().map(|vm| vm.backup_point_id).collect::<Vec<_>>(), "target": target,
        "overwrite_existing": overwrites,
    });
    let entry = Entry { action: "restore.start", entity: "run", id: run.to_string(), before: None, after: Some(after) };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    let disks = "SELECT COUNT(*) FROM s3_hyperv_backup_point_disks WHERE backup_point_id = ?";
    let disks_to_restore = tx.count(disks, args![first.int("id")?]).await?;
    let answer = Answer::ok(StartedRestore {
        restore_run_id: run,
        restore_run_uuid: uuid,
        command_id,
        session_id: None,
        job_id: job.int("id")?,
        vm_name: vm_name.clone(),
        vm_count: i64::try_from(points.len()).unwrap_or(0),
        disks_to_restore,
        estimated_size_bytes: estimated,
        backup_type: kind,
    })?;
    remember(&mut tx, call, "start_restore", answer.json().cloned()).await?;
    if overwrites {
        let names = points.iter().map(|point| point.text("vm_name")).collect::<Result<Vec<_>, _>>()?;
        let (tenant, reason) = (job.opt_int("tenant_id")?, Some(format!("restore over {}", names.join(", "))));
        let deed = Deed { entity: "point", id: first.int("id")?.to_string(), tenant, reason };
        return Ok(gate::finish(tx, call, deed).await?.unwrap_or(answer));
    }
    tx.commit().await?;
    Ok(answer)
}

/// The agent that restores: named, or the host of that name, or the job's own. Another tenant's is not found.
pub(super) async fn target(tx: &mut Tx, call: &Call<'_>, asked: &StartRestore, job: &Row) -> Result<i64, Failure> {
    let scope = call.scope()?;
    let tenant = job.opt_int("tenant_id")?;
    let row = if let Some(id) = asked.target_agent_id {
        agents::find(tx, scope, Some(&id.into()), None).await?
    } else if let Some(host) = &asked.target_host {
        let filter =
            Filter::within(scope, "a").and_sql("a.status = 'active'").and("LOWER(a.hostname) = ?", host.to_lowercase());
        let sql = format!("SELECT a.* FROM s3_cloudbackup_agents a WHERE {}", filter.sql);
        let mut rows = tx.rows(&sql, &filter.args).await?;
        rows.retain(|row| row.opt_int("tenant_id").is_ok_and(|other| other == tenant));
        if rows.len() > 1 {
            return Err(Failure::validation(&[("target_host".into(), "more than one agent has this name".into())]));
        }
        rows.pop().ok_or(Code::NotFound)?
    } else {
        let id = job.opt_int("agent_id")?.ok_or_else(|| Failure::missing("target_agent_id"))?;
        agents::find(tx, scope, Some(&id.into()), None).await?
    };
    if row.opt_int("tenant_id")? != tenant {
        return Err(Code::NotFound.into());
    }
    Ok(row.int("id")?)
}

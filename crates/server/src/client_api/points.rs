//! Restore points in the client area (spec control-api 5.3, 6.1, 6.2).

use std::collections::BTreeSet;

use control_api::catalogue::{
    DeletePoints, DeletedPoints, HoldPoint, Point, PointList, PointListQuery, Points, PointsQuery, PointsVm,
    RunOfPoints, Snapshots, SnapshotsQuery, VerifyPoint,
};
use control_api::command::Queued;
use control_api::hyperv::ChainElement;
use control_api::words::RunStatus;
use serde_json::{Map, json};

use super::{Window, own_row, questions, vms};
use crate::access::audit::{self, Entry};
use crate::access::gate::{self, Deed};
use crate::access::{Filter, Need};
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::protection;
use crate::store::{Row, Value, time_text};

const SELECT: &str = "SELECT p.*, r.started_at AS run_started_at, r.finished_at AS run_finished_at, \
    (SELECT COUNT(*) FROM s3_hyperv_backup_point_disks d WHERE d.backup_point_id = p.id) AS disks \
    FROM s3_hyperv_backup_points p JOIN s3_cloudbackup_runs r ON r.id = p.run_id";

fn on_wire(row: &Row) -> Result<Point, Failure> {
    let (id, manifest_id, kind) = (row.int("id")?, row.text("manifest_id")?, row.text("backup_type")?);
    let verify_status = row.opt_text("verify_status")?;
    let disk_manifests: std::collections::BTreeMap<String, String> =
        row.opt_json("disk_manifests")?.unwrap_or_default();
    let named = disk_manifests.keys().filter(|path| !path.starts_with("_config")).count();
    let disk_count = row.int("disks")?.max(i64::try_from(named).unwrap_or(0));
    let restorable = protection::restorable(
        row.opt_time("deleted_at")?.is_some(),
        verify_status.as_deref(),
        kind == "Incremental",
        row.int("disks")? > 0,
    );
    let time = |name: &str| -> Result<Option<String>, Failure> { Ok(row.opt_time(name)?.map(time_text)) };
    Ok(Point {
        id,
        run_id: row.int("run_id")?,
        vm_id: row.int("vm_id")?,
        vm_name: row.text("vm_name")?,
        restore_chain: vec![ChainElement { id, kind: "Full".into(), manifest_id: manifest_id.clone() }],
        restore_chain_length: 1,
        backup_type: kind,
        manifest_id,
        parent_backup_id: row.opt_int("parent_backup_id")?,
        disk_manifests,
        disk_count,
        total_size_bytes: row.opt_int("total_size_bytes")?,
        changed_size_bytes: row.opt_int("changed_size_bytes")?,
        duration_seconds: row.opt_int("duration_seconds")?,
        consistency_level: row.text("consistency_level")?,
        created_at: time_text(row.time("created_at")?),
        run_started_at: time("run_started_at")?,
        run_finished_at: time("run_finished_at")?,
        has_warnings: row.flag("has_warnings")?,
        warning_code: row.opt_text("warning_code")?,
        warnings: row.opt_json("warnings_json")?.unwrap_or_default(),
        is_restorable: restorable.is_ok(),
        not_restorable_reason: restorable.err().map(str::to_owned),
        snapshot_time: time("snapshot_time")?,
        expires_at: time("expires_at")?,
        hold: row.flag("hold")?,
        hold_reason: row.opt_text("hold_reason")?,
        immutable_until: time("immutable_until")?,
        verified_at: time("verified_at")?,
        verify_status,
        retained_by: if row.flag("hold")? { vec!["held".into()] } else { Vec::new() },
    })
}

/// `cloudbackup_hyperv_backup_points.php`.
pub async fn of_vm(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: PointsQuery = call.read()?;
    let window = Window::new(asked.limit, asked.offset)?;
    let scope = call.scope()?;
    let filter = Filter::within(scope, "v").and("v.id = ?", asked.vm_id);
    let mut tx = call.app.db.read().await?;
    let sql = format!(
        "SELECT v.*, j.name AS job_name FROM s3_hyperv_vms v JOIN s3_cloudbackup_jobs j ON j.id = v.job_id WHERE {}",
        filter.sql
    );
    let vm = tx.row(&sql, &filter.args).await?.ok_or(Code::NotFound)?;
    let disks = tx.rows("SELECT * FROM s3_hyperv_vm_disks WHERE vm_id = ? ORDER BY id", args![asked.vm_id]).await?;
    let mut filter = Filter::within(scope, "p").and("p.vm_id = ?", asked.vm_id).and_sql("p.deleted_at IS NULL");
    match asked.kind.as_deref() {
        None | Some("") => {}
        Some(kind @ ("Full" | "Incremental")) => filter = filter.and("p.backup_type = ?", kind),
        Some(_) => return Err(Failure::invalid("type", "is Full or Incremental")),
    }
    let total =
        tx.count(&format!("SELECT COUNT(*) FROM s3_hyperv_backup_points p WHERE {}", filter.sql), &filter.args).await?;
    let sql = format!("{SELECT} WHERE {} ORDER BY p.created_at DESC, p.id DESC{}", filter.sql, window.sql());
    let backup_points = tx.rows(&sql, &filter.args).await?.iter().map(on_wire).collect::<Result<_, _>>()?;
    Answer::ok(Points {
        vm: PointsVm {
            id: vm.int("id")?,
            vm_name: vm.text("vm_name")?,
            vm_guid: vm.opt_text("vm_guid")?.unwrap_or_default(),
            generation: vm.int("generation")?,
            rct_enabled: vm.flag("rct_enabled")?,
            job_id: vm.int("job_id")?,
            job_name: vm.text("job_name")?,
        },
        disks: disks.iter().map(vms::disk).collect::<Result<_, _>>()?,
        backup_points,
        total,
        limit: window.limit,
        offset: window.offset,
    })
}

/// `e3backup_restore_points_list.php`.
pub async fn list(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: PointListQuery = call.read()?;
    let window = Window::new(asked.limit, asked.offset)?;
    let mut filter = Filter::within(call.scope()?, "p").and_sql("p.deleted_at IS NULL");
    if let Some(vm) = asked.vm_id {
        filter = filter.and("p.vm_id = ?", vm);
    }
    if let Some(tenant) = asked.tenant_id {
        filter = filter.and("p.tenant_id = ?", tenant);
    }
    if let Some(job) = &asked.job_id {
        let (condition, value) = crate::jobs::named("j.", job);
        let of_job = format!("r.job_id IN (SELECT j.id FROM s3_cloudbackup_jobs j WHERE {condition})");
        filter = filter.and(&of_job, value);
    }
    let mut tx = call.app.db.read().await?;
    let mut from = "s3_hyperv_backup_points p".to_owned();
    if asked.job_id.is_some() {
        from += " JOIN s3_cloudbackup_runs r ON r.id = p.run_id";
    }
    let total = tx.count(&format!("SELECT COUNT(*) FROM {from} WHERE {}", filter.sql), &filter.args).await?;
    // The page is found in an index first: what lies before it is not looked up.
    let sql = format!(
        "{SELECT} JOIN (SELECT p.id FROM {from} WHERE {} ORDER BY p.created_at DESC, p.id DESC{}) page \
         ON page.id = p.id ORDER BY p.created_at DESC, p.id DESC",
        filter.sql,
        window.sql()
    );
    let restore_points = tx.rows(&sql, &filter.args).await?.iter().map(on_wire).collect::<Result<_, _>>()?;
    Answer::ok(PointList { restore_points, total, limit: window.limit, offset: window.offset })
}

/// `cloudbackup_hyperv_snapshots.php`: the points of a job or a VM, by the run that made them.
pub async fn snapshots(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: SnapshotsQuery = call.read()?;
    let window = Window::new(asked.limit, asked.offset)?;
    let filter = Filter::within(call.scope()?, "p").and_sql("p.deleted_at IS NULL");
    let filter = match (&asked.job_id, asked.vm_id) {
        (_, Some(vm)) => filter.and("p.vm_id = ?", vm),
        (Some(job), None) => {
            let (condition, value) = crate::jobs::named("j.", job);
            filter.and(&format!("r.job_id IN (SELECT j.id FROM s3_cloudbackup_jobs j WHERE {condition})"), value)
        }
        (None, None) => return Err(Failure::missing("job_id")),
    };
    let mut tx = call.app.db.read().await?;
    let from = "s3_hyperv_backup_points p JOIN s3_cloudbackup_runs r ON r.id = p.run_id";
    let count = format!("SELECT COUNT(DISTINCT r.id) FROM {from} WHERE {}", filter.sql);
    let total = tx.count(&count, &filter.args).await?;
    let sql = format!(
        "SELECT DISTINCT r.id, r.run_uuid, r.job_id, r.status, r.started_at, r.finished_at FROM {from} WHERE {} \
         ORDER BY r.id DESC{}",
        filter.sql,
        window.sql()
    );
    let mut snapshots = Vec::new();
    for row in tx.rows(&sql, &filter.args).await? {
        snapshots.push(RunOfPoints {
            run_id: row.int("id")?,
            run_uuid: row.text("run_uuid")?,
            job_id: row.int("job_id")?,
            status: row.word("status", RunStatus::of_word)?,
            started_at: row.opt_time("started_at")?.map(time_text),
            finished_at: row.opt_time("finished_at")?.map(time_text),
            vms: Vec::new(),
        });
    }
    let filter = filter.and_in("p.run_id", snapshots.iter().map(|run| run.run_id));
    let sql = format!("{SELECT} WHERE {} ORDER BY p.vm_name, p.id", filter.sql);
    for row in tx.rows(&sql, &filter.args).await? {
        let point = on_wire(&row)?;
        if let Some(run) = snapshots.iter_mut().find(|run| run.run_id == point.run_id) {
            run.vms.push(point);
        }
    }
    Answer::ok(Snapshots { snapshots, total, limit: window.limit, offset: window.offset })
}

/// `cloudbackup_point_hold.php`: setting a hold is harmless, releasing one is an administrator's.
pub async fn hold(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: HoldPoint = call.read()?;
    if !asked.hold {
        call.require(Need::Admin)?;
    }
    if asked.reason.as_ref().is_some_and(|reason| reason.chars().count() > 255) {
        return Err(Failure::invalid("reason", "longer than 255 characters"));
    }
    let mut tx = call.app.db.write().await?;
    let id = asked.backup_point_id;
    let point = own_row(&mut tx, person.scope, "s3_hyperv_backup_points", id, Code::PointNotFound).await?;
    if point.opt_time("deleted_at")?.is_some() {
        return Err(Code::PointNotFound.into());
    }
    let mut columns = vec![("hold", asked.hold.into()), ("hold_reason", Value::from(asked.reason.clone()))];
    if asked.hold {
        // A hold also undoes a deletion that has not taken effect.
        columns.extend([("delete_state", Value::Null), ("delete_after", Value::Null)]);
    }
    tx.update("s3_hyperv_backup_points", &columns, "id = ?", args![id]).await?;
    let entry = Entry {
        action: "point.hold",
        entity: "point",
        id: id.to_string(),
        before: Some(json!({ "hold": point.flag("hold")? })),
        after: Some(json!({ "hold": asked.hold, "reason": asked.reason })),
    };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::done()
}

/// `cloudbackup_point_delete.php`: takes effect after the client's delay, and can be undone or held until then.
pub async fn delete(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: DeletePoints = call.read()?;
    if asked.backup_point_ids.is_empty() || asked.backup_point_ids.len() > 1000 {
        return Err(Failure::invalid("backup_point_ids", "names 1 to 1,000 points"));
    }
    if asked.confirm_phrase != asked.backup_point_ids.len().to_string() {
        return Err(Failure::validation(&[("confirm_phrase".into(), "is the number of points".into())]));
    }
    person.require_fresh(now)?;
    let takes_effect_at = after(now, person.policy.delete_delay_hours.clamp(0, 720) * 3600);
    let mut tx = call.app.db.write().await?;
    let mut tenants = BTreeSet::new();
    for id in &asked.backup_point_ids {
        let point = own_row(&mut tx, person.scope, "s3_hyperv_backup_points", *id, Code::PointNotFound).await?;
        if point.opt_time("deleted_at")?.is_some() {
            return Err(Code::PointNotFound.into());
        }
        let is_locked = point.opt_time("immutable_until")?.is_some_and(|until| until > now);
        if point.flag("hold")? || is_locked {
            let why = format!("point {id} is held");
            return Err(Failure::validation(&[("backup_point_ids".into(), why)]));
        }
        let sessions = "SELECT COUNT(*) FROM s3_hyperv_instant_restore_sessions WHERE backup_point_id = ? \
                        AND status IN ('Starting', 'Active', 'Migrating')";
        if tx.count(sessions, args![*id]).await? > 0 {
            return Err(Code::SessionActive.into());
        }
        tenants.insert(point.opt_int("tenant_id")?);
        let columns = [("delete_state", "pending".into()), ("delete_after", takes_effect_at.into())];
        tx.update("s3_hyperv_backup_points", &columns, "id = ?", args![*id]).await?;
    }
    let after = json!({ "points": asked.backup_point_ids, "takes_effect_at": time_text(takes_effect_at) });
    let id = asked.backup_point_ids.first().map(ToString::to_string).unwrap_or_default();
    let entry = Entry { action: "point.delete", entity: "point", id: id.clone(), before: None, after: Some(after) };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    // Points of one tenant can be judged by its own people.
    let tenant = if tenants.len() == 1 { tenants.into_iter().next().flatten() } else { None };
    let deed = Deed { entity: "point", id, tenant, reason: asked.reason.clone() };
    if let Some(waits) = gate::finish(tx, call, deed).await? {
        return Ok(waits);
    }
    Answer::ok(DeletedPoints { pending: asked.backup_point_ids, takes_effect_at: time_text(takes_effect_at) })
}

/// `cloudbackup_verify_point.php`: the job's agent reads it.
pub async fn verify(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: VerifyPoint = call.read()?;
    let level = asked.level.clone().unwrap_or_else(|| "structure".into());
    if !["structure", "sample", "full", "restore"].contains(&level.as_str()) {
        return Err(Failure::invalid("level", "is structure, sample, full or restore"));
    }
    let mut tx = call.app.db.write().await?;
    let id = asked.backup_point_id;
    let point = own_row(&mut tx, person.scope, "s3_hyperv_backup_points", id, Code::PointNotFound).await?;
    if point.opt_time("deleted_at")?.is_some() {
        return Err(Code::PointNotFound.into());
    }
    let sql =
        "SELECT j.id, j.agent_id FROM s3_hyperv_vms v JOIN s3_cloudbackup_jobs j ON j.id = v.job_id WHERE v.id = ?";
    let job = tx.row(sql, args![point.int("vm_id")?]).await?.ok_or(Code::PointNotFound)?;
    let agent = job.opt_int("agent_id")?.or(point.opt_int("agent_id")?).ok_or(Code::Conflict)?;
    let payload = Map::from_iter([
        ("backup_point_id".to_owned(), json!(id)),
        ("level".to_owned(), json!(level)),
        ("sample_pct".to_owned(), json!(asked.sample_pct)),
    ]);
    let command = questions::Question {
        agent,
        kind: "verify_point",
        payload,
        run: None,
        job: Some(job.int("id")?),
        point: Some(id),
    };
    let command_id = questions::queue(&mut tx, person, command, now).await?;
    let entry = Entry { action: "point.verify", entity: "point", id: id.to_string(), before: None, after: None };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::with("pending", Queued { command_id })
}

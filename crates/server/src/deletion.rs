//! Points that go (spec control-api 4.5, 6.3): by policy, or because a person asked, always through an agent.
//!
//! The server marks and queues; an agent deletes the manifests under the repository's lease. A point counts as deleted
//! when the agent has said so, and not before. A hold that comes in between wins.

use std::collections::BTreeMap;

use control_api::Object;
use control_api::words::RepoOperationType;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value as Json, json};

use crate::App;
use crate::agent_api::carried;
use crate::args;
use crate::changes;
use crate::clock::after;
use crate::failure::Failure;
use crate::jobs;
use crate::protection::RESTORABLE;
use crate::retention::{self, Candidate, Policy};
use crate::secret;
use crate::store::{Row, Tx, Value};

/// Policies are applied so often, by one instance.
const RETENTION_SECS: i64 = 3600;

/// Marks what policies let go, and queues what is due.
pub async fn tick(app: &App, now: Timestamp) -> Result<(), Failure> {
    if take_turn(app, "retention", RETENTION_SECS, now).await? {
        let sql = "SELECT * FROM s3_cloudbackup_jobs WHERE engine = 'hyperv' AND retention_json IS NOT NULL";
        for job in app.db.read().await?.rows(sql, args![]).await? {
            let mut tx = app.db.write().await?;
            apply(&mut tx, &job, now).await?;
            tx.commit().await?;
        }
    }
    queue_due(app, now).await
}

/// Whether this instance is the one to do that work now; the next turn is after so many seconds.
pub async fn take_turn(app: &App, name: &str, seconds: i64, now: Timestamp) -> Result<bool, Failure> {
    let due = "SELECT COUNT(*) FROM server_leases WHERE name = ? AND until > ?";
    if app.db.read().await?.count(due, args![name, now]).await? > 0 {
        return Ok(false);
    }
    let mut tx = app.db.write().await?;
    let holder = secret::id128()?;
    let columns = [("name", name.into()), ("holder", holder.clone().into()), ("until", after(now, seconds).into())];
    let mut is_ours = tx.insert_new("server_leases", &columns).await?;
    if !is_ours {
        let condition = "name = ? AND until <= ?";
        is_ours = tx.update("server_leases", &columns[1..], condition, args![name, now]).await? == 1;
    }
    tx.commit().await?;
    Ok(is_ours)
}

/// Marks the points of a job that its policy does not keep.
async fn apply(tx: &mut Tx, job: &Row, now: Timestamp) -> Result<(), Failure> {
    let policy: Object = job.opt_json("retention_json")?.unwrap_or_default();
    let Ok(policy) = Policy::parse(&policy) else { return Ok(()) };
    let zone = TimeZone::get(&jobs::schedule_of(job)?.1).unwrap_or(TimeZone::UTC);
    for points in candidates(tx, job.int("id")?, now).await?.values() {
        for (point, kept_by) in retention::verdicts(points, policy, &zone, now) {
            if kept_by.is_empty() {
                let columns = [("delete_state", "pending".into()), ("delete_after", now.into())];
                let condition = "id = ? AND delete_state IS NULL AND hold = 0";
                tx.update("s3_hyperv_backup_points", &columns, condition, args![point.id]).await?;
            }
        }
    }
    Ok(())
}

/// The points of a job's VMs, as retention sees them.
pub async fn candidates(tx: &mut Tx, job: i64, now: Timestamp) -> Result<BTreeMap<i64, Vec<Candidate>>, Failure> {
    let sql = format!(
        "SELECT p.id, p.vm_id, p.snapshot_time, p.hold, p.immutable_until, \
         CASE WHEN {RESTORABLE} THEN 1 ELSE 0 END AS is_complete, \
         (SELECT COUNT(*) FROM s3_hyperv_checkpoints c WHERE c.backup_point_id = p.id AND c.is_active = 1) AS bases \
         FROM s3_hyperv_backup_points p JOIN s3_hyperv_vms v ON v.id = p.vm_id \
         WHERE v.job_id = ? AND p.deleted_at IS NULL ORDER BY p.vm_id, p.id"
    );
    let read = carried::named_points(tx, "job_id = ?", args![job]).await?;
    let mut by_vm: BTreeMap<i64, Vec<Candidate>> = BTreeMap::new();
    for row in tx.rows(&sql, args![job]).await? {
        let is_immutable = row.opt_time("immutable_until")?.is_some_and(|until| until > now);
        by_vm.entry(row.int("vm_id")?).or_default().push(Candidate {
            id: row.int("id")?,
            at: row.time("snapshot_time")?,
            is_complete: row.int("is_complete")? == 1,
            is_base: row.int("bases")? > 0,
            is_pinned: row.flag("hold")? || is_immutable || read.contains(&row.int("id")?),
        });
    }
    Ok(by_vm)
}

/// One operation for each repository that has points to lose.
async fn queue_due(app: &App, now: Timestamp) -> Result<(), Failure> {
    let due = "SELECT COUNT(*) FROM s3_hyperv_backup_points WHERE delete_state = 'pending' AND delete_after <= ?";
    if app.db.read().await?.count(due, args![now]).await? == 0 {
        return Ok(());
    }
    let mut tx = app.db.write().await?;
    let sql = format!(
        "SELECT p.id, p.manifest_id, r.id AS repository, r.client_id, r.tenant_id FROM s3_hyperv_backup_points p \
         JOIN s3_cloudbackup_repositories r ON r.repository_id = p.repository_id \
         WHERE p.delete_state = 'pending' AND p.delete_after <= ? AND p.deleted_at IS NULL AND p.hold = 0 \
         ORDER BY p.id LIMIT 1000{}",
        tx.for_update_skipping()
    );
    let mut by_repository: BTreeMap<i64, (i64, Option<i64>, Vec<Json>)> = BTreeMap::new();
    for row in tx.rows(&sql, args![now]).await? {
        let (client, tenant) = (row.int("client_id")?, row.opt_int("tenant_id")?);
        let entry = by_repository.entry(row.int("repository")?).or_insert((client, tenant, Vec::new()));
        entry.2.push(json!({ "backup_point_id": row.int("id")?, "manifest_id": row.text("manifest_id")? }));
        let sql =
            "UPDATE s3_hyperv_backup_points SET delete_state = 'queued' WHERE id = ? AND delete_state = 'pending'";
        tx.change(sql, args![row.int("id")?]).await?;
    }
    for (repository, (client, tenant, points)) in by_repository {
        let columns = [
            ("repo_id", repository.into()),
            ("client_id", client.into()),
            ("tenant_id", tenant.into()),
            ("op_type", RepoOperationType::DeletePoints.word().into()),
            ("operation_token", secret::token("new_")?.into()),
            ("payload_json", json!({ "points": points }).into()),
            ("next_attempt_at", now.into()),
            ("created_at", now.into()),
            ("updated_at", now.into()),
        ];
        tx.insert("s3_kopia_repo_operations", &columns).await?;
    }
    Ok(tx.commit().await?)
}

/// The payload of an operation as it is handed out: without points that were held since it was queued. A hold undoes a
/// deletion that has not begun.
pub async fn still_wanted(tx: &mut Tx, operation: &Row, now: Timestamp) -> Result<Option<Object>, Failure> {
    let Some(mut payload) = operation.opt_json::<Object>("payload_json")? else { return Ok(None) };
    let Some(points) = payload.get("points").and_then(Json::as_array).cloned() else { return Ok(Some(payload)) };
    let sql = format!(
        "SELECT id FROM s3_hyperv_backup_points WHERE id = ? AND hold = 0 AND delete_state IN ('queued', 'failed'){}",
        tx.for_update()
    );
    let mut wanted = Vec::with_capacity(points.len());
    for point in points {
        let Some(id) = point["backup_point_id"].as_i64() else { continue };
        if tx.row(&sql, args![id]).await?.is_some() {
            wanted.push(point);
        }
    }
    payload.insert("points".into(), wanted.into());
    let columns = [("payload_json", Json::Object(payload.clone()).into()), ("updated_at", now.into())];
    tx.update("s3_kopia_repo_operations", &columns, "id = ?", args![operation.int("id")?]).await?;
    Ok(Some(payload))
}

/// What an agent's word about an operation means for the points in it.
pub async fn finished(tx: &mut Tx, operation: &Row, is_success: bool, now: Timestamp) -> Result<(), Failure> {
    if operation.text("op_type")? != RepoOperationType::DeletePoints.word() {
        return Ok(());
    }
    let payload: Json = operation.opt_json("payload_json")?.unwrap_or_default();
    for point in payload["points"].as_array().into_iter().flatten() {
        let Some(id) = point["backup_point_id"].as_i64() else { continue };
        let columns: Vec<(&str, Value)> = if is_success {
            vec![("deleted_at", now.into()), ("delete_state", "deleted".into())]
        } else {
            vec![("delete_state", "failed".into())]
        };
        tx.update("s3_hyperv_backup_points", &columns, "id = ? AND delete_state = 'queued'", args![id]).await?;
        if is_success {
            let columns = [
                ("is_active", false.into()),
                ("invalidated_at", now.into()),
                ("invalid_reason", "point_deleted".into()),
            ];
            let condition = "backup_point_id = ? AND is_active = 1";
            tx.update("s3_hyperv_checkpoints", &columns, condition, args![id]).await?;
        }
    }
    changes::touch(tx, operation.int("client_id")?, operation.opt_int("tenant_id")?, "vms", now).await
}

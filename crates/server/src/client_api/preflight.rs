//! What would stand against a restore (spec control-api 6.2, console 3.9 and 9): asked of the target, which knows.

use control_api::command::Queued;
use control_api::restore::{RestoreVm, StartRestore};
use serde_json::{Map, json};

use super::{own_row, questions, restore};
use crate::args;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::store::Row;

/// `cloudbackup_restore_preflight.php`: with the fields of a restore; nothing is changed anywhere.
pub async fn preflight(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: StartRestore = call.read()?;
    if asked.restore_type.as_deref().is_some_and(|kind| kind != "full") {
        return Err(Code::EngineNotAvailable.into());
    }
    let wanted: Vec<RestoreVm> = match asked.backup_point_id {
        Some(backup_point_id) => vec![RestoreVm { backup_point_id, disks: Vec::new() }],
        None if asked.vms.is_empty() => return Err(Failure::missing("backup_point_id")),
        None => asked.vms.clone(),
    };
    if wanted.len() > 200 {
        return Err(Failure::invalid("vms", "at most 200 at a time"));
    }
    let mut tx = call.app.db.write().await?;
    let mut vms = Vec::new();
    let mut job: Option<Row> = None;
    for vm in &wanted {
        let point =
            own_row(&mut tx, person.scope, "s3_hyperv_backup_points", vm.backup_point_id, Code::PointNotFound).await?;
        if point.opt_time("deleted_at")?.is_some() {
            return Err(Code::PointNotFound.into());
        }
        let sql = "SELECT j.* FROM s3_hyperv_vms v JOIN s3_cloudbackup_jobs j ON j.id = v.job_id WHERE v.id = ?";
        let of_point = tx.row(sql, args![point.int("vm_id")?]).await?.ok_or(Code::PointNotFound)?;
        let is_other = match &job {
            Some(job) => job.int("id")? != of_point.int("id")?,
            None => false,
        };
        if is_other {
            return Err(Failure::validation(&[("vms".into(), "are of one job".into())]));
        }
        job = Some(of_point);
        vms.push(json!({
            "backup_point_id": vm.backup_point_id,
            "vm_name": point.text("vm_name")?,
            "vm_guid": point.text("vm_guid")?,
            "manifest_id": point.text("manifest_id")?,
            "disks": vm.disks,
        }));
    }
    let job = job.ok_or(Code::PointNotFound)?;
    let agent = restore::target(&mut tx, call, &asked, &job).await?;
    let payload = Map::from_iter([
        ("mode".to_owned(), json!(if asked.target_path.is_some() { "disks_only" } else { "full" })),
        ("target_path".to_owned(), json!(asked.target_path)),
        ("target_vm_name".to_owned(), json!(asked.target_vm_name)),
        ("restore_options".to_owned(), json!(asked.restore_options.clone().unwrap_or_default())),
        ("vms".to_owned(), json!(vms)),
    ]);
    let first = wanted.first().map(|vm| vm.backup_point_id);
    let kind = "hyperv_preflight";
    let question = questions::Question { agent, kind, payload, run: None, job: Some(job.int("id")?), point: first };
    let command_id = questions::queue(&mut tx, person, question, now).await?;
    tx.commit().await?;
    Answer::with("pending", Queued { command_id })
}

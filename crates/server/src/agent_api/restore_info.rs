//! What an agent needs to restore a point (spec control-api 2.11).

use control_api::hyperv::{ChainElement, RestoreInfo, RestoreInfoPoint, RestoreInfoQuery};

use super::carried;
use crate::args;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::runs::payload;
use crate::store::time_text;
use crate::vault;

/// `agent_hyperv_get_restore_info.php`.
pub async fn get(call: &Call<'_>) -> Result<Answer, Failure> {
    let agent = call.agent()?;
    let asked: RestoreInfoQuery = call.read()?;
    let mut tx = call.app.db.read().await?;
    let named = carried::named_points(&mut tx, "agent_id = ?", args![agent.id]).await?;
    let is_target = named.contains(&asked.backup_point_id);
    let sql = "SELECT p.*, v.generation, j.agent_id AS job_agent, j.id AS job_id FROM s3_hyperv_backup_points p \
               JOIN s3_hyperv_vms v ON v.id = p.vm_id JOIN s3_cloudbackup_jobs j ON j.id = v.job_id \
               WHERE p.id = ? AND p.client_id = ? AND p.deleted_at IS NULL";
    let point = tx.row(sql, args![asked.backup_point_id, agent.client]).await?.ok_or(Code::PointNotFound)?;
    let is_beside = point.opt_int("tenant_id")? == agent.tenant;
    let is_own = point.opt_int("job_agent")? == Some(agent.id);
    let may_read = is_own || (is_target && is_beside);
    if !may_read {
        return Err(Code::PointNotFound.into());
    }
    let job_context = if is_target {
        let job = "SELECT * FROM s3_cloudbackup_jobs WHERE id = ?";
        let job = tx.row(job, args![point.int("job_id")?]).await?.ok_or(Code::PointNotFound)?;
        let opened = vault::keys_of_job(&mut tx, &job).await?.open(&call.app.vault)?;
        Some(payload::job_context(opened, &job)?)
    } else {
        None
    };
    let (id, manifest_id) = (point.int("id")?, point.text("manifest_id")?);
    Answer::ok(RestoreInfo {
        // Every stored image is complete: one element, whatever was read (5.4).
        restore_chain: vec![ChainElement { id, kind: "Full".into(), manifest_id: manifest_id.clone() }],
        backup_point: RestoreInfoPoint {
            id,
            vm_name: point.text("vm_name")?,
            backup_type: point.text("backup_type")?,
            manifest_id,
            vm_config: point.opt_json("vm_config_json")?,
            disk_manifests: point.opt_json("disk_manifests")?.unwrap_or_default(),
            vm_guid: Some(point.text("vm_guid")?),
            consistency_level: Some(point.text("consistency_level")?),
            snapshot_time: Some(time_text(point.time("snapshot_time")?)),
            total_size_bytes: point.opt_int("total_size_bytes")?,
            repository_id: point.opt_text("repository_id")?,
        },
        job_context,
    })
}

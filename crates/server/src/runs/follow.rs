//! VMs that moved to another host before their turn: the run hands them back, and their new owner takes them (clusters,
//! spec control-api 4.1).

use control_api::words::TriggerType;
use jiff::Timestamp;
use serde_json::json;

use super::{IN_FLIGHT, IS_BACKUP, NewRun, events, queue};
use crate::args;
use crate::failure::Failure;
use crate::store::{Row, Tx};

/// Queues a run of the VMs that this run did not find, where another host of the job's group has them now.
///
/// Of a VM that was handed on, the result says `moved`, which is neither stored nor failed.
pub async fn moved(tx: &mut Tx, run: &Row, now: Timestamp) -> Result<(), Failure> {
    let sql = "SELECT * FROM s3_cloudbackup_jobs WHERE id = ? AND status = 'active' AND host_group_id IS NOT NULL";
    let Some(job) = tx.row(sql, args![run.int("job_id")?]).await? else { return Ok(()) };
    let sql = "SELECT x.id, x.vm_id, v.vm_guid, v.vm_name FROM s3_cloudbackup_run_vm_results x \
               JOIN s3_hyperv_vms v ON v.id = x.vm_id \
               WHERE x.run_id = ? AND x.state = 'failed' AND x.error_code = 'VM_NOT_FOUND'";
    let mut by_host: std::collections::BTreeMap<i64, Vec<i64>> = std::collections::BTreeMap::new();
    for result in tx.rows(sql, args![run.int("id")?]).await? {
        let owner = "SELECT h.agent_id FROM s3_host_vms h JOIN s3_host_group_members m ON m.agent_id = h.agent_id \
                     JOIN s3_cloudbackup_agents a ON a.id = h.agent_id AND a.status = 'active' \
                     WHERE m.group_id = ? AND h.vm_guid = ? AND h.missing_since IS NULL AND h.agent_id <> ? \
                     ORDER BY h.last_seen_at DESC LIMIT 1";
        let args = args![job.int("host_group_id")?, result.opt_text("vm_guid")?, run.opt_int("agent_id")?];
        let Some(owner) = tx.row(owner, args).await? else { continue };
        let owner = owner.int("agent_id")?;
        tx.change("UPDATE s3_cloudbackup_run_vm_results SET state = 'moved' WHERE id = ?", args![result.int("id")?])
            .await?;
        let params = json!({ "vm_name": result.text("vm_name")?, "agent_id": owner });
        events::write(tx, run.int("id")?, "info", "info", "HYPERV_VM_MOVED", params, now).await?;
        by_host.entry(owner).or_default().push(result.int("vm_id")?);
    }
    for (host, vms) in by_host {
        let running = format!(
            "SELECT COUNT(*) FROM s3_cloudbackup_runs WHERE job_id = ? AND agent_id = ? AND status IN {IN_FLIGHT} \
             AND {IS_BACKUP}"
        );
        // A run that waits there takes the VM by itself when it is handed out; one that works there had its turn, and
        // the next slot takes it.
        if tx.count(&running, args![job.int("id")?, host]).await? > 0 {
            continue;
        }
        let new = NewRun {
            trigger: TriggerType::Retry,
            by: None,
            slot: run.opt_time("slot_utc")?,
            not_before: None,
            force_full: run.flag("force_full")?,
            only_vms: vms,
        };
        queue(tx, &job, host, &new, now).await?;
    }
    Ok(())
}

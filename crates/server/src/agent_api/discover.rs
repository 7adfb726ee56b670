//! What is on a host, as its agent reports it (spec control-api 2.9).

use std::collections::BTreeSet;

use control_api::Object;
use control_api::hyperv::{Discover, DiscoverAnswer, DiscoveredVm, Vm};
use jiff::Timestamp;
use serde_json::json;

use crate::access::agent::Agent;
use crate::args;
use crate::changes;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::selection::{self, Wanted};
use crate::store::{Row, Tx, Value};

/// `agent_hyperv_discover.php`.
pub async fn discover(call: &Call<'_>) -> Result<Answer, Failure> {
    let (agent, now) = (call.agent()?, call.app.clock.now());
    let asked: Discover = call.read()?;
    let mut tx = call.app.db.write().await?;
    let job = match &asked.job_id {
        Some(id) => {
            let (condition, value) = crate::jobs::named("j.", id);
            let sql = format!(
                "SELECT j.* FROM s3_cloudbackup_jobs j WHERE {condition} AND j.status <> 'deleted' AND j.client_id = ? \
                 AND (j.agent_id = ? OR j.host_group_id IN \
                 (SELECT group_id FROM s3_host_group_members WHERE agent_id = ?))"
            );
            let args = args![value, agent.client, agent.id, agent.id];
            Some(tx.row(&sql, args).await?.ok_or(Code::NotFound)?)
        }
        None => None,
    };
    let mut answer = DiscoverAnswer { vms: Vec::new(), created: 0, updated: 0, vm_ids: Vec::new() };
    if !asked.vms.is_empty() {
        check(&asked.vms)?;
        for vm in &asked.vms {
            if inventory(&mut tx, agent, vm, now).await? { answer.created += 1 } else { answer.updated += 1 }
        }
        miss(&mut tx, agent, &asked.vms, now).await?;
        let columns = [
            ("inventory_json", asked.host.as_ref().map(|host| json!(host)).into()),
            ("inventory_updated_at", now.into()),
        ];
        tx.update("s3_cloudbackup_agents", &columns, "id = ?", args![agent.id]).await?;
        changes::touch(&mut tx, agent.client, agent.tenant, "vms", now).await?;
    }
    let wanted = match &job {
        Some(job) => {
            let config: Object = job.opt_json("hyperv_config")?.unwrap_or_default();
            Some((job, Wanted::of_job(job, &config)?))
        }
        None => None,
    };
    let sql = "SELECT * FROM s3_host_vms WHERE agent_id = ? AND missing_since IS NULL ORDER BY vm_name, vm_guid";
    for row in tx.rows(sql, args![agent.id]).await? {
        let mut known = known(&row)?;
        if let Some((job, wanted)) = &wanted
            && wanted.decide(&selection::candidate(&row)?).0
        {
            let (guid, name) = (row.text("vm_guid")?, row.text("vm_name")?);
            let (id, is_enabled) = selection::row_of(&mut tx, job, agent.id, &guid, &name, now).await?;
            facts(&mut tx, id, &known.vm, now).await?;
            answer.vm_ids.push(id);
            known.vm_id = Some(id);
            known.backup_enabled = is_enabled;
        }
        answer.vms.push(known);
    }
    tx.commit().await?;
    Answer::ok(answer)
}

fn check(vms: &[Vm]) -> Result<(), Failure> {
    if vms.len() > 5000 {
        return Err(Failure::invalid("vms", "more than 5000"));
    }
    for (at, vm) in vms.iter().enumerate() {
        let is_good = !vm.id.trim().is_empty() && vm.id.len() <= 64 && vm.name.chars().count() <= 255;
        if !is_good {
            return Err(Failure::invalid(&format!("vms.{at}.id"), "empty, or longer than it can be"));
        }
        let disks = vm.disks.iter().flat_map(|disk| [disk.size_bytes, disk.used_bytes]).flatten();
        if disks.into_iter().any(|bytes| bytes < 0) {
            return Err(Failure::invalid(&format!("vms.{at}.disks"), "a size below zero"));
        }
    }
    Ok(())
}

/// Hyper-V's id as it is kept: upper case without braces (2.2).
pub fn normal(guid: &str) -> String {
    guid.trim().trim_matches(['{', '}']).to_uppercase()
}

/// Keeps what the host says of one VM; whether it is new there.
async fn inventory(tx: &mut Tx, agent: &Agent, vm: &Vm, now: Timestamp) -> Result<bool, Failure> {
    let guid = normal(&vm.id);
    let reason = vm.not_backupable_reason.as_ref().map(|reason| reason.chars().take(255).collect::<String>());
    let mut columns: Vec<(&str, Value)> = vec![
        ("vm_name", vm.name.clone().into()),
        ("state", vm.state.as_ref().map(|state| state.chars().take(32).collect::<String>()).into()),
        ("backupable", vm.backupable.unwrap_or(true).into()),
        ("not_backupable_reason", reason.into()),
        ("facts_json", serde_json::to_value(vm).map_err(Failure::internal)?.into()),
        ("last_seen_at", now.into()),
        ("missing_since", Value::Null),
    ];
    let condition = "agent_id = ? AND vm_guid = ?";
    let find = "SELECT id FROM s3_host_vms WHERE agent_id = ? AND vm_guid = ?";
    if tx.row(find, args![agent.id, &guid]).await?.is_some() {
        tx.update("s3_host_vms", &columns, condition, args![agent.id, &guid]).await?;
        return Ok(false);
    }
    // A person's decision belongs to the VM, not to the host that it lives on.
    let moved = "SELECT tags_json, excluded_by, excluded_at, excluded_reason FROM s3_host_vms \
                 WHERE client_id = ? AND vm_guid = ? AND tenant_id IS NULL ORDER BY last_seen_at DESC LIMIT 1";
    let in_tenant = moved.replace("tenant_id IS NULL", "tenant_id = ?");
    let before = match agent.tenant {
        Some(tenant) => tx.row(&in_tenant, args![agent.client, &guid, tenant]).await?,
        None => tx.row(moved, args![agent.client, &guid]).await?,
    };
    if let Some(before) = before {
        columns.extend([
            ("tags_json", before.opt_text("tags_json")?.into()),
            ("excluded_by", before.opt_int("excluded_by")?.into()),
            ("excluded_at", before.opt_time("excluded_at")?.into()),
            ("excluded_reason", before.opt_text("excluded_reason")?.into()),
        ]);
    }
    columns.extend([
        ("client_id", agent.client.into()),
        ("tenant_id", agent.tenant.into()),
        ("agent_id", agent.id.into()),
        ("vm_guid", guid.into()),
        ("created_at", now.into()),
    ]);
    tx.insert("s3_host_vms", &columns).await?;
    Ok(true)
}

/// VMs that a report no longer names are missing since now, and kept.
async fn miss(tx: &mut Tx, agent: &Agent, vms: &[Vm], now: Timestamp) -> Result<(), Failure> {
    let there: BTreeSet<String> = vms.iter().map(|vm| normal(&vm.id)).collect();
    let sql = "SELECT id, vm_guid FROM s3_host_vms WHERE agent_id = ? AND missing_since IS NULL";
    for row in tx.rows(sql, args![agent.id]).await? {
        let guid = row.text("vm_guid")?;
        if !there.contains(&guid) {
            let sql = "UPDATE s3_host_vms SET missing_since = ? WHERE id = ?";
            tx.change(sql, args![now, row.int("id")?]).await?;
            let sql = "UPDATE s3_hyperv_vms SET missing_since = ? WHERE agent_id = ? AND vm_guid = ?";
            tx.change(sql, args![now, agent.id, guid]).await?;
        }
    }
    Ok(())
}

fn known(row: &Row) -> Result<DiscoveredVm, Failure> {
    let vm: Option<Vm> = row.opt_json("facts_json")?;
    let vm = vm.ok_or_else(|| Failure::internal("a VM without facts"))?;
    Ok(DiscoveredVm { vm: Vm { id: row.text("vm_guid")?, ..vm }, vm_id: None, backup_enabled: false })
}

/// Keeps the design document's columns of a job's VM and its disks.
async fn facts(tx: &mut Tx, id: i64, vm: &Vm, now: Timestamp) -> Result<(), Failure> {
    let short =
        |text: &Option<String>, most: usize| text.as_ref().map(|text| text.chars().take(most).collect::<String>());
    let columns = [
        ("generation", vm.generation.filter(|generation| (1..=2).contains(generation)).unwrap_or(2).into()),
        ("is_linux", vm.is_linux.into()),
        ("integration_services", vm.integration_services.unwrap_or(true).into()),
        ("rct_enabled", vm.rct_enabled.into()),
        ("state", short(&vm.state, 32).into()),
        ("config_version", short(&vm.config_version, 16).into()),
        ("guest_family", short(&vm.guest_family, 16).into()),
        ("last_seen_at", now.into()),
        ("missing_since", Value::Null),
        ("updated_at", now.into()),
    ];
    tx.update("s3_hyperv_vms", &columns, "id = ?", args![id]).await?;
    if vm.disks.is_empty() {
        return Ok(());
    }
    tx.change("UPDATE s3_hyperv_vm_disks SET gone_at = ? WHERE vm_id = ? AND gone_at IS NULL", args![now, id]).await?;
    for disk in &vm.disks {
        let kind = if disk.controller_type.as_deref() == Some("IDE") { "IDE" } else { "SCSI" };
        let (number, location) = (disk.controller_number.unwrap_or(0), disk.controller_location.unwrap_or(0));
        let identity = short(&disk.virtual_disk_id, 64).unwrap_or_default();
        let format = if disk.vhd_format.as_deref() == Some("VHD") { "VHD" } else { "VHDX" };
        let rct_id = disk.rct_id.clone().filter(|id| id.chars().count() <= 128);
        let columns: Vec<(&str, Value)> = vec![
            ("disk_path", disk.path.chars().take(1024).collect::<String>().into()),
            ("vhd_format", format.into()),
            ("size_bytes", disk.size_bytes.into()),
            ("virtual_size_bytes", disk.size_bytes.into()),
            ("used_bytes", disk.used_bytes.into()),
            ("rct_enabled", disk.rct_enabled.into()),
            ("current_rct_id", rct_id.into()),
            ("kind", short(&disk.kind, 16).into()),
            ("excluded_reason", short(&disk.excluded_reason, 255).into()),
            ("gone_at", Value::Null),
            ("updated_at", now.into()),
        ];
        let condition = "vm_id = ? AND virtual_disk_id = ? AND controller_type = ? AND controller_number = ? \
                         AND controller_location = ?";
        let place = args![id, &identity, kind, number, location];
        let find = format!("SELECT id FROM s3_hyperv_vm_disks WHERE {condition}");
        if tx.row(&find, place).await?.is_some() {
            tx.update("s3_hyperv_vm_disks", &columns, condition, place).await?;
            continue;
        }
        let mut columns = columns;
        columns.extend([
            ("vm_id", id.into()),
            ("virtual_disk_id", identity.into()),
            ("controller_type", kind.into()),
            ("controller_number", number.into()),
            ("controller_location", location.into()),
            ("created_at", now.into()),
        ]);
        tx.insert("s3_hyperv_vm_disks", &columns).await?;
    }
    Ok(())
}

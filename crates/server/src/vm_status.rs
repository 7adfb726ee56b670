//! `vm_status`: the protection state of every VM as a table that lists and counts are read from (console 9).
//!
//! A cache of [`protection::state`]: computed anew for a whole client, a few queries for any number of VMs.

use std::collections::{BTreeMap, BTreeSet};

use control_api::Object;
use control_api::protection::{VmRow, VmStatus};
use control_api::words::Protection;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::App;
use crate::args;
use crate::changes;
use crate::failure::Failure;
use crate::jobs;
use crate::protection::{self, Facts, RESTORABLE};
use crate::selection::{self, Wanted};
use crate::store::{Row, Tx, Value, time_text};

/// One VM of a client, on whichever host it is.
#[derive(Debug, Default)]
struct Vm {
    name: String,
    tenant: Option<i64>,
    agent: Option<i64>,
    as_of: Option<Timestamp>,
    jobs: Vec<i64>,
    points: i64,
    newest_point: Option<i64>,
    facts: Facts,
    paused: Vec<String>,
}

/// Computes the states of a client's VMs; how many changed.
///
/// Everything is read before the transaction begins: most times nothing changed, and nobody waited for a look at ten
/// thousand VMs.
pub async fn refresh(app: &App, client: i64, now: Timestamp) -> Result<usize, Failure> {
    let mut tx = app.db.read().await?;
    // The rows before the facts: a VM that is reported between the two is new, and not one that is gone.
    let stored = tx.rows("SELECT * FROM vm_status WHERE client_id = ?", args![client]).await?;
    let vms = gather(&mut tx, client, now).await?;
    drop(tx);
    let stored: BTreeMap<String, Row> =
        stored.into_iter().map(|row| Ok((row.text("vm_guid")?, row))).collect::<Result<_, Failure>>()?;
    let mut todo = Vec::new();
    for (guid, vm) in &vms {
        if let Some(columns) = difference(vm, stored.get(guid), now)? {
            todo.push((guid, vm.tenant, columns));
        }
    }
    let gone: Vec<(&String, &Row)> = stored.iter().filter(|(guid, _)| !vms.contains_key(*guid)).collect();
    if todo.is_empty() && gone.is_empty() {
        return Ok(0);
    }
    let mut tx = app.db.write().await?;
    let (mut changed, mut tenants) = (0, BTreeSet::new());
    for (guid, tenant, columns) in todo {
        if write(&mut tx, client, guid, columns, stored.get(guid), now).await? {
            changed += 1;
            tenants.insert(tenant);
        }
    }
    for (guid, row) in gone {
        let of = args![client, guid, row.int("version")?];
        tx.change("DELETE FROM vm_status WHERE client_id = ? AND vm_guid = ? AND version = ?", of).await?;
        changed += 1;
        tenants.insert(row.opt_int("tenant_id")?);
    }
    // Each tenant hears of its own VMs only.
    for tenant in tenants {
        changes::touch(&mut tx, client, tenant, "vms", now).await?;
    }
    tx.commit().await?;
    Ok(changed)
}

/// Computes the states of every client.
pub async fn refresh_all(app: &App, now: Timestamp) -> Result<(), Failure> {
    let clients = app.db.read().await?.rows("SELECT id FROM s3_clients", args![]).await?;
    for client in clients {
        refresh(app, client.int("id")?, now).await?;
    }
    Ok(())
}

async fn gather(tx: &mut Tx, client: i64, now: Timestamp) -> Result<BTreeMap<String, Vm>, Failure> {
    let mut vms: BTreeMap<String, Vm> = BTreeMap::new();
    let mut candidates: BTreeMap<i64, Vec<selection::Candidate>> = BTreeMap::new();
    // The newest report of a VM is of the host that has it now.
    let sql = "SELECT vm_guid, vm_name, tenant_id, agent_id, last_seen_at, missing_since, backupable, tags_json, \
               not_backupable_reason, excluded_at, excluded_reason FROM s3_host_vms WHERE client_id = ? \
               ORDER BY missing_since IS NULL, last_seen_at, id";
    for row in tx.rows(sql, args![client]).await? {
        let guid = row.text("vm_guid")?;
        let vm = vms.entry(guid).or_default();
        vm.name = row.text("vm_name")?;
        vm.tenant = row.opt_int("tenant_id")?;
        vm.agent = Some(row.int("agent_id")?);
        vm.as_of = Some(row.time("last_seen_at")?);
        vm.facts.is_reported = true;
        vm.facts.missing_since = row.opt_time("missing_since")?;
        let reason = row.opt_text("not_backupable_reason")?;
        let obstacle = reason.unwrap_or_else(|| "its host says that it cannot be backed up".into());
        vm.facts.obstacle = (!row.flag("backupable")?).then_some(obstacle);
        let why = row.opt_text("excluded_reason")?.filter(|why| !why.is_empty());
        vm.facts.exclusion = row.opt_time("excluded_at")?.map(|_| why.unwrap_or_else(|| "by a person".into()));
        candidates.entry(row.int("agent_id")?).or_default().push(selection::candidate(&row)?);
    }
    take(tx, client, &mut vms, &candidates, now).await?;
    stored(tx, client, &mut vms).await?;
    for vm in vms.values_mut() {
        if !vm.facts.has_active_job {
            vm.facts.paused_job = vm.paused.first().cloned();
        }
    }
    Ok(vms)
}

/// Which jobs take which VM, and what they promise.
async fn take(
    tx: &mut Tx,
    client: i64,
    vms: &mut BTreeMap<String, Vm>,
    candidates: &BTreeMap<i64, Vec<selection::Candidate>>,
    now: Timestamp,
) -> Result<(), Failure> {
    let members = "SELECT m.group_id, m.agent_id FROM s3_host_group_members m \
                   JOIN s3_host_groups g ON g.id = m.group_id WHERE g.client_id = ?";
    let mut groups: BTreeMap<i64, BTreeSet<i64>> = BTreeMap::new();
    for row in tx.rows(members, args![client]).await? {
        groups.entry(row.int("group_id")?).or_default().insert(row.int("agent_id")?);
    }
    let sql = "SELECT job_id, vm_guid, vm_name, tenant_id, agent_id, backup_enabled FROM s3_hyperv_vms \
               WHERE client_id = ? AND vm_guid IS NOT NULL";
    let mut rows: BTreeMap<(i64, String), bool> = BTreeMap::new();
    for row in tx.rows(sql, args![client]).await? {
        let guid = row.text("vm_guid")?;
        let vm = vms.entry(guid.clone()).or_insert_with(|| Vm { name: String::new(), ..Vm::default() });
        if vm.name.is_empty() {
            vm.name = row.text("vm_name")?;
            vm.tenant = row.opt_int("tenant_id")?;
            vm.agent = row.opt_int("agent_id")?;
        }
        rows.insert((row.int("job_id")?, guid), row.flag("backup_enabled")?);
    }
    let sql = "SELECT * FROM s3_cloudbackup_jobs WHERE client_id = ? AND engine = 'hyperv' AND status <> 'deleted'";
    for job in tx.rows(sql, args![client]).await? {
        let (id, is_active) = (job.int("id")?, job.text("status")? == "active");
        let config: Object = job.opt_json("hyperv_config")?.unwrap_or_default();
        let wanted = Wanted::of_job(&job, &config)?;
        let target = match job.opt_int("rpo_target_hours")? {
            Some(hours) => SignedDuration::from_hours(hours),
            None => jobs::plan_of(&job)?.target(now),
        };
        let (agent, group) = (job.opt_int("agent_id")?, job.opt_int("host_group_id")?);
        let mut hosts = group.and_then(|group| groups.get(&group).cloned()).unwrap_or_default();
        hosts.extend(agent);
        let there = hosts.iter().filter_map(|host| Some((host, candidates.get(host)?)));
        for (host, candidate) in there.flat_map(|(host, vms)| vms.iter().map(move |vm| (host, vm))) {
            let is_enabled = rows.get(&(id, candidate.guid.clone())).copied().unwrap_or(true);
            if !is_enabled || !wanted.decide(candidate).0 {
                continue;
            }
            let Some(vm) = vms.get_mut(&candidate.guid).filter(|vm| vm.agent == Some(*host)) else { continue };
            if !is_active {
                vm.paused.push(job.text("name")?);
                continue;
            }
            // Of several jobs the strictest promise counts.
            vm.facts.target = if vm.jobs.is_empty() { target } else { vm.facts.target.min(target) };
            vm.facts.has_active_job = true;
            vm.jobs.push(id);
        }
    }
    Ok(())
}

/// What is stored of each VM.
async fn stored(tx: &mut Tx, client: i64, vms: &mut BTreeMap<String, Vm>) -> Result<(), Failure> {
    let sql = format!(
        "SELECT p.vm_guid, COUNT(*) AS points, MAX(p.snapshot_time) AS newest, MAX(p.id) AS newest_id \
         FROM s3_hyperv_backup_points p WHERE p.client_id = ? AND {RESTORABLE} GROUP BY p.vm_guid"
    );
    for row in tx.rows(&sql, args![client]).await? {
        let Some(vm) = vms.get_mut(&row.text("vm_guid")?) else { continue };
        vm.points = row.int("points")?;
        vm.facts.newest = row.opt_time("newest")?;
        vm.newest_point = row.opt_int("newest_id")?;
    }
    let sql = "SELECT vm_guid, MAX(snapshot_time) AS newest FROM s3_hyperv_backup_points \
               WHERE client_id = ? AND deleted_at IS NULL AND verify_status = 'damaged' GROUP BY vm_guid";
    for row in tx.rows(sql, args![client]).await? {
        let newest = row.opt_time("newest")?;
        if let Some(vm) = vms.get_mut(&row.text("vm_guid")?) {
            vm.facts.is_newest_damaged = newest > vm.facts.newest;
        }
    }
    Ok(())
}

/// What a VM's row is to say, where it does not say so already.
fn difference(vm: &Vm, stored: Option<&Row>, now: Timestamp) -> Result<Option<Vec<(&'static str, Value)>>, Failure> {
    let (state, reason) = protection::state(&vm.facts, now);
    let reason: String = reason.chars().take(255).collect();
    let target = vm.facts.has_active_job.then(|| vm.facts.target.as_secs());
    let columns: Vec<(&str, Value)> = vec![
        ("tenant_id", vm.tenant.into()),
        ("vm_name", vm.name.clone().into()),
        ("agent_id", vm.agent.into()),
        ("state", state.word().into()),
        ("severity", protection::severity(state).into()),
        ("reason", reason.into()),
        ("job_ids_json", json!(vm.jobs).into()),
        ("point_count", vm.points.into()),
        ("newest_point_id", vm.newest_point.into()),
        ("newest_snapshot_time", vm.facts.newest.into()),
        ("target_seconds", target.into()),
        ("as_of", vm.as_of.into()),
    ];
    let Some(row) = stored else { return Ok(Some(columns)) };
    let is_same = |(name, value): &(&str, Value)| match value {
        Value::Time(_) => row.opt_time(name).is_ok_and(|time| Value::from(time) == *value),
        Value::Text(_) => row.opt_text(name).is_ok_and(|text| Value::from(text) == *value),
        _ => row.get(name).is_ok_and(|stored| stored == value),
    };
    Ok(if columns.iter().all(is_same) { None } else { Some(columns) })
}

/// Writes it; false where another instance was first with what it computed at the same time.
async fn write(
    tx: &mut Tx,
    client: i64,
    guid: &str,
    mut columns: Vec<(&'static str, Value)>,
    stored: Option<&Row>,
    now: Timestamp,
) -> Result<bool, Failure> {
    columns.push(("updated_at", now.into()));
    if let Some(row) = stored {
        let version = row.int("version")?;
        columns.push(("version", (version + 1).into()));
        let of = args![row.int("id")?, version];
        return Ok(tx.update("vm_status", &columns, "id = ? AND version = ?", of).await? == 1);
    }
    columns.extend([("client_id", client.into()), ("vm_guid", guid.into())]);
    Ok(tx.insert_new("vm_status", &columns).await?)
}

/// What every answer says of a VM. Age is of now, the state of when it was computed, seconds ago.
pub fn status(row: &Row, now: Timestamp) -> Result<VmStatus, Failure> {
    let newest = row.opt_time("newest_snapshot_time")?;
    Ok(VmStatus {
        state: row.word("state", Protection::of_word)?,
        reason: row.text("reason")?,
        age_seconds: newest.map(|newest| now.duration_since(newest).as_secs().max(0)),
        target_seconds: row.opt_int("target_seconds")?,
        as_of: row.opt_time("as_of")?.map(time_text),
    })
}

/// A row on the wire; `hostname` is joined.
pub fn on_wire(row: &Row, now: Timestamp, vm_ids: Vec<i64>) -> Result<VmRow, Failure> {
    Ok(VmRow {
        vm_guid: row.text("vm_guid")?,
        vm_name: row.text("vm_name")?,
        tenant_id: row.opt_int("tenant_id")?,
        agent_id: row.opt_int("agent_id")?,
        hostname: row.opt_text("hostname")?,
        job_ids: row.opt_json("job_ids_json")?.unwrap_or_default(),
        vm_ids,
        point_count: row.int("point_count")?,
        newest_point_id: row.opt_int("newest_point_id")?,
        newest_snapshot_time: row.opt_time("newest_snapshot_time")?.map(time_text),
        status: status(row, now)?,
    })
}

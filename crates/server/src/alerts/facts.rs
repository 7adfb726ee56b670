//! What is known of a client, read for [`super::causes`].

use std::collections::{BTreeMap, BTreeSet};

use control_api::Object;
use control_api::words::{Protection, RunStatus};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value as Json;

use super::causes::{
    AgentFact, CheckpointReport, DamagedFact, Facts, Mismatch, RepositoryFact, RunFact, Thresholds, VmFact,
};
use crate::args;
use crate::clock::after;
use crate::failure::Failure;
use crate::protection::RESTORABLE;
use crate::runs::IS_BACKUP;
use crate::store::{Row, Tx, Value, marks};

const DAY_SECS: i64 = 86_400;
/// Events of agents and runs count for so long.
const REPORTS_SECS: i64 = 30 * DAY_SECS;
/// A VM whose target nobody set.
const USUAL_TARGET: SignedDuration = SignedDuration::from_hours(26);
/// Runs that ended by themselves: one that was cancelled says nothing.
const ENDED: &str = "('success', 'warning', 'partial_success', 'failed')";

/// Everything, in a number of queries that does not grow with the client (but for what is wrong).
pub async fn gather(
    tx: &mut Tx,
    client: i64,
    limits: &Thresholds,
    chain: Option<bool>,
    now: Timestamp,
) -> Result<Facts, Failure> {
    let checkpoints = checkpoints(tx, client, now).await?;
    Ok(Facts {
        vms: vms(tx, client, limits, now).await?,
        runs: runs(tx, client, now).await?,
        agents: agents(tx, client).await?,
        newest_by_vm: newest(tx, client, &checkpoints).await?,
        checkpoints,
        mismatches: mismatches(tx, client, now).await?,
        repositories: repositories(tx, client, now).await?,
        damaged: damaged(tx, client).await?,
        chain,
    })
}

async fn vms(tx: &mut Tx, client: i64, limits: &Thresholds, now: Timestamp) -> Result<Vec<VmFact>, Failure> {
    let jobs = "SELECT id, created_at FROM s3_cloudbackup_jobs WHERE client_id = ? AND status = 'active'";
    let mut made: BTreeMap<i64, Timestamp> = BTreeMap::new();
    for row in tx.rows(jobs, args![client]).await? {
        made.insert(row.int("id")?, row.time("created_at")?);
    }
    let mut sql = "SELECT s.*, (SELECT MIN(h.created_at) FROM s3_host_vms h WHERE h.client_id = s.client_id \
                   AND h.vm_guid = s.vm_guid) AS seen_since FROM vm_status s WHERE s.client_id = ? \
                   AND (s.state IN ('at_risk', 'never_backed_up', 'late')"
        .to_owned();
    let mut values = vec![Value::from(client)];
    if limits.no_point_hours > 0 {
        sql += " OR (s.state = 'protected' AND s.newest_snapshot_time < ?)";
        values.push(after(now, -3600 * limits.no_point_hours).into());
    }
    sql += ")";
    let mut vms = Vec::new();
    for row in tx.rows(&sql, &values).await? {
        let jobs: Vec<i64> = row.opt_json("job_ids_json")?.unwrap_or_default();
        // Its target runs from when a job first took it; a VM that is older than its job is new to the job.
        let in_job = jobs.iter().filter_map(|job| made.get(job)).min().copied();
        let seen = row.opt_time("seen_since")?;
        vms.push(VmFact {
            guid: row.text("vm_guid")?,
            name: row.text("vm_name")?,
            tenant: row.opt_int("tenant_id")?,
            state: row.word("state", Protection::of_word)?,
            reason: row.text("reason")?,
            newest: row.opt_time("newest_snapshot_time")?,
            target: row.opt_int("target_seconds")?.map_or(USUAL_TARGET, SignedDuration::from_secs),
            known_since: in_job.max(seen).unwrap_or(now),
        });
    }
    Ok(vms)
}

/// The last run of every active job; of a job with several hosts, of each host that ran lately.
async fn runs(tx: &mut Tx, client: i64, now: Timestamp) -> Result<Vec<RunFact>, Failure> {
    let columns = "r.id, r.job_id, r.agent_id, r.status, r.error_code, r.error_summary, j.name, j.tenant_id, \
                   j.host_group_id, a.hostname";
    let joins = "LEFT JOIN s3_cloudbackup_agents a ON a.id = r.agent_id";
    let one = format!(
        "SELECT {columns} FROM s3_cloudbackup_jobs j JOIN s3_cloudbackup_runs r ON r.id = (SELECT x.id \
         FROM s3_cloudbackup_runs x WHERE x.job_id = j.id AND x.status IN {ENDED} \
         AND (x.run_type IS NULL OR x.run_type = 'backup') ORDER BY x.created_at DESC, x.id DESC LIMIT 1) {joins} \
         WHERE j.client_id = ? AND j.status = 'active' AND j.agent_id IS NOT NULL"
    );
    let mut rows = tx.rows(&one, args![client]).await?;
    let several = format!(
        "SELECT {columns} FROM s3_cloudbackup_jobs j JOIN s3_cloudbackup_runs r ON r.job_id = j.id {joins} \
         WHERE j.client_id = ? AND j.status = 'active' AND j.host_group_id IS NOT NULL AND r.id IN (SELECT MAX(x.id) \
         FROM s3_cloudbackup_runs x WHERE x.client_id = ? AND x.created_at > ? AND x.status IN {ENDED} \
         AND (x.run_type IS NULL OR x.run_type = 'backup') GROUP BY x.job_id, x.agent_id)"
    );
    rows.extend(tx.rows(&several, args![client, client, after(now, -14 * DAY_SECS)]).await?);
    rows.iter().map(run).collect()
}

fn run(row: &Row) -> Result<RunFact, Failure> {
    let (job, agent) = (row.int("job_id")?, row.opt_int("agent_id")?);
    let host = row.opt_text("hostname")?;
    let is_of_group = row.opt_int("host_group_id")?.is_some();
    let subject = if is_of_group { format!("{job}/{}", agent.unwrap_or(0)) } else { job.to_string() };
    let name = row.text("name")?;
    let summary = match (row.opt_text("error_summary")?, row.opt_text("error_code")?) {
        (Some(summary), _) if !summary.trim().is_empty() => summary,
        (_, Some(code)) => code,
        _ => "no reason was given".into(),
    };
    Ok(RunFact {
        subject,
        name: host.map_or(name.clone(), |host| format!("{name} on {host}")),
        tenant: row.opt_int("tenant_id")?,
        run: row.int("id")?,
        status: row.word("status", RunStatus::of_word)?,
        summary,
    })
}

/// Servers; a workstation may be switched off.
async fn agents(tx: &mut Tx, client: i64) -> Result<Vec<AgentFact>, Failure> {
    let sql = "SELECT id, hostname, tenant_id, last_seen_at, created_at FROM s3_cloudbackup_agents \
               WHERE client_id = ? AND status = 'active' AND agent_type <> 'workstation'";
    let rows = tx.rows(sql, args![client]).await?;
    let fact = |row: &Row| -> Result<AgentFact, Failure> {
        let id = row.int("id")?;
        Ok(AgentFact {
            id,
            name: row.opt_text("hostname")?.unwrap_or_else(|| format!("agent {id}")),
            tenant: row.opt_int("tenant_id")?,
            seen: match row.opt_time("last_seen_at")? {
                Some(seen) => seen,
                None => row.time("created_at")?,
            },
        })
    };
    rows.iter().map(fact).collect()
}

async fn checkpoints(tx: &mut Tx, client: i64, now: Timestamp) -> Result<Vec<CheckpointReport>, Failure> {
    let sql = "SELECT e.agent_id, e.ts, e.code, e.params_json, a.hostname, a.tenant_id \
               FROM s3_cloudbackup_agent_events e JOIN s3_cloudbackup_agents a ON a.id = e.agent_id \
               WHERE e.code IN ('HYPERV_LEFTOVER_CHECKPOINT', 'HYPERV_MERGE_STUCK', 'HYPERV_MERGE_DONE') AND e.ts > ? \
               AND a.client_id = ? AND a.status = 'active' ORDER BY e.id";
    let mut reports = Vec::new();
    for row in tx.rows(sql, args![after(now, -REPORTS_SECS), client]).await? {
        let params: Object = row.opt_json("params_json")?.unwrap_or_default();
        let Some(vm) = text(&params, "vm_name") else { continue };
        reports.push(CheckpointReport {
            agent: row.int("agent_id")?,
            host: row.opt_text("hostname")?.unwrap_or_default(),
            tenant: row.opt_int("tenant_id")?,
            vm,
            at: row.time("ts")?,
            created: text(&params, "created_at").and_then(|at| at.parse().ok()),
            is_gone: row.text("code")? == "HYPERV_MERGE_DONE",
        });
    }
    Ok(reports)
}

async fn newest(
    tx: &mut Tx,
    client: i64,
    reports: &[CheckpointReport],
) -> Result<BTreeMap<String, Timestamp>, Failure> {
    let names: Vec<&String> = reports.iter().map(|report| &report.vm).collect::<BTreeSet<_>>().into_iter().collect();
    let mut newest = BTreeMap::new();
    for names in names.chunks(200) {
        let sql = format!(
            "SELECT vm_name, MAX(newest_snapshot_time) AS newest FROM vm_status WHERE client_id = ? \
             AND vm_name IN ({}) GROUP BY vm_name",
            marks(names.len())
        );
        let values: Vec<Value> =
            std::iter::once(client.into()).chain(names.iter().map(|name| (*name).into())).collect();
        for row in tx.rows(&sql, &values).await? {
            if let Some(at) = row.opt_time("newest")? {
                newest.insert(row.text("vm_name")?, at);
            }
        }
    }
    Ok(newest)
}

async fn mismatches(tx: &mut Tx, client: i64, now: Timestamp) -> Result<Vec<Mismatch>, Failure> {
    let sql = "SELECT e.run_id, e.params_json, r.job_id, r.tenant_id FROM s3_cloudbackup_run_events e \
               JOIN s3_cloudbackup_runs r ON r.id = e.run_id WHERE e.message_id = 'HYPERV_SAMPLE_MISMATCH' \
               AND e.ts > ? AND r.client_id = ? ORDER BY e.id";
    let mut last: BTreeMap<(i64, String), Mismatch> = BTreeMap::new();
    for row in tx.rows(sql, args![after(now, -REPORTS_SECS), client]).await? {
        let params: Object = row.opt_json("params_json")?.unwrap_or_default();
        let Some(name) = text(&params, "vm_name") else { continue };
        let mismatch = Mismatch {
            vm: name.clone(),
            name: name.clone(),
            tenant: row.opt_int("tenant_id")?,
            run: row.int("run_id")?,
            good_run: None,
            disk: text(&params, "disk_path").unwrap_or_else(|| "a disk".into()),
        };
        last.insert((row.int("job_id")?, name), mismatch);
    }
    for ((job, name), mismatch) in &mut last {
        let sql = "SELECT id, vm_guid FROM s3_hyperv_vms WHERE job_id = ? AND vm_name = ? ORDER BY id DESC";
        let Some(vm) = tx.row(sql, args![*job, name]).await? else { continue };
        mismatch.vm = vm.opt_text("vm_guid")?.unwrap_or_else(|| name.clone());
        let sql = format!(
            "SELECT MAX(p.run_id) FROM s3_hyperv_backup_points p WHERE p.vm_id = ? AND p.run_id > ? AND {RESTORABLE}"
        );
        let good = tx.count(&sql, args![vm.int("id")?, mismatch.run]).await?;
        mismatch.good_run = (good > 0).then_some(good);
    }
    Ok(last.into_values().collect())
}

async fn repositories(tx: &mut Tx, client: i64, now: Timestamp) -> Result<Vec<RepositoryFact>, Failure> {
    let (day, fortnight) = (after(now, -DAY_SECS), after(now, -15 * DAY_SECS));
    let sql = format!(
        "SELECT repository_id, tenant_id, MIN(created_at) AS since, \
         CAST(SUM(CASE WHEN created_at >= ? THEN COALESCE(bytes_transferred, 0) ELSE 0 END) AS SIGNED) AS today, \
         CAST(SUM(CASE WHEN created_at < ? THEN COALESCE(bytes_transferred, 0) ELSE 0 END) AS SIGNED) AS earlier \
         FROM s3_cloudbackup_runs WHERE client_id = ? AND created_at >= ? AND repository_id IS NOT NULL \
         AND {IS_BACKUP} GROUP BY repository_id, tenant_id"
    );
    let rows = tx.rows(&sql, args![day, day, client, fortnight]).await?;
    let fact = |row: &Row| -> Result<RepositoryFact, Failure> {
        Ok(RepositoryFact {
            id: row.text("repository_id")?,
            tenant: row.opt_int("tenant_id")?,
            day_bytes: row.int("today")?,
            before_bytes: row.int("earlier")?,
            since: row.time("since")?,
        })
    };
    rows.iter().map(fact).collect()
}

async fn damaged(tx: &mut Tx, client: i64) -> Result<Vec<DamagedFact>, Failure> {
    let sql = "SELECT vm_guid, MAX(vm_name) AS vm_name, MAX(tenant_id) AS tenant_id, COUNT(*) AS points \
               FROM s3_hyperv_backup_points WHERE client_id = ? AND verify_status = 'damaged' AND deleted_at IS NULL \
               GROUP BY vm_guid";
    let rows = tx.rows(sql, args![client]).await?;
    let fact = |row: &Row| -> Result<DamagedFact, Failure> {
        Ok(DamagedFact {
            guid: row.text("vm_guid")?,
            name: row.text("vm_name")?,
            tenant: row.opt_int("tenant_id")?,
            points: row.int("points")?,
        })
    };
    rows.iter().map(fact).collect()
}

/// A text parameter; an agent's words, cut to what a column takes.
fn text(params: &Object, name: &str) -> Option<String> {
    let text = params.get(name).and_then(Json::as_str)?;
    Some(text.chars().take(150).collect())
}

//! What an agent needs to do a run: destination, keys, VMs with their bases (spec control-api 2.2).
//!
//! Built after the claim is committed; secrets are unwrapped last. A run whose keys cannot be had is never handed out.

use std::collections::BTreeMap;

use control_api::Object;
use control_api::run::{BaseDisk, Destination, Run, RunVm};
use control_api::words::Engine;
use serde_json::{Value, json};

use super::LEASE_SECS;
use super::claim::Claimed;
use crate::App;
use crate::args;
use crate::failure::Failure;
use crate::selection;
use crate::store::{Row, Tx, time_text};
use crate::vault;

/// The run as the agent gets it.
pub async fn build(app: &App, claimed: &Claimed) -> Result<Run, Failure> {
    let run = &claimed.run;
    let mut tx = app.db.write().await?;
    let sql = "SELECT * FROM s3_cloudbackup_jobs WHERE id = ?";
    let job = tx.row(sql, args![run.int("job_id")?]).await?.ok_or_else(|| Failure::internal("a run without a job"))?;
    let engine = run.word("engine", Engine::of_word)?;
    let config: Object = job.opt_json("hyperv_config")?.unwrap_or_default();
    let vms = match engine {
        Engine::Hyperv => vms(&mut tx, claimed, &job, &config, app.clock.now()).await?,
        _ => Vec::new(),
    };
    let keys = vault::keys_of_job(&mut tx, &job).await?;
    tx.commit().await?;

    let opened = keys.open(&app.vault)?;
    let bucket_auto_create = job.flag("bucket_auto_create")?;
    Ok(Run {
        run_id: run.int("id")?.into(),
        job_id: run.int("job_id")?.into(),
        run_uuid: Some(run.text("run_uuid")?),
        job_uuid: Some(job.text("job_uuid")?),
        engine,
        source_type: Some(job.text("source_type")?),
        source_path: job.text("source_path")?,
        source_paths: job.opt_json("source_paths_json")?.unwrap_or_default(),
        local_include_glob: job.opt_text("local_include_glob")?,
        local_exclude_glob: job.opt_text("local_exclude_glob")?,
        local_bandwidth_limit_kbps: job.int("local_bandwidth_limit_kbps")?,
        destination: Destination {
            bucket_auto_create,
            dest_auto_create_bucket: bucket_auto_create,
            ..opened.destination
        },
        repository_id: job.opt_text("repository_id")?,
        repository_password: opened.repository_password,
        repo_password_mode: opened.mode,
        payload_version: Some("v2".into()),
        repository_format: opened.format,
        schedule_json: job.opt_json("schedule_json")?,
        retention_json: job.opt_json("retention_json")?,
        policy_json: job.opt_json("policy_json")?,
        throttle_json: job.opt_json("throttle_json")?,
        compression_enabled: job.flag("compression_enabled")?,
        disk_source_volume: job.opt_text("disk_source_volume")?,
        disk_image_format: job.opt_text("disk_image_format")?,
        disk_temp_dir: job.opt_text("disk_temp_dir")?,
        network_credentials: None,
        source_uuid: Some(job.text("job_uuid")?),
        resume: claimed.resume,
        last_heartbeat_at: run.opt_time("last_heartbeat_at")?.map(time_text),
        claim_id: Some(claimed.claim_id.clone()),
        attempt: Some(claimed.attempt),
        lease_seconds: Some(LEASE_SECS),
        force_full: run.flag("force_full")?,
        hyperv_config: (engine == Engine::Hyperv).then_some(config),
        hyperv_vms: vms,
    })
}

/// The VMs that the run takes now, each with a row in the job: a VM without one would be backed up and then dropped.
async fn vms(
    tx: &mut Tx,
    claimed: &Claimed,
    job: &Row,
    config: &Object,
    now: jiff::Timestamp,
) -> Result<Vec<RunVm>, Failure> {
    let run = &claimed.run;
    let agent = run.int("agent_id")?;
    let taken = selection::resolve(tx, job, config, agent, now).await?;
    let only: Vec<i64> = run.opt_json("only_vms_json")?.unwrap_or_default();
    let per_vm = config.get("per_vm").and_then(Value::as_object);
    let mut vms = Vec::new();
    for vm in taken {
        if !only.is_empty() && !only.contains(&vm.id) {
            continue;
        }
        let base = base(tx, run, config, vm.id).await?;
        let committed = "SELECT COUNT(*) FROM s3_hyperv_backup_points WHERE run_id = ? AND vm_id = ?";
        let committed = tx.count(committed, args![run.int("id")?, vm.id]).await? > 0;
        let overrides = per_vm.and_then(|all| all.iter().find(|(guid, _)| guid.eq_ignore_ascii_case(&vm.guid)));
        vms.push(RunVm {
            vm_id: vm.id,
            vm_name: vm.name,
            vm_guid: vm.guid,
            committed,
            effective_config: effective(config, overrides.and_then(|(_, value)| value.as_object())),
            ..base
        });
    }
    Ok(vms)
}

/// The settings of one VM: the job's with its own above them.
fn effective(config: &Object, overrides: Option<&Object>) -> Object {
    let mut effective: Object = Object::new();
    for key in ["consistency_level", "quiesce_timeout_seconds", "exclude_disks", "sample_check_pct", "enable_rct"] {
        if let Some(value) = config.get(key) {
            effective.insert(key.to_owned(), value.clone());
        }
    }
    for (key, value) in overrides.into_iter().flatten() {
        effective.insert(key.clone(), value.clone());
    }
    effective
}

/// What is known of the instant that an incremental would count from.
#[derive(Debug, Clone, Copy, Default)]
pub struct BaseFacts {
    /// An administrator or the job asked for a full.
    pub is_forced: bool,
    /// The job does without change tracking.
    pub is_tracking_off: bool,
    /// The VM has any point.
    pub has_point: bool,
    /// There is an active tracking row.
    pub is_tracked: bool,
    /// Its point is still there.
    pub is_point_there: bool,
    /// Its point is damaged, or its verification failed.
    pub is_point_bad: bool,
    /// Its point is in another repository than the run's.
    pub is_elsewhere: bool,
}

/// Why everything has to be read, if it has (2.2 rule 4, 3.8).
pub fn full_reason(facts: BaseFacts) -> Option<&'static str> {
    match facts {
        BaseFacts { is_forced: true, .. } => Some("forced"),
        BaseFacts { is_tracking_off: true, .. } => Some("rct_disabled"),
        BaseFacts { is_tracked: false, has_point: false, .. } => Some("first_run"),
        BaseFacts { is_tracked: false, .. } => Some("no_tracking_state"),
        BaseFacts { is_point_there: false, .. } | BaseFacts { is_point_bad: true, .. } => Some("base_point_missing"),
        BaseFacts { is_elsewhere: true, .. } => Some("repository_changed"),
        _ => None,
    }
}

async fn base(tx: &mut Tx, run: &Row, config: &Object, vm: i64) -> Result<RunVm, Failure> {
    let sql = "SELECT c.*, p.deleted_at, p.verify_status, p.repository_id AS point_repository \
               FROM s3_hyperv_checkpoints c LEFT JOIN s3_hyperv_backup_points p ON p.id = c.backup_point_id \
               WHERE c.vm_id = ? AND c.is_active = 1";
    let active = tx.row(sql, args![vm]).await?;
    let has_point = tx.count("SELECT COUNT(*) FROM s3_hyperv_backup_points WHERE vm_id = ?", args![vm]).await? > 0;
    let mut facts = BaseFacts {
        is_forced: run.flag("force_full")?,
        is_tracking_off: config.get("enable_rct").and_then(Value::as_bool) == Some(false),
        has_point,
        ..BaseFacts::default()
    };
    if let Some(row) = &active {
        facts.is_tracked = true;
        facts.is_point_there = row.opt_int("backup_point_id")?.is_some() && row.opt_time("deleted_at")?.is_none();
        facts.is_point_bad = row.opt_text("verify_status")?.is_some_and(|status| status != "ok");
        facts.is_elsewhere = row.opt_text("point_repository")? != run.opt_text("repository_id")?;
    }
    let reason = full_reason(facts);
    let mut vm_base = RunVm {
        vm_id: vm,
        vm_name: String::new(),
        vm_guid: String::new(),
        last_checkpoint_id: None,
        last_rct_ids: BTreeMap::new(),
        last_reference_point_id: None,
        last_disks: Vec::new(),
        base_backup_point_id: None,
        full_reason: reason.map(str::to_owned),
        stale_reference_points: stale(tx, vm).await?,
        committed: false,
        effective_config: Object::new(),
    };
    let (None, Some(row)) = (reason, active) else { return Ok(vm_base) };
    vm_base.last_checkpoint_id = Some(row.text("checkpoint_id")?);
    vm_base.last_rct_ids = row.opt_json("rct_ids")?.unwrap_or_default();
    vm_base.last_reference_point_id = row.opt_text("reference_point_id")?;
    vm_base.base_backup_point_id = row.opt_int("backup_point_id")?;
    let sql = "SELECT * FROM s3_hyperv_checkpoint_disks WHERE checkpoint_id = ? ORDER BY id";
    for disk in tx.rows(sql, args![row.int("id")?]).await? {
        vm_base.last_disks.push(BaseDisk {
            virtual_disk_id: disk.text("virtual_disk_id")?,
            path: disk.text("disk_path")?,
            slot: Some(disk.text("slot")?),
            rct_id: disk.opt_text("rct_id")?,
            manifest_id: disk.opt_text("manifest_id")?,
            object_id: disk.opt_text("object_id")?,
            virtual_size_bytes: disk.opt_int("virtual_size_bytes")?,
            logical_sector_size: None,
        });
    }
    Ok(vm_base)
}

/// Reference points of this VM that nothing counts from any more (2.2).
async fn stale(tx: &mut Tx, vm: i64) -> Result<Vec<String>, Failure> {
    let sql = "SELECT reference_point_id FROM s3_hyperv_checkpoints WHERE vm_id = ? AND is_active = 0 \
               AND reference_point_id IS NOT NULL ORDER BY id DESC LIMIT 20";
    let active = "SELECT reference_point_id FROM s3_hyperv_checkpoints WHERE vm_id = ? AND is_active = 1";
    let kept = match tx.row(active, args![vm]).await? {
        Some(row) => row.opt_text("reference_point_id")?,
        None => None,
    };
    let rows = tx.rows(sql, args![vm]).await?;
    let ids: Result<Vec<Option<String>>, _> = rows.iter().map(|row| row.opt_text("reference_point_id")).collect();
    Ok(ids?.into_iter().flatten().filter(|id| Some(id) != kept.as_ref()).collect())
}

/// A command's `job_context` (2.6): the same keys, in the names that commands use.
pub fn job_context(opened: vault::Opened, job: &Row) -> Result<Object, Failure> {
    let mut context = serde_json::to_value(opened.destination).map_err(Failure::internal)?;
    context["job_id"] = json!(job.int("id")?);
    context["engine"] = json!(job.text("engine")?);
    context["repository_id"] = json!(job.opt_text("repository_id")?);
    context["repository_password"] = json!(opened.repository_password);
    context["repo_password_mode"] = json!(opened.mode);
    context["payload_version"] = json!("v2");
    context["policy_json"] = job.opt_json::<Value>("policy_json")?.unwrap_or(Value::Null);
    match context {
        Value::Object(context) => Ok(context),
        _ => Err(Failure::internal("a destination that is no object")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incremental_needs_a_base_that_is_whole_and_in_this_repository() {
        let good = BaseFacts { has_point: true, is_tracked: true, is_point_there: true, ..BaseFacts::default() };
        for (facts, expected) in [
            (good, None),
            (BaseFacts { is_forced: true, ..good }, Some("forced")),
            (BaseFacts { is_tracking_off: true, ..good }, Some("rct_disabled")),
            (BaseFacts { is_point_there: false, ..good }, Some("base_point_missing")),
            (BaseFacts { is_point_bad: true, ..good }, Some("base_point_missing")),
            (BaseFacts { is_elsewhere: true, ..good }, Some("repository_changed")),
            (BaseFacts { is_tracked: false, ..good }, Some("no_tracking_state")),
            (BaseFacts::default(), Some("first_run")),
            (BaseFacts { is_forced: true, ..BaseFacts::default() }, Some("forced")),
        ] {
            assert_eq!(full_reason(facts), expected, "{facts:?}");
        }
    }
}

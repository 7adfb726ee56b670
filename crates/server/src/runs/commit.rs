//! Recording points: the server's cache of a commit that the agent made in the repository (spec control-api 2.10).

use control_api::progress::{DiskResult, VmResult};
use control_api::words::BackupType;
use jiff::Timestamp;
use serde_json::json;

use super::status;
use crate::args;
use crate::changes;
use crate::failure::{Code, Failure};
use crate::store::{Row, Tx, Value};

/// What came of recording one VM's result.
#[derive(Debug)]
pub struct Committed {
    /// Its point; none where the VM failed.
    pub point: Option<i64>,
    /// Reference points that the agent may destroy.
    pub superseded: Vec<String>,
}

/// Records one VM's result, in the caller's transaction. The same result again changes nothing and answers the same.
pub async fn record(tx: &mut Tx, run: &Row, result: &VmResult, now: Timestamp) -> Result<Committed, Failure> {
    check(result)?;
    let vm = vm_of(tx, run, result).await?;
    let (run_id, vm_id) = (run.int("id")?, vm.int("id")?);
    let error = result.error.as_deref().filter(|error| !error.is_empty());
    if let Some(error) = error {
        outcome(tx, run_id, result, Some(error), None, now).await?;
        return Ok(Committed { point: None, superseded: Vec::new() });
    }

    let manifest = manifest_of(result)
        .ok_or_else(|| Failure::validation(&[("manifest_id".into(), "a point needs a manifest".into())]))?;
    let find = "SELECT id, manifest_id, backup_type FROM s3_hyperv_backup_points WHERE run_id = ? AND vm_id = ?";
    if let Some(point) = tx.row(find, args![run_id, vm_id]).await? {
        let is_same = point.text("manifest_id")? == manifest
            && result
                .backup_type
                .is_none_or(|kind| point.text("backup_type").is_ok_and(|stored| stored == kind.word()));
        if !is_same {
            return Err(Failure::with(Code::Conflict, "This run has another point of this VM"));
        }
        let point = point.int("id")?;
        outcome(tx, run_id, result, None, Some(point), now).await?;
        return Ok(Committed { point: Some(point), superseded: superseded_by(tx, vm_id, point).await? });
    }
    if status(run)?.is_terminal() {
        check_late(tx, run, vm_id).await?;
    }

    let base = tx.row("SELECT * FROM s3_hyperv_checkpoints WHERE vm_id = ? AND is_active = 1", args![vm_id]).await?;
    let parent = match (&base, result.backup_type) {
        (Some(base), Some(BackupType::Incremental)) => base.opt_int("backup_point_id")?,
        _ => None,
    };
    let point = insert_point(tx, run, &vm, result, &manifest, parent, now).await?;
    let mut superseded = Vec::new();
    if let Some(base) = base {
        let columns = [
            ("is_active", false.into()),
            ("merged_at", now.into()),
            ("invalidated_at", now.into()),
            ("invalid_reason", format!("superseded by {point}").into()),
        ];
        tx.update("s3_hyperv_checkpoints", &columns, "id = ?", args![base.int("id")?]).await?;
        superseded.extend(base.opt_text("reference_point_id")?);
    }
    superseded.retain(|old| Some(old) != result.reference_point_id.as_ref());
    if result.checkpoint_id.is_some() || result.reference_point_id.is_some() {
        insert_tracking(tx, run, vm_id, point, result, now).await?;
    }
    outcome(tx, run_id, result, None, Some(point), now).await?;
    changes::touch(tx, run.int("client_id")?, run.opt_int("tenant_id")?, "vms", now).await?;
    Ok(Committed { point: Some(point), superseded })
}

/// Numbers and lengths that are not believed (10.5).
fn check(result: &VmResult) -> Result<(), Failure> {
    let mut wrong: Vec<(String, String)> = Vec::new();
    let disks = result.disks.iter().flat_map(|disk| [disk.virtual_size_bytes, disk.read_bytes, disk.new_bytes]);
    let numbers = [result.changed_bytes, result.total_bytes, result.duration_seconds].into_iter().chain(disks);
    if numbers.flatten().any(|number| number < 0) {
        wrong.push(("hyperv_results".into(), "a size or duration below zero".into()));
    }
    let is_long = |text: &Option<String>, most: usize| text.as_ref().is_some_and(|text| text.chars().count() > most);
    if is_long(&result.reference_point_id, 255) || is_long(&result.checkpoint_id, 64) {
        wrong.push(("checkpoint_id".into(), "longer than it can be".into()));
    }
    if is_long(&manifest_of(result), 128) {
        wrong.push(("manifest_id".into(), "longer than 128 characters".into()));
    }
    if let Some(time) = &result.snapshot_time
        && time.parse::<Timestamp>().is_err()
    {
        wrong.push(("snapshot_time".into(), "no RFC 3339 time".into()));
    }
    if wrong.is_empty() { Ok(()) } else { Err(Failure::validation(&wrong)) }
}

/// The VM of the result, which must be one of the run's job: another one's is refused and nothing is stored (2.3).
async fn vm_of(tx: &mut Tx, run: &Row, result: &VmResult) -> Result<Row, Failure> {
    let sql = format!("SELECT * FROM s3_hyperv_vms WHERE id = ? AND job_id = ?{}", tx.for_update());
    let vm = tx.row(&sql, args![result.vm_id, run.int("job_id")?]).await?;
    vm.ok_or_else(|| Failure::validation(&[("vm_id".into(), "no VM of this run's job".into())]))
}

/// The snapshot manifest of the VM; agents of the design document name one per disk and one for the configuration.
fn manifest_of(result: &VmResult) -> Option<String> {
    let config = result.disk_manifests.iter().find(|(path, _)| path.starts_with("_config"));
    let manifest = result.manifest_id.clone().or_else(|| config.map(|(_, manifest)| manifest.clone()));
    manifest.or_else(|| result.disk_manifests.values().next().cloned()).filter(|manifest| !manifest.is_empty())
}

/// A commit after the run is over: only with nothing newer (3.2).
async fn check_late(tx: &mut Tx, run: &Row, vm: i64) -> Result<(), Failure> {
    let newer = "SELECT COUNT(*) FROM s3_hyperv_checkpoints WHERE vm_id = ? AND created_at > ?";
    let claimed = run.opt_time("claimed_at")?;
    let Some(claimed) = claimed else { return Err(Code::StaleClaim.into()) };
    if tx.count(newer, args![vm, claimed]).await? > 0 {
        return Err(Code::StaleClaim.into());
    }
    Ok(())
}

/// What the active row of that point superseded: the answer to a call that is repeated.
async fn superseded_by(tx: &mut Tx, vm: i64, point: i64) -> Result<Vec<String>, Failure> {
    let sql = "SELECT reference_point_id FROM s3_hyperv_checkpoints WHERE vm_id = ? AND is_active = 0 \
               AND invalid_reason = ? AND reference_point_id IS NOT NULL";
    let rows = tx.rows(sql, args![vm, format!("superseded by {point}")]).await?;
    Ok(rows.iter().map(|row| row.text("reference_point_id")).collect::<Result<_, _>>()?)
}

async fn insert_point(
    tx: &mut Tx,
    run: &Row,
    vm: &Row,
    result: &VmResult,
    manifest: &str,
    parent: Option<i64>,
    now: Timestamp,
) -> Result<i64, Failure> {
    let snapshot_time = result.snapshot_time.as_ref().and_then(|time| time.parse::<Timestamp>().ok());
    // A clock that is ahead must not make a VM look younger than it is.
    let snapshot_time = snapshot_time.unwrap_or(now).min(now);
    let short =
        |text: &Option<String>, most: usize| text.as_ref().map(|text| text.chars().take(most).collect::<String>());
    let reasons = result.disks.iter().find_map(|disk| disk.full_reason.clone());
    let columns: [(&str, Value); 26] = [
        ("vm_id", vm.int("id")?.into()),
        ("run_id", run.int("id")?.into()),
        ("backup_type", result.backup_type.unwrap_or(BackupType::Full).word().into()),
        ("manifest_id", manifest.into()),
        ("parent_backup_id", parent.into()),
        ("vm_config_json", result.vm_config.as_ref().map(|config| json!(config)).into()),
        ("disk_manifests", json!(result.disk_manifests).into()),
        ("total_size_bytes", result.total_bytes.into()),
        ("changed_size_bytes", result.changed_bytes.into()),
        ("duration_seconds", result.duration_seconds.into()),
        ("consistency_level", result.consistency_level.map_or("Crash", |level| level.word()).into()),
        ("created_at", now.into()),
        ("client_id", run.int("client_id")?.into()),
        ("tenant_id", run.opt_int("tenant_id")?.into()),
        ("repository_id", run.opt_text("repository_id")?.into()),
        ("vm_guid", vm.opt_text("vm_guid")?.unwrap_or_default().into()),
        ("vm_name", vm.text("vm_name")?.into()),
        ("agent_id", run.opt_int("agent_id")?.into()),
        ("warnings_json", json!(result.warnings).into()),
        ("warning_code", short(&result.warning_code, 64).into()),
        ("has_warnings", (!result.warnings.is_empty() || result.warning_code.is_some()).into()),
        ("snapshot_time", snapshot_time.into()),
        ("full_reason", short(&result.full_reason.clone().or(reasons), 64).into()),
        ("consistency_requested", short(&result.consistency_requested, 32).into()),
        ("consistency_reason", short(&result.consistency_reason, 255).into()),
        ("hold", false.into()),
    ];
    let point = tx.insert("s3_hyperv_backup_points", &columns).await?;
    for disk in &result.disks {
        let columns = [
            ("backup_point_id", point.into()),
            ("virtual_disk_id", disk.virtual_disk_id.clone().into()),
            ("disk_path", disk.path.clone().into()),
            ("slot", slot(disk).into()),
            ("manifest_id", disk.manifest_id.clone().into()),
            ("object_id", disk.object_id.clone().into()),
            ("virtual_size_bytes", disk.virtual_size_bytes.into()),
            ("read_mode", short(&disk.read_mode, 16).into()),
            ("full_reason", short(&disk.full_reason, 64).into()),
            ("read_bytes", disk.read_bytes.into()),
            ("new_bytes", disk.new_bytes.into()),
            ("excluded_reason", short(&disk.excluded_reason, 255).into()),
        ];
        tx.insert("s3_hyperv_backup_point_disks", &columns).await?;
    }
    Ok(point)
}

async fn insert_tracking(
    tx: &mut Tx,
    run: &Row,
    vm: i64,
    point: i64,
    result: &VmResult,
    now: Timestamp,
) -> Result<(), Failure> {
    let is_application = result.consistency_level == Some(control_api::words::Consistency::Application);
    let columns = [
        ("vm_id", vm.into()),
        ("run_id", run.int("id")?.into()),
        ("checkpoint_id", result.checkpoint_id.clone().unwrap_or_default().into()),
        ("checkpoint_type", if is_application { "Production" } else { "Standard" }.into()),
        ("rct_ids", json!(result.rct_ids).into()),
        ("is_active", true.into()),
        ("created_at", now.into()),
        ("reference_point_id", result.reference_point_id.clone().into()),
        ("backup_point_id", point.into()),
        ("repository_id", run.opt_text("repository_id")?.into()),
    ];
    let checkpoint = tx.insert("s3_hyperv_checkpoints", &columns).await?;
    for disk in &result.disks {
        let columns = [
            ("checkpoint_id", checkpoint.into()),
            ("virtual_disk_id", disk.virtual_disk_id.clone().into()),
            ("disk_path", disk.path.clone().into()),
            ("slot", slot(disk).into()),
            ("rct_id", disk.rct_id.clone().into()),
            ("virtual_size_bytes", disk.virtual_size_bytes.into()),
            ("manifest_id", disk.manifest_id.clone().into()),
            ("object_id", disk.object_id.clone().into()),
        ];
        tx.insert("s3_hyperv_checkpoint_disks", &columns).await?;
    }
    Ok(())
}

/// Where a disk sits in its VM.
fn slot(disk: &DiskResult) -> String {
    let kind = disk.controller_type.as_deref().unwrap_or("SCSI");
    format!("{kind} {}:{}", disk.controller_number.unwrap_or(0), disk.controller_location.unwrap_or(0))
}

/// What a run's page says of the VM.
async fn outcome(
    tx: &mut Tx,
    run: i64,
    result: &VmResult,
    error: Option<&str>,
    point: Option<i64>,
    now: Timestamp,
) -> Result<(), Failure> {
    let columns: Vec<(&str, Value)> = vec![
        ("state", if error.is_some() { "failed" } else { "committed" }.into()),
        ("result_json", serde_json::to_value(result).map_err(Failure::internal)?.into()),
        ("error_code", result.error_code.as_ref().map(|code| code.chars().take(64).collect::<String>()).into()),
        ("error", error.into()),
        ("backup_point_id", point.into()),
        ("updated_at", now.into()),
    ];
    let condition = "run_id = ? AND vm_id = ?";
    let find = "SELECT id FROM s3_cloudbackup_run_vm_results WHERE run_id = ? AND vm_id = ?";
    if tx.row(find, args![run, result.vm_id]).await?.is_some() {
        tx.update("s3_cloudbackup_run_vm_results", &columns, condition, args![run, result.vm_id]).await?;
    } else {
        let mut columns = columns;
        columns.extend([("run_id", run.into()), ("vm_id", result.vm_id.into()), ("created_at", now.into())]);
        tx.insert("s3_cloudbackup_run_vm_results", &columns).await?;
    }
    Ok(())
}

//! The rows of what was found in a repository. Each is found again by what it stands for, so that adopting twice is
//! adopting once.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use backup::evidence::Outcome;
use bucket::Location;
use control_api::words::{BackupType, Engine, JobStatus, RunStatus, SourceType, TriggerType};
use jiff::Timestamp;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{Found, FoundPoint, Into, Owner};
use crate::access::audit::{self, Actor, Entry};
use crate::args;
use crate::changes;
use crate::client_api::destinations::place_hash;
use crate::secret::{self, Vault};
use crate::store::{Tx, Value};
use crate::vault;

/// What adopting came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adopted {
    /// As the database names the repository.
    pub repository_id: String,
    /// Its destination.
    pub destination: i64,
    /// Points in the repository.
    pub points: usize,
    /// Of these, points that had no row.
    pub new_points: usize,
    /// Rows whose point is not in the repository any more.
    pub gone: u64,
    /// VMs that have points.
    pub vms: usize,
    /// Hosts that points were taken on, each with a job of its own.
    pub hosts: Vec<String>,
}

/// The repository's rows.
#[derive(Debug)]
pub(super) struct Repository {
    /// Of `s3_cloudbackup_repositories`.
    pub row: i64,
    id: String,
    destination: i64,
}

/// Where a location lies, in the columns of a destination.
struct Place {
    kind: &'static str,
    endpoint: String,
    bucket: String,
    prefix: String,
    region: Option<String>,
    path_style: &'static str,
}

impl Place {
    fn of(found: &Found) -> Place {
        match &found.location {
            Location::Folder(path) => Place {
                kind: "local",
                endpoint: path.display().to_string(),
                bucket: String::new(),
                prefix: String::new(),
                region: None,
                path_style: "path",
            },
            Location::S3(s3) => {
                let region = s3.region.clone().or_else(|| found.environment.region.clone());
                let endpoint = s3.endpoint.clone().or_else(|| found.environment.endpoint.clone());
                Place {
                    kind: "s3",
                    endpoint: endpoint.unwrap_or_else(|| {
                        format!("https://s3.{}.amazonaws.com", region.as_deref().unwrap_or("us-east-1"))
                    }),
                    bucket: s3.bucket.clone(),
                    prefix: s3.prefix.clone(),
                    region,
                    path_style: match s3.path_style {
                        Some(true) => "path",
                        Some(false) => "virtual",
                        None => "auto",
                    },
                }
            }
        }
    }
}

/// An id that follows from what it names.
fn uuid_of(parts: &[&str]) -> String {
    let digest = Sha256::digest(parts.join("\n").as_bytes());
    let bytes = std::array::from_fn(|at| digest[at]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

fn clip(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The destination and repository of that place, with the key that opened it; made where they are not there.
pub(super) async fn repository(
    tx: &mut Tx,
    vault: &Vault,
    found: &Found,
    password: &str,
    into: &Into,
    owner: Owner,
    now: Timestamp,
) -> Result<Repository> {
    let place = Place::of(found);
    let hash = place_hash(place.kind, &place.endpoint, &place.bucket, &place.prefix);
    let known = tx.row("SELECT * FROM s3_cloudbackup_destinations WHERE place_hash = ?", args![hash]).await?;
    let destination = match known {
        Some(row) if row.int("client_id")? != owner.client || row.opt_int("tenant_id")? != owner.tenant => {
            bail!("another client or tenant has this repository")
        }
        Some(row) => row.int("id")?,
        None => {
            let name = into.name.clone().unwrap_or_else(|| found.location.to_string());
            let mut columns: Vec<(&str, Value)> = vec![
                ("client_id", owner.client.into()),
                ("tenant_id", owner.tenant.into()),
                ("name", clip(&name, 191).into()),
                ("dest_type", place.kind.into()),
                ("endpoint", place.endpoint.into()),
                ("region", place.region.into()),
                ("bucket", place.bucket.into()),
                ("prefix", place.prefix.clone().into()),
                ("place_hash", hash.into()),
                ("path_style", place.path_style.into()),
                ("created_at", now.into()),
                ("updated_at", now.into()),
            ];
            if let (Location::S3(_), Some(keys)) = (&found.location, &found.environment.credentials) {
                let aad = vault::destination_aad(owner.client);
                let key = &keys.secret_access_key;
                let kept = vault::keep(tx, vault, owner.client, vault::STORE_KEY, &aad, key, now).await;
                let secret = kept.map_err(crate::describe)?;
                columns.push(("access_key", keys.access_key_id.clone().into()));
                columns.push(("secret_id", secret.into()));
            }
            tx.insert("s3_cloudbackup_destinations", &columns).await?
        }
    };
    let sql = "SELECT id, repository_id FROM s3_cloudbackup_repositories WHERE bucket_id = ? AND status = 'active'";
    if let Some(row) = tx.row(sql, args![destination]).await? {
        let (row, id) = (row.int("id")?, row.text("repository_id")?);
        keep_key(tx, vault, row, &id, password, now).await?;
        return Ok(Repository { row, id, destination });
    }
    let columns = [
        ("repository_id", found.id.clone().into()),
        ("client_id", owner.client.into()),
        ("tenant_id", owner.tenant.into()),
        ("bucket_id", destination.into()),
        ("root_prefix", place.prefix.into()),
        ("created_at", now.into()),
        ("updated_at", now.into()),
    ];
    let row = match tx.insert("s3_cloudbackup_repositories", &columns).await {
        Err(error) if error.is_duplicate() => bail!("this repository is known already, at another place"),
        other => other?,
    };
    keep_key(tx, vault, row, &found.id, password, now).await?;
    Ok(Repository { row, id: found.id.clone(), destination })
}

/// Keeps the password that opened the repository, unless it is the one that is kept.
async fn keep_key(tx: &mut Tx, vault: &Vault, row: i64, id: &str, password: &str, now: Timestamp) -> Result<()> {
    let sql = "SELECT key_version, wrapped_repo_secret FROM s3_cloudbackup_repository_keys \
               WHERE repository_ref = ? ORDER BY key_version DESC LIMIT 1";
    let newest = tx.row(sql, args![row]).await?;
    let mut version = 1;
    if let Some(kept) = newest {
        version = kept.int("key_version")?;
        let aad = vault::repository_aad(id, version);
        if vault.unwrap(&aad, &kept.bytes("wrapped_repo_secret")?).is_ok_and(|kept| kept == password) {
            return Ok(());
        }
        version += 1;
    }
    let columns = [
        ("repository_ref", row.into()),
        ("key_version", version.into()),
        ("wrap_alg", secret::WRAP_ALGORITHM.into()),
        ("wrapped_repo_secret", vault.wrap(&vault::repository_aad(id, version), password)?.into()),
        ("kek_ref", vault.key_ref.clone().into()),
        ("mode", "v2".into()),
        ("created_at", now.into()),
    ];
    tx.insert("s3_cloudbackup_repository_keys", &columns).await?;
    Ok(())
}

/// Rows that were made on the way, by what they stand for.
#[derive(Default)]
struct Made {
    jobs: BTreeMap<String, i64>,
    runs: BTreeMap<String, (i64, i64)>,
    vms: BTreeMap<(i64, String), i64>,
    points: BTreeMap<String, i64>,
}

/// A row for each point; rows of points that are not there any more are marked.
pub(super) async fn points(
    tx: &mut Tx,
    found: &Found,
    repository: &Repository,
    owner: Owner,
    now: Timestamp,
) -> Result<Adopted> {
    let mut made = Made::default();
    let mut adopted = Adopted {
        repository_id: repository.id.clone(),
        destination: repository.destination,
        points: found.points.len(),
        ..Adopted::default()
    };
    for point in &found.points {
        let (run, job) = run(tx, found, point, repository, owner, &mut made, now).await?;
        let vm = vm(tx, point, job, owner, &mut made, now).await?;
        let (row, is_new) = self::point(tx, point, run, vm, repository, owner, &made).await?;
        adopted.new_points += usize::from(is_new);
        made.points.insert(point.id.clone(), row);
    }
    adopted.vms = found.points.iter().map(|point| &point.vm_guid).collect::<BTreeSet<_>>().len();
    let hosts: BTreeSet<&String> = found.points.iter().map(|point| &point.host).collect();
    adopted.hosts = hosts.into_iter().cloned().collect();

    let there: BTreeSet<i64> = made.points.values().copied().collect();
    // Snapshots that could not be read are there all the same: what is known of them stays.
    let unread: BTreeSet<&String> = found.unreadable.iter().map(|(id, _)| id).collect();
    if unread.is_empty() {
        let sql = "SELECT id FROM s3_hyperv_backup_points WHERE repository_id = ? AND deleted_at IS NULL";
        for row in tx.rows(sql, args![&repository.id]).await? {
            let id = row.int("id")?;
            if !there.contains(&id) {
                let columns = [("deleted_at", now.into()), ("delete_state", "deleted".into())];
                adopted.gone += tx.update("s3_hyperv_backup_points", &columns, "id = ?", args![id]).await?;
            }
        }
    }
    changes::touch(tx, owner.client, owner.tenant, "vms", now).await.map_err(crate::describe)?;
    Ok(adopted)
}

/// The run of a point, and its job: the server's own where the point names it, else one that stands for the host.
async fn run(
    tx: &mut Tx,
    found: &Found,
    point: &FoundPoint,
    repository: &Repository,
    owner: Owner,
    made: &mut Made,
    now: Timestamp,
) -> Result<(i64, i64)> {
    let key = format!("{}\n{}", point.host, point.run);
    if let Some(known) = made.runs.get(&key) {
        return Ok(*known);
    }
    let uuid = uuid_of(&["run", &repository.id, &point.host, &point.run]);
    let sql = "SELECT id, job_id FROM s3_cloudbackup_runs WHERE client_id = ? AND (run_uuid = ? OR run_uuid = ?)";
    let known = tx.row(sql, args![owner.client, &uuid, point.run.to_lowercase()]).await?;
    let run = match known {
        Some(row) => (row.int("id")?, row.int("job_id")?),
        None => {
            let job = job(tx, found, &point.host, repository, owner, made, now).await?;
            let of_run = found.points.iter().filter(|other| other.run == point.run && other.host == point.host);
            let started = of_run.clone().map(|other| other.started).min().unwrap_or(point.started);
            let finished = of_run.map(|other| other.stored).max().unwrap_or(point.stored);
            let columns = [
                ("run_uuid", uuid.into()),
                ("job_id", job.into()),
                ("client_id", owner.client.into()),
                ("tenant_id", owner.tenant.into()),
                ("repository_id", repository.id.clone().into()),
                ("engine", Engine::Hyperv.word().into()),
                ("trigger_type", TriggerType::Manual.word().into()),
                ("status", RunStatus::Success.word().into()),
                ("created_at", started.into()),
                ("started_at", started.into()),
                ("finished_at", finished.into()),
                ("notified_at", now.into()),
                ("updated_at", now.into()),
            ];
            (tx.insert("s3_cloudbackup_runs", &columns).await?, job)
        }
    };
    made.runs.insert(key, run);
    Ok(run)
}

/// The paused job that stands for a host.
async fn job(
    tx: &mut Tx,
    found: &Found,
    host: &str,
    repository: &Repository,
    owner: Owner,
    made: &mut Made,
    now: Timestamp,
) -> Result<i64> {
    if let Some(known) = made.jobs.get(host) {
        return Ok(*known);
    }
    let uuid = uuid_of(&["job", &repository.id, host]);
    let known = tx.row("SELECT id FROM s3_cloudbackup_jobs WHERE job_uuid = ?", args![&uuid]).await?;
    let job = match known {
        Some(row) => row.int("id")?,
        None => {
            let of_host = found.points.iter().filter(|point| point.host == host);
            let vms: BTreeSet<&str> = of_host.map(|point| point.vm_guid.as_str()).collect();
            let columns = [
                ("job_uuid", uuid.into()),
                ("client_id", owner.client.into()),
                ("tenant_id", owner.tenant.into()),
                ("repository_id", repository.id.clone().into()),
                ("name", clip(&format!("{host} (adopted)"), 191).into()),
                ("engine", Engine::Hyperv.word().into()),
                ("source_type", SourceType::Hyperv.word().into()),
                ("source_display_name", clip(host, 191).into()),
                ("source_path", "".into()),
                ("hyperv_enabled", true.into()),
                ("hyperv_config", json!({ "vms": vms }).into()),
                ("dest_bucket_id", repository.destination.into()),
                ("status", JobStatus::Paused.word().into()),
                ("pause_reason", "adopted".into()),
                ("created_at", now.into()),
                ("updated_at", now.into()),
            ];
            tx.insert("s3_cloudbackup_jobs", &columns).await?
        }
    };
    made.jobs.insert(host.to_owned(), job);
    Ok(job)
}

async fn vm(tx: &mut Tx, point: &FoundPoint, job: i64, owner: Owner, made: &mut Made, now: Timestamp) -> Result<i64> {
    let key = (job, point.vm_guid.clone());
    let known = match made.vms.get(&key) {
        Some(known) => Some(*known),
        None => {
            let sql = "SELECT id FROM s3_hyperv_vms WHERE job_id = ? AND vm_guid = ?";
            tx.row(sql, args![job, &point.vm_guid]).await?.map(|row| row.int("id")).transpose()?
        }
    };
    let vm = match known {
        Some(id) => id,
        None => {
            let columns = [
                ("job_id", job.into()),
                ("vm_name", clip(&point.vm_name, 255).into()),
                ("vm_guid", point.vm_guid.clone().into()),
                ("created_at", now.into()),
                ("updated_at", now.into()),
                ("client_id", owner.client.into()),
                ("tenant_id", owner.tenant.into()),
            ];
            tx.insert("s3_hyperv_vms", &columns).await?
        }
    };
    // The newest point, which comes last, has the name that the VM has now.
    let columns = [("vm_name", clip(&point.vm_name, 255).into())];
    tx.update("s3_hyperv_vms", &columns, "id = ? AND agent_id IS NULL", args![vm]).await?;
    made.vms.insert(key, vm);
    Ok(vm)
}

/// The row of a point, and whether it is new. A manifest that was renamed since (a hold does that) is followed.
async fn point(
    tx: &mut Tx,
    point: &FoundPoint,
    run: i64,
    vm: i64,
    repository: &Repository,
    owner: Owner,
    made: &Made,
) -> Result<(i64, bool)> {
    let sql = "SELECT id FROM s3_hyperv_backup_points WHERE repository_id = ? AND vm_guid = ? \
               AND (manifest_id = ? OR (run_id = ? AND vm_id = ?))";
    let known = tx.row(sql, args![&repository.id, &point.vm_guid, &point.manifest, run, vm]).await?;
    if let Some(known) = known {
        let id = known.int("id")?;
        let mut columns = state(point);
        columns.extend([("manifest_id", Value::from(clip(&point.manifest, 128))), ("deleted_at", Value::Null)]);
        tx.update("s3_hyperv_backup_points", &columns, "id = ?", args![id]).await?;
        return Ok((id, false));
    }
    let is_incremental = point.base.is_some();
    let parent = point.base.as_ref().and_then(|base| made.points.get(base)).copied();
    let manifests: BTreeMap<&str, &str> = point
        .disks
        .iter()
        .map(|disk| (disk.path.as_str(), point.manifest.as_str()))
        .chain([("_config", point.manifest.as_str())])
        .collect();
    let seconds = point.stored.duration_since(point.started).as_secs().max(0);
    let mut columns: Vec<(&str, Value)> = vec![
        ("vm_id", vm.into()),
        ("run_id", run.into()),
        ("backup_type", if is_incremental { BackupType::Incremental } else { BackupType::Full }.word().into()),
        ("manifest_id", clip(&point.manifest, 128).into()),
        ("parent_backup_id", parent.into()),
        ("disk_manifests", json!(manifests).into()),
        ("total_size_bytes", signed(point.disks.iter().map(|disk| disk.size_bytes).sum()).into()),
        ("changed_size_bytes", signed(point.disks.iter().map(|disk| disk.changed_bytes).sum()).into()),
        ("duration_seconds", seconds.into()),
        ("consistency_level", if point.is_application { "Application" } else { "Crash" }.into()),
        ("created_at", point.stored.into()),
        ("client_id", owner.client.into()),
        ("tenant_id", owner.tenant.into()),
        ("repository_id", repository.id.clone().into()),
        ("vm_guid", point.vm_guid.clone().into()),
        ("vm_name", clip(&point.vm_name, 255).into()),
        ("snapshot_time", point.frozen.into()),
        ("consistency_requested", clip(&point.consistency_asked, 32).into()),
        ("consistency_reason", point.consistency_reason.as_ref().map(|reason| clip(reason, 255)).into()),
    ];
    columns.extend(state(point));
    let id = tx.insert("s3_hyperv_backup_points", &columns).await?;
    for disk in &point.disks {
        let columns = [
            ("backup_point_id", id.into()),
            ("virtual_disk_id", clip(&disk.id, 64).into()),
            ("disk_path", clip(&disk.path, 1024).into()),
            ("slot", clip(&disk.slot, 32).into()),
            ("manifest_id", clip(&point.manifest, 191).into()),
            ("object_id", clip(&disk.object, 191).into()),
            ("virtual_size_bytes", signed(disk.size_bytes).into()),
            ("read_mode", disk.read_mode.into()),
            ("read_bytes", signed(disk.read_bytes).into()),
        ];
        tx.insert("s3_hyperv_backup_point_disks", &columns).await?;
    }
    Ok((id, true))
}

/// What may change about a point after it was made.
fn state(point: &FoundPoint) -> Vec<(&'static str, Value)> {
    let status = match (point.outcome, point.verified) {
        (Outcome::Damaged, _) => Some("damaged"),
        (_, Some(_)) => Some("ok"),
        (_, None) => None,
    };
    let is_doubtful = point.outcome == Outcome::Doubtful;
    vec![
        ("hold", point.hold.is_some().into()),
        ("hold_reason", point.hold.as_ref().map(|reason| clip(reason, 255)).into()),
        ("verified_at", point.verified.map(|(at, _)| at).into()),
        ("verify_level", point.verified.map(|(_, level)| level).into()),
        ("verify_status", status.into()),
        ("has_warnings", is_doubtful.into()),
        ("warning_code", is_doubtful.then_some("SAMPLE_MISMATCH").into()),
    ]
}

/// An entry in the audit log.
pub(super) async fn record(tx: &mut Tx, found: &Found, adopted: &Adopted, owner: Owner, now: Timestamp) -> Result<()> {
    let after = json!({
        "location": found.location.to_string(),
        "points": adopted.points,
        "new_points": adopted.new_points,
        "gone": adopted.gone,
    });
    let entry = Entry {
        action: "repository.adopt",
        entity: "repository",
        id: adopted.repository_id.clone(),
        before: None,
        after: Some(after),
    };
    audit::record(tx, &Actor::system(owner.client), now, entry).await.map_err(crate::describe)
}

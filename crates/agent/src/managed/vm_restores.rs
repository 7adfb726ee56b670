//! Restores of VMs that the server asks for: what stands in the way, and the deed (spec control-api 5.5, console 9).
//!
//! A restore is a command with a run of its own. The command's lease is the run's claim: whoever gets the command again
//! begins again, and what a former attempt left is taken back first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup::{
    HostState, Observer, Point, RestoreContext, RestoreObstacle, RestorePlan, RestoreRequest, TargetFormat,
    list_points, plan_restore, restore_disk, restore_vm,
};
use control_api::Object;
use control_api::command::Command;
use control_api::hyperv::RestoreInfo;
use control_api::progress::UpdateRun;
use control_api::restore::RestoreOptions;
use control_api::words::RunStatus;
use hyperv::{Cancel, Severity};
use kopia_repo::Repository;
use serde::Deserialize;
use serde_json::{Value, json};

use super::agent::Managed;
use super::results;
use super::store::Store;
use super::work::{Work, put};
use crate::failure::{Attempt as _, Code, Failure};
use crate::host::OpenHost;
use crate::restores;

/// What is asked for (2.7).
#[derive(Debug, Deserialize)]
pub struct Wanted {
    #[serde(default)]
    restore_run_id: Option<i64>,
    #[serde(default)]
    mode: Option<String>,
    #[serde(default)]
    target_path: Option<String>,
    #[serde(default)]
    target_vm_name: Option<String>,
    #[serde(default)]
    restore_options: Option<RestoreOptions>,
    #[serde(default)]
    vms: Vec<WantedVm>,
    /// The flat form of one VM.
    #[serde(default)]
    backup_point_id: Option<i64>,
}

/// One VM of it.
#[derive(Clone, Debug, Default, Deserialize)]
struct WantedVm {
    #[serde(default)]
    backup_point_id: i64,
    #[serde(default)]
    vm_name: String,
    #[serde(default)]
    disks: Vec<String>,
}

impl Wanted {
    /// Reads a command's payload.
    pub fn read(payload: &Object) -> Result<Self, Failure> {
        let wrong = |why: String| Failure::new("read the restore that is asked for", "", Code::Usage, why);
        let mut wanted: Self =
            serde_json::from_value(payload.clone().into()).map_err(|error| wrong(error.to_string()))?;
        if let Some(backup_point_id) = wanted.backup_point_id.take()
            && wanted.vms.is_empty()
        {
            wanted.vms.push(WantedVm { backup_point_id, ..WantedVm::default() });
        }
        if wanted.vms.is_empty() {
            return Err(wrong("it names no point".into()));
        }
        Ok(wanted)
    }

    /// Its run.
    pub fn run_id(&self) -> Option<i64> {
        self.restore_run_id
    }

    /// Points and names, as far as they are known.
    pub fn vms(&self) -> Vec<(i64, String)> {
        self.vms.iter().map(|vm| (vm.backup_point_id, vm.vm_name.clone())).collect()
    }

    fn is_disks_only(&self) -> bool {
        self.mode.as_deref() == Some("disks_only") || self.options().disks_only
    }

    fn options(&self) -> RestoreOptions {
        self.restore_options.clone().unwrap_or_default()
    }

    fn request(&self, vm: &WantedVm, point: &Point, repo: &Repository) -> Result<RestoreRequest, Failure> {
        let options = self.options();
        let replace = options
            .overwrite_existing
            .then(|| u32::try_from(options.keep_old_days.unwrap_or(7).clamp(0, 36_500)).unwrap_or(7));
        let keep_id = options.new_vm_id == Some(false) && replace.is_none();
        let disks = if vm.disks.is_empty() { options.disks.clone().unwrap_or_default() } else { vm.disks.clone() };
        Ok(RestoreRequest {
            name: self.target_vm_name.clone().filter(|_| self.vms.len() == 1),
            folder: options.storage_path.clone().or(options.vm_path.clone()),
            keep_id,
            replace,
            network: if options.connect_network { options.network_map.clone() } else { BTreeMap::new() },
            disconnect: !options.connect_network,
            disks: if disks.is_empty() { None } else { Some(numbers(&disks, point, repo)?) },
            from_settings: false,
            processors: None,
            memory_mib: None,
            power_on: options.power_on.unwrap_or(false),
        })
    }
}

/// Numbers of the disks that are named by number, identity or path.
fn numbers(names: &[String], point: &Point, repo: &Repository) -> Result<Vec<u32>, Failure> {
    let what = "choose the disks";
    let description = point.describe(repo).attempt(what, &*point.id)?;
    let number = |name: &String| {
        let fits = |disk: &&backup::PointDisk| {
            disk.number.to_string() == *name
                || disk.virtual_disk_id.eq_ignore_ascii_case(name)
                || disk.path.eq_ignore_ascii_case(name)
        };
        let disk = description.disks.iter().find(fits);
        disk.map(|disk| disk.number).ok_or_else(|| {
            Failure::new(what, &*point.vm_name, Code::NotFound, format!("the point has no disk {name:?}"))
        })
    };
    names.iter().map(number).collect()
}

/// What a restore works with.
struct Bench {
    host: OpenHost,
    state: HostState,
    repo: Arc<Repository>,
}

impl Bench {
    fn new(managed: &Managed<'_>, command: &Command, cancel: &Cancel) -> Result<Self, Failure> {
        let host = managed.context.host()?;
        let state = host.state()?;
        let store = Store::of_command(command.job_context.as_ref(), &managed.folder)?;
        store.wait_until_reached(cancel)?;
        let repo = store.open(host.hooks.as_ref(), &managed.throttles)?;
        Ok(Self { host, state, repo })
    }

    fn context<'a>(&'a self, observer: &'a dyn Observer, cancel: &'a Cancel) -> RestoreContext<'a> {
        RestoreContext { host: &self.host.host, repo: &self.repo, state: &self.state, observer, cancel }
    }
}

/// The point with that id, as the server knows it and the repository has it.
pub fn point(managed: &Managed<'_>, repo: &Repository, backup_point_id: i64) -> Result<Point, Failure> {
    let what = "find the point";
    let info = managed
        .client
        .get::<RestoreInfo>("agent_hyperv_get_restore_info.php", &format!("backup_point_id={backup_point_id}"))
        .map_err(|error| {
            let code = if error.is_transient() { Code::ServerUnreachable } else { Code::NotFound };
            Failure::new(what, format!("point {backup_point_id}"), code, error.to_string())
        })?;
    let wanted = info.body.backup_point;
    // Its chain has one element (5.4): every stored image is whole.
    let points = list_points(repo, wanted.vm_guid.as_deref()).attempt(what, repo.display_name())?;
    points.into_iter().find(|point| point.snapshot.id == wanted.manifest_id).ok_or_else(|| {
        let on = format!("point {backup_point_id} of {} in {}", wanted.vm_name, repo.display_name());
        Failure::new(what, on, Code::NotFound, "the repository does not have it")
            .with_steps(&["look at the repository: `points list`", "choose another point"])
    })
}

/// `hyperv_preflight`: every obstacle of every VM; nothing is touched.
pub fn preflight(managed: &Managed<'_>, command: &Command) -> Result<Value, Failure> {
    let wanted = Wanted::read(&command.payload)?;
    let cancel = managed.control.cancel();
    let bench = Bench::new(managed, command, cancel)?;
    let context = bench.context(&backup::Silent, cancel);
    let mut vms = Vec::new();
    for vm in &wanted.vms {
        let point = point(managed, &bench.repo, vm.backup_point_id)?;
        let request = wanted.request(vm, &point, &bench.repo)?;
        let plan = plan_restore(&context, &point, &request).attempt("plan the restore", &*point.vm_name)?;
        let mut plan = plan_json(&plan);
        plan["backup_point_id"] = vm.backup_point_id.into();
        vms.push(plan);
    }
    let all = |key: &str| -> Vec<Value> {
        vms.iter().flat_map(|vm| vm[key].as_array().cloned().unwrap_or_default()).collect()
    };
    let (obstacles, plan) = (all("obstacles"), all("plan"));
    let bytes: u64 = vms.iter().filter_map(|vm| vm["quote"]["bytes"].as_u64()).sum();
    Ok(json!({ "obstacles": obstacles, "plan": plan, "quote": { "bytes": bytes }, "vms": vms }))
}

fn plan_json(plan: &RestorePlan) -> Value {
    let disks: Vec<Value> = plan
        .disks
        .iter()
        .map(|disk| {
            json!({
                "vm_name": plan.wanted.name, "disk": disk.number, "path": disk.path, "size_bytes": disk.size_bytes,
                "data_bytes": disk.data_bytes,
            })
        })
        .collect();
    let bytes: u64 = plan.disks.iter().map(|disk| disk.data_bytes).sum();
    json!({
        "vm_name": plan.wanted.name,
        "is_blocked": plan.is_blocked(),
        "obstacles": plan.obstacles.iter().map(obstacle_json).collect::<Vec<_>>(),
        "plan": disks,
        "quote": { "bytes": bytes },
    })
}

fn obstacle_json(obstacle: &RestoreObstacle) -> Value {
    json!({
        "code": obstacle.code, "severity": obstacle.severity.as_str(), "on": obstacle.on, "why": obstacle.why, "options": obstacle.options,
    })
}

/// `hyperv_restore`: the restore, with the reports of its run. What it answers goes to the command.
pub fn perform(managed: &Managed<'_>, command: &Command, work: &Work) -> Result<String, Failure> {
    let done = work.while_reported(&managed.client, &managed.outbox, || {
        let wanted = Wanted::read(&command.payload)?;
        let bench = Bench::new(managed, command, &work.cancel)?;
        for text in restores::put_in_order(&bench.host, &bench.state, &backup::Silent)? {
            managed.settled(&text);
        }
        let mut done = Vec::new();
        for vm in &wanted.vms {
            done.push(one(managed, &bench, &wanted, vm, work)?);
        }
        if let Some(hooks) = &bench.host.hooks {
            hooks.write_counts()?;
        }
        Ok(done)
    });
    conclude(managed, work, done)
}

/// One VM: its name, and what a person has to know of it.
fn one(
    managed: &Managed<'_>,
    bench: &Bench,
    wanted: &Wanted,
    vm: &WantedVm,
    work: &Work,
) -> Result<(String, Vec<String>), Failure> {
    let observer = work.observer(vm.backup_point_id);
    let context = bench.context(&observer, &work.cancel);
    let point = point(managed, &bench.repo, vm.backup_point_id)?;
    let what = format!("restore {}", point.vm_name);
    let on = format!("point {} on {}", vm.backup_point_id, bench.host.name);
    let params = json!({ "vm_name": point.vm_name, "vm_count": wanted.vms.len(), "target_path": wanted.target_path });
    work.tell("start", "info", "HYPERV_RESTORE_STARTING", params);
    let done = if wanted.is_disks_only() {
        (point.vm_name.clone(), disks_only(bench, wanted, vm, &point, work)?)
    } else {
        let request = wanted.request(vm, &point, &bench.repo)?;
        let plan = plan_restore(&context, &point, &request).attempt(&*what, &*on)?;
        refuse_blocked(&what, &on, &plan)?;
        for obstacle in plan.obstacles.iter().filter(|one| one.severity == Severity::Decide) {
            let message = format!("{}: {}", obstacle.on, obstacle.why);
            let params = json!({ "vm_name": point.vm_name, "code": obstacle.code, "message": message });
            work.tell("warning", "warn", "HYPERV_RESTORE_DECISION", params);
        }
        let restored = restore_vm(&context, &plan).attempt(&*what, &*on)?;
        let params = json!({ "vm_name": restored.vm.name, "vm_guid": restored.vm.id.to_string() });
        work.tell("info", "info", "HYPERV_VM_REGISTERED", params.clone());
        if restored.started {
            work.tell("info", "info", "HYPERV_VM_STARTED", params);
        }
        (restored.vm.name.clone(), restored.warnings)
    };
    work.set_state(vm.backup_point_id, "committed");
    Ok(done)
}

/// All obstacles that must be solved are in the message.
fn refuse_blocked(what: &str, on: &str, plan: &RestorePlan) -> Result<(), Failure> {
    let blocking: Vec<String> = plan
        .obstacles
        .iter()
        .filter(|one| one.severity == Severity::Block)
        .map(|one| format!("{} {}: {}", one.code, one.on, one.why))
        .collect();
    if blocking.is_empty() {
        return Ok(());
    }
    let why = format!("{} must be solved; nothing was touched. {}", blocking.len(), blocking.join(" "));
    Err(Failure::new(what, on, Code::Preflight, why))
}

/// The disks as VHDX files below the target folder, in a folder with the VM's name.
fn disks_only(
    bench: &Bench,
    wanted: &Wanted,
    vm: &WantedVm,
    point: &Point,
    work: &Work,
) -> Result<Vec<String>, Failure> {
    let what = format!("restore the disks of {}", point.vm_name);
    let target =
        wanted.target_path.as_deref().map(Path::new).filter(|path| path.is_absolute()).ok_or_else(|| {
            Failure::new(&*what, "", Code::TargetRefused, "the target is no absolute path of this host")
        })?;
    let request = wanted.request(vm, point, &bench.repo)?;
    let description = point.describe(&bench.repo).attempt(&*what, &*point.id)?;
    let folder = target.join(file_name(&point.vm_name, "vm"));
    std::fs::create_dir_all(&folder).attempt(&*what, folder.display().to_string())?;
    let observer = work.observer(vm.backup_point_id);
    let mut files: Vec<PathBuf> = Vec::new();
    for disk in &description.disks {
        if request.disks.as_ref().is_some_and(|wanted| !wanted.contains(&disk.number)) {
            continue;
        }
        let name = disk.path.rsplit(['\\', '/']).next().unwrap_or_default();
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let file = folder.join(format!("{}-{}.vhdx", disk.number, file_name(stem, "disk")));
        let object = point.open_disk(&bench.repo, disk).attempt(&*what, &*point.id)?;
        let label = format!("{} disk {}", point.vm_name, disk.number);
        restore_disk(&object, &file, TargetFormat::Vhdx, false, &label, &observer, &work.cancel)
            .attempt(&*what, file.display().to_string())?;
        files.push(file);
    }
    Ok(Vec::new())
}

/// A name that cannot leave its folder: the guest chose it.
fn file_name(name: &str, otherwise: &str) -> String {
    let safe: String =
        name.chars().map(|c| if c.is_alphanumeric() || "-_ ".contains(c) { c } else { '_' }).take(100).collect();
    if safe.trim().is_empty() { otherwise.to_owned() } else { safe.trim().to_owned() }
}

fn conclude(
    managed: &Managed<'_>,
    work: &Work,
    done: Result<Vec<(String, Vec<String>)>, Failure>,
) -> Result<String, Failure> {
    let (status, failure) = match &done {
        Ok(vms) if vms.iter().all(|(_, warnings)| warnings.is_empty()) => (RunStatus::Success, None),
        Ok(_) => (RunStatus::Warning, None),
        Err(failure) if failure.code() == Code::Interrupted && work.is_cancel_asked() => {
            (RunStatus::Cancelled, Some(failure))
        }
        Err(failure) => (RunStatus::Failed, Some(failure)),
    };
    let names: Vec<&str> = done.iter().flatten().map(|(name, _)| name.as_str()).collect();
    let warnings: Vec<&String> = done.iter().flatten().flat_map(|(_, warnings)| warnings).collect();
    let text = match failure {
        None => format!("restored {}", names.join(", ")),
        Some(failure) => failure.to_string(),
    };
    // Interrupted by the end of this process: the command comes again, and the restore begins anew.
    let goes_on = failure.is_some_and(|failure| failure.code() == Code::Interrupted) && !work.is_cancel_asked();
    if !work.is_lost() && !goes_on {
        let (level, message_id) = match failure {
            None => ("info", "HYPERV_RESTORE_COMPLETE"),
            Some(_) => ("error", "HYPERV_RESTORE_FAILED"),
        };
        let params = json!({ "vm_count": names.len(), "status": status.word(), "message": text, "warnings": warnings });
        work.tell("summary", level, message_id, params);
        work.flush_events(&managed.outbox);
        let update = UpdateRun {
            status: Some(status),
            finished_at: Some(results::instant(jiff::Timestamp::now())),
            error_summary: failure.map(|failure| failure.to_string().chars().take(700).collect()),
            error_code: failure.map(|failure| results::error_code(failure.code()).to_owned()),
            cancel_ack: status == RunStatus::Cancelled,
            ..work.report()
        };
        put(&managed.outbox, work.record("agent_update_run.php", false, json!(update)));
    }
    done.map(|_| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_restore_are_read() {
        let read = |value: Value| Wanted::read(value.as_object().unwrap());
        let flat = read(json!({"backup_point_id": 7, "restore_run_id": 3})).unwrap();
        assert_eq!((flat.vms(), flat.run_id()), (vec![(7, String::new())], Some(3)));
        let several = read(json!({"vms": [{"backup_point_id": 1, "vm_name": "A"}, {"backup_point_id": 2}]})).unwrap();
        assert_eq!(several.vms().len(), 2);
        for wrong in [json!({}), json!({"vms": []}), json!({"vms": 3}), json!({"restore_options": "all"})] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_guests_name_cannot_leave_its_folder() {
        for (name, expected) in
            [("DC01", "DC01"), ("../../etc", "______etc"), ("C:\\x", "C__x"), ("  ", "vm"), ("..", "__"), ("é1", "é1")]
        {
            assert_eq!(file_name(name, "vm"), expected, "{name}");
        }
    }
}

//! The VM that a restore replaces: stopped, registered anew under another id and name, kept; or put back.
//!
//! An id cannot be given to a VM that is there, so the old one leaves the host and comes back as another: its
//! configuration is copied from a checkpoint of the stopped VM (TPM state included, spec hyperv 6.6), it is
//! unregistered, and imported from that copy with a new id. Its disk files stay where they are all the time
//! (spec hyperv 6.5).

use std::time::Duration;

use hyperv::{
    ChainBefore, CheckpointKind, CheckpointRequest, Consistency, Host, MergeOutcome, NetworkChoice, Recreation,
    RestoredDisk, Vm, VmId, VmState,
};
use jiff::{SignedDuration, Timestamp};

use super::journal::{FormerVm, NewVmWork, SavedConfiguration, Stage};
use super::kept::KeptVm;
use super::make::{Making, import_again, on_target, registered, remove_configuration};
use super::place::join;
use super::writes_of;
use crate::commit::timestamp;
use crate::state::HostState;
use crate::{BackupError, Event};

/// How long a guest may take to shut down before its power is cut.
const SHUT_DOWN: Duration = Duration::from_secs(5 * 60);
/// How long the merge of the checkpoint may take; the disks are idle, so there is nothing to merge.
const MERGE: Duration = Duration::from_secs(10 * 60);
/// Longest configuration file that is copied.
const MAX_CONFIG_FILE_BYTES: u64 = 256 << 20;
const DAY_HOURS: i64 = 24;

/// Puts the VM aside. What is not complete when this fails, [`put_back`] takes back.
pub(super) fn step_aside(making: &mut Making<'_>, planned: &Vm, days: u32) -> Result<(), BackupError> {
    making.phase("putting the old VM aside");
    let host = making.context.host;
    let vm = look_at(host, &planned.id)?.ok_or_else(|| gone(planned))?;
    let now = timestamp(&*host.seam().clock);
    let until = now.checked_add(SignedDuration::from_hours(DAY_HOURS * i64::from(days))).unwrap_or(Timestamp::MAX);
    let day = until.strftime("%Y-%m-%d");
    let id = &making.journal.restore_id;
    let former = FormerVm {
        id: vm.id.to_string(),
        name: vm.name.clone(),
        kept_name: format!("{} (replaced, kept until {day}, {})", vm.name, &id[..id.len().min(8)]),
        until,
        was_running: vm.state == VmState::Running,
        disks: vm.disks.iter().map(|disk| (disk.instance_id.clone(), disk.path.clone())).collect(),
        files: vm.disks.iter().flat_map(|disk| disk.chain.clone()).collect(),
        data_root: data_root(host, &vm)?,
        tag: format!("e3:{}:{id}:replace", making.context.state.agent_id()),
        saved: None,
        kept_id: None,
    };
    let known = registered(host)?;
    let work = making.work();
    (work.stage, work.known, work.former) = (Stage::SteppingAside, known, Some(former.clone()));
    making.save()?;
    stop(making, &vm)?;
    let saved = save_configuration(making, &vm, &former)?;
    set_former(making, |former| former.saved = Some(Box::new(saved.clone())))?;

    let vm = look_at(host, &vm.id)?.ok_or_else(|| gone(&vm))?;
    let attempt = format!("take {} off the host", vm.name);
    host.remove_vm(&vm.path).map_err(BackupError::host(attempt))?;
    let kept = import_again(host, &saved.file, &saved.definition, as_kept(&former))?;
    set_former(making, |former| former.kept_id = Some(kept.vm.id.to_string()))
}

/// Brings the VM back to where it was. The restored VM is gone already.
pub(super) fn put_back(host: &Host, work: &NewVmWork, former: &FormerVm) -> Result<Vec<String>, BackupError> {
    let mut done = Vec::new();
    let id: VmId = former.id.parse().map_err(BackupError::host(format!("read the id of {}", former.name)))?;
    if let Some(vm) = look_at(host, &id)? {
        drop_checkpoint(host, &vm, former)?;
    } else if let Some(saved) = &former.saved {
        let failed = || BackupError::host(format!("look for {}", former.kept_name));
        for vm in host.list_vms().map_err(failed())? {
            let appeared = work.known.iter().all(|known| !known.eq_ignore_ascii_case(vm.id.as_str()));
            if vm.name == former.kept_name && (appeared || former.kept_id.as_deref() == Some(vm.id.as_str())) {
                let attempt = format!("take {} off the host", vm.name);
                host.remove_vm(&vm.path).map_err(BackupError::host(attempt))?;
                remove_configuration(writes_of(host)?, &former.data_root, vm.id.as_str())?;
            }
        }
        import_again(host, &saved.file, &saved.definition, as_it_was(former))?;
        done.push(format!("put {} back in its place", former.name));
    }
    if former.was_running
        && let Some(vm) = look_at(host, &id)?
        && vm.state == VmState::Off
    {
        let attempt = format!("start {} again", former.name);
        host.start_vm(&vm).map_err(BackupError::host(attempt))?;
        done.push(format!("started {} again", former.name));
    }
    Ok(done)
}

/// Writes down that the VM is kept, and until when.
pub(super) fn note_kept(state: &HostState, restore_id: &str, former: &FormerVm) -> Result<KeptVm, BackupError> {
    let kept = KeptVm {
        vm_id: former.kept_id.clone().unwrap_or_default(),
        name: former.kept_name.clone(),
        former_id: former.id.clone(),
        former_name: former.name.clone(),
        restore_id: restore_id.to_owned(),
        until: former.until,
        files: former.files.clone(),
        directory: former.data_root.clone(),
        removing: false,
    };
    kept.write(state)?;
    Ok(kept)
}

fn look_at(host: &Host, id: &VmId) -> Result<Option<Vm>, BackupError> {
    host.vm(id).map_err(BackupError::host(format!("look at VM {id}")))
}

fn gone(vm: &Vm) -> BackupError {
    BackupError::Obstructed { vm: vm.name.clone(), problem: "it has left the host meanwhile".into() }
}

fn set_former(making: &mut Making<'_>, change: impl FnOnce(&mut FormerVm)) -> Result<(), BackupError> {
    change(making.work().former.as_mut().expect("written before it steps aside"));
    making.save()
}

fn data_root(host: &Host, vm: &Vm) -> Result<String, BackupError> {
    let definition =
        host.capture_definition(vm).map_err(BackupError::host(format!("read the definition of {}", vm.name)))?;
    let system = definition.system.to_instance();
    let root = system.as_ref().and_then(|system| system.get("ConfigurationDataRoot").as_str());
    Ok(root.unwrap_or_default().trim_end_matches('\\').to_owned())
}

/// The guest is asked first; one that does not answer loses its power.
fn stop(making: &Making<'_>, vm: &Vm) -> Result<(), BackupError> {
    let host = making.context.host;
    if vm.state == VmState::Running {
        let reason = "It is replaced by a restored VM.";
        match host.shut_down_guest(vm, reason, SHUT_DOWN) {
            Ok(true) => return Ok(()),
            Ok(false) => warn(making, vm, "its guest did not shut down in time; its power was cut"),
            Err(error) => {
                let text = format!("its guest could not be asked to shut down ({error}); its power was cut");
                warn(making, vm, &text);
            }
        }
    }
    // A saved state would refer to the time before; the disks hold all that is kept.
    host.turn_off_vm(vm).map_err(BackupError::host(format!("turn {} off", vm.name)))
}

fn warn(making: &Making<'_>, vm: &Vm, text: &str) {
    making.context.observer.event(Event::Warning { subject: &vm.name, text });
}

/// Copies the configuration of the stopped VM as a checkpoint of it shows it.
fn save_configuration(making: &mut Making<'_>, vm: &Vm, former: &FormerVm) -> Result<SavedConfiguration, BackupError> {
    let host = making.context.host;
    let vm = look_at(host, &vm.id)?.ok_or_else(|| gone(vm))?;
    let attempt = |what: &str| format!("{what} of {}", vm.name);
    let request = CheckpointRequest::new(Consistency::Crash, former.tag.clone());
    let checkpoint =
        host.create_recovery_checkpoint(&vm, &request).map_err(BackupError::host(attempt("create a checkpoint")))?;
    let definition = host
        .capture_checkpoint_definition(&vm, &checkpoint)
        .map_err(BackupError::host(attempt("read the definition")))?;
    let folder = join(&making.plan.wanted.data_root, r"e3-import\Replaced\Virtual Machines");
    let stem = join(&folder, vm.id.as_str());
    let mut files = Vec::new();
    let opened = host.open_config_files(&checkpoint);
    for config in opened.map_err(BackupError::host(attempt("open the configuration files")))? {
        let len = config.facts.len_bytes;
        if len > MAX_CONFIG_FILE_BYTES {
            let problem = format!("its configuration file {} has {len} bytes", config.path);
            return Err(BackupError::Obstructed { vm: vm.name.clone(), problem });
        }
        let mut bytes = vec![0; len as usize];
        config.file.read_exact_at(&mut bytes, 0).map_err(BackupError::host(attempt("read a configuration file")))?;
        let extension = config.path.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase();
        files.push((format!("{stem}.{extension}"), bytes));
    }
    host.destroy_checkpoint(&checkpoint.path).map_err(BackupError::host(attempt("remove the checkpoint")))?;
    let before: Vec<ChainBefore> = checkpoint.disks.iter().map(ChainBefore::from).collect();
    let merged = host.wait_for_merge(&vm.id, &before, MERGE);
    let merged = merged.map_err(BackupError::host(attempt("watch the merge")))?;
    if !matches!(merged, MergeOutcome::Merged) {
        let problem = "the host does not merge the checkpoint that its configuration was read from".to_owned();
        return Err(BackupError::Obstructed { vm: vm.name.clone(), problem });
    }

    let scratch = &mut making.work().scratch;
    scratch.folders.extend([join_replaced(&folder), folder.clone()]);
    scratch.files.extend(files.iter().map(|(path, _)| path.clone()));
    making.save()?;
    making.writes.create_folder(&folder).map_err(on_target(&folder))?;
    for (path, bytes) in &files {
        making.writes.create_file(path, bytes).map_err(on_target(path))?;
    }
    Ok(SavedConfiguration { definition, file: format!("{stem}.vmcx") })
}

/// The folder that holds it.
fn join_replaced(folder: &str) -> String {
    folder.rsplit_once('\\').map_or(folder, |(parent, _)| parent).to_owned()
}

/// A checkpoint of ours that a crash left; its disks merge by themselves.
fn drop_checkpoint(host: &Host, vm: &Vm, former: &FormerVm) -> Result<(), BackupError> {
    let failed = || BackupError::host(format!("remove a leftover checkpoint of {}", vm.name));
    for checkpoint in host.list_checkpoints(&vm.id).map_err(failed())? {
        // The plan allowed no checkpoint at all, so one that has not got its name yet is ours, too.
        let lacks_its_name = checkpoint.kind == CheckpointKind::Recovery && !checkpoint.name.starts_with("e3:");
        if checkpoint.name == former.tag || lacks_its_name {
            host.destroy_checkpoint(&checkpoint.path).map_err(failed())?;
        }
    }
    Ok(())
}

fn disks_of(former: &FormerVm) -> Vec<RestoredDisk> {
    let disks = former.disks.iter();
    disks
        .map(|(instance_id, path)| RestoredDisk {
            instance_id: instance_id.clone(),
            path: path.clone(),
            needs_bytes: None,
        })
        .collect()
}

/// The same machine under another id and name, without network and automatic start; its addresses stay for the day it
/// is wanted back.
fn as_kept(former: &FormerVm) -> Recreation {
    let mut kept = Recreation::as_copy(former.kept_name.clone(), former.data_root.clone(), disks_of(former));
    kept.mac = hyperv::MacChoice::Keep;
    kept.network = NetworkChoice::disconnected();
    kept
}

fn as_it_was(former: &FormerVm) -> Recreation {
    Recreation::as_original(former.name.clone(), former.data_root.clone(), disks_of(former))
}

//! From a VM on the volume to a VM on local files (spec block-serving C.8, "Hyper-V finish").
//!
//! Until the last child has its local parent the volume stays. A merge comes before the VM's drive gets the merged file:
//! whoever starts the VM in between finds the child on a parent that already holds what the child does. Before each step
//! that cannot be taken back the VM is looked at: what stands on a child (a checkpoint) is lost with it, and a disk that
//! somebody exchanged is not the one that is merged.

use std::io::ErrorKind;

use hyperv::{TargetPortal, Vm, VmState};

use super::journal::{DiskStep, InstantDisk, InstantStage};
use super::make::{check_child, check_file, gone};
use super::{InstantVm, make};
use crate::BackupError;
use crate::restore_vm::{on_target, remove_scratch, when_free, when_idle, writes_of};

pub(super) fn finish(vm: &mut InstantVm<'_>, starts: bool) -> Result<(), BackupError> {
    if vm.is_over()? {
        return Ok(());
    }
    let _vm_lock = vm.lock_made()?;
    // One that was cut off at its last step may have started it already.
    if !all_done(vm) {
        ready(vm)?;
    }
    vm.journal.stage = InstantStage::Finishing;
    vm.save()?;
    for nth in 0..vm.journal.disks.len() {
        if vm.journal.disks[nth].step < DiskStep::OnLocal {
            give_local_parent(vm, nth)?;
        }
    }
    if !all_done(vm) {
        ready(vm)?;
    }
    detach(vm)?;
    let writes = writes_of(vm.host)?;
    for nth in 0..vm.journal.disks.len() {
        if vm.journal.disks[nth].step < DiskStep::Done {
            merge(vm, nth)?;
            step(vm, nth, DiskStep::Done)?;
        }
        let child = &vm.journal.disks[nth].child;
        when_free(vm.host, || writes.remove_file(child)).map_err(on_target(child))?;
    }
    // Of a process that died at the end of making it.
    remove_scratch(writes, &vm.journal.scratch)?;
    if starts {
        make::start(vm)?;
    }
    vm.state.remove_instant(&vm.journal.session)
}

fn all_done(vm: &InstantVm<'_>) -> bool {
    vm.journal.disks.iter().all(|disk| disk.step == DiskStep::Done)
}

fn give_local_parent(vm: &mut InstantVm<'_>, nth: usize) -> Result<(), BackupError> {
    ready(vm)?;
    let (host, disk) = (vm.host, vm.journal.disks[nth].clone());
    // Never onto a copy that is not whole: it has its name only then.
    check_file(host, &disk, &disk.local)?;
    check_child(host, &disk)?;
    step(vm, nth, DiskStep::Reparenting)?;
    let given = when_idle(host, || host.set_parent_disk(&disk.child, &disk.local));
    given.map_err(vm.failed("give local parents to the disks"))?;
    step(vm, nth, DiskStep::OnLocal)
}

fn merge(vm: &mut InstantVm<'_>, nth: usize) -> Result<(), BackupError> {
    let now = ready(vm)?;
    let (host, disk) = (vm.host, vm.journal.disks[nth].clone());
    // Cut off behind the exchange: the VM has the merged file. The drive is the one that holds the file: a VM that was
    // built has other controllers than the stored one.
    let Some(instance_id) = disk_at(&now, &disk.child) else { return Ok(()) };
    if is_to_merge(vm, &disk)? {
        if disk.step < DiskStep::Merging {
            step(vm, nth, DiskStep::Merging)?;
        }
        // The merge of a killed process may still go on.
        let merged = when_idle(host, || host.merge_disk(&disk.child, &disk.local));
        merged.map_err(vm.failed("merge the disks"))?;
    }
    step(vm, nth, DiskStep::Exchanging)?;
    let exchanged = when_idle(host, || host.replace_disk_file(&now, instance_id, &disk.local));
    exchanged.map_err(vm.failed("exchange the disks"))
}

/// Whether the child is there. Some versions remove the child of a merge; only one that was begun can have done so, and
/// a folder that cannot be seen at all shows the merged file neither.
fn is_to_merge(vm: &InstantVm<'_>, disk: &InstantDisk) -> Result<bool, BackupError> {
    let files = &vm.host.seam().files;
    match files.facts(&disk.child) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound && disk.step >= DiskStep::Merging => {
            files.facts(&disk.local).map_err(on_target(&disk.local))?;
            Ok(false)
        }
        Err(error) => Err(on_target(&disk.child)(error)),
    }
}

/// Takes the volume away and logs out. What is not there is a success; no VM may use it any more.
pub(super) fn detach(vm: &InstantVm<'_>) -> Result<(), BackupError> {
    let (host, journal) = (vm.host, &vm.journal);
    let Some(portal) = &journal.portal else { return Ok(()) };
    // Found by its serial number alone; one of another session stays.
    if let Some(disk) = host.find_host_disk(&journal.serial).map_err(vm.failed("find the volume"))? {
        host.unmount_disk(&disk, &journal.mount).map_err(vm.failed("take away the volume"))?;
        host.take_disk_offline(&disk).map_err(vm.failed("take away the volume"))?;
    }
    host.disconnect_target(&journal.target).map_err(vm.failed("log out of the volume"))?;
    if !portal.was_known {
        let portal = TargetPortal { address: portal.address.clone(), port: portal.port };
        host.remove_portal(&portal).map_err(vm.failed("remove the portal of the volume"))?;
    }
    let mount = &journal.mount;
    writes_of(host)?.remove_empty_folder(mount).map_err(on_target(mount))?;
    Ok(())
}

fn step(vm: &mut InstantVm<'_>, nth: usize, step: DiskStep) -> Result<(), BackupError> {
    vm.journal.disks[nth].step = step;
    vm.save()
}

/// `InstanceID` of the VM's disk that is this file, one that the host cannot read included.
fn disk_at<'v>(now: &'v Vm, path: &str) -> Option<&'v str> {
    let readable = now.disks.iter().map(|disk| (&disk.path, &disk.instance_id));
    let others = now.unreadable_disks.iter().map(|disk| (&disk.path, &disk.instance_id));
    readable.chain(others).find(|(at, _)| at.eq_ignore_ascii_case(path)).map(|(_, id)| id.as_str())
}

/// The VM, off and at rest, with the disks that it was given.
fn ready(vm: &InstantVm<'_>) -> Result<Vm, BackupError> {
    let now = vm.vm()?.ok_or_else(|| gone(vm))?;
    let has_its_own = |disk: &InstantDisk| {
        let (child, local) = (disk_at(&now, &disk.child), disk_at(&now, &disk.local));
        match disk.step {
            DiskStep::Done => true,
            DiskStep::Exchanging => child.or(local).is_some(),
            _ => child.is_some(),
        }
    };
    let problem = if now.state != VmState::Off {
        format!("it has to be off to be put on local files, and is {:?}", now.state)
    } else if let Some(operation) = now.operation {
        format!("the host is busy with it ({operation:?}); try again later")
    } else if let Some(checkpoint) = now.checkpoints.first() {
        let name = &checkpoint.name;
        format!("it has the checkpoint {name:?}, which stands on the disks that are to be merged; delete it first")
    } else if let Some(disk) = vm.journal.disks.iter().find(|disk| !has_its_own(disk)) {
        format!("{} is not one of its disks now; wait for the merge of a checkpoint, or attach it again", disk.child)
    } else {
        return Ok(now);
    };
    Err(BackupError::Obstructed { vm: vm.journal.vm_name.clone(), problem })
}

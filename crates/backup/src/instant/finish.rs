//! From a VM on the volume to a VM on local files (spec block-serving C.8, "Hyper-V finish").
//!
//! Until the last child has its local parent the volume stays. A merge comes before the VM's drive gets the merged file:
//! whoever starts the VM in between finds the child on a parent that already holds what the child does.

use hyperv::{TargetPortal, VmState};

use super::journal::{DiskStep, InstantStage};
use super::make::{check_child, check_file, gone};
use super::{InstantVm, make};
use crate::BackupError;
use crate::restore_vm::{on_target, writes_of};

pub(super) fn finish(vm: &mut InstantVm<'_>, starts: bool) -> Result<(), BackupError> {
    let writes = writes_of(vm.host)?;
    // One that was cut off at its last step may have started it already.
    if vm.journal.disks.iter().any(|disk| disk.step < DiskStep::Done) {
        require_off(vm)?;
    }
    vm.journal.stage = InstantStage::Finishing;
    vm.save()?;
    for nth in 0..vm.journal.disks.len() {
        if vm.journal.disks[nth].step >= DiskStep::OnLocal {
            continue;
        }
        let disk = vm.journal.disks[nth].clone();
        // Never onto a copy that is not whole: it has its name only then.
        check_file(vm.host, &disk, &disk.local)?;
        check_child(vm.host, &disk)?;
        step(vm, nth, DiskStep::Reparenting)?;
        vm.host.set_parent_disk(&disk.child, &disk.local).map_err(vm.failed("give local parents to the disks"))?;
        step(vm, nth, DiskStep::OnLocal)?;
    }
    detach(vm)?;
    for nth in 0..vm.journal.disks.len() {
        if vm.journal.disks[nth].step < DiskStep::Done {
            require_off(vm)?;
            step(vm, nth, DiskStep::Merging)?;
            merge(vm, nth)?;
            step(vm, nth, DiskStep::Done)?;
        }
        let child = &vm.journal.disks[nth].child;
        writes.remove_file(child).map_err(on_target(child))?;
    }
    if starts {
        make::start(vm)?;
    }
    vm.state.remove_instant(&vm.journal.session)
}

fn merge(vm: &InstantVm<'_>, nth: usize) -> Result<(), BackupError> {
    let disk = &vm.journal.disks[nth];
    let now = vm.vm()?.ok_or_else(|| gone(vm))?;
    let is_switched = now.disks.iter().any(|one| one.path.eq_ignore_ascii_case(&disk.local));
    // Some versions remove the child of a merge; one that is gone was merged.
    let is_there = vm.host.seam().files.facts(&disk.child).is_ok();
    if !is_switched && is_there {
        // Its parent's identity changes with the first byte; a merge that was cut off accepts both.
        make::file_info(vm.host, &disk.child)?;
        vm.host.merge_disk(&disk.child, &disk.local).map_err(vm.failed("merge the disks"))?;
    }
    if !is_switched {
        let replaced = vm.host.replace_disk_file(&now, &disk.instance_id, &disk.local);
        replaced.map_err(vm.failed("exchange the disks"))?;
    }
    Ok(())
}

pub(super) fn detach(vm: &mut InstantVm<'_>) -> Result<(), BackupError> {
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

fn require_off(vm: &InstantVm<'_>) -> Result<(), BackupError> {
    let now = vm.vm()?.ok_or_else(|| gone(vm))?;
    if now.state == VmState::Off {
        return Ok(());
    }
    let problem = format!("it has to be off to be put on local files, and is {:?}", now.state);
    Err(BackupError::Obstructed { vm: vm.journal.vm_name.clone(), problem })
}

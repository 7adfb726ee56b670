//! States, exports and merging of a VM.

use hyperv::seam::{CimValue, Instance, MethodOutput};

use super::{INVALID_PARAMETER, INVALID_STATE, NOT_SUPPORTED, answer, start, vm_of};
use crate::error::LabError;
use crate::host::Tx;
use crate::paths::WinPath;
use crate::power;
use crate::properties::Properties;
use crate::provider::Inputs;
use crate::state::{Action, GuestFamily, Power};

/// `Msvm_ComputerSystem.RequestStateChange`. The same answer says that the VM is in that state already.
pub(super) fn change_power(tx: &mut Tx<'_>, object: &Instance, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let Some(vm) = vm_of(tx, object) else { return Ok(answer(INVALID_PARAMETER)) };
    let requested = inputs.number("RequestedState");
    if requested == 4 {
        return Ok(answer(NOT_SUPPORTED));
    }
    if !power::is_known(requested) {
        return Ok(answer(INVALID_PARAMETER));
    }
    match power::target(vm.power, requested) {
        Some(to) if !tx.is_busy(&vm.id) => start(tx, &vm.id, "RequestStateChange", Action::Power { to }, None),
        _ => Ok(answer(INVALID_STATE)),
    }
}

/// `Msvm_ShutdownComponent.InitiateShutdown`: the guest shuts itself down, if it has the component.
pub(super) fn shut_down(tx: &mut Tx<'_>, object: &Instance) -> Result<MethodOutput, LabError> {
    let vm = object.get("SystemName").as_str().and_then(|id| tx.vm(id)).cloned();
    let Some(vm) = vm.filter(|vm| vm.power == Power::Running) else { return Ok(answer(INVALID_STATE)) };
    if vm.guest == GuestFamily::Unknown {
        return Ok(answer(32768));
    }
    if tx.is_busy(&vm.id) {
        return Ok(answer(INVALID_STATE));
    }
    // The method answers at once; that the guest is down shows in the VM's state.
    start(tx, &vm.id, "InitiateShutdown", Action::Power { to: Power::Off }, None)?;
    Ok(answer(0))
}

/// `ExportSystemDefinition`.
pub(super) fn export(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let Some(vm) = vm_of(tx, inputs.object("ComputerSystem")) else { return Ok(answer(INVALID_PARAMETER)) };
    let Some(settings) = inputs.embedded("ExportSettingData") else { return Ok(answer(INVALID_PARAMETER)) };
    let folder = WinPath::new(inputs.text("ExportDirectory"));
    let which = settings.get("CopySnapshotConfiguration").as_u64().unwrap_or(0);
    let text = |name: &str| settings.get(name).as_str().unwrap_or_default();
    let has_checkpoint = !text("SnapshotVirtualSystem").is_empty();
    let is_wrong = folder.in_sandbox(tx.store.root()).is_none()
        || which > 3
        || has_checkpoint != (which >= 2)
        || (!text("DifferentialBackupBase").is_empty() && which != 3)
        || settings.get("CaptureLiveState").as_u64().is_some_and(|state| state > 2)
        || settings.get("BackupIntent").as_u64().is_some_and(|intent| intent > 1)
        || (which == 0 && settings.get("ExcludedVirtualHardDisks").as_array().is_some_and(|disks| !disks.is_empty()));
    if is_wrong {
        return Ok(answer(INVALID_PARAMETER));
    }
    if !text("DifferentialBackupBase").is_empty() {
        return Ok(answer(NOT_SUPPORTED));
    }
    if tx.is_busy(&vm.id) {
        return Ok(answer(INVALID_STATE));
    }
    let action = Action::Export { folder, settings: Properties::of(settings) };
    start(tx, &vm.id, "ExportSystemDefinition", action, None)
}

/// `ModifyDiskMergeSettings`: 1 merges, 0 leaves chains as they are.
pub(super) fn modify_merging(tx: &mut Tx<'_>, inputs: &Inputs) -> MethodOutput {
    let Some(settings) = inputs.embedded("SettingData") else { return answer(INVALID_PARAMETER) };
    let id = settings.get("InstanceID").as_str().and_then(|id| id.strip_prefix("Microsoft:")).unwrap_or_default();
    let Some(vm) = tx.vm(id).map(|vm| vm.id.clone()) else { return answer(INVALID_PARAMETER) };
    let merging = match settings.get("EnabledState") {
        CimValue::Uint16(0) => false,
        CimValue::Uint16(1) => true,
        _ => return answer(INVALID_PARAMETER),
    };
    let now_ms = tx.now_ms;
    let state = tx.edit();
    state.vm_mut(&vm).merging = merging;
    if merging {
        // What has been waiting is tried again at once.
        state.merges.iter_mut().filter(|merge| merge.vm == vm).for_each(|merge| merge.due_ms = now_ms);
    }
    answer(0)
}

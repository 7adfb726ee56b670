//! Starting, stopping, saving and pausing VMs.

use vhdx::OpenErrorKind;

use crate::access;
use crate::configuration::{MEMORY, RASD};
use crate::disks;
use crate::error::LabError;
use crate::failure::{FAILED, Failure, NOT_AVAILABLE};
use crate::faults::Fault;
use crate::files_of_disks::is_worked_on;
use crate::host::Tx;
use crate::paths::WinPath;
use crate::security;
use crate::state::{FileOp, Power, Vm};

/// What `RequestStateChange` leads to from a state; `None` when that is no legal transition. 2 starts, or resumes; 3
/// turns off; 6 saves; 9 pauses; 10 and 11 restart the guest.
pub(crate) fn target(from: Power, requested: u64) -> Option<Power> {
    match (requested, from) {
        (2, Power::Off | Power::Saved | Power::Paused) => Some(Power::Running),
        (3, Power::Running | Power::Saved | Power::Paused) => Some(Power::Off),
        (6, Power::Running | Power::Paused) => Some(Power::Saved),
        (9, Power::Running) => Some(Power::Paused),
        (10 | 11, Power::Running) => Some(Power::Running),
        _ => None,
    }
}

/// Whether a number is a state that can be asked for at all.
pub(crate) fn is_known(requested: u64) -> bool {
    matches!(requested, 2 | 3 | 6 | 9 | 10 | 11)
}

/// Brings a VM into a state. The caller commits.
pub(crate) fn change(tx: &mut Tx<'_>, vm_id: &str, to: Power) -> Result<Result<(), Failure>, LabError> {
    let Some(vm) = tx.vm(vm_id).cloned() else { return Ok(Err(Failure::new(NOT_AVAILABLE, "The VM is gone."))) };
    let starts = to == Power::Running && matches!(vm.power, Power::Off | Power::Saved);
    if starts && let Some(failure) = start_refusal(tx, &vm)? {
        return Ok(Err(failure));
    }
    let now_ms = tx.now_ms;
    let guardian = tx.guardians[0].clone();
    let macs = (tx.vms.len() * 16) as u64;
    let state = tx.edit();
    let changed = state.vm_mut(vm_id);
    changed.power = to;
    changed.state_changed_ms = now_ms;
    if starts {
        security::roll(&mut changed.active, &guardian);
        assign_addresses(changed, macs);
    }
    state.redo.push(FileOp::WriteConfiguration { vm: vm.id });
    Ok(Ok(()))
}

/// Adapters whose address is not static and still zero get one.
fn assign_addresses(vm: &mut Vm, mut next: u64) {
    let adapters = vm.active.devices.iter_mut().filter(|device| device.class.ends_with("EthernetPortSettingData"));
    for adapter in adapters.filter(|adapter| !adapter.properties.flag("StaticMacAddress")) {
        if adapter.properties.text("Address").chars().all(|digit| digit == '0') {
            adapter.properties.put("Address", format!("00155D{next:06X}"));
            next += 1;
        }
    }
}

/// Why a VM cannot be started now, if it cannot.
fn start_refusal(tx: &Tx<'_>, vm: &Vm) -> Result<Option<Failure>, LabError> {
    let refuse = |text: String| Ok(Some(Failure::new(FAILED, format!("{:?} could not start: {text}", vm.active.name))));
    if tx.faults()?.contains(&Fault::NoLogonRight) {
        return refuse(
            "the user has not been granted the requested logon type at this computer. (0x80070569)".to_owned(),
        );
    }
    for disk in &vm.active.disks {
        let path = disk.file.as_str();
        let chain = match disks::open_chain(tx.store, &disk.file)? {
            Ok(chain) => disks::chain_paths(tx.store, &chain),
            Err(e) => {
                let code = match e.kind() {
                    OpenErrorKind::Missing if !tx.store.file(&disk.file)?.is_file() => "0x80070002",
                    OpenErrorKind::Missing => "0xC03A000D",
                    OpenErrorKind::ParentMismatch => "0xC03A000E",
                    OpenErrorKind::Busy => "0x80070020",
                    _ => "0xC03A0004",
                };
                return refuse(format!("attachment {path:?}: {e}. ({code})"));
            }
        };
        for file in &chain {
            if tx.store.is_held(file)? || is_worked_on(tx, file) {
                return refuse(format!("attachment {:?} is in use by another process. (0x80070020)", file.as_str()));
            }
        }
        if let Some(file) = access::denied(tx, vm, &chain) {
            return refuse(format!(
                "account NT VIRTUAL MACHINE\\{} does not have permission to open attachment {:?}: general access \
                 denied. (0x80070005)",
                vm.id,
                file.as_str()
            ));
        }
    }
    for medium in vm.active.devices.iter().filter(|device| device.id.ends_with(r"\L")) {
        let path = medium.properties.only_text("HostResource");
        if !WinPath::new(path).in_sandbox(tx.store.root()).is_some_and(|file| file.is_file()) {
            return refuse(format!("attachment {path:?}: the system cannot find the file specified. (0x80070002)"));
        }
    }
    for drive in vm.active.devices.iter().filter(|device| device.class == RASD) {
        let is_physical = drive.properties.text("ResourceSubType").ends_with("Physical Disk Drive");
        if is_physical && !crate::objects::names_an_object(tx, drive.properties.only_text("HostResource")) {
            return refuse("its physical disk does not exist. (0x80070002)".to_owned());
        }
    }
    let wanted = vm.active.number_of(MEMORY, "VirtualQuantity");
    let used: u64 = (tx.vms.iter())
        .filter(|other| other.id != vm.id && matches!(other.power, Power::Running | Power::Paused))
        .map(|other| other.active.number_of(MEMORY, "VirtualQuantity"))
        .sum();
    if used + wanted > tx.options.memory_mib {
        return refuse(format!("not enough memory in the system: {wanted} MB are wanted. (0x8007000E)"));
    }
    Ok(security::refusal(&vm.active, &tx.guardians))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_legal_transitions() {
        use Power::{Off, Paused, Running, Saved};
        let states = [Running, Off, Saved, Paused];
        for (requested, expected) in [
            (2, [None, Some(Running), Some(Running), Some(Running)]),
            (3, [Some(Off), None, Some(Off), Some(Off)]),
            (6, [Some(Saved), None, None, Some(Saved)]),
            (9, [Some(Paused), None, None, None]),
            (10, [Some(Running), None, None, None]),
            (11, [Some(Running), None, None, None]),
            (4, [None; 4]),
        ] {
            assert_eq!(states.map(|from| target(from, requested)), expected, "{requested}");
        }
    }
}

//! From the journal of a VM that runs from a point to a host without anything of it.

use hyperv::{Host, VmState};

use super::InstantVm;
use super::finish::detach;
use super::journal::InstantStage;
use crate::BackupError;
use crate::restore_vm::{
    UnfinishedVm, join, on_target, remove_all_configurations, remove_made, remove_scratch, remove_when_idle, when_idle,
    writes_of,
};
use crate::state::HostState;

/// A session whose journal is on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstantLeftover {
    /// Its id.
    pub session: String,
    /// Id of its VM, once it is made; else that of the stored VM.
    pub vm_id: String,
    /// Its VM.
    pub vm_name: String,
    /// How far it is.
    pub stage: InstantStage,
    /// A process works on it now.
    pub is_kept: bool,
}

/// The sessions that the host's state folder knows of.
pub fn instant_leftovers(state: &HostState) -> Result<Vec<InstantLeftover>, BackupError> {
    let journals = state.instant_journals()?.into_iter();
    let each = journals.map(|journal| {
        let is_kept = match state.lock_instant(&journal.session) {
            Ok(_) => false,
            Err(BackupError::Busy { .. }) => true,
            Err(error) => return Err(error),
        };
        Ok(InstantLeftover {
            session: journal.session,
            vm_id: journal.made.unwrap_or(journal.vm_id),
            vm_name: journal.vm_name,
            stage: journal.stage,
            is_kept,
        })
    });
    each.collect()
}

/// Takes back the sessions that nobody keeps and whose VM was never made; says in words what was done. One whose VM is
/// there stays: what its guest wrote is nowhere else.
///
/// Each with the name of the VM that it was to be.
pub fn settle_instant(host: &Host, state: &HostState) -> Result<Vec<(String, String)>, BackupError> {
    let mut done = Vec::new();
    for leftover in instant_leftovers(state)? {
        if leftover.is_kept || leftover.stage != InstantStage::Making {
            continue;
        }
        match InstantVm::open(host, state, &leftover.session) {
            Ok(Some(vm)) if vm.stage() == InstantStage::Making => {
                done.extend(undo(vm)?.into_iter().map(|text| (leftover.vm_name.clone(), text)));
            }
            Ok(_) | Err(BackupError::Busy { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

pub(super) fn undo(mut vm: InstantVm<'_>) -> Result<Vec<String>, BackupError> {
    let mut done = Vec::new();
    let (host, writes) = (vm.host, writes_of(vm.host)?);
    match vm.vm()? {
        Some(made) => {
            if made.state != VmState::Off && made.state != VmState::Saved {
                when_idle(host, || host.turn_off_vm(&made)).map_err(vm.failed("turn off the disks"))?;
            }
            remove_when_idle(host, &made.path).map_err(vm.failed("remove the disks"))?;
            done.push(format!("removed VM {}", made.name));
        }
        // Until its id was noted it is known by its folder; before anything was asked of the host there is none.
        None => {
            let journal = &vm.journal;
            if let Some(known) = &journal.known {
                let (names, directory, id) = (&journal.names, &journal.directory, &journal.vm_id);
                done.extend(remove_made(host, &UnfinishedVm { names, known, directory, id })?);
            }
        }
    }
    detach(&mut vm)?;
    let journal = &vm.journal;
    if journal.portal.is_some() {
        remove_scratch(writes, &journal.scratch)?;
        remove_all_configurations(writes, &journal.directory)?;
        for disk in &journal.disks {
            for file in [disk.child.clone(), format!("{}.partial", disk.local), disk.local.clone()] {
                writes.remove_file(&file).map_err(on_target(&file))?;
            }
        }
        for folder in ["Virtual Machines", "Snapshots", "Planned Virtual Machines"] {
            let folder = join(&journal.directory, folder);
            writes.remove_empty_folder(&folder).map_err(on_target(&folder))?;
        }
        for folder in journal.folders.iter().rev() {
            // One in which others have put something stays.
            writes.remove_empty_folder(folder).map_err(on_target(folder))?;
        }
    }
    done.push(format!("took back the instant session of {}", journal.vm_name));
    vm.state.remove_instant(&vm.journal.session)?;
    Ok(done)
}

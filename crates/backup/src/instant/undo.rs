//! From the journal of a VM that runs from a point to a host without anything of it.

use hyperv::{Host, VmState};

use super::InstantVm;
use super::finish::detach;
use super::journal::{InstantJournal, InstantStage};
use crate::BackupError;
use crate::restore_vm::{
    FolderOfVm, UnfinishedVm, has_extension, remove_files_in, remove_made, remove_when_idle, when_idle,
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

impl InstantLeftover {
    /// Whether it is to go, whoever finds it: the VM was never made, or its operator gave it up.
    pub fn is_to_go(&self) -> bool {
        is_to_go(self.stage)
    }
}

fn is_to_go(stage: InstantStage) -> bool {
    matches!(stage, InstantStage::Making | InstantStage::Discarding)
}

/// The sessions that the host's state folder knows of.
pub fn instant_leftovers(state: &HostState) -> Result<Vec<InstantLeftover>, BackupError> {
    let journals = state.instant_journals()?.into_iter();
    let each = journals.map(|journal| {
        Ok(InstantLeftover {
            is_kept: state.is_instant_locked(&journal.session)?,
            session: journal.session,
            vm_id: journal.made.unwrap_or(journal.vm_id),
            vm_name: journal.vm_name,
            stage: journal.stage,
        })
    });
    each.collect()
}

/// Takes back the sessions that nobody keeps and whose VM was never made, or was being discarded; says in words what was
/// done. Any other whose VM is there stays: what its guest wrote is nowhere else.
///
/// Each with the name of the VM that it was to be.
pub fn settle_instant(host: &Host, state: &HostState) -> Result<Vec<(String, String)>, BackupError> {
    let mut done = Vec::new();
    for leftover in instant_leftovers(state)?.into_iter().filter(|one| !one.is_kept && one.is_to_go()) {
        let taken_back = match InstantVm::open(host, state, &leftover.session) {
            Ok(Some(vm)) if is_to_go(vm.stage()) => undo(vm),
            Ok(_) => continue,
            Err(error) => Err(error),
        };
        match taken_back {
            Ok(texts) => done.extend(texts.into_iter().map(|text| (leftover.vm_name.clone(), text))),
            Err(BackupError::Busy { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

pub(super) fn undo(mut vm: InstantVm<'_>) -> Result<Vec<String>, BackupError> {
    let mut done = Vec::new();
    if vm.is_over()? {
        return Ok(done);
    }
    let _vm_lock = vm.lock_made()?;
    if vm.journal.stage != InstantStage::Making {
        // Whoever comes next goes on with it, should this be cut off.
        vm.journal.stage = InstantStage::Discarding;
        vm.save()?;
    }
    let host = vm.host;
    let name = &vm.journal.vm_name;
    match vm.vm()? {
        Some(made) => {
            if made.state != VmState::Off && made.state != VmState::Saved {
                when_idle(host, || host.turn_off_vm(&made))
                    .map_err(BackupError::host(format!("turn off VM {name}")))?;
            }
            remove_when_idle(host, &made.path).map_err(BackupError::host(format!("remove VM {name}")))?;
            done.push(format!("removed VM {}", made.name));
        }
        // Somebody took it off the host. A planned VM that appeared since belongs to another restore.
        None if vm.journal.made.is_some() => {}
        // Until its id was noted it is known by its folder; before anything was asked of the host there is none.
        None => {
            let journal = &vm.journal;
            if let Some(known) = &journal.known {
                let (names, directory, id) = (&journal.names, &journal.directory, &journal.vm_id);
                done.extend(remove_made(host, &UnfinishedVm { names, known, directory, id })?);
            }
        }
    }
    detach(&vm)?;
    let journal = &vm.journal;
    // Before the folders were noted nothing was put anywhere.
    if !journal.folders.is_empty() {
        remove_checkpoints_of(host, journal)?;
        let folder = FolderOfVm {
            directory: &journal.directory,
            folders: &journal.folders,
            scratch: &journal.scratch,
            files: journal.disks.iter().flat_map(|disk| [disk.child.clone(), disk.local.clone()]).collect(),
        };
        let stayed = folder.remove(host)?.into_iter();
        done.extend(stayed.map(|folder| format!("left {folder}: there is something of others in it")));
    }
    done.push(format!("took back the instant session of {}", journal.vm_name));
    vm.state.remove_instant(&vm.journal.session)?;
    Ok(done)
}

/// The host leaves the disk files of checkpoints when it removes a VM. They, and files of change tracking, are named
/// after the disk that was frozen, so that those of others in the folder stay.
fn remove_checkpoints_of(host: &Host, journal: &InstantJournal) -> Result<(), BackupError> {
    for disk in &journal.disks {
        let Some((folder, name)) = disk.child.rsplit_once('\\') else { continue };
        let stem = name.strip_suffix(".vhdx").unwrap_or(name).to_lowercase();
        remove_files_in(host, folder, |name| {
            let is_of_checkpoint = ["avhdx", "rct", "mrt"].iter().any(|extension| has_extension(name, extension));
            is_of_checkpoint && name.to_lowercase().starts_with(&stem)
        })?;
    }
    Ok(())
}

//! From the journal of a restore that did not end to a host without anything of it.

use std::io;
use std::time::Duration;

use hyperv::seam::ObjectPath;
use hyperv::{ErrorKind, Host, VmId, VmState, is_sharing_violation};

use super::journal::{RestoreJournal, Scratch, Stage, Work};
use super::make::{CONFIGURATION, finish, on_target, remove_scratch};
use super::place::join;
use super::plan::has_extension;
use super::{replace, writes_of};
use crate::BackupError;
use crate::observer::{Event, Observer};
use crate::state::HostState;

/// How long a VM that the host is busy with is waited for.
const MOST_TRIES: u32 = 30;
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// Puts in order what restores left that did not end; says in words what was done. One that goes on is left alone, and
/// so is an unfinished restore in place: only running it again ends that ([`open_restores`] names it).
pub fn settle_restores(host: &Host, state: &HostState, observer: &dyn Observer) -> Result<Vec<String>, BackupError> {
    let mut done = Vec::new();
    for journal in state.restore_journals()? {
        if matches!(&journal.work, Work::InPlace(work) if work.writing) {
            continue;
        }
        let Ok(_lock) = state.lock_restore(&journal.restore_id, &journal.vm_name) else { continue };
        // It may have ended between the listing and the lock.
        let still_there = state.restore_journals()?.into_iter().find(|one| one.restore_id == journal.restore_id);
        let Some(mut journal) = still_there else { continue };
        observer.event(Event::Phase { subject: &journal.vm_name, phase: "putting a former restore in order" });
        match &journal.work {
            Work::InPlace(work) if work.writing => {}
            Work::InPlace(work) => {
                crate::in_place::give_names_back(writes_of(host)?, &work.disks)?;
                state.remove_restore(&journal.restore_id)?;
                done.push(format!("gave the untouched disks of {} their names back", journal.vm_name));
            }
            Work::NewVm(work) if work.stage == Stage::Made => {
                finish(host, state, &mut journal)?;
                done.push(format!("finished the restore of {}, which had been cut off at its end", journal.vm_name));
            }
            _ => done.extend(undo(host, state, &mut journal)?),
        }
    }
    Ok(done)
}

/// The restores that are not over, in words: those that go on, and those that were cut off.
pub fn open_restores(state: &HostState) -> Result<Vec<String>, BackupError> {
    let journals = state.restore_journals()?.into_iter();
    Ok(journals
        .map(|journal| match journal.work {
            Work::InPlace(work) => format!("restore in place of {}: {}", journal.vm_name, work.what_to_do),
            Work::NewVm(_) => format!("restore of {}", journal.vm_name),
        })
        .collect())
}

/// What to do about a VM whose disks are half-written; `None` for every other.
pub(crate) fn unfinished_in_place(state: &HostState, vm_id: &str) -> Result<Option<String>, BackupError> {
    Ok(state.restore_journals()?.into_iter().find_map(|journal| match journal.work {
        Work::InPlace(work) if journal.vm_id.eq_ignore_ascii_case(vm_id) => Some(work.what_to_do),
        _ => None,
    }))
}

/// Takes back a restore whose VM is not complete. Its lock is held.
pub(super) fn undo(host: &Host, state: &HostState, journal: &mut RestoreJournal) -> Result<Vec<String>, BackupError> {
    let mut done = Vec::new();
    let Work::NewVm(work) = &mut journal.work else { unreachable!("a restore in place is not taken back") };
    if work.stage == Stage::Made {
        // The VM is whole, whatever failed behind it.
        finish(host, state, journal)?;
        return Ok(done);
    }
    if work.stage >= Stage::SteppingAside {
        let vm =
            UnfinishedVm { names: &work.names, known: &work.known, directory: &work.directory, id: &journal.vm_id };
        done.extend(remove_made(host, &vm)?);
    }
    if let Some(former) = work.former.clone() {
        done.extend(replace::put_back(host, work, &former)?);
    }
    let folder = FolderOfVm {
        directory: &work.directory,
        folders: &work.folders,
        scratch: &work.scratch,
        files: work.files.clone(),
    };
    folder.remove(host)?;
    done.push(format!("removed what a restore of {} had written before it was cut off", journal.vm_name));
    state.remove_restore(&journal.restore_id)?;
    Ok(done)
}

/// A folder that is a VM's alone, and what was put into it. Configurations in it are the VM's, whoever wrote them.
pub(crate) struct FolderOfVm<'a> {
    pub(crate) directory: &'a str,
    /// Folders that were made, outermost first; those above it too.
    pub(crate) folders: &'a [String],
    /// What served the import.
    pub(crate) scratch: &'a Scratch,
    /// Disks; while they are written, with another ending.
    pub(crate) files: Vec<String>,
}

impl FolderOfVm<'_> {
    /// Removes all of it; the VM is off the host already. Gives the folders of the VM that others have put something
    /// into, which stay.
    pub(crate) fn remove(&self, host: &Host) -> Result<Vec<String>, BackupError> {
        let writes = writes_of(host)?;
        remove_scratch(writes, self.scratch)?;
        for file in self.files.iter().flat_map(|file| [format!("{file}.partial"), file.clone()]) {
            when_free(host, || writes.remove_file(&file)).map_err(on_target(&file))?;
        }
        // Folders that the host made, with the configuration that it may leave of a VM and of its checkpoints.
        for folder in ["Virtual Machines", "Snapshots", "Planned Virtual Machines"] {
            let folder = join(self.directory, folder);
            let is_configuration = |name: &str| CONFIGURATION.iter().any(|extension| has_extension(name, extension));
            remove_files_in(host, &folder, is_configuration)?;
            writes.remove_empty_folder(&folder).map_err(on_target(&folder))?;
        }
        let mut stayed = Vec::new();
        for folder in self.folders.iter().rev() {
            let is_gone = writes.remove_empty_folder(folder).map_err(on_target(folder))?;
            if !is_gone && folder.starts_with(self.directory) {
                stayed.push(folder.clone());
            }
        }
        Ok(stayed)
    }
}

/// Removes the files of a folder whose names are ours. No folder is none.
pub(crate) fn remove_files_in(host: &Host, folder: &str, is_ours: impl Fn(&str) -> bool) -> Result<(), BackupError> {
    let writes = writes_of(host)?;
    let local = writes.local_path(folder).map_err(on_target(folder))?;
    let entries = match std::fs::read_dir(local) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(on_target(folder)(error)),
    };
    for entry in entries {
        let name = entry.map_err(on_target(folder))?.file_name();
        let name = name.to_string_lossy();
        if is_ours(&name) {
            let file = join(folder, &name);
            when_free(host, || writes.remove_file(&file)).map_err(on_target(&file))?;
        }
    }
    Ok(())
}

/// Removes a VM from the host, see [`when_idle`].
pub(crate) fn remove_when_idle(host: &Host, path: &ObjectPath) -> Result<(), hyperv::Error> {
    when_idle(host, || host.remove_vm(path))
}

/// Does something to a VM. A job that a killed process has started may still be at work on it; that is waited for.
pub(crate) fn when_idle(host: &Host, act: impl Fn() -> Result<(), hyperv::Error>) -> Result<(), hyperv::Error> {
    patiently(host, |error: &hyperv::Error| error.kind() == ErrorKind::Busy, act)
}

/// The same for a file, which such a job may hold.
pub(crate) fn when_free<T>(host: &Host, act: impl Fn() -> io::Result<T>) -> io::Result<T> {
    patiently(host, is_sharing_violation, act)
}

fn patiently<T, E>(host: &Host, is_busy: impl Fn(&E) -> bool, act: impl Fn() -> Result<T, E>) -> Result<T, E> {
    let mut tries = 0;
    loop {
        match act() {
            Err(error) if is_busy(&error) && tries < MOST_TRIES => {
                tries += 1;
                host.seam().clock.sleep(BETWEEN_TRIES);
            }
            result => return result,
        }
    }
}

/// A VM that was being made, as far as it is known by what.
pub(crate) struct UnfinishedVm<'a> {
    /// The stored name, and what it was to be called.
    pub(crate) names: &'a [String; 2],
    /// Ids of what was there before.
    pub(crate) known: &'a [String],
    /// The folder that is its alone.
    pub(crate) directory: &'a str,
    /// The stored id.
    pub(crate) id: &'a str,
}

/// Removes the VM that was being made: a planned one that appeared and has a name of ours, and a VM in its own folder.
pub(crate) fn remove_made(host: &Host, work: &UnfinishedVm<'_>) -> Result<Vec<String>, BackupError> {
    let mut done = Vec::new();
    let failed = || BackupError::host("look for the VM of a restore that was cut off");
    let appeared = |id: &VmId| work.known.iter().all(|known| !known.eq_ignore_ascii_case(id.as_str()));
    for planned in host.list_planned_vms().map_err(failed())? {
        // Until it gets its name, an imported checkpoint has the one that the backup run or the host gave it, and the
        // host's begins with the VM's.
        let is_ours = work.names.iter().any(|name| planned.name.starts_with(name.as_str()))
            || planned.name.starts_with("e3:")
            || planned.id.as_str().eq_ignore_ascii_case(work.id);
        if appeared(&planned.id) && is_ours {
            remove_when_idle(host, &planned.path)
                .map_err(BackupError::host(format!("remove planned VM {:?}", planned.name)))?;
            done.push(format!("removed the unfinished VM {}", planned.name));
        }
    }
    for vm in host.list_vms().map_err(failed())? {
        if !appeared(&vm.id) {
            continue;
        }
        let definition = host.capture_definition(&vm).map_err(failed())?;
        let root = definition.system.to_instance().map(|system| system.get("ConfigurationDataRoot").clone());
        let root = root.as_ref().and_then(|root| root.as_str()).unwrap_or_default();
        if !root.trim_end_matches('\\').eq_ignore_ascii_case(work.directory) {
            continue;
        }
        let failed = || BackupError::host(format!("remove the unfinished VM {:?}", vm.name));
        if !matches!(vm.state, VmState::Off | VmState::Saved) {
            host.turn_off_vm(&vm).map_err(failed())?;
        }
        remove_when_idle(host, &vm.path).map_err(failed())?;
        done.push(format!("removed the unfinished VM {}", vm.name));
    }
    Ok(done)
}

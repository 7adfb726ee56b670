//! The deeds of a restore, in order, each in the journal before it is done.

use hyperv::seam::HostWrites;
use hyperv::{Cancel, Definition, Host, Recreated, Severity, Vm, Way};
use kopia_repo::object_of;

use super::journal::{NewVmWork, RestoreJournal, Scratch, Stage, Work};
use super::place::join;
use super::plan::has_extension;
use super::undo::undo;
use super::{KeptVm, RestoreContext, RestorePlan, RestoredVm, replace, writes_of};
use crate::commit::timestamp;
use crate::error::chain_text;
use crate::restore::{RestoreReport, TargetFormat, restore_disk};
use crate::state::random_hex;
use crate::{BackupError, Event};

/// Longest configuration file that is restored.
const MAX_CONFIG_FILE_BYTES: u64 = 256 << 20;

/// Endings of a VM's configuration files.
pub(super) const CONFIGURATION: [&str; 3] = ["vmcx", "vmrs", "vmgs"];

/// Carries out a plan. After an error nothing is left of it, or the journal knows what is, and [`super::settle_restores`]
/// removes it. What goes wrong once the VM is there is a warning.
pub fn restore_vm(context: &RestoreContext<'_>, plan: &RestorePlan) -> Result<RestoredVm, BackupError> {
    let blocking: Vec<String> =
        plan.obstacles_of(Severity::Block).map(|one| format!("{}: {}", one.on, one.why)).collect();
    if !blocking.is_empty() {
        return Err(BackupError::Obstructed { vm: plan.wanted.name.clone(), problem: blocking.join(" ") });
    }
    let state = context.state;
    let restore_id = random_hex(8);
    let _lock = state.lock_restore(&restore_id, &plan.wanted.name)?;
    // The VM itself is worked on only where it is replaced.
    let _vm_lock = match &plan.replaces {
        Some((vm, _)) => Some(state.lock_vm(vm.id.as_str(), &vm.name)?),
        None => None,
    };
    let journal = RestoreJournal {
        restore_id: restore_id.clone(),
        started: timestamp(&*context.host.seam().clock),
        point_id: plan.point.id.clone(),
        vm_id: plan.definition.summary.vm_id.clone(),
        vm_name: plan.wanted.name.clone(),
        work: Work::NewVm(Box::new(NewVmWork {
            names: [plan.definition.summary.name.clone(), plan.wanted.name.clone()],
            directory: plan.wanted.data_root.clone(),
            folders: Vec::new(),
            files: plan.disks.iter().map(|disk| disk.path.clone()).collect(),
            scratch: Scratch::default(),
            stage: Stage::Writing,
            known: Vec::new(),
            made: None,
            former: None,
        })),
    };
    let mut making = Making { context, plan, journal, writes: writes_of(context.host)? };
    match making.run() {
        Ok(restored) => Ok(restored),
        Err(error) => {
            tracing::info!(vm = plan.wanted.name, error = %chain_text(&error), "the restore failed: taking it back");
            match undo(context.host, state, &mut making.journal) {
                Ok(_) => {}
                Err(error) => {
                    let text = format!("what it made is left to the next restore to remove: {}", chain_text(&error));
                    context.observer.event(Event::Warning { subject: &plan.wanted.name, text: &text });
                }
            }
            Err(error)
        }
    }
}

/// A restore in progress.
pub(super) struct Making<'a> {
    pub(super) context: &'a RestoreContext<'a>,
    pub(super) plan: &'a RestorePlan,
    pub(super) journal: RestoreJournal,
    pub(super) writes: &'a dyn HostWrites,
}

impl Making<'_> {
    fn run(&mut self) -> Result<RestoredVm, BackupError> {
        let plan = self.plan;
        self.make_folders()?;
        let mut reports = Vec::with_capacity(plan.disks.len());
        for disk in &plan.disks {
            reports.push((disk.path.clone(), self.write_disk(disk.number, &disk.path)?));
        }
        let import_from = match plan.way {
            Way::Import => Some(self.write_config()?),
            Way::Build => None,
        };
        self.stop_if_asked()?;
        if let Some((former, days)) = &plan.replaces {
            replace::step_aside(self, former, *days)?;
        }
        let made = self.make(import_from.as_deref())?;

        // From here on the VM is there, and stays: nothing below takes it back.
        let mut warnings: Vec<String> = made.warnings.iter().map(ToString::to_string).collect();
        let differences = self.differences(&made.vm, &mut warnings);
        let started = plan.power_on && self.start(&made.vm, &mut warnings);
        let kept = match finish(self.context.host, self.context.state, &mut self.journal) {
            Ok(kept) => kept,
            Err(error) => {
                warnings.push(format!("Leftovers are for the next restore to remove: {}.", chain_text(&error)));
                None
            }
        };
        let vm = self.context.host.vm(&made.vm.id).ok().flatten().unwrap_or(made.vm);
        Ok(RestoredVm { vm, disks: reports, warnings, differences, started, kept })
    }

    pub(super) fn work(&mut self) -> &mut NewVmWork {
        match &mut self.journal.work {
            Work::NewVm(work) => work,
            Work::InPlace(_) => unreachable!("a VM is made"),
        }
    }

    pub(super) fn save(&self) -> Result<(), BackupError> {
        self.context.state.write_restore(&self.journal)
    }

    pub(super) fn phase(&self, phase: &str) {
        self.context.observer.event(Event::Phase { subject: &self.plan.wanted.name, phase });
    }

    pub(super) fn stop_if_asked(&self) -> Result<(), BackupError> {
        if self.context.cancel.is_cancelled() { Err(BackupError::Cancelled) } else { Ok(()) }
    }

    fn make_folders(&mut self) -> Result<(), BackupError> {
        let directory = self.plan.wanted.data_root.clone();
        let scratch = join(&directory, "e3-import");
        let scratch_files = join(&scratch, "Virtual Machines");
        let mut folders = missing_above(&directory, self.writes);
        let disks = join(&directory, "Virtual Hard Disks");
        folders.extend([directory, disks.clone()]);
        let work = self.work();
        work.folders = folders;
        work.scratch = Scratch { folders: vec![scratch, scratch_files.clone()], files: Vec::new() };
        self.save()?;
        for folder in [&disks, &scratch_files] {
            self.writes.create_folder(folder).map_err(on_target(folder))?;
        }
        Ok(())
    }

    fn write_disk(&self, number: u32, path: &str) -> Result<RestoreReport, BackupError> {
        let plan = self.plan;
        let disk = plan.description.disks.iter().find(|disk| disk.number == number);
        let disk = disk.ok_or_else(|| plan.point.broken(format!("it has no disk {number}")))?;
        let object = plan.point.open_disk(self.context.repo, disk)?;
        let target = self.writes.local_path(path).map_err(on_target(path))?;
        let label = format!("{} disk {number}", plan.wanted.name);
        let (observer, cancel) = (self.context.observer, self.context.cancel);
        restore_disk(&object, &target, TargetFormat::Vhdx, false, &label, observer, cancel)
    }

    fn write_config(&mut self) -> Result<String, BackupError> {
        let folder = join(&self.plan.wanted.data_root, r"e3-import\Virtual Machines");
        let ImportFiles { definition, files } = import_files(self.context, self.plan, &folder)?;
        self.work().scratch.files = files.iter().map(|(path, _)| path.clone()).collect();
        self.save()?;
        for (path, bytes) in &files {
            self.writes.create_file(path, bytes).map_err(on_target(path))?;
        }
        Ok(definition)
    }

    fn make(&mut self, import_from: Option<&str>) -> Result<Recreated, BackupError> {
        self.phase("making the VM");
        let (context, plan) = (self.context, self.plan);
        let known = registered(context.host)?;
        let work = self.work();
        (work.stage, work.known) = (Stage::Making, known);
        self.save()?;
        let made = match import_from {
            Some(file) => context.host.import_vm(file, &plan.definition, &plan.wanted),
            None => context.host.build_vm(&plan.definition, &plan.wanted),
        };
        let made = made.map_err(|error| match context.cancel.is_cancelled() {
            true => BackupError::Cancelled,
            false => BackupError::host(format!("make VM {:?}", plan.wanted.name))(error),
        })?;
        let work = self.work();
        (work.stage, work.made) = (Stage::Made, Some(made.vm.id.to_string()));
        self.save()?;
        Ok(made)
    }

    fn differences(&self, vm: &Vm, warnings: &mut Vec<String>) -> Vec<hyperv::Difference> {
        self.phase("comparing it with its stored definition");
        match self.context.host.capture_definition(vm) {
            Ok(now) => self.plan.definition.differences(&now, &self.plan.wanted, self.plan.way),
            Err(error) => {
                warnings.push(format!("It could not be compared with its stored definition: {}.", chain_text(&error)));
                Vec::new()
            }
        }
    }

    fn start(&self, vm: &Vm, warnings: &mut Vec<String>) -> bool {
        self.phase("starting it");
        match self.context.host.start_vm(vm) {
            Ok(()) => true,
            Err(error) => {
                let advice = error.advice().map(|advice| format!(" To do: {advice}.")).unwrap_or_default();
                warnings.push(format!("It is there, but does not start: {}.{advice}", chain_text(&error)));
                false
            }
        }
    }
}

/// The files that an import takes.
pub(crate) struct ImportFiles {
    /// Where the `.vmcx` is going to be.
    pub(crate) definition: String,
    /// All of them, with their content.
    pub(crate) files: Vec<(String, Vec<u8>)>,
}

/// The checkpoint's own files, under the names that an import expects (spec hyperv 6.3 step 1).
pub(crate) fn import_files(
    context: &RestoreContext<'_>,
    plan: &RestorePlan,
    folder: &str,
) -> Result<ImportFiles, BackupError> {
    let stem = join(folder, &plan.definition.summary.vm_id);
    let mut files = Vec::new();
    for extension in CONFIGURATION {
        let mut of_kind = plan.config.iter().filter(|entry| has_extension(&entry.name, extension));
        if let Some(entry) = of_kind.next() {
            let bytes = context.repo.read_object(&object_of(entry)?, MAX_CONFIG_FILE_BYTES)?;
            files.push((format!("{stem}.{extension}"), bytes));
        }
    }
    Ok(ImportFiles { definition: format!("{stem}.vmcx"), files })
}

/// What follows once the VM is made, and can be done again: what only the import needed goes, the replaced VM is noted as
/// kept, the journal ends.
pub(super) fn finish(
    host: &Host,
    state: &crate::HostState,
    journal: &mut RestoreJournal,
) -> Result<Option<KeptVm>, BackupError> {
    let Work::NewVm(work) = &journal.work else { unreachable!("only a VM that was made is finished") };
    let writes = writes_of(host)?;
    remove_scratch(writes, &work.scratch)?;
    if let Some(former) = &work.former
        && !former.data_root.eq_ignore_ascii_case(&work.directory)
    {
        remove_configuration(writes, &former.data_root, &former.id)?;
    }
    let kept = match &work.former {
        Some(former) => Some(replace::note_kept(state, &journal.restore_id, former)?),
        None => None,
    };
    state.remove_restore(&journal.restore_id)?;
    Ok(kept)
}

pub(crate) fn remove_scratch(writes: &dyn HostWrites, scratch: &Scratch) -> Result<(), BackupError> {
    for file in &scratch.files {
        writes.remove_file(file).map_err(on_target(file))?;
    }
    for folder in scratch.folders.iter().rev() {
        writes.remove_empty_folder(folder).map_err(on_target(folder))?;
    }
    Ok(())
}

/// What a host may have left of a VM that was taken off it.
pub(super) fn remove_configuration(writes: &dyn HostWrites, root: &str, id: &str) -> Result<(), BackupError> {
    for extension in CONFIGURATION {
        let file = join(root, &format!(r"Virtual Machines\{id}.{extension}"));
        writes.remove_file(&file).map_err(on_target(&file))?;
    }
    Ok(())
}

/// Ids of all VMs and planned VMs.
pub(crate) fn registered(host: &Host) -> Result<Vec<String>, BackupError> {
    let failed = || BackupError::host("list the VMs of the host");
    let mut ids: Vec<String> = host.list_vms().map_err(failed())?.iter().map(|vm| vm.id.to_string()).collect();
    ids.extend(host.list_planned_vms().map_err(failed())?.iter().map(|vm| vm.id.to_string()));
    Ok(ids)
}

/// Imports a VM from its own disks, where they are: the former VM under another or its old id.
pub(super) fn import_again(
    host: &Host,
    file: &str,
    definition: &Definition,
    wanted: hyperv::Recreation,
) -> Result<Recreated, BackupError> {
    let wanted = hyperv::Recreation { cancel: Cancel::default(), ..wanted };
    let attempt = format!("register VM {:?} again", wanted.name);
    host.import_vm(file, definition, &wanted).map_err(BackupError::host(attempt))
}

/// Folders above `directory` that are not there, outermost first.
pub(crate) fn missing_above(directory: &str, writes: &dyn HostWrites) -> Vec<String> {
    let mut missing = Vec::new();
    let mut at = directory;
    while let Some((parent, _)) = at.rsplit_once('\\') {
        let is_there = writes.local_path(parent).map_or(true, |path| path.exists());
        if is_volume(parent) || is_there {
            break;
        }
        missing.push(parent.to_owned());
        at = parent;
    }
    missing.reverse();
    missing
}

/// A drive, or a share: nothing that could be made or removed.
fn is_volume(path: &str) -> bool {
    path.ends_with(':') || path.strip_prefix(r"\\").is_some_and(|share| share.split('\\').count() <= 2)
}

pub(crate) fn on_target(path: &str) -> impl FnOnce(std::io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::Target { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_no_folders() {
        for (path, expected) in
            [("D:", true), (r"D:\VMs", false), (r"\\files\vms", true), (r"\\files", true), (r"\\files\vms\web", false)]
        {
            assert_eq!(is_volume(path), expected, "{path}");
        }
    }
}

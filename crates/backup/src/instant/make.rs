//! From a point to a VM that stands on its volume.

use std::sync::Arc;
use std::time::Duration;

use hyperv::{Host, Recreated, Severity, TargetLogin, VmState, Way};
use vhdx::{FileInfo, VhdxFile};

use super::journal::{DiskStep, InstantJournal, JournalPortal};
use super::{InstantDisk, InstantStage, InstantVm};
use crate::commit::timestamp;
use crate::restore_vm::{
    ImportFiles, RestoreContext, RestorePlan, RestoreRequest, Scratch, import_files, join, missing_above, on_target,
    plan_restore, registered, remove_scratch, when_free, when_idle, writes_of,
};
use crate::{BackupError, Event, Point};

/// How long Windows may take to find the disk of a new session.
const DISK_WITHIN: Duration = Duration::from_secs(60);
/// Where the volume is shown, in the VM's own folder.
const MOUNT: &str = "Restore point";

/// Plans a VM that runs from a point: the plan of a restore, whose disks are what they are going to be in the end.
pub fn plan_instant(
    context: &RestoreContext<'_>,
    point: &Point,
    request: &RestoreRequest,
) -> Result<RestorePlan, BackupError> {
    // A replaced VM is not asked for: the old one stays as long as nobody knows whether the new one is any good.
    let mut plan = plan_restore(context, point, &RestoreRequest { replace: None, ..request.clone() })?;
    // The host restarts before our target does (spec hyperv 7.2).
    plan.wanted.keep_automatic_start = false;
    Ok(plan)
}

impl<'a> InstantVm<'a> {
    /// Notes, durably, what is going to be made. `serial` is that of the volume's disk.
    pub fn begin(
        context: &RestoreContext<'a>,
        plan: &RestorePlan,
        session: &str,
        target: &str,
        serial: &str,
    ) -> Result<Self, BackupError> {
        let blocking: Vec<String> =
            plan.obstacles_of(Severity::Block).map(|one| format!("{}: {}", one.on, one.why)).collect();
        if !blocking.is_empty() {
            return Err(BackupError::Obstructed { vm: plan.wanted.name.clone(), problem: blocking.join(" ") });
        }
        let lock = context.state.lock_instant(session)?;
        let directory = plan.wanted.data_root.clone();
        let mount = join(&directory, MOUNT);
        let mut disks = Vec::new();
        for disk in &plan.disks {
            let described = plan.description.disks.iter().find(|one| one.number == disk.number);
            let described = described.ok_or_else(|| plan.point.broken(format!("it has no disk {}", disk.number)))?;
            let object = plan.point.open_disk(context.repo, described)?;
            let stem = disk.path.strip_suffix(".vhdx").unwrap_or(&disk.path);
            disks.push(InstantDisk {
                number: disk.number,
                base: join(&mount, &format!("disk{}.vhdx", disk.number)),
                child: format!("{stem}-since-restore.vhdx"),
                local: disk.path.clone(),
                len_bytes: object.len_bytes(),
                content_id: object.head().ids().data_write.to_string(),
                virtual_disk_id: object.head().ids().virtual_disk.to_string(),
                step: DiskStep::OnVolume,
            });
        }
        let journal = InstantJournal {
            session: session.to_owned(),
            started: timestamp(&*context.host.seam().clock),
            point_id: plan.point.id.clone(),
            vm_id: plan.definition.summary.vm_id.clone(),
            names: [plan.definition.summary.name.clone(), plan.wanted.name.clone()],
            vm_name: plan.wanted.name.clone(),
            folders: Vec::new(),
            scratch: Scratch::default(),
            target: target.to_owned(),
            serial: serial.to_owned(),
            portal: None,
            mount,
            directory,
            disks,
            stage: InstantStage::Making,
            known: None,
            made: None,
            is_to_run: false,
        };
        let vm = Self { host: context.host, state: context.state, journal, _lock: lock };
        vm.save()?;
        Ok(vm)
    }

    /// Makes the children and the VM. After an error it is to be [`discard`](Self::discard)ed.
    pub fn make(&mut self, context: &RestoreContext<'_>, plan: &RestorePlan) -> Result<Recreated, BackupError> {
        let writes = writes_of(self.host)?;
        let directory = self.journal.directory.clone();
        let (disks, scratch) = (join(&directory, "Virtual Hard Disks"), join(&directory, "e3-import"));
        let scratch_files = join(&scratch, "Virtual Machines");
        self.journal.scratch = Scratch { folders: vec![scratch, scratch_files.clone()], files: Vec::new() };
        self.save()?;
        for folder in [&disks, &scratch_files] {
            writes.create_folder(folder).map_err(on_target(folder))?;
        }
        self.phase(context, "making its disks");
        for disk in &self.journal.disks {
            stop_if_asked(context)?;
            self.host.create_child_disk(&disk.child, &disk.base).map_err(self.failed("make the disks"))?;
        }
        let import_from = match plan.way {
            Way::Import => {
                let ImportFiles { definition, files } = import_files(context, plan, &scratch_files)?;
                self.journal.scratch.files = files.iter().map(|(path, _)| path.clone()).collect();
                self.save()?;
                for (path, bytes) in &files {
                    writes.create_file(path, bytes).map_err(on_target(path))?;
                }
                Some(definition)
            }
            Way::Build => None,
        };
        self.phase(context, "making the VM");
        self.journal.known = Some(registered(self.host)?);
        self.save()?;
        let mut wanted = plan.wanted.clone();
        for (wanted, disk) in wanted.disks.iter_mut().zip(&self.journal.disks) {
            (wanted.path, wanted.needs_bytes) = (disk.child.clone(), None);
        }
        let made = match &import_from {
            Some(file) => self.host.import_vm(file, &plan.definition, &wanted),
            None => self.host.build_vm(&plan.definition, &wanted),
        };
        let made = made.map_err(|error| match context.cancel.is_cancelled() {
            true => BackupError::Cancelled,
            false => BackupError::host(format!("make VM {:?}", plan.wanted.name))(error),
        })?;
        (self.journal.stage, self.journal.made) = (InstantStage::Running, Some(made.vm.id.to_string()));
        self.save()?;
        remove_scratch(writes, &self.journal.scratch)?;
        Ok(made)
    }

    fn phase(&self, context: &RestoreContext<'_>, phase: &str) {
        context.observer.event(Event::Phase { subject: &self.journal.vm_name, phase });
    }
}

pub(super) fn attach(vm: &mut InstantVm<'_>, login: &TargetLogin) -> Result<(), BackupError> {
    let (host, writes) = (vm.host, writes_of(vm.host)?);
    host.start_initiator().map_err(vm.failed("start the initiator for the volume"))?;
    if vm.journal.portal.is_none() {
        let was_known = host.knows_portal(&login.portal).map_err(vm.failed("look for the portal for the volume"))?;
        let (address, port) = (login.portal.address.clone(), login.portal.port);
        vm.journal.portal = Some(JournalPortal { address, port, was_known });
        let mut folders = missing_above(&vm.journal.directory, writes);
        folders.extend([
            vm.journal.directory.clone(),
            join(&vm.journal.directory, "Virtual Hard Disks"),
            vm.journal.mount.clone(),
        ]);
        vm.journal.folders = folders;
        vm.save()?;
    }
    let mount = vm.journal.mount.clone();
    // After a restart of the host it is a mount point whose volume is away, which can be neither made nor followed.
    if writes.local_path(&mount).map_err(on_target(&mount))?.symlink_metadata().is_err() {
        writes.create_folder(&mount).map_err(on_target(&mount))?;
    }
    host.add_portal(&login.portal).map_err(vm.failed("make the portal known for the volume"))?;
    host.connect_target(login).map_err(vm.failed("log in for the volume"))?;
    let disk = host.wait_for_host_disk(&vm.journal.serial, DISK_WITHIN).map_err(vm.failed("find the volume"))?;
    host.bring_disk_online(&disk).map_err(vm.failed("bring up the volume"))?;
    host.mount_disk(&disk, &mount).map_err(vm.failed("show the volume"))?;
    for disk in vm.journal.disks.iter().filter(|disk| disk.step <= DiskStep::Reparenting) {
        check_file(vm.host, disk, &disk.base)?;
    }
    Ok(())
}

pub(super) fn start(vm: &mut InstantVm<'_>) -> Result<(), BackupError> {
    let now = vm.vm()?.ok_or_else(|| gone(vm))?;
    // A VM that is paused, or waits for its disks, holds its files open; they were looked at when it was started.
    if matches!(now.state, VmState::Off | VmState::Saved) {
        check_bases(vm)?;
    }
    vm.journal.is_to_run = true;
    vm.save()?;
    let attempt = BackupError::host(format!("start VM {}", vm.journal.vm_name));
    when_idle(vm.host, || vm.host.start_vm(&now)).map_err(attempt)
}

/// Every child was made for the base of its own disk, and that is what it will find.
fn check_bases(vm: &InstantVm<'_>) -> Result<(), BackupError> {
    for disk in vm.journal.disks.iter().filter(|disk| disk.step < DiskStep::Merging) {
        check_child(vm.host, disk)?;
        let base = if disk.step < DiskStep::OnLocal { &disk.base } else { &disk.local };
        check_file(vm.host, disk, base)?;
    }
    Ok(())
}

/// A file is the base of a disk, or a copy of it: same disk, same content.
pub(super) fn check_file(host: &Host, disk: &InstantDisk, path: &str) -> Result<(), BackupError> {
    let info = file_info(host, path)?;
    let is_it =
        info.data_write_guid.to_string() == disk.content_id && info.virtual_disk_id.to_string() == disk.virtual_disk_id;
    match is_it {
        true => Ok(()),
        false => {
            let expected = &disk.content_id;
            let text = format!(
                "it is not the base of disk {}: its content is {}, not {expected}",
                disk.number, info.data_write_guid
            );
            Err(on_target(path)(std::io::Error::other(text)))
        }
    }
}

/// A child expects the base of its own disk.
pub(super) fn check_child(host: &Host, disk: &InstantDisk) -> Result<(), BackupError> {
    let info = file_info(host, &disk.child)?;
    let expects = info.parent.map(|parent| parent.parent_linkage.to_string());
    if expects.as_deref() == Some(&disk.content_id) && info.virtual_disk_id.to_string() == disk.virtual_disk_id {
        return Ok(());
    }
    let text = format!("it was not made for the base of disk {} ({})", disk.number, disk.content_id);
    Err(on_target(&disk.child)(std::io::Error::other(text)))
}

/// What a VHDX file of the host says of itself. A job that a killed process has started may hold it for a while.
pub(super) fn file_info(host: &Host, path: &str) -> Result<FileInfo, BackupError> {
    let file = when_free(host, || host.seam().files.open_read(path)).map_err(on_target(path))?;
    let opened = VhdxFile::open(Arc::from(file));
    Ok(opened.map_err(|error| on_target(path)(std::io::Error::other(error)))?.info())
}

pub(super) fn gone(vm: &InstantVm<'_>) -> BackupError {
    let problem = "it is no longer on this host".to_owned();
    BackupError::Obstructed { vm: vm.journal.vm_name.clone(), problem }
}

fn stop_if_asked(context: &RestoreContext<'_>) -> Result<(), BackupError> {
    if context.cancel.is_cancelled() { Err(BackupError::Cancelled) } else { Ok(()) }
}

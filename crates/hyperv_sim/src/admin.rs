//! The administrator, and accidents: what happens to VMs and their files between two runs of a backup.

use std::fs;
use std::path::PathBuf;

use crate::access;
use crate::actors::set_power;
use crate::checkpoint;
use crate::disks;
use crate::error::LabError;
use crate::host::{LabHost, Tx};
use crate::new_vm::{DiskSource, free_location};
use crate::options::AfterMove;
use crate::paths::WinPath;
use crate::resources::stem_of;
use crate::service;
use crate::state::{FileOp, Power, Vm};
use crate::tracking;

/// A copy of a disk file and its tracking files, as a storage snapshot has it.
#[derive(Clone, Debug)]
pub struct DiskCopy {
    file: WinPath,
    folder: PathBuf,
}

/// What happens to the tracking files when a disk file is brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Companions {
    /// Brought back with it, as a revert of the storage does.
    Reverted,
    /// Left as they are.
    Left,
    /// Deleted.
    Removed,
}

impl LabHost {
    /// Adds a disk to a VM, at the first free place; gives its index.
    pub fn add_disk(&self, vm: &str, source: &DiskSource) -> Result<usize, LabError> {
        self.transact(|tx| {
            let mut vm = tx.find_vm(vm)?.clone();
            let number = (1..)
                .find(|number| !vm.active.disks.iter().any(|disk| disk.stem.ends_with(&format!("-added{number}"))));
            let stem = format!("{}-added{}", crate::new_vm::file_name_of(&vm.active.name), number.unwrap_or_default());
            let file = source.make(tx, &vm.folder, &stem)?;
            let free = free_location(&mut vm.active);
            let (controller, location) = free.ok_or_else(|| LabError::refused("add a disk", "no place is free"))?;
            let place = vm.active.attach(&controller, location, file.clone(), &stem);
            let index = vm.active.disks.iter().position(|disk| disk.place == place).unwrap_or_default();
            changed(tx, vm, &[file])?;
            Ok(index)
        })
    }

    /// Takes a disk out of a VM; its file stays. Gives the file.
    pub fn remove_disk(&self, vm: &str, disk: usize) -> Result<String, LabError> {
        self.transact(|tx| {
            let mut vm = tx.find_vm(vm)?.clone();
            let place = vm.disk(disk)?.place.clone();
            let removed = vm.active.detach(&place).expect("the place was taken from a disk");
            changed(tx, vm, &[])?;
            Ok(removed.file.as_str().to_owned())
        })
    }

    /// Puts a disk file that is on the host into a VM, at a location of the controller of its first disk or, without
    /// one, the first controller; gives the disk's index.
    pub fn attach_disk(&self, vm: &str, file: &str, location: u8) -> Result<usize, LabError> {
        self.transact(|tx| {
            let mut vm = tx.find_vm(vm)?.clone();
            let free = free_location(&mut vm.active).map(|(controller, _)| controller);
            let first = vm.active.disks.first().map(|disk| disk.controller_and_location().0.to_owned());
            let Some(controller) = first.or(free) else {
                return Err(LabError::refused("attach a disk", "there is no controller"));
            };
            if vm.active.device(&format!(r"{controller}\{location}\D")).is_some() {
                return Err(LabError::refused("attach a disk", format!("location {location} is taken")));
            }
            let file = WinPath::new(file);
            let place = vm.active.attach(&controller, location, file.clone(), &stem_of(&file));
            let index = vm.active.disks.iter().position(|disk| disk.place == place).unwrap_or_default();
            changed(tx, vm, &[file])?;
            Ok(index)
        })
    }

    /// Moves a disk to another location of its controller; gives its new index.
    pub fn move_disk_to(&self, vm: &str, disk: usize, location: u8) -> Result<usize, LabError> {
        let file = self.remove_disk(vm, disk)?;
        self.attach_disk(vm, &file, location)
    }

    /// Changes the size of a disk. Refused while a checkpoint or a merge stands on it.
    pub fn resize_disk(&self, vm: &str, disk: usize, size_bytes: u64) -> Result<(), LabError> {
        self.transact(|tx| {
            let vm = tx.find_vm(vm)?.clone();
            let disk = vm.disk(disk)?;
            if !vm.checkpoints.is_empty() || tx.merges.iter().any(|merge| merge.vm == vm.id) {
                return Err(LabError::refused("resize a disk", "it has a checkpoint, or is being merged"));
            }
            tx.store.before_write()?;
            disks::resize(tx.store, &disk.file, size_bytes)
        })
    }

    /// Pauses a running VM.
    pub fn pause_vm(&self, vm: &str) -> Result<(), LabError> {
        self.transact(|tx| {
            let id = tx.find_vm(vm)?.id.clone();
            set_power(tx, &id, &[Power::Running], Power::Paused)
        })
    }

    /// The storage of a VM's files goes away, or comes back: its state is critical meanwhile.
    pub fn set_storage_lost(&self, vm: &str, lost: bool) -> Result<(), LabError> {
        self.transact(|tx| {
            let id = tx.find_vm(vm)?.id.clone();
            tx.edit().vm_mut(&id).storage_lost = lost;
            Ok(())
        })
    }

    /// Gives a VM another name.
    pub fn rename_vm(&self, vm: &str, name: &str) -> Result<(), LabError> {
        self.transact(|tx| {
            let mut vm = tx.find_vm(vm)?.clone();
            vm.active.name = name.to_owned();
            changed(tx, vm, &[])
        })
    }

    /// Applies a user checkpoint: the VM's disks go back to it, and the VM is off.
    pub fn apply_user_checkpoint(&self, vm: &str, checkpoint: &str) -> Result<(), LabError> {
        self.transact(|tx| {
            let id = tx.find_vm(vm)?.id.clone();
            if tx.is_busy(&id) {
                return Err(LabError::refused("apply a checkpoint", "something is going on with the VM"));
            }
            checkpoint::apply(tx, &id, checkpoint)?
                .map_err(|failure| LabError::refused("apply a checkpoint", failure.description))
        })
    }

    /// Power is cut while a VM runs: it is off, and tracking has lost its detail.
    pub fn unclean_stop(&self, vm: &str) -> Result<(), LabError> {
        self.transact(|tx| {
            let vm = tx.find_vm(vm)?.clone();
            for disk in vm.active.disks.iter().filter(|disk| tx.is_tracked(&disk.file)) {
                let size_bytes = vhdx::VirtualDisk::geometry(&disks::open(tx.store, &disk.file)?).size_bytes;
                if let Some(mut record) = tracking::load(tx.store, &disk.file)? {
                    record.lose_detail(size_bytes);
                    tracking::save(tx.store, &disk.file, &record)?;
                }
            }
            let now_ms = tx.now_ms;
            let changed = tx.edit().vm_mut(&vm.id);
            changed.power = Power::Off;
            changed.state_changed_ms = now_ms;
            Ok(())
        })
    }

    /// The host loses power and comes up again: what ran is off, jobs have vanished with their work undone, and the iSCSI
    /// initiator has neither sessions nor a service that runs.
    pub fn restart_host(&self) -> Result<(), LabError> {
        let awake = self.transact(|tx| {
            let awake = tx.vms.iter().filter(|vm| matches!(vm.power, Power::Running | Power::Paused));
            Ok(awake.map(|vm| vm.id.clone()).collect::<Vec<_>>())
        })?;
        awake.iter().try_for_each(|vm| self.unclean_stop(vm))?;
        self.transact(|tx| {
            service::restart(tx, 0);
            tx.edit().storage.restart();
            Ok(())
        })
    }

    /// The management service restarts: jobs vanish with their work undone, and calls fail for a while.
    pub fn restart_service(&self, down_ms: u64) -> Result<(), LabError> {
        self.transact(|tx| {
            service::restart(tx, down_ms);
            Ok(())
        })
    }

    /// Copies the file of a disk (the leaf) with its tracking files aside.
    pub fn copy_disk(&self, vm: &str, disk: usize) -> Result<DiskCopy, LabError> {
        self.transact(|tx| {
            let file = tx.find_vm(vm)?.disk(disk)?.file.clone();
            let folder = tx.store.root().join("copies").join(crate::state::new_guid());
            fs::create_dir_all(&folder).map_err(LabError::io("create", &folder))?;
            for (path, name) in parts(&file) {
                copy_if_there(&tx.store.file(&path)?, &folder.join(name))?;
            }
            Ok(DiskCopy { file, folder })
        })
    }

    /// Brings a disk file back to what it was when it was copied. `in_place` keeps the file's own identity, as a revert
    /// of the storage does; else it is another file under the same name. Refused while a VM that runs has it.
    pub fn revert_disk(&self, copy: &DiskCopy, companions: Companions, in_place: bool) -> Result<(), LabError> {
        self.transact(|tx| {
            let owner = |vm: &&Vm| vm.active.disks.iter().any(|disk| disk.file == copy.file);
            let Some(vm) = tx.vms.iter().find(owner).cloned() else {
                return Err(LabError::refused("revert a disk", format!("no VM has {} now", copy.file.as_str())));
            };
            if matches!(vm.power, Power::Running | Power::Paused) || tx.store.is_held(&copy.file)? {
                return Err(LabError::refused("revert a disk", "it is in use"));
            }
            let [disk, rct, mrt] = parts(&copy.file);
            let target = tx.store.file(&disk.0)?;
            if in_place {
                copy_if_there(&copy.folder.join(disk.1), &target)?;
            } else {
                // Made beside the old one, so that the file system cannot give it the old one's number.
                let beside = target.with_extension("copied-back");
                copy_if_there(&copy.folder.join(disk.1), &beside)?;
                fs::rename(&beside, &target).map_err(LabError::io("replace", &target))?;
            }
            for (path, name) in [rct, mrt] {
                if companions != Companions::Left {
                    tracking::carry_out(tx.store, &FileOp::Delete(path.clone()))?;
                }
                if companions == Companions::Reverted {
                    copy_if_there(&copy.folder.join(name), &tx.store.file(&path)?)?;
                }
            }
            access::grant(tx, &vm.id, &copy.file)
        })
    }

    /// Deletes the tracking files of a disk's leaf.
    pub fn lose_tracking(&self, vm: &str, disk: usize) -> Result<(), LabError> {
        self.transact(|tx| {
            let file = tx.find_vm(vm)?.disk(disk)?.file.clone();
            for companion in tracking::companions(&file) {
                tracking::carry_out(tx.store, &FileOp::Delete(companion))?;
            }
            Ok(())
        })
    }

    /// Moves the file of a disk to another folder of the host, and attaches it there: a storage migration, or an
    /// administrator with the VM off. What tracking makes of it is [`LabOptions::after_move`](crate::LabOptions).
    pub fn move_disk_files(&self, vm: &str, disk: usize, folder: &str) -> Result<String, LabError> {
        self.transact(|tx| {
            let mut vm = tx.find_vm(vm)?.clone();
            let from = vm.disk(disk)?.file.clone();
            if !vm.checkpoints.is_empty() || tx.is_busy(&vm.id) || tx.store.is_held(&from)? {
                return Err(LabError::refused("move a disk", "the VM has a checkpoint, or the disk is in use"));
            }
            if disks::open(tx.store, &from)?.layers().len() != 1 {
                return Err(LabError::refused("move a disk", "a checkpoint of the VM has not been merged yet"));
            }
            let to = WinPath::new(folder).join(from.file_name());
            let record = tracking::load(tx.store, &from)?;
            let target = tx.store.file(&to)?;
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).map_err(LabError::io("create", parent))?;
            }
            let source = tx.store.file(&from)?;
            fs::copy(&source, &target).map_err(LabError::io("copy", &source))?;
            let is_tracked = tx.is_tracked(&from);
            match (tx.options.after_move, record) {
                (AfterMove::Lost, _) | (_, None) => {}
                (AfterMove::Kept, Some(record)) => tracking::save(tx.store, &to, &record)?,
                (AfterMove::KeptButWrong, Some(mut record)) => {
                    record.forget_written();
                    tracking::save(tx.store, &to, &record)?;
                }
            }
            vm.active.disks[disk].file = to.clone();
            let state = tx.edit();
            state.tracked.retain(|file| *file != from);
            if is_tracked {
                state.tracked.push(to.clone());
            }
            state.redo.extend(tracking::companions(&from).map(FileOp::Delete));
            state.redo.push(FileOp::Delete(from));
            changed(tx, vm, std::slice::from_ref(&to))?;
            Ok(to.as_str().to_owned())
        })
    }
}

/// Stores a VM with other settings, and lets it open the files that are new to it.
fn changed(tx: &mut Tx<'_>, vm: Vm, files: &[WinPath]) -> Result<(), LabError> {
    let id = vm.id.clone();
    let now_ms = tx.now_ms;
    let state = tx.edit();
    *state.vm_mut(&id) = Vm { config_changed_ms: now_ms, ..vm };
    state.redo.push(FileOp::WriteConfiguration { vm: id.clone() });
    for file in files {
        access::grant(tx, &id, file)?;
    }
    Ok(())
}

/// A disk file and its companions, with the names that copies of them have.
fn parts(file: &WinPath) -> [(WinPath, &'static str); 3] {
    let [rct, mrt] = tracking::companions(file);
    [(file.clone(), "disk"), (rct, "rct"), (mrt, "mrt")]
}

fn copy_if_there(from: &std::path::Path, to: &std::path::Path) -> Result<(), LabError> {
    match fs::copy(from, to) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(LabError::io("copy", from)(e)),
        _ => Ok(()),
    }
}

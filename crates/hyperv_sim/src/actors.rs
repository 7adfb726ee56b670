//! Who acts on the host besides the program under test: its administrator, and the guests.

use std::collections::BTreeSet;
use std::fs;

use vhdx::VirtualDisk;

use crate::checkpoint;
use crate::config_file;
use crate::disks::{self, GuestDisk, disk_sha256};
use crate::error::LabError;
use crate::guest::{self, GuestWrites};
use crate::host::{LabHost, Tx};
use crate::paths::{WinPath, from_sandbox};
use crate::state::{CheckpointKind, Object, Power, Vm, VssBehaviour};
use crate::tracking;

impl LabHost {
    /// Lets the guest of a running VM write; gives the SHA-256 of each disk's raw content, in slot order. On large disks
    /// [`LabHost::guest_write_only`] with [`LabHost::disk_fingerprint`] is quicker.
    pub fn guest_write(&self, vm: &str, writes: GuestWrites) -> Result<Vec<[u8; 32]>, LabError> {
        self.guest_write_only(vm, writes)?;
        (0..self.disk_count(vm)?).map(|disk| self.disk_sha256(vm, disk)).collect()
    }

    /// Lets the guest of a running VM write.
    pub fn guest_write_only(&self, vm: &str, writes: GuestWrites) -> Result<(), LabError> {
        self.transact(|tx| {
            let vm = running_vm(tx, vm)?;
            let mut opened = Vec::new();
            for disk in &vm.active.disks {
                opened.push((disk.file.clone(), GuestDisk::open(tx.store, &disk.file)?));
            }
            let geometries: Vec<_> = opened.iter().map(|(_, disk)| disk.geometry()).collect();
            let pieces = guest::plan(writes, &geometries);
            for (index, (path, mut disk)) in opened.into_iter().enumerate() {
                let touched = guest::touched(&pieces, index);
                if !touched.is_empty() {
                    note_written(tx, &path, &touched, geometries[index].size_bytes)?;
                    tx.store.before_write()?;
                    guest::write(&mut disk, &pieces, index)?;
                }
                disk.close()?;
            }
            Ok(())
        })
    }

    /// Lets the guest write `data` at an offset of one disk, of any alignment.
    pub fn guest_write_at(&self, vm: &str, disk: usize, offset_bytes: u64, data: &[u8]) -> Result<(), LabError> {
        self.guest_change(vm, disk, offset_bytes, data.len() as u64, |disk| disk.write(data, offset_bytes))
    }

    /// Lets the guest zero a range of one disk (unmap, or write zeroes).
    pub fn guest_zero_at(&self, vm: &str, disk: usize, offset_bytes: u64, len_bytes: u64) -> Result<(), LabError> {
        let end = offset_bytes.saturating_add(len_bytes);
        self.guest_change(vm, disk, offset_bytes, len_bytes, |disk| disk.zero(offset_bytes..end))
    }

    fn guest_change(
        &self,
        vm: &str,
        disk: usize,
        offset_bytes: u64,
        len_bytes: u64,
        change: impl FnOnce(&mut GuestDisk) -> Result<(), LabError>,
    ) -> Result<(), LabError> {
        self.transact(|tx| {
            let vm = running_vm(tx, vm)?;
            let path = vm.disk(disk)?.file.clone();
            let mut file = GuestDisk::open(tx.store, &path)?;
            let size_bytes = file.geometry().size_bytes;
            if offset_bytes.checked_add(len_bytes).is_none_or(|end| end > size_bytes) {
                let reason = format!("{len_bytes} bytes at {offset_bytes} of a disk of {size_bytes}");
                return Err(LabError::refused("write as the guest", reason));
            }
            let mut touched = crate::extents::Extents::default();
            touched.insert(offset_bytes..offset_bytes + len_bytes);
            note_written(tx, &path, &touched, size_bytes)?;
            tx.store.before_write()?;
            change(&mut file)?;
            file.close()
        })
    }

    /// Number of disks of a VM.
    pub fn disk_count(&self, vm: &str) -> Result<usize, LabError> {
        self.transact(|tx| Ok(tx.find_vm(vm)?.active.disks.len()))
    }

    /// What the guest sees of a disk at this moment, read from the files. Later writes of the guest may or may not show
    /// through; the handle does not hinder the host.
    pub fn open_guest_disk(&self, vm: &str, disk: usize) -> Result<impl VirtualDisk + use<>, LabError> {
        self.transact(|tx| disks::open(tx.store, &tx.find_vm(vm)?.disk(disk)?.file))
    }

    /// SHA-256 of the raw content of a disk as the guest sees it now.
    pub fn disk_sha256(&self, vm: &str, disk: usize) -> Result<[u8; 32], LabError> {
        self.transact(|tx| disk_sha256(&disks::open(tx.store, &tx.find_vm(vm)?.disk(disk)?.file)?))
    }

    /// [`fingerprint`](crate::fingerprint) of a disk as the guest sees it now.
    pub fn disk_fingerprint(&self, vm: &str, disk: usize) -> Result<[u8; 32], LabError> {
        self.transact(|tx| disks::fingerprint(&disks::open(tx.store, &tx.find_vm(vm)?.disk(disk)?.file)?))
    }

    /// The files of a disk's chain as Windows paths, leaf first.
    pub fn disk_chain(&self, vm: &str, disk: usize) -> Result<Vec<String>, LabError> {
        self.transact(|tx| {
            let chain = disks::open(tx.store, &tx.find_vm(vm)?.disk(disk)?.file)?;
            Ok(disks::chain_paths(tx.store, &chain).iter().map(|path| path.as_str().to_owned()).collect())
        })
    }

    /// Starts a VM that is off. Refused while somebody has one of its disks open.
    pub fn start_vm(&self, vm: &str) -> Result<(), LabError> {
        self.transact(|tx| {
            let vm = tx.find_vm(vm)?.clone();
            for disk in &vm.active.disks {
                if tx.store.is_held(&disk.file)? {
                    let reason = format!("{} is in use (0x80070020)", disk.file.as_str());
                    return Err(LabError::refused("start a VM", reason));
                }
            }
            set_power(tx, &vm.id, &[Power::Off, Power::Saved, Power::Paused], Power::Running)
        })
    }

    /// Turns a VM off.
    pub fn stop_vm(&self, vm: &str) -> Result<(), LabError> {
        self.transact(|tx| {
            let id = tx.find_vm(vm)?.id.clone();
            set_power(tx, &id, &[Power::Running, Power::Saved, Power::Paused], Power::Off)
        })
    }

    /// Saves a running VM.
    pub fn save_vm(&self, vm: &str) -> Result<(), LabError> {
        self.transact(|tx| {
            let id = tx.find_vm(vm)?.id.clone();
            set_power(tx, &id, &[Power::Running, Power::Paused], Power::Saved)
        })
    }

    /// Makes the guest answer requests for application consistency in another way.
    pub fn set_vss(&self, vm: &str, vss: VssBehaviour) -> Result<(), LabError> {
        self.transact(|tx| {
            let id = tx.find_vm(vm)?.id.clone();
            tx.edit().vm_mut(&id).vss = vss;
            Ok(())
        })
    }

    /// The administrator makes a checkpoint; gives its id.
    pub fn create_user_checkpoint(&self, vm: &str) -> Result<String, LabError> {
        self.make_checkpoint(vm, CheckpointKind::User)
    }

    /// Another backup product makes a recovery checkpoint and leaves it; gives its id.
    pub fn create_foreign_recovery_checkpoint(&self, vm: &str) -> Result<String, LabError> {
        self.make_checkpoint(vm, CheckpointKind::Recovery)
    }

    fn make_checkpoint(&self, vm: &str, kind: CheckpointKind) -> Result<String, LabError> {
        self.transact(|tx| {
            let id = idle_vm(tx, vm, "create a checkpoint")?;
            match checkpoint::create(tx, &id, kind, 2)? {
                Ok(Object::Checkpoint { id }) => Ok(id),
                Ok(other) => unreachable!("a checkpoint is not {other:?}"),
                Err(failure) => Err(LabError::refused("create a checkpoint", failure.description)),
            }
        })
    }

    /// The administrator deletes a checkpoint, of whatever kind; its merge follows.
    pub fn delete_checkpoint(&self, vm: &str, checkpoint: &str) -> Result<(), LabError> {
        self.transact(|tx| {
            idle_vm(tx, vm, "delete a checkpoint")?;
            checkpoint::destroy(tx, checkpoint)?
                .map_err(|failure| LabError::refused("delete a checkpoint", failure.description))
        })
    }

    /// Ids of a VM's checkpoints, oldest first: those of users, and those of backups.
    pub fn checkpoints(&self, vm: &str) -> Result<(Vec<String>, Vec<String>), LabError> {
        self.transact(|tx| {
            let (recovery, user): (Vec<_>, Vec<_>) =
                tx.find_vm(vm)?.checkpoints.iter().partition(|checkpoint| checkpoint.kind == CheckpointKind::Recovery);
            let ids = |list: Vec<&crate::state::Checkpoint>| list.iter().map(|one| one.id.clone()).collect();
            Ok((ids(user), ids(recovery)))
        })
    }

    /// Ids of a VM's reference points, oldest first.
    pub fn reference_points(&self, vm: &str) -> Result<Vec<String>, LabError> {
        self.transact(|tx| Ok(tx.find_vm(vm)?.reference_points.iter().map(|point| point.id.clone()).collect()))
    }

    /// Whether nothing is going on with a VM: no job, no merge, not even a blocked one.
    pub fn is_at_rest(&self, vm: &str) -> Result<bool, LabError> {
        self.transact(|tx| {
            let id = &tx.find_vm(vm)?.id;
            let busy = tx.jobs.iter().any(|job| job.vm == *id && job.end.is_none());
            Ok(!busy && tx.merges.iter().all(|merge| merge.vm != *id))
        })
    }

    /// Whether any process has this disk file open.
    pub fn is_file_in_use(&self, path: &str) -> Result<bool, LabError> {
        self.transact(|tx| tx.store.is_held(&WinPath::new(path)))
    }
}

fn running_vm(tx: &Tx<'_>, vm: &str) -> Result<Vm, LabError> {
    let vm = tx.find_vm(vm)?;
    if vm.power == Power::Running {
        Ok(vm.clone())
    } else {
        Err(LabError::refused("write as the guest", format!("VM {:?} is {:?}", vm.active.name, vm.power)))
    }
}

fn idle_vm(tx: &Tx<'_>, vm: &str, attempt: &'static str) -> Result<String, LabError> {
    let vm = tx.find_vm(vm)?;
    match tx.operation(&vm.id) {
        None => Ok(vm.id.clone()),
        Some((_, text)) => Err(LabError::refused(attempt, format!("VM {:?}: {text}", vm.active.name))),
    }
}

pub(crate) fn set_power(tx: &mut Tx<'_>, id: &str, from: &[Power], to: Power) -> Result<(), LabError> {
    let now_ms = tx.now_ms;
    let vm = tx.edit().vm_mut(id);
    if !from.contains(&vm.power) {
        return Err(LabError::refused("change the state of a VM", format!("{:?} to {to:?}", vm.power)));
    }
    vm.power = to;
    vm.state_changed_ms = now_ms;
    Ok(())
}

/// Tracking covers a write before it happens.
fn note_written(
    tx: &Tx<'_>,
    path: &WinPath,
    touched: &crate::extents::Extents,
    size_bytes: u64,
) -> Result<(), LabError> {
    if tx.is_tracked(path) {
        tracking::note_written(tx.store, path, &touched.rounded(tx.options.granularity_bytes, size_bytes))?;
    }
    Ok(())
}

/// See [`LabHost::stray_files`].
pub(crate) fn stray_files(tx: &Tx<'_>) -> Result<Vec<String>, LabError> {
    let mut wanted = BTreeSet::new();
    for vm in &tx.vms {
        wanted.extend(config_file::of_vm(vm).map(|path| path.key()));
        for checkpoint in &vm.checkpoints {
            wanted.extend(config_file::of_checkpoint(vm, &checkpoint.id).map(|path| path.key()));
        }
        for disk in vm.active.disks.iter().chain(vm.checkpoints.iter().flat_map(|one| &one.config.disks)) {
            for file in disks::chain_paths(tx.store, &disks::open(tx.store, &disk.file)?) {
                if tx.is_tracked(&file) {
                    wanted.extend(tracking::companions(&file).map(|path| path.key()));
                }
                wanted.insert(file.key());
            }
        }
    }
    let mut stray = Vec::new();
    let mut folders = vec![tx.store.root().join("c")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(LabError::io("list", &folder))? {
            let path = entry.map_err(LabError::io("list", &folder))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Some(file) = from_sandbox(tx.store.root(), &path)
                && !wanted.contains(&file.key())
            {
                stray.push(file.as_str().to_owned());
            }
        }
    }
    stray.sort();
    Ok(stray)
}

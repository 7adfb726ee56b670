//! What happens to disks between runs: copies, reverts, moves, other sizes, disks that come and go.

use std::sync::Arc;

use hyperv_sim::{Companions, DiskSource, LabError};

use crate::model::{Copy, Disk};
use crate::story::Revert;
use crate::world::{HALF_MIB, World, key_of};

impl World {
    pub(super) fn copy_disk(&self, vm: u8, disk: u8) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        let disk = self.disk_number(number, disk);
        if !self.model().vms[number].checkpoints.is_empty() || lab.disk_chain(&id, disk)?.len() != 1 {
            return Ok(false);
        }
        let copy = lab.copy_disk(&id, disk)?;
        let mut model = self.model();
        let event = model.next_event();
        let of = &model.vms[number].disks[disk];
        let (key, content) = (of.key.clone(), of.content.clone());
        model.copies.push(Copy { copy, vm: number, key, content, event });
        Ok(true)
    }

    pub(super) fn revert_disk(&self, which: u8, how: Revert) -> Result<bool, LabError> {
        let (number, index, copy, content, taken) = {
            let model = self.model();
            let Some(copy) = model.copies.get(usize::from(which) % model.copies.len().max(1)) else { return Ok(false) };
            let vm = &model.vms[copy.vm];
            let Some(index) = vm.disks.iter().position(|disk| disk.key == copy.key) else { return Ok(false) };
            if vm.run.is_some() || !vm.checkpoints.is_empty() {
                return Ok(false);
            }
            (copy.vm, index, copy.copy.clone(), copy.content.clone(), copy.event)
        };
        let (id, lab) = self.id_and_lab(number);
        let was_running = self.model().vms[number].running;
        if !lab.is_at_rest(&id)? || lab.disk_chain(&id, index)?.len() != 1 {
            return Ok(false);
        }
        if was_running {
            lab.stop_vm(&id)?;
        }
        let (companions, in_place) = match how {
            Revert::WithTracking => (Companions::Reverted, true),
            Revert::TrackingRemoved => (Companions::Removed, true),
            Revert::OtherFile => (Companions::Left, false),
        };
        let reverted = lab.revert_disk(&copy, companions, in_place);
        if was_running {
            lab.start_vm(&id)?;
        }
        reverted?;
        let mut model = self.model();
        let event = model.next_event();
        let disk = &mut model.vms[number].disks[index];
        disk.content = content;
        disk.touched.push((event, 0..disk.content.len() as u64));
        match how {
            // An instant before the copy is still named in it; later ones are not.
            Revert::WithTracking => disk.reverts.push((taken, event)),
            Revert::TrackingRemoved | Revert::OtherFile => disk.broken_at = event,
        }
        Ok(true)
    }

    pub(super) fn move_disk_files(&self, vm: u8, disk: u8) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        let disk = self.disk_number(number, disk);
        if self.model().vms[number].run.is_some() || lab.disk_chain(&id, disk)?.len() != 1 {
            return Ok(false);
        }
        let folder = format!(r"C:\Moved {}", self.model().event);
        lab.move_disk_files(&id, disk, &folder)?;
        let key = self.model().vms[number].disks[disk].key.clone();
        self.model().copies.retain(|copy| copy.vm != number || copy.key != key);
        self.break_tracking(number, disk);
        Ok(true)
    }

    pub(super) fn resize_disk(&self, vm: u8, disk: u8, units: u8) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        let disk = self.disk_number(number, disk);
        let size = u64::from(units.max(2)) * HALF_MIB;
        let before = self.model().vms[number].disks[disk].content.len() as u64;
        if self.model().vms[number].run.is_some() || size <= before {
            return Ok(false);
        }
        lab.resize_disk(&id, disk, size)?;
        Arc::make_mut(&mut self.model().vms[number].disks[disk].content).resize(size as usize, 0);
        let key = self.model().vms[number].disks[disk].key.clone();
        self.model().copies.retain(|copy| copy.vm != number || copy.key != key);
        self.break_tracking(number, disk);
        Ok(true)
    }

    pub(super) fn add_disk(&self, vm: u8, units: u8) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        if self.model().vms[number].disks.len() >= 4 {
            return Ok(false);
        }
        let size_bytes = u64::from(units.max(2)) * HALF_MIB;
        let index = lab.add_disk(&id, &DiskSource::Empty { size_bytes })?;
        let key = key_of(&lab, &id, index);
        let mut model = self.model();
        let event = model.next_event();
        model.vms[number].disks.insert(index, Disk::new(key, vec![0; size_bytes as usize], event));
        drop(model);
        self.disturb(number);
        Ok(true)
    }

    pub(super) fn remove_disk(&self, vm: u8, disk: u8) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        let disk = self.disk_number(number, disk);
        let quiet = {
            let model = self.model();
            let vm = &model.vms[number];
            vm.disks.len() > 1 && vm.checkpoints.is_empty() && vm.foreign_checkpoints.is_empty() && vm.run.is_none()
        };
        if !quiet || lab.disk_chain(&id, disk)?.len() != 1 || !lab.is_at_rest(&id)? {
            return Ok(false);
        }
        let file = lab.remove_disk(&id, disk)?;
        let mut model = self.model();
        model.next_event();
        let removed = model.vms[number].disks.remove(disk);
        model.vms[number].detached.push((file, removed));
        Ok(true)
    }

    pub(super) fn attach_disk(&self, vm: u8, which: u8) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        let (index, file) = {
            let model = self.model();
            let detached = &model.vms[number].detached;
            let index = usize::from(which) % detached.len().max(1);
            let Some((file, _)) = detached.get(index) else { return Ok(false) };
            if model.vms[number].run.is_some() {
                return Ok(false);
            }
            (index, file.clone())
        };
        let free = (20..60).find_map(|location| lab.attach_disk(&id, &file, location).ok());
        let Some(place) = free else { return Ok(false) };
        let mut model = self.model();
        model.next_event();
        let (_, disk) = model.vms[number].detached.remove(index);
        model.vms[number].disks.insert(place, disk);
        Ok(true)
    }
}

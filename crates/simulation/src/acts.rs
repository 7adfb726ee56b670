//! What guests, administrators, storage and others do; each act also changes the model, if the world let it happen.

mod disks;
mod failures;

use std::sync::Arc;
use std::time::Duration;

use hyperv::Host;
use hyperv_sim::{DiskSource, LabError, LabHost, VmOptions};

use crate::laws;
use crate::maintenance;
use crate::model::{Disk, UNIT, UserCheckpoint};
use crate::story::Act;
use crate::world::{World, name_of};

impl World {
    /// Lets one thing happen. An act that the world refuses changes nothing.
    pub(crate) fn act(&self, act: &Act) {
        self.observe_freeze();
        let result = self.carry_out(act);
        match result {
            Ok(true) => self.count(format!("act {}", name_of(act))),
            Ok(false) => self.border.tell("had no effect"),
            Err(error) => {
                let text = format!("{error:?}");
                self.border.tell(&format!("refused: {}", text.split([' ', '{', '(']).next().unwrap_or_default()));
            }
        }
        self.synchronise();
    }

    fn vm_number(&self, vm: u8) -> usize {
        usize::from(vm) % self.vm_count()
    }

    fn vm_and_lab(&self, vm: u8) -> (usize, String, Arc<LabHost>) {
        let number = self.vm_number(vm);
        let id = self.model().vms[number].id.clone();
        (number, id, self.lab(number))
    }

    fn disk_number(&self, vm: usize, disk: u8) -> usize {
        usize::from(disk) % self.model().vms[vm].disks.len()
    }

    /// Somebody else than its guest does something to a VM.
    fn disturb(&self, vm: usize) {
        if let Some(run) = &mut self.model().vms[vm].run {
            run.disturbed = true;
        }
    }

    fn carry_out(&self, act: &Act) -> Result<bool, LabError> {
        match act {
            Act::BackUp { vm, run } => {
                let vm = self.vm_number(*vm);
                if self.model().vms[vm].run.is_some() {
                    return Ok(false);
                }
                self.back_up(vm, run);
                Ok(true)
            }
            Act::Settle { vm } => {
                self.settle(self.vm_number(*vm));
                Ok(true)
            }
            Act::RestartAgent => {
                self.restart_agent();
                Ok(true)
            }
            Act::Write { vm, disk, at, units, odd, data } => self.write(*vm, *disk, (*at, *units, *odd), Some(*data)),
            Act::Zero { vm, disk, at, units } => self.write(*vm, *disk, (*at, *units, 0), None),
            Act::StartVm { vm } => self.power(*vm, true),
            Act::StopVm { vm } => self.power(*vm, false),
            Act::PowerCut { vm } => self.power_cut(*vm),
            Act::MoveVm { vm } => self.move_vm(*vm),
            Act::MakeCheckpoint { vm } => self.make_checkpoint(*vm),
            Act::DeleteCheckpoint { vm, which } => self.delete_checkpoint(*vm, *which),
            Act::ApplyCheckpoint { vm, which } => self.apply_checkpoint(*vm, *which),
            Act::CopyDisk { vm, disk } => self.copy_disk(*vm, *disk),
            Act::RevertDisk { which, how } => self.revert_disk(*which, *how),
            Act::LoseTracking { vm, disk } => {
                let (number, id, lab) = self.vm_and_lab(*vm);
                let disk = self.disk_number(number, *disk);
                if lab.disk_chain(&id, disk)?.len() != 1 || !lab.is_at_rest(&id)? {
                    // Nobody could tell: the host merges what it no longer knows the changes of.
                    return Ok(false);
                }
                lab.lose_tracking(&id, disk)?;
                self.break_tracking(number, disk);
                Ok(true)
            }
            Act::MoveDiskFiles { vm, disk } => self.move_disk_files(*vm, *disk),
            Act::ResizeDisk { vm, disk, units } => self.resize_disk(*vm, *disk, *units),
            Act::AddDisk { vm, units } => self.add_disk(*vm, *units),
            Act::RemoveDisk { vm, disk } => self.remove_disk(*vm, *disk),
            Act::AttachDisk { vm, which } => self.attach_disk(*vm, *which),
            Act::RenameVm { vm } => {
                let (number, id, lab) = self.vm_and_lab(*vm);
                let name = format!("{}'", self.model().vms[number].name);
                lab.rename_vm(&id, &name)?;
                self.model().vms[number].name = name;
                Ok(true)
            }
            Act::ForeignCheckpoint { vm } => self.foreign_checkpoint(*vm),
            Act::ForeignReferencePoint { vm } => self.foreign_reference_point(*vm),
            Act::DeleteForeignCheckpoint { vm } => self.delete_foreign_checkpoint(*vm),
            Act::RestartHostService { down_ms } => {
                let number = 0;
                self.lab(number).restart_service(u64::from(*down_ms))?;
                for vm in 0..self.vm_count() {
                    self.disturb(vm);
                    self.model().vms[vm].full_excused = true;
                }
                Ok(true)
            }
            Act::Break { vm, fault } => self.break_host(*vm, *fault),
            Act::Mend => {
                self.mend();
                Ok(true)
            }
            Act::Wait { seconds } => {
                self.wait(Duration::from_secs(u64::from(*seconds)));
                Ok(true)
            }
            Act::SetClock { seconds } => {
                self.set_clock_offset(i64::from(*seconds));
                Ok(true)
            }
            Act::DeletePoint { which } => Ok(maintenance::delete_point(self, *which)),
            Act::Maintain => Ok(maintenance::maintain(self)),
        }
    }

    fn write(&self, vm: u8, disk: u8, (at, units, odd): (u16, u16, u16), data: Option<u32>) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        let disk = self.disk_number(number, disk);
        let size = self.model().vms[number].disks[disk].content.len() as u64;
        let start = u64::from(at) % (size / UNIT) * UNIT;
        let end = (start + u64::from(units.max(1)) * UNIT).min(size) - u64::from(odd) % UNIT / 512 * 512;
        let mut bytes = vec![0; (end - start) as usize];
        match data {
            Some(seed) => {
                random::SplitMix::new(seed.into()).fill(&mut bytes);
                lab.guest_write_at(&id, disk, start, &bytes)?;
            }
            None => lab.guest_zero_at(&id, disk, start, end - start)?,
        }
        let mut model = self.model();
        let event = model.next_event();
        model.vms[number].disks[disk].write(start, &bytes, event);
        Ok(true)
    }

    fn power(&self, vm: u8, on: bool) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        if on {
            lab.start_vm(&id)?
        } else {
            lab.stop_vm(&id)?
        }
        self.model().vms[number].running = on;
        Ok(true)
    }

    fn power_cut(&self, vm: u8) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        if !self.model().vms[number].running {
            return Ok(false);
        }
        lab.unclean_stop(&id)?;
        self.model().vms[number].running = false;
        // Tracking may be coarser from here back to the instant before; that only costs.
        let mut model = self.model();
        let event = model.next_event();
        for disk in &mut model.vms[number].disks {
            let coarse: Vec<_> = (disk.touched.iter())
                .map(|(_, range)| (event, range.start / (1 << 20) * (1 << 20)..range.end.next_multiple_of(1 << 20)))
                .collect();
            disk.touched.extend(coarse);
        }
        drop(model);
        self.disturb(number);
        lab.start_vm(&id)?;
        self.model().vms[number].running = true;
        Ok(true)
    }

    fn break_tracking(&self, vm: usize, disk: usize) {
        let mut model = self.model();
        let event = model.next_event();
        model.vms[vm].disks[disk].broken_at = event;
        drop(model);
        self.disturb(vm);
    }

    fn move_vm(&self, vm: u8) -> Result<bool, LabError> {
        let (number, id, from) = self.vm_and_lab(vm);
        let quiet = {
            let model = self.model();
            let vm = &model.vms[number];
            vm.run.is_none() && vm.checkpoints.is_empty() && vm.foreign_checkpoints.is_empty() && vm.detached.is_empty()
        };
        let (_, recovery) = from.checkpoints(&id)?;
        if !quiet || !recovery.is_empty() || !from.is_at_rest(&id)? {
            return Ok(false);
        }
        let to = 1 - self.model().vms[number].host;
        let mut sources = Vec::new();
        for disk in 0..from.disk_count(&id)? {
            let chain = from.disk_chain(&id, disk)?;
            if chain.len() != 1 {
                return Ok(false);
            }
            sources.push(DiskSource::Copy(from.host_file(&chain[0])?));
        }
        if self.model().vms[number].running {
            from.stop_vm(&id)?;
        }
        let name = self.model().vms[number].name.clone();
        let running = self.model().vms[number].running;
        let folder = format!(r"C:\VMs\of {} {}", id, self.model().event);
        let options = VmOptions { id: Some(id.clone()), running, folder: Some(folder), ..VmOptions::default() };
        self.hosts[to].lab.add_vm(&name, &sources, options)?;
        as_another_program(|| {
            let host = Host::new(from.plain_seam());
            if let Ok(there) = host.find_vm(&id) {
                host.remove_vm(&there.path).expect("a VM that is off is removed");
            }
        });
        for source in &sources {
            if let DiskSource::Copy(file) = source {
                let _ = std::fs::remove_file(file);
            }
        }
        let event = self.model().next_event();
        let disks = self.disks_of(&self.hosts[to].lab, &id, event);
        let mut model = self.model();
        model.copies.retain(|copy| copy.vm != number);
        let vm = &mut model.vms[number];
        (vm.host, vm.disks) = (to, disks);
        vm.foreign_reference_points.clear();
        drop(model);
        // Faults name VMs of the host on which they were made.
        self.mend();
        Ok(true)
    }

    fn make_checkpoint(&self, vm: u8) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        if self.model().vms[number].checkpoints.len() >= 3 {
            return Ok(false);
        }
        let checkpoint = lab.create_user_checkpoint(&id)?;
        let mut model = self.model();
        let event = model.next_event();
        let vm = &mut model.vms[number];
        let disks = vm.disks.clone();
        vm.checkpoints.push(UserCheckpoint { id: checkpoint, event, disks });
        drop(model);
        self.disturb(number);
        Ok(true)
    }

    fn delete_checkpoint(&self, vm: u8, which: u8) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        let checkpoints = self.model().vms[number].checkpoint_ids();
        let Some(checkpoint) = checkpoints.get(usize::from(which) % checkpoints.len().max(1)) else { return Ok(false) };
        lab.delete_checkpoint(&id, checkpoint)?;
        let mut model = self.model();
        model.next_event();
        model.vms[number].checkpoints.retain(|one| one.id != *checkpoint);
        drop(model);
        self.disturb(number);
        Ok(true)
    }

    fn apply_checkpoint(&self, vm: u8, which: u8) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        let checkpoints = self.model().vms[number].checkpoint_ids();
        let Some(checkpoint) = checkpoints.get(usize::from(which) % checkpoints.len().max(1)) else { return Ok(false) };
        let same_disks = {
            let model = self.model();
            let vm = &model.vms[number];
            let of = vm.checkpoints.iter().find(|one| one.id == *checkpoint).expect("just listed");
            let keys = |disks: &[Disk]| disks.iter().map(|disk| disk.key.clone()).collect::<Vec<_>>();
            // Disks that came or went since would come back and go: a story of its own.
            keys(&of.disks) == keys(&vm.disks)
        };
        if !same_disks {
            return Ok(false);
        }
        // The host refuses it during a merge, and whoever wants it comes back.
        for _ in 0..10 {
            if lab.is_at_rest(&id)? {
                break;
            }
            self.wait(Duration::from_secs(60));
        }
        lab.apply_user_checkpoint(&id, checkpoint)?;
        let mut model = self.model();
        let event = model.next_event();
        let vm = &mut model.vms[number];
        let of = vm.checkpoints.iter().find(|one| one.id == *checkpoint).expect("just listed").clone();
        for (disk, then) in vm.disks.iter_mut().zip(&of.disks) {
            disk.content = then.content.clone();
            disk.touched.push((event, 0..disk.content.len() as u64));
            // What was written up to the checkpoint is named in the files below it, which the VM goes on using.
            disk.reverts.push((of.event, event));
        }
        vm.running = false;
        drop(model);
        self.disturb(number);
        lab.start_vm(&id)?;
        self.model().vms[number].running = true;
        Ok(true)
    }

    fn foreign_checkpoint(&self, vm: u8) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        let quiet = self.model().vms[number].foreign_checkpoints.is_empty();
        // Which product a nameless checkpoint belongs to that appears within a run cannot be told.
        if !quiet || self.model().vms[number].run.is_some() || laws::has_open_intent(self, number) {
            return Ok(false);
        }
        let checkpoint = lab.create_foreign_recovery_checkpoint(&id)?;
        let mut model = self.model();
        model.next_event();
        model.vms[number].foreign_checkpoints.push(checkpoint);
        // Disks branch off it.
        model.vms[number].full_excused = true;
        Ok(true)
    }

    fn foreign_reference_point(&self, vm: u8) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        let quiet = {
            let model = self.model();
            let vm = &model.vms[number];
            vm.run.is_none() && vm.foreign_reference_points.len() < 2 && vm.foreign_checkpoints.is_empty()
        };
        if !quiet || laws::has_open_intent(self, number) || self.model().is_broken_for(number) {
            return Ok(false);
        }
        let before = lab.reference_points(&id)?;
        let made = as_another_program(|| {
            let host = Host::new(lab.plain_seam());
            let Ok(there) = host.find_vm(&id) else { return false };
            let request = hyperv::CheckpointRequest::new(hyperv::Consistency::Crash, "another product");
            let Ok(checkpoint) = host.create_recovery_checkpoint(&there, &request) else { return false };
            let converted = host.convert_to_reference_point(&checkpoint).is_ok();
            if !converted {
                let _ = host.destroy_checkpoint(&checkpoint.path);
            }
            converted
        });
        if !made {
            return Ok(false);
        }
        let mut model = self.model();
        model.next_event();
        let made = lab.reference_points(&id)?.into_iter().filter(|point| !before.contains(point));
        model.vms[number].foreign_reference_points.extend(made);
        Ok(true)
    }

    fn delete_foreign_checkpoint(&self, vm: u8) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        let Some(checkpoint) = self.model().vms[number].foreign_checkpoints.first().cloned() else { return Ok(false) };
        if self.model().vms[number].run.is_some() {
            return Ok(false);
        }
        lab.delete_checkpoint(&id, &checkpoint)?;
        let mut model = self.model();
        model.next_event();
        model.vms[number].foreign_checkpoints.clear();
        model.vms[number].full_excused = true;
        Ok(true)
    }
}

/// Does something on a thread of its own: which names a program uses is noted by thread.
fn as_another_program<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let seed = u64::from_le_bytes(random::bytes());
    let thread = || {
        let _seeded = random::seed_this_thread(seed);
        work()
    };
    std::thread::scope(|scope| scope.spawn(thread).join().expect("another program does not panic"))
}

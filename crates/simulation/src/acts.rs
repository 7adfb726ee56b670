//! What guests, administrators, storage and others do; each act also changes the model, if the world let it happen.

use std::sync::Arc;
use std::time::Duration;

use hyperv::Host;
use hyperv_sim::{Companions, DiskSource, Fault, LabError, LabHost, RestartPhase, VmOptions};

use crate::laws;
use crate::maintenance;
use crate::model::{Copy, Disk, UNIT, UserCheckpoint};
use crate::story::{Act, HostFault, Revert};
use crate::world::{HALF_MIB, World, key_of, name_of};

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
        model.next_event();
        let vm = &mut model.vms[number];
        let disks = vm.disks.clone();
        vm.checkpoints.push(UserCheckpoint { id: checkpoint, disks });
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
        lab.apply_user_checkpoint(&id, checkpoint)?;
        let mut model = self.model();
        let event = model.next_event();
        let vm = &mut model.vms[number];
        let of = vm.checkpoints.iter().find(|one| one.id == *checkpoint).expect("just listed").clone();
        for (disk, then) in vm.disks.iter_mut().zip(&of.disks) {
            disk.content = then.content.clone();
            disk.broken_at = event;
        }
        vm.running = false;
        drop(model);
        self.disturb(number);
        lab.start_vm(&id)?;
        self.model().vms[number].running = true;
        Ok(true)
    }

    fn copy_disk(&self, vm: u8, disk: u8) -> Result<bool, LabError> {
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

    fn revert_disk(&self, which: u8, how: Revert) -> Result<bool, LabError> {
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

    fn move_disk_files(&self, vm: u8, disk: u8) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        let disk = self.disk_number(number, disk);
        if self.model().vms[number].run.is_some() {
            return Ok(false);
        }
        let folder = format!(r"C:\Moved {}", self.model().event);
        lab.move_disk_files(&id, disk, &folder)?;
        let key = self.model().vms[number].disks[disk].key.clone();
        self.model().copies.retain(|copy| copy.vm != number || copy.key != key);
        self.break_tracking(number, disk);
        Ok(true)
    }

    fn resize_disk(&self, vm: u8, disk: u8, units: u8) -> Result<bool, LabError> {
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

    fn add_disk(&self, vm: u8, units: u8) -> Result<bool, LabError> {
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

    fn remove_disk(&self, vm: u8, disk: u8) -> Result<bool, LabError> {
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

    fn attach_disk(&self, vm: u8, which: u8) -> Result<bool, LabError> {
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

    fn break_host(&self, vm: u8, fault: HostFault) -> Result<bool, LabError> {
        let (number, id, lab) = self.vm_and_lab(vm);
        let sizes: Vec<u64> = self.model().vms[number].disks.iter().map(|disk| disk.content.len() as u64).collect();
        let injected = lab_fault(&id, fault, &sizes);
        lab.inject(injected)?;
        self.count(format!("fault {}", format!("{fault:?}").split([' ', '{']).next().unwrap_or_default()));
        self.model().faults.push((number, fault));
        self.disturb(number);
        Ok(true)
    }

    /// Everything that is broken is mended, and what an administrator would clean up is cleaned up.
    pub(crate) fn mend(&self) {
        for host in &self.hosts {
            host.lab.clear_faults().expect("a host's faults are cleared");
        }
        self.model().faults.clear();
        for vm in 0..self.vm_count() {
            let (id, lab) = self.id_and_lab(vm);
            for stray in lab.stray_files().unwrap_or_default() {
                if stray.ends_with("-AutoRecovery.avhdx")
                    && let Ok(file) = lab.host_file(&stray)
                {
                    let _ = std::fs::remove_file(file);
                }
            }
            let _ = lab.is_at_rest(&id);
            // Until the next good point, what was broken may still show.
            self.model().vms[vm].full_excused = true;
        }
        self.set_clock_offset(0);
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

fn lab_fault(vm: &str, fault: HostFault, sizes: &[u64]) -> Fault {
    let vm = vm.to_owned();
    let disk_of = |disk: u8| usize::from(disk) % sizes.len();
    let fails = |method: &str, consistency_level, description: &str| Fault::JobFails {
        method: method.into(),
        consistency_level,
        error_code: 32768,
        description: description.into(),
    };
    match fault {
        HostFault::Unreadable { disk, at, units, times } => {
            let disk = disk_of(disk);
            let offset_bytes = u64::from(at) % (sizes[disk] / UNIT) * UNIT;
            let len_bytes = (u64::from(units.max(1)) * UNIT).min(sizes[disk] - offset_bytes);
            let times = (times > 0).then_some(u32::from(times));
            Fault::UnreadableRange { vm, disk, offset_bytes, len_bytes, code: 23, times }
        }
        HostFault::DeviceLost { disk, after_reads } => {
            Fault::DeviceLost { vm, disk: disk_of(disk), after_reads: after_reads.into(), code: 1167 }
        }
        HostFault::CheckpointRefused => Fault::MethodReturns { method: "CreateSnapshot".into(), return_value: 32775 },
        HostFault::CheckpointFails => fails("CreateSnapshot", None, "There is not enough space. (0x80070070)"),
        HostFault::GuestRefuses => fails("CreateSnapshot", Some(1), "The writer failed. (0x800423F4)"),
        HostFault::ConvertFails => fails("ConvertToReferencePoint", None, "The conversion failed. (0x80070020)"),
        HostFault::ConvertUnreachable => {
            Fault::MethodUnreachable { method: "ConvertToReferencePoint".into(), hresult: 0x8007_06BA }
        }
        HostFault::ConvertFailsAfterPoint { checkpoint_stays } => Fault::ConvertFailsAfterPoint { checkpoint_stays },
        HostFault::ReferencePointIds { missing } => Fault::ReferencePointIds { missing: missing.into() },
        HostFault::NoLogonRight => Fault::NoLogonRight,
        HostFault::NoRights => Fault::NoRights,
        HostFault::MergeBlocked => Fault::MergeBlocked { vm },
        HostFault::ChangesFail { disk, which } => {
            let codes = [0xC03A_0029, 0xC03A_002A, 0xC03A_0030, 0xC03A_0034, 31];
            Fault::ChangesFail { vm, disk: disk_of(disk), code: codes[usize::from(which) % codes.len()] }
        }
        HostFault::ChangesOmit { disk, unit } => Fault::ChangesOmit { vm, disk: disk_of(disk), unit: unit.into() },
        HostFault::ServiceRestarts { after_calls, phase } => Fault::ServiceRestarts {
            method: None,
            after_calls: after_calls.into(),
            phase: [RestartPhase::Before, RestartPhase::During, RestartPhase::After][usize::from(phase) % 3],
            down_ms: 1500,
        },
        HostFault::LeavesFile => Fault::CreateLeavesFile { vm },
        HostFault::DestroyUnreachable => {
            Fault::MethodUnreachable { method: "DestroySnapshot".into(), hresult: 0x8007_06BA }
        }
    }
}

//! What goes wrong on a host, and how it is mended.

use hyperv_sim::{Fault, LabError, RestartPhase};

use crate::model::UNIT;
use crate::story::HostFault;
use crate::world::World;

impl World {
    pub(super) fn break_host(&self, vm: u8, fault: HostFault) -> Result<bool, LabError> {
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

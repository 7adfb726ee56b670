//! Watching the merge that follows the end of a checkpoint (spec 3.8).

use std::time::Duration;

use vhdx::Guid;

use crate::checkpoint_list::LOOK_AGAIN_AFTER;
use crate::devices::{DiskRole, disk_devices};
use crate::host::MANAGEMENT_SERVICE;
use crate::inventory::{COMPONENT, DEVICES, MEDIA, SETTINGS, is_active};
use crate::job::{Invocation, JobLimits};
use crate::pace::next_look;
use crate::seam::{CimValue, Instance};
use crate::{Error, ErrorKind, FrozenDisk, Host, Operation, VmId, cim_xml, wql};

/// What a disk's chain was before the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainBefore {
    /// The disk.
    pub virtual_disk_id: Guid,
    /// Files in its chain, the base included.
    pub depth: usize,
}

impl From<&FrozenDisk> for ChainBefore {
    fn from(disk: &FrozenDisk) -> Self {
        Self { virtual_disk_id: disk.virtual_disk_id, depth: disk.chain.len() }
    }
}

/// How far a merge came within the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MergeOutcome {
    /// Every chain is back to its former depth.
    Merged,
    /// The host says that it is merging; more waiting may help.
    StillMerging {
        /// Disks whose chains are still longer.
        disks: Vec<UnmergedDisk>,
    },
    /// Chains are longer than before, and the host is not merging: a handle is held, a volume is full, or merging is
    /// switched off (spec 11, rows 36 and 37).
    Blocked {
        /// Disks whose chains are still longer.
        disks: Vec<UnmergedDisk>,
        /// `Msvm_DiskMergeSettingData` says that merging is switched off for the VM (spec 3.9);
        /// [`Host::allow_merging`] switches it on again.
        merging_is_off: bool,
    },
}

/// A disk whose chain is longer than before the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnmergedDisk {
    /// The disk.
    pub virtual_disk_id: Guid,
    /// Files in its chain now, leaf first.
    pub chain: Vec<String>,
    /// Files in its chain before.
    pub depth_before: usize,
}

/// Least and most time between looks: a merge takes a second, or hours.
const LOOKS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

impl Host {
    /// Waits until the chains of a VM's disks are no longer than before, at most `limit`; with a limit of zero it only
    /// looks. A disk that is no longer attached is not waited for.
    pub fn wait_for_merge(
        &self,
        vm: &VmId,
        chains_before: &[ChainBefore],
        limit: Duration,
    ) -> Result<MergeOutcome, Error> {
        let attempt = format!("watch the merge of VM {vm}");
        let attempt = attempt.as_str();
        let clock = &self.seam.clock;
        let start = clock.monotonic();
        loop {
            let (unmerged, merging) = self.look_at_merge(attempt, vm, chains_before)?;
            // The chain is the proof: the status may not be set yet, or still be set for something else.
            if unmerged.is_empty() {
                return Ok(MergeOutcome::Merged);
            }
            let waited = clock.monotonic().saturating_sub(start);
            if waited >= limit {
                return Ok(if merging {
                    MergeOutcome::StillMerging { disks: unmerged }
                } else {
                    MergeOutcome::Blocked { disks: unmerged, merging_is_off: self.merging_is_off(attempt, vm)? }
                });
            }
            clock.sleep(next_look(waited, LOOKS.0, LOOKS.1).min(limit - waited));
        }
    }

    /// Lets the host merge the VM's disks again, after an export has switched that off; merges that waited start at once
    /// (spec 3.9, 11 row 37).
    pub fn allow_merging(&self, vm: &VmId) -> Result<(), Error> {
        const ON: u16 = 1;
        let attempt = format!("allow merging for VM {vm}");
        let attempt = attempt.as_str();
        let service = self.service(attempt, MANAGEMENT_SERVICE)?;
        let setting = self.merge_setting(attempt, vm)?.into_iter().next();
        let setting = setting.ok_or_else(|| Error::Missing {
            attempt: attempt.to_owned(),
            what: format!("the merge setting of VM {vm}"),
        })?;
        let changed = cim_xml::changed(&setting, vec![("EnabledState", CimValue::Uint16(ON))]);
        let text =
            cim_xml::to_text(&changed).map_err(|source| Error::CimXml { attempt: attempt.to_owned(), source })?;
        self.invoke(&Invocation {
            attempt,
            object: &service,
            method: "ModifyDiskMergeSettings",
            parameters: &[("SettingData", CimValue::String(text))],
            limits: JobLimits::DEFAULT,
            cancel: None,
        })?;
        Ok(())
    }

    fn look_at_merge(
        &self,
        attempt: &str,
        vm: &VmId,
        chains_before: &[ChainBefore],
    ) -> Result<(Vec<UnmergedDisk>, bool), Error> {
        let missing = || Error::Missing { attempt: attempt.to_owned(), what: format!("VM {vm}") };
        let systems = self.find(attempt, &wql::by("Msvm_ComputerSystem", "Name", vm.as_str()))?;
        let system = systems.first().ok_or_else(missing)?;
        let merging = Operation::of(system) == Some(Operation::MergingDisks);
        let mut tries = LOOK_AGAIN_AFTER.iter();
        loop {
            match self.unmerged_disks(attempt, vm, chains_before) {
                Ok(unmerged) => return Ok((unmerged, merging)),
                // The leaf vanishes at the end of a merge, perhaps between our two questions.
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Busy)
                        && let Some(wait) = tries.next() =>
                {
                    self.seam.clock.sleep(*wait);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn unmerged_disks(
        &self,
        attempt: &str,
        vm: &VmId,
        chains_before: &[ChainBefore],
    ) -> Result<Vec<UnmergedDisk>, Error> {
        let settings = self.find(attempt, &wql::by(SETTINGS, "VirtualSystemIdentifier", vm.as_str()))?;
        let active = settings.iter().find(|settings| is_active(settings)).and_then(|settings| settings.path.as_ref());
        let active = active
            .ok_or_else(|| Error::Missing { attempt: attempt.to_owned(), what: format!("the settings of VM {vm}") })?;
        let media = self.find(attempt, &wql::associated(active, COMPONENT, Some(MEDIA)))?;
        let devices = self.find(attempt, &wql::associated(active, COMPONENT, Some(DEVICES)))?;
        let service = self.image_service(attempt)?;
        let mut unmerged = Vec::new();
        for device in disk_devices(vm.as_str(), &media, &devices) {
            if device.role != DiskRole::Disk {
                continue;
            }
            let (facts, chain) = self.disk_chain(attempt, &service, &device.path)?;
            // Two disks with one identity (a copied file): the longer chain is what both may have.
            let before = chains_before.iter().filter(|before| before.virtual_disk_id == facts.virtual_disk_id);
            if let Some(depth_before) = before.map(|before| before.depth).max()
                && chain.len() > depth_before
            {
                unmerged.push(UnmergedDisk { virtual_disk_id: facts.virtual_disk_id, chain, depth_before });
            }
        }
        Ok(unmerged)
    }

    fn merging_is_off(&self, attempt: &str, vm: &VmId) -> Result<bool, Error> {
        const OFF: u64 = 0;
        let settings = self.merge_setting(attempt, vm)?;
        Ok(settings.iter().any(|setting| setting.get("EnabledState").as_u64() == Some(OFF)))
    }

    fn merge_setting(&self, attempt: &str, vm: &VmId) -> Result<Vec<Instance>, Error> {
        self.find(attempt, &wql::by("Msvm_DiskMergeSettingData", "InstanceID", &format!("Microsoft:{vm}")))
    }
}

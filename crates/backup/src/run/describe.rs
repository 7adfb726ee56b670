//! The description of the point: what was asked, what was reached, where everything lies.

use std::collections::HashMap;

use hyperv::{Exclusion, Vm};
use jiff::Timestamp;
use vhdx::Guid;

use super::freeze::OpenDisk;
use super::prepare::Base;
use super::read::FinishedDisk;
use super::{ConsistencyPolicy, Run};
use crate::Consistency;
use crate::layout::LAYOUT_VERSION;
use crate::point::{AbsentDisk, POINT_VERSION, PointDescription, PointDisk};
use crate::state::random_hex;

impl Run<'_> {
    #[allow(clippy::too_many_arguments)] // one value for every field that comes from elsewhere
    pub(super) fn describe(
        &self,
        vm: &Vm,
        base: Option<&Base>,
        disks: &[OpenDisk<'_>],
        finished: &[FinishedDisk],
        started: Timestamp,
        frozen: Timestamp,
        consistency: Consistency,
        consistency_reason: Option<String>,
    ) -> PointDescription {
        // A point must not be older than its base, or "latest" would name the base: clocks do go back.
        let started = match base {
            Some(base) if base.description.started >= started => {
                base.description.started.checked_add(jiff::SignedDuration::from_millis(1)).unwrap_or(started)
            }
            _ => started,
        };
        let mut names: HashMap<Guid, u32> = HashMap::new();
        let disks = (0..).zip(disks.iter().zip(finished)).map(|(number, (disk, finished))| {
            let id = disk.frozen.virtual_disk_id;
            let count = names.entry(id).and_modify(|count| *count += 1).or_insert(0);
            let suffix = if *count == 0 { String::new() } else { format!("-{count}") };
            let geometry = finished.stored.layout.geometry();
            PointDisk {
                number,
                virtual_disk_id: id.to_string(),
                slot: disk.frozen.slot.to_string(),
                path: disk.frozen.path.clone(),
                size_bytes: geometry.size_bytes(),
                logical_sector_bytes: geometry.disk().logical_sector_bytes,
                physical_sector_bytes: geometry.disk().physical_sector_bytes,
                layout_version: LAYOUT_VERSION,
                segment_bytes: finished.stored.layout.segment_bytes(),
                file: format!("disks/{id}{suffix}.vhdx"),
                object: finished.stored.object.to_string(),
                file_bytes: finished.stored.len_bytes,
                slots: finished.stored.slots,
                data_write_guid: finished.stored.data_write.to_string(),
                read: finished.read.clone(),
                read_bytes: finished.stored.read_bytes,
                changed_bytes: finished.stored.changed_bytes,
                audit_bytes: finished.audited.read_bytes,
                audited: (finished.audited.of_segments > 0).then_some(finished.audited),
                rct_id: None,
                most_recent_id: disk.most_recent_id.clone(),
                chain: disk.facts.chain.clone(),
            }
        });
        let asked = match self.context.options.consistency {
            ConsistencyPolicy::Crash => Consistency::Crash,
            _ => Consistency::Application,
        };
        PointDescription {
            version: POINT_VERSION,
            point_id: random_hex(16),
            run_id: self.run_id.to_owned(),
            attempt: self.intent().attempt,
            vm_id: vm.id.to_string(),
            vm_name: vm.name.clone(),
            host: self.context.host_name.to_owned(),
            replication_mode: vm.replication_mode,
            started,
            frozen,
            stored: frozen,
            stored_bytes: 0,
            consistency_asked: asked,
            consistency,
            consistency_reason,
            guest_family: vm.guest.family.into(),
            reference_point: None,
            user_checkpoints: self.user_checkpoints.ids.clone(),
            last_applied_checkpoint: self.user_checkpoints.last_applied.clone(),
            disks: disks.collect(),
            absent_disks: vm
                .excluded_disks
                .iter()
                .map(|disk| AbsentDisk { disk: disk.path.clone(), reason: exclusion_text(disk.reason).into() })
                .collect(),
            program: self.context.options.program.clone(),
        }
    }
}

pub(super) fn exclusion_text(reason: Exclusion) -> &'static str {
    match reason {
        Exclusion::PassThrough => "a pass-through disk of the host cannot be frozen",
        Exclusion::Shared => "a disk that several VMs share cannot be frozen",
        Exclusion::VhdSet => "a VHD set needs checkpoints of a group of VMs",
        Exclusion::FibreChannel => "a disk behind a virtual fibre channel adapter cannot be frozen",
    }
}

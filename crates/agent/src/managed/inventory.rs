//! What is on the host, in the words of the contract (spec control-api 5.1).

use control_api::Object;
use control_api::hyperv::{Disk, Vm as WireVm};
use hyperv::{DiskSlot, Exclusion, GuestFamily, HostFacts, Protection, TrackingSupport, Vm, VmState, VssReadiness};
use serde_json::json;

/// One VM. The agent's own leftovers are counted by the janitor, not here.
pub fn vm(vm: &Vm) -> WireVm {
    let protection = vm.protection();
    let (is_impossible, is_tracked) = match &protection {
        Protection::Impossible(_) => (true, false),
        Protection::Incremental { .. } => (false, true),
        Protection::FullOnly(_) => (false, false),
    };
    let mut disks: Vec<Disk> = vm
        .disks
        .iter()
        .map(|disk| Disk {
            size_bytes: signed(disk.size_bytes),
            vhd_format: Some(if disk.path.to_ascii_lowercase().ends_with(".vhd") { "VHD" } else { "VHDX" }.to_owned()),
            rct_enabled: disk.tracking == TrackingSupport::Supported,
            virtual_disk_id: Some(disk.virtual_disk_id.to_string()),
            kind: Some("normal".to_owned()),
            logical_sector_size: Some(disk.logical_sector_bytes.into()),
            physical_sector_size: Some(disk.physical_sector_bytes.into()),
            chain_depth: i64::try_from(disk.chain.len()).ok(),
            ..bare(&disk.path, Some(disk.slot))
        })
        .collect();
    disks.extend(vm.excluded_disks.iter().map(|disk| {
        let (kind, reason) = excluded(disk.reason);
        Disk { kind: Some(kind.to_owned()), excluded_reason: Some(reason.to_owned()), ..bare(&disk.path, disk.slot) }
    }));
    WireVm {
        id: vm.id.to_string(),
        name: vm.name.clone(),
        state: Some(state(&vm.state).to_owned()),
        generation: Some(vm.generation.into()),
        cpu_count: vm.processors.and_then(|count| i64::try_from(count).ok()),
        memory_mb: vm.memory_mib.and_then(|mib| i64::try_from(mib).ok()),
        integration_services: Some(vm.vss != VssReadiness::Disabled),
        is_linux: vm.guest.family == GuestFamily::Other,
        rct_enabled: is_tracked,
        disks,
        config_version: Some(vm.configuration_version.clone()),
        guest_os: vm.guest.os_name.clone(),
        guest_family: Some(
            match vm.guest.family {
                GuestFamily::Windows => "windows",
                GuestFamily::Other => "other",
                GuestFamily::Unknown => "unknown",
            }
            .to_owned(),
        ),
        vss_ready: match vm.vss {
            VssReadiness::Ready => Some(true),
            VssReadiness::Disabled | VssReadiness::NotResponding(_) => Some(false),
            VssReadiness::Unknown => None,
        },
        clustered: None,
        replica_role: match vm.replication_mode {
            1 => Some("primary".to_owned()),
            2 => Some("replica".to_owned()),
            3 => Some("test_replica".to_owned()),
            4 => Some("extended_replica".to_owned()),
            _ => None,
        },
        has_vtpm: Some(vm.tpm),
        shielded: Some(vm.shielded),
        user_checkpoints: i64::try_from(vm.user_checkpoints().count()).ok(),
        leftover_checkpoints: i64::try_from(vm.recovery_checkpoints().count()).ok(),
        backupable: Some(!is_impossible),
        not_backupable_reason: is_impossible.then(|| protection.to_string()),
        expected_consistency: None,
        rct_supported: Some(is_tracked),
    }
}

/// What is said of the host itself.
pub fn host(facts: &HostFacts) -> Object {
    let facts = json!({
        "name": facts.name,
        "os": facts.os_caption,
        "os_version": facts.os_version,
        "reference_points": facts.reference_points,
        "agent": crate::context::PROGRAM,
    });
    match facts {
        serde_json::Value::Object(facts) => facts,
        _ => Object::new(),
    }
}

fn bare(path: &str, slot: Option<DiskSlot>) -> Disk {
    let place = slot.map(|slot| slot.to_string());
    Disk {
        path: path.to_owned(),
        controller_type: place.and_then(|place| place.split(' ').next().map(str::to_owned)),
        controller_number: slot.map(|slot| slot.controller_number.into()),
        controller_location: slot.map(|slot| slot.location.into()),
        size_bytes: None,
        used_bytes: None,
        vhd_format: None,
        rct_enabled: false,
        rct_id: None,
        virtual_disk_id: None,
        kind: None,
        excluded_reason: None,
        logical_sector_size: None,
        physical_sector_size: None,
        chain_depth: None,
    }
}

fn excluded(reason: Exclusion) -> (&'static str, &'static str) {
    match reason {
        Exclusion::PassThrough => ("passthrough", "a physical disk of the host cannot be frozen"),
        Exclusion::Shared => ("shared", "a disk that several VMs share cannot be frozen"),
        Exclusion::VhdSet => ("vhdset", "a VHD set needs checkpoints of a group of VMs"),
        Exclusion::FibreChannel => ("passthrough", "a disk behind a virtual fibre channel adapter cannot be frozen"),
    }
}

fn state(state: &VmState) -> &'static str {
    match state {
        VmState::Running => "Running",
        VmState::Off => "Off",
        VmState::Saved => "Saved",
        VmState::Paused => "Paused",
        VmState::InTransition { .. } | VmState::Critical(_) | VmState::Unknown(_) => "Unknown",
    }
}

/// As the contract counts: 63 bits.
pub fn signed(bytes: u64) -> Option<i64> {
    i64::try_from(bytes).ok()
}

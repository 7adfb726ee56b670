//! Computer systems, their settings, and their reference points.

use hyperv::seam::Instance;

use super::settings_path;
use crate::builder::Builder;
use crate::config_file;
use crate::devices::medium_id;
use crate::host::Tx;
use crate::options::ReferenceOutputs;
use crate::state::{Action, Checkpoint, CheckpointKind, PlannedCheckpoint, Power, ReferencePoint, Vm};

pub(super) fn computer_system(tx: &Tx<'_>, vm: &Vm) -> Instance {
    let mut status = vec![if vm.storage_lost { 3 } else { 2 }];
    let mut texts = vec!["Operating normally".to_owned()];
    if let Some((code, text)) = tx.operation(&vm.id) {
        status.push(code.into());
        texts.push(text.to_owned());
    }
    let running = vm.power == Power::Running;
    let (state, other, requested) = shown_state(tx, vm);
    let mut builder = Builder::new(tx, "Msvm_ComputerSystem")
        .text("CreationClassName", "Msvm_ComputerSystem")
        .text("Name", &vm.id)
        .text("ElementName", &vm.active.name)
        .text("Caption", "Virtual Machine")
        .text("Description", "Microsoft Virtual Computer System")
        .date("InstallDate", vm.created_ms)
        .number("EnabledState", state)
        .number("RequestedState", requested)
        .number("HealthState", if vm.storage_lost { 25 } else { 5 })
        .numbers("OperationalStatus", &status)
        .texts("StatusDescriptions", texts)
        .number("OnTimeInMilliseconds", if running { tx.now_ms.saturating_sub(vm.state_changed_ms) } else { 0 })
        .date("TimeOfLastConfigurationChange", vm.config_changed_ms)
        .date("TimeOfLastStateChange", vm.state_changed_ms)
        .number("ReplicationState", if vm.replication_mode == 0 { 0 } else { 4 })
        .number("ReplicationMode", vm.replication_mode.into())
        .number("ReplicationHealth", u64::from(vm.replication_mode != 0));
    if let Some(other) = other {
        builder = builder.text("OtherEnabledState", other);
    }
    if running { builder.number("ProcessID", 4000).build() } else { builder.build() }
}

/// `EnabledState` with `OtherEnabledState`, and `RequestedState`: while a VM changes its state it shows that.
fn shown_state(tx: &Tx<'_>, vm: &Vm) -> (u64, Option<&'static str>, u64) {
    let changing = tx.open_jobs(&vm.id).find_map(|job| match job.action {
        Action::Power { to } => Some(to),
        _ => None,
    });
    match changing {
        Some(Power::Running) if vm.power != Power::Running => (10, None, 2),
        Some(Power::Off) => (4, None, 3),
        Some(Power::Saved) => (1, Some("Saving"), 6),
        Some(Power::Paused) => (1, Some("Pausing"), 9),
        _ => (enabled_state(vm), None, 12),
    }
}

/// A stable state.
pub(crate) fn enabled_state(vm: &Vm) -> u64 {
    match (vm.power, vm.storage_lost) {
        (Power::Running, false) => 2,
        (Power::Off, false) => 3,
        (Power::Saved, false) => 6,
        (Power::Paused, false) => 9,
        (Power::Running, true) => 32781,
        (Power::Off, true) => 32782,
        (Power::Saved, true) => 32784,
        (Power::Paused, true) => 32785,
    }
}

pub(super) fn planned_system(tx: &Tx<'_>, vm: &Vm) -> Instance {
    Builder::new(tx, "Msvm_PlannedComputerSystem")
        .text("CreationClassName", "Msvm_PlannedComputerSystem")
        .text("Name", &vm.id)
        .text("ElementName", &vm.active.name)
        .text("Caption", "Planned Virtual Machine")
        .number("EnabledState", if vm.power == Power::Saved { 6 } else { 3 })
        .number("HealthState", 5)
        .numbers("OperationalStatus", &[2])
        .build()
}

/// The settings of a registered or planned VM, or of a checkpoint.
pub(crate) fn system_settings(tx: &Tx<'_>, vm: &Vm, checkpoint: Option<&Checkpoint>) -> Instance {
    let (id, config) = checkpoint.map_or((&vm.id, &vm.active), |checkpoint| (&checkpoint.id, &checkpoint.config));
    let kind = match checkpoint.map(|checkpoint| checkpoint.kind) {
        None if tx.planned(&vm.id).is_some() => "Microsoft:Hyper-V:System:Planned",
        None => "Microsoft:Hyper-V:System:Realized",
        Some(CheckpointKind::User) => "Microsoft:Hyper-V:Snapshot:Realized",
        Some(CheckpointKind::Recovery) => "Microsoft:Hyper-V:Snapshot:Recovery",
    };
    let (root, [vmcx, _, vmgs]) = match checkpoint {
        Some(_) => (vm.snapshot_root(), config_file::of_checkpoint(vm, id)),
        None => (vm.folder.clone(), config_file::of_vm(vm)),
    };
    let guest_state_root = if checkpoint.is_some() { root.clone() } else { vm.guest_state_root() };
    let sub_folder = if checkpoint.is_some() { "Snapshots" } else { "Virtual Machines" };
    let mut builder = Builder::new(tx, "Msvm_VirtualSystemSettingData")
        .flag("IncrementalBackupEnabled", false)
        .texts("Notes", Vec::new())
        .text("Architecture", "x64");
    for root in ["SnapshotDataRoot", "SuspendDataRoot", "SwapFileDataRoot", "LogDataRoot"] {
        builder = builder.text(root, vm.folder.as_str());
    }
    builder = config.system.build_into(builder);
    builder = builder
        .text("InstanceID", &format!("Microsoft:{id}"))
        .text("ElementName", &config.name)
        .text("Caption", "Virtual Machine Settings")
        .text("VirtualSystemIdentifier", &vm.id)
        .text("VirtualSystemType", kind)
        .text("VirtualSystemSubType", &format!("Microsoft:Hyper-V:SubType:{}", vm.generation))
        .text("ConfigurationID", id)
        .text("Version", &vm.version)
        .date("CreationTime", checkpoint.map_or(vm.created_ms, |checkpoint| checkpoint.created_ms))
        .text("ConfigurationDataRoot", root.as_str())
        .text("ConfigurationFile", &format!(r"{sub_folder}\{}", vmcx.file_name()))
        .text("GuestStateDataRoot", guest_state_root.as_str())
        .text("GuestStateFile", &format!(r"{sub_folder}\{}", vmgs.file_name()))
        .flag("IsSaved", vm.power == Power::Saved && checkpoint.is_none())
        .flag("IsAutomaticSnapshot", false);
    if vm.generation == 2 {
        let drives = || config.disks.iter().map(|disk| format!(r"{}\D", disk.place)).collect();
        let order = config.boot_order.clone().unwrap_or_else(drives);
        let sources = order.iter().map(|device| format!(r"Microsoft:{id}\{device}\B")).collect();
        builder = builder.texts("BootSourceOrder", sources);
    }
    let parent = checkpoint.map_or(vm.position.as_ref(), |checkpoint| checkpoint.parent.as_ref());
    match parent {
        Some(parent) => builder.text("Parent", settings_path(tx, parent).as_str()).build(),
        None => builder.build(),
    }
}

/// A checkpoint that the definition of a planned system refers to.
pub(super) fn planned_checkpoint(tx: &Tx<'_>, vm: &Vm, checkpoint: &PlannedCheckpoint) -> Instance {
    let kind = if checkpoint.missing { "Missing" } else { "Planned" };
    Builder::new(tx, "Msvm_VirtualSystemSettingData")
        .text("InstanceID", &format!("Microsoft:{}", checkpoint.id))
        .text("ElementName", &checkpoint.name)
        .text("VirtualSystemIdentifier", &vm.id)
        .text("VirtualSystemType", &format!("Microsoft:Hyper-V:Snapshot:{kind}"))
        .text("ConfigurationID", &checkpoint.id)
        .build()
}

/// What an export of a VM starts from.
pub(super) fn export_settings(tx: &Tx<'_>, vm: &Vm) -> Instance {
    Builder::new(tx, "Msvm_VirtualSystemExportSettingData")
        .text("InstanceID", &format!("Microsoft:{}", vm.id))
        .text("ElementName", &vm.active.name)
        .number("CopySnapshotConfiguration", 0)
        .flag("CopyVmRuntimeInformation", true)
        .flag("CopyVmStorage", true)
        .flag("CreateVmExportSubdirectory", true)
        .number("CaptureLiveState", 1)
        .number("BackupIntent", 0)
        .flag("ExportForLiveMigration", false)
        .flag("DisableDifferentialOfIgnoredStorage", false)
        .build()
}

pub(super) fn reference_point(tx: &Tx<'_>, vm: &Vm, point: &ReferencePoint) -> Instance {
    let id = match tx.options.reference_outputs {
        ReferenceOutputs::Filled => format!(r"Microsoft:{}\{}", vm.id, point.id),
        ReferenceOutputs::Null2025 => format!("Microsoft:{}", point.id),
    };
    let ids = point.markers.iter().take(point.markers.len().saturating_sub(point.missing_ids));
    let slots = point.markers.iter().map(|marker| medium_id(&vm.id, &marker.place));
    Builder::new(tx, "Msvm_VirtualSystemReferencePoint")
        .text("InstanceID", &id)
        .text("VirtualSystemIdentifier", &vm.id)
        .text("ElementName", "Reference Point")
        .number("ReferencePointType", 2)
        .number("ConsistencyLevel", point.consistency_level.into())
        .flag("HasAssociatedData", false)
        .texts("VirtualDiskIdentifiers", slots.collect())
        .texts("ResilientChangeTrackingIdentifiers", ids.map(|marker| marker.id.clone()).collect())
        .build()
}

//! The state as WMI objects.

use hyperv::seam::{Instance, Namespace, ObjectPath};

use crate::builder::Builder;
use crate::checkpoint::config_files;
use crate::devices::{SWITCH_ID, SWITCH_NAME, components, device_settings, drive_id, medium_id};
use crate::host::Tx;
use crate::object_path::{ParsedPath, format_path};
use crate::options::ReferenceOutputs;
use crate::schema::{Class, schema};
use crate::state::{Checkpoint, CheckpointKind, GuestFamily, Job, Object, Power, ReferencePoint, Vm};

/// The service singletons: class, `Name`.
const SERVICES: [(&str, &str); 7] = [
    ("Msvm_VirtualSystemManagementService", "vmms"),
    ("Msvm_VirtualSystemSnapshotService", "vssnapsvc"),
    ("Msvm_VirtualSystemReferencePointService", "vrpsvc"),
    ("Msvm_ImageManagementService", "vhdsvc"),
    ("Msvm_VirtualSystemMigrationService", "migrationwmi"),
    ("Msvm_SecurityService", "securitysvc"),
    ("Msvm_VssService", "vsssvc"),
];

/// All objects of a class and its subclasses, in the order in which the host lists them.
pub(crate) fn instances(tx: &Tx<'_>, class: &Class) -> Vec<Instance> {
    let wanted = |name: &str| schema().own(name).is_a(&class.name);
    let mut list = Vec::new();
    if wanted("Msvm_ComputerSystem") {
        list.push(host(tx));
        list.extend(tx.vms.iter().map(|vm| computer_system(tx, vm)));
    }
    if wanted("Msvm_VirtualSystemSettingData") {
        for vm in &tx.vms {
            list.push(system_settings(tx, vm, None));
            list.extend(vm.checkpoints.iter().map(|checkpoint| system_settings(tx, vm, Some(checkpoint))));
        }
    }
    for vm in &tx.vms {
        list.extend(device_settings(tx, vm, &vm.id, &vm.active, &wanted));
        for checkpoint in &vm.checkpoints {
            list.extend(device_settings(tx, vm, &checkpoint.id, &checkpoint.config, &wanted));
        }
        if vm.power == Power::Running {
            list.extend(components(tx, vm, &wanted));
        }
        if wanted("Msvm_DiskMergeSettingData") {
            list.push(
                Builder::new(tx, "Msvm_DiskMergeSettingData")
                    .text("InstanceID", &format!("Microsoft:{}", vm.id))
                    .text("ElementName", &vm.active.name)
                    .number("EnabledState", 1)
                    .build(),
            );
        }
        if wanted("Msvm_VirtualSystemReferencePoint") {
            list.extend(vm.reference_points.iter().map(|point| reference_point(tx, vm, point)));
        }
    }
    for (name, id) in SERVICES.iter().filter(|(name, _)| wanted(name)) {
        let name: &str = name;
        list.push(
            Builder::new(tx, name)
                .text("CreationClassName", name)
                .text("Name", id)
                .text("SystemCreationClassName", "Msvm_ComputerSystem")
                .text("SystemName", &tx.options.host_name)
                .text("ElementName", name.trim_start_matches("Msvm_"))
                .flag("Started", true)
                .number("EnabledState", 5)
                .numbers("OperationalStatus", &[2])
                .build(),
        );
    }
    if wanted("Msvm_VirtualSystemManagementServiceSettingData") {
        list.push(
            Builder::new(tx, "Msvm_VirtualSystemManagementServiceSettingData")
                .text("InstanceID", &format!("Microsoft:{}", tx.options.host_name))
                .text("ElementName", "Hyper-V Virtual System Management Service")
                .text("DefaultExternalDataRoot", r"C:\VMs")
                .text("DefaultVirtualHardDiskPath", r"C:\VMs")
                .text("MinimumMacAddress", "00155D000000")
                .text("MaximumMacAddress", "00155D0000FF")
                .build(),
        );
    }
    if wanted("Msvm_VirtualEthernetSwitch") {
        list.push(
            Builder::new(tx, "Msvm_VirtualEthernetSwitch")
                .text("CreationClassName", "Msvm_VirtualEthernetSwitch")
                .text("Name", SWITCH_ID)
                .text("ElementName", SWITCH_NAME)
                .number("EnabledState", 2)
                .build(),
        );
    }
    if wanted("Msvm_ConcreteJob") {
        list.extend(tx.jobs.iter().map(|job| concrete_job(tx, job)));
    }
    if wanted("Win32_OperatingSystem") {
        list.push(operating_system(tx));
    }
    if wanted("Win32_Processor") {
        list.push(
            Builder::new(tx, "Win32_Processor")
                .text("DeviceID", "CPU0")
                .text("Name", "Simulated Processor")
                .text("Manufacturer", "GenuineIntel")
                .number("NumberOfCores", 8)
                .number("NumberOfLogicalProcessors", 16)
                .build(),
        );
    }
    if wanted("Win32_Service") {
        list.push(
            Builder::new(tx, "Win32_Service")
                .text("Name", "vmms")
                .text("DisplayName", "Hyper-V Virtual Machine Management")
                .text("State", "Running")
                .flag("Started", true)
                .text("StartMode", "Auto")
                .text("Status", "OK")
                .build(),
        );
    }
    if wanted("Win32_ComputerSystem") {
        list.push(
            Builder::new(tx, "Win32_ComputerSystem")
                .text("Name", &tx.options.host_name)
                .text("DNSHostName", &tx.options.host_name)
                .text("Domain", "WORKGROUP")
                .text("Manufacturer", "Simulated")
                .text("Model", "Host in a folder")
                .number("NumberOfLogicalProcessors", 16)
                .number("TotalPhysicalMemory", 64 << 30)
                .build(),
        );
    }
    list
}

/// The object that a path names.
pub(crate) fn find(tx: &Tx<'_>, path: &ParsedPath) -> Option<Instance> {
    let class = schema().class(&path.class)?;
    let names_all_keys =
        path.keys.len() == class.keys.len() && path.keys.iter().all(|(name, _)| class.property(name).is_some());
    if !names_all_keys {
        return None;
    }
    instances(tx, class).into_iter().find(|instance| {
        path.keys.iter().all(|(name, value)| {
            instance.get(name).as_str().is_some_and(|known| known.to_lowercase() == value.to_lowercase())
        })
    })
}

/// All pairs that an association connects.
pub(crate) fn pairs(tx: &Tx<'_>, association: &str) -> Vec<(ObjectPath, ObjectPath)> {
    let everything = |_: &str| true;
    let mut pairs = Vec::new();
    let path = |instance: &Instance| instance.path.clone().expect("objects of the host have paths");
    for vm in &tx.vms {
        let system = vm_path(tx, &vm.id);
        let active = settings_path(tx, &vm.id);
        let newest_user = vm.checkpoints.iter().rev().find(|checkpoint| checkpoint.kind == CheckpointKind::User);
        match association {
            "Msvm_SettingsDefineState" => pairs.push((system, active)),
            "Msvm_VirtualSystemSettingDataComponent" => {
                let configs = vm.checkpoints.iter().map(|checkpoint| (&checkpoint.id, &checkpoint.config));
                for (id, config) in std::iter::once((&vm.id, &vm.active)).chain(configs) {
                    let settings = device_settings(tx, vm, id, config, &everything);
                    pairs.extend(settings.iter().map(|setting| (settings_path(tx, id), path(setting))));
                }
            }
            "Msvm_SnapshotOfVirtualSystem" => pairs
                .extend(vm.checkpoints.iter().map(|checkpoint| (system.clone(), settings_path(tx, &checkpoint.id)))),
            "Msvm_MostCurrentSnapshotInBranch" | "Msvm_LastAppliedSnapshot" => {
                pairs.extend(newest_user.map(|checkpoint| (system, settings_path(tx, &checkpoint.id))));
            }
            "Msvm_ParentChildSettingData" => pairs.extend(vm.checkpoints.iter().filter_map(|checkpoint| {
                let parent = checkpoint.parent.as_ref()?;
                Some((settings_path(tx, parent), settings_path(tx, &checkpoint.id)))
            })),
            "Msvm_ReferencePointOfVirtualSystem" => pairs.extend(
                vm.reference_points.iter().map(|point| (system.clone(), path(&reference_point(tx, vm, point)))),
            ),
            "Msvm_SystemDevice" if vm.power == Power::Running => {
                pairs.extend(components(tx, vm, &everything).iter().map(|device| (system.clone(), path(device))));
            }
            "Msvm_ElementSettingData" => {
                pairs.push((system.clone(), active));
                pairs.push((system, instance_path(tx, "Msvm_DiskMergeSettingData", &format!("Microsoft:{}", vm.id))));
            }
            _ => {}
        }
    }
    if association == "Msvm_AffectedJobElement" {
        for job in &tx.jobs {
            let job_path = job_path(tx, &job.id);
            pairs.push((vm_path(tx, &job.vm), job_path.clone()));
            for result in job.end.iter().flat_map(|end| &end.results) {
                pairs.extend(object_path(tx, result).map(|object| (object, job_path.clone())));
            }
        }
    }
    if association == "Msvm_HostedService" {
        let host = vm_path(tx, &tx.options.host_name);
        let services = instances(tx, schema().own("CIM_Service"));
        pairs.extend(services.iter().map(|service| (host.clone(), path(service))));
    }
    pairs
}

pub(crate) fn vm_path(tx: &Tx<'_>, name: &str) -> ObjectPath {
    let keys = [("CreationClassName", "Msvm_ComputerSystem"), ("Name", name)];
    format_path(&tx.options.host_name, Namespace::Virtualization, "Msvm_ComputerSystem", &keys)
}

pub(crate) fn settings_path(tx: &Tx<'_>, configuration: &str) -> ObjectPath {
    instance_path(tx, "Msvm_VirtualSystemSettingData", &format!("Microsoft:{configuration}"))
}

pub(crate) fn job_path(tx: &Tx<'_>, id: &str) -> ObjectPath {
    instance_path(tx, "Msvm_ConcreteJob", id)
}

/// The path of something that a job made, if it is still there.
pub(crate) fn object_path(tx: &Tx<'_>, object: &Object) -> Option<ObjectPath> {
    match object {
        Object::Checkpoint { id } => tx.checkpoint(id).map(|_| settings_path(tx, id)),
        Object::ReferencePoint { id } => {
            tx.reference_point(id).and_then(|(vm, point)| reference_point(tx, vm, point).path)
        }
    }
}

pub(crate) fn instance_path(tx: &Tx<'_>, class: &str, id: &str) -> ObjectPath {
    format_path(&tx.options.host_name, Namespace::Virtualization, class, &[("InstanceID", id)])
}

fn host(tx: &Tx<'_>) -> Instance {
    Builder::new(tx, "Msvm_ComputerSystem")
        .text("CreationClassName", "Msvm_ComputerSystem")
        .text("Name", &tx.options.host_name)
        .text("ElementName", &tx.options.host_name)
        .text("Caption", "Hosting Computer System")
        .text("Description", "Microsoft Hosting Computer System")
        .number("EnabledState", 2)
        .number("HealthState", 5)
        .numbers("OperationalStatus", &[2])
        .build()
}

fn computer_system(tx: &Tx<'_>, vm: &Vm) -> Instance {
    let mut status = vec![2];
    let mut texts = vec!["Operating normally".to_owned()];
    if let Some((code, text)) = tx.operation(&vm.id) {
        status.push(code.into());
        texts.push(text.to_owned());
    }
    let running = vm.power == Power::Running;
    let builder = Builder::new(tx, "Msvm_ComputerSystem")
        .text("CreationClassName", "Msvm_ComputerSystem")
        .text("Name", &vm.id)
        .text("ElementName", &vm.active.name)
        .text("Caption", "Virtual Machine")
        .text("Description", "Microsoft Virtual Computer System")
        .date("InstallDate", vm.created_ms)
        .number("EnabledState", enabled_state(vm))
        .number("RequestedState", 12)
        .number("HealthState", 5)
        .numbers("OperationalStatus", &status)
        .texts("StatusDescriptions", texts)
        .number("OnTimeInMilliseconds", if running { tx.now_ms.saturating_sub(vm.state_changed_ms) } else { 0 })
        .date("TimeOfLastConfigurationChange", vm.config_changed_ms)
        .date("TimeOfLastStateChange", vm.state_changed_ms)
        .number("ReplicationState", 0)
        .number("ReplicationMode", 0)
        .number("ReplicationHealth", 0);
    if running { builder.number("ProcessID", 4000).build() } else { builder.build() }
}

pub(crate) fn enabled_state(vm: &Vm) -> u64 {
    match vm.power {
        Power::Running => 2,
        Power::Off => 3,
        Power::Saved => 6,
        Power::Paused => 9,
    }
}

pub(crate) fn system_settings(tx: &Tx<'_>, vm: &Vm, checkpoint: Option<&Checkpoint>) -> Instance {
    let (id, config) = checkpoint.map_or((&vm.id, &vm.active), |checkpoint| (&checkpoint.id, &checkpoint.config));
    let kind = match checkpoint.map(|checkpoint| checkpoint.kind) {
        None => "Microsoft:Hyper-V:System:Realized",
        Some(CheckpointKind::User) => "Microsoft:Hyper-V:Snapshot:Realized",
        Some(CheckpointKind::Recovery) => "Microsoft:Hyper-V:Snapshot:Recovery",
    };
    let folder = vm.folder.as_str();
    let [vmcx, _, vmgs] = config_files(&vm.folder, id);
    let sub_folder = if checkpoint.is_some() { "Snapshots" } else { "Virtual Machines" };
    let mut builder = Builder::new(tx, "Msvm_VirtualSystemSettingData")
        .text("InstanceID", &format!("Microsoft:{id}"))
        .text("ElementName", &config.name)
        .text("Caption", "Virtual Machine Settings")
        .text("VirtualSystemIdentifier", &vm.id)
        .text("VirtualSystemType", kind)
        .text("VirtualSystemSubType", &format!("Microsoft:Hyper-V:SubType:{}", vm.generation))
        .text("ConfigurationID", id)
        .texts("Notes", config.notes.clone())
        .text("Version", &vm.version)
        .date("CreationTime", checkpoint.map_or(vm.created_ms, |checkpoint| checkpoint.created_ms))
        .text("ConfigurationDataRoot", folder)
        .text("ConfigurationFile", &format!(r"{sub_folder}\{}", vmcx.file_name()))
        .text("SnapshotDataRoot", folder)
        .text("SuspendDataRoot", folder)
        .text("SwapFileDataRoot", folder)
        .text("LogDataRoot", folder)
        .text("GuestStateDataRoot", folder)
        .text("GuestStateFile", &format!(r"{sub_folder}\{}", vmgs.file_name()))
        .number("UserSnapshotType", config.user_snapshot_type.into())
        .flag("IsSaved", vm.power == Power::Saved && checkpoint.is_none())
        .flag("AutomaticSnapshotsEnabled", false)
        .flag("IsAutomaticSnapshot", false)
        .flag("IncrementalBackupEnabled", false)
        .flag("SecureBootEnabled", config.secure_boot)
        .text("BIOSGUID", &config.bios_guid)
        .text("BIOSSerialNumber", "0000-0001")
        .number("AutomaticStartupAction", config.automatic_startup_action.into())
        .interval("AutomaticStartupActionDelay", 0)
        .number("AutomaticStartupActionSequenceNumber", 0)
        .number("AutomaticShutdownAction", config.automatic_shutdown_action.into())
        .number("AutomaticCriticalErrorAction", 1)
        .interval("AutomaticCriticalErrorActionTimeout", 30 * 60 * 1000)
        .flag("VirtualNumaEnabled", true)
        .number("LowMmioGapSize", 128)
        .number("HighMmioGapSize", 512)
        .flag("GuestControlledCacheTypes", false)
        .number("ConsoleMode", 0)
        .number("EnhancedSessionTransportType", 0)
        .flag("TurnOffOnGuestRestart", false)
        .text("Architecture", "x64");
    if vm.generation == 2 {
        let drives = config.disks.iter().map(|disk| format!(r"{}\B", drive_id(vm, id, config, disk.slot)));
        let template = match vm.guest {
            GuestFamily::Windows => "1734c6e8-3154-4dda-ba5f-a874cc483422",
            _ => "272e7447-90a4-4563-a4b9-8e4ab00526ce",
        };
        builder = builder.text("SecureBootTemplateId", template).texts("BootSourceOrder", drives.collect());
    } else {
        builder = builder.numbers("BootOrder", &[1, 2, 3, 0]);
    }
    let parent = match checkpoint {
        Some(checkpoint) => checkpoint.parent.as_ref(),
        None => vm.checkpoints.iter().rev().find(|one| one.kind == CheckpointKind::User).map(|one| &one.id),
    };
    match parent {
        Some(parent) => builder.text("Parent", settings_path(tx, parent).as_str()).build(),
        None => builder.build(),
    }
}

fn reference_point(tx: &Tx<'_>, vm: &Vm, point: &ReferencePoint) -> Instance {
    let id = match tx.options.reference_outputs {
        ReferenceOutputs::Filled => format!(r"Microsoft:{}\{}", vm.id, point.id),
        ReferenceOutputs::Null2025 => format!("Microsoft:{}", point.id),
    };
    let slots = point.markers.iter().map(|marker| medium_id(vm, &vm.id, &point.controller, marker.slot));
    Builder::new(tx, "Msvm_VirtualSystemReferencePoint")
        .text("InstanceID", &id)
        .text("VirtualSystemIdentifier", &vm.id)
        .text("ElementName", "Reference Point")
        .number("ReferencePointType", 2)
        .number("ConsistencyLevel", point.consistency_level.into())
        .flag("HasAssociatedData", false)
        .texts("VirtualDiskIdentifiers", slots.collect())
        .texts("ResilientChangeTrackingIdentifiers", point.markers.iter().map(|marker| marker.id.clone()).collect())
        .build()
}

fn concrete_job(tx: &Tx<'_>, job: &Job) -> Instance {
    let duration = job.due_ms.saturating_sub(job.started_ms).max(1);
    let elapsed = tx.call_ms.saturating_sub(job.started_ms);
    // A quarter of the time a job is starting; then it runs.
    let (state, percent, until) = match &job.end {
        Some(end) => (u64::from(end.state), 100, end.at_ms),
        None if elapsed * 4 < duration => (3, 0, tx.call_ms),
        None => (4, (elapsed * 100 / duration).min(99), tx.call_ms),
    };
    let caption = match job.kind {
        70 => "Creating Virtual Machine Checkpoint",
        72 => "Deleting Virtual Machine Checkpoint",
        200 => "Converting Virtual Machine Checkpoint to Reference Point",
        _ => "Deleting Reference Point",
    };
    let end = job.end.as_ref();
    let failed = end.is_some_and(|end| end.error_code != 0);
    let mut builder = Builder::new(tx, "Msvm_ConcreteJob")
        .text("InstanceID", &job.id)
        .text("ElementName", caption)
        .text("Caption", caption)
        .text("Name", &job.method)
        .number("JobState", state)
        .number("JobType", job.kind.into())
        .text("JobStatus", if failed { "Error" } else { "OK" })
        .number("PercentComplete", percent)
        .interval("ElapsedTime", until.saturating_sub(job.started_ms))
        .date("StartTime", job.started_ms)
        .date("TimeOfLastStateChange", until)
        .interval("TimeBeforeRemoval", tx.options.job_retention_ms)
        .flag("Cancellable", is_cancellable(job))
        .flag("DeleteOnCompletion", true)
        .number("ErrorCode", end.map_or(0, |end| end.error_code.into()))
        .number("HealthState", 5)
        .numbers("OperationalStatus", &[2]);
    if failed {
        let text = end.map_or("", |end| end.error_description.as_str());
        builder = builder.text("ErrorDescription", text).text("ErrorSummaryDescription", text);
    }
    builder.build()
}

/// Only the making of a checkpoint can be called off.
pub(crate) fn is_cancellable(job: &Job) -> bool {
    job.kind == 70 && job.end.is_none()
}

fn operating_system(tx: &Tx<'_>) -> Instance {
    let (caption, build) = match tx.options.reference_outputs {
        ReferenceOutputs::Filled => ("Microsoft Windows Server 2022 Datacenter", "20348"),
        ReferenceOutputs::Null2025 => ("Microsoft Windows Server 2025 Datacenter", "26100"),
    };
    Builder::new(tx, "Win32_OperatingSystem")
        .text("Name", &format!(r"{caption}|C:\Windows|\Device\Harddisk0\Partition4"))
        .text("Caption", caption)
        .text("Version", &format!("10.0.{build}"))
        .text("BuildNumber", build)
        .text("CSName", &tx.options.host_name)
        .text("OSArchitecture", "64-bit")
        .number("ProductType", 3)
        .date("LocalDateTime", tx.call_ms)
        .build()
}

//! Objects of the host itself: services, switches, physical disks, and what `root\cimv2` says.

use hyperv::seam::Instance;

use crate::builder::Builder;
use crate::host::Tx;
use crate::options::ReferenceOutputs;

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

/// The host as a computer system.
pub(super) fn computer_system(tx: &Tx<'_>) -> Instance {
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

/// Everything else that belongs to the host.
pub(super) fn instances(tx: &Tx<'_>, wanted: &dyn Fn(&str) -> bool) -> Vec<Instance> {
    let mut list = Vec::new();
    for (class, id) in SERVICES.iter().filter(|(class, _)| wanted(class)) {
        list.push(
            Builder::new(tx, class)
                .text("CreationClassName", class)
                .text("Name", id)
                .text("SystemCreationClassName", "Msvm_ComputerSystem")
                .text("SystemName", &tx.options.host_name)
                .text("ElementName", class.trim_start_matches("Msvm_"))
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
        list.extend(tx.options.switches.iter().map(|switch| {
            Builder::new(tx, "Msvm_VirtualEthernetSwitch")
                .text("CreationClassName", "Msvm_VirtualEthernetSwitch")
                .text("Name", &switch.id)
                .text("ElementName", &switch.name)
                .number("EnabledState", 2)
                .build()
        }));
    }
    if wanted("Msvm_DiskDrive") {
        list.extend((0..tx.options.physical_disks).map(|number| {
            Builder::new(tx, "Msvm_DiskDrive")
                .text("CreationClassName", "Msvm_DiskDrive")
                .text("DeviceID", &format!(r"Microsoft:353B3BE8-310C-4CF4-839E-4E1B14616136\{number}"))
                .text("SystemCreationClassName", "Msvm_ComputerSystem")
                .text("SystemName", &tx.options.host_name)
                .text("ElementName", &format!("Disk {number} 10.00 GB Bus 0 Lun {number} Target 0"))
                .number("EnabledState", 2)
                .number("DriveNumber", number.into())
                .build()
        }));
    }
    list.extend(cimv2(tx, wanted));
    if let Some(cluster) = &tx.options.cluster {
        if wanted("MSCluster_Cluster") {
            list.push(
                Builder::new(tx, "MSCluster_Cluster")
                    .text("Name", &cluster.name)
                    .number("ClusterFunctionalLevel", cluster.functional_level.into())
                    .build(),
            );
        }
        for (vm, node) in cluster.roles.iter().filter(|_| wanted("MSCluster_Resource")) {
            list.push(
                Builder::new(tx, "MSCluster_Resource")
                    .text("Name", &format!("Virtual Machine {vm}"))
                    .text("Type", "Virtual Machine")
                    .text("OwnerNode", node)
                    .text("OwnerGroup", vm)
                    .number("State", 2)
                    .text("PrivateProperties.VmID", vm)
                    .build(),
            );
        }
    }
    list
}

fn cimv2(tx: &Tx<'_>, wanted: &dyn Fn(&str) -> bool) -> Vec<Instance> {
    let mut list = Vec::new();
    if wanted("Win32_OperatingSystem") {
        list.push(operating_system(tx));
    }
    if wanted("Win32_Processor") {
        list.push(
            Builder::new(tx, "Win32_Processor")
                .text("DeviceID", "CPU0")
                .text("Name", "Simulated Processor")
                .text("Manufacturer", "GenuineIntel")
                .number("NumberOfCores", tx.options.processors.div_ceil(2))
                .number("NumberOfLogicalProcessors", tx.options.processors)
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
        let runs = tx.storage.initiator_runs;
        list.push(
            Builder::new(tx, "Win32_Service")
                .text("Name", "MSiSCSI")
                .text("DisplayName", "Microsoft iSCSI Initiator Service")
                .text("State", if runs { "Running" } else { "Stopped" })
                .flag("Started", runs)
                .text("StartMode", "Manual")
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
                .number("NumberOfLogicalProcessors", tx.options.processors)
                .number("TotalPhysicalMemory", tx.options.memory_mib << 20)
                .build(),
        );
    }
    list
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

//! The devices of a VM: the settings of one configuration, and the integration components of a running guest.

use hyperv::seam::{Instance, Namespace};

use crate::builder::Builder;
use crate::host::Tx;
use crate::object_path::format_path;
use crate::objects::instance_path;
use crate::state::{Configuration, GuestFamily, Vm, VssBehaviour};

/// Integration components: what their classes are called after `Msvm_`, and their ids.
const COMPONENTS: [(&str, &str); 6] = [
    ("VssComponent", "5CED1297-4598-4915-A5FC-AD21BB4D02A4"),
    ("KvpExchangeComponent", "2A34B1C2-FD73-4043-8A5B-DD2159BC743F"),
    ("HeartbeatComponent", "84EAAE65-2F2E-45F5-9BB5-0E857DC8EB47"),
    ("ShutdownComponent", "9F8233AC-BE49-4C79-8EE3-E7E1985B2077"),
    ("TimeSyncComponent", "2497F4DE-E9FA-4204-80E4-4B75C46419C0"),
    ("GuestServiceInterfaceComponent", "6C09BB55-D683-4DA0-8931-C9BF705F6480"),
];

const IDE_CONTROLLER: &str = "83F8638B-8DCA-4152-9EDA-2CA8B33039B4";
pub(crate) const SWITCH_ID: &str = "C08CB7B8-9B3C-408E-8E30-5E16A3AEB444";
pub(crate) const SWITCH_NAME: &str = "LAN";

/// Controllers, drives, media, processor, memory, network, components and security of one configuration.
pub(crate) fn device_settings(
    tx: &Tx<'_>,
    vm: &Vm,
    cfg: &str,
    config: &Configuration,
    wanted: &dyn Fn(&str) -> bool,
) -> Vec<Instance> {
    let mut list = Vec::new();
    let rasd = "Msvm_ResourceAllocationSettingData";
    if wanted(rasd) {
        for (guid, index) in controllers(vm, config) {
            let builder = Builder::new(tx, rasd)
                .text("InstanceID", &format!(r"Microsoft:{cfg}\{guid}\{index}"))
                .number("VirtualQuantity", 1);
            list.push(if vm.generation == 1 {
                builder
                    .text("ElementName", &format!("IDE Controller {index}"))
                    .number("ResourceType", 5)
                    .text("ResourceSubType", "Microsoft:Hyper-V:Emulated IDE Controller")
                    .text("Address", &index.to_string())
                    .build()
            } else {
                builder
                    .text("ElementName", "SCSI Controller")
                    .number("ResourceType", 6)
                    .text("ResourceSubType", "Microsoft:Hyper-V:Synthetic SCSI Controller")
                    .texts("VirtualSystemIdentifiers", vec![format!("{{{guid}}}")])
                    .build()
            });
        }
        for disk in &config.disks {
            let (guid, index, slot) = place(vm, config, disk.slot);
            let controller = instance_path(tx, rasd, &format!(r"Microsoft:{cfg}\{guid}\{index}"));
            list.push(
                Builder::new(tx, rasd)
                    .text("InstanceID", &drive_id(vm, cfg, config, disk.slot))
                    .text("ElementName", "Hard Drive")
                    .number("ResourceType", 17)
                    .text("ResourceSubType", "Microsoft:Hyper-V:Synthetic Disk Drive")
                    .text("Parent", controller.as_str())
                    .text("AddressOnParent", &slot.to_string())
                    .number("VirtualQuantity", 1)
                    .build(),
            );
        }
    }
    if wanted("Msvm_StorageAllocationSettingData") {
        for disk in &config.disks {
            let drive = instance_path(tx, rasd, &drive_id(vm, cfg, config, disk.slot));
            list.push(
                Builder::new(tx, "Msvm_StorageAllocationSettingData")
                    .text("InstanceID", &medium_id(vm, cfg, &config.controller, disk.slot))
                    .text("ElementName", "Hard Disk Image")
                    .number("ResourceType", 31)
                    .text("ResourceSubType", "Microsoft:Hyper-V:Virtual Hard Disk")
                    .text("Parent", drive.as_str())
                    .texts("HostResource", vec![disk.file.as_str().to_owned()])
                    .number("VirtualQuantity", 1)
                    .flag("PersistentReservationsSupported", disk.shared)
                    .number("CachingMode", 0)
                    .number("WriteHardeningMethod", 0)
                    .number("IOPSLimit", 0)
                    .number("IOPSReservation", 0)
                    .build(),
            );
        }
    }
    if wanted("Msvm_ProcessorSettingData") {
        list.push(
            Builder::new(tx, "Msvm_ProcessorSettingData")
                .text("InstanceID", &format!(r"Microsoft:{cfg}\b637f346-6a0e-4dec-af52-bd70cb80a21d\0"))
                .text("ElementName", "Processor")
                .number("ResourceType", 3)
                .text("ResourceSubType", "Microsoft:Hyper-V:Processor")
                .number("VirtualQuantity", config.processors)
                .number("Limit", 100_000)
                .number("Reservation", 0)
                .number("Weight", 100)
                .flag("ExposeVirtualizationExtensions", false)
                .flag("LimitProcessorFeatures", false)
                .number("HwThreadsPerCore", 0)
                .build(),
        );
    }
    if wanted("Msvm_MemorySettingData") {
        list.push(
            Builder::new(tx, "Msvm_MemorySettingData")
                .text("InstanceID", &format!(r"Microsoft:{cfg}\4764334d-e001-4176-82ee-5594ec9b530e"))
                .text("ElementName", "Memory")
                .number("ResourceType", 4)
                .text("ResourceSubType", "Microsoft:Hyper-V:Memory")
                .number("VirtualQuantity", config.memory_mib)
                .number("Limit", config.memory_mib)
                .number("Reservation", config.memory_mib)
                .number("Weight", 5000)
                .flag("DynamicMemoryEnabled", false)
                .number("TargetMemoryBuffer", 20)
                .build(),
        );
    }
    let nic_id = format!(r"Microsoft:{cfg}\{}", config.nic);
    if wanted("Msvm_SyntheticEthernetPortSettingData") {
        list.push(
            Builder::new(tx, "Msvm_SyntheticEthernetPortSettingData")
                .text("InstanceID", &nic_id)
                .text("ElementName", "Network Adapter")
                .number("ResourceType", 10)
                .text("ResourceSubType", "Microsoft:Hyper-V:Synthetic Ethernet Port")
                .text("Address", &config.mac)
                .flag("StaticMacAddress", false)
                .texts("VirtualSystemIdentifiers", vec![format!("{{{}}}", config.nic)])
                .flag("ClusterMonitored", true)
                .flag("DeviceNamingEnabled", false)
                .number("VirtualQuantity", 1)
                .build(),
        );
    }
    if wanted("Msvm_EthernetPortAllocationSettingData") {
        let keys = [("CreationClassName", "Msvm_VirtualEthernetSwitch"), ("Name", SWITCH_ID)];
        let switch = format_path(&tx.options.host_name, Namespace::Virtualization, "Msvm_VirtualEthernetSwitch", &keys);
        list.push(
            Builder::new(tx, "Msvm_EthernetPortAllocationSettingData")
                .text("InstanceID", &format!(r"{nic_id}\C"))
                .text("ElementName", "Ethernet Switch Port Settings")
                .number("ResourceType", 33)
                .text("ResourceSubType", "Microsoft:Hyper-V:Ethernet Connection")
                .text("Parent", instance_path(tx, "Msvm_SyntheticEthernetPortSettingData", &nic_id).as_str())
                .texts("HostResource", vec![switch.as_str().to_owned()])
                .number("EnabledState", 2)
                .text("LastKnownSwitchName", SWITCH_NAME)
                .build(),
        );
    }
    if wanted("Msvm_SecuritySettingData") {
        list.push(
            Builder::new(tx, "Msvm_SecuritySettingData")
                .text("InstanceID", &format!(r"Microsoft:{cfg}\61d0a4b6-8dd4-4f1e-9bd0-7b2b3b1a4d2c"))
                .text("ElementName", "Security Settings")
                .flag("TpmEnabled", config.tpm)
                .flag("KsdEnabled", false)
                .flag("ShieldingRequested", false)
                .flag("DataProtectionRequested", false)
                .flag("EncryptStateAndVmMigrationTraffic", config.tpm)
                .flag("VirtualizationBasedSecurityOptOut", false)
                .build(),
        );
    }
    for (name, id) in COMPONENTS {
        let class = format!("Msvm_{name}SettingData");
        if wanted(&class) {
            let offered = id != COMPONENTS[0].1 || vm.vss != VssBehaviour::Disabled;
            list.push(
                Builder::new(tx, &class)
                    .text("InstanceID", &format!(r"Microsoft:{cfg}\{id}"))
                    .text("ElementName", name)
                    .number("ResourceType", 1)
                    .text("ResourceSubType", &format!("Microsoft:Hyper-V:{}", component_sub_type(name)))
                    .number("EnabledState", if offered { 2 } else { 3 })
                    .build(),
            );
        }
    }
    list
}

fn component_sub_type(name: &str) -> &'static str {
    match name {
        "VssComponent" => "VSS Component",
        "KvpExchangeComponent" => "Key-Value Pair Exchange Component",
        "HeartbeatComponent" => "Heartbeat Component",
        "ShutdownComponent" => "Shutdown Component",
        "TimeSyncComponent" => "Time Synchronization Component",
        _ => "Guest Service Interface Component",
    }
}

/// GUID and index of each controller: two for IDE, one for SCSI.
fn controllers<'a>(vm: &Vm, config: &'a Configuration) -> Vec<(&'a str, u8)> {
    if vm.generation == 1 { vec![(IDE_CONTROLLER, 0), (IDE_CONTROLLER, 1)] } else { vec![(&config.controller, 0)] }
}

/// Controller GUID, controller index and location of a disk.
fn place<'a>(vm: &Vm, config: &'a Configuration, slot: u8) -> (&'a str, u8, u8) {
    if vm.generation == 1 { (IDE_CONTROLLER, slot / 2, slot % 2) } else { (&config.controller, 0, slot) }
}

pub(crate) fn drive_id(vm: &Vm, cfg: &str, config: &Configuration, slot: u8) -> String {
    let (guid, index, location) = place(vm, config, slot);
    format!(r"Microsoft:{cfg}\{guid}\{index}\{location}\D")
}

pub(crate) fn medium_id(vm: &Vm, cfg: &str, controller: &str, slot: u8) -> String {
    let (guid, index, location) = match vm.generation {
        1 => (IDE_CONTROLLER, slot / 2, slot % 2),
        _ => (controller, 0, slot),
    };
    format!(r"Microsoft:{cfg}\{guid}\{index}\{location}\L")
}

pub(crate) fn components(tx: &Tx<'_>, vm: &Vm, wanted: &dyn Fn(&str) -> bool) -> Vec<Instance> {
    let mut list = Vec::new();
    for (name, id) in COMPONENTS {
        let class = format!("Msvm_{name}");
        let disabled = id == COMPONENTS[0].1 && vm.vss == VssBehaviour::Disabled;
        if !wanted(&class) || disabled {
            continue;
        }
        let status = if vm.guest == GuestFamily::Unknown { 12 } else { 2 };
        let mut builder = Builder::new(tx, &class)
            .text("CreationClassName", &class)
            .text("DeviceID", &format!("Microsoft:{id}"))
            .text("SystemCreationClassName", "Msvm_ComputerSystem")
            .text("SystemName", &vm.id)
            .text("ElementName", name)
            .number("EnabledState", 2)
            .number("HealthState", 5)
            .numbers("OperationalStatus", &[status]);
        if name == "KvpExchangeComponent" {
            builder = builder
                .texts("GuestExchangeItems", Vec::new())
                .texts("GuestIntrinsicExchangeItems", kvp_items(vm.guest));
        }
        list.push(builder.build());
    }
    list
}

fn kvp_items(guest: GuestFamily) -> Vec<String> {
    let items: &[(&str, &str)] = match guest {
        GuestFamily::Windows => &[
            ("FullyQualifiedDomainName", "guest"),
            ("OSName", "Windows Server 2022 Datacenter"),
            ("OSVersion", "10.0.20348"),
            ("OSMajorVersion", "10"),
            ("OSMinorVersion", "0"),
            ("OSBuildNumber", "20348"),
            ("OSPlatformId", "2"),
            ("ProcessorArchitecture", "9"),
        ],
        GuestFamily::Linux => &[
            ("FullyQualifiedDomainName", "guest"),
            ("IntegrationServicesVersion", "3.1"),
            ("NetworkAddressIPv4", "192.0.2.10"),
            ("NetworkAddressIPv6", ""),
            ("OSBuildNumber", "6.1.0-28-amd64"),
            ("OSName", "Debian GNU/Linux"),
            ("OSMajorVersion", "12"),
            ("OSMinorVersion", ""),
            ("OSVersion", "6.1.0"),
            ("ProcessorArchitecture", "x86_64"),
        ],
        GuestFamily::Unknown => &[],
    };
    let item = |&(name, data): &(&str, &str)| {
        crate::embedded::format(
            &Builder::embedded("Msvm_KvpExchangeDataItem")
                .text("Name", name)
                .text("Data", data)
                .number("Source", 2)
                .build(),
        )
    };
    items.iter().map(item).collect()
}

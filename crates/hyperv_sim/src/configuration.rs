//! A set of settings: those of a VM, of one of its checkpoints, or of a planned VM.

use serde::{Deserialize, Serialize};

use crate::paths::WinPath;
use crate::properties::Properties;
use crate::state::new_guid;
use crate::templates;

/// The controllers of a generation 1 VM; it has two, with index 0 and 1.
pub(crate) const IDE_CONTROLLER: &str = "83F8638B-8DCA-4152-9EDA-2CA8B33039B4";
pub(crate) const SECURITY: &str = "Msvm_SecuritySettingData";
pub(crate) const PROCESSOR: &str = "Msvm_ProcessorSettingData";
pub(crate) const MEMORY: &str = "Msvm_MemorySettingData";
pub(crate) const CONNECTION: &str = "Msvm_EthernetPortAllocationSettingData";
pub(crate) const RASD: &str = "Msvm_ResourceAllocationSettingData";
pub(crate) const SASD: &str = "Msvm_StorageAllocationSettingData";

/// Integration components: what their classes are called after `Msvm_`, their sub types, and their ids.
pub(crate) const COMPONENTS: [(&str, &str, &str); 6] = [
    ("VssComponent", "VSS Component", "5CED1297-4598-4915-A5FC-AD21BB4D02A4"),
    ("KvpExchangeComponent", "Key-Value Pair Exchange Component", "2A34B1C2-FD73-4043-8A5B-DD2159BC743F"),
    ("HeartbeatComponent", "Heartbeat Component", "84EAAE65-2F2E-45F5-9BB5-0E857DC8EB47"),
    ("ShutdownComponent", "Shutdown Component", "9F8233AC-BE49-4C79-8EE3-E7E1985B2077"),
    ("TimeSyncComponent", "Time Synchronization Component", "2497F4DE-E9FA-4204-80E4-4B75C46419C0"),
    ("GuestServiceInterfaceComponent", "Guest Service Interface Component", "6C09BB55-D683-4DA0-8931-C9BF705F6480"),
];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Configuration {
    /// `ElementName` of the system settings.
    pub(crate) name: String,
    /// What else of the system settings can be set.
    pub(crate) system: Properties,
    /// Every device but the media in hard disk drives, in the order in which they were added.
    pub(crate) devices: Vec<Device>,
    /// Virtual hard disks, in order of their places.
    pub(crate) disks: Vec<DiskSlot>,
    /// Generation 2: `id`s of the devices to boot from; none for the drives as they stand.
    pub(crate) boot_order: Option<Vec<String>>,
    /// The key protector, as hexadecimal digits.
    pub(crate) key_protector: Option<String>,
    /// The key that the virtual TPM's content in the `.vmgs` is wrapped with; none while there is no content.
    pub(crate) tpm_key: Option<String>,
}

/// A setting that hangs off the system settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Device {
    /// Class of the setting.
    pub(crate) class: String,
    /// `InstanceID` behind `Microsoft:<configuration>\`.
    pub(crate) id: String,
    /// `id` of the device one level up.
    pub(crate) parent: Option<String>,
    /// Everything but `InstanceID` and `Parent`.
    pub(crate) properties: Properties,
}

/// A virtual hard disk in a drive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DiskSlot {
    /// `<controller GUID>\<index>\<location>`: the drive is this with `\D` behind it, the medium with `\L`.
    pub(crate) place: String,
    /// The file: the leaf in the VM's settings, the frozen one in a checkpoint's.
    pub(crate) file: WinPath,
    /// Name of the base file without extension; checkpoint files are named after it.
    pub(crate) stem: String,
    /// Everything of its setting but `InstanceID`, `Parent` and `HostResource`.
    pub(crate) properties: Properties,
}

impl Configuration {
    /// What a host gives a new VM: processor, memory, components, security; controllers only in generation 1.
    pub(crate) fn new(name: &str, generation: u8) -> Self {
        let mut devices = Vec::new();
        if generation == 1 {
            for index in ["0", "1"] {
                let mut controller =
                    templates::own("Emulated IDE Controller").device(format!(r"{IDE_CONTROLLER}\{index}"), None);
                controller.properties.put("ElementName", format!("IDE Controller {index}"));
                controller.properties.put("Address", index);
                devices.push(controller);
            }
        }
        devices.push(templates::own("Processor").device(r"b637f346-6a0e-4dec-af52-bd70cb80a21d\0", None));
        devices.push(templates::own("Memory").device("4764334d-e001-4176-82ee-5594ec9b530e", None));
        for (_, sub_type, id) in COMPONENTS {
            devices.push(templates::own(sub_type).device(id, None));
        }
        devices.push(Device {
            class: SECURITY.to_owned(),
            id: "61d0a4b6-8dd4-4f1e-9bd0-7b2b3b1a4d2c".into(),
            parent: None,
            properties: Properties::default()
                .with("ElementName", "Security Settings")
                .with("TpmEnabled", false)
                .with("KsdEnabled", false)
                .with("ShieldingRequested", false)
                .with("DataProtectionRequested", false)
                .with("EncryptStateAndVmMigrationTraffic", false)
                .with("VirtualizationBasedSecurityOptOut", false),
        });
        Self {
            name: name.to_owned(),
            system: default_system(generation),
            devices,
            disks: Vec::new(),
            boot_order: None,
            key_protector: None,
            tpm_key: None,
        }
    }

    /// A device by the part of its `InstanceID` behind the configuration.
    pub(crate) fn device(&self, id: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.id.eq_ignore_ascii_case(id))
    }

    pub(crate) fn first_of_class(&self, class: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.class == class)
    }

    pub(crate) fn first_of_class_mut(&mut self, class: &str) -> Option<&mut Device> {
        self.devices.iter_mut().find(|device| device.class == class)
    }

    /// Whether a checkpoint would leave something out: shared disks, VHD sets, physical disks, fibre channel.
    pub(crate) fn has_unsnapshottable(&self) -> bool {
        let is_foreign = |device: &Device| {
            let sub_type = device.properties.text("ResourceSubType");
            sub_type.ends_with("Physical Disk Drive") || sub_type.ends_with("FiberChannel Port")
        };
        self.disks.iter().any(|disk| !disk.is_snapshottable()) || self.devices.iter().any(is_foreign)
    }

    /// A number of the first device of a class, 0 when there is none.
    pub(crate) fn number_of(&self, class: &str, property: &str) -> u64 {
        self.first_of_class(class).map_or(0, |device| device.properties.number(property))
    }

    pub(crate) fn security_flag(&self, property: &str) -> bool {
        self.first_of_class(SECURITY).is_some_and(|device| device.properties.flag(property))
    }

    /// Adds a SCSI controller; gives its `id`.
    pub(crate) fn add_scsi_controller(&mut self) -> String {
        let guid = new_guid();
        let mut controller = templates::own("Synthetic SCSI Controller").device(format!(r"{guid}\0"), None);
        controller.properties.put("VirtualSystemIdentifiers", vec![format!("{{{guid}}}")]);
        let id = controller.id.clone();
        self.devices.push(controller);
        id
    }

    /// Puts a disk into a new drive; gives its place.
    pub(crate) fn attach(&mut self, controller: &str, location: u8, file: WinPath, stem: &str) -> String {
        let place = format!(r"{controller}\{location}");
        let mut drive = templates::own("Synthetic Disk Drive").device(format!(r"{place}\D"), Some(controller));
        drive.properties.put("AddressOnParent", location.to_string());
        self.devices.push(drive);
        let properties = templates::own("Virtual Hard Disk").properties();
        self.disks.push(DiskSlot { place: place.clone(), file, stem: stem.to_owned(), properties });
        self.sort_disks();
        place
    }

    /// Passes a physical disk through.
    pub(crate) fn attach_physical(&mut self, controller: &str, location: u8, disk_path: &str) {
        let id = format!(r"{controller}\{location}\D");
        let mut drive = templates::own("Physical Disk Drive").device(id, Some(controller));
        drive.properties.put("AddressOnParent", location.to_string());
        drive.properties.put("HostResource", vec![disk_path]);
        self.devices.push(drive);
    }

    /// Takes a disk and its drive out.
    pub(crate) fn detach(&mut self, place: &str) -> Option<DiskSlot> {
        let index = self.disks.iter().position(|disk| disk.place == place)?;
        let drive = format!(r"{place}\D");
        self.devices.retain(|device| device.id != drive);
        Some(self.disks.remove(index))
    }

    /// Adds a network adapter with a connection to a switch; gives the adapter's `id`.
    pub(crate) fn add_network_adapter(&mut self, mac: &str, switch_path: &str, switch_name: &str) -> String {
        let guid = new_guid();
        let mut adapter = templates::own("Synthetic Ethernet Port").device(guid.clone(), None);
        adapter.properties.put("Address", mac);
        adapter.properties.put("VirtualSystemIdentifiers", vec![format!("{{{guid}}}")]);
        let mut connection = templates::own("Ethernet Connection").device(format!(r"{guid}\C"), Some(&guid));
        connection.properties.put("HostResource", vec![switch_path]);
        connection.properties.put("LastKnownSwitchName", switch_name);
        self.devices.extend([adapter, connection]);
        guid
    }

    /// Disks stand in order of their controllers and locations.
    pub(crate) fn sort_disks(&mut self) {
        let devices = &self.devices;
        self.disks.sort_by_key(|disk| {
            let (controller, location) = disk.controller_and_location();
            let position = devices.iter().position(|device| device.id.eq_ignore_ascii_case(controller));
            (position, location)
        });
    }
}

impl DiskSlot {
    /// `PersistentReservationsSupported`: a shared disk, which cannot be part of a checkpoint.
    pub(crate) fn is_shared(&self) -> bool {
        self.properties.flag("PersistentReservationsSupported")
    }

    /// Whether a checkpoint can take the disk along: neither a shared one nor a VHD set.
    pub(crate) fn is_snapshottable(&self) -> bool {
        !self.is_shared() && !self.file.file_name().to_lowercase().ends_with(".vhds")
    }

    /// `id` of the controller, and the location on it.
    pub(crate) fn controller_and_location(&self) -> (&str, u32) {
        let (controller, location) = self.place.rsplit_once('\\').unwrap_or((&self.place, ""));
        (controller, location.parse().unwrap_or(u32::MAX))
    }
}

/// The system settings of a new VM that can be changed, as far as they do not depend on its files.
fn default_system(generation: u8) -> Properties {
    let interval = |minutes: u64| format!("00000000{:02}{:02}00.000000:000", minutes / 60, minutes % 60);
    let properties = Properties::default()
        .with("UserSnapshotType", 3)
        .with("AutomaticSnapshotsEnabled", false)
        .with("BIOSGUID", format!("{{{}}}", new_guid()))
        .with("BIOSSerialNumber", serial())
        .with("BaseBoardSerialNumber", serial())
        .with("ChassisSerialNumber", serial())
        .with("ChassisAssetTag", serial())
        .with("AutomaticStartupAction", 3)
        .with("AutomaticStartupActionDelay", interval(0))
        .with("AutomaticStartupActionSequenceNumber", 0)
        .with("AutomaticShutdownAction", 3)
        .with("AutomaticCriticalErrorAction", 1)
        .with("AutomaticCriticalErrorActionTimeout", interval(30))
        .with("VirtualNumaEnabled", true)
        .with("LowMmioGapSize", 128)
        .with("HighMmioGapSize", 512)
        .with("GuestControlledCacheTypes", false)
        .with("ConsoleMode", 0)
        .with("EnhancedSessionTransportType", 0)
        .with("TurnOffOnGuestRestart", false);
    if generation == 2 {
        properties.with("SecureBootEnabled", true).with("SecureBootTemplateId", "1734c6e8-3154-4dda-ba5f-a874cc483422")
    } else {
        properties.with("SecureBootEnabled", false).with("BootOrder", vec![1, 2, 3, 0])
    }
}

/// `0123-4567-…` as hosts make them up.
fn serial() -> String {
    let digits: Vec<String> = crate::state::new_uuid()
        .as_bytes()
        .chunks(2)
        .take(7)
        .map(|pair| format!("{:04}", pair[0] as u16 * 39))
        .collect();
    digits.join("-")
}

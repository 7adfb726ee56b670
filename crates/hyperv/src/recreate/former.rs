//! A stored definition, as instances again.

use crate::devices::{DRIVE, IDE_CONTROLLER, SCSI_CONTROLLER, parent_of};
use crate::disk_file::unexpected;
use crate::inventory::{DEVICES, MEDIA};
use crate::names::configuration_of;
use crate::seam::Instance;
use crate::{ControllerKind, Definition, DiskSlot, Error, slot_part};

pub(super) const SYNTHETIC_ADAPTER: &str = "Msvm_SyntheticEthernetPortSettingData";
pub(super) const EMULATED_ADAPTER: &str = "Msvm_EmulatedEthernetPortSettingData";
pub(super) const CONNECTION: &str = "Msvm_EthernetPortAllocationSettingData";

/// `ResourceType` of a DVD drive.
pub(super) const DVD_DRIVE: u64 = 16;

/// What the VM was.
pub(super) struct Former<'a> {
    pub(super) definition: &'a Definition,
    pub(super) system: Instance,
    pub(super) settings: Vec<Instance>,
}

/// A drive of the former VM, with its place.
pub(super) struct FormerDrive<'a> {
    pub(super) drive: &'a Instance,
    pub(super) controller: ControllerKind,
    pub(super) controller_number: u32,
    pub(super) location: String,
    pub(super) medium: Option<&'a Instance>,
}

impl<'a> Former<'a> {
    pub(super) fn of(attempt: &str, definition: &'a Definition) -> Result<Self, Error> {
        let broken = |class: &str| {
            let problem = format!("the stored definition is damaged: a value of {class} is not of its type");
            unexpected(attempt, problem)
        };
        let system = definition.system.to_instance().ok_or_else(|| broken(&definition.system.class))?;
        let settings = definition.settings.iter();
        let settings = settings.map(|setting| setting.to_instance().ok_or_else(|| broken(&setting.class)));
        Ok(Self { definition, system, settings: settings.collect::<Result<_, _>>()? })
    }

    pub(super) fn of_class(&self, class: &'static str) -> impl Iterator<Item = &Instance> {
        self.settings.iter().filter(move |setting| setting.class.eq_ignore_ascii_case(class))
    }

    pub(super) fn adapters(&self) -> impl Iterator<Item = &Instance> {
        self.settings.iter().filter(|setting| is_adapter(setting))
    }

    /// The connection of an adapter: by its `InstanceID`, which begins with the adapter's.
    pub(super) fn connection_of(&self, adapter: &Instance) -> Option<&Instance> {
        self.of_class(CONNECTION).find(|connection| is_connection_of(connection, adapter))
    }

    /// Features of an adapter's connection (VLAN and the like), by the beginning of their `InstanceID`.
    pub(super) fn features_of(&self, connection: &Instance) -> Vec<&Instance> {
        let slot = slot_part(instance_id(connection)).to_ascii_lowercase();
        let hangs_off = |setting: &&Instance| {
            setting.class.starts_with("Msvm_EthernetSwitchPort")
                && slot_part(instance_id(setting)).to_ascii_lowercase().starts_with(&slot)
        };
        self.settings.iter().filter(hangs_off).collect()
    }

    /// How many SCSI controllers there were.
    pub(super) fn scsi_controllers(&self) -> usize {
        self.of_class(DEVICES).filter(|device| resource_type(device) == Some(SCSI_CONTROLLER)).count()
    }

    /// The disk and DVD drives with their places. A SCSI controller's number is that of its disks' slots; one without
    /// disks comes after those.
    pub(super) fn drives(&self) -> Vec<FormerDrive<'_>> {
        let devices: Vec<&Instance> = self.of_class(DEVICES).collect();
        let scsi = self.scsi_order(&devices);
        let mut drives = Vec::new();
        for drive in &devices {
            if !matches!(resource_type(drive), Some(DRIVE | DVD_DRIVE)) {
                continue;
            }
            let Some(controller) = parent_of(drive, &devices, ' ') else { continue };
            let (kind, number) = match resource_type(controller) {
                Some(IDE_CONTROLLER) => {
                    let number = controller.get("Address").as_str().and_then(|text| text.trim().parse().ok());
                    (ControllerKind::Ide, number)
                }
                Some(SCSI_CONTROLLER) => {
                    let at = scsi.iter().position(|known| std::ptr::eq(*known, controller));
                    (ControllerKind::Scsi, at.and_then(|at| u32::try_from(at).ok()))
                }
                _ => continue,
            };
            let (Some(controller_number), Some(location)) = (number, drive.get("AddressOnParent").as_str()) else {
                continue;
            };
            let medium = self
                .of_class(MEDIA)
                .find(|medium| parent_of(medium, &devices, 'D').is_some_and(|parent| std::ptr::eq(parent, *drive)));
            let location = location.trim().to_owned();
            drives.push(FormerDrive { drive, controller: kind, controller_number, location, medium });
        }
        drives
    }

    fn scsi_order<'d>(&self, devices: &[&'d Instance]) -> Vec<&'d Instance> {
        let mut scsi: Vec<(u32, &Instance)> = devices
            .iter()
            .filter(|device| resource_type(device) == Some(SCSI_CONTROLLER))
            .map(|controller| (self.scsi_number(controller), *controller))
            .collect();
        scsi.sort_by_key(|(number, _)| *number);
        scsi.into_iter().map(|(_, controller)| controller).collect()
    }

    fn scsi_number(&self, controller: &Instance) -> u32 {
        let prefix = format!(r"{}\", slot_part(instance_id(controller)).to_ascii_lowercase());
        let slots = self.definition.disks.iter().filter_map(|disk| {
            let on_it = slot_part(&disk.instance_id).to_ascii_lowercase().starts_with(&prefix);
            on_it.then(|| disk.slot.as_deref()?.parse::<DiskSlot>().ok()).flatten()
        });
        slots.map(|slot| slot.controller_number).next().unwrap_or(u32::MAX)
    }
}

pub(super) fn is_adapter(setting: &Instance) -> bool {
    [SYNTHETIC_ADAPTER, EMULATED_ADAPTER].iter().any(|class| setting.class.eq_ignore_ascii_case(class))
}

/// Whether a connection is an adapter's: `…\<adapter>\<connection>`, in whatever configuration.
pub(super) fn is_connection_of(connection: &Instance, adapter: &Instance) -> bool {
    let adapter = instance_id(adapter).to_ascii_lowercase();
    !adapter.is_empty() && instance_id(connection).to_ascii_lowercase().starts_with(&format!(r"{adapter}\"))
}

pub(super) fn resource_type(setting: &Instance) -> Option<u64> {
    setting.get("ResourceType").as_u64()
}

pub(super) fn instance_id(setting: &Instance) -> &str {
    setting.get("InstanceID").as_str().unwrap_or_default()
}

pub(super) fn name_of(setting: &Instance) -> String {
    setting.get("ElementName").as_str().unwrap_or_default().to_owned()
}

/// The configuration that a setting is in, for messages and comparisons.
pub(super) fn configuration(setting: &Instance) -> &str {
    configuration_of(instance_id(setting)).unwrap_or_default()
}

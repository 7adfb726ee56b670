//! From the settings of one configuration to its disks and their slots (spec 1.4).

use crate::names::{configuration_of, same_path};
use crate::seam::Instance;
use crate::{ControllerKind, DiskSlot};

/// A disk of a configuration, before its file is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskDevice {
    /// `None` when its drive or controller is not among the settings.
    pub slot: Option<DiskSlot>,
    pub instance_id: String,
    pub path: String,
    pub role: DiskRole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskRole {
    Disk,
    Shared,
    PassThrough,
}

pub(crate) const IDE_CONTROLLER: u64 = 5;
pub(crate) const SCSI_CONTROLLER: u64 = 6;
pub(crate) const DRIVE: u64 = 17;
pub(crate) const MEDIUM: u64 = 31;
pub(crate) const HARD_DISK: &str = "Microsoft:Hyper-V:Virtual Hard Disk";
pub(crate) const PHYSICAL_DISK: &str = "Microsoft:Hyper-V:Physical Disk Drive";

/// The disks of a configuration among the settings of many, in order of their slots. None is left out: one that cannot
/// be placed must not be forgotten by a backup.
pub(crate) fn disk_devices(configuration: &str, media: &[Instance], devices: &[Instance]) -> Vec<DiskDevice> {
    let own = |setting: &&Instance| {
        let owner = setting.get("InstanceID").as_str().and_then(configuration_of);
        owner.is_some_and(|owner| owner.eq_ignore_ascii_case(configuration))
    };
    let devices: Vec<&Instance> = devices.iter().filter(own).collect();
    let medium = media.iter().filter(own).filter(|medium| is(medium, MEDIUM, HARD_DISK)).map(|medium| {
        let slot = parent_of(medium, &devices, 'D').and_then(|drive| slot_of(drive, &devices));
        let shared = medium.get("PersistentReservationsSupported").as_bool() == Some(true);
        disk(medium, slot, if shared { DiskRole::Shared } else { DiskRole::Disk })
    });
    let physical = devices
        .iter()
        .filter(|drive| is(drive, DRIVE, PHYSICAL_DISK))
        .map(|drive| disk(drive, slot_of(drive, &devices), DiskRole::PassThrough));
    let mut disks: Vec<_> = medium.chain(physical).collect();
    disks.sort_by(|a, b| (a.slot, &a.instance_id).cmp(&(b.slot, &b.instance_id)));
    disks
}

fn disk(setting: &Instance, slot: Option<DiskSlot>, role: DiskRole) -> DiskDevice {
    DiskDevice {
        slot,
        instance_id: setting.get("InstanceID").as_str().unwrap_or_default().to_owned(),
        path: host_resource(setting).unwrap_or_default().to_owned(),
        role,
    }
}

fn slot_of(drive: &Instance, devices: &[&Instance]) -> Option<DiskSlot> {
    let controller = parent_of(drive, devices, ' ')?;
    let (kind, controller_number) = match controller.get("ResourceType").as_u64()? {
        IDE_CONTROLLER => (ControllerKind::Ide, number(controller.get("Address").as_str()?)?),
        SCSI_CONTROLLER => {
            // A SCSI controller has no number of its own: its rank among the VM's is what the cmdlets show.
            let mut scsi = devices.iter().filter(|device| device.get("ResourceType").as_u64() == Some(SCSI_CONTROLLER));
            (ControllerKind::Scsi, u32::try_from(scsi.position(|other| std::ptr::eq(*other, controller))?).ok()?)
        }
        _ => return None,
    };
    let location = number(drive.get("AddressOnParent").as_str()?)?;
    Some(DiskSlot { controller: kind, controller_number, location })
}

/// `HostResource[0]`: a medium's file.
pub(crate) fn host_resource(setting: &Instance) -> Option<&str> {
    setting.get("HostResource").as_array()?.first()?.as_str()
}

pub(crate) fn is(setting: &Instance, resource_type: u64, sub_type: &str) -> bool {
    setting.get("ResourceType").as_u64() == Some(resource_type)
        && setting.get("ResourceSubType").as_str() == Some(sub_type)
}

/// The device one level up: by `Parent`, else by the grammar of `InstanceID` (`…\D` for a drive, nothing for a
/// controller).
pub(crate) fn parent_of<'a>(child: &Instance, devices: &[&'a Instance], parent_mark: char) -> Option<&'a Instance> {
    if let Some(parent) = child.get("Parent").as_str() {
        let found =
            devices.iter().find(|device| device.path.as_ref().is_some_and(|path| same_path(path.as_str(), parent)));
        if let Some(found) = found {
            return Some(found);
        }
    }
    let id = child.get("InstanceID").as_str()?;
    let (stem, _) = id.rsplit_once('\\')?;
    let wanted = match parent_mark {
        'D' => format!(r"{stem}\D"),
        _ => stem.rsplit_once('\\')?.0.to_owned(),
    };
    let has_id =
        |device: &&&Instance| device.get("InstanceID").as_str().is_some_and(|id| id.eq_ignore_ascii_case(&wanted));
    devices.iter().find(has_id).copied()
}

fn number(text: &str) -> Option<u32> {
    text.trim().parse().ok()
}

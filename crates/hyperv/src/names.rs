//! Identities: VMs, configurations, and the places of disks.

use std::fmt;
use std::str::FromStr;

use vhdx::Guid;

/// The id of a VM: `Msvm_ComputerSystem.Name`, an upper-case GUID without braces. Names are not unique; this is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmId(String);

impl VmId {
    /// Upper case, without braces.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmId {
    type Err = vhdx::ParseGuidError;

    /// Accepts any case, with or without braces.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let guid: Guid = text.parse()?;
        Ok(Self(guid.to_string().to_ascii_uppercase()))
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a disk is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ControllerKind {
    /// Generation 1 only; at most two controllers of two locations.
    Ide,
    /// Up to 64 locations per controller.
    Scsi,
}

/// The place of a disk in its VM, as the PowerShell cmdlets number it (spec 1.4). For people: SCSI controllers count in
/// the order in which the host lists them, so a disk is recognised by its `VirtualDiskId`, not by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskSlot {
    /// Kind of controller.
    pub controller: ControllerKind,
    /// Counted per kind, from 0.
    pub controller_number: u32,
    /// Location on the controller, from 0.
    pub location: u32,
}

impl fmt::Display for DiskSlot {
    /// `SCSI 0:1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let controller = match self.controller {
            ControllerKind::Ide => "IDE",
            ControllerKind::Scsi => "SCSI",
        };
        write!(f, "{controller} {}:{}", self.controller_number, self.location)
    }
}

impl FromStr for DiskSlot {
    type Err = NotASlot;

    /// The form that `Display` writes; `ide` and `scsi` in any case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NotASlot(text.to_owned());
        let (controller, place) = text.split_once(' ').ok_or_else(wrong)?;
        let (number, location) = place.split_once(':').ok_or_else(wrong)?;
        let controller = match controller.to_ascii_uppercase().as_str() {
            "IDE" => ControllerKind::Ide,
            "SCSI" => ControllerKind::Scsi,
            _ => return Err(wrong()),
        };
        let digits = |text: &str| text.parse::<u32>().map_err(|_| wrong());
        Ok(Self { controller, controller_number: digits(number)?, location: digits(location)? })
    }
}

/// A text does not name a slot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no slot such as \"SCSI 0:1\"")]
pub struct NotASlot(String);

/// The configuration that a setting belongs to: the `<cfg>` of `Microsoft:<cfg>\…` (spec 1.4).
pub(crate) fn configuration_of(instance_id: &str) -> Option<&str> {
    let rest = instance_id.strip_prefix("Microsoft:")?;
    Some(rest.split('\\').next().unwrap_or(rest))
}

/// The part of an `InstanceID` that names the place of a device, whatever configuration it stands in: how the same slot
/// is recognised in a checkpoint and in the VM.
pub fn slot_part(instance_id: &str) -> &str {
    instance_id.split_once('\\').map_or("", |(_, slot)| slot)
}

/// The last part of a host path. Hosts use backslashes; slashes are accepted as Windows does.
pub fn file_name(path: &str) -> &str {
    path.rsplit(['\\', '/']).next().unwrap_or(path)
}

/// Whether two host paths name the same file, as far as their text tells: Windows compares without case.
pub(crate) fn same_path(a: &str, b: &str) -> bool {
    a == b || a.replace('/', "\\").to_lowercase() == b.replace('/', "\\").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_one_form() {
        let id: VmId = "{0a1b2c3d-0000-1111-2222-333344445555}".parse().unwrap();
        assert_eq!(id.as_str(), "0A1B2C3D-0000-1111-2222-333344445555");
        assert!("web server".parse::<VmId>().is_err());
    }

    #[test]
    fn instance_ids_come_apart() {
        for (id, configuration, slot) in [
            (r"Microsoft:A\C\0\1\L", Some("A"), r"C\0\1\L"),
            ("Microsoft:A", Some("A"), ""),
            (r"Microsoft:Definition\G\Default", Some("Definition"), r"G\Default"),
            ("", None, ""),
        ] {
            assert_eq!((configuration_of(id), slot_part(id)), (configuration, slot), "{id}");
        }
    }

    #[test]
    fn slots_come_back_from_their_text() {
        for text in ["SCSI 0:1", "IDE 1:0", "SCSI 3:63"] {
            assert_eq!(text.parse::<DiskSlot>().unwrap().to_string(), text);
        }
        for text in ["", "SCSI", "SCSI 0", "SCSI 0:", "NVMe 0:0", "SCSI 0:0:0", "SCSI -1:0"] {
            assert!(text.parse::<DiskSlot>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn paths_compare_as_windows_does() {
        assert!(same_path(r"C:\VMs\Disk.vhdx", r"c:\vms/disk.VHDX"));
        assert!(!same_path(r"C:\VMs\Disk.vhdx", r"C:\VMs\Disk2.vhdx"));
        assert_eq!(file_name(r"C:\VMs\Disk.vhdx"), "Disk.vhdx");
        assert_eq!(file_name("Disk.vhdx"), "Disk.vhdx");
    }
}

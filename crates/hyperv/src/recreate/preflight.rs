//! Every obstacle to a re-creation at once, before anything is written (spec 6.7).
//!
//! The facts of the host are gathered first; what follows from them is decided without asking anything more.

use std::collections::{BTreeMap, BTreeSet};

use crate::inventory::MEDIA;
use crate::names::configuration_of;
use crate::seam::Namespace;
use crate::{ClusteredVm, Definition, Error, Host, VmId, wql};

use super::former::{EMULATED_ADAPTER, Former, SYNTHETIC_ADAPTER};
use super::network::Switch;
use super::system::{PLANNED_VM, VM};
use super::{ConfigurationVersions, Recreation};

mod checks;

/// How the VM is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// [`Host::import_vm`].
    Import,
    /// [`Host::build_vm`].
    Build,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// What was looked at.
    pub code: ObstacleCode,
    /// Whether it stands in the way.
    pub severity: Severity,
    /// The disk, adapter, file or VM that it is about.
    pub on: String,
    /// What was found, as a sentence.
    pub why: String,
    /// What can be done about it.
    pub options: Vec<&'static str>,
}

/// Whether an obstacle stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// It must be solved: the re-creation would fail.
    Block,
    /// A person has to decide: the VM would be made, and not be what it was.
    Decide,
    /// Looked at, and fine.
    Passed,
}

impl Severity {
    /// `block`, `decide` or `ok`; stable.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Decide => "decide",
            Self::Passed => "ok",
        }
    }
}

/// What was looked at. [`ObstacleCode::as_str`] is stable; programs key on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are the definition
pub enum ObstacleCode {
    ConfigurationVersion,
    VmId,
    VmName,
    Paths,
    DiskFiles,
    Space,
    DisksLeftOut,
    Devices,
    Images,
    Switches,
    MacAddresses,
    Memory,
    Processors,
    SavedState,
    SecureBoot,
    Tpm,
    Shielding,
}

impl ObstacleCode {
    /// Such as `configuration_version`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConfigurationVersion => "configuration_version",
            Self::VmId => "vm_id",
            Self::VmName => "vm_name",
            Self::Paths => "paths",
            Self::DiskFiles => "disk_files",
            Self::Space => "space",
            Self::DisksLeftOut => "disks_left_out",
            Self::Devices => "devices",
            Self::Images => "images",
            Self::Switches => "switches",
            Self::MacAddresses => "mac_addresses",
            Self::Memory => "memory",
            Self::Processors => "processors",
            Self::SavedState => "saved_state",
            Self::SecureBoot => "secure_boot",
            Self::Tpm => "tpm",
            Self::Shielding => "shielding",
        }
    }
}

/// What a preflight knows of the host.
#[derive(Debug, Default)]
struct HostState {
    name: String,
    versions: Option<ConfigurationVersions>,
    processor_vendor: Option<String>,
    logical_processors: Option<u64>,
    memory_mib: Option<u64>,
    /// Id and name.
    vms: Vec<(String, String)>,
    planned: Vec<String>,
    role: Option<ClusteredVm>,
    switches: Vec<Switch>,
    /// Address and the id of the VM that has it.
    addresses: Vec<(String, String)>,
    /// Which of the files in question are there.
    present: BTreeSet<String>,
    /// Free bytes by volume.
    free_bytes: BTreeMap<String, u64>,
}

impl Host {
    /// Looks at everything that a re-creation depends on; nothing is changed. The obstacles come in three groups, those
    /// that block first. Each thing that was looked at is in the list, with [`Severity::Passed`] if it is fine.
    pub fn preflight(&self, definition: &Definition, wanted: &Recreation, way: Way) -> Result<Vec<Obstacle>, Error> {
        let attempt = format!("check whether VM {:?} can be made here", wanted.name);
        let attempt = attempt.as_str();
        let former = Former::of(attempt, definition)?;
        let host = self.host_state(attempt, &former, wanted)?;
        let mut obstacles = checks::Checks { former: &former, wanted, way, host: &host }.run();
        obstacles.sort_by_key(|obstacle| (obstacle.severity, obstacle.code));
        Ok(obstacles)
    }

    fn host_state(&self, attempt: &str, former: &Former<'_>, wanted: &Recreation) -> Result<HostState, Error> {
        let cimv2 = |class: &str| {
            let found = self.query(attempt, Namespace::Cimv2, &wql::all(class)).unwrap_or_default();
            found.into_iter().next()
        };
        let (os, computer, processor) =
            (cimv2("Win32_OperatingSystem"), cimv2("Win32_ComputerSystem"), cimv2("Win32_Processor"));
        let text = |instance: &Option<crate::seam::Instance>, name: &str| {
            instance.as_ref().and_then(|instance| instance.get(name).as_str()).map(str::to_owned)
        };
        let number = |instance: &Option<crate::seam::Instance>, name: &str| {
            instance.as_ref().and_then(|instance| instance.get(name).as_u64())
        };
        let mut host = HostState {
            name: text(&os, "CSName").unwrap_or_default(),
            versions: text(&os, "Version").and_then(|version| ConfigurationVersions::of_windows(&version)),
            processor_vendor: text(&processor, "Manufacturer"),
            logical_processors: number(&computer, "NumberOfLogicalProcessors"),
            memory_mib: number(&computer, "TotalPhysicalMemory").map(|bytes| bytes >> 20),
            switches: self.switches(attempt)?,
            ..HostState::default()
        };
        for system in self.systems(attempt, VM)? {
            let text = |name| system.get(name).as_str().unwrap_or_default().to_owned();
            // The host itself is an instance too (spec 1.2).
            if text("Name").parse::<VmId>().is_ok() {
                host.vms.push((text("Name"), text("ElementName")));
            }
        }
        let planned = self.systems(attempt, PLANNED_VM)?;
        host.planned = planned.iter().filter_map(|system| system.get("Name").as_str().map(str::to_owned)).collect();
        host.role = match former.definition.summary.vm_id.parse::<VmId>() {
            Ok(id) => self.clustered_vm(&id).unwrap_or_default(),
            Err(_) => None,
        };
        for class in [SYNTHETIC_ADAPTER, EMULATED_ADAPTER] {
            for adapter in self.find(attempt, &wql::all(class))? {
                let owner = adapter.get("InstanceID").as_str().and_then(configuration_of).unwrap_or_default();
                let address = adapter.get("Address").as_str().unwrap_or_default();
                host.addresses.push((address.to_owned(), owner.to_owned()));
            }
        }
        self.look_at_files(former, wanted, &mut host);
        Ok(host)
    }

    fn look_at_files(&self, former: &Former<'_>, wanted: &Recreation, host: &mut HostState) {
        let images = former.of_class(MEDIA).filter_map(crate::devices::host_resource);
        for path in wanted.disks.iter().map(|disk| disk.path.as_str()).chain(images) {
            if self.seam.files.facts(path).is_ok() {
                host.present.insert(path.to_owned());
            }
        }
        for disk in &wanted.disks {
            if let Ok(free) = self.seam.files.free_bytes(&disk.path) {
                host.free_bytes.insert(volume_of(&disk.path), free);
            }
        }
    }
}

/// What tells volumes apart in a path: the drive, the cluster shared volume, or the share.
fn volume_of(path: &str) -> String {
    let path = path.replace('/', "\\").to_lowercase();
    let parts: Vec<&str> = path.split('\\').collect();
    let depth = match parts.as_slice() {
        ["", "", _server, _share, ..] => 4,
        [_, "clusterstorage", _volume, ..] => 3,
        _ => 1,
    };
    parts[..depth].join("\\")
}

/// `C:\…` or `\\server\share\…`.
fn is_absolute(path: &str) -> bool {
    let bytes = path.as_bytes();
    let has_drive =
        bytes.len() > 3 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':' && matches!(bytes[2], b'\\' | b'/');
    let has_share = path.starts_with(r"\\") && path[2..].split('\\').filter(|part| !part.is_empty()).count() >= 2;
    has_drive || has_share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_and_absolute_paths_are_told_by_their_text() {
        for (path, volume, absolute) in [
            (r"C:\VMs\d.vhdx", "c:", true),
            (r"c:/VMs/d.vhdx", "c:", true),
            (r"C:\ClusterStorage\Volume1\d.vhdx", r"c:\clusterstorage\volume1", true),
            (r"\\Files\VMs\web\d.vhdx", r"\\files\vms", true),
            (r"\\Files", r"", false),
            (r"d.vhdx", "d.vhdx", false),
            (r"\VMs\d.vhdx", "", false),
            ("C:", "c:", false),
            ("é:\\x", "é:", false),
            ("", "", false),
        ] {
            assert_eq!((volume_of(path).as_str(), is_absolute(path)), (volume, absolute), "{path}");
        }
    }
}

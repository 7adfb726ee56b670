//! What follows from the facts of the host; pure.

use std::collections::BTreeMap;

use crate::devices::{DRIVE, MEDIUM, PHYSICAL_DISK, host_resource, is};
use crate::inventory::{DEVICES, MEDIA, MEMORY, PROCESSORS};
use crate::names::same_path;

use super::super::former::{Former, name_of};
use super::super::network::{Connection, decide};
use super::super::{Identity, MacChoice, Recreation, TpmChoice};
use super::{HostState, Obstacle, ObstacleCode, Severity, Way, is_absolute, volume_of};

pub(super) struct Checks<'a> {
    pub(super) former: &'a Former<'a>,
    pub(super) wanted: &'a Recreation,
    pub(super) way: Way,
    pub(super) host: &'a HostState,
}

/// Secure Boot templates that every host has: MicrosoftWindows, MicrosoftUEFICertificateAuthority (spec 1.3).
const KNOWN_TEMPLATES: [&str; 2] = ["1734c6e8-3154-4dda-ba5f-a874cc483422", "272e7447-90a4-4563-a4b9-8e4ab00526ce"];

const DVD_MEDIUM: &str = "Microsoft:Hyper-V:Virtual CD/DVD Disk";
const FIBRE_CHANNEL: &str = "Msvm_SyntheticFcPortSettingData";
const ASSIGNED_DEVICE: &str = "Msvm_PciExpressSettingData";

type Found = Vec<Obstacle>;

/// What a check is about, what to say when nothing is found, and the check.
type Check<'a> = (ObstacleCode, &'static str, fn(&Checks<'a>) -> Found);

impl<'a> Checks<'a> {
    pub(super) fn run(&self) -> Vec<Obstacle> {
        use ObstacleCode as Code;
        let checks: [Check<'a>; 17] = [
            (Code::ConfigurationVersion, "This host runs the VM's configuration version.", Self::configuration_version),
            (Code::VmId, "No VM here has the id.", Self::vm_id),
            (Code::VmName, "No VM here has the name.", Self::vm_name),
            (Code::Paths, "Every path is absolute and names a file of its own.", Self::paths),
            (Code::DiskFiles, "Every disk file is there, or will be written.", Self::disk_files),
            (Code::Space, "The volumes have room for the disks.", Self::space),
            (Code::DisksLeftOut, "Every disk of the VM is restored.", Self::disks_left_out),
            (Code::Devices, "The VM has no device that only its former host could give.", Self::devices),
            (Code::Images, "Every ISO image is there.", Self::images),
            (Code::Switches, "Every network adapter has its switch.", Self::switches),
            (Code::MacAddresses, "No address is in use here.", Self::mac_addresses),
            (Code::Memory, "The host has the memory.", Self::memory),
            (Code::Processors, "The host has the processors.", Self::processors),
            (Code::SavedState, "No saved state moves to other processors.", Self::saved_state),
            (Code::SecureBoot, "Secure Boot is off, or its template is on every host.", Self::secure_boot),
            (Code::Tpm, "The VM has no virtual TPM, or this host made it.", Self::tpm),
            (Code::Shielding, "The VM is not shielded.", Self::shielding),
        ];
        let mut all = Vec::new();
        for (code, fine, check) in checks {
            let mut found = check(self);
            if found.is_empty() {
                found.push(obstacle(code, Severity::Passed, &self.wanted.name, fine.to_owned(), &[]));
            }
            all.extend(found);
        }
        all
    }

    fn configuration_version(&self) -> Found {
        let version = &self.former.definition.summary.configuration_version;
        let one = |severity, why, options: &[&'static str]| {
            vec![obstacle(ObstacleCode::ConfigurationVersion, severity, version, why, options)]
        };
        match (&self.host.versions, self.way) {
            (None, Way::Import) => one(
                Severity::Decide,
                "It is not known which configuration versions this host runs.".into(),
                &["try the import", "build from settings"],
            ),
            (Some(versions), _) if versions.runs(version) => Vec::new(),
            (Some(versions), Way::Import) => {
                let age = if versions.is_too_new(version) { "newer" } else { "older" };
                one(
                    Severity::Block,
                    format!("The version is {age} than this host runs ({versions})."),
                    &["build from settings", "choose another host"],
                )
            }
            (_, Way::Build) => one(
                Severity::Decide,
                "The VM is built with this host's default version instead.".into(),
                &["go on", "choose another host"],
            ),
        }
    }

    fn vm_id(&self) -> Found {
        let id = &self.former.definition.summary.vm_id;
        let is_it = |other: &str| other.eq_ignore_ascii_case(id);
        let one = |severity, why: String, options: &[&'static str]| {
            vec![obstacle(ObstacleCode::VmId, severity, id, why, options)]
        };
        if self.wanted.identity == Identity::New {
            return Vec::new();
        }
        if self.way == Way::Build {
            return one(
                Severity::Decide,
                "A VM that is built from settings has a new id.".into(),
                &["go on", "import instead"],
            );
        }
        if let Some((_, name)) = self.host.vms.iter().find(|(other, _)| is_it(other)) {
            return one(
                Severity::Block,
                format!("The VM {name:?} has this id."),
                &["remove that VM (its disk files stay)", "give the restored VM a new id"],
            );
        }
        if self.host.planned.iter().any(|other| is_it(other)) {
            return one(
                Severity::Block,
                "A VM that was imported and never finished has this id.".into(),
                &["remove the unfinished VM", "give the restored VM a new id"],
            );
        }
        match &self.host.role {
            Some(role) => one(
                Severity::Block,
                format!("The cluster has a VM with this id; node {} owns it.", role.owner_node),
                &["remove that role and its VM", "give the restored VM a new id"],
            ),
            None => Vec::new(),
        }
    }

    fn vm_name(&self) -> Found {
        let name = &self.wanted.name;
        let same: Vec<_> = self.host.vms.iter().filter(|(_, other)| other == name).collect();
        same.iter()
            .map(|(id, _)| {
                let why = format!("VM {id} has this name, too; names may repeat, and confuse.");
                obstacle(ObstacleCode::VmName, Severity::Decide, name, why, &["go on", "choose another name"])
            })
            .collect()
    }

    fn paths(&self) -> Found {
        let block = |path: &str, why: &str| {
            obstacle(ObstacleCode::Paths, Severity::Block, path, why.to_owned(), &["choose another path"])
        };
        let mut found = Vec::new();
        if !is_absolute(&self.wanted.data_root) {
            found.push(block(&self.wanted.data_root, "The directory of the VM is not an absolute path."));
        }
        for (at, disk) in self.wanted.disks.iter().enumerate() {
            if !is_absolute(&disk.path) {
                found.push(block(&disk.path, "The path is not absolute."));
            }
            if self.wanted.disks[..at].iter().any(|other| same_path(&other.path, &disk.path)) {
                found.push(block(&disk.path, "Two disks would have the same file."));
            }
        }
        found
    }

    fn disk_files(&self) -> Found {
        let block = |path: &str, why: &str, option| {
            obstacle(ObstacleCode::DiskFiles, Severity::Block, path, why.to_owned(), &[option])
        };
        let mut found = Vec::new();
        for disk in &self.wanted.disks {
            let slot = crate::slot_part(&disk.instance_id);
            let known = &self.former.definition.disks;
            if !known.iter().any(|known| crate::slot_part(&known.instance_id).eq_ignore_ascii_case(slot)) {
                found.push(block(&disk.path, "The VM never had this disk.", "name a disk of the VM"));
            }
            match (self.host.present.contains(&disk.path), disk.needs_bytes) {
                (false, None) => found.push(block(&disk.path, "The file is not there.", "restore the disk first")),
                (true, Some(_)) => {
                    found.push(block(&disk.path, "A file with this name is there already.", "choose another path"));
                }
                _ => {}
            }
        }
        found
    }

    fn space(&self) -> Found {
        let mut needs: BTreeMap<String, u64> = BTreeMap::new();
        for disk in &self.wanted.disks {
            let sum = needs.entry(volume_of(&disk.path)).or_default();
            *sum = sum.saturating_add(disk.needs_bytes.unwrap_or(0));
        }
        let mut found = Vec::new();
        for (volume, bytes) in needs.into_iter().filter(|(_, bytes)| *bytes > 0) {
            match self.host.free_bytes.get(&volume) {
                Some(free) if *free >= bytes => {}
                Some(free) => {
                    let why = format!("The disks need {bytes} bytes, and {free} are free.");
                    let options = ["make room", "choose another volume", "restore fewer disks"];
                    found.push(obstacle(ObstacleCode::Space, Severity::Block, &volume, why, &options));
                }
                None => {
                    let why = "It is not known how much is free there.".to_owned();
                    found.push(obstacle(ObstacleCode::Space, Severity::Decide, &volume, why, &["go on"]));
                }
            }
        }
        found
    }

    fn disks_left_out(&self) -> Found {
        let left_out = |path: &str, why: String| {
            obstacle(ObstacleCode::DisksLeftOut, Severity::Decide, path, why, &["go on without it"])
        };
        let disks = self.former.definition.disks.iter();
        disks
            .filter(|disk| self.wanted.disk_for(&disk.instance_id).is_none())
            .map(|disk| {
                let slot = disk.slot.as_deref().unwrap_or("an unknown place");
                let why = match disk.role.as_str() {
                    "pass-through" => format!("The pass-through disk at {slot} was never backed up."),
                    "shared" => format!("The shared disk at {slot} was never backed up."),
                    _ => format!("The disk at {slot} is not restored."),
                };
                left_out(&disk.path, why)
            })
            .collect()
    }

    fn devices(&self) -> Found {
        let mut found = Vec::new();
        for (class, what) in [(FIBRE_CHANNEL, "fibre channel adapter"), (ASSIGNED_DEVICE, "assigned device")] {
            for device in self.former.of_class(class) {
                let (why, options): (_, &[&'static str]) = match self.way {
                    Way::Import => (
                        format!("The {what} has to exist on this host under the same name, or the check fails."),
                        &["go on", "build from settings"],
                    ),
                    Way::Build => (format!("The {what} is left out."), &["go on"]),
                };
                found.push(obstacle(ObstacleCode::Devices, Severity::Decide, &name_of(device), why, options));
            }
        }
        for drive in self.former.of_class(DEVICES).filter(|drive| is(drive, DRIVE, PHYSICAL_DISK)) {
            let why = "A physical disk of the former host is not attached again.".to_owned();
            let on = host_resource(drive).unwrap_or_default();
            found.push(obstacle(ObstacleCode::Devices, Severity::Decide, on, why, &["go on without it"]));
        }
        found
    }

    fn images(&self) -> Found {
        let media = self.former.of_class(MEDIA).filter(|medium| is(medium, MEDIUM, DVD_MEDIUM));
        let missing =
            media.filter_map(host_resource).filter(|path| !path.is_empty() && !self.host.present.contains(*path));
        missing
            .map(|path| {
                let why = "The image is not on this host; its drive will be empty.".to_owned();
                obstacle(ObstacleCode::Images, Severity::Decide, path, why, &["go on", "copy the image here"])
            })
            .collect()
    }

    fn switches(&self) -> Found {
        let mut found = Vec::new();
        for adapter in self.former.adapters() {
            let name = name_of(adapter);
            let connection = self.former.connection_of(adapter);
            let former = &self.former.definition.host.switches;
            let decided = decide(&name, connection, &self.wanted.network, former, &self.host.switches);
            if let Connection::Open(Some(warning)) = decided {
                let (why, options) = (warning.to_string(), ["go on unconnected", "choose a switch"]);
                found.push(obstacle(ObstacleCode::Switches, Severity::Decide, &name, why, &options));
            }
        }
        found
    }

    fn mac_addresses(&self) -> Found {
        if self.wanted.mac == MacChoice::New {
            return Vec::new();
        }
        let mut found = Vec::new();
        for adapter in self.former.adapters() {
            let address = adapter.get("Address").as_str().unwrap_or_default();
            if address.is_empty() || address.bytes().all(|digit| digit == b'0') {
                continue;
            }
            let users = self.host.addresses.iter().filter(|(used, _)| used.eq_ignore_ascii_case(address));
            // Checkpoints hold adapters, too; only those of VMs are in use.
            let vms =
                self.host.vms.iter().filter(|(id, _)| users.clone().any(|(_, owner)| owner.eq_ignore_ascii_case(id)));
            for (id, name) in vms {
                let original = &self.former.definition.summary.vm_id;
                if id.eq_ignore_ascii_case(original) && self.wanted.identity == Identity::Keep {
                    continue; // the original, which the id is about
                }
                let why = format!("VM {name:?} has this address, too.");
                let options = ["give new addresses", "leave it unconnected", "go on"];
                found.push(obstacle(ObstacleCode::MacAddresses, Severity::Decide, address, why, &options));
            }
        }
        found
    }

    fn memory(&self) -> Found {
        let start = self.wanted.memory_mib.or(self.former.definition.summary.memory_mib);
        let start = start.or_else(|| self.former.of_class(MEMORY).next()?.get("VirtualQuantity").as_u64());
        match (start, self.host.memory_mib) {
            (Some(start), Some(total)) if start > total => {
                let why = format!("The VM starts with {start} MiB, and the host has {total}.");
                let on = start.to_string();
                vec![obstacle(ObstacleCode::Memory, Severity::Block, &on, why, &["give it less memory"])]
            }
            _ => Vec::new(),
        }
    }

    fn processors(&self) -> Found {
        let count = self.wanted.processors.or(self.former.definition.summary.processors);
        let count = count.or_else(|| self.former.of_class(PROCESSORS).next()?.get("VirtualQuantity").as_u64());
        match (count, self.host.logical_processors) {
            (Some(count), Some(total)) if count > total => {
                let why = format!("The VM has {count} processors, and the host has {total}.");
                let on = count.to_string();
                vec![obstacle(ObstacleCode::Processors, Severity::Block, &on, why, &["give it fewer processors"])]
            }
            _ => Vec::new(),
        }
    }

    fn saved_state(&self) -> Found {
        let is_saved = self.former.system.get("IsSaved").as_bool() == Some(true);
        let (was, is) = (&self.former.definition.host.processor_vendor, &self.host.processor_vendor);
        if self.way == Way::Build || !is_saved || (was == is && was.is_some()) {
            return Vec::new();
        }
        let why = format!(
            "The saved state was made on processors of {}, this host has {}.",
            was.as_deref().unwrap_or("an unknown maker"),
            is.as_deref().unwrap_or("unknown ones")
        );
        vec![obstacle(ObstacleCode::SavedState, Severity::Decide, &self.wanted.name, why, &["drop the saved state"])]
    }

    fn secure_boot(&self) -> Found {
        let system = &self.former.system;
        let template = system.get("SecureBootTemplateId").as_str().unwrap_or_default();
        let is_on = system.get("SecureBootEnabled").as_bool() == Some(true);
        if !is_on || template.is_empty() || KNOWN_TEMPLATES.iter().any(|known| known.eq_ignore_ascii_case(template)) {
            return Vec::new();
        }
        let why =
            "The Secure Boot template is not one that every host has; without it the guest does not boot.".to_owned();
        let options = ["go on", "switch Secure Boot off", "choose another template"];
        vec![obstacle(ObstacleCode::SecureBoot, Severity::Decide, template, why, &options)]
    }

    fn tpm(&self) -> Found {
        let summary = &self.former.definition.summary;
        let former = self.former.definition.host.name.as_deref().unwrap_or_default();
        let is_here = !former.is_empty() && former.eq_ignore_ascii_case(&self.host.name);
        let one = |why: String, options: &[&'static str]| {
            vec![obstacle(ObstacleCode::Tpm, Severity::Decide, &self.wanted.name, why, options)]
        };
        match (summary.tpm, self.way) {
            (false, _) => Vec::new(),
            (true, Way::Import) if is_here => Vec::new(),
            (true, Way::Import) => one(
                format!("The virtual TPM was made on {former:?}; this host may be unable to open it."),
                &["import the guardian certificates of that host", "build from settings, with an empty TPM"],
            ),
            (true, Way::Build) if self.wanted.tpm == TpmChoice::SameKeyProtector && is_here => one(
                "The virtual TPM will be empty; BitLocker asks for its recovery key.".into(),
                &["go on", "import instead"],
            ),
            (true, Way::Build) => one(
                "The content of the virtual TPM is lost; BitLocker asks for its recovery key.".into(),
                &["go on", "import instead"],
            ),
        }
    }

    fn shielding(&self) -> Found {
        let security = self.former.of_class(crate::inventory::SECURITY).next();
        if security.is_none_or(|security| security.get("ShieldingRequested").as_bool() != Some(true)) {
            return Vec::new();
        }
        let (severity, why, options): (_, _, &[&'static str]) = match self.way {
            Way::Import => {
                (Severity::Decide, "A shielded VM starts only in the guarded fabric it was made in.", &["go on"])
            }
            Way::Build => (Severity::Block, "A shielded VM cannot be built from settings.", &["import instead"]),
        };
        vec![obstacle(ObstacleCode::Shielding, severity, &self.wanted.name, why.to_owned(), options)]
    }
}

fn obstacle(code: ObstacleCode, severity: Severity, on: &str, why: String, options: &[&'static str]) -> Obstacle {
    Obstacle { code, severity, on: on.to_owned(), why, options: options.to_vec() }
}

#[cfg(test)]
mod tests;

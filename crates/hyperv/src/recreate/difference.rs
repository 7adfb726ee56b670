//! A re-created VM against its stored definition: what differs, and why.

use std::collections::BTreeMap;
use std::fmt;

use crate::definition::Setting;
use crate::{Definition, slot_part};

use super::firmware::boot_source;
use super::{MacChoice, Recreation, Way};

/// One setting that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which setting: `memory: VirtualQuantity`, `disk SCSI 0:0: path`.
    pub item: String,
    /// The stored value; `None` if there was none.
    pub was: Option<String>,
    /// The value now; `None` if there is none.
    pub is: Option<String>,
    /// Why.
    pub why: Why,
}

/// Why a setting differs. Its text is a clause for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// It was asked for.
    Wanted,
    /// The host gives it to every VM anew.
    GivenByHost,
    /// This way of making a VM cannot set it.
    NotBuilt,
    /// Nothing explains it: look at it before the VM is used.
    Unexplained,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wanted => "as asked for",
            Self::GivenByHost => "the host gives it anew",
            Self::NotBuilt => "not set when a VM is built from settings",
            Self::Unexplained => "unexpected; look at it before the VM is used",
        })
    }
}

/// Properties that tell which object an instance is, or what the host did with it; never a setting.
const IDENTITY: &[&str] = &[
    "InstanceID",
    "ConfigurationID",
    "VirtualSystemIdentifier",
    "VirtualSystemType",
    "ConfigurationFile",
    "GuestStateFile",
    "CreationTime",
    "Parent",
    "IsSaved",
    "IsAutomaticSnapshot",
    "Caption",
    "Description",
    "ElementName",
    "BootSourceOrder",
    "Version",
];

/// Directories, which are as the caller said.
const ROOTS: &[&str] = &[
    "ConfigurationDataRoot",
    "SnapshotDataRoot",
    "SuspendDataRoot",
    "SwapFileDataRoot",
    "LogDataRoot",
    "GuestStateDataRoot",
];

/// Settings of which a VM has one, with the name that people know.
const SINGLE: &[(&str, &str)] = &[
    ("Msvm_ProcessorSettingData", "processors"),
    ("Msvm_MemorySettingData", "memory"),
    ("Msvm_SecuritySettingData", "security"),
    ("Msvm_VssComponentSettingData", "integration: backup"),
    ("Msvm_KvpExchangeComponentSettingData", "integration: data exchange"),
    ("Msvm_HeartbeatComponentSettingData", "integration: heartbeat"),
    ("Msvm_ShutdownComponentSettingData", "integration: shutdown"),
    ("Msvm_TimeSyncComponentSettingData", "integration: time"),
    ("Msvm_GuestServiceInterfaceComponentSettingData", "integration: guest services"),
];

/// Settings that are compared one by one elsewhere in this file.
const COMPARED: &[&str] = &[
    "Msvm_StorageAllocationSettingData",
    "Msvm_SyntheticEthernetPortSettingData",
    "Msvm_EmulatedEthernetPortSettingData",
    "Msvm_EthernetPortAllocationSettingData",
];

impl Definition {
    /// What differs in a VM that was made from this definition, by `way`, as `wanted`. `now` is the VM's own definition,
    /// captured after it was made. Sorted: what is unexplained first.
    pub fn differences(&self, now: &Definition, wanted: &Recreation, way: Way) -> Vec<Difference> {
        let mut report = Report { wanted, way, found: Vec::new() };
        report.system(self, now);
        report.disks(self, now);
        report.adapters(self, now);
        for (class, name) in SINGLE {
            if let (Some(was), Some(is)) = (one(self, class), one(now, class)) {
                report.properties(name, was, is);
            }
        }
        report.counts(self, now);
        let mut found = report.found;
        found.sort_by_key(|difference| (difference.why != Why::Unexplained, difference.item.clone()));
        found
    }
}

struct Report<'a> {
    wanted: &'a Recreation,
    way: Way,
    found: Vec<Difference>,
}

impl Report<'_> {
    fn compare(&mut self, item: String, was: Option<String>, is: Option<String>, why: Why) {
        if was != is {
            self.found.push(Difference { item, was, is, why });
        }
    }

    fn system(&mut self, was: &Definition, now: &Definition) {
        let text = |text: &str| Some(text.to_owned());
        let id_why = match (self.wanted.identity, self.way) {
            (super::Identity::New, _) => Why::Wanted,
            (_, Way::Build) => Why::NotBuilt,
            _ => Why::Unexplained,
        };
        self.compare("id".into(), text(&was.summary.vm_id), text(&now.summary.vm_id), id_why);
        let name_why = if now.summary.name == self.wanted.name { Why::Wanted } else { Why::Unexplained };
        self.compare("name".into(), text(&was.summary.name), text(&now.summary.name), name_why);
        let (version, version_now) = (&was.summary.configuration_version, &now.summary.configuration_version);
        let version_why = if self.way == Way::Build { Why::GivenByHost } else { Why::Unexplained };
        self.compare("configuration version".into(), text(version), text(version_now), version_why);
        self.properties("system", &was.system, &now.system);
        let left_out = was.disks.iter().any(|disk| self.wanted.disk_for(&disk.instance_id).is_none());
        let order_why = if left_out { Why::Wanted } else { Why::Unexplained };
        self.compare("boot order".into(), boot_order(was), boot_order(now), order_why);
    }

    /// The properties of two instances that are the same thing before and now.
    fn properties(&mut self, name: &str, was: &Setting, is: &Setting) {
        let names: std::collections::BTreeSet<&String> = was.properties.keys().chain(is.properties.keys()).collect();
        for property in names {
            if IDENTITY.contains(&property.as_str()) {
                continue;
            }
            let why = self.why_property(name, property);
            self.compare(format!("{name}: {property}"), value(was, property), value(is, property), why);
        }
    }

    fn why_property(&self, name: &str, property: &str) -> Why {
        match (name, property) {
            ("system", property) if ROOTS.contains(&property) => Why::Wanted,
            ("system", "AutomaticStartupAction") if !self.wanted.keep_automatic_start => Why::Wanted,
            ("processors", "VirtualQuantity") if self.wanted.processors.is_some() => Why::Wanted,
            ("memory", "VirtualQuantity" | "Reservation" | "Limit") if self.wanted.memory_mib.is_some() => Why::Wanted,
            ("security", "TpmEnabled" | "EncryptStateAndVmMigrationTraffic" | "KsdEnabled")
                if self.way == Way::Build =>
            {
                Why::NotBuilt
            }
            _ => Why::Unexplained,
        }
    }

    fn disks(&mut self, was: &Definition, now: &Definition) {
        let slot_of = |disk: &crate::DefinedDisk| disk.slot.clone().unwrap_or_else(|| disk.instance_id.clone());
        let mut left: BTreeMap<String, &crate::DefinedDisk> =
            now.disks.iter().map(|disk| (slot_of(disk), disk)).collect();
        for disk in &was.disks {
            let slot = slot_of(disk);
            let item = |what: &str| format!("disk {slot}: {what}");
            let restored = self.wanted.disk_for(&disk.instance_id);
            let Some(is) = left.remove(&slot) else {
                let why = if restored.is_none() { Why::Wanted } else { Why::Unexplained };
                self.compare(item("path"), Some(disk.path.clone()), None, why);
                continue;
            };
            let as_restored = restored.is_some_and(|restored| crate::names::same_path(&restored.path, &is.path));
            let why = if as_restored { Why::Wanted } else { Why::Unexplained };
            self.compare(item("path"), Some(disk.path.clone()), Some(is.path.clone()), why);
            if disk.virtual_disk_id.is_some() {
                // A copy beside its original may have got an identity of its own.
                let why = if self.wanted.identity == super::Identity::New { Why::Wanted } else { Why::Unexplained };
                self.compare(item("identity"), disk.virtual_disk_id.clone(), is.virtual_disk_id.clone(), why);
            }
        }
        for (slot, disk) in left {
            self.compare(format!("disk {slot}: path"), None, Some(disk.path.clone()), Why::Unexplained);
        }
    }

    fn adapters(&mut self, was: &Definition, now: &Definition) {
        let (before, after) = (adapters(was), adapters(now));
        for (name, adapter) in &before {
            let Some(is) = after.get(name) else {
                self.compare(format!("network adapter {name}"), Some("there".into()), None, Why::Unexplained);
                continue;
            };
            let item = |what: &str| format!("network adapter {name}: {what}");
            let address_why = match (self.wanted.mac, value(adapter.setting, "StaticMacAddress").as_deref()) {
                (MacChoice::New, _) => Why::Wanted,
                (MacChoice::Keep, Some("false")) => Why::GivenByHost,
                _ => Why::Unexplained,
            };
            for property in ["Address", "StaticMacAddress"] {
                let (was, is) = (value(adapter.setting, property), value(is.setting, property));
                self.compare(item(property), was, is, address_why);
            }
            for property in ["ClusterMonitored", "DeviceNamingEnabled"] {
                let (was, is) = (value(adapter.setting, property), value(is.setting, property));
                self.compare(item(property), was, is, Why::Unexplained);
            }
            // An adapter that is not connected was warned about, or asked for, when the VM was made.
            self.compare(item("switch"), adapter.switch.clone(), is.switch.clone(), Why::Wanted);
        }
        for name in after.keys().filter(|name| !before.contains_key(*name)) {
            self.compare(format!("network adapter {name}"), None, Some("there".into()), Why::Unexplained);
        }
    }

    /// How many of the other devices there are.
    fn counts(&mut self, was: &Definition, now: &Definition) {
        let (before, after) = (counts(was), counts(now));
        let kinds: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        for kind in kinds {
            let count = |counts: &BTreeMap<String, usize>| counts.get(kind).map(usize::to_string);
            let is_drive = kind.ends_with(" Drive");
            let why = match self.way {
                // Drives go with the disks that were left out, which are reported as disks.
                _ if is_drive => Why::Wanted,
                Way::Build => Why::NotBuilt,
                Way::Import => Why::Unexplained,
            };
            self.compare(format!("devices: {kind}"), count(&before), count(&after), why);
        }
    }
}

struct Adapter<'a> {
    setting: &'a Setting,
    /// Name of its switch; `None` if it is not connected.
    switch: Option<String>,
}

/// The network adapters by name; those of the same name are numbered.
fn adapters(definition: &Definition) -> BTreeMap<String, Adapter<'_>> {
    let mut adapters = BTreeMap::new();
    for setting in &definition.settings {
        if !matches!(
            setting.class.as_str(),
            "Msvm_SyntheticEthernetPortSettingData" | "Msvm_EmulatedEthernetPortSettingData"
        ) {
            continue;
        }
        let name = value(setting, "ElementName").unwrap_or_default();
        let same = (1..).map(|number| if number == 1 { name.clone() } else { format!("{name} ({number})") });
        let name = same.into_iter().find(|name| !adapters.contains_key(name)).expect("numbers do not end");
        adapters.insert(name, Adapter { setting, switch: switch_of(definition, setting) });
    }
    adapters
}

fn switch_of(definition: &Definition, adapter: &Setting) -> Option<String> {
    let prefix = format!(r"{}\", value(adapter, "InstanceID")?).to_lowercase();
    let connection = definition.settings.iter().find(|setting| {
        setting.class == "Msvm_EthernetPortAllocationSettingData"
            && value(setting, "InstanceID").is_some_and(|id| id.to_lowercase().starts_with(&prefix))
    })?;
    if value(connection, "EnabledState").as_deref() != Some("2") {
        return None;
    }
    let resource = value(connection, "HostResource").unwrap_or_default().to_lowercase();
    let named = definition.host.switches.iter().find(|(id, _)| resource.contains(&id.to_lowercase()));
    named.map(|(_, name)| name.clone()).or_else(|| value(connection, "LastKnownSwitchName"))
}

/// The boot order of a generation 2 VM in words that do not depend on the identities of its devices.
fn boot_order(definition: &Definition) -> Option<String> {
    let entries = definition.system.properties.get("BootSourceOrder")?.value.as_array()?;
    let named = entries.iter().filter_map(|entry| entry.as_str()).map(|entry| {
        let source = boot_source(entry);
        let device = slot_part(source.strip_suffix(r"\b").unwrap_or(&source));
        let disk = definition.disks.iter().find(|disk| {
            let medium = slot_part(&disk.instance_id).to_lowercase();
            medium.strip_suffix(r"\l").is_some_and(|place| device.strip_suffix(r"\d") == Some(place))
        });
        let adapter = || {
            let id = |adapter: &Adapter<'_>| value(adapter.setting, "InstanceID").unwrap_or_default().to_lowercase();
            let mut all = adapters(definition).into_iter();
            all.find(|(_, adapter)| slot_part(&id(adapter)) == device).map(|(name, _)| name)
        };
        let slot = disk.and_then(|disk| disk.slot.clone());
        slot.or_else(adapter).unwrap_or_else(|| "another device".to_owned())
    });
    Some(named.collect::<Vec<_>>().join(", "))
}

fn one<'a>(definition: &'a Definition, class: &str) -> Option<&'a Setting> {
    definition.settings.iter().find(|setting| setting.class == class)
}

fn counts(definition: &Definition) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for setting in &definition.settings {
        let is_single = SINGLE.iter().any(|(class, _)| *class == setting.class);
        if !is_single && !COMPARED.contains(&setting.class.as_str()) {
            let kind = value(setting, "ResourceSubType").filter(|kind| !kind.is_empty());
            *counts.entry(kind.unwrap_or_else(|| setting.class.clone())).or_default() += 1;
        }
    }
    counts
}

fn value(setting: &Setting, property: &str) -> Option<String> {
    let value = &setting.properties.get(property)?.value;
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

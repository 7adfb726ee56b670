//! Adding, modifying and removing the devices of a configuration.
//!
//! [`plan`] decides: it gives the configuration as it would be, or why not. So a method can refuse at once what its job
//! would have to refuse, and a planned and a registered VM go through the same checks.

use crate::configuration::{Configuration, Device, DiskSlot, RASD, SASD};
use crate::disks;
use crate::error::LabError;
use crate::failure::{FAILED, Failure, IN_USE, INVALID_PARAMETER, INVALID_STATE};
use crate::host::Tx;
use crate::object_path::parse_path;
use crate::objects;
use crate::paths::WinPath;
use crate::properties::Properties;
use crate::schema::schema;
use crate::state::{Change, NewSetting, Object, Power, Vm, new_guid};
use crate::templates::{self, Template};

const IDE: u64 = 5;
const SCSI: u64 = 6;
/// Where a feature setting of a caller keeps the path of the connection that it is for.
pub(crate) const CONNECTION_OF_FEATURE: &str = "Caption";
const FEATURE: &str = "Msvm_EthernetSwitchPortFeatureSettingData";
const HARD_DISK: &str = "Microsoft:Hyper-V:Virtual Hard Disk";
const ISO: &str = "Microsoft:Hyper-V:Virtual CD/DVD Disk";
const DISK_DRIVE: &str = "Microsoft:Hyper-V:Synthetic Disk Drive";
const PHYSICAL_DRIVE: &str = "Microsoft:Hyper-V:Physical Disk Drive";
const DVD_DRIVE: &str = "Microsoft:Hyper-V:Synthetic DVD Drive";

/// What a change leads to.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) configuration: Configuration,
    /// The settings that were added or modified, in the caller's order.
    pub(crate) objects: Vec<Object>,
    /// Disk files that the VM is given access to.
    pub(crate) granted: Vec<WinPath>,
}

/// Decides on a change of the settings with this id.
pub(crate) fn plan(tx: &Tx<'_>, configuration: &str, change: &Change) -> Result<Result<Plan, Failure>, LabError> {
    let Some(vm) = tx.machine(configuration) else {
        return Ok(refuse("only the settings of a VM can be changed, not those of a checkpoint"));
    };
    let mut work = Work {
        tx,
        vm,
        is_running: tx.planned(&vm.id).is_none() && matches!(vm.power, Power::Running | Power::Paused),
        plan: Plan { configuration: vm.active.clone(), objects: Vec::new(), granted: Vec::new() },
    };
    let outcome = match change {
        Change::Add(settings) => work.each(settings, Work::add)?,
        Change::Modify(settings) => work.each(settings, Work::modify)?,
        Change::Remove(ids) => work.each(ids, |work, id| Ok(work.remove(id)))?,
    };
    work.plan.configuration.sort_disks();
    Ok(outcome.map(|()| work.plan))
}

type Outcome = Result<(), Failure>;

fn refuse<T>(why: &str) -> Result<T, Failure> {
    Err(Failure::new(INVALID_PARAMETER, why))
}

struct Work<'a> {
    tx: &'a Tx<'a>,
    vm: &'a Vm,
    is_running: bool,
    plan: Plan,
}

impl Work<'_> {
    fn each<T>(
        &mut self,
        items: &[T],
        one: impl Fn(&mut Self, &T) -> Result<Outcome, LabError>,
    ) -> Result<Outcome, LabError> {
        for item in items {
            if let Err(failure) = one(self, item)? {
                return Ok(Err(failure));
            }
        }
        Ok(Ok(()))
    }

    fn full_id(&self, id: &str) -> String {
        format!(r"Microsoft:{}\{id}", self.vm.id)
    }

    fn done(&mut self, class: &str, id: &str) {
        let instance_id = self.full_id(id);
        self.plan.objects.push(Object::Setting { class: class.to_owned(), instance_id });
    }

    /// The device that a path names, when it is one of this configuration.
    fn device_at(&self, path: &str) -> Option<&Device> {
        let parsed = parse_path(path)?;
        let [(key, value)] = parsed.keys.as_slice() else { return None };
        let id = value.strip_prefix(&format!(r"Microsoft:{}\", self.vm.id))?;
        let device = self.plan.configuration.device(id)?;
        (key.eq_ignore_ascii_case("InstanceID") && parsed.class.eq_ignore_ascii_case(&device.class)).then_some(device)
    }

    fn add(&mut self, setting: &NewSetting) -> Result<Outcome, LabError> {
        let given = &setting.properties;
        if schema().own(&setting.class).is_a(FEATURE) {
            return Ok(self.add_feature(setting));
        }
        let template = templates::find(given.text("ResourceSubType")).filter(|known| known.class == setting.class);
        let Some(template) = template else {
            return Ok(refuse(&format!("{} of sub type {:?}", setting.class, given.text("ResourceSubType"))));
        };
        let mut properties = template.properties();
        properties.extend(given);
        if properties.number("ResourceType") != template.properties().number("ResourceType") {
            return Ok(refuse("resource type and sub type do not belong together"));
        }
        for own in ["InstanceID", "Parent"] {
            properties.remove(own);
        }
        match (template.class.as_str(), template.sub_type.as_str()) {
            (RASD, "Microsoft:Hyper-V:Synthetic SCSI Controller") => Ok(self.add_controller(template, properties)),
            (RASD, DISK_DRIVE | PHYSICAL_DRIVE | DVD_DRIVE) => Ok(self.add_drive(template, given, properties)),
            (SASD, HARD_DISK | ISO) => self.add_medium(template, given, properties),
            (class, _) if class.ends_with("EthernetPortSettingData") => {
                Ok(self.add_adapter(template, given, properties))
            }
            ("Msvm_EthernetPortAllocationSettingData", _) => Ok(self.add_connection(template, given, properties)),
            ("Msvm_SyntheticFcPortSettingData", _) => {
                self.insert(template, &new_guid(), None, properties);
                Ok(Ok(()))
            }
            _ => Ok(refuse(&format!("{} is there already, once and for all", template.sub_type))),
        }
    }

    fn insert(&mut self, template: &Template, id: &str, parent: Option<&str>, properties: Properties) {
        self.plan.configuration.devices.push(Device {
            class: template.class.clone(),
            id: id.to_owned(),
            parent: parent.map(str::to_owned),
            properties,
        });
        self.done(&template.class, id);
    }

    fn add_controller(&mut self, template: &Template, mut properties: Properties) -> Outcome {
        let is_scsi = |device: &&Device| device.properties.number("ResourceType") == SCSI;
        if self.plan.configuration.devices.iter().filter(is_scsi).count() >= 4 {
            return refuse("a VM has at most four SCSI controllers");
        }
        let guid = match braced_guid(properties.only_text("VirtualSystemIdentifiers")) {
            Some(guid) if self.plan.configuration.device(&format!(r"{guid}\0")).is_none() => guid,
            _ => new_guid(),
        };
        properties.put("VirtualSystemIdentifiers", vec![format!("{{{guid}}}")]);
        self.insert(template, &format!(r"{guid}\0"), None, properties);
        Ok(())
    }

    fn add_drive(&mut self, template: &Template, given: &Properties, properties: Properties) -> Outcome {
        let Some(controller) = self.device_at(given.text("Parent")) else {
            return refuse("the drive has no controller");
        };
        let locations = match controller.properties.number("ResourceType") {
            IDE if self.is_running => return Err(Failure::new(INVALID_STATE, "IDE takes no drives while the VM runs")),
            IDE => 2,
            SCSI => 64,
            _ => return refuse("the parent of a drive is a controller"),
        };
        let controller = controller.id.clone();
        let location = given.text("AddressOnParent").parse::<u32>().ok().filter(|&location| location < locations);
        let Some(location) = location else { return refuse("the controller has no such location") };
        let id = format!(r"{controller}\{location}\D");
        if self.plan.configuration.device(&id).is_some() {
            return refuse("the location is taken");
        }
        if template.sub_type == PHYSICAL_DRIVE {
            let disk = given.only_text("HostResource");
            if !objects::names_an_object(self.tx, disk) {
                return refuse("the physical disk does not exist");
            }
            let everywhere = self.tx.machines().map(|vm| &vm.active).chain([&self.plan.configuration]);
            let mut drives = everywhere.flat_map(|settings| &settings.devices);
            if drives.any(|drive| drive.properties.only_text("HostResource").eq_ignore_ascii_case(disk)) {
                return Err(Failure::new(IN_USE, "the physical disk is attached elsewhere"));
            }
        }
        self.insert(template, &id, Some(&controller), properties);
        Ok(())
    }

    fn add_medium(
        &mut self,
        template: &Template,
        given: &Properties,
        mut properties: Properties,
    ) -> Result<Outcome, LabError> {
        let drive = self.device_at(given.text("Parent")).map(|drive| (drive.id.clone(), drive.properties.clone()));
        let Some((drive_id, drive)) = drive else { return Ok(refuse("the medium has no drive")) };
        let wanted = if template.sub_type == HARD_DISK { DISK_DRIVE } else { DVD_DRIVE };
        if drive.text("ResourceSubType") != wanted {
            return Ok(refuse("the drive does not take such a medium"));
        }
        let place = drive_id.trim_end_matches(r"\D").to_owned();
        let medium = format!(r"{place}\L");
        let settings = &self.plan.configuration;
        if settings.device(&medium).is_some() || settings.disks.iter().any(|disk| disk.place == place) {
            return Ok(refuse("the drive holds a medium already"));
        }
        let file = WinPath::new(properties.only_text("HostResource"));
        if template.sub_type == ISO {
            if !file.in_sandbox(self.tx.store.root()).is_some_and(|file| file.is_file()) {
                return Ok(refuse("the image file does not exist"));
            }
            self.insert(template, &medium, Some(&drive_id), properties);
            return Ok(Ok(()));
        }
        if let Err(failure) = self.check_disk_file(&file, None, properties.flag("PersistentReservationsSupported"))? {
            return Ok(Err(failure));
        }
        properties.remove("HostResource");
        let stem = stem_of(&file);
        self.plan.granted.push(file.clone());
        self.plan.configuration.disks.push(DiskSlot { place, file, stem, properties });
        self.done(SASD, &medium);
        Ok(Ok(()))
    }

    /// Whether a file can be the disk of a drive: it exists, it is a disk, and no other drive has it.
    fn check_disk_file(&self, file: &WinPath, place: Option<&str>, shared: bool) -> Result<Outcome, LabError> {
        if !self.tx.store.has_file(file) {
            return Ok(refuse(&format!("{} does not exist", file.as_str())));
        }
        if let Err(e) = disks::open_chain(self.tx.store, file)? {
            return Ok(Err(Failure::new(FAILED, format!("{}: {e}. (0xC03A0004)", file.as_str()))));
        }
        let others = self.tx.machines().filter(|vm| vm.id != self.vm.id).flat_map(|vm| &vm.active.disks);
        let own = self.plan.configuration.disks.iter().filter(|disk| Some(disk.place.as_str()) != place);
        let taken = others.chain(own).any(|disk| disk.file == *file && !(shared && disk.is_shared()));
        if taken {
            return Ok(Err(Failure::new(IN_USE, format!("{} is attached elsewhere", file.as_str()))));
        }
        Ok(Ok(()))
    }

    fn add_adapter(&mut self, template: &Template, given: &Properties, mut properties: Properties) -> Outcome {
        let is_legacy = template.class == "Msvm_EmulatedEthernetPortSettingData";
        if is_legacy && self.vm.generation != 1 {
            return refuse("generation 2 has no legacy network adapters");
        }
        if self.is_running && (is_legacy || self.vm.generation == 1) {
            return Err(Failure::new(INVALID_STATE, "network adapters cannot be added while the VM runs"));
        }
        check_adapter(&properties)?;
        let id = match given.only_text("VirtualSystemIdentifiers") {
            "" => new_guid(),
            text => match braced_guid(text) {
                Some(guid) if self.plan.configuration.device(&guid).is_none() => guid,
                _ => return refuse("VirtualSystemIdentifiers holds a new GUID in braces"),
            },
        };
        properties.put("VirtualSystemIdentifiers", vec![format!("{{{id}}}")]);
        self.insert(template, &id, None, properties);
        Ok(())
    }

    fn add_connection(&mut self, template: &Template, given: &Properties, mut properties: Properties) -> Outcome {
        let adapter = self.device_at(given.text("Parent"));
        let adapter = adapter.filter(|adapter| adapter.class.ends_with("EthernetPortSettingData"));
        let Some(adapter) = adapter.map(|adapter| adapter.id.clone()) else {
            return refuse("the parent of a connection is a network adapter");
        };
        let id = format!(r"{adapter}\C");
        if self.plan.configuration.device(&id).is_some() {
            return refuse("the network adapter has a connection already");
        }
        self.check_connection(None, &mut properties)?;
        self.insert(template, &id, Some(&adapter), properties);
        Ok(())
    }

    fn add_feature(&mut self, setting: &NewSetting) -> Outcome {
        let connection = self.device_at(setting.properties.text(CONNECTION_OF_FEATURE)).map(|device| device.id.clone());
        let Some(connection) = connection else { return refuse("the connection does not exist") };
        let devices = &self.plan.configuration.devices;
        if devices.iter().any(|device| device.class == setting.class && device.parent.as_ref() == Some(&connection)) {
            return refuse("the connection has such a feature already");
        }
        let mut properties = setting.properties.clone();
        for own in ["InstanceID", CONNECTION_OF_FEATURE] {
            properties.remove(own);
        }
        let id = format!(r"{connection}\{}", new_guid());
        let class = setting.class.clone();
        self.plan.configuration.devices.push(Device { class, id: id.clone(), parent: Some(connection), properties });
        self.done(&setting.class, &id);
        Ok(())
    }

    fn check_connection(&self, before: Option<&Properties>, properties: &mut Properties) -> Outcome {
        if !matches!(properties.number("EnabledState"), 2 | 3) {
            return refuse("a connection is enabled (2) or disabled (3)");
        }
        let switch = properties.only_text("HostResource").to_owned();
        // An imported connection may name a switch of another host, as long as nobody touches that.
        if switch.is_empty() || before.is_some_and(|before| before.same("HostResource", properties)) {
            return Ok(());
        }
        match objects::switch_name(self.tx, &switch) {
            Some(name) => properties.put("LastKnownSwitchName", name),
            None => return refuse("the virtual switch does not exist"),
        }
        Ok(())
    }

    fn modify(&mut self, setting: &NewSetting) -> Result<Outcome, LabError> {
        let given = &setting.properties;
        let Some(id) = given.text("InstanceID").strip_prefix(&format!(r"Microsoft:{}\", self.vm.id)) else {
            return Ok(refuse("InstanceID names no setting of this VM"));
        };
        if let Some(place) = id.strip_suffix(r"\L")
            && self.plan.configuration.disks.iter().any(|disk| disk.place.eq_ignore_ascii_case(place))
        {
            return self.modify_disk(place, setting);
        }
        let Some(index) = self.plan.configuration.devices.iter().position(|device| device.id.eq_ignore_ascii_case(id))
        else {
            return Ok(refuse("InstanceID names no setting of this VM"));
        };
        let before = self.plan.configuration.devices[index].clone();
        if before.class != setting.class {
            return Ok(refuse(&format!("{} is a {}", given.text("InstanceID"), before.class)));
        }
        if before.class == crate::configuration::SECURITY {
            return Ok(refuse("security settings are the security service's"));
        }
        if let Err(failure) = self.check_fixed(&before, given) {
            return Ok(Err(failure));
        }
        let mut after = before.properties.clone();
        after.extend(given);
        for own in ["InstanceID", "Parent"] {
            after.remove(own);
        }
        if after == before.properties {
            self.done(&before.class, &before.id);
            return Ok(Ok(()));
        }
        let is_hot = matches!(
            before.class.as_str(),
            "Msvm_EthernetPortAllocationSettingData" | "Msvm_SyntheticEthernetPortSettingData"
        ) || before.class.ends_with("ComponentSettingData")
            || before.properties.text("ResourceSubType") == ISO;
        if self.is_running && !is_hot {
            return Ok(Err(Failure::new(INVALID_STATE, "this cannot be changed while the VM runs")));
        }
        if let Err(failure) = self.check_modified(&before, &mut after) {
            return Ok(Err(failure));
        }
        self.plan.configuration.devices[index].properties = after;
        self.done(&before.class, &before.id);
        Ok(Ok(()))
    }

    /// What names a device, or says where it is, does not change; it may be given as it was read.
    fn check_fixed(&self, device: &Device, given: &Properties) -> Outcome {
        for name in ["ResourceType", "ResourceSubType", "AddressOnParent", "VirtualSystemIdentifiers"] {
            if given.has(name) && !given.same(name, &device.properties) {
                return refuse(&format!("{name} cannot be changed"));
            }
        }
        let parent = self.device_at(given.text("Parent")).map(|parent| parent.id.as_str());
        if given.has("Parent") && parent != device.parent.as_deref() {
            return refuse("Parent cannot be changed");
        }
        Ok(())
    }

    fn check_modified(&self, before: &Device, after: &mut Properties) -> Outcome {
        let quantity = after.number("VirtualQuantity");
        match before.class.as_str() {
            crate::configuration::PROCESSOR => {
                let limit = if self.tx.planned(&self.vm.id).is_some() { 2048 } else { self.tx.options.processors };
                if !(1..=limit).contains(&quantity) {
                    return refuse(&format!("{quantity} processors"));
                }
            }
            crate::configuration::MEMORY => {
                if quantity < 32 || !quantity.is_multiple_of(2) {
                    return refuse(&format!("{quantity} MB of memory"));
                }
                if after.flag("DynamicMemoryEnabled") {
                    let (least, most) = (after.number("Reservation"), after.number("Limit"));
                    if !(least <= quantity && quantity <= most) {
                        return refuse(&format!("{quantity} MB are not between {least} and {most}"));
                    }
                } else {
                    after.put("Reservation", quantity);
                    after.put("Limit", quantity);
                }
            }
            "Msvm_EthernetPortAllocationSettingData" => self.check_connection(Some(&before.properties), after)?,
            class if class.ends_with("EthernetPortSettingData") => check_adapter(after)?,
            class if class.ends_with("ComponentSettingData") && !matches!(after.number("EnabledState"), 2 | 3) => {
                return refuse("a component is offered (2) or not (3)");
            }
            _ if before.properties.text("ResourceSubType") == ISO => {
                let file = WinPath::new(after.only_text("HostResource"));
                if !file.in_sandbox(self.tx.store.root()).is_some_and(|file| file.is_file()) {
                    return refuse("the image file does not exist");
                }
            }
            _ if before.properties.text("ResourceSubType") == PHYSICAL_DRIVE
                && !objects::names_an_object(self.tx, after.only_text("HostResource")) =>
            {
                return refuse("the physical disk does not exist");
            }
            _ => {}
        }
        Ok(())
    }

    fn modify_disk(&mut self, place: &str, setting: &NewSetting) -> Result<Outcome, LabError> {
        let given = &setting.properties;
        let index = self.plan.configuration.disks.iter().position(|disk| disk.place.eq_ignore_ascii_case(place));
        let index = index.expect("the caller has just seen it");
        let before = self.plan.configuration.disks[index].clone();
        if setting.class != SASD {
            return Ok(refuse(&format!("{} is a {SASD}", given.text("InstanceID"))));
        }
        for name in ["ResourceType", "ResourceSubType"] {
            if given.has(name) && !given.same(name, &before.properties) {
                return Ok(refuse(&format!("{name} cannot be changed")));
            }
        }
        let drive = self.device_at(given.text("Parent")).map(|drive| drive.id.clone());
        if given.has("Parent") && drive != Some(format!(r"{}\D", before.place)) {
            return Ok(refuse("Parent cannot be changed"));
        }
        let mut after = before.properties.clone();
        after.extend(given);
        for own in ["InstanceID", "Parent", "HostResource"] {
            after.remove(own);
        }
        let file = match given.only_text("HostResource") {
            "" => before.file.clone(),
            path => WinPath::new(path),
        };
        let in_checkpoint = |place: &str| {
            let mut frozen = self.vm.checkpoints.iter().flat_map(|checkpoint| &checkpoint.config.disks);
            frozen.any(|disk| disk.place == place)
        };
        if file != before.file && (self.is_running || in_checkpoint(&before.place)) {
            return Ok(Err(Failure::new(INVALID_STATE, "the disk is in use, or part of a checkpoint")));
        }
        if let Err(failure) =
            self.check_disk_file(&file, Some(&before.place), after.flag("PersistentReservationsSupported"))?
        {
            return Ok(Err(failure));
        }
        let stem = if file == before.file { before.stem } else { stem_of(&file) };
        // Naming the file again is how access is repaired.
        self.plan.granted.push(file.clone());
        self.done(SASD, &format!(r"{}\L", before.place));
        self.plan.configuration.disks[index] = DiskSlot { place: before.place, file, stem, properties: after };
        Ok(Ok(()))
    }

    fn remove(&mut self, instance_id: &str) -> Outcome {
        let Some(id) = instance_id.strip_prefix(&format!(r"Microsoft:{}\", self.vm.id)) else {
            return refuse("the setting is not of this VM");
        };
        if let Some(place) = id.strip_suffix(r"\L")
            && let Some(index) = self.plan.configuration.disks.iter().position(|disk| disk.place == place)
        {
            self.check_removable(place)?;
            self.plan.configuration.disks.remove(index);
            return Ok(());
        }
        let Some(device) = self.plan.configuration.device(id).cloned() else {
            // It went with its parent.
            return Ok(());
        };
        let removable = [RASD, SASD, "Msvm_EthernetPortAllocationSettingData", "Msvm_SyntheticFcPortSettingData"];
        let is_adapter = device.class.ends_with("EthernetPortSettingData");
        if !(removable.contains(&device.class.as_str()) || is_adapter)
            || device.properties.number("ResourceType") == IDE
        {
            return refuse(&format!("{instance_id} cannot be removed"));
        }
        self.check_removable(id)?;
        if self.is_running && is_adapter && self.vm.generation == 1 {
            return Err(Failure::new(INVALID_STATE, "network adapters cannot be removed while the VM runs"));
        }
        let mut gone = vec![device.id];
        while let Some(id) = gone.pop() {
            self.plan.configuration.devices.retain(|device| device.id != id);
            if let Some(place) = id.strip_suffix(r"\D") {
                self.plan.configuration.disks.retain(|disk| disk.place != place);
            }
            let children = self.plan.configuration.devices.iter().filter(|one| one.parent.as_deref() == Some(&id));
            gone.extend(children.map(|device| device.id.clone()));
        }
        Ok(())
    }

    fn check_removable(&self, id: &str) -> Outcome {
        if self.is_running && id.starts_with(crate::configuration::IDE_CONTROLLER) {
            return Err(Failure::new(INVALID_STATE, "IDE gives no drives away while the VM runs"));
        }
        Ok(())
    }
}

fn check_adapter(properties: &Properties) -> Outcome {
    let address = properties.text("Address");
    let is_address = address.len() == 12 && address.bytes().all(|digit| digit.is_ascii_hexdigit());
    if !is_address || (properties.flag("StaticMacAddress") && address.bytes().all(|digit| digit == b'0')) {
        return refuse(&format!("{address:?} is no address of a network adapter"));
    }
    Ok(())
}

/// The GUID in `{…}`, in Hyper-V's spelling.
fn braced_guid(text: &str) -> Option<String> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    Some(uuid::Uuid::try_parse(inner).ok()?.hyphenated().to_string().to_uppercase())
}

/// A file name without its extension.
pub(crate) fn stem_of(file: &WinPath) -> String {
    let name = file.file_name();
    name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_owned()
}

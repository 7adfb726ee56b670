//! Path 2: building the VM from its stored settings (spec 6.4).

use crate::inventory::{MEMORY, PROCESSORS, SECURITY, SETTINGS};
use crate::job::Ended;
use crate::seam::{CimType, CimValue, Instance, ObjectPath};
use crate::{CreateError, Definition, Error, Host, Vm, VmId, cim_xml};

use super::firmware::{Moved, NO_AUTOMATIC_START, boot_order, carried, carried_by_device};
use super::former::{Former, configuration, name_of};
use super::system::VM;
use super::workbench::{Workbench, one_string};
use super::{
    ConfigurationVersions, Identity, RecreateWarning, Recreated, Recreation, TpmChoice, check_disks, memory_changes,
};

mod drives;
mod network;

const SECURITY_SERVICE: &str = "Msvm_SecurityService";

const PROCESSOR_PROPERTIES: &[&str] = &[
    "VirtualQuantity",
    "Limit",
    "Reservation",
    "Weight",
    "ExposeVirtualizationExtensions",
    "LimitProcessorFeatures",
    "HwThreadsPerCore",
];
const MEMORY_PROPERTIES: &[&str] =
    &["VirtualQuantity", "Reservation", "Limit", "DynamicMemoryEnabled", "TargetMemoryBuffer", "Weight"];

/// Integration components (spec 1.6). They exist on every new VM; only whether they are offered is set.
const INTEGRATION: [&str; 6] = [
    "Msvm_VssComponentSettingData",
    "Msvm_KvpExchangeComponentSettingData",
    "Msvm_HeartbeatComponentSettingData",
    "Msvm_ShutdownComponentSettingData",
    "Msvm_TimeSyncComponentSettingData",
    "Msvm_GuestServiceInterfaceComponentSettingData",
];

/// Devices that only the former host could give (spec 6.7); the class of their setting.
const NOT_BUILT: [&str; 3] =
    ["Msvm_SyntheticFcPortSettingData", "Msvm_PciExpressSettingData", "Msvm_GpuPartitionSettingData"];

impl Host {
    /// Makes a VM from its stored settings, for a host that cannot import its configuration files. The restored disks
    /// are written before. The VM has a new id whatever is wanted, new device identities, and no firmware variables of
    /// its own.
    ///
    /// After any error nothing of the VM is left, or it is named in [`CreateError::left_behind`].
    pub fn build_vm(&self, definition: &Definition, wanted: &Recreation) -> Result<Recreated, CreateError> {
        let attempt = format!("build VM {:?} from its settings", wanted.name);
        let attempt = attempt.as_str();
        check_disks(attempt, definition, wanted)?;
        let former = Former::of(attempt, definition)?;
        let bench = Workbench::new(self, attempt, wanted)?;
        let before = self.systems(attempt, VM)?;
        let build = Build { bench: &bench, former: &former, moved: Vec::new(), warnings: Vec::new() };
        let is_ours = |system: &Instance| system.get("ElementName").as_str() == Some(&wanted.name);
        let made = build.define().and_then(|ended| bench.made_system(VM, "ResultingSystem", &before, ended, is_ours));
        let system = match made {
            Ok(system) => system,
            Err(error) => {
                let now = self.systems(attempt, VM).unwrap_or_default();
                let new =
                    now.into_iter().filter(|now| before.iter().all(|known| known.path != now.path) && is_ours(now));
                return Err(CreateError { error, left_behind: new.filter_map(|system| system.path).collect() });
            }
        };
        build.finish(&system).map_err(|error| {
            let made: Vec<ObjectPath> = system.path.iter().cloned().collect();
            self.roll_back(error, &made)
        })
    }
}

/// A build, from the definition of the system on.
struct Build<'a> {
    bench: &'a Workbench<'a>,
    former: &'a Former<'a>,
    moved: Vec<Moved>,
    warnings: Vec<RecreateWarning>,
}

impl Build<'_> {
    fn finish(mut self, system: &Instance) -> Result<Recreated, Error> {
        let bench = self.bench;
        let path = system.path.clone().ok_or_else(|| bench.unexpected("the new VM has no path".into()))?;
        let id: VmId = system
            .get("Name")
            .as_str()
            .and_then(|name| name.parse().ok())
            .ok_or_else(|| bench.unexpected("the new VM has no id".into()))?;
        if bench.wanted.identity == Identity::Keep {
            self.warnings.push(RecreateWarning::IdNotKept);
        }
        let settings = bench.settings_of(&path)?;
        let settings = settings.path.ok_or_else(|| bench.unexpected("its settings have no path".into()))?;
        self.set_system(&settings)?;
        self.set_processors_and_memory(&settings)?;
        self.add_drives(&settings)?;
        self.add_network(&settings)?;
        self.set_integration(&settings)?;
        self.set_boot_order(&settings)?;
        self.set_tpm(&settings)?;
        self.note_what_is_not_built();
        let vm: Option<Vm> = bench.host.vm(&id)?;
        let vm = vm.ok_or_else(|| bench.missing(format!("the new VM {id}")))?;
        let (was, is) = (&self.former.definition.summary.configuration_version, &vm.configuration_version);
        if was != is {
            self.warnings.push(RecreateWarning::OtherVersion { was: was.clone(), is: is.clone() });
        }
        Ok(Recreated { vm, warnings: self.warnings })
    }

    /// `DefineSystem`, with as little as makes a VM of the right generation in the right place. A version that the host
    /// is not known to run, or refuses, is left out: the host then takes its default.
    fn define(&self) -> Result<Ended, Error> {
        let was = &self.former.definition.summary.configuration_version;
        let versions = self.bench.host.windows_version();
        let versions = versions.and_then(|version| ConfigurationVersions::of_windows(&version));
        if versions.is_some_and(|versions| versions.runs(was)) {
            match self.define_as(Some(was)) {
                Err(Error::Refused { .. } | Error::JobFailed { .. }) => {}
                other => return other,
            }
        }
        self.define_as(None)
    }

    fn define_as(&self, version: Option<&str>) -> Result<Ended, Error> {
        let bench = self.bench;
        let known = bench.host.class_properties(bench.attempt, SETTINGS)?.unwrap_or_default();
        let mut properties = bench.names_and_roots(&known);
        properties.push(("VirtualSystemSubType", self.former.system.get("VirtualSystemSubType").clone()));
        properties.extend(version.map(|version| ("Version", CimValue::String(version.to_owned()))));
        let empty = Instance { class: SETTINGS.to_owned(), path: None, properties: Default::default() };
        let parameters = [
            ("SystemSettings", bench.text(&cim_xml::changed(&empty, properties))?),
            ("ResourceSettings", CimValue::Null),
            ("ReferenceConfiguration", CimValue::Null),
        ];
        bench.run("define it", "DefineSystem", &parameters)
    }

    fn set_system(&mut self, settings: &ObjectPath) -> Result<(), Error> {
        let bench = self.bench;
        let known = bench.host.class_properties(bench.attempt, SETTINGS)?.unwrap_or_default();
        let (mut changes, unknown) = carried(&self.former.system, &known);
        // An empty array is ignored; one empty string clears the notes (spec 1.3).
        if let Some((_, notes)) = changes.iter_mut().find(|(name, _)| *name == "Notes")
            && notes.as_array().is_some_and(<[_]>::is_empty)
        {
            *notes = one_string("");
        }
        let action = match bench.wanted.keep_automatic_start {
            true => self.former.system.get("AutomaticStartupAction").clone(),
            false => CimValue::Uint16(NO_AUTOMATIC_START),
        };
        if !action.is_null() {
            changes.push(("AutomaticStartupAction", action));
        }
        if !unknown.is_empty() {
            self.warnings.push(RecreateWarning::SettingsUnknown(unknown));
        }
        bench.modify_system("set its firmware and actions", settings, changes)
    }

    fn set_processors_and_memory(&self, settings: &ObjectPath) -> Result<(), Error> {
        let bench = self.bench;
        for (class, properties, what) in
            [(PROCESSORS, PROCESSOR_PROPERTIES, "set its processors"), (MEMORY, MEMORY_PROPERTIES, "set its memory")]
        {
            let Some(former) = self.former.of_class(class).next() else { continue };
            let now = bench.components(settings, Some(class))?;
            let now = now.first().ok_or_else(|| bench.missing(format!("the {class} of the new VM")))?;
            let mut changes = carried_by_device(former, now, properties);
            let wanted = match (class, bench.wanted.processors, bench.wanted.memory_mib) {
                (PROCESSORS, Some(count), _) => vec![("VirtualQuantity", CimValue::Uint64(count))],
                (MEMORY, _, Some(mib)) => memory_changes(former, mib),
                _ => Vec::new(),
            };
            for (name, value) in wanted {
                changes.retain(|(known, _)| *known != name);
                changes.push((name, value));
            }
            bench.modify(what, now, changes)?;
        }
        Ok(())
    }

    fn set_integration(&self, settings: &ObjectPath) -> Result<(), Error> {
        for class in INTEGRATION {
            let Some(former) = self.former.of_class(class).next() else { continue };
            let offered = former.get("EnabledState");
            if let [now, ..] = self.bench.components(settings, Some(class))?.as_slice()
                && !offered.is_null()
                && now.get("EnabledState") != offered
            {
                let what = format!("set integration component {}", name_of(now));
                self.bench.modify(&what, now, vec![("EnabledState", offered.clone())])?;
            }
        }
        Ok(())
    }

    /// Generation 2; generation 1 has its order among the carried properties.
    fn set_boot_order(&mut self, settings: &ObjectPath) -> Result<(), Error> {
        let now = self.bench.get(settings)?;
        let (order, lost) = boot_order(&self.former.system, &now, &self.moved);
        if lost > 0 {
            self.warnings.push(RecreateWarning::BootEntriesLost { count: lost });
        }
        if order == *now.get("BootSourceOrder") || order.as_array().is_none_or(<[_]>::is_empty) {
            return Ok(());
        }
        self.bench.modify_system("set its boot order", settings, vec![("BootSourceOrder", order)])
    }

    fn set_tpm(&mut self, settings: &ObjectPath) -> Result<(), Error> {
        let definition = self.former.definition;
        if !definition.summary.tpm {
            return Ok(());
        }
        let protector = definition.key_protector.as_deref().and_then(bytes_of_hex);
        let (TpmChoice::SameKeyProtector, Some(protector)) = (self.bench.wanted.tpm, protector) else {
            self.warnings.push(RecreateWarning::TpmLeftOut);
            return Ok(());
        };
        let bench = self.bench;
        let security = self.security_of(settings)?;
        let service = bench.host.service(bench.attempt, SECURITY_SERVICE)?;
        let protector = protector.into_iter().map(CimValue::Uint8).collect();
        let parameters = [
            ("SecuritySettingData", bench.text(&cim_xml::changed(&security, Vec::new()))?),
            ("KeyProtector", CimValue::Array(CimType::Uint8, protector)),
        ];
        let what = "set its key protector";
        bench.known(what, bench.run_on(&service, what, "SetKeyProtector", &parameters)?)?;
        let security = self.security_of(settings)?;
        let on = cim_xml::changed(&security, vec![("TpmEnabled", CimValue::Boolean(true))]);
        let what = "switch its TPM on";
        let parameters = [("SecuritySettingData", bench.text(&on)?)];
        bench.known(what, bench.run_on(&service, what, "ModifySecuritySettings", &parameters)?)?;
        self.warnings.push(RecreateWarning::TpmEmpty);
        Ok(())
    }

    fn security_of(&self, settings: &ObjectPath) -> Result<Instance, Error> {
        let bench = self.bench;
        let own = bench.get(settings)?;
        let mut found = bench.host.find(bench.attempt, &crate::wql::all(SECURITY))?;
        found.retain(|security| configuration(security).eq_ignore_ascii_case(configuration(&own)));
        found.into_iter().next().ok_or_else(|| bench.missing("the security settings of the new VM".into()))
    }

    fn note_what_is_not_built(&mut self) {
        for class in NOT_BUILT {
            let count = self.former.of_class(class).count();
            if count > 0 {
                self.warnings.push(RecreateWarning::DeviceNotBuilt { class: class.to_owned(), count });
            }
        }
    }
}

fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|value| value.try_into().ok())).collect();
    let digits = digits.filter(|digits| !digits.is_empty() && digits.len().is_multiple_of(2))?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_protectors_come_back_from_their_digits() {
        for (text, bytes) in [("00ff7A", Some(vec![0, 255, 0x7a])), ("", None), ("0", None), ("0g", None), ("é0", None)]
        {
            assert_eq!(bytes_of_hex(text), bytes, "{text:?}");
        }
    }
}

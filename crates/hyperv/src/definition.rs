//! The definition of a VM as JSON: what is understood, and every property there is (spec 6.2).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cim_xml::{self, scalar_type, type_name};
use crate::devices::{DiskRole, disk_devices};
use crate::disk_file::unexpected;
use crate::error::{INVALID_CLASS, NOT_FOUND};
use crate::inventory::{COMPONENT, DEVICES, MEDIA, SECURITY};
use crate::names::configuration_of;
use crate::seam::{CimType, CimValue, Instance, Namespace, ObjectPath};
use crate::{Checkpoint, Error, Host, Vm, wql};

/// A VM's definition, complete and in an order that does not depend on the host: the same settings give the same text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Definition {
    /// What a person wants to see, and a restore on another host needs first.
    pub summary: DefinitionSummary,
    /// The virtual disks with their places and identities.
    pub disks: Vec<DefinedDisk>,
    /// The `Msvm_VirtualSystemSettingData` itself.
    pub system: Setting,
    /// Every setting that belongs to it, by class and `InstanceID`.
    pub settings: Vec<Setting>,
    /// Key protector of a VM with a virtual TPM, as hexadecimal digits.
    pub key_protector: Option<String>,
    /// The host it was read from.
    pub host: DefinitionHost,
}

/// The understood part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefinitionSummary {
    /// The VM's id.
    pub vm_id: String,
    /// The VM's name, not the checkpoint's.
    pub name: String,
    /// 1 or 2.
    pub generation: u8,
    /// Such as `9.0`.
    pub configuration_version: String,
    /// Virtual processors.
    pub processors: Option<u64>,
    /// Start-up memory in MiB.
    pub memory_mib: Option<u64>,
    /// Secure Boot.
    pub secure_boot: bool,
    /// A virtual TPM is on.
    pub tpm: bool,
    /// Names of the network adapters.
    pub network_adapters: Vec<String>,
}

/// A disk of the definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefinedDisk {
    /// `SCSI 0:1`; absent when its controller was not found.
    pub slot: Option<String>,
    /// `InstanceID` of its setting.
    pub instance_id: String,
    /// Path on the host, or the device of a pass-through disk.
    pub path: String,
    /// `VirtualDiskId`, of a disk whose file could be read.
    pub virtual_disk_id: Option<String>,
    /// `disk`, `shared` or `pass-through`.
    pub role: String,
}

/// One instance, with every property.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// Its class.
    pub class: String,
    /// Its properties by name; nulls are left out, as in an embedded instance.
    pub properties: BTreeMap<String, TypedValue>,
}

/// A value with its CIM type, so that it can be written back as it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TypedValue {
    /// `uint16`, `string[]`, …
    #[serde(rename = "type")]
    pub cim_type: String,
    /// A number, text, truth value, or an array of them. 64-bit numbers are text, because JSON readers round them.
    pub value: Value,
}

/// The host a definition was read from. What it does not tell is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefinitionHost {
    /// Computer name.
    pub name: Option<String>,
    /// Such as `Microsoft Windows Server 2022 Datacenter`.
    pub os: Option<String>,
    /// Such as `10.0.20348`.
    pub os_version: Option<String>,
    /// Manufacturer of the processors: a saved state does not move between manufacturers.
    pub processor_vendor: Option<String>,
    /// Virtual switches: id and name.
    pub switches: BTreeMap<String, String>,
}

impl Definition {
    /// As JSON.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("maps with text keys, text, numbers and arrays are JSON")
    }
}

impl Host {
    /// The definition that a checkpoint froze.
    pub fn capture_checkpoint_definition(&self, vm: &Vm, checkpoint: &Checkpoint) -> Result<Definition, Error> {
        self.capture(&format!("capture the definition of {}", vm.label()), vm, &checkpoint.path)
    }

    /// The definition as it is now.
    pub fn capture_definition(&self, vm: &Vm) -> Result<Definition, Error> {
        self.capture(&format!("capture the definition of {}", vm.label()), vm, &vm.settings_path)
    }

    fn capture(&self, attempt: &str, vm: &Vm, settings_path: &ObjectPath) -> Result<Definition, Error> {
        let system = self
            .get(attempt, settings_path)?
            .ok_or_else(|| Error::Missing { attempt: attempt.to_owned(), what: settings_path.to_string() })?;
        let instance_id = system.get("InstanceID").as_str().unwrap_or_default().to_owned();
        let configuration = configuration_of(&instance_id)
            .ok_or_else(|| unexpected(attempt, format!("its InstanceID is {instance_id:?}")))?;
        let mut settings = self.find(attempt, &wql::associated(settings_path, COMPONENT, None))?;
        let security = self.security_settings(attempt, configuration, &settings)?;
        let key_protector = match &security {
            Some(security) if security.get("TpmEnabled").as_bool() == Some(true) => {
                Some(self.key_protector(attempt, security)?)
            }
            _ => None,
        };
        settings.extend(self.port_features(attempt, &settings)?);
        let disks = self.defined_disks(attempt, configuration, &settings)?;
        let summary = summary(vm, &system, &settings, security.as_ref());
        if let Some(security) = security {
            settings.push(security);
        }
        let mut settings: Vec<Setting> = settings.iter().map(Setting::of).collect();
        settings.sort_by_cached_key(|setting| (setting.class.clone(), setting.text("InstanceID")));
        settings.dedup();
        Ok(Definition {
            summary,
            disks,
            system: Setting::of(&system),
            settings,
            key_protector,
            host: self.definition_host(),
        })
    }

    /// `Msvm_SecuritySettingData`: among the associated settings, else by its `InstanceID` (spec 1.5).
    fn security_settings(
        &self,
        attempt: &str,
        configuration: &str,
        settings: &[Instance],
    ) -> Result<Option<Instance>, Error> {
        if settings.iter().any(|setting| setting.class.eq_ignore_ascii_case(SECURITY)) {
            return Ok(settings.iter().find(|setting| setting.class.eq_ignore_ascii_case(SECURITY)).cloned());
        }
        let all = self.find(attempt, &wql::all(SECURITY))?;
        Ok(all.into_iter().find(|setting| {
            let owner = setting.get("InstanceID").as_str().and_then(configuration_of);
            owner.is_some_and(|owner| owner.eq_ignore_ascii_case(configuration))
        }))
    }

    /// `Msvm_SecurityService.GetKeyProtector` (spec 1.5).
    fn key_protector(&self, attempt: &str, security: &Instance) -> Result<String, Error> {
        const METHOD: &str = "GetKeyProtector";
        let attempt = format!("{attempt}: read its key protector");
        let service = self.service(&attempt, "Msvm_SecurityService")?;
        let text = cim_xml::to_text(security).map_err(|source| Error::CimXml { attempt: attempt.clone(), source })?;
        let output =
            self.read_method(&attempt, &service, METHOD, &[("SecuritySettingData", CimValue::String(text))])?;
        if output.return_value != 0 {
            return Err(Error::Refused { attempt, method: METHOD, code: output.return_value });
        }
        let bytes = output.get("KeyProtector").as_array().unwrap_or_default();
        let bytes: Option<Vec<u8>> =
            bytes.iter().map(|byte| byte.as_u64().and_then(|byte| byte.try_into().ok())).collect();
        let bytes = bytes.ok_or_else(|| unexpected(&attempt, "the key protector is not an array of bytes".into()))?;
        Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// VLAN and other features that hang off network connections.
    fn port_features(&self, attempt: &str, settings: &[Instance]) -> Result<Vec<Instance>, Error> {
        let mut features = Vec::new();
        for connection in settings.iter().filter(|setting| setting.class == "Msvm_EthernetPortAllocationSettingData") {
            let Some(path) = &connection.path else { continue };
            match self.find(attempt, &wql::associated(path, "Msvm_EthernetPortSettingDataComponent", None)) {
                Ok(found) => features.extend(found),
                Err(Error::Wmi { source, .. }) if matches!(source.hresult, INVALID_CLASS | NOT_FOUND) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(features)
    }

    fn defined_disks(
        &self,
        attempt: &str,
        configuration: &str,
        settings: &[Instance],
    ) -> Result<Vec<DefinedDisk>, Error> {
        let of_class = |class: &str| -> Vec<Instance> {
            settings.iter().filter(|setting| setting.class.eq_ignore_ascii_case(class)).cloned().collect()
        };
        let service = self.image_service(attempt)?;
        let disks = disk_devices(configuration, &of_class(MEDIA), &of_class(DEVICES)).into_iter();
        Ok(disks
            .map(|disk| DefinedDisk {
                slot: disk.slot.map(|slot| slot.to_string()),
                virtual_disk_id: match disk.role {
                    DiskRole::PassThrough => None,
                    _ => self
                        .disk_facts(attempt, &service, &disk.path)
                        .ok()
                        .map(|facts| facts.virtual_disk_id.to_string()),
                },
                role: match disk.role {
                    DiskRole::Disk => "disk",
                    DiskRole::Shared => "shared",
                    DiskRole::PassThrough => "pass-through",
                }
                .to_owned(),
                instance_id: disk.instance_id,
                path: disk.path,
            })
            .collect())
    }

    /// This computer's name; `None` when it cannot be asked.
    pub(crate) fn computer_name(&self) -> Option<String> {
        self.of_windows("CSName")
    }

    /// Such as `10.0.20348`; `None` when it cannot be asked.
    pub(crate) fn windows_version(&self) -> Option<String> {
        self.of_windows("Version")
    }

    fn of_windows(&self, property: &str) -> Option<String> {
        let query = wql::all("Win32_OperatingSystem");
        let found = self.query("look at the host", Namespace::Cimv2, &query).ok()?;
        found.first()?.get(property).as_str().map(str::to_owned)
    }

    /// Facts that help a restore elsewhere. None is worth failing a backup for.
    fn definition_host(&self) -> DefinitionHost {
        let attempt = "look at the host";
        let first = |class: &str| {
            let found = self.query(attempt, Namespace::Cimv2, &wql::all(class)).unwrap_or_default();
            found.into_iter().next()
        };
        let text = |instance: &Option<Instance>, name: &str| {
            instance.as_ref().and_then(|instance| instance.get(name).as_str()).map(str::to_owned)
        };
        let os = first("Win32_OperatingSystem");
        let processor = first("Win32_Processor");
        let switches = self.find(attempt, &wql::all("Msvm_VirtualEthernetSwitch")).unwrap_or_default();
        DefinitionHost {
            name: text(&os, "CSName"),
            os: text(&os, "Caption"),
            os_version: text(&os, "Version"),
            processor_vendor: text(&processor, "Manufacturer"),
            switches: switches
                .iter()
                .filter_map(|switch| {
                    let name = switch.get("ElementName").as_str().unwrap_or_default();
                    Some((switch.get("Name").as_str()?.to_owned(), name.to_owned()))
                })
                .collect(),
        }
    }
}

fn summary(vm: &Vm, system: &Instance, settings: &[Instance], security: Option<&Instance>) -> DefinitionSummary {
    let quantity = |class: &str| {
        let setting = settings.iter().find(|setting| setting.class.eq_ignore_ascii_case(class));
        setting.and_then(|setting| setting.get("VirtualQuantity").as_u64())
    };
    let is_adapter = |setting: &&Instance| {
        matches!(
            setting.class.as_str(),
            "Msvm_SyntheticEthernetPortSettingData" | "Msvm_EmulatedEthernetPortSettingData"
        )
    };
    let adapter_name = |adapter: &Instance| adapter.get("ElementName").as_str().unwrap_or_default().to_owned();
    let mut network_adapters: Vec<_> = settings.iter().filter(is_adapter).map(adapter_name).collect();
    network_adapters.sort();
    DefinitionSummary {
        vm_id: vm.id.to_string(),
        name: vm.name.clone(),
        generation: vm.generation,
        configuration_version: system.get("Version").as_str().unwrap_or(&vm.configuration_version).to_owned(),
        processors: quantity("Msvm_ProcessorSettingData"),
        memory_mib: quantity("Msvm_MemorySettingData"),
        secure_boot: system.get("SecureBootEnabled").as_bool() == Some(true),
        tpm: security.is_some_and(|security| security.get("TpmEnabled").as_bool() == Some(true)),
        network_adapters,
    }
}

impl Setting {
    fn of(instance: &Instance) -> Self {
        let properties = instance.properties.iter();
        let properties = properties.filter_map(|(name, value)| Some((name.clone(), TypedValue::of(value)?))).collect();
        Self { class: instance.class.clone(), properties }
    }

    fn text(&self, name: &str) -> String {
        self.properties.get(name).and_then(|value| value.value.as_str()).unwrap_or_default().to_owned()
    }

    /// The instance again, without its path. `None` if the text was not written by us.
    pub fn to_instance(&self) -> Option<Instance> {
        let properties = self.properties.iter();
        let properties =
            properties.map(|(name, value)| Some((name.clone(), value.to_cim()?))).collect::<Option<_>>()?;
        Some(Instance { class: self.class.clone(), path: None, properties })
    }
}

impl TypedValue {
    fn of(value: &CimValue) -> Option<Self> {
        Some(match value {
            CimValue::Null => return None,
            CimValue::Array(cim_type, values) => Self {
                cim_type: format!("{}[]", type_name(*cim_type)),
                value: values.iter().map(scalar_json).collect(),
            },
            scalar => Self { cim_type: type_name(scalar_type(scalar)?).to_owned(), value: scalar_json(scalar) },
        })
    }

    fn to_cim(&self) -> Option<CimValue> {
        match self.cim_type.strip_suffix("[]") {
            Some(element) => {
                let cim_type = cim_type_of(element)?;
                let values =
                    self.value.as_array()?.iter().map(|value| scalar_cim(cim_type, value)).collect::<Option<_>>()?;
                Some(CimValue::Array(cim_type, values))
            }
            None => scalar_cim(cim_type_of(&self.cim_type)?, &self.value),
        }
    }
}

fn scalar_json(value: &CimValue) -> Value {
    match value {
        CimValue::Null | CimValue::Array(..) => Value::Null,
        CimValue::Boolean(value) => (*value).into(),
        CimValue::Uint8(value) => (*value).into(),
        CimValue::Uint16(value) => (*value).into(),
        CimValue::Uint32(value) => (*value).into(),
        CimValue::Sint16(value) => (*value).into(),
        CimValue::Sint32(value) => (*value).into(),
        CimValue::Uint64(value) => value.to_string().into(),
        CimValue::Sint64(value) => value.to_string().into(),
        CimValue::String(value) | CimValue::DateTime(value) => value.as_str().into(),
        CimValue::Reference(path) => path.as_str().into(),
    }
}

fn scalar_cim(cim_type: CimType, value: &Value) -> Option<CimValue> {
    let unsigned = || value.as_u64();
    let signed = || value.as_i64();
    let text = || value.as_str();
    Some(match cim_type {
        CimType::Boolean => CimValue::Boolean(value.as_bool()?),
        CimType::Uint8 => CimValue::Uint8(unsigned()?.try_into().ok()?),
        CimType::Uint16 => CimValue::Uint16(unsigned()?.try_into().ok()?),
        CimType::Uint32 => CimValue::Uint32(unsigned()?.try_into().ok()?),
        CimType::Uint64 => CimValue::Uint64(text()?.parse().ok()?),
        CimType::Sint16 => CimValue::Sint16(signed()?.try_into().ok()?),
        CimType::Sint32 => CimValue::Sint32(signed()?.try_into().ok()?),
        CimType::Sint64 => CimValue::Sint64(text()?.parse().ok()?),
        CimType::String => CimValue::String(text()?.to_owned()),
        CimType::DateTime => CimValue::DateTime(text()?.to_owned()),
        CimType::Reference => CimValue::Reference(ObjectPath::new(text()?)),
    })
}

fn cim_type_of(name: &str) -> Option<CimType> {
    let cim_type = cim_xml::type_of(name);
    (type_name(cim_type) == name).then_some(cim_type)
}

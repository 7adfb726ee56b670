//! Settings and summaries of VMs.

use hyperv::seam::{CimType, CimValue, Instance, MethodOutput};

use super::{INVALID_PARAMETER, INVALID_STATE, answer, answer_with};
use crate::builder::Builder;
use crate::config_file;
use crate::configuration::{CONNECTION, MEMORY, PROCESSOR};
use crate::embedded;
use crate::error::LabError;
use crate::host::Tx;
use crate::objects;
use crate::paths::WinPath;
use crate::properties::Properties;
use crate::provider::Inputs;
use crate::state::{Power, Vm};
use crate::system_settings;

/// `ModifySystemSettings`. The text may hold the whole instance as it was read; what it changes must be changeable.
pub(super) fn modify(tx: &mut Tx<'_>, inputs: &Inputs) -> MethodOutput {
    let Some(wanted) = inputs.embedded("SystemSettings") else { return answer(INVALID_PARAMETER) };
    let id = wanted.get("InstanceID").as_str().and_then(|id| id.strip_prefix("Microsoft:")).unwrap_or_default();
    let (vm, checkpoint) = match (tx.machine(id), tx.checkpoint(id)) {
        (Some(vm), _) => (vm.clone(), None),
        (None, Some((vm, checkpoint))) => (vm.clone(), Some(checkpoint.clone())),
        (None, None) => return answer(INVALID_PARAMETER),
    };
    if tx.is_busy(&vm.id) {
        return answer(INVALID_STATE);
    }
    let current = objects::system_settings(tx, &vm, checkpoint.as_ref());
    let mut changed = Properties::default();
    for (name, value) in &wanted.properties {
        if !value.is_null() && value != current.get(name) {
            changed.set(name, value);
        }
    }
    let id = checkpoint.map_or(vm.id, |checkpoint| checkpoint.id);
    match system_settings::change(tx, &id, &changed) {
        Ok(()) => answer(0),
        Err(failure) => answer(failure.code.into()),
    }
}

/// `GetSummaryInformation`.
pub(super) fn summary(tx: &Tx<'_>, inputs: &Inputs) -> MethodOutput {
    let requested: Vec<u64> = inputs
        .value("RequestedInformation")
        .as_array()
        .unwrap_or_default()
        .iter()
        .filter_map(CimValue::as_u64)
        .collect();
    let chosen: Vec<&Vm> = match inputs.objects("SettingData") {
        None => tx.vms.iter().collect(),
        Some(settings) => {
            let id =
                |settings: &Instance| settings.get("VirtualSystemIdentifier").as_str().unwrap_or_default().to_owned();
            settings.iter().filter_map(|settings| tx.vm(&id(settings))).collect()
        }
    };
    let texts = chosen.into_iter().map(|vm| CimValue::String(embedded::format(&summary_of(tx, vm, &requested))));
    answer_with(0, vec![("SummaryInformation", CimValue::Array(CimType::String, texts.collect()))])
}

fn summary_of(tx: &Tx<'_>, vm: &Vm, requested: &[u64]) -> Instance {
    let running = vm.power == Power::Running;
    let operation = tx.operation(&vm.id);
    let status: Vec<u64> = std::iter::once(2).chain(operation.map(|(code, _)| code.into())).collect();
    let mut builder = Builder::embedded("Msvm_SummaryInformation")
        .text("VirtualSystemSubType", &format!("Microsoft:Hyper-V:SubType:{}", vm.generation))
        .text("HostComputerSystemName", &tx.options.host_name);
    for &code in requested {
        builder = match code {
            0 => builder.text("Name", &vm.id),
            1 => builder.text("ElementName", &vm.active.name),
            2 => builder.date("CreationTime", vm.created_ms),
            3 => builder.text("Notes", &vm.active.system.texts("Notes").join("\n")),
            4 => builder.number("NumberOfProcessors", vm.active.number_of(PROCESSOR, "VirtualQuantity")),
            9 => {
                let connections = vm.active.devices.iter().filter(|device| device.class == CONNECTION);
                let names = connections.map(|device| device.properties.text("LastKnownSwitchName").to_owned());
                builder.texts("VirtualSwitchNames", names.collect())
            }
            10 => builder.text("Version", &vm.version),
            11 => builder.flag("Shielded", vm.active.security_flag("ShieldingRequested")),
            100 => builder.number("EnabledState", objects::enabled_state(vm)),
            101 => builder.number("ProcessorLoad", 0),
            103 => {
                builder.number("MemoryUsage", if running { vm.active.number_of(MEMORY, "VirtualQuantity") } else { 0 })
            }
            104 if running => builder.number("Heartbeat", 2),
            105 => builder.number("UpTime", if running { tx.now_ms.saturating_sub(vm.state_changed_ms) } else { 0 }),
            106 => builder.text("GuestOperatingSystem", ""),
            109 => builder.number("HealthState", 5),
            110 => builder.numbers("OperationalStatus", &status),
            _ => builder,
        };
    }
    builder.build()
}

/// `GetDefinitionFileSummaryInformation`: what a `.vmcx` says, without importing it.
pub(super) fn definition_summary(tx: &Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let files = inputs.value("DefinitionFiles").as_array().unwrap_or_default();
    let mut texts = Vec::new();
    for file in files.iter().filter_map(CimValue::as_str) {
        let file = WinPath::new(file);
        let exists = file.in_sandbox(tx.store.root()).is_some_and(|file| file.is_file());
        let Some(definition) = (match exists {
            true => config_file::read_definition(tx.store, &file)?,
            false => return Ok(answer(super::FILE_NOT_FOUND)),
        }) else {
            return Ok(answer(32768));
        };
        let summary = Builder::embedded("Msvm_SummaryInformation")
            .text("Name", &definition.vm_id)
            .text("ElementName", &definition.settings.name)
            .text("Version", &definition.version)
            .text("VirtualSystemSubType", &format!("Microsoft:Hyper-V:SubType:{}", definition.generation))
            .number("NumberOfProcessors", definition.settings.number_of(PROCESSOR, "VirtualQuantity"))
            .flag("Shielded", definition.settings.security_flag("ShieldingRequested"))
            .build();
        texts.push(CimValue::String(embedded::format(&summary)));
    }
    Ok(answer_with(0, vec![("SummaryInformation", CimValue::Array(CimType::String, texts))]))
}

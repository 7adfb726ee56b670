//! Settings and summaries of VMs.

use hyperv::seam::{CimType, CimValue, Instance, MethodOutput};

use super::{INVALID_PARAMETER, INVALID_STATE, answer, answer_with};
use crate::builder::Builder;
use crate::embedded;
use crate::guest::SplitMix;
use crate::host::Tx;
use crate::objects;
use crate::provider::Inputs;
use crate::state::{Configuration, Power, Vm};

/// `ModifySystemSettings`. The text may hold the whole instance as it was read; what it changes must be changeable.
pub(super) fn modify(tx: &mut Tx<'_>, inputs: &Inputs) -> MethodOutput {
    let Some(wanted) = inputs.embedded("SystemSettings") else { return answer(INVALID_PARAMETER) };
    let id = wanted.get("InstanceID").as_str().and_then(|id| id.strip_prefix("Microsoft:")).unwrap_or_default();
    let (vm, checkpoint) = match (tx.vm(id), tx.checkpoint(id)) {
        (Some(vm), _) => (vm.clone(), None),
        (None, Some((vm, checkpoint))) => (vm.clone(), Some(checkpoint.clone())),
        (None, None) => return answer(INVALID_PARAMETER),
    };
    if tx.operation(&vm.id).is_some() {
        return answer(INVALID_STATE);
    }
    let current = objects::system_settings(tx, &vm, checkpoint.as_ref());
    let mut config = checkpoint.as_ref().map_or(&vm.active, |checkpoint| &checkpoint.config).clone();
    for (name, value) in &wanted.properties {
        if value.is_null() || value == current.get(name) {
            continue;
        }
        if change(&mut config, name, value).is_none() {
            return answer(INVALID_PARAMETER);
        }
    }
    let now_ms = tx.now_ms;
    let changed = tx.edit().vm_mut(&vm.id);
    changed.config_changed_ms = now_ms;
    match checkpoint {
        None => changed.active = config,
        Some(checkpoint) => {
            let target = changed.checkpoints.iter_mut().find(|other| other.id == checkpoint.id);
            target.expect("the checkpoint was just found").config = config;
        }
    }
    answer(0)
}

/// Changes one property; `None` when it cannot be changed, or not to this.
fn change(config: &mut Configuration, name: &str, value: &CimValue) -> Option<()> {
    let one_of = |allowed: &[u16]| match value {
        CimValue::Uint16(value) if allowed.contains(value) => Some(*value),
        _ => None,
    };
    match name {
        "ElementName" => config.name = value.as_str().filter(|name| !name.is_empty())?.to_owned(),
        "Notes" => {
            let notes: Vec<String> =
                value.as_array()?.iter().filter_map(|note| note.as_str()).map(str::to_owned).collect();
            // An empty array is ignored; one empty string clears.
            match notes.as_slice() {
                [] => {}
                [only] if only.is_empty() => config.notes.clear(),
                _ => config.notes = notes,
            }
        }
        "UserSnapshotType" => config.user_snapshot_type = one_of(&[2, 3, 4, 5])?,
        "AutomaticStartupAction" => config.automatic_startup_action = one_of(&[2, 3, 4])?,
        "AutomaticShutdownAction" => config.automatic_shutdown_action = one_of(&[2, 3, 4])?,
        "SecureBootEnabled" => config.secure_boot = value.as_bool()?,
        _ => return None,
    }
    Some(())
}

/// `GetKeyProtector`: opaque bytes, the same for a VM and its checkpoints.
pub(super) fn key_protector(tx: &Tx<'_>, inputs: &Inputs) -> MethodOutput {
    let settings = inputs.embedded("SecuritySettingData");
    let id = settings.and_then(|settings| settings.get("InstanceID").as_str()).unwrap_or_default();
    let cfg = id.strip_prefix("Microsoft:").and_then(|rest| rest.split('\\').next()).unwrap_or_default();
    let vm = tx.vm(cfg).or_else(|| tx.checkpoint(cfg).map(|(vm, _)| vm));
    let Some(vm) = vm.filter(|vm| vm.active.tpm) else { return answer(INVALID_PARAMETER) };
    let mut content = vec![0; 1024];
    let seed = vm.id.bytes().fold(0, |seed, byte| SplitMix::new(seed ^ u64::from(byte)).next());
    SplitMix::new(seed).fill(&mut content);
    let bytes = content.into_iter().map(CimValue::Uint8).collect();
    answer_with(0, vec![("KeyProtector", CimValue::Array(CimType::Uint8, bytes))])
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
            3 => builder.text("Notes", &vm.active.notes.join("\n")),
            4 => builder.number("NumberOfProcessors", vm.active.processors),
            10 => builder.text("Version", &vm.version),
            11 => builder.flag("Shielded", false),
            100 => builder.number("EnabledState", objects::enabled_state(vm)),
            101 => builder.number("ProcessorLoad", 0),
            103 => builder.number("MemoryUsage", if running { vm.active.memory_mib } else { 0 }),
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

//! Changing `Msvm_VirtualSystemSettingData`: which properties, when, and to what.

use crate::configuration::Configuration;
use crate::failure::{Failure, INVALID_PARAMETER, INVALID_STATE, NOT_AVAILABLE};
use crate::host::Tx;
use crate::paths::WinPath;
use crate::properties::Properties;
use crate::state::{FileOp, Power};

/// When a property can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Always,
    /// Not while the VM runs.
    Stopped,
    /// Only before it is registered.
    Planned,
}

/// What a property can be set to.
#[derive(Clone, Copy, Debug)]
enum Values {
    Any,
    OneOf(&'static [u64]),
    /// An absolute path on this host.
    Folder,
    Guid,
    /// Only in generation 2.
    Generation2,
}

const RULES: [(&str, When, Values); 29] = [
    ("Notes", When::Always, Values::Any),
    ("UserSnapshotType", When::Always, Values::OneOf(&[2, 3, 4, 5])),
    ("AutomaticSnapshotsEnabled", When::Always, Values::Any),
    ("IncrementalBackupEnabled", When::Always, Values::Any),
    ("AutomaticStartupAction", When::Always, Values::OneOf(&[2, 3, 4])),
    ("AutomaticStartupActionDelay", When::Always, Values::Any),
    ("AutomaticStartupActionSequenceNumber", When::Always, Values::Any),
    ("AutomaticShutdownAction", When::Always, Values::OneOf(&[2, 3, 4])),
    ("AutomaticCriticalErrorAction", When::Always, Values::OneOf(&[0, 1])),
    ("AutomaticCriticalErrorActionTimeout", When::Always, Values::Any),
    ("EnhancedSessionTransportType", When::Always, Values::OneOf(&[0, 1])),
    ("SecureBootEnabled", When::Stopped, Values::Generation2),
    ("SecureBootTemplateId", When::Stopped, Values::Generation2),
    ("BIOSGUID", When::Stopped, Values::Guid),
    ("BIOSSerialNumber", When::Stopped, Values::Any),
    ("BaseBoardSerialNumber", When::Stopped, Values::Any),
    ("ChassisSerialNumber", When::Stopped, Values::Any),
    ("ChassisAssetTag", When::Stopped, Values::Any),
    ("VirtualNumaEnabled", When::Stopped, Values::Any),
    ("LowMmioGapSize", When::Stopped, Values::Any),
    ("HighMmioGapSize", When::Stopped, Values::Any),
    ("GuestControlledCacheTypes", When::Stopped, Values::Any),
    ("ConsoleMode", When::Stopped, Values::OneOf(&[0, 1, 2, 3])),
    ("TurnOffOnGuestRestart", When::Stopped, Values::Any),
    ("SnapshotDataRoot", When::Stopped, Values::Folder),
    ("SwapFileDataRoot", When::Stopped, Values::Folder),
    ("LogDataRoot", When::Stopped, Values::Folder),
    ("SuspendDataRoot", When::Planned, Values::Folder),
    ("GuestStateDataRoot", When::Planned, Values::Folder),
];

/// Changes the system settings of a registered or planned VM, or of a checkpoint. `wanted` holds only what differs from
/// the present settings. The caller commits.
pub(crate) fn change(tx: &mut Tx<'_>, configuration: &str, wanted: &Properties) -> Result<(), Failure> {
    let Some((vm, settings)) = tx.configuration(configuration) else {
        return Err(Failure::new(NOT_AVAILABLE, "The settings are gone."));
    };
    let (vm, mut settings) = (vm.clone(), settings.clone());
    let is_planned = tx.planned(&vm.id).is_some();
    let is_checkpoint = !configuration.eq_ignore_ascii_case(&vm.id);
    let now = match vm.power {
        _ if is_planned => When::Planned,
        Power::Running | Power::Paused => When::Always,
        Power::Off | Power::Saved => When::Stopped,
    };
    let mut folder = vm.folder.clone();
    for name in wanted.names() {
        let refuse = || Err(Failure::new(INVALID_PARAMETER, format!("{name} cannot be set to this")));
        if is_checkpoint && !matches!(name, "ElementName" | "Notes") {
            return refuse();
        }
        match name {
            "ElementName" if wanted.text(name).is_empty() => return refuse(),
            "ElementName" => settings.name = wanted.text(name).to_owned(),
            "ConfigurationDataRoot" if now != When::Planned => return refuse(),
            "ConfigurationDataRoot" if !is_folder(tx, wanted.text(name)) => return refuse(),
            "ConfigurationDataRoot" => folder = WinPath::new(wanted.text(name)),
            "BootOrder" | "BootSourceOrder" if now == When::Always => {
                return Err(Failure::new(INVALID_STATE, format!("{name} cannot be changed while the VM runs")));
            }
            "BootOrder" if vm.generation == 1 && is_boot_order(&wanted.numbers(name)) => {
                settings.system.take(name, wanted);
            }
            "BootSourceOrder" if vm.generation == 2 => {
                match boot_order(&settings, configuration, &wanted.texts(name)) {
                    Some(order) => settings.boot_order = Some(order),
                    None => return refuse(),
                }
            }
            _ => {
                let rule = RULES.iter().find(|(known, _, _)| *known == name);
                let Some((_, when, values)) = rule else { return refuse() };
                if *when == When::Planned && now != When::Planned {
                    return refuse();
                }
                if *when == When::Stopped && now == When::Always {
                    return Err(Failure::new(INVALID_STATE, format!("{name} cannot be changed while the VM runs")));
                }
                let fits = match values {
                    Values::Any => true,
                    Values::OneOf(allowed) => allowed.contains(&wanted.number(name)),
                    Values::Folder => is_folder(tx, wanted.text(name)) && vm.checkpoints.is_empty(),
                    Values::Guid => uuid::Uuid::try_parse(wanted.text(name)).is_ok(),
                    Values::Generation2 => vm.generation == 2,
                };
                match (fits, name) {
                    (false, _) => return refuse(),
                    // An empty array is ignored; one empty string clears.
                    (true, "Notes") if wanted.texts(name).is_empty() => {}
                    (true, "Notes") if wanted.texts(name) == [""] => settings.system.remove(name),
                    (true, _) => settings.system.take(name, wanted),
                }
            }
        }
    }
    let now_ms = tx.now_ms;
    let state = tx.edit();
    *state.configuration_mut(configuration) = settings;
    let changed = state.machine_mut(&vm.id);
    changed.config_changed_ms = now_ms;
    changed.folder = folder;
    if !is_planned {
        state.redo.push(FileOp::WriteConfiguration { vm: vm.id });
    }
    Ok(())
}

fn is_folder(tx: &Tx<'_>, path: &str) -> bool {
    WinPath::new(path).in_sandbox(tx.store.root()).is_some()
}

/// Each kind of device at most once.
fn is_boot_order(order: &[u64]) -> bool {
    let mut seen = order.to_vec();
    seen.sort_unstable();
    seen.dedup();
    !order.is_empty() && seen.len() == order.len() && seen.iter().all(|&kind| kind <= 4)
}

/// Boot sources are drives or network adapters of these settings, their `InstanceID` with `\B` behind it.
fn boot_order(settings: &Configuration, configuration: &str, sources: &[&str]) -> Option<Vec<String>> {
    let prefix = format!(r"Microsoft:{configuration}\");
    let one = |source: &&str| {
        let id = source.strip_prefix(&prefix)?.strip_suffix(r"\B")?;
        settings.device(id).map(|device| device.id.clone())
    };
    sources.iter().map(one).collect()
}

//! Systems on their way onto the host: importing, validating and realizing them, defining new ones, and taking VMs off.

use std::fs;

use crate::access;
use crate::config_file::{self, Definition};
use crate::configuration::{CONNECTION, Configuration, MEMORY, PROCESSOR, RASD};
use crate::disks;
use crate::error::LabError;
use crate::failure::{FAILED, FILE, Failure, INVALID_PARAMETER, INVALID_STATE, NOT_AVAILABLE};
use crate::host::Tx;
use crate::objects;
use crate::paths::WinPath;
use crate::properties::Properties;
use crate::resources;
use crate::state::{
    Action, Change, FileOp, NewSetting, Object, Planned, PlannedCheckpoint, Power, Vm, new_guid, version_number,
};

type Outcome<T> = Result<Result<T, Failure>, LabError>;

fn fail<T>(code: u16, text: impl Into<String>) -> Outcome<T> {
    Ok(Err(Failure::new(code, text)))
}

/// Makes a planned system of a definition file.
pub(crate) fn import(tx: &mut Tx<'_>, action: &Action) -> Outcome<Object> {
    let Action::Import { definition, snapshots, new_id } = action else { unreachable!("only imports come here") };
    let file = tx.store.file(definition)?;
    if !file.is_file() {
        return fail(
            FAILED,
            format!("{}: the system cannot find the file specified. (0x80070002)", definition.as_str()),
        );
    }
    if tx.store.is_held(definition)? {
        return fail(FILE, format!("{} is in use. (0x80070020)", definition.as_str()));
    }
    let Some(read) = config_file::read_definition(tx.store, definition)? else {
        return fail(FAILED, format!("{}: the data is invalid. (0x8007000D)", definition.as_str()));
    };
    let newest = &tx.options.max_configuration_version;
    if version_number(&read.version) > version_number(newest) {
        let text = format!("the configuration version {} is not supported; this host supports {newest}", read.version);
        return fail(FAILED, format!("Import failed: {text}. (0x80070032)"));
    }
    let id = if *new_id { new_guid() } else { read.vm_id.clone() };
    if tx.machine(&id).is_some() {
        return fail(FAILED, format!("Import failed: a virtual machine with the identifier {id} already exists."));
    }
    let [_, runtime, guest_state] = config_file::beside(definition);
    let mut settings = read.settings;
    settings.tpm_key = config_file::read_tpm_key(tx.store, &guest_state)?.flatten();
    let saved = config_file::read_saved(tx.store, &runtime)?;
    let mut checkpoints = Vec::new();
    for (id, name) in read.checkpoints {
        let found = match snapshots {
            Some(folder) => tx.store.file(&folder.join(&format!("{id}.vmcx")))?.is_file(),
            None => false,
        };
        // A copy gets new ids all the way down.
        let id = if *new_id { new_guid() } else { id };
        checkpoints.push(PlannedCheckpoint { id, name, missing: !found });
    }
    let vm = Vm {
        power: if saved { Power::Saved } else { Power::Off },
        generation: read.generation,
        version: read.version,
        guest: read.guest,
        vss: read.vss,
        ..new_vm(tx, id.clone(), definition.folder().folder(), settings)
    };
    tx.edit().planned.push(Planned { vm, source: definition.clone(), checkpoints });
    Ok(Ok(Object::Planned { id }))
}

/// A VM without a past.
pub(crate) fn new_vm(tx: &Tx<'_>, id: String, folder: WinPath, active: Configuration) -> Vm {
    Vm {
        id,
        power: Power::Off,
        generation: 2,
        version: String::new(),
        folder,
        created_ms: tx.now_ms,
        state_changed_ms: tx.now_ms,
        config_changed_ms: tx.now_ms,
        guest: crate::state::GuestFamily::Unknown,
        vss: crate::state::VssBehaviour::Works,
        active,
        checkpoints: Vec::new(),
        reference_points: Vec::new(),
        position: None,
        last_applied: None,
        has_branches: false,
        merging: true,
        storage_lost: false,
        replication_mode: 0,
        grants: Vec::new(),
    }
}

/// Takes a checkpoint out of the planned system that refers to it.
pub(crate) fn forget_checkpoint(tx: &mut Tx<'_>, id: &str) -> Result<(), Failure> {
    let of_planned = |planned: &Planned| planned.checkpoints.iter().any(|checkpoint| checkpoint.id == id);
    let Some(index) = tx.planned.iter().position(of_planned) else {
        return Err(Failure::new(FAILED, "The object was not found. (0x80041002)"));
    };
    tx.edit().planned[index].checkpoints.retain(|checkpoint| checkpoint.id != id);
    Ok(())
}

/// Looks for everything that keeps a planned system from being realized, and lists all of it.
pub(crate) fn validate(tx: &Tx<'_>, id: &str) -> Outcome<()> {
    let Some(planned) = tx.planned(id) else { return fail(NOT_AVAILABLE, "The planned system is gone.") };
    let mut errors = Vec::new();
    let vm = &planned.vm;
    for checkpoint in &planned.checkpoints {
        let problem = if checkpoint.missing { "its definition is missing" } else { "it cannot be realized" };
        errors.push(format!("Checkpoint {:?} ({}): {problem}. (0xC0370028)", checkpoint.name, checkpoint.id));
    }
    if tx.vm(&vm.id).is_some() {
        errors.push(format!("A virtual machine with the identifier {} already exists. (0x800700B7)", vm.id));
    }
    for disk in &vm.active.disks {
        let path = disk.file.as_str();
        if !disk.file.in_sandbox(tx.store.root()).is_some_and(|file| file.is_file()) {
            errors.push(format!("Hard disk {path:?}: the file was not found. (0x80070002)"));
        } else if let Err(e) = disks::open_chain(tx.store, &disk.file)? {
            errors.push(format!("Hard disk {path:?}: {e}. (0xC03A0004)"));
        }
        let mut others = tx.machines().filter(|other| other.id != vm.id).flat_map(|other| &other.active.disks);
        if others.any(|other| other.file == disk.file && !(other.is_shared() && disk.is_shared())) {
            errors.push(format!("Hard disk {path:?} belongs to another virtual machine. (0x80070020)"));
        }
    }
    for device in &vm.active.devices {
        let resource = device.properties.only_text("HostResource");
        if device.id.ends_with(r"\L")
            && !WinPath::new(resource).in_sandbox(tx.store.root()).is_some_and(|file| file.is_file())
        {
            errors.push(format!("Image {resource:?}: the file was not found. (0x80070002)"));
        }
        let is_physical =
            device.class == RASD && device.properties.text("ResourceSubType").ends_with("Physical Disk Drive");
        if is_physical && !objects::names_an_object(tx, resource) {
            errors.push("The physical disk was not found. (0x80070002)".to_owned());
        }
        let is_connected = device.class == CONNECTION && device.properties.number("EnabledState") == 2;
        if is_connected && !resource.is_empty() && objects::switch_name(tx, resource).is_none() {
            let name = device.properties.text("LastKnownSwitchName");
            errors.push(format!("Could not find Ethernet switch {name:?}. (0x80070490)"));
        }
    }
    let processors = vm.active.number_of(PROCESSOR, "VirtualQuantity");
    if processors > tx.options.processors {
        errors.push(format!("{processors} virtual processors are more than this host has. (0xC0370025)"));
    }
    let memory = vm.active.number_of(MEMORY, "VirtualQuantity");
    if memory > tx.options.memory_mib {
        errors.push(format!("{memory} MB of memory are more than this host has. (0x8007000E)"));
    }
    Ok(match errors.is_empty() {
        true => Ok(()),
        false => Err(Failure::list("The planned virtual machine is not valid on this host.", errors)),
    })
}

/// Registers a planned system as a VM. Its disks stay where they are; its runtime and guest state go to its data roots.
pub(crate) fn realize(tx: &mut Tx<'_>, id: &str) -> Outcome<Object> {
    if let Err(failure) = validate(tx, id)? {
        return Ok(Err(failure));
    }
    let planned = tx.planned(id).expect("it has just been validated").clone();
    let vm = Vm { created_ms: tx.now_ms, state_changed_ms: tx.now_ms, ..planned.vm };
    make_folders(tx, &vm)?;
    let id = vm.id.clone();
    let state = tx.edit();
    state.planned.retain(|other| other.vm.id != id);
    state.redo.push(FileOp::WriteConfiguration { vm: id.clone() });
    state.vms.push(vm);
    Ok(Ok(Object::System { id }))
}

/// Registers a new VM with a host's defaults and what the caller asks for.
pub(crate) fn define(tx: &mut Tx<'_>, system: &Properties, settings: &[NewSetting]) -> Outcome<Object> {
    let name = system.text("ElementName");
    let generation = match system.text("VirtualSystemSubType") {
        "" | "Microsoft:Hyper-V:SubType:1" => 1,
        "Microsoft:Hyper-V:SubType:2" => 2,
        other => return fail(INVALID_PARAMETER, format!("there is no sub type {other:?}")),
    };
    let newest = tx.options.max_configuration_version.clone();
    let version = match system.text("Version") {
        "" => newest.clone(),
        version if version_number(version) <= version_number(&newest) && version_number(version) >= (5, 0) => {
            version.to_owned()
        }
        version => return fail(INVALID_PARAMETER, format!("this host cannot make VMs of version {version:?}")),
    };
    let folder = match system.text("ConfigurationDataRoot") {
        "" => crate::new_vm::free_folder(tx, name)?,
        folder if WinPath::new(folder).in_sandbox(tx.store.root()).is_some() => WinPath::new(folder),
        folder => return fail(INVALID_PARAMETER, format!("{folder:?} is no folder")),
    };
    let id = new_guid();
    let mut vm = Vm { generation, version, ..new_vm(tx, id.clone(), folder, Configuration::new(name, generation)) };
    // Fixed once the VM is registered, so a definition is the last chance to choose them.
    const FIXED_ROOTS: [&str; 2] = ["SuspendDataRoot", "GuestStateDataRoot"];
    for root in FIXED_ROOTS.into_iter().filter(|root| system.has(root)) {
        if WinPath::new(system.text(root)).in_sandbox(tx.store.root()).is_none() {
            return fail(INVALID_PARAMETER, format!("{root}: {:?} is no folder", system.text(root)));
        }
        vm.active.system.take(root, system);
    }
    make_folders(tx, &vm)?;
    let state = tx.edit();
    state.vms.push(vm);
    state.redo.push(FileOp::WriteConfiguration { vm: id.clone() });
    let mut rest = system.clone();
    for given in ["VirtualSystemSubType", "Version", "ConfigurationDataRoot", "InstanceID", "VirtualSystemType"] {
        rest.remove(given);
    }
    FIXED_ROOTS.iter().for_each(|root| rest.remove(root));
    let changed = match crate::system_settings::change(tx, &id, &rest) {
        Ok(()) if !settings.is_empty() => apply(tx, &id, &Change::Add(settings.to_vec()))?.map(|_| ()),
        other => other,
    };
    if let Err(failure) = changed {
        let state = tx.edit();
        state.vms.retain(|vm| vm.id != id);
        state.redo.retain(|op| !matches!(op, FileOp::WriteConfiguration { vm } if *vm == id));
        return Ok(Err(failure));
    }
    Ok(Ok(Object::System { id }))
}

/// Carries out a change of devices. The caller commits.
pub(crate) fn apply(tx: &mut Tx<'_>, configuration: &str, change: &Change) -> Outcome<Vec<Object>> {
    let plan = match resources::plan(tx, configuration, change)? {
        Ok(plan) => plan,
        Err(failure) => return Ok(Err(failure)),
    };
    let now_ms = tx.now_ms;
    let state = tx.edit();
    let is_registered = state.vm(configuration).is_some();
    let vm = state.machine_mut(configuration);
    vm.active = plan.configuration;
    vm.config_changed_ms = now_ms;
    let id = vm.id.clone();
    if is_registered {
        state.redo.push(FileOp::WriteConfiguration { vm: id.clone() });
    }
    for file in &plan.granted {
        access::grant(tx, &id, file)?;
    }
    Ok(Ok(plan.objects))
}

/// Takes a registered or planned VM off the host. Its files stay.
pub(crate) fn destroy(tx: &mut Tx<'_>, id: &str) -> Result<(), Failure> {
    if tx.planned(id).is_some() {
        tx.edit().planned.retain(|planned| planned.vm.id != id);
        return Ok(());
    }
    let Some(vm) = tx.vm(id) else { return Err(Failure::new(NOT_AVAILABLE, "The VM is gone.")) };
    if !matches!(vm.power, Power::Off | Power::Saved) {
        return Err(Failure::new(INVALID_STATE, "The VM is not off."));
    }
    let state = tx.edit();
    state.vms.retain(|vm| vm.id != id);
    state.merges.retain(|merge| merge.vm != id);
    Ok(())
}

/// Writes what another host could import: the definition and, if wanted, the disks.
pub(crate) fn export(tx: &mut Tx<'_>, id: &str, folder: &WinPath, settings: &Properties) -> Outcome<()> {
    let Some(vm) = tx.vm(id).cloned() else { return fail(NOT_AVAILABLE, "The VM is gone.") };
    let folder = match settings.flag("CreateVmExportSubdirectory") {
        true => folder.join(&crate::new_vm::file_name_of(&vm.active.name)),
        false => folder.clone(),
    };
    let checkpoint = match settings.text("SnapshotVirtualSystem") {
        "" => None,
        path => {
            let id = crate::object_path::parse_path(path).and_then(|path| path.keys.into_iter().next());
            let id = id.and_then(|(_, value)| value.strip_prefix("Microsoft:").map(str::to_owned)).unwrap_or_default();
            match vm.checkpoints.iter().find(|checkpoint| checkpoint.id == id) {
                Some(checkpoint) => Some(checkpoint.clone()),
                None => return fail(FAILED, "The checkpoint was not found. (0x80041002)"),
            }
        }
    };
    let mut exported = checkpoint.as_ref().map_or(&vm.active, |checkpoint| &checkpoint.config).clone();
    if settings.flag("CopyVmStorage") {
        for disk in &mut exported.disks {
            let target = folder.join("Virtual Hard Disks").join(&format!("{}.vhdx", disk.stem));
            let file = tx.store.file(&target)?;
            if file.exists() {
                return fail(FAILED, format!("{} exists. (0x80070050)", target.as_str()));
            }
            if let Some(parent) = file.parent() {
                fs::create_dir_all(parent).map_err(LabError::io("create", parent))?;
            }
            tx.store.before_write()?;
            disks::flatten(tx.store, &disk.file, &target)?;
            disk.file = target;
        }
    } else if checkpoint.as_ref().is_some_and(|one| one.kind == crate::state::CheckpointKind::Recovery) {
        // The host takes the caller to be copying the files, and leaves them alone from now on.
        tx.edit().vm_mut(&vm.id).merging = false;
    }
    // 2 makes a VM of its own of the checkpoint; all others keep the id.
    let vm_id = if settings.number("CopySnapshotConfiguration") == 2 { new_guid() } else { vm.id.clone() };
    let parent = match (settings.number("CopySnapshotConfiguration"), &checkpoint) {
        (0, _) => vm.position.as_deref(),
        (3, Some(checkpoint)) => checkpoint.parent.as_deref(),
        _ => None,
    };
    let definition = Definition { vm_id: vm_id.clone(), ..Definition::of(&vm, &exported, parent) };
    let target = folder.join("Virtual Machines").join(&format!("{vm_id}.vmcx"));
    let saved = settings.flag("CopyVmRuntimeInformation") && checkpoint.is_none() && vm.power == Power::Saved;
    config_file::write(tx.store, &config_file::beside(&target), &definition, saved)?;
    Ok(Ok(()))
}

fn make_folders(tx: &Tx<'_>, vm: &Vm) -> Result<(), LabError> {
    let folders = [vm.folder.join("Virtual Machines"), vm.snapshot_root().join("Snapshots")];
    for folder in folders.iter().chain([&vm.guest_state_root()]) {
        let folder = tx.store.file(folder)?;
        fs::create_dir_all(&folder).map_err(LabError::io("create", folder))?;
    }
    Ok(())
}

//! The state as WMI objects.

use hyperv::seam::{Instance, Namespace, ObjectPath};

use crate::builder::Builder;
use crate::devices::{components, device_settings};
use crate::host::Tx;
use crate::object_path::{ParsedPath, format_path, parse_path};
use crate::schema::{Class, schema};
use crate::state::{Object, Power};
use crate::templates;

mod associations;
mod host;
mod job;
mod storage;
mod system;

pub(crate) use associations::pairs;
pub(crate) use job::is_cancellable;
pub(crate) use storage::{is_used, serial_of};
pub(crate) use system::{enabled_state, system_settings};

/// All objects of a class and its subclasses, in the order in which the host lists them.
pub(crate) fn instances(tx: &Tx<'_>, class: &Class) -> Vec<Instance> {
    let wanted = |name: &str| schema().own(name).is_a(&class.name);
    let mut list = Vec::new();
    if wanted("Msvm_ComputerSystem") {
        list.push(host::computer_system(tx));
        list.extend(tx.vms.iter().map(|vm| system::computer_system(tx, vm)));
    }
    if wanted("Msvm_PlannedComputerSystem") {
        list.extend(tx.planned.iter().map(|planned| system::planned_system(tx, &planned.vm)));
    }
    if wanted("Msvm_VirtualSystemSettingData") {
        for vm in tx.machines() {
            list.push(system_settings(tx, vm, None));
            list.extend(vm.checkpoints.iter().map(|checkpoint| system_settings(tx, vm, Some(checkpoint))));
        }
        for planned in &tx.planned {
            let checkpoints = planned.checkpoints.iter();
            list.extend(checkpoints.map(|checkpoint| system::planned_checkpoint(tx, &planned.vm, checkpoint)));
        }
    }
    for vm in tx.machines() {
        list.extend(device_settings(tx, vm, &vm.id, &vm.active, &wanted));
        for checkpoint in &vm.checkpoints {
            list.extend(device_settings(tx, vm, &checkpoint.id, &checkpoint.config, &wanted));
        }
    }
    for vm in &tx.vms {
        if vm.power == Power::Running {
            list.extend(components(tx, vm, &wanted));
        }
        if wanted("Msvm_DiskMergeSettingData") {
            list.push(
                Builder::new(tx, "Msvm_DiskMergeSettingData")
                    .text("InstanceID", &format!("Microsoft:{}", vm.id))
                    .text("ElementName", &vm.active.name)
                    .number("EnabledState", u64::from(vm.merging))
                    .build(),
            );
        }
        if wanted("Msvm_VirtualSystemExportSettingData") {
            list.push(system::export_settings(tx, vm));
        }
        if wanted("Msvm_SecurityElement") {
            list.push(
                Builder::new(tx, "Msvm_SecurityElement")
                    .text("InstanceID", &format!("Microsoft:{}", vm.id))
                    .text("ElementName", &vm.active.name)
                    .flag("Shielded", vm.active.security_flag("ShieldingRequested"))
                    .build(),
            );
        }
        if wanted("Msvm_VirtualSystemReferencePoint") {
            list.extend(vm.reference_points.iter().map(|point| system::reference_point(tx, vm, point)));
        }
    }
    if wanted("Msvm_ConcreteJob") {
        list.extend(tx.jobs.iter().map(|job| job::concrete_job(tx, job)));
    }
    list.extend(host::instances(tx, &wanted));
    list.extend(storage::instances(tx, &wanted));
    list.extend(templates::instances(tx, &wanted));
    list
}

/// The object that a path names.
pub(crate) fn find(tx: &Tx<'_>, path: &ParsedPath) -> Option<Instance> {
    let class = schema().class(&path.class)?;
    let names_all_keys =
        path.keys.len() == class.keys.len() && path.keys.iter().all(|(name, _)| class.property(name).is_some());
    if !names_all_keys {
        return None;
    }
    instances(tx, class).into_iter().find(|instance| {
        path.keys.iter().all(|(name, value)| {
            let known = instance.get(name);
            let number = || known.as_u64().map(|number| number.to_string());
            let known = known.as_str().map(str::to_lowercase).or_else(number);
            known.is_some_and(|known| known == value.to_lowercase())
        })
    })
}

/// Whether a text is the path of an object of this host.
pub(crate) fn names_an_object(tx: &Tx<'_>, path: &str) -> bool {
    parse_path(path).is_some_and(|path| is_here(tx, &path) && find(tx, &path).is_some())
}

/// The name of the virtual switch that a path names.
pub(crate) fn switch_name(tx: &Tx<'_>, path: &str) -> Option<String> {
    let path = parse_path(path).filter(|path| is_here(tx, path))?;
    let switch = find(tx, &path).filter(|switch| switch.class == "Msvm_VirtualEthernetSwitch")?;
    switch.get("ElementName").as_str().map(str::to_owned)
}

/// The path of a physical disk of the host.
pub(crate) fn physical_disk_path(tx: &Tx<'_>, number: u32) -> Option<ObjectPath> {
    let disks = instances(tx, schema().own("Msvm_DiskDrive")).into_iter();
    disks.filter(|disk| disk.get("DriveNumber").as_u64() == Some(number.into())).find_map(|disk| disk.path)
}

fn is_here(tx: &Tx<'_>, path: &ParsedPath) -> bool {
    path.host == "." || path.host.eq_ignore_ascii_case(&tx.options.host_name)
}

pub(crate) fn vm_path(tx: &Tx<'_>, name: &str) -> ObjectPath {
    system_path(tx, "Msvm_ComputerSystem", name)
}

pub(crate) fn planned_path(tx: &Tx<'_>, name: &str) -> ObjectPath {
    system_path(tx, "Msvm_PlannedComputerSystem", name)
}

fn system_path(tx: &Tx<'_>, class: &str, name: &str) -> ObjectPath {
    let keys = [("CreationClassName", class), ("Name", name)];
    format_path(&tx.options.host_name, Namespace::Virtualization, class, &keys)
}

pub(crate) fn switch_path(tx: &Tx<'_>, id: &str) -> ObjectPath {
    system_path(tx, "Msvm_VirtualEthernetSwitch", id)
}

pub(crate) fn settings_path(tx: &Tx<'_>, configuration: &str) -> ObjectPath {
    instance_path(tx, "Msvm_VirtualSystemSettingData", &format!("Microsoft:{configuration}"))
}

pub(crate) fn job_path(tx: &Tx<'_>, id: &str) -> ObjectPath {
    instance_path(tx, "Msvm_ConcreteJob", id)
}

/// The path of something that a job made, if it is still there.
pub(crate) fn object_path(tx: &Tx<'_>, object: &Object) -> Option<ObjectPath> {
    match object {
        Object::Checkpoint { id } => tx.checkpoint(id).map(|_| settings_path(tx, id)),
        Object::ReferencePoint { id } => {
            tx.reference_point(id).and_then(|(vm, point)| system::reference_point(tx, vm, point).path)
        }
        Object::System { id } => tx.vm(id).map(|_| vm_path(tx, id)),
        Object::Planned { id } => tx.planned(id).map(|_| planned_path(tx, id)),
        Object::Setting { class, instance_id } => {
            let path = instance_path(tx, class, instance_id);
            names_an_object(tx, path.as_str()).then_some(path)
        }
    }
}

pub(crate) fn instance_path(tx: &Tx<'_>, class: &str, id: &str) -> ObjectPath {
    format_path(&tx.options.host_name, Namespace::Virtualization, class, &[("InstanceID", id)])
}

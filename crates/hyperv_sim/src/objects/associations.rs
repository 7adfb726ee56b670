//! Which objects belong together.

use hyperv::seam::{Instance, ObjectPath};

use super::{
    host, instance_path, instances, job_path, object_path, planned_path, settings_path, storage, system, vm_path,
};
use crate::devices::{components, device_settings};
use crate::host::Tx;
use crate::schema::schema;
use crate::state::{Power, Vm};

const FEATURE: &str = "Msvm_EthernetSwitchPortFeatureSettingData";

/// All pairs that an association connects.
pub(crate) fn pairs(tx: &Tx<'_>, association: &str) -> Vec<(ObjectPath, ObjectPath)> {
    let mut pairs = Vec::new();
    for vm in &tx.vms {
        of_vm(tx, vm, vm_path(tx, &vm.id), association, &mut pairs);
    }
    for planned in &tx.planned {
        let system = planned_path(tx, &planned.vm.id);
        if association == "Msvm_SnapshotOfVirtualSystem" {
            let checkpoints = planned.checkpoints.iter();
            pairs.extend(checkpoints.map(|checkpoint| (system.clone(), settings_path(tx, &checkpoint.id))));
        }
        of_vm(tx, &planned.vm, system, association, &mut pairs);
    }
    if association == "Msvm_AffectedJobElement" {
        for job in &tx.jobs {
            let job_path = job_path(tx, &job.id);
            let system = if tx.planned(&job.vm).is_some() { planned_path(tx, &job.vm) } else { vm_path(tx, &job.vm) };
            if tx.machine(&job.vm).is_some() {
                pairs.push((system, job_path.clone()));
            }
            for result in job.end.iter().flat_map(|end| &end.results) {
                pairs.extend(object_path(tx, result).map(|object| (object, job_path.clone())));
            }
        }
        // The system that a job belongs to can also be what it made.
        pairs.sort();
        pairs.dedup();
    }
    pairs.extend(storage::pairs(tx, association));
    if association == "Msvm_HostedService" {
        let services = instances(tx, schema().own("CIM_Service"));
        let host = path(&host::computer_system(tx));
        pairs.extend(services.iter().map(|service| (host.clone(), path(service))));
    }
    pairs
}

fn of_vm(tx: &Tx<'_>, vm: &Vm, system: ObjectPath, association: &str, pairs: &mut Vec<(ObjectPath, ObjectPath)>) {
    let everything = |_: &str| true;
    let active = settings_path(tx, &vm.id);
    let configs = || {
        let checkpoints = vm.checkpoints.iter().map(|checkpoint| (&checkpoint.id, &checkpoint.config));
        std::iter::once((&vm.id, &vm.active)).chain(checkpoints)
    };
    match association {
        "Msvm_SettingsDefineState" => pairs.push((system, active)),
        "Msvm_VirtualSystemSettingDataComponent" => {
            for (id, config) in configs() {
                let settings = device_settings(tx, vm, id, config, &everything);
                let settings = settings.iter().filter(|setting| !schema().own(&setting.class).is_a(FEATURE));
                pairs.extend(settings.map(|setting| (settings_path(tx, id), path(setting))));
            }
        }
        "Msvm_EthernetPortSettingDataComponent" => {
            for (id, config) in configs() {
                let features = config.devices.iter().filter(|device| schema().own(&device.class).is_a(FEATURE));
                pairs.extend(features.filter_map(|feature| {
                    let connection = config.device(feature.parent.as_deref()?)?;
                    let of = |class: &str, device: &str| instance_path(tx, class, &format!(r"Microsoft:{id}\{device}"));
                    Some((of(&connection.class, &connection.id), of(&feature.class, &feature.id)))
                }));
            }
        }
        "Msvm_SnapshotOfVirtualSystem" => {
            pairs.extend(vm.checkpoints.iter().map(|checkpoint| (system.clone(), settings_path(tx, &checkpoint.id))))
        }
        "Msvm_MostCurrentSnapshotInBranch" => {
            pairs.extend(vm.position.as_ref().map(|checkpoint| (system, settings_path(tx, checkpoint))));
        }
        "Msvm_LastAppliedSnapshot" => {
            let last = vm.last_applied.as_ref().or(vm.position.as_ref());
            pairs.extend(last.map(|checkpoint| (system, settings_path(tx, checkpoint))));
        }
        "Msvm_ParentChildSettingData" => pairs.extend(vm.checkpoints.iter().filter_map(|checkpoint| {
            let parent = checkpoint.parent.as_ref()?;
            Some((settings_path(tx, parent), settings_path(tx, &checkpoint.id)))
        })),
        "Msvm_ReferencePointOfVirtualSystem" => {
            let points = vm.reference_points.iter().map(|point| path(&system::reference_point(tx, vm, point)));
            pairs.extend(points.map(|point| (system.clone(), point)));
        }
        "Msvm_SystemDevice" if vm.power == Power::Running && tx.vm(&vm.id).is_some() => {
            pairs.extend(components(tx, vm, &everything).iter().map(|device| (system.clone(), path(device))));
        }
        "Msvm_SystemExportSettingData" if tx.vm(&vm.id).is_some() => {
            let settings = instance_path(tx, "Msvm_VirtualSystemExportSettingData", &format!("Microsoft:{}", vm.id));
            pairs.push((system, settings));
        }
        "Msvm_ElementSettingData" => {
            pairs.push((system.clone(), active));
            if tx.vm(&vm.id).is_some() {
                let merging = instance_path(tx, "Msvm_DiskMergeSettingData", &format!("Microsoft:{}", vm.id));
                pairs.push((system, merging));
            }
        }
        _ => {}
    }
}

fn path(instance: &Instance) -> ObjectPath {
    instance.path.clone().expect("objects of the host have paths")
}

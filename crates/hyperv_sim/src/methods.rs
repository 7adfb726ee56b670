//! The methods: what each checks, starts and answers.

use std::collections::BTreeMap;

use hyperv::seam::{CimType, CimValue, Instance, MethodOutput};

use crate::error::LabError;
use crate::failure::Failure;
use crate::host::Tx;
use crate::jobs as work;
use crate::objects;
use crate::options::{JobStyle, ReferenceOutputs};
use crate::provider::{Inputs, Refusal};
use crate::state::{Action, Vm};

mod image;
mod jobs;
mod planned;
mod resources;
mod security;
mod settings;
mod snapshot;
mod storage;
mod system;

const STARTED: u32 = 4096;
const NOT_SUPPORTED: u32 = 32770;
const INVALID_PARAMETER: u32 = 32773;
const INVALID_STATE: u32 = 32775;
const FILE_NOT_FOUND: u32 = 32779;

const MANAGEMENT: &str = "Msvm_VirtualSystemManagementService";
const SNAPSHOTS: &str = "Msvm_VirtualSystemSnapshotService";
const REFERENCE_POINTS: &str = "Msvm_VirtualSystemReferencePointService";
const IMAGES: &str = "Msvm_ImageManagementService";
const SECURITY: &str = "Msvm_SecurityService";

/// Runs a method whose inputs have been checked against the schema.
pub(crate) fn call(tx: &mut Tx<'_>, object: &Instance, method: &str, inputs: &Inputs) -> Result<MethodOutput, Refusal> {
    Ok(match (object.class.as_str(), method) {
        (SNAPSHOTS, "CreateSnapshot") => snapshot::create(tx, inputs)?,
        (SNAPSHOTS, "DestroySnapshot") => snapshot::destroy(tx, inputs)?,
        (SNAPSHOTS, "ConvertToReferencePoint") => snapshot::convert(tx, inputs)?,
        (REFERENCE_POINTS, "DestroyReferencePoint") => snapshot::destroy_reference_point(tx, inputs)?,
        // Nobody here calls these; an accidental use is to be noticed.
        (REFERENCE_POINTS, "CreateReferencePoint" | "ExportReferencePoint")
        | (SECURITY, "SetSecurityPolicy" | "RestoreLastKnownGoodKeyProtector") => answer(NOT_SUPPORTED),
        (MANAGEMENT, "ModifySystemSettings") => settings::modify(tx, inputs),
        (MANAGEMENT, "GetSummaryInformation") => settings::summary(tx, inputs),
        (MANAGEMENT, "GetDefinitionFileSummaryInformation") => settings::definition_summary(tx, inputs)?,
        (MANAGEMENT, "AddResourceSettings") => resources::add(tx, inputs)?,
        (MANAGEMENT, "ModifyResourceSettings") => resources::modify(tx, inputs)?,
        (MANAGEMENT, "RemoveResourceSettings") => resources::remove(tx, inputs)?,
        (MANAGEMENT, "AddFeatureSettings") => resources::add_features(tx, inputs)?,
        (MANAGEMENT, "DefineSystem") => planned::define(tx, inputs)?,
        (MANAGEMENT, "ImportSystemDefinition") => planned::import(tx, inputs)?,
        (MANAGEMENT, "ValidatePlannedSystem") => planned::validate(tx, inputs)?,
        (MANAGEMENT, "RealizePlannedSystem") => planned::realize(tx, inputs)?,
        (MANAGEMENT, "DestroySystem") => planned::destroy(tx, inputs)?,
        (MANAGEMENT, "ExportSystemDefinition") => system::export(tx, inputs)?,
        (MANAGEMENT, "ModifyDiskMergeSettings") => system::modify_merging(tx, inputs),
        (SECURITY, "GetKeyProtector") => security::key_protector(tx, inputs),
        (SECURITY, "SetKeyProtector") => security::set_key_protector(tx, inputs),
        (SECURITY, "ModifySecuritySettings") => security::modify(tx, inputs),
        (IMAGES, "GetVirtualHardDiskSettingData") => image::setting_data(tx, inputs)?,
        (IMAGES, "GetVirtualHardDiskState") => image::state(tx, inputs)?,
        (IMAGES, "GetVirtualDiskChanges") => image::changes(tx, inputs)?,
        (IMAGES, "CreateVirtualHardDisk") => image::create(tx, inputs)?,
        (IMAGES, "SetParentVirtualHardDisk") => image::set_parent(tx, inputs)?,
        (IMAGES, "MergeVirtualHardDisk") => image::merge(tx, inputs)?,
        ("Win32_Service", "StartService") => storage::start_service(tx, object),
        ("MSFT_iSCSITargetPortal", "New") => storage::new_portal(tx, inputs),
        ("MSFT_iSCSITargetPortal", "Update") => storage::update_portal(tx, object),
        ("MSFT_iSCSITargetPortal", "Remove") => storage::remove_portal(tx, object),
        ("MSFT_iSCSITarget", "Connect") => storage::connect(tx, inputs),
        ("MSFT_iSCSITarget", "Disconnect") => storage::disconnect(tx, object, inputs),
        // What the host knows is always new here.
        ("MSFT_iSCSITarget", "Update") | ("MSFT_StorageSetting", "UpdateHostStorageCache") => answer(0),
        ("MSFT_Disk", "Online") => storage::set_offline(tx, object, false)?,
        ("MSFT_Disk", "Offline") => storage::set_offline(tx, object, true)?,
        ("MSFT_Disk", "SetAttributes") => storage::set_attributes(tx, object, inputs),
        ("MSFT_Partition", "AddAccessPath") => storage::add_access_path(tx, object, inputs)?,
        ("MSFT_Partition", "RemoveAccessPath") => storage::remove_access_path(tx, object, inputs)?,
        ("Msvm_ConcreteJob" | "Msvm_StorageJob", "RequestStateChange") => jobs::cancel(tx, object, inputs)?,
        ("Msvm_ConcreteJob" | "Msvm_StorageJob", "GetErrorEx") => jobs::errors(tx, object),
        ("Msvm_ConcreteJob" | "Msvm_StorageJob", "KillJob") => answer(1),
        ("Msvm_ComputerSystem", "RequestStateChange") => system::change_power(tx, object, inputs)?,
        ("Msvm_ShutdownComponent", "InitiateShutdown") => system::shut_down(tx, object)?,
        (class, method) => unreachable!("schema.json lists {class}.{method}, which nothing implements"),
    })
}

fn answer(return_value: u32) -> MethodOutput {
    MethodOutput { return_value, out: BTreeMap::new() }
}

fn answer_with(return_value: u32, outputs: Vec<(&str, CimValue)>) -> MethodOutput {
    let out = outputs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    MethodOutput { return_value, out }
}

/// The output in which a method names what it made.
#[derive(Clone, Copy)]
enum Output {
    One(&'static str),
    Many(&'static str),
}

/// Answers with a job, or does the work at once, as the host is set.
fn start(
    tx: &mut Tx<'_>,
    vm: &str,
    method: &str,
    action: Action,
    result: Option<Output>,
) -> Result<MethodOutput, LabError> {
    if tx.options.jobs == JobStyle::ByJob {
        let id = work::start(tx, vm, method, action);
        return Ok(answer_with(STARTED, vec![("Job", CimValue::Reference(objects::job_path(tx, &id)))]));
    }
    let outcome: Result<_, Failure> = match work::planned_failure(&tx.faults()?, method, &action) {
        Some(failure) => Err(failure),
        None => work::perform(tx, vm, &action)?,
    };
    Ok(match outcome {
        Err(failure) => answer(failure.code.into()),
        Ok(results) => {
            let shown = tx.options.reference_outputs == ReferenceOutputs::Filled;
            let paths = results.iter().filter(|_| shown).filter_map(|object| objects::object_path(tx, object));
            let mut paths = paths.map(CimValue::Reference);
            let output = result.and_then(|result| match result {
                Output::One(name) => paths.next().map(|path| (name, path)),
                Output::Many(name) => Some((name, CimValue::Array(CimType::Reference, paths.collect()))),
            });
            answer_with(0, output.into_iter().collect())
        }
    })
}

fn vm_of(tx: &Tx<'_>, object: &Instance) -> Option<Vm> {
    tx.vm(object.get("Name").as_str()?).cloned()
}

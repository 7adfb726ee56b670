//! The methods: what each checks, starts and answers.

use std::collections::BTreeMap;

use hyperv::seam::{CimType, CimValue, Instance, MethodOutput};

use crate::builder::Builder;
use crate::checkpoint::Failure;
use crate::embedded;
use crate::error::LabError;
use crate::host::Tx;
use crate::jobs;
use crate::objects;
use crate::options::{JobStyle, ReferenceOutputs};
use crate::provider::{Inputs, Refusal};
use crate::state::{Action, CheckpointKind, JobEnd, Power, Vm};

mod image;
mod settings;

const STARTED: u32 = 4096;
const NOT_SUPPORTED: u32 = 32770;
const INVALID_PARAMETER: u32 = 32773;
const INVALID_STATE: u32 = 32775;
const FILE_NOT_FOUND: u32 = 32779;

/// Runs a method whose inputs have been checked against the schema.
pub(crate) fn call(tx: &mut Tx<'_>, object: &Instance, method: &str, inputs: &Inputs) -> Result<MethodOutput, Refusal> {
    Ok(match (object.class.as_str(), method) {
        ("Msvm_VirtualSystemSnapshotService", "CreateSnapshot") => create_snapshot(tx, inputs)?,
        ("Msvm_VirtualSystemSnapshotService", "DestroySnapshot") => destroy_snapshot(tx, inputs)?,
        ("Msvm_VirtualSystemSnapshotService", "ConvertToReferencePoint") => convert_to_reference_point(tx, inputs)?,
        ("Msvm_VirtualSystemReferencePointService", "DestroyReferencePoint") => destroy_reference_point(tx, inputs)?,
        // Nobody here calls these; an accidental use is to be noticed.
        ("Msvm_VirtualSystemReferencePointService", "CreateReferencePoint" | "ExportReferencePoint") => {
            answer(NOT_SUPPORTED)
        }
        ("Msvm_VirtualSystemManagementService", "ModifySystemSettings") => settings::modify(tx, inputs),
        ("Msvm_VirtualSystemManagementService", "GetSummaryInformation") => settings::summary(tx, inputs),
        ("Msvm_SecurityService", "GetKeyProtector") => settings::key_protector(tx, inputs),
        ("Msvm_ImageManagementService", "GetVirtualHardDiskSettingData") => image::setting_data(tx, inputs)?,
        ("Msvm_ImageManagementService", "GetVirtualHardDiskState") => image::state(tx, inputs)?,
        ("Msvm_ImageManagementService", "GetVirtualDiskChanges") => image::changes(tx, inputs)?,
        ("Msvm_ConcreteJob" | "Msvm_StorageJob", "RequestStateChange") => cancel_job(tx, object, inputs),
        ("Msvm_ConcreteJob" | "Msvm_StorageJob", "GetErrorEx") => job_errors(tx, object),
        ("Msvm_ConcreteJob" | "Msvm_StorageJob", "KillJob") => answer(1),
        ("Msvm_ComputerSystem", "RequestStateChange") => change_power(tx, object, inputs)?,
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

fn create_snapshot(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, Refusal> {
    let Some(vm) = vm_of(tx, inputs.object("AffectedSystem")) else { return Ok(answer(INVALID_PARAMETER)) };
    let kind = match inputs.number("SnapshotType") {
        2 => CheckpointKind::User,
        32768 => CheckpointKind::Recovery,
        3 => return Ok(answer(1)),
        _ => return Ok(answer(6)),
    };
    let settings = inputs.embedded("SnapshotSettings");
    let setting = |name: &str| settings.map(|settings| settings.get(name)).filter(|value| !value.is_null());
    let level = setting("ConsistencyLevel").and_then(CimValue::as_u64).unwrap_or(1);
    let guest_backup = setting("GuestBackupType").and_then(CimValue::as_u64).unwrap_or(0);
    let ignore = setting("IgnoreNonSnapshottableDisks").and_then(CimValue::as_bool).unwrap_or(false);
    let consistency_level = match level {
        1 => 1,
        2 => 2,
        _ => return Ok(answer(4)),
    };
    if guest_backup > 2 {
        return Ok(answer(4));
    }
    let recovery_exists = vm.checkpoints.iter().any(|checkpoint| checkpoint.kind == CheckpointKind::Recovery);
    let second = kind == CheckpointKind::Recovery && recovery_exists;
    if tx.operation(&vm.id).is_some() || (second && !tx.options.allow_second_recovery_checkpoint) {
        return Ok(answer(INVALID_STATE));
    }
    if kind == CheckpointKind::User && vm.active.user_snapshot_type == 2 {
        return Ok(answer(32768));
    }
    if vm.active.disks.iter().any(|disk| disk.shared) && !ignore {
        return Ok(answer(NOT_SUPPORTED));
    }
    let action = Action::Create { kind, consistency_level };
    Ok(start(tx, &vm.id, "CreateSnapshot", action, Some("ResultingSnapshot"))?)
}

fn destroy_snapshot(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, Refusal> {
    let Some((vm, checkpoint, _)) = checkpoint_of(tx, inputs.object("AffectedSnapshot")) else {
        return Ok(answer(INVALID_PARAMETER));
    };
    if tx.operation(&vm).is_some() {
        return Ok(answer(INVALID_STATE));
    }
    Ok(start(tx, &vm, "DestroySnapshot", Action::Destroy { checkpoint }, None)?)
}

fn convert_to_reference_point(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, Refusal> {
    let Some((vm, checkpoint, kind)) = checkpoint_of(tx, inputs.object("AffectedSnapshot")) else {
        return Ok(answer(INVALID_PARAMETER));
    };
    if kind != CheckpointKind::Recovery {
        return Ok(answer(6));
    }
    if tx.operation(&vm).is_some() {
        return Ok(answer(INVALID_STATE));
    }
    let action = Action::Convert { checkpoint };
    Ok(start(tx, &vm, "ConvertToReferencePoint", action, Some("ResultingReferencePoint"))?)
}

fn destroy_reference_point(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, Refusal> {
    let point = inputs.object("AffectedReferencePoint");
    let id = point.get("InstanceID").as_str().unwrap_or_default();
    let id = id.rsplit(['\\', ':']).next().unwrap_or_default();
    let Some((vm, point)) = tx.reference_point(id) else { return Ok(answer(INVALID_PARAMETER)) };
    let (vm, reference_point) = (vm.id.clone(), point.id.clone());
    Ok(start(tx, &vm, "DestroyReferencePoint", Action::DestroyReferencePoint { reference_point }, None)?)
}

/// Answers with a job, or does the work at once, as the host is set.
fn start(
    tx: &mut Tx<'_>,
    vm: &str,
    method: &str,
    action: Action,
    result: Option<&str>,
) -> Result<MethodOutput, LabError> {
    if tx.options.jobs == JobStyle::ByJob {
        let id = jobs::start(tx, vm, method, action);
        return Ok(answer_with(STARTED, vec![("Job", CimValue::Reference(objects::job_path(tx, &id)))]));
    }
    let outcome: Result<_, Failure> = match jobs::planned_failure(&tx.faults()?, method, &action) {
        Some(failure) => Err(failure),
        None => jobs::perform(tx, vm, &action)?,
    };
    Ok(match outcome {
        Err(failure) => answer(failure.code.into()),
        Ok(results) => {
            let shown = tx.options.reference_outputs == ReferenceOutputs::Filled;
            let path = results.first().filter(|_| shown).and_then(|object| objects::object_path(tx, object));
            let output = result.zip(path).map(|(name, path)| (name, CimValue::Reference(path)));
            answer_with(0, output.into_iter().collect())
        }
    })
}

fn cancel_job(tx: &mut Tx<'_>, object: &Instance, inputs: &Inputs) -> MethodOutput {
    let state = match inputs.number("RequestedState") {
        4 => 8,
        5 => 9,
        _ => return answer(5),
    };
    if !inputs.value("TimeoutPeriod").is_null() {
        return answer(4098);
    }
    let Some(index) = job_of(tx, object) else { return answer(5) };
    if !objects::is_cancellable(&tx.jobs[index]) {
        return answer(4097);
    }
    let at_ms = tx.now_ms;
    let error_description = "The operation was cancelled. (0x800704C7)".to_owned();
    tx.edit().jobs[index].end =
        Some(JobEnd { at_ms, state, error_code: 32768, error_description, results: Vec::new() });
    answer(0)
}

fn job_errors(tx: &Tx<'_>, object: &Instance) -> MethodOutput {
    let end = job_of(tx, object).and_then(|index| tx.jobs[index].end.as_ref());
    let errors = end.filter(|end| end.error_code != 0).map(|end| {
        CimValue::String(embedded::format(
            &Builder::embedded("Msvm_Error")
                .text("Message", &end.error_description)
                .text("MessageID", &end.error_code.to_string())
                .text("ErrorSource", "Virtual Machine Management")
                .number("CIMStatusCode", 1)
                .number("ErrorType", 4)
                .number("PerceivedSeverity", 5)
                .number("ProbableCause", 0)
                .build(),
        ))
    });
    answer_with(0, vec![("Errors", CimValue::Array(CimType::String, errors.into_iter().collect()))])
}

fn change_power(tx: &mut Tx<'_>, object: &Instance, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let Some(vm) = vm_of(tx, object) else { return Ok(answer(INVALID_PARAMETER)) };
    let (from, to): (&[Power], Power) = match inputs.number("RequestedState") {
        2 => (&[Power::Off, Power::Saved, Power::Paused], Power::Running),
        3 => (&[Power::Running, Power::Saved, Power::Paused], Power::Off),
        6 => (&[Power::Running, Power::Paused], Power::Saved),
        9 => (&[Power::Running], Power::Paused),
        _ => return Ok(answer(INVALID_PARAMETER)),
    };
    if !from.contains(&vm.power) {
        return Ok(answer(INVALID_STATE));
    }
    for disk in vm.active.disks.iter().filter(|_| to == Power::Running) {
        if tx.store.is_held(&disk.file)? {
            return Ok(answer(32774));
        }
    }
    let now_ms = tx.now_ms;
    let changed = tx.edit().vm_mut(&vm.id);
    changed.power = to;
    changed.state_changed_ms = now_ms;
    Ok(answer(0))
}

fn vm_of(tx: &Tx<'_>, object: &Instance) -> Option<Vm> {
    tx.vm(object.get("Name").as_str()?).cloned()
}

/// VM id, checkpoint id and kind of a checkpoint's settings.
fn checkpoint_of(tx: &Tx<'_>, object: &Instance) -> Option<(String, String, CheckpointKind)> {
    let id = object.get("InstanceID").as_str()?.strip_prefix("Microsoft:")?;
    let (vm, checkpoint) = tx.checkpoint(id)?;
    Some((vm.id.clone(), checkpoint.id.clone(), checkpoint.kind))
}

fn job_of(tx: &Tx<'_>, object: &Instance) -> Option<usize> {
    let id = object.get("InstanceID").as_str()?;
    tx.jobs.iter().position(|job| job.id == id)
}

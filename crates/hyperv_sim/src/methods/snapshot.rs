//! The snapshot and reference point services.

use hyperv::seam::{CimValue, Instance, MethodOutput};

use super::{INVALID_PARAMETER, INVALID_STATE, NOT_SUPPORTED, Output, answer, start, vm_of};
use crate::host::Tx;
use crate::provider::{Inputs, Refusal};
use crate::state::{Action, CheckpointKind};

pub(super) fn create(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, Refusal> {
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
    if vm.storage_lost || tx.is_busy(&vm.id) || (second && !tx.options.allow_second_recovery_checkpoint) {
        return Ok(answer(INVALID_STATE));
    }
    if kind == CheckpointKind::User && vm.active.system.number("UserSnapshotType") == 2 {
        return Ok(answer(32768));
    }
    if vm.active.has_unsnapshottable() && !ignore {
        return Ok(answer(NOT_SUPPORTED));
    }
    let action = Action::Create { kind, consistency_level };
    Ok(start(tx, &vm.id, "CreateSnapshot", action, Some(Output::One("ResultingSnapshot")))?)
}

pub(super) fn destroy(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, Refusal> {
    let settings = inputs.object("AffectedSnapshot");
    if let Some((planned, checkpoint)) = planned_checkpoint_of(tx, settings) {
        return Ok(start(tx, &planned, "DestroySnapshot", Action::ForgetCheckpoint { checkpoint }, None)?);
    }
    let Some((vm, checkpoint, _)) = checkpoint_of(tx, settings) else { return Ok(answer(INVALID_PARAMETER)) };
    if tx.is_busy(&vm) {
        return Ok(answer(INVALID_STATE));
    }
    Ok(start(tx, &vm, "DestroySnapshot", Action::Destroy { checkpoint }, None)?)
}

pub(super) fn convert(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, Refusal> {
    let Some((vm, checkpoint, kind)) = checkpoint_of(tx, inputs.object("AffectedSnapshot")) else {
        return Ok(answer(INVALID_PARAMETER));
    };
    if kind != CheckpointKind::Recovery {
        return Ok(answer(6));
    }
    if tx.is_busy(&vm) {
        return Ok(answer(INVALID_STATE));
    }
    let action = Action::Convert { checkpoint };
    Ok(start(tx, &vm, "ConvertToReferencePoint", action, Some(Output::One("ResultingReferencePoint")))?)
}

pub(super) fn destroy_reference_point(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, Refusal> {
    let point = inputs.object("AffectedReferencePoint");
    let id = point.get("InstanceID").as_str().unwrap_or_default();
    let id = id.rsplit(['\\', ':']).next().unwrap_or_default();
    let Some((vm, point)) = tx.reference_point(id) else { return Ok(answer(INVALID_PARAMETER)) };
    let (vm, reference_point) = (vm.id.clone(), point.id.clone());
    Ok(start(tx, &vm, "DestroyReferencePoint", Action::DestroyReferencePoint { reference_point }, None)?)
}

/// VM id, checkpoint id and kind of a checkpoint's settings.
fn checkpoint_of(tx: &Tx<'_>, object: &Instance) -> Option<(String, String, CheckpointKind)> {
    let id = object.get("InstanceID").as_str()?.strip_prefix("Microsoft:")?;
    let (vm, checkpoint) = tx.checkpoint(id)?;
    Some((vm.id.clone(), checkpoint.id.clone(), checkpoint.kind))
}

/// Id of the planned system and of the checkpoint that it refers to.
fn planned_checkpoint_of(tx: &Tx<'_>, object: &Instance) -> Option<(String, String)> {
    let id = object.get("InstanceID").as_str()?.strip_prefix("Microsoft:")?;
    tx.planned.iter().find_map(|planned| {
        let checkpoint = planned.checkpoints.iter().find(|checkpoint| checkpoint.id == id)?;
        Some((planned.vm.id.clone(), checkpoint.id.clone()))
    })
}

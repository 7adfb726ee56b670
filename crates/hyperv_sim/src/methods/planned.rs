//! Importing, validating, realizing, defining and destroying systems.

use hyperv::seam::MethodOutput;

use super::{FILE_NOT_FOUND, INVALID_PARAMETER, INVALID_STATE, Output, answer, start};
use crate::error::LabError;
use crate::host::Tx;
use crate::paths::WinPath;
use crate::properties::Properties;
use crate::provider::Inputs;
use crate::state::{Action, NewSetting, Power};

/// `ImportSystemDefinition`. A file in use is answered at once, everything else by the job.
pub(super) fn import(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let definition = WinPath::new(inputs.text("SystemDefinitionFile"));
    if definition.in_sandbox(tx.store.root()).is_none() {
        return Ok(answer(INVALID_PARAMETER));
    }
    if tx.store.is_held(&definition)? {
        // For imports this number means "file in use".
        return Ok(answer(FILE_NOT_FOUND));
    }
    let snapshots = Some(inputs.text("SnapshotFolder")).filter(|folder| !folder.is_empty()).map(WinPath::new);
    if snapshots.as_ref().is_some_and(|folder| folder.in_sandbox(tx.store.root()).is_none()) {
        return Ok(answer(INVALID_PARAMETER));
    }
    let new_id = inputs.flag("GenerateNewSystemIdentifier");
    let action = Action::Import { definition, snapshots, new_id };
    start(tx, "", "ImportSystemDefinition", action, Some(Output::One("ImportedSystem")))
}

/// `ValidatePlannedSystem`.
pub(super) fn validate(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    on_planned(tx, inputs, "ValidatePlannedSystem", Action::Validate, None)
}

/// `RealizePlannedSystem`.
pub(super) fn realize(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    on_planned(tx, inputs, "RealizePlannedSystem", Action::Realize, Some(Output::One("ResultingSystem")))
}

fn on_planned(
    tx: &mut Tx<'_>,
    inputs: &Inputs,
    method: &str,
    action: Action,
    output: Option<Output>,
) -> Result<MethodOutput, LabError> {
    let id = inputs.object("PlannedSystem").get("Name").as_str().unwrap_or_default().to_owned();
    if tx.is_busy(&id) {
        return Ok(answer(INVALID_STATE));
    }
    start(tx, &id, method, action, output)
}

/// `DefineSystem`. Another VM as a pattern is not simulated.
pub(super) fn define(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let Some(system) = inputs.embedded("SystemSettings") else { return Ok(answer(INVALID_PARAMETER)) };
    if system.get("ElementName").as_str().is_none_or(str::is_empty) {
        return Ok(answer(INVALID_PARAMETER));
    }
    if !inputs.value("ReferenceConfiguration").is_null() {
        return Ok(answer(super::NOT_SUPPORTED));
    }
    let setting = |instance: &hyperv::seam::Instance| NewSetting {
        class: instance.class.clone(),
        properties: Properties::of(instance),
    };
    let settings = inputs.embedded_list("ResourceSettings").iter().map(setting).collect();
    let action = Action::Define { system: Properties::of(system), settings };
    start(tx, "", "DefineSystem", action, Some(Output::One("ResultingSystem")))
}

/// `DestroySystem`, of a VM that does not run, or of a planned system.
pub(super) fn destroy(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let system = inputs.object("AffectedSystem");
    let id = system.get("Name").as_str().unwrap_or_default().to_owned();
    let is_planned = system.class == "Msvm_PlannedComputerSystem";
    if !is_planned {
        let Some(vm) = tx.vm(&id) else { return Ok(answer(INVALID_PARAMETER)) };
        if !matches!(vm.power, Power::Off | Power::Saved) {
            return Ok(answer(INVALID_STATE));
        }
    }
    if tx.is_busy(&id) {
        return Ok(answer(INVALID_STATE));
    }
    start(tx, &id, "DestroySystem", Action::DestroySystem, None)
}

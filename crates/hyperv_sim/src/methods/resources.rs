//! Devices of a configuration.

use hyperv::seam::{Instance, MethodOutput};

use super::{INVALID_PARAMETER, INVALID_STATE, Output, answer, start};
use crate::error::LabError;
use crate::host::Tx;
use crate::properties::Properties;
use crate::provider::Inputs;
use crate::resources;
use crate::state::{Action, Change, NewSetting};

/// `AddResourceSettings`.
pub(super) fn add(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let settings = inputs.object("AffectedConfiguration");
    let id = settings.get("InstanceID").as_str().and_then(|id| id.strip_prefix("Microsoft:")).unwrap_or_default();
    let change = Change::Add(settings_of(inputs.embedded_list("ResourceSettings")));
    carry_out(tx, "AddResourceSettings", id, change, Some(Output::Many("ResultingResourceSettings")))
}

/// `ModifyResourceSettings`; all settings belong to one configuration.
pub(super) fn modify(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let settings = inputs.embedded_list("ResourceSettings");
    let Some(id) = settings.first().and_then(configuration_of) else { return Ok(answer(INVALID_PARAMETER)) };
    let change = Change::Modify(settings_of(settings));
    carry_out(tx, "ModifyResourceSettings", &id, change, Some(Output::Many("ResultingResourceSettings")))
}

/// `RemoveResourceSettings`; what hangs off a device goes with it.
pub(super) fn remove(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let settings = inputs.objects("ResourceSettings").unwrap_or_default();
    let Some(id) = settings.first().and_then(configuration_of) else { return Ok(answer(INVALID_PARAMETER)) };
    let ids = settings.iter().filter_map(|setting| setting.get("InstanceID").as_str()).map(str::to_owned);
    carry_out(tx, "RemoveResourceSettings", &id, Change::Remove(ids.collect()), None)
}

/// `AddFeatureSettings`: a VLAN and the like, on a network connection.
pub(super) fn add_features(tx: &mut Tx<'_>, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let connection = inputs.object("AffectedConfiguration");
    let Some(id) = configuration_of(connection) else { return Ok(answer(INVALID_PARAMETER)) };
    let mut settings = settings_of(inputs.embedded_list("FeatureSettings"));
    for setting in &mut settings {
        let path = connection.path.as_ref().map_or("", |path| path.as_str());
        setting.properties.put(resources::CONNECTION_OF_FEATURE, path);
    }
    carry_out(tx, "AddFeatureSettings", &id, Change::Add(settings), Some(Output::Many("ResultingFeatureSettings")))
}

fn settings_of(instances: &[Instance]) -> Vec<NewSetting> {
    let setting =
        |instance: &Instance| NewSetting { class: instance.class.clone(), properties: Properties::of(instance) };
    instances.iter().map(setting).collect()
}

/// The `<cfg>` of `Microsoft:<cfg>\…`.
fn configuration_of(setting: &Instance) -> Option<String> {
    let id = setting.get("InstanceID").as_str()?.strip_prefix("Microsoft:")?;
    id.split_once('\\').map(|(configuration, _)| configuration.to_owned())
}

/// Refuses at once what the job would have to refuse.
fn carry_out(
    tx: &mut Tx<'_>,
    method: &str,
    configuration: &str,
    change: Change,
    output: Option<Output>,
) -> Result<MethodOutput, LabError> {
    let Some((vm, _)) = tx.configuration(configuration) else { return Ok(answer(INVALID_PARAMETER)) };
    let vm = vm.id.clone();
    if tx.is_busy(&vm) {
        return Ok(answer(INVALID_STATE));
    }
    if let Err(failure) = resources::plan(tx, configuration, &change)? {
        return Ok(answer(failure.code.into()));
    }
    start(tx, &vm, method, Action::Change { configuration: configuration.to_owned(), change }, output)
}

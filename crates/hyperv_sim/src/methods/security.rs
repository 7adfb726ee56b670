//! The security service: key protectors and the switches of security settings.

use hyperv::seam::{CimType, CimValue, MethodOutput};

use super::{INVALID_PARAMETER, INVALID_STATE, answer, answer_with};
use crate::configuration::SECURITY;
use crate::host::Tx;
use crate::properties::Properties;
use crate::provider::Inputs;
use crate::security::is_protector;
use crate::state::{FileOp, Power};

/// `GetKeyProtector`.
pub(super) fn key_protector(tx: &Tx<'_>, inputs: &Inputs) -> MethodOutput {
    let settings = configuration_of(inputs).and_then(|id| tx.configuration(&id));
    let Some(protector) = settings.and_then(|(_, settings)| settings.key_protector.as_deref()) else {
        return answer(INVALID_PARAMETER);
    };
    let byte = |digits: &[u8]| std::str::from_utf8(digits).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes = protector.as_bytes().chunks(2).filter_map(byte).map(CimValue::Uint8).collect();
    answer_with(0, vec![("KeyProtector", CimValue::Array(CimType::Uint8, bytes))])
}

/// `SetKeyProtector`: the content of a TPM that was wrapped with another key can be opened no more.
pub(super) fn set_key_protector(tx: &mut Tx<'_>, inputs: &Inputs) -> MethodOutput {
    let bytes = inputs.value("KeyProtector").as_array().unwrap_or_default();
    let digits: String = bytes.iter().filter_map(CimValue::as_u64).map(|byte| format!("{byte:02x}")).collect();
    if !is_protector(&digits) {
        return answer(INVALID_PARAMETER);
    }
    let id = match changeable(tx, inputs) {
        Ok(id) => id,
        Err(code) => return answer(code),
    };
    let state = tx.edit();
    state.configuration_mut(&id).key_protector = Some(digits);
    written(tx, id)
}

/// `ModifySecuritySettings`. A TPM needs a key protector.
pub(super) fn modify(tx: &mut Tx<'_>, inputs: &Inputs) -> MethodOutput {
    let id = match changeable(tx, inputs) {
        Ok(id) => id,
        Err(code) => return answer(code),
    };
    let mut wanted = Properties::of(inputs.embedded("SecuritySettingData").expect("it has just been looked at"));
    wanted.remove("InstanceID");
    let settings = tx.edit().configuration_mut(&id);
    if wanted.flag("TpmEnabled") && settings.key_protector.is_none() {
        return answer(INVALID_STATE);
    }
    let security = settings.first_of_class_mut(SECURITY).expect("every configuration has security settings");
    security.properties.extend(&wanted);
    written(tx, id)
}

/// The VM whose security settings a parameter holds, if they can be changed now.
fn changeable(tx: &Tx<'_>, inputs: &Inputs) -> Result<String, u32> {
    let vm = configuration_of(inputs).and_then(|id| tx.machine(&id)).ok_or(INVALID_PARAMETER)?;
    let is_stopped = tx.planned(&vm.id).is_some() || vm.power == Power::Off;
    if !is_stopped || tx.is_busy(&vm.id) {
        return Err(INVALID_STATE);
    }
    Ok(vm.id.clone())
}

fn configuration_of(inputs: &Inputs) -> Option<String> {
    let id = inputs.embedded("SecuritySettingData")?.get("InstanceID").as_str()?.strip_prefix("Microsoft:")?;
    id.split_once('\\').map(|(configuration, _)| configuration.to_owned())
}

fn written(tx: &mut Tx<'_>, id: String) -> MethodOutput {
    if tx.vm(&id).is_some() {
        tx.edit().redo.push(FileOp::WriteConfiguration { vm: id });
    }
    answer(0)
}

//! Jobs: calling them off, and asking why they failed.

use hyperv::seam::{CimType, CimValue, Instance, MethodOutput};

use super::{answer, answer_with};
use crate::builder::Builder;
use crate::embedded;
use crate::error::LabError;
use crate::faults::Fault;
use crate::host::Tx;
use crate::objects;
use crate::provider::Inputs;
use crate::state::{JobEnd, new_guid};

pub(super) fn cancel(tx: &mut Tx<'_>, object: &Instance, inputs: &Inputs) -> Result<MethodOutput, LabError> {
    let state = match inputs.number("RequestedState") {
        4 => 8,
        5 => 9,
        _ => return Ok(answer(5)),
    };
    if !inputs.value("TimeoutPeriod").is_null() {
        return Ok(answer(4098));
    }
    let Some(index) = job_of(tx, object) else { return Ok(answer(5)) };
    if !objects::is_cancellable(&tx.jobs[index]) {
        return Ok(answer(4097));
    }
    let too_late = tx.faults()?.into_iter().find_map(|fault| match fault {
        Fault::CancelTooLate { appears_after_ms } => Some(appears_after_ms),
        _ => None,
    });
    let at_ms = tx.now_ms;
    match too_late {
        Some(None) => return Ok(answer(0)),
        Some(Some(delay_ms)) => {
            // What has been started goes on under a job that nobody was told of.
            let mut job = tx.jobs[index].clone();
            job.id = new_guid();
            job.due_ms = at_ms.saturating_add(delay_ms);
            tx.edit().jobs.push(job);
        }
        None => {}
    }
    let error_description = "The operation was cancelled. (0x800704C7)".to_owned();
    tx.edit().jobs[index].end =
        Some(JobEnd { at_ms, state, error_code: 32768, error_description, errors: Vec::new(), results: Vec::new() });
    Ok(answer(0))
}

pub(super) fn errors(tx: &Tx<'_>, object: &Instance) -> MethodOutput {
    let end = job_of(tx, object).and_then(|index| tx.jobs[index].end.as_ref());
    let mut texts = Vec::new();
    if let Some(end) = end.filter(|end| end.error_code != 0) {
        let messages = if end.errors.is_empty() { vec![end.error_description.clone()] } else { end.errors.clone() };
        texts
            .extend(messages.iter().map(|message| CimValue::String(embedded::format(&error(end.error_code, message)))));
    }
    answer_with(0, vec![("Errors", CimValue::Array(CimType::String, texts))])
}

fn error(code: u16, message: &str) -> Instance {
    Builder::embedded("Msvm_Error")
        .text("Message", message)
        .text("MessageID", &code.to_string())
        .text("ErrorSource", "Virtual Machine Management")
        .number("CIMStatusCode", 1)
        .number("ErrorType", 4)
        .number("PerceivedSeverity", 5)
        .number("ProbableCause", 0)
        .build()
}

fn job_of(tx: &Tx<'_>, object: &Instance) -> Option<usize> {
    let id = object.get("InstanceID").as_str()?;
    tx.jobs.iter().position(|job| job.id == id)
}

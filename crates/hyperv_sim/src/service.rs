//! The management service, as a process that can go away.

use crate::error::LabError;
use crate::faults::{self, Fault, RestartPhase};
use crate::host::Tx;
use crate::jobs;
use crate::provider::Refusal;

/// The service is not there (`RPC_S_SERVER_UNAVAILABLE`).
const UNAVAILABLE: u32 = 0x8007_06BA;
/// It went away while it worked (`RPC_S_CALL_FAILED`).
const CALL_FAILED: u32 = 0x8007_06BE;

/// A restart that strikes the present call.
pub(crate) struct Restart {
    phase: RestartPhase,
    down_ms: u64,
}

/// Stands before a call; `method` is none for queries and look-ups. Refuses while the service is away.
pub(crate) fn arrive(tx: &mut Tx<'_>, method: Option<&str>) -> Result<Option<Restart>, Refusal> {
    if tx.now_ms < tx.service_down_until_ms {
        return Err(Refusal::Wmi(UNAVAILABLE, "The RPC server is unavailable.".into()));
    }
    let Some(restart) = next_restart(tx, method)? else { return Ok(None) };
    if restart.phase == RestartPhase::Before || method.is_none() {
        return Err(strike(tx, &restart)?);
    }
    Ok(Some(restart))
}

/// Stands behind a method call that a restart strikes: what the caller sees instead of its outputs.
pub(crate) fn leave(tx: &mut Tx<'_>, restart: &Restart) -> Result<Refusal, LabError> {
    if restart.phase == RestartPhase::After {
        while let Some(index) = tx.jobs.iter().rposition(|job| job.end.is_none() && job.started_ms == tx.now_ms) {
            jobs::carry_out(tx, index)?;
        }
    }
    strike(tx, restart)
}

/// The service restarts now. Jobs vanish; what they have not done stays undone.
pub(crate) fn restart(tx: &mut Tx<'_>, down_ms: u64) {
    let until_ms = tx.now_ms.saturating_add(down_ms);
    let state = tx.edit();
    state.jobs.clear();
    state.service_down_until_ms = until_ms;
}

fn strike(tx: &mut Tx<'_>, restart: &Restart) -> Result<Refusal, LabError> {
    self::restart(tx, restart.down_ms);
    Ok(Refusal::Wmi(CALL_FAILED, "The remote procedure call failed.".into()))
}

/// Counts down the restart that calls of this kind lead to; gives it when it is due.
fn next_restart(tx: &Tx<'_>, called: Option<&str>) -> Result<Option<Restart>, LabError> {
    let mut list = tx.faults()?;
    let counts = |fault: &Fault| match fault {
        Fault::ServiceRestarts { method: None, .. } => true,
        Fault::ServiceRestarts { method: Some(method), .. } => called == Some(method),
        _ => false,
    };
    let Some(index) = list.iter().position(counts) else { return Ok(None) };
    let Fault::ServiceRestarts { after_calls, phase, down_ms, .. } = &mut list[index] else {
        unreachable!("no other fault counts")
    };
    let due = *after_calls == 0;
    let restart = Restart { phase: *phase, down_ms: *down_ms };
    match due {
        true => drop(list.remove(index)),
        false => *after_calls -= 1,
    }
    faults::save(tx.store.root(), &list)?;
    Ok(due.then_some(restart))
}

//! `instant …`: machines that run from the backup.

mod hyperv;
mod show;
mod start;
mod steer;

use std::path::Path;

use serde_json::{Value, json};
use serve::SessionState;

use crate::cli::InstantCommand;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::instant::{Found, Record, Served};
use crate::outcome::Outcome;

/// `instant …`
pub fn run(context: &Context, command: InstantCommand) -> Result<Outcome, Failure> {
    match command {
        InstantCommand::Start(arguments) => start::start(context, &arguments),
        InstantCommand::List { state } => show::list(context, &state),
        InstantCommand::Show { session, metrics, state } => show::show(context, &session, metrics, &state),
        InstantCommand::Move(arguments) => steer::move_disks(context, &arguments),
        InstantCommand::Switch { session, shut_down, no_wait, state } => {
            steer::switch(context, &session, shut_down, no_wait, &state)
        }
        InstantCommand::Discard { session, confirm, state } => {
            steer::discard(context, &session, confirm.as_deref(), &state)
        }
    }
}

/// Refuses options that mean nothing where the session is: whoever gives them expects something of them.
fn refuse_idle(what: &str, on: &str, place: &str, given: &[(&str, bool)]) -> Result<(), Failure> {
    let names: Vec<&str> = given.iter().filter(|(_, is_given)| *is_given).map(|(name, _)| *name).collect();
    if names.is_empty() {
        return Ok(());
    }
    let names = names.join(", ");
    let why = format!("{names}: of no meaning under {place}");
    Err(Failure::new(what, on, Code::Usage, why).with_steps(&[&format!("leave out {names}")]))
}

/// The beginning of an id, long enough to be typed again.
fn short(session: &str) -> &str {
    session.get(..8).unwrap_or(session)
}

/// Where a client finds the `nth` disk.
fn uri(record: &Record, nth: usize) -> String {
    let name = &record.disks[nth].name;
    match &record.served {
        Served::Nbd(address) => format!("nbd://{address}/{name}"),
        Served::NbdSocket(path) => format!("nbd+unix:///{name}?socket={}", path.display()),
        Served::Iscsi { portal, target, .. } => {
            // All are files on one volume.
            let unit = if record.hyperv.is_some() { 0 } else { nth };
            format!("iscsi://{portal}/{target}/{unit}")
        }
    }
}

/// Where a session stands, as it is written.
fn state_name(found: &Found) -> String {
    match found.standing().map(|state| json!(state)) {
        Some(Value::String(name)) => name,
        // It died before there was anything to serve.
        _ => "CREATED".to_owned(),
    }
}

/// The document that says that a session is served.
fn serving_json(record: &Record, folder: &Path, state: SessionState, qemu: Value) -> Value {
    let restarts = json!(state.restarts);
    let (folder, record) = (folder.to_owned(), record.clone());
    let found = Found { folder, record, state: Some(state), is_served: true, figures: None };
    let mut told = session_json(&found);
    told["type"] = "serving".into();
    told["restarts"] = restarts;
    told["qemu"] = qemu;
    told
}

/// The fields that every document about a session has.
fn session_json(found: &Found) -> Value {
    let Found { record, figures, .. } = found;
    let disks: Vec<Value> = record
        .disks
        .iter()
        .enumerate()
        .map(|(nth, disk)| {
            let state = found.state.as_ref().and_then(|state| state.disks.get(nth));
            json!({
                "disk": disk.number,
                "name": disk.name,
                "virtual_disk_id": disk.virtual_disk_id,
                "size_bytes": disk.size_bytes,
                "uri": uri(record, nth),
                "target": match &record.hyperv {
                    Some(hyperv) => hyperv.local.get(nth).cloned(),
                    None => state.and_then(|state| state.target.clone()),
                },
                "is_local": state.is_some_and(|state| state.is_local),
            })
        })
        .collect();
    json!({
        "session_id": record.session,
        "point_id": record.point_id,
        "vm_id": record.vm_id,
        "vm_name": record.vm_name,
        "begun": record.begun,
        "state": state_name(found),
        "reason": found.state.as_ref().and_then(|state| state.reason.clone()),
        "is_served": found.is_served,
        "clients": figures.as_ref().filter(|_| found.is_served).map(|figures| figures.clients),
        "moved_bytes": figures.as_ref().and_then(|figures| figures.moved_bytes),
        "total_bytes": figures.as_ref().and_then(|figures| figures.total_bytes),
        "seconds_left": figures.as_ref().filter(|_| found.is_served).and_then(|figures| figures.seconds_left),
        "disks": disks,
        "hyperv": record.hyperv.as_ref().map(|hyperv| json!({
            "host": hyperv.host,
            "vm_name": hyperv.vm_name,
            "directory": hyperv.directory,
            "vm_id": hyperv.vm_id,
        })),
    })
}

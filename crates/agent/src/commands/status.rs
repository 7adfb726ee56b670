//! `status`: what the agent of this host does, and what other shells do to its VMs.

use std::collections::HashMap;

use backup::{HeldLock, held_locks, is_held};
use serde_json::{Value, json};

use crate::context::Context;
use crate::failure::{Attempt as _, Failure};
use crate::host::state_dir;
use crate::outcome::Outcome;
use crate::output::{json_document, line};
use crate::service::{AGENT_LOCK, AgentState, AgentStatus};
use crate::units::visible;

/// The lock of the agent itself, without its extension.
const AGENT: &str = "agent";

/// `status`
pub fn run(context: &Context) -> Result<Outcome, Failure> {
    let what = "look at what goes on";
    let folder = state_dir(context.host_selector()?)?;
    let on = folder.display().to_string();
    let agent = AgentStatus::read(&folder).attempt(what, &*on)?;
    let is_alive = is_held(&folder.join(AGENT_LOCK)).attempt(what, &*on)?;
    let mut work = held_locks(&folder).attempt(what, &*on)?;
    work.retain(|lock| lock.subject != AGENT);
    let names = if work.is_empty() { HashMap::new() } else { vm_names(context) };
    if context.global.json {
        let agent = agent.map(|agent| {
            let mut agent = json!(agent);
            agent["alive"] = is_alive.into();
            agent
        });
        let work: Vec<Value> = work.iter().map(|lock| work_json(lock, &names)).collect();
        json_document(&json!({ "agent": agent, "work": work }));
        return Ok(Outcome::DONE);
    }
    let state = match &agent {
        None => "none",
        Some(agent) if !is_alive && agent.state != AgentState::Stopped => "gone",
        Some(agent) => agent.state.as_str(),
    };
    if context.global.quiet {
        line(state);
        work.iter().for_each(|lock| line(&visible(name_of(lock, &names))));
        return Ok(Outcome::DONE);
    }
    line(&match (state, &agent) {
        ("none", _) | (_, None) => "agent    none ever ran for this host".to_owned(),
        ("gone", Some(agent)) => format!("agent    gone without a word (process {})", agent.process_id),
        (state, Some(agent)) => format!("agent    {state}   process {}", agent.process_id),
    });
    if let Some(running) = agent.as_ref().and_then(|agent| agent.running.as_ref()).filter(|_| is_alive) {
        let place: Vec<&str> = [&running.vm, &running.phase].into_iter().flatten().map(String::as_str).collect();
        let since = context.time(running.since);
        line(&visible(&format!("job      {} since {since}   {}", running.job, place.join(": "))));
    }
    for lock in &work {
        let process = lock.process_id.map_or("another process".to_owned(), |id| format!("process {id}"));
        line(&visible(&format!("work     {}   {process}", name_of(lock, &names))));
    }
    if work.is_empty() {
        line("work     none");
    }
    Ok(Outcome::DONE)
}

fn work_json(lock: &HeldLock, names: &HashMap<String, String>) -> Value {
    json!({ "vm_id": lock.subject, "vm_name": names.get(&lock.subject), "process_id": lock.process_id })
}

fn name_of<'a>(lock: &'a HeldLock, names: &'a HashMap<String, String>) -> &'a str {
    names.get(&lock.subject).unwrap_or(&lock.subject)
}

/// Names of VMs by id, if the host answers: what goes on can be told without them.
fn vm_names(context: &Context) -> HashMap<String, String> {
    let vms = context.host().ok().and_then(|host| host.host.list_vms().ok()).unwrap_or_default();
    vms.into_iter().map(|vm| (vm.id.as_str().to_owned(), vm.name)).collect()
}

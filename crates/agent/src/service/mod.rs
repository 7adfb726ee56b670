//! The agent as a running program: jobs of the configuration, in the foreground or as a service of the machine.
//!
//! `agent` is the loop, `job` says when a job is due, `control` is how others reach the loop, `status` the document it
//! keeps about itself, `events` what it tells an administrator. Everything that only Windows has is in `windows`.

mod agent;
mod control;
mod events;
mod job;
mod status;
#[cfg(windows)]
mod windows;

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

pub use self::agent::{AGENT_LOCK, check_configuration};
pub use self::control::Control;
use self::events::ToStandardError;
pub use self::events::{EventKind, Events};
pub use self::job::{Day, Job, matches, time_of_day};
use self::status::Status;
pub use self::status::{State as AgentState, Status as AgentStatus};
#[cfg(windows)]
pub use self::windows::{protect as protect_for_machine, protect_file, unprotect};
use crate::cli::{Global, ServiceCommand};
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::host::state_dir;
use crate::interrupt::Interrupt;
use crate::outcome::Outcome;
use crate::output::{Align, Table, json_document, line};

/// Name of the service and of its source in the event log.
#[cfg(windows)]
const NAME: &str = "e3-backup-agent";
/// How soon a signal is passed on.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// `run`: in the foreground, until a signal.
pub fn run_in_foreground(global: &Global) -> Result<Outcome, Failure> {
    let control = Control::default();
    let interrupt = Interrupt::watch();
    let hang_up = hang_up_flag();
    let over = std::sync::atomic::AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::sync::atomic::Ordering::Relaxed;
            while !over.load(Relaxed) {
                if interrupt.is_asked() {
                    return control.stop();
                }
                if hang_up.swap(false, Relaxed) {
                    control.reload();
                }
                std::thread::sleep(LOOK_EVERY);
            }
        });
        let result = agent::run(global, &control, &ToStandardError);
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        result
    });
    result.map(|()| Outcome::DONE)
}

/// `service …`
pub fn run(global: &Global, command: &ServiceCommand) -> Result<Outcome, Failure> {
    if let ServiceCommand::Status = command {
        return show_status(global);
    }
    #[cfg(windows)]
    return windows::run(global, command);
    #[cfg(not(windows))]
    {
        let what = "manage the service";
        let why = "on this system the service manager runs `e3-backup-agent run` itself";
        Err(Failure::new(what, "", Code::NotSupported, why).with_steps(&[
            "put `ExecStart=/usr/bin/e3-backup-agent run` into a systemd unit (docs/service.md has one)",
            "`service status` works here too",
        ]))
    }
}

fn show_status(global: &Global) -> Result<Outcome, Failure> {
    let what = "look at the agent";
    let context = Context::new(global.clone())?;
    let folder = state_dir(context.host_selector()?)?;
    let on = folder.display().to_string();
    let status = Status::read(&folder).attempt(what, &*on)?.ok_or_else(|| {
        Failure::new(what, on, Code::NotFound, "no agent ever ran for this host")
            .with_steps(&["`e3-backup-agent run` in the foreground", "on Windows: `service install`, `service start`"])
    })?;
    if global.json {
        json_document(&json!(status));
        return Ok(Outcome::DONE);
    }
    if global.quiet {
        line(status.state.as_str());
        return Ok(Outcome::DONE);
    }
    line(&format!("agent    {}   {}", status.state.as_str(), status.program));
    line(&format!("started  {}   process {}", context.time(status.started), status.process_id));
    if let Some(running) = &status.running {
        let place: Vec<&str> = [&running.vm, &running.phase].into_iter().flatten().map(String::as_str).collect();
        line(&format!("running  {} since {}   {}", running.job, context.time(running.since), place.join(": ")));
    }
    if let Some(problem) = &status.problem {
        line(&format!("problem  {}", problem.replace('\n', " ")));
    }
    let mut table = Table::new(&[
        ("JOB", Align::Left),
        ("WHEN", Align::Left),
        ("LAST", Align::Left),
        ("EXIT", Align::Right),
        ("NEXT", Align::Left),
    ]);
    let time = |at: Option<Timestamp>| at.map_or_else(|| "–".to_owned(), |at| context.time(at));
    for (name, job) in &status.jobs {
        let exit = job.last_exit.map_or_else(|| "–".to_owned(), |exit| exit.to_string());
        table.row(vec![name.clone(), job.schedule.clone(), time(job.last_started), exit, time(job.due)]);
    }
    table.print();
    Ok(Outcome::DONE)
}

/// Raised by SIGHUP, the usual request to read the configuration again.
fn hang_up_flag() -> std::sync::Arc<std::sync::atomic::AtomicBool> {
    let flag = std::sync::Arc::default();
    #[cfg(unix)]
    if let Err(error) = signal_hook::flag::register(signal_hook::consts::SIGHUP, std::sync::Arc::clone(&flag)) {
        tracing::warn!(%error, "SIGHUP cannot be watched");
    }
    flag
}

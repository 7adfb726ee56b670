//! The agent under the service manager of Windows: life cycle, recovery actions, event log, folders (spec hyperv 10.1).

mod event_log;
mod ffi;
mod folders;
mod manager;
mod process;
mod protection;

pub use self::ffi::protect_file;
pub use self::protection::{protect, unprotect};
use crate::cli::{Global, ServiceCommand};
use crate::failure::Failure;
use crate::outcome::Outcome;

/// `service …`, but for `status`.
pub fn run(global: &Global, command: &ServiceCommand) -> Result<Outcome, Failure> {
    match command {
        ServiceCommand::Install { start_if_ready: true, .. } => manager::install_for_package(global),
        ServiceCommand::Install { start, .. } => manager::install(*start),
        ServiceCommand::Start => manager::start(),
        ServiceCommand::Stop => manager::stop(),
        ServiceCommand::Pause => manager::pause(),
        ServiceCommand::Resume => manager::resume(),
        ServiceCommand::Reload => manager::reload(),
        ServiceCommand::Remove => manager::remove(),
        ServiceCommand::Main => process::run(global),
        ServiceCommand::Status => unreachable!("answered on every system"),
    }
}

//! The process that the service manager started.

use std::ffi::OsString;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use windows_service::service::{
    ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus, ServiceType, UserEventCode,
};
use windows_service::service_control_handler::{ServiceControlHandlerResult, ServiceStatusHandle, register};
use windows_service::{define_windows_service, service_dispatcher};

use super::super::NAME;
use super::super::agent;
use super::super::control::Control;
use super::super::events::{EventKind, Events as _};
use super::event_log::EventLog;
use crate::cli::Global;
use crate::failure::{Code, Failure};
use crate::outcome::Outcome;

/// Control code of `service reload`; 128 to 255 are a service's own.
const RELOAD: u32 = 128;
/// While it stops, the service shows this often that it lives.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Within which the next sign of life may be expected.
const WAIT_HINT: Duration = Duration::from_secs(20);

/// The service's entry point takes no context, so the flags lie here.
static GLOBAL: OnceLock<Global> = OnceLock::new();

#[allow(unsafe_code)] // the macro's entry point takes the C arguments apart
mod entry {
    use super::*;
    define_windows_service!(ffi_main, service_main);

    /// Runs the service, and returns when it has stopped.
    pub fn dispatch() -> windows_service::Result<()> {
        service_dispatcher::start(NAME, ffi_main)
    }
}

/// What asks a running service to read its configuration again.
pub fn reload() -> UserEventCode {
    UserEventCode::from_raw(RELOAD).expect("within 128 to 255")
}

/// `service main`: only the service manager calls it.
pub fn run(global: &Global) -> Result<Outcome, Failure> {
    // A second call in one process does not happen: it is what `main` does.
    let _ = GLOBAL.set(global.clone());
    entry::dispatch().map_err(|error| {
        let why = format!("{error}; `service main` is for the service manager");
        Failure::new("run as a service", NAME, Code::Usage, why)
            .with_steps(&["use `e3-backup-agent run` in a console", "use `service install` and `service start`"])
    })?;
    Ok(Outcome::DONE)
}

fn service_main(_arguments: Vec<OsString>) {
    let global = GLOBAL.get().expect("set before the dispatcher").clone();
    let control = Arc::new(Control::default());
    let log = EventLog::open();
    let handler = {
        let control = control.clone();
        let status: Arc<OnceLock<ServiceStatusHandle>> = Arc::default();
        let seen = status.clone();
        let handle = register(NAME, move |event| react(&control, seen.get(), &event));
        handle.inspect(|handle| {
            let _ = status.set(*handle);
        })
    };
    let handle = match handler {
        Ok(handle) => handle,
        Err(error) => return log.tell(EventKind::Problem, &format!("the service manager does not answer: {error}")),
    };
    report(handle, ServiceState::StartPending, 0, ServiceExitCode::NO_ERROR);
    // Before it counts as running: whoever starts it is told.
    if let Err(failure) = agent::check_start(&global) {
        log.tell(EventKind::Problem, &failure.to_string());
        return report(handle, ServiceState::Stopped, 0, ServiceExitCode::ServiceSpecific(failure.exit().into()));
    }
    report(handle, ServiceState::Running, 0, ServiceExitCode::NO_ERROR);
    let result = std::thread::scope(|scope| {
        let agent = scope.spawn(|| agent::run(&global, &control, &log));
        let mut checkpoint = 0;
        while !agent.is_finished() {
            if control.is_stopping() {
                checkpoint += 1;
                report(handle, ServiceState::StopPending, checkpoint, ServiceExitCode::NO_ERROR);
            }
            std::thread::sleep(if control.is_stopping() { CHECKPOINT_EVERY / 10 } else { CHECKPOINT_EVERY / 2 });
        }
        agent.join()
    });
    let exit = match result {
        Ok(Ok(())) => ServiceExitCode::NO_ERROR,
        Ok(Err(failure)) => {
            log.tell(EventKind::Problem, &failure.to_string());
            ServiceExitCode::ServiceSpecific(failure.exit().into())
        }
        Err(_) => {
            log.tell(EventKind::Problem, "the agent ended by a defect of its own; see its log");
            ServiceExitCode::ServiceSpecific(1)
        }
    };
    report(handle, ServiceState::Stopped, 0, exit);
}

fn react(
    control: &Control,
    handle: Option<&ServiceStatusHandle>,
    event: &ServiceControl,
) -> ServiceControlHandlerResult {
    let tell = |state| {
        if let Some(handle) = handle {
            report(*handle, state, 0, ServiceExitCode::NO_ERROR);
        }
    };
    match event {
        ServiceControl::Interrogate => {}
        ServiceControl::Stop | ServiceControl::Preshutdown | ServiceControl::Shutdown => {
            tell(ServiceState::StopPending);
            control.stop();
        }
        ServiceControl::Pause => {
            control.pause();
            tell(ServiceState::Paused);
        }
        ServiceControl::Continue => {
            control.resume();
            tell(ServiceState::Running);
        }
        ServiceControl::UserEvent(code) if code.to_raw() == RELOAD => control.reload(),
        _ => return ServiceControlHandlerResult::NotImplemented,
    }
    ServiceControlHandlerResult::NoError
}

fn report(handle: ServiceStatusHandle, state: ServiceState, checkpoint: u32, exit_code: ServiceExitCode) {
    let controls_accepted = match state {
        ServiceState::Running | ServiceState::Paused => {
            ServiceControlAccept::STOP | ServiceControlAccept::PRESHUTDOWN | ServiceControlAccept::PAUSE_CONTINUE
        }
        _ => ServiceControlAccept::empty(),
    };
    let pending = matches!(state, ServiceState::StartPending | ServiceState::StopPending);
    let status = ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state: state,
        controls_accepted,
        exit_code,
        checkpoint,
        wait_hint: if pending { WAIT_HINT } else { Duration::ZERO },
        process_id: None,
    };
    if let Err(error) = handle.set_service_status(status) {
        tracing::warn!(%error, ?state, "the service manager does not take the state");
    }
}

//! The service as the service manager knows it: installed, started, stopped, removed.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use windows_service::service::{
    Service, ServiceAccess, ServiceAction, ServiceActionType, ServiceErrorControl, ServiceFailureActions,
    ServiceFailureResetPeriod, ServiceInfo, ServiceStartType, ServiceState, ServiceType,
};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};

use super::super::{NAME, agent};
use super::{event_log, folders};
use crate::cli::Global;
use crate::failure::{Attempt as _, Code, Failure};
use crate::outcome::Outcome;
use crate::output::{line, note};

/// A run that is stopped removes its checkpoint first; the default of 10 s is too short for that.
const PRESHUTDOWN_LIMIT: Duration = Duration::from_secs(180);
/// How long `stop` waits for the service to end: the same, and a little.
const STOP_LIMIT: Duration = Duration::from_secs(200);
/// How long other changes of state are waited for.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

const ERROR_SERVICE_EXISTS: i32 = 1073;
const ERROR_SERVICE_DOES_NOT_EXIST: i32 = 1060;
const ERROR_SERVICE_ALREADY_RUNNING: i32 = 1056;
const ERROR_SERVICE_NOT_ACTIVE: i32 = 1062;
const ERROR_INVALID_LEVEL: i32 = 124;
const ERROR_ACCESS_DENIED: i32 = 5;

pub fn install(start_it: bool) -> Result<Outcome, Failure> {
    let what = "install the service";
    let manager = open_manager(what, ServiceManagerAccess::CONNECT | ServiceManagerAccess::CREATE_SERVICE)?;
    let executable = std::env::current_exe().attempt(what, NAME)?;
    folders::prepare()?;
    event_log::register(&executable).attempt("register the source of events", NAME)?;
    let info = ServiceInfo {
        name: NAME.into(),
        display_name: "e3 Backup Agent".into(),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: executable,
        launch_arguments: vec![OsString::from("service"), OsString::from("main")],
        // Hosts without the Hyper-V role run it too, so it must not depend on `vmms`.
        dependencies: vec![],
        account_name: None,
        account_password: None,
    };
    let access = ServiceAccess::CHANGE_CONFIG | ServiceAccess::START | ServiceAccess::QUERY_STATUS;
    let service = match manager.create_service(&info, access) {
        // Installing again is how an update takes place.
        Err(error) if code(&error) == Some(ERROR_SERVICE_EXISTS) => {
            let service = manager.open_service(NAME, access).map_err(|error| failed(what, &error))?;
            service.change_config(&info).map_err(|error| failed(what, &error))?;
            service
        }
        other => other.map_err(|error| failed(what, &error))?,
    };
    configure(&service).map_err(|error| failed(what, &error))?;
    line(&format!("installed  {NAME}   starts with the machine"));
    if start_it {
        return start();
    }
    note("next       put `repository`, `host` and jobs into the machine's config.toml, then `service start`");
    Ok(Outcome::DONE)
}

/// The same as a package does it: started where it has something to do. What keeps it from starting is no reason to take
/// the program away again, so it is only said, here and in the event log.
pub fn install_for_package(global: &Global) -> Result<Outcome, Failure> {
    let installed = install(false)?;
    if let Err(failure) = agent::check_start(global).and_then(|()| start().map(drop)) {
        note(&format!("not started: {failure}"));
    }
    Ok(installed)
}

fn configure(service: &Service) -> windows_service::Result<()> {
    let restart =
        |seconds| ServiceAction { action_type: ServiceActionType::Restart, delay: Duration::from_secs(seconds) };
    let failure_actions = ServiceFailureActions {
        reset_period: ServiceFailureResetPeriod::After(Duration::from_secs(24 * 3600)),
        reboot_msg: None,
        command: None,
        actions: Some(vec![restart(10), restart(60), restart(300)]),
    };
    let settings = [
        (
            "a description",
            service.set_description("Backs up the virtual machines of this host, by the jobs of its configuration."),
        ),
        ("a delayed start", service.set_delayed_auto_start(true)),
        ("a time to end before a shutdown", service.set_preshutdown_timeout(PRESHUTDOWN_LIMIT)),
        ("restarts after a failure", service.update_failure_actions(failure_actions)),
        // An end with an error code counts as a failure like a crash.
        ("restarts after an end with an error", service.set_failure_actions_on_non_crash_failures(true)),
    ];
    for (name, result) in settings {
        match result {
            // Some service managers know less; the service works without any of these.
            Err(error) if code(&error) == Some(ERROR_INVALID_LEVEL) => {
                note(&format!("note       this system's service manager does not take {name}"));
            }
            other => other?,
        }
    }
    Ok(())
}

pub fn start() -> Result<Outcome, Failure> {
    let what = "start the service";
    let service = open(what, ServiceAccess::START | ServiceAccess::QUERY_STATUS)?;
    match service.start::<OsString>(&[]) {
        Err(error) if code(&error) != Some(ERROR_SERVICE_ALREADY_RUNNING) => return Err(failed(what, &error)),
        _ => wait_for(what, &service, ServiceState::Running, CHANGE_LIMIT)?,
    }
    line("running");
    Ok(Outcome::DONE)
}

pub fn stop() -> Result<Outcome, Failure> {
    let what = "stop the service";
    let service = open(what, ServiceAccess::STOP | ServiceAccess::QUERY_STATUS)?;
    match service.stop() {
        Err(error) if code(&error) != Some(ERROR_SERVICE_NOT_ACTIVE) => return Err(failed(what, &error)),
        _ => wait_for(what, &service, ServiceState::Stopped, STOP_LIMIT)?,
    }
    line("stopped");
    Ok(Outcome::DONE)
}

pub fn pause() -> Result<Outcome, Failure> {
    let what = "pause the service";
    let service = open(what, ServiceAccess::PAUSE_CONTINUE | ServiceAccess::QUERY_STATUS)?;
    service.pause().map_err(|error| failed(what, &error))?;
    wait_for(what, &service, ServiceState::Paused, CHANGE_LIMIT)?;
    line("paused");
    Ok(Outcome::DONE)
}

pub fn resume() -> Result<Outcome, Failure> {
    let what = "resume the service";
    let service = open(what, ServiceAccess::PAUSE_CONTINUE | ServiceAccess::QUERY_STATUS)?;
    service.resume().map_err(|error| failed(what, &error))?;
    wait_for(what, &service, ServiceState::Running, CHANGE_LIMIT)?;
    line("running");
    Ok(Outcome::DONE)
}

pub fn reload() -> Result<Outcome, Failure> {
    let what = "let the service read its configuration again";
    let service = open(what, ServiceAccess::USER_DEFINED_CONTROL)?;
    service.notify(super::process::reload()).map_err(|error| failed(what, &error))?;
    line("asked");
    Ok(Outcome::DONE)
}

pub fn remove() -> Result<Outcome, Failure> {
    let what = "remove the service";
    let access = ServiceAccess::STOP | ServiceAccess::QUERY_STATUS | ServiceAccess::DELETE;
    let service = open(what, access)?;
    match service.stop() {
        Err(error) if code(&error) != Some(ERROR_SERVICE_NOT_ACTIVE) => return Err(failed(what, &error)),
        _ => wait_for(what, &service, ServiceState::Stopped, STOP_LIMIT)?,
    }
    service.delete().map_err(|error| failed(what, &error))?;
    event_log::unregister().attempt("remove the source of events", NAME)?;
    line("removed");
    note(&format!("kept       {}: configuration, journals, log", crate::config::machine_folder().display()));
    Ok(Outcome::DONE)
}

fn open_manager(what: &str, access: ServiceManagerAccess) -> Result<ServiceManager, Failure> {
    ServiceManager::local_computer(None::<&str>, access).map_err(|error| failed(what, &error))
}

fn open(what: &str, access: ServiceAccess) -> Result<Service, Failure> {
    open_manager(what, ServiceManagerAccess::CONNECT)?.open_service(NAME, access).map_err(|error| failed(what, &error))
}

fn wait_for(what: &str, service: &Service, wanted: ServiceState, limit: Duration) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        let status = service.query_status().map_err(|error| failed(what, &error))?;
        if status.current_state == wanted {
            return Ok(());
        }
        let ended = status.current_state == ServiceState::Stopped;
        if ended || begun.elapsed() >= limit {
            let why = if ended {
                format!("it ended by itself ({:?})", status.exit_code)
            } else {
                format!("after {} s it is still {:?}", limit.as_secs(), status.current_state)
            };
            return Err(Failure::new(what, NAME, Code::HostFailed, why).with_steps(&[
                "look at source e3-backup-agent in the Application event log",
                "run `e3-backup-agent run` in a console to see the error",
            ]));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn failed(what: &str, error: &windows_service::Error) -> Failure {
    let failure = Failure::of(what, NAME, error);
    match code(error) {
        Some(ERROR_ACCESS_DENIED) => {
            failure.with_code(Code::HostAccessDenied).with_steps(&["run it in an elevated console (as administrator)"])
        }
        Some(ERROR_SERVICE_DOES_NOT_EXIST) => {
            failure.with_code(Code::NotFound).with_steps(&["install it first: `service install`"])
        }
        _ => failure
            .with_code(Code::HostFailed)
            .with_steps(&["look at the service in services.msc", "run it again with -v"]),
    }
}

/// The Win32 error.
fn code(error: &windows_service::Error) -> Option<i32> {
    match error {
        windows_service::Error::Winapi(error) => error.raw_os_error(),
        _ => None,
    }
}

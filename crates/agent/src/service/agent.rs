//! The running agent: settles what a crash left, then does the jobs as they are due, until it is stopped.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backup::{BackupContext, BackupOptions, Event, HostState, Observer, new_run_id, settle_vm};
use hyperv::Vm;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kopia_repo::Repository;

use super::control::Control;
use super::events::{EventKind, Events};
use super::job::Job;
use super::status::{JobStatus, Running, State, Status};
use crate::batch::{VmResult, back_up_all, exit_code};
use crate::cli::Global;
use crate::context::{Context, PROGRAM};
use crate::failure::{Attempt as _, Code, Failure};
use crate::host::{OpenHost, state_dir};
use crate::limits::Throttles;
use crate::managed::{self, Enrolment};
use crate::restores;
use crate::units::duration;

/// The clock of the machine can be set, and the machine can sleep: it is looked at this often.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(60);
/// Held by the agent of a host while it runs; in the folder of journals.
pub const AGENT_LOCK: &str = "agent.lock";
/// How soon what could not be settled is tried again.
const SETTLE_AGAIN: Duration = Duration::from_secs(5 * 60);

/// Runs until `control` says stop. An error is one of the configuration, or of another agent that runs already;
/// whatever fails later is told to `events`, and the agent goes on.
pub fn run(global: &Global, control: &Control, events: &dyn Events) -> Result<(), Failure> {
    let context = Context::new(global.clone())?;
    let folder = state_dir(context.host_selector()?)?;
    let enrolment = Enrolment::load(&folder)?;
    if enrolment.is_none() {
        check(&context)?;
    }
    std::fs::create_dir_all(&folder).attempt("make the folder of journals", folder.display().to_string())?;
    let _lock = lock(&folder)?;
    if let Some(enrolment) = enrolment {
        return run_managed(&context, &enrolment, &folder, control, events);
    }
    let former = Status::read(&folder).unwrap_or_default();
    let status = Status {
        process_id: std::process::id(),
        program: PROGRAM.to_owned(),
        started: Timestamp::now(),
        state: State::Waiting,
        running: None,
        problem: None,
        server: None,
        jobs: former.map(|former| former.jobs).unwrap_or_default(),
    };
    let throttles = Throttles::new(&context.limits());
    let mut agent = Agent {
        global,
        context,
        throttles,
        control,
        events,
        folder: &folder,
        status: Mutex::new(status),
        unsettled: true,
    };
    agent.forget_old_jobs();
    events.tell(EventKind::Started, &format!("{PROGRAM} started: {}", agent.jobs_in_words()));
    agent.work();
    agent.update(|status| (status.state, status.running) = (State::Stopped, None));
    events.tell(EventKind::Stopped, &format!("{PROGRAM} stopped"));
    Ok(())
}

/// The same on a host that belongs to a server: it says what is done, and when.
fn run_managed(
    context: &Context,
    enrolment: &Enrolment,
    folder: &Path,
    control: &Control,
    events: &dyn Events,
) -> Result<(), Failure> {
    let status = |state: State| Status {
        process_id: std::process::id(),
        program: PROGRAM.to_owned(),
        started: Timestamp::now(),
        state,
        running: None,
        problem: None,
        server: Some(enrolment.api_base_url.clone()),
        jobs: Default::default(),
    };
    let write = |state: State| {
        if let Err(error) = status(state).write(folder) {
            tracing::warn!(%error, "the status cannot be written");
        }
    };
    write(State::Waiting);
    let text = format!("{PROGRAM} started: agent {} of {}", enrolment.agent_id, enrolment.api_base_url);
    events.tell(EventKind::Started, &text);
    managed::run(context, enrolment, folder, control, events)?;
    write(State::Stopped);
    events.tell(EventKind::Stopped, &format!("{PROGRAM} stopped"));
    Ok(())
}

/// Whether [`run`] would start: with an enrolment only the host of the configuration counts.
#[cfg(windows)]
pub fn check_start(global: &Global) -> Result<(), Failure> {
    let context = Context::new(global.clone())?;
    match Enrolment::load(&state_dir(context.host_selector()?)?)? {
        Some(_) => Ok(()),
        None => check(&context),
    }
}

/// Whether the configuration is enough for a host that is not enrolled.
pub fn check_configuration(global: &Global) -> Result<(), Failure> {
    check(&Context::new(global.clone())?)
}

/// What a start needs of the configuration.
fn check(context: &Context) -> Result<(), Failure> {
    let wrong = |why: String| {
        Failure::new("read the jobs of the configuration", "", Code::Usage, why).with_steps(&["correct the file"])
    };
    for (at, job) in context.jobs().iter().enumerate() {
        if let Some(problem) = job.problem() {
            return Err(wrong(format!("job {:?}: {problem}", job.name)));
        }
        if context.jobs()[..at].iter().any(|other| other.name == job.name) {
            return Err(wrong(format!("two jobs are named {:?}", job.name)));
        }
    }
    context.host_selector()?;
    context.location(None)?;
    Ok(())
}

/// One agent per host: the lock goes with the process, however it ends.
fn lock(folder: &Path) -> Result<File, Failure> {
    let path = folder.join(AGENT_LOCK);
    let what = "start the agent";
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.attempt(what, path.display().to_string())?;
    match backup::try_lock_past_looks(&file) {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let why = "another agent runs on this host";
            Err(Failure::new(what, path.display().to_string(), Code::Busy, why)
                .with_steps(&["look at `service status`", "stop the other one"]))
        }
        Err(TryLockError::Error(error)) => Err(Failure::of(what, path.display().to_string(), &error)),
    }
}

struct Agent<'a> {
    global: &'a Global,
    context: Context,
    throttles: Throttles,
    control: &'a Control,
    events: &'a dyn Events,
    folder: &'a Path,
    status: Mutex<Status>,
    /// A former run may have left something on the host.
    unsettled: bool,
}

impl Agent<'_> {
    fn work(&mut self) {
        let mut settle_at = Instant::now();
        while !self.control.is_stopping() {
            if self.control.take_reload() {
                self.reload();
            }
            if self.unsettled && !self.control.is_paused() && settle_at <= Instant::now() {
                self.settle();
                settle_at = Instant::now() + SETTLE_AGAIN;
                continue;
            }
            let now = Timestamp::now();
            let next = self.next(now);
            let paused = self.control.is_paused();
            self.update(|status| status.state = if paused { State::Paused } else { State::Waiting });
            match next {
                Some((due, job)) if due <= now && !paused => self.run_job(&job, now),
                Some((due, _)) if !paused => {
                    let wait = Duration::try_from(now.duration_until(due)).unwrap_or_default();
                    self.control.wait(wait.min(LOOK_AT_CLOCK));
                }
                _ => drop(self.control.wait(LOOK_AT_CLOCK)),
            }
        }
    }

    /// The job that is due first, and when; the dates go into the status.
    fn next(&self, now: Timestamp) -> Option<(Timestamp, Job)> {
        let zone = TimeZone::system();
        let mut status = lock_status(&self.status);
        let mut next: Option<(Timestamp, Job)> = None;
        for job in self.context.jobs() {
            let entry = status.jobs.entry(job.name.clone()).or_default();
            // A job that never ran keeps the date it was first given: `now` moves on.
            let due = match (entry.last_started, entry.due) {
                (None, Some(due)) => due,
                (last, _) => job.due(last, now, &zone),
            };
            entry.due = Some(due);
            if next.as_ref().is_none_or(|(first, _)| due < *first) {
                next = Some((due, job.clone()));
            }
        }
        next
    }

    fn reload(&mut self) {
        match Context::new(self.global.clone()).and_then(|context| check(&context).map(|()| context)) {
            Ok(context) => {
                self.context = context;
                self.throttles.change(&self.context.limits());
                self.forget_old_jobs();
                self.events.tell(EventKind::Reloaded, &format!("configuration read again: {}", self.jobs_in_words()));
            }
            Err(failure) => {
                let text = format!("the configuration was not taken, the former one stays: {failure}");
                self.events.tell(EventKind::Problem, &text);
            }
        }
    }

    /// Jobs that are no longer configured go; a changed schedule gets a new date.
    fn forget_old_jobs(&self) {
        let jobs = self.context.jobs();
        let mut status = lock_status(&self.status);
        status.jobs.retain(|name, _| jobs.iter().any(|job| job.name == *name));
        for job in jobs {
            let entry = status.jobs.entry(job.name.clone()).or_default();
            if entry.schedule != job.schedule() {
                (entry.schedule, entry.due) = (job.schedule(), None);
            }
        }
    }

    fn jobs_in_words(&self) -> String {
        let jobs: Vec<String> =
            self.context.jobs().iter().map(|job| format!("{} {}", job.name, job.schedule())).collect();
        if jobs.is_empty() { "no jobs".to_owned() } else { jobs.join(", ") }
    }

    /// Puts in order what a run left that did not end: one VM's trouble does not keep the others.
    fn settle(&mut self) {
        match self.settle_all() {
            Ok(()) => {
                self.unsettled = false;
                self.update(|status| status.problem = None);
            }
            Err(failure) => {
                let text = format!("what a former run left could not be put in order yet: {failure}");
                let known = lock_status(&self.status).problem.as_deref() == Some(&text);
                if !known {
                    self.events.tell(EventKind::Problem, &text);
                }
                self.update(|status| status.problem = Some(text));
            }
        }
    }

    fn settle_all(&self) -> Result<(), Failure> {
        let what = "put in order what a former run left";
        let host = self.context.host()?;
        let state = host.state()?;
        self.put_restores_in_order(&host, &state)?;
        let open = state.open_intents().attempt(what, &*host.name)?;
        if open.is_empty() {
            return Ok(());
        }
        let options = BackupOptions::new(PROGRAM);
        let location = self.context.location(None)?;
        let repo = self.context.repository_for_backups(&location, host.hooks.as_ref(), &self.throttles)?;
        let work = self.work_on(&host, &repo, &state, &options);
        let vms = host.host.list_vms().attempt(what, &*host.name)?;
        let mut first_failure = None;
        for vm_id in open {
            let Some(vm) = vms.iter().find(|vm| vm.id.as_str() == vm_id) else {
                tracing::warn!(vm_id, "a former run's VM is no longer on this host");
                continue;
            };
            match settle_vm(&work, vm) {
                Ok(done) => {
                    for text in done {
                        self.events.tell(EventKind::Settled, &format!("{}: {text}", vm.name));
                    }
                }
                Err(error) => {
                    first_failure.get_or_insert(Failure::of(what, &*vm.name, &error));
                }
            }
        }
        first_failure.map_or(Ok(()), Err)
    }

    fn put_restores_in_order(&self, host: &OpenHost, state: &HostState) -> Result<(), Failure> {
        for text in restores::put_in_order(host, state, self)? {
            self.events.tell(EventKind::Settled, &text);
        }
        Ok(())
    }

    fn run_job(&mut self, job: &Job, now: Timestamp) {
        // Before the deed: a job that takes the agent down with it does not begin again at once.
        self.update(|status| {
            let entry = status.jobs.entry(job.name.clone()).or_default();
            (entry.last_started, entry.due) = (Some(now), None);
            status.state = State::Running;
            status.running = Some(Running { job: job.name.clone(), vm: None, phase: None, since: now });
        });
        let begun = Instant::now();
        let (exit, text) = match self.back_up(job) {
            Ok(ended) => ended,
            Err(failure) => (failure.exit(), failure.to_string()),
        };
        let text = format!("job {} after {}: {text}", job.name, duration(begun.elapsed()));
        let kind = match exit {
            0 => EventKind::JobDone,
            4 => EventKind::JobWarned,
            _ => EventKind::JobFailed,
        };
        self.events.tell(kind, &text);
        self.update(|status| {
            let entry: &mut JobStatus = status.jobs.entry(job.name.clone()).or_default();
            (entry.last_ended, entry.last_exit, entry.last_result) = (Some(Timestamp::now()), Some(exit), Some(text));
            status.running = None;
        });
        if exit != 0 {
            self.unsettled = true;
        }
    }

    /// Exit code and a sentence.
    fn back_up(&self, job: &Job) -> Result<(u8, String), Failure> {
        let host = self.context.host()?;
        let outcome = self.back_up_on(job, &host);
        if let Some(hooks) = &host.hooks {
            hooks.write_counts()?;
        }
        outcome
    }

    fn back_up_on(&self, job: &Job, host: &OpenHost) -> Result<(u8, String), Failure> {
        if let Err(failure) = self.put_restores_in_order(host, &host.state()?) {
            // The job's VMs are none the worse for it.
            self.events.tell(EventKind::Problem, &failure.to_string());
        }
        let mut vms = host.host.list_vms().attempt("list the virtual machines", &*host.name)?;
        vms.retain(|vm| job.covers(&vm.name, vm.id.as_str()));
        vms.sort_by(|a, b| (a.name.to_lowercase(), a.id.as_str()).cmp(&(b.name.to_lowercase(), b.id.as_str())));
        if vms.is_empty() {
            let why = "the host has no virtual machine that the job covers";
            return Err(Failure::new(format!("run job {}", job.name), &*host.name, Code::NotFound, why)
                .with_steps(&["correct `vms` and `except` of the job", "look at `vm list`"]));
        }
        let location = self.context.location(None)?;
        let throttles = self.throttles.with_job(&job.limits);
        let repo = self.context.repository_for_backups(&location, host.hooks.as_ref(), &throttles)?;
        let state = host.state()?;
        let options = BackupOptions {
            consistency: job.consistency.policy(),
            reads: throttles.reads(),
            resources: throttles.resources.clone(),
            ..BackupOptions::new(PROGRAM)
        };
        let work = self.work_on(host, &repo, &state, &options);
        let run_id = new_run_id();
        let at_once = self.context.limits().vms_at_once();
        let results = back_up_all(&work, &location, &vms, &run_id, at_once, |_, result| result);
        Ok(conclude(&vms, &results))
    }

    fn work_on<'w>(
        &'w self,
        host: &'w OpenHost,
        repo: &'w Arc<Repository>,
        state: &'w HostState,
        options: &'w BackupOptions,
    ) -> BackupContext<'w> {
        BackupContext {
            host: &host.host,
            host_name: &host.name,
            repo,
            state,
            options,
            observer: self,
            cancel: self.control.cancel(),
        }
    }

    fn update(&self, change: impl FnOnce(&mut Status)) {
        let mut status = lock_status(&self.status);
        change(&mut status);
        if let Err(error) = status.write(self.folder) {
            tracing::warn!(%error, "the status cannot be written");
        }
    }
}

/// Exit code of a run, and what there is to say about it.
fn conclude(vms: &[Vm], results: &[VmResult<'_>]) -> (u8, String) {
    let failures: Vec<&Failure> = results.iter().filter_map(|result| result.result.as_ref().err()).collect();
    let mut text = format!("{} of {} VMs backed up", vms.len() - failures.len(), vms.len());
    for result in results {
        match &result.result {
            Ok(report) => {
                for warning in report.warnings.iter().filter(|warning| warning.code.is_defect()) {
                    text += &format!("\n{}: {} ({})", result.vm.name, warning.text, warning.code.as_str());
                }
            }
            Err(failure) => text += &format!("\n{failure}"),
        }
    }
    let exit = match failures.first() {
        Some(first) if failures.len() == vms.len() => {
            let agree = failures.iter().all(|failure| failure.code() == first.code());
            if agree { first.exit() } else { Code::Failed.exit() }
        }
        _ => exit_code(results, false),
    };
    (exit, text)
}

impl Observer for Agent<'_> {
    fn event(&self, event: Event<'_>) {
        if let Event::Phase { subject, phase } = event {
            self.update(|status| {
                if let Some(running) = &mut status.running {
                    (running.vm, running.phase) = (Some(subject.to_owned()), Some(phase.to_owned()));
                }
            });
        }
    }
}

fn lock_status(status: &Mutex<Status>) -> std::sync::MutexGuard<'_, Status> {
    // Whoever panicked left it between two assignments at worst.
    status.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

//! The managed agent: polls, claims, hands work to threads, and keeps telling the server until it has heard.
//!
//! The loop owns what begins and ends; everything long runs in a thread of its own. One poll is under way at any time,
//! on a thread that nobody waits for when the agent ends: the server holds it for 25 s.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use control_api::Object;
use control_api::command::PollAnswer;
use control_api::enrolment::RotatedToken;
use control_api::envelope::Answer;
use control_api::events::{AgentEvent, PushAgentEvents};
use control_api::hyperv::{Discover, DiscoverAnswer, Vm as WireVm};
use control_api::run::{NextRun, NextRunAnswer, Run};
use control_api::words::Engine;
use jiff::Timestamp;
use serde_json::json;
use zeroize::Zeroizing;

use super::client::{Backoff, CallError, Client};
use super::enrolment::Enrolment;
use super::outbox::{Outbox, Record};
use super::work::{Work, put};
use super::{backups, clock, commands, inventory, operations, protected, rates, results};
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::limits::{Limits, Throttle, Throttles};
use crate::service::{Control, EventKind, Events};

/// Runs at a time; the server allows fewer, or more agents.
const RUNS_AT_ONCE: usize = 4;
/// How soon a request to stop is seen.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The host is looked at this often when nothing asks for it, and what changed is reported.
const LOOK_AT_HOST_EVERY: Duration = Duration::from_secs(30);
/// It is reported this often although nothing changed.
const REPORT_EVERY: Duration = Duration::from_secs(5 * 60);
/// How long an agent that is turned away leaves the server alone (0.5).
const SHUT_OUT_WAIT: Duration = Duration::from_secs(5 * 60);
/// How long the last words may take when the agent ends; what is not told by then is told at the next start.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// The clocks are compared this often, and at the start.
/// Changed limits that could not be had are asked for again.
const FOLLOW_AGAIN_AFTER: Duration = Duration::from_secs(3);
const COMPARE_CLOCKS_EVERY: Duration = Duration::from_secs(3600);
/// A token is changed after so long (1.6).
const ROTATE_AFTER: jiff::SignedDuration = jiff::SignedDuration::from_hours(90 * 24);

/// What every part of the agent uses.
pub struct Managed<'a> {
    /// Flags and configuration: the host, and limits of this machine.
    pub context: &'a Context,
    /// The server.
    pub client: Arc<Client>,
    /// What must reach it.
    pub outbox: Outbox,
    /// The folder of the enrolment.
    pub folder: PathBuf,
    /// Limits of this process, shared by all runs.
    pub throttles: Throttles,
    /// Limits of jobs, by their ids: what is changed there holds for the runs that go on.
    of_jobs: Mutex<BTreeMap<i64, Throttle>>,
    /// Held while these are asked for.
    following: Mutex<()>,
    /// This machine's clock beside the server's.
    pub skew: clock::Skew,
    /// Who may stop it.
    pub control: &'a Control,
    events: &'a dyn Events,
    runs: Mutex<BTreeMap<i64, Arc<Work>>>,
    commands: Mutex<BTreeSet<i64>>,
    is_operating: AtomicBool,
    /// Something new is in the outbox.
    news: Mutex<bool>,
    has_news: Condvar,
    is_over: AtomicBool,
    last_problem: Mutex<String>,
}

/// What the loop does next.
struct Loop<'m, 'a> {
    managed: &'m Managed<'a>,
    polls: Receiver<Result<PollAnswer, CallError>>,
    send: Sender<Result<PollAnswer, CallError>>,
    is_polling: bool,
    poll_at: Instant,
    backoff: Backoff,
    /// The last answer of the server was a good one.
    is_connected: Option<bool>,
    /// Runs of a former process may wait for this one.
    may_have_unfinished: bool,
    /// Of the server's settings for this agent, as the last answer had it.
    config_epoch: Option<i64>,
    compared_at: Option<Instant>,
    looked_at: Option<Instant>,
    reported_at: Option<Instant>,
    reported: String,
}

/// Does what the server says, until `control` says stop.
pub fn run(
    context: &Context,
    enrolment: &Enrolment,
    state: &Path,
    control: &Control,
    events: &dyn Events,
) -> Result<(), Failure> {
    let folder = Enrolment::folder(state);
    let waiting = folder.join("outbox");
    let managed = Managed {
        context,
        client: Arc::new(enrolment.client(state)?),
        outbox: Outbox::open(&waiting).attempt("open the outbox", waiting.display().to_string())?,
        folder,
        throttles: Throttles::new(&context.limits()),
        of_jobs: Mutex::default(),
        following: Mutex::default(),
        skew: clock::Skew::default(),
        control,
        events,
        runs: Mutex::default(),
        commands: Mutex::default(),
        is_operating: AtomicBool::new(false),
        news: Mutex::new(true),
        has_news: Condvar::new(),
        is_over: AtomicBool::new(false),
        last_problem: Mutex::default(),
    };
    if !context.jobs().is_empty() {
        managed.problem("the jobs of the configuration are not done: this host belongs to a server, which has its own");
    }
    commands::clean_at_start(&managed);
    managed.agent_event("info", "AGENT_SERVICE_STARTED", json!({}));
    std::thread::scope(|scope| {
        scope.spawn(|| managed.deliver_until_over());
        Loop::new(&managed, enrolment).turn(scope);
        managed.agent_event("info", "AGENT_SERVICE_STOPPING", json!({}));
        managed.stop_works();
        managed.last_words();
        managed.is_over.store(true, Ordering::Relaxed);
        managed.wake_outbox();
    });
    Ok(())
}

impl<'m, 'a> Loop<'m, 'a> {
    fn new(managed: &'m Managed<'a>, enrolment: &Enrolment) -> Self {
        let (send, polls) = channel();
        let age = Timestamp::now().duration_since(token_time(managed, enrolment));
        if age > ROTATE_AFTER
            && let Err(failure) = managed.rotate_token()
        {
            managed.problem(&failure.to_string());
        }
        Self {
            managed,
            polls,
            send,
            is_polling: false,
            poll_at: Instant::now(),
            backoff: Backoff::default(),
            is_connected: None,
            may_have_unfinished: true,
            config_epoch: None,
            compared_at: None,
            looked_at: None,
            reported_at: None,
            reported: String::new(),
        }
    }

    fn turn<'s>(&mut self, scope: &'s Scope<'s, '_>)
    where
        'm: 's,
    {
        let managed = self.managed;
        while !managed.control.is_stopping() {
            if managed.control.take_reload() {
                managed.throttles.change(&managed.context.limits());
            }
            // What is told before decides what is handed out: a run that ended is not begun again.
            let may_claim = self.is_connected != Some(false) && !managed.control.is_paused();
            if self.may_have_unfinished && may_claim && !managed.has_unsent_results() {
                self.may_have_unfinished = self.claim(scope).is_err();
            }
            let is_time = self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_AT_HOST_EVERY);
            if is_time && self.is_connected != Some(false) {
                self.report_host();
            }
            let is_time = self.compared_at.is_none_or(|at| at.elapsed() >= COMPARE_CLOCKS_EVERY);
            if is_time && self.is_connected == Some(true) {
                self.compared_at = Some(Instant::now());
                scope.spawn(move || clock::compare(managed));
            }
            if !self.is_polling && self.poll_at <= Instant::now() {
                self.poll();
            }
            if let Ok(answer) = self.polls.recv_timeout(LOOK_EVERY) {
                self.is_polling = false;
                match answer {
                    Ok(answer) => self.take(scope, answer),
                    Err(error) => self.failed(&error),
                }
            }
        }
    }

    /// Asks for news on a thread of its own.
    fn poll(&mut self) {
        self.is_polling = true;
        let (client, send) = (self.managed.client.clone(), self.send.clone());
        let active = self.managed.active_commands();
        // While runs go on their reports bring the news; a long poll is for an agent that waits.
        let mut query = format!("long_poll=1&active_commands={active}&busy={}", u8::from(self.managed.is_busy()));
        if let Some(epoch) = self.config_epoch {
            query += &format!("&config_epoch={epoch}");
        }
        std::thread::spawn(move || {
            let answer = client.get::<PollAnswer>("agent_poll.php", &query).map(|answer| answer.body);
            // Nobody waits for it any more when the agent ends.
            let _ = send.send(answer);
        });
    }

    fn take<'s>(&mut self, scope: &'s Scope<'s, '_>, answer: PollAnswer)
    where
        'm: 's,
    {
        let managed = self.managed;
        self.connected();
        for run in &answer.cancel_runs {
            if let Some(work) = lock(&managed.runs).get(run).cloned() {
                work.ask_cancel();
            }
        }
        // At first there is nothing whose limits could have changed.
        if self.config_epoch.replace(answer.config_epoch).is_some_and(|former| former != answer.config_epoch) {
            scope.spawn(move || managed.follow_limits());
        }
        let mut has_begun = false;
        for command in answer.commands {
            if managed.takes(&command) {
                has_begun = true;
                scope.spawn(move || {
                    commands::perform(managed, &command);
                    lock(&managed.commands).remove(&command.command_id);
                });
            }
        }
        if let Some(operation) = answer.repo_operation
            && !managed.is_operating.swap(true, Ordering::Relaxed)
        {
            has_begun = true;
            scope.spawn(move || {
                operations::perform(managed, &operation);
                managed.is_operating.store(false, Ordering::Relaxed);
            });
        }
        if answer.run_available && !managed.control.is_paused() {
            // The VMs that the server chooses from are those of now.
            self.report_host();
            has_begun |= self.claim(scope).is_ok_and(|begun| begun > 0);
        }
        // Something that cannot be taken now is offered again at once.
        let wait = if has_begun || !has_offer(answer.run_available, &answer.cancel_runs) {
            Duration::ZERO
        } else {
            Duration::from_secs(2)
        };
        self.poll_at = Instant::now() + wait.max(Duration::from_millis(200));
    }

    fn failed(&mut self, error: &CallError) {
        let managed = self.managed;
        let text = if error.is_shut_out() { "the server turns this agent away" } else { "the server does not answer" };
        let text = format!("{text}; work goes on, and is told later: {error}");
        // Told again when the reason is another: a server that comes back with another certificate is not one that is
        // switched off.
        managed.problem(&text);
        self.is_connected = Some(false);
        let wait = if error.is_shut_out() { SHUT_OUT_WAIT } else { self.backoff.next(error) };
        self.poll_at = Instant::now() + wait;
    }

    fn connected(&mut self) {
        self.backoff.reset();
        if self.is_connected == Some(false) {
            // The next absence is another one, also when its words are the same.
            lock(&self.managed.last_problem).clear();
            self.managed.events.tell(EventKind::Reconnected, "the server answers again");
            self.managed.wake_outbox();
        }
        self.is_connected = Some(true);
    }

    /// Claims runs until there is none, or no room; how many began.
    fn claim<'s>(&mut self, scope: &'s Scope<'s, '_>) -> Result<usize, CallError>
    where
        'm: 's,
    {
        let managed = self.managed;
        let mut begun = 0;
        loop {
            let free = RUNS_AT_ONCE.saturating_sub(lock(&managed.runs).len());
            if free == 0 || managed.control.is_stopping() {
                return Ok(begun);
            }
            let asked = NextRun {
                engines: vec![Engine::Hyperv],
                slots: i64::try_from(free).ok(),
                boot_id: Some(managed.client.boot().to_owned()),
            };
            match managed.client.post::<NextRunAnswer>("agent_next_run.php", None, &asked) {
                Ok(Answer { body: NextRunAnswer { run: Some(run) }, .. }) => managed.start(scope, run),
                Ok(_) => return Ok(begun),
                Err(error) => {
                    self.failed(&error);
                    return Err(error);
                }
            }
            begun += 1;
        }
    }

    /// Tells the server what is on the host, when it is other than it was told, or was not told for long.
    fn report_host(&mut self) {
        let is_due = self.reported_at.is_none_or(|at| at.elapsed() >= REPORT_EVERY);
        self.looked_at = Some(Instant::now());
        let (vms, host) = match self.managed.look_at_host() {
            Ok(found) => found,
            Err(failure) => return self.managed.problem(&failure.to_string()),
        };
        let text = json!(vms).to_string();
        if text == self.reported && !is_due {
            return;
        }
        let report = Discover { job_id: None, vms, host: Some(host) };
        match self.managed.client.post::<DiscoverAnswer>("agent_hyperv_discover.php", None, &report) {
            Ok(_) => {
                (self.reported_at, self.reported) = (Some(Instant::now()), text);
                self.connected();
            }
            // The next poll says so, and when it works again, this does.
            Err(error) => {
                tracing::info!(%error, "the host cannot be reported");
                self.failed(&error);
            }
        }
    }
}

fn has_offer(run_available: bool, cancel_runs: &[i64]) -> bool {
    run_available || !cancel_runs.is_empty()
}

fn token_time(managed: &Managed<'_>, enrolment: &Enrolment) -> Timestamp {
    let changed = protected::changed(&managed.folder).ok().and_then(|time| Timestamp::try_from(time).ok());
    changed.unwrap_or(enrolment.enrolled_at)
}

impl Managed<'_> {
    /// Begins to work on a run that the server handed out; one that goes on here goes on under its new claim.
    fn start<'s, 'm: 's>(&'m self, scope: &'s Scope<'s, '_>, run: Run) {
        let control_api::id::Id::Number(run_id) = run.run_id else {
            return self.problem(&format!("the server handed out a run by another kind of id: {}", run.run_id));
        };
        let claim = run.claim_id.clone().unwrap_or_default();
        if let Some(work) = lock(&self.runs).get(&run_id) {
            return work.hold_by(claim);
        }
        let vms = run.hyperv_vms.iter().map(|vm| (vm.vm_id, vm.vm_name.clone())).collect();
        let work = self.begin(Work::new(run_id, claim, vms));
        scope.spawn(move || {
            backups::perform(self, &run, &work);
            self.finish(run_id);
        });
    }

    /// Takes note of work that begins.
    pub fn begin(&self, work: Work) -> Arc<Work> {
        let work = Arc::new(work);
        lock(&self.runs).insert(work.run_id, work.clone());
        if self.control.is_stopping() {
            work.cancel.cancel();
        }
        work
    }

    /// It ended.
    pub fn finish(&self, run_id: i64) {
        lock(&self.runs).remove(&run_id);
    }

    /// Whether a command is new here: what is worked on, or is answered and waits to be told, is not done twice.
    fn takes(&self, command: &control_api::command::Command) -> bool {
        !self.outbox.answers(command.command_id) && lock(&self.commands).insert(command.command_id)
    }

    fn active_commands(&self) -> String {
        let ids: Vec<i64> = lock(&self.commands).iter().copied().collect();
        json!(ids).to_string()
    }

    fn is_busy(&self) -> bool {
        self.is_operating.load(Ordering::Relaxed) || !lock(&self.commands).is_empty()
    }

    fn has_unsent_results(&self) -> bool {
        self.outbox.has_results()
    }

    fn stop_works(&self) {
        lock(&self.runs).values().for_each(|work| work.cancel.cancel());
    }

    /// What there is to tell goes out while the works end.
    fn last_words(&self) {
        let mut until: Option<Instant> = None;
        loop {
            self.wake_outbox();
            std::thread::sleep(LOOK_EVERY);
            if !lock(&self.runs).is_empty() || !lock(&self.commands).is_empty() {
                continue;
            }
            let until = *until.get_or_insert_with(|| Instant::now() + LAST_WORDS);
            if self.outbox.len() == 0 || Instant::now() >= until {
                return;
            }
        }
    }

    /// Sends what waits, as it comes, and again after a while.
    fn deliver_until_over(&self) {
        let mut backoff = Backoff::default();
        while !self.is_over.load(Ordering::Relaxed) {
            let claim_of = |run: i64| lock(&self.runs).get(&run).map(|work| work.claim());
            let delivered = self.outbox.deliver(&self.client, &claim_of);
            for (record, error) in &delivered.refused {
                self.refused(record, error);
            }
            let dropped = self.outbox.take_dropped();
            if dropped > 0 {
                tracing::warn!(dropped, "events were dropped: too many wait for the server");
            }
            let wait = match &delivered.failure {
                Some(error) => backoff.next(error),
                None => {
                    backoff.reset();
                    Duration::from_secs(60)
                }
            };
            let mut news = lock(&self.news);
            if !*news && !self.is_over.load(Ordering::Relaxed) {
                news = self.has_news.wait_timeout(news, wait).unwrap_or_else(PoisonError::into_inner).0;
            }
            *news = false;
            drop(news);
            if delivered.failure.is_some() && !self.control.is_stopping() {
                // News do not make a server that is away come back sooner.
                std::thread::sleep(wait.min(Duration::from_millis(500)));
            }
        }
    }

    /// The server would not take something: what that means for the run.
    fn refused(&self, record: &Record, error: &CallError) {
        let text = format!("the server did not take {} of {}: {error}", record.name, record.subject);
        match error.code() {
            // Another start of this agent has the run, or the run is gone: nothing of ours is missing there.
            "stale_claim" | "run_not_found" => {
                tracing::warn!("{text}");
                let work = record.run_id.and_then(|run| lock(&self.runs).get(&run).cloned());
                if let Some(work) = work
                    && record.claim.as_deref() == Some(&work.claim())
                {
                    work.lose();
                }
            }
            "already_completed" | "command_not_found" | "not_found" => tracing::warn!("{text}"),
            _ if record.is_event => tracing::warn!("{text}"),
            _ => self.problem(&text),
        }
    }

    /// The outbox has something new, or is to try again.
    pub fn wake_outbox(&self) {
        *lock(&self.news) = true;
        self.has_news.notify_all();
    }

    /// Limits of a job, under those of this machine.
    pub fn throttles_of(&self, run: &Run) -> Throttles {
        let limits =
            rates::limits(run.throttle_json.as_ref().and_then(|json| json.as_object()), run.local_bandwidth_limit_kbps);
        let control_api::id::Id::Number(job) = run.job_id else { return self.throttles.with_job(&limits) };
        let mut of_jobs = lock(&self.of_jobs);
        let throttle = of_jobs.entry(job).or_insert_with(|| Throttle::new(Limits::default()));
        throttle.change(limits);
        self.throttles.with(throttle.clone())
    }

    /// Something was changed on the server: limits of jobs that run here hold from now on (4.6).
    fn follow_limits(&self) {
        // One after the other: what is asked for last is the newest.
        let _one = lock(&self.following);
        let jobs = loop {
            if self.control.is_stopping() || lock(&self.of_jobs).is_empty() {
                return;
            }
            match self.client.get::<serde_json::Value>("agent_fetch_jobs.php", "") {
                Ok(answer) => break answer.body["jobs"].as_array().cloned().unwrap_or_default(),
                // A line that is full is what limits are changed for.
                Err(error) => tracing::info!(%error, "changed limits cannot be had yet"),
            }
            self.control.wait(FOLLOW_AGAIN_AFTER);
        };
        for job in jobs {
            let limits = rates::limits(
                job["throttle_json"].as_object(),
                job["local_bandwidth_limit_kbps"].as_i64().unwrap_or(0),
            );
            let throttle = job["id"].as_i64().and_then(|id| lock(&self.of_jobs).get(&id).cloned());
            if let Some(throttle) = throttle {
                throttle.change(limits);
            }
        }
    }

    /// What is on the host now.
    pub fn look_at_host(&self) -> Result<(Vec<WireVm>, Object), Failure> {
        let what = "look at the host";
        let host = self.context.host()?;
        let facts = host.host.probe().attempt(what, &*host.name)?;
        let vms = host.host.list_vms().attempt(what, &*host.name)?;
        Ok((vms.iter().map(inventory::vm).collect(), inventory::host(&facts)))
    }

    /// Changes the token: the new one is kept before it is used (1.6).
    pub fn rotate_token(&self) -> Result<(), Failure> {
        let what = "change the agent's token";
        let answer = self.client.post::<RotatedToken>("agent_rotate_token.php", None, &json!({}));
        let answer = answer.map_err(|error| Failure::new(what, "", Code::ServerUnreachable, error.to_string()))?;
        let token = Zeroizing::new(answer.body.agent_token);
        protected::keep(&self.folder, &token).attempt(what, self.folder.display().to_string())?;
        self.client.set_token(token);
        Ok(())
    }

    /// Something was put in order.
    pub fn settled(&self, text: &str) {
        self.events.tell(EventKind::Settled, text);
        self.agent_event("warn", "HYPERV_LEFTOVER_CHECKPOINT", json!({ "message": text }));
    }

    /// Something that cannot be done at present; the same is said once until something else is.
    pub fn problem(&self, text: &str) {
        let mut last = lock(&self.last_problem);
        if *last != text {
            text.clone_into(&mut last);
            self.events.tell(EventKind::Problem, text);
        }
    }

    /// Tells the server something about this agent.
    pub fn agent_event(&self, level: &str, code: &str, params: serde_json::Value) {
        let event = AgentEvent {
            code: code.to_owned(),
            source: Some("agent".to_owned()),
            level: level.to_owned(),
            ts: Some(results::instant(Timestamp::now())),
            message_id: None,
            params_json: params.as_object().cloned().unwrap_or_default(),
            dedupe_key: Some(format!("{code}-{}", uuid::Uuid::new_v4())),
        };
        let body = PushAgentEvents {
            events: vec![event],
            events_b64: None,
            events_encoding: None,
            agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        };
        let record = Record {
            subject: "agent".to_owned(),
            name: "agent_push_agent_events.php".to_owned(),
            run_id: None,
            claim: None,
            is_event: true,
            body: json!(body),
        };
        put(&self.outbox, record);
        self.wake_outbox();
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Maps and flags that are whole between any two of their changes.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The world of a story: two hosts, a store, an agent on each host, and those who act beside them.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backup::{
    BackupContext, BackupError, BackupOptions, Cancel, HostState, Silent, VmReport, back_up_vm, list_points, settle_vm,
};
use bucket::{Bucket, ErrorKind, Faulty};
use hyperv::Host;
use hyperv::seam::Seam;
use hyperv_sim::{
    AfterApply, AfterMove, DiskSource, JobStyle, LabHost, LabOptions, MarkerRetention, ReferenceOutputs, Sequences,
    VmOptions,
};
use kopia_repo::format::format_blob::{FORMAT_BLOB_ID, FormatBlob, UnlockedFormat};
use kopia_repo::{ClientOptions, CreateOptions, Repository, Storage, StorageKind};

use crate::border::{Border, Died};
use crate::host::{BytesRead, seam, shifted};
use crate::laws::{self, Law, Violation};
use crate::model::{Disk, Frozen, Model, Pending, RunInProgress, Vm};
use crate::store::{Reached, Stamped};
use crate::story::{self, Act, Run, Setup, StoreFault, Story};

pub(crate) const HALF_MIB: u64 = 512 << 10;
const PASSWORD: &str = "of a simulation";
/// The names under which the agents know their hosts.
const HOST_NAMES: [&str; 2] = ["HOSTA", "HOSTB"];

/// How often each thing happened.
pub type Counts = BTreeMap<String, u64>;

pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) hosts: Vec<HostOf>,
    pub(crate) border: Arc<Border>,
    pub(crate) store: Arc<Faulty<Stamped>>,
    /// A stranger's view of the store, which nothing ever happens to.
    pub(crate) observer: Arc<Repository>,
    agent: Mutex<Option<Arc<Repository>>>,
    offset_ms: Arc<AtomicI64>,
    pub(crate) read: BytesRead,
    pub(crate) model: Mutex<Model>,
    counts: Mutex<Counts>,
    found: Mutex<Option<Violation>>,
}

pub(crate) struct HostOf {
    pub(crate) lab: Arc<LabHost>,
    pub(crate) seam: Seam,
    pub(crate) state: PathBuf,
}

/// A repository as it is right after its creation: deriving the key from the password takes longer than a story.
struct Template {
    store: Stamped,
    repo: Arc<Repository>,
}

fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let _seeded = random::seed_this_thread(0);
        // The beginning of virtual time on the hosts.
        let begin = || UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        let client = ClientOptions { clock: Arc::new(begin), inline: true, ..ClientOptions::new("e3", "HOSTA") };
        let store = Arc::new(Stamped::new(Arc::new(begin)));
        let storage = Storage { bucket: store.clone(), kind: StorageKind::ObjectStore };
        let repo = Repository::create(&storage, PASSWORD, &CreateOptions::new("e3"), client);
        Template { repo: repo.expect("memory takes a repository"), store: Stamped::copy_of(&*store, Arc::new(begin)) }
    })
}

/// Folders of stories: in memory where the system has such a place.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    made.expect("there is room for a folder")
}

impl World {
    /// The world at the beginning of a story. The thread is seeded.
    pub(crate) fn new(story: &Story, trace: bool) -> Arc<Self> {
        let template = template();
        let dir = folder();
        let border = Border::new(trace);
        let offset_ms = Arc::new(AtomicI64::new(0));
        let read = Arc::new(AtomicU64::new(0));
        let hosts: Vec<HostOf> = HOST_NAMES
            .iter()
            .map(|name| {
                let options = lab_options(&story.setup, name);
                let lab = LabHost::create_with(dir.path().join(name), options).expect("a new folder takes a host");
                let seam = seam(&lab, &border, &offset_ms, &read);
                HostOf { lab, seam, state: dir.path().join(format!("state of {name}")) }
            })
            .collect();
        let now = {
            let labs: Vec<_> = hosts.iter().map(|host| host.lab.clock()).collect();
            move || labs.iter().map(|clock| clock.now()).max().expect("there are hosts")
        };
        let store = Arc::new(Faulty::new(Stamped::copy_of(&template.store, Arc::new(now.clone()))));
        let storage = Storage { bucket: store.clone() as Arc<dyn Bucket>, kind: StorageKind::ObjectStore };
        let client =
            ClientOptions { clock: Arc::new(now), inline: true, ..ClientOptions::new("observer", "elsewhere") };
        let observer = template.repo.open_beside(&storage, client).expect("a new repository opens");
        let world = Arc::new(Self {
            setup: story.setup.clone(),
            dir,
            hosts,
            border: border.clone(),
            store,
            observer,
            agent: Mutex::default(),
            offset_ms,
            read,
            model: Mutex::default(),
            counts: Mutex::default(),
            found: Mutex::default(),
        });
        border.surround(&world);
        world.count_tracking();
        for (number, disks) in story.setup.vms.iter().enumerate() {
            world.add_vm(number, disks);
        }
        world
    }

    fn add_vm(&self, number: usize, disks: &[u8]) {
        let lab = &self.hosts[0].lab;
        let name = format!("VM{number}");
        let sources: Vec<DiskSource> =
            disks.iter().map(|units| DiskSource::Empty { size_bytes: u64::from(*units) * HALF_MIB }).collect();
        let id = lab.add_vm(&name, &sources, VmOptions::default()).expect("a new host takes a VM");
        let disks = self.disks_of(lab, &id, 0);
        self.model().vms.push(Vm {
            id,
            name,
            host: 0,
            running: true,
            disks,
            detached: Vec::new(),
            checkpoints: Vec::new(),
            foreign_checkpoints: Vec::new(),
            foreign_reference_points: Vec::new(),
            run: None,
            full_excused: false,
        });
    }

    /// The disks of a VM as its files have them.
    pub(crate) fn disks_of(&self, lab: &LabHost, vm: &str, event: u64) -> Vec<Disk> {
        let count = lab.disk_count(vm).expect("the VM is there");
        (0..count).map(|disk| Disk::new(key_of(lab, vm, disk), laws::guest_disk(lab, vm, disk), event)).collect()
    }

    pub(crate) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn vm_count(&self) -> usize {
        self.model().vms.len()
    }

    pub(crate) fn count(&self, what: impl Into<String>) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(what.into()).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (what, deaths) in self.border.deaths() {
            *counts.entry(format!("crash {what}")).or_default() += deaths;
        }
        counts
    }

    /// Remembers the first violation.
    pub(crate) fn find(&self, law: Law, what: String) {
        let violation = Violation { law, what };
        self.border.tell(&format!("found {violation}"));
        self.found.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(violation);
    }

    pub(crate) fn found(&self) -> Option<Violation> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn lab(&self, vm: usize) -> Arc<LabHost> {
        let host = self.model().vms[vm].host;
        self.hosts[host].lab.clone()
    }

    pub(crate) fn id_and_lab(&self, vm: usize) -> (String, Arc<LabHost>) {
        let id = self.model().vms[vm].id.clone();
        (id, self.lab(vm))
    }

    /// Both hosts live in the same time.
    pub(crate) fn synchronise(&self) {
        let times: Vec<SystemTime> = self.hosts.iter().map(|host| host.lab.clock().now()).collect();
        let latest = *times.iter().max().expect("there are hosts");
        for (host, time) in self.hosts.iter().zip(times) {
            host.lab.clock().sleep(latest.duration_since(time).unwrap_or_default());
        }
    }

    /// Time passes, also for what is due on the hosts.
    pub(crate) fn wait(&self, duration: Duration) {
        self.synchronise();
        for host in &self.hosts {
            host.lab.clock().sleep(duration);
        }
        for vm in 0..self.vm_count() {
            let (id, lab) = self.id_and_lab(vm);
            let _ = lab.is_at_rest(&id);
        }
    }

    pub(crate) fn set_clock_offset(&self, seconds: i64) {
        self.model().clock_offset_s = seconds;
        self.offset_ms.store(seconds * 1000, Ordering::Relaxed);
    }

    pub(crate) fn restart_agent(&self) {
        *self.agent.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The agent's own repository, opened if it is not.
    fn agents_repository(&self) -> Result<Arc<Repository>, BackupError> {
        let mut agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(repo) = &*agent {
            return Ok(repo.clone());
        }
        let repo = self.open_repository()?;
        *agent = Some(repo.clone());
        Ok(repo)
    }

    /// The repository as a process that just started sees it.
    fn open_repository(&self) -> Result<Arc<Repository>, BackupError> {
        let reached = Reached { inner: self.store.clone() as Arc<dyn Bucket>, border: self.border.clone() };
        let storage = Storage { bucket: Arc::new(reached), kind: StorageKind::ObjectStore };
        let (clock, offset_ms) = (self.hosts[0].lab.clock(), self.offset_ms.clone());
        let other = self.hosts[1].lab.clock();
        let now = move || shifted(clock.now().max(other.now()), offset_ms.load(Ordering::Relaxed));
        let client = ClientOptions { clock: Arc::new(now), inline: true, ..ClientOptions::new("e3", "HOSTA") };
        Ok(template().repo.open_beside(&storage, client)?)
    }

    /// Runs `work` as the agent on a VM's host.
    fn as_agent<T>(
        &self,
        repo: &Arc<Repository>,
        vm: usize,
        run: &Run,
        cancel: &Cancel,
        work: impl FnOnce(&BackupContext<'_>, &hyperv::Vm) -> Result<T, BackupError>,
    ) -> Result<T, BackupError> {
        let (host_number, id) = {
            let model = self.model();
            (model.vms[vm].host, model.vms[vm].id.clone())
        };
        let of = &self.hosts[host_number];
        let host = Host::new(of.seam.clone());
        let found = host
            .find_vm(&id)
            .map_err(|source| BackupError::Host { attempt: "find the VM".into(), source: Box::new(source) })?;
        let state = HostState::open(&of.state)?;
        let segment_bytes = Some(if self.setup.long_segments { 512 << 10 } else { 256 << 10 });
        let options = BackupOptions { full: run.full, segment_bytes, ..BackupOptions::new("simulation") };
        let context = BackupContext {
            host: &host,
            host_name: HOST_NAMES[host_number],
            repo,
            state: &state,
            options: &options,
            observer: &Silent,
            cancel,
        };
        work(&context, &found)
    }

    /// A run of the agent that others may disturb, and what the laws say of it afterwards.
    pub(crate) fn back_up(&self, vm: usize, run: &Run) {
        let cancel = Cancel::default();
        self.begin_run(vm);
        let repo = match self.agents_repository() {
            Ok(repo) => repo,
            Err(error) => {
                return self.find(Law::Progress, format!("the repository does not open: {}", chain(&error)));
            }
        };
        self.arm(run, &cancel);
        let stored_before = self.store.tally().put_bytes;
        let read_before = self.read.load(Ordering::Relaxed);
        let result = catch_unwind(AssertUnwindSafe(|| self.run_agent(&repo, vm, run, &cancel)));
        self.store.revive();
        let (calls, died) = self.border.disarm();
        let cost = laws::Cost {
            stored_bytes: self.store.tally().put_bytes - stored_before,
            read_bytes: self.read.load(Ordering::Relaxed) - read_before,
        };
        self.border.tell(&format!("{calls} calls, {cost:?}"));
        match result {
            Ok(result) => self.end_run(vm, run, Some(result), Some(cost)),
            Err(payload) if payload.is::<Died>() && died => {
                self.count("outcome died");
                self.restart_agent();
                self.end_all_runs(run);
            }
            Err(payload) => {
                self.restart_agent();
                self.find(Law::Progress, format!("the agent panicked: {}", text_of(&*payload)));
                self.end_all_runs(run);
            }
        }
        self.synchronise();
    }

    fn run_agent(
        &self,
        repo: &Arc<Repository>,
        vm: usize,
        run: &Run,
        cancel: &Cancel,
    ) -> Result<VmReport, BackupError> {
        let id = self.model().vms[vm].run.as_ref().map(|run| run.id.clone()).unwrap_or_default();
        self.as_agent(repo, vm, run, cancel, |context, found| back_up_vm(context, found, &id))
    }

    fn arm(&self, run: &Run, cancel: &Cancel) {
        let faults = run.store.clone();
        if !faults.is_empty() {
            let mut first = None;
            self.store.set_script(move |call| {
                let number = call.number - *first.get_or_insert(call.number);
                let due = faults.iter().find(|(at, _)| u64::from(*at) == number);
                due.map_or(bucket::Fault::Pass, |(_, fault)| store_fault(*fault))
            });
        }
        for (_, fault) in &run.store {
            self.count(format!("store {fault:?}"));
        }
        let cancel = run.cancel.map(|at| (u64::from(at), cancel.clone()));
        self.border.arm(run.crash, cancel, run.meanwhile.clone());
    }

    /// What happens at a call of a run: the act, on the thread of the run.
    pub(crate) fn meanwhile(&self, act: &Act) {
        self.border.tell(&format!("meanwhile {act:?}"));
        self.count(format!("meanwhile {}", name_of(act)));
        match act {
            Act::BackUp { vm, .. } => {
                let vm = usize::from(*vm) % self.vm_count();
                let busy = self.model().vms[vm].run.is_some();
                if busy && !self.is_locked(vm) {
                    // The other run is still looking for its VM: this one would come before it.
                    return;
                }
                if !busy {
                    self.begin_run(vm);
                }
                // A process of its own: within this one it would be a thread, which waits where this thread holds a
                // lock of the repository.
                let (run, cancel) = (Run::default(), Cancel::default());
                let result = self.open_repository().and_then(|repo| self.run_agent(&repo, vm, &run, &cancel));
                match (busy, result) {
                    (true, Err(BackupError::Busy { .. })) => self.count("outcome busy"),
                    (true, Err(_)) if self.model().is_broken_for(vm) => {}
                    (true, Ok(_)) => self.find(Law::Recovery, "two runs worked on one VM at the same time".into()),
                    (true, Err(error)) => {
                        self.find(Law::Progress, format!("a busy VM was answered with: {}", chain(&error)));
                    }
                    (false, result) => {
                        let disturbed = Run { meanwhile: vec![(0, act.clone())], ..Run::default() };
                        self.end_run(vm, &disturbed, Some(result), None);
                    }
                }
            }
            act => self.act(act),
        }
    }

    /// Whether a run holds the lock of a VM on its host.
    fn is_locked(&self, vm: usize) -> bool {
        let (id, host) = {
            let model = self.model();
            (model.vms[vm].id.clone(), model.vms[vm].host)
        };
        HostState::open(&self.hosts[host].state).is_ok_and(|state| state.lock_vm(&id, "").is_err())
    }

    pub(crate) fn settle(&self, vm: usize) {
        if self.model().vms[vm].run.is_some() {
            return;
        }
        let (run, cancel) = (Run::default(), Cancel::default());
        let result = self.agents_repository().and_then(|repo| self.as_agent(&repo, vm, &run, &cancel, settle_vm));
        match result {
            Ok(done) => {
                self.border.tell(&format!("settled: {} things", done.len()));
                self.adopt_points();
                laws::check_listing(self);
                if !self.model().is_broken_for(vm) {
                    laws::check_leftovers(self, vm, false);
                }
            }
            Err(error) => {
                self.border.tell(&format!("not settled: {}", kind_of(&error)));
                let model = self.model();
                let excused = model.is_broken_for(vm) || model.clock_offset_s.abs() > 250;
                drop(model);
                if !excused {
                    self.find(Law::Progress, format!("settling failed with nothing wrong: {}", chain(&error)));
                }
            }
        }
    }

    fn begin_run(&self, vm: usize) {
        let lab = self.lab(vm);
        let id = self.model().vms[vm].id.clone();
        let known = lab.checkpoints(&id).map(|(_, recovery)| recovery).unwrap_or_default();
        let chain_depths = laws::chain_depths(&lab, &id);
        let mut model = self.model();
        model.runs += 1;
        let run_id = format!("{:08x}", model.runs);
        model.vms[vm].run =
            Some(RunInProgress { id: run_id, known, frozen: Vec::new(), chain_depths, disturbed: false });
    }

    /// Looks whether a checkpoint of a run appeared; what it froze is what the guest has now. Called before anything
    /// changes a disk, and at calls that follow the making of a checkpoint.
    pub(crate) fn observe_freeze(&self) {
        for vm in 0..self.vm_count() {
            let (id, lab) = {
                let model = self.model();
                if model.vms[vm].run.is_none() {
                    continue;
                }
                (model.vms[vm].id.clone(), self.hosts[model.vms[vm].host].lab.clone())
            };
            let Ok((_, recovery)) = lab.checkpoints(&id) else { continue };
            let mut model = self.model();
            let event = model.event;
            let vm = &mut model.vms[vm];
            let frozen = vm.freeze(event);
            let foreign = vm.foreign_checkpoints.clone();
            let run = vm.run.as_mut().expect("checked above");
            for checkpoint in recovery {
                let seen = run.known.contains(&checkpoint) || foreign.contains(&checkpoint);
                if !seen && run.frozen.iter().all(|(known, _)| *known != checkpoint) {
                    run.frozen.push((checkpoint, frozen.clone()));
                }
            }
        }
    }

    /// After the agent's death all runs are over.
    fn end_all_runs(&self, run: &Run) {
        for vm in 0..self.vm_count() {
            if self.model().vms[vm].run.is_some() {
                self.end_run(vm, run, None, None);
            }
        }
    }

    /// `None` for a run that died.
    fn end_run(&self, vm: usize, run: &Run, result: Option<Result<VmReport, BackupError>>, cost: Option<laws::Cost>) {
        self.observe_freeze();
        let (progress, frozen) = {
            let mut model = self.model();
            let event = model.event;
            let of = &mut model.vms[vm];
            let progress = of.run.take().expect("a run was begun");
            let frozen: Frozen = match progress.frozen.last() {
                Some((_, frozen)) => frozen.clone(),
                // The checkpoint came and went without anything happening to the disks since.
                None => of.freeze(event),
            };
            if !matches!(result, Some(Ok(_))) {
                model.pending.insert(progress.id.clone(), Pending { vm, frozen: frozen.clone() });
            }
            (progress, frozen)
        };
        match result {
            Some(Ok(report)) => {
                self.count("outcome point");
                laws::check_run(self, vm, run, &progress, &frozen, &report, cost);
                laws::check_listing(self);
            }
            Some(Err(error)) => {
                self.count("outcome failed");
                self.border.tell(&format!("failed: {}", kind_of(&error)));
                self.model().vms[vm].full_excused = true;
                laws::check_failure(self, vm, run, &progress, &error);
                self.adopt_points();
                laws::check_listing(self);
            }
            None => {
                self.model().vms[vm].full_excused = true;
                self.adopt_points();
                laws::check_listing(self);
            }
        }
    }

    /// Points that appeared without a report: of runs that died behind their commit, or that a later one completed.
    pub(crate) fn adopt_points(&self) {
        if self.observer.refresh().is_err() {
            return;
        }
        let Ok(points) = list_points(&self.observer, None) else { return };
        for point in points {
            if self.model().point(&point.id).is_some() {
                continue;
            }
            let run = point.tag("run-id").unwrap_or_default().to_owned();
            let Some(Pending { vm, frozen }) = self.model().pending.remove(&run) else { continue };
            self.count("outcome adopted");
            laws::record_point(self, vm, &frozen, &point.id, None);
        }
    }
}

fn store_fault(fault: StoreFault) -> bucket::Fault {
    match fault {
        StoreFault::FailBefore => bucket::Fault::FailBefore(ErrorKind::Unreachable),
        StoreFault::FailAfter => bucket::Fault::FailAfter(ErrorKind::Unreachable),
        StoreFault::AccessDenied => bucket::Fault::FailBefore(ErrorKind::AccessDenied),
        StoreFault::NoSpace => bucket::Fault::FailBefore(ErrorKind::NoSpace),
        StoreFault::Cut => bucket::Fault::Cut(1),
        StoreFault::FlipBit => bucket::Fault::FlipBit(997),
    }
}

fn lab_options(setup: &Setup, name: &str) -> LabOptions {
    let tracking = &setup.tracking;
    LabOptions {
        host_name: name.into(),
        jobs: if setup.synchronous { JobStyle::Synchronous } else { JobStyle::ByJob },
        reference_outputs: if setup.null_references { ReferenceOutputs::Null2025 } else { ReferenceOutputs::Filled },
        marker_retention: if tracking.keeps_markers { MarkerRetention::Keep } else { MarkerRetention::DropAtOnce },
        granularity_bytes: 1 << tracking.granularity,
        superset: tracking.superset,
        longest_range_bytes: if tracking.short_ranges { 64 << 10 } else { 0 },
        refuse_whole_disk_query: tracking.refuses_whole_disk,
        sequences: if tracking.reuses_ids { Sequences::ReusedAfterRevert } else { Sequences::NeverReused },
        after_apply: if tracking.lies_after_apply { AfterApply::OldIdsAnswerWrongly } else { AfterApply::OldIdsFail },
        after_move: match tracking.after_move {
            story::AfterMove::Kept => AfterMove::Kept,
            story::AfterMove::Lost => AfterMove::Lost,
            story::AfterMove::KeptButWrong => AfterMove::KeptButWrong,
        },
        allow_second_recovery_checkpoint: true,
        ..LabOptions::default()
    }
}

impl World {
    fn count_tracking(&self) {
        let tracking = &self.setup.tracking;
        let modes = [
            ("superset", tracking.superset),
            ("short ranges", tracking.short_ranges),
            ("refuses whole disk", tracking.refuses_whole_disk),
            ("reuses ids", tracking.reuses_ids),
            ("lies after apply", tracking.lies_after_apply),
            ("kept after move", tracking.after_move == story::AfterMove::Kept),
            ("lost after move", tracking.after_move == story::AfterMove::Lost),
            ("kept but wrong after move", tracking.after_move == story::AfterMove::KeptButWrong),
            ("keeps markers", tracking.keeps_markers),
        ];
        for (mode, is_on) in modes {
            if is_on {
                self.count(format!("tracking {mode}"));
            }
        }
        self.count(format!("tracking granularity {}", 1_u64 << tracking.granularity));
    }
}

/// The words of a panic.
pub(crate) fn text_of(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Name of the first file of a disk's chain.
pub(crate) fn key_of(lab: &LabHost, vm: &str, disk: usize) -> String {
    key_of_chain(&lab.disk_chain(vm, disk).expect("the VM has the disk"))
}

pub(crate) fn key_of_chain(chain: &[String]) -> String {
    let base = chain.last().expect("a chain has a file");
    base.rsplit('\\').next().expect("a path has a name").to_lowercase()
}

/// The name of an act, without what it is done to.
pub(crate) fn name_of(act: &Act) -> String {
    let text = format!("{act:?}");
    text.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}

/// The name of an error's variant: no paths, no numbers.
pub(crate) fn kind_of(error: &BackupError) -> String {
    let text = format!("{error:?}");
    text.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The keys of every story's repository, as the password unlocks them.
pub(crate) fn unlocked() -> &'static UnlockedFormat {
    static UNLOCKED: OnceLock<UnlockedFormat> = OnceLock::new();
    UNLOCKED.get_or_init(|| {
        let blob = template().store.get(FORMAT_BLOB_ID).expect("a repository has a format blob");
        FormatBlob::parse(&blob).expect("it was just made").unlock(PASSWORD).expect("with this password")
    })
}

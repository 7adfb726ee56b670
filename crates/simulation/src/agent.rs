//! The agents of the world: one process a host, which runs, dies, starts again, and meets others.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use backup::{
    BackupContext, BackupError, BackupOptions, Cancel, HostState, Silent, VmReport, back_up_vm, list_points, settle_vm,
};
use bucket::{Bucket, ErrorKind};
use hyperv::Host;
use kopia_repo::{ClientOptions, Repository, Storage, StorageKind};

use crate::border::Died;
use crate::host::shifted;
use crate::laws::{self, Law};
use crate::model::{Frozen, Pending, RunInProgress};
use crate::store::Reached;
use crate::story::{Act, Run, StoreFault};
use crate::world::{HOST_NAMES, World, chain, kind_of, name_of, template, text_of};

impl World {
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
                // A process of its own: within this one it would be a thread, which waits where this thread holds a
                // lock of the repository. What the store does wrong may meet it before it begins.
                let Ok(repo) = self.open_repository() else { return };
                if !busy {
                    self.begin_run(vm);
                }
                let result = self.run_agent(&repo, vm, &Run::default(), &Cancel::default());
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
            if let Ok(description) = point.describe(&self.observer) {
                laws::note_instants(self, &frozen, &point.id, &description);
            }
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

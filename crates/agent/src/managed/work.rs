//! A run that this agent works on: by which claim it is held, how far it is, what is to be told of it.
//!
//! Three hands touch it: the worker, who does it; the reporter, who tells the server every two seconds at most and every
//! 30 at least (spec control-api 3.3, 3.5); and the loop, which learns of cancellations and new claims. Locks are held
//! for one look or one change; none is taken while another is held.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backup::{Cancel, Observer};
use control_api::Object;
use control_api::events::{Event as WireEvent, PushEvents};
use control_api::id::Id;
use control_api::progress::{Figures, UpdateRun, UpdateRunAnswer};
use control_api::words::RunStatus;
use serde_json::{Value, json};

use super::client::Client;
use super::inventory::signed;
use super::outbox::{Outbox, Record};
use super::results::instant;

/// Reports are this far apart at least, and at most.
const BETWEEN_REPORTS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// How soon the end of the work is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Events of a batch at most; with their parameters they stay far below the limit of a body.
const EVENTS_OF_A_BATCH: usize = 200;

/// One run.
#[derive(Debug)]
pub struct Work {
    /// Its id.
    pub run_id: i64,
    claim: Mutex<String>,
    /// Stops what is done.
    pub cancel: Cancel,
    is_cancel_asked: AtomicBool,
    is_lost: AtomicBool,
    seq: AtomicI64,
    event_seq: AtomicI64,
    events: Mutex<Vec<WireEvent>>,
    progress: Mutex<Progress>,
    over: Mutex<bool>,
    ended: Condvar,
}

/// How far it is.
#[derive(Debug, Default)]
struct Progress {
    vms: Vec<VmProgress>,
    is_changed: bool,
    uploaded: u64,
}

#[derive(Debug)]
struct VmProgress {
    vm_id: i64,
    name: String,
    state: &'static str,
    phase: String,
    disks: BTreeMap<String, DiskProgress>,
}

#[derive(Debug, Default)]
struct DiskProgress {
    done: u64,
    total: u64,
    mode: String,
}

impl Work {
    /// Work on a run that is held by `claim`, on these VMs (ids and names).
    pub fn new(run_id: i64, claim: String, vms: Vec<(i64, String)>) -> Self {
        let vms = vms
            .into_iter()
            .map(|(vm_id, name)| VmProgress {
                vm_id,
                name,
                state: "pending",
                phase: String::new(),
                disks: BTreeMap::new(),
            })
            .collect();
        Self {
            run_id,
            claim: Mutex::new(claim),
            cancel: Cancel::default(),
            is_cancel_asked: AtomicBool::new(false),
            is_lost: AtomicBool::new(false),
            seq: AtomicI64::new(0),
            event_seq: AtomicI64::new(0),
            events: Mutex::default(),
            progress: Mutex::new(Progress { vms, ..Progress::default() }),
            over: Mutex::new(false),
            ended: Condvar::new(),
        }
    }

    /// The claim by which it is held now.
    pub fn claim(&self) -> String {
        lock(&self.claim).clone()
    }

    /// The server gave the same run to this same process again: it goes on under the new claim.
    pub fn hold_by(&self, claim: String) {
        *lock(&self.claim) = claim;
    }

    /// A person asks for its end.
    pub fn ask_cancel(&self) {
        if !self.is_cancel_asked.swap(true, Ordering::Relaxed) {
            self.tell("info", "warn", "CANCEL_REQUESTED", json!({}));
        }
        self.cancel.cancel();
    }

    /// Whether a person asked for its end.
    pub fn is_cancel_asked(&self) -> bool {
        self.is_cancel_asked.load(Ordering::Relaxed)
    }

    /// The run belongs to another claim, or is gone: it is stopped, and nothing more is said of it.
    pub fn lose(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
        self.cancel.cancel();
    }

    /// Whether it is lost.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    /// Notes an event; it goes out with the next batch.
    pub fn tell(&self, kind: &str, level: &str, message_id: &str, params: Value) {
        let seq = self.event_seq.fetch_add(1, Ordering::Relaxed) + 1;
        let params_json = match params {
            Value::Object(params) => params,
            _ => Object::new(),
        };
        lock(&self.events).push(WireEvent {
            kind: kind.to_owned(),
            level: level.to_owned(),
            message_id: message_id.to_owned(),
            code: None,
            params_json,
            ts: Some(instant(jiff::Timestamp::now())),
            seq: Some(seq),
        });
    }

    /// Where one VM stands now (3.6).
    pub fn set_state(&self, vm_id: i64, state: &'static str) {
        self.change(vm_id, |vm| vm.state = state);
    }

    /// So many bytes went to the repository.
    pub fn add_uploaded(&self, bytes: u64) {
        let mut progress = lock(&self.progress);
        progress.uploaded = progress.uploaded.saturating_add(bytes);
        progress.is_changed = true;
    }

    /// What the engine tells of one VM.
    pub fn observer(&self, vm_id: i64) -> VmObserver<'_> {
        VmObserver { work: self, vm_id }
    }

    /// A report as of now, without a status.
    pub fn report(&self) -> UpdateRun {
        let mut progress = lock(&self.progress);
        progress.is_changed = false;
        let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
        UpdateRun { figures: figures(&progress), progress_json: Some(details(&progress)), ..self.bare(seq) }
    }

    fn bare(&self, seq: i64) -> UpdateRun {
        UpdateRun {
            run_id: Id::from(self.run_id),
            status: None,
            manifest_id: None,
            started_at: None,
            finished_at: None,
            figures: Figures::default(),
            log_excerpt: None,
            error_summary: None,
            error_code: None,
            validation_status: None,
            validation_log_excerpt: None,
            progress_json: None,
            stats_json: None,
            log_ref: None,
            agent_version: None,
            agent_os: None,
            agent_arch: None,
            agent_build: None,
            disk_manifests_json: BTreeMap::new(),
            hyperv_results: Vec::new(),
            claim_id: None,
            seq: Some(seq),
            cancel_ack: false,
        }
    }

    /// A call about this run, for the outbox.
    pub fn record(&self, name: &str, is_event: bool, body: Value) -> Record {
        Record {
            subject: subject(self.run_id),
            name: name.to_owned(),
            run_id: Some(self.run_id),
            claim: Some(self.claim()),
            is_event,
            body,
        }
    }

    /// Puts the noted events into the outbox.
    pub fn flush_events(&self, outbox: &Outbox) {
        let events = std::mem::take(&mut *lock(&self.events));
        for batch in events.chunks(EVENTS_OF_A_BATCH) {
            if self.is_lost() {
                return;
            }
            let body = PushEvents {
                run_id: Id::from(self.run_id),
                events: batch.to_vec(),
                events_b64: None,
                events_encoding: None,
                logs: Vec::new(),
                log_ref: None,
                manifest_id: None,
                agent_version: None,
                batch_id: Some(uuid::Uuid::new_v4().to_string()),
            };
            put(outbox, self.record("agent_push_events.php", true, json!(body)));
        }
    }

    /// Does `deed` while the server is told how far it is.
    pub fn while_reported<R>(&self, client: &Client, outbox: &Outbox, deed: impl FnOnce() -> R) -> R {
        std::thread::scope(|scope| {
            scope.spawn(|| self.report_until_ended(client, outbox));
            // However the deed ends, the reporter does, too.
            let _over = Over(self);
            deed()
        })
    }

    fn report_until_ended(&self, client: &Client, outbox: &Outbox) {
        let mut last: Option<Instant> = None;
        loop {
            let is_due = last.is_none_or(|last| {
                let (least, most) = BETWEEN_REPORTS;
                last.elapsed() >= most || (last.elapsed() >= least && lock(&self.progress).is_changed)
            });
            if is_due && !self.is_lost() {
                self.flush_events(outbox);
                self.report_once(client);
                last = Some(Instant::now());
            }
            let over = lock(&self.over);
            if *over {
                return;
            }
            let (over, _) = self.ended.wait_timeout(over, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner);
            if *over {
                return;
            }
        }
    }

    /// One report. A lost one is replaced by the next; what is durable goes another way.
    fn report_once(&self, client: &Client) {
        let claim = self.claim();
        let report = UpdateRun { status: Some(RunStatus::Running), ..self.report() };
        match client.post::<UpdateRunAnswer>("agent_update_run.php", Some(&claim), &report) {
            Ok(answer) if answer.body.ignored.as_deref() == Some("terminal") => {
                tracing::warn!(run_id = self.run_id, status = %answer.body.run_status, "the server ended the run");
                // What is committed is told all the same; nothing further is begun.
                self.cancel.cancel();
            }
            Ok(answer) if answer.body.cancel_requested => self.ask_cancel(),
            Ok(_) => {}
            Err(error) if error.code() == "stale_claim" && claim == self.claim() => {
                tracing::warn!(run_id = self.run_id, "the run was claimed by another start of this agent");
                self.lose();
            }
            Err(error) if error.code() == "run_not_found" => {
                tracing::warn!(run_id = self.run_id, "the run is gone from the server");
                self.lose();
            }
            Err(error) => tracing::info!(run_id = self.run_id, %error, "progress cannot be told"),
        }
    }

    fn change(&self, vm_id: i64, change: impl FnOnce(&mut VmProgress)) {
        let mut progress = lock(&self.progress);
        if let Some(vm) = progress.vms.iter_mut().find(|vm| vm.vm_id == vm_id) {
            change(vm);
            progress.is_changed = true;
        }
    }
}

struct Over<'a>(&'a Work);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        *lock(&self.0.over) = true;
        self.0.ended.notify_all();
    }
}

/// What the outbox calls everything about a run.
pub fn subject(run_id: i64) -> String {
    format!("run-{run_id}")
}

/// Keeps a call. That it cannot be kept is said once here: nobody further up could do more.
pub fn put(outbox: &Outbox, record: Record) {
    let name = record.name.clone();
    if let Err(error) = outbox.put(record) {
        tracing::error!(%name, %error, "a call to the server cannot be kept on disk");
    }
}

/// Receives what the engine tells of one VM.
pub struct VmObserver<'a> {
    work: &'a Work,
    vm_id: i64,
}

impl Observer for VmObserver<'_> {
    fn event(&self, event: backup::Event<'_>) {
        match event {
            backup::Event::Phase { phase, .. } => self.work.change(self.vm_id, |vm| {
                vm.phase = phase.to_owned();
                if let Some(state) = state_of(phase) {
                    vm.state = state;
                }
            }),
            backup::Event::Started { subject, total_bytes, what } => self.work.change(self.vm_id, |vm| {
                let disk = DiskProgress { done: 0, total: total_bytes, mode: what.to_owned() };
                vm.disks.insert(subject.to_owned(), disk);
                vm.state = "reading";
            }),
            backup::Event::Advanced { subject, bytes } => self.work.change(self.vm_id, |vm| {
                if let Some(disk) = vm.disks.get_mut(subject) {
                    disk.done = disk.done.saturating_add(bytes);
                }
            }),
            backup::Event::Finished { subject } => self.work.change(self.vm_id, |vm| {
                if let Some(disk) = vm.disks.get_mut(subject) {
                    // What was left out as zero counts as read, and the sum only falls (3.5).
                    disk.total = disk.done.min(disk.total);
                }
            }),
            _ => {}
        }
    }
}

/// The states of 3.6 that a phase of the engine begins.
fn state_of(phase: &str) -> Option<&'static str> {
    Some(match phase {
        "looking at the host" => "preparing",
        "reading the definition" => "checkpointed",
        "converting the checkpoint" => "uploaded",
        "writing the point" => "pinned",
        _ => return None,
    })
}

fn is_done(state: &str) -> bool {
    matches!(state, "committed" | "failed" | "skipped" | "cancelled")
}

fn figures(progress: &Progress) -> Figures {
    let disks = || progress.vms.iter().flat_map(|vm| vm.disks.values());
    let done: u64 = disks().map(|disk| disk.done).sum();
    let total: u64 = disks().map(|disk| disk.total.max(disk.done)).sum();
    let share = |vm: &VmProgress| {
        let (done, total) =
            vm.disks.values().fold((0, 0), |(done, total), disk| (done + disk.done, total + disk.total));
        if is_done(vm.state) {
            1.0
        } else if total == 0 {
            0.0
        } else {
            (done as f64 / total as f64).min(1.0) * 0.99
        }
    };
    let count = progress.vms.len();
    let pct = if count == 0 { 0.0 } else { progress.vms.iter().map(share).sum::<f64>() / count as f64 * 100.0 };
    let current = progress.vms.iter().position(|vm| !is_done(vm.state) && vm.state != "pending");
    let current_item = current.map(|at| {
        let vm = &progress.vms[at];
        format!("VM {}/{count}: {} – {}", at + 1, vm.name, vm.phase).chars().take(1024).collect::<String>()
    });
    Figures {
        progress_pct: Some(Some(pct.min(99.9))),
        bytes_processed: Some(signed(done)),
        bytes_total: Some(signed(total)),
        bytes_transferred: Some(signed(progress.uploaded)),
        current_item: Some(current_item),
        ..Figures::default()
    }
}

fn details(progress: &Progress) -> Object {
    let vms: Vec<Value> = progress
        .vms
        .iter()
        .map(|vm| {
            let disks: Vec<Value> = vm
                .disks
                .iter()
                .map(|(path, disk)| json!({ "path": path, "done": disk.done, "total": disk.total, "mode": disk.mode }))
                .collect();
            json!({ "vm_id": vm.vm_id, "vm_name": vm.name, "state": vm.state, "phase": vm.phase, "disks": disks })
        })
        .collect();
    let phase = progress.vms.iter().find(|vm| !is_done(vm.state)).map(|vm| vm.phase.clone());
    Object::from_iter([("phase".to_owned(), json!(phase)), ("vms".to_owned(), json!(vms))])
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one assignment or one push: whole, whatever panicked.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_the_mean_of_the_vms_and_never_whole_before_the_end() {
        let work = Work::new(1, "c".into(), vec![(10, "DC01".into()), (11, "FS02".into())]);
        let pct = |work: &Work| work.report().figures.progress_pct.flatten().unwrap();
        assert_eq!(pct(&work), 0.0);
        let observer = work.observer(10);
        observer.event(backup::Event::Phase { subject: "DC01", phase: "looking at the host" });
        observer.event(backup::Event::Started { subject: "DC01 disk 0", total_bytes: 100, what: "full" });
        observer.event(backup::Event::Advanced { subject: "DC01 disk 0", bytes: 50 });
        assert!((pct(&work) - 24.75).abs() < 0.01, "{}", pct(&work));
        let report = work.report();
        assert_eq!(report.figures.bytes_processed, Some(Some(50)));
        assert_eq!(report.figures.bytes_total, Some(Some(100)));
        assert_eq!(report.figures.current_item.flatten().unwrap(), "VM 1/2: DC01 – looking at the host");
        observer.event(backup::Event::Finished { subject: "DC01 disk 0" });
        assert_eq!(work.report().figures.bytes_total, Some(Some(50)), "the sum only falls");
        work.set_state(10, "committed");
        work.set_state(11, "failed");
        assert_eq!(pct(&work), 99.9);
        // A VM that the run does not have changes nothing.
        work.set_state(12, "failed");
        assert_eq!(work.report().progress_json.unwrap()["vms"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn reports_and_events_are_numbered() {
        let work = Work::new(1, "c".into(), Vec::new());
        assert_eq!((work.report().seq, work.report().seq), (Some(1), Some(2)));
        work.tell("start", "info", "BACKUP_STARTING", json!({}));
        work.ask_cancel();
        work.ask_cancel();
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path()).unwrap();
        work.flush_events(&outbox);
        work.flush_events(&outbox);
        assert_eq!(outbox.len(), 1, "nothing more to tell");
        assert!(work.cancel.is_cancelled() && work.is_cancel_asked());
    }
}

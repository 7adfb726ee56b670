//! A backup run: its VMs, some at a time, each reported as soon as it is in the repository (spec control-api 2.10, 3).

use std::time::{Duration, Instant};

use backup::{
    BackupContext, BackupOptions, Cancel, ConsistencyPolicy, HostState, Point, VmReport, WarningCode, list_points,
    settle_vm,
};
use bucket::Location;
use control_api::Object;
use control_api::id::Id;
use control_api::progress::{UpdateCheckpoint, UpdateRun, VmResult};
use control_api::run::{Run, RunVm};
use control_api::words::RunStatus;
use hyperv::Vm;
use kopia_repo::Repository;
use serde_json::{Value, json};

use super::agent::Managed;
use super::results;
use super::store::Store;
use super::work::{Work, put};
use crate::batch;
use crate::context::PROGRAM;
use crate::failure::{Attempt as _, Code, Failure};
use crate::host::OpenHost;
use crate::limits::Throttles;
use crate::restores;

/// VMs of a run at a time, unless the job says otherwise (4.9).
const VMS_AT_ONCE: usize = 2;
/// Words of the server that ask for a full read, whatever the repository would allow (2.2 rule 4).
const FULL: [&str; 4] = ["forced", "rct_disabled", "base_point_missing", "no_tracking_state"];

/// Does a run, and says how it ended; a run that is only interrupted by the end of this process says nothing, and goes
/// on with the next start.
pub fn perform(managed: &Managed<'_>, run: &Run, work: &Work) {
    let ended = work.while_reported(&managed.client, &managed.outbox, || perform_all(managed, run, work));
    ended.tell(managed, work);
}

/// How a run ended.
struct Ended {
    status: RunStatus,
    failed: Vec<VmResult>,
    summary: Option<String>,
    error_code: Option<&'static str>,
    counts: Counts,
    is_interrupted: bool,
}

#[derive(Default)]
struct Counts {
    good: Vec<String>,
    warned: Vec<String>,
    bad: Vec<String>,
}

/// What came of one VM.
enum Outcome {
    Stored { has_defects: bool },
    Failed(Box<VmResult>, Code),
    Interrupted,
}

fn perform_all(managed: &Managed<'_>, run: &Run, work: &Work) -> Ended {
    let engine = run.engine.word();
    work.tell("start", "info", "BACKUP_STARTING", json!({ "engine": engine, "attempt": run.attempt }));
    let mut todo: Vec<&RunVm> = Vec::new();
    let mut counts = Counts::default();
    for vm in &run.hyperv_vms {
        if vm.committed {
            work.set_state(vm.vm_id, "committed");
            counts.good.push(vm.vm_name.clone());
        } else {
            todo.push(vm);
        }
    }
    if run.hyperv_vms.is_empty() {
        let why = "the job covers no virtual machine of this host";
        work.tell("error", "error", "HYPERV_NO_VMS", json!({ "error": why }));
        return Ended::failed(Some(why.to_owned()), Some("VM_NOT_FOUND"));
    }
    let prepared = match Prepared::new(managed, run, &work.cancel) {
        Ok(prepared) => prepared,
        Err(failure) if work.cancel.is_cancelled() => {
            tracing::info!(%failure, "a run ended before its first VM");
            return Ended { is_interrupted: true, ..Ended::of(counts, Vec::new()) };
        }
        Err(failure) => {
            let failed: Vec<VmResult> = todo.iter().map(|vm| results::failed(vm, &failure, None)).collect();
            counts.bad.extend(todo.iter().map(|vm| vm.vm_name.clone()));
            todo.iter().for_each(|vm| work.set_state(vm.vm_id, "failed"));
            return Ended {
                summary: Some(failure.to_string()),
                error_code: Some(results::error_code(failure.code())),
                ..Ended::of(counts, failed)
            };
        }
    };
    let count = run.hyperv_vms.len();
    let at_once = number(run.hyperv_config.as_ref(), "max_parallel_vms").unwrap_or(VMS_AT_ONCE).clamp(1, 16);
    let numbered: Vec<(usize, &RunVm)> = todo.iter().copied().enumerate().collect();
    let outcomes = batch::in_parallel(&numbered, at_once, |(at, vm)| {
        if work.cancel.is_cancelled() {
            work.set_state(vm.vm_id, "cancelled");
            return Outcome::Interrupted;
        }
        let params = json!({ "vm_name": vm.vm_name, "vm_id": vm.vm_id, "index": at + 1, "count": count });
        work.tell("info", "info", "HYPERV_VM_STARTING", params);
        let begun = Instant::now();
        prepared.back_up(managed, run, vm, work, begun)
    });
    let mut failed = Vec::new();
    let mut codes = Vec::new();
    let mut is_interrupted = false;
    for (vm, outcome) in todo.iter().zip(outcomes) {
        match outcome {
            Outcome::Stored { has_defects } => {
                if has_defects {
                    counts.warned.push(vm.vm_name.clone());
                }
                counts.good.push(vm.vm_name.clone());
            }
            Outcome::Failed(result, code) => {
                counts.bad.push(vm.vm_name.clone());
                failed.push(*result);
                codes.push(code);
            }
            Outcome::Interrupted => is_interrupted = true,
        }
    }
    prepared.write_counts();
    let summary = failed.iter().filter_map(|result| result.error.clone()).collect::<Vec<_>>().join("; ");
    Ended {
        is_interrupted,
        summary: (!summary.is_empty()).then_some(summary),
        error_code: codes
            .first()
            .filter(|first| codes.iter().all(|code| code == *first))
            .map(|code| results::error_code(*code)),
        ..Ended::of(counts, failed)
    }
}

impl Ended {
    fn failed(summary: Option<String>, error_code: Option<&'static str>) -> Self {
        Self { status: RunStatus::Failed, summary, error_code, ..Self::of(Counts::default(), Vec::new()) }
    }

    /// The words of 3.1.
    fn of(counts: Counts, failed: Vec<VmResult>) -> Self {
        let status = match (counts.good.len(), counts.bad.len()) {
            (0, _) => RunStatus::Failed,
            (_, 0) if counts.warned.is_empty() => RunStatus::Success,
            (_, 0) => RunStatus::Warning,
            _ => RunStatus::PartialSuccess,
        };
        Self { status, failed, summary: None, error_code: None, counts, is_interrupted: false }
    }

    fn tell(self, managed: &Managed<'_>, work: &Work) {
        if work.is_lost() {
            return;
        }
        let is_cancelled = work.is_cancel_asked() && self.is_interrupted;
        if self.is_interrupted && !is_cancelled {
            // This process ends, or the server has ended the run: there is nothing to say of what was not done.
            return work.flush_events(&managed.outbox);
        }
        let Counts { good, warned, bad } = &self.counts;
        let status = if is_cancelled { RunStatus::Cancelled } else { self.status };
        work.tell(
            "summary",
            if bad.is_empty() { "info" } else { "error" },
            "HYPERV_BACKUP_COMPLETE",
            json!({
                "status": status.word(),
                "success_count": good.len(),
                "fail_count": bad.len(),
                "warning_count": warned.len(),
                "total_count": good.len() + bad.len(),
                "success_vms": good,
                "failed_vms": bad,
                "warning_vms": warned,
            }),
        );
        work.flush_events(&managed.outbox);
        let update = UpdateRun {
            status: Some(status),
            finished_at: Some(results::instant(jiff::Timestamp::now())),
            error_summary: self.summary.map(|text| text.chars().take(700).collect()),
            error_code: self.error_code.map(str::to_owned),
            hyperv_results: self.failed,
            cancel_ack: is_cancelled,
            ..work.report()
        };
        put(&managed.outbox, work.record("agent_update_run.php", false, json!(update)));
        managed.wake_outbox();
    }
}

/// Everything that the VMs of a run share.
struct Prepared {
    host: OpenHost,
    vms: Vec<Vm>,
    state: HostState,
    location: Location,
    repo: std::sync::Arc<Repository>,
    throttles: Throttles,
    run_id: String,
}

impl Prepared {
    fn new(managed: &Managed<'_>, run: &Run, cancel: &Cancel) -> Result<Self, Failure> {
        let host = managed.context.host()?;
        let state = host.state()?;
        // One of the VMs may be half-way through being replaced; the others are none the worse for it.
        match restores::put_in_order(&host, &state, &backup::Silent) {
            Ok(done) => done.iter().for_each(|text| managed.settled(text)),
            Err(failure) => managed.problem(&failure.to_string()),
        }
        let vms = host.host.list_vms().attempt("list the virtual machines", &*host.name)?;
        let throttles = managed.throttles_of(run);
        let store = Store::of_run(run, &managed.folder)?;
        store.wait_until_reached(cancel)?;
        let repo = store.open_or_make(host.hooks.as_ref(), &throttles)?;
        // The same for every attempt: by it a point is found that an earlier attempt stored.
        let run_id = run.run_uuid.clone().unwrap_or_else(|| format!("run-{}", run.run_id));
        Ok(Self { host, vms, state, location: store.location, repo, throttles, run_id })
    }

    fn back_up(&self, managed: &Managed<'_>, run: &Run, wanted: &RunVm, work: &Work, begun: Instant) -> Outcome {
        let observer = work.observer(wanted.vm_id);
        let options = self.options(run, wanted);
        let context = BackupContext {
            host: &self.host.host,
            host_name: &self.host.name,
            repo: &self.repo,
            state: &self.state,
            options: &options,
            observer: &observer,
            cancel: &work.cancel,
        };
        let result = self.find(wanted).and_then(|vm| {
            if run.resume
                && let Some(point) = self.point_of_former_attempt(&context, vm)?
            {
                return Ok(Stored::Before(Box::new(point)));
            }
            let result = batch::back_up(&context, &self.location, vm, &self.run_id);
            result.result.map(|report| Stored::Now(Box::new(report)))
        });
        match result.and_then(|stored| stored.told(wanted, &self.repo, begun.elapsed())) {
            Ok((result, uploaded, has_defects)) => {
                work.add_uploaded(uploaded);
                self.tell_stored(managed, work, wanted, result);
                Outcome::Stored { has_defects }
            }
            Err(failure) if failure.code() == Code::Interrupted && work.cancel.is_cancelled() => {
                work.set_state(wanted.vm_id, "cancelled");
                Outcome::Interrupted
            }
            Err(failure) => {
                work.set_state(wanted.vm_id, "failed");
                let code = results::error_code(failure.code());
                let params = json!({ "vm_name": wanted.vm_name, "error": failure.to_string(), "error_code": code });
                work.tell("error", "error", "HYPERV_VM_FAILED", params);
                Outcome::Failed(Box::new(results::failed(wanted, &failure, Some(begun.elapsed()))), failure.code())
            }
        }
    }

    fn find(&self, wanted: &RunVm) -> Result<&Vm, Failure> {
        let guid = wanted.vm_guid.trim_matches(['{', '}']);
        self.vms.iter().find(|vm| vm.id.as_str().eq_ignore_ascii_case(guid)).ok_or_else(|| {
            let on = format!("{} ({guid}) on {}", wanted.vm_name, self.host.name);
            Failure::new(format!("back up {}", wanted.vm_name), on, Code::NotFound, "the VM is not on this host")
                .with_steps(&["if it moved, the job takes it on its new host", "take it out of the job"])
        })
    }

    /// The point that an earlier attempt of this run made, and did not live to tell of (3.6).
    fn point_of_former_attempt(&self, context: &BackupContext<'_>, vm: &Vm) -> Result<Option<Point>, Failure> {
        let what = "put in order what the former attempt left";
        settle_vm(context, vm).attempt(what, &*vm.name)?;
        self.repo.refresh().attempt(what, &*vm.name)?;
        let points = list_points(&self.repo, Some(vm.id.as_str())).attempt(what, &*vm.name)?;
        Ok(points.into_iter().rev().find(|point| point.tag("run-id") == Some(&self.run_id)))
    }

    fn options(&self, run: &Run, vm: &RunVm) -> BackupOptions {
        let of_vm = |key: &str| vm.effective_config.get(key).and_then(Value::as_str);
        let consistency = match of_vm("consistency_level") {
            Some("crash") => ConsistencyPolicy::Crash,
            Some("application_required") => ConsistencyPolicy::RequireApplication,
            _ => ConsistencyPolicy::PreferApplication,
        };
        let is_untracked = vm.effective_config.get("enable_rct") == Some(&Value::Bool(false));
        let asked = vm.full_reason.as_deref().is_some_and(|reason| FULL.contains(&reason));
        BackupOptions {
            full: run.force_full || is_untracked || asked,
            consistency,
            reads: self.throttles.reads(),
            resources: self.throttles.resources.clone(),
            ..BackupOptions::new(PROGRAM)
        }
    }

    /// Durable before anything else is said: the commit of one VM does not wait for the others (2.10).
    fn tell_stored(&self, managed: &Managed<'_>, work: &Work, vm: &RunVm, mut result: VmResult) {
        if vm.effective_config.get("exclude_disks").and_then(Value::as_array).is_some_and(|list| !list.is_empty()) {
            result.warnings.push("disks cannot be left out by this agent: all of them were backed up".into());
        }
        for (code, text) in [("HYPERV_CONSISTENCY_DEGRADED", &result.consistency_reason)] {
            if let Some(reason) = text
                && result.warning_code.is_some()
            {
                let actual = result.consistency_level.map(|level| level.word());
                let params = json!({ "vm_name": vm.vm_name, "requested": result.consistency_requested, "actual": actual, "reason": reason });
                work.tell("warning", "warn", code, params);
            }
        }
        work.tell(
            "info",
            "info",
            "HYPERV_VM_COMPLETE",
            json!({
                "vm_name": vm.vm_name,
                "backup_type": result.backup_type.map(|kind| kind.word()),
                "consistency": result.consistency_level.map(|level| level.word()),
                "changed_bytes": result.changed_bytes,
                "total_bytes": result.total_bytes,
                "warnings": result.warnings,
            }),
        );
        let commit = UpdateCheckpoint {
            run_id: Id::from(work.run_id),
            phase: Some("commit".to_owned()),
            claim_id: None,
            result,
        };
        if !work.is_lost() {
            put(&managed.outbox, work.record("agent_hyperv_update_checkpoint.php", false, json!(commit)));
            managed.wake_outbox();
        }
        work.set_state(vm.vm_id, "committed");
    }

    fn write_counts(&self) {
        if let Some(hooks) = &self.host.hooks
            && let Err(failure) = hooks.write_counts()
        {
            tracing::warn!(%failure, "the numbers of calls cannot be written");
        }
    }
}

/// A VM's point.
enum Stored {
    Now(Box<VmReport>),
    Before(Box<Point>),
}

impl Stored {
    /// As it is told, with the bytes that were sent, and whether it is worth less than it could be.
    fn told(&self, vm: &RunVm, repo: &Repository, elapsed: Duration) -> Result<(VmResult, u64, bool), Failure> {
        match self {
            Self::Now(report) => {
                let warnings = &report.warnings;
                let result = results::committed(vm, &report.point, &report.description, warnings, Some(elapsed));
                let has_defects = warnings.iter().any(|warning: &backup::Warning| WarningCode::is_defect(warning.code));
                Ok((result, report.stats.uploaded_bytes, has_defects))
            }
            Self::Before(point) => {
                let description = point.describe(repo).attempt("read the former attempt's point", &*vm.vm_name)?;
                Ok((results::committed(vm, point, &description, &[], None), 0, false))
            }
        }
    }
}

fn number(config: Option<&Object>, key: &str) -> Option<usize> {
    usize::try_from(config?.get(key)?.as_u64()?).ok()
}

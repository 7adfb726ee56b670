//! VMs backed up, some at a time, for the command line and for the running agent.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use backup::{BackupContext, BackupError, PointDisk, ReadMode, VmReport, back_up_vm};
use bucket::Location;
use hyperv::Vm;
use serde_json::{Map, Value, json};

use crate::failure::{Code, Failure};

/// Backs all of them up, so many at a time, in their order. `each` is told of every one as it ends, with how many have
/// ended, one at a time; the results are in the order of the VMs.
pub fn back_up_all<'v>(
    context: &BackupContext<'_>,
    location: &Location,
    vms: &'v [Vm],
    run_id: &str,
    at_once: usize,
    each: impl Fn(usize, VmResult<'v>) -> VmResult<'v> + Sync,
) -> Vec<VmResult<'v>> {
    let ended = Mutex::new(0);
    in_parallel(vms, at_once, |vm| {
        let result = back_up(context, location, vm, run_id);
        // Held while `each` prints, so that lines do not mix.
        let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
        *ended += 1;
        each(*ended, result)
    })
}

/// Works on all items, so many at a time, in their order; the results are in that order, too.
pub fn in_parallel<'v, T: Sync, R: Send>(items: &'v [T], at_once: usize, work: impl Fn(&'v T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, R)>> = Mutex::default();
    let work_off = || loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(item) = items.get(number) else { return };
        let result = work(item);
        done.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
    };
    // One at a time needs no threads of its own.
    match at_once.min(items.len()) {
        0 | 1 => work_off(),
        at_once => std::thread::scope(|scope| (0..at_once).for_each(|_| drop(scope.spawn(work_off)))),
    }
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Backs one up; once the run is cancelled, only says so. `location` is that of the repository, for messages.
pub fn back_up<'v>(context: &BackupContext<'_>, location: &Location, vm: &'v Vm, run_id: &str) -> VmResult<'v> {
    let begun = Instant::now();
    let result =
        if context.cancel.is_cancelled() { Err(BackupError::Cancelled) } else { back_up_vm(context, vm, run_id) };
    let result = result.map_err(|error| {
        let on = format!("{} ({}) on {}, repository {location}", vm.name, vm.id, context.host_name);
        Failure::of(format!("back up {}", vm.name), on, &error)
    });
    VmResult { vm, result, elapsed: begun.elapsed() }
}

/// What came of one VM.
pub struct VmResult<'a> {
    /// The VM.
    pub vm: &'a Vm,
    /// Its point, or why there is none.
    pub result: Result<VmReport, Failure>,
    /// How long it took.
    pub elapsed: Duration,
}

impl VmResult<'_> {
    /// The same with the failure, if there is one, put differently.
    pub fn explained(self, explain: impl FnOnce(Failure) -> Failure) -> Self {
        Self { result: self.result.map_err(explain), ..self }
    }

    /// Whether there is a point that is worth less than it could be.
    pub fn has_defects(&self) -> bool {
        self.result.as_ref().is_ok_and(|report| report.warnings.iter().any(|warning| warning.code.is_defect()))
    }

    /// As scripts see it.
    pub fn to_json(&self) -> Value {
        let elapsed_ms = millis(self.elapsed);
        let mut object = json!({
            "vm_id": self.vm.id.to_string(),
            "vm_name": self.vm.name,
            "status": match &self.result {
                Ok(_) if self.has_defects() => "warning",
                Ok(_) => "succeeded",
                Err(failure) if failure.code() == Code::Interrupted => "cancelled",
                Err(_) => "failed",
            },
            "elapsed_ms": elapsed_ms,
            "peak_rss_bytes": peak_rss_bytes(),
            "error": Value::Null,
        });
        let report = match &self.result {
            Ok(report) => report,
            Err(failure) => {
                object["error"] = failure.to_json();
                return object;
            }
        };
        let (stats, description) = (&report.stats, &report.description);
        let disks: Vec<Value> = description.disks.iter().map(|disk| Value::Object(disk_json(disk))).collect();
        let warnings: Vec<Value> = report
            .warnings
            .iter()
            .map(|warning| json!({ "code": warning.code.as_str(), "text": warning.text, "defect": warning.code.is_defect() }))
            .collect();
        let more = json!({
            "point_id": report.point.id,
            "snapshot_id": report.point.snapshot.id,
            "consistency": description.consistency,
            "consistency_reason": description.consistency_reason,
            "disks": disks,
            "read_bytes": stats.read_bytes,
            "audit_bytes": stats.audit_bytes,
            "changed_bytes": stats.changed_bytes,
            "data_bytes": stats.data_bytes,
            "metadata_bytes": stats.metadata_bytes,
            "uploaded_bytes": stats.uploaded_bytes,
            "entries": stats.entries,
            "entries_checked": stats.entries_checked,
            "checkpoint_ms": millis(report.host.checkpoint),
            "avhdx_peak_bytes": report.host.avhdx_peak_bytes,
            "merge_ms": report.host.merge.map(millis),
            "added_read_latency_us": u64::try_from(report.host.reads.added_latency().as_micros()).unwrap_or(u64::MAX),
            "reads_held_back_ms": report.host.reads.held_back_us / 1000,
            "warnings": warnings,
        });
        if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
            object.extend(more);
        }
        object
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How a disk was read, as scripts see it.
pub fn disk_json(disk: &PointDisk) -> Map<String, Value> {
    let (mode, reason, base) = match &disk.read {
        ReadMode::Full { reason } => ("full", json!(reason), Value::Null),
        ReadMode::Incremental { base } => ("incremental", Value::Null, json!(base)),
    };
    let fields = [
        ("number", json!(disk.number)),
        ("virtual_disk_id", json!(disk.virtual_disk_id)),
        ("slot", json!(disk.slot)),
        ("size_bytes", json!(disk.size_bytes)),
        ("mode", json!(mode)),
        ("reason", reason),
        ("base_point_id", base),
        ("read_bytes", json!(disk.read_bytes)),
        ("audit_bytes", json!(disk.audit_bytes)),
        ("audit_text", json!(disk.audited.map(|audited| audited.in_words()))),
        ("changed_bytes", json!(disk.changed_bytes)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The exit code of a run of which something succeeded.
pub fn exit_code(results: &[VmResult<'_>], warnings_ok: bool) -> u8 {
    if results.iter().any(|result| result.result.is_err()) {
        3
    } else if results.iter().any(VmResult::has_defects) && !warnings_ok {
        4
    } else {
        0
    }
}

/// Highest resident memory of this process so far, where the system tells.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

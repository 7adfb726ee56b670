//! `backup`: VMs one after another; one that fails does not stop the others.

use std::time::{Duration, Instant};

use backup::{
    BackupContext, BackupError, BackupOptions, ConsistencyPolicy, ReadMode, VmReport, back_up_vm, new_run_id,
};
use hyperv::Vm;
use serde_json::{Value, json};

use crate::cli::{BackupArgs, ConsistencyArg};
use crate::context::{Context, PROGRAM};
use crate::failure::{Attempt as _, Code, Failure};
use crate::host::OpenHost;
use crate::interrupt::Interrupt;
use crate::outcome::Outcome;
use crate::output::{json_line, line, note};
use crate::progress::Progress;
use crate::units::{duration, rate, size, visible};

/// Segments that a repository can have.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 256 << 10..=4 << 20;

/// `backup`
pub fn run(context: &Context, arguments: &BackupArgs) -> Result<Outcome, Failure> {
    let options = options(arguments)?;
    let host = context.host()?;
    let outcome = run_on(context, arguments, &options, &host);
    if let Some(hooks) = &host.hooks {
        hooks.write_counts()?;
    }
    outcome
}

fn run_on(
    context: &Context,
    arguments: &BackupArgs,
    options: &BackupOptions,
    host: &OpenHost,
) -> Result<Outcome, Failure> {
    let location = context.location(None)?;
    let vms = find_vms(host, arguments)?;
    let repo = context.open_repository(&location, host.hooks.as_ref())?;
    let state = host.state()?;
    let run_id = new_run_id();
    let interrupt = Interrupt::watch();
    let progress = Progress::start("backup", &context.global);
    let backup = BackupContext {
        host: &host.host,
        host_name: &host.name,
        repo: &repo,
        state: &state,
        options,
        observer: &progress,
        cancel: interrupt.cancel(),
    };
    let begun = Instant::now();
    let mut results = Vec::with_capacity(vms.len());
    for (number, vm) in (1..).zip(&vms) {
        if vms.len() > 1 {
            progress.part(format!("VM {number} of {}", vms.len()));
        }
        let vm_begun = Instant::now();
        let result = if interrupt.is_asked() { Err(BackupError::Cancelled) } else { back_up_vm(&backup, vm, &run_id) };
        let result = result.map_err(|error| {
            let on = format!("{} ({}) on {}, repository {location}", vm.name, vm.id, host.name);
            interrupt.explain(Failure::of(format!("back up {}", vm.name), on, &error))
        });
        let result = VmResult { vm, result, elapsed: vm_begun.elapsed() };
        progress.pause();
        result.show(context);
        results.push(result);
    }
    progress.finish();
    conclude(context, arguments, &run_id, begun.elapsed(), results)
}

fn options(arguments: &BackupArgs) -> Result<BackupOptions, Failure> {
    let mut options = BackupOptions::new(PROGRAM);
    options.full = arguments.full;
    options.consistency = match arguments.consistency {
        ConsistencyArg::Application => ConsistencyPolicy::PreferApplication,
        ConsistencyArg::ApplicationRequired => ConsistencyPolicy::RequireApplication,
        ConsistencyArg::Crash => ConsistencyPolicy::Crash,
    };
    if let Some(bytes) = arguments.segment_size {
        if !bytes.is_power_of_two() || !SEGMENT_BYTES.contains(&bytes) {
            let why = format!("a segment of {} is not a power of two from 256 KiB to 4 MiB", size(bytes));
            return Err(Failure::new("back up", "", Code::Usage, why).with_steps(&["correct --segment-size"]));
        }
        options.segment_bytes = Some(u32::try_from(bytes).expect("checked against the range"));
    }
    Ok(options)
}

/// All of them, before anything is done to the first.
fn find_vms(host: &OpenHost, arguments: &BackupArgs) -> Result<Vec<Vm>, Failure> {
    if arguments.all {
        let mut vms = host.host.list_vms().attempt("list the virtual machines", &*host.name)?;
        vms.sort_by(|a, b| (a.name.to_lowercase(), a.id.as_str()).cmp(&(b.name.to_lowercase(), b.id.as_str())));
        if vms.is_empty() {
            let why = "the host has no virtual machines";
            return Err(Failure::new("back up all virtual machines", &*host.name, Code::NotFound, why)
                .with_steps(&["check --host", "look at `vm list`"]));
        }
        return Ok(vms);
    }
    let mut vms: Vec<Vm> = Vec::with_capacity(arguments.vms.len());
    for selector in &arguments.vms {
        let vm = host.host.find_vm(selector).attempt(format!("back up {selector}"), &*host.name)?;
        if !vms.iter().any(|known| known.id == vm.id) {
            vms.push(vm);
        }
    }
    Ok(vms)
}

/// What came of one VM.
struct VmResult<'a> {
    vm: &'a Vm,
    result: Result<VmReport, Failure>,
    elapsed: Duration,
}

impl VmResult<'_> {
    fn has_defects(&self) -> bool {
        self.result.as_ref().is_ok_and(|report| report.warnings.iter().any(|warning| warning.code.is_defect()))
    }

    /// Told as soon as it is known.
    fn show(&self, context: &Context) {
        if context.global.json {
            let mut object = self.to_json();
            object["type"] = "vm".into();
            return json_line(&object);
        }
        match &self.result {
            Ok(report) if context.global.quiet => line(&report.point.id),
            Ok(report) => self.show_report(report),
            Err(failure) => failure.print(context.global.verbose > 0),
        }
    }

    fn show_report(&self, report: &VmReport) {
        let stats = &report.stats;
        let merged = match report.warnings.iter().any(|warning| warning.code.as_str() == "MERGE_PENDING") {
            true => "merge pending",
            false => "merged",
        };
        line(&visible(&format!(
            "{}  {}   read {}   changed {}   stored {}   {}   {merged}   {}   {}",
            self.vm.name,
            read_text(report),
            size(stats.read_bytes + stats.audit_bytes),
            size(stats.changed_bytes),
            size(stats.data_bytes + stats.metadata_bytes),
            report.description.consistency,
            duration(self.elapsed),
            rate(stats.read_bytes + stats.audit_bytes, self.elapsed),
        )));
        line(&visible(&format!("point {}  {}@latest   checked: structure", short(&report.point.id), self.vm.name)));
        for warning in &report.warnings {
            let kind = if warning.code.is_defect() { "warning" } else { "note" };
            note(&format!("{kind}: {}: {} ({})", self.vm.name, warning.text, warning.code.as_str()));
        }
    }

    fn to_json(&self) -> Value {
        let elapsed_ms = u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX);
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
        let disks: Vec<Value> = description
            .disks
            .iter()
            .map(|disk| {
                let (mode, reason, base) = match &disk.read {
                    ReadMode::Full { reason } => ("full", json!(reason), Value::Null),
                    ReadMode::Incremental { base } => ("incremental", Value::Null, json!(base)),
                };
                json!({
                    "number": disk.number,
                    "virtual_disk_id": disk.virtual_disk_id,
                    "slot": disk.slot,
                    "size_bytes": disk.size_bytes,
                    "mode": mode,
                    "reason": reason,
                    "base_point_id": base,
                    "read_bytes": disk.read_bytes,
                    "audit_bytes": disk.audit_bytes,
                    "changed_bytes": disk.changed_bytes,
                })
            })
            .collect();
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
            "warnings": warnings,
        });
        if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
            object.extend(more);
        }
        object
    }
}

/// The exit code of the run, and with `--json` its last object.
fn conclude(
    context: &Context,
    arguments: &BackupArgs,
    run_id: &str,
    elapsed: Duration,
    results: Vec<VmResult<'_>>,
) -> Result<Outcome, Failure> {
    let succeeded = results.iter().filter(|result| result.result.is_ok()).count();
    let cancelled = results
        .iter()
        .filter_map(|result| result.result.as_ref().err())
        .any(|failure| matches!(failure.code(), Code::Interrupted | Code::Terminated));
    if succeeded == 0 || cancelled {
        return Err(joint_failure(results, !context.global.json));
    }
    let exit = if succeeded < results.len() {
        3
    } else if results.iter().any(VmResult::has_defects) && !arguments.warnings_ok {
        4
    } else {
        0
    };
    if context.global.json {
        json_line(&json!({
            "type": "result",
            "run_id": run_id,
            "exit": exit,
            "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "peak_rss_bytes": peak_rss_bytes(),
            "vms": results.iter().map(VmResult::to_json).collect::<Vec<_>>(),
        }));
    } else if results.len() > 1 && !context.global.quiet {
        note(&format!("{succeeded} of {} VMs backed up in {}", results.len(), duration(elapsed)));
    }
    Ok(Outcome { exit })
}

/// The failure of a run without any result: that of the VMs, when they agree. What was printed already is not
/// printed again.
fn joint_failure(results: Vec<VmResult<'_>>, printed: bool) -> Failure {
    let mut failures: Vec<Failure> = results.into_iter().filter_map(|result| result.result.err()).collect();
    let count = failures.len();
    if let Some(at) = failures.iter().position(|failure| matches!(failure.code(), Code::Interrupted | Code::Terminated))
    {
        return failures.swap_remove(at).printed(printed);
    }
    let first = failures.swap_remove(0);
    if failures.iter().all(|failure| failure.code() == first.code()) {
        return first.printed(printed);
    }
    Failure::new("back up", format!("{count} VMs"), Code::Failed, "no VM could be backed up, for different reasons")
        .with_steps(&["look at the errors above"])
}

fn read_text(report: &VmReport) -> String {
    let disks = &report.description.disks;
    let text = |read: &ReadMode| match read {
        ReadMode::Full { reason } => format!("full ({reason})"),
        ReadMode::Incremental { .. } => "incremental".to_owned(),
    };
    let mut texts: Vec<String> = disks.iter().map(|disk| text(&disk.read)).collect();
    texts.dedup();
    texts.join(" + ")
}

/// As people type it; unique in any repository of a reasonable size.
pub fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// Highest resident memory of this process so far, where the system tells.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

//! `backup`: several VMs at a time; one that fails does not stop the others.

use std::time::{Duration, Instant};

use backup::{BackupContext, BackupOptions, ReadMode, VmReport, new_run_id};
use hyperv::Vm;
use serde_json::json;

use crate::batch::{VmResult, back_up_all, exit_code, peak_rss_bytes};
use crate::cli::BackupArgs;
use crate::completion;
use crate::context::{Context, PROGRAM};
use crate::failure::{Attempt as _, Code, Failure};
use crate::host::OpenHost;
use crate::interrupt::Interrupt;
use crate::limits::Throttles;
use crate::outcome::Outcome;
use crate::output::{json_line, line, note};
use crate::progress::Progress;
use crate::restores;
use crate::service::matches;
use crate::units::{duration, rate, size, visible};

/// Segments that a repository can have.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 256 << 10..=4 << 20;

/// `backup`
pub fn run(context: &Context, arguments: &BackupArgs) -> Result<Outcome, Failure> {
    let throttles = Throttles::new(&context.limits());
    let options =
        BackupOptions { reads: throttles.reads(), resources: throttles.resources.clone(), ..options(arguments)? };
    let host = context.host()?;
    let outcome = run_on(context, arguments, &options, &throttles, &host);
    if let Some(hooks) = &host.hooks {
        hooks.write_counts()?;
    }
    outcome
}

fn run_on(
    context: &Context,
    arguments: &BackupArgs,
    options: &BackupOptions,
    throttles: &Throttles,
    host: &OpenHost,
) -> Result<Outcome, Failure> {
    let location = context.location(None)?;
    let state = host.state()?;
    // Before the VMs are looked for: one of them may be half-way through being replaced.
    match restores::put_in_order(host, &state, &backup::Silent) {
        Ok(done) => done.iter().for_each(|text| note(&format!("note: {text}"))),
        // Other VMs are none the worse for it.
        Err(failure) => note(&format!("warning: {failure}")),
    }
    let vms = find_vms(host, arguments)?;
    let repo = context.repository_for_backups(&location, host.hooks.as_ref(), throttles)?;
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
    let at_once = arguments.parallel.unwrap_or_else(|| context.limits().vms_at_once());
    let results = back_up_all(&backup, &location, &vms, &run_id, at_once, |number, result| {
        let result = result.explained(|failure| interrupt.explain(failure));
        progress.pause();
        if vms.len() > 1 {
            progress.part(format!("{number} of {} VMs", vms.len()));
        }
        show(&result, context);
        result
    });
    progress.finish();
    conclude(context, arguments, &run_id, begun.elapsed(), results)
}

fn options(arguments: &BackupArgs) -> Result<BackupOptions, Failure> {
    let mut options = BackupOptions::new(PROGRAM);
    options.full = arguments.full;
    options.audit_everything = arguments.audit_all;
    options.consistency = arguments.consistency.policy();
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
        completion::remember_vms(vms.iter().map(|vm| &*vm.name));
        let left_out = |vm: &Vm| {
            arguments
                .except
                .iter()
                .any(|pattern| matches(pattern, &vm.name) || pattern.eq_ignore_ascii_case(vm.id.as_str()))
        };
        vms.retain(|vm| !left_out(vm));
        vms.sort_by(|a, b| (a.name.to_lowercase(), a.id.as_str()).cmp(&(b.name.to_lowercase(), b.id.as_str())));
        if vms.is_empty() {
            let why = "the host has no virtual machines, or all of them are left out";
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

/// Told as soon as it is known.
fn show(result: &VmResult<'_>, context: &Context) {
    if context.global.json {
        let mut object = result.to_json();
        object["type"] = "vm".into();
        return json_line(&object);
    }
    match &result.result {
        Ok(report) if context.global.quiet => line(&report.point.id),
        Ok(report) => show_report(result.vm, result.elapsed, report),
        Err(failure) => failure.print(context.global.verbose > 0),
    }
}

fn show_report(vm: &Vm, elapsed: Duration, report: &VmReport) {
    let stats = &report.stats;
    let merged = match report.host.merge {
        Some(time) => format!("merged {}", duration(time)),
        None => "merge pending".to_owned(),
    };
    line(&visible(&format!(
        "{}  {}   read {}   changed {}   stored {}   {}   {merged}   {}   {}",
        vm.name,
        read_text(report),
        size(stats.read_bytes + stats.audit_bytes),
        size(stats.changed_bytes),
        size(stats.data_bytes + stats.metadata_bytes),
        report.description.consistency,
        duration(elapsed),
        rate(stats.read_bytes + stats.audit_bytes, elapsed),
    )));
    line(&visible(&format!("point {}  {}@latest   checked: structure", short(&report.point.id), vm.name)));
    for warning in &report.warnings {
        let kind = if warning.code.is_defect() { "warning" } else { "note" };
        note(&format!("{kind}: {}: {} ({})", vm.name, warning.text, warning.code.as_str()));
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
    let exit = exit_code(&results, arguments.warnings_ok);
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

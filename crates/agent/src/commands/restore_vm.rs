//! `restore vm`: a plan, questions, the deed, and what differs afterwards.

mod in_place;
mod show;

use std::time::{Duration, Instant};

use backup::{RestoreContext, RestorePlan, RestoreRequest, RestoredVm, plan_restore, select_point};
use hyperv::{Severity, Why};
use serde_json::{Value, json};

use self::show::{difference_json, obstacle_json, plan_json, show_differences, show_obstacles, show_plan};
use super::backup::short;
use crate::cli::RestoreVmArgs;
use crate::confirm;
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::host::OpenHost;
use crate::interrupt::Interrupt;
use crate::limits::Throttles;
use crate::outcome::Outcome;
use crate::output::{json_document, json_line, line, note};
use crate::progress::Progress;
use crate::restores;
use crate::units::{duration, rate, size, visible};

/// `restore vm`
pub fn run(context: &Context, arguments: &RestoreVmArgs) -> Result<Outcome, Failure> {
    let host = context.host()?;
    let outcome = run_on(context, arguments, &host);
    if let Some(hooks) = &host.hooks {
        hooks.write_counts()?;
    }
    outcome
}

fn run_on(context: &Context, arguments: &RestoreVmArgs, host: &OpenHost) -> Result<Outcome, Failure> {
    let location = context.location(None)?;
    let repo = context.repository_for_backups(&location, host.hooks.as_ref(), &Throttles::new(&context.limits()))?;
    let state = host.state()?;
    let on = repo.display_name();
    let what = format!("restore {}", arguments.point);
    let point = select_point(&repo, &arguments.point).attempt(&*what, &*on)?;
    let interrupt = Interrupt::watch();
    let progress = Progress::start("restore", &context.global);
    let restore = RestoreContext {
        host: &host.host,
        repo: &repo,
        state: &state,
        observer: &progress,
        cancel: interrupt.cancel(),
    };
    if !arguments.dry_run {
        for text in restores::put_in_order(host, &state, &progress)? {
            note(&format!("note: {text}"));
        }
    }
    if arguments.in_place {
        return in_place::run(context, arguments, host, &restore, &point, &progress, &interrupt);
    }

    let on = format!("point {} in {on}, host {}", short(&point.id), host.name);
    let plan = plan_restore(&restore, &point, &request(arguments))
        .map_err(|error| interrupt.explain(Failure::of(&*what, &*on, &error)))?;
    progress.pause();
    if arguments.dry_run {
        progress.finish();
        return Ok(tell_plan(context, &plan, &host.name));
    }
    refuse_or_ask(context, arguments, &plan, &host.name)?;

    let begun = Instant::now();
    let restored = backup::restore_vm(&restore, &plan);
    progress.finish();
    let restored = restored.map_err(|error| interrupt.explain(Failure::of(&*what, &*on, &error)))?;
    Ok(conclude(context, arguments, host, &plan, &restored, begun.elapsed()))
}

fn request(arguments: &RestoreVmArgs) -> RestoreRequest {
    RestoreRequest {
        name: arguments.name.clone(),
        folder: arguments.folder.clone(),
        keep_id: arguments.same_id,
        replace: arguments.replace.then_some(arguments.keep_old_days),
        network: arguments.network.iter().cloned().collect(),
        disconnect: arguments.disconnect,
        disks: (!arguments.disk.is_empty()).then(|| arguments.disk.clone()),
        from_settings: arguments.from_settings,
        processors: arguments.processors,
        memory_mib: arguments.memory.map(|bytes| bytes >> 20),
        power_on: arguments.power_on,
    }
}

/// The answer of a dry run.
fn tell_plan(context: &Context, plan: &RestorePlan, host: &str) -> Outcome {
    let exit = if plan.is_blocked() { Code::Preflight.exit() } else { 0 };
    if context.global.json {
        json_document(&plan_json(plan, host, exit));
    } else {
        show_plan(plan, host, &line);
        show_obstacles(&plan.obstacles, &line);
    }
    Outcome { exit }
}

fn refuse_or_ask(context: &Context, arguments: &RestoreVmArgs, plan: &RestorePlan, host: &str) -> Result<(), Failure> {
    if context.global.json {
        json_line(&plan_json(plan, host, 0));
    } else if !context.global.quiet {
        show_plan(plan, host, &note);
        show_obstacles(&plan.obstacles, &note);
    }
    let what = format!("restore {}", arguments.point);
    refuse_blocked(&what, host, &plan.obstacles)?;
    ask_about_decisions(context, &what, host, &plan.obstacles)?;
    if let Some((vm, days)) = &plan.replaces {
        let loss = format!("VM {:?} is stopped and replaced; it and its disks are kept {days} days.", vm.name);
        confirm::name_typed(&context.global, arguments.confirm.as_deref(), &vm.name, &loss)?;
    }
    Ok(())
}

/// All of them are in the message, for a script that reads nothing else.
fn refuse_blocked(what: &str, host: &str, obstacles: &[backup::RestoreObstacle]) -> Result<(), Failure> {
    let blocking: Vec<&backup::RestoreObstacle> =
        obstacles.iter().filter(|one| one.severity == Severity::Block).collect();
    if blocking.is_empty() {
        return Ok(());
    }
    let why: Vec<String> = blocking.iter().map(|one| format!("{} {}: {}", one.code, one.on, one.why)).collect();
    let why = format!("{} must be solved; nothing was touched. {}", blocking.len(), why.join(" "));
    let mut steps: Vec<&str> = Vec::new();
    for option in blocking.iter().flat_map(|one| one.options.iter()) {
        if !steps.contains(option) {
            steps.push(option);
        }
    }
    steps.truncate(3);
    Err(Failure::new(what, host, Code::Preflight, why).with_steps(&steps))
}

fn ask_about_decisions(
    context: &Context,
    what: &str,
    host: &str,
    obstacles: &[backup::RestoreObstacle],
) -> Result<(), Failure> {
    let open: Vec<String> = obstacles
        .iter()
        .filter(|one| one.severity == Severity::Decide)
        .map(|one| format!("{} {}: {}", one.code, one.on, one.why))
        .collect();
    if open.is_empty() || confirm::agreed(&context.global, "Go on all the same?")? {
        return Ok(());
    }
    let why = format!("{} must be decided; nothing was touched. {}", open.len(), open.join(" "));
    Err(Failure::new(what, host, Code::Preflight, why)
        .with_steps(&["go on all the same: --yes", "look at the choices: --dry-run"]))
}

fn conclude(
    context: &Context,
    arguments: &RestoreVmArgs,
    host: &OpenHost,
    plan: &RestorePlan,
    restored: &RestoredVm,
    elapsed: Duration,
) -> Outcome {
    let unexplained = restored.differences.iter().any(|difference| difference.why == Why::Unexplained);
    let has_warnings = !restored.warnings.is_empty() || unexplained;
    let exit = if has_warnings && !arguments.warnings_ok { 4 } else { 0 };
    let written: u64 = restored.disks.iter().map(|(_, report)| report.written_bytes).sum();
    if context.global.json {
        json_line(&result_json(host, plan, restored, elapsed, exit));
        return Outcome { exit };
    }
    if context.global.quiet {
        line(restored.vm.id.as_str());
        return Outcome { exit };
    }
    line(&visible(&format!(
        "done     {} ({}) on {}   {} in {}   {}   every byte checked   {}",
        restored.vm.name,
        restored.vm.id,
        host.name,
        size(written),
        duration(elapsed),
        rate(written, elapsed),
        if restored.started { "started" } else { "off" },
    )));
    if let Some(kept) = &restored.kept {
        let until = context.time(kept.until);
        line(&visible(&format!(
            "kept     {} as {:?}, off and disconnected, until {until}",
            kept.former_name, kept.name
        )));
    }
    show_differences(&restored.differences);
    for warning in &restored.warnings {
        note(&format!("warning: {}: {warning}", restored.vm.name));
    }
    Outcome { exit }
}

fn result_json(host: &OpenHost, plan: &RestorePlan, restored: &RestoredVm, elapsed: Duration, exit: u8) -> Value {
    let disks: Vec<Value> = plan
        .disks
        .iter()
        .zip(&restored.disks)
        .map(|(disk, (path, report))| {
            json!({
                "number": disk.number,
                "path": path,
                "len_bytes": report.len_bytes,
                "written_bytes": report.written_bytes,
            })
        })
        .collect();
    json!({
        "type": "result",
        "restore_type": "full",
        "point_id": plan.point.id,
        "host": host.name,
        "vm_id": restored.vm.id.to_string(),
        "vm_name": restored.vm.name,
        "directory": plan.wanted.data_root,
        "started": restored.started,
        "disks": disks,
        "warnings": restored.warnings,
        "settings_diff": restored.differences.iter().map(difference_json).collect::<Vec<_>>(),
        "kept": restored.kept.as_ref().map(|kept| json!({
            "vm_id": kept.vm_id,
            "vm_name": kept.name,
            "former_name": kept.former_name,
            "until": kept.until.to_string(),
        })),
        "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        "exit": exit,
    })
}

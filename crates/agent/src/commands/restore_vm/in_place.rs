//! `restore vm --in-place`: only what differs, into the disks of the VM that is there.

use std::time::Instant;

use backup::{
    BackupContext, BackupOptions, InPlaceDiskReport, InPlacePlan, Point, RestoreContext, SafetyPoint, compare_in_place,
    plan_in_place, restore_in_place,
};
use serde_json::{Value, json};

use super::{ask_about_decisions, obstacle_json, refuse_blocked, show_obstacles};
use crate::cli::RestoreVmArgs;
use crate::commands::backup::short;
use crate::confirm;
use crate::context::{Context, PROGRAM};
use crate::failure::{Code, Failure};
use crate::host::OpenHost;
use crate::interrupt::Interrupt;
use crate::outcome::Outcome;
use crate::output::{json_document, json_line, line, note};
use crate::progress::Progress;
use crate::units::{duration, size, visible};

pub fn run(
    context: &Context,
    arguments: &RestoreVmArgs,
    host: &OpenHost,
    restore: &RestoreContext<'_>,
    point: &Point,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<Outcome, Failure> {
    let what = format!("restore {} in place", arguments.point);
    let on = format!("point {} in {}, host {}", short(&point.id), restore.repo.display_name(), host.name);
    let failed = |error: backup::BackupError| interrupt.explain(Failure::of(&*what, &*on, &error));
    let plan = plan_in_place(restore, point).map_err(failed)?;
    if arguments.dry_run {
        let found = if plan.is_blocked() { Vec::new() } else { compare_in_place(restore, &plan).map_err(failed)? };
        progress.pause();
        return Ok(tell_plan(context, arguments, &plan, &found));
    }
    progress.pause();
    if !context.global.json && !context.global.quiet {
        say_plan(arguments, &plan, &note);
        show_obstacles(&plan.obstacles, &note);
    }
    refuse_blocked(&what, &host.name, &plan.obstacles)?;
    ask_about_decisions(context, &what, &host.name, &plan.obstacles)?;
    let loss =
        format!("What the disks of VM {:?} hold now is overwritten. {}", plan.vm.name, safety_text(arguments, &plan));
    confirm::name_typed(&context.global, arguments.confirm.as_deref(), &plan.vm.name, &loss)?;

    let begun = Instant::now();
    let options = BackupOptions::new(PROGRAM);
    let backup = BackupContext {
        host: restore.host,
        host_name: &host.name,
        repo: restore.repo,
        state: restore.state,
        options: &options,
        observer: restore.observer,
        cancel: restore.cancel,
    };
    let safety = if arguments.no_safety_point { SafetyPoint::Refused } else { SafetyPoint::Make(&backup) };
    let report = restore_in_place(restore, &plan, &safety).map_err(failed);
    progress.pause();
    let report = report?;
    let mut warnings = Vec::new();
    let mut started = false;
    if arguments.power_on {
        match restore.host.start_vm(&plan.vm) {
            Ok(()) => started = true,
            Err(error) => warnings.push(format!("it does not start: {}", crate::failure::chain_text(&error))),
        }
    }
    let exit = if warnings.is_empty() || arguments.warnings_ok { 0 } else { 4 };
    let elapsed = begun.elapsed();
    let safety_id = report.safety_point.as_ref().map(|report| report.point.id.as_str());
    if context.global.json {
        json_line(&json!({
            "type": "result",
            "restore_type": "in_place",
            "point_id": plan.point.id,
            "host": host.name,
            "vm_id": plan.vm.id.to_string(),
            "vm_name": plan.vm.name,
            "safety_point_id": safety_id,
            "resumed": plan.resumes.is_some(),
            "started": started,
            "disks": disks_json(&report.disks),
            "warnings": warnings,
            "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "exit": exit,
        }));
        return Ok(Outcome { exit });
    }
    if context.global.quiet {
        line(plan.vm.id.as_str());
        return Ok(Outcome { exit });
    }
    let sum = |of: fn(&InPlaceDiskReport) -> u64| report.disks.iter().map(of).sum();
    line(&visible(&format!(
        "done     {} is as in point {}   {} compared, {} written   {}   {}",
        plan.vm.name,
        short(&plan.point.id),
        size(sum(|disk| disk.compared_bytes)),
        size(sum(|disk| disk.differing_bytes)),
        duration(elapsed),
        if started { "started" } else { "off" },
    )));
    if let Some(id) = safety_id {
        line(&format!("safety   point {} holds what the disks held before", short(id)));
    }
    note("next     the next backup of the VM reads its disks in full");
    for warning in &warnings {
        note(&format!("warning: {}: {warning}", plan.vm.name));
    }
    Ok(Outcome { exit })
}

fn safety_text(arguments: &RestoreVmArgs, plan: &InPlacePlan) -> &'static str {
    match (plan.resumes.is_some(), arguments.no_safety_point) {
        (true, _) => "An earlier attempt has begun to write; its safety point, if it made one, is the newest point.",
        (false, true) => "No backup of it is made first.",
        (false, false) => "A backup of it is made first.",
    }
}

fn say_plan(arguments: &RestoreVmArgs, plan: &InPlacePlan, say: &dyn Fn(&str)) {
    let (name, point) = (&plan.vm.name, short(&plan.point.id));
    say(&visible(&format!("plan     write what differs from point {point} into the disks of {name}")));
    say(&format!("         {}", safety_text(arguments, plan)));
}

fn tell_plan(context: &Context, arguments: &RestoreVmArgs, plan: &InPlacePlan, found: &[InPlaceDiskReport]) -> Outcome {
    let exit = if plan.is_blocked() { Code::Preflight.exit() } else { 0 };
    if context.global.json {
        json_document(&json!({
            "type": "plan",
            "restore_type": "in_place",
            "point_id": plan.point.id,
            "vm_id": plan.vm.id.to_string(),
            "vm_name": plan.vm.name,
            "safety_point": !arguments.no_safety_point && plan.resumes.is_none(),
            "resumes": plan.resumes.is_some(),
            "disks": disks_json(found),
            "obstacles": plan.obstacles.iter().map(obstacle_json).collect::<Vec<_>>(),
            "exit": exit,
        }));
        return Outcome { exit };
    }
    say_plan(arguments, plan, &line);
    for disk in found {
        let (differs, total) = (size(disk.differing_bytes), size(disk.compared_bytes));
        line(&visible(&format!("         disk {}: {differs} of {total} differ, {}", disk.number, disk.path)));
    }
    show_obstacles(&plan.obstacles, &line);
    Outcome { exit }
}

fn disks_json(disks: &[InPlaceDiskReport]) -> Vec<Value> {
    let of_disk = |disk: &InPlaceDiskReport| {
        json!({
            "number": disk.number,
            "path": disk.path,
            "compared_bytes": disk.compared_bytes,
            "differing_bytes": disk.differing_bytes,
        })
    };
    disks.iter().map(of_disk).collect()
}

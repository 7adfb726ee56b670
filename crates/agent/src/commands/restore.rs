//! `restore disk`; `restore vm` has a file of its own.

use std::path::Path;
use std::time::Instant;

use backup::{DiskQuote, Point, PointDisk, TargetFormat, quote_disk, restore_disk, select_point};
use serde_json::json;

use super::backup::short;
use crate::cli::{FormatArg, RestoreCommand};
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::interrupt::Interrupt;
use crate::outcome::Outcome;
use crate::output::{json_document, json_line, line, note};
use crate::progress::Progress;
use crate::units::{duration, rate, size, visible};

/// `restore …`
pub fn run(context: &Context, command: RestoreCommand) -> Result<Outcome, Failure> {
    match command {
        RestoreCommand::Vm(arguments) => super::restore_vm::run(context, &arguments),
        RestoreCommand::Disk { point, disk, to, format, overwrite, dry_run } => {
            let target = Target { to: &to, format, overwrite, dry_run };
            restore(context, &point, disk.as_deref(), &target)
        }
    }
}

/// Where a disk goes.
struct Target<'a> {
    to: &'a Path,
    format: FormatArg,
    overwrite: bool,
    dry_run: bool,
}

fn restore(context: &Context, selector: &str, disk: Option<&str>, target: &Target<'_>) -> Result<Outcome, Failure> {
    let Target { to, format, overwrite, dry_run } = *target;
    let what = format!("restore a disk of {selector}");
    let repo = context.repository()?;
    let on = repo.display_name();
    let point = select_point(&repo, selector).attempt(&*what, &*on)?;
    let description = point.describe(&repo).attempt(&*what, &*on)?;
    let disk = find_disk(&description.disks, disk, &what, &on)?;
    let label = format!("{} disk {}", point.vm_name, disk.number);
    let what = format!("restore disk {} of {selector} to {}", disk.number, to.display());
    let object = point.open_disk(&repo, disk).attempt(&*what, &*on)?;

    let target_format = match format {
        FormatArg::Vhdx => TargetFormat::Vhdx,
        FormatArg::Raw => TargetFormat::Raw,
    };
    if dry_run || !(context.global.json || context.global.quiet) {
        let quote = quote_disk(&object, to, target_format).attempt(&*what, &*on)?;
        let plan = Plan { point: &point, disk, to, format, quote };
        if dry_run {
            plan.answer(context);
            return Ok(Outcome::DONE);
        }
        note(&plan.text());
    }
    let interrupt = Interrupt::watch();
    let progress = Progress::start("restore", &context.global);
    let begun = Instant::now();
    let result = restore_disk(&object, to, target_format, overwrite, &label, &progress, interrupt.cancel());
    progress.finish();
    let report = result.map_err(|error| {
        let on = format!("point {} in {on}", short(&point.id));
        interrupt.explain(Failure::of(what, on, &error))
    })?;
    let elapsed = begun.elapsed();

    if context.global.json {
        json_line(&json!({
            "type": "result",
            "point_id": point.id,
            "vm_id": point.vm_id,
            "vm_name": point.vm_name,
            "disk": disk.number,
            "virtual_disk_id": disk.virtual_disk_id,
            "to": to.display().to_string(),
            "format": format_name(format),
            "len_bytes": report.len_bytes,
            "written_bytes": report.written_bytes,
            "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "exit": 0,
        }));
    } else if context.global.quiet {
        line(&to.display().to_string());
    } else {
        line(&visible(&format!(
            "done     {} in {}   {}   every byte checked   {label} of point {} in {}",
            size(report.written_bytes),
            duration(elapsed),
            rate(report.written_bytes, elapsed),
            short(&point.id),
            to.display(),
        )));
        if format == FormatArg::Vhdx {
            note("next     Hyper-V attaches this file as it is; so would what `kopia restore` writes");
        }
    }
    Ok(Outcome::DONE)
}

/// What would be done, and what it costs.
struct Plan<'a> {
    point: &'a Point,
    disk: &'a PointDisk,
    to: &'a Path,
    format: FormatArg,
    quote: DiskQuote,
}

impl Plan<'_> {
    fn text(&self) -> String {
        let quote = &self.quote;
        let free = quote.free_bytes.map_or(String::new(), |free| format!(" ({} free)", size(free)));
        let about = quote.estimate.map_or(String::new(), |time| format!(", about {}", duration(time)));
        let (number, to) = (self.disk.number, self.to.display());
        let (total, data) = (size(self.disk.size_bytes), size(quote.data_bytes));
        visible(&format!("plan     disk {number}, {total} with {data} of data, to {to}{free}{about}"))
    }

    fn answer(&self, context: &Context) {
        if !context.global.json {
            return line(&self.text());
        }
        json_document(&json!({
            "type": "plan",
            "point_id": self.point.id,
            "vm_id": self.point.vm_id,
            "vm_name": self.point.vm_name,
            "disk": self.disk.number,
            "virtual_disk_id": self.disk.virtual_disk_id,
            "to": self.to.display().to_string(),
            "format": format_name(self.format),
            "size_bytes": self.disk.size_bytes,
            "len_bytes": self.quote.len_bytes,
            "data_bytes": self.quote.data_bytes,
            "free_bytes": self.quote.free_bytes,
            "seconds": self.quote.estimate.map(|time| time.as_secs_f64().ceil()),
            "exit": 0,
        }));
    }
}

fn format_name(format: FormatArg) -> &'static str {
    match format {
        FormatArg::Vhdx => "vhdx",
        FormatArg::Raw => "raw",
    }
}

/// By number, by its identity (or a unique beginning of it), or by its slot; the only one when nothing is said.
pub(super) fn find_disk<'d>(
    disks: &'d [PointDisk],
    selector: Option<&str>,
    what: &str,
    on: &str,
) -> Result<&'d PointDisk, Failure> {
    let candidates = |disks: &[&PointDisk]| {
        let texts = disks.iter().map(|disk| format!("{} ({}, {})", disk.number, disk.slot, disk.virtual_disk_id));
        texts.collect::<Vec<_>>().join(", ")
    };
    let all: Vec<&PointDisk> = disks.iter().collect();
    let fitting: Vec<&PointDisk> = match selector {
        None => all.clone(),
        Some(selector) => {
            let lower = selector.to_ascii_lowercase();
            let by_number = selector.parse::<u32>().ok();
            let exact = all.iter().copied().find(|disk| Some(disk.number) == by_number || disk.slot == selector);
            match exact {
                Some(disk) => vec![disk],
                None => all
                    .iter()
                    .copied()
                    .filter(|disk| !lower.is_empty() && disk.virtual_disk_id.to_ascii_lowercase().starts_with(&lower))
                    .collect(),
            }
        }
    };
    match *fitting {
        [disk] => Ok(disk),
        [] => {
            let why = format!("the point has no disk {:?}; it has {}", selector.unwrap_or_default(), candidates(&all));
            Err(Failure::new(what, on, Code::NotFound, why).with_steps(&["correct --disk"]))
        }
        _ => {
            let why = format!("several disks fit: {}", candidates(&fitting));
            Err(Failure::new(what, on, Code::Ambiguous, why).with_steps(&["name one: --disk N"]))
        }
    }
}

//! `restore disk`.

use std::path::Path;
use std::time::Instant;

use backup::{PointDisk, TargetFormat, restore_disk, select_point};
use serde_json::json;

use super::backup::short;
use crate::cli::{FormatArg, RestoreCommand};
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::interrupt::Interrupt;
use crate::outcome::Outcome;
use crate::output::{json_line, line, note};
use crate::progress::Progress;
use crate::units::{duration, rate, size, visible};

/// `restore …`
pub fn run(context: &Context, command: RestoreCommand) -> Result<Outcome, Failure> {
    match command {
        RestoreCommand::Disk { point, disk, to, format, overwrite } => {
            restore(context, &point, disk.as_deref(), &to, format, overwrite)
        }
    }
}

fn restore(
    context: &Context,
    selector: &str,
    disk: Option<&str>,
    to: &Path,
    format: FormatArg,
    overwrite: bool,
) -> Result<Outcome, Failure> {
    let what = format!("restore a disk of {selector}");
    let repo = context.repository()?;
    let on = repo.display_name();
    let point = select_point(&repo, selector).attempt(&*what, &*on)?;
    let description = point.describe(&repo).attempt(&*what, &*on)?;
    let disk = find_disk(&description.disks, disk, &what, &on)?;
    let label = format!("{} disk {}", point.vm_name, disk.number);
    let what = format!("restore disk {} of {selector} to {}", disk.number, to.display());
    let object = point.open_disk(&repo, disk).attempt(&*what, &*on)?;

    let interrupt = Interrupt::watch();
    let progress = Progress::start("restore", &context.global);
    let target_format = match format {
        FormatArg::Vhdx => TargetFormat::Vhdx,
        FormatArg::Raw => TargetFormat::Raw,
    };
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
            "format": match format { FormatArg::Vhdx => "vhdx", FormatArg::Raw => "raw" },
            "len_bytes": report.len_bytes,
            "written_bytes": report.written_bytes,
            "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "exit": 0,
        }));
    } else if context.global.quiet {
        line(&to.display().to_string());
    } else {
        line(&visible(&format!(
            "restored  {label} of point {} to {}   {} with {} of data   {}   {}   every byte checked",
            short(&point.id),
            to.display(),
            size(report.len_bytes),
            size(report.written_bytes),
            duration(elapsed),
            rate(report.written_bytes, elapsed),
        )));
        if format == FormatArg::Vhdx {
            note("next      Hyper-V attaches this file as it is; so would what `kopia restore` writes");
        }
    }
    Ok(Outcome::DONE)
}

/// By number, by its identity (or a unique beginning of it), or by its slot; the only one when nothing is said.
fn find_disk<'d>(
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

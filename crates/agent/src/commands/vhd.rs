//! `vhd info`, `vhd convert`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use backup::{Event, Observer as _};
use serde_json::{Value, json};
use vhdx::convert::{ConvertOptions, ConvertTarget, to_path};
use vhdx::stream::StreamIds;
use vhdx::{DiskKind, FileFormat, FileInfo, Guid, OpenOptions, OpenedDisk, VirtualDisk as _, open_disk};

use crate::cli::{FormatArg, VhdCommand};
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::interrupt::Interrupt;
use crate::outcome::Outcome;
use crate::output::{json_document, json_line, line, note};
use crate::progress::Progress;
use crate::units::{duration, rate, size, visible};

/// Payload block of files that `vhd convert` writes.
const BLOCK_BYTES: u32 = 2 << 20;

/// `vhd …`
pub fn run(context: &Context, command: VhdCommand) -> Result<Outcome, Failure> {
    match command {
        VhdCommand::Info { file } => info(context, &file),
        VhdCommand::Convert { file, out, format } => convert(context, &file, out, format),
    }
}

fn open(file: &Path, what: &str) -> Result<OpenedDisk, Failure> {
    let options = OpenOptions { allow_raw: true, ..OpenOptions::default() };
    open_disk(file, &options).attempt(what, file.display().to_string())
}

fn info(context: &Context, file: &Path) -> Result<Outcome, Failure> {
    let disk = open(file, "look at a disk file")?;
    let files = disk.info();
    if context.global.json {
        let files: Vec<Value> = files.iter().map(|(path, info)| info_json(path, info)).collect();
        json_document(&json!({ "size_bytes": disk.geometry().size_bytes, "files": files }));
        return Ok(Outcome::DONE);
    }
    if context.global.quiet {
        line(&disk.geometry().size_bytes.to_string());
        return Ok(Outcome::DONE);
    }
    for (number, (path, info)) in files.iter().enumerate() {
        if number > 0 {
            line("");
        }
        let mut facts = vec![
            (if number == 0 { "file" } else { "parent" }, path.display().to_string()),
            ("format", format!("{}, {}", format_name(info.format), kind_name(info.kind))),
            (
                "disk",
                format!(
                    "{} ({} bytes), sectors {}/{}",
                    size(info.geometry.size_bytes),
                    info.geometry.size_bytes,
                    info.geometry.logical_sector_bytes,
                    info.geometry.physical_sector_bytes
                ),
            ),
            ("file size", size(info.file_len_bytes)),
        ];
        if info.blocks > 0 {
            let (block, used, all) = (size(u64::from(info.block_bytes)), info.allocated_blocks, info.blocks);
            facts.push(("blocks", format!("{used} of {all} in this file, {block} each")));
        }
        if info.virtual_disk_id != Guid::ZERO {
            facts.push(("disk id", info.virtual_disk_id.to_string()));
        }
        if info.log_dirty {
            facts.push(("log", "not yet replayed".into()));
        }
        if !info.creator.is_empty() {
            facts.push(("made by", info.creator.clone()));
        }
        facts.extend(info.warnings.iter().map(|warning| ("warning", warning.clone())));
        for (name, value) in facts {
            line(&format!("{name:<10} {}", visible(&value)));
        }
    }
    Ok(Outcome::DONE)
}

fn convert(
    context: &Context,
    file: &Path,
    out: Option<PathBuf>,
    format: Option<FormatArg>,
) -> Result<Outcome, Failure> {
    let extension = |path: &Path| path.extension().map(|text| text.to_string_lossy().to_ascii_lowercase());
    let format = format.unwrap_or_else(|| match out.as_deref().and_then(extension).as_deref() {
        Some("raw" | "img") => FormatArg::Raw,
        _ => FormatArg::Vhdx,
    });
    let out = out.unwrap_or_else(|| file.with_extension(format_extension(format)));
    let what = format!("convert a disk to {}", out.display());
    let on = file.display().to_string();
    if std::fs::symlink_metadata(&out).is_ok() {
        return Err(Failure::new(what, on, Code::TargetExists, format!("{} exists", out.display())));
    }
    let disk = open(file, &what)?;
    let geometry = disk.geometry();
    let target = match format {
        FormatArg::Raw => ConvertTarget::Raw,
        FormatArg::Vhdx => {
            let of_source = disk.info().first().map(|(_, info)| info.virtual_disk_id).filter(|id| *id != Guid::ZERO);
            let ids = StreamIds::random(of_source.unwrap_or_else(Guid::random));
            ConvertTarget::Vhdx { block_bytes: BLOCK_BYTES, ids }
        }
    };

    let interrupt = Interrupt::watch();
    let progress = Progress::start("convert", &context.global);
    let subject = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    progress.event(Event::Started {
        subject: &subject,
        total_bytes: geometry.size_bytes,
        what: format_extension(format),
    });
    let seen = AtomicU64::new(0);
    let tell = |at: vhdx::convert::ConvertProgress| {
        // Workers report out of order; what was told already is not told again.
        let before = seen.fetch_max(at.done_bytes, Ordering::Relaxed);
        let bytes = at.done_bytes.saturating_sub(before);
        if bytes > 0 {
            progress.event(Event::Advanced { subject: &subject, bytes });
        }
    };
    let begun = Instant::now();
    let options = ConvertOptions { threads: 0, progress: Some(&tell), cancel: Some(interrupt.flag()) };
    let result = to_path(&disk, &out, &target, &options);
    progress.event(Event::Finished { subject: &subject });
    progress.finish();
    let summary = result.map_err(|error| interrupt.explain(Failure::of(what, on, &error)))?;
    let elapsed = begun.elapsed();

    if context.global.json {
        json_line(&json!({
            "type": "result",
            "file": file.display().to_string(),
            "out": out.display().to_string(),
            "format": format_extension(format),
            "size_bytes": geometry.size_bytes,
            "read_bytes": summary.read_bytes,
            "written_bytes": summary.written_bytes,
            "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "exit": 0,
        }));
    } else if context.global.quiet {
        line(&out.display().to_string());
    } else {
        line(&visible(&format!(
            "converted  {} to {}   {} with {} of data   {}   {}",
            file.display(),
            out.display(),
            size(geometry.size_bytes),
            size(summary.written_bytes),
            duration(elapsed),
            rate(summary.read_bytes, elapsed)
        )));
        if format == FormatArg::Vhdx {
            note("next       Hyper-V attaches this file as it is");
        }
    }
    Ok(Outcome::DONE)
}

fn info_json(path: &Path, info: &FileInfo) -> Value {
    json!({
        "path": path.display().to_string(),
        "format": format_name(info.format),
        "kind": kind_name(info.kind),
        "size_bytes": info.geometry.size_bytes,
        "logical_sector_bytes": info.geometry.logical_sector_bytes,
        "physical_sector_bytes": info.geometry.physical_sector_bytes,
        "file_len_bytes": info.file_len_bytes,
        "block_bytes": info.block_bytes,
        "blocks": info.blocks,
        "allocated_blocks": info.allocated_blocks,
        "virtual_disk_id": info.virtual_disk_id.to_string(),
        "data_write_guid": info.data_write_guid.to_string(),
        "file_write_guid": info.file_write_guid.to_string(),
        "creator": info.creator,
        "log_dirty": info.log_dirty,
        "warnings": info.warnings,
    })
}

fn format_name(format: FileFormat) -> &'static str {
    match format {
        FileFormat::Vhdx => "vhdx",
        FileFormat::Vhd => "vhd",
        FileFormat::Raw => "raw",
    }
}

fn kind_name(kind: DiskKind) -> &'static str {
    match kind {
        DiskKind::Fixed => "fixed",
        DiskKind::Dynamic => "dynamic",
        DiskKind::Differencing => "differencing",
    }
}

fn format_extension(format: FormatArg) -> &'static str {
    match format {
        FormatArg::Vhdx => "vhdx",
        FormatArg::Raw => "raw",
    }
}

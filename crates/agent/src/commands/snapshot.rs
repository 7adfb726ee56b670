//! `snapshot list`, `snapshot restore`: what Kopia calls a snapshot, whoever made it.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use backup::{Event, Observer as _};
use kopia_repo::{EntryFailure, Repository, RestoreTreeError, RestoreTreeOptions, Snapshot, TreeEvent, restore_tree};
use serde_json::{Value, json};

use super::backup::short;
use crate::cli::SnapshotCommand;
use crate::completion;
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure, chain_text};
use crate::outcome::Outcome;
use crate::output::{Align, Table, json_document, json_line, line, note};
use crate::progress::Progress;
use crate::units::{duration, rate, size, visible};

/// `snapshot …`
pub fn run(context: &Context, command: SnapshotCommand) -> Result<Outcome, Failure> {
    let repo = context.repository()?;
    match command {
        SnapshotCommand::List => list(context, &repo),
        SnapshotCommand::Restore { id, to } => restore(context, &repo, &id, &to),
    }
}

fn list(context: &Context, repo: &Arc<Repository>) -> Result<Outcome, Failure> {
    let on = repo.display_name();
    let mut snapshots = repo.snapshots(&[]).attempt("list the snapshots", &*on)?;
    snapshots.reverse();
    completion::remember_snapshots(snapshots.iter().map(|snapshot| &*snapshot.id));
    if context.global.json {
        json_document(&json!({ "snapshots": snapshots.iter().map(snapshot_json).collect::<Vec<_>>() }));
        return Ok(Outcome::DONE);
    }
    if context.global.quiet {
        snapshots.iter().for_each(|snapshot| line(&snapshot.id));
        return Ok(Outcome::DONE);
    }
    if snapshots.is_empty() {
        note(&format!("{on} holds no snapshots yet"));
        return Ok(Outcome::DONE);
    }
    let mut table = Table::new(&[
        ("SNAPSHOT", Align::Left),
        ("WHEN", Align::Left),
        ("FILES", Align::Right),
        ("SIZE", Align::Right),
        ("SOURCE", Align::Left),
        ("DESCRIPTION", Align::Left),
    ]);
    for snapshot in &snapshots {
        let (files, bytes) = files_and_bytes(snapshot);
        let mut description = snapshot.manifest.description.clone();
        if !snapshot.manifest.incomplete.is_empty() {
            description = format!("incomplete ({}) {description}", snapshot.manifest.incomplete);
        }
        table.row(vec![
            short(&snapshot.id).to_owned(),
            context.time(snapshot.manifest.start_time),
            files.to_string(),
            size(bytes),
            source_text(snapshot),
            description,
        ]);
    }
    table.print();
    Ok(Outcome::DONE)
}

fn restore(context: &Context, repo: &Arc<Repository>, selector: &str, to: &Path) -> Result<Outcome, Failure> {
    let what = format!("restore snapshot {selector} to {}", to.display());
    let on = repo.display_name();
    let snapshot = find(repo, selector, &what, &on)?;
    let on = format!("{} in {on}", source_text(&snapshot));
    let Some(root) = &snapshot.manifest.root_entry else {
        return Err(Failure::new(what, on, Code::Damaged, "the snapshot has no root"));
    };
    let (_, total_bytes) = files_and_bytes(&snapshot);
    let subject = format!("snapshot {}", short(&snapshot.id));
    // Ctrl+C ends the program here: what is there under its own name is whole, and nothing else has to be put in order.
    let progress = Progress::start("restore", &context.global);
    progress.event(Event::Started { subject: &subject, total_bytes, what: "restore" });
    let begun = Instant::now();
    let mut tell = |event: TreeEvent<'_>| match event {
        TreeEvent::Bytes(bytes) => progress.event(Event::Advanced { subject: &subject, bytes }),
        TreeEvent::Failed(failure) if !context.global.json => {
            progress.note(&format!("not restored: {}: {}", failure.path, problem_text(failure)));
        }
        _ => {}
    };
    let result = restore_tree(repo, root, to, &RestoreTreeOptions::for_snapshot(&snapshot), &mut tell);
    progress.event(Event::Finished { subject: &subject });
    progress.finish();
    let report = result.map_err(|error| match error {
        RestoreTreeError::NotEmpty { .. } => {
            Failure::new(what, on, Code::TargetExists, error.to_string()).with_steps(&["choose a new or empty folder"])
        }
        error => Failure::of(what, on, &error),
    })?;
    let elapsed = begun.elapsed();
    let exit = if report.failed_entries > 0 { 3 } else { 0 };

    if context.global.json {
        let failures: Vec<Value> = report
            .failures
            .iter()
            .map(|failure| json!({ "path": failure.path, "why": problem_text(failure) }))
            .collect();
        json_line(&json!({
            "type": "result",
            "snapshot_id": snapshot.id,
            "to": to.display().to_string(),
            "files": report.files,
            "directories": report.directories,
            "symlinks": report.symlinks,
            "bytes": report.bytes,
            "failed_entries": report.failed_entries,
            "failures": failures,
            "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "exit": exit,
        }));
        return Ok(Outcome { exit });
    }
    if report.failed_entries > 0 {
        note(&format!("{} entries could not be restored; each is named above", report.failed_entries));
    }
    if context.global.quiet {
        line(&to.display().to_string());
    } else {
        line(&visible(&format!(
            "restored  snapshot {} to {}   {} files, {} folders, {} links   {}   {}   {}",
            short(&snapshot.id),
            to.display(),
            report.files,
            report.directories,
            report.symlinks,
            size(report.bytes),
            duration(elapsed),
            rate(report.bytes, elapsed),
        )));
    }
    Ok(Outcome { exit })
}

/// By manifest ID, or a unique beginning of it.
fn find(repo: &Arc<Repository>, selector: &str, what: &str, on: &str) -> Result<Snapshot, Failure> {
    let snapshots = repo.snapshots(&[]).attempt(what, on)?;
    let mut fitting: Vec<Snapshot> =
        snapshots.into_iter().filter(|snapshot| !selector.is_empty() && snapshot.id.starts_with(selector)).collect();
    match fitting.len() {
        1 => Ok(fitting.remove(0)),
        0 => {
            let why = format!("there is no snapshot {selector:?}");
            Err(Failure::new(what, on, Code::NotFound, why).with_steps(&["look at `snapshot list`"]))
        }
        _ => {
            let ids: Vec<&str> = fitting.iter().map(|snapshot| snapshot.id.as_str()).collect();
            Err(Failure::new(what, on, Code::Ambiguous, format!("several snapshots fit: {}", ids.join(", "))))
        }
    }
}

fn problem_text(failure: &EntryFailure) -> String {
    chain_text(&failure.problem)
}

fn source_text(snapshot: &Snapshot) -> String {
    let source = &snapshot.manifest.source;
    format!("{}@{}:{}", source.user_name, source.host, source.path)
}

/// From the root's summary, which counts everything; else from the run's own counters.
fn files_and_bytes(snapshot: &Snapshot) -> (u64, u64) {
    let manifest = &snapshot.manifest;
    let root = manifest.root_entry.as_ref();
    let (files, bytes) = match root.and_then(|root| root.summary.as_ref()) {
        Some(summary) => (summary.files, summary.size),
        None => (manifest.stats.file_count, root.map_or(manifest.stats.total_size, |root| root.size)),
    };
    (u64::try_from(files).unwrap_or(0), u64::try_from(bytes).unwrap_or(0))
}

fn snapshot_json(snapshot: &Snapshot) -> Value {
    let manifest = &snapshot.manifest;
    let (files, bytes) = files_and_bytes(snapshot);
    json!({
        "snapshot_id": snapshot.id,
        "source": { "user": manifest.source.user_name, "host": manifest.source.host, "path": manifest.source.path },
        "description": manifest.description,
        "started": manifest.start_time.to_string(),
        "ended": manifest.end_time.to_string(),
        "files": files,
        "bytes": bytes,
        "incomplete": manifest.incomplete,
        "pins": manifest.pins,
        "tags": manifest.tags,
    })
}

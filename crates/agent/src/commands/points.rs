//! `points list`, `points show`; the others are in `holds.rs`.

use std::sync::Arc;

use backup::evidence::{self, Evidence, Judgement};
use backup::hold::holds_of;
use backup::{Point, PointDescription, ReadMode, list_points, select_point};
use kopia_repo::Repository;
use serde_json::{Value, json};

use super::backup::short;
use super::holds;
use crate::batch::disk_json;
use crate::cli::PointsCommand;
use crate::completion;
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure, chain_text};
use crate::outcome::Outcome;
use crate::output::{Align, Table, json_document, line, note};
use crate::units::{size, visible};

/// `points …`
pub fn run(context: &Context, command: PointsCommand) -> Result<Outcome, Failure> {
    let repo = context.repository()?;
    match command {
        PointsCommand::List { vm } => list(context, &repo, vm.as_deref()),
        PointsCommand::Show { point, vm } => {
            let selector = match (point, vm) {
                (Some(point), _) => point,
                (None, Some(vm)) => format!("{vm}@latest"),
                (None, None) => unreachable!("one of them is required"),
            };
            show(context, &repo, &selector)
        }
        PointsCommand::Hold { points, reason, until } => holds::hold(context, &repo, &points, &reason, until),
        PointsCommand::Release { points } => holds::release(context, &repo, &points),
        PointsCommand::Delete { points, dry_run, confirm } => holds::delete(context, &repo, &points, dry_run, &confirm),
    }
}

/// A point with its description, or with what keeps it from being read.
struct Listed {
    point: Point,
    description: Result<PointDescription, String>,
    /// What checks found since it was made.
    evidence: Vec<Evidence>,
}

fn list(context: &Context, repo: &Arc<Repository>, vm: Option<&str>) -> Result<Outcome, Failure> {
    let what = "list the points";
    let on = repo.display_name();
    let mut points = list_points(repo, None).attempt(what, &*on)?;
    completion::remember_points(&points);
    if let Some(vm) = vm {
        points.retain(|point| point.vm_id.eq_ignore_ascii_case(vm) || point.vm_name == vm);
        if points.is_empty() {
            let why = format!("the repository holds no points of a VM {vm:?}");
            return Err(Failure::new(what, on, Code::NotFound, why).with_steps(&["list all: `points list`"]));
        }
    }
    // Newest first.
    points.reverse();
    let mut evidence = evidence::all(repo).attempt(what, &*on)?;
    let mut listed = Vec::with_capacity(points.len());
    for point in points {
        let description = match point.describe(repo) {
            Ok(description) => Ok(description),
            // A point that is damaged is listed as such; a repository that does not answer ends the listing.
            Err(error) if error.is_damage() => Err(chain_text(&error)),
            Err(error) => return Err(Failure::of(what, on, &error)),
        };
        let evidence = evidence.remove(&point.id).unwrap_or_default();
        listed.push(Listed { point, description, evidence });
    }
    if context.global.json {
        json_document(&json!({ "points": listed.iter().map(Listed::to_json).collect::<Vec<_>>() }));
        return Ok(Outcome::DONE);
    }
    if context.global.quiet {
        listed.iter().for_each(|one| line(&one.point.id));
        return Ok(Outcome::DONE);
    }
    if listed.is_empty() {
        note(&format!("{on} holds no points yet"));
        return Ok(Outcome::DONE);
    }
    let mut table = Table::new(&[
        ("POINT", Align::Left),
        ("VM", Align::Left),
        ("WHEN", Align::Left),
        ("READ", Align::Left),
        ("CHANGED", Align::Right),
        ("STORED", Align::Right),
        ("CONSISTENCY", Align::Left),
        ("VERIFIED", Align::Left),
        ("RESTORABLE", Align::Left),
        ("HELD", Align::Left),
    ]);
    for one in &listed {
        let head = [short(&one.point.id).to_owned(), one.point.vm_name.clone()];
        let tail = match &one.description {
            Ok(description) => [
                context.time(description.frozen),
                read_text(description).to_owned(),
                size(description.disks.iter().map(|disk| disk.changed_bytes).sum()),
                size(description.stored_bytes),
                description.consistency.to_string(),
                one.judgement().verified.as_str().to_owned(),
                one.restorable().to_owned(),
            ],
            Err(_) => [
                context.time(one.point.started()),
                "–".into(),
                "–".into(),
                "–".into(),
                "–".into(),
                "damaged".into(),
                "no".into(),
            ],
        };
        let held = holds::hold_cell(context, &holds_of(&one.point));
        table.row(head.into_iter().chain(tail).chain([held]).collect());
    }
    table.print();
    Ok(Outcome::DONE)
}

fn show(context: &Context, repo: &Arc<Repository>, selector: &str) -> Result<Outcome, Failure> {
    let what = format!("show point {selector}");
    let on = repo.display_name();
    let point = select_point(repo, selector).attempt(&*what, &*on)?;
    let description = point.describe(repo).attempt(&*what, &*on)?;
    let evidence = evidence::all(repo).attempt(what, on)?.remove(&point.id).unwrap_or_default();
    if context.global.json {
        let listed = Listed { point, description: Ok(description), evidence };
        json_document(&json!({ "point": listed.to_json() }));
        return Ok(Outcome::DONE);
    }
    if context.global.quiet {
        line(&point.id);
        return Ok(Outcome::DONE);
    }
    let mut facts = vec![
        ("point", point.id.clone()),
        ("snapshot", format!("{} (Kopia manifest)", point.snapshot.id)),
        ("vm", format!("{} ({})", description.vm_name, description.vm_id)),
        ("host", description.host.clone()),
        ("frozen", context.time(description.frozen)),
        (
            "run",
            format!(
                "{}, {} to {}",
                description.run_id,
                context.time(description.started),
                context.time(description.stored)
            ),
        ),
        ("consistency", description.consistency_in_words().to_owned()),
    ];
    if let Some(reason) = &description.consistency_reason {
        facts.push(("because", reason.clone()));
    }
    for hold in holds_of(&point) {
        facts.push(("held", holds::hold_text(context, &hold)));
    }
    facts.push(("stored", size(description.stored_bytes)));
    for disk in &description.absent_disks {
        facts.push(("left out", format!("{}: {}", disk.disk, disk.reason)));
    }
    facts.push(("made by", description.program.clone()));
    for one in &evidence {
        facts.push(("checked", evidence_text(context, one)));
    }
    for (name, value) in facts {
        line(&format!("{name:<12} {}", visible(&value)));
    }
    line("");
    let mut table = Table::new(&[
        ("DISK", Align::Right),
        ("SLOT", Align::Left),
        ("SIZE", Align::Right),
        ("FILE", Align::Right),
        ("READ", Align::Left),
        ("BYTES READ", Align::Right),
        ("CHANGED", Align::Right),
        ("ID", Align::Left),
    ]);
    for disk in &description.disks {
        table.row(vec![
            disk.number.to_string(),
            disk.slot.clone(),
            size(disk.size_bytes),
            size(disk.file_bytes),
            match &disk.read {
                ReadMode::Full { reason } => format!("full ({reason})"),
                ReadMode::Incremental { base } => format!("incremental on {}", short(base)),
            },
            size(disk.read_bytes + disk.audit_bytes),
            size(disk.changed_bytes),
            disk.virtual_disk_id.clone(),
        ]);
    }
    table.print();
    Ok(Outcome::DONE)
}

/// `full on 2026-11-21 03:02:11 by e3-backup-agent 1.0: sound, 8.2 GiB read`.
fn evidence_text(context: &Context, evidence: &Evidence) -> String {
    let outcome = match evidence.outcome {
        evidence::Outcome::Sound => "sound",
        evidence::Outcome::Doubtful => "doubtful",
        evidence::Outcome::Damaged => "damaged",
    };
    let read = if evidence.read_bytes > 0 { format!(", {} read", size(evidence.read_bytes)) } else { String::new() };
    let problems =
        if evidence.problems.is_empty() { String::new() } else { format!(": {}", evidence.problems.join("; ")) };
    let (check, at) = (evidence.check.as_str(), context.time(evidence.at));
    format!("{check} on {at} by {}: {outcome}{read}{problems}", evidence.program)
}

fn read_text(description: &PointDescription) -> &'static str {
    let full = description.disks.iter().filter(|disk| matches!(disk.read, ReadMode::Full { .. })).count();
    match full {
        0 => "incremental",
        full if full == description.disks.len() => "full",
        _ => "mixed",
    }
}

impl Listed {
    fn judgement(&self) -> Judgement {
        evidence::judge(&self.evidence)
    }

    fn restorable(&self) -> &'static str {
        match self.judgement().outcome {
            _ if self.description.is_err() => "no",
            evidence::Outcome::Sound => "yes",
            evidence::Outcome::Doubtful => "doubtful",
            evidence::Outcome::Damaged => "damaged",
        }
    }

    fn to_json(&self) -> Value {
        let mut object = json!({
            "point_id": self.point.id,
            "snapshot_id": self.point.snapshot.id,
            "vm_id": self.point.vm_id,
            "vm_name": self.point.vm_name,
            "started": self.point.started().to_string(),
            "holds": holds::holds_json(&holds_of(&self.point)),
            "verify_level": self.judgement().verified.as_str(),
            "verify_status": match self.judgement().outcome {
                _ if self.description.is_err() => "damaged",
                evidence::Outcome::Sound => "ok",
                evidence::Outcome::Doubtful => "doubtful",
                evidence::Outcome::Damaged => "damaged",
            },
            "verified_at": self.judgement().at.map(|at| at.to_string()),
            "evidence": self.evidence,
            "is_restorable": self.description.is_ok(),
            "not_restorable_reason": self.description.as_ref().err(),
        });
        let Ok(description) = &self.description else { return object };
        let disks: Vec<Value> = description
            .disks
            .iter()
            .map(|disk| {
                let mut object = disk_json(disk);
                object.insert("path".into(), json!(disk.path));
                object.insert("segment_bytes".into(), json!(disk.segment_bytes));
                object.insert("file".into(), json!(disk.file));
                object.insert("file_bytes".into(), json!(disk.file_bytes));
                Value::Object(object)
            })
            .collect();
        let sum = |of: fn(&backup::PointDisk) -> u64| description.disks.iter().map(of).sum::<u64>();
        let more = json!({
            "snapshot_time": description.frozen.to_string(),
            "stored": description.stored.to_string(),
            "run_id": description.run_id,
            "host": description.host,
            "mode": read_text(description),
            "consistency": description.consistency,
            "consistency_reason": description.consistency_reason,
            "guest_family": description.guest_family,
            "changed_bytes": sum(|disk| disk.changed_bytes),
            "read_bytes": sum(|disk| disk.read_bytes),
            "stored_bytes": description.stored_bytes,
            "total_size_bytes": sum(|disk| disk.size_bytes),
            "disks": disks,
            "absent_disks": description.absent_disks,
            "program": description.program,
        });
        if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
            object.extend(more);
        }
        object
    }
}

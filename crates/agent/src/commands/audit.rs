//! `audit`: what the checks of change tracking looked at, and what they found.

use std::collections::HashMap;

use backup::evidence::{self, Check, Evidence};
use backup::{FullReason, Point, PointDescription, PointDisk, ReadMode, list_points};
use serde_json::{Value, json};

use super::backup::short;
use crate::cli::AuditArgs;
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::outcome::Outcome;
use crate::output::{json_document, line, note};
use crate::service::matches;
use crate::units::visible;

/// `audit`
pub fn run(context: &Context, arguments: &AuditArgs) -> Result<Outcome, Failure> {
    let what = "look at the checks of change tracking";
    let repo = context.repository()?;
    let on = repo.display_name();
    let mut points = list_points(&repo, None).attempt(what, &*on)?;
    let wanted = |point: &Point| {
        let fits = |vm: &String| matches(vm, &point.vm_name) || vm.eq_ignore_ascii_case(&point.vm_id);
        arguments.vms.is_empty() || arguments.vms.iter().any(fits)
    };
    points.retain(wanted);
    if let Some(missing) = arguments
        .vms
        .iter()
        .find(|vm| !points.iter().any(|point| matches(vm, &point.vm_name) || vm.eq_ignore_ascii_case(&point.vm_id)))
    {
        return Err(Failure::new(what, on, Code::NotFound, format!("there is no point of a VM {missing:?}")));
    }
    points.reverse();
    let evidence = evidence::all(&repo).attempt(what, &*on)?;
    let mut audits = Vec::new();
    for point in points {
        match point.describe(&repo) {
            Ok(description) => audits.push(Audit { point, description }),
            Err(error) => note(&format!("{}", Failure::of(format!("read point {}", short(&point.id)), &*on, &error))),
        }
    }
    let is_suspicious = audits.iter().any(|audit| audit.is_mismatch() || audit.doubts(&evidence).is_some());
    if context.global.json {
        let audits: Vec<Value> = audits.iter().flat_map(|audit| audit.to_json(&evidence)).collect();
        json_document(&json!({ "audits": audits }));
    } else if audits.is_empty() {
        note(&format!("{on} holds no points yet"));
    } else {
        audits.iter().for_each(|audit| audit.show(context, &evidence));
    }
    Ok(Outcome { exit: if is_suspicious { 4 } else { 0 } })
}

struct Audit {
    point: Point,
    description: PointDescription,
}

impl Audit {
    fn is_mismatch(&self) -> bool {
        self.description.disks.iter().any(is_mismatch)
    }

    fn doubts<'e>(&self, evidence: &'e HashMap<String, Vec<Evidence>>) -> Option<&'e Evidence> {
        evidence.get(&self.point.id)?.iter().find(|one| one.check == Check::Tracking)
    }

    fn show(&self, context: &Context, evidence: &HashMap<String, Vec<Evidence>>) {
        let time = context.time(self.description.frozen);
        line(&visible(&format!("{}  {}  {time}", short(&self.point.id), self.point.vm_name)));
        for disk in &self.description.disks {
            line(&visible(&format!("  disk {}  {}", disk.number, in_words(disk))));
        }
        if let Some(doubt) = self.doubts(evidence) {
            let at = context.time(doubt.at);
            line(&visible(&format!("  doubtful, by the check of {at}: {}", doubt.problems.join("; "))));
        }
    }

    fn to_json(&self, evidence: &HashMap<String, Vec<Evidence>>) -> Vec<Value> {
        let is_doubtful = self.doubts(evidence).is_some();
        let of_disk = |disk: &PointDisk| {
            json!({
                "point_id": self.point.id,
                "vm_id": self.point.vm_id,
                "vm_name": self.point.vm_name,
                "frozen": self.description.frozen,
                "disk": disk.number,
                "segments": disk.audited.map(|audited| audited.segments),
                "of_segments": disk.audited.map(|audited| audited.of_segments),
                "read_bytes": disk.audit_bytes,
                "mismatch": is_mismatch(disk),
                "doubtful": is_doubtful,
                "text": in_words(disk),
            })
        };
        self.description.disks.iter().map(of_disk).collect()
    }
}

fn is_mismatch(disk: &PointDisk) -> bool {
    matches!(disk.read, ReadMode::Full { reason: FullReason::AuditFailed })
}

fn in_words(disk: &PointDisk) -> String {
    match (&disk.read, disk.audited) {
        (ReadMode::Full { reason: FullReason::AuditFailed }, _) => {
            "change tracking was wrong: the disk was read in full, and is right in this point".to_owned()
        }
        (ReadMode::Full { .. }, _) => "read in full: nothing was left to change tracking".to_owned(),
        (ReadMode::Incremental { .. }, Some(audited)) => audited.in_words(),
        (ReadMode::Incremental { .. }, None) => "checked by a version that did not record how much".to_owned(),
    }
}

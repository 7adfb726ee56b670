//! `verify`.

use std::time::{Duration, Instant};

use backup::evidence::{self, Check, Evidence};
use backup::{
    BackupError, Point, VerifyLevel, VerifyReport, list_points, select_point, verify_by_restoring, verify_point,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::backup::short;
use crate::cli::{LevelArg, VerifyArgs};
use crate::context::{Context, PROGRAM};
use crate::failure::{Attempt as _, Code, Failure};
use crate::interrupt::Interrupt;
use crate::outcome::Outcome;
use crate::output::{json_line, line, note};
use crate::progress::Progress;
use crate::units::{duration, size, visible};

/// `verify`
pub fn run(context: &Context, arguments: &VerifyArgs) -> Result<Outcome, Failure> {
    let repo = context.repository()?;
    let on = repo.display_name();
    let points = find_points(&repo, arguments, &on)?;
    let scratch = arguments.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let interrupt = Interrupt::watch();
    let progress = Progress::start("verify", &context.global);
    let begun = Instant::now();
    let mut results = Vec::with_capacity(points.len());
    for (number, point) in (1..).zip(&points) {
        if points.len() > 1 {
            progress.part(format!("point {number} of {}", points.len()));
        }
        let point_begun = Instant::now();
        let cancel = interrupt.cancel();
        let result = match arguments.level {
            LevelArg::Structure => verify_point(&repo, point, VerifyLevel::Structure, &progress, cancel),
            LevelArg::Sample => verify_point(&repo, point, VerifyLevel::Sample, &progress, cancel),
            LevelArg::Full => verify_point(&repo, point, VerifyLevel::Full, &progress, cancel),
            LevelArg::Restore => verify_by_restoring(&repo, point, &scratch, &progress, cancel),
        };
        if matches!(result, Err(BackupError::Cancelled)) {
            progress.finish();
            let what = format!("verify {} of {}", short(&point.id), point.vm_name);
            return Err(interrupt.explain(Failure::of(what, on, &BackupError::Cancelled)));
        }
        let result = result.map_err(|error| Failure::of(format!("verify point {}", short(&point.id)), &*on, &error));
        let result = PointResult { point, result, elapsed: point_begun.elapsed() };
        progress.pause();
        result.show(context, arguments.level);
        if let Some(evidence) = result.evidence(arguments.level)
            && let Err(error) = evidence::record(&repo, &[evidence])
        {
            // What was found stands on the screen; only the record of it is missing.
            let what = format!("keep the evidence of point {}", short(&point.id));
            Failure::of(what, &*on, &error).print(context.global.verbose > 0);
        }
        results.push(result);
    }
    progress.finish();
    conclude(context, arguments.level, &on, begun.elapsed(), results)
}

fn find_points(
    repo: &std::sync::Arc<kopia_repo::Repository>,
    arguments: &VerifyArgs,
    on: &str,
) -> Result<Vec<Point>, Failure> {
    if arguments.all {
        let mut points = list_points(repo, None).attempt("list the points", on)?;
        points.reverse();
        return Ok(points);
    }
    let mut points: Vec<Point> = Vec::with_capacity(arguments.points.len());
    for selector in &arguments.points {
        let point = select_point(repo, selector).attempt(format!("verify {selector}"), on)?;
        if !points.iter().any(|known| known.id == point.id) {
            points.push(point);
        }
    }
    Ok(points)
}

/// What came of one point.
struct PointResult<'a> {
    point: &'a Point,
    result: Result<VerifyReport, Failure>,
    elapsed: Duration,
}

impl PointResult<'_> {
    /// What is kept of it; nothing where nothing was found out.
    fn evidence(&self, level: LevelArg) -> Option<Evidence> {
        let empty = VerifyReport::default();
        let report = match &self.result {
            Ok(report) => report,
            Err(_) if self.is_damaged() => &empty,
            Err(_) => return None,
        };
        let problems = match &self.result {
            Ok(report) => report.damage.clone(),
            Err(failure) => vec![failure.to_string()],
        };
        Some(Evidence {
            point_id: self.point.id.clone(),
            vm_id: self.point.vm_id.clone(),
            check: match level {
                LevelArg::Structure => Check::Structure,
                LevelArg::Sample => Check::Sample,
                LevelArg::Full => Check::Full,
                LevelArg::Restore => Check::Restore,
            },
            outcome: if self.is_damaged() { evidence::Outcome::Damaged } else { evidence::Outcome::Sound },
            at: Timestamp::now(),
            program: PROGRAM.to_owned(),
            entries: report.entries,
            segments: report.segments,
            read_bytes: report.read_bytes,
            volumes: report.volumes.clone(),
            problems,
        })
    }

    fn is_damaged(&self) -> bool {
        match &self.result {
            Ok(report) => !report.is_sound(),
            Err(failure) => failure.code() == Code::Damaged,
        }
    }

    fn show(&self, context: &Context, level: LevelArg) {
        if context.global.json {
            let mut object = self.to_json(level);
            object["type"] = "point".into();
            return json_line(&object);
        }
        match &self.result {
            Ok(report) if !report.is_sound() => {
                note(&format!("damage in point {} of {}:", self.point.id, self.point.vm_name));
                report.damage.iter().for_each(|text| note(&format!("  {text}")));
            }
            Ok(_) if context.global.quiet => line(&self.point.id),
            Ok(report) => {
                let done = match level {
                    LevelArg::Structure => format!("every part is there   {} entries", report.entries),
                    LevelArg::Sample => {
                        let (read, of) = report.segments;
                        format!("{read} of {of} segments read and hashed   {}", size(report.read_bytes))
                    }
                    LevelArg::Full => format!("every byte read and hashed   {}", size(report.read_bytes)),
                    LevelArg::Restore => format!("restored   {}   {}", size(report.read_bytes), volumes_text(report)),
                };
                let (id, name, time) = (short(&self.point.id), &self.point.vm_name, duration(self.elapsed));
                line(&visible(&format!("{id}  {name}   {done}   {time}   ok")));
            }
            Err(failure) => failure.print(context.global.verbose > 0),
        }
    }

    fn to_json(&self, level: LevelArg) -> Value {
        let (damage, entries, read_bytes, error) = match &self.result {
            Ok(report) => (json!(report.damage), report.entries, report.read_bytes, Value::Null),
            Err(failure) => (json!([]), 0, 0, failure.to_json()),
        };
        let (segments, volumes) = match &self.result {
            Ok(report) => (report.segments, json!(report.volumes)),
            Err(_) => ((0, 0), json!([])),
        };
        json!({
            "point_id": self.point.id,
            "vm_id": self.point.vm_id,
            "vm_name": self.point.vm_name,
            "verify_level": level_name(level),
            "verify_status": match &self.result {
                _ if self.is_damaged() => "damaged",
                Ok(_) => "ok",
                Err(_) => "failed",
            },
            "damage": damage,
            "entries": entries,
            "read_bytes": read_bytes,
            "segments_read": segments.0,
            "segments": segments.1,
            "volumes": volumes,
            "elapsed_ms": u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX),
            "error": error,
        })
    }
}

/// Damage outweighs everything; points that could not be looked at are a partial result.
fn conclude(
    context: &Context,
    level: LevelArg,
    on: &str,
    elapsed: Duration,
    results: Vec<PointResult<'_>>,
) -> Result<Outcome, Failure> {
    let damaged: Vec<&str> =
        results.iter().filter(|result| result.is_damaged()).map(|result| short(&result.point.id)).collect();
    if !damaged.is_empty() {
        let why = format!(
            "stored bytes of {} of {} points are damaged: {}",
            damaged.len(),
            results.len(),
            damaged.join(", ")
        );
        return Err(Failure::new("verify points", on, Code::Damaged, why));
    }
    let failed = results.iter().filter(|result| result.result.is_err()).count();
    if failed > 0 && failed == results.len() {
        let first = results.into_iter().find_map(|result| result.result.err()).expect("all of them failed");
        return Err(first.printed(!context.global.json));
    }
    let exit = if failed > 0 { 3 } else { 0 };
    if context.global.json {
        json_line(&json!({
            "type": "result",
            "verify_level": level_name(level),
            "exit": exit,
            "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "points": results.iter().map(|result| result.to_json(level)).collect::<Vec<_>>(),
        }));
    } else if results.is_empty() {
        note(&format!("{on} holds no points"));
    }
    Ok(Outcome { exit })
}

/// `2 of 3 file systems sound, 1 without a checker here`.
fn volumes_text(report: &VerifyReport) -> String {
    let count = |sound| report.volumes.iter().filter(|volume| volume.sound == sound).count();
    let unchecked = match count(None) {
        0 => String::new(),
        count => format!(", {count} without a checker on this machine"),
    };
    match report.volumes.len() {
        0 => "no file system that is known was found".to_owned(),
        all => format!("{} of {all} file systems sound{unchecked}", count(Some(true))),
    }
}

fn level_name(level: LevelArg) -> &'static str {
    match level {
        LevelArg::Structure => "structure",
        LevelArg::Sample => "sample",
        LevelArg::Full => "full",
        LevelArg::Restore => "restore",
    }
}

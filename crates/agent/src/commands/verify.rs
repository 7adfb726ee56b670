//! `verify`.

use std::time::{Duration, Instant};

use backup::{BackupError, Point, VerifyLevel, VerifyReport, list_points, select_point, verify_point};
use serde_json::{Value, json};

use super::backup::short;
use crate::cli::{LevelArg, VerifyArgs};
use crate::context::Context;
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
    let level = match arguments.level {
        LevelArg::Structure => VerifyLevel::Structure,
        LevelArg::Full => VerifyLevel::Full,
    };
    let interrupt = Interrupt::watch();
    let progress = Progress::start("verify", &context.global);
    let begun = Instant::now();
    let mut results = Vec::with_capacity(points.len());
    for (number, point) in (1..).zip(&points) {
        if points.len() > 1 {
            progress.part(format!("point {number} of {}", points.len()));
        }
        let point_begun = Instant::now();
        let result = verify_point(&repo, point, level, &progress, interrupt.cancel());
        if matches!(result, Err(BackupError::Cancelled)) {
            progress.finish();
            let what = format!("verify {} of {}", short(&point.id), point.vm_name);
            return Err(interrupt.explain(Failure::of(what, on, &BackupError::Cancelled)));
        }
        let result = result.map_err(|error| Failure::of(format!("verify point {}", short(&point.id)), &*on, &error));
        let result = PointResult { point, result, elapsed: point_begun.elapsed() };
        progress.pause();
        result.show(context, arguments.level);
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
                    LevelArg::Full => format!("every byte read and hashed   {}", size(report.read_bytes)),
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

fn level_name(level: LevelArg) -> &'static str {
    match level {
        LevelArg::Structure => "structure",
        LevelArg::Full => "full",
    }
}

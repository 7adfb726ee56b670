//! `points hold`, `points release`, `points delete`.

use std::sync::Arc;

use backup::hold::{Hold, hold_points, holds_of, release_points};
use backup::retention::{delete_points, deletion_obstacles};
use backup::{Point, select_point};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use kopia_repo::Repository;
use serde_json::{Value, json};

use super::backup::short;
use crate::confirm::confirm;
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::outcome::Outcome;
use crate::output::{json_document, line, note};
use crate::units::{self, visible};

/// `points hold`
pub fn hold(
    context: &Context,
    repo: &Arc<Repository>,
    selectors: &[String],
    reason: &str,
    until: Option<Timestamp>,
) -> Result<Outcome, Failure> {
    let what = "hold points";
    let on = repo.display_name();
    if until.is_some_and(|until| until <= Timestamp::now()) {
        return Err(Failure::new(what, on, Code::Usage, "--until is in the past")
            .with_steps(&["give a time to come", "leave --until out: the hold then lasts until it is released"]));
    }
    let hold = Hold::new(reason, until).map_err(|error| Failure::new(what, &*on, Code::Usage, error.to_string()))?;
    let points = select_all(repo, selectors, what, &on)?;
    let held = hold_points(repo, &ids_of(&points), &hold).attempt(what, &*on)?;
    show(context, &held, "held", |_| format!("held   {}", hold_text(context, &hold)));
    Ok(Outcome::DONE)
}

/// `points release`
pub fn release(context: &Context, repo: &Arc<Repository>, selectors: &[String]) -> Result<Outcome, Failure> {
    let what = "release points";
    let on = repo.display_name();
    let before = select_all(repo, selectors, what, &on)?;
    let released = release_points(repo, &ids_of(&before)).attempt(what, &*on)?;
    show(context, &released, "released", |id| {
        let holds = before.iter().find(|point| point.id == id).map(holds_of).unwrap_or_default();
        match &holds[..] {
            [] => "was not held".to_owned(),
            holds => {
                let texts: Vec<String> = holds.iter().map(|hold| hold_text(context, hold)).collect();
                format!("released   was held: {}", texts.join("; "))
            }
        }
    });
    Ok(Outcome::DONE)
}

/// `points delete`
pub fn delete(
    context: &Context,
    repo: &Arc<Repository>,
    selectors: &[String],
    is_dry_run: bool,
    confirmed: &[String],
) -> Result<Outcome, Failure> {
    let what = "delete points";
    let on = repo.display_name();
    let points = select_all(repo, selectors, what, &on)?;
    let ids = ids_of(&points);
    let now = Timestamp::now();
    let obstacles = deletion_obstacles(repo, &ids, now).attempt(what, &*on)?;
    if !obstacles.is_empty() {
        let error = backup::BackupError::PointsProtected { obstacles };
        return Err(Failure::of(what, on, &error));
    }
    if is_dry_run {
        show(context, &points, "would_delete", |_| "would be deleted".to_owned());
        return Ok(Outcome::DONE);
    }
    let mut names: Vec<&str> = points.iter().map(|point| point.vm_name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let deed = match points.len() {
        1 => format!("delete point {} of {}", short(&points[0].id), names.join(", ")),
        count => format!("delete {} of {}", units::points(count), names.join(", ")),
    };
    confirm(context, &deed, &on, &names, confirmed)?;
    let deleted = delete_points(repo, &ids, now).attempt(deed, &*on)?;
    show(context, &deleted, "deleted", |_| "deleted".to_owned());
    note_on_space(context);
    Ok(Outcome::DONE)
}

/// Deleted points take up space until maintenance has run.
pub fn note_on_space(context: &Context) {
    if !context.global.json && !context.global.quiet {
        note("their space is free after maintenance: `kopia maintenance run --full` (docs/operator-guide.md)");
    }
}

/// The points that the selectors name, each once; the first that names none fails all.
fn select_all(repo: &Repository, selectors: &[String], what: &str, on: &str) -> Result<Vec<Point>, Failure> {
    let mut points: Vec<Point> = Vec::with_capacity(selectors.len());
    for selector in selectors {
        let point = select_point(repo, selector).attempt(format!("{what}: {selector}"), on)?;
        if points.iter().all(|known| known.id != point.id) {
            points.push(point);
        }
    }
    Ok(points)
}

fn ids_of(points: &[Point]) -> Vec<String> {
    points.iter().map(|point| point.id.clone()).collect()
}

fn show(context: &Context, points: &[Point], done: &str, text: impl Fn(&str) -> String) {
    if context.global.json {
        let points: Vec<Value> = points.iter().map(|point| point_json(point, done)).collect();
        return json_document(&json!({ "points": points }));
    }
    for point in points {
        if context.global.quiet {
            line(&point.id);
        } else {
            line(&visible(&format!(
                "{}  {}  {}   {}",
                short(&point.id),
                point.vm_name,
                context.time(point.started()),
                text(&point.id)
            )));
        }
    }
}

fn point_json(point: &Point, done: &str) -> Value {
    json!({
        "point_id": point.id,
        "snapshot_id": point.snapshot.id,
        "vm_id": point.vm_id,
        "vm_name": point.vm_name,
        "started": point.started().to_string(),
        "done": done,
        "holds": holds_json(&holds_of(point)),
    })
}

/// Holds, as scripts see them.
pub fn holds_json(holds: &[Hold]) -> Value {
    let now = Timestamp::now();
    holds
        .iter()
        .map(|hold| {
            json!({
                "hold_reason": hold.reason(),
                "until": hold.until().map(|until| until.to_string()),
                "is_over": hold.is_over(now),
                "pin": hold.pin(),
            })
        })
        .collect()
}

/// A hold, for people.
pub fn hold_text(context: &Context, hold: &Hold) -> String {
    let until = hold.until().map(|until| {
        let word = if hold.is_over(Timestamp::now()) { "over since" } else { "until" };
        format!("{word} {}", context.time(until))
    });
    match (hold.reason(), until) {
        ("", None) => "until it is released".to_owned(),
        ("", Some(until)) => until,
        (reason, None) => reason.to_owned(),
        (reason, Some(until)) => format!("{reason}, {until}"),
    }
}

/// The cell of a table: what holds the point now.
pub fn hold_cell(context: &Context, holds: &[Hold]) -> String {
    let now = Timestamp::now();
    let texts: Vec<String> =
        holds.iter().filter(|hold| !hold.is_over(now)).map(|hold| hold_text(context, hold)).collect();
    if texts.is_empty() { "–".to_owned() } else { texts.join("; ") }
}

/// Reads the end of a hold: an instant (RFC 3339), a date or local time, or a time from now (`30d`, `12h`).
pub fn parse_until(text: &str) -> Result<Timestamp, String> {
    let text = text.trim();
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    if let Ok(local) = text.parse::<DateTime>() {
        return TimeZone::system().to_timestamp(local).map_err(|error| error.to_string());
    }
    let wrong = || format!("{text:?} is no time: give 2027-01-31, 2027-01-31T18:00:00Z or a time from now such as 30d");
    let digits = text.strip_prefix('+').unwrap_or(text);
    let unit_at = digits.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = digits.split_at(unit_at);
    let hours = match unit {
        "h" => 1,
        "d" => 24,
        "w" => 7 * 24,
        _ => return Err(wrong()),
    };
    let hours = number.parse::<i64>().ok().and_then(|number| number.checked_mul(hours)).ok_or_else(wrong)?;
    let seconds = hours.checked_mul(3600).ok_or_else(wrong)?;
    // To the second, since it is read by people.
    let at = Timestamp::now().as_second().checked_add(seconds).ok_or_else(wrong)?;
    Timestamp::from_second(at).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_holds_are_read() {
        assert_eq!(parse_until("2027-01-31T18:00:00Z").unwrap().to_string(), "2027-01-31T18:00:00Z");
        for (text, local) in [("2027-01-31", "2027-01-31 00:00"), ("2027-01-31T18:30", "2027-01-31 18:30")] {
            let at = TimeZone::system().to_datetime(parse_until(text).unwrap());
            assert_eq!(at.strftime("%Y-%m-%d %H:%M").to_string(), local);
        }
        for (text, hours) in [("12h", 12), ("+30d", 720), ("2w", 336)] {
            let ahead = parse_until(text).unwrap().duration_since(Timestamp::now());
            assert!((ahead.as_secs() - hours * 3600).abs() < 60, "{text}: {ahead:?}");
        }
        for text in ["", "soon", "30", "-3d", "d", "3 days", "99999999999999999999d", "9999999999999w", "2027-02-30"] {
            assert!(parse_until(text).is_err(), "{text}");
        }
    }
}

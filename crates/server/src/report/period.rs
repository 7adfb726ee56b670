//! The period of a report: days of somebody's calendar, or instants.

use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

/// The longest period.
const MOST_DAYS: i64 = 400;

/// From and to. A day stands for its beginning as `from` and for its end as `to`, by the wall clock of the zone.
pub fn period(
    from: Option<&str>,
    to: Option<&str>,
    zone: &TimeZone,
    now: Timestamp,
) -> Result<(Timestamp, Timestamp), (&'static str, String)> {
    let to = match to {
        Some(text) => instant(text, zone, true).map_err(|why| ("to", why))?.min(now),
        None => now,
    };
    let from = match from {
        Some(text) => instant(text, zone, false).map_err(|why| ("from", why))?,
        None => {
            let day = zone.to_datetime(to).date();
            day.checked_sub(30.days()).ok().and_then(|day| begin(day, zone)).unwrap_or(to)
        }
    };
    if from >= to {
        return Err(("from", "is not before the end of the period".into()));
    }
    if to.duration_since(from).as_hours() > MOST_DAYS * 24 {
        return Err(("from", format!("is more than {MOST_DAYS} days before the end of the period")));
    }
    Ok((from, to))
}

fn instant(text: &str, zone: &TimeZone, is_end: bool) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let wrong = || format!("{text:?} is neither a day like 2026-11-01 nor an RFC 3339 time");
    if text.len() != 10 {
        return Err(wrong());
    }
    let day: Date = text.parse().map_err(|_| wrong())?;
    let day = if is_end { day.checked_add(1.day()).map_err(|_| wrong())? } else { day };
    begin(day, zone).ok_or_else(wrong)
}

/// When a day begins there; not at midnight where the clock skips it.
pub fn begin(day: Date, zone: &TimeZone) -> Option<Timestamp> {
    zone.to_timestamp(day.to_datetime(Time::midnight())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_the_zones_and_the_clock_changes_in_them() {
        let zone = TimeZone::get("Europe/Berlin").expect("zone");
        let now: Timestamp = "2026-11-27T12:00:00Z".parse().expect("time");
        for (from, to, expected) in [
            (Some("2026-10-01"), Some("2026-10-31"), Some(("2026-09-30T22:00:00Z", "2026-10-31T23:00:00Z"))),
            (Some("2026-11-01"), None, Some(("2026-10-31T23:00:00Z", "2026-11-27T12:00:00Z"))),
            (Some("2026-11-01"), Some("2027-01-01"), Some(("2026-10-31T23:00:00Z", "2026-11-27T12:00:00Z"))),
            (None, Some("2026-11-10"), Some(("2026-10-11T22:00:00Z", "2026-11-10T23:00:00Z"))),
            (
                Some("2026-11-01T00:00:00Z"),
                Some("2026-11-02T00:00:00Z"),
                Some(("2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z")),
            ),
            (Some("2026-11-28"), None, None),
            (Some("2024-11-28"), None, None),
            (Some("yesterday"), None, None),
            (Some("2026-13-01"), None, None),
            (None, Some("-9999-01-01"), None),
        ] {
            let is = period(from, to, &zone, now).ok();
            let expected = expected.map(|(from, to)| (from.parse().expect("time"), to.parse().expect("time")));
            assert_eq!(is, expected, "{from:?} to {to:?}");
        }
    }
}

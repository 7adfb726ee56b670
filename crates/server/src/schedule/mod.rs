//! When a job runs (spec control-api 4.4): plain words or cron, in a time zone with its clock changes. All of it pure.
//!
//! A rule that names its hour gives one slot for every day that fits, also on the day when that hour is missing (then
//! as much later) or comes twice (then the first). A rule for every hour goes by the hours that really pass.

pub mod cron;
mod due;
pub mod window;

use std::collections::BTreeSet;

use control_api::job::Schedule;
use control_api::words::ScheduleType;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _, ZonedDateTime};
use serde_json::Value;

pub use cron::Cron;
pub use due::{Due, Outcome, due, jitter};
pub use window::Window;

use crate::clock::after;

/// A schedule that was understood.
#[derive(Debug, Clone)]
pub struct Plan {
    /// None: only when asked.
    rule: Option<Cron>,
    zone: TimeZone,
    blackout: Vec<Window>,
    /// A slot that was missed runs once, if it is under a day old.
    pub catch_up: bool,
}

/// No rule reaches further than this: the 29th of February comes within eight years.
const HORIZON_DAYS: i64 = 9 * 366;

impl Plan {
    /// Understands a schedule; else which field is wrong, and why.
    pub fn parse(schedule: &Schedule, zone: &str) -> Result<Plan, (String, String)> {
        let wrong = |field: &str, why: String| (format!("schedule_json.{field}"), why);
        let zone = TimeZone::get(zone)
            .map_err(|_| ("timezone".to_owned(), format!("{zone:?} is no time zone of the IANA database")))?;
        let time = || -> Result<Time, (String, String)> {
            let text = schedule.time.as_deref().ok_or_else(|| wrong("time", "is missing".into()))?;
            window::clock(text).ok_or_else(|| wrong("time", format!("{text:?} is no time of day like 22:00")))
        };
        let at = |time: Time, days: BTreeSet<i8>| Cron::at(time.hour(), time.minute(), days);
        let every_day: BTreeSet<i8> = (1..=7).collect();
        let rule = match schedule.kind.unwrap_or(ScheduleType::Manual) {
            ScheduleType::Manual => None,
            ScheduleType::Hourly => {
                let minute = schedule.minute.unwrap_or(0);
                let minute = i8::try_from(minute).ok().filter(|minute| (0..60).contains(minute));
                Some(Cron::hourly(minute.ok_or_else(|| wrong("minute", "is not 0 to 59".into()))?))
            }
            ScheduleType::Daily => Some(at(time()?, every_day)),
            ScheduleType::Weekly => {
                let days = weekdays(schedule.weekday.as_ref()).map_err(|why| wrong("weekday", why))?;
                Some(at(time()?, days))
            }
            ScheduleType::Cron => {
                let text = schedule.cron.as_deref().ok_or_else(|| wrong("cron", "is missing".into()))?;
                Some(text.parse().map_err(|why| wrong("cron", why))?)
            }
        };
        let mut blackout = Vec::new();
        for window in &schedule.blackout {
            blackout.push(Window::parse(window).map_err(|why| wrong("blackout", why))?);
        }
        Ok(Plan { rule, zone, blackout, catch_up: schedule.catch_up.unwrap_or(true) })
    }

    /// The first slot after that instant.
    pub fn next_after(&self, at: Timestamp) -> Option<Timestamp> {
        let rule = self.rule.as_ref()?;
        let mut from = at;
        // A blackout may swallow a year of slots, but a schedule that lies in it altogether has none.
        for _ in 0..10_000 {
            let slot = if rule.is_every_hour() { self.by_the_hour(rule, from) } else { self.by_the_day(rule, from) }?;
            let local = self.zone.to_datetime(slot);
            if !self.blackout.iter().any(|window| window.contains(local)) {
                return Some(slot);
            }
            from = slot;
        }
        None
    }

    /// The next slots.
    pub fn slots(&self, from: Timestamp, count: usize) -> Vec<Timestamp> {
        std::iter::successors(self.next_after(from), |slot| self.next_after(*slot)).take(count).collect()
    }

    /// One slot for every local day and time that fits.
    fn by_the_day(&self, rule: &Cron, at: Timestamp) -> Option<Timestamp> {
        // A time that is missing today was moved to later, and one before it may still come: begin a day early.
        let first = self.zone.to_datetime(at).date().checked_sub(1.day()).ok()?;
        for days in 0..HORIZON_DAYS {
            let date = first.checked_add(days.days()).ok()?;
            if rule.fits_day(date) {
                let slots = rule.times().filter_map(|(hour, minute)| self.instant(date, hour, minute));
                if let Some(slot) = slots.filter(|slot| *slot > at).min() {
                    return Some(slot);
                }
            }
        }
        None
    }

    fn instant(&self, date: Date, hour: i8, minute: i8) -> Option<Timestamp> {
        let local = DateTime::from_parts(date, Time::new(hour, minute, 0, 0).ok()?);
        self.zone.to_ambiguous_timestamp(local).compatible().ok()
    }

    /// Every real minute that fits.
    fn by_the_hour(&self, rule: &Cron, at: Timestamp) -> Option<Timestamp> {
        let mut minute = after(Timestamp::from_second(at.as_second().div_euclid(60) * 60).ok()?, 60);
        let end = after(at, HORIZON_DAYS * 86_400);
        while minute < end {
            let local = ZonedDateTime::new(minute, self.zone.clone());
            if !rule.fits_day(local.date()) {
                minute = local.tomorrow().ok()?.start_of_day().ok()?.timestamp();
            } else if rule.fits_minute(local.minute()) {
                return Some(minute);
            } else {
                minute = after(minute, 60);
            }
        }
        None
    }

    /// How old a VM's newest point may be by this schedule: its longest gap in the next 14 days, and two hours
    /// (console 0.4). A job without slots promises nothing for two weeks.
    pub fn target(&self, now: Timestamp) -> SignedDuration {
        let two_weeks = after(now, 14 * 86_400);
        let mut longest = None;
        let mut slot = self.next_after(now);
        while let Some(from) = slot {
            let to = self.next_after(from);
            if let Some(to) = to
                && (from < two_weeks || longest.is_none())
            {
                longest = longest.max(Some(to.duration_since(from)));
            }
            slot = to.filter(|_| from < two_weeks);
        }
        longest.unwrap_or(SignedDuration::from_hours(14 * 24)) + SignedDuration::from_hours(2)
    }
}

/// Days as a number, a list or text with commas; 1 is Monday.
fn weekdays(value: Option<&Value>) -> Result<BTreeSet<i8>, String> {
    let words: Vec<String> = match value {
        None | Some(Value::Null) => return Err("is missing".into()),
        Some(Value::Array(list)) => list.iter().map(|day| day.to_string().trim_matches('"').to_owned()).collect(),
        Some(Value::String(text)) => text.split(',').map(|day| day.trim().to_owned()).collect(),
        Some(other) => vec![other.to_string()],
    };
    let days: Result<BTreeSet<i8>, String> = words
        .iter()
        .map(|word| word.parse().ok().filter(|day| (1..=7).contains(day)).ok_or(format!("{word:?} is not 1 to 7")))
        .collect();
    days.and_then(|days| if days.is_empty() { Err("names no day".into()) } else { Ok(days) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan(schedule: Value, zone: &str) -> Plan {
        Plan::parse(&serde_json::from_value(schedule).expect("schedule"), zone).expect("understood")
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("time")
    }

    #[test]
    fn slots_follow_the_wall_clock() {
        let daily = json!({"type": "daily", "time": "02:30"});
        for (case, schedule, zone, from, expected) in [
            ("daily", &daily, "UTC", "2026-01-01T00:00:00Z", vec!["2026-01-01T02:30:00Z", "2026-01-02T02:30:00Z"]),
            ("a slot is after, never at", &daily, "UTC", "2026-01-01T02:30:00Z", vec!["2026-01-02T02:30:00Z"]),
            // Berlin, 29 March 2026: 02:00 to 03:00 does not exist; the slot comes at 03:30, once.
            (
                "a missing hour",
                &daily,
                "Europe/Berlin",
                "2026-03-28T00:00:00Z",
                vec!["2026-03-28T01:30:00Z", "2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z"],
            ),
            // Berlin, 25 October 2026: 02:30 comes twice; the slot is the first.
            (
                "a doubled hour",
                &daily,
                "Europe/Berlin",
                "2026-10-24T12:00:00Z",
                vec!["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
            ),
            (
                "hourly goes on through the doubled hour",
                &json!({"type": "hourly", "minute": 30}),
                "Europe/Berlin",
                "2026-10-24T23:45:00Z",
                vec!["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"],
            ),
            (
                "hourly has no slot in the missing hour",
                &json!({"type": "hourly"}),
                "Europe/Berlin",
                "2026-03-29T00:30:00Z",
                vec!["2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"],
            ),
            (
                "weekly on days given as text",
                &json!({"type": "weekly", "time": "22:00", "weekday": "1,5"}),
                "UTC",
                "2026-11-27T22:00:00Z",
                vec!["2026-11-30T22:00:00Z", "2026-12-04T22:00:00Z"],
            ),
            (
                "a leap day",
                &json!({"type": "cron", "cron": "0 0 29 2 *"}),
                "UTC",
                "2026-01-01T00:00:00Z",
                vec!["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"],
            ),
            (
                "both day fields restrict: Friday the 13th",
                &json!({"type": "cron", "cron": "0 6 13 * 5"}),
                "UTC",
                "2026-01-01T00:00:00Z",
                vec!["2026-02-13T06:00:00Z", "2026-03-13T06:00:00Z", "2026-11-13T06:00:00Z"],
            ),
            (
                "not in a blackout",
                &json!({"type": "hourly", "blackout": [{"days": [1, 2, 3, 4, 5], "from": "08:00", "to": "18:00"}]}),
                "UTC",
                "2026-11-27T06:30:00Z",
                vec!["2026-11-27T07:00:00Z", "2026-11-27T18:00:00Z"],
            ),
            // Lord Howe moves by half an hour: 02:00 to 02:30 is missing on 4 October 2026.
            (
                "half an hour",
                &json!({"type": "daily", "time": "02:15"}),
                "Australia/Lord_Howe",
                "2026-10-03T00:00:00Z",
                vec!["2026-10-03T15:45:00Z", "2026-10-04T15:15:00Z"],
            ),
        ] {
            let plan = plan(schedule.clone(), zone);
            let expected: Vec<Timestamp> = expected.into_iter().map(at).collect();
            assert_eq!(plan.slots(at(from), expected.len()), expected, "{case}");
        }
    }

    #[test]
    fn a_day_has_one_daily_slot_in_every_zone_and_year() {
        for zone in
            ["Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Casablanca"]
        {
            for time in ["00:00", "01:30", "02:00", "02:30", "03:00", "23:59"] {
                let plan = plan(json!({"type": "daily", "time": time}), zone);
                let slots = plan.slots(at("2018-01-01T12:00:00Z"), 800);
                for pair in slots.windows(2) {
                    let hours = pair[1].duration_since(pair[0]).as_hours();
                    assert!((22..=26).contains(&hours), "{zone} {time}: {} and {}", pair[0], pair[1]);
                }
            }
        }
    }

    #[test]
    fn the_target_is_the_longest_gap_and_two_hours() {
        let now = at("2026-11-27T12:00:00Z");
        for (case, schedule, hours) in [
            ("daily", json!({"type": "daily", "time": "22:00"}), 26),
            ("weekdays only", json!({"type": "weekly", "time": "22:00", "weekday": [1, 2, 3, 4, 5]}), 74),
            ("hourly", json!({"type": "hourly"}), 3),
            ("once a week", json!({"type": "weekly", "time": "22:00", "weekday": 7}), 170),
            ("first of the month", json!({"type": "cron", "cron": "0 0 1 * *"}), 31 * 24 + 2),
            ("only when asked", json!({"type": "manual"}), 14 * 24 + 2),
        ] {
            assert_eq!(plan(schedule, "UTC").target(now).as_hours(), hours, "{case}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (schedule, zone, field) in [
            (json!({"type": "daily"}), "UTC", "schedule_json.time"),
            (json!({"type": "daily", "time": "24:00"}), "UTC", "schedule_json.time"),
            (json!({"type": "weekly", "time": "22:00"}), "UTC", "schedule_json.weekday"),
            (json!({"type": "weekly", "time": "22:00", "weekday": [8]}), "UTC", "schedule_json.weekday"),
            (json!({"type": "hourly", "minute": 60}), "UTC", "schedule_json.minute"),
            (json!({"type": "cron", "cron": "* * *"}), "UTC", "schedule_json.cron"),
            (json!({"type": "daily", "time": "22:00"}), "Mars/Olympus", "timezone"),
            (json!({"type": "manual", "blackout": [{"from": "8", "to": "9"}]}), "UTC", "schedule_json.blackout"),
        ] {
            let parsed = Plan::parse(&serde_json::from_value(schedule.clone()).expect("schedule"), zone);
            assert_eq!(parsed.expect_err("refused").0, field, "{schedule}");
        }
    }
}

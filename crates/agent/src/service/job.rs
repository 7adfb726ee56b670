//! Jobs of the configuration: which VMs, when.
//!
//! ```toml
//! [[job]]
//! name = "nightly"
//! at = "22:00"               # local time; or every = "4h"
//! days = ["mon", "fri"]      # all, if left out
//! vms = ["DC01", "SQL*"]     # all, if left out
//! except = ["*-test"]
//! consistency = "application-required"
//! ```

use std::time::Duration;

use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cli::ConsistencyArg;
use crate::limits::Limits;
use crate::units::{duration, parse_duration};

/// Shortest distance between two runs of a job.
const MIN_EVERY: Duration = Duration::from_secs(1);

/// One job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// What a person calls it; unique.
    pub name: String,
    /// Time of day, local.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "at")]
    pub at: Option<Time>,
    /// Distance from one start to the next, in place of a time of day.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "distance")]
    pub every: Option<Duration>,
    /// Days of the week; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Day>,
    /// Names, ids or patterns with `*`; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vms: Vec<String>,
    /// Names, ids or patterns of VMs that are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
    /// What to ask of the guest.
    #[serde(default)]
    pub consistency: ConsistencyArg,
    /// What it does not exceed, beside what the whole agent does not.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names are the definition
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Day {
    /// As the calendar has it.
    pub fn weekday(self) -> Weekday {
        match self {
            Self::Mon => Weekday::Monday,
            Self::Tue => Weekday::Tuesday,
            Self::Wed => Weekday::Wednesday,
            Self::Thu => Weekday::Thursday,
            Self::Fri => Weekday::Friday,
            Self::Sat => Weekday::Saturday,
            Self::Sun => Weekday::Sunday,
        }
    }
}

impl Job {
    /// What is wrong with it, in a sentence.
    pub fn problem(&self) -> Option<String> {
        match (self.at, self.every) {
            (None, None) => Some("it says neither `at` nor `every`".into()),
            (Some(_), Some(_)) => Some("it says both `at` and `every`".into()),
            (None, Some(every)) if every < MIN_EVERY => Some("`every` is less than a second".into()),
            (None, Some(_)) if !self.days.is_empty() => Some("`days` goes with `at`, not with `every`".into()),
            _ if self.name.trim().is_empty() => Some("its name is empty".into()),
            _ if self.limits.vms_at_once.is_some() || self.limits.disks_at_once.is_some() => {
                Some("`vms_at_once` and `disks_at_once` belong under `[limits]`, for the whole agent".into())
            }
            _ => None,
        }
    }

    /// When it is due, if it last began at `last`: now or in the past when that was missed.
    ///
    /// A job that never ran is due at its next time of day, or at once if it runs by distance. A time of day that a
    /// change of clocks leaves out is taken as late as it would have been; one that comes twice is taken once.
    pub fn due(&self, last: Option<Timestamp>, now: Timestamp, zone: &TimeZone) -> Timestamp {
        if let Some(every) = self.every {
            let every = SignedDuration::try_from(every).unwrap_or(SignedDuration::MAX);
            return last.map_or(now, |last| last.saturating_add(every).unwrap_or(Timestamp::MAX));
        }
        let at = self.at.unwrap_or(Time::midnight());
        let after = last.unwrap_or(now);
        let mut date = after.to_zoned_datetime(zone.clone()).date();
        // A week and a day hold every weekday after `after`.
        for _ in 0..=8 {
            let fits = self.days.is_empty() || self.days.iter().any(|day| day.weekday() == date.weekday());
            if fits
                && let Ok(due) = date.to_datetime(at).to_zoned_datetime(zone.clone())
                && due.timestamp() > after
            {
                return due.timestamp();
            }
            match date.checked_add(1.day()) {
                Ok(next) => date = next,
                Err(_) => break,
            }
        }
        Timestamp::MAX
    }

    /// Whether it covers a VM.
    pub fn covers(&self, name: &str, id: &str) -> bool {
        let any = |patterns: &[String]| {
            patterns.iter().any(|pattern| matches(pattern, name) || pattern.eq_ignore_ascii_case(id))
        };
        (self.vms.is_empty() || any(&self.vms)) && !any(&self.except)
    }

    /// When it runs, in words.
    pub fn schedule(&self) -> String {
        match (self.at, self.every) {
            (_, Some(every)) => format!("every {}", duration(every)),
            (Some(at), None) => {
                let days: Vec<String> = self.days.iter().map(|day| format!("{day:?}").to_lowercase()).collect();
                let days = if days.is_empty() { "daily".to_owned() } else { days.join(", ") };
                format!("{days} at {}", at.strftime("%H:%M"))
            }
            (None, None) => "never".into(),
        }
    }
}

/// Whether `pattern`, in which `*` stands for any text, matches all of `text`, without regard to case.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.to_lowercase(), text.to_lowercase());
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Reads `22:00`.
pub fn time_of_day(text: &str) -> Result<Time, String> {
    Time::strptime("%H:%M", text).map_err(|_| format!("{text:?} is no time of day such as \"22:00\""))
}

mod at {
    use super::*;

    pub fn serialize<S: Serializer>(at: &Option<Time>, serializer: S) -> Result<S::Ok, S::Error> {
        at.map(|at| at.strftime("%H:%M").to_string()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Time>, D::Error> {
        super::time_of_day(&String::deserialize(deserializer)?).map(Some).map_err(serde::de::Error::custom)
    }
}

mod distance {
    use super::*;

    pub fn serialize<S: Serializer>(every: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        every.map(|every| format!("{}s", every.as_secs())).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text).map(Some).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(toml: &str) -> Result<Job, toml::de::Error> {
        toml::from_str(&format!("name = \"j\"\n{toml}"))
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn jobs_are_due_when_a_person_expects() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        // What the job says, when it last began, what time it is, when it is due; all but the first in UTC.
        for (toml, last, now, due) in [
            // Never ran: the next time of day, never the one before.
            ("at = \"22:00\"", None, "2026-11-26T20:59:00Z", "2026-11-26T21:00:00Z"),
            ("at = \"22:00\"", None, "2026-11-26T21:00:00Z", "2026-11-27T21:00:00Z"),
            // Ran yesterday; missed nights are made up for once.
            ("at = \"22:00\"", Some("2026-11-25T21:00:03Z"), "2026-11-26T08:00:00Z", "2026-11-26T21:00:00Z"),
            ("at = \"22:00\"", Some("2026-11-20T21:00:03Z"), "2026-11-26T08:00:00Z", "2026-11-21T21:00:00Z"),
            // Thursday to Monday.
            ("at = \"22:00\"\ndays = [\"mon\"]", None, "2026-11-26T08:00:00Z", "2026-11-30T21:00:00Z"),
            ("at = \"22:00\"\ndays = [\"thu\"]", None, "2026-11-26T22:00:00Z", "2026-12-03T21:00:00Z"),
            // 02:30 does not exist on the last Sunday of March, and comes twice on the last of October.
            ("at = \"02:30\"", None, "2026-03-28T23:00:00Z", "2026-03-29T01:30:00Z"),
            ("at = \"02:30\"", None, "2026-10-24T23:00:00Z", "2026-10-25T00:30:00Z"),
            ("at = \"02:30\"", Some("2026-10-25T00:30:01Z"), "2026-10-25T00:31:00Z", "2026-10-26T01:30:00Z"),
            // By distance: at once, then from start to start.
            ("every = \"4h\"", None, "2026-11-26T08:00:00Z", "2026-11-26T08:00:00Z"),
            ("every = \"4h\"", Some("2026-11-26T07:00:00Z"), "2026-11-26T08:00:00Z", "2026-11-26T11:00:00Z"),
        ] {
            let job = job(toml).unwrap();
            assert_eq!(job.problem(), None, "{toml}");
            assert_eq!(job.due(last.map(time), time(now), &berlin), time(due), "{toml}, last {last:?}, now {now}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_said() {
        for (toml, problem) in [
            ("", "neither"),
            ("at = \"22:00\"\nevery = \"4h\"", "both"),
            ("every = \"4h\"\ndays = [\"mon\"]", "`days`"),
        ] {
            assert!(job(toml).unwrap().problem().unwrap().contains(problem), "{toml}");
        }
        for (toml, problem) in [
            ("at = \"25:00\"", "no time of day"),
            ("every = \"soon\"", "soon"),
            ("days = [\"monday\"]", "monday"),
            ("att = \"22:00\"", "att"),
        ] {
            let error = job(toml).unwrap_err().to_string();
            assert!(error.contains(problem), "{toml}: {error}");
        }
    }

    #[test]
    fn patterns_cover_whole_names() {
        for (pattern, text, expected) in [
            ("DC01", "dc01", true),
            ("DC01", "DC011", false),
            ("*", "", true),
            ("SQL*", "sql-2", true),
            ("*-test", "web-test", true),
            ("*-test", "web-test-2", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("é*", "ÉCOLE", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
        let job = job("at = \"22:00\"\nvms = [\"SQL*\"]\nexcept = [\"*-test\"]").unwrap();
        assert!(job.covers("SQL01", "X") && !job.covers("SQL-test", "X") && !job.covers("DC01", "X"));
    }
}

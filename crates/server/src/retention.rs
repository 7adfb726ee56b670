//! What a policy keeps (spec control-api 4.5): a pure function over the points of one VM.

use std::collections::BTreeSet;

use control_api::Object;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

/// How many points of each kind are kept; all zero keeps everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    last: usize,
    days: i64,
    hourly: usize,
    daily: usize,
    weekly: usize,
    monthly: usize,
    yearly: usize,
    /// Everything goes that nothing else keeps; must be spelled.
    delete_all: bool,
}

/// One point.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its row.
    pub id: i64,
    /// The instant that it holds.
    pub at: Timestamp,
    /// It can be restored.
    pub is_complete: bool,
    /// The next incremental counts from it.
    pub is_base: bool,
    /// Held, immutable, or in use.
    pub is_pinned: bool,
}

impl Policy {
    /// Reads `retention_json`, flat or nested under `retention`.
    pub fn parse(policy: &Object) -> Result<Policy, String> {
        let inner = policy.get("retention").and_then(Value::as_object).unwrap_or(policy);
        let number = |key: &str| -> Result<usize, String> {
            match inner.get(key) {
                None | Some(Value::Null) => Ok(0),
                Some(value) => {
                    let number = value.as_u64().filter(|number| *number <= 999_999);
                    let number = number.and_then(|number| usize::try_from(number).ok());
                    number.ok_or_else(|| format!("{key} is not 0 to 999,999"))
                }
            }
        };
        Ok(Policy {
            last: number("keep_last")?,
            days: i64::try_from(number("keep_days")?).unwrap_or(0),
            hourly: number("hourly")?,
            daily: number("daily")?,
            weekly: number("weekly")?,
            monthly: number("monthly")?,
            yearly: number("yearly")?,
            delete_all: inner.get("delete_all").and_then(Value::as_bool).unwrap_or(false),
        })
    }

    fn keeps_everything(self) -> bool {
        self == Policy::default()
    }
}

/// Each point with the rules that keep it, newest first; none means that it goes.
pub fn verdicts(
    points: &[Candidate],
    policy: Policy,
    zone: &TimeZone,
    now: Timestamp,
) -> Vec<(Candidate, Vec<&'static str>)> {
    let mut points = points.to_vec();
    points.sort_by_key(|point| std::cmp::Reverse((point.at, point.id)));
    let newest_complete = points.iter().find(|point| point.is_complete).map(|point| point.id);
    let mut periods = [
        Period::new("hourly", policy.hourly),
        Period::new("daily", policy.daily),
        Period::new("weekly", policy.weekly),
        Period::new("monthly", policy.monthly),
        Period::new("yearly", policy.yearly),
    ];
    let mut verdicts = Vec::new();
    for (rank, point) in points.into_iter().enumerate() {
        let local = zone.to_datetime(point.at);
        let (year, month, day) = (i32::from(local.year()), i32::from(local.month()), i32::from(local.day()));
        let week = local.date().iso_week_date();
        let names = [
            [year, month, day, i32::from(local.hour())],
            [year, month, day, 0],
            [i32::from(week.year()), i32::from(week.week()), 0, 0],
            [year, month, 0, 0],
            [year, 0, 0, 0],
        ];
        let mut kept_by = Vec::new();
        // The newest of each hour, day, week, month and year, as many as there are to keep.
        for (period, name) in periods.iter_mut().zip(names) {
            if point.is_complete && period.takes(name) {
                kept_by.push(period.rule);
            }
        }
        let is_young = now.duration_since(point.at).as_secs() < policy.days.saturating_mul(86_400);
        for (rule, holds) in [
            ("keep_last", rank < policy.last),
            ("keep_days", is_young),
            ("no policy", policy.keeps_everything()),
            ("newest", Some(point.id) == newest_complete),
            ("base of the next backup", point.is_base),
            ("held", point.is_pinned),
        ] {
            if holds {
                kept_by.push(rule);
            }
        }
        verdicts.push((point, kept_by));
    }
    verdicts
}

struct Period {
    rule: &'static str,
    most: usize,
    seen: BTreeSet<[i32; 4]>,
}

impl Period {
    fn new(rule: &'static str, most: usize) -> Period {
        Period { rule, most, seen: BTreeSet::new() }
    }

    fn takes(&mut self, name: [i32; 4]) -> bool {
        self.seen.len() < self.most && self.seen.insert(name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kept(policy: Value, zone: &str, points: &[Candidate]) -> Vec<i64> {
        let policy = Policy::parse(policy.as_object().expect("object")).expect("policy");
        let zone = TimeZone::get(zone).expect("zone");
        let now = "2026-11-27T12:00:00Z".parse().expect("time");
        let kept = verdicts(points, policy, &zone, now).into_iter().filter(|(_, rules)| !rules.is_empty());
        kept.map(|(point, _)| point.id).collect()
    }

    fn point(id: i64, at: &str) -> Candidate {
        Candidate { id, at: at.parse().expect("time"), is_complete: true, is_base: false, is_pinned: false }
    }

    #[test]
    fn a_policy_keeps_the_newest_of_each_period() {
        let days = [
            point(1, "2026-09-30T22:00:00Z"),
            point(2, "2026-11-20T22:00:00Z"),
            point(3, "2026-11-25T22:00:00Z"),
            point(4, "2026-11-26T21:00:00Z"),
            point(5, "2026-11-26T22:00:00Z"),
        ];
        for (case, policy, zone, expected) in [
            ("nothing said keeps all", json!({}), "UTC", vec![5, 4, 3, 2, 1]),
            ("all zero is nothing said", json!({"daily": 0, "keep_last": 0}), "UTC", vec![5, 4, 3, 2, 1]),
            ("last", json!({"keep_last": 2}), "UTC", vec![5, 4]),
            ("daily", json!({"daily": 2}), "UTC", vec![5, 3]),
            ("weekly", json!({"weekly": 2}), "UTC", vec![5, 2]),
            ("monthly", json!({"monthly": 3}), "UTC", vec![5, 1]),
            // In Berlin the 30th of September at 22:00 UTC is the 1st of October.
            ("in the zone of the policy", json!({"monthly": 1, "daily": 2}), "Europe/Berlin", vec![5, 3]),
            ("days", json!({"keep_days": 3}), "UTC", vec![5, 4, 3]),
            ("nested", json!({"schema": 1, "retention": {"daily": 1}}), "UTC", vec![5]),
            ("delete all keeps the newest all the same", json!({"delete_all": true}), "UTC", vec![5]),
        ] {
            assert_eq!(kept(policy, zone, &days), expected, "{case}");
        }
    }

    #[test]
    fn what_must_not_go_stays() {
        let mut points =
            [point(1, "2026-01-01T00:00:00Z"), point(2, "2026-02-01T00:00:00Z"), point(3, "2026-03-01T00:00:00Z")];
        assert_eq!(kept(json!({"keep_last": 1}), "UTC", &points), [3]);
        points[0].is_pinned = true;
        points[1].is_base = true;
        assert_eq!(kept(json!({"keep_last": 1}), "UTC", &points), [3, 2, 1]);
        points[2].is_complete = false;
        assert_eq!(kept(json!({"delete_all": true}), "UTC", &points), [2, 1], "an incomplete one is not the newest");
        assert!(Policy::parse(json!({"daily": 1.5}).as_object().expect("object")).is_err());
        assert!(Policy::parse(json!({"daily": -1}).as_object().expect("object")).is_err());
    }
}

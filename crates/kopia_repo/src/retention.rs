//! Which snapshots of a source a policy keeps, and why: Kopia's own rules, quirks included (spec 6.6), as a pure
//! function.
//!
//! Kopia applies them after each of its snapshots of a source and in `kopia snapshot expire`; whoever plans otherwise
//! is surprised by it. What has no reason is let go, unless it is pinned.

use std::collections::HashSet;
use std::fmt;

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::format::policy::RetentionPolicy;
use crate::format::snapshot::SnapshotManifest;

/// Incomplete snapshots newer than the newest complete one stay while they are younger than this …
const INCOMPLETE_MAX_AGE: SignedDuration = SignedDuration::from_hours(4);
/// … or are among this many newest of all.
const INCOMPLETE_MIN_COUNT: usize = 3;

/// What the rules look at in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Order and periods go by it.
    pub start: Timestamp,
    /// Decides the order of equal starts.
    pub end: Timestamp,
    /// Whether the snapshot holds all it should.
    pub is_complete: bool,
}

impl From<&SnapshotManifest> for Candidate {
    fn from(manifest: &SnapshotManifest) -> Self {
        Self { start: manifest.start_time, end: manifest.end_time, is_complete: manifest.incomplete.is_empty() }
    }
}

/// A kind of limit of a [`RetentionPolicy`], in the order in which Kopia shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    /// The newest, whenever they were made.
    Latest,
    /// The newest of an hour, UTC.
    Hourly,
    /// The newest of a day, UTC.
    Daily,
    /// The newest of an ISO week in the client's time zone.
    Weekly,
    /// The newest of a month, UTC.
    Monthly,
    /// The newest of a year, UTC.
    Annual,
}

impl Period {
    /// All of them, in the order in which Kopia shows them.
    pub const ALL: [Self; 6] = [Self::Latest, Self::Hourly, Self::Daily, Self::Weekly, Self::Monthly, Self::Annual];

    /// As reasons and the flags of `kopia policy set --keep-…` have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Latest => "latest",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Annual => "annual",
        }
    }
}

/// Why a snapshot is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The number-th newest of its kind that is kept, counted from 1.
    Counted(Period, u64),
    /// It is not complete, and a run may still go on with it.
    Incomplete,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counted(period, number) => write!(f, "{}-{number}", period.name()),
            Self::Incomplete => f.write_str("incomplete"),
        }
    }
}

impl RetentionPolicy {
    /// How many of a kind are kept; unset is 0.
    pub fn limit(&self, period: Period) -> i64 {
        self.limit_if_set(period).unwrap_or(0)
    }

    /// How many of a kind are kept, if this policy says so: unset differs from 0, which no wider policy overrides.
    pub fn limit_if_set(&self, period: Period) -> Option<i64> {
        match period {
            Period::Latest => self.keep_latest,
            Period::Hourly => self.keep_hourly,
            Period::Daily => self.keep_daily,
            Period::Weekly => self.keep_weekly,
            Period::Monthly => self.keep_monthly,
            Period::Annual => self.keep_annual,
        }
    }

    /// Sets how many of a kind are kept.
    pub fn set_limit(&mut self, period: Period, limit: i64) {
        let field = match period {
            Period::Latest => &mut self.keep_latest,
            Period::Hourly => &mut self.keep_hourly,
            Period::Daily => &mut self.keep_daily,
            Period::Weekly => &mut self.keep_weekly,
            Period::Monthly => &mut self.keep_monthly,
            Period::Annual => &mut self.keep_annual,
        };
        *field = Some(limit);
    }

    /// Whether every complete snapshot stays: no limit is set, or all are 0.
    pub fn keeps_everything(&self) -> bool {
        Period::ALL.iter().all(|period| self.limit(*period) <= 0)
    }
}

/// The reasons to keep each of `snapshots`, which are all those of one source; none means that Kopia would let it go.
///
/// `zone` is the client's time zone: weeks are counted in it, and so are the days, months and years that a limit
/// reaches back. The machine's clock is not asked: limits reach back from the newest complete snapshot.
pub fn retention_reasons(snapshots: &[Candidate], policy: &RetentionPolicy, zone: &TimeZone) -> Vec<Vec<Reason>> {
    let mut reasons = vec![Vec::new(); snapshots.len()];
    let mut order: Vec<usize> = (0..snapshots.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse((snapshots[at].start, snapshots[at].end)));
    let Some(&newest) = order.first() else { return reasons };

    for (place, &at) in order.iter().enumerate() {
        let age = snapshots[newest].start.duration_since(snapshots[at].start);
        if snapshots[at].is_complete || (age >= INCOMPLETE_MAX_AGE && place >= INCOMPLETE_MIN_COUNT) {
            break;
        }
        reasons[at].push(Reason::Incomplete);
    }

    let Some(&newest) = order.iter().find(|&&at| snapshots[at].is_complete) else { return reasons };
    let mut rules = rules(policy, snapshots[newest].start, zone);
    // One set for all kinds, as Kopia has it: week 08 of a year and August of that year block each other.
    let mut used = HashSet::new();
    for (place, &at) in order.iter().enumerate().filter(|(_, at)| snapshots[**at].is_complete) {
        let start = snapshots[at].start;
        for rule in &mut rules {
            if rule.kept >= rule.limit || start < rule.since {
                continue;
            }
            if used.insert(period_key(rule.period, place, start, zone)) {
                rule.kept += 1;
                reasons[at].push(Reason::Counted(rule.period, rule.kept));
            }
        }
        reasons[at].sort_unstable();
    }
    reasons
}

/// A kind of limit at work.
struct Rule {
    period: Period,
    limit: u64,
    since: Timestamp,
    kept: u64,
}

/// In the order in which Kopia tests them, which the set of used keys makes matter.
fn rules(policy: &RetentionPolicy, newest: Timestamp, zone: &TimeZone) -> [Rule; 6] {
    let tested = [Period::Latest, Period::Annual, Period::Monthly, Period::Weekly, Period::Daily, Period::Hourly];
    tested.map(|period| {
        let limit = match period {
            Period::Latest if policy.keeps_everything() => u64::MAX,
            _ => u64::try_from(policy.limit(period)).unwrap_or(0),
        };
        let back = i64::try_from(limit).unwrap_or(i64::MAX);
        let since = match period {
            Period::Latest => None,
            Period::Hourly => {
                back.checked_mul(3600).and_then(|s| newest.checked_sub(SignedDuration::from_secs(s)).ok())
            }
            Period::Daily => calendar_before(newest, 0, back, zone),
            Period::Weekly => back.checked_mul(7).and_then(|days| calendar_before(newest, 0, days, zone)),
            Period::Monthly => calendar_before(newest, back, 0, zone),
            Period::Annual => back.checked_mul(12).and_then(|months| calendar_before(newest, months, 0, zone)),
        };
        // What lies before all time reaches back to its beginning.
        Rule { period, limit, since: since.unwrap_or(Timestamp::MIN), kept: 0 }
    })
}

/// What two snapshots of the same period share. `place` counts all snapshots from the newest.
fn period_key(period: Period, place: usize, start: Timestamp, zone: &TimeZone) -> String {
    let utc = TimeZone::UTC.to_datetime(start);
    match period {
        Period::Latest => place.to_string(),
        Period::Annual => format!("{:04}", utc.year()),
        Period::Monthly => format!("{:04}-{:02}", utc.year(), utc.month()),
        Period::Weekly => {
            let week = zone.to_datetime(start).date().iso_week_date();
            format!("{:04}-{:02}", week.year(), week.week())
        }
        Period::Daily => format!("{:04}-{:02}-{:02}", utc.year(), utc.month(), utc.day()),
        Period::Hourly => format!("{:04}-{:02}-{:02} {:02}", utc.year(), utc.month(), utc.day(), utc.hour()),
    }
}

/// So many months and days before, in a time zone, as Go's `AddDate` has it: the number of the day stays and runs over
/// into the next month where that has fewer days. `None` before the beginning of time.
fn calendar_before(at: Timestamp, months: i64, days: i64, zone: &TimeZone) -> Option<Timestamp> {
    let local = zone.to_datetime(at);
    let month = (i64::from(local.year()) * 12 + i64::from(local.month()) - 1).checked_sub(months)?;
    let first = Date::new(i16::try_from(month.div_euclid(12)).ok()?, month.rem_euclid(12) as i8 + 1, 1).ok()?;
    let days = (i64::from(local.day()) - 1).checked_sub(days)?;
    let date = first.checked_add(SignedDuration::from_secs(days.checked_mul(86_400)?)).ok()?;
    instant_of(date.to_datetime(local.time()), zone)
}

/// The instant of a local time, as Go's `time.Date` finds it also where clocks are changed: by the offset that holds at
/// the instant that the offset at the same reading in UTC leads to.
fn instant_of(local: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    let reading = TimeZone::UTC.to_timestamp(local).ok()?;
    let earlier = |by: jiff::tz::Offset| reading.checked_sub(SignedDuration::from_secs(i64::from(by.seconds()))).ok();
    let guess = zone.to_offset(reading);
    if guess.seconds() == 0 {
        return Some(reading);
    }
    earlier(zone.to_offset(earlier(guess)?))
}

#[cfg(test)]
mod tests;

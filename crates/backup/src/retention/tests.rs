//! The plan against an oracle over simulated years, and what must hold whatever the points and the policy are.
//!
//! The oracle shares nothing with the code: its calendar, its time zones and its walk over the points are its own, slow
//! and plain.

use std::collections::BTreeSet;

use kopia_repo::retention::Period;

use super::*;

// ---- a calendar of its own: minutes since 1 January 2000, 00:00 UTC, a Saturday ---------------------------------

const HOUR: i64 = 60;
const DAY: i64 = 24 * HOUR;
/// 1 January 2000 in Unix seconds.
const BEGINNING: i64 = 946_684_800;

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn month_len(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Year, month and day, counted up from the beginning or down from it.
fn date_of(mut day: i64) -> (i64, i64, i64) {
    let (mut year, mut month) = (2000, 1);
    while day < 0 {
        (year, month) = if month == 1 { (year - 1, 12) } else { (year, month - 1) };
        day += month_len(year, month);
    }
    while day >= month_len(year, month) {
        day -= month_len(year, month);
        (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    }
    (year, month, day + 1)
}

fn day_of(year: i64, month: i64, day: i64) -> i64 {
    let years: i64 = (2000..year).map(|one| 365 + i64::from(is_leap(one))).sum::<i64>()
        - (year..2000).map(|one| 365 + i64::from(is_leap(one))).sum::<i64>();
    years + (1..month).map(|one| month_len(year, one)).sum::<i64>() + day - 1
}

/// 0 is Monday.
fn weekday(day: i64) -> i64 {
    (day + 5).rem_euclid(7)
}

/// A week belongs to the year of its Thursday, and is numbered from the first one that does.
fn iso_week(day: i64) -> (i64, i64) {
    let thursday = day - weekday(day) + 3;
    let (year, ..) = date_of(thursday);
    (year, (thursday - day_of(year, 1, 1)) / 7 + 1)
}

#[derive(Clone, Copy, Debug)]
enum Zone {
    Utc,
    Berlin,
    NewYork,
    Tokyo,
}

impl Zone {
    const ALL: [Self; 4] = [Self::Utc, Self::Berlin, Self::NewYork, Self::Tokyo];

    fn of_jiff(self) -> TimeZone {
        TimeZone::get(match self {
            Self::Utc => "UTC",
            Self::Berlin => "Europe/Berlin",
            Self::NewYork => "America/New_York",
            Self::Tokyo => "Asia/Tokyo",
        })
        .unwrap()
    }

    /// Offset at an instant, by the rules in force since 2007.
    fn offset(self, minute: i64) -> i64 {
        if let Self::Utc | Self::Tokyo = self {
            return if let Self::Utc = self { 0 } else { 9 * HOUR };
        }
        let (year, ..) = date_of(minute.div_euclid(DAY));
        // The nth Sunday of a month, counted from 0, or the last.
        let sunday = |month: i64, nth: Option<usize>| {
            let days = (1..=month_len(year, month)).map(|day| day_of(year, month, day));
            let mut sundays = days.filter(|day| weekday(*day) == 6);
            match nth {
                Some(nth) => sundays.nth(nth).unwrap(),
                None => sundays.next_back().unwrap(),
            }
        };
        match self {
            Self::Utc | Self::Tokyo => unreachable!("answered above"),
            Self::Berlin => {
                let summer = sunday(3, None) * DAY + HOUR..sunday(10, None) * DAY + HOUR;
                HOUR + if summer.contains(&minute) { HOUR } else { 0 }
            }
            Self::NewYork => {
                let summer = sunday(3, Some(1)) * DAY + 7 * HOUR..sunday(11, Some(0)) * DAY + 6 * HOUR;
                -5 * HOUR + if summer.contains(&minute) { HOUR } else { 0 }
            }
        }
    }

    /// The instant of a local time. One that the clocks skip or show twice is read as Go does: by the offset that is
    /// nearer to Greenwich.
    fn instant(self, local: i64) -> i64 {
        let fitting: Vec<i64> =
            (-14..=14).map(|hours| local - hours * HOUR).filter(|at| at + self.offset(*at) == local).collect();
        match (&fitting[..], self) {
            ([only], _) => *only,
            (_, Self::Berlin) => local - HOUR,
            (_, Self::NewYork) => local + 4 * HOUR,
            _ => unreachable!("other clocks never change"),
        }
    }
}

// ---- the oracle -----------------------------------------------------------------------------------------------------

type Limits = [(Period, i64); 6];

/// Indices of the points that stay, of points given by their minutes.
fn oracle(points: &[i64], limits: &Limits, zone: Zone) -> BTreeSet<usize> {
    if limits.iter().all(|(_, limit)| *limit == 0) {
        return (0..points.len()).collect();
    }
    let mut newest_first: Vec<usize> = (0..points.len()).collect();
    newest_first.sort_by_key(|at| -points[*at]);
    let Some(newest) = newest_first.first().map(|at| points[*at]) else { return BTreeSet::new() };
    let limit_of = |period: Period| limits.iter().find(|(one, _)| *one == period).unwrap().1;

    let local = newest + zone.offset(newest);
    let back_days = |days: i64| zone.instant(local - days * DAY);
    let back_months = |months: i64| {
        let (mut year, mut month, day) = date_of(local.div_euclid(DAY));
        for _ in 0..months {
            (year, month) = if month == 1 { (year - 1, 12) } else { (year, month - 1) };
        }
        zone.instant((day_of(year, month, 1) + day - 1) * DAY + local.rem_euclid(DAY))
    };
    let annual_since = back_months(12 * limit_of(Period::Annual));
    let monthly_since = back_months(limit_of(Period::Monthly));
    let weekly_since = back_days(7 * limit_of(Period::Weekly));
    let daily_since = back_days(limit_of(Period::Daily));
    let hourly_since = newest - limit_of(Period::Hourly) * HOUR;

    let mut taken: Vec<String> = Vec::new();
    let mut counts = [0; 6];
    let mut staying = BTreeSet::new();
    for (place, at) in newest_first.into_iter().enumerate() {
        let minute = points[at];
        let (year, month, day) = date_of(minute.div_euclid(DAY));
        let hour = minute.rem_euclid(DAY) / HOUR;
        let (week_year, week) = iso_week((minute + zone.offset(minute)).div_euclid(DAY));
        let mut rule = |period: Period, key: String, since: i64| {
            let count = &mut counts[period as usize];
            if minute >= since && *count < limit_of(period) && !taken.contains(&key) {
                taken.push(key);
                *count += 1;
                staying.insert(at);
            }
        };
        rule(Period::Latest, place.to_string(), minute);
        rule(Period::Annual, year.to_string(), annual_since);
        rule(Period::Monthly, format!("{year}-{month:02}"), monthly_since);
        rule(Period::Weekly, format!("{week_year}-{week:02}"), weekly_since);
        rule(Period::Daily, format!("{year}-{month:02}-{day:02}"), daily_since);
        rule(Period::Hourly, format!("{year}-{month:02}-{day:02} {hour:02}"), hourly_since);
    }
    staying
}

// ---- points -----------------------------------------------------------------------------------------------------------

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn one_in(&mut self, chance: u64) -> bool {
        self.below(chance) == 0
    }
}

fn timestamp(minute: i64) -> Timestamp {
    Timestamp::from_second(BEGINNING + minute * 60).unwrap()
}

fn point(minute: i64) -> PlanPoint {
    let started = timestamp(minute);
    PlanPoint { id: format!("{minute}"), started, stored: started, holds: Vec::new(), is_damaged: false }
}

fn policy(limits: &Limits) -> RetentionPolicy {
    let mut policy = RetentionPolicy::default();
    limits.iter().for_each(|(period, limit)| policy.set_limit(*period, *limit));
    policy
}

const fn limits(latest: i64, hourly: i64, daily: i64, weekly: i64, monthly: i64, annual: i64) -> Limits {
    [
        (Period::Latest, latest),
        (Period::Hourly, hourly),
        (Period::Daily, daily),
        (Period::Weekly, weekly),
        (Period::Monthly, monthly),
        (Period::Annual, annual),
    ]
}

const POLICIES: [Limits; 9] = [
    limits(0, 0, 0, 0, 0, 0),
    limits(1, 0, 0, 0, 0, 0),
    limits(10, 48, 7, 4, 24, 3),
    limits(3, 0, 14, 8, 12, 0),
    limits(0, 0, 30, 0, 0, 0),
    limits(0, 0, 0, 52, 12, 0),
    limits(0, 0, 0, 0, 0, 2),
    limits(0, 24, 0, 0, 0, 0),
    limits(0, 0, 5, 60, 60, 10),
];

/// What a night brings: mostly one point at 22:00 local time and some minutes, sometimes none, sometimes several within
/// the hour, and from time to time a clock that is wrong for a night.
fn night(random: &mut Random, zone: Zone, day: i64) -> Vec<i64> {
    if random.one_in(9) {
        return Vec::new();
    }
    let evening = zone.instant(day * DAY + [22, 22, 0, 2, 3][random.below(5) as usize] * HOUR);
    let mut starts = vec![evening + random.below(40) as i64];
    if random.one_in(6) {
        starts.extend((0..=random.below(5)).map(|_| evening + random.below(180) as i64));
    }
    if random.one_in(120) {
        let wrong = [-400 * DAY, -31 * DAY, -DAY, 3 * HOUR, 40 * DAY][random.below(5) as usize];
        starts.iter_mut().for_each(|start| *start += wrong);
    }
    // A point has a start of its own here: what happens to equal ones is the fixture's.
    starts.sort_unstable();
    starts.dedup();
    starts
}

#[test]
fn the_plan_is_the_oracles_each_night() {
    let mut compared = 0;
    for (seed, (limits, zone)) in POLICIES.iter().flat_map(|limits| Zone::ALL.map(|zone| (limits, zone))).enumerate() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed as u64 + 1));
        let mut points: Vec<i64> = Vec::new();
        let first = day_of(2025, 9, 1);
        for day in first..day_of(2028, 3, 31) {
            let made = night(&mut random, zone, day);
            points.extend(made.into_iter().filter(|start| !points.contains(start)).collect::<Vec<_>>());
            if *limits == POLICIES[0] && points.len() > 400 {
                break;
            }
            let planned = plan(
                &points.iter().map(|minute| point(*minute)).collect::<Vec<_>>(),
                &policy(limits),
                timestamp(day * DAY),
                &zone.of_jiff(),
            );
            let staying: BTreeSet<i64> = planned
                .iter()
                .filter(|one| one.because.iter().any(|because| matches!(because, Because::Policy(_))))
                .map(|one| one.point.id.parse().unwrap())
                .collect();
            let expected: BTreeSet<i64> = oracle(&points, limits, zone).into_iter().map(|at| points[at]).collect();
            assert_eq!(staying, expected, "seed {seed}, {limits:?}, {zone:?}, night {:?}", date_of(day));
            compared += 1;
            // What goes is gone tomorrow.
            points.retain(|minute| staying.contains(minute));
        }
    }
    assert!(compared > 25_000, "{compared}");
}

#[test]
fn a_year_of_points_planned_at_once_is_the_oracles() {
    for (seed, limits) in POLICIES.iter().enumerate() {
        for zone in Zone::ALL {
            let mut random = Random(0xdead_beef + seed as u64);
            let first = day_of(2027, 9, 1);
            let mut points: Vec<i64> = (first..first + 366)
                .flat_map(|day| night(&mut random, zone, day))
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect();
            // Their order means nothing.
            points.sort_by_key(|minute| minute % 1009);
            let given: Vec<PlanPoint> = points.iter().map(|minute| point(*minute)).collect();
            let planned = plan(&given, &policy(limits), Timestamp::MAX, &zone.of_jiff());
            assert!(planned.is_sorted_by(|a, b| a.point.started > b.point.started), "newest first");
            let staying: BTreeSet<String> =
                planned.into_iter().filter(PlannedPoint::stays).map(|one| one.point.id).collect();
            let expected: BTreeSet<String> =
                oracle(&points, limits, zone).into_iter().map(|at| points[at].to_string()).collect();
            assert_eq!(staying, expected, "{limits:?}, {zone:?}");
        }
    }
}

#[test]
fn the_newest_sound_point_and_held_points_stay_and_a_second_plan_lets_nothing_go() {
    let mut random = Random(77);
    let (mut saved_by_soundness, mut saved_by_holds, mut went, mut none_sound) = (0, 0, 0, 0);
    for _ in 0..4000 {
        let limits = match random.below(3) {
            0 => POLICIES[random.below(9) as usize],
            _ => {
                let mut one = || random.below(4) as i64;
                limits(one(), one(), one(), one(), one(), one())
            }
        };
        let zone = Zone::ALL[random.below(4) as usize];
        let now = day_of(2026, 3, 1) * DAY;
        let minutes: BTreeSet<i64> =
            (0..random.below(40)).map(|_| now - random.below(3 * 365 * 24) as i64 * HOUR / 2).collect();
        let bad_nights = random.below(10);
        let mut points: Vec<PlanPoint> = minutes.into_iter().map(point).collect();
        for (age, point) in points.iter_mut().rev().enumerate() {
            point.is_damaged = (age as u64) < bad_nights || random.one_in(10);
            if random.one_in(10) {
                let until = [None, Some(now - 1), Some(now), Some(now + 1)][random.below(4) as usize];
                point.holds.push(Hold::new("x", until.map(timestamp)).unwrap());
            }
        }
        let zone = zone.of_jiff();
        let planned = plan(&points, &policy(&limits), timestamp(now), &zone);
        assert_eq!(planned.len(), points.len());

        match planned.iter().find(|one| !one.point.is_damaged) {
            Some(sound) => {
                assert!(sound.because.contains(&Because::NewestSound), "{planned:?}");
                saved_by_soundness += usize::from(sound.because.len() == 1);
            }
            None => none_sound += 1,
        }
        for one in &planned {
            let is_held = one.point.holds.iter().any(|hold| hold.until().is_none_or(|until| until > timestamp(now)));
            assert_eq!(one.because.iter().any(|because| matches!(because, Because::Held(_))), is_held, "{one:?}");
            saved_by_holds += usize::from(is_held && one.because.len() == 1);
        }
        let staying: Vec<PlannedPoint> = planned.into_iter().filter(PlannedPoint::stays).collect();
        went += points.len() - staying.len();
        let again: Vec<PlanPoint> = staying.iter().map(|one| one.point.clone()).collect();
        assert_eq!(plan(&again, &policy(&limits), timestamp(now), &zone), staying, "{limits:?}");
    }
    let seen = (saved_by_soundness, saved_by_holds, went, none_sound);
    assert!(seen.0 > 300 && seen.1 > 300 && seen.2 > 10_000 && seen.3 > 100, "{seen:?}");
}

#[test]
fn reasons_are_said_in_words() {
    let hold = Hold::new("audit", Some("2027-01-31T00:00:00Z".parse().unwrap())).unwrap();
    for (because, text) in [
        (Because::Policy(Reason::Counted(Period::Daily, 3)), "daily-3"),
        (Because::Held(hold), "held (audit, until 2027-01-31T00:00:00Z)"),
        (Because::NewestSound, "newest sound point"),
    ] {
        assert_eq!(because.to_string(), text);
    }
}

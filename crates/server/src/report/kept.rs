//! How much of a period a VM had a restorable point inside its target.

use jiff::{SignedDuration, Timestamp};

/// How well one VM was protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Seconds of the period in which the newest point was young enough.
    pub covered_secs: i64,
    /// Seconds of the period.
    pub period_secs: i64,
    /// The longest stretch of the period without a new point.
    pub longest_gap_secs: i64,
    /// Points made in it.
    pub points: i64,
}

impl Kept {
    /// The covered share in hundredths of a percent, rounded down: what was missed for a second is not "always".
    pub fn basis_points(covered_secs: i64, period_secs: i64) -> Option<i64> {
        let share = i128::from(covered_secs) * 10_000 / i128::from(period_secs).max(1);
        (period_secs > 0).then(|| i64::try_from(share).unwrap_or(10_000))
    }
}

/// Of the snapshot times of restorable points, in order, also from before the period.
pub fn kept(points: &[Timestamp], target: SignedDuration, from: Timestamp, to: Timestamp) -> Kept {
    let period_secs = to.duration_since(from).as_secs().max(0);
    let (mut covered_secs, mut longest_gap_secs, mut count) = (0, 0, 0);
    // Where the covered time ends, and where the last stretch without a new point began.
    let (mut covered_to, mut last) = (from, from);
    for at in points.iter().copied().filter(|at| *at < to) {
        let until = at.saturating_add(target).unwrap_or(Timestamp::MAX).min(to);
        let begins = at.max(covered_to);
        covered_secs += until.duration_since(begins).as_secs().max(0);
        covered_to = covered_to.max(until);
        if at >= from {
            count += 1;
            longest_gap_secs = longest_gap_secs.max(at.duration_since(last).as_secs());
            last = at;
        }
    }
    longest_gap_secs = longest_gap_secs.max(to.duration_since(last).as_secs()).max(0);
    Kept { covered_secs, period_secs, longest_gap_secs, points: count }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hour(hour: i64) -> Timestamp {
        Timestamp::from_second(1_764_000_000 + hour * 3600).expect("time")
    }

    #[test]
    fn a_period_is_covered_by_its_points_and_the_one_before() {
        // A period of 100 hours, a target of 26.
        for (case, points, covered, gap, count) in [
            ("no point", vec![], 0, 100, 0),
            ("one long before", vec![-200], 0, 100, 0),
            ("one before, still good at the beginning", vec![-20], 6, 100, 0),
            ("every day", vec![-10, 14, 38, 62, 86], 100, 24, 4),
            ("a day was missed", vec![-10, 14, 62, 86], 78, 48, 3),
            ("one at the very beginning", vec![0], 26, 100, 1),
            ("one at the very end is of the next period", vec![100], 0, 100, 0),
            ("two at once count once for time", vec![10, 10], 26, 90, 2),
            ("hours overlap", vec![10, 20, 30], 46, 70, 3),
        ] {
            let points: Vec<Timestamp> = points.into_iter().map(hour).collect();
            let is = kept(&points, SignedDuration::from_hours(26), hour(0), hour(100));
            let expected = Kept {
                covered_secs: covered * 3600,
                period_secs: 360_000,
                longest_gap_secs: gap * 3600,
                points: count,
            };
            assert_eq!(is, expected, "{case}");
        }
        let none = kept(&[hour(5)], SignedDuration::from_hours(26), hour(10), hour(10));
        assert_eq!(Kept::basis_points(none.covered_secs, none.period_secs), None, "an empty period");
    }

    /// Minute by minute beside the function, on periods and points of a simple generator.
    #[test]
    fn an_oracle_that_counts_minutes_agrees() {
        let minute = |minute: i64| Timestamp::from_second(1_764_000_000 + minute * 60).expect("time");
        let mut seed: u64 = 1;
        let mut next = |most: i64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            i64::try_from(seed >> 33).expect("31 bits") % most
        };
        for round in 0..300 {
            let (to, target) = (next(2000) + 1, next(300) + 1);
            let mut points: Vec<i64> = (0..next(12)).map(|_| next(2600) - 500).collect();
            points.sort_unstable();
            let is_covered = |at: i64| points.iter().any(|point| *point <= at && at < point + target);
            let covered = (0..to).filter(|at| is_covered(*at)).count();
            let times: Vec<Timestamp> = points.iter().map(|point| minute(*point)).collect();
            let is = kept(&times, SignedDuration::from_mins(target), minute(0), minute(to));
            assert_eq!(
                is.covered_secs,
                60 * i64::try_from(covered).expect("small"),
                "round {round}: {points:?} {target} {to}"
            );
        }
    }

    #[test]
    fn a_share_is_never_rounded_up() {
        for (covered, period, expected) in [
            (0, 100, Some(0)),
            (100, 100, Some(10_000)),
            (99_999, 100_000, Some(9_999)),
            (1, 3, Some(3333)),
            (0, 0, None),
        ] {
            assert_eq!(Kept::basis_points(covered, period), expected, "{covered} of {period}");
        }
    }
}

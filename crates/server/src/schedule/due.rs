//! What to do about slots that have come (spec control-api 4.4): run, catch up, or say that they were missed.

use jiff::{SignedDuration, Timestamp};

use super::Plan;

/// A slot older than this when it is looked at was missed: the server was away.
const ON_TIME_SECS: i64 = 120;
/// An older slot is not caught up with.
const CATCH_UP_SECS: i64 = 24 * 3600;
/// More slots than this are not recorded one by one.
const MOST_SLOTS: usize = 500;

/// What becomes of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It runs.
    Run,
    /// It does not, because of this.
    Skip(&'static str),
}

/// What has come since a job was looked at last.
#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    /// Slots, oldest first. At most one runs.
    pub slots: Vec<(Timestamp, Outcome)>,
    /// The next one.
    pub next: Option<Timestamp>,
}

/// Decides about the slots from `expected` (the slot that the job waits for) to `now`.
pub fn due(plan: &Plan, expected: Timestamp, now: Timestamp) -> Due {
    let mut slots = Vec::new();
    let mut slot = Some(expected);
    while let Some(at) = slot.filter(|at| *at <= now) {
        slots.push((at, Outcome::Skip("missed")));
        if slots.len() > MOST_SLOTS {
            // A server that was away for weeks: what matters is the last day.
            slots.clear();
            let horizon = now.saturating_sub(SignedDuration::from_secs(CATCH_UP_SECS)).unwrap_or(now);
            slot = plan.next_after(at.max(horizon));
            continue;
        }
        slot = plan.next_after(at);
    }
    if let Some((at, outcome)) = slots.last_mut() {
        let age = now.duration_since(*at).as_secs();
        if age <= ON_TIME_SECS || (plan.catch_up && age < CATCH_UP_SECS) {
            *outcome = Outcome::Run;
        }
    }
    Due { slots, next: plan.next_after(now) }
}

/// Seconds by which this agent begins later, so that not all begin at once: always the same for one agent and job.
pub fn jitter(agent: i64, job: i64, most_secs: i64) -> i64 {
    if most_secs <= 0 {
        return 0;
    }
    // Splitmix64: neighbouring ids must not land on neighbouring seconds.
    let mut mixed = agent.unsigned_abs().wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ job.unsigned_abs();
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^= mixed >> 31;
    i64::try_from(mixed % (most_secs.unsigned_abs() + 1)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_missed_slot_runs_once_if_it_is_under_a_day_old() {
        let plan = |catch_up: bool, kind: &str| {
            let schedule = json!({"type": kind, "time": "02:00", "catch_up": catch_up});
            Plan::parse(&serde_json::from_value(schedule).expect("schedule"), "UTC").expect("understood")
        };
        let at = |text: &str| -> Timestamp { text.parse().expect("time") };
        let run = |text: &str| (at(text), Outcome::Run);
        let missed = |text: &str| (at(text), Outcome::Skip("missed"));
        for (case, plan, now, slots) in [
            ("not yet", plan(true, "daily"), "2026-01-02T01:59:59Z", vec![]),
            ("on time", plan(true, "daily"), "2026-01-02T02:00:00Z", vec![run("2026-01-02T02:00:00Z")]),
            (
                "on time without catching up",
                plan(false, "daily"),
                "2026-01-02T02:02:00Z",
                vec![run("2026-01-02T02:00:00Z")],
            ),
            ("late", plan(true, "daily"), "2026-01-02T20:00:00Z", vec![run("2026-01-02T02:00:00Z")]),
            (
                "late without catching up",
                plan(false, "daily"),
                "2026-01-02T20:00:00Z",
                vec![missed("2026-01-02T02:00:00Z")],
            ),
            (
                "days late: only the last",
                plan(true, "daily"),
                "2026-01-04T20:00:00Z",
                vec![missed("2026-01-02T02:00:00Z"), missed("2026-01-03T02:00:00Z"), run("2026-01-04T02:00:00Z")],
            ),
        ] {
            let due = due(&plan, at("2026-01-02T02:00:00Z"), at(now));
            assert_eq!(due.slots, slots, "{case}");
            assert!(due.next.is_some_and(|next| next > at(now)), "{case}: {:?}", due.next);
        }
        let weeks = due(&plan(true, "hourly"), at("2026-01-01T00:00:00Z"), at("2026-03-01T00:30:00Z"));
        assert!(weeks.slots.len() <= MOST_SLOTS, "{} slots", weeks.slots.len());
        assert_eq!(weeks.slots.last(), Some(&run("2026-03-01T00:00:00Z")));
        assert_eq!(weeks.slots.iter().filter(|(_, outcome)| *outcome == Outcome::Run).count(), 1);
    }

    #[test]
    fn starts_of_agents_are_spread() {
        let seconds: std::collections::BTreeSet<i64> = (1..=200).map(|agent| jitter(agent, 1, 60)).collect();
        assert!(seconds.len() > 40, "{} different seconds", seconds.len());
        assert!(seconds.iter().all(|seconds| (0..=60).contains(seconds)));
        assert_eq!(jitter(7, 3, 60), jitter(7, 3, 60));
        assert_eq!(jitter(7, 3, 0), 0);
    }
}

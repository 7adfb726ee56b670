//! The fixture that Kopia made, and what its snapshots do not happen to show.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;

/// Reasons that Kopia 0.23.1 gave, see the note in the file.
const KOPIAS: &str = include_str!("../../fixtures/retention.json");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fixture {
    /// Start, end, why incomplete.
    sources: BTreeMap<String, Vec<(Timestamp, Timestamp, String)>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    time_zone: String,
    policy: RetentionPolicy,
    reasons: BTreeMap<String, Vec<Vec<String>>>,
}

#[test]
fn kopias_reasons_are_ours() {
    let fixture: Fixture = serde_json::from_str(KOPIAS).unwrap();
    let mut compared = 0;
    for Case { time_zone, policy, reasons } in &fixture.cases {
        let zone = TimeZone::get(time_zone).unwrap();
        assert_eq!(reasons.len(), fixture.sources.len());
        for (source, expected) in reasons {
            let mut numbered: Vec<(usize, Candidate)> = fixture.sources[source]
                .iter()
                .map(|(start, end, incomplete)| Candidate {
                    start: *start,
                    end: *end,
                    is_complete: incomplete.is_empty(),
                })
                .enumerate()
                .collect();
            // The order in which they are given means nothing.
            for _ in 0..2 {
                let candidates: Vec<Candidate> = numbered.iter().map(|(_, one)| *one).collect();
                let found = retention_reasons(&candidates, policy, &zone);
                for ((number, _), found) in numbered.iter().zip(found) {
                    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
                    assert_eq!(found, expected[*number], "{source} {number}, {time_zone}, {policy:?}");
                    compared += 1;
                }
                numbered.reverse();
            }
        }
    }
    assert_eq!(compared, 2 * 15 * 293, "15 cases of 293 snapshots");
}

fn candidates(starts: &[&str]) -> Vec<Candidate> {
    let one = |start: &&str| {
        let start: Timestamp = start.parse().unwrap();
        Candidate { start, end: start, is_complete: true }
    };
    starts.iter().map(one).collect()
}

fn policy(limits: &[(Period, i64)]) -> RetentionPolicy {
    let mut policy = RetentionPolicy::default();
    limits.iter().for_each(|(period, limit)| policy.set_limit(*period, *limit));
    policy
}

/// The reasons in the order given, each list as Kopia would print it.
fn printed(snapshots: &[Candidate], policy: &RetentionPolicy, zone: &str) -> Vec<String> {
    retention_reasons(snapshots, policy, &TimeZone::get(zone).unwrap())
        .iter()
        .map(|reasons| reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
        .collect()
}

#[test]
fn without_a_limit_everything_stays() {
    let snapshots = candidates(&["2026-01-01T00:00:00Z", "2020-01-01T00:00:00Z"]);
    for limits in [&[][..], &[(Period::Latest, 0), (Period::Annual, 0)], &[(Period::Daily, -1)]] {
        assert_eq!(printed(&snapshots, &policy(limits), "UTC"), ["latest-1", "latest-2"], "{limits:?}");
    }
    assert!(printed(&[], &policy(&[]), "UTC").is_empty());
}

#[test]
fn limits_beyond_all_time_keep_what_there_is() {
    let snapshots = candidates(&["2026-08-01T00:00:00Z", "1754-08-30T22:43:41Z", "-009998-01-01T00:00:00Z"]);
    for period in Period::ALL {
        for limit in [1_000_000_000, i64::MAX] {
            let name = period.name();
            let expected = [format!("{name}-1"), format!("{name}-2"), format!("{name}-3")];
            assert_eq!(printed(&snapshots, &policy(&[(period, limit)]), "Asia/Tokyo"), expected, "{name} {limit}");
        }
    }
}

#[test]
fn limits_reach_back_from_the_newest_and_not_from_now() {
    // A point that a clock far ahead made takes the others' places, as in Kopia.
    let snapshots = candidates(&["2031-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2025-01-01T00:00:00Z"]);
    assert_eq!(printed(&snapshots, &policy(&[(Period::Annual, 3)]), "UTC"), ["annual-1", "", ""]);
}

#[test]
fn dates_are_subtracted_as_go_does() {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    for (from, months, days, zone, expected) in [
        ("2026-03-31T12:00:00Z", 1, 0, "UTC", "2026-03-03T12:00:00Z"),
        ("2024-03-31T12:00:00Z", 1, 0, "UTC", "2024-03-02T12:00:00Z"),
        ("2024-02-29T12:00:00Z", 12, 0, "UTC", "2023-03-01T12:00:00Z"),
        // The hour of the day stays, whatever the clocks did between.
        ("2026-03-30T10:00:00Z", 0, 2, "Europe/Berlin", "2026-03-28T11:00:00Z"),
        // 02:30 on 29 March 2026 does not exist in Berlin; Go reads it as 03:30.
        ("2026-03-30T00:30:00Z", 0, 1, "Europe/Berlin", "2026-03-29T01:30:00Z"),
        // 02:30 on 25 October 2026 exists twice; Go takes the second.
        ("2026-10-26T01:30:00Z", 0, 1, "Europe/Berlin", "2026-10-25T01:30:00Z"),
    ] {
        let zone = TimeZone::get(zone).unwrap();
        assert_eq!(calendar_before(at(from), months, days, &zone), Some(at(expected)), "{from} -{months} -{days}");
    }
}

#[test]
fn weeks_and_months_of_one_number_block_each_other() {
    // Week 08 of 2026 is in February; August's key is the same.
    let snapshots = candidates(&["2026-08-31T00:00:00Z", "2026-02-18T00:00:00Z"]);
    let keep = policy(&[(Period::Monthly, 12), (Period::Weekly, 52)]);
    assert_eq!(printed(&snapshots, &keep, "UTC"), ["weekly-1,monthly-1", "monthly-2"]);
}

#[test]
fn the_zone_decides_about_weeks_and_about_nothing_else_here() {
    // Sunday 23:30 UTC is Monday in Tokyo.
    let snapshots = candidates(&["2026-11-23T00:30:00Z", "2026-11-22T23:30:00Z"]);
    let keep = policy(&[(Period::Daily, 7), (Period::Weekly, 4)]);
    assert_eq!(printed(&snapshots, &keep, "UTC"), ["daily-1,weekly-1", "daily-2,weekly-2"]);
    assert_eq!(printed(&snapshots, &keep, "Asia/Tokyo"), ["daily-1,weekly-1", "daily-2"]);
}

//! How safe a VM is: one of eight states (console 0.4), as one pure function that everything asks.

use control_api::words::Protection;
use jiff::{SignedDuration, Timestamp};

/// What is known of a VM.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Its host has reported it.
    pub is_reported: bool,
    /// Its host reports no longer.
    pub missing_since: Option<Timestamp>,
    /// Why its host says that it cannot be backed up.
    pub obstacle: Option<String>,
    /// Who took it out, and why, in words.
    pub exclusion: Option<String>,
    /// An active job takes it.
    pub has_active_job: bool,
    /// A paused job would.
    pub paused_job: Option<String>,
    /// Snapshot time of the newest restorable point; damaged ones are none.
    pub newest: Option<Timestamp>,
    /// A newer point than that is damaged.
    pub is_newest_damaged: bool,
    /// How old the newest point may be.
    pub target: SignedDuration,
}

/// The state, and why in words; nothing to say of a VM that is protected.
///
/// The first that holds, in this order: what a person decided, what is not known, what cannot be, what nobody asked for;
/// only then is age a question.
pub fn state(facts: &Facts, now: Timestamp) -> (Protection, String) {
    if let Some(exclusion) = &facts.exclusion {
        return (Protection::Excluded, exclusion.clone());
    }
    if !facts.is_reported {
        return (Protection::Unknown, "no host has reported it".into());
    }
    if let Some(since) = facts.missing_since {
        return (Protection::Unknown, format!("missing from its host since {}", crate::store::time_text(since)));
    }
    if let Some(obstacle) = &facts.obstacle {
        return (Protection::Cannot, obstacle.clone());
    }
    if !facts.has_active_job {
        let why = facts.paused_job.as_ref().map_or_else(|| "in no job".into(), |job| format!("job {job} is paused"));
        return (Protection::InNoJob, why);
    }
    let Some(newest) = facts.newest else { return (Protection::Never, "no restorable point yet".into()) };
    let age = now.duration_since(newest);
    if age > facts.target.saturating_mul(2) {
        return (Protection::AtRisk, format!("newest point is {} old", words(age)));
    }
    if age > facts.target {
        if facts.is_newest_damaged {
            return (Protection::AtRisk, format!("newest point is damaged, the one before is {} old", words(age)));
        }
        return (Protection::Late, format!("newest point is {} old", words(age)));
    }
    (Protection::Protected, String::new())
}

/// Severity as lists sort it: 1 is worst.
pub fn severity(state: Protection) -> i64 {
    match state {
        Protection::AtRisk | Protection::Never => 1,
        Protection::Cannot => 2,
        Protection::InNoJob => 3,
        Protection::Late => 4,
        Protection::Unknown => 5,
        Protection::Excluded => 6,
        Protection::Protected => 7,
    }
}

fn words(age: SignedDuration) -> String {
    let hours = age.as_hours();
    if hours < 72 { format!("{hours} h") } else { format!("{} d", hours / 24) }
}

/// Whether a point can be restored, else why not (spec control-api 5.3, 5.4).
pub fn restorable(
    is_deleted: bool,
    verify_status: Option<&str>,
    is_incremental: bool,
    has_disks: bool,
) -> Result<(), &'static str> {
    match verify_status {
        _ if is_deleted => Err("deleted"),
        Some("damaged") => Err("damaged"),
        Some("failed") => Err("verification failed"),
        // Of an agent that does not name its disks: nothing shows that the image is complete.
        None if is_incremental && !has_disks => Err("an increment that was not verified"),
        _ => Ok(()),
    }
}

/// The same as a condition on points `p`, for queries over many.
pub const RESTORABLE: &str = "p.deleted_at IS NULL AND (p.verify_status = 'ok' OR (p.verify_status IS NULL \
    AND (p.backup_type = 'Full' OR EXISTS (SELECT 1 FROM s3_hyperv_backup_point_disks d WHERE d.backup_point_id = p.id))))";

#[cfg(test)]
mod tests {
    use super::*;

    /// Every combination of clock, points, jobs and host state, against the table of console 0.4 read row by row.
    #[test]
    fn every_combination_has_the_state_of_the_table() {
        let now: Timestamp = "2026-11-27T12:00:00Z".parse().expect("time");
        let target = SignedDuration::from_hours(26);
        let hours = |hours: i64| now.checked_sub(SignedDuration::from_hours(hours)).expect("time");
        let mut seen = std::collections::BTreeSet::new();
        let mut cases = 0;
        for exclusion in [None, Some("by a person")] {
            for is_reported in [true, false] {
                for missing in [None, Some(hours(3))] {
                    for obstacle in [None, Some("pass-through disk")] {
                        for (has_active_job, paused) in [(true, None), (false, None), (false, Some("nightly"))] {
                            for age in [None, Some(-1), Some(0), Some(26), Some(27), Some(52), Some(53), Some(5000)] {
                                for is_newest_damaged in [true, false] {
                                    let facts = Facts {
                                        is_reported,
                                        missing_since: missing,
                                        obstacle: obstacle.map(str::to_owned),
                                        exclusion: exclusion.map(str::to_owned),
                                        has_active_job,
                                        paused_job: paused.map(str::to_owned),
                                        newest: age.map(hours),
                                        is_newest_damaged,
                                        target,
                                    };
                                    // The table's rows, each said by itself; ties go to the more final word.
                                    let rows = [
                                        (Protection::Excluded, exclusion.is_some()),
                                        (Protection::Unknown, !is_reported || missing.is_some()),
                                        (Protection::Cannot, obstacle.is_some()),
                                        (Protection::InNoJob, !has_active_job),
                                        (Protection::Never, age.is_none()),
                                        (
                                            Protection::AtRisk,
                                            age.is_some_and(|age| age > 52 || (is_newest_damaged && age > 26)),
                                        ),
                                        (Protection::Late, age.is_some_and(|age| age > 26 && age <= 52)),
                                        (Protection::Protected, age.is_some_and(|age| age <= 26)),
                                    ];
                                    let expected = rows.into_iter().find(|(_, holds)| *holds).expect("one holds").0;
                                    let (is, why) = state(&facts, now);
                                    assert_eq!(is, expected, "{facts:?}");
                                    assert_eq!(why.is_empty(), is == Protection::Protected, "{facts:?}: {why:?}");
                                    seen.insert(is);
                                    cases += 1;
                                }
                            }
                        }
                    }
                }
            }
        }
        assert_eq!((seen.len(), cases), (Protection::ALL.len(), 2 * 2 * 2 * 2 * 3 * 8 * 2));
    }

    #[test]
    fn a_point_is_restorable_when_nothing_speaks_against_it() {
        for (deleted, verify, incremental, disks, expected) in [
            (false, None, false, false, true),
            (false, None, true, true, true),
            (false, None, true, false, false),
            (false, Some("ok"), true, false, true),
            (false, Some("damaged"), false, true, false),
            (false, Some("failed"), false, true, false),
            (true, Some("ok"), false, true, false),
        ] {
            let is = restorable(deleted, verify, incremental, disks).is_ok();
            assert_eq!(is, expected, "{deleted} {verify:?} {incremental} {disks}");
        }
    }
}

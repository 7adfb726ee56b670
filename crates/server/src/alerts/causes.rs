//! What is wrong, as a pure function of what is known and the clock.

use std::collections::BTreeMap;

use control_api::words::{AlertKind, Protection, RunStatus};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::protection;

/// What an alert is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// `vm`, `job`, `agent`, `repository` or `server`.
    pub kind: &'static str,
    /// Which one.
    pub id: String,
    /// As people call it.
    pub name: String,
}

/// Something that is wrong now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Of what kind.
    pub kind: AlertKind,
    /// With what.
    pub subject: Subject,
    /// Whose that is.
    pub tenant: Option<i64>,
    /// 1 is worst.
    pub severity: i64,
    /// A line without figures that change by themselves.
    pub title: String,
    /// Why, in words.
    pub reason: String,
}

/// When something is an alert; settings of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Thresholds {
    /// No restorable point for so many hours, whatever the target; 0 leaves it to the targets.
    pub no_point_hours: i64,
    /// A checkpoint that a host reported is older than this.
    pub checkpoint_hours: i64,
    /// A host gave no sign for so long.
    pub silent_minutes: i64,
    /// A day brought more than this share of the mean of the days before.
    pub growth_percent: i64,
    /// And at least so much.
    pub growth_min_bytes: i64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds {
            no_point_hours: 0,
            checkpoint_hours: 24,
            silent_minutes: 15,
            growth_percent: 300,
            growth_min_bytes: 10 << 30,
        }
    }
}

/// A VM that is in a job.
#[derive(Debug, Clone)]
pub struct VmFact {
    /// Its id on every host.
    pub guid: String,
    /// Its name.
    pub name: String,
    /// Its tenant.
    pub tenant: Option<i64>,
    /// How safe it is, from the one function that says so.
    pub state: Protection,
    /// Why.
    pub reason: String,
    /// Snapshot time of the newest restorable point.
    pub newest: Option<Timestamp>,
    /// How old that may be.
    pub target: SignedDuration,
    /// First seen then.
    pub known_since: Timestamp,
}

/// The last backup of a job on an agent that came to an end by itself.
#[derive(Debug, Clone)]
pub struct RunFact {
    /// The job, and the agent where it has several.
    pub subject: String,
    /// Job and host.
    pub name: String,
    /// Its tenant.
    pub tenant: Option<i64>,
    /// The run.
    pub run: i64,
    /// How it ended.
    pub status: RunStatus,
    /// Why.
    pub summary: String,
}

/// An agent that has to be there.
#[derive(Debug, Clone)]
pub struct AgentFact {
    /// Which one.
    pub id: i64,
    /// Its host.
    pub name: String,
    /// Its tenant.
    pub tenant: Option<i64>,
    /// Its last call, or its enrolment.
    pub seen: Timestamp,
}

/// What an agent said of a checkpoint that should be gone.
#[derive(Debug, Clone)]
pub struct CheckpointReport {
    /// The agent.
    pub agent: i64,
    /// Its host.
    pub host: String,
    /// Its tenant.
    pub tenant: Option<i64>,
    /// The VM, in the agent's words.
    pub vm: String,
    /// When it said so.
    pub at: Timestamp,
    /// Since when it exists, if the agent knows.
    pub created: Option<Timestamp>,
    /// It is gone.
    pub is_gone: bool,
}

/// A sample check that change tracking failed.
#[derive(Debug, Clone)]
pub struct Mismatch {
    /// The VM, by its id where that is known, else its name.
    pub vm: String,
    /// Its name.
    pub name: String,
    /// Its tenant.
    pub tenant: Option<i64>,
    /// In which run.
    pub run: i64,
    /// The newest run that stored a restorable point of it.
    pub good_run: Option<i64>,
    /// Which disk.
    pub disk: String,
}

/// What went into a repository.
#[derive(Debug, Clone)]
pub struct RepositoryFact {
    /// Its id.
    pub id: String,
    /// Its tenant.
    pub tenant: Option<i64>,
    /// In the last 24 hours.
    pub day_bytes: i64,
    /// In the fourteen days before that.
    pub before_bytes: i64,
    /// Since when there is anything to compare with, at most those fourteen days.
    pub since: Timestamp,
}

/// Points of a VM that a verification found damaged, and that are still there.
#[derive(Debug, Clone)]
pub struct DamagedFact {
    /// The VM's id.
    pub guid: String,
    /// Its name.
    pub name: String,
    /// Its tenant.
    pub tenant: Option<i64>,
    /// How many.
    pub points: i64,
}

/// All that alerts are made of.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// VMs that are not protected, and those whose points are older than the threshold.
    pub vms: Vec<VmFact>,
    /// Last runs.
    pub runs: Vec<RunFact>,
    /// Agents.
    pub agents: Vec<AgentFact>,
    /// Reports of the last thirty days, oldest first.
    pub checkpoints: Vec<CheckpointReport>,
    /// Newest points, by the name that reports use.
    pub newest_by_vm: BTreeMap<String, Timestamp>,
    /// Of the last thirty days.
    pub mismatches: Vec<Mismatch>,
    /// Repositories.
    pub repositories: Vec<RepositoryFact>,
    /// VMs with damaged points.
    pub damaged: Vec<DamagedFact>,
    /// What a check of the audit log found, if there was one.
    pub chain: Option<bool>,
}

/// Everything that is wrong. Of one kind and subject at most once.
pub fn causes(facts: &Facts, limits: &Thresholds, now: Timestamp) -> Vec<Cause> {
    let mut all: Vec<Cause> = facts.vms.iter().filter_map(|vm| no_good_point(vm, limits, now)).collect();
    all.extend(facts.runs.iter().filter_map(run_failed));
    all.extend(facts.agents.iter().filter_map(|agent| silent(agent, limits, now)));
    all.extend(checkpoints(facts, limits, now));
    all.extend(facts.mismatches.iter().filter_map(mismatch));
    all.extend(facts.repositories.iter().filter_map(|repository| growth(repository, limits, now)));
    all.extend(facts.damaged.iter().map(damaged));
    if facts.chain == Some(false) {
        let subject = Subject { kind: "server", id: "audit".into(), name: "audit log".into() };
        all.push(Cause {
            kind: AlertKind::AuditChainBroken,
            subject,
            tenant: None,
            severity: 1,
            title: "The audit log does not hang together".into(),
            reason: "An entry was changed or removed behind the server's back".into(),
        });
    }
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|cause| seen.insert((cause.kind, cause.subject.kind, cause.subject.id.clone())));
    all
}

fn older(at: Timestamp, limit: SignedDuration, now: Timestamp) -> bool {
    now.duration_since(at) > limit
}

fn vm(guid: &str, name: &str) -> Subject {
    Subject { kind: "vm", id: guid.to_owned(), name: name.to_owned() }
}

fn no_good_point(fact: &VmFact, limits: &Thresholds, now: Timestamp) -> Option<Cause> {
    let limit = SignedDuration::from_hours(limits.no_point_hours);
    let is_over_limit = limits.no_point_hours > 0
        && matches!(fact.state, Protection::Protected | Protection::Late)
        && fact.newest.is_some_and(|newest| older(newest, limit, now));
    let (severity, title) = match fact.state {
        Protection::AtRisk => (1, "at risk"),
        // A new VM has until its target to get its first point.
        Protection::Never if older(fact.known_since, fact.target, now) => (1, "never backed up"),
        Protection::Late => (4, "late"),
        _ if is_over_limit => (4, "no restorable point for too long"),
        _ => return None,
    };
    debug_assert!(severity >= protection::severity(fact.state).min(4), "an alert is no worse than its state");
    let reason = match (&fact.reason, is_over_limit) {
        (reason, false) => reason.clone(),
        (reason, true) if !reason.is_empty() => reason.clone(),
        _ => format!("newest point is older than {} h", limits.no_point_hours),
    };
    Some(Cause {
        kind: AlertKind::NoGoodPoint,
        subject: vm(&fact.guid, &fact.name),
        tenant: fact.tenant,
        severity,
        title: format!("{}: {title}", fact.name),
        reason,
    })
}

fn run_failed(fact: &RunFact) -> Option<Cause> {
    let (kind, title) = match fact.status {
        RunStatus::Failed => (AlertKind::RunFailed, "backup failed"),
        RunStatus::PartialSuccess => (AlertKind::RunPartlyFailed, "backup partly failed"),
        _ => return None,
    };
    Some(Cause {
        kind,
        subject: Subject { kind: "job", id: fact.subject.clone(), name: fact.name.clone() },
        tenant: fact.tenant,
        severity: 2,
        title: format!("{}: {title}", fact.name),
        reason: format!("Run {}: {}", fact.run, fact.summary),
    })
}

fn silent(fact: &AgentFact, limits: &Thresholds, now: Timestamp) -> Option<Cause> {
    let is_silent = older(fact.seen, SignedDuration::from_mins(limits.silent_minutes), now);
    is_silent.then(|| Cause {
        kind: AlertKind::AgentSilent,
        subject: Subject { kind: "agent", id: fact.id.to_string(), name: fact.name.clone() },
        tenant: fact.tenant,
        severity: 2,
        title: format!("{}: host silent", fact.name),
        reason: format!("no word since {}", crate::store::time_text(fact.seen)),
    })
}

/// A report stands until the agent says that the checkpoint is gone, or a point made an hour or more after it shows that
/// a run went by without finding it.
fn checkpoints(facts: &Facts, limits: &Thresholds, now: Timestamp) -> Vec<Cause> {
    let mut living: BTreeMap<(i64, &str), (Timestamp, &CheckpointReport)> = BTreeMap::new();
    for report in &facts.checkpoints {
        let key = (report.agent, report.vm.as_str());
        if report.is_gone {
            living.remove(&key);
            continue;
        }
        let began = report.created.unwrap_or(report.at).min(report.at);
        let began = living.get(&key).map_or(began, |(first, _)| began.min(*first));
        living.insert(key, (began, report));
    }
    let hour = SignedDuration::from_hours(1);
    let is_outlived = |report: &CheckpointReport| {
        facts.newest_by_vm.get(&report.vm).is_some_and(|newest| newest.duration_since(report.at) > hour)
    };
    let limit = SignedDuration::from_hours(limits.checkpoint_hours);
    let old = living.into_values().filter(|(began, report)| older(*began, limit, now) && !is_outlived(report));
    old.map(|(began, report)| Cause {
        kind: AlertKind::CheckpointOld,
        subject: Subject {
            kind: "vm",
            id: format!("{}/{}", report.agent, report.vm),
            name: format!("{} on {}", report.vm, report.host),
        },
        tenant: report.tenant,
        severity: 3,
        title: format!("{} on {}: a checkpoint is old", report.vm, report.host),
        reason: format!("it exists since {}", crate::store::time_text(began)),
    })
    .collect()
}

fn mismatch(fact: &Mismatch) -> Option<Cause> {
    let is_healed = fact.good_run.is_some_and(|good| good > fact.run);
    (!is_healed).then(|| Cause {
        kind: AlertKind::TrackingAuditFailed,
        subject: vm(&fact.vm, &fact.name),
        tenant: fact.tenant,
        severity: 2,
        title: format!("{}: change tracking missed a change", fact.name),
        reason: format!("found by the sample check of run {} in {}", fact.run, fact.disk),
    })
}

fn growth(fact: &RepositoryFact, limits: &Thresholds, now: Timestamp) -> Option<Cause> {
    let days = now.duration_since(fact.since).as_hours() / 24 - 1;
    let days = days.min(14);
    // Before that a first full backup is most of it.
    if days < 3 || fact.day_bytes < limits.growth_min_bytes || limits.growth_percent <= 0 {
        return None;
    }
    let mean = fact.before_bytes / days;
    let is_growth = i128::from(fact.day_bytes) * 100 > i128::from(mean) * i128::from(limits.growth_percent);
    is_growth.then(|| Cause {
        kind: AlertKind::RepositoryGrowth,
        subject: Subject { kind: "repository", id: fact.id.clone(), name: fact.id.clone() },
        tenant: fact.tenant,
        severity: 4,
        title: format!("Repository {}: grows unusually", fact.id),
        reason: format!("{} GiB in a day, {} GiB a day before", fact.day_bytes >> 30, mean >> 30),
    })
}

fn damaged(fact: &DamagedFact) -> Cause {
    Cause {
        kind: AlertKind::PointDamaged,
        subject: vm(&fact.guid, &fact.name),
        tenant: fact.tenant,
        severity: 2,
        title: format!("{}: a restore point is damaged", fact.name),
        reason: format!("{} of its points cannot be restored", fact.points),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-27T12:00:00Z".parse().expect("time")
    }

    fn ago(hours: i64) -> Timestamp {
        now().checked_sub(SignedDuration::from_hours(hours)).expect("time")
    }

    fn told(facts: Facts, limits: Thresholds) -> Vec<(AlertKind, i64)> {
        causes(&facts, &limits, now()).iter().map(|cause| (cause.kind, cause.severity)).collect()
    }

    #[test]
    fn a_vm_without_a_good_point_is_told_of_by_its_state() {
        let limited = Thresholds { no_point_hours: 48, ..Thresholds::default() };
        for (case, state, newest, known, limits, expected) in [
            ("protected", Protection::Protected, Some(3), 900, Thresholds::default(), None),
            ("protected, over the client's own limit", Protection::Protected, Some(49), 900, limited, Some(4)),
            ("protected, at that limit", Protection::Protected, Some(48), 900, limited, None),
            ("late", Protection::Late, Some(30), 900, Thresholds::default(), Some(4)),
            ("at risk", Protection::AtRisk, Some(60), 900, Thresholds::default(), Some(1)),
            ("never, and new", Protection::Never, None, 25, Thresholds::default(), None),
            ("never, and the target has passed", Protection::Never, None, 27, Thresholds::default(), Some(1)),
            ("excluded", Protection::Excluded, Some(5000), 900, limited, None),
            ("in no job", Protection::InNoJob, Some(5000), 900, limited, None),
            ("cannot", Protection::Cannot, Some(5000), 900, limited, None),
            ("unknown", Protection::Unknown, Some(5000), 900, limited, None),
        ] {
            let fact = VmFact {
                guid: "g".into(),
                name: "DC01".into(),
                tenant: None,
                state,
                reason: if state == Protection::Protected { String::new() } else { "why".into() },
                newest: newest.map(ago),
                target: SignedDuration::from_hours(26),
                known_since: ago(known),
            };
            let causes = causes(&Facts { vms: vec![fact], ..Facts::default() }, &limits, now());
            assert_eq!(causes.first().map(|cause| cause.severity), expected, "{case}");
            assert!(causes.iter().all(|cause| !cause.reason.is_empty()), "{case}: {causes:?}");
        }
    }

    #[test]
    fn runs_agents_and_points_are_told_of_while_it_is_so() {
        let run = |status| RunFact {
            subject: "7".into(),
            name: "nightly".into(),
            tenant: None,
            run: 5,
            status,
            summary: String::new(),
        };
        for status in RunStatus::ALL {
            let expected = match status {
                RunStatus::Failed => vec![(AlertKind::RunFailed, 2)],
                RunStatus::PartialSuccess => vec![(AlertKind::RunPartlyFailed, 2)],
                _ => vec![],
            };
            assert_eq!(
                told(Facts { runs: vec![run(*status)], ..Facts::default() }, Thresholds::default()),
                expected,
                "{status}"
            );
        }
        for (minutes, expected) in [(-60, 0), (0, 0), (15, 0), (16, 1), (5000, 1)] {
            let seen = now().checked_sub(SignedDuration::from_mins(minutes)).expect("time");
            let agent = AgentFact { id: 1, name: "HV01".into(), tenant: None, seen };
            let facts = Facts { agents: vec![agent], ..Facts::default() };
            assert_eq!(told(facts, Thresholds::default()).len(), expected, "silent for {minutes} min");
        }
        for (run, good, expected) in [(5, None, 1), (5, Some(4), 1), (5, Some(5), 1), (5, Some(6), 0)] {
            let fact = Mismatch {
                vm: "g".into(),
                name: "DC01".into(),
                tenant: None,
                run,
                good_run: good,
                disk: "C:\\a.vhdx".into(),
            };
            let facts = Facts { mismatches: vec![fact], ..Facts::default() };
            assert_eq!(told(facts, Thresholds::default()).len(), expected, "mismatch in {run}, good {good:?}");
        }
        for (chain, expected) in [(None, 0), (Some(true), 0), (Some(false), 1)] {
            assert_eq!(told(Facts { chain, ..Facts::default() }, Thresholds::default()).len(), expected, "{chain:?}");
        }
    }

    #[test]
    fn a_checkpoint_is_old_from_its_first_report_until_it_is_gone() {
        // Hours ago: reports that it is there, reports that it is gone, the newest point.
        for (case, there, gone, created, point, expected) in [
            ("nothing was said", vec![], vec![], None, None, 0),
            ("said lately", vec![3], vec![], None, None, 0),
            ("said long ago", vec![25], vec![], None, None, 1),
            ("said lately of an old one", vec![3], vec![], Some(30), None, 1),
            ("said again: its age is of the first time", vec![30, 2], vec![], None, None, 1),
            ("gone since", vec![30], vec![20], None, None, 0),
            ("gone, and there again", vec![30, 10], vec![20], None, None, 0),
            ("a run went by and did not find it", vec![30], vec![], None, Some(28), 0),
            ("the run that said so made that point", vec![30], vec![], None, Some(30), 1),
        ] {
            let report = |at: i64, is_gone| CheckpointReport {
                agent: 1,
                host: "HV01".into(),
                tenant: None,
                vm: "DC01".into(),
                at: ago(at),
                created: created.map(ago),
                is_gone,
            };
            let mut checkpoints: Vec<CheckpointReport> = there.iter().map(|at| report(*at, false)).collect();
            checkpoints.extend(gone.iter().map(|at| report(*at, true)));
            checkpoints.sort_by_key(|report| report.at);
            let newest_by_vm = point.map(|at| ("DC01".to_owned(), ago(at))).into_iter().collect();
            let facts = Facts { checkpoints, newest_by_vm, ..Facts::default() };
            assert_eq!(told(facts, Thresholds::default()).len(), expected, "{case}");
        }
    }

    #[test]
    fn growth_is_a_day_beside_the_days_before() {
        const GIB: i64 = 1 << 30;
        for (case, day, before, since_hours, expected) in [
            ("as ever", 20, 14 * 20, 15 * 24, false),
            ("three times is not yet", 60, 14 * 20, 15 * 24, false),
            ("more than three times", 61, 14 * 20, 15 * 24, true),
            ("much of little is little", 9, 14, 15 * 24, false),
            ("nothing to compare with", 500, 0, 48, false),
            ("a young repository is compared with its days", 61, 3 * 20, 4 * 24, true),
            ("nothing before, for long", 11, 0, 15 * 24, true),
        ] {
            let fact = RepositoryFact {
                id: "r".into(),
                tenant: None,
                day_bytes: day * GIB,
                before_bytes: before * GIB,
                since: ago(since_hours),
            };
            let facts = Facts { repositories: vec![fact], ..Facts::default() };
            assert_eq!(!told(facts, Thresholds::default()).is_empty(), expected, "{case}");
        }
    }

    #[test]
    fn of_one_subject_a_kind_is_there_once() {
        let fact = DamagedFact { guid: "g".into(), name: "DC01".into(), tenant: None, points: 1 };
        let facts = Facts { damaged: vec![fact.clone(), fact], ..Facts::default() };
        assert_eq!(told(facts, Thresholds::default()), [(AlertKind::PointDamaged, 2)]);
    }
}

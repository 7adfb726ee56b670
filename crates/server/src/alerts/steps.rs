//! What changes about alerts, given what is wrong now: a pure function of both and the clock.

use std::collections::BTreeMap;

use control_api::words::{AlertKind, AlertState};
use jiff::{SignedDuration, Timestamp};

use super::causes::Cause;

/// What came back within this time is flapping.
const FLAPPING: SignedDuration = SignedDuration::from_hours(2);
/// What came back so often within it is told of as one, and resolved only when it stayed away as long.
const FOLDED: i64 = 3;

/// An alert as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its id.
    pub id: i64,
    /// What it is about.
    pub kind: AlertKind,
    /// `Subject::kind` and `id`.
    pub subject: (String, String),
    /// Where it stands.
    pub state: AlertState,
    /// 1 is worst.
    pub severity: i64,
    /// What it says.
    pub text: (String, String),
    /// How often it was opened.
    pub episode: i64,
    /// The cause is away since then, and it is not resolved yet.
    pub clear_since: Option<Timestamp>,
    /// Resolved then.
    pub resolved_at: Option<Timestamp>,
    /// So often it came back.
    pub flaps: i64,
    /// Acknowledged until then.
    pub acknowledged_until: Option<Timestamp>,
}

/// One change of one alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A cause that was never known.
    Open(Cause),
    /// One that is back, so often by now.
    Reopen(i64, Cause, i64),
    /// It is worse than it was: told again, whoever knows of it.
    Worsen(i64, Cause),
    /// It says something else, or is less bad: nobody is told.
    Reword(i64, Cause),
    /// Its acknowledgement is over and the cause is not.
    Remind(i64),
    /// A flapping cause went away.
    ClearBegins(i64),
    /// And came back before it was resolved.
    ClearEnds(i64),
    /// The cause is gone.
    Resolve(i64),
}

/// The changes. Kinds that `looked` does not name were not looked at: nothing about them changes.
pub fn steps(known: &[Known], causes: &[Cause], looked: impl Fn(AlertKind) -> bool, now: Timestamp) -> Vec<Step> {
    let mut stored: BTreeMap<(AlertKind, &str, &str), &Known> =
        known.iter().map(|known| ((known.kind, known.subject.0.as_str(), known.subject.1.as_str()), known)).collect();
    let mut steps = Vec::new();
    for cause in causes {
        match stored.remove(&(cause.kind, cause.subject.kind, cause.subject.id.as_str())) {
            Some(known) => present(known, cause, now, &mut steps),
            None => steps.push(Step::Open(cause.clone())),
        }
    }
    for known in stored.into_values().filter(|known| known.state != AlertState::Resolved && looked(known.kind)) {
        match known.clear_since {
            _ if known.flaps < FOLDED => steps.push(Step::Resolve(known.id)),
            None => steps.push(Step::ClearBegins(known.id)),
            Some(since) if now.duration_since(since) >= FLAPPING => steps.push(Step::Resolve(known.id)),
            Some(_) => {}
        }
    }
    steps
}

fn present(known: &Known, cause: &Cause, now: Timestamp, steps: &mut Vec<Step>) {
    if known.state == AlertState::Resolved {
        let is_back = known.resolved_at.is_some_and(|at| now.duration_since(at) < FLAPPING);
        steps.push(Step::Reopen(known.id, cause.clone(), if is_back { known.flaps + 1 } else { 0 }));
        return;
    }
    if known.clear_since.is_some() {
        steps.push(Step::ClearEnds(known.id));
    }
    if cause.severity < known.severity {
        steps.push(Step::Worsen(known.id, cause.clone()));
        return;
    }
    if cause.severity != known.severity || (&cause.title, &cause.reason) != (&known.text.0, &known.text.1) {
        steps.push(Step::Reword(known.id, cause.clone()));
    }
    if known.state == AlertState::Acknowledged && known.acknowledged_until.is_some_and(|until| until <= now) {
        steps.push(Step::Remind(known.id));
    }
}

#[cfg(test)]
mod tests {
    use super::super::causes::Subject;
    use super::*;

    fn now() -> Timestamp {
        "2026-11-27T12:00:00Z".parse().expect("time")
    }

    fn ago(minutes: i64) -> Timestamp {
        now().checked_sub(SignedDuration::from_mins(minutes)).expect("time")
    }

    fn cause(severity: i64, reason: &str) -> Cause {
        Cause {
            kind: AlertKind::NoGoodPoint,
            subject: Subject { kind: "vm", id: "g".into(), name: "DC01".into() },
            tenant: None,
            severity,
            title: "t".into(),
            reason: reason.into(),
        }
    }

    fn open() -> Known {
        Known {
            id: 9,
            kind: AlertKind::NoGoodPoint,
            subject: ("vm".into(), "g".into()),
            state: AlertState::Open,
            severity: 4,
            text: ("t".into(), "late".into()),
            episode: 1,
            clear_since: None,
            resolved_at: None,
            flaps: 0,
            acknowledged_until: None,
        }
    }

    #[test]
    fn every_step_from_every_state() {
        let resolved =
            |minutes, flaps| Known { state: AlertState::Resolved, resolved_at: Some(ago(minutes)), flaps, ..open() };
        let acknowledged = |until: Option<i64>| Known {
            state: AlertState::Acknowledged,
            acknowledged_until: until.map(ago),
            ..open()
        };
        let flapping = |clear: Option<i64>| Known { flaps: 3, clear_since: clear.map(ago), ..open() };
        let (late, worse, better, other) = (cause(4, "late"), cause(1, "risk"), cause(5, "x"), cause(4, "later"));
        for (case, known, cause, expected) in [
            ("new", None, Some(&late), vec![Step::Open(late.clone())]),
            ("nothing", None, None, vec![]),
            ("stays", Some(open()), Some(&late), vec![]),
            ("says something else", Some(open()), Some(&other), vec![Step::Reword(9, other.clone())]),
            ("worse", Some(open()), Some(&worse), vec![Step::Worsen(9, worse.clone())]),
            ("better", Some(open()), Some(&better), vec![Step::Reword(9, better.clone())]),
            ("gone", Some(open()), None, vec![Step::Resolve(9)]),
            ("gone and resolved", Some(resolved(5, 0)), None, vec![]),
            ("back soon", Some(resolved(119, 1)), Some(&late), vec![Step::Reopen(9, late.clone(), 2)]),
            ("back later", Some(resolved(120, 2)), Some(&late), vec![Step::Reopen(9, late.clone(), 0)]),
            ("acknowledged until it is gone", Some(acknowledged(None)), Some(&late), vec![]),
            ("acknowledged for longer", Some(acknowledged(Some(-1))), Some(&late), vec![]),
            ("acknowledged no longer", Some(acknowledged(Some(0))), Some(&late), vec![Step::Remind(9)]),
            ("acknowledged and worse", Some(acknowledged(None)), Some(&worse), vec![Step::Worsen(9, worse.clone())]),
            ("acknowledged and gone", Some(acknowledged(None)), None, vec![Step::Resolve(9)]),
            ("flapping, away", Some(flapping(None)), None, vec![Step::ClearBegins(9)]),
            ("flapping, away for a while", Some(flapping(Some(119))), None, vec![]),
            ("flapping, back", Some(flapping(Some(30))), Some(&late), vec![Step::ClearEnds(9)]),
            ("flapping, away for good", Some(flapping(Some(120))), None, vec![Step::Resolve(9)]),
            ("a clock that went back resolves nothing", Some(flapping(Some(-60))), None, vec![]),
        ] {
            let known: Vec<Known> = known.into_iter().collect();
            let causes: Vec<Cause> = cause.into_iter().cloned().collect();
            assert_eq!(steps(&known, &causes, |_| true, now()), expected, "{case}");
        }
        assert_eq!(steps(&[open()], &[], |_| false, now()), [], "what was not looked at stays");
    }
}

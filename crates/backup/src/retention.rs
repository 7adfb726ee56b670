//! Retention: which points of a VM a policy keeps, by which rule, and which it lets go.
//!
//! The decision is [`plan`], a pure function. The policy's part of it is Kopia's own rule set
//! ([`kopia_repo::retention`]), so `kopia snapshot expire` comes to the same; beside it, a held point stays, and so does
//! the newest point that is sound. [`plan_sources`] looks at a repository and plans each VM; [`apply`] and
//! [`delete_points`] delete manifests, never contents: what no snapshot names any more is collected by maintenance,
//! which leaves alone what a running backup is about to name (spec kopia-format 7.6).
//!
//! A point is complete in itself (DESIGN law 1), so any may go beside a running backup, the run's own base included:
//! the run took the base's entries when it began, looks every one of them up again, and reads again what is gone.

mod delete;
mod sources;
#[cfg(test)]
mod tests;

use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use kopia_repo::format::policy::RetentionPolicy;
use kopia_repo::retention::{Candidate, Reason, retention_reasons};

pub use self::delete::{Applied, Obstacle, apply, delete_points, deletion_obstacles};
pub use self::sources::{PolicyOrigin, SourcePlan, keep_everything, plan_sources, set_policy, source_policy};
use crate::hold::{Hold, holds_of};
use crate::point::Point;

/// What a plan looks at in a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanPoint {
    /// Point id.
    pub id: String,
    /// When the run began: periods go by it.
    pub started: Timestamp,
    /// When it was stored: decides the order of equal starts.
    pub stored: Timestamp,
    /// What holds it.
    pub holds: Vec<Hold>,
    /// It cannot be restored: stored bytes are missing or wrong.
    pub is_damaged: bool,
}

impl PlanPoint {
    pub(crate) fn of(point: &Point, is_damaged: bool) -> Self {
        let manifest = &point.snapshot.manifest;
        Self {
            id: point.id.clone(),
            started: manifest.start_time,
            stored: manifest.end_time,
            holds: holds_of(point),
            is_damaged,
        }
    }
}

/// Why a point stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Because {
    /// A limit of the policy.
    Policy(Reason),
    /// A hold that has not ended.
    Held(Hold),
    /// No newer point of the VM is sound.
    NewestSound,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(reason) => reason.fmt(f),
            Self::Held(hold) => write!(f, "held ({hold})"),
            Self::NewestSound => f.write_str("newest sound point"),
        }
    }
}

/// A point in a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedPoint {
    /// Which.
    pub point: PlanPoint,
    /// Why it stays; empty if it goes.
    pub because: Vec<Because>,
}

impl PlannedPoint {
    /// Whether it stays.
    pub fn stays(&self) -> bool {
        !self.because.is_empty()
    }
}

/// Decides about all points of one VM's source; newest first, whatever the order they come in.
///
/// `now` ends holds and does nothing else: limits reach back from the newest point, so a clock that is wrong when the
/// plan is made lets nothing go. `zone` is where weeks begin, and the days that a limit reaches back.
pub fn plan(points: &[PlanPoint], policy: &RetentionPolicy, now: Timestamp, zone: &TimeZone) -> Vec<PlannedPoint> {
    let candidates: Vec<Candidate> =
        points.iter().map(|point| Candidate { start: point.started, end: point.stored, is_complete: true }).collect();
    let reasons = retention_reasons(&candidates, policy, zone);
    let mut planned: Vec<PlannedPoint> = points
        .iter()
        .zip(reasons)
        .map(|(point, reasons)| {
            let held = point.holds.iter().filter(|hold| !hold.is_over(now)).cloned().map(Because::Held);
            PlannedPoint {
                point: point.clone(),
                because: reasons.into_iter().map(Because::Policy).chain(held).collect(),
            }
        })
        .collect();
    planned.sort_by_key(|one| std::cmp::Reverse((one.point.started, one.point.stored)));
    if let Some(sound) = planned.iter_mut().find(|one| !one.point.is_damaged) {
        sound.because.push(Because::NewestSound);
    }
    planned
}

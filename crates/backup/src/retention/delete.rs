//! Points go: what a plan lets go, or what a person named.
//!
//! What is deleted is looked at again right before, in a fresh view: a hold that was set meanwhile counts, and so does a
//! newer point. The deletions of one source become visible together, with one index blob: a crash leaves all of them or
//! none, and the next run goes on.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use kopia_repo::format::policy::RetentionPolicy;
use kopia_repo::format::snapshot::SourceInfo;
use kopia_repo::{Repository, SessionOptions, WriteSession};

use super::sources::{look_at, plan_source};
use super::{PlanPoint, PolicyOrigin, SourcePlan};
use crate::hold::{Hold, fresh_points, holds_of};
use crate::point::{Point, list_points};
use crate::{BackupError, evidence};

/// What became of a plan.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Gone, newest first.
    pub gone: Vec<Point>,
    /// Ids of points that stay although the plan let them go: by now they are held, or needed.
    pub stay_after_all: Vec<String>,
}

/// Lets go what `source` lets go, if a plan of this instant does so too. The host is not needed, and backups may run.
pub fn apply(
    repo: &Arc<Repository>,
    source: &SourcePlan,
    now: Timestamp,
    zone: &TimeZone,
) -> Result<Applied, BackupError> {
    let wanted: Vec<&str> = source.going().map(|one| one.point.id.as_str()).collect();
    if wanted.is_empty() {
        return Ok(Applied::default());
    }
    repo.refresh()?;
    let given: Option<&RetentionPolicy> = (source.origin == PolicyOrigin::Given).then_some(&source.policy);
    let points = points_of(repo, &source.source)?;
    let fresh = plan_source(repo, &points, given, now, zone)?;
    let going: BTreeSet<&str> = fresh.iter().flat_map(SourcePlan::going).map(|one| one.point.id.as_str()).collect();
    let (gone, staying): (Vec<&Point>, Vec<&Point>) = points
        .iter()
        .rev()
        .filter(|point| wanted.contains(&point.id.as_str()))
        .partition(|point| going.contains(point.id.as_str()));
    let mut applied = Applied {
        gone: gone.into_iter().cloned().collect(),
        stay_after_all: staying.into_iter().map(|point| point.id.clone()).collect(),
    };
    if let Some(restored) = delete(repo, &source.source, &applied.gone, LastPoint::Stays)? {
        applied.gone.retain(|point| point.id != restored);
        applied.stay_after_all.push(restored);
    }
    Ok(applied)
}

/// Why a point cannot be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Something holds it.
    Held {
        /// Point id.
        point: String,
        /// What.
        hold: Hold,
    },
    /// Without it the VM has no point that is sound.
    LastSound {
        /// Point id.
        point: String,
        /// Name of the VM.
        vm_name: String,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { point, hold } => write!(f, "point {point} is held ({hold})"),
            Self::LastSound { point, vm_name } => write!(f, "point {point} is the last sound one of {vm_name}"),
        }
    }
}

/// Everything that keeps these points, by their ids, from being deleted together; empty if nothing does.
pub fn deletion_obstacles(
    repo: &Arc<Repository>,
    ids: &[String],
    now: Timestamp,
) -> Result<Vec<Obstacle>, BackupError> {
    let points = fresh_points(repo, ids)?;
    let mut obstacles = Vec::new();
    for point in &points {
        let holds = holds_of(point).into_iter().filter(|hold| !hold.is_over(now));
        obstacles.extend(holds.map(|hold| Obstacle::Held { point: point.id.clone(), hold }));
    }
    for source in sources_of(&points) {
        let all = points_of(repo, &source)?;
        let staying: Vec<Point> = all.iter().filter(|point| !ids.contains(&point.id)).cloned().collect();
        let newest_sound = |points: &[Point]| -> Result<Option<PlanPoint>, BackupError> {
            Ok(look_at(repo, points)?.into_iter().find(|point| !point.is_damaged))
        };
        if newest_sound(&staying)?.is_none()
            && let Some(sound) = newest_sound(&all)?
        {
            let vm_name = all.last().map(|point| point.vm_name.clone()).unwrap_or_default();
            obstacles.push(Obstacle::LastSound { point: sound.id, vm_name });
        }
    }
    Ok(obstacles)
}

/// Deletes points, by their ids; all or none. Refuses with every obstacle.
pub fn delete_points(repo: &Arc<Repository>, ids: &[String], now: Timestamp) -> Result<Vec<Point>, BackupError> {
    let obstacles = deletion_obstacles(repo, ids, now)?;
    if !obstacles.is_empty() {
        return Err(BackupError::PointsProtected { obstacles });
    }
    let points = fresh_points(repo, ids)?;
    for source in sources_of(&points) {
        let of_source: Vec<Point> =
            points.iter().filter(|point| point.snapshot.manifest.source == source).cloned().collect();
        // Without an obstacle all of them can be meant only when none is sound.
        let last = if of_source.len() < points_of(repo, &source)?.len() { LastPoint::Stays } else { LastPoint::Goes };
        if let Some(point) = delete(repo, &source, &of_source, last)? {
            let vm_name = of_source.last().map(|point| point.vm_name.clone()).unwrap_or_default();
            return Err(BackupError::PointsProtected { obstacles: vec![Obstacle::LastSound { point, vm_name }] });
        }
    }
    Ok(points)
}

/// Whether a source may be left without a point.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LastPoint {
    Stays,
    Goes,
}

/// Deletes manifests of a source. Two who delete at once may each have counted on a point that the other let go: when
/// none is left afterwards, the newest comes back, and its id is returned. Its contents are still there, because only
/// maintenance removes them, and not so soon.
fn delete(
    repo: &Arc<Repository>,
    source: &SourceInfo,
    points: &[Point],
    last: LastPoint,
) -> Result<Option<String>, BackupError> {
    let Some(newest) = points.iter().max_by_key(|point| point.started()) else { return Ok(None) };
    let session = WriteSession::new(repo.clone(), SessionOptions { parallel_uploads: 1 })?;
    for point in points {
        session.delete_snapshot(&point.snapshot);
        evidence::forget(repo, &session, &point.id)?;
    }
    session.flush()?;
    repo.refresh()?;
    if last == LastPoint::Goes || !points_of(repo, source)?.is_empty() {
        return Ok(None);
    }
    tracing::warn!(point = newest.id, "the last points were deleted by two at once: the newest comes back");
    session.put_snapshot(&newest.snapshot.manifest);
    session.flush()?;
    Ok(Some(newest.id.clone()))
}

/// Oldest first.
fn points_of(repo: &Repository, source: &SourceInfo) -> Result<Vec<Point>, BackupError> {
    let points = list_points(repo, None)?;
    Ok(points.into_iter().filter(|point| point.snapshot.manifest.source == *source).collect())
}

fn sources_of(points: &[Point]) -> BTreeSet<SourceInfo> {
    points.iter().map(|point| point.snapshot.manifest.source.clone()).collect()
}

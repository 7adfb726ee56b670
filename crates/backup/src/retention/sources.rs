//! From a repository to plans: the VMs, their policies, and which of their points are sound.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use kopia_repo::format::policy::{Policy, RetentionPolicy};
use kopia_repo::format::snapshot::SourceInfo;
use kopia_repo::retention::Period;
use kopia_repo::{PolicyTarget, Repository, SessionOptions, StoredPolicy, WriteSession};

use super::{PlanPoint, PlannedPoint, plan};
use crate::point::{Point, list_points};
use crate::{BackupError, evidence};

/// Where the limits of a plan come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyOrigin {
    /// The caller.
    Given,
    /// The repository, as stock Kopia would find them.
    Repository,
}

/// The plan for the points of one VM under one source. A VM has one source for its life in a repository (spec
/// control-api 5.3).
#[derive(Clone, Debug)]
pub struct SourcePlan {
    /// The Kopia source.
    pub source: SourceInfo,
    /// The VM.
    pub vm_id: String,
    /// Its name in the newest point.
    pub vm_name: String,
    /// The limits.
    pub policy: RetentionPolicy,
    /// Whose they are.
    pub origin: PolicyOrigin,
    /// The points, newest first.
    pub planned: Vec<PlannedPoint>,
}

impl SourcePlan {
    /// The points that go, newest first.
    pub fn going(&self) -> impl Iterator<Item = &PlannedPoint> {
        self.planned.iter().filter(|one| !one.stays())
    }
}

/// Plans every VM that `wanted` accepts, in order of their names; by `given`, or by what the repository holds.
pub fn plan_sources(
    repo: &Arc<Repository>,
    wanted: impl Fn(&Point) -> bool,
    given: Option<&RetentionPolicy>,
    now: Timestamp,
    zone: &TimeZone,
) -> Result<Vec<SourcePlan>, BackupError> {
    let mut sources: BTreeMap<SourceInfo, Vec<Point>> = BTreeMap::new();
    for point in list_points(repo, None)? {
        sources.entry(point.snapshot.manifest.source.clone()).or_default().push(point);
    }
    let mut plans = Vec::new();
    // A VM is wanted as a whole: it may have had another name once.
    for (_, points) in sources.into_iter().filter(|(_, points)| points.iter().any(&wanted)) {
        plans.extend(plan_source(repo, &points, given, now, zone)?);
    }
    plans.sort_by(|a, b| (&a.vm_name, &a.source).cmp(&(&b.vm_name, &b.source)));
    Ok(plans)
}

/// Plans all points of one source, oldest first; `None` when there are none.
pub(super) fn plan_source(
    repo: &Arc<Repository>,
    points: &[Point],
    given: Option<&RetentionPolicy>,
    now: Timestamp,
    zone: &TimeZone,
) -> Result<Option<SourcePlan>, BackupError> {
    let Some(newest) = points.last() else { return Ok(None) };
    let source = newest.snapshot.manifest.source.clone();
    let (policy, origin) = match given {
        Some(policy) => (policy.clone(), PolicyOrigin::Given),
        None => (source_policy(repo, &source)?, PolicyOrigin::Repository),
    };
    let planned = plan(&look_at(repo, points)?, &policy, now, zone);
    let (vm_id, vm_name) = (newest.vm_id.clone(), newest.vm_name.clone());
    Ok(Some(SourcePlan { source, vm_id, vm_name, policy, origin, planned }))
}

/// What a plan needs of points of one source. What checks found counts; besides, damage is looked for from the newest on, up to the first sound one: older
/// ones are not asked, since nothing hangs on them.
pub(super) fn look_at(repo: &Arc<Repository>, points: &[Point]) -> Result<Vec<PlanPoint>, BackupError> {
    let evidence = evidence::all(repo)?;
    let found_damaged = |point: &Point| {
        evidence.get(&point.id).is_some_and(|found| evidence::judge(found).outcome == evidence::Outcome::Damaged)
    };
    let mut is_sound_seen = false;
    let mut looked_at = Vec::with_capacity(points.len());
    for point in points.iter().rev() {
        let is_damaged = !is_sound_seen && (found_damaged(point) || is_damaged(repo, point)?);
        is_sound_seen |= !is_damaged;
        looked_at.push(PlanPoint::of(point, is_damaged));
    }
    Ok(looked_at)
}

/// Whether the description or a disk's structure cannot be read.
fn is_damaged(repo: &Arc<Repository>, point: &Point) -> Result<bool, BackupError> {
    let look = || -> Result<(), BackupError> {
        for disk in &point.describe(repo)?.disks {
            point.open_disk(repo, disk)?;
        }
        Ok(())
    };
    match look() {
        Ok(()) => Ok(false),
        Err(error) if error.is_damage() => {
            tracing::warn!(point = point.id, error = %crate::error::chain_text(&error), "the point is damaged");
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

/// The limits in force for a source, as stock Kopia sees them.
pub fn source_policy(repo: &Repository, source: &SourceInfo) -> Result<RetentionPolicy, BackupError> {
    Ok(repo.effective_retention(source)?)
}

/// Every limit 0: nothing expires (spec kopia-format 6.6).
pub fn keep_everything() -> RetentionPolicy {
    let mut policy = RetentionPolicy { ignore_identical_snapshots: Some(false), ..RetentionPolicy::default() };
    Period::ALL.iter().for_each(|period| policy.set_limit(*period, 0));
    policy
}

/// Stores the limits of sources, each as its own policy, all with one flush. What else a source's policy says stays.
pub fn set_policy(repo: &Arc<Repository>, sources: &[SourceInfo], limits: &RetentionPolicy) -> Result<(), BackupError> {
    repo.refresh()?;
    let session = WriteSession::new(repo.clone(), SessionOptions { parallel_uploads: 1 })?;
    for source in sources {
        let target = PolicyTarget::Path(source.clone());
        let StoredPolicy { mut policy, .. } = match repo.policy(&target)? {
            Some(stored) if has_limits(&stored.policy, limits) => continue,
            Some(stored) => stored,
            None => StoredPolicy { id: String::new(), modified: Timestamp::MIN, policy: Policy::default() },
        };
        for period in Period::ALL {
            policy.retention.set_limit(period, limits.limit(period));
        }
        session.put_policy(&target, &policy)?;
    }
    session.flush()?;
    Ok(())
}

fn has_limits(policy: &Policy, limits: &RetentionPolicy) -> bool {
    let is_set = |period: &Period| policy.retention.limit_if_set(*period) == Some(limits.limit(*period));
    Period::ALL.iter().all(is_set)
}

//! Evidence: what checks of a point found, kept in the repository beside it.
//!
//! One manifest for each check, of a type of our own, which stock Kopia carries along and does not look at. Of one level
//! only the newest is kept. A point that a failed check of change tracking made doubtful has evidence too.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use kopia_repo::{Repository, SessionOptions, WriteSession};
use serde::{Deserialize, Serialize};

use crate::BackupError;
use crate::FullReason;
use crate::point::{PointDescription, PointDisk, ReadMode, list_points};
use crate::volumes::VolumeCheck;

const TYPE: &str = "e3-evidence";
/// Findings kept of one check.
const MAX_DAMAGE: usize = 20;

/// What a check was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Every part is there.
    Structure,
    /// Besides, a random sample of the stored bytes was read.
    Sample,
    /// Every byte was read.
    Full,
    /// The disks were restored to a scratch folder, and their file systems checked.
    Restore,
    /// A later audit found that change tracking had been wrong at some time since the last full read.
    Tracking,
}

impl Check {
    /// As people and scripts see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Structure => "structure",
            Self::Sample => "sample",
            Self::Full => "full",
            Self::Restore => "restore",
            Self::Tracking => "tracking",
        }
    }
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All that was looked at is right.
    Sound,
    /// It is whole, and may not be what the guest had.
    Doubtful,
    /// Something is missing or wrong.
    Damaged,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The point.
    pub point_id: String,
    /// Its VM.
    pub vm_id: String,
    /// What was done.
    pub check: Check,
    /// How it ended.
    pub outcome: Outcome,
    /// When.
    pub at: Timestamp,
    /// Name and version of the program that did it.
    pub program: String,
    /// Entries of disks looked up.
    pub entries: u64,
    /// Stored segments that were read, of how many.
    #[serde(default)]
    pub segments: (u64, u64),
    /// Plaintext bytes read and compared with their hash.
    pub read_bytes: u64,
    /// File systems that were checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeCheck>,
    /// What was wrong, or in doubt, in words; not all of it when there is much.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// Keeps evidence of checks; older evidence of the same check of the same point goes.
pub fn record(repo: &Arc<Repository>, evidence: &[Evidence]) -> Result<(), BackupError> {
    if evidence.is_empty() {
        return Ok(());
    }
    let session = WriteSession::new(repo.clone(), SessionOptions { parallel_uploads: 1 })?;
    for one in evidence {
        let labels = labels(&one.point_id, &one.vm_id, one.check);
        let borrowed: Vec<(&str, &str)> = labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for old in repo.find_manifests(&borrowed)? {
            session.delete_manifest(&old.id, old.modified);
        }
        let mut one = one.clone();
        one.problems.truncate(MAX_DAMAGE);
        session.put_manifest(labels.map(|(name, value)| (name.to_owned(), value)), &one);
    }
    Ok(session.flush()?)
}

/// All evidence of the repository, by point id. What cannot be read, such as that of a later version, is left out.
pub fn all(repo: &Repository) -> Result<HashMap<String, Vec<Evidence>>, BackupError> {
    let mut found: HashMap<String, Vec<Evidence>> = HashMap::new();
    for manifest in repo.find_manifests(&[("type", TYPE)])? {
        match serde_json::from_str::<Evidence>(manifest.data.get()) {
            Ok(evidence) => found.entry(evidence.point_id.clone()).or_default().push(evidence),
            Err(error) => tracing::warn!(manifest = manifest.id, %error, "evidence is not readable"),
        }
    }
    Ok(found)
}

/// Marks as doubtful the points of `new`'s VM that rest on change tracking which an audit of `new` refuted: of each disk
/// in question, every point before `new` back to the last that read it in full. Gives their ids.
pub(crate) fn doubt(repo: &Arc<Repository>, new: &PointDescription, at: Timestamp) -> Result<Vec<String>, BackupError> {
    let refuted = |disk: &PointDisk| matches!(disk.read, ReadMode::Full { reason: FullReason::AuditFailed });
    let mut open: Vec<&str> =
        new.disks.iter().filter(|disk| refuted(disk)).map(|disk| disk.virtual_disk_id.as_str()).collect();
    let mut found: Vec<Evidence> = Vec::new();
    let points = list_points(repo, Some(&new.vm_id))?;
    for point in points.iter().rev().filter(|point| point.id != new.point_id) {
        if open.is_empty() {
            break;
        }
        // One that cannot be read is damaged, which is worse than doubtful, and says nothing about those before it.
        let Ok(description) = point.describe(repo) else { continue };
        let tracked = |id: &&str| {
            let disk = description.disks.iter().find(|disk| disk.virtual_disk_id == *id);
            disk.is_some_and(|disk| matches!(disk.read, ReadMode::Incremental { .. }))
        };
        let doubtful: Vec<&str> = open.iter().copied().filter(|id| tracked(id)).collect();
        if !doubtful.is_empty() {
            found.push(Evidence {
                point_id: point.id.clone(),
                vm_id: new.vm_id.clone(),
                check: Check::Tracking,
                outcome: Outcome::Doubtful,
                at,
                program: new.program.clone(),
                entries: 0,
                segments: (0, 0),
                read_bytes: 0,
                volumes: Vec::new(),
                problems: doubtful.iter().map(|id| format!("disk {id} may lack changes of the guest")).collect(),
            });
        }
        open = doubtful;
    }
    record(repo, &found)?;
    Ok(found.into_iter().map(|one| one.point_id).collect())
}

/// Queues the deletion of all evidence of a point, which goes too.
pub(crate) fn forget(repo: &Repository, session: &WriteSession, point_id: &str) -> Result<(), BackupError> {
    for one in repo.find_manifests(&[("type", TYPE), ("point-id", point_id)])? {
        session.delete_manifest(&one.id, one.modified);
    }
    Ok(())
}

/// What all evidence of a point says together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The deepest check whose newest result is sound; the commit reads the structure back, so there is always one.
    pub verified: Check,
    /// When that was; `None` for the commit itself.
    pub at: Option<Timestamp>,
    /// Damage outweighs doubt, doubt what was sound. A sound check that is deeper and later than the one that found
    /// damage takes it back: what was missing may have come back.
    pub outcome: Outcome,
}

/// Judges a point by its evidence.
pub fn judge(evidence: &[Evidence]) -> Judgement {
    let sound = evidence.iter().filter(|one| one.outcome == Outcome::Sound).max_by_key(|one| one.check);
    let is_refuted = |bad: &Evidence| {
        bad.check != Check::Tracking
            && evidence.iter().any(|one| one.outcome == Outcome::Sound && one.check >= bad.check && one.at > bad.at)
    };
    let standing = evidence.iter().filter(|one| one.outcome != Outcome::Sound && !is_refuted(one));
    let outcome = standing.map(|one| one.outcome).fold(Outcome::Sound, |worst, outcome| match (worst, outcome) {
        (Outcome::Damaged, _) | (_, Outcome::Damaged) => Outcome::Damaged,
        (Outcome::Doubtful, _) | (_, Outcome::Doubtful) => Outcome::Doubtful,
        _ => Outcome::Sound,
    });
    Judgement { verified: sound.map_or(Check::Structure, |one| one.check), at: sound.map(|one| one.at), outcome }
}

fn labels(point_id: &str, vm_id: &str, check: Check) -> [(&'static str, String); 4] {
    [
        ("type", TYPE.to_owned()),
        ("point-id", point_id.to_owned()),
        ("vm-id", vm_id.to_owned()),
        ("check", check.as_str().to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(check: Check, outcome: Outcome, second: i64) -> Evidence {
        Evidence {
            point_id: "p".into(),
            vm_id: "v".into(),
            check,
            outcome,
            at: Timestamp::from_second(second).unwrap(),
            program: "test".into(),
            entries: 0,
            segments: (0, 0),
            read_bytes: 0,
            volumes: Vec::new(),
            problems: Vec::new(),
        }
    }

    #[test]
    fn the_worst_that_still_stands_counts() {
        use Check::{Full, Restore, Sample, Structure, Tracking};
        use Outcome::{Damaged, Doubtful, Sound};
        for (found, verified, outcome) in [
            (&[][..], Structure, Sound),
            (&[(Sample, Sound, 1)], Sample, Sound),
            (&[(Full, Sound, 1), (Sample, Sound, 2)], Full, Sound),
            (&[(Full, Sound, 1), (Sample, Damaged, 2)], Full, Damaged),
            // The storage was away, and is back.
            (&[(Sample, Damaged, 1), (Full, Sound, 2)], Full, Sound),
            (&[(Full, Damaged, 1), (Structure, Sound, 2)], Structure, Damaged),
            (&[(Tracking, Doubtful, 1)], Structure, Doubtful),
            // Bytes that are there are not therefore the guest's.
            (&[(Tracking, Doubtful, 1), (Full, Sound, 2)], Full, Doubtful),
            (&[(Tracking, Doubtful, 1), (Restore, Damaged, 2)], Structure, Damaged),
        ] {
            let evidence: Vec<_> = found.iter().map(|(check, outcome, at)| evidence(*check, *outcome, *at)).collect();
            let judgement = judge(&evidence);
            assert_eq!((judgement.verified, judgement.outcome), (verified, outcome), "{found:?}");
        }
    }
}

//! What lies in a repository, as its manifests say.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use backup::evidence::{self, Outcome};
use backup::hold::holds_of;
use backup::{Consistency, Point, ReadMode, list_points};
use bucket::{Location, RetryPolicy, S3Environment};
use jiff::Timestamp;
use kopia_repo::{ClientOptions, Repository, Storage, StorageKind};
use tracing::warn;

/// A repository and its points.
#[derive(Debug)]
pub struct Found {
    /// Where it lies.
    pub location: Location,
    /// With which keys and region it was read.
    pub environment: S3Environment,
    /// Its own id.
    pub id: String,
    /// Its points, oldest first.
    pub points: Vec<FoundPoint>,
    /// Snapshots that say they are points and cannot be read, with the reason.
    pub unreadable: Vec<(String, String)>,
}

/// One point.
#[derive(Debug)]
pub struct FoundPoint {
    /// The point's own id.
    pub id: String,
    /// Its Kopia manifest.
    pub manifest: String,
    /// The run that made it.
    pub run: String,
    /// The host.
    pub host: String,
    /// VM id, as the database spells it.
    pub vm_guid: String,
    /// VM name.
    pub vm_name: String,
    /// When the run of this VM began.
    pub started: Timestamp,
    /// The instant that it holds.
    pub frozen: Timestamp,
    /// When it was whole.
    pub stored: Timestamp,
    /// The point that its changes were counted from.
    pub base: Option<String>,
    /// What was asked for, in the contract's words.
    pub consistency_asked: String,
    /// Whether applications were frozen.
    pub is_application: bool,
    /// Why it is less than asked.
    pub consistency_reason: Option<String>,
    /// Why it is held, where it is.
    pub hold: Option<String>,
    /// The last sound check: when and how deep.
    pub verified: Option<(Timestamp, &'static str)>,
    /// What all checks say together.
    pub outcome: Outcome,
    /// Its disks.
    pub disks: Vec<FoundDisk>,
}

/// One disk of a point.
#[derive(Debug)]
pub struct FoundDisk {
    /// Its id.
    pub id: String,
    /// Its file on the host.
    pub path: String,
    /// Where it sits.
    pub slot: String,
    /// Its object.
    pub object: String,
    /// Virtual size.
    pub size_bytes: u64,
    /// `full` or `incremental`.
    pub read_mode: &'static str,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Bytes that had changed.
    pub changed_bytes: u64,
}

/// Reads every point of the repository. It blocks, and takes a moment for each point.
pub fn read(location: Location, environment: S3Environment, password: &str) -> Result<Found> {
    let bucket = bucket::open(&location, &environment, RetryPolicy::default())?;
    let kind = match location {
        Location::Folder(_) => StorageKind::Folder,
        Location::S3(_) => StorageKind::ObjectStore,
    };
    let client = ClientOptions::new("e3-server", "adopt");
    let repo = Repository::open(&Storage { bucket, kind }, password, client)
        .with_context(|| format!("open the repository in {location}"))?;
    let evidence = evidence::all(&repo).context("read what checks of points found")?;
    let mut found = Found { location, environment, id: repo.id(), points: Vec::new(), unreadable: Vec::new() };
    for point in list_points(&repo, None).context("list the points")? {
        let judged = evidence::judge(evidence.get(&point.id).map_or(&[], Vec::as_slice));
        match describe(&repo, &point) {
            Ok(mut described) => {
                described.verified = judged.at.map(|at| (at, judged.verified.as_str()));
                described.outcome = judged.outcome;
                found.points.push(described);
            }
            // One point that cannot be read does not hide the others.
            Err(error) => {
                warn!(point = point.id, "left out: {error:#}");
                found.unreadable.push((point.id, format!("{error:#}")));
            }
        }
    }
    found.points.sort_by_key(|point| point.stored);
    Ok(found)
}

fn describe(repo: &Arc<Repository>, point: &Point) -> Result<FoundPoint> {
    let told = point.describe(repo)?;
    let now = Timestamp::now();
    let holds: Vec<String> =
        holds_of(point).iter().filter(|hold| !hold.is_over(now)).map(ToString::to_string).collect();
    let base = told.disks.iter().find_map(|disk| match &disk.read {
        ReadMode::Incremental { base } => Some(base.clone()),
        ReadMode::Full { .. } => None,
    });
    let disks = told.disks.iter().map(|disk| FoundDisk {
        id: disk.virtual_disk_id.clone(),
        path: disk.path.clone(),
        slot: disk.slot.clone(),
        object: disk.object.clone(),
        size_bytes: disk.size_bytes,
        read_mode: if matches!(disk.read, ReadMode::Incremental { .. }) { "incremental" } else { "full" },
        read_bytes: disk.read_bytes,
        changed_bytes: disk.changed_bytes,
    });
    Ok(FoundPoint {
        id: point.id.clone(),
        manifest: point.snapshot.id.clone(),
        disks: disks.collect(),
        base,
        run: told.run_id,
        host: told.host,
        vm_guid: told.vm_id.trim().trim_matches(['{', '}']).to_uppercase(),
        vm_name: told.vm_name,
        started: told.started,
        frozen: told.frozen,
        stored: told.stored,
        consistency_asked: told.consistency_asked.to_string(),
        is_application: told.consistency == Consistency::Application,
        consistency_reason: match told.consistency {
            Consistency::Offline => Some("the VM was off".into()),
            _ => told.consistency_reason,
        },
        hold: (!holds.is_empty()).then(|| holds.join("; ")),
        verified: None,
        outcome: Outcome::Sound,
    })
}

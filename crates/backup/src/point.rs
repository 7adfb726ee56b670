//! A restore point: its description, its place in the repository, and how people name it.

use hyperv::seam::FileFacts;
use jiff::Timestamp;
use kopia_repo::format::snapshot::{DirEntry, EntryType};
use kopia_repo::{ObjectId, Repository, Snapshot, object_of};
use serde::{Deserialize, Serialize};
use vhdx::Guid;

use crate::audit::Audited;
use crate::disk_object::DiskObject;
use crate::error::SelectError;
use crate::layout::Layout;
use crate::{BackupError, Consistency, FullReason};

/// Version of `point.json`; readers accept unknown fields and refuse a higher number.
pub const POINT_VERSION: u32 = 1;
/// User part of the Kopia sources of VMs.
pub const SOURCE_USER: &str = "hyperv";
/// Longest description that is read.
const MAX_DESCRIPTION_BYTES: u64 = 64 << 20;

/// `/point.json`: what the point holds and how it came about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PointDescription {
    /// [`POINT_VERSION`].
    pub version: u32,
    /// The point's own id, stable when Kopia renames its manifest (pinning does).
    pub point_id: String,
    /// The run that made it; one run may cover several VMs.
    pub run_id: String,
    /// Which attempt of the run.
    pub attempt: u32,
    /// VM id.
    pub vm_id: String,
    /// The VM's name at that time.
    pub vm_name: String,
    /// The host it was taken on.
    pub host: String,
    /// Hyper-V Replica's role of the VM there; primary and replica share the VM id.
    #[serde(default)]
    pub replication_mode: u16,
    /// When the run of this VM began.
    pub started: Timestamp,
    /// When the disks were frozen, as nearly as the host tells.
    pub frozen: Timestamp,
    /// When everything was stored.
    pub stored: Timestamp,
    /// Bytes that the run added to the repository for this VM.
    #[serde(default)]
    pub stored_bytes: u64,
    /// What was asked for.
    pub consistency_asked: Consistency,
    /// What was reached.
    pub consistency: Consistency,
    /// Why it is less than asked, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency_reason: Option<String>,
    /// What the guest was then: applications are frozen in Windows, file systems elsewhere.
    #[serde(default)]
    pub guest_family: GuestFamily,
    /// The reference point that tracking continues from, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_point: Option<String>,
    /// Names of the user checkpoints that existed; another set means a full next time.
    #[serde(default)]
    pub user_checkpoints: Vec<String>,
    /// The user checkpoint that had been applied last, from which the disks branch off; another one means a full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_applied_checkpoint: Option<String>,
    /// The disks, in order of their slots.
    pub disks: Vec<PointDisk>,
    /// Disks that were left out, and why.
    #[serde(default)]
    pub absent_disks: Vec<AbsentDisk>,
    /// Program version.
    pub program: String,
}

impl PointDescription {
    /// The consistency reached, for people: what was frozen in the guest (spec hyperv 2.4).
    pub fn consistency_in_words(&self) -> &'static str {
        match (self.consistency, self.guest_family) {
            (Consistency::Application, GuestFamily::Windows) => "application-consistent",
            (Consistency::Application, _) => "file-system-consistent",
            (Consistency::Crash, _) => "crash-consistent",
            (Consistency::Offline, _) => "the VM was off",
        }
    }
}

/// The guest's operating system, as it said itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestFamily {
    /// Windows.
    Windows,
    /// Something else, mostly Linux.
    Other,
    /// It did not say.
    #[default]
    Unknown,
}

impl From<hyperv::GuestFamily> for GuestFamily {
    fn from(family: hyperv::GuestFamily) -> Self {
        match family {
            hyperv::GuestFamily::Windows => Self::Windows,
            hyperv::GuestFamily::Other => Self::Other,
            hyperv::GuestFamily::Unknown => Self::Unknown,
        }
    }
}

/// A disk in a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PointDisk {
    /// Its number in the point, from 0.
    pub number: u32,
    /// VirtualDiskId.
    pub virtual_disk_id: String,
    /// Controller and place, for people.
    pub slot: String,
    /// Path of the frozen file on the host.
    pub path: String,
    /// Virtual size.
    pub size_bytes: u64,
    /// Logical sector size.
    pub logical_sector_bytes: u32,
    /// Physical sector size.
    pub physical_sector_bytes: u32,
    /// [`crate::layout::LAYOUT_VERSION`].
    pub layout_version: u32,
    /// Payload segment size.
    pub segment_bytes: u32,
    /// Its file in the point.
    pub file: String,
    /// Object of that file.
    pub object: String,
    /// Length of that file.
    pub file_bytes: u64,
    /// Payload blocks in that file.
    pub slots: u32,
    /// DataWriteGuid of that file.
    pub data_write_guid: String,
    /// How it was read.
    pub read: ReadMode,
    /// Bytes asked of the source.
    pub read_bytes: u64,
    /// Bytes of segments that differ from the base; for a full, of all that are not zero.
    pub changed_bytes: u64,
    /// Bytes re-read to check change tracking.
    #[serde(default)]
    pub audit_bytes: u64,
    /// What that check looked at; absent where nothing was checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audited: Option<Audited>,
    /// The tracking id of the frozen instant; absent when the host gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rct_id: Option<String>,
    /// `MostRecentId` of the frozen file when it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_recent_id: Option<String>,
    /// The files of the frozen chain, leaf first.
    pub chain: Vec<PointChainFile>,
}

/// A file of a frozen chain, as far as it tells a replaced file from the same one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointChainFile {
    /// File name without directory.
    pub name: String,
    /// The file system's number of it.
    pub file_id: String,
    /// When it was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
}

impl PointChainFile {
    pub(crate) fn of(name: &str, facts: &FileFacts) -> Self {
        Self {
            name: name.to_owned(),
            file_id: facts.file_id.clone(),
            created: facts.created.and_then(|time| Timestamp::try_from(time).ok()),
        }
    }
}

/// How a disk was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "mode")]
pub enum ReadMode {
    /// All of it.
    Full {
        /// Why not only the changes.
        reason: FullReason,
    },
    /// What changed since the base.
    Incremental {
        /// The base's point id.
        base: String,
    },
}

/// A disk that is not in the point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbsentDisk {
    /// What it is.
    pub disk: String,
    /// Why it was left out.
    pub reason: String,
}

/// A point as a listing shows it: what the manifest alone tells.
#[derive(Clone, Debug)]
pub struct Point {
    /// Point id.
    pub id: String,
    /// VM id.
    pub vm_id: String,
    /// VM name.
    pub vm_name: String,
    /// The Kopia snapshot.
    pub snapshot: Snapshot,
}

impl Point {
    fn of(snapshot: Snapshot) -> Option<Self> {
        let tag = |key: &str| snapshot.manifest.tags.get(&format!("tag:{key}")).cloned();
        if snapshot.manifest.source.user_name != SOURCE_USER || !snapshot.manifest.incomplete.is_empty() {
            return None;
        }
        Some(Self {
            id: tag("point-id").unwrap_or_else(|| snapshot.id.clone()),
            vm_id: tag("vm-id")?,
            vm_name: tag("vm-name").unwrap_or_default(),
            snapshot,
        })
    }

    /// When the VM's run began.
    pub fn started(&self) -> Timestamp {
        self.snapshot.manifest.start_time
    }

    /// A tag of the point.
    pub fn tag(&self, key: &str) -> Option<&str> {
        self.snapshot.manifest.tags.get(&format!("tag:{key}")).map(String::as_str)
    }

    /// The entry of a file of the point, by its path.
    pub fn entry(&self, repo: &Repository, path: &str) -> Result<DirEntry, BackupError> {
        let root = self.snapshot.manifest.root_entry.as_ref().ok_or_else(|| self.broken("it has no root"))?;
        Ok(repo.walk(root, path)?)
    }

    /// `point.json`.
    pub fn describe(&self, repo: &Repository) -> Result<PointDescription, BackupError> {
        let entry = self.entry(repo, "point.json")?;
        let json = repo.read_object(&object_of(&entry)?, MAX_DESCRIPTION_BYTES)?;
        let description: PointDescription =
            serde_json::from_slice(&json).map_err(|error| self.broken(format!("point.json: {error}")))?;
        if description.version > POINT_VERSION {
            return Err(self.broken(format!(
                "it was written by a newer version (point.json {}), which knows more than this one",
                description.version
            )));
        }
        Ok(description)
    }

    /// Opens one of its disks.
    pub fn open_disk(&self, repo: &std::sync::Arc<Repository>, disk: &PointDisk) -> Result<DiskObject, BackupError> {
        let object = disk.object(&self.id)?;
        let entry = self.entry(repo, &disk.file)?;
        if entry.entry_type != EntryType::File || object_of(&entry)? != object || entry.size as u64 != disk.file_bytes {
            return Err(self.broken(format!("{} is not the object that point.json names", disk.file)));
        }
        let object = DiskObject::open(repo.clone(), object, disk.layout(&self.id)?)?;
        if object.len_bytes() != disk.file_bytes {
            return Err(self.broken(format!(
                "{} has {} bytes, not {}",
                disk.file,
                object.len_bytes(),
                disk.file_bytes
            )));
        }
        Ok(object)
    }

    pub(crate) fn broken(&self, problem: impl Into<String>) -> BackupError {
        BackupError::Point { point: self.id.clone(), problem: problem.into() }
    }
}

impl PointDisk {
    /// The object of its file.
    pub fn object(&self, point: &str) -> Result<ObjectId, BackupError> {
        self.object.parse().map_err(|error: kopia_repo::format::content_id::ObjectIdError| BackupError::Point {
            point: point.to_owned(),
            problem: format!("disk {}: {error}", self.number),
        })
    }

    /// How its file is cut.
    pub fn layout(&self, point: &str) -> Result<Layout, BackupError> {
        if self.layout_version != crate::layout::LAYOUT_VERSION {
            return Err(BackupError::Point {
                point: point.to_owned(),
                problem: format!("disk {} has layout version {}", self.number, self.layout_version),
            });
        }
        let geometry = vhdx::DiskGeometry {
            size_bytes: self.size_bytes,
            logical_sector_bytes: self.logical_sector_bytes,
            physical_sector_bytes: self.physical_sector_bytes,
        };
        Layout::new(geometry, self.segment_bytes)
            .map_err(|source| BackupError::Layout { disk: format!("disk {} of point {point}", self.number), source })
    }

    /// The identity as a GUID.
    pub fn disk_id(&self) -> Option<Guid> {
        self.virtual_disk_id.parse().ok()
    }
}

/// All complete points, oldest first; of one VM, by id, if asked for.
pub fn list_points(repo: &Repository, vm_id: Option<&str>) -> Result<Vec<Point>, BackupError> {
    let labels: Vec<(&str, &str)> =
        [Some(("username", SOURCE_USER)), vm_id.map(|id| ("tag:vm-id", id))].into_iter().flatten().collect();
    Ok(repo.snapshots(&labels)?.into_iter().filter_map(Point::of).collect())
}

/// Finds a point by its id or a unique prefix of it, `VM@latest`, or `VM@N` with 1 for the newest. VM is a name or an
/// id.
pub fn select_point(repo: &Repository, selector: &str) -> Result<Point, BackupError> {
    let points = list_points(repo, None)?;
    if let Some((vm, which)) = selector.rsplit_once('@') {
        return select_of_vm(points, selector, vm, which);
    }
    let not_found = || SelectError::NotFound {
        what: "point",
        selector: selector.into(),
        hint: " (an id from `points list`, VM@latest, or VM@N)".into(),
    };
    if selector.is_empty() {
        return Err(not_found().into());
    }
    let lower = selector.to_ascii_lowercase();
    let mut fitting: Vec<Point> = points.into_iter().filter(|point| point.id.starts_with(&lower)).collect();
    match fitting.len() {
        0 => Err(not_found().into()),
        1 => Ok(fitting.remove(0)),
        _ => Err(SelectError::Ambiguous {
            what: "point",
            selector: selector.into(),
            candidates: fitting.iter().map(|point| point.id.clone()).collect(),
        }
        .into()),
    }
}

fn select_of_vm(points: Vec<Point>, selector: &str, vm: &str, which: &str) -> Result<Point, BackupError> {
    let mut names: Vec<String> = points.iter().map(|point| point.vm_name.clone()).collect();
    names.sort();
    names.dedup();
    let of_vm: Vec<Point> =
        points.into_iter().filter(|point| point.vm_id.eq_ignore_ascii_case(vm) || point.vm_name == vm).collect();
    let mut ids: Vec<&str> = of_vm.iter().map(|point| point.vm_id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.len() > 1 {
        return Err(SelectError::Ambiguous {
            what: "VM",
            selector: vm.into(),
            candidates: ids.into_iter().map(str::to_owned).collect(),
        }
        .into());
    }
    if of_vm.is_empty() {
        let hint = if names.is_empty() {
            " (the repository holds no points)".into()
        } else {
            format!(" with points (there are: {})", names.join(", "))
        };
        return Err(SelectError::NotFound { what: "VM", selector: vm.into(), hint }.into());
    }
    let count = of_vm.len();
    let newest = match which {
        "latest" => Some(1),
        number => number.parse::<usize>().ok().filter(|number| *number > 0),
    };
    newest.and_then(|nth| count.checked_sub(nth)).and_then(|index| of_vm.into_iter().nth(index)).ok_or_else(|| {
        let hint = format!(" ({vm} has {count}: {vm}@latest is {vm}@1, the oldest is {vm}@{count})");
        SelectError::NotFound { what: "point", selector: selector.into(), hint }.into()
    })
}

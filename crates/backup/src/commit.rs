//! The commit of a point: description, directory and manifest, in that order, then everything read back.

use hyperv::seam::Clock;
use jiff::Timestamp;
use kopia_repo::format::policy::Policy;
use kopia_repo::format::snapshot::{
    DirEntry, DirSummary, DirectoryObject, EntryType, GoMode, SnapshotManifest, SnapshotStats, SourceInfo,
};
use kopia_repo::{CompressionId, PolicyTarget, Repository, SessionOptions, SessionStats, WriteSession};
use serde::{Deserialize, Serialize};

use crate::point::{Point, PointDescription, SOURCE_USER, list_points};
use crate::retention::keep_everything;
use crate::state::Converted;
use crate::{BackupError, Consistency};

/// A point of which everything is stored but its own description: what a crash after the conversion leaves in the
/// journal, so that the point can still be committed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PointDraft {
    /// The description, without tracking ids.
    pub description: PointDescription,
    /// Host part of the source: it stays for the VM's life in this repository, also when the VM moves.
    pub source_host: String,
    /// All files but `point.json`.
    pub files: Vec<DraftFile>,
}

impl PointDraft {
    fn source(&self) -> SourceInfo {
        SourceInfo {
            host: self.source_host.clone(),
            user_name: SOURCE_USER.into(),
            path: source_path(&self.description.vm_id),
        }
    }
}

/// A file of a draft.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftFile {
    /// Folder, or empty for the root.
    pub folder: String,
    /// Name.
    pub name: String,
    /// Its object.
    pub object: String,
    /// Its length.
    pub size_bytes: u64,
}

/// Path part of the source of a VM.
pub(crate) fn source_path(vm_id: &str) -> String {
    format!("/vm/{vm_id}")
}

/// Writes the point. When this returns, the point exists, is complete and was read back.
pub(crate) fn commit(
    repo: &std::sync::Arc<Repository>,
    clock: &dyn Clock,
    draft: &PointDraft,
    converted: &Converted,
) -> Result<(Point, SessionStats), BackupError> {
    let session = WriteSession::new(repo.clone(), SessionOptions { parallel_uploads: 1 })?;
    let mut description = draft.description.clone();
    description.reference_point = converted.reference_point.clone();
    description.stored = timestamp(clock);
    for (disk, id) in description.disks.iter_mut().zip(&converted.rct_ids) {
        disk.rct_id = id.clone();
    }
    if converted.crash_only && description.consistency == Consistency::Application {
        // The host says less than what was asked for and reported done: believe the lower (spec hyperv 3.6).
        description.consistency = Consistency::Crash;
        description.consistency_reason = Some("the reference point says crash-consistent".into());
    }
    keep_all_points(repo, &session, draft)?;
    let manifest = write_tree(&session, draft, &description)?;
    // Under the ID of the point: a recovery then sees whether somebody deleted it.
    session.put_snapshot_as(&description.point_id, &manifest);
    session.flush()?;
    let stats = session.stats();
    drop(session);
    Ok((read_back(repo, &description)?, stats))
}

/// Stock's default retention would expire points as soon as anybody runs it: before the first manifest of a source, a
/// policy says that all of them stay.
fn keep_all_points(repo: &Repository, session: &WriteSession, draft: &PointDraft) -> Result<(), BackupError> {
    let target = PolicyTarget::Path(draft.source());
    if repo.find_manifests(&target.labels())?.is_empty() {
        session.put_policy(&target, &Policy { retention: keep_everything(), ..Policy::default() })?;
    }
    Ok(())
}

fn write_tree(
    session: &WriteSession,
    draft: &PointDraft,
    description: &PointDescription,
) -> Result<SnapshotManifest, BackupError> {
    let mtime = description.frozen;
    let json = serde_json::to_vec_pretty(description).expect("the description is plain data");
    let object = session.write_object(&json, None, Some(CompressionId::ZSTD_FASTEST))?;
    let file = |name: &str, object: String, size_bytes: u64| DirEntry {
        name: name.to_owned(),
        entry_type: EntryType::File,
        mode: GoMode::from_posix(0o600),
        size: size_bytes as i64,
        mtime,
        uid: 0,
        gid: 0,
        object,
        summary: None,
    };

    let mut folders: Vec<&str> =
        draft.files.iter().map(|file| file.folder.as_str()).filter(|name| !name.is_empty()).collect();
    folders.sort_unstable();
    folders.dedup();
    let mut root = Vec::new();
    let (mut total_files, mut total_size) = (0, 0);
    for folder in &folders {
        let entries: Vec<DirEntry> = draft
            .files
            .iter()
            .filter(|one| one.folder == *folder)
            .map(|one| file(&one.name, one.object.clone(), one.size_bytes))
            .collect();
        let (entry, files, size) = directory(session, folder, entries, mtime, 0)?;
        total_files += files;
        total_size += size;
        root.push(entry);
    }
    root.extend(
        draft
            .files
            .iter()
            .filter(|one| one.folder.is_empty())
            .map(|one| file(&one.name, one.object.clone(), one.size_bytes)),
    );
    root.push(file("point.json", object.to_string(), json.len() as u64));
    let own: i64 = root.iter().filter(|entry| entry.entry_type == EntryType::File).count() as i64;
    let own_size: i64 = root.iter().filter(|entry| entry.entry_type == EntryType::File).map(|entry| entry.size).sum();
    let (mut root_entry, ..) = directory(session, &description.vm_id, root, mtime, folders.len() as i64)?;
    let (files, size) = (total_files + own, total_size + own_size);
    if let Some(summary) = &mut root_entry.summary {
        summary.files = files;
        summary.size = size;
    }

    let tags = [
        ("point-id", description.point_id.clone()),
        ("vm-id", description.vm_id.clone()),
        ("vm-name", description.vm_name.clone()),
        ("run-id", description.run_id.clone()),
        ("consistency", description.consistency.to_string()),
    ];
    Ok(SnapshotManifest {
        id: String::new(),
        source: draft.source(),
        description: format!("{} ({})", description.vm_name, description.consistency),
        start_time: description.started,
        end_time: description.stored,
        stats: SnapshotStats {
            total_size: size,
            file_count: files,
            non_cached_files: files,
            dir_count: folders.len() as i64 + 1,
            ..SnapshotStats::default()
        },
        incomplete: String::new(),
        root_entry: Some(root_entry),
        tags: tags.into_iter().map(|(key, value)| (format!("tag:{key}"), value)).collect(),
        pins: Vec::new(),
    })
}

/// Writes a directory; returns its entry and the files and bytes directly in it. Files sort by name in byte order
/// behind the folders, as stock writes them.
fn directory(
    session: &WriteSession,
    name: &str,
    mut entries: Vec<DirEntry>,
    mtime: Timestamp,
    subfolders: i64,
) -> Result<(DirEntry, i64, i64), BackupError> {
    entries.sort_by(|a, b| {
        (a.entry_type != EntryType::Directory, &a.name).cmp(&(b.entry_type != EntryType::Directory, &b.name))
    });
    let files = entries.iter().filter(|entry| entry.entry_type == EntryType::File).count() as i64;
    let size = entries.iter().filter(|entry| entry.entry_type == EntryType::File).map(|entry| entry.size).sum();
    let below: i64 = entries.iter().filter_map(|entry| entry.summary.as_ref()).map(|summary| summary.files).sum();
    let below_size: i64 = entries.iter().filter_map(|entry| entry.summary.as_ref()).map(|summary| summary.size).sum();
    let summary = DirSummary {
        size: size + below_size,
        files: files + below,
        dirs: subfolders + 1,
        max_time: mtime,
        symlinks: 0,
        incomplete: String::new(),
        num_failed: 0,
        num_ignored_errors: 0,
        errors: Vec::new(),
    };
    let object = session.write_directory(&DirectoryObject { entries, summary: Some(summary.clone()) })?;
    let entry = DirEntry {
        name: name.to_owned(),
        entry_type: EntryType::Directory,
        mode: GoMode::from_posix(0o700),
        size: 0,
        mtime,
        uid: 0,
        gid: 0,
        object: object.to_string(),
        summary: Some(summary),
    };
    Ok((entry, files, size))
}

/// Looks at the repository as a stranger would: the point is listed, its description is the one written, and every
/// disk's structure reads back.
fn read_back(repo: &std::sync::Arc<Repository>, written: &PointDescription) -> Result<Point, BackupError> {
    repo.refresh()?;
    let point = list_points(repo, Some(&written.vm_id))?
        .into_iter()
        .find(|point| point.id == written.point_id)
        .ok_or_else(|| BackupError::ReadBack { problem: "it is not listed".into() })?;
    if point.describe(repo)? != *written {
        return Err(BackupError::ReadBack { problem: "its description differs".into() });
    }
    for disk in &written.disks {
        let object = point.open_disk(repo, disk)?;
        if object.head().ids().data_write.to_string() != disk.data_write_guid || object.slots().len() != disk.slots {
            return Err(BackupError::ReadBack { problem: format!("the head of disk {} differs", disk.number) });
        }
    }
    Ok(point)
}

pub(crate) fn timestamp(clock: &dyn Clock) -> Timestamp {
    Timestamp::try_from(clock.now()).unwrap_or(Timestamp::UNIX_EPOCH)
}

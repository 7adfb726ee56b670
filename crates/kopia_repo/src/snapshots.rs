//! Snapshots: what was stored, from where and when, and the tree it consists of (spec 6.2 to 6.4).

use jiff::Timestamp;

use crate::Repository;
use crate::error::ReadError;
use crate::format::content_id::ObjectId;
use crate::format::manifest::ManifestEntry;
use crate::format::snapshot::{DirEntry, DirectoryObject, EntryType, SnapshotManifest};
use crate::session::WriteSession;

/// Longest directory object that is read; Kopia's largest known have a few hundred MiB.
const MAX_DIRECTORY_BYTES: u64 = 1 << 30;

/// A snapshot as a listing shows it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Manifest ID: the name by which people call it.
    pub id: String,
    /// When the manifest was written; needed to delete it.
    pub modified: Timestamp,
    /// What it says.
    pub manifest: SnapshotManifest,
}

impl Repository {
    /// Snapshots whose labels contain all of `labels`, oldest first.
    pub fn snapshots(&self, labels: &[(&str, &str)]) -> Result<Vec<Snapshot>, ReadError> {
        let mut all = vec![("type", "snapshot")];
        all.extend_from_slice(labels);
        let mut snapshots =
            self.find_manifests(&all)?.iter().map(snapshot_of).collect::<Result<Vec<Snapshot>, ReadError>>()?;
        snapshots.sort_by(|a, b| (a.manifest.start_time, &a.id).cmp(&(b.manifest.start_time, &b.id)));
        Ok(snapshots)
    }

    /// One snapshot by its manifest ID.
    pub fn snapshot(&self, id: &str) -> Result<Snapshot, ReadError> {
        let entry = self.manifest(id)?;
        if entry.manifest_type() != Some("snapshot") {
            return Err(ReadError::NotFound { what: format!("snapshot {id}") });
        }
        snapshot_of(&entry)
    }

    /// A directory of a snapshot.
    pub fn read_directory(&self, id: &ObjectId) -> Result<DirectoryObject, ReadError> {
        let json = self.read_object(id, MAX_DIRECTORY_BYTES)?;
        DirectoryObject::parse(&json)
            .map_err(|error| ReadError::DamagedObject { id: *id, problem: format!("not a directory: {error}") })
    }

    /// The entry at a path below a directory entry, names separated by `/`.
    pub fn walk(&self, root: &DirEntry, path: &str) -> Result<DirEntry, ReadError> {
        let mut entry = root.clone();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if entry.entry_type != EntryType::Directory {
                return Err(ReadError::NotFound { what: format!("{path:?} ({:?} is not a directory)", entry.name) });
            }
            let directory = self.read_directory(&object_of(&entry)?)?;
            entry = directory
                .entries
                .into_iter()
                .rev()
                .find(|one| one.name == name)
                .ok_or_else(|| ReadError::NotFound { what: format!("{path:?}") })?;
        }
        Ok(entry)
    }
}

impl WriteSession {
    /// Queues a snapshot manifest; visible with the next flush. Returns its ID.
    pub fn put_snapshot(&self, manifest: &SnapshotManifest) -> String {
        self.put_manifest(manifest.labels(), manifest)
    }

    /// As [`put_snapshot`](Self::put_snapshot), under an ID that the caller chose: 16 random bytes in lower-case
    /// hexadecimal. Who may have to write a snapshot again can then ask whether it was deleted in the meantime.
    pub fn put_snapshot_as(&self, id: &str, manifest: &SnapshotManifest) {
        self.put_manifest_as(id.to_owned(), manifest.labels(), manifest);
    }

    /// Queues the deletion of a snapshot; gone with the next flush. Its contents stay until maintenance finds that no
    /// other snapshot names them.
    pub fn delete_snapshot(&self, snapshot: &Snapshot) {
        self.delete_manifest(&snapshot.id, snapshot.modified);
    }

    /// Queues a snapshot in place of another, as Kopia does to change pins, tags or the description: a new manifest,
    /// and the former one gone, both with the next flush (spec 6.2). Returns the new ID.
    pub fn replace_snapshot(&self, former: &Snapshot, manifest: &SnapshotManifest) -> String {
        self.delete_snapshot(former);
        self.put_snapshot(manifest)
    }
}

/// The object of an entry, as an error that names the entry when it is malformed.
pub fn object_of(entry: &DirEntry) -> Result<ObjectId, ReadError> {
    entry.object_id().map_err(|error| ReadError::damaged(format!("the entry {:?}", entry.name), error))
}

fn snapshot_of(entry: &ManifestEntry) -> Result<Snapshot, ReadError> {
    let manifest = SnapshotManifest::parse(entry.data.get().as_bytes())
        .map_err(|error| ReadError::damaged(format!("snapshot manifest {}", entry.id), error))?;
    Ok(Snapshot { id: entry.id.clone(), modified: entry.modified, manifest })
}

//! Blobs: Kopia's names for objects in a bucket.
//!
//! An object store holds a blob under its own name. A folder spreads blobs over sub-folders and marks each file with
//! `.f` (spec 1.4, Kopia's `repo/blob/sharded`). Everything above this file speaks of blob IDs alone.

use std::ops::ControlFlow;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use bucket::{Bucket, BucketError, ErrorKind, LockMode, ObjectLock, Operation, PutOptions};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Where a repository lives: a bucket, and whether Kopia treats it as a folder or as an object store.
#[derive(Clone)]
pub struct Storage {
    /// The store; prefixes are its own business.
    pub bucket: Arc<dyn Bucket>,
    /// Which of Kopia's providers this corresponds to.
    pub kind: StorageKind,
}

/// Kopia's two ways of naming blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageKind {
    /// `filesystem` and its relatives: sub-folders by the beginning of the ID.
    Folder,
    /// `s3` and its relatives: the key is the ID.
    ObjectStore,
}

/// What a listing tells of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlobMeta {
    pub(crate) id: String,
    pub(crate) len_bytes: u64,
    pub(crate) modified: SystemTime,
}

/// Object lock of a repository (`kopia.blobcfg`): every put of a lockable blob carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retention {
    pub(crate) mode: LockMode,
    pub(crate) period: Duration,
}

/// Name of the file that says how a folder is sharded; not a blob.
const SHARDS_FILE: &str = ".shards";
const FOLDER_SUFFIX: &str = ".f";
/// S3's list of storage classes; not a blob (spec 1.5).
const STORAGE_CONFIG: &str = ".storageconfig";

pub(crate) struct BlobStore {
    bucket: Arc<dyn Bucket>,
    naming: Naming,
    retention: RwLock<Option<Retention>>,
}

impl BlobStore {
    /// Opens the blobs of a repository that exists. A folder without `.shards` is sharded `[3,3]` (spec 1.4).
    pub(crate) fn open(storage: &Storage) -> Result<Self, BucketError> {
        let naming = match storage.kind {
            StorageKind::ObjectStore => Naming::Flat,
            StorageKind::Folder => match storage.bucket.get(SHARDS_FILE) {
                Ok(json) => Naming::Sharded(serde_json::from_slice(&json).map_err(|error| {
                    BucketError::new(
                        ErrorKind::Other,
                        Operation::Get,
                        SHARDS_FILE,
                        storage.bucket.display_name(),
                        "not the JSON that Kopia writes there",
                    )
                    .with_source(error)
                })?),
                Err(error) if error.is_not_found() => Naming::Sharded(Shards::before_shards_file()),
                Err(error) => return Err(error),
            },
        };
        Ok(Self { bucket: storage.bucket.clone(), naming, retention: RwLock::new(None) })
    }

    /// Prepares a store for a new repository: a folder says how it is sharded before anything else is written,
    /// because Kopia would otherwise assume `[3,3]` and find nothing (spec 9.4, trap 1).
    pub(crate) fn create(storage: &Storage) -> Result<Self, BucketError> {
        let naming = match storage.kind {
            StorageKind::ObjectStore => Naming::Flat,
            StorageKind::Folder => {
                let shards = Shards::of_new_folder();
                let mut json = serde_json::to_vec(&shards).expect("plain data");
                json.push(b'\n');
                storage.bucket.put(SHARDS_FILE, &[&json], &PutOptions::default())?;
                Naming::Sharded(shards)
            }
        };
        Ok(Self { bucket: storage.bucket.clone(), naming, retention: RwLock::new(None) })
    }

    pub(crate) fn set_retention(&self, retention: Option<Retention>) {
        *self.retention.write().expect("no panic while held") = retention;
    }

    pub(crate) fn display_name(&self) -> String {
        self.bucket.display_name()
    }

    pub(crate) fn get(&self, id: &str) -> Result<Bytes, BucketError> {
        self.bucket.get(&self.naming.key(id))
    }

    pub(crate) fn get_range(&self, id: &str, offset_bytes: u64, len_bytes: u64) -> Result<Bytes, BucketError> {
        self.bucket.get_range(&self.naming.key(id), offset_bytes, len_bytes)
    }

    pub(crate) fn head(&self, id: &str) -> Result<BlobMeta, BucketError> {
        let meta = self.bucket.head(&self.naming.key(id))?;
        Ok(BlobMeta { id: id.to_owned(), len_bytes: meta.len_bytes, modified: meta.modified })
    }

    /// Puts a blob; `now` dates its object lock.
    pub(crate) fn put(&self, id: &str, body: &[&[u8]], now: SystemTime) -> Result<(), BucketError> {
        let retention = *self.retention.read().expect("no panic while held");
        let lock = retention
            .filter(|_| is_lockable(id))
            .map(|Retention { mode, period }| ObjectLock { mode, retain_until: now + period });
        let options =
            PutOptions { content_type: Some("application/x-kopia".into()), retention: lock, ..Default::default() };
        self.bucket.put(&self.naming.key(id), body, &options).map(|_| ())
    }

    pub(crate) fn delete(&self, id: &str) -> Result<(), BucketError> {
        self.bucket.delete(&self.naming.key(id))
    }

    /// All blobs whose ID starts with `prefix`.
    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<BlobMeta>, BucketError> {
        let mut blobs = Vec::new();
        for key_prefix in self.naming.key_prefixes(prefix) {
            self.bucket.list(&key_prefix, &mut |meta| {
                if let Some(id) = self.naming.id(&meta.key)
                    && id.starts_with(prefix)
                {
                    blobs.push(BlobMeta { id, len_bytes: meta.len_bytes, modified: meta.modified });
                }
                ControlFlow::Continue(())
            })?;
        }
        Ok(blobs)
    }
}

/// Blobs that carry the repository's object lock; markers, `kopia.maintenance` and logs stay deletable (spec 1.6).
fn is_lockable(id: &str) -> bool {
    ["n", "x", "p", "q", "kopia.repository", "kopia.blobcfg"].iter().any(|prefix| id.starts_with(prefix))
}

#[derive(Debug)]
enum Naming {
    Flat,
    Sharded(Shards),
}

impl Naming {
    fn key(&self, id: &str) -> String {
        match self {
            Self::Flat => id.to_owned(),
            Self::Sharded(shards) => shards.path(id),
        }
    }

    fn id(&self, key: &str) -> Option<String> {
        match self {
            Self::Flat => (!key.contains('/') && key != STORAGE_CONFIG).then(|| key.to_owned()),
            Self::Sharded(_) => key.strip_suffix(FOLDER_SUFFIX).map(|path| path.replace('/', "")),
        }
    }

    /// Key prefixes that together hold every blob of an ID prefix, none of them inside another.
    fn key_prefixes(&self, id_prefix: &str) -> Vec<String> {
        match self {
            Self::Flat => vec![id_prefix.to_owned()],
            // An override may send any ID anywhere: look at everything.
            Self::Sharded(shards) if !shards.overrides.is_empty() => vec![String::new()],
            Self::Sharded(shards) => {
                let sharded = shards.folder_prefix(id_prefix);
                if sharded == id_prefix { vec![sharded] } else { vec![id_prefix.to_owned(), sharded] }
            }
        }
    }
}

/// `.shards`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Shards {
    default: Vec<usize>,
    #[serde(rename = "maxNonShardedLength", default)]
    max_non_sharded_length: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    overrides: Vec<ShardOverride>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ShardOverride {
    prefix: String,
    shards: Vec<usize>,
}

impl Shards {
    fn of_new_folder() -> Self {
        Self { default: vec![1, 3], max_non_sharded_length: 20, overrides: Vec::new() }
    }

    fn before_shards_file() -> Self {
        Self { default: vec![3, 3], ..Self::of_new_folder() }
    }

    fn sizes(&self, id: &str) -> &[usize] {
        self.overrides.iter().find(|one| id.starts_with(&one.prefix)).map_or(&self.default, |one| &one.shards)
    }

    fn path(&self, id: &str) -> String {
        if id.len() <= self.max_non_sharded_length {
            return format!("{id}{FOLDER_SUFFIX}");
        }
        let (folders, rest) = split(id, self.sizes(id));
        format!("{folders}{rest}{FOLDER_SUFFIX}")
    }

    fn folder_prefix(&self, id_prefix: &str) -> String {
        let (folders, rest) = split(id_prefix, &self.default);
        folders + rest
    }
}

/// Cuts folder names off the front of an ID; a size that would leave nothing ends it. IDs are ASCII: one that is not
/// (it can only come from a stranger's file name) is not cut inside a letter.
fn split<'a>(id: &'a str, sizes: &[usize]) -> (String, &'a str) {
    let (mut folders, mut rest) = (String::new(), id);
    for &size in sizes {
        if rest.len() <= size || size == 0 || !rest.is_char_boundary(size) {
            break;
        }
        folders.push_str(&rest[..size]);
        folders.push('/');
        rest = &rest[size..];
    }
    (folders, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_paths_are_stocks() {
        let shards = Shards::of_new_folder();
        for (id, path) in [
            ("p0123456789abcdef0123456789abcdef-s1", "p/012/3456789abcdef0123456789abcdef-s1.f"),
            ("xn0_32ab54e1f0000000000-s1-c1", "x/n0_/32ab54e1f0000000000-s1-c1.f"),
            ("xn12_32ab54e1f0000000000-s1-c1", "x/n12/_32ab54e1f0000000000-s1-c1.f"),
            ("_log_20260101000000_1_2_3", "_/log/_20260101000000_1_2_3.f"),
            ("kopia.maintenance", "kopia.maintenance.f"),
            ("xw1700000000", "xw1700000000.f"),
            ("kopia.repository.backup.owner", "k/opi/a.repository.backup.owner.f"),
        ] {
            assert_eq!(shards.path(id), path, "{id}");
            assert_eq!(Naming::Sharded(shards.clone()).id(path).as_deref(), Some(id), "{path}");
        }
        assert_eq!(Shards::before_shards_file().path("p0123456789abcdef0123456789"), "p01/234/56789abcdef0123456789.f");
    }

    #[test]
    fn listing_finds_short_and_long_names_once() {
        let storage = Storage { bucket: Arc::new(bucket::Memory::default()), kind: StorageKind::Folder };
        let blobs = BlobStore::create(&storage).unwrap();
        let ids =
            ["xn1_aaaaaaaaaaaaaaaaaaaaaaa-s1-c1", "xn12_aaaaaaaaaaaaaaaaaaaaaa-s1-c1", "xe1", "xn1_short", "pack"];
        for id in ids {
            blobs.put(id, &[id.as_bytes()], SystemTime::UNIX_EPOCH).unwrap();
        }
        for (prefix, expected) in [
            ("xn1_", vec![ids[0], ids[3]]),
            ("xn1", vec![ids[0], ids[1], ids[3]]),
            ("xn12_", vec![ids[1]]),
            ("xn", vec![ids[0], ids[1], ids[3]]),
            ("x", vec![ids[2], ids[0], ids[1], ids[3]]),
            ("p", vec!["pack"]),
            ("", vec!["pack", ids[2], ids[0], ids[1], ids[3]]),
        ] {
            let mut found: Vec<_> = blobs.list(prefix).unwrap().into_iter().map(|blob| blob.id).collect();
            let mut expected: Vec<_> = expected.into_iter().map(str::to_owned).collect();
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "prefix {prefix:?}");
        }
    }
}

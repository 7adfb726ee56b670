//! Other clients of the repository: they look at a call, and do something just before it.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use backup::Point;
use bucket::{Bucket, BucketError, ObjectMeta, PutOptions, PutOutcome};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use kopia_repo::format::encryption::{ContentCipher, blob_iv, whole_blob_name};
use kopia_repo::format::epoch;
use kopia_repo::format::format_blob::{FORMAT_BLOB_ID, FormatBlob};
use kopia_repo::format::hashing::ContentHasher;
use kopia_repo::format::index::{IndexEntry, build};
use kopia_repo::format::pack;
use kopia_repo::{ClientOptions, ContentId, Repository, SessionOptions, Snapshot, Storage, StorageKind, WriteSession};

use crate::support::{PASSWORD, Rig};

type Deed = Box<dyn FnOnce() + Send>;

/// A bucket that lets somebody act just before one of its calls.
pub struct Interrupted {
    inner: Arc<dyn Bucket>,
    calls: AtomicU64,
    deed: Mutex<Option<(u64, Deed)>>,
}

impl Interrupted {
    pub fn new(inner: Arc<dyn Bucket>) -> Arc<Self> {
        Arc::new(Self { inner, calls: AtomicU64::new(0), deed: Mutex::default() })
    }

    /// Counts from zero again; `deed` is done before the call with this number.
    pub fn before(&self, call: u64, deed: impl FnOnce() + Send + 'static) {
        self.calls.store(0, Ordering::SeqCst);
        *self.deed.lock().unwrap() = Some((call, Box::new(deed)));
    }

    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    fn enter(&self) {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let due = self.deed.lock().unwrap().take_if(|(call, _)| *call <= number);
        if let Some((_, deed)) = due {
            deed();
        }
    }
}

impl Bucket for Interrupted {
    fn put(&self, key: &str, body: &[&[u8]], options: &PutOptions) -> Result<PutOutcome, BucketError> {
        self.enter();
        self.inner.put(key, body, options)
    }

    fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.enter();
        self.inner.get(key)
    }

    fn get_range(&self, key: &str, offset_bytes: u64, len_bytes: u64) -> Result<Bytes, BucketError> {
        self.enter();
        self.inner.get_range(key, offset_bytes, len_bytes)
    }

    fn list(&self, prefix: &str, visit: &mut dyn FnMut(ObjectMeta) -> ControlFlow<()>) -> Result<(), BucketError> {
        self.enter();
        self.inner.list(prefix, visit)
    }

    fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.enter();
        self.inner.head(key)
    }

    fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.enter();
        self.inner.delete(key)
    }

    fn display_name(&self) -> String {
        self.inner.display_name()
    }
}

/// Another client of the same store.
pub fn open(bucket: Arc<dyn Bucket>) -> Arc<Repository> {
    let storage = Storage { bucket, kind: StorageKind::ObjectStore };
    Repository::open(&storage, PASSWORD, ClientOptions::new("other", "otherhost")).unwrap()
}

/// The rig goes through the bucket that this returns.
pub fn interrupt(rig: &mut Rig) -> Arc<Interrupted> {
    let interrupted = Interrupted::new(rig.bucket.clone());
    rig.repo = open(interrupted.clone());
    interrupted
}

/// Deletes snapshots without asking anybody.
pub fn delete_snapshots(repo: &Arc<Repository>, snapshots: &[Snapshot]) {
    let session = WriteSession::new(repo.clone(), SessionOptions { parallel_uploads: 1 }).unwrap();
    snapshots.iter().for_each(|snapshot| session.delete_snapshot(snapshot));
    session.flush().unwrap();
}

/// Every content that the disks of these points consist of.
pub fn contents_of_disks(repo: &Arc<Repository>, points: &[Point]) -> BTreeSet<ContentId> {
    let mut contents = BTreeSet::new();
    for point in points {
        for disk in &point.describe(repo).unwrap().disks {
            let object = point.open_disk(repo, disk).unwrap();
            contents.insert(object.object().id().content);
            for (number, piece) in object.object().pieces().iter().enumerate() {
                contents.insert(piece.content);
                contents.extend(object.piece(number).unwrap().iter().map(|entry| entry.object.content));
            }
        }
    }
    contents
}

/// Marks contents as deleted, as the first half of a garbage collection does (spec kopia-format 7.6): they can still be
/// read, and are gone some hours later unless somebody writes or names them again.
pub fn mark_as_deleted(bucket: &dyn Bucket, repo: &Arc<Repository>, contents: &BTreeSet<ContentId>) {
    repo.refresh().unwrap();
    let now = Timestamp::now().as_second();
    let mut entries: Vec<IndexEntry> = contents
        .iter()
        .filter_map(|id| repo.lookup(id).unwrap())
        .map(|entry| IndexEntry { deleted: true, timestamp_seconds: now.max(entry.timestamp_seconds + 1), ..entry })
        .collect();
    assert!(!entries.is_empty());
    let blob = FormatBlob::parse(&bucket.get(FORMAT_BLOB_ID).unwrap()).unwrap();
    let format = blob.unlock(PASSWORD).unwrap().format;
    let hasher = ContentHasher::new(&format.hash, &format.secret).unwrap();
    let cipher = ContentCipher::new(&format.encryption, &format.master_key).unwrap();
    let plaintext = build(format.effective_index_version(), &mut entries).unwrap();
    let suffix = epoch::set_suffix(&pack::new_session_id(Timestamp::now()), 1);
    let name = whole_blob_name(&epoch::uncompacted_prefix(0), &hasher.digest(&plaintext), Some(&suffix));
    // Room for the nonce in front.
    let mut sealed = vec![0; 12];
    sealed.extend_from_slice(&plaintext);
    cipher.seal(&blob_iv(&name).unwrap(), &mut sealed);
    bucket.put(&name, &[&sealed], &PutOptions::default()).unwrap();
}

/// A point that names the same bytes as `point`, made so long before it. Its description still says the other's id.
pub fn put_copy(session: &WriteSession, point: &Point, before: SignedDuration, id: &str) {
    let mut manifest = point.snapshot.manifest.clone();
    manifest.start_time -= before;
    manifest.end_time -= before;
    manifest.tags.insert("tag:point-id".into(), id.into());
    session.put_snapshot(&manifest);
}

/// A point of the same VM whose root is nowhere.
pub fn put_damaged(session: &WriteSession, point: &Point, after: SignedDuration, id: &str) {
    let mut manifest = point.snapshot.manifest.clone();
    manifest.start_time += after;
    manifest.end_time += after;
    manifest.tags.insert("tag:point-id".into(), id.into());
    manifest.root_entry.as_mut().unwrap().object = "k00112233445566778899aabbccddeeff".into();
    session.put_snapshot(&manifest);
}

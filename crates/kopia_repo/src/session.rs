//! A write session: contents into packs, packs to the storage, and at a flush the index that makes them visible.
//!
//! Any number of threads call [`WriteSession::write_content`]; each hashes, compresses and encrypts on its own and
//! holds a lock only to copy the result behind the others in the open pack. Full packs go to a few upload threads.
//! A pack needs one of a fixed number of buffers before it is opened, so that a slow storage slows the callers
//! instead of filling memory. A client without threads ([`ClientOptions::inline`](crate::ClientOptions::inline)) uploads
//! a full pack where the others hand it over.
//!
//! Locks, in the order in which they may be taken: `gate`, an open pack, then `pending`, a [`Generation`]'s own
//! fields. `gate` is held shared from claiming a content until it is in a pack, and exclusively while a flush swaps
//! the packs: so what a manifest refers to is never in a later index than the manifest. Whoever opens a pack waits for
//! a buffer with `gate` and the pack locked; that ends, because the upload threads, which give buffers back, take
//! neither.

mod packs;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crossbeam_channel::Sender;
use jiff::Timestamp;

use crate::Repository;
use crate::error::WriteError;
use crate::format::compression::{CompressContext, CompressionId, compress};
use crate::format::content_id::ContentId;
use crate::format::encryption::NONCE_BYTES;
use crate::format::index::IndexEntry;
use crate::format::manifest::{ManifestEntry, build_entries, new_manifest_id};
use crate::format::pack;
use packs::{ClosedPack, Generation, OpenPack, PackBuffers, PackSlot, Shared};

/// Content prefix of directory objects.
pub const DIRECTORY_PREFIX: u8 = b'k';
/// Content prefix of manifests.
pub const MANIFEST_PREFIX: u8 = b'm';
/// Content prefix of index streams.
pub const INDEX_PREFIX: u8 = b'x';

/// Index entries are flushed at least this often (spec 7.10 rule 3).
const FLUSH_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// A flush also happens at this many entries, so that memory does not grow with the time between flushes.
const FLUSH_ENTRIES: u64 = 200_000;
/// Packs of metadata at a time: one being filled, one being uploaded.
const METADATA_BUFFERS: usize = 2;
/// What a pack may exceed its size by: one content, padding and the local index.
const PACK_SLACK_BYTES: usize = 2 << 20;
/// What [`WriteSession::write_content`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The content's name.
    pub id: ContentId,
    /// Bytes it takes in a pack; 0 when the repository had it.
    pub stored_bytes: u32,
}

/// What a session did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionStats {
    /// Contents stored.
    pub new_contents: u64,
    /// Contents that the repository had.
    pub known_contents: u64,
    /// Bytes of stored contents without prefix (file data), as they lie in packs.
    pub data_bytes: u64,
    /// Bytes of stored contents with a prefix (index streams, directories, manifests), as they lie in packs.
    pub metadata_bytes: u64,
    /// Every byte put to the storage, by all who share the session: packs with their padding and local index, index
    /// blobs, session markers.
    pub uploaded_bytes: u64,
}

/// How a session writes.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// Packs uploaded at the same time. A session's memory is the repository's pack size for each of them and for the
    /// pack being filled.
    pub parallel_uploads: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { parallel_uploads: 3 }
    }
}

/// Adds contents and manifests to a repository. Nothing is visible to anybody before [`flush`](Self::flush) returns.
///
/// Several may [share](Self::share) their packs and threads. Dropping the last one without a flush leaves packs that no
/// index names, which maintenance removes, and takes back the session marker.
pub struct WriteSession {
    core: Arc<Core>,
    /// What was written through this one.
    counters: Counters,
}

/// Finds the session that others are writing with, so that all share one set of packs, buffers and upload threads:
/// memory does not grow with their number, and what they write at the same time is stored once.
#[derive(Default)]
pub struct SharedSession(Mutex<Weak<Core>>);

struct Core {
    shared: Arc<Shared>,
    gate: RwLock<()>,
    data_pack: PackSlot,
    metadata_pack: PackSlot,
    generation: Mutex<Arc<Generation>>,
    /// One flush at a time.
    flushing: Mutex<()>,
    manifests: Mutex<Vec<ManifestEntry>>,
    scratch: Mutex<Vec<Scratch>>,
    uploads: Option<Sender<ClosedPack>>,
    uploaders: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Counters {
    new_contents: AtomicU64,
    known_contents: AtomicU64,
    data_bytes: AtomicU64,
    metadata_bytes: AtomicU64,
    /// Of the core, when this count began.
    uploaded_before: u64,
}

#[derive(Default)]
struct Scratch {
    compressor: CompressContext,
    sealed: Vec<u8>,
}

impl SharedSession {
    /// The session that others write with, if there is one for this repository that has not failed; else a new one.
    pub fn open(&self, repo: &Arc<Repository>, options: SessionOptions) -> Result<WriteSession, WriteError> {
        let mut current = lock(&self.0);
        if let Some(core) = current.upgrade()
            && Arc::ptr_eq(&core.shared.repo, repo)
            && core.check_alive().is_ok()
        {
            return Ok(WriteSession::of(core));
        }
        let session = WriteSession::new(repo.clone(), options)?;
        *current = Arc::downgrade(&session.core);
        Ok(session)
    }
}

impl WriteSession {
    /// Starts a session. Nothing is written before the first content.
    pub fn new(repo: Arc<Repository>, options: SessionOptions) -> Result<Self, WriteError> {
        Ok(Self::of(Arc::new(Core::new(repo, options)?)))
    }

    fn of(core: Arc<Core>) -> Self {
        let uploaded_before = core.shared.uploaded_bytes.load(Ordering::Relaxed);
        Self { core, counters: Counters { uploaded_before, ..Counters::default() } }
    }

    /// Another one with counters of its own. A failure of one is a failure of both; a flush of one flushes both.
    pub fn share(&self) -> Self {
        Self::of(self.core.clone())
    }

    /// The repository written to.
    pub fn repository(&self) -> &Arc<Repository> {
        &self.core.shared.repo
    }

    /// Tells the storage now what the first pack would tell it: a storage that does not answer, or whose clock is not
    /// ours, is found out before anything depends on the session.
    pub fn begin(&self) -> Result<(), WriteError> {
        self.core.check_alive()?;
        let generation = lock(&self.core.generation).clone();
        match generation.write_marker(&self.core.shared.repo) {
            Ok(bytes) => {
                self.core.shared.uploaded_bytes.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(self.core.shared.fail(error)),
        }
    }

    /// Stores `data` unless the repository has it (spec 3.9). The name is returned at once; the bytes are safe, and
    /// visible to others, after the next [`flush`](Self::flush).
    pub fn write_content(
        &self,
        data: &[u8],
        prefix: Option<u8>,
        compression: Option<CompressionId>,
    ) -> Result<Written, WriteError> {
        self.core.write_content(&self.counters, data, prefix, compression)
    }

    /// Queues a manifest; it becomes visible with the next flush, together with all it refers to.
    pub fn put_manifest(
        &self,
        labels: impl IntoIterator<Item = (String, String)>,
        data: &impl serde::Serialize,
    ) -> String {
        let id = new_manifest_id();
        self.put_manifest_as(id.clone(), labels, data);
        id
    }

    pub(crate) fn put_manifest_as(
        &self,
        id: String,
        labels: impl IntoIterator<Item = (String, String)>,
        data: &impl serde::Serialize,
    ) {
        let entry = ManifestEntry::new(id, labels.into_iter().collect(), self.core.shared.repo.timestamp(), data)
            .expect("manifest payloads are plain data");
        lock(&self.core.manifests).push(entry);
    }

    /// Queues the deletion of a manifest, `modified` as it was read.
    pub fn delete_manifest(&self, id: &str, modified: Timestamp) {
        // The tombstone must be later than what it deletes, also when that came from a clock ahead of ours.
        let after = modified.checked_add(jiff::SignedDuration::from_nanos(1)).unwrap_or(modified);
        let tombstone = ManifestEntry::tombstone(id, self.core.shared.repo.timestamp().max(after));
        lock(&self.core.manifests).push(tombstone);
    }

    /// Makes everything written so far durable and visible: packs, then index, then the markers go (spec 3.11).
    pub fn flush(&self) -> Result<(), WriteError> {
        let _one = lock(&self.core.flushing);
        self.core.flush_locked(&self.counters)
    }

    /// Counters so far.
    pub fn stats(&self) -> SessionStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SessionStats {
            new_contents: read(&self.counters.new_contents),
            known_contents: read(&self.counters.known_contents),
            data_bytes: read(&self.counters.data_bytes),
            metadata_bytes: read(&self.counters.metadata_bytes),
            uploaded_bytes: read(&self.core.shared.uploaded_bytes) - self.counters.uploaded_before,
        }
    }
}

impl Core {
    fn new(repo: Arc<Repository>, options: SessionOptions) -> Result<Self, WriteError> {
        repo.check_writable()?;
        let generation = Mutex::new(Arc::new(Generation::new(&repo)));
        let shared = Arc::new(Shared {
            repo,
            pending: Mutex::default(),
            uploaded_bytes: AtomicU64::default(),
            failure: Mutex::default(),
        });
        let parallel_uploads = options.parallel_uploads.max(1);
        // Its length is bounded by the number of buffers.
        let (uploads, receiver) = crossbeam_channel::unbounded::<ClosedPack>();
        let threads = if shared.repo.is_inline() { 0 } else { parallel_uploads };
        let uploaders = (0..threads)
            .map(|number| {
                let (shared, receiver) = (shared.clone(), receiver.clone());
                std::thread::Builder::new()
                    .name(format!("pack-upload-{number}"))
                    .spawn(move || {
                        for closed in receiver {
                            shared.upload(closed);
                        }
                    })
                    .expect("the machine can start a thread")
            })
            .collect();
        Ok(Self {
            shared,
            gate: RwLock::default(),
            data_pack: PackSlot::new(parallel_uploads + 1),
            metadata_pack: PackSlot::new(METADATA_BUFFERS),
            generation,
            flushing: Mutex::default(),
            manifests: Mutex::default(),
            scratch: Mutex::default(),
            uploads: Some(uploads),
            uploaders,
        })
    }

    fn write_content(
        &self,
        counters: &Counters,
        data: &[u8],
        prefix: Option<u8>,
        compression: Option<CompressionId>,
    ) -> Result<Written, WriteError> {
        self.check_alive()?;
        if data.len() >= 1 << 27 {
            return Err(WriteError::ContentTooLong { len: data.len() });
        }
        self.flush_if_due(counters)?;
        let id = self.shared.repo.content_id(data, prefix);
        let gate = self.gate.read().expect("no panic while held");
        let superseded = match self.claim(id)? {
            Claim::Known => {
                counters.known_contents.fetch_add(1, Ordering::Relaxed);
                return Ok(Written { id, stored_bytes: 0 });
            }
            Claim::New { superseded_at } => superseded_at,
        };
        let mut scratch = lock(&self.scratch).pop().unwrap_or_default();
        let result = self.store(counters, id, data, compression, superseded, &mut scratch);
        lock(&self.scratch).push(scratch);
        drop(gate);
        match result {
            Ok((stored_bytes, full)) => {
                if let Some(pack) = full {
                    self.send(pack)?;
                }
                Ok(Written { id, stored_bytes })
            }
            Err(error) => Err(self.shared.fail(error)),
        }
    }

    /// Whether this session wrote the content or was told that the repository has it, since its last flush.
    fn claim(&self, id: ContentId) -> Result<Claim, WriteError> {
        let repo = &self.shared.repo;
        let mut pending = lock(&self.shared.pending);
        if pending.contains(&id) {
            return Ok(Claim::Known);
        }
        let claim = match repo.lookup(&id)? {
            // A tombstoned content counts as absent: its pack may be about to vanish (spec 7.10 rule 7).
            Some(entry) if !entry.deleted => return Ok(Claim::Known),
            Some(entry) => Claim::New { superseded_at: Some(entry.timestamp_seconds) },
            None => Claim::New { superseded_at: None },
        };
        pending.insert(id);
        Ok(claim)
    }

    #[allow(clippy::too_many_arguments)] // the one place where a content is made
    fn store(
        &self,
        counters: &Counters,
        id: ContentId,
        data: &[u8],
        compression: Option<CompressionId>,
        superseded_at: Option<i64>,
        scratch: &mut Scratch,
    ) -> Result<(u32, Option<ClosedPack>), WriteError> {
        let repo = &self.shared.repo;
        let sealed = &mut scratch.sealed;
        sealed.clear();
        sealed.resize(NONCE_BYTES, 0);
        let kept = match compression {
            Some(compression) if compress(compression, &mut scratch.compressor, data, sealed)? => compression,
            _ => {
                sealed.extend_from_slice(data);
                CompressionId::NONE
            }
        };
        repo.cipher().seal(&id.iv(), sealed);

        let stored_bytes = u32::try_from(sealed.len()).map_err(|_| WriteError::ContentTooLong { len: data.len() })?;
        let (slot, bytes) = match id.prefix() {
            None => (&self.data_pack, &counters.data_bytes),
            Some(_) => (&self.metadata_pack, &counters.metadata_bytes),
        };
        bytes.fetch_add(stored_bytes.into(), Ordering::Relaxed);
        counters.new_contents.fetch_add(1, Ordering::Relaxed);

        let now = unix_seconds(repo.now());
        let mut open = lock(&slot.open);
        let pack = open.get_or_insert_with(|| self.open_pack(&id, &slot.buffers));
        pack.entries.push(IndexEntry {
            id,
            timestamp_seconds: superseded_at.map_or(now, |old| now.max(old + 1)),
            deleted: false,
            pack: pack.id.clone(),
            pack_offset: pack.bytes.len().try_into().expect("a pack is closed long before 4 GiB"),
            packed_len: stored_bytes,
            original_len: data.len().try_into().expect("checked against 2^27"),
            compression: kept,
            format_version: repo.format_version(),
            encryption_key_id: 0,
        });
        pack.bytes.extend_from_slice(sealed);
        pack.generation.entry_count.fetch_add(1, Ordering::Relaxed);
        let full = pack.bytes.len() >= repo.max_pack_bytes();
        Ok((stored_bytes, if full { open.take().map(OpenPack::close) } else { None }))
    }

    fn open_pack(&self, first: &ContentId, buffers: &PackBuffers) -> OpenPack {
        let mut bytes = buffers.take();
        let generation = lock(&self.generation).clone();
        let prefix = if first.prefix().is_some() { 'q' } else { 'p' };
        // Room for a full pack at once: growing by doubling would take, and keep, half as much again.
        bytes.reserve(self.shared.repo.max_pack_bytes() + PACK_SLACK_BYTES);
        bytes.extend_from_slice(&pack::preamble());
        OpenPack {
            id: pack::new_pack_id(prefix, &generation.session_id).into(),
            generation,
            bytes,
            buffers: buffers.clone(),
            entries: Vec::new(),
        }
    }

    fn send(&self, closed: ClosedPack) -> Result<(), WriteError> {
        if self.uploaders.is_empty() {
            self.shared.upload(closed);
            return self.check_alive();
        }
        let uploads = self.uploads.as_ref().expect("present until dropped");
        uploads.send(closed).expect("upload threads live as long as the session");
        self.check_alive()
    }

    fn flush_if_due(&self, counters: &Counters) -> Result<(), WriteError> {
        let due = {
            let generation = lock(&self.generation);
            let entries = generation.entry_count.load(Ordering::Relaxed);
            let age = self.shared.repo.now().duration_since(generation.started).unwrap_or_default();
            entries >= FLUSH_ENTRIES || (entries > 0 && age >= FLUSH_INTERVAL)
        };
        if due && let Ok(_one) = self.flushing.try_lock() {
            return self.flush_locked(counters);
        }
        Ok(())
    }

    fn flush_locked(&self, counters: &Counters) -> Result<(), WriteError> {
        self.check_alive()?;
        self.write_queued_manifests(counters)?;
        let (generation, packs) = {
            let _gate = self.gate.write().expect("no panic while held");
            let packs: Vec<_> = [&self.data_pack, &self.metadata_pack]
                .into_iter()
                .filter_map(|slot| lock(&slot.open).take().map(OpenPack::close))
                .collect();
            let mut current = lock(&self.generation);
            (std::mem::replace(&mut *current, Arc::new(Generation::new(&self.shared.repo))), packs)
        };
        for pack in packs {
            self.send(pack)?;
        }
        generation.wait_for_uploads();
        self.check_alive()?;

        let entries = std::mem::take(&mut *lock(&generation.entries));
        if !entries.is_empty() {
            let ids: Vec<ContentId> = entries.iter().map(|entry| entry.id).collect();
            let written = self
                .shared
                .repo
                .write_index(entries, &generation.session_id)
                .map_err(|error| self.shared.fail(error))?;
            self.shared.uploaded_bytes.fetch_add(written, Ordering::Relaxed);
            let mut pending = lock(&self.shared.pending);
            for id in ids {
                pending.remove(&id);
            }
        }
        generation.remove_marker(&self.shared.repo).map_err(|error| self.shared.fail(error))
    }

    fn write_queued_manifests(&self, counters: &Counters) -> Result<(), WriteError> {
        let queued = std::mem::take(&mut *lock(&self.manifests));
        if queued.is_empty() {
            return Ok(());
        }
        let payload = build_entries(&queued);
        let id = self.shared.repo.content_id(&payload, Some(MANIFEST_PREFIX));
        let _gate = self.gate.read().expect("no panic while held");
        lock(&self.shared.pending).insert(id);
        let mut scratch = lock(&self.scratch).pop().unwrap_or_default();
        let compression = Some(CompressionId::ZSTD_FASTEST);
        let stored = self.store(counters, id, &payload, compression, None, &mut scratch);
        lock(&self.scratch).push(scratch);
        match stored.map_err(|error| self.shared.fail(error))? {
            (_, Some(full)) => self.send(full),
            (_, None) => Ok(()),
        }
    }

    fn check_alive(&self) -> Result<(), WriteError> {
        match &*lock(&self.shared.failure) {
            Some((problem, kind)) => Err(WriteError::SessionFailed { problem: problem.clone(), kind: *kind }),
            None => Ok(()),
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.uploads = None;
        for thread in self.uploaders.drain(..) {
            // A panic of an upload thread was already reported by its hook; there is nobody to tell here.
            let _ = thread.join();
        }
        // A panic may have come from the storage itself, or left a lock poisoned; a second one would end the process.
        if std::thread::panicking() {
            return;
        }
        // Best effort: a marker that stays only delays the collection of its packs by four days.
        let _ = lock(&self.generation).remove_marker(&self.shared.repo);
    }
}

enum Claim {
    Known,
    New { superseded_at: Option<i64> },
}

pub(crate) fn unix_seconds(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => after.as_secs() as i64,
        Err(_) => 0,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while held")
}

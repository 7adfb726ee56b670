//! Packs on their way: the one being filled, its buffers, the upload threads' side of it, and what is flushed together.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, Sender};

use super::lock;
use crate::Repository;
use crate::error::{ReadError, WriteError};
use crate::format::content_id::ContentId;
use crate::format::index::IndexEntry;
use crate::format::pack::{self, SessionMarker};

/// More than this and the clocks of maintenance and ours would disagree about what is old (spec 7.10 rule 9).
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// What the upload threads share with the session.
pub(super) struct Shared {
    pub(super) repo: Arc<Repository>,
    /// Claimed or written here and not yet in the repository's index.
    pub(super) pending: Mutex<HashSet<ContentId>>,
    pub(super) uploaded_bytes: AtomicU64,
    pub(super) failure: Mutex<Option<(String, Option<bucket::ErrorKind>)>>,
}

/// What is flushed together: one Kopia session with its marker, its packs and their index entries.
pub(super) struct Generation {
    pub(super) session_id: String,
    pub(super) started: SystemTime,
    /// Name of the marker once it is written.
    pub(super) marker: Mutex<Option<String>>,
    pub(super) entries: Mutex<Vec<IndexEntry>>,
    pub(super) entry_count: AtomicU64,
    pub(super) uploads_outstanding: Mutex<usize>,
    pub(super) uploads_done: Condvar,
}

/// The open pack of one kind, and the buffers for packs of that kind.
pub(super) struct PackSlot {
    pub(super) open: Mutex<Option<OpenPack>>,
    pub(super) buffers: PackBuffers,
}

/// A fixed number of buffers, used in turn: so a session's memory follows from how much it writes and not from which
/// of its packs happened to wait for the storage at the same time.
#[derive(Clone)]
pub(super) struct PackBuffers {
    free: Receiver<Vec<u8>>,
    back: Sender<Vec<u8>>,
}

pub(super) struct OpenPack {
    pub(super) generation: Arc<Generation>,
    pub(super) id: Arc<str>,
    pub(super) bytes: Vec<u8>,
    /// Where `bytes` goes back to.
    pub(super) buffers: PackBuffers,
    pub(super) entries: Vec<IndexEntry>,
}

pub(super) struct ClosedPack {
    pub(super) pack: OpenPack,
}

impl Shared {
    pub(super) fn fail(&self, error: WriteError) -> WriteError {
        lock(&self.failure).get_or_insert_with(|| {
            let mut problem = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                problem = format!("{problem}: {error}");
                cause = error.source();
            }
            (problem, error.storage_kind())
        });
        error
    }

    pub(super) fn upload(&self, ClosedPack { mut pack }: ClosedPack) {
        let generation = pack.generation.clone();
        // After a failure nothing more is sent: no index will ever name it.
        if lock(&self.failure).is_none() {
            match self.put_pack(&mut pack) {
                Ok(()) => lock(&generation.entries).append(&mut pack.entries),
                Err(error) => drop(self.fail(error)),
            }
        }
        pack.buffers.give_back(pack.bytes);
        let mut outstanding = lock(&generation.uploads_outstanding);
        *outstanding -= 1;
        if *outstanding == 0 {
            generation.uploads_done.notify_all();
        }
    }

    fn put_pack(&self, pack: &mut OpenPack) -> Result<(), WriteError> {
        let marker_bytes = pack.generation.write_marker(&self.repo)?;
        pack::finish(
            &mut pack.bytes,
            &mut pack.entries,
            self.repo.index_version(),
            self.repo.hasher(),
            self.repo.cipher(),
        )
        .map_err(|error| ReadError::damaged(format!("the local index of pack {}", pack.id), error))?;
        self.repo
            .blobs()
            .put(&pack.id, &[&pack.bytes], self.repo.now())
            .map_err(WriteError::storage(format!("pack {}", pack.id)))?;
        self.uploaded_bytes.fetch_add(pack.bytes.len() as u64 + marker_bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Generation {
    pub(super) fn new(repo: &Repository) -> Self {
        Self {
            session_id: pack::new_session_id(repo.timestamp()),
            started: repo.now(),
            marker: Mutex::default(),
            entries: Mutex::default(),
            entry_count: AtomicU64::new(0),
            uploads_outstanding: Mutex::new(0),
            uploads_done: Condvar::new(),
        }
    }

    pub(super) fn wait_for_uploads(&self) {
        let outstanding = lock(&self.uploads_outstanding);
        drop(self.uploads_done.wait_while(outstanding, |count| *count > 0).expect("no panic while held"));
    }

    /// Writes the session marker before the first pack (spec 3.10), and looks at the storage's clock on it. Returns
    /// the bytes written.
    pub(super) fn write_marker(&self, repo: &Repository) -> Result<u64, WriteError> {
        let mut marker = lock(&self.marker);
        if marker.is_some() {
            return Ok(0);
        }
        let now = repo.timestamp();
        let json = SessionMarker {
            id: self.session_id.clone(),
            start_time: now,
            checkpoint_time: now,
            username: repo.username().to_owned(),
            hostname: repo.hostname().to_owned(),
        }
        .to_json();
        let (name, sealed) = repo.seal_blob("s", &json, Some(&self.session_id));
        let what = format!("session marker {name}");
        repo.blobs().put(&name, &[&sealed], repo.now()).map_err(WriteError::storage(what.clone()))?;
        *marker = Some(name.clone());
        let stored = repo.blobs().head(&name).map_err(WriteError::storage(what))?.modified;
        let now = repo.now();
        let (skew, direction) = match now.duration_since(stored) {
            Ok(ahead) => (ahead, "ahead"),
            Err(behind) => (behind.duration(), "behind"),
        };
        if skew > MAX_CLOCK_SKEW {
            return Err(WriteError::ClockSkew { seconds: skew.as_secs(), direction });
        }
        Ok(sealed.len() as u64)
    }

    pub(super) fn remove_marker(&self, repo: &Repository) -> Result<(), WriteError> {
        match lock(&self.marker).take() {
            Some(name) => repo.blobs().delete(&name).map_err(WriteError::storage(format!("removal of marker {name}"))),
            None => Ok(()),
        }
    }
}

impl PackSlot {
    pub(super) fn new(buffers: usize) -> Self {
        Self { open: Mutex::default(), buffers: PackBuffers::new(buffers) }
    }
}

impl PackBuffers {
    fn new(count: usize) -> Self {
        let (back, free) = crossbeam_channel::bounded(count);
        for _ in 0..count {
            back.send(Vec::new()).expect("the receiver is at hand");
        }
        Self { free, back }
    }

    /// An empty buffer, once one is free.
    pub(super) fn take(&self) -> Vec<u8> {
        self.free.recv().expect("the sender is at hand")
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.back.send(buffer).expect("the receiver is at hand");
    }
}

impl OpenPack {
    /// From here on a flush waits for this pack's upload.
    pub(super) fn close(self) -> ClosedPack {
        *lock(&self.generation.uploads_outstanding) += 1;
        ClosedPack { pack: self }
    }
}

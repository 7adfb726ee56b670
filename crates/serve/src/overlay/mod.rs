//! What guests wrote: an encrypted log that is only ever appended to (spec block-serving C.4, C.5).
//!
//! [`Overlay::create`] begins one, [`Overlay::recover`] takes one up after a kill or a power loss. A write that
//! returned survives a kill; a write before a [`flush`](Overlay::flush) that returned survives a power loss; and what
//! survives is always a prefix of the order of writing.
//!
//! `format.rs` is the layout, `seal.rs` the cipher, `index.rs` what is where, `log.rs` how records are appended and
//! acknowledged, `recovery.rs` how a folder is read, `compaction.rs` how dead records go. `drained.rs` is for moving
//! what is held to where it stays.

mod compaction;
mod drained;
mod format;
mod index;
mod log;
mod recovery;
mod seal;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::{collections::BTreeMap, io};

pub use drained::{Batch, Content};
pub use seal::DiskKey;
pub(crate) use seal::sha256;

use crate::folder::{Folder, StoredFile};
use format::{CELL_BYTES, CELL_SECTORS, RECORD_BYTES, SEALED_CELL_BYTES, SECTOR_BYTES};
use index::{DataAt, Index, Place};
use log::Log;
use seal::SegmentKey;

const MIN_SEGMENT_BYTES: u64 = 16 << 10;

/// Whose writes these are. An overlay is refused under any other identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The session.
    pub session: [u8; 16],
    /// The disk within it.
    pub disk: [u8; 16],
    /// Size of the device: a multiple of 512.
    pub size_bytes: u64,
    /// Logical sectors of the device: 512 or 4096.
    pub sector_bytes: u32,
    /// SHA-256 of the base's object id and size.
    pub base: [u8; 32],
}

/// Sizes.
#[derive(Clone, Copy, Debug)]
pub struct OverlayOptions {
    /// Longest segment: at most 64 MiB, at least 16 KiB. Below about 1 MiB it limits the length of records, too.
    pub segment_bytes: u64,
    /// Dead records are cleared away when the log is at least so long, and more than half dead.
    pub compact_from_bytes: u64,
    /// The log may grow to this length; `None` for as long as there is space.
    pub limit_bytes: Option<u64>,
    /// Kept free, of the limit and of the volume, for records without data: they are what makes space again.
    pub reserve_bytes: u64,
}

impl Default for OverlayOptions {
    fn default() -> Self {
        Self {
            segment_bytes: format::MAX_SEGMENT_BYTES,
            compact_from_bytes: 1 << 30,
            limit_bytes: None,
            reserve_bytes: 64 << 20,
        }
    }
}

/// The guest's writes to one disk. All calls may run concurrently.
///
/// Lock order: `compacting`, `flushing`, `log`, `held`. The disk is written and read without `log` and `held`, except
/// that a roll holds `log`: nothing can be appended meanwhile anyway.
pub struct Overlay {
    folder: Arc<dyn Folder>,
    identity: Identity,
    key: DiskKey,
    options: OverlayOptions,
    log: Mutex<Log>,
    /// Signalled when a record was applied, when a roll ended, and when the log failed.
    moved: Condvar,
    held: RwLock<Held>,
    /// Held by the one who flushes; others then find their records durable.
    flushing: Mutex<()>,
    compacting: Mutex<()>,
}

/// What is where.
#[derive(Default)]
struct Held {
    index: Index,
    /// Every segment still needed.
    segments: BTreeMap<u64, Arc<Segment>>,
}

/// One file of the log.
struct Segment {
    number: u64,
    name: String,
    first_sequence: u64,
    header_sha256: [u8; 32],
    key: SegmentKey,
    file: Arc<dyn StoredFile>,
    /// Up to here there are records.
    len_bytes: AtomicU64,
}

/// Figures of an overlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverlayStats {
    /// What the records take that are still needed, about.
    pub live_bytes: u64,
    /// The rest of the log.
    pub dead_bytes: u64,
    /// Files.
    pub segments: u64,
    /// Pieces that the index consists of.
    pub runs: u64,
}

impl Overlay {
    /// Begins an overlay in a folder that holds none.
    pub fn create(
        folder: Arc<dyn Folder>,
        identity: Identity,
        key: DiskKey,
        options: OverlayOptions,
    ) -> Result<Self, OverlayError> {
        let numbers = recovery::segment_numbers(&*folder)?;
        if !numbers.is_empty() {
            return Err(OverlayError::Exists { folder: folder.display() });
        }
        let overlay = Self::assemble(folder, identity, key, options, Held::default(), Log::new(1, 1));
        overlay.start_segment()?;
        Ok(overlay)
    }

    fn assemble(
        folder: Arc<dyn Folder>,
        identity: Identity,
        key: DiskKey,
        options: OverlayOptions,
        held: Held,
        log: Log,
    ) -> Self {
        let segment_bytes = options.segment_bytes.clamp(MIN_SEGMENT_BYTES, format::MAX_SEGMENT_BYTES);
        let options = OverlayOptions { segment_bytes, ..options };
        Self {
            folder,
            identity,
            key,
            options,
            log: Mutex::new(log),
            moved: Condvar::new(),
            held: RwLock::new(held),
            flushing: Mutex::new(()),
            compacting: Mutex::new(()),
        }
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Fills the parts of `buf` that are held, and gives the ranges of sectors that are not, in order. `first_sector`
    /// counts sectors of 512 bytes.
    pub fn read(&self, first_sector: u64, buf: &mut [u8]) -> Result<Vec<Range<u64>>, OverlayError> {
        let mut missing = Vec::new();
        for (sectors, place) in self.locate(first_sector..first_sector + buf.len() as u64 / SECTOR_BYTES)? {
            let start = (sectors.start - first_sector) * SECTOR_BYTES;
            let part = &mut buf[start as usize..][..((sectors.end - sectors.start) * SECTOR_BYTES) as usize];
            match place {
                None => missing.push(sectors),
                Some((_, Place { data: None, .. })) => part.fill(0),
                Some((segment, Place { data: Some(data), sequence, .. })) => {
                    segment.read_cells(data, sequence, sectors, part)?;
                }
            }
        }
        Ok(missing)
    }

    /// What is held of a range, without its bytes: `None` is not held.
    pub fn map(&self, sectors: Range<u64>) -> Vec<(Range<u64>, Option<Content>)> {
        let held = self.held.read().expect("no panic while held");
        let kind = |place: Place| if place.data.is_some() { Content::Data } else { Content::Zero };
        held.index.lookup(sectors).into_iter().map(|(sectors, place)| (sectors, place.map(kind))).collect()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.held.read().expect("no panic while held").index.is_empty()
    }

    /// Bytes of the device that are held, zeroes not counted.
    pub fn held_data_bytes(&self) -> u64 {
        self.held.read().expect("no panic while held").index.data_sectors() * SECTOR_BYTES
    }

    /// Figures.
    pub fn stats(&self) -> OverlayStats {
        let held = self.held.read().expect("no panic while held");
        let live_bytes = held.index.live_bytes();
        OverlayStats {
            live_bytes,
            dead_bytes: held.len_bytes().saturating_sub(live_bytes),
            segments: held.segments.len() as u64,
            runs: held.index.run_count() as u64,
        }
    }

    /// Why nothing can be written any more, if that is so.
    pub fn failure(&self) -> Option<String> {
        self.log.lock().expect("no panic while held").failure()
    }

    /// The parts of a range with the segments they are in: those stay readable, whatever becomes of their names.
    #[expect(clippy::type_complexity, reason = "it is taken apart at once")]
    fn locate(&self, sectors: Range<u64>) -> Result<Vec<(Range<u64>, Option<(Arc<Segment>, Place)>)>, OverlayError> {
        let held = self.held.read().expect("no panic while held");
        let mut parts = Vec::new();
        for (sectors, place) in held.index.lookup(sectors) {
            let place = match place {
                None => None,
                Some(place) => {
                    let segment = held.segments.get(&place.segment);
                    let segment = segment.expect("a segment goes after the last place in it");
                    Some((segment.clone(), place))
                }
            };
            parts.push((sectors, place));
        }
        Ok(parts)
    }
}

impl Held {
    fn len_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.len_bytes.load(Ordering::Relaxed)).sum()
    }
}

impl Segment {
    /// The bytes of sectors that a DATA record holds, decrypted into `out`.
    fn read_cells(&self, data: DataAt, sequence: u64, sectors: Range<u64>, out: &mut [u8]) -> Result<(), OverlayError> {
        let first_cell = sectors.start / CELL_SECTORS - data.first_sector / CELL_SECTORS;
        let cells = format::cells_of(sectors.start, sectors.end) as usize;
        let offset = u64::from(data.offset) + RECORD_BYTES as u64 + first_cell * SEALED_CELL_BYTES as u64;
        let mut sealed = vec![0; cells * SEALED_CELL_BYTES];
        self.file.read_exact_at(&mut sealed, offset).map_err(|source| self.failed("read", source))?;
        let mut out_at = 0;
        for (nth, cell) in sealed.chunks_exact_mut(SEALED_CELL_BYTES).enumerate() {
            let number = first_cell + nth as u64;
            let text = self.key.open_cell(cell, number as u16, sequence).map_err(|_| OverlayError::Damaged {
                file: self.name.clone(),
                offset_bytes: offset + nth as u64 * SEALED_CELL_BYTES as u64,
                problem: "bytes that the guest wrote are not as they were stored",
            })?;
            let skip = if nth == 0 { (sectors.start % CELL_SECTORS * SECTOR_BYTES) as usize } else { 0 };
            let take = (CELL_BYTES - skip).min(out.len() - out_at);
            out[out_at..out_at + take].copy_from_slice(&text[skip..skip + take]);
            out_at += take;
        }
        Ok(())
    }

    fn failed(&self, attempt: &'static str, source: io::Error) -> OverlayError {
        OverlayError::Io { attempt, file: self.name.clone(), source }
    }
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("folder", &self.folder.display()).finish_non_exhaustive()
    }
}

/// Why an overlay cannot be used, or did not take a write.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OverlayError {
    /// There is one already.
    #[error("begin an overlay in {folder}: there is one already")]
    Exists {
        /// Where.
        folder: String,
    },
    /// There is none, or a part of it is gone: what the guest wrote is not there.
    #[error("take up the overlay in {folder}: {problem}; do not discard the folder, it holds what the guest wrote")]
    Missing {
        /// Where.
        folder: String,
        /// What is not there.
        problem: String,
    },
    /// It is another's.
    #[error("take up the overlay in {folder}: {file} belongs to another {what}; it is left as it is")]
    Foreign {
        /// Where.
        folder: String,
        /// The file.
        file: String,
        /// Session, disk, restore point or repository.
        what: &'static str,
    },
    /// It is not as it was written.
    #[error(
        "read the overlay's {file} at offset {offset_bytes}: {problem}; keep the folder, it holds what the guest wrote"
    )]
    Damaged {
        /// The file.
        file: String,
        /// Where in it.
        offset_bytes: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// Data that a flush had made durable is not there: the volume lost what it had promised to keep.
    #[error(
        "take up the overlay in {folder}: flushed data is missing: records up to {durable} were durable, and {last} is \
         the last that is there; keep the folder, and restart the guest from another copy"
    )]
    FlushedDataMissing {
        /// Where.
        folder: String,
        /// What had been durable.
        durable: u64,
        /// What is there.
        last: u64,
    },
    /// There is no space left for writes.
    #[error("write to the overlay in {folder}: no space left; free some, or finish moving the disk")]
    NoSpace {
        /// Where.
        folder: String,
    },
    /// A file could not be read, written or made durable.
    #[error("{attempt} the overlay's {file}")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// The file or folder.
        file: String,
        /// Why it failed.
        source: io::Error,
    },
    /// An earlier write or flush failed: until the overlay is taken up again nothing is taken.
    #[error("write to the overlay: it has failed before, and takes no writes until it is restarted: {cause}")]
    Failed {
        /// The first failure.
        cause: String,
    },
}

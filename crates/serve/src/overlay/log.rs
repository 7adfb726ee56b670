//! Appending to the log: one sequencer, writes side by side, acknowledged in order.
//!
//! A record gets its sequence number and its place under the lock, is encrypted and written without it, and counts only
//! when every record before it has been written too. A kill then never leaves a hole in front of an acknowledged
//! record, and the index changes in the order of the log.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};

use super::format::{
    CELL_SECTORS, HEADER_BYTES, MAX_CELLS, RECORD_BYTES, RecordHeader, RecordKind, SEALED_CELL_BYTES, SECTOR_BYTES,
    SegmentHeader, cells_of,
};
use super::index::{DataAt, Index, Place};
use super::seal::sha256;
use super::{Overlay, OverlayError, Segment};

/// Where the log ends, and what is on its way there.
pub(super) struct Log {
    /// The segment that is appended to; `None` only until the first one is started.
    current: Option<Arc<Segment>>,
    next_sequence: u64,
    next_segment: u64,
    pub(super) oldest_needed: u64,
    /// Records that have their place, in order, until all before them are written.
    in_flight: VecDeque<Pending>,
    /// Every record up to this one is in the operating system and in the index.
    applied: u64,
    /// Every record up to this one survives a power loss.
    durable: u64,
    /// The highest durable mark that a record tells of.
    marked: u64,
    rolling: bool,
    failed: Option<Failure>,
}

struct Pending {
    sequence: u64,
    written: bool,
    change: Change,
}

/// The first failure of a write or flush.
struct Failure {
    /// Records from this one on are lost.
    from_sequence: u64,
    cause: String,
}

/// What a record changes in the index.
pub(super) struct Change {
    pub(super) kind: RecordKind,
    pub(super) sectors: Range<u64>,
    pub(super) up_to: u64,
    pub(super) place: Place,
}

impl Change {
    pub(super) fn apply(self, index: &mut Index) {
        match self.kind {
            RecordKind::Data | RecordKind::Zero => index.insert(self.sectors, self.place),
            RecordKind::Drained => index.remove_up_to(self.sectors, self.up_to),
            RecordKind::Mark => {}
        }
    }
}

/// A record to be.
pub(super) struct Draft<'d> {
    pub(super) kind: RecordKind,
    pub(super) sectors: Range<u64>,
    /// DRAINED: places up to this sequence are dropped.
    pub(super) up_to: u64,
    /// DATA: the bytes of the sectors.
    pub(super) bytes: &'d [u8],
    /// A copy of a record, which counts only as long as all its sectors are still at this place.
    pub(super) copy_of: Option<Place>,
}

/// A record's place.
struct Assigned {
    segment: Arc<Segment>,
    offset: u64,
    sequence: u64,
    mark: u64,
}

impl Log {
    /// A log whose next record and segment have these numbers.
    pub(super) fn new(next_sequence: u64, next_segment: u64) -> Self {
        Self {
            current: None,
            next_sequence,
            next_segment,
            oldest_needed: next_segment,
            in_flight: VecDeque::new(),
            applied: next_sequence - 1,
            durable: next_sequence - 1,
            marked: next_sequence - 1,
            rolling: false,
            failed: None,
        }
    }

    pub(super) fn applied(&self) -> u64 {
        self.applied
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.failed.as_ref().map(|failure| failure.cause.clone())
    }

    fn check(&self) -> Result<(), OverlayError> {
        match self.failure() {
            Some(cause) => Err(OverlayError::Failed { cause }),
            None => Ok(()),
        }
    }

    fn fail(&mut self, from_sequence: u64, error: &dyn std::error::Error) {
        let cause = match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let failure = self.failed.get_or_insert(Failure { from_sequence, cause });
        failure.from_sequence = failure.from_sequence.min(from_sequence);
    }
}

impl Overlay {
    /// Writes whole sectors. When this returned, the write survives a kill.
    pub fn write(&self, first_sector: u64, bytes: &[u8]) -> Result<(), OverlayError> {
        let room = (self.options.segment_bytes as usize - HEADER_BYTES - RECORD_BYTES) / SEALED_CELL_BYTES;
        let max_cells = (room as u64).min(MAX_CELLS.into());
        let mut at = first_sector;
        let mut rest = bytes;
        while !rest.is_empty() {
            let longest = max_cells * CELL_SECTORS - at % CELL_SECTORS;
            let sectors = longest.min(rest.len() as u64 / SECTOR_BYTES);
            let (here, behind) = rest.split_at((sectors * SECTOR_BYTES) as usize);
            self.append(Draft {
                kind: RecordKind::Data,
                sectors: at..at + sectors,
                up_to: 0,
                bytes: here,
                copy_of: None,
            })?;
            at += sectors;
            rest = behind;
        }
        Ok(())
    }

    /// Makes sectors read as zeroes. When this returned, that survives a kill.
    pub fn zero(&self, sectors: Range<u64>) -> Result<(), OverlayError> {
        if sectors.is_empty() {
            return Ok(());
        }
        self.append(Draft { kind: RecordKind::Zero, sectors, up_to: 0, bytes: &[], copy_of: None })?;
        Ok(())
    }

    /// Returns when everything that was acknowledged before the call survives a power loss. A flush that failed once
    /// fails until the overlay is taken up again: what the operating system then calls durable need not be.
    pub fn flush(&self) -> Result<(), OverlayError> {
        let wanted = self.log.lock().expect("no panic while held").applied;
        let _one = self.flushing.lock().expect("no panic while held");
        let (segment, applied) = {
            let log = self.log.lock().expect("no panic while held");
            log.check()?;
            if log.durable >= wanted {
                return Ok(());
            }
            (log.current.clone().expect("a log that has records has a segment"), log.applied)
        };
        // Older segments became durable when this one was started.
        let synced = segment.file.sync_data().map_err(|source| segment.failed("flush", source));
        let mut log = self.log.lock().expect("no panic while held");
        match synced {
            Ok(()) => {
                log.durable = log.durable.max(applied);
                Ok(())
            }
            Err(error) => {
                let next = log.next_sequence;
                log.fail(next, &error);
                self.moved.notify_all();
                Err(error)
            }
        }
    }

    /// To be called when nothing was written for a second: notes in the log what is durable, if no record does.
    pub fn mark(&self) -> Result<(), OverlayError> {
        let is_told = {
            let log = self.log.lock().expect("no panic while held");
            log.check()?;
            log.marked >= log.durable
        };
        if !is_told {
            self.append(Draft { kind: RecordKind::Mark, sectors: 0..0, up_to: 0, bytes: &[], copy_of: None })?;
        }
        Ok(())
    }

    /// Appends a record, and returns when it and all before it are written and in the index; `false` when it was a
    /// copy that does not count any more.
    pub(super) fn append(&self, draft: Draft<'_>) -> Result<bool, OverlayError> {
        let Some(assigned) = self.assign(&draft)? else { return Ok(false) };
        let record = seal(&draft, &assigned);
        let written = assigned.segment.file.write_all_at(&record, assigned.offset);
        let written = written.map_err(|source| assigned.segment.failed("append to", source));
        self.acknowledge(assigned.sequence, written)?;
        Ok(true)
    }

    /// Gives a record its sequence number and its place, in a new segment if need be.
    fn assign(&self, draft: &Draft<'_>) -> Result<Option<Assigned>, OverlayError> {
        let cells = draft.cells();
        let len_bytes = (RECORD_BYTES + usize::from(cells) * SEALED_CELL_BYTES) as u64;
        let mut log = self.log.lock().expect("no panic while held");
        loop {
            log.check()?;
            let end = log.current.as_ref().map_or(u64::MAX, |segment| segment.len_bytes.load(Ordering::Relaxed));
            let is_full = end.saturating_add(len_bytes) > self.options.segment_bytes;
            let waits = if draft.copy_of.is_some() || is_full { !log.in_flight.is_empty() } else { false };
            if log.rolling {
                log = self.moved.wait(log).expect("no panic while held");
            } else if waits {
                // Who rolls goes first: records that still fit would keep it waiting for ever.
                log.rolling = true;
                while !log.in_flight.is_empty() && log.failed.is_none() {
                    log = self.moved.wait(log).expect("no panic while held");
                }
                log.rolling = false;
                self.moved.notify_all();
            } else if let Some(place) = draft.copy_of
                && !self.is_all_at(&draft.sectors, place)
            {
                return Ok(None);
            } else if is_full {
                self.check_room(draft, len_bytes)?;
                self.roll(&mut log)?;
            } else {
                break;
            }
        }
        self.check_room(draft, len_bytes)?;
        let segment = log.current.clone().expect("a segment was started");
        let offset = segment.len_bytes.fetch_add(len_bytes, Ordering::Relaxed);
        let sequence = log.next_sequence;
        log.next_sequence += 1;
        let mark = if draft.kind == RecordKind::Drained { draft.up_to } else { log.durable };
        if draft.kind != RecordKind::Drained {
            log.marked = log.durable;
        }
        let data = (draft.kind == RecordKind::Data)
            .then_some(DataAt { offset: offset as u32, first_sector: draft.sectors.start });
        let place = Place { segment: segment.number, sequence, data };
        let change = Change { kind: draft.kind, sectors: draft.sectors.clone(), up_to: draft.up_to, place };
        log.in_flight.push_back(Pending { sequence, written: false, change });
        Ok(Some(Assigned { segment, offset, sequence, mark }))
    }

    /// Reports a record as written or not, and waits until all before it are.
    fn acknowledge(&self, sequence: u64, written: Result<(), OverlayError>) -> Result<(), OverlayError> {
        let mut log = self.log.lock().expect("no panic while held");
        if let Err(error) = written {
            log.fail(sequence, &error);
            log.in_flight.retain(|pending| pending.sequence != sequence);
            self.moved.notify_all();
            return Err(error);
        }
        if let Some(pending) = log.in_flight.iter_mut().find(|pending| pending.sequence == sequence) {
            pending.written = true;
        }
        let lost_from = log.failed.as_ref().map_or(u64::MAX, |failure| failure.from_sequence);
        while let Some(front) = log.in_flight.front()
            && front.written
            && front.sequence < lost_from
        {
            let Some(done) = log.in_flight.pop_front() else { break };
            done.change.apply(&mut self.held.write().expect("no panic while held").index);
            log.applied = done.sequence;
        }
        self.moved.notify_all();
        loop {
            if log.applied >= sequence {
                return Ok(());
            }
            if let Some(failure) = &log.failed
                && failure.from_sequence <= sequence
            {
                let cause = failure.cause.clone();
                log.in_flight.retain(|pending| pending.sequence != sequence);
                self.moved.notify_all();
                return Err(OverlayError::Failed { cause });
            }
            log = self.moved.wait(log).expect("no panic while held");
        }
    }

    /// Whether the index has all of `sectors` at `place`.
    fn is_all_at(&self, sectors: &Range<u64>, place: Place) -> bool {
        let held = self.held.read().expect("no panic while held");
        held.index.lookup(sectors.clone()).iter().all(|(_, there)| *there == Some(place))
    }

    /// Refuses what there is no space for, before it has a place: afterwards it would leave a hole.
    fn check_room(&self, draft: &Draft<'_>, len_bytes: u64) -> Result<(), OverlayError> {
        let is_guests = draft.kind == RecordKind::Data && draft.copy_of.is_none();
        let reserve = if is_guests { self.options.reserve_bytes } else { 0 };
        let needed = len_bytes + reserve;
        let limit = self.options.limit_bytes.unwrap_or(u64::MAX);
        let used = self.held.read().expect("no panic while held").len_bytes();
        let is_free = self.folder.free_bytes().is_none_or(|free| free >= needed);
        if used.saturating_add(needed) > limit || !is_free {
            return Err(OverlayError::NoSpace { folder: self.folder.display() });
        }
        Ok(())
    }

    /// Starts the next segment while nothing is in flight. The first call for an overlay has nothing to close.
    pub(super) fn start_segment(&self) -> Result<(), OverlayError> {
        let mut log = self.log.lock().expect("no panic while held");
        while log.rolling || !log.in_flight.is_empty() {
            log.check()?;
            log = self.moved.wait(log).expect("no panic while held");
        }
        self.roll(&mut log)
    }

    /// Closes the current segment and starts the next (rule 2). The order of the syncs is what keeps records a prefix:
    /// nothing is appended to a segment that could vanish, or that stands behind one that could lose its end.
    fn roll(&self, log: &mut MutexGuard<'_, Log>) -> Result<(), OverlayError> {
        log.check()?;
        let rolled = self.try_roll(log);
        if let Err(error) = &rolled
            && !matches!(error, OverlayError::NoSpace { .. })
        {
            let next = log.next_sequence;
            log.fail(next, error);
        }
        self.moved.notify_all();
        rolled
    }

    fn try_roll(&self, log: &mut MutexGuard<'_, Log>) -> Result<(), OverlayError> {
        let full = log.current.clone();
        if let Some(full) = &full {
            full.file.sync_data().map_err(|source| full.failed("flush", source))?;
            log.durable = log.applied;
            // The next header says as much.
            log.marked = log.applied;
        }
        let number = log.next_segment;
        let previous = {
            let held = self.held.read().expect("no panic while held");
            let last = held.segments.range(log.oldest_needed..number).next_back();
            last.map_or([0; 32], |(_, segment)| segment.header_sha256)
        };
        let header = SegmentHeader {
            session: self.identity.session,
            disk: self.identity.disk,
            number,
            first_sequence: log.next_sequence,
            oldest_needed: log.oldest_needed,
            size_bytes: self.identity.size_bytes,
            sector_bytes: self.identity.sector_bytes,
            salt: random::bytes(),
            base: self.identity.base,
            previous,
        };
        let segment = Arc::new(self.create_segment(&header)?);
        log.next_segment += 1;
        let mut held = self.held.write().expect("no panic while held");
        held.segments.insert(number, segment.clone());
        log.current = Some(segment);
        Ok(())
    }

    /// Makes the file, durably.
    fn create_segment(&self, header: &SegmentHeader) -> Result<Segment, OverlayError> {
        let name = segment_name(header.number)?;
        let failed = |attempt| {
            let file = name.clone();
            move |source| OverlayError::Io { attempt, file, source }
        };
        let key = self.key.segment(&header.salt, header.number);
        let bytes = key.seal_header(header);
        let file = self.folder.create(&name).map_err(failed("start"))?;
        match file.write_all_at(&bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                // Nothing of the log is in it yet, and without it the log goes on where it was.
                self.folder.remove(&name).map_err(failed("take back"))?;
                return Err(OverlayError::NoSpace { folder: self.folder.display() });
            }
            written => written.map_err(failed("start"))?,
        }
        file.sync_data().map_err(failed("flush the start of"))?;
        self.folder.sync().map_err(failed("make durable the name of"))?;
        Ok(Segment {
            number: header.number,
            name,
            first_sequence: header.first_sequence,
            header_sha256: sha256(&bytes),
            key,
            file,
            len_bytes: AtomicU64::new(HEADER_BYTES as u64),
        })
    }
}

impl Draft<'_> {
    fn cells(&self) -> u16 {
        match self.kind {
            RecordKind::Data => cells_of(self.sectors.start, self.sectors.end) as u16,
            _ => 0,
        }
    }
}

/// The record's bytes.
fn seal(draft: &Draft<'_>, assigned: &Assigned) -> Vec<u8> {
    let key = &assigned.segment.key;
    let header = RecordHeader {
        kind: draft.kind,
        cells: draft.cells(),
        sequence: assigned.sequence,
        first_sector: draft.sectors.start,
        sectors: draft.sectors.end - draft.sectors.start,
        mark: assigned.mark,
    };
    let mut bytes = vec![0; RECORD_BYTES + header.payload_bytes()];
    bytes[..RECORD_BYTES].copy_from_slice(&header.encode());
    key.seal_record(&mut bytes, assigned.sequence);
    let mut rest = draft.bytes;
    let mut skip = (draft.sectors.start % CELL_SECTORS * SECTOR_BYTES) as usize;
    for (nth, cell) in bytes[RECORD_BYTES..].chunks_exact_mut(SEALED_CELL_BYTES).enumerate() {
        let (here, behind) = rest.split_at(rest.len().min(super::CELL_BYTES - skip));
        cell[skip..skip + here.len()].copy_from_slice(here);
        key.seal_cell(cell, nth as u16, assigned.sequence);
        (rest, skip) = (behind, 0);
    }
    bytes
}

/// `ov-<8 hex digits>.seg`.
pub(super) fn segment_name(number: u64) -> Result<String, OverlayError> {
    match u32::try_from(number) {
        Ok(number) => Ok(format!("ov-{number:08x}.seg")),
        Err(_) => Err(OverlayError::Io {
            attempt: "start",
            file: format!("segment {number}"),
            source: io::Error::other("an overlay has at most 4,294,967,295 segments"),
        }),
    }
}

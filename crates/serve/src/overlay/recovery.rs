//! Reading a log that a kill or a power loss has ended (spec block-serving C.5 rules 4 and 5).
//!
//! Only the end of the newest segment may be torn: everything before was durable when what follows was begun. Whatever
//! else is wrong is no crash's doing, and then nothing is served and nothing is deleted.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::format::{
    HEADER_BYTES, RECORD_BYTES, RecordHeader, RecordKind, SEALED_CELL_BYTES, SECTOR_BYTES, SegmentHeader,
};
use super::index::{DataAt, Place};
use super::log::{Change, Log, segment_name};
use super::seal::sha256;
use super::{DiskKey, Held, Identity, Overlay, OverlayError, OverlayOptions, Segment};
use crate::folder::Folder;

impl Overlay {
    /// Takes up the overlay in a folder, with everything that was acknowledged before a kill, and everything that was
    /// flushed before a power loss.
    pub fn recover(
        folder: Arc<dyn Folder>,
        identity: Identity,
        key: DiskKey,
        options: OverlayOptions,
    ) -> Result<Self, OverlayError> {
        let headers = Headers { folder: &*folder, identity: &identity, key: &key };
        let Found { chain, oldest_needed, torn, unneeded } = headers.find()?;
        let mut held = Held::default();
        let (mut last, mut durable) = (0, 0);
        for (nth, segment) in chain.iter().enumerate() {
            let ends_before = chain.get(nth + 1).map(|next| next.first_sequence);
            let read = read_records(segment, ends_before, identity.size_bytes / SECTOR_BYTES, &mut held)?;
            last = read.next_sequence - 1;
            durable = durable.max(read.durable);
        }
        if durable > last {
            return Err(OverlayError::FlushedDataMissing { folder: folder.display(), durable, last });
        }
        if let Some(file) = torn {
            folder.remove(&file).map_err(|source| OverlayError::Io { attempt: "remove", file, source })?;
        }
        let Some(newest) = chain.last() else {
            return Err(OverlayError::Missing { folder: folder.display(), problem: "it has no segments".into() });
        };
        // What was read may lie in the page cache only, and so may the name it was found under; both will be built upon.
        newest.file.sync_data().map_err(|source| newest.failed("flush", source))?;
        folder.sync().map_err(|source| newest.failed("make durable the name of", source))?;
        let mut log = Log::new(last + 1, newest.number + 1);
        log.oldest_needed = oldest_needed;
        for segment in chain {
            held.segments.insert(segment.number, segment);
        }
        let overlay = Self::assemble(folder, identity, key, options, held, log);
        // Never behind a tail that may hold dropped records: the same numbers again would be the same nonces.
        overlay.start_segment()?;
        for name in unneeded {
            // A segment too many costs space, nothing else; the next recovery tries again.
            if let Err(error) = overlay.folder.remove(&name) {
                tracing::warn!(file = name, %error, "segment that is not needed stays");
            }
        }
        Ok(overlay)
    }

    pub(super) fn device_sectors(&self) -> u64 {
        self.identity.size_bytes / SECTOR_BYTES
    }
}

/// The numbers of all segments in a folder, ascending. Other files are none of ours.
pub(super) fn segment_numbers(folder: &dyn Folder) -> Result<Vec<u64>, OverlayError> {
    let names = folder.list().map_err(|source| OverlayError::Io {
        attempt: "list the files of",
        file: folder.display(),
        source,
    })?;
    let number = |name: &String| {
        let digits = name.strip_prefix("ov-")?.strip_suffix(".seg")?;
        let is_ours = digits.len() == 8 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        u64::from_str_radix(digits, 16).ok().filter(|_| is_ours)
    };
    let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Looks at headers only.
struct Headers<'a> {
    folder: &'a dyn Folder,
    identity: &'a Identity,
    key: &'a DiskKey,
}

/// The segments of a log.
struct Found {
    /// Those needed, in order, without gaps.
    chain: Vec<Arc<Segment>>,
    oldest_needed: u64,
    /// One that was never durable.
    torn: Option<String>,
    /// Those that newer ones have made superfluous.
    unneeded: Vec<String>,
}

/// A segment whose header is as it was written.
struct Sound {
    segment: Arc<Segment>,
    header: SegmentHeader,
}

impl Headers<'_> {
    fn find(&self) -> Result<Found, OverlayError> {
        let numbers = segment_numbers(self.folder)?;
        let missing = |problem: String| OverlayError::Missing { folder: self.folder.display(), problem };
        let Some(&last) = numbers.last() else { return Err(missing("it has no segments".into())) };
        let (newest, torn) = match self.open(last)? {
            Ok(newest) => (newest, None),
            Err(problem) => {
                // Records are appended only to a segment whose header is durable: a longer file was damaged.
                let name = segment_name(last)?;
                let damaged = OverlayError::Damaged { file: name.clone(), offset_bytes: 0, problem };
                let Some(&before) = numbers.iter().nth_back(1) else { return Err(damaged) };
                if self.len_bytes(&name)? > HEADER_BYTES as u64 {
                    return Err(damaged);
                }
                (self.open(before)?.map_err(|problem| damaged_header(before, problem))?, Some(name))
            }
        };
        let oldest_needed = newest.header.oldest_needed;
        let end = newest.header.number;
        if !(1..=end).contains(&oldest_needed) {
            return Err(damaged_header(end, "it needs segments that cannot be"));
        }
        let mut chain = Vec::new();
        let mut before: Option<Sound> = None;
        // A gap shows at its first number, however wide it is.
        for number in oldest_needed..end {
            if numbers.binary_search(&number).is_err() {
                return Err(missing(format!("segment {} is gone", segment_name(number)?)));
            }
            let sound = self.open(number)?.map_err(|problem| damaged_header(number, problem))?;
            check_follows(before.as_ref(), &sound)?;
            chain.push(sound.segment.clone());
            before = Some(sound);
        }
        check_follows(before.as_ref(), &newest)?;
        chain.push(newest.segment);
        let unneeded = numbers.iter().filter(|number| **number < oldest_needed);
        let unneeded = unneeded.map(|number| segment_name(*number)).collect::<Result<_, _>>()?;
        Ok(Found { chain, oldest_needed, torn, unneeded })
    }

    fn len_bytes(&self, name: &str) -> Result<u64, OverlayError> {
        let len = self.folder.open(name).and_then(|file| file.len_bytes());
        len.map_err(|source| OverlayError::Io { attempt: "open", file: name.to_owned(), source })
    }

    /// The inner error says what is wrong with the header. Another's segment is an error of its own: it must not be
    /// taken for a torn one.
    fn open(&self, number: u64) -> Result<Result<Sound, &'static str>, OverlayError> {
        let name = segment_name(number)?;
        let failed = |source| OverlayError::Io { attempt: "open", file: name.clone(), source };
        let file = self.folder.open(&name).map_err(failed)?;
        let mut bytes = [0; HEADER_BYTES];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(Err("it is shorter than a header"));
            }
            read => read.map_err(failed)?,
        }
        let header = match SegmentHeader::parse(&bytes) {
            Ok(header) => header,
            Err(problem) => return Ok(Err(problem)),
        };
        for (what, is_ours) in [
            ("session", header.session == self.identity.session),
            ("disk", header.disk == self.identity.disk),
            ("restore point", header.base == self.identity.base),
            ("disk size", header.size_bytes == self.identity.size_bytes),
            ("sector size", header.sector_bytes == self.identity.sector_bytes),
        ] {
            if !is_ours {
                return Err(OverlayError::Foreign { folder: self.folder.display(), file: name, what });
            }
        }
        let key = self.key.segment(&header.salt, number);
        if header.number != number || key.check_header(&bytes).is_err() {
            return Ok(Err("its header is not as this repository's key would have sealed it"));
        }
        let segment = Segment {
            number,
            name,
            first_sequence: header.first_sequence,
            header_sha256: sha256(&bytes),
            key,
            file,
            len_bytes: AtomicU64::new(HEADER_BYTES as u64),
        };
        Ok(Ok(Sound { segment: Arc::new(segment), header }))
    }
}

fn damaged_header(number: u64, problem: &'static str) -> OverlayError {
    OverlayError::Damaged { file: format!("segment {number}"), offset_bytes: 0, problem }
}

/// That a segment was written behind the one before it.
fn check_follows(before: Option<&Sound>, sound: &Sound) -> Result<(), OverlayError> {
    let Some(before) = before else { return Ok(()) };
    let follows = sound.header.previous == before.segment.header_sha256
        && sound.header.first_sequence >= before.header.first_sequence;
    if follows { Ok(()) } else { Err(damaged_header(sound.header.number, "it does not continue the one before it")) }
}

/// How far a segment could be read.
struct Read {
    next_sequence: u64,
    durable: u64,
}

/// Replays a segment. One with a successor must be whole up to there; the newest ends at its first invalid record.
fn read_records(
    segment: &Arc<Segment>,
    ends_before: Option<u64>,
    device_sectors: u64,
    held: &mut Held,
) -> Result<Read, OverlayError> {
    let mut read = Read { next_sequence: segment.first_sequence, durable: 0 };
    let mut offset = HEADER_BYTES as u64;
    while ends_before.is_none_or(|end| read.next_sequence < end) {
        let record = record_at(segment, offset, read.next_sequence, device_sectors).and_then(|record| {
            if ends_before.is_none() {
                check_cells(segment, offset, &record)?;
            }
            Ok(record)
        });
        let record = match record {
            Ok(record) => record,
            Err(OverlayError::Damaged { .. }) if ends_before.is_none() => break,
            Err(error) => return Err(error),
        };
        let data = (record.kind == RecordKind::Data)
            .then_some(DataAt { offset: offset as u32, first_sector: record.first_sector });
        let place = Place { segment: segment.number, sequence: record.sequence, data };
        let sectors: Range<u64> = record.range();
        Change { kind: record.kind, sectors, up_to: record.mark, place }.apply(&mut held.index);
        if record.kind != RecordKind::Drained {
            read.durable = read.durable.max(record.mark);
        }
        read.next_sequence += 1;
        offset += (RECORD_BYTES + record.payload_bytes()) as u64;
    }
    segment.len_bytes.store(offset, std::sync::atomic::Ordering::Relaxed);
    Ok(read)
}

/// The header of the record at an offset; [`OverlayError::Damaged`] when there is none with that sequence number.
pub(super) fn record_at(
    segment: &Segment,
    offset: u64,
    sequence: u64,
    device_sectors: u64,
) -> Result<RecordHeader, OverlayError> {
    let damaged = |problem| OverlayError::Damaged { file: segment.name.clone(), offset_bytes: offset, problem };
    let mut bytes = [0; RECORD_BYTES];
    match segment.file.read_exact_at(&mut bytes, offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(damaged("the file ends before its records do"));
        }
        read => read.map_err(|source| segment.failed("read", source))?,
    }
    let record = RecordHeader::parse(&bytes, device_sectors).map_err(damaged)?;
    if record.sequence != sequence || segment.key.check_record(&bytes, sequence).is_err() {
        return Err(damaged("a record is not the one that belongs here"));
    }
    Ok(record)
}

fn check_cells(segment: &Segment, offset: u64, record: &RecordHeader) -> Result<(), OverlayError> {
    let torn =
        || OverlayError::Damaged { file: segment.name.clone(), offset_bytes: offset, problem: "a record is torn" };
    let mut sealed = vec![0; record.payload_bytes()];
    match segment.file.read_exact_at(&mut sealed, offset + RECORD_BYTES as u64) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(torn()),
        read => read.map_err(|source| segment.failed("read", source))?,
    }
    for (nth, cell) in sealed.chunks_exact_mut(SEALED_CELL_BYTES).enumerate() {
        segment.key.open_cell(cell, nth as u16, record.sequence).map_err(|_| torn())?;
    }
    Ok(())
}

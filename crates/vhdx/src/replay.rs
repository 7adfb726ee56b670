//! Replaying the log: finding what a crash left unfinished, and finishing it (MS-VHDX 2.3).

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::format::{
    Header, LOG_DESCRIPTOR_LEN, LOG_ENTRY_HEADER_LEN, LogEntryHeader, MAX_FILE_BYTES, PAGE, Page, REGION_TABLE_OFFSETS,
    log_descriptor_sectors, put, u32_at, u64_at,
};
use crate::{OpenError, ReadAt};

/// The part of the log that must be applied.
#[derive(Debug)]
pub(crate) struct ActiveSequence {
    /// From the head's tail to the head, oldest first.
    entries: Vec<Entry>,
}

/// A valid entry.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// In the log.
    offset: u64,
    header: LogEntryHeader,
    /// Greatest end of a target range.
    max_target_end: u64,
}

/// Finds the active sequence of a log whose header names a LogGuid. There always is one in a file whose writer
/// follows the rules; without one the file is corrupt.
pub(crate) fn find_active(file: &dyn ReadAt, header: &Header) -> Result<ActiveSequence, OpenError> {
    let log = LogRing { file, base: header.log_offset, length: u64::from(header.log_length), header };
    let mut best: Option<Vec<Entry>> = None;
    let mut start = 0;
    while start < log.length {
        let run = log.run_from(start)?;
        let Some(last) = run.last() else {
            start += PAGE as u64;
            continue;
        };
        let next = (last.offset + u64::from(last.header.entry_length)) % log.length;
        // Only a maximal run counts: an earlier head would roll metadata back. A run whose tail is missing stays
        // without it when its first entries are dropped, so the search goes on behind it, valid or not.
        let complete = run.iter().any(|e| e.offset == u64::from(last.header.tail));
        let newest = best.as_ref().and_then(|b| b.last()).map_or(0, |e| e.header.sequence_number);
        if complete && last.header.sequence_number > newest {
            best = Some(run);
        }
        if next <= start {
            break;
        }
        start = next;
    }
    let mut entries =
        best.ok_or_else(|| OpenError::corrupt("log", log.base, "the header names a log, but no valid entry is in it"))?;
    let head = entries[entries.len() - 1];
    // Entries before the tail are in place already and must not be applied again.
    let tail = entries.iter().position(|e| e.offset == u64::from(head.header.tail)).unwrap_or(0);
    entries.drain(..tail);

    let len = file.len_bytes().map_err(OpenError::read("file length", 0))?;
    let at = log.base + head.offset;
    if len < head.header.flushed_file_offset {
        let flushed = head.header.flushed_file_offset;
        return Err(OpenError::corrupt("log entry", at, format!("the file was {flushed} bytes and is now {len}")));
    }
    if head.header.last_file_offset > MAX_FILE_BYTES {
        return Err(OpenError::corrupt("log entry", at, "LastFileOffset beyond any possible file"));
    }
    let limit = len.max(head.header.last_file_offset);
    if let Some(entry) = entries.iter().find(|e| e.max_target_end > limit) {
        let end = entry.max_target_end;
        return Err(OpenError::corrupt(
            "log entry",
            log.base + entry.offset,
            format!("writes up to {end:#x}, past the end of the file"),
        ));
    }
    Ok(ActiveSequence { entries })
}

impl ActiveSequence {
    /// The length that the file must have at least after the replay.
    pub(crate) fn last_file_offset(&self) -> u64 {
        self.entries.last().map_or(0, |head| head.header.last_file_offset)
    }

    /// Hands every change to `sink`, in order.
    pub(crate) fn apply(&self, file: &dyn ReadAt, header: &Header, sink: &mut dyn ReplaySink) -> Result<(), OpenError> {
        let log = LogRing { file, base: header.log_offset, length: u64::from(header.log_length), header };
        for entry in &self.entries {
            let descriptor_sectors = log_descriptor_sectors(entry.header.descriptor_count);
            let mut data_sector = descriptor_sectors;
            for index in 0..descriptor_sectors {
                let sector = log.sector(entry.offset, index)?;
                for descriptor in descriptors(&sector, index, entry.header.descriptor_count) {
                    let target = u64_at(descriptor, 16);
                    if descriptor[..4] == *b"zero" {
                        sink.zero(target..target.saturating_add(u64_at(descriptor, 8)))?;
                        continue;
                    }
                    let mut page = log.sector(entry.offset, data_sector)?;
                    data_sector += 1;
                    put(&mut page, 0, &descriptor[8..16]);
                    put(&mut page, PAGE - 4, &descriptor[4..8]);
                    sink.page(target, &page)?;
                }
            }
        }
        Ok(())
    }
}

/// Where replayed changes go.
pub(crate) trait ReplaySink {
    fn page(&mut self, offset: u64, page: &Page) -> Result<(), OpenError>;
    fn zero(&mut self, range: Range<u64>) -> Result<(), OpenError>;
}

struct LogRing<'a> {
    file: &'a dyn ReadAt,
    base: u64,
    length: u64,
    header: &'a Header,
}

impl LogRing<'_> {
    fn sector(&self, entry_offset: u64, index: u64) -> Result<Page, OpenError> {
        let at = self.base + (entry_offset + index * PAGE as u64) % self.length;
        let mut sector = [0; PAGE];
        self.file.read_exact_at(&mut sector, at).map_err(OpenError::read("log sector", at))?;
        Ok(sector)
    }

    /// The maximal run of valid entries with consecutive sequence numbers that starts at an offset.
    fn run_from(&self, start: u64) -> Result<Vec<Entry>, OpenError> {
        let mut run: Vec<Entry> = Vec::new();
        let mut used = 0;
        while used < self.length {
            let Some(entry) = self.entry((start + used) % self.length)? else { break };
            used += u64::from(entry.header.entry_length);
            let consecutive = run
                .last()
                .is_none_or(|last| last.header.sequence_number.checked_add(1) == Some(entry.header.sequence_number));
            if !consecutive || used > self.length {
                break;
            }
            run.push(entry);
        }
        Ok(run)
    }

    /// The entry at an offset, if every rule holds for it. Reads one sector at a time and stops at the first
    /// that is not as it must be. An entry's sectors cannot start another entry, so a scan of the whole ring reads each
    /// sector a bounded number of times whatever is in it.
    fn entry(&self, offset: u64) -> Result<Option<Entry>, OpenError> {
        let mut sector = self.sector(offset, 0)?;
        let Some(header) = LogEntryHeader::decode(&sector) else { return Ok(None) };
        let page = PAGE as u64;
        let length = u64::from(header.entry_length);
        let descriptor_sectors = log_descriptor_sectors(header.descriptor_count);
        let plausible = header.log_guid == self.header.log_guid
            && length.is_multiple_of(page)
            && length < self.length
            && descriptor_sectors <= length / page
            && u64::from(header.tail).is_multiple_of(page)
            && u64::from(header.tail) < self.length
            && header.sequence_number > 0;
        if !plausible {
            return Ok(None);
        }

        put(&mut sector, 4, &[0; 4]);
        let mut crc = 0;
        let mut data_sectors = 0;
        let mut max_target_end = 0;
        for index in 0..length / page {
            if index > 0 {
                sector = self.sector(offset, index)?;
            }
            crc = crc32c::crc32c_append(crc, &sector);
            if index >= descriptor_sectors {
                // The sequence number at both ends shows that this sector was written whole, and for this entry.
                let sequence_number = u64::from(u32_at(&sector, 4)) << 32 | u64::from(u32_at(&sector, PAGE - 4));
                if sector[..4] != *b"data" || sequence_number != header.sequence_number {
                    return Ok(None);
                }
                continue;
            }
            for descriptor in descriptors(&sector, index, header.descriptor_count) {
                if u64_at(descriptor, 24) != header.sequence_number {
                    return Ok(None);
                }
                let target_len = match &descriptor[..4] {
                    b"desc" => page,
                    b"zero" => u64_at(descriptor, 8),
                    _ => return Ok(None),
                };
                data_sectors += u64::from(descriptor[..4] == *b"desc");
                match self.target_end(u64_at(descriptor, 16), target_len) {
                    Some(end) => max_target_end = max_target_end.max(end),
                    None => return Ok(None),
                }
            }
            if index + 1 == descriptor_sectors && descriptor_sectors + data_sectors != length / page {
                return Ok(None);
            }
        }
        Ok((crc == header.checksum).then_some(Entry { offset, header, max_target_end }))
    }

    /// The end of a range that may be replayed over: aligned, behind the headers, outside the log.
    fn target_end(&self, offset: u64, len: u64) -> Option<u64> {
        let end = offset.checked_add(len)?;
        let aligned = offset.is_multiple_of(PAGE as u64) && len.is_multiple_of(PAGE as u64);
        let in_log = offset < self.base + self.length && end > self.base;
        (aligned && offset >= REGION_TABLE_OFFSETS[0] && !in_log).then_some(end)
    }
}

/// The descriptors in descriptor sector `index` of an entry that has `count` of them.
fn descriptors(sector: &Page, index: u64, count: u32) -> impl Iterator<Item = &[u8]> {
    let per_sector = (PAGE / LOG_DESCRIPTOR_LEN) as u64;
    let reserved = (LOG_ENTRY_HEADER_LEN / LOG_DESCRIPTOR_LEN) as u64;
    let (skip, before) = match index {
        0 => (reserved, 0),
        _ => (0, index * per_sector - reserved),
    };
    let here = u64::from(count).saturating_sub(before).min(per_sector - skip);
    sector.chunks_exact(LOG_DESCRIPTOR_LEN).skip(skip as usize).take(here as usize)
}

/// A file as it reads after its log was replayed; the file itself is untouched.
pub(crate) struct ReplayedFile {
    file: Arc<dyn ReadAt>,
    overlay: Option<Overlay>,
}

/// What the log says differently. Pages lie above zeroed ranges, which lie above the file.
#[derive(Default)]
struct Overlay {
    pages: BTreeMap<u64, Box<Page>>,
    /// Start to end; neither overlapping nor touching.
    zeroed: BTreeMap<u64, u64>,
    real_len: u64,
    len: u64,
}

impl ReplayedFile {
    /// A file with nothing to replay.
    pub(crate) fn clean(file: Arc<dyn ReadAt>) -> Self {
        ReplayedFile { file, overlay: None }
    }

    /// Replays in memory, which takes no more of it than the log is long.
    pub(crate) fn replay(file: Arc<dyn ReadAt>, header: &Header) -> Result<Self, OpenError> {
        let active = find_active(&*file, header)?;
        let real_len = file.len_bytes().map_err(OpenError::read("file length", 0))?;
        let mut overlay = Overlay { real_len, len: real_len.max(active.last_file_offset()), ..Overlay::default() };
        active.apply(&*file, header, &mut overlay)?;
        Ok(ReplayedFile { file, overlay: Some(overlay) })
    }

    /// Whether the log holds changes that are not in the file.
    pub(crate) fn is_dirty(&self) -> bool {
        self.overlay.is_some()
    }
}

impl ReplaySink for Overlay {
    fn page(&mut self, offset: u64, page: &Page) -> Result<(), OpenError> {
        self.pages.insert(offset, Box::new(*page));
        self.len = self.len.max(offset + PAGE as u64);
        Ok(())
    }

    fn zero(&mut self, range: Range<u64>) -> Result<(), OpenError> {
        if range.is_empty() {
            return Ok(());
        }
        let covered: Vec<u64> = self.pages.range(range.clone()).map(|(&at, _)| at).collect();
        for at in covered {
            self.pages.remove(&at);
        }
        self.len = self.len.max(range.end);
        let mut merged = range;
        while let Some((&start, &end)) = self.zeroed.range(..=merged.end).next_back() {
            if end < merged.start {
                break;
            }
            self.zeroed.remove(&start);
            merged = merged.start.min(start)..merged.end.max(end);
        }
        self.zeroed.insert(merged.start, merged.end);
        Ok(())
    }
}

impl ReadAt for ReplayedFile {
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let Some(overlay) = &self.overlay else { return self.file.read_exact_at(buf, offset_bytes) };
        let end = offset_bytes.checked_add(buf.len() as u64).filter(|&end| end <= overlay.len);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        // Both offsets are in `offset_bytes..=end`, so their distances fit the buffer.
        let at = |offset: u64| (offset - offset_bytes) as usize;

        let real_end = overlay.real_len.clamp(offset_bytes, end);
        if real_end > offset_bytes {
            self.file.read_exact_at(&mut buf[..at(real_end)], offset_bytes)?;
        }
        buf[at(real_end)..].fill(0);
        for (&start, &stop) in overlay.zeroed.range(..end).rev().take_while(|&(_, &stop)| stop > offset_bytes) {
            buf[at(start.max(offset_bytes))..at(stop.min(end))].fill(0);
        }
        let first_page = offset_bytes - offset_bytes % PAGE as u64;
        for (&page_at, page) in overlay.pages.range(first_page..end) {
            let from = page_at.max(offset_bytes);
            let to = (page_at + PAGE as u64).min(end);
            let source = &page[(from - page_at) as usize..(to - page_at) as usize];
            buf[at(from)..at(to)].copy_from_slice(source);
        }
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        match &self.overlay {
            Some(overlay) => Ok(overlay.len),
            None => self.file.len_bytes(),
        }
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        match &self.overlay {
            Some(_) => Ok((!range.is_empty()).then_some(range)),
            None => self.file.next_data(range),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::Guid;
    use crate::format::{MIB, set_checksum};

    const LOG: u64 = MIB;
    const LOG_LEN: u64 = MIB;

    fn guid(n: u128) -> Guid {
        Guid::from_u128(n)
    }

    fn header(log_length: u64) -> Header {
        Header {
            sequence_number: 1,
            file_write_guid: guid(1),
            data_write_guid: guid(2),
            log_guid: guid(7),
            log_version: 0,
            version: 1,
            log_length: log_length as u32,
            log_offset: LOG,
        }
    }

    enum Change {
        Page(u64, u8),
        Zero(u64, u64),
    }
    use Change::{Page as Fill, Zero};

    struct Entry {
        log_guid: Guid,
        sequence_number: u64,
        tail: u64,
        flushed: u64,
        last: u64,
        changes: Vec<Change>,
    }

    fn entry(sequence_number: u64, tail: u64, changes: Vec<Change>) -> Entry {
        Entry { log_guid: guid(7), sequence_number, tail, flushed: 0, last: 4 * MIB, changes }
    }

    impl Entry {
        fn bytes(&self) -> Vec<u8> {
            let sectors = log_descriptor_sectors(self.changes.len() as u32) as usize;
            let pages = self.changes.iter().filter(|c| matches!(c, Fill(..))).count();
            let mut bytes = vec![0; (sectors + pages) * PAGE];
            let head = LogEntryHeader {
                checksum: 0,
                entry_length: bytes.len() as u32,
                tail: self.tail as u32,
                sequence_number: self.sequence_number,
                descriptor_count: self.changes.len() as u32,
                log_guid: self.log_guid,
                flushed_file_offset: self.flushed,
                last_file_offset: self.last,
            };
            head.encode(&mut bytes);
            let mut data = sectors * PAGE;
            for (change, at) in self.changes.iter().zip((64..).step_by(32)) {
                match change {
                    Fill(offset, value) => {
                        put(&mut bytes, at, b"desc");
                        put(&mut bytes, at + 4, &[*value; 12]);
                        put(&mut bytes, at + 16, &offset.to_le_bytes());
                        put(&mut bytes, data, b"data");
                        put(&mut bytes, data + 4, &((self.sequence_number >> 32) as u32).to_le_bytes());
                        bytes[data + 8..data + PAGE - 4].fill(*value);
                        put(&mut bytes, data + PAGE - 4, &(self.sequence_number as u32).to_le_bytes());
                        data += PAGE;
                    }
                    Zero(offset, len) => {
                        put(&mut bytes, at, b"zero");
                        put(&mut bytes, at + 8, &len.to_le_bytes());
                        put(&mut bytes, at + 16, &offset.to_le_bytes());
                    }
                }
                put(&mut bytes, at + 24, &self.sequence_number.to_le_bytes());
            }
            set_checksum(&mut bytes);
            bytes
        }
    }

    /// A 4 MiB file of ones whose log, otherwise empty, holds entries at offsets.
    fn file(entries: &[(u64, Vec<u8>)]) -> Vec<u8> {
        let mut file = vec![1; 4 * MIB as usize];
        file[LOG as usize..(LOG + LOG_LEN) as usize].fill(0);
        for (offset, bytes) in entries {
            for (sector, at) in bytes.chunks(PAGE).zip((*offset..).step_by(PAGE)) {
                put(&mut file, (LOG + at % LOG_LEN) as usize, sector);
            }
        }
        file
    }

    fn replay(file: &[u8]) -> Result<ReplayedFile, OpenError> {
        ReplayedFile::replay(Arc::new(file.to_vec()), &header(LOG_LEN))
    }

    fn byte(file: &ReplayedFile, at: u64) -> u8 {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        byte[0]
    }

    const TARGET: u64 = 3 * MIB;

    #[test]
    fn an_empty_entry_is_enough_and_none_is_not() {
        let replayed = replay(&file(&[(0, entry(5, 0, vec![]).bytes())])).unwrap();
        assert_eq!((byte(&replayed, TARGET), replayed.len_bytes().unwrap()), (1, 4 * MIB));
        assert!(replay(&file(&[])).is_err());
        let mut other = entry(5, 0, vec![]);
        other.log_guid = guid(8);
        assert!(replay(&file(&[(0, other.bytes())])).is_err(), "an entry of another session");
    }

    #[test]
    fn entries_before_the_tail_are_not_applied() {
        let page = PAGE as u64;
        let first = entry(1, 0, vec![Fill(TARGET, 2)]);
        let second = entry(2, 2 * page, vec![Fill(TARGET + page, 3)]);
        let third = entry(3, 2 * page, vec![Fill(TARGET + 2 * page, 4)]);
        let file = file(&[(0, first.bytes()), (2 * page, second.bytes()), (4 * page, third.bytes())]);
        let replayed = replay(&file).unwrap();
        assert_eq!([0, 1, 2].map(|i| byte(&replayed, TARGET + i * page)), [1, 3, 4]);
    }

    #[test]
    fn entries_wrap_anywhere() {
        // 130 pages and a zero range: three kinds of sectors, of which two are for descriptors.
        let changes = |_| {
            let mut changes: Vec<_> = (0..130).map(|i| Fill(TARGET + i * PAGE as u64, i as u8 + 2)).collect();
            changes.push(Zero(2 * MIB, 8192));
            changes
        };
        for back in [1, 2, 3, 60, 132] {
            let start = LOG_LEN - back * PAGE as u64;
            let bytes = entry(9, start, changes(())).bytes();
            let replayed = replay(&file(&[(start, bytes)])).unwrap();
            for i in 0..130 {
                assert_eq!(
                    byte(&replayed, TARGET + i * PAGE as u64 + 77),
                    i as u8 + 2,
                    "page {i}, {back} sectors back"
                );
            }
            assert_eq!((byte(&replayed, 2 * MIB + 8191), byte(&replayed, 2 * MIB + 8192)), (0, 1));
        }
    }

    #[test]
    fn descriptor_sectors_fill_up() {
        for count in [1, 125, 126, 127, 250] {
            let changes = (0..count).map(|i| Fill(2 * MIB + i * PAGE as u64, 9)).collect();
            let replayed = replay(&file(&[(0, entry(1, 0, changes).bytes())])).unwrap();
            assert_eq!(byte(&replayed, 2 * MIB + count * PAGE as u64 - 1), 9, "{count} descriptors");
            assert_eq!(byte(&replayed, 2 * MIB + count * PAGE as u64), 1, "{count} descriptors");
        }
        for count in [126, 127, 254, 255, 700] {
            let mut zeroes: Vec<_> = (1..count).map(|i| Zero(2 * MIB + i % 256 * 4096, 4096)).collect();
            zeroes.push(Zero(TARGET, 4096));
            let replayed = replay(&file(&[(0, entry(1, 0, zeroes).bytes())])).unwrap();
            assert_eq!(byte(&replayed, TARGET), 0, "the last of {count} descriptors");
        }
    }

    #[test]
    fn of_two_sequences_the_newer_counts() {
        let page = PAGE as u64;
        let old = entry(5, 0, vec![Fill(TARGET, 5)]);
        let new = entry(9, 40 * page, vec![Fill(TARGET, 9)]);
        for entries in [[(0, old.bytes()), (40 * page, new.bytes())], [(40 * page, new.bytes()), (0, old.bytes())]] {
            assert_eq!(byte(&replay(&file(&entries)).unwrap(), TARGET), 9);
        }
    }

    #[test]
    fn a_torn_entry_falls_back_to_the_one_before() {
        let page = PAGE as u64;
        let first = entry(1, 0, vec![Fill(TARGET, 2)]);
        let second = entry(2, 2 * page, vec![Fill(TARGET, 3), Fill(TARGET + page, 3)]).bytes();
        for written in (0..second.len()).step_by(512) {
            // What lies there is an old entry of the same shape.
            let mut stale = entry(2, 2 * page, vec![Fill(TARGET, 8), Fill(TARGET + page, 8)]);
            stale.log_guid = guid(6);
            let mut torn = stale.bytes();
            torn[..written].copy_from_slice(&second[..written]);
            let replayed = replay(&file(&[(0, first.bytes()), (2 * page, torn)])).unwrap();
            assert_eq!(byte(&replayed, TARGET), 2, "{written} bytes of the new entry");
        }
    }

    #[test]
    fn a_run_without_its_tail_does_not_count() {
        let page = PAGE as u64;
        let first = entry(1, 0, vec![Fill(TARGET, 2)]);
        let second = entry(2, 100 * page, vec![Fill(TARGET, 3)]);
        let error = replay(&file(&[(0, first.bytes()), (2 * page, second.bytes())]));
        assert!(error.is_err(), "falling back to the first would roll metadata back");
    }

    #[test]
    fn file_offsets_of_the_head() {
        let mut long = entry(1, 0, vec![Fill(5 * MIB, 2)]);
        long.last = 6 * MIB;
        let replayed = replay(&file(&[(0, long.bytes())])).unwrap();
        assert_eq!(replayed.len_bytes().unwrap(), 6 * MIB);
        assert_eq!((byte(&replayed, 4 * MIB), byte(&replayed, 5 * MIB), byte(&replayed, 6 * MIB - 1)), (0, 2, 0));
        assert!(replayed.read_exact_at(&mut [0; 2], 6 * MIB - 1).is_err(), "past the end");

        let mut truncated = entry(1, 0, vec![]);
        truncated.flushed = 5 * MIB;
        assert!(replay(&file(&[(0, truncated.bytes())])).is_err());
        let mut absurd = entry(1, 0, vec![]);
        absurd.last = 1 << 60;
        assert!(replay(&file(&[(0, absurd.bytes())])).is_err());
    }

    #[test]
    fn targets_that_may_not_be_written() {
        for (change, why) in [
            (Fill(0, 2), "the file identifier"),
            (Fill(128 << 10, 2), "a header"),
            (Fill(LOG + 8192, 2), "the log"),
            (Fill(TARGET + 512, 2), "unaligned"),
            (Fill(4 * MIB, 2), "past the end"),
            (Zero(TARGET, 1 << 60), "past the end"),
            (Zero(u64::MAX - 4095, 8192), "overflow"),
            (Zero(TARGET, 512), "unaligned length"),
            (Zero(256 << 10, 2 * MIB), "across the log"),
        ] {
            assert!(replay(&file(&[(0, entry(1, 0, vec![change]).bytes())])).is_err(), "{why}");
        }
    }

    #[test]
    fn zeroes_and_pages_apply_in_order() {
        let page = PAGE as u64;
        let changes = vec![
            Fill(TARGET, 2),
            Fill(TARGET + page, 3),
            Zero(TARGET, 2 * page),
            Zero(TARGET + 4 * page, page),
            Zero(TARGET + 2 * page, 2 * page),
            Fill(TARGET + page, 4),
        ];
        let replayed = replay(&file(&[(0, entry(1, 0, changes).bytes())])).unwrap();
        let found = [0, 1, 2, 3, 4, 5].map(|i| byte(&replayed, TARGET + i * page));
        assert_eq!(found, [0, 4, 0, 0, 0, 1]);
    }

    struct Counting(Vec<u8>, AtomicU64);

    impl ReadAt for Counting {
        fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.read_exact_at(buf, offset_bytes)
        }

        fn len_bytes(&self) -> io::Result<u64> {
            self.0.len_bytes()
        }
    }

    #[test]
    fn scanning_is_linear_in_the_log() {
        let log_length = 4 * MIB;
        let sectors = log_length / PAGE as u64;
        // One long run of valid entries whose tail is nowhere, and one entry that goes on to the end and is wrong there.
        let run = (1..sectors).flat_map(|i| entry(i, (sectors - 1) * PAGE as u64, vec![]).bytes());
        let long = (0..200).map(|i| Fill(16 * MIB + i * 4096, 1)).collect();
        let mut wrong = entry(1, 0, long).bytes();
        let end = wrong.len() - 1;
        wrong[end] ^= 1;
        let wrong = std::iter::repeat_n(wrong, sectors as usize / 202).flatten();
        for (bait, log) in [("run", run.collect::<Vec<u8>>()), ("long", wrong.collect())] {
            let mut bytes = vec![0; 32 * MIB as usize];
            bytes[LOG as usize..LOG as usize + log.len()].copy_from_slice(&log);
            let file = Counting(bytes, AtomicU64::new(0));
            assert!(find_active(&file, &header(log_length)).is_err(), "{bait}");
            let reads = file.1.into_inner();
            assert!(reads <= 4 * sectors, "{bait}: {reads} reads of {sectors} sectors");
        }
    }
}

//! Changing a file's metadata so that a crash at any instant leaves it consistent (MS-VHDX 2.2.2, 2.3).
//!
//! The rules, and how they are kept:
//!
//! - A page is in the log, durably, before it is written in its place: [`Session::log_pages`] flushes between the two.
//! - A page is durable in its place before the log forgets it: the flush that precedes the next entry sees to that, so
//!   every entry needs only itself, and its tail is its own offset. The entry before it stays whole until the new one
//!   is durable, because an entry takes less than half the log.
//! - Payload is durable before metadata that shows it is logged: the same flush.
//! - The header names a log only after that log holds a valid entry, and stops naming it only when nothing in it is
//!   needed.

use std::ops::Range;
use std::sync::Arc;

use crate::file::CurrentHeader;
use crate::format::{
    HEADER_OFFSETS, Header, LOG_DESCRIPTOR_LEN, LOG_ENTRY_HEADER_LEN, LogEntryHeader, MIB, PAGE, Page, array_at,
    log_descriptor_sectors, put, set_checksum,
};
use crate::replay::{ReplaySink, find_active};
use crate::{Guid, OpenError, ReadAt, WriteAt, WriteError};

/// Pages that change in one entry, together or not at all. Fewer than half of the smallest log.
pub(crate) const MAX_ATOMIC_PAGES: usize = 126;

/// A file open for writing, below the level of blocks.
pub(crate) struct Session {
    pub file: Arc<dyn WriteAt>,
    current: CurrentHeader,
    /// From the first change on.
    log: Option<LogWriter>,
    /// DataWriteGuid is new in this session.
    data_changed: bool,
    /// Length of the file, a multiple of 1 MiB once the log is in use.
    file_len: u64,
    /// A length that the file certainly keeps after a crash.
    stable_len: u64,
    poisoned: bool,
}

impl Session {
    /// Replays the log in the file when it is dirty.
    pub(crate) fn open(file: Arc<dyn WriteAt>) -> Result<Self, OpenError> {
        let mut current = CurrentHeader::read(&*file)?;
        if current.header.log_length == 0 {
            return Err(OpenError::Unsupported { what: "writing to a file without a log".into() });
        }
        if !current.header.log_guid.is_zero() {
            replay_in_place(&*file, &mut current)?;
        }
        let file_len = file.len_bytes().map_err(OpenError::read("file length", 0))?;
        Ok(Session {
            file,
            current,
            log: None,
            data_changed: false,
            file_len,
            stable_len: file_len - file_len % MIB,
            poisoned: false,
        })
    }

    pub(crate) fn current(&self) -> &CurrentHeader {
        &self.current
    }

    pub(crate) fn is_started(&self) -> bool {
        self.log.is_some()
    }

    pub(crate) fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Must come before any change. The first one opens the log and gives the file a new FileWriteGuid; the first one
    /// that a reader of the disk could notice gives it a new DataWriteGuid, `data_write_guid` if that is given.
    pub(crate) fn begin(&mut self, visible: bool, data_write_guid: Option<Guid>) -> Result<(), WriteError> {
        if self.poisoned {
            return Err(WriteError::Poisoned);
        }
        let starts = self.log.is_none();
        let changes_data = visible && (!self.data_changed || data_write_guid.is_some());
        if !starts && !changes_data {
            return Ok(());
        }
        self.guarded(|session| {
            if starts {
                session.extend(session.file_len.next_multiple_of(MIB))?;
                let mut log = LogWriter::new(&session.current.header);
                // The entry must be durable before the header names its log.
                log.append(&*session.file, &[], session.stable_len, session.file_len)?;
                session.flush()?;
                session.log = Some(log);
            }
            let log_guid = session.log.as_ref().map_or(Guid::ZERO, |log| log.guid);
            let file_write_guid = if starts { Guid::random() } else { session.current.header.file_write_guid };
            let data_write_guid = match changes_data {
                true => data_write_guid.unwrap_or_else(Guid::random),
                false => session.current.header.data_write_guid,
            };
            session.data_changed |= changes_data;
            update_headers(&*session.file, &mut session.current, |header| {
                header.log_guid = log_guid;
                header.log_version = 0;
                header.file_write_guid = file_write_guid;
                header.data_write_guid = data_write_guid;
            })
        })
    }

    /// Makes pages durable, in their order: after a crash a prefix of them is there, and each group of
    /// [`MAX_ATOMIC_PAGES`] is there or not as a whole. Everything written before is durable first. The pages are in
    /// their places on return.
    pub(crate) fn log_pages(&mut self, pages: &[(u64, Box<Page>)]) -> Result<(), WriteError> {
        if self.poisoned {
            return Err(WriteError::Poisoned);
        }
        self.guarded(|session| {
            for batch in pages.chunks(MAX_ATOMIC_PAGES) {
                session.flush()?;
                let log = session.log.as_mut().expect("changes begin with `begin`");
                log.append(&*session.file, batch, session.stable_len, session.file_len)?;
                session.flush()?;
                for (at, page) in batch {
                    session.file.write_all_at(&page[..], *at).map_err(WriteError::io("write a metadata page", *at))?;
                }
            }
            Ok(())
        })
    }

    /// Makes everything written so far durable.
    pub(crate) fn flush_all(&mut self) -> Result<(), WriteError> {
        if self.poisoned {
            return Err(WriteError::Poisoned);
        }
        self.guarded(|session| session.flush())
    }

    /// Makes the file at least this long.
    pub(crate) fn extend(&mut self, len: u64) -> Result<(), WriteError> {
        if len > self.file_len {
            self.file.set_len(len).map_err(WriteError::io("extend the file", self.file_len))?;
            self.file_len = len;
        }
        Ok(())
    }

    /// Leaves a clean log. The file may be cut off at `len` then.
    pub(crate) fn end(&mut self, len: u64) -> Result<(), WriteError> {
        self.flush_all()?;
        if self.log.is_none() {
            return Ok(());
        }
        self.guarded(|session| {
            update_headers(&*session.file, &mut session.current, |header| header.log_guid = Guid::ZERO)?;
            session.log = None;
            // A crash before this merely leaves a longer file.
            if len < session.file_len {
                session.file.set_len(len).map_err(WriteError::io("cut off the file", len))?;
                session.file_len = len;
            }
            Ok(())
        })
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        self.file.flush().map_err(WriteError::io("flush the file", 0))?;
        self.stable_len = self.file_len - self.file_len % MIB;
        Ok(())
    }

    /// After an error while metadata is written nobody knows what is durable: nothing may be written then.
    fn guarded<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, WriteError>) -> Result<T, WriteError> {
        let result = act(self);
        self.poisoned |= result.is_err();
        result
    }
}

/// Writes both headers, one after the other, always over the one that does not count: a torn write leaves the other.
fn update_headers(
    file: &dyn WriteAt,
    current: &mut CurrentHeader,
    change: impl Fn(&mut Header),
) -> Result<(), WriteError> {
    for _ in 0..2 {
        let slot = 1 - current.slot;
        let mut header = current.header.clone();
        change(&mut header);
        header.sequence_number = header.sequence_number.checked_add(1).ok_or(WriteError::HeadersExhausted)?;
        let at = HEADER_OFFSETS[slot];
        file.write_all_at(&header.encode(), at).map_err(WriteError::io("write a header", at))?;
        file.flush().map_err(WriteError::io("flush a header", at))?;
        *current = CurrentHeader { header, slot };
    }
    Ok(())
}

/// Can be cut off at any point and done again: the header names the log until everything is in place.
fn replay_in_place(file: &dyn WriteAt, current: &mut CurrentHeader) -> Result<(), OpenError> {
    let active = find_active(file, &current.header)?;
    let failed = |action, offset_bytes| move |source| OpenError::Replay { action, offset_bytes, source };
    let headers = |error| match error {
        WriteError::Io { action, offset_bytes, source } => OpenError::Replay { action, offset_bytes, source },
        other => OpenError::Unsupported { what: other.to_string() },
    };
    let (log, file_write_guid) = (current.header.clone(), Guid::random());
    update_headers(file, current, |header| header.file_write_guid = file_write_guid).map_err(headers)?;
    active.apply(file, &log, &mut InPlace { file })?;
    let len = file.len_bytes().map_err(OpenError::read("file length", 0))?;
    if len < active.last_file_offset() {
        file.set_len(active.last_file_offset()).map_err(failed("extend the file", len))?;
    }
    file.flush().map_err(failed("flush", 0))?;
    update_headers(file, current, |header| header.log_guid = Guid::ZERO).map_err(headers)
}

struct InPlace<'a> {
    file: &'a dyn WriteAt,
}

impl ReplaySink for InPlace<'_> {
    fn page(&mut self, offset: u64, page: &Page) -> Result<(), OpenError> {
        self.file.write_all_at(page, offset).map_err(|source| OpenError::Replay {
            action: "write a page",
            offset_bytes: offset,
            source,
        })
    }

    fn zero(&mut self, range: Range<u64>) -> Result<(), OpenError> {
        let failed = |source| OpenError::Replay { action: "write zeroes", offset_bytes: range.start, source };
        let len = self.file.len_bytes().map_err(failed)?;
        if len < range.end {
            self.file.set_len(range.end).map_err(failed)?;
        }
        // What was added to the file just now is zero.
        let inside = range.start.min(len)..range.end.min(len);
        if inside.is_empty() { Ok(()) } else { self.file.write_zeroes(inside).map_err(failed) }
    }
}

/// The log of one session.
struct LogWriter {
    base: u64,
    length: u64,
    guid: Guid,
    sequence_number: u64,
    /// Where the next entry starts, in the log.
    next: u64,
}

impl LogWriter {
    fn new(header: &Header) -> Self {
        let guid = Guid::random();
        // Like Windows, sessions start at large random numbers; nothing depends on it.
        let start = u32::from_le_bytes(array_at(&Guid::random().to_stored(), 0));
        LogWriter {
            base: header.log_offset,
            length: header.log_length.into(),
            guid,
            sequence_number: u64::from(start) + 1,
            next: 0,
        }
    }

    /// Writes an entry that stands for itself: its tail is its own offset.
    fn append(
        &mut self,
        file: &dyn WriteAt,
        pages: &[(u64, Box<Page>)],
        stable_len: u64,
        file_len: u64,
    ) -> Result<(), WriteError> {
        assert!(pages.len() <= MAX_ATOMIC_PAGES && stable_len.is_multiple_of(MIB) && file_len.is_multiple_of(MIB));
        let entry = self.encode(pages, stable_len, file_len);
        let first = entry.len().min((self.length - self.next) as usize);
        for (part, offset) in [(&entry[..first], self.next), (&entry[first..], 0)] {
            let at = self.base + offset;
            if !part.is_empty() {
                file.write_all_at(part, at).map_err(WriteError::io("write a log entry", at))?;
            }
        }
        self.next = (self.next + entry.len() as u64) % self.length;
        self.sequence_number += 1;
        Ok(())
    }

    fn encode(&self, pages: &[(u64, Box<Page>)], stable_len: u64, file_len: u64) -> Vec<u8> {
        let descriptor_count = pages.len() as u32;
        let descriptor_sectors = log_descriptor_sectors(descriptor_count) as usize;
        let mut entry = vec![0; (descriptor_sectors + pages.len()) * PAGE];
        let header = LogEntryHeader {
            checksum: 0,
            entry_length: entry.len() as u32,
            // The ring is at most 1 GiB.
            tail: self.next as u32,
            sequence_number: self.sequence_number,
            descriptor_count,
            log_guid: self.guid,
            flushed_file_offset: stable_len,
            last_file_offset: file_len,
        };
        header.encode(&mut entry);
        for (index, (at, page)) in pages.iter().enumerate() {
            let descriptor = LOG_ENTRY_HEADER_LEN + index * LOG_DESCRIPTOR_LEN;
            put(&mut entry, descriptor, b"desc");
            put(&mut entry, descriptor + 4, &page[PAGE - 4..]);
            put(&mut entry, descriptor + 8, &page[..8]);
            put(&mut entry, descriptor + 16, &at.to_le_bytes());
            put(&mut entry, descriptor + 24, &self.sequence_number.to_le_bytes());
            let sector = (descriptor_sectors + index) * PAGE;
            put(&mut entry, sector, b"data");
            put(&mut entry, sector + 4, &((self.sequence_number >> 32) as u32).to_le_bytes());
            put(&mut entry, sector + 8, &page[8..PAGE - 4]);
            put(&mut entry, sector + PAGE - 4, &(self.sequence_number as u32).to_le_bytes());
        }
        set_checksum(&mut entry);
        entry
    }
}

/// Reads the page at an offset.
pub(crate) fn read_page(file: &(impl ReadAt + ?Sized), at: u64) -> Result<Box<Page>, WriteError> {
    let mut page = Box::new([0; PAGE]);
    file.read_exact_at(&mut page[..], at).map_err(WriteError::io("read a metadata page", at))?;
    Ok(page)
}

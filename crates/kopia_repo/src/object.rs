//! Objects: byte streams made of contents.
//!
//! [`ObjectReader`] reads any object that Kopia or we wrote, at any offset. The index stream of an indirect object is
//! decoded once into a table of about 48 bytes per entry; disks of our own, which can have millions of entries, are
//! read without that by [`crate::grouped`].

use std::io;

use crate::Repository;
use crate::WriteError;
use crate::error::ReadError;
use crate::format::compression::{CompressionId, DecompressContext, decompress_object};
use crate::format::content_id::{ContentId, ObjectId};
use crate::format::index_stream::{EntryParser, IndirectEntry};
use crate::grouped::{ENTRIES_PER_PIECE, GroupedWriter};
use crate::session::{DIRECTORY_PREFIX, WriteSession};

/// An index stream is itself an object, possibly indirect: deeper than this is no repository but an attack.
const MAX_DEPTH: u8 = 8;
/// Largest single segment that is held in memory.
const MAX_SEGMENT_BYTES: u64 = 1 << 27;

/// Random access to an object's bytes; calls may run concurrently.
#[derive(Debug)]
pub struct ObjectReader<'r> {
    repo: &'r Repository,
    id: ObjectId,
    shape: Shape,
    len_bytes: u64,
}

#[derive(Debug)]
enum Shape {
    /// One content.
    Direct,
    /// Segments in order, without gaps.
    Indirect(Vec<IndirectEntry>),
}

impl Repository {
    /// Opens an object: for an indirect one its whole index stream is read and checked for gaps.
    pub fn open_object(&self, id: &ObjectId) -> Result<ObjectReader<'_>, ReadError> {
        self.open_object_at_depth(id, 0)
    }

    fn open_object_at_depth(&self, id: &ObjectId, depth: u8) -> Result<ObjectReader<'_>, ReadError> {
        let damaged = |problem: String| ReadError::DamagedObject { id: *id, problem };
        let Some(stream_id) = id.index_stream() else {
            let len_bytes = if id.compressed {
                self.read_segment_bytes(id, MAX_SEGMENT_BYTES)?.len() as u64
            } else {
                let entry = match self.lookup(&id.content)? {
                    Some(entry) => entry,
                    None => {
                        self.refresh()?;
                        self.view().lookup(&id.content)?.ok_or(ReadError::MissingContent { id: id.content })?
                    }
                };
                entry.original_len.into()
            };
            return Ok(ObjectReader { repo: self, id: *id, shape: Shape::Direct, len_bytes });
        };
        if depth >= MAX_DEPTH {
            return Err(damaged(format!("more than {MAX_DEPTH} levels of index streams")));
        }
        let stream = self.open_object_at_depth(&stream_id, depth + 1)?;
        let mut parser = EntryParser::new();
        let mut entries = Vec::new();
        let mut failed = None;
        stream.for_each_segment(&mut |piece| {
            if failed.is_none()
                && let Err(error) = parser.feed(piece, &mut entries)
            {
                failed = Some(error);
            }
        })?;
        match failed {
            Some(error) => return Err(damaged(error.to_string())),
            None => parser.finish().map_err(|error| damaged(error.to_string()))?,
        }
        let len_bytes = check_contiguous(&entries).map_err(damaged)?;
        Ok(ObjectReader { repo: self, id: *id, shape: Shape::Indirect(entries), len_bytes })
    }

    /// A whole object in memory, refused when it is longer than `max_bytes`.
    pub fn read_object(&self, id: &ObjectId, max_bytes: u64) -> Result<Vec<u8>, ReadError> {
        let reader = self.open_object(id)?;
        if reader.len_bytes() > max_bytes {
            return Err(ReadError::DamagedObject {
                id: *id,
                problem: format!("{} bytes where at most {max_bytes} are expected", reader.len_bytes()),
            });
        }
        let mut bytes = Vec::with_capacity(reader.len_bytes() as usize);
        reader.for_each_segment(&mut |piece| bytes.extend_from_slice(piece))?;
        Ok(bytes)
    }

    /// Bytes of a segment that is one content, `Z` or not.
    fn read_segment_bytes(&self, id: &ObjectId, max_bytes: u64) -> Result<Vec<u8>, ReadError> {
        let stored = self.read_content(&id.content)?;
        if !id.compressed {
            return Ok(stored);
        }
        let mut plaintext = Vec::new();
        decompress_object(&stored, max_bytes as usize, &mut DecompressContext::default(), &mut plaintext)
            .map_err(|error| ReadError::DamagedObject { id: *id, problem: error.to_string() })?;
        Ok(plaintext)
    }
}

/// Entries must follow each other without gap from 0 (spec 5.4): with a gap stock restores shifted bytes and says
/// nothing. Returns the object's length.
fn check_contiguous(entries: &[IndirectEntry]) -> Result<u64, String> {
    if entries.is_empty() {
        return Err("an index stream without entries".into());
    }
    let mut expected = 0_u64;
    for (number, entry) in entries.iter().enumerate() {
        if entry.start != expected {
            return Err(format!("segment {number} starts at {} instead of {expected}", entry.start));
        }
        expected = expected
            .checked_add(entry.len)
            .filter(|end| i64::try_from(*end).is_ok())
            .ok_or_else(|| format!("segment {number} reaches past the longest possible object"))?;
    }
    Ok(expected)
}

impl ObjectReader<'_> {
    /// The object's length.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Segments of an indirect object; none for an object that is one content.
    pub fn segments(&self) -> &[IndirectEntry] {
        match &self.shape {
            Shape::Direct => &[],
            Shape::Indirect(entries) => entries,
        }
    }

    /// Fills `buf` from `offset_bytes`; reaching past the end is an error.
    pub fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), ReadError> {
        let end = offset_bytes.checked_add(buf.len() as u64).filter(|end| *end <= self.len_bytes).ok_or(
            ReadError::PastEnd { id: self.id, offset: offset_bytes, len: buf.len() as u64, object_len: self.len_bytes },
        )?;
        let Shape::Indirect(entries) = &self.shape else {
            let bytes = self.segment(&self.id, self.len_bytes)?;
            buf.copy_from_slice(&bytes[offset_bytes as usize..end as usize]);
            return Ok(());
        };
        let mut number = entries.partition_point(|entry| entry.start + entry.len <= offset_bytes);
        let mut at = offset_bytes;
        while at < end {
            let entry = &entries[number];
            let bytes = self.segment(&entry.object, entry.len)?;
            let from = at - entry.start;
            let take = (entry.len - from).min(end - at);
            let target = (at - offset_bytes) as usize;
            buf[target..target + take as usize].copy_from_slice(&bytes[from as usize..(from + take) as usize]);
            at += take;
            number += 1;
        }
        Ok(())
    }

    /// Gives every segment in order, one in memory at a time.
    pub fn for_each_segment(&self, visit: &mut dyn FnMut(&[u8])) -> Result<(), ReadError> {
        match &self.shape {
            Shape::Direct => visit(&self.segment(&self.id, self.len_bytes)?),
            Shape::Indirect(entries) => {
                for entry in entries.iter().filter(|entry| entry.len > 0) {
                    visit(&self.segment(&entry.object, entry.len)?);
                }
            }
        }
        Ok(())
    }

    /// Copies the whole object.
    pub fn copy_to(&self, out: &mut dyn io::Write) -> Result<Result<(), io::Error>, ReadError> {
        let mut result = Ok(());
        self.for_each_segment(&mut |piece| {
            if result.is_ok() {
                result = out.write_all(piece);
            }
        })?;
        Ok(result)
    }

    fn segment(&self, id: &ObjectId, len: u64) -> Result<Vec<u8>, ReadError> {
        let damaged = |problem: String| ReadError::DamagedObject { id: self.id, problem };
        if len > MAX_SEGMENT_BYTES {
            return Err(damaged(format!("a segment of {len} bytes")));
        }
        let bytes = if id.indirection > 0 {
            // Stock reads such entries, and never writes them (spec 5.4).
            self.repo.read_object(id, MAX_SEGMENT_BYTES)?
        } else {
            self.repo.read_segment_bytes(id, MAX_SEGMENT_BYTES)?
        };
        if bytes.len() as u64 != len {
            return Err(damaged(format!("segment {id} has {} bytes instead of {len}", bytes.len())));
        }
        Ok(bytes)
    }
}

impl WriteSession {
    /// Writes a small object as a single content.
    pub fn write_object(
        &self,
        data: &[u8],
        prefix: Option<u8>,
        compression: Option<CompressionId>,
    ) -> Result<ObjectId, WriteError> {
        self.write_content(data, prefix, compression).map(|written| ObjectId::direct(written.id))
    }

    /// Writes a file's bytes as an object of segments of `segment_bytes`; at most one segment makes it a single content.
    pub fn write_file_object(
        &self,
        data: &[u8],
        segment_bytes: usize,
        compression: Option<CompressionId>,
    ) -> Result<ObjectId, WriteError> {
        if data.len() <= segment_bytes {
            return self.write_object(data, None, compression);
        }
        let mut entries = Vec::new();
        for (number, segment) in data.chunks(segment_bytes).enumerate() {
            let object = self.write_object(segment, None, compression)?;
            entries.push(IndirectEntry { start: (number * segment_bytes) as u64, len: segment.len() as u64, object });
        }
        let mut writer = GroupedWriter::new(self, GroupedWriter::piece_count(entries.len() as u64));
        for (number, piece) in entries.chunks(ENTRIES_PER_PIECE).enumerate() {
            writer.set(number, piece)?;
        }
        writer.finish()
    }

    /// Writes a directory object.
    pub fn write_directory(
        &self,
        directory: &crate::format::snapshot::DirectoryObject,
    ) -> Result<ObjectId, WriteError> {
        self.write_object(&directory.to_json(), Some(DIRECTORY_PREFIX), Some(CompressionId::ZSTD_FASTEST))
    }
}

/// Names the content of an object that has exactly one.
impl From<ContentId> for ObjectId {
    fn from(content: ContentId) -> Self {
        Self::direct(content)
    }
}

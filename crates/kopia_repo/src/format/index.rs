//! Index blobs: where each content lies, as sorted tables of two versions (kopia-format 4.1 to 4.3).

mod build;
mod merge;
mod parse;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

pub use self::build::{BuildIndexError, build, build_v1, build_v2};
use self::build::{out_of_range, sort, winners};
pub use self::merge::{MergeError, merge, newer_wins};
pub use self::parse::IndexError;
use super::compression::CompressionId;
use super::content_id::ContentId;

/// What an index says of one content (kopia-format 3.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// The content.
    pub id: ContentId,
    /// When this entry was written, in Unix seconds, 0 to 2^48 - 1. The later of two entries counts.
    pub timestamp_seconds: i64,
    /// A tombstone; the location still points at the data.
    pub deleted: bool,
    /// The pack blob that holds the content.
    pub pack: Arc<str>,
    /// Where in the pack it begins, in bytes, below 2^30.
    pub pack_offset: u32,
    /// Bytes in the pack, encrypted.
    pub packed_len: u32,
    /// Bytes of the plaintext.
    pub original_len: u32,
    /// How the content is compressed.
    pub compression: CompressionId,
    /// The format version of the repository when the entry was written.
    pub format_version: u8,
    /// Always 0.
    pub encryption_key_id: u8,
}

/// One index blob, or several merged, as a sorted table in memory: the keys of all entries back to back, beside
/// records of 24 bytes, a table of pack names and one of formats. About 41 bytes per entry with 16-byte hashes.
#[derive(Debug, Clone, Default)]
pub struct IndexLayer {
    /// Bytes of each key: prefix and hash. 0 while there is no entry.
    key_len: usize,
    keys: Vec<u8>,
    records: Vec<Record>,
    packs: Vec<Arc<str>>,
    formats: Vec<Format>,
}

/// Everything of an entry but its key. The timestamp's 48 bits are split so that the size is a multiple of 4.
#[derive(Debug, Clone, Copy)]
struct Record {
    timestamp_low: u32,
    timestamp_high: u16,
    format: u16,
    /// Bit 31: deleted.
    offset_and_deleted: u32,
    packed_len: u32,
    original_len: u32,
    pack: u32,
}

const _: () = assert!(size_of::<Record>() == 24);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Format {
    compression: CompressionId,
    version: u8,
}

const DELETED: u32 = 1 << 31;

/// A content was looked up whose ID is not as long as the others of the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a content ID with a hash of {asked} bytes cannot be in an index of hashes of {held} bytes")]
pub struct KeyLengthMismatch {
    /// Bytes of the hash asked for.
    pub asked: usize,
    /// Bytes of the hashes in the index.
    pub held: usize,
}

const V1_HEADER_BYTES: usize = 8;
const V1_ENTRY_BYTES: usize = 20;
const V2_HEADER_BYTES: usize = 17;
const PACK_RECORD_BYTES: usize = 5;
const FORMAT_RECORD_BYTES: usize = 6;

impl IndexLayer {
    /// An index that holds nothing.
    pub fn empty() -> Self {
        Self::default()
    }

    /// An index of these entries, in any order. Of several for one content the one that [`newer_wins`] prefers stays.
    pub fn from_entries(mut entries: Vec<IndexEntry>) -> Result<Self, BuildIndexError> {
        sort(&mut entries);
        let mut layer = Self::default();
        let mut packs = HashMap::new();
        let mut formats = HashMap::new();
        for entry in winners(&entries) {
            let key_len = entry.id.key_len();
            if layer.key_len != 0 && layer.key_len != key_len {
                return Err(BuildIndexError::MixedHashLengths { id: entry.id });
            }
            layer.key_len = key_len;
            let timestamp = u64::try_from(entry.timestamp_seconds).ok().filter(|seconds| seconds >> 48 == 0);
            let timestamp = timestamp.ok_or_else(|| out_of_range(2, entry, "timestamp", entry.timestamp_seconds))?;
            if entry.pack_offset & DELETED != 0 {
                return Err(out_of_range(2, entry, "pack offset", entry.pack_offset.into()));
            }
            let format = Format { compression: entry.compression, version: entry.format_version };
            let format = layer.number_format(&mut formats, format).map_err(too_many)?;
            let pack = layer.number_pack(&mut packs, &entry.pack).map_err(too_many)?;
            entry.id.write_key(&mut layer.keys);
            layer.records.push(Record {
                timestamp_low: timestamp as u32,
                timestamp_high: (timestamp >> 32) as u16,
                format,
                offset_and_deleted: entry.pack_offset | if entry.deleted { DELETED } else { 0 },
                packed_len: entry.packed_len,
                original_len: entry.original_len,
                pack,
            });
        }
        Ok(layer)
    }

    /// What the index says of `id`, tombstones included. Allocates nothing.
    pub fn find(&self, id: &ContentId) -> Result<Option<IndexEntry>, KeyLengthMismatch> {
        Ok(self.position(id)?.map(|at| self.entry(at)))
    }

    /// All entries, ascending by content ID.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = IndexEntry> + '_ {
        (0..self.len()).map(|at| self.entry(at))
    }

    /// The entries whose content IDs have this prefix, or none, ascending.
    pub fn iter_prefix(&self, prefix: Option<u8>) -> impl ExactSizeIterator<Item = IndexEntry> + '_ {
        let prefix = prefix.unwrap_or(0);
        let first_with = |wanted: &dyn Fn(u8) -> bool| {
            let (mut low, mut high) = (0, self.len());
            while low < high {
                let middle = low + (high - low) / 2;
                if wanted(self.key(middle)[0]) { high = middle } else { low = middle + 1 }
            }
            low
        };
        (first_with(&|byte| byte >= prefix)..first_with(&|byte| byte > prefix)).map(|at| self.entry(at))
    }

    /// Number of entries, tombstones included.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes that the table takes in memory.
    pub fn memory_bytes(&self) -> usize {
        let names: usize = self.packs.iter().map(|name| name.len() + 2 * size_of::<usize>()).sum();
        self.keys.capacity()
            + self.records.capacity() * size_of::<Record>()
            + self.packs.capacity() * size_of::<Arc<str>>()
            + self.formats.capacity() * size_of::<Format>()
            + names
    }

    fn position(&self, id: &ContentId) -> Result<Option<usize>, KeyLengthMismatch> {
        if self.is_empty() {
            return Ok(None);
        }
        if id.key_len() != self.key_len {
            return Err(KeyLengthMismatch { asked: id.key_len() - 1, held: self.key_len - 1 });
        }
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match id.cmp_key(self.key(middle)) {
                Ordering::Equal => return Ok(Some(middle)),
                Ordering::Less => high = middle,
                Ordering::Greater => low = middle + 1,
            }
        }
        Ok(None)
    }

    fn key(&self, at: usize) -> &[u8] {
        &self.keys[at * self.key_len..(at + 1) * self.key_len]
    }

    fn entry(&self, at: usize) -> IndexEntry {
        let record = &self.records[at];
        let format = self.formats[usize::from(record.format)];
        IndexEntry {
            id: ContentId::from_key(self.key(at)).expect("keys are checked when they come in"),
            timestamp_seconds: record.timestamp() as i64,
            deleted: record.deleted(),
            pack: Arc::clone(&self.packs[record.pack as usize]),
            pack_offset: record.offset_and_deleted & !DELETED,
            packed_len: record.packed_len,
            original_len: record.original_len,
            compression: format.compression,
            format_version: format.version,
            encryption_key_id: 0,
        }
    }

    fn number_pack(&mut self, numbers: &mut HashMap<Arc<str>, u32>, name: &Arc<str>) -> Result<u32, MergeError> {
        if let Some(&number) = numbers.get(name) {
            return Ok(number);
        }
        let number = u32::try_from(self.packs.len()).map_err(|_| MergeError::TooMany { what: "packs" })?;
        self.packs.push(Arc::clone(name));
        numbers.insert(Arc::clone(name), number);
        Ok(number)
    }

    fn number_format(&mut self, numbers: &mut HashMap<Format, u16>, format: Format) -> Result<u16, MergeError> {
        if let Some(&number) = numbers.get(&format) {
            return Ok(number);
        }
        let number = u16::try_from(self.formats.len()).map_err(|_| MergeError::TooMany { what: "formats" })?;
        self.formats.push(format);
        numbers.insert(format, number);
        Ok(number)
    }
}

impl Record {
    fn timestamp(&self) -> u64 {
        u64::from(self.timestamp_high) << 32 | u64::from(self.timestamp_low)
    }

    fn deleted(&self) -> bool {
        self.offset_and_deleted & DELETED != 0
    }
}

fn too_many(error: MergeError) -> BuildIndexError {
    match error {
        MergeError::TooMany { what } => BuildIndexError::TooMany { what, count: usize::from(u16::MAX) + 1 },
        MergeError::MixedHashLengths { .. } => unreachable!("numbering looks at no hash"),
    }
}

//! Index blobs: where each content lies, as sorted tables of two versions (kopia-format 4.1 to 4.3).

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use super::compression::CompressionId;
use super::content_id::{ContentId, MAX_HASH_BYTES};

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

/// Why bytes are not an index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// Fewer bytes than the header names.
    #[error("an index of {len} bytes is cut short: its header asks for {needed}")]
    TooShort {
        /// Bytes given.
        len: usize,
        /// Bytes that the header and the tables it announces take.
        needed: u64,
    },
    /// The first byte is neither 1 nor 2.
    #[error("index version {version} is not known")]
    UnknownVersion {
        /// The first byte.
        version: u8,
    },
    /// Keys of this size cannot hold a prefix and a hash.
    #[error("index keys of {key_size} bytes cannot name contents")]
    KeySize {
        /// The header's key size.
        key_size: u8,
    },
    /// Entries of this size do not belong to the version.
    #[error("index version {version} has no entries of {entry_size} bytes")]
    EntrySize {
        /// The version.
        version: u8,
        /// The header's entry size.
        entry_size: u16,
    },
    /// A key is not greater than the one before.
    #[error("index entry {entry} is out of order")]
    Unsorted {
        /// Number of the entry, from 0.
        entry: usize,
    },
    /// A key begins with a byte that is no prefix.
    #[error("the key of index entry {entry} begins with {prefix:#04x}, which is no content prefix")]
    Prefix {
        /// Number of the entry, from 0.
        entry: usize,
        /// The first byte of its key.
        prefix: u8,
    },
    /// An entry refers to a pack record that is not there.
    #[error("index entry {entry} refers to pack {pack} of {packs}")]
    Pack {
        /// Number of the entry, from 0.
        entry: usize,
        /// Number of the pack record.
        pack: u32,
        /// How many there are.
        packs: u32,
    },
    /// An entry refers to a format record that is not there.
    #[error("index entry {entry} refers to format {format} of {formats}")]
    Format {
        /// Number of the entry, from 0.
        entry: usize,
        /// Number of the format record.
        format: u8,
        /// How many there are.
        formats: u8,
    },
    /// The name of a pack lies outside of the index, or is not text.
    #[error("the pack name of {len} bytes at offset {offset} is outside of the index or not text")]
    PackName {
        /// Where the name should be, in bytes from the start of the index.
        offset: u32,
        /// Its length in bytes.
        len: u8,
    },
    /// A format record has an encryption key id, whose meaning nobody has defined.
    #[error("a format record names the encryption key {key_id}, and only 0 is defined")]
    EncryptionKey {
        /// The key id.
        key_id: u8,
    },
    /// An entry of version 1 is shorter than encryption makes even an empty content.
    #[error("index entry {entry} has {packed_len} packed bytes, less than encryption adds")]
    PackedLength {
        /// Number of the entry, from 0.
        entry: usize,
        /// Its packed length.
        packed_len: u32,
    },
}

/// A content was looked up whose ID is not as long as the others of the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a content ID with a hash of {asked} bytes cannot be in an index of hashes of {held} bytes")]
pub struct KeyLengthMismatch {
    /// Bytes of the hash asked for.
    pub asked: usize,
    /// Bytes of the hashes in the index.
    pub held: usize,
}

/// Why indexes cannot be merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// The indexes have hashes of different lengths.
    #[error("indexes with hashes of {first} and of {other} bytes cannot be merged")]
    MixedHashLengths {
        /// Bytes of a hash in the first index.
        first: usize,
        /// Bytes of a hash in another.
        other: usize,
    },
    /// More different pack names, or combinations of compression and version, than the tables can number.
    #[error("the merged index has too many {what}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
    },
}

/// Why entries cannot be written as an index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildIndexError {
    /// An index needs an entry.
    #[error("an index without entries cannot be written")]
    Empty,
    /// The version asked for is neither 1 nor 2.
    #[error("index version {version} is not known")]
    UnknownVersion {
        /// The version.
        version: u8,
    },
    /// The entries have hashes of different lengths.
    #[error("content {id} has a hash of another length than the first entry")]
    MixedHashLengths {
        /// The content that differs.
        id: ContentId,
    },
    /// A field of an entry is beyond what the version can hold.
    #[error("index version {version} cannot hold the {field} {value} of content {id}")]
    OutOfRange {
        /// The index version.
        version: u8,
        /// The content.
        id: ContentId,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// More packs or formats than can be numbered, or more bytes than offsets reach.
    #[error("an index cannot hold {count} {what}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        count: usize,
    },
}

const V1_HEADER_BYTES: usize = 8;
const V1_ENTRY_BYTES: usize = 20;
const V2_HEADER_BYTES: usize = 17;
const V2_ENTRY_BYTES: std::ops::RangeInclusive<usize> = 16..=19;
const PACK_RECORD_BYTES: usize = 5;
const FORMAT_RECORD_BYTES: usize = 6;
/// The key size of an empty version 1 index that did not know its own.
const UNKNOWN_KEY_SIZE: u8 = 255;
/// Offsets in packs stay below this (kopia-format 4.3).
const MAX_PACK_OFFSET: u32 = (1 << 30) - 1;
const MAX_LEN: u32 = (1 << 28) - 1;
const MAX_PACKS: usize = 1 << 24;
const MAX_FORMATS: usize = 255;

impl IndexLayer {
    /// An index that holds nothing.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Reads the plaintext of an index blob of either version. Bytes after the tables are ignored.
    ///
    /// `overhead` is how many bytes encryption adds to a content, from which version 1 tells the original length.
    pub fn parse(bytes: &[u8], overhead: u32) -> Result<Self, IndexError> {
        let header = header(bytes, V1_HEADER_BYTES)?;
        let (version, key_size) = (header[0], header[1]);
        let entry_size = u16::from_be_bytes([header[2], header[3]]);
        let entries = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        if !matches!(version, 1 | 2) {
            return Err(IndexError::UnknownVersion { version });
        }
        if entries == 0 && version == 1 && key_size == UNKNOWN_KEY_SIZE {
            return Ok(Self::empty());
        }
        let key_len = usize::from(key_size);
        if !(2..=MAX_HASH_BYTES + 1).contains(&key_len) {
            return Err(IndexError::KeySize { key_size });
        }
        let expected = if version == 1 { V1_ENTRY_BYTES..=V1_ENTRY_BYTES } else { V2_ENTRY_BYTES };
        if !expected.contains(&usize::from(entry_size)) {
            return Err(IndexError::EntrySize { version, entry_size });
        }
        let shape = Shape { key_len, entry_len: usize::from(entry_size), entries };
        let layer = if version == 1 { shape.parse_v1(bytes, overhead)? } else { shape.parse_v2(bytes)? };
        layer.check_keys()?;
        Ok(layer)
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

    /// Keys are prefixes and hashes, and ascend without repetition.
    fn check_keys(&self) -> Result<(), IndexError> {
        let mut previous: &[u8] = &[];
        for (entry, key) in self.keys.chunks_exact(self.key_len.max(1)).enumerate() {
            if key <= previous {
                return Err(IndexError::Unsorted { entry });
            }
            if !matches!(key[0], 0 | b'g'..=b'z') {
                return Err(IndexError::Prefix { entry, prefix: key[0] });
            }
            previous = key;
        }
        Ok(())
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

fn header(bytes: &[u8], needed: usize) -> Result<&[u8], IndexError> {
    bytes.get(..needed).ok_or(IndexError::TooShort { len: bytes.len(), needed: needed as u64 })
}

/// What the part of the header says that both versions share.
struct Shape {
    key_len: usize,
    entry_len: usize,
    entries: u32,
}

impl Shape {
    /// The keys and values of all entries, of which there are as many bytes as announced.
    fn split<'a>(
        &self,
        bytes: &'a [u8],
        start: usize,
    ) -> Result<(Vec<u8>, impl Iterator<Item = &'a [u8]>), IndexError> {
        let stride = self.key_len + self.entry_len;
        let needed = u64::from(self.entries) * stride as u64 + start as u64;
        let table = usize::try_from(needed).ok().and_then(|end| bytes.get(start..end));
        let table = table.ok_or(IndexError::TooShort { len: bytes.len(), needed })?;
        let key_len = self.key_len;
        let mut keys = Vec::with_capacity(self.entries as usize * key_len);
        for entry in table.chunks_exact(stride) {
            keys.extend_from_slice(&entry[..key_len]);
        }
        Ok((keys, table.chunks_exact(stride).map(move |entry| &entry[key_len..])))
    }

    fn parse_v1(&self, bytes: &[u8], overhead: u32) -> Result<IndexLayer, IndexError> {
        let (keys, values) = self.split(bytes, V1_HEADER_BYTES)?;
        let mut layer = IndexLayer { key_len: self.key_len, keys, ..IndexLayer::default() };
        layer.records.reserve_exact(self.entries as usize);
        let mut packs: HashMap<(u32, u8), u32> = HashMap::new();
        let mut formats: HashMap<u8, u16> = HashMap::new();
        for (entry, value) in values.enumerate() {
            let (pack_offset, pack_len) = (be_u32(value, 8), value[7]);
            let pack = match packs.get(&(pack_offset, pack_len)) {
                Some(&number) => number,
                None => {
                    let number = layer.packs.len() as u32;
                    layer.packs.push(pack_name(bytes, pack_offset, pack_len)?);
                    packs.insert((pack_offset, pack_len), number);
                    number
                }
            };
            let version = value[6];
            let format = *formats.entry(version).or_insert_with(|| {
                layer.formats.push(Format { compression: CompressionId::NONE, version });
                (layer.formats.len() - 1) as u16
            });
            let packed_len = be_u32(value, 16);
            let original_len =
                packed_len.checked_sub(overhead).ok_or(IndexError::PackedLength { entry, packed_len })?;
            layer.records.push(Record {
                timestamp_high: u16::from_be_bytes([value[0], value[1]]),
                timestamp_low: be_u32(value, 2),
                format,
                offset_and_deleted: be_u32(value, 12),
                packed_len,
                original_len,
                pack,
            });
        }
        Ok(layer)
    }

    fn parse_v2(&self, bytes: &[u8]) -> Result<IndexLayer, IndexError> {
        let head = header(bytes, V2_HEADER_BYTES)?;
        let (pack_count, format_count, base) = (be_u32(head, 8), head[12], be_u32(head, 13));
        let stride = (self.key_len + self.entry_len) as u64;
        let packs_at = V2_HEADER_BYTES as u64 + u64::from(self.entries) * stride;
        let formats_at = packs_at + u64::from(pack_count) * PACK_RECORD_BYTES as u64;
        let needed = formats_at + u64::from(format_count) * FORMAT_RECORD_BYTES as u64;
        if needed > bytes.len() as u64 {
            return Err(IndexError::TooShort { len: bytes.len(), needed });
        }
        // All three are within the length of `bytes`, so they fit.
        let (packs_at, formats_at, end) = (packs_at as usize, formats_at as usize, needed as usize);
        let packs = bytes[packs_at..formats_at]
            .chunks_exact(PACK_RECORD_BYTES)
            .map(|record| pack_name(bytes, be_u32(record, 1), record[0]))
            .collect::<Result<Vec<_>, _>>()?;
        let formats = bytes[formats_at..end]
            .chunks_exact(FORMAT_RECORD_BYTES)
            .map(|record| match record[5] {
                0 => Ok(Format { compression: CompressionId(be_u32(record, 0)), version: record[4] }),
                key_id => Err(IndexError::EncryptionKey { key_id }),
            })
            .collect::<Result<Vec<_>, _>>()?;

        let (keys, values) = self.split(bytes, V2_HEADER_BYTES)?;
        let mut records = Vec::with_capacity(self.entries as usize);
        for (entry, value) in values.enumerate() {
            let byte = |at: usize| u32::from(value.get(at).copied().unwrap_or(0));
            let three = |at: usize| byte(at) << 16 | byte(at + 1) << 8 | byte(at + 2);
            let pack = byte(17) << 16 | byte(14) << 8 | byte(15);
            let format = value.get(16).copied().unwrap_or(0);
            if pack >= pack_count {
                return Err(IndexError::Pack { entry, pack, packs: pack_count });
            }
            if format >= format_count {
                return Err(IndexError::Format { entry, format, formats: format_count });
            }
            let timestamp = u64::from(be_u32(value, 0)) + u64::from(base);
            records.push(Record {
                timestamp_low: timestamp as u32,
                timestamp_high: (timestamp >> 32) as u16,
                format: format.into(),
                offset_and_deleted: be_u32(value, 4),
                original_len: (byte(18) >> 4) << 24 | three(8),
                packed_len: (byte(18) & 15) << 24 | three(11),
                pack,
            });
        }
        Ok(IndexLayer { key_len: if records.is_empty() { 0 } else { self.key_len }, keys, records, packs, formats })
    }
}

/// The big-endian integer at `at` of a slice known to be that long.
fn be_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn pack_name(bytes: &[u8], offset: u32, len: u8) -> Result<Arc<str>, IndexError> {
    let refused = IndexError::PackName { offset, len };
    let Ok(start) = usize::try_from(offset) else { return Err(refused) };
    let name = start.checked_add(usize::from(len)).and_then(|end| bytes.get(start..end));
    name.and_then(|name| std::str::from_utf8(name).ok()).map(Arc::from).ok_or(refused)
}

/// Which of two entries of one content counts: the greater one (kopia-format 3.8). The later timestamp; then the one
/// that is not deleted; then the greater pack name.
pub fn newer_wins(a: &IndexEntry, b: &IndexEntry) -> Ordering {
    a.timestamp_seconds.cmp(&b.timestamp_seconds).then(b.deleted.cmp(&a.deleted)).then_with(|| a.pack.cmp(&b.pack))
}

/// Merges indexes into one with an entry per content, the one that [`newer_wins`] prefers. Tombstones stay.
pub fn merge(layers: &[&IndexLayer]) -> Result<IndexLayer, MergeError> {
    let layers: Vec<&IndexLayer> = layers.iter().copied().filter(|layer| !layer.is_empty()).collect();
    let Some(first) = layers.first() else { return Ok(IndexLayer::empty()) };
    if let Some(other) = layers.iter().find(|layer| layer.key_len != first.key_len) {
        return Err(MergeError::MixedHashLengths { first: first.key_len - 1, other: other.key_len - 1 });
    }
    if layers.len() == 1 {
        return Ok((*first).clone());
    }

    let longest = layers.iter().map(|layer| layer.len()).max().unwrap_or(0);
    let mut merged = IndexLayer { key_len: first.key_len, ..IndexLayer::default() };
    merged.keys.reserve(longest * first.key_len);
    merged.records.reserve(longest);
    let mut pack_numbers = HashMap::new();
    let mut format_numbers = HashMap::new();
    // The merged number of each pack of each layer, filled in at its first use.
    let mut packs: Vec<Vec<Option<u32>>> = layers.iter().map(|layer| vec![None; layer.packs.len()]).collect();

    // The least key on top, from whichever layer.
    let mut next: BinaryHeap<Reverse<(&[u8], usize, usize)>> =
        layers.iter().enumerate().map(|(layer, index)| Reverse((index.key(0), layer, 0))).collect();
    while let Some(Reverse((key, layer, at))) = next.pop() {
        let mut best = (layer, at);
        let advance = |next: &mut BinaryHeap<_>, layer: usize, at: usize| {
            if at + 1 < layers[layer].len() {
                next.push(Reverse((layers[layer].key(at + 1), layer, at + 1)));
            }
        };
        advance(&mut next, layer, at);
        while let Some(&Reverse((other_key, layer, at))) = next.peek() {
            if other_key != key {
                break;
            }
            next.pop();
            if prefer((layers[layer], at), (layers[best.0], best.1)) == Ordering::Greater {
                best = (layer, at);
            }
            advance(&mut next, layer, at);
        }

        let (layer, at) = best;
        let mut record = layers[layer].records[at];
        let pack = record.pack as usize;
        record.pack = match packs[layer][pack] {
            Some(number) => number,
            None => {
                let number = merged.number_pack(&mut pack_numbers, &layers[layer].packs[pack])?;
                *packs[layer][pack].insert(number)
            }
        };
        let format = layers[layer].formats[usize::from(record.format)];
        record.format = merged.number_format(&mut format_numbers, format)?;
        merged.keys.extend_from_slice(key);
        merged.records.push(record);
    }
    Ok(merged)
}

/// [`newer_wins`] over table positions.
fn prefer(a: (&IndexLayer, usize), b: (&IndexLayer, usize)) -> Ordering {
    let (x, y) = (&a.0.records[a.1], &b.0.records[b.1]);
    x.timestamp()
        .cmp(&y.timestamp())
        .then(y.deleted().cmp(&x.deleted()))
        .then_with(|| a.0.packs[x.pack as usize].cmp(&b.0.packs[y.pack as usize]))
}

/// An index of the version that the repository's `indexVersion` asks for, as Kopia lays it out. Sorts the entries.
///
/// Of several entries for one content only the one that [`newer_wins`] prefers is written.
pub fn build(version: u8, entries: &mut [IndexEntry]) -> Result<Vec<u8>, BuildIndexError> {
    match version {
        1 => build_v1(entries),
        2 => build_v2(entries),
        _ => Err(BuildIndexError::UnknownVersion { version }),
    }
}

/// An index of version 2 (kopia-format 4.3), packs and formats numbered in the order of their first use.
pub fn build_v2(entries: &mut [IndexEntry]) -> Result<Vec<u8>, BuildIndexError> {
    sort(entries);
    let (key_len, count) = check_for_writing(2, entries)?;
    let mut packs = Numbered::default();
    let mut formats = Numbered::default();
    let mut long = false;
    for entry in winners(entries) {
        if u32::try_from(entry.timestamp_seconds).is_err() {
            return Err(out_of_range(2, entry, "timestamp", entry.timestamp_seconds));
        }
        for (field, len) in [("original length", entry.original_len), ("packed length", entry.packed_len)] {
            if len > MAX_LEN {
                return Err(out_of_range(2, entry, field, len.into()));
            }
            long |= len >= 1 << 24;
        }
        packs.number(entry.pack.as_ref());
        formats.number((entry.compression.0, entry.format_version));
    }
    if packs.order.len() > MAX_PACKS {
        return Err(BuildIndexError::TooMany { what: "packs", count: packs.order.len() });
    }
    if formats.order.len() > MAX_FORMATS {
        return Err(BuildIndexError::TooMany { what: "formats", count: formats.order.len() });
    }
    let entry_len = match (long, packs.order.len() > 1 << 16, formats.order.len() > 1) {
        (true, _, _) => 19,
        (false, true, _) => 18,
        (false, false, true) => 17,
        (false, false, false) => 16,
    };

    let tables = count * (key_len + entry_len) + packs.order.len() * PACK_RECORD_BYTES;
    let names_at = V2_HEADER_BYTES + tables + formats.order.len() * FORMAT_RECORD_BYTES;
    let names: usize = packs.order.iter().map(|name| name.len()).sum();
    let Ok(entry_count) = u32::try_from(count) else {
        return Err(BuildIndexError::TooMany { what: "entries", count });
    };
    if u32::try_from(names_at + names).is_err() {
        return Err(BuildIndexError::TooMany { what: "bytes", count: names_at + names });
    }

    let mut out = Vec::with_capacity(names_at + names);
    out.push(2);
    out.push(key_len as u8);
    out.extend_from_slice(&(entry_len as u16).to_be_bytes());
    out.extend_from_slice(&entry_count.to_be_bytes());
    out.extend_from_slice(&(packs.order.len() as u32).to_be_bytes());
    out.push(formats.order.len() as u8);
    out.extend_from_slice(&[0; 4]);
    for entry in winners(entries) {
        let pack = packs.number(entry.pack.as_ref());
        let format = formats.number((entry.compression.0, entry.format_version));
        entry.id.write_key(&mut out);
        out.extend_from_slice(&(entry.timestamp_seconds as u32).to_be_bytes());
        out.extend_from_slice(&(entry.pack_offset | if entry.deleted { DELETED } else { 0 }).to_be_bytes());
        out.extend_from_slice(&entry.original_len.to_be_bytes()[1..]);
        out.extend_from_slice(&entry.packed_len.to_be_bytes()[1..]);
        out.extend_from_slice(&(pack as u16).to_be_bytes());
        let extra = [format as u8, (pack >> 16) as u8, (entry.original_len >> 24 << 4 | entry.packed_len >> 24) as u8];
        out.extend_from_slice(&extra[..entry_len - 16]);
    }
    let mut name_at = names_at as u32;
    for name in &packs.order {
        out.push(name.len() as u8);
        out.extend_from_slice(&name_at.to_be_bytes());
        name_at += name.len() as u32;
    }
    for (compression, version) in &formats.order {
        out.extend_from_slice(&compression.to_be_bytes());
        out.extend_from_slice(&[*version, 0]);
    }
    for name in &packs.order {
        out.extend_from_slice(name.as_bytes());
    }
    Ok(out)
}

/// An index of version 1 (kopia-format 4.2), which can hold neither compression nor an original length that is not
/// the packed one less the overhead of encryption: such entries are refused.
pub fn build_v1(entries: &mut [IndexEntry]) -> Result<Vec<u8>, BuildIndexError> {
    sort(entries);
    let (key_len, count) = check_for_writing(1, entries)?;
    let names_at = V1_HEADER_BYTES + count * (key_len + V1_ENTRY_BYTES);
    let Ok(entry_count) = u32::try_from(count) else {
        return Err(BuildIndexError::TooMany { what: "entries", count });
    };
    let mut out = Vec::with_capacity(names_at + 64);
    out.extend_from_slice(&[1, key_len as u8]);
    out.extend_from_slice(&(V1_ENTRY_BYTES as u16).to_be_bytes());
    out.extend_from_slice(&entry_count.to_be_bytes());
    let mut names = Vec::new();
    let mut name_offsets: HashMap<&str, usize> = HashMap::new();
    for entry in winners(entries) {
        if entry.compression != CompressionId::NONE {
            return Err(out_of_range(1, entry, "compression", entry.compression.0.into()));
        }
        if entry.packed_len.checked_sub(super::encryption::OVERHEAD as u32) != Some(entry.original_len) {
            return Err(out_of_range(1, entry, "original length", entry.original_len.into()));
        }
        if entry.timestamp_seconds < 0 || entry.timestamp_seconds >> 48 != 0 {
            return Err(out_of_range(1, entry, "timestamp", entry.timestamp_seconds));
        }
        let name_at = *name_offsets.entry(&entry.pack).or_insert_with(|| {
            let at = names_at + names.len();
            names.extend_from_slice(entry.pack.as_bytes());
            at
        });
        let Ok(name_at) = u32::try_from(name_at) else {
            return Err(BuildIndexError::TooMany { what: "bytes", count: name_at });
        };
        entry.id.write_key(&mut out);
        out.extend_from_slice(&entry.timestamp_seconds.to_be_bytes()[2..]);
        out.extend_from_slice(&[entry.format_version, entry.pack.len() as u8]);
        out.extend_from_slice(&name_at.to_be_bytes());
        out.extend_from_slice(&(entry.pack_offset | if entry.deleted { DELETED } else { 0 }).to_be_bytes());
        out.extend_from_slice(&entry.packed_len.to_be_bytes());
    }
    out.extend_from_slice(&names);
    Ok(out)
}

/// Sorts by content; the entry that counts comes first among those of one content.
fn sort(entries: &mut [IndexEntry]) {
    entries.sort_unstable_by(|a, b| a.id.cmp(&b.id).then_with(|| newer_wins(b, a)));
}

/// The first entry of each content.
fn winners(sorted: &[IndexEntry]) -> impl Iterator<Item = &IndexEntry> {
    sorted.chunk_by(|a, b| a.id == b.id).map(|same| &same[0])
}

/// Checks what both versions demand, and returns the length of a key and the number of entries to write.
fn check_for_writing(version: u8, sorted: &[IndexEntry]) -> Result<(usize, usize), BuildIndexError> {
    let key_len = sorted.first().ok_or(BuildIndexError::Empty)?.id.key_len();
    let mut count = 0;
    for entry in winners(sorted) {
        count += 1;
        if entry.id.key_len() != key_len {
            return Err(BuildIndexError::MixedHashLengths { id: entry.id });
        }
        if entry.pack_offset > MAX_PACK_OFFSET {
            return Err(out_of_range(version, entry, "pack offset", entry.pack_offset.into()));
        }
        if entry.pack.is_empty() || entry.pack.len() > 255 {
            return Err(out_of_range(version, entry, "pack name length", entry.pack.len() as i64));
        }
        if entry.encryption_key_id != 0 {
            return Err(out_of_range(version, entry, "encryption key", entry.encryption_key_id.into()));
        }
    }
    Ok((key_len, count))
}

fn out_of_range(version: u8, entry: &IndexEntry, field: &'static str, value: i64) -> BuildIndexError {
    BuildIndexError::OutOfRange { version, id: entry.id, field, value }
}

fn too_many(error: MergeError) -> BuildIndexError {
    match error {
        MergeError::TooMany { what } => BuildIndexError::TooMany { what, count: usize::from(u16::MAX) + 1 },
        MergeError::MixedHashLengths { .. } => unreachable!("numbering looks at no hash"),
    }
}

/// Numbers from 0 in the order of first use.
struct Numbered<T> {
    numbers: HashMap<T, u32>,
    order: Vec<T>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), order: Vec::new() }
    }
}

impl<T: std::hash::Hash + Eq + Clone> Numbered<T> {
    fn number(&mut self, value: T) -> u32 {
        if let Some(number) = self.numbers.get(&value) {
            return *number;
        }
        let number = self.order.len() as u32;
        self.order.push(value.clone());
        self.numbers.insert(value, number);
        number
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::test_vectors::{Rng, unhex};
    use super::*;

    const P: &str = "p0123456789abcdef0123456789abcdef-s0011223344556677122";
    const Q: &str = "qfedcba9876543210fedcba9876543210-s0011223344556677122";

    fn entry(id: &str, time: i64, pack: &str, offset: u32, lens: (u32, u32), compression: u32) -> IndexEntry {
        IndexEntry {
            id: id.parse().unwrap(),
            timestamp_seconds: time,
            deleted: false,
            pack: pack.into(),
            pack_offset: offset,
            original_len: lens.0,
            packed_len: lens.1,
            compression: CompressionId(compression),
            format_version: 3,
            encryption_key_id: 0,
        }
    }

    /// The entries of kopia-format 11.5, out of order.
    fn kopias() -> Vec<IndexEntry> {
        let a = entry("00112233445566778899aabbccddeeff", 1_700_000_000, P, 32, (5, 33), 0);
        let b = entry("f0112233445566778899aabbccddeeff", 1_700_000_001, P, 65, (1_048_576, 4096), 0x1100);
        let mut c = entry("k00112233445566778899aabbccddeeff", 1_700_000_002, Q, 32, (700, 350), 0x1101);
        c.deleted = true;
        vec![c, a, b]
    }

    const V2: &str = "02110011000000030000000203000000000000112233445566778899aabbccddeeff6553f1000000002000000500002100000000f0112233445566778899aabbccddeeff6553f101000000411000000010000000016b00112233445566778899aabbccddeeff6553f102800000200002bc00015e000102360000009336000000c90000000003000000110003000000110103007030313233343536373839616263646566303132333435363738396162636465662d73303031313232333334343535363637373132327166656463626139383736353433323130666564636261393837363534333231302d7330303131323233333434353536363737313232";
    const V1: &str = "01110014000000030000112233445566778899aabbccddeeff00006553f100033600000077000000200000002100f0112233445566778899aabbccddeeff00006553f10103360000007700000041000010006b00112233445566778899aabbccddeeff00006553f1020336000000ad800000200000015e7030313233343536373839616263646566303132333435363738396162636465662d73303031313232333334343535363637373132327166656463626139383736353433323130666564636261393837363534333231302d7330303131323233333434353536363737313232";
    const V2_A: &str = "02110010000000010000000101000000000000112233445566778899aabbccddeeff6553f100000000200000050000210000360000003d0000000003007030313233343536373839616263646566303132333435363738396162636465662d7330303131323233333434353536363737313232";
    const V2_LONG: &str = "02110013000000010000000101000000000000112233445566778899aabbccddeeff6553f10000000020bcdef123456700000000a136000000400000000003007030313233343536373839616263646566303132333435363738396162636465662d7330303131323233333434353536363737313232";

    #[test]
    fn version_2_agrees_with_kopia() {
        let mut entries = kopias();
        assert_eq!(build(2, &mut entries).unwrap(), unhex(V2));
        assert_eq!(build(2, &mut entries[..1]).unwrap(), unhex(V2_A));
        let layer = IndexLayer::parse(&unhex(V2), 28).unwrap();
        assert_eq!(layer.iter().collect::<Vec<_>>(), entries);

        entries.truncate(1);
        (entries[0].original_len, entries[0].packed_len) = (0x0abc_def1, 0x0123_4567);
        assert_eq!(build(2, &mut entries).unwrap(), unhex(V2_LONG));
        assert_eq!(IndexLayer::parse(&unhex(V2_LONG), 28).unwrap().iter().collect::<Vec<_>>(), entries);
    }

    /// What version 1 can say of an entry.
    fn without_what_v1_loses(mut entry: IndexEntry) -> IndexEntry {
        entry.compression = CompressionId::NONE;
        entry.original_len = entry.packed_len - 28;
        entry
    }

    #[test]
    fn version_1_agrees_with_kopia() {
        let mut entries: Vec<IndexEntry> = kopias().into_iter().map(without_what_v1_loses).collect();
        assert_eq!(build(1, &mut entries).unwrap(), unhex(V1));
        assert_eq!(IndexLayer::parse(&unhex(V1), 28).unwrap().iter().collect::<Vec<_>>(), entries);
        assert!(matches!(
            IndexLayer::parse(&unhex(V1), 34),
            Err(IndexError::PackedLength { entry: 0, packed_len: 33 })
        ));
    }

    #[test]
    fn what_a_version_cannot_hold_is_refused() {
        let good = || kopias().remove(1);
        let refused = |version: u8, change: &dyn Fn(&mut IndexEntry)| {
            let mut entry = good();
            change(&mut entry);
            build(version, &mut [entry]).err()
        };
        assert_eq!(refused(1, &|_| {}), None);
        assert_eq!(refused(2, &|_| {}), None);
        let long_name: Arc<str> = "p".repeat(256).into();
        type Change<'a> = (&'static str, &'a dyn Fn(&mut IndexEntry));
        let changes: [Change<'_>; 5] = [
            ("pack offset", &|entry| entry.pack_offset = 1 << 30),
            ("pack name length", &|entry| entry.pack = "".into()),
            ("pack name length", &|entry| entry.pack = long_name.clone()),
            ("timestamp", &|entry| entry.timestamp_seconds = -1),
            ("encryption key", &|entry| entry.encryption_key_id = 1),
        ];
        for (wanted, change) in changes {
            for version in [1, 2] {
                let error = refused(version, change);
                assert!(
                    matches!(error, Some(BuildIndexError::OutOfRange { field, .. }) if field == wanted),
                    "version {version}, {wanted}: {error:?}"
                );
            }
        }
        assert!(refused(2, &|entry| entry.timestamp_seconds = 1 << 32).is_some());
        assert!(refused(1, &|entry| entry.timestamp_seconds = 1 << 32).is_none());
        assert!(refused(1, &|entry| entry.timestamp_seconds = 1 << 48).is_some());
        assert!(refused(2, &|entry| entry.packed_len = 1 << 28).is_some());
        assert!(refused(2, &|entry| entry.original_len = 1 << 28).is_some());
        assert!(refused(1, &|entry| entry.original_len = 6).is_some());
        assert!(refused(1, &|entry| entry.compression = CompressionId::ZSTD).is_some());
        assert_eq!(refused(3, &|_| {}), Some(BuildIndexError::UnknownVersion { version: 3 }));
        assert_eq!(build_v2(&mut []), Err(BuildIndexError::Empty));
        assert_eq!(build_v1(&mut []), Err(BuildIndexError::Empty));
        let mixed = &mut [good(), entry("00ff", 1, P, 0, (5, 33), 0)];
        assert!(matches!(build_v2(mixed), Err(BuildIndexError::MixedHashLengths { .. })));
        let formats: Vec<IndexEntry> = (0..=255u8)
            .map(|n| IndexEntry { format_version: n, ..entry(&format!("{n:02x}"), 1, P, 0, (5, 33), 0) })
            .collect();
        assert!(matches!(
            build_v2(&mut formats.clone()),
            Err(BuildIndexError::TooMany { what: "formats", count: 256 })
        ));
        assert!(build_v2(&mut formats[1..].to_vec()).is_ok());
    }

    #[test]
    fn a_base_timestamp_is_added_and_trailing_bytes_are_ignored() {
        let mut bytes = unhex(V2);
        bytes[13..17].copy_from_slice(&0x8000_0000u32.to_be_bytes());
        bytes.extend_from_slice(&[0xaa; 32]);
        let layer = IndexLayer::parse(&bytes, 28).unwrap();
        let times: Vec<i64> = layer.iter().map(|entry| entry.timestamp_seconds - 0x8000_0000).collect();
        assert_eq!(times, [1_700_000_000, 1_700_000_001, 1_700_000_002]);
    }

    #[test]
    fn more_than_65536_packs_need_a_third_byte() {
        let count = 65_540;
        let mut entries: Vec<IndexEntry> =
            (0..count).map(|n| entry(&format!("{n:08x}"), n, &format!("p{n}"), n as u32, (5, 33), 0)).collect();
        let bytes = build_v2(&mut entries).unwrap();
        assert_eq!(bytes[2..4], [0, 18]);
        let layer = IndexLayer::parse(&bytes, 28).unwrap();
        assert_eq!(layer.iter().collect::<Vec<_>>(), entries);
        entries.truncate(65_536);
        assert_eq!(build_v2(&mut entries).unwrap()[2..4], [0, 16]);
    }

    #[test]
    fn damaged_headers_and_tables_are_named() {
        let good = unhex(V2);
        let parse = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            IndexLayer::parse(&bytes, 28).err()
        };
        // Entries begin at 17 and have 34 bytes; pack records follow at 119, format records at 129.
        assert_eq!(parse(&|_| {}), None);
        assert!(matches!(parse(&|b| b.truncate(7)), Some(IndexError::TooShort { needed: 8, .. })));
        assert!(matches!(parse(&|b| b.truncate(16)), Some(IndexError::TooShort { needed: 17, .. })));
        assert!(matches!(parse(&|b| b.truncate(146)), Some(IndexError::TooShort { needed: 147, .. })));
        assert!(matches!(parse(&|b| b[4] = 0xff), Some(IndexError::TooShort { .. })));
        assert!(matches!(parse(&|b| b[8] = 0xff), Some(IndexError::TooShort { .. })));
        assert_eq!(parse(&|b| b[0] = 3), Some(IndexError::UnknownVersion { version: 3 }));
        assert_eq!(parse(&|b| b[1] = 1), Some(IndexError::KeySize { key_size: 1 }));
        assert_eq!(parse(&|b| b[1] = 34), Some(IndexError::KeySize { key_size: 34 }));
        assert_eq!(parse(&|b| b[3] = 15), Some(IndexError::EntrySize { version: 2, entry_size: 15 }));
        assert_eq!(parse(&|b| b[3] = 20), Some(IndexError::EntrySize { version: 2, entry_size: 20 }));
        assert_eq!(parse(&|b| b[51 + 1] = 0), Some(IndexError::Unsorted { entry: 1 }));
        assert_eq!(parse(&|b| b[85] = b'a'), Some(IndexError::Prefix { entry: 2, prefix: b'a' }));
        assert_eq!(parse(&|b| b[17 + 17 + 15] = 2), Some(IndexError::Pack { entry: 0, pack: 2, packs: 2 }));
        assert_eq!(parse(&|b| b[17 + 17 + 16] = 3), Some(IndexError::Format { entry: 0, format: 3, formats: 3 }));
        assert_eq!(parse(&|b| b[119 + 1] = 1), Some(IndexError::PackName { offset: 0x0100_0093, len: 54 }));
        assert!(matches!(parse(&|b| *b.last_mut().unwrap() = 0xff), Some(IndexError::PackName { .. })));
        assert_eq!(parse(&|b| b[129 + 5] = 1), Some(IndexError::EncryptionKey { key_id: 1 }));
    }

    #[test]
    fn empty_indexes_are_read() {
        for bytes in [
            &[1, 255, 0, 20, 0, 0, 0, 0][..],
            &[1, 17, 0, 20, 0, 0, 0, 0],
            &[2, 17, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            let layer = IndexLayer::parse(bytes, 28).unwrap();
            assert!(layer.is_empty());
            assert_eq!(layer.find(&"00ff".parse().unwrap()), Ok(None));
            assert_eq!(layer.iter_prefix(None).count(), 0);
            assert_eq!(merge(&[&layer, &layer]).unwrap().len(), 0);
        }
        assert!(IndexLayer::parse(&[], 28).is_err());
    }

    #[test]
    fn look_ups_find_what_is_there_and_refuse_other_lengths() {
        let layer = IndexLayer::parse(&unhex(V2), 28).unwrap();
        for wanted in layer.iter() {
            assert_eq!(layer.find(&wanted.id), Ok(Some(wanted)));
        }
        for absent in [
            "00112233445566778899aabbccddeefe",
            "ffff2233445566778899aabbccddeeff",
            "g0000000000000000000000000000000f",
        ] {
            assert_eq!(layer.find(&absent.parse().unwrap()), Ok(None), "{absent}");
        }
        let other = layer.find(&"00ff".parse().unwrap());
        assert_eq!(other, Err(KeyLengthMismatch { asked: 2, held: 16 }));
        let of = |prefix| layer.iter_prefix(prefix).map(|entry| entry.id.to_string()).collect::<Vec<_>>();
        assert_eq!(of(Some(b'k')), ["k00112233445566778899aabbccddeeff"]);
        assert_eq!(of(None).len(), 2);
        assert_eq!((of(Some(b'g')).len(), of(Some(b'z')).len()), (0, 0));
    }

    #[test]
    fn the_entry_that_counts_is_the_later_then_the_living_then_the_greater_pack() {
        let base = entry("00ff", 10, "p5", 0, (5, 33), 0);
        let with = |time, deleted, pack: &str| IndexEntry {
            timestamp_seconds: time,
            deleted,
            pack: pack.into(),
            ..base.clone()
        };
        for (greater, lesser) in [
            (with(11, true, "p0"), with(10, false, "p9")),
            (with(10, false, "p0"), with(10, true, "p9")),
            (with(10, false, "p6"), with(10, false, "p5")),
            (with(10, true, "p6"), with(10, true, "p5")),
        ] {
            assert_eq!(newer_wins(&greater, &lesser), Ordering::Greater);
            assert_eq!(newer_wins(&lesser, &greater), Ordering::Less);
            for order in [[&greater, &lesser], [&lesser, &greater]] {
                let layers = order.map(|entry| IndexLayer::from_entries(vec![entry.clone()]).unwrap());
                let merged = merge(&[&layers[0], &layers[1]]).unwrap();
                assert_eq!(merged.iter().collect::<Vec<_>>(), std::slice::from_ref(&greater));
                let mut both = order.map(IndexEntry::clone);
                let built = IndexLayer::parse(&build_v2(&mut both).unwrap(), 28).unwrap();
                assert_eq!(built.iter().collect::<Vec<_>>(), std::slice::from_ref(&greater));
                let held = IndexLayer::from_entries(order.map(IndexEntry::clone).to_vec()).unwrap();
                assert_eq!(held.iter().collect::<Vec<_>>(), std::slice::from_ref(&greater));
            }
        }
        assert_eq!(newer_wins(&base, &base), Ordering::Equal);
    }

    /// Random indexes against a map: merging, look-ups, and both encodings.
    #[test]
    fn random_indexes_behave_as_a_map() {
        let mut rng = Rng(5);
        for round in 0..200 {
            let mut model: BTreeMap<ContentId, IndexEntry> = BTreeMap::new();
            let mut layers = Vec::new();
            for _ in 0..rng.below(6) {
                let mut entries = Vec::new();
                for _ in 0..rng.below(60) {
                    let prefix = [None, Some(b'k'), Some(b'x')][rng.below(3)];
                    let packed = rng.below(1 << 20) as u32 + 28;
                    let entry = IndexEntry {
                        id: ContentId::new(prefix, &[rng.below(4) as u8, rng.below(8) as u8]).unwrap(),
                        timestamp_seconds: rng.below(5) as i64,
                        deleted: rng.below(2) == 0,
                        pack: format!("p{}", rng.below(7)).into(),
                        pack_offset: rng.below(1 << 30) as u32,
                        packed_len: packed,
                        original_len: packed - 28,
                        compression: CompressionId::NONE,
                        format_version: rng.below(3) as u8 + 1,
                        encryption_key_id: 0,
                    };
                    // Equal in all that counts and yet different does not occur: a pack holds a content once.
                    if entries
                        .iter()
                        .chain(model.values())
                        .any(|has: &IndexEntry| has.id == entry.id && newer_wins(has, &entry).is_eq())
                    {
                        continue;
                    }
                    entries.push(entry);
                }
                if entries.is_empty() {
                    continue;
                }
                let mut sorted = entries.clone();
                let version = rng.below(2) as u8 + 1;
                layers.push(IndexLayer::parse(&build(version, &mut sorted).unwrap(), 28).unwrap());
                for entry in entries {
                    match model.get(&entry.id) {
                        Some(has) if newer_wins(has, &entry).is_gt() => {}
                        _ => {
                            model.insert(entry.id, entry);
                        }
                    }
                }
            }
            let merged = merge(&layers.iter().collect::<Vec<_>>()).unwrap();
            let expected: Vec<IndexEntry> = model.values().cloned().collect();
            assert_eq!(merged.iter().collect::<Vec<_>>(), expected, "round {round}");
            for prefix in [None, Some(b'k'), Some(b'x'), Some(b'm')] {
                for hash in 0..32u8 {
                    let id = ContentId::new(prefix, &[hash / 8, hash % 8]).unwrap();
                    assert_eq!(merged.find(&id).unwrap().as_ref(), model.get(&id), "round {round}, {id}");
                }
                let count = model.keys().filter(|id| id.prefix() == prefix).count();
                assert_eq!(merged.iter_prefix(prefix).count(), count, "round {round}");
            }
            assert!(merged.memory_bytes() >= merged.len() * 24);
        }
    }

    #[test]
    fn indexes_of_different_hash_lengths_do_not_merge() {
        let two = IndexLayer::from_entries(vec![entry("00ff", 1, P, 0, (5, 33), 0)]).unwrap();
        let three = IndexLayer::from_entries(vec![entry("00ffff", 1, P, 0, (5, 33), 0)]).unwrap();
        assert_eq!(merge(&[&two, &three]).err(), Some(MergeError::MixedHashLengths { first: 2, other: 3 }));
        assert_eq!(merge(&[]).unwrap().len(), 0);
        assert_eq!(merge(&[&IndexLayer::empty(), &three]).unwrap().len(), 1);
    }

    /// Whatever the bytes, the answer is an error or an index that is in order and says nothing impossible.
    #[test]
    fn changed_bytes_give_an_error_or_a_sound_index() {
        let mut rng = Rng(6);
        let mut accepted = 0;
        for seed in [V1, V2, V2_A, V2_LONG].map(unhex) {
            for _ in 0..20_000 {
                let changed = rng.mutate(&seed);
                let Ok(layer) = IndexLayer::parse(&changed, 28) else { continue };
                accepted += 1;
                assert!(layer.len() <= changed.len() / 18);
                let entries: Vec<IndexEntry> = layer.iter().collect();
                assert!(entries.is_sorted_by(|a, b| a.id < b.id));
                for entry in &entries {
                    assert_eq!(layer.find(&entry.id).unwrap().as_ref(), Some(entry));
                    assert!(entry.pack_offset < 1 << 31 && (0..1 << 48).contains(&entry.timestamp_seconds));
                }
                assert_eq!(merge(&[&layer, &layer]).unwrap().iter().collect::<Vec<_>>(), entries);
            }
        }
        assert!(accepted > 1000, "mutations that are still indexes: {accepted}");
    }
}

//! Reading index blobs of both versions (kopia-format 4.2, 4.3).

use std::collections::HashMap;
use std::sync::Arc;

use super::{
    FORMAT_RECORD_BYTES, Format, IndexLayer, PACK_RECORD_BYTES, Record, V1_ENTRY_BYTES, V1_HEADER_BYTES,
    V2_HEADER_BYTES,
};
use crate::format::compression::CompressionId;
use crate::format::content_id::MAX_HASH_BYTES;

const V2_ENTRY_BYTES: std::ops::RangeInclusive<usize> = 16..=19;
/// The key size of an empty version 1 index that did not know its own.
const UNKNOWN_KEY_SIZE: u8 = 255;

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

impl IndexLayer {
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

//! Writing index blobs of both versions as Kopia lays them out (kopia-format 4.2, 4.3).

use std::collections::HashMap;

use super::{
    DELETED, FORMAT_RECORD_BYTES, IndexEntry, PACK_RECORD_BYTES, V1_ENTRY_BYTES, V1_HEADER_BYTES, V2_HEADER_BYTES,
    newer_wins,
};
use crate::format::compression::CompressionId;
use crate::format::content_id::ContentId;
use crate::format::encryption;

/// Offsets in packs stay below this (kopia-format 4.3).
const MAX_PACK_OFFSET: u32 = (1 << 30) - 1;
const MAX_LEN: u32 = (1 << 28) - 1;
const MAX_PACKS: usize = 1 << 24;
const MAX_FORMATS: usize = 255;

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
        if entry.packed_len.checked_sub(encryption::OVERHEAD as u32) != Some(entry.original_len) {
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
pub(super) fn sort(entries: &mut [IndexEntry]) {
    entries.sort_unstable_by(|a, b| a.id.cmp(&b.id).then_with(|| newer_wins(b, a)));
}

/// The first entry of each content.
pub(super) fn winners(sorted: &[IndexEntry]) -> impl Iterator<Item = &IndexEntry> {
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

pub(super) fn out_of_range(version: u8, entry: &IndexEntry, field: &'static str, value: i64) -> BuildIndexError {
    BuildIndexError::OutOfRange { version, id: entry.id, field, value }
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

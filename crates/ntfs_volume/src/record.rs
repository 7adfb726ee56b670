//! Records of the master file table, and their attributes (spec block-serving D.5).

use crate::bytes::{Put as _, protect};
use crate::layout::Run;

/// Bytes of a record.
pub(crate) const RECORD_BYTES: usize = 1024;
/// Where attributes begin.
const HEADER_BYTES: usize = 0x38;
/// The mark behind the last attribute.
const END_BYTES: usize = 8;
/// Update sequence number of a record that was never written again.
const SEQUENCE_NUMBER: u16 = 2;

/// Types of attributes.
pub(crate) mod kind {
    pub(crate) const STANDARD_INFORMATION: u32 = 0x10;
    pub(crate) const FILE_NAME: u32 = 0x30;
    pub(crate) const SECURITY_DESCRIPTOR: u32 = 0x50;
    pub(crate) const VOLUME_NAME: u32 = 0x60;
    pub(crate) const VOLUME_INFORMATION: u32 = 0x70;
    pub(crate) const DATA: u32 = 0x80;
    pub(crate) const INDEX_ROOT: u32 = 0x90;
    pub(crate) const INDEX_ALLOCATION: u32 = 0xA0;
    pub(crate) const BITMAP: u32 = 0xB0;
}

/// Flags of a record.
pub(crate) mod flag {
    pub(crate) const IN_USE: u16 = 1;
    pub(crate) const DIRECTORY: u16 = 2;
    pub(crate) const IN_EXTEND: u16 = 4;
    pub(crate) const VIEW_INDEX: u16 = 8;
}

/// A record that is being put together. Attributes are stored by type and name; their ids count in the order of adding.
pub(crate) struct Record {
    pub(crate) number: u32,
    pub(crate) sequence: u16,
    pub(crate) flags: u16,
    /// How many names lead to it.
    pub(crate) links: u16,
    /// What stands in the header as its number: 0 in one that was never used.
    number_field: u32,
    attributes: Vec<Attribute>,
    next_id: u16,
}

struct Attribute {
    kind: u32,
    name: &'static str,
    bytes: Vec<u8>,
}

/// Where the value of a non-resident attribute lies, and how long it is.
pub(crate) struct Stream<'a> {
    pub(crate) runs: &'a [Run],
    pub(crate) size_bytes: u64,
    /// The rest reads as zeroes whatever is there.
    pub(crate) initialised_bytes: u64,
    pub(crate) cluster_bytes: u64,
}

impl<'a> Stream<'a> {
    /// One whose every byte was written.
    pub(crate) fn of(run: &'a Run, size_bytes: u64, cluster_bytes: u64) -> Self {
        Self { runs: std::slice::from_ref(run), size_bytes, initialised_bytes: size_bytes, cluster_bytes }
    }
}

impl Record {
    pub(crate) fn new(number: u32, sequence: u16, flags: u16) -> Self {
        Self { number, sequence, flags, links: 0, number_field: number, attributes: Vec::new(), next_id: 0 }
    }

    /// One that was never in use.
    pub(crate) fn unused(number: u32) -> Self {
        Self { number_field: 0, ..Self::new(number, number as u16, 0) }
    }

    /// Leaves the number out of the header, as in one that was never in use.
    pub(crate) fn forget_number(&mut self) {
        self.number_field = 0;
    }

    /// How entries of directories refer to it.
    pub(crate) fn reference(&self) -> u64 {
        reference(self.number, self.sequence)
    }

    /// Adds an attribute whose value is in the record.
    pub(crate) fn resident(&mut self, kind: u32, name: &'static str, value: &[u8]) -> &mut Self {
        self.add_resident(kind, name, value, false)
    }

    /// Adds a `$FILE_NAME`, which a directory has too.
    pub(crate) fn name(&mut self, value: &[u8]) -> &mut Self {
        self.links += 1;
        self.add_resident(kind::FILE_NAME, "", value, true)
    }

    fn add_resident(&mut self, kind: u32, name: &'static str, value: &[u8], is_indexed: bool) -> &mut Self {
        const AT: usize = 0x18;
        let name_units = name.encode_utf16().count();
        let value_at = (AT + 2 * name_units).next_multiple_of(8);
        let len = (value_at + value.len()).next_multiple_of(8);
        let mut bytes = Vec::with_capacity(len);
        bytes.u32(kind).u32(len as u32).u8(0).u8(name_units as u8).u16(AT as u16).u16(0).u16(self.take_id());
        bytes.u32(value.len() as u32).u16(value_at as u16).u8(u8::from(is_indexed)).u8(0).text(name);
        bytes.pad_to(value_at).bytes(value).pad_to(len);
        self.attributes.push(Attribute { kind, name, bytes });
        self
    }

    /// Adds an attribute whose value lies in clusters.
    pub(crate) fn non_resident(&mut self, kind: u32, name: &'static str, stream: &Stream<'_>) -> &mut Self {
        const AT: usize = 0x40;
        let name_units = name.encode_utf16().count();
        let pairs_at = (AT + 2 * name_units).next_multiple_of(8);
        let pairs = mapping_pairs(stream.runs);
        let len = (pairs_at + pairs.len()).next_multiple_of(8);
        let clusters: u64 = stream.runs.iter().map(|run| run.clusters).sum();
        let mut bytes = Vec::with_capacity(len);
        bytes.u32(kind).u32(len as u32).u8(1).u8(name_units as u8).u16(AT as u16).u16(0).u16(self.take_id());
        bytes.u64(0).u64(clusters - 1).u16(pairs_at as u16).u16(0).u32(0);
        bytes.u64(clusters * stream.cluster_bytes).u64(stream.size_bytes).u64(stream.initialised_bytes).text(name);
        bytes.pad_to(pairs_at).bytes(&pairs).pad_to(len);
        self.attributes.push(Attribute { kind, name, bytes });
        self
    }

    fn take_id(&mut self) -> u16 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// Bytes in use, of [`RECORD_BYTES`].
    pub(crate) fn used_bytes(&self) -> usize {
        HEADER_BYTES + self.attributes.iter().map(|attribute| attribute.bytes.len()).sum::<usize>() + END_BYTES
    }

    /// The record's bytes; `None` when it has more than a record takes.
    pub(crate) fn encode(mut self) -> Option<Vec<u8>> {
        let used = self.used_bytes();
        if used > RECORD_BYTES {
            return None;
        }
        self.attributes.sort_by_key(|attribute| (attribute.kind, attribute.name.to_uppercase()));
        let mut bytes = Vec::with_capacity(RECORD_BYTES);
        bytes.bytes(b"FILE").u16(0x30).u16((RECORD_BYTES / 512 + 1) as u16).u64(0).u16(self.sequence).u16(self.links);
        bytes.u16(HEADER_BYTES as u16).u16(self.flags).u32(used as u32).u32(RECORD_BYTES as u32).u64(0);
        bytes.u16(self.next_id).u16(0).u32(self.number_field).pad_to(HEADER_BYTES);
        for attribute in &self.attributes {
            bytes.bytes(&attribute.bytes);
        }
        bytes.u32(u32::MAX).u32(0).pad_to(RECORD_BYTES);
        protect(&mut bytes, SEQUENCE_NUMBER);
        Some(bytes)
    }
}

/// A record's number with its sequence number.
pub(crate) fn reference(number: u32, sequence: u16) -> u64 {
    u64::from(number) | u64::from(sequence) << 48
}

/// Runs as lengths and distances, each as short as it can be.
fn mapping_pairs(runs: &[Run]) -> Vec<u8> {
    let (mut pairs, mut previous) = (Vec::new(), 0_i64);
    for run in runs {
        let count = signed(run.clusters as i64);
        let distance = match run.first {
            Some(first) => {
                let distance = signed(first as i64 - previous);
                previous = first as i64;
                distance
            }
            None => Vec::new(),
        };
        pairs.u8(count.len() as u8 | (distance.len() as u8) << 4).bytes(&count).bytes(&distance);
    }
    pairs.push(0);
    pairs
}

/// The fewest little-endian bytes that keep the sign.
fn signed(value: i64) -> Vec<u8> {
    let bytes = value.to_le_bytes();
    let holds = |len: &usize| {
        let bits = 8 * *len as u32 - 1;
        value >> bits == 0 || value >> bits == -1
    };
    let len = (1..8).find(holds).unwrap_or(8);
    bytes[..len].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_sign_in_the_fewest_bytes() {
        for (value, bytes) in [
            (0, &[0][..]),
            (127, &[127]),
            (128, &[128, 0]),
            (-128, &[128]),
            (-129, &[0x7F, 0xFF]),
            (1 << 31, &[0, 0, 0, 0x80, 0]),
            (i64::MAX, &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]),
        ] {
            assert_eq!(signed(value), bytes, "{value}");
        }
    }
}

//! The overlay's bytes on disk: segment headers and record headers (spec block-serving C.4). Little-endian.

/// The unit in which positions are given.
pub(crate) const SECTOR_BYTES: u64 = 512;
/// The unit of encryption.
pub(crate) const CELL_BYTES: usize = 4096;
/// Sectors of a cell.
pub(crate) const CELL_SECTORS: u64 = CELL_BYTES as u64 / SECTOR_BYTES;
/// Tag of a cell, a record or a segment header.
pub(crate) const TAG_BYTES: usize = 16;
/// A cell as it is stored: ciphertext, tag.
pub(crate) const SEALED_CELL_BYTES: usize = CELL_BYTES + TAG_BYTES;
/// Longest segment.
pub(crate) const MAX_SEGMENT_BYTES: u64 = 67_108_864;
/// A segment's header.
pub(crate) const HEADER_BYTES: usize = 4096;
/// The part of it that its tag covers.
pub(crate) const HEADER_SIGNED_BYTES: usize = 4080;
/// A record's header.
pub(crate) const RECORD_BYTES: usize = 64;
/// The part of it that its tag covers.
pub(crate) const RECORD_SIGNED_BYTES: usize = 48;
/// Cells of the longest DATA record.
pub(crate) const MAX_CELLS: u16 = 256;

const MAGIC: [u8; 8] = *b"E3OVSEG\x01";
const RECORD_MAGIC: [u8; 4] = *b"OVR1";
const VERSION: u32 = 1;
const AES_256_GCM: u32 = 1;

/// The first 4,096 bytes of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) session: [u8; 16],
    pub(crate) disk: [u8; 16],
    /// From 1 upwards.
    pub(crate) number: u64,
    pub(crate) first_sequence: u64,
    /// Segments before this one may be deleted.
    pub(crate) oldest_needed: u64,
    pub(crate) size_bytes: u64,
    /// Logical sectors of the device; positions are in sectors of 512 bytes all the same.
    pub(crate) sector_bytes: u32,
    pub(crate) salt: [u8; 32],
    pub(crate) base: [u8; 32],
    /// SHA-256 of the previous needed segment's header, or zero.
    pub(crate) previous: [u8; 32],
}

impl SegmentHeader {
    /// The bytes, with room for the tag at the end.
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &(HEADER_BYTES as u32).to_le_bytes());
        put(16, &self.session);
        put(32, &self.disk);
        put(48, &self.number.to_le_bytes());
        put(56, &self.first_sequence.to_le_bytes());
        put(64, &self.oldest_needed.to_le_bytes());
        put(72, &self.size_bytes.to_le_bytes());
        put(80, &self.sector_bytes.to_le_bytes());
        put(84, &AES_256_GCM.to_le_bytes());
        put(88, &self.salt);
        put(120, &self.base);
        put(152, &self.previous);
        bytes
    }

    /// The fields; the tag is the caller's to check. The error says what is wrong.
    pub(crate) fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, &'static str> {
        if bytes[..8] != MAGIC {
            return Err("it does not begin as a segment does");
        }
        if (u32_at(bytes, 8), u32_at(bytes, 12), u32_at(bytes, 84)) != (VERSION, HEADER_BYTES as u32, AES_256_GCM) {
            return Err("its version, header length or cipher is not known to this program");
        }
        Ok(Self {
            session: array_at(bytes, 16),
            disk: array_at(bytes, 32),
            number: u64_at(bytes, 48),
            first_sequence: u64_at(bytes, 56),
            oldest_needed: u64_at(bytes, 64),
            size_bytes: u64_at(bytes, 72),
            sector_bytes: u32_at(bytes, 80),
            salt: array_at(bytes, 88),
            base: array_at(bytes, 120),
            previous: array_at(bytes, 152),
        })
    }
}

/// What a record does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// Sectors with their bytes.
    Data,
    /// Sectors that read as zeroes.
    Zero,
    /// A note of what is durable.
    Mark,
    /// Sectors that have reached the hydration target.
    Drained,
}

/// The first 64 bytes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) kind: RecordKind,
    pub(crate) cells: u16,
    pub(crate) sequence: u64,
    pub(crate) first_sector: u64,
    pub(crate) sectors: u64,
    /// DRAINED: index entries up to this sequence are dropped. Else the highest sequence known durable.
    pub(crate) mark: u64,
}

impl RecordHeader {
    /// Length of what follows the header.
    pub(crate) fn payload_bytes(&self) -> usize {
        usize::from(self.cells) * SEALED_CELL_BYTES
    }

    /// The sectors it is about.
    pub(crate) fn range(&self) -> std::ops::Range<u64> {
        self.first_sector..self.first_sector + self.sectors
    }

    /// The bytes, with room for the tag at the end.
    pub(crate) fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..4].copy_from_slice(&RECORD_MAGIC);
        bytes[4] = match self.kind {
            RecordKind::Data => 1,
            RecordKind::Zero => 2,
            RecordKind::Mark => 3,
            RecordKind::Drained => 4,
        };
        bytes[6..8].copy_from_slice(&self.cells.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first_sector.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.sectors.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.mark.to_le_bytes());
        bytes[40..48].copy_from_slice(&(self.payload_bytes() as u64).to_le_bytes());
        bytes
    }

    /// The fields, with everything checked that does not need a key: afterwards lengths and ranges can be trusted to
    /// agree with each other and with a device of `device_sectors`.
    pub(crate) fn parse(bytes: &[u8; RECORD_BYTES], device_sectors: u64) -> Result<Self, &'static str> {
        if bytes[..4] != RECORD_MAGIC {
            return Err("no record begins here");
        }
        let kind = match bytes[4] {
            1 => RecordKind::Data,
            2 => RecordKind::Zero,
            3 => RecordKind::Mark,
            4 => RecordKind::Drained,
            _ => return Err("a record has a kind that this program does not know"),
        };
        let record = Self {
            kind,
            cells: u16::from_le_bytes([bytes[6], bytes[7]]),
            sequence: u64_at(bytes, 8),
            first_sector: u64_at(bytes, 16),
            sectors: u64_at(bytes, 24),
            mark: u64_at(bytes, 32),
        };
        let end = record.first_sector.checked_add(record.sectors).filter(|end| *end <= device_sectors);
        let Some(end) = end else { return Err("a record reaches beyond the device") };
        let cells = match kind {
            RecordKind::Data if record.sectors > 0 => cells_of(record.first_sector, end),
            RecordKind::Data => return Err("a record of data has none"),
            _ => 0,
        };
        if u64::from(record.cells) != cells || record.cells > MAX_CELLS {
            return Err("a record's cells do not cover its sectors");
        }
        if bytes[5] != 0 || u64_at(bytes, 40) != record.payload_bytes() as u64 {
            return Err("a record's flags or length are not as they must be");
        }
        Ok(record)
    }
}

/// How many cells the sectors `first..end` touch.
pub(crate) fn cells_of(first: u64, end: u64) -> u64 {
    end.div_ceil(CELL_SECTORS) - first / CELL_SECTORS
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has the array's length")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> RecordHeader {
        RecordHeader { kind: RecordKind::Data, cells: 2, sequence: 9, first_sector: 7, sectors: 2, mark: 3 }
    }

    #[test]
    fn record_headers_are_read_as_written() {
        let others = [
            RecordHeader { kind: RecordKind::Zero, cells: 0, sectors: 64, ..record() },
            RecordHeader { kind: RecordKind::Mark, cells: 0, first_sector: 0, sectors: 0, ..record() },
            RecordHeader { kind: RecordKind::Drained, cells: 0, ..record() },
        ];
        for header in others.into_iter().chain([record()]) {
            assert_eq!(RecordHeader::parse(&header.encode(), 100), Ok(header));
        }
    }

    /// Whoever can seal a record may write anything into it: what is taken is consistent, and is what was written.
    fn fuzzed(input: &[u8]) -> u64 {
        let Some((header, rest)) = input.split_first_chunk::<RECORD_BYTES>() else { return 0 };
        let device_sectors = rest.first().map_or(100, |byte| 1_u64 << (byte % 64));
        let mut told = Vec::new();
        match RecordHeader::parse(header, device_sectors) {
            Ok(record) => {
                // The tag is the key's affair.
                assert_eq!(record.encode()[..RECORD_SIGNED_BYTES], header[..RECORD_SIGNED_BYTES]);
                assert!(record.range().end <= device_sectors && record.range().start <= record.range().end);
                let covered = u64::from(record.cells) * CELL_SECTORS;
                assert!((record.kind == RecordKind::Data) == (record.cells > 0));
                assert!(record.cells == 0 || (record.sectors > 0 && record.sectors <= covered));
                assert!(record.payload_bytes() <= usize::from(MAX_CELLS) * SEALED_CELL_BYTES, "a bound on memory");
                told.push(format!("{:?} {}", record.kind, record.cells.min(4)));
            }
            Err(problem) => told.push(problem.to_owned()),
        }
        if let Some(bytes) = input.first_chunk::<HEADER_BYTES>() {
            match SegmentHeader::parse(bytes) {
                Ok(header) => {
                    let fields = [8..16, 16..184].into_iter();
                    assert!(fields.into_iter().all(|range| header.encode()[range.clone()] == bytes[range]));
                    told.push("a segment".to_owned());
                }
                Err(problem) => told.push(problem.to_owned()),
            }
        }
        fuzzing::behaviour(told)
    }

    fn recorded() -> Vec<Vec<u8>> {
        let segment = SegmentHeader {
            session: [1; 16],
            disk: [2; 16],
            number: 3,
            first_sequence: 4,
            oldest_needed: 1,
            size_bytes: 1 << 30,
            sector_bytes: 512,
            salt: [5; 32],
            base: [6; 32],
            previous: [7; 32],
        };
        let zero = RecordHeader { kind: RecordKind::Zero, cells: 0, sectors: 64, ..record() };
        let mark = RecordHeader { kind: RecordKind::Mark, cells: 0, first_sector: 0, sectors: 0, ..record() };
        let drained = RecordHeader { kind: RecordKind::Drained, cells: 0, ..record() };
        let records = [record(), zero, mark, drained].map(|header| [&header.encode()[..], &[20]].concat());
        records.into_iter().chain([segment.encode().to_vec()]).collect()
    }

    #[test]
    fn fuzz_headers() {
        let seen = fuzzing::hunt(&recorded(), HEADER_BYTES, fuzzed);
        assert!(seen.behaviours >= 8, "{seen:?}");
    }

    #[test]
    #[ignore = "a minute, or what E3_FUZZ_SECONDS says"]
    fn fuzz_headers_long() {
        fuzzing::hunt_long(&recorded(), HEADER_BYTES, fuzzed);
    }

    #[test]
    fn a_record_that_contradicts_itself_is_refused() {
        type Spoil = fn(&mut [u8; RECORD_BYTES]);
        let cases: [(&str, Spoil); 9] = [
            ("magic", |bytes| bytes[0] ^= 1),
            ("kind", |bytes| bytes[4] = 5),
            ("flags", |bytes| bytes[5] = 1),
            ("cells too few", |bytes| bytes[6] = 1),
            ("cells too many", |bytes| bytes[7] = 1),
            ("first sector overflows", |bytes| bytes[16..24].fill(0xFF)),
            ("no sectors", |bytes| bytes[24] = 0),
            ("beyond the device", |bytes| bytes[24] = 94),
            ("payload length", |bytes| bytes[44] = 1),
        ];
        for (case, spoil) in cases {
            let mut bytes = record().encode();
            spoil(&mut bytes);
            assert!(RecordHeader::parse(&bytes, 100).is_err(), "{case}");
        }
    }

    #[test]
    fn cells_are_those_that_sectors_touch() {
        for (first, end, cells) in [(0, 8, 1), (7, 9, 2), (3, 5, 1), (8, 24, 2), (8, 25, 3)] {
            assert_eq!(cells_of(first, end), cells, "sectors {first}..{end}");
        }
    }
}

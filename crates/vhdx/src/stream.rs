//! The canonical layout: a disk as the bytes of a dynamic VHDX, by rule.
//!
//! A pure function from the disk's description, the list of its blocks and their content to the bytes of a file, with
//! random access and without a temporary file. The same input gives the same bytes on every platform, for ever.
//!
//! ```text
//! 0        header section   identifier, headers, region tables
//! 1 MiB    log              zero
//! 2 MiB    metadata
//! 3 MiB    BAT              T bytes
//! D        payload          slot i at D + i * B
//! ```
//!
//! [`SlotMap`] says which payload block each *slot* holds. For a disk laid out afresh the blocks ascend; a disk that
//! changed keeps its slots and appends new ones, so that the offsets of unchanged blocks never move. Blocks without a slot
//! are zero. [`StreamHead`] gives everything before the payload; [`parse_head`] reads it back.

mod parse;

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::format::{FULLY_PRESENT, LEAVE_BLOCK_ALLOCATED, TIB, ZERO, array_at};
use crate::image::{BAT_OFFSET, Head};
use crate::layout::{BatShape, BatSlot, GeometryError};
use crate::{DiskGeometry, DiskKind, Guid};

pub use parse::{ParseHeadError, parse_head};

/// In the file identifier. Part of the layout.
const CREATOR: &str = "canonical-vhdx 1";
/// Enters the derivation of FileWriteGuid.
const LAYOUT_VERSION: u32 = 1;

/// The layout of a stream: a pure function of the numbers it is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamGeometry {
    disk: DiskGeometry,
    block_bytes: u32,
    shape: BatShape,
}

impl StreamGeometry {
    /// V, L, P and B. The size is a multiple of L up to 64 TiB, sectors have 512 or 4096 bytes, and blocks a power of two from 1
    /// to 256 MiB.
    pub fn new(
        size_bytes: u64,
        logical_sector_bytes: u32,
        physical_sector_bytes: u32,
        block_bytes: u32,
    ) -> Result<Self, GeometryError> {
        let shape = BatShape::new(size_bytes, logical_sector_bytes, physical_sector_bytes, block_bytes)?;
        let disk = DiskGeometry { size_bytes, logical_sector_bytes, physical_sector_bytes };
        Ok(StreamGeometry { disk, block_bytes, shape })
    }

    /// V, L and P.
    pub fn disk(&self) -> DiskGeometry {
        self.disk
    }

    /// V: virtual size.
    pub fn size_bytes(&self) -> u64 {
        self.disk.size_bytes
    }

    /// B.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// N: payload blocks of the disk. Bytes of the last one that lie behind the end of the disk are zero.
    pub fn blocks(&self) -> u32 {
        self.shape.blocks
    }

    /// C: payload blocks per chunk.
    pub fn chunk_ratio(&self) -> u32 {
        self.shape.chunk_ratio
    }

    /// K: chunks of the disk.
    pub fn chunks(&self) -> u32 {
        self.shape.chunks
    }

    /// E: BAT entries there is room for.
    pub fn bat_entries(&self) -> u32 {
        self.shape.entries_with_bitmaps()
    }

    /// T: length of the BAT region.
    pub fn bat_len_bytes(&self) -> u64 {
        self.shape.region_len()
    }

    /// D: length of everything before the payload, a multiple of 1 MiB.
    pub fn head_len_bytes(&self) -> u64 {
        BAT_OFFSET + self.bat_len_bytes()
    }

    /// Where the payload of a slot starts in the stream.
    pub fn payload_offset_bytes(&self, slot: u32) -> u64 {
        self.head_len_bytes() + u64::from(slot) * u64::from(self.block_bytes)
    }

    /// S: length of a stream with this many slots.
    pub fn len_bytes(&self, slots: u32) -> u64 {
        self.payload_offset_bytes(slots)
    }

    /// The payload block that holds a virtual offset, and the offset in it. Panics when the offset is not in the disk.
    pub fn block_of(&self, offset_bytes: u64) -> (u32, u32) {
        assert!(offset_bytes < self.disk.size_bytes, "virtual offset {offset_bytes} is outside the disk");
        let block_bytes = u64::from(self.block_bytes);
        // Both are 32 bits: the block count is, and so is the block size.
        ((offset_bytes / block_bytes) as u32, (offset_bytes % block_bytes) as u32)
    }

    /// Where a place in the payload is on the disk: its slot and the offset in its block. `None` before the payload.
    pub fn slot_of(&self, stream_offset_bytes: u64) -> Option<(u32, u32)> {
        let in_payload = stream_offset_bytes.checked_sub(self.head_len_bytes())?;
        let block_bytes = u64::from(self.block_bytes);
        Some((u32::try_from(in_payload / block_bytes).ok()?, (in_payload % block_bytes) as u32))
    }
}

/// Which payload block each slot holds, and back: at most 8 bytes of memory for each block of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotMap {
    slot_to_block: Vec<u32>,
    block_to_slot: Vec<u32>,
}

const NO_SLOT: u32 = u32::MAX;

impl SlotMap {
    /// No slots, for a disk of `blocks` payload blocks ([`StreamGeometry::blocks`]).
    pub fn new(blocks: u32) -> Self {
        SlotMap { slot_to_block: Vec::new(), block_to_slot: vec![NO_SLOT; blocks as usize] }
    }

    /// Every block in its own slot, in order: a fixed disk.
    pub fn full(blocks: u32) -> Self {
        SlotMap { slot_to_block: (0..blocks).collect(), block_to_slot: (0..blocks).collect() }
    }

    /// Gives the next slot to a block, and tells which it is; `None` if the block has one. Panics when the disk has no
    /// such block.
    pub fn append(&mut self, block: u32) -> Option<u32> {
        let place = &mut self.block_to_slot[block as usize];
        if *place != NO_SLOT {
            return None;
        }
        *place = self.slot_to_block.len() as u32;
        self.slot_to_block.push(block);
        Some(*place)
    }

    /// Number of slots.
    pub fn len(&self) -> u32 {
        // At most one slot for each of at most 2^26 blocks.
        self.slot_to_block.len() as u32
    }

    /// Whether there are no slots: the disk is zero.
    pub fn is_empty(&self) -> bool {
        self.slot_to_block.is_empty()
    }

    /// The block in a slot.
    pub fn block(&self, slot: u32) -> Option<u32> {
        self.slot_to_block.get(slot as usize).copied()
    }

    /// The slot of a block; `None` when it has none, and so is zero.
    pub fn slot(&self, block: u32) -> Option<u32> {
        self.block_to_slot.get(block as usize).copied().filter(|&slot| slot != NO_SLOT)
    }

    /// The blocks in the order of their slots.
    pub fn blocks(&self) -> &[u32] {
        &self.slot_to_block
    }

    /// Payload blocks of the disk, with or without a slot.
    pub fn disk_blocks(&self) -> u32 {
        self.block_to_slot.len() as u32
    }
}

/// The identities a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamIds {
    /// Tells the file from every other.
    pub file_write: Guid,
    /// Tells the content: what a child names as its parent.
    pub data_write: Guid,
    /// What the guest sees.
    pub virtual_disk: Guid,
}

/// The rule that decided which slots there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlotRule {
    /// Exactly the blocks with a nonzero byte, ascending.
    Ascending = 1,
    /// The slots of an earlier stream, then the blocks that became nonzero, ascending.
    Inherited = 2,
}

impl StreamIds {
    /// Identities that follow from the content: `content_hash` must cover everything a guest can see and nothing of the
    /// layout, so that streams of one disk with different block sizes can stand in for each other as parents.
    pub fn derive(geometry: &StreamGeometry, virtual_disk: Guid, content_hash: &[u8], rule: SlotRule) -> Self {
        let disk = geometry.disk;
        let mut input = Vec::from(disk.size_bytes.to_le_bytes());
        input.extend_from_slice(&disk.logical_sector_bytes.to_le_bytes());
        input.extend_from_slice(&disk.physical_sector_bytes.to_le_bytes());
        input.extend_from_slice(&virtual_disk.to_stored());
        input.extend_from_slice(content_hash);
        let data_write = derive_guid("vhdx-data-write", &input);
        let mut input = Vec::from(LAYOUT_VERSION.to_le_bytes());
        input.extend_from_slice(&geometry.block_bytes.to_le_bytes());
        input.extend_from_slice(&(rule as u32).to_le_bytes());
        input.extend_from_slice(&data_write.to_stored());
        StreamIds { file_write: derive_guid("vhdx-file-write", &input), data_write, virtual_disk }
    }

    /// Random ones, for a file that need not be the same when it is made again.
    pub fn random(virtual_disk: Guid) -> Self {
        StreamIds { file_write: Guid::random(), data_write: Guid::random(), virtual_disk }
    }
}

/// The first 16 bytes of SHA-256(label, a zero byte, input), with the marks of a version 8 UUID.
pub fn derive_guid(label: &str, input: &[u8]) -> Guid {
    let hash = Sha256::new().chain_update(label).chain_update([0]).chain_update(input).finalize();
    let mut bytes: [u8; 16] = array_at(&hash, 0);
    bytes[7] = bytes[7] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Guid::from_stored(bytes)
}

/// The payload block size for a disk that is cut into segments: the segment size, at least 2 MiB, and 32 MiB for disks
/// above 16 TiB. A segment is a power of two up to 32 MiB.
pub fn block_bytes_for(size_bytes: u64, segment_bytes: u32) -> u32 {
    if size_bytes > 16 * TIB { 32 << 20 } else { segment_bytes.max(2 << 20) }
}

/// Everything about a stream but its payload.
#[derive(Debug, Clone)]
pub struct StreamHead {
    geometry: StreamGeometry,
    ids: StreamIds,
    kind: DiskKind,
    slots: Arc<SlotMap>,
    /// What is not zero before the BAT, by offset.
    pieces: Arc<Vec<(u64, Vec<u8>)>>,
}

impl StreamHead {
    /// A dynamic disk.
    ///
    /// Panics when the slot map is of a disk with another number of blocks.
    pub fn new(geometry: StreamGeometry, ids: StreamIds, slots: Arc<SlotMap>) -> Self {
        Self::of_kind(DiskKind::Dynamic, geometry, ids, slots)
    }

    /// A fixed disk: all blocks are there, in order.
    pub fn fixed(geometry: StreamGeometry, ids: StreamIds) -> Self {
        let slots = Arc::new(SlotMap::full(geometry.blocks()));
        Self::of_kind(DiskKind::Fixed, geometry, ids, slots)
    }

    fn of_kind(kind: DiskKind, geometry: StreamGeometry, ids: StreamIds, slots: Arc<SlotMap>) -> Self {
        assert_eq!(slots.disk_blocks(), geometry.blocks(), "a slot map of another disk");
        let head = Head {
            creator: CREATOR,
            file_write_guid: ids.file_write,
            data_write_guid: ids.data_write,
            virtual_disk_id: ids.virtual_disk,
            geometry: geometry.disk,
            block_bytes: geometry.block_bytes,
            flags: if kind == DiskKind::Fixed { LEAVE_BLOCK_ALLOCATED } else { 0 },
            bat_len: geometry.bat_len_bytes(),
            locator: None,
            more_items: &[],
        };
        let pieces = head.pieces().expect("five small items fit");
        StreamHead { geometry, ids, kind, slots, pieces: Arc::new(pieces) }
    }

    /// The layout.
    pub fn geometry(&self) -> &StreamGeometry {
        &self.geometry
    }

    /// The identities.
    pub fn ids(&self) -> &StreamIds {
        &self.ids
    }

    /// Dynamic or fixed.
    pub fn kind(&self) -> DiskKind {
        self.kind
    }

    /// The slots.
    pub fn slots(&self) -> &Arc<SlotMap> {
        &self.slots
    }

    /// S: length of the whole stream.
    pub fn len_bytes(&self) -> u64 {
        self.geometry.len_bytes(self.slots.len())
    }

    /// D: length of what comes before the payload.
    pub fn head_len_bytes(&self) -> u64 {
        self.geometry.head_len_bytes()
    }

    /// Where a virtual offset lies: the slot of its block (`None`: the block is zero), and the offset in the block. Panics
    /// when the offset is not in the disk.
    pub fn locate(&self, offset_bytes: u64) -> (Option<u32>, u32) {
        let (block, within) = self.geometry.block_of(offset_bytes);
        (self.slots.slot(block), within)
    }

    /// Bytes of the stream before the payload. Panics when the range reaches behind D.
    pub fn read_head_at(&self, buf: &mut [u8], offset_bytes: u64) {
        let end = offset_bytes.checked_add(buf.len() as u64).filter(|&end| end <= self.head_len_bytes());
        let end = end.expect("a range before the payload");
        buf.fill(0);
        for (at, bytes) in self.pieces.iter() {
            let from = offset_bytes.max(*at);
            let to = end.min(at + bytes.len() as u64);
            if from < to {
                let target = &mut buf[(from - offset_bytes) as usize..(to - offset_bytes) as usize];
                target.copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]);
            }
        }
        let mut at = offset_bytes.max(BAT_OFFSET);
        while at < end {
            // Below E, which is 32 bits, or in the padding behind it.
            let entry = ((at - BAT_OFFSET) / 8) as u32;
            let within = ((at - BAT_OFFSET) % 8) as usize;
            let len = (8 - within).min((end - at) as usize);
            let stored = self.bat_entry(entry).to_le_bytes();
            buf[(at - offset_bytes) as usize..][..len].copy_from_slice(&stored[within..within + len]);
            at += len as u64;
        }
    }

    fn bat_entry(&self, entry: u32) -> u64 {
        match self.geometry.shape.slot(entry) {
            Some(BatSlot::Payload(block)) => match self.slots.slot(block) {
                Some(slot) => self.geometry.payload_offset_bytes(slot) | u64::from(FULLY_PRESENT),
                // Not "not present": only this guarantees zeroes by the specification.
                None => ZERO.into(),
            },
            Some(BatSlot::Bitmap(_)) | None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::ReadAt;
    use crate::format::{HEADER_OFFSETS, MIB, REGION_TABLE_OFFSETS, checksum, u64_at};

    const V: u64 = 127 << 30;

    fn ids() -> StreamIds {
        StreamIds {
            file_write: "11111111-2222-4333-8444-555555555555".parse().unwrap(),
            data_write: "66666666-7777-4888-9999-AAAAAAAAAAAA".parse().unwrap(),
            virtual_disk: "BBBBBBBB-CCCC-4DDD-8EEE-FFFFFFFFFFFF".parse().unwrap(),
        }
    }

    fn head(block_bytes: u32, blocks: &[u32]) -> StreamHead {
        let geometry = StreamGeometry::new(V, 512, 4096, block_bytes).unwrap();
        let mut slots = SlotMap::new(geometry.blocks());
        for &block in blocks {
            slots.append(block).unwrap();
        }
        StreamHead::new(geometry, ids(), Arc::new(slots))
    }

    fn bytes(head: &StreamHead, start: u64, end: u64) -> Vec<u8> {
        let mut bytes = vec![0xaa; (end - start) as usize];
        head.read_head_at(&mut bytes, start);
        bytes
    }

    fn sha256(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
    }

    /// A stream whose payload is all zero.
    struct Stream(StreamHead, Vec<(u64, u8)>);

    impl ReadAt for Stream {
        fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
            self.0.read_head_at(buf, offset_bytes);
            for &(at, value) in &self.1 {
                if (offset_bytes..offset_bytes + buf.len() as u64).contains(&at) {
                    buf[(at - offset_bytes) as usize] ^= value;
                }
            }
            Ok(())
        }

        fn len_bytes(&self) -> io::Result<u64> {
            Ok(self.0.len_bytes())
        }
    }

    #[test]
    fn golden_values_of_32_mib_blocks() {
        let head = head(32 << 20, &[0, 1, 127, 128, 4063]);
        let g = *head.geometry();
        assert_eq!((g.blocks(), g.chunk_ratio(), g.chunks(), g.bat_entries()), (4064, 128, 32, 4128));
        assert_eq!((g.bat_len_bytes(), g.head_len_bytes(), head.len_bytes()), (MIB, 4 * MIB, 171_966_464));
        for (at, value) in [
            (0x300000, 0x400006),
            (0x300008, 0x2400006),
            (0x300010, 2),
            (0x3003F8, 0x4400006),
            (0x300400, 0),
            (0x300408, 0x6400006),
            (0x307FF0, 0x8400006),
            (0x307FF8, 0u64),
        ] {
            assert_eq!(u64_at(&bytes(&head, at, at + 8), 0), value, "BAT entry at {at:#x}");
        }
        check_golden(
            &head,
            0xC66B8CAE,
            [
                "cc0beabacbdc3e7703718b95447b716752f271a5fe024df6e1bd28c072fd92a5",
                "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58",
                "aa5a1ce12c2b7d7483a0ac2abd169a47c0be5b8ceb3b1834f35a8ff6c6a86226",
                "64e79d31c453f5045e3996506417e9883033f9bbe7d5c2e774d1ce11df0e9eca",
            ],
        );
    }

    #[test]
    fn golden_values_of_1_mib_blocks() {
        let head = head(1 << 20, &[0, 4095, 4096, 130047]);
        let g = *head.geometry();
        assert_eq!((g.blocks(), g.chunk_ratio(), g.chunks(), g.bat_entries()), (130_048, 4096, 32, 131_104));
        assert_eq!((g.bat_len_bytes(), g.head_len_bytes(), head.len_bytes()), (2 * MIB, 5 * MIB, 9_437_184));
        for (at, value) in
            [(0x300000, 0x500006), (0x307FF8, 0x600006), (0x308000, 0), (0x308008, 0x700006), (0x3FE0F0, 0x800006u64)]
        {
            assert_eq!(u64_at(&bytes(&head, at, at + 8), 0), value, "BAT entry at {at:#x}");
        }
        check_golden(
            &head,
            0xC993EE7A,
            [
                "7407fedd84140ad80f74d20bb3ac4415a61f0ead5886fddb3e9f222b1ff9cbf7",
                "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58",
                "780f9a3c8ad2f1c848143cbb5e9b084b9266496ff3976260c202e369e1abdfbd",
                "457beba17c015dbecdff9ffac384b3c60d414692b82b6160494a0ffa7939d29b",
            ],
        );
    }

    fn check_golden(head: &StreamHead, region_table: u32, hashes: [&str; 4]) {
        for (at, crc) in HEADER_OFFSETS.into_iter().zip([0xF0B26627, 0x7257B44F]) {
            assert_eq!(checksum(&bytes(head, at, at + 4096)), crc, "header at {at:#x}");
        }
        for at in REGION_TABLE_OFFSETS {
            assert_eq!(checksum(&bytes(head, at, at + 65536)), region_table, "region table at {at:#x}");
        }
        let borders = [0, MIB, 2 * MIB, 3 * MIB, head.head_len_bytes()];
        for (border, hash) in borders.windows(2).zip(hashes) {
            assert_eq!(sha256(&bytes(head, border[0], border[1])), hash, "{border:?}");
        }
    }

    #[test]
    fn more_geometry() {
        for (size, logical, block_mib, [n, e, t, d]) in [
            (64 * TIB, 512, 32, [2_097_152, 2_113_536, 17, 20]),
            (64 * TIB, 512, 1, [67_108_864, 67_125_248, 513, 516]),
            (V, 4096, 32, [4064, 4100, 1, 4]),
            (V, 4096, 1, [130_048, 131_076, 2, 5u64]),
        ] {
            let g = StreamGeometry::new(size, logical, 4096, block_mib << 20).unwrap();
            let found = [g.blocks().into(), g.bat_entries().into(), g.bat_len_bytes() / MIB, g.head_len_bytes() / MIB];
            assert_eq!(found, [n, e, t, d], "{size} {logical} {block_mib}");
        }
        let g = StreamGeometry::new(64 * TIB, 512, 4096, 256 << 20).unwrap();
        assert_eq!((g.bat_len_bytes(), g.head_len_bytes()), (3 * MIB, 6 * MIB));
    }

    #[test]
    fn any_range_equals_the_whole() {
        let head = head(1 << 20, &[7, 0, 130047]);
        let whole = bytes(&head, 0, head.head_len_bytes());
        let mut seed = 1u64;
        for _ in 0..2000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let start = (seed >> 20) % head.head_len_bytes();
            let end = (start + (seed >> 50)).min(head.head_len_bytes());
            assert_eq!(bytes(&head, start, end), whole[start as usize..end as usize], "{start}..{end}");
        }
    }

    #[test]
    fn a_head_is_read_back_and_nothing_else_passes() {
        let dynamic = head(2 << 20, &[5, 3, 65_023, 2048, 2047]);
        let parsed = parse_head(&Stream(dynamic.clone(), Vec::new())).unwrap();
        assert_eq!((parsed.slots(), parsed.ids()), (dynamic.slots(), dynamic.ids()));
        assert_eq!((parsed.geometry(), parsed.kind()), (dynamic.geometry(), DiskKind::Dynamic));
        assert_eq!(parsed.locate(3 * (2 << 20) + 9), (Some(1), 9));
        assert_eq!(parsed.locate(0), (None, 0));

        let places = [0, 8, 519, 0xffff, 65536 + 80, 131072, 196608 + 100, 2 * MIB - 1, 2 * MIB + 300, 3 * MIB - 1];
        let bat = [3 * MIB, 3 * MIB + 3 * 8 + 3, 3 * MIB + 2048 * 8, 4 * MIB - 1];
        for at in places.into_iter().chain(bat) {
            for bit in [1, 4, 128] {
                let stream = Stream(dynamic.clone(), vec![(at, bit)]);
                assert!(parse_head(&stream).is_err(), "bit {bit} at {at:#x}");
            }
        }
        let fixed = StreamHead::fixed(*dynamic.geometry(), ids());
        let parsed = parse_head(&Stream(fixed.clone(), Vec::new())).unwrap();
        assert_eq!((parsed.kind(), parsed.slots()), (DiskKind::Fixed, fixed.slots()));
    }

    #[test]
    fn an_empty_stream_ends_with_its_head() {
        let head = head(32 << 20, &[]);
        assert_eq!(head.len_bytes(), head.head_len_bytes());
        assert!(parse_head(&Stream(head, Vec::new())).unwrap().slots().is_empty());
    }

    #[test]
    fn derived_guids_are_marked_and_depend_on_everything() {
        let guid = derive_guid("vhdx-disk-id", b"x");
        assert_eq!((guid.to_stored()[7] >> 4, guid.to_stored()[8] >> 6), (8, 2));
        assert_ne!(guid, derive_guid("vhdx-disk-i", b"dx"));
        let geometry = StreamGeometry::new(V, 512, 4096, 2 << 20).unwrap();
        let other_blocks = StreamGeometry::new(V, 512, 4096, 4 << 20).unwrap();
        let id = Guid::random();
        let first = StreamIds::derive(&geometry, id, &[1; 32], SlotRule::Ascending);
        let second = StreamIds::derive(&other_blocks, id, &[1; 32], SlotRule::Ascending);
        assert_eq!(first.data_write, second.data_write, "exports with other blocks are interchangeable parents");
        assert_ne!(first.file_write, second.file_write);
        assert_ne!(first.data_write, StreamIds::derive(&geometry, id, &[2; 32], SlotRule::Ascending).data_write);
    }

    #[test]
    fn block_sizes_for_segments() {
        for (size, segment, block) in [
            (TIB, 1 << 18, 2 << 20),
            (TIB, 4 << 20, 4 << 20),
            (16 * TIB, 1 << 20, 2 << 20),
            (17 * TIB, 4 << 20, 32 << 20),
        ] {
            assert_eq!(block_bytes_for(size, segment), block, "{size} {segment}");
        }
    }
}

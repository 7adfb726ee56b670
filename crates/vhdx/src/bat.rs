//! The block allocation table in memory (MS-VHDX 2.5).

use std::ops::Range;

use crate::format::{
    BITMAP_PRESENT, FULLY_PRESENT, MAX_BAT_BYTES, MIB, NOT_PRESENT, PARTIALLY_PRESENT, UNDEFINED, UNMAPPED, ZERO,
    u64_at,
};
use crate::layout::{BatShape, BatSlot};
use crate::metadata::DiskParameters;
use crate::space::SpaceMap;
use crate::{OpenError, ReadAt};

/// State and place of every block, four bytes each.
pub(crate) struct Bat {
    /// State in bits 0-2, file offset in MiB above. Offsets without a meaning are dropped when read.
    payload: Vec<u32>,
    /// File offset in MiB of each sector bitmap block; 0 when there is none.
    bitmaps: Vec<u32>,
}

/// A payload block's state and place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockEntry {
    pub state: u8,
    /// 0 when the block has no space in the file.
    pub offset_mib: u32,
}

impl BlockEntry {
    pub(crate) fn offset_bytes(self) -> u64 {
        u64::from(self.offset_mib) * MIB
    }
}

impl Bat {
    pub(crate) fn empty(shape: &BatShape) -> Self {
        Bat { payload: vec![0; shape.blocks as usize], bitmaps: vec![0; shape.chunks as usize] }
    }

    pub(crate) fn block(&self, block: u32) -> BlockEntry {
        let packed = self.payload[block as usize];
        BlockEntry { state: (packed & 7) as u8, offset_mib: packed >> 3 }
    }

    pub(crate) fn set_block(&mut self, block: u32, entry: BlockEntry) {
        assert!(entry.state < 8 && entry.offset_mib < 1 << 29);
        self.payload[block as usize] = entry.offset_mib << 3 | u32::from(entry.state);
    }

    /// Offset in MiB of a chunk's sector bitmap block, if it has one.
    pub(crate) fn bitmap(&self, chunk: u32) -> Option<u32> {
        Some(self.bitmaps[chunk as usize]).filter(|&offset| offset != 0)
    }

    pub(crate) fn set_bitmap(&mut self, chunk: u32, offset_mib: u32) {
        self.bitmaps[chunk as usize] = offset_mib;
    }

    /// Blocks that have space in the file, anchors included.
    pub(crate) fn allocated_blocks(&self) -> u32 {
        self.payload.iter().filter(|&&packed| packed >> 3 != 0).count() as u32
    }

    /// As many blocks and chunks as `shape` has; new ones are not present.
    pub(crate) fn resize(&mut self, shape: &BatShape) {
        self.payload.resize(shape.blocks as usize, 0);
        self.bitmaps.resize(shape.chunks as usize, 0);
    }

    /// An entry as it is stored; 0 for what lies behind the last block.
    pub(crate) fn stored_entry(&self, shape: &BatShape, entry: u32) -> u64 {
        match shape.slot(entry) {
            Some(BatSlot::Payload(block)) => {
                let block = self.block(block);
                block.offset_bytes() | u64::from(block.state)
            }
            Some(BatSlot::Bitmap(chunk)) => {
                self.bitmap(chunk).map_or(0, |offset| (u64::from(offset) * MIB) | u64::from(BITMAP_PRESENT))
            }
            None => 0,
        }
    }

    /// Reads and checks every entry in one pass, marking in `space` what the blocks take.
    pub(crate) fn read(
        file: &dyn ReadAt,
        region: Range<u64>,
        disk: &DiskParameters,
        space: &mut SpaceMap,
    ) -> Result<Self, OpenError> {
        let shape = disk.shape;
        let entries = if disk.has_parent { shape.entries_with_bitmaps() } else { shape.entries_without_bitmaps() };
        let needed = 8 * u64::from(entries);
        if needed > region.end - region.start || needed > MAX_BAT_BYTES {
            let problem = format!("{} bytes, {needed} needed", region.end - region.start);
            return Err(OpenError::corrupt("BAT region", region.start, problem));
        }
        let mut bat = Bat::empty(&shape);
        let mut piece = vec![0; needed.min(MIB) as usize];
        for piece_start in (0..needed).step_by(MIB as usize) {
            let at = region.start + piece_start;
            let piece = &mut piece[..(needed - piece_start).min(MIB) as usize];
            file.read_exact_at(piece, at).map_err(OpenError::read("BAT", at))?;
            for (index, bytes) in piece.chunks_exact(8).enumerate() {
                // Below `entries`, which is 32 bits.
                let entry = (piece_start / 8) as u32 + index as u32;
                bat.load(entry, u64_at(bytes, 0), disk, space)
                    .map_err(|problem| OpenError::corrupt("BAT entry", at + 8 * index as u64, problem))?;
            }
        }
        bat.check_bitmaps_exist(&shape, region.start)?;
        Ok(bat)
    }

    fn load(&mut self, entry: u32, value: u64, disk: &DiskParameters, space: &mut SpaceMap) -> Result<(), String> {
        let state = (value & 7) as u8;
        let offset = value & !(MIB - 1);
        if value & (MIB - 1) & !7 != 0 {
            return Err(format!("entry {entry}: reserved bits are set in {value:#x}"));
        }
        let block_bytes = u64::from(disk.block_bytes);
        match disk.shape.slot(entry) {
            Some(BatSlot::Payload(block)) => {
                let fail = |problem: String| format!("payload block {block}: {problem}");
                let has_space = match state {
                    NOT_PRESENT | ZERO => false,
                    // Kept space that still belongs to the block is called an anchor.
                    UNDEFINED | UNMAPPED => offset != 0,
                    FULLY_PRESENT => true,
                    PARTIALLY_PRESENT if disk.has_parent => true,
                    PARTIALLY_PRESENT => return Err(fail("partially present in a file without a parent".into())),
                    _ => return Err(fail(format!("state {state} is reserved"))),
                };
                let mut stored = BlockEntry { state, offset_mib: 0 };
                if has_space {
                    // Some writers end the file where the disk ends inside the last block.
                    let needed = (disk.geometry.size_bytes - u64::from(block) * block_bytes).min(block_bytes);
                    stored.offset_mib = space.take(offset, block_bytes, needed).map_err(fail)?;
                }
                self.set_block(block, stored);
            }
            Some(BatSlot::Bitmap(chunk)) => match state {
                0 => {}
                BITMAP_PRESENT => {
                    let offset =
                        space.take(offset, MIB, MIB).map_err(|p| format!("sector bitmap block {chunk}: {p}"))?;
                    self.set_bitmap(chunk, offset);
                }
                _ => return Err(format!("sector bitmap block {chunk}: state {state} is reserved")),
            },
            None => {}
        }
        Ok(())
    }

    fn check_bitmaps_exist(&self, shape: &BatShape, region_start: u64) -> Result<(), OpenError> {
        for (block, packed) in (0..).zip(&self.payload) {
            if packed & 7 == u32::from(PARTIALLY_PRESENT) && self.bitmap(block / shape.chunk_ratio).is_none() {
                let at = region_start + 8 * u64::from(shape.payload_entry(block));
                let problem = format!("payload block {block}: partially present without a sector bitmap block");
                return Err(OpenError::corrupt("BAT entry", at, problem));
            }
        }
        Ok(())
    }
}

//! Which BAT entry belongs to which block (MS-VHDX 2.5).

use crate::format::{MAX_DISK_BYTES, MIB};

/// Numbers do not describe a disk that a VHDX can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} of {value} is not possible for a VHDX")]
pub struct GeometryError {
    /// Which number.
    pub field: &'static str,
    /// Its value.
    pub value: u64,
}

/// The shape of a BAT: how many payload blocks there are, and how sector bitmap entries lie between them.
///
/// A sector bitmap block describes `2^23` sectors, one *chunk*; its entry follows the entries of the chunk's
/// payload blocks, also in files that have no bitmaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BatShape {
    /// N: at most 2^26.
    pub blocks: u32,
    /// C: payload blocks per chunk, 16 to 32768.
    pub chunk_ratio: u32,
    /// K.
    pub chunks: u32,
}

/// What a BAT entry is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BatSlot {
    Payload(u32),
    Bitmap(u32),
}

impl BatShape {
    /// Checks the numbers before anything is computed from them.
    pub(crate) fn new(size: u64, logical: u32, physical: u32, block: u32) -> Result<Self, GeometryError> {
        let bad = |field, value| Err(GeometryError { field, value });
        if !matches!(logical, 512 | 4096) {
            return bad("logical sector size", logical.into());
        }
        if !matches!(physical, 512 | 4096) {
            return bad("physical sector size", physical.into());
        }
        if !block.is_power_of_two() || !(MIB..=256 * MIB).contains(&block.into()) {
            return bad("block size", block.into());
        }
        if size == 0 || size > MAX_DISK_BYTES || !size.is_multiple_of(logical.into()) {
            return bad("virtual disk size", size);
        }
        // At most 2^46 / 2^20 blocks and at most 2^35 / 2^20 blocks in a chunk: both fit.
        let blocks = size.div_ceil(block.into()) as u32;
        let chunk_ratio = ((u64::from(logical) << 23) / u64::from(block)) as u32;
        Ok(BatShape { blocks, chunk_ratio, chunks: blocks.div_ceil(chunk_ratio) })
    }

    pub(crate) fn payload_entry(&self, block: u32) -> u32 {
        block + block / self.chunk_ratio
    }

    pub(crate) fn bitmap_entry(&self, chunk: u32) -> u32 {
        chunk * (self.chunk_ratio + 1) + self.chunk_ratio
    }

    /// `None` for padding after the last payload block.
    pub(crate) fn slot(&self, entry: u32) -> Option<BatSlot> {
        let chunk = entry / (self.chunk_ratio + 1);
        if entry % (self.chunk_ratio + 1) == self.chunk_ratio {
            return (chunk < self.chunks).then_some(BatSlot::Bitmap(chunk));
        }
        let block = entry - chunk;
        (block < self.blocks).then_some(BatSlot::Payload(block))
    }

    /// Entries that a fixed or dynamic file needs.
    pub(crate) fn entries_without_bitmaps(&self) -> u32 {
        self.blocks + (self.blocks - 1) / self.chunk_ratio
    }

    /// Entries that a differencing file needs: the last bitmap's is at its full position, as Windows has it. The
    /// formula printed in MS-VHDX 2.5 gives less.
    pub(crate) fn entries_with_bitmaps(&self) -> u32 {
        self.chunks * (self.chunk_ratio + 1)
    }

    /// Length of a BAT region with room for every bitmap entry, a multiple of 1 MiB.
    pub(crate) fn region_len(&self) -> u64 {
        (8 * u64::from(self.entries_with_bitmaps())).next_multiple_of(MIB)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn every_chunk_ratio_round_trips_at_chunk_borders() {
        for logical in [512, 4096] {
            for block in (0..=8).map(|shift| (MIB as u32) << shift) {
                let size = (u64::from(logical) << 23) * 2 + u64::from(block) + u64::from(logical);
                let shape = BatShape::new(size, logical, 512, block).unwrap();
                let c = shape.chunk_ratio;
                assert_eq!((shape.blocks, shape.chunks), (2 * c + 2, 3), "blocks of {block}");
                for b in [0, 1, c - 1, c, c + 1, 2 * c - 1, 2 * c, 2 * c + 1] {
                    assert_eq!(shape.slot(shape.payload_entry(b)), Some(BatSlot::Payload(b)), "{block} {b}");
                }
                for k in 0..3 {
                    assert_eq!(shape.slot(shape.bitmap_entry(k)), Some(BatSlot::Bitmap(k)), "{block} {k}");
                }
                assert_eq!(shape.slot(shape.payload_entry(2 * c + 1) + 1), None);
                assert_eq!(shape.slot(shape.entries_with_bitmaps()), None);
                assert_eq!(shape.entries_with_bitmaps(), shape.bitmap_entry(2) + 1);
                assert_eq!(shape.entries_without_bitmaps(), shape.payload_entry(2 * c + 1) + 1);
            }
        }
    }

    #[test]
    fn a_partial_last_chunk_has_its_bitmap_entry_at_the_full_position() {
        let shape = BatShape::new(4 * MIB, 512, 4096, 2 << 20).unwrap();
        assert_eq!((shape.blocks, shape.bitmap_entry(0)), (2, 2048));
    }

    #[test]
    fn impossible_numbers() {
        for (size, logical, physical, block) in [
            (0, 512, 512, 1 << 20),
            (513, 512, 512, 1 << 20),
            (MAX_DISK_BYTES + 512, 512, 512, 1 << 20),
            (GIB, 1024, 512, 1 << 20),
            (GIB, 512, 0, 1 << 20),
            (GIB, 512, 512, 0),
            (GIB, 512, 512, 3 << 20),
            (GIB, 512, 512, 1 << 19),
            (GIB, 512, 512, 1 << 29),
        ] {
            assert!(BatShape::new(size, logical, physical, block).is_err(), "{size} {logical} {physical} {block}");
        }
    }
}

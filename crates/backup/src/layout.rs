//! Where the segments of a disk's object lie: the canonical VHDX stream, cut by rule.
//!
//! The stream's head (identifier, headers, region tables; log; metadata; BAT) is cut into segments of its own, the BAT
//! finely, because every new payload block changes a few entries of it. The payload is cut into segments of fixed size
//! counted from the start of each payload block. So entry numbers, offsets and virtual offsets follow from each other
//! by arithmetic, and nothing has to be searched.

use std::ops::Range;

use vhdx::GeometryError;
use vhdx::stream::{StreamGeometry, block_bytes_for};

/// Version of the layout as a whole: the stream's rules and the cut. Another one means a full backup.
pub const LAYOUT_VERSION: u32 = 1;

/// The BAT is cut at this size: 8,192 entries, a few KiB once compressed.
const BAT_SEGMENT_BYTES: u64 = 64 << 10;
/// Header section, log and metadata region are one segment each (the stream aligns all to 1 MiB).
const HEAD_SEGMENT_BYTES: u64 = 1 << 20;
/// Segments in front of the BAT.
const HEAD_SEGMENTS_BEFORE_BAT: u64 = 3;

/// The cut of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    geometry: StreamGeometry,
    segment_bytes: u32,
}

/// A segment size that the layout does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not a power of two from 256 KiB to 4 MiB.
    #[error("a segment size of {0} bytes is not a power of two from 256 KiB to 4 MiB")]
    SegmentSize(u32),
    /// The disk has an impossible size.
    #[error("lay out the disk as VHDX")]
    Geometry(#[from] GeometryError),
}

impl Layout {
    /// The default segment size: 1 MiB, and 4 MiB above 4 TiB, where stock needs 0.4 GB of memory per million entries.
    pub fn default_segment_bytes(size_bytes: u64) -> u32 {
        if size_bytes > 4 << 40 { 4 << 20 } else { 1 << 20 }
    }

    /// Lays out a disk.
    pub fn new(disk: vhdx::DiskGeometry, segment_bytes: u32) -> Result<Self, LayoutError> {
        if !segment_bytes.is_power_of_two() || !(256 << 10..=4 << 20).contains(&segment_bytes) {
            return Err(LayoutError::SegmentSize(segment_bytes));
        }
        let geometry = StreamGeometry::new(
            disk.size_bytes,
            disk.logical_sector_bytes,
            disk.physical_sector_bytes,
            block_bytes_for(disk.size_bytes, segment_bytes),
        )?;
        Ok(Self { geometry, segment_bytes })
    }

    /// The stream's own numbers.
    pub fn geometry(&self) -> &StreamGeometry {
        &self.geometry
    }

    /// Length of a payload segment.
    pub fn segment_bytes(&self) -> u32 {
        self.segment_bytes
    }

    /// Payload segments of a payload block.
    pub fn segments_per_block(&self) -> u32 {
        self.geometry.block_bytes() / self.segment_bytes
    }

    /// Segments in front of the payload.
    pub fn head_segments(&self) -> u64 {
        HEAD_SEGMENTS_BEFORE_BAT + self.geometry.bat_len_bytes() / BAT_SEGMENT_BYTES
    }

    /// Segments of the whole stream with this many slots.
    pub fn segments(&self, slots: u32) -> u64 {
        self.head_segments() + u64::from(slots) * u64::from(self.segments_per_block())
    }

    /// Bytes of the stream that a segment covers.
    pub fn segment_range(&self, number: u64) -> Range<u64> {
        let head = self.head_segments();
        let (start, len) = if number < HEAD_SEGMENTS_BEFORE_BAT {
            (number * HEAD_SEGMENT_BYTES, HEAD_SEGMENT_BYTES)
        } else if number < head {
            let bat = HEAD_SEGMENTS_BEFORE_BAT * HEAD_SEGMENT_BYTES;
            (bat + (number - HEAD_SEGMENTS_BEFORE_BAT) * BAT_SEGMENT_BYTES, BAT_SEGMENT_BYTES)
        } else {
            let len = u64::from(self.segment_bytes);
            (self.geometry.head_len_bytes() + (number - head) * len, len)
        };
        start..start + len
    }

    /// Number of the segment that covers an offset of the stream; the inverse of [`Self::segment_range`].
    pub fn segment_at(&self, offset_bytes: u64) -> u64 {
        let (bat, payload) = (HEAD_SEGMENTS_BEFORE_BAT * HEAD_SEGMENT_BYTES, self.geometry.head_len_bytes());
        if offset_bytes < bat {
            offset_bytes / HEAD_SEGMENT_BYTES
        } else if offset_bytes < payload {
            HEAD_SEGMENTS_BEFORE_BAT + (offset_bytes - bat) / BAT_SEGMENT_BYTES
        } else {
            self.head_segments() + (offset_bytes - payload) / u64::from(self.segment_bytes)
        }
    }

    /// Number of the segment that holds part `part` of the block in `slot`.
    pub fn payload_segment(&self, slot: u32, part: u32) -> u64 {
        debug_assert!(part < self.segments_per_block());
        self.head_segments() + u64::from(slot) * u64::from(self.segments_per_block()) + u64::from(part)
    }

    /// The slot and the part of its block that a segment holds; `None` for the head.
    pub fn slot_of(&self, number: u64) -> Option<(u32, u32)> {
        let payload = number.checked_sub(self.head_segments())?;
        let per_block = u64::from(self.segments_per_block());
        Some(((payload / per_block) as u32, (payload % per_block) as u32))
    }

    /// Virtual offset of a part of a block; it may lie behind the end of the disk in the last block.
    pub fn virtual_offset(&self, block: u32, part: u32) -> u64 {
        u64::from(block) * u64::from(self.geometry.block_bytes()) + u64::from(part) * u64::from(self.segment_bytes)
    }

    /// Segments of the disk in virtual order, absent blocks included.
    pub fn virtual_segments(&self) -> u64 {
        u64::from(self.geometry.blocks()) * u64::from(self.segments_per_block())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size_bytes: u64, segment_bytes: u32) -> Layout {
        let disk = vhdx::DiskGeometry { size_bytes, logical_sector_bytes: 512, physical_sector_bytes: 4096 };
        Layout::new(disk, segment_bytes).unwrap()
    }

    #[test]
    fn segments_cover_the_stream_without_gap() {
        for (size, segment, slots) in [
            (1 << 30, 1 << 20, 5),
            (127 << 30, 256 << 10, 3),
            (5 << 40, 4 << 20, 2),
            (17 << 40, 4 << 20, 1),
            (512, 1 << 20, 0),
        ] {
            let layout = layout(size, segment);
            let mut end = 0;
            for number in 0..layout.segments(slots) {
                let range = layout.segment_range(number);
                assert_eq!((layout.segment_at(range.start), layout.segment_at(range.end - 1)), (number, number));
                assert_eq!(range.start, end, "size {size}, segment {number}");
                end = range.end;
                if let Some((slot, part)) = layout.slot_of(number) {
                    assert_eq!(layout.payload_segment(slot, part), number);
                    let payload = layout.geometry().payload_offset_bytes(slot) + u64::from(part * segment);
                    assert_eq!(range.start, payload, "size {size}, segment {number}");
                }
            }
            assert_eq!(end, layout.geometry().len_bytes(slots), "size {size}");
        }
    }

    #[test]
    fn odd_segment_sizes_are_refused() {
        let disk = vhdx::DiskGeometry { size_bytes: 1 << 30, logical_sector_bytes: 512, physical_sector_bytes: 4096 };
        for size in [0, 1, 4096, 128 << 10, 3 << 20, 8 << 20] {
            assert_eq!(Layout::new(disk, size), Err(LayoutError::SegmentSize(size)));
        }
    }
}

//! What an incremental may upload at most: the promise "cost follows change", as a number that tests hold runs to.

use kopia_repo::grouped::ENTRIES_PER_PIECE;

use crate::point::{PointDescription, ReadMode};

/// Nonce and tag of a stored content.
const SEALED: u64 = 28;
/// A piece of the index stream: 1,024 entries of at most 96 bytes of text (offset and length of up to 15 and 8 digits,
/// a content name of 32), compressed or not.
const PIECE: u64 = ENTRIES_PER_PIECE as u64 * 96 + SEALED;
/// A second-level entry has the form of an entry.
const SECOND_LEVEL_ENTRY: u64 = 96;
/// A head segment of the BAT.
const BAT_SEGMENT: u64 = (64 << 10) + SEALED;
/// Header section and metadata region: 1 MiB with less than 4 KiB that is not zero, as long as contents are compressed.
const HEAD_SEGMENT: u64 = 4 << 10;
/// `point.json`, three or four directories and the snapshot manifest, for each disk and once.
const TREE: u64 = 16 << 10;
const TREE_PER_DISK: u64 = 8 << 10;
/// A pack's preamble, padding, postamble, and its local index beside the entries.
const PACK: u64 = 8 << 10;
/// An entry in the local index of its pack and in an index blob.
const INDEX_ENTRY: u64 = 2 * 64;
/// Per flush: at most one data and one metadata pack that are not full, an index blob, a session marker.
const FLUSH: u64 = 2 * PACK + (4 << 10);
/// The contents are flushed once, the tree with its manifest once.
const FLUSHES: u64 = 2;

/// What a run on one VM may put to the storage at most, in bytes, when every disk was read incrementally and contents
/// are compressed: a function of what changed and of the length of the definition files, and of the disks' size only
/// through the second level of the index stream (one entry of 96 bytes for every 1,024 segments).
pub fn upload_bound(description: &PointDescription, definition_bytes: u64) -> u64 {
    let mut contents = 16;
    let mut bytes = TREE + definition_bytes + 8 * SEALED;
    for disk in &description.disks {
        debug_assert!(matches!(disk.read, ReadMode::Incremental { .. }), "a full costs what the disk holds");
        let segment = u64::from(disk.segment_bytes);
        let changed = disk.changed_bytes.div_ceil(segment);
        let segments = disk.file_bytes.div_ceil(segment.min(1 << 20));
        let pieces = segments.div_ceil(ENTRIES_PER_PIECE as u64);
        // Each changed segment may lie in a piece and, as a new block, in a BAT segment of its own; besides, the piece
        // of the head, and the last one, whose end moves.
        let touched_pieces = (changed + 2).min(pieces + 1);
        // One zero segment, for blocks that became zero or are new and not full.
        bytes += changed * (segment + SEALED) + (1 << 12);
        bytes += 2 * HEAD_SEGMENT + changed * BAT_SEGMENT;
        bytes += touched_pieces * PIECE + (pieces + 1) * SECOND_LEVEL_ENTRY + TREE_PER_DISK;
        contents += 2 * changed + touched_pieces + 8;
    }
    let full_packs = bytes / (10 << 20) + 1;
    bytes + contents * INDEX_ENTRY + full_packs * PACK + FLUSHES * FLUSH
}

//! Reading a canonical stream's head back.

use std::io;
use std::sync::Arc;

use super::{NO_SLOT, SlotMap, StreamGeometry, StreamHead, StreamIds};
use crate::format::{
    HEADER_OFFSETS, Header, ITEM_FILE_PARAMETERS, LEAVE_BLOCK_ALLOCATED, MIB, PAGE, guid_at, u32_at, u64_at,
};
use crate::image::{BAT_OFFSET, METADATA_OFFSET};
use crate::layout::BatSlot;
use crate::{DiskKind, Guid, ReadAt};

/// Reads a stream's head back. Strict: the length, and every byte before the payload, must be what [`StreamHead`] makes.
pub fn parse_head(stream: &(impl ReadAt + ?Sized)) -> Result<StreamHead, ParseHeadError> {
    let mut header = [0; PAGE];
    read(stream, &mut header, HEADER_OFFSETS[0])?;
    let header = Header::decode(&header).ok_or(not_canonical("header", HEADER_OFFSETS[0]))?;
    let (geometry, kind, virtual_disk) = parse_metadata(stream)?;

    let payload_bytes = stream
        .len_bytes()
        .map_err(|source| ParseHeadError::Read { offset_bytes: 0, len_bytes: 0, source })?
        .checked_sub(geometry.head_len_bytes())
        .filter(|len| len.is_multiple_of(geometry.block_bytes.into()))
        .ok_or(not_canonical("stream length", geometry.head_len_bytes()))?;
    let slots = u32::try_from(payload_bytes / u64::from(geometry.block_bytes)).ok();
    let slots = slots.filter(|&slots| slots <= geometry.blocks());
    let slots = slots.ok_or(not_canonical("stream length", geometry.head_len_bytes()))?;

    let slots = parse_bat(stream, &geometry, slots)?;
    let ids = StreamIds { file_write: header.file_write_guid, data_write: header.data_write_guid, virtual_disk };
    let head = StreamHead::of_kind(kind, geometry, ids, Arc::new(slots));
    if kind == DiskKind::Fixed && head.slots.blocks().iter().zip(0..).any(|(&block, slot)| block != slot) {
        return Err(not_canonical("block order of a fixed disk", BAT_OFFSET));
    }
    if kind == DiskKind::Fixed && head.slots.len() != geometry.blocks() {
        return Err(not_canonical("missing block of a fixed disk", BAT_OFFSET));
    }

    let mut found = vec![0; MIB as usize];
    let mut expected = vec![0; MIB as usize];
    for at in (0..geometry.head_len_bytes()).step_by(MIB as usize) {
        read(stream, &mut found, at)?;
        head.read_head_at(&mut expected, at);
        // Nearly always equal, and comparing all at once is much the quicker.
        if found != expected
            && let Some(index) = found.iter().zip(&expected).position(|(a, b)| a != b)
        {
            return Err(not_canonical("byte", at + index as u64));
        }
    }
    Ok(head)
}

/// The numbers, from where a canonical stream has them.
fn parse_metadata(stream: &(impl ReadAt + ?Sized)) -> Result<(StreamGeometry, DiskKind, Guid), ParseHeadError> {
    let items_at = METADATA_OFFSET + 0x10000;
    let mut table = [0; 64];
    read(stream, &mut table, METADATA_OFFSET)?;
    if guid_at(&table, 32) != ITEM_FILE_PARAMETERS {
        return Err(not_canonical("metadata table", METADATA_OFFSET));
    }
    let mut items = [0; 40];
    read(stream, &mut items, items_at)?;
    let kind = match u32_at(&items, 4) {
        0 => DiskKind::Dynamic,
        LEAVE_BLOCK_ALLOCATED => DiskKind::Fixed,
        _ => return Err(not_canonical("file parameters", items_at + 4)),
    };
    let geometry = StreamGeometry::new(u64_at(&items, 8), u32_at(&items, 16), u32_at(&items, 20), u32_at(&items, 0))
        .map_err(|_| not_canonical("disk geometry", items_at))?;
    Ok((geometry, kind, guid_at(&items, 24)))
}

/// The slots that the BAT's entries name: each of `slots` by exactly one block.
fn parse_bat(
    stream: &(impl ReadAt + ?Sized),
    geometry: &StreamGeometry,
    slots: u32,
) -> Result<SlotMap, ParseHeadError> {
    let mut map = SlotMap { slot_to_block: vec![NO_SLOT; slots as usize], block_to_slot: Vec::new() };
    let mut piece = vec![0; MIB as usize];
    for start in (0..geometry.bat_len_bytes()).step_by(MIB as usize) {
        read(stream, &mut piece, BAT_OFFSET + start)?;
        for (index, bytes) in piece.chunks_exact(8).enumerate() {
            let entry = (start / 8) as u32 + index as u32;
            let Some(BatSlot::Payload(block)) = geometry.shape.slot(entry) else { continue };
            let value = u64_at(bytes, 0);
            let wrong = || not_canonical("BAT entry", BAT_OFFSET + start + 8 * index as u64);
            let slot = match value & (MIB - 1) {
                0x6 => geometry.slot_of(value - 6).filter(|&(_, within)| within == 0).map(|(slot, _)| slot),
                0x2 if value == 2 => None,
                _ => return Err(wrong()),
            };
            if value != 2 {
                let place = slot.and_then(|slot| map.slot_to_block.get_mut(slot as usize)).ok_or_else(wrong)?;
                if std::mem::replace(place, block) != NO_SLOT {
                    return Err(wrong());
                }
            }
            map.block_to_slot.push(slot.unwrap_or(NO_SLOT));
        }
    }
    match map.slot_to_block.iter().position(|&block| block == NO_SLOT) {
        Some(slot) => Err(not_canonical("slot without a block", geometry.payload_offset_bytes(slot as u32))),
        None => Ok(map),
    }
}

fn read(stream: &(impl ReadAt + ?Sized), buf: &mut [u8], offset_bytes: u64) -> Result<(), ParseHeadError> {
    let len_bytes = buf.len() as u64;
    let failed = |source| ParseHeadError::Read { offset_bytes, len_bytes, source };
    stream.read_exact_at(buf, offset_bytes).map_err(failed)
}

fn not_canonical(what: &'static str, offset_bytes: u64) -> ParseHeadError {
    ParseHeadError::NotCanonical { what, offset_bytes }
}

/// Why bytes are not a canonical stream.
#[derive(Debug, thiserror::Error)]
pub enum ParseHeadError {
    /// Reading failed.
    #[error("read {len_bytes} bytes at stream offset {offset_bytes:#x}")]
    Read {
        /// Where.
        offset_bytes: u64,
        /// How many.
        len_bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something is not as the layout prescribes.
    #[error("not a canonical stream: {what} at stream offset {offset_bytes:#x}")]
    NotCanonical {
        /// What differs.
        what: &'static str,
        /// Where.
        offset_bytes: u64,
    },
}

//! Taking what is held out of the overlay, in batches, once it is safe somewhere else (spec block-serving C.7).

use std::ops::Range;
use std::sync::Arc;

use super::format::{RecordKind, SECTOR_BYTES};
use super::index::Place;
use super::log::Draft;
use super::{Overlay, OverlayError, Segment};

/// Longest run of zeroes in one batch.
const MAX_ZERO_SECTORS: u64 = (256 << 20) / SECTOR_BYTES;

/// What the overlay holds for sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes.
    Data,
    /// Zeroes.
    Zero,
}

/// A part of what the overlay held at one instant. Later writes do not change it.
pub struct Batch {
    sectors: Range<u64>,
    up_to: u64,
    parts: Vec<Part>,
}

struct Part {
    sectors: Range<u64>,
    place: Place,
    segment: Arc<Segment>,
}

impl Batch {
    /// The sectors it is about; between its parts there may be sectors that the overlay does not hold.
    pub fn sectors(&self) -> Range<u64> {
        self.sectors.clone()
    }

    /// Its parts, in order: sectors, and what is held for them.
    pub fn parts(&self) -> impl Iterator<Item = (Range<u64>, Content)> + '_ {
        self.parts.iter().map(|part| {
            let content = if part.place.data.is_some() { Content::Data } else { Content::Zero };
            (part.sectors.clone(), content)
        })
    }

    /// Bytes of data in it.
    pub fn data_bytes(&self) -> u64 {
        let data = self.parts().filter(|(_, content)| *content == Content::Data);
        data.map(|(sectors, _)| (sectors.end - sectors.start) * SECTOR_BYTES).sum()
    }

    /// The bytes of the part with this number, as they were at that instant.
    pub fn read(&self, part: usize) -> Result<Vec<u8>, OverlayError> {
        let Part { sectors, place, segment } = &self.parts[part];
        let mut bytes = vec![0; ((sectors.end - sectors.start) * SECTOR_BYTES) as usize];
        if let Some(data) = place.data {
            segment.read_cells(data, place.sequence, sectors.clone(), &mut bytes)?;
        }
        Ok(bytes)
    }
}

impl Overlay {
    /// What is held from a sector on, up to `max_bytes` of data; `None` when there is nothing.
    ///
    /// All of it survives a power loss already, so that what is moved elsewhere is never younger than what stays.
    pub fn batch_from(&self, sector: u64, max_bytes: u64) -> Result<Option<Batch>, OverlayError> {
        let (up_to, mut parts) = {
            let log = self.log.lock().expect("no panic while held");
            let held = self.held.read().expect("no panic while held");
            let (mut data, mut zero) = (max_bytes / SECTOR_BYTES, MAX_ZERO_SECTORS);
            let mut parts: Vec<Part> = Vec::new();
            for run in held.index.overlapping(sector..u64::MAX) {
                let left = if run.place.data.is_some() { &mut data } else { &mut zero };
                let start = run.sectors.start.max(sector);
                let sectors = start..run.sectors.end.min(start.saturating_add(*left));
                if sectors.is_empty() {
                    break;
                }
                *left -= sectors.end - sectors.start;
                let segment = held.segments.get(&run.place.segment);
                let segment = segment.expect("a segment goes after the last place in it").clone();
                let is_cut = sectors.end < run.sectors.end;
                parts.push(Part { sectors, place: run.place, segment });
                if is_cut {
                    break;
                }
            }
            (log.applied(), parts)
        };
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Ok(None) };
        let sectors = first.sectors.start..last.sectors.end;
        self.flush()?;
        parts.shrink_to_fit();
        Ok(Some(Batch { sectors, up_to, parts }))
    }

    /// Forgets a batch, except what was written since. To be called when the batch is durable where it went.
    pub fn drained(&self, batch: &Batch) -> Result<(), OverlayError> {
        self.append(Draft {
            kind: RecordKind::Drained,
            sectors: batch.sectors.clone(),
            up_to: batch.up_to,
            bytes: &[],
            copy_of: None,
        })?;
        Ok(())
    }
}

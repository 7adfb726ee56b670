//! Making the log shorter (spec block-serving C.5 rule 7).
//!
//! A header can only say from which segment on the log is needed, so the oldest segment goes first, and what is still
//! needed of it is appended again. That order has a merit of its own: a record that takes others away is never gone
//! before them.

use std::sync::Arc;

use super::format::{HEADER_BYTES, RECORD_BYTES, RecordKind};
use super::log::Draft;
use super::recovery::record_at;
use super::{Overlay, OverlayError, SECTOR_BYTES, Segment};

impl Overlay {
    /// Removes the oldest segment if the log is long and mostly dead; `false` when there is no need.
    pub fn compact(&self) -> Result<bool, OverlayError> {
        let _one = self.compacting.lock().expect("no panic while held");
        let Some((oldest, next_sequence)) = self.oldest_if_due() else { return Ok(false) };
        let mut offset = HEADER_BYTES as u64;
        for sequence in oldest.first_sequence..next_sequence {
            let record = record_at(&oldest, offset, sequence, self.device_sectors())?;
            if matches!(record.kind, RecordKind::Data | RecordKind::Zero) {
                self.copy_what_is_live(&oldest, record.range(), sequence)?;
            }
            offset += (RECORD_BYTES + record.payload_bytes()) as u64;
        }
        self.log.lock().expect("no panic while held").oldest_needed = oldest.number + 1;
        // Makes the copies durable first, then the header that says so.
        self.start_segment()?;
        self.held.write().expect("no panic while held").segments.remove(&oldest.number);
        self.folder.remove(&oldest.name).map_err(|source| oldest.failed("remove", source))?;
        Ok(true)
    }

    /// The oldest segment and the number behind its last record.
    fn oldest_if_due(&self) -> Option<(Arc<Segment>, u64)> {
        let held = self.held.read().expect("no panic while held");
        let len = held.len_bytes();
        let dead = len.saturating_sub(held.index.live_bytes());
        if len < self.options.compact_from_bytes || dead <= len / 2 {
            return None;
        }
        let mut segments = held.segments.values();
        let (oldest, next) = (segments.next()?, segments.next()?);
        Some((oldest.clone(), next.first_sequence))
    }

    fn copy_what_is_live(
        &self,
        oldest: &Segment,
        sectors: std::ops::Range<u64>,
        sequence: u64,
    ) -> Result<(), OverlayError> {
        loop {
            let parts = self.held.read().expect("no panic while held").index.lookup(sectors.clone());
            let mut live = parts.into_iter().filter_map(|(range, place)| Some((range, place?)));
            let Some((range, place)) = live.find(|(_, place)| place.sequence == sequence) else { return Ok(()) };
            let (kind, bytes) = match place.data {
                None => (RecordKind::Zero, Vec::new()),
                Some(data) => {
                    let mut bytes = vec![0; ((range.end - range.start) * SECTOR_BYTES) as usize];
                    oldest.read_cells(data, sequence, range.clone(), &mut bytes)?;
                    (RecordKind::Data, bytes)
                }
            };
            // Where the guest wrote meanwhile, the next round finds what is left.
            self.append(Draft { kind, sectors: range, up_to: 0, bytes: &bytes, copy_of: Some(place) })?;
        }
    }
}

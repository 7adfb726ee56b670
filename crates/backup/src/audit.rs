//! The sample check of change tracking: random segments that it calls unchanged are read and compared with the base.
//!
//! It detects, it never permits: a base that is doubtful for any other reason is not used however well this goes.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::Ordering;

use hyperv::seam::Clock;
use serde::{Deserialize, Serialize};
use vhdx::{ExtentKind, VirtualDisk};

use crate::disk_object::DiskObject;
use crate::pipeline::{Pipeline, SourceCounters, Store, jobs_of};
use crate::resources::Buffers;
use crate::source_guard::SourceGuard;
use crate::{BackupError, Cancel};

/// Of the stored segments: so many at least, and this share; max(64, 0.1 %).
const MIN_SAMPLE: u64 = 64;
const SAMPLE_SHARE: u64 = 1000;
/// Of those that the disk holds and the base has as zeroes: a block that was written for the first time, unnoticed,
/// would be among them.
const UNSTORED_SAMPLE: u64 = 32;

/// What was found to be unchanged, in segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audited {
    /// Read again and compared.
    pub segments: u64,
    /// Called unchanged and not known to be empty: what the sample was drawn from.
    pub of_segments: u64,
    /// Bytes read for it.
    pub read_bytes: u64,
}

impl Audited {
    /// How much was looked at and what that is worth, for a person.
    pub fn in_words(&self) -> String {
        let Self { segments, of_segments, .. } = *self;
        if segments == 0 {
            return "nothing was left unchanged, so there was nothing to check".to_owned();
        }
        if segments >= of_segments {
            return format!("all {of_segments} unchanged segments were read again and are what the base holds");
        }
        // Drawn without putting back: with k of N wrong, none of n drawn is wrong with about (1 - k/N)^n.
        let seen = |share: f64| 100.0 * (1.0 - (1.0 - share).powi(segments.min(i32::MAX as u64) as i32));
        format!(
            "{segments} of {of_segments} unchanged segments ({:.1} %) were read again and are what the base holds: had \
             tracking missed one in ten of them it would have shown with {:.0} % likelihood, one in a hundred with {:.0} %",
            100.0 * segments as f64 / of_segments as f64,
            seen(0.1).min(99.9).floor(),
            seen(0.01).min(99.9).floor(),
        )
    }
}

/// A check of one disk.
pub(crate) struct Audit<'a> {
    pub(crate) disk: &'a dyn VirtualDisk,
    pub(crate) label: &'a str,
    pub(crate) base: &'a DiskObject,
    /// Segments that tracking calls changed: ascending, apart.
    pub(crate) changed: &'a [Range<u64>],
    pub(crate) clock: &'a dyn Clock,
    pub(crate) cancel: &'a Cancel,
    pub(crate) guard: &'a SourceGuard<'a>,
    pub(crate) buffers: &'a Buffers,
}

impl Audit<'_> {
    /// Reads a sample, or everything; an error of kind [`BackupError::TrackingLied`] at the first difference.
    pub(crate) fn run(&self, everything: bool) -> Result<Audited, BackupError> {
        let layout = *self.base.layout();
        let (stored, unstored) = (self.stored(), self.unstored()?);
        let (sample, of_segments) = if everything {
            (self.all()?, stored + unstored)
        } else {
            let mut sample = self.sample(stored, random_u64);
            self.sample_unstored(unstored, &mut sample, random_u64)?;
            (sample.into_iter().map(|segment| segment..segment + 1).collect(), stored + unstored)
        };
        let counters = SourceCounters::default();
        let pipeline = Pipeline {
            disk: self.disk,
            label: self.label,
            layout: &layout,
            store: Store::Nothing(self.base.repository()),
            clock: self.clock,
            cancel: self.cancel,
            counters: &counters,
            guard: self.guard,
            buffers: self.buffers,
        };
        let segments = sample.iter().map(|range| range.end - range.start).sum();
        pipeline.run(jobs_of(&layout, sample.into_iter().map(Ok)), |done| {
            for (part, content) in (done.job.first_part..).zip(&done.segments) {
                if self.base.virtual_segment(done.job.block, part)? != *content {
                    return Err(BackupError::TrackingLied {
                        disk: self.label.to_owned(),
                        offset_bytes: layout.virtual_offset(done.job.block, part),
                    });
                }
            }
            Ok(())
        })?;
        Ok(Audited { segments, of_segments, read_bytes: counters.read_bytes.load(Ordering::Relaxed) })
    }

    /// Segments of the base's stored blocks that tracking calls unchanged.
    fn stored(&self) -> u64 {
        let per_block = u64::from(self.base.layout().segments_per_block());
        let slots = self.base.slots();
        let changed = self.changed.iter().flat_map(Range::clone);
        let changed = changed.filter(|segment| slots.slot((segment / per_block) as u32).is_some()).count() as u64;
        slots.blocks().len() as u64 * per_block - changed
    }

    /// Segments that the disk holds and the base does not, although tracking calls them unchanged: zeroes, or missed.
    fn unstored_ranges(&self) -> impl Iterator<Item = Result<Range<u64>, BackupError>> + '_ {
        let layout = self.base.layout();
        let (segment, per_block) = (u64::from(layout.segment_bytes()), u64::from(layout.segments_per_block()));
        let mut at = 0;
        let data = self.disk.extents(0..layout.geometry().size_bytes()).filter_map(move |extent| match extent {
            Ok(extent) if extent.kind == ExtentKind::Zero => None,
            Ok(extent) => {
                let start = (extent.range.start / segment).max(at);
                at = extent.range.end.div_ceil(segment).max(at);
                (start < at).then_some(Ok(start..at))
            }
            Err(source) => Some(Err(BackupError::SourceMap { disk: self.label.to_owned(), source })),
        });
        data.flat_map(move |range| {
            let (range, error) = match range {
                Ok(range) => (range, None),
                Err(error) => (0..0, Some(Err(error))),
            };
            // Block by block, so that what is stored is left out.
            let blocks = range.start / per_block..range.end.div_ceil(per_block);
            let of_blocks = blocks.filter(|block| self.base.slots().slot(*block as u32).is_none());
            let parts = of_blocks.flat_map(move |block| {
                let of_block = block * per_block..(block + 1) * per_block;
                self.unchanged(of_block.start.max(range.start)..of_block.end.min(range.end))
            });
            parts.map(Ok).chain(error)
        })
    }

    fn unstored(&self) -> Result<u64, BackupError> {
        let mut count = 0;
        for range in self.unstored_ranges() {
            let range = range?;
            count += range.end - range.start;
        }
        Ok(count)
    }

    fn is_changed(&self, segment: u64) -> bool {
        let behind = self.changed.partition_point(|range| range.end <= segment);
        self.changed.get(behind).is_some_and(|range| range.contains(&segment))
    }

    /// Virtual segment numbers to read: of the base's stored segments, outside the changed ones.
    fn sample(&self, unchanged: u64, mut random: impl FnMut() -> u64) -> BTreeSet<u64> {
        let per_block = u64::from(self.base.layout().segments_per_block());
        let blocks = self.base.slots().blocks();
        let stored = blocks.len() as u64 * per_block;
        let wanted = MIN_SAMPLE.max(stored / SAMPLE_SHARE).min(unchanged);
        let mut sample = BTreeSet::new();
        // Drawing more often than needed, but not without end, when nearly everything changed.
        for _ in 0..8 * wanted {
            if sample.len() as u64 >= wanted {
                break;
            }
            let drawn = random() % stored.max(1);
            let Some(&block) = blocks.get((drawn / per_block) as usize) else { break };
            let segment = u64::from(block) * per_block + drawn % per_block;
            if !self.is_changed(segment) {
                sample.insert(segment);
            }
        }
        sample
    }

    fn sample_unstored(
        &self,
        unstored: u64,
        sample: &mut BTreeSet<u64>,
        mut random: impl FnMut() -> u64,
    ) -> Result<(), BackupError> {
        let mut drawn = BTreeSet::new();
        if unstored <= UNSTORED_SAMPLE {
            drawn.extend(0..unstored);
        }
        while (drawn.len() as u64) < UNSTORED_SAMPLE.min(unstored) {
            drawn.insert(random() % unstored);
        }
        let mut before = 0;
        for range in self.unstored_ranges() {
            let range = range?;
            let len = range.end - range.start;
            sample.extend(drawn.range(before..before + len).map(|at| range.start + (at - before)));
            before += len;
        }
        Ok(())
    }

    /// Everything that the base or the disk holds, but what tracking calls changed.
    fn all(&self) -> Result<Vec<Range<u64>>, BackupError> {
        let per_block = u64::from(self.base.layout().segments_per_block());
        let mut ranges: Vec<Range<u64>> = self.unstored_ranges().collect::<Result<_, _>>()?;
        let stored = self.base.slots().blocks().iter().map(|block| u64::from(*block));
        ranges.extend(stored.map(|block| block * per_block..(block + 1) * per_block));
        ranges.sort_by_key(|range| range.start);
        Ok(ranges.into_iter().flat_map(|range| self.unchanged(range)).collect())
    }

    /// A range of segments without those that tracking calls changed.
    fn unchanged(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut at = range.start;
        let mut parts = Vec::new();
        let first = self.changed.partition_point(|changed| changed.end <= range.start);
        for changed in self.changed[first..].iter().take_while(|changed| changed.start < range.end) {
            if at < changed.start {
                parts.push(at..changed.start);
            }
            at = changed.end;
        }
        if at < range.end {
            parts.push(at..range.end);
        }
        parts
    }
}

fn random_u64() -> u64 {
    u64::from_ne_bytes(random::bytes())
}

#[cfg(test)]
mod tests {
    use super::Audited;

    #[test]
    fn what_a_check_is_worth_is_said_in_words() {
        for (segments, of_segments, words) in [
            (0, 0, "nothing was left"),
            (64, 64, "all 64 unchanged"),
            (64, 8000, "64 of 8000 unchanged segments (0.8 %)"),
            (64, 8000, "one in ten of them it would have shown with 99 % likelihood, one in a hundred with 47 %"),
            (1 << 40, 1 << 41, "one in a hundred with 99 %"),
        ] {
            let text = Audited { segments, of_segments, read_bytes: 0 }.in_words();
            assert!(text.contains(words), "{text}");
        }
    }
}

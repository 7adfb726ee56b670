//! The sample check of change tracking: random segments that it calls unchanged are read and compared with the base.
//!
//! It detects, it never permits: a base that is doubtful for any other reason is not used however well this goes.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::Ordering;

use hyperv::seam::Clock;
use vhdx::VirtualDisk;

use crate::disk_object::DiskObject;
use crate::pipeline::{Pipeline, SourceCounters, Store, jobs_of};
use crate::{BackupError, Cancel};

/// Segments sampled at least, and the share of the stored ones: max(64, 0.1 %).
const MIN_SAMPLE: u64 = 64;
const SAMPLE_SHARE: u64 = 1000;

/// Reads the sample; an error of kind [`BackupError::TrackingLied`] at the first difference. Returns the bytes read.
pub(crate) fn audit(
    disk: &dyn VirtualDisk,
    label: &str,
    base: &DiskObject,
    changed_segments: &[Range<u64>],
    clock: &dyn Clock,
    cancel: &Cancel,
) -> Result<u64, BackupError> {
    let layout = *base.layout();
    let sample = sample(base, changed_segments, random_u64);
    let counters = SourceCounters::default();
    let pipeline = Pipeline {
        disk,
        label,
        layout: &layout,
        store: Store::Nothing(base.repository()),
        clock,
        cancel,
        counters: &counters,
    };
    pipeline.run(jobs_of(&layout, sample.into_iter().map(|segment| Ok(segment..segment + 1))), |done| {
        for (part, content) in (done.job.first_part..).zip(&done.segments) {
            if base.virtual_segment(done.job.block, part)? != *content {
                return Err(BackupError::TrackingLied {
                    disk: label.to_owned(),
                    offset_bytes: layout.virtual_offset(done.job.block, part),
                });
            }
        }
        Ok(())
    })?;
    Ok(counters.read_bytes.load(Ordering::Relaxed))
}

/// Virtual segment numbers to read: of the base's stored segments, outside the changed ones, ascending.
fn sample(base: &DiskObject, changed: &[Range<u64>], mut random: impl FnMut() -> u64) -> BTreeSet<u64> {
    let per_block = u64::from(base.layout().segments_per_block());
    let blocks = base.slots().blocks();
    let stored = blocks.len() as u64 * per_block;
    let wanted = MIN_SAMPLE.max(stored / SAMPLE_SHARE).min(stored);
    let is_changed = |segment: u64| {
        let behind = changed.partition_point(|range| range.end <= segment);
        changed.get(behind).is_some_and(|range| range.contains(&segment))
    };
    let mut sample = BTreeSet::new();
    // Drawing twice as often as needed bounds the time when nearly everything changed.
    for _ in 0..2 * wanted {
        if sample.len() as u64 >= wanted {
            break;
        }
        let drawn = random() % stored.max(1);
        let Some(&block) = blocks.get((drawn / per_block) as usize) else { break };
        let segment = u64::from(block) * per_block + drawn % per_block;
        if !is_changed(segment) {
            sample.insert(segment);
        }
    }
    sample
}

fn random_u64() -> u64 {
    u64::from_ne_bytes(random::bytes())
}

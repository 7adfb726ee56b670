//! What the host answers when it is asked what changed: the truth, a superset of it, or a lie that a test wants.

use hyperv::seam::{ChangedPage, ChangedRange};

use crate::error::LabError;
use crate::extents::Extents;
use crate::faults::Fault;
use crate::guest::SplitMix;
use crate::host::Tx;
use crate::paths::WinPath;
use crate::tracking;

/// The unit of the smallest lie.
const LIE_BYTES: u64 = 64 << 10;

/// What changed since `id` on the disk with this chain (leaf first). The error is what the API returns.
pub(crate) fn changes_since(
    tx: &Tx<'_>,
    chain: &[WinPath],
    size_bytes: u64,
    id: &str,
) -> Result<Result<Extents, u32>, LabError> {
    let faults = tx.faults()?;
    for fault in &faults {
        if let Fault::ChangesFail { vm, disk, code } = fault
            && is_disk(tx, chain, vm, *disk)
        {
            return Ok(Err(*code));
        }
    }
    let mut changes = match tracking::changes_since(tx.store, tx, chain, id)? {
        Ok(changes) => changes,
        Err(code) => return Ok(Err(code)),
    };
    if tx.options.superset {
        let seed = id.bytes().fold(size_bytes, |seed, byte| SplitMix::new(seed ^ u64::from(byte)).next());
        let mut random = SplitMix::new(seed);
        let unit = tx.options.granularity_bytes;
        for _ in 0..8 {
            let start = random.below(size_bytes) / unit * unit;
            changes.insert(start..(start + unit * (1 + random.below(4))).min(size_bytes));
        }
    }
    for fault in &faults {
        if let Fault::ChangesOmit { vm, disk, unit } = fault
            && is_disk(tx, chain, vm, *disk)
        {
            omit(&mut changes, *unit);
        }
    }
    Ok(Ok(changes))
}

fn omit(changes: &mut Extents, unit: u64) {
    let units: Vec<u64> = (changes.iter())
        .flat_map(|range| range.start / LIE_BYTES..range.end.div_ceil(LIE_BYTES))
        .collect::<std::collections::BTreeSet<u64>>()
        .into_iter()
        .collect();
    if !units.is_empty() {
        let omitted = units[(unit % units.len() as u64) as usize];
        changes.remove(omitted * LIE_BYTES..(omitted + 1) * LIE_BYTES);
    }
}

/// Whether a chain belongs to a disk as faults name it: VM, and index in slot order.
pub(crate) fn is_disk(tx: &Tx<'_>, chain: &[WinPath], vm: &str, disk: usize) -> bool {
    let Ok(vm) = tx.find_vm(vm) else { return false };
    let Some(wanted) = vm.active.disks.get(disk) else { return false };
    let checkpoints = vm.checkpoints.iter().flat_map(|checkpoint| &checkpoint.config.disks);
    std::iter::once(wanted)
        .chain(checkpoints.filter(|other| other.place == wanted.place))
        .any(|other| chain.contains(&other.file))
}

/// How a page is asked for.
pub(crate) struct Question {
    pub(crate) size_bytes: u64,
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u64,
    pub(crate) max_ranges: usize,
}

/// One page of changes, or `None` for a request that is not inside the disk, wants nothing, or is refused.
pub(crate) fn page(tx: &Tx<'_>, changes: &Extents, question: &Question) -> Option<ChangedPage> {
    if tx.options.refuse_whole_disk_query && question.len_bytes == question.size_bytes {
        return None;
    }
    let longest = match tx.options.longest_range_bytes {
        0 => u64::MAX,
        limit => limit,
    };
    page_of(changes, question, longest)
}

fn page_of(changes: &Extents, question: &Question, longest_bytes: u64) -> Option<ChangedPage> {
    let &Question { size_bytes, offset_bytes, len_bytes, max_ranges } = question;
    let end = offset_bytes.checked_add(len_bytes).filter(|&end| end <= size_bytes)?;
    if len_bytes == 0 || max_ranges == 0 {
        return None;
    }
    let mut found = changes.within(offset_bytes..end).flat_map(|range| {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let start = at;
            at = start.saturating_add(longest_bytes).min(range.end);
            (start < range.end).then_some(start..at)
        })
    });
    let ranges: Vec<ChangedRange> = (&mut found)
        .take(max_ranges)
        .map(|range| ChangedRange { offset_bytes: range.start, len_bytes: range.end - range.start })
        .collect();
    // A full page covers the region up to where the next range begins.
    let processed_end = found.next().map_or(end, |next| next.start);
    Some(ChangedPage { ranges, processed_bytes: processed_end - offset_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_the_disk_with_sorted_disjoint_ranges() {
        let mut random = SplitMix::new(11);
        for round in 0..400 {
            let size = 1 + random.below(1000);
            let longest = if round % 2 == 0 { u64::MAX } else { 1 + random.below(64) };
            let mut changes = Extents::default();
            for _ in 0..random.below(20) {
                let start = random.below(size);
                changes.insert(start..start + 1 + random.below(size - start));
            }
            let max_ranges = 1 + random.below(5) as usize;
            let ask = |offset_bytes, len_bytes| {
                page_of(&changes, &Question { size_bytes: size, offset_bytes, len_bytes, max_ranges }, longest)
            };
            let (mut at, mut seen) = (0, Extents::default());
            while at < size {
                let page = ask(at, size - at).unwrap();
                assert!(page.processed_bytes > 0 && page.ranges.len() <= max_ranges, "round {round}");
                let mut last_end = at;
                for range in &page.ranges {
                    let (start, end) = (range.offset_bytes, range.offset_bytes + range.len_bytes);
                    assert!(start >= last_end && end <= at + page.processed_bytes, "round {round}: {range:?}");
                    assert!(start < end && end - start <= longest, "round {round}: {range:?}");
                    seen.insert(start..end);
                    last_end = end;
                }
                at += page.processed_bytes;
            }
            assert_eq!(seen, changes, "round {round}");
            assert_eq!(ask(0, size + 1), None);
            assert_eq!(ask(size, 0), None);
        }
    }

    #[test]
    fn a_lie_leaves_out_exactly_one_unit() {
        let mut changes = Extents::default();
        changes.insert(0..3 * LIE_BYTES);
        changes.insert(10 * LIE_BYTES + 512..10 * LIE_BYTES + 1024);
        for (unit, left) in [(0, 2 * LIE_BYTES + 512), (1, 2 * LIE_BYTES + 512), (3, 3 * LIE_BYTES), (7, 3 * LIE_BYTES)]
        {
            let mut told = changes.clone();
            omit(&mut told, unit);
            assert_eq!(told.iter().map(|range| range.end - range.start).sum::<u64>(), left, "unit {unit}");
        }
    }
}

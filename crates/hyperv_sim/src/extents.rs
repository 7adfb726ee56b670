//! A set of byte ranges.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Disjoint, non-touching, ordered ranges of bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<[u64; 2]>", into = "Vec<[u64; 2]>")]
pub(crate) struct Extents {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
}

impl Extents {
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Adds a range; an empty one adds nothing.
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Everything that begins at or before our end, and ends at or after our start, melts into one.
        while let Some((&other_start, &other_end)) = self.ranges.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            start = start.min(other_start);
            end = end.max(other_end);
            self.ranges.remove(&other_start);
        }
        self.ranges.insert(start, end);
    }

    /// Takes a range out.
    pub(crate) fn remove(&mut self, gone: Range<u64>) {
        let touched: Vec<Range<u64>> =
            self.iter().filter(|range| range.start < gone.end && gone.start < range.end).collect();
        for range in touched {
            self.ranges.remove(&range.start);
            self.insert(range.start..gone.start.min(range.end).max(range.start));
            self.insert(gone.end.max(range.start).min(range.end)..range.end);
        }
    }

    pub(crate) fn extend(&mut self, other: &Extents) {
        for range in other.iter() {
            self.insert(range);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// The parts inside `window`, in order.
    pub(crate) fn within(&self, window: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = self.ranges.range(..=window.start).next_back().map_or(window.start, |(&start, _)| start);
        self.ranges
            .range(first..window.end.max(first))
            .map(move |(&start, &end)| start.max(window.start)..end.min(window.end))
            .filter(|range| !range.is_empty())
    }

    /// Every range rounded outward to multiples of `unit_bytes`, and cut at `size_bytes`.
    pub(crate) fn rounded(&self, unit_bytes: u64, size_bytes: u64) -> Extents {
        let mut rounded = Extents::default();
        for range in self.iter() {
            rounded.insert(round(range, unit_bytes, size_bytes));
        }
        rounded
    }
}

/// `range` rounded outward to multiples of `unit_bytes`, and cut at `size_bytes`.
pub(crate) fn round(range: Range<u64>, unit_bytes: u64, size_bytes: u64) -> Range<u64> {
    let end = range.end.checked_next_multiple_of(unit_bytes).unwrap_or(u64::MAX);
    range.start / unit_bytes * unit_bytes..end.min(size_bytes)
}

impl From<Vec<[u64; 2]>> for Extents {
    fn from(pairs: Vec<[u64; 2]>) -> Self {
        let mut extents = Extents::default();
        for [start, end] in pairs {
            extents.insert(start..end);
        }
        extents
    }
}

impl From<Extents> for Vec<[u64; 2]> {
    fn from(extents: Extents) -> Self {
        extents.iter().map(|range| [range.start, range.end]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::SplitMix;

    #[test]
    fn agrees_with_a_row_of_booleans() {
        let mut random = SplitMix::new(7);
        for round in 0..200 {
            let mut model = [false; 64];
            let mut extents = Extents::default();
            for _ in 0..random.below(12) {
                let start = random.below(64);
                let end = start + random.below(65 - start);
                extents.insert(start..end);
                model[start as usize..end as usize].fill(true);
            }
            if random.below(2) == 0 {
                let start = random.below(64);
                let end = start + random.below(65 - start);
                extents.remove(start..end);
                model[start as usize..end as usize].fill(false);
            }
            let mut seen = [false; 64];
            let mut last_end = None;
            for range in extents.iter() {
                assert!(last_end.is_none_or(|end| end < range.start), "round {round}: touching ranges");
                seen[range.start as usize..range.end as usize].fill(true);
                last_end = Some(range.end);
            }
            assert_eq!(seen, model, "round {round}");

            let start = random.below(64);
            let window = start..start + random.below(65 - start);
            let mut inside = [false; 64];
            for range in extents.within(window.clone()) {
                assert!(range.start >= window.start && range.end <= window.end, "round {round}: {range:?}");
                inside[range.start as usize..range.end as usize].fill(true);
            }
            for (at, &set) in model.iter().enumerate() {
                assert_eq!(inside[at], set && window.contains(&(at as u64)), "round {round} at {at} in {window:?}");
            }
        }
    }
}

//! Which sectors the overlay holds, and where.
//!
//! Every sector has at most one place: a later record takes sectors away from earlier ones, whole cells or not, so a
//! write of a part of a cell needs neither the cell's old content nor the base.

use std::collections::BTreeMap;
use std::ops::Range;

use super::format::{CELL_BYTES, RECORD_BYTES, SEALED_CELL_BYTES, SECTOR_BYTES};

/// Where the bytes of a run of sectors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) sequence: u64,
    /// The record that holds the bytes; `None` for zeroes.
    pub(crate) data: Option<DataAt>,
}

/// A DATA record in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DataAt {
    /// Where its header begins.
    pub(crate) offset: u32,
    /// The first sector it was written for.
    pub(crate) first_sector: u64,
}

/// Sectors with one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) sectors: Range<u64>,
    pub(crate) place: Place,
}

/// Runs by their first sector, without overlap.
#[derive(Debug, Default)]
pub(crate) struct Index {
    runs: BTreeMap<u64, (u64, Place)>,
    live: BTreeMap<u64, Live>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Live {
    data_sectors: u64,
    zero_runs: u64,
}

impl Live {
    fn bytes(self) -> u64 {
        self.data_sectors * SEALED_CELL_BYTES as u64 / (CELL_BYTES as u64 / SECTOR_BYTES)
            + self.zero_runs * RECORD_BYTES as u64
    }
}

impl Index {
    /// From now on `sectors` are at `place`.
    pub(crate) fn insert(&mut self, sectors: Range<u64>, place: Place) {
        self.remove_up_to(sectors.clone(), u64::MAX);
        self.add(sectors, place);
    }

    /// Forgets `sectors` as far as their places are not younger than `sequence`.
    pub(crate) fn remove_up_to(&mut self, sectors: Range<u64>, sequence: u64) {
        let touched: Vec<Run> = self.overlapping(sectors.clone()).collect();
        for Run { sectors: run, place } in touched {
            if place.sequence > sequence {
                continue;
            }
            self.take(run.clone(), place);
            if run.start < sectors.start {
                self.add(run.start..sectors.start, place);
            }
            if sectors.end < run.end {
                self.add(sectors.end..run.end, place);
            }
        }
    }

    /// The runs that share sectors with a range, whole, in order.
    pub(crate) fn overlapping(&self, sectors: Range<u64>) -> impl Iterator<Item = Run> + '_ {
        let before = self.runs.range(..sectors.start).next_back().filter(|(_, (end, _))| *end > sectors.start);
        let inside = if sectors.is_empty() { None } else { Some(self.runs.range(sectors)) };
        let runs = before.filter(|_| inside.is_some()).into_iter().chain(inside.into_iter().flatten());
        runs.map(|(start, (end, place))| Run { sectors: *start..*end, place: *place })
    }

    /// A range as it is held, in order and without gaps: places, and `None` for what is not held.
    pub(crate) fn lookup(&self, sectors: Range<u64>) -> Vec<(Range<u64>, Option<Place>)> {
        let mut parts = Vec::new();
        let mut at = sectors.start;
        for run in self.overlapping(sectors.clone()) {
            let (start, end) = (run.sectors.start.max(sectors.start), run.sectors.end.min(sectors.end));
            if at < start {
                parts.push((at..start, None));
            }
            parts.push((start..end, Some(run.place)));
            at = end;
        }
        if at < sectors.end {
            parts.push((at..sectors.end, None));
        }
        parts
    }

    /// Whether nothing is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(crate) fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// What all runs take, about.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live.values().map(|live| live.bytes()).sum()
    }

    /// Sectors with bytes, not zeroes.
    pub(crate) fn data_sectors(&self) -> u64 {
        self.live.values().map(|live| live.data_sectors).sum()
    }

    fn add(&mut self, sectors: Range<u64>, place: Place) {
        let live = self.live.entry(place.segment).or_default();
        match place.data {
            Some(_) => live.data_sectors += sectors.end - sectors.start,
            None => live.zero_runs += 1,
        }
        self.runs.insert(sectors.start, (sectors.end, place));
    }

    fn take(&mut self, sectors: Range<u64>, place: Place) {
        self.runs.remove(&sectors.start);
        let Some(live) = self.live.get_mut(&place.segment) else { return };
        match place.data {
            Some(_) => live.data_sectors -= sectors.end - sectors.start,
            None => live.zero_runs -= 1,
        }
        if *live == Live::default() {
            self.live.remove(&place.segment);
        }
    }
}

#[cfg(test)]
mod tests {
    use random::SplitMix;

    use super::*;

    /// Random changes against one place per sector.
    #[test]
    fn equals_a_table_of_sectors() {
        const SECTORS: u64 = 64;
        for seed in 0..200 {
            let mut random = SplitMix::new(seed);
            let mut index = Index::default();
            let mut model: Vec<Option<Place>> = vec![None; SECTORS as usize];
            for sequence in 1..60 {
                let start = random.below(SECTORS);
                let end = start + random.below(SECTORS - start + 1);
                let slots = &mut model[start as usize..end as usize];
                if random.below(4) == 0 {
                    let up_to = sequence - random.below(10).min(sequence);
                    index.remove_up_to(start..end, up_to);
                    for slot in slots {
                        *slot = slot.filter(|place| place.sequence > up_to);
                    }
                } else if start < end {
                    let data = (random.below(3) > 0).then_some(DataAt { offset: 4096, first_sector: start });
                    let place = Place { segment: sequence / 9, sequence, data };
                    index.insert(start..end, place);
                    slots.fill(Some(place));
                }
                let parts = index.lookup(0..SECTORS);
                let seen: Vec<Option<Place>> =
                    parts.iter().flat_map(|(range, place)| range.clone().map(move |_| *place)).collect();
                assert_eq!(seen, model, "seed {seed}, sequence {sequence}");
                let held = model.iter().flatten();
                let data = held.clone().filter(|place| place.data.is_some()).count() as u64;
                assert_eq!(index.data_sectors(), data, "seed {seed}");
                assert_eq!(index.is_empty(), held.count() == 0, "seed {seed}");
                for from in [0, 17, SECTORS - 1] {
                    let first = index.overlapping(from..u64::MAX).next().map(|run| run.sectors.start.max(from));
                    let expected = (from..SECTORS).find(|sector| model[*sector as usize].is_some());
                    assert_eq!(first, expected, "seed {seed}, from {from}");
                }
            }
        }
    }
}

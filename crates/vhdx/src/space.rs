//! Which parts of a file are taken, in units of 1 MiB.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::format::MIB;

/// One bit per MiB of the file: finds overlaps while a file is opened. 16 MiB for the largest file.
pub(crate) struct SpaceMap {
    taken: Vec<u64>,
    file_len: u64,
    /// Behind the last unit taken; past the end of the file when that cuts off its last block.
    end: u64,
}

impl SpaceMap {
    /// For a file of at most [`MAX_FILE_BYTES`](crate::format::MAX_FILE_BYTES); its first MiB is taken.
    pub(crate) fn new(file_len: u64) -> Self {
        let units = file_len.div_ceil(MIB);
        let mut map = SpaceMap { taken: vec![0; units.div_ceil(64) as usize], file_len, end: 1 };
        map.mark(0);
        map
    }

    /// Takes `len` bytes (a multiple of 1 MiB) at `offset`, of which the first `needed` must be inside the
    /// file. Returns the offset in MiB.
    pub(crate) fn take(&mut self, offset: u64, len: u64, needed: u64) -> Result<u32, String> {
        if offset < MIB || !offset.is_multiple_of(MIB) {
            return Err(format!("offset {offset:#x} is not possible"));
        }
        let inside = offset.checked_add(needed).is_some_and(|end| end <= self.file_len);
        if !inside {
            return Err(format!("{needed} bytes at {offset:#x} are outside the file of {} bytes", self.file_len));
        }
        let first = offset / MIB;
        // Inside the file, whose length in MiB is 32 bits.
        for unit in first..(first + len / MIB).min(self.file_len.div_ceil(MIB)) {
            if !self.mark(unit) {
                return Err(format!("{len} bytes at {offset:#x} overlap something else at {:#x}", unit * MIB));
            }
        }
        self.end = self.end.max(first + len / MIB);
        Ok(first as u32)
    }

    fn mark(&mut self, unit: u64) -> bool {
        let word = &mut self.taken[(unit / 64) as usize];
        let bit = 1 << (unit % 64);
        let was_free = *word & bit == 0;
        *word |= bit;
        was_free
    }

    fn is_taken(&self, unit: u32) -> bool {
        self.taken[(unit / 64) as usize] & 1 << (unit % 64) != 0
    }
}

/// Space for new blocks. Units are MiB of the file.
///
/// Freed space is not given out before [`release_freed`](Self::release_freed): until the change that freed it is
/// durable, a crash would leave it to its old owner.
pub(crate) struct Allocator {
    /// Free space inside the file, start to length. May hold old bytes.
    free: BTreeMap<u32, u32>,
    /// Freed by changes that are not durable yet.
    freed: Vec<Range<u32>>,
    /// Space at the end of the file that was never written since the file was extended: reads as zero.
    fresh: Range<u32>,
    /// No free piece is this long; spares looking again.
    nothing_from: u32,
}

/// Space that was given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allocation {
    pub unit: u32,
    /// The file reads as zero there.
    pub zeroed: bool,
}

/// How far the file grows at least when it must.
const GROW_UNITS: u32 = 32;

impl Allocator {
    /// From the map made while opening. What lies behind the last taken unit may hold the remains of a crash, so it
    /// counts as free, not as fresh.
    pub(crate) fn new(map: &SpaceMap) -> Self {
        let units = map.file_len.div_ceil(MIB) as u32;
        let mut free = BTreeMap::new();
        let mut start = None;
        for unit in 0..=units {
            let is_free = unit < units && !map.is_taken(unit);
            match (start, is_free) {
                (None, true) => start = Some(unit),
                (Some(from), false) => {
                    free.insert(from, unit - from);
                    start = None;
                }
                _ => {}
            }
        }
        // The file's length in MiB is at most 2^27, and a block is at most 2^8.
        let end = units.max(map.end as u32);
        Allocator { free, freed: Vec::new(), fresh: end..end, nothing_from: u32::MAX }
    }

    /// Length the file must have, in units.
    pub(crate) fn file_units(&self) -> u32 {
        self.fresh.end
    }

    /// Takes `units` contiguous units. The file must then be at least [`file_units`](Self::file_units) long.
    pub(crate) fn allocate(&mut self, units: u32) -> Allocation {
        if units < self.nothing_from {
            if let Some((&start, &len)) = self.free.iter().find(|&(_, &len)| len >= units) {
                self.free.remove(&start);
                if len > units {
                    self.free.insert(start + units, len - units);
                }
                return Allocation { unit: start, zeroed: false };
            }
            self.nothing_from = units;
        }
        let unit = self.fresh.start;
        self.fresh.start += units;
        if self.fresh.start > self.fresh.end {
            self.fresh.end = self.fresh.start.next_multiple_of(GROW_UNITS);
        }
        Allocation { unit, zeroed: true }
    }

    pub(crate) fn free(&mut self, range: Range<u32>) {
        self.freed.push(range);
    }

    /// The changes that freed space are durable: it may be given to others.
    pub(crate) fn release_freed(&mut self) {
        for range in std::mem::take(&mut self.freed) {
            self.nothing_from = u32::MAX;
            let mut merged = range;
            if let Some((&start, &len)) = self.free.range(..merged.start).next_back()
                && start + len == merged.start
            {
                self.free.remove(&start);
                merged.start = start;
            }
            if let Some(len) = self.free.remove(&merged.end) {
                merged.end += len;
            }
            self.free.insert(merged.start, merged.end - merged.start);
        }
    }

    /// Where the file could end, in units. Nothing may be given out afterwards.
    pub(crate) fn trimmed_units(&self) -> u32 {
        match self.free.last_key_value() {
            Some((&start, &len)) if start + len == self.fresh.start => start,
            _ => self.fresh.start,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_and_outsiders_are_refused() {
        let mut map = SpaceMap::new(8 * MIB + 1000);
        assert_eq!(map.take(MIB, 2 * MIB, 2 * MIB), Ok(1));
        for (offset, len, needed) in [
            (0, MIB, MIB),
            (MIB + 512, MIB, MIB),
            (2 * MIB, MIB, MIB),
            (8 * MIB, MIB, MIB),
            (u64::MAX - MIB + 1, MIB, MIB),
        ] {
            assert!(map.take(offset, len, needed).is_err(), "{len} bytes at {offset:#x}");
        }
        assert_eq!(map.take(7 * MIB, 2 * MIB, MIB + 1000), Ok(7), "the last block may be cut off");
    }

    #[test]
    fn freed_space_waits_and_neighbours_join() {
        let mut map = SpaceMap::new(10 * MIB);
        map.take(3 * MIB, 7 * MIB, 7 * MIB).unwrap();
        let mut space = Allocator::new(&map);
        assert_eq!(space.allocate(2), Allocation { unit: 1, zeroed: false });
        space.free(4..6);
        space.free(6..7);
        assert_eq!(space.allocate(2), Allocation { unit: 10, zeroed: true }, "not released yet");
        assert_eq!(space.file_units(), 32);
        space.release_freed();
        assert_eq!(space.allocate(3), Allocation { unit: 4, zeroed: false });
        assert_eq!(space.trimmed_units(), 12);
        space.free(11..12);
        space.release_freed();
        assert_eq!(space.trimmed_units(), 11);
    }
}

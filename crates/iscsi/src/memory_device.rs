//! A disk in memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Device, DeviceError, Extent, ExtentKind, Zeroing};

/// A sparse disk in memory, for demonstrations and tests: what was never written takes no space.
pub struct MemoryDevice {
    size_bytes: u64,
    cell_bytes: u64,
    /// What is stored, by the number of its cell.
    cells: Mutex<BTreeMap<u64, Box<[u8]>>>,
}

impl MemoryDevice {
    /// An empty disk that keeps, and gives back, space in cells of `cell_bytes`. Both sizes must not be 0.
    pub fn new(size_bytes: u64, cell_bytes: u32) -> Self {
        Self { size_bytes, cell_bytes: cell_bytes.max(1).into(), cells: Mutex::default() }
    }

    fn cells(&self) -> MutexGuard<'_, BTreeMap<u64, Box<[u8]>>> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The parts of a range that lie in one cell each: cell, bytes within it, bytes within the range.
    fn parts(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> + use<> {
        let cell_bytes = self.cell_bytes;
        (range.start / cell_bytes..range.end.div_ceil(cell_bytes)).map(move |cell| {
            let start = range.start.max(cell * cell_bytes);
            let end = range.end.min((cell + 1) * cell_bytes);
            let within = |base: u64| (start - base) as usize..(end - base) as usize;
            (cell, within(cell * cell_bytes), within(range.start))
        })
    }
}

impl Device for MemoryDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), DeviceError> {
        let cells = self.cells();
        for (cell, of_cell, of_buf) in self.parts(offset_bytes..offset_bytes + buf.len() as u64) {
            match cells.get(&cell) {
                Some(bytes) => buf[of_buf].copy_from_slice(&bytes[of_cell]),
                None => buf[of_buf].fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset_bytes: u64) -> Result<(), DeviceError> {
        let mut cells = self.cells();
        for (cell, of_cell, of_data) in self.parts(offset_bytes..offset_bytes + data.len() as u64) {
            let bytes = cells.entry(cell).or_insert_with(|| vec![0; self.cell_bytes as usize].into());
            bytes[of_cell].copy_from_slice(&data[of_data]);
        }
        Ok(())
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<(), DeviceError> {
        let mut cells = self.cells();
        if how == Zeroing::KeepAllocated {
            for (cell, of_cell, _) in self.parts(range) {
                let bytes = cells.entry(cell).or_insert_with(|| vec![0; self.cell_bytes as usize].into());
                bytes[of_cell].fill(0);
            }
            return Ok(());
        }
        // Only what is stored is looked at: a range may be the whole disk.
        let touched = range.start / self.cell_bytes..range.end.div_ceil(self.cell_bytes);
        let stored: Vec<u64> = cells.range(touched).map(|(cell, _)| *cell).collect();
        for cell in stored {
            let (start, end) = (cell * self.cell_bytes, ((cell + 1) * self.cell_bytes).min(self.size_bytes));
            if range.start <= start && end <= range.end {
                cells.remove(&cell);
            } else if let Some(bytes) = cells.get_mut(&cell) {
                bytes[(range.start.max(start) - start) as usize..(range.end.min(end) - start) as usize].fill(0);
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>, DeviceError> {
        let cells = self.cells();
        let mut extents = Vec::new();
        let mut at = range.start;
        while at < range.end && extents.len() < max {
            let cell = at / self.cell_bytes;
            let (kind, end_cell) = match cells.range(cell..).next() {
                Some((stored, _)) if *stored == cell => {
                    let in_a_row =
                        cells.range(cell..).zip(cell..).take_while(|((stored, _), wanted)| *stored == wanted);
                    (ExtentKind::Data, cell + in_a_row.count() as u64)
                }
                Some((stored, _)) => (ExtentKind::Zero, *stored),
                None => (ExtentKind::Zero, u64::MAX),
            };
            let end = end_cell.saturating_mul(self.cell_bytes).min(self.size_bytes).min(range.end);
            extents.push(Extent { len_bytes: end - at, kind });
            at = end;
        }
        Ok(extents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn against_a_plain_array() {
        const SIZE: u64 = 64 * 1024;
        for cell_bytes in [512, 3 * 512, 4096] {
            let disk = MemoryDevice::new(SIZE, cell_bytes);
            let mut bytes = vec![0; SIZE as usize];
            let mut random = Random(cell_bytes.into());
            for _ in 0..500 {
                let start = random.below(SIZE / 512) * 512;
                let range = start..start + (random.below(24) * 512).min(SIZE - start);
                let of_bytes = range.start as usize..range.end as usize;
                match random.below(4) {
                    0 => {
                        let data = random.bytes(of_bytes.len());
                        disk.write_at(&data, start).unwrap();
                        bytes[of_bytes].copy_from_slice(&data);
                    }
                    1 => {
                        disk.zero(range, Zeroing::KeepAllocated).unwrap();
                        bytes[of_bytes].fill(0);
                    }
                    2 => {
                        disk.zero(range, Zeroing::MayDeallocate).unwrap();
                        bytes[of_bytes].fill(0);
                    }
                    _ => {
                        let mut read = vec![1; of_bytes.len()];
                        disk.read_at(&mut read, start).unwrap();
                        assert!(read == bytes[of_bytes.clone()], "{range:?}");
                        let extents = disk.extents(range.clone(), usize::MAX).unwrap();
                        let mut at = of_bytes.start;
                        for extent in extents {
                            let end = at + extent.len_bytes as usize;
                            let zero = bytes[at..end].iter().all(|byte| *byte == 0);
                            assert!(extent.kind == ExtentKind::Data || zero, "{at}..{end} is not zero");
                            at = end;
                        }
                        assert_eq!(at, of_bytes.end);
                    }
                }
            }
            disk.zero(0..SIZE, Zeroing::MayDeallocate).unwrap();
            assert_eq!(disk.extents(0..SIZE, 9).unwrap(), [Extent { len_bytes: SIZE, kind: ExtentKind::Zero }]);
        }
    }
}

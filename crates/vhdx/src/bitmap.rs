//! Sector bitmap pages of a file that is being written.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use crate::format::{MIB, PAGE, Page};
use crate::session::read_page;
use crate::{ReadAt, WriteError};

const PAGE_BITS: u64 = PAGE as u64 * 8;
/// Pages that are kept although nothing in them waits to be logged.
const MAX_CLEAN: usize = 4096;

/// Pages that were changed, and some that were only looked at. What is not here is in the file as it should be.
#[derive(Default)]
pub(crate) struct BitmapPages {
    /// By file offset.
    pages: HashMap<u64, Box<Page>>,
    dirty: BTreeSet<u64>,
}

impl BitmapPages {
    /// Sets a range of bits of the sector bitmap block at `base_mib`. Bits count from the start of the block.
    pub(crate) fn fill(
        &mut self,
        file: &dyn ReadAt,
        base_mib: u32,
        bits: Range<u64>,
        value: bool,
    ) -> Result<(), WriteError> {
        let mut start = bits.start;
        while start < bits.end {
            let page_start = start - start % PAGE_BITS;
            let end = bits.end.min(page_start + PAGE_BITS);
            let at = u64::from(base_mib) * MIB + page_start / 8;
            let page = match self.pages.entry(at) {
                std::collections::hash_map::Entry::Occupied(page) => page.into_mut(),
                std::collections::hash_map::Entry::Vacant(place) => place.insert(read_page(file, at)?),
            };
            fill_bits(page, start - page_start..end - page_start, value);
            self.dirty.insert(at);
            start = end;
        }
        Ok(())
    }

    /// Reads bitmap bytes at a file offset.
    pub(crate) fn read(&self, file: &dyn ReadAt, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let within = (at % PAGE as u64) as usize;
            let len = (PAGE - within).min(buf.len() - done);
            let part = &mut buf[done..done + len];
            match self.pages.get(&(at - within as u64)) {
                Some(page) => part.copy_from_slice(&page[within..within + len]),
                None => file.read_exact_at(part, at)?,
            }
            done += len;
        }
        Ok(())
    }

    /// Forgets a bitmap block that is about to be made anew.
    pub(crate) fn forget(&mut self, base_mib: u32) {
        let base = u64::from(base_mib) * MIB;
        self.pages.retain(|&at, _| !(base..base + MIB).contains(&at));
        self.dirty.retain(|&at| !(base..base + MIB).contains(&at));
    }

    pub(crate) fn dirty_pages(&self) -> usize {
        self.dirty.len()
    }

    /// What must be logged.
    pub(crate) fn changed(&self) -> impl Iterator<Item = (u64, Box<Page>)> + '_ {
        self.dirty.iter().map(|at| (*at, self.pages[at].clone()))
    }

    /// What was changed is in the file now.
    pub(crate) fn set_clean(&mut self) {
        self.dirty.clear();
        if self.pages.len() > MAX_CLEAN {
            self.pages.clear();
        }
    }
}

fn fill_bits(page: &mut Page, bits: Range<u64>, value: bool) {
    let mut bit = bits.start;
    while bit < bits.end {
        let byte = &mut page[(bit / 8) as usize];
        if bit.is_multiple_of(8) && bits.end - bit >= 8 {
            *byte = if value { 0xff } else { 0 };
            bit += 8;
            continue;
        }
        let mask = 1 << (bit % 8);
        *byte = if value { *byte | mask } else { *byte & !mask };
        bit += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_least_significant_first_and_pages_meet() {
        let file = vec![0xff; 2 << 20];
        let mut pages = BitmapPages::default();
        pages.fill(&file, 1, PAGE_BITS - 3..PAGE_BITS + 9, false).unwrap();
        let mut bytes = [0; 4];
        pages.read(&file, &mut bytes, MIB + PAGE as u64 - 2).unwrap();
        assert_eq!(bytes, [0xff, 0x1f, 0x00, 0xfe]);
        assert_eq!(pages.dirty_pages(), 2);
    }
}

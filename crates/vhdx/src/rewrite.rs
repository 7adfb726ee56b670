//! Changes to what a file says of its disk: size, parent, identity.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::bat::BlockEntry;
use crate::format::{
    FLAG_IS_REQUIRED, FLAG_IS_USER, FLAG_IS_VIRTUAL_DISK, FULLY_PRESENT, ITEM_PARENT_LOCATOR, ITEM_VIRTUAL_DISK_SIZE,
    METADATA_TABLE_LEN, MIB, MetadataEntry, NOT_PRESENT, PAGE, PARTIALLY_PRESENT, Page, REGION_BAT,
    REGION_TABLE_OFFSETS, ZERO, encode_metadata_table, encode_region_table, put,
};
use crate::layout::BatShape;
use crate::session::{MAX_ATOMIC_PAGES, read_page};
use crate::write::{WritableVhdx, WriteError};
use crate::{Guid, ParentLocator, VirtualDisk};

/// A metadata item to add, or to put in the place of one with the same id.
pub(crate) struct NewItem {
    pub item_id: Guid,
    pub flags: u32,
    pub bytes: Vec<u8>,
}

/// Pages that differ from the file, by offset.
type Changes = BTreeMap<u64, Box<Page>>;

impl WritableVhdx {
    /// Rewrites where a differencing file says that its parent is. Durable on return. What the disk reads as is not
    /// affected, so its DataWriteGuid stays.
    pub fn set_parent_locator(&mut self, locator: &ParentLocator) -> Result<(), WriteError> {
        if !self.tables.disk.has_parent {
            return Err(WriteError::NotDifferencing);
        }
        let bytes = locator.encode().ok_or(WriteError::MetadataTooLarge)?;
        self.begin(false, None)?;
        self.replace_items(vec![NewItem { item_id: ITEM_PARENT_LOCATOR, flags: FLAG_IS_REQUIRED, bytes }], |_| false)?;
        self.tables.disk.locator = Some(locator.clone());
        Ok(())
    }

    /// Changes the disk's size. Durable on return. What is added reads as zeroes; what is cut off is lost.
    ///
    /// Only leaves may be resized: children of this file become invalid.
    pub fn resize(&mut self, size_bytes: u64) -> Result<(), WriteError> {
        let disk = &self.tables.disk;
        let (logical, physical) = (disk.geometry.logical_sector_bytes, disk.geometry.physical_sector_bytes);
        let shape = BatShape::new(size_bytes, logical, physical, disk.block_bytes)?;
        match size_bytes.cmp(&disk.geometry.size_bytes) {
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Less => {
                self.begin_visible()?;
                self.shrink(size_bytes, shape)
            }
            std::cmp::Ordering::Greater => {
                self.begin_visible()?;
                self.grow(size_bytes, shape)
            }
        }?;
        self.flush()
    }

    fn shrink(&mut self, size_bytes: u64, shape: BatShape) -> Result<(), WriteError> {
        self.flush()?;
        // The size first: then what lies behind it is dead whether or not its entries are cleared.
        self.replace_items(vec![size_item(size_bytes)], |_| false)?;
        self.tables.disk.geometry.size_bytes = size_bytes;
        for block in shape.blocks..self.tables.disk.shape.blocks {
            self.set_block(block, BlockEntry { state: NOT_PRESENT, offset_mib: 0 });
        }
        self.flush()?;
        for chunk in shape.chunks..self.tables.disk.shape.chunks {
            if let Some(offset_mib) = self.tables.bat.bitmap(chunk) {
                self.space.free(offset_mib..offset_mib + 1);
                let entry = self.tables.disk.shape.bitmap_entry(chunk);
                self.tables.bat.set_bitmap(chunk, 0);
                self.set_bat_page_dirty(entry / (PAGE / 8) as u32);
            }
        }
        self.flush()?;
        self.tables.bat.resize(&shape);
        self.tables.disk.shape = shape;
        Ok(())
    }

    fn grow(&mut self, size_bytes: u64, shape: BatShape) -> Result<(), WriteError> {
        self.flush()?;
        let old = self.tables.disk.shape;
        self.clear_behind_end()?;
        let mut items = vec![size_item(size_bytes)];
        let has_parent = self.tables.disk.has_parent;
        let entries = if has_parent { shape.entries_with_bitmaps() } else { shape.entries_without_bitmaps() };
        self.tables.bat.resize(&shape);
        self.tables.disk.shape = shape;
        // A larger parent must not show through where this disk did not reach.
        let new_state = if has_parent { ZERO } else { NOT_PRESENT };
        for block in old.blocks..shape.blocks {
            let mut entry = BlockEntry { state: new_state, offset_mib: 0 };
            if self.tables.disk.leave_block_allocated && !has_parent {
                entry = BlockEntry { state: FULLY_PRESENT, offset_mib: self.allocate_zeroed()? };
            }
            self.set_block(block, entry);
        }
        let old_region = self.tables.bat_region.clone();
        if u64::from(entries) * 8 > old_region.end - old_region.start {
            self.relocate_bat(&mut items, size_bytes)?;
        } else {
            let first = old.entries_without_bitmaps() / (PAGE / 8) as u32;
            for page in first..entries.div_ceil((PAGE / 8) as u32) {
                let at = old_region.start + u64::from(page) * PAGE as u64;
                // Entries behind the old end may be stale.
                if read_page(&self.session.file, at)? != self.bat_page(page) {
                    self.set_bat_page_dirty(page);
                }
            }
            self.flush()?;
            self.replace_items(items, |_| false)?;
        }
        self.tables.disk.geometry.size_bytes = size_bytes;
        Ok(())
    }

    /// Makes the rest of the last block zero, so that it is when the disk reaches there.
    fn clear_behind_end(&mut self) -> Result<(), WriteError> {
        let last = self.tables.disk.shape.blocks - 1;
        let end = self.geometry().size_bytes;
        let block_end = (u64::from(last) + 1) * u64::from(self.tables.disk.block_bytes);
        let state = self.tables.bat.block(last).state;
        let matters =
            matches!(state, FULLY_PRESENT | PARTIALLY_PRESENT) || (state == NOT_PRESENT && self.tables.disk.has_parent);
        if !matters || end == block_end {
            return Ok(());
        }
        // `write_in_block` would take a write that reaches the end of the disk for one of the whole block only if it
        // started where the block does; this one starts at the end.
        let zeroes = vec![0; (block_end - end).min(MIB) as usize];
        for at in (end..block_end).step_by(MIB as usize) {
            self.write_in_block(at, &zeroes[..(block_end - at).min(MIB) as usize])?;
        }
        self.flush()
    }

    fn allocate_zeroed(&mut self) -> Result<u32, WriteError> {
        let block_bytes = self.tables.disk.block_bytes;
        let (offset_mib, zeroed) = self.allocate(block_bytes)?;
        let at = u64::from(offset_mib) * MIB;
        if !zeroed {
            let cleared = self.session.file.write_zeroes(at..at + u64::from(block_bytes));
            cleared.map_err(WriteError::io("zero a payload block", at))?;
        }
        Ok(offset_mib)
    }

    /// Writes the whole BAT to a larger region, then switches to it together with the new size.
    fn relocate_bat(&mut self, items: &mut Vec<NewItem>, size_bytes: u64) -> Result<(), WriteError> {
        let len = self.tables.disk.shape.region_len();
        let (offset_mib, _) = self.allocate(u32::try_from(len).map_err(|_| WriteError::MetadataTooLarge)?)?;
        let region = u64::from(offset_mib) * MIB..u64::from(offset_mib) * MIB + len;
        for (page, at) in (0..).zip(region.clone().step_by(PAGE)) {
            let written = self.session.file.write_all_at(&self.bat_page(page)[..], at);
            written.map_err(WriteError::io("write the new BAT", at))?;
        }
        let mut changes = Changes::new();
        let metadata = self.tables.metadata.region.start;
        let (entries, placed) = self.place_items(std::mem::take(items), |_| false)?;
        self.patch(&mut changes, metadata, &encode_metadata_table(&entries))?;
        for (offset, bytes) in placed {
            self.patch(&mut changes, metadata + u64::from(offset), &bytes)?;
        }
        let mut regions = self.tables.regions.clone();
        for entry in regions.iter_mut().filter(|entry| entry.guid == REGION_BAT) {
            entry.file_offset = region.start;
            entry.length = u32::try_from(len).map_err(|_| WriteError::MetadataTooLarge)?;
        }
        for at in REGION_TABLE_OFFSETS {
            self.patch(&mut changes, at, &encode_region_table(&regions))?;
        }
        self.commit(changes)?;
        let old = std::mem::replace(&mut self.tables.bat_region, region);
        self.tables.metadata.entries = entries;
        self.tables.regions = regions;
        self.tables.disk.geometry.size_bytes = size_bytes;
        // File offsets are at most 2^47.
        self.space.free((old.start / MIB) as u32..(old.end / MIB) as u32);
        Ok(())
    }

    /// Rewrites both copies of the region table.
    pub(crate) fn repair_region_tables(&mut self) -> Result<(), WriteError> {
        let mut changes = Changes::new();
        let table = encode_region_table(&self.tables.regions);
        for at in REGION_TABLE_OFFSETS {
            self.patch(&mut changes, at, &table)?;
        }
        self.commit(changes)?;
        self.tables.region_tables_differ = false;
        Ok(())
    }

    /// Gives this disk exactly the items of another that belong to the disk and not to the file. The size must be
    /// right already.
    pub(crate) fn take_virtual_disk_items(&mut self, other: &WritableVhdx) -> Result<(), WriteError> {
        let theirs = &other.tables.metadata;
        let mut items = Vec::new();
        for entry in theirs.virtual_disk_items() {
            let bytes = theirs.read_item(&other.session.file, entry).map_err(WriteError::Metadata)?;
            items.push(NewItem { item_id: entry.item_id, flags: entry.flags, bytes });
        }
        self.replace_items(items, |entry| entry.flags & FLAG_IS_VIRTUAL_DISK != 0)?;
        let (id, physical) = (other.tables.disk.virtual_disk_id, other.geometry().physical_sector_bytes);
        self.tables.disk.virtual_disk_id = id;
        self.tables.disk.geometry.physical_sector_bytes = physical;
        Ok(())
    }

    /// Puts items in the place of those with the same id, drops the rest of what `drop` names, and makes all that
    /// durable in one step.
    fn replace_items(&mut self, items: Vec<NewItem>, drop: impl Fn(&MetadataEntry) -> bool) -> Result<(), WriteError> {
        let (entries, placed) = self.place_items(items, drop)?;
        let mut changes = Changes::new();
        let region = self.tables.metadata.region.start;
        self.patch(&mut changes, region, &encode_metadata_table(&entries))?;
        for (offset, bytes) in placed {
            self.patch(&mut changes, region + u64::from(offset), &bytes)?;
        }
        self.commit(changes)?;
        self.tables.metadata.entries = entries;
        Ok(())
    }

    /// The new table, and where the bytes of new items go. Other items stay where they are.
    #[allow(clippy::type_complexity)]
    fn place_items(
        &self,
        items: Vec<NewItem>,
        drop: impl Fn(&MetadataEntry) -> bool,
    ) -> Result<(Vec<MetadataEntry>, Vec<(u32, Vec<u8>)>), WriteError> {
        let same = |entry: &MetadataEntry, item: &NewItem| {
            entry.item_id == item.item_id && (entry.flags ^ item.flags) & FLAG_IS_USER == 0
        };
        let mut entries = self.tables.metadata.entries.clone();
        entries.retain(|entry| items.iter().any(|item| same(entry, item)) || !drop(entry));
        let mut occupied: Vec<Range<u64>> = entries
            .iter()
            .filter(|entry| !items.iter().any(|item| same(entry, item)))
            .map(|entry| u64::from(entry.offset)..u64::from(entry.offset) + u64::from(entry.length))
            .collect();
        let region_len = self.tables.metadata.region.end - self.tables.metadata.region.start;
        let mut placed = Vec::new();
        for item in items {
            let len = item.bytes.len() as u64;
            let fits = |at: u64| at + len <= region_len && occupied.iter().all(|o| at + len <= o.start || o.end <= at);
            let starts = || occupied.iter().map(|o| o.end).filter(|&end| end >= METADATA_TABLE_LEN as u64);
            let at = [METADATA_TABLE_LEN as u64].into_iter().chain(starts()).filter(|&at| fits(at)).min();
            let at = if len == 0 { 0 } else { at.ok_or(WriteError::MetadataTooLarge)? };
            let offset = u32::try_from(at).map_err(|_| WriteError::MetadataTooLarge)?;
            let new =
                MetadataEntry { item_id: item.item_id, offset, length: item.bytes.len() as u32, flags: item.flags };
            match entries.iter_mut().find(|entry| same(entry, &item)) {
                Some(entry) => *entry = new,
                None => entries.push(new),
            }
            occupied.push(at..at + len);
            placed.push((offset, item.bytes));
        }
        match entries.len() <= crate::format::MAX_TABLE_ENTRIES as usize {
            true => Ok((entries, placed)),
            false => Err(WriteError::MetadataTooLarge),
        }
    }

    /// Puts bytes into the pages they lie in.
    fn patch(&self, changes: &mut Changes, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let end = offset + bytes.len() as u64;
        for page_at in (offset - offset % PAGE as u64..end).step_by(PAGE) {
            let page = match changes.entry(page_at) {
                std::collections::btree_map::Entry::Occupied(page) => page.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => {
                    place.insert(read_page(&self.session.file, page_at)?)
                }
            };
            let from = offset.max(page_at);
            let to = end.min(page_at + PAGE as u64);
            let part = &bytes[(from - offset) as usize..(to - offset) as usize];
            put(&mut page[..], (from - page_at) as usize, part);
        }
        Ok(())
    }

    /// Logs the pages that really change, in one entry.
    fn commit(&mut self, changes: Changes) -> Result<(), WriteError> {
        let mut pages = Vec::new();
        for (at, page) in changes {
            if read_page(&self.session.file, at)? != page {
                pages.push((at, page));
            }
        }
        if pages.len() > MAX_ATOMIC_PAGES {
            return Err(WriteError::MetadataTooLarge);
        }
        self.session.log_pages(&pages)
    }
}

fn size_item(size_bytes: u64) -> NewItem {
    let flags = FLAG_IS_VIRTUAL_DISK | FLAG_IS_REQUIRED;
    NewItem { item_id: ITEM_VIRTUAL_DISK_SIZE, flags, bytes: Vec::from(size_bytes.to_le_bytes()) }
}

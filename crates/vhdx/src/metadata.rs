//! The metadata region: what is known of a disk beside its blocks (MS-VHDX 2.6).

use std::ops::Range;

use crate::format::{
    FLAG_IS_REQUIRED, FLAG_IS_USER, FLAG_IS_VIRTUAL_DISK, HAS_PARENT, ITEM_CHS_PARAMETERS, ITEM_FILE_PARAMETERS,
    ITEM_INCOMPLETE, ITEM_LOGICAL_SECTOR_SIZE, ITEM_PARENT_LOCATOR, ITEM_PHYSICAL_SECTOR_SIZE, ITEM_PMEM_LABELS,
    ITEM_VIRTUAL_DISK_ID, ITEM_VIRTUAL_DISK_SIZE, LEAVE_BLOCK_ALLOCATED, MAX_TABLE_ENTRIES, METADATA_SIGNATURE,
    METADATA_TABLE_LEN, MIB, MetadataEntry, array_at, guid_at, u16_at, u32_at, u64_at,
};
use crate::layout::BatShape;
use crate::{DiskGeometry, Guid, OpenError, ParentLocator, ReadAt};

/// The metadata table, validated; items are read when asked for.
#[derive(Debug, Clone)]
pub(crate) struct Metadata {
    /// The region in the file.
    pub region: Range<u64>,
    pub entries: Vec<MetadataEntry>,
}

/// The items every file has.
#[derive(Debug, Clone)]
pub(crate) struct DiskParameters {
    pub geometry: DiskGeometry,
    pub block_bytes: u32,
    pub leave_block_allocated: bool,
    pub has_parent: bool,
    pub virtual_disk_id: Guid,
    pub locator: Option<ParentLocator>,
    pub shape: BatShape,
}

const MAX_USER_ITEMS: usize = 1024;
const MAX_CATEGORY_BYTES: u64 = 40 * MIB;

impl Metadata {
    pub(crate) fn read(file: &dyn ReadAt, region: Range<u64>) -> Result<Self, OpenError> {
        let at = region.start;
        let bad = |problem: String| OpenError::corrupt("metadata table", at, problem);
        let mut table = vec![0; METADATA_TABLE_LEN];
        file.read_exact_at(&mut table, at).map_err(OpenError::read("metadata table", at))?;
        if table[..8] != METADATA_SIGNATURE {
            return Err(bad("no signature".into()));
        }
        let count = u32::from(u16_at(&table, 10));
        if count > MAX_TABLE_ENTRIES {
            return Err(bad(format!("EntryCount {count}, at most {MAX_TABLE_ENTRIES} expected")));
        }
        if table[8..10].iter().chain(&table[12..32]).any(|&b| b != 0) {
            return Err(bad("reserved bytes are not zero".into()));
        }
        let mut entries = Vec::with_capacity(count as usize);
        for (index, bytes) in table[32..].chunks_exact(32).take(count as usize).enumerate() {
            let entry = MetadataEntry {
                item_id: guid_at(bytes, 0),
                offset: u32_at(bytes, 16),
                length: u32_at(bytes, 20),
                flags: u32_at(bytes, 24),
            };
            check_entry(&entry, u32_at(bytes, 28), region.end - region.start)
                .map_err(|problem| bad(format!("entry {index}: {problem}")))?;
            entries.push(entry);
        }
        check_together(&entries).map_err(bad)?;
        let metadata = Metadata { region, entries };
        metadata.check_known()?;
        Ok(metadata)
    }

    /// Refuses what must be understood and is not.
    fn check_known(&self) -> Result<(), OpenError> {
        for entry in self.entries.iter().filter(|e| e.flags & FLAG_IS_USER == 0) {
            match entry.item_id {
                ITEM_INCOMPLETE => return Err(OpenError::Incomplete),
                ITEM_FILE_PARAMETERS | ITEM_VIRTUAL_DISK_SIZE | ITEM_LOGICAL_SECTOR_SIZE => {}
                ITEM_PHYSICAL_SECTOR_SIZE | ITEM_VIRTUAL_DISK_ID | ITEM_PARENT_LOCATOR => {}
                ITEM_CHS_PARAMETERS | ITEM_PMEM_LABELS => {}
                unknown if entry.flags & FLAG_IS_REQUIRED != 0 => {
                    return Err(OpenError::Unsupported { what: format!("required metadata item {unknown}") });
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn system_item(&self, item_id: Guid) -> Option<&MetadataEntry> {
        self.entries.iter().find(|e| e.item_id == item_id && e.flags & FLAG_IS_USER == 0)
    }

    /// The items that belong to the disk and not to the file: children inherit them.
    pub(crate) fn virtual_disk_items(&self) -> impl Iterator<Item = &MetadataEntry> {
        self.entries.iter().filter(|e| e.flags & FLAG_IS_VIRTUAL_DISK != 0)
    }

    /// At most 1 MiB.
    pub(crate) fn read_item(&self, file: &dyn ReadAt, entry: &MetadataEntry) -> Result<Vec<u8>, OpenError> {
        let at = self.region.start + u64::from(entry.offset);
        let mut bytes = vec![0; entry.length as usize];
        file.read_exact_at(&mut bytes, at).map_err(OpenError::read("metadata item", at))?;
        Ok(bytes)
    }

    fn required<const N: usize>(&self, file: &dyn ReadAt, item_id: Guid, name: &str) -> Result<[u8; N], OpenError> {
        let at = self.region.start;
        let entry = self
            .system_item(item_id)
            .ok_or_else(|| OpenError::corrupt("metadata table", at, format!("no {name} item")))?;
        if entry.length as usize != N {
            let problem = format!("{name} item of {} bytes, {N} expected", entry.length);
            return Err(OpenError::corrupt("metadata table", at, problem));
        }
        Ok(array_at(&self.read_item(file, entry)?, 0))
    }

    pub(crate) fn disk_parameters(&self, file: &dyn ReadAt) -> Result<DiskParameters, OpenError> {
        let parameters: [u8; 8] = self.required(file, ITEM_FILE_PARAMETERS, "file parameters")?;
        let size: [u8; 8] = self.required(file, ITEM_VIRTUAL_DISK_SIZE, "virtual disk size")?;
        let logical: [u8; 4] = self.required(file, ITEM_LOGICAL_SECTOR_SIZE, "logical sector size")?;
        let physical: [u8; 4] = self.required(file, ITEM_PHYSICAL_SECTOR_SIZE, "physical sector size")?;
        let id: [u8; 16] = self.required(file, ITEM_VIRTUAL_DISK_ID, "virtual disk id")?;
        let (block_bytes, flags) = (u32_at(&parameters, 0), u32_at(&parameters, 4));
        if flags & !(LEAVE_BLOCK_ALLOCATED | HAS_PARENT) != 0 {
            let problem = format!("file parameters flags {flags:#x}");
            return Err(OpenError::corrupt("metadata item", self.region.start, problem));
        }
        let geometry = DiskGeometry {
            size_bytes: u64_at(&size, 0),
            logical_sector_bytes: u32_at(&logical, 0),
            physical_sector_bytes: u32_at(&physical, 0),
        };
        let (logical, physical) = (geometry.logical_sector_bytes, geometry.physical_sector_bytes);
        let shape = BatShape::new(geometry.size_bytes, logical, physical, block_bytes)?;
        let has_parent = flags & HAS_PARENT != 0;
        // The locator of a file without a parent is ignored.
        let locator = match (has_parent, self.system_item(ITEM_PARENT_LOCATOR)) {
            (false, _) => None,
            (true, None) => {
                let problem = "a differencing file without a parent locator";
                return Err(OpenError::corrupt("metadata table", self.region.start, problem));
            }
            (true, Some(entry)) => {
                let at = self.region.start + u64::from(entry.offset);
                Some(ParentLocator::decode(&self.read_item(file, entry)?, at)?)
            }
        };
        Ok(DiskParameters {
            geometry,
            block_bytes,
            leave_block_allocated: flags & LEAVE_BLOCK_ALLOCATED != 0,
            has_parent,
            virtual_disk_id: guid_at(&id, 0),
            locator,
            shape,
        })
    }
}

fn check_entry(entry: &MetadataEntry, reserved: u32, region_len: u64) -> Result<(), String> {
    let known = FLAG_IS_USER | FLAG_IS_VIRTUAL_DISK | FLAG_IS_REQUIRED;
    if entry.item_id.is_zero() {
        return Err("ItemId is zero".into());
    }
    if entry.flags & !known != 0 || reserved != 0 {
        return Err("reserved bits are set".into());
    }
    if entry.flags & FLAG_IS_USER != 0 && entry.flags & FLAG_IS_REQUIRED != 0 {
        return Err("a user item must not be required".into());
    }
    if entry.length == 0 {
        return if entry.offset == 0 { Ok(()) } else { Err("an empty item with an offset".into()) };
    }
    if u64::from(entry.length) > MIB {
        return Err(format!("Length {}, at most 1 MiB expected", entry.length));
    }
    let end = u64::from(entry.offset) + u64::from(entry.length);
    if (entry.offset as usize) < METADATA_TABLE_LEN || end > region_len {
        return Err(format!("{} bytes at {:#x} are outside the region", entry.length, entry.offset));
    }
    Ok(())
}

fn check_together(entries: &[MetadataEntry]) -> Result<(), String> {
    let is_user = |e: &MetadataEntry| e.flags & FLAG_IS_USER != 0;
    let mut ids: Vec<(Guid, bool)> = entries.iter().map(|e| (e.item_id, is_user(e))).collect();
    ids.sort_unstable();
    if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("item {} is there twice", pair[0].0));
    }
    let mut ranges: Vec<(u64, u64)> = entries.iter().map(|e| (e.offset.into(), e.length.into())).collect();
    ranges.retain(|&(_, length)| length > 0);
    ranges.sort_unstable();
    if let Some(pair) = ranges.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        return Err(format!("items at {:#x} and {:#x} overlap", pair[0].0, pair[1].0));
    }
    for user in [false, true] {
        let category = || entries.iter().filter(|e| is_user(e) == user);
        if category().map(|e| u64::from(e.length)).sum::<u64>() > MAX_CATEGORY_BYTES {
            return Err("items are too large together".into());
        }
        if user && category().count() > MAX_USER_ITEMS {
            return Err("too many user items".into());
        }
    }
    Ok(())
}

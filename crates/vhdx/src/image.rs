//! The first megabytes of a new file: everything but the BAT and the blocks.

use crate::format::{
    FLAG_IS_REQUIRED, FLAG_IS_VIRTUAL_DISK, HEADER_OFFSETS, Header, ITEM_FILE_PARAMETERS, ITEM_LOGICAL_SECTOR_SIZE,
    ITEM_PARENT_LOCATOR, ITEM_PHYSICAL_SECTOR_SIZE, ITEM_VIRTUAL_DISK_ID, ITEM_VIRTUAL_DISK_SIZE, METADATA_TABLE_LEN,
    MIB, MetadataEntry, REGION_BAT, REGION_METADATA, REGION_TABLE_OFFSETS, RegionEntry, encode_file_identifier,
    encode_metadata_table, encode_region_table,
};
use crate::{DiskGeometry, Guid};

/// The order of Windows: log, metadata, BAT, blocks.
pub(crate) const LOG_OFFSET: u64 = MIB;
pub(crate) const LOG_LEN: u32 = 1 << 20;
pub(crate) const METADATA_OFFSET: u64 = 2 * MIB;
pub(crate) const METADATA_LEN: u32 = 1 << 20;
pub(crate) const BAT_OFFSET: u64 = 3 * MIB;

/// What a new file says of itself.
pub(crate) struct Head<'a> {
    pub creator: &'a str,
    pub file_write_guid: Guid,
    pub data_write_guid: Guid,
    pub virtual_disk_id: Guid,
    pub geometry: DiskGeometry,
    pub block_bytes: u32,
    /// File parameters.
    pub flags: u32,
    /// At most 513 MiB.
    pub bat_len: u64,
    pub locator: Option<&'a [u8]>,
    /// Further items, as their entries' id and flags and their bytes.
    pub more_items: &'a [(Guid, u32, Vec<u8>)],
}

/// A new file needs more metadata than its metadata region can hold.
#[derive(Debug)]
pub(crate) struct MetadataTooLarge;

impl Head<'_> {
    /// The pieces before the BAT that are not zero, by offset.
    pub(crate) fn pieces(&self) -> Result<Vec<(u64, Vec<u8>)>, MetadataTooLarge> {
        let mut pieces = vec![(0, encode_file_identifier(self.creator))];
        for (sequence_number, at) in (1..).zip(HEADER_OFFSETS) {
            let header = Header {
                sequence_number,
                file_write_guid: self.file_write_guid,
                data_write_guid: self.data_write_guid,
                log_guid: Guid::ZERO,
                log_version: 0,
                version: 1,
                log_length: LOG_LEN,
                log_offset: LOG_OFFSET,
            };
            pieces.push((at, Vec::from(header.encode())));
        }
        let bat_len = u32::try_from(self.bat_len).expect("a BAT region is at most 513 MiB");
        let regions = [
            RegionEntry { guid: REGION_BAT, file_offset: BAT_OFFSET, length: bat_len, flags: 1 },
            RegionEntry { guid: REGION_METADATA, file_offset: METADATA_OFFSET, length: METADATA_LEN, flags: 1 },
        ];
        for at in REGION_TABLE_OFFSETS {
            pieces.push((at, encode_region_table(&regions)));
        }
        pieces.push((METADATA_OFFSET, self.metadata()?));
        Ok(pieces)
    }

    /// Table and items, in the order and at the offsets of Windows.
    fn metadata(&self) -> Result<Vec<u8>, MetadataTooLarge> {
        let mut parameters = Vec::from(self.block_bytes.to_le_bytes());
        parameters.extend_from_slice(&self.flags.to_le_bytes());
        let of_disk = FLAG_IS_VIRTUAL_DISK | FLAG_IS_REQUIRED;
        let mut items = vec![
            (ITEM_FILE_PARAMETERS, FLAG_IS_REQUIRED, parameters),
            (ITEM_VIRTUAL_DISK_SIZE, of_disk, Vec::from(self.geometry.size_bytes.to_le_bytes())),
            (ITEM_LOGICAL_SECTOR_SIZE, of_disk, Vec::from(self.geometry.logical_sector_bytes.to_le_bytes())),
            (ITEM_PHYSICAL_SECTOR_SIZE, of_disk, Vec::from(self.geometry.physical_sector_bytes.to_le_bytes())),
            (ITEM_VIRTUAL_DISK_ID, of_disk, Vec::from(self.virtual_disk_id.to_stored())),
        ];
        items.extend(self.locator.map(|bytes| (ITEM_PARENT_LOCATOR, FLAG_IS_REQUIRED, bytes.to_vec())));
        items.extend_from_slice(self.more_items);

        let mut entries = Vec::new();
        let mut content: Vec<u8> = Vec::new();
        for (item_id, flags, bytes) in &items {
            let offset = if bytes.is_empty() { 0 } else { METADATA_TABLE_LEN + content.len() };
            if offset + bytes.len() > METADATA_LEN as usize {
                return Err(MetadataTooLarge);
            }
            entries.push(MetadataEntry {
                item_id: *item_id,
                offset: offset as u32,
                length: bytes.len() as u32,
                flags: *flags,
            });
            content.extend_from_slice(bytes);
        }
        let mut region = encode_metadata_table(&entries);
        region.append(&mut content);
        Ok(region)
    }
}

//! The layout of a VHDX file on disk: constants and fixed-width structures (MS-VHDX 2).
//!
//! `decode` functions check a structure's signature and checksum and nothing else; what the fields may hold
//! is judged by whoever uses them.

use crate::Guid;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const TIB: u64 = 1 << 40;

/// Largest virtual disk (MS-VHDX 2.6.2.2).
pub(crate) const MAX_DISK_BYTES: u64 = 64 * TIB;
/// Largest file that is opened: room for the largest disk twice.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 47;
/// Largest log that is opened; the format has no limit of its own.
pub(crate) const MAX_LOG_BYTES: u32 = 1 << 30;
/// Largest BAT region: 64 TiB of 1 MiB blocks need 512.2 MiB.
pub(crate) const MAX_BAT_BYTES: u64 = 513 * MIB;

/// File identifier (MS-VHDX 2.2.1).
pub(crate) const FILE_SIGNATURE: [u8; 8] = *b"vhdxfile";
pub(crate) const CREATOR_OFFSET: usize = 8;
pub(crate) const CREATOR_LEN: usize = 512;
/// Headers, region tables (MS-VHDX 2.2).
pub(crate) const HEADER_OFFSETS: [u64; 2] = [64 * KIB, 128 * KIB];
pub(crate) const REGION_TABLE_OFFSETS: [u64; 2] = [192 * KIB, 256 * KIB];
pub(crate) const REGION_TABLE_LEN: usize = 64 * 1024;
pub(crate) const MAX_TABLE_ENTRIES: u32 = 2047;
/// Everything in the first MiB has its fixed place; the rest of the file may lie in any order.
pub(crate) const HEADER_SECTION_LEN: u64 = MIB;

pub(crate) const PAGE: usize = 4096;
/// A 4 KiB page: the unit of the log and of metadata updates.
pub(crate) type Page = [u8; PAGE];

pub(crate) const REGION_BAT: Guid = Guid::from_u128(0x2DC27766_F623_4200_9D64_115E9BFD4A08);
pub(crate) const REGION_METADATA: Guid = Guid::from_u128(0x8B7CA206_4790_4B9A_B8FE_575F050F886E);

pub(crate) const ITEM_FILE_PARAMETERS: Guid = Guid::from_u128(0xCAA16737_FA36_4D43_B3B6_33F0AA44E76B);
pub(crate) const ITEM_VIRTUAL_DISK_SIZE: Guid = Guid::from_u128(0x2FA54224_CD1B_4876_B211_5DBED83BF4B8);
pub(crate) const ITEM_LOGICAL_SECTOR_SIZE: Guid = Guid::from_u128(0x8141BF1D_A96F_4709_BA47_F233A8FAAB5F);
pub(crate) const ITEM_PHYSICAL_SECTOR_SIZE: Guid = Guid::from_u128(0xCDA348C7_445D_4471_9CC9_E9885251C556);
pub(crate) const ITEM_VIRTUAL_DISK_ID: Guid = Guid::from_u128(0xBECA12AB_B2E6_4523_93EF_C309E000C746);
pub(crate) const ITEM_PARENT_LOCATOR: Guid = Guid::from_u128(0xA8D35F2D_B30B_454D_ABF7_D3D84834AB0C);
/// Known to Microsoft's code, not in the published specification: recognised, never written.
pub(crate) const ITEM_CHS_PARAMETERS: Guid = Guid::from_u128(0xDA02D7BC_3D3A_423C_AC88_2A36AB21479B);
pub(crate) const ITEM_PMEM_LABELS: Guid = Guid::from_u128(0x10E1AE8A_4B7E_4169_A40F_CD70DE928393);
pub(crate) const ITEM_INCOMPLETE: Guid = Guid::from_u128(0x71CC85F0_1B69_4E28_9558_C3BF83AE75D3);

pub(crate) const LOCATOR_TYPE_VHDX: Guid = Guid::from_u128(0xB04AEFB7_D19E_4A81_B789_25B8E9445913);

/// Metadata table (MS-VHDX 2.6.1).
pub(crate) const METADATA_SIGNATURE: [u8; 8] = *b"metadata";
pub(crate) const METADATA_TABLE_LEN: usize = 64 * 1024;
pub(crate) const FLAG_IS_USER: u32 = 1;
pub(crate) const FLAG_IS_VIRTUAL_DISK: u32 = 2;
pub(crate) const FLAG_IS_REQUIRED: u32 = 4;
/// File parameters flags (MS-VHDX 2.6.2.1).
pub(crate) const LEAVE_BLOCK_ALLOCATED: u32 = 1;
pub(crate) const HAS_PARENT: u32 = 2;

/// Payload block states (MS-VHDX 2.5.1.1).
pub(crate) const NOT_PRESENT: u8 = 0;
pub(crate) const UNDEFINED: u8 = 1;
pub(crate) const ZERO: u8 = 2;
pub(crate) const UNMAPPED: u8 = 3;
pub(crate) const FULLY_PRESENT: u8 = 6;
pub(crate) const PARTIALLY_PRESENT: u8 = 7;
/// Sector bitmap block states (MS-VHDX 2.5.1.2): 0 or this.
pub(crate) const BITMAP_PRESENT: u8 = 6;

/// One of the two headers (MS-VHDX 2.2.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub sequence_number: u64,
    pub file_write_guid: Guid,
    pub data_write_guid: Guid,
    pub log_guid: Guid,
    pub log_version: u16,
    pub version: u16,
    pub log_length: u32,
    pub log_offset: u64,
}

impl Header {
    pub(crate) fn decode(page: &Page) -> Option<Header> {
        (page[0..4] == *b"head" && checksum_matches(page)).then(|| Header {
            sequence_number: u64_at(page, 8),
            file_write_guid: guid_at(page, 16),
            data_write_guid: guid_at(page, 32),
            log_guid: guid_at(page, 48),
            log_version: u16_at(page, 64),
            version: u16_at(page, 66),
            log_length: u32_at(page, 68),
            log_offset: u64_at(page, 72),
        })
    }

    pub(crate) fn encode(&self) -> Page {
        let mut page = [0; PAGE];
        page[0..4].copy_from_slice(b"head");
        put(&mut page, 8, &self.sequence_number.to_le_bytes());
        put(&mut page, 16, &self.file_write_guid.to_stored());
        put(&mut page, 32, &self.data_write_guid.to_stored());
        put(&mut page, 48, &self.log_guid.to_stored());
        put(&mut page, 64, &self.log_version.to_le_bytes());
        put(&mut page, 66, &self.version.to_le_bytes());
        put(&mut page, 68, &self.log_length.to_le_bytes());
        put(&mut page, 72, &self.log_offset.to_le_bytes());
        set_checksum(&mut page);
        page
    }
}

/// One entry of a region table (MS-VHDX 2.2.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RegionEntry {
    pub guid: Guid,
    pub file_offset: u64,
    pub length: u32,
    pub flags: u32,
}

/// The entries of a region table, or `None` when its signature, checksum or count is wrong.
pub(crate) fn decode_region_table(table: &[u8; REGION_TABLE_LEN]) -> Option<Vec<RegionEntry>> {
    let count = u32_at(table, 8);
    if table[0..4] != *b"regi" || count > MAX_TABLE_ENTRIES || !checksum_matches(table) {
        return None;
    }
    let entries = table[16..].chunks_exact(32).take(count as usize);
    let entry = |e: &[u8]| RegionEntry {
        guid: guid_at(e, 0),
        file_offset: u64_at(e, 16),
        length: u32_at(e, 24),
        flags: u32_at(e, 28),
    };
    Some(entries.map(entry).collect())
}

pub(crate) fn encode_region_table(entries: &[RegionEntry]) -> Vec<u8> {
    assert!(entries.len() <= MAX_TABLE_ENTRIES as usize);
    let mut table = vec![0; REGION_TABLE_LEN];
    table[0..4].copy_from_slice(b"regi");
    put(&mut table, 8, &(entries.len() as u32).to_le_bytes());
    for (entry, at) in entries.iter().zip((16..).step_by(32)) {
        put(&mut table, at, &entry.guid.to_stored());
        put(&mut table, at + 16, &entry.file_offset.to_le_bytes());
        put(&mut table, at + 24, &entry.length.to_le_bytes());
        put(&mut table, at + 28, &entry.flags.to_le_bytes());
    }
    set_checksum(&mut table);
    table
}

/// One entry of the metadata table (MS-VHDX 2.6.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MetadataEntry {
    pub item_id: Guid,
    /// From the start of the metadata region; 0 for an empty item.
    pub offset: u32,
    pub length: u32,
    pub flags: u32,
}

pub(crate) fn encode_metadata_table(entries: &[MetadataEntry]) -> Vec<u8> {
    assert!(entries.len() <= MAX_TABLE_ENTRIES as usize);
    let mut table = vec![0; METADATA_TABLE_LEN];
    table[0..8].copy_from_slice(&METADATA_SIGNATURE);
    put(&mut table, 10, &(entries.len() as u16).to_le_bytes());
    for (entry, at) in entries.iter().zip((32..).step_by(32)) {
        put(&mut table, at, &entry.item_id.to_stored());
        put(&mut table, at + 16, &entry.offset.to_le_bytes());
        put(&mut table, at + 20, &entry.length.to_le_bytes());
        put(&mut table, at + 24, &entry.flags.to_le_bytes());
    }
    table
}

/// The file identifier's 64 KiB.
pub(crate) fn encode_file_identifier(creator: &str) -> Vec<u8> {
    let mut bytes = vec![0; 64 * 1024];
    bytes[0..8].copy_from_slice(&FILE_SIGNATURE);
    for (unit, at) in creator.encode_utf16().take(CREATOR_LEN / 2 - 1).zip((CREATOR_OFFSET..).step_by(2)) {
        put(&mut bytes, at, &unit.to_le_bytes());
    }
    bytes
}

/// A log entry's header (MS-VHDX 2.3.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogEntryHeader {
    pub checksum: u32,
    pub entry_length: u32,
    pub tail: u32,
    pub sequence_number: u64,
    pub descriptor_count: u32,
    pub log_guid: Guid,
    pub flushed_file_offset: u64,
    pub last_file_offset: u64,
}

pub(crate) const LOG_ENTRY_HEADER_LEN: usize = 64;
pub(crate) const LOG_DESCRIPTOR_LEN: usize = 32;

impl LogEntryHeader {
    /// Looks at the signature only: the checksum covers the whole entry.
    pub(crate) fn decode(sector: &Page) -> Option<LogEntryHeader> {
        (sector[0..4] == *b"loge").then(|| LogEntryHeader {
            checksum: u32_at(sector, 4),
            entry_length: u32_at(sector, 8),
            tail: u32_at(sector, 12),
            sequence_number: u64_at(sector, 16),
            descriptor_count: u32_at(sector, 24),
            log_guid: guid_at(sector, 32),
            flushed_file_offset: u64_at(sector, 48),
            last_file_offset: u64_at(sector, 56),
        })
    }

    /// The first 64 bytes, with a checksum of zero.
    pub(crate) fn encode(&self, sector: &mut [u8]) {
        put(sector, 0, b"loge");
        put(sector, 8, &self.entry_length.to_le_bytes());
        put(sector, 12, &self.tail.to_le_bytes());
        put(sector, 16, &self.sequence_number.to_le_bytes());
        put(sector, 24, &self.descriptor_count.to_le_bytes());
        put(sector, 32, &self.log_guid.to_stored());
        put(sector, 48, &self.flushed_file_offset.to_le_bytes());
        put(sector, 56, &self.last_file_offset.to_le_bytes());
    }
}

/// Sectors of an entry that hold its header and descriptors.
pub(crate) fn log_descriptor_sectors(descriptor_count: u32) -> u64 {
    (LOG_ENTRY_HEADER_LEN as u64 + LOG_DESCRIPTOR_LEN as u64 * u64::from(descriptor_count)).div_ceil(PAGE as u64)
}

/// CRC-32C over `bytes` with the four bytes at offset 4, where every structure keeps it, taken as zero.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&bytes[..4]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[8..])
}

fn checksum_matches(bytes: &[u8]) -> bool {
    u32_at(bytes, 4) == checksum(bytes)
}

pub(crate) fn set_checksum(bytes: &mut [u8]) {
    let crc = checksum(bytes);
    put(bytes, 4, &crc.to_le_bytes());
}

// The accessors below are for places inside structures whose size is known; they panic outside.

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn guid_at(bytes: &[u8], at: usize) -> Guid {
    Guid::from_stored(array_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_vectors() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c::crc32c(&[0; 4096]), 0x98F9_4189);
    }

    #[test]
    fn a_header_survives_and_a_flipped_bit_does_not() {
        let header = Header {
            sequence_number: 7,
            file_write_guid: Guid::random(),
            data_write_guid: Guid::random(),
            log_guid: Guid::ZERO,
            log_version: 0,
            version: 1,
            log_length: 1 << 20,
            log_offset: MIB,
        };
        let page = header.encode();
        assert_eq!(Header::decode(&page), Some(header));
        for at in [0, 4, 8, 80, 4095] {
            let mut torn = page;
            torn[at] ^= 1;
            assert_eq!(Header::decode(&torn), None, "byte {at}");
        }
    }

    #[test]
    fn descriptor_sectors_grow_at_127_and_255() {
        for (descriptors, sectors) in [(0, 1), (1, 1), (126, 1), (127, 2), (254, 2), (255, 3)] {
            assert_eq!(log_descriptor_sectors(descriptors), sectors, "{descriptors} descriptors");
        }
    }
}

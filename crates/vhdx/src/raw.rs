//! A file that is the disk.

use std::ops::Range;
use std::sync::Arc;

use crate::extent::DiskLayer;
use crate::format::MAX_FILE_BYTES;
use crate::info::{DiskKind, FileFormat, FileInfo};
use crate::{DiskGeometry, FileExtentKind, Guid, OpenError, ReadAt, ReadError};

/// A raw disk open for reading.
pub struct RawFile {
    file: Arc<dyn ReadAt>,
    size: u64,
}

const SECTOR: u32 = 512;

impl RawFile {
    /// Takes a file as a disk of 512-byte sectors; its length must be a multiple of that.
    pub fn open(file: Arc<dyn ReadAt>) -> Result<Self, OpenError> {
        let size = file.len_bytes().map_err(OpenError::read("file length", 0))?;
        if size == 0 || size > MAX_FILE_BYTES || !size.is_multiple_of(SECTOR.into()) {
            return Err(OpenError::Unsupported { what: format!("a raw disk of {size} bytes") });
        }
        Ok(RawFile { file, size })
    }

    /// Size and sector sizes.
    pub fn geometry(&self) -> DiskGeometry {
        DiskGeometry { size_bytes: self.size, logical_sector_bytes: SECTOR, physical_sector_bytes: SECTOR }
    }

    /// What is known of the file.
    pub fn info(&self) -> FileInfo {
        FileInfo {
            format: FileFormat::Raw,
            kind: DiskKind::Fixed,
            geometry: self.geometry(),
            file_len_bytes: self.size,
            block_bytes: 0,
            blocks: 0,
            allocated_blocks: 0,
            file_write_guid: Guid::ZERO,
            data_write_guid: Guid::ZERO,
            virtual_disk_id: Guid::ZERO,
            creator: String::new(),
            log_dirty: false,
            parent: None,
            warnings: Vec::new(),
        }
    }
}

impl DiskLayer for RawFile {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn source(&self) -> &dyn ReadAt {
        &*self.file
    }

    fn visit(
        &self,
        range: Range<u64>,
        visitor: &mut dyn FnMut(Range<u64>, FileExtentKind) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let file_offset_bytes = range.start;
        visitor(range, FileExtentKind::Data { file_offset_bytes })
    }
}

//! Writing VHD files, as far as VMs with such disks need it: fixed ones, and the differencing children of checkpoints.
//!
//! Reading is the `vhdx` crate's. Source: Virtual Hard Disk Image Format Specification (2006); big-endian throughout.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use vhdx::{DiskGeometry, FileExtentKind, OpenOptions, OpenedDisk, ReadAt, VirtualDisk, WriteAt};

use crate::error::LabError;

const SECTOR: u64 = 512;
const FOOTER_BYTES: u64 = 512;
const HEADER_AT: u64 = 512;
const HEADER_BYTES: usize = 1024;
const TABLE_AT: u64 = HEADER_AT + HEADER_BYTES as u64;
const BLOCK_BYTES: u64 = 2 << 20;
const BITMAP_BYTES: u64 = BLOCK_BYTES / SECTOR / 8;
const ABSENT: u32 = u32::MAX;
const FIXED: u32 = 2;
const DIFFERENCING: u32 = 4;

/// A VHD open for writing; reading sees the whole chain.
pub(crate) struct VhdWriter {
    path: PathBuf,
    options: OpenOptions,
    file: File,
    size_bytes: u64,
    /// First sector of each block's bitmap, of a differencing file.
    table: Option<Vec<u32>>,
}

/// Makes a fixed VHD of zeroes.
pub(crate) fn create_fixed(path: &Path, size_bytes: u64) -> Result<(), LabError> {
    let file = File::create_new(path).map_err(LabError::io("create", path))?;
    let footer = footer(FIXED, size_bytes, u64::MAX, crate::state::new_uuid().as_bytes());
    WriteAt::set_len(&file, size_bytes + FOOTER_BYTES).map_err(LabError::io("extend", path))?;
    file.write_all_at(&footer, size_bytes).map_err(LabError::io("write", path))
}

/// Makes a child of a VHD.
pub(crate) fn create_child(path: &Path, parent: &Path, options: &OpenOptions) -> Result<(), LabError> {
    let opened = open(parent, options)?;
    let info = opened.layers().first().expect("an opened disk has at least one file").file.info();
    let size_bytes = opened.geometry().size_bytes;
    let entries = size_bytes.div_ceil(BLOCK_BYTES);
    let table_bytes = (entries * 4).next_multiple_of(SECTOR);
    let name: Vec<u16> = parent.file_name().unwrap_or_default().to_string_lossy().encode_utf16().collect();
    let relative: Vec<u8> = r".\".encode_utf16().chain(name.iter().copied()).flat_map(u16::to_le_bytes).collect();
    let locator_at = TABLE_AT + table_bytes;

    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(b"cxsparse");
    header[8..16].fill(0xFF);
    put64(&mut header, 16, TABLE_AT);
    put32(&mut header, 24, 0x0001_0000);
    put32(&mut header, 28, entries as u32);
    put32(&mut header, 32, BLOCK_BYTES as u32);
    let parent_id = uuid::Uuid::try_parse(&info.data_write_guid.to_string()).expect("a GUID is one for everybody");
    header[40..56].copy_from_slice(parent_id.as_bytes());
    for (at, unit) in name.iter().take(255).enumerate() {
        header[64 + 2 * at..66 + 2 * at].copy_from_slice(&unit.to_be_bytes());
    }
    header[576..580].copy_from_slice(b"W2ru");
    put32(&mut header, 580, SECTOR as u32);
    put32(&mut header, 584, relative.len() as u32);
    put64(&mut header, 592, locator_at);
    let sum = checksum(&header);
    put32(&mut header, 36, sum);

    let footer = footer(DIFFERENCING, size_bytes, HEADER_AT, crate::state::new_uuid().as_bytes());
    let file = File::create_new(path).map_err(LabError::io("create", path))?;
    let mut content = footer.to_vec();
    content.extend(header);
    content.resize(content.len() + table_bytes as usize, 0xFF);
    content.extend(&relative);
    content.resize((locator_at as usize + relative.len()).next_multiple_of(SECTOR as usize), 0);
    content.extend(footer);
    file.write_all_at(&content, 0).map_err(LabError::io("write", path))
}

/// Folds a child into its parent.
pub(crate) fn merge(child: &Path, parent: &Path, options: &OpenOptions) -> Result<(), LabError> {
    let opened = open(child, options)?;
    let layer = opened.layers().first().expect("an opened disk has at least one file");
    let mut target = VhdWriter::open(parent, options)?;
    let size_bytes = opened.geometry().size_bytes;
    for start in (0..size_bytes).step_by(BLOCK_BYTES as usize) {
        for extent in layer.file.file_extents(start..(start + BLOCK_BYTES).min(size_bytes))? {
            if matches!(extent.kind, FileExtentKind::Parent) {
                continue;
            }
            let mut data = vec![0; (extent.range.end - extent.range.start) as usize];
            opened.read_exact_at(&mut data, extent.range.start)?;
            target.write(&data, extent.range.start)?;
        }
    }
    Ok(())
}

impl VhdWriter {
    pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Self, LabError> {
        let size_bytes = open(path, options)?.geometry().size_bytes;
        let file = File::options().read(true).write(true).open(path).map_err(LabError::io("open", path))?;
        let mut table = None;
        let mut start = [0; 64];
        file.read_exact_at(&mut start, 0).map_err(LabError::io("read", path))?;
        // Only files that are not fixed have a footer at their start.
        if start[..8] == *b"conectix" {
            if u32::from_be_bytes(start[60..64].try_into().expect("four bytes")) != DIFFERENCING {
                return Err(LabError::refused("write a VHD", format!("{} is dynamic", path.display())));
            }
            let mut bytes = vec![0; (size_bytes.div_ceil(BLOCK_BYTES) * 4) as usize];
            file.read_exact_at(&mut bytes, TABLE_AT).map_err(LabError::io("read", path))?;
            let entry = |four: &[u8]| u32::from_be_bytes(four.try_into().expect("four bytes"));
            table = Some(bytes.chunks_exact(4).map(entry).collect());
        }
        Ok(Self { path: path.to_owned(), options: options.clone(), file, size_bytes, table })
    }

    pub(crate) fn geometry(&self) -> DiskGeometry {
        let sector = SECTOR as u32;
        DiskGeometry { size_bytes: self.size_bytes, logical_sector_bytes: sector, physical_sector_bytes: sector }
    }

    pub(crate) fn write(&mut self, data: &[u8], offset_bytes: u64) -> Result<(), LabError> {
        let end = offset_bytes + data.len() as u64;
        if self.table.is_none() {
            return self.file.write_all_at(data, offset_bytes).map_err(LabError::io("write", &self.path));
        }
        // Sectors are kept as wholes: the edges are filled up from what the disk reads as.
        let whole = offset_bytes / SECTOR * SECTOR..end.next_multiple_of(SECTOR);
        let mut sectors = vec![0; (whole.end - whole.start) as usize];
        open(&self.path, &self.options)?.read_exact_at(&mut sectors, whole.start)?;
        let at = (offset_bytes - whole.start) as usize;
        sectors[at..at + data.len()].copy_from_slice(data);
        let mut start = whole.start;
        while start < whole.end {
            let block_end = (start / BLOCK_BYTES + 1) * BLOCK_BYTES;
            let piece = start..whole.end.min(block_end);
            let from = (piece.start - whole.start) as usize;
            self.write_in_block(&sectors[from..from + (piece.end - piece.start) as usize], piece.clone())?;
            start = piece.end;
        }
        Ok(())
    }

    /// Whole sectors inside one block.
    fn write_in_block(&mut self, sectors: &[u8], range: Range<u64>) -> Result<(), LabError> {
        let block = range.start / BLOCK_BYTES;
        let bitmap_at = self.allocated(block)?;
        let failed = || LabError::io("write", self.path.clone());
        let in_block = range.start % BLOCK_BYTES;
        self.file.write_all_at(sectors, bitmap_at + BITMAP_BYTES + in_block).map_err(failed())?;
        let mut bitmap = vec![0; BITMAP_BYTES as usize];
        self.file.read_exact_at(&mut bitmap, bitmap_at).map_err(failed())?;
        let first = in_block / SECTOR;
        for sector in first..first + sectors.len() as u64 / SECTOR {
            bitmap[(sector / 8) as usize] |= 0x80 >> (sector % 8);
        }
        self.file.write_all_at(&bitmap, bitmap_at).map_err(failed())
    }

    /// Where a block's bitmap is; a block that is not there yet takes the place of the footer, which moves behind it.
    fn allocated(&mut self, block: u64) -> Result<u64, LabError> {
        let table = self.table.as_mut().expect("only differencing files have blocks");
        let entry = &mut table[block as usize];
        if *entry != ABSENT {
            return Ok(u64::from(*entry) * SECTOR);
        }
        let failed = || LabError::io("write", self.path.clone());
        let mut footer = [0; FOOTER_BYTES as usize];
        self.file.read_exact_at(&mut footer, 0).map_err(failed())?;
        let at = self.file.len_bytes().map_err(failed())? - FOOTER_BYTES;
        let end = at + BITMAP_BYTES + BLOCK_BYTES;
        self.file.write_all_at(&footer, end).map_err(failed())?;
        self.file.write_all_at(&vec![0; BITMAP_BYTES as usize], at).map_err(failed())?;
        *entry = (at / SECTOR) as u32;
        self.file.write_all_at(&entry.to_be_bytes(), TABLE_AT + 4 * block).map_err(failed())?;
        Ok(at)
    }
}

fn open(path: &Path, options: &OpenOptions) -> Result<OpenedDisk, LabError> {
    vhdx::open_disk(path, options).map_err(LabError::disk("open", &path.display().to_string()))
}

fn footer(kind: u32, size_bytes: u64, data_at: u64, id: &[u8; 16]) -> [u8; FOOTER_BYTES as usize] {
    let mut footer = [0; FOOTER_BYTES as usize];
    footer[..8].copy_from_slice(b"conectix");
    put32(&mut footer, 8, 2);
    put32(&mut footer, 12, 0x0001_0000);
    put64(&mut footer, 16, data_at);
    footer[28..32].copy_from_slice(b"hvsm");
    put32(&mut footer, 32, 0x000A_0000);
    footer[36..40].copy_from_slice(b"Wi2k");
    put64(&mut footer, 40, size_bytes);
    put64(&mut footer, 48, size_bytes);
    let (cylinders, heads, sectors) = chs(size_bytes / SECTOR);
    put32(&mut footer, 56, cylinders << 16 | heads << 8 | sectors);
    put32(&mut footer, 60, kind);
    footer[68..84].copy_from_slice(id);
    let sum = footer.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    put32(&mut footer, 64, !sum);
    footer
}

/// The geometry that the specification's appendix computes.
fn chs(sectors: u64) -> (u32, u32, u32) {
    let total = sectors.min(65535 * 16 * 255);
    let mut per_track = 17;
    let mut cylinder_heads = total / per_track;
    let mut heads = cylinder_heads.div_ceil(1024).max(4);
    if total >= 65535 * 16 * 63 {
        (per_track, heads) = (255, 16);
        cylinder_heads = total / per_track;
    } else {
        for more in [31, 63] {
            if cylinder_heads >= heads * 1024 || heads > 16 {
                (per_track, heads) = (more, 16);
                cylinder_heads = total / per_track;
            }
        }
    }
    ((cylinder_heads / heads) as u32, heads as u32, per_track as u32)
}

fn checksum(header: &[u8]) -> u32 {
    !header.iter().map(|&byte| u32::from(byte)).sum::<u32>()
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

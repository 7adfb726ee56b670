//! The older VHD format, for reading (Virtual Hard Disk Image Format Specification, 2006). Big-endian.

use std::ops::Range;
use std::sync::Arc;

use crate::extent::{DiskLayer, ExtentList, visit_bit_runs};
use crate::format::{MIB, array_at};
use crate::info::{DiskKind, FileFormat, FileInfo};
use crate::{DiskGeometry, FileExtent, FileExtentKind, Guid, OpenError, ParentLocator, ReadAt, ReadError};

const SECTOR: u64 = 512;
const FOOTER_LEN: usize = 512;
const DYNAMIC_HEADER_LEN: usize = 1024;
const ABSENT: u32 = u32::MAX;
/// 2 TiB: what 32-bit sector numbers can reach. Windows stops at 2040 GiB.
const MAX_SIZE: u64 = 1 << 41;
/// 2 MiB is usual and 512 KiB was seen; the lower bound keeps the table small.
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 128 << 10..=256 << 20;
/// A path in a parent locator; Windows cannot have longer ones.
const MAX_LOCATOR_BYTES: u32 = 64 << 10;

/// One VHD file open for reading, without its parents.
pub struct VhdFile {
    file: Arc<dyn ReadAt>,
    file_len: u64,
    footer: Footer,
    blocks: Option<Blocks>,
    locator: Option<ParentLocator>,
}

struct Footer {
    kind: DiskKind,
    data_offset: u64,
    size: u64,
    unique_id: Guid,
    creator: String,
}

/// The block table of a dynamic or differencing file.
struct Blocks {
    block_bytes: u32,
    /// In front of each block's data.
    bitmap_bytes: u64,
    /// First sector of each block's bitmap.
    table: Vec<u32>,
}

impl VhdFile {
    /// Whether a file has a VHD footer at its end, or a copy of one at its start.
    pub(crate) fn detect(file: &dyn ReadAt) -> Result<bool, OpenError> {
        let len = file.len_bytes().map_err(OpenError::read("file length", 0))?;
        let at_end = read_footer(file, len)?;
        Ok(at_end.is_some() || (len >= FOOTER_LEN as u64 && read_at::<FOOTER_LEN>(file, 0)?[..8] == *b"conectix"))
    }

    /// Checks the file.
    pub fn open(file: Arc<dyn ReadAt>) -> Result<Self, OpenError> {
        let file_len = file.len_bytes().map_err(OpenError::read("file length", 0))?;
        let (footer, footer_at) = match read_footer(&*file, file_len)? {
            Some((bytes, at)) => (bytes, at),
            None if file_len >= FOOTER_LEN as u64 => (read_at(&*file, 0)?, 0),
            None => return Err(OpenError::corrupt("VHD footer", 0, "a file this short cannot be a VHD")),
        };
        let footer = Footer::decode(&footer, footer_at)?;
        let content_end = if footer_at == 0 { file_len } else { footer_at };
        let mut vhd = VhdFile { file, file_len, footer, blocks: None, locator: None };
        if vhd.footer.kind == DiskKind::Fixed {
            if vhd.footer.size > content_end {
                let problem = format!("current size {} is more than the file holds", vhd.footer.size);
                return Err(OpenError::corrupt("VHD footer", footer_at, problem));
            }
            return Ok(vhd);
        }
        vhd.read_dynamic(content_end)?;
        Ok(vhd)
    }

    fn read_dynamic(&mut self, content_end: u64) -> Result<(), OpenError> {
        let at = self.footer.data_offset;
        let bad = |problem: String| OpenError::corrupt("VHD dynamic header", at, problem);
        let outside = at.checked_add(DYNAMIC_HEADER_LEN as u64).is_none_or(|end| end > content_end);
        if at < FOOTER_LEN as u64 || outside {
            return Err(bad("outside the file".into()));
        }
        let header: [u8; DYNAMIC_HEADER_LEN] = read_at(&*self.file, at)?;
        if header[..8] != *b"cxsparse" || be32(&header, 36) != checksum(&header, 36) {
            return Err(bad("wrong signature or checksum".into()));
        }
        let (table_at, entries, block_bytes) = (be64(&header, 16), be32(&header, 28), be32(&header, 32));
        if !block_bytes.is_power_of_two() || !BLOCK_BYTES.contains(&block_bytes) {
            return Err(bad(format!("block size {block_bytes} is not possible")));
        }
        // At most 2^41 / 2^17.
        let needed = self.footer.size.div_ceil(block_bytes.into()) as u32;
        let table_end = table_at.checked_add(4 * u64::from(needed)).filter(|&end| end <= content_end);
        let (Some(table_end), true) = (table_end, entries >= needed) else {
            return Err(bad(format!("a table of {entries} entries at {table_at:#x} where {needed} are needed")));
        };
        let mut table = Vec::with_capacity(needed as usize);
        let mut piece = vec![0; MIB as usize];
        for start in (table_at..table_end).step_by(MIB as usize) {
            let piece = &mut piece[..(table_end - start).min(MIB) as usize];
            self.file.read_exact_at(piece, start).map_err(OpenError::read("VHD block table", start))?;
            table.extend(piece.chunks_exact(4).map(|entry| be32(entry, 0)));
        }
        let bitmap_bytes = (u64::from(block_bytes) / SECTOR / 8).next_multiple_of(SECTOR);
        let mut taken = vec![0..FOOTER_LEN as u64, at..at + DYNAMIC_HEADER_LEN as u64, table_at..table_end];
        if self.footer.kind == DiskKind::Differencing {
            self.locator = Some(self.read_locator(&header, at, &mut taken)?);
        }
        let blocks = Blocks { block_bytes, bitmap_bytes, table };
        blocks.check(self.footer.size, content_end, &taken, table_at)?;
        self.blocks = Some(blocks);
        Ok(())
    }

    fn read_locator(
        &self,
        header: &[u8; DYNAMIC_HEADER_LEN],
        at: u64,
        taken: &mut Vec<Range<u64>>,
    ) -> Result<ParentLocator, OpenError> {
        let text = |units: Vec<u16>| {
            let units: Vec<u16> = units.into_iter().take_while(|&unit| unit != 0).collect();
            String::from_utf16(&units).ok().filter(|text| !text.is_empty())
        };
        let mut locator = ParentLocator { parent_linkage: id_at(header, 40), ..ParentLocator::default() };
        for entry in header[576..768].chunks_exact(24) {
            // The second field is documented in sectors and written in bytes by Windows 10: of no use.
            let (code, length, offset) = (&entry[..4], be32(entry, 8), be64(entry, 16));
            if code == [0; 4] || length == 0 {
                continue;
            }
            let end = offset.checked_add(length.into()).filter(|&end| end <= self.file_len);
            let (Some(end), true) = (end, length <= MAX_LOCATOR_BYTES) else {
                let problem = format!("locator of {length} bytes at {offset:#x}");
                return Err(OpenError::corrupt("VHD dynamic header", at, problem));
            };
            taken.push(offset..end);
            let mut bytes = vec![0; length as usize];
            self.file.read_exact_at(&mut bytes, offset).map_err(OpenError::read("VHD parent locator", offset))?;
            let path = text(bytes.chunks_exact(2).map(|unit| u16::from_le_bytes(array_at(unit, 0))).collect());
            match code {
                b"W2ru" => locator.relative_path = path,
                b"W2ku" => locator.absolute_win32_path = path,
                _ => {}
            }
        }
        if locator.relative_path.is_none() && locator.absolute_win32_path.is_none() {
            let name = header[64..576].chunks_exact(2).map(|unit| u16::from_be_bytes(array_at(unit, 0)));
            locator.relative_path = text(name.collect());
        }
        Ok(locator)
    }

    /// Virtual size and sector sizes.
    pub fn geometry(&self) -> DiskGeometry {
        let sector = SECTOR as u32;
        DiskGeometry { size_bytes: self.footer.size, logical_sector_bytes: sector, physical_sector_bytes: sector }
    }

    /// The identity that children name.
    pub fn unique_id(&self) -> Guid {
        self.footer.unique_id
    }

    /// Where the parent is, of a differencing file.
    pub fn parent_locator(&self) -> Option<&ParentLocator> {
        self.locator.as_ref()
    }

    /// Where the bytes of `range` are, as far as this file knows, in order; neighbours of one kind joined.
    pub fn file_extents(&self, range: Range<u64>) -> Result<Vec<FileExtent>, ReadError> {
        ExtentList::of_layer(self, range)
    }

    /// What the file says of itself.
    pub fn info(&self) -> FileInfo {
        let table = self.blocks.as_ref().map_or(&[][..], |blocks| &blocks.table);
        FileInfo {
            format: FileFormat::Vhd,
            kind: self.footer.kind,
            geometry: self.geometry(),
            file_len_bytes: self.file_len,
            block_bytes: self.blocks.as_ref().map_or(0, |blocks| blocks.block_bytes),
            blocks: table.len() as u32,
            allocated_blocks: table.iter().filter(|&&entry| entry != ABSENT).count() as u32,
            file_write_guid: Guid::ZERO,
            data_write_guid: self.footer.unique_id,
            virtual_disk_id: self.footer.unique_id,
            creator: self.footer.creator.clone(),
            log_dirty: false,
            parent: self.locator.clone(),
            warnings: Vec::new(),
        }
    }
}

impl Footer {
    fn decode(bytes: &[u8; FOOTER_LEN], at: u64) -> Result<Self, OpenError> {
        let bad = |problem: String| OpenError::corrupt("VHD footer", at, problem);
        if bytes[..8] != *b"conectix" || be32(bytes, 64) != checksum(bytes, 64) {
            return Err(bad("wrong signature or checksum".into()));
        }
        if be32(bytes, 12) != 0x0001_0000 {
            return Err(OpenError::Unsupported { what: format!("VHD version {:#x}", be32(bytes, 12)) });
        }
        let kind = match be32(bytes, 60) {
            2 => DiskKind::Fixed,
            3 => DiskKind::Dynamic,
            4 => DiskKind::Differencing,
            other => return Err(OpenError::Unsupported { what: format!("VHD of type {other}") }),
        };
        // The current size counts, as for Hyper-V; some programs take the CHS fields and see less.
        let size = be64(bytes, 48);
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(SECTOR) {
            return Err(bad(format!("current size {size} is not possible")));
        }
        let creator = String::from_utf8_lossy(&bytes[28..32]).trim_end_matches(['\0', ' ']).to_owned();
        Ok(Footer { kind, data_offset: be64(bytes, 16), size, unique_id: id_at(bytes, 68), creator })
    }
}

impl Blocks {
    /// Blocks lie inside the file and overlap nothing.
    fn check(&self, size: u64, content_end: u64, taken: &[Range<u64>], table_at: u64) -> Result<(), OpenError> {
        let bad = |problem: String| Err(OpenError::corrupt("VHD block table", table_at, problem));
        let mut starts = Vec::new();
        for (block, &entry) in (0u64..).zip(&self.table).filter(|&(_, &entry)| entry != ABSENT) {
            let start = u64::from(entry) * SECTOR;
            let data_bytes = (size - block * u64::from(self.block_bytes)).min(self.block_bytes.into());
            let end = start + self.bitmap_bytes + data_bytes;
            if end > content_end {
                return bad(format!("block {block} at {start:#x} is outside the file"));
            }
            if taken.iter().any(|other| start < other.end && other.start < end) {
                return bad(format!("block {block} at {start:#x} overlaps the file's own structures"));
            }
            starts.push((start, end));
        }
        starts.sort_unstable();
        match starts.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            Some(pair) => bad(format!("blocks at {:#x} and {:#x} overlap", pair[0].0, pair[1].0)),
            None => Ok(()),
        }
    }
}

impl DiskLayer for VhdFile {
    fn size_bytes(&self) -> u64 {
        self.footer.size
    }

    fn source(&self) -> &dyn ReadAt {
        &*self.file
    }

    fn visit(
        &self,
        range: Range<u64>,
        visitor: &mut dyn FnMut(Range<u64>, FileExtentKind) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let Some(blocks) = &self.blocks else {
            let file_offset_bytes = range.start;
            return visitor(range, FileExtentKind::Data { file_offset_bytes });
        };
        let elsewhere = if self.locator.is_some() { FileExtentKind::Parent } else { FileExtentKind::Zero };
        let block_bytes = u64::from(blocks.block_bytes);
        let mut start = range.start;
        while start < range.end {
            let block = start / block_bytes;
            let block_start = block * block_bytes;
            let piece = start..range.end.min(block_start + block_bytes);
            start = piece.end;
            let entry = blocks.table[block as usize];
            if entry == ABSENT {
                visitor(piece, elsewhere)?;
                continue;
            }
            let bitmap_at = u64::from(entry) * SECTOR;
            let data_at = bitmap_at + blocks.bitmap_bytes;
            let first_byte = (piece.start - block_start) / SECTOR / 8;
            let last_bit = (piece.end - block_start).div_ceil(SECTOR);
            let mut bits = vec![0; (last_bit.div_ceil(8) - first_byte) as usize];
            self.file.read_exact_at(&mut bits, bitmap_at + first_byte).map_err(|source| ReadError::Io {
                offset_bytes: piece.start,
                file_offset_bytes: bitmap_at + first_byte,
                len_bytes: last_bit.div_ceil(8) - first_byte,
                source,
            })?;
            // The most significant bit comes first, unlike in VHDX.
            bits.iter_mut().for_each(|byte| *byte = byte.reverse_bits());
            let first_bit = (piece.start - block_start) / SECTOR;
            let bits_start = block_start + first_byte * 8 * SECTOR;
            visit_bit_runs(&bits, first_bit - first_byte * 8..last_bit - first_byte * 8, &mut |run, present| {
                let from = (bits_start + run.start * SECTOR).max(piece.start);
                let to = (bits_start + run.end * SECTOR).min(piece.end);
                let file_offset_bytes = data_at + (from - block_start);
                visitor(from..to, if present { FileExtentKind::Data { file_offset_bytes } } else { elsewhere })
            })?;
        }
        Ok(())
    }
}

/// The footer at the end of a file, and where it starts. Very old writers left out its last byte.
fn read_footer(file: &dyn ReadAt, len: u64) -> Result<Option<([u8; FOOTER_LEN], u64)>, OpenError> {
    for footer_len in [FOOTER_LEN, FOOTER_LEN - 1] {
        let Some(at) = len.checked_sub(footer_len as u64) else { continue };
        let mut bytes = [0; FOOTER_LEN];
        file.read_exact_at(&mut bytes[..footer_len], at).map_err(OpenError::read("VHD footer", at))?;
        if bytes[..8] == *b"conectix" && be32(&bytes, 64) == checksum(&bytes, 64) {
            return Ok(Some((bytes, at)));
        }
    }
    Ok(None)
}

/// One's complement of the sum of all bytes, the checksum's own four left out.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |part: &[u8]| part.iter().map(|&b| u32::from(b)).sum::<u32>();
    !(sum(&bytes[..at]) + sum(&bytes[at + 4..]))
}

fn read_at<const N: usize>(file: &dyn ReadAt, at: u64) -> Result<[u8; N], OpenError> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).map_err(OpenError::read("VHD structure", at))?;
    Ok(bytes)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array_at(bytes, at))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array_at(bytes, at))
}

/// VHD keeps GUIDs in text order.
fn id_at(bytes: &[u8], at: usize) -> Guid {
    Guid::from_u128(u128::from_be_bytes(array_at(bytes, at)))
}

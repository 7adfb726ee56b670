//! One VHDX file, opened for reading.

use std::ops::Range;
use std::sync::Arc;

use crate::bat::Bat;
use crate::extent::{BlockMap, DiskLayer, ExtentList};
use crate::format::{
    CREATOR_LEN, CREATOR_OFFSET, FILE_SIGNATURE, HEADER_OFFSETS, HEADER_SECTION_LEN, Header, MAX_FILE_BYTES,
    MAX_LOG_BYTES, MIB, PAGE, REGION_BAT, REGION_METADATA, REGION_TABLE_LEN, REGION_TABLE_OFFSETS, RegionEntry,
    decode_region_table, u16_at,
};
use crate::info::{DiskKind, FileFormat, FileInfo};
use crate::metadata::{DiskParameters, Metadata};
use crate::replay::ReplayedFile;
use crate::space::SpaceMap;
use crate::{DiskGeometry, FileExtent, FileExtentKind, OpenError, ParentLocator, ReadAt, ReadError};

/// One VHDX file open for reading, without its parents.
///
/// The file must not change while it is open: its tables are read once.
pub struct VhdxFile {
    file: ReplayedFile,
    tables: Tables,
    creator: String,
}

impl VhdxFile {
    /// Checks the file. A log left dirty by a crash is replayed in memory; nothing is written.
    pub fn open(file: Arc<dyn ReadAt>) -> Result<Self, OpenError> {
        let identifier = Identifier::read(&*file)?;
        let current = CurrentHeader::read(&*file)?;
        let file = match current.header.log_guid.is_zero() {
            true => ReplayedFile::clean(file),
            false => ReplayedFile::replay(file, &current.header)?,
        };
        let (tables, _) = Tables::read(&file, current)?;
        Ok(VhdxFile { file, tables, creator: identifier.creator })
    }

    /// What the file says of itself.
    pub fn info(&self) -> FileInfo {
        self.tables.info(&self.tables.current, self.tables.file_len, &self.creator, self.file.is_dirty())
    }

    /// Virtual size and sector sizes.
    pub fn geometry(&self) -> DiskGeometry {
        self.tables.disk.geometry
    }

    /// Where the parent is, of a differencing file.
    pub fn parent_locator(&self) -> Option<&ParentLocator> {
        self.tables.disk.locator.as_ref()
    }

    /// Where the bytes of `range` are, as far as this file knows, in order; neighbours of one kind joined.
    pub fn file_extents(&self, range: Range<u64>) -> Result<Vec<FileExtent>, ReadError> {
        ExtentList::of_layer(self, range)
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The file as it is after a replay.
    pub(crate) fn replayed(&self) -> &ReplayedFile {
        &self.file
    }
}

impl DiskLayer for VhdxFile {
    fn size_bytes(&self) -> u64 {
        self.tables.disk.geometry.size_bytes
    }

    fn source(&self) -> &dyn ReadAt {
        &self.file
    }

    fn visit(
        &self,
        range: Range<u64>,
        visitor: &mut dyn FnMut(Range<u64>, FileExtentKind) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let map = BlockMap { disk: &self.tables.disk, bat: &self.tables.bat };
        let bitmap = |buf: &mut [u8], chunk: u32, offset_in_bitmap: u64| {
            let base = self.tables.bat.bitmap(chunk).map_or(0, |mib| u64::from(mib) * MIB);
            let at = base + offset_in_bitmap;
            self.file.read_exact_at(buf, at).map_err(|e| (at, e))
        };
        map.visit(range, &bitmap, visitor)
    }
}

/// What the first structure of a file tells.
pub(crate) struct Identifier {
    pub creator: String,
}

impl Identifier {
    pub(crate) fn read(file: &dyn ReadAt) -> Result<Self, OpenError> {
        let len = file.len_bytes().map_err(OpenError::read("file length", 0))?;
        if len < HEADER_SECTION_LEN {
            return Err(OpenError::corrupt("file identifier", 0, format!("a file of {len} bytes is too short")));
        }
        if len > MAX_FILE_BYTES {
            return Err(OpenError::Unsupported { what: format!("a file of {len} bytes") });
        }
        let mut bytes = [0; CREATOR_OFFSET + CREATOR_LEN];
        file.read_exact_at(&mut bytes, 0).map_err(OpenError::read("file identifier", 0))?;
        if bytes[..8] != FILE_SIGNATURE {
            return Err(OpenError::corrupt("file identifier", 0, "no signature"));
        }
        let units = bytes[CREATOR_OFFSET..].chunks_exact(2).map(|pair| u16_at(pair, 0));
        let creator: Vec<u16> = units.take_while(|&unit| unit != 0).collect();
        Ok(Identifier { creator: String::from_utf16_lossy(&creator) })
    }
}

/// The header that counts, and the slot it is in.
#[derive(Debug, Clone)]
pub(crate) struct CurrentHeader {
    pub header: Header,
    pub slot: usize,
}

impl CurrentHeader {
    pub(crate) fn read(file: &dyn ReadAt) -> Result<Self, OpenError> {
        let mut pages = [[0; PAGE]; 2];
        for (page, at) in pages.iter_mut().zip(HEADER_OFFSETS) {
            file.read_exact_at(page, at).map_err(OpenError::read("header", at))?;
        }
        let (header, slot) = match (Header::decode(&pages[0]), Header::decode(&pages[1])) {
            (None, None) => return Err(OpenError::corrupt("headers", HEADER_OFFSETS[0], "neither copy is valid")),
            (Some(header), None) => (header, 0),
            (None, Some(header)) => (header, 1),
            (Some(first), Some(second)) if first.sequence_number > second.sequence_number => (first, 0),
            (Some(first), Some(second)) if first.sequence_number < second.sequence_number => (second, 1),
            // Disk2vhd writes two equal headers; a difference leaves no way to tell which is right.
            (Some(first), Some(_)) if pages[0] == pages[1] => (first, 0),
            (Some(first), Some(_)) => {
                let problem = format!("both copies have SequenceNumber {} but differ", first.sequence_number);
                return Err(OpenError::corrupt("headers", HEADER_OFFSETS[0], problem));
            }
        };
        let current = CurrentHeader { header, slot };
        current.check(file)?;
        Ok(current)
    }

    fn check(&self, file: &dyn ReadAt) -> Result<(), OpenError> {
        let header = &self.header;
        let bad = |problem: String| Err(OpenError::corrupt("header", HEADER_OFFSETS[self.slot], problem));
        if header.version != 1 {
            return Err(OpenError::Unsupported { what: format!("VHDX version {}", header.version) });
        }
        let dirty = !header.log_guid.is_zero();
        if dirty && header.log_version != 0 {
            return Err(OpenError::Unsupported { what: format!("log version {}", header.log_version) });
        }
        if header.log_length == 0 && !dirty {
            return Ok(());
        }
        let (offset, length) = (header.log_offset, header.log_length);
        if length == 0 || !u64::from(length).is_multiple_of(MIB) || length > MAX_LOG_BYTES {
            return bad(format!("LogLength {length:#x} is not possible"));
        }
        let len = file.len_bytes().map_err(OpenError::read("file length", 0))?;
        let inside = offset.checked_add(length.into()).is_some_and(|end| end <= len);
        if offset < MIB || !offset.is_multiple_of(MIB) || !inside {
            return bad(format!("log of {length:#x} bytes at {offset:#x} is not possible"));
        }
        Ok(())
    }
}

/// Everything that is read when a file is opened.
pub(crate) struct Tables {
    pub current: CurrentHeader,
    pub regions: Vec<RegionEntry>,
    pub region_tables_differ: bool,
    pub metadata: Metadata,
    pub bat_region: Range<u64>,
    pub disk: DiskParameters,
    pub bat: Bat,
    /// Length of the file when it was opened, after a replay.
    pub file_len: u64,
}

impl Tables {
    /// Reads what the log may have changed, so after it was replayed. Nothing is used before what it depends on was
    /// checked. Also returns which space is taken.
    pub(crate) fn read(file: &dyn ReadAt, current: CurrentHeader) -> Result<(Self, SpaceMap), OpenError> {
        let file_len = file.len_bytes().map_err(OpenError::read("file length", 0))?;
        if file_len > MAX_FILE_BYTES {
            return Err(OpenError::Unsupported { what: format!("a file of {file_len} bytes") });
        }
        let mut space = SpaceMap::new(file_len);
        let log_len = u64::from(current.header.log_length);
        if log_len > 0 {
            let problem = |p| OpenError::corrupt("header", HEADER_OFFSETS[current.slot], format!("log: {p}"));
            space.take(current.header.log_offset, log_len, log_len).map_err(problem)?;
        }
        let (regions, region_tables_differ) = read_regions(file, &mut space)?;
        let find = |guid, name: &str| {
            let region = regions.iter().find(|r| r.guid == guid);
            let region = region.map(|r| r.file_offset..r.file_offset + u64::from(r.length));
            region
                .ok_or_else(|| OpenError::corrupt("region table", REGION_TABLE_OFFSETS[0], format!("no {name} region")))
        };
        let metadata = Metadata::read(file, find(REGION_METADATA, "metadata")?)?;
        let bat_region = find(REGION_BAT, "BAT")?;
        let disk = metadata.disk_parameters(file)?;
        let bat = Bat::read(file, bat_region.clone(), &disk, &mut space)?;
        let tables = Tables { current, regions, region_tables_differ, metadata, bat_region, disk, bat, file_len };
        Ok((tables, space))
    }

    /// `current` and `file_len` are those of a writer that has gone on since the tables were read.
    pub(crate) fn info(&self, current: &CurrentHeader, file_len: u64, creator: &str, log_dirty: bool) -> FileInfo {
        let kind = match (self.disk.has_parent, self.disk.leave_block_allocated) {
            (true, _) => DiskKind::Differencing,
            (false, true) => DiskKind::Fixed,
            (false, false) => DiskKind::Dynamic,
        };
        let mut warnings = Vec::new();
        if self.region_tables_differ {
            warnings.push("the two copies of the region table are not equal".to_owned());
        }
        FileInfo {
            format: FileFormat::Vhdx,
            kind,
            geometry: self.disk.geometry,
            file_len_bytes: file_len,
            block_bytes: self.disk.block_bytes,
            blocks: self.disk.shape.blocks,
            allocated_blocks: self.bat.allocated_blocks(),
            file_write_guid: current.header.file_write_guid,
            data_write_guid: current.header.data_write_guid,
            virtual_disk_id: self.disk.virtual_disk_id,
            creator: creator.to_owned(),
            log_dirty,
            parent: self.disk.locator.clone(),
            warnings,
        }
    }
}

/// The regions, and whether the two copies of the table differ. Marks all of them as taken, unknown ones too.
fn read_regions(file: &dyn ReadAt, space: &mut SpaceMap) -> Result<(Vec<RegionEntry>, bool), OpenError> {
    let mut copies = [None, None];
    for (copy, at) in copies.iter_mut().zip(REGION_TABLE_OFFSETS) {
        let mut table = Box::new([0; REGION_TABLE_LEN]);
        file.read_exact_at(&mut table[..], at).map_err(OpenError::read("region table", at))?;
        *copy = decode_region_table(&table);
    }
    let differ = copies[0] != copies[1];
    let at = REGION_TABLE_OFFSETS[usize::from(copies[0].is_none())];
    let [first, second] = copies;
    let regions = first.or(second).ok_or_else(|| OpenError::corrupt("region tables", at, "neither copy is valid"))?;

    let bad = |problem: String| OpenError::corrupt("region table", at, problem);
    let mut guids: Vec<_> = regions.iter().map(|r| r.guid).collect();
    guids.sort_unstable();
    if guids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(bad("a region is there twice".into()));
    }
    for (index, region) in regions.iter().enumerate() {
        let known = matches!(region.guid, REGION_BAT | REGION_METADATA);
        if region.flags & !1 != 0 {
            return Err(bad(format!("entry {index}: reserved bits are set")));
        }
        if region.flags & 1 != 0 && !known {
            return Err(OpenError::Unsupported { what: format!("required region {}", region.guid) });
        }
        let length = u64::from(region.length);
        if length == 0 || !length.is_multiple_of(MIB) {
            return Err(bad(format!("entry {index}: Length {length:#x} is not possible")));
        }
        space.take(region.file_offset, length, length).map_err(|p| bad(format!("entry {index}: {p}")))?;
    }
    Ok((regions, differ))
}

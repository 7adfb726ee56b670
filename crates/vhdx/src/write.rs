//! Writing to a VHDX file.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::bat::BlockEntry;
use crate::bitmap::BitmapPages;
use crate::chain::{open_parents, open_regular};
use crate::extent::{BlockMap, Chain, DiskLayer, ExtentList, check_range, walk};
use crate::file::{Identifier, Tables};
use crate::format::{FULLY_PRESENT, MIB, NOT_PRESENT, PAGE, PARTIALLY_PRESENT, Page, UNDEFINED, UNMAPPED, ZERO};
use crate::layout::GeometryError;
use crate::session::Session;
use crate::space::Allocator;
use crate::{
    DiskGeometry, Extents, FileExtent, FileExtentKind, FileInfo, Guid, OpenError, OpenOptions, ReadAt, ReadError,
    VirtualDisk, WriteAt,
};

/// A VHDX file open for writing. Reading sees the whole chain; writing changes this file only.
///
/// What was written is durable after [`flush`](Self::flush). After a crash, or when this is dropped without
/// [`close`](Self::close), the file is consistent: what was flushed is there, and every sector written since is old or
/// new. A file that was not closed has a dirty log, which the next open replays.
///
/// An error while metadata is written poisons the handle: it can be read, but not written any more.
pub struct WritableVhdx {
    pub(crate) session: Session,
    pub(crate) tables: Tables,
    pub(crate) space: Allocator,
    creator: String,
    parent: Option<Arc<dyn VirtualDisk>>,
    bitmaps: BitmapPages,
    /// BAT pages that differ from the file, counted from the start of the region.
    dirty_bat: BTreeSet<u32>,
}

const BAT_ENTRIES_PER_PAGE: u32 = (PAGE / 8) as u32;
/// Changed metadata that is logged without waiting for a flush: 8 MiB.
const MAX_DIRTY_PAGES: usize = 2048;

impl WritableVhdx {
    /// Opens a file with an exclusive lock (among writers of this kind), replays its log in the file if it is dirty,
    /// and opens its parents read-only.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, OpenError> {
        let mut disk = Self::from_file(Arc::new(open_exclusively(path)?), None)?;
        if let Some(locator) = &disk.tables.disk.locator {
            let parent = open_parents(path, locator, options)?;
            let (below, above) = (parent.geometry().logical_sector_bytes, disk.geometry().logical_sector_bytes);
            if below != above {
                let (child, parent) = (path.to_owned(), parent.layers()[0].path.clone());
                let problem = format!("sectors of {below} and {above} bytes");
                return Err(OpenError::ParentUnfit { child, parent, problem });
            }
            disk.parent = Some(Arc::new(parent));
        }
        Ok(disk)
    }

    /// As [`open`](Self::open) without its parents, for work on this file alone: what they hold cannot be read.
    pub fn open_without_parent(path: &Path) -> Result<Self, OpenError> {
        Self::from_file(Arc::new(open_exclusively(path)?), None)
    }

    /// As [`open`](Self::open), for a file that is open already; `parent` answers for what a differencing file does not
    /// hold.
    pub fn from_file(file: Arc<dyn WriteAt>, parent: Option<Arc<dyn VirtualDisk>>) -> Result<Self, OpenError> {
        let identifier = Identifier::read(&*file)?;
        let session = Session::open(file)?;
        let (tables, map) = Tables::read(&session.file, session.current().clone())?;
        Ok(WritableVhdx {
            session,
            tables,
            space: Allocator::new(&map),
            creator: identifier.creator,
            parent,
            bitmaps: BitmapPages::default(),
            dirty_bat: BTreeSet::new(),
        })
    }

    /// What the file says of itself now.
    pub fn info(&self) -> FileInfo {
        let session = &self.session;
        self.tables.info(session.current(), session.file_len(), &self.creator, session.is_started())
    }

    /// Where the bytes of `range` are, as far as this file knows, in order; neighbours of one kind joined.
    pub fn file_extents(&self, range: Range<u64>) -> Result<Vec<FileExtent>, ReadError> {
        ExtentList::of_layer(self, range)
    }

    /// Exchanges the open parent, after the chain below this file was rearranged without changing what it reads as.
    pub fn replace_parent(&mut self, parent: Option<Arc<dyn VirtualDisk>>) {
        self.parent = parent;
    }

    /// Writes at a virtual offset; any alignment. Where a differencing file holds whole sectors only, the rest of a sector
    /// is read from the chain.
    pub fn write_all_at(&mut self, data: &[u8], offset_bytes: u64) -> Result<(), WriteError> {
        let range = check_range(self.geometry().size_bytes, offset_bytes, data.len() as u64)?;
        if data.is_empty() {
            return Ok(());
        }
        self.begin_visible()?;
        let sector = u64::from(self.geometry().logical_sector_bytes);
        let mut at = range.start;
        while at < range.end {
            let rest = &data[(at - range.start) as usize..];
            let block_end = self.block_range(self.block_of(at)).end;
            let sector_start = at - at % sector;
            let whole = at == sector_start && rest.len() as u64 >= sector;
            let taken = if whole || !self.keeps_sectors(at) {
                let len = (rest.len() as u64).min(block_end - at);
                // Only a last part of a sector is left to the branch below.
                let len = if self.keeps_sectors(at) { len - len % sector } else { len };
                self.write_in_block(at, &rest[..len as usize])?;
                len
            } else {
                let len = (rest.len() as u64).min(sector_start + sector - at);
                let mut full = vec![0; sector as usize];
                self.read_exact_at(&mut full, sector_start)?;
                full[(at - sector_start) as usize..][..len as usize].copy_from_slice(&rest[..len as usize]);
                self.write_in_block(sector_start, &full)?;
                len
            };
            at += taken;
        }
        self.limit_dirty()
    }

    /// Makes a range read as zeroes. Whole blocks give their space back, except in fixed disks.
    pub fn zero_range(&mut self, range: Range<u64>) -> Result<(), WriteError> {
        let len = range.end.saturating_sub(range.start);
        let range = check_range(self.geometry().size_bytes, range.start, len)?;
        if range.is_empty() {
            return Ok(());
        }
        self.begin_visible()?;
        let fixed = self.tables.disk.leave_block_allocated && !self.tables.disk.has_parent;
        let mut at = range.start;
        while at < range.end {
            let block = self.block_of(at);
            let of_disk = self.block_range(block);
            let piece = at..range.end.min(of_disk.end);
            at = piece.end;
            let state = self.tables.bat.block(block).state;
            if state == ZERO || (state == NOT_PRESENT && !self.tables.disk.has_parent) {
                continue;
            }
            if piece == of_disk && !fixed {
                self.set_block(block, BlockEntry { state: ZERO, offset_mib: 0 });
            } else if !matches!(state, UNDEFINED | UNMAPPED) {
                self.write_zeroes(piece)?;
            }
            self.limit_dirty()?;
        }
        Ok(())
    }

    /// Returns when everything written before is durable.
    pub fn flush(&mut self) -> Result<(), WriteError> {
        let pages: Vec<_> = self.bitmaps.changed().chain(self.changed_bat_pages()).collect();
        if pages.is_empty() {
            return self.session.flush_all();
        }
        self.session.log_pages(&pages)?;
        self.bitmaps.set_clean();
        self.dirty_bat.clear();
        // Now that the changes that freed it are durable.
        self.space.release_freed();
        Ok(())
    }

    /// Flushes, leaves a clean log, and cuts off unused space at the end of the file.
    pub fn close(mut self) -> Result<(), WriteError> {
        self.finish()
    }

    /// What [`close`](Self::close) does. A later change starts a new session.
    pub(crate) fn finish(&mut self) -> Result<(), WriteError> {
        self.flush()?;
        if !self.session.is_started() {
            return Ok(());
        }
        let len = u64::from(self.space.trimmed_units()) * MIB;
        self.session.end(len)
    }

    /// Must come before every change that a reader of the disk could notice.
    pub(crate) fn begin_visible(&mut self) -> Result<(), WriteError> {
        self.begin(true, None)
    }

    pub(crate) fn begin(&mut self, visible: bool, data_write_guid: Option<Guid>) -> Result<(), WriteError> {
        let starts = !self.session.is_started();
        if starts {
            // The file may end inside its last block.
            self.session.extend(u64::from(self.space.file_units()) * MIB)?;
        }
        self.session.begin(visible, data_write_guid)?;
        if starts && self.tables.region_tables_differ {
            self.repair_region_tables()?;
        }
        Ok(())
    }

    pub(crate) fn block_of(&self, offset_bytes: u64) -> u32 {
        // Inside the disk, whose block count is 32 bits.
        (offset_bytes / u64::from(self.tables.disk.block_bytes)) as u32
    }

    /// The virtual bytes of a block; the last one may be short.
    pub(crate) fn block_range(&self, block: u32) -> Range<u64> {
        let start = u64::from(block) * u64::from(self.tables.disk.block_bytes);
        start..(start + u64::from(self.tables.disk.block_bytes)).min(self.geometry().size_bytes)
    }

    /// Whether a write at an offset must consist of whole sectors.
    fn keeps_sectors(&self, offset_bytes: u64) -> bool {
        let state = self.tables.bat.block(self.block_of(offset_bytes)).state;
        state == PARTIALLY_PRESENT || (state == NOT_PRESENT && self.tables.disk.has_parent)
    }

    /// Writes inside one block; whole sectors if the block keeps sectors.
    pub(crate) fn write_in_block(&mut self, offset_bytes: u64, data: &[u8]) -> Result<(), WriteError> {
        let block = self.block_of(offset_bytes);
        let of_disk = self.block_range(block);
        let within = offset_bytes - of_disk.start;
        let written = within..within + data.len() as u64;
        let whole = offset_bytes == of_disk.start && of_disk.start + written.end >= of_disk.end;
        let entry = self.tables.bat.block(block);
        match entry.state {
            FULLY_PRESENT => self.write_payload(entry.offset_bytes() + within, data),
            PARTIALLY_PRESENT if whole => {
                self.write_payload(entry.offset_bytes(), data)?;
                self.zero_around(entry.offset_bytes(), &written)?;
                self.set_block(block, BlockEntry { state: FULLY_PRESENT, ..entry });
                Ok(())
            }
            PARTIALLY_PRESENT => {
                self.write_payload(entry.offset_bytes() + within, data)?;
                self.set_sectors(block, &written)
            }
            NOT_PRESENT if self.tables.disk.has_parent && !whole => {
                let (offset_mib, _) = self.allocate(self.tables.disk.block_bytes)?;
                let new = BlockEntry { state: PARTIALLY_PRESENT, offset_mib };
                self.write_payload(new.offset_bytes() + within, data)?;
                // Bits may remain from an earlier life of the block.
                self.clear_sectors(block)?;
                self.set_sectors(block, &written)?;
                self.set_block(block, new);
                Ok(())
            }
            // Also hides the parent where the block did.
            _ => {
                let (offset_mib, zeroed) = self.allocate(self.tables.disk.block_bytes)?;
                let new = BlockEntry { state: FULLY_PRESENT, offset_mib };
                if !zeroed {
                    self.zero_around(new.offset_bytes(), &written)?;
                }
                self.write_payload(new.offset_bytes() + within, data)?;
                self.set_block(block, new);
                Ok(())
            }
        }
    }

    /// Zeroes what a write leaves of a block that becomes fully present.
    fn zero_around(&self, block_offset: u64, written: &Range<u64>) -> Result<(), WriteError> {
        for rest in [0..written.start, written.end..u64::from(self.tables.disk.block_bytes)] {
            if !rest.is_empty() {
                let at = block_offset + rest.start;
                let range = at..block_offset + rest.end;
                self.session.file.write_zeroes(range).map_err(WriteError::io("zero a payload block", at))?;
            }
        }
        Ok(())
    }

    /// Writes zeroes to a range that lies in one block of the disk.
    pub(crate) fn write_zeroes(&mut self, range: Range<u64>) -> Result<(), WriteError> {
        let entry = self.tables.bat.block(self.block_of(range.start));
        if entry.state == FULLY_PRESENT {
            let at = entry.offset_bytes() + (range.start - self.block_range(self.block_of(range.start)).start);
            let zeroed = self.session.file.write_zeroes(at..at + (range.end - range.start));
            return zeroed.map_err(WriteError::io("zero a payload block", at));
        }
        let zeroes = vec![0; (range.end - range.start).min(MIB) as usize];
        for at in range.clone().step_by(MIB as usize) {
            self.write_all_at(&zeroes[..(range.end - at).min(MIB) as usize], at)?;
        }
        Ok(())
    }

    fn write_payload(&self, at: u64, data: &[u8]) -> Result<(), WriteError> {
        self.session.file.write_all_at(data, at).map_err(WriteError::io("write a payload block", at))
    }

    /// Space for a block; also says whether it reads as zero.
    pub(crate) fn allocate(&mut self, len_bytes: u32) -> Result<(u32, bool), WriteError> {
        let allocation = self.space.allocate((u64::from(len_bytes) / MIB) as u32);
        self.session.extend(u64::from(self.space.file_units()) * MIB)?;
        Ok((allocation.unit, allocation.zeroed))
    }

    /// Changes a BAT entry; the space it had before is freed.
    pub(crate) fn set_block(&mut self, block: u32, new: BlockEntry) {
        let old = self.tables.bat.block(block);
        if old.offset_mib != 0 && old.offset_mib != new.offset_mib {
            let units = (u64::from(self.tables.disk.block_bytes) / MIB) as u32;
            self.space.free(old.offset_mib..old.offset_mib + units);
        }
        if old != new {
            self.tables.bat.set_block(block, new);
            self.dirty_bat.insert(self.tables.disk.shape.payload_entry(block) / BAT_ENTRIES_PER_PAGE);
        }
    }

    pub(crate) fn set_bat_page_dirty(&mut self, page: u32) {
        self.dirty_bat.insert(page);
    }

    fn set_sectors(&mut self, block: u32, within: &Range<u64>) -> Result<(), WriteError> {
        let sector = u64::from(self.geometry().logical_sector_bytes);
        self.fill_sectors(block, within.start / sector..within.end / sector, true)
    }

    fn clear_sectors(&mut self, block: u32) -> Result<(), WriteError> {
        let sector = u64::from(self.geometry().logical_sector_bytes);
        self.fill_sectors(block, 0..u64::from(self.tables.disk.block_bytes) / sector, false)
    }

    fn fill_sectors(&mut self, block: u32, sectors: Range<u64>, value: bool) -> Result<(), WriteError> {
        let ratio = self.tables.disk.shape.chunk_ratio;
        let base_mib = self.bitmap_block(block / ratio)?;
        let per_block = u64::from(self.tables.disk.block_bytes) / u64::from(self.geometry().logical_sector_bytes);
        let first = u64::from(block % ratio) * per_block;
        self.bitmaps.fill(&self.session.file, base_mib, first + sectors.start..first + sectors.end, value)
    }

    /// The chunk's sector bitmap block; a new one is zero before anything refers to it.
    fn bitmap_block(&mut self, chunk: u32) -> Result<u32, WriteError> {
        if let Some(offset_mib) = self.tables.bat.bitmap(chunk) {
            return Ok(offset_mib);
        }
        let (offset_mib, zeroed) = self.allocate(MIB as u32)?;
        if !zeroed {
            let at = u64::from(offset_mib) * MIB;
            let cleared = self.session.file.write_zeroes(at..at + MIB);
            cleared.map_err(WriteError::io("zero a sector bitmap block", at))?;
        }
        self.bitmaps.forget(offset_mib);
        self.tables.bat.set_bitmap(chunk, offset_mib);
        self.dirty_bat.insert(self.tables.disk.shape.bitmap_entry(chunk) / BAT_ENTRIES_PER_PAGE);
        Ok(offset_mib)
    }

    fn limit_dirty(&mut self) -> Result<(), WriteError> {
        match self.dirty_bat.len() + self.bitmaps.dirty_pages() > MAX_DIRTY_PAGES {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// In descending order, and logged after the bitmaps. A chunk's bitmap entry lies behind its payload entries, so
    /// that after a crash between two log entries no payload block is partially present without a bitmap, or with bits of
    /// an earlier life.
    fn changed_bat_pages(&self) -> impl Iterator<Item = (u64, Box<Page>)> + '_ {
        self.dirty_bat.iter().rev().map(|&page| {
            let at = self.tables.bat_region.start + u64::from(page) * PAGE as u64;
            (at, self.bat_page(page))
        })
    }

    pub(crate) fn bat_page(&self, page: u32) -> Box<Page> {
        let mut bytes = Box::new([0; PAGE]);
        let first = page * BAT_ENTRIES_PER_PAGE;
        for (entry, bytes) in (first..).zip(bytes.chunks_exact_mut(8)) {
            let stored = self.tables.bat.stored_entry(&self.tables.disk.shape, entry);
            bytes.copy_from_slice(&stored.to_le_bytes());
        }
        bytes
    }

    fn with_chain<T>(&self, act: impl FnOnce(Chain<'_>) -> T) -> T {
        act(Chain { layers: &[self], below: self.parent.as_deref() })
    }
}

impl VirtualDisk for WritableVhdx {
    fn geometry(&self) -> DiskGeometry {
        self.tables.disk.geometry
    }

    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), ReadError> {
        check_range(self.geometry().size_bytes, offset_bytes, buf.len() as u64)?;
        self.with_chain(|chain| chain.read(buf, offset_bytes))
    }

    fn extents(&self, range: Range<u64>) -> Extents<'_> {
        walk(self.geometry().size_bytes, range, |act| self.with_chain(act))
    }
}

impl DiskLayer for WritableVhdx {
    fn size_bytes(&self) -> u64 {
        self.geometry().size_bytes
    }

    fn source(&self) -> &dyn ReadAt {
        &self.session.file
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
            self.bitmaps.read(&self.session.file, buf, at).map_err(|e| (at, e))
        };
        map.visit(range, &bitmap, visitor)
    }
}

fn open_exclusively(path: &Path) -> Result<File, OpenError> {
    let file = open_regular(path, File::options().read(true).write(true))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Busy { path: path.to_owned() }),
        // Some network file systems have no locks.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(source)) => Err(OpenError::File { action: "lock", path: path.to_owned(), source }),
    }
}

/// Why a change to a disk failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// An earlier error left the handle unusable for writing; the file must be opened again.
    #[error("an earlier write to this file failed")]
    Poisoned,
    /// The file failed.
    #[error("{action} at file offset {offset_bytes:#x}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// Where.
        offset_bytes: u64,
        /// What the file said.
        #[source]
        source: io::Error,
    },
    /// The range lies outside the disk, or what surrounds a part of a sector could not be read.
    #[error("complete a write")]
    Read(#[from] ReadError),
    /// The metadata region could not be read.
    #[error("read the metadata to change")]
    Metadata(#[source] OpenError),
    /// The headers have been written 2^64 times.
    #[error("the headers' sequence numbers are used up")]
    HeadersExhausted,
    /// The new size is not possible.
    #[error("resize the disk")]
    Geometry(#[from] GeometryError),
    /// The file has no parent, so no locator.
    #[error("not a differencing file")]
    NotDifferencing,
    /// New metadata does not fit its region, or is too much to be changed at once.
    #[error("the new metadata is too large")]
    MetadataTooLarge,
}

impl WriteError {
    pub(crate) fn io(action: &'static str, offset_bytes: u64) -> impl FnOnce(io::Error) -> Self {
        move |source| WriteError::Io { action, offset_bytes, source }
    }
}

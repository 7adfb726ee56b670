//! Finding the bytes of a virtual range through one file, and through a chain of them.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use crate::bat::Bat;
use crate::format::{FULLY_PRESENT, NOT_PRESENT, PARTIALLY_PRESENT};
use crate::metadata::DiskParameters;
use crate::{Extent, ExtentKind, Extents, FileExtent, FileExtentKind, ReadAt, ReadError, VirtualDisk};

/// One file of a chain.
pub(crate) trait DiskLayer: Send + Sync {
    fn size_bytes(&self) -> u64;

    /// What the file offsets of [`FileExtentKind::Data`] point into.
    fn source(&self) -> &dyn ReadAt;

    /// Names every piece of `range`, which lies inside the disk, in order. Only a differencing file names `Parent`.
    fn visit(
        &self,
        range: Range<u64>,
        visitor: &mut dyn FnMut(Range<u64>, FileExtentKind) -> Result<(), ReadError>,
    ) -> Result<(), ReadError>;
}

/// A chain to read through: files, leaf first, and what answers below the last one.
#[derive(Clone, Copy)]
pub(crate) struct Chain<'a> {
    pub layers: &'a [&'a dyn DiskLayer],
    pub below: Option<&'a dyn VirtualDisk>,
}

pub(crate) fn check_range(size_bytes: u64, offset_bytes: u64, len_bytes: u64) -> Result<Range<u64>, ReadError> {
    match offset_bytes.checked_add(len_bytes) {
        Some(end) if end <= size_bytes => Ok(offset_bytes..end),
        _ => Err(ReadError::OutOfRange { offset_bytes, len_bytes, size_bytes }),
    }
}

impl<'a> Chain<'a> {
    /// What lies under the first layer.
    fn parent(self) -> Option<Chain<'a>> {
        let rest = self.layers.get(1..).unwrap_or_default();
        (!rest.is_empty() || self.below.is_some()).then_some(Chain { layers: rest, below: self.below })
    }

    fn size_bytes(self) -> u64 {
        match (self.layers.first(), self.below) {
            (Some(layer), _) => layer.size_bytes(),
            (None, Some(below)) => below.geometry().size_bytes,
            (None, None) => 0,
        }
    }

    /// Fills `buf` from a range that lies inside the disk.
    pub(crate) fn read(self, buf: &mut [u8], offset_bytes: u64) -> Result<(), ReadError> {
        let Some(layer) = self.layers.first() else {
            return match self.below {
                Some(below) => below.read_exact_at(buf, offset_bytes),
                None => Err(ReadError::ParentNotOpen { offset_bytes }),
            };
        };
        let range = offset_bytes..offset_bytes + buf.len() as u64;
        layer.visit(range, &mut |piece, kind| {
            // Pieces lie inside the range, whose length is that of the buffer.
            let part = &mut buf[(piece.start - offset_bytes) as usize..(piece.end - offset_bytes) as usize];
            match kind {
                FileExtentKind::Data { file_offset_bytes } => {
                    layer.source().read_exact_at(part, file_offset_bytes).map_err(|source| ReadError::Io {
                        offset_bytes: piece.start,
                        file_offset_bytes,
                        len_bytes: piece.end - piece.start,
                        source,
                    })
                }
                FileExtentKind::Zero => {
                    part.fill(0);
                    Ok(())
                }
                FileExtentKind::Parent => {
                    let parent = self.parent().ok_or(ReadError::ParentNotOpen { offset_bytes: piece.start })?;
                    // The disk may have grown since the parent was frozen.
                    let inside = parent.size_bytes().clamp(piece.start, piece.end) - piece.start;
                    let (known, beyond) = part.split_at_mut(inside as usize);
                    beyond.fill(0);
                    if known.is_empty() { Ok(()) } else { parent.read(known, piece.start) }
                }
            }
        })
    }

    /// Appends what is known of a range that lies inside the disk.
    fn map(self, range: Range<u64>, extents: &mut ExtentList<ExtentKind>) -> Result<(), ReadError> {
        let Some(layer) = self.layers.first() else {
            let below = self.below.ok_or(ReadError::ParentNotOpen { offset_bytes: range.start })?;
            for extent in below.extents(range) {
                let extent = extent?;
                extents.push(extent.range, extent.kind);
            }
            return Ok(());
        };
        layer.visit(range, &mut |piece, kind| {
            match kind {
                FileExtentKind::Data { file_offset_bytes } => map_data(*layer, piece, file_offset_bytes, extents)?,
                FileExtentKind::Zero => extents.push(piece, ExtentKind::Zero),
                FileExtentKind::Parent => {
                    let parent = self.parent().ok_or(ReadError::ParentNotOpen { offset_bytes: piece.start })?;
                    let border = parent.size_bytes().clamp(piece.start, piece.end);
                    if piece.start < border {
                        parent.map(piece.start..border, extents)?;
                    }
                    extents.push(border..piece.end, ExtentKind::Zero);
                }
            }
            Ok(())
        })
    }
}

/// Data shorter than this is not worth asking the file system about.
const MIN_HOLE_SEARCH_BYTES: u64 = 64 << 10;

/// Splits data at the holes of the file itself: a fixed or raw disk may be sparse.
fn map_data(
    layer: &dyn DiskLayer,
    piece: Range<u64>,
    file_offset_bytes: u64,
    extents: &mut ExtentList<ExtentKind>,
) -> Result<(), ReadError> {
    if piece.end - piece.start < MIN_HOLE_SEARCH_BYTES {
        extents.push(piece, ExtentKind::Data);
        return Ok(());
    }
    let to_virtual = |offset: u64| piece.start + (offset - file_offset_bytes);
    let file_end = file_offset_bytes + (piece.end - piece.start);
    let mut at = file_offset_bytes;
    while at < file_end {
        let found = layer.source().next_data(at..file_end).map_err(|source| ReadError::Io {
            offset_bytes: to_virtual(at),
            file_offset_bytes: at,
            len_bytes: file_end - at,
            source,
        })?;
        let data = found.unwrap_or(file_end..file_end);
        extents.push(to_virtual(at)..to_virtual(data.start), ExtentKind::Zero);
        extents.push(to_virtual(data.start)..to_virtual(data.end), ExtentKind::Data);
        at = data.end;
    }
    Ok(())
}

/// Extents so far, neighbours of one kind joined.
pub(crate) struct ExtentList<K> {
    list: VecDeque<(Range<u64>, K)>,
}

impl<K: Joins> ExtentList<K> {
    fn new() -> Self {
        ExtentList { list: VecDeque::new() }
    }

    fn push(&mut self, range: Range<u64>, kind: K) {
        if range.is_empty() {
            return;
        }
        match self.list.back_mut() {
            Some((last, last_kind)) if last.end == range.start && last_kind.joins(last, &kind) => last.end = range.end,
            _ => self.list.push_back((range, kind)),
        }
    }
}

impl ExtentList<FileExtentKind> {
    pub(crate) fn of_layer(layer: &dyn DiskLayer, range: Range<u64>) -> Result<Vec<FileExtent>, ReadError> {
        check_range(layer.size_bytes(), range.start, range.end.saturating_sub(range.start))?;
        let mut extents = ExtentList::new();
        layer.visit(range, &mut |piece, kind| {
            extents.push(piece, kind);
            Ok(())
        })?;
        Ok(extents.list.into_iter().map(|(range, kind)| FileExtent { range, kind }).collect())
    }
}

/// Whether an extent goes on with a following one.
pub(crate) trait Joins {
    fn joins(&self, range: &Range<u64>, next: &Self) -> bool;
}

impl Joins for ExtentKind {
    fn joins(&self, _: &Range<u64>, next: &Self) -> bool {
        self == next
    }
}

impl Joins for FileExtentKind {
    fn joins(&self, range: &Range<u64>, next: &Self) -> bool {
        match (self, next) {
            (FileExtentKind::Data { file_offset_bytes: first }, FileExtentKind::Data { file_offset_bytes: second }) => {
                first + (range.end - range.start) == *second
            }
            _ => self == next,
        }
    }
}

/// How much is mapped at a time: what a walk holds stays small even where every second sector differs.
const WINDOW_BYTES: u64 = 64 << 20;

/// The lazy walk behind [`VirtualDisk::extents`]; `map` appends one window.
pub(crate) struct Walk<F> {
    map: F,
    size_bytes: u64,
    rest: Range<u64>,
    pending: ExtentList<ExtentKind>,
    failed: bool,
}

/// Walks a chain that `with_chain` can show at any time.
pub(crate) fn walk<'a>(
    size_bytes: u64,
    range: Range<u64>,
    with_chain: impl Fn(&mut dyn FnMut(Chain<'_>) -> Result<(), ReadError>) -> Result<(), ReadError> + Send + 'a,
) -> Extents<'a> {
    let map = move |window: Range<u64>, extents: &mut ExtentList<ExtentKind>| {
        with_chain(&mut |chain| chain.map(window.clone(), extents))
    };
    Box::new(Walk { map, size_bytes, rest: range, pending: ExtentList::new(), failed: false })
}

impl<F> Iterator for Walk<F>
where
    F: Fn(Range<u64>, &mut ExtentList<ExtentKind>) -> Result<(), ReadError>,
{
    type Item = Result<Extent, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        // The last extent waits: the next window may go on with it.
        while self.pending.list.len() < 2 && !self.rest.is_empty() {
            let len = self.rest.end - self.rest.start;
            let window = check_range(self.size_bytes, self.rest.start, len)
                .map(|range| range.start..range.end.min(range.start - range.start % WINDOW_BYTES + WINDOW_BYTES))
                .and_then(|window| (self.map)(window.clone(), &mut self.pending).map(|()| window));
            match window {
                Ok(window) => self.rest.start = window.end,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        self.pending.list.pop_front().map(|(range, kind)| Ok(Extent { range, kind }))
    }
}

/// The block level of one VHDX file.
pub(crate) struct BlockMap<'a> {
    pub disk: &'a DiskParameters,
    pub bat: &'a Bat,
}

/// Fills a buffer from a chunk's sector bitmap, starting at an offset in the bitmap; fails with the file offset.
pub(crate) type ReadBitmap<'a> = &'a dyn Fn(&mut [u8], u32, u64) -> Result<(), (u64, io::Error)>;

impl BlockMap<'_> {
    pub(crate) fn visit(
        &self,
        range: Range<u64>,
        read_bitmap: ReadBitmap<'_>,
        visitor: &mut dyn FnMut(Range<u64>, FileExtentKind) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let block_bytes = u64::from(self.disk.block_bytes);
        let mut start = range.start;
        while start < range.end {
            // Inside the disk, whose block count is 32 bits.
            let block = (start / block_bytes) as u32;
            let block_start = u64::from(block) * block_bytes;
            let piece = start..range.end.min(block_start + block_bytes);
            start = piece.end;
            let entry = self.bat.block(block);
            let in_file =
                |offset: u64| FileExtentKind::Data { file_offset_bytes: entry.offset_bytes() + (offset - block_start) };
            match entry.state {
                FULLY_PRESENT => visitor(piece.clone(), in_file(piece.start))?,
                PARTIALLY_PRESENT => {
                    self.visit_bitmap(block, piece, read_bitmap, &mut |run, present| {
                        let kind = if present { in_file(run.start) } else { FileExtentKind::Parent };
                        visitor(run, kind)
                    })?;
                }
                NOT_PRESENT if self.disk.has_parent => visitor(piece, FileExtentKind::Parent)?,
                // Zero, unmapped and undefined blocks hide the parent.
                _ => visitor(piece, FileExtentKind::Zero)?,
            }
        }
        Ok(())
    }

    /// Splits a piece of a partially present block into runs of equal bits.
    fn visit_bitmap(
        &self,
        block: u32,
        piece: Range<u64>,
        read_bitmap: ReadBitmap<'_>,
        visitor: &mut dyn FnMut(Range<u64>, bool) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let sector_bytes = u64::from(self.disk.geometry.logical_sector_bytes);
        let ratio = self.disk.shape.chunk_ratio;
        let sectors_per_block = u64::from(self.disk.block_bytes) / sector_bytes;
        let block_start = u64::from(block) * u64::from(self.disk.block_bytes);
        let first = (piece.start - block_start) / sector_bytes;
        let last = (piece.end - block_start).div_ceil(sector_bytes);
        let first_byte = first / 8;
        let mut bits = vec![0; (last.div_ceil(8) - first_byte) as usize];
        let in_bitmap = u64::from(block % ratio) * sectors_per_block / 8 + first_byte;
        read_bitmap(&mut bits, block / ratio, in_bitmap).map_err(|(file_offset_bytes, source)| ReadError::Io {
            offset_bytes: piece.start,
            file_offset_bytes,
            len_bytes: bits.len() as u64,
            source,
        })?;
        let bit_range = first - first_byte * 8..last - first_byte * 8;
        let bits_start = block_start + first_byte * 8 * sector_bytes;
        visit_bit_runs(&bits, bit_range, &mut |run, present| {
            let start = (bits_start + run.start * sector_bytes).max(piece.start);
            let end = (bits_start + run.end * sector_bytes).min(piece.end);
            visitor(start..end, present)
        })
    }
}

/// Names the runs of equal bits in a range of a bitmap, least significant bit first.
pub(crate) fn visit_bit_runs(
    bits: &[u8],
    range: Range<u64>,
    visitor: &mut dyn FnMut(Range<u64>, bool) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let mut start = range.start;
    while start < range.end {
        let value = bit(bits, start);
        let end = run_end(bits, start, range.end, value);
        visitor(start..end, value)?;
        start = end;
    }
    Ok(())
}

fn bit(bits: &[u8], index: u64) -> bool {
    bits[(index / 8) as usize] >> (index % 8) & 1 != 0
}

/// Where the run of bits equal to `value` that covers `from` ends, at most `end`.
fn run_end(bits: &[u8], from: u64, end: u64, value: bool) -> u64 {
    let whole = if value { 0xff } else { 0 };
    let mut at = from;
    while at < end {
        if at.is_multiple_of(8) {
            let bytes = &bits[(at / 8) as usize..];
            // Whole words first: most runs are long.
            let words = bytes.chunks_exact(8).take_while(|word| word.iter().all(|&b| b == whole)).count() * 8;
            let skipped = words + bytes[words..].iter().take_while(|&&b| b == whole).count();
            at += skipped as u64 * 8;
            if at >= end {
                return end;
            }
        }
        if bit(bits, at) != value {
            return at;
        }
        at += 1;
    }
    end
}

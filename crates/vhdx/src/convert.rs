//! Copying a disk into another file: raw, or a VHDX of the canonical layout.
//!
//! Several threads read, look for zeroes and write, in one pass over what the source says is data. A range of the source
//! that cannot be read ends the conversion; nothing is skipped or zero-filled.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::create::create_complete;
use crate::format::MIB;
use crate::io::{UncachedFile, begin_aligned};
use crate::stream::{SlotMap, StreamGeometry, StreamHead, StreamIds};
use crate::{CreateError, Extent, ExtentKind, Extents, GeometryError, ReadError, VirtualDisk, WriteAt};

/// How a conversion runs.
#[derive(Default)]
pub struct ConvertOptions<'a> {
    /// Worker threads; 0 chooses. Each holds one payload block, of which at most 256 MiB are held together.
    pub threads: usize,
    /// Called after each piece, from any worker.
    pub progress: Option<&'a (dyn Fn(ConvertProgress) + Sync)>,
    /// Setting this ends the conversion with [`ConvertError::Cancelled`].
    pub cancel: Option<&'a AtomicBool>,
}

/// How far a conversion has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvertProgress {
    /// Virtual bytes up to about which everything is done.
    pub done_bytes: u64,
    /// Size of the disk.
    pub total_bytes: u64,
}

/// What a conversion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConvertSummary {
    /// Bytes read from the disk; the rest was known to be zero.
    pub read_bytes: u64,
    /// Payload bytes written.
    pub written_bytes: u64,
}

/// What to convert to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvertTarget {
    /// The bytes of the disk; zeroes become holes where the file system has them.
    Raw,
    /// A dynamic VHDX as by [`to_vhdx`].
    Vhdx {
        /// Payload block size.
        block_bytes: u32,
        /// Identities of the new file.
        ids: StreamIds,
    },
}

/// Converts into a new file at `path`, which must not exist. It appears complete and durable, or not at all.
pub fn to_path(
    disk: &dyn VirtualDisk,
    path: &Path,
    target: &ConvertTarget,
    options: &ConvertOptions<'_>,
) -> Result<ConvertSummary, ConvertError> {
    create_complete(path, |file, working| {
        let file = UncachedFile::new(file, working);
        match target {
            ConvertTarget::Raw => to_raw(disk, &file, options),
            ConvertTarget::Vhdx { block_bytes, ids } => to_vhdx(disk, &file, *block_bytes, ids, options),
        }
    })
}

/// Writes the bytes of a disk; zeroes become holes where the file system has them. `output` must be empty; it is flushed
/// at the end.
pub fn to_raw(
    disk: &dyn VirtualDisk,
    output: &dyn WriteAt,
    options: &ConvertOptions<'_>,
) -> Result<ConvertSummary, ConvertError> {
    check_empty(output)?;
    output.set_len(disk.geometry().size_bytes).map_err(write_error("extend", 0))?;
    let run = Run::new(disk, RAW_PIECE_BYTES, options);
    let summary = run.go(&|piece, data| write_nonzero(output, piece.range.start, data))?;
    output.flush().map_err(write_error("flush", 0))?;
    Ok(summary)
}

/// Writes a disk as a canonical dynamic VHDX ([`crate::stream`]) of exactly the blocks with a nonzero byte, ascending. `output`
/// must be empty; it is not taken for a VHDX before it is complete, and is flushed at the end.
pub fn to_vhdx(
    disk: &dyn VirtualDisk,
    output: &dyn WriteAt,
    block_bytes: u32,
    ids: &StreamIds,
    options: &ConvertOptions<'_>,
) -> Result<ConvertSummary, ConvertError> {
    let of = disk.geometry();
    let geometry = StreamGeometry::new(of.size_bytes, of.logical_sector_bytes, of.physical_sector_bytes, block_bytes)?;
    check_empty(output)?;
    let run = Run::new(disk, u64::from(block_bytes), options);
    let slots = Turns::new(SlotMap::new(geometry.blocks()));
    let summary = run.go(&|piece, data| {
        let block = (piece.range.start / u64::from(block_bytes)) as u32;
        let nonzero = !is_zero(data);
        // Slots ascend with the blocks although blocks are read side by side: each waits for those before it.
        let slot = slots.take(piece.number, &run.stop, |slots| nonzero.then(|| slots.append(block)).flatten())?;
        match slot {
            Some(slot) => write_nonzero(output, geometry.payload_offset_bytes(slot), data),
            None => Ok(0),
        }
    });
    let summary = summary?;
    let head = StreamHead::new(geometry, *ids, Arc::new(slots.into_inner()));
    output.set_len(head.len_bytes()).map_err(write_error("extend", 0))?;
    let mut bytes = vec![0; MIB as usize];
    // The first MiB last, behind a flush: without it the file is no VHDX.
    for at in (0..head.head_len_bytes() / MIB).rev().map(|mib| mib * MIB) {
        head.read_head_at(&mut bytes, at);
        if at == 0 {
            output.flush().map_err(write_error("flush", 0))?;
        }
        if !is_zero(&bytes) {
            output.write_all_at(&bytes, at).map_err(write_error("write", at))?;
        }
    }
    output.flush().map_err(write_error("flush", 0))?;
    Ok(summary)
}

const RAW_PIECE_BYTES: u64 = 2 * MIB;
/// Shorter runs of zeroes are written along with what surrounds them.
const ZERO_PIECE_BYTES: usize = 64 << 10;
const MAX_BUFFER_BYTES: u64 = 256 * MIB;

/// A part of the disk that holds data: at most one unit, starting at a multiple of it.
struct Piece {
    /// 0, 1, 2 ... along the disk.
    number: u64,
    range: Range<u64>,
    /// What of it is not known to be zero.
    data: Vec<Range<u64>>,
}

/// One pass over a disk.
struct Run<'a> {
    disk: &'a dyn VirtualDisk,
    unit_bytes: u64,
    options: &'a ConvertOptions<'a>,
    pieces: Mutex<Pieces<'a>>,
    /// A worker has failed: the others end.
    stop: AtomicBool,
    done_bytes: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

/// What a worker does with a piece's bytes, of which those outside its data are zero. Returns how many it wrote.
type Handle<'a> = &'a (dyn Fn(&Piece, &[u8]) -> Result<u64, ConvertError> + Sync);

impl<'a> Run<'a> {
    fn new(disk: &'a dyn VirtualDisk, unit_bytes: u64, options: &'a ConvertOptions<'a>) -> Self {
        let size_bytes = disk.geometry().size_bytes;
        let pieces = Pieces { extents: disk.extents(0..size_bytes), rest: None, next: 0, unit_bytes, size_bytes };
        Run {
            disk,
            unit_bytes,
            options,
            pieces: Mutex::new(pieces),
            stop: AtomicBool::new(false),
            done_bytes: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
        }
    }

    fn go(&self, handle: Handle<'_>) -> Result<ConvertSummary, ConvertError> {
        let cores = std::thread::available_parallelism().map_or(2, |n| n.get());
        let wanted = if self.options.threads == 0 { (cores * 2).min(16) } else { self.options.threads };
        let threads = wanted.min((MAX_BUFFER_BYTES / self.unit_bytes) as usize).max(1);
        let results: Vec<Result<(), ConvertError>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| self.work(handle))).collect();
            workers.into_iter().map(|worker| worker.join().expect("a worker does not panic")).collect()
        });
        // Workers that were stopped by another's failure do not know why.
        let failure = results.into_iter().filter_map(Result::err);
        let failure =
            failure.reduce(|first, other| if matches!(first, ConvertError::Cancelled) { other } else { first });
        match failure {
            Some(error) => Err(error),
            None => {
                self.report(self.disk.geometry().size_bytes);
                Ok(ConvertSummary {
                    read_bytes: self.read_bytes.load(Ordering::Relaxed),
                    written_bytes: self.written_bytes.load(Ordering::Relaxed),
                })
            }
        }
    }

    fn work(&self, handle: Handle<'_>) -> Result<(), ConvertError> {
        let mut buf = Vec::new();
        loop {
            if self.stop.load(Ordering::Relaxed) || self.options.cancel.is_some_and(|c| c.load(Ordering::Relaxed)) {
                self.stop.store(true, Ordering::Relaxed);
                return Err(ConvertError::Cancelled);
            }
            match self.next(&mut buf, handle) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => {
                    self.stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    }

    /// Deals with one piece; false when there was none left.
    fn next(&self, buf: &mut Vec<u8>, handle: Handle<'_>) -> Result<bool, ConvertError> {
        let Some(piece) = lock(&self.pieces).next()? else { return Ok(false) };
        // At most one unit, which is at most 256 MiB.
        let len = (piece.range.end - piece.range.start) as usize;
        let start = begin_aligned(buf, len);
        buf.resize(start + len, 0);
        let buf = &mut buf[start..];
        let mut end = 0;
        for data in &piece.data {
            let (from, to) = ((data.start - piece.range.start) as usize, (data.end - piece.range.start) as usize);
            buf[end..from].fill(0);
            self.disk.read_exact_at(&mut buf[from..to], data.start)?;
            self.read_bytes.fetch_add(data.end - data.start, Ordering::Relaxed);
            end = to;
        }
        buf[end..].fill(0);
        self.written_bytes.fetch_add(handle(&piece, buf)?, Ordering::Relaxed);
        self.report(piece.range.end);
        Ok(true)
    }

    fn report(&self, done_bytes: u64) {
        let before = self.done_bytes.fetch_max(done_bytes, Ordering::Relaxed);
        if let Some(progress) = self.options.progress {
            let total_bytes = self.disk.geometry().size_bytes;
            progress(ConvertProgress { done_bytes: before.max(done_bytes), total_bytes });
        }
    }
}

/// Hands out the pieces with data, in order.
struct Pieces<'a> {
    extents: Extents<'a>,
    /// Data that was found and not handed out yet.
    rest: Option<Range<u64>>,
    next: u64,
    unit_bytes: u64,
    size_bytes: u64,
}

impl Pieces<'_> {
    fn next(&mut self) -> Result<Option<Piece>, ReadError> {
        let Some(first) = self.next_data()? else { return Ok(None) };
        let start = first.start - first.start % self.unit_bytes;
        let range = start..(start + self.unit_bytes).min(self.size_bytes);
        let mut data = Vec::new();
        let mut found = Some(first);
        while let Some(mut part) = found {
            if part.start >= range.end {
                self.rest = Some(part);
                break;
            }
            if part.end > range.end {
                self.rest = Some(range.end..part.end);
                part.end = range.end;
                data.push(part);
                break;
            }
            data.push(part);
            found = self.next_data()?;
        }
        let number = self.next;
        self.next += 1;
        Ok(Some(Piece { number, range, data }))
    }

    fn next_data(&mut self) -> Result<Option<Range<u64>>, ReadError> {
        if let Some(rest) = self.rest.take() {
            return Ok(Some(rest));
        }
        for extent in self.extents.by_ref() {
            let Extent { range, kind } = extent?;
            if kind == ExtentKind::Data {
                return Ok(Some(range));
            }
        }
        Ok(None)
    }
}

/// Something that workers may change one after another, in the order of their pieces.
struct Turns<T> {
    state: Mutex<(u64, T)>,
    changed: Condvar,
}

impl<T> Turns<T> {
    fn new(value: T) -> Self {
        Turns { state: Mutex::new((0, value)), changed: Condvar::new() }
    }

    /// Waits until all pieces before `number` had their turn; `Err` when one of them never will.
    fn take<R>(&self, number: u64, stop: &AtomicBool, act: impl FnOnce(&mut T) -> R) -> Result<R, ConvertError> {
        let mut state = lock(&self.state);
        while state.0 != number {
            if stop.load(Ordering::Relaxed) {
                return Err(ConvertError::Cancelled);
            }
            // A failing worker does not come by here to wake the others.
            let patience = std::time::Duration::from_millis(50);
            state = self.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0;
        }
        let result = act(&mut state.1);
        state.0 += 1;
        drop(state);
        self.changed.notify_all();
        Ok(result)
    }

    fn into_inner(self) -> T {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).1
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere ends the conversion anyway.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes the parts of `data` that are not zero; the file reads as zero there already.
fn write_nonzero(output: &dyn WriteAt, offset: u64, data: &[u8]) -> Result<u64, ConvertError> {
    let mut written = 0;
    let mut start = 0;
    while start < data.len() {
        let piece_end = |at: usize| (at + ZERO_PIECE_BYTES).min(data.len());
        if is_zero(&data[start..piece_end(start)]) {
            start = piece_end(start);
            continue;
        }
        let mut end = piece_end(start);
        while end < data.len() && !is_zero(&data[end..piece_end(end)]) {
            end = piece_end(end);
        }
        let at = offset + start as u64;
        output.write_all_at(&data[start..end], at).map_err(write_error("write", at))?;
        written += (end - start) as u64;
        start = end;
    }
    Ok(written)
}

/// Whether all bytes are zero. Looks at whole cache lines, which the compiler turns into wide instructions.
pub fn is_zero(data: &[u8]) -> bool {
    let (lines, rest) = data.as_chunks::<128>();
    lines.iter().all(|line| line.iter().fold(0, |bits, &byte| bits | byte) == 0) && rest.iter().all(|&byte| byte == 0)
}

fn check_empty(output: &dyn WriteAt) -> Result<(), ConvertError> {
    match output.len_bytes().map_err(write_error("examine", 0))? {
        0 => Ok(()),
        len_bytes => Err(ConvertError::NotEmpty { len_bytes }),
    }
}

fn write_error(action: &'static str, offset_bytes: u64) -> impl FnOnce(io::Error) -> ConvertError {
    move |source| ConvertError::Write { action, offset_bytes, source }
}

/// Why a conversion failed; what is in the output then is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The source could not be read.
    #[error("read the disk to convert")]
    Read(#[from] ReadError),
    /// The output failed.
    #[error("{action} the converted file at offset {offset_bytes:#x}")]
    Write {
        /// What was attempted.
        action: &'static str,
        /// Where.
        offset_bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The output file holds something already.
    #[error("the file to convert to is not empty: it has {len_bytes} bytes")]
    NotEmpty {
        /// Its length.
        len_bytes: u64,
    },
    /// The output file could not be created.
    #[error("create the converted file")]
    Create(#[from] CreateError),
    /// A VHDX cannot hold the disk.
    #[error("describe the disk as a VHDX")]
    Geometry(#[from] GeometryError),
    /// The caller asked to stop.
    #[error("the conversion was cancelled")]
    Cancelled,
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn zero_test_sees_every_byte() {
        for len in [0, 1, 127, 128, 129, 4096, 4099] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes), "{len} zero bytes");
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{len} bytes, byte {at} set");
                bytes[at] = 0;
            }
        }
    }
}

//! The seam to the file: positional reads and writes, and durability.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Random access to one file's bytes; calls may run concurrently.
///
/// Reading past the end is an error (`UnexpectedEof`), never zeroes: a truncated disk must not
/// pass for an empty one.
pub trait ReadAt: Send + Sync {
    /// Fills the whole of `buf` from `offset_bytes`, or fails.
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()>;

    /// The file's length now.
    fn len_bytes(&self) -> io::Result<u64>;

    /// The first piece of `range` that may hold something other than zeroes, or `None` when the
    /// file system knows that all of it is a hole. The default knows of no holes.
    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        Ok((!range.is_empty()).then_some(range))
    }
}

/// Random-access writing. Writes become durable, in any order, no later than the next
/// [`flush`](WriteAt::flush) that starts after them.
pub trait WriteAt: ReadAt {
    /// Writes all of `data`; a file that is too short grows, and the gap reads as zeroes.
    fn write_all_at(&self, data: &[u8], offset_bytes: u64) -> io::Result<()>;

    /// Returns when every write and length change that came before is on stable storage.
    fn flush(&self) -> io::Result<()>;

    /// Cuts the file off, or extends it with zeroes.
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;

    /// Makes a range inside the file read as zeroes, by whatever means is cheapest. The default writes them.
    fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        write_zeroes_plainly(self, range)
    }
}

fn write_zeroes_plainly(file: &(impl WriteAt + ?Sized), range: Range<u64>) -> io::Result<()> {
    const PIECE: u64 = 1 << 20;
    let len = range.end.saturating_sub(range.start);
    let zeroes = vec![0; len.min(PIECE) as usize];
    for at in range.clone().step_by(PIECE as usize) {
        file.write_all_at(&zeroes[..(range.end - at).min(PIECE) as usize], at)?;
    }
    Ok(())
}

/// What uncached access to a file asks of offsets, lengths and addresses. Disks with smaller sectors take it, too.
pub const UNCACHED_ALIGNMENT: usize = 4096;

/// Empties a buffer so that what is appended next, up to `room` bytes, begins at an aligned address; returns where.
pub fn begin_aligned(buf: &mut Vec<u8>, room: usize) -> usize {
    buf.clear();
    buf.reserve(room + UNCACHED_ALIGNMENT);
    let start = buf.as_ptr().align_offset(UNCACHED_ALIGNMENT);
    buf.resize(start, 0);
    start
}

/// A file that is written past the system's page cache, as far as it can be: what is copied once and read by others
/// does not push out what the host's machines need, and leaves nothing to write at the end.
///
/// Whole aligned parts of a write go to the disk directly when its bytes lie at an aligned address
/// ([`begin_aligned`]); the rest, and everything on file systems that know no such access, goes through the cache.
#[derive(Debug)]
pub struct UncachedFile<'a> {
    file: &'a File,
    /// The same file, opened for uncached access.
    direct: Option<File>,
    refused: AtomicBool,
}

impl<'a> UncachedFile<'a> {
    /// Wraps `file`, which lies at `path`.
    pub fn new(file: &'a File, path: &Path) -> Self {
        let mut options = File::options();
        options.write(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            options.custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32);
        }
        #[cfg(windows)]
        {
            use std::os::windows::fs::OpenOptionsExt as _;
            /// `FILE_FLAG_NO_BUFFERING` of `CreateFileW`.
            const NO_BUFFERING: u32 = 0x2000_0000;
            options.custom_flags(NO_BUFFERING);
        }
        // tmpfs and some network file systems refuse; that costs nothing but the advantage.
        Self { file, direct: options.open(path).ok(), refused: AtomicBool::new(false) }
    }

    /// Writes the aligned beginning of `data` directly, if that can be done; returns how much it was.
    fn write_directly(&self, data: &[u8], offset_bytes: u64) -> io::Result<usize> {
        let Some(direct) = self.direct.as_ref().filter(|_| !self.refused.load(Ordering::Relaxed)) else {
            return Ok(0);
        };
        let whole = data.len() - data.len() % UNCACHED_ALIGNMENT;
        let is_aligned = data.as_ptr().align_offset(UNCACHED_ALIGNMENT) == 0
            && offset_bytes.is_multiple_of(UNCACHED_ALIGNMENT as u64);
        if whole == 0 || !is_aligned {
            return Ok(0);
        }
        match direct.write_all_at(&data[..whole], offset_bytes) {
            Ok(()) => Ok(whole),
            // Opened, and yet not able to: a disk with larger sectors, or a file system that says so only now.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.refused.store(true, Ordering::Relaxed);
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }
}

impl ReadAt for UncachedFile<'_> {
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset_bytes)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.file.len_bytes()
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        self.file.next_data(range)
    }
}

impl WriteAt for UncachedFile<'_> {
    fn write_all_at(&self, data: &[u8], offset_bytes: u64) -> io::Result<()> {
        let written = self.write_directly(data, offset_bytes)?;
        if written == data.len() {
            return Ok(());
        }
        self.file.write_all_at(&data[written..], offset_bytes + written as u64)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.flush()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        WriteAt::set_len(self.file, len_bytes)
    }

    fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.file.write_zeroes(range)
    }
}

#[cfg(unix)]
impl ReadAt for File {
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buf, offset_bytes)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    #[cfg(target_os = "linux")]
    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        use rustix::fs::SeekFrom;
        if range.is_empty() {
            return Ok(None);
        }
        // The cursor that these seeks move is used by nobody: all other access is positional.
        let start = match rustix::fs::seek(self, SeekFrom::Data(range.start)) {
            Ok(start) if start >= range.end => return Ok(None),
            Ok(start) => start,
            // No data from here to the end of the file. A file that has become shorter than the range must
            // not pass for zeroes; the read that the caller then makes reports it.
            Err(rustix::io::Errno::NXIO) if self.metadata()?.len() >= range.end => return Ok(None),
            Err(_) => return Ok(Some(range)),
        };
        let end = rustix::fs::seek(self, SeekFrom::Hole(start)).unwrap_or(range.end).min(range.end);
        Ok(Some(start..end.max(start + 1)))
    }
}

#[cfg(unix)]
impl WriteAt for File {
    fn write_all_at(&self, data: &[u8], offset_bytes: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, data, offset_bytes)
    }

    #[cfg(target_os = "linux")]
    fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        use rustix::fs::FallocateFlags;
        // Writing is as good for little, and leaves no hole that has to be filled later.
        const WORTH_A_HOLE: u64 = 256 << 10;
        let len = range.end.saturating_sub(range.start);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if len >= WORTH_A_HOLE && rustix::fs::fallocate(self, punch, range.start, len).is_ok() {
            return Ok(());
        }
        write_zeroes_plainly(self, range)
    }

    fn flush(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        File::set_len(self, len_bytes)
    }
}

#[cfg(windows)]
impl ReadAt for File {
    fn read_exact_at(&self, mut buf: &mut [u8], mut offset_bytes: u64) -> io::Result<()> {
        use std::os::windows::fs::FileExt;
        while !buf.is_empty() {
            match self.seek_read(buf, offset_bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    buf = &mut buf[read..];
                    offset_bytes += read as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

#[cfg(windows)]
impl WriteAt for File {
    fn write_all_at(&self, mut data: &[u8], mut offset_bytes: u64) -> io::Result<()> {
        use std::os::windows::fs::FileExt;
        while !data.is_empty() {
            match self.seek_write(data, offset_bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    data = &data[written..];
                    offset_bytes += written as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        File::set_len(self, len_bytes)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        (**self).read_exact_at(buf, offset_bytes)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        (**self).len_bytes()
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        (**self).next_data(range)
    }
}

impl<T: WriteAt + ?Sized> WriteAt for Arc<T> {
    fn write_all_at(&self, data: &[u8], offset_bytes: u64) -> io::Result<()> {
        (**self).write_all_at(data, offset_bytes)
    }

    fn flush(&self) -> io::Result<()> {
        (**self).flush()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        (**self).set_len(len_bytes)
    }

    fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        (**self).write_zeroes(range)
    }
}

/// A file whose bytes are in memory already.
impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let start = usize::try_from(offset_bytes).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aligned and unaligned writes, by address, offset and length, give the same file as writes to memory.
    #[test]
    fn uncached_writes_are_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let uncached = UncachedFile::new(&file, &path);
        let mut model = vec![0; 1 << 20];
        uncached.set_len(model.len() as u64).unwrap();
        let mut buf = Vec::new();
        for (number, (at, len, shift)) in [
            (0, 65536, 0),
            (4096, 8192, 0),
            (8192, 5000, 0),
            (12289, 4096, 0),
            (200_000, 70_000, 3),
            (1 << 19, 1 << 19, 0),
        ]
        .into_iter()
        .enumerate()
        {
            let start = begin_aligned(&mut buf, len + shift);
            assert_eq!(buf[start..].as_ptr().align_offset(UNCACHED_ALIGNMENT), 0);
            buf.extend((0..len + shift).map(|i| (i * 7 + number) as u8));
            let data = &buf[start + shift..];
            uncached.write_all_at(data, at as u64).unwrap();
            model[at..at + len].copy_from_slice(data);
        }
        uncached.flush().unwrap();
        assert!(std::fs::read(&path).unwrap() == model);
    }

    #[test]
    fn a_file_system_without_uncached_access_is_written_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let uncached = UncachedFile { file: &file, direct: None, refused: AtomicBool::new(false) };
        let mut buf = Vec::new();
        let start = begin_aligned(&mut buf, 8192);
        buf.extend([7; 8192]);
        uncached.write_all_at(&buf[start..], 4096).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [[0; 4096].as_slice(), &[7; 8192]].concat());
    }
}

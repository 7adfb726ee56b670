//! A raw disk image in a file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::{Device, DeviceError, DeviceErrorKind, Extent, Zeroing};

/// A file that holds a disk, byte for byte. Holes of the file are known to be zero, where the system tells of them.
pub struct FileDevice {
    file: File,
    path: PathBuf,
    size_bytes: u64,
}

impl FileDevice {
    /// Opens a file of whole sectors for reading and, unless it is only to be read, for writing. It is not locked.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, OpenFileError> {
        let failed = |source| OpenFileError::Open { path: path.to_owned(), source };
        let file = File::options().read(true).write(!read_only).open(path).map_err(failed)?;
        let facts = file.metadata().map_err(failed)?;
        let size_bytes = facts.len();
        if !facts.is_file() || !size_bytes.is_multiple_of(512) {
            return Err(OpenFileError::Size { path: path.to_owned(), size_bytes });
        }
        Ok(Self { file, path: path.to_owned(), size_bytes })
    }

    fn failed(&self, attempt: &str) -> impl Fn(io::Error) -> DeviceError {
        let attempt = format!("{attempt} {}", self.path.display());
        move |error| DeviceError::from_io(&attempt, &error)
    }
}

impl Device for FileDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), DeviceError> {
        os::read_exact_at(&self.file, buf, offset_bytes).map_err(self.failed("read"))
    }

    fn write_at(&self, data: &[u8], offset_bytes: u64) -> Result<(), DeviceError> {
        os::write_all_at(&self.file, data, offset_bytes).map_err(self.failed("write"))
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<(), DeviceError> {
        os::zero(&self.file, range, how).map_err(|error| match error.kind() {
            io::ErrorKind::Unsupported => DeviceError::new(
                DeviceErrorKind::Io,
                format!("zero a range of {}: its file system cannot do it", self.path.display()),
            ),
            _ => self.failed("zero a range of")(error),
        })
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.file.sync_data().map_err(self.failed("flush"))
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>, DeviceError> {
        let mut extents = Vec::new();
        let mut at = range.start;
        while at < range.end && extents.len() < max {
            let (kind, end) = os::extent_at(&self.file, at, self.size_bytes).map_err(self.failed("map"))?;
            extents.push(Extent { len_bytes: end - at, kind });
            at = end;
        }
        Ok(extents)
    }
}

#[cfg(unix)]
mod os {
    use std::fs::File;
    use std::io;
    use std::ops::Range;
    use std::os::unix::fs::FileExt;

    use rustix::fs::SeekFrom;
    use rustix::io::Errno;

    use crate::{ExtentKind, Zeroing};

    pub(super) fn read_exact_at(file: &File, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        file.read_exact_at(buf, offset_bytes)
    }

    pub(super) fn write_all_at(file: &File, data: &[u8], offset_bytes: u64) -> io::Result<()> {
        file.write_all_at(data, offset_bytes)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(super) fn zero(file: &File, range: Range<u64>, how: Zeroing) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        let means = match how {
            Zeroing::MayDeallocate => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Zeroing::KeepAllocated => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        };
        match fallocate(file, means, range.start, range.end - range.start) {
            Err(Errno::OPNOTSUPP) => super::write_zeroes(file, range),
            result => result.map_err(io::Error::from),
        }
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(super) fn zero(file: &File, range: Range<u64>, _how: Zeroing) -> io::Result<()> {
        super::write_zeroes(file, range)
    }

    /// What begins at an offset inside the file, and where it ends. The cursor that these seeks move is used by nobody:
    /// all other access is positional.
    pub(super) fn extent_at(file: &File, at: u64, size_bytes: u64) -> io::Result<(ExtentKind, u64)> {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(size_bytes),
            // No data from here on, in a file that is as long as it was.
            Err(Errno::NXIO) if file.metadata()?.len() >= size_bytes => size_bytes,
            Err(Errno::INVAL) => return Ok((ExtentKind::Data, size_bytes)),
            Err(error) => return Err(error.into()),
        };
        if data > at {
            return Ok((ExtentKind::Zero, data));
        }
        let hole = rustix::fs::seek(file, SeekFrom::Hole(at))?;
        // Somebody may have punched a hole in between.
        Ok((ExtentKind::Data, hole.clamp(at + 1, size_bytes)))
    }
}

#[cfg(windows)]
mod os {
    use std::fs::File;
    use std::io;
    use std::ops::Range;
    use std::os::windows::fs::FileExt;

    use crate::{ExtentKind, Zeroing};

    pub(super) fn read_exact_at(file: &File, mut buf: &mut [u8], mut offset_bytes: u64) -> io::Result<()> {
        while !buf.is_empty() {
            let read = file.seek_read(buf, offset_bytes)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buf = &mut buf[read..];
            offset_bytes += read as u64;
        }
        Ok(())
    }

    pub(super) fn write_all_at(file: &File, mut data: &[u8], mut offset_bytes: u64) -> io::Result<()> {
        while !data.is_empty() {
            let written = file.seek_write(data, offset_bytes)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            data = &data[written..];
            offset_bytes += written as u64;
        }
        Ok(())
    }

    pub(super) fn zero(file: &File, range: Range<u64>, _how: Zeroing) -> io::Result<()> {
        super::write_zeroes(file, range)
    }

    pub(super) fn extent_at(_file: &File, _at: u64, size_bytes: u64) -> io::Result<(ExtentKind, u64)> {
        Ok((ExtentKind::Data, size_bytes))
    }
}

/// The last resort, whose cost follows the length.
fn write_zeroes(file: &File, range: Range<u64>) -> io::Result<()> {
    const PIECE_BYTES: u64 = 1 << 20;
    let zeroes = vec![0; (range.end - range.start).min(PIECE_BYTES) as usize];
    for at in range.clone().step_by(PIECE_BYTES as usize) {
        os::write_all_at(file, &zeroes[..(range.end - at).min(PIECE_BYTES) as usize], at)?;
    }
    Ok(())
}

/// Why a file cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenFileError {
    /// It cannot be opened.
    #[error("open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no regular file of whole sectors.
    #[error("serve {}: {size_bytes} bytes are no regular file of whole sectors of 512 bytes", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its length.
        size_bytes: u64,
    },
}

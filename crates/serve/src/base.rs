//! What lies under the guest's writes: a disk that never changes.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::overlay::sha256;

/// An immutable disk, read in *segments* of one size. Calls may run concurrently, and block.
pub trait Base: Send + Sync {
    /// Size of the disk: a multiple of 512.
    fn size_bytes(&self) -> u64;

    /// Logical sectors of the disk: 512 or 4096.
    fn sector_bytes(&self) -> u32;

    /// Length of a segment, a multiple of 4096; the last one is cut off at the end of the disk.
    fn segment_bytes(&self) -> u32;

    /// Tells one base from every other: an overlay over another base is refused.
    fn identity(&self) -> [u8; 32];

    /// Whether a segment is known to be zero without reading it.
    fn is_zero(&self, segment: u64) -> Result<bool, BaseError>;

    /// Fills `bytes` with a segment, from wherever it is nearest. An error is an error for these sectors only; zeroes
    /// never stand for what could not be read.
    fn read_segment(&self, segment: u64, bytes: &mut Vec<u8>) -> Result<Origin, BaseError>;

    /// Fills `buf` from within a segment, if what is on this machine suffices: a small read then costs little more than
    /// its own bytes. [`Nearby::No`] leaves `buf` unspecified; the whole segment has to be read.
    fn read_nearby(&self, _segment: u64, _within_bytes: u64, _buf: &mut [u8]) -> Result<Nearby, BaseError> {
        Ok(Nearby::No)
    }

    /// Whether fetching a segment ahead would be no use: it is zero, or on this machine already.
    fn is_nearby(&self, segment: u64) -> bool {
        self.is_zero(segment).unwrap_or(false)
    }

    /// Bytes of a segment: fewer at the end of the disk.
    fn len_of(&self, segment: u64) -> u64 {
        let start = segment * u64::from(self.segment_bytes());
        u64::from(self.segment_bytes()).min(self.size_bytes().saturating_sub(start))
    }
}

/// Where a base's bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From ciphertext kept on this machine.
    DiskCache,
    /// From where the base is stored.
    Repository,
}

/// Whether bytes were found without asking where the base is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nearby {
    /// They follow from what is known, and nothing was read: zeroes, or what is made up.
    Known,
    /// In ciphertext kept on this machine.
    DiskCache,
    /// Not here.
    No,
}

/// Why bytes of a base are not there.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct BaseError {
    /// Nothing is wrong with the bytes as far as is known: they cannot be reached, and may be later.
    pub is_unreachable: bool,
    /// What was attempted and why it failed.
    pub message: String,
}

/// The identity of a base by its object: SHA-256 of the object's id and the size (spec block-serving C.4).
pub fn base_identity(object: &str, size_bytes: u64) -> [u8; 32] {
    sha256(&[object.as_bytes(), &size_bytes.to_le_bytes()].concat())
}

/// A raw disk image in a file that nobody changes.
#[derive(Debug)]
pub struct FileBase {
    file: Mutex<File>,
    path: PathBuf,
    size_bytes: u64,
}

impl FileBase {
    const SEGMENT_BYTES: u32 = 1 << 20;

    /// Opens an image of whole sectors.
    pub fn open(path: &Path) -> Result<Self, BaseError> {
        let failed = |problem: String| BaseError {
            is_unreachable: false,
            message: format!("open {} as the base of a disk: {problem}", path.display()),
        };
        let mut file = File::open(path).map_err(|error| failed(error.to_string()))?;
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(|error| failed(error.to_string()))?;
        if !size_bytes.is_multiple_of(512) {
            return Err(failed(format!("{size_bytes} bytes are not whole sectors")));
        }
        Ok(Self { file: Mutex::new(file), path: path.to_owned(), size_bytes })
    }
}

impl Base for FileBase {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn sector_bytes(&self) -> u32 {
        512
    }

    fn segment_bytes(&self) -> u32 {
        Self::SEGMENT_BYTES
    }

    fn identity(&self) -> [u8; 32] {
        base_identity(&self.path.to_string_lossy(), self.size_bytes)
    }

    fn is_zero(&self, _segment: u64) -> Result<bool, BaseError> {
        Ok(false)
    }

    fn read_segment(&self, segment: u64, bytes: &mut Vec<u8>) -> Result<Origin, BaseError> {
        bytes.clear();
        bytes.resize(self.len_of(segment) as usize, 0);
        let mut file = self.file.lock().expect("no panic while held");
        let at = SeekFrom::Start(segment * u64::from(Self::SEGMENT_BYTES));
        let read = file.seek(at).and_then(|_| file.read_exact(bytes));
        read.map(|()| Origin::Repository).map_err(|error| BaseError {
            is_unreachable: false,
            message: format!("read segment {segment} of {}: {error}", self.path.display()),
        })
    }
}

//! The virtual disk as its guest sees it.

use std::io;
use std::ops::Range;

/// Size and sector sizes of a virtual disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DiskGeometry {
    /// Bytes the guest sees; a multiple of the logical sector size.
    pub size_bytes: u64,
    /// 512 or 4096.
    pub logical_sector_bytes: u32,
    /// 512 or 4096.
    pub physical_sector_bytes: u32,
}

/// A disk that can be read, whatever files it lies in; calls may run concurrently.
pub trait VirtualDisk: Send + Sync {
    /// What the guest sees. Does not change while the disk is open for reading.
    fn geometry(&self) -> DiskGeometry;

    /// Fills `buf` from the virtual offset `offset_bytes`; any alignment. A range that does not lie inside
    /// the disk is [`ReadError::OutOfRange`]. On error the content of `buf` is unspecified.
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), ReadError>;

    /// What is known of `range` without reading data: in order, without gaps, neighbours of one kind
    /// joined. Lazy: a walk over a disk of any size holds little memory. After an error the walk ends.
    fn extents(&self, range: Range<u64>) -> Extents<'_>;
}

/// The walk that [`VirtualDisk::extents`] makes.
pub type Extents<'a> = Box<dyn Iterator<Item = Result<Extent, ReadError>> + Send + 'a>;

/// A range of the virtual disk, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Virtual bytes; never empty.
    pub range: Range<u64>,
    /// What is there.
    pub kind: ExtentKind,
}

/// What is known of a range without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Stored in some file of the chain; the bytes may still happen to be zero.
    Data,
    /// Reads as zeroes.
    Zero,
}

/// A range of the virtual disk as one file of a chain sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileExtent {
    /// Virtual bytes; never empty.
    pub range: Range<u64>,
    /// Where this file says the bytes are.
    pub kind: FileExtentKind,
}

/// Where one file of a chain says that bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileExtentKind {
    /// In this file, contiguous from this file offset.
    Data {
        /// Where the first byte of the range lies in the file.
        file_offset_bytes: u64,
    },
    /// Zero, whatever the parent holds.
    Zero,
    /// Whatever the parent holds (zeroes beyond the parent's end).
    Parent,
}

/// Why a range of a virtual disk could not be read or mapped.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The caller asked for bytes that the disk does not have.
    #[error("range of {len_bytes} bytes at {offset_bytes} lies outside the disk of {size_bytes} bytes")]
    OutOfRange {
        /// Virtual offset asked for.
        offset_bytes: u64,
        /// Length asked for.
        len_bytes: u64,
        /// Size of the disk.
        size_bytes: u64,
    },
    /// A file of the chain failed, or has become shorter than it was when it was opened.
    #[error("read {len_bytes} bytes at file offset {file_offset_bytes:#x} for virtual offset {offset_bytes}")]
    Io {
        /// Virtual offset of the bytes.
        offset_bytes: u64,
        /// Where they lie in the file.
        file_offset_bytes: u64,
        /// How many were asked for.
        len_bytes: u64,
        /// What the file said.
        #[source]
        source: io::Error,
    },
    /// The bytes belong to the parent of a differencing file that was opened without it.
    #[error("virtual offset {offset_bytes} is in the parent, which is not open")]
    ParentNotOpen {
        /// Virtual offset of the bytes.
        offset_bytes: u64,
    },
}

//! Bytes at offsets: what servers of block protocols serve.
//!
//! [`Device`] is the border between those who speak a protocol (NBD, iSCSI) and those who have a disk. A disk that
//! implements it once can be served by all of them, at the same time.
//!
//! [`FileDevice`] is the plainest of them: a raw image. Not here: any protocol.

mod file_device;

use std::ops::Range;

pub use file_device::{FileDevice, OpenFileError};

/// A disk that many clients may use at once.
///
/// Calls run concurrently, from several connections, on one shared object. Every range given lies inside the disk and
/// consists of whole sectors of 512 bytes; a server that shows larger logical blocks asks for whole ones of these. A
/// write that has returned is seen by every later read, whoever makes it. Overlapping writes that run at the same time
/// may take effect in any order, sector by sector.
///
/// Calls may block, but a server that is shut down waits for them, and iSCSI initiators give a disk up after a minute:
/// answer within 30 seconds, at the worst with [`DeviceErrorKind::Unavailable`].
pub trait Device: Send + Sync {
    /// Size of the disk: a multiple of 512 and of every logical block it is served with, the same for the whole life of the object.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` from `offset_bytes`, or fails; then the content of `buf` is unspecified, and never sent.
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), DeviceError>;

    /// Writes `data`. After an error, every sector of the range is old or new.
    fn write_at(&self, data: &[u8], offset_bytes: u64) -> Result<(), DeviceError>;

    /// Makes `range` read as zeroes, whatever its length. Cheap: its cost must not follow the length.
    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<(), DeviceError>;

    /// Returns when every write and zeroing that had returned before the call, to any connection, is on stable storage.
    fn flush(&self) -> Result<(), DeviceError>;

    /// What is known of `range` without reading it: in order, without gaps, from its start. Not empty, unless `range`
    /// is; may end early, at `max` extents or for any other reason, and may run past the end of `range`.
    ///
    /// Clients ask extent by extent before they copy: the answer should come from memory, and each extent be as long as
    /// it can.
    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>, DeviceError>;

    /// A client expects to read `range` soon. Must return at once.
    fn prefetch(&self, _range: Range<u64>) {}
}

/// What may become of the space under zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeroing {
    /// It may be given back.
    MayDeallocate,
    /// A later write to the range must not fail for want of space.
    KeepAllocated,
}

/// Bytes in a row of which the same is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How many; not 0.
    pub len_bytes: u64,
    /// What is known.
    pub kind: ExtentKind,
}

/// What is known of bytes without reading them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Stored somewhere; may still happen to be zero.
    Data,
    /// Takes no space and reads as zeroes.
    Zero,
}

/// Why a device did not do what it was asked. NBD carries the text to the client; SCSI has no room for it, so who
/// implements a device logs it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct DeviceError {
    kind: DeviceErrorKind,
    message: String,
}

/// What a client is to make of a [`DeviceError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceErrorKind {
    /// Bytes could not be read, written or made durable; trying again is no use.
    Io,
    /// There is no space for what was to be written.
    NoSpace,
    /// This device does not take writes.
    ReadOnly,
    /// Not now: where the protocol can say so, the client is told to try again.
    Unavailable,
}

impl DeviceError {
    /// `message` says what was attempted and why it failed, for a person.
    pub fn new(kind: DeviceErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// What went wrong, to choose by.
    pub fn kind(&self) -> DeviceErrorKind {
        self.kind
    }

    /// From the error of a file: out of space stays that, everything else is [`DeviceErrorKind::Io`].
    pub fn from_io(attempt: &str, error: &std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => DeviceErrorKind::NoSpace,
            std::io::ErrorKind::ReadOnlyFilesystem => DeviceErrorKind::ReadOnly,
            _ => DeviceErrorKind::Io,
        };
        Self::new(kind, format!("{attempt}: {error}"))
    }
}

//! Plain files of the host, by the host's own path.

use std::io;
use std::time::SystemTime;

use vhdx::ReadAt;

/// What the host's file system says about a file: how a replaced or restored copy is noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Length in bytes.
    pub len_bytes: u64,
    /// The file system's own number of the file (NTFS file id, inode), as text; it changes when a file is replaced.
    pub file_id: String,
    /// When the file was created, if the file system knows.
    pub created: Option<SystemTime>,
    /// Last modification.
    pub modified: SystemTime,
}

/// An open file. Opened for reading with every kind of sharing (read, write, delete) granted to others.
pub type HostFile = Box<dyn ReadAt>;

/// Reading of the host's files. Paths are in the host's own form (`C:\VMs\disk.vhdx`).
pub trait HostFiles: Send + Sync {
    /// Opens for reading; the leaf of a running VM gives a sharing violation: raw OS error 32, or `ResourceBusy`.
    fn open_read(&self, path: &str) -> io::Result<HostFile>;

    /// Facts of a file; `NotFound` when it is not there.
    fn facts(&self, path: &str) -> io::Result<FileFacts>;

    /// Bytes that can still be written to the volume that holds `path`.
    fn free_bytes(&self, path: &str) -> io::Result<u64>;
}

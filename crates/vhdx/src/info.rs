//! What a disk file says of itself.

use crate::{DiskGeometry, Guid, ParentLocator};

/// The format of a disk file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileFormat {
    /// VHDX.
    Vhdx,
    /// The older VHD.
    Vhd,
    /// No container: the file is the disk.
    Raw,
}

/// How a disk file holds its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskKind {
    /// All blocks are allocated from the start.
    Fixed,
    /// Blocks are allocated when they are first written.
    Dynamic,
    /// Holds what changed since its parent was frozen.
    Differencing,
}

/// What one disk file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    /// Container format.
    pub format: FileFormat,
    /// How it holds its blocks.
    pub kind: DiskKind,
    /// Virtual size and sector sizes.
    pub geometry: DiskGeometry,
    /// Length of the file itself; after the replay, when its log is dirty.
    pub file_len_bytes: u64,
    /// Payload block size; 0 for fixed VHD and raw files.
    pub block_bytes: u32,
    /// Payload blocks of the disk; 0 for fixed VHD and raw files.
    pub blocks: u32,
    /// Payload blocks that have space in this file.
    pub allocated_blocks: u32,
    /// Changes with each writable session; zero outside VHDX.
    pub file_write_guid: Guid,
    /// The identity that children name. VHD: the unique id. Raw: zero.
    pub data_write_guid: Guid,
    /// The identity the guest sees, the same in parent and child. VHD: the unique id of this file. Raw: zero.
    pub virtual_disk_id: Guid,
    /// Name of the creating program; informative only, and as untrusted as the rest.
    pub creator: String,
    /// Whether the log holds changes that are not in the file yet.
    pub log_dirty: bool,
    /// The parent, of a differencing file.
    pub parent: Option<ParentLocator>,
    /// Faults that do not keep the file from being read.
    pub warnings: Vec<String>,
}

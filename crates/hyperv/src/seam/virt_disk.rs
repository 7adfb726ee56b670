//! `virtdisk.dll`: the driver stack that reads chains and knows what changed.

/// Facts of an open virtual disk (`GetVirtualDiskInformation`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtDiskInfo {
    /// Virtual size in bytes.
    pub size_bytes: u64,
    /// Logical sector size.
    pub logical_sector_bytes: u32,
    /// Physical sector size.
    pub physical_sector_bytes: u32,
    /// `VirtualDiskId`, the disk's identity across its chain.
    pub virtual_disk_id: vhdx::Guid,
}

/// `GET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackingState {
    /// Tracking is on.
    pub enabled: bool,
    /// Something was written after the newest id.
    pub newer_changes: bool,
    /// The newest id; empty when there is none.
    pub most_recent_id: String,
}

/// One changed range of the virtual disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedRange {
    /// Virtual disk offset, not a file offset.
    pub offset_bytes: u64,
    /// Length.
    pub len_bytes: u64,
}

/// One page of `QueryChangesVirtualDisk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedPage {
    /// Ranges inside the processed region.
    pub ranges: Vec<ChangedRange>,
    /// How much of the asked region this page covers; the next page starts behind it.
    pub processed_bytes: u64,
}

/// A call failed; `code` is the Win32 or HRESULT value exactly as returned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation} on {path}: error 0x{code:08X}")]
pub struct VirtDiskError {
    /// The function: `OpenVirtualDisk`, `ReadFile`, …
    pub operation: &'static str,
    /// The disk file.
    pub path: String,
    /// The error.
    pub code: u32,
}

/// A disk opened read-only (version 2 parameters) and attached without a local host, so that it can be read.
/// Dropping it detaches and closes: the merge of its chain cannot start before.
pub trait VirtDiskHandle: Send + Sync {
    /// Size and identity.
    fn info(&self) -> Result<VirtDiskInfo, VirtDiskError>;

    /// State of change tracking.
    fn tracking_state(&self) -> Result<TrackingState, VirtDiskError>;

    /// One page of what changed since `id`, at most `max_ranges`, within `[offset_bytes, offset_bytes + len_bytes)`.
    fn changed_ranges(
        &self,
        id: &str,
        offset_bytes: u64,
        len_bytes: u64,
        max_ranges: usize,
    ) -> Result<ChangedPage, VirtDiskError>;

    /// Reads whole sectors; the chain is resolved. Offset and length are multiples of the larger sector size, except
    /// that the last read may end at the end of the disk. Calls may run concurrently.
    fn read(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), VirtDiskError>;
}

/// Opens virtual disk files by host path.
pub trait VirtDisk: Send + Sync {
    /// Opens and attaches read-only. The leaf of a running VM gives a sharing violation (0x80070020).
    fn open_read_only(&self, path: &str) -> Result<Box<dyn VirtDiskHandle>, VirtDiskError>;
}

//! Virtual disks through the driver that reads chains and knows what changed (spec 4.7, 5.1 A, 5.3).

use std::sync::OnceLock;

use vhdx::Guid;

use super::calls::{self, Code, Disk, OpenFor};
use crate::seam::{ChangedPage, ChangedRange, TrackingState, VirtDisk, VirtDiskError, VirtDiskHandle, VirtDiskInfo};

/// `virtdisk.dll` of this machine.
#[derive(Debug, Default)]
pub struct VirtDiskDll(());

impl VirtDiskDll {
    /// Also switches on the privilege that attaching needs; an account that lacks it finds out when it attaches.
    pub fn new() -> Self {
        static PRIVILEGE: OnceLock<Result<(), Code>> = OnceLock::new();
        let _ = PRIVILEGE.get_or_init(|| calls::enable_privilege("SeManageVolumePrivilege"));
        Self(())
    }

    /// Opens one snapshot of a VHD set as [`open_read_only`](VirtDisk::open_read_only) opens a disk.
    pub fn open_set_snapshot(&self, path: &str, snapshot: Guid) -> Result<Box<dyn VirtDiskHandle>, VirtDiskError> {
        open_and_attach(path, OpenFor::ReadingSnapshot(snapshot))
    }

    /// Makes a differencing disk on `parent`, with its sizes; an existing file is an error.
    pub fn create_child(&self, path: &str, parent: &str) -> Result<(), VirtDiskError> {
        calls::create_child(path, parent).map_err(failed("CreateVirtualDisk", path))
    }

    /// Detaches a disk that some handle, perhaps of a process that is gone, attached.
    pub fn detach(&self, path: &str) -> Result<(), VirtDiskError> {
        let disk = Disk::open(path, OpenFor::Detaching).map_err(failed("OpenVirtualDisk", path))?;
        disk.detach().map_err(failed("DetachVirtualDisk", path))
    }
}

impl VirtDisk for VirtDiskDll {
    fn open_read_only(&self, path: &str) -> Result<Box<dyn VirtDiskHandle>, VirtDiskError> {
        open_and_attach(path, OpenFor::Reading)
    }
}

fn open_and_attach(path: &str, purpose: OpenFor) -> Result<Box<dyn VirtDiskHandle>, VirtDiskError> {
    let disk = Disk::open(path, purpose).map_err(failed("OpenVirtualDisk", path))?;
    disk.attach_read_only().map_err(failed("AttachVirtualDisk", path))?;
    Ok(Box::new(Attached { disk, path: path.to_owned() }))
}

fn failed(operation: &'static str, path: &str) -> impl Fn(Code) -> VirtDiskError {
    move |code| VirtDiskError { operation, path: path.to_owned(), code }
}

/// A disk that this handle attached.
struct Attached {
    disk: Disk,
    path: String,
}

impl Attached {
    fn failed(&self, operation: &'static str) -> impl Fn(Code) -> VirtDiskError {
        failed(operation, &self.path)
    }
}

/// What a read into memory is aligned to: no sector is larger.
const ALIGNMENT_BYTES: usize = 4096;

impl VirtDiskHandle for Attached {
    fn info(&self) -> Result<VirtDiskInfo, VirtDiskError> {
        const CALL: &str = "GetVirtualDiskInformation";
        let (size_bytes, logical_sector_bytes) = self.disk.size().map_err(self.failed(CALL))?;
        Ok(VirtDiskInfo {
            size_bytes,
            logical_sector_bytes,
            physical_sector_bytes: self.disk.physical_sector_bytes().map_err(self.failed(CALL))?,
            virtual_disk_id: self.disk.virtual_disk_id().map_err(self.failed(CALL))?,
        })
    }

    fn tracking_state(&self) -> Result<TrackingState, VirtDiskError> {
        let state = self.disk.tracking_state().map_err(self.failed("GetVirtualDiskInformation"));
        let (enabled, newer_changes, most_recent_id) = state?;
        Ok(TrackingState { enabled, newer_changes, most_recent_id })
    }

    fn changed_ranges(
        &self,
        id: &str,
        offset_bytes: u64,
        len_bytes: u64,
        max_ranges: usize,
    ) -> Result<ChangedPage, VirtDiskError> {
        /// What programs in the field ask for at most (spec 4.7).
        const MOST: usize = 4096;
        let max_ranges = max_ranges.min(MOST) as u32;
        let page = self.disk.query_changes(id, offset_bytes, len_bytes, max_ranges);
        let (ranges, processed_bytes) = page.map_err(self.failed("QueryChangesVirtualDisk"))?;
        let ranges = ranges.into_iter().map(|(offset_bytes, len_bytes)| ChangedRange { offset_bytes, len_bytes });
        Ok(ChangedPage { ranges: ranges.collect(), processed_bytes })
    }

    fn read(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), VirtDiskError> {
        let read = |buf: &mut [u8]| match self.disk.read(buf, offset_bytes) {
            Ok(read_bytes) if read_bytes == buf.len() => Ok(()),
            // A short read must not pass for zeroes (spec 5.3).
            Ok(_) => Err(ERROR_HANDLE_EOF),
            Err(code) => Err(code),
        };
        // Reads go past the cache, straight into the caller's memory: that wants aligned memory.
        let result = if buf.as_ptr().align_offset(ALIGNMENT_BYTES) == 0 {
            read(buf)
        } else {
            let mut space = vec![0; buf.len() + ALIGNMENT_BYTES];
            let start = space.as_ptr().align_offset(ALIGNMENT_BYTES);
            let aligned = &mut space[start..][..buf.len()];
            read(aligned).map(|()| buf.copy_from_slice(aligned))
        };
        result.map_err(self.failed("ReadFile"))
    }
}

const ERROR_HANDLE_EOF: Code = 38;

impl Drop for Attached {
    fn drop(&mut self) {
        // The handle closes next, and the attachment ends with it: it is not a permanent one.
        let _ = self.disk.detach();
    }
}

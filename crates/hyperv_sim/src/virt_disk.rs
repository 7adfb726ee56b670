//! `virtdisk.dll`: opening, reading, and asking what changed.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hyperv::seam::{ChangedPage, TrackingState, VirtDisk, VirtDiskError, VirtDiskHandle, VirtDiskInfo};
use vhdx::{OpenErrorKind, OpenedDisk, VirtualDisk as _};

use crate::answers::{self, Question, is_disk};
use crate::disks;
use crate::error::LabError;
use crate::faults::{self, Fault};
use crate::files_of_disks::is_worked_on;
use crate::host::{LabHost, Tx};
use crate::paths::WinPath;
use crate::state::Power;
use crate::tracking;

const SECTOR_NOT_FOUND: u32 = 27;
const GEN_FAILURE: u32 = 31;
const INVALID_PARAMETER: u32 = 87;
const FILE_NOT_FOUND: u32 = 0x8007_0002;
const SHARING_VIOLATION: u32 = 0x8007_0020;
const PARENT_NOT_FOUND: u32 = 0xC03A_000D;
const PARENT_MISMATCH: u32 = 0xC03A_000E;
const FORMAT_UNKNOWN: u32 = 0xC03A_0004;

/// How often faults that wear off have struck, by handle and position in the list of faults.
pub(crate) type FaultCounts = Mutex<HashMap<(u64, usize), u32>>;

/// [`VirtDisk`] of a [`LabHost`].
pub(crate) struct LabVirtDisk {
    host: Arc<LabHost>,
}

impl LabVirtDisk {
    pub(crate) fn new(host: Arc<LabHost>) -> Self {
        Self { host }
    }
}

impl VirtDisk for LabVirtDisk {
    fn open_read_only(&self, path: &str) -> Result<Box<dyn VirtDiskHandle>, VirtDiskError> {
        const OPERATION: &str = "OpenVirtualDisk";
        let error = |code| VirtDiskError { operation: OPERATION, path: path.to_owned(), code };
        let file = WinPath::new(path);
        let opened = self.host.transact(|tx| {
            if !file.in_sandbox(tx.store.root()).is_some_and(|file| file.is_file()) {
                return Ok(Err(FILE_NOT_FOUND));
            }
            if let Err(code) = check_openable(tx, &file) {
                return Ok(Err(code));
            }
            let disk = match disks::open_chain(tx.store, &file)? {
                Ok(disk) => disk,
                Err(e) => {
                    return Ok(Err(match e.kind() {
                        OpenErrorKind::Missing => PARENT_NOT_FOUND,
                        OpenErrorKind::ParentMismatch => PARENT_MISMATCH,
                        OpenErrorKind::Corrupt | OpenErrorKind::Unsupported => FORMAT_UNKNOWN,
                        OpenErrorKind::Busy => SHARING_VIOLATION,
                        OpenErrorKind::Io => GEN_FAILURE,
                    }));
                }
            };
            let chain = disks::chain_paths(tx.store, &disk);
            let handles = chain.iter().map(|file| tx.store.hold_handle(file)).collect::<Result<Vec<_>, _>>()?;
            Ok(Ok((disk, chain, handles)))
        });
        let (disk, chain, held) = opened.map_err(|e| error(lab_code(&e)))?.map_err(error)?;
        let number = {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            NEXT.fetch_add(1, Ordering::Relaxed)
        };
        Ok(Box::new(Handle {
            host: self.host.clone(),
            path: path.to_owned(),
            disk,
            chain,
            number,
            reads: AtomicU32::new(0),
            _held: held,
        }))
    }
}

/// Whether a file may be opened: not while it is written by a running VM, a merge or another job. The error is the code to return.
pub(crate) fn check_openable(tx: &Tx<'_>, file: &WinPath) -> Result<(), u32> {
    let is_written = tx.vms.iter().any(|vm| {
        let is_awake = matches!(vm.power, Power::Running | Power::Paused);
        is_awake && vm.active.disks.iter().any(|disk| disk.file == *file)
    });
    let is_merged = tx.merges.iter().any(|merge| !merge.blocked && (merge.child == *file || merge.parent == *file));
    if is_written || is_merged || is_worked_on(tx, file) { Err(SHARING_VIOLATION) } else { Ok(()) }
}

/// What a breakdown of the lab looks like through this door.
fn lab_code(_error: &LabError) -> u32 {
    GEN_FAILURE
}

/// An open disk. The locks in `_held` tell every process that the chain is in use.
struct Handle {
    host: Arc<LabHost>,
    path: String,
    disk: OpenedDisk,
    chain: Vec<WinPath>,
    number: u64,
    /// Reads so far.
    reads: AtomicU32,
    _held: Vec<File>,
}

impl Handle {
    fn error(&self, operation: &'static str, code: u32) -> VirtDiskError {
        VirtDiskError { operation, path: self.path.clone(), code }
    }

    /// Fails once the device is lost.
    fn check_alive(&self, operation: &'static str) -> Result<(), VirtDiskError> {
        let reads = self.reads.load(Ordering::Relaxed);
        let faults = faults::load(self.host.store.root()).map_err(|e| self.error(operation, lab_code(&e)))?;
        for fault in &faults {
            let Fault::DeviceLost { vm, disk, after_reads, code } = fault else { continue };
            if reads >= *after_reads {
                let is_this = self.host.transact(|tx| Ok(is_disk(tx, &self.chain, vm, *disk)));
                if is_this.map_err(|e| self.error(operation, lab_code(&e)))? {
                    return Err(self.error(operation, *code));
                }
            }
        }
        Ok(())
    }
}

impl VirtDiskHandle for Handle {
    fn info(&self) -> Result<VirtDiskInfo, VirtDiskError> {
        let geometry = self.disk.geometry();
        Ok(VirtDiskInfo {
            size_bytes: geometry.size_bytes,
            logical_sector_bytes: geometry.logical_sector_bytes,
            physical_sector_bytes: geometry.physical_sector_bytes,
            virtual_disk_id: disks::leaf_info(&self.disk).virtual_disk_id,
        })
    }

    fn tracking_state(&self) -> Result<TrackingState, VirtDiskError> {
        let newest = self.host.transact(|tx| tracking::newest_id(tx.store, tx, &self.chain));
        let (enabled, id, newer_changes) = newest.map_err(|e| self.error("GetVirtualDiskInformation", lab_code(&e)))?;
        Ok(TrackingState { enabled, newer_changes, most_recent_id: id.unwrap_or_default() })
    }

    fn changed_ranges(
        &self,
        id: &str,
        offset_bytes: u64,
        len_bytes: u64,
        max_ranges: usize,
    ) -> Result<ChangedPage, VirtDiskError> {
        let error = |code| self.error("QueryChangesVirtualDisk", code);
        self.check_alive("QueryChangesVirtualDisk")?;
        let size_bytes = self.disk.geometry().size_bytes;
        let question = Question { size_bytes, offset_bytes, len_bytes, max_ranges };
        let page = self.host.transact(|tx| {
            let changes = answers::changes_since(tx, &self.chain, size_bytes, id)?;
            Ok(changes.and_then(|changes| answers::page(tx, &changes, &question).ok_or(INVALID_PARAMETER)))
        });
        page.map_err(|e| error(lab_code(&e)))?.map_err(error)
    }

    fn read(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), VirtDiskError> {
        let error = |code| self.error("ReadFile", code);
        let geometry = self.disk.geometry();
        let sector = u64::from(geometry.logical_sector_bytes.max(geometry.physical_sector_bytes));
        let len_bytes = buf.len() as u64;
        let end = offset_bytes.checked_add(len_bytes).ok_or_else(|| error(INVALID_PARAMETER))?;
        let aligned = offset_bytes.is_multiple_of(sector) && (end.is_multiple_of(sector) || end == geometry.size_bytes);
        if !aligned || len_bytes == 0 {
            return Err(error(INVALID_PARAMETER));
        }
        if end > geometry.size_bytes {
            return Err(error(SECTOR_NOT_FOUND));
        }
        self.check_alive("ReadFile")?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        // Without the host's lock unless there are faults: reads run concurrently, and the files are frozen.
        let faults = faults::load(self.host.store.root()).map_err(|e| error(lab_code(&e)))?;
        if let Some(code) = self.read_fault(&faults, offset_bytes, end).map_err(|e| error(lab_code(&e)))? {
            return Err(error(code));
        }
        self.disk.read_exact_at(buf, offset_bytes).map_err(|_| error(GEN_FAILURE))
    }
}

impl Handle {
    fn read_fault(&self, faults: &[Fault], start: u64, end: u64) -> Result<Option<u32>, LabError> {
        for (index, fault) in faults.iter().enumerate() {
            let Fault::UnreadableRange { vm, disk, offset_bytes, len_bytes, code, times } = fault else { continue };
            let touches = start < offset_bytes.saturating_add(*len_bytes) && *offset_bytes < end;
            if !touches || !self.host.transact(|tx| Ok(is_disk(tx, &self.chain, vm, *disk)))? {
                continue;
            }
            let Some(times) = times else { return Ok(Some(*code)) };
            let mut counts = self.host.fault_counts.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry((self.number, index)).or_default();
            if *count < *times {
                *count += 1;
                return Ok(Some(*code));
            }
        }
        Ok(None)
    }
}

//! `virtdisk.dll`: opening, reading, and asking what changed.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use hyperv::seam::{ChangedPage, ChangedRange, TrackingState, VirtDisk, VirtDiskError, VirtDiskHandle, VirtDiskInfo};
use vhdx::{OpenErrorKind, OpenedDisk, VirtualDisk as _};

use crate::disks;
use crate::error::LabError;
use crate::extents::Extents;
use crate::faults::{self, Fault};
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
            static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
            NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
        };
        Ok(Box::new(Handle { host: self.host.clone(), path: path.to_owned(), disk, chain, number, _held: held }))
    }
}

/// Whether a file may be opened: not while it is written by a running VM or by a merge. The error is the code to return.
pub(crate) fn check_openable(tx: &Tx<'_>, file: &WinPath) -> Result<(), u32> {
    let is_written = tx.vms.iter().any(|vm| {
        let is_awake = matches!(vm.power, Power::Running | Power::Paused);
        is_awake && vm.active.disks.iter().any(|disk| disk.file == *file)
    });
    let is_merged = tx.merges.iter().any(|merge| !merge.blocked && (merge.child == *file || merge.parent == *file));
    if is_written || is_merged { Err(SHARING_VIOLATION) } else { Ok(()) }
}

/// One page of changes, or `None` for a request that is not inside the disk or wants nothing.
pub(crate) fn changed_page(
    changes: &Extents,
    size_bytes: u64,
    offset_bytes: u64,
    len_bytes: u64,
    max_ranges: usize,
) -> Option<ChangedPage> {
    let end = offset_bytes.checked_add(len_bytes).filter(|&end| end <= size_bytes)?;
    if len_bytes == 0 || max_ranges == 0 {
        return None;
    }
    let mut found = changes.within(offset_bytes..end);
    let ranges: Vec<ChangedRange> = (&mut found)
        .take(max_ranges)
        .map(|range| ChangedRange { offset_bytes: range.start, len_bytes: range.end - range.start })
        .collect();
    // A full page covers the region up to where the next range begins.
    let processed_end = found.next().map_or(end, |next| next.start);
    Some(ChangedPage { ranges, processed_bytes: processed_end - offset_bytes })
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
    _held: Vec<File>,
}

impl Handle {
    fn error(&self, operation: &'static str, code: u32) -> VirtDiskError {
        VirtDiskError { operation, path: self.path.clone(), code }
    }

    /// The VM and index of this disk, as faults name it: the disk one of whose files this is.
    fn is_disk(&self, tx: &Tx<'_>, vm: &str, disk: usize) -> bool {
        let Ok(vm) = tx.find_vm(vm) else { return false };
        let Some(wanted) = vm.active.disks.get(disk) else { return false };
        let checkpoints = vm.checkpoints.iter().flat_map(|checkpoint| &checkpoint.config.disks);
        std::iter::once(wanted)
            .chain(checkpoints.filter(|other| other.place == wanted.place))
            .any(|other| self.chain.contains(&other.file))
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
        let changes = self.host.transact(|tx| {
            let planned = tx.faults()?.into_iter().find_map(|fault| match fault {
                Fault::ChangesFail { vm, disk, code } if self.is_disk(tx, &vm, disk) => Some(code),
                _ => None,
            });
            match planned {
                Some(code) => Ok(Err(code)),
                None => tracking::changes_since(tx.store, tx, &self.chain, id),
            }
        });
        let changes = changes.map_err(|e| error(lab_code(&e)))?.map_err(error)?;
        let size_bytes = self.disk.geometry().size_bytes;
        changed_page(&changes, size_bytes, offset_bytes, len_bytes, max_ranges).ok_or_else(|| error(INVALID_PARAMETER))
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
            if !touches || !self.host.transact(|tx| Ok(self.is_disk(tx, vm, *disk)))? {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::SplitMix;

    #[test]
    fn pages_cover_the_disk_with_sorted_disjoint_ranges() {
        let mut random = SplitMix::new(11);
        for round in 0..200 {
            let size = 1 + random.below(1000);
            let mut changes = Extents::default();
            for _ in 0..random.below(20) {
                let start = random.below(size);
                changes.insert(start..start + 1 + random.below(size - start));
            }
            let max_ranges = 1 + random.below(5) as usize;
            let (mut at, mut seen) = (0, Vec::new());
            while at < size {
                let page = changed_page(&changes, size, at, size - at, max_ranges).unwrap();
                assert!(page.processed_bytes > 0 && page.ranges.len() <= max_ranges, "round {round}");
                for range in &page.ranges {
                    let (start, end) = (range.offset_bytes, range.offset_bytes + range.len_bytes);
                    assert!(start >= at && end <= at + page.processed_bytes && start < end, "round {round}: {range:?}");
                    seen.push(start..end);
                }
                at += page.processed_bytes;
            }
            assert_eq!(seen, changes.iter().collect::<Vec<_>>(), "round {round}");
            assert_eq!(changed_page(&changes, size, 0, size + 1, 1), None);
            assert_eq!(changed_page(&changes, size, size, 0, 1), None);
        }
    }
}

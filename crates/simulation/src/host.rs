//! The host's side of the seam, as the agent of the simulation gets it: what the machine decides is taken out of it.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyperv::seam::{
    ChangedPage, Clock, FileFacts, HostFile, HostFiles, Seam, TrackingState, VirtDisk, VirtDiskError, VirtDiskHandle,
    VirtDiskInfo,
};
use hyperv_sim::{CallPhase, CountingSeam, LabHost};

use crate::border::Border;

/// Bytes read of virtual disks so far.
pub(crate) type BytesRead = Arc<AtomicU64>;

/// The seam of a host: without the machine's file numbers and times, its clock wrong by `offset_ms`, every call crossing
/// the border.
pub(crate) fn seam(lab: &Arc<LabHost>, border: &Arc<Border>, offset_ms: &Arc<AtomicI64>, read: &BytesRead) -> Seam {
    let plain = lab.seam();
    let seam = Seam {
        files: Arc::new(Files { inner: plain.files, seen: Mutex::default() }),
        virt_disk: Arc::new(Disks { inner: plain.virt_disk, read: read.clone() }),
        clock: Arc::new(WrongClock { inner: plain.clock, offset_ms: offset_ms.clone() }),
        wmi: plain.wmi,
    };
    let border = border.clone();
    // Calls of one seam nest only around acts of others, which come before the number is taken.
    let numbers = Mutex::new(Vec::new());
    CountingSeam::wrap(seam, move |call| {
        let numbers = || numbers.lock().unwrap_or_else(PoisonError::into_inner);
        match call.phase {
            CallPhase::Before => {
                let number = border.enter(call.what, call.what);
                numbers().push(number);
            }
            CallPhase::After => {
                let number = numbers().pop().unwrap_or(u64::MAX);
                border.leave(number, call.what);
            }
        }
    })
    .0
}

struct WrongClock {
    inner: Arc<dyn Clock>,
    offset_ms: Arc<AtomicI64>,
}

impl Clock for WrongClock {
    fn monotonic(&self) -> Duration {
        self.inner.monotonic()
    }

    fn now(&self) -> SystemTime {
        shifted(self.inner.now(), self.offset_ms.load(Ordering::Relaxed))
    }

    fn sleep(&self, duration: Duration) {
        self.inner.sleep(duration);
    }
}

pub(crate) fn shifted(time: SystemTime, offset_ms: i64) -> SystemTime {
    let by = Duration::from_millis(offset_ms.unsigned_abs());
    if offset_ms < 0 { time - by } else { time + by }
}

/// File numbers and times as dense numbers, in the order in which they are first seen.
struct Files {
    inner: Arc<dyn HostFiles>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    files: BTreeMap<(String, Option<SystemTime>), u64>,
    versions: BTreeMap<(u64, u64, SystemTime), u64>,
}

impl HostFiles for Files {
    fn open_read(&self, path: &str) -> io::Result<HostFile> {
        self.inner.open_read(path)
    }

    fn facts(&self, path: &str) -> io::Result<FileFacts> {
        let facts = self.inner.facts(path)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let next = seen.files.len() as u64;
        let file = *seen.files.entry((facts.file_id, facts.created)).or_insert(next);
        let next = seen.versions.len() as u64;
        let version = *seen.versions.entry((file, facts.len_bytes, facts.modified)).or_insert(next);
        let time = |number| UNIX_EPOCH + Duration::from_secs(number);
        Ok(FileFacts {
            len_bytes: facts.len_bytes,
            file_id: file.to_string(),
            created: Some(time(file)),
            modified: time(version),
        })
    }

    fn free_bytes(&self, path: &str) -> io::Result<u64> {
        self.inner.free_bytes(path)
    }
}

struct Disks {
    inner: Arc<dyn VirtDisk>,
    read: BytesRead,
}

impl VirtDisk for Disks {
    fn open_read_only(&self, path: &str) -> Result<Box<dyn VirtDiskHandle>, VirtDiskError> {
        Ok(Box::new(Disk { inner: self.inner.open_read_only(path)?, read: self.read.clone() }))
    }
}

struct Disk {
    inner: Box<dyn VirtDiskHandle>,
    read: BytesRead,
}

impl VirtDiskHandle for Disk {
    fn info(&self) -> Result<VirtDiskInfo, VirtDiskError> {
        self.inner.info()
    }

    fn tracking_state(&self) -> Result<TrackingState, VirtDiskError> {
        self.inner.tracking_state()
    }

    fn changed_ranges(
        &self,
        id: &str,
        offset_bytes: u64,
        len_bytes: u64,
        max_ranges: usize,
    ) -> Result<ChangedPage, VirtDiskError> {
        self.inner.changed_ranges(id, offset_bytes, len_bytes, max_ranges)
    }

    fn read(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), VirtDiskError> {
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.inner.read(buf, offset_bytes)
    }
}

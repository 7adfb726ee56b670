//! The guest's disk: an NBD export that goes to the live VHDX chain of a lab host.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use hyperv_sim::{AttachedDisk, LabError};
use nbd::{Device, DeviceError, DeviceErrorKind, Extent, ExtentKind, Zeroing};

const PIECE_BYTES: usize = 1 << 20;

/// A disk of an attached guest, which remembers where it was written.
pub struct LiveDisk {
    disk: AttachedDisk,
    written: Arc<Mutex<Written>>,
}

/// Where and how much a guest wrote.
#[derive(Debug, Default)]
pub struct Written {
    /// Aligned MiB that were touched.
    pub mib: BTreeSet<u64>,
    pub bytes: u64,
}

impl LiveDisk {
    pub fn new(disk: AttachedDisk, written: Arc<Mutex<Written>>) -> Self {
        Self { disk, written }
    }

    /// Before it happens, so that nothing that reached the disk is missing.
    fn note(&self, range: Range<u64>) {
        let mut written = self.written.lock().unwrap();
        written.bytes += range.end - range.start;
        written.mib.extend(range.start >> 20..range.end.div_ceil(1 << 20));
    }
}

impl Device for LiveDisk {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), DeviceError> {
        self.disk.read(buf, offset_bytes).map_err(failed)
    }

    fn write_at(&self, data: &[u8], offset_bytes: u64) -> Result<(), DeviceError> {
        self.note(offset_bytes..offset_bytes + data.len() as u64);
        self.disk.write(data.to_vec(), offset_bytes).map_err(failed)
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<(), DeviceError> {
        self.note(range.clone());
        match how {
            Zeroing::MayDeallocate => self.disk.zero(range).map_err(failed),
            // A VHDX gives whole blocks back when they are zeroed; only zeroes that are written keep them.
            Zeroing::KeepAllocated => range.clone().step_by(PIECE_BYTES).try_for_each(|at| {
                let len = (range.end - at).min(PIECE_BYTES as u64) as usize;
                self.disk.write(vec![0; len], at).map_err(failed)
            }),
        }
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.disk.flush().map_err(failed)
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>, DeviceError> {
        let extents = self.disk.extents(range, max).map_err(failed)?;
        let extent = |extent: &vhdx::Extent| Extent {
            len_bytes: extent.range.end - extent.range.start,
            kind: match extent.kind {
                vhdx::ExtentKind::Data => ExtentKind::Data,
                vhdx::ExtentKind::Zero => ExtentKind::Zero,
            },
        };
        Ok(extents.iter().map(extent).collect())
    }
}

fn failed(error: LabError) -> DeviceError {
    // Printed, because a guest would show it as an I/O error and nothing more.
    eprintln!("the guest's disk: {error}");
    DeviceError::new(DeviceErrorKind::Io, error.to_string())
}

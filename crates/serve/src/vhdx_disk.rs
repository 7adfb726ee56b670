//! A dynamic VHDX as the disk that a session moves to.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use block_device::{Device, DeviceError, DeviceErrorKind, Extent, ExtentKind, Zeroing};
use vhdx::{CreateOptions, FileExtentKind, OpenOptions, VirtualDisk, WritableVhdx};

/// A VHDX that is read and written as a device.
///
/// A write that was acknowledged survives a kill, as it does in a raw file: where a write changes the file's tables, they
/// are logged before it is acknowledged. With blocks of 32 MiB that is rare.
pub struct VhdxDisk {
    /// `None` once it was closed.
    disk: RwLock<Option<WritableVhdx>>,
    path: PathBuf,
    size_bytes: u64,
}

impl VhdxDisk {
    /// Makes an empty dynamic VHDX, complete and durable when this returns.
    pub fn create(path: &Path, size_bytes: u64, sector_bytes: u32) -> Result<Self, DeviceError> {
        let mut options = CreateOptions::dynamic(size_bytes);
        options.geometry.logical_sector_bytes = sector_bytes;
        vhdx::create(path, &options).map_err(|error| failed("create", path, &error))?;
        Self::open(path)
    }

    /// Opens one, alone; what a crash left in its log is replayed.
    pub fn open(path: &Path) -> Result<Self, DeviceError> {
        let disk = WritableVhdx::open(path, &OpenOptions::default()).map_err(|error| failed("open", path, &error))?;
        let size_bytes = disk.geometry().size_bytes;
        Ok(Self { disk: RwLock::new(Some(disk)), path: path.to_owned(), size_bytes })
    }

    /// Leaves the file clean, for others; afterwards nothing can be read or written here.
    pub fn close(&self) -> Result<(), DeviceError> {
        match self.write_lock().take() {
            Some(disk) => disk.close().map_err(|error| failed("close", &self.path, &error)),
            None => Ok(()),
        }
    }

    fn read_lock(&self) -> RwLockReadGuard<'_, Option<WritableVhdx>> {
        self.disk.read().expect("no panic while held")
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, Option<WritableVhdx>> {
        self.disk.write().expect("no panic while held")
    }

    fn closed(&self) -> DeviceError {
        DeviceError::new(DeviceErrorKind::Io, format!("use {}: it was closed", self.path.display()))
    }
}

impl Drop for VhdxDisk {
    fn drop(&mut self) {
        // Without it the file is whole as well, only its log is to be replayed.
        if let Err(error) = self.close() {
            tracing::warn!(%error, "a VHDX was not closed cleanly");
        }
    }
}

impl Device for VhdxDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), DeviceError> {
        let disk = self.read_lock();
        let disk = disk.as_ref().ok_or_else(|| self.closed())?;
        disk.read_exact_at(buf, offset_bytes).map_err(|error| failed("read", &self.path, &error))
    }

    fn write_at(&self, data: &[u8], offset_bytes: u64) -> Result<(), DeviceError> {
        let mut disk = self.write_lock();
        let disk = disk.as_mut().ok_or_else(|| self.closed())?;
        let range = offset_bytes..offset_bytes + data.len() as u64;
        let extents = disk.file_extents(range).map_err(|error| failed("map", &self.path, &error))?;
        let changes_tables = !extents.iter().all(|extent| matches!(extent.kind, FileExtentKind::Data { .. }));
        disk.write_all_at(data, offset_bytes).map_err(|error| failed("write to", &self.path, &error))?;
        if changes_tables {
            disk.flush().map_err(|error| failed("flush", &self.path, &error))?;
        }
        Ok(())
    }

    fn zero(&self, range: Range<u64>, _how: Zeroing) -> Result<(), DeviceError> {
        let mut disk = self.write_lock();
        let disk = disk.as_mut().ok_or_else(|| self.closed())?;
        disk.zero_range(range)
            .and_then(|()| disk.flush())
            .map_err(|error| failed("zero a range of", &self.path, &error))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        let mut disk = self.write_lock();
        let disk = disk.as_mut().ok_or_else(|| self.closed())?;
        disk.flush().map_err(|error| failed("flush", &self.path, &error))
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>, DeviceError> {
        let disk = self.read_lock();
        let disk = disk.as_ref().ok_or_else(|| self.closed())?;
        let known = disk.extents(range).take(max).map(|extent| {
            let extent = extent.map_err(|error| failed("map", &self.path, &error))?;
            let kind = match extent.kind {
                vhdx::ExtentKind::Data => ExtentKind::Data,
                _ => ExtentKind::Zero,
            };
            Ok(Extent { len_bytes: extent.range.end - extent.range.start, kind })
        });
        known.collect()
    }
}

fn failed(attempt: &str, path: &Path, error: &dyn std::error::Error) -> DeviceError {
    let mut text = format!("{attempt} {}: {error}", path.display());
    let mut kind = DeviceErrorKind::Io;
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        if cause.downcast_ref::<std::io::Error>().is_some_and(|cause| cause.kind() == std::io::ErrorKind::StorageFull) {
            kind = DeviceErrorKind::NoSpace;
        }
        source = cause.source();
    }
    DeviceError::new(kind, text)
}

#[cfg(test)]
mod tests {
    use random::SplitMix;

    use super::*;

    const SIZE: u64 = 70 << 20;

    /// What is in the page cache is what a kill leaves: a copy of the file at that instant, without a flush or a close.
    #[test]
    fn what_was_acknowledged_survives_a_kill() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("disk.vhdx");
        let disk = VhdxDisk::create(&path, SIZE, 512).unwrap();
        let mut expected = vec![0; SIZE as usize];
        let mut random = SplitMix::new(1);
        for nth in 1..=30 {
            let start = random.below(SIZE / 512 - 64) * 512;
            let range = start..start + 512 * (1 + random.below(64));
            let bytes = &mut expected[range.start as usize..range.end as usize];
            if random.below(4) == 0 {
                bytes.fill(0);
                disk.zero(range, Zeroing::MayDeallocate).unwrap();
            } else {
                bytes.fill(nth);
                disk.write_at(bytes, range.start).unwrap();
            }
            if nth % 3 != 0 {
                continue;
            }
            let copy = place.path().join("killed.vhdx");
            std::fs::copy(&path, &copy).unwrap();
            let killed = VhdxDisk::open(&copy).unwrap();
            let mut seen = vec![0; SIZE as usize];
            killed.read_at(&mut seen, 0).unwrap();
            assert!(seen == expected, "after change {nth}");
        }
        disk.close().unwrap();
        assert!(disk.read_at(&mut [0; 512], 0).is_err(), "closed");
    }
}

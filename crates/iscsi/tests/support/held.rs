//! A disk that can be made to wait.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use iscsi::{Device, DeviceError, Extent, MemoryDevice, Zeroing};

/// A disk in memory whose reads and writes can be held up.
pub struct Held {
    disk: MemoryDevice,
    held: Mutex<bool>,
    released: Condvar,
    /// Calls that are held up now.
    pub waiting: AtomicU64,
    pub flushes: AtomicU64,
}

impl Held {
    pub fn new(size_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            disk: MemoryDevice::new(size_bytes, 4096),
            held: Mutex::new(false),
            released: Condvar::new(),
            waiting: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
        })
    }

    pub fn hold(&self, held: bool) {
        *self.held.lock().unwrap() = held;
        self.released.notify_all();
    }

    /// Returns when so many calls are held up.
    pub fn wait_for(&self, calls: u64) {
        while self.waiting.load(Ordering::SeqCst) < calls {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let held = self.held.lock().unwrap();
        drop(self.released.wait_while(held, |held| *held).unwrap());
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Device for Held {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), DeviceError> {
        self.pass();
        self.disk.read_at(buf, offset_bytes)
    }

    fn write_at(&self, data: &[u8], offset_bytes: u64) -> Result<(), DeviceError> {
        self.pass();
        self.disk.write_at(data, offset_bytes)
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<(), DeviceError> {
        self.disk.zero(range, how)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>, DeviceError> {
        self.disk.extents(range, max)
    }
}

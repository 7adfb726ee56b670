//! A seam that numbers every call that passes it.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyperv::seam::{
    ChangedPage, CimValue, FileFacts, HostFile, HostFiles, HostWrites, Instance, MethodOutput, Namespace, ObjectPath,
    Seam, TrackingState, VirtDisk, VirtDiskError, VirtDiskHandle, VirtDiskInfo, Wmi, WmiError,
};
use vhdx::{ReadAt, WriteAt};

/// When a hook is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallPhase {
    /// The call has not reached the host yet.
    Before,
    /// The host has done it; the caller does not know yet.
    After,
}

/// One call, as a hook sees it.
#[derive(Clone, Copy, Debug)]
pub struct SeamCall<'a> {
    /// From 0, in the order in which the calls begin. Calls on opened disks and files count too, closing does not.
    pub number: u64,
    /// Before or after it.
    pub phase: CallPhase,
    /// What is called: `query`, `call CreateSnapshot`, `read`, …
    pub what: &'a str,
}

type Hook = dyn Fn(SeamCall<'_>) + Send + Sync;

/// Wraps a seam so that a hook sees every call from both sides; to kill the process at call N, the hook does so.
#[derive(Clone)]
pub struct CountingSeam {
    shared: Arc<Shared>,
}

struct Shared {
    calls: AtomicU64,
    hook: Box<Hook>,
}

impl CountingSeam {
    /// The wrapped seam, and the counter that goes with it. The clock is not counted.
    pub fn wrap(seam: Seam, hook: impl Fn(SeamCall<'_>) + Send + Sync + 'static) -> (Seam, CountingSeam) {
        let counting = CountingSeam { shared: Arc::new(Shared { calls: AtomicU64::new(0), hook: Box::new(hook) }) };
        let wrapped = Seam {
            wmi: Arc::new(Counted { inner: seam.wmi, counting: counting.clone() }),
            virt_disk: Arc::new(Counted { inner: seam.virt_disk, counting: counting.clone() }),
            files: Arc::new(Counted { inner: seam.files, counting: counting.clone() }),
            clock: seam.clock,
        };
        (wrapped, counting)
    }

    /// How many calls have begun.
    pub fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::SeqCst)
    }

    fn around<R>(&self, what: &str, call: impl FnOnce() -> R) -> R {
        let number = self.shared.calls.fetch_add(1, Ordering::SeqCst);
        (self.shared.hook)(SeamCall { number, phase: CallPhase::Before, what });
        let result = call();
        (self.shared.hook)(SeamCall { number, phase: CallPhase::After, what });
        result
    }
}

struct Counted<T> {
    inner: T,
    counting: CountingSeam,
}

impl Wmi for Counted<Arc<dyn Wmi>> {
    fn query(&self, namespace: Namespace, wql: &str) -> Result<Vec<Instance>, WmiError> {
        self.counting.around("query", || self.inner.query(namespace, wql))
    }

    fn get(&self, namespace: Namespace, path: &ObjectPath) -> Result<Instance, WmiError> {
        self.counting.around("get", || self.inner.get(namespace, path))
    }

    fn class_properties(&self, namespace: Namespace, class: &str) -> Result<Option<Vec<String>>, WmiError> {
        self.counting.around("class_properties", || self.inner.class_properties(namespace, class))
    }

    fn call(
        &self,
        namespace: Namespace,
        object: &ObjectPath,
        method: &str,
        parameters: &[(&str, CimValue)],
    ) -> Result<MethodOutput, WmiError> {
        self.counting.around(&format!("call {method}"), || self.inner.call(namespace, object, method, parameters))
    }
}

impl VirtDisk for Counted<Arc<dyn VirtDisk>> {
    fn open_read_only(&self, path: &str) -> Result<Box<dyn VirtDiskHandle>, VirtDiskError> {
        let inner = self.counting.around("open_read_only", || self.inner.open_read_only(path))?;
        Ok(Box::new(Counted { inner, counting: self.counting.clone() }))
    }
}

impl VirtDiskHandle for Counted<Box<dyn VirtDiskHandle>> {
    fn info(&self) -> Result<VirtDiskInfo, VirtDiskError> {
        self.counting.around("info", || self.inner.info())
    }

    fn tracking_state(&self) -> Result<TrackingState, VirtDiskError> {
        self.counting.around("tracking_state", || self.inner.tracking_state())
    }

    fn changed_ranges(
        &self,
        id: &str,
        offset_bytes: u64,
        len_bytes: u64,
        max_ranges: usize,
    ) -> Result<ChangedPage, VirtDiskError> {
        self.counting.around("changed_ranges", || self.inner.changed_ranges(id, offset_bytes, len_bytes, max_ranges))
    }

    fn read(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), VirtDiskError> {
        self.counting.around("read", || self.inner.read(buf, offset_bytes))
    }
}

impl HostFiles for Counted<Arc<dyn HostFiles>> {
    fn open_read(&self, path: &str) -> io::Result<HostFile> {
        let inner = self.counting.around("open_read", || self.inner.open_read(path))?;
        Ok(Box::new(Counted { inner, counting: self.counting.clone() }))
    }

    fn facts(&self, path: &str) -> io::Result<FileFacts> {
        self.counting.around("facts", || self.inner.facts(path))
    }

    fn free_bytes(&self, path: &str) -> io::Result<u64> {
        self.counting.around("free_bytes", || self.inner.free_bytes(path))
    }

    fn writes(&self) -> Option<&dyn HostWrites> {
        self.inner.writes().map(|_| self as &dyn HostWrites)
    }
}

impl Counted<Arc<dyn HostFiles>> {
    fn inner_writes(&self) -> io::Result<&dyn HostWrites> {
        self.inner.writes().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }
}

impl HostWrites for Counted<Arc<dyn HostFiles>> {
    fn local_path(&self, path: &str) -> io::Result<PathBuf> {
        // A translation of names: nothing reaches the host.
        self.inner_writes()?.local_path(path)
    }

    fn open_write(&self, path: &str) -> io::Result<Box<dyn WriteAt>> {
        let inner = self.counting.around("open_write", || self.inner_writes()?.open_write(path))?;
        Ok(Box::new(Counted { inner, counting: self.counting.clone() }))
    }

    fn create_folder(&self, path: &str) -> io::Result<()> {
        self.counting.around("create_folder", || self.inner_writes()?.create_folder(path))
    }

    fn create_file(&self, path: &str, content: &[u8]) -> io::Result<()> {
        self.counting.around("create_file", || self.inner_writes()?.create_file(path, content))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.counting.around("rename", || self.inner_writes()?.rename(from, to))
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        self.counting.around("remove_file", || self.inner_writes()?.remove_file(path))
    }

    fn remove_empty_folder(&self, path: &str) -> io::Result<bool> {
        self.counting.around("remove_empty_folder", || self.inner_writes()?.remove_empty_folder(path))
    }
}

impl ReadAt for Counted<Box<dyn WriteAt>> {
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.counting.around("read_exact_at", || self.inner.read_exact_at(buf, offset_bytes))
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.counting.around("len_bytes", || self.inner.len_bytes())
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        self.counting.around("next_data", || self.inner.next_data(range))
    }
}

impl WriteAt for Counted<Box<dyn WriteAt>> {
    fn write_all_at(&self, data: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.counting.around("write_all_at", || self.inner.write_all_at(data, offset_bytes))
    }

    fn flush(&self) -> io::Result<()> {
        self.counting.around("flush", || self.inner.flush())
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.counting.around("set_len", || self.inner.set_len(len_bytes))
    }

    fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.counting.around("write_zeroes", || self.inner.write_zeroes(range))
    }
}

impl ReadAt for Counted<HostFile> {
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.counting.around("read_exact_at", || self.inner.read_exact_at(buf, offset_bytes))
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.counting.around("len_bytes", || self.inner.len_bytes())
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        self.counting.around("next_data", || self.inner.next_data(range))
    }
}

//! A guest from outside: a process that really runs, on the live disks of a VM.
//!
//! Its reads and writes go to the leaf of each disk as it is at that instant, are recorded by change tracking, and
//! take turns with everything else that happens on the host, in this process or in another one. They are served in
//! *bursts*: a thread takes the host's lock, opens what is asked for, serves until nothing more comes or its time is
//! over, closes, and lets go. So a checkpoint or a merge finds every file closed and whole, and the guest goes on in the new leaf
//! without noticing more than a delay.

mod freeze;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vhdx::{Extent, VirtualDisk as _};

use crate::disks::GuestDisk;
use crate::error::LabError;
use crate::extents::Extents;
use crate::host::{LabHost, Tx};
use crate::paths::WinPath;
use crate::state::{Power, Vm};
use crate::tracking;

pub use freeze::GuestAgent;
pub(crate) use freeze::{Gate, checkpoint_is_over, gate};

/// How long a burst waits for more: longer than a guest needs for its next request, shorter than anybody notices.
const LINGER: Duration = Duration::from_millis(2);
/// How long others may have to wait for a burst.
const LONGEST_BURST: Duration = Duration::from_millis(25);
/// The host's lock is not fair: this is when others get it.
const PAUSE: Duration = Duration::from_millis(1);

/// A guest that is attached to a VM, until this is dropped.
pub struct GuestAttachment {
    disks: Vec<AttachedDisk>,
    requests: Sender<Request>,
    worker: Option<JoinHandle<()>>,
    service: Option<freeze::Service>,
    _mark: freeze::Mark,
}

/// One disk of an attached guest. Clones are the same disk; calls may come from many threads.
#[derive(Clone)]
pub struct AttachedDisk {
    index: usize,
    size_bytes: u64,
    requests: Sender<Request>,
    /// Why some of what was written is lost, if it is.
    broken: Arc<Mutex<Option<String>>>,
}

/// What the worker is asked: to do something in a burst, or to end.
type Request = Option<Box<dyn FnOnce(&mut Burst<'_, '_>) + Send>>;

impl LabHost {
    /// Attaches a guest to a running VM. With an `agent`, checkpoints of level 1 freeze it first; that takes a host
    /// whose clock is the machine's and whose methods start jobs, because a guest takes its time.
    ///
    /// One guest per VM. Whoever held an attachment and was killed has detached thereby.
    pub fn attach_guest(
        self: &Arc<Self>,
        vm: &str,
        agent: Option<Box<dyn GuestAgent>>,
    ) -> Result<GuestAttachment, LabError> {
        let (id, sizes, mark) = self.transact(|tx| {
            let vm = running(tx, vm)?.clone();
            let mark = freeze::Mark::set(tx, &vm.id, agent.is_some())?;
            let size = |index: usize| {
                let disk = crate::disks::open(tx.store, &vm.disk(index)?.file)?;
                Ok(disk.geometry().size_bytes)
            };
            let sizes = (0..vm.active.disks.len()).map(size).collect::<Result<Vec<u64>, LabError>>()?;
            Ok((vm.id, sizes, mark))
        })?;
        let (requests, received) = mpsc::channel();
        let broken = Arc::new(Mutex::new(None));
        let worker = {
            let (host, id, broken) = (self.clone(), id.clone(), broken.clone());
            std::thread::spawn(move || serve(&host, &id, &received, &broken))
        };
        let disk = |(index, size_bytes)| AttachedDisk {
            index,
            size_bytes,
            requests: requests.clone(),
            broken: broken.clone(),
        };
        Ok(GuestAttachment {
            disks: sizes.into_iter().enumerate().map(disk).collect(),
            requests,
            worker: Some(worker),
            service: agent.map(|agent| freeze::Service::start(self.clone(), id, agent)),
            _mark: mark,
        })
    }
}

impl GuestAttachment {
    /// The VM's disks, in slot order.
    pub fn disks(&self) -> &[AttachedDisk] {
        &self.disks
    }
}

impl Drop for GuestAttachment {
    fn drop(&mut self) {
        // The agent first: thawing may need the disks.
        drop(self.service.take());
        let _ = self.requests.send(None);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

impl AttachedDisk {
    /// What the guest sees.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Fills `buf`. Any alignment.
    pub fn read(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), LabError> {
        let (index, len) = (self.index, buf.len());
        self.check_range(offset_bytes, len as u64)?;
        let data = self.ask(move |burst| {
            let mut data = vec![0; len];
            burst.disk(index)?.file.vhdx()?.read_exact_at(&mut data, offset_bytes)?;
            Ok(data)
        })?;
        buf.copy_from_slice(&data);
        Ok(())
    }

    /// Writes; durable after [`flush`](Self::flush).
    pub fn write(&self, data: Vec<u8>, offset_bytes: u64) -> Result<(), LabError> {
        let index = self.index;
        let range = self.check_range(offset_bytes, data.len() as u64)?;
        self.change(move |burst| burst.change(index, range, |disk| disk.write(&data, offset_bytes)))
    }

    /// Makes a range read as zeroes.
    pub fn zero(&self, range: Range<u64>) -> Result<(), LabError> {
        let index = self.index;
        self.check_range(range.start, range.end.saturating_sub(range.start))?;
        self.change(move |burst| burst.change(index, range.clone(), |disk| disk.zero(range)))
    }

    /// Returns when everything written before is durable.
    pub fn flush(&self) -> Result<(), LabError> {
        let index = self.index;
        // Of the bursts before this one, closing the files has made everything durable.
        self.change(move |burst| match &mut burst.open[index] {
            Some(open) => open.file.vhdx()?.flush().map_err(LabError::disk("flush", open.path.as_str())),
            None => Ok(()),
        })
    }

    /// At most `max` extents of `range`, from its start.
    pub fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>, LabError> {
        let index = self.index;
        self.check_range(range.start, range.end.saturating_sub(range.start))?;
        self.ask(move |burst| {
            let extents: Result<Vec<_>, _> = burst.disk(index)?.file.vhdx()?.extents(range).take(max).collect();
            Ok(extents?)
        })
    }

    fn check_range(&self, offset_bytes: u64, len_bytes: u64) -> Result<Range<u64>, LabError> {
        match offset_bytes.checked_add(len_bytes).filter(|&end| end <= self.size_bytes) {
            Some(end) => Ok(offset_bytes..end),
            None => {
                let reason = format!("{len_bytes} bytes at {offset_bytes} of a disk of {}", self.size_bytes);
                Err(LabError::refused("use a disk as the guest", reason))
            }
        }
    }

    /// As [`ask`](Self::ask), for what must not pass for done once something was lost.
    fn change(
        &self,
        act: impl FnOnce(&mut Burst<'_, '_>) -> Result<(), LabError> + Send + 'static,
    ) -> Result<(), LabError> {
        if let Some(why) = &*self.broken.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(LabError::refused("write as the guest", format!("what was written before is lost: {why}")));
        }
        self.ask(act)
    }

    /// Has the worker do something, and waits for it.
    fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Burst<'_, '_>) -> Result<T, LabError> + Send + 'static,
    ) -> Result<T, LabError> {
        let (answer, answered): (SyncSender<_>, _) = mpsc::sync_channel(1);
        let request = move |burst: &mut Burst<'_, '_>| {
            let result = act(burst);
            // Waited for below.
            let _ = answer.send(result);
        };
        let gone = || LabError::refused("use a disk as the guest", "the guest is detached, or its host has failed");
        self.requests.send(Some(Box::new(request))).map_err(|_| gone())?;
        answered.recv().unwrap_or_else(|_| Err(gone()))
    }
}

/// One turn at the host: its lock is held, and files that were used are open.
struct Burst<'a, 'tx> {
    tx: &'a Tx<'tx>,
    vm: Vm,
    open: Vec<Option<OpenDisk>>,
}

struct OpenDisk {
    file: GuestDisk,
    path: WinPath,
    /// What the tracking record is known to cover.
    noted: Extents,
    changed: bool,
}

impl<'a, 'tx> Burst<'a, 'tx> {
    fn begin(tx: &'a Tx<'tx>, vm: &str) -> Result<Self, LabError> {
        let vm = running(tx, vm)?.clone();
        let open = vm.active.disks.iter().map(|_| None).collect();
        Ok(Self { tx, vm, open })
    }

    fn disk(&mut self, index: usize) -> Result<&mut OpenDisk, LabError> {
        let path = self.vm.disk(index)?.file.clone();
        let slot = &mut self.open[index];
        Ok(match slot {
            Some(open) => open,
            None => {
                let file = GuestDisk::open(self.tx.store, &path)?;
                slot.insert(OpenDisk { file, path, noted: Extents::default(), changed: false })
            }
        })
    }

    /// Changes a range of a disk. Tracking covers it before it happens.
    fn change(
        &mut self,
        index: usize,
        range: Range<u64>,
        act: impl FnOnce(&mut GuestDisk) -> Result<(), LabError>,
    ) -> Result<(), LabError> {
        let tx = self.tx;
        let open = self.disk(index)?;
        if tx.is_tracked(&open.path) {
            let mut written = Extents::default();
            written.insert(range);
            let size_bytes = open.file.geometry().size_bytes;
            let written = written.rounded(tx.options.granularity_bytes, size_bytes);
            let is_covered = written.iter().all(|range| open.noted.within(range.clone()).eq([range]));
            if !is_covered {
                tracking::note_written(tx.store, &open.path, &written)?;
                open.noted.extend(&written);
            }
        }
        tx.store.before_write()?;
        open.changed = true;
        act(&mut open.file)
    }

    fn end(self) -> Result<(), LabError> {
        let changed = self.open.into_iter().flatten().filter(|open| open.changed);
        changed.map(|open| open.file.close()).fold(Ok(()), Result::and)
    }
}

/// The worker: one burst after the other.
fn serve(host: &LabHost, vm: &str, requests: &Receiver<Request>, broken: &Mutex<Option<String>>) {
    let ended = AtomicBool::new(false);
    while !ended.load(Ordering::SeqCst) {
        let Ok(Some(first)) = requests.recv() else { return };
        let result = host.transact(|tx| {
            let mut burst = Burst::begin(tx, vm)?;
            let begun = Instant::now();
            let mut next = Some(first);
            while let Some(request) = next {
                request(&mut burst);
                let left = LONGEST_BURST.saturating_sub(begun.elapsed());
                next = match requests.recv_timeout(LINGER.min(left)) {
                    Ok(Some(request)) => Some(request),
                    Err(RecvTimeoutError::Timeout) => None,
                    Ok(None) | Err(RecvTimeoutError::Disconnected) => {
                        ended.store(true, Ordering::SeqCst);
                        None
                    }
                };
            }
            Ok(burst.end())
        });
        // The requests of a burst that could not begin fail by being dropped. A burst that could not end was answered
        // already: from now on nothing may pass for durable.
        if let Ok(Err(error)) = result {
            broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error.to_string());
        }
        std::thread::sleep(PAUSE);
    }
}

fn running<'a>(tx: &'a Tx<'_>, vm: &str) -> Result<&'a Vm, LabError> {
    let vm = tx.find_vm(vm)?;
    match vm.power {
        Power::Running => Ok(vm),
        other => Err(LabError::refused("attach a guest", format!("the VM is {other:?}"))),
    }
}

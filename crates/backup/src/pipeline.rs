//! From the source disk to contents: reading ahead, hashing and storing on all cores, results in order.
//!
//! ```text
//! jobs ──> readers (several requests in flight) ──> workers (one per core) ──> collector, in job order
//!             ^                                        │
//!             '──────────── buffers, reused ───────────'
//! ```
//!
//! A client of the repository that does everything itself (`ClientOptions::inline`) has one thread, which takes each job
//! through all three.
//!
//! The number of buffers bounds the memory; the window bounds how far fast jobs may run ahead of a slow one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use hyperv::seam::Clock;
use kopia_repo::{CompressionId, ContentId, WriteError, WriteSession};
use vhdx::VirtualDisk;
use vhdx::convert::is_zero;

use crate::layout::Layout;
use crate::resources::{Buffer, Buffers, cores};
use crate::source_guard::SourceGuard;
use crate::{BackupError, Cancel};

/// Bytes that one job reads at most, unless a segment is longer: large enough for a disk, small enough that a few
/// jobs keep all cores busy.
const MAX_JOB_BYTES: u32 = 2 << 20;
/// Requests in flight to the source (spec hyperv 5.3: 4 to 8).
pub(crate) const READERS: usize = 4;
/// Jobs that may be finished or in work beyond the oldest unfinished one.
const WINDOW: u64 = 512;
/// Waits before tries 2 to 5 of an unreadable range: 15 s in all, within the 60 s of law 3.
const RETRY_WAITS: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];

/// Some consecutive segments of one payload block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) block: u32,
    pub(crate) first_part: u32,
    pub(crate) parts: u32,
}

/// What became of a job: per segment the content that holds it, or `None` when all its bytes are zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) job: Job,
    pub(crate) segments: Vec<Option<ContentId>>,
}

/// Whether the worker stores what it reads or only names it.
#[derive(Clone, Copy)]
pub(crate) enum Store<'a> {
    /// Write contents that the repository does not have.
    Contents(&'a WriteSession, Option<CompressionId>),
    /// Compute names only: for comparing with what is stored.
    Nothing(&'a kopia_repo::Repository),
}

impl Store<'_> {
    fn is_inline(&self) -> bool {
        match self {
            Self::Contents(session, _) => session.repository().is_inline(),
            Self::Nothing(repo) => repo.is_inline(),
        }
    }
}

/// Counters of the source side.
#[derive(Debug, Default)]
pub(crate) struct SourceCounters {
    pub(crate) read_bytes: AtomicU64,
    pub(crate) zero_bytes: AtomicU64,
    pub(crate) segments: AtomicU64,
}

pub(crate) struct Pipeline<'a> {
    pub(crate) disk: &'a dyn VirtualDisk,
    /// For messages: which disk of which VM.
    pub(crate) label: &'a str,
    pub(crate) layout: &'a Layout,
    pub(crate) store: Store<'a>,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) cancel: &'a Cancel,
    pub(crate) counters: &'a SourceCounters,
    pub(crate) guard: &'a SourceGuard<'a>,
    pub(crate) buffers: &'a Buffers,
}

/// Cuts runs of segments into jobs; `ranges` are ascending virtual segment numbers without overlap.
pub(crate) fn jobs_of<'l, E: Send + 'l>(
    layout: &'l Layout,
    ranges: impl Iterator<Item = Result<std::ops::Range<u64>, E>> + Send + 'l,
) -> impl Iterator<Item = Result<Job, E>> + Send + 'l {
    let per_block = u64::from(layout.segments_per_block());
    let per_job = u64::from((MAX_JOB_BYTES / layout.segment_bytes()).max(1));
    ranges.flat_map(move |range| {
        let (mut next, end, mut error) = match range {
            Ok(range) => (range.start, range.end, None),
            Err(error) => (0, 0, Some(Err(error))),
        };
        std::iter::from_fn(move || {
            if next >= end {
                return error.take();
            }
            let (block, first_part) = (next / per_block, next % per_block);
            // Jobs start at multiples of their size within the block, so equal data makes equal jobs.
            let parts = (per_job - first_part % per_job).min(per_block - first_part).min(end - next);
            next += parts;
            Some(Ok(Job { block: block as u32, first_part: first_part as u32, parts: parts as u32 }))
        })
    })
}

impl Pipeline<'_> {
    /// Runs all jobs and hands their results to `collect` in order of the jobs. The first error, of whatever thread,
    /// stops everything and is returned.
    pub(crate) fn run(
        &self,
        jobs: impl Iterator<Item = Result<Job, BackupError>> + Send,
        mut collect: impl FnMut(Done) -> Result<(), BackupError>,
    ) -> Result<(), BackupError> {
        if self.store.is_inline() {
            return self.run_inline(jobs, collect);
        }
        let workers = cores();
        let in_hand = READERS + 2 * workers;
        let jobs = Mutex::new((jobs, 0_u64));
        let window = Window::default();
        let failed = Failure::default();
        // The buffers are everybody's; these say how many of them this disk may have at a time.
        let (spare_in, spare) = crossbeam_channel::bounded::<()>(in_hand);
        for _ in 0..in_hand {
            spare_in.send(()).expect("the channel has room for all");
        }
        let (filled_in, filled) = crossbeam_channel::bounded::<(u64, Job, Buffer<'_>)>(in_hand);
        let (done_in, done) = crossbeam_channel::unbounded::<(u64, Done)>();

        std::thread::scope(|scope| {
            for _ in 0..READERS {
                let (spare, filled_in) = (spare.clone(), filled_in.clone());
                let (jobs, window, failed) = (&jobs, &window, &failed);
                scope.spawn(move || {
                    let stopped = || failed.is_set() || self.cancel.is_cancelled();
                    while let Ok(()) = spare.recv() {
                        let Some(mut buffer) = self.buffers.take(stopped) else { break };
                        let next = {
                            let mut jobs = jobs.lock().expect("no panic while held");
                            let number = jobs.1;
                            let job = if stopped() { None } else { jobs.0.next() };
                            jobs.1 += 1;
                            job.map(|job| (number, job))
                        };
                        let Some((number, job)) = next else { break };
                        window.wait_for(number, failed, self.cancel);
                        match job.and_then(|job| self.read(job, &mut buffer.bytes).map(|()| job)) {
                            Ok(job) if filled_in.send((number, job, buffer)).is_ok() => {}
                            Ok(_) => break,
                            Err(error) => {
                                failed.set(error);
                                break;
                            }
                        }
                    }
                    window.wake();
                });
            }
            drop((spare, filled_in));
            for _ in 0..workers {
                let (filled, spare_in, done_in) = (filled.clone(), spare_in.clone(), done_in.clone());
                let failed = &failed;
                scope.spawn(move || {
                    for (number, job, buffer) in filled {
                        if failed.is_set() {
                            break;
                        }
                        match self.work(job, &buffer.bytes) {
                            Ok(result) => drop(done_in.send((number, result))),
                            Err(error) => failed.set(error),
                        }
                        drop(buffer);
                        // Readers may be gone.
                        let _ = spare_in.send(());
                    }
                });
            }
            drop((filled, spare_in, done_in));

            let mut early = BTreeMap::new();
            let mut next = 0;
            for (number, result) in done {
                early.insert(number, result);
                while let Some(result) = early.remove(&next) {
                    next += 1;
                    if !failed.is_set()
                        && let Err(error) = collect(result)
                    {
                        failed.set(error);
                    }
                    window.advance(next);
                }
            }
        });
        if self.cancel.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        failed.into_result()
    }

    fn run_inline(
        &self,
        jobs: impl Iterator<Item = Result<Job, BackupError>>,
        mut collect: impl FnMut(Done) -> Result<(), BackupError>,
    ) -> Result<(), BackupError> {
        let Some(mut buffer) = self.buffers.take(|| self.cancel.is_cancelled()) else {
            return Err(BackupError::Cancelled);
        };
        for job in jobs {
            if self.cancel.is_cancelled() {
                return Err(BackupError::Cancelled);
            }
            let job = job?;
            self.read(job, &mut buffer.bytes)?;
            collect(self.work(job, &buffer.bytes)?)?;
        }
        if self.cancel.is_cancelled() { Err(BackupError::Cancelled) } else { Ok(()) }
    }

    fn read(&self, job: Job, buffer: &mut Vec<u8>) -> Result<(), BackupError> {
        let segment = self.layout.segment_bytes() as usize;
        let len = job.parts as usize * segment;
        let offset = self.layout.virtual_offset(job.block, job.first_part);
        let size = self.layout.geometry().size_bytes();
        // The last block may reach past the end of the disk: the stream holds zeroes there.
        let inside = (size.saturating_sub(offset)).min(len as u64) as usize;
        buffer.resize(len, 0);
        buffer[inside..].fill(0);
        if inside == 0 {
            // Even an empty read behind the end of a disk is an error.
            return Ok(());
        }
        let mut waits = RETRY_WAITS.iter();
        loop {
            let read = || self.disk.read_exact_at(&mut buffer[..inside], offset);
            let Err(error) = self.guard.request(inside as u64, read) else {
                self.counters.read_bytes.fetch_add(inside as u64, Ordering::Relaxed);
                return Ok(());
            };
            match waits.next() {
                Some(wait) if !self.cancel.is_cancelled() => {
                    tracing::warn!(disk = self.label, offset_bytes = offset, %error, "source read failed, trying again");
                    self.clock.sleep(*wait);
                }
                _ => {
                    return Err(BackupError::SourceRead {
                        disk: self.label.to_owned(),
                        offset_bytes: offset,
                        len_bytes: inside as u64,
                        source: error,
                    });
                }
            }
        }
    }

    fn work(&self, job: Job, buffer: &[u8]) -> Result<Done, BackupError> {
        let mut segments = Vec::with_capacity(job.parts as usize);
        for segment in buffer.chunks_exact(self.layout.segment_bytes() as usize) {
            if is_zero(segment) {
                self.counters.zero_bytes.fetch_add(segment.len() as u64, Ordering::Relaxed);
                segments.push(None);
                continue;
            }
            let id = match self.store {
                Store::Contents(session, compression) => session.write_content(segment, None, compression)?.id,
                Store::Nothing(repo) => repo.content_id(segment, None),
            };
            segments.push(Some(id));
        }
        self.counters.segments.fetch_add(u64::from(job.parts), Ordering::Relaxed);
        Ok(Done { job, segments })
    }
}

#[derive(Default)]
struct Window {
    collected: Mutex<u64>,
    moved: Condvar,
}

impl Window {
    fn wait_for(&self, number: u64, failed: &Failure, cancel: &Cancel) {
        let mut collected = self.collected.lock().expect("no panic while held");
        while number >= *collected + WINDOW && !failed.is_set() && !cancel.is_cancelled() {
            // A time-out, because a failure elsewhere does not come through here.
            collected = self.moved.wait_timeout(collected, Duration::from_millis(100)).expect("no panic while held").0;
        }
    }

    fn advance(&self, collected: u64) {
        *self.collected.lock().expect("no panic while held") = collected;
        self.moved.notify_all();
    }

    fn wake(&self) {
        self.moved.notify_all();
    }
}

/// The first error of any thread.
#[derive(Default)]
struct Failure {
    set: AtomicBool,
    error: Mutex<Option<BackupError>>,
}

impl Failure {
    fn is_set(&self) -> bool {
        self.set.load(Ordering::Relaxed)
    }

    fn set(&self, error: BackupError) {
        self.error.lock().expect("no panic while held").get_or_insert(error);
        self.set.store(true, Ordering::Relaxed);
    }

    fn into_result(self) -> Result<(), BackupError> {
        match self.error.into_inner().expect("no panic while held") {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

impl From<WriteError> for BackupError {
    fn from(source: WriteError) -> Self {
        Self::Write { source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_stay_inside_blocks_and_cover_the_ranges() {
        let disk = vhdx::DiskGeometry { size_bytes: 1 << 30, logical_sector_bytes: 512, physical_sector_bytes: 4096 };
        for segment in [256 << 10, 1 << 20, 4 << 20] {
            let layout = Layout::new(disk, segment).unwrap();
            let per_block = u64::from(layout.segments_per_block());
            for range in [0..1, 0..9, 3..4, 5..30, 7..7] {
                let jobs: Vec<Job> =
                    jobs_of(&layout, std::iter::once(Ok::<_, ()>(range.clone()))).map(Result::unwrap).collect();
                let mut covered = Vec::new();
                for job in &jobs {
                    assert!(u64::from(job.first_part + job.parts) <= per_block, "{job:?} stays in its block");
                    assert!(job.parts * segment <= MAX_JOB_BYTES.max(segment), "{job:?} is not too long");
                    let first = u64::from(job.block) * per_block + u64::from(job.first_part);
                    covered.extend(first..first + u64::from(job.parts));
                }
                assert_eq!(covered, range.clone().collect::<Vec<_>>(), "segments of {segment}, {range:?}");
            }
        }
    }
}

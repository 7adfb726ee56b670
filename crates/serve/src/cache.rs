//! Reading a base through memory.
//!
//! One flight per segment: who wants a segment that is being fetched waits for that fetch. Two lanes: what a guest waits
//! for never queues behind what it may want later (spec block-serving C.2).

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::base::{Base, BaseError, Nearby, Origin};
use crate::metrics::{Metrics, Source};

/// Who wants a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// A guest that waits.
    Foreground,
    /// Prefetch and hydration: wait while a guest's fetch is outstanding.
    Background,
}

/// Segments of all disks in memory, the least recently used of which give way.
pub struct MemoryCache {
    limit_bytes: u64,
    next_disk: AtomicU64,
    state: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    bytes: u64,
    tick: u64,
    segments: HashMap<Key, KeptSegment>,
    by_use: BTreeMap<u64, Key>,
}

/// A disk and a segment of it.
type Key = (u64, u64);

struct KeptSegment {
    bytes: Arc<Vec<u8>>,
    used: u64,
}

impl MemoryCache {
    /// Keeps at most `limit_bytes`.
    pub fn new(limit_bytes: u64) -> Arc<Self> {
        Arc::new(Self { limit_bytes, next_disk: AtomicU64::new(0), state: Mutex::default() })
    }

    fn get(&self, key: Key) -> Option<Arc<Vec<u8>>> {
        let mut kept = self.state.lock().expect("no panic while held");
        kept.tick += 1;
        let tick = kept.tick;
        let segment = kept.segments.get_mut(&key)?;
        let (bytes, before) = (segment.bytes.clone(), std::mem::replace(&mut segment.used, tick));
        kept.by_use.remove(&before);
        kept.by_use.insert(tick, key);
        Some(bytes)
    }

    fn put(&self, key: Key, bytes: Arc<Vec<u8>>) {
        let mut kept = self.state.lock().expect("no panic while held");
        kept.tick += 1;
        let tick = kept.tick;
        kept.bytes += bytes.len() as u64;
        if let Some(before) = kept.segments.insert(key, KeptSegment { bytes, used: tick }) {
            kept.bytes -= before.bytes.len() as u64;
            kept.by_use.remove(&before.used);
        }
        kept.by_use.insert(tick, key);
        while kept.bytes > self.limit_bytes {
            let Some((_, oldest)) = kept.by_use.pop_first() else { break };
            if let Some(segment) = kept.segments.remove(&oldest) {
                kept.bytes -= segment.bytes.len() as u64;
            }
        }
    }
}

/// A base with its part of the memory cache.
pub struct CachedBase {
    base: Arc<dyn Base>,
    memory: Arc<MemoryCache>,
    disk: u64,
    flights: Mutex<HashMap<u64, Arc<Flight>>>,
    /// Fetches that guests wait for.
    foreground: Mutex<usize>,
    foreground_done: Condvar,
    /// Why the base cannot be reached, since the last fetch that failed so.
    trouble: Mutex<Option<String>>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Flight {
    landed: Mutex<Option<Result<Arc<Vec<u8>>, BaseError>>>,
    signal: Condvar,
}

impl CachedBase {
    /// Reads `base` through `memory`.
    pub fn new(base: Arc<dyn Base>, memory: Arc<MemoryCache>, metrics: Arc<Metrics>) -> Self {
        let disk = memory.next_disk.fetch_add(1, Ordering::Relaxed);
        Self {
            base,
            memory,
            disk,
            flights: Mutex::default(),
            foreground: Mutex::new(0),
            foreground_done: Condvar::new(),
            trouble: Mutex::new(None),
            metrics,
        }
    }

    /// The base itself.
    pub fn base(&self) -> &Arc<dyn Base> {
        &self.base
    }

    /// Why the base could not be reached, if the last attempt to reach it failed.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().expect("no panic while held").clone()
    }

    /// Fills `buf` from a range inside the disk.
    pub fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64, lane: Lane) -> Result<(), BaseError> {
        let segment_bytes = u64::from(self.base.segment_bytes());
        let (mut at, mut rest) = (offset_bytes, buf);
        while !rest.is_empty() {
            let (segment, within) = (at / segment_bytes, (at % segment_bytes) as usize);
            let take = (segment_bytes as usize - within).min(rest.len());
            let (here, behind) = rest.split_at_mut(take);
            self.read_within(segment, within, here, lane)?;
            (at, rest) = (at + take as u64, behind);
        }
        Ok(())
    }

    /// From memory, else from what is on this machine; else the segment is fetched, and stays in memory. What the disk
    /// cache has is not brought into memory: opening it again costs less than what it would push out.
    fn read_within(&self, segment: u64, within: usize, buf: &mut [u8], lane: Lane) -> Result<(), BaseError> {
        let len_bytes = buf.len() as u64;
        if let Some(bytes) = self.memory.get((self.disk, segment)) {
            self.metrics.read_from(Source::Memory, len_bytes);
            return copy_from(&bytes, segment, within, buf);
        }
        {
            let _busy = (lane == Lane::Foreground).then(|| Busy::new(self));
            let found = self.base.read_nearby(segment, within as u64, buf);
            match found.inspect_err(|error| self.note(Some(error)))? {
                Nearby::Known => {
                    self.metrics.read_from(Source::Zero, len_bytes);
                    return Ok(());
                }
                Nearby::DiskCache => {
                    self.metrics.read_from(Source::DiskCache, len_bytes);
                    return Ok(());
                }
                Nearby::No => {}
            }
        }
        match self.segment(segment, lane)? {
            None => buf.fill(0),
            Some(bytes) => copy_from(&bytes, segment, within, buf)?,
        }
        Ok(())
    }

    /// A segment's bytes; `None` is zeroes.
    pub fn segment(&self, segment: u64, lane: Lane) -> Result<Option<Arc<Vec<u8>>>, BaseError> {
        let len_bytes = self.base.len_of(segment);
        if let Some(bytes) = self.memory.get((self.disk, segment)) {
            self.metrics.read_from(Source::Memory, len_bytes);
            return Ok(Some(bytes));
        }
        // Looking up whether it is zero may need the repository as well, so it counts as a fetch.
        let _busy = (lane == Lane::Foreground).then(|| Busy::new(self));
        if self.base.is_zero(segment).inspect_err(|error| self.note(Some(error)))? {
            self.metrics.read_from(Source::Zero, len_bytes);
            return Ok(None);
        }
        if lane == Lane::Background {
            // Before the flight is seen: a guest that joins it must not wait for itself.
            self.wait_for_foreground();
        }
        let (flight, is_mine) = {
            let mut flights = self.flights.lock().expect("no panic while held");
            match flights.get(&segment) {
                Some(flight) => (flight.clone(), false),
                None => {
                    let flight = Arc::<Flight>::default();
                    flights.insert(segment, flight.clone());
                    (flight, true)
                }
            }
        };
        if !is_mine {
            let landed = flight.landed.lock().expect("no panic while held");
            let landed = flight.signal.wait_while(landed, |landed| landed.is_none()).expect("no panic while held");
            return landed.clone().expect("the wait ends with a result").map(Some);
        }
        let mut bytes = Vec::new();
        let fetched = self.base.read_segment(segment, &mut bytes);
        let landed = match fetched {
            Ok(origin) => {
                self.note(None);
                self.metrics.read_from(origin.into(), len_bytes);
                Ok(Arc::new(bytes))
            }
            Err(error) => {
                self.note(Some(&error));
                Err(error)
            }
        };
        if let Ok(bytes) = &landed {
            self.memory.put((self.disk, segment), bytes.clone());
        }
        self.flights.lock().expect("no panic while held").remove(&segment);
        *flight.landed.lock().expect("no panic while held") = Some(landed.clone());
        flight.signal.notify_all();
        landed.map(Some)
    }

    /// Whether a segment is in memory, on this machine's disk, or known to be zero.
    pub fn is_near(&self, segment: u64) -> bool {
        self.memory.get((self.disk, segment)).is_some() || self.base.is_nearby(segment)
    }

    /// Waits until no guest's fetch is outstanding, for a while: a guest that never pauses must not stop hydration for
    /// ever.
    pub fn wait_for_foreground(&self) {
        let busy = self.foreground.lock().expect("no panic while held");
        let longest = Duration::from_millis(200);
        drop(self.foreground_done.wait_timeout_while(busy, longest, |busy| *busy > 0).expect("no panic while held"));
    }

    /// Changes of reachability are told once, not per read.
    fn note(&self, error: Option<&BaseError>) {
        let mut trouble = self.trouble.lock().expect("no panic while held");
        match error {
            Some(error) if error.is_unreachable => {
                if trouble.is_none() {
                    tracing::warn!(%error, "the repository cannot be reached; what is here goes on being served");
                }
                *trouble = Some(error.message.clone());
            }
            Some(_) => {}
            None => {
                if trouble.take().is_some() {
                    tracing::info!("the repository can be reached again");
                }
            }
        }
    }
}

fn copy_from(bytes: &[u8], segment: u64, within: usize, buf: &mut [u8]) -> Result<(), BaseError> {
    let part = bytes.get(within..).and_then(|rest| rest.get(..buf.len())).ok_or_else(|| BaseError {
        is_unreachable: false,
        message: format!("segment {segment} of the base has only {} bytes", bytes.len()),
    })?;
    buf.copy_from_slice(part);
    Ok(())
}

struct Busy<'c>(&'c CachedBase);

impl<'c> Busy<'c> {
    fn new(cached: &'c CachedBase) -> Self {
        *cached.foreground.lock().expect("no panic while held") += 1;
        Self(cached)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        *self.0.foreground.lock().expect("no panic while held") -= 1;
        self.0.foreground_done.notify_all();
    }
}

impl From<Origin> for Source {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::DiskCache => Self::DiskCache,
            Origin::Repository => Self::Repository,
        }
    }
}

//! Fetching what a guest will want.
//!
//! What is wanted is decided by [`Plan`], without threads or clocks; [`Prefetch`] carries it out on a thread of its own,
//! one segment after the other, and never while a guest waits for a fetch (spec block-serving C.2).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::boot_set::{FirstTouches, MAX_ENTRIES, RECORD_FOR};
use crate::cache::{CachedBase, Lane};
use crate::metrics::{Metrics, PrefetchKind};

/// Streams of adjacent reads that are told apart.
const MAX_STREAMS: usize = 16;
/// Adjacent reads that make a stream.
const STREAM_AFTER: u32 = 3;
/// Segments read ahead at first, and at most.
const READ_AHEAD: Range<u64> = 4..32;
/// Segments that may wait to be fetched for other reasons than the boot set.
const MAX_QUEUE: usize = 4096;
/// The boot set is given up when of so many prefetched segments less than a fifth was asked for in time.
const JUDGED: usize = 64;
const USED_WITHIN_MS: u64 = 60_000;

/// What to fetch, and in which order.
#[derive(Default)]
pub struct Plan {
    segments: u64,
    segment_bytes: u64,
    boot_set: VecDeque<u64>,
    structure: VecDeque<u64>,
    ahead: VecDeque<u64>,
    asked: VecDeque<u64>,
    queued: BTreeSet<u64>,
    streams: VecDeque<Stream>,
    /// Boot set segments that were fetched, with the time; `true` once they were asked for.
    judged: VecDeque<(u64, u64, bool)>,
    fetched: HashMap<u64, PrefetchKind>,
}

struct Stream {
    next_offset: u64,
    reads: u32,
    window: u64,
    /// Up to here segments have been queued.
    ahead_to: u64,
}

impl Plan {
    /// For a disk of this size.
    pub fn new(size_bytes: u64, segment_bytes: u32) -> Self {
        let segment_bytes = u64::from(segment_bytes);
        Self { segments: size_bytes.div_ceil(segment_bytes), segment_bytes, ..Self::default() }
    }

    /// Follows what was touched at the last boot; what is beyond the disk is dropped.
    pub fn follow(&mut self, order: &[u64]) {
        let known: Vec<u64> = order.iter().copied().filter(|segment| *segment < self.segments).collect();
        for segment in known {
            if self.queued.insert(segment) {
                self.boot_set.push_back(segment);
            }
        }
    }

    /// First and last MiB, where partition tables are.
    pub fn structure(&mut self) {
        for offset in [0, (self.segments * self.segment_bytes).saturating_sub(1 << 20)] {
            self.enqueue(offset / self.segment_bytes, PrefetchKind::Structure);
        }
    }

    /// A client says that it will read a range.
    pub fn asked(&mut self, range: Range<u64>) {
        for segment in range.start / self.segment_bytes..range.end.div_ceil(self.segment_bytes) {
            self.enqueue(segment, PrefetchKind::Asked);
        }
    }

    /// A guest has read a range. Gives the prefetched segments that it has now asked for.
    pub fn was_read(&mut self, range: Range<u64>, now_ms: u64) -> Vec<PrefetchKind> {
        let mut used = Vec::new();
        for segment in range.start / self.segment_bytes..range.end.div_ceil(self.segment_bytes) {
            used.extend(self.fetched.remove(&segment));
            for (judged, fetched_ms, is_used) in &mut self.judged {
                *is_used |= *judged == segment && now_ms.saturating_sub(*fetched_ms) <= USED_WITHIN_MS;
            }
        }
        self.judge(now_ms);
        let near = |stream: &Stream| stream.next_offset == range.start;
        let mut stream = match self.streams.iter().position(near).and_then(|at| self.streams.remove(at)) {
            Some(stream) => Stream { next_offset: range.end, reads: stream.reads + 1, ..stream },
            None => Stream { next_offset: range.end, reads: 1, window: READ_AHEAD.start, ahead_to: 0 },
        };
        let here = range.end / self.segment_bytes;
        // The next portion is queued when half of the last one is used up.
        if stream.reads >= STREAM_AFTER && here + stream.window / 2 >= stream.ahead_to {
            let from = stream.ahead_to.max(here);
            for segment in from..(from + stream.window).min(self.segments) {
                self.enqueue(segment, PrefetchKind::Sequential);
            }
            stream.ahead_to = from + stream.window;
            stream.window = (stream.window * 2).min(READ_AHEAD.end);
        }
        self.streams.push_back(stream);
        if self.streams.len() > MAX_STREAMS {
            self.streams.pop_front();
        }
        used
    }

    /// The segment to fetch next. What a guest's own reads foretell is more certain than structure, the boot set most.
    pub fn take_next(&mut self) -> Option<(u64, PrefetchKind)> {
        for (queue, kind) in [
            (&mut self.boot_set, PrefetchKind::BootSet),
            (&mut self.structure, PrefetchKind::Structure),
            (&mut self.asked, PrefetchKind::Asked),
            (&mut self.ahead, PrefetchKind::Sequential),
        ] {
            if let Some(segment) = queue.pop_front() {
                self.queued.remove(&segment);
                return Some((segment, kind));
            }
        }
        None
    }

    /// A segment was fetched.
    pub fn was_fetched(&mut self, segment: u64, kind: PrefetchKind, now_ms: u64) {
        if self.fetched.len() < MAX_ENTRIES {
            self.fetched.insert(segment, kind);
        }
        if kind == PrefetchKind::BootSet {
            self.judged.push_back((segment, now_ms, false));
            while self.judged.len() > JUDGED {
                self.judged.pop_front();
            }
        }
    }

    /// Whether there is still something of the boot set to come.
    pub fn follows(&self) -> bool {
        !self.boot_set.is_empty()
    }

    /// Gives the boot set up when it does not foretell this boot.
    fn judge(&mut self, now_ms: u64) {
        let is_due = |entry: &(u64, u64, bool)| now_ms.saturating_sub(entry.1) > USED_WITHIN_MS || entry.2;
        if self.judged.len() == JUDGED && self.judged.iter().all(is_due) {
            let used = self.judged.iter().filter(|entry| entry.2).count();
            if used * 5 < JUDGED {
                for segment in self.boot_set.drain(..) {
                    self.queued.remove(&segment);
                }
            }
        }
    }

    fn enqueue(&mut self, segment: u64, kind: PrefetchKind) {
        let queue = match kind {
            PrefetchKind::BootSet => &mut self.boot_set,
            PrefetchKind::Structure => &mut self.structure,
            PrefetchKind::Sequential => &mut self.ahead,
            PrefetchKind::Asked => &mut self.asked,
        };
        if segment < self.segments && queue.len() < MAX_QUEUE && self.queued.insert(segment) {
            queue.push_back(segment);
        }
    }
}

/// Carries a [`Plan`] out until it is dropped.
pub struct Prefetch {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    base: Arc<CachedBase>,
    metrics: Arc<Metrics>,
    begun: Instant,
}

struct State {
    plan: Plan,
    touches: FirstTouches,
    is_over: bool,
}

impl Prefetch {
    /// Starts with the disk's structure and the segments in `boot_set`.
    pub fn start(base: Arc<CachedBase>, metrics: Arc<Metrics>, boot_set: &[u64]) -> std::io::Result<Arc<Self>> {
        let mut plan = Plan::new(base.base().size_bytes(), base.base().segment_bytes());
        plan.follow(boot_set);
        plan.structure();
        let state = State { plan, touches: FirstTouches::default(), is_over: false };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            base,
            metrics,
            begun: Instant::now(),
        });
        let worker = shared.clone();
        let thread = std::thread::Builder::new().name("prefetch".into()).spawn(move || worker.run())?;
        Ok(Arc::new(Self { shared, thread: Mutex::new(Some(thread)) }))
    }

    /// A guest has read a range.
    pub fn was_read(&self, range: Range<u64>) {
        let now = self.shared.begun.elapsed();
        let segment_bytes = u64::from(self.shared.base.base().segment_bytes());
        let mut state = self.shared.lock();
        if now < RECORD_FOR {
            for segment in range.start / segment_bytes..range.end.div_ceil(segment_bytes) {
                state.touches.touch(segment, now.as_millis() as u64);
            }
        }
        for kind in state.plan.was_read(range, now.as_millis() as u64) {
            self.shared.metrics.prefetch_used(kind);
        }
        self.shared.changed.notify_one();
    }

    /// A client says that it will read a range.
    pub fn was_asked_for(&self, range: Range<u64>) {
        self.shared.lock().plan.asked(range);
        self.shared.changed.notify_one();
    }

    /// The segments that were touched since the start, in order, for the next boot.
    pub fn touches(&self) -> FirstTouches {
        self.shared.lock().touches.clone()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    fn run(&self) {
        loop {
            let (segment, kind) = {
                let mut state = self.lock();
                loop {
                    if state.is_over {
                        return;
                    }
                    if let Some(next) = state.plan.take_next() {
                        break next;
                    }
                    state = self.changed.wait(state).expect("no panic while held");
                }
            };
            // What fails here fails again for the guest, if it ever asks; then it is told.
            if !self.base.is_near(segment) && self.base.segment(segment, Lane::Background).is_ok() {
                self.metrics.prefetched(kind);
                let now_ms = self.begun.elapsed().as_millis() as u64;
                self.lock().plan.was_fetched(segment, kind, now_ms);
            }
        }
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.lock().expect("no panic while held").take() {
            // A panic there is the thread's own; the disk goes on without prefetch.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 1 << 20;

    fn drained(plan: &mut Plan) -> Vec<(u64, PrefetchKind)> {
        std::iter::from_fn(|| plan.take_next()).collect()
    }

    #[test]
    fn the_boot_set_comes_first_in_its_order_then_structure() {
        let mut plan = Plan::new(10 * SEGMENT, 1 << 20);
        plan.structure();
        plan.follow(&[7, 3, 99, 7]);
        let expected = [
            (7, PrefetchKind::BootSet),
            (3, PrefetchKind::BootSet),
            (0, PrefetchKind::Structure),
            (9, PrefetchKind::Structure),
        ];
        assert_eq!(drained(&mut plan), expected);
    }

    #[test]
    fn three_adjacent_reads_are_read_ahead_of_and_the_window_grows() {
        let mut plan = Plan::new(1000 * SEGMENT, 1 << 20);
        let mut seen = Vec::new();
        for nth in 0..40 {
            plan.was_read(nth * SEGMENT..(nth + 1) * SEGMENT, 0);
            let next = drained(&mut plan);
            assert_eq!(nth >= 2, !next.is_empty() || !seen.is_empty(), "read {nth}");
            seen.extend(next.iter().map(|(segment, _)| *segment));
        }
        assert_eq!(seen[..4], [3, 4, 5, 6]);
        assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1), "without gaps or repeats: {seen:?}");
        assert!(*seen.last().unwrap() >= 40 + 16, "{seen:?}");
        plan.was_read(500 * SEGMENT..501 * SEGMENT, 0);
        assert_eq!(drained(&mut plan), [], "one read is no stream");
    }

    #[test]
    fn a_boot_set_that_foretells_nothing_is_given_up() {
        for (case, used_each, followed) in [("none used", 0, false), ("a quarter used", 4, true)] {
            let mut plan = Plan::new(1000 * SEGMENT, 1 << 20);
            plan.follow(&(0..100).collect::<Vec<_>>());
            for _ in 0..JUDGED {
                let (segment, kind) = plan.take_next().unwrap();
                plan.was_fetched(segment, kind, 0);
            }
            for segment in (0..JUDGED as u64).filter(|nth| used_each > 0 && nth % used_each == 0) {
                plan.was_read(segment * SEGMENT..segment * SEGMENT + 512, 1000);
            }
            plan.was_read(900 * SEGMENT..900 * SEGMENT + 512, USED_WITHIN_MS + 1);
            assert_eq!(plan.follows(), followed, "{case}");
        }
    }
}

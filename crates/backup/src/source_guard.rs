//! Reads of a frozen disk, held back so that the machines that run on the same storage do not starve.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bucket::RateLimiter;
use hyperv::seam::Clock;
use serde::{Deserialize, Serialize};

use crate::Cancel;

/// Longest pause after one slow request.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Requests are counted in classes of latency, each twice as wide as the one before; the first ends at 16 µs.
const CLASSES: usize = 32;
const FIRST_CLASS_SHIFT: u32 = 4;

/// How hard the source may be read.
#[derive(Clone, Debug, Default)]
pub struct ReadLimits {
    /// Bytes per second; all of them apply.
    pub rate: Vec<Arc<RateLimiter>>,
    /// A request that takes longer shows that the storage is busy: the reader then rests for as long as the request took
    /// too long. `None`: it never rests.
    pub latency: Option<Duration>,
}

/// What reading a source took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadTimes {
    /// Requests made.
    pub requests: u64,
    /// Time of all requests together; several are in flight at a time.
    pub total_us: u64,
    /// The fastest tenth took no longer, within a factor of two: the storage when nothing disturbs.
    pub fastest_tenth_us: u64,
    /// All but the slowest twentieth took no longer, within a factor of two.
    pub most_us: u64,
    /// Time that readers rested because of limits, all readers together.
    pub held_back_us: u64,
}

impl ReadTimes {
    /// Mean time of a request, less what the fastest took: what our own load, and that of others, added.
    pub fn added_latency(&self) -> Duration {
        let mean = self.total_us.checked_div(self.requests).unwrap_or_default();
        Duration::from_micros(mean.saturating_sub(self.fastest_tenth_us))
    }
}

/// Holds readers to the limits, and measures.
pub(crate) struct SourceGuard<'a> {
    clock: &'a dyn Clock,
    cancel: &'a Cancel,
    limits: &'a ReadLimits,
    classes: [AtomicU64; CLASSES],
    total_us: AtomicU64,
    held_back_us: AtomicU64,
}

impl<'a> SourceGuard<'a> {
    pub(crate) fn new(clock: &'a dyn Clock, cancel: &'a Cancel, limits: &'a ReadLimits) -> Self {
        Self {
            clock,
            cancel,
            limits,
            classes: Default::default(),
            total_us: AtomicU64::default(),
            held_back_us: AtomicU64::default(),
        }
    }

    /// Makes one request of `bytes`, when it may be made.
    pub(crate) fn request<T, E>(&self, bytes: u64, read: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let (_, waited) = RateLimiter::take_of_all(&self.limits.rate, bytes, &|| self.cancel.is_cancelled());
        self.held_back_us.fetch_add(micros(waited), Ordering::Relaxed);
        let begun = self.clock.monotonic();
        let result = read();
        let took = self.clock.monotonic().saturating_sub(begun);
        self.total_us.fetch_add(micros(took), Ordering::Relaxed);
        self.classes[class_of(micros(took))].fetch_add(1, Ordering::Relaxed);
        if let Some(limit) = self.limits.latency
            && let Some(excess) = took.checked_sub(limit)
            && !excess.is_zero()
            && !self.cancel.is_cancelled()
        {
            let pause = excess.min(LONGEST_PAUSE);
            self.clock.sleep(pause);
            self.held_back_us.fetch_add(micros(pause), Ordering::Relaxed);
        }
        result
    }

    pub(crate) fn times(&self) -> ReadTimes {
        let counts: Vec<u64> = self.classes.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let requests: u64 = counts.iter().sum();
        let end_of_class_with = |share: u64| {
            let mut below = 0;
            let class = counts.iter().position(|count| {
                below += count;
                below >= share
            });
            class.map_or(0, |class| 1 << (class as u32 + FIRST_CLASS_SHIFT))
        };
        ReadTimes {
            requests,
            total_us: self.total_us.load(Ordering::Relaxed),
            fastest_tenth_us: if requests == 0 { 0 } else { end_of_class_with(requests.div_ceil(10)) },
            most_us: if requests == 0 { 0 } else { end_of_class_with(requests - requests / 20) },
            held_back_us: self.held_back_us.load(Ordering::Relaxed),
        }
    }
}

/// The class whose end is the first power of two above `us`.
fn class_of(us: u64) -> usize {
    ((u64::BITS - us.leading_zeros()).saturating_sub(FIRST_CLASS_SHIFT) as usize).min(CLASSES - 1)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::SystemTime;

    use super::*;

    #[derive(Default)]
    struct Virtual(Mutex<Duration>);

    impl Clock for Virtual {
        fn monotonic(&self) -> Duration {
            *self.0.lock().unwrap()
        }
        fn now(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + self.monotonic()
        }
        fn sleep(&self, duration: Duration) {
            *self.0.lock().unwrap() += duration;
        }
    }

    /// The limiter's view of the same clock.
    struct Shared(Arc<Virtual>);

    impl bucket::Clock for Shared {
        fn now(&self) -> Duration {
            self.0.monotonic()
        }
        fn sleep(&self, duration: Duration) {
            self.0.sleep(duration);
        }
    }

    #[test]
    fn a_slow_source_is_left_alone_for_as_long_as_it_was_too_slow() {
        let clock = Virtual::default();
        let limits = ReadLimits { latency: Some(Duration::from_millis(50)), ..ReadLimits::default() };
        let cancel = Cancel::default();
        let guard = SourceGuard::new(&clock, &cancel, &limits);
        for (ms, rests_ms) in [(10, 0), (50, 0), (80, 30), (400, 350), (9000, 1000)] {
            let before = clock.monotonic();
            let read = || {
                clock.sleep(Duration::from_millis(ms));
                Ok::<_, ()>(())
            };
            guard.request(1 << 20, read).unwrap();
            assert_eq!((clock.monotonic() - before).as_millis(), u128::from(ms + rests_ms), "{ms} ms");
        }
        let times = guard.times();
        assert_eq!((times.requests, times.total_us, times.held_back_us), (5, 9_540_000, 1_380_000));
        assert_eq!((times.fastest_tenth_us, times.most_us), (16_384, 16_777_216));
        assert_eq!(times.added_latency(), Duration::from_micros(1_908_000 - 16_384));
    }

    #[test]
    fn all_rate_limits_apply() {
        let clock = Arc::new(Virtual::default());
        let limiter = |rate| {
            let limiter = RateLimiter::new(Arc::new(Shared(clock.clone())));
            limiter.set_rate(move || Some(rate));
            Arc::new(limiter)
        };
        let limits = ReadLimits { rate: vec![limiter(4 << 20), limiter(1 << 20)], latency: None };
        let cancel = Cancel::default();
        let guard = SourceGuard::new(&*clock, &cancel, &limits);
        for _ in 0..30 {
            guard.request(1 << 20, || Ok::<_, ()>(())).unwrap();
        }
        let seconds = clock.monotonic().as_secs_f64();
        assert!((seconds - 30.0).abs() < 0.3, "{seconds}");
        assert_eq!(guard.times().held_back_us / 100_000, (seconds * 10.0) as u64);
    }

    #[test]
    fn classes_end_at_powers_of_two() {
        for (us, class) in [(0, 0), (15, 0), (16, 1), (31, 1), (32, 2), (u64::MAX, CLASSES - 1)] {
            assert_eq!(class_of(us), class, "{us}");
        }
    }
}

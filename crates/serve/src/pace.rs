//! How fast a disk is moved: no faster than is wished, and how long that will take.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What a guest's host is asked for at most, by default.
pub const DEFAULT_BYTES_PER_SECOND: u64 = 200 << 20;
/// The rate of so long is what the rest is expected to move at.
const LOOK_BACK: Duration = Duration::from_secs(60);
/// What was moved within so long is one figure.
const SAMPLE: Duration = Duration::from_millis(250);

/// Bytes that were moved, and when.
#[derive(Debug)]
pub struct Pace {
    limit_per_second: u64,
    /// When what was moved so far may have been moved at the earliest.
    due: Duration,
    moved: VecDeque<(Duration, u64)>,
    begun: Instant,
}

impl Pace {
    /// At most so many bytes a second; 0 is no limit.
    pub fn new(limit_per_second: u64) -> Self {
        Self { limit_per_second, due: Duration::ZERO, moved: VecDeque::new(), begun: Instant::now() }
    }

    /// Another limit, from now on: what is owed under the former one is forgiven.
    pub fn set_limit(&mut self, limit_per_second: u64) {
        if self.limit_per_second != limit_per_second {
            self.limit_per_second = limit_per_second;
            self.due = Duration::ZERO;
        }
    }

    /// Notes that bytes were moved just now; how long to rest before the next.
    pub fn moved(&mut self, bytes: u64) -> Duration {
        self.moved_at(self.begun.elapsed(), bytes)
    }

    /// Notes bytes that cost nothing: they count for what is left, and not for the limit.
    pub fn skipped(&mut self, bytes: u64) {
        self.note(self.begun.elapsed(), bytes);
    }

    /// How long `left_bytes` will take at the rate of the last minute; `None` before there is one.
    pub fn time_left(&self, left_bytes: u64) -> Option<Duration> {
        self.time_left_at(self.begun.elapsed(), left_bytes)
    }

    fn note(&mut self, now: Duration, bytes: u64) {
        match self.moved.back_mut() {
            // Zeroes go by a million a second: they are not kept one by one.
            Some((at, sum)) if now.saturating_sub(*at) < SAMPLE => *sum += bytes,
            _ => self.moved.push_back((now, bytes)),
        }
        while self.moved.front().is_some_and(|(at, _)| *at + LOOK_BACK < now) {
            self.moved.pop_front();
        }
    }

    fn moved_at(&mut self, now: Duration, bytes: u64) -> Duration {
        self.note(now, bytes);
        if self.limit_per_second == 0 {
            return Duration::ZERO;
        }
        // What was not used before is not saved up.
        let time = Duration::from_secs_f64(bytes as f64 / self.limit_per_second as f64);
        self.due = self.due.max(now.saturating_sub(time)) + time;
        self.due.saturating_sub(now)
    }

    fn time_left_at(&self, now: Duration, left_bytes: u64) -> Option<Duration> {
        let (first, _) = self.moved.front()?;
        let bytes: u64 = self.moved.iter().map(|(_, bytes)| bytes).sum();
        let time = now.saturating_sub(*first).as_secs_f64();
        (time >= 1.0 && bytes > 0).then(|| Duration::from_secs_f64(left_bytes as f64 / (bytes as f64 / time)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Moves 1 MiB at a time, each taking `each`, resting as told, until a second is over; gives what was moved.
    fn moved_in_a_second(limit: u64, each: Duration) -> u64 {
        let mut pace = Pace::new(limit);
        let (mut now, mut moved) = (Duration::ZERO, 0);
        while now < Duration::from_secs(1) {
            now += each;
            now += pace.moved_at(now, MIB);
            moved += MIB;
        }
        moved
    }

    #[test]
    fn the_limit_holds_and_slowness_is_not_saved_up() {
        for (case, limit, each_ms, expected) in [
            ("no limit", 0, 1, 1000 * MIB),
            ("the disk is slower than the limit", 200 * MIB, 20, 50 * MIB),
            ("the limit is what counts", 100 * MIB, 1, 100 * MIB),
        ] {
            let moved = moved_in_a_second(limit, Duration::from_millis(each_ms));
            assert!(moved.abs_diff(expected) <= 2 * MIB, "{case}: {} MiB", moved / MIB);
        }
        let mut pace = Pace::new(MIB);
        pace.moved_at(Duration::from_secs(1), MIB);
        let rest = pace.moved_at(Duration::from_secs(100), 2 * MIB);
        assert!(rest <= Duration::from_secs(2), "{rest:?}");
        pace.set_limit(4 * MIB);
        assert_eq!(pace.moved_at(Duration::from_secs(101), 2 * MIB), Duration::ZERO, "by the new limit");
    }

    #[test]
    fn what_cost_nothing_counts_for_what_is_left_and_not_for_the_limit() {
        let mut pace = Pace::new(MIB);
        for millisecond in 0..2000 {
            pace.note(Duration::from_millis(millisecond), MIB);
        }
        assert!(pace.moved.len() <= 8, "{} figures for two seconds", pace.moved.len());
        assert_eq!(pace.moved_at(Duration::from_secs(2), MIB), Duration::ZERO, "it took the second that it may take");
        let left = pace.time_left_at(Duration::from_secs(2), 10_000 * MIB).unwrap();
        assert!((9..=11).contains(&left.as_secs()), "{left:?}");
    }

    #[test]
    fn time_left_follows_the_last_minute() {
        let mut pace = Pace::new(0);
        assert_eq!(pace.time_left_at(Duration::from_secs(5), MIB), None);
        for second in 0..=100 {
            pace.moved_at(Duration::from_secs(second), if second < 40 { 100 * MIB } else { MIB });
        }
        let left = pace.time_left_at(Duration::from_secs(100), 60 * MIB).unwrap();
        assert!((55..=60).contains(&left.as_secs()), "{left:?}");
    }
}

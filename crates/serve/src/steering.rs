//! A thread that moves disks, and what it shares with whoever started it: when it shall stop, how fast it may go, and
//! what went wrong.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::pace::Pace;

/// After a failure it waits so long, then twice as long, until [`LONGEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// How soon it is seen that it shall stop.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the thread and its owner share.
#[derive(Debug)]
pub struct Steering {
    stops: AtomicBool,
    course: Mutex<Course>,
}

#[derive(Debug)]
struct Course {
    pace: Pace,
    /// Why the last attempt to go on failed.
    trouble: Option<String>,
    /// How long to wait after the next failure.
    retry: Duration,
}

impl Steering {
    fn new(bytes_per_second: u64) -> Self {
        let course = Course { pace: Pace::new(bytes_per_second), trouble: None, retry: FIRST_RETRY };
        Self { stops: AtomicBool::new(false), course: Mutex::new(course) }
    }

    /// Whether the thread shall end.
    pub fn is_stopped(&self) -> bool {
        self.stops.load(Ordering::Relaxed)
    }

    /// Notes bytes that were moved just now, and rests as the rate demands.
    pub fn moved(&self, bytes: u64) {
        let rest = self.course().pace.moved(bytes);
        self.rest(rest);
    }

    /// Notes bytes that cost nothing.
    pub fn skipped(&self, bytes: u64) {
        self.course().pace.skipped(bytes);
    }

    /// It goes on: whatever was wrong is over.
    pub fn goes_on(&self) {
        let mut course = self.course();
        course.trouble = None;
        course.retry = FIRST_RETRY;
    }

    /// Says what is wrong.
    pub fn fails(&self, trouble: String) {
        self.course().trouble = Some(trouble);
    }

    /// Rests before the next attempt, longer after each failure in a row.
    pub fn rest_after_failure(&self) {
        let rest = {
            let mut course = self.course();
            let next = (course.retry * 2).min(LONGEST_RETRY);
            std::mem::replace(&mut course.retry, next)
        };
        self.rest(rest);
    }

    /// Sleeps, unless it shall stop.
    pub fn rest(&self, time: Duration) {
        let deadline = Instant::now() + time;
        while !self.is_stopped() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        }
    }

    fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().expect("no panic while held")
    }
}

/// A thread that is stopped and waited for when this is dropped.
#[derive(Debug)]
pub struct Steered {
    steering: Arc<Steering>,
    thread: Option<JoinHandle<()>>,
}

impl Steered {
    /// Starts `work` in a thread of its own, at most so many bytes a second; 0 is no limit.
    pub fn start(name: &str, bytes_per_second: u64, work: impl FnOnce(&Steering) + Send + 'static) -> io::Result<Self> {
        let steering = Arc::new(Steering::new(bytes_per_second));
        let shared = steering.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&shared))?;
        Ok(Self { steering, thread: Some(thread) })
    }

    /// Another rate, from now on.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.steering.course().pace.set_limit(bytes_per_second);
    }

    /// Why the last attempt to go on failed, if it did.
    pub fn trouble(&self) -> Option<String> {
        self.steering.course().trouble.clone()
    }

    /// How long `left_bytes` will take at the rate of the last minute, if that is known.
    pub fn time_left(&self, left_bytes: u64) -> Option<Duration> {
        self.steering.course().pace.time_left(left_bytes)
    }
}

impl Drop for Steered {
    fn drop(&mut self) {
        self.steering.stops.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there is the thread's own; what it did not finish is gone on with after a restart.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_in_a_row_waits_longer_and_success_ends_that() {
        let steering = Steering::new(0);
        let next = |steering: &Steering| steering.course().retry;
        // It shall stop, so nothing is waited for here.
        steering.stops.store(true, Ordering::Relaxed);
        for expected in [500, 1000, 2000] {
            assert_eq!(next(&steering), Duration::from_millis(expected));
            steering.fails("no answer".into());
            steering.rest_after_failure();
        }
        (0..20).for_each(|_| steering.rest_after_failure());
        assert_eq!(next(&steering), LONGEST_RETRY);
        assert_eq!(steering.course().trouble.as_deref(), Some("no answer"));
        steering.goes_on();
        assert_eq!((next(&steering), steering.course().trouble.clone()), (FIRST_RETRY, None));
    }

    #[test]
    fn a_thread_that_rests_ends_with_its_owner() {
        let begun = Instant::now();
        let steered = Steered::start("resting", 1, |steering| steering.moved(1 << 20)).unwrap();
        steered.set_rate(0);
        drop(steered);
        assert!(begun.elapsed() < Duration::from_secs(60), "it would rest for twelve days");
    }
}

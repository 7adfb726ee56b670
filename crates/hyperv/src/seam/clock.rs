//! Time as polling and limits need it.

use std::time::{Duration, Instant, SystemTime};

/// A clock that tests can replace, so that a 20-minute limit costs them nothing.
pub trait Clock: Send + Sync {
    /// Time since an arbitrary fixed start; never goes back.
    fn monotonic(&self) -> Duration;
    /// Calendar time.
    fn now(&self) -> SystemTime;
    /// Waits. A virtual clock advances itself and returns at once.
    fn sleep(&self, duration: Duration);
}

/// The clock of the machine.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

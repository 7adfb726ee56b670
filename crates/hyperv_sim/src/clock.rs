//! A clock that only sleeping moves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyperv::seam::{Clock, SystemClock};

use crate::options::ClockKind;

/// Where virtual time begins: 2026-01-01T00:00:00Z, as milliseconds since 1970.
pub(crate) const VIRTUAL_START_MS: u64 = 1_767_225_600_000;

/// Virtual time: sleeping advances it at once.
#[derive(Debug)]
pub struct VirtualClock {
    nanos_since_1970: AtomicU64,
}

impl VirtualClock {
    pub(crate) fn starting_at_ms(unix_ms: u64) -> Self {
        Self { nanos_since_1970: AtomicU64::new(unix_ms.saturating_mul(1_000_000)) }
    }

    /// Moves to `unix_ms`, unless that is in the past: another process has been there already.
    pub(crate) fn advance_to_ms(&self, unix_ms: u64) {
        self.nanos_since_1970.fetch_max(unix_ms.saturating_mul(1_000_000), Ordering::SeqCst);
    }

    fn nanos(&self) -> u64 {
        self.nanos_since_1970.load(Ordering::SeqCst)
    }
}

impl Clock for VirtualClock {
    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.nanos().saturating_sub(VIRTUAL_START_MS * 1_000_000))
    }

    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.nanos())
    }

    fn sleep(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2);
        self.nanos_since_1970.fetch_add(nanos, Ordering::SeqCst);
    }
}

/// The host's clock, whichever it is.
#[derive(Debug)]
pub(crate) enum HostClock {
    Virtual(VirtualClock),
    System(SystemClock),
}

impl HostClock {
    pub(crate) fn new(kind: ClockKind, virtual_ms: u64) -> Self {
        match kind {
            ClockKind::Virtual => Self::Virtual(VirtualClock::starting_at_ms(virtual_ms)),
            ClockKind::System => Self::System(SystemClock::default()),
        }
    }

    fn inner(&self) -> &dyn Clock {
        match self {
            Self::Virtual(clock) => clock,
            Self::System(clock) => clock,
        }
    }

    /// Milliseconds since 1970.
    pub(crate) fn unix_ms(&self) -> u64 {
        let since = self.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn advance_to_ms(&self, unix_ms: u64) {
        if let Self::Virtual(clock) = self {
            clock.advance_to_ms(unix_ms);
        }
    }
}

impl Clock for HostClock {
    fn monotonic(&self) -> Duration {
        self.inner().monotonic()
    }

    fn now(&self) -> SystemTime {
        self.inner().now()
    }

    fn sleep(&self, duration: Duration) {
        self.inner().sleep(duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_time_moves_by_sleeping_only_and_never_back() {
        let clock = VirtualClock::starting_at_ms(VIRTUAL_START_MS);
        assert_eq!(clock.monotonic(), Duration::ZERO);
        clock.sleep(Duration::from_secs(20 * 60));
        assert_eq!(clock.monotonic(), Duration::from_secs(1200));
        clock.advance_to_ms(VIRTUAL_START_MS + 5);
        assert_eq!(clock.monotonic(), Duration::from_secs(1200));
        clock.advance_to_ms(VIRTUAL_START_MS + 1_200_005);
        assert_eq!(clock.monotonic(), Duration::from_millis(1_200_005));
    }
}

//! What others ask of the running agent: to stop, to pause, to read its configuration again.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backup::Cancel;

/// Shared between the agent's loop and whoever controls it: a signal, the service manager.
#[derive(Default)]
pub struct Control {
    asked: Mutex<Asked>,
    changed: Condvar,
    cancel: Cancel,
}

#[derive(Default)]
struct Asked {
    stop: bool,
    pause: bool,
    reload: bool,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The time is over.
    Time,
    /// Something was asked for.
    Asked,
}

impl Control {
    /// Ends the agent: what it does now is stopped cleanly.
    pub fn stop(&self) {
        self.cancel.cancel();
        self.ask(|asked| asked.stop = true);
    }

    /// Begins no new run until [`Self::resume`]; one that goes on ends as it would.
    #[cfg_attr(not(windows), expect(dead_code, reason = "only a service manager pauses"))]
    pub fn pause(&self) {
        self.ask(|asked| asked.pause = true);
    }

    /// Undoes [`Self::pause`].
    #[cfg_attr(not(windows), expect(dead_code, reason = "only a service manager pauses"))]
    pub fn resume(&self) {
        self.ask(|asked| asked.pause = false);
    }

    /// The configuration is to be read again before the next run.
    pub fn reload(&self) {
        self.ask(|asked| asked.reload = true);
    }

    /// What a run asks whether it goes on.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Whether the agent is to end.
    pub fn is_stopping(&self) -> bool {
        self.lock().stop
    }

    /// Whether no run is to begin.
    pub fn is_paused(&self) -> bool {
        self.lock().pause
    }

    /// Whether to reload; true once for every time it was asked.
    pub fn take_reload(&self) -> bool {
        std::mem::take(&mut self.lock().reload)
    }

    /// Waits until something is asked for, at most this long.
    pub fn wait(&self, longest: Duration) -> Woken {
        let end = Instant::now() + longest;
        let mut asked = self.lock();
        let before = (asked.stop, asked.pause);
        while (asked.stop, asked.pause) == before && !asked.reload {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Woken::Time;
            }
            asked = self.changed.wait_timeout(asked, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Woken::Asked
    }

    fn ask(&self, change: impl FnOnce(&mut Asked)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        // Three flags are whole whatever panicked.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The thread that moves a session's disks to where they stay, at a pace, until they are there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::hydrate_map::GRAIN_BYTES;
use crate::moving::{MoveError, Step};
use crate::pace::Pace;
use crate::session::{Session, SessionError};
use crate::state::State;

/// After a failure it waits so long, then twice as long, until [`LONGEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// A switch that found the guest too busy is tried again after this time.
const SWITCH_RETRY: Duration = Duration::from_secs(1);
/// How soon it is seen that it shall stop.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Moves a session whose hydration has begun, and ends when it is local, or when this is dropped.
///
/// What fails is tried again: the repository may come back, space may be made. A session whose state cannot be written
/// is left alone.
pub struct Mover {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    session: Arc<Session>,
    stops: AtomicBool,
    /// What is hydrated may also be drained and switched.
    switches: AtomicBool,
    pace: Mutex<Pace>,
    trouble: Mutex<Option<String>>,
}

impl Mover {
    /// At most so many bytes of the base a second; 0 is no limit.
    pub fn start(session: Arc<Session>, bytes_per_second: u64) -> std::io::Result<Self> {
        let mover = Self::hydrate_only(session, bytes_per_second)?;
        mover.switch();
        Ok(mover)
    }

    /// The same up to [`State::Hydrated`]: there it waits for [`Self::switch`].
    pub fn hydrate_only(session: Arc<Session>, bytes_per_second: u64) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            session,
            stops: AtomicBool::new(false),
            switches: AtomicBool::new(false),
            pace: Mutex::new(Pace::new(bytes_per_second)),
            trouble: Mutex::new(None),
        });
        let worker = shared.clone();
        let thread = std::thread::Builder::new().name("mover".into()).spawn(move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Lets the targets take over as soon as they hold the base.
    pub fn switch(&self) {
        self.shared.switches.store(true, Ordering::Relaxed);
    }

    /// Why the last attempt to go on failed, if it did.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble.lock().expect("no panic while held").clone()
    }

    /// How long the base will take at the rate of the last minute, if that is known.
    pub fn time_left(&self) -> Option<Duration> {
        let hydrated = self.shared.session.hydrated()?;
        let pace = self.shared.pace.lock().expect("no panic while held");
        pace.time_left(hydrated.total_bytes.saturating_sub(hydrated.done_bytes))
    }

    /// Waits until the session is local; `false` when it was not by then.
    pub fn wait(&self, longest: Duration) -> bool {
        let deadline = Instant::now() + longest;
        while self.shared.session.state() != State::Local {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        true
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.shared.stops.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there is the thread's own; the session goes on, and moves on after a restart.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut retry = FIRST_RETRY;
        while !self.stops.load(Ordering::Relaxed) {
            let before = self.session.state();
            if before == State::Hydrated && !self.switches.load(Ordering::Relaxed) {
                self.rest(LOOK_EVERY);
                continue;
            }
            match self.session.advance(&|step| self.pause(step)) {
                Ok(State::Local) => return,
                Ok(state) => {
                    retry = FIRST_RETRY;
                    self.note(None);
                    if (before, state) == (State::Switching, State::Draining) {
                        self.rest(SWITCH_RETRY);
                    } else if !matches!(state, State::Hydrating | State::Hydrated | State::Draining | State::Switching)
                    {
                        // Nothing to move yet, or any more; somebody else decides.
                        self.rest(LOOK_EVERY * 5);
                    }
                }
                Err(SessionError::Move(MoveError::Stopped)) => return,
                Err(error) => {
                    tracing::warn!(%error, "moving a disk failed; it is tried again");
                    self.note(Some(error.to_string()));
                    if matches!(error, SessionError::Move(MoveError::Commit { .. })) {
                        return;
                    }
                    self.rest(retry);
                    retry = (retry * 2).min(LONGEST_RETRY);
                }
            }
        }
    }

    fn pause(&self, step: Step) -> Result<(), MoveError> {
        if self.stops.load(Ordering::Relaxed) {
            return Err(MoveError::Stopped);
        }
        let mut pace = self.pace.lock().expect("no panic while held");
        let rest = match step {
            Step::GrainCopied => pace.moved(GRAIN_BYTES),
            Step::GrainSkipped => {
                pace.skipped(GRAIN_BYTES);
                Duration::ZERO
            }
            _ => Duration::ZERO,
        };
        drop(pace);
        self.rest(rest);
        Ok(())
    }

    fn note(&self, trouble: Option<String>) {
        *self.trouble.lock().expect("no panic while held") = trouble;
    }

    /// Sleeps, unless it shall stop.
    fn rest(&self, time: Duration) {
        let deadline = Instant::now() + time;
        while !self.stops.load(Ordering::Relaxed) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        }
    }
}

//! The thread that moves a session's disks to where they stay, at a pace, until they are there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::hydrate_map::GRAIN_BYTES;
use crate::moving::{MoveError, Step};
use crate::session::{Session, SessionError};
use crate::state::State;
use crate::steering::{Steered, Steering};

/// A switch that found the guest too busy is tried again after this time.
const SWITCH_RETRY: Duration = Duration::from_secs(1);
/// How soon it is seen that somebody else decided something.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Moves a session whose hydration has begun, and ends when it is local, or when this is dropped.
///
/// What fails is tried again: the repository may come back, space may be made. A session whose state cannot be written
/// is left alone.
pub struct Mover {
    session: Arc<Session>,
    /// What is hydrated may also be drained and switched.
    switches: Arc<AtomicBool>,
    thread: Steered,
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
        let switches = Arc::new(AtomicBool::new(false));
        let (moved, may_switch) = (session.clone(), switches.clone());
        let thread = Steered::start("mover", bytes_per_second, move |steering| run(&moved, &may_switch, steering))?;
        Ok(Self { session, switches, thread })
    }

    /// Lets the targets take over as soon as they hold the base.
    pub fn switch(&self) {
        self.switches.store(true, Ordering::Relaxed);
    }

    /// Another rate, from now on.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.thread.set_rate(bytes_per_second);
    }

    /// Why the last attempt to go on failed, if it did.
    pub fn trouble(&self) -> Option<String> {
        self.thread.trouble()
    }

    /// How long the base will take at the rate of the last minute, if that is known.
    pub fn time_left(&self) -> Option<Duration> {
        let hydrated = self.session.hydrated()?;
        self.thread.time_left(hydrated.total_bytes.saturating_sub(hydrated.done_bytes))
    }

    /// Waits until the session is local; `false` when it was not by then.
    pub fn wait(&self, longest: Duration) -> bool {
        let deadline = Instant::now() + longest;
        while self.session.state() != State::Local {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        true
    }
}

fn run(session: &Session, may_switch: &AtomicBool, steering: &Steering) {
    while !steering.is_stopped() {
        let before = session.state();
        if before == State::Hydrated && !may_switch.load(Ordering::Relaxed) {
            steering.rest(LOOK_EVERY);
            continue;
        }
        match session.advance(&|step| pause(steering, step)) {
            Ok(State::Local) => return,
            Ok(state) => {
                steering.goes_on();
                if (before, state) == (State::Switching, State::Draining) {
                    steering.rest(SWITCH_RETRY);
                } else if !matches!(state, State::Hydrating | State::Hydrated | State::Draining | State::Switching) {
                    // Nothing to move yet, or any more; somebody else decides.
                    steering.rest(LOOK_EVERY * 5);
                }
            }
            Err(SessionError::Move(MoveError::Stopped)) => return,
            Err(error) => {
                tracing::warn!(%error, "moving a disk failed; it is tried again");
                steering.fails(error.to_string());
                if matches!(error, SessionError::Move(MoveError::Commit { .. })) {
                    return;
                }
                steering.rest_after_failure();
            }
        }
    }
}

fn pause(steering: &Steering, step: Step) -> Result<(), MoveError> {
    match step {
        Step::GrainCopied => steering.moved(GRAIN_BYTES),
        Step::GrainSkipped => steering.skipped(GRAIN_BYTES),
        _ => {}
    }
    if steering.is_stopped() { Err(MoveError::Stopped) } else { Ok(()) }
}

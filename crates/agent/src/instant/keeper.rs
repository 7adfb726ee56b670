//! The keeper of a session: serves it, and does what is wanted of it, until it ends or the keeper is stopped.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serve::{DEFAULT_BYTES_PER_SECOND, Mover, Session, SessionError, State};

use super::boot::Boot;
use super::record::{Figures, LastWanted, Refusal, Wanted};
use crate::failure::{Attempt as _, Failure, chain_text};
use crate::serving::{Sources, Transport};

/// How long requests in flight may take when serving ends.
const GRACE: Duration = Duration::from_secs(10);
const TEND_EVERY: Duration = Duration::from_secs(1);

/// A session that is served.
pub struct Keeper {
    /// Its folder.
    pub folder: PathBuf,
    /// The point that it stands on.
    pub sources: Sources,
    /// It, and its disks.
    pub session: Arc<Session>,
    /// What clients are connected to.
    pub transport: Transport,
    /// What the guest's boot reads, to be remembered; not after a restart, for that sees only the rest of it.
    pub boot: Option<Boot>,
    /// When it was asked for.
    pub begun: Instant,
    /// How long a session whose disks have moved waits for a client to come back.
    pub linger: Duration,
}

/// How a keeper ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was stopped; the session waits for the next.
    Stopped,
    /// The disks are plain files, and the session is gone.
    Finished,
    /// The session is gone with what its guest wrote.
    Discarded,
}

impl Keeper {
    /// Serves until the session ends or `is_stopped` says so. `tell` is told what is wrong and what changes, about once
    /// a second.
    pub fn keep(
        mut self,
        is_stopped: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(State, &Figures),
        look_every: Duration,
    ) -> Result<Ending, Failure> {
        let what = "keep the instant session";
        let on = self.folder.display().to_string();
        let mut mover: Option<Mover> = None;
        let mut last_wanted = LastWanted::default();
        let mut figures = Figures { process_id: std::process::id(), ..Figures::default() };
        let (mut last_tended, mut last_needed) = (None::<Instant>, Instant::now());
        let ending = loop {
            if is_stopped() {
                break Ending::Stopped;
            }
            let wanted = last_wanted.look(&self.folder);
            if wanted.discard {
                break Ending::Discarded;
            }
            figures.refusal = self.do_what_is_wanted(&wanted, &mut mover).err();
            if self.transport.clients() > 0 || self.session.state() != State::Local {
                last_needed = Instant::now();
            }
            if wanted.switch && last_needed.elapsed() >= self.linger {
                break Ending::Finished;
            }
            figures.note_first_read(self.begun, &self.sources);
            if last_tended.is_none_or(|last| last.elapsed() >= TEND_EVERY) {
                last_tended = Some(Instant::now());
                self.tend(&mut figures, mover.as_ref());
                figures.trouble.extend(last_wanted.trouble().cloned());
                figures.publish(&self.folder);
                tell(self.session.state(), &figures);
                if let Some(boot) = &mut self.boot {
                    boot.remember_when_due(self.begun.elapsed(), &self.sources);
                }
            }
            std::thread::sleep(look_every);
        };
        // A repository that does not answer is not waited for.
        if let Some(boot) = self.boot.as_ref().filter(|_| figures.trouble.is_empty()) {
            boot.remember(&self.sources);
        }
        drop(mover);
        let Self { session, transport, .. } = self;
        let flushed = transport.shutdown(GRACE);
        let session = Arc::into_inner(session).expect("the mover has ended");
        match ending {
            Ending::Stopped => flushed.attempt(what, on)?,
            Ending::Finished => session.finish().attempt(what, on)?,
            // What it wrote is not wanted, flushed or not.
            Ending::Discarded => session.discard().attempt(what, on)?,
        }
        Ok(ending)
    }

    /// The error is for the operator; it is tried again with the next look.
    fn do_what_is_wanted(&self, wanted: &Wanted, mover: &mut Option<Mover>) -> Result<(), Refusal> {
        if let Some(targets) = wanted.move_to.as_ref().filter(|_| self.session.state() == State::Serving) {
            self.session.begin_hydrating(targets).map_err(|error| Refusal {
                is_no_space: matches!(error, SessionError::NoSpace { .. }),
                text: chain_text(&error),
            })?;
        }
        let moves =
            matches!(self.session.state(), State::Hydrating | State::Hydrated | State::Draining | State::Switching);
        let rate = wanted.bytes_per_second.unwrap_or(DEFAULT_BYTES_PER_SECOND);
        if moves && mover.is_none() {
            let begun = Mover::hydrate_only(self.session.clone(), rate);
            *mover = Some(begun.map_err(|error| format!("move the disks: {error}"))?);
        }
        if let Some(mover) = mover {
            mover.set_rate(rate);
            if wanted.switch {
                mover.switch();
            }
        }
        Ok(())
    }

    fn tend(&self, figures: &mut Figures, mover: Option<&Mover>) {
        figures.observe(&self.transport, &self.sources, &self.session);
        figures.note_moved(self.session.hydrated(), mover.and_then(Mover::time_left));
        figures.trouble.extend(mover.and_then(Mover::trouble));
        figures.trouble.sort();
        figures.trouble.dedup();
    }
}

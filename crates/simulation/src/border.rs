//! The border of the agent: every call to the host and every request to the store crosses it, in one numbering.
//!
//! Here the agent dies, and here others act while it works: at a call of a given number, on the agent's own thread, so
//! that the same story always takes the same course.

use std::collections::{BTreeMap, VecDeque};
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hyperv::Cancel;
use sha2::{Digest, Sha256};

use crate::story::{Act, Crash};
use crate::world::World;

/// The payload with which the agent's work unwinds when it dies.
pub(crate) struct Died;

#[derive(Default)]
pub(crate) struct Border {
    state: Mutex<State>,
    world: Mutex<Weak<World>>,
}

#[derive(Default)]
struct State {
    /// Since the border was armed.
    calls: u64,
    armed: bool,
    dead: bool,
    crash: Option<Crash>,
    cancel: Option<(u64, Cancel)>,
    meanwhile: VecDeque<(u64, Act)>,
    history: Sha256,
    lines: u64,
    /// What the agent died at, by kind of call.
    deaths: BTreeMap<String, u64>,
    /// Print the history.
    trace: bool,
}

impl Border {
    pub(crate) fn new(trace: bool) -> Arc<Self> {
        let border = Self::default();
        border.lock().trace = trace;
        Arc::new(border)
    }

    pub(crate) fn surround(&self, world: &Arc<World>) {
        *self.world.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(world);
    }

    fn world(&self) -> Option<Arc<World>> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on calls are numbered from 0, and this happens at them.
    pub(crate) fn arm(&self, crash: Option<Crash>, cancel: Option<(u64, Cancel)>, meanwhile: Vec<(u16, Act)>) {
        let mut state = self.lock();
        let mut meanwhile: Vec<(u64, Act)> = meanwhile.into_iter().map(|(at, act)| (u64::from(at), act)).collect();
        meanwhile.sort_by_key(|(at, _)| *at);
        (state.calls, state.armed, state.dead) = (0, true, false);
        (state.crash, state.cancel, state.meanwhile) = (crash, cancel, meanwhile.into());
    }

    /// Nothing happens at calls any more. Returns how many there were, and whether the agent died.
    pub(crate) fn disarm(&self) -> (u64, bool) {
        let mut state = self.lock();
        let result = (state.calls, state.dead);
        (state.armed, state.dead, state.crash, state.cancel) = (false, false, None, None);
        state.meanwhile.clear();
        result
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// A line of the history.
    pub(crate) fn tell(&self, line: &str) {
        let mut state = self.lock();
        state.lines += 1;
        if state.trace {
            println!("    {line}");
        }
        state.history.update(line.as_bytes());
        state.history.update(b"\n");
    }

    /// The digest of the history, and its length in lines.
    pub(crate) fn history(&self) -> (String, u64) {
        let state = self.lock();
        let digest = state.history.clone().finalize();
        (digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect(), state.lines)
    }

    pub(crate) fn deaths(&self) -> BTreeMap<String, u64> {
        self.lock().deaths.clone()
    }

    /// One call. `line` goes to the history, `kind` to the count of deaths.
    pub(crate) fn around<R>(&self, line: &str, kind: &str, call: impl FnOnce() -> R) -> R {
        let number = self.enter(line, kind);
        let result = call();
        self.leave(number, kind);
        result
    }

    pub(crate) fn enter(&self, line: &str, kind: &str) -> u64 {
        if std::thread::panicking() {
            return u64::MAX;
        }
        self.tell(line);
        if kind == "call ModifySystemSettings"
            && let Some(world) = self.world()
        {
            // A checkpoint has just been made, and is about to get its name.
            world.observe_freeze();
        }
        let (number, acts) = {
            let mut state = self.lock();
            let number = state.calls;
            state.calls += 1;
            self.die_if(&mut state, number, false, kind);
            if let Some((at, cancel)) = &state.cancel
                && *at <= number
            {
                cancel.cancel();
            }
            let mut acts = Vec::new();
            while let Some((at, _)) = state.meanwhile.front()
                && *at <= number
            {
                acts.extend(state.meanwhile.pop_front());
            }
            (number, acts)
        };
        if !acts.is_empty()
            && let Some(world) = self.world()
        {
            acts.iter().for_each(|(_, act)| world.meanwhile(act));
        }
        number
    }

    pub(crate) fn leave(&self, number: u64, kind: &str) {
        if !std::thread::panicking() {
            let mut state = self.lock();
            self.die_if(&mut state, number, true, kind);
        }
    }

    fn die_if(&self, state: &mut State, number: u64, after: bool, kind: &str) {
        let due = state.crash.is_some_and(|crash| u64::from(crash.at) == number && crash.after == after);
        if state.armed && due && !state.dead {
            state.dead = true;
            let when = if after { "after" } else { "before" };
            *state.deaths.entry(format!("{when} {kind}")).or_default() += 1;
            resume_unwind(Box::new(Died));
        }
    }
}

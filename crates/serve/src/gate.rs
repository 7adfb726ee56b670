//! A gate that every request passes: closed for the moment in which a disk changes what it stands on.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    inside: usize,
    is_closed: bool,
}

/// A request that is being carried out.
#[must_use]
pub(crate) struct Inside<'g>(&'g Gate);

/// Nobody is inside, and nobody comes in, until this is dropped.
#[must_use]
pub(crate) struct Closed<'g>(&'g Gate);

impl Gate {
    /// Waits while the gate is closed.
    pub(crate) fn enter(&self) -> Inside<'_> {
        let state = self.state.lock().expect("no panic while held");
        let mut state = self.changed.wait_while(state, |state| state.is_closed).expect("no panic while held");
        state.inside += 1;
        Inside(self)
    }

    /// Lets nobody in and waits until all are out; `None` when that takes too long, and then the gate is open again.
    pub(crate) fn close(&self, longest: Duration) -> Option<Closed<'_>> {
        let deadline = Instant::now() + longest;
        let mut state = self.state.lock().expect("no panic while held");
        if state.is_closed {
            return None;
        }
        state.is_closed = true;
        let closed = Closed(self);
        while state.inside > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                drop(closed);
                return None;
            }
            state = self.changed.wait_timeout(state, left).expect("no panic while held").0;
        }
        drop(state);
        Some(closed)
    }

    /// How many are inside.
    pub(crate) fn inside(&self) -> usize {
        self.state.lock().expect("no panic while held").inside
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.state.lock().expect("no panic while held").inside -= 1;
        self.0.changed.notify_all();
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.state.lock().expect("no panic while held").is_closed = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn it_closes_when_all_are_out_and_opens_when_that_takes_too_long() {
        let gate = Gate::default();
        let inside = gate.enter();
        assert!(gate.close(Duration::from_millis(20)).is_none(), "one is inside");
        drop(gate.enter());
        thread::scope(|scope| {
            let closer = scope.spawn(|| {
                let closed = gate.close(Duration::from_secs(10)).expect("the last one leaves");
                assert_eq!(gate.inside(), 0);
                assert!(gate.close(Duration::ZERO).is_none(), "closed already");
                drop(closed);
            });
            thread::sleep(Duration::from_millis(20));
            drop(inside);
            closer.join().unwrap();
        });
        drop(gate.enter());
    }
}

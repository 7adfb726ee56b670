//! Locks on ranges of a disk: shared ones for reads and writes, exclusive ones for what must see and change a range in
//! one step.
//!
//! First come, first served, so nobody waits for ever.

use std::ops::Range;
use std::sync::{Condvar, Mutex};

#[derive(Default)]
pub(crate) struct RangeLocks {
    queue: Mutex<Queue>,
    released: Condvar,
}

#[derive(Default)]
struct Queue {
    next_ticket: u64,
    /// Holders and waiters, by ticket. As many as there are requests in flight, so a walk is cheap.
    entries: Vec<Entry>,
}

struct Entry {
    ticket: u64,
    range: Range<u64>,
    is_exclusive: bool,
}

/// Holds a range until it is dropped.
#[must_use]
pub(crate) struct RangeGuard<'l> {
    locks: &'l RangeLocks,
    ticket: u64,
}

impl RangeLocks {
    pub(crate) fn shared(&self, range: Range<u64>) -> RangeGuard<'_> {
        self.acquire(range, false)
    }

    pub(crate) fn exclusive(&self, range: Range<u64>) -> RangeGuard<'_> {
        self.acquire(range, true)
    }

    fn acquire(&self, range: Range<u64>, is_exclusive: bool) -> RangeGuard<'_> {
        let mut queue = self.queue.lock().expect("no panic while held");
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        queue.entries.push(Entry { ticket, range: range.clone(), is_exclusive });
        let must_wait = |queue: &mut Queue| {
            queue.entries.iter().any(|other| {
                other.ticket < ticket
                    && (other.is_exclusive || is_exclusive)
                    && other.range.start < range.end
                    && range.start < other.range.end
            })
        };
        drop(self.released.wait_while(queue, must_wait).expect("no panic while held"));
        RangeGuard { locks: self, ticket }
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut queue = self.locks.queue.lock().expect("no panic while held");
        queue.entries.retain(|entry| entry.ticket != self.ticket);
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_waits_for_whom() {
        for (case, held, wanted, waits) in [
            ("two readers", (0..10, false), (5..15, false), false),
            ("exclusive waits for a reader", (0..10, false), (9..15, true), true),
            ("a reader waits for exclusive", (0..10, true), (9..15, false), true),
            ("neighbours", (0..10, true), (10..15, true), false),
        ] {
            let locks = RangeLocks::default();
            let guard = locks.acquire(held.0, held.1);
            thread::scope(|scope| {
                let (done, seen) = mpsc::channel();
                let locks = &locks;
                scope.spawn(move || {
                    drop(locks.acquire(wanted.0, wanted.1));
                    let _ = done.send(());
                });
                let early = seen.recv_timeout(Duration::from_millis(if waits { 50 } else { 5000 }));
                assert_eq!(early.is_err(), waits, "{case}");
                drop(guard);
                if waits {
                    seen.recv_timeout(Duration::from_secs(5)).expect(case);
                }
            });
        }
    }
}

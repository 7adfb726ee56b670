//! What all runs of a process share, so that many at a time cost little more than one: buffers, turns at reading, and
//! one session with the repository.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use kopia_repo::{Repository, SessionOptions, SharedSession, WriteError, WriteSession};

use crate::Cancel;
use crate::pipeline::READERS;

/// Disks read at a time, unless somebody says otherwise.
const DISKS_AT_ONCE: usize = 4;

/// Shared by everything that goes on in a process at the same time.
///
/// Memory: [`max_buffers`](Self::max_buffers) buffers of at most 4 MiB each between source and repository, and the packs
/// of one session, however many VMs and disks are backed up at once.
#[derive(Debug)]
pub struct Resources {
    turns: Turns,
    buffers: Buffers,
    session: Shared,
}

#[derive(Default)]
struct Shared(SharedSession);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedSession")
    }
}

impl Resources {
    /// For so many disks at a time.
    pub fn new(disks_at_once: usize) -> Self {
        let disks_at_once = disks_at_once.max(1);
        Self {
            turns: Turns { free: Mutex::new(disks_at_once), freed: Condvar::new() },
            buffers: Buffers::new(disks_at_once * READERS + 2 * cores()),
            session: Shared::default(),
        }
    }

    /// Buffers that exist at most.
    pub fn max_buffers(&self) -> usize {
        self.buffers.count
    }

    pub(crate) fn session(&self, repo: &Arc<Repository>) -> Result<WriteSession, WriteError> {
        self.session.0.open(repo, SessionOptions::default())
    }

    /// Waits for a turn at reading a disk; `None` if the caller is cancelled before.
    pub(crate) fn turn(&self, cancel: &Cancel) -> Option<Turn<'_>> {
        let mut free = self.turns.free.lock().expect("no panic while held");
        while *free == 0 {
            if cancel.is_cancelled() {
                return None;
            }
            free = self.turns.freed.wait_timeout(free, Duration::from_millis(200)).expect("no panic while held").0;
        }
        *free -= 1;
        Some(Turn(&self.turns))
    }

    pub(crate) fn buffers(&self) -> &Buffers {
        &self.buffers
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self::new(DISKS_AT_ONCE)
    }
}

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, |count| count.get())
}

#[derive(Debug)]
struct Turns {
    free: Mutex<usize>,
    freed: Condvar,
}

/// The right to read a disk, until it is dropped.
pub(crate) struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Ok(mut free) = self.0.free.lock() {
            *free += 1;
        }
        self.0.freed.notify_one();
    }
}

/// A fixed number of buffers. The one that was given back last is taken first, so that no more are touched than are in
/// use at the same time.
///
/// Whoever waits for one holds none that others need to go on: jobs take their numbers with a buffer in hand, so the
/// lowest number always has one.
#[derive(Debug)]
pub(crate) struct Buffers {
    count: usize,
    /// Those not in use, and how many more may be made.
    free: Mutex<(Vec<Vec<u8>>, usize)>,
    given_back: Condvar,
}

impl Buffers {
    pub(crate) fn new(count: usize) -> Self {
        Self { count, free: Mutex::new((Vec::new(), count)), given_back: Condvar::new() }
    }

    /// A buffer, or `None` when `give_up` says so while none is free.
    pub(crate) fn take(&self, give_up: impl Fn() -> bool) -> Option<Buffer<'_>> {
        let mut free = self.free.lock().expect("no panic while held");
        loop {
            if let Some(bytes) = free.0.pop() {
                return Some(Buffer { bytes, of: self });
            }
            if free.1 > 0 {
                free.1 -= 1;
                return Some(Buffer { bytes: Vec::new(), of: self });
            }
            if give_up() {
                return None;
            }
            free = self.given_back.wait_timeout(free, Duration::from_millis(100)).expect("no panic while held").0;
        }
    }
}

/// One of [`Buffers`], which goes back when it is dropped.
pub(crate) struct Buffer<'a> {
    pub(crate) bytes: Vec<u8>,
    of: &'a Buffers,
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // Also while a panic unwinds, so without one of its own.
        if let Ok(mut free) = self.of.free.lock() {
            free.0.push(std::mem::take(&mut self.bytes));
        }
        self.of.given_back.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn no_more_turns_and_buffers_than_there_are() {
        let resources = Resources::new(3);
        let (reading, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    let _turn = resources.turn(&Cancel::default()).unwrap();
                    most.fetch_max(reading.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(5));
                    reading.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(most.into_inner(), 3);

        let buffers = Buffers::new(2);
        let taken: Vec<_> = (0..2).map(|_| buffers.take(|| true).unwrap()).collect();
        assert!(buffers.take(|| true).is_none());
        drop(taken);
        assert!(buffers.take(|| true).is_some());
    }

    #[test]
    fn who_waits_for_a_turn_can_be_cancelled() {
        let resources = Resources::new(1);
        let cancel = Cancel::default();
        let turn = resources.turn(&cancel).unwrap();
        cancel.cancel();
        assert!(resources.turn(&cancel).is_none());
        drop(turn);
        assert!(resources.turn(&cancel).is_some());
    }
}

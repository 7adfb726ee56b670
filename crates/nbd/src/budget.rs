//! A bound on memory that many share.

use std::sync::{Condvar, Mutex, PoisonError};

/// So many bytes may be held at once; who wants more waits.
pub(crate) struct Budget {
    free_bytes: Mutex<u64>,
    freed: Condvar,
}

/// Bytes taken out of a [`Budget`] until this is dropped.
pub(crate) struct Share<'a> {
    budget: &'a Budget,
    bytes: u64,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { free_bytes: Mutex::new(bytes), freed: Condvar::new() }
    }

    /// The same without waiting; `None` when they are not free now.
    pub(crate) fn try_take(&self, bytes: u64) -> Option<Share<'_>> {
        let mut free = self.free_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *free = free.checked_sub(bytes)?;
        Some(Share { budget: self, bytes })
    }

    /// Waits until `bytes` are free. Must not be called for more than there is in all.
    pub(crate) fn take(&self, bytes: u64) -> Share<'_> {
        let free = self.free_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.freed.wait_while(free, |free| *free < bytes);
        *waited.unwrap_or_else(PoisonError::into_inner) -= bytes;
        Share { budget: self, bytes }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *self.budget.free_bytes.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        self.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn never_more_is_held_than_there_is() {
        let budget = Budget::new(10);
        let held = AtomicU64::new(0);
        let most = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for bytes in [1, 3, 6, 7, 10, 10] {
                let (budget, held, most) = (&budget, &held, &most);
                scope.spawn(move || {
                    for _ in 0..200 {
                        let share = budget.take(bytes);
                        most.fetch_max(held.fetch_add(bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
                        std::thread::yield_now();
                        held.fetch_sub(bytes, Ordering::SeqCst);
                        drop(share);
                    }
                });
            }
        });
        let share = budget.try_take(7);
        assert!(share.is_some() && budget.try_take(4).is_none() && budget.try_take(3).is_some());
        drop(share);
        assert_eq!(most.into_inner(), 10, "all of it was in use at some time, and never more");
        assert_eq!(*budget.free_bytes.lock().unwrap(), 10);
    }
}

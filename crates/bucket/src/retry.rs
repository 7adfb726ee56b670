//! Making failed calls again.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use md5::{Digest, Md5};

use crate::random::random_u64;
use crate::{Bucket, BucketError, ErrorKind, ObjectMeta, PutOptions, PutOutcome};

/// Makes calls on `B` again while they fail with a transient kind, waiting longer each time.
///
/// All calls may be made twice safely: puts and deletes have the same effect again, and listings go on where they
/// were without showing an object twice. A conditional put whose first answer was lost finds its own object in the
/// way; it then counts as done if the body stored is the body sent. Two writers that race for a key with the
/// very same body may therefore both win.
pub struct Retrying<B> {
    inner: B,
    policy: RetryPolicy,
    clock: Arc<dyn Clock>,
}

/// How long to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Wait after the first failure; doubles with every further one. Every wait is shortened at random by up to
    /// half, so that many clients do not come back at the same instant.
    pub first_wait: Duration,
    /// Longest wait between two attempts.
    pub longest_wait: Duration,
    /// No attempt starts later than this after the first one started. An attempt that has started is not stopped.
    pub give_up_after: Duration,
}

impl Default for RetryPolicy {
    /// From 0.2 s up to 15 s between attempts, for five minutes: longer than a server needs to restart.
    fn default() -> Self {
        Self {
            first_wait: Duration::from_millis(200),
            longest_wait: Duration::from_secs(15),
            give_up_after: Duration::from_secs(300),
        }
    }
}

/// Time as [`Retrying`] sees it.
pub trait Clock: Send + Sync {
    /// Time since some fixed instant; never goes back.
    fn now(&self) -> Duration;
    /// Waits.
    fn sleep(&self, duration: Duration);
}

/// The clock of this machine.
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }
    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

impl<B: Bucket> Retrying<B> {
    /// On the clock of this machine.
    pub fn new(inner: B, policy: RetryPolicy) -> Self {
        Self::with_clock(inner, policy, Arc::new(SystemClock::default()))
    }

    /// On another clock.
    pub fn with_clock(inner: B, policy: RetryPolicy, clock: Arc<dyn Clock>) -> Self {
        Self { inner, policy, clock }
    }

    /// The bucket underneath, which does not retry.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    fn retry<T>(&self, mut call: impl FnMut(u32) -> Result<T, BucketError>) -> Result<T, BucketError> {
        let start = self.clock.now();
        let mut wait = self.policy.first_wait;
        for failures in 1.. {
            let error = match call(failures - 1) {
                Err(error) if error.kind().is_transient() => error,
                result => return result,
            };
            let pause = shorten(wait);
            let elapsed = self.clock.now().saturating_sub(start);
            if elapsed.saturating_add(pause) > self.policy.give_up_after {
                let seconds = elapsed.as_secs();
                return Err(error.with_remark(format_args!("gave up after {failures} attempts in {seconds} s")));
            }
            // The caller waits without a word: whoever looks at the trace can tell that from hanging.
            tracing::warn!(%error, failures, wait_ms = pause.as_millis() as u64, "the store did not answer, trying again");
            self.clock.sleep(pause);
            wait = wait.saturating_mul(2).min(self.policy.longest_wait);
        }
        unreachable!("the deadline passes before attempts run out of numbers")
    }

    /// Whether the object holds exactly these bytes.
    fn holds(&self, key: &str, body: &[&[u8]]) -> Result<bool, BucketError> {
        let stored = match self.get(key) {
            Ok(stored) => stored,
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut rest = &stored[..];
        Ok(body.iter().all(|piece| rest.strip_prefix(*piece).inspect(|left| rest = left).is_some()) && rest.is_empty())
    }
}

/// A random duration between half of `wait` and all of it.
fn shorten(wait: Duration) -> Duration {
    let half = wait / 2;
    let thousandths = (random_u64() % 1001) as u32;
    half + half / 1000 * thousandths
}

impl<B: Bucket> Bucket for Retrying<B> {
    fn put(&self, key: &str, body: &[&[u8]], options: &PutOptions) -> Result<PutOutcome, BucketError> {
        let mut failures = 0;
        let result = self.retry(|failed| {
            failures = failed;
            self.inner.put(key, body, options)
        });
        match result {
            Err(error) if failures > 0 && error.kind() == ErrorKind::PreconditionFailed => {
                if self.holds(key, body)? {
                    Ok(PutOutcome { etag: self.head(key)?.etag, version: None })
                } else {
                    Err(error)
                }
            }
            result => result,
        }
    }

    fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.retry(|_| self.inner.get(key))
    }

    fn get_range(&self, key: &str, offset_bytes: u64, len_bytes: u64) -> Result<Bytes, BucketError> {
        self.retry(|_| self.inner.get_range(key, offset_bytes, len_bytes))
    }

    fn list(&self, prefix: &str, visit: &mut dyn FnMut(ObjectMeta) -> ControlFlow<()>) -> Result<(), BucketError> {
        // Digests of the keys shown, 16 bytes each: keys of a large listing would take several times the memory,
        // and stores need not list in the same order twice.
        let mut shown = HashSet::new();
        let mut seen_enough = false;
        self.retry(|_| {
            let listed = self.inner.list(prefix, &mut |object| {
                let digest: [u8; 16] = Md5::digest(object.key.as_bytes()).into();
                let next = if shown.insert(digest) { visit(object) } else { ControlFlow::Continue(()) };
                seen_enough = next.is_break();
                next
            });
            // What goes wrong after the visitor has stopped is of no interest to it.
            if seen_enough { Ok(()) } else { listed }
        })
    }

    fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.retry(|_| self.inner.head(key))
    }

    fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.retry(|_| self.inner.delete(key))
    }

    fn display_name(&self) -> String {
        self.inner.display_name()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{Fault, Faulty, Memory, Operation};

    /// Sleeping moves this clock and takes no time.
    #[derive(Default)]
    struct VirtualClock {
        now: Mutex<Duration>,
        sleeps: Mutex<Vec<Duration>>,
    }

    impl Clock for VirtualClock {
        fn now(&self) -> Duration {
            *self.now.lock().unwrap()
        }
        fn sleep(&self, duration: Duration) {
            *self.now.lock().unwrap() += duration;
            self.sleeps.lock().unwrap().push(duration);
        }
    }

    fn failing(first: u64, fault: Fault) -> Faulty<Memory> {
        Faulty::with_script(Memory::new(), move |call| if call.number < first { fault } else { Fault::Pass })
    }

    fn retrying(inner: Faulty<Memory>) -> (Retrying<Faulty<Memory>>, Arc<VirtualClock>) {
        let clock = Arc::new(VirtualClock::default());
        (Retrying::with_clock(inner, RetryPolicy::default(), clock.clone()), clock)
    }

    #[test]
    fn waits_grow_to_the_longest_and_end_at_the_deadline() {
        let (bucket, clock) = retrying(failing(u64::MAX, Fault::FailBefore(ErrorKind::Unreachable)));
        let error = bucket.get("k").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        let policy = RetryPolicy::default();
        let sleeps = clock.sleeps.lock().unwrap();
        assert!(error.to_string().contains(&format!("{} attempts", sleeps.len() + 1)), "{error}");
        let mut full = policy.first_wait;
        for (n, sleep) in sleeps.iter().enumerate() {
            assert!(*sleep >= full / 2 && *sleep <= full, "wait {n}: {sleep:?} of {full:?}");
            full = (full * 2).min(policy.longest_wait);
        }
        assert!(clock.now() <= policy.give_up_after && clock.now() + policy.longest_wait > policy.give_up_after);
    }

    #[test]
    fn only_transient_kinds_are_tried_again() {
        for (kind, attempts) in [
            (ErrorKind::Unreachable, 3),
            (ErrorKind::Corrupt, 3),
            (ErrorKind::NotFound, 1),
            (ErrorKind::PreconditionFailed, 1),
            (ErrorKind::RangeNotSatisfiable, 1),
            (ErrorKind::AccessDenied, 1),
            (ErrorKind::NoSpace, 1),
            (ErrorKind::Unsupported, 1),
            (ErrorKind::Other, 1),
        ] {
            let (bucket, _) = retrying(failing(2, Fault::FailBefore(kind)));
            let result = bucket.put("k", &[b"x"], &PutOptions::default());
            assert_eq!(result.is_ok(), attempts == 3, "{kind:?}");
            assert_eq!(bucket.inner().tally().calls(Operation::Put), attempts, "{kind:?}");
        }
    }

    #[test]
    fn a_conditional_put_recognises_its_own_work() {
        let (bucket, _) = retrying(failing(1, Fault::FailAfter(ErrorKind::Unreachable)));
        let outcome = bucket.put("k", &[b"mi", b"ne"], &PutOptions::if_absent()).unwrap();
        assert_eq!(outcome.etag, bucket.head("k").unwrap().etag);

        // The object of another writer, put before ours got through, stays.
        for other in [&b"their"[..], b"min", b"mine!", b""] {
            let (bucket, _) = retrying(failing(1, Fault::FailBefore(ErrorKind::Unreachable)));
            bucket.inner().inner().put("k", &[other], &PutOptions::default()).unwrap();
            let error = bucket.put("k", &[b"mi", b"ne"], &PutOptions::if_absent()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PreconditionFailed, "{other:?}");
            assert_eq!(bucket.get("k").unwrap(), other);
        }

        // Without a failure before it, a refusal is a refusal even if the bytes are equal.
        let (bucket, _) = retrying(failing(0, Fault::Pass));
        bucket.put("k", &[b"mine"], &PutOptions::if_absent()).unwrap();
        bucket.put("k", &[b"mine"], &PutOptions::if_absent()).unwrap_err();
    }

    #[test]
    fn a_listing_that_broke_off_shows_nothing_twice() {
        let (bucket, _) = retrying(failing(0, Fault::Pass));
        for n in 0..10 {
            bucket.put(&format!("k{n}"), &[b"x"], &PutOptions::default()).unwrap();
        }
        let mut cuts = [4, 7].into_iter();
        bucket.inner().set_script(move |_| cuts.next().map_or(Fault::Pass, Fault::Cut));
        let mut seen = Vec::new();
        bucket
            .list("", &mut |object| {
                seen.push(object.key);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(seen, (0..10).map(|n| format!("k{n}")).collect::<Vec<_>>());
        assert_eq!(bucket.inner().tally().calls(Operation::List), 3);

        let mut failures = [Fault::FailAfter(ErrorKind::Unreachable)].into_iter();
        bucket.inner().set_script(move |_| failures.next().unwrap_or(Fault::Pass));
        let mut count = 0;
        bucket
            .list("", &mut |_| {
                count += 1;
                ControlFlow::Break(())
            })
            .unwrap();
        assert_eq!(count, 1, "a visitor that has stopped is not shown more");
    }
}

//! Rate limits: a [`RateLimiter`] hands out bytes at a rate, a [`Throttled`] bucket asks one for what it moves.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use bytes::Bytes;

use crate::{Bucket, BucketError, Clock, ObjectMeta, PutOptions, PutOutcome};

/// Longest sleep before the rate is looked at again: a changed limit is felt this soon.
const LONGEST_SLEEP: Duration = Duration::from_millis(250);
/// Part of a second that an idle limiter saves up.
const BURST: f64 = 0.1;

/// Bytes per second now; `None` for no limit. Asked anew several times a second while anybody waits.
pub type Rate = dyn Fn() -> Option<u64> + Send + Sync;

/// Hands out bytes at a rate, in the order in which they are asked for, whoever asks.
///
/// Whoever takes bytes waits until all of them have become due: over any time, not more passes than the rate allows,
/// but for a tenth of a second's worth after an idle time. The rate may change at any moment, also while others wait.
pub struct RateLimiter {
    clock: Arc<dyn Clock>,
    rate: RwLock<Arc<Rate>>,
    account: Mutex<Account>,
}

/// Bytes since the limiter was made.
#[derive(Default)]
struct Account {
    /// Asked for.
    taken: f64,
    /// Become due; never more than a burst ahead of `taken`.
    due: f64,
    /// Until when `due` is counted.
    until: Duration,
}

impl RateLimiter {
    /// One without a limit, for now.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let account = Mutex::new(Account { until: clock.now(), ..Account::default() });
        Self { clock, rate: RwLock::new(Arc::new(|| None)), account }
    }

    /// From now on, this rate.
    pub fn set_rate(&self, rate: impl Fn() -> Option<u64> + Send + Sync + 'static) {
        // What became due until now did so at the old rate.
        drop(self.settle());
        *self.rate.write().expect("no panic while held") = Arc::new(rate);
    }

    /// Bytes per second at the moment.
    pub fn rate(&self) -> Option<u64> {
        let rate = self.rate.read().expect("no panic while held").clone();
        rate()
    }

    /// Waits for `bytes`, unless `give_up` says that they are no longer wanted; says whether they may be moved, and how
    /// long that took.
    pub fn take(&self, bytes: u64, give_up: &dyn Fn() -> bool) -> (bool, Duration) {
        let mine = self.ask(bytes);
        self.wait(mine, bytes, give_up)
    }

    /// Waits for `bytes` of all limiters, which wait side by side: together they are as slow as the slowest.
    pub fn take_of_all(limiters: &[Arc<Self>], bytes: u64, give_up: &dyn Fn() -> bool) -> (bool, Duration) {
        let asked: Vec<f64> = limiters.iter().map(|limiter| limiter.ask(bytes)).collect();
        let mut all = (true, Duration::ZERO);
        for (limiter, mine) in limiters.iter().zip(asked) {
            let (moved, waited) = limiter.wait(mine, bytes, give_up);
            all = (all.0 && moved, all.1 + waited);
        }
        all
    }

    /// Up to where bytes must have become due.
    fn ask(&self, bytes: u64) -> f64 {
        let mut account = self.settle();
        account.taken += bytes as f64;
        account.taken
    }

    fn wait(&self, mine: f64, bytes: u64, give_up: &dyn Fn() -> bool) -> (bool, Duration) {
        let begun = self.clock.now();
        loop {
            let rate = self.rate();
            let missing = mine - self.settle().due;
            let Some(rate) = rate.filter(|_| missing > 0.0) else {
                return (true, self.clock.now().saturating_sub(begun));
            };
            if give_up() {
                // Not moved, so not owed: those behind need not wait for it.
                self.settle().due += bytes as f64;
                return (false, self.clock.now().saturating_sub(begun));
            }
            let wait =
                if rate == 0 { LONGEST_SLEEP } else { Duration::from_secs_f64((missing / rate as f64).min(0.25)) };
            // At least a nanosecond, or a rest too small for the clock would be waited for in vain.
            self.clock.sleep(wait.clamp(Duration::from_nanos(1), LONGEST_SLEEP));
        }
    }

    /// The account as of now.
    fn settle(&self) -> MutexGuard<'_, Account> {
        let rate = self.rate();
        let mut account = self.account.lock().expect("no panic while held");
        let now = self.clock.now();
        let passed = now.saturating_sub(account.until).as_secs_f64();
        account.until = account.until.max(now);
        account.due = match rate {
            Some(rate) => (account.due + passed * rate as f64).min(account.taken + rate as f64 * BURST),
            // Nobody owes anything while there is no limit.
            None => account.due.max(account.taken),
        };
        account
    }
}

impl std::fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLimiter").field("rate", &self.rate()).finish_non_exhaustive()
    }
}

/// Limiters that apply together: bytes pass when each of them lets them.
pub type Limiters = Vec<Arc<RateLimiter>>;

/// A bucket that moves bodies no faster than its limiters allow. Requests without a body are not counted.
///
/// It belongs above [`Retrying`](crate::Retrying): bytes that a broken request sent in vain are not counted, which is
/// little beside what a retry waits.
pub struct Throttled<B> {
    inner: B,
    up: Limiters,
    down: Limiters,
}

impl<B: Bucket> Throttled<B> {
    /// Limits for what is sent and for what is received.
    pub fn new(inner: B, up: Limiters, down: Limiters) -> Self {
        Self { inner, up, down }
    }

    fn wait(limiters: &Limiters, bytes: u64) {
        RateLimiter::take_of_all(limiters, bytes, &|| false);
    }
}

impl<B: Bucket> Bucket for Throttled<B> {
    fn put(&self, key: &str, body: &[&[u8]], options: &PutOptions) -> Result<PutOutcome, BucketError> {
        Self::wait(&self.up, body.iter().map(|piece| piece.len() as u64).sum());
        self.inner.put(key, body, options)
    }

    fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        // How much it is shows only afterwards: the next request waits for it.
        let body = self.inner.get(key)?;
        Self::wait(&self.down, body.len() as u64);
        Ok(body)
    }

    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Bytes, BucketError> {
        let body = self.inner.get_range(key, offset, len)?;
        Self::wait(&self.down, body.len() as u64);
        Ok(body)
    }

    fn list(&self, prefix: &str, visit: &mut dyn FnMut(ObjectMeta) -> ControlFlow<()>) -> Result<(), BucketError> {
        self.inner.list(prefix, visit)
    }

    fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.inner.head(key)
    }

    fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.inner.delete(key)
    }

    fn display_name(&self) -> String {
        self.inner.display_name()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use super::*;
    use crate::SystemClock;

    /// Moves only when somebody sleeps.
    #[derive(Default)]
    struct Virtual(Mutex<Duration>);

    impl Clock for Virtual {
        fn now(&self) -> Duration {
            *self.0.lock().unwrap()
        }
        fn sleep(&self, duration: Duration) {
            *self.0.lock().unwrap() += duration;
        }
    }

    fn limiter(rate: Option<u64>) -> (Arc<Virtual>, RateLimiter) {
        let clock = Arc::new(Virtual::default());
        let limiter = RateLimiter::new(clock.clone());
        limiter.set_rate(move || rate);
        (clock, limiter)
    }

    #[test]
    fn bytes_pass_at_the_rate_to_the_millisecond() {
        for (rate, piece, pieces) in
            [(1_000_000, 1, 5000), (1_000_000, 777_777, 9), (50 << 20, 22 << 20, 40), (3, 10, 4)]
        {
            let (clock, limiter) = limiter(Some(rate));
            for _ in 0..pieces {
                assert!(limiter.take(piece, &|| false).0);
            }
            let expected = (piece * pieces) as f64 / rate as f64;
            let took = clock.now().as_secs_f64();
            assert!((took - expected).abs() < 0.001, "{pieces} × {piece} at {rate}: {took} s instead of {expected}");
        }
    }

    #[test]
    fn an_idle_time_saves_up_a_tenth_of_a_second_and_no_more() {
        let (clock, limiter) = limiter(Some(1000));
        clock.sleep(Duration::from_secs(3600));
        limiter.take(1100, &|| false);
        assert_eq!(clock.now().as_millis(), 3_601_000);
    }

    #[test]
    fn a_changed_rate_is_felt_by_those_who_wait() {
        let clock = Arc::new(Virtual::default());
        let limiter = RateLimiter::new(clock.clone());
        // A window: slow for ten seconds, then fast, then none at all.
        let of_clock = clock.clone();
        limiter.set_rate(move || match of_clock.now().as_secs() {
            0..10 => Some(100),
            10..20 => Some(1000),
            _ => None,
        });
        // 1000 in the first ten seconds, 10,000 in the next; what is left passes when the limit goes.
        limiter.take(6000, &|| false);
        let took = clock.now().as_secs_f64();
        assert!((took - 15.0).abs() < 0.3, "{took}");
        limiter.take(1 << 40, &|| false);
        let took = clock.now().as_secs_f64();
        assert!((took - 20.0).abs() < 0.3, "{took}");
    }

    #[test]
    fn a_rate_of_zero_holds_until_it_changes_or_somebody_gives_up() {
        let (clock, limiter) = limiter(Some(0));
        let until = clock.clone();
        assert!(!limiter.take(1, &|| until.now() > Duration::from_secs(60)).0);
        limiter.set_rate(|| Some(1000));
        let before = clock.now();
        limiter.take(1000, &|| false);
        // What was given up is not owed.
        assert_eq!((clock.now() - before).as_millis(), 1000);
    }

    #[test]
    fn many_share_one_rate() {
        let limiter = Arc::new(RateLimiter::new(Arc::new(SystemClock::default())));
        limiter.set_rate(|| Some(20_000_000));
        let moved = Arc::new(AtomicU64::new(0));
        let begun = std::time::Instant::now();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        limiter.take(100_000, &|| false);
                        moved.fetch_add(100_000, Ordering::Relaxed);
                    }
                });
            }
        });
        let took = begun.elapsed().as_secs_f64();
        let rate = moved.load(Ordering::Relaxed) as f64 / took;
        println!("20.0 MB/s asked for, {:.1} MB/s reached by four threads", rate / 1e6);
        // A slow machine may be slower, never faster.
        assert!(rate <= 20_000_000.0 * 1.01, "{rate}");
    }
}

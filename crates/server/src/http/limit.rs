//! Rate limits (spec control-api 1.7): token buckets, and blocks after too many failures, in memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;

use jiff::Timestamp;

/// So many calls per second, with so many at once.
#[derive(Debug)]
pub struct Buckets<K> {
    per_second: f64,
    burst: f64,
    buckets: Mutex<HashMap<K, (f64, Timestamp)>>,
}

/// More keys than this are not remembered: full buckets are forgotten first.
const MOST_KEYS: usize = 50_000;

impl<K: Hash + Eq> Buckets<K> {
    /// `(calls per second, burst)`.
    pub fn new((per_second, burst): (f64, f64)) -> Self {
        Self { per_second, burst, buckets: Mutex::default() }
    }

    /// Takes one call of that key; else the seconds to wait.
    pub fn take(&self, key: K, now: Timestamp) -> Result<(), u64> {
        let mut buckets = self.buckets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if buckets.len() >= MOST_KEYS {
            buckets.retain(|_, (left, since)| *left + self.per_second * seconds(*since, now) < self.burst);
        }
        let (left, since) = buckets.entry(key).or_insert((self.burst, now));
        *left = (*left + self.per_second * seconds(*since, now)).min(self.burst);
        *since = now;
        if *left >= 1.0 {
            *left -= 1.0;
            return Ok(());
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds, never negative")]
        Err(((1.0 - *left) / self.per_second).ceil().max(1.0) as u64)
    }
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    // A clock that was set back gives nothing, and takes nothing.
    to.duration_since(from).as_secs_f64().max(0.0)
}

/// So many attempts within a minute; after that none for a quarter of an hour.
#[derive(Debug)]
pub struct Attempts<K> {
    allowed: u32,
    seen: Mutex<HashMap<K, (u32, Timestamp)>>,
}

const WINDOW_SECS: i64 = 60;
const BLOCK_SECS: i64 = 15 * 60;

impl<K: Hash + Eq> Attempts<K> {
    /// `allowed` per minute.
    pub fn new(allowed: u32) -> Self {
        Self { allowed, seen: Mutex::default() }
    }

    /// Whether that key may try; else the seconds to wait.
    pub fn check(&self, key: &K, now: Timestamp) -> Result<(), u64> {
        let seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match seen.get(key) {
            Some((count, until)) if *count >= self.allowed && *until > now => {
                Err(until.duration_since(now).as_secs().unsigned_abs().max(1))
            }
            _ => Ok(()),
        }
    }

    /// Counts an attempt of that key.
    pub fn count(&self, key: K, now: Timestamp) {
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if seen.len() >= MOST_KEYS {
            seen.retain(|_, (_, until)| *until > now);
        }
        let (count, until) = seen.entry(key).or_insert((0, now));
        if *until <= now {
            *count = 0;
            *until = crate::clock::after(now, WINDOW_SECS);
        }
        *count += 1;
        if *count == self.allowed {
            *until = crate::clock::after(now, BLOCK_SECS);
        }
    }

    /// Forgets that key.
    pub fn clear(&self, key: &K) {
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_a_burst_pass_and_then_its_rate() {
        let buckets = Buckets::new((2.0, 3.0));
        let at = |ms: i64| Timestamp::from_millisecond(1_000_000 + ms).expect("time");
        for (case, ms, key, expected) in [
            ("first of the burst", 0, "a", Ok(())),
            ("second", 0, "a", Ok(())),
            ("third", 0, "a", Ok(())),
            ("one too many", 0, "a", Err(1)),
            ("another key has its own", 0, "b", Ok(())),
            ("half a second gives one", 500, "a", Ok(())),
            ("and no more", 500, "a", Err(1)),
            ("a clock set back gives nothing", 0, "a", Err(1)),
        ] {
            assert_eq!(buckets.take(key, at(ms)), expected, "{case}");
        }
    }

    #[test]
    fn after_too_many_attempts_there_is_a_quarter_of_an_hour_without() {
        let attempts = Attempts::new(3);
        let at = |secs: i64| Timestamp::from_second(1_000_000 + secs).expect("time");
        for secs in [0, 1, 2] {
            assert_eq!(attempts.check(&"a", at(secs)), Ok(()));
            attempts.count("a", at(secs));
        }
        assert_eq!(attempts.check(&"a", at(2)), Err(900));
        assert_eq!(attempts.check(&"b", at(2)), Ok(()));
        assert_eq!(attempts.check(&"a", at(901)), Err(1));
        assert_eq!(attempts.check(&"a", at(902)), Ok(()));
        attempts.count("a", at(902));
        assert_eq!(attempts.check(&"a", at(902)), Ok(()), "a new minute begins at one");
    }
}

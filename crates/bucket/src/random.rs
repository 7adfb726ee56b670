//! Random numbers good enough for names that must differ and for spreading retries; not for keys.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// 64 random bits. `RandomState` is seeded by the operating system once per thread, so process, time and a
/// counter are mixed in.
pub(crate) fn random_u64() -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(CALLS.fetch_add(1, Ordering::Relaxed));
    hasher.write_u32(std::process::id());
    if let Ok(since_epoch) = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        hasher.write_u128(since_epoch.as_nanos());
    }
    hasher.finish()
}

/// 16 random hexadecimal digits.
pub(crate) fn random_hex() -> String {
    format!("{:016x}", random_u64())
}

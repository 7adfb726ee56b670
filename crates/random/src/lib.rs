//! Random bytes: the operating system's, or, in a simulation, a seed's.
//!
//! Ids, nonces, padding and samples all come from [`fill`] and [`bytes()`]. A program that never calls
//! [`seed_this_thread`] gets nothing but the operating system's cryptographic generator. A simulation that must play
//! the same story twice seeds its own thread and starts no other.
//!
//! Nonces out of a seed protect nothing, so `xtask/tests/seeded.rs` sees to it that only the simulation seeds.

use std::cell::RefCell;
use std::marker::PhantomData;

thread_local! {
    static SEEDED: RefCell<Option<SplitMix>> = const { RefCell::new(None) };
}

/// Overwrites `buf` with random bytes.
///
/// # Panics
/// If the operating system has none, which leaves nothing sensible to do.
pub fn fill(buf: &mut [u8]) {
    let seeded = SEEDED.with_borrow_mut(|seeded| seeded.as_mut().map(|source| source.fill(buf)));
    if seeded.is_none() {
        getrandom::fill(buf).expect("the operating system gives random bytes");
    }
}

/// `N` random bytes; panics as [`fill`] does.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

/// Lower-case hex digits, two for each of `bytes` random bytes; panics as [`fill`] does.
pub fn hex(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    fill(&mut random);
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Until the guard is dropped, this thread's random bytes follow from `seed`; then they come from where they came
/// before.
pub fn seed_this_thread(seed: u64) -> SeededThread {
    SeededThread { before: SEEDED.replace(Some(SplitMix::new(seed))), of_this_thread: PhantomData }
}

/// Ends what [`seed_this_thread`] began.
#[derive(Debug)]
#[must_use = "the thread is seeded only as long as this lives"]
pub struct SeededThread {
    before: Option<SplitMix>,
    of_this_thread: PhantomData<*const ()>,
}

impl Drop for SeededThread {
    fn drop(&mut self) {
        SEEDED.set(self.before.take());
    }
}

/// The SplitMix64 generator (Steele, Lea, Flood 2014): small, and the same everywhere. Not for secrets.
#[derive(Clone, Debug)]
pub struct SplitMix(u64);

impl SplitMix {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 for a limit of 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(limit)) >> 64) as u64
    }

    /// Overwrites `buf`.
    pub fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_its_end_is_the_end() {
        let draw = |seed| {
            let _seeded = seed_this_thread(seed);
            (bytes::<20>(), hex(3))
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_ne!(bytes::<20>(), draw(1).0, "unseeded again");
        assert_ne!(bytes::<20>(), bytes::<20>(), "the operating system's");
        assert_eq!(hex(3).len(), 6);
    }

    #[test]
    fn seeds_nest_and_other_threads_are_not_seeded() {
        let _outer = seed_this_thread(1);
        let first: [u8; 8] = bytes();
        drop(seed_this_thread(2));
        let second: [u8; 8] = bytes();
        let mut expected = SplitMix::new(1);
        assert_eq!([first, second], [expected.next_u64().to_le_bytes(), expected.next_u64().to_le_bytes()]);
        let there = std::thread::spawn(bytes::<8>).join().expect("it does not panic");
        assert_ne!(there, SplitMix::new(1).next_u64().to_le_bytes());
    }
}

//! The common inputs of the test vectors (kopia-format 11).

use super::repository_format::RepositoryFormat;

/// `n` bytes: `start`, `start + 1`, and so on.
pub(crate) fn seq<const N: usize>(start: u8) -> [u8; N] {
    std::array::from_fn(|at| start.wrapping_add(at as u8))
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    assert_eq!(text.len() % 2, 0, "an even number of digits");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("digits")).collect()
}

pub(crate) fn unique_id() -> [u8; 32] {
    seq(0)
}

pub(crate) fn secret() -> [u8; 32] {
    seq(0x40)
}

pub(crate) fn master_key() -> [u8; 32] {
    seq(0x80)
}

pub(crate) fn nonce() -> [u8; 12] {
    seq(0)
}

pub(crate) const PASSWORD: &str = "test-password";

/// A small generator for mutation tests, seeded so that a failure can be repeated (SplitMix64).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// `bytes` with one to four changes: a byte set, a bit flipped, bytes removed, repeated or inserted, or the end cut.
    pub(crate) fn mutate(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut changed = bytes.to_vec();
        for _ in 0..=self.below(4) {
            if changed.is_empty() {
                changed.push(self.next() as u8);
                continue;
            }
            let at = self.below(changed.len());
            match self.below(7) {
                0 => changed[at] = self.next() as u8,
                1 => changed[at] ^= 1 << self.below(8),
                2 => changed[at] = [0, 0xff, 0x7f, 0x80][self.below(4)],
                3 => changed.truncate(at),
                4 => drop(changed.remove(at)),
                5 => changed.insert(at, self.next() as u8),
                _ => {
                    let end = at + self.below(changed.len() - at + 1);
                    let copy = changed[at..end].to_vec();
                    changed.splice(at..at, copy);
                }
            }
        }
        changed
    }
}

/// A format of version 3 with these secrets.
pub(crate) fn common_format() -> RepositoryFormat {
    RepositoryFormat {
        secret: secret().to_vec().into(),
        master_key: master_key().to_vec().into(),
        ..RepositoryFormat::new_v3("BLAKE2B-256-128", "AES256-GCM-HMAC-SHA256", "DYNAMIC-4M-BUZHASH")
    }
}

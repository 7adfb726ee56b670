//! Random bytes for keys, nonces, names and padding.

/// `N` random bytes.
///
/// # Panics
/// If the operating system has none, which leaves nothing sensible to do.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    random::bytes()
}

/// Overwrites `bytes` with random ones; panics as [`bytes()`] does.
pub(crate) fn fill(bytes: &mut [u8]) {
    random::fill(bytes);
}

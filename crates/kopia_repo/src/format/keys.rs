//! Key derivations: from the password to the format key, and from the master key to everything else.
//!
//! What is derived is overwritten in memory when it is dropped.

use ring::{hkdf, pbkdf2};
use zeroize::Zeroizing;

/// Bytes of every key that encrypts.
pub const KEY_BYTES: usize = 32;

/// The shortest salt that the password derivations accept, in bytes (kopia-format 2.2).
pub const MIN_SALT_BYTES: usize = 16;

/// The `keyAlgo` of new repositories.
pub const SCRYPT: &str = "scrypt-65536-8-1";

/// The other known `keyAlgo`.
pub const PBKDF2: &str = "pbkdf2-sha256-600000";

/// Why no key can be derived from a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyDerivationError {
    /// The `keyAlgo` of the format blob is neither [`SCRYPT`] nor [`PBKDF2`].
    #[error("the password derivation {name:?} is not known")]
    UnknownAlgorithm {
        /// The refused name.
        name: String,
    },
    /// The `uniqueID` of the format blob is too short to be a salt.
    #[error("the unique ID has {len} bytes, and a salt needs at least {MIN_SALT_BYTES}")]
    ShortSalt {
        /// Bytes of the unique ID.
        len: usize,
    },
}

/// The key of the format blob. Takes about a tenth of a second and, with scrypt, 64 MiB of memory; both on purpose.
pub fn format_key(
    algorithm: &str,
    password: &str,
    unique_id: &[u8],
) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyDerivationError> {
    if unique_id.len() < MIN_SALT_BYTES {
        return Err(KeyDerivationError::ShortSalt { len: unique_id.len() });
    }
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    match algorithm {
        SCRYPT => {
            let params = scrypt::Params::new(16, 8, 1).expect("the parameters are within scrypt's limits");
            scrypt::scrypt(password.as_bytes(), unique_id, &params, &mut key[..])
                .expect("32 bytes are a valid key length");
        }
        PBKDF2 => {
            let iterations = std::num::NonZeroU32::new(600_000).expect("not zero");
            pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, unique_id, password.as_bytes(), &mut key[..]);
        }
        _ => return Err(KeyDerivationError::UnknownAlgorithm { name: algorithm.chars().take(80).collect() }),
    }
    Ok(key)
}

/// HKDF of RFC 5869 with SHA-256.
pub fn hkdf_sha256<const N: usize>(key: &[u8], salt: &[u8], info: &[u8]) -> Zeroizing<[u8; N]> {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    const { assert!(N <= 255 * 32, "HKDF gives at most 255 blocks") };
    let mut derived = Zeroizing::new([0; N]);
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(key)
        .expand(&[info], Length(N))
        .and_then(|okm| okm.fill(&mut derived[..]))
        .expect("the length is within HKDF's limit");
    derived
}

/// The key that per-content keys are derived from. The purpose is the salt, the info is empty (kopia-format 2.4).
pub fn content_secret_key(master_key: &[u8]) -> Zeroizing<[u8; KEY_BYTES]> {
    hkdf_sha256(master_key, b"encryption", b"")
}

#[cfg(test)]
mod tests {
    use super::super::test_vectors::{PASSWORD, master_key, unhex, unique_id};
    use super::*;

    #[test]
    fn derivations_agree_with_kopia() {
        let scrypt = format_key(SCRYPT, PASSWORD, &unique_id()).unwrap();
        for (derived, expected, what) in [
            (scrypt.clone(), "c25bccae074678f4ce6443ce46b56229e112e00ee0e52a53ff3ab35aeec3bac7", "scrypt"),
            (
                format_key(PBKDF2, PASSWORD, &unique_id()).unwrap(),
                "8aba72dadfcd3b59e16a4f57d805f18dcf81b29fa8c9046e8fa8a899ea4f1248",
                "pbkdf2",
            ),
            (
                hkdf_sha256(&scrypt[..], &unique_id(), b"AES"),
                "dea70e93a79e69145302bb312d93eae1c647df3432c8467955f6d6d09554d1fd",
                "AES",
            ),
            (
                hkdf_sha256(&scrypt[..], &unique_id(), b"CHECKSUM"),
                "eb11c3d7fc8134db288d5d8155c8013cfb4d610a5abf51c23bc33444ee208a0b",
                "CHECKSUM",
            ),
            (
                hkdf_sha256(b"ABCDEFGHIJKLMNOP", b"0123456789012345", b"the-test-purpose"),
                "828769ee8969bc37f11dbaa32838f8db6c19daa6e3ae5f5eed2da2d94d8faddb",
                "Kopia's test",
            ),
            (
                content_secret_key(&master_key()),
                "460d9c1e280cd974081bdd2d9deee86ec558def939d959d30eb258123e42aec2",
                "content secret",
            ),
        ] {
            assert_eq!(derived.as_slice(), unhex(expected), "{what}");
        }
    }

    #[test]
    fn unknown_derivations_and_short_salts_are_refused() {
        let unknown = format_key("testing-only-insecure", PASSWORD, &unique_id());
        assert!(matches!(unknown, Err(KeyDerivationError::UnknownAlgorithm { .. })));
        assert_eq!(format_key(SCRYPT, PASSWORD, &[0; 15]), Err(KeyDerivationError::ShortSalt { len: 15 }));
    }
}

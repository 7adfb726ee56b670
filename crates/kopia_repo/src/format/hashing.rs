//! The keyed hashes that contents and whole blobs are named by.

use hmac::{KeyInit, Mac};

use super::content_id::MAX_HASH_BYTES;

/// Every hash algorithm of the format, by the name in the format blob (kopia-format 3.2).
pub const HASH_ALGORITHMS: [&str; 11] = [
    "BLAKE2B-256-128",
    "BLAKE2B-256",
    "BLAKE2S-128",
    "BLAKE2S-256",
    "BLAKE3-256",
    "BLAKE3-256-128",
    "HMAC-SHA256",
    "HMAC-SHA256-128",
    "HMAC-SHA224",
    "HMAC-SHA3-224",
    "HMAC-SHA3-256",
];

/// The hash of a repository, keyed with its secret. Keys are prepared once; a call allocates nothing.
#[derive(Clone)]
pub struct ContentHasher {
    keyed: Keyed,
    digest_len: u8,
}

#[derive(Clone)]
enum Keyed {
    Blake2b(blake2b_simd::Params),
    Blake2s(blake2s_simd::Params),
    Blake3([u8; 32]),
    HmacSha256(ring::hmac::Key),
    HmacSha224(Box<hmac::Hmac<sha2::Sha224>>),
    HmacSha3_224(Box<hmac::SimpleHmac<sha3::Sha3_224>>),
    HmacSha3_256(Box<hmac::SimpleHmac<sha3::Sha3_256>>),
}

/// Why a hash cannot be made from its name and secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HashingError {
    /// The name is none of [`HASH_ALGORITHMS`].
    #[error("the hash algorithm {name:?} is not known")]
    UnknownAlgorithm {
        /// The refused name.
        name: String,
    },
    /// The algorithm takes no secret of this length.
    #[error("the hash algorithm {name} cannot be keyed with a secret of {len} bytes")]
    SecretLength {
        /// The algorithm.
        name: &'static str,
        /// Bytes of the secret.
        len: usize,
    },
}

/// A digest of up to 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest {
    len: u8,
    bytes: [u8; MAX_HASH_BYTES],
}

impl ContentHasher {
    /// Keys the named algorithm with the `secret` of the format blob.
    pub fn new(name: &str, secret: &[u8]) -> Result<Self, HashingError> {
        let Some(&name) = HASH_ALGORITHMS.iter().find(|known| **known == name) else {
            return Err(HashingError::UnknownAlgorithm { name: name.chars().take(80).collect() });
        };
        let secret_length = || HashingError::SecretLength { name, len: secret.len() };
        let blake2b = || {
            if secret.len() > blake2b_simd::KEYBYTES {
                return Err(secret_length());
            }
            Ok(Keyed::Blake2b(blake2b_simd::Params::new().hash_length(32).key(secret).clone()))
        };
        let blake2s = |digest_len| {
            if secret.is_empty() || secret.len() > blake2s_simd::KEYBYTES {
                return Err(secret_length());
            }
            Ok(Keyed::Blake2s(blake2s_simd::Params::new().hash_length(digest_len).key(secret).clone()))
        };
        let blake3 = || {
            Keyed::Blake3(match secret.first_chunk::<32>() {
                Some(key) => *key,
                None => blake3::derive_key("kopia blake3 derived key v1", secret),
            })
        };
        let hmac_sha256 = || Keyed::HmacSha256(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret));
        let any_length = "HMAC takes a key of any length";
        let (keyed, digest_len) = match name {
            "BLAKE2B-256-128" => (blake2b()?, 16),
            "BLAKE2B-256" => (blake2b()?, 32),
            "BLAKE2S-128" => (blake2s(16)?, 16),
            "BLAKE2S-256" => (blake2s(32)?, 32),
            "BLAKE3-256" => (blake3(), 32),
            "BLAKE3-256-128" => (blake3(), 16),
            "HMAC-SHA256" => (hmac_sha256(), 32),
            "HMAC-SHA256-128" => (hmac_sha256(), 16),
            "HMAC-SHA224" => (Keyed::HmacSha224(Box::new(KeyInit::new_from_slice(secret).expect(any_length))), 28),
            "HMAC-SHA3-224" => (Keyed::HmacSha3_224(Box::new(KeyInit::new_from_slice(secret).expect(any_length))), 28),
            "HMAC-SHA3-256" => (Keyed::HmacSha3_256(Box::new(KeyInit::new_from_slice(secret).expect(any_length))), 32),
            _ => unreachable!("every listed algorithm has an arm"),
        };
        Ok(Self { keyed, digest_len })
    }

    /// The keyed hash of `data`, cut to [`len`](Self::len) bytes.
    pub fn digest(&self, data: &[u8]) -> Digest {
        match &self.keyed {
            Keyed::Blake2b(params) => self.cut(params.hash(data).as_bytes()),
            Keyed::Blake2s(params) => self.cut(params.hash(data).as_bytes()),
            Keyed::Blake3(key) => self.cut(blake3::keyed_hash(key, data).as_bytes()),
            Keyed::HmacSha256(key) => self.cut(ring::hmac::sign(key, data).as_ref()),
            Keyed::HmacSha224(mac) => self.cut(&mac.as_ref().clone().chain_update(data).finalize().into_bytes()),
            Keyed::HmacSha3_224(mac) => self.cut(&mac.as_ref().clone().chain_update(data).finalize().into_bytes()),
            Keyed::HmacSha3_256(mac) => self.cut(&mac.as_ref().clone().chain_update(data).finalize().into_bytes()),
        }
    }

    /// Bytes of a digest: 16, 28 or 32.
    #[expect(clippy::len_without_is_empty, reason = "the length of a digest is never 0")]
    pub fn len(&self) -> usize {
        usize::from(self.digest_len)
    }

    fn cut(&self, full: &[u8]) -> Digest {
        let mut bytes = [0; MAX_HASH_BYTES];
        bytes[..self.len()].copy_from_slice(&full[..self.len()]);
        Digest { len: self.digest_len, bytes }
    }
}

impl std::fmt::Debug for ContentHasher {
    /// Says nothing of the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContentHasher").field("len", &self.digest_len).finish_non_exhaustive()
    }
}

impl AsRef<[u8]> for Digest {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl std::fmt::Display for Digest {
    /// Lower-case hexadecimal.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&super::content_id::hex(self.as_ref()))
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_vectors::{secret, seq};
    use super::*;

    #[test]
    fn all_algorithms_agree_with_kopia() {
        for (name, empty, hello) in [
            (
                "BLAKE2B-256",
                "67d102b539e87f5bebb4503c87ebc993682ea1c5bb33129ff9e7f3be67993ca1",
                "0303f40780e21a28597f9b8787ad48f41372cdea563a2b8f56d01d35270ea4ac",
            ),
            ("BLAKE2B-256-128", "67d102b539e87f5bebb4503c87ebc993", "0303f40780e21a28597f9b8787ad48f4"),
            ("BLAKE2S-128", "7a6df15d1fee55debfbe43143bcd7f0c", "5e2cd0fd0f1bec9ad3ac38410743b194"),
            (
                "BLAKE2S-256",
                "a206644345f764dc626eab1d181b75db50fa708a7a9956fd1e4e15763e7c7ac2",
                "3d9a0c112c8ab75132393284675fbef16568314b63f19ca44020932568ae0180",
            ),
            (
                "BLAKE3-256",
                "0f98b04f8ae91f2d32500fe8a0fcad43451089e360c0879c93203cb512b52382",
                "d4ae84623d6ab4c21497de1cc96603c63371bf8de2ea371a442ef91224cfc4bf",
            ),
            ("BLAKE3-256-128", "0f98b04f8ae91f2d32500fe8a0fcad43", "d4ae84623d6ab4c21497de1cc96603c6"),
            (
                "HMAC-SHA224",
                "594d3592dac66aebce00f5681a6612b41075a337e2f6500d98c8884c",
                "79f900073d341b238ebb251c62937def362771a802cc1677c6d85ec4",
            ),
            (
                "HMAC-SHA256",
                "6656ed44406d8895497b1b8d854118fcd7790e181ce6ea7ca4eed793f0fcd594",
                "01043290094dcd211076cd9e66c478f57891856c3dbf5950f51141911b6ca433",
            ),
            ("HMAC-SHA256-128", "6656ed44406d8895497b1b8d854118fc", "01043290094dcd211076cd9e66c478f5"),
            (
                "HMAC-SHA3-224",
                "cf06621e979acb82c6ac0e45adec3ccb3df9cb7511c9561f707a20b0",
                "30279c2a3862feba421bb30e36bb0c25bb46650a4b411716c85356a1",
            ),
            (
                "HMAC-SHA3-256",
                "ef82fe186d44f3a4070d7dca6a5929319b738e25c337e7c97b05e8fdc2fbae6f",
                "06a643a41ba08438fdbb6de956e8734cba72c53b33e2955f645ebe198aa21263",
            ),
        ] {
            let hasher = ContentHasher::new(name, &secret()).unwrap();
            assert_eq!(hasher.digest(b"").to_string(), empty, "{name} of nothing");
            assert_eq!(hasher.digest(b"hello").to_string(), hello, "{name} of hello");
            assert_eq!(hasher.len() * 2, hello.len(), "{name}");
            assert!(HASH_ALGORITHMS.contains(&name), "{name}");
        }
    }

    #[test]
    fn further_vectors_of_kopia() {
        let fox = b"the quick brown fox jumps over the lazy dog";
        let hmac_secret = b"a-repository-testing-hmac-secret";
        let cases: [(&str, &[u8], &[u8], &str); 6] = [
            ("BLAKE2B-256-128", &secret(), &vec![0; 2 << 20], "93fad06bc0266dfbedf4211b7a8c6f61"),
            ("BLAKE3-256-128", &seq::<16>(0x40), b"hello", "8e46f9f61fd37ecf73eaaffa1c621daa"),
            ("BLAKE2B-256-128", b"", &[1, 2, 3], "11c0e79b71c3976ccd0c02d1310e2516"),
            ("BLAKE2B-256-128", b"", &[2, 3, 4], "24ff687b6ca564bd005a99420c90a0db"),
            ("HMAC-SHA256", hmac_secret, fox, "f65fc4107863281faaeb7087197c05ad59457362607330c665c86c852c5e5906"),
            ("HMAC-SHA256", hmac_secret, &[0; 100], "bfa2b4b9421671ab2b5bfa8c90ee33607784a27e452b08556509ef9bd47a37c6"),
        ];
        for (name, secret, data, digest) in cases {
            assert_eq!(ContentHasher::new(name, secret).unwrap().digest(data).to_string(), digest, "{name}");
        }
    }

    #[test]
    fn unknown_names_and_impossible_secrets_are_refused() {
        for (name, secret_len) in [("SHA1", 32), ("", 32), ("BLAKE2S-128", 0), ("BLAKE2S-256", 33), ("BLAKE2B-256", 65)]
        {
            assert!(ContentHasher::new(name, &vec![1; secret_len]).is_err(), "{name} with {secret_len} bytes");
        }
        for name in HASH_ALGORITHMS {
            assert!(ContentHasher::new(name, &[1; 32]).is_ok(), "{name}");
        }
    }
}

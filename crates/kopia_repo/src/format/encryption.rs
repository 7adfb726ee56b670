//! Authenticated encryption of contents, local indexes and whole blobs.

use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::hashing::Digest;
use super::{content_id, keys, random};

/// Both encryption algorithms of the format, by the name in the format blob (kopia-format 3.3).
pub const ENCRYPTION_ALGORITHMS: [&str; 2] = ["AES256-GCM-HMAC-SHA256", "CHACHA20-POLY1305-HMAC-SHA256"];

/// Bytes of the random nonce that every ciphertext begins with.
pub const NONCE_BYTES: usize = 12;

/// Bytes of the authentication tag that every ciphertext ends in.
pub const TAG_BYTES: usize = 16;

/// How many bytes longer a ciphertext is than its plaintext.
pub const OVERHEAD: usize = NONCE_BYTES + TAG_BYTES;

/// The cipher of a repository: one key per initialisation vector, derived from the master key.
pub struct ContentCipher {
    algorithm: &'static ring::aead::Algorithm,
    secret_key: ring::hmac::Key,
}

/// Why a cipher cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncryptionError {
    /// The name is none of [`ENCRYPTION_ALGORITHMS`].
    #[error("the encryption algorithm {name:?} is not known")]
    UnknownAlgorithm {
        /// The refused name.
        name: String,
    },
    /// A blob whose initialisation vector is asked for has no 32 hexadecimal digits before its first `-`.
    #[error("the blob name {name:?} has no 32 hexadecimal digits that end at its end or first dash")]
    BlobName {
        /// The refused name.
        name: String,
    },
}

/// Why bytes do not decrypt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecryptError {
    /// Fewer bytes than nonce and tag take.
    #[error("{len} bytes are too few for a ciphertext, whose nonce and tag take {OVERHEAD}")]
    TooShort {
        /// Bytes given.
        len: usize,
    },
    /// The tag does not fit: other key, other initialisation vector, or changed bytes.
    #[error("the ciphertext is not authentic: it is damaged, or was made with another key or under another name")]
    NotAuthentic,
}

impl ContentCipher {
    /// Prepares the named algorithm with the `masterKey` of the format blob.
    pub fn new(name: &str, master_key: &[u8]) -> Result<Self, EncryptionError> {
        let algorithm = match name {
            "AES256-GCM-HMAC-SHA256" => &AES_256_GCM,
            "CHACHA20-POLY1305-HMAC-SHA256" => &CHACHA20_POLY1305,
            _ => return Err(EncryptionError::UnknownAlgorithm { name: name.chars().take(80).collect() }),
        };
        let secret_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &keys::content_secret_key(master_key)[..]);
        Ok(Self { algorithm, secret_key })
    }

    /// Encrypts in place. `buf[..12]` is room that receives a random nonce, `buf[12..]` is the plaintext; the tag is
    /// appended, so a buffer with 16 spare bytes of capacity is not moved.
    ///
    /// # Panics
    /// If `buf` has no room for the nonce, or the operating system has no random bytes.
    pub fn seal(&self, iv: &[u8], buf: &mut Vec<u8>) {
        self.seal_with_nonce(iv, random::bytes(), buf);
    }

    pub(crate) fn seal_with_nonce(&self, iv: &[u8], nonce: [u8; NONCE_BYTES], buf: &mut Vec<u8>) {
        let (room, plaintext) =
            buf.split_at_mut_checked(NONCE_BYTES).expect("the buffer begins with room for the nonce");
        room.copy_from_slice(&nonce);
        let tag = self
            .key(iv)
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(iv), plaintext)
            .expect("a content is shorter than the cipher's limit of 64 GiB");
        buf.extend_from_slice(tag.as_ref());
    }

    /// Decrypts in place and returns the plaintext, a part of `buf`. After an error `buf` holds nothing useful.
    pub fn open<'a>(&self, iv: &[u8], buf: &'a mut [u8]) -> Result<&'a mut [u8], DecryptError> {
        let len = buf.len();
        if len < OVERHEAD {
            return Err(DecryptError::TooShort { len });
        }
        let (nonce, sealed) = buf.split_at_mut(NONCE_BYTES);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| DecryptError::NotAuthentic)?;
        self.key(iv).open_in_place(nonce, Aad::from(iv), sealed).map_err(|_| DecryptError::NotAuthentic)
    }

    fn key(&self, iv: &[u8]) -> LessSafeKey {
        let key = ring::hmac::sign(&self.secret_key, iv);
        LessSafeKey::new(UnboundKey::new(self.algorithm, key.as_ref()).expect("an HMAC-SHA-256 is as long as a key"))
    }
}

impl std::fmt::Debug for ContentCipher {
    /// Says nothing of the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContentCipher").field("algorithm", self.algorithm).finish_non_exhaustive()
    }
}

/// Encrypts `plaintext` with AES-256-GCM under a random nonce, which precedes the ciphertext, as the format blob,
/// `kopia.blobcfg` and `kopia.maintenance` are (kopia-format 2.3, 7.2).
pub fn seal_aes_gcm(key: &[u8; keys::KEY_BYTES], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
    seal_aes_gcm_with_nonce(key, aad, plaintext, random::bytes())
}

pub(crate) fn seal_aes_gcm_with_nonce(
    key: &[u8; keys::KEY_BYTES],
    aad: &[u8],
    plaintext: &[u8],
    nonce: [u8; NONCE_BYTES],
) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(plaintext.len() + OVERHEAD);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(plaintext);
    let tag = aes_key(key)
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut sealed[NONCE_BYTES..])
        .expect("the plaintext is shorter than the cipher's limit of 64 GiB");
    sealed.extend_from_slice(tag.as_ref());
    sealed
}

/// Decrypts what [`seal_aes_gcm`] made.
pub fn open_aes_gcm(key: &[u8; keys::KEY_BYTES], aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, DecryptError> {
    let Some((nonce, ciphertext)) = sealed.split_first_chunk().filter(|_| sealed.len() >= OVERHEAD) else {
        return Err(DecryptError::TooShort { len: sealed.len() });
    };
    let mut buffer = ciphertext.to_vec();
    let plaintext = aes_key(key)
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(aad), &mut buffer)
        .map_err(|_| DecryptError::NotAuthentic)?;
    let len = plaintext.len();
    buffer.truncate(len);
    Ok(buffer)
}

fn aes_key(key: &[u8; keys::KEY_BYTES]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("the key has the cipher's length"))
}

const _: () = assert!(NONCE_LEN == NONCE_BYTES);

/// The name of a blob that is encrypted as a whole: `prefix`, the hash of its plaintext, and `-suffix` if there is
/// one (kopia-format 3.5).
pub fn whole_blob_name(prefix: &str, digest: &Digest, suffix: Option<&str>) -> String {
    match suffix {
        Some(suffix) => format!("{prefix}{digest}-{suffix}"),
        None => format!("{prefix}{digest}"),
    }
}

/// The initialisation vector of a blob that is encrypted as a whole: the last 32 hexadecimal digits of its name up to
/// the first `-` (kopia-format 3.5).
pub fn blob_iv(blob_id: &str) -> Result<[u8; 16], EncryptionError> {
    let refused = || EncryptionError::BlobName { name: blob_id.chars().take(300).collect() };
    let hash = blob_id.split('-').next().unwrap_or_default().as_bytes();
    let digits = hash.last_chunk::<32>().ok_or_else(refused)?;
    let mut iv = [0; 16];
    for (byte, pair) in iv.iter_mut().zip(digits.chunks_exact(2)) {
        let (Some(high), Some(low)) = (content_id::hex_digit(pair[0]), content_id::hex_digit(pair[1])) else {
            return Err(refused());
        };
        *byte = high << 4 | low;
    }
    Ok(iv)
}

#[cfg(test)]
mod tests {
    use super::super::hashing::ContentHasher;
    use super::super::test_vectors::{Rng, master_key, nonce, secret, seq, unhex};
    use super::*;

    const AES: &str = ENCRYPTION_ALGORITHMS[0];
    const CHACHA: &str = ENCRYPTION_ALGORITHMS[1];

    fn seal(cipher: &ContentCipher, iv: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0xee; NONCE_BYTES];
        buffer.extend_from_slice(plaintext);
        cipher.seal_with_nonce(iv, nonce(), &mut buffer);
        buffer
    }

    #[test]
    fn sealing_agrees_with_kopia() {
        for (name, sealed) in [
            (AES, "000102030405060708090a0b6714f752bcf4d729b10f1d1e0319d3c283e251fc5d"),
            (CHACHA, "000102030405060708090a0bcc1c3f3809448a43198fc142785b53f585f149c701"),
        ] {
            let cipher = ContentCipher::new(name, &master_key()).unwrap();
            assert_eq!(seal(&cipher, &seq::<16>(0), b"hello"), unhex(sealed), "{name}");
        }
    }

    #[test]
    fn kopias_own_ciphertexts_open() {
        let letters: &[u8] = b"aabbccddeeffgghhiijjkkllmmnnoopp";
        let zeros: &[u8] = &[b'0'; 32];
        let fox: &[u8] = b"quick brown fox jumps over the lazy dog";
        for (iv, plaintext, name, sealed) in [
            (letters, &b"foo"[..], AES, "e43ba07f85a6d70c5f1102ca06cf19c597e5f91e527b21f00fb76e8bec3fd1"),
            (letters, b"foo", CHACHA, "118359f3d4d589d939efbbc3168ae4c77c51bcebce6845fe6ef5d11342faa6"),
            (
                zeros,
                fox,
                AES,
                "eaad755a238f1daa4052db2e5ccddd934790b6cca415b3ccfd46ac5746af33d9d30f4400ffa9eb3a64fb1ce21b888c12c043bf6787d4a5c15ad10f21f6a6027ee3afe0",
            ),
            (
                zeros,
                fox,
                CHACHA,
                "836d2ba87892711077adbdbe1452d3b2c590bbfdf6fd3387dc6810220a32ec19de862e1a4f865575e328424b5f178afac1b7eeff11494f719d119b7ebb924d1d0846a3",
            ),
        ] {
            let cipher = ContentCipher::new(name, b"01234567890123456789012345678901").unwrap();
            assert_eq!(cipher.open(iv, &mut unhex(sealed)).unwrap(), plaintext, "{name}");
        }
    }

    #[test]
    fn sealing_twice_gives_different_bytes_that_both_open() {
        for name in ENCRYPTION_ALGORITHMS {
            let cipher = ContentCipher::new(name, &master_key()).unwrap();
            let mut sealed = [vec![0; NONCE_BYTES], vec![0; NONCE_BYTES]];
            for buffer in &mut sealed {
                buffer.extend_from_slice(b"plaintext");
                cipher.seal(b"an iv", buffer);
                assert_eq!(buffer.len(), b"plaintext".len() + OVERHEAD);
            }
            assert_ne!(sealed[0], sealed[1], "{name}");
            for buffer in &mut sealed {
                assert_eq!(cipher.open(b"an iv", buffer).unwrap(), b"plaintext", "{name}");
            }
        }
    }

    #[test]
    fn changed_ciphertexts_never_open() {
        let mut rng = Rng(1);
        for name in ENCRYPTION_ALGORITHMS {
            let cipher = ContentCipher::new(name, &master_key()).unwrap();
            let sealed = seal(&cipher, b"an iv", b"some plaintext");
            assert_eq!(cipher.open(b"other", &mut sealed.clone()), Err(DecryptError::NotAuthentic));
            for round in 0..2000 {
                let mut changed = rng.mutate(&sealed);
                if changed != sealed {
                    assert!(cipher.open(b"an iv", &mut changed).is_err(), "{name}, round {round}");
                }
            }
            for len in 0..OVERHEAD {
                assert_eq!(cipher.open(b"an iv", &mut vec![0; len]), Err(DecryptError::TooShort { len }));
            }
        }
    }

    #[test]
    fn a_whole_blob_agrees_with_kopia() {
        let index = unhex(
            "02110010000000010000000101000000000000112233445566778899aabbccddeeff6553f100000000200000050000210000360000003d0000000003007030313233343536373839616263646566303132333435363738396162636465662d7330303131323233333434353536363737313232",
        );
        let digest = ContentHasher::new("BLAKE2B-256-128", &secret()).unwrap().digest(&index);
        let name = whole_blob_name("xn0_", &digest, Some("s0011223344556677122-c1"));
        assert_eq!(name, "xn0_df3fd4a9dfadbc84d463923831c29cc1-s0011223344556677122-c1");
        let cipher = ContentCipher::new(AES, &master_key()).unwrap();
        let expected = "000102030405060708090a0b32cc0892931b5f47a369c911a1ef16718627aad8e706db2c0eaae205984d431f431f9251dbb7143d762d3f3bcab8e25406aae03f2dabbaeb71786ad09c46547cdf8d879b54fecc218161a98306d63f8744830a690279b96f661caaf030afc477a3495e0b714f48f2060a1ed7bc829141bbed8d65da7a580916f4a6577bcd0304a14bf2";
        assert_eq!(seal(&cipher, &blob_iv(&name).unwrap(), &index), unhex(expected));
    }

    #[test]
    fn the_iv_of_a_blob_is_at_the_end_of_its_hash() {
        let digits = "000102030405060708090a0b0c0d0e0f";
        for (name, expected) in [
            (digits.to_owned(), Some(seq::<16>(0))),
            (format!("n{digits}"), Some(seq(0))),
            (format!("xn12_ffff{digits}-s00-c1"), Some(seq(0))),
            (format!("{digits}{}", "ab".repeat(16)), Some([0xab; 16])),
            ("xn0_00-s00".to_owned(), None),
            (format!("-{digits}"), None),
            (format!("é{}", &digits[1..]), None),
            (String::new(), None),
        ] {
            assert_eq!(blob_iv(&name).ok(), expected, "{name}");
        }
    }

    #[test]
    fn the_maintenance_schedule_agrees_with_kopia() {
        let key = unhex("7d69c864131b0a9763c5ca4846b5b3c2948147eab6c78cb7a91016f314aaba0d").try_into().unwrap();
        let schedule = br#"{"nextFullMaintenance":"2026-01-02T00:00:00Z","nextQuickMaintenance":"2026-01-01T01:00:00Z","runs":null}"#;
        let expected = unhex(
            "000102030405060708090a0bba026ead6ddd6bf2f12acc1b1dcdcf182b62cd744c7608d0c319ea986e11cc030ec2a7337ebe1e974d26317ce95b97ac3c78a4ee656170da3b41940d77584219ea4f174f11b7c4490bfecf732ae9a156f7b54c34f365f65c7b5004faf81335cd87d906d427632228c13801a1ac55659e722de6b0ff10acf9",
        );
        assert_eq!(seal_aes_gcm_with_nonce(&key, b"maintenance", schedule, nonce()), expected);
        assert_eq!(open_aes_gcm(&key, b"maintenance", &expected).unwrap(), schedule);
        assert_eq!(open_aes_gcm(&key, b"other", &expected), Err(DecryptError::NotAuthentic));
        assert_eq!(open_aes_gcm(&key, b"maintenance", &expected[..27]), Err(DecryptError::TooShort { len: 27 }));
    }
}

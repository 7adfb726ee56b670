//! Tokens, their hashes, and secrets at rest (spec control-api 4.8, 10.1).

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use sha2::{Digest as _, Sha256};

/// How secrets are wrapped, as the database names it.
pub const WRAP_ALGORITHM: &str = "AES-256-GCM";

/// The operating system gave no random bytes, or a wrapped secret is not one of ours.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// No random bytes.
    #[error("take random bytes from the operating system")]
    Random,
    /// It was wrapped under another key, for another place, or is damaged.
    #[error("unwrap a stored secret: it was wrapped under another key than {0}")]
    Unwrap(String),
    /// The key's file cannot be used.
    #[error("key file {path}")]
    KeyFile {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Random bytes.
pub fn random<const N: usize>() -> Result<[u8; N], SecretError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| SecretError::Random)?;
    Ok(bytes)
}

/// A new secret of 32 random bytes in 43 characters, behind a prefix that says what it is (1.1, 1.2).
pub fn token(prefix: &str) -> Result<String, SecretError> {
    Ok(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(random::<32>()?)))
}

/// A claim, a lease, a request: 128 random bits in hexadecimal.
pub fn id128() -> Result<String, SecretError> {
    Ok(crate::hex(&random::<16>()?))
}

/// What is kept of a token.
pub fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Whether two hashes are the same, in a time that does not tell where they differ.
pub fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// Wraps secrets under the key-encryption key of this server.
pub struct Vault {
    key: LessSafeKey,
    /// Which key it is, as rows name it.
    pub key_ref: String,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("key_ref", &self.key_ref).finish_non_exhaustive()
    }
}

impl Vault {
    /// The key in that file, which is made at the first start and readable by its owner only.
    pub fn open(path: &Path) -> Result<Vault, SecretError> {
        let failed = |source| SecretError::KeyFile { path: path.to_owned(), source };
        let bytes: [u8; 32] = match fs::read(path) {
            Ok(bytes) => bytes.try_into().map_err(|_| failed(io::Error::other("it does not hold 32 bytes")))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let bytes = random::<32>()?;
                write_private(path, &bytes).map_err(failed)?;
                bytes
            }
            Err(error) => return Err(failed(error)),
        };
        let key_ref = format!("file:{}", &crate::hex(&hash(&crate::hex(&bytes)))[..16]);
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| SecretError::Random)?;
        Ok(Vault { key: LessSafeKey::new(key), key_ref })
    }

    /// `secret`, bound to the place that `aad` names.
    pub fn wrap(&self, aad: &str, secret: &str) -> Result<Vec<u8>, SecretError> {
        let nonce = random::<NONCE_LEN>()?;
        let mut sealed = secret.as_bytes().to_vec();
        let sealing = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(sealing, Aad::from(aad), &mut sealed).map_err(|_| SecretError::Random)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// What [`Vault::wrap`] was given.
    pub fn unwrap(&self, aad: &str, wrapped: &[u8]) -> Result<String, SecretError> {
        let wrong = || SecretError::Unwrap(self.key_ref.clone());
        let (nonce, sealed) = wrapped.split_first_chunk::<NONCE_LEN>().ok_or_else(wrong)?;
        let mut sealed = sealed.to_vec();
        let opening = Nonce::assume_unique_for_key(*nonce);
        let plain = self.key.open_in_place(opening, Aad::from(aad), &mut sealed).map_err(|_| wrong())?;
        String::from_utf8(plain.to_vec()).map_err(|_| wrong())
    }
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_secret_opens_only_in_its_place_and_whole() {
        let folder = tempfile::tempdir().expect("folder");
        let vault = Vault::open(&folder.path().join("key")).expect("new key");
        let again = Vault::open(&folder.path().join("key")).expect("the same key");
        let wrapped = vault.wrap("repository 7", "canary").expect("wrap");
        assert_eq!(again.unwrap("repository 7", &wrapped).expect("unwrap"), "canary");
        assert!(again.unwrap("repository 8", &wrapped).is_err(), "another place");
        for at in 0..wrapped.len() {
            let mut damaged = wrapped.clone();
            damaged[at] ^= 1;
            assert!(again.unwrap("repository 7", &damaged).is_err(), "byte {at} changed");
            assert!(again.unwrap("repository 7", &wrapped[..at]).is_err(), "cut at {at}");
        }
        let other = Vault::open(&folder.path().join("other")).expect("another key");
        assert!(other.unwrap("repository 7", &wrapped).is_err(), "another key");
        assert!(!wrapped.windows(6).any(|window| window == b"canary"), "it is readable");
    }

    #[test]
    fn hashes_are_compared_whole() {
        let (one, other) = (hash("a"), hash("b"));
        assert!(same(&one, &one));
        assert!(!same(&one, &other));
        assert!(!same(&one, &one[..31]));
    }
}

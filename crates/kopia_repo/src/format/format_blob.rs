//! The format blob: what a repository is and which secrets it has, under a password (kopia-format 2).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::encryption::{open_aes_gcm, seal_aes_gcm};
use super::json::{base64, is_default, null_as_default};
use super::keys::{self, KEY_BYTES, KeyDerivationError, hkdf_sha256};
use super::repository_format::RepositoryFormat;
use super::{json, random};

/// The name of the format blob.
pub const FORMAT_BLOB_ID: &str = "kopia.repository";

/// The name of the blob with the object lock settings.
pub const BLOB_CFG_ID: &str = "kopia.blobcfg";

/// The only `encryption` of a format blob.
const FORMAT_ENCRYPTION: &str = "AES256_GCM";

/// The outer, readable part of the format blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FormatBlob {
    /// How the password becomes a key, see [`keys`].
    #[serde(rename = "keyAlgo", default, deserialize_with = "null_as_default")]
    pub key_algorithm: String,
    /// 32 random bytes that never change; the salt of every derivation.
    #[serde(rename = "uniqueID", default, with = "base64")]
    pub unique_id: Vec<u8>,
    /// How the inner part is encrypted: `AES256_GCM`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub encryption: String,
    /// The inner part.
    #[serde(rename = "encryptedBlockFormat", default, with = "base64")]
    pub encrypted: Vec<u8>,
    /// Every other key, kept when the blob is rewritten.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Object lock settings (kopia-format 2.6): both set or none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BlobCfg {
    /// `GOVERNANCE` or `COMPLIANCE`; empty for no lock.
    #[serde(
        rename = "retentionMode",
        default,
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub retention_mode: String,
    /// How long new blobs are locked, in nanoseconds; 0 for not at all.
    #[serde(
        rename = "retentionPeriod",
        default,
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub retention_period_ns: i64,
}

/// A format with the key it was unlocked by.
#[derive(Clone)]
pub struct UnlockedFormat {
    /// The inner part of the format blob.
    pub format: RepositoryFormat,
    /// The salt of all derivations.
    pub unique_id: Vec<u8>,
    format_key: Zeroizing<[u8; KEY_BYTES]>,
}

/// Why bytes are not a format blob.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatBlobError {
    /// Not the expected JSON.
    #[error("read the JSON of {FORMAT_BLOB_ID}")]
    Json(#[source] serde_json::Error),
    /// The inner part is encrypted in a way that no version of Kopia wrote.
    #[error("{FORMAT_BLOB_ID} is encrypted with {encryption:?}, and only {FORMAT_ENCRYPTION} is known")]
    UnknownEncryption {
        /// The refused name.
        encryption: String,
    },
}

/// Why a format blob does not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnlockError {
    /// The inner part does not decrypt: another password, or changed bytes.
    #[error("the password is wrong")]
    WrongPassword,
    /// The password derivation is not known.
    #[error("{FORMAT_BLOB_ID} asks for the password derivation {name:?}, which is not known")]
    UnknownKeyAlgorithm {
        /// Its name.
        name: String,
    },
    /// The unique ID is no salt.
    #[error("derive the key of {FORMAT_BLOB_ID}")]
    Salt(#[source] KeyDerivationError),
    /// The password begins or ends with white space, which Kopia's command line cannot be given (kopia-format 2.2).
    #[error("the password begins or ends with white space, which Kopia's command line would not take")]
    PasswordWhiteSpace,
    /// The inner part decrypts to something else.
    #[error("read the JSON inside of {FORMAT_BLOB_ID}")]
    Json(#[source] serde_json::Error),
}

/// Why bytes are not the object lock settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobCfgError {
    /// Made with another key than the format blob, or damaged.
    #[error(
        "decrypt {BLOB_CFG_ID}: it is damaged, or a change of the password was cut off, which the same change completes"
    )]
    Decrypt,
    /// Not the expected JSON.
    #[error("read the JSON inside of {BLOB_CFG_ID}")]
    Json(#[source] serde_json::Error),
    /// A mode without a period or the reverse.
    #[error("{BLOB_CFG_ID} has the mode {mode:?} with a period of {period_ns} ns: both must be set, or none")]
    HalfSet {
        /// The mode.
        mode: String,
        /// The period.
        period_ns: i64,
    },
}

/// The plaintext of the inner part.
#[derive(Serialize, Deserialize)]
struct Inner {
    format: RepositoryFormat,
}

/// 32 random bytes to know a new repository by.
pub fn new_unique_id() -> [u8; 32] {
    random::bytes()
}

impl FormatBlob {
    /// Reads the outer part.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatBlobError> {
        let blob: Self = serde_json::from_slice(bytes).map_err(FormatBlobError::Json)?;
        if blob.encryption != FORMAT_ENCRYPTION {
            return Err(FormatBlobError::UnknownEncryption { encryption: blob.encryption.chars().take(80).collect() });
        }
        Ok(blob)
    }

    /// The blob, as Kopia indents it.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("the blob is made of strings");
        text.push(b'\n');
        text
    }

    /// Decrypts the inner part. Takes a fraction of a second and, with scrypt, 64 MiB of memory.
    ///
    /// If the exact password does not fit and has white space around it, the trimmed one is tried, because Kopia's
    /// command line trims (kopia-format 2.2).
    pub fn unlock(&self, password: &str) -> Result<UnlockedFormat, UnlockError> {
        match self.unlock_exactly(password) {
            Err(UnlockError::WrongPassword) if password.trim() != password => self.unlock_exactly(password.trim()),
            result => result,
        }
    }

    fn unlock_exactly(&self, password: &str) -> Result<UnlockedFormat, UnlockError> {
        self.unlock_by(format_key(&self.key_algorithm, password, &self.unique_id)?)
    }

    /// Decrypts the inner part of a blob that was read again, without deriving the key once more.
    ///
    /// [`UnlockError::WrongPassword`] says that the password was changed, or the repository made anew.
    pub fn unlock_with(&self, earlier: &UnlockedFormat) -> Result<UnlockedFormat, UnlockError> {
        // Another unique ID derives other keys, under which nothing decrypts.
        self.unlock_by(earlier.format_key.clone())
    }

    fn unlock_by(&self, format_key: Zeroizing<[u8; KEY_BYTES]>) -> Result<UnlockedFormat, UnlockError> {
        let (key, aad) = block_key(&format_key[..], &self.unique_id);
        let plaintext = open_aes_gcm(&key, &aad[..], &self.encrypted).map_err(|_| UnlockError::WrongPassword)?;
        let plaintext = Zeroizing::new(plaintext);
        let inner: Inner = serde_json::from_slice(&plaintext).map_err(UnlockError::Json)?;
        Ok(UnlockedFormat { format: inner.format, unique_id: self.unique_id.clone(), format_key })
    }

    /// The blob of a new repository. Refuses a password with white space around it, which Kopia could not be given.
    pub fn create(
        password: &str,
        format: RepositoryFormat,
        unique_id: &[u8],
    ) -> Result<(Self, UnlockedFormat), UnlockError> {
        let format_key = new_format_key(keys::SCRYPT, password, unique_id)?;
        let unlocked = UnlockedFormat { format, unique_id: unique_id.to_vec(), format_key };
        let mut other = Map::new();
        other.insert("tool".to_owned(), Value::from(env!("CARGO_PKG_NAME")));
        other.insert("buildVersion".to_owned(), Value::from(env!("CARGO_PKG_VERSION")));
        other.insert("buildInfo".to_owned(), Value::from(""));
        let blob = Self {
            key_algorithm: keys::SCRYPT.to_owned(),
            unique_id: unique_id.to_vec(),
            encryption: FORMAT_ENCRYPTION.to_owned(),
            encrypted: unlocked.encrypt_format(),
            other,
        };
        Ok((blob, unlocked))
    }

    /// The blob under another password, with everything else as it was; refused as in [`create`](Self::create).
    pub fn with_password(
        &self,
        unlocked: &UnlockedFormat,
        password: &str,
    ) -> Result<(Self, UnlockedFormat), UnlockError> {
        let format_key = new_format_key(&self.key_algorithm, password, &self.unique_id)?;
        let unlocked = UnlockedFormat { format_key, ..unlocked.clone() };
        Ok((self.with_format(&unlocked), unlocked))
    }

    /// The blob with changed parameters, under the same key and with everything else as it was.
    pub fn with_format(&self, unlocked: &UnlockedFormat) -> Self {
        Self { encrypted: unlocked.encrypt_format(), ..self.clone() }
    }
}

fn new_format_key(
    algorithm: &str,
    password: &str,
    unique_id: &[u8],
) -> Result<Zeroizing<[u8; KEY_BYTES]>, UnlockError> {
    if password.trim() != password {
        return Err(UnlockError::PasswordWhiteSpace);
    }
    format_key(algorithm, password, unique_id)
}

fn format_key(algorithm: &str, password: &str, unique_id: &[u8]) -> Result<Zeroizing<[u8; KEY_BYTES]>, UnlockError> {
    keys::format_key(algorithm, password, unique_id).map_err(|error| match error {
        KeyDerivationError::UnknownAlgorithm { name } => UnlockError::UnknownKeyAlgorithm { name },
        salt @ KeyDerivationError::ShortSalt { .. } => UnlockError::Salt(salt),
    })
}

/// Key and additional data of the inner part and of `kopia.blobcfg` (kopia-format 2.3).
fn block_key(format_key: &[u8], unique_id: &[u8]) -> (Zeroizing<[u8; KEY_BYTES]>, Zeroizing<[u8; 32]>) {
    (hkdf_sha256(format_key, unique_id, b"AES"), hkdf_sha256(format_key, unique_id, b"CHECKSUM"))
}

impl UnlockedFormat {
    /// A key for a purpose of one's own (kopia-format 2.4).
    pub fn derive_key<const N: usize>(&self, purpose: &str) -> Zeroizing<[u8; N]> {
        let root = if self.format.enable_password_change { &self.format.master_key[..] } else { &self.format_key[..] };
        hkdf_sha256(root, &self.unique_id, purpose.as_bytes())
    }

    /// The key of `kopia.maintenance`.
    pub fn maintenance_key(&self) -> Zeroizing<[u8; KEY_BYTES]> {
        self.derive_key("maintenance schedule")
    }

    /// The key by which Kopia authenticates its local caches.
    pub fn local_cache_key(&self) -> Zeroizing<[u8; 16]> {
        let root = if self.format.enable_password_change { &self.format.secret[..] } else { &self.format_key[..] };
        hkdf_sha256(root, &self.unique_id, b"local-cache-integrity")
    }

    /// The bytes of `kopia.blobcfg`.
    pub fn encrypt_blob_cfg(&self, cfg: &BlobCfg) -> Vec<u8> {
        self.seal(&json::to_go_json(cfg))
    }

    /// Reads the bytes of `kopia.blobcfg`.
    pub fn decrypt_blob_cfg(&self, blob: &[u8]) -> Result<BlobCfg, BlobCfgError> {
        let (key, aad) = block_key(&self.format_key[..], &self.unique_id);
        let plaintext = open_aes_gcm(&key, &aad[..], blob).map_err(|_| BlobCfgError::Decrypt)?;
        let cfg: BlobCfg = serde_json::from_slice(&plaintext).map_err(BlobCfgError::Json)?;
        if cfg.retention_mode.is_empty() != (cfg.retention_period_ns == 0) {
            return Err(BlobCfgError::HalfSet { mode: cfg.retention_mode, period_ns: cfg.retention_period_ns });
        }
        Ok(cfg)
    }

    fn encrypt_format(&self) -> Vec<u8> {
        self.seal(&Zeroizing::new(json::to_go_json(&Inner { format: self.format.clone() })))
    }

    fn seal(&self, plaintext: &[u8]) -> Vec<u8> {
        let (key, aad) = block_key(&self.format_key[..], &self.unique_id);
        seal_aes_gcm(&key, &aad[..], plaintext)
    }
}

impl std::fmt::Debug for UnlockedFormat {
    /// Says nothing of the keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnlockedFormat").field("format", &self.format).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::encryption::seal_aes_gcm_with_nonce;
    use super::super::test_vectors::{PASSWORD, Rng, common_format, nonce, unhex, unique_id};
    use super::*;

    fn unlocked() -> UnlockedFormat {
        let format_key = keys::format_key(keys::SCRYPT, PASSWORD, &unique_id()).unwrap();
        UnlockedFormat { format: common_format(), unique_id: unique_id().to_vec(), format_key }
    }

    #[test]
    fn blocks_agree_with_kopia() {
        let unlocked = unlocked();
        let (key, aad) = block_key(&unlocked.format_key[..], &unlocked.unique_id);
        for (plaintext, sealed) in [
            (
                r#"{"format":{"version":3}}"#,
                "000102030405060708090a0bde8813760cec5aa0bd2d7f1ab8400d9421fc55ab3489a4efa1259541c792d1412dc4c245a4f01605",
            ),
            ("{}", "000102030405060708090a0bded7d2519959fae770cef2bc3a751bee0a71"),
        ] {
            assert_eq!(
                seal_aes_gcm_with_nonce(&key, &aad[..], plaintext.as_bytes(), nonce()),
                unhex(sealed),
                "{plaintext}"
            );
        }
        let empty = unhex("000102030405060708090a0bded7d2519959fae770cef2bc3a751bee0a71");
        assert_eq!(unlocked.decrypt_blob_cfg(&empty).unwrap(), BlobCfg::default());
        assert_eq!(
            unlocked.maintenance_key().as_slice(),
            unhex("7d69c864131b0a9763c5ca4846b5b3c2948147eab6c78cb7a91016f314aaba0d")
        );
        assert_eq!(unlocked.local_cache_key().as_slice(), unhex("f5d1b6913014e806fcd16c3638a664dd"));
    }

    #[test]
    fn without_password_change_the_purpose_keys_derive_from_the_password() {
        let mut unlocked = unlocked();
        let (maintenance, cache) = (unlocked.maintenance_key(), unlocked.local_cache_key());
        unlocked.format.enable_password_change = false;
        assert_ne!(unlocked.maintenance_key(), maintenance);
        assert_ne!(unlocked.local_cache_key(), cache);
        assert_eq!(
            unlocked.maintenance_key(),
            hkdf_sha256(&unlocked.format_key[..], &unique_id(), b"maintenance schedule")
        );
    }

    #[test]
    fn a_created_blob_unlocks_with_its_password_only() {
        let (blob, unlocked) = FormatBlob::create("pass word", common_format(), &unique_id()).unwrap();
        let read = FormatBlob::parse(&blob.to_json()).unwrap();
        assert_eq!(read.key_algorithm, keys::SCRYPT);
        assert_eq!(read.unlock("pass word").unwrap().format, common_format());
        assert_eq!(read.unlock(" pass word\n").unwrap().format, common_format(), "as Kopia's command line trims");
        for wrong in ["", "pass  word", "Pass word"] {
            assert!(matches!(read.unlock(wrong), Err(UnlockError::WrongPassword)), "{wrong:?}");
        }
        assert!(matches!(
            FormatBlob::create(" x", common_format(), &unique_id()),
            Err(UnlockError::PasswordWhiteSpace)
        ));
        assert!(matches!(FormatBlob::create("x", common_format(), &[0; 15]), Err(UnlockError::Salt(_))));

        assert_eq!(read.unlock_with(&unlocked).unwrap().format, common_format());
        let (other, _) = FormatBlob::create("other", common_format(), &unique_id()).unwrap();
        assert!(matches!(other.unlock_with(&unlocked), Err(UnlockError::WrongPassword)));
        let (moved, _) = FormatBlob::create("pass word", common_format(), &[7; 32]).unwrap();
        assert!(matches!(moved.unlock_with(&unlocked), Err(UnlockError::WrongPassword)));

        let mut unknown = read.clone();
        unknown.key_algorithm = "argon2".into();
        assert!(matches!(unknown.unlock("x"), Err(UnlockError::UnknownKeyAlgorithm { name }) if name == "argon2"));
        let text = String::from_utf8(blob.to_json()).unwrap().replace("AES256_GCM", "ROT13");
        assert!(matches!(FormatBlob::parse(text.as_bytes()), Err(FormatBlobError::UnknownEncryption { .. })));
        assert!(matches!(FormatBlob::parse(b"{"), Err(FormatBlobError::Json(_))));
        assert!(!format!("{unlocked:?}").contains("secret"));
    }

    #[test]
    fn unknown_keys_survive_a_rewrite() {
        let text = r#"{"format":{"hash":"BLAKE2B-256-128","version":3,"futureKey":{"a":[1,2.5]},"epochParameters":{"Enabled":true,"FutureEpoch":1},
            "upgradeLock":{"creationTime":"2026-01-01T00:00:00Z","futureLock":1},
            "requiredFeatures":[{"feature":"f","futureFeature":1,"ifNotUnderstood":{"warn":true,"futureWarn":1}}]}}"#;
        let base = unlocked();
        let outer = format!(
            r#"{{"keyAlgo":"{}","uniqueID":"{}","encryption":"AES256_GCM","encryptedBlockFormat":"{}","futureOuter":true}}"#,
            keys::SCRYPT,
            base64::encode(&unique_id()),
            base64::encode(&base.seal(text.as_bytes()))
        );
        let blob = FormatBlob::parse(outer.as_bytes()).unwrap();
        let mut unlocked = blob.unlock_with(&base).unwrap();
        unlocked.format.max_pack_size = 30 << 20;
        let rewritten = FormatBlob::parse(&blob.with_format(&unlocked).to_json()).unwrap();
        assert_eq!(rewritten.other["futureOuter"], true);
        let again = rewritten.unlock_with(&base).unwrap().format;
        assert_eq!(again, unlocked.format);
        assert_eq!(again.other["futureKey"]["a"][1], 2.5);
        assert_eq!(again.epoch.other["FutureEpoch"], 1);
        assert_eq!(again.upgrade_lock.unwrap().other["futureLock"], 1);
        assert_eq!(again.required_features[0].other["futureFeature"], 1);
        assert_eq!(again.required_features[0].if_not_understood.other["futureWarn"], 1);
    }

    #[test]
    fn object_lock_settings_are_both_or_none() {
        let unlocked = unlocked();
        let set = BlobCfg { retention_mode: "GOVERNANCE".into(), retention_period_ns: 86_400_000_000_000 };
        for cfg in [BlobCfg::default(), set.clone()] {
            assert_eq!(unlocked.decrypt_blob_cfg(&unlocked.encrypt_blob_cfg(&cfg)).unwrap(), cfg);
        }
        let half = BlobCfg { retention_period_ns: 0, ..set };
        let half = unlocked.decrypt_blob_cfg(&unlocked.encrypt_blob_cfg(&half));
        assert!(matches!(half, Err(BlobCfgError::HalfSet { .. })));
        let mut damaged = unlocked.encrypt_blob_cfg(&BlobCfg::default());
        damaged[20] ^= 1;
        assert!(matches!(unlocked.decrypt_blob_cfg(&damaged), Err(BlobCfgError::Decrypt)));
        assert!(matches!(unlocked.decrypt_blob_cfg(b""), Err(BlobCfgError::Decrypt)));
    }

    #[test]
    fn changed_inner_parts_give_an_error_or_a_format() {
        let base = unlocked();
        let inner = json::to_go_json(&Inner { format: common_format() });
        let mut rng = Rng(12);
        let mut accepted = 0;
        for _ in 0..10_000 {
            let blob = FormatBlob {
                key_algorithm: keys::SCRYPT.to_owned(),
                unique_id: unique_id().to_vec(),
                encryption: FORMAT_ENCRYPTION.to_owned(),
                encrypted: base.seal(&rng.mutate(&inner)),
                other: Map::new(),
            };
            if let Ok(unlocked) = blob.unlock_with(&base) {
                accepted += 1;
                let _ = unlocked.format.check();
                let _ = (unlocked.format.max_pack_size_bytes(), unlocked.format.effective_index_version());
            }
        }
        assert!(accepted > 300, "{accepted}");
        let blob = FormatBlob {
            encrypted: base.seal(&inner),
            ..FormatBlob::create("x", common_format(), &unique_id()).unwrap().0
        };
        assert!(blob.unlock_with(&base).is_ok());
        for _ in 0..2000 {
            let changed = FormatBlob { encrypted: rng.mutate(&blob.encrypted), ..blob.clone() };
            assert!(changed.encrypted == blob.encrypted || changed.unlock_with(&base).is_err());
        }
    }
}

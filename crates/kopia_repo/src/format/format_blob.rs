//! The format blob: what a repository is and which secrets it has, under a password (kopia-format 2).

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::encryption::{ContentCipher, EncryptionError, open_aes_gcm, seal_aes_gcm};
use super::hashing::{ContentHasher, HashingError};
use super::json::{base64, is_default, null_as_default};
use super::keys::{self, KEY_BYTES, KeyDerivationError, hkdf_sha256};
use super::{json, random};

/// The name of the format blob.
pub const FORMAT_BLOB_ID: &str = "kopia.repository";

/// The name of the blob with the object lock settings.
pub const BLOB_CFG_ID: &str = "kopia.blobcfg";

/// The only `encryption` of a format blob.
const FORMAT_ENCRYPTION: &str = "AES256_GCM";

/// The format versions that are read.
const VERSIONS: std::ops::RangeInclusive<i64> = 1..=3;

/// The pack size of a format that names none, in bytes.
const DEFAULT_MAX_PACK_BYTES: i64 = 20 << 20;

/// The pack sizes that Kopia lets a repository have, in bytes.
const MAX_PACK_BYTES: std::ops::RangeInclusive<i64> = 10 << 20..=120 << 20;

/// Required features that need nothing beyond what is done anyway (kopia-format 10.1).
const KNOWN_FEATURES: [&str; 2] = ["index-v1", "index-v2"];

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

/// The inner part of the format blob: algorithms, secrets and limits (kopia-format 2.3).
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct RepositoryFormat {
    /// Hash algorithm. Never changes.
    #[serde(default, deserialize_with = "null_as_default")]
    pub hash: String,
    /// Content encryption. Never changes.
    #[serde(default, deserialize_with = "null_as_default")]
    pub encryption: String,
    /// Error correction; empty for none, which is all that is supported.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "null_as_default")]
    pub ecc: String,
    /// Parity in percent, for [`ecc`](Self::ecc).
    #[serde(
        rename = "eccOverheadPercent",
        default,
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub ecc_overhead_percent: i64,
    /// The key of the content hash.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "base64")]
    pub secret: Zeroizing<Vec<u8>>,
    /// The root of all content keys.
    #[serde(rename = "masterKey", default, skip_serializing_if = "Vec::is_empty", with = "base64")]
    pub master_key: Zeroizing<Vec<u8>>,
    /// Format version, 1 to 3.
    #[serde(default, deserialize_with = "null_as_default")]
    pub version: i64,
    /// Packs are closed at this many bytes; see [`max_pack_size_bytes`](Self::max_pack_size_bytes).
    #[serde(rename = "maxPackSize", default, deserialize_with = "null_as_default")]
    pub max_pack_size: i64,
    /// Version of new index blobs; see [`effective_index_version`](Self::effective_index_version).
    #[serde(rename = "indexVersion", default, deserialize_with = "null_as_default")]
    pub index_version: i64,
    /// Parameters of the epoch manager.
    #[serde(rename = "epochParameters", default, deserialize_with = "null_as_default")]
    pub epoch: EpochParameters,
    /// Purpose keys derive from the master key; otherwise from the password. True for versions 2 and 3.
    #[serde(rename = "enablePasswordChange", default, deserialize_with = "null_as_default")]
    pub enable_password_change: bool,
    /// Name of the default splitter; empty means `FIXED`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub splitter: String,
    /// Somebody is upgrading the repository.
    #[serde(rename = "upgradeLock", default, skip_serializing_if = "Option::is_none")]
    pub upgrade_lock: Option<UpgradeLock>,
    /// What a client must know to be let in.
    #[serde(
        rename = "requiredFeatures",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub required_features: Vec<RequiredFeature>,
    /// Every other key, kept when the blob is rewritten.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Parameters of the epoch manager, times in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EpochParameters {
    /// Whether there are epochs at all.
    pub enabled: bool,
    /// How long a listing may be relied upon.
    #[serde(rename = "EpochRefreshFrequency")]
    pub refresh_frequency_ns: i64,
    /// How many epochs a range compaction spans at least.
    #[serde(rename = "FullCheckpointFrequency")]
    pub full_checkpoint_frequency: i64,
    /// How long superseded blobs are kept.
    #[serde(rename = "CleanupSafetyMargin")]
    pub cleanup_safety_margin_ns: i64,
    /// How long an epoch lasts at least.
    #[serde(rename = "MinEpochDuration")]
    pub min_epoch_duration_ns: i64,
    /// How many index blobs let an epoch end.
    #[serde(rename = "EpochAdvanceOnCountThreshold")]
    pub advance_on_count: i64,
    /// How many bytes of index blobs let an epoch end.
    #[serde(rename = "EpochAdvanceOnTotalSizeBytesThreshold")]
    pub advance_on_total_size_bytes: i64,
    /// How many blobs may be deleted at once.
    pub delete_parallelism: i64,
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

/// A notice that the repository is about to be upgraded (kopia-format 2.7), times in nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpgradeLock {
    /// Who upgrades, and alone may use the repository.
    #[serde(rename = "ownerID", default, skip_serializing_if = "is_default", deserialize_with = "null_as_default")]
    pub owner_id: String,
    /// When the lock was placed.
    #[serde(rename = "creationTime")]
    pub creation_time: Timestamp,
    /// How long before the upgrade it was announced.
    #[serde(
        rename = "advanceNoticeDuration",
        default,
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub advance_notice_ns: i64,
    /// How long clients may take to stop.
    #[serde(
        rename = "ioDrainTimeout",
        default,
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub io_drain_timeout_ns: i64,
    /// How often waiting clients look again.
    #[serde(
        rename = "statusPollInterval",
        default,
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub status_poll_interval_ns: i64,
    /// How far clocks may differ.
    #[serde(
        rename = "maxPermittedClockDrift",
        default,
        skip_serializing_if = "is_default",
        deserialize_with = "null_as_default"
    )]
    pub max_clock_drift_ns: i64,
    /// A message for the people who meet the lock.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "null_as_default")]
    pub message: String,
    /// Every other key, kept when the blob is rewritten.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Something that a client must understand, or show a message about (kopia-format 10.1).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RequiredFeature {
    /// Its name.
    pub feature: String,
    /// What a client does that does not know it.
    #[serde(rename = "ifNotUnderstood", deserialize_with = "null_as_default")]
    pub if_not_understood: IfNotUnderstood,
    /// Every other key, kept when the blob is rewritten.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What a client does that does not know a required feature.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IfNotUnderstood {
    /// Only warn, do not refuse.
    #[serde(skip_serializing_if = "is_default")]
    pub warn: bool,
    /// Why the feature matters.
    #[serde(skip_serializing_if = "is_default")]
    pub message: String,
    /// Where to read more.
    #[serde(skip_serializing_if = "is_default")]
    pub url: String,
    /// The version of Kopia that understands it.
    #[serde(rename = "upgradeToVersion", skip_serializing_if = "is_default")]
    pub upgrade_to_version: String,
    /// Every other key, kept when the blob is rewritten.
    #[serde(flatten)]
    pub other: Map<String, Value>,
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

/// Why a repository must not be used, although it was unlocked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatCheckError {
    /// The format version is not known.
    #[error("the repository has format version {version}; versions 1 to 3 are supported")]
    Version {
        /// The version.
        version: i64,
    },
    /// The index version is not known.
    #[error("the repository has index version {version}; versions 1 and 2 are supported")]
    IndexVersion {
        /// The version.
        version: i64,
    },
    /// Packs larger than any that Kopia makes.
    #[error("the repository has a maximum pack size of {bytes} bytes, which is out of range")]
    PackSize {
        /// The size.
        bytes: i64,
    },
    /// The hash cannot be had.
    #[error("prepare the repository's content hash")]
    Hash(#[source] HashingError),
    /// The encryption cannot be had.
    #[error("prepare the repository's encryption")]
    Encryption(#[source] EncryptionError),
    /// The repository uses something that Kopia knows and we do not.
    #[error("the repository uses {what}, which is not supported")]
    Unsupported {
        /// What it uses.
        what: String,
    },
    /// A feature is required that is not known.
    #[error("the repository requires the feature {feature:?}, which is not known{}{message}", if message.is_empty() { "" } else { ": " })]
    UnknownFeature {
        /// The feature.
        feature: String,
        /// What the one who required it has to say.
        message: String,
    },
    /// The repository is being upgraded.
    #[error("the repository is locked for an upgrade by {owner} until about {until}{}{message}", if message.is_empty() { "" } else { ": " })]
    UpgradeLocked {
        /// Who upgrades.
        owner: String,
        /// When nobody else may use the repository any more.
        until: Timestamp,
        /// What they have to say.
        message: String,
    },
}

/// Why bytes are not the object lock settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobCfgError {
    /// Made with another key than the format blob, or damaged.
    #[error("decrypt {BLOB_CFG_ID}: it is damaged, or was made with another password than {FORMAT_BLOB_ID}")]
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
        if password.trim() != password {
            return Err(UnlockError::PasswordWhiteSpace);
        }
        let format_key = format_key(keys::SCRYPT, password, unique_id)?;
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

    /// The blob with changed parameters, under the same key and with everything else as it was.
    pub fn with_format(&self, unlocked: &UnlockedFormat) -> Self {
        Self { encrypted: unlocked.encrypt_format(), ..self.clone() }
    }
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

impl std::fmt::Debug for RepositoryFormat {
    /// Says nothing of the keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RepositoryFormat")
            .field("hash", &self.hash)
            .field("encryption", &self.encryption)
            .field("version", &self.version)
            .field("index_version", &self.index_version)
            .field("epoch", &self.epoch)
            .field("splitter", &self.splitter)
            .finish_non_exhaustive()
    }
}

impl RepositoryFormat {
    /// A new repository of version 3 with Kopia's defaults for everything but the named algorithms, and new secrets.
    pub fn new_v3(hash: &str, encryption: &str, splitter: &str) -> Self {
        Self {
            hash: hash.to_owned(),
            encryption: encryption.to_owned(),
            ecc: String::new(),
            ecc_overhead_percent: 0,
            secret: random::bytes::<32>().to_vec().into(),
            master_key: random::bytes::<32>().to_vec().into(),
            version: 3,
            max_pack_size: DEFAULT_MAX_PACK_BYTES,
            index_version: 2,
            epoch: EpochParameters::new_enabled(),
            enable_password_change: true,
            splitter: splitter.to_owned(),
            upgrade_lock: None,
            required_features: Vec::new(),
            other: Map::new(),
        }
    }

    /// Whether we know how to use the repository (kopia-format 2.10, steps 4 and 5). Returns what people should be
    /// told nevertheless.
    pub fn check(&self) -> Result<Vec<String>, FormatCheckError> {
        if !VERSIONS.contains(&self.version) {
            return Err(FormatCheckError::Version { version: self.version });
        }
        if !matches!(self.index_version, 0..=2) {
            return Err(FormatCheckError::IndexVersion { version: self.index_version });
        }
        if self.max_pack_size != 0 && !(1..=*MAX_PACK_BYTES.end()).contains(&self.max_pack_size) {
            return Err(FormatCheckError::PackSize { bytes: self.max_pack_size });
        }
        ContentHasher::new(&self.hash, &self.secret).map_err(FormatCheckError::Hash)?;
        ContentCipher::new(&self.encryption, &self.master_key).map_err(FormatCheckError::Encryption)?;
        if !self.ecc.is_empty() {
            return Err(FormatCheckError::Unsupported { what: format!("the error correction {:?}", self.ecc) });
        }
        let mut warnings = Vec::new();
        for required in self.required_features.iter().filter(|required| !KNOWN_FEATURES.contains(&&*required.feature)) {
            let (feature, message) = (required.feature.clone(), required.if_not_understood.message.clone());
            let unknown = FormatCheckError::UnknownFeature { feature, message };
            if !required.if_not_understood.warn {
                return Err(unknown);
            }
            warnings.push(unknown.to_string());
        }
        Ok(warnings)
    }

    /// Whether an upgrade lock forbids use at `now` (kopia-format 2.7). We never own one.
    pub fn check_upgrade_lock(&self, now: Timestamp) -> Result<(), FormatCheckError> {
        match &self.upgrade_lock {
            Some(lock) if lock.is_locked(now) => Err(FormatCheckError::UpgradeLocked {
                owner: lock.owner_id.clone(),
                until: lock.upgrade_time(),
                message: lock.message.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// A pack is closed when it has this many bytes.
    pub fn max_pack_size_bytes(&self) -> usize {
        let bytes = if self.max_pack_size > 0 { self.max_pack_size } else { DEFAULT_MAX_PACK_BYTES };
        usize::try_from(bytes.min(*MAX_PACK_BYTES.end())).expect("a size below 120 MiB")
    }

    /// The version of new index blobs: 1 if none is named.
    pub fn effective_index_version(&self) -> u8 {
        if self.index_version == 2 { 2 } else { 1 }
    }
}

impl EpochParameters {
    /// What Kopia gives new repositories.
    pub fn new_enabled() -> Self {
        const MINUTE: i64 = 60_000_000_000;
        Self {
            enabled: true,
            refresh_frequency_ns: 20 * MINUTE,
            full_checkpoint_frequency: 7,
            cleanup_safety_margin_ns: 4 * 60 * MINUTE,
            min_epoch_duration_ns: 24 * 60 * MINUTE,
            advance_on_count: 20,
            advance_on_total_size_bytes: 10 << 20,
            delete_parallelism: 4,
            other: Map::new(),
        }
    }
}

impl UpgradeLock {
    /// Whether everybody but the owner must keep out at `now`.
    pub fn is_locked(&self, now: Timestamp) -> bool {
        let drain = self.drain_ns();
        let notice = i128::from(self.advance_notice_ns);
        notice < drain || now >= self.after_creation(notice - drain)
    }

    /// Whether everybody else has stopped by `now`.
    pub fn is_drained(&self, now: Timestamp) -> bool {
        now >= self.upgrade_time()
    }

    /// When the upgrade may begin.
    pub fn upgrade_time(&self) -> Timestamp {
        self.after_creation(i128::from(self.advance_notice_ns).max(self.drain_ns()))
    }

    fn drain_ns(&self) -> i128 {
        i128::from(self.max_clock_drift_ns) + 2 * i128::from(self.io_drain_timeout_ns)
    }

    fn after_creation(&self, ns: i128) -> Timestamp {
        let ns = i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX });
        let far = if ns < 0 { Timestamp::MIN } else { Timestamp::MAX };
        self.creation_time.checked_add(SignedDuration::from_nanos(ns)).unwrap_or(far)
    }
}

#[cfg(test)]
mod tests {
    use super::super::encryption::seal_aes_gcm_with_nonce;
    use super::super::test_vectors::{PASSWORD, Rng, master_key, nonce, secret, unhex, unique_id};
    use super::*;

    fn common() -> RepositoryFormat {
        RepositoryFormat {
            secret: secret().to_vec().into(),
            master_key: master_key().to_vec().into(),
            ..RepositoryFormat::new_v3("BLAKE2B-256-128", "AES256-GCM-HMAC-SHA256", "DYNAMIC-4M-BUZHASH")
        }
    }

    fn unlocked() -> UnlockedFormat {
        let format_key = keys::format_key(keys::SCRYPT, PASSWORD, &unique_id()).unwrap();
        UnlockedFormat { format: common(), unique_id: unique_id().to_vec(), format_key }
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
        let (blob, unlocked) = FormatBlob::create("pass word", common(), &unique_id()).unwrap();
        let read = FormatBlob::parse(&blob.to_json()).unwrap();
        assert_eq!(read.key_algorithm, keys::SCRYPT);
        assert_eq!(read.unlock("pass word").unwrap().format, common());
        assert_eq!(read.unlock(" pass word\n").unwrap().format, common(), "as Kopia's command line trims");
        for wrong in ["", "pass  word", "Pass word"] {
            assert!(matches!(read.unlock(wrong), Err(UnlockError::WrongPassword)), "{wrong:?}");
        }
        assert!(matches!(FormatBlob::create(" x", common(), &unique_id()), Err(UnlockError::PasswordWhiteSpace)));
        assert!(matches!(FormatBlob::create("x", common(), &[0; 15]), Err(UnlockError::Salt(_))));

        assert_eq!(read.unlock_with(&unlocked).unwrap().format, common());
        let (other, _) = FormatBlob::create("other", common(), &unique_id()).unwrap();
        assert!(matches!(other.unlock_with(&unlocked), Err(UnlockError::WrongPassword)));
        let (moved, _) = FormatBlob::create("pass word", common(), &[7; 32]).unwrap();
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
    fn the_new_format_is_written_with_kopias_keys() {
        let text: Value = serde_json::from_slice(&json::to_go_json(&common())).unwrap();
        let mut expected = serde_json::json!({
            "hash": "BLAKE2B-256-128", "encryption": "AES256-GCM-HMAC-SHA256", "version": 3, "maxPackSize": 20971520,
            "indexVersion": 2, "enablePasswordChange": true, "splitter": "DYNAMIC-4M-BUZHASH",
            "epochParameters": {
                "Enabled": true, "EpochRefreshFrequency": 1200000000000i64, "FullCheckpointFrequency": 7,
                "CleanupSafetyMargin": 14400000000000i64, "MinEpochDuration": 86400000000000i64,
                "EpochAdvanceOnCountThreshold": 20, "EpochAdvanceOnTotalSizeBytesThreshold": 10485760,
                "DeleteParallelism": 4
            }
        });
        expected["secret"] = base64::encode(&secret()).into();
        expected["masterKey"] = base64::encode(&master_key()).into();
        assert_eq!(text, expected);
        let (one, two) = (RepositoryFormat::new_v3("", "", ""), RepositoryFormat::new_v3("", "", ""));
        assert!(one.secret != two.secret && one.master_key != two.master_key && one.secret != one.master_key);
    }

    #[test]
    fn checks_name_what_is_not_supported() {
        let check = |change: &dyn Fn(&mut RepositoryFormat)| {
            let mut format = common();
            change(&mut format);
            format.check()
        };
        assert!(check(&|_| {}).unwrap().is_empty());
        for version in [1, 2, 3] {
            assert!(check(&|format| format.version = version).is_ok());
        }
        for version in [0, 4, -1] {
            assert!(matches!(check(&|f| f.version = version), Err(FormatCheckError::Version { .. })), "{version}");
        }
        assert!(check(&|format| format.index_version = 0).is_ok());
        assert!(matches!(check(&|f| f.index_version = 3), Err(FormatCheckError::IndexVersion { version: 3 })));
        assert!(matches!(check(&|f| f.max_pack_size = -1), Err(FormatCheckError::PackSize { .. })));
        assert!(matches!(check(&|f| f.max_pack_size = 1 << 40), Err(FormatCheckError::PackSize { .. })));
        assert!(matches!(check(&|f| f.hash = "X".into()), Err(FormatCheckError::Hash(_))));
        assert!(matches!(check(&|f| f.encryption = "X".into()), Err(FormatCheckError::Encryption(_))));
        let ecc = check(&|f| f.ecc = "REED-SOLOMON-CRC32".into()).unwrap_err();
        assert!(ecc.to_string().contains("REED-SOLOMON-CRC32"), "{ecc}");

        let feature = |feature: &str, warn| {
            let if_not_understood = IfNotUnderstood { warn, message: "upgrade".into(), ..IfNotUnderstood::default() };
            RequiredFeature { feature: feature.into(), if_not_understood, other: Map::new() }
        };
        assert!(check(&|f| f.required_features = vec![feature("index-v2", false)]).unwrap().is_empty());
        let warnings = check(&|f| f.required_features = vec![feature("f", true)]).unwrap();
        assert_eq!(warnings, [r#"the repository requires the feature "f", which is not known: upgrade"#]);
        let unknown = check(&|f| f.required_features = vec![feature("f", true), feature("g", false)]);
        assert!(matches!(unknown, Err(FormatCheckError::UnknownFeature { feature, .. }) if feature == "g"));
    }

    #[test]
    fn absent_limits_have_kopias_defaults() {
        let mut format = common();
        (format.max_pack_size, format.index_version) = (0, 0);
        assert_eq!((format.max_pack_size_bytes(), format.effective_index_version()), (20 << 20, 1));
        (format.max_pack_size, format.index_version) = (50 << 20, 2);
        assert_eq!((format.max_pack_size_bytes(), format.effective_index_version()), (50 << 20, 2));
    }

    #[test]
    fn an_upgrade_lock_closes_in_time() {
        const SECOND: i64 = 1_000_000_000;
        let created: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let lock = |notice| UpgradeLock {
            owner_id: "owner".into(),
            creation_time: created,
            advance_notice_ns: notice,
            io_drain_timeout_ns: 10 * SECOND,
            status_poll_interval_ns: 0,
            max_clock_drift_ns: 5 * SECOND,
            message: String::new(),
            other: Map::new(),
        };
        // The drain takes 5 + 2 * 10 seconds.
        let after = |seconds| created.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        for (notice, now, locked, drained) in [
            (0, -1000, true, false),
            (0, 24, true, false),
            (0, 25, true, true),
            (24, -1000, true, false),
            (25, -1, false, false),
            (25, 0, true, false),
            (100, 74, false, false),
            (100, 75, true, false),
            (100, 99, true, false),
            (100, 100, true, true),
        ] {
            let lock = lock(notice * SECOND);
            let case = format!("notice {notice} s, {now} s after");
            assert_eq!((lock.is_locked(after(now)), lock.is_drained(after(now))), (locked, drained), "{case}");
            let mut format = common();
            format.upgrade_lock = Some(lock);
            assert_eq!(format.check_upgrade_lock(after(now)).is_err(), locked, "{case}");
        }
        let absurd = UpgradeLock { advance_notice_ns: i64::MAX, io_drain_timeout_ns: i64::MIN, ..lock(0) };
        assert!(absurd.upgrade_time() > created);
        assert!(!absurd.is_locked(created));
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
        let inner = json::to_go_json(&Inner { format: common() });
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
        let blob =
            FormatBlob { encrypted: base.seal(&inner), ..FormatBlob::create("x", common(), &unique_id()).unwrap().0 };
        assert!(blob.unlock_with(&base).is_ok());
        for _ in 0..2000 {
            let changed = FormatBlob { encrypted: rng.mutate(&blob.encrypted), ..blob.clone() };
            assert!(changed.encrypted == blob.encrypted || changed.unlock_with(&base).is_err());
        }
    }
}

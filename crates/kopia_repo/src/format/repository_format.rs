//! The inner part of the format blob: algorithms, secrets and limits, and whether we can live with them (kopia-format 2.3,
//! 2.10, 10.1).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::encryption::{ContentCipher, EncryptionError};
use super::hashing::{ContentHasher, HashingError};
use super::json::{base64, is_default, null_as_default};
use super::random;
use super::upgrade_lock::UpgradeLock;

/// The format versions that are read.
const VERSIONS: std::ops::RangeInclusive<i64> = 1..=3;

/// The pack size of a format that names none, in bytes.
const DEFAULT_MAX_PACK_BYTES: i64 = 20 << 20;

/// The pack sizes that Kopia lets a repository have, in bytes.
const MAX_PACK_BYTES: std::ops::RangeInclusive<i64> = 10 << 20..=120 << 20;

/// Required features that need nothing beyond what is done anyway (kopia-format 10.1).
const KNOWN_FEATURES: [&str; 2] = ["index-v1", "index-v2"];

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

#[cfg(test)]
mod tests {
    use super::super::json;
    use super::super::test_vectors::{common_format, master_key, secret};
    use super::*;

    #[test]
    fn the_new_format_is_written_with_kopias_keys() {
        let text: Value = serde_json::from_slice(&json::to_go_json(&common_format())).unwrap();
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
            let mut format = common_format();
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
        let mut format = common_format();
        (format.max_pack_size, format.index_version) = (0, 0);
        assert_eq!((format.max_pack_size_bytes(), format.effective_index_version()), (20 << 20, 1));
        (format.max_pack_size, format.index_version) = (50 << 20, 2);
        assert_eq!((format.max_pack_size_bytes(), format.effective_index_version()), (50 << 20, 2));
    }
}

//! Policies: the payload of manifests of the type `policy` (kopia-format 6.7).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::json::null_as_default;

/// A policy. Unset differs from zero; a key that this does not know is kept beside its section.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    /// How long snapshots are kept.
    #[serde(deserialize_with = "null_as_default")]
    pub retention: RetentionPolicy,
    /// What is left out of snapshots.
    #[serde(deserialize_with = "null_as_default")]
    pub files: Map<String, Value>,
    /// What to do about unreadable entries.
    #[serde(deserialize_with = "null_as_default")]
    pub error_handling: Map<String, Value>,
    /// When snapshots are made.
    #[serde(deserialize_with = "null_as_default")]
    pub scheduling: Map<String, Value>,
    /// How file data is compressed.
    #[serde(deserialize_with = "null_as_default")]
    pub compression: CompressionPolicy,
    /// How directories and index streams are compressed.
    #[serde(deserialize_with = "null_as_default")]
    pub metadata_compression: CompressionPolicy,
    /// How files are cut.
    #[serde(deserialize_with = "null_as_default")]
    pub splitter: Map<String, Value>,
    /// What is run before and after.
    #[serde(deserialize_with = "null_as_default")]
    pub actions: Map<String, Value>,
    /// Volume shadow copies.
    #[serde(deserialize_with = "null_as_default")]
    pub os_snapshots: Map<String, Value>,
    /// How much is said.
    #[serde(deserialize_with = "null_as_default")]
    pub logging: Map<String, Value>,
    /// How much is done at once.
    #[serde(deserialize_with = "null_as_default")]
    pub upload: Map<String, Value>,
    /// Policies of wider targets do not apply.
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "null_as_default")]
    pub no_parent: bool,
    /// Every other key.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// How many snapshots of each kind are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetentionPolicy {
    /// The newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_latest: Option<i64>,
    /// One of each hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_hourly: Option<i64>,
    /// One of each day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_daily: Option<i64>,
    /// One of each ISO week.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_weekly: Option<i64>,
    /// One of each month.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_monthly: Option<i64>,
    /// One of each year.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_annual: Option<i64>,
    /// A snapshot with the same root as the one before is not stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_identical_snapshots: Option<bool>,
    /// Every other key.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Which algorithm compresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CompressionPolicy {
    /// Its name, see [`CompressionId::from_name`](super::compression::CompressionId::from_name); empty if unset.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_as_default")]
    pub compressor_name: String,
    /// Every other key.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Policy {
    /// The global policy that Kopia stores in new repositories (kopia-format 8.1).
    pub fn default_global() -> Self {
        let section = |value: Value| match value {
            Value::Object(section) => section,
            _ => unreachable!("every section is an object"),
        };
        Self {
            retention: RetentionPolicy {
                keep_latest: Some(10),
                keep_hourly: Some(48),
                keep_daily: Some(7),
                keep_weekly: Some(4),
                keep_monthly: Some(24),
                keep_annual: Some(3),
                ignore_identical_snapshots: Some(false),
                other: Map::new(),
            },
            files: section(serde_json::json!({"ignoreDotFiles": [".kopiaignore"]})),
            error_handling: section(serde_json::json!({
                "ignoreFileErrors": false, "ignoreDirectoryErrors": false, "ignoreUnknownTypes": true
            })),
            scheduling: section(serde_json::json!({"runMissed": true})),
            compression: CompressionPolicy { compressor_name: "none".to_owned(), other: Map::new() },
            metadata_compression: CompressionPolicy { compressor_name: "zstd-fastest".to_owned(), other: Map::new() },
            os_snapshots: section(serde_json::json!({"volumeShadowCopy": {"enable": 0}})),
            logging: section(serde_json::json!({
                "directories": {"snapshotted": 5, "ignored": 5},
                "entries": {"snapshotted": 0, "ignored": 5, "cacheHit": 0, "cacheMiss": 0}
            })),
            upload: section(
                serde_json::json!({"maxParallelSnapshots": 1, "parallelUploadAboveSize": 2_147_483_648_i64}),
            ),
            ..Self::default()
        }
    }
}

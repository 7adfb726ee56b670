//! Maintenance parameters: the payload of the manifest of the type `maintenance` (kopia-format 7.1).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::json::null_as_default;

/// Who maintains the repository, and how often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MaintenanceParams {
    /// `user@host` of the only client that maintains by itself.
    #[serde(default, deserialize_with = "null_as_default")]
    pub owner: String,
    /// The quick cycle.
    #[serde(default)]
    pub quick: MaintenanceCycle,
    /// The full cycle.
    #[serde(default)]
    pub full: MaintenanceCycle,
    /// Which log blobs are kept.
    #[serde(default)]
    pub log_retention: LogRetention,
    /// Full maintenance extends the object locks of all blobs.
    #[serde(default)]
    pub extend_object_locks: bool,
    /// How many listings at once; 0 for 16.
    #[serde(default)]
    pub list_parallelism: i64,
    /// Every other key.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One kind of maintenance.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MaintenanceCycle {
    /// Whether it happens by itself.
    pub enabled: bool,
    /// How often, in nanoseconds.
    #[serde(rename = "interval")]
    pub interval_ns: i64,
}

/// Which log blobs are kept; all three 0 stand for the defaults, a single 0 for no such limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogRetention {
    /// Bytes in all.
    #[serde(rename = "maxTotalSize")]
    pub max_total_size_bytes: i64,
    /// Blobs in all.
    pub max_count: i64,
    /// Age in nanoseconds.
    #[serde(rename = "maxAge")]
    pub max_age_ns: i64,
}

impl MaintenanceParams {
    /// What Kopia stores in new repositories, for this owner.
    pub fn new(owner: &str) -> Self {
        const HOUR_NS: i64 = 3_600_000_000_000;
        Self {
            owner: owner.to_owned(),
            quick: MaintenanceCycle { enabled: true, interval_ns: HOUR_NS },
            full: MaintenanceCycle { enabled: true, interval_ns: 24 * HOUR_NS },
            log_retention: LogRetention {
                max_total_size_bytes: 1 << 30,
                max_count: 10_000,
                max_age_ns: 30 * 24 * HOUR_NS,
            },
            extend_object_locks: false,
            list_parallelism: 0,
            other: Map::new(),
        }
    }
}

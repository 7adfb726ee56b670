//! A notice that a repository is about to be upgraded (kopia-format 2.7).

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::json::{is_default, null_as_default};

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
    use super::super::test_vectors::common_format;
    use super::*;

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
            let mut format = common_format();
            format.upgrade_lock = Some(lock);
            assert_eq!(format.check_upgrade_lock(after(now)).is_err(), locked, "{case}");
        }
        let absurd = UpgradeLock { advance_notice_ns: i64::MAX, io_drain_timeout_ns: i64::MIN, ..lock(0) };
        assert!(absurd.upgrade_time() > created);
        assert!(!absurd.is_locked(created));
    }
}

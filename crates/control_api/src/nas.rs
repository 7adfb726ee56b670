//! Cloud NAS (8).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

wire! {
    /// `cloudnas_create_mount.php` (8.2).
    pub struct CreateMount {
        pub bucket: String,
        #[serde(default)]
        pub prefix: String,
        pub drive_letter: String,
        #[serde(default)]
        pub read_only: bool,
        #[serde(default)]
        pub persistent: bool,
        #[serde(default)]
        pub cache_mode: Option<String>,
    }

    /// `cloudnas_pending_mounts.php` (8.3).
    pub struct PendingMounts {
        #[serde(default)]
        pub active_mount_ids: Vec<i64>,
    }

    /// `cloudnas_update_status.php` (8.3). `unsent` counts changes that are not in the bucket yet.
    pub struct UpdateMount {
        pub mount_id: i64,
        pub status: String,
        #[serde(default)]
        pub error: Option<String>,
        #[serde(default)]
        pub unsent: Option<i64>,
    }
}

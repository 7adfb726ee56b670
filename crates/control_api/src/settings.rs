//! A client's settings (6.2), what a search finds, and views that people keep (console 2, 9).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use crate::Time;
use crate::words::Role;

wire! {
    /// `cloudbackup_settings.php` by POST: what is missing stays.
    #[derive(Default)]
    pub struct SettingsRequest {
        #[serde(default)]
        pub timezone: Option<String>,
        #[serde(default)]
        pub runs_per_agent: Option<i64>,
        #[serde(default)]
        pub runs_per_repository: Option<i64>,
        /// Whether what destroys something needs a second administrator (6.3).
        #[serde(default)]
        pub four_eyes: Option<bool>,
        #[serde(default)]
        pub delete_delay_hours: Option<i64>,
        /// Whose sessions need a second factor (10.4).
        #[serde(default)]
        pub mfa_required_roles: Option<Vec<Role>>,
    }

    /// Answer of `cloudbackup_settings.php`.
    pub struct ClientSettings {
        pub timezone: Option<String>,
        pub runs_per_agent: i64,
        pub runs_per_repository: i64,
        pub four_eyes: bool,
        pub delete_delay_hours: i64,
        pub mfa_required_roles: Vec<Role>,
    }

    /// `cloudbackup_search.php`.
    pub struct SearchQuery {
        pub q: String,
        #[serde(default)]
        pub limit: Option<i64>,
    }

    /// One thing that was found.
    pub struct Hit {
        /// `vm`, `job`, `agent`, `point` or `run`.
        pub kind: String,
        pub id: i64,
        pub name: String,
        pub tenant_id: Option<i64>,
    }

    /// Answer of `cloudbackup_search.php`: of each kind the best, at most `limit`.
    pub struct Hits {
        pub hits: Vec<Hit>,
    }

    /// A named address that a person kept.
    pub struct SavedView {
        pub id: i64,
        pub name: String,
        /// Path and query below this server's address.
        pub path: String,
        pub created_at: Time,
    }

    /// Answer of `cloudbackup_view_list.php`.
    pub struct SavedViews {
        pub views: Vec<SavedView>,
    }

    /// `cloudbackup_view_save.php`; the same name again takes the place of the former.
    pub struct SaveView {
        pub name: String,
        pub path: String,
    }

    /// `cloudbackup_view_delete.php`.
    pub struct ViewRef {
        pub view_id: i64,
    }
}

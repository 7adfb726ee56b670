//! What surrounds every answer (0.5).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use serde::{Deserialize, Serialize};

use crate::{Object, Time};

/// Every answer carries both `status` and `success` beside its own fields (0.5, D2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer<T> {
    pub status: String,
    pub success: bool,
    #[serde(flatten)]
    pub body: T,
}

impl<T> Answer<T> {
    /// An answer with that status word; `success` follows from it.
    pub fn new(status: &str, body: T) -> Self {
        Self { status: status.to_owned(), success: is_success(status), body }
    }
}

/// Whether a status word means that the call did what was asked (0.5).
pub fn is_success(status: &str) -> bool {
    matches!(status, "success" | "no_run" | "pending")
}

wire! {
    /// An answer that says only that it was done.
    pub struct Done {}

    /// A failure (0.5). `message` is for people and may change; `code` is stable.
    pub struct Problem {
        pub status: String,
        pub success: bool,
        pub code: String,
        pub message: String,
        pub request_id: String,
        #[serde(default)]
        pub details: Object,
    }

    /// `health.php` (0.2).
    pub struct Health {
        pub version: String,
        pub time: Time,
        pub min_agent_version: String,
    }
}

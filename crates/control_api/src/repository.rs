//! Work on repositories (2.8).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

use serde_json::Value;

use crate::words::RepoOperationType;

wire! {
    /// One operation that an agent claimed (2.8). Holds secrets.
    pub struct RepoOperation {
        pub operation_id: i64,
        pub operation_token: String,
        pub op_type: RepoOperationType,
        pub repo_id: i64,
        pub repository_id: String,
        pub bucket_id: Option<i64>,
        pub bucket_name: Option<String>,
        pub root_prefix: Option<String>,
        pub endpoint: Option<String>,
        pub region: Option<String>,
        pub dest_access_key: Option<String>,
        pub dest_secret_key: Option<String>,
        pub repository_password: Option<String>,
        pub effective_policy: Option<Value>,
    }

    /// `agent_poll_repo_operations.php`.
    pub struct PollRepoOperations {
        /// The host restores; it declines.
        #[serde(default)]
        pub busy: bool,
    }

    /// Answer of `agent_poll_repo_operations.php`.
    pub struct PollRepoOperationsAnswer {
        pub operation: Option<RepoOperation>,
    }

    /// `agent_complete_repo_operation.php`.
    pub struct CompleteRepoOperation {
        pub operation_id: i64,
        pub operation_token: String,
        /// `success` or `failed`.
        pub status: String,
        #[serde(default)]
        pub result_json: Option<Value>,
    }

    /// A repository as lists show it.
    pub struct Repository {
        pub id: i64,
        pub repository_id: String,
        pub destination_id: Option<i64>,
        pub root_prefix: String,
        pub status: String,
        pub point_count: i64,
    }

    /// Answer of `cloudbackup_repository_list.php`.
    pub struct Repositories {
        pub repositories: Vec<Repository>,
        pub total: i64,
    }
}

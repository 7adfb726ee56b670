//! Destinations (4.7, 6.2).
#![allow(missing_docs, reason = "the fields are the contract's; each type names the section")]

wire! {
    /// `cloudbackup_destination_create.php`, and with `id` `…_update.php`. Keys are write-only.
    pub struct DestinationRequest {
        #[serde(default)]
        pub id: Option<i64>,
        #[serde(default)]
        pub name: Option<String>,
        #[serde(default)]
        pub tenant_id: Option<i64>,
        #[serde(default)]
        pub dest_type: Option<String>,
        #[serde(default)]
        pub endpoint: Option<String>,
        #[serde(default)]
        pub region: Option<String>,
        #[serde(default)]
        pub bucket: Option<String>,
        #[serde(default)]
        pub prefix: Option<String>,
        #[serde(default)]
        pub path_style: Option<String>,
        #[serde(default)]
        pub dest_local_path: Option<String>,
        #[serde(default)]
        pub access_key: Option<String>,
        #[serde(default)]
        pub secret_key: Option<String>,
        #[serde(default)]
        pub ca_bundle_pem: Option<String>,
        #[serde(default)]
        pub allow_http: bool,
        /// Of a repository that exists already; otherwise one is made.
        #[serde(default)]
        pub repository_password: Option<String>,
    }

    /// A destination without its keys.
    pub struct DestinationRow {
        pub id: i64,
        pub name: String,
        pub tenant_id: Option<i64>,
        pub dest_type: String,
        pub endpoint: String,
        pub region: Option<String>,
        pub bucket: String,
        pub prefix: String,
        pub path_style: String,
        pub access_key_last4: Option<String>,
        pub is_active: bool,
        pub repository_id: Option<String>,
    }

    /// Answer of the calls on one destination.
    pub struct DestinationAnswer {
        pub destination: DestinationRow,
    }

    /// Answer of `cloudbackup_destination_list.php`.
    pub struct Destinations {
        pub destinations: Vec<DestinationRow>,
        pub total: i64,
    }

    /// Names a destination.
    pub struct DestinationRef {
        pub id: i64,
    }

    /// `cloudbackup_destination_delete.php`: the phrase is the destination's name.
    pub struct DeleteDestination {
        pub destination_id: i64,
        pub confirm_phrase: String,
        #[serde(default)]
        pub reason: Option<String>,
    }

    /// `cloudbackup_destination_test.php`.
    pub struct TestDestination {
        pub destination_id: i64,
    }

    /// Answer of `cloudbackup_destination_test.php`.
    pub struct TestedDestination {
        /// Whether backups can be stored there.
        pub usable: bool,
        /// What it was seen doing: `works`, `refused` or `wrong`.
        pub capabilities: Vec<Capability>,
        /// Clock of the store minus clock of this server; at most 300 either way (0.6).
        pub clock_ahead_secs: Option<i64>,
        /// Why nothing could be told.
        pub problem: Option<String>,
    }

    /// One thing that a store is tried for.
    pub struct Capability {
        pub name: String,
        pub verdict: String,
        /// Whether nothing can be stored without it.
        pub is_essential: bool,
    }
}

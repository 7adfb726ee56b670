//! What a client allows itself at the same time.

use serde::Deserialize;

use crate::args;
use crate::failure::Failure;
use crate::store::Tx;

/// How many runs are in progress at most; settings of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// On one agent.
    pub runs_per_agent: i64,
    /// Into one repository.
    pub runs_per_repository: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { runs_per_agent: 4, runs_per_repository: 16 }
    }
}

/// The limits of that client.
pub async fn of_client(tx: &mut Tx, client: i64) -> Result<Limits, Failure> {
    let row = tx.row("SELECT settings_json FROM s3_cloudbackup_settings WHERE client_id = ?", args![client]).await?;
    Ok(row.map(|row| row.opt_json("settings_json")).transpose()?.flatten().unwrap_or_default())
}

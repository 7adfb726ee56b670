//! Events of a run that the server writes itself (spec control-api 3.7).

use jiff::Timestamp;
use serde_json::Value;

use crate::failure::Failure;
use crate::store::Tx;

/// Writes one event.
pub async fn write(
    tx: &mut Tx,
    run: i64,
    kind: &str,
    level: &str,
    message_id: &str,
    params: Value,
    now: Timestamp,
) -> Result<(), Failure> {
    let columns = [
        ("run_id", run.into()),
        ("ts", now.into()),
        ("type", kind.into()),
        ("level", level.into()),
        ("code", message_id.into()),
        ("message_id", message_id.into()),
        ("params_json", params.into()),
    ];
    tx.insert("s3_cloudbackup_run_events", &columns).await?;
    Ok(())
}

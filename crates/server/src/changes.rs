//! What changed, for pages that show it (console 0.2): topics with a version, read by every instance.

use jiff::{SignedDuration, Timestamp};

use crate::App;
use crate::args;
use crate::failure::Failure;
use crate::store::Tx;

/// Changes are kept so long; who asks for older ones reads everything again.
const KEPT_SECS: i64 = 600;

/// Says that a topic changed, in the transaction of the change.
pub async fn touch(tx: &mut Tx, client: i64, tenant: Option<i64>, topic: &str, now: Timestamp) -> Result<(), Failure> {
    let columns = [
        ("client_id", client.into()),
        ("tenant_id", tenant.into()),
        ("topic", topic.into()),
        ("version", now.as_millisecond().into()),
        ("created_at", now.into()),
    ];
    tx.insert("console_changes", &columns).await?;
    Ok(())
}

/// Forgets old changes; the newest one stays, so that a page that heard of nothing for long is not told to read again.
pub async fn prune(app: &App, now: Timestamp) -> Result<(), Failure> {
    let before = now.saturating_sub(SignedDuration::from_secs(KEPT_SECS)).unwrap_or(now);
    let mut tx = app.db.read().await?;
    let old = tx.count("SELECT MAX(id) FROM console_changes WHERE created_at < ?", args![before]).await?;
    let newest = tx.count("SELECT MAX(id) FROM console_changes", args![]).await?;
    drop(tx);
    if old.min(newest - 1) <= 0 {
        return Ok(());
    }
    let mut tx = app.db.write().await?;
    tx.change("DELETE FROM console_changes WHERE created_at < ? AND id < ?", args![before, newest]).await?;
    Ok(tx.commit().await?)
}

//! What is forgotten after a time, a little at a time: nobody waits long for the one writer of a file.

use jiff::Timestamp;

use crate::App;
use crate::args;
use crate::clock::after;
use crate::failure::Failure;
use crate::store::{Value, marks};

const DAY: i64 = 86_400;
/// Rows of one transaction.
const AT_ONCE: i64 = 500;
/// Transactions of one turn and table.
const TURNS: usize = 20;
/// How often it is looked.
const EVERY_SECS: i64 = 600;

/// Rows that go so long after that time.
struct Old {
    table: &'static str,
    key: &'static str,
    column: &'static str,
    secs: i64,
    /// Only these.
    also: &'static str,
}

/// Runs, points, jobs and the audit log are not here: what can be restored, and who did what, stays.
const OLD: &[Old] = &[
    Old { table: "s3_cloudbackup_run_events", key: "id", column: "ts", secs: 90 * DAY, also: "" },
    Old { table: "s3_cloudbackup_run_logs", key: "id", column: "created_at", secs: 30 * DAY, also: "" },
    Old { table: "s3_cloudbackup_admin_log_chunks", key: "id", column: "created_at", secs: 30 * DAY, also: "" },
    Old { table: "s3_cloudbackup_agent_events", key: "id", column: "ts", secs: 90 * DAY, also: "" },
    // Ended for a week: until then a late caller hears that the session is over.
    Old { table: "s3_console_sessions", key: "token_hash", column: "expires_at", secs: 7 * DAY, also: "" },
    Old { table: "s3_idempotency_keys", key: "key_hash", column: "expires_at", secs: 0, also: "" },
    Old { table: "s3_setup_tokens", key: "token_hash", column: "created_at", secs: 30 * DAY, also: "" },
    Old { table: "s3_alert_history", key: "id", column: "created_at", secs: 400 * DAY, also: "" },
    Old {
        table: "s3_alert_deliveries",
        key: "id",
        column: "finished_at",
        secs: 90 * DAY,
        // What an alert that is still open was told is what repeats are counted from.
        also: " AND (alert_id IS NULL OR alert_id IN (SELECT id FROM s3_alerts WHERE state = 'resolved'))",
    },
];

/// Forgets what is old, on one instance at a time; how many rows.
pub async fn tick(app: &App, now: Timestamp) -> Result<u64, Failure> {
    if !crate::deletion::take_turn(app, "pruning", EVERY_SECS, now).await? {
        return Ok(0);
    }
    let mut gone = 0;
    for old in OLD {
        for _ in 0..TURNS {
            let removed = some(app, old, now).await?;
            gone += removed;
            if removed < AT_ONCE.unsigned_abs() {
                break;
            }
        }
    }
    Ok(gone)
}

async fn some(app: &App, old: &Old, now: Timestamp) -> Result<u64, Failure> {
    let Old { table, key, column, secs, also } = old;
    let sql = format!("SELECT {key} FROM {table} WHERE {column} < ?{also} LIMIT {AT_ONCE}");
    let rows = app.db.read().await?.rows(&sql, args![after(now, -secs)]).await?;
    let keys: Vec<Value> = rows.iter().map(|row| row.get(key).cloned()).collect::<Result<_, _>>()?;
    if keys.is_empty() {
        return Ok(0);
    }
    let mut tx = app.db.write().await?;
    let removed = tx.change(&format!("DELETE FROM {table} WHERE {key} IN ({})", marks(keys.len())), &keys).await?;
    tx.commit().await?;
    Ok(removed)
}

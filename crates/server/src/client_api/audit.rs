//! The audit log as people read it (spec control-api 6.2, 10.6).

use control_api::account::{AuditEvent, AuditEvents, AuditQuery};

use crate::access::Filter;
use crate::access::audit::is_intact;
use crate::failure::Failure;
use crate::http::{Answer, Call};
use crate::store::time_text;

/// `cloudbackup_audit.php`.
pub async fn list(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: AuditQuery = call.read()?;
    let limit = asked.limit.unwrap_or(100);
    if !(1..=1000).contains(&limit) {
        return Err(Failure::invalid("limit", "is 1 to 1,000"));
    }
    let mut filter = Filter::within(call.scope()?, "e").and("e.id > ?", asked.since_id.unwrap_or(0));
    if let Some(action) = &asked.action {
        filter = filter.and("e.action = ?", action);
    }
    let mut tx = call.app.db.read().await?;
    let sql = format!("SELECT e.* FROM s3_cloudbackup_audit_events e WHERE {} ORDER BY e.id LIMIT {limit}", filter.sql);
    let mut events = Vec::new();
    for row in tx.rows(&sql, &filter.args).await? {
        events.push(AuditEvent {
            id: row.int("id")?,
            at: time_text(row.time("created_at")?),
            actor_kind: row.text("actor_kind")?,
            actor_id: row.opt_int("actor_id")?,
            action: row.text("action")?,
            entity_type: row.text("entity_type")?,
            entity_id: row.text("entity_id")?,
            ip: row.opt_text("ip")?,
            before: row.opt_json("before_json")?,
            after: row.opt_json("after_json")?,
            hash: crate::hex(&row.bytes("hash")?),
        });
    }
    let chain_intact = is_intact(&mut tx).await?;
    Answer::ok(AuditEvents { events, chain_intact })
}

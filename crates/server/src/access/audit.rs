//! The audit log: every change with who did it, each entry bound to the one before (spec control-api 10.6).

use jiff::Timestamp;
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use crate::args;
use crate::failure::Failure;
use crate::store::{Row, StoreError, Tx, Value, time_text};

/// Who does something.
#[derive(Debug, Clone)]
pub struct Actor {
    /// `user`, `agent`, `api` or `system`.
    pub kind: &'static str,
    /// Which one.
    pub id: Option<i64>,
    /// Of which client.
    pub client: Option<i64>,
    /// Of which tenant.
    pub tenant: Option<i64>,
    /// From where.
    pub ip: Option<String>,
    /// With which request.
    pub request_id: Option<String>,
}

impl Actor {
    /// The server by itself, for that client.
    pub fn system(client: i64) -> Actor {
        Actor { kind: "system", id: None, client: Some(client), tenant: None, ip: None, request_id: None }
    }
}

/// What was done to what. Values hold no secrets.
#[derive(Debug)]
pub struct Entry<'a> {
    /// What was done, as `job.create`.
    pub action: &'a str,
    /// To what kind of thing.
    pub entity: &'a str,
    /// To which one.
    pub id: String,
    /// As it was.
    pub before: Option<Json>,
    /// As it is now.
    pub after: Option<Json>,
}

/// Gives the log its beginning, where it has none. False: another instance did it at the same time.
pub async fn begin(tx: &mut Tx) -> Result<bool, StoreError> {
    if tx.count("SELECT COUNT(*) FROM s3_audit_head", args![]).await? > 0 {
        return Ok(true);
    }
    tx.insert_new("s3_audit_head", &[("id", Value::Int(1)), ("last_hash", [0_u8; 32].into())]).await
}

/// Writes an entry in the transaction of the change itself: neither is there without the other.
pub async fn record(tx: &mut Tx, actor: &Actor, now: Timestamp, entry: Entry<'_>) -> Result<(), Failure> {
    let sql = format!("SELECT last_hash FROM s3_audit_head WHERE id = 1{}", tx.for_update());
    let head = tx.row(&sql, args![]).await?.ok_or_else(|| Failure::internal("the audit log has no head"))?;
    let prev_hash = head.bytes("last_hash")?;
    let before = entry.before.map(|value| value.to_string());
    let after = entry.after.map(|value| value.to_string());
    let at = time_text(now);
    let hash = chain(
        &prev_hash,
        [&at, actor.kind, entry.action, entry.entity, &entry.id],
        [actor.client, actor.tenant, actor.id],
        [before.as_deref(), after.as_deref()],
    );
    let columns = [
        ("client_id", Value::from(actor.client)),
        ("tenant_id", actor.tenant.into()),
        ("actor_kind", actor.kind.into()),
        ("actor_id", actor.id.into()),
        ("action", entry.action.into()),
        ("entity_type", entry.entity.into()),
        ("entity_id", entry.id.into()),
        ("request_id", actor.request_id.clone().into()),
        ("ip", actor.ip.clone().into()),
        ("before_json", before.into()),
        ("after_json", after.into()),
        ("prev_hash", prev_hash.into()),
        ("hash", hash.into()),
        ("created_at", now.into()),
    ];
    tx.insert("s3_cloudbackup_audit_events", &columns).await?;
    tx.change("UPDATE s3_audit_head SET last_hash = ? WHERE id = 1", args![hash]).await?;
    Ok(())
}

/// The hash of an entry: over the hash before it and everything that it says, each part with its length.
fn chain(before: &[u8], words: [&str; 5], ids: [Option<i64>; 3], values: [Option<&str>; 2]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(before);
    let ids = ids.map(|id| id.map(|id| id.to_string()));
    let parts = words.into_iter().map(Some).chain(ids.iter().map(Option::as_deref)).chain(values);
    for part in parts {
        match part {
            Some(part) => {
                hasher.update((part.len() as u64).to_le_bytes());
                hasher.update(part.as_bytes());
            }
            None => hasher.update(u64::MAX.to_le_bytes()),
        }
    }
    hasher.finalize().into()
}

/// Whether the whole log hangs together, from its beginning to its head.
pub async fn is_intact(tx: &mut Tx) -> Result<bool, StoreError> {
    let mut last = vec![0; 32];
    let mut after = 0;
    loop {
        let sql = "SELECT * FROM s3_cloudbackup_audit_events WHERE id > ? ORDER BY id LIMIT 1000";
        let rows = tx.rows(sql, args![after]).await?;
        for row in &rows {
            if row.bytes("prev_hash")? != last || hash_of(row, &last)?.as_slice() != row.bytes("hash")? {
                return Ok(false);
            }
            last = row.bytes("hash")?;
            after = row.int("id")?;
        }
        if rows.is_empty() {
            let head = tx.row("SELECT last_hash FROM s3_audit_head WHERE id = 1", args![]).await?;
            return Ok(head.is_some_and(|head| head.bytes("last_hash").is_ok_and(|head| head == last)));
        }
    }
}

fn hash_of(row: &Row, before: &[u8]) -> Result<[u8; 32], StoreError> {
    let at = time_text(row.time("created_at")?);
    let words = ["actor_kind", "action", "entity_type", "entity_id"].map(|name| row.text(name));
    let [kind, action, entity, id] = words;
    Ok(chain(
        before,
        [&at, &kind?, &action?, &entity?, &id?],
        [row.opt_int("client_id")?, row.opt_int("tenant_id")?, row.opt_int("actor_id")?],
        [row.opt_text("before_json")?.as_deref(), row.opt_text("after_json")?.as_deref()],
    ))
}

//! What a client's people and scripts call (spec control-api 6): every query begins with the caller's scope.

pub mod agent_updates;
pub mod agents;
pub mod alert_rules;
pub mod alerts;
pub mod approvals;
pub mod audit;
pub mod dashboard;
pub mod destination_care;
pub mod destinations;
pub mod groups;
pub mod jobs;
pub mod live;
pub mod mfa;
pub mod oidc;
pub mod people;
pub mod points;
pub mod preflight;
pub mod probes;
pub mod questions;
pub mod reports;
pub mod restore;
pub mod runs;
pub mod search;
pub mod session;
pub mod settings;
pub mod setup;
pub mod tokens;
pub mod vms;

use std::future::Future;

use serde_json::Value as Json;

use crate::access::{Filter, Scope};
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::secret;
use crate::store::{Row, Tx};

/// Rows of a list, and where it begins (6).
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// At most 200.
    pub limit: i64,
    /// From 0.
    pub offset: i64,
}

impl Window {
    /// What was asked, within what is allowed.
    pub fn new(limit: Option<i64>, offset: Option<i64>) -> Result<Window, Failure> {
        let limit = limit.unwrap_or(50);
        if !(1..=200).contains(&limit) {
            return Err(Failure::invalid("limit", "is 1 to 200"));
        }
        let offset = offset.unwrap_or(0);
        if !(0..=1_000_000_000).contains(&offset) {
            return Err(Failure::invalid("offset", "is 0 or more"));
        }
        Ok(Window { limit, offset })
    }

    /// For the end of a query.
    pub fn sql(self) -> String {
        format!(" LIMIT {} OFFSET {}", self.limit, self.offset)
    }
}

/// A row of `table` in scope, by its id, locked against other writers.
pub async fn own_row(tx: &mut Tx, scope: Scope, table: &str, id: i64, code: Code) -> Result<Row, Failure> {
    let filter = Filter::within(scope, "x").and("x.id = ?", id);
    let sql = format!("SELECT x.* FROM {table} x WHERE {}{}", filter.sql, tx.for_update());
    tx.row(&sql, &filter.args).await?.ok_or_else(|| code.into())
}

/// The tenant that something new belongs to: the caller's own, or one of the client's that was named.
pub async fn tenant_for(tx: &mut Tx, scope: Scope, asked: Option<i64>) -> Result<Option<i64>, Failure> {
    match (scope.tenant, asked) {
        (Some(own), None) => Ok(Some(own)),
        (Some(own), Some(asked)) if own == asked => Ok(Some(own)),
        (Some(_), Some(_)) => Err(Code::NotFound.into()),
        (None, None) => Ok(None),
        (None, Some(asked)) => {
            let sql = "SELECT id FROM s3_backup_tenants WHERE client_id = ? AND id = ? AND status = 'active'";
            tx.row(sql, args![scope.client, asked]).await?.ok_or(Code::NotFound)?;
            Ok(Some(asked))
        }
    }
}

/// Does something once for each `Idempotency-Key` of a person; asked again, the same is answered for a day.
///
/// `work` gives its answer to [`remember`] before it commits: neither is there without the other, wherever a server dies.
pub async fn once<'a, F>(call: &'a Call<'a>, scope: &str, work: F) -> Result<Answer, Failure>
where
    F: Future<Output = Result<Answer, Failure>> + Send + 'a,
{
    if let Some(answer) = remembered(call, scope).await? {
        return Ok(answer);
    }
    match work.await {
        // The same call may have come twice at once, and the other was first.
        Err(failure) => remembered(call, scope).await?.ok_or(failure),
        done => done,
    }
}

fn key_of(call: &Call<'_>, scope: &str) -> Result<Option<[u8; 32]>, Failure> {
    let Some(key) = &call.idempotency_key else { return Ok(None) };
    Ok(Some(secret::hash(&format!("{}\n{scope}\n{key}", call.person()?.user))))
}

async fn remembered(call: &Call<'_>, scope: &str) -> Result<Option<Answer>, Failure> {
    let Some(hash) = key_of(call, scope)? else { return Ok(None) };
    let sql = "SELECT response_json FROM s3_idempotency_keys WHERE key_hash = ? AND expires_at > ?";
    let kept = call.app.db.read().await?.row(sql, args![hash, call.app.clock.now()]).await?;
    kept.map(|kept| Ok(Answer::bare(kept.opt_json("response_json")?.unwrap_or_default()))).transpose()
}

/// Keeps the answer under the call's key, if it has one, in the transaction of the work itself.
pub async fn remember(tx: &mut Tx, call: &Call<'_>, scope: &str, json: Option<Json>) -> Result<(), Failure> {
    let Some((hash, json)) = key_of(call, scope)?.zip(json) else { return Ok(()) };
    let now = call.app.clock.now();
    tx.change("DELETE FROM s3_idempotency_keys WHERE key_hash = ? AND expires_at <= ?", args![hash, now]).await?;
    let columns = [
        ("key_hash", hash.into()),
        ("scope", scope.into()),
        ("response_json", json.into()),
        ("expires_at", after(now, 86_400).into()),
    ];
    tx.insert("s3_idempotency_keys", &columns).await?;
    Ok(())
}

/// `health.php`: for machines, and for agents to compare clocks.
pub async fn health(call: &Call<'_>) -> Result<Answer, Failure> {
    Answer::ok(control_api::envelope::Health {
        version: env!("CARGO_PKG_VERSION").into(),
        time: crate::store::time_text(call.app.clock.now()),
        min_agent_version: call.app.settings.min_agent_version.clone(),
    })
}

//! Agents, as people see and manage them (spec control-api 1.6, 6.2).

use control_api::agent::{Agent, Agents};
use control_api::enrolment::{AgentRef, DisableAgent, ToggleAgent};
use control_api::id::Id;
use control_api::words::AgentStatus;
use serde_json::json;

use super::Window;
use crate::access::audit::{self, Entry};
use crate::access::{Filter, Scope};
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::secret;
use crate::store::{Row, Tx, Value, time_text};

/// An agent that was not heard of so long is not online.
pub const ONLINE_SECS: i64 = 180;

/// `e3backup_agent_list.php`.
pub async fn list(call: &Call<'_>) -> Result<Answer, Failure> {
    let page: control_api::account::Page = call.read()?;
    let window = Window::new(page.limit, page.offset)?;
    let now = call.app.clock.now();
    let filter = Filter::within(call.scope()?, "a").and_sql("a.status <> 'deleted'");
    let mut tx = call.app.db.read().await?;
    let count = format!("SELECT COUNT(*) FROM s3_cloudbackup_agents a WHERE {}", filter.sql);
    let total = tx.count(&count, &filter.args).await?;
    let sql = format!(
        "SELECT a.*, (SELECT COUNT(*) FROM s3_host_vms v WHERE v.agent_id = a.id AND v.missing_since IS NULL) AS vms \
         FROM s3_cloudbackup_agents a WHERE {} ORDER BY a.hostname, a.id{}",
        filter.sql,
        window.sql()
    );
    let mut agents = Vec::new();
    for row in tx.rows(&sql, &filter.args).await? {
        let last_seen = row.opt_time("last_seen_at")?;
        agents.push(Agent {
            agent_id: row.int("id")?,
            agent_uuid: row.text("agent_uuid")?,
            tenant_id: row.opt_int("tenant_id")?,
            hostname: row.opt_text("hostname")?,
            device_name: row.opt_text("device_name")?,
            status: row.word("status", AgentStatus::of_word)?,
            agent_type: row.text("agent_type")?,
            agent_version: row.opt_text("agent_version")?,
            agent_os: row.opt_text("agent_os")?,
            agent_arch: row.opt_text("agent_arch")?,
            last_seen_at: last_seen.map(time_text),
            is_online: last_seen.is_some_and(|seen| after(seen, ONLINE_SECS) > now),
            clock_skew_ms: row.opt_int("clock_skew_ms")?,
            vm_count: row.int("vms")?,
        });
    }
    let Window { limit, offset } = window;
    Answer::ok(Agents { agents, online_threshold_seconds: ONLINE_SECS, total, limit, offset })
}

/// The agent of that id in scope, locked.
pub async fn find(tx: &mut Tx, scope: Scope, id: Option<&Id>, uuid: Option<&Id>) -> Result<Row, Failure> {
    let id = id.or(uuid).ok_or_else(|| Failure::missing("agent_id"))?;
    let filter = Filter::within(scope, "a").and_sql("a.status <> 'deleted'");
    let filter = match id {
        Id::Number(number) => filter.and("a.id = ?", *number),
        Id::Uuid(uuid) => filter.and("a.agent_uuid = ?", uuid),
    };
    let sql = format!("SELECT a.* FROM s3_cloudbackup_agents a WHERE {}{}", filter.sql, tx.for_update());
    tx.row(&sql, &filter.args).await?.ok_or_else(|| Code::NotFound.into())
}

/// `e3backup_agent_toggle.php`.
pub async fn toggle(call: &Call<'_>) -> Result<Answer, Failure> {
    let now = call.app.clock.now();
    let asked: ToggleAgent = call.read()?;
    if asked.status == AgentStatus::Deleted {
        return Err(Failure::invalid("status", "active or disabled"));
    }
    let mut tx = call.app.db.write().await?;
    let row = find(&mut tx, call.scope()?, asked.agent_id.as_ref(), asked.agent_uuid.as_ref()).await?;
    // Whoever calls next is the one: the choice between two machines with one token is made by turning one off.
    let columns = [
        ("status", asked.status.word().into()),
        ("disabled_reason", Value::Null),
        ("install_id", Value::Null),
        ("updated_at", now.into()),
    ];
    change(&mut tx, call, &row, &columns, "agent.toggle", json!({ "status": asked.status.word() })).await?;
    tx.commit().await?;
    Answer::done()
}

/// `agent_disable.php`.
pub async fn disable(call: &Call<'_>) -> Result<Answer, Failure> {
    let now = call.app.clock.now();
    let asked: DisableAgent = call.read()?;
    let mut tx = call.app.db.write().await?;
    let row = find(&mut tx, call.scope()?, asked.agent_id.as_ref(), asked.agent_uuid.as_ref()).await?;
    let mut columns: Vec<(&str, Value)> = vec![("status", "disabled".into()), ("updated_at", now.into())];
    if asked.revoke {
        // A hash that no token has.
        columns.push(("token_hash", secret::random::<32>()?.into()));
        columns.push(("prev_token_hash", Value::Null));
    }
    change(&mut tx, call, &row, &columns, "agent.disable", json!({ "revoke": asked.revoke })).await?;
    tx.commit().await?;
    Answer::done()
}

/// `agent_delete.php`: its jobs are paused, and nothing of what it stored is touched.
pub async fn delete(call: &Call<'_>) -> Result<Answer, Failure> {
    let now = call.app.clock.now();
    let asked: AgentRef = call.read()?;
    let mut tx = call.app.db.write().await?;
    let row = find(&mut tx, call.scope()?, asked.agent_id.as_ref(), asked.agent_uuid.as_ref()).await?;
    let columns = [
        ("status", "deleted".into()),
        ("token_hash", secret::random::<32>()?.into()),
        ("prev_token_hash", Value::Null),
        ("updated_at", now.into()),
    ];
    change(&mut tx, call, &row, &columns, "agent.delete", json!({})).await?;
    let pause = "UPDATE s3_cloudbackup_jobs SET status = 'paused', pause_reason = 'agent_deleted', next_run_at = NULL, \
                 version = version + 1, updated_at = ? WHERE agent_id = ? AND status = 'active'";
    tx.change(pause, args![now, row.int("id")?]).await?;
    let missing = "UPDATE s3_host_vms SET missing_since = ? WHERE agent_id = ? AND missing_since IS NULL";
    tx.change(missing, args![now, row.int("id")?]).await?;
    tx.commit().await?;
    Answer::done()
}

async fn change(
    tx: &mut Tx,
    call: &Call<'_>,
    row: &Row,
    columns: &[(&str, Value)],
    action: &str,
    after: serde_json::Value,
) -> Result<(), Failure> {
    let id = row.int("id")?;
    tx.update("s3_cloudbackup_agents", columns, "id = ?", args![id]).await?;
    let before = json!({ "status": row.text("status")? });
    let entry = Entry { action, entity: "agent", id: id.to_string(), before: Some(before), after: Some(after) };
    audit::record(tx, &call.actor(), call.app.clock.now(), entry).await
}

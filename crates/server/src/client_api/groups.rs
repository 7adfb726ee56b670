//! Clusters and host groups, which jobs can target instead of one host (spec control-api 4.1).

use std::collections::BTreeMap;

use control_api::account::Page;
use control_api::agent::{HostGroup, HostGroupAnswer, HostGroupRequest, HostGroups};
use serde_json::json;

use super::{Window, agents, own_row, tenant_for};
use crate::access::audit::{self, Entry};
use crate::access::{Filter, Scope};
use crate::args;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::store::{Row, Tx, Value};

/// `e3backup_host_group_list.php`.
pub async fn list(call: &Call<'_>) -> Result<Answer, Failure> {
    let page: Page = call.read()?;
    let window = Window::new(page.limit, page.offset)?;
    let filter = Filter::within(call.scope()?, "g");
    let mut tx = call.app.db.read().await?;
    let count = format!("SELECT COUNT(*) FROM s3_host_groups g WHERE {}", filter.sql);
    let total = tx.count(&count, &filter.args).await?;
    let sql = format!("SELECT g.* FROM s3_host_groups g WHERE {} ORDER BY g.name, g.id{}", filter.sql, window.sql());
    let rows = tx.rows(&sql, &filter.args).await?;
    let members = format!(
        "SELECT m.group_id, m.agent_id FROM s3_host_group_members m JOIN s3_host_groups g ON g.id = m.group_id \
         WHERE {} ORDER BY m.agent_id",
        filter.sql
    );
    let mut of_group: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for row in tx.rows(&members, &filter.args).await? {
        of_group.entry(row.int("group_id")?).or_default().push(row.int("agent_id")?);
    }
    let groups = rows.iter().map(|row| on_wire(row, of_group.remove(&row.int("id")?).unwrap_or_default()));
    Answer::ok(HostGroups { host_groups: groups.collect::<Result<_, _>>()?, total })
}

fn on_wire(row: &Row, agent_ids: Vec<i64>) -> Result<HostGroup, Failure> {
    Ok(HostGroup {
        id: row.int("id")?,
        name: row.text("name")?,
        tenant_id: row.opt_int("tenant_id")?,
        kind: row.text("kind")?,
        agent_ids,
    })
}

fn check(asked: &HostGroupRequest) -> Result<(), Failure> {
    if asked.name.as_ref().is_some_and(|name| name.trim().is_empty() || name.chars().count() > 191) {
        return Err(Failure::invalid("name", "has 1 to 191 characters"));
    }
    if asked.kind.as_ref().is_some_and(|kind| !["cluster", "group"].contains(&kind.as_str())) {
        return Err(Failure::invalid("kind", "is cluster or group"));
    }
    if asked.agent_ids.as_ref().is_some_and(|ids| ids.len() > 256) {
        return Err(Failure::invalid("agent_ids", "names at most 256 agents"));
    }
    Ok(())
}

/// `e3backup_host_group_create.php`.
pub async fn create(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: HostGroupRequest = call.read()?;
    check(&asked)?;
    let name = asked.name.clone().ok_or_else(|| Failure::missing("name"))?;
    let mut tx = call.app.db.write().await?;
    let tenant = tenant_for(&mut tx, person.scope, asked.tenant_id).await?;
    let columns = [
        ("client_id", person.scope.client.into()),
        ("tenant_id", tenant.into()),
        ("name", name.clone().into()),
        ("kind", asked.kind.clone().unwrap_or_else(|| "group".into()).into()),
        ("created_at", now.into()),
    ];
    let id = tx.insert("s3_host_groups", &columns).await?;
    fill(&mut tx, person.scope, id, tenant, asked.agent_ids.as_deref().unwrap_or_default()).await?;
    let after = Some(json!({ "name": name, "agent_ids": asked.agent_ids }));
    let entry = Entry { action: "host_group.create", entity: "host_group", id: id.to_string(), before: None, after };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    let host_group = read(&mut tx, person.scope, id).await?;
    tx.commit().await?;
    Answer::ok(HostGroupAnswer { host_group })
}

/// `e3backup_host_group_update.php`.
pub async fn update(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: HostGroupRequest = call.read()?;
    check(&asked)?;
    let id = asked.id.ok_or_else(|| Failure::missing("id"))?;
    let mut tx = call.app.db.write().await?;
    let row = own_row(&mut tx, person.scope, "s3_host_groups", id, Code::NotFound).await?;
    let before = read(&mut tx, person.scope, id).await?;
    let mut columns: Vec<(&str, Value)> = Vec::new();
    if let Some(name) = &asked.name {
        columns.push(("name", name.into()));
    }
    if let Some(kind) = &asked.kind {
        columns.push(("kind", kind.into()));
    }
    if !columns.is_empty() {
        tx.update("s3_host_groups", &columns, "id = ?", args![id]).await?;
    }
    if let Some(agents) = &asked.agent_ids {
        tx.change("DELETE FROM s3_host_group_members WHERE group_id = ?", args![id]).await?;
        fill(&mut tx, person.scope, id, row.opt_int("tenant_id")?, agents).await?;
    }
    let host_group = read(&mut tx, person.scope, id).await?;
    let entry = Entry {
        action: "host_group.update",
        entity: "host_group",
        id: id.to_string(),
        before: Some(json!(before)),
        after: Some(json!(host_group)),
    };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::ok(HostGroupAnswer { host_group })
}

/// Agents of the group's own tenant, and no others.
async fn fill(tx: &mut Tx, scope: Scope, group: i64, tenant: Option<i64>, agents: &[i64]) -> Result<(), Failure> {
    for id in agents {
        let agent = agents::find(tx, scope, Some(&(*id).into()), None).await?;
        if agent.opt_int("tenant_id")? != tenant {
            return Err(Code::NotFound.into());
        }
        tx.insert_new("s3_host_group_members", &[("group_id", group.into()), ("agent_id", (*id).into())]).await?;
    }
    Ok(())
}

async fn read(tx: &mut Tx, scope: Scope, id: i64) -> Result<HostGroup, Failure> {
    let row = own_row(tx, scope, "s3_host_groups", id, Code::NotFound).await?;
    let sql = "SELECT agent_id FROM s3_host_group_members WHERE group_id = ? ORDER BY agent_id";
    let ids = tx.rows(sql, args![id]).await?.iter().map(|row| row.int("agent_id")).collect::<Result<_, _>>()?;
    on_wire(&row, ids)
}

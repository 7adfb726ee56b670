//! Updates of agents (spec control-api 2.7, 2.12, 6.2): which package, and how far the agent is with it.
//!
//! The server keeps no packages: an administrator names one with its hash and its detached signature, and the agent
//! checks both. It is the server that says when an update has succeeded: when the agent is back with that version.

use control_api::agent::{RequestUpdate, UpdateProgress, UpdateRef, UpdateState};
use serde_json::{Map, json};

use super::{agents, own_row, questions};
use crate::access::audit::{self, Entry};
use crate::args;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::store::{Row, time_text};

/// What an agent may say of an update; `success` is not its to say.
const STATES: [&str; 9] = [
    "queued",
    "downloading",
    "verifying",
    "applying",
    "restarting",
    "verifying_online",
    "success",
    "failed",
    "timeout",
];

fn check(asked: &RequestUpdate) -> Result<(), Failure> {
    let mut wrong: Vec<(String, String)> = Vec::new();
    let mut say = |field: &str, why: &str| wrong.push((field.to_owned(), why.to_owned()));
    let is_https = url::Url::parse(&asked.download_url).is_ok_and(|url| {
        url.scheme() == "https" && url.has_host() && url.username().is_empty() && url.password().is_none()
    });
    if !is_https || asked.download_url.chars().count() > 1024 {
        say("download_url", "is an https address without a user in it");
    }
    if asked.sha256.len() != 64 || !asked.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        say("sha256", "has 64 hexadecimal digits");
    }
    if !(1..=4 << 30).contains(&asked.size_bytes) {
        say("size_bytes", "is 1 to 4 GiB");
    }
    for (field, text, most) in [
        ("version_label", &asked.version_label, 64),
        ("platform", &asked.platform, 32),
        ("signature", &asked.signature, 4096),
    ] {
        if text.trim().is_empty() || text.chars().count() > most {
            say(field, "is missing or too long");
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(Failure::validation(&wrong)) }
}

/// `e3backup_agent_request_update.php`.
pub async fn request(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: RequestUpdate = call.read()?;
    check(&asked)?;
    let mut tx = call.app.db.write().await?;
    let agent = agents::find(&mut tx, person.scope, Some(&asked.agent_id.into()), None).await?;
    let (agent_id, tenant) = (agent.int("id")?, agent.opt_int("tenant_id")?);
    let package = json!({
        "version_label": asked.version_label,
        "download_url": asked.download_url,
        "sha256": asked.sha256.to_ascii_lowercase(),
        "size_bytes": asked.size_bytes,
        "platform": asked.platform,
        "signature": asked.signature,
    });
    let columns = [
        ("client_id", person.scope.client.into()),
        ("tenant_id", tenant.into()),
        ("agent_id", agent_id.into()),
        ("version_label", asked.version_label.clone().into()),
        ("package_json", package.clone().into()),
        ("requested_by", person.user.into()),
        ("created_at", now.into()),
        ("updated_at", now.into()),
    ];
    let id = tx.insert("s3_agent_updates", &columns).await?;
    let mut payload = package.as_object().cloned().unwrap_or_else(Map::new);
    payload.insert("update_job_id".into(), id.into());
    let kind = "agent_update";
    let question = questions::Question { agent: agent_id, kind, payload, run: None, job: None, point: None };
    questions::queue(&mut tx, person, question, now).await?;
    let entry =
        Entry { action: "agent.update", entity: "agent", id: agent_id.to_string(), before: None, after: Some(package) };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    let row = own_row(&mut tx, person.scope, "s3_agent_updates", id, Code::NotFound).await?;
    tx.commit().await?;
    Answer::ok(on_wire(&row, None)?)
}

/// `e3backup_agent_update_status.php`.
pub async fn status(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: UpdateRef = call.read()?;
    let mut tx = call.app.db.write().await?;
    let row = own_row(&mut tx, call.scope()?, "s3_agent_updates", asked.update_job_id, Code::NotFound).await?;
    let sql = "SELECT agent_version FROM s3_cloudbackup_agents WHERE id = ?";
    let agent = tx.row(sql, args![row.int("agent_id")?]).await?;
    let version = agent.map(|agent| agent.opt_text("agent_version")).transpose()?.flatten();
    Answer::ok(on_wire(&row, version.as_deref())?)
}

fn on_wire(row: &Row, agent_version: Option<&str>) -> Result<UpdateState, Failure> {
    let (version_label, told) = (row.text("version_label")?, row.text("state")?);
    let is_back = agent_version == Some(version_label.as_str());
    Ok(UpdateState {
        update_job_id: row.int("id")?,
        agent_id: row.int("agent_id")?,
        state: if is_back && told != "failed" { "success".into() } else { told },
        version_label,
        detail: row.opt_text("detail")?,
        created_at: time_text(row.time("created_at")?),
        updated_at: time_text(row.time("updated_at")?),
    })
}

/// `agent_update_progress.php`: of the agent's own updates.
pub async fn progress(call: &Call<'_>) -> Result<Answer, Failure> {
    let (agent, now) = (call.agent()?, call.app.clock.now());
    let asked: UpdateProgress = call.read()?;
    if !STATES.contains(&asked.state.as_str()) {
        return Err(Failure::invalid("state", format!("is one of {}", STATES.join(", "))));
    }
    // That it is back with the new version, the server sees by itself.
    let state = if asked.state == "success" { "verifying_online" } else { asked.state.as_str() };
    let detail = asked.detail.map(|detail| detail.chars().take(4096).collect::<String>());
    let mut tx = call.app.db.write().await?;
    let columns = [("state", state.into()), ("detail", detail.into()), ("updated_at", now.into())];
    let condition = "id = ? AND agent_id = ?";
    if tx.update("s3_agent_updates", &columns, condition, args![asked.update_job_id, agent.id]).await? == 0 {
        return Err(Code::NotFound.into());
    }
    tx.commit().await?;
    Answer::done()
}

//! Questions to an agent: always queued, always answered with an id to ask again with (spec control-api 6.2).

use control_api::Object;
use control_api::command::{CommandQuery, CommandState, Queued};
use control_api::enrolment::AgentRef;
use control_api::job::JobRef;
use control_api::words::CommandStatus;
use jiff::Timestamp;
use serde_json::{Value as Json, json};

use super::{agents, jobs};
use crate::access::person::Person;
use crate::access::{Filter, Need, allows};
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::store::Tx;

/// A question that no agent fetched in this time is dropped.
const EXPIRES_SECS: i64 = 24 * 3600;

/// What an agent is asked to do.
#[derive(Debug)]
pub struct Question {
    /// Who.
    pub agent: i64,
    /// What (2.7).
    pub kind: &'static str,
    /// With what; never a secret.
    pub payload: Object,
    /// Of which run.
    pub run: Option<i64>,
    /// With the keys of which job.
    pub job: Option<i64>,
    /// Of which point: it allows the agent to read it.
    pub point: Option<i64>,
}

/// Queues a command; its id.
pub async fn queue(tx: &mut Tx, person: &Person, question: Question, now: Timestamp) -> Result<i64, Failure> {
    let agent = tx.row("SELECT * FROM s3_cloudbackup_agents WHERE id = ?", args![question.agent]).await?;
    let agent = agent.filter(|agent| agent.text("status").is_ok_and(|status| status == "active"));
    let agent = agent.ok_or_else(|| Failure::with(Code::Conflict, "The agent is disabled or deleted"))?;
    let columns = [
        ("run_id", question.run.into()),
        ("job_id", question.job.into()),
        ("agent_id", question.agent.into()),
        ("client_id", person.scope.client.into()),
        ("tenant_id", agent.opt_int("tenant_id")?.into()),
        ("type", question.kind.into()),
        ("payload_json", json!(question.payload).into()),
        ("point_id", question.point.into()),
        ("status", CommandStatus::Pending.word().into()),
        ("requested_by", person.user.into()),
        ("created_at", now.into()),
        ("expires_at", after(now, EXPIRES_SECS).into()),
    ];
    Ok(tx.insert("s3_cloudbackup_run_commands", &columns).await?)
}

async fn ask(call: &Call<'_>, kind: &'static str, keys: &[&str]) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: AgentRef = call.read()?;
    let payload: Object =
        keys.iter().filter_map(|key| Some(((*key).to_owned(), call.fields.get(*key)?.clone()))).collect();
    if json!(payload).to_string().len() > 65_536 {
        return Err(Failure::invalid("payload", "larger than 64 KiB"));
    }
    let mut tx = call.app.db.write().await?;
    let agent = agents::find(&mut tx, person.scope, asked.agent_id.as_ref(), asked.agent_uuid.as_ref()).await?;
    let question = Question { agent: agent.int("id")?, kind, payload, run: None, job: None, point: None };
    let command_id = queue(&mut tx, person, question, now).await?;
    tx.commit().await?;
    Answer::with("pending", Queued { command_id })
}

/// `agent_list_hyperv_vms.php`.
pub async fn list_vms(call: &Call<'_>) -> Result<Answer, Failure> {
    ask(call, "list_hyperv_vms", &[]).await
}

/// `agent_list_hyperv_vm_details.php`.
pub async fn vm_details(call: &Call<'_>) -> Result<Answer, Failure> {
    ask(call, "list_hyperv_vm_details", &["vm_ids"]).await
}

/// `agent_browse_filesystem.php`.
pub async fn browse(call: &Call<'_>) -> Result<Answer, Failure> {
    ask(call, "browse_directory", &["path", "max_items"]).await
}

/// `agent_list_disks.php`.
pub async fn list_disks(call: &Call<'_>) -> Result<Answer, Failure> {
    ask(call, "list_disks", &[]).await
}

/// `agent_list_volumes.php`: what the agent reported last.
pub async fn volumes(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: AgentRef = call.read()?;
    let mut tx = call.app.db.write().await?;
    let agent = agents::find(&mut tx, call.scope()?, asked.agent_id.as_ref(), asked.agent_uuid.as_ref()).await?;
    let volumes: Json = agent.opt_json("volumes_json")?.unwrap_or_else(|| json!([]));
    Answer::ok(json!({ "volumes": volumes }))
}

/// `cloudbackup_hyperv_refresh_vm_discovery.php`: the agent is asked; a list from a browser is not taken.
pub async fn refresh(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: JobRef = call.read()?;
    let mut tx = call.app.db.write().await?;
    let job = jobs::find(&mut tx, person.scope, &asked.job_id).await?;
    let agent = job.opt_int("agent_id")?.ok_or_else(|| Failure::with(Code::Conflict, "The job has no agent"))?;
    let id = job.int("id")?;
    let payload = Object::from_iter([("job_id".to_owned(), json!(id))]);
    let question = Question { agent, kind: "refresh_inventory", payload, run: None, job: Some(id), point: None };
    let command_id = queue(&mut tx, person, question, now).await?;
    tx.commit().await?;
    Answer::with("pending", Queued { command_id })
}

/// `cloudbackup_command_status.php`, `agent_poll_hyperv_vms.php`: for who asked, and for administrators of the scope.
pub async fn status(call: &Call<'_>) -> Result<Answer, Failure> {
    let person = call.person()?;
    let asked: CommandQuery = call.read()?;
    let mut filter = Filter::within(person.scope, "c").and("c.id = ?", asked.command_id);
    if !allows(person.role, Need::Admin) {
        filter = filter.and("c.requested_by = ?", person.user);
    }
    let sql = format!("SELECT c.* FROM s3_cloudbackup_run_commands c WHERE {}", filter.sql);
    let row = call.app.db.read().await?.row(&sql, &filter.args).await?.ok_or(Code::CommandNotFound)?;
    let result = row.opt_bytes("result_blob")?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Answer::ok(CommandState {
        command_id: row.int("id")?,
        command_status: row.word("status", CommandStatus::of_word)?,
        result,
        result_message: row.opt_text("result_message")?,
    })
}

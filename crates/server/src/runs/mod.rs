//! The life of a run (spec control-api 3): queued, claimed, reported, ended.
//!
//! `transition.rs` says which step may follow which, and nothing else; `claim.rs` hands a run to its agent and
//! `payload.rs` what it needs; `update.rs` takes what the agent reports; `commit.rs` records points; `end.rs` ends runs
//! that the server ends by itself; `follow.rs` hands on VMs that moved.

pub mod claim;
pub mod commit;
pub mod end;
pub mod events;
pub mod follow;
pub mod payload;
pub mod transition;
pub mod update;

use control_api::id::Id;
use control_api::words::{RunStatus, TriggerType};
use jiff::Timestamp;

use crate::access::Filter;
use crate::changes;
use crate::failure::{Code, Failure};
use crate::store::{Row, Tx, Value};

/// A claim is good for so long after its last sign (3.3).
pub const LEASE_SECS: i64 = 180;
/// A run without a sign for so long has failed (3.3).
pub const SILENT_SECS: i64 = 720;
/// So often a run may begin (3.3).
pub const MAX_ATTEMPTS: i64 = 3;

/// Statuses of a run that is not over.
pub const IN_FLIGHT: &str = "('queued', 'starting', 'running')";
/// A run that is a backup.
pub const IS_BACKUP: &str = "(run_type IS NULL OR run_type = 'backup')";

/// What is asked of a new run.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Who asks.
    pub trigger: TriggerType,
    /// Which account.
    pub by: Option<i64>,
    /// For which slot of the schedule.
    pub slot: Option<Timestamp>,
    /// Not handed out before.
    pub not_before: Option<Timestamp>,
    /// Everything is read.
    pub force_full: bool,
    /// Only these VMs; none means all that the job takes.
    pub only_vms: Vec<i64>,
}

/// A run that was queued.
#[derive(Debug, Clone)]
pub struct QueuedRun {
    /// Its id.
    pub id: i64,
    /// Its UUID.
    pub uuid: String,
}

/// Queues a backup of `job` on `agent`; [`Code::AlreadyRunning`] if one is in flight there.
pub async fn queue(tx: &mut Tx, job: &Row, agent: i64, new: &NewRun, now: Timestamp) -> Result<QueuedRun, Failure> {
    let uuid = uuid::Uuid::now_v7().to_string();
    let only = (!new.only_vms.is_empty()).then(|| serde_json::json!(new.only_vms));
    let columns: [(&str, Value); 17] = [
        ("run_uuid", uuid.clone().into()),
        ("job_id", job.int("id")?.into()),
        ("client_id", job.int("client_id")?.into()),
        ("tenant_id", job.opt_int("tenant_id")?.into()),
        ("agent_id", agent.into()),
        ("repository_id", job.opt_text("repository_id")?.into()),
        ("engine", job.text("engine")?.into()),
        ("run_type", "backup".into()),
        ("trigger_type", new.trigger.word().into()),
        ("triggered_by", new.by.into()),
        ("slot_utc", new.slot.into()),
        ("not_before", new.not_before.into()),
        ("status", RunStatus::Queued.word().into()),
        ("created_at", now.into()),
        ("force_full", new.force_full.into()),
        ("only_vms_json", only.into()),
        ("updated_at", now.into()),
    ];
    let id = match tx.insert("s3_cloudbackup_runs", &columns).await {
        Ok(id) => id,
        Err(error) if error.is_duplicate() => return Err(Code::AlreadyRunning.into()),
        Err(error) => return Err(error.into()),
    };
    changes::touch(tx, job.int("client_id")?, job.opt_int("tenant_id")?, "runs", now).await?;
    Ok(QueuedRun { id, uuid })
}

/// The condition that names a run, and its value.
pub fn named(column: &str, id: &Id) -> (String, Value) {
    match id {
        Id::Number(number) => (format!("{column}id = ?"), (*number).into()),
        Id::Uuid(uuid) => (format!("{column}run_uuid = ?"), uuid.into()),
    }
}

/// The run of that id inside of the filter, locked against other writers.
pub async fn find_locked(tx: &mut Tx, filter: Filter, id: &Id) -> Result<Row, Failure> {
    let (condition, value) = named("r.", id);
    let filter = filter.and(&condition, value);
    let sql = format!("SELECT r.* FROM s3_cloudbackup_runs r WHERE {}{}", filter.sql, tx.for_update());
    tx.row(&sql, &filter.args).await?.ok_or_else(|| Code::RunNotFound.into())
}

/// The run of an agent, locked: no other agent's, not even of the same client (2.3).
pub async fn of_agent_locked(tx: &mut Tx, agent: i64, id: &Id) -> Result<Row, Failure> {
    find_locked(tx, Filter { sql: "r.agent_id = ?".into(), args: vec![agent.into()] }, id).await
}

/// Where a run stands.
pub fn status(run: &Row) -> Result<RunStatus, Failure> {
    Ok(run.word("status", RunStatus::of_word)?)
}

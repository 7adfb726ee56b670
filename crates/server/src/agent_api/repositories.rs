//! Work on repositories that any agent of the same client and tenant may do (spec control-api 2.8).

use control_api::repository::{CompleteRepoOperation, PollRepoOperations, PollRepoOperationsAnswer, RepoOperation};
use control_api::words::RepoOperationType;
use jiff::Timestamp;

use crate::App;
use crate::access::Filter;
use crate::access::agent::Agent;
use crate::args;
use crate::clock::after;
use crate::deletion;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::secret;
use crate::store::{Tx, Value};
use crate::vault;

/// A lease is renewed by progress; without, another agent may try.
const LEASE_SECS: i64 = 600;
/// So often an operation is tried.
const MAX_ATTEMPTS: i64 = 5;

/// `agent_poll_repo_operations.php`.
pub async fn poll(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: PollRepoOperations = call.read()?;
    let operation = if asked.busy { None } else { claim(call.app, call.agent()?, call.app.clock.now()).await? };
    Answer::ok(PollRepoOperationsAnswer { operation })
}

/// Claims one operation, with the one lease of its repository.
pub async fn claim(app: &App, agent: &Agent, now: Timestamp) -> Result<Option<RepoOperation>, Failure> {
    let mut tx = app.db.write().await?;
    let filter = Filter::beside(agent, "o").and_sql("o.status = 'queued'").and("o.next_attempt_at <= ?", now);
    let sql = format!(
        "SELECT o.* FROM s3_kopia_repo_operations o WHERE {} ORDER BY o.id LIMIT 5{}",
        filter.sql,
        tx.for_update_skipping()
    );
    for row in tx.rows(&sql, &filter.args).await? {
        let repository = row.int("repo_id")?;
        let token = secret::token("op_")?;
        if !lock(&mut tx, repository, Some(agent.id), &token, now).await? {
            continue;
        }
        let columns = [
            ("status", "running".into()),
            ("claimed_by_agent_id", agent.id.into()),
            ("attempt_count", (row.int("attempt_count")? + 1).into()),
            ("operation_token", token.clone().into()),
            ("lease_until", after(now, LEASE_SECS).into()),
            ("updated_at", now.into()),
        ];
        let condition = "id = ? AND status = 'queued'";
        if tx.update("s3_kopia_repo_operations", &columns, condition, args![row.int("id")?]).await? == 0 {
            continue;
        }
        let payload = deletion::still_wanted(&mut tx, &row, now).await?;
        let sql = "SELECT * FROM s3_cloudbackup_repositories WHERE id = ?";
        let stored = tx.row(sql, args![repository]).await?.ok_or(Code::NotFound)?;
        let (bucket, repository_id) = (stored.opt_int("bucket_id")?, stored.text("repository_id")?);
        let opened = vault::keys(&mut tx, bucket, Some(repository_id.clone())).await?.open(&app.vault)?;
        tx.commit().await?;
        return Ok(Some(RepoOperation {
            operation_id: row.int("id")?,
            operation_token: token,
            op_type: row.word("op_type", RepoOperationType::of_word)?,
            repo_id: repository,
            repository_id,
            bucket_id: bucket,
            bucket_name: opened.destination.dest_bucket_name,
            root_prefix: opened.destination.dest_prefix,
            endpoint: opened.destination.dest_endpoint.or(opened.destination.dest_local_path),
            region: opened.destination.dest_region,
            dest_access_key: opened.destination.dest_access_key,
            dest_secret_key: opened.destination.dest_secret_key,
            repository_password: opened.repository_password,
            effective_policy: payload.map(serde_json::Value::Object),
        }));
    }
    Ok(None)
}

/// Takes the lease of a repository, or one that is over.
pub async fn lock(
    tx: &mut Tx,
    repository: i64,
    agent: Option<i64>,
    token: &str,
    now: Timestamp,
) -> Result<bool, Failure> {
    let columns = [
        ("lock_token", token.into()),
        ("claimed_by_agent_id", agent.into()),
        ("expires_at", after(now, LEASE_SECS).into()),
    ];
    let find = format!("SELECT expires_at FROM s3_kopia_repo_locks WHERE repo_id = ?{}", tx.for_update());
    match tx.row(&find, args![repository]).await? {
        Some(held) if held.time("expires_at")? > now => Ok(false),
        Some(_) => {
            tx.update("s3_kopia_repo_locks", &columns, "repo_id = ?", args![repository]).await?;
            Ok(true)
        }
        None => {
            let mut all: Vec<(&str, Value)> = columns.to_vec();
            all.push(("repo_id", repository.into()));
            Ok(tx.insert_new("s3_kopia_repo_locks", &all).await?)
        }
    }
}

/// `agent_complete_repo_operation.php`.
pub async fn complete(call: &Call<'_>) -> Result<Answer, Failure> {
    let (agent, now) = (call.agent()?, call.app.clock.now());
    let asked: CompleteRepoOperation = call.read()?;
    if !matches!(asked.status.as_str(), "success" | "failed") {
        return Err(Failure::invalid("status", "neither success nor failed"));
    }
    let mut tx = call.app.db.write().await?;
    let filter = Filter::beside(agent, "o").and("o.id = ?", asked.operation_id);
    let sql = format!("SELECT o.* FROM s3_kopia_repo_operations o WHERE {}{}", filter.sql, tx.for_update());
    let row = tx.row(&sql, &filter.args).await?.ok_or(Code::NotFound)?;
    let is_claimer = row.opt_int("claimed_by_agent_id")? == Some(agent.id)
        && secret::same(&secret::hash(&asked.operation_token), &secret::hash(&row.text("operation_token")?));
    if !is_claimer {
        return Err(Code::NotClaimed.into());
    }
    let is = row.text("status")?;
    if is == asked.status {
        return Answer::done();
    }
    if is != "running" {
        return Err(Code::AlreadyCompleted.into());
    }
    let tries = row.int("attempt_count")?;
    let is_again = asked.status == "failed" && tries < MAX_ATTEMPTS;
    let columns = [
        ("status", if is_again { "queued" } else { asked.status.as_str() }.into()),
        ("result_json", asked.result_json.into()),
        ("next_attempt_at", after(now, 60 << tries.clamp(0, 10)).into()),
        ("lease_until", Value::Null),
        ("updated_at", now.into()),
    ];
    tx.update("s3_kopia_repo_operations", &columns, "id = ?", args![asked.operation_id]).await?;
    if !is_again {
        deletion::finished(&mut tx, &row, asked.status == "success", now).await?;
    }
    let free = "UPDATE s3_kopia_repo_locks SET expires_at = ? WHERE repo_id = ? AND lock_token = ?";
    tx.change(free, args![now, row.int("repo_id")?, row.text("operation_token")?]).await?;
    tx.commit().await?;
    Answer::done()
}

/// Operations whose agent gave no sign are tried again, or have failed.
pub async fn expire(app: &App, now: Timestamp) -> Result<(), Failure> {
    let mut tx = app.db.write().await?;
    let again = "UPDATE s3_kopia_repo_operations SET status = 'queued', next_attempt_at = ?, lease_until = NULL \
                 WHERE status = 'running' AND lease_until < ? AND attempt_count < ?";
    tx.change(again, args![now, now, MAX_ATTEMPTS]).await?;
    let enough = "UPDATE s3_kopia_repo_operations SET status = 'failed' WHERE status = 'running' AND lease_until < ?";
    tx.change(enough, args![now]).await?;
    Ok(tx.commit().await?)
}

//! Work on repositories that the server hands out under a lease (spec control-api 2.8).

use backup::retention::delete_points;
use backup::{Point, VerifyLevel, list_points, verify_point};
use control_api::repository::{CompleteRepoOperation, RepoOperation};
use control_api::words::RepoOperationType;
use kopia_repo::Repository;
use serde_json::{Value, json};
use std::sync::Arc;

use super::agent::Managed;
use super::clock;
use super::outbox::Record;
use super::store::Store;
use super::work::put;
use crate::failure::{Attempt as _, Code, Failure};

/// Does one operation, and keeps its answer for the server.
pub fn perform(managed: &Managed<'_>, operation: &RepoOperation) {
    let done = match operation.op_type {
        RepoOperationType::DeletePoints => delete(managed, operation),
        RepoOperationType::Verify => verify(managed, operation),
        kind => {
            let why = format!("this agent does not do {kind}");
            Err(Failure::new("work on the repository", "", Code::NotSupported, why))
        }
    };
    let (status, result) = match done {
        Ok(result) => ("success", result),
        Err(failure) => {
            managed.problem(&failure.to_string());
            ("failed", json!({ "error": failure.to_string(), "error_code": failure.code().name() }))
        }
    };
    let body = CompleteRepoOperation {
        operation_id: operation.operation_id,
        operation_token: operation.operation_token.clone(),
        status: status.to_owned(),
        result_json: Some(result),
    };
    let subject = format!("operation-{}", operation.operation_id);
    let name = "agent_complete_repo_operation.php".to_owned();
    put(&managed.outbox, Record { subject, name, run_id: None, claim: None, is_event: false, body: json!(body) });
    managed.wake_outbox();
}

fn open(managed: &Managed<'_>, operation: &RepoOperation) -> Result<Arc<Repository>, Failure> {
    let host = managed.context.host()?;
    Store::of_operation(operation, &managed.folder)?.open(host.hooks.as_ref(), &managed.throttles)
}

/// Manifests that the operation names, as far as the repository has them; the others are gone already.
fn named(operation: &RepoOperation, repo: &Repository) -> Result<Vec<Point>, Failure> {
    let points = operation.effective_policy.as_ref().map(|policy| &policy["points"]);
    let manifests: Vec<&str> = points
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|point| point["manifest_id"].as_str())
        .collect();
    let all = list_points(repo, None).attempt("list the points", repo.display_name())?;
    Ok(all.into_iter().filter(|point| manifests.contains(&point.snapshot.id.as_str())).collect())
}

/// All of them go, or none: what the repository holds, or the last sound point of a VM, stays whatever the server says.
fn delete(managed: &Managed<'_>, operation: &RepoOperation) -> Result<Value, Failure> {
    // At a start nothing is known yet.
    if managed.skew.is_unknown() {
        clock::compare(managed);
    }
    managed.skew.check("delete points")?;
    let repo = open(managed, operation)?;
    let ids: Vec<String> = named(operation, &repo)?.into_iter().map(|point| point.id).collect();
    if ids.is_empty() {
        return Ok(json!({ "deleted_count": 0 }));
    }
    let gone = delete_points(&repo, &ids, jiff::Timestamp::now()).attempt("delete points", repo.display_name())?;
    let gone: Vec<String> = gone.into_iter().map(|point| point.snapshot.id).collect();
    Ok(json!({ "deleted_count": gone.len(), "deleted": gone }))
}

fn verify(managed: &Managed<'_>, operation: &RepoOperation) -> Result<Value, Failure> {
    let repo = open(managed, operation)?;
    let cancel = managed.control.cancel();
    let mut damaged = Vec::new();
    let points = named(operation, &repo)?;
    for point in &points {
        let report = verify_point(&repo, point, VerifyLevel::Structure, &backup::Silent, cancel)
            .attempt("verify a point", &*point.id)?;
        if !report.is_sound() {
            damaged.push(json!({ "manifest_id": point.snapshot.id, "damage": report.damage }));
        }
    }
    Ok(json!({ "verified_count": points.len(), "damaged": damaged }))
}

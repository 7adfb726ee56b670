//! Trying a destination, and giving one up (spec control-api 4.7, 6.2).

use bucket::{Addressing, Capabilities, Credentials, Network, S3, S3Options, Verdict};
use control_api::destination::{Capability, DeleteDestination, TestDestination, TestedDestination};
use serde_json::json;

use super::own_row;
use crate::access::audit::{self, Entry};
use crate::access::gate::{self, Deed};
use crate::args;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::secret;
use crate::vault;

/// `cloudbackup_destination_test.php`: the server itself puts, reads, lists and deletes a few small objects there.
pub async fn test(call: &Call<'_>) -> Result<Answer, Failure> {
    let person = call.person()?;
    let asked: TestDestination = call.read()?;
    let mut tx = call.app.db.write().await?;
    let row =
        own_row(&mut tx, person.scope, "s3_cloudbackup_destinations", asked.destination_id, Code::NotFound).await?;
    if row.text("dest_type")? != "s3" {
        let why = "is a folder of an agent's machine, which this server cannot see";
        return Err(Failure::validation(&[("destination_id".into(), why.into())]));
    }
    if !row.flag("is_active")? {
        return Err(Code::NotFound.into());
    }
    let keys = vault::keys(&mut tx, Some(asked.destination_id), None).await?.open(&call.app.vault)?;
    // What others name is reached from this server's network only if the operator wants that (10.2): a tenant's, and also
    // a client's where the server has several.
    let clients = tx.count("SELECT COUNT(*) FROM s3_clients", args![]).await?;
    let must_be_public = (person.scope.tenant.is_some() || clients > 1) && !call.app.settings.allow_private_endpoints;
    drop(tx);
    let wanted = keys.destination;
    let options = S3Options {
        prefix: wanted.dest_prefix.clone().unwrap_or_default(),
        region: wanted.dest_region.clone().filter(|region| !region.is_empty()).unwrap_or_else(|| "us-east-1".into()),
        endpoint: Some(wanted.dest_endpoint.clone().unwrap_or_default()),
        addressing: match wanted.dest_path_style.as_deref() {
            Some("virtual") => Addressing::VirtualHost,
            Some("path") => Addressing::Path,
            _ => Addressing::Auto,
        },
        ca_pem: wanted.ca_bundle_pem.clone().map(String::into_bytes),
        network: if must_be_public { Network::Public { unless: "--allow-private-endpoints" } } else { Network::Any },
        ..S3Options::new(wanted.dest_bucket_name.clone().unwrap_or_default())
    };
    let credentials = Credentials {
        access_key_id: wanted.dest_access_key.clone().unwrap_or_default(),
        secret_access_key: wanted.dest_secret_key.clone().unwrap_or_default(),
        session_token: None,
    };
    let tried = tokio::task::spawn_blocking(move || {
        let store = S3::new(&options, &credentials).map_err(|error| chain(&error))?;
        bucket::probe(&store, "e3-test-").map_err(|error| chain(&error))
    });
    Answer::ok(match tried.await.map_err(Failure::internal)? {
        Ok(seen) => told(&seen),
        Err(problem) => TestedDestination {
            usable: false,
            capabilities: Vec::new(),
            clock_ahead_secs: None,
            problem: Some(problem),
        },
    })
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

fn told(seen: &Capabilities) -> TestedDestination {
    let essential = seen.missing_essentials();
    let capability = |name: &str, verdict: Verdict, is_essential: bool| Capability {
        name: name.into(),
        verdict: match verdict {
            Verdict::Works => "works",
            Verdict::Refused => "refused",
            Verdict::Wrong => "wrong",
        }
        .into(),
        is_essential,
    };
    // More than five minutes of difference can make maintenance delete what is in use (0.6).
    let is_near = seen.clock_ahead_seconds.abs() <= 300;
    let problem = if !essential.is_empty() {
        Some(format!("the store does not do what is needed: {}", essential.join(", ")))
    } else if !is_near {
        Some(format!("the clocks of the store and of this server differ by {} s", seen.clock_ahead_seconds))
    } else {
        None
    };
    TestedDestination {
        usable: problem.is_none(),
        capabilities: vec![
            capability("get", seen.get, true),
            capability("range", seen.range, true),
            capability("list after write", seen.list_after_write, true),
            capability("overwrite", seen.overwrite, true),
            capability("delete", seen.delete, true),
            capability("put if absent", seen.if_absent, false),
            capability("put if match", seen.if_match, false),
        ],
        clock_ahead_secs: Some(seen.clock_ahead_seconds),
        problem,
    }
}

/// `cloudbackup_destination_delete.php`: refused while a job stores there or points lie there. The keys stay wrapped in
/// the database; the store itself is not touched.
pub async fn delete(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: DeleteDestination = call.read()?;
    person.require_fresh(now)?;
    let id = asked.destination_id;
    let mut tx = call.app.db.write().await?;
    let row = own_row(&mut tx, person.scope, "s3_cloudbackup_destinations", id, Code::NotFound).await?;
    if !row.flag("is_active")? {
        return Err(Code::NotFound.into());
    }
    let name = row.text("name")?;
    if asked.confirm_phrase != name {
        return Err(Failure::validation(&[("confirm_phrase".into(), "is the destination's name".into())]));
    }
    let jobs = "SELECT COUNT(*) FROM s3_cloudbackup_jobs WHERE dest_bucket_id = ? AND status <> 'deleted'";
    let points = "SELECT COUNT(*) FROM s3_hyperv_backup_points p JOIN s3_cloudbackup_repositories r \
                  ON r.repository_id = p.repository_id WHERE r.bucket_id = ? AND p.deleted_at IS NULL";
    let (jobs, points) = (tx.count(jobs, args![id]).await?, tx.count(points, args![id]).await?);
    if jobs > 0 || points > 0 {
        let why = format!("{jobs} jobs store there and {points} points lie there: delete those first");
        return Err(Failure::with(Code::Conflict, why));
    }
    // Its place is free for another one.
    let columns =
        [("is_active", false.into()), ("place_hash", secret::random::<32>()?.into()), ("updated_at", now.into())];
    tx.update("s3_cloudbackup_destinations", &columns, "id = ?", args![id]).await?;
    let columns = [("status", "archived".into()), ("updated_at", now.into())];
    tx.update("s3_cloudbackup_repositories", &columns, "bucket_id = ?", args![id]).await?;
    let after = Some(json!({ "name": name, "reason": asked.reason }));
    let entry = Entry { action: "destination.delete", entity: "destination", id: id.to_string(), before: None, after };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    let tenant = row.opt_int("tenant_id")?;
    let deed = Deed { entity: "destination", id: id.to_string(), tenant, reason: asked.reason };
    match gate::finish(tx, call, deed).await? {
        Some(waits) => Ok(waits),
        None => Answer::done(),
    }
}

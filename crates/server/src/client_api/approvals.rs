//! What waits for a second administrator, and deletions that wait for their hour (spec control-api 6.3, console 5.3).

use control_api::Object;
use control_api::approval::{
    Approval, ApprovalQuery, Approvals, DecideApproval, PendingDeletion, PendingDeletions, UndoDeletion,
};
use control_api::words::ApprovalStatus;
use jiff::Timestamp;
use serde_json::json;

use super::{Window, own_row};
use crate::access::audit::{self, Entry};
use crate::access::gate::Consent;
use crate::access::{Filter, allows, person};
use crate::args;
use crate::failure::{Code, Failure};
use crate::http::routes::{self, Access};
use crate::http::{Answer, Call, Caller};
use crate::store::{Row, Value, time_text};

const SELECT: &str = "SELECT a.*, u.email FROM s3_console_approvals a JOIN s3_console_users u ON u.id = a.requested_by";

fn on_wire(row: &Row, now: Timestamp) -> Result<Approval, Failure> {
    let expires_at = row.time("expires_at")?;
    let mut approval_status = row.word("status", ApprovalStatus::of_word)?;
    if approval_status == ApprovalStatus::Pending && expires_at <= now {
        approval_status = ApprovalStatus::Expired;
    }
    Ok(Approval {
        id: row.int("id")?,
        action: row.text("endpoint")?,
        fields: row.opt_json("fields_json")?.unwrap_or_default(),
        entity_type: row.text("entity_type")?,
        entity_id: row.text("entity_id")?,
        reason: row.opt_text("reason")?,
        requested_by: row.int("requested_by")?,
        requested_by_email: row.text("email")?,
        approval_status,
        decided_by: row.opt_int("decided_by")?,
        decided_at: row.opt_time("decided_at")?.map(time_text),
        created_at: time_text(row.time("created_at")?),
        expires_at: time_text(expires_at),
    })
}

/// `cloudbackup_approval_list.php`.
pub async fn list(call: &Call<'_>) -> Result<Answer, Failure> {
    let now = call.app.clock.now();
    let asked: ApprovalQuery = call.read()?;
    let window = Window::new(asked.limit, asked.offset)?;
    let filter = Filter::within(call.scope()?, "a");
    let filter = match asked.approval_status.unwrap_or(ApprovalStatus::Pending) {
        ApprovalStatus::Pending => filter.and_sql("a.status = 'pending'").and("a.expires_at > ?", now),
        ApprovalStatus::Expired => filter.and_sql("a.status = 'pending'").and("a.expires_at <= ?", now),
        decided => filter.and("a.status = ?", decided.word()),
    };
    let mut tx = call.app.db.read().await?;
    let total =
        tx.count(&format!("SELECT COUNT(*) FROM s3_console_approvals a WHERE {}", filter.sql), &filter.args).await?;
    let sql = format!("{SELECT} WHERE {} ORDER BY a.id DESC{}", filter.sql, window.sql());
    let rows = tx.rows(&sql, &filter.args).await?;
    let approvals = rows.iter().map(|row| on_wire(row, now)).collect::<Result<_, _>>()?;
    Answer::ok(Approvals { approvals, total, limit: window.limit, offset: window.offset })
}

/// `cloudbackup_approval_decide.php`: who agrees is never the one who asked. What was asked is done now, as the one who
/// asked may do it now; its own answer is the answer.
pub async fn decide(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: DecideApproval = call.read()?;
    let mut tx = call.app.db.write().await?;
    let row = own_row(&mut tx, person.scope, "s3_console_approvals", asked.approval_id, Code::NotFound).await?;
    if row.text("status")? != "pending" || row.time("expires_at")? <= now {
        return Err(Code::Conflict.into());
    }
    let requester = row.int("requested_by")?;
    if !asked.approve {
        // Whoever asked may take it back.
        let columns =
            [("status", "refused".into()), ("decided_by", person.user.into()), ("decided_at", Value::from(now))];
        tx.update("s3_console_approvals", &columns, "id = ?", args![asked.approval_id]).await?;
        let after = Some(json!({ "reason": asked.reason }));
        let id = asked.approval_id.to_string();
        let entry = Entry { action: "approval.refuse", entity: "approval", id, before: None, after };
        audit::record(&mut tx, &call.actor(), now, entry).await?;
        tx.commit().await?;
        return Answer::done();
    }
    person.require_fresh(now)?;
    if requester == person.user {
        return Err(Failure::with(Code::ForbiddenRole, "Nobody approves what they asked for themselves"));
    }
    let name = row.text("endpoint")?;
    let endpoint = routes::all().iter().find(|endpoint| endpoint.name == name).ok_or(Code::Conflict)?;
    let Access::Person(need) = endpoint.access else { return Err(Code::Conflict.into()) };
    let as_requester = person::of_account(&mut tx, requester).await?.filter(|person| allows(person.role, need));
    let Some(mut as_requester) = as_requester else {
        return Err(Failure::with(Code::Conflict, "Who asked may not do that any more"));
    };
    // They showed their second factor when they asked.
    as_requester.may_destroy_until = Some(Timestamp::MAX);
    let fields: Object = row.opt_json("fields_json")?.unwrap_or_default();
    drop(tx);
    let again = Call {
        app: call.app,
        endpoint: endpoint.name,
        caller: Caller::Person(as_requester),
        fields,
        ip: call.ip,
        request_id: call.request_id.clone(),
        idempotency_key: None,
        headers: call.headers.clone(),
        method: call.method.clone(),
        consent: Some(Consent { approval: asked.approval_id, by: call.actor(), user: person.user }),
    };
    (endpoint.handler)(&again).await
}

/// `cloudbackup_pending_list.php`: points that are going to be deleted.
pub async fn pending(call: &Call<'_>) -> Result<Answer, Failure> {
    let page: control_api::account::Page = call.read()?;
    let window = Window::new(page.limit, page.offset)?;
    let filter = Filter::within(call.scope()?, "p")
        .and_sql("p.deleted_at IS NULL")
        .and_sql("p.delete_state IN ('pending', 'queued')");
    let mut tx = call.app.db.read().await?;
    let total =
        tx.count(&format!("SELECT COUNT(*) FROM s3_hyperv_backup_points p WHERE {}", filter.sql), &filter.args).await?;
    let sql = format!(
        "SELECT p.* FROM s3_hyperv_backup_points p WHERE {} ORDER BY p.delete_after, p.id{}",
        filter.sql,
        window.sql()
    );
    let mut pending = Vec::new();
    for row in tx.rows(&sql, &filter.args).await? {
        pending.push(PendingDeletion {
            backup_point_id: row.int("id")?,
            vm_name: row.text("vm_name")?,
            snapshot_time: time_text(row.time("snapshot_time")?),
            total_size_bytes: row.opt_int("total_size_bytes")?,
            delete_state: row.text("delete_state")?,
            takes_effect_at: row.opt_time("delete_after")?.map(time_text),
        });
    }
    Answer::ok(PendingDeletions { pending, total, limit: window.limit, offset: window.offset })
}

/// `cloudbackup_pending_undo.php`: before its hour, a deletion can be taken back; all of those named, or none.
pub async fn undo(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: UndoDeletion = call.read()?;
    if asked.backup_point_ids.is_empty() || asked.backup_point_ids.len() > 1000 {
        return Err(Failure::invalid("backup_point_ids", "names 1 to 1,000 points"));
    }
    let mut tx = call.app.db.write().await?;
    for id in &asked.backup_point_ids {
        let point = own_row(&mut tx, person.scope, "s3_hyperv_backup_points", *id, Code::PointNotFound).await?;
        if point.opt_time("deleted_at")?.is_some() {
            return Err(Code::PointNotFound.into());
        }
        let columns = [("delete_state", Value::Null), ("delete_after", Value::Null)];
        let condition = "id = ? AND delete_state = 'pending'";
        if tx.update("s3_hyperv_backup_points", &columns, condition, args![*id]).await? == 0 {
            let why = format!("point {id} is not waiting to be deleted, or an agent is at it already");
            return Err(Failure::with(Code::Conflict, why));
        }
    }
    let after = Some(json!({ "points": asked.backup_point_ids }));
    let id = asked.backup_point_ids.first().map(ToString::to_string).unwrap_or_default();
    let entry = Entry { action: "point.undelete", entity: "point", id, before: None, after };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::done()
}

//! What destroys something (spec control-api 6.3): a second factor shown just now and, where the client wants four
//! eyes, a second administrator.
//!
//! A handler does all its checks and all its work in one transaction, and ends with [`finish`] in place of a commit. Where
//! a second person has to agree, the work is taken back and what was asked is kept; when they do, the same handler runs
//! again as the one who asked, so that everything is checked as it is then.

use control_api::approval::AwaitsApproval;
use serde_json::{Value as Json, json};

use super::audit::{self, Actor, Entry};
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::store::{Tx, Value, time_text};

/// Who asked has so long to find somebody who agrees.
const WAIT_SECS: i64 = 3 * 24 * 3600;

/// Another person's consent to a call.
#[derive(Debug, Clone)]
pub struct Consent {
    /// The row of `s3_console_approvals`.
    pub approval: i64,
    /// Who agreed.
    pub by: Actor,
    /// Their account.
    pub user: i64,
}

/// What would be destroyed.
#[derive(Debug)]
pub struct Deed {
    /// What kind of thing.
    pub entity: &'static str,
    /// Which one, or the first of several.
    pub id: String,
    /// Whose.
    pub tenant: Option<i64>,
    /// Why, in the caller's words.
    pub reason: Option<String>,
}

/// Commits the work of a destructive call, or keeps the call for a second administrator and answers that.
pub async fn finish(mut tx: Tx, call: &Call<'_>, deed: Deed) -> Result<Option<Answer>, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    if let Some(consent) = &call.consent {
        let columns =
            [("status", "approved".into()), ("decided_by", consent.user.into()), ("decided_at", Value::from(now))];
        let condition = "id = ? AND status = 'pending'";
        if tx.update("s3_console_approvals", &columns, condition, args![consent.approval]).await? == 0 {
            return Err(Failure::with(Code::Conflict, "It was decided by somebody else just now"));
        }
        let after = json!({ "action": call.endpoint, "requested_by": person.user });
        let id = consent.approval.to_string();
        let entry = Entry { action: "approval.approve", entity: "approval", id, before: None, after: Some(after) };
        audit::record(&mut tx, &consent.by, now, entry).await?;
        tx.commit().await?;
        return Ok(None);
    }
    if !person.policy.four_eyes {
        tx.commit().await?;
        return Ok(None);
    }
    drop(tx);
    let mut tx = call.app.db.write().await?;
    let expires_at = after(now, WAIT_SECS);
    let reason = deed.reason.map(|reason| reason.chars().take(255).collect::<String>());
    let columns = [
        ("client_id", person.scope.client.into()),
        ("tenant_id", deed.tenant.into()),
        ("endpoint", call.endpoint.into()),
        ("fields_json", Json::Object(call.fields.clone()).into()),
        ("entity_type", deed.entity.into()),
        ("entity_id", deed.id.into()),
        ("reason", reason.into()),
        ("requested_by", person.user.into()),
        ("created_at", now.into()),
        ("expires_at", expires_at.into()),
    ];
    let approval_id = tx.insert("s3_console_approvals", &columns).await?;
    let after = json!({ "action": call.endpoint, "fields": call.fields });
    let id = approval_id.to_string();
    let entry = Entry { action: "approval.request", entity: "approval", id, before: None, after: Some(after) };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::with("pending", AwaitsApproval { approval_id, expires_at: time_text(expires_at) }).map(Some)
}

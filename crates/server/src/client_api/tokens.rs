//! Tokens that people make: for enrolling agents, and for scripts (spec control-api 1.1, 6.2).

use control_api::account::{ApiToken, ApiTokens, CreateApiToken, CreatedApiToken, RevokeApiToken};
use control_api::enrolment::{
    CreateEnrolmentToken, CreatedEnrolmentToken, EnrolmentToken, EnrolmentTokens, RevokeEnrolmentToken,
};
use control_api::words::Role;
use serde_json::json;

use super::{Window, own_row, tenant_for};
use crate::access::audit::{self, Entry};
use crate::access::person::DESTROY;
use crate::access::{Filter, covers};
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::secret;
use crate::store::time_text;

/// Without a word, an enrolment token is good for one use within seven days.
const ENROLMENT_HOURS: i64 = 7 * 24;
/// Longest life that can be asked for: ten years.
const MOST_HOURS: i64 = 10 * 366 * 24;

/// `e3backup_token_create.php`. Zero means without limit, and must be said.
pub async fn create_enrolment(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: CreateEnrolmentToken = call.read()?;
    let (max_uses, hours) = (asked.max_uses.unwrap_or(1), asked.lifetime_hours.unwrap_or(ENROLMENT_HOURS));
    if !(0..=100_000).contains(&max_uses) {
        return Err(Failure::invalid("max_uses", "is 0 (without limit) to 100,000"));
    }
    let expires_at = lifetime(hours, now)?;
    let mut tx = call.app.db.write().await?;
    let tenant = tenant_for(&mut tx, person.scope, asked.tenant_id).await?;
    let token = secret::token("enr_")?;
    let columns = [
        ("client_id", person.scope.client.into()),
        ("tenant_id", tenant.into()),
        ("token_hash", secret::hash(&token).into()),
        ("token_prefix", token[..12].into()),
        ("description", asked.description.clone().into()),
        ("max_uses", max_uses.into()),
        ("expires_at", expires_at.into()),
        ("created_by", person.user.into()),
        ("created_at", now.into()),
    ];
    let id = tx.insert("s3_agent_enrollment_tokens", &columns).await?;
    let after = json!({ "max_uses": max_uses, "lifetime_hours": hours, "tenant_id": tenant });
    let entry = Entry {
        action: "token.create",
        entity: "enrolment_token",
        id: id.to_string(),
        before: None,
        after: Some(after),
    };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::ok(CreatedEnrolmentToken { id, token, expires_at: expires_at.map(time_text), max_uses })
}

fn lifetime(hours: i64, now: jiff::Timestamp) -> Result<Option<jiff::Timestamp>, Failure> {
    match hours {
        0 => Ok(None),
        1..=MOST_HOURS => Ok(Some(after(now, hours * 3600))),
        _ => Err(Failure::invalid("lifetime_hours", "is 0 (without end) to ten years")),
    }
}

/// `e3backup_token_list.php`.
pub async fn list_enrolment(call: &Call<'_>) -> Result<Answer, Failure> {
    let page: control_api::account::Page = call.read()?;
    let window = Window::new(page.limit, page.offset)?;
    let filter = Filter::within(call.scope()?, "t");
    let mut tx = call.app.db.read().await?;
    let count = format!("SELECT COUNT(*) FROM s3_agent_enrollment_tokens t WHERE {}", filter.sql);
    let total = tx.count(&count, &filter.args).await?;
    let sql =
        format!("SELECT t.* FROM s3_agent_enrollment_tokens t WHERE {} ORDER BY t.id DESC{}", filter.sql, window.sql());
    let mut tokens = Vec::new();
    for row in tx.rows(&sql, &filter.args).await? {
        tokens.push(EnrolmentToken {
            id: row.int("id")?,
            token_prefix: row.text("token_prefix")?,
            description: row.opt_text("description")?,
            tenant_id: row.opt_int("tenant_id")?,
            max_uses: row.opt_int("max_uses")?.unwrap_or(0),
            use_count: row.int("use_count")?,
            expires_at: row.opt_time("expires_at")?.map(time_text),
            revoked_at: row.opt_time("revoked_at")?.map(time_text),
            created_at: time_text(row.time("created_at")?),
        });
    }
    Answer::ok(EnrolmentTokens { tokens, total })
}

/// `e3backup_token_revoke.php`.
pub async fn revoke_enrolment(call: &Call<'_>) -> Result<Answer, Failure> {
    let now = call.app.clock.now();
    let asked: RevokeEnrolmentToken = call.read()?;
    let mut tx = call.app.db.write().await?;
    let row = own_row(&mut tx, call.scope()?, "s3_agent_enrollment_tokens", asked.id, Code::NotFound).await?;
    if row.opt_time("revoked_at")?.is_none() {
        let sql = "UPDATE s3_agent_enrollment_tokens SET revoked_at = ? WHERE id = ?";
        tx.change(sql, args![now, asked.id]).await?;
        let id = asked.id.to_string();
        let entry = Entry { action: "token.revoke", entity: "enrolment_token", id, before: None, after: None };
        audit::record(&mut tx, &call.actor(), now, entry).await?;
    }
    tx.commit().await?;
    Answer::done()
}

/// `e3backup_api_token_create.php`: never more than the caller's own role.
pub async fn create_api(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: CreateApiToken = call.read()?;
    let role = asked.role.unwrap_or(person.role);
    if !covers(person.role, role) {
        return Err(Code::ForbiddenRole.into());
    }
    let scopes = match &asked.scopes {
        Some(scopes) => {
            if scopes.iter().any(|scope| scope != DESTROY) {
                return Err(Failure::invalid("scopes", format!("knows only {DESTROY:?}")));
            }
            if !scopes.is_empty() {
                person.require_fresh(now)?;
            }
            (!scopes.is_empty()).then_some(DESTROY)
        }
        // A token is never more than who makes it is at this moment.
        None => person.require_fresh(now).is_ok().then_some(DESTROY),
    };
    let hours = asked.lifetime_hours.unwrap_or(90 * 24);
    let expires_at = lifetime(hours, now)?;
    let token = secret::token("e3_")?;
    let columns = [
        ("user_id", person.user.into()),
        ("token_hash", secret::hash(&token).into()),
        ("role", role.word().into()),
        ("description", asked.description.clone().into()),
        ("scopes", scopes.into()),
        ("created_at", now.into()),
        ("expires_at", expires_at.into()),
    ];
    let mut tx = call.app.db.write().await?;
    let id = tx.insert("s3_api_tokens", &columns).await?;
    let after = json!({ "role": role.word(), "lifetime_hours": hours, "scopes": scopes });
    let entry =
        Entry { action: "api_token.create", entity: "api_token", id: id.to_string(), before: None, after: Some(after) };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::ok(CreatedApiToken { id, token, expires_at: expires_at.map(time_text) })
}

/// `e3backup_api_token_list.php`: one's own.
pub async fn list_api(call: &Call<'_>) -> Result<Answer, Failure> {
    let page: control_api::account::Page = call.read()?;
    let window = Window::new(page.limit, page.offset)?;
    let user = call.person()?.user;
    let mut tx = call.app.db.read().await?;
    let total = tx.count("SELECT COUNT(*) FROM s3_api_tokens WHERE user_id = ?", args![user]).await?;
    let sql = format!("SELECT * FROM s3_api_tokens WHERE user_id = ? ORDER BY id DESC{}", window.sql());
    let mut tokens = Vec::new();
    for row in tx.rows(&sql, args![user]).await? {
        tokens.push(ApiToken {
            id: row.int("id")?,
            description: row.opt_text("description")?,
            role: row.word("role", Role::of_word)?,
            scopes: row.opt_text("scopes")?.unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
            created_at: time_text(row.time("created_at")?),
            expires_at: row.opt_time("expires_at")?.map(time_text),
            last_used_at: row.opt_time("last_used_at")?.map(time_text),
            revoked_at: row.opt_time("revoked_at")?.map(time_text),
        });
    }
    Answer::ok(ApiTokens { tokens, total })
}

/// `e3backup_api_token_revoke.php`: one's own.
pub async fn revoke_api(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: RevokeApiToken = call.read()?;
    let mut tx = call.app.db.write().await?;
    let sql = "UPDATE s3_api_tokens SET revoked_at = ? WHERE id = ? AND user_id = ? AND revoked_at IS NULL";
    if tx.change(sql, args![now, asked.id, person.user]).await? == 0 {
        return Err(Code::NotFound.into());
    }
    let id = asked.id.to_string();
    let entry = Entry { action: "api_token.revoke", entity: "api_token", id, before: None, after: None };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::done()
}

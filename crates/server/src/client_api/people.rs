//! People and tenants of a client (spec control-api 6.2, 6.3).

use control_api::account::{
    DeleteTenant, DeleteUser, Page, Tenant, TenantAnswer, TenantRequest, Tenants, UserAnswer, UserRequest, Users,
};
use control_api::words::Role;
use serde_json::json;

use super::{Window, mfa, session, tenant_for};
use crate::access::audit::{self, Entry};
use crate::access::gate::{self, Deed};
use crate::access::{Filter, password};
use crate::args;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::secret;
use crate::store::{Row, Value};

/// `e3backup_user_list.php`.
pub async fn list_users(call: &Call<'_>) -> Result<Answer, Failure> {
    let page: Page = call.read()?;
    let window = Window::new(page.limit, page.offset)?;
    let filter = Filter::within(call.scope()?, "u").and_sql("u.status <> 'deleted'");
    let mut tx = call.app.db.read().await?;
    let count = format!("SELECT COUNT(*) FROM s3_console_users u WHERE {}", filter.sql);
    let total = tx.count(&count, &filter.args).await?;
    let sql = format!(
        "SELECT u.*, r.role FROM s3_console_users u JOIN s3_console_roles r ON r.user_id = u.id WHERE {} \
         ORDER BY u.email{}",
        filter.sql,
        window.sql()
    );
    let users = tx.rows(&sql, &filter.args).await?.iter().map(session::on_wire).collect::<Result<_, _>>()?;
    Answer::ok(Users { users, total })
}

/// `e3backup_user_create.php`.
pub async fn create_user(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: UserRequest = call.read()?;
    let email = session::check_email(asked.email.as_deref().ok_or_else(|| Failure::missing("email"))?)?;
    let given = asked.password.clone().ok_or_else(|| Failure::missing("password"))?;
    session::check_password(&given)?;
    let role = asked.role.ok_or_else(|| Failure::missing("role"))?;
    let hash = password::hash(given).await?;
    let mut tx = call.app.db.write().await?;
    let tenant = tenant_for(&mut tx, person.scope, asked.tenant_id).await?;
    let user = match session::insert_user(&mut tx, person.scope.client, tenant, &email, &hash, role, now).await {
        Err(failure) if failure.is_duplicate() => {
            return Err(Failure::validation(&[("email".into(), "is taken".into())]));
        }
        other => other?,
    };
    let after = Some(json!({ "email": email, "role": role.word(), "tenant_id": tenant }));
    let entry = Entry { action: "user.create", entity: "user", id: user.to_string(), before: None, after };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::ok(UserAnswer { user: session::user(call.app, user).await? })
}

/// `e3backup_user_update.php`: another role, password, status or second factor ends the sessions of that account.
pub async fn update_user(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: UserRequest = call.read()?;
    let id = asked.id.ok_or_else(|| Failure::missing("id"))?;
    let hash = match &asked.password {
        Some(given) => {
            session::check_password(given)?;
            Some(password::hash(given.clone()).await?)
        }
        None => None,
    };
    if asked.status.as_ref().is_some_and(|status| !["active", "disabled"].contains(&status.as_str())) {
        return Err(Failure::invalid("status", "is active or disabled"));
    }
    let mut tx = call.app.db.write().await?;
    let filter = Filter::within(person.scope, "u").and_sql("u.status <> 'deleted'").and("u.id = ?", id);
    let sql = format!(
        "SELECT u.*, r.role FROM s3_console_users u JOIN s3_console_roles r ON r.user_id = u.id WHERE {}{}",
        filter.sql,
        tx.for_update()
    );
    let row = tx.row(&sql, &filter.args).await?.ok_or(Code::NotFound)?;
    let before = session::on_wire(&row)?;
    let loses = asked.role.is_some_and(|role| role != Role::Owner) || asked.status.as_deref() == Some("disabled");
    if before.role == Role::Owner && loses {
        let others = "SELECT COUNT(*) FROM s3_console_users u JOIN s3_console_roles r ON r.user_id = u.id \
                      WHERE u.client_id = ? AND u.tenant_id IS NULL AND u.status = 'active' AND r.role = 'owner' \
                      AND u.id <> ?";
        if before.tenant_id.is_none() && tx.count(others, args![person.scope.client, id]).await? == 0 {
            return Err(Failure::validation(&[("role".into(), "a client keeps one owner".into())]));
        }
    }
    if asked.reset_mfa {
        person.require_fresh(now)?;
        mfa::remove(&mut tx, id).await?;
    }
    let mut columns: Vec<(&str, Value)> = Vec::new();
    if let Some(hash) = hash {
        columns.push(("password_hash", hash.into()));
    }
    if let Some(status) = &asked.status {
        columns.push(("status", status.into()));
    }
    if !columns.is_empty() {
        tx.update("s3_console_users", &columns, "id = ?", args![id]).await?;
    }
    if let Some(role) = asked.role {
        tx.change("UPDATE s3_console_roles SET role = ? WHERE user_id = ?", args![role.word(), id]).await?;
    }
    let end = "UPDATE s3_console_sessions SET revoked_at = ? WHERE user_id = ? AND revoked_at IS NULL";
    tx.change(end, args![now, id]).await?;
    let entry = Entry {
        action: "user.update",
        entity: "user",
        id: id.to_string(),
        before: Some(json!({ "role": before.role.word(), "status": before.status })),
        after: Some(
            json!({ "role": asked.role.map(Role::word), "status": asked.status, "password": asked.password.is_some(), "reset_mfa": asked.reset_mfa }),
        ),
    };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::ok(UserAnswer { user: session::user(call.app, id).await? })
}

/// `e3backup_user_delete.php`: the account cannot sign in any more; what it did keeps its name in the audit log.
pub async fn delete_user(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: DeleteUser = call.read()?;
    person.require_fresh(now)?;
    let id = asked.user_id;
    let mut tx = call.app.db.write().await?;
    let filter = Filter::within(person.scope, "u").and_sql("u.status <> 'deleted'").and("u.id = ?", id);
    let sql = format!("SELECT u.* FROM s3_console_users u WHERE {}{}", filter.sql, tx.for_update());
    let row = tx.row(&sql, &filter.args).await?.ok_or(Code::NotFound)?;
    let email = row.text("email")?;
    if asked.confirm_phrase != email {
        return Err(Failure::validation(&[("confirm_phrase".into(), "is the person's mail address".into())]));
    }
    if id == person.user {
        return Err(Failure::validation(&[("user_id".into(), "nobody deletes themselves".into())]));
    }
    mfa::remove(&mut tx, id).await?;
    // The address is free for another account, the row stays for what refers to it.
    let columns = [("status", "deleted".into()), ("email", format!("deleted-{id}").into())];
    tx.update("s3_console_users", &columns, "id = ?", args![id]).await?;
    for table in ["s3_console_sessions", "s3_api_tokens"] {
        let end = format!("UPDATE {table} SET revoked_at = ? WHERE user_id = ? AND revoked_at IS NULL");
        tx.change(&end, args![now, id]).await?;
    }
    tx.change("DELETE FROM s3_console_identities WHERE user_id = ?", args![id]).await?;
    let before = Some(json!({ "email": email }));
    let entry = Entry { action: "user.delete", entity: "user", id: id.to_string(), before, after: None };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::done()
}

/// `e3backup_tenant_delete.php`: its people and agents are shut out, its jobs pause; its points stay (4.5).
pub async fn delete_tenant(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: DeleteTenant = call.read()?;
    person.require_fresh(now)?;
    let id = asked.tenant_id;
    let mut tx = call.app.db.write().await?;
    let filter = tenants_within(call)?.and("t.id = ?", id);
    let sql = format!("SELECT t.* FROM s3_backup_tenants t WHERE {}{}", filter.sql, tx.for_update());
    let row = tx.row(&sql, &filter.args).await?.ok_or(Code::NotFound)?;
    if person.scope.tenant.is_some() {
        return Err(Code::ForbiddenRole.into());
    }
    let slug = row.text("slug")?;
    if asked.confirm_phrase != slug {
        return Err(Failure::validation(&[("confirm_phrase".into(), "is the tenant's slug".into())]));
    }
    let columns = [("status", "deleted".into()), ("slug", format!("deleted-{id}").into()), ("updated_at", now.into())];
    tx.update("s3_backup_tenants", &columns, "id = ?", args![id]).await?;
    let pause = "UPDATE s3_cloudbackup_jobs SET status = 'paused', pause_reason = 'tenant_deleted', next_run_at = NULL, \
                 version = version + 1, updated_at = ? WHERE tenant_id = ? AND status = 'active'";
    tx.change(pause, args![now, id]).await?;
    let before = Some(json!({ "name": row.text("name")?, "slug": slug }));
    let entry = Entry { action: "tenant.delete", entity: "tenant", id: id.to_string(), before, after: None };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    let deed = Deed { entity: "tenant", id: id.to_string(), tenant: Some(id), reason: None };
    match gate::finish(tx, call, deed).await? {
        Some(waits) => Ok(waits),
        None => Answer::done(),
    }
}

fn tenant_on_wire(row: &Row) -> Result<Tenant, Failure> {
    Ok(Tenant {
        id: row.int("id")?,
        public_id: row.text("public_id")?,
        name: row.text("name")?,
        slug: row.text("slug")?,
        status: row.text("status")?,
    })
}

/// A tenant sees itself, a client all of its own.
fn tenants_within(call: &Call<'_>) -> Result<Filter, Failure> {
    let scope = call.scope()?;
    let filter = Filter { sql: "t.client_id = ?".into(), args: vec![scope.client.into()] };
    let filter = filter.and_sql("t.status <> 'deleted'");
    Ok(match scope.tenant {
        Some(tenant) => filter.and("t.id = ?", tenant),
        None => filter,
    })
}

/// `e3backup_tenant_list.php`.
pub async fn list_tenants(call: &Call<'_>) -> Result<Answer, Failure> {
    let page: Page = call.read()?;
    let window = Window::new(page.limit, page.offset)?;
    let filter = tenants_within(call)?;
    let mut tx = call.app.db.read().await?;
    let count = format!("SELECT COUNT(*) FROM s3_backup_tenants t WHERE {}", filter.sql);
    let total = tx.count(&count, &filter.args).await?;
    let sql = format!("SELECT t.* FROM s3_backup_tenants t WHERE {} ORDER BY t.name, t.id{}", filter.sql, window.sql());
    let tenants = tx.rows(&sql, &filter.args).await?.iter().map(tenant_on_wire).collect::<Result<_, _>>()?;
    Answer::ok(Tenants { tenants, total })
}

/// `e3backup_tenant_create.php`: only for who is not of a tenant.
pub async fn create_tenant(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: TenantRequest = call.read()?;
    if person.scope.tenant.is_some() {
        return Err(Code::ForbiddenRole.into());
    }
    let name = asked.name.clone().filter(|name| !name.trim().is_empty()).ok_or_else(|| Failure::missing("name"))?;
    let slug = asked.slug.clone().ok_or_else(|| Failure::missing("slug"))?;
    let is_slug = (1..=100).contains(&slug.len())
        && slug.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !is_slug || name.chars().count() > 255 {
        return Err(Failure::validation(&[("slug".into(), "has small letters, digits and hyphens".into())]));
    }
    let columns = [
        ("client_id", person.scope.client.into()),
        ("public_id", secret::id128()?[..26].into()),
        ("name", name.clone().into()),
        ("slug", slug.clone().into()),
        ("created_at", now.into()),
        ("updated_at", now.into()),
    ];
    let mut tx = call.app.db.write().await?;
    let id = match tx.insert("s3_backup_tenants", &columns).await {
        Err(error) if error.is_duplicate() => return Err(Failure::validation(&[("slug".into(), "is taken".into())])),
        other => other?,
    };
    let after = Some(json!({ "name": name, "slug": slug }));
    let entry = Entry { action: "tenant.create", entity: "tenant", id: id.to_string(), before: None, after };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    let row = tx.row("SELECT * FROM s3_backup_tenants WHERE id = ?", args![id]).await?.ok_or(Code::NotFound)?;
    tx.commit().await?;
    Answer::ok(TenantAnswer { tenant: tenant_on_wire(&row)? })
}

/// `e3backup_tenant_update.php`: its name, or whether its people and agents may enter.
pub async fn update_tenant(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: TenantRequest = call.read()?;
    let id = asked.id.ok_or_else(|| Failure::missing("id"))?;
    if asked.status.as_ref().is_some_and(|status| !["active", "suspended"].contains(&status.as_str())) {
        return Err(Failure::invalid("status", "is active or suspended"));
    }
    let mut tx = call.app.db.write().await?;
    let filter = tenants_within(call)?.and("t.id = ?", id);
    let sql = format!("SELECT t.* FROM s3_backup_tenants t WHERE {}{}", filter.sql, tx.for_update());
    let row = tx.row(&sql, &filter.args).await?.ok_or(Code::NotFound)?;
    if person.scope.tenant.is_some() {
        return Err(Code::ForbiddenRole.into());
    }
    let mut columns: Vec<(&str, Value)> = vec![("updated_at", now.into())];
    if let Some(name) = asked.name.as_ref().filter(|name| !name.trim().is_empty()) {
        columns.push(("name", name.into()));
    }
    if let Some(status) = &asked.status {
        columns.push(("status", status.into()));
    }
    tx.update("s3_backup_tenants", &columns, "id = ?", args![id]).await?;
    let before = Some(json!({ "name": row.text("name")?, "status": row.text("status")? }));
    let after = Some(json!({ "name": asked.name, "status": asked.status }));
    let entry = Entry { action: "tenant.update", entity: "tenant", id: id.to_string(), before, after };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    let row = tx.row("SELECT * FROM s3_backup_tenants WHERE id = ?", args![id]).await?.ok_or(Code::NotFound)?;
    tx.commit().await?;
    Answer::ok(TenantAnswer { tenant: tenant_on_wire(&row)? })
}

//! The first account: made through a link that a server without accounts prints once.

use control_api::account::Setup;
use control_api::words::Role;
use serde_json::json;

use super::session;
use crate::App;
use crate::access::audit::{self, Actor, Entry};
use crate::access::{password, person};
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::secret;
use crate::store::Value;

/// A link is good for so long; a later start prints another.
const LINK_SECS: i64 = 24 * 3600;

/// A link for the first account, if there is none. The audit log gets its beginning.
pub async fn offer(app: &App) -> Result<Option<String>, Failure> {
    let now = app.clock.now();
    let mut tx = app.db.write().await?;
    if !audit::begin(&mut tx).await? {
        // Another instance was first; what this transaction would see is not certain any more.
        tx = app.db.write().await?;
    }
    if tx.count("SELECT COUNT(*) FROM s3_console_users", args![]).await? > 0 {
        tx.commit().await?;
        return Ok(None);
    }
    let token = secret::token("set_")?;
    let columns = [("token_hash", secret::hash(&token).into()), ("created_at", now.into())];
    tx.insert("s3_setup_tokens", &columns).await?;
    tx.commit().await?;
    Ok(Some(format!("{}/setup/{token}", app.public_url())))
}

/// `console_setup.php`.
pub async fn setup(call: &Call<'_>) -> Result<Answer, Failure> {
    let now = call.app.clock.now();
    let key = format!("setup {}", call.ip);
    call.app.limits.logins.check(&key, now).map_err(Failure::limited)?;
    let asked: Setup = call.read()?;
    let email = session::check_email(&asked.email)?;
    session::check_password(&asked.password)?;
    if asked.name.trim().is_empty() || asked.name.chars().count() > 191 {
        return Err(Failure::invalid("name", "has 1 to 191 characters"));
    }
    if let Some(zone) = &asked.timezone
        && jiff::tz::TimeZone::get(zone).is_err()
    {
        return Err(Failure::invalid("timezone", format!("{zone:?} is no time zone")));
    }
    let hash = password::hash(asked.password).await?;
    let mut tx = call.app.db.write().await?;
    let sql = format!("SELECT * FROM s3_setup_tokens WHERE token_hash = ? AND used_at IS NULL{}", tx.for_update());
    let token = tx.row(&sql, args![secret::hash(&asked.token)]).await?;
    let is_good = match token {
        Some(row) => after(row.time("created_at")?, LINK_SECS) > now,
        None => false,
    };
    if !is_good || tx.count("SELECT COUNT(*) FROM s3_console_users", args![]).await? > 0 {
        call.app.limits.logins.count(key, now);
        return Err(Code::Unauthorized.into());
    }
    tx.change("UPDATE s3_setup_tokens SET used_at = ? WHERE used_at IS NULL", args![now]).await?;
    let mut columns: Vec<(&str, Value)> = vec![
        ("name", asked.name.clone().into()),
        ("timezone", asked.timezone.clone().into()),
        ("updated_at", now.into()),
    ];
    // A client without people has adopted repositories: this is its first account.
    let client = match tx.row("SELECT id FROM s3_clients ORDER BY id LIMIT 1", args![]).await? {
        Some(row) => {
            let client = row.int("id")?;
            tx.update("s3_clients", &columns, "id = ?", args![client]).await?;
            client
        }
        None => {
            columns.push(("created_at", now.into()));
            tx.insert("s3_clients", &columns).await?
        }
    };
    let user = session::insert_user(&mut tx, client, None, &email, &hash, Role::Owner, now).await?;
    let actor = Actor { client: Some(client), kind: "user", id: Some(user), ..call.actor() };
    let after = json!({ "client": asked.name, "email": email });
    let entry = Entry { action: "setup", entity: "client", id: client.to_string(), before: None, after: Some(after) };
    audit::record(&mut tx, &actor, now, entry).await?;
    // Who has the link has the server's terminal: for this one session that is the second factor.
    let (token, csrf_token) = person::begin(&mut tx, user, Some(now), call.ip, now).await?;
    tx.commit().await?;
    session::logged_in(call, user, csrf_token, &token).await
}

//! People and scripts that call: sessions with their CSRF token, and API tokens (spec control-api 10.4).

use std::net::IpAddr;

use axum::http::{HeaderMap, Method};
use control_api::words::Role;
use jiff::Timestamp;

use super::Scope;
use super::audit::Actor;
use crate::App;
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::secret;
use crate::store::{Row, Tx};

/// The session's cookie.
pub const COOKIE: &str = "__Host-e3_session";
/// A session that is not used so long ends.
pub const IDLE_SECS: i64 = 30 * 60;
/// A session ends after so long in any case.
pub const ABSOLUTE_SECS: i64 = 12 * 3600;

/// Somebody who is signed in.
#[derive(Debug, Clone)]
pub struct Person {
    /// Their account.
    pub user: i64,
    /// Its name.
    pub email: String,
    /// What they may do.
    pub role: Role,
    /// Where.
    pub scope: Scope,
    /// The session, unless it is a token.
    pub session: Option<[u8; 32]>,
}

impl Person {
    /// As the audit log names them.
    pub fn actor(&self, ip: IpAddr, request_id: &str) -> Actor {
        Actor {
            kind: if self.session.is_some() { "user" } else { "api" },
            id: Some(self.user),
            client: Some(self.scope.client),
            tenant: self.scope.tenant,
            ip: Some(ip.to_string()),
            request_id: Some(request_id.to_owned()),
        }
    }
}

/// The person that these headers prove.
pub async fn authenticate(app: &App, method: &Method, headers: &HeaderMap) -> Result<Person, Failure> {
    find(app, method, headers, true).await
}

/// The same for somebody who only listens: that keeps no session alive.
pub async fn still(app: &App, headers: &HeaderMap) -> Result<Person, Failure> {
    find(app, &Method::GET, headers, false).await
}

async fn find(app: &App, method: &Method, headers: &HeaderMap, is_use: bool) -> Result<Person, Failure> {
    let now = app.clock.now();
    if let Some(token) = bearer(headers) {
        return of_token(app, &token, is_use, now).await;
    }
    let Some(token) = cookie(headers) else { return Err(Code::MissingCredentials.into()) };
    let hash = secret::hash(&token);
    let mut tx = app.db.read().await?;
    let sql = format!(
        "SELECT s.csrf_hash, s.last_used_at, s.expires_at, s.revoked_at, {USER} FROM s3_console_sessions s \
         JOIN s3_console_users u ON u.id = s.user_id {JOINS} WHERE s.token_hash = ?"
    );
    let Some(row) = tx.row(&sql, args![hash]).await? else { return Err(Code::SessionExpired.into()) };
    drop(tx);
    let last_used = row.time("last_used_at")?;
    let has_ended =
        row.opt_time("revoked_at")?.is_some() || row.time("expires_at")? <= now || after(last_used, IDLE_SECS) <= now;
    if has_ended || !is_active(&row)? {
        return Err(Code::SessionExpired.into());
    }
    if method != Method::GET && method != Method::HEAD {
        check_origin(app, headers)?;
        let given = headers.get("x-csrf-token").and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !secret::same(&secret::hash(given), &row.bytes("csrf_hash")?) {
            return Err(Code::CsrfFailed.into());
        }
    }
    if is_use && after(last_used, 60) <= now {
        let mut tx = app.db.write().await?;
        tx.change("UPDATE s3_console_sessions SET last_used_at = ? WHERE token_hash = ?", args![now, hash]).await?;
        tx.commit().await?;
    }
    person(&row, row.word("role", Role::of_word)?, Some(hash))
}

const USER: &str = "u.id AS user_id, u.email, u.client_id, u.status AS user_status, r.role AS role, r.tenant_id, \
                    c.status AS client_status, t.status AS tenant_status";
const JOINS: &str = "JOIN s3_console_roles r ON r.user_id = u.id JOIN s3_clients c ON c.id = u.client_id \
                     LEFT JOIN s3_backup_tenants t ON t.id = r.tenant_id";

async fn of_token(app: &App, token: &str, is_use: bool, now: Timestamp) -> Result<Person, Failure> {
    let mut tx = app.db.read().await?;
    let sql = format!(
        "SELECT k.id AS token_id, k.role AS token_role, k.expires_at, k.revoked_at, k.last_used_at, {USER} \
         FROM s3_api_tokens k JOIN s3_console_users u ON u.id = k.user_id {JOINS} WHERE k.token_hash = ?"
    );
    let Some(row) = tx.row(&sql, args![secret::hash(token)]).await? else { return Err(Code::Unauthorized.into()) };
    drop(tx);
    if row.opt_time("revoked_at")?.is_some() {
        return Err(Code::TokenRevoked.into());
    }
    if row.opt_time("expires_at")?.is_some_and(|until| until <= now) {
        return Err(Code::TokenExpired.into());
    }
    if !is_active(&row)? {
        return Err(Code::Unauthorized.into());
    }
    if is_use && row.opt_time("last_used_at")?.is_none_or(|last| after(last, 60) <= now) {
        let mut tx = app.db.write().await?;
        tx.change("UPDATE s3_api_tokens SET last_used_at = ? WHERE id = ?", args![now, row.int("token_id")?]).await?;
        tx.commit().await?;
    }
    // A token never outgrows the role that its owner has now.
    let own = row.word("role", Role::of_word)?;
    let given = row.word("token_role", Role::of_word)?;
    if !super::covers(own, given) {
        return Err(Code::Unauthorized.into());
    }
    person(&row, given, None)
}

fn is_active(row: &Row) -> Result<bool, Failure> {
    let tenant = row.opt_text("tenant_status")?;
    Ok(row.text("user_status")? == "active"
        && row.text("client_status")? == "active"
        && tenant.is_none_or(|status| status == "active"))
}

fn person(row: &Row, role: Role, session: Option<[u8; 32]>) -> Result<Person, Failure> {
    Ok(Person {
        user: row.int("user_id")?,
        email: row.text("email")?,
        role,
        scope: Scope { client: row.int("client_id")?, tenant: row.opt_int("tenant_id")? },
        session,
    })
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

fn cookie(headers: &HeaderMap) -> Option<String> {
    let values = headers.get_all("cookie").iter().filter_map(|value| value.to_str().ok());
    let mut pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value.to_owned())
}

/// A call that changes something comes from a page of this server (10.4).
pub fn check_origin(app: &App, headers: &HeaderMap) -> Result<(), Failure> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let expected = match &app.settings.public_url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => format!("https://{}", text("host").unwrap_or_default()),
    };
    if text("origin") == Some(expected.as_str()) { Ok(()) } else { Err(Code::CsrfFailed.into()) }
}

/// A new session of that account: its token for the cookie, and its CSRF token.
pub async fn begin(tx: &mut Tx, user: i64, ip: IpAddr, now: Timestamp) -> Result<(String, String), Failure> {
    let (token, csrf) = (secret::token("ses_")?, secret::token("csrf_")?);
    let columns = [
        ("token_hash", secret::hash(&token).into()),
        ("user_id", user.into()),
        ("csrf_hash", secret::hash(&csrf).into()),
        ("created_at", now.into()),
        ("last_used_at", now.into()),
        ("expires_at", after(now, ABSOLUTE_SECS).into()),
        ("ip", ip.to_string().into()),
    ];
    tx.insert("s3_console_sessions", &columns).await?;
    Ok((token, csrf))
}

/// The `Set-Cookie` of a session's token; an empty one ends it.
pub fn set_cookie(token: &str) -> String {
    let age = if token.is_empty() { "; Max-Age=0" } else { "" };
    format!("{COOKIE}={token}; Path=/; Secure; HttpOnly; SameSite=Strict{age}")
}

//! People and scripts that call: sessions with their CSRF token, and API tokens (spec control-api 10.4).

use std::net::IpAddr;

use axum::http::{HeaderMap, Method};
use control_api::words::{MfaState, Role};
use jiff::Timestamp;
use serde_json::Value as Json;

use super::Scope;
use super::audit::Actor;
use crate::App;
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::policy::Policy;
use crate::secret;
use crate::store::{Row, Tx};

/// The session's cookie.
pub const COOKIE: &str = "__Host-e3_session";
/// A session that is not used so long ends.
pub const IDLE_SECS: i64 = 30 * 60;
/// A session ends after so long in any case.
pub const ABSOLUTE_SECS: i64 = 12 * 3600;
/// What destroys something needs a second factor that was shown so long ago at most (6.3).
pub const FRESH_SECS: i64 = 5 * 60;
/// The scope of a token that may destroy something.
pub const DESTROY: &str = "destroy";

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
    /// What the second factor still asks for.
    pub mfa: MfaState,
    /// Until when they may call what destroys something; a token with that scope always may.
    pub may_destroy_until: Option<Timestamp>,
    /// What their client demands.
    pub policy: Policy,
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

    /// Fails unless a second factor was shown just now (6.3).
    pub fn require_fresh(&self, now: Timestamp) -> Result<(), Failure> {
        if self.may_destroy_until.is_some_and(|until| until > now) {
            return Ok(());
        }
        let why = match (self.session, self.mfa) {
            (None, _) => "This token was made without the scope \"destroy\"",
            (Some(_), MfaState::Done) => "Show the second factor once more: console_mfa.php with action verify",
            (Some(_), _) => "Set up a second factor first: console_mfa.php with action enrol",
        };
        Err(Failure::with(Code::MfaRequired, why).detail("mfa", "fresh"))
    }
}

/// What a session's second factor asks for.
fn mfa_state(is_enrolled: bool, was_shown: bool, is_required: bool) -> MfaState {
    match (is_enrolled, was_shown) {
        (_, true) => MfaState::Done,
        (true, false) => MfaState::Verify,
        (false, false) if is_required => MfaState::Enrol,
        (false, false) => MfaState::None,
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
    let Some(token) = cookie(headers, COOKIE) else { return Err(Code::MissingCredentials.into()) };
    let hash = secret::hash(&token);
    let row = session_row(app, hash).await?;
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
    in_session(&row, hash)
}

async fn session_row(app: &App, hash: [u8; 32]) -> Result<Row, Failure> {
    let sql = format!(
        "SELECT s.csrf_hash, s.last_used_at, s.expires_at, s.revoked_at, s.mfa_at, {USER} FROM s3_console_sessions s \
         JOIN s3_console_users u ON u.id = s.user_id {JOINS} WHERE s.token_hash = ?"
    );
    app.db.read().await?.row(&sql, args![hash]).await?.ok_or_else(|| Code::SessionExpired.into())
}

/// The person of a session that was begun just now.
pub async fn of_session(app: &App, token: &str) -> Result<Person, Failure> {
    let hash = secret::hash(token);
    in_session(&session_row(app, hash).await?, hash)
}

fn in_session(row: &Row, hash: [u8; 32]) -> Result<Person, Failure> {
    let shown = row.opt_time("mfa_at")?;
    let mut person = person(row, row.word("role", Role::of_word)?, Some(hash))?;
    let is_required = person.policy.mfa_required_roles.contains(&person.role);
    person.mfa = mfa_state(row.opt_int("mfa_secret_id")?.is_some(), shown.is_some(), is_required);
    person.may_destroy_until = shown.map(|shown| after(shown, FRESH_SECS));
    Ok(person)
}

/// The person of that account, as they may act now, for what they asked for earlier.
pub async fn of_account(tx: &mut Tx, user: i64) -> Result<Option<Person>, Failure> {
    let sql = format!("SELECT {USER} FROM s3_console_users u {JOINS} WHERE u.id = ?");
    match tx.row(&sql, args![user]).await? {
        Some(row) if is_active(&row)? => Ok(Some(person(&row, row.word("role", Role::of_word)?, None)?)),
        _ => Ok(None),
    }
}

const USER: &str = "u.id AS user_id, u.email, u.client_id, u.status AS user_status, r.role AS role, r.tenant_id, \
                    u.mfa_secret_id, g.settings_json AS client_settings, \
                    c.status AS client_status, t.status AS tenant_status";
const JOINS: &str = "JOIN s3_console_roles r ON r.user_id = u.id JOIN s3_clients c ON c.id = u.client_id \
                     LEFT JOIN s3_backup_tenants t ON t.id = r.tenant_id \
                     LEFT JOIN s3_cloudbackup_settings g ON g.client_id = u.client_id";

async fn of_token(app: &App, token: &str, is_use: bool, now: Timestamp) -> Result<Person, Failure> {
    let mut tx = app.db.read().await?;
    let sql = format!(
        "SELECT k.id AS token_id, k.role AS token_role, k.expires_at, k.revoked_at, k.last_used_at, k.scopes, {USER} \
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
    let scopes = row.opt_text("scopes")?.unwrap_or_default();
    let may_destroy = scopes.split(' ').any(|scope| scope == DESTROY);
    Ok(Person { may_destroy_until: may_destroy.then_some(Timestamp::MAX), ..person(&row, given, None)? })
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
        mfa: MfaState::None,
        may_destroy_until: None,
        policy: Policy::of(row.opt_json::<Json>("client_settings")?),
    })
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

/// The cookie of that name.
pub fn cookie(headers: &HeaderMap, wanted: &str) -> Option<String> {
    let values = headers.get_all("cookie").iter().filter_map(|value| value.to_str().ok());
    let mut pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == wanted).map(|(_, value)| value.to_owned())
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

/// A new session of that account: its token for the cookie, and its CSRF token. `mfa_at` is when a second factor was
/// shown for it.
pub async fn begin(
    tx: &mut Tx,
    user: i64,
    mfa_at: Option<Timestamp>,
    ip: IpAddr,
    now: Timestamp,
) -> Result<(String, String), Failure> {
    let (token, csrf) = (secret::token("ses_")?, secret::token("csrf_")?);
    let columns = [
        ("token_hash", secret::hash(&token).into()),
        ("user_id", user.into()),
        ("csrf_hash", secret::hash(&csrf).into()),
        ("created_at", now.into()),
        ("last_used_at", now.into()),
        ("expires_at", after(now, ABSOLUTE_SECS).into()),
        ("mfa_at", mfa_at.into()),
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

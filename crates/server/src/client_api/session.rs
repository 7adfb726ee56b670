//! Signing in and out (spec control-api 10.4).

use control_api::account::{CurrentSession, LoggedIn, Login, User};
use control_api::words::Role;
use jiff::Timestamp;
use serde_json::json;

use crate::App;
use crate::access::audit::{self, Actor, Entry};
use crate::access::{password, person};
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::store::{Row, Tx, Value, time_text};

/// An account rests for so long after too many wrong passwords.
const LOCK_SECS: i64 = 15 * 60;

/// `console_login.php`: the same answer and time for an unknown account and a wrong password.
pub async fn login(call: &Call<'_>) -> Result<Answer, Failure> {
    let now = call.app.clock.now();
    let asked: Login = call.read()?;
    person::check_origin(call.app, &call.headers)?;
    let row = prove(call, &asked.email, asked.password, now).await?;
    let user = row.int("id")?;
    let mut tx = call.app.db.write().await?;
    let columns = [("failed_logins", 0_i64.into()), ("locked_until", Value::Null), ("last_login_at", now.into())];
    tx.update("s3_console_users", &columns, "id = ?", args![user]).await?;
    let (token, csrf_token) = person::begin(&mut tx, user, None, call.ip, now).await?;
    let actor = Actor {
        client: Some(row.int("client_id")?),
        tenant: row.opt_int("tenant_id")?,
        kind: "user",
        id: Some(user),
        ..call.actor()
    };
    let entry = Entry { action: "login", entity: "user", id: user.to_string(), before: None, after: None };
    audit::record(&mut tx, &actor, now, entry).await?;
    tx.commit().await?;
    logged_in(call, user, csrf_token, &token).await
}

/// The account of that address, if this is its password and it may enter; each failure is counted.
pub async fn prove(call: &Call<'_>, email: &str, password: String, now: Timestamp) -> Result<Row, Failure> {
    let email = email.trim().to_lowercase();
    let (by_address, by_account) = (format!("address {}", call.ip), format!("account {email}"));
    for key in [&by_address, &by_account] {
        call.app.limits.logins.check(key, now).map_err(Failure::limited)?;
    }
    let sql = "SELECT u.*, r.role, c.status AS client_status, t.status AS tenant_status FROM s3_console_users u \
               JOIN s3_console_roles r ON r.user_id = u.id JOIN s3_clients c ON c.id = u.client_id LEFT JOIN s3_backup_tenants t ON t.id = u.tenant_id \
               WHERE u.email = ?";
    let row = call.app.db.read().await?.row(sql, args![&email]).await?;
    let hash = row.as_ref().map(|row| row.text("password_hash")).transpose()?;
    let is_right = password::matches(password, hash).await?;
    let row = row.filter(|_| is_right);
    let may_enter = match &row {
        Some(row) => {
            let tenant = row.opt_text("tenant_status")?;
            row.text("status")? == "active"
                && row.text("client_status")? == "active"
                && tenant.is_none_or(|status| status == "active")
                && row.opt_time("locked_until")?.is_none_or(|until| until <= now)
        }
        None => false,
    };
    let Some(row) = row.filter(|_| may_enter) else {
        call.app.limits.logins.count(by_address, now);
        call.app.limits.logins.count(by_account, now);
        return fail(call, &email, now).await;
    };
    call.app.limits.logins.clear(&by_account);
    Ok(row)
}

/// The answer to a login, with what the second factor asks for.
pub async fn logged_in(call: &Call<'_>, user: i64, csrf_token: String, token: &str) -> Result<Answer, Failure> {
    let user = self::user(call.app, user).await?;
    let mfa = person::of_session(call.app, token).await?.mfa;
    Ok(Answer::ok(LoggedIn { csrf_token, user, mfa })?.set_cookie(person::set_cookie(token)))
}

async fn fail(call: &Call<'_>, email: &str, now: Timestamp) -> Result<Row, Failure> {
    let mut tx = call.app.db.write().await?;
    if let Some(row) = tx.row("SELECT * FROM s3_console_users WHERE email = ?", args![email]).await? {
        let failed = row.int("failed_logins")? + 1;
        let is_locked = failed % i64::from(call.app.settings.rates.failed_logins.max(1)) == 0;
        let until = is_locked.then(|| after(now, LOCK_SECS));
        let columns =
            [("failed_logins", failed.into()), ("locked_until", until.or(row.opt_time("locked_until")?).into())];
        tx.update("s3_console_users", &columns, "id = ?", args![row.int("id")?]).await?;
        let actor = Actor { client: Some(row.int("client_id")?), ..call.actor() };
        let entry = Entry {
            action: "login.failed",
            entity: "user",
            id: row.int("id")?.to_string(),
            before: None,
            after: Some(json!({ "failed_logins": failed })),
        };
        audit::record(&mut tx, &actor, now, entry).await?;
    }
    tx.commit().await?;
    Err(Code::Unauthorized.into())
}

/// `console_logout.php`.
pub async fn logout(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    if let Some(session) = person.session {
        let mut tx = call.app.db.write().await?;
        tx.change("UPDATE s3_console_sessions SET revoked_at = ? WHERE token_hash = ?", args![now, session]).await?;
        tx.commit().await?;
    }
    Ok(Answer::done()?.set_cookie(person::set_cookie("")))
}

/// `console_session.php`.
pub async fn current(call: &Call<'_>) -> Result<Answer, Failure> {
    let person = call.person()?;
    let user = User { role: person.role, ..user(call.app, person.user).await? };
    let until = person.may_destroy_until.filter(|until| person.session.is_some() && *until > call.app.clock.now());
    Answer::ok(CurrentSession { user, mfa: person.mfa, mfa_fresh_until: until.map(time_text) })
}

/// An account, as answers show it.
pub async fn user(app: &App, id: i64) -> Result<User, Failure> {
    let sql = "SELECT u.*, r.role FROM s3_console_users u JOIN s3_console_roles r ON r.user_id = u.id WHERE u.id = ?";
    let row = app.db.read().await?.row(sql, args![id]).await?.ok_or(Code::NotFound)?;
    on_wire(&row)
}

/// A row with its role on the wire.
pub fn on_wire(row: &Row) -> Result<User, Failure> {
    Ok(User {
        id: row.int("id")?,
        email: row.text("email")?,
        client_id: row.int("client_id")?,
        role: row.word("role", Role::of_word)?,
        tenant_id: row.opt_int("tenant_id")?,
        status: row.text("status")?,
        last_login_at: row.opt_time("last_login_at")?.map(time_text),
        mfa_enrolled: row.opt_int("mfa_secret_id")?.is_some(),
    })
}

/// Makes an account with its one role.
pub async fn insert_user(
    tx: &mut Tx,
    client: i64,
    tenant: Option<i64>,
    email: &str,
    password_hash: &str,
    role: Role,
    now: Timestamp,
) -> Result<i64, Failure> {
    let columns = [
        ("client_id", client.into()),
        ("tenant_id", tenant.into()),
        ("email", email.into()),
        ("password_hash", password_hash.into()),
        ("created_at", now.into()),
    ];
    let user = tx.insert("s3_console_users", &columns).await?;
    let columns = [
        ("user_id", user.into()),
        ("client_id", client.into()),
        ("tenant_id", tenant.into()),
        ("role", role.word().into()),
    ];
    tx.insert("s3_console_roles", &columns).await?;
    Ok(user)
}

/// An address in lower case, if it looks like one.
pub fn check_email(email: &str) -> Result<String, Failure> {
    let email = email.trim().to_lowercase();
    let parts = email.split_once('@');
    let is_good = parts.is_some_and(|(name, host)| !name.is_empty() && !host.is_empty() && !host.contains('@'))
        && email.len() <= 191
        && !email.chars().any(|letter| letter.is_whitespace() || letter.is_control());
    if is_good { Ok(email) } else { Err(Failure::invalid("email", "no mail address")) }
}

/// A password that an account takes.
pub fn check_password(password: &str) -> Result<(), Failure> {
    let length = password.chars().count();
    if (password::SHORTEST..=1024).contains(&length) {
        return Ok(());
    }
    Err(Failure::invalid("password", format!("has {} to 1,024 characters", password::SHORTEST)))
}

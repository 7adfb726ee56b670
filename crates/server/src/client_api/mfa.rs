//! The second factor of a session (spec control-api 6.2, 10.4): codes from the clock, recovery codes, their limits.

use control_api::account::{Mfa, MfaAnswer};
use control_api::words::{MfaAction, MfaState};
use jiff::Timestamp;

use crate::access::audit::{self, Entry};
use crate::access::person::{self, Person};
use crate::access::totp;
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::secret;
use crate::store::{Row, Tx, Value};
use crate::vault;

/// An account's second factor rests for so long after too many wrong codes.
const LOCK_SECS: i64 = 15 * 60;
/// So many wrong codes are too many.
const MOST_WRONG: i64 = 8;

/// `console_mfa.php`.
pub async fn mfa(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: Mfa = call.read()?;
    if person.session.is_none() {
        return Err(Failure::with(Code::ForbiddenRole, "A second factor belongs to a session, not to a token"));
    }
    let mut tx = call.app.db.write().await?;
    let account = account(&mut tx, person.user).await?;
    let is_enrolled = account.opt_int("mfa_secret_id")?.is_some();
    match asked.action {
        MfaAction::Enrol => {
            // Whoever has a second factor shows it before it is replaced.
            if is_enrolled {
                person.require_fresh(now)?;
            }
            enrol(tx, call, &account, now).await
        }
        MfaAction::Confirm => confirm(tx, call, &account, asked.code.as_deref(), now).await,
        MfaAction::Verify if is_enrolled => verify(tx, call, &account, &asked, now).await,
        MfaAction::Verify => Err(Failure::validation(&[("action".into(), "there is no second factor yet".into())])),
        MfaAction::RecoveryCodes | MfaAction::Remove if !is_enrolled => {
            Err(Failure::validation(&[("action".into(), "there is no second factor yet".into())]))
        }
        MfaAction::RecoveryCodes => {
            person.require_fresh(now)?;
            let recovery_codes = new_recovery_codes(&mut tx, person.user, now).await?;
            record(&mut tx, call, "mfa.recovery_codes", person.user, now).await?;
            let answer = MfaAnswer { recovery_codes, ..answer(&mut tx, person, person.mfa).await? };
            tx.commit().await?;
            Answer::ok(answer)
        }
        MfaAction::Remove => {
            person.require_fresh(now)?;
            if person.policy.mfa_required_roles.contains(&person.role) {
                return Err(Failure::validation(&[("action".into(), "this role needs a second factor".into())]));
            }
            remove(&mut tx, person.user).await?;
            record(&mut tx, call, "mfa.remove", person.user, now).await?;
            tx.commit().await?;
            Answer::ok(MfaAnswer { mfa: MfaState::None, ..nothing() })
        }
    }
}

fn nothing() -> MfaAnswer {
    MfaAnswer {
        csrf_token: None,
        secret: None,
        otpauth_uri: None,
        recovery_codes: Vec::new(),
        recovery_codes_left: 0,
        mfa: MfaState::None,
    }
}

async fn answer(tx: &mut Tx, person: &Person, mfa: MfaState) -> Result<MfaAnswer, Failure> {
    let left = "SELECT COUNT(*) FROM s3_console_recovery_codes WHERE user_id = ? AND used_at IS NULL";
    Ok(MfaAnswer { recovery_codes_left: tx.count(left, args![person.user]).await?, mfa, ..nothing() })
}

/// The account with what is known of its second factor, locked; the row for that is made here.
async fn account(tx: &mut Tx, user: i64) -> Result<Row, Failure> {
    let known = tx.count("SELECT COUNT(*) FROM s3_console_mfa WHERE user_id = ?", args![user]).await?;
    if known == 0 {
        let columns = [("user_id", user.into()), ("updated_at", Value::Time(Timestamp::UNIX_EPOCH))];
        tx.insert_new("s3_console_mfa", &columns).await?;
    }
    let sql = format!(
        "SELECT u.email, u.client_id, u.mfa_secret_id, m.pending_secret_id, m.last_step, m.failed, m.locked_until \
         FROM s3_console_users u JOIN s3_console_mfa m ON m.user_id = u.id WHERE u.id = ?{}",
        tx.for_update()
    );
    tx.row(&sql, args![user]).await?.ok_or_else(|| Code::NotFound.into())
}

async fn record(tx: &mut Tx, call: &Call<'_>, action: &str, user: i64, now: Timestamp) -> Result<(), Failure> {
    let entry = Entry { action, entity: "user", id: user.to_string(), before: None, after: None };
    audit::record(tx, &call.actor(), now, entry).await
}

fn aad(user: i64) -> String {
    format!("second factor of user {user}")
}

/// A new secret, which serves once a code of it was shown.
async fn enrol(mut tx: Tx, call: &Call<'_>, account: &Row, now: Timestamp) -> Result<Answer, Failure> {
    let person = call.person()?;
    let bytes = secret::random::<{ totp::SECRET_BYTES }>()?;
    let client = account.int("client_id")?;
    let (vault, aad, secret) = (&call.app.vault, aad(person.user), crate::hex(&bytes));
    let kept = vault::keep(&mut tx, vault, client, "totp", &aad, &secret, now).await?;
    let columns = [("pending_secret_id", kept.into()), ("updated_at", now.into())];
    tx.update("s3_console_mfa", &columns, "user_id = ?", args![person.user]).await?;
    if let Some(former) = account.opt_int("pending_secret_id")? {
        tx.change("DELETE FROM s3_secrets WHERE id = ?", args![former]).await?;
    }
    let answer = answer(&mut tx, person, person.mfa).await?;
    tx.commit().await?;
    Answer::ok(MfaAnswer {
        secret: Some(totp::base32(&bytes)),
        otpauth_uri: Some(totp::uri(&bytes, &account.text("email")?)),
        ..answer
    })
}

/// The secret of that row, in clear.
async fn secret_of(tx: &mut Tx, call: &Call<'_>, id: i64) -> Result<Vec<u8>, Failure> {
    let text = vault::kept(tx, &call.app.vault, id, &aad(call.person()?.user)).await?;
    let digits = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    (0..text.len()).step_by(2).map(digits).collect::<Option<_>>().ok_or_else(|| Failure::internal("no secret of ours"))
}

/// Fails while the account's second factor rests.
fn check_rest(account: &Row, now: Timestamp) -> Result<(), Failure> {
    match account.opt_time("locked_until")? {
        Some(until) if until > now => Err(Failure::limited(until.duration_since(now).as_secs().unsigned_abs().max(1))),
        _ => Ok(()),
    }
}

/// Counts a wrong code, and says that it is wrong.
async fn wrong(mut tx: Tx, call: &Call<'_>, account: &Row, now: Timestamp) -> Result<Answer, Failure> {
    let user = call.person()?.user;
    let failed = account.int("failed")? + 1;
    let until = (failed % MOST_WRONG == 0).then(|| after(now, LOCK_SECS));
    let columns = [("failed", failed.into()), ("locked_until", until.into()), ("updated_at", now.into())];
    tx.update("s3_console_mfa", &columns, "user_id = ?", args![user]).await?;
    record(&mut tx, call, "mfa.failed", user, now).await?;
    tx.commit().await?;
    Err(Failure::with(Code::Unauthorized, "The code is not valid, or was used before"))
}

/// The first code of a new secret: from here on it is the account's second factor.
async fn confirm(
    mut tx: Tx,
    call: &Call<'_>,
    account: &Row,
    code: Option<&str>,
    now: Timestamp,
) -> Result<Answer, Failure> {
    let person = call.person()?;
    check_rest(account, now)?;
    let code = code.ok_or_else(|| Failure::missing("code"))?;
    let pending = account.opt_int("pending_secret_id")?;
    let pending = pending.ok_or_else(|| Failure::validation(&[("action".into(), "enrol first".into())]))?;
    let bytes = secret_of(&mut tx, call, pending).await?;
    let Some(step) = totp::step_of(&bytes, code, now, 0) else { return wrong(tx, call, account, now).await };
    tx.change("UPDATE s3_console_users SET mfa_secret_id = ? WHERE id = ?", args![pending, person.user]).await?;
    if let Some(former) = account.opt_int("mfa_secret_id")? {
        tx.change("DELETE FROM s3_secrets WHERE id = ?", args![former]).await?;
    }
    let columns = [
        ("pending_secret_id", Value::Null),
        ("last_step", step.into()),
        ("failed", 0_i64.into()),
        ("locked_until", Value::Null),
        ("updated_at", now.into()),
    ];
    tx.update("s3_console_mfa", &columns, "user_id = ?", args![person.user]).await?;
    let recovery_codes = new_recovery_codes(&mut tx, person.user, now).await?;
    record(&mut tx, call, "mfa.enrol", person.user, now).await?;
    renew(tx, call, recovery_codes, now).await
}

/// A code, or a recovery code: each serves once.
async fn verify(mut tx: Tx, call: &Call<'_>, account: &Row, asked: &Mfa, now: Timestamp) -> Result<Answer, Failure> {
    let user = call.person()?.user;
    check_rest(account, now)?;
    let is_right = match (&asked.code, &asked.recovery_code) {
        (Some(code), _) => {
            let secret = account.opt_int("mfa_secret_id")?.ok_or_else(|| Failure::internal("no second factor"))?;
            let bytes = secret_of(&mut tx, call, secret).await?;
            let last = account.int("last_step")?;
            match totp::step_of(&bytes, code, now, last) {
                Some(step) => {
                    // Conditional: another instance may take the same code at this moment.
                    let sql = "UPDATE s3_console_mfa SET last_step = ? WHERE user_id = ? AND last_step < ?";
                    tx.change(sql, args![step, user, step]).await? == 1
                }
                None => false,
            }
        }
        (None, Some(code)) => {
            let sql = "UPDATE s3_console_recovery_codes SET used_at = ? \
                       WHERE user_id = ? AND code_hash = ? AND used_at IS NULL";
            let is_one = tx.change(sql, args![now, user, totp::recovery_hash(code)]).await? == 1;
            if is_one {
                record(&mut tx, call, "mfa.recovery_used", user, now).await?;
            }
            is_one
        }
        (None, None) => return Err(Failure::missing("code")),
    };
    if !is_right {
        return wrong(tx, call, account, now).await;
    }
    let columns = [("failed", 0_i64.into()), ("locked_until", Value::Null), ("updated_at", now.into())];
    tx.update("s3_console_mfa", &columns, "user_id = ?", args![user]).await?;
    record(&mut tx, call, "mfa.verify", user, now).await?;
    renew(tx, call, Vec::new(), now).await
}

/// A new session in the place of this one: a token that was seen before the second factor is worth nothing after it.
async fn renew(mut tx: Tx, call: &Call<'_>, recovery_codes: Vec<String>, now: Timestamp) -> Result<Answer, Failure> {
    let person = call.person()?;
    let end = "UPDATE s3_console_sessions SET revoked_at = ? WHERE token_hash = ?";
    if let Some(session) = person.session {
        tx.change(end, args![now, session]).await?;
    }
    let (token, csrf_token) = person::begin(&mut tx, person.user, Some(now), call.ip, now).await?;
    let answer = answer(&mut tx, person, MfaState::Done).await?;
    tx.commit().await?;
    let answer = MfaAnswer { csrf_token: Some(csrf_token), recovery_codes, ..answer };
    Ok(Answer::ok(answer)?.set_cookie(person::set_cookie(&token)))
}

async fn new_recovery_codes(tx: &mut Tx, user: i64, now: Timestamp) -> Result<Vec<String>, Failure> {
    tx.change("DELETE FROM s3_console_recovery_codes WHERE user_id = ?", args![user]).await?;
    let mut codes = Vec::with_capacity(totp::RECOVERY_CODES);
    for _ in 0..totp::RECOVERY_CODES {
        let code = totp::recovery_code()?;
        let columns =
            [("user_id", user.into()), ("code_hash", totp::recovery_hash(&code).into()), ("created_at", now.into())];
        tx.insert("s3_console_recovery_codes", &columns).await?;
        codes.push(code);
    }
    Ok(codes)
}

/// Takes an account's second factor away.
pub async fn remove(tx: &mut Tx, user: i64) -> Result<(), Failure> {
    let account = account(tx, user).await?;
    tx.change("UPDATE s3_console_users SET mfa_secret_id = NULL WHERE id = ?", args![user]).await?;
    tx.change("DELETE FROM s3_console_mfa WHERE user_id = ?", args![user]).await?;
    tx.change("DELETE FROM s3_console_recovery_codes WHERE user_id = ?", args![user]).await?;
    for column in ["mfa_secret_id", "pending_secret_id"] {
        if let Some(secret) = account.opt_int(column)? {
            tx.change("DELETE FROM s3_secrets WHERE id = ?", args![secret]).await?;
        }
    }
    Ok(())
}

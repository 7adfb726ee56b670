//! Enrolment without a token (spec control-api 1.3): the agent shows a short code, an administrator types it into the
//! console. The agent's own code, which it shows to nobody, is what it then gets its token for.

use control_api::enrolment::{
    AgentLogin, BegunDeviceCode, ConfirmDevice, DeviceAsking, DeviceCode, DeviceCodeQuery, Enroll,
};
use jiff::Timestamp;
use serde_json::json;

use super::enrol::{self, Place};
use crate::access::audit::{self, Entry};
use crate::args;
use crate::client_api::{session, tenant_for};
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::secret;
use crate::store::{Row, Tx, Value, time_text};

/// A code is good for so long.
const CODE_SECS: i64 = 600;
/// The agent asks so often.
const POLL_SECS: i64 = 5;
/// Letters of a code that is read out: none that looks or sounds like another, none that makes words.
const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

/// `agent_device_code.php`: begins, or asks whether somebody confirmed.
pub async fn device_code(call: &Call<'_>) -> Result<Answer, Failure> {
    let now = call.app.clock.now();
    let asked: DeviceCode = call.read()?;
    match &asked.device_code {
        None => begin(call, asked, now).await,
        Some(code) => poll(call, code, now).await,
    }
}

fn as_enroll(asked: DeviceCode) -> Result<Enroll, Failure> {
    let enroll = Enroll {
        token: String::new(),
        hostname: asked.hostname.ok_or_else(|| Failure::missing("hostname"))?,
        device: asked.device,
    };
    enrol::check(&enroll)?;
    Ok(enroll)
}

async fn begin(call: &Call<'_>, asked: DeviceCode, now: Timestamp) -> Result<Answer, Failure> {
    call.app.limits.enrolments.check(&call.ip, now).map_err(Failure::limited)?;
    call.app.limits.enrolments.count(call.ip, now);
    let enroll = as_enroll(asked)?;
    let (device_code, user_code) = (secret::token("dev_")?, user_code()?);
    let mut tx = call.app.db.write().await?;
    tx.change("DELETE FROM s3_agent_device_codes WHERE expires_at <= ?", args![now]).await?;
    let columns = [
        ("device_hash", secret::hash(&device_code).into()),
        ("user_hash", user_hash(&user_code).into()),
        ("request_json", json!(enroll).into()),
        ("ip", call.ip.to_string().into()),
        ("created_at", now.into()),
        ("expires_at", Value::from(after(now, CODE_SECS))),
    ];
    tx.insert("s3_agent_device_codes", &columns).await?;
    tx.commit().await?;
    let begun = BegunDeviceCode { device_code, user_code, expires_in_secs: CODE_SECS, poll_secs: POLL_SECS };
    Answer::with("pending", begun)
}

/// Eight letters with a hyphen. Of 256 values those that would make some letters likelier are thrown away.
fn user_code() -> Result<String, Failure> {
    let mut code = String::with_capacity(9);
    while code.len() < 9 {
        let [byte] = secret::random::<1>()?;
        if code.len() == 4 {
            code.push('-');
        }
        if byte < 240 {
            code.push(char::from(LETTERS[usize::from(byte) % LETTERS.len()]));
        }
    }
    Ok(code)
}

/// What is kept of a code, however it was typed.
fn user_hash(code: &str) -> [u8; 32] {
    let plain: String = code.chars().filter(char::is_ascii_alphabetic).collect();
    secret::hash(&plain.to_ascii_uppercase())
}

async fn poll(call: &Call<'_>, code: &str, now: Timestamp) -> Result<Answer, Failure> {
    let mut tx = call.app.db.write().await?;
    let sql = format!("SELECT * FROM s3_agent_device_codes WHERE device_hash = ?{}", tx.for_update());
    let Some(row) = tx.row(&sql, args![secret::hash(code)]).await? else { return Err(Code::Unauthorized.into()) };
    if row.time("expires_at")? <= now {
        return Err(Code::TokenExpired.into());
    }
    match row.text("status")?.as_str() {
        "waiting" => return Answer::with("pending", json!({ "poll_secs": POLL_SECS })),
        "approved" => {}
        "used" => return Err(Code::TokenExhausted.into()),
        _ => return Err(Code::TokenRevoked.into()),
    }
    let client = row.opt_int("client_id")?.ok_or_else(|| Failure::internal("a code that nobody confirmed"))?;
    let asked: Enroll = row.opt_json("request_json")?.ok_or_else(|| Failure::internal("a code of nobody"))?;
    tx.change("UPDATE s3_agent_device_codes SET status = 'used' WHERE id = ?", args![row.int("id")?]).await?;
    let place = Place { client, tenant: row.opt_int("tenant_id")?, token: None };
    let enrolled = enrol::enrol(&mut tx, call, &place, &asked, now).await?;
    tx.commit().await?;
    Answer::ok(enrolled)
}

/// The row that waits under that code, locked. Guesses are limited by person and by address.
async fn waiting(tx: &mut Tx, call: &Call<'_>, code: &str, now: Timestamp) -> Result<Row, Failure> {
    let keys = [format!("device code user {}", call.person()?.user), format!("device code {}", call.ip)];
    for key in &keys {
        call.app.limits.logins.check(key, now).map_err(Failure::limited)?;
    }
    let sql = format!(
        "SELECT * FROM s3_agent_device_codes WHERE user_hash = ? AND status = 'waiting' AND expires_at > ?{}",
        tx.for_update()
    );
    let row = tx.row(&sql, args![user_hash(code), now]).await?;
    row.ok_or_else(|| {
        for key in keys {
            call.app.limits.logins.count(key, now);
        }
        Code::NotFound.into()
    })
}

/// `e3backup_device_code.php`: what asks under that code, for who is about to confirm it.
pub async fn show(call: &Call<'_>) -> Result<Answer, Failure> {
    let asked: DeviceCodeQuery = call.read()?;
    let mut tx = call.app.db.write().await?;
    let row = waiting(&mut tx, call, &asked.user_code, call.app.clock.now()).await?;
    let enroll: Enroll = row.opt_json("request_json")?.ok_or_else(|| Failure::internal("a code of nobody"))?;
    Answer::ok(DeviceAsking {
        hostname: enroll.hostname,
        device_name: enroll.device.device_name,
        agent_os: enroll.device.agent_os,
        agent_version: enroll.device.agent_version,
        ip: row.text("ip")?,
        created_at: time_text(row.time("created_at")?),
        expires_at: time_text(row.time("expires_at")?),
    })
}

/// `e3backup_device_confirm.php`.
pub async fn confirm(call: &Call<'_>) -> Result<Answer, Failure> {
    let (person, now) = (call.person()?, call.app.clock.now());
    let asked: ConfirmDevice = call.read()?;
    let mut tx = call.app.db.write().await?;
    let tenant = tenant_for(&mut tx, person.scope, asked.tenant_id).await?;
    let row = waiting(&mut tx, call, &asked.user_code, now).await?;
    let columns = [
        ("status", if asked.approve { "approved" } else { "refused" }.into()),
        ("client_id", person.scope.client.into()),
        ("tenant_id", tenant.into()),
        ("decided_by", person.user.into()),
    ];
    tx.update("s3_agent_device_codes", &columns, "id = ?", args![row.int("id")?]).await?;
    let enroll: Enroll = row.opt_json("request_json")?.ok_or_else(|| Failure::internal("a code of nobody"))?;
    let after = Some(json!({ "hostname": enroll.hostname, "approve": asked.approve, "tenant_id": tenant }));
    let id = row.int("id")?.to_string();
    let entry = Entry { action: "device_code.confirm", entity: "device_code", id, before: None, after };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::done()
}

/// `agent_login.php` in its form of one step. Off unless the server was told otherwise (11, D11), and never for an
/// account whose second factor it would go around.
pub async fn login(call: &Call<'_>) -> Result<Answer, Failure> {
    let now = call.app.clock.now();
    let asked: AgentLogin = call.read()?;
    if !call.app.settings.agent_password_login {
        let why = "This server enrols no agents by password: use agent_device_code.php or a token";
        return Err(Failure::with(Code::ForbiddenRole, why));
    }
    let row = session::prove(call, &asked.email, asked.password, now).await?;
    let role = row.word("role", control_api::words::Role::of_word)?;
    if !crate::access::allows(role, crate::access::Need::Admin) || row.opt_int("mfa_secret_id")?.is_some() {
        return Err(Failure::with(Code::ForbiddenRole, "This account enrols agents by code or token only"));
    }
    let enroll = Enroll { token: String::new(), hostname: asked.hostname, device: asked.device };
    enrol::check(&enroll)?;
    let mut tx = call.app.db.write().await?;
    let place = Place { client: row.int("client_id")?, tenant: row.opt_int("tenant_id")?, token: None };
    let enrolled = enrol::enrol(&mut tx, call, &place, &enroll, now).await?;
    tx.commit().await?;
    Answer::ok(enrolled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_for_people_has_only_its_letters_and_may_be_typed_in_any_way() {
        for _ in 0..200 {
            let code = user_code().expect("random bytes");
            let (left, right) = code.split_once('-').expect("a hyphen");
            assert!(left.len() == 4 && right.len() == 4, "{code}");
            assert!(left.bytes().chain(right.bytes()).all(|letter| LETTERS.contains(&letter)), "{code}");
            assert_eq!(user_hash(&code), user_hash(&format!(" {left}{} ", right.to_lowercase())), "{code}");
        }
    }
}

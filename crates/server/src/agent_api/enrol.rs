//! Enrolment, and the tokens that come of it (spec control-api 1.1, 1.2, 1.6).

use control_api::enrolment::{Enroll, Enrolled, RotatedToken};
use control_api::words::HostRole;
use jiff::Timestamp;
use serde_json::json;

use crate::access::audit::{self, Actor, Entry};
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::http::{Answer, Call};
use crate::secret;
use crate::store::{Row, Tx, Value, time_text};
use crate::vault;

/// The old token of a rotation serves so long.
const OLD_TOKEN_SECS: i64 = 24 * 3600;
/// A token is changed after so long.
const ROTATE_SECS: i64 = 90 * 24 * 3600;

/// `agent_enroll.php`.
pub async fn enroll(call: &Call<'_>) -> Result<Answer, Failure> {
    let now = call.app.clock.now();
    call.app.limits.enrolments.check(&call.ip, now).map_err(Failure::limited)?;
    call.app.limits.enrolments.count(call.ip, now);
    let asked: Enroll = call.read()?;
    check(&asked)?;
    let mut tx = call.app.db.write().await?;
    let token = spend(&mut tx, &asked.token, now).await?;
    let place =
        Place { client: token.int("client_id")?, tenant: token.opt_int("tenant_id")?, token: Some(token.int("id")?) };
    let enrolled = enrol(&mut tx, call, &place, &asked, now).await?;
    tx.commit().await?;
    Answer::ok(enrolled)
}

/// Where an agent is enrolled, and with which token.
#[derive(Debug)]
pub struct Place {
    /// The client.
    pub client: i64,
    /// One of its tenants.
    pub tenant: Option<i64>,
    /// The enrolment token, where one was spent.
    pub token: Option<i64>,
}

/// Makes the agent's row, or renews that of the same device; its old token ends here.
pub async fn enrol(
    tx: &mut Tx,
    call: &Call<'_>,
    place: &Place,
    asked: &Enroll,
    now: Timestamp,
) -> Result<Enrolled, Failure> {
    let Place { client, tenant, token } = *place;
    let agent_token = secret::token("agt_")?;
    let mut columns: Vec<(&str, Value)> = vec![
        ("token_hash", secret::hash(&agent_token).into()),
        ("prev_token_hash", Value::Null),
        ("prev_token_valid_until", Value::Null),
        ("token_rotated_at", now.into()),
        ("enrollment_token_id", token.into()),
        ("hostname", asked.hostname.clone().into()),
        ("install_id", asked.device.install_id.clone().into()),
        ("agent_type", agent_type(asked.device.host_role).into()),
        ("status", "active".into()),
        ("last_seen_at", now.into()),
        ("updated_at", now.into()),
    ];
    for (name, value) in [
        ("device_name", &asked.device.device_name),
        ("agent_version", &asked.device.agent_version),
        ("agent_os", &asked.device.agent_os),
        ("agent_arch", &asked.device.agent_arch),
        ("agent_build", &asked.device.agent_build),
    ] {
        columns.push((name, value.clone().into()));
    }
    let known = match &asked.device.device_id {
        Some(device) => known(tx, client, tenant, device).await?,
        None => None,
    };
    let (id, uuid) = match known {
        // Only an administrator enables what an administrator disabled.
        Some(row) if row.text("status")? == "disabled" => return Err(Code::EnrolDisabled.into()),
        Some(row) => {
            let id = row.int("id")?;
            tx.update("s3_cloudbackup_agents", &columns, "id = ?", args![id]).await?;
            (id, row.text("agent_uuid")?)
        }
        None => {
            let uuid = uuid::Uuid::new_v4().to_string();
            columns.extend([
                ("agent_uuid", uuid.clone().into()),
                ("client_id", client.into()),
                ("tenant_id", tenant.into()),
                ("tenant_key", tenant.unwrap_or(0).into()),
                ("device_id", asked.device.device_id.clone().into()),
                ("created_at", now.into()),
            ]);
            (tx.insert("s3_cloudbackup_agents", &columns).await?, uuid)
        }
    };
    let actor = Actor { client: Some(client), tenant, kind: "agent", id: Some(id), ..call.actor() };
    let after = json!({ "hostname": asked.hostname, "device_id": asked.device.device_id });
    let entry = Entry { action: "agent.enrol", entity: "agent", id: id.to_string(), before: None, after: Some(after) };
    audit::record(tx, &actor, now, entry).await?;
    Ok(Enrolled {
        message: format!("Agent {id} is enrolled"),
        agent_id: id,
        agent_uuid: uuid,
        agent_token,
        client_id: client,
        tenant_id: tenant,
        api_base_url: call.app.api_base_url(),
        server_key_pins: call.app.key_pins.clone(),
    })
}

/// Lengths, and that there is a name.
pub fn check(asked: &Enroll) -> Result<(), Failure> {
    if asked.hostname.trim().is_empty() {
        return Err(Failure::missing("hostname"));
    }
    for (name, value, most) in [
        ("hostname", Some(&asked.hostname), 191),
        ("device_id", asked.device.device_id.as_ref(), 64),
        ("install_id", asked.device.install_id.as_ref(), 64),
        ("device_name", asked.device.device_name.as_ref(), 191),
        ("agent_version", asked.device.agent_version.as_ref(), 64),
        ("agent_os", asked.device.agent_os.as_ref(), 32),
        ("agent_arch", asked.device.agent_arch.as_ref(), 16),
        ("agent_build", asked.device.agent_build.as_ref(), 64),
    ] {
        if value.is_some_and(|value| value.chars().count() > most) {
            return Err(Failure::invalid(name, format!("longer than {most} characters")));
        }
    }
    Ok(())
}

/// Checks an enrolment token in the contract's order and counts its use; both last only if the enrolment does.
async fn spend(tx: &mut Tx, token: &str, now: Timestamp) -> Result<Row, Failure> {
    let is_ours = token.starts_with("enr_") && token.len() == 47;
    let is_hex = token.len() >= 32 && token.len() <= 128 && token.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_ours && !is_hex {
        return Err(Code::Unauthorized.into());
    }
    let sql = format!("SELECT * FROM s3_agent_enrollment_tokens WHERE token_hash = ?{}", tx.for_update());
    let Some(row) = tx.row(&sql, args![secret::hash(token)]).await? else { return Err(Code::Unauthorized.into()) };
    let client = tx.row("SELECT status FROM s3_clients WHERE id = ?", args![row.int("client_id")?]).await?;
    if client.is_none_or(|client| client.text("status").is_ok_and(|status| status != "active")) {
        return Err(Code::Unauthorized.into());
    }
    if row.opt_time("revoked_at")?.is_some() {
        return Err(Code::TokenRevoked.into());
    }
    if row.opt_time("expires_at")?.is_some_and(|until| until <= now) {
        return Err(Code::TokenExpired.into());
    }
    let (used, most) = (row.int("use_count")?, row.opt_int("max_uses")?.unwrap_or(0));
    if most > 0 && used >= most {
        return Err(Code::TokenExhausted.into());
    }
    let sql = "UPDATE s3_agent_enrollment_tokens SET use_count = use_count + 1 WHERE id = ?";
    tx.change(sql, args![row.int("id")?]).await?;
    Ok(row)
}

/// The agent of that device in the same client and tenant, and nowhere else.
async fn known(tx: &mut Tx, client: i64, tenant: Option<i64>, device: &str) -> Result<Option<Row>, Failure> {
    let sql = format!(
        "SELECT * FROM s3_cloudbackup_agents WHERE client_id = ? AND tenant_key = ? AND device_id = ?{}",
        tx.for_update()
    );
    Ok(tx.row(&sql, args![client, tenant.unwrap_or(0), device]).await?)
}

fn agent_type(role: Option<HostRole>) -> &'static str {
    match role {
        Some(HostRole::HypervHost) => "hypervisor",
        Some(HostRole::Workstation) => "workstation",
        Some(HostRole::Server) | None => "server",
    }
}

/// `agent_rotate_token.php`: asked again with the old token, the same new one is answered.
pub async fn rotate_token(call: &Call<'_>) -> Result<Answer, Failure> {
    let (agent, now) = (call.agent()?, call.app.clock.now());
    let mut tx = call.app.db.write().await?;
    let sql = format!("SELECT * FROM s3_cloudbackup_agents WHERE id = ?{}", tx.for_update());
    let row = tx.row(&sql, args![agent.id]).await?.ok_or(Code::Unauthorized)?;
    let aad = format!("next token of agent {}", agent.id);
    let rotate_after = time_text(after(now, ROTATE_SECS));
    if agent.uses_old_token
        && let Some(kept) = row.opt_int("next_token_secret_id")?
    {
        let agent_token = vault::kept(&mut tx, &call.app.vault, kept, &aad).await?;
        return Answer::ok(RotatedToken { agent_token, rotate_after });
    }
    let agent_token = secret::token("agt_")?;
    let vault = &call.app.vault;
    let kept = vault::keep(&mut tx, vault, agent.client, "agent_token", &aad, &agent_token, now).await?;
    let columns = [
        ("prev_token_hash", row.bytes("token_hash")?.into()),
        ("prev_token_valid_until", after(now, OLD_TOKEN_SECS).into()),
        ("token_hash", secret::hash(&agent_token).into()),
        ("token_rotated_at", now.into()),
        ("next_token_secret_id", kept.into()),
        ("updated_at", now.into()),
    ];
    tx.update("s3_cloudbackup_agents", &columns, "id = ?", args![agent.id]).await?;
    let entry = Entry { action: "agent.rotate", entity: "agent", id: agent.id.to_string(), before: None, after: None };
    audit::record(&mut tx, &call.actor(), now, entry).await?;
    tx.commit().await?;
    Answer::ok(RotatedToken { agent_token, rotate_after })
}

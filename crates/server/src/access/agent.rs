//! Agents that call: their token, and the order in which a call is checked (spec control-api 1.4, 1.5).

use std::net::IpAddr;

use axum::http::HeaderMap;
use control_api::id::Id;
use jiff::Timestamp;

use crate::App;
use crate::args;
use crate::clock::after;
use crate::failure::{Code, Failure};
use crate::secret;
use crate::store::{Row, Value};

/// An agent whose token was right.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its id.
    pub id: i64,
    /// Its client.
    pub client: i64,
    /// Its tenant.
    pub tenant: Option<i64>,
    /// Random per start of its process.
    pub boot: Option<String>,
    /// The claim of the run that the call is about (3.3).
    pub claim: Option<String>,
    /// What it can do beyond the design document (0.7).
    pub caps: Vec<String>,
    /// Whether the new token of a rotation is still unused.
    pub uses_old_token: bool,
    /// Its machine.
    pub hostname: Option<String>,
}

impl Agent {
    /// Whether it knows that ability.
    pub fn has(&self, cap: &str) -> bool {
        self.caps.iter().any(|other| other == cap)
    }
}

/// `last_seen_at` is written at most so often.
const SEEN_SECS: i64 = 60;
/// Two machines with one token within this time are a copy.
const CLONE_SECS: i64 = 600;

/// The agent that these headers prove, from the headers on (1.5).
pub async fn authenticate(app: &App, headers: &HeaderMap, _address: IpAddr) -> Result<Agent, Failure> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let id = text("x-agent-id").or_else(|| text("x-agent-uuid"));
    let (Some(id), Some(token)) = (id, text("x-agent-token")) else { return Err(Code::MissingCredentials.into()) };
    let hash = secret::hash(&token);
    let row = match Id::parse(&id) {
        Some(id) => find(app, &id).await?,
        None => None,
    };
    let Some(row) = row else {
        // As long as with a row.
        secret::same(&hash, &secret::hash(""));
        return Err(Code::Unauthorized.into());
    };

    let now = app.clock.now();
    let is_current = secret::same(&hash, &row.bytes("token_hash")?);
    let previous = row.opt_bytes("prev_token_hash")?;
    let is_previous = previous.as_ref().is_some_and(|previous| secret::same(&hash, previous))
        && row.opt_time("prev_token_valid_until")?.is_some_and(|until| until > now);
    if !is_current && !is_previous {
        return Err(Code::Unauthorized.into());
    }
    if row.text("status")? != "active" {
        let is_cloned = row.opt_text("disabled_reason")?.as_deref() == Some("agent_cloned");
        return Err(if is_cloned { Code::AgentCloned.into() } else { Code::AgentDisabled.into() });
    }
    let tenant_status = row.opt_text("tenant_status")?;
    if row.text("client_status")? != "active" || tenant_status.is_some_and(|status| status != "active") {
        return Err(Code::Unauthorized.into());
    }
    let id = row.int("id")?;
    app.limits.agents.take(id, now).map_err(Failure::limited)?;
    let version = text("x-agent-version");
    if let Some(reported) = &version
        && is_older(reported, &app.settings.min_agent_version)
    {
        let failure = Failure::new(Code::VersionTooOld).detail("min_version", app.settings.min_agent_version.as_str());
        return Err(failure.detail("reported_version", reported.as_str()));
    }

    let caps = text("x-agent-caps").unwrap_or_default();
    let agent = Agent {
        id,
        client: row.int("client_id")?,
        tenant: row.opt_int("tenant_id")?,
        boot: text("x-agent-boot").filter(|boot| boot.len() <= 64),
        claim: text("x-run-claim"),
        caps: caps.split(',').map(|cap| cap.trim().to_owned()).filter(|cap| !cap.is_empty()).collect(),
        uses_old_token: is_previous,
        hostname: row.opt_text("hostname")?,
    };
    let seen = Seen {
        install: text("x-agent-install").filter(|install| install.len() <= 64),
        version: version.filter(|version| version.len() <= 64),
        caps: Some(caps).filter(|caps| !caps.is_empty() && caps.len() <= 255),
        is_first_use: is_current && previous.is_some(),
    };
    seen.note(app, &row, &agent, now).await?;
    Ok(agent)
}

async fn find(app: &App, id: &Id) -> Result<Option<Row>, Failure> {
    let (column, value): (&str, Value) = match id {
        Id::Number(number) => ("a.id", (*number).into()),
        Id::Uuid(uuid) => ("a.agent_uuid", uuid.into()),
    };
    let sql = format!(
        "SELECT a.*, c.status AS client_status, t.status AS tenant_status FROM s3_cloudbackup_agents a \
         JOIN s3_clients c ON c.id = a.client_id LEFT JOIN s3_backup_tenants t ON t.id = a.tenant_id \
         WHERE {column} = ? AND a.status <> 'deleted'"
    );
    Ok(app.db.read().await?.row(&sql, args![value]).await?)
}

/// What a call says of its agent beside what it asks.
struct Seen {
    install: Option<String>,
    version: Option<String>,
    caps: Option<String>,
    is_first_use: bool,
}

impl Seen {
    /// Writes what changed, and the time at most once a minute.
    async fn note(&self, app: &App, row: &Row, agent: &Agent, now: Timestamp) -> Result<(), Failure> {
        let known_install = row.opt_text("install_id")?;
        if let (Some(known), Some(install)) = (&known_install, &self.install)
            && known != install
        {
            let last = row.opt_time("install_seen_at")?;
            if last.is_some_and(|last| after(last, CLONE_SECS) > now) {
                let mut tx = app.db.write().await?;
                let columns = [
                    ("status", "disabled".into()),
                    ("disabled_reason", "agent_cloned".into()),
                    ("updated_at", now.into()),
                ];
                tx.update("s3_cloudbackup_agents", &columns, "id = ?", args![agent.id]).await?;
                let columns = [
                    ("agent_id", agent.id.into()),
                    ("ts", now.into()),
                    ("source", "server".into()),
                    ("level", "error".into()),
                    ("code", "AGENT_CLONED".into()),
                ];
                tx.insert("s3_cloudbackup_agent_events", &columns).await?;
                tx.commit().await?;
                return Err(Code::AgentCloned.into());
            }
        }
        let mut columns: Vec<(&str, Value)> = Vec::new();
        let mut changed = |name: &'static str, new: &Option<String>, old: Option<String>| {
            if new.is_some() && *new != old {
                columns.push((name, new.clone().into()));
            }
        };
        changed("install_id", &self.install, known_install);
        changed("agent_version", &self.version, row.opt_text("agent_version")?);
        changed("caps", &self.caps, row.opt_text("caps")?);
        changed("boot_id", &agent.boot, row.opt_text("boot_id")?);
        if self.is_first_use {
            columns.push(("prev_token_hash", Value::Null));
            columns.push(("prev_token_valid_until", Value::Null));
            columns.push(("next_token_secret_id", Value::Null));
        }
        let is_stale = row.opt_time("last_seen_at")?.is_none_or(|last| after(last, SEEN_SECS) <= now || last > now);
        if columns.is_empty() && !is_stale {
            return Ok(());
        }
        if columns.is_empty() && row.opt_time("last_seen_at")?.is_some() {
            app.heard.note(agent.id, self.install.is_some());
            return Ok(());
        }
        columns.push(("last_seen_at", now.into()));
        if self.install.is_some() {
            columns.push(("install_seen_at", now.into()));
        }
        let mut tx = app.db.write().await?;
        tx.update("s3_cloudbackup_agents", &columns, "id = ?", args![agent.id]).await?;
        Ok(tx.commit().await?)
    }
}

/// Whether a dotted version is below another; what cannot be read is old.
fn is_older(version: &str, least: &str) -> bool {
    let parts = |text: &str| -> Vec<u64> {
        text.trim_start_matches('v').split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
    };
    parts(version) < parts(least)
}

#[cfg(test)]
mod tests {
    use super::is_older;

    #[test]
    fn versions_compare_by_number() {
        for (version, least, expected) in [
            ("0.1.0", "0.1.0", false),
            ("0.0.9", "0.1.0", true),
            ("0.10.0", "0.9.0", false),
            ("v1.0", "0.9", false),
            ("1.2.3-rc1", "1.2.3", false),
            ("unknown", "0.1.0", true),
            ("", "0.1.0", true),
        ] {
            assert_eq!(is_older(version, least), expected, "{version} against {least}");
        }
    }
}

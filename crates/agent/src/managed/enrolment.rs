//! Enrolment: what the agent keeps of it, and the command that makes it (spec control-api 1.2).

use std::io;
use std::path::{Path, PathBuf};

use backup::HostState;
use control_api::enrolment::{Device, Enroll, Enrolled};
use control_api::words::HostRole;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use zeroize::Zeroizing;

use super::client::{CallError, Client, Identity};
use super::durable::{make_private_folder, write_private};
use super::protected;
use super::trust::{Fingerprint, Trust, TrustError};
use crate::cli::{EnrollArgs, Global};
use crate::context::Context;
use crate::failure::{Attempt as _, Code, Failure};
use crate::host::{OpenHost, state_dir};
use crate::outcome::Outcome;
use crate::output::{json_document, line, note};
use crate::units::hex;

/// Folder of everything that belongs to the enrolment, beside the host's journals.
const FOLDER: &str = "managed";
const FILE: &str = "enrolment.json";

/// What the agent keeps of its enrolment; the token lies apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// The address that calls go to, without a slash at its end.
    pub api_base_url: String,
    /// How the server's certificate is judged.
    pub trust: Trust,
    /// Its id there.
    pub agent_id: i64,
    /// The same as UUID.
    pub agent_uuid: String,
    /// Random per enrolment: two machines with one token are told apart by it (1.5).
    pub install_id: String,
    /// When.
    pub enrolled_at: Timestamp,
}

impl Enrolment {
    /// The folder of the enrolment of the host whose journals lie in `state`.
    pub fn folder(state: &Path) -> PathBuf {
        state.join(FOLDER)
    }

    /// Reads it; `None` on a host that belongs to no server.
    pub fn load(state: &Path) -> Result<Option<Self>, Failure> {
        let path = Self::folder(state).join(FILE);
        let what = "read the enrolment";
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                Failure::new(what, path.display().to_string(), Code::Usage, error.to_string())
                    .with_steps(&["enrol again: `enroll SERVER --again`"])
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::of(what, path.display().to_string(), &error)),
        }
    }

    /// The client of an agent that is enrolled.
    pub fn client(&self, state: &Path) -> Result<Client, Failure> {
        let folder = Self::folder(state);
        let what = "read the agent's token";
        let token = protected::read(&folder).attempt(what, folder.display().to_string())?;
        let identity = Identity { agent_id: self.agent_id, install_id: self.install_id.clone(), token: token.into() };
        Client::new(&self.api_base_url, &self.trust, Some(identity))
            .map_err(|error| untrusted(&self.api_base_url, &error))
    }
}

/// `enroll SERVER`
pub fn enroll(global: Global, arguments: &EnrollArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let host = context.host()?;
    let state = host.state()?;
    let folder = state_dir(context.host_selector()?)?;
    if let Some(known) = Enrolment::load(&folder)?
        && !arguments.again
    {
        let why = format!("this host is agent {} of {} already", known.agent_id, known.api_base_url);
        return Err(Failure::new("enrol", host.name, Code::TargetExists, why)
            .with_steps(&["start it: `e3-backup-agent run`", "say --again: the old token dies with it"]));
    }
    let server = address(&arguments.server)?;
    let trust = trust(arguments)?;
    let token = token(arguments)?;
    let mut install = [0; 16];
    getrandom::fill(&mut install).expect("the operating system gives random bytes");
    let install_id = hex(&install);

    let client = Client::new(&format!("{server}/api"), &trust, None).map_err(|error| untrusted(&server, &error))?;
    let enrolled: Enrolled = client
        .post("agent_enroll.php", None, &request(&host, &state, &install_id, &token, arguments))
        .map_err(|error| refused(&server, &error))?
        .body;
    let enrolment = Enrolment {
        api_base_url: base_url(&server, &enrolled.api_base_url),
        trust: trust.with_keys(enrolled.server_key_pins),
        agent_id: enrolled.agent_id,
        agent_uuid: enrolled.agent_uuid.clone(),
        install_id,
        enrolled_at: Timestamp::now(),
    };
    let agent_token = Zeroizing::new(enrolled.agent_token);
    keep(&folder, &enrolment, &agent_token)?;

    if context.global.json {
        json_document(&json!({
            "agent_id": enrolment.agent_id,
            "agent_uuid": enrolment.agent_uuid,
            "server": enrolment.api_base_url,
            "host": host.name,
        }));
    } else if context.global.quiet {
        line(&enrolment.agent_id.to_string());
    } else {
        line(&format!("enrolled  {} is agent {} of {}", host.name, enrolment.agent_id, enrolment.api_base_url));
        note("next      e3-backup-agent run     (Windows: `service install --start`)");
    }
    Ok(Outcome::DONE)
}

/// The token first: an enrolment without one would look whole.
fn keep(state: &Path, enrolment: &Enrolment, token: &str) -> Result<(), Failure> {
    let folder = Enrolment::folder(state);
    let json = serde_json::to_vec_pretty(enrolment).expect("texts and numbers are JSON");
    let write = || -> io::Result<()> {
        make_private_folder(&folder)?;
        protected::keep(&folder, token)?;
        write_private(&folder.join(FILE), &json)
    };
    write().attempt("keep the enrolment", folder.display().to_string())
}

fn request(host: &OpenHost, state: &HostState, install_id: &str, token: &str, arguments: &EnrollArgs) -> Enroll {
    Enroll {
        token: token.to_owned(),
        hostname: host.name.clone(),
        device: Device {
            // The same for as long as the host's journals are: a host that enrols again is the same agent.
            device_id: Some(state.agent_id().to_owned()),
            install_id: Some(install_id.to_owned()),
            device_name: arguments.name.clone(),
            agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            agent_os: Some(std::env::consts::OS.to_owned()),
            agent_arch: Some(std::env::consts::ARCH.to_owned()),
            agent_build: None,
            host_role: Some(HostRole::HypervHost),
        },
    }
}

/// `https://host:port`, without what a person copied behind it.
fn address(given: &str) -> Result<String, Failure> {
    let wrong = |why: &str| Failure::new("enrol", given, Code::Usage, why).with_steps(&["correct the address"]);
    let text = given.trim().trim_end_matches('/');
    let text = text.strip_suffix("/api").unwrap_or(text);
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(wrong("an address begins with https://"));
    };
    if !scheme.eq_ignore_ascii_case("https") || rest.is_empty() || rest.contains(['/', '?', '#', '@']) {
        return Err(wrong("an address is https://HOST or https://HOST:PORT"));
    }
    Ok(format!("https://{rest}"))
}

/// The server says by which address it is called; one that knows only itself is called as it was found.
fn base_url(server: &str, said: &str) -> String {
    let host = |url: &str| {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let rest = rest.split('/').next().unwrap_or_default();
        rest.rsplit_once(':').map_or(rest, |(host, _)| host).to_owned()
    };
    let is_local = |host: &str| host == "localhost" || host == "[::1]" || host.starts_with("127.");
    if said.starts_with("https://") && (is_local(&host(server)) || !is_local(&host(said))) {
        return said.trim_end_matches('/').to_owned();
    }
    format!("{server}/api")
}

fn trust(arguments: &EnrollArgs) -> Result<Trust, Failure> {
    let what = "read how the server is trusted";
    if let Some(text) = &arguments.fingerprint {
        let fingerprint = Fingerprint::parse(text).map_err(|why| {
            Failure::new(what, "--fingerprint", Code::Usage, why)
                .with_steps(&["copy it from what `e3-server serve` prints"])
        })?;
        return Ok(Trust::Certificate(fingerprint));
    }
    match &arguments.ca {
        Some(path) => Ok(Trust::Authority(std::fs::read_to_string(path).attempt(what, path.display().to_string())?)),
        None => Ok(Trust::Public),
    }
}

fn token(arguments: &EnrollArgs) -> Result<Zeroizing<String>, Failure> {
    let what = "read the enrolment token";
    if let Some(path) = &arguments.token_file {
        let text = std::fs::read_to_string(path).map(Zeroizing::new).attempt(what, path.display().to_string())?;
        return Ok(Zeroizing::new(text.trim().to_owned()));
    }
    match &arguments.token {
        Some(token) => Ok(Zeroizing::new(token.trim().to_owned())),
        None => Err(Failure::new(what, "", Code::Usage, "no enrolment token was given")
            .with_steps(&["give --token-file FILE", "set E3_ENROLL_TOKEN"])),
    }
}

fn untrusted(server: &str, error: &TrustError) -> Failure {
    Failure::of("set up trust in the server", server, error)
}

fn refused(server: &str, error: &CallError) -> Failure {
    let code = match error {
        CallError::Unreachable(_) => Code::ServerUnreachable,
        CallError::Untrusted(_) => Code::ServerUntrusted,
        error if error.is_transient() => Code::ServerUnreachable,
        CallError::Refused { .. } => Code::ServerRefused,
    };
    Failure::new("enrol", server, code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_copy_them() {
        for (given, expected) in [
            ("https://backup.example.com", Some("https://backup.example.com")),
            (" https://backup.example.com:8443/ ", Some("https://backup.example.com:8443")),
            ("HTTPS://b/api/", Some("https://b")),
            ("backup.example.com", None),
            ("http://backup.example.com", None),
            ("https://", None),
            ("https://b/console", None),
            ("https://user@b", None),
        ] {
            assert_eq!(address(given).ok().as_deref(), expected, "{given}");
        }
    }

    #[test]
    fn a_server_that_knows_only_itself_is_called_as_it_was_found() {
        for (server, said, expected) in [
            ("https://10.0.0.5:8443", "https://localhost:8443/api", "https://10.0.0.5:8443/api"),
            ("https://10.0.0.5:8443", "https://backup.example.com/api", "https://backup.example.com/api"),
            ("https://localhost:8443", "https://localhost:8443/api/", "https://localhost:8443/api"),
            ("https://127.0.0.1:1", "https://127.0.0.1:1/api", "https://127.0.0.1:1/api"),
            ("https://10.0.0.5:8443", "http://evil.example.com/api", "https://10.0.0.5:8443/api"),
        ] {
            assert_eq!(base_url(server, said), expected, "{server} {said}");
        }
    }

    #[test]
    fn an_enrolment_is_read_as_it_was_kept() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(Enrolment::load(state.path()).unwrap(), None);
        let fingerprint = Fingerprint::parse(&"ab".repeat(32)).unwrap();
        let enrolment = Enrolment {
            api_base_url: "https://backup.example.com/api".into(),
            trust: Trust::Certificate(fingerprint).with_keys(vec!["pin".into()]),
            agent_id: 7,
            agent_uuid: "u".into(),
            install_id: "i".into(),
            enrolled_at: Timestamp::UNIX_EPOCH,
        };
        keep(state.path(), &enrolment, "agt_x").unwrap();
        assert_eq!(Enrolment::load(state.path()).unwrap(), Some(enrolment));
    }
}

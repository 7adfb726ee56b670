//! What is asked of a provider: its description, its keys, a token for a code, and what it says of a person. All of it
//! blocks, with short time limits.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bucket::Network;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use url::Url;

use super::id_token::{self, Expected, Jwk, TokenError};
use crate::outgoing::Reach;

/// A description and keys are asked for again after so long.
const KEPT_SECS: i64 = 3600;
/// Keys are not asked for more often than this, whatever ids tokens name.
const LEAST_SECS: i64 = 5;
/// One answer of a provider may take so long, and be so large.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_BYTES: u64 = 512 << 10;

/// Why a provider could not be used.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It cannot be reached, or what it answers is not what was asked for.
    #[error("ask {url}: {why}")]
    Ask {
        /// What was asked.
        url: String,
        /// What came.
        why: String,
    },
    /// Its address is none that can be trusted.
    #[error("{0}: not https, or an address of this machine or a private network (--allow-private-sign-in)")]
    NotTrusted(String),
    /// It describes another one.
    #[error("{asked} describes itself as {told:?}")]
    OtherIssuer {
        /// The issuer that was asked.
        asked: String,
        /// What it says.
        told: String,
    },
    /// It refuses the code.
    #[error("the provider refuses the code: {0}")]
    Refused(String),
    /// What it signed is worth nothing.
    #[error("the ID token is not taken: {0}")]
    Token(#[from] TokenError),
    /// Its two answers are about different people.
    #[error("the userinfo endpoint tells of somebody else")]
    OtherSubject,
}

/// A provider's description (OpenID Connect Discovery 3).
#[derive(Debug, Clone, Deserialize)]
pub struct Metadata {
    issuer: String,
    /// Where people sign in.
    pub authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    #[serde(default)]
    userinfo_endpoint: Option<String>,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Vec<String>,
    /// It names itself in its answers (RFC 9207).
    #[serde(default)]
    pub authorization_response_iss_parameter_supported: bool,
}

#[derive(Debug, Clone)]
struct Known {
    metadata: Metadata,
    keys: Vec<Jwk>,
    at: Timestamp,
}

/// Descriptions and keys of the providers, by issuer.
#[derive(Debug)]
pub struct Cache {
    reach: Reach,
    known: Mutex<HashMap<String, Known>>,
}

/// A code to be redeemed.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// Who issued it.
    pub issuer: String,
    /// This server, as the provider knows it.
    pub client_id: String,
    /// Its password there.
    pub client_secret: Option<String>,
    /// The code.
    pub code: String,
    /// PKCE's verifier.
    pub verifier: String,
    /// What the token has to name.
    pub nonce: String,
    /// Where the person was sent back to.
    pub redirect_uri: String,
    /// Claims without which the userinfo endpoint is asked too.
    pub wanted: Vec<String>,
}

/// Who signed in, as the provider says.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Their name there, which never changes.
    pub id: String,
    /// All claims.
    pub claims: Map<String, Value>,
}

/// Whether an address may be asked: https in the public network; where private addresses are allowed also those, and
/// this machine without TLS.
pub fn is_trusted(address: &str, reach: &Reach) -> bool {
    let Ok(url) = Url::parse(address) else { return false };
    if reach.forbids(&url) {
        return false;
    }
    let is_loopback = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => return false,
    };
    (url.scheme() == "https" || (url.scheme() == "http" && is_loopback && reach.network == Network::Any))
        && url.username().is_empty()
        && url.password().is_none()
}

fn failed(url: &str, why: impl ToString) -> PeerError {
    PeerError::Ask { url: url.to_owned(), why: why.to_string() }
}

fn read<T: DeserializeOwned>(
    url: &str,
    sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<(u16, T), PeerError> {
    let mut response = sent.map_err(|error| failed(url, error))?;
    let status = response.status().as_u16();
    let text = response.body_mut().with_config().limit(MAX_BYTES).read_to_string();
    let text = text.map_err(|error| failed(url, error))?;
    match serde_json::from_str(&text) {
        Ok(value) => Ok((status, value)),
        Err(error) => Err(failed(url, format!("status {status}, {error}"))),
    }
}

fn agent(url: &str, reach: &Reach) -> Result<ureq::Agent, PeerError> {
    if !is_trusted(url, reach) {
        return Err(PeerError::NotTrusted(url.to_owned()));
    }
    reach.agent(PATIENCE).map_err(|why| failed(url, why))
}

fn get<T: DeserializeOwned>(url: &str, reach: &Reach) -> Result<T, PeerError> {
    match read(url, agent(url, reach)?.get(url).header("accept", "application/json").call())? {
        (200, value) => Ok(value),
        (status, _) => Err(failed(url, format!("status {status}"))),
    }
}

impl Cache {
    /// Nothing is known yet.
    pub fn new(reach: Reach) -> Cache {
        Cache { reach, known: Mutex::default() }
    }

    /// Whether an issuer of that address may be asked.
    pub fn may_ask(&self, issuer: &str) -> bool {
        is_trusted(issuer, &self.reach)
    }

    /// The description of that issuer.
    pub fn metadata(&self, issuer: &str, now: Timestamp) -> Result<Metadata, PeerError> {
        Ok(self.known(issuer, now, KEPT_SECS)?.metadata)
    }

    /// What is known of that issuer, at most so many seconds old.
    fn known(&self, issuer: &str, now: Timestamp, at_most: i64) -> Result<Known, PeerError> {
        let lock = || self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_young = |known: &Known| (0..at_most).contains(&now.duration_since(known.at).as_secs());
        if let Some(known) = lock().get(issuer).filter(|known| is_young(known)) {
            return Ok(known.clone());
        }
        let address = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let metadata: Metadata = get(&address, &self.reach)?;
        if metadata.issuer != issuer {
            return Err(PeerError::OtherIssuer { asked: issuer.to_owned(), told: metadata.issuer });
        }
        for address in [&metadata.authorization_endpoint, &metadata.token_endpoint] {
            if !is_trusted(address, &self.reach) {
                return Err(PeerError::NotTrusted(address.clone()));
            }
        }
        let keys: Map<String, Value> = get(&metadata.jwks_uri, &self.reach)?;
        // One key of a kind that is not known here does not spoil the others.
        let keys = keys.get("keys").and_then(Value::as_array).cloned().unwrap_or_default();
        let keys = keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect();
        let known = Known { metadata, keys, at: now };
        lock().insert(issuer.to_owned(), known.clone());
        Ok(known)
    }

    /// Redeems a code for who signed in.
    pub fn redeem(&self, asked: &Exchange, now: Timestamp) -> Result<Subject, PeerError> {
        let known = self.known(&asked.issuer, now, KEPT_SECS)?;
        let (id_token, access_token) = redeem(&known.metadata, asked, &self.reach)?;
        let expected = Expected { issuer: &asked.issuer, client_id: &asked.client_id, nonce: &asked.nonce, now };
        let mut claims = match id_token::verify(&id_token, &known.keys, &expected) {
            // The provider may have changed its keys since they were read.
            Err(TokenError::UnknownKey) => {
                let known = self.known(&asked.issuer, now, LEAST_SECS)?;
                id_token::verify(&id_token, &known.keys, &expected)?
            }
            other => other?,
        };
        let id = claims.get("sub").and_then(Value::as_str).unwrap_or_default().to_owned();
        let is_short = asked.wanted.iter().any(|name| !claims.contains_key(name));
        if let (true, Some(url), Some(token)) = (is_short, &known.metadata.userinfo_endpoint, access_token) {
            for (name, value) in userinfo(url, &token, &id, &self.reach)? {
                claims.entry(name).or_insert(value);
            }
        }
        Ok(Subject { id, claims })
    }
}

/// The ID token and the access token for a code.
fn redeem(metadata: &Metadata, asked: &Exchange, reach: &Reach) -> Result<(String, Option<String>), PeerError> {
    let url = &metadata.token_endpoint;
    let mut form = vec![
        ("grant_type", "authorization_code"),
        ("code", &asked.code),
        ("redirect_uri", &asked.redirect_uri),
        ("client_id", &asked.client_id),
        ("code_verifier", &asked.verifier),
    ];
    let mut request = agent(url, reach)?.post(url).header("accept", "application/json");
    if let Some(secret) = &asked.client_secret {
        let methods = &metadata.token_endpoint_auth_methods_supported;
        let by_header = methods.is_empty() || methods.iter().any(|method| method == "client_secret_basic");
        if by_header {
            use base64::Engine as _;
            let encode = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
            let pair = format!("{}:{}", encode(&asked.client_id), encode(secret));
            let pair = base64::engine::general_purpose::STANDARD.encode(pair);
            request = request.header("authorization", format!("Basic {pair}"));
        } else {
            form.push(("client_secret", secret));
        }
    }
    let (status, answer): (u16, Map<String, Value>) = read(url, request.send_form(form))?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
    if status != 200 {
        return Err(PeerError::Refused(text("error").unwrap_or_else(|| format!("status {status}"))));
    }
    let id_token = text("id_token").ok_or_else(|| failed(url, "no ID token"))?;
    Ok((id_token, text("access_token")))
}

/// What the provider says of the person besides; it has to be the same person (OpenID Connect Core 5.3.2).
fn userinfo(url: &str, token: &str, subject: &str, reach: &Reach) -> Result<Map<String, Value>, PeerError> {
    let request = agent(url, reach)?.get(url).header("accept", "application/json");
    let (status, claims): (u16, Map<String, Value>) =
        read(url, request.header("authorization", format!("Bearer {token}")).call())?;
    if status != 200 {
        return Err(failed(url, format!("status {status}")));
    }
    if claims.get("sub").and_then(Value::as_str) != Some(subject) {
        return Err(PeerError::OtherSubject);
    }
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_asked_on_https_and_nearby_only_where_that_is_allowed() {
        let closed = Reach::new(false, "--allow-private-sign-in");
        let open = Reach::new(true, "");
        for (address, by_default, allowed) in [
            ("https://id.example.com", true, true),
            ("https://id.example.com/realms/one", true, true),
            ("http://id.example.com", false, false),
            ("http://127.0.0.1:4000", false, true),
            ("http://localhost:4000", false, true),
            ("http://[::1]:4000", false, true),
            ("https://127.0.0.1:4000", false, true),
            ("https://10.0.0.4", false, true),
            ("https://169.254.169.254", false, true),
            ("http://10.0.0.4", false, false),
            ("http://127.0.0.1.example.com", false, false),
            ("https://user:pass@id.example.com", false, false),
            ("ftp://id.example.com", false, false),
            ("id.example.com", false, false),
        ] {
            assert_eq!(is_trusted(address, &closed), by_default, "{address}");
            assert_eq!(is_trusted(address, &open), allowed, "{address}, private allowed");
        }
    }
}

//! Calls to the server: headers, time limits, and what came of them (spec control-api 0.5, 1.4).

use std::fmt;
use std::sync::RwLock;
use std::time::Duration;

use control_api::envelope::Answer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector as _, TcpConnector};
use zeroize::Zeroizing;

use super::trust::{TlsConnector, Trust, TrustError};

/// What this agent can do beyond the design document (0.7).
const CAPABILITIES: &str = "claim,seq,disks,outbox";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The server holds a poll for 25 s.
const POLL_TIMEOUT: Duration = Duration::from_secs(40);
/// Answers are at most this long; a run with thousands of VMs is shorter.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// The server, as one agent or nobody speaks to it.
pub struct Client {
    http: ureq::Agent,
    base: String,
    identity: Option<Identity>,
    boot: String,
}

/// Who speaks.
pub struct Identity {
    /// `X-Agent-ID`.
    pub agent_id: i64,
    /// `X-Agent-Install`.
    pub install_id: String,
    /// `X-Agent-Token`: changed by a rotation.
    pub token: RwLock<Zeroizing<String>>,
}

/// Why a call came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// There was no answer, or none of this protocol.
    Unreachable(String),
    /// Whoever answered is not the server that was enrolled with.
    Untrusted(String),
    /// The server refused.
    Refused {
        /// Of HTTP.
        status: u16,
        /// Stable word (0.5).
        code: String,
        /// For people.
        message: String,
        /// Not before so many seconds.
        retry_after_secs: Option<u64>,
    },
}

impl CallError {
    /// Whether the same call may work later: no answer, too many calls, or a trouble of the server (0.5).
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Untrusted(_) => true,
            Self::Refused { status, .. } => matches!(status, 408 | 429 | 500..),
        }
    }

    /// The server's stable word, if it answered.
    pub fn code(&self) -> &str {
        match self {
            Self::Unreachable(_) | Self::Untrusted(_) => "",
            Self::Refused { code, .. } => code,
        }
    }

    /// Whether the agent itself is turned away (0.5): it takes no new work, and keeps what it has.
    pub fn is_shut_out(&self) -> bool {
        matches!(self, Self::Refused { status: 401, .. }) || self.code() == "agent_cloned"
    }

    /// How long the server wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after_secs, .. } => retry_after_secs.map(Duration::from_secs),
            Self::Unreachable(_) | Self::Untrusted(_) => None,
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) | Self::Untrusted(why) => f.write_str(why),
            Self::Refused { status, code, message, .. } => write!(f, "{message} ({code}, HTTP {status})"),
        }
    }
}

impl std::error::Error for CallError {}

/// The body of an answer with its status word.
pub type Answered<T> = Result<Answer<T>, CallError>;

impl Client {
    /// A client of the API at `base`, which ends without a slash.
    pub fn new(base: &str, trust: &Trust, identity: Option<Identity>) -> Result<Self, TrustError> {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .https_only(true)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .user_agent(crate::context::PROGRAM)
            .build();
        let connector = TcpConnector::default().chain(TlsConnector::new(trust)?);
        let http = ureq::Agent::with_parts(config, connector, DefaultResolver::default());
        let mut boot = [0; 16];
        getrandom::fill(&mut boot).expect("the operating system gives random bytes");
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), identity, boot: crate::units::hex(&boot) })
    }

    /// Random per start of this process.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// The token changed.
    pub fn set_token(&self, token: Zeroizing<String>) {
        if let Some(identity) = &self.identity {
            *identity.token.write().unwrap_or_else(std::sync::PoisonError::into_inner) = token;
        }
    }

    /// Posts `body`; with `claim`, about the run that is held by it.
    pub fn post<T: DeserializeOwned>(&self, name: &str, claim: Option<&str>, body: &impl Serialize) -> Answered<T> {
        let body = serde_json::to_vec(body).map_err(|error| CallError::Unreachable(error.to_string()))?;
        let request = self.http.post(format!("{}/{name}", self.base)).header("content-type", "application/json");
        let mut request = self.with_headers(request).config().timeout_global(Some(CALL_TIMEOUT)).build();
        if let Some(claim) = claim {
            request = request.header("x-run-claim", claim);
        }
        read(request.send(&body[..]))
    }

    /// Asks with `query`, which is the text behind the question mark.
    pub fn get<T: DeserializeOwned>(&self, name: &str, query: &str) -> Answered<T> {
        let mark = if query.is_empty() { "" } else { "?" };
        let request = self.with_headers(self.http.get(format!("{}/{name}{mark}{query}", self.base)));
        read(request.config().timeout_global(Some(POLL_TIMEOUT)).build().call())
    }

    fn with_headers<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        let Some(identity) = &self.identity else { return request };
        let token = identity.token.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        request
            .header("x-agent-id", identity.agent_id.to_string())
            .header("x-agent-token", token.as_str())
            .header("x-agent-install", &identity.install_id)
            .header("x-agent-boot", &self.boot)
            .header("x-agent-caps", CAPABILITIES)
            .header("x-agent-version", env!("CARGO_PKG_VERSION"))
            .header("x-agent-os", std::env::consts::OS)
            .header("x-agent-arch", std::env::consts::ARCH)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("base", &self.base).finish_non_exhaustive()
    }
}

fn read<T: DeserializeOwned>(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answered<T> {
    let mut response = answer.map_err(|error| no_answer(&error))?;
    let status = response.status().as_u16();
    let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    let body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec();
    let body = Zeroizing::new(body.map_err(|error| CallError::Unreachable(error.to_string()))?);
    if (200..300).contains(&status) {
        return serde_json::from_slice(&body)
            .map_err(|error| CallError::Unreachable(format!("the answer is not one of this protocol: {error}")));
    }
    let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |key: &str| problem[key].as_str().map(str::to_owned);
    Err(CallError::Refused {
        status,
        code: text("code").unwrap_or_else(|| "unknown".into()),
        message: text("message").unwrap_or_else(|| format!("the server answered {status}")),
        retry_after_secs: problem["retry_after_secs"].as_u64().or(after),
    })
}

fn no_answer(error: &ureq::Error) -> CallError {
    let of_tls = match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()),
        _ => None,
    };
    match of_tls {
        Some(rustls::Error::InvalidCertificate(why)) => {
            CallError::Untrusted(format!("the server's certificate is not trusted: {why}"))
        }
        Some(rustls::Error::General(why)) => CallError::Untrusted(why.clone()),
        _ => CallError::Unreachable(error.to_string()),
    }
}

/// Waits between tries (0.5): full jitter, base 0.5 s, factor 2, at most a minute.
#[derive(Debug, Default)]
pub struct Backoff {
    tries: u32,
}

impl Backoff {
    /// How long to wait after one more failure.
    pub fn next(&mut self, error: &CallError) -> Duration {
        let most = Duration::from_millis(500 << self.tries.min(7)).min(Duration::from_secs(60));
        self.tries = self.tries.saturating_add(1);
        let mut random = [0; 4];
        // Without chance the waits are only less spread.
        let _ = getrandom::fill(&mut random);
        let part = f64::from(u32::from_ne_bytes(random)) / f64::from(u32::MAX);
        error.retry_after().unwrap_or_default() + most.mul_f64(0.25 + 0.75 * part)
    }

    /// A call worked.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: &str) -> CallError {
        CallError::Refused { status, code: code.into(), message: String::new(), retry_after_secs: None }
    }

    #[test]
    fn what_an_error_asks_of_the_agent() {
        for (error, is_transient, is_shut_out) in [
            (CallError::Unreachable("no route".into()), true, false),
            (CallError::Untrusted("another certificate".into()), true, false),
            (refused(400, "missing_field"), false, false),
            (refused(401, "agent_disabled"), false, true),
            (refused(404, "run_not_found"), false, false),
            (refused(408, "timeout"), true, false),
            (refused(409, "agent_cloned"), false, true),
            (refused(409, "stale_claim"), false, false),
            (refused(422, "validation_failed"), false, false),
            (refused(426, "agent_version_too_old"), false, false),
            (refused(429, "rate_limited"), true, false),
            (refused(500, "server_error"), true, false),
            (refused(503, "maintenance"), true, false),
        ] {
            assert_eq!((error.is_transient(), error.is_shut_out()), (is_transient, is_shut_out), "{error:?}");
        }
    }

    #[test]
    fn waits_grow_to_a_minute_and_begin_anew() {
        let mut backoff = Backoff::default();
        let error = refused(500, "server_error");
        for most_ms in [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000] {
            let wait = backoff.next(&error).as_millis();
            assert!(wait >= most_ms / 4 && wait <= most_ms, "{wait} of {most_ms}");
        }
        backoff.reset();
        assert!(backoff.next(&error).as_millis() <= 500);
        let limited =
            CallError::Refused { status: 429, code: String::new(), message: String::new(), retry_after_secs: Some(7) };
        assert!(Backoff::default().next(&limited).as_secs() >= 7);
    }
}

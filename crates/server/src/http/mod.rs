//! HTTP: every call goes through `serve`, in the order of spec control-api 1.5.
//!
//! Size, rate, credentials, role, fields, handler, envelope. A handler is an async function of a [`Call`]; which
//! handler stands behind which name, with what it needs, is the one table in `routes.rs`.

pub mod fields;
pub mod limit;
pub mod openapi;
pub mod routes;

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use axum::routing::any;
use control_api::words::MfaState;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tracing::{debug, error, info};

use crate::App;
use crate::access::agent::Agent;
use crate::access::audit::Actor;
use crate::access::gate::Consent;
use crate::access::person::Person;
use crate::access::{Need, Scope, allows};
use crate::failure::{Code, Failure};
use crate::secret;
use routes::{Access, Endpoint};

/// Where every endpoint is found (0.2).
pub const BASES: [&str; 2] = ["/api/", "/modules/addons/cloudstorage/api/"];

/// Who connected.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// A call that got past the door.
pub struct Call<'a> {
    /// The server.
    pub app: &'a Arc<App>,
    /// Which endpoint.
    pub endpoint: &'static str,
    /// Who calls.
    pub caller: Caller,
    /// What they sent: query and body.
    pub fields: Map<String, Value>,
    /// From where.
    pub ip: IpAddr,
    /// As answers and logs name the call.
    pub request_id: String,
    /// `Idempotency-Key`, if one was sent.
    pub idempotency_key: Option<String>,
    /// The call's headers.
    pub headers: HeaderMap,
    /// Whether it may change anything.
    pub method: Method,
    /// A second person's, for what destroys something.
    pub consent: Option<Consent>,
}

/// Who calls.
#[derive(Debug, Clone)]
pub enum Caller {
    /// Nobody that had to prove anything.
    Anybody,
    /// An agent.
    Agent(Agent),
    /// A person or script.
    Person(Person),
}

impl Call<'_> {
    /// The fields as a type of the contract.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        fields::read(&self.fields)
    }

    /// The agent that calls.
    pub fn agent(&self) -> Result<&Agent, Failure> {
        match &self.caller {
            Caller::Agent(agent) => Ok(agent),
            _ => Err(Code::MissingCredentials.into()),
        }
    }

    /// The person who calls.
    pub fn person(&self) -> Result<&Person, Failure> {
        match &self.caller {
            Caller::Person(person) => Ok(person),
            _ => Err(Code::MissingCredentials.into()),
        }
    }

    /// What the person may see.
    pub fn scope(&self) -> Result<Scope, Failure> {
        Ok(self.person()?.scope)
    }

    /// Fails unless the person may also do that.
    pub fn require(&self, need: Need) -> Result<(), Failure> {
        if allows(self.person()?.role, need) { Ok(()) } else { Err(Code::ForbiddenRole.into()) }
    }

    /// As the audit log names the caller.
    pub fn actor(&self) -> Actor {
        match &self.caller {
            Caller::Person(person) => person.actor(self.ip, &self.request_id),
            Caller::Agent(agent) => Actor {
                kind: "agent",
                id: Some(agent.id),
                client: Some(agent.client),
                tenant: agent.tenant,
                ip: Some(self.ip.to_string()),
                request_id: Some(self.request_id.clone()),
            },
            Caller::Anybody => Actor {
                kind: "system",
                id: None,
                client: None,
                tenant: None,
                ip: Some(self.ip.to_string()),
                request_id: Some(self.request_id.clone()),
            },
        }
    }
}

/// What a handler answers.
#[derive(Debug)]
pub struct Answer {
    status: StatusCode,
    body: Content,
    cookie: Option<String>,
}

#[derive(Debug)]
enum Content {
    Json(Value),
    Text(&'static str, String),
    /// HTML, and the policy under which browsers show it.
    Page(String, String),
    Events(Body),
}

impl Answer {
    /// With `status: success`.
    pub fn ok(body: impl Serialize) -> Result<Answer, Failure> {
        Answer::with("success", body)
    }

    /// With that status word.
    pub fn with(word: &str, body: impl Serialize) -> Result<Answer, Failure> {
        let answer = control_api::envelope::Answer::new(word, body);
        let body = Content::Json(serde_json::to_value(answer).map_err(Failure::internal)?);
        let status = if word == "pending" { StatusCode::ACCEPTED } else { StatusCode::OK };
        Ok(Answer { status, body, cookie: None })
    }

    /// Nothing but that it was done.
    pub fn done() -> Result<Answer, Failure> {
        Answer::ok(control_api::envelope::Done {})
    }

    /// Text of that media type.
    pub fn text(media_type: &'static str, text: String) -> Answer {
        Answer { status: StatusCode::OK, body: Content::Text(media_type, text), cookie: None }
    }

    /// A page whose one style sheet is the one with that hash; nothing else is loaded or run.
    pub fn page(html: String, style_sha256: &str) -> Answer {
        let policy = format!("default-src 'none'; style-src 'sha256-{style_sha256}'; frame-ancestors 'none'");
        Answer { status: StatusCode::OK, body: Content::Page(html, policy), cookie: None }
    }

    /// Server-sent events, for as long as the caller listens.
    pub fn events(body: Body) -> Answer {
        Answer { status: StatusCode::OK, body: Content::Events(body), cookie: None }
    }

    /// JSON without the envelope.
    pub fn bare(body: Value) -> Answer {
        Answer { status: StatusCode::OK, body: Content::Json(body), cookie: None }
    }

    /// The same, setting a cookie.
    pub fn set_cookie(self, cookie: String) -> Answer {
        Answer { cookie: Some(cookie), ..self }
    }

    /// The JSON of the answer, for keeping.
    pub fn json(&self) -> Option<&Value> {
        match &self.body {
            Content::Json(value) => Some(value),
            Content::Text(..) | Content::Page(..) | Content::Events(_) => None,
        }
    }
}

/// What a handler returns.
pub type Handled<'a> = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send + 'a>>;

/// The table of routes as a router.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for endpoint in routes::all() {
        for path in endpoint.paths() {
            let app = app.clone();
            let handler = move |ConnectInfo(Peer(address)): ConnectInfo<Peer>, request: Request<Body>| async move {
                serve(&app, endpoint, address, request).await
            };
            router = router.route(&path, any(handler));
        }
    }
    router.fallback(|| async { failed(Failure::new(Code::NotFound), "") })
}

async fn serve(
    app: &Arc<App>,
    endpoint: &'static Endpoint,
    peer: SocketAddr,
    request: Request<Body>,
) -> Response<Body> {
    let request_id = secret::id128().unwrap_or_default();
    let method = request.method().clone();
    let started = Instant::now();
    match answer(app, endpoint, peer, request, &request_id).await {
        Ok(answer) => {
            let elapsed_ms = started.elapsed().as_millis();
            debug!(%request_id, endpoint = endpoint.name, %method, elapsed_ms, "answered");
            answered(answer, &method)
        }
        Err(failure) => {
            match &failure.cause {
                Some(cause) => error!(%request_id, endpoint = endpoint.name, "{cause}"),
                None => info!(%request_id, endpoint = endpoint.name, code = failure.code.word(), "refused"),
            }
            failed(failure, &request_id)
        }
    }
}

async fn answer(
    app: &Arc<App>,
    endpoint: &'static Endpoint,
    peer: SocketAddr,
    request: Request<Body>,
    request_id: &str,
) -> Result<Answer, Failure> {
    let (parts, body) = request.into_parts();
    let (method, headers) = (parts.method, parts.headers);
    // Read in any case: a connection with an unread body would be closed under the caller's next request.
    let body = match tokio::time::timeout(app.settings.body_patience, to_bytes(body, endpoint.max_bytes)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return Err(Failure::new(Code::TooLarge).detail("max_bytes", endpoint.max_bytes)),
        Err(_) => return Err(Code::BodyTimeout.into()),
    };
    let asked = if method == Method::HEAD { "GET" } else { method.as_str() };
    if !endpoint.methods.contains(&asked) {
        return Err(Failure::new(Code::MethodNotAllowed).detail("allow", endpoint.methods.join(", ")));
    }
    let ip = caller_address(app, peer.ip(), &headers);
    let now = app.clock.now();
    app.limits.addresses.take(ip, now).map_err(Failure::limited)?;
    let caller = match endpoint.access {
        Access::Anybody => Caller::Anybody,
        Access::Agent => Caller::Agent(crate::access::agent::authenticate(app, &headers, ip).await?),
        Access::Person(need) => {
            let person = crate::access::person::authenticate(app, &method, &headers).await?;
            if !allows(person.role, need) {
                return Err(Code::ForbiddenRole.into());
            }
            if need != Need::Begun && matches!(person.mfa, MfaState::Verify | MfaState::Enrol) {
                return Err(Failure::new(Code::MfaRequired).detail("mfa", person.mfa.word()));
            }
            Caller::Person(person)
        }
    };
    let mut fields = fields::of_form(parts.uri.query().unwrap_or_default().as_bytes());
    if method != Method::GET && method != Method::HEAD && !body.is_empty() {
        let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let sent = match media_type.as_str() {
            "application/json" => fields::of_json(&body)?,
            "application/x-www-form-urlencoded" => {
                std::str::from_utf8(&body).map_err(|_| Failure::with(Code::BadRequest, "The form is not UTF-8"))?;
                fields::of_form(&body)
            }
            _ => return Err(Code::UnsupportedMediaType.into()),
        };
        fields.extend(sent);
    }
    let key = headers.get("idempotency-key").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let call = Call {
        app,
        endpoint: endpoint.name,
        caller,
        fields,
        ip,
        request_id: request_id.to_owned(),
        idempotency_key: key.filter(|key| !key.is_empty()),
        headers,
        method,
        consent: None,
    };
    // A handler changes nothing but the database, in one transaction: after a deadlock the whole is done again.
    let mut tries = 0;
    loop {
        match (endpoint.handler)(&call).await {
            Err(failure) if failure.is_transient() && tries < 5 => {
                tries += 1;
                tokio::time::sleep(std::time::Duration::from_millis(15 * tries)).await;
            }
            other => return other,
        }
    }
}

/// The address of the caller; what a proxy says of it only where the proxy is known (1.7).
fn caller_address(app: &App, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let peer = peer.to_canonical();
    if !app.settings.trusted_proxies.contains(&peer) {
        return peer;
    }
    // The last one is what the known proxy saw itself; the ones before it are what it was told.
    let forwarded = headers.get("x-forwarded-for").and_then(|value| value.to_str().ok());
    forwarded.and_then(|list| list.rsplit(',').next()?.trim().parse().ok()).unwrap_or(peer)
}

fn answered(answer: Answer, method: &Method) -> Response<Body> {
    let is_stream = matches!(answer.body, Content::Events(_));
    let (media_type, body, policy) = match answer.body {
        Content::Json(value) => ("application/json", Body::from(value.to_string()), None),
        Content::Text(media_type, text) => (media_type, Body::from(text), None),
        Content::Page(html, policy) => ("text/html; charset=utf-8", Body::from(html), Some(policy)),
        Content::Events(body) => ("text/event-stream", body, None),
    };
    let body = if method == Method::HEAD { Body::empty() } else { body };
    let mut response = Response::new(body);
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    if is_stream {
        // Some proxies hold event streams back until they are told not to.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    }
    if let Some(cookie) = answer.cookie.and_then(|cookie| HeaderValue::from_str(&cookie).ok()) {
        headers.insert(header::SET_COOKIE, cookie);
    }
    guard(headers);
    if let Some(policy) = policy.and_then(|policy| HeaderValue::from_str(&policy).ok()) {
        headers.insert("content-security-policy", policy);
    }
    response
}

fn failed(failure: Failure, request_id: &str) -> Response<Body> {
    let mut details = failure.details;
    let allow = details.remove("allow");
    let retry_after = details.get("retry_after_secs").and_then(Value::as_u64);
    let problem = control_api::envelope::Problem {
        status: "fail".into(),
        success: false,
        code: failure.code.word().into(),
        message: failure.message,
        request_id: request_id.to_owned(),
        details,
    };
    let mut body = serde_json::to_value(problem).unwrap_or_default();
    if let Some(seconds) = retry_after {
        body["retry_after_secs"] = seconds.into();
    }
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(failure.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(allow) = allow.as_ref().and_then(Value::as_str).and_then(|allow| HeaderValue::from_str(allow).ok()) {
        headers.insert(header::ALLOW, allow);
    }
    guard(headers);
    response
}

/// What every answer says to browsers and caches (10.4).
fn guard(headers: &mut HeaderMap) {
    for (name, value) in [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
        ("strict-transport-security", "max-age=31536000"),
        ("x-server-caps", "claim,seq,two_phase,disks,outbox"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

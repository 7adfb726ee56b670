//! A server of a test's own: in this process, on loopback, on TLS, on a database of its own.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod database;
pub mod receiver;

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use serde_json::{Map, Value, json};
use server::clock::Clock;
use server::http::routes::Endpoint;
use server::settings::{Rates, Settings};
use server::{App, Server};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use database::Database;

/// A password that accounts of tests have.
pub const PASSWORD: &str = "correct horse battery";

/// One running instance.
pub struct TestServer {
    pub runtime: tokio::runtime::Runtime,
    server: Option<Server>,
    pub http: ureq::Agent,
    pub base: String,
    pub origin: String,
    pub clock: Clock,
    pub setup_token: Option<String>,
    pub folder: tempfile::TempDir,
}

/// Who calls.
#[derive(Debug, Clone)]
pub enum As {
    Nobody,
    Agent { id: i64, token: String, boot: String },
    Session { cookie: String, csrf: String, origin: String },
    Token(String),
}

/// What came back.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    pub status: u16,
    pub body: Value,
    pub cookie: Option<String>,
}

impl Reply {
    /// The body of a call that has to work.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!((200..300).contains(&self.status), "{} {}", self.status, self.body);
        assert_eq!(self.body["success"], true, "{}", self.body);
        self.body
    }

    /// Status and code of a call that has to fail.
    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Value {
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{}", self.body);
        assert_eq!(self.body["success"], false, "{}", self.body);
        self.body
    }
}

/// Settings of a test: nothing is limited, nothing waits.
pub fn settings(folder: &std::path::Path, database: &Database) -> Settings {
    let unlimited = (1e6, 1e6);
    Settings {
        listen: "127.0.0.1:0".parse().expect("address"),
        database: database.address(),
        rates: Rates { agent: unlimited, address: unlimited, enrolments_per_minute: 100_000, failed_logins: 8 },
        tick: Duration::from_millis(100),
        long_poll: Duration::from_millis(600),
        jitter_secs: 0,
        ..Settings::new(folder.to_owned())
    }
}

impl TestServer {
    pub fn start(database: &Database) -> TestServer {
        TestServer::with(database, |_| {})
    }

    /// With settings of its own.
    pub fn with(database: &Database, change: impl FnOnce(&mut Settings)) -> TestServer {
        let folder = tempfile::tempdir().expect("folder");
        let mut settings = settings(folder.path(), database);
        change(&mut settings);
        TestServer::serve(folder, settings)
    }

    /// A second instance on the same database.
    pub fn beside(&self, database: &Database, change: impl FnOnce(&mut Settings)) -> TestServer {
        let folder = tempfile::tempdir().expect("folder");
        let mut settings = settings(folder.path(), database);
        settings.clock = self.clock.clone();
        if let Database::Sqlite = database {
            settings.database = Some(format!("sqlite:{}", self.folder.path().join("e3-server.sqlite").display()));
        }
        change(&mut settings);
        // Both unwrap what the other wrapped.
        std::fs::copy(self.folder.path().join("secrets.key"), folder.path().join("secrets.key")).expect("the key");
        TestServer::serve(folder, settings)
    }

    pub fn serve(folder: tempfile::TempDir, settings: Settings) -> TestServer {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        let clock = settings.clock.clone();
        let server = runtime.block_on(server::start(settings)).unwrap_or_else(|error| panic!("start: {error:#}"));
        let pem = Certificate::from_pem(server.certificate_pem.as_bytes()).expect("certificate");
        let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&[pem])).build();
        let http = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .max_idle_connections_per_host(40)
            .build()
            .into();
        let origin = format!("https://{}", server.address());
        let setup_token = server.setup_link.as_ref().and_then(|link| link.rsplit('/').next()).map(str::to_owned);
        TestServer {
            runtime,
            server: Some(server),
            http,
            base: format!("{origin}/api/"),
            origin,
            clock,
            setup_token,
            folder,
        }
    }

    pub fn app(&self) -> &std::sync::Arc<App> {
        &self.server.as_ref().expect("it runs").app
    }

    pub fn fingerprint(&self) -> &str {
        &self.server.as_ref().expect("it runs").fingerprint
    }

    /// Moves the clock.
    pub fn pass(&self, hours: f64) {
        self.clock.advance(SignedDuration::from_secs_f64(hours * 3600.0));
    }

    /// One look of the scheduler at everything.
    pub fn tick(&self) {
        let app = self.app().clone();
        let done = self.runtime.block_on(async move { server::scheduler::tick(&app, true).await });
        done.unwrap_or_else(|failure| panic!("tick: {failure:?}"));
    }

    /// One call.
    pub fn call(&self, who: &As, method: &str, name: &str, body: &Value) -> Reply {
        let mut request = ureq::http::Request::builder().method(method).uri(self.address(method, name, body));
        match who {
            As::Nobody => {}
            As::Agent { id, token, boot } => {
                request = request.header("x-agent-id", id.to_string()).header("x-agent-token", token);
                request = request.header("x-agent-boot", boot).header("x-agent-caps", "claim,seq,disks");
                if let Some(claim) = body
                    .get("claim_id")
                    .and_then(Value::as_str)
                    .filter(|claim| claim.bytes().all(|byte| byte.is_ascii_graphic()) && claim.len() < 100)
                {
                    request = request.header("x-run-claim", claim);
                }
            }
            As::Session { cookie, csrf, origin } => {
                request = request.header("cookie", cookie).header("x-csrf-token", csrf).header("origin", origin);
            }
            As::Token(token) => request = request.header("authorization", format!("Bearer {token}")),
        }
        self.send(request, method, body)
    }

    fn address(&self, method: &str, name: &str, body: &Value) -> String {
        // A name that begins with a slash is a path by itself.
        let base = if name.starts_with('/') { &self.origin } else { &self.base };
        let mut url = url::Url::parse(&format!("{base}{name}")).expect("address");
        if method == "GET" {
            for (key, value) in body.as_object().into_iter().flatten() {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                url.query_pairs_mut().append_pair(key, &text);
            }
        }
        url.to_string()
    }

    /// A request with its headers.
    pub fn send(&self, request: ureq::http::request::Builder, method: &str, body: &Value) -> Reply {
        let sent = if method == "GET" || method == "DELETE" {
            self.http.run(request.body(()).expect("request"))
        } else {
            let request = request.header("content-type", "application/json");
            self.http.run(request.body(body.to_string()).expect("request"))
        };
        let mut response = sent.unwrap_or_else(|error| panic!("{method}: {error}"));
        let cookie = response.headers().get("set-cookie").and_then(|value| value.to_str().ok());
        let cookie = cookie.and_then(|cookie| cookie.split(';').next()).map(str::to_owned);
        // A stream of events has no end to wait for.
        let media_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
        if media_type == Some("text/event-stream") {
            return Reply { status: response.status().as_u16(), body: json!({ "stream": true }), cookie };
        }
        let text = response.body_mut().with_config().limit(64 << 20).read_to_string().expect("body");
        let body = serde_json::from_str(&text).unwrap_or_else(|_| json!({ "text": text }));
        Reply { status: response.status().as_u16(), body, cookie }
    }

    pub fn get(&self, who: &As, name: &str, query: &Value) -> Reply {
        self.call(who, "GET", name, query)
    }

    pub fn post(&self, who: &As, name: &str, body: &Value) -> Reply {
        self.call(who, "POST", name, body)
    }

    /// The owner of a new client, signed in; its people need no second factor.
    pub fn set_up(&self) -> As {
        let owner = self.set_up_strictly();
        self.post(&owner, "cloudbackup_settings.php", &json!({"mfa_required_roles": []})).ok();
        owner
    }

    /// The owner of a new client as it is without any setting.
    pub fn set_up_strictly(&self) -> As {
        let token = self.setup_token.as_ref().expect("a set-up link");
        let asked = json!({"token": token, "email": "Owner@example.com", "password": PASSWORD, "name": "First"});
        self.session(self.post(&As::Nobody, "console_setup.php", &asked))
    }

    /// A session out of the answer to a login.
    #[track_caller]
    pub fn session(&self, reply: Reply) -> As {
        let cookie = reply.cookie.clone().expect("a cookie");
        let body = reply.ok();
        let csrf = body["csrf_token"].as_str().expect("CSRF token").to_owned();
        As::Session { cookie, csrf, origin: self.origin.clone() }
    }

    /// A token of that person: it outlives the jumps of a test's clock.
    pub fn token(&self, person: &As) -> As {
        let made = self.post(person, "e3backup_api_token_create.php", &json!({})).ok();
        As::Token(made["token"].as_str().expect("token").to_owned())
    }

    /// Signs in.
    pub fn login(&self, email: &str, password: &str) -> Reply {
        let request = ureq::http::Request::builder()
            .method("POST")
            .uri(format!("{}console_login.php", self.base))
            .header("origin", &self.origin);
        self.send(request, "POST", &json!({"email": email, "password": password}))
    }

    /// A person of the caller's client.
    pub fn person(&self, owner: &As, email: &str, role: &str, tenant: Option<i64>) -> As {
        let asked = json!({"email": email, "password": PASSWORD, "role": role, "tenant_id": tenant});
        self.post(owner, "e3backup_user_create.php", &asked).ok();
        self.session(self.login(email, PASSWORD))
    }

    /// Another client with its owner, as a provider's own tool would make it.
    pub fn other_client(&self, email: &str) -> As {
        let app = self.app().clone();
        let email_text = email.to_owned();
        self.runtime.block_on(async move {
            let hash = server::access::password::hash(PASSWORD.to_owned()).await.expect("hash");
            let now = app.clock.now();
            let mut tx = app.db.write().await.expect("write");
            let columns = [("name", "Other".into()), ("created_at", now.into()), ("updated_at", now.into())];
            let client = tx.insert("s3_clients", &columns).await.expect("client");
            let settings = json!({"mfa_required_roles": []});
            let columns =
                [("client_id", client.into()), ("settings_json", settings.into()), ("updated_at", now.into())];
            tx.insert("s3_cloudbackup_settings", &columns).await.expect("settings");
            let role = control_api::words::Role::Owner;
            let made = server::client_api::session::insert_user(&mut tx, client, None, &email_text, &hash, role, now);
            made.await.expect("user");
            tx.commit().await.expect("commit");
        });
        self.session(self.login(email, PASSWORD))
    }

    /// An enrolled agent.
    pub fn agent(&self, owner: &As, hostname: &str, tenant: Option<i64>) -> As {
        let token = self.post(owner, "e3backup_token_create.php", &json!({"tenant_id": tenant})).ok();
        let asked = json!({
            "token": token["token"], "hostname": hostname, "device_id": format!("device-{hostname}"),
            "agent_version": "0.1.0", "host_role": "hyperv_host",
        });
        let enrolled = self.post(&As::Nobody, "agent_enroll.php", &asked).ok();
        As::Agent {
            id: enrolled["agent_id"].as_i64().expect("id"),
            token: enrolled["agent_token"].as_str().expect("token").to_owned(),
            boot: "boot-1".into(),
        }
    }

    /// Reports these VMs of a host.
    pub fn discover(&self, agent: &As, names: &[&str]) -> Value {
        let vms: Vec<Value> = names.iter().map(|name| vm(name)).collect();
        self.post(agent, "agent_hyperv_discover.php", &json!({ "vms": vms, "host": {"os": "2022"} })).ok()
    }

    /// A destination; its id.
    pub fn destination(&self, owner: &As, prefix: &str, tenant: Option<i64>) -> i64 {
        let asked = json!({
            "name": prefix, "endpoint": "https://s3.example.com", "bucket": "backups", "prefix": prefix,
            "access_key": "AKIAEXAMPLE", "secret_key": "canary-secret-key", "tenant_id": tenant,
        });
        self.post(owner, "cloudbackup_destination_create.php", &asked).ok()["destination"]["id"].as_i64().expect("id")
    }

    /// A job of every VM of that agent, daily at 02:00 UTC; the job.
    pub fn job(&self, owner: &As, agent: &As, destination: i64, tenant: Option<i64>) -> Value {
        let asked = json!({
            "name": "nightly", "agent_id": agent.id(), "dest_bucket_id": destination, "tenant_id": tenant,
            "hyperv_config": {"backup_all_vms": true}, "timezone": "UTC",
            "schedule_json": {"type": "daily", "time": "02:00"},
        });
        self.post(owner, "cloudbackup_create_job.php", &asked).ok()["job"].clone()
    }

    /// Claims the agent's next run, which has to be there.
    #[track_caller]
    pub fn claim(&self, agent: &As) -> Value {
        let reply = self.post(agent, "agent_next_run.php", &json!({})).ok();
        assert!(reply["run"].is_object(), "no run: {reply}");
        reply["run"].clone()
    }

    /// Stores a point of every VM of a claimed run, and ends the run.
    pub fn back_up(&self, agent: &As, run: &Value) -> Vec<i64> {
        let mut points = Vec::new();
        for vm in run["hyperv_vms"].as_array().expect("VMs") {
            let mut body = result(run, vm);
            body["run_id"] = run["run_id"].clone();
            body["claim_id"] = run["claim_id"].clone();
            let reply = self.post(agent, "agent_hyperv_update_checkpoint.php", &body).ok();
            points.push(reply["backup_point_id"].as_i64().expect("point"));
        }
        let end = json!({"run_id": run["run_id"], "claim_id": run["claim_id"], "status": "success", "seq": 1000});
        self.post(agent, "agent_update_run.php", &end).ok();
        points
    }

    /// One number of the database.
    pub fn count(&self, sql: &str) -> i64 {
        let (app, sql) = (self.app().clone(), sql.to_owned());
        self.runtime.block_on(async move { app.db.read().await.expect("read").count(&sql, &[]).await.expect("count") })
    }

    /// Changes the database behind the server's back.
    pub fn change(&self, sql: &str) -> u64 {
        let (app, sql) = (self.app().clone(), sql.to_owned());
        self.runtime.block_on(async move {
            let mut tx = app.db.write().await.expect("write");
            let changed = tx.change(&sql, &[]).await.expect("change");
            tx.commit().await.expect("commit");
            changed
        })
    }

    /// Stops it.
    pub fn stop(mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop());
        }
    }

    /// Stops it; its folder for another server, and a client that trusts their certificate.
    pub fn make_way(mut self) -> (tempfile::TempDir, ureq::Agent) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop());
        }
        (self.folder, self.http)
    }
}

impl As {
    /// The agent's id.
    #[track_caller]
    pub fn id(&self) -> i64 {
        match self {
            As::Agent { id, .. } => *id,
            other => panic!("{other:?} is no agent"),
        }
    }

    /// The same agent after a restart.
    pub fn restarted(&self, boot: &str) -> As {
        match self {
            As::Agent { id, token, .. } => As::Agent { id: *id, token: token.clone(), boot: boot.to_owned() },
            other => other.clone(),
        }
    }
}

/// What a host says of a VM of that name; its id follows from the name.
pub fn vm(name: &str) -> Value {
    json!({
        "id": guid(name), "name": name, "state": "Running", "generation": 2, "is_linux": false, "rct_enabled": true,
        "disks": [{
            "controller_type": "SCSI", "controller_number": 0, "controller_location": 0,
            "path": format!("C:\\vms\\{name}.vhdx"), "size_bytes": 1 << 30, "used_bytes": 1 << 20,
            "vhd_format": "VHDX", "rct_enabled": true, "virtual_disk_id": format!("disk-{name}"),
        }],
    })
}

pub fn guid(name: &str) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("00000000-0000-0000-{:04X}-{:012X}", hash >> 48, hash & 0xffff_ffff_ffff)
}

/// The result of one VM of a run: incremental where it got a base.
pub fn result(run: &Value, vm: &Value) -> Value {
    let name = vm["vm_name"].as_str().expect("name");
    let stem = format!("{name}-{}-{}", run["run_id"], run["attempt"]);
    let is_incremental = vm["last_checkpoint_id"].is_string();
    json!({
        "vm_id": vm["vm_id"], "vm_name": name,
        "backup_type": if is_incremental { "Incremental" } else { "Full" },
        "checkpoint_id": format!("cp-{stem}"), "reference_point_id": format!("rp-{stem}"),
        "manifest_id": format!("m-{stem}"), "consistency_level": "Application",
        "rct_ids": {format!("C:\\vms\\{name}.vhdx"): format!("rct-{stem}")},
        "changed_bytes": 4096, "total_bytes": 1 << 30, "duration_seconds": 7,
        "disks": [{
            "virtual_disk_id": format!("disk-{name}"), "path": format!("C:\\vms\\{name}.vhdx"),
            "controller_type": "SCSI", "controller_number": 0, "controller_location": 0,
            "manifest_id": format!("m-{stem}"), "object_id": format!("o-{stem}"), "virtual_size_bytes": 1 << 30,
            "read_mode": if is_incremental { "changed" } else { "full" }, "rct_id": format!("rct-{stem}"),
        }],
    })
}

/// The fields of an endpoint's request, as the OpenAPI document describes them.
pub fn fields(endpoint: &Endpoint) -> Map<String, Value> {
    let mut schemas = Vec::new();
    let Some(name) = (endpoint.request)(&mut schemas) else { return Map::new() };
    let schema = schemas.iter().find(|(other, _)| *other == name).map(|(_, schema)| serde_json::to_value(schema));
    let schema = schema.expect("its schema").expect("JSON");
    let mut all = Map::new();
    let parts = std::iter::once(&schema).chain(schema["allOf"].as_array().into_iter().flatten());
    for part in parts {
        let part = match part["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
            Some(name) => {
                let found =
                    schemas.iter().find(|(other, _)| other == name).map(|(_, schema)| serde_json::to_value(schema));
                found.expect("a schema that is named").expect("JSON")
            }
            None => part.clone(),
        };
        all.extend(part["properties"].as_object().cloned().unwrap_or_default());
    }
    all
}

/// Looks again until something holds, at most ten seconds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < until, "not within ten seconds: {what}");
        thread::sleep(Duration::from_millis(30));
    }
}

/// Runs `work` on so many threads at once, and collects what they say.
pub fn at_once<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let (send, receive) = mpsc::channel();
    thread::scope(|scope| {
        for at in 0..count {
            let (send, work) = (send.clone(), &work);
            scope.spawn(move || drop(send.send(work(at))));
        }
    });
    drop(send);
    receive.into_iter().collect()
}

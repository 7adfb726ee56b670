//! People who sign in at a real OpenID Connect provider (npm `oidc-provider`, `peers/oidc`), with roles by their groups.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use support::database::Database;
use support::{As, PASSWORD, Reply, TestServer};
use url::Url;

/// The provider; it ends with this.
struct Provider {
    process: Child,
    issuer: String,
    http: ureq::Agent,
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Provider {
    /// Where `cargo xtask peers` put it, or a line that says what is missing.
    fn start_or_skip(redirect_uri: &str) -> Option<Provider> {
        let Some(script) = std::env::var_os("E3_TEST_OIDC").map(PathBuf::from) else {
            println!("SKIPPED oidc: no provider to sign in at (E3_TEST_OIDC; `cargo xtask peers` installs it)");
            return None;
        };
        let mut node = Command::new("node");
        node.arg(&script).arg(redirect_uri).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = node.spawn().expect("node");
        let mut lines = BufReader::new(process.stdout.take().expect("its output")).lines();
        let issuer = lines.next().expect("an issuer").expect("an issuer");
        let http = ureq::Agent::config_builder().max_redirects(0).http_status_as_error(false).build().into();
        Some(Provider { process, issuer, http })
    }

    fn person(&self, subject: &str, claims: &Value) {
        let mut url = Url::parse(&format!("{}/test/person", self.issuer)).expect("address");
        url.query_pairs_mut().append_pair("sub", subject).append_pair("claims", &claims.to_string());
        self.http.get(url.as_str()).call().expect("a person");
    }

    fn rotate_keys(&self) {
        self.http.get(format!("{}/test/rotate", self.issuer)).call().expect("new keys");
    }

    /// What a browser does there: signs in as `subject`, and is sent back. The query that it comes back with.
    fn sign_in(&self, authorization_url: &str, subject: &str) -> BTreeMap<String, String> {
        let mut url = Url::parse(authorization_url).expect("address");
        url.query_pairs_mut().append_pair("login_hint", subject);
        let mut cookies: BTreeMap<String, String> = BTreeMap::new();
        for _ in 0..10 {
            let jar: Vec<String> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let mut answer = self.http.get(url.as_str()).header("cookie", jar.join("; ")).call().expect("an answer");
            for cookie in answer.headers().get_all("set-cookie") {
                let pair = cookie.to_str().expect("cookie").split(';').next().expect("cookie");
                let (name, value) = pair.split_once('=').expect("cookie");
                cookies.insert(name.to_owned(), value.to_owned());
            }
            let Some(to) = answer.headers().get("location") else {
                panic!("{}: {:?}", answer.status(), answer.body_mut().read_to_string());
            };
            url = url.join(to.to_str().expect("address")).expect("address");
            if url.path() == "/oidc" {
                return url.query_pairs().into_owned().collect();
            }
        }
        panic!("sent round in circles: {url}")
    }
}

/// A browser at the server: begins, and remembers the cookie.
fn begin(server: &TestServer, slug: &str) -> (String, Reply) {
    let reply = post(server, "console_oidc_start.php", &json!({"provider": slug}), None);
    (reply.cookie.clone().unwrap_or_default(), reply)
}

fn post(server: &TestServer, name: &str, body: &Value, cookie: Option<&str>) -> Reply {
    let request = ureq::http::Request::builder().method("POST").uri(format!("{}{name}", server.base));
    let request = request.header("origin", &server.origin).header("cookie", cookie.unwrap_or_default());
    server.send(request, "POST", body)
}

/// The whole way.
fn sign_in(server: &TestServer, provider: &Provider, subject: &str) -> Reply {
    let (cookie, begun) = begin(server, "staff");
    let url = begun.ok()["authorization_url"].as_str().expect("address").to_owned();
    let back = provider.sign_in(&url, subject);
    post(server, "console_oidc_finish.php", &json!(back), Some(&cookie))
}

fn claims(email: &str, groups: &[&str]) -> Value {
    json!({"email": email, "email_verified": true, "groups": groups})
}

#[test]
fn people_of_a_provider_have_the_role_of_their_groups() {
    for database in Database::each() {
        let server = TestServer::with(&database, |settings| settings.allow_private_sign_in = true);
        let redirect_uri = format!("{}/oidc", server.origin);
        let Some(provider) = Provider::start_or_skip(&redirect_uri) else { return };
        let owner = server.token(&server.set_up());
        let tenant = server.post(&owner, "e3backup_tenant_create.php", &json!({"name": "One", "slug": "one"})).ok();
        let tenant = tenant["tenant"]["id"].clone();
        let mapping = json!([
            {"group": "operators", "role": "operator"},
            {"group": "one", "role": "viewer", "tenant_id": tenant},
        ]);
        let wanted = json!({
            "name": "Staff", "slug": "staff", "issuer": provider.issuer, "oidc_client_id": "e3",
            "client_secret": "canary of the client: +/%", "scopes": "openid email groups", "mapping": mapping,
        });
        let mut elsewhere = wanted.clone();
        elsewhere["issuer"] = json!("http://id.example.com");
        server.post(&owner, "e3backup_oidc_save.php", &elsewhere).refused(422, "validation_failed");
        let saved = server.post(&owner, "e3backup_oidc_save.php", &wanted).ok()["provider"].clone();
        assert_eq!((&saved["has_client_secret"], saved.get("client_secret")), (&json!(true), None), "{saved}");

        provider.person("alice", &claims("alice@example.com", &["all", "operators"]));
        provider.person("bob", &claims("bob@example.com", &["one"]));
        let answer = sign_in(&server, &provider, "alice");
        assert_eq!(answer.body["user"]["role"], "operator", "{database:?}: {}", answer.body);
        assert_eq!(answer.body["user"]["email"], "alice@example.com");
        let alice = server.session(answer);
        server.get(&alice, "cloudbackup_list_jobs.php", &json!({})).ok();
        let answer = sign_in(&server, &provider, "bob");
        assert_eq!((&answer.body["user"]["role"], &answer.body["user"]["tenant_id"]), (&json!("viewer"), &tenant));
        assert_eq!(server.login("alice@example.com", PASSWORD).status, 401, "there is no password");

        // Another group: another role, and what was begun under the former one ends. Keys change in between.
        provider.rotate_keys();
        provider.person("alice", &claims("alice@example.com", &["one"]));
        server.pass(0.01);
        let answer = sign_in(&server, &provider, "alice");
        assert_eq!(answer.body["user"]["role"], "viewer", "{database:?}: {}", answer.body);
        server.get(&alice, "cloudbackup_list_jobs.php", &json!({})).refused(401, "session_expired");
        assert_eq!(server.count("SELECT COUNT(*) FROM s3_console_identities"), 2, "the same account");

        for (subject, claims, status, code) in [
            ("carol", claims("carol@example.com", &["nobody"]), 403, "forbidden_role"),
            ("mallory", claims("owner@example.com", &["operators"]), 409, "conflict"),
            ("dave", json!({"email": "dave@example.com", "email_verified": false, "groups": ["one"]}), 409, "conflict"),
            ("erin", json!({"groups": ["one"]}), 409, "conflict"),
        ] {
            provider.person(subject, &claims);
            sign_in(&server, &provider, subject).refused(status, code);
        }
        let moved = json!({"id": saved["id"], "issuer": "https://id.example.com"});
        server.post(&owner, "e3backup_oidc_save.php", &moved).refused(422, "validation_failed");
        let renamed = json!({"id": saved["id"], "issuer": provider.issuer, "name": "All staff"});
        server.post(&owner, "e3backup_oidc_save.php", &renamed).ok();
        let failed = server.get(&owner, "cloudbackup_audit.php", &json!({"action": "login.failed"})).ok();
        assert_eq!(failed["events"].as_array().map(Vec::len), Some(5), "with the password that was tried: {failed}");
        assert_eq!(server.count("SELECT COUNT(*) FROM s3_console_users"), 3);

        let gone = json!({"provider_id": saved["id"]});
        server.post(&owner, "e3backup_oidc_delete.php", &gone).ok();
        begin(&server, "staff").1.refused(404, "not_found");
        server.stop();
    }
}

#[test]
fn an_answer_serves_once_in_the_browser_that_asked() {
    let server = TestServer::with(&Database::Sqlite, |settings| settings.allow_private_sign_in = true);
    let redirect_uri = format!("{}/oidc", server.origin);
    let Some(provider) = Provider::start_or_skip(&redirect_uri) else { return };
    let owner = server.token(&server.set_up());
    let wanted = json!({
        "name": "Staff", "slug": "staff", "issuer": provider.issuer, "oidc_client_id": "e3",
        "client_secret": "canary of the client: +/%", "scopes": "openid email groups",
        "mapping": [{"group": "all", "role": "viewer"}],
    });
    let saved = server.post(&owner, "e3backup_oidc_save.php", &wanted).ok()["provider"].clone();
    provider.person("alice", &claims("alice@example.com", &["all"]));
    provider.person("eve", &claims("eve@example.com", &["all"]));
    let start = || {
        let (cookie, begun) = begin(&server, "staff");
        (cookie, begun.ok()["authorization_url"].as_str().expect("address").to_owned())
    };
    let finish = |back: &BTreeMap<String, String>, cookie: &str| {
        post(&server, "console_oidc_finish.php", &json!(back), Some(cookie))
    };
    let (mine, url) = start();
    let back = provider.sign_in(&url, "alice");
    let (others, other_url) = start();
    let of_eve = provider.sign_in(&other_url, "eve");
    finish(&back, "").refused(401, "unauthorized");
    finish(&back, &others).refused(401, "unauthorized");
    // Eve's code under Alice's state: the nonce and PKCE are of another login.
    let mixed = BTreeMap::from([
        ("state".to_owned(), back["state"].clone()),
        ("code".to_owned(), of_eve["code"].clone()),
        ("iss".to_owned(), back["iss"].clone()),
    ]);
    finish(&mixed, &mine).refused(401, "unauthorized");
    finish(&back, &mine).refused(401, "unauthorized");

    let (mine, url) = start();
    let back = provider.sign_in(&url, "alice");
    for (case, iss) in [("of another provider", Some("https://evil.example.com")), ("of none", None)] {
        let (cookie, url) = start();
        let mut back = provider.sign_in(&url, "alice");
        match iss {
            Some(iss) => back.insert("iss".into(), iss.into()),
            None => back.remove("iss"),
        };
        assert_eq!(finish(&back, &cookie).status, 401, "{case}");
    }
    finish(&back, &mine).ok();
    finish(&back, &mine).refused(401, "unauthorized");

    let (mine, url) = start();
    let back = provider.sign_in(&url, "alice");
    server.pass(0.17);
    finish(&back, &mine).refused(401, "unauthorized");

    // Without an origin of this server nobody begins or ends a login.
    server.post(&As::Nobody, "console_oidc_start.php", &json!({"provider": "staff"})).refused(403, "csrf_failed");
    server.post(&As::Nobody, "console_oidc_finish.php", &json!(back)).refused(403, "csrf_failed");
    server.pass(0.3);
    // Trusted for the second factor as well, or not.
    assert_eq!(sign_in(&server, &provider, "alice").body["mfa"], "none");
    let trusted = json!({"id": saved["id"], "counts_as_mfa": true});
    server.post(&owner, "e3backup_oidc_save.php", &trusted).ok();
    assert_eq!(sign_in(&server, &provider, "alice").body["mfa"], "done");
    // A provider that is away is nobody's fault who signs in.
    drop(provider);
    server.pass(1.1);
    begin(&server, "staff").1.refused(409, "conflict");
    server.stop();
}

#[test]
fn a_provider_nearby_is_asked_only_where_the_operator_allows_it() {
    let server = TestServer::start(&Database::Sqlite);
    let owner = server.token(&server.set_up());
    // Whoever listens here hears of every call.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("its mode");
    let port = listener.local_addr().expect("its address").port();
    let provider = |slug: &str, issuer: &str| json!({"name": slug, "slug": slug, "issuer": issuer, "oidc_client_id": "e3", "mapping": []});
    for issuer in [
        format!("http://127.0.0.1:{port}"),
        format!("https://127.0.0.1:{port}"),
        format!("http://localhost:{port}"),
        format!("https://[::1]:{port}"),
        "https://169.254.169.254".to_owned(),
        "https://10.0.0.1".to_owned(),
    ] {
        let refused = server.post(&owner, "e3backup_oidc_save.php", &provider("near", &issuer));
        refused.refused(422, "validation_failed");
    }
    // A name may lead anywhere: that is seen only when it is asked.
    let named = provider("named", &format!("https://localhost:{port}"));
    server.post(&owner, "e3backup_oidc_save.php", &named).ok();
    begin(&server, "named").1.refused(409, "conflict");
    assert!(listener.accept().is_err(), "it was called");
    server.stop();
}

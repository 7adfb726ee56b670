//! Paper for others, figures for machines, and pages that change by themselves.

mod support;

use std::io::{BufRead as _, BufReader};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::http::routes::{self, Access};
use support::database::Database;
use support::{As, TestServer};

/// A request with the caller's credentials and these headers.
fn request(server: &TestServer, who: &As, path: &str, headers: &[(&str, &str)]) -> ureq::http::request::Builder {
    let mut request = ureq::http::Request::builder().method("GET").uri(format!("{}{path}", server.origin));
    request = match who {
        As::Session { cookie, .. } => request.header("cookie", cookie),
        As::Token(token) => request.header("authorization", format!("Bearer {token}")),
        other => panic!("{other:?}"),
    };
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
}

/// A raw answer: status, one header, text.
fn raw(server: &TestServer, who: &As, path: &str, header: &str) -> (u16, String, String) {
    let mut response = server.http.run(request(server, who, path, &[]).body(()).expect("request")).expect("answer");
    let value = response.headers().get(header).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    (response.status().as_u16(), value, response.body_mut().read_to_string().expect("text"))
}

/// A stream of events: blocks of lines, as they come.
struct Stream {
    blocks: mpsc::Receiver<String>,
    last_id: String,
}

impl Stream {
    fn open(server: &TestServer, who: &As, path: &str, last_id: Option<&str>) -> Stream {
        let headers: Vec<(&str, &str)> = last_id.map(|id| ("last-event-id", id)).into_iter().collect();
        let request = request(server, who, path, &headers).body(()).expect("request");
        let (sender, blocks) = mpsc::channel();
        let response = server.http.run(request).expect("an answer");
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        assert_eq!(response.status().as_u16(), 200, "{path}");
        assert_eq!(header("content-type"), Some("text/event-stream"));
        assert_eq!((header("cache-control"), header("x-accel-buffering")), (Some("no-store"), Some("no")));
        std::thread::spawn(move || {
            let mut block = String::new();
            for line in BufReader::new(response.into_body().into_reader()).lines() {
                let Ok(line) = line else { return };
                if line.is_empty() {
                    if sender.send(std::mem::take(&mut block)).is_err() {
                        return;
                    }
                } else {
                    block += &line;
                    block.push('\n');
                }
            }
        });
        Stream { blocks, last_id: String::new() }
    }

    /// The next event's name and data within that time; none where the stream ended or nothing came.
    fn next(&mut self, patience: Duration) -> Option<(String, String)> {
        let until = Instant::now() + patience;
        loop {
            let block = self.blocks.recv_timeout(until.saturating_duration_since(Instant::now())).ok()?;
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            if let Some(id) = field("id: ") {
                self.last_id = id;
            }
            if let Some(event) = field("event: ") {
                return Some((event, field("data: ").unwrap_or_default()));
            }
        }
    }

    /// Whether the stream ends within that time.
    fn ends(&mut self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            match self.blocks.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return true,
                Err(mpsc::RecvTimeoutError::Timeout) => return false,
            }
        }
    }
}

const SOON: Duration = Duration::from_secs(10);

#[test]
fn pages_hear_of_changes_made_by_any_instance_and_come_back_anywhere() {
    for database in Database::each() {
        let one = TestServer::start(&database);
        let session = one.set_up();
        let owner = one.token(&session);
        let two = one.beside(&database, |_| {});
        let tenant = one.post(&owner, "e3backup_tenant_create.php", &json!({"name": "One", "slug": "one"})).ok();
        let inside = one.person(&owner, "inside@example.com", "viewer", tenant["tenant"]["id"].as_i64());
        let agent = one.agent(&owner, "HV01", None);
        one.discover(&agent, &["DC01"]);
        let destination = one.destination(&owner, "one/", None);
        let job = one.job(&owner, &agent, destination, None);

        let mut there = Stream::open(&two, &owner, "/live?topics=runs,alerts", None);
        let mut tenants = Stream::open(&two, &inside, "/live?topics=runs,vms", None);
        one.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
        let (event, version) = there.next(SOON).expect("an event");
        assert_eq!(event, "runs", "{database:?}");
        assert!(version.parse::<i64>().is_ok_and(|version| version > 0), "{version}");
        let seen = there.last_id.clone();
        drop(there);
        // While nobody listens, something changes; whoever comes back, to the other instance, hears of it.
        let run = one.claim(&agent);
        let topic = format!("run-{}", run["run_id"]);
        let path = format!("/live?topics={topic}");
        let mut back = Stream::open(&one, &owner, &path, Some(&seen));
        assert_eq!(back.next(SOON).map(|event| event.0), Some(topic), "{database:?}");
        let mut lost = Stream::open(&one, &owner, &path, Some("999999999"));
        assert_eq!(lost.next(SOON).map(|event| event.0).as_deref(), Some("resync"), "{database:?}");
        assert_eq!(tenants.next(Duration::from_millis(1500)), None, "{database:?}: of others a tenant hears nothing");

        // A run's own stream, from its beginning to its end.
        let mut watch =
            Stream::open(&two, &owner, &format!("/api/cloudbackup_run_stream.php?run_id={}", run["run_id"]), None);
        assert_eq!(watch.next(SOON).map(|event| event.0).as_deref(), Some("progress"));
        one.back_up(&agent, &run);
        let mut names = Vec::new();
        while let Some((event, data)) = watch.next(SOON) {
            names.push(event.clone());
            if event == "end" {
                assert_eq!(data, "success");
                break;
            }
        }
        assert_eq!(names.last().map(String::as_str), Some("end"), "{names:?}");
        assert!(watch.ends(SOON), "{database:?}");

        // With the session the stream ends, by the clock and by a word.
        one.post(&inside, "console_logout.php", &json!({})).ok();
        assert!(tenants.ends(SOON), "{database:?}: the session is over and the stream is not");
        for (query, code) in [("", "invalid_field"), ("?topics=a%20b", "invalid_field")] {
            one.get(&owner, &format!("/live{query}"), &json!({})).refused(400, code);
        }
        two.stop();
        one.stop();
    }
}

#[test]
fn the_report_is_the_same_as_json_csv_and_page() {
    for database in Database::each() {
        let server = TestServer::with(&database, |settings| settings.tick = Duration::from_secs(3600));
        let session = server.set_up();
        let owner = server.token(&session);
        let agent = server.agent(&owner, "HV01", None);
        server.discover(&agent, &["=cmd|' /C calc'!A0", "<script>alert(1)</script>"]);
        let destination = server.destination(&owner, "one/", None);
        let job = server.job(&owner, &agent, destination, None);
        for _ in 0..3 {
            server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]}));
            let run = server.claim(&agent);
            server.back_up(&agent, &run);
            server.pass(24.0);
        }
        server.tick();
        let report = server.get(&owner, "cloudbackup_report.php", &json!({})).ok();
        let vms = report["vms"].as_array().expect("VMs");
        assert_eq!(vms.len(), 2, "{database:?}: {report}");
        for vm in vms {
            assert_eq!((&vm["points"], &vm["status"]["state"]), (&json!(3), &json!("protected")), "{report}");
            assert!(vm["kept_basis_points"].as_i64().is_some_and(|kept| kept > 9_990), "{report}");
            let gap = vm["longest_gap_seconds"].as_i64().expect("a gap");
            assert!((86_395..=87_000).contains(&gap), "{report}");
        }
        let (status, media_type, csv) = raw(&server, &owner, "/api/cloudbackup_report.php?format=csv", "content-type");
        assert_eq!((status, media_type.as_str()), (200, "text/csv; charset=utf-8"));
        assert_eq!(csv.matches("\r\n").count(), 3, "{csv}");
        assert!(csv.contains("\"'=cmd|' /C calc'!A0\",") && !csv.contains("\n=cmd"), "{csv}");
        let (status, policy, html) =
            raw(&server, &owner, "/api/cloudbackup_report.php?format=html", "content-security-policy");
        assert_eq!(status, 200);
        assert!(policy.contains("style-src 'sha256-") && policy.contains("default-src 'none'"), "{policy}");
        assert!(html.contains("&lt;script&gt;") && !html.contains("<script"), "{html}");
        assert!(html.contains("@media print") && html.contains("Target kept"), "{html}");
        server.get(&owner, "cloudbackup_report.php", &json!({"format": "pdf"})).refused(400, "invalid_field");
        server.get(&owner, "cloudbackup_report.php", &json!({"from": "soon"})).refused(400, "invalid_field");
        server.get(&owner, "cloudbackup_report.php", &json!({"tenant_id": 77})).refused(404, "not_found");

        let history = server.get(&owner, "e3backup_backup_history.php", &json!({"days": 7})).ok();
        let days = history["days"].as_array().expect("days");
        assert_eq!(days.len(), 7, "{history}");
        let sum = |field: &str| days.iter().filter_map(|day| day[field].as_i64()).sum::<i64>();
        assert_eq!(sum("points"), 6, "{database:?}: {history}");
        let runs: i64 = days.iter().filter_map(|day| day["runs"]["success"].as_i64()).sum();
        assert_eq!(runs, 3, "{database:?}: {history}");
        server.stop();
    }
}

#[test]
fn probes_need_no_session_and_figures_do() {
    let server = TestServer::start(&Database::Sqlite);
    let session = server.set_up();
    let owner = server.token(&session);
    for (path, text) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
        let reply = server.get(&As::Nobody, path, &json!({}));
        assert_eq!((reply.status, reply.body["text"].as_str()), (200, Some(text)), "{path}");
    }
    server.get(&As::Nobody, "/metrics", &json!({})).refused(401, "missing_credentials");
    let (status, media_type, text) = raw(&server, &owner, "/metrics", "content-type");
    assert_eq!((status, media_type.as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"));
    for name in [
        "e3_vms",
        "e3_runs",
        "e3_agents",
        "e3_queue_oldest_seconds",
        "e3_alerts",
        "e3_alert_deliveries",
        "e3_commands",
        "e3_points",
        "e3_database_up",
        "e3_database_statements_total",
    ] {
        assert!(text.contains(&format!("# TYPE {name} ")), "{name} in {text}");
    }
    // Every line is a comment or a name with a number.
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let number = line.rsplit(' ').next().expect("a number");
        assert!(number.parse::<f64>().is_ok() && line.starts_with(|c: char| c.is_ascii_lowercase()), "{line}");
    }
    let app = server.app().clone();
    server.runtime.block_on(async move { app.db.close().await });
    server.get(&As::Nobody, "/healthz", &json!({}));
    let reply = server.get(&As::Nobody, "/readyz", &json!({}));
    assert_eq!((reply.status, reply.body["code"].as_str()), (503, Some("maintenance")), "{}", reply.body);
}

/// Budget of console 6: a list page costs at most so many statements, however long the list is.
#[test]
fn no_list_page_takes_more_than_twelve_queries() {
    let server = TestServer::with(&Database::Sqlite, |settings| settings.tick = Duration::from_secs(3600));
    let session = server.set_up();
    let owner = server.token(&session);
    let agent = server.agent(&owner, "HV01", None);
    let names: Vec<String> = (0..30).map(|at| format!("VM{at}")).collect();
    server.discover(&agent, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let destination = server.destination(&owner, "one/", None);
    let job = server.job(&owner, &agent, destination, None);
    for _ in 0..2 {
        server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
        let run = server.claim(&agent);
        server.back_up(&agent, &run);
    }
    server.pass(100.0);
    server.tick();
    // The first call of a token in a minute writes that it was used.
    server.get(&owner, "console_session.php", &json!({}));
    let mut counted = 0;
    for endpoint in routes::all() {
        let is_list = matches!(endpoint.access, Access::Person(_)) && endpoint.methods == ["GET"];
        // A stream is no page, and figures are no list.
        if !is_list || ["/live", "/metrics", "cloudbackup_run_stream.php"].contains(&endpoint.name) {
            continue;
        }
        let vm = server.count("SELECT MIN(id) FROM s3_hyperv_vms");
        let query = json!({"job_id": job["job_id"], "vm_id": vm});
        let asked = if support::fields(endpoint).contains_key("agent_id") { json!({}) } else { query };
        let before = server.app().db.query_count();
        let reply = server.get(&owner, endpoint.name, &asked);
        let queries = server.app().db.query_count() - before;
        assert!(queries <= 12, "{}: {queries} queries", endpoint.name);
        counted += usize::from(reply.status == 200);
    }
    assert!(counted > 15, "only {counted} lists answered");
    server.stop();
}

#[test]
fn what_is_old_is_forgotten_and_what_counts_is_not() {
    for database in Database::each() {
        let server = TestServer::with(&database, |settings| settings.tick = Duration::from_secs(3600));
        let session = server.set_up();
        let owner = server.token(&session);
        let agent = server.agent(&owner, "HV01", None);
        server.discover(&agent, &["DC01"]);
        let destination = server.destination(&owner, "one/", None);
        let job = server.job(&owner, &agent, destination, None);
        let As::Session { cookie, csrf, origin } = &session else { panic!("a session") };
        let once = |key: &str| {
            let request = ureq::http::Request::builder()
                .method("POST")
                .uri(format!("{}cloudbackup_start_run.php", server.base))
                .header("cookie", cookie)
                .header("x-csrf-token", csrf)
                .header("origin", origin)
                .header("idempotency-key", key);
            server.send(request, "POST", &json!({"job_id": job["job_id"]}))
        };
        let first = once("key").ok();
        assert_eq!(once("key").ok()["run_id"], first["run_id"], "{database:?}: asked again");
        once("other").refused(409, "ALREADY_RUNNING");
        assert_eq!(server.count("SELECT COUNT(*) FROM s3_idempotency_keys"), 1, "a call that failed keeps nothing");
        // Both at once: one run, one answer.
        let run = server.claim(&agent);
        server.back_up(&agent, &run);
        let both = support::at_once(4, |_| once("together"));
        let ids: Vec<Value> = both.into_iter().map(|reply| reply.ok()["run_id"].clone()).collect();
        assert!(ids.iter().all(|id| *id == ids[0]), "{database:?}: {ids:?}");
        let run = server.claim(&agent);
        server.back_up(&agent, &run);
        let count = |table: &str| server.count(&format!("SELECT COUNT(*) FROM {table}"));
        let kept = ["s3_cloudbackup_runs", "s3_hyperv_backup_points", "s3_cloudbackup_audit_events"];
        let before = kept.map(count);
        assert!(count("s3_console_sessions") > 0 && count("console_changes") > 1, "{database:?}");
        server.pass(24.0 * 120.0);
        server.tick();
        for table in ["s3_idempotency_keys", "s3_console_sessions", "s3_cloudbackup_run_events", "s3_setup_tokens"] {
            assert_eq!(count(table), 0, "{database:?}: {table}");
        }
        assert!(before.iter().zip(kept.map(count)).all(|(before, after)| after >= *before), "{database:?}");
        server.stop();
    }
}

/// Who sends half a body and waits is told so, and costs nothing more.
#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let server = TestServer::with(&Database::Sqlite, |settings| settings.body_patience = Duration::from_millis(300));
    let (sender, receiver) = mpsc::channel::<Vec<u8>>();
    sender.send(b"{\"email\": ".to_vec()).expect("sent");
    struct Slow(mpsc::Receiver<Vec<u8>>);
    impl std::io::Read for Slow {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            // The rest comes when the sender goes, which is after the server should have answered.
            let Ok(bytes) = self.0.recv_timeout(Duration::from_secs(3)) else { return Ok(0) };
            into[..bytes.len()].copy_from_slice(&bytes);
            Ok(bytes.len())
        }
    }
    let started = Instant::now();
    let request =
        server.http.post(format!("{}console_login.php", server.base)).header("content-type", "application/json");
    let reply = request.send(ureq::SendBody::from_owned_reader(Slow(receiver)));
    let status = reply.map(|response| response.status().as_u16());
    assert!(matches!(status, Ok(408) | Err(_)), "{status:?}");
    assert!(started.elapsed() < Duration::from_secs(20));
    drop(sender);
    server.get(&As::Nobody, "health.php", &json!({})).ok();
    server.stop();
}

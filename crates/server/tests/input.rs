//! What is sent is never the server's fault: junk in every field of every endpoint, and a document that says what is there.

mod support;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use server::http::{openapi, routes};
use support::database::Database;
use support::{As, TestServer, fields};

/// Values that fields get: wrong kinds, ends of ranges, text that databases and clocks do not like.
fn junk() -> Vec<Value> {
    let mut values = vec![
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1.5e300),
        json!(""),
        json!("1"),
        json!("9999999999999999999999"),
        json!("2026-13-45T99:99:99Z"),
        json!("-262143-01-01T00:00:00Z"),
        json!("'; DROP TABLE s3_clients; --"),
        json!("%00\u{0}\u{1}\u{fffd}\u{202e}😀"),
        json!("x".repeat(70_000)),
        json!([]),
        json!([1, "a", null, {}]),
        json!([[[[[[]]]]]]),
        json!({}),
        json!({"a": {"b": [1]}}),
        json!({"retention": {"daily": 1e9}, "type": "cron", "cron": "* * * * *", "vms": [1]}),
        json!([{"id": "g", "name": "n", "backup_point_id": 1, "vm_id": 1, "message_id": "m", "code": "c", "path": "p"}]),
    ];
    values.extend(
        ["success", "queued", "failed", "deleted", "full", "gzip", "Active", "0190a1b2-0000-7000-8000-00000000000f"]
            .map(Value::from),
    );
    values
}

/// A field that makes a call cost what it asks for is not what this test is about.
const COSTLY: [&str; 2] = ["password", "long_poll"];

#[test]
fn junk_in_every_field_of_every_endpoint_is_the_callers_fault() {
    for database in Database::each() {
        let server = TestServer::start(&database);
        let owner = server.token(&server.set_up());
        let agent = server.agent(&owner, "HV01", None);
        server.discover(&agent, &["DC01"]);
        let destination = server.destination(&owner, "one/", None);
        let job = server.job(&owner, &agent, destination, None);
        server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
        let run = server.claim(&agent);
        let mut calls = 0;
        for endpoint in routes::all() {
            let names: Vec<String> = fields(endpoint).keys().cloned().collect();
            // What is needed to get past the first checks.
            let base: Map<String, Value> = names
                .iter()
                .filter_map(|name| {
                    let value = match name.as_str() {
                        "run_id" | "claim_id" | "job_id" => run[name.as_str()].clone(),
                        "agent_id" => json!(agent.id()),
                        "vm_id" => run["hyperv_vms"][0]["vm_id"].clone(),
                        "dest_bucket_id" => json!(destination),
                        "name" | "slug" | "hostname" | "message_id" => json!("x"),
                        "hyperv_config" => json!({"backup_all_vms": true}),
                        "version" | "limit" => json!(1),
                        "token" => json!("enr_x"),
                        _ => return None,
                    };
                    Some((name.clone(), value))
                })
                .collect();
            for name in names.iter().filter(|name| !COSTLY.contains(&name.as_str())) {
                for value in junk() {
                    let mut body = base.clone();
                    body.insert(name.clone(), value.clone());
                    for method in endpoint.methods {
                        if *method == "GET" && value.to_string().len() > 8000 {
                            continue;
                        }
                        let who = match endpoint.access {
                            routes::Access::Agent => &agent,
                            routes::Access::Person(_) => &owner,
                            routes::Access::Anybody => &As::Nobody,
                        };
                        let reply = server.call(who, method, endpoint.name, &Value::Object(body.clone()));
                        let text = value.to_string().chars().take(60).collect::<String>();
                        assert!(
                            reply.status < 500,
                            "{database:?} {method} {} {name}={text}: {}",
                            endpoint.name,
                            reply.body
                        );
                        calls += 1;
                    }
                }
            }
            // The agent may have been turned off by what was sent.
            server.post(&owner, "e3backup_agent_toggle.php", &json!({"agent_id": agent.id(), "status": "active"}));
        }
        assert!(calls > 3000, "{calls} calls");
        server.stop();
    }
}

#[test]
fn bodies_that_are_no_fields_are_refused() {
    let server = TestServer::start(&Database::Sqlite);
    let owner = server.token(&server.set_up());
    let As::Token(token) = &owner else { panic!("a token") };
    let send = |media_type: &str, body: Vec<u8>| {
        let request = ureq::http::Request::builder()
            .method("POST")
            .uri(format!("{}cloudbackup_start_run.php", server.base))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", media_type);
        let mut response = server.http.run(request.body(body).expect("request")).expect("an answer");
        let text = response.body_mut().read_to_string().expect("text");
        let body: Value = serde_json::from_str(&text).expect("JSON");
        (response.status().as_u16(), body["code"].as_str().unwrap_or_default().to_owned())
    };
    let json = "application/json";
    let form = "application/x-www-form-urlencoded";
    for (case, media_type, body, expected) in [
        ("no JSON", json, b"{".to_vec(), (400, "bad_request")),
        ("a list", json, b"[]".to_vec(), (400, "bad_request")),
        ("not UTF-8", json, vec![0xff, 0xfe], (400, "bad_request")),
        ("a deep one", json, [b"{\"a\":".repeat(100_000), b"1".to_vec()].concat(), (400, "bad_request")),
        ("a form that is not UTF-8", form, vec![0xff], (400, "bad_request")),
        ("another media type", "text/xml", b"<a/>".to_vec(), (415, "unsupported_media_type")),
        ("none", json, Vec::new(), (400, "missing_field")),
        ("too large", json, vec![b' '; (1 << 20) + 1], (413, "body_too_large")),
        ("a form", form, b"job_id=12345".to_vec(), (404, "not_found")),
        ("no id", form, b"job_id=abc".to_vec(), (400, "invalid_identifier_format")),
    ] {
        let (status, code) = send(media_type, body);
        assert_eq!((status, code.as_str()), expected, "{case}");
    }
    server.stop();
}

#[test]
fn the_document_describes_every_route_and_names_nothing_that_it_lacks() {
    let server = TestServer::start(&Database::Sqlite);
    let document = server.get(&As::Nobody, "openapi.json", &json!({})).body;
    assert_eq!(document, openapi::document().expect("document"));
    let paths: BTreeSet<String> = document["paths"].as_object().expect("paths").keys().cloned().collect();
    let routes: BTreeSet<String> = routes::all().iter().map(|endpoint| endpoint.paths()[0].clone()).collect();
    assert_eq!(paths, routes);
    assert_eq!(routes.len(), routes::all().len(), "a name stands twice");
    // Both base paths lead to the same table, and nowhere else leads anything.
    for endpoint in routes::all() {
        for path in endpoint.paths() {
            let url = format!("{}{path}", server.origin);
            let request = ureq::http::Request::builder().method("PATCH").uri(url);
            server.send(request, "PATCH", &json!({})).refused(405, "method_not_allowed");
        }
        if endpoint.name.starts_with('/') {
            continue;
        }
        let bare = endpoint.name.trim_end_matches(".php").trim_end_matches(".json");
        server.get(&As::Nobody, bare, &json!({})).refused(404, "not_found");
    }
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    let mut named = BTreeSet::new();
    references(&document, &mut named);
    for name in &named {
        assert!(schemas.contains_key(name), "{name} is named and not described");
    }
    assert!(named.len() > 60, "{} types", named.len());
    server.stop();
}

fn references(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value
                    .as_str()
                    .filter(|_| key == "$ref")
                    .and_then(|path| path.strip_prefix("#/components/schemas/"))
                {
                    Some(name) => drop(into.insert(name.to_owned())),
                    None => references(value, into),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, into)),
        _ => {}
    }
}

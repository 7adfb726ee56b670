//! Schemathesis, a stranger to this code, reads the OpenAPI document and asks for what it allows and what it does not: no
//! answer is the server's fault.

mod support;

use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use support::database::Database;
use support::{As, TestServer};

/// Routes that would end what the others are called with, or wait by design.
const LEFT_OUT: [&str; 6] = [
    "agent_delete.php",
    "agent_disable.php",
    "e3backup_agent_toggle.php",
    "agent_rotate_token.php",
    "e3backup_api_token_revoke.php",
    "cloudbackup_run_stream.php",
];

fn fuzz(seconds: u32, seed: u32) {
    let Some(program) = std::env::var_os("E3_TEST_SCHEMATHESIS").map(PathBuf::from) else {
        println!("SKIPPED fuzzed: no schemathesis (E3_TEST_SCHEMATHESIS; `cargo xtask peers` installs it)");
        return;
    };
    let server = TestServer::start(&Database::Sqlite);
    let owner = server.token(&server.set_up());
    let agent = server.agent(&owner, "HV01", None);
    server.discover(&agent, &["DC01"]);
    let destination = server.destination(&owner, "one/", None);
    let job = server.job(&owner, &agent, destination, None);
    server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
    let run = server.claim(&agent);
    server.back_up(&agent, &run);
    let (As::Token(token), As::Agent { id, token: agent_token, .. }) = (&owner, &agent) else {
        panic!("a token and an agent");
    };
    let certificate = server.folder.path().join("server.crt");
    let mut command = Command::new(program);
    command.args(["run", &format!("{}openapi.json", server.base), "--url", &server.origin]);
    command.args(["--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--workers", "2"]);
    command.args(["--max-time", &seconds.to_string(), "--seed", &seed.to_string(), "--request-timeout", "20"]);
    command.args([
        "--generation-database",
        "none",
        "--suppress-health-check",
        "all",
        "--warnings",
        "off",
        "--no-color",
    ]);
    command.arg("--tls-verify").arg(&certificate);
    for (name, value) in [
        ("Authorization", format!("Bearer {token}")),
        ("X-Agent-ID", id.to_string()),
        ("X-Agent-Token", agent_token.clone()),
    ] {
        command.args(["-H", &format!("{name}: {value}")]);
    }
    for name in LEFT_OUT {
        command.args(["--exclude-path", &format!("/api/{name}")]);
    }
    let before = server.app().db.query_count();
    let output = command.current_dir(server.folder.path()).output().expect("schemathesis");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let tail: String = text.lines().rev().take(80).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
    assert!(output.status.success(), "seed {seed}: {tail}");
    // It got in: what it asked reached the database many times.
    let asked = server.app().db.query_count() - before;
    assert!(asked > 2_000, "only {asked} statements: {tail}");
    println!("{}", text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default());
    server.get(&owner, "cloudbackup_dashboard.php", &json!({})).ok();
    server.stop();
}

#[test]
fn what_a_schema_allows_and_what_it_does_not_is_answered() {
    fuzz(20, 1);
}

#[test]
#[ignore = "long: ten minutes"]
fn what_a_schema_allows_is_answered_for_ten_minutes() {
    fuzz(600, 2);
}

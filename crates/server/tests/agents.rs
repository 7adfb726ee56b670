//! Enrolment, tokens, copies, limits, commands: what an agent is to the server.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::database::Database;
use support::{As, TestServer, at_once, eventually};

fn enrol(server: &TestServer, token: &Value, device: &str) -> support::Reply {
    let asked = json!({"token": token, "hostname": "HV", "device_id": device, "agent_version": "0.1.0"});
    server.post(&As::Nobody, "agent_enroll.php", &asked)
}

#[test]
fn an_enrolment_token_is_checked_in_order_and_used_as_often_as_it_may_be() {
    for database in Database::each() {
        let server = TestServer::start(&database);
        let owner = server.token(&server.set_up());
        let make = |asked: Value| server.post(&owner, "e3backup_token_create.php", &asked).ok();
        for (case, token) in [("no form", "x"), ("unknown", "enr_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")] {
            assert_eq!(enrol(&server, &json!(token), case).status, 401, "{case}");
        }
        let once = make(json!({}));
        let stored = "SELECT COUNT(*) FROM s3_agent_enrollment_tokens WHERE use_count = 0";
        assert_eq!(server.count(stored), 1);
        let replies = at_once(6, |at| enrol(&server, &once["token"], &format!("d{at}")));
        assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), 1, "{database:?}: {replies:?}");
        enrol(&server, &once["token"], "d9").refused(401, "token_exhausted");
        // A failed enrolment uses nothing up.
        let twice = make(json!({"max_uses": 2}));
        let bad = json!({"token": twice["token"], "hostname": "h".repeat(300)});
        server.post(&As::Nobody, "agent_enroll.php", &bad).refused(400, "invalid_field");
        enrol(&server, &twice["token"], "e1").ok();
        enrol(&server, &twice["token"], "e2").ok();
        enrol(&server, &twice["token"], "e3").refused(401, "token_exhausted");
        let revoked = make(json!({"max_uses": 0}));
        server.post(&owner, "e3backup_token_revoke.php", &json!({"id": revoked["id"]})).ok();
        enrol(&server, &revoked["token"], "f").refused(401, "token_revoked");
        let short = make(json!({"lifetime_hours": 1, "max_uses": 0}));
        let endless = make(json!({"lifetime_hours": 0, "max_uses": 0}));
        server.pass(1.1);
        enrol(&server, &short["token"], "g").refused(401, "token_expired");
        enrol(&server, &endless["token"], "g").ok();
        server.stop();
    }
}

#[test]
fn the_same_device_is_the_same_agent_and_only_an_administrator_enables_it() {
    let server = TestServer::start(&Database::Sqlite);
    let owner = server.token(&server.set_up());
    let stranger = server.token(&server.other_client("stranger@example.com"));
    let token = server.post(&owner, "e3backup_token_create.php", &json!({"max_uses": 0})).ok()["token"].clone();
    let other = server.post(&stranger, "e3backup_token_create.php", &json!({"max_uses": 0})).ok()["token"].clone();
    let agent_of = |enrolled: &Value| As::Agent {
        id: enrolled["agent_id"].as_i64().expect("id"),
        token: enrolled["agent_token"].as_str().expect("token").into(),
        boot: "b".into(),
    };
    let first = enrol(&server, &token, "same").ok();
    assert!(first["agent_token"].as_str().is_some_and(|token| token.starts_with("agt_") && token.len() == 47));
    assert_eq!(first["api_base_url"], json!(server.base.trim_end_matches('/')));
    assert_eq!(first["server_key_pins"].as_array().map(Vec::len), Some(1));
    let again = enrol(&server, &token, "same").ok();
    assert_eq!(again["agent_id"], first["agent_id"]);
    server.get(&agent_of(&first), "agent_poll.php", &json!({})).refused(401, "unauthorized");
    server.get(&agent_of(&again), "agent_poll.php", &json!({})).ok();
    // The same device with another client's token is another agent; the first is not touched.
    let elsewhere = enrol(&server, &other, "same").ok();
    assert_ne!(elsewhere["agent_id"], first["agent_id"]);
    server.get(&agent_of(&again), "agent_poll.php", &json!({})).ok();

    let toggle = |status: &str| {
        let asked = json!({"agent_uuid": again["agent_uuid"], "status": status});
        server.post(&owner, "e3backup_agent_toggle.php", &asked).ok();
    };
    toggle("disabled");
    server.get(&agent_of(&again), "agent_poll.php", &json!({})).refused(401, "agent_disabled");
    enrol(&server, &token, "same").refused(409, "agent_disabled");
    toggle("active");
    server.get(&agent_of(&again), "agent_poll.php", &json!({})).ok();
    server.post(&owner, "agent_disable.php", &json!({"agent_id": again["agent_id"], "revoke": true})).ok();
    toggle("active");
    server.get(&agent_of(&again), "agent_poll.php", &json!({})).refused(401, "unauthorized");
    server.stop();
}

#[test]
fn a_rotated_token_serves_beside_the_old_one_until_it_is_used() {
    for database in Database::each() {
        let server = TestServer::start(&database);
        let owner = server.token(&server.set_up());
        let agent = server.agent(&owner, "HV01", None);
        let As::Agent { id, .. } = &agent else { panic!("an agent") };
        let rotate = |who: &As| server.post(who, "agent_rotate_token.php", &json!({})).ok()["agent_token"].clone();
        let new = rotate(&agent);
        assert_eq!(rotate(&agent), new, "asked again, the same");
        let renewed = As::Agent { id: *id, token: new.as_str().expect("token").into(), boot: "boot-1".into() };
        server.get(&agent, "agent_poll.php", &json!({})).ok();
        server.get(&renewed, "agent_poll.php", &json!({})).ok();
        server.get(&agent, "agent_poll.php", &json!({})).refused(401, "unauthorized");
        let newest = rotate(&renewed);
        server.pass(25.0);
        server.get(&renewed, "agent_poll.php", &json!({})).refused(401, "unauthorized");
        let newest = As::Agent { id: *id, token: newest.as_str().expect("token").into(), boot: "boot-1".into() };
        server.get(&newest, "agent_poll.php", &json!({})).ok();
        server.stop();
    }
}

#[test]
fn a_copied_machine_stops_both_until_somebody_chooses() {
    let server = TestServer::start(&Database::Sqlite);
    let owner = server.token(&server.set_up());
    let As::Agent { id, token, .. } = server.agent(&owner, "HV01", None) else { panic!("an agent") };
    let poll = |install: &str, version: &str| {
        let request = ureq::http::Request::builder()
            .method("GET")
            .uri(format!("{}agent_poll.php", server.base))
            .header("x-agent-id", id.to_string())
            .header("x-agent-token", &token)
            .header("x-agent-install", install)
            .header("x-agent-version", version);
        server.send(request, "GET", &json!({}))
    };
    poll("one", "0.1.0").ok();
    poll("other", "0.1.0").refused(409, "agent_cloned");
    poll("one", "0.1.0").refused(409, "agent_cloned");
    server.post(&owner, "e3backup_agent_toggle.php", &json!({"agent_id": id, "status": "active"})).ok();
    poll("other", "0.1.0").ok();
    // A machine that was installed again is no copy: the old one is long silent.
    server.pass(0.5);
    poll("third", "0.1.0").ok();
    let old = poll("third", "0.0.9").refused(426, "agent_version_too_old");
    assert_eq!(old["details"]["reported_version"], "0.0.9");
    server.stop();
}

#[test]
fn limits_say_when_to_come_back() {
    let server = TestServer::with(&Database::Sqlite, |settings| {
        settings.rates.agent = (2.0, 3.0);
        settings.rates.address = (1000.0, 1000.0);
        settings.rates.enrolments_per_minute = 3;
    });
    let owner = server.token(&server.set_up());
    let agent = server.agent(&owner, "HV01", None);
    let replies: Vec<u16> =
        (0..12).map(|_| server.get(&agent, "agent_poll_pending_commands.php", &json!({})).status).collect();
    assert!(replies.contains(&429) && replies.starts_with(&[200, 200]), "{replies:?}");
    for _ in 0..2 {
        enrol(&server, &json!("enr_x"), "d").refused(401, "unauthorized");
    }
    let limited = enrol(&server, &json!("enr_x"), "d").refused(429, "rate_limited");
    assert!(limited["retry_after_secs"].as_i64().is_some_and(|seconds| (1..=900).contains(&seconds)), "{limited}");
    server.pass(0.26);
    enrol(&server, &json!("enr_x"), "d").refused(401, "unauthorized");
    server.stop();
}

#[test]
fn a_command_is_leased_offered_again_and_given_up() {
    for database in Database::each() {
        let server = TestServer::start(&database);
        let owner = server.token(&server.set_up());
        let agent = server.agent(&owner, "HV01", None);
        let queue =
            || server.post(&owner, "agent_browse_filesystem.php", &json!({"agent_id": agent.id(), "path": "C:\\"}));
        let queued = queue();
        assert_eq!(queued.status, 202);
        let command = queued.ok()["command_id"].clone();
        let deliver = || server.get(&agent, "agent_poll_pending_commands.php", &json!({})).ok()["commands"].clone();
        let state = || server.get(&owner, "cloudbackup_command_status.php", &json!({"command_id": command})).ok();
        let delivered = at_once(6, |_| deliver());
        let got: Vec<&Value> =
            delivered.iter().filter(|commands| commands.as_array().is_some_and(|list| !list.is_empty())).collect();
        assert_eq!(got.len(), 1, "{database:?}: {delivered:?}");
        assert_eq!((&got[0][0]["type"], &got[0][0]["payload"]["path"]), (&json!("browse_directory"), &json!("C:\\")));
        // Working on it renews the lease.
        for _ in 0..3 {
            server.pass(100.0 / 3600.0);
            server.get(&agent, "agent_poll.php", &json!({"active_commands": [command]})).ok();
            server.tick();
            assert_eq!(state()["command_status"], "processing");
        }
        for _ in 0..2 {
            server.pass(150.0 / 3600.0);
            server.tick();
            assert_eq!(deliver().as_array().map(Vec::len), Some(1));
        }
        server.pass(150.0 / 3600.0);
        server.tick();
        let given_up = state();
        assert_eq!(
            (&given_up["command_status"], &given_up["result_message"]),
            (&json!("failed"), &json!("delivery_limit"))
        );

        let command = queue().ok()["command_id"].clone();
        deliver();
        let result = json!({"command_id": command, "result": {"entries": [{"name": "Windows"}]}});
        server.post(&agent, "agent_report_browse.php", &result).ok();
        server.post(&agent, "agent_report_browse.php", &result).ok();
        let failed = json!({"command_id": command, "status": "failed"});
        server.post(&agent, "agent_complete_command.php", &failed).refused(409, "already_completed");
        let seen = server.get(&owner, "cloudbackup_command_status.php", &json!({"command_id": command})).ok();
        assert_eq!(seen["result"]["entries"][0]["name"], "Windows");
        server.pass(1.1);
        server.tick();
        let seen = server.get(&owner, "cloudbackup_command_status.php", &json!({"command_id": command})).ok();
        assert_eq!(seen["result"], Value::Null, "a result may list file names: it is kept for an hour");
        server.stop();
    }
}

#[test]
fn a_waiting_poll_is_told_at_once_and_events_are_counted_once() {
    let server =
        TestServer::with(&Database::Sqlite, |settings| settings.long_poll = std::time::Duration::from_secs(20));
    let owner = server.token(&server.set_up());
    let agent = server.agent(&owner, "HV01", None);
    server.discover(&agent, &["DC01"]);
    let destination = server.destination(&owner, "one/", None);
    let job = server.job(&owner, &agent, destination, None);
    let started = std::time::Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.get(&agent, "agent_poll.php", &json!({"long_poll": 1})).ok());
        std::thread::sleep(std::time::Duration::from_millis(300));
        server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
        assert_eq!(waiting.join().expect("an answer")["run_available"], true);
    });
    assert!(started.elapsed().as_secs() < 15, "{:?}", started.elapsed());

    let run = server.claim(&agent);
    let batch = json!({
        "run_id": run["run_id"], "batch_id": "b1",
        "events": [
            {"type": "info", "level": "warning", "message_id": "HYPERV_VM_STARTING", "params_json": {"vm_name": "DC01"}, "seq": 1},
            {"type": "error", "level": "error", "message_id": "HYPERV_VM_FAILED", "params_json": {"vm_name": "DC01", "error": "x"}, "seq": 2},
        ],
    });
    let pushed = server.post(&agent, "agent_push_events.php", &batch).ok();
    assert_eq!((&pushed["inserted"], &pushed["duplicate"]), (&json!(2), &json!(false)));
    let again = server.post(&agent, "agent_push_events.php", &batch).ok();
    assert_eq!((&again["inserted"], &again["duplicate"]), (&json!(0), &json!(true)));
    let many: Vec<Value> = (0..5100).map(|at| json!({"message_id": "SCANNING_SOURCE", "seq": at})).collect();
    let pushed = server
        .post(&agent, "agent_push_events.php", &json!({"run_id": run["run_id"], "batch_id": "b2", "events": many}))
        .ok();
    assert_eq!((&pushed["truncated"], &pushed["inserted"]), (&json!(true), &json!(4998)), "{pushed}");
    let last =
        json!({"run_id": run["run_id"], "events": [{"type": "summary", "message_id": "HYPERV_BACKUP_COMPLETE"}]});
    assert_eq!(server.post(&agent, "agent_push_events.php", &last).ok()["inserted"], 1, "the summary is never dropped");
    let seen = server.get(&owner, "cloudbackup_get_run_events.php", &json!({"run_id": run["run_id"], "limit": 2})).ok();
    assert_eq!(seen["events"][0]["level"], "warn");
    assert_eq!(seen["events"][1]["message"], "DC01: failed: x");
    eventually("one marker", || {
        server.count("SELECT COUNT(*) FROM s3_cloudbackup_run_events WHERE message_id = 'EVENTS_TRUNCATED'") == 1
    });
    server.stop();
}

#[test]
fn agents_that_wait_cost_no_statement_each() {
    for database in Database::each() {
        let server = TestServer::with(&database, |settings| {
            // The scheduler does nothing meanwhile.
            settings.tick = Duration::from_secs(3600);
            settings.long_poll = Duration::from_secs(6);
        });
        let owner = server.token(&server.set_up());
        let agents: Vec<As> = (0..30).map(|at| server.agent(&owner, &format!("HV{at}"), None)).collect();
        std::thread::scope(|scope| {
            let poll = |agent| server.get(agent, "agent_poll.php", &json!({"long_poll": 1})).ok();
            let waiting: Vec<_> = agents.iter().map(|agent| scope.spawn(move || poll(agent))).collect();
            std::thread::sleep(Duration::from_secs(2));
            let before = server.app().db.query_count();
            std::thread::sleep(Duration::from_secs(2));
            let statements = server.app().db.query_count() - before;
            assert!(statements < 30, "{database:?}: {statements} statements in two seconds");
            for poll in waiting {
                assert_eq!(poll.join().expect("an answer")["run_available"], false);
            }
        });
        server.stop();
    }
}

#[test]
fn a_call_that_brings_nothing_new_is_written_down_with_all_others_of_its_second() {
    for database in Database::each() {
        // The background does nothing meanwhile.
        let server = TestServer::with(&database, |settings| settings.tick = Duration::from_secs(3600));
        let owner = server.token(&server.set_up());
        let agents: Vec<As> = (0..5).map(|at| server.agent(&owner, &format!("HV{at}"), None)).collect();
        let poll = || agents.iter().for_each(|agent| drop(server.get(agent, "agent_poll.php", &json!({})).ok()));
        let online = || {
            let listed = server.get(&owner, "e3backup_agent_list.php", &json!({})).ok();
            listed["agents"].as_array().expect("agents").iter().filter(|agent| agent["is_online"] == true).count()
        };
        poll();
        server.pass(1.0);
        assert_eq!(online(), 0, "{database:?}");
        let before = server.app().db.query_count();
        poll();
        let asked = server.app().db.query_count() - before;
        assert_eq!(asked, 5 * 2, "{database:?}: who it is, and what there is");
        assert_eq!(online(), 0, "{database:?}");
        server.tick();
        assert_eq!(online(), 5, "{database:?}");
        server.stop();
    }
}

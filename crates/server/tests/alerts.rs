//! Who is told what, once: causes by the clock, real receivers, instances that die.

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use server::alerts::outbox;
use server::settings::{Mail, Settings};
use support::database::Database;
use support::receiver::{MailServer, Receiver};
use support::{As, TestServer, at_once, eventually};

/// Nothing happens but what the test says.
fn still(settings: &mut Settings, receiver: &Receiver) {
    settings.tick = std::time::Duration::from_secs(3600);
    settings.allow_private_webhooks = true;
    settings.webhook_roots_pem = Some(receiver.certificate_pem.clone());
}

/// A rule for a webhook of everything; its key.
fn webhook(server: &TestServer, owner: &As, receiver: &Receiver, more: Value) -> (i64, String) {
    let mut asked = json!({"name": "chat", "channel": "webhook", "target": receiver.url, "max_severity": 6});
    asked.as_object_mut().expect("object").extend(more.as_object().cloned().unwrap_or_default());
    let saved = server.post(owner, "cloudbackup_alert_rule_save.php", &asked).ok();
    let key = saved["webhook_secret"].as_str().expect("a key").to_owned();
    (saved["rule"]["id"].as_i64().expect("id"), key)
}

/// One round of every instance's outbox at once.
fn send(servers: &[&TestServer]) -> usize {
    let apps: Vec<_> = servers.iter().map(|server| server.app().clone()).collect();
    at_once(servers.len(), |at| servers[at].runtime.block_on(outbox::send_due(&apps[at])).expect("send")).iter().sum()
}

/// One look of every instance at once.
fn look(servers: &[&TestServer]) {
    at_once(servers.len(), |at| servers[at].tick());
}

fn open(server: &TestServer, owner: &As) -> BTreeMap<String, String> {
    let alerts = server.get(owner, "cloudbackup_alerts.php", &json!({})).ok();
    let kinds = alerts["alerts"].as_array().expect("alerts").iter();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    kinds.map(|alert| (text(&alert["kind"]), text(&alert["state"]))).collect()
}

#[test]
fn a_cause_is_told_once_by_two_instances_and_again_when_it_is_gone() {
    for database in Database::each() {
        let receiver = Receiver::start();
        let one = TestServer::with(&database, |settings| still(settings, &receiver));
        let owner = one.token(&one.set_up());
        let two = one.beside(&database, |settings| still(settings, &receiver));
        let (_, key) = webhook(&one, &owner, &receiver, json!({}));
        let agent = one.agent(&owner, "HV01", None);
        one.get(&agent, "agent_poll.php", &json!({})).ok();
        look(&[&one, &two]);
        assert!(open(&one, &owner).is_empty(), "{database:?}: nothing is wrong");
        one.pass(0.5);
        for _ in 0..3 {
            look(&[&one, &two, &one, &two]);
            send(&[&one, &two, &one, &two]);
        }
        assert_eq!(open(&two, &owner), BTreeMap::from([("agent_silent".into(), "open".into())]), "{database:?}");
        one.get(&agent, "agent_poll.php", &json!({})).ok();
        for _ in 0..3 {
            look(&[&one, &two]);
            send(&[&one, &two]);
        }
        assert!(open(&one, &owner).is_empty(), "{database:?}");
        let got = receiver.got();
        let events: Vec<&str> = got.iter().map(|got| got.event.as_str()).collect();
        assert_eq!(events, ["opened", "resolved"], "{database:?}");
        for got in &got {
            assert!(got.is_signed_with(&key) && !got.is_signed_with("whs_other"), "{got:?}");
            assert_eq!((&got.body["schema"], &got.body["alert"]["kind"]), (&json!(1), &json!("agent_silent")));
            assert_eq!(got.body["delivery_id"].to_string(), got.delivery);
            assert!(!got.raw.contains(&key), "the body holds the key");
        }
        let history = json!({"alert_id": got[0].body["alert"]["alert_id"]});
        let history = one.get(&owner, "cloudbackup_alerts.php", &history).ok();
        assert_eq!(history["history"].as_array().map(Vec::len), Some(2), "{history}");
        assert_eq!(history["alerts"][0]["delivered"], 2, "{history}");
        two.stop();
        one.stop();
    }
}

#[test]
fn no_message_is_lost_whoever_dies_and_whoever_does_not_answer() {
    for database in Database::each() {
        let receiver = Receiver::start();
        let one = TestServer::with(&database, |settings| still(settings, &receiver));
        let owner = one.token(&one.set_up());
        webhook(&one, &owner, &receiver, json!({}));
        one.agent(&owner, "HV01", None);
        one.pass(0.5);
        one.tick();
        // The row is there. Whoever took it died before it sent anything, or before it could say that it had.
        let taken = "UPDATE s3_alert_deliveries SET status = 'sending', attempts = 1, lease_token = 'x', \
                     lease_until = next_attempt_at WHERE status = 'waiting'";
        assert_eq!(one.change(taken), 1, "{database:?}");
        let two = one.beside(&database, |settings| still(settings, &receiver));
        two.pass(0.01);
        receiver.fails.store(3, Ordering::SeqCst);
        assert_eq!(send(&[&two]), 0, "{database:?}: the receiver is away");
        assert_eq!(send(&[&two]), 0, "{database:?}: it is not asked again at once");
        for _ in 0..4 {
            two.pass(0.2);
            send(&[&two]);
        }
        assert_eq!(receiver.got().len(), 1, "{database:?}");
        let log = two.get(&owner, "cloudbackup_alert_deliveries.php", &json!({})).ok();
        let row = &log["deliveries"][0];
        let told = (&row["delivery_status"], &row["attempts"], &row["answer"]);
        assert_eq!(told, (&json!("delivered"), &json!(5), &json!("200 thanks")), "{log}");
        two.stop();
        one.stop();
    }
}

#[test]
fn an_acknowledged_alert_is_quiet_until_its_time_is_over() {
    let receiver = Receiver::start();
    let server = TestServer::with(&Database::Sqlite, |settings| still(settings, &receiver));
    let session = server.set_up();
    let owner = server.token(&session);
    webhook(&server, &owner, &receiver, json!({"repeat_hours": 4}));
    webhook(&server, &owner, &receiver, json!({"name": "other kinds", "kinds": ["run_failed"]}));
    webhook(&server, &owner, &receiver, json!({"name": "later", "after_minutes": 600}));
    server.agent(&owner, "HV01", None);
    let rounds = |hours: f64| {
        server.pass(hours);
        server.tick();
        send(&[&server]);
        receiver.got().iter().map(|got| got.event.clone()).collect::<Vec<_>>()
    };
    assert_eq!(rounds(0.5), ["opened"]);
    assert_eq!(rounds(3.9), ["opened"]);
    assert_eq!(rounds(0.2), ["opened", "repeated"], "every four hours");
    let alerts = server.get(&owner, "cloudbackup_alerts.php", &json!({})).ok();
    let id = alerts["alerts"][0]["alert_id"].clone();
    let until = server.clock.now().saturating_add(jiff::SignedDuration::from_hours(10)).expect("time").to_string();
    for wrong in ["2000-01-01T00:00:00Z", "2990-01-01T00:00:00Z", "later"] {
        let asked = json!({"alert_ids": [id], "until": wrong});
        server.post(&owner, "cloudbackup_alert_ack.php", &asked).refused(400, "invalid_field");
    }
    let asked = json!({"alert_ids": [id], "until": until, "note": "ticket 4711"});
    assert_eq!(server.post(&owner, "cloudbackup_alert_ack.php", &asked).ok()["changed"], 1);
    assert_eq!(open(&server, &owner)["agent_silent"], "acknowledged");
    assert_eq!(rounds(9.0), ["opened", "repeated"], "quiet; what was to go out later was withdrawn");
    assert_eq!(rounds(1.5), ["opened", "repeated", "repeated", "repeated"], "it is over: both rules tell");
    assert_eq!(open(&server, &owner)["agent_silent"], "open");
    server.stop();
}

/// Acceptance: list, dashboard, alerts, report and metrics say the same of a VM, at every hour.
#[test]
fn everything_says_the_same_of_a_vm_by_the_clock_alone() {
    let server = TestServer::with(&Database::Sqlite, |settings| settings.tick = std::time::Duration::from_secs(3600));
    let session = server.set_up();
    let owner = server.token(&session);
    let agent = server.agent(&owner, "HV01", None);
    server.discover(&agent, &["DC01"]);
    let destination = server.destination(&owner, "one/", None);
    let job = server.job(&owner, &agent, destination, None);
    let mut passed = 0.0;
    for (hours, state, severity) in [
        (1.0, "never_backed_up", None),
        (27.0, "never_backed_up", Some(1)),
        (27.1, "protected", None),
        (54.0, "late", Some(4)),
        (81.0, "at_risk", Some(1)),
    ] {
        if state == "protected" {
            server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]}));
            let run = server.claim(&agent);
            server.back_up(&agent, &run);
        }
        server.pass(hours - passed);
        passed = hours;
        server.tick();
        let vms = server.get(&owner, "cloudbackup_vms.php", &json!({})).ok();
        let dashboard = server.get(&owner, "cloudbackup_dashboard.php", &json!({})).ok();
        let report = server.get(&owner, "cloudbackup_report.php", &json!({})).ok();
        let filter = json!({"kinds": "no_good_point"});
        let alerts = server.get(&owner, "cloudbackup_alerts.php", &filter).ok();
        let metrics = server.get(&owner, "/metrics", &json!({})).body["text"].as_str().expect("text").to_owned();
        assert_eq!(vms["vms"][0]["status"]["state"], state, "after {hours} h: {vms}");
        assert_eq!(dashboard["states"][state], 1, "after {hours} h: {dashboard}");
        assert_eq!(report["vms"][0]["status"]["state"], state, "after {hours} h: {report}");
        assert!(metrics.contains(&format!("e3_vms{{state=\"{state}\"}} 1\n")), "after {hours} h: {metrics}");
        assert_eq!(metrics.matches("e3_vms{").count(), 8, "every state is named: {metrics}");
        let told = alerts["alerts"].as_array().expect("alerts").first();
        assert_eq!(told.map(|alert| alert["severity"].clone()), severity.map(Value::from), "after {hours} h: {alerts}");
        let count = usize::from(severity.is_some());
        assert!(metrics.contains(&format!("e3_alerts{{kind=\"no_good_point\"}} {count}\n")), "{metrics}");
    }
    server.stop();
}

#[test]
fn runs_points_checkpoints_and_tracking_are_told_of() {
    let server = TestServer::with(&Database::Sqlite, |settings| settings.tick = std::time::Duration::from_secs(3600));
    let session = server.set_up();
    let owner = server.token(&session);
    let agent = server.agent(&owner, "HV01", None);
    server.discover(&agent, &["DC01"]);
    let destination = server.destination(&owner, "one/", None);
    let job = server.job(&owner, &agent, destination, None);
    let begin = || {
        server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
        server.claim(&agent)
    };
    let run = begin();
    let events = json!([{"type": "error", "level": "error", "message_id": "HYPERV_SAMPLE_MISMATCH", "code": "x",
        "params_json": {"vm_name": "DC01", "disk_path": "C:\\a.vhdx"}}]);
    let pushed = json!({"run_id": run["run_id"], "claim_id": run["claim_id"], "events": events});
    server.post(&agent, "agent_push_events.php", &pushed).ok();
    let end = json!({"run_id": run["run_id"], "claim_id": run["claim_id"], "status": "failed", "seq": 1,
        "error_summary": "no space"});
    server.post(&agent, "agent_update_run.php", &end).ok();
    let leftover = json!([{"code": "HYPERV_LEFTOVER_CHECKPOINT", "level": "warn",
        "params_json": {"vm_name": "DC01", "created_at": "2020-01-01T00:00:00Z"}}]);
    server.post(&agent, "agent_push_agent_events.php", &json!({"events": leftover})).ok();
    server.tick();
    let kinds: Vec<String> = open(&server, &owner).into_keys().collect();
    assert_eq!(kinds, ["checkpoint_old", "run_failed", "tracking_audit_failed"]);
    let gone = json!([{"code": "HYPERV_MERGE_DONE", "level": "info", "params_json": {"vm_name": "DC01"}}]);
    server.post(&agent, "agent_push_agent_events.php", &json!({"events": gone})).ok();
    let run = begin();
    let points = server.back_up(&agent, &run);
    server.tick();
    assert!(open(&server, &owner).is_empty(), "a good run ends all of it: {:?}", open(&server, &owner));
    server.change(&format!("UPDATE s3_hyperv_backup_points SET verify_status = 'damaged' WHERE id = {}", points[0]));
    server.change("UPDATE s3_cloudbackup_audit_events SET action = 'other' WHERE id = 1");
    server.pass(25.0);
    server.get(&agent, "agent_poll.php", &json!({})).ok();
    server.tick();
    let kinds = open(&server, &owner);
    assert!(kinds.contains_key("point_damaged") && kinds.contains_key("audit_chain_broken"), "{kinds:?}");
    server.stop();
}

#[test]
fn mail_reaches_a_mail_server_and_the_summary_comes_once_a_day() {
    let Some(mails) = MailServer::start() else { return };
    let database = Database::Sqlite;
    let with_mail = |settings: &mut Settings| {
        settings.tick = std::time::Duration::from_secs(3600);
        settings.mail =
            Some(Mail { relay: format!("smtp://127.0.0.1:{}", mails.port), from: "e3 <e3@example.com>".into() });
    };
    let one = TestServer::with(&database, with_mail);
    let owner = one.token(&one.set_up());
    let two = one.beside(&database, with_mail);
    let rule = json!({"name": "noc", "channel": "mail", "target": "noc@example.com, boss@example.com"});
    let rule = one.post(&owner, "cloudbackup_alert_rule_save.php", &rule).ok();
    let summary = json!({"recipients": "a@example.com,b@example.com", "hour": 7, "timezone": "UTC"});
    one.post(&owner, "cloudbackup_report_schedule_save.php", &summary).ok();
    one.agent(&owner, "HV-<b>", None);
    let id = json!({"id": rule["rule"]["id"]});
    one.post(&owner, "cloudbackup_alert_rule_test.php", &id).ok();
    send(&[&one, &two]);
    assert_eq!(mails.mails().len(), 1, "{:?}", mails.mails());
    assert!(mails.mails()[0].contains("Subject: [e3] TEST: Test of the rule noc"), "{:?}", mails.mails());
    one.pass(24.0);
    for _ in 0..2 {
        look(&[&one, &two]);
        send(&[&one, &two]);
    }
    let all = mails.mails();
    let alert: Vec<&String> = all.iter().filter(|mail| mail.contains("ALERT: HV-<b>: host silent")).collect();
    assert_eq!(alert.len(), 1, "{all:?}");
    for part in ["noc@example.com", "boss@example.com", "References: <e3-alert-", "HV-&lt;b&gt;", "text/plain"] {
        assert!(alert[0].contains(part), "{part} in {}", alert[0]);
    }
    let summaries: Vec<&String> = all.iter().filter(|mail| mail.contains("Silent hosts: HV-<b>")).collect();
    assert_eq!(summaries.len(), 1, "{all:?}");
    let headers = summaries[0].split("\n\n").next().expect("headers");
    let visible = headers.lines().filter(|line| !line.starts_with("X-RcptTo"));
    assert!(!visible.into_iter().any(|line| line.contains("b@example.com")), "receivers see each other: {headers}");
    one.pass(24.0);
    look(&[&one, &two]);
    send(&[&one, &two]);
    eventually("the next day's", || {
        mails.mails().iter().filter(|mail| mail.contains("Silent hosts: HV-<b>")).count() == 2
    });
    two.stop();
    one.stop();
}

#[test]
fn rules_are_checked_and_belong_to_their_scope() {
    let server = TestServer::start(&Database::Sqlite);
    let owner = server.set_up();
    let save = |who: &As, body: Value| server.post(who, "cloudbackup_alert_rule_save.php", &body);
    for (case, body) in [
        ("a private address", json!({"name": "n", "channel": "webhook", "target": "https://127.0.0.1/"})),
        ("no TLS", json!({"name": "n", "channel": "webhook", "target": "http://hooks.example.com/"})),
        ("no address", json!({"name": "n", "channel": "mail", "target": "nobody"})),
        ("a header", json!({"name": "n", "channel": "mail", "target": "a@example.com\r\nBcc: b@example.com"})),
        ("no name", json!({"name": " ", "channel": "mail", "target": "a@example.com"})),
        (
            "half of a quiet time",
            json!({"name": "n", "channel": "mail", "target": "a@example.com", "quiet_from": "22:00"}),
        ),
    ] {
        let refused = save(&owner, body);
        assert_eq!((refused.status, refused.body["code"].as_str()), (422, Some("validation_failed")), "{case}");
    }
    let saved = save(&owner, json!({"name": "n", "channel": "webhook", "target": "https://hooks.example.com/"})).ok();
    assert!(saved["webhook_secret"].as_str().is_some_and(|key| key.starts_with("whs_")), "{saved}");
    let id = saved["rule"]["id"].clone();
    let again = save(&owner, json!({"id": id, "quiet_from": "22:00", "quiet_to": "06:00"})).ok();
    assert_eq!((&again["rule"]["target"], &again["webhook_secret"]), (&saved["rule"]["target"], &Value::Null));
    let rules = server.get(&owner, "cloudbackup_alert_rules.php", &json!({})).ok();
    assert!(!rules.to_string().contains(saved["webhook_secret"].as_str().expect("key")), "{rules}");
    assert_eq!(rules["thresholds"]["silent_minutes"], 15);
    let limits = json!({"silent_minutes": 60});
    assert_eq!(server.post(&owner, "cloudbackup_alert_thresholds.php", &limits).ok()["checkpoint_hours"], 24);
    server
        .post(&owner, "cloudbackup_alert_thresholds.php", &json!({"silent_minutes": 1}))
        .refused(400, "invalid_field");
    server.post(&owner, "cloudbackup_alert_rule_delete.php", &json!({"id": id})).ok();
    server.post(&owner, "cloudbackup_alert_rule_test.php", &json!({"id": id})).refused(404, "not_found");
    server.stop();
}

//! What a password alone does not open: codes from the clock, recovery codes, fresh ones for what destroys, a second
//! administrator; and agents that are enrolled by a code that a person types.

mod support;

use serde_json::{Value, json};
use server::access::totp;
use support::database::Database;
use support::{As, PASSWORD, Reply, TestServer, at_once};

/// An authenticator: what a person holds in their hand.
struct Authenticator(Vec<u8>);

impl Authenticator {
    fn of(secret: &str) -> Authenticator {
        let digit = |letter: char| "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".find(letter).expect("base32") as u64;
        let mut bytes = Vec::new();
        for group in secret.chars().collect::<Vec<_>>().chunks(8) {
            let bits = group.iter().fold(0_u64, |bits, letter| bits << 5 | digit(*letter));
            bytes.extend(&bits.to_be_bytes()[3..]);
        }
        Authenticator(bytes)
    }

    fn code(&self, server: &TestServer) -> String {
        totp::code(&self.0, server.clock.now().as_second() / 30)
    }
}

fn mfa(server: &TestServer, who: &As, body: &Value) -> Reply {
    server.post(who, "console_mfa.php", body)
}

/// Sets up a second factor: the new session, the authenticator, the recovery codes.
fn enrol(server: &TestServer, who: &As) -> (As, Authenticator, Vec<String>) {
    let begun = mfa(server, who, &json!({"action": "enrol"})).ok();
    let authenticator = Authenticator::of(begun["secret"].as_str().expect("secret"));
    assert!(begun["otpauth_uri"].as_str().is_some_and(|uri| uri.starts_with("otpauth://totp/e3:")), "{begun}");
    mfa(server, who, &json!({"action": "confirm", "code": "000000x"})).refused(401, "unauthorized");
    let confirmed = mfa(server, who, &json!({"action": "confirm", "code": authenticator.code(server)}));
    let codes = confirmed.body["recovery_codes"].as_array().expect("codes").clone();
    let codes: Vec<String> = codes.iter().map(|code| code.as_str().expect("code").to_owned()).collect();
    assert_eq!(codes.len(), 10);
    (server.session(confirmed), authenticator, codes)
}

/// A later code, for a session that showed none yet.
fn verify(server: &TestServer, who: &As, authenticator: &Authenticator) -> As {
    server.pass(1.0 / 60.0);
    server.session(mfa(server, who, &json!({"action": "verify", "code": authenticator.code(server)})))
}

#[test]
fn an_account_with_a_second_factor_opens_with_both_and_each_code_once() {
    for database in Database::each() {
        let server = TestServer::start(&database);
        let owner = server.set_up();
        server.person(&owner, "clerk@example.com", "viewer", None);
        let login = || server.login("clerk@example.com", PASSWORD);
        let jobs = |who: &As| server.get(who, "cloudbackup_list_jobs.php", &json!({}));
        let first = server.session(login());
        jobs(&first).ok();
        let (renewed, authenticator, recovery) = enrol(&server, &first);
        jobs(&first).refused(401, "session_expired");
        jobs(&renewed).ok();

        let answer = login();
        assert_eq!((&answer.body["mfa"], &answer.body["user"]["mfa_enrolled"]), (&json!("verify"), &json!(true)));
        let half = server.session(answer);
        assert_eq!(jobs(&half).refused(403, "mfa_required")["details"]["mfa"], "verify");
        assert_eq!(server.get(&half, "console_session.php", &json!({})).ok()["mfa"], "verify");
        server.post(&half, "e3backup_api_token_create.php", &json!({})).refused(403, "mfa_required");
        mfa(&server, &half, &json!({"action": "enrol"})).refused(403, "mfa_required");
        mfa(&server, &half, &json!({"action": "remove"})).refused(403, "mfa_required");

        // The code that confirmed is used up; of several callers with the next one, one is let in.
        let code = authenticator.code(&server);
        mfa(&server, &half, &json!({"action": "verify", "code": code})).refused(401, "unauthorized");
        server.pass(1.0 / 60.0);
        let sessions: Vec<As> = (0..4).map(|_| server.session(login())).collect();
        let code = authenticator.code(&server);
        let replies = at_once(4, |at| mfa(&server, &sessions[at], &json!({"action": "verify", "code": code})));
        assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), 1, "{database:?}: {replies:?}");

        let half = server.session(login());
        let typed = recovery[3].to_uppercase().replace('-', " ");
        let by_recovery = mfa(&server, &half, &json!({"action": "verify", "recovery_code": typed}));
        assert_eq!(by_recovery.body["recovery_codes_left"], 9, "{}", by_recovery.body);
        jobs(&server.session(by_recovery)).ok();
        let half = server.session(login());
        let again = json!({"action": "verify", "recovery_code": recovery[3]});
        mfa(&server, &half, &again).refused(401, "unauthorized");
        server.stop();
    }
}

#[test]
fn wrong_codes_are_counted_for_the_account_and_rest_it() {
    let server = TestServer::start(&Database::Sqlite);
    let owner = server.set_up();
    server.person(&owner, "clerk@example.com", "viewer", None);
    let first = server.session(server.login("clerk@example.com", PASSWORD));
    let (_, authenticator, _) = enrol(&server, &first);
    for at in 0..8 {
        // A new session does not help.
        let half = server.session(server.login("clerk@example.com", PASSWORD));
        mfa(&server, &half, &json!({"action": "verify", "code": format!("00000{at}")})).refused(401, "unauthorized");
    }
    server.pass(1.0 / 60.0);
    let half = server.session(server.login("clerk@example.com", PASSWORD));
    let right = || json!({"action": "verify", "code": authenticator.code(&server)});
    let waits = mfa(&server, &half, &right()).refused(429, "rate_limited");
    assert!(waits["retry_after_secs"].as_i64().is_some_and(|seconds| seconds > 600), "{waits}");
    server.pass(0.26);
    mfa(&server, &half, &right()).ok();
    // Who lost everything is let in by an owner, whose own is fresh; their sessions end.
    let users = server.get(&owner, "e3backup_user_list.php", &json!({})).ok();
    let clerk = users["users"].as_array().expect("users").iter().find(|user| user["email"] == "clerk@example.com");
    let reset = json!({"id": clerk.expect("clerk")["id"], "reset_mfa": true});
    server.post(&owner, "e3backup_user_update.php", &reset).refused(403, "mfa_required");
    let (owner, ..) = enrol(&server, &owner);
    assert_eq!(server.post(&owner, "e3backup_user_update.php", &reset).ok()["user"]["mfa_enrolled"], false);
    let free = server.session(server.login("clerk@example.com", PASSWORD));
    server.get(&free, "cloudbackup_list_jobs.php", &json!({})).ok();
    server.stop();
}

#[test]
fn owners_and_administrators_need_one_unless_their_client_says_otherwise() {
    let server = TestServer::start(&Database::Sqlite);
    let owner = server.set_up_strictly();
    let jobs = |who: &As| server.get(who, "cloudbackup_list_jobs.php", &json!({}));
    // The set-up link was printed on the server's own terminal.
    jobs(&owner).ok();
    for (role, expected) in [("viewer", "none"), ("operator", "none"), ("admin", "enrol"), ("owner", "enrol")] {
        let email = format!("{role}@example.org");
        let asked = json!({"email": email, "password": PASSWORD, "role": role});
        server.post(&owner, "e3backup_user_create.php", &asked).ok();
        let answer = server.login(&email, PASSWORD);
        assert_eq!(answer.body["mfa"], expected, "{role}");
        let session = server.session(answer);
        if expected == "none" {
            jobs(&session).ok();
            continue;
        }
        assert_eq!(jobs(&session).refused(403, "mfa_required")["details"]["mfa"], "enrol", "{role}");
        let (session, ..) = enrol(&server, &session);
        jobs(&session).ok();
        mfa(&server, &session, &json!({"action": "remove"})).refused(422, "validation_failed");
    }
    let relaxed = json!({"mfa_required_roles": ["owner"]});
    let admin = server.session(server.login("viewer@example.org", PASSWORD));
    server.post(&admin, "cloudbackup_settings.php", &relaxed).refused(403, "forbidden_role");
    server.post(&owner, "cloudbackup_settings.php", &relaxed).ok();
    let asked = json!({"email": "late@example.org", "password": PASSWORD, "role": "admin"});
    server.post(&owner, "e3backup_user_create.php", &asked).ok();
    jobs(&server.session(server.login("late@example.org", PASSWORD))).ok();
    server.stop();
}

/// A client with a job, one point of it, and two administrators with second factors.
struct Destructible {
    server: TestServer,
    owner: As,
    job: Value,
    point: i64,
}

fn destructible(database: &Database) -> Destructible {
    let server = TestServer::start(database);
    let owner = server.set_up();
    let agent = server.agent(&owner, "HV01", None);
    server.discover(&agent, &["DC01"]);
    let destination = server.destination(&owner, "one/", None);
    let job = server.job(&owner, &agent, destination, None);
    server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
    let run = server.claim(&agent);
    let point = server.back_up(&agent, &run)[0];
    Destructible { server, owner, job, point }
}

#[test]
fn what_destroys_needs_a_second_factor_of_the_last_five_minutes() {
    let Destructible { server, owner, job, point } = destructible(&Database::Sqlite);
    let policy = |daily: i64, who: &As| {
        let job = server.get(who, "cloudbackup_get_job.php", &json!({"job_id": job["job_id"]})).ok();
        let asked = json!({"job_id": job["job"]["job_id"], "version": job["job"]["version"], "retention_json": {"daily": daily}});
        server.post(who, "cloudbackup_update_job.php", &asked)
    };
    let delete = |who: &As| {
        let asked = json!({"backup_point_ids": [point], "confirm_phrase": "1", "reason": "no longer needed"});
        server.post(who, "cloudbackup_point_delete.php", &asked)
    };
    policy(30, &owner).ok();
    let admin = server.person(&owner, "admin@example.com", "admin", None);
    let plain = server.token(&admin);
    for who in [&admin, &plain] {
        delete(who).refused(403, "mfa_required");
        policy(7, who).refused(403, "mfa_required");
        // What destroys nothing does not need it.
        policy(31, who).ok();
    }
    let wants = json!({"scopes": ["destroy"]});
    server.post(&admin, "e3backup_api_token_create.php", &wants).refused(403, "mfa_required");
    let (admin, authenticator, _) = enrol(&server, &admin);
    policy(20, &admin).ok();
    server.pass(5.1 / 60.0);
    delete(&admin).refused(403, "mfa_required");
    let admin = verify(&server, &admin, &authenticator);
    let deleted = delete(&admin).ok();
    assert_eq!(deleted["pending"], json!([point]));
    let listed = server.get(&admin, "cloudbackup_pending_list.php", &json!({})).ok();
    assert_eq!((&listed["total"], &listed["pending"][0]["backup_point_id"]), (&json!(1), &json!(point)), "{listed}");
    server.post(&admin, "cloudbackup_pending_undo.php", &json!({"backup_point_ids": [point]})).ok();
    server.post(&admin, "cloudbackup_pending_undo.php", &json!({"backup_point_ids": [point]})).refused(409, "conflict");
    // A token that is made now, or that names the scope now, has it for good; the hour is the client's to set.
    let strong = server.token(&admin);
    server.post(&server.token(&owner), "cloudbackup_settings.php", &json!({"delete_delay_hours": 48})).ok();
    server.pass(24.0);
    delete(&strong).ok();
    server.pass(47.0);
    server.tick();
    let waits = "SELECT COUNT(*) FROM s3_hyperv_backup_points WHERE delete_state = 'pending'";
    assert_eq!(server.count(waits), 1, "an hour early");
    server.pass(1.1);
    server.tick();
    assert_eq!(server.count(waits), 0, "an agent is asked");
    server.stop();
}

#[test]
fn with_four_eyes_nothing_goes_without_a_second_administrator() {
    for database in Database::each() {
        let Destructible { server, owner, point, .. } = destructible(&database);
        let owner = server.token(&owner);
        server.post(&owner, "cloudbackup_settings.php", &json!({"four_eyes": true})).ok();
        let admin = |name: &str| {
            let session = server.person(&owner, &format!("{name}@example.com"), "admin", None);
            enrol(&server, &session)
        };
        let (one, ..) = admin("one");
        let (other, other_hand, _) = admin("other");
        let asked = json!({"backup_point_ids": [point], "confirm_phrase": "1", "reason": "moved away"});
        let pending = "SELECT COUNT(*) FROM s3_hyperv_backup_points WHERE delete_state IS NOT NULL";
        let ask = || {
            let reply = server.post(&one, "cloudbackup_point_delete.php", &asked);
            assert_eq!((reply.status, &reply.body["status"]), (202, &json!("pending")), "{}", reply.body);
            assert_eq!(server.count(pending), 0, "{database:?}: nothing happened yet");
            reply.ok()["approval_id"].clone()
        };
        let decide = |who: &As, id: &Value, approve: bool| {
            server.post(who, "cloudbackup_approval_decide.php", &json!({"approval_id": id, "approve": approve}))
        };
        let refused = ask();
        decide(&one, &refused, true).refused(403, "forbidden_role");
        decide(&other, &refused, false).ok();
        decide(&other, &refused, true).refused(409, "conflict");

        let wanted = ask();
        let seen = server.get(&other, "cloudbackup_approval_list.php", &json!({})).ok();
        let seen = &seen["approvals"];
        assert_eq!(seen.as_array().map(Vec::len), Some(1), "{seen}");
        assert_eq!(seen[0]["reason"], "moved away");
        assert_eq!(seen[0]["requested_by_email"], "one@example.com");
        server.pass(5.1 / 60.0);
        decide(&other, &wanted, true).refused(403, "mfa_required");
        let other = verify(&server, &other, &other_hand);
        let replies = at_once(3, |_| decide(&other, &wanted, true));
        assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), 1, "{database:?}: {replies:?}");
        assert_eq!(server.count(pending), 1, "{database:?}");

        // Who asked is no administrator any more: their wish is worth nothing.
        server.post(&owner, "cloudbackup_pending_undo.php", &json!({"backup_point_ids": [point]})).ok();
        let one = server.session(server.login("one@example.com", PASSWORD));
        assert_eq!(server.get(&one, "cloudbackup_list_jobs.php", &json!({})).status, 403);
        let orphan = server.post(&owner, "cloudbackup_point_delete.php", &asked).ok()["approval_id"].clone();
        let late = server.post(&owner, "cloudbackup_point_delete.php", &asked).ok()["approval_id"].clone();
        server.change("UPDATE s3_console_roles SET role = 'viewer' WHERE user_id = 1");
        decide(&other, &orphan, true).refused(409, "conflict");
        server.change("UPDATE s3_console_roles SET role = 'owner' WHERE user_id = 1");
        // Taking four eyes away needs them too.
        let reply = server.post(&owner, "cloudbackup_settings.php", &json!({"four_eyes": false}));
        assert_eq!(reply.status, 202, "{}", reply.body);
        let settings = server.get(&other, "cloudbackup_settings.php", &json!({})).ok();
        assert_eq!(settings["four_eyes"], true, "{settings}");
        server.pass(73.0);
        let other = server.session(server.login("other@example.com", PASSWORD));
        let other = verify(&server, &other, &other_hand);
        decide(&other, &late, true).refused(409, "conflict");
        let gone = server.get(&other, "cloudbackup_approval_list.php", &json!({"approval_status": "expired"})).ok();
        assert_eq!(gone["total"], 3, "{gone}");
        assert_eq!(server.get(&owner, "cloudbackup_audit.php", &json!({})).ok()["chain_intact"], true);
        server.stop();
    }
}

#[test]
fn a_restore_over_a_vm_needs_what_a_deletion_needs() {
    for database in Database::each() {
        let Destructible { server, owner, point, .. } = destructible(&database);
        // Made now, it may destroy for good.
        let owner = server.token(&owner);
        let restore = |who: &As, overwrites: bool| {
            let options = json!({"overwrite_existing": overwrites});
            let asked = json!({"backup_point_id": point, "restore_options": options});
            server.post(who, "cloudbackup_hyperv_start_restore.php", &asked)
        };
        let queued = || server.count("SELECT COUNT(*) FROM s3_cloudbackup_run_commands WHERE type = 'hyperv_restore'");
        let admin = server.person(&owner, "admin@example.com", "admin", None);
        restore(&admin, true).refused(403, "mfa_required");
        assert_eq!(queued(), 0, "{database:?}");
        restore(&admin, false).ok();
        let (admin, ..) = enrol(&server, &admin);
        restore(&admin, true).ok();
        assert_eq!(queued(), 2, "{database:?}");
        server.pass(5.1 / 60.0);
        restore(&admin, true).refused(403, "mfa_required");

        server.post(&owner, "cloudbackup_settings.php", &json!({"four_eyes": true})).ok();
        let other = server.person(&owner, "other@example.com", "admin", None);
        let (other, ..) = enrol(&server, &other);
        let reply = restore(&owner, true);
        assert_eq!((reply.status, &reply.body["status"]), (202, &json!("pending")), "{}", reply.body);
        assert_eq!(queued(), 2, "{database:?}: nothing happened yet");
        let consent = json!({"approval_id": reply.body["approval_id"], "approve": true});
        let done = server.post(&other, "cloudbackup_approval_decide.php", &consent).ok();
        assert!(done["restore_run_id"].is_number(), "{done}");
        assert_eq!(queued(), 3, "{database:?}");
        server.stop();
    }
}

#[test]
fn an_agent_is_enrolled_by_a_code_that_an_administrator_types() {
    for database in Database::each() {
        let server = TestServer::start(&database);
        let owner = server.token(&server.set_up());
        let about =
            json!({"hostname": "HV09", "device_id": "device-9", "agent_os": "windows", "host_role": "hyperv_host"});
        let ask = |body: &Value| server.post(&As::Nobody, "agent_device_code.php", body);
        let begun = ask(&about);
        assert_eq!(begun.status, 202, "{}", begun.body);
        let begun = begun.ok();
        let poll = || ask(&json!({"device_code": begun["device_code"]}));
        assert_eq!(poll().ok()["status"], "pending");
        let typed = begun["user_code"].as_str().expect("code").to_lowercase().replace('-', " ");
        let show = |who: &As| server.get(who, "e3backup_device_code.php", &json!({"user_code": typed}));
        let viewer = server.person(&owner, "viewer@example.com", "viewer", None);
        show(&viewer).refused(403, "forbidden_role");
        let shown = show(&owner).ok();
        assert_eq!((&shown["hostname"], &shown["agent_os"]), (&json!("HV09"), &json!("windows")), "{shown}");
        let confirm = |code: &str, approve: bool| {
            server.post(&owner, "e3backup_device_confirm.php", &json!({"user_code": code, "approve": approve}))
        };
        confirm("BBBB-BBBB", true).refused(404, "not_found");
        assert_eq!(poll().ok()["status"], "pending", "nobody confirmed");
        confirm(&typed, true).ok();
        confirm(&typed, false).refused(404, "not_found");
        let replies = at_once(3, |_| poll());
        let enrolled: Vec<&Reply> = replies.iter().filter(|reply| reply.status == 200).collect();
        assert_eq!(enrolled.len(), 1, "{database:?}: {replies:?}");
        let enrolled = &enrolled[0].body;
        let token = enrolled["agent_token"].as_str().expect("token").to_owned();
        let agent = As::Agent { id: enrolled["agent_id"].as_i64().expect("id"), token, boot: "b".into() };
        server.get(&agent, "agent_poll.php", &json!({})).ok();
        poll().refused(401, "token_exhausted");

        let refused = ask(&about).ok();
        confirm(refused["user_code"].as_str().expect("code"), false).ok();
        ask(&json!({"device_code": refused["device_code"]})).refused(401, "token_revoked");
        let late = ask(&about).ok();
        server.pass(0.17);
        confirm(late["user_code"].as_str().expect("code"), true).refused(404, "not_found");
        ask(&json!({"device_code": late["device_code"]})).refused(401, "token_expired");
        ask(&json!({"device_code": "dev_wrong"})).refused(401, "unauthorized");
        // Guessing is limited.
        for _ in 0..8 {
            confirm("CCCC-CCCC", true);
        }
        confirm("CCCC-CCCC", true).refused(429, "rate_limited");
        // A password enrols nothing unless the server is told so.
        let login = json!({"email": "owner@example.com", "password": PASSWORD, "hostname": "HV10"});
        server.post(&As::Nobody, "agent_login.php", &login).refused(403, "forbidden_role");
        server.stop();
    }
}

#[test]
fn where_it_is_allowed_an_agent_is_enrolled_by_a_password_that_is_the_only_factor() {
    let server = TestServer::with(&Database::Sqlite, |settings| settings.agent_password_login = true);
    let owner = server.set_up();
    let login = |email: &str, password: &str| {
        let asked = json!({"email": email, "password": password, "hostname": "HV10"});
        server.post(&As::Nobody, "agent_login.php", &asked)
    };
    server.person(&owner, "viewer@example.com", "viewer", None);
    login("owner@example.com", "not the password").refused(401, "unauthorized");
    login("viewer@example.com", PASSWORD).refused(403, "forbidden_role");
    assert!(login("owner@example.com", PASSWORD).ok()["agent_token"].is_string());
    enrol(&server, &owner);
    login("owner@example.com", PASSWORD).refused(403, "forbidden_role");
    server.stop();
}

//! People: the first account, sessions and their end, wrong passwords, roles, tenants, tokens, the audit log.

mod support;

use serde_json::{Value, json};
use support::database::Database;
use support::{As, PASSWORD, TestServer, at_once};

#[test]
fn the_first_account_is_made_once_with_the_printed_link() {
    for database in Database::each() {
        let server = TestServer::start(&database);
        let token = server.setup_token.clone().expect("a link");
        let asked =
            |token: &str, email: &str| json!({"token": token, "email": email, "password": PASSWORD, "name": "First"});
        let set_up = |body: &Value| server.post(&As::Nobody, "console_setup.php", body);
        set_up(&asked("set_wrong", "a@example.com")).refused(401, "unauthorized");
        set_up(&asked(&token, "no address")).refused(400, "invalid_field");
        let mut short = asked(&token, "a@example.com");
        short["password"] = json!("short");
        set_up(&short).refused(400, "invalid_field");
        let replies = at_once(4, |at| set_up(&asked(&token, &format!("a{at}@example.com"))));
        assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), 1, "{database:?}: {replies:?}");
        assert_eq!(server.count("SELECT COUNT(*) FROM s3_console_users"), 1);
        set_up(&asked(&token, "late@example.com")).refused(401, "unauthorized");
        assert_eq!(server.fingerprint().len(), 95, "{}", server.fingerprint());
        server.stop();
    }
}

#[test]
fn a_session_ends_when_idle_and_after_half_a_day() {
    let server = TestServer::start(&Database::Sqlite);
    let owner = server.set_up();
    let ask = |who: &As| server.get(who, "console_session.php", &json!({}));
    let seen = ask(&owner).ok();
    assert_eq!((&seen["user"]["role"], &seen["user"]["email"]), (&json!("owner"), &json!("owner@example.com")));
    server.pass(29.0 / 60.0);
    ask(&owner).ok();
    server.pass(31.0 / 60.0);
    ask(&owner).refused(401, "session_expired");
    let again = server.session(server.login("OWNER@example.com", PASSWORD));
    for _ in 0..24 {
        server.pass(0.49);
        ask(&again).ok();
    }
    server.pass(0.49);
    ask(&again).refused(401, "session_expired");
    let last = server.session(server.login("owner@example.com", PASSWORD));
    let reply = server.post(&last, "console_logout.php", &json!({}));
    assert_eq!(reply.cookie.as_deref(), Some("__Host-e3_session="));
    ask(&last).refused(401, "session_expired");
    server.stop();
}

#[test]
fn a_wrong_password_and_an_unknown_account_are_answered_alike_and_not_for_ever() {
    for database in Database::each() {
        let server = TestServer::start(&database);
        let owner = server.token(&server.set_up());
        server.person(&owner, "clerk@example.com", "viewer", None);
        let mut wrong = server.login("clerk@example.com", "not the password").refused(401, "unauthorized");
        let mut unknown = server.login("nobody@example.com", "not the password").refused(401, "unauthorized");
        for answer in [&mut wrong, &mut unknown] {
            answer["request_id"] = json!("");
        }
        assert_eq!(wrong, unknown, "{database:?}");
        for _ in 0..6 {
            server.login("clerk@example.com", "not the password").refused(401, "unauthorized");
        }
        let blocked = server.login("clerk@example.com", PASSWORD).refused(429, "rate_limited");
        assert!(blocked["retry_after_secs"].as_i64().is_some_and(|seconds| seconds > 600), "{blocked}");
        server.pass(0.26);
        server.session(server.login("clerk@example.com", PASSWORD));
        let audit = server.get(&owner, "cloudbackup_audit.php", &json!({"action": "login.failed"})).ok();
        assert_eq!(audit["events"].as_array().map(Vec::len), Some(7), "{audit}");
        // Without an Origin of this server nobody signs in: a page elsewhere could do it for them.
        let asked = json!({"email": "clerk@example.com", "password": PASSWORD});
        server.post(&As::Nobody, "console_login.php", &asked).refused(403, "csrf_failed");
        server.stop();
    }
}

#[test]
fn a_changed_account_loses_its_sessions_and_its_tokens_shrink_with_it() {
    let server = TestServer::start(&Database::Sqlite);
    let owner = server.token(&server.set_up());
    let admin = server.person(&owner, "admin@example.com", "admin", None);
    let token = server.token(&admin);
    server.post(&admin, "e3backup_api_token_create.php", &json!({"role": "owner"})).refused(403, "forbidden_role");
    let viewer = server.post(&admin, "e3backup_api_token_create.php", &json!({"role": "viewer"})).ok();
    let viewer = As::Token(viewer["token"].as_str().expect("token").into());
    server.get(&viewer, "e3backup_token_list.php", &json!({})).refused(403, "forbidden_role");
    server.get(&token, "e3backup_token_list.php", &json!({})).ok();
    let users = server.get(&owner, "e3backup_user_list.php", &json!({})).ok();
    let id_of = |email: &str| {
        users["users"].as_array().expect("users").iter().find(|user| user["email"] == email).expect("user")["id"]
            .clone()
    };
    let change = |id: &Value, body: Value| {
        let mut asked = body;
        asked["id"] = id.clone();
        server.post(&owner, "e3backup_user_update.php", &asked)
    };
    change(&id_of("admin@example.com"), json!({"role": "viewer"})).ok();
    server.get(&admin, "console_session.php", &json!({})).refused(401, "session_expired");
    server.get(&token, "e3backup_token_list.php", &json!({})).refused(401, "unauthorized");
    server.get(&viewer, "cloudbackup_list_jobs.php", &json!({})).ok();
    change(&id_of("admin@example.com"), json!({"status": "disabled"})).ok();
    server.get(&viewer, "cloudbackup_list_jobs.php", &json!({})).refused(401, "unauthorized");
    assert_eq!(server.login("admin@example.com", PASSWORD).status, 401);
    change(&id_of("owner@example.com"), json!({"role": "admin"})).refused(422, "validation_failed");
    server.stop();
}

#[test]
fn a_suspended_tenant_is_shut_out_with_its_agents() {
    let server = TestServer::start(&Database::Sqlite);
    let owner = server.token(&server.set_up());
    let tenant =
        server.post(&owner, "e3backup_tenant_create.php", &json!({"name": "One", "slug": "one"})).ok()["tenant"]["id"]
            .clone();
    let id = tenant.as_i64().expect("id");
    let inside = server.person(&owner, "inside@example.com", "admin", Some(id));
    let agent = server.agent(&owner, "HV01", Some(id));
    server.get(&agent, "agent_poll.php", &json!({})).ok();
    server.post(&owner, "e3backup_tenant_update.php", &json!({"id": tenant, "status": "suspended"})).ok();
    server.get(&agent, "agent_poll.php", &json!({})).refused(401, "unauthorized");
    server.get(&inside, "console_session.php", &json!({})).refused(401, "session_expired");
    assert_eq!(server.login("inside@example.com", PASSWORD).status, 401);
    server.post(&owner, "e3backup_tenant_update.php", &json!({"id": tenant, "status": "active"})).ok();
    server.get(&agent, "agent_poll.php", &json!({})).ok();
    server.stop();
}

#[test]
fn the_audit_log_notices_a_changed_and_a_missing_entry() {
    for database in Database::each() {
        let server = TestServer::start(&database);
        let owner = server.token(&server.set_up());
        let replies = at_once(6, |_| server.post(&owner, "e3backup_token_create.php", &json!({})));
        assert!(replies.iter().all(|reply| reply.status == 200), "{database:?}: {replies:?}");
        let intact = || server.get(&owner, "cloudbackup_audit.php", &json!({})).ok()["chain_intact"].clone();
        assert_eq!(intact(), true, "{database:?}");
        let sql = "UPDATE s3_cloudbackup_audit_events SET action = 'token.revoke' WHERE action = 'token.create'";
        assert_eq!(server.change(sql), 6);
        assert_eq!(intact(), false, "{database:?}: changed entries");
        server.change("UPDATE s3_cloudbackup_audit_events SET action = 'token.create' WHERE action = 'token.revoke'");
        assert_eq!(intact(), true, "{database:?}");
        server.change("DELETE FROM s3_cloudbackup_audit_events WHERE action = 'token.create' AND entity_id = '6'");
        assert_eq!(intact(), false, "{database:?}: a missing entry");
        server.stop();
    }
}

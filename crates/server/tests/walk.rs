//! Every route, from the router's own table, called by those who may not: nothing is told and nothing changes.
//!
//! A leak is an answer that differs from the one for an id that does not exist, or any changed row. A new route is walked
//! without being named here; a new field that names a row fails the test until it is given one.

mod support;

use std::collections::BTreeMap;

use control_api::words::Role;
use serde_json::{Map, Value, json};
use server::access::{Need, allows};
use server::http::routes::{self, Access, Endpoint};
use server::store::schema;
use support::database::Database;
use support::{As, Reply, TestServer, fields};

/// An id that no row has.
const NOBODY: i64 = 987_654;

/// Rows of one client, by the field that names them.
type Rows = BTreeMap<&'static str, Value>;

/// Everything that a client can have, so that every field that names a row has one to name.
struct Client {
    rows: Rows,
    agent: As,
}

/// Makes a client's rows: an agent with a VM in a job, a finished run with a point, a run in progress, commands, tokens.
fn furnish(server: &TestServer, owner: &As, prefix: &str, tenant: Option<i64>) -> Client {
    let agent = server.agent(owner, &format!("HV-{prefix}"), tenant);
    server.discover(&agent, &[&format!("VM-{prefix}")]);
    let destination = server.destination(owner, &format!("{prefix}/"), tenant);
    let job = server.job(owner, &agent, destination, tenant);
    server.post(owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
    let run = server.claim(&agent);
    let points = server.back_up(&agent, &run);
    server.post(owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
    let live = server.claim(&agent);
    let group = json!({"name": prefix, "tenant_id": tenant, "agent_ids": [agent.id()]});
    let group = server.post(owner, "e3backup_host_group_create.php", &group).ok();
    let command = server.post(owner, "agent_list_disks.php", &json!({"agent_id": agent.id()})).ok();
    let token = server.post(owner, "e3backup_token_create.php", &json!({"tenant_id": tenant})).ok();
    let api = server.post(owner, "e3backup_api_token_create.php", &json!({})).ok();
    let email = format!("{prefix}@example.com");
    let user = json!({"email": email, "password": support::PASSWORD, "role": "viewer", "tenant_id": tenant});
    let user = server.post(owner, "e3backup_user_create.php", &user).ok();
    let rule = json!({
        "name": format!("rule-{prefix}"), "channel": "mail", "target": format!("{prefix}@example.com"),
        "tenant_id": tenant,
    });
    let rule = server.post(owner, "cloudbackup_alert_rule_save.php", &rule).ok();
    let summary = json!({"recipients": format!("{prefix}@example.com"), "tenant_id": tenant});
    server.post(owner, "cloudbackup_report_schedule_save.php", &summary).ok();
    // A damaged point is an alert.
    let damaged = points.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
    server.change(&format!("UPDATE s3_hyperv_backup_points SET verify_status = 'damaged' WHERE id IN ({damaged})"));
    server.tick();
    server.change(&format!("UPDATE s3_hyperv_backup_points SET verify_status = NULL WHERE id IN ({damaged})"));
    let subject = format!("SELECT MAX(id) FROM s3_alerts WHERE subject_name = 'VM-{prefix}'");
    let alert = server.count(&subject);
    assert!(alert > 0, "no alert of VM-{prefix}");
    let approval = approval(server, agent.id());
    let provider = json!({"name": prefix, "slug": prefix, "issuer": "https://id.example.com", "oidc_client_id": "e3"});
    let provider = server.post(owner, "e3backup_oidc_save.php", &provider).ok()["provider"]["id"].clone();
    let rows = Rows::from([
        ("approval", json!(approval)),
        ("provider", provider),
        ("alert_id", json!(alert)),
        ("alert rule", rule["rule"]["id"].clone()),
        ("job_id", job["job_id"].clone()),
        ("run_id", live["run_id"].clone()),
        ("claim_id", live["claim_id"].clone()),
        ("vm_id", run["hyperv_vms"][0]["vm_id"].clone()),
        ("agent_id", json!(agent.id())),
        ("backup_point_id", json!(points[0])),
        ("command_id", command["command_id"].clone()),
        ("dest_bucket_id", json!(destination)),
        ("enrolment token", token["id"].clone()),
        ("API token", api["id"].clone()),
        ("destination", json!(destination)),
        ("user", user["user"]["id"].clone()),
        ("host group", group["host_group"]["id"].clone()),
    ]);
    Client { rows, agent }
}

/// An approval that waits, of the client and tenant of that agent.
fn approval(server: &TestServer, agent: i64) -> i64 {
    let sql = format!(
        "INSERT INTO s3_console_approvals (client_id, tenant_id, endpoint, fields_json, entity_type, entity_id, \
         requested_by, created_at, expires_at) SELECT client_id, tenant_id, 'cloudbackup_point_delete.php', '{{}}', \
         'point', '1', 1, created_at, '2999-01-01T00:00:00.000Z' FROM s3_cloudbackup_agents WHERE id = {agent}"
    );
    server.change(&sql);
    server.count("SELECT MAX(id) FROM s3_console_approvals")
}

/// A body that reaches the query for a row: ids out of `rows` (or one that nobody has), the rest as it has to be.
fn body(endpoint: &Endpoint, rows: Option<&Rows>) -> Value {
    let row = |key: &str| rows.map_or(json!(NOBODY), |rows| rows.get(key).cloned().unwrap_or(json!(NOBODY)));
    let mut body = Map::new();
    for field in fields(endpoint).keys() {
        let value = match field.as_str() {
            "job_id" | "run_id" | "vm_id" | "agent_id" | "backup_point_id" | "command_id" | "dest_bucket_id"
            | "alert_id" => row(field),
            "alert_ids" => json!([row("alert_id")]),
            "host_group_id" if endpoint.name.contains("create") => continue,
            "host_group_id" => row("host group"),
            "target_agent_id" | "host" => continue,
            "agent_uuid" => continue,
            // A scope's own filter or the place of something new; foreign ones are tried by themselves below.
            "tenant_id" if endpoint.name != "e3backup_tenant_delete.php" => continue,
            "vm_ids" => json!([row("vm_id")]),
            "agent_ids" => json!([row("agent_id")]),
            "backup_point_ids" => json!([row("backup_point_id")]),
            "id" => match endpoint.name {
                "e3backup_token_revoke.php" => row("enrolment token"),
                "e3backup_api_token_revoke.php" => row("API token"),
                "cloudbackup_destination_update.php" => row("destination"),
                "e3backup_user_update.php" => row("user"),
                "e3backup_tenant_update.php" => row("tenant"),
                "e3backup_oidc_save.php" => row("provider"),
                "e3backup_host_group_update.php" => row("host group"),
                "cloudbackup_alert_rule_save.php"
                | "cloudbackup_alert_rule_delete.php"
                | "cloudbackup_alert_rule_test.php" => row("alert rule"),
                _ => continue,
            },
            "claim_id" => rows.and_then(|rows| rows.get("claim_id").cloned()).unwrap_or(json!("00")),
            "provider_id" => row("provider"),
            "oidc_client_id" => continue,
            "destination_id" => row("destination"),
            "user_id" => row("user"),
            "view_id" => json!(NOBODY),
            "version_label" | "platform" | "signature" => json!("x"),
            "download_url" => json!("https://updates.example.com/agent"),
            "sha256" => json!("0".repeat(64)),
            "size_bytes" => json!(1),
            "tenant_id" => row("tenant"),
            "approval_id" => row("approval"),
            "approve" => json!(true),
            "user_code" => json!("BBBB-BBBB"),
            "action" if endpoint.name == "console_mfa.php" => json!("verify"),
            "operation_id" | "session_id" | "mount_id" | "update_job_id" | "base_backup_point_id" => json!(NOBODY),
            "boot_id" | "install_id" | "device_id" | "batch_id" | "manifest_id" | "repository_id" | "checkpoint_id"
            | "reference_point_id" | "rct_ids" | "active_mount_ids" | "since_id" => continue,
            "confirm_phrase" if endpoint.name.contains("point") => json!("1"),
            "confirm_phrase" => json!("nightly"),
            "version" => json!(1),
            "hold" | "enabled" => json!(true),
            "status" => match endpoint.name {
                "e3backup_agent_toggle.php" => json!("disabled"),
                "agent_complete_command.php" => json!("completed"),
                "agent_complete_repo_operation.php" => json!("success"),
                "agent_hyperv_update_session.php" => json!("Active"),
                "cloudnas_update_status.php" => json!("mounted"),
                _ => continue,
            },
            "result" => json!({}),
            "operation_token" => json!("op_x"),
            "volumes" => json!([]),
            "chunk_seq" => json!(0),
            "content_b64" => json!("H4sIAAAAAAAAA0tMBABpTxE9AgAAAA=="),
            "encoding" => json!("gzip"),
            "state" if endpoint.name == "agent_update_progress.php" => json!("queued"),
            "seq" => json!(50),
            "name" if endpoint.name.contains("job") || endpoint.name.contains("update") => json!("renamed"),
            "name" if endpoint.name.contains("host_group") => json!("new"),
            other => {
                let names_a_row =
                    other == "id" || other.ends_with("_id") || other.ends_with("_ids") || other.ends_with("_uuid");
                assert!(!names_a_row, "{}: the walk has no row for field {other}", endpoint.name);
                continue;
            }
        };
        body.insert(field.clone(), value);
    }
    Value::Object(body)
}

/// What is compared: everything but the id of the request, and the id that was asked for.
fn told(reply: &Reply, body: &Value) -> (u16, String) {
    let mut answer = reply.body.clone();
    if let Some(answer) = answer.as_object_mut() {
        answer.remove("request_id");
    }
    let mut text = answer.to_string();
    for (field, value) in body.as_object().into_iter().flatten() {
        if field.ends_with("id") {
            text = text.replace(&value.to_string(), "ID");
        }
    }
    (reply.status, text)
}

/// Every row of every table, but for what a mere visit may touch.
fn rows_of(server: &TestServer) -> BTreeMap<String, Vec<String>> {
    let app = server.app().clone();
    server.runtime.block_on(async move {
        let mut tx = app.db.read().await.expect("read");
        let mut all = BTreeMap::new();
        for table in schema::tables() {
            if matches!(table.name, "s3_console_sessions" | "s3_api_tokens" | "console_changes" | "vm_status") {
                continue;
            }
            let rows = tx.rows(&format!("SELECT * FROM {}", table.name), &[]).await.expect("rows");
            let mut rows: Vec<String> = rows.iter().map(|row| format!("{row:?}")).collect();
            rows.sort();
            all.insert(table.name.to_owned(), rows);
        }
        all
    })
}

#[track_caller]
fn unchanged(server: &TestServer, before: &BTreeMap<String, Vec<String>>, case: &str) {
    for (table, rows) in rows_of(server) {
        let new: Vec<&String> = rows.iter().filter(|row| !before[&table].contains(row)).collect();
        assert!(new.is_empty() && rows.len() == before[&table].len(), "{case} changed {table}: {new:?}");
    }
}

#[test]
fn nobody_gets_anything_that_is_not_theirs() {
    let server = TestServer::with(&Database::Sqlite, |settings| settings.tick = std::time::Duration::from_secs(3600));
    let session = server.set_up();
    let owner = server.token(&session);
    let tenant = server.post(&owner, "e3backup_tenant_create.php", &json!({"name": "One", "slug": "one"})).ok();
    let tenant = tenant["tenant"]["id"].as_i64().expect("tenant");
    let second = server.post(&owner, "e3backup_tenant_create.php", &json!({"name": "Two", "slug": "two"})).ok();
    let second = second["tenant"]["id"].as_i64().expect("tenant");
    let mut direct = furnish(&server, &owner, "direct", None);
    direct.rows.insert("tenant", json!(tenant));
    let mut in_tenant = furnish(&server, &owner, "tenant", Some(tenant));
    in_tenant.rows.insert("tenant", json!(tenant));

    let stranger = server.other_client("stranger@example.com");
    let stranger_token = server.token(&stranger);
    let neighbour = server.person(&owner, "neighbour@example.com", "owner", Some(second));
    let strange_agent = server.agent(&stranger, "HV-strange", None);
    let sibling = server.agent(&owner, "HV-sibling", None);
    // What destroys something is refused without a second factor before anything is looked up: these have shown one.
    server.change("UPDATE s3_console_sessions SET mfa_at = created_at");
    let roles: Vec<(Role, As)> = Role::ALL
        .iter()
        .map(|role| (*role, server.person(&owner, &format!("role-{role}@example.com"), role.word(), None)))
        .collect();
    let revoked = server.post(&session, "e3backup_api_token_create.php", &json!({})).ok();
    server.post(&session, "e3backup_api_token_revoke.php", &json!({"id": revoked["id"]})).ok();
    let revoked = As::Token(revoked["token"].as_str().expect("token").to_owned());
    let ended = server.person(&owner, "ended@example.com", "owner", None);
    server.post(&ended, "console_logout.php", &json!({})).ok();
    let As::Session { cookie, csrf, origin } = session.clone() else { panic!("a session") };
    let bad_csrf = As::Session { cookie: cookie.clone(), csrf: "csrf_wrong".into(), origin: origin.clone() };
    let bad_origin = As::Session { cookie, csrf, origin: "https://evil.example.com".into() };

    // A first call tells the server of an agent's process; that is the caller's own row.
    for agent in [&strange_agent, &sibling] {
        server.get(agent, "agent_poll.php", &json!({})).ok();
    }
    let before = rows_of(&server);
    let mut asked = 0;
    for endpoint in routes::all() {
        let name = endpoint.name;
        let foreign = body(endpoint, Some(&direct.rows));
        for method in ["GET", "POST", "PUT", "DELETE"] {
            if !endpoint.methods.contains(&method) {
                server.call(&owner, method, name, &json!({})).refused(405, "method_not_allowed");
            }
        }
        for method in endpoint.methods {
            let call = |who: &As| server.call(who, method, name, &foreign);
            match endpoint.access {
                Access::Anybody => continue,
                Access::Agent => {
                    call(&As::Nobody).refused(401, "missing_credentials");
                    call(&owner).refused(401, "missing_credentials");
                    call(&session).refused(401, "missing_credentials");
                    let As::Agent { id, boot, .. } = &direct.agent else { panic!("an agent") };
                    for (id, token) in [(*id, "agt_wrong"), (NOBODY, "agt_wrong")] {
                        let wrong = As::Agent { id, token: token.into(), boot: boot.clone() };
                        call(&wrong).refused(401, "unauthorized");
                    }
                }
                Access::Person(need) => {
                    call(&As::Nobody).refused(401, "missing_credentials");
                    call(&direct.agent).refused(401, "missing_credentials");
                    call(&revoked).refused(401, "token_revoked");
                    call(&As::Token("e3_wrong".into())).refused(401, "unauthorized");
                    call(&ended).refused(401, "session_expired");
                    if *method == "POST" {
                        call(&bad_csrf).refused(403, "csrf_failed");
                        call(&bad_origin).refused(403, "csrf_failed");
                    }
                    for (role, who) in &roles {
                        if !allows(*role, need) {
                            call(who).refused(403, "forbidden_role");
                        }
                    }
                    if matches!(need, Need::Begun | Need::SignedIn)
                        && !foreign.as_object().is_some_and(|body| body.contains_key("id"))
                    {
                        continue;
                    }
                }
            }
            // Ids of others, beside ids of nobody.
            let callers: Vec<(&str, &As, &Rows)> = match endpoint.access {
                Access::Anybody => continue,
                Access::Agent => vec![
                    ("an agent of another client", &strange_agent, &direct.rows),
                    ("an agent of the same client", &sibling, &direct.rows),
                    ("an agent of no tenant", &sibling, &in_tenant.rows),
                ],
                Access::Person(_) => vec![
                    ("another client's owner", &stranger, &direct.rows),
                    ("another client's token", &stranger_token, &direct.rows),
                    ("another tenant's owner", &neighbour, &in_tenant.rows),
                    ("a tenant's owner, of what has no tenant", &neighbour, &direct.rows),
                ],
            };
            for (case, who, rows) in callers {
                let (theirs, nobodys) = (body(endpoint, Some(rows)), body(endpoint, None));
                if theirs.as_object().is_none_or(Map::is_empty) || theirs == nobodys {
                    continue;
                }
                let one = server.call(who, method, name, &theirs);
                let other = server.call(who, method, name, &nobodys);
                assert_eq!(told(&one, &theirs), told(&other, &nobodys), "{case}: {method} {name} {theirs}");
                asked += 1;
            }
        }
        if endpoint.name == "console_logout.php" {
            continue;
        }
        unchanged(&server, &before, name);
    }
    assert!(asked > 100, "only {asked} calls named rows of others");
    server.stop();
}

/// Lists of one client hold nothing of another.
#[test]
fn lists_hold_only_what_is_in_scope() {
    let server = TestServer::start(&Database::Sqlite);
    let owner = server.token(&server.set_up());
    let tenant = server.post(&owner, "e3backup_tenant_create.php", &json!({"name": "One", "slug": "one"})).ok();
    let tenant = tenant["tenant"]["id"].as_i64().expect("tenant");
    furnish(&server, &owner, "direct", None);
    furnish(&server, &owner, "tenant", Some(tenant));
    let stranger = server.other_client("stranger@example.com");
    let inside = server.person(&owner, "inside@example.com", "owner", Some(tenant));
    for endpoint in routes::all() {
        let Access::Person(_) = endpoint.access else { continue };
        if !endpoint.methods.contains(&"GET") {
            continue;
        }
        let empty = server.get(&stranger, endpoint.name, &json!({}));
        let text = empty.body.to_string();
        for word in ["HV-direct", "VM-direct", "HV-tenant", "VM-tenant", "nightly", "direct@example.com", "direct/"] {
            assert!(!text.contains(word), "{} tells a stranger of {word}: {text}", endpoint.name);
        }
        let part = server.get(&inside, endpoint.name, &json!({})).body.to_string();
        for word in ["HV-direct", "VM-direct", "direct@example.com", "direct/"] {
            assert!(!part.contains(word), "{} tells a tenant of {word}: {part}", endpoint.name);
        }
    }
    let all = server.get(&owner, "cloudbackup_vms.php", &json!({})).ok();
    assert_eq!(all["total"], 2, "{all}");
    let own = server.get(&inside, "cloudbackup_vms.php", &json!({})).ok();
    assert_eq!((&own["total"], &own["vms"][0]["vm_name"]), (&json!(1), &json!("VM-tenant")), "{own}");
    server.stop();
}

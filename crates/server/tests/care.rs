//! The small things a console needs: trying and giving up a destination, questions before a restore, updates of agents,
//! search, views, people and tenants who go.

mod support;

use serde_json::{Value, json};
use support::database::Database;
use support::{As, PASSWORD, TestServer};

#[test]
fn a_destination_is_tried_and_given_up_when_nothing_is_left_in_it() {
    let server = TestServer::start(&Database::Sqlite);
    let owner = server.token(&server.set_up());
    let agent = server.agent(&owner, "HV01", None);
    server.discover(&agent, &["DC01"]);
    let make = |name: &str, endpoint: &str, keys: (&str, &str), tenant: Option<i64>| {
        let asked = json!({
            "name": name, "endpoint": endpoint, "bucket": "backups", "prefix": format!("{name}/"), "allow_http": true,
            "access_key": keys.0, "secret_key": keys.1, "tenant_id": tenant,
        });
        server.post(&owner, "cloudbackup_destination_create.php", &asked).ok()["destination"]["id"].clone()
    };
    let test = |who: &As, id: &Value| {
        server.post(who, "cloudbackup_destination_test.php", &json!({"destination_id": id})).ok()
    };
    // Nobody listens there.
    let away = make("away", "http://127.0.0.1:1", ("AKIAEXAMPLE", "secret"), None);
    let told = test(&owner, &away);
    assert_eq!((&told["usable"], told["problem"].is_string()), (&json!(false), true), "{told}");
    assert!(!told.to_string().contains("\"secret\""), "{told}");

    // A tenant's people do not learn what answers in the server's own network.
    let tenant = server.post(&owner, "e3backup_tenant_create.php", &json!({"name": "One", "slug": "one"})).ok();
    let tenant = tenant["tenant"]["id"].as_i64();
    let theirs = make("theirs", "http://127.0.0.1:1", ("AKIAEXAMPLE", "secret"), tenant);
    let inside = server.person(&owner, "inside@example.com", "admin", tenant);
    let told = test(&inside, &theirs);
    assert!(told["problem"].as_str().is_some_and(|why| why.contains("private network")), "{told}");
    // Nor by a name, which is judged by what it leads to when it is called.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listener");
    listener.set_nonblocking(true).expect("no waiting");
    let address = format!("http://localhost:{}", listener.local_addr().expect("address").port());
    let named = make("named", &address, ("AKIAEXAMPLE", "secret"), tenant);
    let told = test(&inside, &named);
    let why = told["problem"].as_str().unwrap_or_default();
    assert!(why.contains("private network") && why.contains("--allow-private-endpoints"), "{told}");
    assert!(listener.accept().is_err(), "nobody called");

    let folder = tempfile::tempdir().expect("folder");
    let store = bucket::test_support::SeaweedFs::start_or_skip("a_destination_is_tried", folder.path());
    if let Some(store) = &store {
        store.create_bucket("backups", false).expect("bucket");
        let keys = store.credentials();
        let good = make("good", store.endpoint(), (&keys.access_key_id, &keys.secret_access_key), None);
        let told = test(&owner, &good);
        assert_eq!((&told["usable"], &told["problem"]), (&json!(true), &Value::Null), "{told}");
        let locked = make("locked", store.endpoint(), (&keys.access_key_id, "another secret"), None);
        assert_eq!(test(&owner, &locked)["usable"], false);
    }

    let delete = |id: &Value, phrase: &str| {
        let asked = json!({"destination_id": id, "confirm_phrase": phrase});
        server.post(&owner, "cloudbackup_destination_delete.php", &asked)
    };
    let used = json!(server.destination(&owner, "used/", None));
    let job = server.job(&owner, &agent, used.as_i64().expect("id"), None);
    delete(&used, "wrong").refused(422, "validation_failed");
    delete(&used, "used/").refused(409, "conflict");
    let gone = json!({"job_id": job["job_id"], "confirm_phrase": "nightly"});
    server.post(&owner, "cloudbackup_delete_job.php", &gone).ok();
    delete(&used, "used/").ok();
    delete(&used, "used/").refused(404, "not_found");
    // Its place is free, and a new one there is another repository.
    let again = server.destination(&owner, "used/", None);
    assert_ne!(json!(again), used);
    server.stop();
}

#[test]
fn an_agent_is_asked_before_a_restore_and_told_of_its_update() {
    let server = TestServer::start(&Database::Sqlite);
    let owner = server.token(&server.set_up());
    let agent = server.agent(&owner, "HV01", None);
    let other = server.agent(&owner, "HV02", None);
    server.discover(&agent, &["DC01"]);
    let destination = server.destination(&owner, "one/", None);
    let job = server.job(&owner, &agent, destination, None);
    server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
    let run = server.claim(&agent);
    let point = server.back_up(&agent, &run)[0];

    let asked = json!({"backup_point_id": point, "target_agent_id": other.id(), "target_vm_name": "DC01-copy"});
    let queued = server.post(&owner, "cloudbackup_restore_preflight.php", &asked);
    assert_eq!(queued.status, 202, "{}", queued.body);
    let queued = queued.ok()["command_id"].clone();
    let commands = server.get(&other, "agent_poll_pending_commands.php", &json!({})).ok();
    let command = &commands["commands"][0];
    assert_eq!((&command["type"], &command["command_id"]), (&json!("hyperv_preflight"), &queued), "{commands}");
    assert_eq!(command["payload"]["vms"][0]["backup_point_id"], point, "{command}");
    assert_eq!(command["payload"]["target_vm_name"], "DC01-copy");
    let report = json!({"obstacles": [{"code": "name_in_use", "severity": "decide", "on": "DC01-copy"}], "plan": []});
    server.post(&other, "agent_report_browse.php", &json!({"command_id": queued, "result": report})).ok();
    let told = server.get(&owner, "cloudbackup_command_status.php", &json!({"command_id": queued})).ok();
    assert_eq!((&told["command_status"], &told["result"]), (&json!("completed"), &report), "{told}");
    assert_eq!(server.count("SELECT COUNT(*) FROM s3_cloudbackup_runs"), 1, "a question is no run");

    let package = json!({
        "agent_id": other.id(), "version_label": "0.2.0", "download_url": "https://updates.example.com/e3-0.2.0.msi",
        "sha256": "A".repeat(64), "size_bytes": 1_000_000, "platform": "windows-x64", "signature": "c2lnbmVk",
    });
    for (field, bad) in [
        ("download_url", json!("http://updates.example.com/agent")),
        ("download_url", json!("https://user:pass@updates.example.com/agent")),
        ("sha256", json!("12")),
        ("size_bytes", json!(0)),
        ("signature", json!("")),
    ] {
        let mut wrong = package.clone();
        wrong[field] = bad;
        let why = server.post(&owner, "e3backup_agent_request_update.php", &wrong).refused(422, "validation_failed");
        assert!(why["details"]["fields"][field].is_string(), "{why}");
    }
    let update = server.post(&owner, "e3backup_agent_request_update.php", &package).ok()["update_job_id"].clone();
    let commands = server.get(&other, "agent_poll_pending_commands.php", &json!({})).ok();
    let payload = &commands["commands"][0]["payload"];
    assert_eq!((&payload["update_job_id"], &payload["sha256"]), (&update, &json!("a".repeat(64))), "{commands}");
    let progress = |who: &As, state: &str| {
        server.post(who, "agent_update_progress.php", &json!({"update_job_id": update, "state": state}))
    };
    let state = || {
        server.get(&owner, "e3backup_agent_update_status.php", &json!({"update_job_id": update})).ok()["state"].clone()
    };
    assert_eq!(state(), "queued");
    progress(&other, "applying").ok();
    progress(&other, "dancing").refused(400, "invalid_field");
    progress(&agent, "applying").refused(404, "not_found");
    assert_eq!(state(), "applying");
    // An agent's word is not enough; that it is back with that version is.
    progress(&other, "success").ok();
    assert_eq!(state(), "verifying_online");
    server.change(&format!("UPDATE s3_cloudbackup_agents SET agent_version = '0.2.0' WHERE id = {}", other.id()));
    assert_eq!(state(), "success");
    server.stop();
}

#[test]
fn people_find_things_keep_views_and_go() {
    for database in Database::each() {
        let server = TestServer::start(&database);
        let owner = server.token(&server.set_up());
        let agent = server.agent(&owner, "HV-Dublin", None);
        server.discover(&agent, &["DC01", "dc01-copy", "SQL_01"]);
        let destination = server.destination(&owner, "one/", None);
        let job = server.job(&owner, &agent, destination, None);
        server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
        server.claim(&agent);
        let find = |who: &As, q: &str| {
            let hits = server.get(who, "cloudbackup_search.php", &json!({"q": q})).ok()["hits"].clone();
            let hits = hits.as_array().expect("hits").iter();
            hits.map(|hit| format!("{} {}", hit["kind"].as_str().unwrap_or(""), hit["name"].as_str().unwrap_or("")))
                .collect::<Vec<_>>()
        };
        assert_eq!(find(&owner, "dc01"), ["vm DC01", "vm dc01-copy"], "{database:?}");
        assert_eq!(find(&owner, "sql_"), ["vm SQL_01"], "{database:?}: no wildcard");
        assert_eq!(find(&owner, "dublin"), ["agent HV-Dublin"], "{database:?}");
        // A number is also an id.
        assert!(find(&owner, "1").contains(&"run nightly".to_owned()), "{database:?}");
        assert!(find(&server.other_client("stranger@example.com"), "dc01").is_empty(), "{database:?}");

        let viewer = server.person(&owner, "viewer@example.com", "viewer", None);
        let save = |who: &As, path: &str| {
            server.post(who, "cloudbackup_view_save.php", &json!({"name": "mine", "path": path}))
        };
        save(&viewer, "/vms?state=late").ok();
        save(&viewer, "/vms?state=never").ok();
        for path in ["https://evil.example.com", "//evil.example.com", "/\\evil.example.com", ""] {
            save(&viewer, path).refused(400, "invalid_field");
        }
        let views = |who: &As| server.get(who, "cloudbackup_view_list.php", &json!({})).ok()["views"].clone();
        assert_eq!(views(&viewer)[0]["path"], "/vms?state=never", "{database:?}");
        assert_eq!(views(&owner), json!([]), "{database:?}");
        let mine = json!({"view_id": views(&viewer)[0]["id"]});
        server.post(&owner, "cloudbackup_view_delete.php", &mine).refused(404, "not_found");
        server.post(&viewer, "cloudbackup_view_delete.php", &mine).ok();

        // A person who goes: sessions, tokens and password end at once, and the address is free again.
        let token = server.token(&viewer);
        let listed = server.get(&viewer, "e3backup_api_token_list.php", &json!({})).ok();
        assert_eq!((&listed["total"], &listed["tokens"][0]["scopes"]), (&json!(1), &json!([])), "{listed}");
        let users = server.get(&owner, "e3backup_user_list.php", &json!({})).ok();
        let id_of = |email: &str| {
            let users = users["users"].as_array().expect("users").iter();
            users.clone().find(|user| user["email"] == email).expect("user")["id"].clone()
        };
        let delete = |id: &Value, phrase: &str| {
            server.post(&owner, "e3backup_user_delete.php", &json!({"user_id": id, "confirm_phrase": phrase}))
        };
        let id = id_of("viewer@example.com");
        delete(&id, "somebody").refused(422, "validation_failed");
        delete(&id_of("owner@example.com"), "owner@example.com").refused(422, "validation_failed");
        delete(&id, "viewer@example.com").ok();
        delete(&id, "viewer@example.com").refused(404, "not_found");
        server.get(&viewer, "cloudbackup_vms.php", &json!({})).refused(401, "session_expired");
        server.get(&token, "cloudbackup_vms.php", &json!({})).refused(401, "token_revoked");
        assert_eq!(server.login("viewer@example.com", PASSWORD).status, 401);
        server.person(&owner, "viewer@example.com", "viewer", None);

        let tenant = server.post(&owner, "e3backup_tenant_create.php", &json!({"name": "One", "slug": "one"})).ok();
        let tenant = tenant["tenant"]["id"].clone();
        let inside = server.person(&owner, "inside@example.com", "owner", tenant.as_i64());
        let theirs = server.agent(&owner, "HV-theirs", tenant.as_i64());
        let asked = json!({"tenant_id": tenant, "confirm_phrase": "one"});
        server.post(&owner, "e3backup_tenant_delete.php", &asked).ok();
        server.get(&inside, "cloudbackup_vms.php", &json!({})).refused(401, "session_expired");
        server.get(&theirs, "agent_poll.php", &json!({})).refused(401, "unauthorized");
        server.post(&owner, "e3backup_tenant_create.php", &json!({"name": "One", "slug": "one"})).ok();
        server.stop();
    }
}

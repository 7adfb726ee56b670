//! What is safe: protection states by the clock, clusters, points that go, and secrets that stay where they belong.

mod support;

use serde_json::{Value, json};
use support::database::Database;
use support::{As, TestServer, result};

fn states(server: &TestServer, owner: &As) -> Value {
    server.tick();
    let vms = server.get(owner, "cloudbackup_vms.php", &json!({"sort": "name"})).ok();
    let dashboard = server.get(owner, "cloudbackup_dashboard.php", &json!({})).ok();
    assert_eq!(vms["states"], dashboard["states"], "two answers about the same VMs");
    let names = vms["vms"].as_array().expect("VMs").iter();
    names.map(|vm| (vm["vm_name"].as_str().expect("name").to_owned(), vm["status"]["state"].clone())).collect()
}

#[test]
fn a_vm_that_nobody_backs_up_turns_late_by_the_clock_alone() {
    for database in Database::each() {
        let server = TestServer::start(&database);
        let owner = server.token(&server.set_up());
        let agent = server.agent(&owner, "HV01", None);
        server.discover(&agent, &["DC01", "FS02"]);
        assert_eq!(states(&server, &owner), json!({"DC01": "in_no_job", "FS02": "in_no_job"}), "{database:?}");
        let destination = server.destination(&owner, "one/", None);
        let job = server.job(&owner, &agent, destination, None);
        assert_eq!(states(&server, &owner), json!({"DC01": "never_backed_up", "FS02": "never_backed_up"}));
        let listed = server.get(&owner, "cloudbackup_hyperv_vms.php", &json!({"job_id": job["job_id"]})).ok();
        assert_eq!(listed["vms"], json!([]), "no row before the first run");

        server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
        let run = server.claim(&agent);
        server.back_up(&agent, &run);
        assert_eq!(states(&server, &owner), json!({"DC01": "protected", "FS02": "protected"}));
        let listed = server.get(&owner, "cloudbackup_hyperv_vms.php", &json!({"job_id": job["job_id"]})).ok();
        assert_eq!(
            (&listed["vms"][0]["status"], &listed["vms"][0]["next_read"]),
            (&json!("ok"), &json!("incremental"))
        );
        assert_eq!(listed["vms"][0]["protection"]["state"], "protected");
        // A daily job promises 26 hours.
        for (hours, expected) in [(25.5, "protected"), (1.0, "late"), (25.0, "late"), (1.0, "at_risk")] {
            server.pass(hours);
            assert_eq!(states(&server, &owner)["DC01"], expected, "{database:?} after {hours} more hours");
        }
        let vm = run["hyperv_vms"][1]["vm_id"].clone();
        let off = json!({"vm_id": vm, "enabled": false, "reason": "moves away"});
        server.post(&owner, "cloudbackup_hyperv_toggle_vm.php", &off).ok();
        assert_eq!(states(&server, &owner), json!({"DC01": "at_risk", "FS02": "excluded"}));
        server.post(&owner, "cloudbackup_hyperv_toggle_vm.php", &json!({"vm_id": vm, "enabled": true})).ok();
        server.discover(&agent, &["DC01"]);
        assert_eq!(states(&server, &owner)["FS02"], "unknown");
        let mut broken = support::vm("DC01");
        broken["backupable"] = json!(false);
        broken["not_backupable_reason"] = json!("pass-through disk");
        server.post(&agent, "agent_hyperv_discover.php", &json!({"vms": [broken]})).ok();
        assert_eq!(states(&server, &owner)["DC01"], "cannot_be_backed_up");
        server.discover(&agent, &["DC01", "FS02"]);
        let paused = json!({"job_id": job["job_id"], "version": job["version"], "status": "paused"});
        server.post(&owner, "cloudbackup_update_job.php", &paused).ok();
        assert_eq!(states(&server, &owner), json!({"DC01": "in_no_job", "FS02": "in_no_job"}));
        server.post(&owner, "cloudbackup_update_job.php", &paused).refused(409, "conflict");
        server.stop();
    }
}

#[test]
fn a_cluster_job_runs_where_its_vms_are_and_follows_one_that_moves() {
    for database in Database::each() {
        let server = TestServer::start(&database);
        let owner = server.token(&server.set_up());
        let (one, two) = (server.agent(&owner, "HV01", None), server.agent(&owner, "HV02", None));
        let idle = server.agent(&owner, "HV03", None);
        server.discover(&one, &["DC01", "FS02"]);
        server.discover(&two, &["SQL03"]);
        let group = json!({"name": "cluster", "kind": "cluster", "agent_ids": [one.id(), two.id(), idle.id()]});
        let group = server.post(&owner, "e3backup_host_group_create.php", &group).ok()["host_group"]["id"].clone();
        let destination = server.destination(&owner, "one/", None);
        let asked = json!({
            "name": "cluster", "host_group_id": group, "dest_bucket_id": destination, "timezone": "UTC",
            "hyperv_config": {"backup_all_vms": true}, "schedule_json": {"type": "daily", "time": "02:00"},
        });
        let job = server.post(&owner, "cloudbackup_create_job.php", &asked).ok()["job"].clone();
        let started = server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
        assert_eq!(started["run_ids"].as_array().map(Vec::len), Some(2), "one for each host that has any of its VMs");
        let none = server.post(&idle, "agent_next_run.php", &json!({})).ok();
        assert_eq!(none["status"], "no_run");
        let (first, second) = (server.claim(&one), server.claim(&two));
        assert_eq!(second["hyperv_vms"].as_array().map(Vec::len), Some(1));
        server.back_up(&two, &second);
        // FS02 moves before its turn: the run hands it back, and its new owner gets a run of it alone.
        server.discover(&one, &["DC01"]);
        server.discover(&two, &["SQL03", "FS02"]);
        let mut gone = result(&first, &first["hyperv_vms"][1]);
        gone["error"] = json!("not on this host");
        gone["error_code"] = json!("VM_NOT_FOUND");
        let end = json!({
            "run_id": first["run_id"], "claim_id": first["claim_id"], "seq": 5, "status": "success",
            "hyperv_results": [result(&first, &first["hyperv_vms"][0]), gone],
        });
        assert_eq!(server.post(&one, "agent_update_run.php", &end).ok()["run_status"], "success", "{database:?}");
        let follow = server.claim(&two);
        let names: Vec<&Value> =
            follow["hyperv_vms"].as_array().expect("VMs").iter().map(|vm| &vm["vm_name"]).collect();
        assert_eq!(names, [&json!("FS02")]);
        server.back_up(&two, &follow);

        // DC01 moves between two runs: its row, its points and its base go with it.
        server.pass(1.0);
        server.discover(&one, &[]);
        server.post(&one, "agent_hyperv_discover.php", &json!({"vms": [support::vm("OTHER")]})).ok();
        server.discover(&two, &["SQL03", "FS02", "DC01"]);
        server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
        let run = server.claim(&two);
        let moved = run["hyperv_vms"].as_array().expect("VMs").iter().find(|vm| vm["vm_name"] == "DC01").expect("DC01");
        assert_eq!(moved["vm_id"], first["hyperv_vms"][0]["vm_id"], "{database:?}");
        assert_eq!(moved["full_reason"], Value::Null, "incremental from the point of the other host: {moved}");
        server.stop();
    }
}

#[test]
fn a_deleted_point_goes_through_an_agent_and_a_hold_wins() {
    for database in Database::each() {
        let server = TestServer::start(&database);
        let session = server.set_up();
        let owner = server.token(&session);
        let operator = server.token(&server.person(&owner, "op@example.com", "operator", None));
        let agent = server.agent(&owner, "HV01", None);
        server.discover(&agent, &["DC01"]);
        let destination = server.destination(&owner, "one/", None);
        let job = server.job(&owner, &agent, destination, None);
        let mut points = Vec::new();
        for _ in 0..3 {
            server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
            let run = server.claim(&agent);
            points.extend(server.back_up(&agent, &run));
            server.pass(0.5);
        }
        let delete = |ids: &[i64]| {
            let asked = json!({"backup_point_ids": ids, "confirm_phrase": ids.len().to_string()});
            server.post(&owner, "cloudbackup_point_delete.php", &asked)
        };
        let hold = |who: &As, point: i64, hold: bool| {
            server.post(
                who,
                "cloudbackup_point_hold.php",
                &json!({"backup_point_id": point, "hold": hold, "reason": "audit"}),
            )
        };
        let operation = || server.get(&agent, "agent_poll_repo_operations.php", &json!({})).ok()["operation"].clone();
        hold(&operator, points[1], true).ok();
        hold(&operator, points[1], false).refused(403, "forbidden_role");
        delete(&[points[1]]).refused(422, "validation_failed");
        delete(&[points[0]]).ok();
        delete(&[points[2]]).ok();
        hold(&operator, points[2], true).ok();
        server.pass(23.0);
        server.tick();
        assert_eq!(operation(), Value::Null, "not before a day has passed");
        // A hold undoes a deletion, also one that waits for an agent already.
        hold(&owner, points[2], false).ok();
        delete(&[points[2]]).ok();
        server.pass(24.5);
        server.tick();
        hold(&operator, points[2], true).ok();
        let claimed = operation();
        assert_eq!(
            (&claimed["op_type"], &claimed["repository_password"].is_string()),
            (&json!("delete_points"), &true)
        );
        let named = claimed["effective_policy"]["points"].as_array().expect("points");
        assert_eq!(named.iter().map(|point| point["backup_point_id"].as_i64()).collect::<Vec<_>>(), [Some(points[0])]);
        assert_eq!(operation(), Value::Null, "one operation of a repository at a time");
        let mut done =
            json!({"operation_id": claimed["operation_id"], "operation_token": "op_wrong", "status": "success"});
        server.post(&agent, "agent_complete_repo_operation.php", &done).refused(403, "operation_not_claimed");
        done["operation_token"] = claimed["operation_token"].clone();
        let listed = || server.get(&owner, "e3backup_restore_points_list.php", &json!({})).ok()["total"].clone();
        assert_eq!(listed(), 3, "a point is there until the agent says that it is gone");
        server.post(&agent, "agent_complete_repo_operation.php", &done).ok();
        server.post(&agent, "agent_complete_repo_operation.php", &done).ok();
        assert_eq!(listed(), 2);

        // By policy: the newest stays, what is held stays, the rest goes.
        hold(&owner, points[1], false).ok();
        let current =
            server.get(&owner, "cloudbackup_get_job.php", &json!({"job_id": job["job_id"]})).ok()["job"].clone();
        let shorter =
            json!({"job_id": job["job_id"], "version": current["version"], "retention_json": {"keep_last": 1}});
        server.post(&operator, "cloudbackup_update_job.php", &shorter).refused(403, "forbidden_role");
        let preview = server.post(&owner, "cloudbackup_validate_job.php", &shorter).ok();
        let goes: Vec<&Value> = preview["retention"]
            .as_array()
            .expect("verdicts")
            .iter()
            .filter(|verdict| verdict["kept_by"] == json!([]))
            .collect();
        assert_eq!(goes.len(), 1, "{preview}");
        assert_eq!(goes[0]["backup_point_id"], points[1]);
        server.post(&owner, "cloudbackup_update_job.php", &shorter).ok();
        server.pass(1.1);
        server.tick();
        let claimed = operation();
        assert_eq!(
            claimed["effective_policy"]["points"][0]["backup_point_id"], points[1],
            "{database:?}: what the preview said"
        );
        server.stop();
    }
}

#[test]
fn a_restore_is_a_run_and_a_command_for_its_target() {
    let server = TestServer::start(&Database::Sqlite);
    let owner = server.token(&server.set_up());
    let (agent, target) = (server.agent(&owner, "HV01", None), server.agent(&owner, "HV02", None));
    server.discover(&agent, &["DC01"]);
    let destination = server.destination(&owner, "one/", None);
    let job = server.job(&owner, &agent, destination, None);
    server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
    let run = server.claim(&agent);
    let points = server.back_up(&agent, &run);
    let info = |who: &As| server.get(who, "agent_hyperv_get_restore_info.php", &json!({"backup_point_id": points[0]}));
    info(&target).refused(404, "point_not_found");
    let own = info(&agent).ok();
    assert_eq!((&own["restore_chain"][0]["type"], own.get("job_context")), (&json!("Full"), None));
    let asked = json!({"backup_point_id": points[0], "restore_type": "full", "target_host": "hv02", "target_vm_name": "DC01-r"});
    let started = server.post(&owner, "cloudbackup_hyperv_start_restore.php", &asked).ok();
    let commands = server.get(&target, "agent_poll.php", &json!({})).ok()["commands"].clone();
    assert_eq!((&commands[0]["type"], &commands[0]["run_id"]), (&json!("hyperv_restore"), &started["restore_run_id"]));
    assert_eq!(commands[0]["payload"]["vms"][0]["backup_point_id"], points[0]);
    assert_eq!(commands[0]["job_context"]["dest_secret_key"], "canary-secret-key");
    assert_eq!(
        info(&target).ok()["job_context"]["dest_secret_key"],
        "canary-secret-key",
        "as long as its command lives"
    );
    let done = json!({"command_id": commands[0]["command_id"], "status": "completed"});
    server.post(&target, "agent_complete_command.php", &done).ok();
    info(&target).refused(404, "point_not_found");
    let missing = json!({"backup_point_id": points[0], "target_host": "HV99"});
    server.post(&owner, "cloudbackup_hyperv_start_restore.php", &missing).refused(404, "not_found");
    let instant = json!({"backup_point_id": points[0], "restore_type": "instant"});
    server.post(&owner, "cloudbackup_hyperv_start_restore.php", &instant).refused(409, "engine_not_available");
    server.stop();
}

/// Secrets are planted and searched for in every column of the database: they are in none of them in clear.
#[test]
fn no_secret_stands_in_the_database() {
    use base64::Engine as _;
    for database in Database::each() {
        let server = TestServer::start(&database);
        let session = server.set_up();
        let owner = server.token(&session);
        let agent = server.agent(&owner, "HV01", None);
        server.discover(&agent, &["DC01"]);
        let destination = server.destination(&owner, "one/", None);
        let job = server.job(&owner, &agent, destination, None);
        server.post(&owner, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
        let run = server.claim(&agent);
        let (As::Agent { token: agent_token, .. }, As::Token(api), As::Session { cookie, csrf, .. }) =
            (&agent, &owner, &session)
        else {
            panic!("callers")
        };
        let rotated = server.post(&agent, "agent_rotate_token.php", &json!({})).ok();
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let secrets = [
            text(&run["dest_secret_key"]),
            text(&run["repository_password"]),
            agent_token.clone(),
            text(&rotated["agent_token"]),
            api.clone(),
            cookie.split_once('=').expect("a cookie").1.to_owned(),
            csrf.clone(),
            support::PASSWORD.to_owned(),
        ];
        let app = server.app().clone();
        let columns = server.runtime.block_on(async move {
            let mut tx = app.db.read().await.expect("read");
            let mut columns = Vec::new();
            for table in server::store::schema::tables() {
                for row in tx.rows(&format!("SELECT * FROM {}", table.name), &[]).await.expect("rows") {
                    columns.push((table.name, row));
                }
            }
            columns
        });
        let searched: Vec<(&str, String)> = columns
            .iter()
            .map(|(table, row)| {
                // Bytes as letters too: a secret in a blob is a secret.
                let bytes: String = row
                    .values()
                    .iter()
                    .filter_map(|value| match value {
                        server::store::Value::Bytes(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
                        _ => None,
                    })
                    .collect();
                (*table, format!("{row:?} {bytes}"))
            })
            .collect();
        let is_there = |what: &str| searched.iter().find(|(_, text)| text.contains(what)).map(|(table, _)| *table);
        assert_eq!(is_there("AKIAEXAMPLE"), Some("s3_cloudbackup_destinations"), "the search finds what is there");
        for secret in &secrets {
            let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
            let base64 = base64::engine::general_purpose::STANDARD_NO_PAD.encode(secret);
            for form in [secret.as_str(), &hex, &base64] {
                assert_eq!(is_there(form), None, "{database:?}: a secret stands in clear");
            }
        }
        server.stop();
    }
}

//! What a person sees who has two hosts and one server.

use bucket::test_support::SeaweedFs;
use serde_json::{Value, json};

use crate::database::Database;
use crate::estate::{Estate, HOSTS, Repository};
use crate::support::{files_below, finish};

#[test]
fn a_host_enrols_once_and_only_with_the_right_server() {
    let estate = Estate::enrolled(None);
    let origin = estate.server.origin();
    let fingerprint = estate.server.fingerprint.clone();
    estate.desk.ok(["lab", "create", "hv03"]);
    let call = |token: &str, trust: &[&str]| {
        let mut command = estate.desk.command(["enroll", &origin, "--host", "lab:hv03"]);
        finish(command.args(trust).env("E3_ENROLL_TOKEN", token))
    };
    let token = estate.server.enrolment_token();
    // A server that nobody vouches for gets no token: not by public authorities, not by another certificate.
    call(&token, &[]).expect_failure(5, "SERVER_UNTRUSTED");
    let other = fingerprint.replace('A', "B").replace('1', "2");
    call(&token, &["--fingerprint", &other]).expect_failure(5, "SERVER_UNTRUSTED");
    call("enr_0123456789012345678901234567890123456789012", &["--fingerprint", &fingerprint])
        .expect_failure(5, "SERVER_REFUSED");
    let certificate = estate.desk.path("server").join("server.crt").display().to_string();
    assert_eq!(call(&token, &["--ca", &certificate]).exit, Some(0), "the token was not spent");
    call(&token, &["--fingerprint", &fingerprint]).expect_failure(5, "TARGET_EXISTS");
    call(&token, &["--fingerprint", &fingerprint, "--again"]).expect_failure(5, "SERVER_REFUSED");
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli-json.md")).unwrap();
    let example = text.split("\n## enroll\n").nth(1).and_then(|rest| rest.split("```").nth(1)).unwrap();
    let documented: Value = serde_json::from_str(example.trim_start_matches("json")).unwrap();
    let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let mut command = estate.desk.command(["enroll", &origin, "--host", "lab:hv03", "--again", "--json"]);
    let told =
        finish(command.args(["--fingerprint", &fingerprint]).env("E3_ENROLL_TOKEN", estate.server.enrolment_token()));
    assert_eq!(fields(&told.json()), fields(&documented));
    // The same host again is the same agent, and its old token is dead.
    let kept = std::fs::read(estate.desk.path("hv03/e3-state/managed/token")).unwrap();
    let known = agent_id(&estate, "hv03");
    assert_eq!(estate.enroll("hv03", &["--again"]), known);
    assert_ne!(std::fs::read(estate.desk.path("hv03/e3-state/managed/token")).unwrap(), kept);
    finish(
        estate
            .desk
            .command(["enroll", "https://127.0.0.1:1", "--host", "lab:hv03", "--again"])
            .env("E3_ENROLL_TOKEN", "x"),
    )
    .expect_failure(13, "SERVER_UNREACHABLE");
}

fn agent_id(estate: &Estate, host: &str) -> i64 {
    let file = std::fs::read(estate.desk.path(&format!("{host}/e3-state/managed/enrolment.json"))).unwrap();
    serde_json::from_slice::<Value>(&file).unwrap()["agent_id"].as_i64().unwrap()
}

#[test]
fn from_a_job_over_a_migration_to_a_restored_vm() {
    play(None, None);
}

#[test]
fn the_same_with_a_shared_database_and_a_bucket() {
    let test = "the story of managed hosts on MariaDB and S3";
    let Some(database) = Database::mariadb() else {
        return println!("SKIPPED {test}: mariadbd is not there (Debian package mariadb-server)");
    };
    let folder = tempfile::tempdir().unwrap();
    let Some(service) = SeaweedFs::start_or_skip(test, folder.path()) else { return };
    play(database.address(), Some(&service));
}

fn play(database: Option<String>, service: Option<&SeaweedFs>) {
    let mut estate = Estate::enrolled(database);
    estate.add_vm(0, "DC01", 6, 1);
    estate.add_vm(0, "FS02", 4, 2);
    (0..2).for_each(|host| estate.start_agent(host, &[]));
    estate.wait_for_vms(&["DC01", "FS02"]);

    // A job of both hosts, every night.
    let group = json!({"name": "cluster", "kind": "cluster", "agent_ids": estate.agent_ids});
    let group = estate.server.post("e3backup_host_group_create.php", &group)["host_group"]["id"].clone();
    let (destination, repository) = match service {
        None => (estate.folder_destination(), Repository::folder()),
        Some(service) => {
            let (destination, url) = estate.s3_destination(service);
            let keys = service.credentials();
            let keys = (keys.access_key_id.clone(), keys.secret_access_key.clone());
            (destination, Repository { url, keys: Some(keys), ..Repository::folder() })
        }
    };
    let made = estate.server.post(
        "cloudbackup_create_job.php",
        &json!({
            "name": "nightly", "host_group_id": group, "dest_bucket_id": destination,
            "hyperv_config": {"backup_all_vms": true}, "timezone": "UTC",
            "schedule_json": {"type": "daily", "time": "02:00"},
        }),
    );
    let job = made["job"]["job_id"].as_i64().unwrap_or_else(|| panic!("{made}"));
    estate.server.advance(24 * 3600);
    let run = estate.server.wait_for("a scheduled run", "cloudbackup_list_runs.php", &[], |answer| {
        answer["runs"].as_array()?.first().map(|run| run["run_id"].clone())
    });
    let ended = estate.server.ended(&run);
    assert_eq!(
        (&ended["run"]["status"], &ended["run"]["trigger_type"]),
        (&json!("success"), &json!("schedule")),
        "{ended}"
    );
    assert_eq!(estate.runs(job).len(), 1, "the other host has none of its VMs");
    let first = estate.points_of_each(&["DC01", "FS02"]);
    for points in &first {
        assert_eq!((points.len(), &points[0]["backup_type"]), (1, &json!("Full")), "{points:?}");
    }
    assert_eq!(estate.restored_hash(&repository, "DC01@1"), estate.guest_hash(0, "DC01"));

    // The second run reads what changed.
    estate.guest_writes(0, "DC01", 7);
    for run in estate.start_run(job) {
        assert_eq!(estate.server.ended(&run)["run"]["status"], "success");
    }
    let newest = &estate.server.points_of("DC01")[0];
    assert_eq!(newest["backup_type"], "Incremental", "{newest}");
    assert_eq!(estate.restored_hash(&repository, "DC01@1"), estate.guest_hash(0, "DC01"));
    let events = estate.server.get("cloudbackup_get_run_events.php", &[("run_id", &run.to_string())]);
    let ids: Vec<&str> =
        events["events"].as_array().unwrap().iter().filter_map(|event| event["message_id"].as_str()).collect();
    for id in ["BACKUP_STARTING", "HYPERV_VM_STARTING", "HYPERV_VM_COMPLETE", "HYPERV_BACKUP_COMPLETE"] {
        assert!(ids.contains(&id), "{id} of {ids:?}");
    }

    // A VM that cannot be read: one alert, which goes when the next run is good.
    let lab = estate.lab(0);
    lab.stop_vm("FS02").unwrap();
    let disk = lab.host_file(&lab.disk_chain("FS02", 0).unwrap()[0]).unwrap();
    let aside = disk.with_extension("aside");
    std::fs::rename(&disk, &aside).unwrap();
    for run in estate.start_run(job) {
        assert_eq!(estate.server.ended(&run)["run"]["status"], "partial_success");
    }
    estate.expect_an_alert("run_partly_failed");
    std::fs::rename(&aside, &disk).unwrap();
    lab.start_vm("FS02").unwrap();
    for run in estate.start_run(job) {
        assert_eq!(estate.server.ended(&run)["run"]["status"], "success");
    }
    estate.expect_no_alert(1);

    // A live migration: the job finds the VM on its new host, and the point is right.
    estate.desk.ok(["lab", "move-vm", "hv01", "DC01", "--to", "hv02"]);
    estate.guest_writes(1, "DC01", 8);
    estate.wait_for_owner("DC01", 1);
    let runs = estate.start_run(job);
    assert_eq!(runs.len(), 2, "one on each host");
    for run in &runs {
        let ended = estate.server.ended(run);
        assert_eq!(ended["run"]["status"], "success", "{ended}");
    }
    let points = estate.points_of_each(&["DC01", "FS02"]);
    assert_eq!((points[0].len(), points[1].len()), (5, 4), "{points:?}");
    assert_eq!(estate.restored_hash(&repository, "DC01@1"), estate.guest_hash(1, "DC01"));
    assert_eq!(estate.restored_hash(&repository, "FS02@1"), estate.guest_hash(0, "FS02"));
    estate.expect_states(&[("DC01", "protected"), ("FS02", "protected")]);

    // Every byte of a point is checked, and stands on it.
    let point = points[0][0]["id"].as_i64().unwrap();
    estate.server.post("cloudbackup_verify_point.php", &json!({"backup_point_id": point, "level": "full"}));
    estate.server.wait_for("the verification", "e3backup_restore_points_list.php", &[], |answer| {
        let points = answer["restore_points"].as_array()?;
        let verified = points.iter().find(|one| one["id"] == point)?;
        (verified["verify_status"] == "ok" && verified["verified_at"].is_string()).then_some(())
    });

    // Back onto the first host, beside nothing: under another name.
    let restore = json!({
        "backup_point_id": point, "restore_type": "full", "target_agent_id": estate.agent_ids[0],
        "target_vm_name": "DC01-restored",
    });
    let started = estate.restores(&restore);
    assert_eq!(estate.guest_hash(0, "DC01-restored"), estate.guest_hash(1, "DC01"));
    let command = estate.server.wait_for(
        "the command",
        "cloudbackup_command_status.php",
        &[("command_id", &started["command_id"].to_string())],
        |answer| (answer["command_status"] == "completed").then(|| answer.clone()),
    );
    assert!(command["result_message"].as_str().unwrap().contains("DC01-restored"), "{command}");

    // The disks of two VMs as files, on a host that made neither of these points alone.
    let target = estate.desk.path("exported");
    let restore = json!({
        "vms": [{"backup_point_id": points[1][0]["id"]}, {"backup_point_id": point}],
        "target_agent_id": estate.agent_ids[0], "target_path": target,
    });
    estate.restores(&restore);
    let files = files_below(&target);
    assert_eq!(files.len(), 2, "{files:?}");
    assert!(files.iter().all(|file| file.extension().is_some_and(|extension| extension == "vhdx")), "{files:?}");

    // What cannot be restored says why, and changes nothing: this host has a VM with that id.
    let restore = json!({
        "backup_point_id": point, "restore_type": "full", "target_agent_id": estate.agent_ids[1],
        "target_vm_name": "DC01-other", "restore_options": {"new_vm_id": false},
    });
    let started = estate.server.post("cloudbackup_hyperv_start_restore.php", &restore);
    let ended = estate.server.ended(&started["restore_run_id"]);
    assert_eq!(
        (&ended["run"]["status"], &ended["run"]["error_code"]),
        (&json!("failed"), &json!("PREFLIGHT")),
        "{ended}"
    );
    assert!(estate.lab(1).disk_count("DC01-other").is_err());

    // A deleted point goes from the repository through an agent, a day later.
    let oldest = points[1].last().unwrap();
    let (oldest, manifest) = (oldest["id"].as_i64().unwrap(), &oldest["manifest_id"]);
    assert!(estate.stored_snapshots(&repository).contains(manifest), "{manifest}");
    estate.server.post("cloudbackup_point_delete.php", &json!({"backup_point_ids": [oldest], "confirm_phrase": "1"}));
    estate.server.advance(25 * 3600);
    estate.server.wait_for("the deletion", "e3backup_restore_points_list.php", &[], |answer| {
        let points = answer["restore_points"].as_array()?;
        (!points.iter().any(|one| one["id"] == oldest)).then_some(())
    });
    assert!(!estate.stored_snapshots(&repository).contains(manifest), "{manifest} is still in the repository");

    after_the_loss(&mut estate, &repository);
    for host in 0..2 {
        assert!(estate.stop_agent(host).success());
    }
    estate.expect_clean_host(1, "DC01", 1);
    estate.expect_clean_host(0, "FS02", 1);
}

/// The server is lost with everything that it knew: out of the repository it knows every point again, agents go on under a
/// new enrolment, and a VM is restored to a host that has none of it.
fn after_the_loss(estate: &mut Estate, repository: &Repository) {
    (0..2).for_each(|host| estate.kill_agent(host));
    let stored = estate.stored_points(repository);
    let url = match &repository.keys {
        None => estate.desk.path(&repository.url).display().to_string(),
        Some(_) => repository.url.clone(),
    };
    let database = estate.server.database().and_then(|_| Database::mariadb()?.address());
    let adopted = estate.server.lose_and_adopt(database, repository, &url);
    assert_eq!((adopted.points, adopted.new_points), (stored, stored), "{adopted:?}");
    for (host, name) in HOSTS.iter().enumerate() {
        estate.agent_ids[host] = estate.enroll(name, &["--again"]);
        estate.start_agent(host, &[]);
    }
    estate.wait_for_vms(&["DC01", "FS02", "DC01-restored"]);
    assert_eq!(estate.server.get("e3backup_restore_points_list.php", &[])["total"], stored);
    // Nobody asked for their backup yet.
    estate.expect_states(&[("DC01", "in_no_job"), ("FS02", "in_no_job"), ("DC01-restored", "in_no_job")]);

    // The jobs wait for somebody who says which agent goes on.
    let jobs = estate.server.get("cloudbackup_list_jobs.php", &[]);
    for job in jobs["jobs"].as_array().unwrap() {
        let host = HOSTS.iter().position(|host| job["name"].as_str().unwrap().to_lowercase().contains(host)).unwrap();
        let go_on = json!({
            "job_id": job["job_id"], "version": job["version"], "agent_id": estate.agent_ids[host], "status": "active",
            "hyperv_config": {"backup_all_vms": true},
        });
        estate.server.post("cloudbackup_update_job.php", &go_on);
        for run in estate.start_run(job["job_id"].as_i64().unwrap()) {
            let ended = estate.server.ended(&run);
            assert_eq!(ended["run"]["status"], "success", "{ended}");
        }
    }
    assert_eq!(estate.restored_hash(repository, "DC01@1"), estate.guest_hash(1, "DC01"));
    assert_eq!(estate.restored_hash(repository, "FS02@1"), estate.guest_hash(0, "FS02"));
    estate.expect_states(&[("DC01", "protected"), ("FS02", "protected"), ("DC01-restored", "protected")]);
    estate.expect_no_alert(0);

    // A point from before the loss, onto the other host: what stands in its way is said before.
    let point = estate.server.points_of("FS02").last().unwrap()["id"].clone();
    let preflight = |name: &str| {
        let asked = json!({
            "backup_point_id": point, "restore_type": "full", "target_agent_id": estate.agent_ids[1],
            "target_vm_name": name,
        });
        let asked = estate.server.post("cloudbackup_restore_preflight.php", &asked)["command_id"].to_string();
        estate.server.wait_for("the preflight", "cloudbackup_command_status.php", &[("command_id", &asked)], |answer| {
            (answer["command_status"] == "completed").then(|| answer["result"]["vms"][0].clone())
        })
    };
    let severity_of_name = |found: &serde_json::Value| {
        let obstacles = found["obstacles"].as_array().cloned().unwrap_or_default();
        obstacles.into_iter().find(|one| one["code"] == "vm_name").map(|one| one["severity"].clone())
    };
    let twice = preflight("DC01");
    assert_eq!(severity_of_name(&twice), Some(json!("decide")), "there is a DC01 on that host: {twice}");
    let free = preflight("FS02-again");
    assert_eq!((&free["is_blocked"], severity_of_name(&free)), (&json!(false), Some(json!("ok"))), "{free}");
    let restore = json!({
        "backup_point_id": point, "restore_type": "full", "target_agent_id": estate.agent_ids[1],
        "target_vm_name": "FS02-again",
    });
    estate.restores(&restore);
    // Nothing was written into it since its first point.
    assert_eq!(estate.guest_hash(1, "FS02-again"), estate.guest_hash(0, "FS02"));
}

impl Estate {
    /// A restore that ends well; what the server said to its request.
    fn restores(&self, request: &Value) -> Value {
        let started = self.server.post("cloudbackup_hyperv_start_restore.php", request);
        let ended = self.server.ended(&started["restore_run_id"]);
        assert_eq!(ended["run"]["status"], "success", "{ended}");
        started
    }

    fn points_of_each(&self, names: &[&str]) -> Vec<Vec<Value>> {
        names.iter().map(|name| self.server.points_of(name)).collect()
    }

    fn wait_for_owner(&self, name: &str, host: usize) {
        // Somebody looks at the lists of both hosts.
        for agent in &self.agent_ids {
            self.server.post("agent_list_hyperv_vms.php", &json!({"agent_id": agent}));
        }
        let id = self.agent_ids[host];
        self.server.wait_for("the VM on its new host", "cloudbackup_vms.php", &[], |answer| {
            let vms = answer["vms"].as_array().or(answer["rows"].as_array())?;
            vms.iter().any(|vm| vm["vm_name"] == name && vm["agent_id"] == id).then_some(())
        });
    }
}

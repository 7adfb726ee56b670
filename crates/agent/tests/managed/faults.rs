//! Servers and agents that are killed, databases that are away, clocks that are set back: no run is lost or doubled, none
//! is stuck, and none is called good that was not.

use std::time::Duration;

use serde_json::{Value, json};

use crate::database::{Database, take_away};
use crate::estate::{Estate, Repository};

/// Slow enough that things can happen in the middle.
pub const SLOW: &str = r#"{"throttle_json": {"read_bytes_per_sec": 1000000}}"#;

/// One host, one VM, one slow job.
fn slow_job() -> (Estate, i64) {
    slow_job_on(Estate::enrolled(None))
}

fn slow_job_on(mut estate: Estate) -> (Estate, i64) {
    estate.add_vm(0, "DC01", 6, 1);
    estate.start_agent(0, &[]);
    estate.wait_for_vms(&["DC01"]);
    let destination = estate.folder_destination();
    let job = estate.job(0, destination, &serde_json::from_str(SLOW).unwrap());
    (estate, job)
}

/// The run ended well, once, with one point, which is right; and the host is clean.
pub fn expect_one_good_run(estate: &mut Estate, job: i64, run: &Value) {
    let ended = estate.server.ended(run);
    assert_eq!(ended["run"]["status"], "success", "{ended}");
    assert_eq!(estate.runs(job).len(), 1);
    let points = estate.server.points_of("DC01");
    assert_eq!(points.len(), 1, "{points:?}");
    let repository = Repository::folder();
    assert_eq!(estate.stored_points(&repository), 1);
    assert_eq!(estate.restored_hash(&repository, "DC01@1"), estate.guest_hash(0, "DC01"));
    assert!(estate.stop_agent(0).success());
    estate.expect_clean_host(0, "DC01", 1);
}

#[test]
fn a_server_that_is_killed_in_the_middle_of_a_run_loses_nothing() {
    let (mut estate, job) = slow_job();
    let run = estate.start_run(job).remove(0);
    assert!(estate.wait_for_phase(&run, "reading"));
    estate.server.kill();
    // Long enough for the backup to end while nobody listens.
    std::thread::sleep(Duration::from_secs(4));
    estate.server.begin();
    expect_one_good_run(&mut estate, job, &run);
    let events = estate.server.get("cloudbackup_get_run_events.php", &[("run_id", &run.to_string())]);
    let count =
        |id: &str| events["events"].as_array().unwrap().iter().filter(|event| event["message_id"] == id).count();
    assert_eq!((count("BACKUP_STARTING"), count("HYPERV_VM_COMPLETE")), (1, 1), "{events}");
}

#[test]
fn a_database_that_is_away_in_the_middle_of_a_run_loses_nothing() {
    without_database(Duration::from_secs(4));
}

#[test]
#[ignore = "long: a minute without a database"]
fn a_database_that_is_away_for_a_minute_loses_nothing() {
    without_database(Duration::from_secs(60));
}

fn without_database(time: Duration) {
    let Some(database) = Database::mariadb() else {
        return println!("SKIPPED on MariaDB: mariadbd is not there (Debian package mariadb-server)");
    };
    let (mut estate, job) = slow_job_on(Estate::enrolled(database.address()));
    let run = estate.start_run(job).remove(0);
    assert!(estate.wait_for_phase(&run, "reading"));
    // The backup ends while nothing can be kept.
    take_away(time);
    expect_one_good_run(&mut estate, job, &run);
}

#[test]
fn a_database_that_somebody_else_holds_in_the_middle_of_a_run_loses_nothing() {
    let (mut estate, job) = slow_job();
    let run = estate.start_run(job).remove(0);
    assert!(estate.wait_for_phase(&run, "reading"));
    // Longer than the server waits for the file, and than the backup takes.
    let path = estate.desk.path("server/e3-server.sqlite");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let database = server::store::Db::open(&format!("sqlite:{}", path.display())).await.unwrap();
        let mut held = database.write().await.unwrap();
        held.change("UPDATE s3_clients SET name = 'held'", &[]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        // What was held is not kept: the server's own writes come after it.
        drop(held);
        database.close().await;
    });
    expect_one_good_run(&mut estate, job, &run);
}

#[test]
fn an_agent_that_is_killed_in_the_middle_of_a_run_goes_on_with_it() {
    for phase in ["reading", "watching the merge"] {
        let (mut estate, job) = slow_job_on(Estate::with_slow_merges());
        let run = estate.start_run(job).remove(0);
        assert!(estate.wait_for_phase(&run, phase), "the run ended before it was seen {phase}");
        estate.kill_agent(0);
        estate.start_agent(0, &[]);
        let ended = estate.server.ended(&run);
        assert!(ended["run"]["attempt"].as_i64().unwrap() <= 2, "{phase}: {ended}");
        expect_one_good_run(&mut estate, job, &run);
    }
}

#[test]
fn an_agent_that_dies_between_the_point_and_its_word_tells_of_it_later() {
    let prepare = |environment: &[(&str, String)]| {
        let mut estate = Estate::enrolled(None);
        estate.add_vm(0, "DC01", 4, 1);
        estate.start_agent(0, environment);
        estate.wait_for_vms(&["DC01"]);
        let destination = estate.folder_destination();
        let job = estate.job(0, destination, &json!({}));
        let run = estate.start_run(job).remove(0);
        (estate, job, run)
    };
    // How many calls a run makes on the repository's store: with the last of them its point is there.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("counts").display().to_string();
    let (estate, _, run) = prepare(&[("E3_LAB_COUNT_FILE", file.clone())]);
    assert_eq!(estate.server.ended(&run)["run"]["status"], "success");
    let counts: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let last = counts["bucket"].as_u64().unwrap() - 1;
    drop(estate);

    let (mut estate, job, run) = prepare(&[("E3_LAB_KILL_AT", format!("bucket:{last}:after"))]);
    assert!(!estate.agent_ended(0).success(), "the hook kills");
    assert_eq!(estate.stored_points(&Repository::folder()), 1, "the point is in the repository");
    assert!(estate.server.points_of("DC01").is_empty(), "and the server does not know it");
    estate.start_agent(0, &[]);
    let ended = estate.server.ended(&run);
    assert_eq!(ended["run"]["attempt"], 2, "{ended}");
    expect_one_good_run(&mut estate, job, &run);
}

#[test]
fn an_agent_that_is_stopped_in_the_middle_of_a_run_goes_on_with_it() {
    let (mut estate, job) = slow_job();
    let run = estate.start_run(job).remove(0);
    assert!(estate.wait_for_phase(&run, "reading"));
    assert!(estate.stop_agent(0).success());
    estate.expect_clean_host(0, "DC01", 0);
    estate.start_agent(0, &[]);
    expect_one_good_run(&mut estate, job, &run);
}

#[test]
fn a_clock_that_is_set_back_or_ahead_ends_no_run_and_doubles_none() {
    for seconds in [-3600, 170] {
        let (mut estate, job) = slow_job();
        let run = estate.start_run(job).remove(0);
        assert!(estate.wait_for_phase(&run, "reading"));
        estate.server.advance(seconds);
        expect_one_good_run(&mut estate, job, &run);
    }
}

#[test]
fn a_cancelled_run_leaves_nothing_and_the_next_one_works() {
    let (mut estate, job) = slow_job();
    let run = estate.start_run(job).remove(0);
    assert!(estate.wait_for_phase(&run, "reading"));
    estate.server.post("cloudbackup_cancel_run.php", &json!({"run_id": run}));
    let ended = estate.server.ended(&run);
    assert_eq!(ended["run"]["status"], "cancelled", "{ended}");
    estate.expect_clean_host(0, "DC01", 0);
    assert!(estate.server.points_of("DC01").is_empty());
    let run = estate.start_run(job).remove(0);
    assert_eq!(estate.server.ended(&run)["run"]["status"], "success");
    assert!(estate.stop_agent(0).success());
    estate.expect_clean_host(0, "DC01", 1);
}

#[test]
fn what_fails_is_called_failed_and_the_others_are_kept() {
    let mut estate = Estate::enrolled(None);
    estate.add_vm(0, "DC01", 4, 1);
    estate.add_vm(0, "FS02", 4, 2);
    estate.start_agent(0, &[]);
    estate.wait_for_vms(&["DC01", "FS02"]);
    let destination = estate.folder_destination();
    let job = estate.job(0, destination, &json!({}));
    // The VM goes between the report and the run: it is not on the host, and not in a group that could have it.
    estate.server.post("cloudbackup_hyperv_refresh_vm_discovery.php", &json!({"job_id": job}));
    let lab = estate.lab(0);
    lab.stop_vm("FS02").unwrap();
    let file = lab.disk_chain("FS02", 0).unwrap().remove(0);
    std::fs::remove_file(lab.host_file(&file).unwrap()).unwrap();
    let run = estate.start_run(job).remove(0);
    let ended = estate.server.ended(&run);
    assert_eq!(ended["run"]["status"], "partial_success", "{ended}");
    assert_eq!((estate.server.points_of("DC01").len(), estate.server.points_of("FS02").len()), (1, 0));
    let failed = ended["vms"].as_array().unwrap().iter().find(|vm| vm["vm_name"] == "FS02").unwrap();
    assert!(failed["error_code"].is_string() && failed["state"] == "failed", "{ended}");
}

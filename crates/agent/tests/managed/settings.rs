//! What the server's settings do to an agent that is at work: limits that change, clocks that differ, certificates that are
//! renewed.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::estate::{Estate, Repository};

#[test]
fn limits_that_change_hold_for_the_run_that_goes_on() {
    let mut estate = Estate::enrolled(None);
    estate.add_vm(0, "DC01", 6, 1);
    estate.start_agent(0, &[]);
    estate.wait_for_vms(&["DC01"]);
    let destination = estate.folder_destination();
    // At this rate the disk takes more than a minute.
    let job = estate.job(0, destination, &json!({"throttle_json": {"read_bytes_per_sec": 60_000}}));
    let run = estate.start_run(job).remove(0);
    assert!(estate.wait_for_phase(&run, "reading"));
    let known = estate.server.get("cloudbackup_get_job.php", &[("job_id", &job.to_string())]);
    let changed = json!({"job_id": job, "version": known["job"]["version"], "throttle_json": {}});
    let begun = Instant::now();
    estate.server.post("cloudbackup_update_job.php", &changed);
    assert_eq!(estate.server.ended(&run)["run"]["status"], "success");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert_eq!(estate.restored_hash(&Repository::folder(), "DC01@1"), estate.guest_hash(0, "DC01"));
}

#[test]
fn an_agent_whose_clock_differs_says_so_and_deletes_nothing() {
    let mut estate = Estate::enrolled(None);
    estate.add_vm(0, "DC01", 4, 1);
    estate.server.advance(-3600);
    estate.start_agent(0, &[]);
    let skew_ms = |estate: &Estate| {
        let agents = estate.server.get("e3backup_agent_list.php", &[]);
        let id = estate.agent_ids[0];
        let agent = agents["agents"].as_array().unwrap().iter().find(|agent| agent["agent_id"] == id).cloned();
        agent.unwrap()["clock_skew_ms"].as_i64()
    };
    let wait_for = |estate: &Estate, what: &str, is_it: &dyn Fn(Option<i64>) -> bool| {
        let begun = Instant::now();
        while !is_it(skew_ms(estate)) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}: {:?}", skew_ms(estate));
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    wait_for(&estate, "an hour ahead", &|skew| skew.is_some_and(|skew| (3_540_000..3_660_000).contains(&skew)));
    // Backups go on: what is read is right, whatever the time.
    estate.wait_for_vms(&["DC01"]);
    let destination = estate.folder_destination();
    let job = estate.job(0, destination, &json!({}));
    for _ in 0..2 {
        let run = estate.start_run(job).remove(0);
        assert_eq!(estate.server.ended(&run)["run"]["status"], "success");
    }
    let repository = Repository::folder();
    assert_eq!(estate.stored_points(&repository), 2);
    let oldest = estate.server.points_of("DC01").pop().unwrap()["id"].clone();
    let delete = json!({"backup_point_ids": [oldest], "confirm_phrase": "1"});
    estate.server.post("cloudbackup_point_delete.php", &delete);
    estate.server.advance(25 * 3600);
    let begun = Instant::now();
    while !estate.log_of(0).contains("delete points") {
        assert!(begun.elapsed() < Duration::from_secs(60), "it was not refused: {}", estate.log_of(0));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(estate.stored_points(&repository), 2, "it was deleted");

    // The clocks agree again, and that is told as well.
    assert!(estate.stop_agent(0).success());
    estate.server.advance(3600 - 25 * 3600);
    estate.start_agent(0, &[]);
    wait_for(&estate, "together again", &|skew| skew.is_some_and(|skew| skew.abs() < 60_000));
}

#[test]
fn a_certificate_that_is_renewed_for_the_same_key_is_still_the_servers() {
    let mut estate = Estate::enrolled(None);
    estate.add_vm(0, "DC01", 4, 1);
    estate.start_agent(0, &[]);
    estate.wait_for_vms(&["DC01"]);
    let destination = estate.folder_destination();
    let job = estate.job(0, destination, &json!({}));
    let former = estate.server.fingerprint.clone();
    let renew = |estate: &mut Estate, files: &[&str]| {
        estate.server.kill();
        for file in files {
            std::fs::remove_file(estate.desk.path("server").join(file)).unwrap();
        }
        estate.server.begin();
    };
    renew(&mut estate, &["server.crt"]);
    assert_ne!(estate.server.fingerprint, former);
    let run = estate.start_run(job).remove(0);
    assert_eq!(estate.server.ended(&run)["run"]["status"], "success");

    // Another key is another server.
    let same_key = estate.server.fingerprint.clone();
    renew(&mut estate, &["server.crt", "server.key"]);
    assert_ne!(estate.server.fingerprint, same_key);
    let run = estate.start_run(job).remove(0);
    let begun = Instant::now();
    while !estate.log_of(0).contains("the server's certificate has the fingerprint") {
        if begun.elapsed() > Duration::from_secs(60) {
            let run = estate.server.get("cloudbackup_get_run.php", &[("run_id", &run.to_string())]);
            panic!("no word of another key: {run} {}", estate.log_of(0));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let run = estate.server.get("cloudbackup_get_run.php", &[("run_id", &run.to_string())]);
    assert_eq!(run["run"]["status"], "queued", "{run}");
}

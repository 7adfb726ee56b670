//! The life of a run from a person's job to a restore point, on every database.

mod support;

use serde_json::{Value, json};
use support::database::Database;
use support::{As, TestServer, at_once, result};

/// A server with an owner, one agent with two VMs, and a job of both.
struct Lab {
    server: TestServer,
    owner: As,
    agent: As,
    job: Value,
}

impl Lab {
    fn new(database: &Database) -> Lab {
        let server = TestServer::start(database);
        let owner = server.token(&server.set_up());
        let agent = server.agent(&owner, "HV01", None);
        server.discover(&agent, &["DC01", "FS02"]);
        let destination = server.destination(&owner, "one/", None);
        let job = server.job(&owner, &agent, destination, None);
        Lab { server, owner, agent, job }
    }

    fn start(&self) -> Value {
        self.server.post(&self.owner, "cloudbackup_start_run.php", &json!({"job_id": self.job["job_id"]})).ok()
    }

    fn run(&self, id: &Value) -> Value {
        self.server.get(&self.owner, "cloudbackup_get_run.php", &json!({ "run_id": id })).ok()
    }
}

#[test]
fn from_a_job_to_a_point_and_an_incremental_from_it() {
    for database in Database::each() {
        let lab = Lab::new(&database);
        let queued = lab.start();
        let poll = lab.server.get(&lab.agent, "agent_poll.php", &json!({"long_poll": 1})).ok();
        assert_eq!(poll["run_available"], true, "{database:?}: {poll}");
        let run = lab.server.claim(&lab.agent);
        assert_eq!(run["run_id"], queued["run_id"], "{run}");
        assert_eq!(run["dest_secret_key"], "canary-secret-key");
        assert!(run["repository_password"].as_str().is_some_and(|password| password.len() == 43), "{run}");
        let vms = run["hyperv_vms"].as_array().expect("VMs");
        assert_eq!(vms.len(), 2, "{run}");
        assert_eq!((&vms[0]["vm_name"], &vms[0]["full_reason"]), (&json!("DC01"), &json!("first_run")));
        assert_eq!(vms[0]["last_checkpoint_id"], Value::Null);

        let progress = json!({
            "run_id": run["run_id"], "claim_id": run["claim_id"], "seq": 1, "status": "running",
            "progress_pct": 40.5, "bytes_processed": 1000, "bytes_total": 2500, "current_item": "VM 1/2: DC01",
        });
        let answer = lab.server.post(&lab.agent, "agent_update_run.php", &progress).ok();
        assert_eq!((&answer["run_status"], &answer["cancel_requested"]), (&json!("running"), &json!(false)));
        let back = json!({"run_id": run["run_id"], "claim_id": run["claim_id"], "seq": 2, "progress_pct": 12.0});
        lab.server.post(&lab.agent, "agent_update_run.php", &back).ok();
        let seen = lab.server.get(&lab.owner, "cloudbackup_progress.php", &json!({"run_id": run["run_id"]})).ok();
        assert_eq!((&seen["progress_pct"], &seen["bytes_processed"]), (&json!(40.5), &json!(1000)), "{seen}");
        assert_eq!((&seen["status"], &seen["run_status"]), (&json!("success"), &json!("running")), "{seen}");

        let points = lab.server.back_up(&lab.agent, &run);
        let detail = lab.run(&run["run_id"]);
        assert_eq!((&detail["run"]["status"], &detail["run"]["progress_pct"]), (&json!("success"), &json!(100.0)));
        assert_eq!(detail["vms"][1]["backup_point_id"], points[1]);

        lab.server.pass(1.0);
        lab.start();
        let second = lab.server.claim(&lab.agent);
        let vm = &second["hyperv_vms"][0];
        assert_eq!(vm["full_reason"], Value::Null, "{vm}");
        assert_eq!(vm["last_checkpoint_id"], json!(format!("cp-DC01-{}-1", run["run_id"])), "{vm}");
        assert_eq!(vm["base_backup_point_id"], points[0]);
        assert_eq!(vm["last_disks"][0]["rct_id"], json!(format!("rct-DC01-{}-1", run["run_id"])));
        let mut body = result(&second, vm);
        body["run_id"] = second["run_id"].clone();
        body["claim_id"] = second["claim_id"].clone();
        let committed = lab.server.post(&lab.agent, "agent_hyperv_update_checkpoint.php", &body).ok();
        let superseded = json!([format!("rp-DC01-{}-1", run["run_id"])]);
        assert_eq!(committed["superseded"], superseded, "{committed}");
        let again = lab.server.post(&lab.agent, "agent_hyperv_update_checkpoint.php", &body).ok();
        assert_eq!(again, committed, "a repeated commit answers the same");
        body["manifest_id"] = json!("another");
        lab.server.post(&lab.agent, "agent_hyperv_update_checkpoint.php", &body).refused(409, "conflict");
        lab.server.back_up(&lab.agent, &second);

        let listed =
            lab.server.get(&lab.owner, "cloudbackup_hyperv_backup_points.php", &json!({"vm_id": vm["vm_id"]})).ok();
        assert_eq!(listed["total"], 2, "{listed}");
        let newest = &listed["backup_points"][0];
        assert_eq!(
            (&newest["backup_type"], &newest["is_restorable"]),
            (&json!("Incremental"), &json!(true)),
            "{newest}"
        );
        assert_eq!((&newest["parent_backup_id"], &newest["restore_chain_length"]), (&json!(points[0]), &json!(1)));
        assert_eq!(newest["restore_chain"][0]["type"], "Full");
        assert_eq!(lab.server.count("SELECT COUNT(*) FROM s3_hyperv_checkpoints WHERE is_active = 1"), 2);

        lab.server.tick();
        let vms = lab.server.get(&lab.owner, "cloudbackup_vms.php", &json!({})).ok();
        assert_eq!(vms["states"]["protected"], 2, "{vms}");
        lab.server.stop();
    }
}

#[test]
fn a_run_is_claimed_once_whoever_asks() {
    for database in Database::each() {
        let lab = Lab::new(&database);
        for _ in 0..3 {
            lab.start();
            let replies = at_once(8, |_| lab.server.post(&lab.agent, "agent_next_run.php", &json!({})).ok());
            let claimed: Vec<&Value> = replies.iter().filter(|reply| reply["run"].is_object()).collect();
            assert_eq!(claimed.len(), 1, "{database:?}: {replies:?}");
            lab.server.back_up(&lab.agent, &claimed[0]["run"]);
        }
        let refused = at_once(6, |_| {
            lab.server.post(&lab.owner, "cloudbackup_start_run.php", &json!({"job_id": lab.job["job_id"]}))
        });
        let codes: Vec<u16> = refused.iter().map(|reply| reply.status).collect();
        assert_eq!(codes.iter().filter(|status| **status == 200).count(), 1, "{database:?}: {refused:?}");
        assert_eq!(codes.iter().filter(|status| **status == 409).count(), 5, "{database:?}: {refused:?}");
        lab.server.stop();
    }
}

#[test]
fn a_restarted_agent_gets_its_run_again_and_the_old_claim_is_dead() {
    for database in Database::each() {
        let lab = Lab::new(&database);
        lab.start();
        let first = lab.server.claim(&lab.agent);
        let mut body = result(&first, &first["hyperv_vms"][0]);
        body["run_id"] = first["run_id"].clone();
        body["claim_id"] = first["claim_id"].clone();
        lab.server.post(&lab.agent, "agent_hyperv_update_checkpoint.php", &body).ok();
        let none = lab.server.post(&lab.agent, "agent_next_run.php", &json!({})).ok();
        assert_eq!(none["status"], "no_run", "the same process still works on it");

        let restarted = lab.agent.restarted("boot-2");
        let second = lab.server.claim(&restarted);
        assert_eq!(
            (&second["run_id"], &second["attempt"], &second["resume"]),
            (&first["run_id"], &json!(2), &json!(true))
        );
        assert_eq!(
            (&second["hyperv_vms"][0]["committed"], &second["hyperv_vms"][1]["committed"]),
            (&json!(true), &json!(false))
        );
        let old = json!({"run_id": first["run_id"], "claim_id": first["claim_id"], "seq": 9, "status": "success"});
        lab.server.post(&lab.agent, "agent_update_run.php", &old).refused(409, "stale_claim");
        let third = lab.server.claim(&lab.agent.restarted("boot-3"));
        assert_eq!(third["attempt"], 3);
        let none = lab.server.post(&lab.agent.restarted("boot-4"), "agent_next_run.php", &json!({})).ok();
        assert_eq!(none["status"], "no_run");
        let run = lab.run(&first["run_id"]);
        assert_eq!((&run["run"]["status"], &run["run"]["error_code"]), (&json!("failed"), &json!("RESUME_LIMIT")));
        assert_eq!(lab.server.count("SELECT COUNT(*) FROM s3_hyperv_backup_points"), 1, "its point stays");
        lab.server.stop();
    }
}

#[test]
fn a_silent_run_fails_and_a_late_commit_is_still_taken() {
    for database in Database::each() {
        let lab = Lab::new(&database);
        lab.start();
        let run = lab.server.claim(&lab.agent);
        lab.server.pass(11.0 / 60.0);
        lab.server.tick();
        assert_eq!(lab.run(&run["run_id"])["run"]["status"], "starting", "eleven minutes are not twelve");
        lab.server.pass(1.5 / 60.0);
        lab.server.tick();
        let failed = lab.run(&run["run_id"]);
        assert_eq!(
            (&failed["run"]["status"], &failed["run"]["error_code"]),
            (&json!("failed"), &json!("AGENT_OFFLINE"))
        );

        let mut body = result(&run, &run["hyperv_vms"][0]);
        body["run_id"] = run["run_id"].clone();
        body["claim_id"] = run["claim_id"].clone();
        lab.server.post(&lab.agent, "agent_hyperv_update_checkpoint.php", &body).ok();
        let late = json!({"run_id": run["run_id"], "claim_id": run["claim_id"], "seq": 5, "status": "success"});
        let answer = lab.server.post(&lab.agent, "agent_update_run.php", &late).ok();
        assert_eq!((&answer["ignored"], &answer["run_status"]), (&json!("terminal"), &json!("failed")));
        // A newer point of the VM exists now: what the old run still brings for it is refused.
        lab.start();
        let newer = lab.server.claim(&lab.agent);
        lab.server.back_up(&lab.agent, &newer);
        let mut body = result(&run, &run["hyperv_vms"][1]);
        body["run_id"] = run["run_id"].clone();
        body["claim_id"] = run["claim_id"].clone();
        lab.server.post(&lab.agent, "agent_hyperv_update_checkpoint.php", &body).refused(409, "stale_claim");
        lab.server.stop();
    }
}

#[test]
fn cancelling_ends_a_queued_run_at_once_and_asks_a_running_one() {
    for database in Database::each() {
        let lab = Lab::new(&database);
        let cancel = |run: &Value, force: bool| {
            lab.server.post(&lab.owner, "cloudbackup_cancel_run.php", &json!({"run_id": run, "force": force}))
        };
        let queued = lab.start();
        assert_eq!(cancel(&queued["run_id"], false).ok()["run_status"], "cancelled");
        cancel(&queued["run_id"], false).refused(409, "invalid_transition");

        lab.start();
        let run = lab.server.claim(&lab.agent);
        let answer = cancel(&run["run_id"], false).ok();
        assert_eq!((&answer["run_status"], &answer["cancel_requested"]), (&json!("starting"), &json!(true)));
        let poll = lab.server.get(&lab.agent, "agent_poll.php", &json!({})).ok();
        assert_eq!(poll["cancel_runs"], json!([run["run_id"]]));
        let commands = lab.server.post(&lab.agent, "agent_poll_commands.php", &json!({"run_id": run["run_id"]})).ok();
        assert_eq!(commands["commands"], json!([{"type": "cancel"}]));
        let mut end = json!({"run_id": run["run_id"], "claim_id": run["claim_id"], "seq": 2, "status": "cancelled"});
        lab.server.post(&lab.agent, "agent_update_run.php", &end).refused(409, "invalid_transition");
        end["cancel_ack"] = json!(true);
        assert_eq!(lab.server.post(&lab.agent, "agent_update_run.php", &end).ok()["run_status"], "cancelled");

        lab.start();
        let run = lab.server.claim(&lab.agent);
        assert_eq!(cancel(&run["run_id"], true).ok()["run_status"], "cancelled");
        lab.server.stop();
    }
}

#[test]
fn a_run_is_called_what_its_vms_came_to_and_foreign_results_are_refused_whole() {
    for database in Database::each() {
        let lab = Lab::new(&database);
        lab.start();
        let run = lab.server.claim(&lab.agent);
        let (one, other) = (&run["hyperv_vms"][0], &run["hyperv_vms"][1]);
        let mut foreign = result(&run, other);
        foreign["vm_id"] = json!(999_999);
        let body = json!({
            "run_id": run["run_id"], "claim_id": run["claim_id"], "seq": 1, "status": "running",
            "hyperv_results": [result(&run, one), foreign],
        });
        lab.server.post(&lab.agent, "agent_update_run.php", &body).refused(422, "validation_failed");
        assert_eq!(
            lab.server.count("SELECT COUNT(*) FROM s3_hyperv_backup_points"),
            0,
            "nothing of the call is stored"
        );
        let mut failed = result(&run, other);
        failed["error"] = json!("disk cannot be read");
        failed["error_code"] = json!("DISK_READ_FAILED");
        let body = json!({
            "run_id": run["run_id"], "claim_id": run["claim_id"], "seq": 2, "status": "success",
            "hyperv_results": [result(&run, one), failed],
        });
        let answer = lab.server.post(&lab.agent, "agent_update_run.php", &body).ok();
        assert_eq!(answer["run_status"], "partial_success", "{database:?}: {answer}");
        assert_eq!(lab.server.count("SELECT COUNT(*) FROM s3_hyperv_backup_points"), 1);
        let detail = lab.run(&run["run_id"]);
        assert_eq!(detail["vms"][1]["error_code"], "DISK_READ_FAILED", "{detail}");
        lab.server.stop();
    }
}

#[test]
fn a_slot_starts_one_run_however_many_instances_look() {
    for database in Database::each() {
        let lab = Lab::new(&database);
        lab.server.pass(25.0);
        let app = lab.server.app();
        let looks = at_once(4, |_| lab.server.runtime.block_on(server::scheduler::tick(app, false)));
        assert!(looks.iter().all(Result::is_ok), "{database:?}: {looks:?}");
        assert_eq!(lab.server.count("SELECT COUNT(*) FROM s3_cloudbackup_runs"), 1, "{database:?}");
        assert_eq!(lab.server.count("SELECT COUNT(*) FROM s3_schedule_slots WHERE outcome = 'queued'"), 1);
        // Two more days pass and nobody fetched the first run: the slot says why it was skipped.
        lab.server.pass(24.0);
        lab.server.tick();
        assert_eq!(lab.server.count("SELECT COUNT(*) FROM s3_cloudbackup_runs"), 1);
        let skipped =
            "SELECT COUNT(*) FROM s3_schedule_slots WHERE outcome = 'skipped' AND reason = 'a run is in progress'";
        assert_eq!(lab.server.count(skipped), 1);
        lab.server.stop();
    }
}

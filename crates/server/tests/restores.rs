//! What commands carry: the runs of restores, step by step, and verifications that stay with their points.

mod support;

use serde_json::{Value, json};
use support::database::Database;
use support::{As, TestServer};

/// An owner, a host with two VMs and a point of each, and a second host.
struct Lab {
    server: TestServer,
    owner: As,
    agent: As,
    target: As,
    job: Value,
    points: Vec<i64>,
}

impl Lab {
    fn new(database: &Database) -> Lab {
        let server = TestServer::start(database);
        let owner = server.token(&server.set_up());
        let (agent, target) = (server.agent(&owner, "HV01", None), server.agent(&owner, "HV02", None));
        server.discover(&agent, &["DC01", "FS02"]);
        let destination = server.destination(&owner, "one/", None);
        let job = server.job(&owner, &agent, destination, None)["job_id"].clone();
        server.post(&owner, "cloudbackup_start_run.php", &json!({ "job_id": job })).ok();
        let run = server.claim(&agent);
        let points = server.back_up(&agent, &run);
        Lab { server, owner, agent, target, job, points }
    }

    /// Starts a restore of both VMs; its run.
    fn restore(&self) -> Value {
        let vms: Vec<Value> = self.points.iter().map(|point| json!({ "backup_point_id": point })).collect();
        let asked = json!({ "vms": vms, "target_host": "HV02" });
        self.server.post(&self.owner, "cloudbackup_hyperv_start_restore.php", &asked).ok()["restore_run_id"].clone()
    }

    /// What the target is given to do.
    fn commands(&self) -> Vec<Value> {
        let answer = self.server.get(&self.target, "agent_poll.php", &json!({})).ok();
        answer["commands"].as_array().expect("commands").clone()
    }

    fn run(&self, id: &Value) -> Value {
        self.server.get(&self.owner, "cloudbackup_get_run.php", &json!({ "run_id": id })).ok()["run"].clone()
    }

    fn update(&self, run: &Value, claim: &Value, seq: i64, status: &str) -> support::Reply {
        let body = json!({ "run_id": run, "claim_id": claim, "seq": seq, "status": status });
        self.server.post(&self.target, "agent_update_run.php", &body)
    }

    fn may_read(&self, point: i64) -> bool {
        let asked = json!({ "backup_point_id": point });
        self.server.get(&self.target, "agent_hyperv_get_restore_info.php", &asked).status == 200
    }
}

#[test]
fn a_restores_run_goes_through_its_states_under_the_lease_of_its_command() {
    for database in Database::each() {
        let lab = Lab::new(&database);
        let run = lab.restore();
        assert_eq!(lab.run(&run)["status"], "queued");
        assert!(lab.points.iter().all(|point| lab.may_read(*point)), "{database:?}: every VM's point");
        let first = lab.commands().remove(0);
        let begun = lab.run(&run);
        assert_eq!((&begun["status"], &begun["attempt"]), (&json!("starting"), &json!(1)), "{begun}");
        lab.update(&run, &json!("another"), 1, "running").refused(409, "stale_claim");
        lab.update(&run, &first["lease_token"], 1, "running").ok();
        assert_eq!(lab.run(&run)["status"], "running");

        // The agent is lost; whoever gets the command then has the run, and the first one's word counts no more.
        lab.server.pass(130.0 / 3600.0);
        lab.server.tick();
        let second = lab.commands().remove(0);
        assert_eq!(second["command_id"], first["command_id"]);
        assert_eq!(lab.run(&run)["attempt"], 2);
        lab.update(&run, &first["lease_token"], 2, "success").refused(409, "stale_claim");
        lab.update(&run, &second["lease_token"], 1, "running").ok();
        lab.update(&run, &second["lease_token"], 2, "warning").ok();
        let done = json!({ "command_id": second["command_id"], "status": "completed" });
        lab.server.post(&lab.target, "agent_complete_command.php", &done).ok();
        assert_eq!(lab.run(&run)["status"], "warning", "what the agent said of the run stays");
        assert!(!lab.points.iter().any(|point| lab.may_read(*point)), "{database:?}: not any longer");
        lab.server.stop();
    }
}

#[test]
fn a_restore_that_nobody_ends_has_failed() {
    // What the agent says of the command, and what becomes of a run that it said nothing more of.
    for (said, status, code) in [("completed", "success", Value::Null), ("failed", "failed", json!("RESTORE_FAILED"))] {
        let lab = Lab::new(&Database::Sqlite);
        let run = lab.restore();
        let command = lab.commands().remove(0);
        let done = json!({ "command_id": command["command_id"], "status": said, "result_message": "why" });
        lab.server.post(&lab.target, "agent_complete_command.php", &done).ok();
        let ended = lab.run(&run);
        assert_eq!((&ended["status"], &ended["error_code"]), (&json!(status), &code), "{ended}");
        lab.server.stop();
    }
    // Three deliveries without an answer; a day without one.
    let lab = Lab::new(&Database::Sqlite);
    let run = lab.restore();
    for _ in 0..3 {
        assert_eq!(lab.commands().len(), 1);
        lab.server.pass(130.0 / 3600.0);
        lab.server.tick();
    }
    assert!(lab.commands().is_empty());
    assert_eq!((&lab.run(&run)["status"], &lab.run(&run)["error_code"]), (&json!("failed"), &json!("AGENT_OFFLINE")));
    let run = lab.restore();
    lab.server.pass(25.0);
    lab.server.tick();
    assert_eq!(lab.run(&run)["status"], "failed");
    lab.server.stop();
}

#[test]
fn a_restore_that_was_cancelled_before_it_began_reaches_no_agent() {
    let lab = Lab::new(&Database::Sqlite);
    let run = lab.restore();
    lab.server.post(&lab.owner, "cloudbackup_cancel_run.php", &json!({ "run_id": run })).ok();
    assert_eq!(lab.run(&run)["status"], "cancelled");
    assert!(lab.commands().is_empty());
    assert_eq!(lab.server.count("SELECT COUNT(*) FROM s3_cloudbackup_run_commands WHERE status = 'cancelled'"), 1);
    // One that goes on is asked, and ends it.
    let run = lab.restore();
    let command = lab.commands().remove(0);
    lab.server.post(&lab.owner, "cloudbackup_cancel_run.php", &json!({ "run_id": run })).ok();
    let poll = lab.server.get(&lab.target, "agent_poll.php", &json!({})).ok();
    assert_eq!(poll["cancel_runs"], json!([run]));
    let body = json!({
        "run_id": run, "claim_id": command["lease_token"], "seq": 1, "status": "cancelled", "cancel_ack": true,
    });
    lab.server.post(&lab.target, "agent_update_run.php", &body).ok();
    assert_eq!(lab.run(&run)["status"], "cancelled");
    lab.server.stop();
}

#[test]
fn what_a_verification_found_stands_on_the_point_and_a_damaged_one_is_no_base() {
    for database in Database::each() {
        let lab = Lab::new(&database);
        let point = lab.points[0];
        for (found, full_reason) in [("ok", Value::Null), ("damaged", json!("no_tracking_state"))] {
            let asked = json!({ "backup_point_id": point, "level": "sample" });
            lab.server.post(&lab.owner, "cloudbackup_verify_point.php", &asked).ok();
            let answer = lab.server.get(&lab.agent, "agent_poll.php", &json!({})).ok();
            let command = answer["commands"][0]["command_id"].clone();
            let result = json!({ "command_id": command, "result": { "status": found, "damage": [] } });
            lab.server.post(&lab.agent, "agent_report_browse.php", &result).ok();
            let listed = lab.server.get(&lab.owner, "e3backup_restore_points_list.php", &json!({})).ok();
            let listed = listed["restore_points"].as_array().expect("points").clone();
            let listed = listed.iter().find(|one| one["id"] == point).expect("the point");
            assert_eq!(
                (&listed["verify_status"], listed["verified_at"].is_string()),
                (&json!(found), true),
                "{listed}"
            );
            lab.server.post(&lab.owner, "cloudbackup_start_run.php", &json!({ "job_id": lab.job })).ok();
            let run = lab.server.claim(&lab.agent);
            assert_eq!(run["hyperv_vms"][0]["full_reason"], full_reason, "{database:?}, {found}");
            assert_eq!(run["hyperv_vms"][1]["full_reason"], Value::Null, "the other VM's point is none the worse");
            lab.server
                .post(&lab.owner, "cloudbackup_cancel_run.php", &json!({"run_id": run["run_id"], "force": true}))
                .ok();
        }
        lab.server.stop();
    }
}

//! Several instances on one database behave as one, and a killed one is missed by nobody.

mod support;

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::{Value, json};
use support::database::Database;
use support::{As, TestServer, at_once};

#[test]
fn a_session_a_claim_and_a_job_are_the_same_on_every_instance() {
    for database in Database::each() {
        let one = TestServer::start(&database);
        let owner = one.set_up();
        let token = one.token(&owner);
        let two = one.beside(&database, |_| {});
        assert!(two.setup_token.is_none(), "the first account is made once");
        let As::Session { cookie, csrf, .. } = owner else { panic!("a session") };
        let there = As::Session { cookie, csrf, origin: two.origin.clone() };
        two.get(&there, "console_session.php", &json!({})).ok();
        let agent = two.agent(&there, "HV01", None);
        one.discover(&agent, &["DC01"]);
        let destination = two.destination(&there, "one/", None);
        let job = one.job(&token, &agent, destination, None);
        for _ in 0..5 {
            two.post(&token, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).ok();
            let replies = at_once(8, |at| [&one, &two][at % 2].post(&agent, "agent_next_run.php", &json!({})).ok());
            let claimed: Vec<&Value> = replies.iter().filter(|reply| reply["run"].is_object()).collect();
            assert_eq!(claimed.len(), 1, "{database:?}: {replies:?}");
            one.back_up(&agent, &claimed[0]["run"]);
        }
        one.pass(25.0);
        let apps = [one.app(), two.app()];
        let looks = at_once(6, |at| one.runtime.block_on(server::scheduler::tick(apps[at % 2], true)));
        assert!(looks.iter().all(Result::is_ok), "{database:?}: {looks:?}");
        let scheduled = "SELECT COUNT(*) FROM s3_cloudbackup_runs WHERE trigger_type = 'schedule'";
        assert_eq!(one.count(scheduled), 1, "{database:?}");
        // One instance goes without a word: the other has everything.
        drop(one);
        let run = two.claim(&agent);
        two.back_up(&agent, &run);
        let audit = two.get(&token, "cloudbackup_audit.php", &json!({})).ok();
        assert_eq!(audit["chain_intact"], true, "{database:?}");
        two.stop();
    }
}

/// Many agents of many jobs claim at two instances at once.
fn claim_all(database: &Database, agents: usize, rounds: usize, workers: usize) {
    let one = TestServer::start(database);
    let token = one.token(&one.set_up());
    let two = one.beside(database, |_| {});
    let destination = one.destination(&token, "one/", None);
    let made = "UPDATE s3_cloudbackup_settings SET settings_json = settings_json";
    one.change(made);
    let agents: Vec<(As, Value)> = (0..agents)
        .map(|at| {
            let agent = one.agent(&token, &format!("HV{at}"), None);
            one.discover(&agent, &["DC01"]);
            let job = one.job(&token, &agent, destination, None);
            (agent, job)
        })
        .collect();
    let client = one.count("SELECT id FROM s3_clients");
    let limits = "{\"runs_per_agent\": 1000, \"runs_per_repository\": 100000}";
    let set = format!("UPDATE s3_cloudbackup_settings SET settings_json = '{limits}' WHERE client_id = {client}");
    assert_eq!(one.change(&set), 1);
    let started = Instant::now();
    let mut claimed = BTreeSet::new();
    for _ in 0..rounds {
        let started = at_once(workers, |at| {
            let mine = agents.iter().skip(at).step_by(workers);
            mine.filter(|(_, job)| {
                one.post(&token, "cloudbackup_start_run.php", &json!({"job_id": job["job_id"]})).status == 200
            })
            .count()
        });
        assert_eq!(started.iter().sum::<usize>(), agents.len());
        // Every worker asks for every agent: each run is wanted by all of them.
        let got = at_once(workers, |at| {
            let server = [&one, &two][at % 2];
            let mut got = Vec::new();
            for turn in 0..agents.len() {
                let (agent, _) = &agents[(turn + at * 7) % agents.len()];
                let reply = server.post(agent, "agent_next_run.php", &json!({})).ok();
                if let Some(run) = reply["run"].as_object() {
                    got.push((run["run_id"].as_i64().expect("id"), agent.clone(), reply["run"].clone()));
                }
            }
            got
        });
        for (run, agent, body) in got.into_iter().flatten() {
            assert!(claimed.insert(run), "run {run} was claimed twice");
            let end = json!({"run_id": run, "claim_id": body["claim_id"], "status": "failed", "seq": 1});
            one.post(&agent, "agent_update_run.php", &end).ok();
        }
    }
    assert_eq!(claimed.len(), agents.len() * rounds, "{database:?}");
    println!("{database:?}: {} runs claimed by {workers} workers in {:?}", claimed.len(), started.elapsed());
    one.stop();
    two.stop();
}

#[test]
fn no_run_is_claimed_twice() {
    for database in Database::each() {
        claim_all(&database, 12, 2, 6);
    }
}

#[test]
#[ignore = "long: 5,000 runs for 100 workers"]
fn no_run_of_five_thousand_is_claimed_twice() {
    for database in Database::each() {
        claim_all(&database, 250, 20, 100);
    }
}

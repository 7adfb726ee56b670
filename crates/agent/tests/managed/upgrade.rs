//! The agent's program is replaced while a run goes on (spec engines E.5): by a newer one, and by one that does not come up.
//!
//! The newer one is this build under another version, so that the server can tell them apart; what a service manager and a
//! package do (stop, replace, start, put the former one back) is done by the test.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::estate::{Estate, Repository};
use crate::faults::{SLOW, expect_one_good_run};

const FORMER: &str = env!("CARGO_PKG_VERSION");

/// A version as long as this one's, so that every place in the program stays where it is.
fn newer() -> String {
    let (rest, last) = FORMER.split_at(FORMER.len() - 1);
    format!("{rest}{}", if last == "9" { "8" } else { "9" })
}

/// Writes this build's program, called `version`.
fn install(program: &Path, version: &str) {
    let mut bytes = std::fs::read(env!("CARGO_BIN_EXE_e3-backup-agent")).unwrap();
    let (former, wanted) = (FORMER.as_bytes(), version.as_bytes());
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(former.len()).position(|window| window == former) {
        at += found;
        bytes[at..at + former.len()].copy_from_slice(wanted);
        at += former.len();
    }
    replace(program, &bytes);
}

/// As a package does it: whole, beside the one that runs, and renamed over it.
fn replace(program: &Path, bytes: &[u8]) {
    let unpacked = program.with_extension("new");
    std::fs::write(&unpacked, bytes).unwrap();
    std::fs::set_permissions(&unpacked, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(&unpacked, program).unwrap();
}

impl Estate {
    fn version_of(&self, host: usize) -> String {
        let agents = self.server.get("e3backup_agent_list.php", &[]);
        let id = self.agent_ids[host];
        let agent = agents["agents"].as_array().unwrap().iter().find(|agent| agent["agent_id"] == id);
        agent.unwrap()["agent_version"].as_str().unwrap_or_default().to_owned()
    }
}

/// A host whose agent runs from a place of its own, in the middle of a run.
fn in_the_middle(phase: &str) -> (Estate, i64, serde_json::Value) {
    let mut estate = Estate::with_slow_merges();
    let program = estate.desk.path("e3-backup-agent");
    install(&program, FORMER);
    estate.program = Some(program);
    estate.add_vm(0, "DC01", 6, 1);
    estate.start_agent(0, &[]);
    estate.wait_for_vms(&["DC01"]);
    let destination = estate.folder_destination();
    let job = estate.job(0, destination, &serde_json::from_str(SLOW).unwrap());
    let run = estate.start_run(job).remove(0);
    assert!(estate.wait_for_phase(&run, phase), "the run ended before it was seen {phase}");
    assert_eq!(estate.version_of(0), FORMER);
    (estate, job, run)
}

#[test]
fn a_newer_agent_goes_on_with_the_run_of_the_former_one() {
    for phase in ["reading", "watching the merge"] {
        let (mut estate, job, run) = in_the_middle(phase);
        install(&estate.program.clone().unwrap(), &newer());
        assert!(estate.stop_agent(0).success(), "{phase}");
        estate.start_agent(0, &[]);
        expect_one_good_run(&mut estate, job, &run);
        assert_eq!(estate.version_of(0), newer(), "{phase}");
    }
}

#[test]
fn a_newer_agent_that_does_not_come_up_gives_way_to_the_former_one() {
    let (mut estate, job, run) = in_the_middle("reading");
    let program = estate.program.clone().unwrap();
    let former = std::fs::read(&program).unwrap();
    assert!(estate.stop_agent(0).success());
    estate.expect_clean_host(0, "DC01", 0);
    replace(&program, b"#!/bin/sh\nexit 1\n");
    estate.start_agent(0, &[]);
    assert!(!estate.agent_ended(0).success());
    replace(&program, &former);
    estate.start_agent(0, &[]);
    expect_one_good_run(&mut estate, job, &run);
    assert_eq!((estate.version_of(0).as_str(), estate.stored_points(&Repository::folder())), (FORMER, 1));
}

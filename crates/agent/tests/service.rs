//! The running agent: jobs as they are due, a clean stop at any moment, and order after a crash.
#![cfg(unix)]

mod support;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Desk, Run};

/// A desk whose agent has this configuration.
fn desk(jobs: &str) -> Desk {
    let desk = Desk::new();
    std::fs::write(desk.path("config.toml"), jobs).unwrap();
    desk
}

/// The agent, killed when the test ends in whatever way.
struct Agent<'a> {
    desk: &'a Desk,
    child: Option<Child>,
}

impl<'a> Agent<'a> {
    fn start(desk: &'a Desk) -> Self {
        let mut command = desk.command(["run"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { desk, child: Some(child) }
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().unwrap().id();
        kill_process(Pid::from_raw(id.cast_signed()).unwrap(), signal).unwrap();
    }

    /// The first status for which `is_it` gives something.
    fn wait_for<T>(&self, what: &str, is_it: impl Fn(&Value) -> Option<T>) -> T {
        let begun = Instant::now();
        let mut last = String::new();
        while begun.elapsed() < Duration::from_secs(120) {
            let run = self.desk.run(["service", "status", "--json"]);
            if run.exit == Some(0) {
                if let Some(found) = is_it(&run.json()) {
                    return found;
                }
                last = run.stdout;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{what} was not seen; last: {last}");
    }

    fn stop(mut self) -> Run {
        self.signal(Signal::TERM);
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        Run {
            exit: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn points(desk: &Desk) -> usize {
    desk.json(0, ["points", "list"])["points"].as_array().unwrap().len()
}

const EVERY_SECOND: &str = "[[job]]\nname = \"often\"\nevery = \"1s\"\nexcept = [\"*-test\"]\n";

#[test]
fn jobs_run_again_and_again_on_the_vms_they_cover() {
    let desk = desk(EVERY_SECOND);
    desk.add_vm("DC01", 4, 1);
    desk.add_vm("web-test", 4, 2);
    let agent = Agent::start(&desk);
    let first = agent.wait_for("a run", |status| status["jobs"]["often"]["last_ended"].as_str().map(str::to_owned));
    // One agent per host.
    desk.fails(7, "BUSY", ["run"]);
    let second = agent.wait_for("another run", |status| {
        status["jobs"]["often"]["last_ended"].as_str().filter(|ended| *ended != first).map(str::to_owned)
    });
    assert!(second > first);
    let table = desk.ok(["service", "status"]).stdout;
    assert!(table.contains("often") && table.contains("every 1.0 s"), "{table}");
    let run = agent.stop();
    assert_eq!(run.exit, Some(0), "{run:?}");
    assert!(run.stderr.contains("started: often every 1.0 s") && run.stderr.contains("stopped"), "{run:?}");
    assert!(run.stderr.contains("job often after") && run.stderr.contains("1 of 1 VMs backed up"), "{run:?}");
    assert_eq!(desk.ok(["service", "status", "--quiet"]).stdout, "stopped\n");
    assert!(points(&desk) >= 2);
    desk.expect_clean_host("DC01", 1);
    desk.expect_clean_host("web-test", 0);
}

#[test]
fn a_stop_in_the_middle_of_a_run_leaves_nothing_behind() {
    // One phase after another: the stop comes as soon as the phase is seen, or in one that follows.
    for phase in ["creating the checkpoint", "reading the definition", "making it durable", "watching the merge"] {
        let desk = desk(EVERY_SECOND);
        desk.add_vm("DC01", 48, 1);
        let agent = Agent::start(&desk);
        agent.wait_for(phase, |status| {
            let done = status["jobs"]["often"]["last_ended"].is_string();
            (done || status["running"]["phase"] == phase).then_some(())
        });
        let run = agent.stop();
        assert_eq!(run.exit, Some(0), "{phase}: {run:?}");
        desk.expect_clean_host("DC01", usize::from(points(&desk) > 0));
    }
}

#[test]
fn what_a_crash_left_is_put_in_order_at_the_start() {
    let desk = desk("");
    desk.add_vm("DC01", 8, 1);
    desk.ok(["backup", "DC01"]);
    let killed = desk.command(["backup", "DC01"]).env("E3_LAB_KILL_AT", "seam:60:after").output().unwrap();
    assert_eq!(killed.status.code(), None, "the hook kills");
    let (_, recovery) = desk.lab().checkpoints("DC01").unwrap();
    assert_eq!(recovery.len(), 1, "the crash left its checkpoint");
    let agent = Agent::start(&desk);
    let begun = Instant::now();
    while !desk.lab().checkpoints("DC01").unwrap().1.is_empty() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let run = agent.stop();
    assert_eq!(run.exit, Some(0), "{run:?}");
    assert!(run.stderr.contains("DC01: "), "{run:?}");
    desk.expect_clean_host("DC01", 1);
}

#[test]
fn a_wrong_configuration_is_said_at_the_start_and_not_taken_later() {
    let desk = desk("[[job]]\nname = \"nightly\"\n");
    let failure = desk.fails(2, "USAGE", ["run"]);
    assert!(failure.stderr.contains("neither `at` nor `every`"), "{failure:?}");

    std::fs::write(desk.path("config.toml"), "[[job]]\nname = \"nightly\"\nat = \"22:00\"\n").unwrap();
    let agent = Agent::start(&desk);
    let due = agent.wait_for("the date", |status| status["jobs"]["nightly"]["due"].as_str().map(str::to_owned));
    assert!(due.contains("T22:00:00"), "{due}");
    std::fs::write(desk.path("config.toml"), "[[job]]\nname = \"nightly\"\nat = \"25:00\"\n").unwrap();
    agent.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(500));
    std::fs::write(desk.path("config.toml"), "[[job]]\nname = \"evening\"\nat = \"21:30\"\n").unwrap();
    agent.signal(Signal::HUP);
    agent.wait_for("the other job", |status| {
        let due = status["jobs"]["evening"]["due"].as_str()?;
        assert!(due.contains("T21:30:00"), "{due}");
        status["jobs"].get("nightly").is_none().then_some(())
    });
    let run = agent.stop();
    assert!(run.stderr.contains("was not taken, the former one stays"), "{run:?}");
}

#[test]
fn a_host_without_an_agent_is_said_so() {
    let desk = Desk::new();
    let failure = desk.fails(6, "NOT_FOUND", ["service", "status"]);
    assert!(failure.stderr.contains("no agent ever ran"), "{failure:?}");
    desk.fails(2, "USAGE", ["--host", "nonsense", "service", "status"]);
}

//! The life of the Windows service, under the real service manager (Wine's, in CI), with a simulated host.
#![cfg(windows)]

mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use support::{Desk, Run, finish};

/// Removes the service and the machine's configuration, however the test ends.
struct Installed<'a>(&'a Desk);

impl Installed<'_> {
    /// `service …`, of a machine: no user's configuration, nothing of the desk's environment.
    fn run(&self, arguments: &[&str]) -> Run {
        let mut command = self.0.command(["service"]);
        command.args(arguments).env_remove("E3_CONFIG").env_remove("E3_HOST").env_remove("E3_REPOSITORY");
        command.env_remove("E3_PASSWORD").env("APPDATA", self.0.path("no user"));
        finish(&mut command)
    }

    fn ok(&self, arguments: &[&str]) -> Run {
        let run = self.run(arguments);
        assert_eq!(run.exit, Some(0), "service {arguments:?}: {run:?}");
        run
    }

    fn wait_for(&self, what: &str, is_it: impl Fn(&serde_json::Value) -> bool) {
        let begun = Instant::now();
        let mut last = None;
        while begun.elapsed() < Duration::from_secs(120) {
            let run = self.run(&["status", "--json"]);
            if run.exit == Some(0) && is_it(&run.json()) {
                return;
            }
            last = Some(run);
            std::thread::sleep(Duration::from_millis(200));
        }
        panic!("{what} was not seen; last: {last:?}");
    }
}

impl Drop for Installed<'_> {
    fn drop(&mut self) {
        let _ = self.run(&["remove"]);
        let _ = std::fs::remove_file(machine_config());
    }
}

fn machine_folder() -> PathBuf {
    PathBuf::from(format!(r"{}\ProgramData\e3", std::env::var("SystemDrive").unwrap()))
}

fn machine_config() -> PathBuf {
    machine_folder().join("config.toml")
}

#[test]
fn the_service_lives_as_the_service_manager_wants() {
    let desk = Desk::new();
    desk.add_vm("DC01", 4, 1);
    let service = Installed(&desk);
    let missing = service.run(&["start"]);
    missing.expect_failure(6, "NOT_FOUND");

    assert!(service.ok(&["install"]).stdout.contains("installed"));
    for folder in ["", "state", "log"] {
        assert!(machine_folder().join(folder).is_dir(), "{folder}");
    }
    let source = std::process::Command::new("reg")
        .args(["query", r"HKLM\SYSTEM\CurrentControlSet\Services\EventLog\Application\e3-backup-agent"])
        .output()
        .unwrap();
    let source = String::from_utf8_lossy(&source.stdout).into_owned();
    assert!(source.contains("EventMessageFile") && source.contains("EventCreate.exe"), "{source}");

    // A wrong configuration: the service ends by itself, and the start says so.
    std::fs::write(machine_config(), "nonsense = 1\n").unwrap();
    service.run(&["start"]).expect_failure(9, "HOST_FAILED");

    let password = desk.path("password.txt");
    std::fs::write(&password, support::PASSWORD).unwrap();
    let job = |name: &str| {
        format!(
            "repository = {:?}\nhost = {:?}\npassword_file = {:?}\n[[job]]\nname = {name:?}\nevery = \"1s\"\n",
            desk.path("repo").display().to_string(),
            format!("lab:{}", desk.path("lab").display()),
            password.display().to_string(),
        )
    };
    std::fs::write(machine_config(), job("often")).unwrap();
    assert_eq!(service.ok(&["start"]).stdout.trim(), "running");
    service.wait_for("a run", |status| status["jobs"]["often"]["last_exit"] == 0);
    assert_eq!(service.ok(&["start"]).stdout.trim(), "running", "it runs already");

    assert_eq!(service.ok(&["pause"]).stdout.trim(), "paused");
    service.wait_for("the pause", |status| status["state"] == "paused");
    let runs = || desk.json(0, ["points", "list"])["points"].as_array().unwrap().len();
    let before = runs();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(runs(), before, "no run begins in a pause");
    assert_eq!(service.ok(&["resume"]).stdout.trim(), "running");
    service.wait_for("another run", |_| runs() > before);

    std::fs::write(machine_config(), job("seldom")).unwrap();
    service.ok(&["reload"]);
    service.wait_for("the other job", |status| {
        status["jobs"].get("often").is_none() && status["jobs"]["seldom"]["last_exit"] == 0
    });

    assert_eq!(service.ok(&["stop"]).stdout.trim(), "stopped");
    service.wait_for("the end", |status| status["state"] == "stopped");
    desk.expect_clean_host("DC01", 1);
    assert_eq!(service.ok(&["stop"]).stdout.trim(), "stopped", "it was stopped already");
    let log: String = std::fs::read_dir(machine_folder().join("log"))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    assert!(log.contains("started: often") && log.contains("1 of 1 VMs backed up"), "{log}");

    // An update is an installation over the old one; afterwards it starts again.
    service.ok(&["install", "--start"]);
    service.wait_for("the start after an update", |status| status["state"] != "stopped");
    assert!(service.ok(&["remove"]).stdout.contains("removed"));
    service.run(&["start"]).expect_failure(6, "NOT_FOUND");
    assert!(machine_config().is_file(), "configuration stays");
}

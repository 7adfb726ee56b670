//! `instant …`, as its operator meets it. QEMU's tools stand in for the guest; a real one is in `qemu_guest`.
#![cfg(unix)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::serving::{Serving, instant, until};
use support::{Desk, finish};

const MIB: usize = 1 << 20;

fn uri_of(keeper: &Serving, disk: usize) -> String {
    keeper.first["disks"][disk]["uri"].as_str().unwrap().to_owned()
}

fn has(test: &str, programs: &[&str]) -> bool {
    let missing = programs.iter().find(|name| {
        !Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    });
    if let Some(name) = missing {
        eprintln!("skipped {test}: {name} is not there (packages qemu-utils, qemu-system-x86, qemu-block-extra)");
    }
    missing.is_none()
}

fn io(desk: &Desk, uri: &str, commands: &[&str]) -> bool {
    let mut qemu = Command::new("qemu-io");
    qemu.args(["-f", "raw"]).args(commands.iter().flat_map(|command| ["-c", command])).arg(uri);
    let run = qemu.current_dir(desk.path(".")).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    run.status.success() && !said.contains("failed") && !said.contains("error")
}

/// The disk of a VM, and what a guest makes of it.
fn desk_with_disk(mib: usize) -> (Desk, Vec<u8>) {
    let desk = Desk::new();
    desk.add_vm("DC01", mib, 1);
    desk.ok(["backup", "DC01"]);
    let disk = std::fs::read(desk.path("DC01-1.raw")).unwrap();
    (desk, disk)
}

#[test]
fn a_session_outlives_kills_and_ends_as_plain_files() {
    if !has("a_session_outlives_kills_and_ends_as_plain_files", &["qemu-io"]) {
        return;
    }
    // More than is copied before any of it counts.
    let (desk, mut expected) = desk_with_disk(160);
    let keeper = Serving::qemu_session(&desk, &["DC01@latest", "--cache", "cached"]);
    let (session, uri) = (keeper.session_id(), uri_of(&keeper, 0));
    let arguments = keeper.first["qemu"]["disks"][1].as_str().unwrap();
    assert!(arguments.starts_with("driver=nbd,server.type=unix,server.path="), "{arguments}");
    assert_eq!(keeper.first["state"], "SERVING");
    assert!(io(&desk, &uri, &["write -P 0x61 1M 64k", "write -z 5M 1M", "flush"]));
    expected[MIB..MIB + (64 << 10)].fill(0x61);
    expected[5 * MIB..6 * MIB].fill(0);
    let shown = instant(&desk, 0, &["show", "dc01"]);
    assert_eq!((&shown["session"]["is_served"], &shown["session"]["restarts"]["kill"]), (&true.into(), &0.into()));
    // Another cannot serve it, too.
    let second = ["instant", "start", "--resume", &session, "--host", "qemu", "--state", "sessions"];
    desk.fails(7, "BUSY", second);

    keeper.kill();
    let listed = instant(&desk, 0, &["list"]);
    assert_eq!(
        (&listed["sessions"][0]["is_served"], &listed["sessions"][0]["state"]),
        (&false.into(), &"SERVING".into())
    );
    let run = desk.fails(9, "HOST_FAILED", ["instant", "move", "DC01", "--to", "vms", "--state", "sessions"]);
    assert!(run.stderr.contains(&format!("instant start --resume {}", &session[..8])), "{run:?}");

    let keeper = Serving::qemu_session(&desk, &["--resume", &session[..6], "--linger", "2s"]);
    assert_eq!(uri_of(&keeper, 0), uri);
    assert_eq!(keeper.first["restarts"]["kill"], 1);
    assert!(io(&desk, &uri, &["read -P 0x61 1M 64k", "read -P 0 5M 1M", "write -P 0x62 9M 4k"]));
    expected[9 * MIB..9 * MIB + 4096].fill(0x62);
    desk.fails(2, "USAGE", ["instant", "switch", "DC01", "--state", "sessions"]);

    // So slow that it is killed in the middle.
    let slow = ["move", "DC01", "--to", "vms", "--rate", "20MiB/s", "--no-wait"];
    assert_eq!(instant(&desk, 0, &slow)["done"], "asked");
    let moved = |desk: &Desk| instant(desk, 0, &["show", "DC01"])["session"]["moved_bytes"].as_u64().unwrap_or(0);
    until("some of it is moved", || moved(&desk) >= 4 << 20);
    keeper.kill();
    let keeper = Serving::qemu_session(&desk, &["--resume", &session, "--linger", "2s"]);
    assert_eq!(keeper.first["state"], "HYDRATING");
    assert!(io(&desk, &uri, &["write -P 0x63 13M 4k"]));
    expected[13 * MIB..13 * MIB + 4096].fill(0x63);
    let other = ["instant", "move", "DC01", "--to", "elsewhere", "--state", "sessions"];
    desk.fails(7, "BUSY", other);
    let done = instant(&desk, 0, &["move", "DC01", "--to", "vms", "--rate", "1GiB/s"]);
    assert_eq!((&done["done"], &done["state"]), (&"done".into(), &"HYDRATED".into()));
    assert!(io(&desk, &uri, &["write -P 0x64 17M 4k", "read -P 0x63 13M 4k"]), "it waits for the switch");
    expected[17 * MIB..17 * MIB + 4096].fill(0x64);

    let done = instant(&desk, 0, &["switch", "DC01"]);
    assert_eq!(done["state"], "LOCAL");
    let file = done["disks"][0]["target"].as_str().unwrap();
    assert_eq!(Path::new(file), std::fs::canonicalize(desk.path("vms")).unwrap().join("DC01-disk0.raw"));
    // Straight to the file from now on.
    assert!(io(&desk, &uri, &["write -P 0x65 21M 4k", "read -P 0x64 17M 4k", "flush"]));
    expected[21 * MIB..21 * MIB + 4096].fill(0x65);
    assert_eq!(std::fs::read(file).unwrap()[21 * MIB], 0x65);
    assert_eq!(keeper.result()["ending"], "finished");
    assert!(std::fs::read(file).unwrap() == expected, "what the guest saw at its end");
    assert_eq!(instant(&desk, 0, &["list"])["sessions"], Value::Array(Vec::new()));
    assert_eq!(std::fs::read_dir(desk.path("sessions")).unwrap().count(), 0, "nothing is left");
}

#[test]
fn a_session_is_discarded_only_by_name_and_leaves_nothing() {
    if !has("a_session_is_discarded_only_by_name_and_leaves_nothing", &["qemu-io"]) {
        return;
    }
    let (desk, _) = desk_with_disk(8);
    for is_served in [true, false] {
        let keeper = Serving::qemu_session(&desk, &["DC01@1", "--listen", "127.0.0.1:0"]);
        assert!(
            uri_of(&keeper, 0).starts_with("nbd://127.0.0.1:") && !uri_of(&keeper, 0).contains(":0/"),
            "{}",
            uri_of(&keeper, 0)
        );
        assert!(io(&desk, &uri_of(&keeper, 0), &["write -P 0x61 1M 64k"]));
        instant(&desk, 0, &["move", "DC01", "--to", "vms"]);
        assert!(desk.path("vms/DC01-disk0.raw").exists());
        let keeper = if is_served {
            Some(keeper)
        } else {
            keeper.kill();
            None
        };
        let discard = ["instant", "discard", "DC01", "--state", "sessions"];
        desk.fails(2, "USAGE", discard);
        desk.fails(2, "USAGE", discard.into_iter().chain(["--confirm", "DC02"]));
        assert_eq!(instant(&desk, 0, &["discard", "DC01", "--confirm", "DC01"])["done"], "discarded");
        if let Some(keeper) = keeper {
            assert_eq!(keeper.result()["ending"], "discarded");
        }
        assert_eq!(std::fs::read_dir(desk.path("sessions")).unwrap().count(), 0, "nothing is left");
        assert!(!desk.path("vms/DC01-disk0.raw").exists(), "half a disk is none");
        desk.fails(6, "NOT_FOUND", ["instant", "show", "DC01", "--state", "sessions"]);
    }
}

#[test]
fn an_iscsi_session_has_a_login_of_its_own_and_keeps_it() {
    if !has("an_iscsi_session_has_a_login_of_its_own_and_keeps_it", &["qemu-io"]) {
        return;
    }
    let (desk, _) = desk_with_disk(8);
    let keeper = Serving::qemu_session(&desk, &["DC01@latest", "--transport", "iscsi", "--bus", "scsi"]);
    let disks: Vec<String> = serde_json::from_value(keeper.first["qemu"]["disks"].clone()).unwrap();
    let after = |flag: &str, disks: &[String]| disks[disks.iter().position(|one| one == flag).unwrap() + 1].clone();
    let io = |disks: &[String], command: &str| {
        let mut qemu = Command::new("qemu-io");
        let node = after("-blockdev", disks).replace(",node-name=disk0", "");
        qemu.args(["--object", &after("-object", disks), "--image-opts", &node, "-c", command]);
        let run = qemu.output().unwrap();
        run.status.success() && !String::from_utf8_lossy(&run.stdout).contains("failed")
    };
    let secret = std::fs::read_to_string(desk.path("sessions").join(keeper.session_id()).join("chap-secret")).unwrap();
    assert!(disks.iter().all(|argument| !argument.contains(&secret)) && secret.len() == 16);
    assert!(io(&disks, "write -P 0x61 1M 64k"));
    let session = keeper.session_id();
    keeper.kill();
    let keeper = Serving::qemu_session(&desk, &["--resume", &session]);
    assert_eq!(keeper.first["qemu"]["disks"], serde_json::json!(disks), "the machine is not told anew");
    assert!(io(&disks, "read -P 0x61 1M 64k"));
    std::fs::write(desk.path("wrong"), "abcdefghijkmnpqr").unwrap();
    let wrong: Vec<String> = disks
        .iter()
        .map(|argument| argument.replace(&*after("-object", &disks), "secret,id=chap0,file=wrong"))
        .collect();
    assert!(!io(&wrong, "read 0 512"));
    assert_eq!(keeper.stop()["ending"], "stopped");
}

/// I11, through the command line.
#[test]
fn a_repository_that_goes_away_is_told_of_and_lived_with() {
    if !has("a_repository_that_goes_away_is_told_of_and_lived_with", &["qemu-io"]) {
        return;
    }
    let (desk, disk) = desk_with_disk(24);
    let memory = ["--memory", "4MiB", "--timeout", "1s"];
    let keeper = Serving::qemu_session(&desk, &[&["DC01@latest", "--cache", "cached"], &memory[..]].concat());
    let uri = uri_of(&keeper, 0);
    // Into the cache: what is read before stays readable.
    assert!(io(&desk, &uri, &["read 0 4M", "write -P 0x61 1M 64k", "flush"]));
    std::fs::rename(desk.path("repo"), desk.path("away")).unwrap();
    assert!(io(&desk, &uri, &["read -P 0x61 1M 64k", "read 2M 2M", "write -P 0x62 15M 64k", "flush"]));
    assert!(io(&desk, &uri, &["read -P 0x62 15M 64k", "read -P 0 8M 1M"]), "known to be zero");
    assert!(!io(&desk, &uri, &["read 20M 1M"]), "that is nowhere but in the repository");
    let trouble = || instant(&desk, 0, &["show", "DC01"])["session"]["trouble"].clone();
    until("the trouble is told", || trouble().to_string().contains("segment 20"));
    assert_eq!(instant(&desk, 0, &["move", "DC01", "--to", "vms", "--no-wait"])["done"], "asked");
    std::thread::sleep(Duration::from_millis(500));
    std::fs::rename(desk.path("away"), desk.path("repo")).unwrap();
    assert_eq!(instant(&desk, 0, &["move", "DC01", "--to", "vms"])["state"], "HYDRATED");
    until("the trouble is over", || trouble() == Value::Array(Vec::new()));
    instant(&desk, 0, &["switch", "DC01"]);
    let mut expected = disk;
    expected[MIB..MIB + (64 << 10)].fill(0x61);
    expected[15 * MIB..15 * MIB + (64 << 10)].fill(0x62);
    assert_eq!(keeper.stop()["ending"], "stopped");
    assert!(std::fs::read(desk.path("vms/DC01-disk0.raw")).unwrap() == expected);
    assert_eq!(instant(&desk, 0, &["discard", "DC01", "--confirm", "DC01"])["done"], "discarded");
    assert!(desk.path("vms/DC01-disk0.raw").exists(), "a disk that is local is the guest's");
}

#[test]
fn qemu_moves_the_disks_of_a_machine_by_itself() {
    let test = "qemu_moves_the_disks_of_a_machine_by_itself";
    if !has(test, &["qemu-io", "qemu-system-x86_64"]) {
        return;
    }
    let (desk, mut expected) = desk_with_disk(24);
    let keeper = Serving::qemu_session(&desk, &["DC01@latest", "--bus", "virtio"]);
    assert!(io(&desk, &uri_of(&keeper, 0), &["write -P 0x61 1M 64k", "flush"]));
    expected[MIB..MIB + (64 << 10)].fill(0x61);
    let disks: Vec<String> = serde_json::from_value(keeper.first["qemu"]["disks"].clone()).unwrap();
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-machine", "q35", "-m", "64", "-nodefaults", "-display", "none", "-S"])
        .args(disks)
        .args(["-qmp", &format!("unix:{},server=on,wait=off", desk.path("qmp").display())])
        .spawn()
        .unwrap();
    until("QEMU listens", || desk.path("qmp").exists());
    let qmp = desk.path("qmp").display().to_string();
    let vhdx = ["instant", "move", "DC01", "--to", "vms", "--qmp", &qmp, "--format", "vhdx", "--state", "sessions"];
    desk.fails(2, "USAGE", vhdx);
    let done = instant(&desk, 0, &["move", "DC01", "--to", "vms", "--qmp", &qmp]);
    assert_eq!(done["done"], "done");
    assert_eq!(keeper.result()["ending"], "discarded");
    assert_eq!(std::fs::read_dir(desk.path("sessions")).unwrap().count(), 0, "nothing is left");
    // The machine goes on: it needs neither the session nor the repository.
    assert!(qemu.try_wait().unwrap().is_none());
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    assert!(std::fs::read(desk.path("vms/DC01-disk0.raw")).unwrap() == expected);
}

#[test]
fn what_a_boot_reads_is_fetched_first_at_the_next() {
    if !has("what_a_boot_reads_is_fetched_first_at_the_next", &["qemu-io"]) {
        return;
    }
    let (desk, _) = desk_with_disk(24);
    let fetched = |desk: &Desk| {
        let metrics = desk.ok(["instant", "show", "DC01", "--metrics", "--state", "sessions"]).stdout;
        let line = metrics.lines().find(|line| line.contains("prefetch_segments_total{kind=\"boot_set\"}"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let keeper = Serving::qemu_session(&desk, &["DC01@latest"]);
    assert!(io(&desk, &uri_of(&keeper, 0), &["read 13M 512", "read 2M 7M", "read 17M 3M"]));
    assert_eq!(fetched(&desk), 0, "nothing is known of this VM");
    keeper.stop();
    desk.ok(["instant", "discard", "DC01", "--confirm", "DC01", "--state", "sessions"]);
    let _keeper = Serving::qemu_session(&desk, &["DC01@latest"]);
    // 3 MiB of what was read are known to be zero: there is nothing to fetch.
    until("the boot set is fetched", || fetched(&desk) >= 7);
    let check = finish(&mut desk.command(["host", "check", "--host", "qemu", "--state", "sessions", "--json"])).json();
    assert_eq!(check["vms"][0]["boot_segments"], 8, "{check}");
    assert!(check["vms"][0]["first_read_ms"].is_u64(), "{check}");
    let about =
        |name: &str| check["checks"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap().clone();
    assert!(about("sessions")["text"].as_str().unwrap().contains("free"), "{check}");
    // What cannot be read is said before the night of need.
    for entry in std::fs::read_dir(desk.path("repo")).unwrap().map(Result::unwrap) {
        if entry.file_name().to_str().unwrap().starts_with('p') {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    let run = finish(&mut desk.command(["host", "check", "--host", "qemu", "--state", "sessions", "--json"]));
    assert_eq!(run.exit, Some(4), "{run:?}");
    assert!(run.json()["vms"][0]["problem"].is_string(), "{run:?}");
}

#[test]
fn what_cannot_be_started_is_refused() {
    let (desk, _) = desk_with_disk(4);
    let start = ["instant", "start", "--state", "sessions"];
    desk.fails(2, "NOT_SUPPORTED", start.into_iter().chain(["DC01@latest", "--host", "local"]));
    desk.fails(6, "NOT_FOUND", start.into_iter().chain(["DC02@latest", "--host", "qemu"]));
    desk.fails(6, "NOT_FOUND", start.into_iter().chain(["--resume", "DC01", "--host", "qemu"]));
    let run = desk.fails(2, "USAGE", start.into_iter().chain(["DC01@latest", "--host", "qemu", "--same-id", "--off"]));
    assert!(run.stderr.contains("leave out --same-id, --off"), "{run:?}");
    let elsewhere = start.into_iter().chain(["DC01@latest", "--host", "qemu", "--listen", "192.0.2.1:10809"]);
    desk.fails(2, "USAGE", elsewhere);
    let mut nobody = desk.command(["instant", "list", "--json"]);
    assert_eq!(finish(nobody.env("E3_STATE", "nowhere")).json(), serde_json::json!({ "sessions": [] }));
}

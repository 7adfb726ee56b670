//! `instant …` on a simulated Hyper-V host: its initiator logs in to our target over TCP, and its VMs read through it.
#![cfg(unix)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use backup::HostState;
use backup::instant::InstantVm;
use hyperv::seam::Namespace;
use hyperv::{Host, VmState};
use hyperv_sim::{DiskSource, GuestWrites, LabHost, LabOptions, Spread, VmOptions};
use serde_json::Value;
use support::Desk;
use support::serving::{Serving, instant, until};
use vhdx::VirtualDisk as _;

const VM: &str = "DC01";
const MIB: u64 = 1 << 20;

/// A host of real time that is quick.
fn quick() -> LabOptions {
    LabOptions { job_ms: 5, merge_ms: 5, merge_retry_ms: 10, disk_arrival_ms: 300, ..LabOptions::real_time() }
}

/// A repository with a point of a VM of two disks; the VM is gone from the host.
fn desk() -> (Desk, Vec<Vec<u8>>) {
    let desk = Desk::empty();
    desk.ok(["repo", "create"]);
    let lab = LabHost::create_with(desk.path("lab"), quick()).unwrap();
    let disks = [DiskSource::Empty { size_bytes: 24 * MIB }, DiskSource::Empty { size_bytes: 6 * MIB + 512 }];
    lab.add_vm(VM, &disks, VmOptions::default()).unwrap();
    lab.guest_write_only(VM, GuestWrites { seed: 1, mib: 4, spread: Spread::Scattered }).unwrap();
    desk.ok(["backup", VM]);
    let frozen = disks_of(&lab, VM);
    let host = Host::new(lab.seam());
    let vm = host.find_vm(VM).unwrap();
    host.turn_off_vm(&vm).unwrap();
    host.remove_vm(&vm.path).unwrap();
    std::fs::remove_dir_all(desk.path("lab/c/VMs").join(VM)).unwrap();
    (desk, frozen)
}

/// All disks of a VM, byte for byte, as its guest would see them.
fn disks_of(lab: &Arc<LabHost>, vm: &str) -> Vec<Vec<u8>> {
    let read = |disk| {
        let disk = lab.open_guest_disk(vm, disk).unwrap();
        let mut bytes = vec![0; disk.geometry().size_bytes as usize];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    (0..lab.disk_count(vm).unwrap()).map(read).collect()
}

/// From now on the host refuses this method.
fn returns(desk: &Desk, method: &str) {
    let fault = hyperv_sim::Fault::MethodReturns { method: method.into(), return_value: 32768 };
    desk.lab().inject(fault).unwrap();
}

fn state_of(lab: &Arc<LabHost>, vm: &str) -> VmState {
    Host::new(lab.seam()).find_vm(vm).unwrap().state
}

/// Objects of the storage namespace: what is on the host besides VMs.
fn storage(lab: &Arc<LabHost>) -> Vec<String> {
    let mut found = Vec::new();
    for class in ["MSFT_iSCSITargetPortal", "MSFT_iSCSISession", "MSFT_Disk", "MSFT_Partition"] {
        let objects = lab.plain_seam().wmi.query(Namespace::Storage, &format!("SELECT * FROM {class}")).unwrap();
        found.extend(objects.into_iter().map(|object| object.path.unwrap().to_string()));
    }
    found
}

/// Files below the drive, and what is left in the journal.
fn leftovers(desk: &Desk) -> Vec<String> {
    let mut files = support::files_below(&desk.path("lab/c"));
    let journals = desk.path("lab/e3-state/instant");
    if journals.exists() {
        files.extend(
            support::files_below(&journals).into_iter().filter(|file| file.extension().is_some_and(|it| it == "json")),
        );
    }
    if desk.path("sessions").exists() {
        files.extend(support::files_below(&desk.path("sessions")));
    }
    files.iter().map(|file| file.display().to_string()).collect()
}

/// Nothing of a session is left on the host, or beside it.
fn assert_gone(desk: &Desk, before: &[String], label: &str) {
    let lab = desk.lab();
    assert_eq!(storage(&lab), before, "{label}: storage");
    assert_eq!(leftovers(desk), Vec::<String>::new(), "{label}: files");
    let host = Host::new(lab.seam());
    assert!(host.list_vms().unwrap().is_empty() && host.list_planned_vms().unwrap().is_empty(), "{label}: VMs");
    assert!(!desk.path("lab/c/VMs").join(VM).exists(), "{label}: folder");
}

#[test]
fn a_vm_runs_from_the_backup_and_ends_on_local_files() {
    let (desk, frozen) = desk();
    let before = storage(&desk.lab());
    let keeper = Serving::session(&desk, &["DC01@latest"]);
    let session = keeper.session_id();
    let lab = desk.lab();
    assert_eq!(state_of(&lab, VM), VmState::Running);
    assert!(disks_of(&lab, VM) == frozen, "the VM sees the point's bytes through the volume");
    let chain = lab.disk_chain(VM, 0).unwrap();
    assert_eq!(chain.len(), 2, "{chain:?}");
    assert!(chain[1].ends_with(r"\Restore point\disk0.vhdx"), "{chain:?}");
    // What it writes goes into the child, and the point stays what it is.
    lab.guest_write_only(VM, GuestWrites { seed: 7, mib: 2, spread: Spread::Scattered }).unwrap();
    let mut expected = disks_of(&lab, VM);
    assert!(expected != frozen);
    let refused = desk.run(["backup", VM]);
    assert_eq!(refused.exit, Some(5), "{refused:?}");
    assert!(refused.stderr.contains("runs from a backup"), "{refused:?}");

    // A kill of the keeper takes the disks away, and no longer than that.
    keeper.kill();
    assert!(lab.disk_sha256(VM, 0).is_err(), "without the target nothing can be read");
    // Somebody else works on it on the host. What the guest wrote waits for the next attempt.
    let (host, state) = (Host::new(lab.seam()), HostState::open(&desk.path("lab/e3-state")).unwrap());
    let other = InstantVm::open(&host, &state, &session).unwrap().unwrap();
    let resume = ["instant", "start", "--resume", &session[..6], "--for", "1s", "--state", "sessions"];
    desk.fails(7, "BUSY", resume);
    drop(other);
    let folder = desk.path("sessions").join(&session);
    // As a loss of power may leave it.
    std::fs::write(folder.join("figures.json"), "").unwrap();
    let keeper = Serving::session(&desk, &["--resume", &session[..6]]);
    assert_eq!(keeper.first["restarts"]["kill"], 2);
    assert_eq!(keeper.first["hyperv"]["is_running"], true);
    assert!(disks_of(&lab, VM) == expected);

    // What a session says of itself is not what it is for: no room to write it, and nothing that can be read.
    std::fs::create_dir(folder.join("figures.tmp")).unwrap();
    std::fs::write(folder.join("wanted.json"), "{").unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    assert!(disks_of(&lab, VM) == expected, "it is served all the same");
    std::fs::remove_dir(folder.join("figures.tmp")).unwrap();
    let trouble = |text: &str| instant(&desk, 0, &["show", VM])["session"]["trouble"].to_string().contains(text);
    until("it is told", || trouble("read what is wanted"));
    std::fs::remove_file(folder.join("wanted.json")).unwrap();
    until("it is over", || !trouble("read what is wanted"));

    desk.fails(2, "USAGE", ["instant", "switch", VM, "--state", "sessions"]);
    desk.fails(2, "USAGE", ["instant", "move", VM, "--to", "x", "--state", "sessions"]);
    desk.fails(2, "USAGE", ["instant", "move", VM, "--format", "raw", "--state", "sessions"]);
    let moved = instant(&desk, 0, &["move", VM]);
    assert_eq!(moved["state"], "HYDRATED", "{moved:#}");
    lab.guest_write_only(VM, GuestWrites { seed: 8, mib: 1, spread: Spread::Scattered }).unwrap();
    expected = disks_of(&lab, VM);
    // The VM has to be off, and nobody but its operator says so.
    assert_eq!(instant(&desk, 0, &["switch", VM, "--no-wait"])["done"], "asked");
    until("it is waited for the VM", || trouble("has to be off"));
    assert_eq!(state_of(&lab, VM), VmState::Running);
    // The host refuses in the middle of it, and somebody starts the VM again: it has its disks.
    returns(&desk, "SetParentVirtualHardDisk");
    host.turn_off_vm(&host.find_vm(VM).unwrap()).unwrap();
    until("the refusal is told", || trouble("give local parents to the disks"));
    assert!(instant(&desk, 0, &["show", VM])["session"]["is_served"] == true);
    host.start_vm(&host.find_vm(VM).unwrap()).unwrap();
    until("it is waited for again", || trouble("has to be off"));
    assert!(disks_of(&lab, VM) == expected);
    desk.lab().clear_faults().unwrap();
    let done = instant(&desk, 0, &["switch", VM, "--shut-down"]);
    assert_eq!((&done["done"], &done["state"]), (&"done".into(), &"FINISHED".into()), "{done:#}");
    assert_eq!(keeper.result()["ending"], "finished");

    assert_eq!(state_of(&lab, VM), VmState::Running, "it was shut down for this, and runs again");
    assert!(disks_of(&lab, VM) == expected, "what the guest saw at its end");
    for disk in 0..2 {
        let chain = lab.disk_chain(VM, disk).unwrap();
        assert_eq!(chain.len(), 1, "{chain:?}");
        assert!(!chain[0].contains("since-restore"), "{chain:?}");
    }
    assert_eq!(storage(&lab), before);
    assert_eq!(lab.stray_files().unwrap(), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(desk.path("sessions")).unwrap().count(), 0);
    assert!(!desk.path("lab/c/VMs").join(VM).join("Restore point").exists());
    // And is a VM like any other.
    desk.ok(["backup", VM]);
}

/// Each step of it is noted before it is done, and done again after a kill.
#[test]
fn a_finish_that_is_killed_goes_on() {
    let (desk, _) = desk();
    let before = storage(&desk.lab());
    let keeper = Serving::session(&desk, &["DC01@latest"]);
    let session = keeper.session_id();
    desk.lab().guest_write_only(VM, GuestWrites { seed: 7, mib: 2, spread: Spread::Scattered }).unwrap();
    let expected = disks_of(&desk.lab(), VM);
    instant(&desk, 0, &["move", VM]);
    keeper.kill();
    let wanted = desk.path("sessions").join(&session).join("wanted.json");
    let mut asked: Value = serde_json::from_slice(&std::fs::read(&wanted).unwrap()).unwrap();
    (asked["switch"], asked["shut_down"]) = (true.into(), true.into());
    std::fs::write(&wanted, asked.to_string()).unwrap();
    let resume = ["instant", "start", "--resume", &session, "--state", "sessions", "--json"];
    let mut kills = 0;
    for number in (12..).step_by(11) {
        assert!(number < 400, "it does not come to its end");
        let run = support::finish(desk.command(resume).env("E3_LAB_KILL_AT", format!("seam:{number}")));
        if run.exit == Some(0) {
            assert_eq!(run.json()["ending"], "finished", "{run:?}");
            break;
        }
        assert_eq!(run.exit, None, "killed at call {number}: {run:?}");
        kills += 1;
    }
    println!("{kills} kills");
    assert!(kills > 3, "{kills}");
    let lab = desk.lab();
    assert_eq!(state_of(&lab, VM), VmState::Running);
    assert!(disks_of(&lab, VM) == expected, "what the guest saw at its end");
    assert_eq!(lab.disk_chain(VM, 0).unwrap().len(), 1);
    assert_eq!(storage(&lab), before);
    assert_eq!(std::fs::read_dir(desk.path("sessions")).unwrap().count(), 0);
}

#[test]
fn what_one_session_leaves_is_no_other_one_s() {
    let (desk, _) = desk();
    let start = ["instant", "start", "DC01@latest", "--state", "sessions"];
    // The host's own initiator comes from this machine only.
    let run = desk.fails(2, "USAGE", start.into_iter().chain(["--listen", "0.0.0.0:0"]));
    assert!(run.stderr.contains("--listen") && !desk.path("sessions").exists(), "{run:?}");

    let run = desk.fails(2, "USAGE", start.into_iter().chain(["--bus", "sata", "--linger", "1s"]));
    assert!(run.stderr.contains("leave out --bus, --linger"), "{run:?}");

    // A VM that is there and does not start is not said to run, and it is said why.
    returns(&desk, "RequestStateChange");
    let run = desk.run(start.into_iter().chain(["--for", "1s"]));
    desk.lab().clear_faults().unwrap();
    assert!(run.exit == Some(0) && run.stdout.starts_with("made  "), "{run:?}");
    assert!(run.stderr.contains("does not start") && run.stderr.contains("RequestStateChange"), "{run:?}");
    let listed = || instant(&desk, 0, &["list"])["sessions"].as_array().unwrap().clone();
    let session = listed()[0]["session_id"].as_str().unwrap().to_owned();
    let resume = ["instant", "start", "--resume", &session, "--state", "sessions"];

    // Another start is only just beginning: it has a record, and nothing else yet.
    let record = desk.path("sessions").join(&session).join("instant.json");
    let record: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    let begin = |begun: jiff::Timestamp, id: &str| {
        let mut other = record.clone();
        (other["session"], other["begun"]) = (id.into(), begun.to_string().into());
        let folder = desk.path("sessions").join(id);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("instant.json"), other.to_string()).unwrap();
        folder
    };
    let now = jiff::Timestamp::now();
    let young = begin(now, &"ab".repeat(16));
    let old = begin(now - jiff::SignedDuration::from_hours(1), &"cd".repeat(16));
    let run = desk.ok(resume.into_iter().chain(["--for", "1s"]));
    assert!(young.exists() && !old.exists(), "{run:?}");
    assert!(run.stderr.contains("removed the files of session cdcdcdcd"), "{run:?}");
    let second = ["instant", "start", "--resume", "abab", "--state", "sessions"];
    let run = desk.fails(6, "NOT_FOUND", second);
    assert!(young.exists() && run.stderr.contains("being begun"), "{run:?}");
    std::fs::remove_dir_all(young).unwrap();

    // What was refused is over, and nothing of it follows later.
    let keeper = Serving::session(&desk, &["--resume", &session]);
    let blocked = desk.path("sessions").join(&session).join("copy-0");
    std::fs::write(&blocked, "in the way").unwrap();
    instant(&desk, 0, &["move", VM, "--no-wait"]);
    let run = desk.run(["instant", "switch", VM, "--shut-down", "--state", "sessions"]);
    assert!(run.exit == Some(1) && run.stderr.contains("begin the copy"), "{run:?}");
    until("it is not refused for ever", || instant(&desk, 0, &["show", VM])["session"]["refused"].is_null());
    std::fs::remove_file(&blocked).unwrap();
    assert_eq!(instant(&desk, 0, &["move", VM])["state"], "HYDRATED");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(state_of(&desk.lab(), VM), VmState::Running);
    keeper.kill();

    // Cut off when the VM was on its files and the host had forgotten the session: it is not to be started again.
    std::fs::remove_dir_all(desk.path("lab/e3-state/instant")).unwrap();
    let run = desk.fails(6, "NOT_FOUND", resume);
    assert!(run.stderr.contains("had ended on the host already"), "{run:?}");
    assert_eq!(listed(), Vec::<Value>::new());
}

#[test]
fn what_fails_or_is_killed_before_the_vm_runs_is_taken_back() {
    let (desk, frozen) = desk();
    let before = storage(&desk.lab());
    let start = ["instant", "start", "DC01@latest", "--state", "sessions", "--json"];
    // A failure at a step, from the first to the last.
    for method in ["New", "Connect", "AddAccessPath", "CreateVirtualHardDisk", "ImportSystemDefinition"] {
        returns(&desk, method);
        let run = desk.run(start);
        assert_ne!(run.exit, Some(0), "{method}: {run:?}");
        desk.lab().clear_faults().unwrap();
        assert_gone(&desk, &before, method);
    }
    // A kill at a sample of the calls to the host.
    let counts = desk.path("calls.json");
    let mut command = desk.command(start);
    let run = support::finish(command.args(["--for", "1s"]).env("E3_LAB_COUNT_FILE", &counts));
    assert_eq!(run.exit, Some(0), "{run:?}");
    instant(&desk, 0, &["discard", VM, "--confirm", VM]);
    assert_gone(&desk, &before, "discarded");
    let counts: Value = serde_json::from_slice(&std::fs::read(counts).unwrap()).unwrap();
    let calls = counts["seam"].as_u64().unwrap();
    let (mut taken_back, mut gone_on) = (0, 0);
    for number in (0..calls).step_by(usize::try_from(calls / 7).unwrap().max(1)).chain([calls - 1]) {
        let label = format!("call {number} of {calls}");
        let run =
            support::finish(desk.command(start).args(["--for", "1s"]).env("E3_LAB_KILL_AT", format!("seam:{number}")));
        assert_ne!(run.exit, Some(0), "{label}: {run:?}");
        // What is left is put in order by `host clean`, unless the VM is there.
        desk.ok(["host", "clean", "--yes"]);
        let sessions = instant(&desk, 0, &["list"])["sessions"].as_array().unwrap().clone();
        let has_vm = Host::new(desk.lab().seam()).find_vm(VM).is_ok();
        if has_vm {
            let session = sessions[0]["session_id"].as_str().unwrap().to_owned();
            let keeper = Serving::session(&desk, &["--resume", &session]);
            let lab = desk.lab();
            assert!(disks_of(&lab, VM) == frozen, "{label}");
            assert_eq!(keeper.stop()["ending"], "stopped");
            instant(&desk, 0, &["discard", VM, "--confirm", VM]);
            gone_on += 1;
        } else {
            if let Some(session) = sessions.first() {
                let session = session["session_id"].as_str().unwrap();
                desk.fails(6, "NOT_FOUND", ["instant", "start", "--resume", session, "--state", "sessions"]);
            }
            taken_back += 1;
        }
        assert_gone(&desk, &before, &label);
    }
    println!("{calls} calls; {taken_back} kills taken back, {gone_on} gone on");
    assert!(taken_back > 2 && gone_on > 0, "{taken_back}, {gone_on}");
}

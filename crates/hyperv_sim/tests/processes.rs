//! Several processes on one host: they take turns, and one that is killed leaves nothing locked.

mod support;

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperv_sim::{DiskSource, GuestWrites, LabHost, LabOptions, Spread, VmOptions};
use support::{Client, MIB};

const FOLDER: &str = "HYPERV_SIM_TEST_FOLDER";
const VM: &str = "HYPERV_SIM_TEST_VM";

/// The other process: backs up one VM again and again until it is killed.
#[test]
fn other_process() {
    let (Ok(folder), Ok(vm)) = (std::env::var(FOLDER), std::env::var(VM)) else { return };
    let lab = LabHost::open(folder).unwrap();
    let client = Client::new(&lab);
    loop {
        client.settle(&lab, &vm);
        for leftover in lab.checkpoints(&vm).unwrap().1 {
            lab.delete_checkpoint(&vm, &leftover).unwrap();
            client.settle(&lab, &vm);
        }
        let checkpoint = client.checkpoint(&vm);
        let disk = client.open(&client.files(&checkpoint)[0]);
        disk.read(&mut vec![0; MIB as usize], 0).unwrap();
        drop(disk);
        client.convert(&checkpoint);
        client.settle(&lab, &vm);
    }
}

fn spawn(folder: &Path, vm: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "other_process", "--nocapture"])
        .env(FOLDER, folder)
        .env(VM, vm)
        .spawn()
        .unwrap()
}

#[test]
fn processes_take_turns_and_may_be_killed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("lab");
    let lab = LabHost::create_with(&folder, LabOptions::real_time()).unwrap();
    for vm in ["one", "two"] {
        lab.add_vm(vm, &[DiskSource::Empty { size_bytes: 8 * MIB }], VmOptions::default()).unwrap();
    }
    let mut seed = 0;
    for round in 0..4 {
        let mut children = [spawn(&folder, "one"), spawn(&folder, "two")];
        // Killed at some moment, but not before they have done something: a machine may be slow.
        let (begun, before) = (Instant::now(), reference_points(&lab));
        let worked = || reference_points(&lab) > before || begun.elapsed() > Duration::from_secs(100);
        let mut last = Vec::new();
        while begun.elapsed() < Duration::from_millis(700 + round * 130) || !worked() {
            seed += 1;
            last = vec![
                lab.guest_write("one", GuestWrites { seed, mib: 1, spread: Spread::Scattered }).unwrap(),
                lab.guest_write("two", GuestWrites { seed, mib: 1, spread: Spread::Clustered }).unwrap(),
            ];
        }
        for child in &mut children {
            assert!(child.try_wait().unwrap().is_none(), "round {round}: the other process failed");
            child.kill().unwrap();
            child.wait().unwrap();
        }
        for (vm, hashes) in ["one", "two"].into_iter().zip(&last) {
            let client = Client::new(&lab);
            client.seam.clock.sleep(Duration::from_millis(100));
            for leftover in lab.checkpoints(vm).unwrap().1 {
                lab.delete_checkpoint(vm, &leftover).unwrap();
            }
            client.settle(&lab, vm);
            assert_eq!(lab.disk_sha256(vm, 0).unwrap(), hashes[0], "round {round}, {vm}");
            assert_eq!(lab.disk_chain(vm, 0).unwrap().len(), 1, "round {round}, {vm}");
            assert!(!lab.is_file_in_use(&lab.disk_chain(vm, 0).unwrap()[0]).unwrap());
        }
    }
    assert_eq!(lab.stray_files().unwrap(), Vec::<String>::new());
    assert!(reference_points(&lab) >= 4);
}

fn reference_points(lab: &Arc<LabHost>) -> usize {
    ["one", "two"].iter().map(|vm| lab.reference_points(vm).unwrap().len()).sum()
}

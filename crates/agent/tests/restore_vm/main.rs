//! `restore vm` through the executable: copies, other hosts, every obstacle, replacement, in place, and kills.

mod copies;
mod in_place;
mod kills;
mod obstacles;
mod replace;

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use hyperv::{Host, Vm};
use hyperv_sim::{DiskSource, GuestWrites, LabHost, LabOptions, Spread, VmOptions};
use serde_json::Value;
use support::Desk;
use vhdx::VirtualDisk;

const VM: &str = "DC01";
const MIB: u64 = 1 << 20;

/// A host of real time that is quick.
fn quick() -> LabOptions {
    LabOptions { job_ms: 5, merge_ms: 5, merge_retry_ms: 10, ..LabOptions::real_time() }
}

/// A repository, and a host with a VM of two disks that its guest has written to.
fn desk(options: VmOptions) -> Desk {
    let desk = Desk::empty();
    desk.ok(["repo", "create"]);
    let lab = LabHost::create_with(desk.path("lab"), quick()).unwrap();
    let disks = [DiskSource::Empty { size_bytes: 24 * MIB }, DiskSource::Empty { size_bytes: 6 * MIB + 512 }];
    let running = options.running;
    lab.add_vm(VM, &disks, options).unwrap();
    if running {
        guest_write(&desk, 1, 4);
    }
    desk
}

fn guest_write(desk: &Desk, seed: u64, mib: u32) {
    desk.lab().guest_write_only(VM, GuestWrites { seed, mib, spread: Spread::Scattered }).unwrap();
}

fn lab(desk: &Desk, name: &str) -> Arc<LabHost> {
    LabHost::open(desk.path(name)).unwrap()
}

fn host(desk: &Desk, name: &str) -> Host {
    Host::new(lab(desk, name).seam())
}

/// All disks of a VM, byte for byte, as its guest would see them.
fn disks_of(desk: &Desk, name: &str, vm: &str) -> Vec<Vec<u8>> {
    let lab = lab(desk, name);
    let read = |disk| {
        let disk = lab.open_guest_disk(vm, disk).unwrap();
        let mut bytes = vec![0; disk.geometry().size_bytes as usize];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    (0..lab.disk_count(vm).unwrap()).map(read).collect()
}

/// All disks of a point, by the command that restores one.
fn disks_in(desk: &Desk, point: &str) -> Vec<Vec<u8>> {
    let read = |disk: usize| {
        let number = disk.to_string();
        let arguments = ["restore", "disk", point, "--disk", &number, "--to", "of-point.raw", "--format", "raw"];
        desk.ok(arguments.into_iter().chain(["--overwrite"]));
        std::fs::read(desk.path("of-point.raw")).unwrap()
    };
    (0..2).map(read).collect()
}

fn assert_same(label: &str, expected: &[Vec<u8>], found: &[Vec<u8>]) {
    assert_eq!(expected.len(), found.len(), "{label}: disks");
    for (number, (expected, found)) in expected.iter().zip(found).enumerate() {
        assert_eq!(expected.len(), found.len(), "{label}: size of disk {number}");
        if let Some(at) = expected.iter().zip(found).position(|(a, b)| a != b) {
            panic!("{label}: disk {number} differs at {at:#x}");
        }
    }
}

/// Names of the VMs of a host, sorted.
fn vm_names(desk: &Desk, name: &str) -> Vec<String> {
    let mut names: Vec<String> = host(desk, name).list_vms().unwrap().into_iter().map(|vm| vm.name).collect();
    names.sort();
    names
}

fn vm(desk: &Desk, name: &str, selector: &str) -> Vm {
    host(desk, name).find_vm(selector).unwrap_or_else(|error| panic!("{selector}: {error}"))
}

/// What is on a host's drives, without what its service keeps for itself.
fn files_of(desk: &Desk, name: &str) -> BTreeSet<String> {
    let root = desk.path(name);
    let drives = ["c", "d"].map(|drive| root.join(drive));
    let files = drives.iter().filter(|drive| drive.exists()).flat_map(|drive| support::files_below(drive));
    files.map(|file| file.strip_prefix(&root).unwrap().display().to_string()).collect()
}

/// No restore is open on a host, and no planned VM or stray file is there.
fn assert_in_order(desk: &Desk, name: &str, label: &str) {
    let journals = desk.path(name).join("e3-state").join("restores");
    let open: Vec<_> = std::fs::read_dir(journals).map(|entries| entries.flatten().collect()).unwrap_or_default();
    let open: Vec<_> =
        open.iter().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|it| it == "json")).collect();
    assert!(open.is_empty(), "{label}: {open:?}");
    let planned = host(desk, name).list_planned_vms().unwrap();
    assert!(planned.is_empty(), "{label}: {planned:?}");
    let strays = lab(desk, name).stray_files().unwrap();
    assert!(strays.is_empty(), "{label}: {strays:?}");
}

/// Takes a VM and its files off a host.
fn remove(desk: &Desk, name: &str, vm: &Vm) {
    let host = host(desk, name);
    host.turn_off_vm(vm).unwrap();
    host.remove_vm(&vm.path).unwrap();
    let lab = lab(desk, name);
    let folder = vm.disks[0].path.rsplit_once(r"\Virtual Hard Disks\").expect("it was restored").0.to_owned();
    std::fs::remove_dir_all(lab.host_file(&folder).unwrap()).unwrap();
}

/// Codes of the obstacles of one severity in a plan.
fn codes(plan: &Value, severity: &str) -> BTreeSet<String> {
    let obstacles = plan["obstacles"].as_array().unwrap();
    let of_severity = obstacles.iter().filter(|one| one["severity"] == severity);
    of_severity.map(|one| one["code"].as_str().unwrap().to_owned()).collect()
}

/// The difference in one setting.
fn difference<'v>(result: &'v Value, item: &str) -> &'v Value {
    let all = result["settings_diff"].as_array().unwrap();
    all.iter().find(|one| one["item"] == item).unwrap_or_else(|| panic!("{item} is not in {all:#?}"))
}

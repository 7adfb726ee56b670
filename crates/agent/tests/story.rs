//! The whole story through the real executable: back up, write, back up, look, verify, restore.

mod support;

use serde_json::Value;
use support::{Desk, sha256_of};

#[test]
fn a_vm_goes_into_the_repository_and_back() {
    let desk = Desk::empty();
    let created = desk.ok(["repo", "create"]);
    assert!(created.stdout.contains("BLAKE3-256-128"), "{created:?}");
    assert!(created.stderr.contains("next "), "{created:?}");
    desk.ok(["lab", "create", "lab"]);
    let raw = desk.raw_file("system.raw", 24, 1);
    desk.ok(["lab", "add-vm", "lab", "DC01", "--disk", "system.raw", "--size", "16MiB"]);
    let first = desk.guest_writes("DC01", 0, 0);
    assert_eq!(first[0], sha256_of(&raw), "the lab's disk is the file's content");

    let full = desk.ok(["backup", "DC01"]);
    assert!(full.stdout.starts_with("DC01  full (first run)"), "{full:?}");
    assert!(full.stdout.contains("DC01@latest   checked: structure"), "{full:?}");
    let second = desk.guest_writes("DC01", 7, 4);
    assert_ne!(first, second);
    let result = desk.json(0, ["backup", "DC01"]);
    check_incremental(&result);
    // What the guest writes now is in no point.
    desk.guest_writes("DC01", 8, 4);

    check_listings(&desk);

    for (point, expected) in [("DC01@latest", &second), ("DC01@1", &second), ("DC01@2", &first)] {
        for (disk, sha256) in expected.iter().enumerate() {
            assert_eq!(&desk.restored_hash(point, disk), sha256, "{point} disk {disk}");
        }
    }
    let restored = desk.ok(["restore", "disk", "DC01@latest", "--disk", "0", "--to", "dc01.vhdx"]);
    assert!(restored.stdout.contains("every byte checked"), "{restored:?}");
    assert!(!desk.path("dc01.vhdx.partial").exists());
    let info = desk.json(0, ["vhd", "info", "dc01.vhdx"]);
    assert_eq!(info["files"][0]["kind"], "dynamic");
    assert_eq!(info["size_bytes"], 24 << 20);
    desk.ok(["vhd", "convert", "dc01.vhdx", "back.raw"]);
    assert_eq!(sha256_of(&desk.path("back.raw")), second[0]);

    let verified = desk.ok(["verify", "--all", "--level", "full"]);
    assert_eq!(verified.stdout.matches("every byte read and hashed").count(), 2, "{verified:?}");
    desk.expect_clean_host("DC01", 1);
}

fn check_incremental(result: &Value) {
    assert_eq!((&result["type"], &result["exit"]), (&"result".into(), &0.into()), "{result}");
    let vm = &result["vms"][0];
    assert_eq!(vm["status"], "succeeded", "{vm}");
    for disk in vm["disks"].as_array().unwrap() {
        assert_eq!(disk["mode"], "incremental", "{disk}");
        assert!(disk["base_point_id"].is_string(), "{disk}");
    }
    let number = |name: &str| vm[name].as_u64().unwrap_or_else(|| panic!("{name} in {vm}"));
    assert!(number("read_bytes") > 0 && number("read_bytes") < 40 << 20, "{vm}");
    assert!(number("changed_bytes") > 0 && number("changed_bytes") <= number("read_bytes"), "{vm}");
    assert!(number("audit_bytes") > 0, "{vm}");
    assert!(number("data_bytes") > 0 && number("metadata_bytes") > 0, "{vm}");
    assert!(number("uploaded_bytes") >= number("data_bytes") + number("metadata_bytes"), "{vm}");
    assert!(number("entries") > 0, "{vm}");
    assert_eq!(number("entries"), number("entries_checked"), "{vm}");
    if cfg!(target_os = "linux") {
        assert!((1 << 20..256 << 20).contains(&number("peak_rss_bytes")), "{vm}");
    }
}

fn check_listings(desk: &Desk) {
    let table = desk.ok(["points", "list", "--utc"]).stdout;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        ["POINT", "VM", "WHEN", "READ", "CHANGED", "STORED", "CONSISTENCY", "VERIFIED", "RESTORABLE", "HELD"]
    );
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[1].contains("incremental") && lines[2].contains("full"), "newest first: {table}");
    assert!(lines[1].ends_with("yes         –") && lines[1].contains("application"), "{table}");

    let points = desk.json(0, ["points", "list", "--vm", "DC01"]);
    let points = points["points"].as_array().unwrap();
    assert_eq!(points.len(), 2);
    assert_eq!(points[0]["disks"][0]["base_point_id"], points[1]["point_id"]);
    let id = points[0]["point_id"].as_str().unwrap();
    assert_eq!(desk.ok(["points", "list", "--quiet"]).stdout.lines().next(), Some(id));
    assert_eq!(desk.json(0, ["points", "show", &id[..10]])["point"]["point_id"], id);
    let shown = desk.ok(["points", "show", "--vm", "DC01"]).stdout;
    assert!(shown.contains(id) && shown.contains("incremental on "), "{shown}");

    let vms = desk.json(0, ["vm", "list"]);
    assert_eq!(vms["vms"][0]["vm_name"], "DC01");
    assert_eq!(vms["vms"][0]["disks"].as_array().unwrap().len(), 2);
    let status = desk.json(0, ["repo", "status"]);
    assert_eq!((&status["points"], &status["vms"]), (&2.into(), &1.into()));
}

#[test]
fn a_snapshot_is_restored_as_a_folder() {
    let desk = Desk::new();
    desk.add_vm("DC01", 8, 3);
    desk.ok(["backup", "DC01"]);
    let listed = desk.json(0, ["snapshot", "list"]);
    let snapshot = &listed["snapshots"][0];
    assert_eq!(snapshot["source"]["user"], "hyperv");
    let id = snapshot["snapshot_id"].as_str().unwrap();
    assert!(desk.ok(["snapshot", "list"]).stdout.contains(&id[..8]));

    let result = desk.json(0, ["snapshot", "restore", &id[..8], "--to", "out"]);
    assert_eq!(result["failed_entries"], 0);
    let disk = std::fs::read_dir(desk.path("out/disks")).unwrap().next().unwrap().unwrap().path();
    desk.ok(["restore", "disk", "DC01@latest", "--to", "dc01.vhdx"]);
    assert_eq!(sha256_of(&disk), sha256_of(&desk.path("dc01.vhdx")), "the tree holds the file that a restore writes");
    assert!(desk.path("out/vm.json").is_file() && desk.path("out/point.json").is_file());

    desk.fails(5, "TARGET_EXISTS", ["snapshot", "restore", id, "--to", "out"]);
    desk.fails(6, "NOT_FOUND", ["snapshot", "restore", "zzzz", "--to", "out2"]);
}

#[test]
fn several_vms_share_a_run() {
    let desk = Desk::new();
    desk.add_vm("A", 4, 1);
    desk.add_vm("B", 4, 2);
    let run = support::finish(desk.command(["backup", "--all"]).arg("--json"));
    assert_eq!(run.exit, Some(0), "{run:?}");
    let objects = run.json_lines();
    let kinds: Vec<&str> = objects.iter().map(|object| object["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["vm", "vm", "result"]);
    assert_eq!(run.stderr, "", "nothing but JSON");
    let points = desk.json(0, ["points", "list"]);
    let runs: Vec<&Value> = points["points"].as_array().unwrap().iter().map(|point| &point["run_id"]).collect();
    assert_eq!(runs.len(), 2);
    assert_eq!((runs[0], runs[1]), (&objects[2]["run_id"], &objects[2]["run_id"]));
    // Named twice is backed up once.
    assert_eq!(desk.ok(["backup", "A", "A", "--quiet"]).stdout.lines().count(), 1);
}

#[test]
fn options_of_a_backup_reach_the_engine() {
    let desk = Desk::new();
    desk.add_vm("A", 4, 1);
    desk.ok(["backup", "A", "--segment-size", "256KiB"]);
    let again = desk.json(0, ["backup", "A", "--full", "--consistency", "crash"]);
    assert_eq!(again["vms"][0]["disks"][0]["reason"], "forced");
    assert_eq!(again["vms"][0]["consistency"], "crash");
    let points = desk.json(0, ["points", "list"]);
    assert_eq!(points["points"][1]["disks"][0]["segment_bytes"], 256 << 10);
    for (size, exit) in [("100KiB", 2), ("3MiB", 2), ("8MiB", 2), ("1 parsec", 2)] {
        assert_eq!(desk.run(["backup", "A", "--segment-size", size]).exit, Some(exit), "{size}");
    }
}

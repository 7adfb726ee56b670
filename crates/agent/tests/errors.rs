//! Everything that goes wrong ends with its exit code, one clear error, and nothing that looks whole and is not.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use hyperv_sim::{Fault, VssBehaviour};
use support::{Desk, files_below, finish};

/// Reads of this place fail for good.
fn unreadable(vm: &str, offset_bytes: u64) -> Fault {
    Fault::UnreadableRange { vm: vm.into(), disk: 0, offset_bytes, len_bytes: 4096, code: 23, times: None }
}

#[test]
fn what_does_not_exist_is_said_so() {
    let desk = Desk::new();
    desk.add_vm("DC01", 4, 1);
    desk.ok(["backup", "DC01"]);

    let other = ["points", "list", "--repo", "nowhere"];
    desk.fails(10, "NO_REPOSITORY", other);
    std::fs::create_dir(desk.path("nowhere")).unwrap();
    desk.fails(10, "NO_REPOSITORY", other);
    assert_eq!(files_below(&desk.path("nowhere")), Vec::<PathBuf>::new(), "looking writes nothing");

    let mut wrong = desk.command(["points", "list"]);
    finish(wrong.env("E3_PASSWORD", "guess")).expect_failure(12, "WRONG_PASSWORD");

    let run = desk.fails(6, "NOT_FOUND", ["backup", "DC02"]);
    assert!(run.stderr.contains("DC02"), "{run:?}");
    desk.fails(6, "NOT_FOUND", ["restore", "disk", "DC02@latest", "--to", "x"]);
    desk.fails(6, "NOT_FOUND", ["restore", "disk", "DC01@9", "--to", "x"]);
    desk.fails(6, "NOT_FOUND", ["restore", "disk", "DC01@latest", "--disk", "33333333", "--to", "x"]);
    desk.fails(6, "NOT_FOUND", ["points", "show", "ffffffff"]);
    desk.fails(6, "NOT_FOUND", ["points", "list", "--vm", "DC02"]);
    desk.fails(6, "NOT_FOUND", ["vm", "list", "--host", "lab:elsewhere"]);
    desk.fails(6, "NOT_FOUND", ["lab", "write", "lab", "DC02"]);
    desk.fails(6, "NOT_FOUND", ["lab", "add-vm", "lab", "X", "--disk", "no-such.vhdx"]);
    desk.fails(6, "NOT_FOUND", ["vhd", "info", "no-such.vhdx"]);
    assert!(!desk.path("x").exists());
    if cfg!(not(windows)) {
        desk.fails(2, "NOT_SUPPORTED", ["vm", "list", "--host", "local"]);
    }
    desk.fails(2, "USAGE", ["vm", "list", "--host", "hyperv:x"]);
    desk.fails(2, "BAD_LOCATION", ["points", "list", "--repo", "ftp://x/"]);
    desk.fails(2, "BAD_LOCATION", ["points", "list", "--repo", "s3://bucket/?regoin=x"]);
}

#[test]
fn names_that_several_have_list_the_candidates() {
    let desk = Desk::new();
    desk.add_vm("TWIN", 4, 1);
    desk.add_vm("TWIN", 4, 2);
    let vms = desk.json(0, ["vm", "list"]);
    let ids: Vec<&str> = vms["vms"].as_array().unwrap().iter().map(|vm| vm["vm_id"].as_str().unwrap()).collect();
    let run = desk.fails(6, "AMBIGUOUS", ["backup", "TWIN"]);
    assert!(ids.iter().all(|id| run.stderr.contains(id)), "{run:?}");

    for id in &ids {
        desk.ok(["backup", id]);
    }
    let run = desk.fails(6, "AMBIGUOUS", ["restore", "disk", "TWIN@latest", "--to", "x"]);
    assert!(ids.iter().all(|id| run.stderr.contains(id)), "{run:?}");
    desk.ok(["restore", "disk", &format!("{}@latest", ids[0]), "--to", "x"]);

    desk.ok(["lab", "add-vm", "lab", "PAIR", "--size", "4MiB", "--size", "4MiB"]);
    desk.ok(["backup", "PAIR"]);
    let run = desk.fails(6, "AMBIGUOUS", ["restore", "disk", "PAIR@latest", "--to", "y"]);
    assert!(run.stderr.contains("SCSI"), "the disks are listed: {run:?}");
    let points = desk.json(0, ["points", "show", "PAIR@latest"]);
    let disk = points["point"]["disks"][1]["virtual_disk_id"].as_str().unwrap();
    let result = desk.json(0, ["restore", "disk", "PAIR@latest", "--disk", disk, "--to", "y"]);
    assert_eq!(result["disk"], 1);
}

#[test]
fn a_disk_that_cannot_be_read_gives_no_point() {
    let desk = Desk::with_virtual_clock();
    desk.add_vm("BAD", 8, 1);
    desk.add_vm("GOOD", 4, 2);
    desk.lab().inject(unreadable("BAD", 5 << 20)).unwrap();
    let run = desk.fails(9, "SOURCE_UNREADABLE", ["backup", "BAD"]);
    assert!(run.stderr.contains("five times"), "{run:?}");
    desk.expect_clean_host("BAD", 0);
    assert_eq!(desk.json(0, ["points", "list"])["points"], serde_json::json!([]));

    // The others go on, and it is told which failed.
    let result = desk.json(3, ["backup", "BAD", "GOOD"]);
    assert_eq!(result["exit"], 3);
    assert_eq!((&result["vms"][0]["status"], &result["vms"][1]["status"]), (&"failed".into(), &"succeeded".into()));
    assert_eq!(result["vms"][0]["error"]["code"], "SOURCE_UNREADABLE");
    assert_eq!(desk.json(0, ["points", "list"])["points"].as_array().unwrap().len(), 1);

    // Alone, the run as a whole has failed.
    let error = desk.json(9, ["backup", "BAD"]);
    assert_eq!((&error["type"], &error["exit"]), (&"error".into(), &9.into()), "{error}");

    desk.lab().clear_faults().unwrap();
    desk.ok(["backup", "BAD"]);
    assert_eq!(desk.restored_hash("BAD@latest", 0), desk.guest_hashes("BAD")[0]);
}

#[test]
fn an_incremental_that_fails_leaves_the_earlier_point() {
    let desk = Desk::with_virtual_clock();
    desk.add_vm("DC01", 8, 1);
    desk.ok(["backup", "DC01"]);
    let before = desk.guest_hashes("DC01").remove(0);
    desk.lab().guest_write_at("DC01", 0, 3 << 20, &[7; 8192]).unwrap();
    desk.lab().inject(unreadable("DC01", 3 << 20)).unwrap();
    desk.fails(9, "SOURCE_UNREADABLE", ["backup", "DC01"]);
    desk.expect_clean_host("DC01", 1);
    assert_eq!(desk.restored_hash("DC01@latest", 0), before);
    desk.lab().clear_faults().unwrap();
    let result = desk.json(0, ["backup", "DC01"]);
    assert_eq!(result["vms"][0]["disks"][0]["mode"], "incremental");
    assert_eq!(desk.restored_hash("DC01@latest", 0), desk.guest_hashes("DC01")[0]);
}

#[test]
fn lowered_consistency_is_a_warning_or_a_failure() {
    let desk = Desk::with_virtual_clock();
    desk.add_vm("DC01", 4, 1);
    desk.lab().set_vss("DC01", VssBehaviour::WriterFails).unwrap();
    let run = desk.run(["backup", "DC01"]);
    assert_eq!(run.exit, Some(4), "{run:?}");
    assert!(run.stderr.contains("CONSISTENCY_LOWERED"), "{run:?}");
    let result = desk.json(0, ["backup", "DC01", "--warnings-ok"]);
    assert_eq!((&result["vms"][0]["status"], &result["vms"][0]["consistency"]), (&"warning".into(), &"crash".into()));
    desk.fails(9, "VSS_FAILED", ["backup", "DC01", "--consistency", "application-required"]);
    desk.ok(["backup", "DC01", "--consistency", "crash"]);
}

#[test]
fn host_errors_have_their_codes() {
    let desk = Desk::with_virtual_clock();
    desk.add_vm("DC01", 4, 1);
    for (fault, exit, code) in [
        (Fault::MethodReturns { method: "CreateSnapshot".into(), return_value: 32775 }, 7, "BUSY"),
        (Fault::MethodReturns { method: "CreateSnapshot".into(), return_value: 32768 }, 9, "HOST_FAILED"),
        (Fault::NoRights, 9, "HOST_ACCESS_DENIED"),
    ] {
        desk.lab().inject(fault.clone()).unwrap();
        let run = desk.run(["backup", "DC01", "--consistency", "crash"]);
        assert_eq!(run.exit, Some(exit), "{fault:?}: {run:?}");
        run.expect_failure(exit, code);
        desk.lab().clear_faults().unwrap();
        desk.expect_clean_host("DC01", 0);
    }
}

#[test]
fn a_vm_that_another_run_holds_is_busy() {
    let desk = Desk::new();
    desk.add_vm("DC01", 4, 1);
    let vms = desk.json(0, ["vm", "list"]);
    let id = vms["vms"][0]["vm_id"].as_str().unwrap();
    let state = backup::HostState::open(&desk.path("lab").join("e3-state")).unwrap();
    let lock = state.lock_vm(id, "DC01").unwrap();
    let run = desk.fails(7, "BUSY", ["backup", "DC01"]);
    assert!(run.stderr.contains(&format!("process {}", std::process::id())), "it says who: {run:?}");
    drop(lock);
    desk.ok(["backup", "DC01"]);
}

#[test]
fn targets_are_never_overwritten_unasked() {
    let desk = Desk::new();
    desk.add_vm("DC01", 4, 1);
    desk.ok(["backup", "DC01"]);
    std::fs::write(desk.path("mine"), "precious").unwrap();
    let restore = ["restore", "disk", "DC01@latest", "--to", "mine", "--format", "raw"];
    desk.fails(5, "TARGET_REFUSED", restore);
    assert_eq!(std::fs::read(desk.path("mine")).unwrap(), b"precious");
    desk.ok(restore.iter().chain(&["--overwrite"]));
    assert_eq!(support::sha256_of(&desk.path("mine")), desk.guest_hashes("DC01")[0]);

    desk.fails(5, "TARGET_EXISTS", ["vhd", "convert", "mine", "mine"]);
    desk.fails(5, "TARGET_EXISTS", ["lab", "create", "lab"]);
    desk.fails(5, "REPOSITORY_EXISTS", ["repo", "create"]);
    assert_eq!(desk.json(0, ["points", "list"])["points"].as_array().unwrap().len(), 1, "it is still there");
    desk.fails(5, "STORAGE_UNFIT", ["repo", "create", "locked", "--object-lock-days", "3"]);
    assert!(!desk.path("locked").exists());
}

#[test]
fn damage_is_found_and_never_restored() {
    let desk = Desk::new();
    desk.add_vm("DC01", 8, 1);
    desk.ok(["backup", "DC01"]);
    desk.ok(["verify", "--all", "--level", "full"]);
    let is_pack = |path: &Path| path.components().any(|part| part.as_os_str().to_string_lossy().starts_with('p'));
    let packs = files_below(&desk.path("repo")).into_iter();
    let packs = packs.filter(|path| is_pack(path.strip_prefix(desk.path("repo")).unwrap()));
    let pack = packs.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, &bytes).unwrap();

    // Every part is still there.
    desk.ok(["verify", "DC01@latest"]);
    let run = desk.fails(8, "DAMAGED", ["verify", "DC01@latest", "--level", "full"]);
    assert!(run.stderr.contains("damage in point") && run.stderr.contains("disk 0"), "{run:?}");
    let error = desk.json(8, ["verify", "DC01@latest", "--level", "full"]);
    assert_eq!((&error["type"], &error["code"]), (&"error".into(), &"DAMAGED".into()));

    for format in ["raw", "vhdx"] {
        desk.fails(8, "DAMAGED", ["restore", "disk", "DC01@latest", "--to", "out.disk", "--format", format]);
        let left: Vec<_> = files_below(&desk.path("")).into_iter().filter(|path| path.ends_with("out.disk")).collect();
        assert!(left.is_empty() && !desk.path("out.disk.partial").exists(), "{left:?}");
    }
    // A whole snapshot: what can be read comes back, what cannot is named and has no file.
    let id = desk.json(0, ["snapshot", "list"])["snapshots"][0]["snapshot_id"].as_str().unwrap().to_owned();
    let run = desk.run(["snapshot", "restore", &id, "--to", "tree"]);
    assert_eq!(run.exit, Some(3), "{run:?}");
    assert!(run.stderr.contains("not restored: disks/"), "{run:?}");
    assert!(desk.path("tree/vm.json").is_file());
    assert!(files_below(&desk.path("tree/disks")).is_empty());

    // A pack that is gone is found without reading.
    std::fs::remove_file(&pack).unwrap();
    desk.fails(8, "DAMAGED", ["verify", "DC01@latest"]);
    desk.fails(8, "DAMAGED", ["restore", "disk", "DC01@latest", "--to", "out.disk"]);
}

#[test]
fn full_volumes_are_named() {
    let desk = Desk::new();
    desk.add_vm("DC01", 24, 1);
    desk.ok(["backup", "DC01"]);
    std::fs::create_dir(desk.path("small")).unwrap();
    let Some(_mounted) = Tmpfs::mount(desk.path("small"), 12) else {
        eprintln!("SKIPPED full_volumes_are_named: mounting a tmpfs needs root");
        return;
    };
    desk.fails(14, "TARGET_FULL", ["restore", "disk", "DC01@latest", "--to", "small/x.raw", "--format", "raw"]);
    assert!(files_below(&desk.path("small")).is_empty());

    desk.ok(["repo", "create", "small/repo"]);
    desk.fails(14, "STORAGE_FULL", ["backup", "DC01", "--repo", "small/repo"]);
    desk.expect_clean_host("DC01", 1);
    desk.ok(["verify", "--all", "--level", "full"]);
}

/// A small volume, as long as this lives.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: PathBuf, mib: u32) -> Option<Self> {
        let options = format!("size={mib}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "e3-test"]).arg(&at).output();
        mount.is_ok_and(|output| output.status.success()).then_some(Self(at))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_cleanly() {
    use std::io::{BufRead as _, BufReader};
    use std::process::Stdio;

    for (signal, exit, code) in [("INT", 130, "INTERRUPTED"), ("TERM", 143, "TERMINATED")] {
        let desk = Desk::new();
        desk.add_vm("DC01", 8, 1);
        // Long enough for the signal to come in time.
        desk.lab().set_options(|options| options.job_ms = 1500).unwrap();
        let mut command = desk.command(["backup", "DC01", "--progress", "plain"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        while !text.contains("creating the checkpoint") {
            assert!(stderr.read_line(&mut text).unwrap() > 0, "{text}");
        }
        let kill = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        std::io::Read::read_to_string(&mut stderr, &mut text).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(exit), "{text}");
        assert!(text.contains("stopping cleanly") && text.contains(&format!("code {code}")), "{text}");
        desk.expect_clean_host("DC01", 0);
        assert_eq!(desk.json(0, ["points", "list"])["points"], serde_json::json!([]));
        desk.ok(["backup", "DC01"]);
    }
}

#[test]
fn a_store_that_does_not_answer_is_given_up() {
    let desk = Desk::empty();
    // A port that was free a moment ago: nobody listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("s3://points/?endpoint=http://127.0.0.1:{port}&region=us-east-1&path_style=true");
    let mut command = desk.command(["repo", "status", &url, "--timeout", "1s"]);
    let run = finish(command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "secret"));
    run.expect_failure(13, "STORAGE_UNREACHABLE");
    assert!(!run.stderr.contains("secret"), "{run:?}");
}

#[test]
fn a_store_that_refuses_says_so() {
    let desk = Desk::new();
    let data = desk.path("s3-data");
    std::fs::create_dir(&data).unwrap();
    let Some(server) = bucket::test_support::SeaweedFs::start_or_skip("a_store_that_refuses_says_so", &data) else {
        return;
    };
    server.create_bucket("points", false).unwrap();
    let keys = server.credentials();
    let url =
        |bucket: &str| format!("s3://{bucket}/vms/?endpoint={}&region=us-east-1&path_style=true", server.endpoint());
    let run = |bucket: &str, secret: &str, arguments: &[&str]| {
        let mut command = desk.command(arguments);
        command.env("E3_REPOSITORY", url(bucket));
        finish(command.env("AWS_ACCESS_KEY_ID", &keys.access_key_id).env("AWS_SECRET_ACCESS_KEY", secret))
    };
    let right = keys.secret_access_key.as_str();
    run("points", "wrong-secret", &["repo", "create"]).expect_failure(13, "STORAGE_ACCESS_DENIED");
    assert_eq!(run("points", right, &["repo", "create"]).exit, Some(0));
    run("points", "wrong-secret", &["repo", "status"]).expect_failure(13, "STORAGE_ACCESS_DENIED");
    // A bucket that is not there is not an empty one.
    assert_ne!(run("no-such-bucket", right, &["repo", "status"]).exit, Some(10));

    desk.add_vm("DC01", 8, 3);
    let backup = run("points", right, &["backup", "DC01"]);
    assert_eq!(backup.exit, Some(0), "{backup:?}");
    let denied = run("points", "wrong-secret", &["backup", "DC01"]);
    assert_eq!(denied.exit, Some(13), "{denied:?}");
    desk.expect_clean_host("DC01", 1);
    let verified = run("points", right, &["verify", "DC01@latest", "--level", "full"]);
    assert_eq!(verified.exit, Some(0), "{verified:?}");
    // Nothing listens any more.
    drop(server);
}

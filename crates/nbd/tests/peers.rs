//! What libnbd's and QEMU's clients say of the server.
#![cfg(unix)]

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use nbd::FileDevice;
use serde_json::Value;
use support::*;

const SIZE: u64 = 64 * MIB;

/// Whether the programs are there; else the line that says what was skipped.
fn installed(test: &str, programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| Command::new(program).arg("--version").output().is_err());
    if let Some(program) = missing {
        eprintln!("SKIPPED {test}: {program} is not installed");
    }
    missing.is_none()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {stdout}{stderr}");
    stdout.into_owned()
}

/// An image with data, a hole, and data.
fn image(path: &Path, size: u64, seed: u64) -> Vec<u8> {
    let mut content = Random(seed).bytes(size as usize);
    content[size as usize / 4..size as usize / 2].fill(0);
    content[..512].fill(0x55);
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    let (low, high) = (size / 4, size / 2);
    std::os::unix::fs::FileExt::write_all_at(&file, &content[..low as usize], 0).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &content[high as usize..], high).unwrap();
    content
}

fn serve_file(path: &Path, read_only: bool) -> Serving {
    Serving::new(Arc::new(FileDevice::open(path, read_only).unwrap()), read_only)
}

#[test]
fn nbdinfo_sees_what_is_offered() {
    if !installed("nbdinfo_sees_what_is_offered", &["nbdinfo"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.img");
    image(&path, SIZE, 1);
    for read_only in [false, true] {
        let serving = serve_file(&path, read_only);
        let info: Value = serde_json::from_str(&run(Command::new("nbdinfo").args(["--json", &serving.uri()]))).unwrap();
        assert_eq!((&info["protocol"], &info["TLS"]), (&"newstyle-fixed".into(), &false.into()));
        assert_eq!(info["structured"], true);
        let export = &info["exports"][0];
        for (key, expected) in [
            ("export-name", Value::from("rp1/disk0")),
            ("export-size", SIZE.into()),
            ("is_read_only", read_only.into()),
            ("can_multi_conn", true.into()),
            ("can_flush", true.into()),
            ("can_fua", true.into()),
            ("can_df", true.into()),
            ("can_cache", true.into()),
            ("can_trim", (!read_only).into()),
            ("can_zero", (!read_only).into()),
            ("can_fast_zero", (!read_only).into()),
            ("is_rotational", false.into()),
            ("block_size_minimum", 512.into()),
            ("block_size_preferred", 4096.into()),
            ("block_size_maximum", (32 << 20).into()),
        ] {
            assert_eq!(export[key], expected, "{key} in {export}");
        }
        assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
        let list_uri = format!("nbd+unix:///?socket={}", serving.socket().display());
        let list = run(Command::new("nbdinfo").args(["--list", &list_uri]));
        assert!(list.contains("rp1/disk0") && list.contains("a test"), "{list}");
        let map: Value =
            serde_json::from_str(&run(Command::new("nbdinfo").args(["--map", "--json", &serving.uri()]))).unwrap();
        let map: Vec<_> =
            map.as_array().unwrap().iter().map(|one| (one["length"].as_u64(), one["type"].as_u64())).collect();
        assert_eq!(map, [(Some(SIZE / 4), Some(0)), (Some(SIZE / 4), Some(3)), (Some(SIZE / 2), Some(0))]);
    }
}

#[test]
fn copies_by_nbdcopy_and_qemu_img_are_equal() {
    if !installed("copies_by_nbdcopy_and_qemu_img_are_equal", &["nbdcopy", "qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, other, copy) = (dir.path().join("d.img"), dir.path().join("e.img"), dir.path().join("copy.img"));
    let content = image(&path, SIZE, 2);
    let serving = serve_file(&path, false);
    run(Command::new("nbdcopy").arg(serving.uri()).arg(&copy));
    assert!(std::fs::read(&copy).unwrap() == content, "nbdcopy reads");
    run(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "raw", &serving.uri()]).arg(&copy));
    assert!(std::fs::read(&copy).unwrap() == content, "qemu-img reads");
    run(Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "raw", &serving.uri()]).arg(&path));
    let changed = image(&other, SIZE, 3);
    run(Command::new("nbdcopy").arg(&other).arg(serving.uri()));
    assert!(std::fs::read(&path).unwrap() == changed, "nbdcopy writes");
    let content = image(&other, SIZE, 4);
    run(Command::new("qemu-img").args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(&other).arg(serving.uri()));
    assert!(std::fs::read(&path).unwrap() == content, "qemu-img writes");
}

#[test]
fn qemu_io_finds_every_command_working() {
    if !installed("qemu_io_finds_every_command_working", &["qemu-io"]) {
        return;
    }
    let serving = Serving::new(MemoryDisk::new(SIZE), false);
    let script = [
        "write -P 0x5a 512 1024",
        "write -f -P 1 1M 64k",
        "write -P 7 2M 3M",
        "write -z 2M 1M",
        "write -z -u 3M 1M",
        "write -z -n 4M 512k",
        "discard 5M 1M",
        "flush",
        "read -P 0x5a 512 1024",
        "read -P 1 1M 64k",
        "read -P 0 2M 2560k",
        "read -P 7 4608k 512k",
        "read -P 0 5M 1M",
        "aio_read 0 32M",
        "aio_flush",
    ];
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw", &serving.uri()]);
    for line in script {
        command.args(["-c", line]);
    }
    let said = run(&mut command);
    assert!(!said.contains("failed") && !said.contains("error"), "{said}");
    run(Command::new("qemu-img").args(["bench", "-f", "raw", "-c", "2000", "-d", "16", "-s", "65536", &serving.uri()]));
    run(Command::new("qemu-img")
        .args(["bench", "-f", "raw", "-c", "2000", "-d", "16", "-s", "4096", "-w", "--flush-interval", "100"])
        .arg(serving.uri()));
}

#[test]
fn libnbd_agrees_with_every_line_of_the_conformance_script() {
    const TEST: &str = "libnbd_agrees_with_every_line_of_the_conformance_script";
    // Debian's module belongs to Debian's interpreter.
    let python = Path::new("/usr/bin/python3");
    if !Command::new(python).args(["-c", "import nbd"]).output().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED {TEST}: Python's nbd module (python3-libnbd) is not installed");
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance.py");
    for (read_only, lines) in [(false, 47), (true, 38)] {
        let serving = Serving::new(MemoryDisk::new(SIZE), read_only);
        let mut command = Command::new(python);
        command.arg(&script).arg(serving.uri()).args(read_only.then_some("read-only"));
        let said = run(&mut command);
        let wrong: Vec<&str> = said.lines().filter(|line| !line.starts_with("ok ")).collect();
        assert_eq!(wrong, [""; 0], "read-only {read_only}");
        assert_eq!(said.lines().count(), lines, "{said}");
    }
}

/// The throughput of this server as a part of QEMU's, on the same file in the same run.
#[test]
#[ignore = "a measurement: needs an idle machine"]
fn throughput_beside_qemu_nbd() {
    if !installed("throughput_beside_qemu_nbd", &["nbdcopy", "qemu-nbd"]) {
        return;
    }
    const GIB: u64 = 1 << 30;
    let dir = tempfile::tempdir().unwrap();
    let (path, socket) = (dir.path().join("d.img"), dir.path().join("q.sock"));
    let file = std::fs::File::create(&path).unwrap();
    let piece = Random(9).bytes(1 << 20);
    (0..GIB >> 20).for_each(|mib| std::os::unix::fs::FileExt::write_all_at(&file, &piece, mib << 20).unwrap());
    let serving = serve_file(&path, true);
    let mut peer = Command::new("qemu-nbd");
    peer.args(["-f", "raw", "-r", "-t", "-e", "8", "-x", "rp1/disk0", "-k"]).arg(&socket).arg(&path);
    let mut peer = Ended(peer.spawn().unwrap());
    while !socket.exists() {
        assert!(peer.0.try_wait().unwrap().is_none(), "qemu-nbd runs");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let theirs = format!("nbd+unix:///rp1%2Fdisk0?socket={}", socket.display());
    for connections in [1, 4] {
        let rate = |uri: &str| {
            let begun = Instant::now();
            run(Command::new("nbdcopy").arg(format!("--connections={connections}")).args([uri, "null:"]));
            1024.0 / begun.elapsed().as_secs_f64()
        };
        // The first round warms up; each is taken in turn, and the best of five counts.
        let (mut ours_best, mut theirs_best) = (0.0_f64, 0.0_f64);
        for _ in 0..6 {
            ours_best = ours_best.max(rate(&serving.uri()));
            theirs_best = theirs_best.max(rate(&theirs));
        }
        println!(
            "{connections} connections: {ours_best:.0} MiB/s here, {theirs_best:.0} MiB/s from qemu-nbd, ratio {:.2}",
            ours_best / theirs_best
        );
    }
}

/// A child that does not outlive the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//! What libiscsi's and QEMU's initiators say of the target (spec B.14, E.3).
#![cfg(unix)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use iscsi::MemoryDevice;
use support::*;

/// Whether the programs are there; else the line that says what was skipped.
fn installed(test: &str, programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| Command::new(program).arg("--version").output().is_err());
    if let Some(program) = missing {
        eprintln!("SKIPPED {test}: {program} is not installed");
    }
    missing.is_none()
}

/// Whether QEMU's programs know of iSCSI, which Debian keeps in a package of its own.
fn qemu_installed(test: &str) -> bool {
    let known = |program: &str| Command::new(program).args(["--help"]).output().is_ok();
    if !known("qemu-img") || !known("qemu-io") {
        eprintln!("SKIPPED {test}: qemu-img and qemu-io are not installed");
        return false;
    }
    // Nobody listens there: with the driver that is a connection that fails.
    let output =
        Command::new("qemu-img").args(["info", "iscsi://127.0.0.1:1/iqn.2026-01.test:none/0"]).output().unwrap();
    let has_driver = !String::from_utf8_lossy(&output.stderr).contains("Unknown protocol");
    if !has_driver {
        eprintln!("SKIPPED {test}: QEMU's iSCSI driver (qemu-block-extra) is not installed");
    }
    has_driver
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {stdout}{stderr}");
    stdout.into_owned()
}

fn fails(command: &mut Command) -> bool {
    !command.output().unwrap().status.success()
}

/// What one run of libiscsi's conformance suite said.
#[derive(Debug)]
struct Verdict {
    ran: usize,
    failed: BTreeSet<String>,
    /// Tests of which a part, or all, was skipped: the suite counts them as passed.
    skipped: BTreeSet<String>,
    log: String,
}

fn conformance(tests: &str, urls: &[&str]) -> Verdict {
    let output = Command::new("iscsi-test-cu").args(["-d", "-V", "-t", tests]).args(urls).output().unwrap();
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    let (mut suite, mut test) = ("", String::new());
    let (mut failed, mut skipped) = (BTreeSet::new(), BTreeSet::new());
    for line in log.lines() {
        if let Some(name) = line.strip_prefix("Suite: ") {
            suite = name.trim();
        } else if let Some(name) = line.strip_prefix("  Test: ") {
            test = format!("{suite}.{}", name.split(' ').next().unwrap_or_default());
        }
        // In the same line, where a test says nothing before it.
        if line.contains("SKIPPED") {
            skipped.insert(test.clone());
        }
        // The verdict stands at the start of a line; marks within a test may be expected.
        if line.starts_with("FAILED") {
            failed.insert(test.clone());
        }
    }
    let summary = log.lines().find(|line| line.trim_start().starts_with("tests "));
    let summary = summary.unwrap_or_else(|| panic!("no summary in {log}{}", String::from_utf8_lossy(&output.stderr)));
    let numbers: Vec<usize> = summary.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    assert_eq!(numbers[3], failed.len(), "the summary and the log agree on failures: {summary}, {failed:?}");
    Verdict { ran: numbers[1], failed, skipped, log }
}

/// Tests that this target, of the kind named, has reason not to run.
fn justified(test: &str, thin: bool) -> Option<&'static str> {
    let (suite, name) = test.split_once('.').unwrap();
    Some(match (suite, name) {
        ("ExtendedCopy" | "ReceiveCopyResults" | "ReadDefectData10" | "ReadDefectData12" | "WriteAtomic16", _) => {
            "opcode refused"
        }
        ("Sanitize", _) => "opcode refused; the run does not allow it either",
        ("NoMedia" | "PreventAllow" | "StartStopUnit", _) => "the medium is not removable",
        ("WriteSame10" | "WriteSame16", "ZeroBlocks") => "WSNZ: no count of zero",
        (_, "InvalidDataOutSize" | "UnmapUnaligned") => "needs several logical blocks in a physical one: the 512e run",
        ("MultipathIO" | "MultipathIO.Simple", _) => "needs two addresses; has a run of its own",
        ("ReadOnly", _) => "needs a read-only unit; has a run of its own",
        _ if !thin => match (suite, name) {
            ("GetLBAStatus" | "Unmap", _) => "thin units only",
            ("WriteSame10" | "WriteSame16", name) if name.contains("Unmap") => "thin units only",
            ("Inquiry", "BlockLimits") => "thin units only",
            _ => return None,
        },
        _ => return None,
    })
}

#[test]
fn the_suite_of_libiscsi_fails_nothing() {
    const TEST: &str = "the_suite_of_libiscsi_fails_nothing";
    if !installed(TEST, &["iscsi-test-cu"]) {
        return;
    }
    // Side by side: much of a run is sleep.
    let kinds = [
        ("512n thin", THIN_512N, 51),
        ("512n thick", THICK_512N, 62),
        ("4Kn thin", THIN_4KN, 51),
        ("4Kn thick", THICK_4KN, 62),
    ];
    std::thread::scope(|scope| {
        for (what, shown, skips) in kinds {
            scope.spawn(move || {
                let serving = Serving::memory(256 * MIB, shown);
                let verdict = conformance("ALL", &[&serving.url()]);
                assert_eq!(verdict.failed, BTreeSet::new(), "{what}: {}", verdict.log);
                check_skips(what, shown, &verdict);
                assert_eq!((verdict.ran, verdict.skipped.len()), (230, skips), "{what}");
            });
        }
        scope.spawn(|| {
            // The one failure is the suite's: its first descriptor begins after the block that was asked for, where
            // SBC-3 5.5 says that it begins with that block (spec B.14).
            let serving = Serving::memory(256 * MIB, THIN_512E);
            let verdict = conformance("ALL", &[&serving.url()]);
            assert_eq!(verdict.failed, BTreeSet::from(["GetLBAStatus.UnmapSingle".into()]), "{}", verdict.log);
            check_skips("512e thin", THIN_512E, &verdict);
            assert_eq!((verdict.ran, verdict.skipped.len()), (230, 46));
        });
    });
    let serving = Serving::memory(256 * MIB, THIN_512N);
    let verdict = conformance("ALL.MultipathIO", &[&serving.url(), &serving.url()]);
    assert!(verdict.failed.is_empty() && verdict.skipped.is_empty() && verdict.ran == 4, "{}", verdict.log);
    let serving = Serving::memory(256 * MIB, READ_ONLY);
    let verdict = conformance("ALL.ReadOnly", &[&serving.url()]);
    assert!(verdict.failed.is_empty() && verdict.skipped.is_empty() && verdict.ran == 1, "{}", verdict.log);
}

fn check_skips(what: &str, shown: Shown, verdict: &Verdict) {
    let thin = shown.provisioning == THIN_512N.provisioning;
    println!(
        "iscsi-test-cu {what}: {} ran, {} failed, {} skipped in part or whole",
        verdict.ran,
        verdict.failed.len(),
        verdict.skipped.len()
    );
    let mut by_reason: BTreeMap<&str, usize> = BTreeMap::new();
    for test in &verdict.skipped {
        let reason = justified(test, thin).unwrap_or_else(|| panic!("{what}: {test} was skipped: {}", verdict.log));
        *by_reason.entry(reason).or_default() += 1;
    }
    by_reason.iter().for_each(|(reason, count)| println!("  {count:2} skipped: {reason}"));
}

#[test]
fn the_tools_of_libiscsi_see_what_is_offered() {
    const TEST: &str = "the_tools_of_libiscsi_see_what_is_offered";
    if !installed(TEST, &["iscsi-ls", "iscsi-inq", "iscsi-readcapacity16"]) {
        return;
    }
    for (shown, thin, block_bytes, exponent) in
        [(THICK_512N, 0, 512, 0), (THIN_512E, 1, 512, 3), (THIN_4KN, 1, 4096, 0)]
    {
        let serving = Serving::memory(64 * MIB, shown);
        let list = run(Command::new("iscsi-ls").args(["-s", &serving.portal()]));
        assert!(list.contains(&format!("Target:{TARGET} Portal:{},1", serving.address)), "{list}");
        assert!(list.contains("Lun:0    Type:DIRECT_ACCESS"), "{list}");
        let capacity = run(Command::new("iscsi-readcapacity16").arg(serving.url()));
        for line in [
            format!("RETURNED LOGICAL BLOCK ADDRESS:{}", 64 * MIB / block_bytes - 1),
            format!("LOGICAL BLOCK LENGTH IN BYTES:{block_bytes}"),
            format!("LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT:{exponent}"),
            format!("LBPME:{thin} LBPRZ:{thin}"),
        ] {
            assert!(capacity.contains(&line), "{line} in {capacity}");
        }
        assert!(run(Command::new("iscsi-inq").arg(serving.url())).contains("Product:Restore Point"));
        // Page numbers in decimal: the program takes 0x80 for 0. It knows nothing of page 0x86.
        for page in ["0", "128", "131", "176", "177", "178"] {
            run(Command::new("iscsi-inq").args(["-e", "1", "-c", page, &serving.url()]));
        }
    }
}

#[test]
fn who_logs_in_must_know_the_secret_and_so_must_we() {
    const TEST: &str = "who_logs_in_must_know_the_secret_and_so_must_we";
    if !installed(TEST, &["iscsi-readcapacity16", "iscsi-ls"]) {
        return;
    }
    let serving = Serving::new(Arc::new(MemoryDevice::new(MIB, 512)), THICK_512N, Some(mutual()), 0);
    let attempt = |user: &str, secret: &str, query: &str| {
        let url = format!("{}{query}", serving.url_as(user, secret));
        !fails(Command::new("iscsi-readcapacity16").arg(url))
    };
    for (what, user, secret, query, enters) in [
        ("one way", "alice", "secretsecret12", "", true),
        ("mutual", "alice", "secretsecret12", "?target_user=target1&target_password=mutualsecret12", true),
        ("wrong secret", "alice", "secretsecret13", "", false),
        ("wrong user", "bob", "secretsecret12", "", false),
        ("our name is wrong", "alice", "secretsecret12", "?target_user=target2&target_password=mutualsecret12", false),
        (
            "our secret is wrong",
            "alice",
            "secretsecret12",
            "?target_user=target1&target_password=mutualsecret13",
            false,
        ),
    ] {
        assert_eq!(attempt(user, secret, query), enters, "{what}");
    }
    assert!(fails(Command::new("iscsi-readcapacity16").arg(serving.url())), "no secret at all");
    assert!(fails(Command::new("iscsi-ls").arg(serving.portal())), "discovery asks for it, too");
    let list = run(Command::new("iscsi-ls").arg(format!("iscsi://alice%secretsecret12@{}/", serving.address)));
    assert!(list.contains(TARGET), "{list}");
}

#[test]
fn qemu_reads_writes_discards_and_copies() {
    if !qemu_installed("qemu_reads_writes_discards_and_copies") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (image, copy) = (dir.path().join("d.img"), dir.path().join("copy.img"));
    // Not 4Kn thin: there QEMU 7.2 asks for the state of 2 GiB less 512 bytes, and stops at its own assertion.
    for shown in [THIN_512N, THICK_512N, THIN_512E, THICK_4KN] {
        let serving = Serving::memory(64 * MIB, shown);
        let url = serving.url();
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw", &url]);
        for line in [
            "write -P 0x33 5M 64k",
            "write -f -P 1 1M 64k",
            "write -P 7 8M 4M",
            "write -z -u 8M 1M",
            "write -z 10M 1M",
            "discard 11M 1M",
            "flush",
            "read -P 0x33 5M 64k",
            "read -P 1 1M 64k",
            "read -P 0 8M 1M",
            "read -P 7 9M 1M",
            "read -P 0 10M 1M",
            "aio_read 0 32M",
            "aio_flush",
        ] {
            command.args(["-c", line]);
        }
        let said = run(&mut command);
        assert!(!said.contains("failed") && !said.contains("error"), "{shown:?}: {said}");

        let content: Vec<u8> = (0..64 * MIB).map(|at| ((at >> 12) * 31 + at % 251) as u8).collect();
        std::fs::write(&image, &content).unwrap();
        run(Command::new("qemu-img").args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(&image).arg(&url));
        run(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "raw", &url]).arg(&copy));
        assert!(std::fs::read(&copy).unwrap() == content, "{shown:?}: what QEMU wrote and read is equal");
        run(Command::new("qemu-img").args(["bench", "-f", "raw", "-c", "2000", "-d", "32", "-s", "65536", &url]));
        run(Command::new("qemu-img")
            .args(["bench", "-f", "raw", "-c", "2000", "-d", "32", "-s", "4096", "-w", "--flush-interval", "100"])
            .arg(&url));
    }
}

/// A server that was killed is replaced by another on the same disk: QEMU logs in again and goes on.
#[test]
fn qemu_outlives_a_restart_of_the_server() {
    if !qemu_installed("qemu_outlives_a_restart_of_the_server") {
        return;
    }
    let device = Arc::new(MemoryDevice::new(64 * MIB, 4096));
    let first = Serving::new(device.clone(), THIN_512E, None, 0);
    let port = first.address.port();
    let qemu = Command::new("qemu-io")
        .args(["-f", "raw", &first.url()])
        .args(["-c", "write -P 0x33 5M 64k", "-c", "sleep 2500", "-c", "read -P 0x33 5M 64k", "-c", "write -P 1 0 4k"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(800));
    // Without a grace every connection is cut at once.
    first.server.shutdown(Duration::ZERO).unwrap();
    let _second = Serving::new(device, THIN_512E, None, port);
    let output = qemu.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("fail"), "{said}");
    assert!(said.contains("read 65536/65536 bytes"), "{said}");
}

//! What libiscsi's and QEMU's initiators say of the target (spec B.14, E.3).
#![cfg(unix)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    for (what, tests, urls, ran) in [("two paths", "ALL.MultipathIO", [serving.url(), serving.url()], 4)] {
        let verdict = conformance(tests, &urls.each_ref().map(String::as_str));
        assert!(verdict.failed.is_empty() && verdict.skipped.is_empty(), "{what}: {}", verdict.log);
        assert_eq!(verdict.ran, ran, "{what}");
    }
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

//! Cost follows change, not size: the same changes on disks of 8, 64 and 256 GiB with the same data in them.
//!
//! Counters must be equal and the peak memory within 10 %, and under 256 MiB. The short form has an eighth of the data;
//! `cargo xtask test --long` has 2 GiB used and 100 MiB changed.

use std::path::Path;
use std::process::Command;

use hyperv_sim::{DiskSource, LabHost, LabOptions, VmOptions};

const GIB: u64 = 1 << 30;

/// What one incremental cost.
#[derive(Debug)]
struct Cost {
    read_bytes: u64,
    audit_bytes: u64,
    changed_bytes: u64,
    data_bytes: u64,
    peak_rss_bytes: u64,
}

#[test]
fn cost_follows_change() {
    compare(256, 12);
}

#[test]
#[ignore = "long: 2 GiB used, 100 MiB changed, three times"]
fn cost_follows_change_with_two_gib() {
    compare(2048, 100);
}

fn compare(used_mib: u64, changed_mib: u64) {
    let dir = tempfile::tempdir().unwrap();
    let costs: Vec<(u64, Cost)> =
        [8, 64, 256].map(|gib| (gib, incremental_cost(dir.path(), gib, used_mib, changed_mib))).into();
    for (gib, cost) in &costs {
        println!("{gib:>4} GiB: {cost:?}");
    }
    let (_, first) = &costs[0];
    assert_eq!(first.changed_bytes, changed_mib << 20);
    for (gib, cost) in &costs {
        assert_eq!(cost.read_bytes, first.read_bytes, "{gib} GiB: source reads");
        assert_eq!(cost.audit_bytes, first.audit_bytes, "{gib} GiB: audit");
        assert_eq!(cost.changed_bytes, first.changed_bytes, "{gib} GiB: changed");
        // Beside the changed segments, `data_bytes` holds the stream's head, whose table grows with the disk: the part
        // that changed of it, compressed, and the definition, whose opaque parts are new with every checkpoint.
        let difference = cost.data_bytes.abs_diff(first.data_bytes);
        assert!(difference <= 64 << 10, "{gib} GiB: {difference} bytes of uploaded data more or less");
        assert!(cost.peak_rss_bytes < 256 << 20, "{gib} GiB: {} bytes of memory", cost.peak_rss_bytes);
        let ratio = cost.peak_rss_bytes as f64 / first.peak_rss_bytes as f64;
        assert!((0.9..=1.1).contains(&ratio), "{gib} GiB: {ratio:.2} times the memory of 8 GiB");
    }
}

/// The cost of an incremental on a disk of `gib` that has a full backup.
fn incremental_cost(dir: &Path, gib: u64, used_mib: u64, changed_mib: u64) -> Cost {
    let dir = dir.join(format!("{gib}"));
    let options = LabOptions { job_ms: 5, merge_ms: 5, ..LabOptions::real_time() };
    let lab = LabHost::create_with(dir.join("lab"), options).unwrap();
    lab.add_vm("VM", &[DiskSource::Empty { size_bytes: gib * GIB }], VmOptions::default()).unwrap();
    // Half-used blocks within the first 5 GiB, the same on every size.
    for nth in 0..used_mib {
        lab.guest_write_at("VM", 0, nth * (2 << 20) + (1 << 20), &noise(nth, 1 << 20)).unwrap();
    }
    agent(&dir, &["repo", "create"]);
    agent(&dir, &["backup", "VM"]);
    for nth in 0..changed_mib {
        let place = nth * (used_mib / changed_mib);
        let data = noise(1_000_000 + nth, 1 << 20);
        lab.guest_write_at("VM", 0, place * (2 << 20) + (1 << 20), &data).unwrap();
    }
    let output = agent(&dir, &["backup", "VM", "--json"]);
    let result = output
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|value| value["type"] == "result")
        .unwrap_or_else(|| panic!("no result in {output}"));
    let vm = &result["vms"][0];
    let number = |name: &str| vm[name].as_u64().unwrap_or_else(|| panic!("{name} is missing in {result}"));
    assert_eq!(number("entries"), number("entries_checked"), "{gib} GiB: every entry is looked up");
    Cost {
        read_bytes: number("read_bytes"),
        audit_bytes: number("audit_bytes"),
        changed_bytes: number("changed_bytes"),
        data_bytes: number("data_bytes"),
        peak_rss_bytes: number("peak_rss_bytes"),
    }
}

fn agent(dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_e3-backup-agent"))
        .args(arguments)
        .env("HOME", dir)
        .env("E3_REPOSITORY", dir.join("repo"))
        .env("E3_HOST", format!("lab:{}", dir.join("lab").display()))
        .env("E3_PASSWORD", "scale-password")
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Bytes that do not compress, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

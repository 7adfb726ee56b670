//! Whole VMs from a lab host into a repository and back.

mod support;

use backup::{FullReason, Point, ReadMode, TargetFormat, VerifyLevel, VmReport, upload_bound, verify_point};
use hyperv_sim::DiskSource;
use support::{Rig, assert_same, differing_segments};

#[test]
fn scenario_01_full_then_twenty_incrementals_each_restored() {
    let rig =
        Rig::new(&[DiskSource::Empty { size_bytes: 96 << 20 }, DiskSource::Empty { size_bytes: (32 << 20) + 512 }]);
    rig.guest_write(1, 40);
    let mut states = Vec::new();
    let mut last: Vec<Vec<u8>> = Vec::new();
    for run in 0..=20_u64 {
        if run > 0 {
            rig.guest_write(100 + run, 3);
        }
        let state: Vec<Vec<u8>> = (0..2).map(|disk| rig.guest_disk(disk)).collect();
        let report = rig.back_up().unwrap_or_else(|error| panic!("run {run}: {}", text(&error)));
        assert!(report.warnings.is_empty(), "run {run}: {:?}", report.warnings);
        rig.assert_host_is_clean(&format!("run {run}"));
        for (number, disk) in report.description.disks.iter().enumerate() {
            match &disk.read {
                ReadMode::Full { reason } => {
                    assert_eq!((run, *reason), (0, FullReason::First));
                    let segment = disk.segment_bytes as usize;
                    let nonzero = state[number].chunks(segment).filter(|one| one.iter().any(|byte| *byte != 0)).count();
                    assert_eq!(disk.changed_bytes, (nonzero * segment) as u64, "disk {number}: nonzero segments");
                }
                ReadMode::Incremental { .. } => {
                    assert!(run > 0);
                    let changed = differing_segments(&last[number], &state[number], disk.segment_bytes as usize) as u64;
                    let bytes = u64::from(disk.segment_bytes);
                    assert_eq!(disk.changed_bytes, changed * bytes, "run {run}, disk {number}");
                    assert!(disk.read_bytes >= disk.changed_bytes, "run {run}, disk {number}");
                }
            }
        }
        assert_eq!(report.stats.entries, report.stats.entries_checked, "run {run}: every entry is looked up");
        if run > 0 {
            assert_within_bound(&rig, &report, &format!("run {run}"));
        }
        rig.bucket.reset_tally();
        last = state.clone();
        states.push((report.point, state));
    }
    for (run, (point, state)) in states.iter().enumerate() {
        for (disk, expected) in state.iter().enumerate() {
            assert_same(&format!("run {run}, disk {disk}"), expected, &rig.restore_raw(point, disk));
        }
    }
    // As a file: what Hyper-V would attach.
    let (point, state) = &states[7];
    let target = rig.dir.path().join("restored.vhdx");
    rig.restore(point, 0, TargetFormat::Vhdx, &target);
    let opened = vhdx::open_disk(&target, &vhdx::OpenOptions::default()).unwrap();
    assert_same("restored VHDX", &state[0], &support::read_all(&opened));
    for (point, _) in &states {
        let report =
            verify_point(&rig.repo, point, VerifyLevel::Full, &backup::Silent, &backup::Cancel::default()).unwrap();
        assert!(report.is_sound(), "{:?}", report.damage);
    }
}

#[test]
fn a_block_that_becomes_nonzero_gets_the_next_slot() {
    let rig = Rig::new(&[DiskSource::Empty { size_bytes: 256 << 20 }]);
    // Every block but the lowest.
    for block in 1..128_u64 {
        rig.lab.guest_write_at("DC01", 0, block << 21, &[block as u8; 4096]).unwrap();
    }
    let first = rig.back_up().unwrap();
    rig.bucket.reset_tally();
    rig.lab.guest_write_at("DC01", 0, 5, b"x").unwrap();
    let state = rig.guest_disk(0);
    let second = rig.back_up().unwrap();
    assert_eq!(second.description.disks[0].slots, 128);
    assert_eq!(second.description.disks[0].changed_bytes, 1 << 20);
    assert_within_bound(&rig, &second, "lowest free block");
    assert_same("after", &state, &rig.restore_raw(&second.point, 0));
    let mut before = state.clone();
    before[5] = 0;
    assert_same("before", &before, &rig.restore_raw(&first.point, 0));
}

#[test]
fn an_unchanged_vm_costs_next_to_nothing() {
    let rig = Rig::new(&[DiskSource::Empty { size_bytes: 256 << 20 }]);
    rig.guest_write(1, 40);
    rig.back_up().unwrap();
    rig.bucket.reset_tally();
    let report = rig.back_up().unwrap();
    assert_eq!(report.stats.read_bytes, 0);
    assert_eq!(report.stats.changed_bytes, 0);
    assert_within_bound(&rig, &report, "unchanged");
}

/// Everything uploaded, by the bucket's own count, is within what the code states; and the statement is not idle: it is
/// at most four times what a few changed segments and the definition make.
fn assert_within_bound(rig: &Rig, report: &VmReport, label: &str) {
    let definition = definition_bytes(rig, &report.point);
    let bound = upload_bound(&report.description, definition);
    let put = rig.bucket.tally().put_bytes;
    assert_eq!(report.stats.uploaded_bytes, put, "{label}: our own count");
    rig.bucket.reset_tally();
    assert!(put <= bound, "{label}: {put} bytes put, at most {bound} promised: {:?}", report.stats);
    let changed = report.stats.changed_bytes;
    assert!(
        bound <= 4 * (changed + definition + (256 << 10)),
        "{label}: a bound of {bound} for {changed} changed bytes"
    );
}

fn definition_bytes(rig: &Rig, point: &Point) -> u64 {
    let mut bytes = 0;
    for folder in ["", "config"] {
        let entry = point.entry(&rig.repo, folder).unwrap();
        let directory = rig.repo.read_directory(&kopia_repo::object_of(&entry).unwrap()).unwrap();
        let files = directory.entries.iter().filter(|entry| entry.summary.is_none() && entry.name != "point.json");
        bytes += files.map(|entry| entry.size as u64).sum::<u64>();
    }
    bytes
}

fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

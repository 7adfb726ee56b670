//! The failure matrix (spec hyperv 11, control-api 3.8): each row that the lab host can play, by its number.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use backup::{BackupError, Consistency, FullReason, WarningCode};
use hyperv::seam::{CimValue, Instance, Namespace};
use hyperv::{CreateError, ErrorKind};
use hyperv_sim::{DiskSource, Fault, LabOptions, RestartPhase, VssBehaviour};
use kopia_repo::{ClientOptions, Storage, StorageKind};

use crate::support::{Rig, full_reasons};

const MIB: u64 = 1 << 20;

/// A host on virtual time with one written disk.
fn rig() -> Rig {
    let rig = Rig::with(LabOptions::default(), &[DiskSource::Empty { size_bytes: 16 * MIB }]);
    rig.guest_write(1, 4);
    rig
}

fn seconds(rig: &Rig, work: impl FnOnce()) -> u64 {
    let begun = rig.lab.clock().monotonic();
    work();
    (rig.lab.clock().monotonic() - begun).as_secs()
}

fn warnings(report: &backup::VmReport, code: WarningCode) -> usize {
    report.warnings.iter().filter(|one| one.code == code).count()
}

/// A backup that must succeed, restore what the guest has, and leave nothing.
fn back_up_well(rig: &Rig, label: &str) -> backup::VmReport {
    let state = rig.guest_disks("DC01");
    let report = rig.back_up().unwrap_or_else(|error| panic!("{label}: {error:?}"));
    rig.assert_restores(label, &report.point, &state);
    rig.wait_for_rest("DC01");
    rig.assert_host_is_clean(label);
    report
}

/// The kind of the host's own error at the bottom.
fn kind_of(error: &BackupError) -> Option<ErrorKind> {
    let BackupError::Host { source, .. } = error else { return None };
    source.downcast_ref::<CreateError>().map(CreateError::kind)
}

/// A call by somebody else, whose job is not waited for.
fn call_as_another(rig: &Rig, service: &str, method: &str, parameters: &[(&str, CimValue)]) {
    let wmi = rig.lab.plain_seam().wmi;
    let services = wmi.query(Namespace::Virtualization, &format!("SELECT * FROM {service}")).unwrap();
    let service = services[0].path.clone().unwrap();
    let output = wmi.call(Namespace::Virtualization, &service, method, parameters).unwrap();
    assert!([0, 4096].contains(&output.return_value), "{output:?}");
}

fn only(rig: &Rig, wql: &str) -> Instance {
    let mut found = rig.lab.plain_seam().wmi.query(Namespace::Virtualization, wql).unwrap();
    assert_eq!(found.len(), 1, "{wql}");
    found.remove(0)
}

#[test]
fn row_03_a_service_that_restarts_is_connected_to_again() {
    let rig = rig();
    rig.lab
        .inject(Fault::ServiceRestarts { method: None, after_calls: 0, phase: RestartPhase::Before, down_ms: 20_000 })
        .unwrap();
    let took = seconds(&rig, || _ = back_up_well(&rig, "the service was away"));
    assert!((20..60).contains(&took), "{took} s");
}

#[test]
fn row_06_a_vm_that_the_host_is_busy_with_is_waited_for_and_then_skipped() {
    for (busy_ms, goes_on) in [(120_000, true), (3_600_000, false)] {
        let rig = rig();
        let usual = LabOptions::default().job_ms;
        rig.lab.set_options(|options| options.job_ms = busy_ms).unwrap();
        let vm = only(&rig, "SELECT * FROM Msvm_ComputerSystem WHERE ElementName = 'DC01'").path.unwrap();
        let user_checkpoint: u16 = 2;
        call_as_another(
            &rig,
            "Msvm_VirtualSystemSnapshotService",
            "CreateSnapshot",
            &[
                ("AffectedSystem", CimValue::Reference(vm)),
                ("SnapshotSettings", CimValue::String(String::new())),
                ("SnapshotType", CimValue::Uint16(user_checkpoint)),
            ],
        );
        rig.lab.set_options(|options| options.job_ms = usual).unwrap();
        let mut result = None;
        let took = seconds(&rig, || result = Some(rig.back_up()));
        match result.unwrap() {
            Ok(report) => {
                assert!(goes_on && (120..180).contains(&took), "{took} s");
                rig.assert_restores("after the wait", &report.point, &rig.guest_disks("DC01"));
            }
            Err(BackupError::NotBackupable { problem, .. }) => {
                assert!(!goes_on && problem.contains("busy"), "{problem}");
                assert!((900..960).contains(&took), "{took} s");
                assert!(rig.points().is_empty());
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn row_07_a_busy_host_is_asked_three_more_times() {
    for return_value in [32775, 32774] {
        let fault = Fault::MethodReturns { method: "CreateSnapshot".into(), return_value };
        for (refusals, made) in [(1, true), (3, true), (4, false)] {
            let label = format!("{return_value}, {refusals} refusals");
            let rig = rig();
            rig.lab.inject(fault.clone()).unwrap();
            let waits = Mutex::new(0);
            let mut result = None;
            let took = seconds(&rig, || {
                result = Some(rig.back_up_and(|phase| {
                    if phase.starts_with("waiting before") {
                        let mut waits = waits.lock().unwrap();
                        *waits += 1;
                        if *waits == refusals {
                            rig.lab.clear_faults().unwrap();
                        }
                    }
                }));
            });
            let result = result.unwrap();
            let waits = waits.into_inner().unwrap();
            assert_eq!(result.is_ok(), made, "{label}: {result:?}");
            assert_eq!(waits, refusals.min(3), "{label}");
            assert!(took >= 60 * waits as u64, "{label}: {took} s");
            if let Err(error) = result {
                assert_eq!(kind_of(&error), Some(ErrorKind::Busy), "{label}: {error:?}");
                assert!(rig.points().is_empty());
            }
            rig.lab.clear_faults().unwrap();
            back_up_well(&rig, &label);
        }
    }
}

#[test]
fn rows_08_to_12_and_18_checkpoints_that_fail_are_not_hammered_and_leave_nothing() {
    for (row, fault) in Fault::checkpoint_failures() {
        let label = format!("row {row}: {fault:?}");
        if matches!(row, 7 | 13 | 14 | 19) {
            continue;
        }
        let rig = rig();
        let earlier = back_up_well(&rig, &label);
        rig.lab.inject(fault).unwrap();
        let mut result = None;
        let took = seconds(&rig, || result = Some(rig.back_up()));
        let error = result.unwrap().expect_err(&label);
        // A file that somebody holds may be let go of: once.
        let expected = if row == 8 { 60..200 } else { 0..60 };
        assert!(expected.contains(&took), "{label}: {took} s");
        assert!(kind_of(&error).is_some(), "{label}: {error:?}");
        assert_eq!(rig.points().len(), 1, "{label}");
        rig.wait_for_rest("DC01");
        rig.assert_host_is_clean(&label);
        rig.lab.clear_faults().unwrap();
        rig.guest_write(2, 1);
        let next = back_up_well(&rig, &label);
        assert_eq!(full_reasons(&next), [None], "{label}: the base of {} still holds", earlier.point.id);
    }
}

#[test]
fn row_09_the_remains_of_a_broken_checkpoint_are_named_and_not_deleted() {
    let rig = rig();
    rig.lab.inject(Fault::CreateLeavesFile { vm: "DC01".into() }).unwrap();
    for attempt in 0..2 {
        let error = rig.back_up().expect_err("a file is in the way");
        let BackupError::Host { source, .. } = &error else { panic!("{error:?}") };
        let error = source.downcast_ref::<CreateError>().unwrap();
        let text = error.to_string();
        assert!(attempt == 0 || text.contains("AutoRecovery"), "{text}");
        assert!(attempt == 0 || error.advice().unwrap().contains("AutoRecovery"), "{text}");
        let strays = rig.lab.stray_files().unwrap();
        assert_eq!(strays.len(), 1, "{strays:?}");
    }
}

#[test]
fn row_11_a_volume_without_room_gets_no_checkpoint() {
    let rig = rig();
    // 5 % of a small disk is nothing: the floor counts.
    rig.lab.set_options(|options| options.free_bytes = (10 << 30) - 1).unwrap();
    let error = rig.back_up().unwrap_err();
    assert!(matches!(error, BackupError::NoRoom { needed_bytes, .. } if needed_bytes == 10 << 30), "{error:?}");
    let made = rig.lab.events().unwrap();
    assert!(rig.lab.checkpoints("DC01").unwrap().1.is_empty(), "{made:?}");

    rig.lab.set_options(|options| options.free_bytes = 10 << 30).unwrap();
    let report = back_up_well(&rig, "enough");
    assert_eq!(warnings(&report, WarningCode::LowSpace), 0, "{:?}", report.warnings);

    // More than the floor, and less than 5 % of what the first checkpoint may need.
    let rig = Rig::with(LabOptions::default(), &[DiskSource::Empty { size_bytes: 400 << 30 }]);
    rig.lab.set_options(|options| options.free_bytes = 15 << 30).unwrap();
    let report = rig.back_up().unwrap();
    assert_eq!(warnings(&report, WarningCode::LowSpace), 1, "{:?}", report.warnings);
    // From the second run on, what the runs before needed counts.
    let report = rig.back_up().unwrap();
    assert_eq!(warnings(&report, WarningCode::LowSpace), 0, "{:?}", report.warnings);
}

#[test]
fn row_11_a_run_gives_up_before_its_checkpoint_fills_the_volume() {
    let rig = rig();
    back_up_well(&rig, "first");
    rig.guest_write(2, 1);
    let error = rig
        .back_up_and(|phase| {
            if phase == "reading the definition" {
                rig.lab.set_options(|options| options.free_bytes = 4 << 30).unwrap();
            }
        })
        .unwrap_err();
    assert!(matches!(error, BackupError::NoRoom { needed_bytes, .. } if needed_bytes == 5 << 30), "{error:?}");
    rig.wait_for_rest("DC01");
    rig.assert_host_is_clean("given up");
    rig.lab.set_options(|options| options.free_bytes = 1 << 40).unwrap();
    let report = back_up_well(&rig, "room again");
    assert_eq!(full_reasons(&report), [None]);
}

#[test]
fn a_checkpoint_does_not_live_longer_than_it_may() {
    let rig = rig();
    let error = rig
        .back_up_and(|phase| {
            if phase == "reading the definition" {
                rig.lab.clock().sleep(Duration::from_secs(25 * 3600));
            }
        })
        .unwrap_err();
    assert!(matches!(error, BackupError::CheckpointTooOld { .. }), "{error:?}");
    rig.wait_for_rest("DC01");
    rig.assert_host_is_clean("given up");
}

#[test]
fn row_13_a_guest_that_was_slow_is_asked_once_more_after_five_minutes() {
    for (failures, reached) in [(1, Consistency::Application), (2, Consistency::Crash)] {
        let rig = rig();
        rig.lab.set_vss("DC01", VssBehaviour::WriterRetryable { failures }).unwrap();
        let mut report = None;
        let took = seconds(&rig, || report = Some(back_up_well(&rig, "slow guest")));
        let report = report.unwrap();
        assert_eq!(report.description.consistency, reached, "{failures} failures");
        assert!((300..600).contains(&took), "{failures} failures: {took} s");
        let lowered = warnings(&report, WarningCode::ConsistencyLowered);
        assert_eq!(lowered, usize::from(reached == Consistency::Crash), "{:?}", report.warnings);
    }
}

#[test]
fn row_14_a_guest_that_cannot_is_not_asked_again() {
    let rig = rig();
    rig.lab.set_vss("DC01", VssBehaviour::WriterFails).unwrap();
    let took = seconds(&rig, || {
        let report = back_up_well(&rig, "broken writer");
        assert_eq!(report.description.consistency, Consistency::Crash);
    });
    assert!(took < 300, "{took} s");
}

#[test]
fn row_15_a_checkpoint_that_comes_late_is_removed() {
    // Its job goes on after it was called off, or it appears when the job has ended.
    for appears_after_ms in [None, Some(1_000), Some(40_000)] {
        let label = format!("{appears_after_ms:?}");
        let rig = rig();
        rig.lab.set_options(|options| options.allow_second_recovery_checkpoint = true).unwrap();
        // A guest that answers after an hour, long after we have stopped to wait.
        rig.lab.set_vss("DC01", VssBehaviour::Slow { ms: 3_600_000 }).unwrap();
        rig.lab.inject(Fault::CancelTooLate { appears_after_ms }).unwrap();
        let state = rig.guest_disks("DC01");
        match rig.back_up() {
            Ok(report) => {
                assert_eq!(report.description.consistency, Consistency::Crash, "{label}");
                rig.assert_restores(&label, &report.point, &state);
            }
            // The host may also refuse a second checkpoint while the first is under way.
            Err(error) => assert!(rig.points().is_empty(), "{label}: {error:?}"),
        }
        rig.lab.clock().sleep(Duration::from_secs(2 * 3600));
        rig.lab.clear_faults().unwrap();
        rig.lab.set_vss("DC01", VssBehaviour::Works).unwrap();
        rig.guest_write(2, 1);
        back_up_well(&rig, &label);
    }
}

#[test]
fn row_15_a_checkpoint_that_never_came_is_not_found_in_that_of_another() {
    let rig = rig();
    rig.lab.set_options(|options| options.allow_second_recovery_checkpoint = true).unwrap();
    rig.lab.set_vss("DC01", VssBehaviour::Hangs).unwrap();
    assert_eq!(back_up_well(&rig, "hangs").description.consistency, Consistency::Crash);
    rig.lab.set_vss("DC01", VssBehaviour::Works).unwrap();
    back_up_well(&rig, "works");
    let foreign = rig.lab.create_foreign_recovery_checkpoint("DC01").unwrap();
    rig.back_up().unwrap();
    assert_eq!(rig.lab.checkpoints("DC01").unwrap().1, [foreign]);
}

#[test]
fn row_25_what_cannot_be_asked_is_read_in_full() {
    for code in [0xC03A_0029, 0xC03A_002A, 0xC03A_0030, 0xC03A_0034] {
        let label = format!("{code:#x}");
        let rig = rig();
        back_up_well(&rig, &label);
        rig.guest_write(2, 1);
        rig.lab.inject(Fault::ChangesFail { vm: "DC01".into(), disk: 0, code }).unwrap();
        let report = back_up_well(&rig, &label);
        assert!(full_reasons(&report)[0].is_some(), "{label}");
        rig.lab.clear_faults().unwrap();
        let report = back_up_well(&rig, &label);
        assert_eq!(full_reasons(&report), [None], "{label}: tracked again");
    }
}

#[test]
fn row_26_tracking_that_leaves_changes_out_is_found_and_read_around() {
    let rig = rig();
    back_up_well(&rig, "first");
    rig.lab.guest_write_at("DC01", 0, 5 * MIB, &[9; 4096]).unwrap();
    rig.lab.inject(Fault::ChangesOmit { vm: "DC01".into(), disk: 0, unit: 0 }).unwrap();
    // So small a disk is checked whole, so one omission is enough.
    let report = back_up_well(&rig, "lied to");
    assert_eq!(full_reasons(&report), [Some(FullReason::AuditFailed)]);
    // The only point before was read in full: nothing is doubtful.
    assert_eq!(warnings(&report, WarningCode::TrackingLied), 1, "{:?}", report.warnings);
    rig.lab.clear_faults().unwrap();
    rig.guest_write(3, 1);
    let tracked = back_up_well(&rig, "tracked");
    rig.lab.guest_write_at("DC01", 0, 7 * MIB, &[9; 4096]).unwrap();
    rig.lab.inject(Fault::ChangesOmit { vm: "DC01".into(), disk: 0, unit: 0 }).unwrap();
    let second = back_up_well(&rig, "lied to again");
    assert_eq!(warnings(&second, WarningCode::TrackingLied), 2, "{:?}", second.warnings);
    let evidence = backup::evidence::all(&rig.repo).unwrap();
    let judge = |id: &str| backup::evidence::judge(evidence.get(id).map_or(&[], Vec::as_slice)).outcome;
    use backup::evidence::Outcome;
    assert_eq!(judge(&tracked.point.id), Outcome::Doubtful, "it rests on tracking");
    assert_eq!(judge(&report.point.id), Outcome::Sound, "it was read in full");
    assert_eq!(judge(&second.point.id), Outcome::Sound);
    rig.lab.clear_faults().unwrap();
    rig.guest_write(4, 1);
    let report = back_up_well(&rig, "after");
    assert_eq!(full_reasons(&report), [None]);
    let audited = report.description.disks[0].audited.expect("an incremental is checked");
    assert!(audited.segments > 0 && audited.segments <= audited.of_segments, "{audited:?}");
}

#[test]
fn row_26_a_block_that_the_base_does_not_have_is_missed_by_tracking() {
    // The audit of stored segments alone cannot see it.
    let rig = Rig::with(LabOptions::default(), &[DiskSource::Empty { size_bytes: 56 * MIB }]);
    rig.lab.guest_write_at("DC01", 0, 0, &[1; 4096]).unwrap();
    back_up_well(&rig, "first");
    rig.lab.guest_write_at("DC01", 0, 40 * MIB, &[2; 4096]).unwrap();
    rig.lab.inject(Fault::ChangesOmit { vm: "DC01".into(), disk: 0, unit: 0 }).unwrap();
    let report = back_up_well(&rig, "lied to");
    assert_eq!(full_reasons(&report), [Some(FullReason::AuditFailed)]);
}

#[test]
fn row_29_an_unreadable_range_is_tried_five_times_within_a_minute_and_never_filled_with_zeroes() {
    let unreadable = |times| Fault::UnreadableRange {
        vm: "DC01".into(),
        disk: 0,
        offset_bytes: 0,
        len_bytes: 16 * MIB,
        code: 23,
        times,
    };
    let two = [DiskSource::Empty { size_bytes: 16 * MIB }, DiskSource::Empty { size_bytes: 8 * MIB }];
    for (times, readable) in [(Some(4), true), (None, false)] {
        let rig = Rig::with(LabOptions::default(), &two);
        rig.lab.guest_write_at("DC01", 0, MIB, &[7; 4096]).unwrap();
        rig.lab.inject(unreadable(times)).unwrap();
        let mut result = None;
        let took = seconds(&rig, || result = Some(rig.back_up()));
        assert!(took < 60 + 10, "{times:?}: {took} s");
        match result.unwrap() {
            Ok(report) => {
                assert!(readable);
                rig.assert_restores("read at last", &report.point, &rig.guest_disks("DC01"));
            }
            Err(error) => {
                assert!(!readable && matches!(error, BackupError::SourceRead { .. }), "{error:?}");
                assert!(rig.points().is_empty(), "all disks or none");
            }
        }
        rig.wait_for_rest("DC01");
        rig.assert_host_is_clean("after reading");
    }
}

#[test]
fn row_30_a_disk_that_is_lost_while_it_is_read_fails_the_vm_and_leaves_nothing() {
    for code in [1167, 55] {
        let rig = rig();
        rig.lab.inject(Fault::DeviceLost { vm: "DC01".into(), disk: 0, after_reads: 1, code }).unwrap();
        let error = rig.back_up().unwrap_err();
        assert!(rig.points().is_empty(), "{error:?}");
        rig.lab.clear_faults().unwrap();
        rig.wait_for_rest("DC01");
        rig.assert_host_is_clean("lost");
        back_up_well(&rig, "found again");
    }
}

#[test]
fn rows_31_and_35_without_a_conversion_the_older_ids_serve_on() {
    let rig = rig();
    // No older reference point: the point is good, and the next run is full.
    rig.lab.inject(Fault::NoLogonRight).unwrap();
    let report = back_up_well(&rig, "no right, first run");
    assert_eq!(warnings(&report, WarningCode::ConversionFailed), 1, "{:?}", report.warnings);
    assert!(rig.lab.reference_points("DC01").unwrap().is_empty());
    rig.lab.clear_faults().unwrap();
    rig.guest_write(2, 1);
    let report = back_up_well(&rig, "right again");
    assert!(full_reasons(&report)[0].is_some());
    let old_id = report.description.disks[0].rct_id.clone();
    assert!(old_id.is_some());

    // With one: twice in a row, then the ranges since the oldest instant cover everything.
    rig.lab.inject(Fault::NoLogonRight).unwrap();
    for seed in [3, 4] {
        rig.guest_write(seed, 1);
        let report = back_up_well(&rig, "no right");
        assert_eq!(full_reasons(&report), [None]);
        assert_eq!(warnings(&report, WarningCode::ConversionFailed), 1);
        assert_eq!(report.description.disks[0].rct_id, old_id, "an older instant, never a newer one");
    }
    rig.lab.clear_faults().unwrap();
    rig.guest_write(5, 1);
    let report = back_up_well(&rig, "right for good");
    assert_eq!((full_reasons(&report), report.warnings.len()), (vec![None], 0), "{:?}", report.warnings);
    assert_ne!(report.description.disks[0].rct_id, old_id);
}

#[test]
fn row_33_a_conversion_that_fails_after_its_work_is_found_or_undone() {
    for checkpoint_stays in [false, true] {
        let label = format!("checkpoint stays: {checkpoint_stays}");
        let rig = rig();
        back_up_well(&rig, &label);
        rig.guest_write(2, 1);
        rig.lab.inject(Fault::ConvertFailsAfterPoint { checkpoint_stays }).unwrap();
        back_up_well(&rig, &label);
        rig.lab.clear_faults().unwrap();
        rig.guest_write(3, 1);
        back_up_well(&rig, &label);
    }
}

#[test]
fn row_34_a_reference_point_without_ids_makes_the_next_run_full() {
    let rig = rig();
    rig.lab.inject(Fault::ReferencePointIds { missing: 9 }).unwrap();
    let report = back_up_well(&rig, "no ids");
    assert_eq!(warnings(&report, WarningCode::TrackingLost), 1);
    rig.lab.clear_faults().unwrap();
    rig.guest_write(2, 1);
    assert!(full_reasons(&back_up_well(&rig, "ids"))[0].is_some());
}

#[test]
fn row_36_merges_that_are_not_done_warn_then_warn_harder_then_stop_the_backups() {
    let mut rig = rig();
    rig.options.merge_wait = Duration::from_secs(5);
    rig.lab.inject(Fault::MergeBlocked { vm: "DC01".into() }).unwrap();
    for run in 0_u64.. {
        rig.guest_write(2 + run, 1);
        let state = rig.guest_disks("DC01");
        match rig.back_up() {
            Ok(report) => {
                rig.assert_restores("unmerged", &report.point, &state);
                let pending: Vec<_> =
                    report.warnings.iter().filter(|one| one.code == WarningCode::MergePending).collect();
                assert_eq!(pending.len(), 1, "run {run}: {:?}", report.warnings);
                assert_eq!(pending[0].text.contains("runs before"), run >= 1, "{}", pending[0].text);
            }
            Err(error) => {
                assert!(matches!(error, BackupError::MergeStuck { .. }), "run {run}: {error:?}");
                // Ten checkpoints that were not merged, and none more.
                assert_eq!(run, 10, "{error}");
                break;
            }
        }
        assert!(run < 20, "no end");
    }
    rig.lab.clear_faults().unwrap();
    for _ in 0..100 {
        rig.lab.clock().sleep(Duration::from_secs(60));
        if rig.lab.is_at_rest("DC01").unwrap() {
            break;
        }
    }
    back_up_well(&rig, "merged at last");
}

#[test]
fn row_36_a_merge_that_ends_by_itself_is_seen_by_the_next_run() {
    let mut rig = rig();
    rig.options.merge_wait = Duration::from_secs(5);
    rig.lab.inject(Fault::MergeBlockedForRuns { vm: "DC01".into(), runs: 2 }).unwrap();
    let pending = |rig: &Rig| warnings(&rig.back_up().unwrap(), WarningCode::MergePending);
    assert_eq!(pending(&rig), 1);
    rig.guest_write(2, 1);
    pending(&rig);
    rig.lab.clock().sleep(Duration::from_secs(600));
    rig.guest_write(3, 1);
    let report = back_up_well(&rig, "merged");
    assert!(report.host.merge.is_some());
}

#[test]
fn row_37_merging_that_is_switched_off_is_switched_on_and_said() {
    let rig = rig();
    let mut setting = only(&rig, "SELECT * FROM Msvm_DiskMergeSettingData");
    setting.properties.insert("EnabledState".into(), CimValue::Uint16(0));
    let text = CimValue::String(hyperv::cim_xml::to_text(&setting).unwrap());
    call_as_another(&rig, "Msvm_VirtualSystemManagementService", "ModifyDiskMergeSettings", &[("SettingData", text)]);
    let report = back_up_well(&rig, "merging was off");
    assert_eq!(warnings(&report, WarningCode::MergePending), 0, "{:?}", report.warnings);
    assert!(report.warnings.iter().any(|one| one.text.contains("switched on again")), "{:?}", report.warnings);
    assert_eq!(only(&rig, "SELECT * FROM Msvm_DiskMergeSettingData").get("EnabledState").as_u64(), Some(1));
    assert!(back_up_well(&rig, "and after").warnings.is_empty());
}

#[test]
fn row_52_a_clock_that_disagrees_with_the_storage_is_refused_before_the_checkpoint() {
    let mut rig = rig();
    let right = rig.repo.clone();
    let off_by = |seconds: i64| {
        let storage = Storage { bucket: rig.bucket.clone(), kind: StorageKind::ObjectStore };
        let clock = Arc::new(move || {
            let (now, off) = (SystemTime::now(), Duration::from_secs(seconds.unsigned_abs()));
            if seconds < 0 { now - off } else { now + off }
        });
        let client = ClientOptions { clock, ..ClientOptions::new("tester", "testhost") };
        right.open_beside(&storage, client).unwrap()
    };
    for (seconds, is_refused) in [(600, true), (-600, true), (120, false)] {
        rig.repo = off_by(seconds);
        let phases = Mutex::new(Vec::new());
        let result = rig.back_up_and(|phase| phases.lock().unwrap().push(phase.to_owned()));
        let was_frozen = phases.lock().unwrap().iter().any(|phase| phase == "creating the checkpoint");
        assert_eq!((result.is_err(), was_frozen), (is_refused, !is_refused), "{seconds} s off: {result:?}");
        if let Err(error) = result {
            let text = with_causes(&error);
            assert!(text.contains("clock of this machine is"), "{seconds} s off: {text}");
        }
    }
}

/// An error with its causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(|error| format!("{error}: ")).collect()
}

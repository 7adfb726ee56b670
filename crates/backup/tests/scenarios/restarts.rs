//! 9: job objects that are gone before they are read, outputs that stay null, and a management service that restarts in
//! the middle of each call.

use hyperv_sim::{CountingSeam, DiskSource, Fault, JobStyle, LabOptions, ReferenceOutputs, RestartPhase};

use crate::support::Rig;

const DISK: [DiskSource; 1] = [DiskSource::Empty { size_bytes: 8 << 20 }];

/// A full and two incrementals are right.
fn assert_backs_up(rig: &Rig, label: &str) {
    for round in 0..3 {
        rig.guest_write(round, 1);
        let state = rig.guest_disks("DC01");
        let label = format!("{label}, round {round}");
        let report = rig.back_up().unwrap_or_else(|error| panic!("{label}: {error:?}"));
        assert!(report.warnings.is_empty(), "{label}: {:?}", report.warnings);
        rig.assert_restores(&label, &report.point, &state);
        rig.assert_host_is_clean(&label);
    }
}

#[test]
fn scenario_09_job_objects_expire_before_they_are_read() {
    let options = LabOptions { job_retention_ms: 0, ..LabOptions::default() };
    assert_backs_up(&Rig::with(options, &DISK), "expired jobs");
}

#[test]
fn scenario_09_reference_outputs_are_null() {
    for jobs in [JobStyle::ByJob, JobStyle::Synchronous] {
        for reference_outputs in [ReferenceOutputs::Filled, ReferenceOutputs::Null2025] {
            let options = LabOptions { jobs, reference_outputs, ..LabOptions::default() };
            assert_backs_up(&Rig::with(options, &DISK), &format!("{jobs:?}, {reference_outputs:?}"));
        }
    }
}

#[test]
fn scenario_09_the_management_service_restarts_in_the_middle_of_a_sample_of_calls() {
    // Prime, so that the sample meets every place of a pattern of calls. Files are slow where CI runs the Windows build.
    restart_in_the_middle_of_every(if cfg!(windows) { 61 } else { 13 });
}

#[test]
#[ignore = "long: every call"]
fn scenario_09_the_management_service_restarts_in_the_middle_of_each_call() {
    restart_in_the_middle_of_every(1);
}

fn restart_in_the_middle_of_every(nth: usize) {
    // How many calls reach the host in a run.
    let rig = Rig::with(LabOptions::default(), &DISK);
    let (seam, counting) = CountingSeam::wrap(rig.lab.seam(), |_| {});
    rig.back_up_through(seam).unwrap();
    let calls = counting.calls();

    let (mut survived, mut failed) = (0, 0);
    for (offset, phase) in (0..).zip([RestartPhase::Before, RestartPhase::During, RestartPhase::After]) {
        let rig = Rig::with(LabOptions::default(), &DISK);
        for after_calls in (offset..calls).step_by(nth) {
            let label = format!("{phase:?} call {after_calls}");
            rig.guest_write(after_calls, 1);
            let state = rig.guest_disks("DC01");
            let points = rig.points().len();
            rig.lab.inject(Fault::ServiceRestarts { method: None, after_calls, phase, down_ms: 3_000 }).unwrap();
            match rig.back_up() {
                Ok(report) => {
                    survived += 1;
                    rig.assert_restores(&label, &report.point, &state);
                }
                // A restart that takes the checkpoint's job along may fail the run, cleanly.
                Err(_) => {
                    failed += 1;
                    assert!(rig.points().len() <= points + 1, "{label}");
                }
            }
            rig.lab.clear_faults().unwrap();
            let state = rig.guest_disks("DC01");
            let report = rig.back_up().unwrap_or_else(|error| panic!("after {label}: {error:?}"));
            rig.assert_restores(&format!("after {label}"), &report.point, &state);
            rig.wait_for_rest("DC01");
            rig.assert_host_is_clean(&format!("after {label}"));
        }
    }
    println!("{calls} calls, three phases: {survived} runs went on, {failed} failed and were made up for");
    assert!(survived > failed, "most restarts are waited out: {survived} survived, {failed} failed");
}

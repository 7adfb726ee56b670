//! Jobs, guests and the service misbehave, as the failure matrix has seen them.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyperv::{CheckpointRequest, Consistency, Host};
use hyperv_sim::{CountingSeam, Fault, LabOptions, ReferenceOutputs, RestartPhase, VssBehaviour};
use support::{Client, MIB, host_with, strings};

const UNAVAILABLE: u32 = 0x8007_06BA;
const CALL_FAILED: u32 = 0x8007_06BE;

#[test]
fn the_service_restarts_in_the_middle_of_a_call() {
    for (phase, made) in [(RestartPhase::Before, 0), (RestartPhase::During, 0), (RestartPhase::After, 1)] {
        let (_dir, lab) = host_with(LabOptions::default(), &[MIB]);
        let client = Client::new(&lab);
        let vm = client.vm_path("web");
        let service = client.service("Msvm_VirtualSystemSnapshotService");
        let method = Some("CreateSnapshot".into());
        lab.inject(Fault::ServiceRestarts { method, after_calls: 0, phase, down_ms: 3000 }).unwrap();
        let parameters = [
            ("AffectedSystem", hyperv::seam::CimValue::Reference(vm.clone())),
            ("SnapshotSettings", hyperv::seam::CimValue::String(support::snapshot_settings(2))),
            ("SnapshotType", hyperv::seam::CimValue::Uint16(32768)),
        ];
        assert_eq!(client.call(&service, "CreateSnapshot", &parameters).unwrap_err().hresult, CALL_FAILED, "{phase:?}");
        assert_eq!(client.get(&vm).unwrap_err().hresult, UNAVAILABLE, "{phase:?}");
        client.seam.clock.sleep(Duration::from_secs(4));
        assert!(client.query("SELECT * FROM Msvm_ConcreteJob").is_empty(), "{phase:?}: jobs are gone");
        client.seam.clock.sleep(Duration::from_secs(60));
        assert_eq!(lab.checkpoints("web").unwrap().1.len(), made, "{phase:?}");
    }
}

/// The product's own backup of one VM, with a restart in each of its calls, one after another.
#[test]
fn a_backup_survives_a_restart_in_any_call_or_says_that_it_failed() {
    let run = |lab: &std::sync::Arc<hyperv_sim::LabHost>, host: &Host| -> Result<(), String> {
        let vm = host.find_vm("web").map_err(|e| e.to_string())?;
        let request = CheckpointRequest::new(Consistency::Crash, "e3:a:r:1");
        let checkpoint = host.create_recovery_checkpoint(&vm, &request).map_err(|e| e.to_string())?;
        let conversion = host.convert_to_reference_point(&checkpoint).map_err(|e| e.to_string())?;
        assert_eq!(conversion.ids.len(), 1);
        assert_eq!(lab.reference_points("web").unwrap().len(), 1);
        Ok(())
    };
    let (next, passed, calls) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let restart_in_each = || {
        loop {
            let after_calls = next.fetch_add(1, Ordering::SeqCst);
            if after_calls > calls.load(Ordering::SeqCst) {
                return;
            }
            let (_dir, lab) = host_with(LabOptions::default(), &[MIB]);
            let (seam, counting) = CountingSeam::wrap(lab.seam(), |_| {});
            let phase = RestartPhase::During;
            lab.inject(Fault::ServiceRestarts { method: None, after_calls, phase, down_ms: 2000 }).unwrap();
            match run(&lab, &Host::new(seam)) {
                Ok(()) => drop(passed.fetch_add(1, Ordering::SeqCst)),
                Err(text) => assert!(!text.is_empty()),
            }
            if counting.calls() <= after_calls {
                calls.fetch_min(after_calls, Ordering::SeqCst);
            }
            // Whatever happened, the host is not left in a state in which the next attempt fails.
            lab.clear_faults().unwrap();
            let client = Client::new(&lab);
            client.seam.clock.sleep(Duration::from_secs(60));
            for leftover in lab.checkpoints("web").unwrap().1 {
                lab.delete_checkpoint("web", &leftover).unwrap();
            }
            client.settle(&lab, "web");
            assert_eq!(lab.disk_chain("web", 0).unwrap().len(), 1, "restart in call {after_calls}");
        }
    };
    // Most of the time is waiting for the disk.
    std::thread::scope(|scope| (0..6).for_each(|_| drop(scope.spawn(restart_in_each))));
    assert!(passed.into_inner() > 5);
}

#[test]
fn jobs_that_are_gone_before_anybody_reads_them() {
    for reference_outputs in [ReferenceOutputs::Filled, ReferenceOutputs::Null2025] {
        let options = LabOptions { job_retention_ms: 0, reference_outputs, ..LabOptions::default() };
        let (_dir, lab) = host_with(options, &[MIB]);
        let host = Host::new(lab.seam());
        let vm = host.find_vm("web").unwrap();
        let request = CheckpointRequest::new(Consistency::Crash, "e3:a:r:1");
        let checkpoint = host.create_recovery_checkpoint(&vm, &request).unwrap_or_else(|e| panic!("{e}"));
        let conversion = host.convert_to_reference_point(&checkpoint).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(conversion.ids.len(), 1, "{reference_outputs:?}");
    }
}

#[test]
fn merges_are_blocked_for_some_runs() {
    let (_dir, lab) = host_with(LabOptions::default(), &[MIB]);
    let client = Client::new(&lab);
    lab.inject(Fault::MergeBlockedForRuns { vm: "web".into(), runs: 3 }).unwrap();
    for (run, depth) in [(1, 2), (2, 3), (3, 1)] {
        client.convert(&client.checkpoint("web"));
        client.seam.clock.sleep(Duration::from_secs(300));
        assert!(lab.is_at_rest("web").is_ok());
        client.seam.clock.sleep(Duration::from_secs(300));
        assert_eq!(lab.disk_chain("web", 0).unwrap().len(), depth, "run {run}");
    }
}

#[test]
fn guests_that_retry_hang_or_take_their_time() {
    let (_dir, lab) = host_with(LabOptions::default(), &[MIB]);
    let client = Client::new(&lab);
    let attempt = || {
        let (_, job) = client.wait(&client.start_checkpoint("web", 1));
        let text = job.get("ErrorDescription").as_str().unwrap_or_default().to_owned();
        for checkpoint in lab.checkpoints("web").unwrap().1 {
            lab.delete_checkpoint("web", &checkpoint).unwrap();
        }
        client.settle(&lab, "web");
        (job.get("JobState").as_u64().unwrap(), text)
    };
    lab.set_vss("web", VssBehaviour::WriterRetryable { failures: 2 }).unwrap();
    let states: Vec<_> = (0..3).map(|_| attempt()).collect();
    assert!(states[0].1.contains("0x800423F3") && states[1].0 == 10 && states[2].0 == 7, "{states:?}");
    lab.set_vss("web", VssBehaviour::NoDaemon).unwrap();
    assert_eq!(attempt().0, 10);
    lab.set_vss("web", VssBehaviour::Slow { ms: 90_000 }).unwrap();
    let start = client.seam.clock.monotonic();
    assert_eq!(attempt().0, 7);
    assert!(client.seam.clock.monotonic() - start >= Duration::from_secs(90));

    for (behaviour, status) in [(VssBehaviour::Hangs, 2), (VssBehaviour::NotResponding, 13)] {
        lab.set_vss("web", behaviour).unwrap();
        let component = client.only("SELECT * FROM Msvm_VssComponent");
        assert_eq!(component.get("OperationalStatus").as_array().unwrap()[0].as_u64(), Some(status));
        let output = client.start_checkpoint("web", 1);
        client.seam.clock.sleep(Duration::from_secs(3600));
        let hyperv::seam::CimValue::Reference(job) = output.get("Job") else { panic!() };
        assert_eq!(client.get(job).unwrap().get("JobState").as_u64(), Some(4), "{behaviour:?}");
        let cancel = [("RequestedState", hyperv::seam::CimValue::Uint16(4))];
        assert_eq!(client.call(job, "RequestStateChange", &cancel).unwrap().return_value, 0);
    }
}

#[test]
fn a_checkpoint_that_was_called_off_appears_all_the_same() {
    for (appears_after_ms, state) in [(None, 7), (Some(60_000), 8)] {
        let (_dir, lab) = host_with(LabOptions::default(), &[MIB]);
        let client = Client::new(&lab);
        lab.inject(Fault::CancelTooLate { appears_after_ms }).unwrap();
        let output = client.start_checkpoint("web", 2);
        let hyperv::seam::CimValue::Reference(job) = output.get("Job") else { panic!() };
        let cancel = [("RequestedState", hyperv::seam::CimValue::Uint16(4))];
        assert_eq!(client.call(job, "RequestStateChange", &cancel).unwrap().return_value, 0);
        client.seam.clock.sleep(Duration::from_secs(10));
        assert_eq!(client.get(job).unwrap().get("JobState").as_u64(), Some(state), "{appears_after_ms:?}");
        client.seam.clock.sleep(Duration::from_secs(60));
        assert_eq!(lab.checkpoints("web").unwrap().1.len(), 1, "{appears_after_ms:?}");
    }
}

#[test]
fn what_is_left_behind_blocks_the_next_checkpoint() {
    let (_dir, lab) = host_with(LabOptions::default(), &[MIB]);
    let client = Client::new(&lab);
    lab.inject(Fault::CreateLeavesFile { vm: "web".into() }).unwrap();
    let failing = || {
        let (_, job) = client.wait(&client.start_checkpoint("web", 2));
        assert_eq!(job.get("JobState").as_u64(), Some(10));
        job.get("ErrorDescription").as_str().unwrap().to_owned()
    };
    assert!(failing().contains("0x800423FB"));
    let stray = lab.stray_files().unwrap();
    assert!(stray.len() == 1 && stray[0].ends_with("-AutoRecovery.avhdx"), "{stray:?}");
    assert!(failing().contains("0x80070050"));
    std::fs::remove_file(lab.host_file(&stray[0]).unwrap()).unwrap();
    client.destroy(&client.checkpoint("web"));
}

#[test]
fn conversions_that_end_halfway() {
    let (_dir, lab) = host_with(LabOptions::default(), &[MIB, MIB]);
    let client = Client::new(&lab);
    for (fault, points, checkpoints) in [
        (Fault::NoLogonRight, 0, 1),
        (Fault::ConvertFailsAfterPoint { checkpoint_stays: true }, 1, 1),
        (Fault::ConvertFailsAfterPoint { checkpoint_stays: false }, 1, 0),
    ] {
        let checkpoint = client.checkpoint("web");
        lab.inject(fault.clone()).unwrap();
        let (_, job) = client.wait(&client.on_checkpoint("ConvertToReferencePoint", &checkpoint).unwrap());
        assert_eq!(job.get("JobState").as_u64(), Some(10), "{fault:?}");
        lab.clear_faults().unwrap();
        let found = client.query("SELECT * FROM Msvm_VirtualSystemReferencePoint");
        assert_eq!((found.len(), lab.checkpoints("web").unwrap().1.len()), (points, checkpoints), "{fault:?}");
        for point in &found {
            client.destroy_reference_point(point);
        }
        for checkpoint in lab.checkpoints("web").unwrap().1 {
            lab.delete_checkpoint("web", &checkpoint).unwrap();
        }
        client.settle(&lab, "web");
    }
    for (missing, ids) in [(1, 1), (9, 0)] {
        lab.inject(Fault::ReferencePointIds { missing }).unwrap();
        let point = client.convert(&client.checkpoint("web"));
        client.settle(&lab, "web");
        assert_eq!(strings(&point, "ResilientChangeTrackingIdentifiers").len(), ids);
        assert_eq!(strings(&point, "VirtualDiskIdentifiers").len(), 2);
        lab.clear_faults().unwrap();
    }
}

#[test]
fn every_failure_of_the_matrix_strikes_and_passes() {
    let (_dir, lab) = host_with(LabOptions::default(), &[MIB]);
    let client = Client::new(&lab);
    for (row, fault) in Fault::checkpoint_failures() {
        lab.inject(fault.clone()).unwrap();
        let output = client.start_checkpoint("web", 1);
        match output.return_value {
            4096 => assert_eq!(client.wait(&output).1.get("JobState").as_u64(), Some(10), "row {row}: {fault:?}"),
            code => assert!(code >= 32768, "row {row}: {code}"),
        }
        lab.clear_faults().unwrap();
    }
    client.destroy(&client.checkpoint("web"));
    client.settle(&lab, "web");
    assert_eq!(lab.stray_files().unwrap(), Vec::<String>::new());
}

//! The real client on the simulated host, written from one specification by two hands.

mod support;

use std::sync::Arc;
use std::time::Duration;

use hyperv::{
    ChainBefore, Checkpoint, CheckpointRequest, Consistency, Conversion, Host, MergeOutcome, TrackingSupport, Vm,
    VmState,
};
use hyperv_sim::{
    DiskSource, GuestFamily, GuestWrites, JobStyle, LabHost, LabOptions, ReferenceOutputs, Spread, VmOptions,
    fingerprint,
};
use support::MIB;

fn lab_with(options: LabOptions) -> (tempfile::TempDir, Arc<LabHost>, Host) {
    let dir = tempfile::tempdir().unwrap();
    let lab = LabHost::create_with(dir.path().join("lab"), options).unwrap();
    let disks = [DiskSource::Empty { size_bytes: 24 * MIB }, DiskSource::Empty { size_bytes: 8 * MIB + 512 }];
    lab.add_vm("it's \"web\"", &disks, VmOptions { tpm: true, ..VmOptions::default() }).unwrap();
    let disks = [DiskSource::Empty { size_bytes: MIB }];
    let old = VmOptions { generation: 1, version: "5.0".into(), running: false, ..VmOptions::default() };
    lab.add_vm("old", &disks, old).unwrap();
    lab.add_vm("win", &disks, VmOptions { guest: GuestFamily::Windows, ..VmOptions::default() }).unwrap();
    let host = Host::new(lab.seam());
    (dir, lab, host)
}

fn web(host: &Host) -> Vm {
    host.find_vm("it's \"web\"").unwrap_or_else(|e| panic!("{e}"))
}

fn checkpoint(host: &Host, consistency: Consistency, tag: &str) -> Checkpoint {
    let request = CheckpointRequest::new(consistency, tag);
    host.create_recovery_checkpoint(&web(host), &request).unwrap_or_else(|e| panic!("{e}: {:?}", e.error))
}

fn convert(host: &Host, checkpoint: &Checkpoint) -> Conversion {
    let conversion = host.convert_to_reference_point(checkpoint).unwrap_or_else(|e| panic!("{e}: {:?}", e.error));
    assert!(conversion.defects.is_empty(), "{:?}", conversion.defects);
    let before: Vec<ChainBefore> = checkpoint.disks.iter().map(ChainBefore::from).collect();
    let outcome = host.wait_for_merge(&checkpoint.vm_id, &before, Duration::from_secs(120)).unwrap();
    assert_eq!(outcome, MergeOutcome::Merged);
    conversion
}

#[test]
fn inventory() {
    let (_dir, lab, host) = lab_with(LabOptions::default());
    let facts = host.probe().unwrap();
    assert_eq!((facts.name.as_str(), facts.reference_points), ("LABHOST", true));
    let vms = host.list_vms().unwrap();
    assert_eq!(vms.len(), 3);
    let vm = web(&host);
    assert_eq!(host.vm(&vm.id).unwrap().as_ref(), Some(&vm));
    assert_eq!((&vm.state, vm.generation, vm.configuration_version.as_str()), (&VmState::Running, 2, "10.0"));
    assert!(vm.unreadable_disks.is_empty() && vm.excluded_disks.is_empty(), "{vm:?}");
    assert_eq!(vm.disks.len(), 2);
    for (index, disk) in vm.disks.iter().enumerate() {
        assert_eq!(disk.slot.to_string(), format!("SCSI 0:{index}"));
        assert_eq!(disk.chain, lab.disk_chain("it's \"web\"", index).unwrap());
        assert_eq!(disk.tracking, TrackingSupport::Supported, "{disk:?}");
    }
    let old = host.find_vm("old").unwrap();
    assert_eq!((old.state, old.generation, old.disks[0].slot.to_string().as_str()), (VmState::Off, 1, "IDE 0:0"));
    assert_ne!(old.disks[0].tracking, TrackingSupport::Supported);
    let windows = host.find_vm("win").unwrap();
    assert_ne!(format!("{:?}", windows.guest), format!("{:?}", vm.guest));
}

#[test]
fn two_backups() {
    for (jobs, reference_outputs) in [
        (JobStyle::ByJob, ReferenceOutputs::Filled),
        (JobStyle::Synchronous, ReferenceOutputs::Filled),
        (JobStyle::Synchronous, ReferenceOutputs::Null2025),
    ] {
        let case = format!("{jobs:?}, {reference_outputs:?}");
        let (_dir, lab, host) = lab_with(LabOptions { jobs, reference_outputs, ..LabOptions::default() });
        let name = "it's \"web\"";
        let mut old: Option<Conversion> = None;
        for seed in 0..3 {
            let writes = GuestWrites { seed, mib: 3, spread: Spread::Scattered };
            lab.guest_write_only(name, writes).unwrap();
            let frozen = [lab.disk_fingerprint(name, 0).unwrap(), lab.disk_fingerprint(name, 1).unwrap()];
            let tag = format!("e3:agent:run{seed}:1");
            let checkpoint = checkpoint(&host, Consistency::Application, &tag);
            lab.guest_write_only(name, GuestWrites { seed: seed + 100, ..writes }).unwrap();
            assert_eq!(host.list_checkpoints(&checkpoint.vm_id).unwrap()[0].name, tag, "{case}");

            for (index, disk) in checkpoint.disks.iter().enumerate() {
                let reader = host.open_frozen(disk).unwrap();
                assert_eq!(reader.allocation_problem(), None, "{case}");
                assert_eq!(fingerprint(&reader).unwrap(), frozen[index], "{case}: disk {index}");
                let state = reader.tracking_state().unwrap();
                assert!(state.enabled && !state.newer_changes, "{case}: {state:?}");
                if let Some(old) = &old {
                    let id = old.rct_id(disk).unwrap();
                    let ranges = reader.changed_ranges(id).unwrap();
                    let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
                    assert!(bytes > 0, "{case}");
                }
                assert!(host.chain_facts(disk).unwrap()[0].rct.is_some(), "{case}");
            }
            let files = host.open_config_files(&checkpoint).unwrap();
            assert_eq!(files.len(), 3, "{case}");
            drop(files);
            let definition = host.capture_checkpoint_definition(&web(&host), &checkpoint).unwrap();
            assert!(definition.key_protector.is_some(), "{case}");
            assert_eq!((definition.summary.processors, definition.disks.len()), (Some(2), 2), "{case}");

            let conversion = convert(&host, &checkpoint);
            assert_eq!(conversion.ids.len(), 2, "{case}");
            if let Some(old) = old.replace(conversion) {
                host.destroy_reference_point(&old.reference_point.path).unwrap();
                host.destroy_reference_point(&old.reference_point.path).unwrap();
            }
            assert_eq!(host.list_reference_points(&checkpoint.vm_id).unwrap().len(), 1, "{case}");
            assert_eq!(lab.stray_files().unwrap(), Vec::<String>::new(), "{case}");
        }
    }
}

#[test]
fn what_fails_leaves_nothing_behind() {
    use hyperv_sim::{Fault, VssBehaviour};
    let (_dir, lab, host) = lab_with(LabOptions::default());
    let name = "it's \"web\"";
    lab.set_vss(name, VssBehaviour::WriterFails).unwrap();
    let request = CheckpointRequest::new(Consistency::Application, "e3:a:r:1");
    let error = host.create_recovery_checkpoint(&web(&host), &request).unwrap_err();
    assert!(error.left_behind.is_empty(), "{error:?}");
    let taken = checkpoint(&host, Consistency::Crash, "e3:a:r:2");

    let held = host.open_frozen(&taken.disks[0]).unwrap();
    let error = host.convert_to_reference_point(&taken).unwrap_err();
    assert!(error.left_behind.is_empty(), "{error:?}");
    drop(held);
    host.destroy_checkpoint(&taken.path).unwrap();
    host.destroy_checkpoint(&taken.path).unwrap();
    let before: Vec<ChainBefore> = taken.disks.iter().map(ChainBefore::from).collect();
    lab.inject(Fault::MergeBlocked { vm: name.into() }).unwrap();
    let outcome = host.wait_for_merge(&taken.vm_id, &before, Duration::from_secs(120)).unwrap();
    assert!(matches!(outcome, MergeOutcome::Blocked { merging_is_off: false, .. }), "{outcome:?}");
    lab.clear_faults().unwrap();
    let outcome = host.wait_for_merge(&taken.vm_id, &before, Duration::from_secs(120)).unwrap();
    assert_eq!(outcome, MergeOutcome::Merged);
    assert_eq!(lab.stray_files().unwrap(), Vec::<String>::new());
}

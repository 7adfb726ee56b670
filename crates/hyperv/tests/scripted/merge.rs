//! Watching merges.

use std::sync::Arc;
use std::time::Duration;

use hyperv::seam::{CimType, CimValue};
use hyperv::{ChainBefore, ErrorKind, MergeOutcome};

use crate::script::*;

const SYSTEM: &str = "SELECT * FROM Msvm_ComputerSystem WHERE Name = '0A1B2C3D-0000-1111-2222-333344445555'";
const MERGE_SETTINGS: &str =
    "SELECT * FROM Msvm_DiskMergeSettingData WHERE InstanceID = 'Microsoft:0A1B2C3D-0000-1111-2222-333344445555'";
const MEDIA: &str = "Msvm_StorageAllocationSettingData";
const LEAF: &str = r"C:\VMs\web\d_1.avhdx";
const BASE: &str = r"C:\VMs\web\d.vhdx";

/// A VM whose disk is the leaf for some looks, then the base.
fn merging(looks_at_leaf: usize, status_shown: bool) -> Arc<Script> {
    let script = one_vm();
    let mut system = computer(VM, "web");
    if status_shown {
        let status = vec![CimValue::Uint16(2), CimValue::Uint16(32772)];
        system.properties.insert("OperationalStatus".into(), CimValue::Array(CimType::Uint16, status));
    }
    script.forget_query(SYSTEM);
    script.on_query(SYSTEM, vec![system]);
    script.on_query(ALL_SETTINGS_OF_VM, vec![settings(VM, "System:Realized", "web")]);
    let active = path_of("Msvm_VirtualSystemSettingData", VM);
    let (at_leaf, devices) = scsi_disk(VM, 0, LEAF);
    let (at_base, _) = scsi_disk(VM, 0, BASE);
    script.on_query(component_query(&active, Some("Msvm_ResourceAllocationSettingData")), devices);
    for _ in 0..looks_at_leaf {
        script.on_query(component_query(&active, Some(MEDIA)), vec![at_leaf.clone()]);
    }
    script.on_query(component_query(&active, Some(MEDIA)), vec![at_base]);
    script.on_disk(LEAF, Ok(disk_data(DISK, Some(BASE))));
    script
}

fn wait(script: &Arc<Script>, limit_s: u64) -> Result<MergeOutcome, hyperv::Error> {
    let before = [ChainBefore { virtual_disk_id: DISK.parse().unwrap(), depth: 1 }];
    script.host().wait_for_merge(&VM.parse().unwrap(), &before, Duration::from_secs(limit_s))
}

#[test]
fn the_chain_is_the_proof() {
    for status_shown in [false, true] {
        let script = merging(4, status_shown);
        assert_eq!(wait(&script, 60).unwrap(), MergeOutcome::Merged);
        assert_eq!(script.elapsed(), Duration::from_secs(4));
    }
}

#[test]
fn a_long_merge_and_a_blocked_one_differ() {
    let script = merging(100, true);
    match wait(&script, 60).unwrap() {
        MergeOutcome::StillMerging { disks } => assert_eq!(disks[0].chain, [LEAF, BASE]),
        other => panic!("{other:?}"),
    }
    for (enabled, off) in [(Some(0), true), (Some(1), false), (None, false)] {
        let script = merging(100, false);
        let setting = enabled
            .map(|state| instance("Msvm_DiskMergeSettingData", "m", vec![("EnabledState", CimValue::Uint16(state))]));
        script.on_query(MERGE_SETTINGS, setting.into_iter().collect());
        match wait(&script, 60).unwrap() {
            MergeOutcome::Blocked { disks, merging_is_off } => {
                assert_eq!((disks.len(), disks[0].depth_before, merging_is_off), (1, 1, off));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_leaf_that_vanishes_between_questions_is_looked_at_again() {
    let script = merging(1, true);
    script.on_disk(LEAF, Err(32779));
    assert_eq!(wait(&script, 60).unwrap(), MergeOutcome::Merged);
    let script = merging(100, true);
    script.on_disk(LEAF, Err(32779));
    assert_eq!(wait(&script, 60).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_vm_that_is_gone_is_an_error() {
    let script = merging(1, true);
    script.forget_query(SYSTEM);
    script.on_query(SYSTEM, vec![]);
    let error = wait(&script, 60).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains(VM), "{error}");
}

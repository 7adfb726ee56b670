//! 4: the host does not merge for some runs.

use backup::WarningCode;
use hyperv_sim::{DiskSource, Fault};
use std::time::Duration;

use crate::support::{Rig, full_reasons, quick_lab};

#[test]
fn scenario_04_merges_blocked_for_three_runs() {
    let mut rig = Rig::with(quick_lab(), &[DiskSource::Empty { size_bytes: 16 << 20 }]);
    // Long enough for a merge that takes place, and no longer.
    rig.options.merge_wait = Duration::from_secs(1);
    rig.guest_write(1, 4);
    rig.back_up().unwrap();
    rig.wait_for_rest("DC01");
    rig.lab.inject(Fault::MergeBlocked { vm: "DC01".into() }).unwrap();

    let mut kept = Vec::new();
    for run in 1..=3 {
        let label = format!("blocked run {run}");
        rig.guest_write(10 + run, 1);
        let state = rig.guest_disks("DC01");
        let report = rig.back_up().unwrap_or_else(|error| panic!("{label}: {error:?}"));
        let codes: Vec<WarningCode> = report.warnings.iter().map(|warning| warning.code).collect();
        assert!(codes.contains(&WarningCode::MergePending), "{label}: {codes:?}");
        rig.assert_restores(&label, &report.point, &state);
        // Every blocked run leaves one file more: this is what an operator must see before the volume is full.
        let chain = rig.lab.disk_chain("DC01", 0).unwrap();
        assert_eq!(chain.len() as u64, 1 + run, "{label}: {chain:?}");
        kept.push((label, report.point, state));
    }

    rig.lab.clear_faults().unwrap();
    rig.wait_for_rest("DC01");
    rig.assert_host_is_clean("when merging goes on");
    rig.guest_write(20, 1);
    let state = rig.guest_disks("DC01");
    let report = rig.back_up().unwrap();
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    // The chain is another than the one the last point was read from.
    assert_eq!(full_reasons(&report), [Some(backup::FullReason::ChainChanged)]);
    rig.assert_restores("when merging goes on", &report.point, &state);
    rig.wait_for_rest("DC01");
    for (label, point, state) in &kept {
        rig.assert_restores(label, point, state);
    }
    rig.assert_host_is_clean("at the end");
}

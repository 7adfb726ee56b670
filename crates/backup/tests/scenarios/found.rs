//! What the simulation found, each as a story of its own.

use hyperv_sim::DiskSource;

use crate::support::{Rig, full_reasons, quick_lab};

#[test]
fn a_disk_that_ends_within_a_payload_block_is_read_and_audited_to_its_end() {
    // The last payload block of 2 MiB holds 512 KiB of the disk.
    let rig = Rig::with(quick_lab(), &[DiskSource::Empty { size_bytes: 5 << 19 }]);
    rig.lab.guest_write_at("DC01", 0, (5 << 19) - 512, &[7; 512]).unwrap();
    rig.back_up().unwrap();
    rig.wait_for_rest("DC01");
    for (run, at) in [(1, 0), (2, (5 << 19) - 1024), (3, 1 << 20)] {
        rig.lab.guest_write_at("DC01", 0, at, &[run; 512]).unwrap();
        let state = rig.guest_disks("DC01");
        let report = rig.back_up().unwrap_or_else(|error| panic!("run {run}: {error:?}"));
        assert_eq!(full_reasons(&report), [None], "run {run}");
        rig.assert_restores(&format!("run {run}"), &report.point, &state);
        rig.wait_for_rest("DC01");
    }
}

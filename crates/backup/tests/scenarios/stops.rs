//! 11: the service is stopped in each phase of a run.

use backup::{BackupError, Cancel};
use hyperv_sim::{CallPhase, CountingSeam, DiskSource};

use crate::support::{Rig, quick_lab};

#[test]
fn scenario_11_a_stop_in_each_phase_leaves_nothing_behind() {
    let disks = [8 << 20, 4 << 20].map(|size_bytes| DiskSource::Empty { size_bytes });
    let rig = Rig::with(quick_lab(), &disks);
    rig.guest_write(1, 4);
    let (seam, counting) = CountingSeam::wrap(rig.lab.seam(), |_| {});
    rig.back_up_through(seam).unwrap();
    let calls = counting.calls();

    let (mut cancelled, mut completed) = (0, 0);
    // Full and incremental in turns, since a run that was stopped leaves the base as it was.
    // Every call, but a sample where files are slow: CI runs the Windows build so.
    for at in (0..calls).step_by(if cfg!(windows) { 17 } else { 1 }) {
        let label = format!("stopped at call {at} of {calls}");
        rig.guest_write(100 + at, 1);
        let state = rig.guest_disks("DC01");
        let points = rig.points().len();
        let cancel = Cancel::default();
        let stop = cancel.clone();
        let (seam, _) = CountingSeam::wrap(rig.lab.seam(), move |call| {
            if call.number == at && call.phase == CallPhase::Before {
                stop.cancel();
            }
        });
        match rig.back_up_as("DC01", seam, &cancel) {
            Ok(report) => {
                // Behind the last moment to turn back: the point is whole.
                completed += 1;
                rig.assert_restores(&label, &report.point, &state);
            }
            Err(BackupError::Cancelled) => {
                cancelled += 1;
                assert_eq!(rig.points().len(), points, "{label}");
            }
            Err(error) => panic!("{label}: {error:?}"),
        }
        rig.wait_for_rest("DC01");
        rig.assert_host_is_clean(&label);
    }
    println!("{calls} calls: {cancelled} runs stopped, {completed} completed");
    assert!(cancelled > completed && completed > 0, "{cancelled} stopped, {completed} completed");
    let state = rig.guest_disks("DC01");
    let report = rig.back_up().unwrap();
    rig.assert_restores("at the end", &report.point, &state);
}

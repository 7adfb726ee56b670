//! 6: what others made on the VM is not ours to touch.

use backup::WarningCode;
use hyperv_sim::{DiskSource, LabOptions};

use crate::support::{Rig, quick_lab};

#[test]
fn scenario_06_foreign_checkpoints_and_reference_points_are_left_alone() {
    for allowed in [true, false] {
        let options = LabOptions { allow_second_recovery_checkpoint: allowed, ..quick_lab() };
        let rig = Rig::with(options, &[DiskSource::Empty { size_bytes: 16 << 20 }]);
        let label = format!("a second recovery checkpoint is {}", if allowed { "accepted" } else { "refused" });
        rig.guest_write(1, 4);

        // Another program, with a journal and a repository of its own, has a reference point here.
        let other = Rig::without_vm(quick_lab());
        let other = Rig { lab: rig.lab.clone(), ..other };
        other.back_up().unwrap();
        let foreign_points = rig.lab.reference_points("DC01").unwrap();
        assert_eq!(foreign_points.len(), 1, "{label}");

        let mine = rig.back_up().unwrap();
        let points = rig.lab.reference_points("DC01").unwrap();
        assert!(points.len() == 2 && points.contains(&foreign_points[0]), "{label}: {points:?}");

        rig.wait_for_rest("DC01");
        let foreign = rig.lab.create_foreign_recovery_checkpoint("DC01").unwrap();
        rig.guest_write(2, 1);
        let state = rig.guest_disks("DC01");
        let result = rig.back_up();
        let (_, left) = rig.lab.checkpoints("DC01").unwrap();
        assert_eq!(left, [foreign.as_str()], "{label}");
        assert!(rig.lab.reference_points("DC01").unwrap().contains(&foreign_points[0]), "{label}");
        match result {
            Ok(report) => {
                assert!(allowed, "{label}");
                assert!(report.warnings.iter().any(|one| one.code == WarningCode::Foreign), "{:?}", report.warnings);
                rig.assert_restores(&label, &report.point, &state);
            }
            Err(error) => {
                assert!(!allowed, "{label}: {error:?}");
                assert_eq!(rig.points().len(), 1, "{label}");
            }
        }

        // Gone by whoever made it: we go on.
        rig.lab.delete_checkpoint("DC01", &foreign).unwrap();
        rig.wait_for_rest("DC01");
        rig.guest_write(3, 1);
        let state = rig.guest_disks("DC01");
        let report = rig.back_up().unwrap_or_else(|error| panic!("{label}: {error:?}"));
        assert_ne!(report.point.id, mine.point.id);
        rig.assert_restores(&label, &report.point, &state);
        rig.wait_for_rest("DC01");
        let points = rig.lab.reference_points("DC01").unwrap();
        assert!(points.len() == 2 && points.contains(&foreign_points[0]), "{label}: {points:?}");
    }
}

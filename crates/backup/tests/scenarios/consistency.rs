//! 5: the guest cannot be frozen, in each way, under each policy.

use backup::{Consistency, ConsistencyPolicy, WarningCode};
use hyperv_sim::{DiskSource, LabOptions, VssBehaviour};

use crate::support::Rig;

#[test]
fn scenario_05_level_1_fails_in_each_way_under_each_policy() {
    use ConsistencyPolicy::{Crash, PreferApplication, RequireApplication};
    // What the guest does, and whether asking it is worth the wait.
    let guests = [
        (VssBehaviour::Works, true),
        (VssBehaviour::Slow { ms: 90_000 }, true),
        (VssBehaviour::WriterFails, true),
        (VssBehaviour::WriterRetryable { failures: 9 }, true),
        (VssBehaviour::NoDaemon, true),
        (VssBehaviour::Hangs, true),
        (VssBehaviour::NotResponding, false),
        (VssBehaviour::Disabled, false),
    ];
    for (guest, worth_asking) in guests {
        for policy in [PreferApplication, RequireApplication, Crash] {
            let label = format!("{guest:?}, {policy:?}");
            let mut rig = Rig::with(LabOptions::default(), &[DiskSource::Empty { size_bytes: 16 << 20 }]);
            rig.options.consistency = policy;
            rig.guest_write(1, 4);
            rig.lab.set_vss("DC01", guest).unwrap();
            let state = rig.guest_disks("DC01");
            let clock = rig.lab.clock();
            let begun = clock.monotonic();
            let result = rig.back_up();
            let minutes = (clock.monotonic() - begun).as_secs() / 60;
            rig.wait_for_rest("DC01");
            rig.assert_host_is_clean(&label);

            let freezes = matches!(guest, VssBehaviour::Works | VssBehaviour::Slow { .. });
            if policy == RequireApplication && !freezes {
                let error = result.expect_err(&label);
                assert!(rig.points().is_empty(), "{label}: {error}");
                continue;
            }
            let report = result.unwrap_or_else(|error| panic!("{label}: {error:?}"));
            rig.assert_restores(&label, &report.point, &state);
            let reached = if policy == Crash || !freezes { Consistency::Crash } else { Consistency::Application };
            assert_eq!(report.description.consistency, reached, "{label}");
            let lowered = report.warnings.iter().filter(|one| one.code == WarningCode::ConsistencyLowered).count();
            let is_lowered = policy == PreferApplication && !freezes;
            assert_eq!(lowered, usize::from(is_lowered), "{label}: {:?}", report.warnings);
            assert_eq!(report.description.consistency_reason.is_some(), is_lowered, "{label}");
            // A guest that says beforehand that it cannot is not waited for.
            if policy == Crash || !worth_asking {
                assert!(minutes < 5, "{label}: {minutes} min");
            }
        }
    }
}

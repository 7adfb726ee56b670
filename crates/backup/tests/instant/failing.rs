//! A method of the host that fails, at every stage.

use backup::instant::settle_instant;
use hyperv::Host;
use hyperv_sim::Fault;

use crate::desk;

/// A refusal, and a call that does not get through.
fn faults(method: &str) -> [Fault; 2] {
    [
        Fault::MethodReturns { method: method.into(), return_value: 5 },
        Fault::MethodUnreachable { method: method.into(), hresult: 0x8004_1001 },
    ]
}

#[test]
fn while_it_is_made_nothing_is_left() {
    let desk = desk();
    for method in [
        "New",
        "Connect",
        "SetAttributes",
        "Online",
        "AddAccessPath",
        "CreateVirtualHardDisk",
        "ImportSystemDefinition",
        "RealizePlannedSystem",
    ] {
        for fault in faults(method) {
            let label = format!("{fault:?}");
            desk.rig.lab.inject(fault).unwrap();
            let result = desk.begin(desk.rig.lab.seam());
            desk.rig.lab.clear_faults().unwrap();
            assert!(result.is_err(), "{label}");
            desk.assert_nothing_is_left(&label);
        }
    }
}

#[test]
fn while_it_is_discarded_the_rest_is_taken_back_later() {
    let desk = desk();
    for method in ["RequestStateChange", "DestroySystem", "RemoveAccessPath", "Offline", "Disconnect", "Remove"] {
        for fault in faults(method) {
            let label = format!("{fault:?}");
            desk.begin(desk.rig.lab.seam()).unwrap();
            desk.write(3);
            desk.rig.lab.inject(fault).unwrap();
            let result = desk.discard(desk.rig.lab.seam());
            desk.rig.lab.clear_faults().unwrap();
            assert!(result.is_err(), "{label}");
            let done = settle_instant(&Host::new(desk.rig.lab.seam()), &desk.state()).unwrap();
            assert!(!done.is_empty(), "{label}");
            desk.assert_nothing_is_left(&label);
        }
    }
}

#[test]
fn while_it_is_finished_the_same_session_goes_on() {
    let desk = desk();
    for method in [
        "SetParentVirtualHardDisk",
        "RemoveAccessPath",
        "Offline",
        "Disconnect",
        "Remove",
        "MergeVirtualHardDisk",
        "ModifyResourceSettings",
        "RequestStateChange",
    ] {
        for fault in faults(method) {
            let label = format!("{fault:?}");
            let expected = desk.ready_to_finish(5);
            desk.with_session(desk.rig.lab.seam(), |mut vm| {
                desk.rig.lab.inject(fault).unwrap();
                let result = vm.finish(true);
                desk.rig.lab.clear_faults().unwrap();
                assert!(result.is_err(), "{label}");
                assert_eq!(vm.needs_volume(), method == "SetParentVirtualHardDisk", "{label}");
                vm.finish(true).unwrap_or_else(|error| panic!("{label}: {error:?}"));
                // It is over: there is nothing to finish or to take back.
                vm.finish(true).unwrap_or_else(|error| panic!("{label}, though it is over: {error:?}"));
                assert_eq!(vm.discard().unwrap(), [""; 0], "{label}");
            });
            desk.assert_finished(&label, &expected);
            desk.remove_finished();
            desk.assert_nothing_is_left(&label);
        }
    }
}

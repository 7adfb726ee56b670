//! A session that is taken up again.

use hyperv::{Host, VmState};

use crate::target::TestTarget;
use crate::{NAME, TARGET, desk};

/// The keeper was killed, and the host has paused the VM when it needed the volume.
#[test]
fn a_vm_that_was_paused_goes_on() {
    let mut desk = desk();
    desk.begin(desk.rig.lab.seam()).unwrap();
    let expected = desk.write(1);
    let address = desk.target.address;
    desk.target.stop();
    desk.rig.lab.pause_vm(NAME).unwrap();
    desk.target = TestTarget::named(TARGET, address, desk.streams.clone());
    desk.go_on(desk.rig.lab.seam()).unwrap();
    assert_eq!(desk.vm().state, VmState::Running);
    desk.assert_guest_sees("resumed", &expected);
    desk.discard(desk.rig.lab.seam()).unwrap();
    desk.assert_nothing_is_left("discarded");
}

#[test]
fn after_a_restart_of_the_host_the_vm_is_started_again() {
    let desk = desk();
    desk.begin(desk.rig.lab.seam()).unwrap();
    let expected = desk.write(1);
    desk.rig.lab.restart_host().unwrap();
    assert_eq!(desk.vm().state, VmState::Off);
    desk.go_on(desk.rig.lab.seam()).unwrap();
    assert_eq!(desk.vm().state, VmState::Running);
    desk.assert_guest_sees("started again", &expected);
    let expected = desk.write(2);

    // Once more, and before the volume is back.
    desk.rig.lab.restart_host().unwrap();
    let host = Host::new(desk.rig.lab.plain_seam());
    assert!(host.start_vm(&desk.vm()).is_err(), "its disks are away");
    desk.go_on(desk.rig.lab.seam()).unwrap();
    desk.copy();
    desk.turn_off();
    desk.finish(desk.rig.lab.seam()).unwrap();
    desk.assert_finished("after two restarts", &expected);
    desk.connect_foreign();
    desk.remove_finished();
    desk.assert_nothing_is_left("after two restarts");
}

#[test]
fn after_a_restart_of_the_host_a_session_is_discarded_without_its_volume() {
    let desk = desk();
    desk.begin(desk.rig.lab.seam()).unwrap();
    desk.rig.lab.restart_host().unwrap();
    desk.discard(desk.rig.lab.seam()).unwrap();
    desk.connect_foreign();
    desk.assert_nothing_is_left("discarded");
    // Nothing of it is in the way of the next.
    desk.begin(desk.rig.lab.seam()).unwrap();
    desk.assert_guest_sees("the next", &desk.frozen);
    desk.discard(desk.rig.lab.seam()).unwrap();
    desk.assert_nothing_is_left("the next");
}

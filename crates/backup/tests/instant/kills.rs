//! The process dies at a call to its host.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use backup::instant::settle_instant;
use backup::janitor::{Leftover, Verdict, inspect};
use backup::{BackupError, HostSide, RestoreRequest};
use hyperv::Host;
use hyperv::seam::Seam;
use hyperv_sim::{CallPhase, CountingSeam, SeamCall};

use crate::support::{assert_same, read_all};
use crate::{Desk, NAME, desk};

/// What ends a process that dies.
struct Death;

/// Does `work` on a host at whose first call that is the one the process dies; whether it did.
fn dying(
    desk: &Desk,
    label: &str,
    is_it: impl Fn(SeamCall<'_>) -> bool + Send + Sync + 'static,
    work: impl FnOnce(Seam) -> Result<(), BackupError>,
) -> bool {
    let (seam, _) = CountingSeam::wrap(desk.rig.lab.seam(), move |call| {
        if is_it(call) {
            resume_unwind(Box::new(Death));
        }
    });
    match catch_unwind(AssertUnwindSafe(|| work(seam))) {
        Ok(result) => {
            result.unwrap_or_else(|error| panic!("{label}: {error:?}"));
            false
        }
        Err(cause) => {
            assert!(cause.is::<Death>(), "{label}: another panic");
            true
        }
    }
}

/// For a call with that number, on that side of it.
fn at(number: u64, phase: CallPhase) -> impl Fn(SeamCall<'_>) -> bool + Send + Sync + 'static {
    move |call| (call.number, call.phase) == (number, phase)
}

/// Every call that `step` leaves, from both sides, until the work lives; how often it died.
fn at_calls(step: u64, mut dies: impl FnMut(&str, u64, CallPhase) -> bool) -> u64 {
    let mut deaths = 0;
    for (first, phase) in [(0, CallPhase::Before), (step / 2, CallPhase::After)] {
        let mut number = first;
        while dies(&format!("{phase:?} call {number}"), number, phase) {
            deaths += 1;
            number += step;
        }
        println!("{phase:?}: {number} calls");
    }
    deaths
}

#[test]
fn killed_at_a_sample_of_calls_until_it_runs_it_is_taken_back_or_goes_on() {
    killed_until_it_runs(11);
}

#[test]
#[ignore = "long: every call, before and after"]
fn killed_at_every_call_until_it_runs_it_is_taken_back_or_goes_on() {
    killed_until_it_runs(1);
}

/// At every call that `step` leaves.
fn killed_until_it_runs(step: u64) {
    let desk = desk();
    let (mut taken_back, mut discarded, mut finished) = (0, 0, 0);
    at_calls(step, |label, number, phase| {
        let died = dying(&desk, label, at(number, phase), |seam| desk.begin(seam));
        let (host, state) = (Host::new(desk.rig.lab.seam()), desk.state());
        let side = HostSide { host: &host, state: &state, idle_wait: Duration::from_secs(1) };
        let found = inspect(side, None).unwrap();
        let has_vm = found.iter().find_map(|finding| match finding.what {
            Leftover::InstantSession { has_vm, .. } => {
                assert_eq!(finding.verdict, if has_vm { Verdict::News } else { Verdict::Ours }, "{label}");
                Some(has_vm)
            }
            _ => None,
        });
        settle_instant(&host, &state).unwrap_or_else(|error| panic!("{label}: {error:?}"));
        if has_vm != Some(true) {
            taken_back += 1;
        } else if finished < discarded {
            // The next process only puts it on its files.
            desk.copy();
            desk.turn_off();
            desk.finish(desk.rig.lab.seam()).unwrap_or_else(|error| panic!("{label}: {error:?}"));
            desk.assert_finished(label, &desk.frozen);
            desk.remove_finished();
            finished += 1;
        } else {
            // The VM is there, on the bases of its own disks; the next process goes on with it.
            desk.go_on(desk.rig.lab.seam()).unwrap_or_else(|error| panic!("{label}: {error:?}"));
            desk.assert_guest_sees(label, &desk.frozen);
            desk.discard(desk.rig.lab.seam()).unwrap_or_else(|error| panic!("{label}: {error:?}"));
            discarded += 1;
        }
        desk.assert_nothing_is_left(label);
        died
    });
    println!("{taken_back} taken back, {discarded} went on, {finished} were finished");
    assert!(taken_back > 100 / step && discarded > 1 && finished > 1, "{taken_back} {discarded} {finished}");
}

/// Between the note that the VM is there and the removal of what only its import needed.
#[test]
fn killed_behind_the_making_a_finish_removes_what_served_the_import() {
    let desk = desk();
    let is_removal = |call: SeamCall<'_>| call.what == "remove_file" && call.phase == CallPhase::Before;
    assert!(dying(&desk, "made", is_removal, |seam| desk.begin(seam)));
    let scratch = format!(r"C:\VMs\{NAME}");
    assert!(desk.files_in(&scratch).iter().any(|file| file.contains("e3-import")), "the kill came too late");
    desk.copy();
    desk.finish(desk.rig.lab.seam()).unwrap();
    desk.assert_finished("made", &desk.frozen);
    desk.remove_finished();
    desk.assert_nothing_is_left("made");
}

#[test]
fn killed_at_a_sample_of_calls_of_the_finish_no_write_of_the_guest_is_lost() {
    killed_in_the_finish(13, RestoreRequest::default());
}

#[test]
fn a_vm_that_was_built_from_its_settings_is_finished_as_one_that_was_imported() {
    killed_in_the_finish(41, RestoreRequest { from_settings: true, ..RestoreRequest::default() });
}

#[test]
#[ignore = "long: every call, before and after"]
fn killed_at_every_call_of_the_finish_no_write_of_the_guest_is_lost() {
    for from_settings in [false, true] {
        killed_in_the_finish(1, RestoreRequest { from_settings, ..RestoreRequest::default() });
    }
}

/// At every call that `step` leaves.
fn killed_in_the_finish(step: u64, request: RestoreRequest) {
    let desk = Desk { request, ..desk() };
    let mut opened = 0;
    let deaths = at_calls(step, |label, number, phase| {
        let expected = desk.ready_to_finish(100 + number);
        let died = dying(&desk, label, at(number, phase), |seam| desk.finish(seam));
        for (nth, expected) in expected.iter().enumerate() {
            // Whoever opens the disk now sees what the guest wrote, or nothing at all.
            if let Ok(disk) = desk.rig.lab.open_guest_disk(NAME, nth) {
                assert_same(label, expected, &read_all(&disk));
                opened += 1;
            }
        }
        desk.finish(desk.rig.lab.seam()).unwrap_or_else(|error| panic!("{label}: {error:?}"));
        desk.assert_finished(label, &expected);
        assert_eq!(desk.vm().state, hyperv::VmState::Running, "{label}");
        desk.remove_finished();
        desk.assert_nothing_is_left(label);
        died
    });
    println!("{deaths} deaths, disks were opened {opened} times");
    assert!(deaths > 100 / step && opened > deaths, "{deaths} {opened}");
}

/// The jobs of the host outlive the process that asked for them.
#[test]
fn killed_while_the_host_works_a_finish_waits_for_its_job() {
    let desk = desk();
    for method in ["SetParentVirtualHardDisk", "MergeVirtualHardDisk", "ModifyResourceSettings"] {
        let expected = desk.ready_to_finish(7);
        let what = format!("call {method}");
        let is_it = move |call: SeamCall<'_>| call.what == what && call.phase == CallPhase::After;
        assert!(dying(&desk, method, is_it, |seam| desk.finish(seam)), "{method} was not called");
        desk.finish(desk.rig.lab.seam()).unwrap_or_else(|error| panic!("{method}: {error:?}"));
        desk.assert_finished(method, &expected);
        desk.remove_finished();
        desk.assert_nothing_is_left(method);
    }
}

#[test]
fn killed_at_a_sample_of_calls_of_the_discard_the_rest_is_taken_back() {
    killed_in_the_discard(7);
}

#[test]
#[ignore = "long: every call, before and after"]
fn killed_at_every_call_of_the_discard_the_rest_is_taken_back() {
    killed_in_the_discard(1);
}

/// At every call that `step` leaves: nobody has to ask for the discard again.
fn killed_in_the_discard(step: u64) {
    let desk = desk();
    let mut settled = 0;
    let deaths = at_calls(step, |label, number, phase| {
        desk.begin(desk.rig.lab.seam()).unwrap();
        desk.write(number);
        let died = dying(&desk, label, at(number, phase), |seam| desk.discard(seam).map(drop));
        let (host, state) = (Host::new(desk.rig.lab.seam()), desk.state());
        settled += settle_instant(&host, &state).unwrap_or_else(|error| panic!("{label}: {error:?}")).len();
        desk.assert_nothing_is_left(label);
        died
    });
    println!("{deaths} deaths, {settled} deeds");
    assert!(deaths > 40 / step && settled > 1, "{deaths} {settled}");
}

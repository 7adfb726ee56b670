//! What a discard removes, and what it leaves.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use backup::{Cancel, RestoreContext, RestoreRequest, Silent, plan_restore, restore_vm};
use hyperv::Host;
use hyperv_sim::CountingSeam;

use crate::{NAME, desk};

#[test]
fn checkpoints_go_with_the_vm() {
    let desk = desk();
    desk.begin(desk.rig.lab.seam()).unwrap();
    desk.rig.lab.create_user_checkpoint(NAME).unwrap();
    desk.write(1);
    desk.rig.lab.create_user_checkpoint(NAME).unwrap();
    desk.write(2);
    desk.discard(desk.rig.lab.seam()).unwrap();
    desk.assert_nothing_is_left("with checkpoints");
}

#[test]
fn files_of_others_stay_and_are_named() {
    let desk = desk();
    desk.begin(desk.rig.lab.seam()).unwrap();
    let folder = format!(r"C:\VMs\{NAME}\Virtual Hard Disks");
    let notes = desk.rig.lab.host_file(&folder).unwrap().join("notes.avhdx");
    std::fs::write(&notes, "of somebody").unwrap();
    let done = desk.discard(desk.rig.lab.seam()).unwrap();
    assert!(done.iter().any(|text| text.contains(&folder)), "{done:?}");
    assert!(notes.exists());
    std::fs::remove_dir_all(desk.rig.lab.host_file(&format!(r"C:\VMs\{NAME}")).unwrap()).unwrap();
    desk.assert_nothing_is_left("but the notes");
}

/// A session whose VM was removed by hand knows the planned VMs of the day it began, not those of today.
#[test]
fn another_restore_of_the_same_vm_stays() {
    let desk = desk();
    desk.begin(desk.rig.lab.seam()).unwrap();
    desk.turn_off();
    let host = Host::new(desk.rig.lab.plain_seam());
    host.remove_vm(&desk.vm().path).unwrap();
    // The other restore has come as far as its planned VM.
    let (seam, _) = CountingSeam::wrap(desk.rig.lab.seam(), |call| {
        if call.what == "call RealizePlannedSystem" {
            resume_unwind(Box::new(()));
        }
    });
    let (restoring, state, cancel) = (Host::new(seam), desk.state(), Cancel::default());
    let context =
        RestoreContext { host: &restoring, repo: &desk.rig.repo, state: &state, observer: &Silent, cancel: &cancel };
    let request = RestoreRequest { folder: Some(r"C:\Elsewhere".into()), ..RestoreRequest::default() };
    let plan = plan_restore(&context, &desk.point, &request).unwrap();
    catch_unwind(AssertUnwindSafe(|| restore_vm(&context, &plan).map(drop))).unwrap_err();
    assert_eq!(host.list_planned_vms().unwrap().len(), 1);
    desk.discard(desk.rig.lab.seam()).unwrap();
    assert_eq!(host.list_planned_vms().unwrap().len(), 1, "it is the other restore's");
}

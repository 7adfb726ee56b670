//! What would cost a guest its writes, or give it those of another, is refused, and nothing is lost by it.

use std::io;
use std::sync::Arc;

use backup::instant::{InstantStage, InstantVm};
use backup::{BackupError, Cancel, RestoreContext, RestoreRequest, Silent, plan_restore};
use hyperv::seam::{FileFacts, HostFile, HostFiles, HostWrites};
use hyperv::{Host, Severity};
use hyperv_sim::Fault;

use crate::target::TestTarget;
use crate::{Desk, NAME, TARGET, desk};

fn assert_says(error: &BackupError, text: &str) {
    assert!(format!("{error:?}").contains(text), "no {text:?} in {error:?}");
}

/// The child and the copy of a disk.
fn files_of(desk: &Desk, disk: usize) -> (String, String) {
    let files = |vm: InstantVm<'_>| (vm.disks()[disk].child.clone(), vm.disks()[disk].local.clone());
    desk.with_session(desk.rig.lab.plain_seam(), files).unwrap()
}

#[test]
fn another_base_and_a_copy_that_is_not_whole() {
    let mut desk = desk();
    desk.begin(desk.rig.lab.seam()).unwrap();
    desk.turn_off();
    // Somebody serves another point under the same name.
    let (address, mut others) = (desk.target.address, desk.streams.clone());
    others.swap(0, 1);
    desk.target.stop();
    desk.target = TestTarget::named(TARGET, address, others);
    desk.with_session(desk.rig.lab.plain_seam(), |mut vm| {
        assert_says(&vm.attach(&desk.login()).unwrap_err(), "is not the base of disk 0");
        assert_says(&vm.start().unwrap_err(), "is not the base of disk 0");
    });
    desk.target.stop();
    desk.target = TestTarget::named(TARGET, address, desk.streams.clone());

    let local = desk.rig.lab.host_file(&files_of(&desk, 0).1).unwrap();
    let partial = std::path::PathBuf::from(format!("{}.partial", local.display()));
    let whole = &desk.streams[0];
    for (file, bytes, problem) in [
        (&partial, &whole[..], "NotFound"),
        (&local, &desk.streams[1][..], "is not the base of disk 0"),
        (&local, &whole[..whole.len() / 2], "Target"),
        (&local, &whole[..0], "Target"),
    ] {
        std::fs::write(file, bytes).unwrap();
        assert_says(&desk.finish(desk.rig.lab.seam()).unwrap_err(), problem);
        std::fs::remove_file(file).unwrap();
        let stage = desk.with_session(desk.rig.lab.plain_seam(), |vm| (vm.stage(), vm.needs_volume()));
        assert_eq!(stage, Some((InstantStage::Finishing, true)), "{problem}");
    }
    desk.go_on(desk.rig.lab.plain_seam()).unwrap();
    // It runs: it has to be off for that.
    desk.copy();
    let running = desk.finish(desk.rig.lab.seam()).unwrap_err();
    assert!(matches!(running, BackupError::Obstructed { .. }), "{running:?}");
    // It is not backed up meanwhile.
    let refused = desk.rig.back_up_as(NAME, desk.rig.lab.seam(), &Cancel::default()).unwrap_err();
    assert!(
        matches!(&refused, BackupError::NotBackupable { problem, .. } if problem.contains("instant switch")),
        "{refused:?}"
    );
    desk.discard(desk.rig.lab.seam()).unwrap();
    desk.assert_nothing_is_left("discarded");
}

#[test]
fn a_finish_with_a_checkpoint_which_stands_on_the_disks() {
    let desk = desk();
    desk.begin(desk.rig.lab.seam()).unwrap();
    desk.write(1);
    let checkpoint = desk.rig.lab.create_user_checkpoint(NAME).unwrap();
    let expected = desk.write(2);
    desk.copy();
    desk.turn_off();
    desk.with_session(desk.rig.lab.seam(), |mut vm| {
        let error = vm.finish(true).unwrap_err();
        assert_says(&error, "delete it first");
        assert!(vm.needs_volume(), "nothing was begun");
        // Its merge follows when it is deleted; until then the disks are not the session's.
        desk.rig.lab.delete_checkpoint(NAME, &checkpoint).unwrap();
        assert_says(&vm.finish(true).unwrap_err(), "try again later");
        desk.rig.wait_for_rest(NAME);
        vm.finish(true).unwrap();
    });
    desk.assert_finished("without the checkpoint", &expected);
}

/// One that is made while the finish is cut off: the volume is away, and nothing was merged.
#[test]
fn a_finish_that_goes_on_after_a_checkpoint_was_made() {
    let desk = desk();
    desk.ready_to_finish(1);
    desk.with_session(desk.rig.lab.seam(), |mut vm| {
        let (method, return_value) = ("MergeVirtualHardDisk".into(), 32768);
        desk.rig.lab.inject(Fault::MethodReturns { method, return_value }).unwrap();
        vm.finish(true).unwrap_err();
        desk.rig.lab.clear_faults().unwrap();
        assert!(!vm.needs_volume());
        let checkpoint = desk.rig.lab.create_user_checkpoint(NAME).unwrap();
        desk.rig.lab.start_vm(NAME).unwrap();
        let expected = desk.write(2);
        desk.turn_off();
        assert_says(&vm.finish(true).unwrap_err(), "delete it first");
        desk.assert_guest_sees("refused", &expected);
        desk.rig.lab.delete_checkpoint(NAME, &checkpoint).unwrap();
        desk.rig.wait_for_rest(NAME);
        vm.finish(true).unwrap();
        desk.assert_finished("without the checkpoint", &expected);
    });
}

#[test]
fn a_finish_of_disks_that_somebody_exchanged() {
    let desk = desk();
    let expected = desk.ready_to_finish(1);
    let (child, local) = files_of(&desk, 1);
    let host = Host::new(desk.rig.lab.plain_seam());
    let slot = desk.vm().disks[1].instance_id.clone();
    // The copy is what was backed up: with it the VM would lose what its guest wrote.
    host.replace_disk_file(&desk.vm(), &slot, &local).unwrap();
    let error = desk.finish(desk.rig.lab.seam()).unwrap_err();
    assert_says(&error, "is not one of its disks now");
    assert!(desk.rig.lab.host_file(&child).unwrap().exists());
    host.replace_disk_file(&desk.vm(), &slot, &child).unwrap();
    desk.finish(desk.rig.lab.seam()).unwrap();
    desk.assert_finished("as it was", &expected);
}

/// Files of the host of which one cannot be looked at.
struct Blind {
    files: Arc<dyn HostFiles>,
    path: String,
}

impl HostFiles for Blind {
    fn open_read(&self, path: &str) -> io::Result<HostFile> {
        self.files.open_read(path)
    }

    fn facts(&self, path: &str) -> io::Result<FileFacts> {
        if path == self.path { Err(io::ErrorKind::PermissionDenied.into()) } else { self.files.facts(path) }
    }

    fn free_bytes(&self, path: &str) -> io::Result<u64> {
        self.files.free_bytes(path)
    }

    fn writes(&self) -> Option<&dyn HostWrites> {
        self.files.writes()
    }
}

#[test]
fn a_merge_of_a_child_that_cannot_be_seen() {
    let desk = desk();
    let expected = desk.ready_to_finish(1);
    let (path, _) = files_of(&desk, 0);
    let mut seam = desk.rig.lab.seam();
    seam.files = Arc::new(Blind { files: seam.files, path: path.clone() });
    assert_says(&desk.finish(seam).unwrap_err(), "PermissionDenied");
    // Now it is away, though no merge was begun that could have removed it.
    let child = desk.rig.lab.host_file(&path).unwrap();
    let aside = child.with_extension("aside");
    std::fs::rename(&child, &aside).unwrap();
    assert_says(&desk.finish(desk.rig.lab.seam()).unwrap_err(), "NotFound");
    std::fs::rename(&aside, &child).unwrap();
    desk.finish(desk.rig.lab.seam()).unwrap();
    desk.assert_finished("seen again", &expected);
}

/// With the stored id the session's VM is what a restore would replace, and the restored VM what a discard removes.
#[test]
fn a_restore_in_place_of_the_vm_of_a_session() {
    let mut desk = desk();
    let host = Host::new(desk.rig.lab.seam());
    let original = host.find_vm("DC01").unwrap();
    host.turn_off_vm(&original).unwrap();
    host.remove_vm(&original.path).unwrap();
    desk.request = RestoreRequest { keep_id: true, name: Some(NAME.into()), ..RestoreRequest::default() };
    desk.begin(desk.rig.lab.seam()).unwrap();
    assert_eq!(desk.vm().id, original.id);
    let (state, cancel) = (desk.state(), Cancel::default());
    let context =
        RestoreContext { host: &host, repo: &desk.rig.repo, state: &state, observer: &Silent, cancel: &cancel };
    let request = RestoreRequest { keep_id: true, replace: Some(7), ..RestoreRequest::default() };
    let plan = plan_restore(&context, &desk.point, &request).unwrap();
    let blocking: Vec<String> = plan.obstacles_of(Severity::Block).map(|one| one.why.clone()).collect();
    assert!(blocking.iter().any(|why| why.contains("instant switch 5e1f0a2b")), "{blocking:?}");
}

#[test]
fn only_what_a_journal_names_is_kept_from_its_backup() {
    let desk = desk();
    let folder = desk.rig.dir.path().join("state/instant");
    std::fs::create_dir_all(&folder).unwrap();
    let id = Host::new(desk.rig.lab.plain_seam()).find_vm("DC01").unwrap().id.to_string();
    let other = "11111111-2222-3333-4444-555555555555";
    for (text, is_refused) in [
        ("torn".to_owned(), false),
        // Of another version.
        (format!(r#"{{"session":"{SESSION}","made":"{other}","news":1}}"#, SESSION = crate::SESSION), false),
        (format!(r#"{{"session":"{SESSION}","news":1}}"#, SESSION = crate::SESSION), false),
        (format!(r#"{{"session":"{SESSION}","made":"{id}","news":1}}"#, SESSION = crate::SESSION), true),
    ] {
        std::fs::write(folder.join("other.json"), &text).unwrap();
        match (desk.rig.back_up(), is_refused) {
            (Ok(_), false) => {}
            (Err(BackupError::NotBackupable { problem, .. }), true) if problem.contains("instant switch") => {}
            (other, _) => panic!("{text}: {other:?}"),
        }
    }
}

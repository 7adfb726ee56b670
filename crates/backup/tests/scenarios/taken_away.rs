//! The rows of the failure matrix (spec hyperv 11) in which somebody took away what a run relies on: rights, files,
//! parents, the run's own checkpoint, an older reference point.

use std::fs;
use std::path::PathBuf;

use backup::BackupError;
use hyperv::Host;
use hyperv_sim::{DiskSource, Fault, LabOptions};

use crate::support::{Rig, full_reasons};

const MIB: u64 = 1 << 20;
const GOLDEN: &str = r"C:\Golden images";

fn rig(disks: &[DiskSource]) -> Rig {
    let rig = Rig::with(LabOptions::default(), disks);
    rig.lab.guest_write_at("DC01", 0, MIB, b"before").unwrap();
    rig
}

/// A disk of its own, and one whose parent is a golden image.
fn rig_with_golden_image() -> (Rig, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let golden = folder.path().join("golden.raw");
    fs::write(&golden, vec![0x5A; 3 * MIB as usize]).unwrap();
    (rig(&[DiskSource::Empty { size_bytes: 8 * MIB }, DiskSource::ChildOf(golden)]), folder)
}

/// The file at the bottom of the chain of that disk, on the host's path and on ours.
fn bottom_of(rig: &Rig, disk: usize) -> (String, PathBuf) {
    let chain = rig.lab.disk_chain("DC01", disk).unwrap();
    let bottom = chain.last().unwrap().clone();
    let file = rig.lab.host_file(&bottom).unwrap();
    (bottom, file)
}

/// No backup, no point and no checkpoint; the text names all of these.
fn assert_refused(rig: &Rig, label: &str, named: &[&str]) -> BackupError {
    let points = rig.points().len();
    let error = rig.back_up().expect_err(label);
    let text = chain_text(&error);
    for name in named {
        assert!(text.contains(name), "{label}: no {name:?} in: {text}");
    }
    assert_eq!(rig.points().len(), points, "{label}");
    assert!(rig.lab.checkpoints("DC01").unwrap().1.is_empty(), "{label}");
    error
}

/// An error with its causes.
fn chain_text(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn assert_backs_up(rig: &Rig, label: &str) -> backup::VmReport {
    let state = rig.guest_disks("DC01");
    let report = rig.back_up().unwrap_or_else(|error| panic!("{label}: {error:?}"));
    rig.assert_restores(label, &report.point, &state);
    rig.wait_for_rest("DC01");
    report
}

#[test]
fn row_02_without_rights_nobody_says_that_the_host_is_empty() {
    let rig = rig(&[DiskSource::Empty { size_bytes: 8 * MIB }]);
    let host = Host::new(rig.lab.seam());
    let id = host.find_vm("DC01").unwrap().id.to_string();
    rig.lab.inject(Fault::NoRights).unwrap();
    let error = host.probe().expect_err("nothing may be seen").to_string();
    assert!(error.contains("no access"), "{error}");
    // That nothing is seen is no absence, whatever is looked for, and however.
    for error in ["DC01", &*id].map(|selector| host.find_vm(selector).expect_err("nothing may be seen").to_string()) {
        assert!(error.contains("allowed to use it"), "{error}");
    }
    assert!(host.vm(&id.parse().unwrap()).is_err());
    let error = rig.back_up().expect_err("nothing may be seen");
    assert!(chain_text(&error).contains("allowed to use it"), "{error:?}");
    rig.lab.clear_faults().unwrap();
    assert_backs_up(&rig, "rights again");
}

#[test]
fn rows_04_and_05_a_file_that_is_missing_is_named_before_any_checkpoint() {
    for (row, disk) in [(4, 0), (5, 1)] {
        let label = format!("row {row}");
        let (rig, _golden) = rig_with_golden_image();
        let first = assert_backs_up(&rig, &label);
        // The files of a VM that runs cannot be taken away.
        rig.lab.stop_vm("DC01").unwrap();
        let (path, file) = bottom_of(&rig, disk);
        assert_eq!(path.starts_with(GOLDEN), row == 5, "{path}");
        let aside = file.with_extension("aside");
        fs::rename(&file, &aside).unwrap();
        let name = path.rsplit('\\').next().unwrap();
        let error = assert_refused(&rig, &label, &[name]);
        assert!(matches!(error, BackupError::NotBackupable { .. }), "{label}: {error:?}");

        fs::rename(&aside, &file).unwrap();
        let next = assert_backs_up(&rig, &label);
        assert_ne!(next.point.id, first.point.id);
        assert_eq!(full_reasons(&next), [None, None], "{label}: nothing was lost");
    }
}

#[test]
fn row_22_a_checkpoint_that_somebody_deletes_during_the_run_gives_no_point() {
    let rig = rig(&[DiskSource::Empty { size_bytes: 8 * MIB }]);
    assert_backs_up(&rig, "first");
    let before = rig.lab.reference_points("DC01").unwrap();
    rig.lab.guest_write_at("DC01", 0, 2 * MIB, b"later").unwrap();
    let error = rig
        .back_up_and(|phase| {
            if phase == "reading the definition" {
                let ours = rig.lab.checkpoints("DC01").unwrap().1;
                assert_eq!(ours.len(), 1);
                rig.lab.delete_checkpoint("DC01", &ours[0]).unwrap();
            }
        })
        .expect_err("what was frozen is gone");
    assert_eq!(rig.points().len(), 1, "{error:?}");
    rig.wait_for_rest("DC01");
    rig.assert_host_is_clean("checkpoint deleted");
    assert_eq!(rig.lab.reference_points("DC01").unwrap(), before, "the older instant stays the base");
    assert_eq!(full_reasons(&assert_backs_up(&rig, "again")), [None]);
}

#[test]
fn row_23_a_parent_that_is_no_longer_the_same_is_named_and_not_read() {
    let (rig, folder) = rig_with_golden_image();
    assert_backs_up(&rig, "first");
    rig.lab.stop_vm("DC01").unwrap();
    let (path, file) = bottom_of(&rig, 1);
    let parent = fs::read(&file).unwrap();
    // Somebody made the golden image anew under its old name.
    let other = folder.path().join("other.raw");
    fs::write(&other, vec![0xC3; 3 * MIB as usize]).unwrap();
    rig.lab.add_vm("NEW", &[DiskSource::Copy(other)], Default::default()).unwrap();
    let new = rig.lab.host_file(&rig.lab.disk_chain("NEW", 0).unwrap()[0]).unwrap();
    fs::copy(new, &file).unwrap();
    let name = path.rsplit('\\').next().unwrap();
    assert_refused(&rig, "another parent", &[name]);

    fs::write(&file, parent).unwrap();
    assert_backs_up(&rig, "the parent again");
}

#[test]
fn row_38_a_reference_point_that_is_gone_already_is_no_failure() {
    let rig = rig(&[DiskSource::Empty { size_bytes: 8 * MIB }]);
    assert_backs_up(&rig, "first");
    let host = Host::new(rig.lab.seam());
    for point in host.list_reference_points(&host.find_vm("DC01").unwrap().id).unwrap() {
        host.destroy_reference_point(&point.path).unwrap();
    }
    assert!(rig.lab.reference_points("DC01").unwrap().is_empty());
    rig.lab.guest_write_at("DC01", 0, 2 * MIB, b"later").unwrap();
    let report = assert_backs_up(&rig, "its reference point was removed");
    assert!(report.warnings.iter().all(|one| !one.text.contains("destroy")), "{:?}", report.warnings);
    rig.assert_host_is_clean("afterwards");
    rig.lab.guest_write_at("DC01", 0, 3 * MIB, b"last").unwrap();
    assert_eq!(full_reasons(&assert_backs_up(&rig, "after that")), [None]);
}

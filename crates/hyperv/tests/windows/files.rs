//! Plain files.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::windows::fs::{MetadataExt, OpenOptionsExt};

use hyperv::seam::HostFiles;
use hyperv::windows::{WindowsFiles, mark_sparse};

use crate::is_wine;

#[test]
fn a_file_keeps_its_number_and_a_replaced_one_has_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("a"), b"one").unwrap();
    fs::write(path("b"), b"three").unwrap();
    let (a, b) = (WindowsFiles.facts(&path("a")).unwrap(), WindowsFiles.facts(&path("b")).unwrap());
    assert_eq!((a.len_bytes, b.len_bytes), (3, 5));
    assert_ne!(a.file_id, b.file_id);
    fs::rename(path("a"), path("c")).unwrap();
    assert_eq!(WindowsFiles.facts(&path("c")).unwrap().file_id, a.file_id, "renamed");
    fs::rename(path("b"), path("c")).unwrap();
    assert_eq!(WindowsFiles.facts(&path("c")).unwrap().file_id, b.file_id, "replaced");
    assert_eq!(WindowsFiles.facts(&path("a")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn others_may_write_and_delete_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhdx").to_str().unwrap().to_owned();
    fs::write(&path, b"0123456789").unwrap();
    let held = File::options().read(true).write(true).open(&path).unwrap();
    let file = WindowsFiles.open_read(&path).unwrap();
    let mut buf = [0; 4];
    file.read_exact_at(&mut buf, 6).unwrap();
    assert_eq!(&buf, b"6789");
    assert_eq!(file.read_exact_at(&mut buf, 7).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    drop(held);
    fs::remove_file(&path).unwrap();
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"0123");
}

#[test]
fn the_leaf_of_a_running_vm_is_a_sharing_violation_whose_facts_are_still_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("leaf.avhdx").to_str().unwrap().to_owned();
    fs::write(&path, b"leaf").unwrap();
    let _vm = File::options().read(true).write(true).share_mode(0).open(&path).unwrap();
    let error = WindowsFiles.open_read(&path).err().expect("the file is not shared");
    assert_eq!(error.raw_os_error(), Some(32));
    assert_eq!(WindowsFiles.facts(&path).unwrap().len_bytes, 4);
}

#[test]
fn free_space_is_told_for_files_that_are_not_there_yet() {
    let dir = tempfile::tempdir().unwrap();
    let here = WindowsFiles.free_bytes(dir.path().to_str().unwrap()).unwrap();
    let there = WindowsFiles.free_bytes(dir.path().join(r"new\disk.vhdx").to_str().unwrap()).unwrap();
    assert!(here > 1 << 20, "{here}");
    // Others write to the volume meanwhile.
    assert!(here.abs_diff(there) < 16 << 30, "{here} {there}");
}

#[test]
fn a_sparse_file_reads_as_zeroes_where_nothing_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img").to_str().unwrap().to_owned();
    let file = File::create(&path).unwrap();
    mark_sparse(&file).unwrap();
    file.set_len(1 << 20).unwrap();
    drop(file);
    let mut buf = [1; 4096];
    WindowsFiles.open_read(&path).unwrap().read_exact_at(&mut buf, (1 << 20) - 4096).unwrap();
    assert_eq!(buf, [0; 4096]);
    const SPARSE: u32 = 0x200;
    if is_wine() {
        println!("SKIPPED a_sparse_file's attribute: Wine keeps none");
    } else {
        assert_ne!(fs::metadata(&path).unwrap().file_attributes() & SPARSE, 0);
    }
}

//! `virtdisk.dll`: on Windows, as an administrator, disks of ours read through the system's driver; under Wine the
//! errors.

use std::path::Path;

use hyperv::seam::{VirtDisk, VirtDiskError};
use hyperv::windows::VirtDiskDll;
use vhdx::{CreateOptions, OpenOptions, VirtualDisk, WritableVhdx, create, open_disk};

use crate::is_wine;

/// What Wine answers to any `OpenVirtualDisk`.
const ERROR_INVALID_PARAMETER: u32 = 87;

const MIB: u64 = 1 << 20;

/// A disk of 64 MiB with something in it.
fn make_disk(path: &Path) {
    create(path, &CreateOptions::dynamic(64 * MIB)).unwrap();
    let mut disk = WritableVhdx::open(path, &OpenOptions::default()).unwrap();
    for (offset, byte) in [(0, 1u8), (33 * MIB + 512, 2), (64 * MIB - 4096, 3)] {
        disk.write_all_at(&[byte; 4096], offset).unwrap();
    }
    disk.close().unwrap();
}

#[test]
fn the_driver_reads_a_disk_as_we_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhdx");
    make_disk(&path);
    let name = path.to_str().unwrap();
    let opened = VirtDiskDll::new().open_read_only(name);
    if is_wine() {
        let expected =
            VirtDiskError { operation: "OpenVirtualDisk", path: name.to_owned(), code: ERROR_INVALID_PARAMETER };
        assert_eq!(opened.err(), Some(expected));
        println!("SKIPPED the_driver_reads_a_disk_as_we_do: Wine opens no virtual disks");
        return;
    }
    let disk = opened.unwrap();
    let ours = open_disk(&path, &OpenOptions::default()).unwrap();
    let info = disk.info().unwrap();
    assert_eq!(info.size_bytes, 64 * MIB);
    assert_eq!(info.logical_sector_bytes, ours.geometry().logical_sector_bytes);
    assert!(!disk.tracking_state().unwrap().enabled);
    let (mut by_driver, mut by_us) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    for offset in (0..64 * MIB).step_by(MIB as usize) {
        disk.read(&mut by_driver, offset).unwrap();
        ours.read_exact_at(&mut by_us, offset).unwrap();
        assert!(by_driver == by_us, "the MiB at {offset}");
    }
    assert!(disk.read(&mut by_driver, 64 * MIB - 4096).is_err(), "a read past the end");
    drop(disk);

    // Nothing holds the file any more: a child can be made on it, and be read.
    let child = dir.path().join("child.vhdx").to_str().unwrap().to_owned();
    VirtDiskDll::new().create_child(&child, name).unwrap();
    let disk = VirtDiskDll::new().open_read_only(&child).unwrap();
    disk.read(&mut by_driver[..4096], 0).unwrap();
    assert_eq!(by_driver[..4096], [1; 4096]);
    drop(disk);
    assert!(VirtDiskDll::new().detach(&child).is_err(), "the drop has detached it");
    std::fs::remove_file(&child).unwrap();
}

#[test]
fn errors_name_the_call_and_the_file_with_the_systems_code() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("missing.vhdx").to_str().unwrap().to_owned();
    // ERROR_FILE_NOT_FOUND. Wine does not come so far; it says ERROR_CALL_NOT_IMPLEMENTED to the parameters' version 1.
    let (code, code_of_version_1) = if is_wine() { (ERROR_INVALID_PARAMETER, 120) } else { (2, 2) };
    let expected = |code| VirtDiskError { operation: "OpenVirtualDisk", path: name.clone(), code };
    let virt_disk = VirtDiskDll::new();
    assert_eq!(virt_disk.open_read_only(&name).err(), Some(expected(code)));
    assert_eq!(virt_disk.detach(&name), Err(expected(code_of_version_1)));
    assert_eq!(virt_disk.open_set_snapshot(&name, vhdx::Guid::random()).err(), Some(expected(code)));
}

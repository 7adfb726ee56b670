//! What QEMU says of the files.

mod support;

use std::path::Path;
use std::process::Command;

use hyperv_sim::{DiskSource, GuestWrites, LabHost, Spread, VmOptions};
use support::{Client, MIB};

fn qemu_img(test: &str) -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED {test}: qemu-img is not installed");
    }
    found
}

fn run(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    assert!(output.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn merged_disks_pass_qemus_check_and_read_the_same() {
    if !qemu_img("merged_disks_pass_qemus_check_and_read_the_same") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("source.raw");
    let content: Vec<u8> = (0..5 * MIB + 512).map(|at| if at / 4096 % 3 == 0 { (at % 251) as u8 } else { 0 }).collect();
    std::fs::write(&raw, &content).unwrap();
    let (vhd, other) = (dir.path().join("source.vhd"), dir.path().join("source.vhdx"));
    run(&["convert", "-f", "raw", "-O", "vpc", "-o", "force_size", path(&raw), path(&vhd)]);
    run(&["convert", "-f", "raw", "-O", "vhdx", path(&raw), path(&other)]);

    let lab = LabHost::create(dir.path().join("lab")).unwrap();
    let sources = [raw, vhd, other].map(DiskSource::Copy);
    lab.add_vm("web", &sources, VmOptions::default()).unwrap();
    for disk in 0..3 {
        let opened = lab.open_guest_disk("web", disk).unwrap();
        let mut copied = vec![0; content.len()];
        vhdx::VirtualDisk::read_exact_at(&opened, &mut copied, 0).unwrap();
        assert!(copied == content, "disk {disk} as imported");
    }

    let client = Client::new(&lab);
    let hashes: Vec<_> = (0..3)
        .map(|seed| {
            let checkpoint = client.checkpoint("web");
            let hashes = lab.guest_write("web", GuestWrites { seed, mib: 4, spread: Spread::Scattered }).unwrap();
            client.convert(&checkpoint);
            client.settle(&lab, "web");
            hashes
        })
        .collect();
    for (disk, hash) in hashes[2].iter().enumerate() {
        let chain = lab.disk_chain("web", disk).unwrap();
        assert_eq!(chain.len(), 1);
        let file = lab.host_file(&chain[0]).unwrap();
        run(&["check", "-f", "vhdx", path(&file)]);
        let back = dir.path().join(format!("back{disk}.raw"));
        run(&["convert", "-f", "vhdx", "-O", "raw", path(&file), path(&back)]);
        let digest = <sha2::Sha256 as sha2::Digest>::digest(std::fs::read(&back).unwrap());
        assert_eq!(digest[..], hash[..], "disk {disk} as QEMU reads it");
    }
}

//! I12: memory follows what was written, not the size of the disk. Alone in its process: it reads the process' own peak.
#![cfg(target_os = "linux")]

mod support;

use std::sync::Arc;

use nbd::Device;
use random::SplitMix;
use serve::folder::DiskFolder;
use serve::overlay::OverlayOptions;
use support::base::MemoryBase;
use support::device::{create, device};

fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

#[test]
fn scattered_writes_to_a_huge_disk_take_little_memory() {
    let place = tempfile::tempdir().unwrap();
    let folder = Arc::new(DiskFolder::open_or_create(place.path()).unwrap());
    let size: u64 = 64 << 40;
    let base = Arc::new(MemoryBase::new(size, 4 << 20));
    let device = device(base.clone(), Some(create(folder, &base, OverlayOptions::default())));
    let before = peak_bytes();
    let mut random = SplitMix::new(1);
    for _ in 0..(64 << 20) / 4096 {
        device.write_at(&[7; 4096], random.below(size / 4096) * 4096).unwrap();
    }
    let grown = peak_bytes() - before;
    println!("64 MiB of scattered writes: {} KiB of memory", grown >> 10);
    assert!(grown < 16 << 20, "{grown} bytes");
}

//! Disks whose size must not cost anything.

mod support;

use std::time::{Duration, Instant};

use hyperv_sim::{CountingSeam, GuestWrites, LabOptions, Spread};
use support::{Client, MIB, changes, host_with};

#[test]
fn cost_follows_the_data() {
    let start = Instant::now();
    let (_dir, lab) = host_with(LabOptions::default(), &[256 << 30, 1 << 40]);
    let client = Client::new(&lab);
    let empty = lab.disk_fingerprint("web", 1).unwrap();
    lab.guest_write_at("web", 0, 255 << 30, &vec![7; 64 * MIB as usize]).unwrap();
    lab.guest_write_only("web", GuestWrites { seed: 1, mib: 8, spread: Spread::Clustered }).unwrap();
    let point = client.convert(&client.checkpoint("web"));
    client.settle(&lab, "web");
    lab.guest_write_at("web", 1, (1 << 40) - 4096, &[9; 4096]).unwrap();
    let before = [lab.disk_fingerprint("web", 0).unwrap(), lab.disk_fingerprint("web", 1).unwrap()];
    assert_ne!(before[1], empty);
    let checkpoint = client.checkpoint("web");
    let ids = support::strings(&point, "ResilientChangeTrackingIdentifiers");
    let disk = client.open(&client.files(&checkpoint)[1]);
    let reported = changes(disk.as_ref(), &ids[1], 100).unwrap();
    assert_eq!(reported.len(), 1);
    assert_eq!((reported[0].offset_bytes, reported[0].len_bytes), ((1 << 40) - (64 << 10), 64 << 10));
    drop(disk);
    client.convert(&checkpoint);
    client.settle(&lab, "web");
    assert_eq!([lab.disk_fingerprint("web", 0).unwrap(), lab.disk_fingerprint("web", 1).unwrap()], before);
    let taken = start.elapsed();
    assert!(taken < Duration::from_secs(60), "{taken:?}");
}

#[test]
fn every_call_is_numbered_from_both_sides() {
    use std::sync::{Arc, Mutex};
    let (_dir, lab) = host_with(LabOptions::default(), &[4 * MIB]);
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = seen.clone();
    let (seam, counting) = CountingSeam::wrap(lab.plain_seam(), move |call| {
        log.lock().unwrap().push(format!("{} {:?} {}", call.number, call.phase, call.what));
    });
    let client = Client { seam };
    let checkpoint = client.checkpoint("web");
    let file = client.files(&checkpoint)[0].clone();
    let calls = counting.calls();
    seen.lock().unwrap().clear();
    let disk = client.open(&file);
    disk.read(&mut [0; 4096], 0).unwrap();
    client.seam.files.open_read(&file).unwrap().len_bytes().unwrap();
    let expected: Vec<String> = (calls..)
        .zip(["open_read_only", "read", "open_read", "len_bytes"])
        .flat_map(|(number, what)| ["Before", "After"].map(|phase| format!("{number} {phase} {what}")))
        .collect();
    assert_eq!(*seen.lock().unwrap(), expected);
    assert_eq!(counting.calls(), calls + 4);
}

//! The device with real files and threads: many guests' requests at once while the disk moves.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nbd::{Device, DeviceErrorKind, FileDevice, Zeroing};
use random::SplitMix;
use serve::folder::DiskFolder;
use serve::overlay::OverlayOptions;
use serve::{Base as _, HydrateMap, MapIdentity, Metrics, Prefetch, Source, Step, Switched, Target};
use support::base::{MemoryBase, SECTOR};
use support::device::{SESSION, cached, create, device, read, write};
use support::machine::{Forgets, Machine, SimulatedDisk};

const GUEST_MARKER: u64 = u64::from_be_bytes(*b"GUESTMRK");

/// Threads write, zero, flush and read sectors of their own while others hydrate, drain, compact and at last switch. At
/// the end every sector is what its owner wrote last, the target is the disk, and no file but it holds plaintext (I2, I6,
/// I9).
#[test]
fn nothing_is_lost_while_the_disk_moves() {
    const OWNERS: u64 = 4;
    let size = 24 << 20;
    let sectors = size / SECTOR;
    let place = tempfile::tempdir().unwrap();
    let folder = Arc::new(DiskFolder::open_or_create(&place.path().join("session")).unwrap());
    let base = Arc::new(MemoryBase::new(size, 256 << 10));
    let options =
        OverlayOptions { segment_bytes: 1 << 20, compact_from_bytes: 4 << 20, limit_bytes: None, reserve_bytes: 0 };
    let device = device(base.clone(), Some(create(folder.clone(), &base, options)));
    let image = place.path().join("target.raw");
    std::fs::File::create(&image).unwrap().set_len(size).unwrap();
    let identity =
        MapIdentity { session: SESSION, grain_bytes: 64 << 10, size_bytes: size, base: serve::Base::identity(&*base) };
    let map = HydrateMap::create(&*folder, &identity).unwrap();
    device.set_target(Target { disk: Arc::new(FileDevice::open(&image, false).unwrap()), map });
    let is_local = AtomicBool::new(false);
    let mut expected: Vec<u64> = (0..sectors).map(|sector| base.value(sector)).collect();
    thread::scope(|scope| {
        let (device, is_local) = (&device, &is_local);
        let owners: Vec<_> = (0..OWNERS)
            .map(|owner| {
                // Strips of 5 sectors in turn: cells and grains are shared, sectors are not.
                let is_mine = move |sector: u64| sector / 5 % OWNERS == owner;
                let mut values: Vec<u64> = (0..sectors).map(|sector| base.value(sector)).collect();
                scope.spawn(move || {
                    let mut random = SplitMix::new(owner);
                    let mut after_switch = 0;
                    for round in 0.. {
                        let strip = random.below(sectors / 5 / OWNERS) * OWNERS + owner;
                        let first = strip * 5 + random.below(5);
                        let count = 1 + random.below(strip * 5 + 5 - first);
                        let range = first as usize..(first + count) as usize;
                        assert!(is_mine(first) && is_mine(first + count - 1));
                        match random.below(10) {
                            0..6 => {
                                let value = GUEST_MARKER ^ (round << 8 | owner);
                                write(device, first, &vec![value; count as usize]).unwrap();
                                values[range].fill(value);
                            }
                            6 => {
                                let bytes = first * SECTOR..(first + count) * SECTOR;
                                device.zero(bytes, Zeroing::MayDeallocate).unwrap();
                                values[range].fill(0);
                            }
                            7 if round % 20 == 0 => device.flush().unwrap(),
                            _ => assert_eq!(read(device, first, count).unwrap(), values[range], "owner {owner}"),
                        }
                        after_switch += u64::from(is_local.load(Ordering::SeqCst));
                        if after_switch > 200 {
                            break;
                        }
                    }
                    (owner, values)
                })
            })
            .collect();
        let mover = scope.spawn(move || {
            let pause = |_| Ok(());
            thread::sleep(Duration::from_millis(200));
            while !device.hydrate(&pause).unwrap().is_complete() {}
            for _ in 0..3 {
                let mut sector = 0;
                while let Some(next) = device.drain(sector, &pause).unwrap() {
                    sector = next;
                }
                thread::sleep(Duration::from_millis(100));
            }
            while device.switch(&|| Ok(()), &pause).unwrap() != Switched::Local {}
            is_local.store(true, Ordering::SeqCst);
        });
        let tidier = scope.spawn(move || {
            let mut compacted = 0;
            while !is_local.load(Ordering::SeqCst) {
                compacted += u64::from(device.overlay().unwrap().compact().unwrap());
                thread::sleep(Duration::from_millis(5));
            }
            compacted
        });
        mover.join().unwrap();
        println!("segments cleared away: {}", tidier.join().unwrap());
        for owner in owners {
            let (owner, values) = owner.join().unwrap();
            for sector in (0..sectors).filter(|sector| sector / 5 % OWNERS == owner) {
                expected[sector as usize] = values[sector as usize];
            }
        }
    });
    assert!(device.is_local());
    assert_eq!(read(&device, 0, sectors).unwrap(), expected);
    device.flush().unwrap();
    let target = std::fs::read(&image).unwrap();
    let on_disk: Vec<u64> = target.chunks_exact(512).map(|sector| support::base::value_of(sector).unwrap()).collect();
    assert_eq!(on_disk, expected);
    let (guest, base_marker) = (&GUEST_MARKER.to_be_bytes()[..5], &b"BASEBASE"[..5]);
    let holds = |bytes: &[u8], marker: &[u8]| bytes.windows(marker.len()).any(|window| window == marker);
    assert!(holds(&target, guest) && holds(&target, base_marker), "the markers are what is looked for");
    let mut looked_at = 0;
    for entry in std::fs::read_dir(place.path().join("session")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        assert!(!holds(&bytes, guest) && !holds(&bytes, base_marker), "plaintext in {}", path.display());
        looked_at += bytes.len();
    }
    assert!(looked_at > 1 << 20);
}

/// I11: what is here goes on being served, the rest fails with its cause, and all is well when it comes back.
#[test]
fn a_base_that_goes_away_is_told_and_lived_with() {
    let place = tempfile::tempdir().unwrap();
    let folder = Arc::new(DiskFolder::open_or_create(place.path()).unwrap());
    let base = Arc::new(MemoryBase::new(4 << 20, 64 << 10));
    let device = device(base.clone(), Some(create(folder, &base, OverlayOptions::default())));
    write(&device, 2000, &[7; 8]).unwrap();
    assert_eq!(read(&device, 0, 1).unwrap(), [base.value(0)]);
    assert_eq!(device.base().trouble(), None);
    base.is_gone.store(true, Ordering::SeqCst);
    assert_eq!(read(&device, 1, 100).unwrap()[0], base.value(1), "in memory");
    assert_eq!(read(&device, 2000, 8).unwrap(), [7; 8], "in the overlay");
    assert_eq!(read(&device, 3 * 128, 128).unwrap(), [0; 128], "known to be zero");
    let error = read(&device, 1024, 1).unwrap_err();
    assert_eq!(error.kind(), DeviceErrorKind::Unavailable, "it may come back");
    assert!(error.to_string().contains("fetch segment 8: gone"), "{error}");
    assert!(device.base().trouble().unwrap().contains("gone"));
    // Writes need no base, not even of parts of cells.
    write(&device, 1025, &[8]).unwrap();
    device.flush().unwrap();
    assert!(read(&device, 1024, 2).is_err(), "a part of it is missing");
    base.is_gone.store(false, Ordering::SeqCst);
    assert_eq!(read(&device, 1024, 2).unwrap(), [base.value(1024), 8]);
    assert_eq!(device.base().trouble(), None);
}

#[test]
fn readers_of_one_segment_share_one_fetch() {
    let base = Arc::new(MemoryBase::new(4 << 20, 1 << 20));
    let metrics = Arc::new(Metrics::default());
    let cached = cached(base.clone(), 16 << 20, &metrics);
    thread::scope(|scope| {
        for reader in 0..8 {
            let cached = &cached;
            scope.spawn(move || {
                let mut sector = [0; 512];
                cached.read_exact_at(&mut sector, reader * 4096, serve::Lane::Foreground).unwrap();
            });
        }
    });
    assert_eq!(base.fetches.load(Ordering::SeqCst), 1);
    assert_eq!(metrics.bytes_from(Source::Repository), 1 << 20);
}

#[test]
fn the_boot_set_is_fetched_before_it_is_asked_for() {
    let base = Arc::new(MemoryBase::new(64 << 20, 1 << 20));
    let metrics = Arc::new(Metrics::default());
    let cached = cached(base.clone(), 64 << 20, &metrics);
    let prefetch = Prefetch::start(cached.clone(), metrics.clone(), &[9, 4, 20]).unwrap();
    let device = serve::LayeredDevice::new(cached, None, metrics.clone()).with_prefetch(prefetch.clone());
    // Three of the boot set, and the first segment; the last one is zero.
    for _ in 0..500 {
        if base.fetches.load(Ordering::SeqCst) == 4 {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(base.fetches.load(Ordering::SeqCst), 4);
    for segment in [4, 9] {
        assert_eq!(read(&device, segment * 2048, 1).unwrap(), [base.value(segment * 2048)]);
    }
    assert_eq!(base.fetches.load(Ordering::SeqCst), 4, "from memory");
    assert!(metrics.render().contains("e3_serve_prefetch_used_total{kind=\"boot_set\"} 2"), "{}", metrics.render());
    assert_eq!(prefetch.touches().len(), 2);
    assert!(write(&device, 0, &[1]).is_err_and(|error| error.kind() == DeviceErrorKind::ReadOnly));
}

/// On a link that fails again and again a disk moves all the same.
#[test]
fn grains_that_were_copied_before_a_failure_count() {
    const GRAIN: u64 = 8 << 10;
    let base = Arc::new(MemoryBase::new(64 * GRAIN, GRAIN as u32));
    let folder = Machine::new(1, Forgets::default()).folder();
    let device = device(base.clone(), Some(create(folder.clone(), &base, OverlayOptions::default())));
    let (size_bytes, file) = (base.size_bytes, folder.create("target").unwrap());
    file.set_len(size_bytes).unwrap();
    let map = MapIdentity { session: SESSION, grain_bytes: GRAIN, size_bytes, base: base.identity() };
    let map = HydrateMap::create(&*folder, &map).unwrap();
    device.set_target(Target { disk: Arc::new(SimulatedDisk { file, size_bytes }), map });
    let mut done = 0;
    for round in 0.. {
        assert!(round < 64, "it does not come to an end");
        base.is_gone.store(false, Ordering::SeqCst);
        let hydrated = device.hydrate(&|step| {
            base.is_gone.fetch_or(step == Step::GrainCopied, Ordering::SeqCst);
            Ok(())
        });
        let now = device.hydrated().unwrap().done_bytes;
        assert!(now > done, "round {round}: {done} and no more");
        done = now;
        if hydrated.is_ok_and(|hydrated| hydrated.is_complete()) {
            assert!(round > 10, "the base failed {round} times");
            break;
        }
    }
}

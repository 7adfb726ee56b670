//! The overlay where no machine dies: damage, strangers, failing disks, want of space.

mod support;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nbd::{Device, DeviceErrorKind, ExtentKind, Zeroing};
use random::SplitMix;
use serve::folder::{DiskFolder, Folder, StoredFile};
use serve::overlay::{DiskKey, Identity, Overlay, OverlayError, OverlayOptions};
use support::base::{MemoryBase, SECTOR};
use support::device::{create, device, identity, key, read, recover, write};
use support::machine::{Death, Forgets, Machine};

const SIZE: u64 = 1 << 20;
const SECTORS: u64 = SIZE / SECTOR;

fn base() -> Arc<MemoryBase> {
    Arc::new(MemoryBase::new(SIZE, 64 << 10))
}

fn small() -> OverlayOptions {
    OverlayOptions { segment_bytes: 32 << 10, compact_from_bytes: 128 << 10, limit_bytes: None, reserve_bytes: 0 }
}

fn options(limit_bytes: u64) -> OverlayOptions {
    OverlayOptions { limit_bytes: Some(limit_bytes), reserve_bytes: 64 << 10, ..small() }
}

/// I13, and that no wrong key is taken for a torn segment.
#[test]
fn another_owner_is_refused_and_nothing_is_deleted() {
    let (base, machine) = (base(), Machine::new(1, Forgets::default()));
    let overlay = create(machine.folder(), &base, small());
    overlay.write(0, &[7; 4096]).unwrap();
    drop(overlay);
    drop(recover(machine.folder(), &base).unwrap());
    let before = machine.files();
    let ours = identity(&base);
    for (case, other, key) in [
        ("session", Identity { session: [9; 16], ..ours }, key()),
        ("disk", Identity { disk: [9; 16], ..ours }, key()),
        ("restore point", Identity { base: [9; 32], ..ours }, key()),
        ("size", Identity { size_bytes: SIZE * 2, ..ours }, key()),
        ("sector size", Identity { sector_bytes: 4096, ..ours }, key()),
        ("repository", ours, DiskKey::derive(&[9; 32], &ours.session, &ours.disk)),
    ] {
        let refused = Overlay::recover(machine.folder(), other, key, small());
        match (case, refused.map(drop)) {
            ("repository", Err(OverlayError::Damaged { .. })) => {}
            (_, Err(OverlayError::Foreign { .. })) => {}
            (_, other) => panic!("{case}: {other:?}"),
        }
        assert_eq!(machine.files(), before, "{case}");
    }
    assert!(matches!(Overlay::create(machine.folder(), ours, key(), small()), Err(OverlayError::Exists { .. })));
}

/// Whatever byte changes: an error, or what was written before some instant; never other bytes.
#[test]
fn damage_is_never_served() {
    let mut fatal = 0;
    for seed in 0..150 {
        let (base, machine) = (base(), Machine::new(seed, Forgets::default()));
        let mut random = SplitMix::new(seed);
        let overlay = create(machine.folder(), &base, OverlayOptions { segment_bytes: 16 << 10, ..small() });
        let device = device(base.clone(), Some(overlay));
        let mut instants = vec![read(&device, 0, SECTORS).unwrap()];
        for nth in 1..12 {
            let first = random.below(SECTORS - 30);
            write(&device, first, &vec![nth; 1 + random.below(30) as usize]).unwrap();
            instants.push(read(&device, 0, SECTORS).unwrap());
        }
        drop(device);
        let files = machine.files();
        let (name, bytes) = &files[random.below(files.len() as u64) as usize];
        machine.damage(name, random.below(bytes.len() as u64) as usize);
        machine.restart(Death::Kill);
        let Ok(overlay) = recover(machine.folder(), &base) else {
            fatal += 1;
            continue;
        };
        let device = support::device::device(base.clone(), Some(overlay));
        // Cells of sealed segments are checked when they are read.
        let seen: Vec<Option<u64>> = (0..SECTORS).map(|sector| Some(read(&device, sector, 1).ok()?[0])).collect();
        // One write may be several records, so the end may be inside of one.
        let fits = |before: &[u64], after: &[u64]| {
            let sectors = seen.iter().zip(before.iter().zip(after));
            sectors.into_iter().all(|(seen, (before, after))| seen.is_none_or(|seen| seen == *before || seen == *after))
        };
        let is_an_instant =
            (0..instants.len()).any(|nth| fits(&instants[nth], instants.get(nth + 1).unwrap_or(&instants[nth])));
        assert!(is_an_instant, "seed {seed}: {name}");
    }
    assert!(fatal > 20, "some damage is seen at once: {fatal}");
}

#[test]
fn a_full_overlay_stays_readable_and_gives_space_back() {
    let (base, machine) = (base(), Machine::new(1, Forgets::default()));
    let device = device(base.clone(), Some(create(machine.folder(), &base, options(400 << 10))));
    let mut written = 0;
    let error = loop {
        match write(&device, written, &[written + 1; 8]) {
            Ok(()) => written += 8,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), DeviceErrorKind::NoSpace);
    assert!(written > 200, "{written}");
    let values: Vec<u64> = (0..written).map(|sector| sector / 8 * 8 + 1).collect();
    assert_eq!(read(&device, 0, written).unwrap(), values);
    device.flush().unwrap();
    // Zeroes are taken from the reserve, and what they cover goes.
    device.zero(0..written / 2 * SECTOR, Zeroing::MayDeallocate).unwrap();
    device.zero(0..written / 2 * SECTOR, Zeroing::MayDeallocate).unwrap();
    let overlay = device.overlay().unwrap();
    let before = overlay.stats();
    while overlay.compact().unwrap() {}
    let after = overlay.stats();
    assert!(before.dead_bytes > before.live_bytes && after.dead_bytes <= after.live_bytes, "{before:?} {after:?}");
    write(&device, 0, &[5; 8]).unwrap();
    drop(device);
    machine.restart(Death::Kill);
    let device = support::device::device(base.clone(), Some(recover(machine.folder(), &base).unwrap()));
    let seen = read(&device, 0, written).unwrap();
    assert_eq!(seen[..8], [5; 8]);
    assert!(seen[8..written as usize / 2].iter().all(|value| *value == 0));
    assert_eq!(seen[written as usize / 2..], values[written as usize / 2..]);
}

/// A folder whose files refuse to be made durable, or to be written, on command.
struct Failing {
    inner: DiskFolder,
    syncs: Arc<AtomicBool>,
    writes: Arc<AtomicBool>,
}

struct FailingFile {
    inner: Arc<dyn StoredFile>,
    syncs: Arc<AtomicBool>,
    writes: Arc<AtomicBool>,
}

impl Failing {
    fn file(&self, inner: Arc<dyn StoredFile>) -> Arc<dyn StoredFile> {
        Arc::new(FailingFile { inner, syncs: self.syncs.clone(), writes: self.writes.clone() })
    }
}

impl Folder for Failing {
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn StoredFile>> {
        Ok(self.file(self.inner.create(name)?))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn StoredFile>> {
        Ok(self.file(self.inner.open(name)?))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
    fn free_bytes(&self) -> Option<u64> {
        None
    }
    fn display(&self) -> String {
        self.inner.display()
    }
}

impl StoredFile for FailingFile {
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.inner.read_exact_at(buf, offset_bytes)
    }
    fn write_all_at(&self, data: &[u8], offset_bytes: u64) -> io::Result<()> {
        if self.writes.load(Ordering::SeqCst) {
            Err(io::Error::other("bad disk"))
        } else {
            self.inner.write_all_at(data, offset_bytes)
        }
    }
    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.inner.set_len(len_bytes)
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.syncs.load(Ordering::SeqCst) { Err(io::Error::other("bad disk")) } else { self.inner.sync_data() }
    }
    fn len_bytes(&self) -> io::Result<u64> {
        self.inner.len_bytes()
    }
}

#[test]
fn after_a_failed_write_or_flush_nothing_is_taken_until_a_restart() {
    for fails_in_sync in [true, false] {
        let (place, base) = (tempfile::tempdir().unwrap(), base());
        let (syncs, writes) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let folder = || -> Arc<dyn Folder> {
            let inner = DiskFolder::open_or_create(place.path()).unwrap();
            Arc::new(Failing { inner, syncs: syncs.clone(), writes: writes.clone() })
        };
        let device = device(base.clone(), Some(create(folder(), &base, small())));
        write(&device, 0, &[1, 2, 3]).unwrap();
        let switch = if fails_in_sync { &syncs } else { &writes };
        switch.store(true, Ordering::SeqCst);
        let failed = if fails_in_sync { device.flush() } else { write(&device, 0, &[9]) };
        assert_eq!(failed.unwrap_err().kind(), DeviceErrorKind::Io);
        switch.store(false, Ordering::SeqCst);
        assert!(device.flush().unwrap_err().to_string().contains("bad disk"), "the first cause is told");
        assert!(write(&device, 0, &[9]).is_err());
        assert!(device.zero(0..512, Zeroing::MayDeallocate).is_err());
        assert_eq!(read(&device, 0, 3).unwrap(), [1, 2, 3], "reads go on");
        drop(device);
        let device = support::device::device(base.clone(), Some(recover(folder(), &base).unwrap()));
        assert_eq!(read(&device, 0, 3).unwrap(), [1, 2, 3]);
        write(&device, 0, &[4]).unwrap();
        device.flush().unwrap();
    }
}

#[test]
fn extents_are_true() {
    let (base, machine) = (base(), Machine::new(1, Forgets::default()));
    let device = device(base.clone(), Some(create(machine.folder(), &base, OverlayOptions::default())));
    let mut random = SplitMix::new(5);
    for round in 0..60 {
        let first = random.below(SECTORS - 100);
        let count = 1 + random.below(100);
        match random.below(2) {
            0 => write(&device, first, &vec![round + 1; count as usize]).unwrap(),
            _ => device.zero(first * SECTOR..(first + count) * SECTOR, Zeroing::KeepAllocated).unwrap(),
        }
        let start = random.below(SECTORS);
        for max in [1, 3, 1000] {
            let extents = device.extents(start * SECTOR..SIZE, max).unwrap();
            assert!((1..=max).contains(&extents.len()));
            let mut at = start;
            for extent in &extents {
                assert!(extent.len_bytes > 0 && extent.len_bytes % SECTOR == 0);
                let count = extent.len_bytes / SECTOR;
                if extent.kind == ExtentKind::Zero {
                    assert!(read(&device, at, count).unwrap().iter().all(|value| *value == 0), "round {round}");
                }
                at += count;
            }
            assert!(at <= SECTORS && (extents.len() == max || at == SECTORS), "round {round}");
        }
    }
    let zeroes = device.extents(0..SIZE, 1000).unwrap();
    assert!(zeroes.iter().any(|extent| extent.kind == ExtentKind::Zero), "the base has zero segments");
}

#[test]
fn compare_and_write_is_one_step() {
    let (base, machine) = (base(), Machine::new(1, Forgets::default()));
    let device = Arc::new(device(base.clone(), Some(create(machine.folder(), &base, OverlayOptions::default()))));
    write(&*device, 0, &[0]).unwrap();
    let sector = support::base::sector_of;
    // A counter that four threads raise: no step is lost.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    loop {
                        let seen = read(&*device, 0, 1).unwrap()[0];
                        if device.compare_and_write(0, &sector(seen), &sector(seen + 1)).unwrap().is_none() {
                            break;
                        }
                    }
                }
            });
        }
    });
    assert_eq!(read(&*device, 0, 1).unwrap(), [200]);
    assert_eq!(device.compare_and_write(0, &sector(201), &sector(1)).unwrap(), Some(7), "the first that differs");
}

//! A point as files on a volume: what the volume holds, and the copies that its files become.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use backup::VmReport;
use bucket::{ErrorKind, Fault};
use nbd::Device as _;
use serve::folder::{DiskFolder, Folder};
use serve::{
    Base, BaseError, CachedBase, Lane, LayeredDevice, MemoryCache, Metrics, Origin, Source, StreamCopy,
    StreamCopyError, VolumeBase,
};
use support::base::MemoryBase;
use support::machine::{Death, Forgets, Machine};
use support::rig::Rig;

const MIB: u64 = 1 << 20;
const SESSION: [u8; 16] = [7; 16];
const TARGET: &str = "disk0.vhdx.partial";

fn point(size_mib: u64, written_mib: u32) -> (Rig, VmReport) {
    let rig = Rig::new(size_mib * MIB);
    rig.write(1, written_mib);
    let report = rig.back_up();
    (rig, report)
}

fn cached(base: Arc<dyn Base>) -> Arc<CachedBase> {
    Arc::new(CachedBase::new(base, MemoryCache::new(8 << 20), Arc::default()))
}

/// Of a volume that nobody reads.
fn no_guests() -> Arc<CachedBase> {
    cached(Arc::new(MemoryBase::new(MIB, 4096)))
}

fn open_in(
    rig: &Rig,
    report: &VmReport,
    maps: &dyn Folder,
    target: &dyn Folder,
    guests: Arc<CachedBase>,
) -> std::io::Result<StreamCopy> {
    StreamCopy::open(rig.point_base(report, None), guests, SESSION, maps, target, TARGET)
}

/// Copies to the end, in batches of two MiB.
fn copy_all(rig: &Rig, report: &VmReport, machine: &Machine) -> Result<(), String> {
    let (maps, target) = (machine.folder_named("copy/"), machine.folder_named("host/"));
    let copy = open_in(rig, report, &*maps, &*target, no_guests()).map_err(|error| error.to_string())?;
    loop {
        let grains = AtomicU64::new(0);
        match copy.advance(&|_| grains.fetch_add(1, Ordering::Relaxed) < 1) {
            Ok(copied) if copied.is_complete() => return Ok(()),
            Ok(_) | Err(StreamCopyError::Stopped) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn file_of(machine: &Machine) -> Vec<u8> {
    machine.files().into_iter().find(|(name, _)| *name == format!("host/{TARGET}")).expect("the copy").1
}

/// Killed or without power at any call, twice: what the map names is in the file, and the end is what a restore writes.
#[test]
fn a_copy_goes_on_after_every_death() {
    let (rig, report) = point(6, 3);
    let expected = rig.restored_file(&report);
    let whole = Machine::new(1, Forgets::default());
    copy_all(&rig, &report, &whole).unwrap();
    assert!(file_of(&whole) == expected, "without a death");
    let calls = whole.calls();
    assert!(calls > 15, "{calls}");
    for death in [Death::Kill, Death::PowerLoss] {
        for stop in 1..=calls {
            let machine = Machine::new(stop, Forgets::default());
            for second in [stop, calls - stop + 1] {
                machine.die_in(second);
                let _ = copy_all(&rig, &report, &machine);
                machine.restart(death);
            }
            copy_all(&rig, &report, &machine).unwrap();
            assert!(file_of(&machine) == expected, "{death:?} at call {stop} of {calls}");
        }
    }
}

/// Somebody removed the file, or it is not as long as it was made: no bit of the map counts any more, whatever dies when.
#[test]
fn a_map_never_outlives_its_file() {
    let (rig, report) = point(6, 3);
    let expected = rig.restored_file(&report);
    for is_shorter in [false, true] {
        for stop in 1..=14 {
            for seed in 0..3 {
                let machine = Machine::new(stop * 100 + seed, Forgets::default());
                copy_all(&rig, &report, &machine).unwrap();
                let target = machine.folder_named("host/");
                target.remove(TARGET).unwrap();
                if is_shorter {
                    target.create(TARGET).unwrap().write_all_at(&[1; 512], 0).unwrap();
                }
                target.sync().unwrap();
                machine.die_in(stop);
                let _ = copy_all(&rig, &report, &machine);
                machine.restart(Death::PowerLoss);
                copy_all(&rig, &report, &machine).unwrap();
                assert!(file_of(&machine) == expected, "shorter {is_shorter}, death at call {stop}, seed {seed}");
            }
        }
    }
}

/// On a link that fails again and again a copy comes to its end all the same.
#[test]
fn what_was_copied_before_a_failure_counts() {
    let (rig, report) = point(24, 16);
    let expected = rig.restored_file(&report);
    let is_gone = Arc::new(AtomicBool::new(false));
    let gone = is_gone.clone();
    rig.bucket.set_script(move |_| match gone.load(Ordering::SeqCst) {
        true => Fault::FailBefore(ErrorKind::Unreachable),
        false => Fault::Pass,
    });
    let place = tempfile::tempdir().unwrap();
    let folder = |name: &str| DiskFolder::open_or_create(&place.path().join(name)).unwrap();
    let mut done = 0;
    for round in 0.. {
        assert!(round < 40, "it does not come to an end");
        is_gone.store(false, Ordering::SeqCst);
        // Another process each time: nothing is in memory.
        let copy = open_in(&rig, &report, &folder("copy"), &folder("host"), no_guests()).unwrap();
        assert_eq!(copy.copied().done_bytes, done, "round {round}");
        let copied = copy.advance(&|was_copied| {
            is_gone.fetch_or(was_copied, Ordering::SeqCst);
            true
        });
        let now = copy.copied().done_bytes;
        assert!(now > done, "round {round}: {done} and no more");
        done = now;
        if copied.is_ok_and(|copied| copied.is_complete()) {
            assert!(round > 2, "the repository failed {round} times");
            break;
        }
    }
    assert!(std::fs::read(place.path().join("host").join(TARGET)).unwrap() == expected);
}

/// A base whose fetches last until they are let go.
struct Stuck {
    is_held: Mutex<bool>,
    signal: Condvar,
}

impl Base for Stuck {
    fn size_bytes(&self) -> u64 {
        MIB
    }

    fn sector_bytes(&self) -> u32 {
        512
    }

    fn segment_bytes(&self) -> u32 {
        4096
    }

    fn identity(&self) -> [u8; 32] {
        [0; 32]
    }

    fn is_zero(&self, _: u64) -> Result<bool, BaseError> {
        Ok(false)
    }

    fn read_segment(&self, _: u64, bytes: &mut Vec<u8>) -> Result<Origin, BaseError> {
        bytes.resize(4096, 0);
        let held = self.is_held.lock().unwrap();
        drop(self.signal.wait_while(held, |held| *held).unwrap());
        Ok(Origin::Repository)
    }
}

/// Spec C.7: a guest that waits for the repository goes first.
#[test]
fn a_copy_yields_to_guests() {
    let (rig, report) = point(8, 6);
    let place = tempfile::tempdir().unwrap();
    let folder = |name: &str| DiskFolder::open_or_create(&place.path().join(name)).unwrap();
    let stuck = Arc::new(Stuck { is_held: Mutex::new(true), signal: Condvar::new() });
    let guests = cached(stuck.clone());
    let copy = open_in(&rig, &report, &folder("copy"), &folder("host"), guests.clone()).unwrap();
    let guest = std::thread::spawn(move || guests.read_exact_at(&mut [0; 512], 0, Lane::Foreground).unwrap());
    // It waits from now on.
    std::thread::sleep(Duration::from_millis(300));
    let (begun, pieces) = (Instant::now(), AtomicU64::new(0));
    let copied = copy.advance(&|was_copied| pieces.fetch_add(was_copied.into(), Ordering::Relaxed) < 4);
    assert!(matches!(copied, Err(StreamCopyError::Stopped)), "{copied:?}");
    // Each waited for a while: for ever is not asked for.
    assert!(begun.elapsed() > Duration::from_millis(800), "{:?}", begun.elapsed());
    *stuck.is_held.lock().unwrap() = false;
    stuck.signal.notify_all();
    guest.join().unwrap();
}

/// The file on the volume is what a restore writes, from the repository or from the cache; and what is made up comes
/// from neither.
#[test]
fn a_volume_holds_the_file_that_a_restore_writes() {
    let (rig, report) = point(8, 4);
    let expected = rig.restored_file(&report);
    let cache = rig.dir.path().join("cache");
    for folder in [None, Some(&*cache), Some(&*cache)] {
        let disks = vec![rig.point_base(&report, folder)];
        let volume = Arc::new(VolumeBase::new(SESSION, &report.description, disks).unwrap());
        let metrics = Arc::new(Metrics::default());
        let base = Arc::new(CachedBase::new(volume.clone(), MemoryCache::new(0), metrics.clone()));
        let device = LayeredDevice::new(base, None, metrics.clone());
        let read = |offset: u64, len: usize| {
            let mut bytes = vec![0xEE; len];
            device.read_at(&mut bytes, offset).unwrap();
            bytes
        };
        assert!(read(512, 512).starts_with(b"EFI PART"), "a disk with a GPT");
        assert_eq!(metrics.bytes_from(Source::DiskCache), 0, "made up, not cached");
        // Files begin at multiples of a MiB.
        let first = (1..256).find(|mib| read(mib * MIB, 512) == expected[..512]).expect("the file is on the volume");
        let segments = first..first + (expected.len() as u64).div_ceil(MIB);
        let is_near = segments.clone().all(|segment| volume.is_nearby(segment));
        let before = metrics.bytes_from(Source::Repository);
        assert!(read(first * MIB, expected.len()) == expected, "with a cache: {}", folder.is_some());
        let fetched = metrics.bytes_from(Source::Repository) - before;
        assert_eq!(is_near, fetched == 0, "what is near is not fetched");
        assert_eq!(segments.clone().all(|segment| volume.is_nearby(segment)), folder.is_some());
        // From within a segment, and across their borders.
        for (at, len) in [(512, 4096), (MIB as usize - 512, 1024), (3 * MIB as usize - 4096, 8192)] {
            assert!(read(first * MIB + at as u64, len) == expected[at..at + len], "{len} at {at}");
        }
    }
}

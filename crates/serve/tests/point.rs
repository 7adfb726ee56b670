//! A restore point served from a repository, and the repository going away under it.

mod support;

use std::sync::Arc;

use nbd::{Device, DeviceErrorKind, ExtentKind};
use random::SplitMix;
use serve::folder::DiskFolder;
use serve::overlay::{DiskKey, Identity, Overlay, OverlayOptions};
use serve::{
    Base, BootSet, CachedBase, FirstTouches, LayeredDevice, MemoryCache, Metrics, PointBase, Source, overlay_secret,
    read_boot_set, record_boot_set,
};
use support::rig::Rig;

fn device(base: Arc<PointBase>, overlay: Option<Overlay>, metrics: &Arc<Metrics>) -> LayeredDevice {
    let cached = CachedBase::new(base, MemoryCache::new(8 << 20), metrics.clone());
    LayeredDevice::new(Arc::new(cached), overlay.map(Arc::new), metrics.clone())
}

/// I1 and I10: a full and an incremental point, served with and without a cache, read as a restore writes them; the
/// cache may vanish in the middle, and holds no plaintext.
#[test]
fn a_point_reads_as_it_is_restored() {
    let rig = Rig::new((40 << 20) + 512);
    rig.write(1, 8);
    let first = rig.back_up();
    rig.write(2, 3);
    let second = rig.back_up();
    let cache = rig.dir.path().join("cache");
    for (nth, report) in [&first, &second].into_iter().enumerate() {
        let expected = rig.restored(report);
        for folder in [None, Some(&cache), Some(&cache)] {
            let metrics = Arc::new(Metrics::default());
            let device = device(rig.base(report, folder.map(|folder| folder.as_path())), None, &metrics);
            assert_eq!(device.size_bytes(), expected.len() as u64);
            let mut random = SplitMix::new(nth as u64);
            for round in 0..150 {
                let start = random.below(expected.len() as u64 / 512);
                let end = (start + 1 + random.below(4096)).min(expected.len() as u64 / 512);
                let range = start as usize * 512..end as usize * 512;
                let mut seen = vec![0xEE; range.len()];
                device.read_at(&mut seen, start * 512).unwrap();
                assert!(seen == expected[range], "point {nth}, read {round}");
                if round == 100 && folder.is_some() {
                    std::fs::remove_dir_all(&cache).unwrap();
                }
            }
            let mut at = 0;
            for extent in device.extents(0..device.size_bytes(), usize::MAX - 1).unwrap() {
                let bytes = &expected[at..at + extent.len_bytes as usize];
                assert!(extent.kind == ExtentKind::Data || bytes.iter().all(|byte| *byte == 0), "zero at {at}");
                at += bytes.len();
            }
            assert_eq!(at, expected.len());
            assert!(metrics.bytes_from(Source::Repository) > 0 || nth == 1);
        }
    }
    // Files that were open when the cache vanished went on being read; another process begins a new one.
    let expected = rig.restored(&second);
    let again = device(rig.base(&second, Some(&cache)), None, &Arc::default());
    let mut seen = vec![0xEE; expected.len()];
    again.read_at(&mut seen, 0).unwrap();
    assert!(seen == expected);
    let needle = &expected[..];
    let needle = needle.chunks(64).find(|chunk| chunk.iter().filter(|byte| **byte != 0).count() > 48).unwrap();
    let mut files = 0;
    for group in std::fs::read_dir(&cache).unwrap() {
        for file in std::fs::read_dir(group.unwrap().path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(!bytes.windows(16).any(|window| window == &needle[..16]));
            files += 1;
        }
    }
    assert!(files > 0);
}

/// I11 with a real repository: what is cached and written goes on, the rest is told, and comes back.
#[test]
fn the_repository_goes_away_and_comes_back() {
    let rig = Rig::new(64 << 20);
    rig.write(1, 40);
    let report = rig.back_up();
    let expected = rig.restored(&report);
    let metrics = Arc::new(Metrics::default());
    let base = rig.base(&report, Some(&rig.dir.path().join("cache")));
    let identity = Identity {
        session: [1; 16],
        disk: [2; 16],
        size_bytes: base.size_bytes(),
        sector_bytes: base.sector_bytes(),
        base: base.identity(),
    };
    let secret = overlay_secret(&rig.repo);
    let key = DiskKey::derive(&secret, &identity.session, &identity.disk);
    let folder = Arc::new(DiskFolder::open_or_create(&rig.dir.path().join("overlay")).unwrap());
    let overlay = Overlay::create(folder, identity, key, OverlayOptions::default()).unwrap();
    let nonzero: Vec<usize> =
        (0..64).filter(|mib| expected[mib << 20..][..1 << 20].iter().any(|byte| *byte != 0)).collect();
    assert!(nonzero.len() > 20, "{nonzero:?}");
    let device = device(base, Some(overlay), &metrics);
    let read = |mib: usize| {
        let mut seen = vec![0; 4096];
        device.read_at(&mut seen, (mib << 20) as u64).map(|()| seen == expected[mib << 20..][..4096])
    };
    let (cached, others) = nonzero.split_at(nonzero.len() - 4);
    for mib in cached {
        assert!(read(*mib).unwrap());
    }
    rig.break_off(true);
    for mib in cached {
        assert!(read(*mib).unwrap(), "from memory or disk");
    }
    assert!(metrics.bytes_from(Source::DiskCache) > 0);
    let error = read(others[0]).unwrap_err();
    assert_eq!(error.kind(), DeviceErrorKind::Unavailable, "it may come back");
    assert!(error.to_string().contains("read segment"), "{error}");
    assert!(device.base().trouble().is_some());
    device.write_at(&[7; 512], (others[1] as u64) << 20).unwrap();
    device.flush().unwrap();
    rig.break_off(false);
    assert!(read(others[0]).unwrap());
    assert_eq!(device.base().trouble(), None);
    assert!(!read(others[1]).unwrap(), "written meanwhile");
    // The secret of another repository is another.
    assert_ne!(*secret, *overlay_secret(&Rig::new(1 << 20).repo));
}

#[test]
fn the_boot_set_is_kept_with_the_vm_and_only_the_newest() {
    let rig = Rig::new(1 << 20);
    assert_eq!(read_boot_set(&rig.repo, "vm").unwrap(), None);
    for segments in [[3, 1], [9, 4]] {
        let mut touches = FirstTouches::default();
        segments.iter().for_each(|segment| touches.touch(*segment, 5));
        let mut set = BootSet::new(1 << 20);
        set.add("disk", &touches);
        record_boot_set(&rig.repo, "vm", &set).unwrap();
        assert_eq!(read_boot_set(&rig.repo, "vm").unwrap(), Some(set));
    }
    assert_eq!(read_boot_set(&rig.repo, "other").unwrap(), None);
    assert_eq!(rig.repo.find_manifests(&[("type", serve::MANIFEST_TYPE)]).unwrap().len(), 1);
}

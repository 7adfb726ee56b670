//! Sessions on real files, from a base to plain disks, taken up again wherever they stand.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nbd::Device;
use serve::overlay::OverlayOptions;
use serve::{
    About, CachedBase, DiskBase, MemoryCache, Metrics, MoveError, Mover, NewDisk, Session, SessionError, SessionParts,
    State, Step, discard_session,
};
use support::base::{MemoryBase, SECTOR};
use support::device::{SECRET, SESSION, read, write};

const SIZE: u64 = 5 << 20;

fn parts(place: &Path, boot_id: &str) -> SessionParts {
    SessionParts {
        folder: place.join("session"),
        secret: SECRET,
        boot_id: boot_id.into(),
        options: OverlayOptions { reserve_bytes: 0, ..OverlayOptions::default() },
        metrics: Arc::new(Metrics::default()),
    }
}

fn base_of_size(size: u64) -> DiskBase {
    let base = Arc::new(MemoryBase::new(size, 1 << 20));
    Arc::new(CachedBase::new(base, MemoryCache::new(4 << 20), Arc::new(Metrics::default()))).into()
}

fn value(sector: u64) -> u64 {
    MemoryBase::new(SIZE, 1 << 20).value(sector)
}

/// Two disks, of which the second is written to.
fn create(place: &Path, boot_id: &str, guest_is_elsewhere: bool) -> Session {
    let about = About { point_id: "p".into(), vm_id: "v".into(), guest_is_elsewhere };
    let disks = [3, 4].map(|id| NewDisk { disk: [id; 16], name: format!("disk{id}"), base: base_of_size(SIZE) });
    Session::create(parts(place, boot_id), SESSION, &about, disks.into()).unwrap()
}

fn resume(place: &Path, boot_id: &str) -> Result<Session, SessionError> {
    Session::resume(parts(place, boot_id), &|disk| Ok(base_of_size(disk.size_bytes)))
}

fn targets(place: &Path) -> Vec<PathBuf> {
    vec![place.join("a.raw"), place.join("b.raw")]
}

fn check(session: &Session, written: u64) {
    let disks: Vec<_> = session.disks().map(|(_, disk)| disk.clone()).collect();
    assert_eq!(read(&*disks[0], 7, 1).unwrap(), [value(7)]);
    for sector in 0..written {
        assert_eq!(read(&*disks[1], sector * 11, 1).unwrap(), [1000 + sector], "write {sector}");
    }
    assert_eq!(read(&*disks[1], 1, 1).unwrap(), [value(1)]);
}

/// The same with VHDX files: what the guest wrote is in a file that others read.
#[test]
fn a_disk_moves_to_a_vhdx() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    let session = create(place, "boot", false);
    session.serving().unwrap();
    let disk = session.disks().nth(1).unwrap().1.clone();
    write(&*disk, 0, &[1000]).unwrap();
    let files = vec![place.join("a.VHDX"), place.join("b.vhdx")];
    session.begin_hydrating(&files).unwrap();
    assert_eq!(session.advance(&|_| Ok(())).unwrap(), State::Hydrated);
    write(&*disk, 11, &[1001]).unwrap();
    drop((disk, session));
    let session = resume(place, "boot").unwrap();
    while session.advance(&|_| Ok(())).unwrap() != State::Local {}
    check(&session, 2);
    let disk = session.disks().nth(1).unwrap().1.clone();
    write(&*disk, 22, &[1002]).unwrap();
    disk.zero(33 * SECTOR..34 * SECTOR, nbd::Zeroing::MayDeallocate).unwrap();
    write(&*disk, 33, &[1003]).unwrap();
    drop(disk);
    session.finish().unwrap();
    let opened = vhdx::open_disk(&files[1], &vhdx::OpenOptions::default()).unwrap();
    let mut bytes = vec![0; SIZE as usize];
    vhdx::VirtualDisk::read_exact_at(&opened, &mut bytes, 0).unwrap();
    for (sector, bytes) in (0..).zip(bytes.chunks_exact(512)) {
        let expected = if sector % 11 == 0 && sector < 44 { 1000 + sector / 11 } else { value(sector) };
        assert_eq!(support::base::value_of(bytes), Ok(expected), "sector {sector}");
    }
}

/// The process is gone after every single step of the way, and the next one goes on to the end.
#[test]
fn a_session_that_dies_after_any_step_goes_on() {
    for dies_after in 0.. {
        let place = tempfile::tempdir().unwrap();
        let place = place.path();
        let session = create(place, "boot", true);
        session.serving().unwrap();
        let mut session = Some(session);
        let (mut written, mut steps, mut has_died) = (0, 0, false);
        let state = loop {
            let live = match session.take() {
                Some(live) => live,
                None => {
                    let live = resume(place, "boot").unwrap();
                    check(&live, written);
                    live
                }
            };
            if live.state() == State::Serving {
                live.begin_hydrating(&targets(place)).unwrap();
            }
            let disk = live.disks().nth(1).unwrap().1.clone();
            write(&*disk, written * 11, &[1000 + written]).unwrap();
            written += 1;
            let counted = std::cell::Cell::new(steps);
            let pause = |_: Step| {
                counted.set(counted.get() + 1);
                if counted.get() == dies_after + 1 && !has_died { Err(MoveError::Stopped) } else { Ok(()) }
            };
            let advanced = live.advance(&pause);
            steps = counted.get();
            match advanced {
                Ok(State::Local) => {
                    check(&live, written);
                    session = Some(live);
                    break State::Local;
                }
                Ok(_) => session = Some(live),
                Err(SessionError::Move(MoveError::Stopped)) => has_died = true,
                Err(error) => panic!("after step {dies_after}: {error}"),
            }
        };
        assert_eq!(state, State::Local);
        drop(session);
        // Once more: the files alone are the disks now.
        let live = resume(place, "boot").unwrap();
        check(&live, written);
        let restarts = live.describe().restarts;
        assert_eq!((restarts.kill, restarts.power), (1 + u64::from(has_died), 0));
        live.finish().unwrap();
        assert!(!place.join("session").exists());
        let image = std::fs::read(&targets(place)[1]).unwrap();
        assert_eq!(image.len() as u64, SIZE);
        for sector in 0..written {
            let at = (sector * 11 * SECTOR) as usize;
            assert_eq!(support::base::value_of(&image[at..at + 512]), Ok(1000 + sector));
        }
        if !has_died {
            assert!(steps > 20, "{steps}");
            break;
        }
    }
}

#[test]
fn after_a_loss_of_power_a_guest_elsewhere_has_to_be_restarted_first() {
    for (guest_is_elsewhere, expected) in [(true, State::NeedsRestart), (false, State::Serving)] {
        let place = tempfile::tempdir().unwrap();
        let session = create(place.path(), "boot 1", guest_is_elsewhere);
        session.serving().unwrap();
        drop(session);
        let session = resume(place.path(), "boot 2").unwrap();
        assert_eq!(session.state(), expected);
        assert_eq!(session.state().is_serving(), !guest_is_elsewhere);
        assert_eq!(session.describe().restarts.power, 1);
        if guest_is_elsewhere {
            drop(session);
            let session = resume(place.path(), "boot 2").unwrap();
            assert_eq!(session.state(), State::NeedsRestart, "a kill does not change that");
            session.guest_restarted().unwrap();
            assert!(session.state().is_serving());
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    let session = create(place, "boot", false);
    assert!(matches!(session.advance(&|_| Ok(())), Ok(State::Created)), "nothing to move yet");
    assert!(matches!(session.begin_hydrating(&[place.join("a")]), Err(SessionError::Targets { .. })));
    session.serving().unwrap();
    std::fs::write(place.join("b.raw"), b"mine").unwrap();
    assert!(matches!(session.begin_hydrating(&targets(place)), Err(SessionError::TargetExists { .. })));
    assert_eq!(std::fs::read(place.join("b.raw")).unwrap(), b"mine");
    std::fs::remove_file(place.join("b.raw")).unwrap();
    session.begin_hydrating(&targets(place)).unwrap();
    drop(session);
    let about = About { point_id: "p".into(), vm_id: "v".into(), guest_is_elsewhere: false };
    let again = Session::create(parts(place, "boot"), SESSION, &about, Vec::new());
    assert!(matches!(again, Err(SessionError::Exists { .. })));
    let other = Session::resume(parts(place, "boot"), &|_| Ok(base_of_size(SIZE + 512)));
    assert!(matches!(other, Err(SessionError::OtherBase { .. })));
    assert!(matches!(resume(&place.join("nowhere"), "boot"), Err(SessionError::Missing { .. })));
}

#[test]
fn a_session_with_a_damaged_overlay_fails_and_keeps_it() {
    let place = tempfile::tempdir().unwrap();
    let session = create(place.path(), "boot", false);
    session.serving().unwrap();
    write(&**session.disks().next().unwrap().1, 0, &[1, 2, 3]).unwrap();
    drop(session);
    drop(resume(place.path(), "boot").unwrap());
    let segment = place.path().join("session").join("03".repeat(16)).join("ov-00000001.seg");
    let whole = std::fs::read(&segment).unwrap();
    let mut damaged = whole.clone();
    damaged[4096 + 20] ^= 1;
    std::fs::write(&segment, &damaged).unwrap();
    for _ in 0..2 {
        assert!(matches!(resume(place.path(), "boot"), Err(SessionError::Overlay(_))));
        let folder = serve::folder::DiskFolder::open_or_create(&place.path().join("session")).unwrap();
        let state = serve::SessionState::read(&folder).unwrap().unwrap();
        assert_eq!(state.state, State::Failed);
        assert!(state.reason.unwrap().contains("ov-00000001.seg"));
        assert_eq!(std::fs::read(&segment).unwrap(), damaged);
    }
    std::fs::write(&segment, &whole).unwrap();
    let session = resume(place.path(), "boot").unwrap();
    assert!(!session.state().is_serving(), "a person says when");
    session.serving().unwrap();
    assert_eq!(read(&**session.disks().next().unwrap().1, 0, 3).unwrap(), [1, 2, 3]);
    assert_eq!(session.describe().reason, None);
}

#[test]
fn a_session_is_served_by_one_process() {
    let place = tempfile::tempdir().unwrap();
    let session = create(place.path(), "boot", false);
    session.serving().unwrap();
    let folder = place.path().join("session");
    assert!(matches!(resume(place.path(), "boot"), Err(SessionError::Busy { .. })));
    assert!(matches!(discard_session(&folder), Err(SessionError::Busy { .. })));
    drop(session);
    drop(resume(place.path(), "boot").unwrap());
}

/// The mover gets there by itself, waits for a base that went away, keeps its pace, and stops when it is told.
#[test]
fn the_mover_brings_a_session_home() {
    let place = tempfile::tempdir().unwrap();
    let base = Arc::new(MemoryBase::new(SIZE, 1 << 20));
    let about = About { point_id: "p".into(), vm_id: "v".into(), guest_is_elsewhere: false };
    let cached = CachedBase::new(base.clone(), MemoryCache::new(1 << 20), Arc::new(Metrics::default()));
    let disk = NewDisk { disk: [3; 16], name: "disk".into(), base: Arc::new(cached).into() };
    let session = Session::create(parts(place.path(), "boot"), SESSION, &about, vec![disk]).unwrap();
    let session = Arc::new(session);
    session.serving().unwrap();
    let disk = session.disks().next().unwrap().1.clone();
    write(&*disk, 9, &[77]).unwrap();
    base.is_gone.store(true, std::sync::atomic::Ordering::SeqCst);
    session.begin_hydrating(&[place.path().join("disk.raw")]).unwrap();
    let mover = Mover::start(session.clone(), 0).unwrap();
    assert!(!mover.wait(Duration::from_millis(300)));
    assert!(mover.trouble().unwrap().contains("gone"), "{:?}", mover.trouble());
    assert_eq!(read(&*disk, 9, 1).unwrap(), [77], "the guest goes on");
    drop(mover);
    base.is_gone.store(false, std::sync::atomic::Ordering::SeqCst);
    let slow = Mover::start(session.clone(), 2 << 20).unwrap();
    assert!(!slow.wait(Duration::from_millis(700)), "four MiB at two a second");
    assert!(session.hydrated().unwrap().done_bytes < SIZE);
    drop(slow);
    let mover = Mover::start(session.clone(), 0).unwrap();
    assert!(mover.wait(Duration::from_secs(60)));
    assert_eq!((mover.trouble(), session.state()), (None, State::Local));
    assert_eq!(read(&*disk, 9, 2).unwrap(), [77, base.value(10)]);
    let figures = session.render_metrics();
    for line in
        ["e3_serve_hydrated_bytes 5242880", "e3_serve_sessions{state=\"LOCAL\"} 1", "e3_serve_drained_bytes_total 512"]
    {
        assert!(figures.lines().any(|there| there == line), "{line} in {figures}");
    }
}

#[test]
fn a_discarded_session_leaves_nothing() {
    for begun in [false, true] {
        let place = tempfile::tempdir().unwrap();
        let place = place.path();
        let session = create(place, "boot", false);
        session.serving().unwrap();
        if begun {
            session.begin_hydrating(&targets(place)).unwrap();
            session.advance(&|_| Ok(())).unwrap();
        }
        let folder = place.join("session");
        if begun {
            session.discard().unwrap();
        } else {
            // By somebody who only has the folder.
            drop(session);
            discard_session(&folder).unwrap();
        }
        assert_eq!(std::fs::read_dir(place).unwrap().count(), 0, "begun: {begun}");
    }
}

#[test]
fn flush_reaches_a_local_disk() {
    let place = tempfile::tempdir().unwrap();
    let session = create(place.path(), "boot", false);
    session.serving().unwrap();
    session.begin_hydrating(&targets(place.path())).unwrap();
    while session.advance(&|_| Ok(())).unwrap() != State::Hydrated {}
    let disk = session.disks().next().unwrap().1.clone();
    write(&*disk, 3 << 11, &[9]).unwrap();
    let mut at = 0;
    for extent in disk.extents(0..SIZE, 1000).unwrap() {
        let count = extent.len_bytes / SECTOR;
        if extent.kind == nbd::ExtentKind::Zero {
            assert!(read(&*disk, at, count).unwrap().iter().all(|value| *value == 0), "at sector {at}");
            assert_eq!(at / 2048, 3, "the fourth MiB of the base is zero, and nothing else");
        }
        at += count;
    }
    assert_eq!(at, SIZE / SECTOR);
    while session.advance(&|_| Ok(())).unwrap() != State::Local {}
    for (_, disk) in session.disks() {
        disk.write_at(&[5; 512], 0).unwrap();
        disk.flush().unwrap();
        assert!(disk.is_local());
    }
    assert!(session.tend().is_empty());
    assert_eq!(std::fs::read(&targets(place.path())[0]).unwrap()[..512], [5; 512]);
}

//! Two at once: a retention run, or worse, at every call of an incremental to the store; and two deletions.

use std::sync::Arc;

use backup::retention::{apply, delete_points};
use backup::{Point, ReadMode, list_points};
use bucket::Bucket;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use kopia_repo::{ContentId, Repository, SessionOptions, WriteSession};

use crate::others::{contents_of_disks, delete_snapshots, interrupt, mark_as_deleted, open, put_copy};
use crate::points::{DISK, latest, plan};
use crate::support::Rig;

/// What another client does to the repository while a backup runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    /// A retention run that keeps one point.
    Retention,
    /// Every point goes, the base of the run included: `kopia snapshot delete` by hand.
    AllPointsGo,
    /// The same, and a garbage collection without any safety margin marks what they consisted of as deleted.
    AllPointsAndContentsGo,
}

/// The other client does it to the points that there are when it is told to look, which is before the run.
struct Other {
    bucket: Arc<dyn Bucket>,
    repo: Arc<Repository>,
}

impl Other {
    fn of(rig: &Rig) -> Self {
        let bucket: Arc<dyn Bucket> = rig.bucket.clone();
        Self { repo: open(bucket.clone()), bucket }
    }

    fn points(&self) -> Vec<Point> {
        self.repo.refresh().unwrap();
        list_points(&self.repo, None).unwrap()
    }

    fn ready_for(&self, deed: Deed) -> impl FnOnce() + Send + 'static {
        let (bucket, repo, points) = (self.bucket.clone(), self.repo.clone(), self.points());
        move || match deed {
            Deed::Retention => {
                let planned = plan(&repo, Some(&latest(1)));
                apply(&repo, &planned, Timestamp::now(), &TimeZone::UTC).unwrap();
            }
            Deed::AllPointsGo | Deed::AllPointsAndContentsGo => {
                let contents = contents_of_disks(&repo, &points);
                let snapshots: Vec<_> = points.into_iter().map(|point| point.snapshot).collect();
                delete_snapshots(&repo, &snapshots);
                if deed == Deed::AllPointsAndContentsGo {
                    mark_as_deleted(&*bucket, &repo, &contents);
                }
            }
        }
    }
}

/// Runs incrementals, one for each of their calls to the store (of every `nth`), with the deed just before that call.
/// Returns how many were incremental and how many full all the same.
fn race(deed: Deed, nth: usize) -> (usize, usize) {
    let mut rig = Rig::new(&DISK);
    let other = Other::of(&rig);
    let interrupted = interrupt(&mut rig);
    for run in 0..2 {
        rig.guest_write(run, 1);
        rig.back_up().unwrap();
    }

    let (mut incremental, mut full) = (0, 0);
    for call in (0..).step_by(nth) {
        let label = format!("{deed:?} before call {call}");
        rig.guest_write(100 + call, 1);
        let state = rig.guest_disks("DC01");
        let before = other.points().len();
        interrupted.before(call, other.ready_for(deed));
        // A run begins with the repository as it is then.
        rig.repo.refresh().unwrap();
        let report = rig.back_up().unwrap_or_else(|error| panic!("{label}: {error:?}"));
        if interrupted.calls() <= call {
            // The run is over before the call comes.
            break;
        }
        match report.description.disks[0].read {
            ReadMode::Incremental { .. } => incremental += 1,
            ReadMode::Full { .. } => full += 1,
        }
        assert!(report.warnings.is_empty(), "{label}: {:?}", report.warnings);
        // As a stranger sees it, and as the run itself does.
        let there = other.points();
        assert!(there.iter().any(|point| point.id == report.point.id), "{label}: the point is listed");
        match deed {
            // The base stayed too, if it was the newest when the other looked.
            Deed::Retention => assert!((1..=2).contains(&there.len()) && before >= 1, "{label}: {}", there.len()),
            _ => assert_eq!(there.len(), 1, "{label}"),
        }
        rig.repo.refresh().unwrap();
        rig.assert_restores(&label, &report.point, &state);
        rig.assert_host_is_clean(&label);
    }
    println!("{deed:?}: {incremental} incremental, {full} full");
    (incremental, full)
}

/// Files are slow where CI runs the Windows build, and the crates' tests run side by side.
const NTH: usize = if cfg!(windows) { 41 } else { 5 };

#[test]
fn a_retention_run_at_a_sample_of_calls_of_an_incremental_never_breaks_it() {
    let (incremental, full) = race(Deed::Retention, NTH);
    assert!(incremental > 2 && full == 0, "{incremental} incremental, {full} full");
}

#[test]
#[ignore = "long: every call"]
fn a_retention_run_at_every_call_of_an_incremental_never_breaks_it() {
    let (incremental, full) = race(Deed::Retention, 1);
    assert!(incremental > 20 && full == 0, "{incremental} incremental, {full} full");
}

#[test]
fn the_base_may_go_at_any_call_of_an_incremental() {
    let (incremental, full) = race(Deed::AllPointsGo, NTH);
    assert!(incremental > 2 && (full > 0 || NTH > 3), "{incremental} incremental, {full} full");
}

#[test]
fn the_base_and_its_contents_may_go_at_any_call_of_an_incremental() {
    let (incremental, full) = race(Deed::AllPointsAndContentsGo, NTH);
    assert!(incremental > 2 && (full > 0 || NTH > 3), "{incremental} incremental, {full} full");
}

/// Contents that were marked before the last look at the index are written again: the point does not hang on them.
#[test]
fn contents_that_went_before_the_last_look_are_live_again() {
    let mut rig = Rig::new(&DISK);
    let other = Other::of(&rig);
    let interrupted = interrupt(&mut rig);
    rig.guest_write(1, 2);
    rig.back_up().unwrap();
    rig.guest_write(2, 1);
    interrupted.before(u64::MAX, || ());
    rig.back_up().unwrap();
    let calls = interrupted.calls();
    let (mut runs, mut all_live) = (0, 0);
    for call in (0..calls).step_by(NTH) {
        // Of a VM that did not change, the pieces of the index stream are the base's too.
        if call % 2 == 0 {
            rig.guest_write(100 + call, 1);
        }
        interrupted.before(call, other.ready_for(Deed::AllPointsAndContentsGo));
        let report = rig.back_up().unwrap_or_else(|error| panic!("before call {call}: {error:?}"));
        other.repo.refresh().unwrap();
        let contents = contents_of_disks(&other.repo, std::slice::from_ref(&report.point));
        let is_live = |id: &ContentId| other.repo.lookup(id).unwrap().is_some_and(|entry| !entry.deleted);
        runs += 1;
        all_live += usize::from(contents.iter().all(is_live));
    }
    println!("{all_live} of {runs} runs had everything live");
    assert!(all_live > runs / 3, "{all_live} of {runs} runs had everything live");
}

/// Each of two lets go what it thinks the other leaves.
#[test]
fn two_deletions_at_once_leave_a_point() {
    let mut rig = Rig::new(&DISK);
    let template = rig.back_up().unwrap().point;
    let other = Other::of(&rig);
    let interrupted = interrupt(&mut rig);
    let mut refused = 0;
    for call in 0.. {
        let session = WriteSession::new(other.repo.clone(), SessionOptions { parallel_uploads: 1 }).unwrap();
        other.points().iter().for_each(|point| session.delete_snapshot(&point.snapshot));
        put_copy(&session, &template, SignedDuration::from_hours(1), "older");
        put_copy(&session, &template, SignedDuration::ZERO, "newer");
        session.flush().unwrap();
        drop(session);

        let planned = plan(&rig.repo, Some(&latest(1)));
        assert_eq!(planned.going().count(), 1);
        let repo = other.repo.clone();
        let (tell, told) = std::sync::mpsc::channel();
        interrupted.before(call, move || {
            let result = delete_points(&repo, &["newer".to_owned()], Timestamp::now());
            tell.send(result.is_err()).unwrap();
        });
        let applied = apply(&rig.repo, &planned, Timestamp::now(), &TimeZone::UTC).unwrap();
        let left = other.points();
        assert!(!left.is_empty(), "before call {call}: {applied:?}");
        if interrupted.calls() <= call {
            assert!(call > 5 && refused < call, "{call} calls, {refused} refused");
            break;
        }
        refused += u64::from(told.recv().unwrap());
    }
}

/// A run dies with its point stored and its journal open; somebody deletes the point; then the host puts the run in
/// order.
#[test]
fn a_point_that_was_deleted_behind_its_run_does_not_come_back() {
    let rig = Rig::new(&DISK);
    rig.back_up().unwrap();
    rig.bucket.reset_tally();
    rig.guest_write(1, 1);
    let point = rig.back_up().unwrap().point;
    let calls = rig.bucket.tally().total_calls();
    delete_snapshots(&rig.repo, std::slice::from_ref(&point.snapshot));
    rig.repo.refresh().unwrap();
    let mut behind_the_commit = 0;
    for call in (calls * 3 / 4..).step_by(if cfg!(windows) { 7 } else { 2 }) {
        rig.guest_write(100 + call, 1);
        let start = std::sync::atomic::AtomicU64::new(0);
        rig.bucket.set_script(move |_| {
            let number = start.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            if number == call { bucket::Fault::CrashAfter } else { bucket::Fault::Pass }
        });
        let result = rig.back_up();
        rig.bucket.revive();
        if result.is_ok() {
            break;
        }
        let other = open(rig.bucket.clone());
        let points = list_points(&other, None).unwrap();
        let [_, deleted] = &points[..] else {
            assert_eq!(points.len(), 1, "call {call}");
            continue;
        };
        behind_the_commit += 1;
        delete_snapshots(&other, std::slice::from_ref(&deleted.snapshot));
        rig.repo.refresh().unwrap();
        let report = rig.back_up().unwrap_or_else(|error| panic!("after call {call}: {error:?}"));
        let listed: Vec<String> = rig.points().into_iter().map(|point| point.id).collect();
        assert_eq!(listed, [points[0].id.clone(), report.point.id.clone()], "after call {call}");
        rig.assert_host_is_clean(&format!("after call {call}"));
        delete_snapshots(&other, std::slice::from_ref(&report.point.snapshot));
        rig.repo.refresh().unwrap();
    }
    assert!(behind_the_commit > 1, "{behind_the_commit} times");
}

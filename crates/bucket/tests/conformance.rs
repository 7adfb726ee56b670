//! The conformance suite against every implementation.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bucket::conformance::{Abilities, run};
use bucket::test_support::SeaweedFs;
use bucket::{
    Clock, ErrorKind, Fault, Faulty, Folder, Memory, RateLimiter, RetryPolicy, Retrying, Throttled, Verdict, probe,
};

#[test]
fn memory() {
    run(&Memory::new(), Abilities { if_match: true, retention: false, replaced_while_read: true });
}

#[test]
fn folder() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::create(dir.path().join("store")).unwrap();
    let abilities = Abilities { if_match: false, retention: false, replaced_while_read: true };
    // Only Wine has this program.
    if Path::new(r"C:\windows\system32\winecfg.exe").is_file() {
        println!("SKIPPED folder, no_reader_sees_half_a_body: Wine replaces no file that is open");
        run(&folder, Abilities { replaced_while_read: false, ..abilities });
    } else {
        run(&folder, abilities);
    }
    let found = probe(&folder, "scratch/").unwrap();
    assert_eq!(found.missing_essentials(), [""; 0]);
    assert_eq!((found.if_absent, found.if_match), (Verdict::Works, Verdict::Refused));
}

/// Sleeping takes no time.
struct Impatient(AtomicU64);

impl Clock for Impatient {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
    fn sleep(&self, _: Duration) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn memory_behind_limits() {
    let limiter = Arc::new(RateLimiter::new(Arc::new(Impatient(AtomicU64::new(0)))));
    limiter.set_rate(|| Some(10 << 30));
    let bucket = Throttled::new(Memory::new(), vec![limiter.clone()], vec![limiter]);
    run(&bucket, Abilities { if_match: true, retention: false, replaced_while_read: true });
}

#[test]
fn memory_that_fails_all_the_time_under_retries() {
    // Of every five calls one is lost on its way, one loses its answer, and one breaks off.
    let faulty = Faulty::with_script(Memory::new(), |call| match call.number % 5 {
        1 => Fault::FailBefore(ErrorKind::Unreachable),
        2 => Fault::FailAfter(ErrorKind::Unreachable),
        3 if call.operation == bucket::Operation::List => Fault::Cut(3),
        _ => Fault::Pass,
    });
    let bucket = Retrying::with_clock(faulty, RetryPolicy::default(), Arc::new(Impatient(AtomicU64::new(0))));
    run(&bucket, Abilities { if_match: true, retention: false, replaced_while_read: true });
    assert!(bucket.inner().tally().total_calls() > 3000);
}

#[test]
fn s3() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = SeaweedFs::start_or_skip("s3", dir.path()) else { return };
    for (name, prefix) in [("whole-bucket", ""), ("shared", "team+1/flat-")] {
        server.create_bucket(name, false).unwrap();
        run(&server.s3(name, prefix), Abilities { if_match: true, retention: false, replaced_while_read: true });
    }
    // What one prefix holds is not seen through another.
    let one = server.s3("shared", "one/");
    one.put_for_test("k");
    for (prefix, seen) in [("one/", vec!["k"]), ("", vec!["one/k"]), ("two/", vec![]), ("on", vec!["e/k"])] {
        assert_eq!(server.s3("shared", prefix).keys_for_test(), seen, "prefix {prefix:?}");
    }
    let found = probe(&one, "scratch/").unwrap();
    assert_eq!(found.missing_essentials(), [""; 0]);
    assert_eq!((found.if_absent, found.if_match), (Verdict::Works, Verdict::Works));
    assert_eq!(one.keys_for_test(), ["k"], "the probe cleans up");
}

trait ForTest: bucket::Bucket {
    fn put_for_test(&self, key: &str) {
        self.put(key, &[b"x"], &Default::default()).unwrap();
    }
    fn keys_for_test(&self) -> Vec<String> {
        let mut keys = Vec::new();
        let visit = &mut |object: bucket::ObjectMeta| {
            keys.push(object.key);
            std::ops::ControlFlow::Continue(())
        };
        self.list("", visit).unwrap();
        keys
    }
}

impl<B: bucket::Bucket> ForTest for B {}

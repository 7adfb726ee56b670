//! What every bucket must do, as one suite that each implementation runs.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::random::random_hex;
use crate::{Bucket, ErrorKind, LockMode, ObjectLock, ObjectMeta, PutCondition, PutOptions, check_key};

/// How far a store's clock may be off in these tests; listings round to seconds.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(180);

/// What a store may do or refuse.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// Has etags and puts on condition of one.
    pub if_match: bool,
    /// Locks objects on put.
    pub retention: bool,
    /// Replaces an object although somebody always reads it.
    pub replaced_while_read: bool,
}

/// Runs the suite; panics, naming the rule, where the bucket breaks one. Everything happens under a prefix of its
/// own, which is left empty.
pub fn run(bucket: &dyn Bucket, abilities: Abilities) {
    let suite = Suite { bucket, base: format!("conformance-{}/", random_hex()) };
    suite.bodies_come_back();
    suite.odd_keys_are_kept();
    suite.bad_keys_are_refused();
    suite.missing_is_not_found();
    suite.ranges_are_exact();
    suite.puts_replace();
    suite.listings_follow_the_prefix();
    suite.listings_go_over_pages();
    suite.listings_stop_and_may_delete();
    suite.if_absent_has_one_winner();
    suite.if_match_is_honoured(abilities.if_match);
    if abilities.replaced_while_read {
        suite.no_reader_sees_half_a_body();
    }
    if !abilities.retention {
        suite.retention_is_refused();
    }
    for key in suite.list("").into_keys() {
        bucket.delete(&key).expect("clean up");
    }
    assert!(suite.list("").is_empty(), "everything deleted is gone from the listing");
}

struct Suite<'a> {
    bucket: &'a dyn Bucket,
    base: String,
}

impl Suite<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.base)
    }

    fn put(&self, name: &str, body: &[u8]) -> String {
        let key = self.key(name);
        self.bucket.put(&key, &[body], &PutOptions::default()).unwrap_or_else(|error| panic!("{error}"));
        key
    }

    /// What a listing of `name` shows; every key once, or it panics.
    fn list(&self, name: &str) -> BTreeMap<String, ObjectMeta> {
        let mut found = BTreeMap::new();
        self.bucket
            .list(&self.key(name), &mut |object| {
                let key = object.key.clone();
                assert!(found.insert(key.clone(), object).is_none(), "listing {name:?} shows {key} twice");
                ControlFlow::Continue(())
            })
            .unwrap_or_else(|error| panic!("{error}"));
        found
    }

    fn bodies_come_back(&self) {
        let large: Vec<u8> = (0..3_000_001u32).map(|n| (n % 251) as u8).collect();
        let cases: [(&str, &[&[u8]]); 5] = [
            ("no-pieces", &[]),
            ("empty", &[b"", b""]),
            ("one", &[b"x"]),
            ("pieces", &[b"ab", b"", b"cdef", b"g"]),
            ("large", &[&large[..1_000_000], &large[1_000_000..1_000_007], &large[1_000_007..]]),
        ];
        for (name, body) in cases {
            let key = self.key(&format!("bodies/{name}"));
            let options = PutOptions { content_type: Some("application/x-test".into()), ..PutOptions::default() };
            let outcome = self.bucket.put(&key, body, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
            let whole = body.concat();
            assert!(self.bucket.get(&key).unwrap() == whole, "{name}: the body comes back");
            let head = self.bucket.head(&key).unwrap();
            assert_eq!((&head.key, head.len_bytes), (&key, whole.len() as u64), "{name}: head");
            assert_eq!(head.etag, outcome.etag, "{name}: etag of put and head");
            let now = SystemTime::now();
            let fresh = now - CLOCK_TOLERANCE..now + CLOCK_TOLERANCE;
            assert!(fresh.contains(&head.modified), "{name}: modified {:?} at {now:?}", head.modified);
            let listed = &self.list(&format!("bodies/{name}"))[&key];
            assert_eq!((listed.len_bytes, &listed.etag), (head.len_bytes, &head.etag), "{name}: listed");
            assert!(fresh.contains(&listed.modified), "{name}: listed modified {:?}", listed.modified);
        }
    }

    fn odd_keys_are_kept(&self) {
        let names = ["a b", "a+b", "a%20b", "ä", "a&b=c", "~!'()", ".hidden", "kopia.repository", "d/e/e.p", "x;y,z@$"];
        for name in names {
            let key = self.put(&format!("odd/{name}"), name.as_bytes());
            assert_eq!(self.bucket.get(&key).unwrap(), name.as_bytes(), "{key:?}");
            assert_eq!(self.bucket.head(&key).unwrap().key, key, "{key:?}");
        }
        let mut expected: Vec<String> = names.iter().map(|name| self.key(&format!("odd/{name}"))).collect();
        expected.sort();
        assert_eq!(self.list("odd/").into_keys().collect::<Vec<_>>(), expected, "odd keys in a listing");
        for key in expected {
            self.bucket.delete(&key).unwrap();
            assert!(self.bucket.head(&key).unwrap_err().is_not_found(), "{key:?} is deleted");
        }
    }

    fn bad_keys_are_refused(&self) {
        for key in ["", "/a", "a/", "a//b", "../a", "a/../../b", "a/./b", "a\\b", "a\nb", "a\0b"] {
            assert!(check_key(key).is_some());
            let kinds = [
                self.bucket.put(key, &[b"x"], &PutOptions::default()).unwrap_err().kind(),
                self.bucket.get(key).unwrap_err().kind(),
                self.bucket.get_range(key, 0, 1).unwrap_err().kind(),
                self.bucket.head(key).unwrap_err().kind(),
                self.bucket.delete(key).unwrap_err().kind(),
            ];
            assert_eq!(kinds, [ErrorKind::Unsupported; 5], "key {key:?}");
        }
        for prefix in ["/", "../", "../../etc/", "//", "a/../"] {
            let mut shown = 0;
            let listed = self.bucket.list(prefix, &mut |_| {
                shown += 1;
                ControlFlow::Continue(())
            });
            assert!(listed.is_ok() && shown == 0, "prefix {prefix:?} matches nothing: {listed:?}");
        }
    }

    fn missing_is_not_found(&self) {
        self.put("missing/there", b"x");
        // Beside, below and above an object.
        for name in ["missing/not", "missing/there/not", "missing", "nowhere/at/all"] {
            let key = self.key(name);
            let errors = [
                self.bucket.get(&key).unwrap_err(),
                self.bucket.get_range(&key, 0, 1).unwrap_err(),
                self.bucket.get_range(&key, 0, 0).unwrap_err(),
                self.bucket.head(&key).unwrap_err(),
            ];
            for error in errors {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
                let text = error.to_string();
                assert!(text.contains(&key) && text.contains(&self.bucket.display_name()), "{text}");
            }
            self.bucket.delete(&key).unwrap_or_else(|error| panic!("deleting what is missing: {error}"));
        }
        self.bucket.get(&self.key("missing/there")).expect("its neighbours' deletion left it alone");
    }

    fn ranges_are_exact(&self) {
        let body: Vec<u8> = (0..100).collect();
        let key = self.put("ranges", &body);
        for (offset, len) in [(0, 1), (0, 100), (10, 20), (99, 1), (0, 0), (50, 0), (100, 0)] {
            let expected = &body[offset as usize..(offset + len) as usize];
            let found = self.bucket.get_range(&key, offset, len).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(found, expected, "{len} at {offset}");
        }
        let too_far =
            [(0, 101), (99, 2), (100, 1), (101, 0), (1000, 5), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)];
        for (offset, len) in too_far {
            let error = self.bucket.get_range(&key, offset, len).expect_err("a range past the end");
            assert_eq!(error.kind(), ErrorKind::RangeNotSatisfiable, "{len} at {offset}: {error}");
        }
        let key = self.put("ranges-of-nothing", b"");
        assert_eq!(self.bucket.get_range(&key, 0, 0).unwrap(), b""[..]);
        assert_eq!(self.bucket.get_range(&key, 0, 1).unwrap_err().kind(), ErrorKind::RangeNotSatisfiable);
    }

    fn puts_replace(&self) {
        for body in [&b"first and long"[..], b"second", b"", b"third"] {
            let key = self.put("replaced", body);
            assert_eq!(self.bucket.get(&key).unwrap(), body);
            assert_eq!(self.list("replaced")[&key].len_bytes, body.len() as u64);
        }
        let key = self.key("replaced");
        self.bucket.delete(&key).unwrap();
        assert!(self.bucket.get(&key).unwrap_err().is_not_found());
        assert!(self.list("replaced").is_empty());
    }

    fn listings_follow_the_prefix(&self) {
        let names = ["list/p1", "list/p10", "list/p1x/a", "list/p1x/b/c", "list/q", "list/p", "listing"];
        for name in names {
            self.put(name, name.as_bytes());
        }
        for prefix in [
            "list",
            "list/",
            "list/p",
            "list/p1",
            "list/p1x",
            "list/p1x/",
            "list/p1x/b",
            "list/p1x/b/c",
            "list/p1x/b/c/",
            "list/z",
            "list/p1/",
            "list/p1x/b/cc",
            "list/q",
        ] {
            let expected: Vec<String> =
                names.iter().filter(|name| name.starts_with(prefix)).map(|name| self.key(name)).collect();
            let mut found: Vec<String> = self.list(prefix).into_keys().collect();
            found.sort_by_key(|key| expected.iter().position(|name| name == key));
            assert_eq!(found, expected, "prefix {prefix:?}");
        }
    }

    fn listings_go_over_pages(&self) {
        const COUNT: usize = 2500;
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= COUNT {
                            return;
                        }
                        self.put(&format!("pages/{number:04}"), &vec![0; number % 7]);
                    }
                });
            }
        });
        let found = self.list("pages/");
        assert_eq!(found.len(), COUNT, "all {COUNT} are listed");
        for (number, (key, object)) in found.into_iter().enumerate() {
            assert_eq!((key, object.len_bytes), (self.key(&format!("pages/{number:04}")), (number % 7) as u64));
        }
        assert_eq!(self.list("pages/23").len(), 100);
    }

    fn listings_stop_and_may_delete(&self) {
        let mut shown = 0;
        self.bucket
            .list(&self.key("pages/"), &mut |_| {
                shown += 1;
                if shown == 1100 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
        assert_eq!(shown, 1100, "a listing ends where the visitor says");

        // Deleting what is being shown hides no other object.
        let keys: Vec<String> = (0..COUNT_DELETED).map(|number| self.key(&format!("pages/{number:04}"))).collect();
        let mut others = 0;
        self.bucket
            .list(&self.key("pages/"), &mut |object| {
                if keys.binary_search(&object.key).is_ok() {
                    self.bucket.delete(&object.key).unwrap_or_else(|error| panic!("{error}"));
                } else {
                    others += 1;
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(others, 2500 - COUNT_DELETED, "objects hidden by deleting others");
        assert_eq!(self.list("pages/").len(), 2500 - COUNT_DELETED);
    }

    fn if_absent_has_one_winner(&self) {
        let key = self.key("absent");
        self.bucket.put(&key, &[b"first"], &PutOptions::if_absent()).unwrap_or_else(|error| panic!("{error}"));
        let error = self.bucket.put(&key, &[b"second"], &PutOptions::if_absent()).expect_err("it is there");
        assert_eq!(error.kind(), ErrorKind::PreconditionFailed, "{error}");
        assert_eq!(self.bucket.get(&key).unwrap(), b"first"[..]);
        self.bucket.delete(&key).unwrap();
        self.bucket.put(&key, &[b"third"], &PutOptions::if_absent()).expect("it is absent again");

        const RACERS: usize = 16;
        for round in 0..4 {
            let key = self.key(&format!("race-{round}"));
            let start = Barrier::new(RACERS);
            let results: Vec<_> = thread::scope(|scope| {
                let racers: Vec<_> = (0..RACERS)
                    .map(|racer| {
                        let (key, start) = (&key, &start);
                        scope.spawn(move || {
                            start.wait();
                            self.bucket.put(key, &[&[racer as u8; 1000]], &PutOptions::if_absent()).map(|_| racer)
                        })
                    })
                    .collect();
                racers.into_iter().map(|racer| racer.join().unwrap()).collect()
            });
            let winners: Vec<usize> = results.iter().filter_map(|result| result.as_ref().ok().copied()).collect();
            assert_eq!(winners.len(), 1, "round {round}: winners {winners:?} of {RACERS}");
            for error in results.iter().filter_map(|result| result.as_ref().err()) {
                assert_eq!(error.kind(), ErrorKind::PreconditionFailed, "round {round}: {error}");
            }
            assert_eq!(self.bucket.get(&key).unwrap(), [winners[0] as u8; 1000][..], "round {round}");
        }
    }

    fn if_match_is_honoured(&self, able: bool) {
        let key = self.key("match");
        let first = self.bucket.put(&key, &[b"first"], &PutOptions::default()).unwrap();
        let on = |etag: &str| PutOptions { condition: Some(PutCondition::IfMatch(etag.into())), ..Default::default() };
        if !able {
            let error = self.bucket.put(&key, &[b"second"], &on("x")).expect_err("there are no etags");
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert_eq!(self.bucket.get(&key).unwrap(), b"first"[..]);
            return;
        }
        let first = first.etag.expect("a store with conditions has etags");
        let second = self.bucket.put(&key, &[b"second"], &on(&first)).unwrap_or_else(|error| panic!("{error}"));
        assert_ne!(second.etag.as_ref(), Some(&first));
        for (key, etag) in [(&key, &first), (&self.key("match-nothing"), &first)] {
            let error = self.bucket.put(key, &[b"third"], &on(etag)).expect_err("another etag, or none");
            assert_eq!(error.kind(), ErrorKind::PreconditionFailed, "{error}");
        }
        assert_eq!(self.bucket.get(&key).unwrap(), b"second"[..]);
        assert!(self.bucket.head(&self.key("match-nothing")).unwrap_err().is_not_found());
    }

    fn no_reader_sees_half_a_body(&self) {
        const LEN: usize = 200_000;
        let key = self.put("whole", &[0; LEN]);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for writer in 1..3u8 {
                let (key, done) = (&key, &done);
                scope.spawn(move || {
                    // Also when a put fails, or the readers would go on for ever.
                    let _done = SetWhenDropped(done);
                    for round in 0..20u8 {
                        let fill = [writer * 100 + round; LEN / 4];
                        self.bucket.put(key, &[&fill[..]; 4], &PutOptions::default()).unwrap();
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let body = self.bucket.get(&key).unwrap_or_else(|error| panic!("{error}"));
                        assert_eq!(body.len(), LEN, "a reader sees the whole body");
                        assert!(body.iter().all(|byte| *byte == body[0]), "a reader sees one body");
                        let listed = self.list("whole");
                        assert_eq!((listed.len(), listed[&key].len_bytes), (1, LEN as u64), "a listing sees one body");
                    }
                });
            }
        });
    }

    fn retention_is_refused(&self) {
        let retain_until = SystemTime::now() + Duration::from_secs(60);
        let retention = Some(ObjectLock { mode: LockMode::Governance, retain_until });
        let key = self.key("locked");
        let error =
            self.bucket.put(&key, &[b"x"], &PutOptions { retention, ..Default::default() }).expect_err("no lock");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(self.bucket.head(&key).unwrap_err().is_not_found(), "nothing is stored without its lock");
    }
}

const COUNT_DELETED: usize = 1250;

struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

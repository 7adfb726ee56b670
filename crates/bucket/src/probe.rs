//! Trying out what a store really does.

use std::ops::ControlFlow;
use std::time::SystemTime;

use crate::random::random_hex;
use crate::{Bucket, BucketError, ErrorKind, PutCondition, PutOptions};

/// What a store was seen doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// A get brings back what was put.
    pub get: Verdict,
    /// A range brings back its bytes, and one past the end is refused.
    pub range: Verdict,
    /// A listing shows an object as soon as it is put, with its length, and only what the prefix names.
    pub list_after_write: Verdict,
    /// A second put replaces the first for the next get.
    pub overwrite: Verdict,
    /// A delete removes, and deleting what is missing succeeds.
    pub delete: Verdict,
    /// A put if absent is refused where there is something.
    pub if_absent: Verdict,
    /// A put on an etag is refused when the object has another.
    pub if_match: Verdict,
    /// Clock of the store minus clock of this machine, in seconds; stores round their times to seconds.
    pub clock_ahead_seconds: i64,
}

/// What came of one trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does what it should.
    Works,
    /// It says that it cannot.
    Refused,
    /// It says that it does, and does something else.
    Wrong,
}

impl Capabilities {
    /// Names of what no user of a [`Bucket`] can do without and this store does not do.
    pub fn missing_essentials(&self) -> Vec<&'static str> {
        let essentials = [
            ("get", self.get),
            ("range", self.range),
            ("list after write", self.list_after_write),
            ("overwrite", self.overwrite),
            ("delete", self.delete),
        ];
        essentials.iter().filter(|(_, verdict)| *verdict != Verdict::Works).map(|(name, _)| *name).collect()
    }
}

/// Puts, reads, lists and deletes a few small objects under `scratch_prefix` and tells what happened.
///
/// Fails only where nothing can be told: the store is unreachable, the keys are wrong, or the first put is refused.
/// Removes its objects in any case, as far as the store lets it.
pub fn probe(bucket: &dyn Bucket, scratch_prefix: &str) -> Result<Capabilities, BucketError> {
    let scratch = Scratch { bucket, base: format!("{scratch_prefix}{}", random_hex()) };
    let key = scratch.key("a");
    let started = SystemTime::now();
    bucket.put(&key, &[b"first", b" body"], &PutOptions::default())?;

    let get = verdict(bucket.get(&key).map(|body| body == b"first body"[..]))?;
    let range = range_verdict(bucket, &key)?;
    let (list_after_write, clock_ahead_seconds) = list_verdict(&scratch, &key, started)?;
    let overwritten = bucket
        .put(&key, &[b"second"], &PutOptions::default())
        .and_then(|_| bucket.get(&key))
        .map(|body| body == b"second"[..]);
    let overwrite = verdict(overwritten)?;
    let if_absent = if_absent_verdict(&scratch)?;
    let if_match = if_match_verdict(&scratch)?;
    let deleted = bucket.delete(&key).and_then(|()| bucket.delete(&key)).and_then(|()| match bucket.head(&key) {
        Err(error) if error.is_not_found() => Ok(true),
        result => result.map(|_| false),
    });
    let delete = verdict(deleted)?;
    Ok(Capabilities { get, range, list_after_write, overwrite, delete, if_absent, if_match, clock_ahead_seconds })
}

/// The objects of one probe, removed at its end.
struct Scratch<'a> {
    bucket: &'a dyn Bucket,
    base: String,
}

const NAMES: [&str; 4] = ["a", "ab", "absent", "match"];

impl Scratch<'_> {
    fn key(&self, name: &str) -> String {
        assert!(NAMES.contains(&name), "only these are removed");
        format!("{}-{name}", self.base)
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        for name in NAMES {
            // A store that cannot delete has been told so by the verdict; an unreachable one has failed the probe.
            let _ = self.bucket.delete(&self.key(name));
        }
    }
}

/// Errors that say nothing about the ability stay errors.
fn verdict(did_right: Result<bool, BucketError>) -> Result<Verdict, BucketError> {
    match did_right {
        Ok(true) => Ok(Verdict::Works),
        Ok(false) => Ok(Verdict::Wrong),
        Err(error) => match error.kind() {
            ErrorKind::Unsupported | ErrorKind::AccessDenied => Ok(Verdict::Refused),
            ErrorKind::NotFound | ErrorKind::RangeNotSatisfiable | ErrorKind::PreconditionFailed => Ok(Verdict::Wrong),
            _ => Err(error),
        },
    }
}

fn range_verdict(bucket: &dyn Bucket, key: &str) -> Result<Verdict, BucketError> {
    match verdict(bucket.get_range(key, 3, 4).map(|body| body == b"st b"[..]))? {
        Verdict::Works => match bucket.get_range(key, 6, 5) {
            Err(error) if error.kind() == ErrorKind::RangeNotSatisfiable => Ok(Verdict::Works),
            result => verdict(result.map(|_| false)),
        },
        other => Ok(other),
    }
}

fn list_verdict(scratch: &Scratch<'_>, key: &str, started: SystemTime) -> Result<(Verdict, i64), BucketError> {
    let longer = scratch.key("ab");
    scratch.bucket.put(&longer, &[b"x"], &PutOptions::default())?;
    let mut found = Vec::new();
    let listed = scratch.bucket.list(&longer, &mut |object| {
        found.push((object.key, object.len_bytes));
        ControlFlow::Continue(())
    });
    let right = found == [(longer, 1)];
    let (mut shown, mut modified) = (0, started);
    let listed = listed.and_then(|()| {
        scratch.bucket.list(key, &mut |object| {
            if object.key == key && object.len_bytes == 10 {
                shown += 1;
                modified = object.modified;
            }
            ControlFlow::Continue(())
        })
    });
    let ahead = match modified.duration_since(started) {
        Ok(ahead) => i64::try_from(ahead.as_secs()).unwrap_or(i64::MAX),
        Err(behind) => i64::try_from(behind.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
    };
    Ok((verdict(listed.map(|()| right && shown == 1))?, ahead))
}

fn if_absent_verdict(scratch: &Scratch<'_>) -> Result<Verdict, BucketError> {
    let key = scratch.key("absent");
    let bucket = scratch.bucket;
    match verdict(bucket.put(&key, &[b"first"], &PutOptions::if_absent()).map(|_| true))? {
        Verdict::Works => refused(bucket, &key, PutCondition::IfAbsent),
        other => Ok(other),
    }
}

fn if_match_verdict(scratch: &Scratch<'_>) -> Result<Verdict, BucketError> {
    let key = scratch.key("match");
    let bucket = scratch.bucket;
    let Some(stale) = bucket.put(&key, &[b"zeroth"], &PutOptions::default())?.etag else {
        return Ok(Verdict::Refused);
    };
    let Some(etag) = bucket.put(&key, &[b"start"], &PutOptions::default())?.etag else {
        return Ok(Verdict::Refused);
    };
    let matching = PutOptions { condition: Some(PutCondition::IfMatch(etag)), ..PutOptions::default() };
    match verdict(bucket.put(&key, &[b"first"], &matching).map(|_| true))? {
        Verdict::Works => refused(bucket, &key, PutCondition::IfMatch(stale)),
        other => Ok(other),
    }
}

/// Whether a put on a condition that does not hold is refused and leaves `first` in place.
fn refused(bucket: &dyn Bucket, key: &str, condition: PutCondition) -> Result<Verdict, BucketError> {
    let options = PutOptions { condition: Some(condition), ..PutOptions::default() };
    match bucket.put(key, &[b"second"], &options) {
        Err(error) if error.kind() == ErrorKind::PreconditionFailed => {
            verdict(bucket.get(key).map(|body| body == b"first"[..]))
        }
        result => verdict(result.map(|_| false)),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Fault, Faulty, Memory, ObjectMeta, PutOutcome};

    /// A store that takes conditional requests and ignores the condition, as some do.
    struct Careless(Memory);

    impl Bucket for Careless {
        fn put(&self, key: &str, body: &[&[u8]], _: &PutOptions) -> Result<PutOutcome, BucketError> {
            self.0.put(key, body, &PutOptions::default())
        }
        fn get(&self, key: &str) -> Result<Bytes, BucketError> {
            self.0.get(key)
        }
        fn get_range(&self, key: &str, offset_bytes: u64, _: u64) -> Result<Bytes, BucketError> {
            Ok(self.0.get(key)?.slice(offset_bytes as usize..))
        }
        fn list(&self, prefix: &str, visit: &mut dyn FnMut(ObjectMeta) -> ControlFlow<()>) -> Result<(), BucketError> {
            self.0.list(prefix, visit)
        }
        fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
            self.0.head(key)
        }
        fn delete(&self, key: &str) -> Result<(), BucketError> {
            self.0.delete(key)
        }
        fn display_name(&self) -> String {
            "careless".into()
        }
    }

    fn count(bucket: &dyn Bucket) -> usize {
        let mut count = 0;
        bucket
            .list("", &mut |_| {
                count += 1;
                ControlFlow::Continue(())
            })
            .unwrap();
        count
    }

    #[test]
    fn a_good_store_passes_and_is_left_clean() {
        let bucket = Memory::new();
        let found = probe(&bucket, "scratch/").unwrap();
        let Capabilities { if_absent, if_match, clock_ahead_seconds, .. } = found;
        assert_eq!((if_absent, if_match), (Verdict::Works, Verdict::Works));
        assert_eq!(found.missing_essentials(), [""; 0]);
        assert!(clock_ahead_seconds.abs() <= 1);
        assert_eq!(count(&bucket), 0);
    }

    #[test]
    fn ignored_conditions_are_seen() {
        let bucket = Careless(Memory::new());
        let found = probe(&bucket, "").unwrap();
        assert_eq!((found.if_absent, found.if_match), (Verdict::Wrong, Verdict::Wrong));
        assert_eq!(found.missing_essentials(), ["range"]);
        assert_eq!(count(&bucket), 0);
    }

    #[test]
    fn a_store_that_fails_midway_is_left_clean() {
        let calls = {
            let bucket = Faulty::new(Memory::new());
            probe(&bucket, "").unwrap();
            bucket.tally().total_calls() - NAMES.len() as u64
        };
        for failing in 0..calls {
            for fault in [Fault::FailBefore(ErrorKind::Unreachable), Fault::FailAfter(ErrorKind::Unreachable)] {
                let bucket =
                    Faulty::with_script(
                        Memory::new(),
                        move |call| {
                            if call.number == failing { fault } else { Fault::Pass }
                        },
                    );
                let result = probe(&bucket, "scratch/");
                assert_eq!(count(bucket.inner()), 0, "call {failing}: {fault:?}");
                if let Fault::FailBefore(kind) = fault {
                    assert_eq!(result.unwrap_err().kind(), kind, "call {failing}");
                }
            }
        }
    }
}

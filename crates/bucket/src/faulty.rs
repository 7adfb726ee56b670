//! A bucket that counts its calls and goes wrong on command, for tests.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::{Bucket, BucketError, ErrorKind, ObjectMeta, Operation, PutOptions, PutOutcome};

/// Passes calls on to `B`, counting them, and lets a script decide what goes wrong.
///
/// Without a script it only counts. A test of every crash point runs once to see how many calls there are
/// ([`Tally::total_calls`]), then once per call with [`crash_at`](Self::crash_at); [`revive`](Self::revive) then
/// lets it look at what is left.
pub struct Faulty<B> {
    inner: B,
    state: Mutex<State>,
}

type Script = Box<dyn FnMut(&Call<'_>) -> Fault + Send>;

struct State {
    script: Option<Script>,
    calls: u64,
    crashed: bool,
    tally: Tally,
}

/// A call as the script sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// Counts all calls on this bucket from 0, failed ones too.
    pub number: u64,
    /// Which call.
    pub operation: Operation,
    /// Its key, or the prefix of a listing.
    pub key: &'a str,
    /// Bytes to put, or length of the range wanted; 0 for all other calls.
    pub len_bytes: u64,
}

/// What happens to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It works.
    Pass,
    /// It fails and nothing was done.
    FailBefore(ErrorKind),
    /// It is done, but the answer is lost. A listing shows everything before it fails.
    FailAfter(ErrorKind),
    /// A get answers with only this many bytes, as if that were all. A listing shows this many objects and then
    /// fails. A put stores nothing and fails, for no store keeps half a body. Other calls pass.
    Cut(u64),
    /// A get answers with this bit flipped (counted from bit 0 of byte 0, modulo the length). Other calls pass.
    FlipBit(u64),
    /// It works after a pause.
    Delay(Duration),
    /// The machine dies before this call is done: it and every later call fail.
    CrashBefore,
    /// The machine dies just after this call was done: it and every later call fail.
    CrashAfter,
}

/// What a [`Faulty`] has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    calls: BTreeMap<Operation, u64>,
    /// Body bytes of puts that reached the store and were stored.
    pub put_bytes: u64,
    /// Body bytes that gets of both kinds brought back.
    pub got_bytes: u64,
}

impl Tally {
    /// How many calls of this kind were made, failed ones included.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.calls.get(&operation).copied().unwrap_or(0)
    }

    /// How many calls were made in all.
    pub fn total_calls(&self) -> u64 {
        self.calls.values().sum()
    }
}

impl<B: Bucket> Faulty<B> {
    /// Counts, and passes everything.
    pub fn new(inner: B) -> Self {
        let state = State { script: None, calls: 0, crashed: false, tally: Tally::default() };
        Self { inner, state: Mutex::new(state) }
    }

    /// Asks `script` before every call. It runs under a lock and must not call the bucket.
    pub fn with_script(inner: B, script: impl FnMut(&Call<'_>) -> Fault + Send + 'static) -> Self {
        let faulty = Self::new(inner);
        faulty.set_script(script);
        faulty
    }

    /// Crashes at the call with this number, before it is done.
    pub fn crash_at(inner: B, number: u64) -> Self {
        Self::with_script(inner, move |call| if call.number == number { Fault::CrashBefore } else { Fault::Pass })
    }

    /// Replaces the script.
    pub fn set_script(&self, script: impl FnMut(&Call<'_>) -> Fault + Send + 'static) {
        self.lock().script = Some(Box::new(script));
    }

    /// Ends a crash and removes the script: everything passes from now on.
    pub fn revive(&self) {
        let mut state = self.lock();
        state.crashed = false;
        state.script = None;
    }

    /// Whether a crash has happened and not been ended.
    pub fn has_crashed(&self) -> bool {
        self.lock().crashed
    }

    /// What was counted so far.
    pub fn tally(&self) -> Tally {
        self.lock().tally.clone()
    }

    /// Starts counting at zero again; call numbers go on.
    pub fn reset_tally(&self) {
        self.lock().tally = Tally::default();
    }

    /// The bucket underneath, not counted and never failing on command.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A script that panicked has failed its test already; the counters are still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call and asks the script. The pause is made here, outside the lock.
    fn enter(&self, operation: Operation, key: &str, len_bytes: u64) -> Result<Fault, BucketError> {
        let fault = {
            let mut state = self.lock();
            let call = Call { number: state.calls, operation, key, len_bytes };
            state.calls += 1;
            *state.tally.calls.entry(operation).or_default() += 1;
            if state.crashed {
                return Err(self.crash_error(operation, key));
            }
            let fault = state.script.as_mut().map_or(Fault::Pass, |script| script(&call));
            state.crashed = matches!(fault, Fault::CrashBefore | Fault::CrashAfter);
            fault
        };
        match fault {
            Fault::FailBefore(kind) => Err(self.error(kind, operation, key, "made to fail before it was done")),
            Fault::CrashBefore => Err(self.crash_error(operation, key)),
            Fault::Delay(pause) => {
                std::thread::sleep(pause);
                Ok(fault)
            }
            _ => Ok(fault),
        }
    }

    /// Loses the answer of a call that was done, if the script said so.
    fn leave<T>(&self, fault: Fault, operation: Operation, key: &str, answer: T) -> Result<T, BucketError> {
        match fault {
            Fault::FailAfter(kind) => Err(self.error(kind, operation, key, "made to fail after it was done")),
            Fault::CrashAfter => Err(self.crash_error(operation, key)),
            _ => Ok(answer),
        }
    }

    fn leave_get(&self, fault: Fault, operation: Operation, key: &str, body: Bytes) -> Result<Bytes, BucketError> {
        let body = match fault {
            Fault::Cut(len_bytes) => body.slice(..body.len().min(usize::try_from(len_bytes).unwrap_or(usize::MAX))),
            Fault::FlipBit(bit) if !body.is_empty() => {
                let mut flipped = body.to_vec();
                let bit = bit % (flipped.len() as u64 * 8);
                flipped[(bit / 8) as usize] ^= 1 << (bit % 8);
                flipped.into()
            }
            _ => body,
        };
        self.lock().tally.got_bytes += body.len() as u64;
        self.leave(fault, operation, key, body)
    }

    fn error(&self, kind: ErrorKind, operation: Operation, key: &str, problem: &str) -> BucketError {
        BucketError::new(kind, operation, key, self.display_name(), problem)
    }

    fn crash_error(&self, operation: Operation, key: &str) -> BucketError {
        // Not `Unreachable`: nothing that a dead machine was doing is tried again.
        self.error(ErrorKind::Other, operation, key, "crashed on command")
    }
}

impl<B: Bucket> Bucket for Faulty<B> {
    fn put(&self, key: &str, body: &[&[u8]], options: &PutOptions) -> Result<PutOutcome, BucketError> {
        let len_bytes = body.iter().map(|piece| piece.len() as u64).sum();
        let fault = self.enter(Operation::Put, key, len_bytes)?;
        if let Fault::Cut(_) = fault {
            return Err(self.error(ErrorKind::Unreachable, Operation::Put, key, "made to lose the body on its way"));
        }
        let outcome = self.inner.put(key, body, options)?;
        self.lock().tally.put_bytes += len_bytes;
        self.leave(fault, Operation::Put, key, outcome)
    }

    fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        let fault = self.enter(Operation::Get, key, 0)?;
        self.leave_get(fault, Operation::Get, key, self.inner.get(key)?)
    }

    fn get_range(&self, key: &str, offset_bytes: u64, len_bytes: u64) -> Result<Bytes, BucketError> {
        let fault = self.enter(Operation::GetRange, key, len_bytes)?;
        self.leave_get(fault, Operation::GetRange, key, self.inner.get_range(key, offset_bytes, len_bytes)?)
    }

    fn list(&self, prefix: &str, visit: &mut dyn FnMut(ObjectMeta) -> ControlFlow<()>) -> Result<(), BucketError> {
        let fault = self.enter(Operation::List, prefix, 0)?;
        let mut left = if let Fault::Cut(objects) = fault { objects } else { u64::MAX };
        let mut cut = false;
        self.inner.list(prefix, &mut |object| {
            if left == 0 {
                cut = true;
                return ControlFlow::Break(());
            }
            left -= 1;
            visit(object)
        })?;
        if cut {
            return Err(self.error(ErrorKind::Unreachable, Operation::List, prefix, "made to fail midway"));
        }
        self.leave(fault, Operation::List, prefix, ())
    }

    fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        let fault = self.enter(Operation::Head, key, 0)?;
        self.leave(fault, Operation::Head, key, self.inner.head(key)?)
    }

    fn delete(&self, key: &str) -> Result<(), BucketError> {
        let fault = self.enter(Operation::Delete, key, 0)?;
        self.inner.delete(key)?;
        self.leave(fault, Operation::Delete, key, ())
    }

    fn display_name(&self) -> String {
        self.inner.display_name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;

    fn put(bucket: &dyn Bucket, key: &str) -> Result<PutOutcome, BucketError> {
        bucket.put(key, &[b"ab", b"", b"cd"], &PutOptions::default())
    }

    #[test]
    fn every_fault_does_what_it_says() {
        let cases: [(Fault, Option<ErrorKind>, bool); 7] = [
            (Fault::Pass, None, true),
            (Fault::FailBefore(ErrorKind::AccessDenied), Some(ErrorKind::AccessDenied), false),
            (Fault::FailAfter(ErrorKind::Unreachable), Some(ErrorKind::Unreachable), true),
            (Fault::Cut(2), Some(ErrorKind::Unreachable), false),
            (Fault::Delay(Duration::from_millis(1)), None, true),
            (Fault::CrashBefore, Some(ErrorKind::Other), false),
            (Fault::CrashAfter, Some(ErrorKind::Other), true),
        ];
        for (fault, error, stored) in cases {
            let bucket = Faulty::with_script(Memory::new(), move |_| fault);
            assert_eq!(put(&bucket, "k").err().map(|e| e.kind()), error, "{fault:?}");
            assert_eq!(bucket.inner().get("k").is_ok(), stored, "{fault:?}");
            let crashed = matches!(fault, Fault::CrashBefore | Fault::CrashAfter);
            assert_eq!(bucket.has_crashed(), crashed, "{fault:?}");
            if crashed {
                bucket.set_script(|_| Fault::Pass);
                assert!(bucket.head("k").is_err(), "{fault:?}: dead until revived");
                bucket.revive();
                assert_eq!(bucket.head("k").is_ok(), stored, "{fault:?}: revived");
            }
        }
    }

    #[test]
    fn bodies_are_cut_and_flipped() {
        let bucket = Faulty::new(Memory::new());
        put(&bucket, "k").unwrap();
        for (fault, body) in [
            (Fault::Cut(3), &b"abc"[..]),
            (Fault::Cut(9), b"abcd"),
            (Fault::FlipBit(0), b"`bcd"),
            (Fault::FlipBit(8 * 4 + 9), b"a`cd"),
        ] {
            bucket.set_script(move |_| fault);
            assert_eq!(bucket.get("k").unwrap(), body, "{fault:?}");
            assert_eq!(bucket.get_range("k", 0, 4).unwrap(), body, "{fault:?}");
        }
    }

    #[test]
    fn a_cut_listing_shows_some_and_fails() {
        let bucket = Faulty::new(Memory::new());
        for key in ["a", "b", "c"] {
            put(&bucket, key).unwrap();
        }
        for (objects, shown, fails) in [(0, 0, true), (2, 2, true), (3, 3, false)] {
            bucket.set_script(move |_| Fault::Cut(objects));
            let mut seen = 0;
            let result = bucket.list("", &mut |_| {
                seen += 1;
                ControlFlow::Continue(())
            });
            assert_eq!((seen, result.is_err()), (shown, fails), "cut at {objects}");
        }
    }

    #[test]
    fn calls_and_bytes_are_counted() {
        let bucket = Faulty::with_script(Memory::new(), |call| match call.number {
            1 => Fault::FailBefore(ErrorKind::Unreachable),
            _ => Fault::Pass,
        });
        put(&bucket, "a").unwrap();
        put(&bucket, "b").unwrap_err();
        bucket.get("a").unwrap();
        bucket.get_range("a", 1, 2).unwrap();
        bucket.delete("a").unwrap();
        let tally = bucket.tally();
        assert_eq!((tally.calls(Operation::Put), tally.calls(Operation::List), tally.total_calls()), (2, 0, 5));
        assert_eq!((tally.put_bytes, tally.got_bytes), (4, 6));
        bucket.reset_tally();
        assert_eq!(bucket.tally(), Tally::default());
    }
}

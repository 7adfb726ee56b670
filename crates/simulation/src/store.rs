//! The store: objects in memory, stamped with the world's time.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bucket::{Bucket, BucketError, ErrorKind, Memory, ObjectMeta, Operation, PutOptions, PutOutcome};
use bytes::Bytes;

use crate::border::Border;

type Now = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// [`Memory`] whose objects are as old as the world says, not as the machine says.
pub(crate) struct Stamped {
    inner: Memory,
    now: Now,
    written: Mutex<BTreeMap<String, SystemTime>>,
}

impl Stamped {
    pub(crate) fn new(now: Now) -> Self {
        Self { inner: Memory::new(), now, written: Mutex::default() }
    }

    /// A store that begins with the objects of another.
    pub(crate) fn copy_of(from: &dyn Bucket, now: Now) -> Self {
        let copy = Self::new(now);
        let mut keys = Vec::new();
        from.list("", &mut |object| {
            keys.push(object.key);
            ControlFlow::Continue(())
        })
        .expect("memory lists");
        for key in keys {
            let body = from.get(&key).expect("it was listed");
            copy.put(&key, &[&body], &PutOptions::default()).expect("memory takes everything");
        }
        copy
    }

    fn stamped(&self, object: ObjectMeta) -> ObjectMeta {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        ObjectMeta { modified: written.get(&object.key).copied().unwrap_or(object.modified), ..object }
    }
}

impl Bucket for Stamped {
    fn put(&self, key: &str, body: &[&[u8]], options: &PutOptions) -> Result<PutOutcome, BucketError> {
        let outcome = self.inner.put(key, body, options)?;
        self.written.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), (self.now)());
        Ok(outcome)
    }

    fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.inner.get(key)
    }

    fn get_range(&self, key: &str, offset_bytes: u64, len_bytes: u64) -> Result<Bytes, BucketError> {
        self.inner.get_range(key, offset_bytes, len_bytes)
    }

    fn list(&self, prefix: &str, visit: &mut dyn FnMut(ObjectMeta) -> ControlFlow<()>) -> Result<(), BucketError> {
        self.inner.list(prefix, &mut |object| visit(self.stamped(object)))
    }

    fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        Ok(self.stamped(self.inner.head(key)?))
    }

    fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.inner.delete(key)
    }

    fn display_name(&self) -> String {
        "memory".into()
    }
}

/// The store as the agent reaches it: every request crosses the border.
pub(crate) struct Reached {
    pub(crate) inner: Arc<dyn Bucket>,
    pub(crate) border: Arc<Border>,
}

impl Reached {
    fn cross<T>(
        &self,
        operation: Operation,
        key: &str,
        request: impl FnOnce() -> Result<T, BucketError>,
    ) -> Result<T, BucketError> {
        if self.border.is_dead() {
            // What unwinds from a dead agent reaches nothing any more.
            let problem = "the agent is dead";
            return Err(BucketError::new(ErrorKind::Other, operation, key, self.display_name(), problem));
        }
        self.border.around(&format!("{operation:?} {key}"), &format!("store {operation:?}"), request)
    }
}

impl Bucket for Reached {
    fn put(&self, key: &str, body: &[&[u8]], options: &PutOptions) -> Result<PutOutcome, BucketError> {
        self.cross(Operation::Put, key, || self.inner.put(key, body, options))
    }

    fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.cross(Operation::Get, key, || self.inner.get(key))
    }

    fn get_range(&self, key: &str, offset_bytes: u64, len_bytes: u64) -> Result<Bytes, BucketError> {
        self.cross(Operation::GetRange, key, || self.inner.get_range(key, offset_bytes, len_bytes))
    }

    fn list(&self, prefix: &str, visit: &mut dyn FnMut(ObjectMeta) -> ControlFlow<()>) -> Result<(), BucketError> {
        self.cross(Operation::List, prefix, || self.inner.list(prefix, visit))
    }

    fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.cross(Operation::Head, key, || self.inner.head(key))
    }

    fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.cross(Operation::Delete, key, || self.inner.delete(key))
    }

    fn display_name(&self) -> String {
        self.inner.display_name()
    }
}

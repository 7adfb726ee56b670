//! A bucket in memory: the double that whole suites stand on.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Mutex;
use std::time::SystemTime;

use bytes::Bytes;

use crate::{Bucket, BucketError, ErrorKind, ObjectMeta, Operation, PutCondition, PutOptions, PutOutcome, check_key};

/// Objects in a map. Honours conditions; refuses retention.
#[derive(Default)]
pub struct Memory {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Stored>,
    last_etag: u64,
}

struct Stored {
    body: Bytes,
    modified: SystemTime,
    etag: u64,
}

impl Memory {
    /// An empty bucket.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Every change is a single insert or remove, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn error(&self, kind: ErrorKind, operation: Operation, key: &str, problem: &str) -> BucketError {
        BucketError::new(kind, operation, key, self.display_name(), problem)
    }

    fn check(&self, operation: Operation, key: &str) -> Result<(), BucketError> {
        match check_key(key) {
            Some(problem) => Err(self.error(ErrorKind::Unsupported, operation, key, problem)),
            None => Ok(()),
        }
    }
}

impl Bucket for Memory {
    fn put(&self, key: &str, body: &[&[u8]], options: &PutOptions) -> Result<PutOutcome, BucketError> {
        self.check(Operation::Put, key)?;
        if options.retention.is_some() {
            let problem = "memory has no object lock";
            return Err(self.error(ErrorKind::Unsupported, Operation::Put, key, problem));
        }
        let body = Bytes::from(body.concat());
        let mut state = self.lock();
        let present = state.objects.get(key).map(|stored| stored.etag.to_string());
        let refused = match (&options.condition, &present) {
            (Some(PutCondition::IfAbsent), Some(_)) => Some("the object exists already"),
            (Some(PutCondition::IfMatch(_)), None) => Some("the object does not exist"),
            (Some(PutCondition::IfMatch(wanted)), Some(etag)) if wanted != etag => Some("the object has another etag"),
            _ => None,
        };
        if let Some(problem) = refused {
            return Err(self.error(ErrorKind::PreconditionFailed, Operation::Put, key, problem));
        }
        state.last_etag += 1;
        let etag = state.last_etag;
        state.objects.insert(key.to_owned(), Stored { body, modified: SystemTime::now(), etag });
        Ok(PutOutcome { etag: Some(etag.to_string()), version: None })
    }

    fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.check(Operation::Get, key)?;
        match self.lock().objects.get(key) {
            Some(stored) => Ok(stored.body.clone()),
            None => Err(self.error(ErrorKind::NotFound, Operation::Get, key, "no such object")),
        }
    }

    fn get_range(&self, key: &str, offset_bytes: u64, len_bytes: u64) -> Result<Bytes, BucketError> {
        self.check(Operation::GetRange, key)?;
        let state = self.lock();
        let Some(stored) = state.objects.get(key) else {
            return Err(self.error(ErrorKind::NotFound, Operation::GetRange, key, "no such object"));
        };
        let len_total_bytes = stored.body.len() as u64;
        match offset_bytes.checked_add(len_bytes) {
            // Both ends are at most the length of a slice, so they fit in usize.
            Some(end_bytes) if end_bytes <= len_total_bytes => {
                Ok(stored.body.slice(offset_bytes as usize..end_bytes as usize))
            }
            _ => {
                let problem = format!("{len_bytes} bytes at {offset_bytes} of {len_total_bytes}");
                Err(self.error(ErrorKind::RangeNotSatisfiable, Operation::GetRange, key, &problem))
            }
        }
    }

    fn list(&self, prefix: &str, visit: &mut dyn FnMut(ObjectMeta) -> ControlFlow<()>) -> Result<(), BucketError> {
        // Collected first: `visit` may call back into this bucket.
        let found: Vec<ObjectMeta> = self
            .lock()
            .objects
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, stored)| meta(key, stored))
            .collect();
        for object in found {
            if visit(object).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.check(Operation::Head, key)?;
        match self.lock().objects.get(key) {
            Some(stored) => Ok(meta(key, stored)),
            None => Err(self.error(ErrorKind::NotFound, Operation::Head, key, "no such object")),
        }
    }

    fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.check(Operation::Delete, key)?;
        self.lock().objects.remove(key);
        Ok(())
    }

    fn display_name(&self) -> String {
        "memory".into()
    }
}

fn meta(key: &str, stored: &Stored) -> ObjectMeta {
    ObjectMeta {
        key: key.to_owned(),
        len_bytes: stored.body.len() as u64,
        modified: stored.modified,
        etag: Some(stored.etag.to_string()),
    }
}

//! The trait every object store implements.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::BucketError;

/// A flat store of objects under text keys; calls may run concurrently from any number of threads.
///
/// What every implementation promises:
///
/// * A put creates or replaces the whole object; no reader and no listing ever sees part of a body.
///   When it has returned, the object survives power loss.
/// * A finished put is seen by every later get, head and list.
/// * "Missing" ([`ErrorKind::NotFound`](crate::ErrorKind::NotFound)) is never confused with "could not tell".
///
/// A key is 1 to 1,024 bytes of UTF-8, its components separated by `/`; empty, `.` and `..` components,
/// backslashes and control characters are refused as [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported),
/// because stores disagree about them. See [`check_key`](crate::check_key).
pub trait Bucket: Send + Sync {
    /// Creates or replaces the object with the concatenation of `body`; the pieces are sent in order without
    /// being joined in memory.
    ///
    /// An error other than `PreconditionFailed` leaves it open whether the object was stored: the answer may have
    /// been lost after the store had acted.
    fn put(&self, key: &str, body: &[&[u8]], options: &PutOptions) -> Result<PutOutcome, BucketError>;

    /// Returns the whole object.
    fn get(&self, key: &str) -> Result<Bytes, BucketError>;

    /// Returns exactly `len_bytes` bytes from `offset_bytes` on.
    ///
    /// A range that reaches past the end is `RangeNotSatisfiable`, never a short answer. An empty range must lie
    /// within the object too (its end included), and a missing object is `NotFound` even then.
    fn get_range(&self, key: &str, offset_bytes: u64, len_bytes: u64) -> Result<Bytes, BucketError>;

    /// Shows `visit` every object whose key starts with `prefix`, in no particular order, until it breaks.
    ///
    /// `prefix` is bytes of a key, not a folder: `"p1"` finds `p10` and `p1/x`. An object that is put or deleted
    /// meanwhile may or may not be shown; all others are shown exactly once.
    fn list(&self, prefix: &str, visit: &mut dyn FnMut(ObjectMeta) -> ControlFlow<()>) -> Result<(), BucketError>;

    /// Returns what a listing would say of this one object.
    fn head(&self, key: &str) -> Result<ObjectMeta, BucketError>;

    /// Removes the object; a missing one is success.
    fn delete(&self, key: &str) -> Result<(), BucketError>;

    /// Where this is, for messages and logs. Holds no secrets.
    fn display_name(&self) -> String;
}

/// What a listing tells of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Full key, as the other calls take it.
    pub key: String,
    /// Length of the body.
    pub len_bytes: u64,
    /// When the store says it was last written: the store's clock, often in whole seconds.
    pub modified: SystemTime,
    /// Identity of this version of the body where the store has one, as [`PutCondition::IfMatch`] takes it.
    /// Not a checksum.
    pub etag: Option<String>,
}

/// How to put an object. The default replaces without condition, lock or type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// Put only if this holds, decided by the store atomically with the write.
    pub condition: Option<PutCondition>,
    /// Keep the store from deleting or replacing this version. Refused as `Unsupported` where it cannot be done.
    pub retention: Option<ObjectLock>,
    /// `Content-Type`; stores without one ignore it.
    pub content_type: Option<String>,
    /// Storage class by the store's own name, such as `STANDARD_IA`; stores without classes ignore it.
    pub storage_class: Option<String>,
}

impl PutOptions {
    /// Put only if no object has the key yet.
    pub fn if_absent() -> Self {
        Self { condition: Some(PutCondition::IfAbsent), ..Self::default() }
    }
}

/// What must hold for a put to happen; otherwise it fails with
/// [`ErrorKind::PreconditionFailed`](crate::ErrorKind::PreconditionFailed) and changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutCondition {
    /// No object has this key. Of any number of racing puts exactly one wins.
    IfAbsent,
    /// The object exists and has this etag, as a put, head or listing returned it.
    IfMatch(String),
}

/// Retention of one object version (S3 object lock). Needs a bucket created with object lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectLock {
    /// Who may lift it early.
    pub mode: LockMode,
    /// Until when the version can be neither deleted nor replaced; sent in whole seconds.
    pub retain_until: SystemTime,
}

/// Who may lift an object lock before its date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Accounts with a special permission.
    Governance,
    /// Nobody.
    Compliance,
}

impl fmt::Display for LockMode {
    /// As S3 spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LockMode::Governance => "GOVERNANCE",
            LockMode::Compliance => "COMPLIANCE",
        })
    }
}

/// What the store said of a finished put.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutOutcome {
    /// Identity of the body just written, if the store gives one.
    pub etag: Option<String>,
    /// Version id, if the bucket keeps versions.
    pub version: Option<String>,
}

impl<B: Bucket + ?Sized> Bucket for Arc<B> {
    fn put(&self, key: &str, body: &[&[u8]], options: &PutOptions) -> Result<PutOutcome, BucketError> {
        (**self).put(key, body, options)
    }
    fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        (**self).get(key)
    }
    fn get_range(&self, key: &str, offset_bytes: u64, len_bytes: u64) -> Result<Bytes, BucketError> {
        (**self).get_range(key, offset_bytes, len_bytes)
    }
    fn list(&self, prefix: &str, visit: &mut dyn FnMut(ObjectMeta) -> ControlFlow<()>) -> Result<(), BucketError> {
        (**self).list(prefix, visit)
    }
    fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        (**self).head(key)
    }
    fn delete(&self, key: &str) -> Result<(), BucketError> {
        (**self).delete(key)
    }
    fn display_name(&self) -> String {
        (**self).display_name()
    }
}

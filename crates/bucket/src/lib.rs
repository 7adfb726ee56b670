//! Object stores behind one synchronous trait.
//!
//! A [`Bucket`] keeps whole objects under text keys: put, get, get a range, list by prefix, look up, delete. There is
//! one on [`S3`], one in a [`Folder`], and one in [`Memory`]; callers that want several requests at once use threads.
//! [`parse_url`] reads where a bucket is, and [`open`] makes it ready:
//!
//! ```
//! use std::ops::ControlFlow;
//! use bucket::{PutOptions, RetryPolicy, S3Environment, create, parse_url};
//!
//! # let dir = tempfile::tempdir()?;
//! # let url = dir.path().join("store").display().to_string();
//! // `s3://bucket/prefix/?endpoint=https://host` works the same, with the usual AWS variables set.
//! let store = create(&parse_url(&url)?, &S3Environment::from_process(), RetryPolicy::default())?;
//! store.put("p/1", &[b"pieces are ", b"not joined"], &PutOptions::default())?;
//! store.put("lock", &[b"mine"], &PutOptions::if_absent())?;
//! assert_eq!(store.get_range("p/1", 7, 3)?, b"are"[..]);
//! store.list("p/", &mut |object| {
//!     println!("{} has {} bytes", object.key, object.len_bytes);
//!     ControlFlow::Continue(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Errors say what was attempted, on which key of which store; [`BucketError::kind`] says what a caller can do about
//! it. Implementations make every request once. [`Retrying`] makes it again, and [`open`] puts that around S3.
//! Services differ in what they honour: [`probe`] tries it out. For tests, [`Faulty`] counts calls and bytes and goes
//! wrong on command; with the feature `test-support` there are also `conformance`, the suite that every implementation
//! runs, and `test_support`, a real S3 server to run it against.
//!
//! Not here: multipart uploads (an object is one request of at most 5 GiB), reading or deleting old versions,
//! extending locks, encryption, and any knowledge of what the objects are.
//!
//! Read `bucket.rs` and `error.rs`, then `folder.rs` and `s3/mod.rs`, then `retry.rs`.

mod bucket;
mod error;
mod key;

mod folder;
mod memory;
mod s3;

mod location;
mod network;
mod probe;
mod random;
mod rate;
mod retry;

#[cfg(feature = "test-support")]
pub mod conformance;
mod faulty;
#[cfg(feature = "test-support")]
pub mod test_support;

pub use bucket::{Bucket, LockMode, ObjectLock, ObjectMeta, PutCondition, PutOptions, PutOutcome};
pub use error::{BucketError, ErrorKind, Operation};
pub use key::{MAX_KEY_BYTES, check_key};

pub use folder::Folder;
pub use memory::Memory;
pub use s3::{Addressing, Credentials, S3, S3Environment, S3Options, S3OptionsError};

pub use location::{Location, OpenError, S3Location, UrlError, create, open, parse_url};
pub use network::{JudgingResolver, Network};
pub use probe::{Capabilities, Verdict, probe};
pub use rate::{Limiters, Rate, RateLimiter, Throttled};
pub use retry::{Clock, RetryPolicy, Retrying, SystemClock};

pub use faulty::{Call, Fault, Faulty, Tally};

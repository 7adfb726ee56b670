//! Hooks for crash tests; they exist only with a `lab:` host and are set by the environment.
//!
//! * `E3_LAB_KILL_AT=seam:N` or `bucket:N`, optionally with `:before` (the default) or `:after`: the process kills itself
//!   (SIGKILL) at the call with this number, counted from 0, before it reaches the host or the store, or when it is done
//!   and the caller does not know yet. Seam calls are those of the simulated host, bucket calls those on the
//!   repository's store.
//! * `E3_LAB_COUNT_FILE=PATH`: when the command ends by itself, the numbers of calls are written there:
//!   `{"seam":123,"bucket":45}`. A test runs once for the numbers, and then once per call.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bucket::{Bucket, BucketError, ObjectMeta, PutOptions, PutOutcome};
use bytes::Bytes;
use hyperv::seam::Seam;
use hyperv_sim::{CallPhase, CountingSeam};

use crate::failure::{Attempt as _, Code, Failure};

/// Which border a call crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Border {
    Seam,
    Bucket,
}

/// When the process kills itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KillAt {
    border: Border,
    number: u64,
    phase: CallPhase,
}

/// What the environment asks for.
#[derive(Debug)]
pub struct LabHooks {
    kill_at: Option<KillAt>,
    count_file: Option<PathBuf>,
    seam_calls: Arc<AtomicU64>,
    bucket_calls: Arc<AtomicU64>,
}

impl LabHooks {
    /// Reads the environment.
    pub fn from_environment() -> Result<Self, Failure> {
        let kill_at = match std::env::var("E3_LAB_KILL_AT") {
            Ok(text) if !text.is_empty() => Some(parse(&text).ok_or_else(|| {
                let why = format!("{text:?} is not seam:N or bucket:N, with :before or :after");
                Failure::new("read E3_LAB_KILL_AT", "", Code::Usage, why)
            })?),
            _ => None,
        };
        let count_file = std::env::var_os("E3_LAB_COUNT_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
        Ok(Self { kill_at, count_file, seam_calls: Arc::default(), bucket_calls: Arc::default() })
    }

    /// The seam with hooks, if there is anything to hook for.
    pub fn wrap_seam(&self, seam: Seam) -> Seam {
        if !self.is_wanted() {
            return seam;
        }
        let (kill_at, calls) = (self.kill_at, self.seam_calls.clone());
        let (seam, _) = CountingSeam::wrap(seam, move |call| {
            calls.fetch_max(call.number + 1, Ordering::Relaxed);
            kill_if(kill_at, KillAt { border: Border::Seam, number: call.number, phase: call.phase });
        });
        seam
    }

    /// The bucket with hooks, if there is anything to hook for.
    pub fn wrap_bucket(&self, bucket: Arc<dyn Bucket>) -> Arc<dyn Bucket> {
        if !self.is_wanted() {
            return bucket;
        }
        Arc::new(HookedBucket { inner: bucket, kill_at: self.kill_at, calls: self.bucket_calls.clone() })
    }

    /// Writes the numbers of calls, if they are wanted.
    pub fn write_counts(&self) -> Result<(), Failure> {
        let Some(path) = &self.count_file else { return Ok(()) };
        let counts = serde_json::json!({
            "seam": self.seam_calls.load(Ordering::Relaxed),
            "bucket": self.bucket_calls.load(Ordering::Relaxed),
        });
        std::fs::write(path, format!("{counts}\n")).attempt("write the numbers of calls", path.display().to_string())
    }

    fn is_wanted(&self) -> bool {
        self.kill_at.is_some() || self.count_file.is_some()
    }
}

fn parse(text: &str) -> Option<KillAt> {
    let mut parts = text.split(':');
    let border = match parts.next()? {
        "seam" => Border::Seam,
        "bucket" => Border::Bucket,
        _ => return None,
    };
    let number = parts.next()?.parse().ok()?;
    let phase = match parts.next() {
        None | Some("before") => CallPhase::Before,
        Some("after") => CallPhase::After,
        Some(_) => return None,
    };
    parts.next().is_none().then_some(KillAt { border, number, phase })
}

fn kill_if(wanted: Option<KillAt>, now: KillAt) {
    if wanted == Some(now) {
        die();
    }
}

#[cfg(unix)]
fn die() -> ! {
    // A failed kill would let a test pass that proved nothing, so the end comes either way.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort()
}

#[cfg(not(unix))]
fn die() -> ! {
    std::process::abort()
}

struct HookedBucket {
    inner: Arc<dyn Bucket>,
    kill_at: Option<KillAt>,
    calls: Arc<AtomicU64>,
}

impl HookedBucket {
    fn around<R>(&self, call: impl FnOnce() -> R) -> R {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        kill_if(self.kill_at, KillAt { border: Border::Bucket, number, phase: CallPhase::Before });
        let result = call();
        kill_if(self.kill_at, KillAt { border: Border::Bucket, number, phase: CallPhase::After });
        result
    }
}

impl Bucket for HookedBucket {
    fn put(&self, key: &str, body: &[&[u8]], options: &PutOptions) -> Result<PutOutcome, BucketError> {
        self.around(|| self.inner.put(key, body, options))
    }
    fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        self.around(|| self.inner.get(key))
    }
    fn get_range(&self, key: &str, offset_bytes: u64, len_bytes: u64) -> Result<Bytes, BucketError> {
        self.around(|| self.inner.get_range(key, offset_bytes, len_bytes))
    }
    fn list(&self, prefix: &str, visit: &mut dyn FnMut(ObjectMeta) -> ControlFlow<()>) -> Result<(), BucketError> {
        self.around(|| self.inner.list(prefix, visit))
    }
    fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.around(|| self.inner.head(key))
    }
    fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.around(|| self.inner.delete(key))
    }
    fn display_name(&self) -> String {
        self.inner.display_name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        let at = |border, number, phase| Some(KillAt { border, number, phase });
        for (text, expected) in [
            ("seam:0", at(Border::Seam, 0, CallPhase::Before)),
            ("bucket:17:after", at(Border::Bucket, 17, CallPhase::After)),
            ("seam:3:before", at(Border::Seam, 3, CallPhase::Before)),
            ("seam", None),
            ("disk:1", None),
            ("seam:x", None),
            ("seam:1:during", None),
            ("seam:1:after:all", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}

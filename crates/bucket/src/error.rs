//! What can go wrong with a call, in kinds that callers act on.

use std::fmt;

/// A failed call: what was attempted, on which key of which store, and why it failed.
///
/// The text names all of these and never a secret. Act on [`kind`](Self::kind), not on the text.
#[derive(Debug)]
pub struct BucketError(Box<Details>);

/// Boxed, so that the errors of everything above stay small.
#[derive(Debug)]
struct Details {
    kind: ErrorKind,
    operation: Operation,
    key: String,
    store: String,
    problem: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl fmt::Display for BucketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Details { operation, key, store, problem, .. } = &*self.0;
        write!(f, "{operation} {key:?} in {store}: {problem}")
    }
}

impl std::error::Error for BucketError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}

impl BucketError {
    /// An error whose cause is told by `problem` alone, a phrase such as `no such object`.
    pub fn new(
        kind: ErrorKind,
        operation: Operation,
        key: impl Into<String>,
        store: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        let (key, store, problem) = (key.into(), store.into(), problem.into());
        Self(Box::new(Details { kind, operation, key, store, problem, source: None }))
    }

    /// The same with the error that caused it.
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same error as another kind.
    pub(crate) fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// The same error with something to add, in parentheses.
    pub(crate) fn with_remark(mut self, remark: impl fmt::Display) -> Self {
        self.0.problem = format!("{} ({remark})", self.0.problem);
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The call that failed.
    pub fn operation(&self) -> Operation {
        self.0.operation
    }

    /// The key, or the prefix of a listing.
    pub fn key(&self) -> &str {
        &self.0.key
    }

    /// Whether the object is known to be missing.
    pub fn is_not_found(&self) -> bool {
        self.0.kind == ErrorKind::NotFound
    }
}

/// What a caller can do about a [`BucketError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The object does not exist. A missing bucket is `Other`: the two must not be confused.
    NotFound,
    /// The condition of a put did not hold; nothing was changed.
    PreconditionFailed,
    /// The object is shorter than the range asked for.
    RangeNotSatisfiable,
    /// The credentials are wrong, or do not allow this, or the object is locked.
    AccessDenied,
    /// The volume or quota is full.
    NoSpace,
    /// No answer, half an answer, or "try later": worth trying again. A put may have happened all the same.
    Unreachable,
    /// This store cannot do what was asked, or the key is one we do not use.
    Unsupported,
    /// Bytes changed on their way: a digest did not match.
    Corrupt,
    /// Anything else; a person must look.
    Other,
}

impl ErrorKind {
    /// Whether the same call may succeed if simply made again.
    pub fn is_transient(self) -> bool {
        matches!(self, ErrorKind::Unreachable | ErrorKind::Corrupt)
    }
}

/// A kind of call on a bucket, for messages and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// [`Bucket::put`](crate::Bucket::put)
    Put,
    /// [`Bucket::get`](crate::Bucket::get)
    Get,
    /// [`Bucket::get_range`](crate::Bucket::get_range)
    GetRange,
    /// [`Bucket::list`](crate::Bucket::list)
    List,
    /// [`Bucket::head`](crate::Bucket::head)
    Head,
    /// [`Bucket::delete`](crate::Bucket::delete)
    Delete,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Put => "put",
            Operation::Get => "get",
            Operation::GetRange => "get range of",
            Operation::List => "list",
            Operation::Head => "look up",
            Operation::Delete => "delete",
        })
    }
}

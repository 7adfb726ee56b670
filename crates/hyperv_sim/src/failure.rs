//! What the host refuses: the end of a job, or a method's return value.

/// Failed.
pub(crate) const FAILED: u16 = 32768;
/// Invalid parameter.
pub(crate) const INVALID_PARAMETER: u16 = 32773;
/// System is in use.
pub(crate) const IN_USE: u16 = 32774;
/// Invalid state for this operation.
pub(crate) const INVALID_STATE: u16 = 32775;
/// System not available.
pub(crate) const NOT_AVAILABLE: u16 = 32777;
/// File not found; file in use, for imports.
pub(crate) const FILE: u16 = 32779;

/// The host could not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// `Job.ErrorCode`, or the method's return value.
    pub(crate) code: u16,
    pub(crate) description: String,
    /// What `GetErrorEx` lists, when that is more than the description.
    pub(crate) errors: Vec<String>,
}

impl Failure {
    pub(crate) fn new(code: u16, description: impl Into<String>) -> Self {
        Self { code, description: description.into(), errors: Vec::new() }
    }

    /// Several problems at once.
    pub(crate) fn list(description: &str, errors: Vec<String>) -> Self {
        Self { code: FAILED, description: description.to_owned(), errors }
    }
}

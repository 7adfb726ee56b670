//! What can go wrong between us and the host, in the host's own codes.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::cim_xml::CimXmlError;
use crate::initiator::{SESSION_BUSY, START_SERVICE};
use crate::seam::{ObjectPath, VirtDiskError, WmiError};

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Something else is using the VM or the file, or its state does not allow the operation; worth a retry later.
    Busy,
    /// The account lacks a right, or an ACL lacks an entry.
    AccessDenied,
    /// The object or the file is not there.
    NotFound,
    /// No end within the limit.
    Timeout,
    /// The caller's own [`Cancel`](crate::Cancel).
    Cancelled,
    /// The guest, or VSS inside it, did not freeze.
    VssFailed,
    /// The host cannot do this.
    Unsupported,
    /// A volume is full.
    NoSpace,
    /// `vmms` or WMI is stopped or restarting.
    ServiceGone,
    /// Anything else.
    Other,
}

/// A request to the host failed. `attempt` says what was attempted, and on which VM, checkpoint or file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // `attempt` is explained above, the other fields by their variant
pub enum Error {
    /// No answer of a provider: the call failed in WMI itself.
    #[error("{attempt}")]
    Wmi { attempt: String, source: WmiError },

    /// A service class has no instance: `vmms` is stopped, or the account sees nothing (spec 2.1).
    #[error(
        "{attempt}: {class} has no instance; is the Virtual Machine Management service running, and this account allowed to use it?"
    )]
    NoService { attempt: String, class: &'static str },

    /// A method answered with a code of its own (spec 8.4).
    #[error("{attempt}: {method} returned {code} ({})", return_code_text(.method, *.code))]
    Refused { attempt: String, method: &'static str, code: u32 },

    /// A method started a job, and the job failed (spec 8.2).
    #[error("{attempt}: the job of {method} {failure}")]
    JobFailed { attempt: String, method: &'static str, failure: Box<JobFailure> },

    /// A job did not end within the limit and was asked to stop. Whether it did is in `job_ended`: if not, what it
    /// makes may still appear.
    #[error("{attempt}: not done after {} s{}", .limit.as_secs(), if *.job_ended { "; cancelled" } else { ", and its job does not stop" })]
    Timeout { attempt: String, limit: Duration, job_ended: bool },

    /// The caller cancelled. `job_ended` as in [`Error::Timeout`].
    #[error("{attempt}: cancelled{}", if *.job_ended { "" } else { ", but its job does not stop" })]
    Cancelled { attempt: String, job_ended: bool },

    /// An object that the attempt needs is not on this host.
    #[error("{attempt}: {what} is not on this host")]
    Missing { attempt: String, what: String },

    /// A command of the caller's that has to run before the freeze failed; the host was asked for nothing.
    #[error("{attempt}: before the freeze: {problem}")]
    Hook { attempt: String, problem: String },

    /// What is to be made is there already.
    #[error("{attempt}: {what} is on this host already; remove it first, or choose a new id")]
    Exists { attempt: String, what: String },

    /// The VM is a role of this host's cluster, and another node owns it (spec 4.10).
    #[error("{attempt}: node {node} of the cluster owns it; run this there, or move the VM here")]
    OnOtherNode { attempt: String, node: String },

    /// A VM with a virtual TPM did not start, and the host's text names no other cause (spec 6.6, 6.7).
    #[error("{attempt}: its virtual TPM may not open on this host")]
    TpmMayNotOpen { attempt: String, source: Box<Error> },

    /// A call was sent, and how it ended cannot be learned: the service went away, or the job's object expired. Looking
    /// at the VM did not show the result.
    #[error("{attempt}: {reason}, and {seen}")]
    OutcomeUnknown { attempt: String, reason: String, seen: String },

    /// The host answered, but not with what its documentation says.
    #[error("{attempt}: {problem}")]
    Unexpected { attempt: String, problem: String },

    /// An embedded instance could not be written or read.
    #[error("{attempt}: embedded instance")]
    CimXml { attempt: String, source: CimXmlError },

    /// A virtual disk could not be opened.
    #[error("{attempt}")]
    VirtDisk { attempt: String, source: VirtDiskError },

    /// A file of the host could not be read.
    #[error("{attempt}: read {path}")]
    File { attempt: String, path: String, source: io::Error },
}

impl Error {
    /// What a caller can do about it. An HRESULT in a job's texts says more than the job's code, so it decides first.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Wmi { source, .. } => hresult_kind(source.hresult).unwrap_or(ErrorKind::Other),
            Self::NoService { .. } | Self::OutcomeUnknown { .. } => ErrorKind::ServiceGone,
            Self::Refused { method, code, .. } => return_code_kind(method, *code),
            Self::JobFailed { method, failure, .. } => failure.kind(method),
            Self::TpmMayNotOpen { source, .. } => source.kind(),
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Cancelled { .. } => ErrorKind::Cancelled,
            Self::Missing { .. } | Self::OnOtherNode { .. } => ErrorKind::NotFound,
            Self::Unexpected { .. } | Self::Exists { .. } | Self::Hook { .. } | Self::CimXml { .. } => ErrorKind::Other,
            Self::VirtDisk { source, .. } => hresult_kind(source.code).unwrap_or(ErrorKind::Other),
            Self::File { source, .. } => file_error_kind(source),
        }
    }

    /// Every HRESULT that the host named, in the order of its texts: what the failure matrix (spec 11) is keyed by.
    pub fn hresults(&self) -> Vec<u32> {
        match self {
            Self::Wmi { source, .. } => {
                let mut found = vec![source.hresult];
                found.extend(hresults_in(&source.message).into_iter().filter(|code| *code != source.hresult));
                found
            }
            Self::JobFailed { failure, .. } => failure.hresults(),
            Self::TpmMayNotOpen { source, .. } => source.hresults(),
            Self::VirtDisk { source, .. } => vec![source.code],
            _ => Vec::new(),
        }
    }
}

/// How a job failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ended in state {state}, error {code} ({}): {description}{}", return_code_text("", (*.code).into()), more_texts(.texts))]
pub struct JobFailure {
    /// `JobState`: 8 terminated, 9 killed, 10 exception.
    pub state: u16,
    /// `ErrorCode`, of the same list as return codes.
    pub code: u16,
    /// `ErrorDescription`, localised.
    pub description: String,
    /// The messages of `GetErrorEx`, localised.
    pub texts: Vec<String>,
}

impl JobFailure {
    /// See [`Error::hresults`].
    pub fn hresults(&self) -> Vec<u32> {
        let mut found = Vec::new();
        for text in std::iter::once(&self.description).chain(&self.texts) {
            for code in hresults_in(text) {
                if !found.contains(&code) {
                    found.push(code);
                }
            }
        }
        found
    }

    fn kind(&self, method: &str) -> ErrorKind {
        let kinds: Vec<_> = self.hresults().into_iter().filter_map(hresult_kind).collect();
        // The guest's failure is the cause, whatever else went wrong because of it.
        if kinds.contains(&ErrorKind::VssFailed) {
            return ErrorKind::VssFailed;
        }
        kinds.first().copied().unwrap_or_else(|| return_code_kind(method, self.code.into()))
    }
}

fn more_texts(texts: &[String]) -> String {
    texts.iter().map(|text| format!("; {text}")).collect()
}

/// Making a checkpoint, a reference point or a VM failed, and this is what it may have left on the host.
///
/// The objects in `left_behind` were not there before the call. Checkpoints and reference points are not removed here,
/// because only the caller knows whether nobody else works on the VM (spec 0.4). A VM that was not finished is removed;
/// it is named only when that failed too.
#[derive(Debug)]
pub struct CreateError {
    /// What failed.
    pub error: Error,
    /// What appeared on the VM meanwhile.
    pub left_behind: Vec<ObjectPath>,
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.error, left_behind_text(&self.left_behind))
    }
}

// By hand, because the text of `error` is this one's text already: its cause is the next link of the chain.
impl std::error::Error for CreateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl CreateError {
    /// See [`Error::kind`].
    pub fn kind(&self) -> ErrorKind {
        self.error.kind()
    }

    /// See [`Error::hresults`].
    pub fn hresults(&self) -> Vec<u32> {
        self.error.hresults()
    }
}

impl From<Error> for CreateError {
    fn from(error: Error) -> Self {
        Self { error, left_behind: Vec::new() }
    }
}

fn left_behind_text(paths: &[ObjectPath]) -> String {
    if paths.is_empty() {
        return String::new();
    }
    let paths: Vec<_> = paths.iter().map(ObjectPath::as_str).collect();
    format!(" (left behind: {})", paths.join(", "))
}

/// `WBEM_E_NOT_FOUND`.
pub(crate) const NOT_FOUND: u32 = 0x8004_1002;
/// `WBEM_E_INVALID_NAMESPACE`.
pub(crate) const INVALID_NAMESPACE: u32 = 0x8004_100E;
/// `WBEM_E_INVALID_CLASS`.
pub(crate) const INVALID_CLASS: u32 = 0x8004_1010;
/// `WBEM_E_ACCESS_DENIED`.
pub(crate) const ACCESS_DENIED: u32 = 0x8004_1003;

/// Whether `vmms` or WMI went away under the call (spec 8.3); whether the call was carried out is then unknown.
pub(crate) fn service_is_gone(hresult: u32) -> bool {
    // RPC server unavailable, call failed, call failed and did not execute, WBEM transport failure, disconnected.
    matches!(hresult, 0x8007_06BA | 0x8007_06BE | 0x8007_06BF | 0x8004_1015 | 0x8001_0108)
}

fn hresult_kind(hresult: u32) -> Option<ErrorKind> {
    Some(match hresult {
        _ if service_is_gone(hresult) => ErrorKind::ServiceGone,
        0x8004_2300..=0x8004_23FF => ErrorKind::VssFailed, // all of VSS_E_*
        ACCESS_DENIED | 0x8007_0005 | 5 => ErrorKind::AccessDenied,
        NOT_FOUND | 0x8007_0002 | 0x8007_0003 | 2 | 3 => ErrorKind::NotFound,
        INVALID_NAMESPACE | INVALID_CLASS | 0x8007_0032 | 50 => ErrorKind::Unsupported,
        0x8007_0020 | 0x8007_0021 | 32 | 33 => ErrorKind::Busy,
        0x8007_0070 | 0x8007_0027 | 112 | 39 => ErrorKind::NoSpace,
        0x0004_0004 => ErrorKind::Timeout,
        _ => return None,
    })
}

/// Methods of the storage namespace, which has codes of its own (spec 7.2, 7.3).
const OF_STORAGE: [&str; 11] = [
    "New",
    "Remove",
    "Update",
    "Connect",
    "Disconnect",
    "Online",
    "Offline",
    "SetAttributes",
    "AddAccessPath",
    "RemoveAccessPath",
    "UpdateHostStorageCache",
];

/// One number has two meanings: "file not found", and in the methods that bring a VM onto the host "file in use"
/// (spec 6.3, 8.4).
fn return_code_kind(method: &str, code: u32) -> ErrorKind {
    const IN_USE_FOR: [&str; 3] = ["ImportSystemDefinition", "ValidatePlannedSystem", "RealizePlannedSystem"];
    match code {
        // Invalid parameter: the same call fails the same way.
        5 if OF_STORAGE.contains(&method) => ErrorKind::Other,
        32779 if IN_USE_FOR.contains(&method) => ErrorKind::Busy,
        1 | 32770 => ErrorKind::Unsupported,
        3 | 32772 => ErrorKind::Timeout,
        5 | 32774 | 32775 | SESSION_BUSY => ErrorKind::Busy,
        0xEFFF_0009 | 0xEFFF_000A => ErrorKind::AccessDenied,
        32769 => ErrorKind::AccessDenied,
        32779 | 32789 => ErrorKind::NotFound,
        _ => ErrorKind::Other,
    }
}

/// The texts of spec 8.1 and 8.4; of the methods whose numbers mean something else, their own.
fn return_code_text(method: &str, code: u32) -> &'static str {
    match code {
        4 if OF_STORAGE.contains(&method) => "failed",
        5 if OF_STORAGE.contains(&method) => "invalid parameter",
        42002 if OF_STORAGE.contains(&method) => "the folder shows another volume",
        42007 if OF_STORAGE.contains(&method) => "there is no such folder, or it is not empty",
        2 if method == START_SERVICE => "access denied",
        7 if method == START_SERVICE => "timeout",
        14 if method == START_SERVICE => "the service is disabled",
        1 => "not supported",
        2 => "failed",
        3 => "timeout",
        4 => "invalid parameter",
        5 => "invalid state",
        6 => "invalid type",
        32768 => "failed",
        32769 => "access denied",
        32770 => "not supported",
        32771 => "status unknown",
        32772 => "timeout",
        32773 => "invalid parameter",
        32774 => "system is in use",
        32775 => "invalid state for this operation",
        32776 => "incorrect data type",
        32777 => "system not available",
        32778 => "out of memory",
        32779 => "file not found or in use",
        32787 => "cycle in the disk chain",
        32789 => "object not found",
        // The iSCSI initiator's (spec 7.2).
        0xEFFF_0002 => "the login failed",
        0xEFFF_0003 => "the target cannot be reached",
        0xEFFF_0009 => "the target does not know this user or secret",
        0xEFFF_000A => "the target does not let this host in",
        0xEFFF_0013 => "the target serves nobody now",
        0xEFFF_0015 => "the connection is there already",
        0xEFFF_0016 => "the session is there already",
        0xEFFF_001F => "the session is in use",
        _ => "a code without a documented meaning",
    }
}

/// A sharing violation, as the seam delivers it: raw error 32 (`ERROR_SHARING_VIOLATION`), or `ResourceBusy`.
pub fn is_sharing_violation(error: &io::Error) -> bool {
    error.raw_os_error() == Some(32) || error.kind() == io::ErrorKind::ResourceBusy
}

fn file_error_kind(error: &io::Error) -> ErrorKind {
    match error.kind() {
        _ if is_sharing_violation(error) => ErrorKind::Busy,
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::AccessDenied,
        io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        _ => ErrorKind::Other,
    }
}

/// The HRESULTs of a localised text: `0x` and exactly eight hexadecimal digits (spec 8.2).
fn hresults_in(text: &str) -> Vec<u32> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("0x").or_else(|| rest.find("0X")) {
        rest = &rest[at + 2..];
        let digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        if digits == 8
            && let Ok(code) = u32::from_str_radix(&rest[..8], 16)
            && !found.contains(&code)
        {
            found.push(code);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hresults_are_found_in_any_language() {
        for (text, codes) in [
            ("", vec![]),
            ("Der Vorgang ist fehlgeschlagen. (0x800423F4)", vec![0x8004_23F4]),
            ("0x80070020, und noch (0x80070005); nochmal 0x80070020", vec![0x8007_0020, 0x8007_0005]),
            ("0x8007", vec![]),
            ("id 0x800423F4800423F4", vec![]),
            ("0x0x80070070é", vec![0x8007_0070]),
            ("0x", vec![]),
        ] {
            assert_eq!(hresults_in(text), codes, "{text:?}");
        }
    }

    #[test]
    fn the_text_of_a_job_says_more_than_its_code() {
        let job = |code, description: &str, texts: &[&str]| Error::JobFailed {
            attempt: "a".into(),
            method: "CreateSnapshot",
            failure: Box::new(JobFailure {
                state: 10,
                code,
                description: description.into(),
                texts: texts.iter().map(|text| text.to_string()).collect(),
            }),
        };
        for (code, description, texts, kind) in [
            (32768, "failed (0x80042316)", &[][..], ErrorKind::VssFailed),
            (32768, "failed", &["access 0x80070005", "writer 0x800423F4"], ErrorKind::VssFailed),
            (32768, "failed", &["0x80070070"], ErrorKind::NoSpace),
            (32774, "in use (0x80070020)", &[], ErrorKind::Busy),
            (32775, "state", &[], ErrorKind::Busy),
            (32768, "odd 0x8007052F", &[], ErrorKind::Other),
            (32769, "odd 0x8007052F", &[], ErrorKind::AccessDenied),
        ] {
            assert_eq!(job(code, description, texts).kind(), kind, "{code} {description} {texts:?}");
        }
        for (method, kind) in [
            ("GetVirtualHardDiskSettingData", ErrorKind::NotFound),
            ("ImportSystemDefinition", ErrorKind::Busy),
            ("RealizePlannedSystem", ErrorKind::Busy),
        ] {
            let refused = Error::Refused { attempt: "a".into(), method, code: 32779 };
            assert_eq!(refused.kind(), kind, "{method}");
        }
    }

    #[test]
    fn one_number_means_what_its_method_says() {
        for (method, code, text, kind) in [
            ("Connect", 5, "invalid parameter", ErrorKind::Other),
            ("RequestStateChange", 5, "invalid state", ErrorKind::Busy),
            ("RemoveAccessPath", 4, "failed", ErrorKind::Other),
            ("DestroySystem", 4, "invalid parameter", ErrorKind::Other),
            ("AddAccessPath", 42002, "the folder shows another volume", ErrorKind::Other),
            ("AddAccessPath", 42007, "there is no such folder, or it is not empty", ErrorKind::Other),
            ("Disconnect", SESSION_BUSY, "the session is in use", ErrorKind::Busy),
            (START_SERVICE, 14, "the service is disabled", ErrorKind::Other),
        ] {
            let refused = Error::Refused { attempt: "a".into(), method, code };
            assert_eq!(refused.to_string(), format!("a: {method} returned {code} ({text})"));
            assert_eq!(refused.kind(), kind, "{method} {code}");
        }
    }
}

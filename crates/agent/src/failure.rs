//! What a person is told when something fails: one block, one code, one exit code.
//!
//! [`Code`] is the catalogue. [`code_of`] maps the typed errors of the libraries to it; nothing else in this program
//! looks into an error to decide how it ends.

use std::error::Error;
use std::io::{self, Write as _};

use backup::{BackupError, SelectError};
use bucket::{BucketError, ErrorKind};
use hyperv::ErrorKind as HostErrorKind;
use serde_json::{Value, json};

use crate::units::visible;

/// Something that failed, in the words of the error block.
#[derive(Debug)]
pub struct Failure {
    /// What was attempted.
    what: Box<str>,
    /// On which VM, disk, host, repository; may be empty.
    on: Box<str>,
    /// Why it failed.
    why: Box<str>,
    /// What to do: one to three steps.
    steps: Vec<String>,
    /// What kind of failure it is.
    code: Code,
    /// The error and its causes, outermost first.
    causes: Vec<String>,
    /// The block is out already.
    is_printed: bool,
}

impl Failure {
    /// A failure that this program found out by itself.
    pub fn new(what: impl Into<Box<str>>, on: impl Into<Box<str>>, code: Code, why: impl Into<Box<str>>) -> Self {
        let steps = code.steps().iter().map(|step| (*step).to_owned()).collect();
        Self { what: what.into(), on: on.into(), why: why.into(), steps, code, causes: Vec::new(), is_printed: false }
    }

    /// A failure of a library.
    pub fn of(what: impl Into<Box<str>>, on: impl Into<Box<str>>, error: &(dyn Error + 'static)) -> Self {
        let mut causes: Vec<String> = chain(error).map(ToString::to_string).collect();
        // Errors that pass another one on speak with its words.
        causes.dedup();
        let mut failure = Self { causes, ..Self::new(what, on, code_of(error), chain_text(error)) };
        // What is known of the host's very code goes before what its kind suggests.
        if let Some(advice) = chain(error).find_map(host_advice) {
            failure.steps.insert(0, advice.to_owned());
        }
        failure
    }

    /// The same with other steps.
    pub fn with_steps(mut self, steps: &[&str]) -> Self {
        self.steps = steps.iter().map(|step| (*step).to_owned()).collect();
        self
    }

    /// The same as another kind.
    pub fn with_code(self, code: Code) -> Self {
        Self { code, ..self }
    }

    /// The same, of which the block is out already if `is_printed`.
    pub fn printed(self, is_printed: bool) -> Self {
        Self { is_printed, ..self }
    }

    /// What kind of failure it is.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The exit code of the program.
    pub fn exit(&self) -> u8 {
        self.code.exit()
    }

    /// Tells the person or the script; with `json`, as the last object on standard output.
    pub fn report(&self, json: bool, verbose: bool) {
        if json {
            let mut value = self.to_json();
            value["type"] = "error".into();
            crate::output::json_line(&value);
        } else if !self.is_printed {
            self.print(verbose);
        }
    }

    /// The block, to standard error.
    pub fn print(&self, verbose: bool) {
        // Standard error that is closed leaves nobody to tell.
        let _ = io::stderr().lock().write_all(self.block(verbose, crate::output::is_colored()).as_bytes());
    }

    fn block(&self, verbose: bool, colored: bool) -> String {
        let (red, plain) = if colored { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        let mut text = format!("{red}error:{plain} {}\n", visible(&self.what));
        if !self.on.is_empty() {
            text += &format!("  on   {}\n", visible(&self.on));
        }
        text += &format!("  why  {}\n", visible(&self.why));
        if !self.steps.is_empty() {
            text += &format!("  do   {}\n", visible(&self.steps.join("; or ")));
        }
        text += &format!("  code {}   exit {}\n", self.code.name(), self.exit());
        if verbose {
            for cause in &self.causes {
                text += &format!("  cause  {}\n", visible(cause));
            }
        }
        text
    }

    /// Without `type`, as it stands in results that list failures.
    pub fn to_json(&self) -> Value {
        json!({
            "code": self.code.name(),
            "what": self.what,
            "on": self.on,
            "why": self.why,
            "do": self.steps,
            "causes": self.causes,
            "exit": self.exit(),
        })
    }
}

/// In one line, for logs.
impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)?;
        if !self.on.is_empty() {
            write!(f, " ({})", self.on)?;
        }
        write!(f, ": {} [{}, exit {}]", self.why, self.code.name(), self.exit())?;
        if !self.steps.is_empty() {
            write!(f, " To do: {}", self.steps.join("; or "))?;
        }
        Ok(())
    }
}

/// Says what was attempted, when it fails.
pub trait Attempt<T> {
    /// Makes the error a [`Failure`] to do `what` on `on`.
    fn attempt(self, what: impl Into<Box<str>>, on: impl Into<Box<str>>) -> Result<T, Failure>;
}

impl<T, E: Error + 'static> Attempt<T> for Result<T, E> {
    fn attempt(self, what: impl Into<Box<str>>, on: impl Into<Box<str>>) -> Result<T, Failure> {
        self.map_err(|error| Failure::of(what, on, &error))
    }
}

macro_rules! catalogue {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $exit:literal, [$($step:literal),*];)*) => {
        /// Every kind of failure, with its exit code and what to do about it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// All of them.
            #[cfg(test)]
            pub const ALL: &[Code] = &[$(Code::$variant,)*];

            /// Stable name.
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $name,)* }
            }

            /// Exit code of the program.
            pub fn exit(self) -> u8 {
                match self { $(Code::$variant => $exit,)* }
            }

            /// What a person can do.
            pub fn steps(self) -> &'static [&'static str] {
                match self { $(Code::$variant => &[$($step),*],)* }
            }
        }
    };
}

catalogue! {
    /// None of the others.
    Failed = "FAILED", 1, ["run it again with -v, and look at the causes"];
    /// Arguments, environment or configuration; nothing was tried.
    Usage = "USAGE", 2, ["see --help"];
    /// Something that cannot be undone was not confirmed; nothing was done.
    NotConfirmed = "NOT_CONFIRMED", 2, ["say --confirm with the name of what it is done to"];
    /// No password was given, and there is nobody to ask.
    NoPassword = "NO_PASSWORD", 2, ["give --password-file FILE", "set E3_PASSWORD"];
    /// A password that no repository should get.
    BadPassword = "BAD_PASSWORD", 2, ["choose one that is not empty and has no space at its ends"];
    /// No keys for S3, or a location that cannot be used.
    BadLocation = "BAD_LOCATION", 2, ["correct the URL", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"];
    /// This machine or program cannot do it.
    NotSupported = "NOT_SUPPORTED", 2, ["use a host or repository that can", "a newer version of this program"];
    /// Not backupable, by preflight.
    NotBackupable = "NOT_BACKUPABLE", 5, ["solve what is named, then run it again"];
    /// A restore has obstacles; nothing was touched, and all of them are named.
    Preflight = "PREFLIGHT", 5, ["solve what is named, then run it again", "look at all of it: --dry-run"];
    /// Something is in the way.
    TargetExists = "TARGET_EXISTS", 5, ["choose another name", "remove what is there"];
    /// A target that is in the way or does not fit; nothing was written.
    TargetRefused = "TARGET_REFUSED", 5, ["choose another --to", "say --overwrite to replace what is there"];
    /// A point that is held, or the last sound one of its VM.
    PointProtected = "POINT_PROTECTED", 5, ["release what is held (`points release`)", "leave the VM a sound point: make a new one first"];
    /// A repository is there already.
    RepositoryExists = "REPOSITORY_EXISTS", 5, ["use it (`repo connect`)", "choose another place"];
    /// The store lacks something essential.
    StorageUnfit = "STORAGE_UNFIT", 5, ["use another store", "ask its maker"];
    /// Nothing has this name.
    NotFound = "NOT_FOUND", 6, ["list what there is: `vm list`, `points list`, `snapshot list`"];
    /// Several things have this name.
    Ambiguous = "AMBIGUOUS", 6, ["use an id of those listed"];
    /// Earlier checkpoints of the VM were not merged.
    MergeStuck = "MERGE_STUCK", 5, ["find out what holds the VM's disk files, or makes the volume full", "stopping and starting the VM, or moving it to another host, starts its merges again"];
    /// This machine's clock is wrong by so much that deletions would not be safe.
    ClockSkew = "CLOCK_SKEW", 5, ["set the clocks of this machine and of the server right"];
    /// Another run or program works on it.
    Busy = "BUSY", 7, ["try again when the other has finished"];
    /// Stored bytes are missing or not what was written.
    Damaged = "DAMAGED", 8, ["verify the other points (`verify --all --level full`)", "restore from one that is sound", "look at the storage"];
    /// The host refused or failed.
    HostFailed = "HOST_FAILED", 9, ["look at the host's event log (Hyper-V-VMMS), then run it again"];
    /// The account lacks a right on the host.
    HostAccessDenied = "HOST_ACCESS_DENIED", 9, ["run it as an administrator or a member of Hyper-V Administrators"];
    /// The virtual machine management service does not answer.
    HostServiceDown = "HOST_SERVICE_DOWN", 9, ["start the service vmms on the host, then run it again"];
    /// The guest was not frozen.
    GuestNotFrozen = "VSS_FAILED", 9, ["look at the writers in the guest (vssadmin list writers)", "back up with --consistency crash"];
    /// The run was too slow for a checkpoint to live so long.
    CheckpointTooOld = "CHECKPOINT_TOO_OLD", 9, ["run it again: what was stored already is not sent twice", "raise limits, or back up fewer VMs at once"];
    /// A disk of the source cannot be read.
    SourceUnreadable = "SOURCE_UNREADABLE", 9, ["check the host's disk and file system; the VM has no new point, earlier ones are untouched"];
    /// No repository there.
    NoRepository = "NO_REPOSITORY", 10, ["check the URL", "create one: `repo create URL`"];
    /// Another client upgrades the repository.
    RepositoryLocked = "REPOSITORY_LOCKED", 11, ["wait until the upgrade is over"];
    /// The password does not open it.
    WrongPassword = "WRONG_PASSWORD", 12, ["give the password it was created with (--password-file, E3_PASSWORD)"];
    /// Disks are half-written; their VM cannot start.
    RestoreUnfinished = "RESTORE_UNFINISHED", 3, ["run the same restore again: it ends what this one began"];
    /// No answer, after retries.
    StorageUnreachable = "STORAGE_UNREACHABLE", 13, ["check network, endpoint and service, then run it again"];
    /// The storage refuses.
    StorageDenied = "STORAGE_ACCESS_DENIED", 13, ["check the keys and what they may do", "the rights on the folder"];
    /// The server does not answer.
    ServerUnreachable = "SERVER_UNREACHABLE", 13, ["check the address, the network and the server, then run it again"];
    /// Whoever answers is not proven to be the server.
    ServerUntrusted = "SERVER_UNTRUSTED", 5, ["compare the fingerprint with what `e3-server serve` prints, and give --fingerprint", "give --ca FILE"];
    /// The server refuses this agent.
    ServerRefused = "SERVER_REFUSED", 5, ["make a new enrolment token in the server", "enable the agent there"];
    /// The repository's storage is full.
    StorageFull = "STORAGE_FULL", 14, ["make room in the storage, or raise its quota, then run it again"];
    /// The target volume is full.
    TargetFull = "TARGET_FULL", 14, ["make room on the target, or choose another --to; nothing was left there"];
    /// A volume of the host is full.
    HostDiskFull = "HOST_DISK_FULL", 14, ["make room on the host's volume, then run it again"];
    /// Stopped on request.
    Interrupted = "INTERRUPTED", 130, ["run it again; earlier points are untouched"];
    /// Stopped by another program or the system.
    Terminated = "TERMINATED", 143, ["run it again; earlier points are untouched"];
}

/// The kind of a library's error: the first in its chain that says something definite.
pub fn code_of(error: &(dyn Error + 'static)) -> Code {
    chain(error).find_map(own_code).unwrap_or(Code::Failed)
}

fn own_code(error: &(dyn Error + 'static)) -> Option<Code> {
    if let Some(error) = error.downcast_ref::<BackupError>() {
        return of_backup(error);
    }
    if let Some(error) = error.downcast_ref::<SelectError>() {
        return Some(of_select(error));
    }
    if let Some(error) = error.downcast_ref::<kopia_repo::OpenError>() {
        return of_open(error);
    }
    if let Some(error) = unboxed::<kopia_repo::ReadError>(error) {
        return of_read(error);
    }
    if let Some(error) = unboxed::<kopia_repo::WriteError>(error) {
        return of_write(error);
    }
    if let Some(error) = error.downcast_ref::<BucketError>() {
        return Some(of_storage(error.kind()));
    }
    if let Some(error) = error.downcast_ref::<bucket::OpenError>() {
        return of_location(error);
    }
    if error.is::<bucket::UrlError>() {
        return Some(Code::BadLocation);
    }
    if let Some(error) = error.downcast_ref::<hyperv::Error>() {
        return Some(of_host(error.kind()));
    }
    if let Some(error) = error.downcast_ref::<hyperv::CreateError>() {
        return Some(of_host(error.kind()));
    }
    if let Some(error) = error.downcast_ref::<hyperv::ProbeError>() {
        return of_probe(error);
    }
    if let Some(error) = error.downcast_ref::<hyperv::FindError>() {
        return match error {
            hyperv::FindError::NotFound { .. } => Some(Code::NotFound),
            hyperv::FindError::Ambiguous { .. } => Some(Code::Ambiguous),
            hyperv::FindError::Host(_) => None,
        };
    }
    if let Some(error) = error.downcast_ref::<serve::SessionError>() {
        return of_session(error);
    }
    if let Some(error) = error.downcast_ref::<hyperv_sim::LabError>() {
        return of_lab(error);
    }
    if let Some(error) = unboxed::<vhdx::OpenError>(error) {
        return Some(of_disk_file(error.kind()));
    }
    if let Some(error) = error.downcast_ref::<vhdx::convert::ConvertError>() {
        return match error {
            vhdx::convert::ConvertError::Cancelled => Some(Code::Interrupted),
            _ => None,
        };
    }
    error.downcast_ref::<io::Error>().and_then(of_io)
}

fn of_session(error: &serve::SessionError) -> Option<Code> {
    use serve::SessionError;
    use serve::overlay::OverlayError;
    Some(match error {
        SessionError::NoSpace { .. } | SessionError::Overlay(OverlayError::NoSpace { .. }) => Code::TargetFull,
        SessionError::Busy { .. } => Code::Busy,
        SessionError::TargetExists { .. } | SessionError::Exists { .. } => Code::TargetExists,
        SessionError::Overlay(OverlayError::Damaged { .. } | OverlayError::FlushedDataMissing { .. }) => Code::Damaged,
        SessionError::Base(error) if error.is_unreachable => Code::StorageUnreachable,
        _ => return None,
    })
}

fn host_advice(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let of_create = unboxed::<hyperv::CreateError>(error).and_then(hyperv::CreateError::advice);
    of_create.or_else(|| unboxed::<hyperv::Error>(error).and_then(hyperv::Error::advice))
}

/// A cause that an enum keeps in a box shows as the box.
fn unboxed<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
    error.downcast_ref::<E>().or_else(|| error.downcast_ref::<Box<E>>().map(|error| &**error))
}

fn of_backup(error: &BackupError) -> Option<Code> {
    if let BackupError::Unfinished { source, .. } = error {
        // Whatever broke it off, running it again is what there is to do.
        return Some(match **source {
            BackupError::Cancelled => Code::Interrupted,
            _ => Code::RestoreUnfinished,
        });
    }
    if let Some(kind) = error.storage_kind() {
        return Some(of_storage(kind));
    }
    Some(match error {
        // These pass others on, and do not show in the chain themselves.
        BackupError::Open(error) => return of_open(error),
        BackupError::Select(error) => of_select(error),
        BackupError::Cancelled => Code::Interrupted,
        BackupError::NotBackupable { .. } => Code::NotBackupable,
        BackupError::Obstructed { .. } => Code::Preflight,
        BackupError::Busy { .. } => Code::Busy,
        BackupError::NoRoom { .. } => Code::HostDiskFull,
        BackupError::MergeStuck { .. } => Code::MergeStuck,
        BackupError::CheckpointTooOld { .. } => Code::CheckpointTooOld,
        BackupError::SourceRead { .. } | BackupError::SourceMap { .. } => Code::SourceUnreadable,
        BackupError::TargetRefused { .. } => Code::TargetRefused,
        BackupError::PointsProtected { .. } => Code::PointProtected,
        BackupError::Target { source, .. } => match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::TargetFull,
            _ => return of_io(source),
        },
        error if error.is_damage() => Code::Damaged,
        // The host's own error is the source, and says more.
        BackupError::Host { source, .. } => return Some(code_or(&**source, Code::HostFailed)),
        _ => return None,
    })
}

fn code_or(error: &(dyn Error + 'static), otherwise: Code) -> Code {
    chain(error).find_map(own_code).unwrap_or(otherwise)
}

fn of_select(error: &SelectError) -> Code {
    match error {
        SelectError::NotFound { .. } => Code::NotFound,
        SelectError::Ambiguous { .. } => Code::Ambiguous,
    }
}

fn of_open(error: &kopia_repo::OpenError) -> Option<Code> {
    use kopia_repo::OpenError;
    Some(match error {
        OpenError::NotFound { .. } => Code::NoRepository,
        OpenError::Exists { .. } => Code::RepositoryExists,
        OpenError::WrongPassword { .. } => Code::WrongPassword,
        OpenError::UpgradeLocked { .. } => Code::RepositoryLocked,
        OpenError::Unsupported { .. } => Code::NotSupported,
        OpenError::Damaged { .. } => Code::Damaged,
        _ => return None,
    })
}

fn of_read(error: &kopia_repo::ReadError) -> Option<Code> {
    use kopia_repo::{ReadError, ReadErrorKind};
    Some(match (error, error.kind()) {
        (ReadError::NotFound { .. }, _) => Code::NotFound,
        (_, ReadErrorKind::Missing | ReadErrorKind::Damaged) => Code::Damaged,
        (_, ReadErrorKind::Unsupported) => Code::NotSupported,
        (_, ReadErrorKind::Storage) => return None,
    })
}

fn of_write(error: &kopia_repo::WriteError) -> Option<Code> {
    if let Some(kind) = error.storage_kind() {
        return Some(of_storage(kind));
    }
    match error {
        kopia_repo::WriteError::ReadOnly { .. } => Some(Code::NotSupported),
        _ => None,
    }
}

fn of_storage(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Unreachable | ErrorKind::Corrupt => Code::StorageUnreachable,
        ErrorKind::AccessDenied => Code::StorageDenied,
        ErrorKind::NoSpace => Code::StorageFull,
        ErrorKind::Unsupported => Code::StorageUnfit,
        ErrorKind::NotFound | ErrorKind::RangeNotSatisfiable => Code::Damaged,
        ErrorKind::PreconditionFailed | ErrorKind::Other => Code::Failed,
    }
}

fn of_location(error: &bucket::OpenError) -> Option<Code> {
    Some(match error {
        bucket::OpenError::Folder { source, .. } if source.kind() == io::ErrorKind::NotFound => Code::NoRepository,
        bucket::OpenError::Folder { source, .. } | bucket::OpenError::CreateFolder { source, .. } => {
            match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Code::StorageDenied,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::StorageFull,
                io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => Code::BadLocation,
                _ => Code::StorageUnreachable,
            }
        }
        bucket::OpenError::NoCredentials { .. }
        | bucket::OpenError::Certificates { .. }
        | bucket::OpenError::S3 { .. } => Code::BadLocation,
    })
}

fn of_host(kind: HostErrorKind) -> Code {
    match kind {
        HostErrorKind::Busy => Code::Busy,
        HostErrorKind::AccessDenied => Code::HostAccessDenied,
        HostErrorKind::Cancelled => Code::Interrupted,
        HostErrorKind::VssFailed => Code::GuestNotFrozen,
        HostErrorKind::NoSpace => Code::HostDiskFull,
        HostErrorKind::ServiceGone => Code::HostServiceDown,
        HostErrorKind::NotFound | HostErrorKind::Timeout | HostErrorKind::Unsupported | HostErrorKind::Other => {
            Code::HostFailed
        }
    }
}

fn of_probe(error: &hyperv::ProbeError) -> Option<Code> {
    use hyperv::ProbeError;
    Some(match error {
        ProbeError::NoHyperV => Code::NotSupported,
        ProbeError::ServiceStopped { .. } => Code::HostServiceDown,
        ProbeError::AccessDenied | ProbeError::NoAnswer => Code::HostAccessDenied,
        ProbeError::Other(error) => of_host(error.kind()),
    })
}

fn of_lab(error: &hyperv_sim::LabError) -> Option<Code> {
    use hyperv_sim::LabError;
    Some(match error {
        LabError::NoSuchVm(_) | LabError::NoSuchDisk { .. } => Code::NotFound,
        LabError::NotEmpty(_) => Code::TargetExists,
        LabError::Refused { .. } => Code::NotBackupable,
        _ => return None,
    })
}

fn of_disk_file(kind: vhdx::OpenErrorKind) -> Code {
    match kind {
        vhdx::OpenErrorKind::Missing => Code::NotFound,
        vhdx::OpenErrorKind::Corrupt | vhdx::OpenErrorKind::ParentMismatch => Code::Damaged,
        vhdx::OpenErrorKind::Unsupported => Code::NotSupported,
        vhdx::OpenErrorKind::Busy => Code::Busy,
        vhdx::OpenErrorKind::Io => Code::Failed,
    }
}

fn of_io(error: &io::Error) -> Option<Code> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(Code::TargetFull),
        io::ErrorKind::NotFound => Some(Code::NotFound),
        io::ErrorKind::AlreadyExists => Some(Code::TargetExists),
        _ => None,
    }
}

fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |one| (*one).source())
}

/// An error with its causes in one line, each said once.
pub fn chain_text(error: &(dyn Error + 'static)) -> String {
    chain(error).fold(String::new(), |text, one| {
        let next = one.to_string();
        match text.is_empty() {
            true => next,
            false if text.ends_with(&next) => text,
            false => format!("{text}: {next}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use bucket::Operation;
    use kopia_repo::{OpenError, ReadError, WriteError};

    use super::*;

    fn storage(kind: ErrorKind) -> BucketError {
        BucketError::new(kind, Operation::Put, "p/1", "somewhere", "no")
    }

    fn host(source: impl Error + Send + Sync + 'static) -> BackupError {
        BackupError::Host { attempt: "look".into(), source: Box::new(source) }
    }

    #[test]
    fn every_kind_of_error_has_its_exit_code() {
        let store = || "s".to_owned();
        let not_found = || SelectError::NotFound { what: "point", selector: "x".into(), hint: String::new() };
        let timeout = |job_ended| hyperv::Error::Timeout {
            attempt: "x".into(),
            limit: std::time::Duration::from_secs(1),
            job_ended,
        };
        let refused = |code| hyperv::Error::Refused { attempt: "x".into(), method: "CreateSnapshot", code };
        let target = |kind| BackupError::Target { path: "f".into(), source: io::Error::from(kind) };
        let damaged = || ReadError::Damaged { what: "x".into(), problem: "y".into() };
        let cases: Vec<(Box<dyn Error>, &str, u8)> = vec![
            (Box::new(OpenError::WrongPassword { store: store() }), "WRONG_PASSWORD", 12),
            (Box::new(OpenError::NotFound { store: store() }), "NO_REPOSITORY", 10),
            (Box::new(OpenError::Exists { store: store() }), "REPOSITORY_EXISTS", 5),
            (
                Box::new(OpenError::UpgradeLocked { store: store(), owner: "o".into(), message: "m".into() }),
                "REPOSITORY_LOCKED",
                11,
            ),
            (Box::new(OpenError::Damaged { store: store(), problem: "p".into() }), "DAMAGED", 8),
            (
                Box::new(OpenError::Storage { store: store(), source: storage(ErrorKind::Unreachable) }),
                "STORAGE_UNREACHABLE",
                13,
            ),
            (
                Box::new(BackupError::Open(OpenError::Index { store: store(), source: Box::new(damaged()) })),
                "DAMAGED",
                8,
            ),
            (Box::new(BackupError::Open(OpenError::WrongPassword { store: store() })), "WRONG_PASSWORD", 12),
            (
                Box::new(BackupError::Write {
                    source: WriteError::Storage { what: "x".into(), source: storage(ErrorKind::NoSpace) },
                }),
                "STORAGE_FULL",
                14,
            ),
            (
                Box::new(BackupError::Write {
                    source: WriteError::SessionFailed { problem: "x".into(), kind: Some(ErrorKind::AccessDenied) },
                }),
                "STORAGE_ACCESS_DENIED",
                13,
            ),
            (Box::new(BackupError::Read { source: damaged() }), "DAMAGED", 8),
            (Box::new(BackupError::Select(not_found())), "NOT_FOUND", 6),
            (
                Box::new(BackupError::Select(SelectError::Ambiguous {
                    what: "point",
                    selector: "x".into(),
                    candidates: vec![],
                })),
                "AMBIGUOUS",
                6,
            ),
            (Box::new(BackupError::Busy { vm: "v".into(), holder: String::new() }), "BUSY", 7),
            (
                Box::new(BackupError::NoRoom { vm: "v".into(), volume: "D:".into(), free_bytes: 1, needed_bytes: 2 }),
                "HOST_DISK_FULL",
                14,
            ),
            (Box::new(BackupError::MergeStuck { vm: "v".into(), disk: "d".into(), files: 12 }), "MERGE_STUCK", 5),
            (Box::new(BackupError::Cancelled), "INTERRUPTED", 130),
            (Box::new(BackupError::NotBackupable { vm: "v".into(), problem: "p".into() }), "NOT_BACKUPABLE", 5),
            (Box::new(BackupError::Obstructed { vm: "v".into(), problem: "p".into() }), "PREFLIGHT", 5),
            (
                Box::new(BackupError::Unfinished {
                    vm: "v".into(),
                    source: Box::new(target(io::ErrorKind::StorageFull)),
                }),
                "RESTORE_UNFINISHED",
                3,
            ),
            (
                Box::new(BackupError::Unfinished { vm: "v".into(), source: Box::new(BackupError::Cancelled) }),
                "INTERRUPTED",
                130,
            ),
            (Box::new(BackupError::ReadBack { problem: "p".into() }), "DAMAGED", 8),
            (Box::new(BackupError::Point { point: "p".into(), problem: "p".into() }), "DAMAGED", 8),
            (
                Box::new(BackupError::SourceRead {
                    disk: "d".into(),
                    offset_bytes: 0,
                    len_bytes: 1,
                    source: vhdx::ReadError::ParentNotOpen { offset_bytes: 0 },
                }),
                "SOURCE_UNREADABLE",
                9,
            ),
            (Box::new(target(io::ErrorKind::StorageFull)), "TARGET_FULL", 14),
            (Box::new(target(io::ErrorKind::Other)), "FAILED", 1),
            (Box::new(BackupError::TargetRefused { path: "f".into(), problem: "p".into() }), "TARGET_REFUSED", 5),
            (Box::new(BackupError::PointsProtected { obstacles: Vec::new() }), "POINT_PROTECTED", 5),
            (Box::new(host(refused(32775))), "BUSY", 7),
            (Box::new(host(refused(32769))), "HOST_ACCESS_DENIED", 9),
            (Box::new(host(timeout(true))), "HOST_FAILED", 9),
            (Box::new(host(hyperv::CreateError::from(refused(32768)))), "HOST_FAILED", 9),
            (Box::new(host(io::Error::from(io::ErrorKind::NotFound))), "NOT_FOUND", 6),
            (Box::new(host(io::Error::other("x"))), "HOST_FAILED", 9),
            (Box::new(hyperv::ProbeError::NoHyperV), "NOT_SUPPORTED", 2),
            (Box::new(hyperv::FindError::NotFound { selector: "x".into() }), "NOT_FOUND", 6),
            (Box::new(bucket::UrlError::Empty), "BAD_LOCATION", 2),
            (
                Box::new(bucket::OpenError::Folder { path: "x".into(), source: io::ErrorKind::NotFound.into() }),
                "NO_REPOSITORY",
                10,
            ),
            (Box::new(bucket::OpenError::NoCredentials { location: "x".into() }), "BAD_LOCATION", 2),
            (Box::new(hyperv_sim::LabError::NotEmpty("x".into())), "TARGET_EXISTS", 5),
            (Box::new(vhdx::OpenError::NotADisk), "NOT_SUPPORTED", 2),
            (Box::new(vhdx::convert::ConvertError::Cancelled), "INTERRUPTED", 130),
            (Box::new(io::Error::from(io::ErrorKind::StorageFull)), "TARGET_FULL", 14),
            (Box::new(std::fmt::Error), "FAILED", 1),
        ];
        for (error, name, exit) in cases {
            let code = code_of(&*error);
            assert_eq!((code.name(), code.exit()), (name, exit), "{error:?}");
        }
    }

    #[test]
    fn the_catalogue_is_complete() {
        let mut names = std::collections::HashSet::new();
        for code in Code::ALL {
            assert!(names.insert(code.name()), "{} is there twice", code.name());
            assert!((1..=3).contains(&code.steps().len()), "{} says what to do in one to three steps", code.name());
            assert!(matches!(code.exit(), 1..=14 | 130 | 143), "{} has an exit code of the table", code.name());
            assert!(
                crate::topics::EXIT_CODES.contains(&format!("\n{:>4}", code.exit())),
                "{} is in the help",
                code.name()
            );
        }
    }

    #[test]
    fn the_block_has_at_most_six_lines_and_no_control_characters() {
        let failure = Failure::of("back up a\nb", "VM \u{1b}[2J", &OpenError::WrongPassword { store: "s".into() });
        let block = failure.block(false, false);
        assert_eq!(
            block,
            "error: back up a\u{fffd}b\n  on   VM \u{fffd}[2J\n  why  the password does not open the repository in s\n  \
             do   give the password it was created with (--password-file, E3_PASSWORD)\n  \
             code WRONG_PASSWORD   exit 12\n"
        );
        assert!(block.lines().count() <= 6);
        assert!(failure.block(true, false).contains("  cause  the password"));
    }

    #[test]
    fn causes_are_said_once() {
        let error = OpenError::Storage { store: "s".into(), source: storage(ErrorKind::Unreachable) };
        assert_eq!(chain_text(&error), "open the repository in s: put \"p/1\" in somewhere: no");
    }
}

//! Which code the typed errors of the libraries get.

use std::error::Error;
use std::io;

use backup::{BackupError, SelectError};
use bucket::{BucketError, ErrorKind};
use hyperv::ErrorKind as HostErrorKind;

use super::{Code, chain};

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

pub fn host_advice(error: &(dyn Error + 'static)) -> Option<&'static str> {
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
        (ReadError::PasswordChanged, _) => Code::WrongPassword,
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
            (Box::new(BackupError::Read { source: ReadError::PasswordChanged }), "WRONG_PASSWORD", 12),
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
}

//! The catalogue of failures: names, exit codes, and what to do.

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

#[cfg(test)]
mod tests {
    use super::*;

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
}

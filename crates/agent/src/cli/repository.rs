//! `repo …`, `snapshot …`.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use clap_complete::ArgValueCandidates;

use crate::completion;

/// `repo …`
#[derive(Debug, Subcommand)]
pub enum RepoCommand {
    /// Create an empty repository
    #[command(after_help = "\
Examples:
  e3-backup-agent repo create /srv/backups --password-file password.txt
  e3-backup-agent repo create 's3://bucket/e3/?endpoint=https://s3.example.net&region=eu-1'
  e3-backup-agent repo create s3://bucket/e3/ --object-lock-days 30 --mode compliance

S3 keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or the usual credentials file.")]
    Create {
        /// Where; also --repo or E3_REPOSITORY
        url: Option<String>,
        /// Lock everything written for this many days (S3 object lock)
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=36_500))]
        object_lock_days: Option<u32>,
        /// Who may lift the lock early: accounts with a special permission, or nobody
        #[arg(
            long,
            value_enum,
            requires = "object_lock_days",
            default_value_if("object_lock_days", clap::builder::ArgPredicate::IsPresent, "governance")
        )]
        mode: Option<LockModeArg>,
    },
    /// Check URL and password, and remember the URL (never the password) for later commands
    #[command(after_help = "\
Examples:
  e3-backup-agent repo connect /srv/backups
  e3-backup-agent repo connect s3://bucket/e3/ --password-file password.txt
  e3-backup-agent repo connect 's3://bucket/e3/?endpoint=https://s3.example.net'")]
    Connect {
        /// Where; also --repo or E3_REPOSITORY
        url: Option<String>,
    },
    /// What the repository is, and how much it holds
    #[command(after_help = "\
Examples:
  e3-backup-agent repo status
  e3-backup-agent repo status /srv/backups
  e3-backup-agent repo status --json")]
    Status {
        /// Where; also --repo or E3_REPOSITORY
        url: Option<String>,
    },
    /// Print a recovery kit: the sheet that brings VMs back when host and server are gone (it holds the password)
    #[command(after_help = "\
Examples:
  e3-backup-agent repo kit | lp
  e3-backup-agent repo kit --to kit.txt
  e3-backup-agent repo kit s3://bucket/e3/ --password-file password.txt --to kit.txt

The file serves as it is where a password file is asked for: --password-file kit.txt")]
    Kit {
        /// Where; also --repo or E3_REPOSITORY
        url: Option<String>,
        /// A new file, which only its owner may read, instead of standard output
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Give the repository another password; what was stored stays as it is
    #[command(after_help = "\
Examples:
  e3-backup-agent repo change-password
  e3-backup-agent repo change-password --password-file old.txt --new-password-file new.txt
  e3-backup-agent repo change-password s3://bucket/e3/

Every host needs the new one from then on, and every recovery kit is to be printed anew. Cut off in the middle,
the same command completes it. Whoever knew the old password may have kept the keys: a thief is not locked out.")]
    ChangePassword {
        /// Where; also --repo or E3_REPOSITORY
        url: Option<String>,
        /// File with the new password; without it a person is asked
        #[arg(long, value_name = "FILE")]
        new_password_file: Option<PathBuf>,
    },
}

/// Who may lift an object lock before its date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LockModeArg {
    /// Accounts with a special permission.
    Governance,
    /// Nobody.
    Compliance,
}

/// `snapshot …`
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// List all snapshots, newest first
    #[command(after_help = "\
Examples:
  e3-backup-agent snapshot list
  e3-backup-agent snapshot list --json
  e3-backup-agent snapshot list --quiet      only the ids")]
    List,
    /// Restore a whole snapshot to a folder
    #[command(after_help = "\
Examples:
  e3-backup-agent snapshot restore 3b1f9c0a --to ./restored
  e3-backup-agent snapshot restore 3b1f9c0a7d2e4f60a1b2c3d4e5f60718 --to /mnt/big/out
  e3-backup-agent snapshot restore 3b1f9c0a --to ./restored --json")]
    Restore {
        /// Manifest ID, or a unique prefix
        #[arg(add = ArgValueCandidates::new(completion::snapshots))]
        id: String,
        /// A new or empty folder
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
}

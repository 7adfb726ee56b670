//! `restore …`, `verify …`, `audit …`, and disk files.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::ArgValueCandidates;

use crate::completion;

use super::restore_vm::{RESTORE_VM_EXAMPLES, RESTORE_VM_LONG, RestoreVmArgs};

/// `restore …`
#[derive(Debug, Subcommand)]
pub enum RestoreCommand {
    /// Restore a whole VM: beside the original, in its place, on another host, or only what differs
    #[command(after_help = RESTORE_VM_EXAMPLES, after_long_help = RESTORE_VM_LONG)]
    Vm(Box<RestoreVmArgs>),
    /// Restore one disk of a point to a file or a block device
    #[command(after_help = "\
Examples:
  e3-backup-agent restore disk DC01@latest --to dc01.vhdx
  e3-backup-agent restore disk 7f3a91c2 --disk 1 --to data.raw --format raw
  e3-backup-agent restore disk DC01@2 --to /dev/sdx --format raw --overwrite")]
    Disk {
        /// Id, unique prefix, VM@latest or VM@N
        #[arg(add = ArgValueCandidates::new(completion::points))]
        point: String,
        /// Number or id of the disk; needed when the point has several
        #[arg(long, value_name = "N|ID")]
        disk: Option<String>,
        /// The file, or a block device
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// A dynamic VHDX that Hyper-V attaches, or the bytes that the guest saw
        #[arg(long, value_enum, default_value_t = FormatArg::Vhdx)]
        format: FormatArg,
        /// Replace a file that is there; needed for block devices
        #[arg(long)]
        overwrite: bool,
        /// Plan and quote; nothing is written
        #[arg(long)]
        dry_run: bool,
    },
}

/// Format of a disk file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// A dynamic VHDX.
    Vhdx,
    /// The bytes of the disk.
    Raw,
}

pub const VERIFY_EXAMPLES: &str = "\
Examples:
  e3-backup-agent verify DC01@latest
  e3-backup-agent verify 7f3a91c2 c41e07aa --level full
  e3-backup-agent verify --all --level sample
  e3-backup-agent verify DC01@latest --level restore --scratch /mnt/big

What was found is kept with the point: `points list` and `points show` say it.";

/// `verify …`
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Ids, unique prefixes, VM@latest or VM@N
    #[arg(value_name = "POINT", required_unless_present = "all", conflicts_with = "all", add = ArgValueCandidates::new(completion::points))]
    pub points: Vec<String>,
    /// Every point of the repository
    #[arg(long)]
    pub all: bool,
    /// How deep to look
    #[arg(long, value_enum, default_value_t = LevelArg::Structure)]
    pub level: LevelArg,
    /// Where --level restore puts disks for a moment, unencrypted (default: the system's temporary folder)
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
}

pub const AUDIT_EXAMPLES: &str = "\
Examples:
  e3-backup-agent audit
  e3-backup-agent audit DC01 'SQL*'
  e3-backup-agent backup DC01 --audit-all      a backup that checks everything, not a sample

Exit codes: 0 nothing found, 4 change tracking was wrong somewhere.";

/// `audit …`
#[derive(Args, Debug)]
pub struct AuditArgs {
    /// Names, ids or patterns of VMs; all, if left out
    #[arg(value_name = "VM", add = ArgValueCandidates::new(completion::vms))]
    pub vms: Vec<String>,
}

/// How deep a verification looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LevelArg {
    /// Every part is there and long enough.
    Structure,
    /// Besides, one in a hundred segments is read and its hash compared, 64 of each disk at least.
    Sample,
    /// Every byte is read and its hash compared.
    Full,
    /// Every disk is restored to --scratch, its file systems are checked (e2fsck, ntfsfix), and it is removed again.
    Restore,
}

/// `vhd …`
#[derive(Debug, Subcommand)]
pub enum VhdCommand {
    /// What a disk file says of itself, and its parents
    #[command(after_help = "\
Examples:
  e3-backup-agent vhd info server.vhdx
  e3-backup-agent vhd info old.vhd --json
  e3-backup-agent vhd info checkpoint.avhdx")]
    Info {
        /// A VHDX, VHD or raw file
        file: PathBuf,
    },
    /// Copy a disk, with its parents, into a new file
    #[command(after_help = "\
Examples:
  e3-backup-agent vhd convert server.vhdx server.raw
  e3-backup-agent vhd convert old.vhd new.vhdx
  e3-backup-agent vhd convert disk.img out --format vhdx")]
    Convert {
        /// A VHDX, VHD or raw file
        file: PathBuf,
        /// The new file; beside the old one by default
        out: Option<PathBuf>,
        /// By the new file's extension by default: raw for .raw and .img, else VHDX
        #[arg(long, value_enum)]
        format: Option<FormatArg>,
    },
}

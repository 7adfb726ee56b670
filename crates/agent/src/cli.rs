//! The arguments, with their help.

mod backup;
mod enroll;
mod global;
mod host;
mod instant;
mod points;
mod repository;
mod restore;
mod restore_vm;
mod serve;
mod service;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

pub use self::backup::{BackupArgs, ConsistencyArg};
pub use self::enroll::EnrollArgs;
pub use self::global::{Color, Global, ProgressStyle};
pub use self::host::{HostCommand, LabCommand, VmCommand};
pub use self::instant::{InstantCommand, InstantMoveArgs, InstantStartArgs, StateArgs, TransportArg};
pub use self::points::{LimitArgs, PointsCommand, RetentionCommand};
pub use self::repository::{LockModeArg, RepoCommand, SnapshotCommand};
pub use self::restore::{AuditArgs, FormatArg, LevelArg, RestoreCommand, VerifyArgs, VhdCommand};
pub use self::restore_vm::RestoreVmArgs;
pub use self::serve::{CacheArgs, LoginArgs, ServeCommand, ServeIscsiArgs, ServeNbdArgs, ServedArgs, TlsArgs};
pub use self::service::{ConfigCommand, ServiceCommand};

use self::backup::{BACKUP_EXAMPLES, BACKUP_LONG};
use self::enroll::ENROLL_EXAMPLES;
use self::restore::{AUDIT_EXAMPLES, VERIFY_EXAMPLES};
use self::service::{RUN_EXAMPLES, STATUS_EXAMPLES};

/// Backs up Hyper-V virtual machines into a repository in Kopia's format, and brings them back.
#[derive(Debug, Parser)]
#[command(
    name = "e3-backup-agent",
    // On Windows too, where the file has an extension.
    bin_name = "e3-backup-agent",
    version,
    disable_help_subcommand = true,
    propagate_version = true,
    infer_subcommands = false,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = TOP_EXAMPLES,
    after_long_help = TOP_LONG
)]
pub struct Cli {
    /// Flags that mean the same everywhere.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const TOP_EXAMPLES: &str = "\
Examples:
  e3-backup-agent repo create /srv/backups
  e3-backup-agent backup DC01 --host local --repo /srv/backups
  e3-backup-agent restore disk DC01@latest --to dc01.vhdx --repo /srv/backups";

const TOP_LONG: &str = "\
Examples:
  A repository, and a simulated host to play with:
    export E3_REPOSITORY=./demo-repo E3_HOST=lab:./lab
    e3-backup-agent repo create
    e3-backup-agent lab create ./lab
    e3-backup-agent lab add-vm ./lab DC01 --disk server.vhdx
  Back up, let the guest write, back up what changed:
    e3-backup-agent backup DC01
    e3-backup-agent lab write ./lab DC01 --mib 100
    e3-backup-agent backup DC01
  Look, verify, restore:
    e3-backup-agent points list
    e3-backup-agent verify DC01@latest --level full
    e3-backup-agent restore disk DC01@2 --to yesterday.vhdx

Topics: `e3-backup-agent help exit-codes`, `help points`, `help environment`, `help recovery`";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a repository, remember one, or look at it
    #[command(subcommand)]
    Repo(RepoCommand),
    /// A simulated Hyper-V host in a folder, to play with and for tests
    #[command(subcommand)]
    Lab(LabCommand),
    /// The virtual machines of a host
    #[command(subcommand)]
    Vm(VmCommand),
    /// Whether a host can be backed up, and what former runs left on it
    #[command(subcommand)]
    Host(HostCommand),
    /// Back up virtual machines
    #[command(after_help = BACKUP_EXAMPLES, after_long_help = BACKUP_LONG)]
    Backup(BackupArgs),
    /// The restore points in a repository
    #[command(subcommand)]
    Points(PointsCommand),
    /// Which points are kept, by which rule, and which are let go
    #[command(subcommand)]
    Retention(RetentionCommand),
    /// Bring something back from a point
    #[command(subcommand)]
    Restore(RestoreCommand),
    /// The disks of a point as block devices
    #[command(subcommand)]
    Serve(ServeCommand),
    /// Run a VM straight from a point, while its disks move to where they stay
    #[command(subcommand)]
    Instant(InstantCommand),
    /// Prove that points can be restored
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(VerifyArgs),
    /// What the checks of change tracking re-read, and what that is worth
    #[command(after_help = AUDIT_EXAMPLES)]
    Audit(AuditArgs),
    /// Any snapshot of the repository, stock Kopia's included
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Disk files: VHDX, VHD, raw
    #[command(subcommand)]
    Vhd(VhdCommand),
    /// Make this host an agent of a server
    #[command(alias = "enrol", after_help = ENROLL_EXAMPLES)]
    Enroll(EnrollArgs),
    /// Do the jobs of the configuration, or what the server says, until stopped
    #[command(after_help = RUN_EXAMPLES)]
    Run,
    /// The same as a service of this machine
    #[command(subcommand)]
    Service(ServiceCommand),
    /// What the agent of this host does, and what other shells do to its VMs
    #[command(after_help = STATUS_EXAMPLES)]
    Status,
    /// The values that count, and whether an agent could start with them
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Manual pages, a file for each command
    #[command(
        hide = true,
        after_help = "\
Examples:
  e3-backup-agent man ./man && man ./man/e3-backup-agent.1
  e3-backup-agent man /usr/local/share/man/man1
  e3-backup-agent man ./man --json"
    )]
    Man {
        /// A folder; it is made when it is not there
        dir: PathBuf,
    },
    /// The program's version
    // As `-V` says it, which the list has.
    #[command(hide = true)]
    Version,
    /// Completion for a shell
    ///
    /// `e3-backup-agent completion bash > /etc/bash_completion.d/e3-backup-agent`
    Completion {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Help on a command, or a topic: exit-codes, points, environment, recovery
    Help {
        /// A topic, or the words of a command
        topic: Vec<String>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_that_does_something_has_three_examples() {
        fn visit(command: &clap::Command, path: &str) {
            let subcommands: Vec<_> = command.get_subcommands().collect();
            for sub in &subcommands {
                visit(sub, &format!("{path} {}", sub.get_name()));
            }
            if subcommands.is_empty() && !["version", "completion", "help"].contains(&command.get_name()) {
                let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(text.matches("e3-backup-agent").count() >= 3, "{path}: {text}");
            }
        }
        visit(&Cli::command(), "");
    }

    #[test]
    fn short_help_fits_a_screen() {
        let mut command = Cli::command();
        command.build();
        for path in [&[][..], &["backup"], &["restore", "disk"], &["restore", "vm"], &["repo", "create"], &["verify"]] {
            let sub = path.iter().fold(&mut command, |at, name| at.find_subcommand_mut(name).unwrap());
            let lines = sub.render_help().to_string().lines().count();
            assert!(lines <= 40, "{path:?}: {lines} lines");
        }
    }
}

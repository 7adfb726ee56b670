//! `instant …`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::ArgValueCandidates;

use super::restore_vm::parse_network;
use super::{CacheArgs, FormatArg};
use crate::completion;
use crate::instant::qemu::Bus;
use crate::limits::parse_rate;
use crate::units::parse_duration;

/// `instant …`
#[derive(Debug, Subcommand)]
pub enum InstantCommand {
    /// Begin a session, or take one up again, and serve it until it ends or is stopped
    ///
    /// On a Hyper-V host the VM is made, with its disks on a volume of the backup, and started. With `--host qemu` the
    /// disks can be used as soon as this says so. What the guest writes is kept, encrypted, whatever dies when:
    /// after a kill or a restart of this machine `instant start --resume SESSION` goes on with it.
    #[command(after_help = "\
Examples:
  e3-backup-agent instant start DC01@latest --host local --folder 'D:\\VMs'
  e3-backup-agent instant start DC01@2 --host qemu --bus virtio --cache ./cache
  e3-backup-agent instant start --resume 5e1f0a2b")]
    Start(InstantStartArgs),
    /// The sessions of this machine
    #[command(after_help = "\
Examples:
  e3-backup-agent instant list
  e3-backup-agent instant list --json
  e3-backup-agent instant list --state ./sessions")]
    List {
        #[command(flatten)]
        state: StateArgs,
    },
    /// How a session is: progress, time left, what is read from where, how to start the machine
    #[command(after_help = "\
Examples:
  e3-backup-agent instant show DC01
  e3-backup-agent instant show 5e1f0a2b --json
  e3-backup-agent instant show DC01 --metrics")]
    Show {
        /// Beginning of its id, or the name of its VM
        session: String,
        /// Only its figures, in Prometheus' text format
        #[arg(long, conflicts_with = "json")]
        metrics: bool,
        #[command(flatten)]
        state: StateArgs,
    },
    /// Copy what the backup holds to local files, while the guest runs
    #[command(after_help = "\
Examples:
  e3-backup-agent instant move DC01 --to /var/lib/vms
  e3-backup-agent instant move 5e1f0a2b --to /var/lib/vms --format vhdx --rate 100MiB/s
  e3-backup-agent instant move DC01 --to /var/lib/vms --qmp /run/dc01.qmp")]
    Move(InstantMoveArgs),
    /// Let the local files take over; the session ends when its machine is stopped
    ///
    /// Under QEMU the guest runs on meanwhile. Under Hyper-V its VM has to be off, for as long as merging takes what it
    /// wrote: this waits until somebody has stopped it, or with `--shut-down` does so, and starts it again.
    #[command(after_help = "\
Examples:
  e3-backup-agent instant switch DC01
  e3-backup-agent instant switch 5e1f0a2b --shut-down
  e3-backup-agent instant switch DC01 --json")]
    Switch {
        /// Beginning of its id, or the name of its VM
        session: String,
        /// Under Hyper-V: shut the guest down for it, and start it again
        #[arg(long)]
        shut_down: bool,
        /// Only ask for it
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        state: StateArgs,
    },
    /// End a session, and lose what its guest wrote
    #[command(after_help = "\
Examples:
  e3-backup-agent instant discard DC01
  e3-backup-agent instant discard 5e1f0a2b --confirm DC01
  e3-backup-agent instant discard DC01 --confirm DC01 --json")]
    Discard {
        /// Beginning of its id, or the name of its VM
        session: String,
        /// The name of the VM, in place of typing it
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
        #[command(flatten)]
        state: StateArgs,
    },
}

/// Where sessions are.
#[derive(Args, Clone, Debug)]
pub struct StateArgs {
    /// Folder of the sessions, in place of the machine's own
    #[arg(
        id = "state",
        long = "state",
        env = "E3_STATE",
        value_name = "DIR",
        hide_short_help = true,
        hide_env_values = true
    )]
    pub folder: Option<PathBuf>,
}

/// How guests reach their disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TransportArg {
    /// QEMU's own.
    Nbd,
    /// With a login that is made for the session.
    Iscsi,
}

/// `instant start …`
#[derive(Args, Debug)]
pub struct InstantStartArgs {
    /// Id, unique prefix, VM@latest or VM@N
    #[arg(add = ArgValueCandidates::new(completion::points), required_unless_present = "resume")]
    pub point: Option<String>,
    /// A session that nobody serves any more: beginning of its id, or the name of its VM
    #[arg(long, value_name = "SESSION", conflicts_with_all = ["point", "transport", "listen", "socket", "bus"])]
    pub resume: Option<String>,
    /// How a guest under QEMU reaches its disks; by default nbd
    #[arg(long, value_enum)]
    pub transport: Option<TransportArg>,
    /// Address of this machine in place of a Unix socket; port 0 picks one
    #[arg(long, value_name = "ADDRESS", conflicts_with = "socket")]
    pub listen: Option<SocketAddr>,
    /// A Unix socket somewhere else than in the session's folder, which only its owner may enter
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// What the disks are attached to under QEMU; by default sata
    #[arg(long, value_enum)]
    pub bus: Option<Bus>,
    #[command(flatten)]
    pub vm: InstantVmArgs,
    #[command(flatten)]
    pub caches: CacheArgs,
    /// Stop after this time by itself
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, hide_short_help = true)]
    pub stop_after: Option<Duration>,
    /// How long a session whose disks have moved waits for its machine to come back under QEMU; by default 30s
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, hide_short_help = true)]
    pub linger: Option<Duration>,
    #[command(flatten)]
    pub state: StateArgs,
}

/// The VM that is made on a Hyper-V host.
#[derive(Args, Debug)]
#[command(next_help_heading = "On a Hyper-V host")]
pub struct InstantVmArgs {
    /// Its name; by default the one it had, with -restored behind it if that is taken
    #[arg(long, conflicts_with = "resume")]
    pub name: Option<String>,
    /// Folder of the host for the VM's own folder; by default where the original was
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    pub folder: Option<String>,
    /// The id, addresses and network that it had; the original must be gone
    #[arg(long, conflicts_with = "resume")]
    pub same_id: bool,
    /// Connect what was on switch OLD to switch NEW of the host; repeat it for several
    #[arg(long, value_name = "OLD=NEW", value_parser = parse_network, conflicts_with = "resume")]
    pub network: Vec<(String, String)>,
    /// Build the VM from its settings, where its configuration cannot be imported
    #[arg(long, hide_short_help = true, conflicts_with = "resume")]
    pub from_settings: bool,
    /// Do not start it
    #[arg(long)]
    pub off: bool,
}

/// `instant move …`
#[derive(Args, Debug)]
pub struct InstantMoveArgs {
    /// Beginning of its id, or the name of its VM
    pub session: String,
    /// Folder for the files, named after the VM and its disks; under Hyper-V they go into the VM's own folder
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// What they are; by default raw, under Hyper-V always VHDX
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,
    /// Read no faster than this
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub rate: Option<u64>,
    /// Let QEMU itself move the disks, over its control socket, and end the session
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["rate", "no_wait"])]
    pub qmp: Option<PathBuf>,
    /// Only ask for it
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub state: StateArgs,
}

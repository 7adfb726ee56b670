//! The arguments, with their help.

use std::path::PathBuf;
use std::time::Duration;

use backup::ConsistencyPolicy;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::limits::parse_rate;
use crate::restore_args::{RESTORE_VM_EXAMPLES, RESTORE_VM_LONG, RestoreVmArgs};
use crate::units::{parse_duration, parse_size};

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
  e3-backup-agent restore disk DC01@latest --to dc01.vhdx --repo /srv/backups
More: `e3-backup-agent COMMAND --help`, `help exit-codes|points|environment|recovery`";

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

/// Flags that mean the same everywhere.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Everywhere")]
pub struct Global {
    /// Repository: a path, or s3://bucket/prefix/?endpoint=…
    ///
    /// A path, file:///path, or s3://bucket/prefix/?endpoint=…&region=…
    #[arg(long, global = true, env = "E3_REPOSITORY", value_name = "URL", hide_env_values = true)]
    pub repo: Option<String>,
    /// Host: `local` (this Windows host) or `lab:DIR` (a simulated one)
    #[arg(long, global = true, env = "E3_HOST", value_name = "HOST", hide_env_values = true)]
    pub host: Option<String>,
    /// File that holds the repository password (or set E3_PASSWORD)
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub password_file: Option<PathBuf>,
    /// Configuration file in place of the user's own
    #[arg(long, global = true, env = "E3_CONFIG", value_name = "FILE", hide_short_help = true, hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Results as JSON (docs/cli-json.md); never prompts
    #[arg(long, global = true)]
    pub json: bool,
    /// Only ids, or the one value asked for
    #[arg(short, long, global = true, hide_short_help = true)]
    pub quiet: bool,
    /// Causes of errors and traces; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, hide_short_help = true)]
    pub verbose: u8,
    /// How progress is shown on standard error
    #[arg(long, global = true, value_enum, default_value_t = ProgressStyle::Auto, value_name = "STYLE", hide_short_help = true)]
    pub progress: ProgressStyle,
    /// Colour on standard error (NO_COLOR is honoured)
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN", hide_short_help = true)]
    pub color: Color,
    /// Times in UTC in place of local time
    #[arg(long, global = true, hide_short_help = true)]
    pub utc: bool,
    /// Send no faster than this, such as 20MiB/s
    #[arg(long, global = true, value_name = "RATE", value_parser = parse_rate, hide_short_help = true)]
    pub limit: Option<u64>,
    /// Give up on a store that does not answer after this long, such as 30s or 10m (default 5m, for backups 30m)
    #[arg(long, global = true, value_name = "DUR", value_parser = parse_duration, hide_short_help = true)]
    pub timeout: Option<Duration>,
    /// Do not ask
    #[arg(short, long, global = true, hide_short_help = true)]
    pub yes: bool,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgressStyle {
    /// A bar on a terminal, plain lines elsewhere, nothing with --json or --quiet.
    Auto,
    /// One line that is overwritten.
    Bar,
    /// A line at each phase, and at most one a minute or each 10 %.
    Plain,
    /// An object per line on standard error.
    Json,
    /// Nothing.
    None,
}

/// When colour is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Also into pipes.
    Always,
    /// Not at all.
    Never,
}

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
    /// Do the jobs of the configuration as they are due, in the foreground, until stopped
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
    #[command(after_help = "\
Examples:
  e3-backup-agent man ./man && man ./man/e3-backup-agent.1
  e3-backup-agent man /usr/local/share/man/man1
  e3-backup-agent man ./man --json")]
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
}

/// Who may lift an object lock before its date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LockModeArg {
    /// Accounts with a special permission.
    Governance,
    /// Nobody.
    Compliance,
}

/// `lab …`
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Make an empty simulated host in a folder
    #[command(after_help = "\
Examples:
  e3-backup-agent lab create ./lab
  E3_HOST=lab:./lab e3-backup-agent vm list
  e3-backup-agent lab create ./lab --json")]
    Create {
        /// A new or empty folder
        dir: PathBuf,
    },
    /// Put a virtual machine on it
    #[command(after_help = "\
Examples:
  e3-backup-agent lab add-vm ./lab DC01 --disk server.vhdx
  e3-backup-agent lab add-vm ./lab SQL01 --disk system.vhd --disk data.raw
  e3-backup-agent lab add-vm ./lab EMPTY --size 64GiB")]
    AddVm {
        /// The host's folder
        dir: PathBuf,
        /// Name of the VM
        name: String,
        /// A VHDX, VHD or raw disk file; it is copied. Repeat it for several disks
        #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present = "size")]
        disk: Vec<PathBuf>,
        /// An empty disk of this size; they come behind those of --disk
        #[arg(long, value_name = "N", value_parser = parse_size)]
        size: Vec<u64>,
    },
    /// Let the scripted guest write; prints the SHA-256 of each disk's raw content
    #[command(after_help = "\
Examples:
  e3-backup-agent lab write ./lab DC01
  e3-backup-agent lab write ./lab DC01 --mib 100 --seed 7
  e3-backup-agent lab write ./lab DC01 --mib 0        only the SHA-256")]
    Write {
        /// The host's folder
        dir: PathBuf,
        /// Name or id of the VM
        name: String,
        /// The same seed on the same disks gives the same writes; another one each time by default
        #[arg(long)]
        seed: Option<u64>,
        /// How much is written
        #[arg(long, value_name = "N", default_value_t = 16)]
        mib: u32,
    },
}

/// `vm …`
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// List the virtual machines of a host
    #[command(after_help = "\
Examples:
  e3-backup-agent vm list --host local
  e3-backup-agent vm list --host lab:./lab
  e3-backup-agent vm list --host lab:./lab --json")]
    List,
    /// One virtual machine: its disks, how it can be backed up, and what to know before
    #[command(after_help = "\
Examples:
  e3-backup-agent vm show DC01
  e3-backup-agent vm show F37E254E-7426-46AA-A13D-86E83D09C34B
  e3-backup-agent vm show DC01 --json")]
    Show {
        /// Name or id
        vm: String,
    },
}

/// `host …`
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Rights, service, change tracking of each VM, and leftovers; changes nothing
    #[command(after_help = "\
Examples:
  e3-backup-agent host check --host local
  e3-backup-agent host check --host lab:./lab
  e3-backup-agent host check --json

Exit codes: 0 all is well, 4 something was found or a VM cannot be backed up.")]
    Check {
        /// Also take for ours what carries this agent's id
        #[arg(long, value_name = "AGENT")]
        from: Option<String>,
    },
    /// List what former runs left, and remove what is proven to be ours
    #[command(after_help = "\
Examples:
  e3-backup-agent host clean
  e3-backup-agent host clean --yes
  e3-backup-agent host clean --from 3f9a01bc      leftovers of an agent that is gone

Checkpoints and reference points of other programs, and what may be ours without proof, are named and left alone.")]
    Clean {
        /// Also take for ours what carries this agent's id
        #[arg(long, value_name = "AGENT")]
        from: Option<String>,
    },
}

const BACKUP_EXAMPLES: &str = "\
Examples:
  e3-backup-agent backup DC01
  e3-backup-agent backup --all --host local --repo /srv/backups
  e3-backup-agent backup DC01 SQL01 --full --consistency application-required";

const BACKUP_LONG: &str = "\
Examples:
  e3-backup-agent backup DC01
  e3-backup-agent backup --all --host local --repo /srv/backups
  e3-backup-agent backup DC01 SQL01 --full --consistency application-required
  e3-backup-agent backup DC01 --segment-size 256KiB      small segments for a database
  e3-backup-agent backup --all --json > result.json      for scripts

Some VMs are backed up at a time (--parallel); one that fails does not stop the others. The first point of a VM is read in full,
later ones read what Hyper-V says has changed. A disk that cannot be read gives no point of that VM.

Exit codes: 0 all done, 3 some VMs failed, 4 done with warnings (0 with --warnings-ok); the rest by
`e3-backup-agent help exit-codes`. Ctrl+C once stops cleanly, twice at once; earlier points are untouched either way.";

/// `backup …`
#[derive(Args, Debug)]
pub struct BackupArgs {
    /// Names or ids of VMs
    #[arg(value_name = "VM", required_unless_present = "all", conflicts_with = "all")]
    pub vms: Vec<String>,
    /// Every VM of the host
    #[arg(long)]
    pub all: bool,
    /// With --all: but these, by name or id; * stands for any text
    #[arg(long, value_name = "PATTERN", requires = "all")]
    pub except: Vec<String>,
    /// VMs at a time (default: vms_at_once of the configuration, or 2)
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub parallel: Option<usize>,
    /// Read everything, whatever change tracking says
    #[arg(long)]
    pub full: bool,
    /// Re-read all that change tracking calls unchanged, not a sample of it
    #[arg(long)]
    pub audit_all: bool,
    /// What to ask of the guest
    #[arg(long, value_enum, default_value_t = ConsistencyArg::Application)]
    pub consistency: ConsistencyArg,
    /// Unit of deduplication, 256KiB to 4MiB, a power of two; another one than before means a full read
    #[arg(long, value_name = "N", value_parser = parse_size)]
    pub segment_size: Option<u64>,
    /// Exit with 0 although there are warnings
    #[arg(long)]
    pub warnings_ok: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("{text:?} is not a number of at least 1")),
        Ok(number) => Ok(number),
    }
}

/// What to ask of the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsistencyArg {
    /// Application-consistent; crash-consistent with a warning where the guest cannot.
    #[default]
    Application,
    /// Application-consistent, or no point.
    ApplicationRequired,
    /// Do not ask the guest.
    Crash,
}

impl ConsistencyArg {
    /// The same for the engine.
    pub fn policy(self) -> ConsistencyPolicy {
        match self {
            Self::Application => ConsistencyPolicy::PreferApplication,
            Self::ApplicationRequired => ConsistencyPolicy::RequireApplication,
            Self::Crash => ConsistencyPolicy::Crash,
        }
    }
}

const RUN_EXAMPLES: &str = "\
Examples:
  e3-backup-agent run
  e3-backup-agent run --config ./jobs.toml --host lab:./lab
  E3_LOG=info e3-backup-agent run --password-file password.txt

A job in the configuration: [[job]] name = \"nightly\", at = \"22:00\" (docs/service.md). SIGHUP reads it again; Ctrl+C
once stops cleanly, twice at once.";

/// `service …`
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Install it, or bring an installed one up to date (Windows; elevated)
    #[command(after_help = "\
Examples:
  e3-backup-agent service install
  e3-backup-agent service install --start
  e3-backup-agent service install && e3-backup-agent service status")]
    Install {
        /// Start it, too
        #[arg(long)]
        start: bool,
    },
    /// Start it
    #[command(after_help = SERVICE_EXAMPLES)]
    Start,
    /// Stop it; a backup that runs is ended cleanly first
    #[command(after_help = SERVICE_EXAMPLES)]
    Stop,
    /// Begin no new run until `resume`; one that goes on ends as it would
    #[command(after_help = SERVICE_EXAMPLES)]
    Pause,
    /// Undo `pause`
    #[command(after_help = SERVICE_EXAMPLES)]
    Resume,
    /// Read the configuration again
    #[command(after_help = SERVICE_EXAMPLES)]
    Reload,
    /// What the agent of this host does, and what became of its jobs
    #[command(after_help = "\
Examples:
  e3-backup-agent service status
  e3-backup-agent service status --json
  e3-backup-agent service status --quiet      waiting, running, paused or stopped")]
    Status,
    /// Stop and remove it; configuration, journals and log stay
    #[command(alias = "uninstall", after_help = SERVICE_EXAMPLES)]
    Remove,
    /// What the service manager starts
    #[command(hide = true, after_help = SERVICE_EXAMPLES)]
    Main,
}

const STATUS_EXAMPLES: &str = "\
Examples:
  e3-backup-agent status
  e3-backup-agent status --host lab:./lab --json
  e3-backup-agent status --quiet      the agent's state, then the VMs that are worked on";

/// `config …`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Every value that counts; secrets only as `set`
    #[command(after_help = "\
Examples:
  e3-backup-agent config show
  e3-backup-agent config show --origin
  e3-backup-agent config show --json")]
    Show {
        /// Also where each is from: flag, environment, user file, machine file, built-in
        #[arg(long)]
        origin: bool,
    },
    /// What a start of the agent would say; opens neither host nor repository
    #[command(after_help = "\
Examples:
  e3-backup-agent config check
  e3-backup-agent config check --config ./jobs.toml
  e3-backup-agent config check --json

Exit codes: 0 it would start, 2 something is wrong and named.")]
    Check,
}

const SERVICE_EXAMPLES: &str = "\
Examples:
  e3-backup-agent service start
  e3-backup-agent service pause
  e3-backup-agent service stop";

/// `points …`
#[derive(Debug, Subcommand)]
pub enum PointsCommand {
    /// List the points, newest first
    #[command(after_help = "\
Examples:
  e3-backup-agent points list
  e3-backup-agent points list --vm DC01 --utc
  e3-backup-agent points list --vm DC01 --quiet      only the ids")]
    List {
        /// Of this VM only, by name or id
        #[arg(long)]
        vm: Option<String>,
    },
    /// Everything about a point
    #[command(after_help = "\
Examples:
  e3-backup-agent points show DC01@latest
  e3-backup-agent points show 7f3a91c2 --json
  e3-backup-agent points show --vm DC01              its newest point")]
    Show {
        /// Id, unique prefix, VM@latest or VM@N
        #[arg(required_unless_present = "vm", conflicts_with = "vm")]
        point: Option<String>,
        /// The newest point of this VM
        #[arg(long)]
        vm: Option<String>,
    },
    /// Keep points whatever the policy says, until they are released
    #[command(after_help = "\
Examples:
  e3-backup-agent points hold DC01@latest --reason 'before the upgrade'
  e3-backup-agent points hold 7f3a91c2 c41e07aa --reason 'ticket 4711' --until 2027-01-31
  e3-backup-agent points hold DC01@2 --until 30d")]
    Hold {
        /// Ids, unique prefixes, VM@latest or VM@N
        #[arg(value_name = "POINT", required = true)]
        points: Vec<String>,
        /// Why, in a line that every list shows
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
        /// When the hold ends by itself: 2027-01-31, 2027-01-31T18:00:00Z, 30d
        #[arg(long, value_name = "TIME", value_parser = crate::commands::holds::parse_until)]
        until: Option<jiff::Timestamp>,
    },
    /// End every hold of points
    #[command(after_help = "\
Examples:
  e3-backup-agent points release DC01@latest
  e3-backup-agent points release 7f3a91c2 c41e07aa
  e3-backup-agent points release 7f3a91c2 --json")]
    Release {
        /// Ids, unique prefixes, VM@latest or VM@N
        #[arg(value_name = "POINT", required = true)]
        points: Vec<String>,
    },
    /// Delete points; refused for a held one, and for the last sound one of a VM
    #[command(after_help = "\
Examples:
  e3-backup-agent points delete 7f3a91c2 --dry-run
  e3-backup-agent points delete 7f3a91c2 --confirm DC01
  e3-backup-agent points delete DC01@3 DC01@4 --confirm DC01")]
    Delete {
        /// Ids, unique prefixes, VM@latest or VM@N
        #[arg(value_name = "POINT", required = true)]
        points: Vec<String>,
        /// Only say what would go, and what is in the way
        #[arg(long)]
        dry_run: bool,
        /// The name of the VM, once for each: nobody is asked then
        #[arg(long, value_name = "NAME")]
        confirm: Vec<String>,
    },
}

/// `retention …`
#[derive(Debug, Subcommand)]
pub enum RetentionCommand {
    /// Which points the policy keeps, by which rule, and which it lets go
    #[command(after_help = "\
Examples:
  e3-backup-agent retention plan
  e3-backup-agent retention plan DC01 --keep-daily 14 --keep-weekly 8
  e3-backup-agent retention plan --quiet             only the ids of what goes")]
    Plan {
        /// Names or ids of VMs; all by default
        #[arg(value_name = "VM")]
        vms: Vec<String>,
        /// In place of the stored policy.
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Let go what the policy does not keep; never a held point, never a VM's newest sound one
    #[command(after_help = "\
Examples:
  e3-backup-agent retention apply --dry-run
  e3-backup-agent retention apply DC01 --confirm DC01
  e3-backup-agent retention apply --confirm all      for scripts")]
    Apply {
        /// Names or ids of VMs; all by default
        #[arg(value_name = "VM")]
        vms: Vec<String>,
        /// In place of the stored policy.
        #[command(flatten)]
        limits: LimitArgs,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        /// The name of the VM, once for each, or `all` when none is named: nobody is asked then
        #[arg(long, value_name = "NAME")]
        confirm: Vec<String>,
    },
    /// Store a policy for VMs, where stock Kopia finds it too
    #[command(after_help = "\
Examples:
  e3-backup-agent retention set DC01 --keep-latest 3 --keep-daily 14 --keep-weekly 8 --keep-monthly 12
  e3-backup-agent retention set --all --keep-daily 30 --dry-run
  e3-backup-agent retention set DC01 --keep-all      as it is for every new VM")]
    Set {
        /// Names or ids of VMs
        #[arg(value_name = "VM", required_unless_present = "all", conflicts_with = "all")]
        vms: Vec<String>,
        /// Every VM that has points
        #[arg(long)]
        all: bool,
        /// Let nothing go
        #[arg(long, conflicts_with = "LimitArgs", required_unless_present = "LimitArgs")]
        keep_all: bool,
        /// The policy.
        #[command(flatten)]
        limits: LimitArgs,
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
        /// The name of the VM, once for each, or `all`, when points go by it: nobody is asked then
        #[arg(long, value_name = "NAME")]
        confirm: Vec<String>,
    },
}

/// Limits of a policy. A kind that is not named keeps nothing by itself.
#[derive(Args, Clone, Debug)]
#[group(id = "LimitArgs", multiple = true)]
pub struct LimitArgs {
    /// The newest N points
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..=999_999))]
    pub keep_latest: Option<i64>,
    /// The newest point of each hour, N hours back from the newest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..=999_999))]
    pub keep_hourly: Option<i64>,
    /// The same of days
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..=999_999))]
    pub keep_daily: Option<i64>,
    /// The same of weeks, which begin on Monday
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..=999_999))]
    pub keep_weekly: Option<i64>,
    /// The same of months
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..=999_999))]
    pub keep_monthly: Option<i64>,
    /// The same of years
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..=999_999))]
    pub keep_annual: Option<i64>,
}

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

/// `serve …`
#[derive(Debug, Subcommand)]
pub enum ServeCommand {
    /// Over NBD, for QEMU, nbd-client and libnbd on this machine, until stopped
    #[command(after_help = "\
Examples:
  e3-backup-agent serve nbd DC01@latest
  e3-backup-agent serve nbd DC01@2 --disk 0 --socket ./dc01.sock
  e3-backup-agent serve nbd DC01@latest --writes ./dc01-writes --cache ./cache")]
    Nbd(ServeNbdArgs),
}

/// `serve nbd …`
#[derive(Args, Debug)]
pub struct ServeNbdArgs {
    /// Id, unique prefix, VM@latest or VM@N
    pub point: String,
    /// Number or id of a disk; all of them when nothing is said
    #[arg(long, value_name = "N|ID")]
    pub disk: Option<String>,
    /// Address of this machine; port 0 picks one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10809", conflicts_with = "socket")]
    pub listen: std::net::SocketAddr,
    /// A Unix socket in place of an address; its folder says who may connect
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Take writes, and keep them encrypted in this folder; the point stays as it is
    ///
    /// What is there from before is gone on with, after a crash too. Deleting the folder discards the writes.
    #[arg(long, value_name = "DIR")]
    pub writes: Option<PathBuf>,
    /// Keep what is fetched, as it is stored, in this folder
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// How much of it
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = parse_size, requires = "cache")]
    pub cache_size: u64,
    /// How much is kept in memory
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_size)]
    pub memory: u64,
    /// Stop after this time by itself
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    pub stop_after: Option<Duration>,
}

/// Format of a disk file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// A dynamic VHDX.
    Vhdx,
    /// The bytes of the disk.
    Raw,
}

const VERIFY_EXAMPLES: &str = "\
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
    #[arg(value_name = "POINT", required_unless_present = "all", conflicts_with = "all")]
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

const AUDIT_EXAMPLES: &str = "\
Examples:
  e3-backup-agent audit
  e3-backup-agent audit DC01 'SQL*'
  e3-backup-agent backup DC01 --audit-all      a backup that checks everything, not a sample

Exit codes: 0 nothing found, 4 change tracking was wrong somewhere.";

/// `audit …`
#[derive(Args, Debug)]
pub struct AuditArgs {
    /// Names, ids or patterns of VMs; all, if left out
    #[arg(value_name = "VM")]
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
        id: String,
        /// A new or empty folder
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
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

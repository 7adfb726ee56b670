//! The agent that runs by itself: `run`, `service …`, `status`, `config …`.

use clap::Subcommand;

pub const RUN_EXAMPLES: &str = "\
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
        /// The same where it is enrolled or configured; elsewhere its start would only fail (what the MSI gives)
        #[arg(long, conflicts_with = "start", hide = true)]
        start_if_ready: bool,
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

pub const STATUS_EXAMPLES: &str = "\
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

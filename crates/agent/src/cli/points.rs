//! `points …`, `retention …`.

use clap::{Args, Subcommand};
use clap_complete::ArgValueCandidates;

use crate::completion;

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
        #[arg(long, add = ArgValueCandidates::new(completion::vms))]
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
        #[arg(required_unless_present = "vm", conflicts_with = "vm", add = ArgValueCandidates::new(completion::points))]
        point: Option<String>,
        /// The newest point of this VM
        #[arg(long, add = ArgValueCandidates::new(completion::vms))]
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
        #[arg(value_name = "POINT", required = true, add = ArgValueCandidates::new(completion::points))]
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
        #[arg(value_name = "POINT", required = true, add = ArgValueCandidates::new(completion::points))]
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
        #[arg(value_name = "POINT", required = true, add = ArgValueCandidates::new(completion::points))]
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
        #[arg(value_name = "VM", add = ArgValueCandidates::new(completion::vms))]
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
        #[arg(value_name = "VM", add = ArgValueCandidates::new(completion::vms))]
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
        #[arg(value_name = "VM", required_unless_present = "all", conflicts_with = "all", add = ArgValueCandidates::new(completion::vms))]
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

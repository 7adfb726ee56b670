//! `backup …`.

use backup::ConsistencyPolicy;
use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;
use serde::{Deserialize, Serialize};

use crate::completion;
use crate::units::parse_size;

pub const BACKUP_EXAMPLES: &str = "\
Examples:
  e3-backup-agent backup DC01
  e3-backup-agent backup --all --host local --repo /srv/backups
  e3-backup-agent backup DC01 SQL01 --full --consistency application-required";

pub const BACKUP_LONG: &str = "\
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
    #[arg(value_name = "VM", required_unless_present = "all", conflicts_with = "all", add = ArgValueCandidates::new(completion::vms))]
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

//! The arguments of `restore vm`, with their help.

use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::completion;
use crate::units::parse_size;

pub const RESTORE_VM_EXAMPLES: &str = "\
Examples:
  e3-backup-agent restore vm DC01@latest --host local --folder 'D:\\VMs'
  e3-backup-agent restore vm DC01@2 --name DC01-test --network Prod=Lab --power-on
  e3-backup-agent restore vm DC01@latest --replace --confirm DC01 --dry-run";

pub const RESTORE_VM_LONG: &str = "\
Examples:
  A copy beside the original, or the VM on another host; not connected, off:
    e3-backup-agent restore vm DC01@latest --host local --folder 'D:\\VMs'
  A copy on another switch, started:
    e3-backup-agent restore vm DC01@2 --name DC01-test --network Prod=Lab --power-on
  In place of the VM that is there, which is kept for 7 days:
    e3-backup-agent restore vm DC01@latest --replace --confirm DC01
  Only what differs, into the disks of the VM that is there (off, no checkpoints):
    e3-backup-agent restore vm DC01@latest --in-place --confirm DC01
  Obstacles, plan and quote, and nothing else:
    e3-backup-agent restore vm DC01@latest --replace --dry-run

All obstacles are listed at once. What must be solved ends the command with exit code 5 before anything is touched; what
a person has to decide asks, or takes --yes. A restore that fails or is stopped leaves nothing; one that is killed is put
in order by the next. The result lists every setting that is other than it was, and why.

Exit codes: 0 done, 4 done with warnings (0 with --warnings-ok), 5 obstacles; the rest by
`e3-backup-agent help exit-codes`.";

/// `restore vm …`
#[derive(Args, Debug)]
pub struct RestoreVmArgs {
    /// Id, unique prefix, VM@latest or VM@N
    #[arg(add = ArgValueCandidates::new(completion::points))]
    pub point: String,
    /// Its name; by default the one it had, with -restored behind it if that is taken
    #[arg(long)]
    pub name: Option<String>,
    /// Folder of the host for the VM's own folder; by default where the original was
    #[arg(long, value_name = "DIR")]
    pub folder: Option<String>,
    /// Connect what was on switch OLD to switch NEW of the host; repeat it for several
    #[arg(long, value_name = "OLD=NEW", value_parser = parse_network)]
    pub network: Vec<(String, String)>,
    /// Connect no network adapter
    #[arg(long, conflicts_with = "network")]
    pub disconnect: bool,
    /// A new id, new addresses, and no network unless --network says so (the default)
    #[arg(long, conflicts_with_all = ["same_id", "replace"])]
    pub new_id: bool,
    /// The id, addresses and network that it had; the original must be gone
    #[arg(long)]
    pub same_id: bool,
    /// Take the place of the VM that has the id; that one is renamed, disconnected and kept for some days
    #[arg(long)]
    pub replace: bool,
    /// How long a replaced VM is kept
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(0..=36_500), hide_short_help = true)]
    pub keep_old_days: u32,
    /// Write only what differs, into the disks of the VM that is there
    #[arg(long, conflicts_with_all = ["name", "folder", "network", "disconnect", "new_id", "same_id", "replace", "disk", "from_settings", "processors", "memory"])]
    pub in_place: bool,
    /// With --in-place: make no backup of what the disks hold now
    #[arg(long, requires = "in_place")]
    pub no_safety_point: bool,
    /// Only this disk, by its number; repeat it for several
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub disk: Vec<u32>,
    /// Build the VM from its settings, where its configuration cannot be imported
    #[arg(long, hide_short_help = true)]
    pub from_settings: bool,
    /// Another number of processors
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub processors: Option<u64>,
    /// Another amount of start-up memory, such as 2GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size, hide_short_help = true)]
    pub memory: Option<u64>,
    /// Start it at the end
    #[arg(long)]
    pub power_on: bool,
    /// Obstacles, plan and quote; nothing is touched
    #[arg(long)]
    pub dry_run: bool,
    /// The name of the VM that is replaced or overwritten
    #[arg(long, value_name = "NAME")]
    pub confirm: Option<String>,
    /// Exit with 0 although there are warnings
    #[arg(long, hide_short_help = true)]
    pub warnings_ok: bool,
}

pub(super) fn parse_network(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && !new.is_empty() => Ok((old.to_owned(), new.to_owned())),
        _ => Err(format!("{text:?} is not OLD=NEW, two names or ids of switches")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_pairs() {
        assert_eq!(parse_network("LAN=Test net"), Ok(("LAN".into(), "Test net".into())));
        for text in ["", "LAN", "=Test", "LAN="] {
            assert!(parse_network(text).is_err(), "{text:?}");
        }
    }
}

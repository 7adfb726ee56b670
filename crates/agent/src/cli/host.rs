//! What is on a host, real or simulated: `lab …`, `vm …`, `host …`.

use std::path::PathBuf;

use clap::Subcommand;
use clap_complete::ArgValueCandidates;

use super::StateArgs;
use crate::completion;
use crate::units::parse_size;

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
    /// Move a virtual machine to another simulated host, as a live migration does
    #[command(after_help = "\
Examples:
  e3-backup-agent lab move-vm ./lab DC01 --to ./lab2
  e3-backup-agent lab move-vm ./lab SQL01 --to ./lab2 --json
  e3-backup-agent lab move-vm ./lab2 DC01 --to ./lab

Id, name and disks stay; what the old host tracked and remembered does not come along. A VM with checkpoints stays.")]
    MoveVm {
        /// Folder of the host that it is on
        dir: PathBuf,
        /// Name or id of the VM
        name: String,
        /// Folder of the host that it goes to
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
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
        #[arg(add = ArgValueCandidates::new(completion::vms))]
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
  e3-backup-agent host check --host qemu          whether VMs could run straight from the backup here
  e3-backup-agent host check --json

Exit codes: 0 all is well, 4 something was found or a VM cannot be backed up.")]
    Check {
        /// Also take for ours what carries this agent's id
        #[arg(long, value_name = "AGENT")]
        from: Option<String>,
        #[command(flatten)]
        state: StateArgs,
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

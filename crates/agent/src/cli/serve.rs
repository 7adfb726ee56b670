//! `serve …`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use clap_complete::ArgValueCandidates;

use crate::completion;
use crate::units::{parse_duration, parse_size};

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
    #[arg(add = ArgValueCandidates::new(completion::points))]
    pub point: String,
    /// Number or id of a disk; all of them when nothing is said
    #[arg(long, value_name = "N|ID")]
    pub disk: Option<String>,
    /// Address of this machine; port 0 picks one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10809", conflicts_with = "socket")]
    pub listen: SocketAddr,
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

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
    /// Over NBD, for QEMU, nbd-client and libnbd, until stopped; with TLS and certificates also for other machines
    #[command(after_help = "\
Examples:
  e3-backup-agent serve nbd DC01@latest
  e3-backup-agent serve nbd DC01@2 --disk 0 --socket ./dc01.sock
  e3-backup-agent serve nbd DC01@latest --listen 0.0.0.0:10809 --tls-cert s.pem --tls-key s-key.pem --tls-ca ca.pem")]
    Nbd(ServeNbdArgs),
    /// Over iSCSI, for any initiator, until stopped; with a login (CHAP) also for other machines
    #[command(after_help = "\
Examples:
  e3-backup-agent serve iscsi DC01@latest
  e3-backup-agent serve iscsi DC01@2 --volume --writes ./w
  e3-backup-agent serve iscsi DC01@latest --listen 0.0.0.0:3260 --writes ./w --chap-user alice --chap-secret-file ./chap")]
    Iscsi(ServeIscsiArgs),
}

/// `serve nbd …`
#[derive(Args, Debug)]
pub struct ServeNbdArgs {
    #[command(flatten)]
    pub served: ServedArgs,
    /// Address of this machine; port 0 picks one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10809", conflicts_with = "socket")]
    pub listen: SocketAddr,
    /// A Unix socket in place of an address; its folder says who may connect
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// How clients of NBD are spoken with. All files are PEM.
#[derive(Args, Debug)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// Certificate that this server shows; from now on nothing is served without TLS
    #[arg(long, value_name = "FILE", requires = "tls_key", conflicts_with = "socket")]
    pub tls_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Authorities whose certificates clients have to show; needed where other machines connect
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
}

/// `serve iscsi …`
#[derive(Args, Debug)]
pub struct ServeIscsiArgs {
    #[command(flatten)]
    pub served: ServedArgs,
    /// Address; port 0 picks one. Other machines are let in only with a login
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:3260")]
    pub listen: SocketAddr,
    /// Name of the target; by default it follows from the point, or from what `--writes` holds
    #[arg(long, value_name = "IQN")]
    pub target: Option<String>,
    #[command(flatten)]
    pub login: LoginArgs,
}

/// Who may log in to an iSCSI target. Secrets are never arguments.
#[derive(Args, Debug)]
#[command(next_help_heading = "Login")]
pub struct LoginArgs {
    /// Name that initiators prove (CHAP)
    #[arg(long, value_name = "NAME")]
    pub chap_user: Option<String>,
    /// File that holds its secret, 12 to 16 characters for Windows (or set E3_CHAP_SECRET)
    #[arg(long, value_name = "FILE", requires = "chap_user")]
    pub chap_secret_file: Option<PathBuf>,
    /// Name that this target proves to initiators that ask (mutual CHAP)
    #[arg(long, value_name = "NAME", requires = "chap_user")]
    pub mutual_chap_user: Option<String>,
    /// File that holds its secret, another one (or set E3_MUTUAL_CHAP_SECRET)
    #[arg(long, value_name = "FILE", requires = "mutual_chap_user")]
    pub mutual_chap_secret_file: Option<PathBuf>,
}

/// What is served, over any transport.
#[derive(Args, Debug)]
pub struct ServedArgs {
    /// Id, unique prefix, VM@latest or VM@N
    #[arg(add = ArgValueCandidates::new(completion::points))]
    pub point: String,
    /// Number or id of a disk; all of them when nothing is said
    #[arg(long, value_name = "N|ID")]
    pub disk: Option<String>,
    /// One disk with an NTFS volume that holds the `.vhdx` of each disk, in place of the disks
    #[arg(long, conflicts_with = "disk")]
    pub volume: bool,
    /// Take writes, and keep them encrypted in this folder; the point stays as it is
    ///
    /// What is there from before is gone on with, after a crash too. Deleting the folder discards the writes.
    #[arg(long, value_name = "DIR")]
    pub writes: Option<PathBuf>,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// After a loss of power here: the guests of other machines have been restarted
    #[arg(long, requires = "writes", hide_short_help = true)]
    pub guest_restarted: bool,
    /// Stop after this time by itself
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    pub stop_after: Option<Duration>,
}

/// What is kept of what was fetched.
#[derive(Args, Clone, Debug)]
pub struct CacheArgs {
    /// Keep what is fetched, encrypted, in this folder
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// How much of it
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = parse_size, requires = "cache")]
    pub cache_size: u64,
    /// How much is kept in memory
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_size)]
    pub memory: u64,
}

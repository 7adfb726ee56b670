//! What may be asked of the demo and of the bench.
//!
//! Apart from them, because the small `cargo xtask` knows their options, but only the release build can do them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// How the demo runs.
#[derive(Debug, Args)]
pub struct DemoOptions {
    /// Play with this VHDX, VHD or raw disk file instead of disks made for the demo; the file itself is only copied.
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,

    /// The folder that is left behind; an earlier demo's is emptied first.
    #[arg(long, value_name = "DIR", default_value = "demo")]
    pub dir: PathBuf,

    /// Start a server and two agents with backups in them, and leave them running until Ctrl-C.
    #[arg(long, conflicts_with = "disk")]
    pub server: bool,

    /// With --server: end when everything was shown.
    #[arg(long, requires = "server", hide = true)]
    pub then_exit: bool,
}

/// A part of the bench that is not in the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchPart {
    /// Reading a point that is served, against NBD and iSCSI servers of a raw file; the time to the first read.
    Serve,
}

/// What is measured.
#[derive(Debug, Args)]
pub struct BenchOptions {
    /// Only this part.
    #[arg(value_enum)]
    pub part: Option<BenchPart>,

    /// One run of everything on a disk of 1 GiB: shows that it works, not how fast.
    #[arg(long)]
    pub quick: bool,

    /// Size of the disk.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub disk_gib: Option<u64>,

    /// Runs of each program, taken in turns; the best counts.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: Option<u32>,

    /// Empty the page cache before each measurement (needs root).
    #[arg(long)]
    pub cold: bool,

    /// Leave out the comparison of disks of 8, 64 and 256 GiB.
    #[arg(long)]
    pub no_scaling: bool,

    /// Only the comparison of disks of 8, 64 and 256 GiB.
    #[arg(long, conflicts_with = "no_scaling")]
    pub only_scaling: bool,

    /// Where disks and repositories are made; about ten times the disk's size is needed for a while.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Install no peers: compare with those that are there.
    #[arg(long, visible_alias = "no-install")]
    pub offline: bool,
}

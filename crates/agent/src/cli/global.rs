//! Flags that mean the same everywhere.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::limits::parse_rate;
use crate::units::parse_duration;

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
    ///
    /// `local` (this Windows host), `lab:DIR` (a simulated one), or for `instant` and `host check` `qemu` (this Linux host)
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

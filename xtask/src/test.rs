//! `cargo xtask test`: everything that must hold before a change is accepted.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;
use tempfile::TempDir;

use crate::checks::Checks;
use crate::peers::{Install, Peers};
use crate::process::output_of;
use crate::report::heading;
use crate::workspace::Workspace;

/// How the tests run.
#[derive(Debug, Args)]
pub struct Options {
    /// Install nothing: tests use the peers that are already there and skip the rest.
    #[arg(long, visible_alias = "no-install")]
    offline: bool,

    /// Also run the long tests.
    #[arg(long)]
    long: bool,
}

/// Runs every check to its end, then says what passed, what failed and what was skipped.
pub fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    heading("peers");
    let peers = Peers::gather(&workspace, if options.offline { Install::Nothing } else { Install::Missing });
    let mut checks = Checks::begin(peers.skipped.clone());
    let memory = if options.long { None } else { folder_in_memory() };
    for mut command in commands(&workspace, options)? {
        if let Some(folder) = &memory {
            command.env("TMPDIR", folder.path());
        }
        checks.run(peers.export(&mut command))?;
    }
    Ok(checks.finish())
}

/// Room in memory that the tests, the long ones aside, never fill.
const ROOM_BYTES: u64 = 8 << 30;

/// A folder for temporary files that no flush waits for a disk in; where there is none, tests take a third longer. A
/// `TMPDIR` that somebody chose stays.
fn folder_in_memory() -> Option<TempDir> {
    let memory = Path::new("/dev/shm");
    if env::var_os("TMPDIR").is_some() {
        return None;
    }
    let room = output_of(Command::new("df").args(["--output=avail", "-B1"]).arg(memory)).ok()?;
    let free: u64 = room.lines().last()?.trim().parse().ok()?;
    if free < ROOM_BYTES { None } else { tempfile::Builder::new().prefix("e3-test-").tempdir_in(memory).ok() }
}

/// The checks, the quickest first.
fn commands(workspace: &Workspace, options: &Options) -> Result<Vec<Command>> {
    let cargo = |words: &str| {
        let mut command = workspace.cargo();
        command.args(words.split(' '));
        command
    };
    // The harness swallows what a passing test prints, and with it the lines that say what was skipped.
    let mut test = cargo("test --workspace --no-fail-fast -- --show-output");
    if options.long {
        test.arg("--include-ignored");
    }
    // Each process of the run writes down which names of the Hyper-V seam it used; all of them together are then
    // compared with the list whose every name a test has changed.
    let names = workspace.target.join("seam-names");
    if names.exists() {
        fs::remove_dir_all(&names).with_context(|| format!("delete {}", names.display()))?;
    }
    test.env("HYPERV_SIM_RECORD", &names);
    // Of the whole workspace, as before: for one package alone the dependencies would be built again, with less in them.
    let mut used = cargo("test --workspace --test every_name a_whole_run -- --show-output");
    used.env("HYPERV_SIM_RECORDED", &names);
    let mut doc = cargo("doc --workspace --no-deps");
    doc.env("RUSTDOCFLAGS", "-D warnings");
    // The Windows half has its own toolchain and its own summary; its lines count here too.
    let mut windows = Command::new(env::current_exe().context("find this program")?);
    windows.arg("windows").args(options.offline.then_some("--offline")).args((!options.long).then_some("--sample"));
    Ok(vec![
        cargo("fmt --all --check"),
        cargo("clippy --workspace --all-targets -- -D warnings"),
        test,
        used,
        doc,
        windows,
    ])
}

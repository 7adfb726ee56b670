//! `cargo xtask test`: everything that must hold before a change is accepted.

use std::env;
use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

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
    let mut checks = Checks::begin();
    // Peers are downloaded while the lints are compiled.
    let installing = if options.offline { None } else { Some(install_peers()?) };
    for mut command in lints(&workspace) {
        checks.run(&mut command)?;
    }
    heading("peers");
    if let Some(mut installing) = installing {
        // What it could not install is tried once more, and then said why.
        installing.wait().context("wait for the peers")?;
    }
    let peers = Peers::gather(&workspace, if options.offline { Install::Nothing } else { Install::Missing });
    checks.does_without(&peers.skipped);
    let memory = if options.long { None } else { folder_in_memory() };
    for mut command in tests(&workspace, options)? {
        if let Some(folder) = &memory {
            command.env("TMPDIR", folder.path());
        }
        checks.run(peers.export(&mut command))?;
    }
    Ok(checks.finish())
}

/// `cargo xtask peers`, whose output would be mixed with that of others.
fn install_peers() -> Result<Child> {
    let mut peers = Command::new(env::current_exe().context("find this program")?);
    peers.arg("peers").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    peers.spawn().context("start installing the peers")
}

fn cargo(workspace: &Workspace, words: &str) -> Command {
    let mut command = workspace.cargo();
    command.args(words.split(' '));
    command
}

fn lints(workspace: &Workspace) -> [Command; 2] {
    ["fmt --all --check", "clippy --workspace --all-targets -- -D warnings"].map(|words| cargo(workspace, words))
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

fn tests(workspace: &Workspace, options: &Options) -> Result<[Command; 4]> {
    let cargo = |words| cargo(workspace, words);
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
    // Many tests wait for servers and timers: two at a time for each processor leave none of these idle.
    if env::var_os("RUST_TEST_THREADS").is_none() {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        test.env("RUST_TEST_THREADS", (2 * processors).to_string());
    }
    // Of the whole workspace, as before: for one package alone the dependencies would be built again, with less in them.
    let mut used = cargo("test --workspace --test every_name a_whole_run -- --show-output");
    used.env("HYPERV_SIM_RECORDED", &names);
    let mut doc = cargo("doc --workspace --no-deps");
    doc.env("RUSTDOCFLAGS", "-D warnings");
    // The Windows half has its own toolchain and its own summary; its lines count here too.
    let mut windows = Command::new(env::current_exe().context("find this program")?);
    windows.arg("windows").args(options.offline.then_some("--offline")).args((!options.long).then_some("--sample"));
    Ok([test, used, doc, windows])
}

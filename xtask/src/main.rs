//! The project's own tasks: `cargo xtask test`, `cargo xtask windows`, `cargo xtask demo`, `cargo xtask bench`,
//! `cargo xtask simulate`, `cargo xtask package`.
//!
//! Each task drives the same programs that a person would type, and shows what they print. Read `test.rs` for
//! what the test command runs, `peers.rs` for the foreign programs it tests against, `windows.rs` for the same tests
//! under Wine, `demo.rs` for the story that the demo plays, `bench.rs` for what is measured and how.

mod checks;
mod debian;
mod options;
mod package;
mod peers;
mod process;
mod report;
mod simulate;
mod stamp;
mod test;
mod windows;
mod workspace;

#[cfg(feature = "play")]
mod agent;
#[cfg(feature = "play")]
mod bench;
#[cfg(feature = "play")]
mod demo;
#[cfg(feature = "play")]
mod disk_content;
#[cfg(feature = "play")]
mod figures;
#[cfg(feature = "play")]
mod folder;
#[cfg(feature = "play")]
mod measure;
#[cfg(feature = "play")]
mod random;

#[cfg(not(feature = "play"))]
use std::env;
#[cfg(not(feature = "play"))]
use std::process::Command;
use std::process::ExitCode;

#[cfg(not(feature = "play"))]
use anyhow::Context;
use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::options::{BenchOptions, DemoOptions};
use crate::peers::{Install, Peers};
use crate::workspace::Workspace;

/// Tasks of this workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install the peers that tests use, then check formatting, lints, tests and documentation.
    Test(test::Options),
    /// Build the agent for Windows, and run the tests under Wine.
    Windows(windows::Options),
    /// Play a backup and a restore with real disks, and explain what is seen.
    Demo(DemoOptions),
    /// Measure the same work done by us and by other programs.
    Bench(BenchOptions),
    /// Play many stories of a simulated world, and judge them by the laws of the design.
    Simulate(simulate::Options),
    /// Build the Debian packages of server and agent.
    Package(package::Options),
    /// Install the peers and the toolchain for Windows only, and say where they are.
    Peers,
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Test(options) => test::run(&options),
        Task::Windows(options) => windows::run(&options),
        Task::Package(options) => package::run(&options),
        Task::Simulate(options) => simulate::run(&options),
        #[cfg(feature = "play")]
        Task::Demo(options) => demo::run(&options),
        #[cfg(feature = "play")]
        Task::Bench(options) => bench::run(&options),
        #[cfg(not(feature = "play"))]
        Task::Demo(_) | Task::Bench(_) => run_release_build(),
        Task::Peers => show_peers(),
    }
}

fn show_peers() -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    Peers::gather(&workspace, Install::Missing);
    windows::gather(&workspace);
    Ok(ExitCode::SUCCESS)
}

/// Tasks that need the libraries are done by a release build of this same program, with them.
#[cfg(not(feature = "play"))]
fn run_release_build() -> Result<ExitCode> {
    report::heading("building the agent (release)");
    // The user's own folder stays the current one: paths among the arguments are relative to it.
    let folder = env::current_dir().context("find the current folder")?;
    let workspace = Workspace::locate()?;
    if !workspace.release_build().status().context("start cargo")?.success() {
        return Ok(ExitCode::FAILURE);
    }
    let program = workspace.target.join("release").join("xtask").with_extension(env::consts::EXE_EXTENSION);
    let status = Command::new(&program).current_dir(folder).args(env::args_os().skip(1)).status();
    let status = status.with_context(|| format!("start {}", program.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

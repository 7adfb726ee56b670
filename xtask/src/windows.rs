//! `cargo xtask windows`: the agent built for Windows, and the tests run under Wine.
//!
//! Everything of it lies in `windows` below the target folder: a build folder of its own, the Wine prefix, and the
//! one library that Wine lacks. What cannot be had is a `SKIPPED` line, never a failure.

mod msi;
mod toolchain;
mod wine;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::checks::Checks;
use crate::package::msi::{MsiMaker, PROGRAM, ProductVersion};
use crate::peers::{self, Install};
use crate::report::heading;
use crate::windows::toolchain::{Profile, Toolchain};
use crate::windows::wine::{Prefix, Running};
use crate::workspace::Workspace;

/// How the Windows half is tested.
#[derive(Debug, Args)]
pub struct Options {
    /// Install nothing: without a toolchain for Windows and Wine there is nothing to do.
    #[arg(long, visible_alias = "no-install")]
    offline: bool,

    /// Only build the agent.
    #[arg(long)]
    build: bool,

    /// With optimisations, as it is shipped.
    #[arg(long, requires = "build")]
    release: bool,

    /// Only build the agent, and install, upgrade and remove it as an MSI.
    #[arg(long, conflicts_with = "build")]
    msi: bool,

    /// Without the tests that take Wine minutes: what `cargo xtask test` runs.
    #[arg(long)]
    sample: bool,

    /// What `cargo test` gets instead of the whole workspace, for example `-p hyperv --test windows`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    tests: Vec<String>,
}

/// Every crate of the product that runs on Windows. `xtask` itself drives programs of this machine, stories are played
/// on Linux, and the server is not built for Windows.
const WHOLE: [&str; 10] = [
    "--workspace",
    "--exclude",
    "xtask",
    "--exclude",
    "simulation",
    "--exclude",
    "server",
    "--lib",
    "--bins",
    "--tests",
];

/// What a sample runs beside every crate's unit tests: the whole suites of the portable crates, and those of the agent
/// that were seen to pass under Wine. Left out is what needs peers, what starts hundreds of processes or runs hundreds of
/// backups, what plays a simulated host and nothing of the system, and what is new and was not seen there yet.
const SAMPLE: [&str; 30] = [
    "attachment",
    "between_runs",
    "chain",
    "conformance",
    "convert",
    "crash",
    "engine",
    "errors",
    "every_name",
    "folder",
    "format_fixtures",
    "golden",
    "guest_scripts",
    "hostile",
    "json_documents",
    "large",
    "manners",
    "model",
    "peers",
    "processes",
    "s3",
    "scripted",
    "service",
    "service_windows",
    "story",
    "strict",
    "systems",
    "vm",
    "windows",
    "with_hyperv",
];
/// Installs what is missing, and says what that led to.
pub fn gather(workspace: &Workspace) {
    let folder = workspace.target.join("windows");
    let gathered = Toolchain::gather(workspace, &folder, Install::Missing)
        .and_then(|toolchain| Ok((toolchain, Prefix::gather(workspace, &folder, Install::Missing)?)));
    match gathered {
        Ok((toolchain, prefix)) => println!("{toolchain}\n{prefix}"),
        Err(why) => println!("SKIPPED windows: {why:#}"),
    }
    if let Err(why) = MsiMaker::gather(workspace, Install::Missing) {
        println!("SKIPPED msi: {why:#}");
    }
}

/// Builds the agent and its MSI in the folder `out`.
pub fn package(workspace: &Workspace, dev: bool, out: &Path) -> Result<ExitCode> {
    let folder = workspace.target.join("windows");
    let toolchain = Toolchain::gather(workspace, &folder, Install::Missing).context("find a compiler for Windows")?;
    let maker = MsiMaker::gather(workspace, Install::Missing).context("find what makes packages for Windows")?;
    heading("building the agent for Windows");
    let profile = if dev { Profile::Dev } else { Profile::Release };
    let mut build = toolchain.cargo(workspace, "build");
    build.args(["--package", "agent"]).args((!dev).then_some("--release"));
    if !build.status().context("start cargo")?.success() {
        return Ok(ExitCode::FAILURE);
    }
    let file = maker.make(&toolchain.built(profile, PROGRAM), ProductVersion::of_workspace()?, out)?;
    println!("{}", file.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds, tests, and says how it went.
pub fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    let install = if options.offline { Install::Nothing } else { Install::Missing };
    let folder = workspace.target.join("windows");

    heading("toolchain for Windows");
    let toolchain = match Toolchain::gather(&workspace, &folder, install) {
        Ok(toolchain) => toolchain,
        Err(why) => {
            println!("SKIPPED windows: {why:#}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    println!("{toolchain}");

    let mut checks = Checks::begin();
    if options.build {
        let mut build = toolchain.cargo(&workspace, "build");
        checks.run(build.args(["--package", "agent"]).args(options.release.then_some("--release")))?;
        return Ok(checks.finish());
    }
    let prefix = match Prefix::gather(&workspace, &folder, install) {
        Ok(prefix) => prefix,
        Err(why) => {
            println!("SKIPPED tests for Windows: {why:#}");
            checks.run(toolchain.cargo(&workspace, "build").args(["--package", "agent"]))?;
            return Ok(checks.finish());
        }
    };
    println!("{prefix}");
    let running = prefix.start()?;
    if options.msi {
        checks.run(toolchain.cargo(&workspace, "build").args(["--package", "agent"]))?;
        check_msi(&workspace, install, &running, &toolchain, &mut checks);
        running.stop()?;
        return Ok(checks.finish());
    }
    let mut test = toolchain.cargo(&workspace, "test");
    running.export(&mut test);
    // Peers are programs of this machine, which tests in Wine cannot drive.
    peers::VARIABLES.iter().for_each(|variable| _ = test.env_remove(variable));
    if options.tests.is_empty() {
        // One command builds the agent too, for its tests: a build apart would have other features, and compile most
        // of the workspace twice. What passing tests print says what was skipped.
        if options.sample {
            test.args(&WHOLE[..WHOLE.len() - 1]).args(SAMPLE.iter().flat_map(|suite| ["--test", suite]));
        } else {
            test.args(WHOLE);
        }
        test.args(["--no-fail-fast", "--", "--show-output"]);
        checks.run(&mut test)?;
        checks.run(running.program(&toolchain.built(Profile::Dev, PROGRAM)).arg("--version"))?;
        check_msi(&workspace, install, &running, &toolchain, &mut checks);
    } else {
        checks.run(test.args(&options.tests))?;
    }
    running.stop()?;
    Ok(checks.finish())
}

fn check_msi(workspace: &Workspace, install: Install, running: &Running, toolchain: &Toolchain, checks: &mut Checks) {
    match MsiMaker::gather(workspace, install) {
        Ok(maker) => {
            let program = toolchain.built(Profile::Dev, PROGRAM);
            checks.perform("the agent's MSI", || msi::check(&maker, running, &program));
        }
        Err(why) => {
            let line = format!("SKIPPED msi: {why:#}");
            println!("{line}");
            checks.does_without(&[line]);
        }
    }
}

//! `cargo xtask simulate`: the deterministic simulation over many seeds, and the mutants that it must find.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process::{last_words, output_of};
use crate::report::{heading, seconds};
use crate::workspace::Workspace;

/// Seeds within which every mutant must be found.
const SEEDS_OF_A_MUTANT: u64 = 1000;
/// Seeds in which nothing may be found without one.
const SEEDS_WITHOUT_MUTANT: u64 = 10;
/// Each law has at least so many mutants.
const MUTANTS_OF_A_LAW: usize = 3;
const LAWS: [&str; 6] = ["law1", "law2", "law3", "law4", "law5", "law8"];

/// What is simulated.
#[derive(Debug, Args)]
pub struct Options {
    /// How many seeds.
    #[arg(long, default_value_t = 300)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first_seed: u64,
    /// Stories played at the same time.
    #[arg(long, default_value_t = 2)]
    jobs: u64,
    /// Print the whole history of the first seed.
    #[arg(long)]
    aloud: bool,
    /// Build each mutant in `tests/mutants`, and see that the simulation finds it.
    #[arg(long)]
    mutants: bool,
    /// Only mutants whose name contains this.
    #[arg(long, requires = "mutants")]
    only: Option<String>,
}

/// Runs the simulation.
pub fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    if options.mutants {
        return find_mutants(&workspace, options);
    }
    let mut command = workspace.cargo();
    command.args(["run", "--quiet", "--release", "--package", "simulation", "--"]);
    command.args(arguments(options.seeds, options.first_seed, options.jobs));
    if options.aloud {
        command.arg("--aloud");
    }
    let status = command.status().context("start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn arguments(seeds: u64, first_seed: u64, jobs: u64) -> [String; 6] {
    let number = |number: u64| number.to_string();
    ["--seeds".into(), number(seeds), "--first-seed".into(), number(first_seed), "--jobs".into(), number(jobs)]
}

/// A plausible mistake, as a patch.
struct Mutant {
    name: String,
    patch: PathBuf,
    judge: Judge,
}

/// Who has to find it.
#[derive(Clone, Copy)]
enum Judge {
    /// The simulation.
    Stories,
    /// The histories of a disk that is served, in `crates/serve/tests/crash.rs`.
    Histories,
}

fn find_mutants(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let folder = workspace.root.join("tests/mutants");
    let mut mutants = mutants(&folder, "", Judge::Stories)?;
    for law in LAWS {
        let count = mutants.iter().filter(|mutant| mutant.name.starts_with(&format!("{law}-"))).count();
        if count < MUTANTS_OF_A_LAW {
            bail!("{law} has {count} mutants, and {MUTANTS_OF_A_LAW} are asked for");
        }
    }
    mutants.extend(self::mutants(&folder.join("serve"), "serve/", Judge::Histories)?);
    // A copy in one place, built into one folder: each mutant then costs only what it touches.
    let copy = workspace.target.join("mutants/workspace");
    copy_tracked(workspace, &copy)?;
    heading("the unchanged copy");
    let wanted = |mutant: &&Mutant| options.only.as_ref().is_none_or(|only| mutant.name.contains(only));
    let mutants: Vec<&Mutant> = mutants.iter().filter(wanted).collect();
    for mutant in &mutants {
        let fits = git_apply(&copy, &mutant.patch, &["--check"]);
        fits.with_context(|| format!("{} is of an older state of the code: make it anew", mutant.patch.display()))?;
    }
    if mutants.iter().any(|mutant| matches!(mutant.judge, Judge::Stories))
        && let Some(found) = play(workspace, &copy, SEEDS_WITHOUT_MUTANT, options)?
    {
        bail!("the simulation finds something without any mutant: {found}");
    }
    if mutants.iter().any(|mutant| matches!(mutant.judge, Judge::Histories))
        && let Some(found) = play_histories(workspace, &copy)?
    {
        bail!("the histories of served disks find something without any mutant: {found}");
    }
    let mut missed = Vec::new();
    for mutant in mutants {
        let begun = Instant::now();
        git_apply(&copy, &mutant.patch, &[]).with_context(|| format!("apply {}", mutant.patch.display()))?;
        let found = match mutant.judge {
            Judge::Stories => play(workspace, &copy, SEEDS_OF_A_MUTANT, options),
            Judge::Histories => play_histories(workspace, &copy),
        };
        git_apply(&copy, &mutant.patch, &["--reverse"])
            .with_context(|| format!("take back {}", mutant.patch.display()))?;
        match found {
            Ok(Some(found)) => println!("{}: {found} ({})", mutant.name, seconds(begun.elapsed())),
            Ok(None) => {
                println!("{}: NOT FOUND", mutant.name);
                missed.push(mutant.name.clone());
            }
            Err(error) => {
                println!("{}: cannot be played: {error:#}", mutant.name);
                missed.push(mutant.name.clone());
            }
        }
    }
    if missed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("not found: {}", missed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn mutants(folder: &Path, prefix: &str, judge: Judge) -> Result<Vec<Mutant>> {
    let mut mutants = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let patch = entry.with_context(|| format!("list {}", folder.display()))?.path();
        if patch.extension().is_some_and(|extension| extension == "patch") {
            let name = format!("{prefix}{}", patch.file_stem().unwrap_or_default().to_string_lossy());
            mutants.push(Mutant { name, patch, judge });
        }
    }
    mutants.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mutants)
}

/// The files that git knows of, as they are now. Files that are the same already stay, so that cargo builds little.
fn copy_tracked(workspace: &Workspace, to: &Path) -> Result<()> {
    let mut list = Command::new("git");
    let listed = output_of(list.args(["ls-files", "-z"]).current_dir(&workspace.root))?;
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (workspace.root.join(name), to.join(name));
        let Ok(bytes) = fs::read(&from) else { continue };
        if fs::read(&to).is_ok_and(|there| there == bytes) {
            continue;
        }
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        fs::write(&to, bytes).with_context(|| format!("write {}", to.display()))?;
    }
    Ok(())
}

fn git_apply(copy: &Path, patch: &Path, how: &[&str]) -> Result<()> {
    let mut git = Command::new("git");
    // The copy lies in a folder that git ignores: it must not look for the repository around it.
    git.args(["apply", "--whitespace=nowarn"]).args(how).arg(patch);
    git.current_dir(copy).env("GIT_CEILING_DIRECTORIES", copy.parent().unwrap_or(copy));
    output_of(&mut git).map(drop)
}

/// Builds the copy and plays seeds until something is found; says what.
fn play(workspace: &Workspace, copy: &Path, seeds: u64, options: &Options) -> Result<Option<String>> {
    let target = workspace.target.join("mutants");
    let mut build = workspace.cargo();
    build.current_dir(copy).env("CARGO_TARGET_DIR", &target);
    output_of(build.args(["build", "--quiet", "--package", "simulation"]))?;
    let program = target.join("debug/simulation").with_extension(std::env::consts::EXE_EXTENSION);
    let mut play = Command::new(program);
    let output = play.arg("--first-failure").args(arguments(seeds, 0, options.jobs)).output();
    let output = output.context("start the simulation")?;
    if output.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stdout);
    match said.lines().last() {
        Some(found) if found.starts_with("seed ") => Ok(Some(found.to_owned())),
        _ => bail!("the simulation failed: {}", last_words(&String::from_utf8_lossy(&output.stderr))),
    }
}

/// Builds the copy and plays histories of served disks until something is found; says what.
fn play_histories(workspace: &Workspace, copy: &Path) -> Result<Option<String>> {
    let mut test = workspace.cargo();
    test.current_dir(copy).env("CARGO_TARGET_DIR", workspace.target.join("mutants"));
    test.args(["test", "--quiet", "--package", "serve", "--test", "crash", "histories_of_kills_and_power_losses"]);
    let output = test.output().context("start cargo")?;
    if output.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    match said.lines().find_map(|line| line.trim().strip_prefix("left: Some(")) {
        Some(found) => Ok(Some(format!("history {found}"))),
        None => bail!("the histories could not be played: {}", last_words(&said)),
    }
}

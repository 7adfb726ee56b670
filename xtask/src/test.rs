//! `cargo xtask test`: everything that must hold before a change is accepted.

use std::io::{self, IsTerminal};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use crate::peers::{Install, Peers};
use crate::process::{run_watched, typed};
use crate::report::{heading, seconds};
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
    let begun = Instant::now();
    let workspace = Workspace::locate()?;
    heading("peers");
    let peers = Peers::gather(&workspace, if options.offline { Install::Nothing } else { Install::Missing });

    let mut tally = Tally { skipped: peers.skipped.clone(), ..Tally::default() };
    let mut checks = Vec::new();
    for mut command in commands(&workspace, options.long) {
        peers.export(&mut command).env("RUST_BACKTRACE", "1");
        if io::stdout().is_terminal() {
            command.env("CARGO_TERM_COLOR", "always");
        }
        heading(&typed(&command));
        let begun = Instant::now();
        let passed = run_watched(&mut command, "", |line| tally.take_line(line))?.success();
        let check = Check { command: typed(&command), passed, time: begun.elapsed() };
        println!("{}", check.line());
        checks.push(check);
    }

    heading(&format!("summary after {}", seconds(begun.elapsed())));
    for check in &checks {
        println!("{}", check.line());
    }
    print!("{}", tally.summary());
    let passed = checks.iter().all(|check| check.passed);
    println!("{}", if passed { "All checks passed." } else { "Some checks FAILED: their output is above." });
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The checks, the quickest first.
fn commands(workspace: &Workspace, long: bool) -> Vec<Command> {
    let cargo = |words: &str| {
        let mut command = workspace.cargo();
        command.args(words.split(' '));
        command
    };
    // The harness swallows what a passing test prints, and with it the lines that say what was skipped.
    let mut test = cargo("test --workspace --no-fail-fast -- --show-output");
    if long {
        test.arg("--include-ignored");
    }
    let mut doc = cargo("doc --workspace --no-deps");
    doc.env("RUSTDOCFLAGS", "-D warnings");
    vec![cargo("fmt --all --check"), cargo("clippy --workspace --all-targets -- -D warnings"), test, doc]
}

struct Check {
    command: String,
    passed: bool,
    time: Duration,
}

impl Check {
    fn line(&self) -> String {
        format!("{}  {}  ({})", if self.passed { "passed" } else { "FAILED" }, self.command, seconds(self.time))
    }
}

/// What the lines of the output add up to.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    failed_tests: Vec<String>,
    skipped: Vec<String>,
}

impl Tally {
    fn take_line(&mut self, line: &str) {
        let line = line.trim();
        if line.starts_with("SKIPPED ") {
            self.skipped.push(line.to_owned());
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            // test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.02s
            for part in counts.split(['.', ';']) {
                match part.trim().split_once(' ') {
                    Some((count, "passed")) => self.passed += count.parse().unwrap_or(0),
                    Some((count, "failed")) => self.failed += count.parse().unwrap_or(0),
                    Some((count, "ignored")) => self.ignored += count.parse().unwrap_or(0),
                    _ => {}
                }
            }
        } else if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failed_tests.push(name.to_owned());
        }
    }

    fn summary(&self) -> String {
        let mut text = format!("tests   {} passed, {} failed, {} ignored\n", self.passed, self.failed, self.ignored);
        for name in &self.failed_tests {
            text += &format!("        FAILED {name}\n");
        }
        text += &format!("skipped {}\n", self.skipped.len());
        for line in &self.skipped {
            text += &format!("        {line}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_cargo_test_adds_up() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test bat::tests::index ... ok",
            "test log::tests::replay ... FAILED",
            "SKIPPED stock_reads_ours: kopia is not installed",
            "test result: FAILED. 12 passed; 1 failed; 3 ignored; 0 measured; 5 filtered out; finished in 0.02s",
            "test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s",
        ] {
            tally.take_line(line);
        }
        let expected = Tally {
            passed: 16,
            failed: 1,
            ignored: 3,
            failed_tests: vec!["log::tests::replay".into()],
            skipped: vec!["SKIPPED stock_reads_ours: kopia is not installed".into()],
        };
        assert_eq!(tally, expected);
        assert!(tally.summary().contains("skipped 1\n        SKIPPED stock_reads_ours"), "{}", tally.summary());
    }
}

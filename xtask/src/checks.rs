//! Commands that must succeed, run one after another, and what their output adds up to.

use std::io::{self, IsTerminal};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::process::{run_watched, typed};
use crate::report::{heading, seconds};

/// The checks of one task so far.
pub struct Checks {
    begun: Instant,
    checks: Vec<Check>,
    tally: Tally,
}

struct Check {
    command: String,
    passed: bool,
    time: Duration,
}

impl Checks {
    /// None yet.
    pub fn begin() -> Checks {
        Checks { begun: Instant::now(), checks: Vec::new(), tally: Tally::default() }
    }

    /// Notes the lines about what the run does without.
    pub fn does_without(&mut self, skipped: &[String]) {
        self.tally.skipped.extend_from_slice(skipped);
    }

    /// Runs one to its end, while its output is seen. A failure does not keep the next from running.
    pub fn run(&mut self, command: &mut Command) -> Result<()> {
        command.env("RUST_BACKTRACE", "1");
        if io::stdout().is_terminal() {
            command.env("CARGO_TERM_COLOR", "always");
        }
        heading(&typed(command));
        let begun = Instant::now();
        let passed = run_watched(command, "", |line| self.tally.take_line(line))?.success();
        let check = Check { command: typed(command), passed, time: begun.elapsed() };
        println!("{}", check.line());
        self.checks.push(check);
        Ok(())
    }

    /// Does a check that is no command. A failure does not keep the next from running.
    pub fn perform(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        heading(name);
        let begun = Instant::now();
        let result = check();
        if let Err(why) = &result {
            println!("{why:#}");
        }
        let check = Check { command: name.to_owned(), passed: result.is_ok(), time: begun.elapsed() };
        println!("{}", check.line());
        self.checks.push(check);
    }

    /// Says what passed, what failed and what was skipped.
    pub fn finish(self) -> ExitCode {
        heading(&format!("summary after {}", seconds(self.begun.elapsed())));
        for check in &self.checks {
            println!("{}", check.line());
        }
        print!("{}", self.tally.summary());
        let passed = self.checks.iter().all(|check| check.passed) && self.tally.warnings.is_empty();
        println!("{}", if passed { "All checks passed." } else { "Some checks FAILED: their output is above." });
        if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
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
    warnings: Vec<String>,
    /// What panics said, first lines only: the output of a failed test may be far up, or cut off.
    panics: Vec<String>,
    /// A panic's place was the last line; its message comes next.
    in_panic: bool,
    /// The suite that runs, as cargo names it.
    suite: String,
    /// Seconds that suites took.
    suites: Vec<(f64, String)>,
}

/// Suites named as the slowest.
const SLOWEST: usize = 12;
/// Panics repeated in the summary. Tests that expect one print it too, so only those that come with a failure count.
const PANICS: usize = 10;

impl Tally {
    fn take_line(&mut self, line: &str) {
        // A summary within the output repeats what was counted already; its lines are indented.
        let line = line.trim_end();
        if std::mem::take(&mut self.in_panic) {
            if let Some(panic) = self.panics.last_mut() {
                *panic += &format!(" {}", line.chars().take(300).collect::<String>());
            }
            return;
        }
        if line.starts_with("thread '") && line.contains(" panicked at ") {
            self.panics.push(line.to_owned());
            self.in_panic = true;
        } else if let Some(suite) = line.trim_start().strip_prefix("Running ") {
            // Running tests/kill.rs (target/debug/deps/kill-edfd346b647dd5a0)
            let program = suite.rsplit(['/', '\\']).next().unwrap_or_default();
            self.suite = program.split_once('-').map_or(program, |(name, _)| name).to_owned();
        } else if line.starts_with("SKIPPED ") {
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
            let time = counts.rsplit_once("finished in ").and_then(|(_, time)| time.strip_suffix('s')?.parse().ok());
            self.suites.push((time.unwrap_or(0.0), std::mem::take(&mut self.suite)));
        } else if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failed_tests.push(name.to_owned());
        } else if line.contains(") generated ") && line.contains(" warning") {
            // warning: `hyperv` (lib) generated 2 warnings
            self.warnings.push(line.to_owned());
        }
    }

    fn summary(&self) -> String {
        let mut text = format!("tests   {} passed, {} failed, {} ignored\n", self.passed, self.failed, self.ignored);
        for name in &self.failed_tests {
            text += &format!("        FAILED {name}\n");
        }
        if self.failed > 0 {
            for panic in self.panics.iter().rev().take(PANICS) {
                text += &format!("        {panic}\n");
            }
        }
        for line in &self.warnings {
            text += &format!("        FAILED for a {line}\n");
        }
        text += &format!("skipped {}\n", self.skipped.len());
        for line in &self.skipped {
            text += &format!("        {line}\n");
        }
        let mut suites: Vec<_> = self.suites.iter().filter(|(time, _)| *time >= 1.0).collect();
        suites.sort_by(|a, b| b.0.total_cmp(&a.0));
        if !suites.is_empty() {
            text += "slowest suites, in seconds\n";
        }
        for (time, suite) in suites.into_iter().take(SLOWEST) {
            text += &format!("{time:>9.1}  {suite}\n");
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
            "     Running tests/bat.rs (target/debug/deps/bat-edfd346b647dd5a0)",
            "running 3 tests",
            "thread 'log::tests::replay' (1884) panicked at crates/vhdx/src/log.rs:9:5:",
            "no entry is sound",
            "test bat::tests::index ... ok",
            "test log::tests::replay ... FAILED",
            "SKIPPED stock_reads_ours: kopia is not installed",
            "test result: FAILED. 12 passed; 1 failed; 3 ignored; 0 measured; 5 filtered out; finished in 0.02s",
            "        SKIPPED stock_reads_ours: kopia is not installed",
            "warning: `hyperv` (lib) generated 2 warnings",
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
            warnings: vec!["warning: `hyperv` (lib) generated 2 warnings".into()],
            panics: vec![
                "thread 'log::tests::replay' (1884) panicked at crates/vhdx/src/log.rs:9:5: no entry is sound".into(),
            ],
            suites: vec![(0.02, "bat".into()), (1.5, String::new())],
            ..Tally::default()
        };
        assert_eq!(tally, expected);
        assert!(tally.summary().contains("9:5: no entry is sound\n"), "{}", tally.summary());
        assert!(tally.summary().contains("skipped 1\n        SKIPPED stock_reads_ours"), "{}", tally.summary());
    }
}

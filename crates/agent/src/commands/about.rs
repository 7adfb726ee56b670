//! `version`, `completion` and `man`.

use std::path::Path;

use clap::CommandFactory as _;
use serde_json::json;

use crate::cli::{Cli, Global};
use crate::failure::{Attempt as _, Failure};
use crate::outcome::Outcome;
use crate::output::{json_document, line, print};

/// `version`
pub fn version(global: &Global) -> Result<Outcome, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if global.json {
        json_document(&json!({ "program": "e3-backup-agent", "version": version }));
    } else if global.quiet {
        line(version);
    } else {
        line(crate::context::PROGRAM);
    }
    Ok(Outcome::DONE)
}

/// `completion SHELL`
pub fn completion(shell: clap_complete::Shell) -> Result<Outcome, Failure> {
    let script = crate::completion::script(&shell.to_string())?;
    print(&String::from_utf8_lossy(&script));
    Ok(Outcome::DONE)
}

/// `man DIR`: a page for each command, from the definitions that read the command line.
pub fn man(global: &Global, dir: &Path) -> Result<Outcome, Failure> {
    let written = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Cli::command(), dir));
    written.attempt("write the manual pages", dir.display().to_string())?;
    let first = dir.join("e3-backup-agent.1").display().to_string();
    if global.json {
        json_document(&json!({ "dir": dir.display().to_string(), "first": first }));
    } else {
        line(&first);
    }
    Ok(Outcome::DONE)
}

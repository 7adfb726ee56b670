//! The product's own program, called as a user calls it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{run_watched, typed};
use crate::workspace::Workspace;

const PROGRAM: &str = "e3-backup-agent";

/// A release build of the program, with the repository and the host that its calls mean.
#[derive(Debug, Clone)]
pub struct Agent {
    program: PathBuf,
    repository: PathBuf,
    lab: PathBuf,
    password: String,
}

impl Agent {
    /// Builds the program, unless that is done; `folder` will hold the repository `repo` and the simulated host `lab`.
    pub fn build(workspace: &Workspace, folder: &Path, password: &str) -> Result<Agent> {
        let mut command = workspace.release_build();
        let status = command.status().context("start cargo")?;
        if !status.success() {
            bail!("{} failed", typed(&command));
        }
        Ok(Agent {
            program: workspace.target.join("release").join(PROGRAM),
            repository: folder.join("repo"),
            lab: folder.join("lab"),
            password: password.to_owned(),
        })
    }

    /// Where the program was built.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The repository's folder.
    pub fn repository(&self) -> &Path {
        &self.repository
    }

    /// The simulated host's folder.
    pub fn lab(&self) -> &Path {
        &self.lab
    }

    /// The same program with another repository.
    pub fn with_repository(&self, repository: PathBuf) -> Agent {
        Agent { repository, ..self.clone() }
    }

    /// The same program with the repository and the host of another folder.
    pub fn in_folder(&self, folder: &Path) -> Agent {
        Agent { repository: folder.join("repo"), lab: folder.join("lab"), ..self.clone() }
    }

    /// What a shell must know so that the program means this repository and this host.
    pub fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("E3_REPOSITORY", self.repository.display().to_string()),
            ("E3_HOST", format!("lab:{}", self.lab.display())),
            ("E3_PASSWORD", self.password.clone()),
        ]
    }

    /// A call of the program, not yet started.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).envs(self.environment());
        command
    }

    /// Calls the program before the user's eyes, as in a transcript; the time it took, and its lines.
    pub fn show<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<(Duration, Vec<String>)> {
        let mut command = self.command(arguments);
        println!("\n$ {}", typed(&command));
        // Beside a terminal, progress is a line for each phase: more than a transcript wants.
        command.args(["--progress", "none"]);
        let begun = Instant::now();
        let mut lines = Vec::new();
        let status = run_watched(&mut command, "  ", |line| lines.push(line.to_owned()))?;
        if !status.success() {
            bail!("{} ended with {status}", typed(&command));
        }
        Ok((begun.elapsed(), lines))
    }
}

//! Where this workspace and its build output lie, and how its cargo is called.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The workspace that this program was built from.
#[derive(Debug)]
pub struct Workspace {
    /// The folder of the root `Cargo.toml`.
    pub root: PathBuf,
    /// Cargo's target folder, wherever the user's configuration or `CARGO_TARGET_DIR` puts it.
    pub target: PathBuf,
    /// The oldest Rust that it is made for.
    pub rust_version: String,
}

impl Workspace {
    /// Asks cargo for the folders.
    pub fn locate() -> Result<Workspace> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.parent().context("the xtask crate lies below the workspace root")?.to_owned();
        let output = cargo_in(&root)
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .output()
            .context("run cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
        let target = metadata["target_directory"].as_str().context("cargo metadata names no target_directory")?;
        let rust_version = metadata["packages"][0]["rust_version"].as_str().context("no rust-version in Cargo.toml")?;
        Ok(Workspace { root, target: PathBuf::from(target), rust_version: rust_version.to_owned() })
    }

    /// The build that the demo and the bench need: the agent, and this program with the libraries. Both in one, or
    /// what they share would be built twice, with the features that each wants.
    pub fn release_build(&self) -> Command {
        let mut command = self.cargo();
        command.args(["build", "--release", "--package", "agent", "--package", "xtask"]);
        command
    }

    /// The same with the server, which other tasks do not wait for.
    pub fn release_build_with_server(&self) -> Command {
        let mut command = self.release_build();
        command.args(["--package", "server"]);
        command
    }

    /// A cargo command in the workspace root.
    pub fn cargo(&self) -> Command {
        cargo_in(&self.root)
    }

    /// The same with another cargo than the one that runs us.
    pub fn cargo_of(&self, program: &Path) -> Command {
        command_in(&self.root, program.as_os_str())
    }
}

fn cargo_in(root: &Path) -> Command {
    command_in(root, &env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// `cargo run` tells its child about the package it runs. Handed on to another cargo, those variables differ from
/// what a person's own cargo sees, and build scripts that watch them (`ring`'s does) would run again each time.
fn command_in(root: &Path, cargo: &OsStr) -> Command {
    let mut command = Command::new(cargo);
    command.current_dir(root);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let of_the_package = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
            .iter()
            .any(|prefix| text.starts_with(prefix))
            || text == "CARGO_PRIMARY_PACKAGE";
        if of_the_package {
            command.env_remove(&name);
        }
    }
    command
}

//! The compiler for Windows: rustup's where the target is installed, else Debian's, which compiles the standard
//! library itself.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::debian;
use crate::peers::Install;
use crate::process::output_of;
use crate::workspace::Workspace;

/// The target that mingw can link on Linux.
pub const TARGET: &str = "x86_64-pc-windows-gnu";

const LINKER: &str = "x86_64-w64-mingw32-gcc";
const MINGW: [(&str, &str); 1] = [(LINKER, "gcc-mingw-w64-x86-64")];

/// Debian's compiler lives beside rustup's, at full paths. Its standard library comes as source only.
const DEBIAN_RUST: [(&str, &str); 3] = [
    (DEBIAN_RUSTC, "rustc-web"),
    (DEBIAN_CARGO, "cargo-web"),
    ("/usr/lib/rustlib/src/rust/library/std/src/lib.rs", "rust-web-src"),
];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// A compiler and its linker.
pub struct Toolchain {
    source: Source,
    target_dir: PathBuf,
}

/// How a program is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Dev,
    /// As it is shipped.
    Release,
}

enum Source {
    /// The cargo that runs us has the target's standard library.
    Present,
    /// Debian's cargo and compiler, the standard library built from source.
    Debian,
}

impl Toolchain {
    /// Finds one, installing what is missing where that is allowed. Output goes to `folder`.
    pub fn gather(workspace: &Workspace, folder: &Path, install: Install) -> Result<Toolchain> {
        let source = if has_target(workspace)? { Source::Present } else { Source::Debian };
        let needed: Vec<_> = match source {
            Source::Present => MINGW.to_vec(),
            Source::Debian => MINGW.into_iter().chain(DEBIAN_RUST).collect(),
        };
        if install == Install::Missing {
            debian::install_missing(&needed)?;
        }
        if let Some((_, package)) = needed.iter().find(|(file, _)| !debian::is_there(file)) {
            let why = format!("Debian package {package} is not there, and nothing is installed in this run");
            return Err(anyhow!(why));
        }
        if let Source::Debian = source {
            refuse_old_compiler(workspace)?;
        }
        Ok(Toolchain { source, target_dir: folder.join("build") })
    }

    /// A cargo command for Windows: `build`, `test`.
    pub fn cargo(&self, workspace: &Workspace, verb: &str) -> Command {
        let mut command = match self.source {
            Source::Present => workspace.cargo(),
            Source::Debian => {
                let mut command = workspace.cargo_of(Path::new(DEBIAN_CARGO));
                // Building the standard library is an unstable option, which the variable allows.
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTUP_TOOLCHAIN");
                command
            }
        };
        command.arg(verb);
        if let Source::Debian = self.source {
            // With `test` in every command: left out of one, the next would compile everything again.
            command.arg("-Zbuild-std=std,panic_abort,test");
        }
        command.args(["--target", TARGET]).env("CARGO_TARGET_DIR", &self.target_dir);
        command.env("CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER", LINKER);
        command
    }

    /// Where a program of that name is after a build.
    pub fn built(&self, profile: Profile, name: &str) -> PathBuf {
        let folder = match profile {
            Profile::Dev => "debug",
            Profile::Release => "release",
        };
        self.target_dir.join(TARGET).join(folder).join(name)
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            Source::Present => write!(f, "the installed toolchain has {TARGET}"),
            Source::Debian => write!(f, "Debian's rustc, the standard library from source, for {TARGET}"),
        }
    }
}

/// Whether the compiler that cargo would use has the target's standard library.
fn has_target(workspace: &Workspace) -> Result<bool> {
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.current_dir(&workspace.root).args(["--print", "target-libdir", "--target", TARGET]);
    Ok(Path::new(output_of(&mut rustc)?.trim()).is_dir())
}

fn refuse_old_compiler(workspace: &Workspace) -> Result<()> {
    let said = output_of(Command::new(DEBIAN_RUSTC).arg("--version"))?;
    let has =
        said.split(' ').nth(1).and_then(minor_version).with_context(|| format!("rustc --version said {said:?}"))?;
    let wanted = minor_version(&workspace.rust_version).context("rust-version in the root Cargo.toml")?;
    if has < wanted {
        bail!("Debian's rustc is 1.{has}, and this workspace needs 1.{wanted}");
    }
    Ok(())
}

/// The 96 of `1.96.0`.
fn minor_version(text: &str) -> Option<u32> {
    text.trim().strip_prefix("1.")?.split(['.', '-']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (text, expected) in
            [("1.96.0", Some(96)), ("1.95", Some(95)), ("1.97.0-nightly", Some(97)), ("2.0", None), ("1.x", None)]
        {
            assert_eq!(minor_version(text), expected, "{text}");
        }
    }
}

//! The agent's package for Windows Installer, put together by Debian's `wixl` and `msibuild`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::debian;
use crate::peers::Install;
use crate::process::output_of;
use crate::workspace::Workspace;

/// The agent's program, built and installed.
pub const PROGRAM: &str = "e3-backup-agent.exe";
const STRIP: &str = "x86_64-w64-mingw32-strip";
const TOOLS: [(&str, &str); 3] = [("wixl", "wixl"), ("msibuild", "msitools"), (STRIP, "binutils-mingw-w64-x86-64")];
/// What lies beside the program, as in the Debian package.
const DOCUMENTS: [&str; 4] = ["docs/service.md", "docs/operator-guide.md", "LICENSE-APACHE", "LICENSE-MIT"];

/// Makes packages.
pub struct MsiMaker {
    root: PathBuf,
}

impl MsiMaker {
    /// Finds what it needs, installing what is missing where that is allowed.
    pub fn gather(workspace: &Workspace, install: Install) -> Result<MsiMaker> {
        if install == Install::Missing {
            debian::install_missing(&TOOLS)?;
        }
        if let Some((_, package)) = TOOLS.iter().find(|(file, _)| !debian::is_there(file)) {
            bail!("Debian package {package} is not there, and nothing is installed in this run");
        }
        Ok(MsiMaker { root: workspace.root.clone() })
    }

    /// A package of `program`, which is called `version`, in the folder `out`; its file.
    pub fn make(&self, program: &Path, version: ProductVersion, out: &Path) -> Result<PathBuf> {
        // wixl looks for files beside the description.
        let stage = tempfile::tempdir().context("make a folder")?;
        let stage = stage.path();
        let packaging = self.root.join("packaging/windows");
        let documents = DOCUMENTS.map(|document| self.root.join(document));
        for from in documents.iter().chain([&packaging.join("agent.wxs")]) {
            let to = stage.join(from.file_name().context("a file's name")?);
            fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
        }
        // Without names of functions traces of panics would say nothing; lines cost ten times as much.
        let mut strip = Command::new(STRIP);
        output_of(strip.args(["--strip-debug", "-o"]).arg(stage.join(PROGRAM)).arg(program))?;

        fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
        let file = out.join(format!("e3-backup-agent-{version}-x64.msi"));
        let mut wixl = Command::new("wixl");
        // What it does not understand it would only warn of, and leave out.
        wixl.env("G_DEBUG", "fatal-warnings").args(["-a", "x64"]);
        wixl.args(["-D", &format!("Version={version}"), "-D", &format!("Next={}", version.next())]);
        output_of(wixl.arg("-o").arg(&file).arg(stage.join("agent.wxs")))?;
        let added = packaging.join("agent.sql");
        let added = fs::read_to_string(&added).with_context(|| format!("read {}", added.display()))?;
        let statements = added.lines().filter(|line| !line.is_empty() && !line.starts_with("--"));
        output_of(Command::new("msibuild").arg(&file).arg("-q").args(statements))?;
        Ok(file)
    }
}

/// A version as Windows Installer compares it: three numbers, and nothing about previews.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProductVersion {
    major: u8,
    minor: u8,
    build: u32,
}

impl ProductVersion {
    /// That of this workspace.
    pub fn of_workspace() -> Result<ProductVersion> {
        ProductVersion::parse(env!("CARGO_PKG_VERSION"))
    }

    /// Of `1.2.3` and `1.2.3-rc.1`.
    fn parse(text: &str) -> Result<ProductVersion> {
        let parts: Vec<&str> = text.split(['-', '+']).next().unwrap_or_default().split('.').collect();
        let read = || match parts[..] {
            [major, minor, build] => Some(ProductVersion {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                build: build.parse().ok()?,
            }),
            _ => None,
        };
        let version = read().filter(|version| version.build < u16::MAX.into());
        version.ok_or_else(|| anyhow!("version {text} does not fit into 255.255.65534 of Windows Installer"))
    }

    /// The lowest that is higher.
    pub fn next(self) -> ProductVersion {
        ProductVersion { build: self.build + 1, ..self }
    }
}

impl fmt::Display for ProductVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.build)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_windows_installer() {
        for (text, expected, next) in [
            ("0.1.0", "0.1.0", "0.1.1"),
            ("255.255.65534", "255.255.65534", "255.255.65535"),
            ("1.2.3-rc.1", "1.2.3", "1.2.4"),
            ("1.2.9+linux.7", "1.2.9", "1.2.10"),
        ] {
            let version = ProductVersion::parse(text).expect(text);
            assert_eq!((version.to_string(), version.next().to_string()), (expected.into(), next.into()), "{text}");
        }
        for text in ["", "1.2", "1.2.3.4", "256.0.0", "0.256.0", "0.0.65535", "1.x.0", "-1.2.3"] {
            assert!(ProductVersion::parse(text).is_err(), "{text}");
        }
        assert!(ProductVersion::parse("1.2.9").unwrap().next() > ProductVersion::parse("1.2.9").unwrap());
    }
}

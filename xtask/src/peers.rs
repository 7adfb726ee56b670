//! Peers: foreign programs that tests hold ours against.
//!
//! Each is looked for, then installed where that is possible, and handed to the tests by an environment variable.
//! A peer that cannot be had is one `SKIPPED` line, never a failure.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::debian;
use crate::process::{find_program, is_executable, output_of};
use crate::stamp::{Stamp, read_pinned};
use crate::workspace::Workspace;

/// QEMU's initiator, a part of it that is packaged by itself.
const QEMU_ISCSI: &str = "/usr/lib/x86_64-linux-gnu/qemu/block-iscsi.so";
/// Debian packages that hold peers, with the program, or the file, that shows a package to be there.
const DEBIAN_PACKAGES: [(&str, &str); 15] = [
    ("qemu-img", "qemu-utils"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdsh", "python3-libnbd"),
    ("iscsi-test-cu", "libiscsi-bin"),
    (QEMU_ISCSI, "qemu-block-extra"),
    ("cpio", "cpio"),
    ("mke2fs", "e2fsprogs"),
    ("fsck.vfat", "dosfstools"),
    ("mdir", "mtools"),
    ("restic", "restic"),
    ("mariadbd", "mariadb-server"),
    ("ntfscat", "ntfs-3g"),
    ("sgdisk", "gdisk"),
    ("7z", "p7zip-full"),
];

const QEMU_IMG: &str = "E3_TEST_QEMU_IMG";
const KOPIA: &str = "E3_TEST_KOPIA";
const WEED: &str = "E3_TEST_WEED";
const OIDC: &str = "E3_TEST_OIDC";
const SCHEMATHESIS: &str = "E3_TEST_SCHEMATHESIS";
const SMTP: &str = "E3_TEST_AIOSMTPD";

/// Environment variables that name peers to the tests.
pub const VARIABLES: [&str; 6] = [QEMU_IMG, KOPIA, WEED, OIDC, SCHEMATHESIS, SMTP];

/// Whether missing peers are installed, or only found where they already are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Install {
    /// From Debian, the Go module proxy and PyPI.
    Missing,
    /// Nothing; the network is not used.
    Nothing,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Peers {
    found: Vec<Peer>,
    /// One line per peer that tests will have to do without, and why.
    pub skipped: Vec<String>,
}

#[derive(Debug)]
struct Peer {
    name: &'static str,
    variable: Option<&'static str>,
    program: PathBuf,
}

impl Peers {
    /// Finds every peer, installing what is missing when allowed, and says where each is.
    pub fn gather(workspace: &Workspace, install: Install) -> Peers {
        let mut peers = Peers::default();
        let debian = match install {
            Install::Missing => debian::install_missing(&DEBIAN_PACKAGES),
            Install::Nothing => Err(anyhow!("nothing is installed in this run")),
        };
        for (program, package) in DEBIAN_PACKAGES {
            let variable = (program == "qemu-img").then_some(QEMU_IMG);
            let is_there =
                || debian::is_there(program).then(|| find_program(program).unwrap_or_else(|| program.into()));
            let found = given_by(variable).or_else(is_there).ok_or_else(|| match &debian {
                Err(why) => anyhow!("{why:#} (Debian package {package})"),
                Ok(()) => anyhow!("Debian package {package} was installed, yet the program is not there"),
            });
            peers.record(program, variable, found);
        }
        let folder = workspace.target.join("peers");
        let kopia = given_by(Some(KOPIA)).map_or_else(|| build_kopia(workspace, &folder, install), Ok);
        peers.record("kopia", Some(KOPIA), kopia);
        for (name, variable, place) in
            [("weed", WEED, "s3"), ("schemathesis", SCHEMATHESIS, "schemathesis"), ("aiosmtpd", SMTP, "smtp")]
        {
            let program = given_by(Some(variable));
            let program = program.map_or_else(|| install_python(workspace, &folder, place, name, install), Ok);
            peers.record(name, Some(variable), program);
        }
        let oidc = given_file(OIDC).map_or_else(|| install_oidc(workspace, &folder, install), Ok);
        peers.record("oidc-provider", Some(OIDC), oidc);
        for peer in &peers.found {
            println!("peer {:18} {}", peer.name, peer.program.display());
        }
        peers.skipped.iter().for_each(|line| println!("{line}"));
        peers
    }

    fn record(&mut self, name: &'static str, variable: Option<&'static str>, found: Result<PathBuf>) {
        match found {
            Ok(program) => self.found.push(Peer { name, variable, program }),
            Err(why) => self.skipped.push(format!("SKIPPED peer {name}: {why:#}")),
        }
    }

    /// The program of that peer.
    #[cfg(feature = "play")]
    pub fn program(&self, name: &str) -> Option<&Path> {
        self.found.iter().find(|peer| peer.name == name).map(|peer| peer.program.as_path())
    }

    /// Names the peers' programs in the environment of `command`, where tests look for them.
    pub fn export<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        for peer in &self.found {
            if let Some(variable) = peer.variable {
                command.env(variable, &peer.program);
            }
        }
        command
    }
}

/// A program that the user named in the environment goes before any that we would find or build.
fn given_by(variable: Option<&str>) -> Option<PathBuf> {
    let program = PathBuf::from(env::var_os(variable?)?);
    is_executable(&program).then_some(program)
}

/// The same for what is run by another program.
fn given_file(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from).filter(|file| file.is_file())
}

/// Builds stock Kopia from the Go module pinned in `peers/kopia`, once for each content of its `go.sum`.
fn build_kopia(workspace: &Workspace, folder: &Path, install: Install) -> Result<PathBuf> {
    let module = workspace.root.join("peers/kopia");
    let program = folder.join("kopia");
    let pinned = read_pinned(&[&module.join("go.mod"), &module.join("go.sum")])?;
    let stamp = Stamp { file: folder.join("kopia.stamp"), pinned };
    if stamp.matches() && is_executable(&program) {
        return Ok(program);
    }
    if install == Install::Nothing {
        return find_program("kopia").context("not built before, and nothing is installed in this run");
    }

    let wanted = go_version_wanted(&stamp.pinned)?;
    let go = find_program("go").or_else(|| Some(PathBuf::from("/usr/local/go/bin/go")).filter(|go| is_executable(go)));
    let go = go.context("building it needs Go, which is not installed")?;
    let has = output_of(Command::new(&go).env("GOTOOLCHAIN", "local").args(["env", "GOVERSION"]))?;
    let has = parse_go_version(has.trim().trim_start_matches("go"));
    if has < Some(wanted) {
        bail!(
            "building it needs Go {}.{}, here is {}",
            wanted.0,
            wanted.1,
            has.map_or("another".into(), |v| format!("{}.{}", v.0, v.1))
        );
    }

    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    println!("building stock Kopia (once, one to three minutes)");
    let mut build = Command::new(&go);
    build
        .current_dir(&module)
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        .args(["build", "-o"])
        .arg(&program)
        .arg("github.com/kopia/kopia");
    output_of(&mut build)?;
    stamp.write()?;
    Ok(program)
}

/// The `go 1.26` line of a `go.mod`.
fn go_version_wanted(go_mod: &str) -> Result<(u32, u32)> {
    let line = go_mod.lines().find_map(|line| line.strip_prefix("go ")).context("go.mod has no go line")?;
    parse_go_version(line.trim()).with_context(|| format!("go.mod: version {line:?}"))
}

fn parse_go_version(text: &str) -> Option<(u32, u32)> {
    let digits = |part: &str| part.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
    let mut parts = text.split('.');
    Some((digits(parts.next()?)?, digits(parts.next()?)?))
}

/// Installs the program pinned in `peers/PLACE/requirements.txt` into a virtual environment of its own.
fn install_python(workspace: &Workspace, folder: &Path, place: &str, name: &str, install: Install) -> Result<PathBuf> {
    let requirements = workspace.root.join("peers").join(place).join("requirements.txt");
    let environment = folder.join(place);
    let program = environment.join("bin").join(name);
    let stamp = Stamp { file: folder.join(format!("{place}.stamp")), pinned: read_pinned(&[&requirements])? };
    if stamp.matches() && is_executable(&program) {
        return Ok(program);
    }
    if install == Install::Nothing {
        return find_program(name).context("not installed before, and nothing is installed in this run");
    }
    let python = find_program("python3").context("installing it needs Python 3, which is not there")?;
    println!("installing {name} from PyPI");
    output_of(Command::new(python).args(["-m", "venv", "--clear"]).arg(&environment))?;
    let mut pip = Command::new(environment.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]).arg(&requirements);
    output_of(&mut pip)?;
    if !is_executable(&program) {
        bail!("pip installed no {}", program.display());
    }
    stamp.write()?;
    Ok(program)
}

/// Installs the OpenID Connect provider pinned in `peers/oidc` beside its script.
fn install_oidc(workspace: &Workspace, folder: &Path, install: Install) -> Result<PathBuf> {
    let source = workspace.root.join("peers/oidc");
    let place = folder.join("oidc");
    let script = place.join("server.mjs");
    let files = ["package.json", "package-lock.json", "server.mjs"];
    let pinned: Vec<PathBuf> = files.iter().map(|file| source.join(file)).collect();
    let pinned: Vec<&Path> = pinned.iter().map(PathBuf::as_path).collect();
    let stamp = Stamp { file: folder.join("oidc.stamp"), pinned: read_pinned(&pinned)? };
    if stamp.matches() && script.is_file() {
        return Ok(script);
    }
    if install == Install::Nothing {
        bail!("not installed before, and nothing is installed in this run");
    }
    for program in ["node", "npm"] {
        find_program(program).with_context(|| format!("it needs {program}, which is not installed"))?;
    }
    println!("installing oidc-provider by npm");
    fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
    for file in files {
        fs::copy(source.join(file), place.join(file)).with_context(|| format!("copy {file}"))?;
    }
    let mut npm = Command::new("npm");
    npm.current_dir(&place).args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
    output_of(&mut npm)?;
    stamp.write()?;
    Ok(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_compare_by_number() {
        for (text, expected) in [
            ("1.26", Some((1, 26))),
            ("1.26.8", Some((1, 26))),
            ("1.27rc1", Some((1, 27))),
            ("1", None),
            ("devel", None),
        ] {
            assert_eq!(parse_go_version(text), expected, "{text}");
        }
        assert!(parse_go_version("1.9") < parse_go_version("1.26"));
        assert_eq!(go_version_wanted("module a\n\ngo 1.26\n\nrequire x v1\n").unwrap(), (1, 26));
    }
}

//! Debian packages that tests need, installed where that is possible.

use std::env;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{find_program, output_of};

/// Installs those of `packages` whose file is not there. Each goes with a program, found in the `PATH`, or the full path
/// of a file, that shows it to be installed.
pub fn install_missing(packages: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().filter(|(file, _)| !is_there(file)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if find_program("apt-get").is_none() {
        bail!("not installed, and this machine has no apt-get");
    }
    if !is_root()? {
        bail!("not installed, and installing needs root");
    }
    // apt's own lock does not keep two runs from disturbing each other where a hook empties the archive
    // cache at the end of any run. The lock lies outside the target folder: apt is the whole machine's.
    let lock_path = env::temp_dir().join("apt.lock");
    let lock = File::options().create(true).append(true).open(&lock_path);
    let lock = lock.with_context(|| format!("open {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("lock {}", lock_path.display()))?;

    println!("installing {} by apt-get", missing.join(", "));
    let install = || {
        let mut command = apt_get("install");
        command.args(["-y", "--no-install-recommends"]).args(&missing);
        output_of(&mut command)
    };
    // A fresh machine has no package lists, and old lists name archives that are gone: both end here.
    if install().is_err() {
        output_of(&mut apt_get("update"))?;
        install()?;
    }
    Ok(())
}

/// Whether a program of that name, or a file of that full path, is there.
pub fn is_there(file: &str) -> bool {
    if file.starts_with('/') { Path::new(file).exists() } else { find_program(file).is_some() }
}

fn apt_get(verb: &str) -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=120", verb]);
    command
}

fn is_root() -> Result<bool> {
    Ok(output_of(Command::new("id").arg("-u"))?.trim() == "0")
}

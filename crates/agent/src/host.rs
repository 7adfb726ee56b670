//! The host that `--host` names, opened.

use std::path::{Path, PathBuf};

use backup::HostState;
use hyperv::Host;
use hyperv_sim::LabHost;

use crate::config::machine_folder;
use crate::failure::{Attempt as _, Code, Failure};
use crate::lab_hooks::LabHooks;

/// A host, ready for use.
pub struct OpenHost {
    /// Its provider.
    pub host: Host,
    /// Its computer name.
    pub name: String,
    /// Crash-test hooks, with a simulated host.
    pub hooks: Option<LabHooks>,
    state_dir: PathBuf,
}

impl OpenHost {
    /// Opens `local` or `lab:DIR`.
    pub fn open(selector: &str) -> Result<Self, Failure> {
        let what = "open the host";
        match selector.split_once(':') {
            Some(("lab", dir)) if !dir.is_empty() => Self::open_lab(Path::new(dir), selector),
            None if selector == "local" => Self::open_local(selector),
            _ => Err(no_such_selector(what, selector)),
        }
    }

    #[cfg(windows)]
    fn open_local(selector: &str) -> Result<Self, Failure> {
        let host = Host::new(hyperv::windows::local_seam());
        let facts = host.probe().attempt("open the host", selector)?;
        Ok(Self { host, name: facts.name, hooks: None, state_dir: state_dir(selector)? })
    }

    #[cfg(not(windows))]
    fn open_local(selector: &str) -> Result<Self, Failure> {
        let why = "`local` is the Hyper-V of this machine, and this machine does not run Windows";
        Err(Failure::new("open the host", selector, Code::NotSupported, why)
            .with_steps(&["use a simulated host: `lab create DIR`, then --host lab:DIR"]))
    }

    fn open_lab(dir: &Path, selector: &str) -> Result<Self, Failure> {
        let what = "open the host";
        if !dir.join("host.json").is_file() {
            let why = "there is no simulated host in this folder";
            return Err(Failure::new(what, selector, Code::NotFound, why)
                .with_steps(&["check the folder", "make one: `lab create DIR`"]));
        }
        let lab = LabHost::open(dir).attempt(what, selector)?;
        let hooks = LabHooks::from_environment()?;
        let host = Host::new(hooks.wrap_seam(lab.seam()));
        let facts = host.probe().attempt(what, selector)?;
        Ok(Self { host, name: facts.name, hooks: Some(hooks), state_dir: state_dir(selector)? })
    }

    /// The locks and journals of this host.
    pub fn state(&self) -> Result<HostState, Failure> {
        HostState::open(&self.state_dir).attempt("open the host's journal", self.state_dir.display().to_string())
    }
}

/// The folder of locks and journals of the host that `selector` names, whether or not the host answers.
pub fn state_dir(selector: &str) -> Result<PathBuf, Failure> {
    match selector.split_once(':') {
        Some(("lab", dir)) if !dir.is_empty() => Ok(Path::new(dir).join("e3-state")),
        None if selector == "local" => Ok(machine_folder().join("state")),
        _ => Err(no_such_selector("find the host's journals", selector)),
    }
}

fn no_such_selector(what: &str, selector: &str) -> Failure {
    Failure::new(what, selector, Code::Usage, "a host is `local` or `lab:DIR`")
        .with_steps(&["correct --host or E3_HOST"])
}

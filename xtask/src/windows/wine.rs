//! Wine: a prefix of our own, made once, and kept awake while tests run in it.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::debian;
use crate::peers::Install;
use crate::process::{find_program, output_of};
use crate::stamp::Stamp;
use crate::workspace::Workspace;

/// Not in the `PATH`; the `wine` that is there looks for a 32-bit half first and complains.
const WINE: &str = "/usr/lib/wine/wine64";
const PACKAGES: [(&str, &str); 3] =
    [(WINE, "wine64"), ("wineserver", "wine"), ("x86_64-w64-mingw32-gcc", "gcc-mingw-w64-x86-64")];

/// A Wine prefix that Rust programs run in.
pub struct Prefix {
    path: PathBuf,
    version: String,
    /// One run at a time: ending one run's Wine ends every process of the prefix.
    lock: File,
}

impl Prefix {
    /// Finds or makes it, with Wine installed where that is allowed.
    pub fn gather(workspace: &Workspace, folder: &Path, install: Install) -> Result<Prefix> {
        if install == Install::Missing {
            debian::install_missing(&PACKAGES)?;
        }
        if let Some((_, package)) = PACKAGES.iter().find(|(file, _)| !debian::is_there(file)) {
            bail!("Debian package {package} is not there, and nothing is installed in this run");
        }
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let lock = File::create(folder.join("prefix.lock")).context("open the lock of the Wine prefix")?;
        lock.lock().context("lock the Wine prefix")?;

        let version = output_of(Command::new(WINE).arg("--version"))?.trim().to_owned();
        let shim = workspace.root.join("peers/wine/bcryptprimitives.c");
        let source = fs::read_to_string(&shim).with_context(|| format!("read {}", shim.display()))?;
        let prefix = Prefix { path: folder.join("prefix"), version, lock };
        let stamp = Stamp { file: folder.join("prefix.stamp"), pinned: format!("{}\n{source}", prefix.version) };
        if !stamp.matches() {
            prefix.make(&shim)?;
            stamp.write()?;
        }
        Ok(prefix)
    }

    fn make(&self, shim: &Path) -> Result<()> {
        println!("making a Wine prefix (once, some seconds)");
        if self.path.exists() {
            fs::remove_dir_all(&self.path).with_context(|| format!("remove {}", self.path.display()))?;
        }
        output_of(self.wine().args(["wineboot.exe", "-i"]))?;
        // Wine takes itself for Windows 7; what we support begins with 10.
        output_of(self.wine().args(["winecfg.exe", "-v", "win10"]))?;
        self.server("-w")?;
        let library = self.path.join("drive_c/windows/system32/bcryptprimitives.dll");
        let mut compile = Command::new("x86_64-w64-mingw32-gcc");
        compile.args(["-O2", "-s", "-shared", "-o"]).arg(library).arg(shim).arg("-ladvapi32");
        output_of(&mut compile)?;
        Ok(())
    }

    /// Starts the process that keeps Wine's services alive: about two seconds after the last process of a prefix Wine
    /// ends them all, and the next program would wait for their start.
    pub fn start(self) -> Result<Running> {
        let mut command = self.wine();
        command.arg("cmd.exe").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut holder = command.spawn().context("start Wine's cmd.exe")?;
        let input = holder.stdin.take().context("the input of Wine's cmd.exe")?;
        Ok(Running { prefix: self, holder, input: Some(input) })
    }

    fn wine(&self) -> Command {
        let mut command = Command::new(WINE);
        self.export(&mut command);
        command
    }

    fn export(&self, command: &mut Command) {
        command.env("WINEPREFIX", &self.path).env("WINEDEBUG", "-all");
        // Wine would start a debugger for a test that crashes, and wait for somebody to close it. No menus, no Mono.
        command.env("WINEDLLOVERRIDES", "winedbg.exe=d;winemenubuilder.exe=d;mscoree=d;mshtml=d");
    }

    /// `-k` ends every process of this prefix, `-w` waits until there is none.
    fn server(&self, what: &str) -> Result<()> {
        let server = find_program("wineserver").context("find wineserver")?;
        let mut command = Command::new(server);
        self.export(&mut command);
        let status = command.arg(what).status().with_context(|| format!("run wineserver {what}"))?;
        // It says 1 when there was nothing to end.
        if !status.success() && what != "-k" {
            bail!("wineserver {what}: {status}");
        }
        Ok(())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.version, self.path.display())
    }
}

/// A prefix in which programs run; ended when dropped.
pub struct Running {
    prefix: Prefix,
    holder: Child,
    /// `cmd.exe` ends with its input, also when this process is killed.
    input: Option<ChildStdin>,
}

impl Running {
    /// Makes `command`, a cargo, run Windows programs here.
    pub fn export(&self, command: &mut Command) {
        self.prefix.export(command);
        command.env("CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER", WINE);
    }

    /// A Windows program, to be run here.
    pub fn program(&self, program: &Path) -> Command {
        let mut command = self.prefix.wine();
        command.arg(program);
        command
    }

    /// The folder that is drive C here.
    pub fn drive(&self) -> PathBuf {
        self.prefix.path.join("drive_c")
    }

    /// Ends everything that runs in the prefix.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.input.take().is_some() {
            self.prefix.server("-k")?;
            self.holder.wait().context("wait for Wine's cmd.exe")?;
            self.prefix.lock.unlock().context("unlock the Wine prefix")?;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Whoever drops without `stop` has an error to report already.
        let _ = self.end();
    }
}

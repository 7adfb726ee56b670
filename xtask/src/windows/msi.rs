//! The agent's MSI in the life of a machine: installed, set to work, replaced by a newer one in the middle of a backup,
//! not by an older one, and removed in the middle of the next.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::package::msi::{MsiMaker, PROGRAM, ProductVersion};
use crate::process::{output_of, typed};
use crate::windows::wine::Running;

const SERVICE: &str = r"HKLM\SYSTEM\CurrentControlSet\Services\e3-backup-agent";
const EVENT_SOURCE: &str = r"HKLM\SYSTEM\CurrentControlSet\Services\EventLog\Application\e3-backup-agent";
const PRODUCTS: &str = r"HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Uninstall";
const ENVIRONMENT: &str = r"HKLM\SYSTEM\CurrentControlSet\Control\Session Manager\Environment";
/// How long the service may take to begin a backup.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reading at this rate the first backup takes longer than everything that is done in its midst.
const CONFIGURATION: &str = r"
repository = 'C:\e3-msi\repository'
host = 'lab:C:\e3-msi\lab'
password_file = 'C:\e3-msi\password'
[limits]
read = '1MiB'
[[job]]
name = 'always'
every = '1s'
";
const DISK_MIB: usize = 64;

/// Makes packages of `program`, and lives through them in the prefix, which is left as it was.
pub fn check(maker: &MsiMaker, running: &Running, program: &Path) -> Result<()> {
    let out = tempfile::tempdir().context("make a folder")?;
    let version = ProductVersion::of_workspace()?;
    let first = maker.make(program, version, &out.path().join("first"))?;
    let newer = maker.make(program, version.next(), &out.path().join("newer"))?;
    let again = maker.make(program, version.next(), &out.path().join("again"))?;
    println!("{}  {} KiB", first.display(), first.metadata().context("look at the package")?.len() / 1024);

    let machine = Machine::take(running)?;
    machine.install(&first).context("install the MSI")?;
    machine.expect_installed(version).context("after the installation")?;
    ensure!(machine.service_state()? == "STOPPED", "a service without configuration was started");
    println!("installed: files, service, entries; not started, as there is nothing to do yet");

    machine.configure()?;
    let configuration = machine.data().join("config.toml");
    machine.agent(&["service", "start"])?;
    machine.wait_for_backup()?;
    machine.install(&newer).context("install a newer MSI over it")?;
    machine.expect_installed(version.next()).context("after the upgrade")?;
    ensure!(machine.service_state()? == "RUNNING", "the upgrade did not start the service again");
    machine.expect_starts_and_stops(2, 1)?;
    println!("upgraded: the backup ended in order, one product, the service runs again");

    machine.wait_for_backup()?;
    machine.install(&again).context("install another build of the same version over it")?;
    machine.expect_installed(version.next()).context("after another build")?;
    ensure!(machine.install(&first).is_err(), "an older MSI replaced the newer one");
    machine.expect_installed(version.next()).context("after the refusal")?;
    ensure!(machine.service_state()? == "RUNNING", "the refusal ended the service");
    println!("another build of the same version takes its place; the older version is refused");

    machine.wait_for_backup()?;
    machine.msiexec("/x", &wine_path(&again)).context("remove it")?;
    machine.expect_removed()?;
    machine.expect_starts_and_stops(3, 3)?;
    ensure!(fs::read_to_string(&configuration).ok().as_deref() == Some(CONFIGURATION), "the configuration is gone");
    machine.expect_host_in_order(program)?;
    println!("removed: program, service and entries are gone, configuration, journals and log stay");
    machine.give_back()
}

/// The prefix as a machine without the agent.
struct Machine<'a> {
    running: &'a Running,
    drive: PathBuf,
    /// What was there.
    before: BTreeSet<PathBuf>,
    is_given_back: bool,
}

impl Machine<'_> {
    /// Puts aside what other tests left, so that all that is found is the package's.
    fn take(running: &Running) -> Result<Machine<'_>> {
        let drive = running.drive();
        let mut machine = Machine { running, drive, before: BTreeSet::new(), is_given_back: false };
        // A run that was killed may have left any of this.
        machine.clear()?;
        machine.before = machine.places()?;
        if machine.data().exists() {
            fs::rename(machine.data(), machine.aside()).context("put the agent's folder aside")?;
        }
        Ok(machine)
    }

    /// Undoes everything, and looks that it did.
    fn give_back(mut self) -> Result<()> {
        self.clear()?;
        self.is_given_back = true;
        let after = self.places()?;
        let changed: Vec<_> = self.before.symmetric_difference(&after).collect();
        ensure!(changed.is_empty(), "the prefix is not as it was: {changed:?}");
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        for (code, _) in self.products()? {
            self.msiexec("/x", &code).context("remove what is left")?;
        }
        remove(&self.work())?;
        if self.aside().exists() {
            remove(&self.data())?;
            fs::rename(self.aside(), self.data()).context("put the agent's folder back")?;
        } else if !self.before.is_empty() {
            remove(&self.data())?;
        }
        Ok(())
    }

    /// Files and folders where an installation could leave something.
    fn places(&self) -> Result<BTreeSet<PathBuf>> {
        let mut places = BTreeSet::new();
        for folder in ["", "Program Files", "ProgramData", "windows/Installer"] {
            let folder = self.drive.join(folder);
            if folder.exists() {
                let entries = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
                places.extend(entries.flatten().map(|entry| entry.path()));
            }
        }
        Ok(places)
    }

    fn install(&self, package: &Path) -> Result<()> {
        self.msiexec("/i", &wine_path(package))
    }

    fn msiexec(&self, what: &str, package: &str) -> Result<()> {
        let mut command = self.windows("msiexec.exe");
        // No pipes: it starts Wine's desktop, which would hold them open.
        command.args([what, package, "/qn"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().context("start msiexec")?;
        ensure!(status.success(), "{}: {status} (the lowest eight bits of its code)", typed(&command));
        Ok(())
    }

    fn expect_installed(&self, version: ProductVersion) -> Result<()> {
        for file in [PROGRAM, "service.md", "operator-guide.md", "LICENSE-APACHE", "LICENSE-MIT"] {
            ensure!(self.installed(file).is_file(), "{file} is not there");
        }
        let told = self.agent(&["--version"])?;
        ensure!(told.contains(env!("CARGO_PKG_VERSION")), "the installed program calls itself {told:?}");
        let products = self.products()?;
        ensure!(
            products.len() == 1 && products[0].1 == format!("{version} of e3 project"),
            "installed are {products:?}"
        );

        let service = self.registry(SERVICE)?.context("the service is not registered")?;
        for (name, expected) in [
            ("ImagePath", r#""C:\Program Files\e3\e3-backup-agent.exe" service main"#),
            ("DisplayName", "e3 Backup Agent"),
            ("Description", "Backs up the virtual machines of this host, by the jobs of its configuration."),
            ("ObjectName", "LocalSystem"),
            ("Start", "0x2"),
            ("Type", "0x10"),
            // Not of a table: `service install` ran.
            ("PreshutdownTimeout", "0x2bf20"),
        ] {
            let found = value(&service, name);
            ensure!(found == Some(expected), "{name} of the service is {found:?}");
        }
        let source = self.registry(EVENT_SOURCE)?.context("the source of events is not registered")?;
        let texts = value(&source, "EventMessageFile");
        ensure!(texts == Some(r"%SystemRoot%\System32\EventCreate.exe"), "texts of events are in {texts:?}");
        ensure!(self.path_has_program()?, "the program's folder is not in the PATH");
        for folder in ["state", "log"] {
            ensure!(self.data().join(folder).is_dir(), "the folder {folder} was not made");
        }
        Ok(())
    }

    fn expect_removed(&self) -> Result<()> {
        ensure!(!self.drive.join("Program Files/e3").exists(), "files are left");
        let products = self.products()?;
        ensure!(products.is_empty(), "left are {products:?}");
        ensure!(self.registry(SERVICE)?.is_none(), "the service is left");
        ensure!(self.registry(EVENT_SOURCE)?.is_none(), "the source of events is left");
        ensure!(!self.path_has_program()?, "the program's folder is left in the PATH");
        Ok(())
    }

    /// Work for the agent that takes a while.
    fn configure(&self) -> Result<()> {
        let work = self.work();
        fs::create_dir_all(&work).with_context(|| format!("make {}", work.display()))?;
        fs::write(work.join("password"), "correct horse battery staple").context("write the password")?;
        let words = (0..(DISK_MIB as u64) << 17).map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let disk: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        fs::write(work.join("disk.raw"), disk).context("write a disk")?;
        self.agent(&["lab", "create", r"C:\e3-msi\lab"])?;
        self.agent(&["lab", "add-vm", r"C:\e3-msi\lab", "DC01", "--disk", r"C:\e3-msi\disk.raw"])?;
        let repository = ["--repo", r"C:\e3-msi\repository", "--password-file", r"C:\e3-msi\password"];
        self.agent(&[&["repo", "create"][..], &repository].concat())?;
        fs::write(self.data().join("config.toml"), CONFIGURATION).context("write the configuration")
    }

    /// Until the service reads a disk.
    fn wait_for_backup(&self) -> Result<()> {
        let begun = Instant::now();
        let mut last = String::new();
        while begun.elapsed() < PATIENCE {
            last = self.agent(&["service", "status", "--json"])?;
            let status: Value = serde_json::from_str(&last).context("read the status")?;
            if status["running"]["phase"].as_str().is_some_and(|phase| phase.contains("read")) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(200));
        }
        bail!("no backup was seen within {} s; the service says {last}", PATIENCE.as_secs())
    }

    /// A service that was killed has not told of its end.
    fn expect_starts_and_stops(&self, starts: usize, stops: usize) -> Result<()> {
        let mut log = String::new();
        for entry in fs::read_dir(self.data().join("log")).context("list the logs")? {
            log += &fs::read_to_string(entry?.path()).context("read the log")?;
        }
        let count = |what: &str| log.matches(&format!("e3-backup-agent {} {what}", env!("CARGO_PKG_VERSION"))).count();
        let found = (count("started"), count("stopped"));
        ensure!(found == (starts, stops), "starts and stops in the log are {found:?}:\n{log}");
        Ok(())
    }

    /// Backups that were ended left nothing behind.
    fn expect_host_in_order(&self, program: &Path) -> Result<()> {
        let mut host = self.clean(self.running.program(program));
        let said = host.args(["host", "check", "--host", r"lab:C:\e3-msi\lab", "--json"]).output();
        let said = String::from_utf8_lossy(&said.context("ask the host")?.stdout).into_owned();
        let host: Value = serde_json::from_str(&said).with_context(|| format!("host check said {said:?}"))?;
        let left = host["findings"].as_array().context("host check tells no findings")?;
        ensure!(left.is_empty(), "left on the host: {left:?}");
        Ok(())
    }

    /// `RUNNING`, `STOPPED` and the like.
    fn service_state(&self) -> Result<String> {
        let said =
            output_of(self.windows("sc.exe").args(["query", "e3-backup-agent"])).context("ask for the service")?;
        let state = said.lines().find_map(|line| line.trim().strip_prefix("STATE"));
        let state = state.and_then(|state| state.split_whitespace().last());
        state.map(str::to_owned).with_context(|| format!("sc said {said:?}"))
    }

    /// Of every product that is our agent its code, and "VERSION of PUBLISHER".
    fn products(&self) -> Result<Vec<(String, String)>> {
        let said = output_of(self.windows("reg.exe").args(["query", PRODUCTS, "/s"])).context("list products")?;
        let products = said.replace('\r', "");
        let ours = products.split("\n\n").filter(|product| value(product, "DisplayName") == Some("e3 Backup Agent"));
        ours.map(|product| {
            let code = product.lines().find_map(|line| line.rsplit_once('\\').filter(|_| line.starts_with("HKEY_")));
            let (_, code) = code.with_context(|| format!("no code in {product:?}"))?;
            let words = ["DisplayVersion", "Publisher"].map(|name| value(product, name).unwrap_or_default());
            Ok((code.to_owned(), words.join(" of ")))
        })
        .collect()
    }

    fn path_has_program(&self) -> Result<bool> {
        let environment = self.registry(ENVIRONMENT)?.context("no environment")?;
        let path = value(&environment, "PATH").context("no PATH")?;
        Ok(path.split(';').any(|folder| folder.trim_end_matches('\\') == r"C:\Program Files\e3"))
    }

    /// What `reg` says of a key, if it is there.
    fn registry(&self, key: &str) -> Result<Option<String>> {
        let output = self.windows("reg.exe").args(["query", key]).output().context("start reg")?;
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).replace('\r', "")))
    }

    /// What the installed program says.
    fn agent(&self, arguments: &[&str]) -> Result<String> {
        output_of(self.clean(self.running.program(&self.installed(PROGRAM))).args(arguments))
    }

    /// A command of the agent with nothing of its caller's environment.
    fn clean(&self, mut command: Command) -> Command {
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("E3_") || name.to_string_lossy().starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        command.env("APPDATA", r"C:\e3-msi").env("LOCALAPPDATA", r"C:\e3-msi");
        command
    }

    fn windows(&self, program: &str) -> Command {
        self.running.program(Path::new(program))
    }

    fn installed(&self, file: &str) -> PathBuf {
        self.drive.join("Program Files/e3").join(file)
    }

    fn data(&self) -> PathBuf {
        self.drive.join("ProgramData/e3")
    }

    fn aside(&self) -> PathBuf {
        self.drive.join("ProgramData/e3.aside")
    }

    fn work(&self) -> PathBuf {
        self.drive.join("e3-msi")
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // Whoever drops without `give_back` has an error to report already.
        if !self.is_given_back {
            let _ = self.clear();
        }
    }
}

/// The value of that name in what `reg` said.
fn value<'a>(said: &'a str, name: &str) -> Option<&'a str> {
    said.lines().find_map(|line| {
        let (found, rest) = line.trim().split_once("    ")?;
        let (_, value) = rest.split_once("    ")?;
        (found == name).then_some(value)
    })
}

/// How Wine names a file of this machine.
fn wine_path(file: &Path) -> String {
    format!("Z:{}", file.display()).replace('/', r"\")
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_from_what_reg_says() {
        let said = "\nHKEY_LOCAL_MACHINE\\X\n    Name    REG_SZ    \"C:\\Program Files\\a b\" c\n    Start    REG_DWORD    0x2\n";
        assert_eq!(value(said, "Name"), Some(r#""C:\Program Files\a b" c"#));
        assert_eq!(value(said, "Start"), Some("0x2"));
        assert_eq!(value(said, "X"), None);
    }
}

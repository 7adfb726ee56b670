//! Backup programs that do the same four things to the same disk file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::agent::Agent;
use crate::folder::remove;
use crate::process::output_of;

/// What is measured, in the order in which it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The first backup, into an empty repository.
    Full,
    /// A second backup, of a disk in which nothing changed.
    Unchanged,
    /// The disk file, written anew.
    Restore,
    /// Every byte read back and checked.
    Verify,
}

impl Step {
    /// All of them.
    pub const ALL: [Step; 4] = [Step::Full, Step::Unchanged, Step::Restore, Step::Verify];

    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Step::Full => "full backup",
            Step::Unchanged => "unchanged backup",
            Step::Restore => "restore",
            Step::Verify => "verify every byte",
        }
    }
}

/// One backup program.
pub trait Contender {
    /// For the table.
    fn name(&self) -> &'static str;

    /// Begins anew with an empty repository; not measured.
    fn reset(&self) -> Result<()>;

    /// The command that does the step, ready to be measured.
    fn command(&self, step: Step) -> Result<Command>;

    /// The disk file that the restore wrote.
    fn restored(&self) -> PathBuf;

    /// The repository's folder.
    fn repository(&self) -> PathBuf;
}

/// The agent, backing up a machine of a simulated host whose disk is a copy of the file.
pub struct Ours {
    /// The program, with a repository of its own and the host.
    pub agent: Agent,
    /// The machine.
    pub vm: &'static str,
    /// Where restored files go.
    pub folder: PathBuf,
}

impl Contender for Ours {
    fn name(&self) -> &'static str {
        "e3"
    }

    fn reset(&self) -> Result<()> {
        remove(self.agent.repository())?;
        remove(&self.restored())?;
        output_of(&mut self.agent.command(["repo", "create"])).map(drop)
    }

    fn command(&self, step: Step) -> Result<Command> {
        let point = format!("{}@latest", self.vm);
        Ok(match step {
            Step::Full => self.agent.command(["backup", self.vm, "--full"]),
            Step::Unchanged => self.agent.command(["backup", self.vm]),
            Step::Restore => {
                let mut command = self.agent.command(["restore", "disk", &point, "--format", "vhdx", "--to"]);
                command.arg(self.restored());
                command
            }
            Step::Verify => self.agent.command(["verify", &point, "--level", "full"]),
        })
    }

    fn restored(&self) -> PathBuf {
        self.folder.join("restored-by-e3.vhdx")
    }

    fn repository(&self) -> PathBuf {
        self.agent.repository().to_owned()
    }
}

/// Stock Kopia with the algorithms that our repositories have.
pub struct Kopia {
    /// The program.
    pub program: PathBuf,
    /// The folder that is backed up: it holds the disk file and nothing else.
    pub source: PathBuf,
    /// A folder of its own.
    pub folder: PathBuf,
}

impl Kopia {
    fn call(&self, words: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(words.split(' '))
            .env("KOPIA_PASSWORD", "bench")
            .env("KOPIA_CHECK_FOR_UPDATES", "false")
            .env("KOPIA_CONFIG_PATH", self.folder.join("config"))
            .env("KOPIA_CACHE_DIRECTORY", self.folder.join("cache"))
            .env("KOPIA_LOG_DIR", self.folder.join("log"));
        command
    }
}

impl Contender for Kopia {
    fn name(&self) -> &'static str {
        "kopia"
    }

    fn reset(&self) -> Result<()> {
        remove(&self.folder)?;
        fs::create_dir_all(&self.folder).with_context(|| format!("create {}", self.folder.display()))?;
        let mut create = self.call(
            "repository create filesystem --block-hash=BLAKE3-256-128 --encryption=AES256-GCM-HMAC-SHA256 \
             --object-splitter=FIXED-1M --path",
        );
        output_of(create.arg(self.repository()).arg("--cache-directory").arg(self.folder.join("cache")))?;
        output_of(&mut self.call("policy set --global --compression=zstd-fastest")).map(drop)
    }

    fn command(&self, step: Step) -> Result<Command> {
        let mut command;
        match step {
            Step::Full => {
                command = self.call("snapshot create --no-progress");
                command.arg(&self.source);
            }
            Step::Unchanged => {
                touch(&self.source)?;
                command = self.call("snapshot create --no-progress");
                command.arg(&self.source);
            }
            Step::Restore => {
                let list = output_of(&mut self.call("snapshot list --all --json"))?;
                let list: serde_json::Value = serde_json::from_str(&list).context("read Kopia's list of snapshots")?;
                let newest =
                    list.as_array().and_then(|snapshots| snapshots.last()).context("Kopia lists no snapshot")?;
                let id = newest["id"].as_str().context("Kopia's snapshot has no id")?;
                command = self.call("snapshot restore --no-progress");
                command.arg(id).arg(self.folder.join("restored"));
            }
            Step::Verify => command = self.call("snapshot verify --no-progress --verify-files-percent=100"),
        }
        Ok(command)
    }

    fn restored(&self) -> PathBuf {
        self.folder.join("restored").join(super::DISK_FILE)
    }

    fn repository(&self) -> PathBuf {
        self.folder.join("repo")
    }
}

/// restic, with its defaults.
pub struct Restic {
    /// The program.
    pub program: PathBuf,
    /// The folder that is backed up.
    pub source: PathBuf,
    /// A folder of its own.
    pub folder: PathBuf,
}

impl Restic {
    fn call(&self, words: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(words.split(' '))
            .env("RESTIC_PASSWORD", "bench")
            .env("RESTIC_REPOSITORY", self.repository())
            .env("RESTIC_CACHE_DIR", self.folder.join("cache"));
        command
    }
}

impl Contender for Restic {
    fn name(&self) -> &'static str {
        "restic"
    }

    fn reset(&self) -> Result<()> {
        remove(&self.folder)?;
        fs::create_dir_all(&self.folder).with_context(|| format!("create {}", self.folder.display()))?;
        output_of(&mut self.call("init -q")).map(drop)
    }

    fn command(&self, step: Step) -> Result<Command> {
        let mut command;
        match step {
            Step::Full => {
                command = self.call("backup -q");
                command.arg(&self.source);
            }
            Step::Unchanged => {
                touch(&self.source)?;
                command = self.call("backup -q");
                command.arg(&self.source);
            }
            Step::Restore => {
                command = self.call("restore -q latest --target");
                command.arg(self.folder.join("restored"));
            }
            Step::Verify => command = self.call("check -q --read-data"),
        }
        Ok(command)
    }

    fn restored(&self) -> PathBuf {
        // restic keeps the whole path of what it saved.
        let inside = self.source.strip_prefix("/").unwrap_or(&self.source);
        self.folder.join("restored").join(inside).join(super::DISK_FILE)
    }

    fn repository(&self) -> PathBuf {
        self.folder.join("repo")
    }
}

/// Gives the disk file a new time, as the disk of a running machine always has: a program that judges by times alone
/// must read it again.
fn touch(source: &Path) -> Result<()> {
    let path = source.join(super::DISK_FILE);
    let file = File::options().write(true).open(&path).with_context(|| format!("open {}", path.display()))?;
    file.set_modified(SystemTime::now()).with_context(|| format!("touch {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::env;

    use super::*;
    use crate::process::find_program;

    #[test]
    fn peers_do_all_steps() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        let content = crate::random::Random::new(3).bytes(3 << 20);
        fs::write(source.join(super::super::DISK_FILE), &content).unwrap();

        let kopia = env::var_os("E3_TEST_KOPIA").map(PathBuf::from).or_else(|| find_program("kopia"));
        let restic = find_program("restic");
        let mut contenders: Vec<Box<dyn Contender>> = Vec::new();
        match kopia {
            Some(program) => contenders.push(Box::new(Kopia {
                program,
                source: source.clone(),
                folder: folder.path().join("kopia"),
            })),
            None => eprintln!("SKIPPED peers_do_all_steps: kopia is not installed"),
        }
        match restic {
            Some(program) => contenders.push(Box::new(Restic {
                program,
                source: source.clone(),
                folder: folder.path().join("restic"),
            })),
            None => eprintln!("SKIPPED peers_do_all_steps: restic is not installed"),
        }
        for contender in contenders {
            contender.reset().unwrap();
            for step in Step::ALL {
                output_of(&mut contender.command(step).unwrap()).unwrap();
            }
            let restored = fs::read(contender.restored()).unwrap();
            assert!(restored == content, "what {} restored", contender.name());
        }
    }
}

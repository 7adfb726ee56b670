//! The real executable, in a folder of its own, with nothing of the tester's environment.
#![allow(dead_code)] // each test file uses its own part

#[cfg(unix)]
pub mod serving;

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use hyperv_sim::{LabHost, LabOptions};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub const PASSWORD: &str = "correct horse battery staple";

/// A folder with a place for a repository and a simulated host.
pub struct Desk {
    dir: tempfile::TempDir,
}

/// How a call ended.
#[derive(Debug)]
pub struct Run {
    /// Absent when a signal ended it.
    pub exit: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Desk {
    /// Nothing in it.
    pub fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// With a repository and a host of real time.
    pub fn new() -> Self {
        let desk = Self::empty();
        desk.ok(["repo", "create"]);
        desk.ok(["lab", "create", "lab"]);
        desk
    }

    /// With a repository and a host whose waits cost nothing.
    pub fn with_virtual_clock() -> Self {
        let desk = Self::empty();
        desk.ok(["repo", "create"]);
        LabHost::create_with(desk.path("lab"), LabOptions::default()).unwrap();
        desk
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The host, as its administrator and its guests see it.
    pub fn lab(&self) -> Arc<LabHost> {
        LabHost::open(self.path("lab")).unwrap()
    }

    /// A raw disk file: random bytes, a hole, more random bytes.
    pub fn raw_file(&self, name: &str, mib: usize, seed: u64) -> PathBuf {
        let mut bytes = random_bytes(mib << 20, seed);
        let hole = bytes.len() / 4..bytes.len() / 2;
        bytes[hole].fill(0);
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A VM with one disk of random bytes.
    pub fn add_vm(&self, name: &str, mib: usize, seed: u64) {
        let file = self.raw_file(&format!("{name}-{seed}.raw"), mib, seed);
        self.ok([
            "lab".as_ref(),
            "add-vm".as_ref(),
            "lab".as_ref(),
            OsStr::new(name),
            "--disk".as_ref(),
            file.as_os_str(),
        ]);
    }

    /// A call, not yet started.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_e3-backup-agent"));
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("E3_") || name.starts_with("AWS_") {
                command.env_remove(&*name);
            }
        }
        command.env("E3_CONFIG", self.path("config.toml")).env("E3_REPOSITORY", "repo").env("E3_HOST", "lab:lab");
        command.env("E3_PASSWORD", PASSWORD).env("TZ", "UTC");
        // Where what Tab offers is remembered.
        command.env("XDG_CACHE_HOME", self.path("cache")).env("LOCALAPPDATA", self.path("cache"));
        command
    }

    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Run {
        finish(&mut self.command(arguments))
    }

    /// A call that has to succeed.
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Run {
        let run = self.run(arguments);
        assert_eq!(run.exit, Some(0), "{run:?}");
        run
    }

    /// The answer to a question, or the last object of long work, of a call that has to end with `exit`.
    pub fn json<S: AsRef<OsStr>>(&self, exit: i32, arguments: impl IntoIterator<Item = S>) -> Value {
        let run = finish(self.command(arguments).arg("--json"));
        assert_eq!(run.exit, Some(exit), "{run:?}");
        run.json()
    }

    /// A call that has to fail as a whole: exit code and code in the block, and nothing on standard output.
    pub fn fails<S: AsRef<OsStr>>(&self, exit: i32, code: &str, arguments: impl IntoIterator<Item = S>) -> Run {
        let run = self.run(arguments);
        run.expect_failure(exit, code);
        run
    }

    /// SHA-256 of each disk of a VM, as its guest sees it now.
    pub fn guest_hashes(&self, vm: &str) -> Vec<String> {
        let lab = self.lab();
        (0..lab.disk_count(vm).unwrap()).map(|disk| hex(&lab.disk_sha256(vm, disk).unwrap())).collect()
    }

    /// Lets the guest write; the SHA-256 that the program prints.
    pub fn guest_writes(&self, vm: &str, seed: u64, mib: u32) -> Vec<String> {
        let seed = seed.to_string();
        let mib = mib.to_string();
        let answer = self.json(0, ["lab", "write", "lab", vm, "--seed", &seed, "--mib", &mib]);
        let disks = answer["disks"].as_array().unwrap();
        disks.iter().map(|disk| disk["sha256"].as_str().unwrap().to_owned()).collect()
    }

    /// Restores a disk as raw file and gives its SHA-256.
    pub fn restored_hash(&self, point: &str, disk: usize) -> String {
        let name = format!("restored-{}-{disk}.raw", point.replace('@', "-"));
        let disk = disk.to_string();
        self.ok(["restore", "disk", point, "--disk", &disk, "--to", &name, "--format", "raw", "--overwrite"]);
        sha256_of(&self.path(&name))
    }

    /// Nothing of ours is left on the host but the reference points it should have.
    pub fn expect_clean_host(&self, vm: &str, reference_points: usize) {
        let lab = self.lab();
        for _ in 0..200 {
            if lab.is_at_rest(vm).unwrap() {
                break;
            }
            lab.clock().sleep(std::time::Duration::from_millis(50));
        }
        assert!(lab.is_at_rest(vm).unwrap(), "jobs or merges of {vm} do not end");
        assert_eq!(lab.checkpoints(vm).unwrap(), (Vec::new(), Vec::new()), "checkpoints of {vm}");
        assert_eq!(lab.reference_points(vm).unwrap().len(), reference_points, "reference points of {vm}");
        assert_eq!(lab.stray_files().unwrap(), Vec::<String>::new());
    }
}

impl Run {
    /// Its last line, or all of it, as JSON.
    pub fn json(&self) -> Value {
        let last = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(&self.stdout)
            .or_else(|_| serde_json::from_str(last))
            .unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Every line as an object.
    pub fn json_lines(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{self:?}"))).collect()
    }

    pub fn expect_failure(&self, exit: i32, code: &str) {
        assert_eq!(self.exit, Some(exit), "{self:?}");
        assert!(self.stderr.contains("error: "), "{self:?}");
        assert!(self.stderr.contains(&format!("code {code}   exit {exit}")), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
    }
}

pub fn finish(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    Run {
        exit: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Bytes that compress badly and are the same each time.
pub fn random_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub fn sha256_of(path: &Path) -> String {
    let mut file = std::fs::File::open(path).unwrap();
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).unwrap() {
            0 => return hex(&hash.finalize()),
            len => hash.update(&piece[..len]),
        }
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All files below a folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found
}

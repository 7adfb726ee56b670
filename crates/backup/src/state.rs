//! The host's own memory of what we did to it: one lock and one journal per VM.
//!
//! The journal is written, durably, before the deed: from it the next run, after a crash at any instant, knows which
//! checkpoints and reference points are ours and what to do with them (spec hyperv 0.4).

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use hyperv::seam::ObjectPath;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::BackupError;
use crate::commit::PointDraft;

/// Folder of locks and journals of one host.
#[derive(Clone, Debug)]
pub struct HostState {
    dir: PathBuf,
    agent_id: String,
}

impl HostState {
    /// Opens the folder, making it, and the agent's id in it, at the first time.
    pub fn open(dir: &Path) -> Result<Self, BackupError> {
        std::fs::create_dir_all(dir).map_err(BackupError::state("create the state folder", dir))?;
        let path = dir.join("agent-id");
        let agent_id = match std::fs::read_to_string(&path) {
            Ok(id) if !id.trim().is_empty() => id.trim().to_owned(),
            Ok(_) => new_agent_id(&path)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => new_agent_id(&path)?,
            Err(error) => return Err(BackupError::state("read", &path)(error)),
        };
        Ok(Self { dir: dir.to_owned(), agent_id })
    }

    /// The id in the tags of our checkpoints.
    pub fn agent_id(&self) -> &str {
        &self.agent_id
    }

    /// The folder itself.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The VMs, by id, of which a run did not end, or goes on in another process.
    pub fn open_intents(&self) -> Result<Vec<String>, BackupError> {
        let mut open = Vec::new();
        for vm_id in self.journals()? {
            if self.journal(&vm_id)?.intent.is_some() {
                open.push(vm_id);
            }
        }
        Ok(open)
    }

    /// The VMs, by id, that have a journal.
    pub fn journals(&self) -> Result<Vec<String>, BackupError> {
        let failed = || BackupError::state("list the folder of journals", &self.dir);
        let mut vms = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(failed())? {
            let name = entry.map_err(failed())?.file_name();
            // Other documents lie here too; those of VMs are named by a GUID.
            if let Some(vm_id) = name.to_str().and_then(|name| name.strip_suffix(".json"))
                && vm_id.parse::<vhdx::Guid>().is_ok()
            {
                vms.push(vm_id.to_owned());
            }
        }
        vms.sort();
        Ok(vms)
    }

    /// Takes the lock of a VM; it is held until the guard is dropped, or the process ends in whatever way.
    pub fn lock_vm(&self, vm_id: &str, vm_name: &str) -> Result<VmLock, BackupError> {
        self.lock(&self.dir.join(format!("{vm_id}.lock")), vm_name)
    }

    /// Takes the lock that is this file, which stands for work on a VM.
    pub(crate) fn lock(&self, path: &Path, vm_name: &str) -> Result<VmLock, BackupError> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(BackupError::state("open the lock", path))?;
        match crate::try_lock_past_looks(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the message; a holder that has not written yet stays unnamed.
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.trim().is_empty() { String::new() } else { format!(" ({})", holder.trim()) };
                return Err(BackupError::Busy { vm: vm_name.to_owned(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(BackupError::state("lock", path)(error)),
        }
        let note = format!("process {}", std::process::id());
        let written = file.set_len(0).and_then(|()| file.write_all(note.as_bytes()));
        written.map_err(BackupError::state("write the lock", path))?;
        Ok(VmLock { _file: file })
    }

    /// Reads a VM's journal; an absent one is empty.
    pub fn journal(&self, vm_id: &str) -> Result<VmJournal, BackupError> {
        let path = self.journal_path(vm_id);
        match std::fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json).map_err(|error| {
                let text = format!("{error}; move the file away to start over: what it named is then left as it is");
                BackupError::state("read the journal", &path)(std::io::Error::other(text))
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(VmJournal::default()),
            Err(error) => Err(BackupError::state("read the journal", &path)(error)),
        }
    }

    /// Replaces a VM's journal, durably.
    pub fn write_journal(&self, vm_id: &str, journal: &VmJournal) -> Result<(), BackupError> {
        let path = self.journal_path(vm_id);
        let json = serde_json::to_vec_pretty(journal).expect("the journal is plain data");
        write_durably(&path, &json).map_err(BackupError::state("write the journal", &path))
    }

    fn journal_path(&self, vm_id: &str) -> PathBuf {
        self.dir.join(format!("{vm_id}.json"))
    }
}

/// The JSON documents in a folder; none where there is no folder.
pub(crate) fn documents_in(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The lock of a VM.
#[derive(Debug)]
pub struct VmLock {
    _file: File,
}

/// What we did to a VM.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VmJournal {
    /// The run in progress, or the one that was cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<Intent>,
    /// Reference points that are ours.
    #[serde(default)]
    pub reference_points: Vec<JournalReferencePoint>,
    /// When disks of the VM were last written by a restore in place: what was read before is no base any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_in_place: Option<Timestamp>,
    /// A request for a checkpoint that was given up while the host went on with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<LateCheckpoint>,
    /// The last runs that ended with a point, the newest last.
    #[serde(default)]
    pub history: Vec<PastRun>,
}

/// A checkpoint that may still appear after nobody waits for it any more (spec hyperv 11, row 15).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateCheckpoint {
    /// The run that asked for it.
    pub run_id: String,
    /// The name that it would have been given.
    pub tag: String,
    /// Checkpoints that are not it: those that existed before, and the run's own later one.
    pub known_checkpoints: Vec<String>,
}

/// What a run that ended with a point did to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastRun {
    /// The run.
    pub run_id: String,
    /// How long its checkpoint existed.
    pub checkpoint_ms: u64,
    /// The most bytes that the guest's own files had beside the frozen ones.
    pub avhdx_peak_bytes: u64,
    /// From the end of the checkpoint until the merge was seen; absent if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_ms: Option<u64>,
}

/// A run on a VM, from before its first deed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    /// Run and attempt.
    pub run_id: String,
    /// See `run_id`.
    pub attempt: u32,
    /// The repository it goes to.
    pub repository_id: String,
    /// When it began.
    pub started: Timestamp,
    /// The name of its checkpoint.
    pub tag: String,
    /// Checkpoints that existed before, by path.
    pub known_checkpoints: Vec<String>,
    /// Reference points that existed before, by path.
    pub known_reference_points: Vec<String>,
    /// Everything that the point needs but its tracking ids: set before the conversion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft: Option<PointDraft>,
    /// The conversion's result: the draft may be committed with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub converted: Option<Converted>,
    /// Reference points to be destroyed, the decision being made.
    #[serde(default)]
    pub doomed: Vec<String>,
}

/// A checkpoint that became a reference point.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Converted {
    /// Path of the reference point; absent when the checkpoint was destroyed instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_point: Option<String>,
    /// The tracking id of each disk of the draft, by its number.
    pub rct_ids: Vec<Option<String>>,
    /// The lower consistency, if the reference point says so.
    #[serde(default)]
    pub crash_only: bool,
}

/// A reference point of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalReferencePoint {
    /// Its path.
    pub path: String,
    /// The repository whose newest point of the VM continues from it.
    pub repository_id: String,
    /// The run that made it.
    pub run_id: String,
}

impl JournalReferencePoint {
    pub(crate) fn path(&self) -> ObjectPath {
        ObjectPath::new(self.path.clone())
    }
}

fn new_agent_id(path: &Path) -> Result<String, BackupError> {
    let id = random_hex(4);
    write_durably(path, id.as_bytes()).map_err(BackupError::state("write", path))?;
    Ok(id)
}

/// Replaces a file so that after a crash it is the old or the new one.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&temporary, path)?;
    sync_folder_of(path)
}

/// Makes a rename durable where the file system needs it.
pub(crate) fn sync_folder_of(path: &Path) -> std::io::Result<()> {
    if cfg!(unix)
        && let Some(folder) = path.parent()
    {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Random lower-case hex digits, two per byte.
pub(crate) fn random_hex(bytes: usize) -> String {
    random::hex(bytes)
}

//! What a restore is about to do, durably, before it does it: one file per restore below the host's state folder.

use std::path::PathBuf;

use hyperv::Definition;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::BackupError;
use crate::state::{HostState, VmLock, documents_in, write_durably};

/// Folder of the journals in the state folder.
const FOLDER: &str = "restores";

/// A restore that goes on, or was cut off.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RestoreJournal {
    /// Random; names the file.
    pub(crate) restore_id: String,
    /// When it began.
    pub(crate) started: Timestamp,
    /// The point.
    pub(crate) point_id: String,
    /// Id of the VM in the point.
    pub(crate) vm_id: String,
    /// Name of the VM that is made or written.
    pub(crate) vm_name: String,
    /// What it does.
    pub(crate) work: Work,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Work {
    /// A VM is made.
    NewVm(Box<NewVmWork>),
    /// Disks of a VM are written where they are.
    InPlace(InPlaceWork),
}

/// How far a VM has been made. Until `Made` everything is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// Files are written; the host does not know of them.
    Writing,
    /// The VM that is replaced is being put aside.
    SteppingAside,
    /// The host makes the VM.
    Making,
    /// It is there.
    Made,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NewVmWork {
    /// The stored name, and what the VM is to be called.
    pub(crate) names: [String; 2],
    /// The folder that is the VM's alone.
    pub(crate) directory: String,
    /// Folders that were not there, outermost first.
    pub(crate) folders: Vec<String>,
    /// Files of ours; while they are written, with another ending.
    pub(crate) files: Vec<String>,
    /// Files and folders that serve only the import.
    pub(crate) scratch: Scratch,
    pub(crate) stage: Stage,
    /// Ids of the VMs and planned VMs that were there before ours.
    pub(crate) known: Vec<String>,
    /// Id of the VM, once it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) made: Option<String>,
    /// The VM that is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) former: Option<FormerVm>,
}

/// Removed at the end whatever becomes of the restore.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scratch {
    pub(crate) folders: Vec<String>,
    pub(crate) files: Vec<String>,
}

/// A VM that is replaced, with all that is needed to put it back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FormerVm {
    pub(crate) id: String,
    pub(crate) name: String,
    /// What it is called while it is kept.
    pub(crate) kept_name: String,
    pub(crate) until: Timestamp,
    pub(crate) was_running: bool,
    /// Its disks: `InstanceID` and file.
    pub(crate) disks: Vec<(String, String)>,
    /// Every file of their chains.
    pub(crate) files: Vec<String>,
    pub(crate) data_root: String,
    /// Its checkpoint that its configuration is copied from carries this name.
    pub(crate) tag: String,
    /// Its definition and the copy of its configuration; set before it is taken off the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) saved: Option<Box<SavedConfiguration>>,
    /// Its id while it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kept_id: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SavedConfiguration {
    pub(crate) definition: Definition,
    /// The `.vmcx`, which an import takes.
    pub(crate) file: String,
}

/// Disks that are written where they are. While they are, each has another name, so that the VM cannot start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct InPlaceWork {
    pub(crate) repository_id: String,
    pub(crate) disks: Vec<InPlaceDisk>,
    /// Something may have been written; until then the disks are what they were.
    pub(crate) writing: bool,
    /// For a person who finds this file.
    pub(crate) what_to_do: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InPlaceDisk {
    /// Number in the point.
    pub(crate) number: u32,
    /// VirtualDiskId.
    pub(crate) virtual_disk_id: String,
    /// Its file, and its name while it is written.
    pub(crate) path: String,
    pub(crate) working: String,
    /// Ranges that differ, as `[offset, length]`: what this attempt means to write. The next attempt looks again.
    #[serde(default)]
    pub(crate) ranges: Vec<(u64, u64)>,
}

impl HostState {
    /// Journals of all restores, oldest first.
    pub(crate) fn restore_journals(&self) -> Result<Vec<RestoreJournal>, BackupError> {
        let folder = self.dir().join(FOLDER);
        let documents =
            documents_in(&folder).map_err(BackupError::state("list the journals of restores in", &folder))?;
        let mut journals: Vec<RestoreJournal> = Vec::new();
        for path in documents {
            let json = match std::fs::read(&path) {
                Ok(json) => json,
                // Its restore has just ended.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(BackupError::state("read the journal", &path)(error)),
            };
            journals.push(serde_json::from_slice(&json).map_err(|error| {
                let text = format!("{error}; move the file away to start over: what it named is then left as it is");
                BackupError::state("read the journal", &path)(std::io::Error::other(text))
            })?);
        }
        journals.sort_by(|a, b| (a.started, &a.restore_id).cmp(&(b.started, &b.restore_id)));
        Ok(journals)
    }

    pub(crate) fn write_restore(&self, journal: &RestoreJournal) -> Result<(), BackupError> {
        let path = self.restore_path(&journal.restore_id)?;
        let json = serde_json::to_vec_pretty(journal).expect("the journal is plain data");
        write_durably(&path, &json).map_err(BackupError::state("write the journal", &path))
    }

    /// The restore is over.
    pub(crate) fn remove_restore(&self, restore_id: &str) -> Result<(), BackupError> {
        let path = self.restore_path(restore_id)?;
        let removed = std::fs::remove_file(&path).and_then(|()| crate::state::sync_folder_of(&path));
        removed.map_err(BackupError::state("remove the journal", &path))?;
        // A lock without a journal means nothing; who holds it, holds it on.
        let _ = std::fs::remove_file(path.with_extension("lock"));
        Ok(())
    }

    /// Held while a restore goes on; without it, a journal is a restore that was cut off.
    pub(crate) fn lock_restore(&self, restore_id: &str, vm_name: &str) -> Result<VmLock, BackupError> {
        self.lock(&self.restore_path(restore_id)?.with_extension("lock"), vm_name)
    }

    fn restore_path(&self, restore_id: &str) -> Result<PathBuf, BackupError> {
        let folder = self.dir().join(FOLDER);
        std::fs::create_dir_all(&folder).map_err(BackupError::state("create", &folder))?;
        Ok(folder.join(format!("{restore_id}.json")))
    }
}

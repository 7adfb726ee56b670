//! What is about to be done for a VM that runs from a point, durably, before it is done: a file per session below the
//! host's state folder.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::BackupError;
use crate::restore_vm::Scratch;
use crate::state::{HostState, VmLock, documents_in, sync_folder_of, write_durably};

/// Folder of the journals in the state folder.
const FOLDER: &str = "instant";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct InstantJournal {
    /// The session's id; names the file.
    pub(crate) session: String,
    pub(crate) started: Timestamp,
    pub(crate) point_id: String,
    /// Id of the VM in the point.
    pub(crate) vm_id: String,
    /// Its stored name, and what the VM here is called.
    pub(crate) names: [String; 2],
    pub(crate) vm_name: String,
    /// The folder that is the VM's alone.
    pub(crate) directory: String,
    /// Folders that were not there, outermost first.
    pub(crate) folders: Vec<String>,
    /// Files and folders that serve only the import.
    pub(crate) scratch: Scratch,
    pub(crate) target: String,
    /// Serial number of the volume's disk: what tells it from all others.
    pub(crate) serial: String,
    /// Set before the portal is made known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) portal: Option<JournalPortal>,
    /// The folder that shows the volume.
    pub(crate) mount: String,
    pub(crate) disks: Vec<InstantDisk>,
    pub(crate) stage: InstantStage,
    /// Ids of the VMs and planned VMs that were there before the host was asked for ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) known: Option<Vec<String>>,
    /// Id of the VM, once it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) made: Option<String>,
    #[serde(default)]
    pub(crate) is_to_run: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JournalPortal {
    pub(crate) address: String,
    pub(crate) port: u16,
    /// The initiator knew it before: then it stays.
    pub(crate) was_known: bool,
}

/// How far a VM is that runs from a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstantStage {
    /// It is being made: whatever fails, it is taken back.
    Making,
    /// It is there, on the volume.
    Running,
    /// It is being put on local files.
    Finishing,
    /// Its operator gave it up: it is taken back, whatever its guest wrote.
    Discarding,
}

/// A disk of a VM that runs from a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstantDisk {
    /// Its number in the point.
    pub number: u32,
    /// The base: a file on the volume.
    pub base: String,
    /// The VM's disk, which the guest writes into.
    pub child: String,
    /// Where a copy of the base is going to be; it is there when it is whole.
    pub local: String,
    /// Length of that file.
    pub len_bytes: u64,
    /// Identity of the base's content (`DataWriteGuid`).
    pub content_id: String,
    /// Identity of the disk.
    pub virtual_disk_id: String,
    pub(crate) step: DiskStep,
}

/// How far a disk is on its way to a local file (spec block-serving C.8). Each is written before what it names is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DiskStep {
    /// The parent is on the volume.
    OnVolume,
    /// The copy becomes the parent.
    Reparenting,
    /// It is.
    OnLocal,
    /// The child is merged into the copy.
    Merging,
    /// It was, and the copy becomes the VM's disk.
    Exchanging,
    /// There is no child any more.
    Done,
}

impl HostState {
    pub(crate) fn instant_journals(&self) -> Result<Vec<InstantJournal>, BackupError> {
        let mut journals = Vec::new();
        for path in self.instant_documents()? {
            if let Some(session) = path.file_stem().and_then(|stem| stem.to_str()) {
                journals.extend(self.instant_journal(session)?);
            }
        }
        journals.sort_by(|a: &InstantJournal, b| (a.started, &a.session).cmp(&(b.started, &b.session)));
        Ok(journals)
    }

    /// The session whose VM has this id. A journal that cannot be read as a whole, as of another version, still tells
    /// that; one that does not even do so keeps no VM from its backup.
    pub(crate) fn instant_session_of(&self, vm_id: &str) -> Result<Option<String>, BackupError> {
        #[derive(Deserialize)]
        struct Named {
            session: String,
            made: Option<String>,
        }
        for path in self.instant_documents()? {
            let json = match std::fs::read(&path) {
                Ok(json) => json,
                // It has just ended.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(BackupError::state("read the journal", &path)(error)),
            };
            match serde_json::from_slice::<Named>(&json) {
                Ok(Named { session, made: Some(id) }) if id.eq_ignore_ascii_case(vm_id) => return Ok(Some(session)),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "the journal of an instant session does not say of which VM it is");
                }
            }
        }
        Ok(None)
    }

    fn instant_documents(&self) -> Result<Vec<PathBuf>, BackupError> {
        let folder = self.dir().join(FOLDER);
        documents_in(&folder).map_err(BackupError::state("list the journals of instant sessions in", &folder))
    }

    pub(crate) fn instant_journal(&self, session: &str) -> Result<Option<InstantJournal>, BackupError> {
        let path = self.dir().join(FOLDER).join(format!("{session}.json"));
        match std::fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json).map(Some).map_err(|error| {
                let text = format!("{error}; move the file away to start over: what it named is then left as it is");
                BackupError::state("read the journal", &path)(std::io::Error::other(text))
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(BackupError::state("read the journal", &path)(error)),
        }
    }

    pub(crate) fn write_instant(&self, journal: &InstantJournal) -> Result<(), BackupError> {
        let path = self.instant_path(&journal.session)?;
        let json = serde_json::to_vec_pretty(journal).expect("the journal is plain data");
        write_durably(&path, &json).map_err(BackupError::state("write the journal", &path))
    }

    pub(crate) fn remove_instant(&self, session: &str) -> Result<(), BackupError> {
        let path = self.instant_path(session)?;
        let removed = std::fs::remove_file(&path).and_then(|()| sync_folder_of(&path));
        removed.map_err(BackupError::state("remove the journal", &path))?;
        // A lock without a journal means nothing.
        let _ = std::fs::remove_file(path.with_extension("lock"));
        Ok(())
    }

    pub(crate) fn lock_instant(&self, session: &str) -> Result<VmLock, BackupError> {
        self.lock(&self.instant_path(session)?.with_extension("lock"), &format!("instant session {session}"))
    }

    /// Whether a process works on it.
    pub(crate) fn is_instant_locked(&self, session: &str) -> Result<bool, BackupError> {
        let lock = self.instant_path(session)?.with_extension("lock");
        crate::is_held(&lock).map_err(BackupError::state("look at the lock", &lock))
    }

    fn instant_path(&self, session: &str) -> Result<PathBuf, BackupError> {
        let folder = self.dir().join(FOLDER);
        std::fs::create_dir_all(&folder).map_err(BackupError::state("create", &folder))?;
        Ok(folder.join(format!("{session}.json")))
    }
}

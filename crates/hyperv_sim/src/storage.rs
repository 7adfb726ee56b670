//! What the host knows of its iSCSI sessions and of the disks and volumes that came over them.

use std::io;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use vhdx::ReadAt;

use crate::initiator::{Login, RemoteUnit};
use crate::ntfs::{self, NtfsFile};
use crate::paths::WinPath;

/// Portals, sessions and disks of the host.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Storage {
    /// Whether the initiator's service runs.
    pub(crate) initiator_runs: bool,
    pub(crate) portals: Vec<Portal>,
    pub(crate) sessions: Vec<Session>,
    /// What was set for disks; the host remembers it by their serial numbers.
    pub(crate) settings: Vec<DiskSettings>,
    /// Numbers given to disks that arrived.
    pub(crate) arrivals: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Portal {
    pub(crate) address: String,
    pub(crate) port: u16,
    /// Targets that it told of.
    pub(crate) targets: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) login: Login,
    pub(crate) disks: Vec<RemoteDisk>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RemoteDisk {
    pub(crate) unit: u8,
    pub(crate) serial: String,
    pub(crate) unique_id: String,
    pub(crate) block_bytes: u32,
    pub(crate) size_bytes: u64,
    pub(crate) number: u32,
    /// When the host has it.
    pub(crate) arrives_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskSettings {
    pub(crate) serial: String,
    pub(crate) is_offline: bool,
    pub(crate) is_read_only: bool,
    /// Folders that its volume is shown in.
    pub(crate) folders: Vec<WinPath>,
}

impl Storage {
    pub(crate) fn disks(&self) -> impl Iterator<Item = (&Session, &RemoteDisk)> {
        self.sessions.iter().flat_map(|session| session.disks.iter().map(move |disk| (session, disk)))
    }

    pub(crate) fn settings(&self, serial: &str) -> Option<&DiskSettings> {
        self.settings.iter().find(|settings| settings.serial == serial)
    }

    /// Whether a folder is to show a volume that is not there: it can be neither made nor followed then.
    pub(crate) fn is_dangling(&self, folder: &WinPath) -> bool {
        self.settings.iter().any(|settings| {
            let is_here = !settings.is_offline && self.disks().any(|(_, disk)| disk.serial == settings.serial);
            settings.folders.contains(folder) && !is_here
        })
    }

    /// A folder that is removed shows nothing any more.
    pub(crate) fn forget_folder(&mut self, folder: &WinPath) {
        self.settings.iter_mut().for_each(|settings| settings.folders.retain(|known| known != folder));
    }

    /// After a restart of the host: the service is started by hand, sessions are not persistent, portals are. What they
    /// told of is not known before they are asked again.
    pub(crate) fn restart(&mut self) {
        self.initiator_runs = false;
        self.sessions.clear();
        self.portals.iter_mut().for_each(|portal| portal.targets.clear());
    }

    pub(crate) fn settings_mut(&mut self, serial: &str) -> Option<&mut DiskSettings> {
        self.settings.iter_mut().find(|settings| settings.serial == serial)
    }
}

/// Volumes that are shown in folders now, open for everybody who reads files of the host.
#[derive(Default)]
pub(crate) struct Volumes(Mutex<Vec<Arc<Volume>>>);

/// A volume in a folder.
pub(crate) struct Volume {
    session: String,
    number: u32,
    folder: WinPath,
    unit: RemoteUnit,
}

impl Volumes {
    /// Those that `storage` shows; open ones stay open.
    pub(crate) fn follow(&self, storage: &Storage) {
        let mut open = self.0.lock().expect("no panic while held");
        let mut now = Vec::new();
        for (session, disk) in storage.disks() {
            let Some(settings) = storage.settings(&disk.serial).filter(|settings| !settings.is_offline) else {
                continue;
            };
            for folder in &settings.folders {
                let known = open.iter().find(|volume| {
                    volume.session == session.id && volume.number == disk.number && volume.folder == *folder
                });
                now.push(known.cloned().unwrap_or_else(|| {
                    Arc::new(Volume {
                        session: session.id.clone(),
                        number: disk.number,
                        folder: folder.clone(),
                        unit: RemoteUnit::new(session.login.clone(), disk.unit, disk.block_bytes),
                    })
                }));
            }
        }
        *open = now;
    }

    /// Whether any is there.
    pub(crate) fn are_shown(&self) -> bool {
        !self.0.lock().expect("no panic while held").is_empty()
    }

    /// The file of a volume that a path names; `None` when the path leads to no volume.
    pub(crate) fn open(&self, path: &WinPath) -> Option<io::Result<RemoteFile>> {
        let folder = path.folder();
        let open = self.0.lock().expect("no panic while held");
        let volume = open.iter().find(|volume| volume.folder == folder)?.clone();
        drop(open);
        Some(volume.file(path.file_name()).map(|file| RemoteFile { volume, file }))
    }
}

impl Volume {
    /// Looked up every time: the target may have come back with another volume.
    fn file(&self, name: &str) -> io::Result<NtfsFile> {
        let mut files = ntfs::root_files(&self.unit)?.into_iter();
        let found = files.find(|file| file.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

/// A file on a volume.
pub(crate) struct RemoteFile {
    volume: Arc<Volume>,
    file: NtfsFile,
}

impl ReadAt for RemoteFile {
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.file.read(&self.volume.unit, buf, offset_bytes)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.file.len_bytes)
    }
}

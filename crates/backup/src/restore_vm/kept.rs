//! VMs that were replaced, and are kept for some days: a record each, and their removal when it is due.

use std::path::PathBuf;

use hyperv::{Host, VmId, VmState};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::make::{on_target, remove_configuration};
use super::writes_of;
use crate::BackupError;
use crate::commit::timestamp;
use crate::state::{HostState, documents_in, sync_folder_of, write_durably};

/// Folder of the records in the state folder.
const FOLDER: &str = "kept";

/// A VM that was replaced by a restored one. It is off and disconnected, and has its own id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptVm {
    /// Its id now.
    pub vm_id: String,
    /// Its name now. Under another name it belongs to whoever renamed it, and stays.
    pub name: String,
    /// The id that the restored VM has now.
    pub former_id: String,
    /// What it was called.
    pub former_name: String,
    /// The restore that replaced it.
    pub restore_id: String,
    /// Removed after this.
    pub until: Timestamp,
    /// Its disk files.
    pub files: Vec<String>,
    /// Its folder.
    pub directory: String,
    /// Its removal has begun, and goes on whatever is left of it.
    #[serde(default)]
    pub removing: bool,
}

impl KeptVm {
    pub(super) fn write(&self, state: &HostState) -> Result<(), BackupError> {
        let folder = state.dir().join(FOLDER);
        std::fs::create_dir_all(&folder).map_err(BackupError::state("create", &folder))?;
        let path = self.path(state);
        let json = serde_json::to_vec_pretty(self).expect("the record is plain data");
        write_durably(&path, &json).map_err(BackupError::state("write the record of a kept VM", &path))
    }

    fn forget(&self, state: &HostState) -> Result<(), BackupError> {
        let path = self.path(state);
        let removed = std::fs::remove_file(&path).and_then(|()| sync_folder_of(&path));
        removed.map_err(BackupError::state("remove the record of a kept VM", &path))
    }

    fn path(&self, state: &HostState) -> PathBuf {
        state.dir().join(FOLDER).join(format!("{}.json", self.restore_id))
    }
}

/// The VMs that are kept, those that go first in front.
pub fn kept_vms(state: &HostState) -> Result<Vec<KeptVm>, BackupError> {
    let folder = state.dir().join(FOLDER);
    let documents = documents_in(&folder).map_err(BackupError::state("list the records of kept VMs in", &folder))?;
    let mut kept: Vec<KeptVm> = Vec::new();
    for path in documents {
        let attempt = "read the record of a kept VM";
        let json = std::fs::read(&path).map_err(BackupError::state(attempt, &path))?;
        let record = serde_json::from_slice(&json);
        kept.push(record.map_err(|error| BackupError::state(attempt, &path)(std::io::Error::other(error)))?);
    }
    kept.sort_by(|a, b| (a.until, &a.restore_id).cmp(&(b.until, &b.restore_id)));
    Ok(kept)
}

/// Removes the kept VMs whose days are over, with their disks; says in words what was done. One that somebody renamed,
/// started or took off the host is somebody's, and is left with its files.
pub fn remove_due_vms(host: &Host, state: &HostState) -> Result<Vec<String>, BackupError> {
    let now = timestamp(&*host.seam().clock);
    let mut done = Vec::new();
    for kept in kept_vms(state)?.into_iter().filter(|kept| kept.until <= now) {
        let failed = || BackupError::host(format!("look at {}", kept.name));
        let vm = match kept.vm_id.parse::<VmId>() {
            Ok(id) => host.vm(&id).map_err(failed())?,
            Err(_) => None,
        };
        let is_as_we_left_it =
            vm.as_ref().is_some_and(|vm| vm.name == kept.name && vm.state == VmState::Off && vm.checkpoints.is_empty());
        if !kept.removing && !is_as_we_left_it {
            kept.forget(state)?;
            done.push(format!("{} was changed by others, and stays", kept.name));
            continue;
        }
        KeptVm { removing: true, ..kept.clone() }.write(state)?;
        if let Some(vm) = vm {
            host.remove_vm(&vm.path).map_err(BackupError::host(format!("remove {}", kept.name)))?;
        }
        remove_configuration(writes_of(host)?, &kept.directory, &kept.vm_id)?;
        remove_files(host, &kept)?;
        kept.forget(state)?;
        done.push(format!("removed {}, which a restore had replaced", kept.name));
    }
    Ok(done)
}

/// Its disks with their companions, unless another VM has them now; then its folders, as far as they are empty.
fn remove_files(host: &Host, kept: &KeptVm) -> Result<(), BackupError> {
    let writes = writes_of(host)?;
    let vms = host.list_vms().map_err(BackupError::host("look for VMs that use the disks of a kept VM"))?;
    let in_use = |file: &str| {
        let chains = vms.iter().flat_map(|vm| vm.disks.iter().flat_map(|disk| disk.chain.iter().chain([&disk.path])));
        chains
            .chain(vms.iter().flat_map(|vm| vm.unreadable_disks.iter().map(|disk| &disk.path)))
            .any(|used| used.eq_ignore_ascii_case(file))
    };
    for file in kept.files.iter().filter(|file| !in_use(file)) {
        for file in [file.clone(), format!("{file}.rct"), format!("{file}.mrt")] {
            writes.remove_file(&file).map_err(on_target(&file))?;
        }
    }
    for folder in ["Virtual Hard Disks", "Virtual Machines", "Snapshots"] {
        let folder = super::place::join(&kept.directory, folder);
        writes.remove_empty_folder(&folder).map_err(on_target(&folder))?;
    }
    writes.remove_empty_folder(&kept.directory).map_err(on_target(&kept.directory))?;
    Ok(())
}

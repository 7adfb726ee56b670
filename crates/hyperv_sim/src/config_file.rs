//! Configuration files: `.vmcx` (the definition), `.vmrs` (runtime state), `.vmgs` (guest state).
//!
//! They have the sizes of real ones and a content of this crate's own: a header, JSON, a digest, and filling. So a copy
//! can be imported, and a damaged or cut one cannot.

use std::fs;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::configuration::Configuration;
use crate::error::LabError;
use crate::guest::SplitMix;
use crate::paths::WinPath;
use crate::state::{Checkpoint, CheckpointKind, GuestFamily, Power, Vm, VssBehaviour};
use crate::store::Store;

const HEADER: [u8; 16] = [1, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0];
const LENGTH_AT: usize = HEADER.len();
const JSON_AT: usize = LENGTH_AT + 8;
const DIGEST_BYTES: usize = 32;
const EXTENSIONS: [(&str, usize); 3] = [("vmcx", 40 << 10), ("vmrs", 32 << 10), ("vmgs", 128 << 10)];

/// A definition as a `.vmcx` holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Definition {
    pub(crate) vm_id: String,
    pub(crate) generation: u8,
    pub(crate) version: String,
    pub(crate) guest: GuestFamily,
    pub(crate) vss: VssBehaviour,
    /// Id and name of the user checkpoints below these settings, the nearest first.
    pub(crate) checkpoints: Vec<(String, String)>,
    pub(crate) settings: Configuration,
}

/// What a `.vmrs` holds. The memory of a saved VM is not simulated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RuntimeState {
    saved: bool,
}

/// What a `.vmgs` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct GuestState {
    /// The key that the virtual TPM's content is wrapped with.
    tpm_key: Option<String>,
}

impl Definition {
    pub(crate) fn of(vm: &Vm, settings: &Configuration, parent: Option<&str>) -> Self {
        let mut checkpoints = Vec::new();
        let mut next = parent;
        while let Some(checkpoint) = next.and_then(|id| vm.checkpoints.iter().find(|one| one.id == id)) {
            if checkpoint.kind == CheckpointKind::User {
                checkpoints.push((checkpoint.id.clone(), checkpoint.config.name.clone()));
            }
            next = checkpoint.parent.as_deref();
        }
        Self {
            vm_id: vm.id.clone(),
            generation: vm.generation,
            version: vm.version.clone(),
            guest: vm.guest,
            vss: vm.vss,
            checkpoints,
            settings: settings.clone(),
        }
    }
}

/// The files of a VM's own settings.
pub(crate) fn of_vm(vm: &Vm) -> [WinPath; 3] {
    files(&vm.folder.join("Virtual Machines"), &vm.id, &vm.guest_state_root().join("Virtual Machines"))
}

/// The files of a checkpoint.
pub(crate) fn of_checkpoint(vm: &Vm, id: &str) -> [WinPath; 3] {
    let folder = vm.snapshot_root().join("Snapshots");
    files(&folder, id, &folder)
}

/// The files that belong to a definition file, itself first.
pub(crate) fn beside(definition: &WinPath) -> [WinPath; 3] {
    let name = definition.file_name();
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    files(&definition.folder(), stem, &definition.folder())
}

fn files(folder: &WinPath, stem: &str, guest_state: &WinPath) -> [WinPath; 3] {
    EXTENSIONS.map(|(extension, _)| {
        let folder = if extension == "vmgs" { guest_state } else { folder };
        folder.join(&format!("{stem}.{extension}"))
    })
}

/// Writes the files of a VM's settings as they are now.
pub(crate) fn write_vm(store: &Store, vm: &Vm) -> Result<(), LabError> {
    let definition = Definition::of(vm, &vm.active, vm.position.as_deref());
    write(store, &of_vm(vm), &definition, vm.power == Power::Saved)
}

/// Writes the files of a checkpoint.
pub(crate) fn write_checkpoint(store: &Store, vm: &Vm, checkpoint: &Checkpoint) -> Result<(), LabError> {
    let definition = Definition::of(vm, &checkpoint.config, checkpoint.parent.as_deref());
    write(store, &of_checkpoint(vm, &checkpoint.id), &definition, vm.power == Power::Saved)
}

/// Writes a definition with its runtime and guest state.
pub(crate) fn write(store: &Store, files: &[WinPath; 3], definition: &Definition, saved: bool) -> Result<(), LabError> {
    let guest_state = GuestState { tpm_key: definition.settings.tpm_key.clone() };
    let json = [
        serde_json::to_vec(definition).expect("a definition has a JSON form"),
        serde_json::to_vec(&RuntimeState { saved }).expect("has a JSON form"),
        serde_json::to_vec(&guest_state).expect("has a JSON form"),
    ];
    for ((path, json), (_, size)) in files.iter().zip(json).zip(EXTENSIONS) {
        let file = store.file(path)?;
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).map_err(LabError::io("create", folder))?;
        }
        store.before_write()?;
        fs::write(&file, encode(&json, size)).map_err(LabError::io("write", file))?;
    }
    Ok(())
}

/// The definition in a file; `None` when it is not one, or damaged.
pub(crate) fn read_definition(store: &Store, path: &WinPath) -> Result<Option<Definition>, LabError> {
    Ok(read_json(store, path)?.flatten())
}

/// The TPM key in a `.vmgs`; `None` when there is no such file, `Some(None)` when it holds no TPM content.
pub(crate) fn read_tpm_key(store: &Store, path: &WinPath) -> Result<Option<Option<String>>, LabError> {
    let state: Option<Option<GuestState>> = read_json(store, path)?;
    Ok(state.map(|state| state.and_then(|state| state.tpm_key)))
}

/// Whether a `.vmrs` holds a saved state.
pub(crate) fn read_saved(store: &Store, path: &WinPath) -> Result<bool, LabError> {
    let state: Option<Option<RuntimeState>> = read_json(store, path)?;
    Ok(state.flatten().is_some_and(|state| state.saved))
}

/// `None` when there is no file, `Some(None)` when it is not what is wanted.
fn read_json<T: DeserializeOwned>(store: &Store, path: &WinPath) -> Result<Option<Option<T>>, LabError> {
    let file = store.file(path)?;
    match fs::read(&file) {
        Ok(content) => Ok(Some(decode(&content).and_then(|json| serde_json::from_slice(json).ok()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(LabError::io("read", file)(e)),
    }
}

fn encode(json: &[u8], least_bytes: usize) -> Vec<u8> {
    let mut content = Vec::with_capacity(least_bytes);
    content.extend(HEADER);
    content.extend((json.len() as u64).to_le_bytes());
    content.extend(json);
    content.extend(Sha256::digest(json));
    let seed = json.iter().fold(0, |seed, &byte| SplitMix::new(seed ^ u64::from(byte)).next());
    let filled = content.len();
    content.resize(filled.next_multiple_of(4096).max(least_bytes), 0);
    SplitMix::new(seed).fill(&mut content[filled..]);
    content
}

fn decode(content: &[u8]) -> Option<&[u8]> {
    let rest = content.strip_prefix(&HEADER)?;
    let len = u64::from_le_bytes(rest.get(..JSON_AT - LENGTH_AT)?.try_into().ok()?);
    let rest = &rest[JSON_AT - LENGTH_AT..];
    let json = rest.get(..usize::try_from(len).ok()?)?;
    let digest = rest.get(json.len()..json.len().checked_add(DIGEST_BYTES)?)?;
    (Sha256::digest(json)[..] == *digest).then_some(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_is_not_read() {
        let json = br#"{"tpm_key":"abc"}"#;
        let content = encode(json, 8192);
        assert_eq!((content.len(), decode(&content)), (8192, Some(&json[..])));
        for at in [0, LENGTH_AT, LENGTH_AT + 7, JSON_AT, JSON_AT + json.len()] {
            let mut damaged = content.clone();
            damaged[at] ^= 0x80;
            assert_eq!(decode(&damaged), None, "byte {at}");
        }
        for len in [0, LENGTH_AT, JSON_AT, JSON_AT + json.len(), JSON_AT + json.len() + DIGEST_BYTES - 1] {
            assert_eq!(decode(&content[..len]), None, "cut to {len}");
        }
    }
}

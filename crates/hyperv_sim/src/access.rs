//! Which files a VM's own account may open. An entry goes with the file: a copy put in its place does not have it.

use crate::disks;
use crate::error::LabError;
use crate::host::Tx;
use crate::paths::WinPath;
use crate::state::{Grant, Vm};
use crate::store::file_number;

/// Lets a VM open a disk: the file and its parents.
pub(crate) fn grant(tx: &mut Tx<'_>, vm_id: &str, file: &WinPath) -> Result<(), LabError> {
    let mut files = vec![file.clone()];
    if let Ok(chain) = disks::open_chain(tx.store, file)? {
        files.extend(disks::chain_paths(tx.store, &chain).into_iter().skip(1));
    }
    for file in files {
        let Some(file_number) = number_of(tx, &file) else { continue };
        let grants = &mut tx.edit().machine_mut(vm_id).grants;
        grants.retain(|grant| grant.file != file);
        grants.push(Grant { file, file_number });
    }
    Ok(())
}

/// The first of these files that the VM's account may not open.
pub(crate) fn denied<'a>(tx: &Tx<'_>, vm: &Vm, files: &'a [WinPath]) -> Option<&'a WinPath> {
    files.iter().find(|file| {
        // Files of such volumes let in every VM of the host by an entry of their own.
        if tx.store.volumes.open(file).is_some() {
            return false;
        }
        let number = number_of(tx, file);
        !vm.grants.iter().any(|grant| grant.file == **file && Some(grant.file_number) == number)
    })
}

fn number_of(tx: &Tx<'_>, file: &WinPath) -> Option<u64> {
    let file = file.in_sandbox(tx.store.root())?;
    file_number(&file, &file.metadata().ok()?).ok()
}

//! Work of the image management service on disk files that no VM uses.

use crate::disks;
use crate::error::LabError;
use crate::failure::{FAILED, FILE, Failure, IN_USE};
use crate::host::Tx;
use crate::paths::WinPath;
use crate::provider::describe;
use crate::state::{Action, Power};

/// Makes a differencing VHDX. A file that is there is an error.
pub(crate) fn create_child(
    tx: &mut Tx<'_>,
    child: &WinPath,
    parent: &WinPath,
) -> Result<Result<(), Failure>, LabError> {
    if tx.store.has_file(child) {
        let text = format!("The file {} exists. (0x80070050)", child.as_str());
        return Ok(Err(Failure::new(FAILED, text)));
    }
    if !tx.store.has_file(parent) {
        return Ok(Err(missing(parent)));
    }
    tx.store.before_write()?;
    Ok(disks::create_child(tx.store, child, parent).map_err(|error| failed("create", child, &error)))
}

/// Rewrites the parent locator: the new parent has to have the identity that the child was made for.
pub(crate) fn set_parent(tx: &mut Tx<'_>, child: &WinPath, parent: &WinPath) -> Result<Result<(), Failure>, LabError> {
    if let Some(failure) = refusal(tx, child, parent)? {
        return Ok(Err(failure));
    }
    tx.store.before_write()?;
    Ok(disks::set_parent(tx.store, child, parent)?
        .map_err(|text| Failure::new(FAILED, format!("Failed to set the parent of {}: {text}", child.as_str()))))
}

/// Folds a child into its parent. The child stays behind, as the reference says nothing of its removal.
pub(crate) fn merge(tx: &mut Tx<'_>, child: &WinPath, parent: &WinPath) -> Result<Result<(), Failure>, LabError> {
    if let Some(failure) = refusal(tx, child, parent)? {
        return Ok(Err(failure));
    }
    match disks::merge(tx.store, child, parent) {
        Ok(()) => Ok(Ok(())),
        Err(error @ LabError::Crashed(_)) => Err(error),
        Err(error) => Ok(Err(failed("merge", child, &error))),
    }
}

/// Why two files cannot be worked on.
fn refusal(tx: &Tx<'_>, child: &WinPath, parent: &WinPath) -> Result<Option<Failure>, LabError> {
    for file in [child, parent] {
        if !tx.store.has_file(file) {
            return Ok(Some(missing(file)));
        }
        let mut is_used = tx.store.is_held(file)?;
        for vm in tx.vms.iter().filter(|vm| vm.power != Power::Off) {
            for disk in &vm.active.disks {
                let Ok(chain) = disks::open_chain(tx.store, &disk.file)? else { continue };
                is_used |= disks::chain_paths(tx.store, &chain).contains(file);
            }
        }
        if is_used {
            let text = format!("The process cannot access {}: it is in use. (0x80070020)", file.as_str());
            return Ok(Some(Failure::new(IN_USE, text)));
        }
    }
    Ok(None)
}

/// Whether a job that has not ended works on a file: nobody else can open it.
pub(crate) fn is_worked_on(tx: &Tx<'_>, file: &WinPath) -> bool {
    tx.jobs.iter().filter(|job| job.end.is_none()).any(|job| match &job.action {
        // The parent of the two is only read.
        Action::CreateChild { child, .. } | Action::SetParent { child, .. } => child == file,
        Action::MergeFiles { child, parent } => child == file || parent == file,
        _ => false,
    })
}

fn missing(file: &WinPath) -> Failure {
    Failure::new(FILE, format!("The system cannot find {}. (0x80070002)", file.as_str()))
}

fn failed(what: &str, file: &WinPath, error: &LabError) -> Failure {
    Failure::new(FAILED, format!("Failed to {what} {}: {}. (0xC03A0004)", file.as_str(), describe(error)))
}

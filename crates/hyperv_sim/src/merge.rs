//! Merging: what follows when a checkpoint is gone.
//!
//! A merge waits for its instant, takes place at once when that has come, and is put off while anybody has one of the
//! two files open. Only the leaf of a disk is ever folded into its parent, and never while a checkpoint refers to either
//! of the two; when several merges are waiting for one disk, they therefore run leaf first.

use crate::disks;
use crate::error::LabError;
use crate::faults::Fault;
use crate::host::Tx;
use crate::paths::WinPath;
use crate::state::{Event, FileOp, PendingMerge, Vm};
use crate::tracking;

/// The merge that is next, and when.
pub(crate) fn next_due(tx: &Tx<'_>) -> Option<(u64, usize)> {
    tx.merges.iter().enumerate().map(|(index, merge)| (merge.due_ms, index)).min()
}

/// Tries a merge that is due.
pub(crate) fn carry_out(tx: &mut Tx<'_>, index: usize) -> Result<(), LabError> {
    let merge = tx.merges[index].clone();
    let done = match is_possible(tx, &merge)? {
        true => match disks::merge(tx.store, &merge.child, &merge.parent) {
            Err(crashed @ LabError::Crashed(_)) => return Err(crashed),
            result => result.is_ok(),
        },
        false => false,
    };
    if !done {
        // One try per call is enough, however late it comes: between calls nothing can have been different.
        let retry_at_ms = tx.call_ms.saturating_add(tx.options.merge_retry_ms.max(1));
        let at_ms = tx.now_ms;
        let state = tx.edit();
        state.merges[index].blocked = true;
        state.merges[index].due_ms = retry_at_ms;
        state.events.push(Event { at_ms, id: 19100, vm: merge.vm });
        return Ok(());
    }
    if tx.is_tracked(&merge.child)
        && let Some(child) = tracking::load(tx.store, &merge.child)?
        && let Some(mut parent) = tracking::load(tx.store, &merge.parent)?
    {
        parent.absorb(child);
        tracking::save(tx.store, &merge.parent, &parent)?;
    }
    let at_ms = tx.now_ms;
    let state = tx.edit();
    state.merges.remove(index);
    let vm = state.vm_mut(&merge.vm);
    vm.grants.retain(|grant| grant.file != merge.child);
    for disk in vm.active.disks.iter_mut().filter(|disk| disk.file == merge.child) {
        disk.file = merge.parent.clone();
    }
    state.tracked.retain(|file| *file != merge.child);
    state.redo.push(FileOp::Delete(merge.child.clone()));
    state.redo.extend(tracking::companions(&merge.child).map(FileOp::Delete));
    state.events.push(Event { at_ms, id: 19080, vm: merge.vm });
    tx.commit()
}

fn is_possible(tx: &Tx<'_>, merge: &PendingMerge) -> Result<bool, LabError> {
    let Some(vm) = tx.vm(&merge.vm) else { return Ok(false) };
    let is_leaf = vm.active.disks.iter().any(|disk| disk.file == merge.child);
    let is_frozen = (vm.checkpoints.iter().flat_map(|checkpoint| &checkpoint.config.disks))
        .any(|disk| disk.file == merge.child || disk.file == merge.parent);
    let is_forbidden = tx.faults()?.iter().any(|fault| match fault {
        Fault::MergeBlocked { vm: blocked } => Fault::names(vm, blocked),
        Fault::MergeBlockedForRuns { vm: blocked, runs } => *runs > 0 && Fault::names(vm, blocked),
        _ => false,
    });
    Ok(vm.merging
        && is_leaf
        && !is_frozen
        && !is_forbidden
        && children(tx, vm, &merge.parent)?.len() == 1
        && !tx.store.is_held(&merge.child)?
        && !tx.store.is_held(&merge.parent)?)
}

/// The disk files of a VM whose parent is `parent`: more than one when a checkpoint was applied.
pub(crate) fn children(tx: &Tx<'_>, vm: &Vm, parent: &WinPath) -> Result<Vec<WinPath>, LabError> {
    let mut children: Vec<WinPath> = Vec::new();
    let settings = vm.checkpoints.iter().map(|checkpoint| &checkpoint.config).chain([&vm.active]);
    for disk in settings.flat_map(|settings| &settings.disks) {
        if disk.file == *parent || children.contains(&disk.file) {
            continue;
        }
        let Ok(chain) = disks::open_chain(tx.store, &disk.file)? else { continue };
        // A file between the two is waiting to be merged; it is named by its child's chain only.
        let chain = disks::chain_paths(tx.store, &chain);
        let below = chain.iter().position(|file| file == parent).and_then(|at| at.checked_sub(1));
        let child = below.map(|at| chain[at].clone());
        children.extend(child.filter(|child| !children.contains(child)));
    }
    Ok(children)
}

/// Starts the merges that a removed checkpoint leaves behind.
pub(crate) fn schedule(tx: &mut Tx<'_>, pending: Vec<PendingMerge>) {
    let at_ms = tx.now_ms;
    let state = tx.edit();
    for merge in pending {
        state.events.push(Event { at_ms, id: 19070, vm: merge.vm.clone() });
        state.merges.push(merge);
    }
}

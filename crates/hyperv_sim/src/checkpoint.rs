//! Checkpoints and reference points: the work that the snapshot services do.
//!
//! Every function here is the whole of one operation, at one instant, under the host's lock. What the host refuses comes
//! back as a [`Failure`], which becomes the end of a job or a return value. The last commit is the caller's, so that the
//! work and the end of its job become visible in one step.

use crate::access;
use crate::config_file;
use crate::configuration::DiskSlot;
use crate::disks;
use crate::error::LabError;
use crate::failure::{FAILED, Failure, IN_USE, NOT_AVAILABLE};
use crate::faults::{self, Fault};
use crate::host::Tx;
use crate::merge;
use crate::options::{AfterApply, Sequences};
use crate::paths::WinPath;
use crate::state::{
    Action, Checkpoint, CheckpointKind, FileOp, Marker, Object, PendingMerge, Power, ReferencePoint, Vm, VssBehaviour,
    new_guid,
};
use crate::tracking::{self, Record};

/// Less than this, and the host refuses to make checkpoint files.
const NEEDED_FREE_BYTES: u64 = 16 << 20;

/// Freezes all disks of a VM at this instant; it goes on in new children.
pub(crate) fn create(
    tx: &mut Tx<'_>,
    vm_id: &str,
    kind: CheckpointKind,
    consistency_level: u8,
) -> Result<Result<Object, Failure>, LabError> {
    let Some(vm) = tx.vm(vm_id).cloned() else { return Ok(Err(Failure::new(NOT_AVAILABLE, "The VM is gone."))) };
    if let Some(failure) = guest_refusal(vm.power, vm.vss, kind, consistency_level) {
        if let VssBehaviour::WriterRetryable { failures } = vm.vss {
            let failures = failures - 1;
            let next = if failures == 0 { VssBehaviour::Works } else { VssBehaviour::WriterRetryable { failures } };
            tx.edit().vm_mut(vm_id).vss = next;
        }
        return Ok(Err(failure));
    }
    if tx.options.free_bytes < NEEDED_FREE_BYTES {
        return Ok(Err(Failure::new(FAILED, "There is not enough space on the disk. (0x80070070)")));
    }
    let frozen: Vec<DiskSlot> = vm.active.disks.iter().filter(|disk| disk.is_snapshottable()).cloned().collect();
    for disk in &frozen {
        if !tx.store.file(&disk.file)?.is_file() {
            let text = format!(
                "Cannot create the storage required for the checkpoint using disk {}: The system cannot \
                                find the file specified. (0x80070002)",
                disk.file.as_str()
            );
            return Ok(Err(Failure::new(FAILED, text)));
        }
    }

    for disk in &frozen {
        let leftover = leftover_of(disk);
        if tx.store.file(&leftover)?.exists() {
            let text = format!("Could not create {}: the file exists. (0x80070050)", leftover.as_str());
            return Ok(Err(Failure::new(FAILED, text)));
        }
    }
    let leaves_file =
        |fault: &Fault| matches!(fault, Fault::CreateLeavesFile { vm: named } if Fault::names(&vm, named));
    if let Some(disk) = frozen.first()
        && faults::strike(tx, leaves_file)?
    {
        let leftover = leftover_of(disk);
        tx.store.before_write()?;
        disks::create_child(tx.store, &leftover, &disk.file)?;
        return Ok(Err(Failure::new(FAILED, "The checkpoint could not be completed. (0x800423FB)")));
    }

    let id = new_guid();
    let tracked = kind == CheckpointKind::Recovery && vm.supports_tracking();
    let mut planned = Vec::new();
    let mut undo: Vec<FileOp> = config_file::of_checkpoint(&vm, &id).map(FileOp::Delete).into();
    for disk in &frozen {
        let child = child_of(disk);
        undo.push(FileOp::Delete(child.clone()));
        undo.extend(tracking::companions(&child).map(FileOp::Delete));
        // A disk that is not tracked yet begins to be, with this instant as the first that has a name.
        let tracked = tracked && !disks::is_vhd(&disk.file);
        let was_tracked = tx.is_tracked(&disk.file);
        let record = match was_tracked {
            true => Some(tracking::load(tx.store, &disk.file)?.unwrap_or_else(Record::new)),
            false => tracked.then(Record::new),
        };
        let marked = record.map(|mut record| {
            let least = match tx.options.sequences {
                Sequences::NeverReused => tx.sequences.get(record.position().0).copied().unwrap_or(0),
                Sequences::ReusedAfterRevert => 0,
            };
            let marker = tracked.then(|| record.add_marker(least));
            (record, marker)
        });
        if let Some((_, Some(marker))) = &marked {
            undo.push(FileOp::DropMarker { disk: disk.file.clone(), id: marker.clone() });
        }
        planned.push((disk.clone(), child, marked));
    }
    tx.intend(undo)?;

    for (disk, child, marked) in &planned {
        tx.store.before_write()?;
        if let Err(e) = disks::create_child(tx.store, child, &disk.file) {
            if matches!(e, LabError::Crashed(_)) {
                return Err(e);
            }
            tx.take_back()?;
            let text = format!("Failed to create the storage for the checkpoint: {e}. (0xC03A0019)");
            return Ok(Err(Failure::new(FAILED, text)));
        }
        if let Some((record, _)) = marked {
            tracking::save(tx.store, &disk.file, record)?;
            tracking::save(tx.store, child, &record.child())?;
        }
    }

    let created_ms = tx.now_ms;
    let parent = vm.position.clone();
    let mut config = vm.active.clone();
    config.disks = frozen;
    let purpose = if kind == CheckpointKind::Recovery { "Backup - " } else { "" };
    config.name = format!("{} - {purpose}({})", vm.active.name, crate::builder::datetime(created_ms));
    let markers = (planned.iter())
        .filter_map(|(disk, _, marked)| Some((disk, marked.as_ref()?.1.clone()?)))
        .map(|(disk, id)| Marker { place: disk.place.clone(), id })
        .collect();
    let checkpoint = Checkpoint { id: id.clone(), kind, parent, created_ms, consistency_level, config, markers };
    config_file::write_checkpoint(tx.store, &vm, &checkpoint)?;
    tx.fulfil();
    for (disk, child, marked) in planned {
        access::grant(tx, &vm.id, &child)?;
        let state = tx.edit();
        if let Some((record, _)) = &marked {
            let (lineage, next) = record.position();
            state.sequences.insert(lineage.to_owned(), next);
            state.tracked.push(child.clone());
            if !state.tracked.contains(&disk.file) {
                state.tracked.push(disk.file.clone());
            }
        }
        let slots = &mut state.vm_mut(&vm.id).active.disks;
        let slot = slots.iter_mut().find(|other| other.place == disk.place).expect("it was just copied from here");
        slot.file = child;
    }
    let changed = tx.edit().vm_mut(&vm.id);
    changed.checkpoints.push(checkpoint);
    changed.config_changed_ms = created_ms;
    if kind == CheckpointKind::User {
        changed.position = Some(id.clone());
    }
    Ok(Ok(Object::Checkpoint { id }))
}

/// A new name for what a disk goes on in.
fn child_of(disk: &DiskSlot) -> WinPath {
    let extension = if disks::is_vhd(&disk.file) { "avhd" } else { "avhdx" };
    disk.file.folder().join(&format!("{}_{}.{extension}", disk.stem, new_guid()))
}

/// What an interrupted backup leaves beside a disk.
fn leftover_of(disk: &DiskSlot) -> WinPath {
    disk.file.folder().join(&format!("{}-AutoRecovery.avhdx", disk.stem))
}

/// How much longer the guest makes a checkpoint take; one that never answers keeps the host waiting for hours.
pub(crate) fn guest_delay_ms(vm: &Vm, action: &Action) -> u64 {
    const FOREVER_MS: u64 = 10 * 3600 * 1000;
    let asked = matches!(action, Action::Create { kind: CheckpointKind::Recovery, consistency_level: 1 });
    match vm.vss {
        _ if !asked || vm.power != Power::Running => 0,
        VssBehaviour::Slow { ms } => ms,
        VssBehaviour::Hangs | VssBehaviour::NotResponding => FOREVER_MS,
        _ => 0,
    }
}

/// Why the guest cannot take part, if it cannot. Only level 1 of a running VM asks it.
fn guest_refusal(power: Power, vss: VssBehaviour, kind: CheckpointKind, consistency_level: u8) -> Option<Failure> {
    if kind == CheckpointKind::User || consistency_level != 1 {
        return None;
    }
    let text = match (power, vss) {
        (Power::Running, VssBehaviour::Works | VssBehaviour::Slow { .. }) => return None,
        (Power::Running, VssBehaviour::WriterRetryable { failures: 0 }) => return None,
        (Power::Running, VssBehaviour::WriterRetryable { .. }) => {
            "The writer experienced a transient error. If the backup process is retried, the error may not reoccur. \
             (0x800423F3)"
        }
        (Power::Running, VssBehaviour::Hangs | VssBehaviour::NotResponding) => {
            "The guest did not answer in time. (0x80042314)"
        }
        (Power::Running, VssBehaviour::NoDaemon) => "The guest could not be frozen. (0x80042301)",
        (Power::Running, VssBehaviour::WriterFails) => {
            "The writer experienced a non-transient error. If the backup process is retried, the error is likely to \
             reoccur. (0x800423F4)"
        }
        (Power::Running, VssBehaviour::Disabled) => {
            "The integration component for volume shadow copies is not available in the guest. (0x80042306)"
        }
        // Whether a real host accepts level 1 for a stopped VM is not known: the stricter answer.
        _ => "The guest operating system is not running. (0x80042306)",
    };
    Some(Failure::new(FAILED, text))
}

/// Removes a checkpoint; its frozen files take back what was written since.
pub(crate) fn destroy(tx: &mut Tx<'_>, id: &str) -> Result<Result<(), Failure>, LabError> {
    let Some((vm_id, checkpoint)) = find(tx, id) else { return Ok(Err(gone())) };
    let dropped = (checkpoint.markers.iter())
        .filter_map(|marker| {
            let disk = checkpoint.config.disks.iter().find(|disk| disk.place == marker.place)?;
            Some(FileOp::DropMarker { disk: disk.file.clone(), id: marker.id.clone() })
        })
        .collect();
    remove(tx, &vm_id, &checkpoint, dropped)?;
    Ok(Ok(()))
}

/// Brings a VM's disks back to a user checkpoint. What the guest wrote since is gone; the VM is off afterwards.
pub(crate) fn apply(tx: &mut Tx<'_>, vm_id: &str, id: &str) -> Result<Result<(), Failure>, LabError> {
    let Some(vm) = tx.vm(vm_id).cloned() else { return Ok(Err(Failure::new(NOT_AVAILABLE, "The VM is gone."))) };
    let Some(checkpoint) = vm.checkpoints.iter().find(|one| one.id == id).cloned() else { return Ok(Err(gone())) };
    let frozen: Vec<WinPath> =
        vm.checkpoints.iter().flat_map(|one| &one.config.disks).map(|disk| disk.file.clone()).collect();
    let mut settings = checkpoint.config.clone();
    settings.name.clone_from(&vm.active.name);
    let (mut abandoned, mut tracked, mut undo) = (Vec::new(), Vec::new(), Vec::new());
    for disk in &mut settings.disks {
        disk.file = child_of(disk);
        undo.push(FileOp::Delete(disk.file.clone()));
        undo.extend(tracking::companions(&disk.file).map(FileOp::Delete));
    }
    tx.intend(undo)?;
    for (disk, from) in settings.disks.iter().zip(&checkpoint.config.disks) {
        tx.store.before_write()?;
        disks::create_child(tx.store, &disk.file, &from.file)?;
        let leaf = vm.active.disks.iter().find(|other| other.place == disk.place).map(|other| &other.file);
        if tx.is_tracked(&from.file) {
            let old = match (tx.options.after_apply, leaf) {
                (AfterApply::OldIdsAnswerWrongly, Some(leaf)) => tracking::load(tx.store, leaf)?,
                _ => None,
            };
            tracking::save(tx.store, &disk.file, &old.unwrap_or_else(Record::new))?;
            tracked.push(disk.file.clone());
        }
    }
    for disk in &vm.active.disks {
        if !frozen.contains(&disk.file) && !checkpoint.config.disks.iter().all(|other| other.place != disk.place) {
            abandoned.push(disk.file.clone());
        }
    }
    tx.fulfil();
    let files: Vec<WinPath> = settings.disks.iter().map(|disk| disk.file.clone()).collect();
    let now_ms = tx.now_ms;
    let state = tx.edit();
    state.merges.retain(|merge| merge.vm != vm.id);
    state.tracked.retain(|file| !abandoned.contains(file));
    state.tracked.extend(tracked);
    for file in abandoned {
        state.redo.extend(tracking::companions(&file).map(FileOp::Delete));
        state.redo.push(FileOp::Delete(file));
    }
    let changed = state.vm_mut(&vm.id);
    changed.active = settings;
    changed.power = Power::Off;
    changed.position = Some(checkpoint.id.clone());
    changed.last_applied = Some(checkpoint.id);
    changed.has_branches = true;
    changed.config_changed_ms = now_ms;
    state.redo.push(FileOp::WriteConfiguration { vm: vm.id.clone() });
    for file in files {
        access::grant(tx, &vm.id, &file)?;
    }
    Ok(Ok(()))
}

/// Turns a recovery checkpoint into a reference point: its ids last, its frozen files do not.
pub(crate) fn convert(tx: &mut Tx<'_>, id: &str) -> Result<Result<Object, Failure>, LabError> {
    let Some((vm_id, checkpoint)) = find(tx, id) else { return Ok(Err(gone())) };
    if tx.faults()?.contains(&Fault::NoLogonRight) {
        let text = "Failed to write the attachment of a virtual hard disk: Logon failure. (0x8007052F)";
        return Ok(Err(Failure::new(FAILED, text)));
    }
    for disk in &checkpoint.config.disks {
        if tx.store.is_held(&disk.file)? {
            let text = format!(
                "Failed to convert the checkpoint: {}: The process cannot access the file because it is \
                                being used by another process. (0x80070020)",
                disk.file.as_str()
            );
            return Ok(Err(Failure::new(IN_USE, text)));
        }
    }
    let faults = tx.faults()?;
    let missing_ids = faults.iter().find_map(|fault| match fault {
        Fault::ReferencePointIds { missing } => Some(*missing),
        _ => None,
    });
    let point = ReferencePoint {
        id: new_guid(),
        consistency_level: checkpoint.consistency_level,
        markers: checkpoint.markers.clone(),
        missing_ids: missing_ids.unwrap_or(0),
    };
    let result = Object::ReferencePoint { id: point.id.clone() };
    tx.edit().vm_mut(&vm_id).reference_points.push(point);
    let broken = faults.iter().find_map(|fault| match fault {
        Fault::ConvertFailsAfterPoint { checkpoint_stays } => Some(*checkpoint_stays),
        _ => None,
    });
    if broken != Some(true) {
        remove(tx, &vm_id, &checkpoint, Vec::new())?;
    }
    Ok(match broken {
        Some(_) => Err(Failure::new(FAILED, "The conversion failed. (0x80004005)")),
        None => Ok(result),
    })
}

/// Removes a reference point. Its ids stop answering, unless another one names them or the host keeps them.
pub(crate) fn destroy_reference_point(tx: &mut Tx<'_>, id: &str) -> Result<Result<(), Failure>, LabError> {
    let Some((vm, point)) = tx.reference_point(id) else { return Ok(Err(gone())) };
    let (vm, point) = (vm.clone(), point.clone());
    let mut dropped = Vec::new();
    if tx.options.marker_retention == crate::options::MarkerRetention::DropAtOnce {
        let named_elsewhere = |id: &str| {
            let points =
                vm.reference_points.iter().filter(|other| other.id != point.id).flat_map(|other| &other.markers);
            let checkpoints = vm.checkpoints.iter().flat_map(|checkpoint| &checkpoint.markers);
            points.chain(checkpoints).any(|marker| marker.id == id)
        };
        for marker in point.markers.iter().filter(|marker| !named_elsewhere(&marker.id)) {
            // Disks may have moved. Wherever the id is: dropping it where it is not changes nothing.
            for disk in &vm.active.disks {
                let Ok(chain) = disks::open_chain(tx.store, &disk.file)? else { continue };
                for file in disks::chain_paths(tx.store, &chain) {
                    dropped.push(FileOp::DropMarker { disk: file, id: marker.id.clone() });
                }
            }
        }
    }
    let state = tx.edit();
    state.vm_mut(&vm.id).reference_points.retain(|other| other.id != point.id);
    state.redo.extend(dropped);
    Ok(Ok(()))
}

pub(crate) fn find(tx: &Tx<'_>, id: &str) -> Option<(String, Checkpoint)> {
    tx.checkpoint(id).map(|(vm, checkpoint)| (vm.id.clone(), checkpoint.clone()))
}

fn gone() -> Failure {
    Failure::new(32789, "The object was not found. (0x80041002)")
}

/// Takes a checkpoint out of its VM and starts the merges.
fn remove(tx: &mut Tx<'_>, vm_id: &str, checkpoint: &Checkpoint, file_ops: Vec<FileOp>) -> Result<(), LabError> {
    let now_ms = tx.now_ms;
    let due_ms = now_ms.saturating_add(tx.options.merge_ms);
    let vm = tx.vm(vm_id).expect("the checkpoint was found in this VM");
    let (mut merges, mut abandoned) = (Vec::new(), Vec::new());
    for disk in &checkpoint.config.disks {
        let children = merge::children(tx, vm, &disk.file)?;
        // The frozen file of a branch that was left by applying another checkpoint is nobody's any more.
        let is_made_by_checkpoint = disk.file.file_name().to_lowercase().contains(".avhd");
        if children.is_empty() && vm.has_branches && is_made_by_checkpoint {
            abandoned.push(disk.file.clone());
        }
        merges.extend(children.into_iter().map(|child| PendingMerge {
            vm: vm_id.to_owned(),
            child,
            parent: disk.file.clone(),
            due_ms,
            blocked: false,
        }));
    }
    let state = tx.edit();
    let vm = state.vm_mut(vm_id);
    vm.checkpoints.retain(|other| other.id != checkpoint.id);
    vm.config_changed_ms = now_ms;
    for other in &mut vm.checkpoints {
        if other.parent.as_deref() == Some(checkpoint.id.as_str()) {
            other.parent.clone_from(&checkpoint.parent);
        }
    }
    for place in [&mut vm.position, &mut vm.last_applied] {
        if place.as_deref() == Some(checkpoint.id.as_str()) {
            place.clone_from(&checkpoint.parent);
        }
    }
    let config_files = config_file::of_checkpoint(vm, &checkpoint.id).map(FileOp::Delete);
    state.tracked.retain(|file| !abandoned.contains(file));
    state.merges.retain(|merge| !abandoned.contains(&merge.child));
    for file in abandoned {
        state.redo.extend(tracking::companions(&file).map(FileOp::Delete));
        state.redo.push(FileOp::Delete(file));
    }
    state.redo.extend(file_ops);
    state.redo.extend(config_files);
    merge::schedule(tx, merges);
    match (checkpoint.kind, tx.vm(vm_id)) {
        (CheckpointKind::Recovery, Some(vm)) => faults::count_run(tx, vm),
        _ => Ok(()),
    }
}

//! After a crash, or a failure: from the journal to a host without leftovers of ours, and points that are whole.

use std::time::Duration;

use hyperv::seam::ObjectPath;
use hyperv::{CheckpointInfo, CheckpointKind, Host, Vm};
use jiff::{SignedDuration, Timestamp};
use kopia_repo::Repository;

use crate::commit::{PointDraft, commit, timestamp};
use crate::disk_backup::{lost_pieces, lost_segments};
use crate::disk_object::DiskObject;
use crate::point::list_points;
use crate::run::BackupContext;
use crate::state::{Converted, HostState, Intent, JournalReferencePoint, VmJournal};
use crate::{BackupError, Event};

/// A draft older than this is not committed: maintenance may already collect what it names (kopia-format 7.10 rule 4).
const MAX_DRAFT_AGE: SignedDuration = SignedDuration::from_hours(4);
/// Least and most time between looks at a VM that the host is busy with.
pub(crate) const LOOKS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// The half of a recovery that needs no repository: what costs the host's volumes goes even when the store is away.
#[derive(Clone, Copy)]
pub struct HostSide<'a> {
    /// The host.
    pub host: &'a Host,
    /// Its locks and journals.
    pub state: &'a HostState,
    /// How long a VM may be busy with something else.
    pub idle_wait: Duration,
}

/// Removes the checkpoints of a run that did not end. Its journal stays open: whether its point is whole, and so what
/// becomes of its reference point, is for a recovery that can ask the repository.
pub(crate) fn remove_what_costs(
    side: HostSide<'_>,
    vm: &Vm,
    journal: &mut VmJournal,
) -> Result<Vec<String>, BackupError> {
    let mut done = remove_late(side, vm, journal)?;
    if let Some(intent) = &journal.intent {
        wait_for_jobs(side, vm)?;
        done.extend(remove_checkpoints(side, vm, intent)?);
    }
    Ok(done)
}

/// Brings the VM back to "nothing of ours left over" after a run that did not end. Returns what was done, in words.
///
/// The VM's lock is held. Only what the journal proves to be ours is touched: a checkpoint with the intent's name, and
/// checkpoints and reference points that the intent did not find when it began.
pub(crate) fn recover(
    context: &BackupContext<'_>,
    vm: &Vm,
    journal: &mut VmJournal,
) -> Result<Vec<String>, BackupError> {
    let side = context.host_side();
    let mut done = remove_late(side, vm, journal)?;
    let Some(intent) = journal.intent.clone() else { return Ok(done) };
    let failed = |what: &str| BackupError::host(format!("{what} of {}", vm.name));
    let host = context.host;
    // A checkpoint that a job is still making would appear behind our back.
    wait_for_jobs(side, vm)?;

    if intent.repository_id != context.repo.id() {
        // The other repository cannot be asked whether the point exists: keep the reference point, which costs a
        // marker, and remove the checkpoint, which costs the volume.
        done.extend(remove_checkpoints(side, vm, &intent)?);
        journal.intent = None;
        context.state.write_journal(vm.id.as_str(), journal)?;
        return Ok(done);
    }

    context.repo.refresh()?;
    let committed = list_points(context.repo, Some(vm.id.as_str()))?
        .into_iter()
        .any(|point| point.tag("run-id") == Some(&intent.run_id));
    let outcome = match (&intent.draft, &intent.converted) {
        (_, Some(converted)) if committed => Some(converted.clone()),
        (Some(draft), Some(converted)) if can_commit(context.repo, draft, &intent, now(context))? => {
            context.observer.event(Event::Phase { subject: &vm.name, phase: "completing the point of a former run" });
            commit(context.repo, &*host.seam().clock, draft, converted)?;
            done.push(format!("completed the point of run {}, which had been cut off at its end", intent.run_id));
            Some(converted.clone())
        }
        _ => None,
    };

    done.extend(remove_checkpoints(side, vm, &intent)?);
    match outcome {
        Some(converted) => supersede(context, vm, journal, &converted)?,
        None => {
            let ours: Vec<String> = host
                .list_reference_points(&vm.id)
                .map_err(failed("list the reference points"))?
                .into_iter()
                .map(|point| point.path.to_string())
                .filter(|path| !intent.known_reference_points.contains(path))
                .collect();
            if !ours.is_empty() {
                // The decision first: it must be the same after another crash.
                let intent = journal.intent.as_mut().expect("checked above");
                (intent.draft, intent.converted, intent.doomed) = (None, None, ours.clone());
                context.state.write_journal(vm.id.as_str(), journal)?;
            }
            for path in ours {
                host.destroy_reference_point(&ObjectPath::new(path.clone()))
                    .map_err(failed("destroy a reference point"))?;
                done.push("removed a reference point of a run that had been cut off".to_owned());
            }
        }
    }
    journal.intent = None;
    context.state.write_journal(vm.id.as_str(), journal)?;
    Ok(done)
}

/// Makes `converted` the one reference point of the VM for this repository: older ones of ours go.
pub(crate) fn supersede(
    context: &BackupContext<'_>,
    vm: &Vm,
    journal: &mut VmJournal,
    converted: &Converted,
) -> Result<(), BackupError> {
    let repository_id = context.repo.id();
    let run_id = journal.intent.as_ref().map(|intent| intent.run_id.clone()).unwrap_or_default();
    if let Some(path) = &converted.reference_point
        && journal.reference_points.iter().all(|known| known.path != *path)
    {
        journal.reference_points.push(JournalReferencePoint {
            path: path.clone(),
            repository_id: repository_id.clone(),
            run_id,
        });
        context.state.write_journal(vm.id.as_str(), journal)?;
    }
    let superseded: Vec<JournalReferencePoint> = journal
        .reference_points
        .iter()
        .filter(|one| one.repository_id == repository_id && Some(&one.path) != converted.reference_point.as_ref())
        .cloned()
        .collect();
    for old in superseded {
        context
            .host
            .destroy_reference_point(&old.path())
            .map_err(BackupError::host(format!("destroy the superseded reference point of {}", vm.name)))?;
        journal.reference_points.retain(|one| one.path != old.path);
        context.state.write_journal(vm.id.as_str(), journal)?;
    }
    Ok(())
}

/// Removes a checkpoint that came after its run had stopped to wait for it.
pub(crate) fn remove_late(side: HostSide<'_>, vm: &Vm, journal: &mut VmJournal) -> Result<Vec<String>, BackupError> {
    let Some(late) = journal.late.clone() else { return Ok(Vec::new()) };
    wait_for_jobs(side, vm)?;
    let done = remove_new_checkpoints(side, vm, &late.run_id, &late.tag, &late.known_checkpoints)?;
    // While it has not appeared it stays in the journal; the next run that ends well forgets it.
    if !done.is_empty() {
        journal.late = None;
        side.state.write_journal(vm.id.as_str(), journal)?;
    }
    Ok(done)
}

/// Reference points that appeared since the intent was written, other than `kept`: what a conversion made that was
/// then given up.
pub(crate) fn remove_new_reference_points(
    context: &BackupContext<'_>,
    vm: &Vm,
    intent: &Intent,
    kept: Option<&str>,
) -> Result<(), BackupError> {
    let failed = |what: &str| BackupError::host(format!("{what} of {}", vm.name));
    let points = context.host.list_reference_points(&vm.id).map_err(failed("list the reference points"))?;
    for point in points {
        let path = point.path.to_string();
        if !intent.known_reference_points.contains(&path) && kept != Some(path.as_str()) {
            context.host.destroy_reference_point(&point.path).map_err(failed("destroy a reference point"))?;
        }
    }
    Ok(())
}

fn remove_checkpoints(side: HostSide<'_>, vm: &Vm, intent: &Intent) -> Result<Vec<String>, BackupError> {
    remove_new_checkpoints(side, vm, &intent.run_id, &intent.tag, &intent.known_checkpoints)
}

fn remove_new_checkpoints(
    side: HostSide<'_>,
    vm: &Vm,
    run_id: &str,
    tag: &str,
    known_checkpoints: &[String],
) -> Result<Vec<String>, BackupError> {
    let host = side.host;
    let mut done = Vec::new();
    let checkpoints =
        host.list_checkpoints(&vm.id).map_err(BackupError::host(format!("list the checkpoints of {}", vm.name)))?;
    let appeared = |checkpoint: &CheckpointInfo| !known_checkpoints.contains(&checkpoint.path.to_string());
    // A request makes one checkpoint: where that has its name, any other is somebody else's.
    let is_named = checkpoints.iter().any(|one| one.name == tag && appeared(one));
    for checkpoint in checkpoints {
        let appeared = appeared(&checkpoint) && !is_named;
        // Names are given at once, but not at the same instant: one without our name that was not there before is ours
        // too, unless it carries the name of another product's run.
        let ours = checkpoint.kind == CheckpointKind::Recovery && appeared && !is_of_another(&checkpoint.name, tag);
        if checkpoint.name == tag || ours {
            host.destroy_checkpoint(&checkpoint.path)
                .map_err(BackupError::host(format!("remove a leftover checkpoint of {}", vm.name)))?;
            done.push(format!("removed the checkpoint of run {run_id}, which had been cut off"));
        }
    }
    Ok(done)
}

/// A name in our form that is not this run's: another agent of ours, with its own journal.
fn is_of_another(name: &str, tag: &str) -> bool {
    name.starts_with("e3:") && name != tag
}

/// Whether a draft may become a point: everything it names is there, and it did not already become one that somebody
/// deleted.
fn can_commit(
    repo: &std::sync::Arc<Repository>,
    draft: &PointDraft,
    intent: &Intent,
    now: Timestamp,
) -> Result<bool, BackupError> {
    if now.duration_since(intent.started) > MAX_DRAFT_AGE {
        return Ok(false);
    }
    if repo.is_deleted_manifest(&draft.description.point_id)? {
        return Ok(false);
    }
    for file in &draft.files {
        let Ok(object) = file.object.parse::<kopia_repo::ObjectId>() else { return Ok(false) };
        if repo.lookup(&object.content)?.is_none_or(|entry| entry.deleted) {
            return Ok(false);
        }
    }
    for disk in &draft.description.disks {
        let point = &draft.description.point_id;
        let object = match DiskObject::open(repo.clone(), disk.object(point)?, disk.layout(point)?) {
            Ok(object) => object,
            Err(error) => {
                let error = BackupError::from(error);
                if error.is_damage() {
                    return Ok(false);
                }
                return Err(error);
            }
        };
        if lost_pieces(repo, object.object())? || !lost_segments(&object, &mut 0)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A job that was started before the crash may still be making a checkpoint.
fn wait_for_jobs(side: HostSide<'_>, vm: &Vm) -> Result<(), BackupError> {
    let clock = &side.host.seam().clock;
    let start = clock.monotonic();
    loop {
        let now = side.host.vm(&vm.id).map_err(BackupError::host(format!("look at VM {}", vm.name)))?;
        let idle = now.is_none_or(|vm| vm.operation.is_none());
        let waited = clock.monotonic().saturating_sub(start);
        if idle || waited >= side.idle_wait {
            return Ok(());
        }
        clock.sleep(hyperv::next_look(waited, LOOKS.0, LOOKS.1));
    }
}

fn now(context: &BackupContext<'_>) -> Timestamp {
    timestamp(&*context.host.seam().clock)
}

//! Jobs: work that is done when its time has come.

use crate::attachment::{self, Gate};
use crate::checkpoint;
use crate::error::LabError;
use crate::failure::{FAILED, Failure};
use crate::faults::Fault;
use crate::files_of_disks;
use crate::host::Tx;
use crate::planned;
use crate::power;
use crate::state::{Action, Job, JobEnd, Object, new_guid};

/// The job that is next, and when.
pub(crate) fn next_due(tx: &Tx<'_>) -> Option<(u64, usize)> {
    let open = tx.jobs.iter().enumerate().filter(|(_, job)| job.end.is_none());
    open.map(|(index, job)| (job.due_ms, index)).min()
}

/// Starts a job; gives its id.
pub(crate) fn start(tx: &mut Tx<'_>, vm: &str, method: &str, action: Action) -> String {
    let id = new_guid();
    let delay_ms = tx.vm(vm).map_or(0, |vm| checkpoint::guest_delay_ms(vm, &action));
    let job = Job {
        id: id.clone(),
        vm: vm.to_owned(),
        method: method.to_owned(),
        kind: match action {
            Action::Create { .. } => 70,
            Action::Destroy { .. } => 72,
            Action::Convert { .. } => 200,
            Action::DestroyReferencePoint { .. } => 202,
            Action::ForgetCheckpoint { .. } => 72,
            Action::Import { .. } => 61,
            Action::Export { .. } => 62,
            Action::Validate => 140,
            Action::Realize => 141,
            // The reference names no number for these.
            Action::Change { .. }
            | Action::Define { .. }
            | Action::DestroySystem
            | Action::Power { .. }
            | Action::CreateChild { .. }
            | Action::SetParent { .. }
            | Action::MergeFiles { .. } => 0,
        },
        started_ms: tx.now_ms,
        due_ms: tx.now_ms.saturating_add(tx.options.job_ms).saturating_add(delay_ms),
        action,
        end: None,
    };
    tx.edit().jobs.push(job);
    id
}

/// Does the work of a job and ends it.
pub(crate) fn carry_out(tx: &mut Tx<'_>, index: usize) -> Result<(), LabError> {
    let job = tx.jobs[index].clone();
    let outcome = match planned_failure(&tx.faults()?, &job.method, &job.action) {
        Some(failure) => Err(failure),
        None => match attachment::gate(tx, &job)? {
            Gate::Open => perform(tx, &job.vm, &job.action)?,
            Gate::Refused(description) => Err(Failure::new(FAILED, description)),
            Gate::Later(due_ms) => {
                tx.edit().jobs[index].due_ms = due_ms;
                return tx.commit();
            }
        },
    };
    attachment::checkpoint_is_over(tx, &job)?;
    let at_ms = tx.now_ms;
    // The end is committed together with the work: a process killed before leaves both to be done, after it neither.
    let end = match outcome {
        Ok(results) => {
            JobEnd { at_ms, state: 7, error_code: 0, error_description: String::new(), errors: Vec::new(), results }
        }
        Err(failure) => JobEnd {
            at_ms,
            state: 10,
            error_code: failure.code,
            error_description: failure.description,
            errors: failure.errors,
            results: Vec::new(),
        },
    };
    tx.edit().jobs[index].end = Some(end);
    tx.commit()
}

/// Does the work of an action now. The caller commits.
pub(crate) fn perform(tx: &mut Tx<'_>, vm: &str, action: &Action) -> Result<Result<Vec<Object>, Failure>, LabError> {
    let one = |outcome: Result<Object, Failure>| outcome.map(|object| vec![object]);
    let nothing = |outcome: Result<(), Failure>| outcome.map(|()| Vec::new());
    Ok(match action {
        Action::Create { kind, consistency_level } => {
            checkpoint::create(tx, vm, *kind, *consistency_level)?.map(|object| vec![object])
        }
        Action::Destroy { checkpoint } => nothing(checkpoint::destroy(tx, checkpoint)?),
        Action::Convert { checkpoint } => checkpoint::convert(tx, checkpoint)?.map(|object| vec![object]),
        Action::DestroyReferencePoint { reference_point } => {
            nothing(checkpoint::destroy_reference_point(tx, reference_point)?)
        }
        Action::Change { configuration, change } => planned::apply(tx, configuration, change)?,
        Action::Define { system, settings } => one(planned::define(tx, system, settings)?),
        Action::Import { .. } => one(planned::import(tx, action)?),
        Action::ForgetCheckpoint { checkpoint } => nothing(planned::forget_checkpoint(tx, checkpoint)),
        Action::Validate => nothing(planned::validate(tx, vm)?),
        Action::Realize => one(planned::realize(tx, vm)?),
        Action::DestroySystem => nothing(planned::destroy(tx, vm)),
        Action::Export { folder, settings } => nothing(planned::export(tx, vm, folder, settings)?),
        Action::Power { to } => nothing(power::change(tx, vm, *to)?),
        Action::CreateChild { child, parent } => nothing(files_of_disks::create_child(tx, child, parent)?),
        Action::SetParent { child, parent } => nothing(files_of_disks::set_parent(tx, child, parent)?),
        Action::MergeFiles { child, parent } => nothing(files_of_disks::merge(tx, child, parent)?),
    })
}

/// A failure that the test has planned for this action.
pub(crate) fn planned_failure(faults: &[Fault], method: &str, action: &Action) -> Option<Failure> {
    faults.iter().find_map(|fault| match fault {
        Fault::JobFails { method: failing, consistency_level, error_code, description } if failing == method => {
            let level_fits = match (consistency_level, action) {
                (Some(wanted), Action::Create { consistency_level, .. }) => wanted == consistency_level,
                (Some(_), _) => false,
                (None, _) => true,
            };
            level_fits.then(|| Failure::new(*error_code, description.clone()))
        }
        _ => None,
    })
}

/// Removes jobs that ended too long ago.
pub(crate) fn forget_expired(tx: &mut Tx<'_>) {
    let limit_ms = tx.call_ms.saturating_sub(tx.options.job_retention_ms);
    let is_expired = |job: &Job| job.end.as_ref().is_some_and(|end| end.at_ms < limit_ms);
    if tx.jobs.iter().any(is_expired) {
        tx.edit().jobs.retain(|job| !is_expired(job));
    }
}

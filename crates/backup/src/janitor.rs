//! What is on a host that a backup left, or that looks like it: found, judged, and removed where it is proven to be ours.
//!
//! Proof is the journal, or a checkpoint's name, which carries the agent's id. Reference points have no name: those
//! that the journal does not know are reported and left alone, and so is everything of others.

use std::time::SystemTime;

use hyperv::{CheckpointInfo, CheckpointKind, Vm};

use crate::instant::{InstantLeftover, instant_leftovers, settle_instant};
use crate::recovery::HostSide;
use crate::run::BackupContext;
use crate::state::VmJournal;
use crate::{BackupError, recovery};

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The VM, by id.
    pub vm_id: String,
    /// Its name; the id again when the VM is no longer on the host.
    pub vm_name: String,
    /// What it is.
    pub what: Leftover,
    /// Whose it is, and so what [`clean`] does about it.
    pub verdict: Verdict,
}

/// Kinds of things that backups leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// A run that did not end: its journal is open.
    UnfinishedRun {
        /// The run.
        run_id: String,
        /// When it began.
        started: jiff::Timestamp,
    },
    /// A backup checkpoint.
    Checkpoint {
        /// Its object path.
        path: String,
        /// What it is called.
        name: String,
        /// When it was made.
        created: Option<SystemTime>,
    },
    /// A reference point that no next backup goes on from.
    ReferencePoint {
        /// Its object path.
        path: String,
    },
    /// A chain of files that is longer than the VM's checkpoints explain: a merge has not been done.
    UnmergedDisk {
        /// The leaf.
        path: String,
        /// Files in the chain.
        files: usize,
    },
    /// A journal of a VM that is not on this host.
    Journal,
    /// An instant session that nobody keeps: a VM that runs from a point, or was to.
    InstantSession {
        /// Its id.
        session: String,
        /// The VM is there, with what its guest wrote: its operator goes on with it or discards it.
        has_vm: bool,
    },
}

/// Whose something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Ours, and over: it is removed.
    Ours,
    /// Of another agent of ours, by its name: removed only when that agent is named.
    OtherAgent,
    /// Of another program.
    Foreign,
    /// It may be ours; nothing proves it.
    Unproven,
    /// Nothing to remove: a person should see to it, or it goes by itself.
    News,
}

/// Looks at every VM of the host, and at the journals. `from` is the id of another agent whose checkpoints count as ours.
///
/// A VM that is being backed up is left out: what it has belongs there.
pub fn inspect(side: HostSide<'_>, from: Option<&str>) -> Result<Vec<Finding>, BackupError> {
    let vms = side.host.list_vms().map_err(BackupError::host("list the virtual machines"))?;
    let mut findings = Vec::new();
    for vm in &vms {
        let _lock = match side.state.lock_vm(vm.id.as_str(), &vm.name) {
            Ok(lock) => lock,
            Err(BackupError::Busy { .. }) => continue,
            Err(error) => return Err(error),
        };
        let journal = side.state.journal(vm.id.as_str())?;
        findings.extend(of_vm(side, vm, &journal, from)?);
    }
    for vm_id in side.state.journals()? {
        let journal = side.state.journal(&vm_id)?;
        if !vms.iter().any(|vm| vm.id.as_str() == vm_id)
            && (journal.intent.is_some() || !journal.reference_points.is_empty())
        {
            let vm_name = vm_id.clone();
            findings.push(Finding { vm_id, vm_name, what: Leftover::Journal, verdict: Verdict::News });
        }
    }
    for leftover in instant_leftovers(side.state)?.into_iter().filter(|one| !one.is_kept) {
        let has_vm = !leftover.is_to_go();
        let InstantLeftover { session, vm_id, vm_name, .. } = leftover;
        let verdict = if has_vm { Verdict::News } else { Verdict::Ours };
        findings.push(Finding { vm_id, vm_name, what: Leftover::InstantSession { session, has_vm }, verdict });
    }
    Ok(findings)
}

fn of_vm(side: HostSide<'_>, vm: &Vm, journal: &VmJournal, from: Option<&str>) -> Result<Vec<Finding>, BackupError> {
    let mut findings = Vec::new();
    let mut add = |what, verdict| {
        findings.push(Finding { vm_id: vm.id.to_string(), vm_name: vm.name.clone(), what, verdict });
    };
    if let Some(intent) = &journal.intent {
        let what = Leftover::UnfinishedRun { run_id: intent.run_id.clone(), started: intent.started };
        add(what, Verdict::Ours);
    }
    let checkpoints = recovery_checkpoints(side, vm)?;
    // The unfinished run's checkpoint has its name: then none without one is its.
    let is_named = journal.intent.as_ref().is_some_and(|intent| checkpoints.iter().any(|one| one.name == intent.tag));
    for checkpoint in checkpoints {
        let verdict = verdict_on(&checkpoint, side.state.agent_id(), journal, from, is_named);
        let CheckpointInfo { path, name, created, .. } = checkpoint;
        add(Leftover::Checkpoint { path: path.to_string(), name, created }, verdict);
    }
    // The newest of ours for each repository is what the next backup goes on from.
    let superseded = |path: &str| {
        let at = journal.reference_points.iter().position(|one| one.path == path)?;
        let repository_id = &journal.reference_points[at].repository_id;
        Some(journal.reference_points[at + 1..].iter().any(|later| later.repository_id == *repository_id))
    };
    let points = side
        .host
        .list_reference_points(&vm.id)
        .map_err(BackupError::host(format!("list the reference points of {}", vm.name)))?;
    for point in points {
        let path = point.path.to_string();
        let is_of_run = journal.intent.as_ref().is_some_and(|intent| !intent.known_reference_points.contains(&path));
        match superseded(&path) {
            Some(false) => {}
            Some(true) => add(Leftover::ReferencePoint { path }, Verdict::Ours),
            // The unfinished run's own goes, or stays, with it.
            None if is_of_run => {}
            None => add(Leftover::ReferencePoint { path }, Verdict::Unproven),
        }
    }
    let explained = vm.checkpoints.len() + 1;
    for disk in vm.disks.iter().filter(|disk| disk.chain.len() > explained && disk.path.ends_with(".avhdx")) {
        let what = Leftover::UnmergedDisk { path: disk.path.clone(), files: disk.chain.len() };
        add(what, Verdict::News);
    }
    Ok(findings)
}

fn recovery_checkpoints(side: HostSide<'_>, vm: &Vm) -> Result<Vec<CheckpointInfo>, BackupError> {
    let mut all = side
        .host
        .list_checkpoints(&vm.id)
        .map_err(BackupError::host(format!("list the checkpoints of {}", vm.name)))?;
    all.retain(|one| one.kind == CheckpointKind::Recovery);
    Ok(all)
}

/// `e3:<agent>:<run>:<attempt>` is a name that we give.
fn verdict_on(
    checkpoint: &CheckpointInfo,
    agent: &str,
    journal: &VmJournal,
    from: Option<&str>,
    is_named: bool,
) -> Verdict {
    let path = checkpoint.path.to_string();
    let of_run = |tag: &str, known: &[String]| checkpoint.name == tag || !known.contains(&path);
    if let Some(of_agent) = checkpoint.name.strip_prefix("e3:").and_then(|rest| rest.split(':').next()) {
        return if of_agent == agent || from == Some(of_agent) { Verdict::Ours } else { Verdict::OtherAgent };
    }
    let is_late = journal.late.as_ref().is_some_and(|late| of_run(&late.tag, &late.known_checkpoints));
    let is_of_run =
        !is_named && journal.intent.as_ref().is_some_and(|intent| of_run(&intent.tag, &intent.known_checkpoints));
    if is_late || is_of_run { Verdict::Ours } else { Verdict::Foreign }
}

/// Removes what is ours; says in words what was done to which VM. What was found before is looked at again, because it
/// may have changed since.
///
/// Without `backup`, which has the repository, a run that did not end loses its checkpoint only; its journal stays open
/// for the next backup, or a call with it.
pub fn clean(
    side: HostSide<'_>,
    backup: Option<&BackupContext<'_>>,
    from: Option<&str>,
) -> Result<Vec<(String, String)>, BackupError> {
    let vms = side.host.list_vms().map_err(BackupError::host("list the virtual machines"))?;
    let mut done = Vec::new();
    for vm in &vms {
        let _lock = match side.state.lock_vm(vm.id.as_str(), &vm.name) {
            Ok(lock) => lock,
            Err(BackupError::Busy { .. }) => continue,
            Err(error) => return Err(error),
        };
        let mut journal = side.state.journal(vm.id.as_str())?;
        let mut say = |text: String| done.push((vm.name.clone(), text));
        let recovered = match backup {
            Some(backup) => recovery::recover(backup, vm, &mut journal)?,
            None => recovery::remove_what_costs(side, vm, &mut journal)?,
        };
        recovered.into_iter().for_each(&mut say);
        for finding in of_vm(side, vm, &journal, from)?.into_iter().filter(|one| one.verdict == Verdict::Ours) {
            match finding.what {
                Leftover::Checkpoint { path, name, .. } => {
                    let object = hyperv::seam::ObjectPath::new(path);
                    let failed = BackupError::host(format!("remove the checkpoint {name} of {}", vm.name));
                    side.host.destroy_checkpoint(&object).map_err(failed)?;
                    say(format!("removed the checkpoint {name}"));
                }
                Leftover::ReferencePoint { path } => {
                    let object = hyperv::seam::ObjectPath::new(path.clone());
                    let failed = BackupError::host(format!("destroy a superseded reference point of {}", vm.name));
                    side.host.destroy_reference_point(&object).map_err(failed)?;
                    journal.reference_points.retain(|one| one.path != path);
                    side.state.write_journal(vm.id.as_str(), &journal)?;
                    say("removed a superseded reference point".to_owned());
                }
                // Closed above, or left for the repository; the others are never ours to remove.
                Leftover::UnfinishedRun { .. }
                | Leftover::UnmergedDisk { .. }
                | Leftover::Journal
                | Leftover::InstantSession { .. } => {}
            }
        }
    }
    done.extend(settle_instant(side.host, side.state)?);
    Ok(done)
}

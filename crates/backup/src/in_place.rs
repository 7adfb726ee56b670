//! The disks of a VM made equal to a point where they are, by writing only what differs.
//!
//! What differs is found by hashing the disk against the point's entries, never by change tracking: the segment's name
//! in the repository is a keyed hash of its bytes, so equal segments need no download. The order of deeds:
//!
//! ```text
//! a safety point, or its refusal ─ journal ─ companions (.rct, .mrt) deleted ─ every disk renamed (.e3-restoring)
//!   ─ per disk: compare ─ ranges into the journal ─ write ─ flush ─ names given back ─ journal removed
//! ```
//!
//! While a disk has the other name its VM cannot start, and cannot be backed up: a half-written disk never passes for a
//! whole one. Killed anywhere, the same restore run again compares anew and ends with the disks equal to the point; the
//! journal says so to whoever finds it. The VM's own journal notes the time, which makes its next backup full.

mod compare;
mod plan;
mod write;

use hyperv::seam::HostWrites;
use hyperv::{Severity, VmState};

use self::compare::{compare_disk, open_target};
pub use self::plan::{InPlacePlan, plan_in_place};
use self::write::write_differences;
use crate::commit::timestamp;
use crate::point::PointDisk;
use crate::restore_vm::{InPlaceDisk, InPlaceWork, RestoreContext, RestoreJournal, Work, writes_of};
use crate::run::{BackupContext, back_up_vm};
use crate::state::random_hex;
use crate::{BackupError, Event, VmReport};

/// Ending of a disk that is being written.
const WORKING: &str = ".e3-restoring";

/// What stands between a restore in place and the loss of what the disks hold now.
pub enum SafetyPoint<'a> {
    /// An ordinary backup, made first.
    Make(&'a BackupContext<'a>),
    /// None: what the disks hold now is lost.
    Refused,
}

/// What a restore in place did.
#[derive(Debug)]
pub struct InPlaceReport {
    /// The point that holds what the disks held before; none if it was refused, or made by an earlier attempt.
    pub safety_point: Option<VmReport>,
    /// The disks, in the point's order.
    pub disks: Vec<InPlaceDiskReport>,
}

/// What was found and done on one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InPlaceDiskReport {
    /// Number in the point.
    pub number: u32,
    /// Its file.
    pub path: String,
    /// Bytes compared: all of it.
    pub compared_bytes: u64,
    /// Bytes of segments that differ.
    pub differing_bytes: u64,
}

/// What differs, for a dry run: nothing is touched.
pub fn compare_in_place(
    context: &RestoreContext<'_>,
    plan: &InPlacePlan,
) -> Result<Vec<InPlaceDiskReport>, BackupError> {
    let mut reports = Vec::new();
    for (disk, at) in plan.disks() {
        let object = plan.point.open_disk(context.repo, disk)?;
        let file = current_name(context, at)?;
        let target = open_target(context.host, &file)?;
        let found = compare_disk(&object, &target, &label(plan, disk), context.observer, context.cancel)?;
        reports.push(report(disk, at, found.differing_bytes()));
    }
    Ok(reports)
}

/// Carries out a plan. [`BackupError::Unfinished`] after the first write: run it again.
pub fn restore_in_place(
    context: &RestoreContext<'_>,
    plan: &InPlacePlan,
    safety: &SafetyPoint<'_>,
) -> Result<InPlaceReport, BackupError> {
    let blocking: Vec<&str> =
        plan.obstacles.iter().filter(|one| one.severity == Severity::Block).map(|one| one.why.as_str()).collect();
    let name = plan.vm.name.as_str();
    if !blocking.is_empty() {
        return Err(BackupError::Obstructed { vm: name.to_owned(), problem: blocking.join(" ") });
    }
    let safety_point = match safety {
        // Half-written disks are not worth a point; the first attempt made its own.
        SafetyPoint::Make(backup) if plan.resumes.is_none() => {
            Some(back_up_vm(backup, &plan.vm, &crate::new_run_id())?)
        }
        _ => None,
    };
    let state = context.state;
    let restore_id = plan.resumes.clone().unwrap_or_else(|| random_hex(8));
    let _lock = state.lock_restore(&restore_id, name)?;
    let _vm_lock = state.lock_vm(plan.vm.id.as_str(), name)?;
    let journal = RestoreJournal {
        restore_id,
        started: timestamp(&*context.host.seam().clock),
        point_id: plan.point.id.clone(),
        vm_id: plan.vm.id.to_string(),
        vm_name: name.to_owned(),
        work: Work::InPlace(InPlaceWork {
            repository_id: context.repo.id(),
            disks: plan.targets.clone(),
            writing: plan.resumes.is_some(),
            what_to_do: format!(
                "run the restore in place of {name} again, from this or another point; its disks are half-written \
                 and renamed to *{WORKING} until then"
            ),
        }),
    };
    let mut writing = Writing { context, plan, journal, writes: writes_of(context.host)? };
    match writing.run() {
        Ok(disks) => Ok(InPlaceReport { safety_point, disks }),
        Err(error) => Err(writing.end_early(error)),
    }
}

struct Writing<'a> {
    context: &'a RestoreContext<'a>,
    plan: &'a InPlacePlan,
    journal: RestoreJournal,
    writes: &'a dyn HostWrites,
}

impl Writing<'_> {
    fn run(&mut self) -> Result<Vec<InPlaceDiskReport>, BackupError> {
        let (context, plan) = (self.context, self.plan);
        self.look_again()?;
        self.save()?;
        self.note_for_the_next_backup()?;
        for disk in &plan.targets {
            self.set_aside(disk)?;
        }
        let mut reports = Vec::new();
        for (at, (disk, target)) in plan.disks().enumerate() {
            let label = label(plan, disk);
            let object = plan.point.open_disk(context.repo, disk)?;
            let opened = open_target(context.host, &target.working)?;
            let found = compare_disk(&object, &opened, &label, context.observer, context.cancel)?;
            self.check_space(target, found.growth_bytes(&opened))?;
            // The handle goes before the file is opened for writing.
            drop(opened);
            reports.push(report(disk, target, found.differing_bytes()));
            self.work().disks[at].ranges.clone_from(&found.ranges);
            self.work().writing = true;
            self.save()?;
            let file = self.writes.open_write(&target.working).map_err(on_target(&target.working))?;
            write_differences(&object, file.into(), &target.working, &found, &label, context.observer, context.cancel)?;
        }
        give_names_back(self.writes, &plan.targets)?;
        context.state.remove_restore(&self.journal.restore_id)?;
        Ok(reports)
    }

    fn work(&mut self) -> &mut InPlaceWork {
        match &mut self.journal.work {
            Work::InPlace(work) => work,
            Work::NewVm(_) => unreachable!("disks are written in place"),
        }
    }

    fn save(&self) -> Result<(), BackupError> {
        self.context.state.write_restore(&self.journal)
    }

    /// The plan may be old by now, the more so with a safety point between.
    fn look_again(&self) -> Result<(), BackupError> {
        let name = &self.plan.vm.name;
        let now = self.context.host.vm(&self.plan.vm.id).map_err(BackupError::host(format!("look at VM {name}")))?;
        let problem = match now {
            None => "it has left the host meanwhile",
            Some(vm) if vm.state != VmState::Off => "it was started meanwhile; shut it down",
            Some(vm) if !vm.checkpoints.is_empty() => "it has a checkpoint now",
            Some(_) => return Ok(()),
        };
        Err(BackupError::Obstructed { vm: name.clone(), problem: problem.to_owned() })
    }

    fn note_for_the_next_backup(&self) -> Result<(), BackupError> {
        let id = self.plan.vm.id.as_str();
        let mut journal = self.context.state.journal(id)?;
        journal.restored_in_place = Some(timestamp(&*self.context.host.seam().clock));
        self.context.state.write_journal(id, &journal)
    }

    /// Companions first: tracking must not answer for a disk that it did not see written (spec hyperv 4.9).
    fn set_aside(&self, disk: &InPlaceDisk) -> Result<(), BackupError> {
        for companion in [format!("{}.rct", disk.path), format!("{}.mrt", disk.path)] {
            self.writes.remove_file(&companion).map_err(on_target(&companion))?;
        }
        match self.context.host.seam().files.facts(&disk.working) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.writes.rename(&disk.path, &disk.working).map_err(on_target(&disk.path))
            }
            Err(error) => Err(on_target(&disk.working)(error)),
        }
    }

    /// A volume that fills up half-way would leave the VM without any state.
    fn check_space(&self, disk: &InPlaceDisk, growth_bytes: u64) -> Result<(), BackupError> {
        match self.context.host.seam().files.free_bytes(&disk.path) {
            Ok(free) if free < growth_bytes => {
                let text = format!("the disk may grow by {growth_bytes} bytes, {free} are free");
                Err(on_target(&disk.path)(std::io::Error::new(std::io::ErrorKind::StorageFull, text)))
            }
            // A volume that does not say is the host's; the check is a service.
            _ => Ok(()),
        }
    }

    /// Before the first write everything gets its name back; after it, only another attempt ends this.
    fn end_early(&mut self, error: BackupError) -> BackupError {
        if self.work().writing {
            return BackupError::Unfinished { vm: self.plan.vm.name.clone(), source: Box::new(error) };
        }
        let given_back = give_names_back(self.writes, &self.plan.targets)
            .and_then(|()| self.context.state.remove_restore(&self.journal.restore_id));
        if let Err(problem) = given_back {
            let text = format!(
                "its disks keep the ending {WORKING} until the next restore: {}",
                crate::error::chain_text(&problem)
            );
            self.context.observer.event(Event::Warning { subject: &self.plan.vm.name, text: &text });
        }
        error
    }
}

/// Gives the disks their own names; those that have them keep them.
pub(crate) fn give_names_back(writes: &dyn HostWrites, disks: &[InPlaceDisk]) -> Result<(), BackupError> {
    for disk in disks {
        let is_set_aside = writes.local_path(&disk.working).is_ok_and(|path| path.exists());
        if is_set_aside {
            writes.rename(&disk.working, &disk.path).map_err(on_target(&disk.path))?;
        }
    }
    Ok(())
}

/// The name that a disk has now.
fn current_name(context: &RestoreContext<'_>, disk: &InPlaceDisk) -> Result<String, BackupError> {
    match context.host.seam().files.facts(&disk.working) {
        Ok(_) => Ok(disk.working.clone()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(disk.path.clone()),
        Err(error) => Err(on_target(&disk.working)(error)),
    }
}

fn label(plan: &InPlacePlan, disk: &PointDisk) -> String {
    format!("{} disk {}", plan.vm.name, disk.number)
}

fn report(disk: &PointDisk, target: &InPlaceDisk, differing_bytes: u64) -> InPlaceDiskReport {
    InPlaceDiskReport {
        number: disk.number,
        path: target.path.clone(),
        compared_bytes: disk.size_bytes,
        differing_bytes,
    }
}

fn on_target(path: &str) -> impl FnOnce(std::io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::Target { path, source }
}

//! Whether the disks of a VM can take a point where they are.

use hyperv::{DiskFormat, Severity, Vm, VmDisk, VmId, VmState};

use super::WORKING;
use crate::point::{Point, PointDescription, PointDisk};
use crate::restore_vm::{InPlaceDisk, RestoreContext, RestoreObstacle, Work, sort};
use crate::{BackupError, Event};

/// A restore in place that has been looked at from all sides.
#[derive(Debug)]
pub struct InPlacePlan {
    /// What is restored.
    pub point: Point,
    /// Its description.
    pub description: PointDescription,
    /// The VM.
    pub vm: Vm,
    /// Everything that was looked at, what blocks first.
    pub obstacles: Vec<RestoreObstacle>,
    /// An earlier attempt was cut off while it wrote, and this one ends it. No safety point is made.
    pub resumes: Option<String>,
    /// The disks that are written.
    pub(super) targets: Vec<InPlaceDisk>,
}

impl InPlacePlan {
    /// Each disk of the point that is written, with its target.
    pub(super) fn disks(&self) -> impl Iterator<Item = (&PointDisk, &InPlaceDisk)> {
        self.targets.iter().filter_map(|target| {
            let disk = self.description.disks.iter().find(|disk| disk.number == target.number)?;
            Some((disk, target))
        })
    }

    /// Whether something must be solved first.
    pub fn is_blocked(&self) -> bool {
        self.obstacles.iter().any(|obstacle| obstacle.severity == Severity::Block)
    }
}

/// Plans to write a point into the disks of the VM that it was taken of. A VM that is not on the host is an error; all
/// else is in the plan.
pub fn plan_in_place(context: &RestoreContext<'_>, point: &Point) -> Result<InPlacePlan, BackupError> {
    context.observer.event(Event::Phase { subject: &point.vm_name, phase: "looking for obstacles" });
    let description = point.describe(context.repo)?;
    let attempt = || format!("find VM {} ({}) on the host", point.vm_name, description.vm_id);
    let id: VmId = description.vm_id.parse().map_err(BackupError::host(attempt()))?;
    let vm =
        context.host.vm(&id).map_err(BackupError::host(attempt()))?.ok_or_else(|| crate::SelectError::NotFound {
            what: "VM",
            selector: description.vm_id.clone(),
            hint: format!(" on this host; restore {} as a new VM instead", point.vm_name),
        })?;
    let unfinished = context.state.restore_journals()?.into_iter().find_map(|journal| match journal.work {
        Work::InPlace(work) if work.writing && journal.vm_id.eq_ignore_ascii_case(id.as_str()) => {
            Some((journal.restore_id, work.disks))
        }
        _ => None,
    });

    let mut obstacles = of_vm(&vm, unfinished.is_some());
    let (resumes, targets) = match unfinished {
        Some((restore_id, disks)) => (Some(restore_id), resumed(disks, &description, &vm, &mut obstacles)),
        None => (None, fresh(&description, &vm, &mut obstacles)),
    };
    for disk in &description.disks {
        match point.open_disk(context.repo, disk) {
            Ok(_) => {}
            Err(error) if error.is_damage() => {
                let why = format!("Disk {} of the point is damaged: {error}.", disk.number);
                obstacles.push(RestoreObstacle::block("point", &point.id, why, &["restore an older point"]));
            }
            Err(error) => return Err(error),
        }
    }
    for (code, why) in [
        ("vm_state", "The VM is off."),
        ("checkpoints", "The VM has no checkpoints."),
        ("disks", "Every disk of the point is there, with the size it had."),
        ("point", "Every disk of the point opens."),
    ] {
        if !obstacles.iter().any(|obstacle| obstacle.code == code) {
            obstacles.push(RestoreObstacle::passed(code, &vm.name, why));
        }
    }
    sort(&mut obstacles);
    Ok(InPlacePlan { point: point.clone(), description, vm, obstacles, resumes, targets })
}

fn of_vm(vm: &Vm, is_unfinished: bool) -> Vec<RestoreObstacle> {
    let mut found = Vec::new();
    if vm.state != VmState::Off {
        let why = format!("Its state is {:?}; its disks are written only while it is off.", vm.state);
        found.push(RestoreObstacle::block("vm_state", &vm.name, why, &["shut it down"]));
    }
    if let Some(operation) = vm.operation {
        let why = format!("The host is busy with it ({operation:?}).");
        found.push(RestoreObstacle::block("vm_state", &vm.name, why, &["try again later"]));
    }
    for checkpoint in &vm.checkpoints {
        let why = format!("It has the checkpoint {:?}, which depends on what its disks hold now.", checkpoint.name);
        let options = ["delete or apply it", "restore as a new VM"];
        found.push(RestoreObstacle::block("checkpoints", &vm.name, why, &options));
    }
    if !is_unfinished {
        for disk in &vm.unreadable_disks {
            let why = format!("It cannot be read: {}.", disk.problem);
            found.push(RestoreObstacle::block("disks", &disk.path, why, &["restore as a new VM"]));
        }
    }
    found
}

/// Each disk of the point with the VM's disk of the same identity.
fn fresh(description: &PointDescription, vm: &Vm, obstacles: &mut Vec<RestoreObstacle>) -> Vec<InPlaceDisk> {
    let mut targets = Vec::new();
    for disk in &description.disks {
        let is_it = |one: &&VmDisk| one.virtual_disk_id.to_string().eq_ignore_ascii_case(&disk.virtual_disk_id);
        let mut same = vm.disks.iter().filter(is_it);
        let on = format!("disk {} ({})", disk.number, disk.slot);
        let problem = match (same.next(), same.next()) {
            (None, _) => Some("The VM has no disk with its identity any more.".to_owned()),
            (_, Some(_)) => Some("Two disks of the VM have its identity.".to_owned()),
            (Some(found), None) => {
                targets.push(InPlaceDisk {
                    number: disk.number,
                    virtual_disk_id: disk.virtual_disk_id.clone(),
                    path: found.path.clone(),
                    working: format!("{}{WORKING}", found.path),
                    ranges: Vec::new(),
                });
                misfit(disk, found, vm)
            }
        };
        if let Some(why) = problem {
            let options = ["restore as a new VM", "restore this disk to a file"];
            obstacles.push(RestoreObstacle::block("disks", on, why, &options));
        }
    }
    for other in &vm.disks {
        if !targets.iter().any(|target| target.path == other.path) {
            let why = format!("The disk at {} is not in the point; it stays as it is.", other.slot);
            let options = ["go on", "restore as a new VM"];
            obstacles.push(RestoreObstacle::new("disks_left_out", Severity::Decide, &other.path, why, &options));
        }
    }
    targets
}

/// Why a disk cannot take what is stored of it.
fn misfit(disk: &PointDisk, now: &VmDisk, vm: &Vm) -> Option<String> {
    if now.format != DiskFormat::Vhdx {
        return Some(format!("It is a {} file; only VHDX files are written in place.", now.format));
    }
    // With checkpoints every disk has parents, and they are an obstacle of their own.
    if now.chain.len() > 1 && vm.checkpoints.is_empty() {
        return Some("It differs from a parent file, which other VMs may share.".into());
    }
    if now.size_bytes != disk.size_bytes {
        return Some(format!("It had {} bytes then, and has {} now.", disk.size_bytes, now.size_bytes));
    }
    (now.logical_sector_bytes != disk.logical_sector_bytes).then(|| {
        format!("Its sectors had {} bytes then, and have {} now.", disk.logical_sector_bytes, now.logical_sector_bytes)
    })
}

/// The disks of the attempt that was cut off; the point must hold every one of them.
fn resumed(
    disks: Vec<InPlaceDisk>,
    description: &PointDescription,
    vm: &Vm,
    obstacles: &mut Vec<RestoreObstacle>,
) -> Vec<InPlaceDisk> {
    let mut targets = Vec::new();
    for disk in disks {
        let in_point = description.disks.iter().find(|one| one.virtual_disk_id == disk.virtual_disk_id);
        match in_point {
            Some(found) => targets.push(InPlaceDisk { number: found.number, ranges: Vec::new(), ..disk }),
            None => {
                let why = "It is half-written by an earlier attempt, and this point does not hold it.";
                obstacles.push(RestoreObstacle::block("disks", disk.path, why, &["restore a point that holds it"]));
            }
        }
    }
    for unreadable in &vm.unreadable_disks {
        if !targets.iter().any(|target| target.path.eq_ignore_ascii_case(&unreadable.path)) {
            let why = format!("It cannot be read: {}.", unreadable.problem);
            obstacles.push(RestoreObstacle::block("disks", &unreadable.path, why, &["restore as a new VM"]));
        }
    }
    targets
}

//! What a restore would do, and everything that stands in its way; nothing is touched.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hyperv::{
    Definition, Identity, NetworkChoice, ObstacleCode, Recreation, RestoredDisk, Severity, Vm, VmId, VmState, Way,
};
use kopia_repo::format::snapshot::{DirEntry, EntryType};
use kopia_repo::object_of;

use super::journal::Work;
use super::obstacle::sort;
use super::place::{disk_names, former_parent, free_directory, join};
use super::{RestoreContext, RestoreObstacle, RestoreRequest, writes_of};
use crate::disk_object::DiskObject;
use crate::error::chain_text;
use crate::point::{Point, PointDescription, PointDisk};
use crate::restore::{TargetFormat, count_stored};
use crate::{BackupError, Event};

/// Restored in parallel, so that a rate that one reader reaches is not the rate of all. Storage answers at most so many
/// times as fast.
const STREAMS: u32 = 4;

/// A restore that has been looked at from all sides.
#[derive(Debug)]
pub struct RestorePlan {
    /// What is restored.
    pub point: Point,
    /// Its description.
    pub description: PointDescription,
    /// The VM's stored definition.
    pub definition: Definition,
    /// How the VM is made.
    pub way: Way,
    /// What it is to be. Its disks are those of `disks`, in their order.
    pub wanted: Recreation,
    /// The disks.
    pub disks: Vec<PlannedDisk>,
    /// The VM that is replaced, and how many days it is kept.
    pub replaces: Option<(Vm, u32)>,
    /// Started at the end.
    pub power_on: bool,
    /// Everything that was looked at, what blocks first.
    pub obstacles: Vec<RestoreObstacle>,
    /// What it costs.
    pub quote: Quote,
    pub(super) config: Vec<DirEntry>,
}

/// A disk that is restored.
#[derive(Clone, Debug)]
pub struct PlannedDisk {
    /// Its number in the point.
    pub number: u32,
    /// Controller and place.
    pub slot: String,
    /// Its file on the host.
    pub path: String,
    /// What the guest sees.
    pub size_bytes: u64,
    /// The file's length at first.
    pub file_bytes: u64,
    /// Bytes of the guest's that are not zero.
    pub data_bytes: u64,
}

/// What a restore moves and takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quote {
    /// Bytes that are read from the repository and written.
    pub data_bytes: u64,
    /// Requests to the repository's store, at most.
    pub requests: u64,
    /// Bytes of the target that are needed at once.
    pub needs_now_bytes: u64,
    /// Bytes that the disks take once their guest has filled them.
    pub needs_full_bytes: u64,
    /// Bytes that are free there.
    pub free_bytes: Option<u64>,
    /// How long it may take; from the speed of a few reads.
    pub estimate: Option<Duration>,
}

impl RestorePlan {
    /// Obstacles of one kind.
    pub fn obstacles_of(&self, severity: Severity) -> impl Iterator<Item = &RestoreObstacle> {
        self.obstacles.iter().filter(move |obstacle| obstacle.severity == severity)
    }

    /// Whether something must be solved first.
    pub fn is_blocked(&self) -> bool {
        self.obstacles_of(Severity::Block).next().is_some()
    }
}

/// Plans a restore.
pub fn plan_restore(
    context: &RestoreContext<'_>,
    point: &Point,
    request: &RestoreRequest,
) -> Result<RestorePlan, BackupError> {
    context.observer.event(Event::Phase { subject: &point.vm_name, phase: "looking for obstacles" });
    let description = point.describe(context.repo)?;
    let definition = point.definition(context.repo)?;
    let failed = || BackupError::host("look at the VMs of the host");
    let vms = context.host.list_vms().map_err(failed())?;
    let names: BTreeSet<&str> = vms.iter().map(|vm| vm.name.as_str()).collect();
    let keep_id = request.keep_id || request.replace.is_some();
    let former = vms.iter().find(|vm| vm.id.as_str().eq_ignore_ascii_case(&definition.summary.vm_id));
    let replaces = request.replace.and_then(|days| former.cloned().map(|vm| (vm, days)));

    let stored_name = &definition.summary.name;
    let name = match &request.name {
        Some(name) => name.clone(),
        None if keep_id || !names.contains(stored_name.as_str()) => stored_name.clone(),
        None => format!("{stored_name}-restored"),
    };
    let mut obstacles = Vec::new();
    let writes = writes_of(context.host)?;
    let parent = request.folder.clone().or_else(|| former_parent(&definition));
    if parent.is_none() {
        let why = "The definition does not say where the VM was.";
        obstacles.push(RestoreObstacle::block("paths", &name, why, &["name a folder: --folder"]));
    }
    let directory = free_directory(parent.as_deref().unwrap_or_default(), &name, writes);

    let chosen: Vec<&PointDisk> = description
        .disks
        .iter()
        .filter(|disk| request.disks.as_ref().is_none_or(|wanted| wanted.contains(&disk.number)))
        .collect();
    for number in request.disks.iter().flatten() {
        if !description.disks.iter().any(|disk| disk.number == *number) {
            let why = "The point has no disk with this number.";
            obstacles.push(RestoreObstacle::block("disk_files", number.to_string(), why, &["correct --disk"]));
        }
    }
    let (disks, quote) = look_at_disks(context, point, &chosen, &directory, &mut obstacles)?;
    let restored = disks
        .iter()
        .map(|disk| RestoredDisk {
            instance_id: instance_id(&definition, &disk.slot),
            path: disk.path.clone(),
            needs_bytes: Some(disk.file_bytes),
        })
        .collect();
    let wanted = wanted(request, keep_id, name, directory, restored, context);
    let way = if request.from_settings { Way::Build } else { Way::Import };
    let config = config_files(context, point)?;

    let mut plan = RestorePlan {
        point: point.clone(),
        description,
        definition,
        way,
        wanted,
        disks,
        replaces,
        power_on: request.power_on,
        obstacles,
        quote,
        config,
    };
    plan.look_at_host(context)?;
    plan.look_at_files(context);
    plan.look_at_networks(request);
    plan.look_at_replaced(request, former.is_some(), context)?;
    sort(&mut plan.obstacles);
    Ok(plan)
}

fn wanted(
    request: &RestoreRequest,
    keep_id: bool,
    name: String,
    directory: String,
    disks: Vec<RestoredDisk>,
    context: &RestoreContext<'_>,
) -> Recreation {
    let mut wanted = match keep_id {
        true => Recreation::as_original(name, directory, disks),
        false => Recreation::as_copy(name, directory, disks),
    };
    if request.disconnect {
        wanted.network = NetworkChoice::disconnected();
    }
    wanted.network.switches.clone_from(&request.network);
    wanted.processors = request.processors;
    wanted.memory_mib = request.memory_mib;
    wanted.cancel = context.cancel.clone();
    wanted
}

/// The disk of the definition in a slot; empty for a slot that it does not know, which the host's preflight names.
fn instance_id(definition: &Definition, slot: &str) -> String {
    let disk = definition.disks.iter().find(|disk| disk.slot.as_deref() == Some(slot));
    disk.map(|disk| disk.instance_id.clone()).unwrap_or_default()
}

/// Opens the disks, and reads the first and the last segment of each: the repository answers from here, and how fast.
fn look_at_disks(
    context: &RestoreContext<'_>,
    point: &Point,
    chosen: &[&PointDisk],
    directory: &str,
    obstacles: &mut Vec<RestoreObstacle>,
) -> Result<(Vec<PlannedDisk>, Quote), BackupError> {
    let folder = join(directory, "Virtual Hard Disks");
    let mut quote = Quote::default();
    let (mut disks, mut damaged) = (Vec::new(), false);
    let (mut probed_bytes, mut probing) = (0, Duration::ZERO);
    for (disk, name) in chosen.iter().zip(disk_names(chosen)) {
        let looked = point.open_disk(context.repo, disk).and_then(|object| {
            let begun = Instant::now();
            probed_bytes += probe(&object)?;
            probing += begun.elapsed();
            let head_bytes = object.layout().geometry().head_len_bytes();
            Ok((count_stored(&object, TargetFormat::Raw)?, head_bytes, object.segments()))
        });
        let (data_bytes, head_bytes, segments) = match looked {
            Ok(found) => found,
            Err(error) if error.is_damage() => {
                damaged = true;
                let options = ["restore an older point", "leave this disk out"];
                let on = format!("disk {}", disk.number);
                obstacles.push(RestoreObstacle::block("point", on, sentence(&chain_text(&error)), &options));
                (0, 0, 0)
            }
            Err(error) => return Err(error),
        };
        quote.data_bytes += data_bytes + head_bytes;
        // Equal segments are read once, and those of one pack together; never more than one request for each.
        quote.requests += segments;
        quote.needs_now_bytes += disk.file_bytes;
        quote.needs_full_bytes += disk.size_bytes.max(disk.file_bytes);
        disks.push(PlannedDisk {
            number: disk.number,
            slot: disk.slot.clone(),
            path: join(&folder, &name),
            size_bytes: disk.size_bytes,
            file_bytes: disk.file_bytes,
            data_bytes,
        });
    }
    if !damaged {
        let why = "Every disk opens, and its first and last segment can be read from here.";
        obstacles.push(RestoreObstacle::passed("point", &point.id, why));
    }
    quote.free_bytes = context.host.seam().files.free_bytes(&folder).ok();
    quote.estimate = estimate(quote.data_bytes, probed_bytes, probing);
    Ok((disks, quote))
}

/// Reads what is at both ends of a disk; bytes read.
pub(crate) fn probe(object: &DiskObject) -> Result<u64, BackupError> {
    let last = object.segments().saturating_sub(1);
    let mut bytes = 0;
    let mut plaintext = Vec::new();
    for number in [0, last] {
        object.repository().read_content_into(&object.segment(number)?, &mut plaintext)?;
        bytes += plaintext.len() as u64;
    }
    Ok(bytes)
}

/// From the time that some reads one after another took.
pub(crate) fn estimate(data_bytes: u64, probed_bytes: u64, probing: Duration) -> Option<Duration> {
    let seconds = probing.as_secs_f64();
    if probed_bytes == 0 || seconds <= 0.0 {
        return None;
    }
    let rate = probed_bytes as f64 / seconds * f64::from(STREAMS);
    // A number from a broken clock is no estimate.
    Duration::try_from_secs_f64(data_bytes as f64 / rate).ok()
}

/// The point's configuration files; none is not an error.
fn config_files(context: &RestoreContext<'_>, point: &Point) -> Result<Vec<DirEntry>, BackupError> {
    let folder = match point.entry(context.repo, "config") {
        Ok(folder) => folder,
        Err(BackupError::Read { source: kopia_repo::ReadError::NotFound { .. } }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let entries = context.repo.read_directory(&object_of(&folder)?)?.entries;
    Ok(entries.into_iter().filter(|entry| entry.entry_type == EntryType::File).collect())
}

impl RestorePlan {
    /// What Hyper-V would refuse, or change.
    fn look_at_host(&mut self, context: &RestoreContext<'_>) -> Result<(), BackupError> {
        let found = context
            .host
            .preflight(&self.definition, &self.wanted, self.way)
            .map_err(BackupError::host(format!("check whether VM {:?} can be made on the host", self.wanted.name)))?;
        let replaced = self.replaces.as_ref().map(|(vm, _)| vm.id.as_str());
        let is_solved_by_replacing = |obstacle: &hyperv::Obstacle| {
            replaced.is_some_and(|id| match obstacle.code {
                ObstacleCode::VmId => obstacle.severity == Severity::Block,
                ObstacleCode::VmName => obstacle.why.to_ascii_lowercase().contains(&id.to_ascii_lowercase()),
                _ => false,
            })
        };
        for obstacle in found {
            self.obstacles.push(match is_solved_by_replacing(&obstacle) {
                true => {
                    let why = "The VM that has it is replaced.";
                    RestoreObstacle::passed(obstacle.code.as_str(), obstacle.on, why)
                }
                false => obstacle.into(),
            });
        }
        if self.way == Way::Import && !self.config.iter().any(|file| has_extension(&file.name, "vmcx")) {
            let why = "The point holds no configuration file that could be imported.";
            self.obstacles.push(RestoreObstacle::block("config_files", &self.point.id, why, &["build from settings"]));
        }
        Ok(())
    }

    /// What the file system of the host would refuse.
    fn look_at_files(&mut self, context: &RestoreContext<'_>) {
        let directory = self.wanted.data_root.clone();
        let Ok(writes) = writes_of(context.host) else { return };
        let in_the_way = writes.local_path(&directory).map(|path| {
            let above = path.ancestors().skip(1).find(|path| path.symlink_metadata().is_ok());
            above.is_some_and(|above| !above.is_dir()) || path.symlink_metadata().is_ok()
        });
        match in_the_way {
            Ok(false) => self.obstacles.push(RestoreObstacle::passed("folder", &directory, "The folder can be made.")),
            Ok(true) => {
                let why = "Something that is no free folder is in the way.";
                self.obstacles.push(RestoreObstacle::block("folder", &directory, why, &["choose another folder"]));
            }
            Err(error) => {
                let why = format!("The host has no such folder: {error}.");
                self.obstacles.push(RestoreObstacle::block("folder", &directory, why, &["choose another folder"]));
            }
        }
        if let Some(free) = self.quote.free_bytes
            && (self.quote.needs_now_bytes..self.quote.needs_full_bytes).contains(&free)
        {
            let why = format!(
                "{free} bytes are free; {} are needed now, {} when the disks fill.",
                self.quote.needs_now_bytes, self.quote.needs_full_bytes
            );
            let options = ["go on", "choose another folder"];
            self.obstacles.push(RestoreObstacle::new("space_when_full", Severity::Decide, directory, why, &options));
        }
    }

    /// A misspelt switch would leave the VM unconnected without a word.
    fn look_at_networks(&mut self, request: &RestoreRequest) {
        let switches = &self.definition.host.switches;
        for from in request.network.keys() {
            if !switches.iter().any(|(id, name)| id.eq_ignore_ascii_case(from) || name == from) {
                let names: Vec<&str> = switches.values().map(String::as_str).collect();
                let why = format!("The former host had no such switch; it had: {}.", names.join(", "));
                self.obstacles.push(RestoreObstacle::block("switches", from, why, &["correct --network"]));
            }
        }
    }

    /// The VM that is replaced, and other work on this one.
    fn look_at_replaced(
        &mut self,
        request: &RestoreRequest,
        is_here: bool,
        context: &RestoreContext<'_>,
    ) -> Result<(), BackupError> {
        if let Some((vm, days)) = &self.replaces {
            let found = self.obstacles.len();
            self.obstacles.extend(stays_whole(vm, context)?);
            if self.obstacles.len() == found {
                let why = format!("It steps aside, and is kept {days} days under another name.");
                self.obstacles.push(RestoreObstacle::passed("replaced_vm", &vm.name, why));
            }
        } else if request.replace.is_some() && !is_here {
            let why = "No VM here has the id; nothing is replaced.";
            self.obstacles.push(RestoreObstacle::passed("replaced_vm", &self.definition.summary.vm_id, why));
        }
        for journal in context.state.restore_journals()? {
            let is_this = journal.vm_id.eq_ignore_ascii_case(&self.definition.summary.vm_id);
            if is_this && matches!(journal.work, Work::InPlace(_)) && self.wanted.identity == Identity::Keep {
                let why = "A restore in place of this VM is not finished.";
                let options = ["finish it: run the restore in place again", "give the restored VM a new id"];
                self.obstacles.push(RestoreObstacle::block("other_restore", &journal.vm_name, why, &options));
            }
        }
        Ok(())
    }
}

/// What keeps a VM from stepping aside as a whole.
fn stays_whole(vm: &Vm, context: &RestoreContext<'_>) -> Result<Vec<RestoreObstacle>, BackupError> {
    let mut found = Vec::new();
    let mut block = |why: String, options: &[&'static str]| {
        found.push(RestoreObstacle::block("replaced_vm", &vm.name, why, options));
    };
    if let Some(checkpoint) = vm.checkpoints.first() {
        let why = format!("It has checkpoints (such as {:?}), which would be lost.", checkpoint.name);
        block(why, &["delete or apply its checkpoints", "restore beside it: leave out --replace"]);
    }
    if let Some(operation) = vm.operation {
        block(format!("The host is busy with it ({operation:?})."), &["try again later"]);
    }
    if !matches!(vm.state, VmState::Running | VmState::Off | VmState::Saved | VmState::Paused) {
        block(format!("Its state is {:?}.", vm.state), &["bring it to rest first"]);
    }
    if let Some(disk) = vm.unreadable_disks.first() {
        block(format!("Its disk {} cannot be read: {}.", disk.path, disk.problem), &["remove the VM by hand"]);
    }
    if let Some(what_to_do) = crate::instant::is_instant(context.state, vm.id.as_str())? {
        block(
            format!("It cannot step aside: {what_to_do}."),
            &["finish or discard its instant session", "restore beside it: leave out --replace"],
        );
    }
    let id: &VmId = &vm.id;
    if let Ok(Some(role)) = context.host.clustered_vm(id) {
        let why = format!("It is a role of the cluster, on node {}.", role.owner_node);
        block(why, &["remove the role (not the VM) first", "restore beside it"]);
    }
    Ok(found)
}

pub(crate) fn has_extension(name: &str, extension: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, found)| found.eq_ignore_ascii_case(extension))
}

/// An error as a sentence.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", letters.as_str().trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_come_from_what_was_read() {
        let second = Duration::from_secs(1);
        for (data, probed, probing, expected) in [
            (400, 100, second, Some(second)),
            (0, 100, second, Some(Duration::ZERO)),
            (400, 0, second, None),
            (400, 100, Duration::ZERO, None),
        ] {
            assert_eq!(estimate(data, probed, probing), expected, "{data} {probed} {probing:?}");
        }
    }
}

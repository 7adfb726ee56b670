//! Everything the host knows, as it stands in `host.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::configuration::{Configuration, DiskSlot};
use crate::error::LabError;
use crate::options::LabOptions;
use crate::paths::WinPath;
use crate::properties::Properties;
use crate::storage::Storage;

/// The version of this layout.
pub(crate) const FORMAT: u32 = 2;

/// The whole host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostState {
    pub(crate) format: u32,
    /// The latest instant anything happened, in milliseconds since 1970. Virtual clocks resume here.
    pub(crate) time_ms: u64,
    pub(crate) options: LabOptions,
    /// Guardians whose key protectors this host can open; the first is its own.
    pub(crate) guardians: Vec<String>,
    /// Registered VMs.
    pub(crate) vms: Vec<Vm>,
    /// Imported systems that are not realized yet.
    pub(crate) planned: Vec<Planned>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) merges: Vec<PendingMerge>,
    pub(crate) events: Vec<Event>,
    /// The first sequence never given out, by lineage of change tracking.
    pub(crate) sequences: BTreeMap<String, u32>,
    /// The management service is down until then.
    pub(crate) service_down_until_ms: u64,
    /// iSCSI sessions, and disks and volumes that came over them.
    #[serde(default)]
    pub(crate) storage: Storage,
    /// Disk files whose changes are tracked. The records themselves lie beside the files.
    pub(crate) tracked: Vec<WinPath>,
    /// What to do if the operation that is under way now is never committed.
    pub(crate) undo: Vec<FileOp>,
    /// What is still to be done for the operation that has been committed. Doing it twice does no harm.
    pub(crate) redo: Vec<FileOp>,
}

/// A change of the folder that belongs to a change of the state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum FileOp {
    Delete(WinPath),
    /// Takes an id out of the tracking record of a disk file; what was written after it counts for the id before.
    DropMarker {
        disk: WinPath,
        id: String,
    },
    /// Writes a VM's own configuration files as its settings are now.
    WriteConfiguration {
        vm: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Vm {
    /// Upper-case GUID.
    pub(crate) id: String,
    pub(crate) power: Power,
    pub(crate) generation: u8,
    /// Configuration version, `10.0`.
    pub(crate) version: String,
    pub(crate) folder: WinPath,
    pub(crate) created_ms: u64,
    pub(crate) state_changed_ms: u64,
    pub(crate) config_changed_ms: u64,
    pub(crate) guest: GuestFamily,
    pub(crate) vss: VssBehaviour,
    pub(crate) active: Configuration,
    pub(crate) checkpoints: Vec<Checkpoint>,
    pub(crate) reference_points: Vec<ReferencePoint>,
    /// The checkpoint that the active settings follow from.
    pub(crate) position: Option<String>,
    /// The user checkpoint that was applied last.
    pub(crate) last_applied: Option<String>,
    /// A checkpoint was applied: frozen files may belong to a branch that was left.
    pub(crate) has_branches: bool,
    /// Disks are merged when a checkpoint is gone; an export can switch that off.
    pub(crate) merging: bool,
    /// The storage of its files is gone: the critical states.
    pub(crate) storage_lost: bool,
    /// Hyper-V Replica: 0 none, 1 primary, 2 replica, 3 test replica, 4 extended replica.
    pub(crate) replication_mode: u16,
    /// Files that the VM's own account may open.
    pub(crate) grants: Vec<Grant>,
}

/// An access entry for a VM on a file. It goes with the file itself, not with its path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Grant {
    pub(crate) file: WinPath,
    pub(crate) file_number: u64,
}

/// An imported system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Planned {
    /// The VM it will be.
    pub(crate) vm: Vm,
    /// The `.vmcx` it came from; its `.vmrs` and `.vmgs` lie beside it.
    pub(crate) source: WinPath,
    /// Checkpoints that its definition refers to.
    pub(crate) checkpoints: Vec<PlannedCheckpoint>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlannedCheckpoint {
    pub(crate) id: String,
    pub(crate) name: String,
    /// Its definition was not found.
    pub(crate) missing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Power {
    Running,
    Off,
    Saved,
    Paused,
}

/// What runs in a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestFamily {
    /// Reports itself as Windows Server.
    Windows,
    /// Reports itself as Debian.
    Linux,
    /// Has no integration services.
    Unknown,
}

/// How the guest answers a request to freeze (consistency level 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VssBehaviour {
    /// Freezes.
    Works,
    /// A writer fails for good: the job ends in state 10 with 0x800423F4.
    WriterFails,
    /// A writer fails in a way that may pass (0x800423F3), so many times; then it works.
    WriterRetryable {
        /// Failures to come.
        failures: u32,
    },
    /// Freezes, after so long.
    Slow {
        /// What it adds to the time of the job.
        ms: u64,
    },
    /// Never answers, although the component reports that it is well.
    Hangs,
    /// Never answers, and the component reports "lost communication".
    NotResponding,
    /// A Linux guest whose daemon does not run: fails at once.
    NoDaemon,
    /// The component is not offered to the guest; level 1 fails.
    Disabled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CheckpointKind {
    Recovery,
    User,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// Upper-case GUID.
    pub(crate) id: String,
    pub(crate) kind: CheckpointKind,
    /// The checkpoint this one was made on top of.
    pub(crate) parent: Option<String>,
    pub(crate) created_ms: u64,
    /// 1 application, 2 crash.
    pub(crate) consistency_level: u8,
    pub(crate) config: Configuration,
    /// Change tracking ids of the frozen instant, one for each tracked disk.
    pub(crate) markers: Vec<Marker>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    /// Where the disk was.
    pub(crate) place: String,
    pub(crate) id: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReferencePoint {
    /// Upper-case GUID.
    pub(crate) id: String,
    pub(crate) consistency_level: u8,
    pub(crate) markers: Vec<Marker>,
    /// How many ids at the end it does not tell.
    pub(crate) missing_ids: usize,
}

/// A child that is to be folded into its parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PendingMerge {
    pub(crate) vm: String,
    pub(crate) child: WinPath,
    pub(crate) parent: WinPath,
    pub(crate) due_ms: u64,
    /// The last attempt found a file in use.
    pub(crate) blocked: bool,
}

/// An entry of `Microsoft-Windows-Hyper-V-VMMS-Admin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// 19070 merge started, 19080 finished, 19100 failed.
    pub id: u32,
    /// VM id.
    pub vm: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Upper-case GUID.
    pub(crate) id: String,
    pub(crate) vm: String,
    pub(crate) method: String,
    /// `JobType`.
    pub(crate) kind: u16,
    pub(crate) started_ms: u64,
    pub(crate) due_ms: u64,
    pub(crate) action: Action,
    pub(crate) end: Option<JobEnd>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct JobEnd {
    pub(crate) at_ms: u64,
    /// 7 completed, 8 terminated, 10 exception.
    pub(crate) state: u16,
    pub(crate) error_code: u16,
    pub(crate) error_description: String,
    /// What `GetErrorEx` lists, when that is more than the description.
    pub(crate) errors: Vec<String>,
    pub(crate) results: Vec<Object>,
}

/// Something that a job made or changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Object {
    Checkpoint { id: String },
    ReferencePoint { id: String },
    System { id: String },
    Planned { id: String },
    Setting { class: String, instance_id: String },
}

/// What a job does when its time has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Action {
    Create {
        kind: CheckpointKind,
        consistency_level: u8,
    },
    Destroy {
        checkpoint: String,
    },
    Convert {
        checkpoint: String,
    },
    DestroyReferencePoint {
        reference_point: String,
    },
    /// Adds, modifies or removes settings of a configuration.
    Change {
        configuration: String,
        change: Change,
    },
    Define {
        system: Properties,
        settings: Vec<NewSetting>,
    },
    Import {
        definition: WinPath,
        snapshots: Option<WinPath>,
        new_id: bool,
    },
    /// Takes a checkpoint out of a planned system.
    ForgetCheckpoint {
        checkpoint: String,
    },
    Validate,
    Realize,
    DestroySystem,
    Export {
        folder: WinPath,
        settings: Properties,
    },
    Power {
        to: Power,
    },
    /// Makes a differencing file.
    CreateChild {
        child: WinPath,
        parent: WinPath,
    },
    /// Gives a differencing file another parent.
    SetParent {
        child: WinPath,
        parent: WinPath,
    },
    /// Folds a file that nobody uses into its parent.
    MergeFiles {
        child: WinPath,
        parent: WinPath,
    },
}

/// A change of the devices of one configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Change {
    Add(Vec<NewSetting>),
    Modify(Vec<NewSetting>),
    /// By `InstanceID`.
    Remove(Vec<String>),
}

/// A setting as a caller gives it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NewSetting {
    pub(crate) class: String,
    pub(crate) properties: Properties,
}

impl HostState {
    pub(crate) fn new(options: LabOptions, time_ms: u64) -> Self {
        Self {
            format: FORMAT,
            time_ms,
            options,
            guardians: vec![new_guid()],
            vms: Vec::new(),
            planned: Vec::new(),
            jobs: Vec::new(),
            merges: Vec::new(),
            events: Vec::new(),
            sequences: BTreeMap::new(),
            service_down_until_ms: 0,
            storage: Storage::default(),
            tracked: Vec::new(),
            undo: Vec::new(),
            redo: Vec::new(),
        }
    }

    /// A VM by id, or by name when only one has it.
    pub(crate) fn find_vm(&self, name_or_id: &str) -> Result<&Vm, LabError> {
        if let Some(vm) = self.vm(name_or_id) {
            return Ok(vm);
        }
        let mut named = self.vms.iter().filter(|vm| vm.active.name == name_or_id);
        match (named.next(), named.next()) {
            (Some(vm), None) => Ok(vm),
            _ => Err(LabError::NoSuchVm(name_or_id.to_owned())),
        }
    }

    pub(crate) fn vm(&self, id: &str) -> Option<&Vm> {
        self.vms.iter().find(|vm| vm.id.eq_ignore_ascii_case(id))
    }

    pub(crate) fn vm_mut(&mut self, id: &str) -> &mut Vm {
        self.vms.iter_mut().find(|vm| vm.id == id).expect("the id was taken from a VM of this state")
    }

    pub(crate) fn planned(&self, id: &str) -> Option<&Planned> {
        self.planned.iter().find(|planned| planned.vm.id.eq_ignore_ascii_case(id))
    }

    /// Registered VMs, then planned ones.
    pub(crate) fn machines(&self) -> impl Iterator<Item = &Vm> {
        self.vms.iter().chain(self.planned.iter().map(|planned| &planned.vm))
    }

    /// A registered or planned VM.
    pub(crate) fn machine(&self, id: &str) -> Option<&Vm> {
        self.machines().find(|vm| vm.id.eq_ignore_ascii_case(id))
    }

    pub(crate) fn machine_mut(&mut self, id: &str) -> &mut Vm {
        let planned = self.planned.iter_mut().map(|planned| &mut planned.vm);
        let mut machines = self.vms.iter_mut().chain(planned);
        machines.find(|vm| vm.id == id).expect("the id was taken from a VM of this state")
    }

    /// The settings with this id (of a registered or planned VM, or of a checkpoint), with their VM.
    pub(crate) fn configuration(&self, id: &str) -> Option<(&Vm, &Configuration)> {
        if let Some(vm) = self.machine(id) {
            return Some((vm, &vm.active));
        }
        self.checkpoint(id).map(|(vm, checkpoint)| (vm, &checkpoint.config))
    }

    /// As [`HostState::configuration`], to be changed; the id has been found before.
    pub(crate) fn configuration_mut(&mut self, id: &str) -> &mut Configuration {
        if self.machine(id).is_some() {
            return &mut self.machine_mut(id).active;
        }
        let mut checkpoints = self.vms.iter_mut().flat_map(|vm| &mut vm.checkpoints);
        let found = checkpoints.find(|checkpoint| checkpoint.id == id);
        &mut found.expect("the id was taken from a configuration of this state").config
    }

    /// A checkpoint by its id, with its VM.
    pub(crate) fn checkpoint(&self, id: &str) -> Option<(&Vm, &Checkpoint)> {
        self.vms.iter().find_map(|vm| {
            let checkpoint = vm.checkpoints.iter().find(|checkpoint| checkpoint.id.eq_ignore_ascii_case(id))?;
            Some((vm, checkpoint))
        })
    }

    /// A reference point by its id, with its VM.
    pub(crate) fn reference_point(&self, id: &str) -> Option<(&Vm, &ReferencePoint)> {
        self.vms.iter().find_map(|vm| {
            let point = vm.reference_points.iter().find(|point| point.id.eq_ignore_ascii_case(id))?;
            Some((vm, point))
        })
    }

    pub(crate) fn is_tracked(&self, file: &WinPath) -> bool {
        self.tracked.contains(file)
    }

    /// `OperationalStatus[1]` of a VM: what is going on with it, if anything.
    pub(crate) fn operation(&self, vm_id: &str) -> Option<(u16, &'static str)> {
        let job = self.open_jobs(vm_id).find_map(|job| match job.action {
            Action::Create { .. } => Some((32768, "Creating checkpoint")),
            Action::Destroy { .. } | Action::Convert { .. } => Some((32770, "Deleting checkpoint")),
            Action::Export { .. } => Some((32773, "Exporting virtual machine")),
            // A reference point has no files, and settings are changed in an instant: the VM shows nothing.
            _ => None,
        });
        let merging = || self.merges.iter().any(|merge| merge.vm == vm_id && !merge.blocked);
        job.or_else(|| merging().then_some((32772, "Merging disks")))
    }

    /// Jobs of a VM that have not ended.
    pub(crate) fn open_jobs(&self, vm_id: &str) -> impl Iterator<Item = &Job> {
        self.jobs.iter().filter(move |job| job.vm == vm_id && job.end.is_none())
    }

    /// Whether something is going on with a VM that another operation would have to wait for.
    pub(crate) fn is_busy(&self, vm_id: &str) -> bool {
        let in_the_way = |job: &Job| !matches!(job.action, Action::DestroyReferencePoint { .. });
        self.operation(vm_id).is_some() || self.open_jobs(vm_id).any(in_the_way)
    }
}

impl Vm {
    pub(crate) fn disk(&self, index: usize) -> Result<&DiskSlot, LabError> {
        let missing = || LabError::NoSuchDisk { vm: self.active.name.clone(), disk: index };
        self.active.disks.get(index).ok_or_else(missing)
    }

    /// Where checkpoints keep their files.
    pub(crate) fn snapshot_root(&self) -> WinPath {
        self.root("SnapshotDataRoot")
    }

    /// Where the `.vmgs` lies.
    pub(crate) fn guest_state_root(&self) -> WinPath {
        self.root("GuestStateDataRoot")
    }

    /// A data root: the VM's folder, unless another was set.
    pub(crate) fn root(&self, property: &str) -> WinPath {
        match self.active.system.text(property) {
            "" => self.folder.clone(),
            folder => WinPath::new(folder),
        }
    }

    /// Whether change tracking is possible: a configuration version from the Server 2016 family on.
    pub(crate) fn supports_tracking(&self) -> bool {
        version_number(&self.version) >= (6, 2)
    }
}

/// A configuration version such as `9.0`, to be compared.
pub(crate) fn version_number(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// A new GUID in Hyper-V's spelling.
pub(crate) fn new_guid() -> String {
    new_uuid().hyphenated().to_string().to_uppercase()
}

/// A new random GUID.
pub(crate) fn new_uuid() -> uuid::Uuid {
    uuid::Builder::from_random_bytes(random::bytes()).into_uuid()
}

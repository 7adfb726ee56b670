//! Everything the host knows, as it stands in `host.json`.

use serde::{Deserialize, Serialize};

use crate::error::LabError;
use crate::options::LabOptions;
use crate::paths::WinPath;

/// The version of this layout.
pub(crate) const FORMAT: u32 = 1;

/// The whole host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostState {
    pub(crate) format: u32,
    /// The latest instant anything happened, in milliseconds since 1970. Virtual clocks resume here.
    pub(crate) time_ms: u64,
    pub(crate) options: LabOptions,
    pub(crate) vms: Vec<Vm>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) merges: Vec<PendingMerge>,
    pub(crate) events: Vec<Event>,
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
}

#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// A writer fails: the job ends in state 10 with 0x800423F4.
    WriterFails,
    /// The component is not offered to the guest; level 1 fails.
    Disabled,
}

/// A set of settings: those of the VM, or those of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Configuration {
    pub(crate) name: String,
    pub(crate) notes: Vec<String>,
    pub(crate) user_snapshot_type: u16,
    pub(crate) automatic_startup_action: u16,
    pub(crate) automatic_shutdown_action: u16,
    pub(crate) processors: u64,
    pub(crate) memory_mib: u64,
    pub(crate) secure_boot: bool,
    pub(crate) tpm: bool,
    pub(crate) bios_guid: String,
    /// GUID of the SCSI controller.
    pub(crate) controller: String,
    pub(crate) disks: Vec<DiskSlot>,
    pub(crate) nic: String,
    pub(crate) mac: String,
}

/// A disk in a slot of a controller.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DiskSlot {
    pub(crate) slot: u8,
    /// The file: the leaf in the VM's settings, the frozen one in a checkpoint's.
    pub(crate) file: WinPath,
    /// Name of the base file without extension; checkpoint files are named after it.
    pub(crate) stem: String,
    /// Attached as shared (persistent reservations): cannot be part of a checkpoint.
    pub(crate) shared: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CheckpointKind {
    Recovery,
    User,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// Change tracking ids of the frozen instant, by slot.
    pub(crate) markers: Vec<Marker>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    pub(crate) slot: u8,
    pub(crate) id: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ReferencePoint {
    /// Upper-case GUID.
    pub(crate) id: String,
    pub(crate) consistency_level: u8,
    pub(crate) markers: Vec<Marker>,
    /// Controller of the slots.
    pub(crate) controller: String,
}

/// A child that is to be folded into its parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PendingMerge {
    pub(crate) vm: String,
    pub(crate) slot: u8,
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
    /// `JobType`: 70 create checkpoint, 72 delete checkpoint, 200 convert, 202 destroy reference point.
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
    pub(crate) results: Vec<Object>,
}

/// Something that a job made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Object {
    Checkpoint { id: String },
    ReferencePoint { id: String },
}

/// What a job does when its time has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Action {
    Create { kind: CheckpointKind, consistency_level: u8 },
    Destroy { checkpoint: String },
    Convert { checkpoint: String },
    DestroyReferencePoint { reference_point: String },
}

impl HostState {
    pub(crate) fn new(options: LabOptions, time_ms: u64) -> Self {
        Self {
            format: FORMAT,
            time_ms,
            options,
            vms: Vec::new(),
            jobs: Vec::new(),
            merges: Vec::new(),
            events: Vec::new(),
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
        let job = self.jobs.iter().find(|job| job.vm == vm_id && job.end.is_none()).and_then(|job| match job.action {
            Action::Create { .. } => Some((32768, "Creating checkpoint")),
            Action::Destroy { .. } | Action::Convert { .. } => Some((32770, "Deleting checkpoint")),
            // A reference point has no files: the VM does not notice.
            Action::DestroyReferencePoint { .. } => None,
        });
        let merging = || self.merges.iter().any(|merge| merge.vm == vm_id && !merge.blocked);
        job.or_else(|| merging().then_some((32772, "Merging disks")))
    }
}

impl Vm {
    pub(crate) fn disk(&self, index: usize) -> Result<&DiskSlot, LabError> {
        let missing = || LabError::NoSuchDisk { vm: self.active.name.clone(), disk: index };
        self.active.disks.get(index).ok_or_else(missing)
    }

    /// Whether change tracking is possible: a configuration version from the Server 2016 family on.
    pub(crate) fn supports_tracking(&self) -> bool {
        let mut numbers = self.version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 2)
    }
}

/// A new GUID in Hyper-V's spelling.
pub(crate) fn new_guid() -> String {
    uuid::Uuid::new_v4().hyphenated().to_string().to_uppercase()
}

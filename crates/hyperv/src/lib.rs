//! Hyper-V, as a backup of its virtual machines needs it.
//!
//! A backup freezes a VM's disks with a *recovery checkpoint*, reads the frozen files, and turns the checkpoint into a
//! *reference point*, from which the next backup asks what changed:
//!
//! ```text
//! Host::new(seam) ── probe ── find_vm ── create_recovery_checkpoint ── open_config_files, capture_…_definition
//!                                              │
//!        per disk: open_frozen ── changed_ranges(id of the last backup) ── read ── drop
//!                                              │
//!                     convert_to_reference_point ── wait_for_merge ── destroy_reference_point(the last one)
//! ```
//!
//! ```no_run
//! use hyperv::{CheckpointRequest, Consistency, Host, seam::Seam};
//!
//! /// What changed on every disk of a VM since the ids of the last backup.
//! fn changed(seam: Seam, vm: &str, last_ids: &[&str]) -> Result<Vec<u64>, Box<dyn std::error::Error>> {
//!     let host = Host::new(seam);
//!     let vm = host.find_vm(vm)?;
//!     let request = CheckpointRequest::new(Consistency::Application, "changes-1");
//!     let checkpoint = host.create_recovery_checkpoint(&vm, &request)?;
//!     let mut changed = Vec::new();
//!     for (disk, last_id) in checkpoint.disks.iter().zip(last_ids) {
//!         let frozen = host.open_frozen(disk)?;
//!         let ranges = frozen.changed_ranges(last_id)?;
//!         changed.push(ranges.iter().map(|range| range.end - range.start).sum());
//!     }
//!     // No handle is open any more. A backup would convert the checkpoint to a reference point here.
//!     host.destroy_checkpoint(&checkpoint.path)?;
//!     Ok(changed)
//! }
//! ```
//!
//! A VM comes back by [`Host::import_vm`] or [`Host::build_vm`], after [`Host::preflight`] has listed every obstacle;
//! [`Definition::differences`] tells how it differs from what was stored. [`Vm::protection`] says of any VM, before the
//! first backup, what its backups will be.
//!
//! A VM that runs from a backup has its disks on a volume that comes over iSCSI: `initiator.rs` logs in, `host_disk.rs`
//! shows the volume in a folder, `disk_chain.rs` makes children of its files and gives them local parents in the end.
//!
//! Which class, which property, which method, in which order, and what each error means is decided here, and compiled
//! and tested on every platform. What touches the operating system is behind [`seam`]: WMI queries and calls,
//! `virtdisk.dll`, plain files, and the clock.
//!
//! Left out: when to back up, what to keep, whether to fall back from application to crash consistency, which foreign
//! checkpoints to spare, and every journal and lock. A caller holds one lock per VM around everything that changes it.
//!
//! Read `host.rs`, then `inventory.rs`, `checkpoint.rs`, `frozen.rs` and `reference_point.rs`, then `recreate/`; `job.rs`
//! is how every method call ends. Source of all facts: the "Hyper-V WMI provider (V2)" and `virtdisk.h` references;
//! "spec" in comments is the project's digest of them, `hyperv.md`.

pub mod seam;
#[cfg(any(windows, test))]
pub mod windows;

pub mod cim_xml;
pub mod wql;

mod advice;
mod broken_chain;
mod error;
mod names;

mod host;
mod job;

mod cluster;
mod devices;
mod disk_file;
mod guest;
mod inventory;
mod protection;
mod vm_state;

mod checkpoint;
mod checkpoint_list;
mod config_file;
mod definition;
mod reached;

mod changes;
mod frozen;

mod merge;
mod pace;
mod reference_point;

mod power;
mod recreate;

mod disk_chain;
mod host_disk;
mod initiator;

pub use changes::{ChangesError, ChangesErrorKind, rct_id_is_reused};
pub use checkpoint::{Checkpoint, CheckpointRequest, ConfigPaths, Consistency, FreezeHooks, FrozenDisk, GuestBackup};
pub use checkpoint_list::{CheckpointInfo, CheckpointKind};
pub use cluster::{Cluster, ClusteredVm, is_on_cluster_shared_volume};
pub use config_file::ConfigFile;
pub use definition::{DefinedDisk, Definition, DefinitionHost, DefinitionSummary, Setting, TypedValue};
pub use disk_file::DiskFormat;
pub use error::{CreateError, Error, ErrorKind, JobFailure, is_sharing_violation};
pub use frozen::{ChainMember, FrozenReader};
pub use guest::{Guest, GuestFamily};
pub use host::{Host, HostFacts, ProbeError};
pub use host_disk::HostDisk;
pub use initiator::{InitiatorService, InitiatorSession, TargetLogin, TargetPortal};
pub use inventory::{ExcludedDisk, Exclusion, FindError, TrackingSupport, UnreadableDisk, Vm, VmDisk, VssReadiness};
pub use job::{Cancel, JobLimits};
pub use merge::{ChainBefore, MergeOutcome, UnmergedDisk};
pub use names::{ControllerKind, DiskSlot, NotASlot, VmId, file_name, slot_part};
pub use pace::next_look;
pub use protection::{Caution, FullOnly, Impossible, Protection};
pub use reached::Reached;
pub use recreate::{
    ConfigurationVersions, Difference, Identity, MacChoice, NetworkChoice, Obstacle, ObstacleCode, PlannedVm,
    RecreateWarning, Recreated, Recreation, RestoredDisk, Severity, TpmChoice, Way, Why,
};
pub use reference_point::{Conversion, DiskTracking, ReferencePoint, TrackingDefect};
pub use vm_state::{Operation, VmState};

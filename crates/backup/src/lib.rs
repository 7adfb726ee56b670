//! Backup and restore of virtual machines: where disks and repositories meet.
//!
//! [`back_up_vm`] freezes a VM through `hyperv`, reads its disks in full or as what changed since the last point, and
//! commits a *point*: one Kopia snapshot with the VM's definition and one complete VHDX per disk. [`list_points`] and
//! [`select_point`] find points, [`restore_disk`] brings a disk back, [`restore_vm`] a whole VM, [`restore_in_place`] what
//! differs in the disks of a VM that is there; [`instant`] makes a VM whose disks stay in the repository until they have
//! moved; [`verify_point`] proves that it could. [`retention`] decides which points
//! stay, [`hold`] keeps some whatever it says; [`evidence`] is what checks of points found, [`janitor`] what runs left.
//!
//! How a disk is stored: `layout.rs` cuts the canonical VHDX stream into segments, `pipeline.rs` turns the source into
//! contents on all cores, `disk_backup.rs` builds the object, `disk_object.rs` reads it back. How a run goes:
//! `run.rs` from top to bottom, `decision.rs` for full or incremental, `commit.rs` for the last step, `state.rs` and
//! `recovery.rs` for what a crash leaves.
//!
//! Not here: schedules, command lines, transports. Time comes from the host's clock.

mod audit;
mod commit;
mod cost;
pub mod decision;
mod disk_backup;
mod disk_object;
mod error;
pub mod evidence;
mod held_locks;
pub mod hold;
mod in_place;
pub mod instant;
pub mod janitor;
pub mod layout;
mod observer;
mod pipeline;
mod point;
mod recovery;
mod resources;
mod restore;
mod restore_vm;
pub mod retention;
mod run;
mod source_guard;
mod state;
#[cfg(test)]
mod testing;
mod verify;
mod volumes;

pub use audit::Audited;
pub use commit::{DraftFile, PointDraft};
pub use cost::upload_bound;
pub use decision::FullReason;
pub use disk_object::{DiskObject, DiskObjectError};
pub use error::{BackupError, SelectError};
pub use held_locks::{HeldLock, held_locks, is_held, try_lock_past_looks};
pub use hyperv::Cancel;
pub use in_place::{
    InPlaceDiskReport, InPlacePlan, InPlaceReport, SafetyPoint, compare_in_place, plan_in_place, restore_in_place,
};
pub use observer::{Event, Observer, Silent};
pub use point::{
    AbsentDisk, GuestFamily, POINT_VERSION, Point, PointChainFile, PointDescription, PointDisk, ReadMode, SOURCE_USER,
    list_points, select_point,
};
pub use recovery::HostSide;
pub use resources::Resources;
pub use restore::{DiskQuote, RestoreReport, TargetFormat, quote_disk, restore_disk};
pub use restore_vm::{
    KeptVm, PlannedDisk, Quote, RestoreContext, RestoreObstacle, RestorePlan, RestoreRequest, RestoredVm, kept_vms,
    open_restores, plan_restore, remove_due_vms, restore_vm, settle_restores,
};
pub use run::{
    BackupContext, BackupOptions, ConsistencyPolicy, GuardLimits, HostCost, RunStats, VmReport, Warning, WarningCode,
    back_up_vm, new_run_id, settle_vm,
};
pub use source_guard::{ReadLimits, ReadTimes};
pub use state::{HostState, PastRun, VmJournal, VmLock};
pub use verify::{VerifyLevel, VerifyReport, verify_by_restoring, verify_point};
pub use volumes::VolumeCheck;

use serde::{Deserialize, Serialize};

/// What a point's disks are worth to the software in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// The guest froze its applications or file systems.
    Application,
    /// As after a power cut.
    Crash,
    /// The VM was off.
    Offline,
}

impl std::fmt::Display for Consistency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Application => "application",
            Self::Crash => "crash",
            Self::Offline => "offline",
        })
    }
}

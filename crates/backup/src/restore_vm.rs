//! A whole VM from a point: every obstacle at once, then the VM; or nothing is left of the attempt.
//!
//! ```text
//! plan_restore ── names, places, obstacles, quote: nothing is touched
//!      │
//! restore_vm ──── journal ─ disks under temporary names ─ configuration files ─ (the VM it replaces steps aside)
//!                 ─ import or build ─ differences ─ start
//! ```
//!
//! Before each deed the host's state folder says what is about to be done (`journal.rs`). A failure, a request to stop
//! and a crash all end in the same way: `undo.rs` takes back what the journal names, at once or at the next run
//! ([`settle_restores`]). `replace.rs` is about the VM that is replaced, and is kept for some days ([`KeptVm`]).
//!
//! Not here: writing into the disks of a VM that stays; that is `in_place.rs`.

mod journal;
mod kept;
mod make;
mod obstacle;
mod place;
mod plan;
mod replace;
mod undo;

use hyperv::{Definition, Difference, Host, Vm};
use kopia_repo::Repository;

pub(crate) use self::journal::{InPlaceDisk, InPlaceWork, RestoreJournal, Scratch, Work};
pub use self::kept::{KeptVm, kept_vms, remove_due_vms};
pub use self::make::restore_vm;
pub(crate) use self::make::{ImportFiles, import_files, missing_above, on_target, registered, remove_scratch};
pub use self::obstacle::RestoreObstacle;
pub(crate) use self::obstacle::sort;
pub(crate) use self::place::join;
pub use self::plan::{PlannedDisk, Quote, RestorePlan, plan_restore};
pub(crate) use self::plan::{estimate, has_extension, probe};
pub(crate) use self::undo::{
    FolderOfVm, UnfinishedVm, remove_files_in, remove_made, remove_when_idle, unfinished_in_place, when_free, when_idle,
};
pub use self::undo::{open_restores, settle_restores};
use crate::observer::Observer;
use crate::point::Point;
use crate::state::HostState;
use crate::{BackupError, Cancel, RestoreReport};

/// What runs of restores on one host share.
#[derive(Clone, Copy)]
pub struct RestoreContext<'a> {
    /// The host.
    pub host: &'a Host,
    /// Where from.
    pub repo: &'a std::sync::Arc<Repository>,
    /// The host's locks and journals.
    pub state: &'a HostState,
    /// Who is told.
    pub observer: &'a dyn Observer,
    /// Who may stop it.
    pub cancel: &'a Cancel,
}

/// What a restored VM is to be. The defaults make a copy beside the original, or on another host: a new id, new
/// addresses, no network, off.
#[derive(Clone, Debug, Default)]
pub struct RestoreRequest {
    /// Its name; the stored one where nothing has it, else with `-restored` behind it.
    pub name: Option<String>,
    /// The host's folder that gets a folder for the VM; the one that held the original by default.
    pub folder: Option<String>,
    /// The stored id, addresses and network, in place of the VM that is gone or replaced.
    pub keep_id: bool,
    /// Replace a VM that has the id; it is kept for this many days.
    pub replace: Option<u32>,
    /// From the name or id of a switch it was connected to, to the name or id of one on this host.
    pub network: std::collections::BTreeMap<String, String>,
    /// No network adapter is connected.
    pub disconnect: bool,
    /// Only these disks, by number.
    pub disks: Option<Vec<u32>>,
    /// Build it from its settings in place of importing its configuration.
    pub from_settings: bool,
    /// Another number of processors.
    pub processors: Option<u64>,
    /// Another amount of start-up memory, in MiB.
    pub memory_mib: Option<u64>,
    /// Start it.
    pub power_on: bool,
}

/// A VM that was restored.
#[derive(Debug)]
pub struct RestoredVm {
    /// As the host lists it.
    pub vm: Vm,
    /// Its disks, in the plan's order: path on the host, and what was written.
    pub disks: Vec<(String, RestoreReport)>,
    /// What a person has to know of it, in sentences.
    pub warnings: Vec<String>,
    /// The stored definition against the VM's own.
    pub differences: Vec<Difference>,
    /// Whether it was started.
    pub started: bool,
    /// The VM that it replaced.
    pub kept: Option<KeptVm>,
}

/// Longest `vm.json` that is read.
const MAX_DEFINITION_BYTES: u64 = 64 << 20;

impl Point {
    /// `vm.json`: the VM's definition.
    pub fn definition(&self, repo: &Repository) -> Result<Definition, BackupError> {
        let entry = self.entry(repo, "vm.json")?;
        let json = repo.read_object(&kopia_repo::object_of(&entry)?, MAX_DEFINITION_BYTES)?;
        serde_json::from_slice(&json).map_err(|error| self.broken(format!("vm.json: {error}")))
    }
}

/// The host's files for writing, or why there are none.
pub(crate) fn writes_of(host: &Host) -> Result<&dyn hyperv::seam::HostWrites, BackupError> {
    host.seam().files.writes().ok_or_else(|| {
        let source = std::io::Error::from(std::io::ErrorKind::Unsupported);
        BackupError::host("write files of the host from here")(source)
    })
}

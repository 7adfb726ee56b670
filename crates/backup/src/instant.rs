//! A VM that runs from a point, on a Hyper-V host (spec hyperv 7, block-serving C.8).
//!
//! The point's disks come as `.vhdx` files on a volume over iSCSI. The VM's disks are local children of these: what its
//! guest writes is in the hands of Hyper-V alone. Meanwhile somebody copies the files to where they stay; then, with the
//! VM off, the copies become the parents, the volume goes, and the children are merged.
//!
//! ```text
//! begin ─ attach ─ make ─ start ─ … ─ finish          journalled, each before it is done (journal.rs)
//!   │        └ service, portal, login, disk on-line, volume in a folder
//!   └ a failure or a kill before the VM is made: undo, at once or by whoever comes next (settle_instant)
//! ```
//!
//! Once the VM is made only its operator ends it: what its guest wrote is nowhere else. After a kill or a restart of the
//! host [`InstantVm::open`] and [`InstantVm::attach`] go on.
//!
//! Not here: who serves the volume and who copies the files; a caller does, and names both by path.

mod finish;
mod journal;
mod make;
mod undo;

use hyperv::{Host, TargetLogin, Vm, VmId};
use vhdx::Guid;

use self::journal::InstantJournal;
pub use self::journal::{InstantDisk, InstantStage};
pub use self::make::plan_instant;
pub use self::undo::{InstantLeftover, instant_leftovers, settle_instant};
use crate::BackupError;
use crate::state::{HostState, VmLock};

/// A VM that runs from a point. The lock is held: nobody else works on it.
pub struct InstantVm<'a> {
    host: &'a Host,
    state: &'a HostState,
    journal: InstantJournal,
    _lock: VmLock,
}

impl<'a> InstantVm<'a> {
    /// Takes one up again; `None` when the host's state folder knows of no such session, or of none any more.
    pub fn open(host: &'a Host, state: &'a HostState, session: &str) -> Result<Option<Self>, BackupError> {
        if state.instant_journal(session)?.is_none() {
            return Ok(None);
        }
        let lock = state.lock_instant(session)?;
        let Some(journal) = state.instant_journal(session)? else { return Ok(None) };
        Ok(Some(Self { host, state, journal, _lock: lock }))
    }

    /// How far it is.
    pub fn stage(&self) -> InstantStage {
        self.journal.stage
    }

    /// Its disks, in the point's order.
    pub fn disks(&self) -> &[InstantDisk] {
        &self.journal.disks
    }

    /// The folder that is its alone.
    pub fn directory(&self) -> &str {
        &self.journal.directory
    }

    /// The VM's id, once it is made.
    pub fn vm_id(&self) -> Option<&str> {
        self.journal.made.as_deref()
    }

    /// Whether it is to run: it was started, and nobody asked for a stop.
    pub fn is_to_run(&self) -> bool {
        self.journal.is_to_run
    }

    /// The VM as the host lists it now; `None` before it is made, or when somebody has removed it.
    pub fn vm(&self) -> Result<Option<Vm>, BackupError> {
        let Some(id) = self.journal.made.as_ref().and_then(|id| id.parse::<VmId>().ok()) else { return Ok(None) };
        self.host.vm(&id).map_err(BackupError::host(format!("look at VM {}", self.journal.vm_name)))
    }

    /// Logs in to the target and shows its volume in the VM's folder; everything that is so already stays. Afterwards the
    /// files on the volume are known to be the bases of this VM's disks.
    pub fn attach(&mut self, login: &TargetLogin) -> Result<(), BackupError> {
        make::attach(self, login)
    }

    /// Takes the volume away and logs out. What is not there is a success; no VM may use it any more.
    pub fn detach(&mut self) -> Result<(), BackupError> {
        finish::detach(self)
    }

    /// Starts the VM, after looking once more whether every disk stands on its own base.
    pub fn start(&mut self) -> Result<(), BackupError> {
        make::start(self)
    }

    /// What the identity of the file at `path` is: [`InstantDisk::content_id`] for the disk's base and a whole copy of it.
    pub fn content_id(&self, path: &str) -> Result<Guid, BackupError> {
        Ok(make::file_info(self.host, path)?.data_write_guid)
    }

    /// Puts the VM on local files: copies become parents, the volume goes, children are merged. The VM is off, and every
    /// [`InstantDisk::local`] is whole. Cut off anywhere, it is called again. Nothing is left of the session on the host
    /// when it returns; with `starts` the VM runs.
    pub fn finish(&mut self, starts: bool) -> Result<(), BackupError> {
        finish::finish(self, starts)
    }

    /// Whether the volume still holds a base of one of its disks.
    pub fn needs_volume(&self) -> bool {
        self.journal.disks.iter().any(|disk| disk.step < journal::DiskStep::OnLocal)
    }

    /// Takes everything back: the VM, what its guest wrote, its folder, the volume, the login. Says in words what it did.
    pub fn discard(self) -> Result<Vec<String>, BackupError> {
        undo::undo(self)
    }

    fn save(&self) -> Result<(), BackupError> {
        self.state.write_instant(&self.journal)
    }

    fn failed(&self, what: &str) -> impl FnOnce(hyperv::Error) -> BackupError + use<'a> {
        BackupError::host(format!("{what} of VM {}", self.journal.vm_name))
    }
}

/// Why a VM must not be backed up now: it runs from a backup (spec hyperv 7.6). `None` for every other.
pub(crate) fn is_instant(state: &HostState, vm_id: &str) -> Result<Option<String>, BackupError> {
    let journals = state.instant_journals()?;
    let is_it = |journal: &InstantJournal| journal.made.as_ref().is_some_and(|id| id.eq_ignore_ascii_case(vm_id));
    Ok(journals.into_iter().find(is_it).map(|journal| {
        let session = journal.session.get(..8).unwrap_or(&journal.session).to_owned();
        format!("it runs from a backup; finish that first: `instant switch {session}`")
    }))
}

//! The host: its folder, its clock, and the one way in which anything changes it.

use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use hyperv::seam::{Clock, Seam};

use crate::clock::{HostClock, VIRTUAL_START_MS};
use crate::config_file;
use crate::error::LabError;
use crate::faults::{self, Fault};
use crate::files::LabFiles;
use crate::jobs;
use crate::merge;
use crate::names::NamedWmi;
use crate::options::LabOptions;
use crate::paths::WinPath;
use crate::provider::LabWmi;
use crate::security;
use crate::state::{Event, FileOp, HostState, new_guid};
use crate::store::{self, HostLock, Store};
use crate::tracking;
use crate::virt_disk::{FaultCounts, LabVirtDisk};

/// A simulated host in a folder. Cheap to share; every call takes the host's lock, also against other processes.
///
/// Paths are Windows paths: `C:\x` is `<folder>/c/x`.
pub struct LabHost {
    pub(crate) store: Store,
    pub(crate) clock: Arc<HostClock>,
    pub(crate) fault_counts: FaultCounts,
}

impl LabHost {
    /// Makes a host in a new or empty folder, with a virtual clock and the default behaviour.
    pub fn create(dir: impl AsRef<Path>) -> Result<Arc<Self>, LabError> {
        Self::create_with(dir, LabOptions::default())
    }

    /// Makes a host in a new or empty folder.
    pub fn create_with(dir: impl AsRef<Path>, options: LabOptions) -> Result<Arc<Self>, LabError> {
        check_options(&options)?;
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(LabError::io("create", dir))?;
        let root = dir.canonicalize().map_err(LabError::io("resolve", dir))?;
        if fs::read_dir(&root).map_err(LabError::io("list", dir))?.next().is_some() {
            return Err(LabError::NotEmpty(root));
        }
        store::prepare(&root)?;
        let drive = root.join("c");
        fs::create_dir_all(drive.join("VMs")).map_err(LabError::io("create", drive))?;
        let store = Store::new(root);
        let clock = HostClock::new(options.clock, VIRTUAL_START_MS);
        store.commit(&HostState::new(options, clock.unix_ms()))?;
        Ok(Arc::new(Self { store, clock: Arc::new(clock), fault_counts: FaultCounts::default() }))
    }

    /// Opens a host that exists. Jobs and merges that became due meanwhile are carried out by the next call.
    pub fn open(dir: impl AsRef<Path>) -> Result<Arc<Self>, LabError> {
        let dir = dir.as_ref();
        let root = dir.canonicalize().map_err(LabError::io("resolve", dir))?;
        let store = Store::new(root);
        let state = store.first_state()?;
        let clock = HostClock::new(state.options.clock, state.time_ms);
        Ok(Arc::new(Self { store, clock: Arc::new(clock), fault_counts: FaultCounts::default() }))
    }

    /// What the program under test is given. The names it uses are checked against the list of those it is known to use.
    pub fn seam(self: &Arc<Self>) -> Seam {
        let seam = self.plain_seam();
        Seam { wmi: Arc::new(NamedWmi::new(seam.wmi)), ..seam }
    }

    /// A seam for clients that are not the program under test: nobody notes the names they use.
    pub fn plain_seam(self: &Arc<Self>) -> Seam {
        Seam {
            wmi: Arc::new(LabWmi::new(self.clone())),
            virt_disk: Arc::new(LabVirtDisk::new(self.clone())),
            files: Arc::new(LabFiles::new(self.clone())),
            clock: self.clock.clone(),
        }
    }

    /// The host's clock; sleeping on it lets jobs and merges become due.
    pub fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.store.root()
    }

    /// The real file behind a Windows path.
    pub fn host_file(&self, path: &str) -> Result<std::path::PathBuf, LabError> {
        self.store.file(&WinPath::new(path))
    }

    /// How the host behaves.
    pub fn options(&self) -> Result<LabOptions, LabError> {
        self.transact(|tx| Ok(tx.options.clone()))
    }

    /// Changes how the host behaves. The kind of clock stays what it was at creation.
    pub fn set_options(&self, change: impl FnOnce(&mut LabOptions)) -> Result<(), LabError> {
        self.transact(|tx| {
            let mut options = tx.options.clone();
            change(&mut options);
            options.clock = tx.options.clock;
            check_options(&options)?;
            tx.edit().options = options;
            Ok(())
        })
    }

    /// The guardian of this host: what its key protectors are made for.
    pub fn guardian(&self) -> Result<String, LabError> {
        self.transact(|tx| Ok(tx.guardians[0].clone()))
    }

    /// Imports the certificates of another host's guardian, with their private keys.
    pub fn trust_guardian(&self, guardian: &str) -> Result<(), LabError> {
        self.transact(|tx| {
            tx.edit().guardians.push(guardian.to_owned());
            Ok(())
        })
    }

    /// A new key protector for this host's guardian, as the Host Guardian Service client makes one.
    pub fn new_key_protector(&self) -> Result<Vec<u8>, LabError> {
        let text = security::protector(&self.guardian()?, &new_guid());
        let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("protectors are hexadecimal digits");
        Ok((0..text.len()).step_by(2).map(byte).collect())
    }

    /// Adds a fault to `faults.json`.
    pub fn inject(&self, fault: Fault) -> Result<(), LabError> {
        let _turn = self.store.lock()?;
        let mut faults = faults::load(self.store.root())?;
        faults.push(fault);
        faults::save(self.store.root(), &faults)
    }

    /// Removes all faults.
    pub fn clear_faults(&self) -> Result<(), LabError> {
        let _turn = self.store.lock()?;
        faults::save(self.store.root(), &[])
    }

    /// The host's event log of merges.
    pub fn events(&self) -> Result<Vec<Event>, LabError> {
        self.transact(|tx| Ok(tx.events.clone()))
    }

    /// Files of disks, checkpoints and their companions that are on the drive although nothing refers to them: empty on
    /// a host that has come to rest.
    pub fn stray_files(&self) -> Result<Vec<String>, LabError> {
        self.transact(|tx| crate::actors::stray_files(tx))
    }

    /// Stops this `LabHost` dead at a change of the folder: 0 lets nothing more be written, 1 one more change, and so on.
    /// Every later call fails with [`LabError::Crashed`]; [`LabHost::open`] shows what a killed process leaves.
    pub fn crash_after_writes(&self, count: u64) {
        self.store.crash_after(count);
    }

    /// Runs one call under the host's lock: carries out what is due, then `body`, then commits what was edited.
    pub(crate) fn transact<R>(&self, body: impl FnOnce(&mut Tx<'_>) -> Result<R, LabError>) -> Result<R, LabError> {
        let mut lock = self.store.lock()?;
        let state = match lock.cache.take() {
            Some((_, state)) => state,
            None => self.store.read_state()?,
        };
        self.store.volumes.follow(&state.storage);
        self.clock.advance_to_ms(state.time_ms);
        let now_ms = self.clock.unix_ms().max(state.time_ms);
        let mut tx = Tx { store: &self.store, now_ms, call_ms: now_ms, state, edited: false, lock };
        tx.recover()?;
        tx.carry_out_what_is_due()?;
        let result = body(&mut tx)?;
        tx.commit()?;
        let Tx { state, mut lock, .. } = tx;
        *lock.cache = Some((self.store.version()?, state));
        Ok(result)
    }
}

fn check_options(options: &LabOptions) -> Result<(), LabError> {
    let unit = options.granularity_bytes;
    if !unit.is_power_of_two() || unit < 512 {
        return Err(LabError::refused("set options", format!("granularity of {unit} bytes")));
    }
    if options.host_name.is_empty() || !options.host_name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        return Err(LabError::refused("set options", format!("host name {:?}", options.host_name)));
    }
    Ok(())
}

/// One call of the host. Reads as the state; [`Tx::edit`] changes it.
pub(crate) struct Tx<'a> {
    pub(crate) store: &'a Store,
    /// The instant at which things happen: of the call, or of the job that is carried out late.
    pub(crate) now_ms: u64,
    /// The instant of the call.
    pub(crate) call_ms: u64,
    state: HostState,
    edited: bool,
    lock: HostLock<'a>,
}

impl Deref for Tx<'_> {
    type Target = HostState;

    fn deref(&self) -> &HostState {
        &self.state
    }
}

impl Tx<'_> {
    pub(crate) fn edit(&mut self) -> &mut HostState {
        self.edited = true;
        &mut self.state
    }

    /// Makes all edits so far the state of the host, then does the file work that goes with them.
    pub(crate) fn commit(&mut self) -> Result<(), LabError> {
        if self.edited {
            self.state.time_ms = self.state.time_ms.max(self.now_ms);
            self.store.commit(&self.state)?;
            self.edited = false;
            self.carry_out_redo()?;
        }
        Ok(())
    }

    /// Commits `undo` as what a later process must do if this one dies before the next commit.
    pub(crate) fn intend(&mut self, undo: Vec<FileOp>) -> Result<(), LabError> {
        self.edit().undo = undo;
        self.commit()
    }

    /// The intended changes are complete: the next commit makes them the host's.
    pub(crate) fn fulfil(&mut self) {
        self.edit().undo.clear();
    }

    /// The intended changes failed half-way: takes them back.
    pub(crate) fn take_back(&mut self) -> Result<(), LabError> {
        for op in self.state.undo.clone() {
            tracking::carry_out(self.store, &op)?;
        }
        self.edit().undo.clear();
        self.commit()
    }

    fn recover(&mut self) -> Result<(), LabError> {
        self.carry_out_redo()?;
        if self.state.undo.is_empty() { Ok(()) } else { self.take_back() }
    }

    fn carry_out_redo(&mut self) -> Result<(), LabError> {
        for op in std::mem::take(&mut self.state.redo) {
            match &op {
                FileOp::WriteConfiguration { vm } => {
                    // A VM that has been taken off since has no files of its own any more.
                    if let Some(vm) = self.state.vm(vm) {
                        config_file::write_vm(self.store, vm)?;
                    }
                }
                _ => tracking::carry_out(self.store, &op)?,
            }
        }
        Ok(())
    }

    /// Jobs and merges, each at its own instant, in order of time.
    fn carry_out_what_is_due(&mut self) -> Result<(), LabError> {
        let until_ms = self.now_ms;
        loop {
            let job = jobs::next_due(self).filter(|&(at, _)| at <= until_ms);
            let merge = merge::next_due(self).filter(|&(at, _)| at <= until_ms);
            match (job, merge) {
                (Some((at, index)), other) if other.is_none_or(|(merge_at, _)| at <= merge_at) => {
                    self.now_ms = at;
                    jobs::carry_out(self, index)?;
                }
                (_, Some((at, index))) => {
                    self.now_ms = at;
                    merge::carry_out(self, index)?;
                }
                _ => break,
            }
        }
        self.now_ms = until_ms;
        jobs::forget_expired(self);
        Ok(())
    }

    pub(crate) fn faults(&self) -> Result<Vec<Fault>, LabError> {
        faults::load(self.store.root())
    }
}

impl std::fmt::Debug for LabHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LabHost").field("folder", &self.folder()).finish_non_exhaustive()
    }
}

//! Application consistency of an attached guest: the part of the integration service.
//!
//! While a guest freezes it still writes, so the host's lock must not be held meanwhile, and the process that makes
//! the checkpoint need not be the one that has the guest. Both therefore talk through a small file beside `host.json`,
//! read and written under the host's lock: a job that wants a frozen guest says so and is put off; the service, a
//! thread beside the guest, sees it, freezes, and says that it did; the job then makes its checkpoint and says that it
//! is over; the service thaws.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::LabError;
use crate::host::{LabHost, Tx};
use crate::options::{ClockKind, JobStyle};
use crate::paths::WinPath;
use crate::state::{Action, CheckpointKind, Job, Power, VssBehaviour};
use crate::store::{Store, replace_cached};

/// How often the two sides look at what the other said.
const POLL_MS: u64 = 20;
/// A guest that is not frozen by then is not waited for.
const FREEZE_LIMIT_MS: u64 = 60_000;

/// What freezes a guest, as the backup integration service does.
pub trait GuestAgent: Send {
    /// Brings the guest's file systems to rest. The guest goes on writing until this returns, and stops by then. The
    /// error ends the checkpoint.
    fn freeze(&mut self) -> Result<(), String>;

    /// Lets the guest go on. Called after every `freeze` that worked; an error is followed by another call.
    fn thaw(&mut self) -> Result<(), String>;
}

/// What is in the file of an attachment that has an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    Idle,
    /// A job waits for the guest to be frozen.
    Wanted,
    Frozen,
    Failed(String),
    /// The checkpoint is made, or has failed: the guest can go on.
    Over,
}

/// That a guest is attached, seen by every process; the lock in it ends with this process.
pub(crate) struct Mark {
    file: PathBuf,
    _lock: File,
}

impl Mark {
    pub(crate) fn set(tx: &Tx<'_>, vm: &str, has_agent: bool) -> Result<Self, LabError> {
        let refused = |reason: &str| Err(LabError::refused("attach a guest", reason));
        let waits = tx.options.clock == ClockKind::System && tx.options.jobs == JobStyle::ByJob;
        if has_agent && !waits {
            return refused("an agent needs a host with the machine's clock and with jobs");
        }
        if tx.store.is_held(&lock_path(vm))? {
            return refused("this VM has a guest already");
        }
        let lock = tx.store.hold_handle(&lock_path(vm))?;
        let file = phase_file(tx.store, vm);
        let folder = file.parent().expect("it lies in a folder");
        fs::create_dir_all(folder).map_err(LabError::io("create", folder))?;
        match has_agent {
            true => write(tx.store, vm, &Phase::Idle)?,
            // One that was left behind by a process that was killed.
            false => remove(&file)?,
        }
        Ok(Self { file, _lock: lock })
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // What stays is taken for what it is: the mark of a process that was killed.
        let _ = remove(&self.file);
    }
}

/// Whether a job can do its work.
pub(crate) enum Gate {
    Open,
    /// Not before this instant; ask again then.
    Later(u64),
    /// The guest cannot take part, as the job's end says.
    Refused(String),
}

/// Asked before the work of every job. Only recovery checkpoints of level 1 wait for a guest.
pub(crate) fn gate(tx: &Tx<'_>, job: &Job) -> Result<Gate, LabError> {
    if !is_frozen_for(&job.action) {
        return Ok(Gate::Open);
    }
    let scripted = tx.vm(&job.vm).is_none_or(|vm| vm.power != Power::Running || vm.vss != VssBehaviour::Works);
    let Some(phase) = read(tx.store, &job.vm)?.filter(|_| !scripted) else { return Ok(Gate::Open) };
    if !tx.store.is_held(&lock_path(&job.vm))? {
        return Ok(Gate::Refused("The guest does not answer the integration service. (0x80042306)".into()));
    }
    Ok(match phase {
        Phase::Frozen => Gate::Open,
        Phase::Failed(why) => {
            write(tx.store, &job.vm, &Phase::Idle)?;
            Gate::Refused(format!("The guest could not be frozen: {why} (0x800423F4)"))
        }
        _ if tx.call_ms.saturating_sub(job.started_ms) > FREEZE_LIMIT_MS => {
            write(tx.store, &job.vm, &Phase::Over)?;
            Gate::Refused("The guest took too long to freeze. (0x800423F2)".into())
        }
        Phase::Idle => {
            write(tx.store, &job.vm, &Phase::Wanted)?;
            Gate::Later(tx.call_ms.saturating_add(POLL_MS))
        }
        Phase::Wanted | Phase::Over => Gate::Later(tx.call_ms.saturating_add(POLL_MS)),
    })
}

/// Told after the work of every job, whether it succeeded or not.
pub(crate) fn checkpoint_is_over(tx: &Tx<'_>, job: &Job) -> Result<(), LabError> {
    if is_frozen_for(&job.action) && read(tx.store, &job.vm)? == Some(Phase::Frozen) {
        write(tx.store, &job.vm, &Phase::Over)?;
    }
    Ok(())
}

fn is_frozen_for(action: &Action) -> bool {
    matches!(action, Action::Create { kind: CheckpointKind::Recovery, consistency_level: 1 })
}

/// The thread beside the guest.
pub(crate) struct Service {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    pub(crate) fn start(host: Arc<LabHost>, vm: String, agent: Box<dyn GuestAgent>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || attend(&host, &vm, agent, &stopped));
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn attend(host: &LabHost, vm: &str, mut agent: Box<dyn GuestAgent>, stop: &AtomicBool) {
    let mut frozen = false;
    // A host that cannot be asked is asked again; its own calls tell what is wrong with it.
    while !stop.load(Ordering::SeqCst) {
        let phase = host.transact(|tx| read(tx.store, vm));
        let next = match phase {
            Ok(Some(Phase::Wanted)) if !frozen => match agent.freeze() {
                Ok(()) => {
                    frozen = true;
                    Some((Phase::Wanted, Phase::Frozen))
                }
                Err(why) => Some((Phase::Wanted, Phase::Failed(why))),
            },
            // Also when nobody waits for a frozen guest any more.
            Ok(Some(Phase::Over | Phase::Idle)) if frozen && agent.thaw().is_ok() => {
                frozen = false;
                Some((Phase::Over, Phase::Idle))
            }
            Ok(Some(Phase::Over)) if !frozen => Some((Phase::Over, Phase::Idle)),
            _ => None,
        };
        if let Some((from, to)) = next {
            // Only if the other side has not given up meanwhile.
            let _ = host.transact(|tx| match read(tx.store, vm)? {
                Some(phase) if phase == from => write(tx.store, vm, &to),
                _ => Ok(()),
            });
        }
        std::thread::sleep(Duration::from_millis(POLL_MS));
    }
    if frozen {
        let _ = agent.thaw();
    }
}

/// No file of this name exists: only its lock is used.
fn lock_path(vm: &str) -> WinPath {
    WinPath::new(format!(r"C:\guest of {vm}"))
}

fn phase_file(store: &Store, vm: &str) -> PathBuf {
    store.root().join("guests").join(format!("{vm}.json"))
}

fn read(store: &Store, vm: &str) -> Result<Option<Phase>, LabError> {
    let path = phase_file(store, vm);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|source| LabError::State { path, source }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(LabError::io("read", path)(e)),
    }
}

fn write(store: &Store, vm: &str, phase: &Phase) -> Result<(), LabError> {
    store.before_write()?;
    replace_cached(&phase_file(store, vm), &serde_json::to_vec(phase).expect("has a JSON form"))
}

fn remove(file: &PathBuf) -> Result<(), LabError> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(LabError::io("delete", file)(e)),
        _ => Ok(()),
    }
}

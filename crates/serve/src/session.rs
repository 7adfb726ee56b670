//! Disks that are served together, from a restore point to plain files, across kills and losses of power.
//!
//! [`Session::create`], then [`serving`](Session::serving) once clients can reach it; [`begin_hydrating`], then
//! [`advance`](Session::advance) again and again until it is [`State::Local`]; [`finish`](Session::finish). At any time
//! [`discard`](Session::discard). After a restart [`Session::resume`], whatever it was doing.
//!
//! [`begin_hydrating`]: Session::begin_hydrating

mod error;
mod files;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use block_device::Device as _;

pub use error::SessionError;
use error::failed;
use files::{create_target, lock_folder, open_target, remove_session};
pub use files::{discard_session, is_served, read_session};

use crate::base::BaseError;
use crate::cache::{CachedBase, Lane};
use crate::device::{LayeredDevice, Target};
use crate::folder::{DiskFolder, Folder};
use crate::hydrate_map::{GRAIN_BYTES, HydrateMap, MAP_NAME, MapIdentity};
use crate::metrics::Metrics;
use crate::moving::{Hydrated, Pause, Switched};
use crate::overlay::{DiskKey, Identity, Overlay, OverlayError, OverlayOptions, OverlayStats};
use crate::prefetch::Prefetch;
use crate::state::{DiskState, Restarts, STATE_NAME, SessionState, State, hex, id_of};

/// Space that must be left at a target, of what it will take.
const SPARE: u64 = 20;

/// What a session is made of, besides its disks.
pub struct SessionParts {
    /// Folder of this session alone.
    pub folder: PathBuf,
    /// The repository's secret for overlays.
    pub secret: [u8; 32],
    /// This run of the operating system: [`os_boot_id`].
    pub boot_id: String,
    /// Sizes of the overlays.
    pub options: OverlayOptions,
    /// Where figures go.
    pub metrics: Arc<Metrics>,
}

/// A disk to be served.
pub struct NewDisk {
    /// The disk's id.
    pub disk: [u8; 16],
    /// The name it is served under.
    pub name: String,
    /// What it is at first.
    pub base: DiskBase,
}

/// A base as a session needs it.
#[derive(Clone)]
pub struct DiskBase {
    /// The base, through memory.
    pub base: Arc<CachedBase>,
    /// What fetches ahead of the guest, if anything does.
    pub prefetch: Option<Arc<Prefetch>>,
}

impl From<Arc<CachedBase>> for DiskBase {
    fn from(base: Arc<CachedBase>) -> Self {
        Self { base, prefetch: None }
    }
}

/// Disks of one restore point that are served.
///
/// Lock order: `state` comes before everything of a device.
pub struct Session {
    parts: SessionParts,
    /// Held by the one process that serves: two would write two ends to one log.
    _alone: File,
    folder: DiskFolder,
    state: Mutex<SessionState>,
    disks: Vec<SessionDisk>,
}

struct SessionDisk {
    id: [u8; 16],
    name: String,
    folder: Arc<dyn Folder>,
    device: Arc<LayeredDevice>,
}

impl Session {
    /// Begins a session. Each disk is probed by a read; nothing can be reached by clients yet.
    pub fn create(
        parts: SessionParts,
        session: [u8; 16],
        about: &About,
        disks: Vec<NewDisk>,
    ) -> Result<Self, SessionError> {
        let folder = DiskFolder::open_or_create(&parts.folder).map_err(failed("create", &parts.folder))?;
        let alone = lock_folder(&parts.folder)?;
        if SessionState::read(&folder).map_err(failed("read the state in", &parts.folder))?.is_some() {
            return Err(SessionError::Exists { folder: parts.folder.clone() });
        }
        let mut state =
            SessionState::new(session, &parts.boot_id, about.guest_is_elsewhere, &about.point_id, &about.vm_id);
        for disk in &disks {
            state.disks.push(DiskState {
                disk: hex(&disk.disk),
                name: disk.name.clone(),
                size_bytes: disk.base.base.base().size_bytes(),
                base: hex(&disk.base.base.base().identity()),
                target: None,
                is_local: false,
                others: serde_json::Map::new(),
            });
        }
        state.write(&folder).map_err(failed("write the state in", &parts.folder))?;
        let mut session = Self { parts, _alone: alone, folder, state: Mutex::new(state), disks: Vec::new() };
        for disk in disks {
            session.begin_disk(disk)?;
        }
        Ok(session)
    }

    /// Takes a session up again. `base_of` opens the base of a disk; it is not asked for disks that are local.
    ///
    /// Whether clients may be let in is told by [`State::is_serving`].
    pub fn resume(
        parts: SessionParts,
        base_of: &dyn Fn(&DiskState) -> Result<DiskBase, BaseError>,
    ) -> Result<Self, SessionError> {
        if !parts.folder.join(STATE_NAME).exists() {
            return Err(SessionError::Missing { folder: parts.folder.clone() });
        }
        let folder = DiskFolder::open_or_create(&parts.folder).map_err(failed("open", &parts.folder))?;
        let alone = lock_folder(&parts.folder)?;
        let state = SessionState::read(&folder).map_err(failed("read the state in", &parts.folder))?;
        let state = state.ok_or_else(|| SessionError::Missing { folder: parts.folder.clone() })?;
        if matches!(state.state, State::Stopping | State::Discarded | State::Finished) {
            return Err(SessionError::Over { state: state.state });
        }
        let is_kill = state.boot_id == parts.boot_id;
        let (listed, session_state) = (state.disks.clone(), state.state);
        let mut session = Self { parts, _alone: alone, folder, state: Mutex::new(state), disks: Vec::new() };
        for disk in &listed {
            if let Err(error) = session.take_up_disk(disk, session_state, base_of) {
                return Err(session.give_up(error));
            }
        }
        session.update(|state| {
            if is_kill {
                state.restarts.kill += 1;
            } else {
                state.restarts.power += 1;
                state.boot_id.clone_from(&session.parts.boot_id);
                // It may rely on writes that it was told are done and that are gone.
                if state.guest_is_elsewhere && state.state.may_become(State::NeedsRestart) {
                    state.state = State::NeedsRestart;
                }
            }
        })?;
        Ok(session)
    }

    /// Clients can reach the disks.
    pub fn serving(&self) -> Result<(), SessionError> {
        self.become_state(State::Serving)
    }

    /// The guest that outlived a loss of power has been restarted.
    pub fn guest_restarted(&self) -> Result<(), SessionError> {
        self.become_state(State::Serving)
    }

    /// Begins to move every disk to a file, in the order of the disks: a dynamic VHDX where the name ends so, else a raw
    /// image. A file that is there already is refused, unless this session has made it.
    pub fn begin_hydrating(&self, targets: &[PathBuf]) -> Result<(), SessionError> {
        if targets.len() != self.disks.len() {
            return Err(SessionError::Targets { asked: targets.len(), disks: self.disks.len() });
        }
        for (nth, (disk, path)) in self.disks.iter().zip(targets).enumerate() {
            let text = path.to_str().ok_or_else(|| SessionError::TargetName { path: path.clone() })?;
            let known = self.lock().disks[nth].target.clone();
            match known {
                Some(known) if known != text => return Err(SessionError::OtherTarget { known }),
                Some(_) => {}
                None if path.exists() => return Err(SessionError::TargetExists { path: path.clone() }),
                None => self.update(|state| state.disks[nth].target = Some(text.to_owned()))?,
            }
            if disk.device.hydrated().is_some() {
                continue;
            }
            self.check_space(disk, path)?;
            // Without a map nothing in the file counts.
            let made = create_target(path, disk.device.base().base())?;
            let map = HydrateMap::create(&*disk.folder, &self.map_identity(disk));
            let map = map.map_err(failed("create the hydration map for", path))?;
            disk.device.set_target(Target { disk: made, map });
        }
        self.become_state(State::Hydrating)
    }

    /// Does the next piece of moving the disks. Gives the state reached; nothing more comes of it after
    /// [`State::Local`].
    pub fn advance(&self, pause: Pause<'_>) -> Result<State, SessionError> {
        let state = self.state();
        match state {
            State::Hydrating => {
                let mut is_complete = true;
                for disk in self.disks.iter().filter(|disk| !disk.device.is_local()) {
                    let hydrated = disk.device.hydrate(pause)?;
                    if !hydrated.is_complete() {
                        is_complete = false;
                        break;
                    }
                }
                if is_complete {
                    self.become_state(State::Hydrated)?;
                }
            }
            State::Hydrated => self.become_state(State::Draining)?,
            State::Draining => {
                for disk in self.disks.iter().filter(|disk| !disk.device.is_local()) {
                    let mut sector = 0;
                    while let Some(next) = disk.device.drain(sector, pause)? {
                        sector = next;
                    }
                }
                self.become_state(State::Switching)?;
            }
            State::Switching => {
                for (nth, disk) in self.disks.iter().enumerate().filter(|(_, disk)| !disk.device.is_local()) {
                    let commit =
                        || self.update(|state| state.disks[nth].is_local = true).map_err(|error| error.to_string());
                    if disk.device.switch(&commit, pause)? == Switched::TooBusy {
                        self.become_state(State::Draining)?;
                        return Ok(State::Draining);
                    }
                }
                self.become_state(State::Local)?;
            }
            _ => {}
        }
        Ok(self.state())
    }

    /// Ends a session whose disks are local: what is left of it is deleted. No client may be connected any more.
    pub fn finish(self) -> Result<(), SessionError> {
        for disk in &self.disks {
            disk.device.flush()?;
        }
        self.become_state(State::Finished)?;
        let folder = self.parts.folder.clone();
        drop(self);
        remove_session(&folder).map_err(failed("remove", &folder))
    }

    /// Ends a session with everything that its guests wrote. Targets that were begun are deleted; those that are local
    /// disks already stay.
    pub fn discard(self) -> Result<(), SessionError> {
        self.become_state(State::Stopping)?;
        let folder = self.parts.folder.clone();
        drop(self);
        discard_session(&folder)
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.lock().state
    }

    /// All of its state.
    pub fn describe(&self) -> SessionState {
        self.lock().clone()
    }

    /// Its disks, by the names they are served under.
    pub fn disks(&self) -> impl Iterator<Item = (&str, &Arc<LayeredDevice>)> {
        self.disks.iter().map(|disk| (disk.name.as_str(), &disk.device))
    }

    /// To be called about once a second: notes what is durable, makes overlays shorter, and tells what is wrong.
    pub fn tend(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for disk in &self.disks {
            problems.extend(disk.device.base().trouble());
            let Some(overlay) = disk.device.overlay().filter(|_| !disk.device.is_local()) else { continue };
            let tended = overlay.mark().and_then(|()| overlay.compact());
            problems.extend(tended.err().map(|error| format!("{}: {error}", disk.name)));
        }
        problems
    }

    /// Notes that a person is needed, where that is so: an overlay that is not whole does not become so by itself.
    fn give_up(&self, error: SessionError) -> SessionError {
        use OverlayError::{Damaged, FlushedDataMissing, Foreign, Missing};
        if let SessionError::Overlay(Damaged { .. } | FlushedDataMissing { .. } | Foreign { .. } | Missing { .. }) =
            error
        {
            let reason = error.to_string();
            let noted = self.update(|state| (state.state, state.reason) = (State::Failed, Some(reason)));
            if let Err(error) = noted {
                tracing::warn!(%error, "that a session failed is not noted");
            }
        }
        error
    }

    /// How far the move of all disks is; `None` before it began.
    pub fn hydrated(&self) -> Option<Hydrated> {
        let all: Option<Vec<Hydrated>> = self.disks.iter().map(|disk| disk.device.hydrated()).collect();
        Some(all?.iter().fold(Hydrated { done_bytes: 0, total_bytes: 0 }, |sum, disk| Hydrated {
            done_bytes: sum.done_bytes + disk.done_bytes,
            total_bytes: sum.total_bytes + disk.total_bytes,
        }))
    }

    /// What the guests' writes take, of all disks that are not local.
    pub fn overlay_stats(&self) -> OverlayStats {
        let mut sum = OverlayStats::default();
        for disk in &self.disks {
            let Some(overlay) = disk.device.overlay().filter(|_| !disk.device.is_local()) else { continue };
            let stats = overlay.stats();
            sum.live_bytes += stats.live_bytes;
            sum.dead_bytes += stats.dead_bytes;
            sum.segments += stats.segments;
            sum.runs += stats.runs;
        }
        sum
    }

    /// The figures of this session in Prometheus' text format, those of its [`Metrics`] included.
    pub fn render_metrics(&self) -> String {
        let sum = self.overlay_stats();
        let in_flight: usize = self.disks.iter().map(|disk| disk.device.requests_in_flight()).sum();
        let Restarts { kill, power } = self.lock().restarts;
        let state = serde_json::to_string(&self.state()).unwrap_or_default();
        let gauges = [
            ("overlay_live_bytes".to_owned(), sum.live_bytes),
            ("overlay_dead_bytes".to_owned(), sum.dead_bytes),
            ("overlay_segments".to_owned(), sum.segments),
            ("hydrated_bytes".to_owned(), self.hydrated().map_or(0, |hydrated| hydrated.done_bytes)),
            ("requests_in_flight".to_owned(), in_flight as u64),
            (format!("sessions{{state={state}}}"), 1),
            ("restarts_total{cause=\"kill\"}".to_owned(), kill),
            ("restarts_total{cause=\"power\"}".to_owned(), power),
        ];
        let lines = gauges.iter().map(|(name, value)| format!("e3_serve_{name} {value}\n"));
        self.parts.metrics.render() + &lines.collect::<String>()
    }

    fn lock(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock().expect("no panic while held")
    }

    /// Changes the state, on disk first.
    fn update(&self, change: impl FnOnce(&mut SessionState)) -> Result<(), SessionError> {
        let mut state = self.lock();
        let mut next = state.clone();
        change(&mut next);
        next.write(&self.folder).map_err(failed("write the state in", &self.parts.folder))?;
        *state = next;
        Ok(())
    }

    fn become_state(&self, next: State) -> Result<(), SessionError> {
        let from = self.state();
        if !from.may_become(next) {
            return Err(SessionError::Transition { from, next });
        }
        self.update(|state| (state.state, state.reason) = (next, None))?;
        tracing::info!(session = %self.lock().session, ?from, ?next, "session");
        Ok(())
    }

    fn identity(&self, id: [u8; 16], base: &CachedBase) -> Result<Identity, SessionError> {
        let session = id_of(&self.lock().session).ok_or_else(|| self.damaged("its id is no id"))?;
        Ok(Identity {
            session,
            disk: id,
            size_bytes: base.base().size_bytes(),
            sector_bytes: base.base().sector_bytes(),
            base: base.base().identity(),
        })
    }

    fn map_identity(&self, disk: &SessionDisk) -> MapIdentity {
        MapIdentity {
            session: id_of(&self.lock().session).unwrap_or_default(),
            grain_bytes: GRAIN_BYTES,
            size_bytes: disk.device.size_bytes(),
            base: disk.device.base().base().identity(),
        }
    }

    fn disk_folder(&self, id: &[u8; 16]) -> Result<Arc<dyn Folder>, SessionError> {
        let path = self.parts.folder.join(hex(id));
        Ok(Arc::new(DiskFolder::open_or_create(&path).map_err(failed("create", &path))?))
    }

    fn begin_disk(&mut self, disk: NewDisk) -> Result<(), SessionError> {
        disk.base.base.read_exact_at(&mut [0; 512], 0, Lane::Foreground)?;
        let folder = self.disk_folder(&disk.disk)?;
        // What a crash before the first write left.
        for name in folder.list().map_err(failed("list", &self.parts.folder))? {
            folder.remove(&name).map_err(failed("clear", &self.parts.folder))?;
        }
        let identity = self.identity(disk.disk, &disk.base.base)?;
        let key = DiskKey::derive(&self.parts.secret, &identity.session, &identity.disk);
        let overlay = Overlay::create(folder.clone(), identity, key, self.parts.options)?;
        self.add_disk(disk, folder, Some(overlay));
        Ok(())
    }

    fn add_disk(&mut self, disk: NewDisk, folder: Arc<dyn Folder>, overlay: Option<Overlay>) -> Arc<LayeredDevice> {
        let DiskBase { base, prefetch } = disk.base;
        let mut device = LayeredDevice::new(base, overlay.map(Arc::new), self.parts.metrics.clone());
        if let Some(prefetch) = prefetch {
            device = device.with_prefetch(prefetch);
        }
        let device = Arc::new(device);
        self.disks.push(SessionDisk { id: disk.disk, name: disk.name, folder, device: device.clone() });
        device
    }

    fn take_up_disk(
        &mut self,
        disk: &DiskState,
        state: State,
        base_of: &dyn Fn(&DiskState) -> Result<DiskBase, BaseError>,
    ) -> Result<(), SessionError> {
        let id = id_of(&disk.disk).ok_or_else(|| self.damaged("a disk's id is no id"))?;
        let base = base_of(disk)?;
        if hex(&base.base.base().identity()) != disk.base {
            return Err(SessionError::OtherBase { disk: disk.name.clone() });
        }
        let new = NewDisk { disk: id, name: disk.name.clone(), base };
        if state == State::Created {
            return self.begin_disk(new);
        }
        let folder = self.disk_folder(&id)?;
        let target = disk.target.as_ref().map(PathBuf::from);
        if disk.is_local {
            let path = target.ok_or_else(|| self.damaged("a local disk has no file"))?;
            let local = open_target(&path)?;
            self.add_disk(new, folder, None).set_local(local);
            return Ok(());
        }
        let identity = self.identity(id, &new.base.base)?;
        let key = DiskKey::derive(&self.parts.secret, &identity.session, &identity.disk);
        let overlay = Overlay::recover(folder.clone(), identity, key, self.parts.options)?;
        let device = self.add_disk(new, folder.clone(), Some(overlay));
        let Some(path) = target else { return Ok(()) };
        let names = folder.list().map_err(failed("list", &self.parts.folder))?;
        if names.iter().any(|name| name == MAP_NAME) {
            let identity = self.map_identity(&self.disks[self.disks.len() - 1]);
            let map = HydrateMap::open(&*folder, &identity).map_err(failed("open the hydration map of", &path))?;
            device.set_target(Target { disk: open_target(&path)?, map });
        }
        Ok(())
    }

    /// What is missing at the target and held in the overlay must fit, and a little more.
    fn check_space(&self, disk: &SessionDisk, path: &Path) -> Result<(), SessionError> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let free = DiskFolder::open_or_create(folder).map_err(failed("open", folder))?.free_bytes();
        let needed = disk.device.size_bytes() + disk.device.overlay().map_or(0, |overlay| overlay.held_data_bytes());
        let needed = needed + needed / SPARE;
        match free {
            Some(free_bytes) if free_bytes < needed => {
                Err(SessionError::NoSpace { path: path.into(), needed_bytes: needed, free_bytes })
            }
            _ => Ok(()),
        }
    }

    fn damaged(&self, problem: &'static str) -> SessionError {
        SessionError::Damaged { folder: self.parts.folder.clone(), problem }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<String> = self.disks.iter().map(|disk| hex(&disk.id)).collect();
        f.debug_struct("Session").field("folder", &self.parts.folder).field("disks", &ids).finish_non_exhaustive()
    }
}

/// What a session is for.
#[derive(Clone, Debug)]
pub struct About {
    /// The restore point.
    pub point_id: String,
    /// The VM.
    pub vm_id: String,
    /// Whether guests may run on another machine than this.
    pub guest_is_elsewhere: bool,
}

/// An id that no other session has.
pub fn new_session_id() -> [u8; 16] {
    random::bytes()
}

/// An id as states and folders name it: 32 hex digits.
pub fn id_text(id: &[u8; 16]) -> String {
    hex(id)
}

/// What tells one run of the operating system from the next; `None` where there is nothing of that kind, and then every
/// restart has to be taken for a loss of power.
pub fn os_boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

//! The keeper of a session whose VM runs under Hyper-V: serves the volume that its disks stand on, copies their files to
//! where they stay, and puts the VM on these, as its operator wants.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backup::instant::InstantVm;
use hyperv::{Host, VmState};
use serve::folder::DiskFolder;
use serve::{DEFAULT_BYTES_PER_SECOND, Hydrated, Session, State, StreamCopy, id_of};

use super::copying::{CopiedFile, Copying};
use super::keeper::Ending;
use super::record::{Figures, LastWanted, Refusal, Wanted};
use crate::failure::{Attempt as _, Failure, chain_text};
use crate::serving::{Sources, Transport};

const GRACE: Duration = Duration::from_secs(10);
const TEND_EVERY: Duration = Duration::from_secs(1);
/// How long a guest may take to shut down before it is asked again.
const SHUT_DOWN_WITHIN: Duration = Duration::from_secs(180);
/// What does not go on is tried again so often: a copy that cannot begin, a finish that waits for the VM's operator.
const TRY_EVERY: Duration = Duration::from_secs(2);

/// What is kept.
pub struct HypervKeeper<'a> {
    /// The session's folder.
    pub folder: PathBuf,
    /// The point that it stands on.
    pub sources: Sources,
    /// Its volume.
    pub session: Session,
    /// What the host's initiator is connected to.
    pub transport: Transport,
    /// The host.
    pub host: &'a Host,
    /// The VM, with the host's journal of it.
    pub vm: InstantVm<'a>,
    /// When it was asked for.
    pub begun: Instant,
}

impl HypervKeeper<'_> {
    /// Serves until the session ends or `is_stopped` says so. `tell` is told what is wrong and what changes, about once
    /// a second.
    ///
    /// Nobody else shows the VM its disks: whatever fails while it runs is told, and tried again.
    pub fn keep(
        mut self,
        is_stopped: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(State, &Figures),
        look_every: Duration,
    ) -> Result<Ending, Failure> {
        let what = "keep the instant session";
        let on = self.folder.display().to_string();
        let mut figures = Figures { process_id: std::process::id(), ..Figures::default() };
        let mut copying: Option<Copying> = None;
        let (mut last_wanted, mut asked_guest) = (LastWanted::default(), None);
        let (mut last_tended, mut last_copied, mut last_tried) = (None, None, None);
        let ending = loop {
            if is_stopped() {
                break Ending::Stopped;
            }
            let wanted = last_wanted.look(&self.folder);
            if wanted.discard {
                break Ending::Discarded;
            }
            if wanted.move_to.is_none() {
                (figures.refusal, last_copied) = (None, None);
            } else if figures.refusal.is_none() || is_due(last_copied, TRY_EVERY) {
                last_copied = Some(Instant::now());
                figures.refusal = self.copy(&wanted, &mut copying).err();
            }
            figures.note_first_read(self.begun, &self.sources);
            let is_whole = copying.as_ref().is_some_and(Copying::is_done);
            if !wanted.switch {
                figures.waits_for = None;
            } else if is_whole && is_due(last_tried, TRY_EVERY) {
                last_tried = Some(Instant::now());
                figures.waits_for = match self.is_off(wanted.shut_down, &mut asked_guest) {
                    Ok(()) => {
                        figures.stage = Some(State::Switching);
                        figures.publish(&self.folder);
                        tell(State::Switching, &figures);
                        match self.vm.finish(wanted.shut_down) {
                            Ok(()) => break Ending::Finished,
                            // Every step of it may be repeated. Somebody may have started the VM meanwhile: without the
                            // volume it would have no disks.
                            Err(error) => Some(chain_text(&error)),
                        }
                    }
                    Err(reason) => Some(reason),
                };
            }
            if is_due(last_tended, TEND_EVERY) {
                last_tended = Some(Instant::now());
                figures.stage = Some(match (&copying, is_whole) {
                    (_, true) => State::Hydrated,
                    (Some(_), false) => State::Hydrating,
                    (None, false) => State::Serving,
                });
                self.tend(&mut figures, copying.as_ref());
                figures.trouble.extend(last_wanted.trouble().cloned());
                figures.publish(&self.folder);
                tell(figures.stage.unwrap_or(State::Serving), &figures);
            }
            std::thread::sleep(look_every);
        };
        drop(copying);
        let Self { session, transport, vm, .. } = self;
        if ending == Ending::Discarded {
            vm.discard().attempt("take back the VM", &*on)?;
        }
        let flushed = transport.shutdown(GRACE);
        match ending {
            Ending::Stopped => flushed.attempt(what, on)?,
            // What is left is what the host's file system noted on the volume.
            Ending::Finished | Ending::Discarded => session.discard().attempt(what, on)?,
        }
        Ok(ending)
    }

    /// Begins to copy, or goes on at another rate.
    fn copy(&self, wanted: &Wanted, copying: &mut Option<Copying>) -> Result<(), Refusal> {
        let rate = wanted.bytes_per_second.unwrap_or(DEFAULT_BYTES_PER_SECOND);
        if let Some(copying) = copying {
            copying.set_rate(rate);
            return Ok(());
        }
        let (mut files, mut before) = (Vec::new(), Hydrated { done_bytes: 0, total_bytes: 0 });
        for disk in self.vm.disks() {
            if self.host.seam().files.facts(&disk.local).is_ok() {
                before.done_bytes += disk.len_bytes;
                before.total_bytes += disk.len_bytes;
                continue;
            }
            let partial = format!("{}.partial", disk.local);
            self.check_space(disk.len_bytes, &partial)?;
            let copy = self.begin_copy(disk.number, &partial)?;
            files.push(CopiedFile { copy, partial, local: disk.local.clone() });
        }
        let begun = Copying::start(self.host.clone(), files, before, rate);
        *copying = Some(begun.map_err(|error| format!("copy the disks: {error}"))?);
        Ok(())
    }

    fn begin_copy(&self, number: u32, partial: &str) -> Result<StreamCopy, String> {
        let writes = self.host.seam().files.writes().ok_or("files of the host cannot be written from here")?;
        let described = self.sources.description.disks.iter().find(|disk| disk.number == number);
        let described = described.ok_or_else(|| format!("the point has no disk {number}"))?;
        let path = writes.local_path(partial).map_err(|error| format!("{partial}: {error}"))?;
        let name =
            path.file_name().and_then(|name| name.to_str()).ok_or_else(|| format!("{partial} is no file name"))?;
        let session = self.session.describe().session;
        let session = id_of(&session).ok_or_else(|| format!("{session:?} is no session's id"))?;
        let source = self.sources.stream(described).map_err(|error| error.to_string())?;
        let (_, volume) = self.session.disks().next().ok_or("the session has no volume")?;
        let begin = || {
            let maps = DiskFolder::open_or_create(&self.folder.join(format!("copy-{number}")))?;
            let target = DiskFolder::open_or_create(path.parent().unwrap_or(Path::new(".")))?;
            StreamCopy::open(source, volume.base().clone(), session, &maps, &target, name)
        };
        begin().map_err(|error| format!("begin the copy {partial}: {error}"))
    }

    fn check_space(&self, needed: u64, path: &str) -> Result<(), Refusal> {
        if self.host.seam().files.facts(path).is_ok() {
            // Begun with room.
            return Ok(());
        }
        match self.host.seam().files.free_bytes(path) {
            Ok(free) if free < needed => {
                let text = format!("{path} takes {needed} bytes, and {free} are free");
                Err(Refusal { is_no_space: true, text })
            }
            _ => Ok(()),
        }
    }

    /// Whether the VM is off; if not, what is waited for. Asks its guest to shut down, if that is wanted, and does not
    /// wait for it: `asked` is when it was asked.
    fn is_off(&self, shuts_down: bool, asked: &mut Option<Instant>) -> Result<(), String> {
        let Some(vm) = self.vm.vm().map_err(|error| chain_text(&error))? else {
            return Err("its VM is no longer on the host: end the session with `instant discard`".to_owned());
        };
        if vm.state == VmState::Off {
            *asked = None;
            return Ok(());
        }
        if !shuts_down {
            return Err("its VM has to be off; it is waited for".to_owned());
        }
        if asked.is_none_or(|asked| asked.elapsed() >= SHUT_DOWN_WITHIN) {
            let reason = "its disks are put on local files";
            let is_off = self.host.shut_down_guest(&vm, reason, Duration::ZERO).map_err(|error| chain_text(&error))?;
            if is_off {
                return Ok(());
            }
            if asked.replace(Instant::now()).is_some() {
                return Err("its guest does not shut down; turn the VM off".to_owned());
            }
        }
        Err("its guest was asked to shut down; it is waited for".to_owned())
    }

    fn tend(&self, figures: &mut Figures, copying: Option<&Copying>) {
        figures.observe(&self.transport, &self.sources, &self.session);
        figures.note_moved(copying.map(Copying::copied), copying.and_then(Copying::time_left));
        figures.trouble.extend(copying.and_then(Copying::trouble));
        figures.trouble.extend(figures.waits_for.clone());
    }
}

fn is_due(last: Option<Instant>, every: Duration) -> bool {
    last.is_none_or(|last| last.elapsed() >= every)
}

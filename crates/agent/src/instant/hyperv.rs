//! The keeper of a session whose VM runs under Hyper-V: serves the volume that its disks stand on, copies their files to
//! where they stay, and puts the VM on these, as its operator wants.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use backup::PointDisk;
use backup::instant::InstantVm;
use hyperv::{Host, VmState};
use serve::{DEFAULT_BYTES_PER_SECOND, Hydrated, Session, State, StreamCopy};

use super::copying::{CopiedFile, Copying};
use super::keeper::Ending;
use super::record::{Figures, Wanted};
use crate::failure::{Attempt as _, Failure};
use crate::serving::{Sources, Transport};

const GRACE: Duration = Duration::from_secs(10);
const TEND_EVERY: Duration = Duration::from_secs(1);
/// How long a guest may take to shut down before it is asked again.
const SHUT_DOWN_WITHIN: Duration = Duration::from_secs(180);
/// What a finish needs of the VM's operator is looked for so often.
const FINISH_EVERY: Duration = Duration::from_secs(2);

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
    pub fn keep(
        self,
        is_stopped: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(State, &Figures),
        look_every: Duration,
    ) -> Result<Ending, Failure> {
        let what = "keep the instant session";
        let on = self.folder.display().to_string();
        let mut figures = Figures { process_id: std::process::id(), ..Figures::default() };
        let mut copying: Option<Copying> = None;
        let (mut last_tended, mut last_tried) = (None::<Instant>, None::<Instant>);
        let ending = loop {
            if is_stopped() {
                break Ending::Stopped;
            }
            let wanted = Wanted::read(&self.folder).attempt(what, &*on)?;
            if wanted.discard {
                break Ending::Discarded;
            }
            if wanted.move_to.is_some() {
                figures.refused = self.copy(&wanted, &mut copying).err();
            }
            figures.note_first_read(self.begun, &self.sources);
            let is_whole = copying.as_ref().is_some_and(Copying::is_done);
            let is_due = last_tried.is_none_or(|last| last.elapsed() >= FINISH_EVERY);
            if wanted.switch && is_whole && is_due {
                last_tried = Some(Instant::now());
                figures.refused = None;
                match self.is_off(&wanted) {
                    Ok(true) => break Ending::Finished,
                    Ok(false) => figures.waits_for = Some("its VM has to be off; it is waited for".to_owned()),
                    Err(problem) => figures.waits_for = Some(problem),
                }
            }
            if last_tended.is_none_or(|last| last.elapsed() >= TEND_EVERY) {
                last_tended = Some(Instant::now());
                figures.stage = Some(match (&copying, is_whole) {
                    (_, true) => State::Hydrated,
                    (Some(_), false) => State::Hydrating,
                    (None, false) => State::Serving,
                });
                self.tend(&mut figures, copying.as_ref());
                figures.write(&self.folder).attempt(what, &*on)?;
                tell(figures.stage.unwrap_or(State::Serving), &figures);
            }
            std::thread::sleep(look_every);
        };
        drop(copying);
        let wanted = Wanted::read(&self.folder).attempt(what, &*on)?;
        let Self { folder, session, transport, mut vm, .. } = self;
        match ending {
            Ending::Stopped => {}
            Ending::Finished => {
                figures.stage = Some(State::Switching);
                figures.write(&folder).attempt(what, &*on)?;
                tell(State::Switching, &figures);
                vm.finish(wanted.shut_down).attempt("put the VM on local files", &*on)?;
            }
            Ending::Discarded => {
                vm.discard().attempt("take back the VM", &*on)?;
            }
        }
        let flushed = transport.shutdown(GRACE);
        match ending {
            Ending::Stopped => flushed.attempt(what, on)?,
            // What is left is what the host's file system noted on the volume.
            Ending::Finished | Ending::Discarded => session.discard().attempt(what, on)?,
        }
        Ok(ending)
    }

    /// Begins to copy, or goes on at another rate. The error is for the operator.
    fn copy(&self, wanted: &Wanted, copying: &mut Option<Copying>) -> Result<(), String> {
        let rate = wanted.bytes_per_second.unwrap_or(DEFAULT_BYTES_PER_SECOND);
        if let Some(copying) = copying {
            copying.set_rate(rate);
            return Ok(());
        }
        let writes = self.host.seam().files.writes().ok_or("files of the host cannot be written from here")?;
        let described = |number| self.sources.description.disks.iter().find(|disk: &&PointDisk| disk.number == number);
        let (mut files, mut before) = (Vec::new(), Hydrated { done_bytes: 0, total_bytes: 0 });
        for disk in self.vm.disks() {
            if self.host.seam().files.facts(&disk.local).is_ok() {
                before.done_bytes += disk.len_bytes;
                before.total_bytes += disk.len_bytes;
                continue;
            }
            let described = described(disk.number).ok_or_else(|| format!("the point has no disk {}", disk.number))?;
            let partial = format!("{}.partial", disk.local);
            let path = writes.local_path(&partial).map_err(|error| format!("{partial}: {error}"))?;
            self.check_space(disk.len_bytes, &partial)?;
            let source = self.sources.stream(described).map_err(|error| error.to_string())?;
            let session = u128::from_str_radix(&self.session.describe().session, 16).unwrap_or_default().to_be_bytes();
            let map_folder = self.folder.join(format!("copy-{}", disk.number));
            let copy = StreamCopy::open(source, session, &map_folder, &path);
            let copy = copy.map_err(|error| format!("begin the copy {partial}: {error}"))?;
            files.push(CopiedFile { copy, partial, local: disk.local.clone() });
        }
        let begun = Copying::start(self.host.clone(), files, before, rate);
        *copying = Some(begun.map_err(|error| format!("copy the disks: {error}"))?);
        Ok(())
    }

    fn check_space(&self, needed: u64, path: &str) -> Result<(), String> {
        if self.host.seam().files.facts(path).is_ok() {
            // Begun with room.
            return Ok(());
        }
        match self.host.seam().files.free_bytes(path) {
            Ok(free) if free < needed => Err(format!("{path} takes {needed} bytes, and {free} are free")),
            _ => Ok(()),
        }
    }

    /// Whether the VM is off; shuts its guest down, if that is wanted.
    fn is_off(&self, wanted: &Wanted) -> Result<bool, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let Some(vm) = self.vm.vm().map_err(|error| text(&error))? else {
            return Err("its VM is no longer on the host: end the session with `instant discard`".to_owned());
        };
        if vm.state == VmState::Off {
            return Ok(true);
        }
        if !wanted.shut_down {
            return Ok(false);
        }
        let reason = "its disks are put on local files";
        let is_off = self.host.shut_down_guest(&vm, reason, SHUT_DOWN_WITHIN).map_err(|error| text(&error))?;
        if is_off { Ok(true) } else { Err("its guest does not shut down; turn the VM off".to_owned()) }
    }

    fn tend(&self, figures: &mut Figures, copying: Option<&Copying>) {
        figures.observe(&self.transport, &self.sources, &self.session);
        figures.note_moved(copying.map(Copying::copied), copying.and_then(Copying::time_left));
        figures.trouble.extend(copying.and_then(Copying::trouble));
        figures.trouble.extend(figures.waits_for.clone());
    }
}

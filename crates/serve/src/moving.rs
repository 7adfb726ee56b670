//! Moving a disk to where it stays, while a guest uses it (spec block-serving C.7).
//!
//! *Hydration* copies the base, grain by grain. A *drain* moves what the guest wrote. A *switch* holds the guest for a
//! moment, drains the rest, and leaves the disk on its target alone. A copy of the base can be made again at any time; a
//! guest's write exists once, so each step is durable before the next one relies on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use block_device::{Device, DeviceError, DeviceErrorKind, Zeroing};

use crate::cache::Lane;
use crate::device::{LayeredDevice, StandsOn, Target, base_error, overlay_error};
use crate::overlay::{Content, Overlay, OverlayError};

const SECTOR_BYTES: u64 = 512;
/// Grains made durable together.
const HYDRATE_BATCH_BYTES: u64 = 64 << 20;
/// Data drained together.
const DRAIN_BATCH_BYTES: u64 = 8 << 20;
/// What a switch may leave for the moment in which the guest is held.
const SWITCH_BELOW_BYTES: u64 = 64 << 20;
/// How long a switch waits for requests in flight.
const HOLD: Duration = Duration::from_secs(1);
/// How long it holds the guest at most.
const LONGEST_HOLD: Duration = Duration::from_secs(5);

/// A step that was just done, told to who may want to pause, or to stop by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A grain was copied.
    GrainCopied,
    /// A grain is zero: there was nothing to copy.
    GrainSkipped,
    /// Copied grains are durable in the target.
    GrainsDurable,
    /// Copied grains are noted in the map.
    GrainsNoted,
    /// A batch was taken from the overlay.
    BatchTaken,
    /// The map is durable.
    MapDurable,
    /// The batch is in the target.
    BatchCopied,
    /// The batch is durable there.
    BatchDurable,
    /// The overlay has forgotten the batch.
    BatchForgotten,
    /// Requests are held.
    Held,
}

/// Between steps.
pub type Pause<'p> = &'p (dyn Fn(Step) -> Result<(), MoveError> + 'p);

/// How far hydration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hydrated {
    /// Bytes of the base that are in the target.
    pub done_bytes: u64,
    /// All of them.
    pub total_bytes: u64,
}

impl Hydrated {
    /// Whether nothing is missing.
    pub fn is_complete(&self) -> bool {
        self.done_bytes >= self.total_bytes
    }
}

/// What became of an attempt to switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switched {
    /// The disk is its target.
    Local,
    /// The guest would have been held too long; it goes on as before. Try again later.
    TooBusy,
}

impl LayeredDevice {
    /// Copies up to 64 MiB of what is missing. What fails for one grain fails the call: the next one tries it again.
    pub fn hydrate(&self, pause: Pause<'_>) -> Result<Hydrated, MoveError> {
        let target = self.target()?;
        let _one = self.moving.lock().expect("no panic while held");
        let mut grains = Vec::new();
        let mut next = 0;
        while let Some(grain) = target.map.next_missing(next) {
            if grains.len() as u64 * target.map.grain_bytes() >= HYDRATE_BATCH_BYTES {
                break;
            }
            grains.push(grain);
            next = grain + 1;
        }
        self.hydrate_grains(&target, &grains, pause)?;
        let done_bytes = (target.map.hydrated() * target.map.grain_bytes()).min(self.size_bytes());
        Ok(Hydrated { done_bytes, total_bytes: self.size_bytes() })
    }

    /// How far hydration is; `None` before it began.
    pub fn hydrated(&self) -> Option<Hydrated> {
        match self.stands_on() {
            StandsOn::Layers(Some(target)) => {
                let done_bytes = (target.map.hydrated() * target.map.grain_bytes()).min(self.size_bytes());
                Some(Hydrated { done_bytes, total_bytes: self.size_bytes() })
            }
            StandsOn::Local(_) => Some(Hydrated { done_bytes: self.size_bytes(), total_bytes: self.size_bytes() }),
            StandsOn::Layers(None) | StandsOn::Unknown(_) => None,
        }
    }

    /// Moves what the guest wrote from `sector` on, about 8 MiB; gives the sector to go on from, or `None` at the end.
    pub fn drain(&self, sector: u64, pause: Pause<'_>) -> Result<Option<u64>, MoveError> {
        let target = self.target()?;
        let _one = self.moving.lock().expect("no panic while held");
        self.drain_batch(&target, sector, pause)
    }

    /// Leaves the disk on its target alone, if it is hydrated and can be drained without holding the guest for long.
    /// `commit` makes durable, before it returns, that the target is what counts from now on.
    ///
    /// When `commit` fails it may or may not be so; then the disk serves nothing until a restart has looked.
    pub fn switch(&self, commit: &dyn Fn() -> Result<(), String>, pause: Pause<'_>) -> Result<Switched, MoveError> {
        let target = self.target()?;
        let overlay = self.overlay_for_writes()?.clone();
        let _one = self.moving.lock().expect("no panic while held");
        if target.map.next_missing(0).is_some() {
            return Err(MoveError::NotHydrated);
        }
        let mut rounds = 0;
        while overlay.held_data_bytes() >= SWITCH_BELOW_BYTES {
            self.drain_all(&target, pause, None)?;
            rounds += 1;
            if rounds == 3 {
                return Ok(Switched::TooBusy);
            }
        }
        let Some(closed) = self.gate.close(HOLD) else { return Ok(Switched::TooBusy) };
        let deadline = Instant::now() + LONGEST_HOLD;
        pause(Step::Held)?;
        if !self.drain_all(&target, pause, Some(deadline))? {
            return Ok(Switched::TooBusy);
        }
        target.disk.flush()?;
        target.map.sync().map_err(MoveError::map("flush"))?;
        pause(Step::BatchDurable)?;
        let local = match commit() {
            Ok(()) => StandsOn::Local(target.disk.clone()),
            Err(problem) => StandsOn::Unknown(problem),
        };
        let failed = match &local {
            StandsOn::Unknown(problem) => Some(problem.clone()),
            _ => None,
        };
        *self.stands_on.write().expect("no panic while held") = local;
        drop(closed);
        match failed {
            None => Ok(Switched::Local),
            Some(problem) => Err(MoveError::Commit { problem }),
        }
    }

    /// Drains from the first sector to the last; `false` when the deadline passed before nothing was left.
    fn drain_all(&self, target: &Target, pause: Pause<'_>, deadline: Option<Instant>) -> Result<bool, MoveError> {
        let mut sector = 0;
        while let Some(next) = self.drain_batch(target, sector, pause)? {
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                return Ok(false);
            }
            sector = next;
        }
        Ok(deadline.is_none() || self.overlay_for_writes()?.is_empty())
    }

    fn drain_batch(&self, target: &Target, sector: u64, pause: Pause<'_>) -> Result<Option<u64>, MoveError> {
        let overlay: &Arc<Overlay> = self.overlay_for_writes()?;
        let Some(batch) = overlay.batch_from(sector, DRAIN_BATCH_BYTES)? else { return Ok(None) };
        let bytes = batch.sectors().start * SECTOR_BYTES..batch.sectors().end * SECTOR_BYTES;
        pause(Step::BatchTaken)?;
        // Reads that looked before the guest wrote may be on their way to the target; later ones find the overlay.
        drop(self.locks.exclusive(bytes.clone()));
        let grain_bytes = target.map.grain_bytes();
        let mut grains = Vec::new();
        for (sectors, _) in batch.parts() {
            let first = sectors.start * SECTOR_BYTES / grain_bytes;
            let last = (sectors.end * SECTOR_BYTES - 1) / grain_bytes;
            grains.extend((first..=last).filter(|grain| !target.map.is_hydrated(*grain)));
        }
        grains.dedup();
        self.hydrate_grains(target, &grains, pause)?;
        // A bit lost now would bring the base over what is written next.
        target.map.sync().map_err(MoveError::map("flush"))?;
        pause(Step::MapDurable)?;
        for (nth, (sectors, content)) in batch.parts().enumerate() {
            let range = sectors.start * SECTOR_BYTES..sectors.end * SECTOR_BYTES;
            match content {
                Content::Data => target.disk.write_at(&batch.read(nth)?, range.start)?,
                Content::Zero => target.disk.zero(range, Zeroing::MayDeallocate)?,
            }
        }
        pause(Step::BatchCopied)?;
        target.disk.flush()?;
        pause(Step::BatchDurable)?;
        overlay.drained(&batch)?;
        self.metrics.drained(batch.data_bytes());
        pause(Step::BatchForgotten)?;
        Ok(Some(batch.sectors().end))
    }

    /// Copies grains that are missing, in ascending order. With `moving` held: a grain is never copied twice at a time,
    /// and never after something else was written to it.
    fn hydrate_grains(&self, target: &Target, grains: &[u64], pause: Pause<'_>) -> Result<(), MoveError> {
        let grain_bytes = target.map.grain_bytes();
        let mut bytes = vec![0; grain_bytes as usize];
        for batch in grains.chunks((HYDRATE_BATCH_BYTES / grain_bytes).max(1) as usize) {
            let (mut copied, mut was_written) = (0, false);
            let ended = batch.iter().try_for_each(|grain| {
                let start = grain * grain_bytes;
                let len = grain_bytes.min(self.size_bytes() - start) as usize;
                let mut step = Step::GrainSkipped;
                if !self.is_base_zero(start, len as u64)? {
                    step = Step::GrainCopied;
                    self.base.read_exact_at(&mut bytes[..len], start, Lane::Background).map_err(base_error)?;
                    target.disk.write_at(&bytes[..len], start)?;
                    was_written = true;
                }
                copied += 1;
                pause(step)
            });
            // What was copied counts, however the rest of the batch went.
            if was_written {
                target.disk.flush()?;
            }
            if ended.is_ok() {
                pause(Step::GrainsDurable)?;
            }
            target.map.set(&batch[..copied]).map_err(MoveError::map("write"))?;
            ended?;
            pause(Step::GrainsNoted)?;
        }
        Ok(())
    }

    /// Whether a grain of the base is known to be zero: it takes no space in the target, which is zero where it was
    /// never written.
    fn is_base_zero(&self, start: u64, len_bytes: u64) -> Result<bool, MoveError> {
        let segment_bytes = u64::from(self.base.base().segment_bytes());
        for segment in start / segment_bytes..(start + len_bytes).div_ceil(segment_bytes) {
            if !self.base.base().is_zero(segment).map_err(base_error)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn target(&self) -> Result<Arc<Target>, MoveError> {
        match self.stands_on() {
            StandsOn::Layers(Some(target)) => Ok(target),
            _ => Err(MoveError::NoTarget),
        }
    }
}

/// Why a disk did not move on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MoveError {
    /// It has no target, or is there already.
    #[error("move a disk: it has no target, or is local already")]
    NoTarget,
    /// A switch needs all of the base.
    #[error("switch a disk to its target: not all of the base is there yet")]
    NotHydrated,
    /// The base, the target or the overlay's device failed.
    #[error("move a disk: {0}")]
    Device(#[from] DeviceError),
    /// The map of what was hydrated could not be written.
    #[error("{attempt} the hydration map")]
    Map {
        /// What was attempted.
        attempt: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// It is not known whether the switch is durable.
    #[error("note that a disk is local: {problem}; restart the session")]
    Commit {
        /// What failed.
        problem: String,
    },
    /// The caller wanted it to stop.
    #[error("move a disk: stopped")]
    Stopped,
}

impl MoveError {
    fn map(attempt: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Map { attempt, source }
    }

    /// Whether space ran out, at the target or in the overlay.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Device(error) if error.kind() == DeviceErrorKind::NoSpace)
    }
}

impl From<OverlayError> for MoveError {
    fn from(error: OverlayError) -> Self {
        Self::Device(overlay_error(error))
    }
}

//! A restore point as a disk that can be written to.
//!
//! ```text
//! guest → overlay → target, as far as it is hydrated → memory → disk cache → repository
//! ```
//!
//! Reads fall through from left to right, cell by cell; writes end in the overlay. Once the disk was switched
//! (`moving.rs`) it is the target and nothing else.

use std::ops::Range;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use block_device::{Device, DeviceError, DeviceErrorKind, Extent, ExtentKind, Zeroing};

use crate::base::BaseError;
use crate::cache::{CachedBase, Lane};
use crate::gate::Gate;
use crate::hydrate_map::HydrateMap;
use crate::metrics::{Metrics, Operation, Source};
use crate::overlay::{Content, Overlay, OverlayError};
use crate::prefetch::Prefetch;
use crate::range_lock::RangeLocks;

const SECTOR_BYTES: u64 = 512;
/// Segments of the base that one question for extents looks at.
const MAX_EXTENT_SEGMENTS: u64 = 1 << 16;

/// One disk of a restore point.
///
/// Lock order: `gate`, `locks`, then the overlay's own. `moving` comes before all of them and is held by whoever writes
/// to the target on behalf of hydration and drain, one at a time.
pub struct LayeredDevice {
    pub(crate) base: Arc<CachedBase>,
    /// `None` for a disk that is only read.
    pub(crate) overlay: Option<Arc<Overlay>>,
    pub(crate) stands_on: RwLock<StandsOn>,
    pub(crate) gate: Gate,
    pub(crate) locks: RangeLocks,
    pub(crate) moving: Mutex<()>,
    pub(crate) metrics: Arc<Metrics>,
    prefetch: Option<Arc<Prefetch>>,
}

/// What a disk stands on.
#[derive(Clone)]
pub(crate) enum StandsOn {
    /// Its layers; the target when hydration has begun.
    Layers(Option<Arc<Target>>),
    /// The target alone.
    Local(Arc<dyn Device>),
    /// It is not known which of them counts after an attempt to switch: nothing is served until a restart has read
    /// the session's state.
    Unknown(String),
}

/// Where a disk is going to stay.
pub struct Target {
    /// The final disk, all zero where it was never written.
    pub disk: Arc<dyn Device>,
    /// What of the base is in it.
    pub map: HydrateMap,
}

impl LayeredDevice {
    /// A disk over `base`. Without an overlay it is only read.
    pub fn new(base: Arc<CachedBase>, overlay: Option<Arc<Overlay>>, metrics: Arc<Metrics>) -> Self {
        Self {
            base,
            overlay,
            stands_on: RwLock::new(StandsOn::Layers(None)),
            gate: Gate::default(),
            locks: RangeLocks::default(),
            moving: Mutex::new(()),
            metrics,
            prefetch: None,
        }
    }

    /// Tells `prefetch` of every read.
    pub fn with_prefetch(mut self, prefetch: Arc<Prefetch>) -> Self {
        self.prefetch = Some(prefetch);
        self
    }

    /// Begins, or after a restart goes on, to fill `target`.
    pub fn set_target(&self, target: Target) {
        *self.stands_on.write().expect("no panic while held") = StandsOn::Layers(Some(Arc::new(target)));
    }

    /// From the beginning what a switch had made of it before a restart.
    pub fn set_local(&self, disk: Arc<dyn Device>) {
        *self.stands_on.write().expect("no panic while held") = StandsOn::Local(disk);
    }

    /// Whether it is the target and nothing else.
    pub fn is_local(&self) -> bool {
        matches!(self.stands_on(), StandsOn::Local(_))
    }

    /// The guest's writes.
    pub fn overlay(&self) -> Option<&Arc<Overlay>> {
        self.overlay.as_ref()
    }

    /// The base.
    pub fn base(&self) -> &Arc<CachedBase> {
        &self.base
    }

    /// Requests that are being carried out.
    pub fn requests_in_flight(&self) -> usize {
        self.gate.inside()
    }

    /// Replaces `expected` by `new` if that is what is there, in one step; else gives the first offset that differs.
    pub fn compare_and_write(
        &self,
        offset_bytes: u64,
        expected: &[u8],
        new: &[u8],
    ) -> Result<Option<u64>, DeviceError> {
        let _inside = self.gate.enter();
        let range = offset_bytes..offset_bytes + expected.len() as u64;
        let _alone = self.locks.exclusive(range);
        let mut there = vec![0; expected.len()];
        self.read_inside(&mut there, offset_bytes)?;
        if let Some(differs) = there.iter().zip(expected).position(|(there, expected)| there != expected) {
            return Ok(Some(differs as u64));
        }
        self.write_inside(new, offset_bytes)?;
        Ok(None)
    }

    pub(crate) fn stands_on(&self) -> StandsOn {
        self.stands_on.read().expect("no panic while held").clone()
    }

    pub(crate) fn overlay_for_writes(&self) -> Result<&Arc<Overlay>, DeviceError> {
        let read_only = || DeviceError::new(DeviceErrorKind::ReadOnly, "write to a restore point that is only read");
        self.overlay.as_ref().ok_or_else(read_only)
    }

    fn read_inside(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), DeviceError> {
        let target = match self.stands_on() {
            StandsOn::Local(disk) => {
                self.metrics.read_from(Source::Target, buf.len() as u64);
                return disk.read_at(buf, offset_bytes);
            }
            StandsOn::Unknown(cause) => return Err(unknown(&cause)),
            StandsOn::Layers(target) => target,
        };
        let first = offset_bytes / SECTOR_BYTES;
        let missing = match &self.overlay {
            Some(overlay) => overlay.read(first, buf).map_err(overlay_error)?,
            None => std::iter::once(first..first + buf.len() as u64 / SECTOR_BYTES).collect(),
        };
        let below: u64 = missing.iter().map(|sectors| (sectors.end - sectors.start) * SECTOR_BYTES).sum();
        self.metrics.read_from(Source::Overlay, buf.len() as u64 - below);
        for sectors in missing {
            let start = (sectors.start - first) * SECTOR_BYTES;
            let part = &mut buf[start as usize..][..((sectors.end - sectors.start) * SECTOR_BYTES) as usize];
            self.read_below(target.as_deref(), part, sectors.start * SECTOR_BYTES)?;
        }
        Ok(())
    }

    /// What the guest did not write: from the target where the base has reached it, else from the base.
    fn read_below(&self, target: Option<&Target>, buf: &mut [u8], offset_bytes: u64) -> Result<(), DeviceError> {
        let Some(target) = target else {
            return self.base.read_exact_at(buf, offset_bytes, Lane::Foreground).map_err(base_error);
        };
        let grain_bytes = target.map.grain_bytes();
        let (mut at, mut rest) = (offset_bytes, buf);
        while !rest.is_empty() {
            let take = (grain_bytes - at % grain_bytes).min(rest.len() as u64);
            let (here, behind) = rest.split_at_mut(take as usize);
            if target.map.is_hydrated(at / grain_bytes) {
                self.metrics.read_from(Source::Target, take);
                target.disk.read_at(here, at)?;
            } else {
                self.base.read_exact_at(here, at, Lane::Foreground).map_err(base_error)?;
            }
            (at, rest) = (at + take, behind);
        }
        Ok(())
    }

    fn write_inside(&self, data: &[u8], offset_bytes: u64) -> Result<(), DeviceError> {
        match self.stands_on() {
            StandsOn::Local(disk) => disk.write_at(data, offset_bytes),
            StandsOn::Unknown(cause) => Err(unknown(&cause)),
            StandsOn::Layers(_) => {
                let overlay = self.overlay_for_writes()?;
                overlay.write(offset_bytes / SECTOR_BYTES, data).map_err(overlay_error)
            }
        }
    }

    /// What is known of a range below the overlay; may end early.
    fn extents_below(&self, target: Option<&Target>, range: Range<u64>, extents: &mut Vec<Extent>, max: usize) {
        let segment_bytes = u64::from(self.base.base().segment_bytes());
        let mut at = range.start;
        let mut looked_at = 0;
        while at < range.end && extents.len() <= max && looked_at < MAX_EXTENT_SEGMENTS {
            looked_at += 1;
            if let Some(target) = target.filter(|target| target.map.is_hydrated(at / target.map.grain_bytes())) {
                let end = target.hydrated_until(at, range.end);
                let known = target.disk.extents(at..end, max).unwrap_or_default();
                for extent in known {
                    let len_bytes = extent.len_bytes.min(end - at);
                    push_extent(extents, len_bytes, extent.kind);
                    at += len_bytes;
                }
                if at < end {
                    // It did not say more; reading tells.
                    push_extent(extents, end - at, ExtentKind::Data);
                    at = end;
                }
                continue;
            }
            let unit_bytes = target.map_or(segment_bytes, |target| segment_bytes.min(target.map.grain_bytes()));
            let end = ((at / unit_bytes + 1) * unit_bytes).min(range.end);
            // What cannot be looked up is data: reading it will say why.
            let is_zero = self.base.base().is_zero(at / segment_bytes).unwrap_or(false);
            push_extent(extents, end - at, if is_zero { ExtentKind::Zero } else { ExtentKind::Data });
            at = end;
        }
    }
}

impl Target {
    /// Up to where, or to `end`, everything from `at` on has reached the target.
    fn hydrated_until(&self, at: u64, end: u64) -> u64 {
        let grain_bytes = self.map.grain_bytes();
        let mut until = at;
        while until < end && self.map.is_hydrated(until / grain_bytes) {
            until = (until / grain_bytes + 1) * grain_bytes;
        }
        until.min(end)
    }
}

impl Device for LayeredDevice {
    fn size_bytes(&self) -> u64 {
        self.base.base().size_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), DeviceError> {
        let begun = Instant::now();
        let range = offset_bytes..offset_bytes + buf.len() as u64;
        {
            let _inside = self.gate.enter();
            let _shared = self.locks.shared(range.clone());
            self.read_inside(buf, offset_bytes)?;
        }
        self.metrics.took(Operation::Read, begun.elapsed());
        if let Some(prefetch) = &self.prefetch {
            prefetch.was_read(range);
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset_bytes: u64) -> Result<(), DeviceError> {
        let begun = Instant::now();
        let _inside = self.gate.enter();
        let _shared = self.locks.shared(offset_bytes..offset_bytes + data.len() as u64);
        self.write_inside(data, offset_bytes)?;
        self.metrics.took(Operation::Write, begun.elapsed());
        Ok(())
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<(), DeviceError> {
        let begun = Instant::now();
        let _inside = self.gate.enter();
        let _shared = self.locks.shared(range.clone());
        match self.stands_on() {
            StandsOn::Local(disk) => disk.zero(range, how)?,
            StandsOn::Unknown(cause) => return Err(unknown(&cause)),
            // The overlay's zeroes take no space either way, and space for a later write is not its to promise.
            StandsOn::Layers(_) => {
                let sectors = range.start / SECTOR_BYTES..range.end / SECTOR_BYTES;
                self.overlay_for_writes()?.zero(sectors).map_err(overlay_error)?;
            }
        }
        self.metrics.took(Operation::Write, begun.elapsed());
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        let begun = Instant::now();
        let _inside = self.gate.enter();
        match (self.stands_on(), &self.overlay) {
            (StandsOn::Local(disk), _) => disk.flush()?,
            (StandsOn::Unknown(cause), _) => return Err(unknown(&cause)),
            (StandsOn::Layers(_), Some(overlay)) => overlay.flush().map_err(overlay_error)?,
            (StandsOn::Layers(_), None) => {}
        }
        self.metrics.took(Operation::Flush, begun.elapsed());
        Ok(())
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>, DeviceError> {
        let _inside = self.gate.enter();
        let target = match self.stands_on() {
            StandsOn::Local(disk) => return disk.extents(range, max),
            StandsOn::Unknown(cause) => return Err(unknown(&cause)),
            StandsOn::Layers(target) => target,
        };
        let sectors = range.start / SECTOR_BYTES..range.end / SECTOR_BYTES;
        let parts = match &self.overlay {
            Some(overlay) => overlay.map(sectors),
            None => vec![(sectors, None)],
        };
        let mut extents = Vec::new();
        for (sectors, content) in parts {
            if extents.len() > max {
                break;
            }
            let bytes = sectors.start * SECTOR_BYTES..sectors.end * SECTOR_BYTES;
            let len_bytes = bytes.end - bytes.start;
            match content {
                Some(Content::Zero) => push_extent(&mut extents, len_bytes, ExtentKind::Zero),
                Some(Content::Data) => push_extent(&mut extents, len_bytes, ExtentKind::Data),
                None => {
                    let before: u64 = extents.iter().map(|extent| extent.len_bytes).sum();
                    self.extents_below(target.as_deref(), bytes.clone(), &mut extents, max);
                    let after: u64 = extents.iter().map(|extent| extent.len_bytes).sum();
                    if after - before < len_bytes {
                        break;
                    }
                }
            }
        }
        extents.truncate(max.max(1));
        Ok(extents)
    }

    fn prefetch(&self, range: Range<u64>) {
        if let Some(prefetch) = &self.prefetch {
            prefetch.was_asked_for(range);
        }
    }
}

fn push_extent(extents: &mut Vec<Extent>, len_bytes: u64, kind: ExtentKind) {
    if len_bytes == 0 {
        return;
    }
    match extents.last_mut() {
        Some(last) if last.kind == kind => last.len_bytes += len_bytes,
        _ => extents.push(Extent { len_bytes, kind }),
    }
}

fn unknown(cause: &str) -> DeviceError {
    let message = format!("use a disk whose switch to local storage broke off: restart the session ({cause})");
    DeviceError::new(DeviceErrorKind::Io, message)
}

pub(crate) fn base_error(error: BaseError) -> DeviceError {
    let kind = if error.is_unreachable { DeviceErrorKind::Unavailable } else { DeviceErrorKind::Io };
    DeviceError::new(kind, error.message)
}

pub(crate) fn overlay_error(error: OverlayError) -> DeviceError {
    let kind = match error {
        OverlayError::NoSpace { .. } => DeviceErrorKind::NoSpace,
        _ => DeviceErrorKind::Io,
    };
    let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
    DeviceError::new(kind, format!("{error}{cause}"))
}

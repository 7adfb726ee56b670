//! What of a disk differs from a point: every segment hashed on all cores, only ranges remembered.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hyperv::Host;
use vhdx::{ExtentKind, Layer, LayerFile, OpenedDisk, VhdxFile, VirtualDisk};

use super::on_target;
use crate::disk_object::DiskObject;
use crate::observer::{Event, Observer};
use crate::{BackupError, Cancel};

/// Segments that a thread takes at a time.
const BATCH: u64 = 16;

/// The ranges in which a disk differs from a point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Differences {
    /// Offset and length, ascending, apart from each other, whole segments (the last one may end with the disk).
    pub(super) ranges: Vec<(u64, u64)>,
}

impl Differences {
    /// Joins segments, in any order, to ranges.
    fn of(mut segments: Vec<Range<u64>>) -> Self {
        segments.sort_by_key(|segment| segment.start);
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for segment in segments {
            match ranges.last_mut() {
                Some((start, len)) if *start + *len == segment.start => *len += segment.end - segment.start,
                _ => ranges.push((segment.start, segment.end - segment.start)),
            }
        }
        Self { ranges }
    }

    pub(super) fn differing_bytes(&self) -> u64 {
        self.ranges.iter().map(|(_, len)| len).sum()
    }

    /// Bytes by which the file may grow: payload blocks that it has no space for yet, whole.
    pub(super) fn growth_bytes(&self, target: &OpenedDisk) -> u64 {
        let block = target.layers().first().map_or(0, |layer| u64::from(layer.file.info().block_bytes));
        let mut grown_until = 0;
        let mut bytes = 0;
        for (start, len) in &self.ranges {
            for extent in target.extents(*start..*start + *len).flatten() {
                if extent.kind == ExtentKind::Data || block == 0 {
                    continue;
                }
                let first = (extent.range.start / block).max(grown_until);
                let end = extent.range.end.div_ceil(block);
                bytes += end.saturating_sub(first) * block;
                grown_until = grown_until.max(end);
            }
        }
        bytes
    }
}

/// Opens a disk file of the host that no VM uses.
pub(super) fn open_target(host: &Host, path: &str) -> Result<OpenedDisk, BackupError> {
    let file = host.seam().files.open_read(path).map_err(on_target(path))?;
    let attempt = || BackupError::host(format!("open the disk {path}"));
    let file = VhdxFile::open(Arc::from(file)).map_err(attempt())?;
    OpenedDisk::from_layers(vec![Layer { path: PathBuf::from(path), file: LayerFile::Vhdx(Box::new(file)) }])
        .map_err(attempt())
}

/// Compares all of a disk with its stored form.
pub(super) fn compare_disk(
    object: &DiskObject,
    target: &OpenedDisk,
    label: &str,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Differences, BackupError> {
    let layout = object.layout();
    let size = layout.geometry().size_bytes();
    if target.geometry().size_bytes != size {
        let problem = format!("it has {} bytes, the point {size}", target.geometry().size_bytes);
        return Err(BackupError::TargetRefused { path: label.to_owned(), problem });
    }
    observer.event(Event::Started { subject: label, total_bytes: size, what: "compare" });
    let segments = layout.virtual_segments();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let differing: Mutex<Vec<Range<u64>>> = Mutex::default();
    let failed: Mutex<Option<BackupError>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buffer = vec![0; layout.segment_bytes() as usize];
                let mut found = Vec::new();
                loop {
                    let first = next.fetch_add(BATCH, Ordering::Relaxed);
                    if first >= segments || stop.load(Ordering::Relaxed) || cancel.is_cancelled() {
                        break;
                    }
                    for number in first..(first + BATCH).min(segments) {
                        match compare_segment(object, target, label, number, &mut buffer) {
                            Ok(Some((range, differs))) => {
                                let bytes = range.end - range.start;
                                found.extend(differs.then_some(range));
                                observer.event(Event::Advanced { subject: label, bytes });
                            }
                            Ok(None) => {}
                            Err(error) => {
                                failed.lock().expect("no panic while held").get_or_insert(error);
                                stop.store(true, Ordering::Relaxed);
                                break;
                            }
                        }
                    }
                }
                differing.lock().expect("no panic while held").append(&mut found);
            });
        }
    });
    observer.event(Event::Finished { subject: label });
    if let Some(error) = failed.into_inner().expect("no panic while held") {
        return Err(error);
    }
    if cancel.is_cancelled() {
        return Err(BackupError::Cancelled);
    }
    Ok(Differences::of(differing.into_inner().expect("no panic while held")))
}

/// The range of a segment, and whether it differs; `None` behind the end of the disk.
fn compare_segment(
    object: &DiskObject,
    target: &OpenedDisk,
    label: &str,
    number: u64,
    buffer: &mut [u8],
) -> Result<Option<(Range<u64>, bool)>, BackupError> {
    let layout = object.layout();
    let per_block = u64::from(layout.segments_per_block());
    let (block, part) = ((number / per_block) as u32, (number % per_block) as u32);
    let start = layout.virtual_offset(block, part);
    let end = layout.geometry().size_bytes().min(start + u64::from(layout.segment_bytes()));
    if start >= end {
        return Ok(None);
    }
    let stored = object.virtual_segment(block, part)?;
    let failed = |source| BackupError::SourceRead {
        disk: label.to_owned(),
        offset_bytes: start,
        len_bytes: end - start,
        source,
    };
    let known_zero = match target.extents(start..end).next() {
        Some(Ok(extent)) => extent.kind == ExtentKind::Zero && extent.range == (start..end),
        Some(Err(error)) => return Err(failed(error)),
        None => false,
    };
    let differs = match stored {
        None if known_zero => false,
        Some(_) if known_zero => true,
        stored => {
            let (bytes, behind) = buffer.split_at_mut((end - start) as usize);
            target.read_exact_at(bytes, start).map_err(failed)?;
            // Behind the end of the disk a stored segment has zeroes.
            behind.fill(0);
            match stored {
                None => buffer.iter().any(|byte| *byte != 0),
                Some(content) => object.repository().content_id(buffer, None) != content,
            }
        }
    };
    Ok(Some((start..end, differs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_range() {
        for (segments, expected) in [
            (vec![], vec![]),
            (vec![4..8, 0..4], vec![(0, 8)]),
            (vec![8..10, 0..4], vec![(0, 4), (8, 2)]),
            (vec![4..8, 12..16, 8..12, 20..24], vec![(4, 12), (20, 4)]),
        ] {
            let found = Differences::of(segments.clone());
            assert_eq!(found.ranges, expected, "{segments:?}");
        }
    }
}

//! What differs, written into a disk file: fetched in parallel, written in order.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use vhdx::{WritableVhdx, WriteAt, WriteError};

use super::compare::Differences;
use crate::disk_object::DiskObject;
use crate::observer::{Event, Observer};
use crate::{BackupError, Cancel};

/// Segments fetched together, and held in memory.
const BATCH: usize = 16;

/// Writes every range of `differences` as the point has it. Durable when it returns; whatever happens before, the file
/// is a consistent VHDX with old and new segments.
pub(super) fn write_differences(
    object: &DiskObject,
    file: Arc<dyn WriteAt>,
    path: &str,
    differences: &Differences,
    label: &str,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<(), BackupError> {
    if differences.ranges.is_empty() {
        return Ok(());
    }
    let failed = |error: WriteError| BackupError::Target { path: path.to_owned(), source: to_io(error) };
    let mut disk = WritableVhdx::from_file(file, None)
        .map_err(|error| BackupError::Target { path: path.to_owned(), source: std::io::Error::other(error) })?;
    observer.event(Event::Started { subject: label, total_bytes: differences.differing_bytes(), what: "restore" });
    let segments: Vec<Range<u64>> = segments_of(object, differences).collect();
    for batch in segments.chunks(BATCH) {
        if cancel.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        for (range, bytes) in batch.iter().zip(fetch(object, batch)?) {
            match bytes {
                Some(bytes) => disk.write_all_at(&bytes[..(range.end - range.start) as usize], range.start),
                None => disk.zero_range(range.clone()),
            }
            .map_err(failed)?;
            observer.event(Event::Advanced { subject: label, bytes: range.end - range.start });
        }
        disk.flush().map_err(failed)?;
    }
    observer.event(Event::Finished { subject: label });
    disk.close().map_err(failed)
}

/// The segments of the ranges, in order.
fn segments_of<'a>(object: &'a DiskObject, differences: &'a Differences) -> impl Iterator<Item = Range<u64>> + 'a {
    let segment = u64::from(object.layout().segment_bytes());
    differences.ranges.iter().flat_map(move |(start, len)| {
        let end = start + len;
        (*start..end).step_by(segment as usize).map(move |at| at..end.min(at + segment))
    })
}

/// The bytes of some segments, each checked against its hash; `None` is zeroes.
fn fetch(object: &DiskObject, segments: &[Range<u64>]) -> Result<Vec<Option<Vec<u8>>>, BackupError> {
    let layout = object.layout();
    let per_block = u64::from(layout.segments_per_block());
    let next = Mutex::new(0);
    let fetched: Mutex<Vec<Option<Vec<u8>>>> = Mutex::new(vec![None; segments.len()]);
    let failed: Mutex<Option<BackupError>> = Mutex::default();
    let threads = (2 * std::thread::available_parallelism().map_or(2, |count| count.get())).min(segments.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = {
                        let mut next = next.lock().expect("no panic while held");
                        *next += 1;
                        *next - 1
                    };
                    let Some(range) = segments.get(at) else { return };
                    let number = range.start / u64::from(layout.segment_bytes());
                    let found = object
                        .virtual_segment((number / per_block) as u32, (number % per_block) as u32)
                        .and_then(|content| match content {
                            None => Ok(None),
                            Some(content) => {
                                let mut bytes = Vec::new();
                                object.read_segment(&content, &mut bytes).map(|()| Some(bytes))
                            }
                        });
                    match found {
                        Ok(bytes) => fetched.lock().expect("no panic while held")[at] = bytes,
                        Err(error) => {
                            failed.lock().expect("no panic while held").get_or_insert(error.into());
                            return;
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner().expect("no panic while held") {
        Some(error) => Err(error),
        None => Ok(fetched.into_inner().expect("no panic while held")),
    }
}

/// So that a full volume is known as one.
fn to_io(error: WriteError) -> std::io::Error {
    let kind = std::iter::successors(Some(&error as &(dyn std::error::Error + 'static)), |one| one.source())
        .find_map(|one| one.downcast_ref::<std::io::Error>())
        .map_or(std::io::ErrorKind::Other, std::io::Error::kind);
    std::io::Error::new(kind, error)
}

//! A file between its first byte and its name.

use std::sync::Mutex;

use super::place::TemporaryFile;
use super::{Failed, FileJob, attributes_failed, create_failed, lock, read_failed};
use crate::Repository;
use crate::error::ReadError;
use crate::format::content_id::ObjectId;
use crate::object::ObjectReader;
use crate::snapshots::object_of;

/// Runs of zeros are left out of a file in units of this; smaller holes save nothing on usual file systems.
pub(super) const HOLE_BYTES: usize = 4096;

/// Longest segment: as much as one content may have. A longer one is no segment but a claim.
const MAX_SEGMENT_BYTES: u64 = 1 << 27;

/// A file between its first byte and its name. Dropped before that, it leaves nothing.
pub(super) struct OpenFile<'s> {
    pub(super) object: ObjectReader<'s>,
    file: TemporaryFile,
    /// A segment known to be zeros, with its length: a sparse disk names it again and again.
    zeros: Mutex<Option<(ObjectId, u64)>>,
}

impl<'s> OpenFile<'s> {
    pub(super) fn open(repo: &'s Repository, job: &FileJob<'_>) -> Result<Self, Failed> {
        let id = object_of(&job.entry).map_err(read_failed)?;
        let object = repo.open_object(&id).map_err(read_failed)?;
        if u64::try_from(job.entry.size) != Ok(object.len_bytes()) {
            let problem = format!("it has {} bytes, its directory says {}", object.len_bytes(), job.entry.size);
            return Err(read_failed(ReadError::DamagedObject { id, problem }));
        }
        let file = job.folder.folder.create_temporary_file().map_err(Failed::Target)?;
        // Zeros are left out below: the length has to be there before.
        file.set_len(object.len_bytes()).map_err(create_failed)?;
        Ok(Self { object, file, zeros: Mutex::default() })
    }

    pub(super) fn segment_count(&self) -> usize {
        self.object.segments().len().max(1)
    }

    /// Reads a segment and writes what is not zero; returns its length.
    pub(super) fn copy_segment(&self, number: usize) -> Result<u64, Failed> {
        let segment = self.object.segments().get(number);
        let (start, len) = segment.map_or((0, self.object.len_bytes()), |segment| (segment.start, segment.len));
        if segment.is_some() && *lock(&self.zeros) == segment.map(|segment| (segment.object, segment.len)) {
            return Ok(len);
        }
        if len > MAX_SEGMENT_BYTES {
            let problem = format!("a piece of {len} bytes");
            return Err(read_failed(ReadError::Damaged { what: "the file's object".into(), problem }));
        }
        let mut bytes = vec![0; len as usize];
        self.object.read_exact_at(&mut bytes, start).map_err(read_failed)?;
        let mut all_zero = true;
        for (offset, run) in nonzero_runs(&bytes, start) {
            all_zero = false;
            self.file.write_all_at(run, offset).map_err(Failed::Target)?;
        }
        if all_zero && let Some(segment) = segment {
            *lock(&self.zeros) = Some((segment.object, segment.len));
        }
        Ok(len)
    }

    pub(super) fn finish(self, job: &FileJob<'_>) -> Result<(), Failed> {
        let attributes = self.file.set_attributes(&job.entry, job.folder.shared.set_owners);
        self.file.give_name(&job.folder.folder, &job.entry.name).map_err(create_failed)?;
        attributes.map_err(attributes_failed)
    }
}

/// The parts of `bytes` to be written, with their offsets in the file: whole pages of zeros are left out.
pub(super) fn nonzero_runs(bytes: &[u8], start_bytes: u64) -> impl Iterator<Item = (u64, &[u8])> {
    let to_boundary = (HOLE_BYTES - (start_bytes % HOLE_BYTES as u64) as usize) % HOLE_BYTES;
    let page_end = move |at: usize| {
        if at < to_boundary { to_boundary } else { at + HOLE_BYTES - (at - to_boundary) % HOLE_BYTES }
    };
    let page = move |at: usize| &bytes[at..page_end(at).min(bytes.len())];
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && is_zero(page(at)) {
            at += page(at).len();
        }
        let from = at;
        while at < bytes.len() && !is_zero(page(at)) {
            at += page(at).len();
        }
        (from < at).then(|| (start_bytes + from as u64, &bytes[from..at]))
    })
}

fn is_zero(bytes: &[u8]) -> bool {
    // Chunks let the compiler compare many bytes at a time.
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

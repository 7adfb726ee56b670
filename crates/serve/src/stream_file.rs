//! The file that a disk is stored as, read at any offset.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::base::{BaseError, Nearby, Origin};
use crate::point_base::PointBase;

/// The stored stream of a disk: the bytes of a `.vhdx`, as a restore writes them (law 6).
pub(crate) struct StreamFile {
    disk: PointBase,
    /// A segment of the stream may be longer than what is read at once.
    last: Mutex<Option<(u64, Arc<Vec<u8>>)>>,
}

impl StreamFile {
    pub(crate) fn new(disk: PointBase) -> Self {
        Self { disk, last: Mutex::default() }
    }

    /// Fills `buf` from an offset. `origin` is changed when something came from the repository.
    pub(crate) fn read(&self, buf: &mut [u8], offset_bytes: u64, origin: &mut Origin) -> Result<(), BaseError> {
        let (mut at, mut rest) = (offset_bytes, buf);
        while !rest.is_empty() {
            let (number, range) = self.disk.stream_segment(at);
            let bytes = self.segment(number, origin)?;
            let within = (at - range.start) as usize;
            let take = (bytes.len() - within).min(rest.len());
            let (here, behind) = rest.split_at_mut(take);
            here.copy_from_slice(&bytes[within..within + take]);
            (at, rest) = (at + take as u64, behind);
        }
        Ok(())
    }

    /// The same from the disk cache alone.
    pub(crate) fn read_nearby(&self, buf: &mut [u8], offset_bytes: u64) -> Result<Nearby, BaseError> {
        self.disk.read_stream_nearby(buf, offset_bytes)
    }

    /// Whether a range is known to be zero.
    pub(crate) fn is_zero(&self, range: Range<u64>) -> Result<bool, BaseError> {
        let mut at = range.start;
        while at < range.end {
            let (number, covered) = self.disk.stream_segment(at);
            if !self.disk.is_stream_segment_zero(number)? {
                return Ok(false);
            }
            at = covered.end;
        }
        Ok(true)
    }

    fn segment(&self, number: u64, origin: &mut Origin) -> Result<Arc<Vec<u8>>, BaseError> {
        let last = self.last.lock().expect("no panic while held").clone();
        if let Some((_, bytes)) = last.filter(|(last, _)| *last == number) {
            return Ok(bytes);
        }
        let mut bytes = Vec::new();
        if self.disk.read_stream_segment(number, &mut bytes)? == Origin::Repository {
            *origin = Origin::Repository;
        }
        let bytes = Arc::new(bytes);
        *self.last.lock().expect("no panic while held") = Some((number, bytes.clone()));
        Ok(bytes)
    }
}

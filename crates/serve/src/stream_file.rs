//! The file that a disk is stored as, read at any offset.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::base::{Base as _, BaseError, Nearby, Origin};
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

    /// Length of the file.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.disk.stream_bytes()
    }

    /// The identity of the disk that it is the file of.
    pub(crate) fn disk_identity(&self) -> [u8; 32] {
        self.disk.identity()
    }

    /// Fills `buf` from an offset. `origin` is changed when something came from the repository.
    pub(crate) fn read(&self, buf: &mut [u8], offset_bytes: u64, origin: &mut Origin) -> Result<(), BaseError> {
        let mut rest = &mut buf[..];
        for (number, within) in self.disk.stream_pieces(offset_bytes..offset_bytes + rest.len() as u64) {
            let (here, behind) = rest.split_at_mut((within.end - within.start) as usize);
            here.copy_from_slice(&self.segment(number, origin)?[within.start as usize..within.end as usize]);
            rest = behind;
        }
        Ok(())
    }

    /// The same from the disk cache alone.
    pub(crate) fn read_nearby(&self, buf: &mut [u8], offset_bytes: u64) -> Result<Nearby, BaseError> {
        self.disk.read_stream_nearby(buf, offset_bytes)
    }

    /// Whether a range is known to be zero.
    pub(crate) fn is_zero(&self, range: Range<u64>) -> Result<bool, BaseError> {
        for (number, _) in self.disk.stream_pieces(range) {
            if !self.disk.is_stream_segment_zero(number)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether fetching a range ahead would be no use.
    pub(crate) fn is_nearby(&self, range: Range<u64>) -> bool {
        self.disk.stream_pieces(range).all(|(number, _)| self.disk.is_stream_segment_nearby(number))
    }

    /// The parts of a range that are not known to be zero, in order.
    pub(crate) fn data_in(&self, range: Range<u64>) -> Result<Vec<Range<u64>>, BaseError> {
        let mut at = range.start;
        let mut parts: Vec<Range<u64>> = Vec::new();
        for (number, within) in self.disk.stream_pieces(range) {
            let end = at + (within.end - within.start);
            if !self.disk.is_stream_segment_zero(number)? {
                match parts.last_mut() {
                    Some(last) if last.end == at => last.end = end,
                    _ => parts.push(at..end),
                }
            }
            at = end;
        }
        Ok(parts)
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

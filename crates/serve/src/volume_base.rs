//! A point as a disk with an NTFS volume on it, which holds the `.vhdx` of each of the VM's disks (spec block-serving D).
//!
//! The metadata of the volume is made up; the files are the stored streams, byte for byte what `kopia restore` writes.

use std::sync::{Arc, Mutex};

use backup::PointDescription;
use ntfs_volume::{Disk, FileContent, ParameterError, Parameters, Piece, VolumeFile};
use uuid::Uuid;

use crate::base::{Base, BaseError, Origin};
use crate::overlay::sha256;
use crate::point_base::PointBase;

/// Between 1601 and 1970, in 100 ns.
const UNIX_EPOCH_IN_FILE_TIME: i128 = 116_444_736_000_000_000;

/// A volume of a session.
pub struct VolumeBase {
    disk: Disk,
    /// In the order of the volume's files.
    files: Vec<PointBase>,
    identity: [u8; 32],
    /// A stream's segment may be longer than one of the volume's.
    last: Mutex<Option<Last>>,
}

#[derive(Clone)]
struct Last {
    file: usize,
    number: u64,
    bytes: Arc<Vec<u8>>,
}

impl VolumeBase {
    /// The same session and point give the same volume, for ever. `disks` are those of `point`, in its order.
    pub fn new(session: [u8; 16], point: &PointDescription, disks: Vec<PointBase>) -> Result<Self, ParameterError> {
        let files = point.disks.iter().zip(&disks).map(|(disk, base)| VolumeFile {
            name: format!("disk{}.vhdx", disk.number),
            content: FileContent::External { size_bytes: base.stream_bytes() },
            // Hyper-V grants each VM rights on its files; a read-only mark would be in the way of nothing else.
            is_read_only: false,
        });
        let file_time = point.frozen.as_nanosecond() / 100 + UNIX_EPOCH_IN_FILE_TIME;
        let file_time = u64::try_from(file_time).unwrap_or_default();
        let parameters = Parameters::for_session(Uuid::from_bytes(session), file_time, files.collect());
        let disk = Disk::build(&parameters)?;
        let objects: Vec<u8> = point.disks.iter().flat_map(|disk| disk.object.bytes().chain([0])).collect();
        let identity = sha256(&[&disk.metadata_sha256()[..], &objects].concat());
        Ok(Self { disk, files: disks, identity, last: Mutex::new(None) })
    }

    /// Fills `buf` from an offset of a file.
    fn read_file(&self, file: usize, buf: &mut [u8], offset_bytes: u64, origin: &mut Origin) -> Result<(), BaseError> {
        let (mut at, mut rest) = (offset_bytes, buf);
        while !rest.is_empty() {
            let (number, range) = self.files[file].stream_segment(at);
            let bytes = self.stream_segment(file, number, origin)?;
            let within = (at - range.start) as usize;
            let take = (bytes.len() - within).min(rest.len());
            let (here, behind) = rest.split_at_mut(take);
            here.copy_from_slice(&bytes[within..within + take]);
            (at, rest) = (at + take as u64, behind);
        }
        Ok(())
    }

    fn stream_segment(&self, file: usize, number: u64, origin: &mut Origin) -> Result<Arc<Vec<u8>>, BaseError> {
        let last = self.last.lock().expect("no panic while held").clone();
        if let Some(last) = last.filter(|last| (last.file, last.number) == (file, number)) {
            return Ok(last.bytes);
        }
        let mut bytes = Vec::new();
        if self.files[file].read_stream_segment(number, &mut bytes)? == Origin::Repository {
            *origin = Origin::Repository;
        }
        let bytes = Arc::new(bytes);
        *self.last.lock().expect("no panic while held") = Some(Last { file, number, bytes: bytes.clone() });
        Ok(bytes)
    }
}

impl Base for VolumeBase {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn sector_bytes(&self) -> u32 {
        512
    }

    /// Files begin at multiples of it, and so do the payload blocks within them.
    fn segment_bytes(&self) -> u32 {
        1 << 20
    }

    fn identity(&self) -> [u8; 32] {
        self.identity
    }

    fn is_zero(&self, segment: u64) -> Result<bool, BaseError> {
        let start = segment * u64::from(self.segment_bytes());
        for (range, piece) in self.disk.pieces(start..start + self.len_of(segment)) {
            match piece {
                Piece::Zero => {}
                Piece::File { file, offset_bytes } => {
                    let end = offset_bytes + (range.end - range.start);
                    let mut at = offset_bytes;
                    while at < end {
                        let (number, covered) = self.files[file].stream_segment(at);
                        if !self.files[file].is_stream_segment_zero(number)? {
                            return Ok(false);
                        }
                        at = covered.end;
                    }
                }
                Piece::Literal(_) | Piece::Ones | Piece::Bitmap { .. } => return Ok(false),
            }
        }
        Ok(true)
    }

    fn read_segment(&self, segment: u64, bytes: &mut Vec<u8>) -> Result<Origin, BaseError> {
        bytes.clear();
        bytes.resize(self.len_of(segment) as usize, 0);
        let start = segment * u64::from(self.segment_bytes());
        // What is made up is nearer than any cache.
        let mut origin = Origin::DiskCache;
        self.disk.read(bytes, start, |file, here, at| self.read_file(file, here, at, &mut origin))?;
        Ok(origin)
    }
}

/// The id that the volume has in sessions.
pub fn volume_id() -> [u8; 16] {
    let sum = sha256(b"e3 volume");
    std::array::from_fn(|nth| sum[nth])
}

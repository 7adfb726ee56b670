//! A point as a disk with an NTFS volume on it, which holds the `.vhdx` of each of the VM's disks (spec block-serving D).
//!
//! The metadata of the volume is made up; the files are the stored streams, byte for byte what `kopia restore` writes.

use backup::PointDescription;
use ntfs_volume::{Disk, FileContent, ParameterError, Parameters, Piece, VolumeFile};
use uuid::Uuid;

use crate::base::{Base, BaseError, Nearby, Origin};
use crate::overlay::sha256;
use crate::point_base::PointBase;
use crate::stream_file::StreamFile;

/// Between 1601 and 1970, in 100 ns.
const UNIX_EPOCH_IN_FILE_TIME: i128 = 116_444_736_000_000_000;

/// A volume of a session.
pub struct VolumeBase {
    disk: Disk,
    /// In the order of the volume's files.
    files: Vec<StreamFile>,
    identity: [u8; 32],
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
        Ok(Self { disk, files: disks.into_iter().map(StreamFile::new).collect(), identity })
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
                    if !self.files[file].is_zero(offset_bytes..end)? {
                        return Ok(false);
                    }
                }
                Piece::Literal(_) | Piece::Ones | Piece::Bitmap { .. } => return Ok(false),
            }
        }
        Ok(true)
    }

    fn read_nearby(&self, segment: u64, within_bytes: u64, buf: &mut [u8]) -> Result<Nearby, BaseError> {
        let start = segment * u64::from(self.segment_bytes()) + within_bytes;
        let mut found = Nearby::Known;
        let read = self.disk.read(buf, start, |file, here, at| match self.files[file].read_nearby(here, at) {
            Ok(Nearby::Known) => Ok(()),
            Ok(Nearby::DiskCache) => {
                found = Nearby::DiskCache;
                Ok(())
            }
            Ok(Nearby::No) => Err(None),
            Err(error) => Err(Some(error)),
        });
        match read {
            Ok(()) => Ok(found),
            Err(None) => Ok(Nearby::No),
            Err(Some(error)) => Err(error),
        }
    }

    fn is_nearby(&self, segment: u64) -> bool {
        let start = segment * u64::from(self.segment_bytes());
        self.disk.pieces(start..start + self.len_of(segment)).into_iter().all(|(range, piece)| match piece {
            Piece::File { file, offset_bytes } => {
                self.files[file].is_nearby(offset_bytes..offset_bytes + (range.end - range.start))
            }
            Piece::Zero | Piece::Literal(_) | Piece::Ones | Piece::Bitmap { .. } => true,
        })
    }

    fn read_segment(&self, segment: u64, bytes: &mut Vec<u8>) -> Result<Origin, BaseError> {
        bytes.clear();
        bytes.resize(self.len_of(segment) as usize, 0);
        let start = segment * u64::from(self.segment_bytes());
        // What is made up is nearer than any cache.
        let mut origin = Origin::DiskCache;
        self.disk.read(bytes, start, |file, here, at| self.files[file].read(here, at, &mut origin))?;
        Ok(origin)
    }
}

/// The id that the volume has in sessions.
pub fn volume_id() -> [u8; 16] {
    let sum = sha256(b"e3 volume");
    std::array::from_fn(|nth| sum[nth])
}

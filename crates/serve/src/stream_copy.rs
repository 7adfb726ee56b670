//! A stored `.vhdx` of a point, copied to a file while others read it from the volume (spec block-serving C.7: the
//! target of a volume is a file per stream, byte for byte that).
//!
//! A copy that is cut off goes on from its map. What the map names is durable in the file before it is named.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use vhdx::WriteAt as _;

use crate::base::{Base as _, BaseError};
use crate::folder::DiskFolder;
use crate::hydrate_map::{GRAIN_BYTES, HydrateMap, MAP_NAME, MapIdentity};
use crate::moving::Hydrated;
use crate::overlay::sha256;
use crate::point_base::PointBase;

/// Copied before it is made durable and noted.
const BATCH_BYTES: u64 = 64 << 20;

/// A copy that goes on, or is whole.
pub struct StreamCopy {
    source: PointBase,
    len_bytes: u64,
    path: PathBuf,
    file: File,
    map: HydrateMap,
    /// The segment that was read last: it may be longer than a grain.
    last: Mutex<Option<(u64, Vec<u8>)>>,
}

/// Why a copy does not go on.
#[derive(Debug, thiserror::Error)]
pub enum StreamCopyError {
    /// The point's bytes are not there, or not now.
    #[error(transparent)]
    Source(#[from] BaseError),
    /// The file cannot be written.
    #[error("write {}", .path.display())]
    Target {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The map cannot be written.
    #[error("write the map of {}", .path.display())]
    Map {
        /// The file that it is the map of.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its caller asked it to stop.
    #[error("stopped")]
    Stopped,
}

impl StreamCopy {
    /// Begins a copy into `path`, or goes on with it. `map_folder` is this copy's alone.
    pub fn open(source: PointBase, session: [u8; 16], map_folder: &Path, path: &Path) -> io::Result<Self> {
        let len_bytes = source.stream_bytes();
        let folder = DiskFolder::open_or_create(map_folder)?;
        let base = sha256(&[&b"stream of "[..], &source.identity()].concat());
        let identity = MapIdentity { session, grain_bytes: GRAIN_BYTES, size_bytes: len_bytes, base };
        let has_map = map_folder.join(MAP_NAME).exists();
        let (file, map) = if has_map && path.exists() {
            (File::options().read(true).write(true).open(path)?, HydrateMap::open(&folder, &identity)?)
        } else {
            // The map first: one that outlives its file would name what is not there.
            if has_map {
                std::fs::remove_file(map_folder.join(MAP_NAME))?;
            }
            let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
            file.set_len(len_bytes)?;
            file.sync_all()?;
            (file, HydrateMap::create(&folder, &identity)?)
        };
        Ok(Self { source, len_bytes, path: path.to_owned(), file, map, last: Mutex::new(None) })
    }

    /// How far it is.
    pub fn copied(&self) -> Hydrated {
        let done_bytes = (self.map.hydrated() * self.map.grain_bytes()).min(self.len_bytes);
        Hydrated { done_bytes, total_bytes: self.len_bytes }
    }

    /// Copies the next batch. `pause` is called after every MiB, with whether it cost anything, and may end it: `false`.
    pub fn advance(&self, pause: &dyn Fn(bool) -> bool) -> Result<Hydrated, StreamCopyError> {
        let mut grains = Vec::new();
        let mut next = 0;
        while let Some(grain) = self.map.next_missing(next).filter(|_| grains.len() as u64 * GRAIN_BYTES < BATCH_BYTES)
        {
            let was_copied = self.copy_grain(grain)?;
            grains.push(grain);
            next = grain + 1;
            if !pause(was_copied) {
                return Err(StreamCopyError::Stopped);
            }
        }
        let target = |source| StreamCopyError::Target { path: self.path.clone(), source };
        self.file.flush().map_err(target)?;
        self.map.set(&grains).map_err(|source| StreamCopyError::Map { path: self.path.clone(), source })?;
        Ok(self.copied())
    }

    /// Writes what is not zero in a grain; `false` when there was nothing.
    fn copy_grain(&self, grain: u64) -> Result<bool, StreamCopyError> {
        let range = grain * GRAIN_BYTES..((grain + 1) * GRAIN_BYTES).min(self.len_bytes);
        let mut last = self.last.lock().expect("no panic while held");
        let (mut at, mut was_copied) = (range.start, false);
        while at < range.end {
            let (number, covered) = self.source.stream_segment(at);
            let end = covered.end.min(range.end);
            if self.source.is_stream_segment_zero(number)? {
                // The file was made of zeroes.
                at = end;
                continue;
            }
            if last.as_ref().is_none_or(|(known, _)| *known != number) {
                let mut bytes = Vec::new();
                self.source.read_stream_segment(number, &mut bytes)?;
                *last = Some((number, bytes));
            }
            let (_, bytes) = last.as_ref().expect("it was just read");
            let piece = &bytes[(at - covered.start) as usize..(end - covered.start) as usize];
            let written = self.file.write_all_at(piece, at);
            written.map_err(|source| StreamCopyError::Target { path: self.path.clone(), source })?;
            was_copied = true;
            at = end;
        }
        Ok(was_copied)
    }
}

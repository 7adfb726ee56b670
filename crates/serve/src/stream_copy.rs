//! A stored `.vhdx` of a point, copied to a file while others read it from the volume (spec block-serving C.7: the
//! target of a volume is a file per stream, byte for byte that).
//!
//! A copy that is cut off goes on from its map. What the map names is durable in the file before it is named.

use std::io;
use std::sync::Arc;

use crate::base::{BaseError, Origin};
use crate::cache::CachedBase;
use crate::folder::{Folder, StoredFile};
use crate::hydrate_map::{GRAIN_BYTES, HydrateMap, MAP_NAME, MapIdentity};
use crate::moving::Hydrated;
use crate::overlay::sha256;
use crate::point_base::PointBase;
use crate::stream_file::StreamFile;

/// Copied before it is made durable and noted.
const BATCH_BYTES: u64 = 64 << 20;

/// A copy that goes on, or is whole.
pub struct StreamCopy {
    source: StreamFile,
    /// What guests read meanwhile.
    guests: Arc<CachedBase>,
    /// The file's name, for messages.
    on: String,
    file: Arc<dyn StoredFile>,
    map: HydrateMap,
}

/// Why a copy does not go on.
#[derive(Debug, thiserror::Error)]
pub enum StreamCopyError {
    /// The point's bytes are not there, or not now.
    #[error(transparent)]
    Source(#[from] BaseError),
    /// The file cannot be written.
    #[error("write {on}")]
    Target {
        /// The file.
        on: String,
        /// What the system said.
        source: io::Error,
    },
    /// The map cannot be written.
    #[error("write the map of {on}")]
    Map {
        /// The file that it is the map of.
        on: String,
        /// What the system said.
        source: io::Error,
    },
    /// Its caller asked it to stop.
    #[error("stopped")]
    Stopped,
}

impl StreamCopy {
    /// Begins a copy into the file `name` of `target`, or goes on with it. The folder `maps` is this copy's alone. It
    /// yields to what guests read from `guests`.
    pub fn open(
        source: PointBase,
        guests: Arc<CachedBase>,
        session: [u8; 16],
        maps: &dyn Folder,
        target: &dyn Folder,
        name: &str,
    ) -> io::Result<Self> {
        let source = StreamFile::new(source);
        let len_bytes = source.len_bytes();
        let base = sha256(&[&b"stream of "[..], &source.disk_identity()].concat());
        let identity = MapIdentity { session, grain_bytes: GRAIN_BYTES, size_bytes: len_bytes, base };
        let has_map = maps.list()?.iter().any(|name| name == MAP_NAME);
        let there = match target.open(name) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let is_whole = |file: &Arc<dyn StoredFile>| file.len_bytes().is_ok_and(|len| len == len_bytes);
        let (file, map) = match there.as_ref().filter(|file| has_map && is_whole(file)) {
            Some(file) => (file.clone(), HydrateMap::open(maps, &identity)?),
            None => {
                // Durably: a map that outlives its file would name what is not there.
                if has_map {
                    maps.remove(MAP_NAME)?;
                }
                maps.sync()?;
                if there.is_some() {
                    target.remove(name)?;
                }
                let file = target.create(name)?;
                file.set_len(len_bytes)?;
                file.sync_data()?;
                target.sync()?;
                (file, HydrateMap::create(maps, &identity)?)
            }
        };
        let on = format!("{name} in {}", target.display());
        Ok(Self { source, guests, on, file, map })
    }

    /// How far it is.
    pub fn copied(&self) -> Hydrated {
        let total_bytes = self.source.len_bytes();
        Hydrated { done_bytes: (self.map.hydrated() * self.map.grain_bytes()).min(total_bytes), total_bytes }
    }

    /// Copies the next batch. `pause` is called after every MiB, with whether it cost anything, and may end it: `false`.
    /// What was copied counts, however the rest goes.
    pub fn advance(&self, pause: &dyn Fn(bool) -> bool) -> Result<Hydrated, StreamCopyError> {
        let (mut grains, mut next, mut ended) = (Vec::new(), 0, Ok(()));
        while let Some(grain) = self.map.next_missing(next).filter(|_| grains.len() as u64 * GRAIN_BYTES < BATCH_BYTES)
        {
            match self.copy_grain(grain) {
                Ok(was_copied) => {
                    grains.push(grain);
                    next = grain + 1;
                    if !pause(was_copied) {
                        ended = Err(StreamCopyError::Stopped);
                        break;
                    }
                }
                Err(error) => {
                    ended = Err(error);
                    break;
                }
            }
        }
        if !grains.is_empty() {
            self.file.sync_data().map_err(self.target_failed())?;
            self.map.set(&grains).map_err(|source| StreamCopyError::Map { on: self.on.clone(), source })?;
        }
        ended.map(|()| self.copied())
    }

    /// Writes what is not zero in a grain; `false` when there was nothing.
    fn copy_grain(&self, grain: u64) -> Result<bool, StreamCopyError> {
        let range = grain * GRAIN_BYTES..((grain + 1) * GRAIN_BYTES).min(self.source.len_bytes());
        // The file was made of zeroes.
        let parts = self.source.data_in(range)?;
        for part in &parts {
            let mut bytes = vec![0; (part.end - part.start) as usize];
            self.guests.wait_for_foreground();
            self.source.read(&mut bytes, part.start, &mut Origin::DiskCache)?;
            self.file.write_all_at(&bytes, part.start).map_err(self.target_failed())?;
        }
        Ok(!parts.is_empty())
    }

    fn target_failed(&self) -> impl FnOnce(io::Error) -> StreamCopyError + use<> {
        let on = self.on.clone();
        |source| StreamCopyError::Target { on, source }
    }
}

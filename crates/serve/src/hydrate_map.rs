//! Which grains of the base have reached the target: one bit each, in a file (spec block-serving C.7).
//!
//! A bit that is lost costs a copy; a bit that is there too early costs data. So bits are written after their grains are
//! durable, and made durable themselves before anything but the base is written there.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::folder::{Folder, StoredFile, replace};
use crate::overlay::sha256;

/// The unit of hydration, unless a test wants another.
pub const GRAIN_BYTES: u64 = 1 << 20;

/// The map's file.
pub const MAP_NAME: &str = "hydrate.map";

const MAGIC: [u8; 8] = *b"E3HYMAP1";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 4096;
/// Behind the fields: the SHA-256 of what is before it.
const SUM_AT: usize = HEADER_BYTES - 32;

/// Bits in memory and in the file.
pub struct HydrateMap {
    file: Arc<dyn StoredFile>,
    bits: Vec<AtomicU8>,
    grain_bytes: u64,
    grains: u64,
    set: AtomicU64,
}

/// Whose map it is.
#[derive(Clone, Copy, Debug)]
pub struct MapIdentity {
    /// The session.
    pub session: [u8; 16],
    /// The unit of hydration: [`GRAIN_BYTES`].
    pub grain_bytes: u64,
    /// Size of the target.
    pub size_bytes: u64,
    /// Identity of the base.
    pub base: [u8; 32],
}

impl MapIdentity {
    fn header(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(16, &self.session);
        put(32, &self.grain_bytes.to_le_bytes());
        put(40, &self.size_bytes.to_le_bytes());
        put(48, &sha256(&self.base));
        let sum = sha256(&bytes[..SUM_AT]);
        bytes[SUM_AT..].copy_from_slice(&sum);
        bytes
    }

    fn grains(&self) -> u64 {
        self.size_bytes.div_ceil(self.grain_bytes.max(512))
    }
}

impl HydrateMap {
    /// A map without a bit, durable before anything relies on it.
    pub fn create(folder: &dyn Folder, identity: &MapIdentity) -> io::Result<Self> {
        let mut bytes = identity.header().to_vec();
        bytes.resize(HEADER_BYTES + identity.grains().div_ceil(8) as usize, 0);
        replace(folder, MAP_NAME, &bytes)?;
        Self::open(folder, identity)
    }

    /// The map that is there, durable as it is found; an error when it is another's, or not whole.
    pub fn open(folder: &dyn Folder, identity: &MapIdentity) -> io::Result<Self> {
        let file = folder.open(MAP_NAME)?;
        file.sync_data()?;
        folder.sync()?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0)?;
        if header != identity.header() {
            let problem = "the hydration map belongs to another session, restore point or size; it is left as it is";
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        let grains = identity.grains();
        let mut bytes = vec![0; grains.div_ceil(8) as usize];
        file.read_exact_at(&mut bytes, HEADER_BYTES as u64)?;
        if let (Some(last), used @ 1..) = (bytes.last_mut(), grains % 8) {
            // What is set behind the last grain is nobody's.
            *last &= (1 << used) - 1;
        }
        let set = bytes.iter().map(|byte| u64::from(byte.count_ones())).sum();
        let bits = bytes.into_iter().map(AtomicU8::new).collect();
        Ok(Self { file, bits, grain_bytes: identity.grain_bytes.max(512), grains, set: AtomicU64::new(set) })
    }

    /// The unit.
    pub fn grain_bytes(&self) -> u64 {
        self.grain_bytes
    }

    /// How many grains there are.
    pub fn grains(&self) -> u64 {
        self.grains
    }

    /// How many have reached the target.
    pub fn hydrated(&self) -> u64 {
        self.set.load(Ordering::Relaxed)
    }

    /// Whether a grain has.
    pub fn is_hydrated(&self, grain: u64) -> bool {
        self.bits[(grain / 8) as usize].load(Ordering::Acquire) & (1 << (grain % 8)) != 0
    }

    /// The first grain from `from` on that has not.
    pub fn next_missing(&self, from: u64) -> Option<u64> {
        (from..self.grains).find(|grain| !self.is_hydrated(*grain))
    }

    /// Notes grains whose bytes are durable in the target. One caller at a time.
    pub(crate) fn set(&self, grains: &[u64]) -> io::Result<()> {
        let mut at = 0;
        while at < grains.len() {
            // Bytes that lie side by side are written together.
            let first = grains[at] / 8;
            let mut bytes: Vec<u8> = Vec::new();
            while let Some(grain) = grains.get(at) {
                let nth = (grain / 8).wrapping_sub(first) as usize;
                if nth > bytes.len() {
                    break;
                }
                if nth == bytes.len() {
                    bytes.push(self.bits[(grain / 8) as usize].load(Ordering::Acquire));
                }
                bytes[nth] |= 1 << (grain % 8);
                at += 1;
            }
            self.file.write_all_at(&bytes, HEADER_BYTES as u64 + first)?;
            for (byte, bits) in bytes.iter().zip(&self.bits[first as usize..]) {
                let before = bits.swap(*byte, Ordering::AcqRel);
                self.set.fetch_add(u64::from((byte & !before).count_ones()), Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Returns when every bit that was set survives a power loss.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::DiskFolder;

    #[test]
    fn bits_are_read_as_set_and_by_their_owner_only() {
        let place = tempfile::tempdir().unwrap();
        let folder = DiskFolder::open_or_create(place.path()).unwrap();
        let identity = MapIdentity {
            session: [1; 16],
            grain_bytes: GRAIN_BYTES,
            size_bytes: 100 * GRAIN_BYTES - 512,
            base: [2; 32],
        };
        let map = HydrateMap::create(&folder, &identity).unwrap();
        assert_eq!((map.grains(), map.hydrated(), map.next_missing(0)), (100, 0, Some(0)));
        for grains in [vec![0, 1, 7, 8, 9, 64], vec![1, 2, 99]] {
            map.set(&grains).unwrap();
        }
        let map = HydrateMap::open(&folder, &identity).unwrap();
        let set: Vec<u64> = (0..100).filter(|grain| map.is_hydrated(*grain)).collect();
        assert_eq!(set, [0, 1, 2, 7, 8, 9, 64, 99]);
        assert_eq!((map.hydrated(), map.next_missing(7)), (8, Some(10)));
        for other in [
            MapIdentity { session: [9; 16], ..identity },
            MapIdentity { size_bytes: identity.size_bytes + 512, ..identity },
            MapIdentity { base: [9; 32], ..identity },
        ] {
            assert!(HydrateMap::open(&folder, &other).is_err(), "{other:?}");
        }
    }
}

//! A base in memory: every sector tells which one it is; some segments are zero; it can go away.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serve::{Base, BaseError, Origin, base_identity};

pub const SECTOR: u64 = 512;

pub struct MemoryBase {
    pub size_bytes: u64,
    pub segment_bytes: u32,
    pub is_gone: AtomicBool,
    pub fetches: AtomicU64,
}

impl MemoryBase {
    pub fn new(size_bytes: u64, segment_bytes: u32) -> Self {
        Self { size_bytes, segment_bytes, is_gone: AtomicBool::new(false), fetches: AtomicU64::new(0) }
    }

    /// What a sector of the base holds: 0 is zeroes.
    pub fn value(&self, sector: u64) -> u64 {
        let segment = sector * SECTOR / u64::from(self.segment_bytes);
        if segment % 4 == 3 { 0 } else { u64::from_be_bytes(*b"BASEBASE") ^ sector }
    }
}

/// A sector that holds nothing but a value.
pub fn sector_of(value: u64) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&value.to_be_bytes()));
    bytes
}

/// The value that a sector holds; the error is bytes of two values.
pub fn value_of(sector: &[u8]) -> Result<u64, String> {
    let first: [u8; 8] = sector[..8].try_into().expect("eight bytes");
    match sector.chunks_exact(8).all(|chunk| chunk == first) {
        true => Ok(u64::from_be_bytes(first)),
        false => Err("a sector mixes values".into()),
    }
}

impl Base for MemoryBase {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn sector_bytes(&self) -> u32 {
        512
    }

    fn segment_bytes(&self) -> u32 {
        self.segment_bytes
    }

    fn identity(&self) -> [u8; 32] {
        base_identity("memory", self.size_bytes)
    }

    fn is_zero(&self, segment: u64) -> Result<bool, BaseError> {
        Ok(segment % 4 == 3)
    }

    fn read_segment(&self, segment: u64, bytes: &mut Vec<u8>) -> Result<Origin, BaseError> {
        if self.is_gone.load(Ordering::SeqCst) {
            return Err(BaseError { is_unreachable: true, message: format!("fetch segment {segment}: gone") });
        }
        self.fetches.fetch_add(1, Ordering::SeqCst);
        bytes.clear();
        let first = segment * u64::from(self.segment_bytes) / SECTOR;
        for sector in first..first + self.len_of(segment) / SECTOR {
            bytes.extend(sector_of(self.value(sector)));
        }
        Ok(Origin::Repository)
    }
}

//! The scripted guest: what it writes is a function of a seed.

use crate::disks::GuestDisk;
use crate::error::LabError;
use crate::extents::Extents;

/// A burst of writes, spread over the disks of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestWrites {
    /// The same seed on the same disks gives the same writes.
    pub seed: u64,
    /// How much is written, zeroing and overwriting included; more or less, as the last piece may be cut.
    pub mib: u32,
    /// Where.
    pub spread: Spread,
}

/// Where the scripted guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Anywhere, in pieces of 512 bytes to 1 MiB, mostly small.
    Scattered,
    /// Pieces of up to 1 MiB, around a few places.
    Clustered,
    /// One run per disk from a place onward, in pieces of 1 MiB.
    Sequential,
}

/// One piece of a burst.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) disk: usize,
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u64,
    /// Seed of the data; `None` to zero the range.
    pub(crate) data: Option<u64>,
}

/// What a burst consists of, for disks of these sizes and sectors.
pub(crate) fn plan(writes: GuestWrites, disks: &[vhdx::DiskGeometry]) -> Vec<Piece> {
    let mut random = SplitMix::new(writes.seed);
    let disks: Vec<(usize, u64, u64)> = (disks.iter().enumerate())
        .map(|(index, disk)| (index, disk.size_bytes, u64::from(disk.logical_sector_bytes.max(512))))
        .filter(|&(_, size, sector)| size >= sector)
        .collect();
    let mut pieces: Vec<Piece> = Vec::new();
    if disks.is_empty() {
        return pieces;
    }
    let places: Vec<u64> = (0..8).map(|_| random.next()).collect();
    let mut runs: Vec<u64> = disks.iter().map(|&(_, size, sector)| random.below(size / sector) * sector).collect();
    let mut left = u64::from(writes.mib) << 20;
    while left > 0 {
        let which = random.below(disks.len() as u64) as usize;
        let (disk, size, sector) = disks[which];
        let longest = left.min(1 << 20).min(size);
        let len = match writes.spread {
            Spread::Sequential => longest,
            // Logarithmically even between a sector and 1 MiB.
            _ => (sector << random.below(12)).min(longest),
        };
        let len = (len / sector * sector).max(sector).min(size / sector * sector);
        let room = (size - len) / sector + 1;
        let again = pieces.iter().rev().take(64).find(|piece| piece.disk == disk && piece.offset_bytes + len <= size);
        let offset = match (writes.spread, again) {
            (Spread::Sequential, _) => {
                let offset = if runs[which] + len > size { 0 } else { runs[which] };
                runs[which] = offset + len;
                offset
            }
            // One piece in eight overwrites the beginning of a recent one.
            (_, Some(piece)) if random.below(8) == 0 => piece.offset_bytes,
            (Spread::Scattered, _) => random.below(room) * sector,
            (Spread::Clustered, _) => {
                let place = places[random.below(places.len() as u64) as usize] % room;
                (place + random.below(4096)).min(room - 1) * sector
            }
        };
        let data = (random.below(16) != 0).then(|| random.next());
        pieces.push(Piece { disk, offset_bytes: offset, len_bytes: len, data });
        left = left.saturating_sub(len);
    }
    pieces
}

/// Where the pieces for one disk lie, for the tracking record.
pub(crate) fn touched(pieces: &[Piece], disk: usize) -> Extents {
    let mut touched = Extents::default();
    for piece in pieces.iter().filter(|piece| piece.disk == disk) {
        touched.insert(piece.offset_bytes..piece.offset_bytes + piece.len_bytes);
    }
    touched
}

/// Writes the pieces for one disk, in order.
pub(crate) fn write(disk: &mut GuestDisk, pieces: &[Piece], index: usize) -> Result<(), LabError> {
    let size = disk.geometry().size_bytes;
    for piece in pieces.iter().filter(|piece| piece.disk == index) {
        let end = piece.offset_bytes + piece.len_bytes;
        assert!(end <= size, "pieces are planned inside the disk");
        match piece.data {
            Some(seed) => {
                let mut data = vec![0; piece.len_bytes as usize];
                SplitMix::new(seed).fill(&mut data);
                disk.write(&data, piece.offset_bytes)?;
            }
            None => disk.zero(piece.offset_bytes..end)?,
        }
    }
    Ok(())
}

/// The SplitMix64 generator (Steele, Lea, Flood 2014): small, and the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct SplitMix(u64);

impl SplitMix {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 for a limit of 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    pub(crate) fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_stay_inside_the_disks_and_repeat() {
        let geometry =
            |size_bytes| vhdx::DiskGeometry { size_bytes, logical_sector_bytes: 512, physical_sector_bytes: 4096 };
        for disks in [vec![geometry(512)], vec![geometry(3 << 20), geometry((1 << 40) + 512)], vec![geometry(1 << 30)]]
        {
            for spread in [Spread::Scattered, Spread::Clustered, Spread::Sequential] {
                let writes = GuestWrites { seed: 3, mib: 2, spread };
                let pieces = plan(writes, &disks);
                assert!(!pieces.is_empty());
                for piece in &pieces {
                    let size = disks[piece.disk].size_bytes;
                    assert!(piece.len_bytes > 0 && piece.offset_bytes + piece.len_bytes <= size, "{piece:?} of {size}");
                    assert_eq!((piece.offset_bytes % 512, piece.len_bytes % 512), (0, 0), "{piece:?}");
                }
                let again = plan(writes, &disks);
                assert_eq!(format!("{pieces:?}"), format!("{again:?}"), "{spread:?}");
            }
        }
    }
}

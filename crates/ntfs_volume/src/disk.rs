//! The disk: partition tables around the volume, and what each of its bytes is.

use std::ops::Range;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::bytes::{Put as _, put_at};
use crate::layout::{Layout, SECTOR_BYTES};
use crate::metadata::{Metadata, PARTITION_SECTOR};
use crate::parameters::{FileContent, ParameterError, Parameters};

/// A GPT's entries.
const TABLE_BYTES: usize = 128 * 128;
/// Sectors of a table with its header.
const TABLE_SECTORS: u64 = 33;
const BASIC_DATA: Uuid = Uuid::from_u128(0xEBD0_A0A2_B9E5_4433_87C0_68B6_B726_99C7);
/// Windows gives the volume no letter; the agent mounts it to a folder.
const NO_DRIVE_LETTER: u64 = 1 << 63;
const PARTITION_NAME: &str = "e3";

/// A disk of 512-byte sectors with one NTFS volume. It is made once, and never changes.
pub struct Disk {
    layout: Layout,
    size_bytes: u64,
    /// Bytes that are there, by offset, without overlap.
    literals: Vec<(u64, Vec<u8>)>,
    /// What is neither literal nor zero, by offset.
    computed: Vec<Area>,
    /// Clusters in use, as bits of `$Bitmap`.
    used_bits: Vec<Range<u64>>,
}

#[derive(Clone, Copy, Debug)]
struct Area {
    offset: u64,
    len_bytes: u64,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Ones,
    Bitmap,
    File(usize),
}

/// What a part of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'d> {
    /// These bytes.
    Literal(&'d [u8]),
    /// Every bit is one.
    Ones,
    /// A part of `$Bitmap`, for [`Disk::bitmap`].
    Bitmap {
        /// Offset in it.
        offset_bytes: u64,
    },
    /// A part of a file, by its place in [`Parameters::files`].
    File {
        /// Which.
        file: usize,
        /// Offset in it.
        offset_bytes: u64,
    },
    /// Nothing was ever written there.
    Zero,
}

impl Disk {
    /// Makes the disk of these parameters.
    pub fn build(parameters: &Parameters) -> Result<Self, ParameterError> {
        let Metadata { layout, literals } = Metadata::build(parameters)?;
        let volume_at = PARTITION_SECTOR * SECTOR_BYTES;
        let partition_sectors = layout.partition_bytes / SECTOR_BYTES;
        let sectors = (PARTITION_SECTOR + partition_sectors + TABLE_SECTORS).next_multiple_of(2048);
        let (head, tail) = partition_tables(parameters, sectors, partition_sectors);
        let tail_at = sectors * SECTOR_BYTES - tail.len() as u64;

        let mut all = vec![(0, head)];
        all.extend(literals.into_iter().map(|(offset, bytes)| (volume_at + offset, bytes)));
        all.push((tail_at, tail));

        let at = |first: Option<u64>| volume_at + first.unwrap_or_default() * layout.cluster_bytes;
        let mut computed = vec![
            Area { offset: at(layout.bitmap.first), len_bytes: layout.bitmap_bytes, what: What::Bitmap },
            Area {
                offset: at(layout.log.first),
                len_bytes: layout.log.clusters * layout.cluster_bytes,
                what: What::Ones,
            },
        ];
        for (nth, (file, run)) in parameters.files.iter().zip(&layout.files).enumerate() {
            if let (FileContent::External { size_bytes }, Some(run)) = (&file.content, run) {
                computed.push(Area { offset: at(run.first), len_bytes: *size_bytes, what: What::File(nth) });
            }
        }
        computed.sort_by_key(|area| area.offset);
        let mut used_bits: Vec<Range<u64>> = Vec::new();
        for run in layout.used() {
            let first = run.first.unwrap_or_default();
            match used_bits.last_mut() {
                Some(last) if last.end == first => last.end += run.clusters,
                _ => used_bits.push(first..first + run.clusters),
            }
        }
        // Behind the last cluster all are set, as Windows and mkntfs do.
        used_bits.push(layout.clusters..layout.bitmap_bytes * 8);
        Ok(Self { layout, size_bytes: sectors * SECTOR_BYTES, literals: all, computed, used_bits })
    }

    /// Size of the disk: a multiple of 1 MiB.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Clusters of the volume, and bytes of each.
    pub fn clusters(&self) -> (u64, u64) {
        (self.layout.clusters, self.layout.cluster_bytes)
    }

    /// Where on the disk a file begins, and how long it is; `None` for one that is kept in the metadata.
    pub fn file_extent(&self, file: usize) -> Option<Range<u64>> {
        let area = self.computed.iter().find(|area| matches!(area.what, What::File(nth) if nth == file))?;
        Some(area.offset..area.offset + area.len_bytes)
    }

    /// The bytes that are there from the beginning, by offset.
    pub fn literals(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.literals.iter().map(|(offset, bytes)| (*offset, &**bytes))
    }

    /// Length of `$Bitmap`.
    pub fn bitmap_bytes(&self) -> u64 {
        self.layout.bitmap_bytes
    }

    /// SHA-256 of everything that is not a file's: what must be the same again after a restart.
    pub fn metadata_sha256(&self) -> [u8; 32] {
        let mut sum = Sha256::new();
        for (offset, bytes) in self.literals() {
            sum.update(offset.to_le_bytes());
            sum.update((bytes.len() as u64).to_le_bytes());
            sum.update(bytes);
        }
        // The other areas follow from these.
        for area in &self.computed {
            sum.update(area.offset.to_le_bytes());
            sum.update(area.len_bytes.to_le_bytes());
        }
        sum.finalize().into()
    }

    /// Fills `buf` with a part of `$Bitmap`. A set bit is a cluster in use.
    pub fn bitmap(&self, buf: &mut [u8], offset_bytes: u64) {
        buf.fill(0);
        let bits = offset_bytes * 8..(offset_bytes + buf.len() as u64) * 8;
        let from = self.used_bits.partition_point(|used| used.end <= bits.start);
        for used in self.used_bits[from..].iter().take_while(|used| used.start < bits.end) {
            set_bits(buf, used.start.max(bits.start) - bits.start..used.end.min(bits.end) - bits.start);
        }
    }

    /// What is in a range of the disk, in order, without a gap. What lies behind the end is zero.
    pub fn pieces(&self, range: Range<u64>) -> Pieces<'_> {
        Pieces { disk: self, range }
    }

    /// Reads the disk; `file` gives the bytes of files: which, into what, from which offset.
    pub fn read<E>(
        &self,
        buf: &mut [u8],
        offset_bytes: u64,
        mut file: impl FnMut(usize, &mut [u8], u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = buf;
        let len = rest.len() as u64;
        for (range, piece) in self.pieces(offset_bytes..offset_bytes + len) {
            let (here, behind) = rest.split_at_mut((range.end - range.start) as usize);
            match piece {
                Piece::Literal(bytes) => here.copy_from_slice(bytes),
                Piece::Ones => here.fill(0xFF),
                Piece::Bitmap { offset_bytes } => self.bitmap(here, offset_bytes),
                Piece::File { file: nth, offset_bytes } => file(nth, here, offset_bytes)?,
                Piece::Zero => here.fill(0),
            }
            rest = behind;
        }
        Ok(())
    }

    /// The piece at an offset, and where it ends.
    fn piece_at(&self, offset: u64) -> (u64, Piece<'_>) {
        let literal = self.literals.partition_point(|(at, bytes)| at + bytes.len() as u64 <= offset);
        let area = self.computed.partition_point(|area| area.offset + area.len_bytes <= offset);
        let mut end = u64::MAX;
        if let Some((at, bytes)) = self.literals.get(literal) {
            if *at <= offset {
                return (at + bytes.len() as u64, Piece::Literal(&bytes[(offset - at) as usize..]));
            }
            end = *at;
        }
        if let Some(area) = self.computed.get(area) {
            if area.offset <= offset {
                let offset_bytes = offset - area.offset;
                let piece = match area.what {
                    What::Ones => Piece::Ones,
                    What::Bitmap => Piece::Bitmap { offset_bytes },
                    What::File(file) => Piece::File { file, offset_bytes },
                };
                return (area.offset + area.len_bytes, piece);
            }
            end = end.min(area.offset);
        }
        (end, Piece::Zero)
    }
}

/// The pieces of a range.
pub struct Pieces<'d> {
    disk: &'d Disk,
    range: Range<u64>,
}

impl<'d> Iterator for Pieces<'d> {
    type Item = (Range<u64>, Piece<'d>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.range.is_empty() {
            return None;
        }
        let (end, piece) = self.disk.piece_at(self.range.start);
        let here = self.range.start..end.min(self.range.end);
        self.range.start = here.end;
        let piece = match piece {
            Piece::Literal(bytes) => Piece::Literal(&bytes[..(here.end - here.start) as usize]),
            piece => piece,
        };
        Some((here, piece))
    }
}

fn set_bits(buf: &mut [u8], bits: Range<u64>) {
    let (first, last) = ((bits.start / 8) as usize, (bits.end / 8) as usize);
    let (low, high) = (0xFF << (bits.start % 8), !(0xFF << (bits.end % 8)));
    if first == last {
        buf[first] |= (low & high) as u8;
        return;
    }
    buf[first] |= low as u8;
    buf[first + 1..last].fill(0xFF);
    if let Some(byte) = buf.get_mut(last) {
        *byte |= high as u8;
    }
}

/// What is before the volume, and what ends the disk (spec block-serving D.2).
fn partition_tables(parameters: &Parameters, sectors: u64, partition_sectors: u64) -> (Vec<u8>, Vec<u8>) {
    let last = PARTITION_SECTOR + partition_sectors - 1;
    let mut table = Vec::with_capacity(TABLE_BYTES);
    table.bytes(&BASIC_DATA.to_bytes_le()).bytes(&parameters.partition_guid.to_bytes_le());
    table.u64(PARTITION_SECTOR).u64(last).u64(NO_DRIVE_LETTER).text(PARTITION_NAME).pad_to(TABLE_BYTES);
    let table_sum = crc32fast::hash(&table);
    let header = |here: u64, other: u64, table_at: u64| {
        const HEADER_BYTES: usize = 92;
        let mut header = Vec::with_capacity(SECTOR_BYTES as usize);
        header.bytes(b"EFI PART").u32(0x1_0000).u32(HEADER_BYTES as u32).u32(0).u32(0).u64(here).u64(other);
        header.u64(34).u64(sectors - 34).bytes(&parameters.disk_guid.to_bytes_le()).u64(table_at);
        header.u32(128).u32(128).u32(table_sum);
        let sum = crc32fast::hash(&header);
        put_at(&mut header, 16, &sum.to_le_bytes());
        header.pad_to(SECTOR_BYTES as usize);
        header
    };
    let mut protective = Vec::with_capacity(SECTOR_BYTES as usize);
    protective.pad_to(446).bytes(&[0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF]).u32(1);
    protective.u32(u32::try_from(sectors - 1).unwrap_or(u32::MAX)).pad_to(510).u8(0x55).u8(0xAA);
    let head = [protective, header(1, sectors - 1, 2), table.clone()].concat();
    let tail = [table, header(sectors - 1, 1, sectors - TABLE_SECTORS)].concat();
    (head, tail)
}

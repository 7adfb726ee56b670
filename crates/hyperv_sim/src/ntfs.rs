//! The files in the root folder of an NTFS volume, read from its own metadata, as a host that mounts it would.
//!
//! Only what a volume of virtual disks needs: a GPT, file names, and data in runs. Source: the NTFS documentation of the
//! Linux-NTFS project.

use std::io;

use crate::initiator::RemoteUnit;

const BASIC_DATA: [u8; 16] =
    [0xA2, 0xA0, 0xD0, 0xEB, 0xE5, 0xB9, 0x33, 0x44, 0x87, 0xC0, 0x68, 0xB6, 0xB7, 0x26, 0x99, 0xC7];
const ROOT: u64 = 5;
/// More runs than this has no file.
const MOST_RUNS: usize = 65_536;
/// More of the file table is not looked at.
const MOST_TABLE_BYTES: u64 = 8 << 20;

/// A file, and where its bytes are on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NtfsFile {
    pub(crate) name: String,
    pub(crate) len_bytes: u64,
    /// Offset on the disk and length, in the order of the file; `None` for a hole. No sum of theirs overflows.
    runs: Vec<(Option<u64>, u64)>,
}

impl NtfsFile {
    /// Fills `buf`, which lies inside the file.
    pub(crate) fn read(&self, unit: &RemoteUnit, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let end = offset_bytes.checked_add(buf.len() as u64).filter(|end| *end <= self.len_bytes);
        let end = end.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let mut at = 0;
        for (place, len) in &self.runs {
            let (from, to) = (offset_bytes.max(at), end.min(at + len));
            if from < to {
                let piece = &mut buf[(from - offset_bytes) as usize..(to - offset_bytes) as usize];
                match place {
                    Some(place) => unit.read_exact_at(piece, place + (from - at))?,
                    None => piece.fill(0),
                }
            }
            at += len;
        }
        if at < end { Err(broken("a file's runs are shorter than the file")) } else { Ok(()) }
    }
}

/// The files of the first basic data partition.
pub(crate) fn root_files(unit: &RemoteUnit) -> io::Result<Vec<NtfsFile>> {
    let volume_at = partition(unit)?;
    let boot = read(unit, volume_at, 512)?;
    if boot[3..11] != *b"NTFS    " {
        return Err(broken("the volume is not NTFS"));
    }
    let sector = u64::from(u16_at(&boot, 11));
    let per_cluster = match boot[13] {
        count @ 1..=0x80 => u64::from(count),
        power => 1 << (256 - u32::from(power)).min(31),
    };
    let cluster = sector * per_cluster;
    let record_bytes = match boot[64].cast_signed() {
        clusters @ 1.. => u64::from(clusters.unsigned_abs()) * cluster,
        power => 1 << u32::from(power.unsigned_abs()).min(16),
    };
    if !(512..=4096).contains(&sector) || !(512..=65_536).contains(&record_bytes) {
        return Err(broken("the boot sector's sizes are impossible"));
    }
    let geometry = Geometry { volume_at, cluster };
    let first = geometry.place(u64_at(&boot, 48))?;
    let table = read_record(unit, first, record_bytes, sector)?.ok_or_else(|| broken("there is no file table"))?;
    let table = data_of(&table, &geometry)?.ok_or_else(|| broken("the file table has no data"))?;
    let mut bytes = vec![0; table.len_bytes.min(MOST_TABLE_BYTES) as usize];
    table.read(unit, &mut bytes, 0)?;
    let mut files = Vec::new();
    for (number, bytes) in bytes.chunks_exact(record_bytes as usize).enumerate() {
        let Some(record) = fixed_up(bytes.to_vec(), sector)? else { continue };
        // In use, and no folder; the first ones are the volume's own.
        if number < 24 || u16_at(&record, 22) & 3 != 1 {
            continue;
        }
        if let (Some(name), Some(mut file)) = (name_of(&record)?, data_of(&record, &geometry)?) {
            file.name = name;
            files.push(file);
        }
    }
    Ok(files)
}

struct Geometry {
    volume_at: u64,
    cluster: u64,
}

impl Geometry {
    fn place(&self, cluster: u64) -> io::Result<u64> {
        let place = cluster.checked_mul(self.cluster).and_then(|at| at.checked_add(self.volume_at));
        place.ok_or_else(|| broken("a cluster beyond all disks"))
    }
}

fn partition(unit: &RemoteUnit) -> io::Result<u64> {
    let header = read(unit, 512, 512)?;
    if header[..8] != *b"EFI PART" {
        return Err(broken("the disk has no GPT"));
    }
    let (table, entry_bytes) = (u64_at(&header, 72), u32_at(&header, 84) as usize);
    if !(128..=4096).contains(&entry_bytes) {
        return Err(broken("the GPT's entries have an impossible size"));
    }
    let entries = read(unit, table.saturating_mul(512), 128 * 128)?;
    let found = entries.chunks_exact(entry_bytes).find(|entry| entry[..16] == BASIC_DATA);
    found.map(|entry| u64_at(entry, 32).saturating_mul(512)).ok_or_else(|| broken("there is no basic data partition"))
}

fn read_record(unit: &RemoteUnit, at: u64, bytes: u64, sector: u64) -> io::Result<Option<Vec<u8>>> {
    fixed_up(read(unit, at, bytes as usize)?, sector)
}

/// The record with the ends of its sectors put back; `None` where there is none.
fn fixed_up(mut record: Vec<u8>, sector: u64) -> io::Result<Option<Vec<u8>>> {
    if record[..4] != *b"FILE" {
        return Ok(None);
    }
    let (array, count) = (usize::from(u16_at(&record, 4)), usize::from(u16_at(&record, 6)));
    let wrong = || broken("a record's update sequence is wrong");
    let fixups = record.get(array..array + count * 2).ok_or_else(wrong)?.to_vec();
    let (Some(number), true) = (fixups.get(..2), count > 0) else { return Err(wrong()) };
    for (nth, original) in fixups[2..].chunks_exact(2).enumerate() {
        let end = (nth + 1) * sector.min(512) as usize;
        let place = record.get_mut(end - 2..end).ok_or_else(wrong)?;
        if place != number {
            return Err(wrong());
        }
        place.copy_from_slice(original);
    }
    Ok(Some(record))
}

/// Attributes of a record: type and bytes.
fn attributes(record: &[u8]) -> Vec<(u32, &[u8])> {
    let mut at = usize::from(u16_at(record, 20));
    let mut found = Vec::new();
    while let Some(head) = record.get(at..at + 16) {
        let (kind, len) = (u32_at(head, 0), u32_at(head, 4) as usize);
        let Some(bytes) = record.get(at..at + len).filter(|_| kind != u32::MAX && len >= 24) else { break };
        found.push((kind, bytes));
        at += len;
    }
    found
}

/// The long name, of a file in the root folder.
fn name_of(record: &[u8]) -> io::Result<Option<String>> {
    for (kind, bytes) in attributes(record) {
        let content = bytes.get(usize::from(u16_at(bytes, 20))..).unwrap_or_default();
        // Namespace 2 is the short name alone.
        if kind != 0x30 || content.len() < 66 || content[65] == 2 || u64_at(content, 0) & 0xFFFF_FFFF_FFFF != ROOT {
            continue;
        }
        let units: Vec<u16> =
            content[66..].chunks_exact(2).take(usize::from(content[64])).map(|unit| u16_at(unit, 0)).collect();
        return Ok(Some(String::from_utf16(&units).map_err(|_| broken("a name is not UTF-16"))?));
    }
    Ok(None)
}

/// The unnamed data, when it lies in runs.
fn data_of(record: &[u8], geometry: &Geometry) -> io::Result<Option<NtfsFile>> {
    let data = attributes(record).into_iter().find(|(kind, bytes)| *kind == 0x80 && bytes[8] == 1 && bytes[9] == 0);
    let Some((_, bytes)) = data else { return Ok(None) };
    let wrong = || broken("a file's runs are wrong");
    let len_bytes = bytes.get(48..56).map(|field| u64_at(field, 0)).ok_or_else(wrong)?;
    let mut rest = bytes.get(usize::from(u16_at(bytes, 32))..).ok_or_else(wrong)?;
    let (mut runs, mut cluster, mut total) = (Vec::new(), 0_i64, 0_u64);
    while let Some(sizes) = rest.first().copied().filter(|sizes| *sizes != 0) {
        let (len_size, place_size) = (usize::from(sizes & 15), usize::from(sizes >> 4));
        if !(1..=8).contains(&len_size) || place_size > 8 || runs.len() >= MOST_RUNS {
            return Err(wrong());
        }
        let len = rest.get(1..1 + len_size).map(signed).ok_or_else(wrong)?;
        let place = rest.get(1 + len_size..1 + len_size + place_size).ok_or_else(wrong)?;
        let len = u64::try_from(len).ok().and_then(|len| len.checked_mul(geometry.cluster)).ok_or_else(wrong)?;
        let at = match place_size {
            0 => None,
            _ => {
                cluster = cluster.checked_add(signed(place)).ok_or_else(wrong)?;
                let at = geometry.place(u64::try_from(cluster).map_err(|_| wrong())?)?;
                at.checked_add(len).ok_or_else(wrong)?;
                Some(at)
            }
        };
        // Who reads adds these up.
        total = total.checked_add(len).ok_or_else(wrong)?;
        runs.push((at, len));
        rest = &rest[1 + len_size + place_size..];
    }
    Ok(Some(NtfsFile { name: String::new(), len_bytes, runs }))
}

/// A little-endian number of up to 8 bytes, with its sign.
fn signed(bytes: &[u8]) -> i64 {
    let fill = if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xFF } else { 0 };
    let mut whole = [fill; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    i64::from_le_bytes(whole)
}

fn read(unit: &RemoteUnit, offset_bytes: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    unit.read_exact_at(&mut bytes, offset_bytes)?;
    Ok(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn broken(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

//! File systems on a restored disk: found by partition table and signature, and checked by the system's own tools.
//!
//! This is for the verification of restores alone: which file system lies where, not what is in it. Disks come from
//! guests and are not trusted.

use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use vhdx::convert::is_zero;
use vhdx::io::ReadAt;

/// Entries of a partition table that are looked at; tables have 128, and those that claim more are not believed.
const MAX_PARTITIONS: u32 = 128;
/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;
/// Lines of a checker's output that are kept.
const MAX_LINES: usize = 8;

/// A file system and what its checker said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeCheck {
    /// Number of the disk in its point.
    pub disk: u32,
    /// Where it begins.
    pub offset_bytes: u64,
    /// `ext`, `ntfs`.
    pub file_system: String,
    /// The command; `None` if this machine has no checker for it.
    pub checker: Option<String>,
    /// Whether the checker found it sound; `None` if there was none.
    pub sound: Option<bool>,
    /// The end of what the checker said, when it found something.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub said: Vec<String>,
}

/// A file system that can be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileSystem {
    Ext,
    Ntfs,
}

/// Finds the file systems of `disk`, whose partition table counts in sectors of so many bytes, and checks each; what is
/// written for it goes to `scratch` and is removed.
pub(crate) fn check_volumes(
    disk: &dyn ReadAt,
    sector_bytes: u32,
    number: u32,
    scratch: &Path,
) -> io::Result<Vec<VolumeCheck>> {
    let mut checks = Vec::new();
    for range in volumes(disk, sector_bytes.into()) {
        let Some(file_system) = file_system_at(disk, &range) else { continue };
        checks.push(check(disk, number, range, file_system, scratch)?);
    }
    Ok(checks)
}

fn check(
    disk: &dyn ReadAt,
    number: u32,
    range: Range<u64>,
    file_system: FileSystem,
    scratch: &Path,
) -> io::Result<VolumeCheck> {
    let mut result = VolumeCheck {
        disk: number,
        offset_bytes: range.start,
        file_system: match file_system {
            FileSystem::Ext => "ext".into(),
            FileSystem::Ntfs => "ntfs".into(),
        },
        checker: None,
        sound: None,
        said: Vec::new(),
    };
    let (program, prepare, arguments): (_, Option<&[&str]>, &[&str]) = match file_system {
        // A disk that was frozen while it was written needs its journal replayed, as a boot would do; no more than that:
        // with -y the checker would make good what it is to find.
        FileSystem::Ext => ("e2fsck", Some(&["-p", "-E", "journal_only"]), &["-f", "-n"]),
        FileSystem::Ntfs => ("ntfsfix", None, &["-n"]),
    };
    if !is_installed(program) {
        return Ok(result);
    }
    let file = tempfile::Builder::new().prefix("volume-").tempfile_in(scratch)?;
    copy(disk, range, file.as_file())?;
    let run = |arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).arg(file.path()).stdin(Stdio::null()).env("LC_ALL", "C").output()
    };
    if let Some(arguments) = prepare {
        run(arguments)?;
    }
    let output = run(arguments)?;
    result.checker = Some(format!("{program} {}", arguments.join(" ")));
    result.sound = Some(output.status.success());
    if !output.status.success() {
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<String> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
        result.said = lines[lines.len().saturating_sub(MAX_LINES)..].to_vec();
    }
    Ok(result)
}

fn is_installed(program: &str) -> bool {
    Command::new(program).arg("-V").stdin(Stdio::null()).output().is_ok()
}

/// Copies a range into a file with holes.
fn copy(disk: &dyn ReadAt, range: Range<u64>, mut file: &File) -> io::Result<()> {
    use std::io::{Seek as _, SeekFrom};
    file.set_len(range.end - range.start)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = range.start;
    while let Some(data) = disk.next_data(at..range.end)? {
        at = data.start;
        let len = (data.end - at).min(CHUNK as u64) as usize;
        disk.read_exact_at(&mut buffer[..len], at)?;
        if !is_zero(&buffer[..len]) {
            file.seek(SeekFrom::Start(at - range.start))?;
            file.write_all(&buffer[..len])?;
        }
        at += len as u64;
    }
    Ok(())
}

fn size_of(disk: &dyn ReadAt) -> u64 {
    disk.len_bytes().unwrap_or(0)
}

/// Where volumes may lie: the partitions, or the whole disk where there is no table.
fn volumes(disk: &dyn ReadAt, sector: u64) -> Vec<Range<u64>> {
    let size = size_of(disk);
    let found = gpt(disk, sector).or_else(|| mbr(disk, sector)).unwrap_or_default();
    let inside: Vec<_> = found.into_iter().filter(|range| range.start < range.end && range.end <= size).collect();
    if inside.is_empty() { std::iter::once(0..size).collect() } else { inside }
}

/// GUID partition table (UEFI 2.10, 5.3): the header in sector 1.
fn gpt(disk: &dyn ReadAt, sector: u64) -> Option<Vec<Range<u64>>> {
    let header = read(disk, sector, 92)?;
    if !header.starts_with(b"EFI PART") {
        return None;
    }
    let (table, count, len) = (u64_at(&header, 72), u32_at(&header, 80), u32_at(&header, 84));
    if !(128..=4096).contains(&len) {
        return None;
    }
    let start = table.checked_mul(sector)?;
    let entry = |number: u32| {
        let entry = read(disk, start.checked_add(u64::from(number) * u64::from(len))?, 48)?;
        let is_used = entry[..16].iter().any(|byte| *byte != 0);
        let first = u64_at(&entry, 32).checked_mul(sector)?;
        let end = u64_at(&entry, 40).checked_add(1)?.checked_mul(sector)?;
        is_used.then_some(first..end)
    };
    Some((0..count.min(MAX_PARTITIONS)).filter_map(entry).collect())
}

/// The four primary entries of a master boot record. Logical drives inside an extended partition are not followed.
fn mbr(disk: &dyn ReadAt, sector: u64) -> Option<Vec<Range<u64>>> {
    let record = read(disk, 0, 512)?;
    // A boot sector of NTFS or FAT ends in the same two bytes, and has no table.
    if record[510..] != [0x55, 0xAA] || &record[3..7] == b"NTFS" || &record[54..57] == b"FAT" {
        return None;
    }
    let entries = record[446..510].chunks_exact(16).filter(|entry| entry[4] != 0 && matches!(entry[0], 0 | 0x80));
    let ranges = entries.map(|entry| {
        let (first, count) = (u64::from(u32_at(entry, 8)), u64::from(u32_at(entry, 12)));
        first * sector..(first + count) * sector
    });
    Some(ranges.collect())
}

fn file_system_at(disk: &dyn ReadAt, range: &Range<u64>) -> Option<FileSystem> {
    let start = read(disk, range.start, 2048)?;
    if &start[3..11] == b"NTFS    " {
        return Some(FileSystem::Ntfs);
    }
    // The superblock lies 1024 bytes in; its magic number 56 bytes further.
    (start[1080..1082] == [0x53, 0xEF]).then_some(FileSystem::Ext)
}

fn read(disk: &dyn ReadAt, offset: u64, len: usize) -> Option<Vec<u8>> {
    let end = offset.checked_add(len as u64)?;
    if end > size_of(disk) {
        return None;
    }
    let mut bytes = vec![0; len];
    disk.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        for (at, part) in parts {
            bytes[*at..at + part.len()].copy_from_slice(part);
        }
        bytes
    }

    #[test]
    fn partitions_are_found_and_lies_are_not_followed() {
        let mbr_entry = |first: u32, count: u32| {
            let mut entry = [0; 16];
            entry[4] = 0x83;
            entry[8..12].copy_from_slice(&first.to_le_bytes());
            entry[12..16].copy_from_slice(&count.to_le_bytes());
            entry
        };
        let mut header = [0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[72..80].copy_from_slice(&2_u64.to_le_bytes());
        header[80..84].copy_from_slice(&u32::MAX.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        let mut gpt_entry = [7; 48];
        gpt_entry[32..40].copy_from_slice(&64_u64.to_le_bytes());
        gpt_entry[40..48].copy_from_slice(&127_u64.to_le_bytes());
        let mut endless = gpt_entry;
        endless[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        for (label, parts, expected) in [
            ("empty", &[][..], (0..1 << 20)),
            ("MBR", &[(510, &[0x55, 0xAA][..]), (446, &mbr_entry(8, 16))], (4096..12288)),
            ("MBR past the end", &[(510, &[0x55, 0xAA]), (446, &mbr_entry(8, u32::MAX))], (0..1 << 20)),
            ("NTFS without table", &[(510, &[0x55, 0xAA]), (3, b"NTFS    "), (446, &[1; 64])], (0..1 << 20)),
            ("GPT", &[(512, &header), (1024, &gpt_entry)], (32768..65536)),
            ("GPT without end", &[(512, &header), (1024, &endless)], (0..1 << 20)),
        ] {
            assert_eq!(volumes(&disk(parts), 512), std::slice::from_ref(&expected), "{label}");
        }
    }

    #[test]
    fn file_systems_are_told_by_their_marks() {
        let whole = 0..1 << 20;
        assert_eq!(file_system_at(&disk(&[]), &whole), None);
        assert_eq!(file_system_at(&disk(&[(3, b"NTFS    ")]), &whole), Some(FileSystem::Ntfs));
        assert_eq!(file_system_at(&disk(&[(1080, &[0x53, 0xEF])]), &whole), Some(FileSystem::Ext));
        assert_eq!(file_system_at(&disk(&[]), &((1 << 20) - 512..1 << 20)), None);
    }
}

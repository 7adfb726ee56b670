//! The guest of the demo: a disk with a partition table, a FAT32 file system, and files that change.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

use anyhow::{Context, Result, bail};
use fatfs::{Dir, FatType, FileSystem, FormatVolumeOptions, FsOptions};
use sha2::{Digest, Sha256};

use super::page_cache::{CachedPartition, Device};
use crate::random::Random;

const SECTOR_BYTES: u64 = 512;
/// Where every current partitioning program lets the first partition begin.
const PARTITION_START_BYTES: u64 = 1 << 20;
const PARTITION_TYPE_FAT32_LBA: u8 = 0x0C;

type Folder<'fs, 'p, 'd> = Dir<'fs, &'p mut CachedPartition<'d>>;

/// Size and SHA-256 of each file, by path.
pub type Listing = BTreeMap<String, (u64, String)>;

/// Partitions and formats an empty disk.
pub fn format_disk(device: &mut dyn Device, label: &str) -> Result<()> {
    let size_bytes = device.size_bytes();
    let table = partition_table(size_bytes).context("the disk is too large for an MBR")?;
    device.write(&[(0, table)]).context("write the partition table")?;
    let mut partition = open_partition(device)?;
    let mut padded = [b' '; 11];
    for (to, from) in padded.iter_mut().zip(label.bytes()) {
        *to = from.to_ascii_uppercase();
    }
    // FAT32 begins at 65,525 clusters; with larger ones the driver would silently format FAT16.
    let cluster_bytes = if size_bytes < 512 << 20 { 512 } else { 4096 };
    let options =
        FormatVolumeOptions::new().fat_type(FatType::Fat32).bytes_per_cluster(cluster_bytes).volume_label(padded);
    fatfs::format_volume(&mut partition, options).context("format FAT32")?;
    partition.sync().context("write the empty file system")
}

/// A classic partition table with one partition that fills the disk.
fn partition_table(size_bytes: u64) -> Option<Vec<u8>> {
    let first_sector = u32::try_from(PARTITION_START_BYTES / SECTOR_BYTES).ok()?;
    let sectors = u32::try_from((size_bytes - PARTITION_START_BYTES) / SECTOR_BYTES).ok()?;
    let mut table = vec![0; SECTOR_BYTES as usize];
    table[440..444].copy_from_slice(b"E3DM");
    let entry = &mut table[446..462];
    // Cylinders, heads and sectors that say "use the sector numbers instead".
    entry[1..4].copy_from_slice(&[0xFE, 0xFF, 0xFF]);
    entry[5..8].copy_from_slice(&[0xFE, 0xFF, 0xFF]);
    entry[4] = PARTITION_TYPE_FAT32_LBA;
    entry[8..12].copy_from_slice(&first_sector.to_le_bytes());
    entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xAA]);
    Some(table)
}

/// Finds the partition by reading the table, as anyone who gets the disk would.
fn open_partition(device: &mut dyn Device) -> Result<CachedPartition<'_>> {
    let mut table = vec![0; SECTOR_BYTES as usize];
    device.read(0, &mut table).context("read the partition table")?;
    if table[510..] != [0x55, 0xAA] || table[450] != PARTITION_TYPE_FAT32_LBA {
        bail!("the disk has no partition table with a FAT32 partition");
    }
    let number = |at: usize| u64::from(u32::from_le_bytes([table[at], table[at + 1], table[at + 2], table[at + 3]]));
    let (first_byte, len_bytes) = (number(454) * SECTOR_BYTES, number(458) * SECTOR_BYTES);
    if first_byte + len_bytes > device.size_bytes() {
        bail!("the partition of {len_bytes} bytes at {first_byte} lies outside the disk");
    }
    Ok(CachedPartition::new(device, first_byte, len_bytes))
}

/// Mounts the file system, does `work` in it, and unmounts it, so that a backup finds it clean.
fn mounted<T>(device: &mut dyn Device, work: impl FnOnce(&Folder<'_, '_, '_>) -> io::Result<T>) -> Result<T> {
    let mut partition = open_partition(device)?;
    let done = {
        let file_system = FileSystem::new(&mut partition, FsOptions::new()).context("mount FAT32")?;
        let root = file_system.root_dir();
        let done = work(&root).context("work in the file system")?;
        drop(root);
        file_system.unmount().context("unmount")?;
        done
    };
    partition.sync().context("write what the file system changed")?;
    Ok(done)
}

/// Makes the first two entries of new folders what checkers expect: `fatfs` 0.3 gives `.` and `..` long names, and
/// names the root's cluster where zero must stand. For folders of the root that hold nothing else yet.
fn tidy_new_folders(device: &mut dyn Device) -> Result<()> {
    let mut partition = open_partition(device)?;
    let mut boot = [0; SECTOR_BYTES as usize];
    partition.read_exact(&mut boot).context("read the boot sector")?;
    let half = |bytes: &[u8], at: usize| u64::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let whole = |bytes: &[u8], at: usize| half(bytes, at) | half(bytes, at + 2) << 16;
    // Field offsets of the FAT32 boot sector: FAT32 File System Specification 1.03, "Boot Sector and BPB".
    let (cluster_bytes, fats) = (u64::from(boot[13]) * SECTOR_BYTES, u64::from(boot[16]));
    let data_start = (half(&boot, 14) + fats * whole(&boot, 36)) * SECTOR_BYTES;
    let offset_of = |cluster: u64| data_start + (cluster - 2) * cluster_bytes;
    let read_cluster = |partition: &mut CachedPartition<'_>, cluster: u64| -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; cluster_bytes as usize];
        partition.seek(SeekFrom::Start(offset_of(cluster)))?;
        partition.read_exact(&mut bytes).map(|()| bytes)
    };

    let root = read_cluster(&mut partition, whole(&boot, 44)).context("read the root folder")?;
    let is_folder = |entry: &&[u8]| entry[0] != 0 && entry[11] & 0x18 == 0x10;
    for entry in root.chunks_exact(32).filter(is_folder) {
        let cluster = half(entry, 20) << 16 | half(entry, 26);
        let found = read_cluster(&mut partition, cluster).context("read a new folder")?;
        let kept: Vec<u8> = found.chunks_exact(32).filter(|entry| entry[11] != 0x0F).flatten().copied().collect();
        if !kept.starts_with(b".          ") || kept[32..64] == [0; 32] || kept[64..].iter().any(|byte| *byte != 0) {
            bail!("the new folder in cluster {cluster} holds more than itself and its parent");
        }
        let mut tidy = kept;
        tidy[32 + 20..32 + 22].fill(0);
        tidy[32 + 26..32 + 28].fill(0);
        tidy.resize(cluster_bytes as usize, 0);
        partition.seek(SeekFrom::Start(offset_of(cluster)))?;
        partition.write_all(&tidy)?;
    }
    partition.sync().context("write the folders")
}

/// Fills an empty file system with about `mib` MiB of files: two thirds documents, journals and programs that
/// compress, one third pictures and a database that do not.
pub fn install_files(device: &mut dyn Device, mib: usize, seed: u64) -> Result<()> {
    mounted(device, |root| {
        for folder in ["Documents", "Journals", "Pictures", "Database", "Empty folder"] {
            root.create_dir(folder)?;
        }
        Ok(())
    })?;
    tidy_new_folders(device)?;
    mounted(device, |root| {
        let mut random = Random::new(seed);
        write_file(root, "Documents/Read me first.txt", b"This disk belongs to a demonstration.\r\n")?;
        write_file(root, "Documents/Empty file.txt", b"")?;
        write_file(
            root,
            "Documents/\u{dc}bergr\u{f6}\u{df}entr\u{e4}ger \u{2013} \u{4f60}\u{597d}.txt",
            &random.text(5000),
        )?;
        let (texts, pictures) = (mib * 5 / 12, mib * 2 / 12);
        for number in 0..texts * 2 {
            let text = random.text(512 << 10);
            write_file(root, &format!("Documents/Report {number:04}.txt"), &text)?;
        }
        for number in 0..4 {
            let text = random.text((mib / 4 * (1 << 20)) / 4);
            write_file(root, &format!("Journals/server-{number}.log"), &text)?;
        }
        for number in 0..pictures / 2 {
            let picture = random.bytes(2 << 20);
            write_file(root, &format!("Pictures/IMG_{number:04}.jpg"), &picture)?;
        }
        write_file(root, "Database/records.db", &random.bytes(mib / 6 * (1 << 20)))
    })
}

/// A day's work: journals grow, the database changes in places, pictures come, a document goes, one is renamed.
pub fn work_for_a_day(device: &mut dyn Device, day: u64, mib: usize) -> Result<()> {
    mounted(device, |root| {
        let mut random = Random::new(0xDA1 + day);
        let mut journal = root.open_file("Journals/server-0.log")?;
        journal.seek(SeekFrom::End(0))?;
        journal.write_all(&random.text(mib / 4 * (1 << 20)))?;
        drop(journal);

        let mut database = root.open_file("Database/records.db")?;
        let size_bytes = database.seek(SeekFrom::End(0))?;
        for _ in 0..mib {
            database.seek(SeekFrom::Start(random.below(size_bytes - (64 << 10))))?;
            database.write_all(&random.bytes(64 << 10))?;
        }
        drop(database);

        for number in 0..mib / 4 {
            write_file(root, &format!("Pictures/DAY{day}_{number:03}.jpg"), &random.bytes(2 << 20))?;
        }
        root.remove(&format!("Documents/Report {:04}.txt", day * 3))?;
        root.rename(
            &format!("Documents/Report {:04}.txt", day * 3 + 1),
            root,
            &format!("Documents/Read on day {day}.txt"),
        )
    })
}

fn write_file(root: &Folder<'_, '_, '_>, path: &str, content: &[u8]) -> io::Result<()> {
    let mut file = root.create_file(path)?;
    file.truncate()?;
    file.write_all(content)?;
    file.flush()
}

/// Every file of the disk, read through its file system.
pub fn list_files(device: &mut dyn Device) -> Result<Listing> {
    mounted(device, |root| {
        let mut listing = Listing::new();
        list_folder(root, "", &mut listing)?;
        Ok(listing)
    })
}

fn list_folder(folder: &Folder<'_, '_, '_>, path: &str, listing: &mut Listing) -> io::Result<()> {
    for entry in folder.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == "." || name == ".." {
            continue;
        }
        let path = format!("{path}/{name}");
        if entry.is_dir() {
            list_folder(&entry.to_dir(), &path, listing)?;
            continue;
        }
        let mut file = entry.to_file();
        let (mut digest, mut len_bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            digest.update(&buffer[..count]);
            len_bytes += count as u64;
        }
        listing.insert(path, (len_bytes, crate::figures::hex(&digest.finalize())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process::find_program;

    #[test]
    fn a_day_changes_the_files_it_says() {
        let mut disk = vec![0u8; 96 << 20];
        format_disk(&mut disk, "DATA").unwrap();
        install_files(&mut disk, 24, 1).unwrap();
        let before = list_files(&mut disk).unwrap();
        assert_eq!(before["/Documents/Empty file.txt"].0, 0);
        assert!(before.contains_key("/Documents/Übergrößenträger – 你好.txt"), "{:?}", before.keys());
        work_for_a_day(&mut disk, 1, 8).unwrap();
        let after = list_files(&mut disk).unwrap();
        assert_eq!(after["/Journals/server-0.log"].0, before["/Journals/server-0.log"].0 + (2 << 20));
        assert_ne!(after["/Database/records.db"], before["/Database/records.db"]);
        assert_eq!(after["/Database/records.db"].0, before["/Database/records.db"].0);
        assert!(!after.contains_key("/Documents/Report 0003.txt"), "deleted");
        assert_eq!(after["/Documents/Read on day 1.txt"], before["/Documents/Report 0004.txt"], "renamed");
        assert_eq!(after["/Journals/server-1.log"], before["/Journals/server-1.log"], "untouched");
    }

    #[test]
    fn dosfstools_find_the_file_system_sound() {
        let Some(fsck) = find_program("fsck.vfat") else {
            eprintln!("SKIPPED dosfstools_find_the_file_system_sound: fsck.vfat is not installed");
            return;
        };
        let mut disk = vec![0u8; 96 << 20];
        format_disk(&mut disk, "DATA").unwrap();
        install_files(&mut disk, 24, 2).unwrap();
        work_for_a_day(&mut disk, 1, 8).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("partition");
        std::fs::write(&image, &disk[PARTITION_START_BYTES as usize..]).unwrap();
        let checked = Command::new(fsck).arg("-n").arg(&image).output().unwrap();
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success(), "{said}{}", String::from_utf8_lossy(&checked.stderr));
        assert!(said.contains(" files, "), "{said}");
    }
}

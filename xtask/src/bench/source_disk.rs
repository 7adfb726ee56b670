//! The disk that everything is measured with.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::folder::remove;
use crate::process::{find_program, output_of};
use crate::random::Random;

/// How full the disk is, in percent; the file system needs some room of its own.
const FILLED_PERCENT: u64 = 80;
const FS_BLOCK_BYTES: u64 = 4096;

/// Makes a raw disk of `size_bytes`; says what is on it.
pub fn make_raw(path: &Path, size_bytes: u64) -> Result<String> {
    match find_program("mke2fs") {
        Some(mke2fs) => {
            let staging = path.with_extension("staging");
            remove(&staging)?;
            let mut budget = size_bytes / 100 * FILLED_PERCENT;
            let before = budget;
            stage(Path::new("/usr"), &staging, &mut budget)?;
            let mut command = Command::new(mke2fs);
            command
                .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-i", "8192", "-E", "root_owner=0:0", "-d"])
                .arg(&staging)
                .arg(path);
            output_of(command.arg(format!("{}k", size_bytes / 1024)))?;
            remove(&staging)?;
            Ok(format!("ext4 with {} of this machine's /usr", crate::figures::size(before - budget)))
        }
        None => {
            make_mixture(path, size_bytes)?;
            Ok("a mixture of text, random bytes and zeroes (mke2fs is not installed)".into())
        }
    }
}

/// Copies a tree into a new folder until the budget is spent, by hard links where the system allows.
fn stage(from: &Path, to: &Path, budget: &mut u64) -> Result<()> {
    fs::create_dir(to).with_context(|| format!("create {}", to.display()))?;
    *budget = budget.saturating_sub(2 * FS_BLOCK_BYTES);
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    let mut entries: Vec<_> = entries.filter_map(Result::ok).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let found = source.symlink_metadata().with_context(|| format!("look at {}", source.display()))?;
        let cost = found.len().next_multiple_of(FS_BLOCK_BYTES);
        if *budget < 1 << 20 {
            return Ok(());
        } else if found.is_dir() {
            stage(&source, &target, budget)?;
        } else if found.is_file() && cost <= *budget && File::open(&source).is_ok() {
            if fs::hard_link(&source, &target).is_err() {
                fs::copy(&source, &target).with_context(|| format!("copy {}", source.display()))?;
            }
            *budget -= cost;
        }
    }
    Ok(())
}

fn make_mixture(path: &Path, size_bytes: u64) -> Result<()> {
    const PIECE_BYTES: usize = 1 << 20;
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut random = Random::new(size_bytes);
    let failed = || format!("write {}", path.display());
    file.set_len(size_bytes).with_context(failed)?;
    for piece in 0..size_bytes / PIECE_BYTES as u64 {
        let data = match random.below(10) {
            0..=1 => continue,
            2..=4 => random.bytes(PIECE_BYTES),
            _ => random.text(PIECE_BYTES),
        };
        file.write_all_at(&data, piece * PIECE_BYTES as u64).with_context(failed)?;
    }
    file.flush().with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE_BYTES: u64 = 64 << 20;

    #[test]
    fn system_files_make_a_sound_ext4() {
        let (Some(_), Some(e2fsck)) = (find_program("mke2fs"), find_program("e2fsck")) else {
            eprintln!("SKIPPED system_files_make_a_sound_ext4: e2fsprogs is not installed");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("disk.raw");
        let content = make_raw(&raw, SIZE_BYTES).unwrap();
        assert!(content.contains("ext4"), "{content}");
        assert_eq!(fs::metadata(&raw).unwrap().len(), SIZE_BYTES);
        output_of(Command::new(e2fsck).arg("-fn").arg(&raw)).unwrap();
        assert!(!raw.with_extension("staging").exists());
    }

    #[test]
    fn the_mixture_repeats() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| {
            let path = folder.path().join(name);
            make_mixture(&path, 8 << 20).unwrap();
            fs::read(path).unwrap()
        });
        assert!(a == b && a.len() == 8 << 20 && a.iter().any(|byte| *byte != 0));
    }
}

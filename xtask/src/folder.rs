//! Folders that a task makes, and may make again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Lies in every folder that a task made: the sign that it may be emptied.
const MARKER: &str = ".made-by-xtask";

/// Makes `folder` empty. What is there and was not made by this function is never touched.
pub fn make_empty(folder: &Path) -> Result<PathBuf> {
    let marker = folder.join(MARKER);
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("look into {}", folder.display())),
        Ok(mut entries) => {
            if entries.next().is_some() && !marker.is_file() {
                bail!("{} holds something that no earlier run made: name another folder with --dir", folder.display());
            }
            // The marker goes last: a run killed in the middle leaves a folder that the next one may empty.
            for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
                let path = entry?.path();
                if path != marker {
                    remove(&path)?;
                }
            }
        }
    }
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    fs::write(&marker, "This folder was made by a cargo xtask command, which empties it when it runs again.\n")
        .with_context(|| format!("write {}", marker.display()))?;
    folder.canonicalize().with_context(|| format!("find {}", folder.display()))
}

/// Removes a file or a whole folder, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.with_context(|| format!("remove {}", path.display()))
}

/// What the files below `path` occupy on the disk.
pub fn disk_usage_bytes(path: &Path) -> Result<u64> {
    let found = path.symlink_metadata().with_context(|| format!("look at {}", path.display()))?;
    if !found.is_dir() {
        return Ok(allocated_bytes(&found));
    }
    let mut total = 0;
    for entry in fs::read_dir(path).with_context(|| format!("list {}", path.display()))? {
        total += disk_usage_bytes(&entry?.path())?;
    }
    Ok(total)
}

#[cfg(unix)]
fn allocated_bytes(found: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    found.blocks() * 512
}

#[cfg(not(unix))]
fn allocated_bytes(found: &fs::Metadata) -> u64 {
    found.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_task_made_is_emptied() {
        let parent = tempfile::tempdir().unwrap();
        let ours = parent.path().join("ours");
        make_empty(&ours).unwrap();
        fs::create_dir(ours.join("lab")).unwrap();
        fs::write(ours.join("lab/disk"), "x").unwrap();
        make_empty(&ours).unwrap();
        assert!(!ours.join("lab").exists());

        let theirs = parent.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("thesis.txt"), "x").unwrap();
        let refusal = make_empty(&theirs).unwrap_err().to_string();
        assert!(refusal.contains("--dir"), "{refusal}");
        assert!(theirs.join("thesis.txt").exists());
    }
}

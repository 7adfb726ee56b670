//! Stored contents kept on this machine, as they lie in the packs: compressed, encrypted, authenticated by the repository
//! (spec block-serving C.2).
//!
//! Useless without the repository's password, and safe to delete at any time: it changes timing only.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

/// A folder of contents that does not outgrow its limit; what was not used for the longest time goes first.
pub struct DiskCache {
    folder: PathBuf,
    limit_bytes: u64,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    bytes: u64,
    next_use: u64,
    files: HashMap<String, (u64, u64)>,
    by_use: BTreeMap<u64, String>,
}

impl Kept {
    fn add(&mut self, name: String, bytes: u64) {
        self.forget(&name);
        self.bytes += bytes;
        self.by_use.insert(self.next_use, name.clone());
        self.files.insert(name, (bytes, self.next_use));
        self.next_use += 1;
    }

    fn forget(&mut self, name: &str) {
        if let Some((bytes, used)) = self.files.remove(name) {
            self.bytes -= bytes;
            self.by_use.remove(&used);
        }
    }
}

impl DiskCache {
    /// Opens the cache in a folder, which is made where it is missing.
    pub fn open(folder: &Path, limit_bytes: u64) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut found: Vec<(SystemTime, String, u64)> = Vec::new();
        for group in std::fs::read_dir(folder)? {
            let group = group?.path();
            if !group.is_dir() {
                continue;
            }
            for file in std::fs::read_dir(group)? {
                let file = file?;
                let facts = file.metadata()?;
                let Ok(name) = file.file_name().into_string() else { continue };
                if name.ends_with(".new") {
                    // Left by a crash.
                    std::fs::remove_file(file.path())?;
                } else {
                    found.push((facts.modified().unwrap_or(SystemTime::UNIX_EPOCH), name, facts.len()));
                }
            }
        }
        found.sort();
        let mut kept = Kept::default();
        found.into_iter().for_each(|(_, name, bytes)| kept.add(name, bytes));
        let cache = Self { folder: folder.to_owned(), limit_bytes, kept: Mutex::new(kept) };
        cache.shrink();
        Ok(cache)
    }

    /// What was kept under a name. Whoever finds that it is not what it should be calls [`forget`](Self::forget).
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        {
            let mut kept = self.kept.lock().expect("no panic while held");
            let (bytes, _) = *kept.files.get(name)?;
            kept.add(name.to_owned(), bytes);
        }
        let path = self.path_of(name)?;
        match std::fs::read(&path) {
            Ok(bytes) => {
                // The order of use outlives the process; without it, the order of arrival does.
                let _ = std::fs::File::options()
                    .append(true)
                    .open(&path)
                    .and_then(|file| file.set_modified(SystemTime::now()));
                Some(bytes)
            }
            Err(_) => {
                // Somebody deleted it.
                self.kept.lock().expect("no panic while held").forget(name);
                None
            }
        }
    }

    /// Keeps bytes under a name, if that is possible: a cache that is full or cannot be written is no error.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let Some(path) = self.path_of(name).filter(|_| bytes.len() as u64 <= self.limit_bytes) else { return };
        match write(&path, bytes) {
            Ok(()) => {
                self.kept.lock().expect("no panic while held").add(name.to_owned(), bytes.len() as u64);
                self.shrink();
            }
            Err(error) => tracing::debug!(name, %error, "not kept in the disk cache"),
        }
    }

    /// Removes what is not what it should be.
    pub fn forget(&self, name: &str) {
        self.kept.lock().expect("no panic while held").forget(name);
        if let Some(path) = self.path_of(name) {
            // If it stays it is found out again.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Bytes kept.
    pub fn len_bytes(&self) -> u64 {
        self.kept.lock().expect("no panic while held").bytes
    }

    fn shrink(&self) {
        loop {
            let oldest = {
                let mut kept = self.kept.lock().expect("no panic while held");
                if kept.bytes <= self.limit_bytes {
                    return;
                }
                let Some(oldest) = kept.by_use.values().next().cloned() else { return };
                kept.forget(&oldest);
                oldest
            };
            if let Some(path) = self.path_of(&oldest) {
                // If it stays, the next start counts it again.
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// Content ids are letters and digits; anything else gets no place.
    fn path_of(&self, name: &str) -> Option<PathBuf> {
        let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let group = name.get(..2).filter(|_| is_plain)?;
        Some(self.folder.join(group).join(name))
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(group) = path.parent() {
        std::fs::create_dir_all(group)?;
    }
    let temporary = path.with_extension(format!("{}.new", random::hex(4)));
    std::fs::write(&temporary, bytes)
        .and_then(|()| std::fs::rename(&temporary, path))
        .inspect_err(|_| drop(std::fs::remove_file(&temporary)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_used_goes_first_and_the_rest_outlives_the_process() {
        let place = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(place.path(), 30).unwrap();
        for name in ["aaa", "bbb", "ccc"] {
            cache.put(name, &[1; 10]);
        }
        assert!(cache.get("aaa").is_some());
        cache.put("ddd", &[2; 10]);
        assert_eq!(cache.get("bbb"), None, "used least");
        cache.put("eee", &[3; 31]);
        assert_eq!(cache.get("eee"), None, "longer than all of the cache");
        cache.put("../x", &[3; 1]);
        std::fs::write(place.path().join("aa/left.new"), b"x").unwrap();
        let cache = DiskCache::open(place.path(), 30).unwrap();
        assert_eq!((cache.len_bytes(), cache.get("ddd")), (30, Some(vec![2; 10])));
        std::fs::remove_dir_all(place.path()).unwrap();
        assert_eq!(cache.get("aaa"), None, "deleted by somebody");
        cache.put("aaa", &[4; 10]);
        assert_eq!(cache.get("aaa"), Some(vec![4; 10]));
        cache.forget("aaa");
        assert_eq!(cache.get("aaa"), None);
    }
}

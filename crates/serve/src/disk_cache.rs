//! Contents kept on this machine, each sealed in a file of its own (`sealed_content.rs`).
//!
//! Useless without the repository's password, and safe to delete at any time: it changes timing only. The specification
//! keeps contents as they lie in the packs (C.2); then each small read of a guest has to decrypt and unpack a whole one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use kopia_repo::ContentId;
use zeroize::Zeroizing;

use crate::sealed_content::{MAX_CONTENT_BYTES, SealedContent, seal};

/// What names of files end with.
const SUFFIX: &str = ".e3c";
/// Ids of contents are hashes of 128 bits and more; anything shorter is no name of ours.
const MIN_ID_CHARACTERS: usize = 32;
/// Files that are kept open.
const MAX_OPEN: usize = 256;

/// A folder of contents that does not outgrow its limit; what was not used for the longest time goes first.
pub struct DiskCache {
    folder: PathBuf,
    limit_bytes: u64,
    secret: Zeroizing<[u8; 32]>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    bytes: u64,
    next_use: u64,
    contents: HashMap<Arc<str>, Entry>,
    by_use: BTreeMap<u64, Arc<str>>,
    /// Those whose files are open, in the order of their opening.
    open: VecDeque<Arc<str>>,
}

struct Entry {
    bytes: u64,
    used: u64,
    open: Option<Arc<SealedContent>>,
}

impl Kept {
    fn add(&mut self, name: &str, bytes: u64) {
        self.forget(name);
        let name: Arc<str> = name.into();
        self.bytes += bytes;
        self.by_use.insert(self.next_use, name.clone());
        self.contents.insert(name, Entry { bytes, used: self.next_use, open: None });
        self.next_use += 1;
    }

    /// Notes a use. `None` for what is not there, `Some(None)` for what is not open.
    fn touch(&mut self, name: &str) -> Option<Option<Arc<SealedContent>>> {
        let entry = self.contents.get_mut(name)?;
        if let Some(shared) = self.by_use.remove(&entry.used) {
            self.by_use.insert(self.next_use, shared);
        }
        entry.used = self.next_use;
        self.next_use += 1;
        Some(entry.open.clone())
    }

    fn opened(&mut self, name: &str, content: &Arc<SealedContent>) {
        let Some((name, entry)) = self.contents.get_key_value(name) else { return };
        if entry.open.is_none() {
            let name = name.clone();
            self.open.push_back(name.clone());
            self.contents.entry(name).and_modify(|entry| entry.open = Some(content.clone()));
        }
        if self.open.len() > MAX_OPEN {
            let first = self.open.pop_front();
            if let Some(entry) = first.and_then(|name| self.contents.get_mut(&name)) {
                entry.open = None;
            }
        }
    }

    fn forget(&mut self, name: &str) {
        if let Some(entry) = self.contents.remove(name) {
            self.bytes -= entry.bytes;
            self.by_use.remove(&entry.used);
            if entry.open.is_some() {
                self.open.retain(|open| **open != *name);
            }
        }
    }
}

impl DiskCache {
    /// Opens the cache in a folder, which is made where it is missing. `secret` is the repository's, derived for the
    /// purpose `e3-cache`. What a former version kept there, in another form, is removed; files of others stay.
    pub fn open(folder: &Path, limit_bytes: u64, secret: Zeroizing<[u8; 32]>) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut found: Vec<(SystemTime, String, u64)> = Vec::new();
        for group in std::fs::read_dir(folder)? {
            let group = group?;
            let Some(prefix) = group.file_name().into_string().ok().filter(|name| is_group(name)) else { continue };
            if !group.path().is_dir() {
                continue;
            }
            for file in std::fs::read_dir(group.path())? {
                let file = file?;
                let Ok(name) = file.file_name().into_string() else { continue };
                match kind_of(&prefix, &name) {
                    Kind::Kept(id) => {
                        let facts = file.metadata()?;
                        let modified = facts.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                        found.push((modified, id.to_owned(), facts.len()));
                    }
                    Kind::Left => std::fs::remove_file(file.path())?,
                    Kind::Foreign => {}
                }
            }
        }
        found.sort();
        let mut kept = Kept::default();
        found.into_iter().for_each(|(_, name, bytes)| kept.add(&name, bytes));
        let cache = Self { folder: folder.to_owned(), limit_bytes, secret, kept: Mutex::new(kept) };
        cache.shrink();
        Ok(cache)
    }

    /// Whether something is kept under a name, as far as is known without looking.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.lock().contents.contains_key(name)
    }

    /// What was kept under a name. Whoever finds that it is not what it should be calls [`forget`](Self::forget).
    pub(crate) fn get(&self, name: &str) -> Option<Arc<SealedContent>> {
        if let Some(content) = self.lock().touch(name)? {
            return Some(content);
        }
        let path = self.path_of(name)?;
        match SealedContent::open(&path, &self.secret, name) {
            Ok(content) => {
                // The order of use outlives the process; without it, the order of arrival does.
                let _ = std::fs::File::options()
                    .append(true)
                    .open(&path)
                    .and_then(|file| file.set_modified(SystemTime::now()));
                let content = Arc::new(content);
                self.lock().opened(name, &content);
                Some(content)
            }
            Err(error) => {
                tracing::debug!(name, %error, "the disk cache does not have what it kept");
                // Whatever else fails may pass: no more files can be opened, or somebody has this one open.
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData | ErrorKind::UnexpectedEof) {
                    self.forget(name);
                }
                None
            }
        }
    }

    /// Keeps bytes under a name, if that is possible: a cache that is full or cannot be written is no error.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let Some(path) = self.path_of(name) else { return };
        if bytes.len() > MAX_CONTENT_BYTES {
            return;
        }
        let sealed = seal(&self.secret, name, bytes);
        if sealed.len() as u64 > self.limit_bytes {
            return;
        }
        match write(&path, &sealed) {
            Ok(()) => {
                self.lock().add(name, sealed.len() as u64);
                self.shrink();
            }
            Err(error) => tracing::debug!(name, %error, "not kept in the disk cache"),
        }
    }

    /// Removes what is not what it should be.
    pub(crate) fn forget(&self, name: &str) {
        self.lock().forget(name);
        if let Some(path) = self.path_of(name) {
            // If it stays it is found out again.
            let _ = std::fs::remove_file(path);
        }
    }

    fn shrink(&self) {
        loop {
            let oldest = {
                let mut kept = self.lock();
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

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("no panic while held")
    }

    /// Content ids are letters and digits; anything else gets no place.
    fn path_of(&self, name: &str) -> Option<PathBuf> {
        let group = name.get(..2).filter(|_| is_plain(name))?;
        Some(self.folder.join(group).join(format!("{name}{SUFFIX}")))
    }
}

/// A file in a group of the folder. A person named the folder: there may be files of anybody in it.
#[derive(Debug, PartialEq, Eq)]
enum Kind<'n> {
    /// A content of this name.
    Kept(&'n str),
    /// Ours, and of no use: left by a crash, or by a version that kept contents as they lay in the packs.
    Left,
    /// Somebody else's.
    Foreign,
}

fn kind_of<'n>(group: &str, name: &'n str) -> Kind<'n> {
    let id = name.split('.').next().unwrap_or_default();
    if !id.starts_with(group) || id.len() < MIN_ID_CHARACTERS || id.parse::<ContentId>().is_err() {
        return Kind::Foreign;
    }
    match &name[id.len()..] {
        SUFFIX => Kind::Kept(id),
        "" => Kind::Left,
        rest if rest.ends_with(".new") => Kind::Left,
        _ => Kind::Foreign,
    }
}

/// The first two characters of the contents in a folder.
fn is_group(name: &str) -> bool {
    name.len() == 2 && is_plain(name)
}

fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric())
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

    fn open(folder: &Path, limit_bytes: u64) -> DiskCache {
        DiskCache::open(folder, limit_bytes, Zeroizing::new([3; 32])).unwrap()
    }

    fn read(cache: &DiskCache, name: &str) -> Option<Vec<u8>> {
        let content = cache.get(name)?;
        let mut bytes = vec![0; content.len_bytes()];
        content.read_exact_at(&mut bytes, 0).ok().map(|()| bytes)
    }

    /// The id of a content that begins so.
    fn id(start: &str) -> String {
        format!("{start:0<32}")
    }

    #[test]
    fn the_least_used_goes_first_and_the_rest_outlives_the_process() {
        let place = tempfile::tempdir().unwrap();
        let [a, b, c, d, e] = ["aaa", "bbb", "ccc", "ddd", "eee"].map(id);
        let each = seal(&[3; 32], &a, &[1; 10]).len() as u64;
        let cache = open(place.path(), 3 * each);
        for name in [&a, &b, &c] {
            cache.put(name, &[1; 10]);
        }
        assert!(cache.get(&a).is_some());
        cache.put(&d, &[2; 10]);
        assert_eq!(read(&cache, &b), None, "used least");
        cache.put(&e, &[3; 1000]);
        assert_eq!(read(&cache, &e), None, "longer than all of the cache");
        cache.put("../x", &[3; 1]);
        // A process that has ended has no file open.
        drop(cache);
        let cache = open(place.path(), 3 * each);
        let bytes = cache.lock().bytes;
        assert_eq!((bytes, read(&cache, &d)), (3 * each, Some(vec![2; 10])));
        std::fs::remove_dir_all(place.path().join("aa")).unwrap();
        assert_eq!(read(&cache, &a), None, "deleted by somebody");
        cache.forget(&a);
        cache.put(&a, &[4; 10]);
        assert_eq!(read(&cache, &a), Some(vec![4; 10]));
        cache.forget(&a);
        assert_eq!(read(&cache, &a), None);
    }

    /// The folder is whatever a person named: the one with the working copy, or a home folder.
    #[test]
    fn files_of_others_stay() {
        let place = tempfile::tempdir().unwrap();
        let cache = open(place.path(), 1 << 20);
        let kept = id("aaa");
        cache.put(&kept, &[1; 10]);
        drop(cache);
        let (left, form) = (format!("aa/{}.0a1b2c3d.new", id("aab")), format!("aa/{}", id("aac")));
        let others = [
            "note.txt".to_owned(),
            "aa/HEAD".to_owned(),
            "aa/note.txt".to_owned(),
            "aa/left.new".to_owned(),
            "aa/aaff".to_owned(),
            "aa/.new".to_owned(),
            format!("aa/{}", id("bbb")),
            format!("aa/{}.e3c", id("bbb")),
            format!("aa/{}.txt", id("aaa")),
            format!("aa/{}", "aa".repeat(20).replace('a', "Z")),
            format!(".git/{}", id("aaa")),
            format!("src/{}", id("sr")),
            format!("objects/{}", id("ob")),
        ];
        for name in others.iter().chain([&left, &form]) {
            let path = place.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"somebody's").unwrap();
        }
        let cache = open(place.path(), 1 << 20);
        assert_eq!(read(&cache, &kept), Some(vec![1; 10]));
        assert_eq!(cache.lock().contents.len(), 1);
        for name in &others {
            assert!(place.path().join(name).exists(), "{name}");
        }
        for name in [&left, &form] {
            assert!(!place.path().join(name).exists(), "{name}");
        }
    }

    /// What cannot be opened now is not lost by that.
    #[cfg(unix)]
    #[test]
    fn what_cannot_be_opened_for_a_moment_stays() {
        let place = tempfile::tempdir().unwrap();
        let cache = open(place.path(), 1 << 20);
        let kept = id("aaa");
        cache.put(&kept, &[1; 10]);
        let (path, away) = (place.path().join(format!("aa/{kept}.e3c")), place.path().join("away"));
        std::fs::rename(&path, &away).unwrap();
        // A link to itself: an error that says nothing about a content.
        std::os::unix::fs::symlink(&path, &path).unwrap();
        assert_eq!(read(&cache, &kept), None);
        assert!(cache.has(&kept) && path.symlink_metadata().is_ok());
        std::fs::rename(&away, &path).unwrap();
        assert_eq!(read(&cache, &kept), Some(vec![1; 10]));
        std::fs::write(&path, b"short").unwrap();
        let cache = open(place.path(), 1 << 20);
        assert_eq!(read(&cache, &kept), None);
        assert!(!cache.has(&kept) && !path.exists());
    }

    #[test]
    fn only_so_many_files_are_open() {
        let place = tempfile::tempdir().unwrap();
        let cache = open(place.path(), 1 << 30);
        let name = |nth: usize| id(&format!("{nth:04x}"));
        for nth in 0..2 * MAX_OPEN {
            cache.put(&name(nth), &[nth as u8; 10]);
        }
        for round in 0..3 {
            for nth in 0..2 * MAX_OPEN {
                assert_eq!(read(&cache, &name(nth)), Some(vec![nth as u8; 10]), "round {round}");
                let kept = cache.lock();
                let open = kept.contents.values().filter(|entry| entry.open.is_some()).count();
                assert!(open == kept.open.len() && open <= MAX_OPEN, "{open} of {} are open", kept.open.len());
            }
            cache.forget(&name(2 * MAX_OPEN - 1));
            cache.put(&name(2 * MAX_OPEN - 1), &[(2 * MAX_OPEN - 1) as u8; 10]);
        }
    }
}

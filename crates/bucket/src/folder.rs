//! A folder as a bucket: a key is the path of a file below it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::key::is_prefix_of_some_key;
use crate::random::random_hex;
use crate::{Bucket, BucketError, ErrorKind, ObjectMeta, Operation, PutCondition, PutOptions, PutOutcome, check_key};

/// Objects as files below one folder. Files get mode 0600 and directories 0700.
///
/// A body is written to `<file>.tmp.<16 hex>` beside its final name, flushed to disk and renamed, as Kopia does;
/// a writer that dies leaves such a file behind, and no listing shows it. Directories stay when they become
/// empty, and an object and a directory cannot have the same name. Symbolic links are not listed. There are no
/// etags, so [`PutCondition::IfMatch`] is refused, as is retention.
///
/// The folder itself is never made by a put: where a volume is not mounted, calls fail instead of filling the disk
/// below the mount point or finding an empty store.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Uses a folder that exists.
    pub fn open(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = std::path::absolute(root.into())?;
        if !fs::metadata(&root)?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        Ok(Self { root })
    }

    /// Uses a folder, after making it and its parents where they are missing.
    pub fn create(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = std::path::absolute(root.into())?;
        create_dirs(&root)?;
        Self::open(root)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.root
    }

    fn path_of(&self, operation: Operation, key: &str) -> Result<PathBuf, BucketError> {
        match check_key(key).or_else(|| file_name_problem(key)) {
            Some(problem) => Err(self.error(ErrorKind::Unsupported, operation, key, problem)),
            None => Ok(self.root.join(key)),
        }
    }

    fn error(&self, kind: ErrorKind, operation: Operation, key: &str, problem: impl Into<String>) -> BucketError {
        BucketError::new(kind, operation, key, self.display_name(), problem)
    }

    /// Says what an I/O error means for the object. Only with the folder itself in place is a missing file a
    /// missing object.
    fn io_error(&self, operation: Operation, key: &str, attempt: &str, error: io::Error) -> BucketError {
        use io::ErrorKind as Io;
        let missing = matches!(error.kind(), Io::NotFound | Io::NotADirectory | Io::IsADirectory);
        if missing && !self.root.is_dir() {
            let problem = "the folder is gone; is its volume mounted?";
            return self.error(ErrorKind::Other, operation, key, problem).with_source(error);
        }
        let (kind, problem) = match error.kind() {
            _ if missing && operation != Operation::Put => (ErrorKind::NotFound, "no such object".to_owned()),
            Io::StorageFull | Io::QuotaExceeded => {
                (ErrorKind::NoSpace, format!("no space left on volume {}", volume_of(&self.root).display()))
            }
            Io::PermissionDenied | Io::ReadOnlyFilesystem => (ErrorKind::AccessDenied, attempt.to_owned()),
            Io::InvalidFilename => (ErrorKind::Unsupported, format!("{attempt}: a component is too long")),
            Io::NotADirectory | Io::IsADirectory => {
                (ErrorKind::Unsupported, format!("{attempt}: an object and a directory would share a name"))
            }
            Io::TimedOut
            | Io::HostUnreachable
            | Io::NetworkUnreachable
            | Io::NetworkDown
            | Io::StaleNetworkFileHandle => (ErrorKind::Unreachable, attempt.to_owned()),
            _ => (ErrorKind::Other, attempt.to_owned()),
        };
        self.error(kind, operation, key, problem).with_source(error)
    }

    /// Opens an object for reading and says how long it is.
    fn open_object(&self, operation: Operation, key: &str) -> Result<(File, u64), BucketError> {
        let path = self.path_of(operation, key)?;
        let open = || {
            // Asked first: Windows answers "access denied" to opening a directory.
            if fs::metadata(&path)?.is_dir() {
                return Err(io::Error::from(io::ErrorKind::IsADirectory));
            }
            let file = File::open(&path)?;
            let len_bytes = file.metadata()?.len();
            Ok((file, len_bytes))
        };
        open().map_err(|error| self.io_error(operation, key, "open the file", error))
    }

    /// Shows the objects of one directory and queues its subdirectories. A directory that vanished has none.
    fn list_dir(
        &self,
        dir_key: &str,
        prefix: &str,
        visit: &mut dyn FnMut(ObjectMeta) -> ControlFlow<()>,
        subdirs: &mut Vec<String>,
    ) -> Result<ControlFlow<()>, BucketError> {
        let failed = |attempt: &str, error| self.io_error(Operation::List, prefix, attempt, error);
        let dir = self.root.join(dir_key.trim_end_matches('/'));
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            // Windows has other errors for an object in the place of the directory.
            Err(error) if (vanished(&error) || dir.is_file()) && self.root.is_dir() => {
                return Ok(ControlFlow::Continue(()));
            }
            Err(error) => return Err(failed("read a directory", error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| failed("read a directory", error))?;
            // Names that are no keys are not ours.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let key = format!("{dir_key}{name}");
            if check_key(&key).or_else(|| file_name_problem(&key)).is_some() {
                continue;
            }
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if vanished(&error) => continue,
                Err(error) => return Err(failed("look at a file", error)),
            };
            if metadata.is_dir() {
                let subdir = key + "/";
                if subdir.starts_with(prefix) || prefix.starts_with(&subdir) {
                    subdirs.push(subdir);
                }
            } else if metadata.is_file() && key.starts_with(prefix) {
                let object = object_meta(key, &metadata).map_err(|error| failed("look at a file", error))?;
                if visit(object).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl Bucket for Folder {
    fn put(&self, key: &str, body: &[&[u8]], options: &PutOptions) -> Result<PutOutcome, BucketError> {
        let path = self.path_of(Operation::Put, key)?;
        if options.retention.is_some() {
            let problem = "a folder has no object lock";
            return Err(self.error(ErrorKind::Unsupported, Operation::Put, key, problem));
        }
        let failed = |attempt: &str, error| self.io_error(Operation::Put, key, attempt, error);
        let dir = path.parent().expect("a key has at least one component below the root");
        create_dirs_below(&self.root, dir).map_err(|error| failed("make the directory", error))?;

        let mut temp = TempFile::create(&path).map_err(|error| failed("make a temporary file", error))?;
        for piece in body {
            temp.file.write_all(piece).map_err(|error| failed("write the file", error))?;
        }
        temp.file.sync_all().map_err(|error| failed("flush the file to disk", error))?;
        // Windows answers "access denied" when a directory is in the way.
        let in_the_way = |error| if path.is_dir() { io::Error::from(io::ErrorKind::IsADirectory) } else { error };
        match &options.condition {
            None => {
                temp.rename(&path).map_err(|error| failed("rename the file into place", in_the_way(error)))?;
            }
            Some(PutCondition::IfAbsent) => match temp.link(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let problem = "the object exists already";
                    return Err(self.error(ErrorKind::PreconditionFailed, Operation::Put, key, problem));
                }
                Err(error) => return Err(failed("link the file into place", in_the_way(error))),
            },
            Some(PutCondition::IfMatch(_)) => {
                let problem = "files have no etag to match";
                return Err(self.error(ErrorKind::Unsupported, Operation::Put, key, problem));
            }
        }
        sync_dir(dir).map_err(|error| failed("flush the directory to disk", error))?;
        Ok(PutOutcome::default())
    }

    fn get(&self, key: &str) -> Result<Bytes, BucketError> {
        let (mut file, _) = self.open_object(Operation::Get, key)?;
        let mut body = Vec::new();
        file.read_to_end(&mut body).map_err(|error| self.io_error(Operation::Get, key, "read the file", error))?;
        Ok(body.into())
    }

    fn get_range(&self, key: &str, offset_bytes: u64, len_bytes: u64) -> Result<Bytes, BucketError> {
        let (mut file, len_total_bytes) = self.open_object(Operation::GetRange, key)?;
        if offset_bytes.checked_add(len_bytes).is_none_or(|end_bytes| end_bytes > len_total_bytes) {
            let problem = format!("{len_bytes} bytes at {offset_bytes} of {len_total_bytes}");
            return Err(self.error(ErrorKind::RangeNotSatisfiable, Operation::GetRange, key, problem));
        }
        // The file has these bytes, as was just checked: room for all of them at once saves growing by doubling.
        let mut body = Vec::with_capacity(len_bytes as usize);
        let read = file.seek(SeekFrom::Start(offset_bytes)).and_then(|_| file.take(len_bytes).read_to_end(&mut body));
        let read_bytes = read.map_err(|error| self.io_error(Operation::GetRange, key, "read the file", error))?;
        if read_bytes as u64 != len_bytes {
            let problem = "the file became shorter while it was read";
            return Err(self.error(ErrorKind::Other, Operation::GetRange, key, problem));
        }
        Ok(body.into())
    }

    fn list(&self, prefix: &str, visit: &mut dyn FnMut(ObjectMeta) -> ControlFlow<()>) -> Result<(), BucketError> {
        // The directory that holds all matches, where there can be any.
        let dir_key = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
        if !is_prefix_of_some_key(prefix) || dir_key.strip_suffix('/').and_then(file_name_problem).is_some() {
            return Ok(());
        }
        let mut dirs = vec![dir_key.to_owned()];
        while let Some(dir_key) = dirs.pop() {
            if self.list_dir(&dir_key, prefix, visit, &mut dirs)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        let path = self.path_of(Operation::Head, key)?;
        let look = || match fs::metadata(&path)? {
            metadata if metadata.is_dir() => Err(io::Error::from(io::ErrorKind::IsADirectory)),
            metadata => object_meta(key.to_owned(), &metadata),
        };
        look().map_err(|error| self.io_error(Operation::Head, key, "look at the file", error))
    }

    fn delete(&self, key: &str) -> Result<(), BucketError> {
        let path = self.path_of(Operation::Delete, key)?;
        if path.is_dir() {
            return Ok(());
        }
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) => match self.io_error(Operation::Delete, key, "remove the file", error) {
                error if error.is_not_found() => Ok(()),
                error => Err(error),
            },
        }
    }

    fn display_name(&self) -> String {
        format!("folder {}", self.root.display())
    }
}

fn object_meta(key: String, metadata: &fs::Metadata) -> io::Result<ObjectMeta> {
    Ok(ObjectMeta { key, len_bytes: metadata.len(), modified: metadata.modified()?, etag: None })
}

fn vanished(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A temporary file beside the final one, removed when dropped unless it was renamed.
struct TempFile {
    file: File,
    path: Option<PathBuf>,
}

const TEMP_MARK: &str = ".tmp.";

impl TempFile {
    fn create(final_path: &Path) -> io::Result<Self> {
        let mut path = final_path.as_os_str().to_owned();
        path.push(TEMP_MARK);
        path.push(random_hex());
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let path = PathBuf::from(path);
        Ok(Self { file: options.open(&path)?, path: Some(path) })
    }

    fn path(&self) -> &Path {
        self.path.as_deref().expect("the temporary file has its name until it is renamed")
    }

    fn rename(&mut self, final_path: &Path) -> io::Result<()> {
        rename_over(self.path(), final_path)?;
        self.path = None;
        Ok(())
    }

    /// Gives the file its final name unless that is taken, atomically: as a second name, or where the volume has no
    /// hard links by a rename that does not replace.
    fn link(&mut self, final_path: &Path) -> io::Result<()> {
        match fs::hard_link(self.path(), final_path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists && !vanished(&error) => {
                self.rename_if_absent(final_path, error)
            }
            result => result,
        }
    }

    #[cfg(target_os = "linux")]
    fn rename_if_absent(&mut self, final_path: &Path, _link_error: io::Error) -> io::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        renameat_with(CWD, self.path(), CWD, final_path, RenameFlags::NOREPLACE)?;
        self.path = None;
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn rename_if_absent(&mut self, _final_path: &Path, link_error: io::Error) -> io::Result<()> {
        Err(link_error)
    }
}

#[cfg(not(windows))]
fn rename_over(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

/// Others may have the file open for a moment, and not every file system of Windows replaces it under them: a reader of
/// ours, or a virus scanner that looks at what is new.
#[cfg(windows)]
fn rename_over(from: &Path, to: &Path) -> io::Result<()> {
    const ERROR_ACCESS_DENIED: i32 = 5;
    const ERROR_SHARING_VIOLATION: i32 = 32;
    for pause_ms in [1, 2, 5, 10, 20, 50, 100, 200, 500] {
        match fs::rename(from, to) {
            Err(error)
                if matches!(error.raw_os_error(), Some(ERROR_ACCESS_DENIED | ERROR_SHARING_VIOLATION))
                    && !to.is_dir() =>
            {
                std::thread::sleep(std::time::Duration::from_millis(pause_ms));
            }
            result => return result,
        }
    }
    fs::rename(from, to)
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Nothing can be done about a failure, and no listing shows the file.
            let _ = fs::remove_file(path);
        }
    }
}

/// What keeps a key from being a path here, beyond what [`check_key`] forbids.
fn file_name_problem(key: &str) -> Option<&'static str> {
    if key.split('/').any(is_temp_name) {
        return Some("a component looks like one of our temporary files");
    }
    if cfg!(windows) && key.split('/').any(is_unusable_on_windows) {
        return Some("Windows cannot have a file of that name");
    }
    None
}

fn is_temp_name(name: &str) -> bool {
    name.rsplit_once(TEMP_MARK)
        .is_some_and(|(_, random)| random.len() == 16 && random.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Microsoft, "Naming Files, Paths, and Namespaces".
fn is_unusable_on_windows(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let device = matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$")
        || stem.strip_prefix("COM").or(stem.strip_prefix("LPT")).is_some_and(|port| port.chars().count() == 1);
    device || name.ends_with(['.', ' ']) || name.contains(['<', '>', ':', '"', '|', '?', '*'])
}

/// Makes the directories between `root` and `dir`, but not `root`.
fn create_dirs_below(root: &Path, dir: &Path) -> io::Result<()> {
    if dir == root || dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().expect("dir is below root");
    create_dirs_below(root, parent)?;
    create_dir(dir, parent)
}

fn create_dirs(dir: &Path) -> io::Result<()> {
    match dir.parent() {
        Some(parent) if !dir.is_dir() => {
            create_dirs(parent)?;
            create_dir(dir, parent)
        }
        _ => Ok(()),
    }
}

/// Makes one directory so that it survives power loss; another thread may be making it too.
fn create_dir(dir: &Path, parent: &Path) -> io::Result<()> {
    #[cfg_attr(not(unix), expect(unused_mut))]
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Err(_) if !dir.is_dir() => return Err(io::Error::from(io::ErrorKind::NotADirectory)),
        _ => {}
    }
    sync_dir(parent)
}

#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir)?.sync_all() {
        // Some network and FUSE file systems cannot flush a directory; they make the rename durable by themselves.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        result => result,
    }
}

#[cfg(not(unix))]
fn sync_dir(_dir: &Path) -> io::Result<()> {
    // Windows flushes no directories; NTFS logs the rename.
    Ok(())
}

/// The mount point that `path` is on, as far as it can be told.
#[cfg(unix)]
fn volume_of(path: &Path) -> &Path {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let here = device(path);
    path.ancestors().take_while(|ancestor| device(ancestor) == here).last().unwrap_or(path)
}

#[cfg(not(unix))]
fn volume_of(path: &Path) -> &Path {
    path.ancestors().last().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_are_told_apart() {
        for (name, temp) in [
            ("p1.f.tmp.0123456789abcdef", true),
            (".tmp.0123456789abcdef", true),
            ("p1.f.tmp.0123456789abcde", false),
            ("p1.f.tmp.0123456789abcdeg", false),
            ("p1.tmp", false),
            ("p1.f", false),
        ] {
            assert_eq!(is_temp_name(name), temp, "{name}");
        }
    }

    #[test]
    fn names_windows_cannot_have() {
        for name in ["con", "NUL.txt", "com1", "LPT9.f", "a:b", "a.", "a ", "a?", "aux .f"] {
            assert!(is_unusable_on_windows(name), "{name}");
        }
        for name in ["console", "comet", "com", "com10", "a.f", "xn0_1-s2-c1.f", ".shards"] {
            assert!(!is_unusable_on_windows(name), "{name}");
        }
    }

    #[test]
    fn a_temporary_file_leaves_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        drop(TempFile::create(&dir.path().join("p1")).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_volume_without_hard_links_still_decides_who_was_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p1");
        let no_links = || io::Error::from(io::ErrorKind::Unsupported);
        let mut first = TempFile::create(&path).unwrap();
        first.file.write_all(b"first").unwrap();
        first.rename_if_absent(&path, no_links()).unwrap();
        let mut second = TempFile::create(&path).unwrap();
        let error = second.rename_if_absent(&path, no_links()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        drop((first, second));
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_directories_that_can_match_are_walked() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        for key in ["p/012/a", "p/013/a", "p1/a", "q/a", "p0"] {
            folder.put(key, &[b"x"], &PutOptions::default()).unwrap();
        }
        for (dir_key, prefix, walked, shown) in [
            ("", "p", vec!["p/", "p1/"], vec!["p0"]),
            ("", "q/", vec!["q/"], vec![]),
            ("", "", vec!["p/", "p1/", "q/"], vec!["p0"]),
            ("p/", "p/012", vec!["p/012/"], vec![]),
            ("p/", "p/01", vec!["p/012/", "p/013/"], vec![]),
            ("p/012/", "p/012/", vec![], vec!["p/012/a"]),
            ("vanished/", "vanished/", vec![], vec![]),
            ("p0/", "p0/", vec![], vec![]),
        ] {
            let (mut subdirs, mut objects) = (Vec::new(), Vec::new());
            let mut visit = |object: ObjectMeta| {
                objects.push(object.key);
                ControlFlow::Continue(())
            };
            let listed = folder.list_dir(dir_key, prefix, &mut visit, &mut subdirs).unwrap();
            subdirs.sort();
            assert_eq!(
                (listed, subdirs, objects),
                (
                    ControlFlow::Continue(()),
                    walked.iter().map(|s| s.to_string()).collect(),
                    shown.iter().map(|s| s.to_string()).collect()
                ),
                "{prefix:?} in {dir_key:?}"
            );
        }
    }
}

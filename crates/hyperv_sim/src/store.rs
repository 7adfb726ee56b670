//! Keeping the state: one file, replaced as a whole.
//!
//! Lock order: the mutex of this process, then the lock file, both held for one call of the host. Handles to disks hold
//! other lock files, shared, and are asked about only with `try_lock`.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest, Sha256};

use crate::error::LabError;
use crate::paths::WinPath;
use crate::state::HostState;
use crate::storage::Volumes;

const STATE_FILE: &str = "host.json";
const LOCK_FILE: &str = "host.lock";
const HANDLE_FOLDER: &str = "handles";

/// The folder of a host.
pub(crate) struct Store {
    root: PathBuf,
    /// The state as of a version of the file, so that calls that change nothing need not parse it.
    cache: Mutex<Option<(FileVersion, HostState)>>,
    /// Volumes that came over iSCSI, in their folders.
    pub(crate) volumes: Volumes,
    writes: AtomicU64,
    /// The write at which the process "dies"; [`u64::MAX`] for never.
    crash_at: AtomicU64,
}

/// Identity of one version of `host.json`: a rename always changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileVersion {
    file_number: u64,
    len_bytes: u64,
    modified: SystemTime,
}

/// The exclusive right to the host, for one call.
pub(crate) struct HostLock<'a> {
    pub(crate) cache: std::sync::MutexGuard<'a, Option<(FileVersion, HostState)>>,
    _file: File,
}

impl Store {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            root,
            cache: Mutex::new(None),
            volumes: Volumes::default(),
            writes: AtomicU64::new(0),
            crash_at: AtomicU64::new(u64::MAX),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Waits for its turn.
    pub(crate) fn lock(&self) -> Result<HostLock<'_>, LabError> {
        self.check_alive()?;
        // A poisoned mutex only means that a call panicked before it stored anything; the file is the truth.
        let mut cache = self.cache.lock().unwrap_or_else(|poisoned| {
            self.cache.clear_poison();
            let mut guard = poisoned.into_inner();
            *guard = None;
            guard
        });
        let path = self.root.join(LOCK_FILE);
        let file = open_lock_file(&path)?;
        file.lock().map_err(LabError::io("lock", &path))?;
        if cache.as_ref().map(|(version, _)| *version) != Some(self.version()?) {
            *cache = None;
        }
        Ok(HostLock { cache, _file: file })
    }

    /// The state of a host that is opened. Under the lock as everything else: Windows replaces no file that somebody
    /// reads, and the process that commits would fail.
    pub(crate) fn first_state(&self) -> Result<HostState, LabError> {
        let path = self.root.join(LOCK_FILE);
        // Not made here: a folder that holds no host stays as it is.
        let file = File::options().read(true).write(true).open(&path).map_err(LabError::io("open", &path))?;
        file.lock().map_err(LabError::io("lock", &path))?;
        self.read_state()
    }

    pub(crate) fn read_state(&self) -> Result<HostState, LabError> {
        let path = self.root.join(STATE_FILE);
        let text = fs::read(&path).map_err(LabError::io("read", &path))?;
        serde_json::from_slice(&text).map_err(|source| LabError::State { path, source })
    }

    /// Makes `state` the host's, durably.
    pub(crate) fn commit(&self, state: &HostState) -> Result<(), LabError> {
        let text = serde_json::to_vec(state).expect("the state has a JSON form");
        self.before_write()?;
        write_atomically(&self.root.join(STATE_FILE), &text)
    }

    pub(crate) fn version(&self) -> Result<FileVersion, LabError> {
        let path = self.root.join(STATE_FILE);
        let facts = fs::metadata(&path).map_err(LabError::io("look at", &path))?;
        Ok(FileVersion {
            file_number: file_number(&path, &facts).map_err(LabError::io("look at", &path))?,
            len_bytes: facts.len(),
            modified: facts.modified().map_err(LabError::io("look at", &path))?,
        })
    }

    /// Stands before everything that changes the folder; here the armed crash happens.
    pub(crate) fn before_write(&self) -> Result<(), LabError> {
        let number = self.writes.fetch_add(1, Ordering::SeqCst);
        if number >= self.crash_at.load(Ordering::SeqCst) { Err(LabError::Crashed(number)) } else { Ok(()) }
    }

    /// From the `count`-th write on (0 is the next one) nothing is written and every call fails, as if the process had
    /// been killed there.
    pub(crate) fn crash_after(&self, count: u64) {
        let written = self.writes.load(Ordering::SeqCst);
        self.crash_at.store(written.saturating_add(count), Ordering::SeqCst);
    }

    fn check_alive(&self) -> Result<(), LabError> {
        let (written, limit) = (self.writes.load(Ordering::SeqCst), self.crash_at.load(Ordering::SeqCst));
        // The counter passes the limit only when a write was refused.
        if written > limit { Err(LabError::Crashed(limit)) } else { Ok(()) }
    }

    /// The file behind a Windows path.
    pub(crate) fn file(&self, path: &WinPath) -> Result<PathBuf, LabError> {
        path.in_sandbox(&self.root)
            .ok_or_else(|| LabError::refused("map a path", format!("{:?} is no path on this host", path.as_str())))
    }

    /// Whether a file is there, on the host's drives or on a volume that is shown in a folder of them.
    pub(crate) fn has_file(&self, path: &WinPath) -> bool {
        match self.volumes.open(path) {
            Some(file) => file.is_ok(),
            None => path.in_sandbox(&self.root).is_some_and(|file| file.is_file()),
        }
    }

    /// Registers an open handle to a disk file. It lasts as long as the returned file, also when the process is killed.
    pub(crate) fn hold_handle(&self, path: &WinPath) -> Result<File, LabError> {
        let lock = self.handle_file(path);
        let file = open_lock_file(&lock)?;
        file.lock_shared().map_err(LabError::io("lock", &lock))?;
        Ok(file)
    }

    /// Whether any process has a handle to this disk file.
    pub(crate) fn is_held(&self, path: &WinPath) -> Result<bool, LabError> {
        let lock = self.handle_file(path);
        match open_lock_file(&lock)?.try_lock() {
            Ok(()) => Ok(false),
            Err(fs::TryLockError::WouldBlock) => Ok(true),
            Err(fs::TryLockError::Error(e)) => Err(LabError::io("lock", &lock)(e)),
        }
    }

    fn handle_file(&self, path: &WinPath) -> PathBuf {
        let digest = Sha256::digest(path.key().as_bytes());
        let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        self.root.join(HANDLE_FOLDER).join(name)
    }
}

/// Prepares the folder of a new host.
pub(crate) fn prepare(root: &Path) -> Result<(), LabError> {
    let folder = root.join(HANDLE_FOLDER);
    fs::create_dir_all(&folder).map_err(LabError::io("create", &folder))?;
    open_lock_file(&root.join(LOCK_FILE)).map(drop)
}

/// Replaces a file in one step that survives a power cut: a temporary file, flushed, renamed, and the folder flushed.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<(), LabError> {
    replace(path, content, true)
}

/// As [`write_atomically`], without waiting for the disk: survives the death of the process only.
pub(crate) fn replace_cached(path: &Path, content: &[u8]) -> Result<(), LabError> {
    replace(path, content, false)
}

fn replace(path: &Path, content: &[u8], durable: bool) -> Result<(), LabError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let mut file = File::create(&temporary).map_err(LabError::io("create", &temporary))?;
    file.write_all(content).map_err(LabError::io("write", &temporary))?;
    if durable {
        file.sync_all().map_err(LabError::io("flush", &temporary))?;
    }
    drop(file);
    rename(&temporary, path).map_err(LabError::io("replace", path))?;
    if durable && cfg!(unix) {
        let folder = path.parent().unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(LabError::io("flush", folder))?;
    }
    Ok(())
}

/// A rename that waits on Windows for whoever looks at the old file, were it only to ask whether it is there.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let start = Instant::now();
    loop {
        match fs::rename(from, to) {
            Err(e) if cfg!(windows) && e.kind() == io::ErrorKind::PermissionDenied && start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            outcome => return outcome,
        }
    }
}

fn open_lock_file(path: &Path) -> Result<File, LabError> {
    File::options().create(true).truncate(false).read(true).write(true).open(path).map_err(LabError::io("open", path))
}

/// The file system's number of a file: another file under the same name has another.
#[cfg(unix)]
pub(crate) fn file_number(_: &Path, facts: &fs::Metadata) -> io::Result<u64> {
    Ok(std::os::unix::fs::MetadataExt::ino(facts))
}

/// The same on Windows, which tells it only through an open handle; NTFS uses the last 64 bits of it.
#[cfg(windows)]
pub(crate) fn file_number(path: &Path, _: &fs::Metadata) -> io::Result<u64> {
    use hyperv::seam::HostFiles;
    let path = path.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
    let id = hyperv::windows::WindowsFiles.facts(path)?.file_id;
    id.get(id.len().saturating_sub(16)..)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

//! Restoring the tree of a snapshot into a folder.
//!
//! One thread walks the directories, makes folders and symlinks, and hands out work; a few threads read contents and
//! write them where they belong in their file. A file grows under a temporary name and gets its own when it is
//! complete and checked, so whatever has a name from the snapshot is whole. A folder gets its permissions and times
//! after all that lies in it.
//!
//! What cannot be read is named and left out, and the rest goes on. Nothing in a repository is trusted to stay inside
//! the target: a name is one path component or is refused, folders are made and never taken over, links are never
//! followed.

#[cfg_attr(windows, path = "restore_tree/windows.rs")]
#[cfg_attr(not(windows), path = "restore_tree/unix.rs")]
mod place;

mod file;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crossbeam_channel::{Receiver, Sender};

use crate::Repository;
use crate::error::ReadError;
use crate::format::snapshot::{DirEntry, DirectoryObject, EntryType};
use crate::snapshots::{Snapshot, object_of};
use file::OpenFile;
use place::Folder;

/// Files up to this size are read by one thread; the segments of longer ones by all of them.
const WHOLE_FILE_BYTES: u64 = 8 << 20;

/// Longest symlink target that is looked at; systems take 4 KiB.
const MAX_LINK_BYTES: u64 = 64 << 10;
/// Folders inside each other; each level holds a handle and its entries.
const MAX_DEPTH: usize = 500;
/// Failures that the report keeps with their cause; all of them are counted and given to the observer.
const MAX_FAILURES_KEPT: usize = 1000;

/// How a tree is restored.
#[derive(Clone, Debug)]
pub struct RestoreTreeOptions {
    /// The name to give a root that is not a directory, see [`base_name_of`]. The root's own name is not used.
    pub root_file_name: String,
    /// Whether files get the owner and group that they had.
    pub owners: Owners,
    /// Threads that read and write, at least 1. Each holds one segment, usually a few MiB.
    pub threads: usize,
}

/// Who owns what is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// As in the snapshot if this process is root, else this process.
    AsInSnapshotIfRoot,
    /// As in the snapshot; where that fails it is a failure of the entry.
    AsInSnapshot,
    /// This process.
    Restorer,
}

impl Default for RestoreTreeOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8));
        Self { root_file_name: "restored".into(), owners: Owners::AsInSnapshotIfRoot, threads }
    }
}

impl RestoreTreeOptions {
    /// The defaults for a snapshot: a root that is a single file gets the last name of the snapshot's source path.
    pub fn for_snapshot(snapshot: &Snapshot) -> Self {
        let mut options = Self::default();
        if let Some(name) = base_name_of(&snapshot.manifest.source.path) {
            options.root_file_name = name.to_owned();
        }
        options
    }
}

/// The last component of a source path, of Windows or any other system; none if it has no usable one.
pub fn base_name_of(source_path: &str) -> Option<&str> {
    let is_windows = matches!(source_path.as_bytes(), [b'a'..=b'z' | b'A'..=b'Z', b':', ..] | [b'\\', b'\\', ..]);
    let name = source_path.trim_end_matches('/').rsplit(|c| c == '/' || is_windows && c == '\\').next()?;
    place::name_problem(name).is_none().then_some(name)
}

/// What happens during a restore. Paths are below the target, names separated by `/`.
#[derive(Debug)]
#[non_exhaustive]
pub enum TreeEvent<'a> {
    /// This many bytes of files are done, zeros included.
    Bytes(u64),
    /// An entry is there, whole.
    Restored {
        /// Its path.
        path: &'a str,
        /// What it is.
        entry_type: &'a EntryType,
    },
    /// An entry failed, the others go on.
    Failed(&'a EntryFailure),
}

/// An entry that is not there as it should be.
#[derive(Debug)]
pub struct EntryFailure {
    /// Its path below the target. Its last name may be one that no file can have.
    pub path: String,
    /// Why.
    pub problem: EntryProblem,
}

/// Why an entry is not there as it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EntryProblem {
    /// It cannot be read from the repository. Nothing has its name.
    #[error("cannot be read")]
    Read(#[source] ReadError),
    /// The name would lead out of the target, or no file can have it. Nothing has its name.
    #[error("the name is refused: {0}")]
    Name(&'static str),
    /// It is neither file, directory nor symlink. Nothing has its name.
    #[error("entries of the type {0:?} cannot be restored")]
    EntryType(String),
    /// Directories too deep inside each other. Nothing has its name.
    #[error("more than {MAX_DEPTH} directories inside each other")]
    TooDeep,
    /// This file system cannot hold it, or has something under its name already.
    #[error("cannot be created")]
    Create(#[source] io::Error),
    /// It is there and whole, but without its permissions, owner or times.
    #[error("permissions, owner or times cannot be set")]
    Attributes(#[source] io::Error),
}

/// What a restore did.
#[derive(Debug, Default)]
pub struct RestoreTreeReport {
    /// Files restored.
    pub files: u64,
    /// Directories restored, the root included.
    pub directories: u64,
    /// Symlinks restored.
    pub symlinks: u64,
    /// Bytes of restored files, holes included.
    pub bytes: u64,
    /// Entries that failed; what lies in a directory that cannot be read is unknown and not counted.
    pub failed_entries: u64,
    /// The first of them.
    pub failures: Vec<EntryFailure>,
}

/// Why a restore ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreTreeError {
    /// Something is in the target already.
    #[error("the folder {} is not empty", target.display())]
    NotEmpty {
        /// The target.
        target: PathBuf,
    },
    /// The target cannot be written: full, read-only, not ours.
    #[error("write {path:?} in {}", target.display())]
    Write {
        /// The target.
        target: PathBuf,
        /// Below the target; empty for the target itself.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The root of the snapshot cannot be read, so there is nothing to restore.
    #[error("read the root of the snapshot")]
    Root(#[source] ReadError),
    /// The storage does not answer any more.
    #[error("read {path:?}")]
    Storage {
        /// Below the root.
        path: String,
        /// Why.
        #[source]
        source: Box<ReadError>,
    },
}

/// Restores what `root` names into `target`, a folder that is empty or does not exist.
///
/// Damage and whatever else concerns single entries is in the report; what is there under its own name is whole. After
/// an error the target holds the files that were complete.
pub fn restore_tree(
    repo: &Repository,
    root: &DirEntry,
    target: &Path,
    options: &RestoreTreeOptions,
    observer: &mut dyn FnMut(TreeEvent<'_>),
) -> Result<RestoreTreeReport, RestoreTreeError> {
    let entries = match root.entry_type {
        EntryType::Directory => read_directory(repo, root).map_err(RestoreTreeError::Root)?,
        _ => vec![DirEntry { name: options.root_file_name.clone(), ..root.clone() }],
    };
    let target_failed = |source| RestoreTreeError::Write { target: target.to_owned(), path: String::new(), source };
    let (folder, is_empty) = Folder::open_target(target).map_err(target_failed)?;
    if !is_empty {
        return Err(RestoreTreeError::NotEmpty { target: target.to_owned() });
    }
    let set_owners = match options.owners {
        Owners::AsInSnapshotIfRoot => place::is_root(),
        Owners::AsInSnapshot => true,
        Owners::Restorer => false,
    };
    let (outcomes, news) = crossbeam_channel::unbounded();
    let shared =
        Shared { repo, target, set_owners, outcomes, stopped: AtomicBool::new(false), error: Mutex::default() };
    let (tasks, work) = crossbeam_channel::bounded::<Task<'_>>(options.threads.max(1) * 2);
    let mut collector = Collector { news, observer, report: RestoreTreeReport::default() };

    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            let (work, shared) = (work.clone(), &shared);
            scope.spawn(move || work.iter().for_each(|task| shared.run(task)));
        }
        drop(work);
        let entry = (root.entry_type == EntryType::Directory).then(|| root.clone());
        let node = FolderNode { shared: &shared, folder, entry, path: String::new(), _parent: None };
        Walk { shared: &shared, tasks, collector: &mut collector }.run(Arc::new(node), entries);
    });
    collector.drain();
    match shared.error.into_inner().expect("no panic while held") {
        Some(error) => Err(error),
        None => Ok(collector.report),
    }
}

/// The walk over all directories, on the caller's thread.
struct Walk<'s, 'c, 'o> {
    shared: &'s Shared<'s>,
    tasks: Sender<Task<'s>>,
    collector: &'c mut Collector<'o>,
}

/// A folder and what of its entries is still to do.
type Below<'s> = (Arc<FolderNode<'s>>, std::vec::IntoIter<DirEntry>);

impl<'s> Walk<'s, '_, '_> {
    fn run(mut self, root: Arc<FolderNode<'s>>, entries: Vec<DirEntry>) {
        let mut open: Vec<Below<'s>> = vec![(root, entries.into_iter())];
        while let Some((folder, entries)) = open.last_mut() {
            if self.shared.stopped.load(Ordering::Relaxed) {
                break;
            }
            if let Some(entry) = entries.next() {
                let folder = folder.clone();
                let path = folder.path_of(&entry.name);
                match self.begin(folder, &path, entry, open.len()) {
                    Ok(Some(below)) => open.push(below),
                    Ok(None) => {}
                    Err(failed) => self.shared.fail(path, failed),
                }
            } else {
                open.pop();
            }
            self.collector.drain();
        }
    }

    /// Restores an entry or hands it out; a directory is given back to be walked.
    fn begin(
        &mut self,
        folder: Arc<FolderNode<'s>>,
        path: &str,
        entry: DirEntry,
        depth: usize,
    ) -> Result<Option<Below<'s>>, Failed> {
        let shared = self.shared;
        if let Some(problem) = place::name_problem(&entry.name) {
            return Err(Failed::Entry(EntryProblem::Name(problem)));
        }
        match &entry.entry_type {
            EntryType::Directory if depth > MAX_DEPTH => Err(Failed::Entry(EntryProblem::TooDeep)),
            EntryType::Directory => {
                // Read before it is made: a directory that cannot be read leaves nothing under its name.
                let entries = read_directory(shared.repo, &entry).map_err(read_failed)?;
                let made = folder.folder.create_folder(&entry.name).map_err(create_failed)?;
                let path = path.to_owned();
                let below = FolderNode { shared, folder: made, entry: Some(entry), path, _parent: Some(folder) };
                Ok(Some((Arc::new(below), entries.into_iter())))
            }
            EntryType::Symlink => {
                let object = object_of(&entry).map_err(read_failed)?;
                let link_target = shared.repo.read_object(&object, MAX_LINK_BYTES).map_err(read_failed)?;
                folder.folder.create_symlink(&entry.name, &link_target).map_err(create_failed)?;
                let set = folder.folder.set_symlink_attributes(&entry.name, &entry, shared.set_owners);
                set.map_err(attributes_failed)?;
                shared.tell(Outcome::Restored(path.to_owned(), EntryType::Symlink, 0));
                Ok(None)
            }
            EntryType::File => {
                let job = FileJob { folder, path: path.to_owned(), entry };
                if job.entry.size.unsigned_abs() <= WHOLE_FILE_BYTES {
                    self.send(Task::File(Box::new(job)));
                } else {
                    self.hand_out_segments(job)?;
                }
                Ok(None)
            }
            EntryType::Other(other) => Err(Failed::Entry(EntryProblem::EntryType(other.chars().take(20).collect()))),
        }
    }

    fn hand_out_segments(&mut self, job: FileJob<'s>) -> Result<(), Failed> {
        let open = OpenFile::open(self.shared.repo, &job)?;
        let count = open.segment_count();
        let in_work = Arc::new(LargeFile { job, open, failed: Mutex::default() });
        for number in 1..count {
            self.send(Task::Segment(in_work.clone(), number));
            self.collector.drain();
        }
        // With the last task goes the last hold on it from here: only threads that write it can end it.
        self.send(Task::Segment(in_work, 0));
        Ok(())
    }

    fn send(&self, task: Task<'s>) {
        self.tasks.send(task).expect("the threads take work until the walk ends");
    }
}

enum Task<'s> {
    File(Box<FileJob<'s>>),
    Segment(Arc<LargeFile<'s>>, usize),
}

/// A folder that is being filled. Everything that is done in it holds it; when the last lets go, it gets its
/// permissions, owner and times.
struct FolderNode<'s> {
    shared: &'s Shared<'s>,
    folder: Folder,
    /// None for a target that holds a single file: it keeps what it has.
    entry: Option<DirEntry>,
    path: String,
    /// Not done before this one is.
    _parent: Option<Arc<FolderNode<'s>>>,
}

impl FolderNode<'_> {
    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}/{name}", self.path) }
    }
}

impl Drop for FolderNode<'_> {
    fn drop(&mut self) {
        let shared = self.shared;
        let Some(entry) = self.entry.take().filter(|_| !shared.stopped.load(Ordering::Relaxed)) else { return };
        let path = std::mem::take(&mut self.path);
        match self.folder.set_attributes(&entry, shared.set_owners) {
            Ok(()) => shared.tell(Outcome::Restored(path, EntryType::Directory, 0)),
            Err(error) => shared.fail(path, attributes_failed(error)),
        }
    }
}

struct FileJob<'s> {
    folder: Arc<FolderNode<'s>>,
    path: String,
    entry: DirEntry,
}

/// A file whose segments several threads write; the last one gives it its name.
struct LargeFile<'s> {
    job: FileJob<'s>,
    open: OpenFile<'s>,
    failed: Mutex<Option<Failed>>,
}

enum Failed {
    /// This entry only.
    Entry(EntryProblem),
    /// The whole restore: the target cannot be written.
    Target(io::Error),
    /// The whole restore: the storage does not answer.
    Storage(ReadError),
}

fn read_failed(error: ReadError) -> Failed {
    match &error {
        // One blob that cannot be read is that blob's trouble; a storage that is gone is everybody's.
        ReadError::Storage { source, .. } if source.kind() == bucket::ErrorKind::Unreachable => Failed::Storage(error),
        _ => Failed::Entry(EntryProblem::Read(error)),
    }
}

/// Names and sizes that a file system cannot hold are the entry's problem, all else is the target's.
fn create_failed(error: io::Error) -> Failed {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::AlreadyExists | Kind::InvalidFilename | Kind::InvalidInput | Kind::FileTooLarge | Kind::NotFound => {
            Failed::Entry(EntryProblem::Create(error))
        }
        _ if place::is_name_error(&error) => Failed::Entry(EntryProblem::Create(error)),
        _ => Failed::Target(error),
    }
}

fn attributes_failed(error: io::Error) -> Failed {
    Failed::Entry(EntryProblem::Attributes(error))
}

fn read_directory(repo: &Repository, entry: &DirEntry) -> Result<Vec<DirEntry>, ReadError> {
    let DirectoryObject { entries, .. } = repo.read_directory(&object_of(entry)?)?;
    Ok(entries)
}

enum Outcome {
    Bytes(u64),
    Restored(String, EntryType, u64),
    Failed(EntryFailure),
}

/// What all threads see.
struct Shared<'r> {
    repo: &'r Repository,
    target: &'r Path,
    set_owners: bool,
    outcomes: Sender<Outcome>,
    /// Set once `error` is.
    stopped: AtomicBool,
    error: Mutex<Option<RestoreTreeError>>,
}

impl<'s> Shared<'s> {
    fn run(&'s self, task: Task<'s>) {
        if self.stopped.load(Ordering::Relaxed) {
            return;
        }
        match task {
            Task::File(job) => {
                let result = self.restore_file(&job);
                self.end(*job, result);
            }
            Task::Segment(file, number) => {
                if lock(&file.failed).is_none() {
                    match file.open.copy_segment(number) {
                        Ok(len) => self.tell(Outcome::Bytes(len)),
                        Err(failed) => *lock(&file.failed) = Some(failed),
                    }
                }
                // Exactly one thread gets it out: the last.
                if let Some(LargeFile { job, open, failed }) = Arc::into_inner(file) {
                    let result = match failed.into_inner().expect("no panic while held") {
                        Some(failed) => Err(failed),
                        None => open.finish(&job),
                    };
                    self.end(job, result);
                }
            }
        }
    }

    fn restore_file(&'s self, job: &FileJob<'s>) -> Result<(), Failed> {
        let open = OpenFile::open(self.repo, job)?;
        for number in 0..open.segment_count() {
            let len = open.copy_segment(number)?;
            self.tell(Outcome::Bytes(len));
        }
        open.finish(job)
    }

    fn end(&self, job: FileJob<'_>, result: Result<(), Failed>) {
        match result {
            Ok(()) => self.tell(Outcome::Restored(job.path, EntryType::File, job.entry.size.unsigned_abs())),
            Err(failed) => self.fail(job.path, failed),
        }
    }

    fn fail(&self, path: String, failed: Failed) {
        let error = match failed {
            Failed::Entry(problem) => return self.tell(Outcome::Failed(EntryFailure { path, problem })),
            Failed::Target(source) => RestoreTreeError::Write { target: self.target.to_owned(), path, source },
            Failed::Storage(source) => RestoreTreeError::Storage { path, source: Box::new(source) },
        };
        lock(&self.error).get_or_insert(error);
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn tell(&self, outcome: Outcome) {
        self.outcomes.send(outcome).expect("the collector lives as long as the restore");
    }
}

/// Turns what the threads tell into the report, on the caller's thread.
struct Collector<'o> {
    news: Receiver<Outcome>,
    observer: &'o mut dyn FnMut(TreeEvent<'_>),
    report: RestoreTreeReport,
}

impl Collector<'_> {
    fn drain(&mut self) {
        while let Ok(outcome) = self.news.try_recv() {
            self.take(outcome);
        }
    }

    fn take(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Bytes(len) => (self.observer)(TreeEvent::Bytes(len)),
            Outcome::Restored(path, entry_type, len_bytes) => {
                (self.observer)(TreeEvent::Restored { path: &path, entry_type: &entry_type });
                match entry_type {
                    EntryType::Directory => self.report.directories += 1,
                    EntryType::Symlink => self.report.symlinks += 1,
                    _ => self.report.files += 1,
                }
                self.report.bytes += len_bytes;
            }
            Outcome::Failed(failure) => {
                (self.observer)(TreeEvent::Failed(&failure));
                self.report.failed_entries += 1;
                if self.report.failures.len() < MAX_FAILURES_KEPT {
                    self.report.failures.push(failure);
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while held")
}

#[cfg(test)]
mod tests;

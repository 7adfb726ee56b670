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

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crossbeam_channel::{Receiver, Sender};

use crate::Repository;
use crate::error::ReadError;
use crate::format::content_id::ObjectId;
use crate::format::snapshot::{DirEntry, DirectoryObject, EntryType};
use crate::object::ObjectReader;
use crate::snapshots::{Snapshot, object_of};
use place::{Folder, TemporaryFile};

/// Files up to this size are read by one thread; the segments of longer ones by all of them.
const WHOLE_FILE_BYTES: u64 = 8 << 20;
/// Runs of zeros are left out of a file in units of this; smaller holes save nothing on usual file systems.
const HOLE_BYTES: usize = 4096;
/// Longest segment: as much as one content may have. A longer one is no segment but a claim.
const MAX_SEGMENT_BYTES: u64 = 1 << 27;
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

/// A file between its first byte and its name. Dropped before that, it leaves nothing.
struct OpenFile<'s> {
    object: ObjectReader<'s>,
    file: TemporaryFile,
    /// A segment known to be zeros, with its length: a sparse disk names it again and again.
    zeros: Mutex<Option<(ObjectId, u64)>>,
}

impl<'s> OpenFile<'s> {
    fn open(repo: &'s Repository, job: &FileJob<'_>) -> Result<Self, Failed> {
        let id = object_of(&job.entry).map_err(read_failed)?;
        let object = repo.open_object(&id).map_err(read_failed)?;
        if u64::try_from(job.entry.size) != Ok(object.len_bytes()) {
            let problem = format!("it has {} bytes, its directory says {}", object.len_bytes(), job.entry.size);
            return Err(read_failed(ReadError::DamagedObject { id, problem }));
        }
        let file = job.folder.folder.create_temporary_file().map_err(Failed::Target)?;
        // Zeros are left out below: the length has to be there before.
        file.set_len(object.len_bytes()).map_err(create_failed)?;
        Ok(Self { object, file, zeros: Mutex::default() })
    }

    fn segment_count(&self) -> usize {
        self.object.segments().len().max(1)
    }

    /// Reads a segment and writes what is not zero; returns its length.
    fn copy_segment(&self, number: usize) -> Result<u64, Failed> {
        let segment = self.object.segments().get(number);
        let (start, len) = segment.map_or((0, self.object.len_bytes()), |segment| (segment.start, segment.len));
        if segment.is_some() && *lock(&self.zeros) == segment.map(|segment| (segment.object, segment.len)) {
            return Ok(len);
        }
        if len > MAX_SEGMENT_BYTES {
            let problem = format!("a piece of {len} bytes");
            return Err(read_failed(ReadError::Damaged { what: "the file's object".into(), problem }));
        }
        let mut bytes = vec![0; len as usize];
        self.object.read_exact_at(&mut bytes, start).map_err(read_failed)?;
        let mut all_zero = true;
        for (offset, run) in nonzero_runs(&bytes, start) {
            all_zero = false;
            self.file.write_all_at(run, offset).map_err(Failed::Target)?;
        }
        if all_zero && let Some(segment) = segment {
            *lock(&self.zeros) = Some((segment.object, segment.len));
        }
        Ok(len)
    }

    fn finish(self, job: &FileJob<'_>) -> Result<(), Failed> {
        let attributes = self.file.set_attributes(&job.entry, job.folder.shared.set_owners);
        self.file.give_name(&job.folder.folder, &job.entry.name).map_err(create_failed)?;
        attributes.map_err(attributes_failed)
    }
}

/// The parts of `bytes` to be written, with their offsets in the file: whole pages of zeros are left out.
fn nonzero_runs(bytes: &[u8], start_bytes: u64) -> impl Iterator<Item = (u64, &[u8])> {
    let to_boundary = (HOLE_BYTES - (start_bytes % HOLE_BYTES as u64) as usize) % HOLE_BYTES;
    let page_end = move |at: usize| {
        if at < to_boundary { to_boundary } else { at + HOLE_BYTES - (at - to_boundary) % HOLE_BYTES }
    };
    let page = move |at: usize| &bytes[at..page_end(at).min(bytes.len())];
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && is_zero(page(at)) {
            at += page(at).len();
        }
        let from = at;
        while at < bytes.len() && !is_zero(page(at)) {
            at += page(at).len();
        }
        (from < at).then(|| (start_bytes + from as u64, &bytes[from..at]))
    })
}

fn is_zero(bytes: &[u8]) -> bool {
    // Chunks let the compiler compare many bytes at a time.
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
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
mod tests {
    use std::fs;
    use std::sync::Arc;

    use jiff::Timestamp;

    use super::*;
    use crate::format::snapshot::GoMode;
    use crate::{ClientOptions, CreateOptions, SessionOptions, Storage, StorageKind, WriteSession};

    #[test]
    fn only_pages_of_zeros_are_left_out() {
        let page = HOLE_BYTES;
        let mut bytes = vec![0; 5 * page];
        bytes[page + 7] = 1;
        bytes[3 * page] = 1;
        bytes[5 * page - 1] = 1;
        for (start, expected) in [
            (0, vec![(page, page), (3 * page, 2 * page)]),
            // Pages are those of the file: here the segment begins in the middle of one.
            (page / 2, vec![(page / 2, page), (5 * page / 2, page), (9 * page / 2, page / 2)]),
            (1, vec![(page - 1, 2 * page - (page - 1)), (3 * page - 1, page), (4 * page - 1, page + 1)]),
        ] {
            let runs: Vec<_> = nonzero_runs(&bytes, start as u64).collect();
            let mut rebuilt = vec![0; bytes.len()];
            for (offset, run) in &runs {
                let at = *offset as usize - start;
                rebuilt[at..at + run.len()].copy_from_slice(run);
            }
            assert_eq!(rebuilt, bytes, "start {start}");
            if start != 1 {
                let shape: Vec<_> = runs.iter().map(|(offset, run)| (*offset as usize - start, run.len())).collect();
                assert_eq!(shape, expected, "start {start}");
            }
        }
        assert_eq!(nonzero_runs(&[0; 100], 5).count(), 0);
        assert_eq!(nonzero_runs(&[], 5).count(), 0);
    }

    #[test]
    fn base_names() {
        for (path, name) in [
            ("/notes/note.txt", Some("note.txt")),
            ("/notes/", Some("notes")),
            ("C:\\data\\disk.vhdx", Some("disk.vhdx")),
            ("\\\\server\\share\\file", Some("file")),
            ("/", None),
            ("", None),
            ("/a/..", None),
        ] {
            assert_eq!(base_name_of(path), name, "{path}");
        }
    }

    /// A repository in memory, with a session that the test writes its tree with.
    fn session() -> WriteSession {
        let storage = Storage { bucket: Arc::new(bucket::Memory::new()), kind: StorageKind::ObjectStore };
        let client = ClientOptions::new("tester", "here");
        let repo = Repository::create(&storage, "password", &CreateOptions::new("tester"), client).unwrap();
        WriteSession::new(repo, SessionOptions::default()).unwrap()
    }

    fn entry(name: &str, entry_type: EntryType, object: &ObjectId, size: usize) -> DirEntry {
        let executable = entry_type == EntryType::Directory;
        DirEntry {
            name: name.into(),
            entry_type,
            mode: GoMode(if executable { 0o755 } else { 0o644 }),
            size: size as i64,
            mtime: Timestamp::UNIX_EPOCH,
            uid: 0,
            gid: 0,
            object: object.to_string(),
            summary: None,
        }
    }

    fn directory(session: &WriteSession, name: &str, entries: Vec<DirEntry>) -> DirEntry {
        let object = session.write_directory(&DirectoryObject { entries, summary: None }).unwrap();
        entry(name, EntryType::Directory, &object, 0)
    }

    fn restore(session: &WriteSession, root: &DirEntry, target: &Path) -> RestoreTreeReport {
        session.flush().unwrap();
        let options = RestoreTreeOptions { owners: Owners::Restorer, ..RestoreTreeOptions::default() };
        restore_tree(session.repository(), root, target, &options, &mut |_| {}).unwrap()
    }

    #[test]
    fn hostile_names_stay_inside_and_are_counted() {
        let session = session();
        let file = session.write_object(b"payload", None, None).unwrap();
        let names = ["../escaped", "/tmp/escaped", "..", ".", "", "a/b", "nul\0", "..\u{0}"];
        let mut entries: Vec<_> = names.iter().map(|name| entry(name, EntryType::File, &file, 7)).collect();
        entries.push(entry("good", EntryType::File, &file, 7));
        entries.push(entry(&"n".repeat(256), EntryType::File, &file, 7));
        for kind in [EntryType::Directory, EntryType::Symlink, EntryType::Other("x".into())] {
            entries.push(entry(&format!("../{kind:?}"), kind, &file, 7));
        }
        entries.push(entry("device", EntryType::Other("c".into()), &file, 7));
        let expected_failures = entries.len() - 1;
        let root = directory(&session, "../../root", entries);
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().join("inside/target");
        let report = restore(&session, &root, &target);
        assert_eq!(report.failed_entries, expected_failures as u64, "{:?}", report.failures);
        assert_eq!((report.files, report.directories), (1, 1));
        let there: Vec<_> = fs::read_dir(&target).unwrap().map(|found| found.unwrap().file_name()).collect();
        assert_eq!(there, ["good"]);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    /// A link that leads out, and things under the same name or below it.
    #[cfg(unix)]
    #[test]
    fn links_are_never_followed() {
        let session = session();
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        fs::create_dir(&secret).unwrap();
        let link_target = session.write_object(secret.to_str().unwrap().as_bytes(), None, None).unwrap();
        let file = session.write_object(b"payload", None, None).unwrap();
        let link = entry("link", EntryType::Symlink, &link_target, 0);
        let below = directory(&session, "link", vec![entry("planted", EntryType::File, &file, 7)]);
        // A directory object with the name twice: the last counts, whichever it is.
        let root = directory(
            &session,
            "",
            vec![below.clone(), link.clone(), entry("link/planted", EntryType::File, &file, 7)],
        );
        let target = outside.path().join("target");
        restore(&session, &root, &target);
        assert_eq!(fs::read_dir(&secret).unwrap().count(), 0);

        // A root that is a link is made, under the name that the caller gave.
        let target = outside.path().join("other");
        restore(&session, &DirEntry { name: "../x".into(), ..link }, &target);
        assert_eq!(fs::read_link(target.join("restored")).unwrap(), secret);
        assert_eq!(fs::read_dir(&secret).unwrap().count(), 0);
    }

    #[test]
    fn unreadable_entries_leave_no_name_and_the_rest_goes_on() {
        let session = session();
        let file = session.write_object(b"payload", None, None).unwrap();
        let large_bytes = vec![7; 9 << 20];
        let large = session.write_file_object(&large_bytes, 1 << 20, None).unwrap();
        let missing: ObjectId = "00112233445566778899aabbccddeeff".parse().unwrap();
        let missing_stream: ObjectId = "Ix00112233445566778899aabbccddeeff".parse().unwrap();
        let entries = vec![
            entry("file", EntryType::File, &file, 7),
            entry("large", EntryType::File, &large, 9 << 20),
            entry("missing", EntryType::File, &missing, 7),
            entry("missing-large", EntryType::File, &missing_stream, 9 << 20),
            entry("missing-folder", EntryType::Directory, &missing, 0),
            entry("missing-link", EntryType::Symlink, &missing, 7),
            entry("longer-than-said", EntryType::File, &file, 6),
            entry("shorter-than-said", EntryType::File, &file, 8),
            entry("a-file-as-folder", EntryType::Directory, &file, 0),
            DirEntry { object: "no object".into(), ..entry("no-object", EntryType::File, &file, 7) },
            DirEntry { size: -1, ..entry("negative", EntryType::File, &file, 7) },
        ];
        let root = directory(&session, "", entries);
        let target = tempfile::tempdir().unwrap();
        let report = restore(&session, &root, target.path());
        assert_eq!(report.failed_entries, 9, "{:?}", report.failures);
        assert!(report.failures.iter().all(|failure| matches!(failure.problem, EntryProblem::Read(_))));
        let mut there: Vec<_> = fs::read_dir(target.path()).unwrap().map(|found| found.unwrap().file_name()).collect();
        there.sort();
        assert_eq!(there, ["file", "large"]);
        assert_eq!(fs::read(target.path().join("large")).unwrap(), large_bytes);
        assert_eq!(report.bytes, 7 + (9 << 20));
    }

    #[test]
    fn a_root_that_cannot_be_read_is_an_error() {
        let session = session();
        session.flush().unwrap();
        let missing: ObjectId = "k00112233445566778899aabbccddeeff".parse().unwrap();
        let root = entry("", EntryType::Directory, &missing, 0);
        let target = tempfile::tempdir().unwrap();
        let options = RestoreTreeOptions::default();
        let result = restore_tree(session.repository(), &root, target.path(), &options, &mut |_| {});
        assert!(matches!(result, Err(RestoreTreeError::Root(_))), "{result:?}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_target_that_takes_no_files_is_an_error() {
        let session = session();
        let file = session.write_file_object(&vec![7; 9 << 20], 1 << 20, None).unwrap();
        let root = directory(&session, "", vec![entry("large", EntryType::File, &file, 9 << 20)]);
        session.flush().unwrap();
        let options = RestoreTreeOptions { owners: Owners::Restorer, ..RestoreTreeOptions::default() };
        // The kernel's own file system takes no files from anybody.
        let result = restore_tree(session.repository(), &root, Path::new("/proc/sys"), &options, &mut |_| {});
        assert!(matches!(result, Err(RestoreTreeError::NotEmpty { .. })), "{result:?}");
        let result = restore_tree(session.repository(), &root, Path::new("/proc/nothing"), &options, &mut |_| {});
        assert!(matches!(result, Err(RestoreTreeError::Write { .. })), "{result:?}");
    }
}

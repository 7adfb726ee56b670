//! Plain files of the host, by the host's own path.

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use vhdx::{ReadAt, WriteAt};

/// What the host's file system says about a file: how a replaced or restored copy is noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Length in bytes.
    pub len_bytes: u64,
    /// The file system's own number of the file (NTFS file id, inode), as text; it changes when a file is replaced.
    pub file_id: String,
    /// When the file was created, if the file system knows.
    pub created: Option<SystemTime>,
    /// Last modification.
    pub modified: SystemTime,
}

/// An open file. Opened for reading with every kind of sharing (read, write, delete) granted to others.
pub type HostFile = Box<dyn ReadAt>;

/// Reading of the host's files. Paths are in the host's own form (`C:\VMs\disk.vhdx`).
pub trait HostFiles: Send + Sync {
    /// Opens for reading; the leaf of a running VM gives a sharing violation: raw OS error 32, or `ResourceBusy`.
    fn open_read(&self, path: &str) -> io::Result<HostFile>;

    /// Facts of a file; `NotFound` when it is not there.
    fn facts(&self, path: &str) -> io::Result<FileFacts>;

    /// Bytes that can still be written to the volume that holds `path`.
    fn free_bytes(&self, path: &str) -> io::Result<u64>;

    /// The same files for writing, where that can be done: restores need it, nothing else does.
    fn writes(&self) -> Option<&dyn HostWrites> {
        None
    }
}

/// Writing of the host's files. Paths as in [`HostFiles`]; what a call did is durable when it returns.
pub trait HostWrites: Send + Sync {
    /// Where this process finds a file or folder of the host, whether or not it is there.
    fn local_path(&self, path: &str) -> io::Result<PathBuf>;

    /// Opens a file that is there, for reading and writing; `ResourceBusy`, or raw OS error 32, while others use it.
    fn open_write(&self, path: &str) -> io::Result<Box<dyn WriteAt>>;

    /// Makes a folder and those above it; one that is there is a success.
    fn create_folder(&self, path: &str) -> io::Result<()>;

    /// Writes a new file; one that is there is `AlreadyExists`.
    fn create_file(&self, path: &str, content: &[u8]) -> io::Result<()>;

    /// Gives a file another name in the same folder; `AlreadyExists` when something has it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file; one that is gone already is a success.
    fn remove_file(&self, path: &str) -> io::Result<()>;

    /// Removes a folder if it is empty; says whether it is gone.
    fn remove_empty_folder(&self, path: &str) -> io::Result<bool>;
}

/// [`HostWrites`] for a host whose files are those of this process, once a path is translated.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalWrites;

impl LocalWrites {
    /// See [`HostWrites::create_folder`].
    pub fn create_folder(self, path: &std::path::Path) -> io::Result<()> {
        std::fs::create_dir_all(path)?;
        sync_folder_of(path)
    }

    /// See [`HostWrites::create_file`].
    pub fn create_file(self, path: &std::path::Path, content: &[u8]) -> io::Result<()> {
        let mut file = std::fs::File::create_new(path)?;
        io::Write::write_all(&mut file, content)?;
        file.sync_all()?;
        sync_folder_of(path)
    }

    /// See [`HostWrites::rename`].
    pub fn rename(self, from: &std::path::Path, to: &std::path::Path) -> io::Result<()> {
        if to.symlink_metadata().is_ok() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is there", to.display())));
        }
        std::fs::rename(from, to)?;
        sync_folder_of(to)
    }

    /// See [`HostWrites::remove_file`].
    pub fn remove_file(self, path: &std::path::Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Ok(()) => sync_folder_of(path),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// See [`HostWrites::remove_empty_folder`].
    pub fn remove_empty_folder(self, path: &std::path::Path) -> io::Result<bool> {
        match std::fs::remove_dir(path) {
            Ok(()) => sync_folder_of(path).map(|()| true),
            Err(error) if is_gone(&error) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Also when the folder that would hold it is gone.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Makes new and removed names durable where the file system needs it.
fn sync_folder_of(path: &std::path::Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if cfg!(unix) => match std::fs::File::open(folder) {
            Ok(folder) => folder.sync_all(),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(error),
        },
        _ => Ok(()),
    }
}

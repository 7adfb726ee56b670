//! A folder of files: the border to the operating system, where kills and power losses happen.
//!
//! The overlay, the hydration map and a session's state are written through these two traits, and say by their calls
//! what has to be durable when. Tests put a folder in their place that loses what was not made durable.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One flat folder. Names are plain file names.
pub trait Folder: Send + Sync {
    /// The names of all files, in no order.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes an empty file; `AlreadyExists` when there is one. Its name is durable after [`sync`](Self::sync).
    fn create(&self, name: &str) -> io::Result<Arc<dyn StoredFile>>;

    /// Opens a file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn StoredFile>>;

    /// Removes a file. Handles that are open go on working.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Gives a file another name, in place of a file that had it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Returns when every name made, changed or removed before is durable as that. Nothing to do on Windows, where
    /// flushing a file is all there is.
    fn sync(&self) -> io::Result<()>;

    /// Bytes that are free, where that is known.
    fn free_bytes(&self) -> Option<u64>;

    /// Where it is, for messages.
    fn display(&self) -> String;
}

/// Random access to one file; calls may run concurrently.
pub trait StoredFile: Send + Sync {
    /// Fills `buf`, or fails: `UnexpectedEof` past the end.
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()>;

    /// Writes all of `data`; survives the process from now on, and a power loss after [`sync_data`](Self::sync_data).
    fn write_all_at(&self, data: &[u8], offset_bytes: u64) -> io::Result<()>;

    /// Makes an empty file so long, of zeroes that take no space where the file system can do that.
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;

    /// Returns when every write that had returned before, and the length, is on stable storage.
    fn sync_data(&self) -> io::Result<()>;

    /// The length now.
    fn len_bytes(&self) -> io::Result<u64>;
}

/// Puts `bytes` under `name`, in place of what is there: afterwards a crash finds the old or the new, never a mixture,
/// and once this returned, the new.
pub fn replace(folder: &dyn Folder, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}.new");
    match folder.remove(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = folder.create(&temporary)?;
    file.write_all_at(bytes, 0)?;
    file.sync_data()?;
    drop(file);
    folder.rename(&temporary, name)?;
    folder.sync()
}

/// The whole of a small file; `None` when there is none, an error when it is longer than `max_bytes`.
pub fn read_small(folder: &dyn Folder, name: &str, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match folder.open(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let len = file.len_bytes()?;
    if len > max_bytes {
        let problem = format!("{name} has {len} bytes, more than the {max_bytes} it can have");
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}

/// A folder of the file system.
#[derive(Debug)]
pub struct DiskFolder {
    path: PathBuf,
}

impl DiskFolder {
    /// Opens a folder, and makes it where it is missing, parents included, durably.
    pub fn open_or_create(path: &Path) -> io::Result<Self> {
        if !path.is_dir() {
            let made = path.ancestors().take_while(|folder| !folder.is_dir()).count();
            std::fs::create_dir_all(path)?;
            for folder in path.ancestors().skip(1).take(made) {
                sync_folder(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?;
            }
        }
        Ok(Self { path: path.to_owned() })
    }
}

impl Folder for DiskFolder {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            // Names of ours are ASCII; what is not text is not ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StoredFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(self.path.join(name))?;
        Ok(Arc::new(DiskFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StoredFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
        Ok(Arc::new(DiskFile(file)))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync(&self) -> io::Result<()> {
        sync_folder(&self.path)
    }

    fn free_bytes(&self) -> Option<u64> {
        free_bytes(&self.path)
    }

    fn display(&self) -> String {
        self.path.display().to_string()
    }
}

#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// One file of the file system.
pub(crate) struct DiskFile(File);

impl DiskFile {
    /// Opens a file that is only read.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }
}

impl StoredFile for DiskFile {
    #[cfg(unix)]
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buf, offset_bytes)
    }

    #[cfg(unix)]
    fn write_all_at(&self, data: &[u8], offset_bytes: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.0, data, offset_bytes)
    }

    #[cfg(windows)]
    fn read_exact_at(&self, mut buf: &mut [u8], mut offset_bytes: u64) -> io::Result<()> {
        while !buf.is_empty() {
            let read = std::os::windows::fs::FileExt::seek_read(&self.0, buf, offset_bytes)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buf = &mut buf[read..];
            offset_bytes += read as u64;
        }
        Ok(())
    }

    #[cfg(windows)]
    fn write_all_at(&self, mut data: &[u8], mut offset_bytes: u64) -> io::Result<()> {
        while !data.is_empty() {
            let written = std::os::windows::fs::FileExt::seek_write(&self.0, data, offset_bytes)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            data = &data[written..];
            offset_bytes += written as u64;
        }
        Ok(())
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.0.set_len(len_bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_replaced_is_read_back_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let folder = DiskFolder::open_or_create(&folder.path().join("a/b")).unwrap();
        assert_eq!(read_small(&folder, "state", 10).unwrap(), None);
        replace(&folder, "state", b"old").unwrap();
        folder.create("state.new").unwrap().write_all_at(b"left by a crash", 0).unwrap();
        replace(&folder, "state", b"new").unwrap();
        assert_eq!(read_small(&folder, "state", 3).unwrap().unwrap(), b"new");
        assert_eq!(folder.list().unwrap(), ["state"]);
        assert_eq!(read_small(&folder, "state", 2).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(folder.create("state").err().unwrap().kind(), io::ErrorKind::AlreadyExists);
    }
}

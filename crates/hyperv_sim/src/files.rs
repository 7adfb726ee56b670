//! Plain files of the host.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use hyperv::seam::{FileFacts, HostFile, HostFiles, HostWrites, LocalWrites};
use vhdx::{ReadAt, WriteAt};

use crate::error::LabError;
use crate::host::{LabHost, Tx};
use crate::paths::WinPath;
use crate::provider::describe;
use crate::store::file_number;
use crate::virt_disk::check_openable;

/// [`HostFiles`] of a [`LabHost`].
pub(crate) struct LabFiles {
    host: Arc<LabHost>,
}

impl LabFiles {
    pub(crate) fn new(host: Arc<LabHost>) -> Self {
        Self { host }
    }

    fn existing(&self, path: &WinPath) -> io::Result<PathBuf> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.as_str()));
        path.in_sandbox(self.host.store.root()).filter(|file| file.is_file()).ok_or_else(missing)
    }

    /// A change of the drive, in a call of the host: a file that a running VM or a reader has stays as it is.
    fn change<T>(&self, path: &str, change: impl FnOnce(PathBuf) -> io::Result<T>) -> io::Result<T> {
        let file = self.local_path(path)?;
        let path = WinPath::new(path);
        let changed = self.host.transact(|tx| {
            if check_openable(tx, &path).is_err() || tx.store.is_held(&path)? {
                let text = format!("{} is in use (0x80070020)", path.as_str());
                return Ok(Err(io::Error::new(io::ErrorKind::ResourceBusy, text)));
            }
            tx.store.before_write()?;
            Ok(change(file))
        });
        changed.map_err(broken)?
    }
}

impl HostFiles for LabFiles {
    fn open_read(&self, path: &str) -> io::Result<HostFile> {
        let path = WinPath::new(path);
        let opened = self.host.transact(|tx| {
            if check_openable(tx, &path).is_err() {
                let text = format!("{} is open for writing (0x80070020)", path.as_str());
                return Ok(Err(io::Error::new(io::ErrorKind::ResourceBusy, text)));
            }
            if let Some(file) = tx.store.volumes.open(&path) {
                return Ok(file.map(|file| Box::new(file) as HostFile));
            }
            let file = match self.existing(&path).and_then(File::open) {
                Ok(file) => file,
                Err(e) => return Ok(Err(e)),
            };
            Ok(Ok(Box::new(SharedFile { file, _held: tx.store.hold_handle(&path)? }) as HostFile))
        });
        opened.map_err(broken)?
    }

    fn facts(&self, path: &str) -> io::Result<FileFacts> {
        let path = WinPath::new(path);
        // In a call of the host, so that what is due happens first, as it does for everybody who looks.
        let look = || -> io::Result<_> {
            let file = self.existing(&path)?;
            let facts = fs::metadata(&file)?;
            Ok((file_number(&file, &facts)?, facts))
        };
        let (number, facts) = self.host.transact(|_| Ok(look())).map_err(broken)??;
        Ok(FileFacts {
            len_bytes: facts.len(),
            file_id: number.to_string(),
            // Wine takes the time of the last change for it; the number says enough.
            created: facts.created().ok().filter(|_| !cfg!(windows)),
            modified: facts.modified()?,
        })
    }

    fn free_bytes(&self, path: &str) -> io::Result<u64> {
        let is_here = WinPath::new(path).in_sandbox(self.host.store.root()).is_some();
        if !is_here {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no volume for {path}")));
        }
        self.host.transact(|tx| Ok(tx.options.free_bytes)).map_err(broken)
    }

    fn writes(&self) -> Option<&dyn HostWrites> {
        Some(self)
    }
}

impl HostWrites for LabFiles {
    fn local_path(&self, path: &str) -> io::Result<PathBuf> {
        let outside = || io::Error::new(io::ErrorKind::NotFound, format!("there is no volume for {path}"));
        WinPath::new(path).in_sandbox(self.host.store.root()).ok_or_else(outside)
    }

    fn open_write(&self, path: &str) -> io::Result<Box<dyn WriteAt>> {
        let path = WinPath::new(path);
        let opened = self.host.transact(|tx| {
            let is_used = check_openable(tx, &path).is_err() || tx.store.is_held(&path)?;
            if is_used {
                let text = format!("{} is open elsewhere (0x80070020)", path.as_str());
                return Ok(Err(io::Error::new(io::ErrorKind::ResourceBusy, text)));
            }
            let file = match self.existing(&path).and_then(|file| File::options().read(true).write(true).open(file)) {
                Ok(file) => file,
                Err(e) => return Ok(Err(e)),
            };
            Ok(Ok(SharedFile { file, _held: tx.store.hold_handle(&path)? }))
        });
        Ok(Box::new(opened.map_err(broken)??))
    }

    fn create_folder(&self, path: &str) -> io::Result<()> {
        let folder = WinPath::new(path);
        if self.host.transact(|tx| Ok(tx.storage.is_dangling(&folder))).map_err(broken)? {
            let text = format!("{path} is a mount point whose volume is not there");
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        self.change(path, |path| LocalWrites.create_folder(&path))
    }

    fn create_file(&self, path: &str, content: &[u8]) -> io::Result<()> {
        self.change(path, |path| LocalWrites.create_file(&path, content))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let to = self.local_path(to)?;
        self.change(from, |from| LocalWrites.rename(&from, &to))
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        self.change(path, |path| LocalWrites.remove_file(&path))
    }

    fn remove_empty_folder(&self, path: &str) -> io::Result<bool> {
        let is_gone = self.change(path, |path| LocalWrites.remove_empty_folder(&path))?;
        let folder = WinPath::new(path);
        let forgets = |tx: &mut Tx<'_>| {
            if tx.storage.settings.iter().any(|settings| settings.folders.contains(&folder)) {
                tx.edit().storage.forget_folder(&folder);
            }
            Ok(())
        };
        if is_gone {
            self.host.transact(forgets).map_err(broken)?;
        }
        Ok(is_gone)
    }
}

fn broken(error: LabError) -> io::Error {
    io::Error::other(describe(&error))
}

/// An open file that counts as a handle to it.
struct SharedFile {
    file: File,
    _held: File,
}

impl ReadAt for SharedFile {
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        ReadAt::read_exact_at(&self.file, buf, offset_bytes)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.file.len_bytes()
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        self.file.next_data(range)
    }
}

impl WriteAt for SharedFile {
    fn write_all_at(&self, data: &[u8], offset_bytes: u64) -> io::Result<()> {
        WriteAt::write_all_at(&self.file, data, offset_bytes)
    }

    fn flush(&self) -> io::Result<()> {
        WriteAt::flush(&self.file)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        WriteAt::set_len(&self.file, len_bytes)
    }

    fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.file.write_zeroes(range)
    }
}

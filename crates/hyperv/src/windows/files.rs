//! Plain files of the host.

use std::fs::{self, File};
use std::io;
use std::os::windows::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vhdx::WriteAt;

use super::calls;
use crate::seam::{FileFacts, HostFile, HostFiles, HostWrites, LocalWrites};

/// The file system of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct WindowsFiles;

/// `FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE`.
const SHARE_EVERYTHING: u32 = 7;

impl HostFiles for WindowsFiles {
    fn open_read(&self, path: &str) -> io::Result<HostFile> {
        Ok(Box::new(open(path)?))
    }

    fn facts(&self, path: &str) -> io::Result<FileFacts> {
        let metadata = fs::metadata(path)?;
        // The number needs a handle, which asks for no right that a running VM would refuse.
        let (volume, number) = calls::file_id(&open_for_facts(path)?).map_err(to_io)?;
        Ok(FileFacts {
            len_bytes: metadata.len(),
            file_id: format!("{volume:016x}-{number:032x}"),
            created: metadata.created().ok(),
            modified: metadata.modified()?,
        })
    }

    fn free_bytes(&self, path: &str) -> io::Result<u64> {
        // The question is about a folder; the path may name a file, which need not be there yet.
        let folder = Path::new(path).ancestors().find(|folder| folder.is_dir());
        let folder = folder.and_then(Path::to_str).ok_or(io::ErrorKind::NotFound)?;
        calls::free_bytes(folder).map_err(to_io)
    }

    fn writes(&self) -> Option<&dyn HostWrites> {
        Some(self)
    }
}

impl HostWrites for WindowsFiles {
    fn local_path(&self, path: &str) -> io::Result<PathBuf> {
        Ok(path.into())
    }

    fn open_write(&self, path: &str) -> io::Result<Box<dyn WriteAt>> {
        // Nobody else may have it open: what a VM or another program writes meanwhile would be mixed in.
        Ok(Box::new(File::options().read(true).write(true).share_mode(0).open(path)?))
    }

    fn create_folder(&self, path: &str) -> io::Result<()> {
        LocalWrites.create_folder(Path::new(path))
    }

    fn create_file(&self, path: &str, content: &[u8]) -> io::Result<()> {
        LocalWrites.create_file(Path::new(path), content)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        LocalWrites.rename(Path::new(from), Path::new(to))
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        LocalWrites.remove_file(Path::new(path))
    }

    fn remove_empty_folder(&self, path: &str) -> io::Result<bool> {
        LocalWrites.remove_empty_folder(Path::new(path))
    }
}

/// Makes what is not written to a file take no space, as on other systems. Never for a virtual disk file: Windows
/// attaches no sparse ones (spec 5.2).
pub fn mark_sparse(file: &File) -> io::Result<()> {
    calls::mark_sparse(file).map_err(to_io)
}

fn open(path: &str) -> io::Result<File> {
    File::options().read(true).share_mode(SHARE_EVERYTHING).open(path)
}

fn open_for_facts(path: &str) -> io::Result<File> {
    /// `FILE_READ_ATTRIBUTES`.
    const READ_ATTRIBUTES: u32 = 0x80;
    File::options().access_mode(READ_ATTRIBUTES).share_mode(SHARE_EVERYTHING).open(path)
}

fn to_io(code: calls::Code) -> io::Error {
    io::Error::from_raw_os_error(code.cast_signed())
}

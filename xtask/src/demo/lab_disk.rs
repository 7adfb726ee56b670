//! The disks that a guest of the demo meets: one of a simulated host, or a restored one.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use hyperv_sim::LabHost;
use vhdx::VirtualDisk;

use super::page_cache::Device;
use crate::disk_content::sha256_of_disk;

/// The first disk of a machine of a simulated host, as its running guest has it.
pub struct LabDisk {
    host: Arc<LabHost>,
    vm: String,
    size_bytes: u64,
    /// Open for reading since the last write.
    reader: Option<Box<dyn VirtualDisk>>,
}

impl LabDisk {
    /// The disk of the machine `vm` on the host in `lab`.
    pub fn open(lab: &Path, vm: &str) -> Result<LabDisk> {
        let host = LabHost::open(lab).context("open the simulated host")?;
        let disk = host.open_guest_disk(vm, 0).with_context(|| format!("open the disk of {vm}"))?;
        Ok(LabDisk { host, vm: vm.to_owned(), size_bytes: disk.geometry().size_bytes, reader: Some(Box::new(disk)) })
    }

    /// SHA-256 of all that the guest sees now.
    pub fn sha256(&self) -> Result<String> {
        let disk = self.host.open_guest_disk(&self.vm, 0).with_context(|| format!("open the disk of {}", self.vm))?;
        sha256_of_disk(&disk)
    }

    /// Writes once, past any cache.
    pub fn write_at(&mut self, offset_bytes: u64, data: &[u8]) -> Result<()> {
        self.reader = None;
        let written = self.host.guest_write_at(&self.vm, 0, offset_bytes, data);
        written.with_context(|| format!("write {} bytes at {offset_bytes} of the disk of {}", data.len(), self.vm))
    }
}

impl Device for LabDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&mut self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            none => none.insert(Box::new(self.host.open_guest_disk(&self.vm, 0).map_err(io::Error::other)?)),
        };
        reader.read_exact_at(buf, offset_bytes).map_err(io::Error::other)
    }

    fn write(&mut self, writes: &[(u64, Vec<u8>)]) -> io::Result<()> {
        writes.iter().try_for_each(|(offset_bytes, data)| self.write_at(*offset_bytes, data).map_err(io::Error::other))
    }
}

/// A raw disk file that is only looked into.
pub struct RawFile {
    file: File,
    size_bytes: u64,
}

impl RawFile {
    /// Opens the file for reading.
    pub fn open(path: &Path) -> Result<RawFile> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let size_bytes = file.metadata().with_context(|| format!("look at {}", path.display()))?.len();
        Ok(RawFile { file, size_bytes })
    }
}

impl Device for RawFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&mut self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset_bytes))?;
        self.file.read_exact(buf)
    }

    fn write(&mut self, _: &[(u64, Vec<u8>)]) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a restored disk is only looked into"))
    }
}

#[cfg(test)]
mod tests {
    use hyperv_sim::{DiskSource, VmOptions};
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::demo::guest;

    #[test]
    fn a_guest_of_the_lab_has_the_same_disk_as_one_in_memory() {
        const SIZE_BYTES: u64 = 96 << 20;
        let folder = tempfile::tempdir().unwrap();
        let lab = folder.path().join("lab");
        let host = LabHost::create(&lab).unwrap();
        host.add_vm("vm", &[DiskSource::Empty { size_bytes: SIZE_BYTES }], VmOptions::default()).unwrap();
        drop(host);

        let mut memory = vec![0u8; SIZE_BYTES as usize];
        let mut disk = LabDisk::open(&lab, "vm").unwrap();
        for device in [&mut disk as &mut dyn Device, &mut memory] {
            guest::format_disk(device, "DATA").unwrap();
            guest::install_files(device, 24, 1).unwrap();
            guest::work_for_a_day(device, 1, 8).unwrap();
        }
        assert_eq!(disk.sha256().unwrap(), crate::figures::hex(&Sha256::digest(&memory)));
        let again = guest::list_files(&mut LabDisk::open(&lab, "vm").unwrap()).unwrap();
        assert_eq!(again, guest::list_files(&mut memory).unwrap());
    }
}

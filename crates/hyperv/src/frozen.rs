//! Reading a frozen disk: bytes from the driver, allocation from the files (spec 5).

use std::io;
use std::ops::Range;

use vhdx::{
    DiskGeometry, Extent, ExtentKind, Extents, FileFormat, Layer, OpenError, OpenedDisk, ReadError, VirtualDisk,
};

use crate::broken_chain::open_layer;
use crate::changes::{self, ChangesError};
use crate::names::file_name;
use crate::seam::{FileFacts, TrackingState, VirtDiskError, VirtDiskHandle, VirtDiskInfo};
use crate::{Error, FrozenDisk, Host};

/// An open frozen disk. While it exists, the merge of the disk's chain cannot start: drop it before the checkpoint is
/// converted or destroyed.
///
/// As a [`VirtualDisk`] it takes bytes from `virtdisk.dll` and extents from the files of the chain. Calls may run
/// concurrently. Retries are the caller's.
pub struct FrozenReader {
    path: String,
    handle: Box<dyn VirtDiskHandle>,
    info: VirtDiskInfo,
    chain: Result<OpenedDisk, String>,
}

impl std::fmt::Debug for FrozenReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let allocation = self.chain.as_ref().map_or_else(String::as_str, |_| "known");
        f.debug_struct("FrozenReader")
            .field("path", &self.path)
            .field("info", &self.info)
            .field("allocation", &allocation)
            .finish_non_exhaustive()
    }
}

/// One file of a frozen chain, as the guards of spec 4.9 compare it between runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainMember {
    /// Host path.
    pub path: String,
    /// Its name without directory.
    pub file_name: String,
    /// The file.
    pub facts: FileFacts,
    /// Its `.rct` companion, if it is there.
    pub rct: Option<FileFacts>,
    /// Its `.mrt` companion, if it is there.
    pub mrt: Option<FileFacts>,
}

/// The largest VHDX (MS-VHDX 2.6.2.2).
const MAX_DISK_BYTES: u64 = 64 << 40;

impl Host {
    /// Opens a frozen disk through the driver, and the files of its chain for the allocation map. The latter may fail:
    /// then the whole disk counts as data, and [`FrozenReader::allocation_problem`] says why.
    pub fn open_frozen(&self, disk: &FrozenDisk) -> Result<FrozenReader, Error> {
        let attempt = || format!("open the frozen disk at {}", disk.slot);
        let failed = |source| Error::VirtDisk { attempt: attempt(), source };
        let handle = self.seam.virt_disk.open_read_only(&disk.path).map_err(failed)?;
        let info = handle.info().map_err(failed)?;
        let is_sector = |bytes| matches!(bytes, 512 | 4096);
        if !is_sector(info.logical_sector_bytes) || !is_sector(info.physical_sector_bytes) {
            let problem = format!("{} has sectors of neither 512 nor 4096 bytes: {info:?}", disk.path);
            return Err(Error::Unexpected { attempt: attempt(), problem });
        }
        if info.size_bytes > MAX_DISK_BYTES || !info.size_bytes.is_multiple_of(u64::from(info.logical_sector_bytes)) {
            let problem = format!("{} has an impossible size: {info:?}", disk.path);
            return Err(Error::Unexpected { attempt: attempt(), problem });
        }
        if info.virtual_disk_id != disk.virtual_disk_id {
            let problem = format!(
                "{} is disk {}, but the checkpoint named disk {}",
                disk.path, info.virtual_disk_id, disk.virtual_disk_id
            );
            return Err(Error::Unexpected { attempt: attempt(), problem });
        }
        let chain = self.open_chain(disk, &info);
        Ok(FrozenReader { path: disk.path.clone(), handle, info, chain })
    }

    fn open_chain(&self, disk: &FrozenDisk, info: &VirtDiskInfo) -> Result<OpenedDisk, String> {
        let mut layers = Vec::with_capacity(disk.chain.len());
        for path in &disk.chain {
            let opened = open_layer(&*self.seam.files, path);
            layers.push(Layer { path: path.into(), file: opened.map_err(|error| describe(path, &error))? });
        }
        let chain = OpenedDisk::from_layers(layers).map_err(|error| describe(&disk.path, &error))?;
        let size_bytes = chain.geometry().size_bytes;
        if size_bytes != info.size_bytes {
            return Err(format!("the files say {size_bytes} bytes, the driver {}", info.size_bytes));
        }
        // A VHD has an identity per file, which is not the driver's.
        let leaf = chain.layers().first().map(|leaf| leaf.file.info()).filter(|leaf| leaf.format == FileFormat::Vhdx);
        if let Some(leaf) = leaf
            && leaf.virtual_disk_id != info.virtual_disk_id
        {
            return Err(format!("the files say disk {}, the driver {}", leaf.virtual_disk_id, info.virtual_disk_id));
        }
        Ok(chain)
    }

    /// Facts of every file of a frozen chain, leaf first.
    pub fn chain_facts(&self, disk: &FrozenDisk) -> Result<Vec<ChainMember>, Error> {
        let facts = |path: &str| {
            self.seam.files.facts(path).map_err(|source| Error::File {
                attempt: format!("look at the frozen disk at {}", disk.slot),
                path: path.to_owned(),
                source,
            })
        };
        let companion = |path: String| match facts(&path) {
            Ok(facts) => Ok(Some(facts)),
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        disk.chain
            .iter()
            .map(|path| {
                Ok(ChainMember {
                    path: path.clone(),
                    file_name: file_name(path).to_owned(),
                    facts: facts(path)?,
                    rct: companion(format!("{path}.rct"))?,
                    mrt: companion(format!("{path}.mrt"))?,
                })
            })
            .collect()
    }
}

fn describe(path: &str, error: &OpenError) -> String {
    // Some name the file themselves.
    let mut text = match error {
        OpenError::File { .. } => error.to_string(),
        _ => format!("open {path}: {error}"),
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

impl FrozenReader {
    /// Size and identity, as the driver says.
    pub fn info(&self) -> &VirtDiskInfo {
        &self.info
    }

    /// The chain as read from its files: block sizes and other facts of each; `None` when it could not be opened.
    pub fn chain(&self) -> Option<&OpenedDisk> {
        self.chain.as_ref().ok()
    }

    /// Why the allocation is not known, if it is not: the disk then counts as data throughout.
    pub fn allocation_problem(&self) -> Option<&str> {
        self.chain.as_ref().err().map(String::as_str)
    }

    /// Whether changes are tracked, and the newest id.
    pub fn tracking_state(&self) -> Result<TrackingState, VirtDiskError> {
        self.handle.tracking_state()
    }

    /// The virtual ranges that may have changed since the instant that `since` names: ascending, merged, inside the
    /// disk. Empty is a success: nothing changed. A disk that has grown since is the caller's to notice (spec 4.9).
    pub fn changed_ranges(&self, since: &str) -> Result<Vec<Range<u64>>, ChangesError> {
        let sector_bytes = u64::from(self.info.logical_sector_bytes);
        changes::changed_ranges(&*self.handle, &self.path, since, self.info.size_bytes, sector_bytes)
    }

    fn read_sectors(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), ReadError> {
        self.handle.read(buf, offset_bytes).map_err(|error| ReadError::Io {
            offset_bytes,
            file_offset_bytes: offset_bytes,
            len_bytes: buf.len() as u64,
            source: io::Error::other(error),
        })
    }

    fn check(&self, offset_bytes: u64, len_bytes: u64) -> Result<u64, ReadError> {
        let size_bytes = self.info.size_bytes;
        match offset_bytes.checked_add(len_bytes) {
            Some(end) if end <= size_bytes => Ok(end),
            _ => Err(ReadError::OutOfRange { offset_bytes, len_bytes, size_bytes }),
        }
    }
}

impl VirtualDisk for FrozenReader {
    fn geometry(&self) -> DiskGeometry {
        DiskGeometry {
            size_bytes: self.info.size_bytes,
            logical_sector_bytes: self.info.logical_sector_bytes,
            physical_sector_bytes: self.info.physical_sector_bytes,
        }
    }

    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), ReadError> {
        let end = self.check(offset_bytes, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(());
        }
        let align = u64::from(self.info.logical_sector_bytes.max(self.info.physical_sector_bytes));
        // Whole units go straight into the caller's buffer, the rest of the first and last unit through a copy.
        let body_start = offset_bytes.next_multiple_of(align).min(end);
        let body_end = (end - end % align).max(body_start);
        let (head, rest) = buf.split_at_mut((body_start - offset_bytes) as usize);
        let (body, tail) = rest.split_at_mut((body_end - body_start) as usize);
        if !head.is_empty() {
            self.read_within_unit(head, offset_bytes, align)?;
        }
        if !body.is_empty() {
            self.read_sectors(body, body_start)?;
        }
        if !tail.is_empty() {
            self.read_within_unit(tail, body_end, align)?;
        }
        Ok(())
    }

    fn extents(&self, range: Range<u64>) -> Extents<'_> {
        match &self.chain {
            Ok(chain) => chain.extents(range),
            Err(_) if range.is_empty() => Box::new(std::iter::empty()),
            Err(_) => {
                let whole = self.check(range.start, range.end - range.start);
                Box::new(std::iter::once(whole.map(|_| Extent { range, kind: ExtentKind::Data })))
            }
        }
    }
}

impl FrozenReader {
    /// Bytes that lie inside one unit of alignment.
    fn read_within_unit(&self, buf: &mut [u8], offset_bytes: u64, align: u64) -> Result<(), ReadError> {
        let start = offset_bytes - offset_bytes % align;
        let len = align.min(self.info.size_bytes - start);
        let mut unit = vec![0; len as usize];
        self.read_sectors(&mut unit, start)?;
        let within = (offset_bytes - start) as usize;
        buf.copy_from_slice(&unit[within..within + buf.len()]);
        Ok(())
    }
}

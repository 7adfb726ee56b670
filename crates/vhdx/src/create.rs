//! New files.

use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::bat::{Bat, BlockEntry};
use crate::chain::open_regular;
use crate::error::OpenError;
use crate::format::{
    FULLY_PRESENT, HAS_PARENT, ITEM_LOGICAL_SECTOR_SIZE, ITEM_PHYSICAL_SECTOR_SIZE, ITEM_VIRTUAL_DISK_ID,
    ITEM_VIRTUAL_DISK_SIZE, LEAVE_BLOCK_ALLOCATED, MIB,
};
use crate::image::{BAT_OFFSET, Head};
use crate::layout::{BatShape, GeometryError};
use crate::{DiskGeometry, DiskKind, Guid, ParentLocator, VhdxFile, WriteAt};

/// A new fixed or dynamic disk. The constructors give what Windows would choose.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// `Fixed` or `Dynamic`; for differencing files see [`create_differencing`].
    pub kind: DiskKind,
    /// Virtual size and sector sizes. The size is a multiple of the logical sector size, at most 64 TiB; some
    /// programs want a multiple of 4096.
    pub geometry: DiskGeometry,
    /// Payload block size: a power of two, 1 to 256 MiB.
    pub block_bytes: u32,
    /// The identity the guest sees; random by default.
    pub virtual_disk_id: Guid,
}

impl CreateOptions {
    /// A disk with all blocks allocated: 2 MiB blocks, sectors of 512 (logical) and 4096 (physical) bytes.
    pub fn fixed(size_bytes: u64) -> Self {
        Self::with(DiskKind::Fixed, size_bytes, 2 << 20)
    }

    /// A disk that grows: 32 MiB blocks, sectors of 512 (logical) and 4096 (physical) bytes.
    pub fn dynamic(size_bytes: u64) -> Self {
        Self::with(DiskKind::Dynamic, size_bytes, 32 << 20)
    }

    fn with(kind: DiskKind, size_bytes: u64, block_bytes: u32) -> Self {
        let geometry = DiskGeometry { size_bytes, logical_sector_bytes: 512, physical_sector_bytes: 4096 };
        CreateOptions { kind, geometry, block_bytes, virtual_disk_id: Guid::random() }
    }
}

/// A new child of an existing disk. Sector sizes and the guest's identity are the parent's.
#[derive(Debug, Clone, Default)]
pub struct DifferencingOptions {
    /// Virtual size; the parent's by default.
    pub size_bytes: Option<u64>,
    /// Payload block size; 2 MiB by default, whatever the parent's.
    pub block_bytes: Option<u32>,
}

/// Creates a fixed or dynamic VHDX at `path`, which must not exist. It appears complete and durable, or not at all.
/// A fixed file has its full length; whether the file system reserves space for it is the file system's choice.
pub fn create(path: &Path, options: &CreateOptions) -> Result<(), CreateError> {
    create_complete(path, |file, _| create_in(file, options))
}

/// Creates a differencing VHDX at `path`, which must not exist, as a child of the VHDX at `parent_path`. From then on the
/// parent must not be written. It must have been closed: a dirty log would have to be replayed first.
pub fn create_differencing(path: &Path, parent_path: &Path, options: &DifferencingOptions) -> Result<(), CreateError> {
    let in_parent = |source| CreateError::Parent { path: parent_path.to_owned(), source };
    let file = open_regular(parent_path, File::options().read(true)).map_err(in_parent)?;
    let parent = VhdxFile::open(Arc::new(file)).map_err(in_parent)?;
    let paths = ParentPaths::between(path, parent_path)?;
    create_complete(path, |file, _| create_differencing_in(file, &parent, &paths, options))
}

/// As [`create`], in an open, empty file. Not complete before it returns.
pub fn create_in(file: &dyn WriteAt, options: &CreateOptions) -> Result<(), CreateError> {
    let flags = match options.kind {
        DiskKind::Fixed => LEAVE_BLOCK_ALLOCATED,
        DiskKind::Dynamic => 0,
        DiskKind::Differencing => return Err(CreateError::NoParent),
    };
    let new = NewFile {
        geometry: options.geometry,
        block_bytes: options.block_bytes,
        virtual_disk_id: options.virtual_disk_id,
        flags,
        locator: None,
        more_items: Vec::new(),
    };
    new.write(file)
}

/// As [`create_differencing`], in an open, empty file.
pub fn create_differencing_in(
    file: &dyn WriteAt,
    parent: &VhdxFile,
    paths: &ParentPaths,
    options: &DifferencingOptions,
) -> Result<(), CreateError> {
    let tables = parent.tables();
    if parent.replayed().is_dirty() {
        return Err(CreateError::ParentDirty);
    }
    let locator = ParentLocator {
        parent_linkage: tables.current.header.data_write_guid,
        parent_linkage2: Guid::ZERO,
        relative_path: paths.relative_path.clone(),
        volume_path: None,
        absolute_win32_path: paths.absolute_win32_path.clone(),
    };
    // Items of the disk that are written for every file anyway.
    let own = [ITEM_VIRTUAL_DISK_SIZE, ITEM_LOGICAL_SECTOR_SIZE, ITEM_PHYSICAL_SECTOR_SIZE, ITEM_VIRTUAL_DISK_ID];
    let mut more_items = Vec::new();
    for entry in tables.metadata.virtual_disk_items().filter(|entry| !own.contains(&entry.item_id)) {
        let bytes = tables.metadata.read_item(parent.replayed(), entry).map_err(CreateError::ParentMetadata)?;
        more_items.push((entry.item_id, entry.flags, bytes));
    }
    let size_bytes = options.size_bytes.unwrap_or(tables.disk.geometry.size_bytes);
    let new = NewFile {
        geometry: DiskGeometry { size_bytes, ..tables.disk.geometry },
        block_bytes: options.block_bytes.unwrap_or(2 << 20),
        virtual_disk_id: tables.disk.virtual_disk_id,
        flags: HAS_PARENT,
        locator: Some(locator.encode().ok_or(CreateError::ParentPath { path: PathBuf::new() })?),
        more_items,
    };
    new.write(file)
}

/// Where a child shall say that its parent is.
#[derive(Debug, Clone, Default)]
pub struct ParentPaths {
    /// Relative to the child's folder, as `.\parent.vhdx`.
    pub relative_path: Option<String>,
    /// `C:\disks\parent.vhdx`.
    pub absolute_win32_path: Option<String>,
}

impl ParentPaths {
    /// From where two files are. The child need not exist yet, but its folder must.
    pub fn between(child: &Path, parent: &Path) -> Result<Self, CreateError> {
        let folder = match child.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let real = |path: &Path| {
            path.canonicalize().map_err(|source| CreateError::File { action: "find", path: path.to_owned(), source })
        };
        let (folder, parent) = (real(folder)?, real(parent)?);
        let text = parent.to_str().ok_or_else(|| CreateError::ParentPath { path: parent.clone() })?;
        // Windows' canonical paths carry a prefix that Windows does not record.
        let absolute = text.strip_prefix(r"\\?\").unwrap_or(text).replace('/', "\\");
        let paths = ParentPaths { relative_path: relative(&folder, &parent), absolute_win32_path: Some(absolute) };
        if paths.relative_path.is_none() && cfg!(unix) {
            return Err(CreateError::ParentPath { path: parent });
        }
        Ok(paths)
    }
}

/// `None` when the two have nothing in common, or a name is not Unicode or could not be followed back.
fn relative(folder: &Path, file: &Path) -> Option<String> {
    let (from, to): (Vec<_>, Vec<_>) = (folder.components().collect(), file.components().collect());
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    if common == 0 {
        return None;
    }
    let mut path = String::from(if common == from.len() { "." } else { ".." });
    for _ in common + 1..from.len() {
        path.push_str(r"\..");
    }
    for component in &to[common..] {
        let Component::Normal(name) = component else { return None };
        let name = name.to_str().filter(|name| !name.contains('\\'))?;
        path.push('\\');
        path.push_str(name);
    }
    Some(path)
}

struct NewFile {
    geometry: DiskGeometry,
    block_bytes: u32,
    virtual_disk_id: Guid,
    flags: u32,
    locator: Option<Vec<u8>>,
    more_items: Vec<(Guid, u32, Vec<u8>)>,
}

impl NewFile {
    /// The file identifier is written last: until then the file is not taken for a VHDX.
    fn write(self, file: &dyn WriteAt) -> Result<(), CreateError> {
        let DiskGeometry { size_bytes, logical_sector_bytes, physical_sector_bytes } = self.geometry;
        let shape = BatShape::new(size_bytes, logical_sector_bytes, physical_sector_bytes, self.block_bytes)?;
        let bat_len = shape.region_len();
        let head = Head {
            creator: "vhdx (Rust)",
            file_write_guid: Guid::random(),
            data_write_guid: Guid::random(),
            virtual_disk_id: self.virtual_disk_id,
            geometry: self.geometry,
            block_bytes: self.block_bytes,
            flags: self.flags,
            bat_len,
            locator: self.locator.as_deref(),
            more_items: &self.more_items,
        };
        let pieces = head.pieces().map_err(|_| CreateError::MetadataTooLarge)?;
        let write = |action| move |source| CreateError::Write { action, source };

        let fixed = self.flags & LEAVE_BLOCK_ALLOCATED != 0;
        let payload = if fixed { u64::from(shape.blocks) * u64::from(self.block_bytes) } else { 0 };
        let payload_at = BAT_OFFSET + bat_len;
        file.set_len(payload_at + payload).map_err(write("extend"))?;
        if fixed {
            self.write_full_bat(file, &shape, payload_at).map_err(write("write the BAT of"))?;
        }
        for (at, bytes) in pieces.iter().skip(1) {
            file.write_all_at(bytes, *at).map_err(write("write the head of"))?;
        }
        file.flush().map_err(write("flush"))?;
        for (at, bytes) in pieces.iter().take(1) {
            file.write_all_at(bytes, *at).map_err(write("write the head of"))?;
        }
        file.flush().map_err(write("flush"))
    }

    fn write_full_bat(&self, file: &dyn WriteAt, shape: &BatShape, payload_at: u64) -> io::Result<()> {
        let mut bat = Bat::empty(shape);
        for block in 0..shape.blocks {
            let offset = payload_at + u64::from(block) * u64::from(self.block_bytes);
            bat.set_block(block, BlockEntry { state: FULLY_PRESENT, offset_mib: (offset / MIB) as u32 });
        }
        let per_piece = (MIB / 8) as u32;
        let entries = shape.entries_without_bitmaps();
        for first in (0..entries).step_by(per_piece as usize) {
            let piece = first..entries.min(first + per_piece);
            let bytes: Vec<u8> = piece.flat_map(|entry| bat.stored_entry(shape, entry).to_le_bytes()).collect();
            file.write_all_at(&bytes, BAT_OFFSET + 8 * u64::from(first))?;
        }
        Ok(())
    }
}

/// Runs `fill` on a file of another name beside `path`, and renames it when that is done.
pub(crate) fn create_complete<T, E: From<CreateError>>(
    path: &Path,
    fill: impl FnOnce(&File, &Path) -> Result<T, E>,
) -> Result<T, E> {
    let failed = |action| move |source| CreateError::File { action, path: path.to_owned(), source };
    let name = path.file_name().ok_or_else(|| failed("create")(io::ErrorKind::InvalidInput.into()))?;
    let mut temporary_name = name.to_owned();
    temporary_name.push(format!(".{}.tmp", Guid::random()));
    let temporary = path.with_file_name(temporary_name);
    let open = || File::options().read(true).write(true).create_new(true).open(&temporary).map_err(failed("create"));
    let publish = || {
        // Without replacing what another program may have put there meanwhile.
        match std::fs::hard_link(&temporary, path) {
            // Some file systems have no links.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists && !path.exists() => {
                std::fs::rename(&temporary, path).map_err(failed("create"))?;
            }
            linked => linked.map_err(failed("create"))?,
        }
        sync_folder(path).map_err(failed("make durable"))
    };
    let result = open().map_err(E::from).and_then(|file| fill(&file, &temporary));
    let result = result.and_then(|value| publish().map(|()| value).map_err(E::from));
    let _ = std::fs::remove_file(&temporary);
    result
}

#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// NTFS journals names; there is nothing to call.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Why a disk could not be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The options describe an impossible disk.
    #[error("describe the new disk")]
    Geometry(#[from] GeometryError),
    /// A differencing file was asked for without saying of what.
    #[error("a differencing file needs a parent")]
    NoParent,
    /// A system call failed.
    #[error("{action} {}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Writing the new file failed.
    #[error("{action} the new file")]
    Write {
        /// What was attempted.
        action: &'static str,
        /// What the file said.
        #[source]
        source: io::Error,
    },
    /// The parent could not be opened.
    #[error("open parent {}", path.display())]
    Parent {
        /// The parent.
        path: PathBuf,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// The parent's metadata could not be read.
    #[error("copy the parent's metadata")]
    ParentMetadata(#[source] OpenError),
    /// The parent's log is dirty; open and close it for writing first.
    #[error("the parent was not closed cleanly")]
    ParentDirty,
    /// There is no way to write down where the parent is.
    #[error("the path of the parent {} cannot be recorded", path.display())]
    ParentPath {
        /// The parent.
        path: PathBuf,
    },
    /// The parent has more metadata of its disk than fits.
    #[error("the parent's metadata does not fit the new file")]
    MetadataTooLarge,
}

//! Virtual disk files: everything the host asks of the `vhdx` crate.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use vhdx::{
    CreateOptions, DifferencingOptions, DiskGeometry, ExtentKind, FileInfo, OpenError, OpenOptions, OpenedDisk,
    ParentSearch, VirtualDisk, WritableVhdx,
};

use crate::error::LabError;
use crate::paths::{WinPath, from_sandbox};
use crate::store::Store;
use crate::vhd::{self, VhdWriter};

const COPY_PIECE_BYTES: u64 = 1 << 20;

/// A disk with its parents, as it stands in the files.
pub(crate) fn open_chain(store: &Store, path: &WinPath) -> Result<Result<OpenedDisk, OpenError>, LabError> {
    Ok(vhdx::open_disk(&store.file(path)?, &options(store)))
}

fn options(store: &Store) -> OpenOptions {
    OpenOptions { allow_raw: false, parents: ParentSearch::Roots(vec![store.root().to_owned()]) }
}

/// As [`open_chain`], for the lab's own purposes.
pub(crate) fn open(store: &Store, path: &WinPath) -> Result<OpenedDisk, LabError> {
    open_chain(store, path)?.map_err(LabError::disk("open", path.as_str()))
}

/// The files of a chain in the host's form, leaf first.
pub(crate) fn chain_paths(store: &Store, disk: &OpenedDisk) -> Vec<WinPath> {
    let in_host = |path: &Path| {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        from_sandbox(store.root(), &real).unwrap_or_else(|| WinPath::new(path.to_string_lossy()))
    };
    disk.layers().iter().map(|layer| in_host(&layer.path)).collect()
}

/// What the first file of a chain says of itself.
pub(crate) fn leaf_info(disk: &OpenedDisk) -> FileInfo {
    disk.layers().first().expect("an opened disk has at least one file").file.info()
}

/// A disk open for the guest's writes.
pub(crate) struct GuestDisk {
    file: GuestFile,
    path: WinPath,
}

enum GuestFile {
    Vhdx(Box<WritableVhdx>),
    Vhd(VhdWriter),
}

impl GuestDisk {
    pub(crate) fn open(store: &Store, path: &WinPath) -> Result<Self, LabError> {
        let file = store.file(path)?;
        let file = match is_vhd(path) {
            true => GuestFile::Vhd(VhdWriter::open(&file, &options(store))?),
            false => {
                let file = WritableVhdx::open(&file, &options(store));
                GuestFile::Vhdx(Box::new(file.map_err(LabError::disk("open for writing", path.as_str()))?))
            }
        };
        Ok(Self { file, path: path.clone() })
    }

    /// The VHDX, for what only such a file can do.
    pub(crate) fn vhdx(&mut self) -> Result<&mut WritableVhdx, LabError> {
        match &mut self.file {
            GuestFile::Vhdx(file) => Ok(file),
            GuestFile::Vhd(_) => Err(LabError::refused("use a disk", format!("{} is a VHD", self.path.as_str()))),
        }
    }

    pub(crate) fn geometry(&self) -> DiskGeometry {
        match &self.file {
            GuestFile::Vhdx(file) => file.geometry(),
            GuestFile::Vhd(file) => file.geometry(),
        }
    }

    pub(crate) fn write(&mut self, data: &[u8], offset_bytes: u64) -> Result<(), LabError> {
        match &mut self.file {
            GuestFile::Vhdx(file) => {
                file.write_all_at(data, offset_bytes).map_err(LabError::disk("write", self.path.as_str()))
            }
            GuestFile::Vhd(file) => file.write(data, offset_bytes),
        }
    }

    pub(crate) fn zero(&mut self, range: Range<u64>) -> Result<(), LabError> {
        match &mut self.file {
            GuestFile::Vhdx(file) => {
                file.zero_range(range).map_err(LabError::disk("zero a range of", self.path.as_str()))
            }
            // The format knows no zeroes of its own.
            GuestFile::Vhd(file) => pieces(range).try_for_each(|piece| {
                let zeroes = vec![0; (piece.end - piece.start) as usize];
                file.write(&zeroes, piece.start)
            }),
        }
    }

    fn resize(&mut self, size_bytes: u64) -> Result<(), LabError> {
        match &mut self.file {
            GuestFile::Vhdx(file) => file.resize(size_bytes).map_err(LabError::disk("resize", self.path.as_str())),
            GuestFile::Vhd(_) => Err(LabError::refused("resize a disk", "VHD files keep their size here")),
        }
    }

    pub(crate) fn close(self) -> Result<(), LabError> {
        match self.file {
            GuestFile::Vhdx(file) => file.close().map_err(LabError::disk("close", self.path.as_str())),
            GuestFile::Vhd(_) => Ok(()),
        }
    }
}

/// VHD files are known by their names, as Hyper-V knows them.
pub(crate) fn is_vhd(path: &WinPath) -> bool {
    let name = path.file_name().to_lowercase();
    name.ends_with(".vhd") || name.ends_with(".avhd")
}

/// Makes an empty fixed VHD.
pub(crate) fn create_vhd(store: &Store, path: &WinPath, size_bytes: u64) -> Result<(), LabError> {
    let size_bytes = size_bytes.max(512).checked_next_multiple_of(512).unwrap_or(u64::MAX);
    vhd::create_fixed(&store.file(path)?, size_bytes)
}

/// Makes an empty disk.
pub(crate) fn create_empty(store: &Store, path: &WinPath, size_bytes: u64) -> Result<(), LabError> {
    let size_bytes = size_bytes.max(512).checked_next_multiple_of(512).unwrap_or(u64::MAX);
    let options = CreateOptions::dynamic(size_bytes);
    vhdx::create(&store.file(path)?, &options).map_err(LabError::disk("create", path.as_str()))
}

/// Puts the content of a disk file from outside into a new VHDX: a VHDX without a parent is copied as it is, anything
/// else is converted.
pub(crate) fn import(store: &Store, path: &WinPath, source: &Path) -> Result<(), LabError> {
    let shown = source.display().to_string();
    let options = OpenOptions { allow_raw: true, parents: ParentSearch::SameFolder };
    let disk = vhdx::open_disk(source, &options).map_err(LabError::disk("open", &shown))?;
    let target = store.file(path)?;
    if let [layer] = disk.layers()
        && layer.file.info().format == vhdx::FileFormat::Vhdx
    {
        return copy_sparse(source, &target);
    }
    copy_content(store, &disk, path)
}

/// Copies what a disk reads as, parents and all, into a new file.
pub(crate) fn flatten(store: &Store, path: &WinPath, target: &WinPath) -> Result<(), LabError> {
    copy_content(store, &open(store, path)?, target)
}

fn copy_content(store: &Store, disk: &OpenedDisk, path: &WinPath) -> Result<(), LabError> {
    create_empty(store, path, disk.geometry().size_bytes)?;
    let mut copy = GuestDisk::open(store, path)?;
    for piece in data_pieces(disk) {
        let range = piece?;
        let mut data = vec![0; (range.end - range.start) as usize];
        disk.read_exact_at(&mut data, range.start)?;
        if data.iter().any(|&byte| byte != 0) {
            copy.write(&data, range.start)?;
        }
    }
    copy.close()
}

/// Copies a file, leaving out what the file system knows to be holes.
fn copy_sparse(source: &Path, target: &Path) -> Result<(), LabError> {
    use vhdx::{ReadAt, WriteAt};
    let from = File::open(source).map_err(LabError::io("open", source))?;
    let to = File::create_new(target).map_err(LabError::io("create", target))?;
    let len = from.len_bytes().map_err(LabError::io("look at", source))?;
    WriteAt::set_len(&to, len).map_err(LabError::io("extend", target))?;
    let mut buf = vec![0; COPY_PIECE_BYTES as usize];
    let mut at = 0;
    while let Some(data) = from.next_data(at..len).map_err(LabError::io("read", source))? {
        let piece = &mut buf[..(data.end - data.start).min(COPY_PIECE_BYTES) as usize];
        from.read_exact_at(piece, data.start).map_err(LabError::io("read", source))?;
        to.write_all_at(piece, data.start).map_err(LabError::io("write", target))?;
        at = data.start + piece.len() as u64;
    }
    Ok(())
}

/// Makes the child that a running VM goes on in.
pub(crate) fn create_child(store: &Store, child: &WinPath, parent: &WinPath) -> Result<(), LabError> {
    if is_vhd(parent) {
        return vhd::create_child(&store.file(child)?, &store.file(parent)?, &options(store));
    }
    settle(store, parent)?;
    let (child_file, parent_file) = (store.file(child)?, store.file(parent)?);
    vhdx::create_differencing(&child_file, &parent_file, &DifferencingOptions::default())
        .map_err(LabError::disk("create a child of", parent.as_str()))
}

/// Replays the log of a file whose writer was killed: a parent must be clean.
fn settle(store: &Store, path: &WinPath) -> Result<(), LabError> {
    if leaf_info(&open(store, path)?).log_dirty { GuestDisk::open(store, path)?.close() } else { Ok(()) }
}

/// Changes the size of a disk file, and of nothing below it.
pub(crate) fn resize(store: &Store, path: &WinPath, size_bytes: u64) -> Result<(), LabError> {
    let mut disk = GuestDisk::open(store, path)?;
    disk.resize(size_bytes)?;
    disk.close()
}

/// Folds a child into its parent. Cut off anywhere, it is made again from the beginning.
pub(crate) fn merge(store: &Store, child: &WinPath, parent: &WinPath) -> Result<(), LabError> {
    const STEP_BYTES: u64 = 4 << 20;
    let (child_file, parent_file): (PathBuf, PathBuf) = (store.file(child)?, store.file(parent)?);
    let failed = || LabError::disk("merge into its parent", child.as_str());
    store.before_write()?;
    if is_vhd(child) {
        return vhd::merge(&child_file, &parent_file, &options(store));
    }
    let mut merge = vhdx::Merge::open(&child_file, &parent_file).map_err(failed())?;
    loop {
        store.before_write()?;
        if merge.step(STEP_BYTES).map_err(failed())?.finished {
            return Ok(());
        }
    }
}

/// SHA-256 of everything the guest sees, first byte to last. Zeroes that the format knows of are not read; hashing them
/// still takes its time, about a second per gibibyte.
pub fn disk_sha256(disk: &dyn VirtualDisk) -> Result<[u8; 32], LabError> {
    let zeroes = vec![0; COPY_PIECE_BYTES as usize];
    let mut buf = zeroes.clone();
    let mut digest = Sha256::new();
    for extent in disk.extents(0..disk.geometry().size_bytes) {
        let extent = extent?;
        for piece in pieces(extent.range) {
            let len = (piece.end - piece.start) as usize;
            match extent.kind {
                ExtentKind::Zero => digest.update(&zeroes[..len]),
                ExtentKind::Data => {
                    disk.read_exact_at(&mut buf[..len], piece.start)?;
                    digest.update(&buf[..len]);
                }
            }
        }
    }
    Ok(digest.finalize().into())
}

/// A digest of size and content whose cost follows the data, not the size: of each aligned MiB that is not all zero, its
/// position and bytes. Equal content has an equal fingerprint, however it is stored.
pub fn fingerprint(disk: &dyn VirtualDisk) -> Result<[u8; 32], LabError> {
    let size = disk.geometry().size_bytes;
    let mut digest = Sha256::new();
    digest.update(size.to_le_bytes());
    let mut buf = vec![0; COPY_PIECE_BYTES as usize];
    let mut next = 0;
    for piece in data_pieces(disk) {
        let start = piece?.start / COPY_PIECE_BYTES * COPY_PIECE_BYTES;
        if start < next {
            continue;
        }
        next = start + COPY_PIECE_BYTES;
        let buf = &mut buf[..(size - start).min(COPY_PIECE_BYTES) as usize];
        disk.read_exact_at(buf, start)?;
        if buf.iter().any(|&byte| byte != 0) {
            digest.update(start.to_le_bytes());
            digest.update(&buf);
        }
    }
    Ok(digest.finalize().into())
}

/// What may be nonzero, cut at multiples of [`COPY_PIECE_BYTES`], in order.
fn data_pieces(disk: &dyn VirtualDisk) -> impl Iterator<Item = Result<Range<u64>, LabError>> + '_ {
    disk.extents(0..disk.geometry().size_bytes).flat_map(|extent| {
        let (error, range) = match extent {
            Ok(extent) if extent.kind == ExtentKind::Data => (None, extent.range),
            Ok(_) => (None, 0..0),
            Err(e) => (Some(Err(e.into())), 0..0),
        };
        error.into_iter().chain(pieces(range).map(Ok))
    })
}

fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = ((start / COPY_PIECE_BYTES + 1) * COPY_PIECE_BYTES).min(range.end);
        (start < range.end).then_some(start..at)
    })
}

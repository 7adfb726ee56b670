//! Virtual disk files: everything the host asks of the `vhdx` crate.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use vhdx::{
    CreateOptions, DifferencingOptions, DiskGeometry, ExtentKind, FileInfo, Layer, LayerFile, OpenError, OpenOptions,
    OpenedDisk, ParentPaths, ParentSearch, VhdxFile, VirtualDisk, WritableVhdx,
};

use crate::error::LabError;
use crate::paths::{WinPath, from_sandbox};
use crate::storage::RemoteFile;
use crate::store::Store;
use crate::vhd::{self, VhdWriter};

const COPY_PIECE_BYTES: u64 = 1 << 20;
/// More files than this is damage, not a chain.
const MOST_LAYERS: usize = 64;

/// A disk with its parents, as it stands in the files.
pub(crate) fn open_chain(store: &Store, path: &WinPath) -> Result<Result<OpenedDisk, OpenError>, LabError> {
    // Volumes first: a file of the host that looks like the parent is not taken for it.
    if store.volumes.are_shown()
        && !is_vhd(path)
        && let Some(opened) = across_volumes(store, path)?
    {
        return Ok(opened);
    }
    Ok(vhdx::open_disk(&store.file(path)?, &options(store)))
}

/// A chain of VHDX files that ends on a volume; `None` when it does not.
fn across_volumes(store: &Store, path: &WinPath) -> Result<Option<Result<OpenedDisk, OpenError>>, LabError> {
    let mut layers: Vec<Layer> = Vec::new();
    let mut next = Some(path.clone());
    let mut is_on_volume = false;
    while let Some(at) = next.take().filter(|_| layers.len() < MOST_LAYERS) {
        let file = match store.volumes.open(&at) {
            Some(Ok(file)) => {
                is_on_volume = true;
                VhdxFile::open(Arc::new(file))
            }
            Some(Err(error)) => {
                return Ok(Some(Err(OpenError::File { action: "read", path: store.file(&at)?, source: error })));
            }
            None => match File::open(store.file(&at)?) {
                Ok(file) => VhdxFile::open(Arc::new(file)),
                Err(_) => return Ok(None),
            },
        };
        let file = match file {
            Ok(file) => file,
            Err(error) => return Ok(is_on_volume.then_some(Err(error))),
        };
        next = file.parent_locator().and_then(|locator| parent_named(store, &at, locator));
        layers.push(Layer { path: store.file(&at)?, file: LayerFile::Vhdx(Box::new(file)) });
    }
    Ok(is_on_volume.then(|| OpenedDisk::from_layers(layers)))
}

/// The file that a locator names, by the paths that Windows follows: first the one that begins at the child (spec vhdx 18.3).
fn parent_named(store: &Store, child: &WinPath, locator: &vhdx::ParentLocator) -> Option<WinPath> {
    let absolute = locator.absolute_win32_path.as_deref().map(WinPath::new);
    let relative = locator.relative_path.as_deref().map(|path| {
        let mut at = child.folder();
        for name in path.split('\\') {
            match name {
                "." => {}
                ".." => at = at.folder(),
                name => at = at.join(name),
            }
        }
        at
    });
    relative.into_iter().chain(absolute).find(|path| store.volumes.open(path).is_some() || store.has_file(path))
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
                let file = match parent_on_volume(store, path)? {
                    Some(parent) => {
                        let opened = File::options().read(true).write(true).open(&file);
                        let opened = opened.map_err(LabError::io("open for writing", &file))?;
                        WritableVhdx::from_file(Arc::new(opened), Some(parent))
                    }
                    None => WritableVhdx::open(&file, &options(store)),
                };
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

/// What answers for a child whose parent lies on a volume.
fn parent_on_volume(store: &Store, path: &WinPath) -> Result<Option<Arc<dyn VirtualDisk>>, LabError> {
    if !store.volumes.are_shown() {
        return Ok(None);
    }
    let Some(chain) = across_volumes(store, path)? else { return Ok(None) };
    // Opened as a whole first, which checks that it is the parent.
    let chain = chain.map_err(LabError::disk("open the parents of", path.as_str()))?;
    let paths = chain_paths(store, &chain);
    drop(chain);
    let Some(parent) = paths.get(1) else { return Ok(None) };
    Ok(Some(Arc::new(open(store, parent)?)))
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
    if let Some(file) = store.volumes.open(parent) {
        return create_child_of_volume(store, child, parent, file.map_err(LabError::disk("open", parent.as_str()))?);
    }
    settle(store, parent)?;
    let (child_file, parent_file) = (store.file(child)?, store.file(parent)?);
    vhdx::create_differencing(&child_file, &parent_file, &DifferencingOptions::default())
        .map_err(LabError::disk("create a child of", parent.as_str()))
}

fn create_child_of_volume(store: &Store, child: &WinPath, parent: &WinPath, file: RemoteFile) -> Result<(), LabError> {
    let failed = || LabError::disk("create a child of", parent.as_str());
    let opened = VhdxFile::open(Arc::new(file)).map_err(LabError::disk("open", parent.as_str()))?;
    let path = store.file(child)?;
    let paths = ParentPaths { relative_path: None, absolute_win32_path: Some(parent.as_str().to_owned()) };
    let target = File::options().read(true).write(true).create_new(true).open(&path);
    let target = target.map_err(LabError::io("create", &path))?;
    let made = vhdx::create_differencing_in(&target, &opened, &paths, &DifferencingOptions::default());
    made.map_err(failed()).inspect_err(|_| {
        // A half-made file is worse than none; the error is reported.
        let _ = std::fs::remove_file(&path);
    })
}

/// Gives a child another parent of the same identity; the text says why not, with the host's code.
pub(crate) fn set_parent(store: &Store, child: &WinPath, parent: &WinPath) -> Result<Result<(), String>, LabError> {
    let info = leaf_info(&open(store, parent)?);
    let (child_file, parent_file) = (store.file(child)?, store.file(parent)?);
    let mut file =
        WritableVhdx::open_without_parent(&child_file).map_err(LabError::disk("open for writing", child.as_str()))?;
    let Some(known) = file.info().parent else { return Ok(Err("it has no parent. (0xC03A0007)".into())) };
    if !known.matches(info.data_write_guid) || file.info().virtual_disk_id != info.virtual_disk_id {
        return Ok(Err(format!("{} is not the parent that it was made for. (0xC03A000E)", parent.as_str())));
    }
    let paths =
        ParentPaths::between(&child_file, &parent_file).map_err(LabError::disk("set the parent of", child.as_str()))?;
    let locator = vhdx::ParentLocator {
        parent_linkage: info.data_write_guid,
        parent_linkage2: vhdx::Guid::ZERO,
        relative_path: paths.relative_path,
        volume_path: None,
        absolute_win32_path: Some(parent.as_str().to_owned()),
    };
    file.set_parent_locator(&locator)
        .and_then(|()| file.close())
        .map_err(LabError::disk("set the parent of", child.as_str()))?;
    Ok(Ok(()))
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

//! A disk and its parents.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::ParentAttempt;
use crate::extent::{Chain, DiskLayer, check_range, walk};
use crate::file::CurrentHeader;
use crate::format::FILE_SIGNATURE;
use crate::raw::RawFile;
use crate::search::candidates;
use crate::vhd::VhdFile;
use crate::{
    DiskGeometry, Extents, FileExtent, FileFormat, FileInfo, Guid, OpenError, OpenErrorKind, ParentLocator,
    ParentSearch, ReadAt, ReadError, VhdxFile, VirtualDisk,
};

/// Files in a chain at most.
pub(crate) const MAX_CHAIN: usize = 256;

/// How [`open_disk`] opens a file and looks for its parents.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Whether a file that is neither VHDX nor VHD is taken as a raw disk.
    pub allow_raw: bool,
    /// Which files may be opened as parents.
    pub parents: ParentSearch,
}

/// Opens a disk file of any kind for reading, with its parents. Nothing is written and nothing is locked: the
/// files must not change while they are open.
pub fn open_disk(path: &Path, options: &OpenOptions) -> Result<OpenedDisk, OpenError> {
    let leaf = Layer { path: path.to_owned(), file: open_file(path, options.allow_raw)? };
    complete(vec![leaf], options)
}

/// Opens the parents of a file whose locator is known already.
pub(crate) fn open_parents(
    child: &Path,
    locator: &ParentLocator,
    options: &OpenOptions,
) -> Result<OpenedDisk, OpenError> {
    let seen = Seen { paths: vec![canonical(child)], identities: Vec::new() };
    let parent = open_parent(child, locator, FileFormat::Vhdx, options, &seen)?;
    complete(vec![parent], options)
}

/// A disk file with its parents, leaf first.
pub struct OpenedDisk {
    layers: Vec<Layer>,
}

/// One file of a chain.
pub struct Layer {
    /// Where it was found; as given by the caller for the leaf.
    pub path: PathBuf,
    /// The open file.
    pub file: LayerFile,
}

/// An open file of any format.
pub enum LayerFile {
    /// VHDX.
    Vhdx(Box<VhdxFile>),
    /// VHD.
    Vhd(Box<VhdFile>),
    /// No container.
    Raw(RawFile),
}

impl OpenedDisk {
    /// From files that are open already, leaf first. Each must be the parent of the one before, and the last must
    /// have none.
    pub fn from_layers(layers: Vec<Layer>) -> Result<Self, OpenError> {
        if layers.len() > MAX_CHAIN {
            return Err(OpenError::ChainTooDeep);
        }
        let (Some(last), true) = (layers.last(), layers.len() <= MAX_CHAIN) else { return Err(OpenError::NotADisk) };
        for pair in layers.windows(2) {
            let (child, parent) = (&pair[0], &pair[1]);
            let locator = child.file.parent_locator().ok_or_else(|| OpenError::ParentUnfit {
                child: child.path.clone(),
                parent: parent.path.clone(),
                problem: "the child is not a differencing file".into(),
            })?;
            let found = parent.file.identity();
            if !locator.matches(found) {
                return Err(OpenError::ParentMismatch {
                    child: child.path.clone(),
                    expected: locator.parent_linkage,
                    tried: vec![ParentAttempt { path: parent.path.clone(), found: Some(found) }],
                });
            }
            check_fit(child, parent)?;
        }
        if last.file.parent_locator().is_some() {
            return Err(OpenError::ParentNotFound { child: last.path.clone(), tried: Vec::new() });
        }
        Ok(OpenedDisk { layers })
    }

    /// The files, leaf first; at least one.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// What each file says of itself, leaf first.
    pub fn info(&self) -> Vec<(PathBuf, FileInfo)> {
        self.layers.iter().map(|layer| (layer.path.clone(), layer.file.info())).collect()
    }

    fn with_chain<T>(&self, act: impl FnOnce(Chain<'_>) -> T) -> T {
        let layers: Vec<&dyn DiskLayer> = self.layers.iter().map(|layer| layer.file.as_layer()).collect();
        act(Chain { layers: &layers, below: None })
    }
}

impl VirtualDisk for OpenedDisk {
    fn geometry(&self) -> DiskGeometry {
        self.layers[0].file.geometry()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), ReadError> {
        check_range(self.geometry().size_bytes, offset_bytes, buf.len() as u64)?;
        self.with_chain(|chain| chain.read(buf, offset_bytes))
    }

    fn extents(&self, range: Range<u64>) -> Extents<'_> {
        walk(self.geometry().size_bytes, range, |act| self.with_chain(act))
    }
}

impl LayerFile {
    /// What the file says of itself.
    pub fn info(&self) -> FileInfo {
        match self {
            LayerFile::Vhdx(file) => file.info(),
            LayerFile::Vhd(file) => file.info(),
            LayerFile::Raw(file) => file.info(),
        }
    }

    /// Virtual size and sector sizes.
    pub fn geometry(&self) -> DiskGeometry {
        match self {
            LayerFile::Vhdx(file) => file.geometry(),
            LayerFile::Vhd(file) => file.geometry(),
            LayerFile::Raw(file) => file.geometry(),
        }
    }

    /// Where the parent is, of a differencing file.
    pub fn parent_locator(&self) -> Option<&ParentLocator> {
        match self {
            LayerFile::Vhdx(file) => file.parent_locator(),
            LayerFile::Vhd(file) => file.parent_locator(),
            LayerFile::Raw(_) => None,
        }
    }

    /// Where the bytes of `range` are, as far as this file knows, in order; neighbours of one kind joined.
    pub fn file_extents(&self, range: Range<u64>) -> Result<Vec<FileExtent>, ReadError> {
        crate::extent::ExtentList::of_layer(self.as_layer(), range)
    }

    /// What a child's locator names.
    fn identity(&self) -> Guid {
        match self {
            LayerFile::Vhdx(file) => file.tables().current.header.data_write_guid,
            LayerFile::Vhd(file) => file.unique_id(),
            LayerFile::Raw(_) => Guid::ZERO,
        }
    }

    fn write_guids(&self) -> Option<(Guid, Guid)> {
        match self {
            LayerFile::Vhdx(file) => {
                let header = &file.tables().current.header;
                Some((header.file_write_guid, header.data_write_guid))
            }
            LayerFile::Vhd(_) | LayerFile::Raw(_) => None,
        }
    }

    fn format(&self) -> FileFormat {
        match self {
            LayerFile::Vhdx(_) => FileFormat::Vhdx,
            LayerFile::Vhd(_) => FileFormat::Vhd,
            LayerFile::Raw(_) => FileFormat::Raw,
        }
    }

    fn as_layer(&self) -> &dyn DiskLayer {
        match self {
            LayerFile::Vhdx(file) => &**file,
            LayerFile::Vhd(file) => &**file,
            LayerFile::Raw(file) => file,
        }
    }
}

/// What is part of a chain already, to find cycles by.
#[derive(Default)]
struct Seen {
    paths: Vec<PathBuf>,
    /// FileWriteGuid and DataWriteGuid: a copy of a file under another name is a cycle too.
    identities: Vec<(Guid, Guid)>,
}

impl Seen {
    fn add(&mut self, layer: &Layer) {
        self.paths.push(canonical(&layer.path));
        self.identities.extend(layer.file.write_guids());
    }
}

/// Adds parents until there is a file without one.
fn complete(mut layers: Vec<Layer>, options: &OpenOptions) -> Result<OpenedDisk, OpenError> {
    let mut seen = Seen::default();
    while let Some(child) = layers.last() {
        seen.add(child);
        let Some(locator) = child.file.parent_locator() else { break };
        if layers.len() == MAX_CHAIN {
            return Err(OpenError::ChainTooDeep);
        }
        let parent = open_parent(&child.path, locator, child.file.format(), options, &seen)?;
        check_fit(child, &parent)?;
        layers.push(parent);
    }
    // A writer that was in a parent while it was opened shows in its header now.
    for parent in &layers[1..] {
        if let LayerFile::Vhdx(file) = &parent.file {
            let now = CurrentHeader::read(file.replayed())?.header;
            let then = &file.tables().current.header;
            if now != *then {
                return Err(OpenError::Busy { path: parent.path.clone() });
            }
        }
    }
    Ok(OpenedDisk { layers })
}

fn open_parent(
    child: &Path,
    locator: &ParentLocator,
    format: FileFormat,
    options: &OpenOptions,
    seen: &Seen,
) -> Result<Layer, OpenError> {
    let mut tried = Vec::new();
    let mut failure = None;
    for path in candidates(child, locator, &options.parents) {
        let file = match open_file(&path, false) {
            Ok(file) => file,
            Err(error) if error.kind() == OpenErrorKind::Missing => {
                tried.push(ParentAttempt { path, found: None });
                continue;
            }
            // Another candidate may still be the right one.
            Err(source) => {
                failure.get_or_insert(OpenError::InParent { path, source: Box::new(source) });
                continue;
            }
        };
        let found = file.identity();
        if !locator.matches(found) || file.format() != format {
            tried.push(ParentAttempt { path, found: Some(found) });
            continue;
        }
        let known = file.write_guids().is_some_and(|guids| seen.identities.contains(&guids));
        if known || seen.paths.contains(&canonical(&path)) {
            return Err(OpenError::ChainCycle { path });
        }
        return Ok(Layer { path, file });
    }
    let (child, expected) = (child.to_owned(), locator.parent_linkage);
    Err(match failure {
        Some(failure) => failure,
        None if tried.iter().any(|attempt| attempt.found.is_some()) => {
            OpenError::ParentMismatch { child, expected, tried }
        }
        None => OpenError::ParentNotFound { child, tried },
    })
}

/// Block sizes may differ, and a VHDX may be larger or smaller than its parent; sectors may not differ.
fn check_fit(child: &Layer, parent: &Layer) -> Result<(), OpenError> {
    let (below, above) = (parent.file.geometry(), child.file.geometry());
    let problem = if parent.file.format() != child.file.format() {
        "they are of different formats".to_owned()
    } else if below.logical_sector_bytes != above.logical_sector_bytes {
        format!("sectors of {} and {} bytes", below.logical_sector_bytes, above.logical_sector_bytes)
    } else if child.file.format() == FileFormat::Vhd && below.size_bytes != above.size_bytes {
        format!("disks of {} and {} bytes", below.size_bytes, above.size_bytes)
    } else {
        return Ok(());
    };
    Err(OpenError::ParentUnfit { child: child.path.clone(), parent: parent.path.clone(), problem })
}

fn open_file(path: &Path, allow_raw: bool) -> Result<LayerFile, OpenError> {
    let file: Arc<dyn ReadAt> = Arc::new(open_regular(path, File::options().read(true))?);
    let len = file.len_bytes().map_err(OpenError::read("file length", 0))?;
    let mut signature = [0; 8];
    if len >= signature.len() as u64 {
        file.read_exact_at(&mut signature, 0).map_err(OpenError::read("file identifier", 0))?;
    }
    if signature == FILE_SIGNATURE {
        Ok(LayerFile::Vhdx(Box::new(VhdxFile::open(file)?)))
    } else if VhdFile::detect(&*file)? {
        Ok(LayerFile::Vhd(Box::new(VhdFile::open(file)?)))
    } else if allow_raw {
        Ok(LayerFile::Raw(RawFile::open(file)?))
    } else {
        Err(OpenError::NotADisk)
    }
}

/// Opens a regular file; devices, pipes and folders are refused.
pub(crate) fn open_regular(path: &Path, options: &std::fs::OpenOptions) -> Result<File, OpenError> {
    let failed = |action| move |source| OpenError::File { action, path: path.to_owned(), source };
    #[cfg(unix)]
    let options = {
        use std::os::unix::fs::OpenOptionsExt;
        // Opening a pipe must not wait for its other end. Without a meaning for regular files.
        &options.clone().custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).to_owned()
    };
    let not_regular = || OpenError::Unsupported { what: format!("{} is not a regular file", path.display()) };
    let file = match options.open(path) {
        Ok(file) => file,
        // Windows opens no folder as a file, and calls that "access denied".
        Err(_) if path.is_dir() => return Err(not_regular()),
        Err(error) => return Err(failed("open")(error)),
    };
    if !file.metadata().map_err(failed("examine"))?.is_file() {
        return Err(not_regular());
    }
    Ok(file)
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

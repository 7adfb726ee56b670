//! Folding a child into its parent (MS-VHDX 2.6.2.6.3 describes the identities).

use std::path::Path;

use crate::{FileExtentKind, Guid, OpenError, ReadAt, ReadError, VirtualDisk, WritableVhdx, WriteError};

/// A merge of a differencing file into its parent, in steps.
///
/// The child stays usable and reads the same at every instant, until the caller deletes it. A merge that was cut off is
/// simply made again, from new.
///
/// A finished merge has given the parent a new DataWriteGuid. Children of the child must be pointed at the parent
/// ([`WritableVhdx::set_parent_locator`]) before the child is deleted; other children of the parent are lost.
pub struct Merge {
    child: WritableVhdx,
    parent: WritableVhdx,
    done_bytes: u64,
    finished: bool,
}

/// Copied at a time.
const PIECE_BYTES: u64 = 4 << 20;

impl Merge {
    /// Opens both files, checks that they belong together, and notes in both that a merge is going on.
    pub fn open(child: &Path, parent: &Path) -> Result<Self, MergeError> {
        let open =
            |which, path| WritableVhdx::open_without_parent(path).map_err(|source| MergeError::Open { which, source });
        Self::new(open("child", child)?, open("parent", parent)?)
    }

    /// As [`open`](Self::open), for files that are open already.
    pub fn new(mut child: WritableVhdx, mut parent: WritableVhdx) -> Result<Self, MergeError> {
        let locator = child.tables.disk.locator.clone().ok_or(MergeError::NotDifferencing)?;
        let found = parent.session.current().header.data_write_guid;
        if !locator.matches(found) {
            return Err(MergeError::NotItsParent { expected: locator.parent_linkage, found });
        }
        let (sector, parent_sector) = (child.geometry().logical_sector_bytes, parent.geometry().logical_sector_bytes);
        if sector != parent_sector {
            return Err(MergeError::SectorsDiffer { child: sector, parent: parent_sector });
        }
        let merged = Guid::random();
        let mut accepting = locator;
        // In one step, so that the child accepts the parent before and after its identity changes; a merge that was cut
        // off had made `parent_linkage2` the one that counts.
        accepting.parent_linkage = found;
        accepting.parent_linkage2 = merged;
        child.set_parent_locator(&accepting).and_then(|()| child.finish()).map_err(MergeError::write("child"))?;
        let size_bytes = child.geometry().size_bytes;
        parent
            .begin(true, Some(merged))
            .and_then(|()| parent.resize(size_bytes))
            .map_err(MergeError::write("parent"))?;
        Ok(Merge { child, parent, done_bytes: 0, finished: false })
    }

    /// Goes on until about `max_bytes` were copied or there is nothing left. When it says `finished`, everything is
    /// durable and both logs are clean; the files stay locked until this is dropped.
    pub fn step(&mut self, max_bytes: u64) -> Result<MergeProgress, MergeError> {
        let total_bytes = self.child.geometry().size_bytes;
        // So that blocks are dealt with as wholes.
        let window = u64::from(self.child.tables.disk.block_bytes.max(self.parent.tables.disk.block_bytes));
        let mut copied = 0;
        while self.done_bytes < total_bytes && copied < max_bytes.max(1) {
            let range = self.done_bytes..total_bytes.min(self.done_bytes + window);
            for extent in self.child.file_extents(range.clone())? {
                match extent.kind {
                    FileExtentKind::Parent => {}
                    FileExtentKind::Zero => {
                        self.parent.zero_range(extent.range).map_err(MergeError::write("parent"))?;
                    }
                    FileExtentKind::Data { file_offset_bytes } => {
                        copied += extent.range.end - extent.range.start;
                        self.copy(extent.range, file_offset_bytes)?;
                    }
                }
            }
            self.done_bytes = range.end;
        }
        if self.done_bytes == total_bytes && !self.finished {
            let finish = self.parent.flush().and_then(|()| self.parent.take_virtual_disk_items(&self.child));
            finish.and_then(|()| self.parent.finish()).map_err(MergeError::write("parent"))?;
            self.finished = true;
        }
        Ok(MergeProgress { done_bytes: self.done_bytes, total_bytes, finished: self.finished })
    }

    fn copy(&mut self, range: std::ops::Range<u64>, file_offset_bytes: u64) -> Result<(), MergeError> {
        let mut buf = vec![0; (range.end - range.start).min(PIECE_BYTES) as usize];
        for at in range.clone().step_by(PIECE_BYTES as usize) {
            let piece = &mut buf[..(range.end - at).min(PIECE_BYTES) as usize];
            let source_at = file_offset_bytes + (at - range.start);
            self.child.session.file.read_exact_at(piece, source_at).map_err(|source| ReadError::Io {
                offset_bytes: at,
                file_offset_bytes: source_at,
                len_bytes: piece.len() as u64,
                source,
            })?;
            self.parent.write_all_at(piece, at).map_err(MergeError::write("parent"))?;
        }
        Ok(())
    }
}

/// How far a merge has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeProgress {
    /// Virtual bytes dealt with.
    pub done_bytes: u64,
    /// Size of the disk.
    pub total_bytes: u64,
    /// Nothing is left to do, and all of it is durable.
    pub finished: bool,
}

/// Why a merge failed. The child is unharmed in every case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// A file could not be opened.
    #[error("open the {which} of a merge")]
    Open {
        /// `child` or `parent`.
        which: &'static str,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// The child has no parent.
    #[error("the child of a merge is not a differencing file")]
    NotDifferencing,
    /// The parent is not the file that the child was made from, or was written since.
    #[error("the child's parent is {expected}, not {found}")]
    NotItsParent {
        /// What the child names.
        expected: Guid,
        /// What the parent is.
        found: Guid,
    },
    /// Parent and child count in different sectors.
    #[error("the child has sectors of {child} bytes, its parent of {parent}")]
    SectorsDiffer {
        /// Logical sector size of the child.
        child: u32,
        /// Logical sector size of the parent.
        parent: u32,
    },
    /// Reading the child failed.
    #[error("read the child of a merge")]
    Read(#[from] ReadError),
    /// Writing failed.
    #[error("write the {which} of a merge")]
    Write {
        /// `child` or `parent`.
        which: &'static str,
        /// Why.
        #[source]
        source: WriteError,
    },
}

impl MergeError {
    fn write(which: &'static str) -> impl FnOnce(WriteError) -> Self {
        move |source| MergeError::Write { which, source }
    }
}

//! A stored disk: a canonical VHDX stream as a grouped object, read as the file or as the raw disk.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use kopia_repo::format::index_stream::IndirectEntry;
use kopia_repo::grouped::{ENTRIES_PER_PIECE, GroupedObject};
use kopia_repo::{ContentId, ObjectId, ReadError, Repository};
use vhdx::stream::{SlotMap, StreamHead, parse_head};

use crate::layout::Layout;

/// Pieces held decoded at the same time: an incremental appends slots in runs, so a walk in virtual order touches as
/// many places at once as there were incrementals since the last full.
const CACHED_PIECES: usize = 64;

/// A disk of a restore point, opened: its entries are read piece by piece when needed.
pub struct DiskObject {
    repo: Arc<Repository>,
    object: GroupedObject,
    layout: Layout,
    head: StreamHead,
    /// Name of the all-zero segment: absent blocks stand for it.
    zero: ContentId,
    cache: Mutex<VecDeque<(usize, Arc<Vec<IndirectEntry>>)>>,
}

/// Why a stored disk cannot be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskObjectError {
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] ReadError),
    /// The object is not the disk that the point describes.
    #[error("object {id} is not the disk it should be: {problem}")]
    Shape {
        /// The object.
        id: ObjectId,
        /// What does not hold.
        problem: String,
    },
}

impl DiskObject {
    /// Opens a disk object that was laid out by `layout`: reads and checks the stream's whole head, and with it the
    /// slot of every block.
    pub fn open(repo: Arc<Repository>, id: ObjectId, layout: Layout) -> Result<Self, DiskObjectError> {
        let object = GroupedObject::open(&repo, id)?;
        let shape = |problem: String| DiskObjectError::Shape { id, problem };
        let cache = Mutex::default();
        let reader = HeadReader { repo: &repo, object: &object, layout: &layout, cache: &cache };
        let last = object.pieces().len() - 1;
        let entries = (last * ENTRIES_PER_PIECE) as u64 + reader.piece(last)?.len() as u64;
        let payload = entries
            .checked_sub(layout.head_segments())
            .ok_or_else(|| shape(format!("{entries} entries are fewer than the head alone has")))?;
        let per_block = u64::from(layout.segments_per_block());
        if payload % per_block != 0 {
            return Err(shape(format!("{payload} payload segments do not make whole blocks of {per_block}")));
        }
        let slots = u32::try_from(payload / per_block).map_err(|_| shape("too many slots".into()))?;
        let head = {
            let source =
                HeadSource { reader: &reader, len_bytes: layout.geometry().len_bytes(slots), failed: Mutex::default() };
            let parsed = parse_head(&source);
            if let Some(error) = source.failed.into_inner().expect("no panic while held") {
                return Err(error);
            }
            parsed.map_err(|error| shape(error.to_string()))?
        };
        if head.geometry() != layout.geometry() {
            return Err(shape("its geometry is another than the point says".into()));
        }
        if head.slots().len() != slots {
            return Err(shape(format!("its table names {} slots, its entries make {slots}", head.slots().len())));
        }
        let zero = repo.content_id(&vec![0; layout.segment_bytes() as usize], None);
        Ok(Self { repo, object, layout, head, zero, cache })
    }

    /// The cut of the stream.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The stream's head: identities and slots.
    pub fn head(&self) -> &StreamHead {
        &self.head
    }

    /// Which block is in which slot.
    pub fn slots(&self) -> &Arc<SlotMap> {
        self.head.slots()
    }

    /// The object and its pieces.
    pub fn object(&self) -> &GroupedObject {
        &self.object
    }

    /// The repository it lies in.
    pub fn repository(&self) -> &Arc<Repository> {
        &self.repo
    }

    /// Length of the file that the object is.
    pub fn len_bytes(&self) -> u64 {
        self.head.len_bytes()
    }

    /// Number of entries.
    pub fn segments(&self) -> u64 {
        self.layout.segments(self.slots().len())
    }

    /// Name of the all-zero segment.
    pub fn zero_content(&self) -> ContentId {
        self.zero
    }

    /// The entries of a piece, from memory if it was read lately. Every entry is checked to lie where the layout says
    /// and to be a single content.
    pub fn piece(&self, number: usize) -> Result<Arc<Vec<IndirectEntry>>, DiskObjectError> {
        self.reader().piece(number)
    }

    /// The content of one segment.
    pub fn segment(&self, number: u64) -> Result<ContentId, DiskObjectError> {
        let piece = self.piece((number / ENTRIES_PER_PIECE as u64) as usize)?;
        Ok(piece[(number % ENTRIES_PER_PIECE as u64) as usize].object.content)
    }

    /// The content of a part of a block; `None` when the disk has zeroes there.
    pub fn virtual_segment(&self, block: u32, part: u32) -> Result<Option<ContentId>, DiskObjectError> {
        match self.slots().slot(block) {
            Some(slot) => {
                let content = self.segment(self.layout.payload_segment(slot, part))?;
                Ok((content != self.zero).then_some(content))
            }
            None => Ok(None),
        }
    }

    /// Fills `buf` from a virtual offset. Whole segments are read; a caller with many small reads keeps a cache.
    pub fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), DiskObjectError> {
        let size = self.layout.geometry().size_bytes();
        if offset_bytes.checked_add(buf.len() as u64).is_none_or(|end| end > size) {
            return Err(DiskObjectError::Shape {
                id: self.object.id(),
                problem: format!("read of {} bytes at {offset_bytes} of a disk of {size} bytes", buf.len()),
            });
        }
        let segment_bytes = self.layout.segment_bytes() as usize;
        let per_block = u64::from(self.layout.segments_per_block());
        let (mut at, mut rest) = (offset_bytes, buf);
        let mut plaintext = Vec::new();
        while !rest.is_empty() {
            let (number, within) = (at / segment_bytes as u64, (at % segment_bytes as u64) as usize);
            let take = (segment_bytes - within).min(rest.len());
            let (here, behind) = rest.split_at_mut(take);
            match self.virtual_segment((number / per_block) as u32, (number % per_block) as u32)? {
                None => here.fill(0),
                Some(content) => {
                    self.read_segment(&content, &mut plaintext)?;
                    here.copy_from_slice(&plaintext[within..within + take]);
                }
            }
            (at, rest) = (at + take as u64, behind);
        }
        Ok(())
    }

    /// The bytes of a payload segment, with their length checked.
    pub fn read_segment(&self, content: &ContentId, plaintext: &mut Vec<u8>) -> Result<(), DiskObjectError> {
        self.repo.read_content_into(content, plaintext)?;
        if plaintext.len() != self.layout.segment_bytes() as usize {
            return Err(DiskObjectError::Shape {
                id: self.object.id(),
                problem: format!("segment {content} has {} bytes", plaintext.len()),
            });
        }
        Ok(())
    }

    fn reader(&self) -> HeadReader<'_> {
        HeadReader { repo: &self.repo, object: &self.object, layout: &self.layout, cache: &self.cache }
    }
}

type PieceCache = Mutex<VecDeque<(usize, Arc<Vec<IndirectEntry>>)>>;

/// Pieces with their cache, usable before the head is known.
struct HeadReader<'a> {
    repo: &'a Repository,
    object: &'a GroupedObject,
    layout: &'a Layout,
    cache: &'a PieceCache,
}

impl HeadReader<'_> {
    fn piece(&self, number: usize) -> Result<Arc<Vec<IndirectEntry>>, DiskObjectError> {
        {
            let mut cache = self.cache.lock().expect("no panic while held");
            if let Some(at) = cache.iter().position(|(cached, _)| *cached == number) {
                let hit = cache.remove(at).expect("just found");
                let entries = hit.1.clone();
                cache.push_back(hit);
                return Ok(entries);
            }
        }
        let entries = self.object.read_piece(self.repo, number)?;
        for (nth, entry) in entries.iter().enumerate() {
            let segment = (number * ENTRIES_PER_PIECE + nth) as u64;
            let range = self.layout.segment_range(segment);
            let direct = entry.object.indirection == 0 && !entry.object.compressed;
            if entry.start != range.start || entry.len != range.end - range.start || !direct {
                return Err(DiskObjectError::Shape {
                    id: self.object.id(),
                    problem: format!(
                        "segment {segment} is {} at {} with {} bytes; the layout has {range:?}",
                        entry.object, entry.start, entry.len
                    ),
                });
            }
        }
        let entries = Arc::new(entries);
        let mut cache = self.cache.lock().expect("no panic while held");
        if cache.len() >= CACHED_PIECES {
            cache.pop_front();
        }
        cache.push_back((number, entries.clone()));
        Ok(entries)
    }
}

/// The stream's head as a file, for the parser of heads.
struct HeadSource<'a> {
    reader: &'a HeadReader<'a>,
    len_bytes: u64,
    /// The parser's error can carry text only; the real one is kept here.
    failed: Mutex<Option<DiskObjectError>>,
}

impl HeadSource<'_> {
    fn read(&self, buf: &mut [u8], offset_bytes: u64) -> Result<(), DiskObjectError> {
        let (mut at, mut rest) = (offset_bytes, buf);
        // The head has few segments of two sizes: a search by offset is a division.
        let mut number = 0;
        while !rest.is_empty() {
            while self.reader.layout.segment_range(number).end <= at {
                number += 1;
            }
            let range = self.reader.layout.segment_range(number);
            let piece = self.reader.piece((number / ENTRIES_PER_PIECE as u64) as usize)?;
            let content = piece[(number % ENTRIES_PER_PIECE as u64) as usize].object.content;
            let bytes = self.reader.repo.read_content(&content)?;
            if bytes.len() as u64 != range.end - range.start {
                return Err(DiskObjectError::Shape {
                    id: self.reader.object.id(),
                    problem: format!("head segment {number} has {} bytes", bytes.len()),
                });
            }
            let within = (at - range.start) as usize;
            let take = (bytes.len() - within).min(rest.len());
            let (here, behind) = rest.split_at_mut(take);
            here.copy_from_slice(&bytes[within..within + take]);
            (at, rest) = (at + take as u64, behind);
        }
        Ok(())
    }
}

impl vhdx::ReadAt for HeadSource<'_> {
    fn read_exact_at(&self, buf: &mut [u8], offset_bytes: u64) -> std::io::Result<()> {
        if offset_bytes
            .checked_add(buf.len() as u64)
            .is_none_or(|end| end > self.reader.layout.geometry().head_len_bytes())
        {
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "read past the stream's head"));
        }
        self.read(buf, offset_bytes).map_err(|error| {
            let text = error.to_string();
            self.failed.lock().expect("no panic while held").get_or_insert(error);
            std::io::Error::other(text)
        })
    }

    fn len_bytes(&self) -> std::io::Result<u64> {
        Ok(self.len_bytes)
    }
}

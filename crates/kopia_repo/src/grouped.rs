//! Objects whose index stream is cut at every 1,024th entry (spec 5.7).
//!
//! Such a stream costs little to change: a piece whose entries did not change is the same content as before. And it
//! can be read piece by piece, so an object of millions of segments needs the memory of one piece. The object is
//! `IIx…`, a second-level stream that names the pieces, or `Ix…` when there is only one. Stock reads both.

use crate::Repository;
use crate::error::{ReadError, WriteError};
use crate::format::compression::CompressionId;
use crate::format::content_id::{ContentId, ObjectId};
use crate::format::index_stream::{IndirectEntry, parse_entries, parse_piece, write_piece};
use crate::session::{INDEX_PREFIX, WriteSession};

/// Entries of every piece but the last.
pub const ENTRIES_PER_PIECE: usize = 1024;
/// A piece of 1,024 entries has about 70 KB; one of a stranger may be longer, but not without bound.
const MAX_PIECE_BYTES: u64 = 16 << 20;
const COMPRESSION: Option<CompressionId> = Some(CompressionId::ZSTD_FASTEST);

/// One piece of the index stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The content that holds its text.
    pub content: ContentId,
    /// Length of the text.
    pub len_bytes: u32,
}

/// A grouped object, opened: its pieces are known, their entries are read when asked for.
#[derive(Clone, Debug)]
pub struct GroupedObject {
    id: ObjectId,
    pieces: Vec<Piece>,
}

impl GroupedObject {
    /// Reads the list of pieces.
    pub fn open(repo: &Repository, id: ObjectId) -> Result<Self, ReadError> {
        let damaged = |problem: String| ReadError::DamagedObject { id, problem };
        let pieces = match id.indirection {
            1 => {
                let text = repo.read_content(&id.content)?;
                vec![Piece { content: id.content, len_bytes: text.len() as u32 }]
            }
            2 => {
                let text = repo.read_content(&id.content)?;
                let entries = parse_entries(&text).map_err(|error| damaged(error.to_string()))?;
                let mut pieces = Vec::with_capacity(entries.len());
                for entry in &entries {
                    if entry.object.indirection != 0 || entry.object.compressed || entry.len > MAX_PIECE_BYTES {
                        return Err(damaged(format!("{} is no piece of a grouped index stream", entry.object)));
                    }
                    pieces.push(Piece { content: entry.object.content, len_bytes: entry.len as u32 });
                }
                pieces
            }
            _ => return Err(damaged("not an object with a grouped index stream".into())),
        };
        if pieces.is_empty() {
            return Err(damaged("an index stream without entries".into()));
        }
        Ok(Self { id, pieces })
    }

    /// The object's ID.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// The pieces in order; piece `n` holds the entries from `n * 1024` on.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The entries of a piece. That a piece is cut where it should be is checked here; what the entries mean, and that
    /// they follow each other, is for the caller to check.
    pub fn read_piece(&self, repo: &Repository, number: usize) -> Result<Vec<IndirectEntry>, ReadError> {
        let damaged = |problem: String| ReadError::DamagedObject { id: self.id, problem };
        let piece = self.pieces[number];
        let text = repo.read_content(&piece.content)?;
        if text.len() as u32 != piece.len_bytes {
            return Err(damaged(format!("piece {number} has {} bytes instead of {}", text.len(), piece.len_bytes)));
        }
        let (first, last) = (number == 0, number + 1 == self.pieces.len());
        let entries = parse_piece(&text, first, last).map_err(|error| damaged(format!("piece {number}: {error}")))?;
        if if last { entries.len() > ENTRIES_PER_PIECE } else { entries.len() != ENTRIES_PER_PIECE } {
            return Err(damaged(format!("piece {number} has {} entries", entries.len())));
        }
        Ok(entries)
    }
}

/// Writes a grouped object piece by piece, in order, reusing pieces of a base where nothing changed.
pub struct GroupedWriter<'s> {
    session: &'s WriteSession,
    pieces: Vec<Option<Piece>>,
}

impl<'s> GroupedWriter<'s> {
    /// A writer for an object of `piece_count` pieces, which may be set in any order.
    pub fn new(session: &'s WriteSession, piece_count: usize) -> Self {
        assert!(piece_count > 0, "an object has at least one segment");
        Self { session, pieces: vec![None; piece_count] }
    }

    /// Number of pieces that `entries` make.
    pub fn piece_count(entries: u64) -> usize {
        entries.div_ceil(ENTRIES_PER_PIECE as u64).try_into().expect("2^64 entries do not fit any memory")
    }

    /// Writes a piece of this object.
    ///
    /// # Panics
    /// If the number of entries is not what the piece must have.
    pub fn set(&mut self, number: usize, entries: &[IndirectEntry]) -> Result<(), WriteError> {
        let last = number + 1 == self.pieces.len();
        self.pieces[number] = Some(Self::write_piece(self.session, number == 0, last, entries)?);
        Ok(())
    }

    /// Writes a piece of an object whose number of pieces is not known yet; [`reuse`](Self::reuse) takes it later.
    ///
    /// # Panics
    /// If the number of entries is not what such a piece must have.
    pub fn write_piece(
        session: &WriteSession,
        first: bool,
        last: bool,
        entries: &[IndirectEntry],
    ) -> Result<Piece, WriteError> {
        assert!(
            !entries.is_empty() && (entries.len() == ENTRIES_PER_PIECE || last && entries.len() < ENTRIES_PER_PIECE)
        );
        let text = write_piece(entries, first, last);
        let written = session.write_content(&text, Some(INDEX_PREFIX), COMPRESSION)?;
        Ok(Piece { content: written.id, len_bytes: text.len() as u32 })
    }

    /// Takes over a piece of a base object; the caller knows that its entries, its number and its being first or last
    /// are the same, and that its content is in the repository.
    pub fn reuse(&mut self, number: usize, piece: Piece) {
        self.pieces[number] = Some(piece);
    }

    /// Writes the second level and returns the object's ID.
    ///
    /// # Panics
    /// If a piece was not set.
    pub fn finish(self) -> Result<ObjectId, WriteError> {
        let pieces: Vec<Piece> = self.pieces.into_iter().map(|piece| piece.expect("every piece is set")).collect();
        if let [only] = pieces[..] {
            return Ok(ObjectId { indirection: 1, compressed: false, content: only.content });
        }
        let mut start = 0;
        let second_level: Vec<IndirectEntry> = pieces
            .iter()
            .map(|piece| {
                let entry =
                    IndirectEntry { start, len: piece.len_bytes.into(), object: ObjectId::direct(piece.content) };
                start += u64::from(piece.len_bytes);
                entry
            })
            .collect();
        let text = write_piece(&second_level, true, true);
        let written = self.session.write_content(&text, Some(INDEX_PREFIX), COMPRESSION)?;
        Ok(ObjectId { indirection: 2, compressed: false, content: written.id })
    }
}

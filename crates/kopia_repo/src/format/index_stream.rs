//! Index streams: the list of segments that an indirect object is made of (kopia-format 5.3).

mod parser;

use super::content_id::{ObjectId, ObjectIdError};

pub use parser::{EntryParser, parse_entries, parse_piece};

/// One segment of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndirectEntry {
    /// Where in the object the segment begins, in bytes.
    pub start: u64,
    /// Its length in bytes; 0 only in what others wrote.
    pub len: u64,
    /// The object that holds it.
    pub object: ObjectId,
}

/// Why bytes are not an index stream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexStreamError {
    /// The text is no JSON object with a list of entries.
    #[error("the index stream is no valid JSON at byte {offset}: {problem}")]
    Syntax {
        /// Bytes of the stream before the problem.
        offset: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// An entry is not of the right shape.
    #[error("entry {entry} of the index stream is malformed")]
    Entry {
        /// Number of the entry, from 0.
        entry: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// An entry names no object.
    #[error("entry {entry} of the index stream names no object")]
    Object {
        /// Number of the entry, from 0.
        entry: u64,
        /// Why the name is none.
        source: ObjectIdError,
    },
    /// An entry begins or ends at a negative offset or beyond 2^63.
    #[error("entry {entry} of the index stream lies outside of any object")]
    Range {
        /// Number of the entry, from 0.
        entry: u64,
    },
    /// The stream ends before its JSON value does.
    #[error("the index stream is cut short after {len} bytes, {entries} entries")]
    CutShort {
        /// Bytes of the stream.
        len: u64,
        /// Entries before the end.
        entries: u64,
    },
    /// There must be an entry; Kopia crashes on a stream without one (kopia-format 5.4).
    #[error("the index stream has no entries")]
    Empty,
}

const HEADER: &[u8] = br#"{"stream":"kopia:indirect","entries":["#;
const FOOTER: &[u8] = b"]}\n";

/// Appends what precedes the entries.
pub fn write_header(out: &mut Vec<u8>) {
    out.extend_from_slice(HEADER);
}

/// Appends an entry; `first` for the first of the stream, which has no comma before it.
pub fn write_entry(out: &mut Vec<u8>, first: bool, entry: &IndirectEntry) {
    if !first {
        out.push(b',');
    }
    out.extend_from_slice(b"{\"");
    for (key, value) in [(b's', entry.start), (b'l', entry.len)] {
        if value != 0 {
            out.extend_from_slice(&[key, b'"', b':']);
            write_decimal(out, value);
            out.extend_from_slice(b",\"");
        }
    }
    out.extend_from_slice(b"o\":\"");
    entry.object.write_text(out);
    out.extend_from_slice(b"\"}");
}

/// Appends what follows the entries, the line break included.
pub fn write_footer(out: &mut Vec<u8>) {
    out.extend_from_slice(FOOTER);
}

fn write_decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// The text of consecutive entries that are cut out of an index stream, so that a group of entries that does not change
/// is a content that does not change (kopia-format 5.7). The comma between two pieces belongs to the later one; the first
/// piece begins the stream, the last one ends it. [`parse_piece`] reads it back.
///
/// # Panics
/// If there are no entries: Kopia does not survive an index stream without any (kopia-format 5.4).
pub fn write_piece(entries: &[IndirectEntry], first: bool, last: bool) -> Vec<u8> {
    assert!(!entries.is_empty(), "an index stream has entries");
    let mut text = Vec::with_capacity(entries.len() * 80);
    if first {
        write_header(&mut text);
    }
    for (nth, entry) in entries.iter().enumerate() {
        write_entry(&mut text, first && nth == 0, entry);
    }
    if last {
        write_footer(&mut text);
    }
    text
}

#[cfg(test)]
mod tests;

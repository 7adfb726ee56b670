//! Index streams: the list of segments that an indirect object is made of (kopia-format 5.3).

use serde::Deserialize;

use super::content_id::{ObjectId, ObjectIdError};
use super::json;

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

/// The most that one entry, or what precedes the entries, may take in bytes. Real ones take about a hundred.
const MAX_ITEM_BYTES: usize = 1 << 20;

/// Reads an index stream that arrives in pieces, and hands out its entries as they become complete.
///
/// Any valid JSON is taken: spacing, unknown keys, absent `s` and `l`. That the segments follow each other without gap
/// is not checked here. Memory is that of a piece, and of the entry that lies across its end.
#[derive(Debug)]
pub struct EntryParser {
    state: State,
    /// What was fed and belongs to an item that is not complete yet.
    carry: Vec<u8>,
    /// Bytes of the stream before `carry`.
    consumed: u64,
    entries: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the `[` of the entries.
    Header,
    /// After `[`: an entry or `]`.
    FirstEntry,
    /// After an entry: `,` or `]`.
    AfterEntry,
    /// After `]`: more keys, or the end of the object.
    Trailer,
    /// After the JSON value; anything that follows is ignored, as Kopia does.
    Done,
}

impl Default for EntryParser {
    fn default() -> Self {
        Self::new()
    }
}

impl EntryParser {
    /// A parser at the beginning of a stream.
    pub fn new() -> Self {
        Self { state: State::Header, carry: Vec::new(), consumed: 0, entries: 0 }
    }

    /// A parser in the middle of a stream, right after an entry: for a later piece of a stream that was cut between
    /// entries, which begins with the comma.
    pub fn after_entry() -> Self {
        Self { state: State::AfterEntry, ..Self::new() }
    }

    /// Takes the next piece of the stream and appends the entries that it completes.
    pub fn feed(&mut self, piece: &[u8], entries: &mut Vec<IndirectEntry>) -> Result<(), IndexStreamError> {
        if self.carry.is_empty() {
            let taken = self.parse(piece, entries)?;
            self.carry.extend_from_slice(&piece[taken..]);
        } else {
            let mut text = std::mem::take(&mut self.carry);
            text.extend_from_slice(piece);
            let taken = self.parse(&text, entries)?;
            text.drain(..taken);
            self.carry = text;
        }
        if self.carry.len() > MAX_ITEM_BYTES {
            return Err(self.syntax(0, "an item is longer than 1 MiB"));
        }
        Ok(())
    }

    /// Ends the stream, which must be complete and have had an entry.
    pub fn finish(self) -> Result<(), IndexStreamError> {
        if self.state != State::Done {
            return Err(IndexStreamError::CutShort {
                len: self.consumed + self.carry.len() as u64,
                entries: self.entries,
            });
        }
        if self.entries == 0 { Err(IndexStreamError::Empty) } else { Ok(()) }
    }

    /// Ends a stream that is cut between entries and goes on in another piece.
    pub fn finish_piece(self) -> Result<(), IndexStreamError> {
        if self.state != State::AfterEntry || !self.carry.is_empty() {
            return Err(IndexStreamError::CutShort {
                len: self.consumed + self.carry.len() as u64,
                entries: self.entries,
            });
        }
        if self.entries == 0 { Err(IndexStreamError::Empty) } else { Ok(()) }
    }

    /// Parses as many complete items as there are and returns how many bytes they took.
    fn parse(&mut self, text: &[u8], entries: &mut Vec<IndirectEntry>) -> Result<usize, IndexStreamError> {
        let mut at = 0;
        loop {
            let rest = &text[at..];
            let step = match self.state {
                State::Header => self.header(rest),
                State::FirstEntry | State::AfterEntry => self.entry(rest, entries),
                State::Trailer => self.trailer(rest),
                State::Done => {
                    self.consumed += rest.len() as u64;
                    return Ok(text.len());
                }
            };
            match step? {
                Some(taken) => {
                    at += taken;
                    self.consumed += taken as u64;
                }
                None => return Ok(at),
            }
        }
    }

    /// Up to and with the `[` of the entries.
    fn header(&mut self, text: &[u8]) -> Result<Option<usize>, IndexStreamError> {
        if text.starts_with(HEADER) {
            self.state = State::FirstEntry;
            return Ok(Some(HEADER.len()));
        }
        let mut scan = Scan { text, at: 0 };
        let Some(first) = scan.peek() else { return Ok(None) };
        if first != b'{' {
            return Err(self.syntax(scan.at, "not an object"));
        }
        scan.at += 1;
        self.keys(scan)
    }

    /// After the entries: the end of the object, or a comma and more keys.
    fn trailer(&mut self, text: &[u8]) -> Result<Option<usize>, IndexStreamError> {
        let mut scan = Scan { text, at: 0 };
        match scan.peek() {
            None => Ok(None),
            Some(b'}') => {
                self.state = State::Done;
                Ok(Some(scan.at + 1))
            }
            Some(b',') => {
                scan.at += 1;
                self.keys(scan)
            }
            Some(_) => Err(self.syntax(scan.at, "neither a comma nor the end of the object")),
        }
    }

    /// Keys and values up to the `[` of the entries, or the end of the object.
    fn keys(&mut self, mut scan: Scan<'_>) -> Result<Option<usize>, IndexStreamError> {
        let seen = self.state == State::Trailer;
        let mut first = !seen;
        loop {
            let Some(next) = scan.peek() else { return Ok(None) };
            if next == b'}' && first {
                self.state = State::Done;
                return Ok(Some(scan.at + 1));
            }
            first = false;
            if next != b'"' {
                return Err(self.syntax(scan.at, "not a key"));
            }
            let key = match scan.value() {
                Ok(Some(key)) => serde_json::from_slice::<String>(key),
                Ok(None) => return Ok(None),
                Err(problem) => return Err(self.syntax(scan.at, problem)),
            };
            let Ok(key) = key else { return Err(self.syntax(scan.at, "not a key")) };
            match scan.peek() {
                None => return Ok(None),
                Some(b':') => scan.at += 1,
                Some(_) => return Err(self.syntax(scan.at, "no colon after a key")),
            }
            let Some(next) = scan.peek() else { return Ok(None) };
            if key == "entries" {
                match next {
                    b'[' if !seen => {
                        self.state = State::FirstEntry;
                        return Ok(Some(scan.at + 1));
                    }
                    b'[' => return Err(self.syntax(scan.at, "entries for a second time")),
                    b'n' => {}
                    _ => return Err(self.syntax(scan.at, "entries are no list")),
                }
            }
            match scan.value() {
                Ok(Some(value)) if is_json(value) => {}
                Ok(Some(_)) => return Err(self.syntax(scan.at, "not a value")),
                Ok(None) => return Ok(None),
                Err(problem) => return Err(self.syntax(scan.at, problem)),
            }
            match scan.peek() {
                None => return Ok(None),
                Some(b',') => scan.at += 1,
                Some(b'}') => {
                    self.state = State::Done;
                    return Ok(Some(scan.at + 1));
                }
                Some(_) => return Err(self.syntax(scan.at, "neither a comma nor the end of the object")),
            }
        }
    }

    /// One entry with the comma before it, or the `]` after all of them.
    fn entry(&mut self, text: &[u8], entries: &mut Vec<IndirectEntry>) -> Result<Option<usize>, IndexStreamError> {
        let first = self.state == State::FirstEntry;
        if let Some((entry, taken)) = compact_entry(text, first) {
            entries.push(entry);
            self.entries += 1;
            self.state = State::AfterEntry;
            return Ok(Some(taken));
        }
        let mut scan = Scan { text, at: 0 };
        let Some(mut next) = scan.peek() else { return Ok(None) };
        if next == b']' {
            self.state = State::Trailer;
            return Ok(Some(scan.at + 1));
        }
        if !first {
            if next != b',' {
                return Err(self.syntax(scan.at, "neither a comma nor the end of the entries"));
            }
            scan.at += 1;
            next = match scan.peek() {
                Some(next) => next,
                None => return Ok(None),
            };
        }
        if next != b'{' {
            return Err(self.syntax(scan.at, "not an entry"));
        }
        let value = match scan.value() {
            Ok(Some(value)) => value,
            Ok(None) => return Ok(None),
            Err(problem) => return Err(self.syntax(scan.at, problem)),
        };
        let entry = self.entries;
        let raw: RawEntry =
            serde_json::from_slice(value).map_err(|source| IndexStreamError::Entry { entry, source })?;
        let object = raw.object.parse().map_err(|source| IndexStreamError::Object { entry, source })?;
        let (Ok(start), Ok(len)) = (u64::try_from(raw.start), u64::try_from(raw.len)) else {
            return Err(IndexStreamError::Range { entry });
        };
        if raw.start.checked_add(raw.len).is_none() {
            return Err(IndexStreamError::Range { entry });
        }
        entries.push(IndirectEntry { start, len, object });
        self.entries += 1;
        self.state = State::AfterEntry;
        Ok(Some(scan.at))
    }

    fn syntax(&self, at: usize, problem: &'static str) -> IndexStreamError {
        IndexStreamError::Syntax { offset: self.consumed + at as u64, problem }
    }
}

#[derive(Deserialize)]
struct RawEntry {
    #[serde(rename = "s", default, deserialize_with = "json::null_as_default")]
    start: i64,
    #[serde(rename = "l", default, deserialize_with = "json::null_as_default")]
    len: i64,
    #[serde(rename = "o", default, deserialize_with = "json::null_as_default")]
    object: String,
}

/// An entry exactly as Kopia and we write it, with the comma before it. `None` for anything else, be it cut short or
/// only spaced differently.
fn compact_entry(text: &[u8], first: bool) -> Option<(IndirectEntry, usize)> {
    let mut rest = text;
    if !first {
        rest = rest.strip_prefix(b",")?;
    }
    rest = rest.strip_prefix(b"{\"")?;
    let (mut start, mut len) = (0, 0);
    if let Some(after) = rest.strip_prefix(b"s\":") {
        (start, rest) = digits(after)?;
        rest = rest.strip_prefix(b",\"")?;
    }
    if let Some(after) = rest.strip_prefix(b"l\":") {
        (len, rest) = digits(after)?;
        rest = rest.strip_prefix(b",\"")?;
    }
    rest = rest.strip_prefix(b"o\":\"")?;
    // An ID has no escapes, so its text ends at the next quote, which is near.
    let end = rest.iter().take(128).position(|byte| *byte == b'"')?;
    let object = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    rest = rest[end..].strip_prefix(b"\"}")?;
    i64::try_from(u64::checked_add(start, len)?).ok()?;
    Some((IndirectEntry { start, len, object }, text.len() - rest.len()))
}

/// A number of at most 18 digits without leading zero, and what follows it.
fn digits(text: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    let mut count = 0;
    while let Some(digit @ b'0'..=b'9') = text.get(count) {
        value = value * 10 + u64::from(digit - b'0');
        count += 1;
        if count > 18 {
            return None;
        }
    }
    (count == 1 || count > 1 && text[0] != b'0').then(|| (value, &text[count..]))
}

/// A position in text that may go on later.
struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    /// The next byte that is no white space, without passing it.
    fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.text.get(self.at) {
            if !matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    /// Passes a value and returns its text, which may still be wrong inside; `None` if it is cut short.
    fn value(&mut self) -> Result<Option<&'a [u8]>, &'static str> {
        let start = self.at;
        let mut depth = 0usize;
        while let Some(&byte) = self.text.get(self.at) {
            match byte {
                b'"' => {
                    if !self.string() {
                        return Ok(None);
                    }
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    if depth == 0 {
                        break;
                    }
                    depth -= 1;
                    self.at += 1;
                }
                b',' if depth == 0 => break,
                b':' if depth == 0 => break,
                b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => break,
                _ => {
                    self.at += 1;
                    // A number or word at the top ends where something else begins.
                    if depth == 0 {
                        continue;
                    }
                }
            }
            if depth == 0 {
                return Ok(Some(&self.text[start..self.at]));
            }
        }
        if self.at == self.text.len() {
            return Ok(None);
        }
        if self.at == start { Err("a value is missing") } else { Ok(Some(&self.text[start..self.at])) }
    }

    /// Passes a string; false if it is cut short.
    fn string(&mut self) -> bool {
        let mut at = self.at + 1;
        while let Some(&byte) = self.text.get(at) {
            match byte {
                b'"' => {
                    self.at = at + 1;
                    return true;
                }
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
        false
    }
}

fn is_json(value: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(value).is_ok()
}

/// The entries of a whole index stream.
pub fn parse_entries(stream: &[u8]) -> Result<Vec<IndirectEntry>, IndexStreamError> {
    let mut entries = Vec::with_capacity(stream.len() / 64);
    let mut parser = EntryParser::new();
    parser.feed(stream, &mut entries)?;
    parser.finish()?;
    Ok(entries)
}

/// The entries of one piece of an index stream that was cut between entries (kopia-format 5.7).
pub fn parse_piece(piece: &[u8], first: bool, last: bool) -> Result<Vec<IndirectEntry>, IndexStreamError> {
    let mut entries = Vec::with_capacity(piece.len() / 64);
    let mut parser = if first { EntryParser::new() } else { EntryParser::after_entry() };
    parser.feed(piece, &mut entries)?;
    if last {
        parser.finish()?
    } else {
        parser.finish_piece()?
    }
    Ok(entries)
}

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
mod tests {
    use super::super::content_id::ContentId;
    use super::super::hashing::ContentHasher;
    use super::super::test_vectors::{Rng, secret};
    use super::*;

    fn in_pieces(entries: &[IndirectEntry], per_piece: usize) -> Vec<Vec<u8>> {
        let last = entries.len().div_ceil(per_piece) - 1;
        let groups = entries.chunks(per_piece).enumerate();
        groups.map(|(number, group)| write_piece(group, number == 0, number == last)).collect()
    }

    fn hasher() -> ContentHasher {
        ContentHasher::new("BLAKE2B-256-128", &secret()).unwrap()
    }

    fn content(prefix: Option<u8>, text: &[u8]) -> ContentId {
        ContentId::new(prefix, hasher().digest(text).as_ref()).unwrap()
    }

    /// Segments one after the other.
    fn segments(of: &[(u64, &str)]) -> Vec<IndirectEntry> {
        let mut start = 0;
        of.iter()
            .map(|(len, object)| {
                let entry = IndirectEntry { start, len: *len, object: object.parse().unwrap() };
                start += len;
                entry
            })
            .collect()
    }

    fn write(entries: &[IndirectEntry]) -> Vec<u8> {
        let mut out = Vec::new();
        write_header(&mut out);
        for (n, entry) in entries.iter().enumerate() {
            write_entry(&mut out, n == 0, entry);
        }
        write_footer(&mut out);
        out
    }

    const Z: &str = "5ebc32a6136d1d8c88c1656b43d9819a";
    const A: &str = "b708f50b2e2a4931d2a0914290b81efc";
    const B: &str = "dd2bc6e4a494074b870d474c1a4a5ea8";
    const MIB: u64 = 1 << 20;

    #[test]
    fn the_stream_of_zeros_agrees_with_kopia() {
        let zeros = "93fad06bc0266dfbedf4211b7a8c6f61";
        let stream = write(&segments(&[(2 * MIB, zeros); 6]));
        assert_eq!(stream.len(), 419);
        assert_eq!(content(Some(b'x'), &stream).to_string(), "x76add993b05454a5e8b726d917fae528");
    }

    #[test]
    fn streams_cut_between_entries_agree_with_kopia() {
        let entries = segments(&[(MIB, Z), (MIB, A), (MIB, Z), (MIB, Z), (1000, B)]);
        let whole = write(&entries);
        assert_eq!(whole.len(), 350);
        assert_eq!(content(Some(b'x'), &whole).to_string(), "x660abdee581116b13b01927e8975dbf2");

        let pieces = in_pieces(&entries, 2);
        assert_eq!(pieces.concat(), whole);
        let named: Vec<(u64, String)> =
            pieces.iter().map(|piece| (piece.len() as u64, content(Some(b'x'), piece).to_string())).collect();
        let expected = [
            (155, "x0b9481f633cc0486b34db41dd2cad76c"),
            (130, "xce310a15b96a8a03032fc2ba170b6c72"),
            (65, "xb4b6f441ce02c05c20b3709892f7d95e"),
        ];
        assert_eq!(named, expected.map(|(len, name)| (len, name.to_owned())));
        let second_level = write(&segments(&expected));
        assert_eq!(second_level.len(), 205);
        assert_eq!(content(Some(b'x'), &second_level).to_string(), "x0f2ef38a9659d4a5425eb18a6cd042d5");

        assert_eq!(parse_piece(&pieces[0], true, false).unwrap(), entries[..2]);
        assert_eq!(parse_piece(&pieces[1], false, false).unwrap(), entries[2..4]);
        assert_eq!(parse_piece(&pieces[2], false, true).unwrap(), entries[4..]);
        assert_eq!(parse_piece(&whole, true, true).unwrap(), entries);
        assert!(parse_piece(&pieces[0], true, true).is_err());
        assert!(parse_piece(&pieces[1], true, false).is_err());
        assert!(parse_piece(&pieces[2], false, false).is_err());
        assert!(parse_piece(&pieces[1][..100], false, false).is_err());
        assert!(parse_piece(b"", false, false).is_err());
    }

    #[test]
    fn pieces_are_cut_after_every_group_and_the_last_one_closes() {
        for (count, per_piece, pieces) in [(1, 1, 1), (2, 1, 2), (4, 2, 2), (5, 2, 3), (3, 1024, 1)] {
            let entries = segments(&vec![(5, Z); count]);
            let out = in_pieces(&entries, per_piece);
            assert_eq!(out.len(), pieces, "{count} entries by {per_piece}");
            assert_eq!(out.concat(), write(&entries), "{count} entries by {per_piece}");
        }
    }

    #[test]
    fn any_json_of_the_right_shape_is_read() {
        let two = segments(&[(5, Z), (7, A)]);
        for text in [
            format!(r#"{{"stream":"kopia:indirect","entries":[{{"l":5,"o":"{Z}"}},{{"s":5,"l":7,"o":"{A}"}}]}}"#),
            format!(
                "{{\n \"entries\" : [ {{ \"o\" : \"{Z}\" , \"l\" : 5 }} ,\r\n\t{{\"l\":7,\"s\":5,\"o\":\"{A}\"}} ] }}\n trailing"
            ),
            format!(
                r#"{{"x":{{"entries":[1,"]}}\""]}},"y":null,"z":-1.5e3,"entries":[{{"l":5,"o":"{Z}","q":[{{}}]}},{{"s":5,"l":7,"o":"{A}"}}],"t":true}}"#
            ),
            format!(r#"{{"entries":[{{"s":null,"l":5,"o":"{Z}"}},{{"s":5,"l":7,"o":"\u0062{}"}}]}}{{"#, &A[1..]),
        ] {
            assert_eq!(parse_entries(text.as_bytes()).expect(&text), two, "{text}");
            // However it is cut, the entries are the same.
            for step in 1..40 {
                let mut parser = EntryParser::new();
                let mut entries = Vec::new();
                for piece in text.as_bytes().chunks(step) {
                    parser.feed(piece, &mut entries).unwrap();
                }
                parser.finish().unwrap();
                assert_eq!(entries, two, "{text} in pieces of {step}");
            }
        }
        let odd = format!(r#"{{"entries":[{{"o":"Ix{Z}"}},{{"s":9,"o":"Z{A}"}}]}}"#);
        let entries = parse_entries(odd.as_bytes()).unwrap();
        assert_eq!((entries[0].start, entries[0].len, entries[0].object.indirection), (0, 0, 1));
        assert_eq!((entries[1].start, entries[1].len, entries[1].object.compressed), (9, 0, true));
    }

    #[test]
    fn what_is_no_index_stream_is_refused() {
        for text in [
            "",
            " ",
            "[]",
            "null",
            "{}",
            r#"{"stream":"kopia:indirect"}"#,
            r#"{"entries":[]}"#,
            r#"{"entries":null}"#,
            r#"{"entries":5}"#,
            r#"{"entries":[5]}"#,
            r#"{"entries":[{"l":5}]}"#,
            r#"{"entries":[{"l":5,"o":"zz"}]}"#,
            r#"{"entries":[{"l":-5,"o":"00ff"}]}"#,
            r#"{"entries":[{"s":-5,"o":"00ff"}]}"#,
            r#"{"entries":[{"l":1.5,"o":"00ff"}]}"#,
            r#"{"entries":[{"l":05,"o":"00ff"}]}"#,
            r#"{"entries":[{"s":9223372036854775807,"l":1,"o":"00ff"}]}"#,
            r#"{"entries":[{"s":99999999999999999999,"o":"00ff"}]}"#,
            r#"{"entries":[{"o":"00ff"} {"o":"00ff"}]}"#,
            r#"{"entries":[,{"o":"00ff"}]}"#,
            r#"{"entries":[{"o":"00ff"}"#,
            r#"{"entries":[{"o":"00ff"}]"#,
            r#"{"entries":[{"o":"00ff"}],"entries":[]}"#,
            r#"{"entries":[{"o":"00ff"}],}"#,
            r#"{"entries":[{"o":"00ff"}]x}"#,
            r#"{"a":x,"entries":[{"o":"00ff"}]}"#,
            r#"{"a":,"entries":[{"o":"00ff"}]}"#,
            r#"{"a" "entries":[{"o":"00ff"}]}"#,
            r#"{a:1,"entries":[{"o":"00ff"}]}"#,
        ] {
            assert!(parse_entries(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse_entries(br#"{"entries":[{"o":"00ff"}]}"#).is_ok());
    }

    #[test]
    fn an_item_without_end_is_not_kept() {
        let mut parser = EntryParser::new();
        let mut entries = Vec::new();
        parser.feed(br#"{"entries":[{"o":""#, &mut entries).unwrap();
        let fed = (0..40).find(|_| parser.feed(&[b'0'; 100_000], &mut entries).is_err());
        assert!(fed.is_some_and(|fed| fed < 12), "{fed:?}");
    }

    /// Against serde_json: both refuse, or both say the same.
    #[test]
    fn changed_streams_read_as_serde_json_reads_them() {
        #[derive(Deserialize)]
        struct Whole {
            #[serde(default, deserialize_with = "json::null_as_default")]
            entries: Vec<RawEntry>,
        }
        let mut rng = Rng(10);
        let seed = write(&segments(&[(5, Z), (7, &format!("Ix{A}")), (0, B)]));
        let mut accepted = 0;
        for round in 0..60_000 {
            let text = rng.mutate(&seed);
            let expected = serde_json::Deserializer::from_slice(&text).into_iter::<Whole>().next().and_then(|whole| {
                let whole = whole.ok()?.entries.into_iter().map(|raw| {
                    raw.start.checked_add(raw.len)?;
                    let (start, len) = (raw.start.try_into().ok()?, raw.len.try_into().ok()?);
                    Some(IndirectEntry { start, len, object: raw.object.parse().ok()? })
                });
                whole.collect::<Option<Vec<_>>>().filter(|entries| !entries.is_empty())
            });
            let found = parse_entries(&text).ok();
            accepted += usize::from(found.is_some());
            assert_eq!(found, expected, "round {round}: {}", String::from_utf8_lossy(&text));
            let mut parser = EntryParser::new();
            let mut entries = Vec::new();
            let cut = rng.below(text.len() + 1);
            let pieces = [&text[..cut], &text[cut..]];
            let cut_in_two =
                pieces.iter().try_for_each(|piece| parser.feed(piece, &mut entries)).and_then(|()| parser.finish());
            assert_eq!(cut_in_two.ok().map(|()| entries), expected, "round {round}, cut at {cut}");
        }
        assert!(accepted > 2000, "{accepted}");
    }

    #[test]
    fn numbers_are_written_whole() {
        for value in [0, 9, 10, 1_000_000, u64::MAX] {
            let mut out = Vec::new();
            write_decimal(&mut out, value);
            assert_eq!(out, value.to_string().into_bytes());
        }
    }

    /// A million entries, 70 MB: not a benchmark, but far from quadratic.
    #[test]
    fn a_million_entries_take_no_time() {
        let object: ObjectId = Z.parse().unwrap();
        let entries: Vec<_> = (0..1 << 20).map(|n| IndirectEntry { start: n * MIB, len: MIB, object }).collect();
        let pieces = in_pieces(&entries, 1024);
        let begun = std::time::Instant::now();
        let mut parser = EntryParser::new();
        let (mut entries, mut next) = (Vec::new(), 0);
        for piece in &pieces {
            entries.clear();
            parser.feed(piece, &mut entries).unwrap();
            for entry in &entries {
                assert_eq!(entry.start, next);
                next += entry.len;
            }
        }
        parser.finish().unwrap();
        assert_eq!(next, MIB << 20);
        let bytes: usize = pieces.iter().map(Vec::len).sum();
        eprintln!("{} entries, {bytes} bytes in {:?}", 1 << 20, begun.elapsed());
        assert!(begun.elapsed().as_secs() < 20);
    }
}

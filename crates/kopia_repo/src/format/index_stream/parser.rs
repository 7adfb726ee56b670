//! Reading an index stream that arrives in pieces.

use serde::Deserialize;

use super::super::json;
use super::{HEADER, IndexStreamError, IndirectEntry};

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
pub(super) struct RawEntry {
    #[serde(rename = "s", default, deserialize_with = "json::null_as_default")]
    pub(super) start: i64,
    #[serde(rename = "l", default, deserialize_with = "json::null_as_default")]
    pub(super) len: i64,
    #[serde(rename = "o", default, deserialize_with = "json::null_as_default")]
    pub(super) object: String,
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

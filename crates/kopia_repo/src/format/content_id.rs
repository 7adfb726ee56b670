//! Names of contents and objects.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

/// The longest hash that a content may be named by, in bytes (kopia-format 3.1).
pub const MAX_HASH_BYTES: usize = 32;

/// The name of a content: an optional prefix letter `g`..=`z` and the keyed hash of its plaintext.
///
/// The order is that of the binary key form (prefix byte, then the hash), which index blobs are sorted by.
#[derive(Clone, Copy)]
pub struct ContentId {
    prefix: u8,
    hash_len: u8,
    hash: [u8; MAX_HASH_BYTES],
}

/// Why bytes or text are not the name of a content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContentIdError {
    /// The hash has no byte, or more than [`MAX_HASH_BYTES`].
    #[error("a content hash has 1 to {MAX_HASH_BYTES} bytes, not {len}")]
    HashLength {
        /// Bytes of the hash.
        len: usize,
    },
    /// The prefix is not a letter `g`..=`z`.
    #[error("the content prefix {prefix:#04x} is not a letter from g to z")]
    Prefix {
        /// The byte in the place of the prefix.
        prefix: u8,
    },
    /// A character of the hash is no hexadecimal digit.
    #[error("the content ID {text:?} has a character that is no hexadecimal digit")]
    Digit {
        /// The refused text, cut to a printable length.
        text: String,
    },
}

impl ContentId {
    /// Names the content with this prefix and hash.
    pub fn new(prefix: Option<u8>, hash: &[u8]) -> Result<Self, ContentIdError> {
        let prefix = match prefix {
            None => 0,
            Some(letter @ b'g'..=b'z') => letter,
            Some(prefix) => return Err(ContentIdError::Prefix { prefix }),
        };
        if hash.is_empty() || hash.len() > MAX_HASH_BYTES {
            return Err(ContentIdError::HashLength { len: hash.len() });
        }
        let mut bytes = [0; MAX_HASH_BYTES];
        bytes[..hash.len()].copy_from_slice(hash);
        Ok(Self { prefix, hash_len: hash.len() as u8, hash: bytes })
    }

    /// Reads the binary key form: one prefix byte, 0 for none, then the hash.
    pub fn from_key(key: &[u8]) -> Result<Self, ContentIdError> {
        let Some((&prefix, hash)) = key.split_first() else {
            return Err(ContentIdError::HashLength { len: 0 });
        };
        Self::new((prefix != 0).then_some(prefix), hash)
    }

    /// Appends the binary key form.
    pub fn write_key(&self, out: &mut Vec<u8>) {
        out.push(self.prefix);
        out.extend_from_slice(self.hash());
    }

    /// Bytes of the binary key form: the hash and one.
    pub fn key_len(&self) -> usize {
        usize::from(self.hash_len) + 1
    }

    /// The prefix letter. Contents with one go into `q` packs, those without into `p` packs.
    pub fn prefix(&self) -> Option<u8> {
        (self.prefix != 0).then_some(self.prefix)
    }

    /// The hash, without the prefix.
    pub fn hash(&self) -> &[u8] {
        &self.hash[..usize::from(self.hash_len)]
    }

    /// The initialisation vector of the content's encryption: the last 16 bytes of the hash (kopia-format 3.3).
    ///
    /// A hash of fewer bytes, which no repository has, is taken to begin with zeros.
    pub fn iv(&self) -> [u8; 16] {
        let mut iv = [0; 16];
        let hash = self.hash();
        let taken = hash.len().min(16);
        iv[16 - taken..].copy_from_slice(&hash[hash.len() - taken..]);
        iv
    }

    /// Compares the binary key form with `key` without building it.
    pub(crate) fn cmp_key(&self, key: &[u8]) -> std::cmp::Ordering {
        match key.split_first() {
            None => std::cmp::Ordering::Greater,
            Some((prefix, hash)) => self.prefix.cmp(prefix).then_with(|| self.hash().cmp(hash)),
        }
    }
}

impl FromStr for ContentId {
    type Err = ContentIdError;

    /// An even number of characters has no prefix, an odd number has one; digits of either case.
    fn from_str(text: &str) -> Result<Self, ContentIdError> {
        let bytes = text.as_bytes();
        let (prefix, digits) = match bytes.split_first() {
            Some((&letter, rest)) if bytes.len() % 2 == 1 => (Some(letter), rest),
            _ => (None, bytes),
        };
        let len = digits.len() / 2;
        if len == 0 || len > MAX_HASH_BYTES {
            return Err(ContentIdError::HashLength { len });
        }
        let mut hash = [0; MAX_HASH_BYTES];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            match (hex_digit(pair[0]), hex_digit(pair[1])) {
                (Some(high), Some(low)) => *byte = high << 4 | low,
                _ => return Err(ContentIdError::Digit { text: text.chars().take(80).collect() }),
            }
        }
        Self::new(prefix, &hash[..len])
    }
}

/// The value of a hexadecimal digit of either case.
pub(crate) fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Appends `bytes` in lower-case hexadecimal.
pub(crate) fn push_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

/// `bytes` in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len() * 2);
    push_hex(bytes, &mut out);
    String::from_utf8(out).expect("digits are ASCII")
}

impl ContentId {
    /// Appends the text form without going through the formatting machinery.
    pub fn write_text(&self, out: &mut Vec<u8>) {
        if self.prefix != 0 {
            out.push(self.prefix);
        }
        push_hex(self.hash(), out);
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(2 * MAX_HASH_BYTES + 1);
        self.write_text(&mut text);
        f.pad(std::str::from_utf8(&text).expect("a content ID is ASCII"))
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for ContentId {
    fn eq(&self, other: &Self) -> bool {
        self.prefix == other.prefix && self.hash() == other.hash()
    }
}

impl Eq for ContentId {}

impl Hash for ContentId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u8(self.prefix);
        state.write(self.hash());
    }
}

impl PartialOrd for ContentId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ContentId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.prefix.cmp(&other.prefix).then_with(|| self.hash().cmp(other.hash()))
    }
}

/// The name of an object: a content, and how its bytes are to be understood (kopia-format 5.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// How many index streams lie between this name and the bytes; 0 is a direct object.
    pub indirection: u8,
    /// The content holds a compression header and stream at object level (`Z`); never together with indirection.
    pub compressed: bool,
    /// The content that holds the bytes, or the outermost index stream.
    pub content: ContentId,
}

/// Why text is not the name of an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectIdError {
    /// The empty name means that there is no object.
    #[error("the empty object ID names no object")]
    Empty,
    /// More levels of index streams than any real object has.
    #[error("the object ID has more than {MAX_INDIRECTION} levels of indirection")]
    TooDeep,
    /// `Z` after `I`, which the format does not allow.
    #[error("the object ID is both indirect and compressed")]
    CompressedIndirect,
    /// The rest is no content ID.
    #[error("the object ID does not end in a content ID")]
    Content(#[source] ContentIdError),
}

/// Levels of indirection that are followed. Three levels of stock's smallest segments already exceed 2^64 bytes.
pub const MAX_INDIRECTION: u8 = 16;

impl ObjectId {
    /// The object whose bytes are those of one content.
    pub fn direct(content: ContentId) -> Self {
        Self { indirection: 0, compressed: false, content }
    }

    /// Appends the text form.
    pub fn write_text(&self, out: &mut Vec<u8>) {
        out.extend(std::iter::repeat_n(b'I', usize::from(self.indirection)));
        if self.compressed {
            out.push(b'Z');
        }
        self.content.write_text(out);
    }

    /// What this index stream describes: an `IIx…` is read by way of the `Ix…` of the same content.
    /// `None` for a direct object.
    pub fn index_stream(&self) -> Option<ObjectId> {
        Some(Self { indirection: self.indirection.checked_sub(1)?, ..*self })
    }
}

impl FromStr for ObjectId {
    type Err = ObjectIdError;

    fn from_str(text: &str) -> Result<Self, ObjectIdError> {
        if text.is_empty() {
            return Err(ObjectIdError::Empty);
        }
        let content = text.trim_start_matches('I');
        let levels = text.len() - content.len();
        let indirection =
            u8::try_from(levels).ok().filter(|levels| *levels <= MAX_INDIRECTION).ok_or(ObjectIdError::TooDeep)?;
        let (compressed, content) = match content.strip_prefix('Z') {
            Some(rest) => (true, rest),
            None => (false, content),
        };
        if compressed && indirection > 0 {
            return Err(ObjectIdError::CompressedIndirect);
        }
        // Very old repositories mark direct objects so. Content IDs are written in lower case, so it is no digit.
        let content = content.strip_prefix('D').unwrap_or(content);
        Ok(Self { indirection, compressed, content: content.parse().map_err(ObjectIdError::Content)? })
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(2 * MAX_HASH_BYTES + 8);
        self.write_text(&mut text);
        f.pad(std::str::from_utf8(&text).expect("an object ID is ASCII"))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ids_are_read_strictly_and_written_in_lower_case() {
        for (text, written) in [
            ("00112233445566778899aabbccddeeff", Some("00112233445566778899aabbccddeeff")),
            ("k00112233445566778899aabbccddeeff", Some("k00112233445566778899aabbccddeeff")),
            ("00112233445566778899AABBCCDDEEFF", Some("00112233445566778899aabbccddeeff")),
            ("ab", Some("ab")),
            ("zab", Some("zab")),
            (&"ab".repeat(32), Some(&*"ab".repeat(32))),
            (&"ab".repeat(33), None),
            ("", None),
            ("k", None),
            ("a00", None),
            ("K00", None),
            ("{00", None),
            ("0g", None),
            ("é", None),
            ("kké", None),
        ] {
            assert_eq!(text.parse::<ContentId>().ok().map(|id| id.to_string()).as_deref(), written, "{text:?}");
        }
    }

    #[test]
    fn keys_sort_as_texts_and_return_the_same_id() {
        let mut ids: Vec<ContentId> = ["x00ff", "g0000", "0000", "ffff", "00ff", "gfff0", "zabcd"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        ids.sort();
        let texts: Vec<String> = ids.iter().map(ContentId::to_string).collect();
        assert!(texts.is_sorted(), "{texts:?}");
        for id in &ids {
            let mut key = Vec::new();
            id.write_key(&mut key);
            assert_eq!(ContentId::from_key(&key).unwrap(), *id);
            assert_eq!(id.cmp_key(&key), std::cmp::Ordering::Equal);
            assert_eq!(key.len(), id.key_len());
            for other in &ids {
                let mut other_key = Vec::new();
                other.write_key(&mut other_key);
                assert_eq!(id.cmp_key(&other_key), id.cmp(other), "{id} against {other}");
            }
        }
        assert!(ContentId::from_key(&[]).is_err());
        assert!(ContentId::from_key(&[0]).is_err());
        assert!(ContentId::from_key(b"a0").is_err());
    }

    #[test]
    fn the_initialisation_vector_is_the_end_of_the_hash() {
        let hash: Vec<u8> = (0..32).collect();
        assert_eq!(ContentId::new(None, &hash).unwrap().iv(), hash[16..]);
        assert_eq!(ContentId::new(Some(b'k'), &hash[..28]).unwrap().iv(), hash[12..28]);
        assert_eq!(ContentId::new(None, &hash[..16]).unwrap().iv(), hash[..16]);
    }

    #[test]
    fn object_ids_are_read_and_written() {
        for (text, indirection, compressed, written) in [
            ("00ff", 0, false, "00ff"),
            ("Ix00ff", 1, false, "Ix00ff"),
            ("IIx00ff", 2, false, "IIx00ff"),
            ("Z00ff", 0, true, "Z00ff"),
            ("D00ff", 0, false, "00ff"),
            ("IDx00ff", 1, false, "Ix00ff"),
            ("ZD00ff", 0, true, "Z00ff"),
        ] {
            let id: ObjectId = text.parse().expect(text);
            assert_eq!((id.indirection, id.compressed, &*id.to_string()), (indirection, compressed, written), "{text}");
        }
        for text in ["", "I", "IZ00ff", "x", "00f", "0I0ff", &format!("{}00ff", "I".repeat(17))] {
            assert!(text.parse::<ObjectId>().is_err(), "{text}");
        }
        let stream = "IIx00ff".parse::<ObjectId>().unwrap().index_stream().unwrap();
        assert_eq!(stream.to_string(), "Ix00ff");
        assert_eq!(stream.index_stream().unwrap().to_string(), "x00ff");
        assert_eq!(stream.index_stream().unwrap().index_stream(), None);
    }
}

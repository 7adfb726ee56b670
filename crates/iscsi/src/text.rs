//! Text of negotiations: `Key=Value`, each ended by a zero byte (RFC 7143 6.1).

use crate::wire::MAX_TEXT_BYTES;

/// Longest key.
const MAX_KEY_BYTES: usize = 63;
/// Longest value: what a binary value may take in hex; all others are far shorter.
const MAX_VALUE_BYTES: usize = 8192;

/// Text that is no list of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("negotiation text is malformed")]
pub(crate) struct MalformedText;

/// Splits text into pairs, in order. Repeated keys are the caller's to judge.
pub(crate) fn pairs(text: &[u8]) -> Result<Vec<(&str, &str)>, MalformedText> {
    let text = std::str::from_utf8(text).map_err(|_| MalformedText)?;
    // The last pair may lack its zero: some initiators count on the padding. Empty pieces are padding.
    text.split('\0').filter(|piece| !piece.is_empty()).map(pair).collect()
}

fn pair(piece: &str) -> Result<(&str, &str), MalformedText> {
    let (key, value) = piece.split_once('=').ok_or(MalformedText)?;
    let of_key = |byte: u8| byte.is_ascii_alphanumeric() || b".-+@_#".contains(&byte);
    let fits = (1..=MAX_KEY_BYTES).contains(&key.len()) && value.len() <= MAX_VALUE_BYTES;
    (fits && key.bytes().all(of_key)).then_some((key, value)).ok_or(MalformedText)
}

/// Text under construction.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Text(Vec<u8>);

impl Text {
    pub(crate) fn push(&mut self, key: &str, value: &str) {
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Text that comes in pieces, because its sender set the continue bit.
#[derive(Debug, Default)]
pub(crate) struct Pieces(Vec<u8>);

impl Pieces {
    /// Adds a piece; refused when all of them would be longer than any honest negotiation.
    pub(crate) fn add(&mut self, piece: &[u8]) -> Result<(), MalformedText> {
        if self.0.len() + piece.len() > MAX_TEXT_BYTES {
            return Err(MalformedText);
        }
        self.0.extend_from_slice(piece);
        Ok(())
    }

    /// Everything so far; afterwards there is nothing.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

/// A number in decimal or, after `0x`, in hex.
pub(crate) fn number(value: &str) -> Option<u64> {
    let (digits, radix) = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (value, 10),
    };
    // The standard parser would take a sign.
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// A binary value: hex after `0x`, where the first digit may stand alone, or base64 after `0b`.
pub(crate) fn binary(value: &str) -> Option<Vec<u8>> {
    let (form, digits) = value.split_at_checked(2)?;
    match form {
        "0x" | "0X" => hex(digits),
        "0b" | "0B" => base64(digits),
        _ => None,
    }
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        digits.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    // From the end, so that an odd count leaves the single digit at the start.
    let mut bytes: Vec<u8> =
        digits?.rchunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    bytes.reverse();
    Some(bytes)
}

fn base64(digits: &str) -> Option<Vec<u8>> {
    let bare = digits.trim_end_matches('=');
    if !digits.len().is_multiple_of(4) || digits.len() - bare.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(bare.len() / 4 * 3 + 2);
    for group in bare.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for byte in group {
            let digit = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(digit);
        }
        match group.len() {
            4 => bytes.extend_from_slice(&bits.to_be_bytes()[1..]),
            3 => bytes.extend_from_slice(&(bits >> 2).to_be_bytes()[2..]),
            2 => bytes.push((bits >> 4) as u8),
            _ => return None,
        }
    }
    Some(bytes)
}

/// As a binary value in hex.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_splits_into_pairs_or_is_refused() {
        let long_key = format!("{}=1", "K".repeat(64));
        let long_value = format!("K={}", "v".repeat(8193));
        for (text, expected) in [
            ("", Ok(vec![])),
            ("\0\0\0", Ok(vec![])),
            ("A=1\0B=2\0", Ok(vec![("A", "1"), ("B", "2")])),
            ("A=1\0B=a=b", Ok(vec![("A", "1"), ("B", "a=b")])),
            ("A=\0", Ok(vec![("A", "")])),
            ("X-com.example=é\0", Ok(vec![("X-com.example", "é")])),
            ("A\0", Err(MalformedText)),
            ("=1\0", Err(MalformedText)),
            ("A B=1\0", Err(MalformedText)),
            (&long_key, Err(MalformedText)),
            (&long_value, Err(MalformedText)),
        ] {
            assert_eq!(pairs(text.as_bytes()), expected, "{text:.20?}");
        }
        assert_eq!(pairs(b"A=\xFF\0"), Err(MalformedText));
    }

    #[test]
    fn numbers() {
        for (value, expected) in [
            ("0", Some(0)),
            ("0262144", Some(262_144)),
            ("0x40000", Some(262_144)),
            ("0XfF", Some(255)),
            ("18446744073709551616", None),
            ("", None),
            ("0x", None),
            ("+1", None),
            ("-1", None),
            ("1f", None),
            ("1 ", None),
        ] {
            assert_eq!(number(value), expected, "{value:?}");
        }
    }

    #[test]
    fn binary_values_in_both_forms() {
        for (value, expected) in [
            ("0x", Some(&b""[..])),
            ("0x0102fF", Some(&[1, 2, 255])),
            ("0x102", Some(&[1, 2])),
            ("0bAQL/", Some(&[1, 2, 255])),
            ("0BAQI=", Some(&[1, 2])),
            ("0bAQ==", Some(&[1])),
            ("0bA===", None),
            ("0bAQI", None),
            ("0b====", None),
            ("0bA*==", None),
            ("0x1g", None),
            ("0102", None),
            ("é", None),
            ("0", None),
        ] {
            assert_eq!(binary(value).as_deref(), expected, "{value:?}");
        }
        assert_eq!(binary(&to_hex(&[0, 0x1f, 0xff])), Some(vec![0, 0x1f, 0xff]));
    }
}

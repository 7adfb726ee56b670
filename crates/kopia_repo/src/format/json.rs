//! JSON as Go's `encoding/json` writes and reads it, where that differs from `serde_json`.

use serde::{Deserialize, Deserializer, Serialize};

/// `value` as compact JSON with the characters escaped that Go escapes (kopia-format 0): `<`, `>`, `&`, U+2028, U+2029.
///
/// # Panics
/// If the value cannot be JSON at all, such as a map whose keys are no strings.
pub(crate) fn to_go_json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let plain = serde_json::to_vec(value).expect("the value is made of strings, numbers, lists and structs");
    escape_as_go(plain)
}

/// Outside of strings none of the escaped characters can occur, so the text need not be parsed.
fn escape_as_go(plain: Vec<u8>) -> Vec<u8> {
    let special = |byte: &u8| matches!(byte, b'<' | b'>' | b'&' | 0xe2);
    if !plain.iter().any(special) {
        return plain;
    }
    let mut out = Vec::with_capacity(plain.len() + 32);
    let mut rest = plain.as_slice();
    while let Some(at) = rest.iter().position(special) {
        out.extend_from_slice(&rest[..at]);
        let (escape, taken): (&[u8], usize) = match &rest[at..] {
            [b'<', ..] => (b"\\u003c", 1),
            [b'>', ..] => (b"\\u003e", 1),
            [b'&', ..] => (b"\\u0026", 1),
            [0xe2, 0x80, 0xa8, ..] => (b"\\u2028", 3),
            [0xe2, 0x80, 0xa9, ..] => (b"\\u2029", 3),
            other => (&other[..1], 1),
        };
        out.extend_from_slice(escape);
        rest = &rest[at + taken..];
    }
    out.extend_from_slice(rest);
    out
}

/// Takes `null` for the value that an absent key has, as Go does for every type.
pub(crate) fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    input: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

/// Whether a value is what an absent key means.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Byte arrays, which Go writes as standard base64 with padding.
pub(crate) mod base64 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], output: S) -> Result<S::Ok, S::Error> {
        output.serialize_str(&encode(bytes))
    }

    pub(crate) fn deserialize<'de, T: From<Vec<u8>>, D: Deserializer<'de>>(input: D) -> Result<T, D::Error> {
        let text: Option<std::borrow::Cow<'de, str>> = Option::deserialize(input)?;
        decode(text.as_deref().unwrap_or_default()).map(T::from).ok_or_else(|| D::Error::custom("not base64"))
    }

    pub(crate) fn encode(bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
        for chunk in bytes.chunks(3) {
            let mut group = [0; 4];
            group[1..=chunk.len()].copy_from_slice(chunk);
            let group = u32::from_be_bytes(group);
            for digit in 0..4 {
                if digit <= chunk.len() {
                    text.push(char::from(ALPHABET[(group >> (18 - 6 * digit) & 63) as usize]));
                } else {
                    text.push('=');
                }
            }
        }
        text
    }

    pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
        // Go's decoder skips line breaks.
        let digits: Vec<u8> = text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
        if !digits.len().is_multiple_of(4) {
            return None;
        }
        let padding = digits.iter().rev().take_while(|byte| **byte == b'=').count();
        if padding > 2 {
            return None;
        }
        let digits = &digits[..digits.len() - padding];
        let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
        for chunk in digits.chunks(4) {
            let mut group: u32 = 0;
            for (place, digit) in chunk.iter().enumerate() {
                let value = ALPHABET.iter().position(|known| known == digit)?;
                group |= (value as u32) << (18 - 6 * place);
            }
            bytes.extend_from_slice(&group.to_be_bytes()[1..chunk.len()]);
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_characters_that_go_escapes_are_escaped() {
        for (text, expected) in [
            ("plain", r#""plain""#),
            ("<a>&\"\\\n\u{7f}", r#""\u003ca\u003e\u0026\"\\\n"#.to_owned().as_str()),
            ("\u{2028}x\u{2029}", r#""\u2028x\u2029""#),
            ("\u{2027}\u{202a}€â", "\"\u{2027}\u{202a}€â\""),
            ("\u{1}\u{8}\u{c}", r#""\u0001\b\f""#),
        ] {
            let written = String::from_utf8(to_go_json(text)).unwrap();
            assert!(written.starts_with(expected), "{text:?} is {written}");
            assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
        }
    }

    #[test]
    fn base64_both_ways() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foob", "Zm9vYg=="),
            (&[0xfb, 0xff, 0xfe], "+//+"),
        ] {
            assert_eq!(base64::encode(bytes), text);
            assert_eq!(base64::decode(text).as_deref(), Some(bytes), "{text}");
        }
        for text in ["Z", "Zg", "Zg=", "Z===", "====", "Zg==Zg==", "Zm9*", "-_-_"] {
            assert_eq!(base64::decode(text), None, "{text}");
        }
    }
}

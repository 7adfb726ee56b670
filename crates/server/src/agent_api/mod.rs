//! What agents call (spec control-api 1, 2): each function reads its fields, asks `runs` or the database, and answers.

pub mod carried;
pub mod commands;
pub mod device_code;
pub mod discover;
pub mod enrol;
pub mod events;
pub mod repositories;
pub mod restore_info;
pub mod runs;
pub mod small;
pub mod waiting;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use serde_json::Value;
use std::io::Read as _;

use crate::failure::{Code, Failure};

/// The JSON in a compact field (0.4), inflated to at most `most` bytes and 200 times its size.
pub fn compact(encoded: &str, encoding: Option<&str>, most: usize) -> Result<Value, Failure> {
    let bytes = inflate(encoded, encoding.unwrap_or("base64"), most)?;
    serde_json::from_slice(&bytes).map_err(|_| Failure::with(Code::BadEncoding, "The decoded text is no JSON"))
}

/// The bytes in a compact field.
pub fn inflate(encoded: &str, encoding: &str, most: usize) -> Result<Vec<u8>, Failure> {
    let bad = |why: &str| Failure::with(Code::BadEncoding, why);
    let bytes = STANDARD.decode(encoded.trim()).map_err(|_| bad("The text is no base64"))?;
    match encoding {
        "base64" => Ok(bytes),
        "gzip+base64" | "gzip" | "gz+b64" => {
            let allowed = most.min(bytes.len().saturating_mul(200));
            let mut inflated = Vec::new();
            let read = GzDecoder::new(bytes.as_slice()).take(allowed as u64 + 1).read_to_end(&mut inflated);
            read.map_err(|_| bad("The bytes are no gzip"))?;
            if inflated.len() > allowed { Err(bad("The text is larger than it may be")) } else { Ok(inflated) }
        }
        _ => Err(bad("The encoding is neither base64 nor gzip+base64")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(bytes: &[u8]) -> String {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).expect("to memory");
        STANDARD.encode(encoder.finish().expect("to memory"))
    }

    #[test]
    fn compact_fields_are_bounded() {
        let plain = STANDARD.encode(b"[1]");
        for (case, encoded, encoding, expected) in [
            ("base64", plain.clone(), Some("base64"), Some("[1]")),
            ("by default", plain.clone(), None, Some("[1]")),
            ("gzip", gzip(b"[2]"), Some("gzip+base64"), Some("[2]")),
            ("its other name", gzip(b"[2]"), Some("gz+b64"), Some("[2]")),
            ("another encoding", plain, Some("rot13"), None),
            ("no base64", "%%".into(), None, None),
            ("no gzip", STANDARD.encode(b"[1]"), Some("gzip"), None),
            ("too large", gzip(format!("[{}1]", "1,".repeat(600)).as_bytes()), Some("gzip"), None),
            ("too well packed", gzip(&vec![b' '; 900_000]), Some("gzip"), None),
            ("no JSON", STANDARD.encode(b"{"), None, None),
        ] {
            let most = if case == "too well packed" { 1 << 20 } else { 1000 };
            let got = compact(&encoded, encoding, most).ok().map(|value| value.to_string());
            assert_eq!(got.as_deref(), expected, "{case}");
        }
    }
}

//! GUIDs as VHDX stores them.

use std::fmt;
use std::str::FromStr;

/// A GUID in its stored form: the first 32-bit and the next two 16-bit groups little-endian, the
/// last eight bytes in text order (MS-VHDX 2.1 by way of MS-DTYP 2.3.4.2).
///
/// Versions and variants are never looked at: many writers put them in odd places. The order is
/// that of the stored bytes, which has no meaning beyond being total.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Guid([u8; 16]);

impl Guid {
    /// All zero: "no log", "no second parent".
    pub const ZERO: Guid = Guid([0; 16]);

    /// From the 16 bytes found in a file.
    pub const fn from_stored(bytes: [u8; 16]) -> Self {
        Guid(bytes)
    }

    /// The 16 bytes to put into a file.
    pub const fn to_stored(self) -> [u8; 16] {
        self.0
    }

    /// From a GUID written as one number, as in `0x2DC27766_F623_4200_9D64_115E9BFD4A08`.
    pub const fn from_u128(value: u128) -> Self {
        let b = value.to_be_bytes();
        Guid([b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]])
    }

    /// A new random (version 4) GUID.
    pub fn random() -> Self {
        Guid(uuid::Builder::from_random_bytes(random::bytes()).into_uuid().to_bytes_le())
    }

    /// Whether this is [`Guid::ZERO`].
    pub fn is_zero(self) -> bool {
        self == Guid::ZERO
    }

    /// Lower case in braces, the form of a parent locator's `parent_linkage`.
    pub fn braced(self) -> String {
        format!("{{{self}}}")
    }
}

impl fmt::Display for Guid {
    /// Lower case with hyphens, without braces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes_le(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a GUID of 32 hexadecimal digits in the groups 8-4-4-4-12.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a GUID")]
pub struct ParseGuidError {
    text: String,
}

impl FromStr for Guid {
    type Err = ParseGuidError;

    /// Accepts upper and lower case, with or without braces; nothing else around it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseGuidError { text: text.chars().take(64).collect() };
        let inner = match text.strip_prefix('{') {
            Some(rest) => rest.strip_suffix('}').ok_or_else(bad)?,
            None => text,
        };
        if inner.len() != 36 {
            return Err(bad());
        }
        let parsed = uuid::Uuid::try_parse(inner).map_err(|_| bad())?;
        Ok(Guid(parsed.to_bytes_le()))
    }
}

impl From<uuid::Uuid> for Guid {
    fn from(value: uuid::Uuid) -> Self {
        Guid(value.to_bytes_le())
    }
}

impl From<Guid> for uuid::Uuid {
    fn from(value: Guid) -> Self {
        uuid::Uuid::from_bytes_le(value.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_form_is_mixed_endian() {
        let guid: Guid = "2DC27766-F623-4200-9D64-115E9BFD4A08".parse().unwrap();
        let stored = [0x66, 0x77, 0xC2, 0x2D, 0x23, 0xF6, 0x00, 0x42, 0x9D, 0x64, 0x11, 0x5E, 0x9B, 0xFD, 0x4A, 0x08];
        assert_eq!(guid.to_stored(), stored);
        assert_eq!(guid, Guid::from_u128(0x2DC27766_F623_4200_9D64_115E9BFD4A08));
        assert_eq!(guid.to_string(), "2dc27766-f623-4200-9d64-115e9bfd4a08");
        assert_eq!(guid.braced().parse(), Ok(guid));
    }

    #[test]
    fn what_is_not_a_guid_is_refused() {
        let plain = "2dc27766f62342009d64115e9bfd4a08";
        for text in
            ["", "{", "{}", plain, "{2dc27766-f623-4200-9d64-115e9bfd4a08", "2dc27766-f623-4200-9d64-115e9bfd4a0g"]
        {
            assert!(text.parse::<Guid>().is_err(), "{text:?}");
        }
    }
}

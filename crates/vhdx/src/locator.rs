//! Where a differencing file says its parent is (MS-VHDX 2.6.2.6).

use crate::format::{LOCATOR_TYPE_VHDX, guid_at, u16_at, u32_at};
use crate::{Guid, OpenError};

const HEADER_LEN: usize = 20;
const ENTRY_LEN: usize = 12;
/// More pairs than this are refused; Windows writes five.
const MAX_PAIRS: usize = 256;

/// The content of a VHDX parent locator, or its equivalent of a VHD.
///
/// The paths are what the file claims. They are not to be trusted: see [`ParentSearch`](crate::ParentSearch).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParentLocator {
    /// The parent's DataWriteGuid (VHD: its unique id).
    pub parent_linkage: Guid,
    /// A second identity the parent may have, during a merge; zero when unused.
    pub parent_linkage2: Guid,
    /// Windows path relative to the child's folder, as `.\parent.vhdx`.
    pub relative_path: Option<String>,
    /// Windows path of the form `\\?\Volume{GUID}\path`.
    pub volume_path: Option<String>,
    /// Absolute Windows path.
    pub absolute_win32_path: Option<String>,
}

impl ParentLocator {
    /// Whether a file with this DataWriteGuid is the parent. A zero `parent_linkage2` matches nothing.
    pub fn matches(&self, data_write_guid: Guid) -> bool {
        data_write_guid == self.parent_linkage
            || (!self.parent_linkage2.is_zero() && data_write_guid == self.parent_linkage2)
    }

    /// Reads the item's bytes. Keys this library does not know are passed over.
    pub(crate) fn decode(item: &[u8], item_offset: u64) -> Result<Self, OpenError> {
        let bad = |problem: String| OpenError::corrupt("parent locator", item_offset, problem);
        if item.len() < HEADER_LEN {
            return Err(bad(format!("{} bytes are too few", item.len())));
        }
        let locator_type = guid_at(item, 0);
        if locator_type != LOCATOR_TYPE_VHDX {
            return Err(OpenError::Unsupported { what: format!("parent locator of type {locator_type}") });
        }
        let count = usize::from(u16_at(item, 18));
        if count > MAX_PAIRS {
            return Err(bad(format!("{count} pairs, at most {MAX_PAIRS} expected")));
        }
        let table = item
            .get(HEADER_LEN..HEADER_LEN + count * ENTRY_LEN)
            .ok_or_else(|| bad(format!("{count} pairs do not fit {} bytes", item.len())))?;

        let mut keys: Vec<Vec<u16>> = Vec::with_capacity(count);
        let mut locator = ParentLocator::default();
        let mut linkage = None;
        for (index, entry) in table.chunks_exact(ENTRY_LEN).enumerate() {
            let key = utf16(item, u32_at(entry, 0), u16_at(entry, 8)).map_err(|e| bad(format!("key {index}: {e}")))?;
            let value =
                utf16(item, u32_at(entry, 4), u16_at(entry, 10)).map_err(|e| bad(format!("value {index}: {e}")))?;
            if keys.contains(&key) {
                return Err(bad(format!("key {index} is there twice")));
            }
            let text = || String::from_utf16(&value).map_err(|_| bad(format!("value {index} is not UTF-16")));
            let guid = |text: String| text.parse::<Guid>().map_err(|e| bad(format!("value {index}: {e}")));
            match String::from_utf16_lossy(&key).as_str() {
                "parent_linkage" => linkage = Some(guid(text()?)?),
                "parent_linkage2" => locator.parent_linkage2 = guid(text()?)?,
                "relative_path" => locator.relative_path = Some(text()?),
                "volume_path" => locator.volume_path = Some(text()?),
                "absolute_win32_path" => locator.absolute_win32_path = Some(text()?),
                _ => {}
            }
            keys.push(key);
        }
        locator.parent_linkage = linkage.ok_or_else(|| bad("no parent_linkage".into()))?;
        Ok(locator)
    }

    /// The item's bytes, in the order and packing of Windows. `None` when a value is longer than a length field can say.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        let mut pairs = vec![("parent_linkage", self.parent_linkage.braced())];
        for (key, path) in [
            ("absolute_win32_path", &self.absolute_win32_path),
            ("relative_path", &self.relative_path),
            ("volume_path", &self.volume_path),
        ] {
            // Lengths must not be zero.
            pairs.extend(path.iter().filter(|p| !p.is_empty()).map(|p| (key, p.clone())));
        }
        pairs.push(("parent_linkage2", self.parent_linkage2.braced()));

        let mut table = Vec::from(LOCATOR_TYPE_VHDX.to_stored());
        table.extend_from_slice(&[0, 0]);
        table.extend_from_slice(&(pairs.len() as u16).to_le_bytes());
        let mut strings: Vec<u8> = Vec::new();
        let strings_at = HEADER_LEN + pairs.len() * ENTRY_LEN;
        for (key, value) in &pairs {
            let mut place = |text: &str| {
                let offset = (strings_at + strings.len()) as u32;
                strings.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
                let length = u16::try_from(text.encode_utf16().count() * 2).ok()?;
                Some((offset, length))
            };
            let ((key_offset, key_length), (value_offset, value_length)) = (place(key)?, place(value)?);
            table.extend_from_slice(&key_offset.to_le_bytes());
            table.extend_from_slice(&value_offset.to_le_bytes());
            table.extend_from_slice(&key_length.to_le_bytes());
            table.extend_from_slice(&value_length.to_le_bytes());
        }
        table.append(&mut strings);
        Some(table)
    }
}

fn utf16(item: &[u8], offset: u32, length: u16) -> Result<Vec<u16>, String> {
    let (start, len) = (offset as usize, usize::from(length));
    if offset == 0 || len == 0 || !len.is_multiple_of(2) {
        return Err(format!("offset {offset} and length {length} are not possible"));
    }
    let bytes = start.checked_add(len).and_then(|end| item.get(start..end));
    let bytes = bytes.ok_or_else(|| format!("{length} bytes at {offset} are outside the item"))?;
    let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16_at(pair, 0)).collect();
    if units.contains(&0) {
        return Err("embedded NUL".into());
    }
    Ok(units)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locator() -> ParentLocator {
        ParentLocator {
            parent_linkage: Guid::random(),
            parent_linkage2: Guid::ZERO,
            relative_path: Some(r".\pärent.vhdx".into()),
            volume_path: None,
            absolute_win32_path: Some(r"C:\disks\pärent.vhdx".into()),
        }
    }

    #[test]
    fn round_trip() {
        let locator = locator();
        assert_eq!(ParentLocator::decode(&locator.encode().unwrap(), 0).unwrap(), locator);
    }

    #[test]
    fn zero_linkage2_matches_nothing() {
        let mut locator = locator();
        assert!(locator.matches(locator.parent_linkage));
        assert!(!locator.matches(Guid::ZERO));
        locator.parent_linkage2 = Guid::random();
        assert!(locator.matches(locator.parent_linkage2));
    }

    #[test]
    fn every_truncation_and_wild_field_is_an_error_or_a_locator() {
        let good = locator().encode().unwrap();
        for len in 0..good.len() {
            assert!(ParentLocator::decode(&good[..len], 0).is_err(), "first {len} bytes");
        }
        for at in 0..HEADER_LEN + 4 * ENTRY_LEN {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                let _ = ParentLocator::decode(&bytes, 0);
            }
        }
    }

    #[test]
    fn a_value_too_long_for_its_length_field_is_refused() {
        let long = ParentLocator { relative_path: Some("x".repeat(40_000)), ..locator() };
        assert_eq!(long.encode(), None);
    }
}

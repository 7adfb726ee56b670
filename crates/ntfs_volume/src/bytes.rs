//! Writing little-endian structures.

/// Fields appended one after the other.
pub(crate) trait Put {
    fn u8(&mut self, value: u8) -> &mut Self;
    fn u16(&mut self, value: u16) -> &mut Self;
    fn u32(&mut self, value: u32) -> &mut Self;
    fn u64(&mut self, value: u64) -> &mut Self;
    fn bytes(&mut self, value: &[u8]) -> &mut Self;
    fn text(&mut self, value: &str) -> &mut Self;
    /// Zeroes up to a length.
    fn pad_to(&mut self, len: usize) -> &mut Self;
    /// Zeroes up to a multiple of 8.
    fn align(&mut self) -> &mut Self;
}

impl Put for Vec<u8> {
    fn u8(&mut self, value: u8) -> &mut Self {
        self.push(value);
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.extend_from_slice(value);
        self
    }

    fn text(&mut self, value: &str) -> &mut Self {
        for unit in value.encode_utf16() {
            self.u16(unit);
        }
        self
    }

    fn pad_to(&mut self, len: usize) -> &mut Self {
        debug_assert!(self.len() <= len);
        self.resize(len, 0);
        self
    }

    fn align(&mut self) -> &mut Self {
        let len = self.len().next_multiple_of(8);
        self.pad_to(len)
    }
}

/// Puts fields at an offset of something that has its length already.
pub(crate) fn put_at(bytes: &mut [u8], offset: usize, field: &[u8]) {
    bytes[offset..offset + field.len()].copy_from_slice(field);
}

/// Installs an update sequence: the last two bytes of every 512-byte piece move into the array that the header names, and
/// its number takes their place, so that a torn write shows (spec block-serving D.5).
pub(crate) fn protect(block: &mut [u8], number: u16) {
    let field = |block: &[u8], at: usize| usize::from(u16::from_le_bytes([block[at], block[at + 1]]));
    let (array, count) = (field(block, 4), field(block, 6));
    put_at(block, array, &number.to_le_bytes());
    for piece in 1..count {
        let end = piece * 512 - 2;
        block.copy_within(end..end + 2, array + 2 * piece);
        put_at(block, end, &number.to_le_bytes());
    }
}

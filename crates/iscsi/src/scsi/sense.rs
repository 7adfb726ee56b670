//! Status and sense data: how a command ended (SPC-4 4.5, SAM-5 5.3).

/// Status codes.
pub(crate) mod status {
    pub(crate) const GOOD: u8 = 0x00;
    pub(crate) const CHECK_CONDITION: u8 = 0x02;
    pub(crate) const BUSY: u8 = 0x08;
    pub(crate) const RESERVATION_CONFLICT: u8 = 0x18;
}

/// Why a command was not carried out: key, additional code and its qualifier, and where to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sense {
    key: u8,
    code: u8,
    qualifier: u8,
    /// The logical block of a bad read, or the offset of a difference.
    information: Option<u64>,
    /// The byte of the CDB that is wrong.
    field: Option<u16>,
}

impl Sense {
    pub(crate) const NONE: Self = Self::new(0, 0, 0);
    pub(crate) const WRITE_ERROR: Self = Self::new(3, 0x0C, 0);
    pub(crate) const PARAMETER_LIST_LENGTH: Self = Self::new(5, 0x1A, 0);
    pub(crate) const INVALID_OPCODE: Self = Self::new(5, 0x20, 0);
    pub(crate) const OUT_OF_RANGE: Self = Self::new(5, 0x21, 0);
    pub(crate) const NO_SUCH_UNIT: Self = Self::new(5, 0x25, 0);
    pub(crate) const INVALID_PARAMETER: Self = Self::new(5, 0x26, 0);
    pub(crate) const INVALID_RELEASE: Self = Self::new(5, 0x26, 4);
    pub(crate) const SAVING_NOT_SUPPORTED: Self = Self::new(5, 0x39, 0);
    pub(crate) const NO_ROOM_FOR_REGISTRATIONS: Self = Self::new(5, 0x55, 4);
    pub(crate) const WRITE_PROTECTED: Self = Self::new(7, 0x27, 0);
    pub(crate) const SPACE_ALLOCATION_FAILED: Self = Self::new(7, 0x27, 7);
    pub(crate) const UNEXPECTED_UNSOLICITED_DATA: Self = Self::new(0x0B, 0x0C, 0x0C);
    pub(crate) const DATA_DIGEST: Self = Self::new(0x0B, 0x47, 5);
    pub(crate) const DATA_PHASE: Self = Self::new(0x0B, 0x4B, 0);

    const fn new(key: u8, code: u8, qualifier: u8) -> Self {
        Self { key, code, qualifier, information: None, field: None }
    }

    /// A bad field of the CDB, by its first byte.
    pub(crate) const fn invalid_field(byte: u16) -> Self {
        Self { field: Some(byte), ..Self::new(5, 0x24, 0) }
    }

    /// Something happened that every initiator is told once.
    pub(crate) const fn attention(code: u8, qualifier: u8) -> Self {
        Self::new(6, code, qualifier)
    }

    pub(crate) const fn unrecovered_read(block: u64) -> Self {
        Self { information: Some(block), ..Self::new(3, 0x11, 0) }
    }

    /// `offset` is that of the first byte that differs.
    pub(crate) const fn miscompare(offset: u64) -> Self {
        Self { information: Some(offset), ..Self::new(0x0E, 0x1D, 0) }
    }

    /// As sense data, in the fixed form or the one made of descriptors.
    pub(crate) fn encode(&self, descriptors: bool) -> Vec<u8> {
        if descriptors { self.encode_descriptors() } else { self.encode_fixed() }
    }

    fn encode_fixed(&self) -> Vec<u8> {
        let mut data = vec![0; 18];
        // What is too large for the field is left out.
        let information = self.information.and_then(|value| u32::try_from(value).ok());
        data[0] = if information.is_some() { 0xF0 } else { 0x70 };
        data[2] = self.key;
        data[3..7].copy_from_slice(&information.unwrap_or(0).to_be_bytes());
        data[7] = 10;
        data[12] = self.code;
        data[13] = self.qualifier;
        if let Some(field) = self.field {
            data[15] = 0xC0;
            data[16..18].copy_from_slice(&field.to_be_bytes());
        }
        data
    }

    fn encode_descriptors(&self) -> Vec<u8> {
        let mut data = vec![0x72, self.key, self.code, self.qualifier, 0, 0, 0, 0];
        if let Some(information) = self.information {
            data.extend([0x00, 0x0A, 0x80, 0]);
            data.extend(information.to_be_bytes());
        }
        if let Some(field) = self.field {
            data.extend([0x02, 0x06, 0, 0, 0xC0]);
            data.extend(field.to_be_bytes());
            data.push(0);
        }
        data[7] = (data.len() - 8) as u8;
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let none = [0, 0, 0, 0];
        for (sense, fixed, descriptors) in [
            (Sense::INVALID_OPCODE, (0x70, 5, none, 0x20, 0, [0, 0, 0]), vec![0x72, 5, 0x20, 0, 0, 0, 0, 0]),
            (
                Sense::invalid_field(2),
                (0x70, 5, none, 0x24, 0, [0xC0, 0, 2]),
                vec![0x72, 5, 0x24, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0xC0, 0, 2, 0],
            ),
            (
                Sense::unrecovered_read(0x0102_0304),
                (0xF0, 3, [1, 2, 3, 4], 0x11, 0, [0, 0, 0]),
                vec![0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 0, 1, 2, 3, 4],
            ),
            (
                Sense::unrecovered_read(1 << 32),
                (0x70, 3, none, 0x11, 0, [0, 0, 0]),
                vec![0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0],
            ),
        ] {
            let data = sense.encode(false);
            let seen = (
                data[0],
                data[2],
                [data[3], data[4], data[5], data[6]],
                data[12],
                data[13],
                [data[15], data[16], data[17]],
            );
            assert_eq!((data.len(), data[7]), (18, 10));
            assert_eq!(seen, fixed, "{sense:?}");
            assert_eq!(sense.encode(true), descriptors, "{sense:?}");
        }
    }
}

//! The layout on the wire: numbers of the protocol and the basic header. Everything is big-endian (RFC 7143 11, spec B.2).

/// Length of a basic header segment.
pub(crate) const HEADER_LEN: usize = 48;
/// A tag that names nothing.
pub(crate) const NO_TAG: u32 = u32::MAX;
/// Longest data segment that we accept after login, as we declare it.
pub(crate) const MAX_DATA_SEGMENT_BYTES: u32 = 262_144;
/// Longest data segment before that: the default, for nothing is agreed yet.
pub(crate) const MAX_LOGIN_SEGMENT_BYTES: u32 = 8192;
/// Text of one negotiation, however many PDUs it takes.
pub(crate) const MAX_TEXT_BYTES: usize = 65_536;
/// The only portal group there is.
pub(crate) const PORTAL_GROUP: u16 = 1;

pub(crate) mod opcode {
    pub(crate) const NOP_OUT: u8 = 0x00;
    pub(crate) const SCSI_COMMAND: u8 = 0x01;
    pub(crate) const TASK_MANAGEMENT: u8 = 0x02;
    pub(crate) const LOGIN: u8 = 0x03;
    pub(crate) const TEXT: u8 = 0x04;
    pub(crate) const DATA_OUT: u8 = 0x05;
    pub(crate) const LOGOUT: u8 = 0x06;
    pub(crate) const NOP_IN: u8 = 0x20;
    pub(crate) const SCSI_RESPONSE: u8 = 0x21;
    pub(crate) const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    pub(crate) const LOGIN_RESPONSE: u8 = 0x23;
    pub(crate) const TEXT_RESPONSE: u8 = 0x24;
    pub(crate) const DATA_IN: u8 = 0x25;
    pub(crate) const LOGOUT_RESPONSE: u8 = 0x26;
    pub(crate) const READY_TO_TRANSFER: u8 = 0x31;
    pub(crate) const ASYNC_MESSAGE: u8 = 0x32;
    pub(crate) const REJECT: u8 = 0x3F;
}

/// Where fields begin.
pub(crate) mod at {
    pub(crate) const FLAGS: usize = 1;
    /// Response, reason of a rejection, or version.
    pub(crate) const RESPONSE: usize = 2;
    pub(crate) const STATUS: usize = 3;
    pub(crate) const LUN: usize = 8;
    pub(crate) const ISID: usize = 8;
    pub(crate) const TSIH: usize = 14;
    pub(crate) const ITT: usize = 16;
    pub(crate) const TTT: usize = 20;
    /// Expected data transfer length of a command.
    pub(crate) const EXPECTED_LEN: usize = 20;
    pub(crate) const CID: usize = 20;
    pub(crate) const REFERENCED_TAG: usize = 20;
    pub(crate) const CMD_SN: usize = 24;
    pub(crate) const STAT_SN: usize = 24;
    pub(crate) const EXP_CMD_SN: usize = 28;
    pub(crate) const MAX_CMD_SN: usize = 32;
    pub(crate) const CDB: usize = 32;
    pub(crate) const REF_CMD_SN: usize = 32;
    /// Also R2TSN, ExpDataSN, the status class of a login, and the event of an asynchronous message.
    pub(crate) const DATA_SN: usize = 36;
    pub(crate) const OFFSET: usize = 40;
    /// Residual count, or the desired length of an R2T.
    pub(crate) const RESIDUAL: usize = 44;
}

/// Bits of byte 1.
pub(crate) mod flag {
    pub(crate) const FINAL: u8 = 0x80;
    pub(crate) const CONTINUE: u8 = 0x40;
    pub(crate) const READ: u8 = 0x40;
    pub(crate) const WRITE: u8 = 0x20;
    pub(crate) const OVERFLOW: u8 = 0x04;
    pub(crate) const UNDERFLOW: u8 = 0x02;
    pub(crate) const STATUS: u8 = 0x01;
}

/// Reasons of a rejection.
pub(crate) mod reject {
    pub(crate) const DATA_DIGEST: u8 = 0x02;
    pub(crate) const PROTOCOL_ERROR: u8 = 0x04;
    pub(crate) const NOT_SUPPORTED: u8 = 0x05;
    pub(crate) const TOO_MANY_IMMEDIATE: u8 = 0x06;
    pub(crate) const INVALID_FIELD: u8 = 0x09;
}

/// A basic header segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header(pub(crate) [u8; HEADER_LEN]);

impl Header {
    pub(crate) fn new(opcode: u8, flags: u8, tag: u32) -> Self {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = opcode;
        bytes[at::FLAGS] = flags;
        Self(bytes).with_u32(at::ITT, tag)
    }

    pub(crate) fn opcode(&self) -> u8 {
        self.0[0] & 0x3F
    }

    /// Not counted in the command window.
    pub(crate) fn is_immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.0[at::FLAGS] & flag != 0
    }

    pub(crate) fn tag(&self) -> u32 {
        self.u32(at::ITT)
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    pub(crate) fn set_u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn with_u8(mut self, at: usize, value: u8) -> Self {
        self.0[at] = value;
        self
    }

    pub(crate) fn with_u16(mut self, at: usize, value: u16) -> Self {
        self.0[at..at + 2].copy_from_slice(&value.to_be_bytes());
        self
    }

    pub(crate) fn with_u32(mut self, at: usize, value: u32) -> Self {
        self.set_u32(at, value);
        self
    }

    pub(crate) fn with_lun(mut self, field: [u8; 8]) -> Self {
        self.0[at::LUN..at::LUN + 8].copy_from_slice(&field);
        self
    }

    pub(crate) fn lun_field(&self) -> [u8; 8] {
        self.array(at::LUN)
    }

    pub(crate) fn cdb(&self) -> [u8; 16] {
        self.array(at::CDB)
    }

    pub(crate) fn isid(&self) -> [u8; 6] {
        self.array(at::ISID)
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|index| self.0[at + index])
    }

    /// Length of the additional header segments.
    pub(crate) fn additional_len(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    /// Length of the data segment, without padding.
    pub(crate) fn data_len(&self) -> u32 {
        u32::from_be_bytes([0, self.0[5], self.0[6], self.0[7]])
    }

    /// The length must fit into 24 bits, as every agreed limit does.
    pub(crate) fn set_data_len(&mut self, len: u32) {
        self.0[5..8].copy_from_slice(&len.to_be_bytes()[1..]);
    }
}

/// The number in a LUN field in either of the two forms that fit one byte of hierarchy (SAM-5 4.7).
pub(crate) fn lun_number(field: [u8; 8]) -> Option<u16> {
    if field[2..].iter().any(|byte| *byte != 0) {
        return None;
    }
    match field[0] >> 6 {
        0 if field[0] == 0 => Some(field[1].into()),
        1 => Some(u16::from_be_bytes([field[0] & 0x3F, field[1]])),
        _ => None,
    }
}

/// Whether `a` comes after `b`, counted in a circle (RFC 1982).
pub(crate) fn is_after(a: u32, b: u32) -> bool {
    (1..1 << 31).contains(&a.wrapping_sub(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lun_fields_in_both_forms() {
        for (field, number) in [
            ([0, 0, 0, 0, 0, 0, 0, 0], Some(0)),
            ([0, 7, 0, 0, 0, 0, 0, 0], Some(7)),
            ([0x40, 7, 0, 0, 0, 0, 0, 0], Some(7)),
            ([0x41, 2, 0, 0, 0, 0, 0, 0], Some(258)),
            ([1, 2, 0, 0, 0, 0, 0, 0], None),
            ([0, 0, 0, 1, 0, 0, 0, 0], None),
            ([0xC1, 1, 0, 0, 0, 0, 0, 0], None),
            ([0x80, 1, 0, 0, 0, 0, 0, 0], None),
        ] {
            assert_eq!(lun_number(field), number, "{field:x?}");
        }
    }

    #[test]
    fn numbers_in_a_circle() {
        for (a, b, after) in [
            (1, 0, true),
            (0, 0, false),
            (0, 1, false),
            (0, u32::MAX, true),
            (u32::MAX, 0, false),
            (0x7FFF_FFFF, 0, true),
            (0x8000_0000, 0, false),
        ] {
            assert_eq!(is_after(a, b), after, "{a:#x} after {b:#x}");
        }
    }
}

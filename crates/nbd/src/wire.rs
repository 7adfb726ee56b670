//! The layout on the wire: numbers of the protocol and its fixed structures. Everything is big-endian.

/// Requests consist of whole sectors of this size.
pub(crate) const SECTOR_BYTES: u64 = 512;
/// What clients should align to.
pub(crate) const PREFERRED_BLOCK_BYTES: u32 = 4096;
/// Longest READ or WRITE.
pub(crate) const MAX_PAYLOAD_BYTES: u32 = 32 << 20;
/// A longer payload is not even discarded.
pub(crate) const MAX_DISCARDED_PAYLOAD_BYTES: u32 = 64 << 20;
/// Longest name, description or message (the protocol's own limit).
pub(crate) const MAX_STRING_BYTES: usize = 4096;

/// "NBDMAGIC".
pub(crate) const GREETING_MAGIC: u64 = 0x4E42_444D_4147_4943;
/// "IHAVEOPT".
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_E889_0455_65A9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668E_33EF;

/// Handshake flags of the server: FIXED_NEWSTYLE, NO_ZEROES.
pub(crate) const HANDSHAKE_FLAGS: u16 = 0b11;
/// Client flags that may be set: the same two.
pub(crate) const KNOWN_CLIENT_FLAGS: u32 = 0b11;
pub(crate) const CLIENT_NO_ZEROES: u32 = 0b10;
/// Zeroes behind the answer to EXPORT_NAME, unless both sides agreed to leave them out.
pub(crate) const EXPORT_NAME_PADDING: usize = 124;

pub(crate) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
}

/// Types of answers to an option.
pub(crate) mod answer {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const ERR_UNSUP: u32 = 0x8000_0001;
    pub(crate) const ERR_POLICY: u32 = 0x8000_0002;
    pub(crate) const ERR_INVALID: u32 = 0x8000_0003;
    pub(crate) const ERR_TLS_REQD: u32 = 0x8000_0005;
    pub(crate) const ERR_UNKNOWN: u32 = 0x8000_0006;
    pub(crate) const ERR_SHUTDOWN: u32 = 0x8000_0007;
    pub(crate) const ERR_TOO_BIG: u32 = 0x8000_0009;
}

pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub(crate) mod transmission {
    pub(crate) const HAS_FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_CACHE: u16 = 1 << 10;
    pub(crate) const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Types of requests.
pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
pub(crate) mod flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
}

/// Types of structured reply chunks.
pub(crate) mod chunk {
    pub(crate) const DONE: u16 = 1;
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    pub(crate) const ERROR: u16 = 0x8001;
    pub(crate) const ERROR_OFFSET: u16 = 0x8002;
}

/// The one context there is.
pub(crate) const BASE_ALLOCATION: &str = "base:allocation";
/// Its number once it was selected.
pub(crate) const BASE_ALLOCATION_ID: u32 = 1;
/// `base:allocation`: hole, and reads as zero.
pub(crate) const STATE_HOLE_AND_ZERO: u32 = 0b11;

/// Error numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Errno {
    Perm = 1,
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
    Shutdown = 108,
}

pub(crate) const REQUEST_LEN: usize = 28;

/// A request without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    /// Comes back with the answer.
    pub(crate) cookie: u64,
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u32,
}

impl Request {
    /// `None` when this is not where a request begins.
    pub(crate) fn decode(bytes: &[u8; REQUEST_LEN]) -> Option<Self> {
        let request = Self {
            flags: u16::from_be_bytes(array_at(bytes, 4)),
            kind: u16::from_be_bytes(array_at(bytes, 6)),
            cookie: u64::from_be_bytes(array_at(bytes, 8)),
            offset_bytes: u64::from_be_bytes(array_at(bytes, 16)),
            len_bytes: u32::from_be_bytes(array_at(bytes, 24)),
        };
        (u32::from_be_bytes(array_at(bytes, 0)) == REQUEST_MAGIC).then_some(request)
    }

    /// Bytes that follow the header.
    pub(crate) fn payload_bytes(&self) -> u32 {
        if self.kind == command::WRITE { self.len_bytes } else { 0 }
    }
}

/// `N` bytes at a place that certainly has them.
pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has N bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_decoded_field_by_field() {
        let mut bytes = [0; REQUEST_LEN];
        bytes[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
        bytes[4..8].copy_from_slice(&[0x01, 0x02, 0x00, 0x01]);
        bytes[8..16].copy_from_slice(b"cookie!!");
        bytes[16..24].copy_from_slice(&0x1122_3344_5566_7788_u64.to_be_bytes());
        bytes[24..].copy_from_slice(&[0, 0, 2, 0]);
        let request = Request::decode(&bytes).unwrap();
        let expected = Request {
            flags: 0x0102,
            kind: command::WRITE,
            cookie: u64::from_be_bytes(*b"cookie!!"),
            offset_bytes: 0x1122_3344_5566_7788,
            len_bytes: 512,
        };
        assert_eq!(request, expected);
        assert_eq!(request.payload_bytes(), 512);
        assert_eq!(Request { kind: command::READ, ..request }.payload_bytes(), 0);
        for bit in 0..32 {
            let mut wrong = bytes;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Request::decode(&wrong), None, "bit {bit} of the magic");
        }
    }
}

//! Replies, as bytes (spec A.5).

use crate::wire::{BASE_ALLOCATION_ID, Errno, MAX_STRING_BYTES, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};

/// Everything of a simple reply but the data of a READ.
pub(crate) fn simple(cookie: u64, errno: u32) -> [u8; 16] {
    let mut reply = [0; 16];
    reply[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    reply[4..8].copy_from_slice(&errno.to_be_bytes());
    reply[8..].copy_from_slice(&cookie.to_be_bytes());
    reply
}

/// Whether another chunk follows for the same request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Before,
    Last,
}

/// The end of a request with nothing more to say.
pub(crate) fn none_chunk(cookie: u64) -> Vec<u8> {
    chunk_header(cookie, Place::Last, chunk::NONE, 0)
}

/// A data chunk without its data, which follows.
pub(crate) fn data_chunk_head(cookie: u64, place: Place, offset_bytes: u64, len_bytes: u32) -> Vec<u8> {
    let mut head = chunk_header(cookie, place, chunk::OFFSET_DATA, 8 + len_bytes);
    head.extend(offset_bytes.to_be_bytes());
    head
}

/// Zeroes that need not be sent.
pub(crate) fn hole_chunk(cookie: u64, place: Place, offset_bytes: u64, len_bytes: u32) -> Vec<u8> {
    let mut reply = chunk_header(cookie, place, chunk::OFFSET_HOLE, 12);
    reply.extend(offset_bytes.to_be_bytes());
    reply.extend(len_bytes.to_be_bytes());
    reply
}

/// What is known of consecutive ranges: length, and flags of `base:allocation`.
pub(crate) fn block_status_chunk(cookie: u64, descriptors: &[(u32, u32)]) -> Vec<u8> {
    // At most a few thousand descriptors.
    let mut reply = chunk_header(cookie, Place::Last, chunk::BLOCK_STATUS, 4 + 8 * descriptors.len() as u32);
    reply.extend(BASE_ALLOCATION_ID.to_be_bytes());
    for (len_bytes, flags) in descriptors {
        reply.extend(len_bytes.to_be_bytes());
        reply.extend(flags.to_be_bytes());
    }
    reply
}

/// A failure, of the whole request or (with an offset) from there on; always the last chunk.
pub(crate) fn error_chunk(cookie: u64, errno: Errno, message: &str, offset_bytes: Option<u64>) -> Vec<u8> {
    let message = shortened(message);
    let (kind, extra) = if offset_bytes.is_some() { (chunk::ERROR_OFFSET, 8) } else { (chunk::ERROR, 0) };
    let mut reply = chunk_header(cookie, Place::Last, kind, 6 + message.len() as u32 + extra);
    reply.extend((errno as u32).to_be_bytes());
    // At most 4096 bytes.
    reply.extend((message.len() as u16).to_be_bytes());
    reply.extend(message.as_bytes());
    reply.extend(offset_bytes.iter().flat_map(|offset| offset.to_be_bytes()));
    reply
}

fn chunk_header(cookie: u64, place: Place, kind: u16, len_bytes: u32) -> Vec<u8> {
    let flags = if place == Place::Last { chunk::DONE } else { 0 };
    let mut header = Vec::with_capacity(32);
    header.extend(STRUCTURED_REPLY_MAGIC.to_be_bytes());
    header.extend(flags.to_be_bytes());
    header.extend(kind.to_be_bytes());
    header.extend(cookie.to_be_bytes());
    header.extend(len_bytes.to_be_bytes());
    header
}

/// The longest beginning that the protocol can carry.
fn shortened(text: &str) -> &str {
    let mut end = text.len().min(MAX_STRING_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_have_the_bytes_of_the_table() {
        let cookie = 0x0102_0304_0506_0708;
        let c = [1, 2, 3, 4, 5, 6, 7, 8];
        let cases: [(&str, Vec<u8>, Vec<u8>); 6] = [
            ("simple", simple(cookie, 28).into(), [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28], &c[..]].concat()),
            ("none", none_chunk(cookie), [&[0x66, 0x8E, 0x33, 0xEF, 0, 1, 0, 0], &c[..], &[0, 0, 0, 0]].concat()),
            (
                "data, more to come",
                data_chunk_head(cookie, Place::Before, 0x200, 0x400),
                [&[0x66, 0x8E, 0x33, 0xEF, 0, 0, 0, 1], &c[..], &[0, 0, 4, 8], &[0, 0, 0, 0, 0, 0, 2, 0]].concat(),
            ),
            (
                "hole",
                hole_chunk(cookie, Place::Last, 0x200, 0x10000),
                [&[0x66, 0x8E, 0x33, 0xEF, 0, 1, 0, 2], &c[..], &[0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 2, 0, 0, 1, 0, 0]]
                    .concat(),
            ),
            (
                "status",
                block_status_chunk(cookie, &[(512, 0), (1024, 3)]),
                [
                    &[0x66, 0x8E, 0x33, 0xEF, 0, 1, 0, 5],
                    &c[..],
                    &[0, 0, 0, 20, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 3],
                ]
                .concat(),
            ),
            (
                "error at an offset",
                error_chunk(cookie, Errno::Io, "no", Some(0x300)),
                [
                    &[0x66, 0x8E, 0x33, 0xEF, 0, 1, 0x80, 2],
                    &c[..],
                    &[0, 0, 0, 16, 0, 0, 0, 5, 0, 2],
                    b"no",
                    &[0, 0, 0, 0, 0, 0, 3, 0],
                ]
                .concat(),
            ),
        ];
        for (case, found, expected) in cases {
            assert_eq!(found, expected, "{case}");
        }
    }

    #[test]
    fn messages_are_cut_between_characters() {
        for (len, kept) in [(0, 0), (4095, 4095), (4096, 4096), (9000, 4096)] {
            assert_eq!(shortened(&"x".repeat(len)).len(), kept, "{len} bytes");
        }
        assert_eq!(shortened(&"é".repeat(3000)).len(), 4096);
        assert_eq!(shortened(&format!("x{}", "é".repeat(3000))).len(), 4095);
    }
}

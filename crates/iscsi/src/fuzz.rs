//! Streams of PDUs and negotiation text as hostile initiators send them, each judged by a second reading of the rules.

use std::io::Cursor;

use crate::pdu::{Digests, Pdu, PduError, write_pdu};
use crate::text::{Text, binary, number, pairs};
use crate::wire::Header;

/// Spec B.1 once more: how long the first PDU of a stream is, or why there is none. `Some(None)` is a PDU that is not
/// to be believed, or too long.
fn measured(stream: &[u8], digests: Digests, max_bytes: usize) -> Option<Option<usize>> {
    let header = stream.get(..48)?;
    let data_at = 48 + 4 * usize::from(header[4]) + if digests.header { 4 } else { 0 };
    let front = stream.get(..data_at)?;
    if digests.header {
        let (signed, digest) = front.split_at(data_at - 4);
        if crc32c::crc32c(signed).to_le_bytes() != digest {
            return Some(None);
        }
    }
    let data = usize::from(header[5]) << 16 | usize::from(header[6]) << 8 | usize::from(header[7]);
    if data > max_bytes {
        return Some(None);
    }
    let digest = if digests.data && data > 0 { 4 } else { 0 };
    let len = data_at + data.div_ceil(4) * 4 + digest;
    stream.get(..len).map(|_| Some(len))
}

fn framing(input: &[u8]) -> u64 {
    let Some((kind, stream)) = input.split_first() else { return 0 };
    let digests = Digests { header: kind & 1 != 0, data: kind & 2 != 0 };
    let max_bytes = if kind & 4 != 0 { 64 } else { 8192 };
    let mut reader = Cursor::new(stream);
    let mut told = Vec::new();
    loop {
        let rest = &stream[reader.position() as usize..];
        let expected = measured(rest, digests, max_bytes);
        match Pdu::read(&mut reader, digests, max_bytes as u32) {
            Ok(pdu) => {
                let len = expected.expect("a whole PDU").expect("one to be believed");
                assert_eq!(
                    stream.len() - reader.position() as usize,
                    rest.len() - len,
                    "no byte more or less is taken"
                );
                assert_eq!(pdu.data.len(), pdu.header.data_len() as usize);
                let mut again = Vec::new();
                write_pdu(&mut again, pdu.header.clone(), &pdu.data, digests).unwrap();
                let padding = pdu.data.len().next_multiple_of(4) - pdu.data.len();
                let data_at = 48 + if digests.header { 4 } else { 0 };
                let is_plain =
                    rest[data_at..].get(pdu.data.len()..pdu.data.len() + padding) == Some(&[0; 3][..padding]);
                if !pdu.has_additional && pdu.data_intact && is_plain {
                    assert!(again == rest[..len], "what was read is written as it came");
                }
                told.push((pdu.header.opcode(), pdu.data_intact, pdu.has_additional, pdu.data.len().min(9)));
            }
            Err(PduError::Io(_)) => {
                assert_eq!(expected, None, "the stream ends within a PDU");
                break;
            }
            Err(PduError::HeaderDigest { .. }) => {
                assert!(digests.header && expected == Some(None), "the header is not what its digest says");
                told.push((0xFF, false, false, 0));
                break;
            }
            Err(PduError::TooLong { len_bytes, .. }) => {
                assert!(len_bytes as usize > max_bytes && expected == Some(None));
                told.push((0xFE, false, false, 0));
                break;
            }
        }
    }
    told.truncate(6);
    fuzzing::behaviour((kind & 7, told))
}

fn streams() -> Vec<Vec<u8>> {
    let mut streams = Vec::new();
    for kind in 0..4_u8 {
        let digests = Digests { header: kind & 1 != 0, data: kind & 2 != 0 };
        let mut stream = vec![kind];
        // A login, a READ, a WRITE with immediate data, and a ping, as open-iscsi sends them.
        for (opcode, data) in [
            (0x43, &b"InitiatorName=iqn.1993-08.org.debian:01:x\0SessionType=Normal\0"[..]),
            (0x01, b""),
            (0x01, &[0x5A; 512]),
            (0x40, b"ping"),
        ] {
            let mut header = Header::new(opcode, 0x80, 1);
            header.0[32] = 0x28;
            write_pdu(&mut stream, header, data, digests).unwrap();
        }
        // One with an additional header segment.
        let mut long = [0; 52];
        (long[0], long[4], long[48]) = (0x01, 1, 0x01);
        stream.extend(long);
        if digests.header {
            stream.extend(crc32c::crc32c(&long).to_le_bytes());
        }
        streams.push(stream);
    }
    streams
}

/// RFC 7143 6.1 once more, byte by byte.
fn is_pair(piece: &[u8]) -> bool {
    let Some(at) = piece.iter().position(|byte| *byte == b'=') else { return false };
    let (key, value) = (&piece[..at], &piece[at + 1..]);
    let of_key =
        |byte: &u8| matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'+' | b'@' | b'_' | b'#');
    !key.is_empty() && key.len() <= 63 && key.iter().all(of_key) && value.len() <= 8192
}

fn text(input: &[u8]) -> u64 {
    let pieces: Vec<&[u8]> = input.split(|byte| *byte == 0).filter(|piece| !piece.is_empty()).collect();
    let is_right = std::str::from_utf8(input).is_ok() && pieces.iter().all(|piece| is_pair(piece));
    let Ok(pairs) = pairs(input) else {
        assert!(!is_right, "a list of pairs was refused");
        return 1;
    };
    assert!(is_right, "what is no list of pairs was taken: {pairs:?}");
    let mut again = Text::default();
    pairs.iter().for_each(|(key, value)| again.push(key, value));
    let expected: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().chain(&[0])).copied().collect();
    assert_eq!(again.into_bytes(), expected, "what was split is put together again");
    let mut kinds = Vec::new();
    for (_, value) in pairs {
        let plain = value.to_ascii_lowercase();
        if let Some(number) = number(value) {
            let digits = plain.trim_start_matches("0x").trim_start_matches('0');
            let shown = if plain.starts_with("0x") { format!("{number:x}") } else { number.to_string() };
            assert_eq!(digits, if number == 0 { "" } else { &shown }, "{value}");
        }
        let bytes = binary(value);
        if let Some(bytes) = &bytes {
            assert!(bytes.len() <= value.len() / 2 + 2, "no more than the text can hold: {value}");
            if let Some(digits) = plain.strip_prefix("0x") {
                let shown: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(shown.trim_start_matches('0'), digits.trim_start_matches('0'));
            }
        }
        kinds.push((number(value).is_some(), bytes.map(|bytes| bytes.len().min(20))));
    }
    kinds.truncate(6);
    fuzzing::behaviour(kinds)
}

fn texts() -> Vec<Vec<u8>> {
    [
        &b"InitiatorName=iqn.1993-08.org.debian:01:x\0TargetName=iqn.2026-01.test:e3\0SessionType=Normal\0AuthMethod=CHAP,None\0"[..],
        b"CHAP_A=5\0",
        b"CHAP_N=alice\0CHAP_R=0x0123456789abcdef0123456789ABCDEF\0CHAP_I=255\0CHAP_C=0bQUJDREVGR0g=\0",
        b"HeaderDigest=CRC32C,None\0MaxRecvDataSegmentLength=262144\0MaxBurstLength=0x40000\0DefaultTime2Wait=0\0\0\0",
        b"X-com.example.key=\0SendTargets=All",
    ]
    .map(<[u8]>::to_vec)
    .into()
}

#[test]
fn fuzz_framing() {
    let seen = fuzzing::hunt(&streams(), 1 << 14, framing);
    assert!(seen.behaviours > 50, "{seen:?}");
}

#[test]
#[ignore = "a minute, or what E3_FUZZ_SECONDS says"]
fn fuzz_framing_long() {
    fuzzing::hunt_long(&streams(), 1 << 15, framing);
}

#[test]
fn fuzz_text() {
    let seen = fuzzing::hunt(&texts(), 1 << 14, text);
    assert!(seen.behaviours > 20, "{seen:?}");
}

#[test]
#[ignore = "a minute, or what E3_FUZZ_SECONDS says"]
fn fuzz_text_long() {
    fuzzing::hunt_long(&texts(), 1 << 15, text);
}

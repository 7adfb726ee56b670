//! Protocol data units in a stream of bytes: header, additional segments, data, and their digests (spec B.1).

use std::io::{self, IoSlice, Read, Write};

use crate::wire::{HEADER_LEN, Header};

/// What a connection agreed on about the form of PDUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Digests {
    pub(crate) header: bool,
    pub(crate) data: bool,
}

/// A PDU as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pdu {
    pub(crate) header: Header,
    /// There were additional header segments. What we support needs none, so their content is not kept.
    pub(crate) has_additional: bool,
    pub(crate) data: Vec<u8>,
    /// False when the data is not what its digest says.
    pub(crate) data_intact: bool,
}

/// Why no further PDU can be taken from a stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PduError {
    #[error("receive a PDU")]
    Io(#[from] io::Error),
    #[error("header digest of a PDU with opcode {opcode:#x}: its length cannot be trusted")]
    HeaderDigest { opcode: u8 },
    #[error("PDU with opcode {opcode:#x}: {len_bytes} bytes of data, at most {max_bytes} were agreed")]
    TooLong { opcode: u8, len_bytes: u32, max_bytes: u32 },
}

impl Pdu {
    /// Reads one PDU with at most `max_bytes` of data.
    pub(crate) fn read(reader: &mut impl Read, digests: Digests, max_bytes: u32) -> Result<Self, PduError> {
        let mut bytes = [0; HEADER_LEN];
        reader.read_exact(&mut bytes)?;
        let header = Header(bytes);
        // At most 1,020 bytes, whatever the header claims.
        let mut additional = vec![0; header.additional_len()];
        reader.read_exact(&mut additional)?;
        if digests.header {
            let sum = crc32c::crc32c_append(crc32c::crc32c(&header.0), &additional);
            if read_digest(reader)? != sum {
                return Err(PduError::HeaderDigest { opcode: header.opcode() });
            }
        }
        let len_bytes = header.data_len();
        if len_bytes > max_bytes {
            return Err(PduError::TooLong { opcode: header.opcode(), len_bytes, max_bytes });
        }
        let mut data = vec![0; len_bytes.next_multiple_of(4) as usize];
        reader.read_exact(&mut data)?;
        let data_intact = !digests.data || data.is_empty() || read_digest(reader)? == crc32c::crc32c(&data);
        data.truncate(len_bytes as usize);
        Ok(Self { header, has_additional: !additional.is_empty(), data, data_intact })
    }
}

/// Digests are the only little-endian numbers of the protocol.
fn read_digest(reader: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    reader.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Writes one PDU and sets the length of `data` in its header. Without additional segments.
pub(crate) fn write_pdu(writer: &mut impl Write, mut header: Header, data: &[u8], digests: Digests) -> io::Result<()> {
    let len = u32::try_from(data.len()).ok().filter(|len| *len < 1 << 24);
    header.set_data_len(len.ok_or(io::ErrorKind::InvalidInput)?);
    let header_digest = crc32c::crc32c(&header.0).to_le_bytes();
    let padding = &[0; 3][..data.len().next_multiple_of(4) - data.len()];
    let with_data_digest = digests.data && !data.is_empty();
    let data_digest = match with_data_digest {
        true => crc32c::crc32c_append(crc32c::crc32c(data), padding).to_le_bytes(),
        false => [0; 4],
    };
    write_all_vectored(
        writer,
        &mut [
            IoSlice::new(&header.0),
            IoSlice::new(if digests.header { &header_digest } else { &[] }),
            IoSlice::new(data),
            IoSlice::new(padding),
            IoSlice::new(if with_data_digest { &data_digest } else { &[] }),
        ],
    )
}

/// All parts, in as few calls as the writer allows.
fn write_all_vectored(writer: &mut impl Write, mut left: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match writer.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use crate::wire::{at, opcode};

    const BOTH: Digests = Digests { header: true, data: true };
    const ALL: [Digests; 4] = [
        Digests { header: false, data: false },
        Digests { header: true, data: false },
        Digests { header: false, data: true },
        BOTH,
    ];

    fn written(data: &[u8], digests: Digests) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_pdu(&mut bytes, Header::new(opcode::NOP_OUT, 0x80, 7), data, digests).unwrap();
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        for digests in ALL {
            for len in [0, 1, 2, 3, 4, 5, 511, 512] {
                let data = Random(len).bytes(len as usize);
                let bytes = written(&data, digests);
                let sums = usize::from(digests.header) + usize::from(digests.data && len > 0);
                assert_eq!(bytes.len(), HEADER_LEN + data.len().next_multiple_of(4) + 4 * sums);
                let end = bytes.len() - 4 * usize::from(digests.data && len > 0);
                let padding = data.len().next_multiple_of(4) - data.len();
                assert_eq!(bytes[end - padding..end], [0; 3][..padding]);
                let mut left = &bytes[..];
                let pdu = Pdu::read(&mut left, digests, 512).unwrap();
                assert!(pdu.data_intact && pdu.data == data && left.is_empty(), "{len} bytes, {digests:?}");
                assert_eq!(pdu.header.u32(at::ITT), 7);
            }
        }
    }

    /// RFC 3720 B.4: 32 bytes of zeroes, of ones, and ascending have these sums, least significant byte first.
    #[test]
    fn digests_as_the_standard_gives_them() {
        let ascending: Vec<u8> = (0..32).collect();
        for (data, sum) in [
            (vec![0; 32], [0xAA, 0x36, 0x91, 0x8A]),
            (vec![0xFF; 32], [0x43, 0xAB, 0xA8, 0x62]),
            (ascending, [0x4E, 0x79, 0xDD, 0x46]),
        ] {
            let bytes = written(&data, Digests { header: false, data: true });
            assert_eq!(bytes[bytes.len() - 4..], sum, "{data:?}");
        }
    }

    /// Every bit of a PDU flipped: what digests cover is never taken for right.
    #[test]
    fn no_flipped_bit_is_overlooked() {
        let bytes = written(b"five!", BOTH);
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            match Pdu::read(&mut &changed[..], BOTH, 512) {
                Ok(pdu) => {
                    assert!(bit / 8 >= HEADER_LEN + 4, "bit {bit} is of the header");
                    assert!(!pdu.data_intact, "bit {bit}");
                }
                // A length that changed reads to the end of what there is before anything can be compared.
                Err(PduError::HeaderDigest { .. } | PduError::Io(_)) => assert!(bit / 8 < HEADER_LEN + 4, "bit {bit}"),
                Err(other) => panic!("bit {bit}: {other}"),
            }
        }
    }

    /// Random bytes against a plain reading of the same lengths.
    #[test]
    fn bytes_out_of_nothing() {
        let mut random = Random(8);
        let (mut taken, mut too_long, mut cut) = (0, 0, 0);
        for _ in 0..20_000 {
            let len = random.below(400) as usize;
            let mut bytes = random.bytes(len);
            if len > 8 {
                // Lengths that may fit.
                (bytes[4], bytes[5]) = (random.below(4) as u8 * random.below(2) as u8, 0);
                bytes[6] = random.below(2) as u8;
            }
            let mut left = &bytes[..];
            let result = Pdu::read(&mut left, Digests::default(), 300);
            if len < HEADER_LEN {
                assert!(matches!(result, Err(PduError::Io(_))));
                continue;
            }
            let additional = usize::from(bytes[4]) * 4;
            let data_len = usize::from(bytes[6]) * 256 + usize::from(bytes[7]);
            let start = HEADER_LEN + additional;
            let end = start + data_len.next_multiple_of(4);
            match result {
                Err(PduError::TooLong { len_bytes, .. }) => {
                    assert!(len_bytes as usize == data_len && data_len > 300);
                    too_long += 1;
                }
                Err(_) => {
                    assert!(start > len || end > len, "all of it was there");
                    cut += 1;
                }
                Ok(pdu) => {
                    assert!(end <= len && data_len <= 300);
                    assert!(pdu.data == bytes[start..start + data_len] && left.len() == len - end);
                    assert_eq!(pdu.has_additional, additional > 0);
                    taken += 1;
                }
            }
        }
        assert!(taken > 1000 && too_long > 1000 && cut > 1000, "{taken}, {too_long}, {cut}");
    }

    /// A socket that takes a few bytes at a time gets them all, in order.
    #[test]
    fn a_slow_writer_gets_everything() {
        struct Slow(Vec<u8>);
        impl Write for Slow {
            fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
                let taken = buf.len().min(3);
                self.0.extend(&buf[..taken]);
                Ok(taken)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let data = Random(9).bytes(100);
        let mut slow = Slow(Vec::new());
        write_pdu(&mut slow, Header::new(opcode::NOP_OUT, 0x80, 7), &data, BOTH).unwrap();
        assert!(slow.0 == written(&data, BOTH));
    }
}

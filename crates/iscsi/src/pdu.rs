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

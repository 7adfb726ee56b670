//! Compression inside a content: a 4-byte algorithm id, then a stream of that algorithm (kopia-format 3.4).

use std::fmt;
use std::io::{self, Read, Write};

use flate2::Compression;
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx, zstd_sys::ZSTD_ErrorCode};

/// Bytes of the id in front of a compressed stream.
pub const HEADER_BYTES: usize = 4;

/// The most a content can hold, in bytes: index entries have 28 bits for a length (kopia-format 4.3).
pub const MAX_CONTENT_BYTES: usize = (1 << 28) - 1;

/// A compression algorithm as index entries and content headers name it; 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CompressionId(pub u32);

/// What encoders need to keep between contents. One for each thread; the zstd part is made at its first use and then
/// holds the tables of the highest level used, some megabytes.
#[derive(Default)]
pub struct CompressContext {
    zstd: Option<(CCtx<'static>, i32)>,
}

/// What decoders need to keep between contents. One for each thread.
#[derive(Default)]
pub struct DecompressContext {
    zstd: Option<DCtx<'static>>,
}

/// Why a content was not compressed, other than that it would not have become shorter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompressError {
    /// The algorithm is unknown, or one that we only read.
    #[error("cannot compress with {id:?}")]
    Unsupported {
        /// The refused algorithm.
        id: CompressionId,
    },
    /// The encoder failed, for want of memory.
    #[error("compress {len} bytes with {id:?}: {reason}")]
    Encoder {
        /// The algorithm.
        id: CompressionId,
        /// Bytes of the plaintext.
        len: usize,
        /// The encoder's words.
        reason: &'static str,
    },
}

/// Why a compressed content does not give its plaintext.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecompressError {
    /// Too short for the id.
    #[error("a compressed content of {len} bytes has no room for its header")]
    NoHeader {
        /// Bytes of the content.
        len: usize,
    },
    /// Header and index entry name different algorithms.
    #[error("the content is compressed with {found:?}, its index entry says {expected:?}")]
    OtherAlgorithm {
        /// What the index entry says.
        expected: CompressionId,
        /// What the content's header says.
        found: CompressionId,
    },
    /// LZ4, which Kopia itself dropped in version 0.23.
    #[error("the content is compressed with lz4, which Kopia 0.22 is the last to read")]
    Lz4,
    /// An id that no algorithm has.
    #[error("the compression algorithm {id:?} is not known")]
    UnknownAlgorithm {
        /// The id.
        id: CompressionId,
    },
    /// The stream is damaged.
    #[error("decompress {len} bytes with {id:?}")]
    Stream {
        /// The algorithm.
        id: CompressionId,
        /// Bytes of the stream.
        len: usize,
        /// What the decoder met.
        source: io::Error,
    },
    /// The stream holds more or less than the index entry says.
    #[error("the content decompresses to {found} bytes{}, its index entry says {expected}", if *.or_more { " or more" } else { "" })]
    OtherLength {
        /// Bytes that the index entry names.
        expected: usize,
        /// Bytes that were seen.
        found: usize,
        /// The decoder stopped at the limit, so there may be more.
        or_more: bool,
    },
    /// More is asked for than a content can hold, or than memory has.
    #[error("no memory for a content of {len} bytes")]
    TooLarge {
        /// Bytes asked for.
        len: usize,
    },
}

/// How an algorithm is decoded, and encoded at which level.
#[derive(Clone, Copy)]
enum Family {
    Gzip(u32),
    Zstd(i32),
    S2,
    Deflate(u32),
    Lz4,
}

/// Every algorithm by id and name. Levels are near those of Kopia's own encoders; any is readable to it.
const ALGORITHMS: [(u32, &str, Family); 18] = [
    (0x1000, "gzip", Family::Gzip(6)),
    (0x1001, "gzip-best-speed", Family::Gzip(1)),
    (0x1002, "gzip-best-compression", Family::Gzip(9)),
    (0x1100, "zstd", Family::Zstd(3)),
    (0x1101, "zstd-fastest", Family::Zstd(1)),
    (0x1102, "zstd-better-compression", Family::Zstd(7)),
    (0x1103, "zstd-best-compression", Family::Zstd(11)),
    (0x1200, "s2-default", Family::S2),
    (0x1201, "s2-better", Family::S2),
    (0x1202, "s2-parallel-4", Family::S2),
    (0x1203, "s2-parallel-8", Family::S2),
    (0x1300, "pgzip", Family::Gzip(6)),
    (0x1301, "pgzip-best-speed", Family::Gzip(1)),
    (0x1302, "pgzip-best-compression", Family::Gzip(9)),
    (0x1400, "lz4", Family::Lz4),
    (0x1500, "deflate-default", Family::Deflate(6)),
    (0x1501, "deflate-best-speed", Family::Deflate(1)),
    (0x1502, "deflate-best-compression", Family::Deflate(9)),
];

/// The largest window, as a power of two, that a content may need to be decoded (kopia-format 3.4).
const MAX_WINDOW_LOG: u32 = 23;

impl CompressionId {
    /// Stored as it is.
    pub const NONE: Self = Self(0);
    /// `zstd`
    pub const ZSTD: Self = Self(0x1100);
    /// `zstd-fastest`, asked for on manifests and metadata.
    pub const ZSTD_FASTEST: Self = Self(0x1101);

    /// The algorithm that policies call `name`; `none` and the empty name are [`NONE`](Self::NONE).
    pub fn from_name(name: &str) -> Option<Self> {
        if name.is_empty() || name == "none" {
            return Some(Self::NONE);
        }
        ALGORITHMS.iter().find(|(_, known, _)| *known == name).map(|(id, _, _)| Self(*id))
    }

    /// What policies call the algorithm, `none` included. `None` for an unknown id.
    pub fn name(self) -> Option<&'static str> {
        if self == Self::NONE {
            return Some("none");
        }
        ALGORITHMS.iter().find(|(id, _, _)| *id == self.0).map(|(_, name, _)| *name)
    }

    /// Whether [`compress`] takes this algorithm: every one but none, lz4 and the unknown.
    pub fn can_compress(self) -> bool {
        !matches!(self.family(), None | Some(Family::Lz4))
    }

    fn family(self) -> Option<Family> {
        ALGORITHMS.iter().find(|(id, _, _)| *id == self.0).map(|(_, _, family)| *family)
    }
}

impl fmt::Debug for CompressionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "algorithm {:#x}", self.0),
        }
    }
}

impl fmt::Debug for CompressContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompressContext").finish_non_exhaustive()
    }
}

impl fmt::Debug for DecompressContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecompressContext").finish_non_exhaustive()
    }
}

/// Appends header and stream to `out` and returns true, if together they are strictly shorter than `plaintext`;
/// otherwise leaves `out` as it was and returns false.
///
/// `out` grows by the length of the plaintext at most, and not at all if it has that much spare capacity.
pub fn compress(
    id: CompressionId,
    context: &mut CompressContext,
    plaintext: &[u8],
    out: &mut Vec<u8>,
) -> Result<bool, CompressError> {
    let family = id.family().ok_or(CompressError::Unsupported { id })?;
    if let Family::Lz4 = family {
        return Err(CompressError::Unsupported { id });
    }
    // One byte less than the plaintext, so that what fits is shorter.
    let Some(room) = plaintext.len().checked_sub(HEADER_BYTES + 1) else {
        return Ok(false);
    };
    let start = out.len();
    out.reserve(HEADER_BYTES + room);
    out.extend_from_slice(&id.0.to_be_bytes());
    let stream = start + HEADER_BYTES;
    let shorter = match family {
        Family::Zstd(level) => context.zstd(level, id, plaintext, out)?,
        Family::Gzip(level) => {
            let mut encoder =
                flate2::write::GzEncoder::new(Bounded { out, limit: stream + room }, Compression::new(level));
            encoder.write_all(plaintext).and_then(|()| encoder.try_finish()).is_ok()
        }
        Family::Deflate(level) => {
            let bounded = Bounded { out, limit: stream + room };
            let mut encoder = flate2::write::DeflateEncoder::new(bounded, Compression::new(level));
            encoder.write_all(plaintext).and_then(|()| encoder.try_finish()).is_ok()
        }
        Family::S2 => s2_encode(plaintext, &mut Bounded { out, limit: stream + room }).is_ok(),
        Family::Lz4 => unreachable!("refused above"),
    } && out.len() <= stream + room;
    if !shorter {
        out.truncate(start);
    }
    Ok(shorter)
}

impl CompressContext {
    /// Encodes into the spare capacity of `out`; false if it is too small.
    fn zstd(
        &mut self,
        level: i32,
        id: CompressionId,
        plaintext: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<bool, CompressError> {
        let failed =
            |code| CompressError::Encoder { id, len: plaintext.len(), reason: zstd_safe::get_error_name(code) };
        if self.zstd.as_ref().is_none_or(|(_, set)| *set != level) {
            let mut context = match self.zstd.take() {
                Some((context, _)) => context,
                None => CCtx::try_create().ok_or(CompressError::Encoder {
                    id,
                    len: plaintext.len(),
                    reason: "no memory for the encoder",
                })?,
            };
            context.set_parameter(CParameter::CompressionLevel(level)).map_err(failed)?;
            context.set_parameter(CParameter::ChecksumFlag(true)).map_err(failed)?;
            // No level that is used here has a larger window by itself.
            const { assert!(MAX_WINDOW_LOG >= 22) };
            self.zstd = Some((context, level));
        }
        let (context, _) = self.zstd.as_mut().expect("made above");
        let mut room = io::Cursor::new(out);
        room.set_position(room.get_ref().len() as u64);
        let compressed = context.compress2(&mut room, plaintext);
        if compressed.is_err() {
            // A frame that was broken off would keep the level from being changed.
            context.reset(zstd_safe::ResetDirective::SessionOnly).map_err(failed)?;
        }
        match compressed {
            Ok(_) => Ok(true),
            Err(code) if zstd_safe::is_error_kind(code, ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall) => Ok(false),
            Err(code) => Err(failed(code)),
        }
    }
}

/// Decompresses a whole content, header included, and appends its plaintext to `out`: exactly `original_len` bytes,
/// the length of its index entry, or an error. Then `out` is as it was.
///
/// The stream cannot make this use more memory than `original_len` says.
pub fn decompress(
    data_with_header: &[u8],
    expected_id: CompressionId,
    original_len: usize,
    context: &mut DecompressContext,
    out: &mut Vec<u8>,
) -> Result<(), DecompressError> {
    let (found, stream) = split_header(data_with_header)?;
    if found != expected_id {
        return Err(DecompressError::OtherAlgorithm { expected: expected_id, found });
    }
    let start = out.len();
    let result = decode(found, stream, original_len, context, out).and_then(|()| {
        let found = out.len() - start;
        if found == original_len {
            Ok(())
        } else {
            Err(DecompressError::OtherLength { expected: original_len, found, or_more: found > original_len })
        }
    });
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// Decompresses an object of the `Z` kind (kopia-format 5.1), whose algorithm only its header names and whose length
/// is known nowhere: appends at most `max_len` bytes to `out`, and fails if there are more.
pub fn decompress_object(
    data_with_header: &[u8],
    max_len: usize,
    context: &mut DecompressContext,
    out: &mut Vec<u8>,
) -> Result<(), DecompressError> {
    let (id, stream) = split_header(data_with_header)?;
    let start = out.len();
    let result = match id.family() {
        // Here the limit is no expectation, so memory follows what comes out of the decoder.
        Some(Family::Zstd(_)) => read_bounded(id, stream.len(), zstd_stream(stream), max_len, out),
        _ => decode(id, stream, max_len, context, out),
    };
    let result = result.and_then(|()| match out.len() - start {
        found if found > max_len => Err(DecompressError::OtherLength { expected: max_len, found, or_more: true }),
        _ => Ok(()),
    });
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn split_header(data: &[u8]) -> Result<(CompressionId, &[u8]), DecompressError> {
    let (id, stream) = data.split_first_chunk().ok_or(DecompressError::NoHeader { len: data.len() })?;
    Ok((CompressionId(u32::from_be_bytes(*id)), stream))
}

/// Appends up to `limit` bytes of plaintext, and one more as a sign that there is more.
fn decode(
    id: CompressionId,
    stream: &[u8],
    limit: usize,
    context: &mut DecompressContext,
    out: &mut Vec<u8>,
) -> Result<(), DecompressError> {
    match id.family() {
        None => Err(DecompressError::UnknownAlgorithm { id }),
        Some(Family::Lz4) => Err(DecompressError::Lz4),
        Some(Family::Gzip(_)) => {
            read_bounded(id, stream.len(), flate2::bufread::MultiGzDecoder::new(stream), limit, out)
        }
        Some(Family::Deflate(_)) => {
            read_bounded(id, stream.len(), flate2::bufread::DeflateDecoder::new(stream), limit, out)
        }
        Some(Family::S2) => s2_decode(stream, limit, out).map_err(|source| stream_error(id, stream.len(), source)),
        Some(Family::Zstd(_)) => context.zstd(id, stream, limit, out),
    }
}

impl DecompressContext {
    /// Decodes in one step: the destination then is the window, and what the frame header claims allocates nothing.
    fn zstd(
        &mut self,
        id: CompressionId,
        stream: &[u8],
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), DecompressError> {
        if limit > MAX_CONTENT_BYTES || out.try_reserve(limit).is_err() {
            return Err(DecompressError::TooLarge { len: limit });
        }
        if self.zstd.is_none() {
            self.zstd = Some(DCtx::try_create().ok_or(DecompressError::TooLarge { len: limit })?);
        }
        let context = self.zstd.as_mut().expect("made above");
        let start = out.len();
        let mut room = io::Cursor::new(out);
        room.set_position(start as u64);
        match context.decompress(&mut room, stream) {
            Ok(_) => Ok(()),
            Err(code) if zstd_safe::is_error_kind(code, ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall) => {
                Err(DecompressError::OtherLength { expected: limit, found: limit, or_more: true })
            }
            Err(code) => Err(stream_error(id, stream.len(), io::Error::other(zstd_safe::get_error_name(code)))),
        }
    }
}

/// A zstd decoder whose window is limited, for streams whose length is not known.
fn zstd_stream(stream: &[u8]) -> impl Read {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(stream).expect("a decoder without dictionary is made");
    // Kopia's own encoder at its best level asks for more than the 8 MiB that we write.
    decoder.window_log_max(MAX_WINDOW_LOG + 3).expect("within zstd's limits");
    decoder
}

fn stream_error(id: CompressionId, len: usize, source: io::Error) -> DecompressError {
    DecompressError::Stream { id, len, source }
}

fn read_bounded(
    id: CompressionId,
    stream_len: usize,
    decoder: impl Read,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<(), DecompressError> {
    let one_more = (limit as u64).saturating_add(1);
    decoder.take(one_more).read_to_end(out).map_err(|source| stream_error(id, stream_len, source))?;
    Ok(())
}

/// A sink that fails rather than grow beyond `limit` bytes in all.
struct Bounded<'a> {
    out: &'a mut Vec<u8>,
    limit: usize,
}

impl Write for Bounded<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.len() > self.limit.saturating_sub(self.out.len()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.out.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The chunk that an S2 stream begins with.
const S2_MAGIC: &[u8; 10] = b"\xff\x06\x00\x00S2sTwO";
/// The same of a plain Snappy stream, which is valid S2.
const SNAPPY_MAGIC: &[u8; 10] = b"\xff\x06\x00\x00sNaPpY";
/// Plaintext bytes of a block that we write.
const S2_BLOCK_BYTES: usize = 1 << 20;
/// Plaintext bytes of the largest block of the format.
const S2_MAX_BLOCK_BYTES: usize = 4 << 20;

/// Writes the framing of Snappy with blocks of S2 (github.com/google/snappy, framing_format.txt).
fn s2_encode(plaintext: &[u8], out: &mut Bounded<'_>) -> io::Result<()> {
    out.write_all(S2_MAGIC)?;
    for block in plaintext.chunks(S2_BLOCK_BYTES) {
        let encoded = minlz::s2::encode(block);
        let (kind, payload) = if encoded.len() < block.len() { (0, encoded.as_slice()) } else { (1, block) };
        let [len @ .., _] = u32::try_from(payload.len() + 4).expect("a block is far below 16 MiB").to_le_bytes();
        out.write_all(&[kind])?;
        out.write_all(&len)?;
        out.write_all(&s2_checksum(block).to_le_bytes())?;
        out.write_all(payload)?;
    }
    Ok(())
}

/// Appends the plaintext of an S2 stream, up to about one block beyond `limit`.
fn s2_decode(stream: &[u8], limit: usize, out: &mut Vec<u8>) -> io::Result<()> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
    let start = out.len();
    let mut rest = stream;
    if !(rest.starts_with(S2_MAGIC) || rest.starts_with(SNAPPY_MAGIC)) {
        return Err(damaged("an S2 stream begins with its identifier"));
    }
    while let Some((header, after)) = rest.split_first_chunk::<4>() {
        let [kind, len @ ..] = *header;
        let len = usize::from(len[0]) | usize::from(len[1]) << 8 | usize::from(len[2]) << 16;
        let (chunk, after) = after.split_at_checked(len).ok_or_else(|| damaged("an S2 chunk is cut short"))?;
        rest = after;
        match kind {
            0 | 1 => {
                let (checksum, data) =
                    chunk.split_first_chunk().ok_or_else(|| damaged("an S2 chunk has no checksum"))?;
                let begin = out.len();
                if kind == 1 {
                    out.extend_from_slice(data);
                } else {
                    let (block_len, _) =
                        minlz::s2::decode_len(data).map_err(|_| damaged("an S2 block has no length"))?;
                    if block_len > S2_MAX_BLOCK_BYTES {
                        return Err(damaged("an S2 block claims more than 4 MiB"));
                    }
                    out.resize(begin + block_len, 0);
                    minlz::s2::decode_into(&mut out[begin..], data).map_err(|_| damaged("an S2 block is damaged"))?;
                }
                if s2_checksum(&out[begin..]) != u32::from_le_bytes(*checksum) {
                    return Err(damaged("an S2 block has another checksum"));
                }
                if out.len() - start > limit {
                    return Ok(());
                }
            }
            // The identifier again, padding, an index, and whatever else may be skipped.
            0x80..=0xff => {}
            _ => return Err(damaged("an S2 chunk of a reserved kind")),
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(damaged("an S2 chunk header is cut short")) }
}

fn s2_checksum(block: &[u8]) -> u32 {
    crc32c::crc32c(block).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::super::test_vectors::{Rng, unhex};
    use super::*;

    /// What Kopia 0.23.1 compressed, and what it made of it (kopia-format 11.4).
    fn small_text() -> Vec<u8> {
        [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
            .iter()
            .flat_map(|n| format!("line {n} of a small text that repeats itself;").into_bytes())
            .collect()
    }

    const BY_KOPIA: [(&str, &str); 7] = [
        (
            "zstd-fastest",
            "0000110128b52ffd4400ae0075020092c30c14b02903e0e49a6dc724e62ccc7edabde5a08c2108e89841080074d8c34c24f76ebc57932a7c15e7979e7619c7624268d8c31c0900c023017401c4024802e80288750ac92c40373a484101cb337740",
        ),
        (
            "zstd-best-compression",
            "0000110328b52ffd4400ae0055020014036c696e652030206f66206120736d616c6c20746578742074686174207265706561747320697473656c663b31323334353608001966a5104017402c802480ae5310eb1488b9569501cb337740",
        ),
        (
            "s2-default",
            "00001200ff06000053327354774f006100009359d449ae03a86c696e652030206f66206120736d616c6c20746578742074686174207265706561747320697473656c663b052b00311500220032150022003315002200341500220035150022003615002200301500220031150022003215001d",
        ),
        (
            "s2-better",
            "00001201ff06000053327354774f005700009359d449ae03a86c696e652030206f66206120736d616c6c20746578742074686174207265706561747320697473656c663b052b003115002200321500220033150022003415002200351500220036150022312d15006c",
        ),
        (
            "gzip",
            "000010001f8b08000000000000ffcac9cc4b553050c84f53485428ce4dccc9512849ad285128c9482c51284a2d484d2c2956c82c294ecd49b3062b35245ea911f14a8d89576a42bc5253e2959a11af7420030b100000ffff6a8fda1bae010000",
        ),
        (
            "pgzip",
            "000013001f8b080000096e8800ffcac9cc4b553050c84f53485428ce4dccc9512849ad285128c9482c51284a2d484d2c2956c82c294ecd49b3062b35245ea911f14a8d89576a42bc5253e2959a11af7420030b000000ffff03006a8fda1bae010000",
        ),
        (
            "deflate-best-speed",
            "00001501c4d0bb0d80301003d0553c02ff8669ae7044a42320e282f159c11dfdab5ed6460cb80a02fd8c4c88afa023848737431d559d59f6ac8d187d3af974f6e9e2d3d5a79b4fffccfa0600",
        ),
    ];

    fn unpack(packed: &[u8], id: CompressionId, len: usize) -> Result<Vec<u8>, DecompressError> {
        let mut out = b"before".to_vec();
        let result = decompress(packed, id, len, &mut DecompressContext::default(), &mut out);
        if result.is_err() {
            assert_eq!(out, b"before", "an error leaves what was there");
        }
        result.map(|()| out.split_off(6))
    }

    #[test]
    fn what_kopia_compressed_is_read() {
        let text = small_text();
        assert_eq!(text.len(), 430);
        for (name, packed) in BY_KOPIA {
            let id = CompressionId::from_name(name).unwrap();
            let packed = unhex(packed);
            assert_eq!(unpack(&packed, id, 430).unwrap(), text, "{name}");
            assert!(matches!(unpack(&packed, id, 431), Err(DecompressError::OtherLength { found: 430, .. })), "{name}");
            assert!(
                matches!(unpack(&packed, id, 429), Err(DecompressError::OtherLength { or_more: true, .. })),
                "{name}"
            );
            assert!(unpack(&packed, id, 0).is_err(), "{name}");
            let mut object = Vec::new();
            let mut context = DecompressContext::default();
            decompress_object(&packed, 430, &mut context, &mut object).unwrap();
            assert_eq!(object, text, "{name}");
            assert!(decompress_object(&packed, 429, &mut context, &mut object).is_err(), "{name}");
            assert_eq!(object, text, "{name}");
        }
        for packed in ["000015004b4ca40c0000", "0000110028b52ffd20404500001061610100930016"] {
            let packed = unhex(packed);
            let id = CompressionId(u32::from_be_bytes(packed[..4].try_into().unwrap()));
            assert_eq!(unpack(&packed, id, 64).unwrap(), [b'a'; 64], "{id:?}");
        }
    }

    #[test]
    fn every_writable_algorithm_comes_back() {
        let mut rng = Rng(2);
        let noise: Vec<u8> = (0..50_000).map(|_| rng.next() as u8).collect();
        let mut mixed = small_text().repeat(4000);
        mixed.extend_from_slice(&noise);
        let mut packer = CompressContext::default();
        for (id, name, _) in ALGORITHMS {
            let id = CompressionId(id);
            assert_eq!((CompressionId::from_name(name), id.name()), (Some(id), Some(name)));
            let mut out = b"before".to_vec();
            if !id.can_compress() {
                assert!(compress(id, &mut packer, &mixed, &mut out).is_err(), "{name}");
                continue;
            }
            for plaintext in [&mixed[..], &small_text(), &[0; 1 << 20], &mixed[..2_000_000.min(mixed.len())]] {
                out.truncate(6);
                assert!(compress(id, &mut packer, plaintext, &mut out).unwrap(), "{name}, {} bytes", plaintext.len());
                assert_eq!(&out[..6], b"before");
                assert!(out.len() - 6 < plaintext.len());
                assert_eq!(unpack(&out[6..], id, plaintext.len()).unwrap(), plaintext, "{name}");
            }
            for plaintext in [&noise[..], b"", b"a", b"abcd", b"abcde", b"aaaaaaaa"] {
                let mut out = b"before".to_vec();
                let shorter = compress(id, &mut packer, plaintext, &mut out).unwrap();
                assert!(!shorter, "{name}, {} bytes", plaintext.len());
                assert_eq!(out, b"before");
            }
        }
    }

    #[test]
    fn incompressible_data_moves_no_buffer() {
        let mut rng = Rng(3);
        let noise: Vec<u8> = (0..1 << 20).map(|_| rng.next() as u8).collect();
        let mut out = Vec::with_capacity(noise.len() + 12);
        out.resize(12, 0);
        let (place, capacity) = (out.as_ptr(), out.capacity());
        let shorter = compress(CompressionId::ZSTD_FASTEST, &mut CompressContext::default(), &noise, &mut out).unwrap();
        assert!(!shorter);
        assert_eq!((out.as_ptr(), out.capacity(), out.len()), (place, capacity, 12));

        // Room for a form that is longer than the plaintext is no reason to keep it.
        for (id, ..) in ALGORITHMS.iter().filter(|(id, ..)| CompressionId(*id).can_compress()) {
            let mut roomy = Vec::with_capacity(4 * noise.len());
            let noise = &noise[..100_000];
            let shorter = compress(CompressionId(*id), &mut CompressContext::default(), noise, &mut roomy).unwrap();
            assert_eq!((shorter, roomy.len()), (false, 0), "{id:#x}");
        }
    }

    #[test]
    fn zstd_frames_carry_a_checksum() {
        let text = small_text();
        let mut out = Vec::new();
        assert!(compress(CompressionId::ZSTD, &mut CompressContext::default(), &text, &mut out).unwrap());
        // RFC 8878 3.1.1.1.1: bit 2 of the frame header descriptor, after the 4 bytes of the magic number.
        assert_eq!(out[HEADER_BYTES + 4] & 4, 4);
        let last = out.len() - 1;
        out[last] ^= 1;
        assert!(matches!(unpack(&out, CompressionId::ZSTD, 430), Err(DecompressError::Stream { .. })));
    }

    #[test]
    fn disagreement_and_the_unreadable_are_named() {
        let packed = unhex(BY_KOPIA[0].1);
        assert!(matches!(unpack(&packed, CompressionId::ZSTD, 430), Err(DecompressError::OtherAlgorithm { .. })));
        assert!(matches!(unpack(&packed[..3], CompressionId::ZSTD, 430), Err(DecompressError::NoHeader { len: 3 })));
        let lz4 = [0, 0, 0x14, 0, 1, 2, 3];
        assert!(matches!(unpack(&lz4, CompressionId(0x1400), 3), Err(DecompressError::Lz4)));
        let unknown = [0, 0, 0x99, 0, 1];
        assert!(matches!(unpack(&unknown, CompressionId(0x9900), 3), Err(DecompressError::UnknownAlgorithm { .. })));
        assert!(matches!(
            unpack(&packed, CompressionId::ZSTD_FASTEST, MAX_CONTENT_BYTES + 1),
            Err(DecompressError::TooLarge { .. })
        ));
        assert_eq!(CompressionId::from_name("none"), Some(CompressionId::NONE));
        assert_eq!(CompressionId::from_name("rot13"), None);
    }

    #[test]
    fn changed_streams_give_an_error_or_the_promised_length() {
        let mut rng = Rng(4);
        for (name, packed) in BY_KOPIA {
            let id = CompressionId::from_name(name).unwrap();
            let packed = unhex(packed);
            for _ in 0..3000 {
                let changed = rng.mutate(&packed[HEADER_BYTES..]);
                let changed = [&packed[..HEADER_BYTES], &changed].concat();
                if let Ok(text) = unpack(&changed, id, 430) {
                    assert_eq!(text.len(), 430, "{name}");
                }
                let mut object = Vec::new();
                let _ = decompress_object(&changed, 10_000, &mut DecompressContext::default(), &mut object);
                assert!(object.len() <= 10_000, "{name}");
            }
        }
    }

    #[test]
    fn many_empty_chunks_do_not_exhaust_the_stack() {
        let mut stream = vec![0, 0, 0x12, 0];
        stream.extend_from_slice(S2_MAGIC);
        stream.extend(std::iter::repeat_n([0xfe, 0, 0, 0], 1 << 20).flatten());
        assert_eq!(unpack(&stream, CompressionId(0x1200), 0).unwrap(), b"");
    }
}

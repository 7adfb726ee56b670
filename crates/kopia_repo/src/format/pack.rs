//! Pack blobs: what surrounds the contents in one, and the names of packs and sessions (kopia-format 3.7, 1.3, 3.10).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::encryption::{ContentCipher, DecryptError, NONCE_BYTES, OVERHEAD};
use super::hashing::ContentHasher;
use super::index::{BuildIndexError, IndexEntry, IndexError, IndexLayer, build};
use super::{content_id, json, random};

/// Random bytes that a pack begins with.
pub const PREAMBLE_BYTES: usize = 32;

/// The local index begins at a multiple of this.
pub const ALIGNMENT: usize = 4096;

/// How much of the end of a pack recovery reads first, in bytes. The postamble lies within.
pub const TAIL_BYTES: usize = 8192;

/// Random bytes after the tables of a local index, so that two packs with equal entries differ.
const UNIQUE_BYTES: usize = 32;

/// The longest postamble before its last byte.
const MAX_POSTAMBLE_BYTES: usize = 255;

/// Where the local index of a pack lies, and how it is encrypted: the end of the pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postamble {
    /// The hash of the local index, which is the initialisation vector of its encryption.
    pub iv: Vec<u8>,
    /// Where the encrypted local index begins, in bytes from the start of the pack.
    pub index_offset: u64,
    /// Its length in bytes.
    pub index_len: u64,
}

/// Why a pack does not end in a postamble.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostambleError {
    /// The last byte announces more bytes than there are, or than one can have.
    #[error("the pack ends in no postamble: {len} bytes are announced where {available} are")]
    Length {
        /// The last byte.
        len: usize,
        /// Bytes before it.
        available: usize,
    },
    /// The checksum differs.
    #[error("the postamble's checksum is {found:#010x} instead of {stored:#010x}")]
    Checksum {
        /// What the postamble says.
        stored: u32,
        /// What its bytes give.
        found: u32,
    },
    /// The first number is not 1.
    #[error("postamble version {version} is not known")]
    UnknownVersion {
        /// The number.
        version: u64,
    },
    /// The fields end before the checksum, or go on into it.
    #[error("the fields of the postamble do not fill it")]
    Fields,
}

/// Why the entries of a pack cannot be recovered from the pack itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// The end of the pack is none.
    #[error("read the postamble of the pack")]
    Postamble(#[source] PostambleError),
    /// The postamble points outside of the pack.
    #[error("the local index at {offset}, {len} bytes, is outside of the pack of {pack_len} bytes")]
    Outside {
        /// Where it should begin.
        offset: u64,
        /// How long it should be.
        len: u64,
        /// Bytes of the pack.
        pack_len: usize,
    },
    /// The local index does not decrypt.
    #[error("decrypt the local index of the pack")]
    Decrypt(#[source] DecryptError),
    /// The local index is no index.
    #[error("read the local index of the pack")]
    Index(#[source] IndexError),
}

/// The random bytes that a pack begins with.
pub fn preamble() -> [u8; PREAMBLE_BYTES] {
    random::bytes()
}

/// Random bytes to follow the contents of a pack of `len_so_far` bytes: 1 to 4096 of them, up to the alignment.
pub fn padding(len_so_far: usize) -> Vec<u8> {
    let mut padding = vec![0; ALIGNMENT - len_so_far % ALIGNMENT];
    random::fill(&mut padding);
    padding
}

/// Completes a pack that holds its preamble and contents: appends padding, the encrypted local index of `entries`, and
/// the postamble. Sorts the entries.
pub fn finish(
    pack: &mut Vec<u8>,
    entries: &mut [IndexEntry],
    index_version: u8,
    hasher: &ContentHasher,
    cipher: &ContentCipher,
) -> Result<(), BuildIndexError> {
    let mut index = build(index_version, entries)?;
    index.extend_from_slice(&random::bytes::<UNIQUE_BYTES>());
    let padding = padding(pack.len());
    let iv = hasher.digest(&index);
    let mut sealed = vec![0; NONCE_BYTES];
    sealed.reserve_exact(index.len() + OVERHEAD);
    sealed.extend_from_slice(&index);
    cipher.seal(iv.as_ref(), &mut sealed);
    pack.reserve(padding.len() + sealed.len() + MAX_POSTAMBLE_BYTES + 1);
    pack.extend_from_slice(&padding);
    append_index(pack, iv.as_ref(), &sealed);
    Ok(())
}

fn append_index(pack: &mut Vec<u8>, iv: &[u8], sealed: &[u8]) {
    let index_offset = pack.len() as u64;
    pack.extend_from_slice(sealed);
    Postamble { iv: iv.to_vec(), index_offset, index_len: sealed.len() as u64 }.write(pack);
}

/// The entries that a whole pack blob carries about itself, for the case that no index blob mentions it.
pub fn recover_local_index(pack: &[u8], cipher: &ContentCipher) -> Result<IndexLayer, RecoverError> {
    let postamble = Postamble::parse(pack).map_err(RecoverError::Postamble)?;
    let (offset, len) = (postamble.index_offset, postamble.index_len);
    let sealed = usize::try_from(offset)
        .ok()
        .zip(usize::try_from(len).ok())
        .and_then(|(offset, len)| pack.get(offset..offset.checked_add(len)?))
        .ok_or(RecoverError::Outside { offset, len, pack_len: pack.len() })?;
    let mut buffer = sealed.to_vec();
    let index = cipher.open(&postamble.iv, &mut buffer).map_err(RecoverError::Decrypt)?;
    IndexLayer::parse(index, OVERHEAD as u32).map_err(RecoverError::Index)
}

impl Postamble {
    /// Appends the postamble.
    ///
    /// # Panics
    /// If the initialisation vector is longer than any hash.
    pub fn write(&self, out: &mut Vec<u8>) {
        assert!(self.iv.len() <= content_id::MAX_HASH_BYTES, "an initialisation vector is a hash");
        let start = out.len();
        push_uvarint(1, out);
        push_uvarint(self.iv.len() as u64, out);
        out.extend_from_slice(&self.iv);
        push_uvarint(self.index_offset, out);
        push_uvarint(self.index_len, out);
        let checksum = crc32fast::hash(&out[start..]);
        out.extend_from_slice(&checksum.to_be_bytes());
        out.push((out.len() - start) as u8);
    }

    /// Reads the postamble at the end of `tail`, which is the end of a pack or all of it.
    pub fn parse(tail: &[u8]) -> Result<Self, PostambleError> {
        let (&len, before) = tail.split_last().ok_or(PostambleError::Length { len: 0, available: 0 })?;
        let len = usize::from(len);
        let refused = PostambleError::Length { len, available: before.len() };
        let postamble = before.len().checked_sub(len).map(|start| &before[start..]).ok_or(refused.clone())?;
        let (fields, checksum) = postamble.split_last_chunk().ok_or(refused)?;
        let (stored, found) = (u32::from_be_bytes(*checksum), crc32fast::hash(fields));
        if stored != found {
            return Err(PostambleError::Checksum { stored, found });
        }
        let mut rest = fields;
        let version = take_uvarint(&mut rest).ok_or(PostambleError::Fields)?;
        if version != 1 {
            return Err(PostambleError::UnknownVersion { version });
        }
        let mut field = || take_uvarint(&mut rest).ok_or(PostambleError::Fields);
        let iv_len = field()?;
        let (iv, after) = usize::try_from(iv_len)
            .ok()
            .and_then(|iv_len| rest.split_at_checked(iv_len))
            .ok_or(PostambleError::Fields)?;
        rest = after;
        let mut field = || take_uvarint(&mut rest).ok_or(PostambleError::Fields);
        let (index_offset, index_len) = (field()?, field()?);
        if !rest.is_empty() {
            return Err(PostambleError::Fields);
        }
        Ok(Self { iv: iv.to_vec(), index_offset, index_len })
    }
}

/// LEB128, low group first, as Go's `binary.PutUvarint`.
fn push_uvarint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_uvarint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        let group = u64::from(byte & 0x7f);
        if group << shift >> shift != group {
            return None;
        }
        value |= group << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A new name for a pack: `p` for contents without prefix, `q` for those with one.
pub fn new_pack_id(prefix: char, session_id: &str) -> String {
    format!("{prefix}{}-{session_id}", content_id::hex(&random::bytes::<16>()))
}

/// A new name for a session, which tells in units of 30 days since 2000 when it began.
pub fn new_session_id(now: Timestamp) -> String {
    format!("{}{:x}", new_set_id(), session_period(now))
}

fn session_period(now: Timestamp) -> i64 {
    const YEAR_2000: i64 = 946_684_800;
    const PERIOD_SECONDS: i64 = 30 * 24 * 3600;
    // A clock before 2000 is wrong; the number only has to be one.
    (now.as_second() - YEAR_2000).max(0) / PERIOD_SECONDS
}

/// A new name for a compaction of index blobs.
pub fn new_set_id() -> String {
    format!("s{}", content_id::hex(&random::bytes::<8>()))
}

/// The session or compaction that the name of a pack or index blob tells (kopia-format 1.3).
pub fn session_of(blob_id: &str) -> Option<&str> {
    blob_id.split('-').skip(1).find(|part| part.starts_with('s'))
}

/// What a session marker says: packs of this session may be in no index yet, leave them alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionMarker {
    /// The session.
    pub id: String,
    /// When the session began.
    #[serde(rename = "startTime")]
    pub start_time: Timestamp,
    /// When the session was last known to go on; the latest of several markers counts.
    #[serde(rename = "checkpointTime")]
    pub checkpoint_time: Timestamp,
    /// Who writes.
    #[serde(default, deserialize_with = "json::null_as_default")]
    pub username: String,
    /// And where.
    #[serde(default, deserialize_with = "json::null_as_default")]
    pub hostname: String,
}

impl SessionMarker {
    /// What the marker's blob names begin with.
    pub const PREFIX: &str = "s";

    /// The plaintext of the marker's blob.
    pub fn to_json(&self) -> Vec<u8> {
        json::to_go_json(self)
    }

    /// Reads the plaintext of a marker's blob.
    pub fn parse(plaintext: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(plaintext)
    }
}

#[cfg(test)]
mod tests {
    use super::super::compression::CompressionId;
    use super::super::encryption::{blob_iv, whole_blob_name};
    use super::super::test_vectors::{Rng, master_key, nonce, secret, seq, unhex};
    use super::*;

    const P: &str = "p0123456789abcdef0123456789abcdef-s0011223344556677122";

    fn hasher() -> ContentHasher {
        ContentHasher::new("BLAKE2B-256-128", &secret()).unwrap()
    }

    fn cipher() -> ContentCipher {
        ContentCipher::new("AES256-GCM-HMAC-SHA256", &master_key()).unwrap()
    }

    fn seal(iv: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; NONCE_BYTES];
        buffer.extend_from_slice(plaintext);
        cipher().seal_with_nonce(iv, nonce(), &mut buffer);
        buffer
    }

    fn entry(id: &str, time: i64, offset: u32, original: u32, packed: u32, compression: u32) -> IndexEntry {
        IndexEntry {
            id: id.parse().unwrap(),
            timestamp_seconds: time,
            deleted: false,
            pack: P.into(),
            pack_offset: offset,
            packed_len: packed,
            original_len: original,
            compression: CompressionId(compression),
            format_version: 3,
            encryption_key_id: 0,
        }
    }

    /// The complete pack of kopia-format 11.5, with everything random in it as described there.
    fn kopias_pack() -> (Vec<u8>, Vec<IndexEntry>) {
        let mut pack = seq::<32>(0xc0).to_vec();
        let mut entries = Vec::new();
        let compressed = unhex("0000110028b52ffd20404500001061610100930016");
        for (n, (text, stored, compression)) in
            [(b"hello".to_vec(), b"hello".to_vec(), 0), (vec![b'a'; 64], compressed, 0x1100)].into_iter().enumerate()
        {
            let digest = hasher().digest(&text);
            let sealed = seal(digest.as_ref(), &stored);
            let (offset, packed) = (pack.len() as u32, sealed.len() as u32);
            let time = 1_700_000_000 + n as i64;
            entries.push(entry(&digest.to_string(), time, offset, text.len() as u32, packed, compression));
            pack.extend_from_slice(&sealed);
        }
        let padding = padding(pack.len()).len();
        assert_eq!(padding, 3982);
        pack.resize(pack.len() + padding, 0);
        let mut index = build(2, &mut entries).unwrap();
        index.extend_from_slice(&seq::<32>(0x60));
        let iv = hasher().digest(&index);
        append_index(&mut pack, iv.as_ref(), &seal(iv.as_ref(), &index));
        (pack, entries)
    }

    #[test]
    fn a_complete_pack_agrees_with_kopia() {
        let (pack, entries) = kopias_pack();
        assert_eq!(entries[0].id.to_string(), "0303f40780e21a28597f9b8787ad48f4");
        assert_eq!(entries[1].id.to_string(), "49ecd0dba00fe29eab8cd6fa803a8137");
        assert_eq!(pack.len(), 4339);
        let sum = ring::digest::digest(&ring::digest::SHA256, &pack);
        assert_eq!(content_id::hex(sum.as_ref()), "57caf3c5e5779818b2e41ce833ff4e1acf5300ad51633c026e357b8193630607");
        let postamble = unhex("0110d92e4e2baa546eee58b4edeff335133b8020d8015103c7a41a");
        assert!(pack.ends_with(&postamble));
        let recovered = recover_local_index(&pack, &cipher()).unwrap();
        assert_eq!(recovered.iter().collect::<Vec<_>>(), entries);
    }

    #[test]
    fn the_postamble_agrees_with_kopia() {
        let postamble = Postamble { iv: seq::<16>(0).to_vec(), index_offset: 8192, index_len: 300 };
        let mut written = b"before".to_vec();
        postamble.write(&mut written);
        assert_eq!(written[6..], unhex("0110000102030405060708090a0b0c0d0e0f8040ac020025a5021a"));
        assert_eq!(Postamble::parse(&written), Ok(postamble));
        let huge = Postamble { iv: vec![0xff; 32], index_offset: u64::MAX, index_len: 0 };
        huge.write(&mut written);
        assert_eq!(Postamble::parse(&written), Ok(huge));
    }

    #[test]
    fn a_finished_pack_recovers_its_entries() {
        for (index_version, hash) in [(1, "BLAKE2B-256-128"), (2, "BLAKE2S-256"), (2, "HMAC-SHA224")] {
            let hasher = ContentHasher::new(hash, &secret()).unwrap();
            for len in [PREAMBLE_BYTES, 4095, 4096, 4097] {
                let mut pack = preamble().to_vec();
                pack.resize(len, 0xee);
                let mut entries = vec![entry("00ff", 5, 32, 100, 128, 0), entry("k00ff", 6, 160, 100, 128, 0)];
                finish(&mut pack, &mut entries, index_version, &hasher, &cipher()).unwrap();
                let offset = Postamble::parse(&pack).unwrap().index_offset as usize;
                assert_eq!(offset % ALIGNMENT, 0);
                assert!((1..=ALIGNMENT).contains(&(offset - len)), "padding after {len} bytes");
                let recovered = recover_local_index(&pack, &cipher()).unwrap();
                assert_eq!(recovered.iter().collect::<Vec<_>>(), entries, "{hash}");
                assert!(Postamble::parse(&pack[pack.len() - 100..]).is_ok(), "the end suffices");
            }
        }
    }

    #[test]
    fn damaged_packs_never_recover_anything_else() {
        let (pack, entries) = kopias_pack();
        let mut rng = Rng(8);
        let tail = &pack[4000..];
        let mut refused = 0;
        for round in 0..5000 {
            let changed = rng.mutate(tail);
            let whole = [&pack[..4000], &changed].concat();
            // Padding before the index, and bytes between it and the postamble, may be anything.
            match recover_local_index(&whole, &cipher()) {
                Ok(recovered) => assert_eq!(recovered.iter().collect::<Vec<_>>(), entries, "round {round}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 2500, "{refused}");
        for len in 0..32 {
            assert!(recover_local_index(&pack[..len], &cipher()).is_err());
        }
    }

    /// Postambles with a right checksum and wrong fields.
    #[test]
    fn changed_postambles_give_an_error_or_what_they_say() {
        let mut rng = Rng(9);
        let fields = unhex("0110000102030405060708090a0b0c0d0e0f8040ac02");
        let with_checksum = |fields: &[u8]| {
            let mut tail = fields.to_vec();
            tail.extend_from_slice(&crc32fast::hash(fields).to_be_bytes());
            tail.push(tail.len() as u8);
            tail
        };
        let mut accepted = 0;
        for _ in 0..50_000 {
            let changed = rng.mutate(&fields);
            if changed.len() > 240 {
                continue;
            }
            if let Ok(postamble) = Postamble::parse(&with_checksum(&changed))
                && postamble.iv.len() <= 32
            {
                accepted += 1;
                let mut again = Vec::new();
                postamble.write(&mut again);
                assert_eq!(Postamble::parse(&again), Ok(postamble));
            }
        }
        assert!(accepted > 1000, "{accepted}");
        assert_eq!(Postamble::parse(&with_checksum(&fields[1..])), Err(PostambleError::UnknownVersion { version: 16 }));
        assert_eq!(Postamble::parse(&with_checksum(&[&fields[..], b"\x01"].concat())), Err(PostambleError::Fields));
        let endless = [&[0x80; 9][..], &[2]].concat();
        assert_eq!(Postamble::parse(&with_checksum(&endless)), Err(PostambleError::Fields));
    }

    #[test]
    fn names_have_the_form_that_kopia_parses() {
        for (time, tail) in
            [("2026-08-21T00:00:00Z", "144"), ("2026-11-22T00:00:00Z", "147"), ("1999-01-01T00:00:00Z", "0")]
        {
            let session = new_session_id(time.parse().unwrap());
            assert_eq!((session.len(), &session[17..]), (17 + tail.len(), tail), "{session}");
            let pack = new_pack_id('q', &session);
            assert_eq!((pack.len(), pack.as_bytes()[0], pack.as_bytes()[33]), (34 + session.len(), b'q', b'-'));
            assert_eq!(session_of(&pack), Some(&*session));
        }
        assert_eq!(new_set_id().len(), 17);
        assert_ne!(new_set_id(), new_set_id());
        assert_eq!(session_of("xn0_ab-s12-c1"), Some("s12"));
        assert_eq!(session_of("p00-x1-s2"), Some("s2"));
        assert_eq!(session_of("p00"), None);
        assert_eq!(session_of("s00"), None);
    }

    #[test]
    fn the_session_marker_agrees_with_kopia() {
        let time = "2026-01-01T00:00:00Z".parse().unwrap();
        let marker = SessionMarker {
            id: "s0011223344556677122".into(),
            start_time: time,
            checkpoint_time: time,
            username: "u".into(),
            hostname: "h".into(),
        };
        let plaintext = marker.to_json();
        let expected = br#"{"id":"s0011223344556677122","startTime":"2026-01-01T00:00:00Z","checkpointTime":"2026-01-01T00:00:00Z","username":"u","hostname":"h"}"#;
        assert_eq!(plaintext, expected);
        let name = whole_blob_name(SessionMarker::PREFIX, &hasher().digest(&plaintext), Some(&marker.id));
        assert_eq!(name, "s35fb1f25c7522098398dbde3749939e3-s0011223344556677122");
        let sealed = "000102030405060708090a0bc82eddb271f780324ae9e65d8f8116fa069400540a68a2d8ec8d555a6b06e5eff9f3426b046d71819e848b112fe248da7228177dc5b09668b40ca61f8f54b44c1dcb4443b5b8fed34d0a609b2ade012d3a40d0f68e2e95f0533bdeba65a0b0277dfebbcee2da966dcd2690540a85cbae4e6a55bd04d009adc033308136142539cd16e2920d9d4f9401ba9e6c832d66f8d7fe77ee7347";
        assert_eq!(seal(&blob_iv(&name).unwrap(), &plaintext), unhex(sealed));
        assert_eq!(SessionMarker::parse(&plaintext).unwrap(), marker);
        let local = br#"{ "id": "s1", "startTime": "2026-01-01T02:00:00+02:00", "checkpointTime": "2026-01-01T00:00:00Z", "x": 1 }"#;
        assert_eq!(SessionMarker::parse(local).unwrap().start_time, time);
        assert!(SessionMarker::parse(b"{}").is_err());
    }
}

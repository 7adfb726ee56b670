//! The overlay's keys, and its bytes sealed and opened (spec block-serving C.4).

use kopia_repo::format::keys::hkdf_sha256;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use zeroize::Zeroizing;

use super::format::{
    CELL_BYTES, HEADER_BYTES, HEADER_SIGNED_BYTES, RECORD_BYTES, RECORD_SIGNED_BYTES, SEALED_CELL_BYTES, SegmentHeader,
    TAG_BYTES,
};

/// Nonce index of a segment header's tag.
const HEADER_INDEX: u32 = u32::MAX;

/// The key of one disk's overlay in one session. Nothing of it is stored: it follows from the repository's secret.
pub struct DiskKey(Zeroizing<[u8; 32]>);

impl DiskKey {
    /// `secret` is the repository's, derived for the purpose `e3-overlay`.
    pub fn derive(secret: &[u8; 32], session: &[u8; 16], disk: &[u8; 16]) -> Self {
        let salt = [*session, *disk].concat();
        Self(hkdf_sha256(secret, &salt, b"e3 overlay v1"))
    }

    /// The key of a segment: another one for each file ever made, because each has its own random salt.
    pub(crate) fn segment(&self, salt: &[u8; 32], number: u64) -> SegmentKey {
        let info = [&b"segment"[..], &number.to_le_bytes()].concat();
        let key: Zeroizing<[u8; 32]> = hkdf_sha256(&self.0[..], salt, &info);
        let key = UnboundKey::new(&AES_256_GCM, &key[..]).expect("the key has the cipher's length");
        SegmentKey(LessSafeKey::new(key))
    }
}

impl std::fmt::Debug for DiskKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DiskKey")
    }
}

/// Seals what one segment holds. A nonce is an index and a sequence number; no sequence number is used twice in a
/// segment, so no nonce is used twice with a key.
pub(crate) struct SegmentKey(LessSafeKey);

/// Bytes that were not sealed by this key, or not as what they are taken for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotAuthentic;

impl SegmentKey {
    /// The header with its tag.
    pub(crate) fn seal_header(&self, header: &SegmentHeader) -> [u8; HEADER_BYTES] {
        let mut bytes = header.encode();
        let tag = self.tag(HEADER_INDEX, 0, &bytes[..HEADER_SIGNED_BYTES]);
        bytes[HEADER_SIGNED_BYTES..].copy_from_slice(&tag);
        bytes
    }

    /// Checks a header's tag.
    pub(crate) fn check_header(&self, bytes: &[u8; HEADER_BYTES]) -> Result<(), NotAuthentic> {
        let (signed, tag) = bytes.split_at(HEADER_SIGNED_BYTES);
        self.check(HEADER_INDEX, 0, signed, tag)
    }

    /// Adds the tag to a record's header.
    pub(crate) fn seal_record(&self, bytes: &mut [u8], sequence: u64) {
        let tag = self.tag(0, sequence, &bytes[..RECORD_SIGNED_BYTES]);
        bytes[RECORD_SIGNED_BYTES..RECORD_BYTES].copy_from_slice(&tag);
    }

    /// Checks the tag of a record's header.
    pub(crate) fn check_record(&self, bytes: &[u8; RECORD_BYTES], sequence: u64) -> Result<(), NotAuthentic> {
        let (signed, tag) = bytes.split_at(RECORD_SIGNED_BYTES);
        self.check(0, sequence, signed, tag)
    }

    /// Encrypts the cell that fills the front of `bytes`, in place, and puts the tag behind it.
    pub(crate) fn seal_cell(&self, bytes: &mut [u8], cell: u16, sequence: u64) {
        let (text, tag) = bytes[..SEALED_CELL_BYTES].split_at_mut(CELL_BYTES);
        let sealed = self.0.seal_in_place_separate_tag(nonce(1 + u32::from(cell), sequence), Aad::empty(), text);
        tag.copy_from_slice(sealed.expect("a cell is short enough for the cipher").as_ref());
    }

    /// Decrypts a cell with its tag, in place.
    pub(crate) fn open_cell<'b>(
        &self,
        bytes: &'b mut [u8],
        cell: u16,
        sequence: u64,
    ) -> Result<&'b [u8], NotAuthentic> {
        let nonce = nonce(1 + u32::from(cell), sequence);
        match self.0.open_in_place(nonce, Aad::empty(), bytes) {
            Ok(text) => Ok(text),
            Err(ring::error::Unspecified) => Err(NotAuthentic),
        }
    }

    fn tag(&self, index: u32, sequence: u64, signed: &[u8]) -> [u8; TAG_BYTES] {
        let sealed = self.0.seal_in_place_separate_tag(nonce(index, sequence), Aad::from(signed), &mut []);
        let tag = sealed.expect("a header is short enough for the cipher");
        tag.as_ref().try_into().expect("the cipher's tags have 16 bytes")
    }

    fn check(&self, index: u32, sequence: u64, signed: &[u8], tag: &[u8]) -> Result<(), NotAuthentic> {
        let mut tag = tag.to_vec();
        let opened = self.0.open_in_place(nonce(index, sequence), Aad::from(signed), &mut tag);
        opened.map(drop).map_err(|ring::error::Unspecified| NotAuthentic)
    }
}

fn nonce(index: u32, sequence: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&index.to_le_bytes());
    bytes[4..].copy_from_slice(&sequence.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::super::format::{RecordHeader, RecordKind};
    use super::*;

    fn count<const N: usize>(from: u8) -> [u8; N] {
        std::array::from_fn(|nth| from + nth as u8)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The golden segment of spec block-serving C.4, byte for byte.
    #[test]
    fn golden_segment() {
        let disk = DiskKey::derive(&count(0xC0), &count(0x20), &count(0x30));
        assert_eq!(hex(&disk.0[..]), "e55d66d7884e6d158e013b6fb9f80b2899f6c480e342e8e4529ac038eb0386fd");
        let key = disk.segment(&count(0x40), 1);
        let header = SegmentHeader {
            session: count(0x20),
            disk: count(0x30),
            number: 1,
            first_sequence: 1,
            oldest_needed: 1,
            size_bytes: 1 << 30,
            sector_bytes: 512,
            salt: count(0x40),
            base: count(0x60),
            previous: [0; 32],
        };
        let mut file = key.seal_header(&header).to_vec();
        assert_eq!(hex(&file[HEADER_SIGNED_BYTES..]), "8295633aa51753355d4f8dc0d7441f9d");
        let mut part = vec![0; CELL_BYTES];
        part[3 * 512..4 * 512].fill(0xAA);
        part[4 * 512..5 * 512].fill(0xBB);
        let whole: Vec<u8> = (0..2 * CELL_BYTES).map(|nth| nth as u8).collect();
        for (sequence, kind, first_sector, sectors, mark, data) in [
            (1, RecordKind::Data, 3, 2, 0, &part[..]),
            (2, RecordKind::Zero, 64, 1024, 0, &[]),
            (3, RecordKind::Data, 8, 16, 0, &whole),
            (4, RecordKind::Mark, 0, 0, 3, &[]),
        ] {
            let cells = (data.len() / CELL_BYTES) as u16;
            let record = RecordHeader { kind, cells, sequence, first_sector, sectors, mark };
            let mut bytes = record.encode().to_vec();
            key.seal_record(&mut bytes, sequence);
            if sequence == 1 {
                let expected = "4f56523101000100010000000000000003000000000000000200000000000000000000000000000010\
                                100000000000001865e6e861b116d0067d5cb000d42c90";
                assert_eq!(hex(&bytes), expected);
            }
            for (nth, cell) in data.chunks(CELL_BYTES).enumerate() {
                let mut sealed = [cell, &[0; TAG_BYTES]].concat();
                key.seal_cell(&mut sealed, nth as u16, sequence);
                bytes.extend(&sealed);
                assert_eq!(key.open_cell(&mut sealed.clone(), nth as u16, sequence), Ok(cell));
                assert_eq!(key.open_cell(&mut sealed.clone(), nth as u16 + 1, sequence), Err(NotAuthentic));
                assert_eq!(key.open_cell(&mut sealed, nth as u16, sequence + 1), Err(NotAuthentic));
            }
            file.extend(bytes);
        }
        assert_eq!(file.len(), 16_688);
        assert_eq!(hex(&sha256(&file)), "b6e088f058a63fccf9db0f7c37c7638845588d01b9191ccf57c8c17bb1a7b817");
    }

    #[test]
    fn a_changed_header_is_not_authentic() {
        let key = DiskKey::derive(&[1; 32], &[2; 16], &[3; 16]).segment(&[4; 32], 1);
        let mut record = [7; RECORD_BYTES];
        key.seal_record(&mut record, 5);
        assert_eq!(key.check_record(&record, 5), Ok(()));
        assert_eq!(key.check_record(&record, 6), Err(NotAuthentic), "another sequence number");
        for at in 0..RECORD_BYTES {
            let mut changed = record;
            changed[at] ^= 1;
            assert_eq!(key.check_record(&changed, 5), Err(NotAuthentic), "byte {at}");
        }
    }
}

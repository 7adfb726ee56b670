//! One content in the disk cache: sealed in frames, so that a small read opens no more than it asks for.
//!
//! | offset | size | |
//! |---|---|---|
//! | 0 | 8 | `45 33 43 41 43 48 45 01`: "E3CACHE", version 1 |
//! | 8 | 4 | length of the content, little-endian |
//! | 12 | 4 | length of a frame, 4096 |
//! | 16 | 32 | salt, random |
//! | 48 | 16 | zero |
//! | 64 | | frames: 4096 bytes of ciphertext, fewer in the last one, each with its tag of 16 |
//!
//! AES-256-GCM under a key of this file only: HKDF-SHA256 of the repository's secret, the salt, and what the file claims
//! to be. A frame's number is its nonce, so that none passes for another, of the same file or of a former one.

use std::io;
use std::path::Path;

use kopia_repo::format::keys::hkdf_sha256;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::folder::{DiskFile, StoredFile as _};

const MAGIC: [u8; 8] = *b"E3CACHE\x01";
const HEADER_BYTES: usize = 64;
const SALT: std::ops::Range<usize> = 16..48;
const FRAME_BYTES: usize = 4096;
const TAG_BYTES: usize = 16;
const SEALED_FRAME_BYTES: usize = FRAME_BYTES + TAG_BYTES;
/// Frames that are read by one call: long reads go through a buffer that stays in the processor's cache.
const FRAMES_AT_ONCE: usize = 15;
/// No content of a disk is longer; a file that claims so is not ours.
pub(crate) const MAX_CONTENT_BYTES: usize = 64 << 20;

/// The whole of a file that holds `content` under a name. `secret` is the repository's, derived for this purpose.
pub(crate) fn seal(secret: &[u8; 32], name: &str, content: &[u8]) -> Vec<u8> {
    let frames = content.len().div_ceil(FRAME_BYTES);
    let mut file = Vec::with_capacity(HEADER_BYTES + content.len() + frames * TAG_BYTES);
    file.extend(MAGIC);
    assert!(content.len() <= MAX_CONTENT_BYTES, "whoever keeps contents looks at their length");
    file.extend((content.len() as u32).to_le_bytes());
    file.extend((FRAME_BYTES as u32).to_le_bytes());
    file.extend(random::bytes::<32>());
    file.resize(HEADER_BYTES, 0);
    let key = key_of(secret, name, &file);
    for (number, frame) in content.chunks(FRAME_BYTES).enumerate() {
        let start = file.len();
        file.extend(frame);
        let tag = key.seal_in_place_separate_tag(nonce(number), Aad::empty(), &mut file[start..]);
        file.extend(tag.expect("a frame is short enough for the cipher").as_ref());
    }
    file
}

/// A sealed content in an open file; calls may run concurrently.
pub(crate) struct SealedContent {
    file: DiskFile,
    key: LessSafeKey,
    len_bytes: usize,
}

impl SealedContent {
    /// Opens a file that [`seal`] made. `InvalidData` when it is something else.
    pub(crate) fn open(path: &Path, secret: &[u8; 32], name: &str) -> io::Result<Self> {
        let file = DiskFile::open(path)?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0)?;
        let len_bytes = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        if header[..8] != MAGIC || len_bytes > MAX_CONTENT_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a file of this cache"));
        }
        Ok(Self { file, key: key_of(secret, name, &header), len_bytes })
    }

    /// Length of the content.
    pub(crate) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Fills `buf` from an offset of the content. `InvalidData` when a frame was changed, or the content ends before.
    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset_bytes: usize) -> io::Result<()> {
        if offset_bytes.checked_add(buf.len()).is_none_or(|end| end > self.len_bytes) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the content is shorter"));
        }
        let mut sealed = vec![0; SEALED_FRAME_BYTES * FRAMES_AT_ONCE.min(buf.len() / FRAME_BYTES + 2)];
        let (mut at, mut rest) = (offset_bytes, buf);
        while !rest.is_empty() {
            let first = at / FRAME_BYTES;
            let last = (at + rest.len()).div_ceil(FRAME_BYTES).min(first + sealed.len() / SEALED_FRAME_BYTES);
            let start = HEADER_BYTES + first * SEALED_FRAME_BYTES;
            let end = (HEADER_BYTES + last * SEALED_FRAME_BYTES).min(self.file_bytes());
            let sealed = &mut sealed[..end - start];
            self.file.read_exact_at(sealed, start as u64)?;
            for (number, sealed) in (first..).zip(sealed.chunks_mut(SEALED_FRAME_BYTES)) {
                let opened = self.key.open_in_place(nonce(number), Aad::empty(), sealed);
                let frame = opened.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a frame was changed"))?;
                let within = at - number * FRAME_BYTES;
                let take = (frame.len() - within).min(rest.len());
                let (here, behind) = rest.split_at_mut(take);
                here.copy_from_slice(&frame[within..within + take]);
                (at, rest) = (at + take, behind);
            }
        }
        Ok(())
    }

    fn file_bytes(&self) -> usize {
        HEADER_BYTES + self.len_bytes + self.len_bytes.div_ceil(FRAME_BYTES) * TAG_BYTES
    }
}

/// The header is in the key: what it says cannot be changed without every frame failing.
fn key_of(secret: &[u8; 32], name: &str, header: &[u8]) -> LessSafeKey {
    let info = [b"e3 cache v1", name.as_bytes(), &[0], &header[..SALT.start]].concat();
    let key: Zeroizing<[u8; 32]> = hkdf_sha256(secret, &header[SALT], &info);
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key[..]).expect("the key has the cipher's length"))
}

fn nonce(number: usize) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&(number as u64).to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [7; 32];

    fn opened(file: &[u8], name: &str) -> io::Result<SealedContent> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("content");
        std::fs::write(&path, file).unwrap();
        SealedContent::open(&path, &SECRET, name)
    }

    #[test]
    fn every_part_reads_as_it_was_sealed() {
        for len in [0, 1, 4095, 4096, 4097, 61_440, 200_001] {
            let content: Vec<u8> = (0..len as u32).map(|nth| (nth.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            let sealed = opened(&seal(&SECRET, "abc", &content), "abc").unwrap();
            assert_eq!(sealed.len_bytes(), len);
            for start in [0, 1, 511, 4095, 4096, 61_439, 61_440, len / 2, len] {
                for take in [0, 1, 512, 4096, 4097, 70_000, len] {
                    let mut buf = vec![0xEE; take];
                    let read = sealed.read_exact_at(&mut buf, start);
                    match content.get(start..start.saturating_add(take)) {
                        Some(expected) => assert!(read.is_ok() && buf == expected, "{take} at {start} of {len}"),
                        None => assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData, "{start} of {len}"),
                    }
                }
            }
        }
    }

    /// Whatever byte is changed, and wherever it is cut off: never other bytes than those sealed.
    #[test]
    fn what_was_changed_is_never_believed() {
        let content: Vec<u8> = (0..9000_u32).map(|nth| nth as u8).collect();
        let file = seal(&SECRET, "abc", &content);
        let read = |file: &[u8], name: &str| {
            let sealed = opened(file, name)?;
            let mut buf = vec![0; sealed.len_bytes()];
            sealed.read_exact_at(&mut buf, 0).map(|()| buf)
        };
        assert_eq!(read(&file, "abc").unwrap(), content);
        assert!(read(&file, "abd").is_err(), "another content");
        for at in (0..48).chain((64..file.len()).step_by(97)) {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert!(read(&changed, "abc").is_err(), "byte {at}");
        }
        for len in [0, 40, 63, 64, 4000, file.len() - 1] {
            assert!(read(&file[..len], "abc").is_err(), "cut off at {len}");
        }
        let mut swapped = file.clone();
        swapped[64..64 + 4112].copy_from_slice(&file[64 + 4112..64 + 2 * 4112]);
        assert!(read(&swapped, "abc").is_err(), "a frame in another's place");
        assert_ne!(file[64..], seal(&SECRET, "abc", &content)[64..], "another salt each time");
    }
}

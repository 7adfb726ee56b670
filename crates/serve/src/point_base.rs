//! A disk of a restore point as a base: its raw view, through the disk cache.

use std::error::Error;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use backup::{DiskObject, DiskObjectError, PointDisk};
use kopia_repo::{ContentId, ReadError, ReadErrorKind, Repository, SessionOptions, WriteError, WriteSession};
use zeroize::Zeroizing;

use crate::base::{Base, BaseError, Nearby, Origin, base_identity};
use crate::boot_set::{BootSet, MANIFEST_TYPE};
use crate::disk_cache::DiskCache;
use crate::overlay::sha256;
use crate::sealed_content::SealedContent;

/// A disk in a repository.
pub struct PointBase {
    disk: DiskObject,
    sector_bytes: u32,
    identity: [u8; 32],
    cache: Option<Arc<DiskCache>>,
}

impl PointBase {
    /// Serves `disk`, which was opened as what `described` says. What was read is kept in `cache`.
    pub fn new(disk: DiskObject, described: &PointDisk, cache: Option<Arc<DiskCache>>) -> Self {
        let identity = base_identity(&described.object, described.size_bytes);
        Self { disk, sector_bytes: described.logical_sector_bytes, identity, cache }
    }

    fn content_of(&self, segment: u64) -> Result<Option<ContentId>, DiskObjectError> {
        let per_block = u64::from(self.disk.layout().segments_per_block());
        self.disk.virtual_segment((segment / per_block) as u32, (segment % per_block) as u32)
    }

    /// Length of the file that the disk is stored as.
    pub(crate) fn stream_bytes(&self) -> u64 {
        self.disk.len_bytes()
    }

    /// The segments of the file that a range of it lies in, in order: the number of each, and which of its bytes.
    pub(crate) fn stream_pieces(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let number = self.disk.layout().segment_at(at);
            let covered = self.disk.layout().segment_range(number);
            let within = at - covered.start..range.end.min(covered.end) - covered.start;
            at = covered.end;
            Some((number, within))
        })
    }

    pub(crate) fn is_stream_segment_zero(&self, number: u64) -> Result<bool, BaseError> {
        let content = self.disk.segment(number).map_err(|error| object_error(number, &error))?;
        Ok(content == self.disk.zero_content())
    }

    /// Fills `bytes` with a segment of the file.
    pub(crate) fn read_stream_segment(&self, number: u64, bytes: &mut Vec<u8>) -> Result<Origin, BaseError> {
        bytes.clear();
        let range = self.disk.layout().segment_range(number);
        let content = self.disk.segment(number).map_err(|error| object_error(number, &error))?;
        let origin = self.read_content(number, &content, bytes)?;
        if bytes.len() as u64 != range.end - range.start {
            let message = format!("read segment {number} of the restore point's file: it has {} bytes", bytes.len());
            return Err(BaseError { is_unreachable: false, message });
        }
        Ok(origin)
    }

    /// Fills `buf` from an offset of the file, if all of it is in the cache.
    pub(crate) fn read_stream_nearby(&self, buf: &mut [u8], offset_bytes: u64) -> Result<Nearby, BaseError> {
        let mut found = Nearby::Known;
        let mut rest = &mut buf[..];
        for (number, within) in self.stream_pieces(offset_bytes..offset_bytes + rest.len() as u64) {
            let (here, behind) = rest.split_at_mut((within.end - within.start) as usize);
            let content = self.disk.segment(number).map_err(|error| object_error(number, &error))?;
            if content == self.disk.zero_content() {
                here.fill(0);
            } else if self.read_part_cached(&content, within.start, here) {
                found = Nearby::DiskCache;
            } else {
                return Ok(Nearby::No);
            }
            rest = behind;
        }
        Ok(found)
    }

    /// Whether fetching a segment of the file ahead would be no use: it is zero, or in the cache.
    pub(crate) fn is_stream_segment_nearby(&self, number: u64) -> bool {
        let content = self.disk.segment(number);
        content.is_ok_and(|content| content == self.disk.zero_content() || self.is_cached(&content))
    }

    fn is_cached(&self, content: &ContentId) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.has(&content.to_string()))
    }

    fn read_content(&self, segment: u64, content: &ContentId, bytes: &mut Vec<u8>) -> Result<Origin, BaseError> {
        if self.read_cached(content, bytes) {
            return Ok(Origin::DiskCache);
        }
        bytes.clear();
        self.fetch(content, bytes).map_err(|error| read_error(segment, &error))?;
        Ok(Origin::Repository)
    }

    /// From the cache; `false` when it is not there, or not as it should be.
    fn read_cached(&self, content: &ContentId, bytes: &mut Vec<u8>) -> bool {
        self.open_cached(content, |cached| {
            bytes.clear();
            bytes.resize(cached.len_bytes(), 0);
            cached.read_exact_at(bytes, 0)
        })
    }

    /// Fills `buf` from within a content in the cache.
    fn read_part_cached(&self, content: &ContentId, within_bytes: u64, buf: &mut [u8]) -> bool {
        self.open_cached(content, |cached| {
            cached.read_exact_at(buf, usize::try_from(within_bytes).unwrap_or(usize::MAX))
        })
    }

    fn open_cached(&self, content: &ContentId, read: impl FnOnce(&SealedContent) -> io::Result<()>) -> bool {
        let Some(cache) = &self.cache else { return false };
        let name = content.to_string();
        let Some(cached) = cache.get(&name) else { return false };
        let read = read(&cached);
        if let Err(error) = &read {
            tracing::debug!(name, %error, "what the disk cache had is not what it should be");
            cache.forget(&name);
        }
        read.is_ok()
    }

    fn fetch(&self, content: &ContentId, bytes: &mut Vec<u8>) -> Result<(), ReadError> {
        let repo = self.disk.repository();
        repo.append_content(content, bytes)?;
        // Only what proved right is kept.
        if let Some(cache) = &self.cache {
            cache.put(&content.to_string(), bytes);
        }
        Ok(())
    }
}

impl Base for PointBase {
    fn size_bytes(&self) -> u64 {
        self.disk.layout().geometry().size_bytes()
    }

    fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }

    fn segment_bytes(&self) -> u32 {
        self.disk.layout().segment_bytes()
    }

    fn identity(&self) -> [u8; 32] {
        self.identity
    }

    fn is_zero(&self, segment: u64) -> Result<bool, BaseError> {
        Ok(self.content_of(segment).map_err(|error| object_error(segment, &error))?.is_none())
    }

    fn read_nearby(&self, segment: u64, within_bytes: u64, buf: &mut [u8]) -> Result<Nearby, BaseError> {
        match self.content_of(segment).map_err(|error| object_error(segment, &error))? {
            None => {
                buf.fill(0);
                Ok(Nearby::Known)
            }
            Some(content) if self.read_part_cached(&content, within_bytes, buf) => Ok(Nearby::DiskCache),
            Some(_) => Ok(Nearby::No),
        }
    }

    fn is_nearby(&self, segment: u64) -> bool {
        self.content_of(segment).is_ok_and(|content| content.is_none_or(|content| self.is_cached(&content)))
    }

    fn read_segment(&self, segment: u64, bytes: &mut Vec<u8>) -> Result<Origin, BaseError> {
        bytes.clear();
        let content = self.content_of(segment).map_err(|error| object_error(segment, &error))?;
        let origin = match content {
            None => {
                bytes.resize(self.segment_bytes() as usize, 0);
                Origin::DiskCache
            }
            Some(content) => self.read_content(segment, &content, bytes)?,
        };
        if bytes.len() != self.segment_bytes() as usize {
            let message = format!("read segment {segment} of the restore point's disk: it has {} bytes", bytes.len());
            return Err(BaseError { is_unreachable: false, message });
        }
        bytes.truncate(self.len_of(segment) as usize);
        Ok(origin)
    }
}

fn object_error(segment: u64, error: &DiskObjectError) -> BaseError {
    match error {
        DiskObjectError::Repository(error) => read_error(segment, error),
        error => BaseError { is_unreachable: false, message: message(segment, error) },
    }
}

fn read_error(segment: u64, error: &ReadError) -> BaseError {
    BaseError { is_unreachable: error.kind() == ReadErrorKind::Storage, message: message(segment, error) }
}

fn message(segment: u64, error: &dyn Error) -> String {
    let mut text = format!("read segment {segment} of the restore point's disk: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The id that a disk of a point has in sessions: it follows from the virtual disk's own.
pub fn disk_id_of(disk: &PointDisk) -> [u8; 16] {
    let sum = sha256(disk.virtual_disk_id.to_ascii_lowercase().as_bytes());
    std::array::from_fn(|nth| sum[nth])
}

/// The secret that the overlays of this repository's points are sealed by: not stored, so whoever can serve the point
/// can recover the overlay, and nobody else (spec block-serving C.4).
pub fn overlay_secret(repo: &Repository) -> Zeroizing<[u8; 32]> {
    repo.derive_key("e3-overlay")
}

/// The secret that the disk cache of this repository's contents is sealed by; as little stored as the overlays'.
pub fn cache_secret(repo: &Repository) -> Zeroizing<[u8; 32]> {
    repo.derive_key("e3-cache")
}

/// The boot set of a VM; `None` when there is none that can be used.
pub fn read_boot_set(repo: &Repository, vm_id: &str) -> Result<Option<BootSet>, ReadError> {
    let manifests = repo.find_manifests(&[("type", MANIFEST_TYPE), ("vm-id", vm_id)])?;
    let newest = manifests.into_iter().max_by_key(|manifest| manifest.modified);
    let set = newest.and_then(|manifest| serde_json::from_str(manifest.data.get()).ok());
    Ok(set.filter(BootSet::is_usable))
}

/// Keeps the boot set of a VM; only the newest stays.
pub fn record_boot_set(repo: &Arc<Repository>, vm_id: &str, set: &BootSet) -> Result<(), RecordError> {
    let session = WriteSession::new(repo.clone(), SessionOptions { parallel_uploads: 1 })?;
    for old in repo.find_manifests(&[("type", MANIFEST_TYPE), ("vm-id", vm_id)])? {
        session.delete_manifest(&old.id, old.modified);
    }
    session.put_manifest([("type", MANIFEST_TYPE), ("vm-id", vm_id)].map(|(k, v)| (k.to_owned(), v.to_owned())), set);
    Ok(session.flush()?)
}

/// Why a boot set was not kept.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// What was there could not be read.
    #[error("look for earlier boot sets")]
    Read(#[from] ReadError),
    /// It could not be written.
    #[error("write the boot set")]
    Write(#[from] WriteError),
}

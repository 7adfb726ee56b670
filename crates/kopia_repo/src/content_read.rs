//! Reading contents: from a pack's range to checked plaintext.

use std::collections::HashMap;
use std::sync::Mutex;

use bucket::BucketError;
use bytes::Bytes;

use crate::Repository;
use crate::blob::BlobStore;
use crate::error::ReadError;
use crate::format::compression::{CompressionId, DecompressContext, decompress};
use crate::format::content_id::ContentId;
use crate::format::encryption::NONCE_BYTES;
use crate::format::index::IndexEntry;

/// Longest content of a data pack that is read in one piece; longer ones (up to the format's 2^28) are refused rather
/// than trusted with that much memory. Kopia's own splitters make at most 16 MiB.
const MAX_CONTENT_BYTES: u32 = 1 << 27;

impl Repository {
    /// The plaintext of a content, with its length and hash checked.
    ///
    /// When the pack is gone the index is refreshed and the content looked up once more: others may have moved it
    /// (spec 3.12).
    pub fn read_content(&self, id: &ContentId) -> Result<Vec<u8>, ReadError> {
        let mut plaintext = Vec::new();
        self.append_content(id, &mut plaintext)?;
        Ok(plaintext)
    }

    /// The same into a buffer that the caller reuses; what it held is replaced.
    pub fn read_content_into(&self, id: &ContentId, plaintext: &mut Vec<u8>) -> Result<(), ReadError> {
        plaintext.clear();
        self.append_content(id, plaintext)
    }

    /// The same, appended to a buffer of the caller's; on an error the buffer is as it was.
    pub fn append_content(&self, id: &ContentId, plaintext: &mut Vec<u8>) -> Result<(), ReadError> {
        let start = plaintext.len();
        self.try_append(id, plaintext).inspect_err(|_| plaintext.truncate(start))
    }

    fn try_append(&self, id: &ContentId, plaintext: &mut Vec<u8>) -> Result<(), ReadError> {
        let (entry, stored) = self.fetch_current(id)?;
        let start = plaintext.len();
        let Err(error) = self.decode(&entry, &stored, plaintext) else { return Ok(()) };
        if !matches!(error, ReadError::DamagedContent { .. }) {
            return Err(error);
        }
        // What was damaged on its way only is whole when it comes again, and must not stay among the windows.
        plaintext.truncate(start);
        self.windows.forget(&entry.pack);
        let (entry, stored) = self.fetch_current(id)?;
        self.decode(&entry, &stored, plaintext)
    }

    fn fetch_current(&self, id: &ContentId) -> Result<(IndexEntry, Bytes), ReadError> {
        let entry = self.lookup(id)?;
        let missing = match entry {
            Some(entry) => match self.fetch(&entry) {
                Ok(stored) => return Ok((entry, stored)),
                Err(error) if error.is_not_found() => ReadError::MissingPack { id: *id, pack: entry.pack.to_string() },
                Err(error) => return Err(self.fetch_failed(&entry, error)),
            },
            None => ReadError::MissingContent { id: *id },
        };
        self.refresh()?;
        let Some(entry) = self.view().lookup(id)? else { return Err(missing) };
        match self.fetch(&entry) {
            Ok(stored) => Ok((entry, stored)),
            Err(error) if error.is_not_found() => Err(missing),
            Err(error) => Err(self.fetch_failed(&entry, error)),
        }
    }

    /// The length of every pack that is there, by its name: for checking that what an index names exists.
    pub fn pack_lengths(&self) -> Result<HashMap<String, u64>, ReadError> {
        let mut lengths = HashMap::new();
        for prefix in ["p", "q"] {
            let packs = self.blobs().list(prefix).map_err(ReadError::storage("the list of packs"))?;
            lengths.extend(packs.into_iter().map(|pack| (pack.id, pack.len_bytes)));
        }
        Ok(lengths)
    }

    fn fetch(&self, entry: &IndexEntry) -> Result<Bytes, BucketError> {
        let (offset, len) = (u64::from(entry.pack_offset), u64::from(entry.packed_len));
        match entry.id.prefix() {
            None => self.blobs().get_range(&entry.pack, offset, len),
            Some(_) => self.windows.read(self.blobs(), &entry.pack, offset, len),
        }
    }

    fn fetch_failed(&self, entry: &IndexEntry, source: BucketError) -> ReadError {
        if source.kind() == bucket::ErrorKind::RangeNotSatisfiable {
            return damaged(entry, "the pack is shorter than its index says");
        }
        ReadError::Storage { what: format!("content {} from pack {}", entry.id, entry.pack), source }
    }

    /// Decrypts, decompresses and checks one stored content; appends it.
    pub(crate) fn decode(&self, entry: &IndexEntry, stored: &[u8], plaintext: &mut Vec<u8>) -> Result<(), ReadError> {
        if entry.encryption_key_id != 0 {
            return Err(ReadError::Unsupported {
                what: format!("content {}", entry.id),
                problem: format!("it was encrypted with key {}", entry.encryption_key_id),
            });
        }
        if entry.original_len > MAX_CONTENT_BYTES {
            return Err(damaged(entry, "it claims to be longer than any content"));
        }
        let iv = entry.id.iv();
        let start = plaintext.len();
        if entry.compression == CompressionId::NONE {
            plaintext.extend_from_slice(stored);
            let sealed = &mut plaintext[start..];
            let len = self.cipher().open(&iv, sealed).map_err(|error| damaged(entry, error))?.len();
            // The plaintext lies behind the nonce, in front of the tag.
            sealed.copy_within(NONCE_BYTES..NONCE_BYTES + len, 0);
            plaintext.truncate(start + len);
        } else {
            SCRATCH.with_borrow_mut(|(sealed, context)| {
                sealed.clear();
                sealed.extend_from_slice(stored);
                let opened = self.cipher().open(&iv, sealed).map_err(|error| damaged(entry, error))?;
                decompress(opened, entry.compression, entry.original_len as usize, context, plaintext)
                    .map_err(|error| damaged(entry, error))
            })?;
        }
        let plaintext = &plaintext[start..];
        if plaintext.len() != entry.original_len as usize {
            return Err(damaged(entry, format!("{} bytes instead of {}", plaintext.len(), entry.original_len)));
        }
        if self.hasher().digest(plaintext).as_ref() != entry.id.hash() {
            return Err(damaged(entry, "its bytes do not have its hash"));
        }
        Ok(())
    }
}

thread_local! {
    /// Ciphertext of a compressed content, and the decoder's tables: per thread, because readers come in many
    /// threads and both are expensive to make anew.
    static SCRATCH: std::cell::RefCell<(Vec<u8>, DecompressContext)> = std::cell::RefCell::default();
}

fn damaged(entry: &IndexEntry, problem: impl ToString) -> ReadError {
    ReadError::DamagedContent {
        id: entry.id,
        pack: entry.pack.to_string(),
        offset: entry.pack_offset,
        problem: problem.to_string(),
    }
}

/// Recently read pieces of metadata packs.
///
/// Directories, manifests and index streams are small and lie close together in the order in which they are read:
/// one request for the neighbourhood replaces many small ones.
#[derive(Default)]
pub(crate) struct MetadataWindows {
    state: Mutex<WindowState>,
}

#[derive(Default)]
struct WindowState {
    windows: Vec<Window>,
    pack_lens: HashMap<String, u64>,
    tick: u64,
}

struct Window {
    pack: String,
    offset: u64,
    bytes: Bytes,
    used: u64,
}

const WINDOW_BYTES: u64 = 1 << 20;
const MAX_WINDOWS: usize = 16;

impl MetadataWindows {
    /// Of this pack nothing is kept.
    fn forget(&self, pack: &str) {
        let mut state = self.state.lock().expect("no panic while held");
        state.windows.retain(|window| window.pack != pack);
        state.pack_lens.remove(pack);
    }

    fn read(&self, blobs: &BlobStore, pack: &str, offset: u64, len: u64) -> Result<Bytes, BucketError> {
        if let Some(bytes) = self.cached(pack, offset, len) {
            return Ok(bytes);
        }
        let pack_len = match self.pack_len(pack) {
            Some(len) => len,
            None => {
                let len = blobs.head(pack)?.len_bytes;
                self.state.lock().expect("no panic while held").pack_lens.insert(pack.to_owned(), len);
                len
            }
        };
        let end = (offset + len.max(WINDOW_BYTES)).min(pack_len).max(offset + len);
        let bytes = blobs.get_range(pack, offset, end - offset)?;
        if (bytes.len() as u64) < len {
            // A store that cuts answers short, or a pack that was cut: whoever decodes it says so.
            return Ok(bytes);
        }
        let wanted = bytes.slice(..len as usize);
        let mut state = self.state.lock().expect("no panic while held");
        state.tick += 1;
        let window = Window { pack: pack.to_owned(), offset, bytes, used: state.tick };
        if state.windows.len() < MAX_WINDOWS {
            state.windows.push(window);
        } else if let Some(oldest) = state.windows.iter_mut().min_by_key(|window| window.used) {
            *oldest = window;
        }
        Ok(wanted)
    }

    fn cached(&self, pack: &str, offset: u64, len: u64) -> Option<Bytes> {
        let mut state = self.state.lock().expect("no panic while held");
        state.tick += 1;
        let tick = state.tick;
        let window = state.windows.iter_mut().find(|window| {
            window.pack == pack && window.offset <= offset && offset + len <= window.offset + window.bytes.len() as u64
        })?;
        window.used = tick;
        let start = (offset - window.offset) as usize;
        Some(window.bytes.slice(start..start + len as usize))
    }

    fn pack_len(&self, pack: &str) -> Option<u64> {
        self.state.lock().expect("no panic while held").pack_lens.get(pack).copied()
    }
}

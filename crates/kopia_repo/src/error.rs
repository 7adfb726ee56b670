//! What can go wrong when a repository is opened, read or written.

use bucket::BucketError;

use crate::format::compression::CompressError;
use crate::format::content_id::{ContentId, ObjectId};

/// Why a repository cannot be opened or created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The storage did not answer, or refused.
    #[error("open the repository in {store}")]
    Storage {
        /// Where it was looked for.
        store: String,
        /// The failed call.
        #[source]
        source: BucketError,
    },
    /// There is no `kopia.repository`.
    #[error("there is no repository in {store}")]
    NotFound {
        /// Where it was looked for.
        store: String,
    },
    /// There is one already.
    #[error("there is already a repository in {store}")]
    Exists {
        /// Where it was to be created.
        store: String,
    },
    /// The password does not open it.
    #[error("the password does not open the repository in {store}")]
    WrongPassword {
        /// Which repository.
        store: String,
    },
    /// Another client is upgrading it.
    #[error("the repository in {store} is locked for an upgrade by {owner}: {message}")]
    UpgradeLocked {
        /// Which repository.
        store: String,
        /// The lock's owner.
        owner: String,
        /// The owner's message, if any.
        message: String,
    },
    /// A version, algorithm or feature that this program cannot handle.
    #[error("the repository in {store} cannot be used: {problem}")]
    Unsupported {
        /// Which repository.
        store: String,
        /// What is unknown.
        problem: String,
    },
    /// `kopia.repository` or `kopia.blobcfg` is not what it should be.
    #[error("the repository in {store} is damaged: {problem}")]
    Damaged {
        /// Which repository.
        store: String,
        /// What does not hold.
        problem: String,
    },
    /// The index could not be loaded.
    #[error("load the index of the repository in {store}")]
    Index {
        /// Which repository.
        store: String,
        /// Why.
        #[source]
        source: Box<ReadError>,
    },
    /// The first records could not be written.
    #[error("write the first records of the repository in {store}")]
    Initialize {
        /// Which repository.
        store: String,
        /// Why.
        #[source]
        source: Box<WriteError>,
    },
}

/// Why something cannot be read from a repository.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The storage did not answer, or refused.
    #[error("read {what}")]
    Storage {
        /// What was read: an index, a pack, a listing.
        what: String,
        /// The failed call.
        #[source]
        source: BucketError,
    },
    /// No index names this content.
    #[error("content {id} is not in the repository")]
    MissingContent {
        /// The content.
        id: ContentId,
    },
    /// The pack that holds a content is gone, also after a look at the newest index.
    #[error("pack {pack}, which holds content {id}, is not in the repository")]
    MissingPack {
        /// The content.
        id: ContentId,
        /// Its pack.
        pack: String,
    },
    /// A stored content is not the one that was written.
    #[error("content {id} in pack {pack} at offset {offset} is damaged: {problem}")]
    DamagedContent {
        /// The content.
        id: ContentId,
        /// Its pack.
        pack: String,
        /// Where in the pack.
        offset: u32,
        /// What does not hold.
        problem: String,
    },
    /// An index, manifest or other blob is not what it should be.
    #[error("{what} is damaged: {problem}")]
    Damaged {
        /// The blob or content.
        what: String,
        /// What does not hold.
        problem: String,
    },
    /// An object's index stream or directory is not what it should be.
    #[error("object {id} is damaged: {problem}")]
    DamagedObject {
        /// The object.
        id: ObjectId,
        /// What does not hold.
        problem: String,
    },
    /// A read reaches past the end of an object.
    #[error("read {len} bytes at offset {offset} of object {id}, which has {object_len} bytes")]
    PastEnd {
        /// The object.
        id: ObjectId,
        /// Where the read began.
        offset: u64,
        /// How much was asked for.
        len: u64,
        /// How long the object is.
        object_len: u64,
    },
    /// Not there under this name.
    #[error("{what} is not in the repository")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// The password was changed since the repository was opened: it has to be opened again with the new one.
    #[error("the repository's password was changed since it was opened")]
    PasswordChanged,
    /// Something that this program cannot handle.
    #[error("{what}: {problem}")]
    Unsupported {
        /// What was read.
        what: String,
        /// What is unknown.
        problem: String,
    },
}

/// What a caller can do about a failed read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadErrorKind {
    /// Something that should be there is gone.
    Missing,
    /// Bytes are not what was written.
    Damaged,
    /// The storage failed; trying again may help.
    Storage,
    /// This program cannot handle it.
    Unsupported,
}

impl ReadError {
    /// What a caller can do.
    pub fn kind(&self) -> ReadErrorKind {
        match self {
            Self::Storage { .. } => ReadErrorKind::Storage,
            Self::MissingContent { .. } | Self::MissingPack { .. } | Self::NotFound { .. } => ReadErrorKind::Missing,
            Self::DamagedContent { .. } | Self::Damaged { .. } | Self::DamagedObject { .. } | Self::PastEnd { .. } => {
                ReadErrorKind::Damaged
            }
            Self::PasswordChanged | Self::Unsupported { .. } => ReadErrorKind::Unsupported,
        }
    }

    pub(crate) fn storage(what: impl Into<String>) -> impl FnOnce(BucketError) -> Self {
        let what = what.into();
        move |source| Self::Storage { what, source }
    }

    pub(crate) fn damaged(what: impl Into<String>, problem: impl ToString) -> Self {
        Self::Damaged { what: what.into(), problem: problem.to_string() }
    }
}

/// Why something cannot be written to a repository. A session that returned one writes no more: what it had not
/// flushed is garbage that maintenance collects.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The storage did not answer, or refused.
    #[error("write {what}")]
    Storage {
        /// What was written.
        what: String,
        /// The failed call.
        #[source]
        source: BucketError,
    },
    /// The index had to be looked at, and could not.
    #[error("look up what the repository holds")]
    Lookup(#[from] ReadError),
    /// Other clients closed the epoch this index belonged to while it was written; it was taken back.
    #[error("the index epoch {epoch} was closed by others while this session wrote into it; nothing was lost but time")]
    EpochClosed {
        /// The epoch.
        epoch: u64,
    },
    /// The clock of this machine and of the storage disagree.
    #[error(
        "the clock of this machine is {seconds} s {direction} of the storage's; set it right, because a wrong clock \
         makes other clients discard what is written"
    )]
    ClockSkew {
        /// By how much.
        seconds: u64,
        /// `ahead` or `behind`.
        direction: &'static str,
    },
    /// A repository this program can read but must not write.
    #[error("the repository cannot be written: {problem}")]
    ReadOnly {
        /// Why.
        problem: String,
    },
    /// A compressor that this program cannot run.
    #[error("compress a content")]
    Compress(#[from] CompressError),
    /// A content that no repository can hold.
    #[error("a content of {len} bytes is too long")]
    ContentTooLong {
        /// Its length.
        len: usize,
    },
    /// An earlier write of this session failed.
    #[error("an earlier write of this session failed: {problem}")]
    SessionFailed {
        /// The first failure.
        problem: String,
        /// Its kind, if storage failed.
        kind: Option<bucket::ErrorKind>,
    },
}

impl WriteError {
    pub(crate) fn storage(what: impl Into<String>) -> impl FnOnce(BucketError) -> Self {
        let what = what.into();
        move |source| Self::Storage { what, source }
    }

    /// The kind of the storage failure at the bottom, if there is one.
    pub fn storage_kind(&self) -> Option<bucket::ErrorKind> {
        match self {
            Self::Storage { source, .. } | Self::Lookup(ReadError::Storage { source, .. }) => Some(source.kind()),
            Self::SessionFailed { kind, .. } => *kind,
            _ => None,
        }
    }
}

//! Repositories in Kopia's format: opened, created, read and written beside stock Kopia.
//!
//! The layers are Kopia's own. *Blobs* lie in a bucket. *Contents*, deduplicated by a keyed hash, compressed and
//! encrypted, lie in *pack blobs*; *index blobs* say where. *Objects* are byte streams made of contents; *manifests*
//! are labelled records; a *snapshot* is a manifest that names the object of a root directory.
//!
//! Reading: [`Repository::open`], then [`Repository::snapshots`], [`Repository::read_directory`] and
//! [`Repository::open_object`]; every content is checked against its hash. Writing: a [`WriteSession`] takes contents
//! from any number of threads and manifests; [`WriteSession::flush`] makes all of it durable and visible, in the order
//! that keeps other clients right. [`grouped`] is for objects with very many segments that change a little each time.
//!
//! [`mod@retention`] says which snapshots a policy keeps, by Kopia's rules; policies are [`StoredPolicy`].
//!
//! Not here: what the bytes mean, cutting files into pieces by their content, maintenance.
//!
//! Read [`mod@format`] for the bytes, then `repository.rs`, `session.rs`, `object.rs`. The source of every rule is Kopia
//! itself, version 0.23.1; section numbers in comments ("spec 4.7") are those of the project's description of it.

pub mod format;
pub mod grouped;

mod blob;
mod change_password;
mod content_read;
mod error;
mod index_view;
mod manifests;
mod object;
mod policies;
mod repository;
mod restore_tree;
pub mod retention;
mod session;
mod snapshots;

pub use blob::{Storage, StorageKind};
pub use change_password::PasswordChange;
pub use error::{OpenError, ReadError, ReadErrorKind, WriteError};
pub use format::compression::CompressionId;
pub use format::content_id::{ContentId, ObjectId};
pub use object::ObjectReader;
pub use policies::{PolicyTarget, StoredPolicy};
pub use repository::{ClientOptions, CreateOptions, Description, Repository};
pub use restore_tree::{
    EntryFailure, EntryProblem, Owners, RestoreTreeError, RestoreTreeOptions, RestoreTreeReport, TreeEvent,
    base_name_of, restore_tree,
};
pub use session::{DIRECTORY_PREFIX, INDEX_PREFIX, SessionOptions, SessionStats, SharedSession, WriteSession, Written};
pub use snapshots::{Snapshot, object_of};

//! The repository format: bytes to values and back.
//!
//! Nothing here reads or writes a file, starts a thread or looks at a clock. What comes from a repository is taken for
//! hostile: every parser answers with an error or a value, and allocates no more than the bytes given to it justify.
//!
//! In reading order: [`format_blob`] opens with a password, by way of [`keys`], and holds the [`repository_format`];
//! [`hashing`], [`encryption`] and
//! [`compression`] make stored bytes of plaintext; [`content_id`] names the result; [`pack`] says what surrounds it,
//! [`index`] where it lies, and [`epoch`] which index blobs count. Above contents, [`index_stream`] describes objects,
//! [`manifest`] labelled records, and [`snapshot`], [`policy`] and [`maintenance_params`] what is in them.
//!
//! Sections in comments ("kopia-format 4.3") are those of the project's description of the format; its source is Kopia
//! 0.23.1. Not supported: error correction, the index manager without epochs (its indexes are read), writing lz4.

pub mod compression;
pub mod content_id;
pub mod encryption;
pub mod epoch;
pub mod format_blob;
pub mod hashing;
pub mod index;
pub mod index_stream;
pub mod keys;
pub mod maintenance_params;
pub mod manifest;
pub mod pack;
pub mod policy;
pub mod repository_format;
pub mod snapshot;
pub mod time;
pub mod upgrade_lock;

mod json;
pub(crate) mod random;
#[cfg(test)]
mod test_vectors;

//! An NTFS volume that exists only as far as somebody reads it.
//!
//! Hyper-V takes virtual disks from a volume of Windows', not from a protocol. So a block device is made up here that
//! *is* such a volume, on a disk with a GPT: the metadata of NTFS follows from a list of names and sizes, and each file is
//! one run of clusters, so that a place on the disk is a place in a file by one subtraction. Whoever serves the disk has
//! the bytes of the files, and keeps what is written to it.
//!
//! [`Parameters`] say what is on it, [`Disk::build`] makes the metadata (under a megabyte, in milliseconds),
//! [`Disk::pieces`] and [`Disk::read`] say what a range is. Nothing here opens a file or knows what the files hold.
//!
//! Where to start reading: `parameters.rs`, `layout.rs` (where everything lies), `metadata.rs` (what it says, with
//! `record.rs`, `index.rs`, `security.rs`, `upcase.rs` for its parts), `disk.rs`. Source of all structures: "spec
//! block-serving D", whose golden disks the tests compare with.

mod bytes;
mod disk;
mod index;
mod layout;
mod metadata;
mod parameters;
mod record;
mod security;
mod upcase;

pub use disk::{Disk, Piece, Pieces};
pub use parameters::{FileContent, MOST_FILES, MOST_RESIDENT_BYTES, ParameterError, Parameters, VolumeFile};

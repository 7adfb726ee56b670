//! Virtual hard disk files: VHDX for reading and writing, VHD for reading.
//!
//! A VHDX keeps a virtual disk as *payload blocks*, found through the *block allocation table* (BAT). A
//! *differencing* file holds only what changed since its parent was frozen; *sector bitmap blocks* say which
//! sectors of a block those are. All metadata changes pass through a *log*, so that a file is consistent after
//! a crash at any instant.
//!
//! How a use flows:
//!
//! - **Read.** [`open_disk`] opens a file of any kind, finds its parents, and gives an [`OpenedDisk`], a
//!   [`VirtualDisk`]: `read_exact_at` for bytes, `extents` for what is known without reading. Nothing is written;
//!   a log left dirty by a crash is replayed in memory.
//! - **Write.** [`create()`] and [`create_differencing`] make files; [`WritableVhdx`] replays the log in the file
//!   and then writes to it crash-consistently; [`Merge`] folds a child into its parent.
//! - **Stream.** [`stream`] lays a disk out as a dynamic VHDX by rule, as a pure function with random access:
//!   the same disk gives the same bytes.
//! - **Convert.** [`convert`] writes any [`VirtualDisk`] to a raw file or to a VHDX.
//!
//! Left out: anything that asks Hyper-V, change tracking files (`.rct`, `.mrt`), VHD Sets (`.vhds`), writing VHD.
//! Files are hostile input: whatever their bytes, opening them ends in an error or in a disk, with bounded memory.
//!
//! Where to start reading: `format.rs` (the layout on disk), `file.rs` (opening one file), `replay.rs` (its log),
//! `chain.rs` (parents), then `write.rs` and `session.rs`. Source of the format: MS-VHDX v8.0, corrected where files written by
//! Windows contradict it.

mod guid;
pub mod io;

mod format;
mod layout;

mod disk;
mod error;
mod info;

mod bat;
mod extent;
mod file;
mod locator;
mod metadata;
mod replay;
mod space;

mod chain;
mod raw;
mod search;
mod vhd;

mod bitmap;
mod rewrite;
mod session;
mod write;

mod create;
mod image;
mod merge;

pub mod convert;
pub mod stream;

pub use chain::{Layer, LayerFile, OpenOptions, OpenedDisk, open_disk};
pub use create::{
    CreateError, CreateOptions, DifferencingOptions, ParentPaths, create, create_differencing, create_differencing_in,
    create_in,
};
pub use disk::{DiskGeometry, Extent, ExtentKind, Extents, FileExtent, FileExtentKind, ReadError, VirtualDisk};
pub use error::{OpenError, OpenErrorKind, ParentAttempt};
pub use file::VhdxFile;
pub use guid::{Guid, ParseGuidError};
pub use info::{DiskKind, FileFormat, FileInfo};
pub use io::{ReadAt, WriteAt};
pub use layout::GeometryError;
pub use locator::ParentLocator;
pub use merge::{Merge, MergeError, MergeProgress};
pub use raw::RawFile;
pub use search::{FindParents, ParentRequest, ParentSearch};
pub use vhd::VhdFile;
pub use write::{WritableVhdx, WriteError};

//! Virtual machines that run from the backup while their disks move to where they stay.
//!
//! Each session has a folder in the state folder, with [`serve::Session`]'s files and three of this program's:
//! [`Record`], how it is served, written once; [`Wanted`], what its operator wants to become of it; [`Figures`], how it
//! is, told once a second. One process, the keeper (`keeper`), serves a session; others speak to it through `Wanted`
//! alone, so that what was asked for outlives a kill of any of them.
//!
//! Start with `record.rs`, then `keeper.rs`. Under Hyper-V the disks are files on a volume and a VM is made: `hyperv.rs`
//! keeps those, and `copying.rs` brings the files to where they stay. `qemu.rs` is what a person puts into QEMU's command
//! line or libvirt's definition, `qmp.rs` how QEMU itself moves the disks.

mod boot;
mod copying;
mod find;
pub mod hyperv;
mod keeper;
pub mod qemu;
#[cfg(unix)]
pub mod qmp;
mod record;

pub use boot::Boot;
pub use find::{Found, all, find, state_folder};
pub use keeper::{Ending, Keeper};
pub use record::{CHAP_SECRET, Figures, HypervRecord, Record, RecordedDisk, Served, Wanted};

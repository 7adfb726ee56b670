//! A Hyper-V host in a folder.
//!
//! [`LabHost`] holds virtual machines with real VHDX files, answers the three seam traits of the `hyperv` crate the way
//! `vmms.exe` and `virtdisk.dll` do, and is stricter than they are: it carries its own class schema (`schema.json`), and
//! a name, type or reference that is not in it is an error, never ignored.
//!
//! A use flows like this: [`LabHost::create`] makes the folder, [`LabHost::add_vm`] puts a machine of any kind in it
//! ([`VmOptions`], [`DiskSource`]), and [`LabHost::seam`] is handed to the program under test, in this process or (by
//! [`LabHost::open`]) in another one. Between its calls the test plays
//!
//! - the guests: [`LabHost::guest_write`], [`VssBehaviour`];
//! - the administrator: checkpoints made, deleted and applied, disks added, removed, moved and resized, files moved,
//!   [`LabHost::copy_disk`] and [`LabHost::revert_disk`] for storage that goes back in time;
//! - an iSCSI initiator that is real on the wire: a target of the program under test is logged in to over TCP, its NTFS
//!   volume is shown in a folder, and a VM whose disk has its parent there reads through the target, or fails with it;
//! - misfortune: [`LabHost::inject`] for a [`Fault`], [`LabHost::unclean_stop`], [`LabHost::restart_service`],
//!   [`LabHost::restart_host`].
//!
//! [`LabOptions`] says how the host behaves where real ones differ or nobody knows: jobs, null outputs as on Server 2025,
//! granularity, supersets, and the lies of change tracking that a backup must not believe.
//!
//! The whole state is one file, `host.json`, committed before a call returns. Nothing runs in the background: jobs and
//! merges are due at instants of the host's clock, and whoever calls next carries out what has become due. So a program
//! killed at any instant leaves a host that goes on, and two programs take turns under one lock.
//!
//! The names that the program uses are listed in `product-names.txt`; see `names.rs`.
//!
//! # Known limits
//!
//! It cannot prove what only a real host shows: the granularity and survival rules of change tracking, VSS inside guests,
//! the semantics of access lists, the timing of events. Companion files `.rct` and `.mrt`, and configuration files
//! `.vmcx`, `.vmrs` and `.vmgs`, hold formats of this crate. Where the reference is silent, an answer here is a choice, the
//! stricter one: level 1 of a stopped VM fails, generation 2 starts without a controller, an id in use fails an import by
//! its job, a checkpoint's definition is imported under the checkpoint's name.
//!
//! Not here: live migration, storage migration as a method, writes to iSCSI disks, WMI events, exports of differences, planned systems that
//! keep their checkpoints, floppy drives, dynamic VHD files for writing, the memory of saved VMs.
//!
//! Read `host.rs`, then `state.rs`, `checkpoint.rs`, `merge.rs` and `tracking.rs` for backups, `planned.rs` and
//! `resources.rs` for re-creation; the provider's side begins in `provider.rs`. Source of what the host does: the "Hyper-V
//! WMI provider (V2)" and `virtdisk.h` references.

mod access;
mod actors;
mod admin;
mod answers;
mod attachment;
mod builder;
mod checkpoint;
mod clock;
mod config_file;
mod configuration;
mod counting;
mod devices;
mod disks;
mod embedded;
mod error;
mod extents;
mod failure;
mod faults;
mod files;
mod files_of_disks;
mod guest;
mod host;
mod initiator;
mod jobs;
mod merge;
mod methods;
mod names;
mod new_vm;
mod ntfs;
mod object_path;
mod objects;
mod options;
mod paths;
mod planned;
mod power;
mod properties;
mod provider;
mod resources;
mod schema;
mod security;
mod service;
mod state;
mod storage;
mod store;
mod system_settings;
mod templates;
mod tracking;
mod vhd;
mod virt_disk;
mod wql;

pub use admin::{Companions, DiskCopy};
pub use attachment::{AttachedDisk, GuestAgent, GuestAttachment};
pub use clock::VirtualClock;
pub use counting::{CallPhase, CountingSeam, SeamCall};
pub use disks::{disk_sha256, fingerprint};
pub use error::LabError;
pub use faults::{Fault, RestartPhase};
pub use guest::{GuestWrites, Spread};
pub use host::LabHost;
pub use names::PRODUCT_NAMES;
pub use new_vm::{DiskSource, VmOptions};
pub use options::{
    AfterApply, AfterMove, ClockKind, JobStyle, LabCluster, LabOptions, LabSwitch, MarkerRetention, ReferenceOutputs,
    Sequences,
};
pub use state::{Event, GuestFamily, VssBehaviour};

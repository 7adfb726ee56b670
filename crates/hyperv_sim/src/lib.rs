//! A Hyper-V host in a folder.
//!
//! [`LabHost`] holds virtual machines with real VHDX files, answers the three seam traits of the `hyperv` crate the way
//! `vmms.exe` and `virtdisk.dll` do, and is stricter than they are: it carries its own class schema (`schema.json`), and
//! a name, type or reference that is not in it is an error, never ignored.
//!
//! A use flows like this: [`LabHost::create`] makes the folder, [`LabHost::add_vm`] puts a machine in it, and
//! [`LabHost::seam`] is handed to the program under test, in this process or (by [`LabHost::open`]) in another one.
//! Between its calls the test plays the guests and the administrator: [`LabHost::guest_write`],
//! [`LabHost::create_user_checkpoint`], [`LabHost::inject`]. A guest may also be real: [`LabHost::attach_guest`] gives a
//! process, QEMU for instance, the live disks of a VM.
//!
//! The whole state is one file, `host.json`, committed before a call returns. Nothing runs in the background: jobs and
//! merges are due at instants of the host's clock, and whoever calls next carries out what has become due. So a program
//! killed at any instant leaves a host that goes on, and two programs take turns under one lock.
//!
//! Not here: applying checkpoints, storage migration, iSCSI, VHD files (they are converted), exports of differences,
//! planned systems that keep their checkpoints, and what no simulator can prove: the real granularity and survival rules
//! of change tracking, and VSS inside guests. Companion files `.rct` and `.mrt`, and configuration files `.vmcx`, `.vmrs`
//! and `.vmgs`, hold formats of this crate.
//!
//! Read `host.rs`, then `state.rs`, `checkpoint.rs`, `merge.rs` and `tracking.rs` for backups, `planned.rs` and
//! `resources.rs` for re-creation; the provider's side begins in `provider.rs`. Source of what the host does: the "Hyper-V WMI provider (V2)" and `virtdisk.h` references.

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
mod guest;
mod host;
mod jobs;
mod merge;
mod methods;
mod names;
mod new_vm;
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

//! Restore points as block devices.
//!
//! A [`LayeredDevice`] is a disk of a restore point that a guest can boot from and write to. What it reads comes through
//! caches from the [`Base`]; what it writes goes into an encrypted [`overlay`]. Meanwhile the base is copied to where the
//! disk is going to stay ([`Target`]), the guest's writes follow, and at the end the disk is that target and nothing
//! else. None of this loses a write that a guest was told is done, whatever dies when.
//!
//! Where to start reading: `device.rs`, then `overlay/mod.rs` with its parts, then `moving.rs`. `cache.rs` and
//! `prefetch.rs` make it fast. Source of the formats and rules: "spec block-serving C".

pub mod folder;
pub mod overlay;

mod base;
mod boot_set;
mod cache;
mod metrics;
mod prefetch;

mod gate;
mod range_lock;

mod device;
mod hydrate_map;
mod moving;
mod pace;
mod vhdx_disk;

mod mover;
mod session;
mod state;
mod steering;

mod disk_cache;
mod point_base;
mod sealed_content;
mod stream_copy;
mod stream_file;
mod volume_base;

pub use base::{Base, BaseError, FileBase, Nearby, Origin, base_identity};
pub use boot_set::{BootSet, FirstTouches, MANIFEST_TYPE};
pub use cache::{CachedBase, Lane, MemoryCache};
pub use device::{LayeredDevice, Target};
pub use disk_cache::DiskCache;
pub use hydrate_map::{GRAIN_BYTES, HydrateMap, MAP_NAME, MapIdentity};
pub use metrics::{Metrics, Operation, PrefetchKind, Source};
pub use mover::Mover;
pub use moving::{Hydrated, MoveError, Pause, Step, Switched};
pub use pace::DEFAULT_BYTES_PER_SECOND;
pub use point_base::{
    PointBase, RecordError, cache_secret, disk_id_of, overlay_secret, read_boot_set, record_boot_set,
};
pub use prefetch::{Plan, Prefetch};
pub use session::{
    About, DiskBase, NewDisk, Session, SessionError, SessionParts, discard_session, id_text, is_served, new_session_id,
    os_boot_id, read_session,
};
pub use state::{DiskState, Restarts, STATE_NAME, SessionState, State, id_of};
pub use steering::{Steered, Steering};
pub use stream_copy::{StreamCopy, StreamCopyError};
pub use vhdx_disk::VhdxDisk;
pub use volume_base::{VolumeBase, volume_id};

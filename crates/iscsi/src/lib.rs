//! An iSCSI target.
//!
//! A *target* has a name and *units* (SCSI's logical units): disks that initiators use as if they were their own. An
//! initiator logs in, agrees on terms, and sends SCSI commands, many at a time.
//!
//! How a use flows: implement [`Device`] (or take a [`MemoryDevice`]), put it into [`TargetOptions`] with the
//! [`UnitOptions`] that say how it is shown, make [`Targets`] of them, give these to [`Server::start`], and let that
//! listen. Targets come and go with [`Server::add`] and [`Server::remove`]; [`Server::shutdown`] asks initiators to leave
//! and flushes every device. `examples/iscsi_file.rs` is all of this in a page.
//!
//! What a peer sends is never trusted: lengths are checked before anything is allocated, data is asked for only when
//! there is room for it, and memory is bounded by [`ServerOptions`].
//!
//! Left out: encryption (IPsec is the operating system's), several connections in one session, recovery within a
//! session (error recovery level 0: a lost connection is logged in again), initiators, and everything about disks that
//! are no block devices.
//!
//! Where to start reading: [`Device`] (it is `block_device`'s, as for every protocol), then `session.rs` (a state machine without a socket) with `session/task.rs`;
//! `scsi/command.rs` (which commands are granted, a pure function) and `scsi/perform.rs` (what they do); `login.rs`,
//! another state machine; and last `connection.rs` and `server.rs`, where threads and sockets are. Sources: RFC 7143
//! for iSCSI, SPC-4 and SBC-3 for SCSI; where they leave a choice, our "spec B".

mod error;
mod target;

mod pdu;
mod text;
mod wire;

mod login;
mod scsi;
mod session;

mod connection;
mod server;

#[cfg(test)]
mod fuzz;
mod memory_device;
#[cfg(test)]
mod testing;

pub use block_device::{Device, DeviceError, DeviceErrorKind, Extent, ExtentKind, Zeroing};
pub use error::{ListenError, TargetError, UnitError};
pub use memory_device::MemoryDevice;
pub use scsi::{BlockSize, Identity, Provisioning, UnitOptions};
pub use server::{Server, ServerOptions};
pub use target::{Authentication, Credentials, Secret, TargetOptions, Targets};

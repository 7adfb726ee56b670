//! A server for the Network Block Device protocol.
//!
//! An *export* is a [`Device`] under a name. A client connects, haggles over options until it has chosen an export, and
//! then sends requests, many at a time, each of which is answered when it is done.
//!
//! How a use flows: implement [`Device`] (or take a [`FileDevice`]), put it into [`Exports`], give them to
//! [`Server::start`], and let that listen on a Unix socket or on a loopback address. [`Server::shutdown`] lets requests
//! in flight finish and flushes every device. `examples/nbd_file.rs` is all of this in a few lines.
//!
//! What a peer sends is never trusted: lengths are checked before anything is allocated, memory is bounded by
//! [`ServerOptions`], and a request that cannot be granted is answered with its error while the connection goes on.
//!
//! With [`Tls`] whose clients prove who they are, it may also listen where other machines reach it.
//!
//! Left out so far: extended headers (requests beyond 4 GiB); resizing; clients.
//!
//! Where to start reading: [`Device`] (it is `block_device`'s, as for every protocol), then `negotiation.rs` (a state machine without a socket), `request.rs` (which
//! requests are granted, a pure function), `perform.rs`, and last `connection.rs` and `server.rs`, where threads and
//! sockets are. Source of the protocol: `doc/proto.md` of the NetworkBlockDevice project; where it leaves a choice, our
//! "spec A".

mod export;

mod wire;

mod negotiation;
mod reply;
mod request;

mod budget;
mod connection;
mod perform;
mod server;
mod stream;
mod tls;

pub use block_device::{Device, DeviceError, DeviceErrorKind, Extent, ExtentKind, FileDevice, OpenFileError, Zeroing};
pub use export::{Export, ExportError, Exports};
pub use negotiation::{Agreement, Negotiation, Security, Step};
pub use server::{ListenError, OnRefused, Server, ServerOptions};
pub use tls::{Tls, TlsError};

#[cfg(test)]
mod fuzz;

//! What `serve` and `instant` share: the disks of a point as devices, and the servers that show them to clients.

mod login;
mod sources;
mod tls;
mod transport;

pub use login::authentication;
pub use sources::{Item, Sources, disk_name, read_bytes};
pub use tls::tls;
pub use transport::{IscsiPlace, Offer, Place, Transport, identity_of, target_name};

//! The crate against a host that answers from lists (see `script.rs`).

mod checkpoint;
mod cluster;
mod definition;
mod frozen;
mod inventory;
mod merge;
mod protection;
mod recreate;
mod reference_point;
mod script;

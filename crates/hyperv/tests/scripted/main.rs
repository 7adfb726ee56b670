//! The crate against a host that answers from lists (see `script.rs`).

mod checkpoint;
mod definition;
mod frozen;
mod inventory;
mod merge;
mod reference_point;
mod script;

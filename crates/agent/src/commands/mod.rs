//! One module per noun or bare verb of the command line.

pub mod about;
pub mod audit;
pub mod backup;
pub mod config;
pub mod holds;
pub mod host;
pub mod instant;
mod kit;
pub mod lab;
pub mod points;
pub mod repo;
pub mod restore;
mod restore_vm;
pub mod retention;
pub mod serve;
pub mod snapshot;
pub mod status;
pub mod verify;
pub mod vhd;
pub mod vm;

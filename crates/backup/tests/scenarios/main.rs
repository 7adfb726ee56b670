//! The scenarios of spec hyperv 13.5 that a backup must survive, each by its number. The first is in `vm.rs`, the third
//! (killed at every call) in the agent's `kill.rs`; 4, 7 and 10 are the engine's.

#[path = "../support/mod.rs"]
mod support;

mod changes;
mod consistency;
mod faults;
mod foreign;
mod kinds;
mod names;
mod restarts;
mod stops;

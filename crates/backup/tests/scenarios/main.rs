//! The scenarios of spec hyperv 13.5 that a backup must survive, each by its number. The first is in `vm.rs`, the third
//! (killed at every call) in the agent's `kill.rs`; 10 belongs to the restore of whole VMs.

#[path = "../support/mod.rs"]
mod support;

mod changes;
mod consistency;
mod faults;
mod foreign;
mod found;
mod kinds;
mod lies;
mod merging;
mod names;
mod restarts;
mod stops;
mod taken_away;

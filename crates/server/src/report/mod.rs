//! Reports: paper for others (console 3.15).
//!
//! [`kept`] says how well a VM was protected, as a pure function of its points' times; [`csv`] and [`page`] are the same
//! report as text and as a page to print; [`summary`] is the mail of every morning.

pub mod csv;
pub mod kept;
pub mod page;
pub mod period;
pub mod summary;

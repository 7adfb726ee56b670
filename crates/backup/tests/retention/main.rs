//! Retention on a repository: what goes, what stays, who may do what at the same time.

#[path = "../support/mod.rs"]
mod support;

mod others;
mod points;
mod races;

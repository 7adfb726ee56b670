//! The agent of a server: it does what the control plane says, and tells it what came of it (spec control-api 1 to 3).
//!
//! [`enroll`] makes a host an agent; afterwards [`run`] takes the place of the configuration's jobs. `agent` is the loop:
//! polls, claims, threads. `backups` is a backup run, with the machinery of `batch` and the `backup` crate; `commands`,
//! `vm_restores` and `operations` are what else is asked for; `rates` and `clock` are what all of them keep to. `work` is what the hands on one run share, and its
//! reports; `results` and `inventory` say things in the contract's words.
//!
//! What must reach the server goes through `outbox`, on disk; what is only of interest now is sent once. Nothing that a
//! backup needs depends on the server once the run is claimed: it may be away, and the point is made. A point is the
//! repository's; the server's row of it is a copy, made again from the repository when a message was lost.
//!
//! Keys of stores and repositories live in `store`, in memory, for as long as the run; the agent's own token in
//! `protected`. `client` and `trust` are HTTP and TLS.

mod agent;
mod backups;
mod client;
mod clock;
mod commands;
mod durable;
mod enrolment;
mod inventory;
mod operations;
mod outbox;
mod protected;
mod rates;
mod results;
mod store;
mod trust;
mod vm_restores;
mod work;

pub use self::agent::run;
pub use self::enrolment::{Enrolment, enroll};

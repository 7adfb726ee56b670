//! Server and agents together, each a process of its own: from the enrolment to a restored VM, and through misfortune.
#![cfg(unix)]

#[path = "../support/canaries.rs"]
mod canaries;
#[path = "../support/mod.rs"]
mod support;

#[path = "../../../server/tests/support/database.rs"]
#[allow(dead_code, reason = "the server's own tests use the rest")]
mod database;

mod estate;
mod faults;
mod secrets;
mod server_process;
mod settings;
mod story;
mod truth;
mod upgrade;

/// Not a test: what the server of the others is, in a process of its own.
#[test]
#[ignore = "the process that other tests start as their server"]
fn server_process() {
    server_process::serve_if_asked();
}

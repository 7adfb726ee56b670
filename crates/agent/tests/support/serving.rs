//! A command that serves until it is told to end, and says in JSON what it serves and how it ended.

use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Desk;

/// The process; killed when the test ends in whatever way.
pub struct Serving {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it said first.
    pub first: Value,
}

impl Serving {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().expect("it tells what it serves").unwrap();
        Self { child, lines, first: serde_json::from_str(&first).unwrap() }
    }

    /// The process that keeps a session of `instant`.
    pub fn session(desk: &Desk, arguments: &[&str]) -> Self {
        Self::start(desk.command(["instant", "start", "--json", "--state", "sessions"]).args(arguments))
    }

    /// The same, with QEMU as its host.
    pub fn qemu_session(desk: &Desk, arguments: &[&str]) -> Self {
        Self::session(desk, &[&["--host", "qemu"], arguments].concat())
    }

    pub fn session_id(&self) -> String {
        self.first["session_id"].as_str().unwrap_or_else(|| panic!("{}", self.first)).to_owned()
    }

    /// As `kill -9` does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What it says at its end.
    pub fn result(mut self) -> Value {
        let last = self.lines.next().expect("a result").unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{last}");
        serde_json::from_str(&last).unwrap()
    }

    /// The same, as Ctrl-C ends it.
    pub fn stop(self) -> Value {
        kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), Signal::INT).unwrap();
        self.result()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `instant …` as JSON, about the sessions of the desk.
pub fn instant(desk: &Desk, exit: i32, arguments: &[&str]) -> Value {
    desk.json(exit, [&["instant"], arguments, &["--state", "sessions"]].concat())
}

/// Looks again and again, a minute at most.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

//! `serve nbd`, as its clients and its operator meet it.
#![cfg(unix)]

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::Desk;

/// The program while it serves; killed when the test ends in whatever way.
struct Serving {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    first: Value,
}

impl Serving {
    fn start(desk: &Desk, more: &[&str]) -> Self {
        let mut command = desk.command(["serve", "nbd", "DC01@latest", "--json"]);
        let mut child = command.args(more).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().expect("it tells what it serves").unwrap();
        Self { child, lines, first: serde_json::from_str(&first).unwrap() }
    }

    fn uri(&self, export: usize) -> &str {
        self.first["exports"][export]["uri"].as_str().unwrap()
    }

    fn stop(mut self) -> Value {
        let id = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(id, Signal::INT).unwrap();
        let last = self.lines.next().expect("a result").unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        serde_json::from_str(&last).unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_there(test: &str) -> bool {
    let is_there = ["qemu-img", "qemu-io"].iter().all(|name| {
        Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    });
    if !is_there {
        eprintln!("skipped {test}: qemu-img and qemu-io are not there (package qemu-utils)");
    }
    is_there
}

fn qemu(desk: &Desk, program: &str, arguments: &[&str]) -> String {
    let run = Command::new(program).args(arguments).current_dir(desk.path(".")).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && !said.contains("failed"), "{program} {arguments:?}: {said}");
    said
}

/// Every file below a folder.
fn files_below(folder: &Path, visit: &mut dyn FnMut(&Path, &[u8])) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, visit);
        } else {
            visit(&path, &std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn a_point_is_served_and_writes_outlive_a_kill() {
    let desk = Desk::new();
    desk.add_vm("DC01", 8, 1);
    desk.ok(["backup", "DC01"]);
    let serving = Serving::start(&desk, &["--socket", "s.sock", "--cache", "cache"]);
    assert_eq!(serving.first["exports"][0]["size_bytes"], 8 << 20);
    assert_eq!(serving.first["writes"], Value::Null);
    let has_qemu = is_there("a_point_is_served_and_writes_outlive_a_kill");
    if has_qemu {
        let image = ["compare", "-f", "raw", "-F", "raw", serving.uri(0), "DC01-1.raw"];
        assert!(qemu(&desk, "qemu-img", &image).contains("identical"));
        let info = qemu(&desk, "qemu-img", &["map", "--output=json", "-f", "raw", serving.uri(0)]);
        assert!(info.contains("\"zero\": true"), "{info}");
    }
    let result = serving.stop();
    assert_eq!(result["type"], "result");
    if !has_qemu {
        return;
    }
    assert!(result["read_bytes"]["repository"].as_u64().unwrap() > 4 << 20, "{result}");

    let writing = ["--listen", "127.0.0.1:0", "--writes", "writes", "--cache", "cache"];
    let serving = Serving::start(&desk, &writing);
    let io = ["-f", "raw", "-c", "write -P 0x77 1M 64k", "-c", "write -z 4M 1M", "-c", "flush", serving.uri(0)];
    qemu(&desk, "qemu-io", &io);
    qemu(&desk, "qemu-io", &["-f", "raw", "-c", "write -P 0x78 2M 4k", serving.uri(0)]);
    // As `kill -9` does.
    drop(serving);
    let serving = Serving::start(&desk, &writing);
    let reads = ["-c", "read -P 0x77 1M 64k", "-c", "read -P 0 4M 1M", "-c", "read -P 0x78 2M 4k"];
    qemu(&desk, "qemu-io", &[&["-f", "raw"], &reads[..], &[serving.uri(0)]].concat());
    let result = serving.stop();
    assert!(result["read_bytes"]["overlay"].as_u64().unwrap() > 0, "{result}");
    let mut looked_at = 0;
    files_below(&desk.path("writes"), &mut |path, bytes| {
        assert!(!bytes.windows(64).any(|window| window == [0x77; 64]), "plaintext in {}", path.display());
        looked_at += bytes.len();
    });
    assert!(looked_at > 64 << 10);
    // The point is what it was.
    let serving = Serving::start(&desk, &["--socket", "s.sock"]);
    let image = ["compare", "-f", "raw", "-F", "raw", serving.uri(0), "DC01-1.raw"];
    assert!(qemu(&desk, "qemu-img", &image).contains("identical"));
}

#[test]
fn what_cannot_be_served_is_refused() {
    let desk = Desk::new();
    desk.add_vm("DC01", 4, 1);
    desk.ok(["backup", "DC01"]);
    desk.fails(6, "NOT_FOUND", ["serve", "nbd", "DC02@latest"]);
    desk.fails(6, "NOT_FOUND", ["serve", "nbd", "DC01@latest", "--disk", "7"]);
    let run = desk.fails(2, "USAGE", ["serve", "nbd", "DC01@latest", "--listen", "192.0.2.1:10809"]);
    assert!(run.stderr.contains("TLS"), "{run:?}");
    let serving = Serving::start(&desk, &["--socket", "s.sock", "--writes", "writes"]);
    let second = ["serve", "nbd", "DC01@latest", "--listen", "127.0.0.1:0", "--writes", "writes"];
    desk.fails(7, "BUSY", second);
    serving.stop();
    // Writes over one point are no writes over another.
    drop(Serving::start(&desk, &["--socket", "s.sock", "--writes", "writes"]));
    std::fs::remove_file(desk.path("s.sock")).unwrap();
    desk.ok(["lab", "write", "lab", "DC01", "--mib", "1"]);
    desk.ok(["backup", "DC01"]);
    let run = desk.fails(1, "FAILED", ["serve", "nbd", "DC01@latest", "--socket", "s.sock", "--writes", "writes"]);
    assert!(run.stderr.contains("not the one that the guest has written over"), "{run:?}");
    let serving = ["serve", "nbd", "DC01@1", "--socket", "s.sock", "--writes"];
    desk.fails(5, "TARGET_EXISTS", serving.into_iter().chain(["DC01-1.raw"]));
}

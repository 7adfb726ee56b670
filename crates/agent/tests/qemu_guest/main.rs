//! A guest that is real: a Debian kernel under QEMU, on the disk of a VM of a lab host, served by our own NBD server,
//! while the agent backs that VM up.
#![cfg(target_os = "linux")]

mod agent;
mod cpio;
mod filesystem;
mod instant;
mod kit;
mod machine;
mod serving;
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyperv_sim::{DiskSource, GuestAgent, GuestAttachment, GuestFamily, LabHost, VmOptions};
use nbd::{Device, Export, Exports, FileDevice, Server, ServerOptions};
use serde_json::{Value, json};

use agent::Agent;
use kit::{Kit, PAYLOAD_BYTES, PAYLOAD_SEED};
use machine::Machine;
use serving::{LiveDisk, Written};
use support::{Desk, hex, random_bytes, sha256_of};

const VM: &str = "guest";
const MIB: u64 = 1 << 20;

#[test]
fn a_running_guest_is_backed_up_and_restored() {
    let kit = match Kit::obtain() {
        Ok(kit) => kit,
        Err(why) => {
            eprintln!("SKIPPED a_running_guest_is_backed_up_and_restored: {why}");
            return;
        }
    };
    let desk = Desk::new();
    let guest = Guest::start(&kit, &desk);

    // A full backup of a frozen guest.
    guest.write(A);
    let acked = guest.acked();
    let full = guest.back_up("application-required");
    expect_kind(&full, "full", "application");
    let first = guest.frozen_state(1);
    let image = guest.restore(&full);
    assert_eq!(sha256_of(&image), first.sha256, "what was restored is the frozen state");
    assert!(!filesystem::needs_recovery(&image), "a frozen file system needs no replay");
    filesystem::expect_clean(&image);
    expect_files(&image, &[A], &acked);
    let payload = filesystem::read_file(&image, "/data/payload.bin");
    assert!(payload == random_bytes(PAYLOAD_BYTES, PAYLOAD_SEED), "what was there from the beginning");

    // An incremental one: cost follows what the guest wrote.
    guest.write(B);
    let acked = guest.acked();
    let incremental = guest.back_up("application-required");
    expect_kind(&incremental, "incremental", "application");
    let second = guest.frozen_state(2);
    let touched_bytes = second.written.mib.len() as u64 * MIB;
    let (read, full_read) = (bytes(&incremental, "read_bytes"), bytes(&full, "read_bytes"));
    println!("the guest wrote {} bytes, in {touched_bytes} of MiBs; {read} were read", second.written.bytes);
    assert!((4 * MIB..=touched_bytes).contains(&read), "read {read}, touched {touched_bytes}");
    assert!(read * 4 < full_read, "{read} of {full_read}");
    // The sample that checks change tracking: 64 segments on any disk of this size.
    assert!(bytes(&incremental, "audit_bytes") <= 64 * MIB, "{incremental}");
    let image = guest.restore(&incremental);
    assert_eq!(sha256_of(&image), second.sha256, "what was restored is the frozen state");
    assert!(!filesystem::needs_recovery(&image));
    filesystem::expect_clean(&image);
    expect_files(&image, &[A, B], &acked);

    // One that the guest knows nothing of.
    guest.write(C);
    guest.keep_busy();
    let acked = guest.acked();
    let crash = guest.back_up("crash");
    expect_kind(&crash, "incremental", "crash");
    let image = guest.restore(&crash);
    assert!(filesystem::needs_recovery(&image), "a running file system was cut off");
    filesystem::replay_journal(&image);
    assert!(!filesystem::needs_recovery(&image));
    filesystem::expect_clean(&image);
    expect_files(&image, &[A, B, C], &acked);

    guest.expect_unharmed(&acked);
    drop(guest);
    desk.expect_clean_host(VM, 1);
    expect_boots(&kit, &desk, &image);
}

/// A guest starts from a restored disk, and finds its files.
fn expect_boots(kit: &Kit, desk: &Desk, image: &Path) {
    let folder = desk.path("again");
    std::fs::create_dir(&folder).unwrap();
    let socket = folder.join("nbd.sock");
    let _server = serve(Arc::new(FileDevice::open(image, false).unwrap()), &socket);
    let machine = Machine::start(kit, &socket, &folder);
    let agent = Agent::connect(&machine.agent_socket);
    assert_eq!(agent.shell("wc -l < /data/boots"), "2");
    expect_files_inside(&agent);
}

/// An NBD server of one export, `disk`.
fn serve(device: Arc<dyn Device>, socket: &Path) -> Server {
    let export = Export { name: "disk".into(), description: VM.into(), device, read_only: false };
    let mut server = Server::start(Exports::new([export]).unwrap(), ServerOptions::default());
    server.listen_unix(socket).unwrap();
    server
}

/// As [`expect_files`] for all of them, asked of the guest, which reads them from its disk.
fn expect_files_inside(agent: &Agent) {
    agent.shell("echo 3 > /proc/sys/vm/drop_caches");
    for Copied { name, skip_mib, mib } in [A, B, C] {
        let part = format!("dd if=/data/payload.bin bs=1M skip={skip_mib} count={mib} 2> /dev/null");
        agent.shell(&format!("{part} | cmp - /data/{name}"));
    }
}

/// A file in the guest: so many MiB of the payload, from so many on.
#[derive(Clone, Copy)]
struct Copied {
    name: &'static str,
    skip_mib: usize,
    mib: usize,
}

const A: Copied = Copied { name: "a", skip_mib: 10, mib: 3 };
const B: Copied = Copied { name: "b", skip_mib: 20, mib: 4 };
const C: Copied = Copied { name: "c", skip_mib: 30, mib: 2 };

/// Files that were complete before the backup, and the record that the application knew to be on the disk.
fn expect_files(image: &Path, files: &[Copied], acked: &str) {
    let payload = random_bytes(PAYLOAD_BYTES, PAYLOAD_SEED);
    for file in files {
        let expected = &payload[file.skip_mib << 20..(file.skip_mib + file.mib) << 20];
        assert!(filesystem::read_file(image, &format!("/data/{}", file.name)) == expected, "{}", file.name);
    }
    let log = String::from_utf8(filesystem::read_file(image, "/data/app.log")).unwrap();
    assert!(log.lines().any(|line| line == acked), "{acked:?} is in the log: {:?}", log.lines().last());
}

fn expect_kind(result: &Value, mode: &str, consistency: &str) {
    let found = (result["disks"][0]["mode"].as_str(), result["consistency"].as_str());
    assert_eq!(found, (Some(mode), Some(consistency)), "{result}");
}

fn bytes(result: &Value, field: &str) -> u64 {
    result[field].as_u64().unwrap_or_else(|| panic!("{field} in {result}"))
}

/// A VM with a guest in it. What is listed first ends first.
struct Guest<'a> {
    agent: Agent,
    machine: Machine,
    _server: Server,
    _attachment: GuestAttachment,
    frozen: Arc<Mutex<Vec<FrozenState>>>,
    desk: &'a Desk,
}

/// The guest's disk at an instant at which it was frozen.
struct FrozenState {
    sha256: String,
    /// Since the instant before.
    written: Written,
}

impl<'a> Guest<'a> {
    fn start(kit: &Kit, desk: &'a Desk) -> Self {
        let lab = desk.lab();
        let options = VmOptions { guest: GuestFamily::Linux, ..VmOptions::default() };
        lab.add_vm(VM, &[DiskSource::Copy(kit.disk.clone())], options).unwrap();
        let (written, frozen, link) = (Arc::default(), Arc::default(), Arc::default());
        let service = IntegrationService {
            agent: Arc::clone(&link),
            lab: lab.clone(),
            written: Arc::clone(&written),
            frozen: Arc::clone(&frozen),
        };
        let attachment = lab.attach_guest(VM, Some(Box::new(service))).unwrap();
        let device = Arc::new(LiveDisk::new(attachment.disks()[0].clone(), written));
        let socket = desk.path("nbd.sock");
        let server = serve(device, &socket);
        let machine = Machine::start(kit, &socket, &desk.path(""));
        let agent = Agent::connect(&machine.agent_socket);
        *link.lock().unwrap() = Some(agent.clone());
        Self { agent, machine, _server: server, _attachment: attachment, frozen, desk }
    }

    /// Has a file on the disk before it returns.
    fn write(&self, file: Copied) {
        let Copied { name, skip_mib, mib } = file;
        let copy = format!("dd if=/data/payload.bin of=/data/{name} bs=1M skip={skip_mib} count={mib} conv=fsync");
        self.agent.shell(&format!("{copy} && sync /data"));
    }

    /// From now on the guest writes as much as it can, a file that grows and is written again.
    fn keep_busy(&self) {
        let round = "dd if=/data/payload.bin of=/data/busy bs=64k seek=$((n % 97)) count=24 conv=notrunc,fsync";
        self.agent.shell(&format!("(n=0; while {round}; do n=$((n + 7)); done) > /dev/null 2>&1 &"));
        std::thread::sleep(Duration::from_millis(500));
    }

    /// The last record that the application knows to be on the disk.
    fn acked(&self) -> String {
        self.agent.shell("cat /run/acked")
    }

    fn back_up(&self, consistency: &str) -> Value {
        let begun = Instant::now();
        let result = self.desk.json(0, ["backup", VM, "--consistency", consistency]);
        println!("{consistency}: {:.1} s", begun.elapsed().as_secs_f64());
        result["vms"][0].clone()
    }

    /// What the disk was at the only freeze since the last question; there were `count` in all.
    fn frozen_state(&self, count: usize) -> FrozenState {
        // The guest thaws while the backup goes on.
        let begun = Instant::now();
        while self.frozen.lock().unwrap().len() < count && begun.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut frozen = self.frozen.lock().unwrap();
        assert_eq!(frozen.len(), count, "how often the guest was frozen");
        let nothing = FrozenState { sha256: String::new(), written: Written::default() };
        std::mem::replace(&mut frozen[count - 1], nothing)
    }

    fn restore(&self, result: &Value) -> PathBuf {
        let point = result["point_id"].as_str().unwrap();
        let name = format!("{point}.raw");
        self.desk.ok(["restore", "disk", point, "--disk", "0", "--to", &name, "--format", "raw"]);
        self.desk.path(&name)
    }

    /// Neither checkpoints nor merges have disturbed the guest.
    fn expect_unharmed(&self, acked_before: &str) {
        assert_eq!(self.frozen.lock().unwrap().len(), 2, "a crash-consistent backup freezes nobody");
        assert_ne!(self.acked(), acked_before, "the application goes on");
        expect_files_inside(&self.agent);
        assert_eq!(self.agent.shell("dmesg | grep -i -c -e 'i/o error' -e 'ext4-fs error' || true"), "0");
        let said = self.machine.said();
        assert!(!said.contains("Kernel panic") && !said.contains("hung"), "{said}");
    }
}

/// Stands in for the integration service: the guest agent freezes and thaws. In between the disk is looked at.
struct IntegrationService {
    agent: Arc<Mutex<Option<Agent>>>,
    lab: Arc<LabHost>,
    written: Arc<Mutex<Written>>,
    frozen: Arc<Mutex<Vec<FrozenState>>>,
}

impl IntegrationService {
    fn call(&self, command: &str) -> Result<Value, String> {
        let agent = self.agent.lock().unwrap().clone().ok_or("the guest's agent is not there yet")?;
        agent.call(command, json!({}))
    }
}

impl GuestAgent for IntegrationService {
    fn freeze(&mut self) -> Result<(), String> {
        let count = self.call("guest-fsfreeze-freeze")?;
        if count == 1 { Ok(()) } else { Err(format!("{count} file systems were frozen")) }
    }

    fn thaw(&mut self) -> Result<(), String> {
        assert_eq!(self.call("guest-fsfreeze-status")?, "frozen");
        let sha256 = hex(&self.lab.disk_sha256(VM, 0).map_err(|e| e.to_string())?);
        let written = std::mem::take(&mut *self.written.lock().unwrap());
        self.call("guest-fsfreeze-thaw")?;
        self.frozen.lock().unwrap().push(FrozenState { sha256, written });
        Ok(())
    }
}

#[test]
fn the_kit_makes_archives_that_cpio_reads() {
    if std::process::Command::new("cpio").arg("--version").output().is_err() {
        eprintln!("SKIPPED the_kit_makes_archives_that_cpio_reads: cpio is not installed");
        return;
    }
    let mut archive = cpio::Archive::default();
    archive.folder("bin");
    archive.file("bin/one", b"1");
    archive.file("bin/two", &[2; 1001]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cpio");
    std::fs::write(&path, archive.finish()).unwrap();
    let mut unpack = std::process::Command::new("cpio");
    unpack.args(["-i", "--quiet"]).current_dir(dir.path()).stdin(std::fs::File::open(&path).unwrap());
    assert!(unpack.status().unwrap().success());
    assert_eq!(std::fs::read(dir.path().join("bin/one")).unwrap(), b"1");
    assert_eq!(std::fs::read(dir.path().join("bin/two")).unwrap(), [2; 1001]);
}

//! A guest that runs straight from its backup, while the process that serves it is killed again and again.

use std::path::Path;
use std::time::{Duration, Instant};

use hyperv_sim::{DiskSource, GuestFamily, VmOptions};

use crate::agent::Agent;
use crate::kit::{Kit, PAYLOAD_BYTES, PAYLOAD_SEED};
use crate::machine::Machine;
use crate::support::serving::{Serving, instant};
use crate::support::{Desk, random_bytes};
use crate::{VM, filesystem};

/// What is left of a test's patience when a machine is busy with others.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a disk comes to where it stays.
#[derive(Clone, Copy, PartialEq)]
enum Finish {
    /// Hydrated, drained and switched by us.
    Ours,
    /// Mirrored by QEMU.
    Qemu,
}

#[test]
fn a_guest_runs_from_its_backup_over_nbd() {
    run("a_guest_runs_from_its_backup_over_nbd", "nbd", Finish::Ours, 3);
}

#[test]
fn a_guest_runs_from_its_backup_over_iscsi() {
    run("a_guest_runs_from_its_backup_over_iscsi", "iscsi", Finish::Qemu, 2);
}

#[test]
#[ignore = "long: ten kills"]
fn a_guest_outlives_ten_kills_over_nbd() {
    run("a_guest_outlives_ten_kills_over_nbd", "nbd", Finish::Ours, 10);
}

#[test]
#[ignore = "long: ten kills"]
fn a_guest_outlives_ten_kills_over_iscsi() {
    run("a_guest_outlives_ten_kills_over_iscsi", "iscsi", Finish::Ours, 10);
}

fn run(test: &str, transport: &str, finish: Finish, kills: u32) {
    let kit = match Kit::obtain() {
        Ok(kit) => kit,
        Err(why) => {
            eprintln!("SKIPPED {test}: {why}");
            return;
        }
    };
    let desk = Desk::new();
    let options = VmOptions { guest: GuestFamily::Linux, ..VmOptions::default() };
    desk.lab().add_vm(VM, &[DiskSource::Copy(kit.disk.clone())], options).unwrap();
    desk.ok(["backup", VM]);

    let begun = Instant::now();
    let mut keeper = Keeper::start(&desk, &["guest@latest", "--transport", transport, "--bus", "virtio"]);
    println!("served after {:.2} s", begun.elapsed().as_secs_f64());
    let disks: Vec<String> = serde_json::from_value(keeper.0.first["qemu"]["disks"].clone()).unwrap();
    let machine = Machine::start_on(&kit, &disks, &desk.path(""));
    let guest = Guest { agent: Agent::connect(&machine.agent_socket), machine };
    guest.goes_on();

    let killed_at_rest = if finish == Finish::Ours { kills / 4 } else { kills };
    for _ in 0..killed_at_rest {
        keeper = keeper.after_kill(&desk);
        guest.goes_on();
    }
    println!("running after {:.0} s", begun.elapsed().as_secs_f64());
    // A guest that never rests takes the better part of a minute to be drained.
    guest.keep_busy(if kills < 10 { 250 } else { 0 });
    let file = desk.path("vms/guest-disk0.raw");
    let acked = match finish {
        Finish::Ours => {
            keeper = keeper.moves(&desk, &guest, kills - killed_at_rest);
            println!("local after {:.0} s", begun.elapsed().as_secs_f64());
            let acked = guest.stop();
            println!("stopped after {:.0} s", begun.elapsed().as_secs_f64());
            assert_eq!(keeper.0.result()["ending"], "finished");
            acked
        }
        Finish::Qemu => {
            let qmp = desk.path("qmp").display().to_string();
            let done = instant(&desk, 0, &["move", VM, "--to", "vms", "--qmp", &qmp]);
            assert_eq!(done["done"], "done");
            assert_eq!(keeper.0.result()["ending"], "discarded");
            // There is nothing left to run from but the file.
            std::fs::remove_dir_all(desk.path("repo")).unwrap();
            guest.goes_on();
            guest.stop()
        }
    };
    expect_everything(&file, acked);
    assert_eq!(std::fs::read_dir(desk.path("sessions")).unwrap().count(), 0, "our session is gone");
}

/// Every acknowledged record is there, and the file system has no defect.
fn expect_everything(file: &Path, acked: u64) {
    assert!(!filesystem::needs_recovery(file), "it was frozen when the machine was stopped");
    filesystem::expect_clean(file);
    let payload = filesystem::read_file(file, "/data/payload.bin");
    assert!(payload == random_bytes(PAYLOAD_BYTES, PAYLOAD_SEED), "what was there from the beginning");
    let log = String::from_utf8(filesystem::read_file(file, "/data/app.log")).unwrap();
    let mut records = 0;
    for line in log.lines() {
        records += 1;
        assert_eq!(number_of(line), records, "{line:?} after {} records", records - 1);
    }
    println!("{records} records, {acked} of them acknowledged");
    assert!(records >= acked && acked > 20, "{records} records, {acked} acknowledged");
}

/// The number in `record 17 of boot 1`.
fn number_of(record: &str) -> u64 {
    record.split(' ').nth(1).and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{record:?}"))
}

struct Guest {
    agent: Agent,
    machine: Machine,
}

impl Guest {
    /// The last record that the application knows to be on the disk.
    fn acked(&self) -> u64 {
        let text = self.agent.shell("cat /run/acked 2> /dev/null || true");
        if text.is_empty() { 0 } else { number_of(&text) }
    }

    /// It has written and flushed since this was asked.
    fn goes_on(&self) {
        let (before, begun) = (self.acked(), Instant::now());
        while self.acked() < before + 2 {
            assert!(begun.elapsed() < PATIENCE, "the guest hangs: {}", self.machine.said());
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("it goes on after {:.1} s", begun.elapsed().as_secs_f64());
    }

    /// From now on it writes 1.5 MiB at a time, with a rest in between.
    fn keep_busy(&self, rest_ms: u32) {
        let round = "dd if=/data/payload.bin of=/data/busy bs=64k seek=$((n % 97)) count=24 conv=notrunc,fsync";
        self.agent
            .shell(&format!("(n=0; while {round}; do n=$((n + 7)); usleep {rest_ms}000; done) > /dev/null 2>&1 &"));
    }

    /// Frozen, so that the file system is whole, and then cut off; gives the last record that was acknowledged.
    fn stop(self) -> u64 {
        assert_eq!(self.agent.shell("dmesg | grep -i -c -e 'i/o error' -e 'ext4-fs error' || true"), "0");
        self.agent.shell("echo 3 > /proc/sys/vm/drop_caches; md5sum /data/payload.bin > /dev/null");
        let acked = self.acked();
        self.agent.call("guest-fsfreeze-freeze", serde_json::json!({})).unwrap();
        let said = self.machine.said();
        assert!(!said.contains("Kernel panic") && !said.contains("hung"), "{said}");
        acked
    }
}

/// The process that serves the session.
struct Keeper(Serving);

impl Keeper {
    fn start(desk: &Desk, arguments: &[&str]) -> Self {
        // Longer than QEMU takes to come back after a kill.
        Self(Serving::qemu_session(desk, &[&["--linger", "6s"], arguments].concat()))
    }

    /// By `kill -9`, and another takes its place a moment later.
    fn after_kill(self, desk: &Desk) -> Self {
        let (session, before) = (self.0.session_id(), self.kills());
        self.0.kill();
        std::thread::sleep(Duration::from_millis(300));
        let next = Self::start(desk, &["--resume", &session]);
        assert_eq!(next.kills(), before + 1);
        println!("killed for the {}. time, {}", before + 1, next.0.first["state"]);
        next
    }

    fn kills(&self) -> u64 {
        self.0.first["restarts"]["kill"].as_u64().unwrap()
    }

    /// Moves the disk and lets it take over, with so many kills on the way.
    fn moves(mut self, desk: &Desk, guest: &Guest, kills: u32) -> Self {
        // The last but one while it switches, the last when the disk is local.
        let while_moving = kills.saturating_sub(2);
        instant(desk, 0, &["move", VM, "--to", "vms", "--rate", "8MiB/s", "--no-wait"]);
        for nth in 0..while_moving {
            std::thread::sleep(Duration::from_millis(700 + 400 * u64::from(nth)));
            self = self.after_kill(desk);
            guest.goes_on();
        }
        let moved = instant(desk, 0, &["move", VM, "--to", "vms", "--rate", "1GiB/s"]);
        println!("moved: {}", moved["state"]);
        guest.goes_on();
        instant(desk, 0, &["switch", VM, "--no-wait"]);
        std::thread::sleep(Duration::from_millis(150));
        self = self.after_kill(desk);
        let done = instant(desk, 0, &["switch", VM]);
        assert_eq!(done["state"], "LOCAL");
        guest.goes_on();
        self = self.after_kill(desk);
        guest.goes_on();
        self
    }
}

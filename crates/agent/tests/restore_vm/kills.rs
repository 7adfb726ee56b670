//! The executable killed at its calls to the host, and at its writes to the host's files: what it left is put in order
//! by the next restore.
//!
//! By default a sample of the calls are kill points; with `--ignored` every call, before and after it took effect.

use hyperv::VmState;
use hyperv_sim::VmOptions;

use super::*;

/// Prime, so that the sample meets every place of a pattern of calls.
const SAMPLE: u64 = if cfg!(windows) { 79 } else { 29 };

/// How many calls to the host a run makes.
fn count_calls(desk: &Desk, arguments: &[&str]) -> u64 {
    let file = desk.path("calls.json");
    let run = support::finish(desk.command(arguments).env("E3_LAB_COUNT_FILE", &file));
    assert_eq!(run.exit, Some(0), "{run:?}");
    let counts: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    counts["seam"].as_u64().unwrap()
}

/// Kills a run at a call; whether it died there.
fn kill(desk: &Desk, arguments: &[&str], at: &str) -> bool {
    let run = support::finish(desk.command(arguments).env("E3_LAB_KILL_AT", at));
    let died = run.exit.is_none_or(|exit| cfg!(windows) && exit == 0xC000_0409_u32.cast_signed());
    assert!(died || run.exit == Some(0), "{at}: {run:?}");
    died
}

/// Kills at every `every`-th call in a phase, and lets `check` look and mend.
fn sweep(
    label: &str,
    desk: &Desk,
    arguments: &[&str],
    every: u64,
    phase: &str,
    mut round: impl FnMut(u64, &str) -> bool,
) {
    let count = count_calls(desk, arguments);
    round(0, "the run that counted");
    let (mut kills, mut died) = (0, 0);
    for number in (0..count).step_by(every as usize) {
        kills += 1;
        died += u64::from(round(number + 1, &format!("seam:{number}:{phase}")));
    }
    println!("{label}: {count} calls, {kills} kill points {phase}, {died} kills");
    assert!(died * 10 >= kills * 9, "{label}: the hook kills");
}

fn new_vm(every: u64, phase: &str) {
    let desk = desk(VmOptions { tpm: true, ..VmOptions::default() });
    desk.ok(["backup", VM]);
    let frozen = disks_of(&desk, "lab", VM);
    let untouched = files_of(&desk, "lab");
    let restore = ["restore", "vm", "DC01@latest", "--power-on"];
    sweep("new VM", &desk, &restore, every, phase, |number, at| {
        let died = number > 0 && kill(&desk, &restore, at);
        desk.ok(["restore", "vm", "DC01@latest", "--name", "Next"]);
        assert_in_order(&desk, "lab", at);
        assert_same(at, &frozen, &disks_of(&desk, "lab", "Next"));
        for vm in host(&desk, "lab").list_vms().unwrap().iter().filter(|vm| vm.name != VM) {
            // A VM of the killed run is whole, or not there.
            assert_same(at, &frozen, &disks_of(&desk, "lab", vm.id.as_str()));
            remove(&desk, "lab", vm);
        }
        assert_eq!(files_of(&desk, "lab"), untouched, "{at}");
        let folders: Vec<_> = std::fs::read_dir(desk.path("lab/c/VMs")).unwrap().flatten().collect();
        assert_eq!(folders.len(), 1, "{at}: {folders:?}");
        died
    });
}

fn replace(every: u64, phase: &str) {
    let desk = desk(VmOptions { tpm: true, ..VmOptions::default() });
    let id = vm(&desk, "lab", VM).id;
    desk.ok(["backup", VM]);
    let frozen = disks_of(&desk, "lab", VM);
    let arguments = ["restore", "vm", "DC01@1", "--replace", "--keep-old-days", "0", "--confirm", VM, "--power-on"];
    sweep("replacing", &desk, &arguments, every, phase, |number, at| {
        guest_write(&desk, 100 + number, 1);
        let before = disks_of(&desk, "lab", id.as_str());
        let died = number > 0 && kill(&desk, &arguments, at);
        // The next restore puts everything in order, whatever it restores itself.
        desk.ok(["restore", "vm", "DC01@latest", "--name", "Next"]);
        let next = vm(&desk, "lab", "Next");
        remove(&desk, "lab", &next);
        assert_in_order(&desk, "lab", at);
        let now = disks_of(&desk, "lab", id.as_str());
        assert!(now == before || now == frozen, "{at}: the VM is as before, or as in the point");
        // Killed before the end it is the old one, which ran, and runs again.
        let vm = host(&desk, "lab").vm(&id).unwrap().unwrap();
        assert!(now == frozen || vm.state == VmState::Running, "{at}: {:?}", vm.state);
        // And it can be replaced, after all.
        desk.ok(arguments);
        assert_same(at, &frozen, &disks_of(&desk, "lab", id.as_str()));
        desk.ok(["restore", "vm", "DC01@latest", "--name", "Next"]);
        remove(&desk, "lab", &self::vm(&desk, "lab", "Next"));
        assert_eq!(vm_names(&desk, "lab"), [VM], "{at}: what was kept for no day is gone");
        died
    });
}

/// What the journal of the one open restore says.
fn has_begun_to_write(desk: &Desk) -> bool {
    let journals = desk.path("lab/e3-state/restores").read_dir().unwrap().flatten().map(|entry| entry.path());
    let journal = journals.into_iter().find(|path| path.extension().is_some_and(|it| it == "json")).unwrap();
    let journal: Value = serde_json::from_slice(&std::fs::read(journal).unwrap()).unwrap();
    journal["work"]["writing"].as_bool().unwrap()
}

/// `--no-safety-point`, so that the calls are those of the restore.
fn in_place(every: u64, phase: &str) {
    let desk = desk(VmOptions::default());
    desk.ok(["backup", VM]);
    let frozen = disks_of(&desk, "lab", VM);
    let start = || host(&desk, "lab").start_vm(&vm(&desk, "lab", VM));
    let write = |seed| {
        start().unwrap();
        guest_write(&desk, seed, 1);
        desk.lab().stop_vm(VM).unwrap();
    };
    desk.lab().stop_vm(VM).unwrap();
    write(50);
    // By its id, as backups follow.
    let point = desk.ok(["points", "list", "--quiet"]).stdout.trim().to_owned();
    let arguments = ["restore", "vm", &point, "--in-place", "--no-safety-point", "--confirm", VM];
    let (mut half_written, mut untouched) = (0, 0);
    sweep("in place", &desk, &arguments, every, phase, |number, at| {
        write(100 + number);
        let before = disks_of(&desk, "lab", VM);
        let died = number > 0 && kill(&desk, &arguments, at);
        // Nobody starts, or backs up, half a restore.
        match start() {
            Ok(()) => {
                desk.lab().stop_vm(VM).unwrap();
                let now = disks_of(&desk, "lab", VM);
                assert!(now == before || now == frozen, "{at}: a VM that starts is whole");
                untouched += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("0x80070002"), "{at}: {error}");
                if has_begun_to_write(&desk) {
                    let refused = desk.fails(5, "NOT_BACKUPABLE", ["backup", VM]);
                    assert!(refused.stderr.contains("run the restore in place of DC01 again"), "{at}: {refused:?}");
                } else {
                    // Only renamed: whoever comes next gives the names back.
                    desk.ok(["backup", VM]);
                    assert_same(at, &before, &disks_of(&desk, "lab", VM));
                }
                half_written += 1;
            }
        }
        let result = desk.json(0, arguments);
        assert_same(at, &frozen, &disks_of(&desk, "lab", VM));
        assert_in_order(&desk, "lab", at);
        assert!(result["disks"].as_array().is_some_and(|disks| disks.len() == 2), "{at}: {result:#}");
        start().unwrap_or_else(|error| panic!("{at}: {error}"));
        desk.lab().stop_vm(VM).unwrap();
        died
    });
    println!("in place: {half_written} kills left disks that could not be started, {untouched} did not");
    assert!(half_written > 0 && untouched > 0);
    desk.ok(["backup", VM]);
    assert_same("the next point", &frozen, &disks_in(&desk, "DC01@latest"));
}

#[test]
fn a_new_vm_killed_at_a_sample_of_calls() {
    new_vm(SAMPLE, "before");
}

#[test]
fn a_replacement_killed_at_a_sample_of_calls() {
    replace(2 * SAMPLE, "before");
}

#[test]
fn a_restore_in_place_killed_at_a_sample_of_calls_and_writes() {
    in_place(SAMPLE, "after");
}

macro_rules! every_call {
    ($($name:ident: $sweep:ident, $phase:expr;)*) => {$(
        #[test]
        #[ignore = "long: every call"]
        fn $name() {
            $sweep(1, $phase);
        }
    )*};
}

every_call! {
    a_new_vm_killed_before_every_call: new_vm, "before";
    a_new_vm_killed_after_every_call: new_vm, "after";
    a_replacement_killed_before_every_call: replace, "before";
    a_replacement_killed_after_every_call: replace, "after";
    a_restore_in_place_killed_before_every_call_and_write: in_place, "before";
    a_restore_in_place_killed_after_every_call_and_write: in_place, "after";
}

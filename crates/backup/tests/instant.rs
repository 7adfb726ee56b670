//! A VM that runs from a point, within one process: the process dies at every call to its host, and either goes on or
//! everything is taken back. The volume is served by a target over TCP, so no byte of a base is anywhere else.

mod support;
#[path = "../../hyperv_sim/tests/support/target.rs"]
mod target;

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use backup::instant::{InstantStage, InstantVm, instant_leftovers, plan_instant, settle_instant};
use backup::janitor::{Leftover, Verdict, inspect};
use backup::{BackupError, Cancel, HostSide, HostState, Point, RestoreContext, RestoreRequest, Silent, TargetFormat};
use hyperv::seam::{Namespace, Seam};
use hyperv::{Host, TargetLogin, TargetPortal, Vm};
use hyperv_sim::{CallPhase, CountingSeam, DiskSource, Fault, GuestWrites, LabOptions, Spread};
use support::{Rig, assert_same, read_all};
use target::{SECRET, TestTarget, USER};

const SESSION: &str = "5e1f0a2b8c9d4e6f8091a2b3c4d5e6f7";
const TARGET: &str = "iqn.2026-01.internal.e3:5e1f0a2b8c9d4e6f8091a2b3c4d5e6f7";
const NAME: &str = "DC01-restored";

/// What ends a process that dies.
struct Death;

struct Desk {
    rig: Rig,
    point: Point,
    frozen: Vec<Vec<u8>>,
    streams: Vec<Vec<u8>>,
    target: TestTarget,
    /// Of somebody else, with a volume that is shown.
    foreign: TestTarget,
    before: Vec<String>,
}

fn desk() -> Desk {
    let disks = [DiskSource::Empty { size_bytes: 12 << 20 }, DiskSource::Empty { size_bytes: (6 << 20) + 512 }];
    let rig = Rig::with(LabOptions::default(), &disks);
    rig.guest_write(1, 2);
    let frozen = rig.guest_disks("DC01");
    let point = rig.back_up().unwrap().point;
    let streams: Vec<Vec<u8>> = (0..2)
        .map(|disk| {
            let path = rig.dir.path().join("stream.vhdx");
            rig.restore(&point, disk, TargetFormat::Vhdx, &path);
            std::fs::read(path).unwrap()
        })
        .collect();
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let target = TestTarget::named(TARGET, anywhere, streams.clone());
    let foreign = TestTarget::named("iqn.2026-01.test:foreign", anywhere, vec![vec![7; 8192]]);
    let host = Host::new(rig.lab.plain_seam());
    let portal = TargetPortal { address: "127.0.0.1".into(), port: foreign.address.port() };
    host.start_initiator().unwrap();
    host.add_portal(&portal).unwrap();
    let (user, secret) = (USER.to_owned(), SECRET.to_owned());
    host.connect_target(&TargetLogin { portal, target: "iqn.2026-01.test:foreign".into(), user, secret }).unwrap();
    let disk = host.find_host_disk(&foreign.serial).unwrap().unwrap();
    host.bring_disk_online(&disk).unwrap();
    rig.lab.plain_seam().files.writes().unwrap().create_folder(r"C:\foreign").unwrap();
    host.mount_disk(&disk, r"C:\foreign").unwrap();
    let mut desk = Desk { rig, point, frozen, streams, target, foreign, before: Vec::new() };
    desk.before = desk.seen();
    desk
}

impl Desk {
    fn login(&self) -> TargetLogin {
        let portal = TargetPortal { address: "127.0.0.1".into(), port: self.target.address.port() };
        TargetLogin { portal, target: TARGET.into(), user: USER.into(), secret: SECRET.into() }
    }

    fn state(&self) -> HostState {
        HostState::open(&self.rig.dir.path().join("state")).unwrap()
    }

    /// Everything that is on the host.
    fn seen(&self) -> Vec<String> {
        let seam = self.rig.lab.plain_seam();
        let mut seen = Vec::new();
        for class in ["MSFT_iSCSITargetPortal", "MSFT_iSCSISession", "MSFT_Disk", "MSFT_Partition"] {
            let objects = seam.wmi.query(Namespace::Storage, &format!("SELECT * FROM {class}")).unwrap();
            seen.extend(objects.into_iter().map(|object| object.path.unwrap().to_string()));
        }
        let host = Host::new(seam);
        seen.extend(host.list_vms().unwrap().into_iter().map(|vm| vm.name));
        seen.extend(host.list_planned_vms().unwrap().into_iter().map(|vm| vm.name));
        let root = self.rig.lab.host_file(r"C:\VMs").unwrap();
        let mut folders = vec![root];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                seen.push(path.display().to_string());
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        seen.sort();
        seen
    }

    fn assert_nothing_is_left(&self, label: &str) {
        assert_eq!(self.seen(), self.before, "{label}");
        assert_eq!(instant_leftovers(&self.state()).unwrap(), [], "{label}");
        let foreign = self.rig.lab.plain_seam().files.open_read(r"C:\foreign\disk0.vhdx").unwrap();
        let mut bytes = [0; 16];
        foreign.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(bytes, [7; 16], "{label}: the foreign volume");
        assert!(self.foreign.address.port() > 0);
    }

    /// From the beginning to a VM that runs.
    fn begin(&self, seam: Seam) -> Result<(), BackupError> {
        let (host, state, cancel) = (Host::new(seam), self.state(), Cancel::default());
        let context =
            RestoreContext { host: &host, repo: &self.rig.repo, state: &state, observer: &Silent, cancel: &cancel };
        let plan = plan_instant(&context, &self.point, &RestoreRequest::default())?;
        let mut vm = InstantVm::begin(&context, &plan, SESSION, TARGET, &self.target.serial)?;
        let made = vm.attach(&self.login()).and_then(|()| vm.make(&context, &plan));
        if let Err(error) = made {
            vm.discard()?;
            return Err(error);
        }
        vm.start()
    }

    fn vm(&self) -> Vm {
        Host::new(self.rig.lab.plain_seam()).find_vm(NAME).unwrap()
    }

    /// The guest of the VM writes; what it sees from then on.
    fn write(&self, seed: u64) -> Vec<Vec<u8>> {
        self.rig.lab.guest_write_only(NAME, GuestWrites { seed, mib: 1, spread: Spread::Scattered }).unwrap();
        self.rig.guest_disks(NAME)
    }

    /// Copies of the files, whole, as a mover leaves them.
    fn copy(&self) {
        let (host, state) = (Host::new(self.rig.lab.plain_seam()), self.state());
        let vm = InstantVm::open(&host, &state, SESSION).unwrap().unwrap();
        for (disk, stream) in vm.disks().iter().zip(&self.streams) {
            std::fs::write(self.rig.lab.host_file(&disk.local).unwrap(), stream).unwrap();
        }
    }

    fn finish(&self, seam: Seam) -> Result<(), BackupError> {
        let (host, state) = (Host::new(seam), self.state());
        match InstantVm::open(&host, &state, SESSION)? {
            Some(mut vm) => vm.finish(true),
            None => Ok(()),
        }
    }

    fn discard(&self) {
        let (host, state) = (Host::new(self.rig.lab.seam()), self.state());
        InstantVm::open(&host, &state, SESSION).unwrap().unwrap().discard().unwrap();
    }

    /// Takes a VM that was finished off the host, with its files.
    fn remove_finished(&self) {
        let host = Host::new(self.rig.lab.plain_seam());
        let vm = self.vm();
        host.turn_off_vm(&vm).unwrap();
        host.remove_vm(&vm.path).unwrap();
        std::fs::remove_dir_all(self.rig.lab.host_file(&format!(r"C:\VMs\{NAME}")).unwrap()).unwrap();
    }
}

/// Does `work` on a host at whose call with this number, on this side of it, the process dies; whether it did, and how
/// many calls there were.
fn dying(
    desk: &Desk,
    number: u64,
    phase: CallPhase,
    work: impl FnOnce(Seam) -> Result<(), BackupError>,
) -> (bool, u64) {
    let (seam, counting) = CountingSeam::wrap(desk.rig.lab.seam(), move |call| {
        if (call.number, call.phase) == (number, phase) {
            resume_unwind(Box::new(Death));
        }
    });
    match catch_unwind(AssertUnwindSafe(|| work(seam))) {
        Ok(result) => {
            result.unwrap_or_else(|error| panic!("call {number}: {error:?}"));
            (false, counting.calls())
        }
        Err(cause) => {
            assert!(cause.is::<Death>(), "call {number}: another panic");
            (true, counting.calls())
        }
    }
}

#[test]
fn killed_at_a_sample_of_calls_until_it_runs_it_is_taken_back_or_goes_on() {
    killed_until_it_runs(11);
}

#[test]
#[ignore = "long: every call, before and after"]
fn killed_at_every_call_until_it_runs_it_is_taken_back_or_goes_on() {
    killed_until_it_runs(1);
}

/// At every call that `step` leaves.
fn killed_until_it_runs(step: u64) {
    let desk = desk();
    let (mut taken_back, mut went_on) = (0, 0);
    for (first, phase) in [(0, CallPhase::Before), (step / 2, CallPhase::After)] {
        let mut number = first;
        loop {
            let label = format!("{phase:?} call {number}");
            let (died, _) = dying(&desk, number, phase, |seam| desk.begin(seam));
            let (host, state) = (Host::new(desk.rig.lab.seam()), desk.state());
            let side = HostSide { host: &host, state: &state, idle_wait: Duration::from_secs(1) };
            let found = inspect(side, None).unwrap();
            let has_vm = found.iter().find_map(|finding| match finding.what {
                Leftover::InstantSession { has_vm, .. } => {
                    assert_eq!(finding.verdict, if has_vm { Verdict::News } else { Verdict::Ours }, "{label}");
                    Some(has_vm)
                }
                _ => None,
            });
            settle_instant(&host, &state).unwrap_or_else(|error| panic!("{label}: {error:?}"));
            if has_vm == Some(true) {
                // The VM is there, on the bases of its own disks; the next process goes on with it.
                let mut vm = InstantVm::open(&host, &state, SESSION).unwrap().unwrap();
                vm.attach(&desk.login()).unwrap_or_else(|error| panic!("{label}: {error:?}"));
                vm.start().unwrap_or_else(|error| panic!("{label}: {error:?}"));
                drop(vm);
                for (nth, expected) in desk.frozen.iter().enumerate() {
                    let found = desk.rig.lab.open_guest_disk(NAME, nth).unwrap();
                    assert_same(&label, expected, &read_all(&found));
                }
                desk.discard();
                went_on += 1;
            } else {
                taken_back += 1;
            }
            desk.assert_nothing_is_left(&label);
            if !died {
                break;
            }
            number += step;
        }
        println!("{phase:?}: {number} calls");
    }
    println!("{taken_back} taken back, {went_on} went on");
    assert!(taken_back > 100 / step && went_on > 2, "{taken_back} {went_on}");
}

#[test]
fn killed_at_a_sample_of_calls_of_the_finish_no_write_of_the_guest_is_lost() {
    killed_in_the_finish(13);
}

#[test]
#[ignore = "long: every call, before and after"]
fn killed_at_every_call_of_the_finish_no_write_of_the_guest_is_lost() {
    killed_in_the_finish(1);
}

/// At every call that `step` leaves.
fn killed_in_the_finish(step: u64) {
    let desk = desk();
    let mut deaths = 0;
    for (first, phase) in [(0, CallPhase::Before), (step / 2, CallPhase::After)] {
        let mut number = first;
        loop {
            let label = format!("{phase:?} call {number}");
            desk.begin(desk.rig.lab.seam()).unwrap();
            let expected = desk.write(100 + number);
            desk.copy();
            Host::new(desk.rig.lab.plain_seam()).turn_off_vm(&desk.vm()).unwrap();
            let (died, _) = dying(&desk, number, phase, |seam| desk.finish(seam));
            for (nth, expected) in expected.iter().enumerate() {
                // Whoever opens the disk now sees what the guest wrote, or nothing at all.
                if let Ok(disk) = desk.rig.lab.open_guest_disk(NAME, nth) {
                    assert_same(&label, expected, &read_all(&disk));
                }
            }
            desk.finish(desk.rig.lab.seam()).unwrap_or_else(|error| panic!("{label}: {error:?}"));
            let vm = desk.vm();
            for (nth, expected) in expected.iter().enumerate() {
                let disk = desk.rig.lab.open_guest_disk(NAME, nth).unwrap();
                assert_same(&label, expected, &read_all(&disk));
                assert_eq!(vm.disks[nth].chain.len(), 1, "{label}: {:?}", vm.disks[nth].chain);
            }
            assert_eq!(vm.state, hyperv::VmState::Running, "{label}");
            desk.remove_finished();
            desk.assert_nothing_is_left(&label);
            if !died {
                break;
            }
            deaths += 1;
            number += step;
        }
    }
    println!("{deaths} deaths");
    assert!(deaths > 40 / step, "{deaths}");
}

#[test]
fn a_method_that_fails_leaves_nothing() {
    let desk = desk();
    for method in [
        "New",
        "Connect",
        "SetAttributes",
        "Online",
        "AddAccessPath",
        "CreateVirtualHardDisk",
        "ImportSystemDefinition",
        "RealizePlannedSystem",
    ] {
        for fault in [
            Fault::MethodReturns { method: method.into(), return_value: 5 },
            Fault::MethodUnreachable { method: method.into(), hresult: 0x8004_1001 },
        ] {
            let label = format!("{fault:?}");
            desk.rig.lab.inject(fault).unwrap();
            let result = desk.begin(desk.rig.lab.seam());
            desk.rig.lab.clear_faults().unwrap();
            assert!(result.is_err(), "{label}");
            desk.assert_nothing_is_left(&label);
        }
    }
}

#[test]
fn a_vm_is_not_started_on_another_base_and_no_copy_but_a_whole_one_becomes_a_parent() {
    let mut desk = desk();
    desk.begin(desk.rig.lab.seam()).unwrap();
    let host = Host::new(desk.rig.lab.plain_seam());
    host.turn_off_vm(&desk.vm()).unwrap();
    // Somebody serves another point under the same name.
    let (address, mut others) = (desk.target.address, desk.streams.clone());
    others.swap(0, 1);
    desk.target.stop();
    desk.target = TestTarget::named(TARGET, address, others);
    let state = desk.state();
    let mut vm = InstantVm::open(&host, &state, SESSION).unwrap().unwrap();
    let error = vm.attach(&desk.login()).unwrap_err();
    assert!(format!("{error:?}").contains("is not the base of disk 0"), "{error:?}");
    let error = vm.start().unwrap_err();
    assert!(format!("{error:?}").contains("is not the base of disk 0"), "{error:?}");
    drop(vm);
    desk.target.stop();
    desk.target = TestTarget::named(TARGET, address, desk.streams.clone());

    // No copy is there, then one of the other disk.
    let missing = desk.finish(desk.rig.lab.seam()).unwrap_err();
    assert!(format!("{missing:?}").contains("NotFound"), "{missing:?}");
    let vm = InstantVm::open(&host, &state, SESSION).unwrap().unwrap();
    assert_eq!(vm.stage(), InstantStage::Finishing);
    let local = desk.rig.lab.host_file(&vm.disks()[0].local).unwrap();
    drop(vm);
    std::fs::write(&local, &desk.streams[1]).unwrap();
    let wrong = desk.finish(desk.rig.lab.seam()).unwrap_err();
    assert!(format!("{wrong:?}").contains("is not the base of disk 0"), "{wrong:?}");
    std::fs::remove_file(&local).unwrap();
    let mut vm = InstantVm::open(&host, &state, SESSION).unwrap().unwrap();
    vm.attach(&desk.login()).unwrap();
    vm.start().unwrap();
    drop(vm);
    // It runs: it has to be off for that.
    desk.copy();
    let running = desk.finish(desk.rig.lab.seam()).unwrap_err();
    assert!(matches!(running, BackupError::Obstructed { .. }), "{running:?}");
    // It is not backed up meanwhile.
    let refused = desk.rig.back_up_as(NAME, desk.rig.lab.seam(), &Cancel::default()).unwrap_err();
    assert!(
        matches!(&refused, BackupError::NotBackupable { problem, .. } if problem.contains("instant switch")),
        "{refused:?}"
    );
    desk.discard();
    desk.assert_nothing_is_left("discarded");
}

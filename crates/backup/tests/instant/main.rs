//! A VM that runs from a point, within one process: the process dies at every call to its host, and either goes on or
//! everything is taken back. The volume is served by a target over TCP, so no byte of a base is anywhere else.

#[path = "../support/mod.rs"]
mod support;
#[path = "../../../hyperv_sim/tests/support/target.rs"]
mod target;

mod failing;
mod going_on;
mod kills;
mod refused;
mod taken_back;

use std::net::SocketAddr;

use backup::instant::{InstantVm, instant_leftovers, plan_instant};
use backup::{BackupError, Cancel, HostState, Point, RestoreContext, RestoreRequest, Silent, TargetFormat};
use hyperv::seam::{Namespace, Seam};
use hyperv::{Host, TargetLogin, TargetPortal, Vm};
use hyperv_sim::{DiskSource, GuestWrites, LabOptions, Spread};
use support::{Rig, assert_same, read_all};
use target::{SECRET, TestTarget, USER};

const SESSION: &str = "5e1f0a2b8c9d4e6f8091a2b3c4d5e6f7";
const TARGET: &str = "iqn.2026-01.internal.e3:5e1f0a2b8c9d4e6f8091a2b3c4d5e6f7";
const FOREIGN: &str = "iqn.2026-01.test:foreign";
const NAME: &str = "DC01-restored";

struct Desk {
    rig: Rig,
    point: Point,
    frozen: Vec<Vec<u8>>,
    streams: Vec<Vec<u8>>,
    target: TestTarget,
    /// Of somebody else, with a volume that is shown.
    foreign: TestTarget,
    request: RestoreRequest,
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
    let foreign = TestTarget::named(FOREIGN, anywhere, vec![vec![7; 8192]]);
    let request = RestoreRequest::default();
    let mut desk = Desk { rig, point, frozen, streams, target, foreign, request, before: Vec::new() };
    desk.rig.lab.plain_seam().files.writes().unwrap().create_folder(r"C:\foreign").unwrap();
    desk.connect_foreign();
    desk.before = desk.seen();
    desk
}

impl Desk {
    /// Somebody else's session, as its owner makes it, also after a restart of the host.
    fn connect_foreign(&self) {
        let host = Host::new(self.rig.lab.plain_seam());
        let portal = TargetPortal { address: "127.0.0.1".into(), port: self.foreign.address.port() };
        host.start_initiator().unwrap();
        host.add_portal(&portal).unwrap();
        let (user, secret) = (USER.to_owned(), SECRET.to_owned());
        host.connect_target(&TargetLogin { portal, target: FOREIGN.into(), user, secret }).unwrap();
        let disk = host.find_host_disk(&self.foreign.serial).unwrap().unwrap();
        host.bring_disk_online(&disk).unwrap();
        host.mount_disk(&disk, r"C:\foreign").unwrap();
    }

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
        for (class, properties) in [
            ("MSFT_iSCSITargetPortal", &["TargetPortalAddress", "TargetPortalPortNumber"][..]),
            ("MSFT_iSCSISession", &["TargetNodeAddress"]),
            ("MSFT_Disk", &["SerialNumber", "IsOffline"]),
            ("MSFT_Partition", &["AccessPaths"]),
        ] {
            let objects = seam.wmi.query(Namespace::Storage, &format!("SELECT * FROM {class}")).unwrap();
            let told = |name: &&str, object: &hyperv::seam::Instance| format!("{:?}", object.get(name));
            seen.extend(objects.iter().map(|object| {
                let values: Vec<String> = properties.iter().map(|name| told(name, object)).collect();
                format!("{class} {}", values.join(" "))
            }));
        }
        let host = Host::new(seam);
        seen.extend(host.list_vms().unwrap().into_iter().map(|vm| vm.name));
        seen.extend(host.list_planned_vms().unwrap().into_iter().map(|vm| vm.name));
        seen.extend(self.files_in(r"C:\VMs"));
        seen.sort();
        seen
    }

    /// Every file and folder below one of the host.
    fn files_in(&self, folder: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.rig.lab.host_file(folder).unwrap()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                found.push(path.display().to_string());
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        found
    }

    fn assert_nothing_is_left(&self, label: &str) {
        assert_eq!(self.seen(), self.before, "{label}");
        assert_eq!(instant_leftovers(&self.state()).unwrap(), [], "{label}");
        let foreign = self.rig.lab.plain_seam().files.open_read(r"C:\foreign\disk0.vhdx").unwrap();
        let mut bytes = [0; 16];
        foreign.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(bytes, [7; 16], "{label}: the foreign volume");
    }

    /// The VM is like any other: one file per disk with what its guest wrote, and nothing of the session in its folder.
    fn assert_finished(&self, label: &str, expected: &[Vec<u8>]) {
        let vm = self.vm();
        self.assert_guest_sees(label, expected);
        for disk in &vm.disks {
            assert_eq!(disk.chain.len(), 1, "{label}: {:?}", disk.chain);
        }
        assert_eq!(instant_leftovers(&self.state()).unwrap(), [], "{label}");
        let ours = ["since-restore", "e3-import", ".partial", "Restore point"];
        for file in self.files_in(&format!(r"C:\VMs\{NAME}")) {
            assert!(!ours.iter().any(|one| file.contains(one)), "{label}: {file}");
        }
    }

    fn assert_guest_sees(&self, label: &str, expected: &[Vec<u8>]) {
        for (nth, expected) in expected.iter().enumerate() {
            let disk = self.rig.lab.open_guest_disk(NAME, nth).unwrap_or_else(|error| panic!("{label}: {error:?}"));
            assert_same(label, expected, &read_all(&disk));
        }
    }

    /// From the beginning to a VM that runs.
    fn begin(&self, seam: Seam) -> Result<(), BackupError> {
        let (host, state, cancel) = (Host::new(seam), self.state(), Cancel::default());
        let context =
            RestoreContext { host: &host, repo: &self.rig.repo, state: &state, observer: &Silent, cancel: &cancel };
        let plan = plan_instant(&context, &self.point, &self.request)?;
        let mut vm = InstantVm::begin(&context, &plan, SESSION, TARGET, &self.target.serial)?;
        let made = vm.attach(&self.login()).and_then(|()| vm.make(&context, &plan));
        if let Err(error) = made {
            vm.discard()?;
            return Err(error);
        }
        vm.start()
    }

    /// The next process takes the session up; `None` when there is none any more.
    fn with_session<R>(&self, seam: Seam, work: impl FnOnce(InstantVm<'_>) -> R) -> Option<R> {
        let (host, state) = (Host::new(seam), self.state());
        InstantVm::open(&host, &state, SESSION).unwrap().map(work)
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
        self.with_session(self.rig.lab.plain_seam(), |vm| {
            for (disk, stream) in vm.disks().iter().zip(&self.streams) {
                std::fs::write(self.rig.lab.host_file(&disk.local).unwrap(), stream).unwrap();
            }
        });
    }

    /// A VM whose guest has written, that is off, with whole copies beside it; what the guest saw last.
    fn ready_to_finish(&self, seed: u64) -> Vec<Vec<u8>> {
        self.begin(self.rig.lab.seam()).unwrap();
        let expected = self.write(seed);
        self.copy();
        self.turn_off();
        expected
    }

    fn turn_off(&self) {
        // Of a process that was killed while it started the VM.
        self.rig.wait_for_rest(NAME);
        Host::new(self.rig.lab.plain_seam()).turn_off_vm(&self.vm()).unwrap();
    }

    fn finish(&self, seam: Seam) -> Result<(), BackupError> {
        self.with_session(seam, |mut vm| vm.finish(true)).unwrap_or(Ok(()))
    }

    fn go_on(&self, seam: Seam) -> Result<(), BackupError> {
        let gone_on = self.with_session(seam, |mut vm| vm.attach(&self.login()).and_then(|()| vm.start()));
        gone_on.expect("there is a session")
    }

    fn discard(&self, seam: Seam) -> Result<Vec<String>, BackupError> {
        self.with_session(seam, |vm| vm.discard()).unwrap_or(Ok(Vec::new()))
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

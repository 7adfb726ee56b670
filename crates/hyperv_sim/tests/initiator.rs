//! The host's iSCSI initiator against a real target: logins, disks, a volume in a folder, and a VM that stands on it.

#[path = "support/target.rs"]
mod target;

use std::sync::Arc;
use std::time::Duration;

use hyperv::seam::{CimValue, Namespace, ObjectPath};
use hyperv::{Error, Host, HostDisk, TargetLogin, TargetPortal};
use hyperv_sim::{DiskSource, LabHost, LabOptions, VmOptions};
use target::{SECRET, TARGET, TestTarget, USER};
use vhdx::VirtualDisk as _;

const MIB: u64 = 1 << 20;
const FOLDER: &str = r"C:\VMs\volume";

struct Desk {
    dir: tempfile::TempDir,
    lab: Arc<LabHost>,
    host: Host,
    target: TestTarget,
}

/// A VHDX of 4 MiB in which every byte of the first is `fill`.
fn disk_file(dir: &std::path::Path, fill: u8) -> Vec<u8> {
    let path = dir.join(format!("{fill}.vhdx"));
    vhdx::create(&path, &vhdx::CreateOptions::dynamic(4 * MIB)).unwrap();
    let mut disk = vhdx::WritableVhdx::open(&path, &vhdx::OpenOptions::default()).unwrap();
    disk.write_all_at(&vec![fill; MIB as usize], 0).unwrap();
    disk.close().unwrap();
    std::fs::read(path).unwrap()
}

fn desk(options: LabOptions) -> Desk {
    let dir = tempfile::tempdir().unwrap();
    let target = TestTarget::serve(vec![disk_file(dir.path(), 0xA0), disk_file(dir.path(), 0xA1)]);
    let lab = LabHost::create_with(dir.path().join("lab"), options).unwrap();
    // The names that it uses are compared with the list.
    let host = Host::new(lab.seam());
    Desk { dir, lab, host, target }
}

impl Desk {
    fn portal(&self) -> TargetPortal {
        TargetPortal { address: self.target.address.ip().to_string(), port: self.target.address.port() }
    }

    fn login(&self) -> TargetLogin {
        TargetLogin { portal: self.portal(), target: TARGET.into(), user: USER.into(), secret: SECRET.into() }
    }

    fn connected(&self) -> HostDisk {
        self.host.start_initiator().unwrap();
        self.host.add_portal(&self.portal()).unwrap();
        self.host.connect_target(&self.login()).unwrap();
        self.host.wait_for_host_disk(&self.target.serial, Duration::from_secs(60)).unwrap()
    }

    /// The volume in its folder.
    fn shown(&self) -> HostDisk {
        let disk = self.connected();
        self.host.bring_disk_online(&disk).unwrap();
        self.host.seam().files.writes().unwrap().create_folder(FOLDER).unwrap();
        self.host.mount_disk(&disk, FOLDER).unwrap();
        self.disk().unwrap()
    }

    fn disk(&self) -> Option<HostDisk> {
        self.host.find_host_disk(&self.target.serial).unwrap()
    }
}

fn code(result: Result<(), Error>) -> u32 {
    match result {
        Err(Error::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_login_needs_the_service_the_portal_and_the_secret() {
    let desk = desk(LabOptions { disk_arrival_ms: 3_000, ..LabOptions::default() });
    let (host, login) = (&desk.host, desk.login());
    assert_eq!(host.initiator_service().unwrap().map(|service| service.is_running()), Some(false));
    assert_eq!(code(host.add_portal(&desk.portal())), 0xEFFF_0013, "the service does not run");
    assert!(host.start_initiator().unwrap());
    assert!(!host.start_initiator().unwrap(), "it runs already");
    let nobody = TargetPortal { port: 1, ..desk.portal() };
    assert_eq!(code(host.add_portal(&nobody)), 0xEFFF_0003);
    host.add_portal(&desk.portal()).unwrap();
    assert!(host.knows_portal(&desk.portal()).unwrap() && !host.knows_portal(&nobody).unwrap());
    let wrong = TargetLogin { secret: "other-letters".into(), ..login.clone() };
    assert_eq!(code(host.connect_target(&wrong)), 0xEFFF_0009);
    let short = TargetLogin { secret: "short".into(), ..login.clone() };
    let error = host.connect_target(&short).unwrap_err().to_string();
    assert!(error.contains("returned 5 (invalid parameter)"), "Windows wants 12 to 16 characters: {error}");
    let other = TargetLogin { target: "iqn.2026-01.test:other".into(), ..login.clone() };
    let error = host.connect_target(&other).unwrap_err().to_string();
    assert!(error.ends_with("does not list it"), "{error}");
    host.connect_target(&login).unwrap();
    host.connect_target(&login).unwrap();
    assert_eq!(host.target_sessions(TARGET).unwrap().len(), 1);
    assert_eq!(desk.disk(), None, "it takes its time");
    let disk = host.wait_for_host_disk(&desk.target.serial, Duration::from_secs(60)).unwrap();
    assert!(disk.is_offline && disk.is_read_only, "as on servers: {disk:?}");
    assert!(host.find_host_disk("another serial").unwrap().is_none());
    host.disconnect_target(TARGET).unwrap();
    host.disconnect_target(TARGET).unwrap();
    assert_eq!(desk.disk(), None);
    host.remove_portal(&desk.portal()).unwrap();
    host.remove_portal(&desk.portal()).unwrap();
    assert!(!host.knows_portal(&desk.portal()).unwrap());
}

#[test]
fn a_persistent_login_and_odd_calls_are_refused() {
    let desk = desk(LabOptions::default());
    desk.host.start_initiator().unwrap();
    desk.host.add_portal(&desk.portal()).unwrap();
    // Calls that the program would not make.
    let wmi = desk.lab.plain_seam().wmi;
    let target = ObjectPath::new("MSFT_iSCSITarget");
    let text = |text: &str| CimValue::String(text.into());
    let mut parameters = vec![
        ("NodeAddress", text(TARGET)),
        ("AuthenticationType", text("ONEWAYCHAP")),
        ("ChapUsername", text(USER)),
        ("ChapSecret", text(SECRET)),
        ("IsPersistent", CimValue::Boolean(true)),
    ];
    let call = |parameters: &[_]| wmi.call(Namespace::Storage, &target, "Connect", parameters).unwrap().return_value;
    assert_eq!(call(&parameters), 5);
    parameters[4].1 = CimValue::Boolean(false);
    assert_eq!(call(&parameters), 0);
    // A method of the class is none of an instance, and the other way round.
    let instance = wmi.query(Namespace::Storage, "SELECT * FROM MSFT_iSCSITarget").unwrap().remove(0).path.unwrap();
    assert!(wmi.call(Namespace::Storage, &instance, "Connect", &parameters).is_err());
    assert!(wmi.call(Namespace::Storage, &target, "Disconnect", &[]).is_err());
    assert!(wmi.call(Namespace::Virtualization, &target, "Connect", &parameters).is_err());
}

#[test]
fn a_volume_is_shown_in_an_empty_folder_and_taken_away_in_order() {
    let desk = desk(LabOptions::default());
    let (host, files) = (&desk.host, &desk.host.seam().files);
    let writes = files.writes().unwrap();
    let disk = desk.connected();
    assert!(matches!(host.mount_disk(&disk, FOLDER), Err(Error::Missing { .. })), "off-line it has no partition");
    host.bring_disk_online(&disk).unwrap();
    let disk = desk.disk().unwrap();
    assert!(!disk.is_offline && !disk.is_read_only);
    assert_eq!(code(host.mount_disk(&disk, FOLDER)), 42007, "there is no such folder");
    writes.create_folder(r"C:\VMs\full\inner").unwrap();
    assert_eq!(code(host.mount_disk(&disk, r"C:\VMs\full")), 42007, "it is not empty");
    writes.create_folder(FOLDER).unwrap();
    host.mount_disk(&disk, FOLDER).unwrap();
    host.mount_disk(&disk, FOLDER).unwrap();
    let file = files.open_read(&format!(r"{FOLDER}\disk1.vhdx")).unwrap();
    let opened = vhdx::VhdxFile::open(Arc::from(file)).unwrap();
    assert_eq!(opened.geometry().size_bytes, 4 * MIB);
    assert!(files.open_read(&format!(r"{FOLDER}\disk2.vhdx")).is_err());
    assert_eq!(code(host.disconnect_target(TARGET)), 0xEFFF_001F, "its disk is in use");
    host.unmount_disk(&disk, FOLDER).unwrap();
    host.unmount_disk(&disk, FOLDER).unwrap();
    assert!(files.open_read(&format!(r"{FOLDER}\disk1.vhdx")).is_err());
    host.take_disk_offline(&desk.disk().unwrap()).unwrap();
    host.disconnect_target(TARGET).unwrap();
    assert!(writes.remove_empty_folder(FOLDER).unwrap());
}

#[test]
fn a_vm_stands_on_the_volume_and_falls_with_it() {
    let mut desk = desk(LabOptions::default());
    let disk = desk.shown();
    let (child, base) = (r"C:\VMs\child.vhdx", format!(r"{FOLDER}\disk0.vhdx"));
    desk.host.create_child_disk(child, &base).unwrap();
    assert!(desk.host.create_child_disk(child, &base).is_err(), "it is there");
    assert!(desk.host.create_child_disk(r"C:\VMs\b.vhdx", &format!(r"{FOLDER}\disk7.vhdx")).is_err());
    desk.lab
        .add_vm("web", &[DiskSource::Empty { size_bytes: MIB }], VmOptions { running: false, ..VmOptions::default() })
        .unwrap();
    let vm = desk.host.find_vm("web").unwrap();
    desk.host.replace_disk_file(&vm, &vm.disks[0].instance_id, child).unwrap();
    let vm = desk.host.find_vm("web").unwrap();
    assert_eq!(vm.disks[0].chain, [child.to_owned(), base.clone()]);
    desk.host.start_vm(&vm).unwrap();
    let read = |at: u64| {
        let mut bytes = [0; 512];
        let disk = desk.lab.open_guest_disk("web", 0)?;
        disk.read_exact_at(&mut bytes, at)?;
        Ok::<u8, hyperv_sim::LabError>(bytes[0])
    };
    assert_eq!((read(0).unwrap(), read(MIB).unwrap()), (0xA0, 0));
    // What the guest writes is local, and the volume never sees it: the target panics at a write.
    desk.lab
        .guest_write_only("web", hyperv_sim::GuestWrites { seed: 5, mib: 1, spread: hyperv_sim::Spread::Scattered })
        .unwrap();
    let written = desk.lab.disk_sha256("web", 0).unwrap();
    let online = desk.host.find_host_disk(&disk.serial).unwrap().unwrap();
    assert_eq!(code(desk.host.take_disk_offline(&online)), 4, "a running VM reads from it");
    assert_eq!(code(desk.host.unmount_disk(&online, FOLDER)), 4);

    let (address, files) = (desk.target.address, vec![disk_file(desk.dir.path(), 0xA2), Vec::from([0; 4096])]);
    desk.target.stop();
    assert!(read(0).is_err(), "without its target the disk cannot be read");
    assert!(!desk.host.target_sessions(TARGET).unwrap()[0].is_connected);
    // A target with other files is no base of it.
    desk.target = TestTarget::serve_at(address, files);
    let read = |at: u64| {
        let mut bytes = [0; 512];
        let disk = desk.lab.open_guest_disk("web", 0)?;
        disk.read_exact_at(&mut bytes, at)?;
        Ok::<u8, hyperv_sim::LabError>(bytes[0])
    };
    assert!(read(0).is_err(), "it is not the parent");
    desk.target.stop();
    let whole = ["160.vhdx", "161.vhdx"].map(|name| std::fs::read(desk.dir.path().join(name)).unwrap()).into();
    desk.target = TestTarget::serve_at(address, whole);
    assert_eq!(desk.lab.disk_sha256("web", 0).unwrap(), written, "with its target it is as before");
}

#[test]
fn only_the_same_content_becomes_the_parent_and_a_merge_gives_one_file() {
    let desk = desk(LabOptions::default());
    desk.shown();
    let (child, base) = (r"C:\VMs\child.vhdx", format!(r"{FOLDER}\disk0.vhdx"));
    desk.host.create_child_disk(child, &base).unwrap();
    let local = |name: &str| desk.lab.host_file(&format!(r"C:\VMs\{name}.vhdx")).unwrap();
    std::fs::copy(desk.dir.path().join("160.vhdx"), local("same")).unwrap();
    std::fs::copy(desk.dir.path().join("161.vhdx"), local("other")).unwrap();
    let error = desk.host.set_parent_disk(child, r"C:\VMs\other.vhdx").unwrap_err();
    assert!(error.to_string().contains("0xC03A000E"), "{error}");
    desk.host.set_parent_disk(child, r"C:\VMs\same.vhdx").unwrap();
    desk.host.set_parent_disk(child, r"C:\VMs\same.vhdx").unwrap();
    let mut file = vhdx::WritableVhdx::open(&local("child"), &vhdx::OpenOptions::default()).unwrap();
    file.write_all_at(&[7; 512], MIB).unwrap();
    file.close().unwrap();
    assert!(desk.host.merge_disk(child, r"C:\VMs\other.vhdx").is_err());
    desk.host.merge_disk(child, r"C:\VMs\same.vhdx").unwrap();
    // One that was cut off is done again.
    desk.host.merge_disk(child, r"C:\VMs\same.vhdx").unwrap();
    let merged = vhdx::open_disk(&local("same"), &vhdx::OpenOptions::default()).unwrap();
    let mut bytes = [0; 512];
    merged.read_exact_at(&mut bytes, MIB).unwrap();
    assert_eq!(bytes, [7; 512]);
    merged.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0xA0; 512]);
}

#[test]
fn a_job_holds_its_files_until_it_ends() {
    let desk = desk(LabOptions::default());
    desk.shown();
    let (child, base, same) = (r"C:\VMs\child.vhdx", format!(r"{FOLDER}\disk0.vhdx"), r"C:\VMs\same.vhdx");
    desk.host.create_child_disk(child, &base).unwrap();
    std::fs::copy(desk.dir.path().join("160.vhdx"), desk.lab.host_file(same).unwrap()).unwrap();
    desk.host.set_parent_disk(child, same).unwrap();
    let service = desk.host.seam().wmi.query(Namespace::Virtualization, "SELECT * FROM Msvm_ImageManagementService");
    let service = service.unwrap().remove(0).path.unwrap();
    let text = |text: &str| CimValue::String(text.into());
    let parameters = [("SourcePath", text(child)), ("DestinationPath", text(same))];
    // Whoever asked does not wait for the end.
    let wmi = &desk.host.seam().wmi;
    let asked = wmi.call(Namespace::Virtualization, &service, "MergeVirtualHardDisk", &parameters).unwrap();
    assert_eq!(asked.return_value, 4096);
    let files = &desk.host.seam().files;
    for file in [child, same] {
        assert!(files.open_read(file).is_err_and(|error| hyperv::is_sharing_violation(&error)), "{file}");
        assert!(files.writes().unwrap().remove_file(file).is_err(), "{file}");
    }
    let busy = desk.host.merge_disk(child, same).unwrap_err();
    assert_eq!(busy.kind(), hyperv::ErrorKind::Busy, "{busy}");
    desk.lab.clock().sleep(Duration::from_secs(60));
    desk.host.merge_disk(child, same).unwrap();
    assert!(files.open_read(same).is_ok());
}

#[test]
fn a_restart_of_the_host_ends_sessions_and_leaves_a_mount_point_without_its_volume() {
    let desk = desk(LabOptions::default());
    desk.shown();
    let writes = desk.host.seam().files.writes().unwrap();
    desk.lab.add_vm("web", &[DiskSource::Empty { size_bytes: MIB }], VmOptions::default()).unwrap();
    desk.lab.restart_host().unwrap();
    assert_eq!(desk.host.find_vm("web").unwrap().state, hyperv::VmState::Off);
    assert_eq!(desk.disk(), None);
    assert!(desk.host.target_sessions(TARGET).unwrap().is_empty());
    assert!(desk.host.knows_portal(&desk.portal()).unwrap(), "portals are persistent");
    assert!(!desk.host.initiator_service().unwrap().unwrap().is_running());
    let error = writes.create_folder(FOLDER).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists, "it can be neither made nor followed");
    // The volume is shown where it was as soon as its disk is back.
    desk.connected();
    assert!(desk.host.seam().files.open_read(&format!(r"{FOLDER}\disk0.vhdx")).is_ok());
    writes.create_folder(FOLDER).unwrap();

    desk.lab.restart_host().unwrap();
    assert!(writes.remove_empty_folder(FOLDER).unwrap());
    writes.create_folder(FOLDER).unwrap();
    desk.connected();
    assert!(desk.host.seam().files.open_read(&format!(r"{FOLDER}\disk0.vhdx")).is_err(), "it was forgotten");
}

/// As Windows looks for parents: a chain that was copied elsewhere is read from there.
#[test]
fn the_path_that_begins_at_the_child_comes_first() {
    let desk = desk(LabOptions::default());
    desk.shown();
    let base = format!(r"{FOLDER}\disk0.vhdx");
    desk.lab
        .add_vm("web", &[DiskSource::Empty { size_bytes: MIB }], VmOptions { running: false, ..VmOptions::default() })
        .unwrap();
    let vm = desk.host.find_vm("web").unwrap();
    let writes = desk.host.seam().files.writes().unwrap();
    writes.create_folder(r"C:\VMs\one").unwrap();
    writes.create_folder(r"C:\VMs\two").unwrap();
    desk.host.create_child_disk(r"C:\VMs\one\child.vhdx", &base).unwrap();
    desk.host.create_child_disk(r"C:\VMs\one\leaf.vhdx", r"C:\VMs\one\child.vhdx").unwrap();
    // Both paths are in the child now.
    desk.host.set_parent_disk(r"C:\VMs\one\leaf.vhdx", r"C:\VMs\one\child.vhdx").unwrap();
    for name in ["child", "leaf"] {
        let file = |folder: &str| desk.lab.host_file(&format!(r"C:\VMs\{folder}\{name}.vhdx")).unwrap();
        std::fs::copy(file("one"), file("two")).unwrap();
    }
    let leaf = r"C:\VMs\two\leaf.vhdx";
    desk.host.replace_disk_file(&vm, &vm.disks[0].instance_id, leaf).unwrap();
    let chain = desk.host.find_vm("web").unwrap().disks.remove(0).chain;
    assert_eq!(chain, [leaf.to_owned(), r"C:\VMs\two\child.vhdx".to_owned(), base]);
}

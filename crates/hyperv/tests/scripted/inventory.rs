//! Finding VMs and what belongs to them.

use std::sync::Arc;

use hyperv::seam::{CimType, CimValue, Instance};
use hyperv::{
    CheckpointKind, ErrorKind, Exclusion, FindError, Operation, ProbeError, TrackingSupport, VmState, VssReadiness,
};

use crate::script::*;

const OTHER_VM: &str = "1A1B2C3D-0000-1111-2222-333344445555";
const DEVICE: &str = "Msvm_ResourceAllocationSettingData";

/// A whole host in bulk answers; `media` and `devices` are added to the disk of VM "web".
pub fn bulk(
    systems: Vec<Instance>,
    all_settings: Vec<Instance>,
    media: Vec<Instance>,
    devices: Vec<Instance>,
) -> Arc<Script> {
    let script = one_vm();
    let mut host = computer("HOST", "HOST");
    host.properties.insert("Caption".into(), text("Hostcomputer"));
    let mut all_systems = vec![host];
    all_systems.extend(systems);
    script.on_query("SELECT * FROM Msvm_ComputerSystem", all_systems);
    script.on_query("SELECT * FROM Msvm_VirtualSystemSettingData", all_settings);
    script.on_query("SELECT * FROM Msvm_StorageAllocationSettingData", media);
    script.on_query("SELECT * FROM Msvm_ResourceAllocationSettingData", devices);
    for class in [
        "Msvm_ProcessorSettingData",
        "Msvm_MemorySettingData",
        "Msvm_SyntheticFcPortSettingData",
        "Msvm_VirtualSystemReferencePoint",
        "Msvm_VssComponentSettingData",
        "Msvm_VssComponent",
        "Msvm_KvpExchangeComponent",
    ] {
        script.on_query(format!("SELECT * FROM {class}"), vec![]);
    }
    script
}

fn active() -> Instance {
    settings(VM, "System:Realized", "web")
}

#[test]
fn a_vm_is_put_together_from_bulk_answers() {
    let (mut medium, devices) = scsi_disk(VM, 1, r"C:\VMs\web\leaf.avhdx");
    // Without a Parent, the grammar of InstanceID leads to the drive.
    medium.properties.remove("Parent");
    // Somebody else's disk on the same host.
    let (foreign, foreign_devices) = scsi_disk(OTHER_VM, 0, r"C:\VMs\other.vhdx");
    let other_controller = instance(
        DEVICE,
        "first",
        vec![("InstanceID", text(&format!(r"Microsoft:{VM}\FIRST\0"))), ("ResourceType", CimValue::Uint16(6))],
    );
    let mut all_devices = foreign_devices;
    all_devices.push(other_controller);
    all_devices.extend(devices);
    let mut system = computer(VM, "web");
    let status = vec![CimValue::Uint16(2), CimValue::Uint16(32772)];
    system.properties.insert("OperationalStatus".into(), CimValue::Array(CimType::Uint16, status));
    let script = bulk(
        vec![system],
        vec![
            settings(CHECKPOINT, "Snapshot:Recovery", "tag"),
            active(),
            settings("AAAAAAAA-0000-1111-2222-333344445555", "Snapshot:Realized", "mine"),
        ],
        vec![foreign, medium],
        all_devices,
    );
    script.on_disk(r"C:\VMs\web\leaf.avhdx", Ok(disk_data(DISK, Some(r"C:\VMs\web\d.vhdx"))));
    for (class, quantity) in [("Msvm_ProcessorSettingData", 4), ("Msvm_MemorySettingData", 2048)] {
        let of = |configuration: &str, quantity| {
            let id = format!(r"Microsoft:{configuration}\X");
            instance(class, &id, vec![("InstanceID", text(&id)), ("VirtualQuantity", CimValue::Uint64(quantity))])
        };
        script.forget_query(&format!("SELECT * FROM {class}"));
        script.on_query(format!("SELECT * FROM {class}"), vec![of("Definition", 1), of(OTHER_VM, 9), of(VM, quantity)]);
    }
    let vms = script.host().list_vms().unwrap();
    assert_eq!(vms.len(), 1, "the host is not a VM");
    let vm = &vms[0];
    assert_eq!((vm.id.as_str(), vm.name.as_str(), vm.generation), (VM, "web", 2));
    assert_eq!((&vm.state, vm.operation), (&VmState::Running, Some(Operation::MergingDisks)));
    assert_eq!(vm.configuration_version, "9.0");
    assert_eq!((vm.processors, vm.memory_mib), (Some(4), Some(2048)));
    assert_eq!(vm.disks.len(), 1);
    assert_eq!((vm.excluded_disks.len(), vm.unreadable_disks.len()), (0, 0), "another VM's disk is not this one's");
    let disk = &vm.disks[0];
    assert_eq!(disk.slot.to_string(), "SCSI 1:1", "the second controller of this VM, not of the host");
    assert_eq!(disk.chain, [r"C:\VMs\web\leaf.avhdx", r"C:\VMs\web\d.vhdx"]);
    assert_eq!((disk.size_bytes, disk.logical_sector_bytes, disk.physical_sector_bytes), (1 << 30, 512, 4096));
    assert_eq!(disk.tracking, TrackingSupport::Supported);
    assert_eq!(vm.user_checkpoints().map(|checkpoint| checkpoint.name.as_str()).collect::<Vec<_>>(), ["mine"]);
    assert_eq!(vm.recovery_checkpoints().map(|checkpoint| checkpoint.name.as_str()).collect::<Vec<_>>(), ["tag"]);
}

#[test]
fn disks_that_no_checkpoint_covers_are_named() {
    let (mut shared, devices) = scsi_disk(VM, 0, r"C:\VMs\shared.vhdx");
    shared.properties.insert("PersistentReservationsSupported".into(), CimValue::Boolean(true));
    let (set, mut more) = scsi_disk(VM, 1, r"C:\VMs\set.vhds");
    let (missing, more2) = scsi_disk(VM, 2, r"C:\VMs\missing.vhdx");
    let (mut lost, _) = scsi_disk(VM, 3, r"C:\VMs\lost.vhdx");
    lost.properties.insert("Parent".into(), text("nowhere"));
    let drive_id = format!(r"Microsoft:{VM}\{SCSI}\0\4\D");
    let pass_through = instance(
        DEVICE,
        &drive_id,
        vec![
            ("InstanceID", text(&drive_id)),
            ("ResourceType", CimValue::Uint16(17)),
            ("ResourceSubType", text("Microsoft:Hyper-V:Physical Disk Drive")),
            ("Parent", text(&path_of(DEVICE, &format!(r"Microsoft:{VM}\{SCSI}\0")))),
            ("AddressOnParent", text("4")),
            ("HostResource", texts(&["a physical drive"])),
        ],
    );
    let mut all = devices;
    all.push(more.remove(1));
    all.push(more2[1].clone());
    all.push(pass_through);
    let script = bulk(vec![computer(VM, "web")], vec![active()], vec![shared, set, missing, lost], all);
    let mut set_data = disk_data(DISK, None);
    set_data.properties.insert("Format".into(), CimValue::Uint16(4));
    script.on_disk(r"C:\VMs\set.vhds", Ok(set_data));
    script.on_disk(r"C:\VMs\missing.vhdx", Err(32779));
    script.forget_query("SELECT * FROM Msvm_SyntheticFcPortSettingData");
    let adapter = instance(
        "Msvm_SyntheticFcPortSettingData",
        "fc",
        vec![("InstanceID", text(&format!(r"Microsoft:{VM}\FC"))), ("ElementName", text("fc0"))],
    );
    script.on_query("SELECT * FROM Msvm_SyntheticFcPortSettingData", vec![adapter]);
    let vm = script.host().list_vms().unwrap().remove(0);
    assert!(vm.disks.is_empty());
    let excluded: Vec<_> =
        vm.excluded_disks.iter().map(|disk| (disk.reason, disk.slot.map(|slot| slot.to_string()))).collect();
    assert_eq!(
        excluded,
        [
            (Exclusion::Shared, Some("SCSI 0:0".into())),
            (Exclusion::VhdSet, Some("SCSI 0:1".into())),
            (Exclusion::PassThrough, Some("SCSI 0:4".into())),
            (Exclusion::FibreChannel, None),
        ]
    );
    let unreadable: Vec<_> = vm.unreadable_disks.iter().map(|disk| disk.path.as_str()).collect();
    assert_eq!(unreadable, [r"C:\VMs\lost.vhdx", r"C:\VMs\missing.vhdx"]);
    assert!(vm.unreadable_disks[1].problem.contains("32779"), "{}", vm.unreadable_disks[1].problem);
}

#[test]
fn a_chain_that_bites_its_tail_is_unreadable() {
    let (medium, devices) = scsi_disk(VM, 0, r"C:\a.avhdx");
    let script = bulk(vec![computer(VM, "web")], vec![active()], vec![medium], devices);
    script.on_disk(r"C:\a.avhdx", Ok(disk_data(DISK, Some(r"C:\b.avhdx"))));
    script.on_disk(r"C:\b.avhdx", Ok(disk_data(DISK, Some(r"c:\A.avhdx"))));
    let vm = script.host().list_vms().unwrap().remove(0);
    assert!(vm.unreadable_disks[0].problem.contains("circle"), "{}", vm.unreadable_disks[0].problem);
}

#[test]
fn tracking_needs_host_version_and_format() {
    for (version, format, host_tracks, expected) in [
        ("9.0", 3, true, TrackingSupport::Supported),
        ("6.2", 3, true, TrackingSupport::Supported),
        ("12.0", 3, true, TrackingSupport::Supported),
        ("5.0", 3, true, TrackingSupport::ConfigurationTooOld),
        ("6.1", 3, true, TrackingSupport::ConfigurationTooOld),
        ("", 3, true, TrackingSupport::ConfigurationTooOld),
        ("9.0", 2, true, TrackingSupport::NotVhdx),
        ("9.0", 3, false, TrackingSupport::HostTooOld),
    ] {
        let (medium, devices) = scsi_disk(VM, 0, r"C:\VMs\web\d.vhdx");
        let mut active = active();
        active.properties.insert("Version".into(), text(version));
        let script = bulk(vec![computer(VM, "web")], vec![active], vec![medium], devices);
        let mut data = disk_data(DISK, None);
        data.properties.insert("Format".into(), CimValue::Uint16(format));
        script.on_disk(r"C:\VMs\web\d.vhdx", Ok(data));
        if !host_tracks {
            script.forget_class("Msvm_VirtualSystemReferencePointService");
        }
        let vm = script.host().list_vms().unwrap().remove(0);
        assert_eq!(vm.disks[0].tracking, expected, "{version} {format} {host_tracks}");
    }
}

#[test]
fn states_have_names() {
    for (value, expected) in [
        (2, VmState::Running),
        (3, VmState::Off),
        (6, VmState::Saved),
        (32769, VmState::Saved),
        (9, VmState::Paused),
        (32768, VmState::Paused),
        (1, VmState::InTransition { value: 1, text: "Saving".into() }),
        (32771, VmState::InTransition { value: 32771, text: "Saving".into() }),
        (32781, VmState::Critical(32781)),
        (7, VmState::Unknown(7)),
    ] {
        let mut system = computer(VM, "web");
        system.properties.insert("EnabledState".into(), CimValue::Uint16(value));
        system.properties.insert("OtherEnabledState".into(), text("Saving"));
        let script = bulk(vec![system], vec![active()], vec![], vec![]);
        assert_eq!(script.host().list_vms().unwrap()[0].state, expected, "{value}");
    }
}

#[test]
fn the_guest_is_not_asked_in_vain() {
    for (enabled, status, expected) in [
        (2, Some(2), VssReadiness::Ready),
        (3, Some(2), VssReadiness::Disabled),
        (2, Some(12), VssReadiness::NotResponding(12)),
        (2, None, VssReadiness::Unknown),
    ] {
        let script = bulk(vec![computer(VM, "web")], vec![active()], vec![], vec![]);
        for class in ["Msvm_VssComponentSettingData", "Msvm_VssComponent"] {
            script.forget_query(&format!("SELECT * FROM {class}"));
        }
        let setting = vec![
            ("InstanceID", text(&format!(r"Microsoft:{VM}\5CED1297-4598-4915-A5FC-AD21BB4D02A4"))),
            ("EnabledState", CimValue::Uint16(enabled)),
        ];
        let setting = instance("Msvm_VssComponentSettingData", "s", setting);
        script.on_query("SELECT * FROM Msvm_VssComponentSettingData", vec![setting]);
        let status = status.map(|status| {
            let status = CimValue::Array(CimType::Uint16, vec![CimValue::Uint16(status)]);
            instance("Msvm_VssComponent", "c", vec![("SystemName", text(VM)), ("OperationalStatus", status)])
        });
        script.on_query("SELECT * FROM Msvm_VssComponent", status.into_iter().collect());
        assert_eq!(script.host().list_vms().unwrap()[0].vss, expected);
    }
}

#[test]
fn a_person_finds_a_vm_by_id_or_name() {
    let name = "it's \"50%\" [x]";
    let script = bulk(
        vec![computer(VM, name), computer(OTHER_VM, "DB"), computer("2A1B2C3D-0000-1111-2222-333344445555", "db")],
        vec![],
        vec![],
        vec![],
    );
    script.on_query(ALL_SETTINGS_OF_VM, vec![active()]);
    script.on_query(ALL_REFERENCE_POINTS_OF_VM, vec![]);
    let host = script.host();
    for selector in [VM, &format!("{{{}}}", VM.to_lowercase()), name, &name.to_uppercase()] {
        assert_eq!(host.find_vm(selector).unwrap().id.as_str(), VM, "{selector}");
    }
    assert!(matches!(host.find_vm("nobody"), Err(FindError::NotFound { .. })));
    assert!(matches!(host.find_vm("%"), Err(FindError::NotFound { .. })));
    match host.find_vm("Db") {
        Err(error @ FindError::Ambiguous { .. }) => assert!(error.to_string().contains(OTHER_VM), "{error}"),
        other => panic!("{other:?}"),
    }
    // An exact name wins, and a VM that vanished between two questions is not found.
    script.on_query(format!("SELECT * FROM Msvm_ComputerSystem WHERE Name = '{OTHER_VM}'"), vec![]);
    assert!(matches!(host.find_vm("DB"), Err(FindError::NotFound { .. })));
}

#[test]
fn one_vm_reads_as_in_bulk() {
    let script = one_vm();
    let kinds = [("System:Realized", VM), ("Snapshot:Recovery", CHECKPOINT)];
    script.on_query(ALL_SETTINGS_OF_VM, kinds.map(|(kind, id)| settings(id, kind, "x")).to_vec());
    script.on_query(ALL_REFERENCE_POINTS_OF_VM, vec![]);
    let vm = script.host().vm(&VM.parse().unwrap()).unwrap().unwrap();
    assert_eq!(vm.disks[0].slot.to_string(), "SCSI 0:0");
    assert_eq!(vm.checkpoints[0].kind, CheckpointKind::Recovery);
    let gone = "9A1B2C3D-0000-1111-2222-333344445555";
    script.on_query(format!("SELECT * FROM Msvm_ComputerSystem WHERE Name = '{gone}'"), vec![]);
    assert_eq!(script.host().vm(&gone.parse().unwrap()).unwrap(), None);
}

#[test]
fn a_probe_says_what_is_wrong() {
    const SERVICE: &str = "SELECT * FROM Msvm_VirtualSystemManagementService";
    const WINDOWS_SERVICE: &str = "SELECT * FROM Win32_Service WHERE Name = 'vmms'";
    let state = |state: &str| vec![instance("Win32_Service", "vmms", vec![("State", text(state))])];

    let script = one_vm();
    script.on_query("SELECT * FROM Win32_OperatingSystem", vec![]);
    let facts = script.host().probe().unwrap();
    assert_eq!((facts.name.as_str(), facts.reference_points), ("HOST", true));
    script.forget_class("Msvm_VirtualSystemReferencePointService");
    assert!(!script.host().probe().unwrap().reference_points);

    script.forget_query(SERVICE);
    script.on_query_error(SERVICE, 0x8004_100E);
    assert!(matches!(script.host().probe(), Err(ProbeError::NoHyperV)));
    script.forget_query(SERVICE);
    script.on_query_error(SERVICE, 0x8004_1003);
    assert!(matches!(script.host().probe(), Err(ProbeError::AccessDenied)));
    script.forget_query(SERVICE);
    script.on_query(SERVICE, vec![]);
    script.on_query(WINDOWS_SERVICE, vec![]);
    assert!(matches!(script.host().probe(), Err(ProbeError::NoAnswer)));
    script.forget_query(WINDOWS_SERVICE);
    script.on_query(WINDOWS_SERVICE, state("Stopped"));
    assert!(matches!(script.host().probe(), Err(ProbeError::ServiceStopped { state }) if state == "Stopped"));
    script.forget_query(WINDOWS_SERVICE);
    script.on_query(WINDOWS_SERVICE, state("Running"));
    assert!(matches!(script.host().probe(), Err(ProbeError::AccessDenied)));
}

#[test]
fn a_restarting_service_is_waited_for() {
    const SYSTEMS: &str = "SELECT * FROM Msvm_ComputerSystem";
    let script = bulk(vec![], vec![], vec![], vec![]);
    script.forget_query(SYSTEMS);
    script.on_query_error(SYSTEMS, 0x8007_06BA);
    script.on_query_error(SYSTEMS, 0x8004_1015);
    script.on_query(SYSTEMS, vec![]);
    assert!(script.host().list_vms().unwrap().is_empty());
    assert_eq!(script.elapsed().as_secs(), 6);
    script.forget_query(SYSTEMS);
    script.on_query_error(SYSTEMS, 0x8007_06BA);
    assert_eq!(script.host().list_vms().unwrap_err().kind(), ErrorKind::ServiceGone);
}

#[test]
fn no_service_is_not_an_empty_host() {
    let script = bulk(vec![], vec![], vec![], vec![]);
    script.forget_query("SELECT * FROM Msvm_ImageManagementService");
    script.on_query("SELECT * FROM Msvm_ImageManagementService", vec![]);
    let error = script.host().list_vms().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ServiceGone);
}

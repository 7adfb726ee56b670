//! How VMs of every awkward kind are reported.

use hyperv::seam::{CimType, CimValue, Instance};
use hyperv::{Caution, Exclusion, FullOnly, Impossible, Protection, TrackingSupport, Vm, VssReadiness};

use crate::inventory::bulk;
use crate::script::*;

/// A VM "web" with one dynamic VHDX at SCSI 0:0, after `change` worked on everything that describes it.
struct Kind {
    system: Instance,
    settings: Vec<Instance>,
    media: Vec<Instance>,
    devices: Vec<Instance>,
    disk: Instance,
    fibre_channel: Vec<Instance>,
    security: Vec<Instance>,
}

fn vm_with(change: impl FnOnce(&mut Kind)) -> Vm {
    let (medium, devices) = scsi_disk(VM, 0, r"C:\VMs\web\d.vhdx");
    let mut kind = Kind {
        system: computer(VM, "web"),
        settings: vec![settings(VM, "System:Realized", "web")],
        media: vec![medium],
        devices,
        disk: disk_data(DISK, None),
        fibre_channel: vec![],
        security: vec![],
    };
    change(&mut kind);
    let script = bulk(vec![kind.system], kind.settings, kind.media, kind.devices);
    script.on_disk(r"C:\VMs\web\d.vhdx", Ok(kind.disk));
    script.on_disk(r"C:\VMs\golden.vhdx", Ok(disk_data(DISK, None)));
    script.on_disk(r"C:\VMs\web\d_1.avhdx", Ok(disk_data(DISK, Some(r"C:\VMs\web\d.vhdx"))));
    for (class, found) in
        [("Msvm_SyntheticFcPortSettingData", kind.fibre_channel), ("Msvm_SecuritySettingData", kind.security)]
    {
        script.forget_query(&format!("SELECT * FROM {class}"));
        script.on_query(format!("SELECT * FROM {class}"), found);
    }
    script.host().list_vms().unwrap().remove(0)
}

fn set(instance: &mut Instance, name: &str, value: CimValue) {
    instance.properties.insert(name.into(), value);
}

fn pass_through_only(kind: &mut Kind) {
    kind.media.clear();
    set(&mut kind.devices[1], "ResourceSubType", text("Microsoft:Hyper-V:Physical Disk Drive"));
    set(&mut kind.devices[1], "HostResource", texts(&["physical drive 3"]));
}

#[test]
fn every_kind_is_one_of_three() {
    let slot = "SCSI 0:0".parse().unwrap();
    let incremental = || Protection::Incremental { full_each_time: vec![] };
    let full = |tracking| Protection::FullOnly(FullOnly::Disks(vec![(slot, tracking)]));
    type Change = fn(&mut Kind);
    let cases: Vec<(&str, Change, Protection)> = vec![
        ("plain", |_| {}, incremental()),
        (
            "configuration version 5.0",
            |kind| set(&mut kind.settings[0], "Version", text("5.0")),
            Protection::FullOnly(FullOnly::ConfigurationTooOld { version: "5.0".into() }),
        ),
        ("VHD", |kind| set(&mut kind.disk, "Format", CimValue::Uint16(2)), full(TrackingSupport::NotVhdx)),
        (
            "PMEM",
            |kind| set(&mut kind.disk, "IsPmemCompatible", CimValue::Boolean(true)),
            full(TrackingSupport::PersistentMemory),
        ),
        ("golden image", |kind| kind.disk = disk_data(DISK, Some(r"C:\VMs\golden.vhdx")), incremental()),
        ("replica", |kind| set(&mut kind.system, "ReplicationMode", CimValue::Uint16(2)), incremental()),
        ("saved", |kind| set(&mut kind.system, "EnabledState", CimValue::Uint16(6)), incremental()),
        ("paused", |kind| set(&mut kind.system, "EnabledState", CimValue::Uint16(9)), incremental()),
        (
            "critical",
            |kind| set(&mut kind.system, "EnabledState", CimValue::Uint16(32781)),
            Protection::Impossible(Impossible::StorageLost(32781)),
        ),
        (
            "pass-through only",
            pass_through_only,
            Protection::Impossible(Impossible::OnlyExcludedDisks(vec![(
                "physical drive 3".into(),
                Exclusion::PassThrough,
            )])),
        ),
        (
            "shared only",
            |kind| set(&mut kind.media[0], "PersistentReservationsSupported", CimValue::Boolean(true)),
            Protection::Impossible(Impossible::OnlyExcludedDisks(vec![(
                r"C:\VMs\web\d.vhdx".into(),
                Exclusion::Shared,
            )])),
        ),
        (
            "VHD set only",
            |kind| set(&mut kind.disk, "Format", CimValue::Uint16(4)),
            Protection::Impossible(Impossible::OnlyExcludedDisks(vec![(
                r"C:\VMs\web\d.vhdx".into(),
                Exclusion::VhdSet,
            )])),
        ),
        ("no disk", |kind| kind.media.clear(), Protection::Impossible(Impossible::NoDisks)),
    ];
    for (name, change, expected) in cases {
        let vm = vm_with(change);
        assert_eq!(vm.protection(), expected, "{name}");
        let sentence = vm.protection().to_string();
        assert!(sentence.ends_with('.') && !sentence.contains('\n'), "{name}: {sentence}");
    }
}

#[test]
fn a_disk_that_vanished_makes_a_backup_impossible() {
    let (medium, devices) = scsi_disk(VM, 0, r"C:\VMs\gone.vhdx");
    let script = bulk(vec![computer(VM, "web")], vec![settings(VM, "System:Realized", "web")], vec![medium], devices);
    script.on_disk(r"C:\VMs\gone.vhdx", Err(32779));
    let vm = script.host().list_vms().unwrap().remove(0);
    assert!(
        matches!(vm.protection(), Protection::Impossible(Impossible::UnreadableDisk { path, .. }) if path == r"C:\VMs\gone.vhdx")
    );
}

#[test]
fn one_vhd_beside_a_vhdx_is_read_in_full_each_time() {
    let (second, more) = scsi_disk(VM, 1, r"C:\VMs\golden.vhdx");
    let vm = vm_with(|kind| {
        kind.media.push(second);
        kind.devices.push(more[1].clone());
        set(&mut kind.disk, "Format", CimValue::Uint16(2));
    });
    let slot = "SCSI 0:0".parse().unwrap();
    assert_eq!(vm.protection(), Protection::Incremental { full_each_time: vec![(slot, TrackingSupport::NotVhdx)] });
    assert!(vm.protection().to_string().contains("SCSI 0:0 is read in full each time"), "{}", vm.protection());
    assert!(
        matches!(vm.cautions()[..], [Caution::SameIdentity(a, b)] if a.location == 0 && b.location == 1),
        "a copied file attached twice: {:?}",
        vm.cautions()
    );
}

#[test]
fn cautions_name_what_a_person_should_know() {
    let slot = "SCSI 0:0".parse().unwrap();
    let security = |name: &str| {
        let mut security =
            instance("Msvm_SecuritySettingData", "s", vec![("InstanceID", text(&format!(r"Microsoft:{VM}\SEC")))]);
        set(&mut security, "TpmEnabled", CimValue::Boolean(true));
        set(&mut security, name, CimValue::Boolean(true));
        security
    };
    let adapter = instance(
        "Msvm_SyntheticFcPortSettingData",
        "fc",
        vec![("InstanceID", text(&format!(r"Microsoft:{VM}\FC"))), ("ElementName", text("fc0"))],
    );
    let (leaf, _) = scsi_disk(VM, 0, r"C:\VMs\web\d_1.avhdx");
    let status = vec![CimValue::Uint16(2), CimValue::Uint16(32773)];
    type Change = Box<dyn FnOnce(&mut Kind)>;
    let cases: Vec<(&str, Change, Vec<Caution>)> = vec![
        ("plain", Box::new(|_| {}), vec![]),
        (
            "fibre channel",
            Box::new(|kind| kind.fibre_channel.push(adapter)),
            vec![Caution::DiskLeftOut { path: "fc0".into(), reason: Exclusion::FibreChannel }],
        ),
        (
            "shared beside nothing else",
            Box::new(|kind| set(&mut kind.media[0], "PersistentReservationsSupported", CimValue::Boolean(true))),
            vec![
                Caution::DiskLeftOut { path: r"C:\VMs\web\d.vhdx".into(), reason: Exclusion::Shared },
                Caution::SharesDisks,
            ],
        ),
        (
            "golden image",
            Box::new(|kind| kind.disk = disk_data(DISK, Some(r"C:\VMs\golden.vhdx"))),
            vec![Caution::HasParent { slot, parent: r"C:\VMs\golden.vhdx".into() }],
        ),
        ("an unmerged checkpoint is no golden image", Box::new(move |kind| kind.media[0] = leaf), vec![]),
        (
            "replica",
            Box::new(|kind| set(&mut kind.system, "ReplicationMode", CimValue::Uint16(2))),
            vec![Caution::Replica { mode: 2 }],
        ),
        ("primary", Box::new(|kind| set(&mut kind.system, "ReplicationMode", CimValue::Uint16(1))), vec![]),
        ("vTPM", Box::new(move |kind| kind.security.push(security("TpmEnabled"))), vec![Caution::VirtualTpm]),
        ("shielded", Box::new(move |kind| kind.security.push(security("ShieldingRequested"))), vec![Caution::Shielded]),
        ("saved", Box::new(|kind| set(&mut kind.system, "EnabledState", CimValue::Uint16(6))), vec![Caution::Saved]),
        ("paused", Box::new(|kind| set(&mut kind.system, "EnabledState", CimValue::Uint16(9))), vec![Caution::Paused]),
        (
            "exporting",
            Box::new(|kind| set(&mut kind.system, "OperationalStatus", CimValue::Array(CimType::Uint16, status))),
            vec![Caution::Busy(hyperv::Operation::Exporting)],
        ),
        (
            "checkpoints",
            Box::new(|kind| {
                kind.settings.push(settings(CHECKPOINT, "Snapshot:Recovery", "theirs"));
                kind.settings.push(settings("AAAAAAAA-0000-1111-2222-333344445555", "Snapshot:Realized", "mine"));
            }),
            vec![Caution::BackupCheckpoints(vec!["theirs".into()]), Caution::UserCheckpoints(1)],
        ),
    ];
    for (name, change, expected) in cases {
        let cautions = vm_with(change).cautions();
        assert_eq!(cautions, expected, "{name}");
        for caution in cautions {
            assert!(caution.to_string().ends_with('.'), "{name}: {caution}");
        }
    }
    let silent = Caution::GuestDoesNotFreeze(VssReadiness::NotResponding(12));
    assert!(silent.to_string().contains("12"), "{silent}");
}

#[test]
fn what_was_reached_depends_on_the_guest_and_the_lower_is_believed() {
    use hyperv::{Consistency, Reached};
    let kvp = |os: &str| {
        let item = format!(
            r#"<INSTANCE CLASSNAME="Msvm_KvpExchangeDataItem"><PROPERTY NAME="Name" TYPE="string"><VALUE>OSName</VALUE></PROPERTY><PROPERTY NAME="Data" TYPE="string"><VALUE>{os}</VALUE></PROPERTY></INSTANCE>"#
        );
        vec![("SystemName", text(VM)), ("GuestIntrinsicExchangeItems", texts(&[&item]))]
    };
    for (os, state, asked, point, expected) in [
        ("Windows Server 2022", 2, Consistency::Application, Some(Consistency::Application), Reached::Application),
        ("Windows Server 2022", 2, Consistency::Application, Some(Consistency::Crash), Reached::Crash),
        ("Windows Server 2022", 2, Consistency::Crash, Some(Consistency::Application), Reached::Crash),
        ("Debian GNU/Linux", 2, Consistency::Application, None, Reached::FileSystem),
        ("Debian GNU/Linux", 6, Consistency::Crash, Some(Consistency::Crash), Reached::Crash),
        ("Debian GNU/Linux", 3, Consistency::Crash, Some(Consistency::Crash), Reached::Offline),
    ] {
        let mut system = computer(VM, "web");
        set(&mut system, "EnabledState", CimValue::Uint16(state));
        let script = bulk(vec![system], vec![settings(VM, "System:Realized", "web")], vec![], vec![]);
        let component = instance("Msvm_KvpExchangeComponent", "k", kvp(os));
        script.forget_query("SELECT * FROM Msvm_KvpExchangeComponent");
        script.on_query("SELECT * FROM Msvm_KvpExchangeComponent", vec![component]);
        let vm = script.host().list_vms().unwrap().remove(0);
        let reached = Reached::of(asked, &vm).and(point);
        assert_eq!(reached, expected, "{os} {state} {asked:?} {point:?}");
    }
}

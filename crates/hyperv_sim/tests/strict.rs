//! Nothing wrong is ignored: names, types, references, quoting, states.

mod support;

use hyperv::seam::{CimType, CimValue, Namespace, ObjectPath};
use hyperv_sim::{DiskSource, Fault, LabHost, LabOptions, VmOptions};
use support::{Client, MIB, host_with, snapshot_settings};

const NOT_FOUND: u32 = 0x8004_1002;
const ACCESS_DENIED: u32 = 0x8004_1003;
const TYPE_MISMATCH: u32 = 0x8004_1005;
const INVALID_PARAMETER: u32 = 0x8004_1008;
const INVALID_NAMESPACE: u32 = 0x8004_100E;
const INVALID_CLASS: u32 = 0x8004_1010;
const INVALID_QUERY: u32 = 0x8004_1017;
const INVALID_METHOD: u32 = 0x8004_102E;
const INVALID_OBJECT_PATH: u32 = 0x8004_103A;

#[test]
fn wrong_parameters_are_refused() {
    let (_dir, lab) = host_with(LabOptions::default(), &[MIB]);
    let client = Client::new(&lab);
    let service = client.service("Msvm_VirtualSystemSnapshotService");
    let vm = client.vm_path("web");
    let missing_vm = ObjectPath::new(vm.as_str().replace("Name=\"", "Name=\"0"));
    let system = CimValue::Reference(vm.clone());
    let settings = CimValue::String(snapshot_settings(2));
    let kind = CimValue::Uint16(32768);
    let bad_property = CimValue::String(snapshot_settings(2).replace("GuestBackupType", "GuestBackup"));
    let bad_type = CimValue::String(snapshot_settings(2).replace("uint8", "uint16"));
    let bad_class = CimValue::String(snapshot_settings(2).replace("SnapshotSettingData", "SettingData"));

    let right = [("AffectedSystem", system.clone()), ("SnapshotSettings", settings.clone()), ("SnapshotType", kind)];
    let with = |index: usize, name, value| {
        let mut parameters = right.clone();
        parameters[index] = (name, value);
        parameters.to_vec()
    };
    for (case, parameters, hresult) in [
        ("misspelt name", with(0, "AffectedSystems", system.clone()), INVALID_PARAMETER),
        ("misspelt case", with(0, "affectedSystem", system.clone()), INVALID_PARAMETER),
        ("missing", right[..2].to_vec(), INVALID_PARAMETER),
        ("null where a value must be", with(2, "SnapshotType", CimValue::Null), INVALID_PARAMETER),
        ("twice", with(1, "AffectedSystem", system.clone()), INVALID_PARAMETER),
        ("wide integer", with(2, "SnapshotType", CimValue::Uint32(32768)), TYPE_MISMATCH),
        ("signed integer", with(2, "SnapshotType", CimValue::Sint32(32768)), TYPE_MISMATCH),
        ("number as text", with(2, "SnapshotType", CimValue::String("32768".into())), TYPE_MISMATCH),
        ("path as text", with(0, "AffectedSystem", CimValue::String(vm.as_str().into())), TYPE_MISMATCH),
        (
            "array for scalar",
            { with(2, "SnapshotType", CimValue::Array(CimType::Uint16, vec![CimValue::Uint16(32768)])) },
            TYPE_MISMATCH,
        ),
        ("no such object", with(0, "AffectedSystem", CimValue::Reference(missing_vm)), NOT_FOUND),
        ("object of another class", with(0, "AffectedSystem", CimValue::Reference(service.clone())), INVALID_PARAMETER),
        ("unknown property", with(1, "SnapshotSettings", bad_property), INVALID_PARAMETER),
        ("property of another type", with(1, "SnapshotSettings", bad_type), INVALID_PARAMETER),
        ("instance of another class", with(1, "SnapshotSettings", bad_class), INVALID_PARAMETER),
        ("no XML", with(1, "SnapshotSettings", CimValue::String("{}".into())), INVALID_PARAMETER),
    ] {
        let error = client.call(&service, "CreateSnapshot", &parameters).map(|output| output.return_value);
        assert_eq!(error.map_err(|e| e.hresult), Err(hresult), "{case}");
    }
    assert!(client.query("SELECT * FROM Msvm_ConcreteJob").is_empty(), "none of them started anything");
    assert_eq!(client.call(&service, "CreateSnapshot", &right).unwrap().return_value, 4096);
    assert_eq!(client.call(&service, "CreateSnapshots", &right).unwrap_err().hresult, INVALID_METHOD);
    assert_eq!(client.call(&vm, "CreateSnapshot", &right).unwrap_err().hresult, INVALID_METHOD);
}

#[test]
fn values_that_methods_refuse() {
    let (_dir, lab) = host_with(LabOptions::default(), &[MIB]);
    let client = Client::new(&lab);
    let service = client.service("Msvm_VirtualSystemSnapshotService");
    let create = |system: &ObjectPath, level: u8, kind: u16| {
        let parameters = [
            ("AffectedSystem", CimValue::Reference(system.clone())),
            ("SnapshotSettings", CimValue::String(snapshot_settings(level))),
            ("SnapshotType", CimValue::Uint16(kind)),
        ];
        client.call(&service, "CreateSnapshot", &parameters).unwrap().return_value
    };
    let vm = client.vm_path("web");
    let host = client.vm_path("LABHOST");
    for (case, system, level, kind, expected) in [
        ("level 0", &vm, 0, 32768, 4),
        ("level 3", &vm, 3, 32768, 4),
        ("disk-only", &vm, 2, 3, 1),
        ("unknown type", &vm, 2, 32769, 6),
        ("the host itself", &host, 2, 32768, 32773),
    ] {
        assert_eq!(create(system, level, kind), expected, "{case}");
    }

    // A VM in the middle of something, and a second recovery checkpoint.
    assert_eq!(create(&vm, 2, 32768), 4096);
    assert_eq!(create(&vm, 2, 32768), 32775, "while the first is being made");
    client.seam.clock.sleep(std::time::Duration::from_secs(5));
    assert_eq!(create(&vm, 2, 32768), 32775, "a second recovery checkpoint");
    assert_eq!(create(&vm, 2, 2), 4096, "a user checkpoint beside it");
    client.seam.clock.sleep(std::time::Duration::from_secs(5));
    let of_kind = |kind: &str| {
        client.only(&format!("SELECT * FROM Msvm_VirtualSystemSettingData WHERE VirtualSystemType LIKE '%{kind}'"))
    };
    let user = of_kind(":Snapshot:Realized");
    assert_eq!(client.on_checkpoint("ConvertToReferencePoint", &user).unwrap().return_value, 6);
    let active = of_kind(":System:Realized");
    for method in ["ConvertToReferencePoint", "DestroySnapshot"] {
        assert_eq!(client.on_checkpoint(method, &active).unwrap().return_value, 32773, "{method} of the VM's settings");
    }
    let recovery = of_kind(":Recovery");
    assert_eq!(client.on_checkpoint("DestroySnapshot", &recovery).unwrap().return_value, 4096);
    assert_eq!(client.on_checkpoint("DestroySnapshot", &user).unwrap().return_value, 32775, "while one is removed");
    client.seam.clock.sleep(std::time::Duration::from_secs(3));
    assert_eq!(client.on_checkpoint("DestroySnapshot", &recovery).unwrap_err().hresult, NOT_FOUND);

    let points = client.service("Msvm_VirtualSystemReferencePointService");
    let parameters = [("AffectedSystem", CimValue::Reference(vm.clone())), ("ReferencePointType", CimValue::Uint16(2))];
    assert_eq!(client.call(&points, "CreateReferencePoint", &parameters).unwrap().return_value, 32770);
}

#[test]
fn settings_change_only_where_they_can() {
    let (_dir, lab) = host_with(LabOptions::default(), &[MIB]);
    let client = Client::new(&lab);
    let service = client.service("Msvm_VirtualSystemManagementService");
    let checkpoint = client.checkpoint("web");
    let id = checkpoint.get("InstanceID").as_str().unwrap().to_owned();
    let modify = |properties: &[(&str, &str, &str)]| {
        let mut text = String::from("<INSTANCE CLASSNAME=\"Msvm_VirtualSystemSettingData\">");
        for (name, kind, value) in properties {
            text += &format!("<PROPERTY NAME=\"{name}\" TYPE=\"{kind}\"><VALUE>{value}</VALUE></PROPERTY>");
        }
        text += "</INSTANCE>";
        client
            .call(&service, "ModifySystemSettings", &[("SystemSettings", CimValue::String(text))])
            .unwrap()
            .return_value
    };
    let key = ("InstanceID", "string", id.as_str());
    assert_eq!(modify(&[key, ("ElementName", "string", "e3:a:b:1 &amp; &quot;x&quot;")]), 0);
    assert_eq!(
        client.get(checkpoint.path.as_ref().unwrap()).unwrap().get("ElementName").as_str(),
        Some("e3:a:b:1 & \"x\"")
    );
    assert_eq!(client.vm("web").get("ElementName").as_str(), Some("web"), "the VM keeps its name");
    for (case, properties) in [
        ("no key", vec![("ElementName", "string", "x")]),
        ("unknown key", vec![("InstanceID", "string", "Microsoft:none"), ("ElementName", "string", "x")]),
        ("read-only", vec![key, ("Version", "string", "11.0")]),
        ("empty name", vec![key, ("ElementName", "string", "")]),
        ("no such action", vec![key, ("AutomaticStartupAction", "uint16", "9")]),
    ] {
        assert_eq!(modify(&properties), 32773, "{case}");
    }
    assert_eq!(modify(&[key, ("Version", "string", "10.0")]), 0, "an unchanged read-only property");
}

#[test]
fn quoting_decides_and_wrong_quoting_finds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let lab = LabHost::create(dir.path().join("lab")).unwrap();
    let disk = [DiskSource::Empty { size_bytes: MIB }];
    for name in ["it's \"here\" [100%]", "Grüße/\\:*?", "same", "same"] {
        lab.add_vm(name, &disk, VmOptions::default()).unwrap();
    }
    let client = Client::new(&lab);
    for (wql, count) in [
        (r#"SELECT * FROM Msvm_ComputerSystem WHERE ElementName = 'it\'s "here" [100%]'"#, 1),
        (r"SELECT * FROM Msvm_ComputerSystem WHERE ElementName = 'Grüße/\\:*?'", 1),
        (r"SELECT * FROM Msvm_ComputerSystem WHERE ElementName = 'Grüße/\:*?'", 0),
        ("select * from msvm_computersystem where elementname = 'SAME'", 2),
        ("SELECT * FROM Msvm_ComputerSystem WHERE ElementName LIKE '%[[]100[%]]'", 1),
        ("SELECT * FROM Msvm_ComputerSystem", 5),
        ("SELECT * FROM Msvm_ComputerSystem WHERE EnabledState = 2 AND Caption = 'Virtual Machine'", 4),
        ("SELECT * FROM Msvm_PlannedComputerSystem", 0),
    ] {
        assert_eq!(client.query(wql).len(), count, "{wql}");
    }

    let sasd = client.query("SELECT * FROM Msvm_StorageAllocationSettingData").remove(0);
    let id = sasd.get("InstanceID").as_str().unwrap().to_owned();
    let by_id = |id: &str| {
        client.query(&format!("SELECT * FROM Msvm_StorageAllocationSettingData WHERE InstanceID = '{id}'")).len()
    };
    assert_eq!(by_id(&id.replace('\\', r"\\")), 1);
    assert_eq!(by_id(&id), 0, "backslashes that were not doubled");
    let drive = client.get(&ObjectPath::new(sasd.get("Parent").as_str().unwrap())).unwrap();
    let controller = client.get(&ObjectPath::new(drive.get("Parent").as_str().unwrap())).unwrap();
    assert_eq!(controller.get("ResourceType").as_u64(), Some(6));

    // Paths are used as they come; one whose escapes were undone names nothing.
    let path = sasd.path.as_ref().unwrap().as_str();
    for (text, hresult) in [
        (path.replace(r"\\", r"\").replacen('\\', r"\\", 1), INVALID_OBJECT_PATH),
        (path.replacen("LABHOST", "OTHER", 1), INVALID_NAMESPACE),
        (path.replacen("Msvm_StorageAllocationSettingData", "Msvm_Nothing", 1), INVALID_CLASS),
        (path.replacen("InstanceID", "Instance", 1), NOT_FOUND),
        (path.replace(r#"\\L""#, r#"\\M""#), NOT_FOUND),
        (id, INVALID_OBJECT_PATH),
    ] {
        assert_eq!(client.get(&ObjectPath::new(text.clone())).unwrap_err().hresult, hresult, "{text}");
    }
    let error = |wql: &str| client.seam.wmi.query(Namespace::Virtualization, wql).unwrap_err().hresult;
    for (wql, hresult) in [
        ("SELECT * FROM Msvm_NoSuchClass".to_owned(), INVALID_CLASS),
        ("SELECT * FROM Msvm_ComputerSystem WHERE VmName = 'x'".to_owned(), INVALID_QUERY),
        ("SELECT VmName FROM Msvm_ComputerSystem".to_owned(), INVALID_QUERY),
        ("SELECT * FROM Msvm_ComputerSystem WHERE EnabledState = 'x'".to_owned(), INVALID_QUERY),
        (format!("ASSOCIATORS OF {{{path}x}} WHERE AssocClass = Msvm_SettingsDefineState"), INVALID_OBJECT_PATH),
        (format!("ASSOCIATORS OF {{{path}}} WHERE AssocClass = Msvm_Settings"), INVALID_CLASS),
        (
            format!("ASSOCIATORS OF {{{path}}} WHERE AssocClass = Msvm_SettingsDefineState ResultClass = X"),
            INVALID_CLASS,
        ),
        (
            format!(
                "ASSOCIATORS OF {{{}}} WHERE AssocClass = Msvm_SettingsDefineState",
                path.replace(r#"\\L""#, r#"\\M""#)
            ),
            NOT_FOUND,
        ),
    ] {
        assert_eq!(error(&wql), hresult, "{wql}");
    }
    let in_cimv2 = client.seam.wmi.query(Namespace::Cimv2, "SELECT * FROM Msvm_ComputerSystem");
    assert_eq!(in_cimv2.unwrap_err().hresult, INVALID_CLASS, "classes live in their namespace");
}

#[test]
fn without_rights_everything_is_empty_or_denied() {
    let (_dir, lab) = host_with(LabOptions::default(), &[MIB]);
    let client = Client::new(&lab);
    let vm = client.vm_path("web");
    lab.inject(Fault::NoRights).unwrap();
    assert!(client.query("SELECT * FROM Msvm_VirtualSystemManagementService").is_empty());
    assert_eq!(client.get(&vm).unwrap_err().hresult, ACCESS_DENIED);
    lab.clear_faults().unwrap();
    lab.inject(Fault::MethodReturns { method: "CreateSnapshot".into(), return_value: 32774 }).unwrap();
    assert_eq!(client.start_checkpoint("web", 2).return_value, 32774);
    lab.clear_faults().unwrap();
    assert_eq!(client.start_checkpoint("web", 2).return_value, 4096);
}

#[test]
fn checkpoints_need_room_files_and_disks_that_can_take_part() {
    let dir = tempfile::tempdir().unwrap();
    let lab = LabHost::create(dir.path().join("lab")).unwrap();
    let disks = [DiskSource::Empty { size_bytes: MIB }, DiskSource::Empty { size_bytes: MIB }];
    lab.add_vm("web", &disks, VmOptions { shared_disks: vec![1], ..VmOptions::default() }).unwrap();
    let client = Client::new(&lab);
    let with_flag = |flag: &str| {
        let parameters = [
            ("AffectedSystem", CimValue::Reference(client.vm_path("web"))),
            ("SnapshotSettings", CimValue::String(snapshot_settings(2).replace("TRUE", flag))),
            ("SnapshotType", CimValue::Uint16(32768)),
        ];
        client.call(&client.service("Msvm_VirtualSystemSnapshotService"), "CreateSnapshot", &parameters).unwrap()
    };
    assert_eq!(with_flag("FALSE").return_value, 32770);
    let failing = |expected: &str| {
        let (_, job) = client.wait(&with_flag("TRUE"));
        assert_eq!(job.get("JobState").as_u64(), Some(10));
        let text = job.get("ErrorDescription").as_str().unwrap().to_owned();
        assert!(text.contains(expected), "{text}");
        assert!(lab.checkpoints("web").unwrap().1.is_empty());
    };
    lab.set_options(|options| options.free_bytes = 1000).unwrap();
    failing("(0x80070070)");
    lab.set_options(|options| options.free_bytes = 1 << 40).unwrap();
    let file = lab.host_file(&lab.disk_chain("web", 0).unwrap()[0]).unwrap();
    let aside = file.with_extension("aside");
    std::fs::rename(&file, &aside).unwrap();
    failing("(0x80070002)");
    std::fs::write(&file, b"not a disk").unwrap();
    failing("(0xC03A0019)");
    std::fs::rename(&aside, &file).unwrap();
    let (_, job) = client.wait(&with_flag("TRUE"));
    assert_eq!(job.get("JobState").as_u64(), Some(7), "{job:?}");
    let checkpoint =
        client.only("SELECT * FROM Msvm_VirtualSystemSettingData WHERE VirtualSystemType LIKE '%Recovery'");
    assert_eq!(client.files(&checkpoint).len(), 1, "the shared disk is left out");
}

//! Capturing definitions and configuration files.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use hyperv::seam::{CimType, CimValue};
use hyperv::{Checkpoint, ConfigPaths, Consistency, Definition, Vm, cim_xml};

use crate::script::*;

const SECURITY: &str = "SELECT * FROM Msvm_SecuritySettingData";

fn vm(script: &Arc<Script>) -> Vm {
    script.on_query(ALL_SETTINGS_OF_VM, vec![settings(VM, "System:Realized", "web")]);
    script.on_query(ALL_REFERENCE_POINTS_OF_VM, vec![]);
    for class in ["Win32_OperatingSystem", "Win32_Processor"] {
        script.on_query(format!("SELECT * FROM {class}"), vec![]);
    }
    let switch = instance("Msvm_VirtualEthernetSwitch", "s", vec![("Name", text("ID")), ("ElementName", text("LAN"))]);
    script.on_query("SELECT * FROM Msvm_VirtualEthernetSwitch", vec![switch]);
    script.host().vm(&VM.parse().unwrap()).unwrap().unwrap()
}

#[test]
fn every_property_is_kept_with_its_type() {
    let script = one_vm();
    let vm = vm(&script);
    let mut active = settings(VM, "System:Realized", "web");
    let odd: Vec<(&str, CimValue)> = vec![
        ("FromTheFuture", CimValue::Uint64(u64::MAX)),
        ("Signed", CimValue::Sint64(-1)),
        ("BootOrder", CimValue::Array(CimType::Uint16, vec![CimValue::Uint16(2), CimValue::Uint16(0)])),
        ("Unset", CimValue::Null),
        ("Delay", CimValue::DateTime("00000000000030.000000:000".into())),
        ("SecureBootEnabled", CimValue::Boolean(true)),
    ];
    active.properties.extend(odd.into_iter().map(|(name, value)| (name.to_owned(), value)));
    script.on_get(active.clone());
    let path = path_of("Msvm_VirtualSystemSettingData", VM);
    script.forget_query(&component_query(&path, None));
    let (medium, mut devices) = scsi_disk(VM, 0, r"C:\VMs\web\d.vhdx");
    devices.push(medium);
    let processors =
        vec![("InstanceID", text(&format!(r"Microsoft:{VM}\CPU"))), ("VirtualQuantity", CimValue::Uint64(4))];
    devices.push(instance("Msvm_ProcessorSettingData", "cpu", processors));
    let connection = instance("Msvm_EthernetPortAllocationSettingData", "nic", vec![("InstanceID", text("n"))]);
    let features = format!(
        "ASSOCIATORS OF {{{}}} WHERE AssocClass = Msvm_EthernetPortSettingDataComponent",
        path_of("Msvm_EthernetPortAllocationSettingData", "nic")
    );
    devices.push(connection);
    let vlan = instance("Msvm_EthernetSwitchPortVlanSettingData", "vlan", vec![("AccessVlanId", CimValue::Uint16(7))]);
    script.on_query(features, vec![vlan]);
    script.on_query(component_query(&path, None), devices.clone());
    // The same settings in another order give the same definition.
    devices.reverse();
    script.on_query(component_query(&path, None), devices);
    let security = instance(
        "Msvm_SecuritySettingData",
        "sec",
        vec![("InstanceID", text(&format!(r"Microsoft:{VM}\SEC"))), ("TpmEnabled", CimValue::Boolean(true))],
    );
    script.forget_query(SECURITY);
    script.on_query(SECURITY, vec![security.clone()]);
    let protector = CimValue::Array(CimType::Uint8, vec![CimValue::Uint8(0), CimValue::Uint8(255)]);
    script.on_call("GetKeyProtector", Ok(output(0, vec![("KeyProtector", protector)])));

    let first = script.host().capture_definition(&vm).unwrap();
    let second = script.host().capture_definition(&vm).unwrap();
    assert_eq!(first, second);

    assert_eq!((first.summary.name.as_str(), first.summary.processors), ("web", Some(4)));
    assert!(first.summary.tpm && first.summary.secure_boot);
    assert_eq!(first.key_protector.as_deref(), Some("00ff"));
    assert_eq!(first.disks[0].virtual_disk_id.as_deref(), Some(DISK));
    assert_eq!(first.host.switches["ID"], "LAN");
    let classes: Vec<_> = first.settings.iter().map(|setting| setting.class.as_str()).collect();
    assert_eq!(
        classes,
        [
            "Msvm_EthernetPortAllocationSettingData",
            "Msvm_EthernetSwitchPortVlanSettingData",
            "Msvm_ProcessorSettingData",
            "Msvm_ResourceAllocationSettingData",
            "Msvm_ResourceAllocationSettingData",
            "Msvm_SecuritySettingData",
            "Msvm_StorageAllocationSettingData",
        ]
    );
    let sent = script.calls("GetKeyProtector")[0].parameters["SecuritySettingData"].clone();
    assert_eq!(cim_xml::parse(sent.as_str().unwrap()).unwrap().properties, security.properties);

    // Through text and back: nothing lost but nulls and the path.
    let text = serde_json::to_string(&first.to_json()).unwrap();
    assert!(text.contains(r#""FromTheFuture":{"type":"uint64","value":"18446744073709551615"}"#), "{text}");
    let back: Definition = serde_json::from_str(&text).unwrap();
    assert_eq!(back, first);
    active.path = None;
    active.properties.remove("Unset");
    assert_eq!(back.system.to_instance(), Some(active));
}

#[test]
fn a_tpm_without_its_key_protector_is_an_error() {
    let script = one_vm();
    let vm = vm(&script);
    script.on_get(settings(VM, "System:Realized", "web"));
    let security = vec![("InstanceID", text(&format!(r"Microsoft:{VM}\SEC"))), ("TpmEnabled", CimValue::Boolean(true))];
    script.forget_query(SECURITY);
    script.on_query(SECURITY, vec![instance("Msvm_SecuritySettingData", "sec", security)]);
    script.on_call("GetKeyProtector", Ok(output(32769, vec![])));
    let error = script.host().capture_definition(&vm).unwrap_err();
    assert_eq!(error.kind(), hyperv::ErrorKind::AccessDenied);
    assert!(error.to_string().contains("key protector"), "{error}");
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        path: hyperv::seam::ObjectPath::new("x"),
        instance_id: "x".into(),
        vm_id: VM.parse().unwrap(),
        vm_name: "web".into(),
        tag: "tag".into(),
        consistency: Consistency::Crash,
        disks: vec![],
        config_files: ConfigPaths { vmcx: "c.vmcx".into(), vmrs: "c.vmrs".into(), vmgs: "c.vmgs".into() },
        warnings: vec![],
    }
}

#[test]
fn configuration_files_are_read_through_brief_locks() {
    let script = one_vm();
    let locked = || Err(io::Error::from(io::ErrorKind::ResourceBusy));
    {
        let mut files = script.files.lock().unwrap();
        files.insert("c.vmcx".into(), VecDeque::from([locked(), locked(), Ok(b"definition".to_vec())]));
        files.insert("c.vmrs".into(), VecDeque::from([Ok(b"state".to_vec())]));
    }
    let opened = script.host().open_config_files(&checkpoint()).unwrap();
    let read: Vec<_> = opened.iter().map(|file| (file.path.as_str(), file.facts.len_bytes)).collect();
    assert_eq!(read, [("c.vmcx", 10), ("c.vmrs", 5)], "a missing .vmgs is normal");
    let mut bytes = [0; 10];
    opened[0].file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"definition");
    assert!(script.elapsed().as_millis() >= 500);
}

#[test]
fn a_definition_file_must_be_there_and_free_in_the_end() {
    let script = one_vm();
    let error = script.host().open_config_files(&checkpoint()).unwrap_err();
    assert_eq!(error.kind(), hyperv::ErrorKind::NotFound);
    let locked = (0..1000).map(|_| Err(io::Error::from_raw_os_error(32))).collect();
    script.files.lock().unwrap().insert("c.vmcx".into(), locked);
    let error = script.host().open_config_files(&checkpoint()).unwrap_err();
    assert_eq!(error.kind(), hyperv::ErrorKind::Busy);
    assert!(error.to_string().contains("c.vmcx"), "{error}");
}

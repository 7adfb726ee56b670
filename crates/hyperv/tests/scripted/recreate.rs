//! Importing a VM on a host that answers from lists: the order of the calls, and what happens when an end is not known.
//! Whole re-creations are tested on simulated hosts.

use std::sync::Arc;

use hyperv::seam::{CimType, CimValue, Instance, ObjectPath};
use hyperv::{
    Definition, DefinitionHost, DefinitionSummary, Error, RecreateWarning, Recreation, RestoredDisk, cim_xml,
};

use crate::script::*;

const PLANNED: &str = "Msvm_PlannedComputerSystem";
const SETTINGS: &str = "Msvm_VirtualSystemSettingData";
const NEW_VM: &str = "BBBBBBBB-0000-1111-2222-333344445555";
const FILE: &str = r"C:\R\Virtual Machines\x.vmcx";
const CALLS: [&str; 9] = [
    "ImportSystemDefinition",
    "DestroySnapshot",
    "ModifySystemSettings",
    "ModifyResourceSettings",
    "RemoveResourceSettings",
    "ValidatePlannedSystem",
    "RealizePlannedSystem",
    "DestroySystem",
    "DefineSystem",
];

fn all(class: &str) -> String {
    format!("SELECT * FROM {class}")
}

fn planned() -> Instance {
    instance(PLANNED, NEW_VM, vec![("Name", text(NEW_VM)), ("ElementName", text("e3:tag"))])
}

fn planned_settings() -> Instance {
    let mut settings = settings(NEW_VM, "System:Planned", "e3:tag");
    settings.properties.insert("VirtualSystemIdentifier".into(), text(NEW_VM));
    settings
}

/// A VM with one disk at SCSI 0:0, as it was stored.
fn definition() -> Definition {
    let (medium, _) = scsi_disk(CHECKPOINT, 0, r"C:\VMs\web\d.vhdx");
    let system = hyperv::Setting { class: SETTINGS.into(), properties: Default::default() };
    Definition {
        summary: DefinitionSummary {
            vm_id: VM.into(),
            name: "web".into(),
            generation: 2,
            configuration_version: "9.0".into(),
            processors: Some(2),
            memory_mib: Some(1024),
            secure_boot: false,
            tpm: false,
            network_adapters: vec![],
        },
        disks: vec![hyperv::DefinedDisk {
            slot: Some("SCSI 0:0".into()),
            instance_id: medium.get("InstanceID").as_str().unwrap().into(),
            path: r"C:\VMs\web\d.vhdx".into(),
            virtual_disk_id: Some(DISK.into()),
            role: "disk".into(),
        }],
        system,
        settings: vec![],
        key_protector: None,
        host: DefinitionHost::default(),
    }
}

fn wanted() -> Recreation {
    let instance_id = definition().disks[0].instance_id.clone();
    let disk = RestoredDisk { instance_id, path: r"C:\R\d.vhdx".into(), needs_bytes: None };
    Recreation::as_copy("copy", r"C:\R", vec![disk])
}

/// Everything that an import asks, with a planned VM that refers to a checkpoint whose files are missing.
fn importing() -> Arc<Script> {
    let script = one_vm();
    script.on_query(all(PLANNED), vec![]);
    script.on_query(all("Msvm_ComputerSystem"), vec![]);
    script.on_query(all("Msvm_VirtualEthernetSwitch"), vec![]);
    script.on_query(all("Win32_OperatingSystem"), vec![]);
    script.on_class(SETTINGS, &["ElementName", "ConfigurationDataRoot", "SnapshotDataRoot", "AutomaticStartupAction"]);
    let planned_path = path_of(PLANNED, NEW_VM);
    let of_planned = |association: &str| {
        format!("ASSOCIATORS OF {{{planned_path}}} WHERE AssocClass = {association} ResultClass = {SETTINGS}")
    };
    let missing = settings(CHECKPOINT, "Snapshot:Missing", "mine");
    script.on_query(of_planned("Msvm_SnapshotOfVirtualSystem"), vec![missing]);
    script.on_query(of_planned("Msvm_SettingsDefineState"), vec![planned_settings()]);
    script.on_get(planned_settings());
    script.on_get(planned());
    let (medium, mut devices) = scsi_disk(NEW_VM, 0, r"C:\VMs\web\d.vhdx");
    devices.push(medium);
    script.on_query(component_query(&path_of(SETTINGS, NEW_VM), None), devices);
    for method in CALLS {
        script.on_call(method, Ok(output(0, vec![])));
    }
    script
}

/// The VM is there once it is realized.
fn realized(script: &Script) {
    script
        .on_query(format!("SELECT * FROM Msvm_ComputerSystem WHERE Name = '{NEW_VM}'"), vec![computer(NEW_VM, "copy")]);
    let mut active = settings(NEW_VM, "System:Realized", "copy");
    active.properties.insert("VirtualSystemIdentifier".into(), text(NEW_VM));
    script.on_query(format!("SELECT * FROM {SETTINGS} WHERE VirtualSystemIdentifier = '{NEW_VM}'"), vec![active]);
    script.on_query(
        format!("SELECT * FROM Msvm_VirtualSystemReferencePoint WHERE VirtualSystemIdentifier = '{NEW_VM}'"),
        vec![],
    );
    for class in ["Msvm_VssComponent", "Msvm_KvpExchangeComponent"] {
        script.on_query(format!("SELECT * FROM {class} WHERE SystemName = '{NEW_VM}'"), vec![]);
    }
}

fn made_calls(script: &Script) -> Vec<String> {
    script.all_calls().into_iter().map(|call| call.method).collect()
}

/// The answer to `ImportSystemDefinition` comes first, so that it is not the one that always holds.
fn import_answers(script: &Script, answer: Result<hyperv::seam::MethodOutput, u32>) {
    script.forget_method("ImportSystemDefinition");
    script.on_call("ImportSystemDefinition", answer);
}

#[test]
fn the_calls_of_an_import_come_in_order() {
    let script = importing();
    let imported = CimValue::Reference(ObjectPath::new(path_of(PLANNED, NEW_VM)));
    import_answers(&script, Ok(output(0, vec![("ImportedSystem", imported)])));
    realized(&script);
    script.on_disk(r"C:\VMs\web\d.vhdx", Ok(disk_data(DISK, None)));
    let made = script.host().import_vm(FILE, &definition(), &wanted()).unwrap();
    assert_eq!((made.vm.id.as_str(), made.warnings), (NEW_VM, vec![]));
    assert_eq!(
        made_calls(&script),
        [
            "ImportSystemDefinition",
            "DestroySnapshot",
            "ModifySystemSettings",
            "ModifyResourceSettings",
            "ValidatePlannedSystem",
            "RealizePlannedSystem",
        ]
    );
    let import = &script.calls("ImportSystemDefinition")[0].parameters;
    assert_eq!(import["SystemDefinitionFile"], text(FILE));
    assert_eq!(import["GenerateNewSystemIdentifier"], CimValue::Boolean(true));
    let system = script.calls("ModifySystemSettings")[0].parameters["SystemSettings"].clone();
    let system = cim_xml::parse(system.as_str().unwrap()).unwrap();
    assert_eq!(system.get("ElementName").as_str(), Some("copy"));
    assert_eq!(system.get("SnapshotDataRoot").as_str(), Some(r"C:\R"));
    assert_eq!(system.get("AutomaticStartupAction"), &CimValue::Uint16(2));
    assert!(system.get("GuestStateDataRoot").is_null(), "this host's class has no such property");
    assert_eq!(system.get("Version").as_str(), Some("9.0"), "the complete instance goes back");
    let CimValue::Array(CimType::String, media) =
        &script.calls("ModifyResourceSettings")[0].parameters["ResourceSettings"]
    else {
        panic!("an array of texts")
    };
    let medium = cim_xml::parse(media[0].as_str().unwrap()).unwrap();
    assert_eq!(medium.get("HostResource"), &texts(&[r"C:\R\d.vhdx"]));
}

#[test]
fn a_planned_vm_is_found_whatever_the_host_returns() {
    for case in ["job", "expired job", "service gone"] {
        let script = importing();
        realized(&script);
        script.on_disk(r"C:\VMs\web\d.vhdx", Ok(disk_data(DISK, None)));
        script.forget_query(&all(PLANNED));
        script.on_query(all(PLANNED), vec![]);
        match case {
            "job" => {
                import_answers(&script, started(&job_path()));
                script.on_get(job(7, vec![]));
                script.on_query(job_results_query(PLANNED), vec![planned()]);
            }
            "expired job" => {
                import_answers(&script, started(&job_path()));
                script.on_get_error(&job_path(), 0x8004_1002);
                script.on_query(all(PLANNED), vec![]);
                script.on_query(all(PLANNED), vec![planned()]);
            }
            _ => {
                import_answers(&script, Err(0x8007_06BA));
                script.on_query(all(PLANNED), vec![planned()]);
            }
        }
        let made = script.host().import_vm(FILE, &definition(), &wanted());
        let made = made.unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(made.vm.id.as_str(), NEW_VM, "{case}");
        assert_eq!(script.calls("ImportSystemDefinition").len(), 1, "{case}: it may have been carried out");
    }
}

#[test]
fn an_import_whose_end_is_never_known_names_what_appeared() {
    let script = importing();
    import_answers(&script, Err(0x8007_06BA));
    let error = script.host().import_vm(FILE, &definition(), &wanted()).unwrap_err();
    assert!(matches!(error.error, Error::OutcomeUnknown { .. }), "{error}");
    assert_eq!(error.left_behind, []);
    // Two appeared at once: neither is taken for ours, nor removed.
    script.forget_query(&all(PLANNED));
    script.on_query(all(PLANNED), vec![]);
    let other = instance(PLANNED, OTHER, vec![("Name", text(OTHER))]);
    script.on_query(all(PLANNED), vec![planned(), other]);
    let error = script.host().import_vm(FILE, &definition(), &wanted()).unwrap_err();
    assert_eq!(error.left_behind.len(), 2, "{error}");
    assert!(script.calls("DestroySystem").is_empty());
}

const OTHER: &str = "DDDDDDDD-0000-1111-2222-333344445555";

#[test]
fn a_realized_vm_is_removed_too_when_its_end_was_a_failure() {
    let script = importing();
    let imported = CimValue::Reference(ObjectPath::new(path_of(PLANNED, NEW_VM)));
    import_answers(&script, Ok(output(0, vec![("ImportedSystem", imported)])));
    script.forget_method("RealizePlannedSystem");
    script.on_call("RealizePlannedSystem", Ok(output(32768, vec![])));
    // It failed, and the VM is there all the same.
    script.forget_query(&all("Msvm_ComputerSystem"));
    script.on_query(all("Msvm_ComputerSystem"), vec![computer(VM, "web")]);
    script.on_query(all("Msvm_ComputerSystem"), vec![computer(VM, "web"), computer(NEW_VM, "copy")]);
    let error = script.host().import_vm(FILE, &definition(), &wanted()).unwrap_err();
    assert!(error.to_string().contains("register it"), "{error}");
    let destroyed = script.calls("DestroySystem");
    let destroyed: Vec<_> = destroyed.iter().map(|call| call.parameters["AffectedSystem"].as_str().unwrap()).collect();
    assert_eq!(destroyed, [path_of(PLANNED, NEW_VM), path_of("Msvm_ComputerSystem", NEW_VM)], "and not VM \"web\"");
}

#[test]
fn a_file_of_another_vm_is_noticed() {
    let script = importing();
    let imported = CimValue::Reference(ObjectPath::new(path_of(PLANNED, NEW_VM)));
    import_answers(&script, Ok(output(0, vec![("ImportedSystem", imported)])));
    script.forget_query(&component_query(&path_of(SETTINGS, NEW_VM), None));
    let (medium, mut devices) = scsi_disk(NEW_VM, 5, r"C:\VMs\other.vhdx");
    devices.push(medium);
    script.on_query(component_query(&path_of(SETTINGS, NEW_VM), None), devices);
    let error = script.host().import_vm(FILE, &definition(), &wanted()).unwrap_err();
    assert!(error.to_string().contains("not the definition of this VM"), "{error}");
    assert_eq!(script.calls("DestroySystem").len(), 1);
    let sentence = RecreateWarning::DiskLeftOut { path: "d".into(), why: "it was not restored" }.to_string();
    assert_eq!(sentence, "The disk d is not in the VM: it was not restored.");
}

#[test]
fn a_cancelled_import_leaves_nothing() {
    let script = importing();
    let imported = CimValue::Reference(ObjectPath::new(path_of(PLANNED, NEW_VM)));
    import_answers(&script, Ok(output(0, vec![("ImportedSystem", imported)])));
    let wanted = wanted();
    wanted.cancel.cancel();
    let error = script.host().import_vm(FILE, &definition(), &wanted).unwrap_err();
    assert!(matches!(error.error, Error::Cancelled { .. }), "{error}");
    assert_eq!(made_calls(&script), Vec::<String>::new());
}

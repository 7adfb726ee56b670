//! The real client on simulated hosts: VMs imported, and built from settings; started, stopped, and set right again.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use hyperv::seam::{CimType, CimValue, Instance, ObjectPath};
use hyperv::{
    CheckpointRequest, Consistency, Definition, Difference, Error, ErrorKind, Host, Identity, NetworkChoice, Obstacle,
    ObstacleCode, RecreateWarning, Recreated, Recreation, RestoredDisk, Severity, VmState, Way, Why,
};
use hyperv_sim::{
    DiskSource, Fault, GuestFamily, GuestWrites, JobStyle, LabHost, LabOptions, LabSwitch, ReferenceOutputs, Spread,
    VmOptions,
};
use support::{Client, MIB};

mod support;

const DIRECTORY: &str = r"C:\Restored\it's web";

/// A backup of the VM "web" as far as a re-creation needs it, in memory.
struct Saved {
    definition: Definition,
    /// `.vmcx`, `.vmrs`, `.vmgs` by extension.
    config: BTreeMap<String, Vec<u8>>,
    /// `InstanceID` and content of the file of each disk.
    disks: Vec<(String, Vec<u8>)>,
    fingerprints: Vec<[u8; 32]>,
}

struct Lab {
    _dir: tempfile::TempDir,
    lab: Arc<LabHost>,
    host: Host,
}

fn lab(options: LabOptions) -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let lab = LabHost::create_with(dir.path().join("lab"), options).unwrap();
    let host = Host::new(lab.seam());
    Lab { _dir: dir, lab, host }
}

/// The VM "web", with two disks that its guest has written to.
fn add_web(lab: &Lab, options: VmOptions) {
    let disks = [DiskSource::Empty { size_bytes: 24 * MIB }, DiskSource::Empty { size_bytes: 8 * MIB }];
    lab.lab.add_vm("web", &disks, options).unwrap();
    lab.lab.guest_write_only("web", GuestWrites { seed: 7, mib: 2, spread: Spread::Scattered }).unwrap();
}

/// Backs "web" up: frozen disks, definition and configuration files.
fn save(lab: &Lab) -> Saved {
    let host = &lab.host;
    let vm = host.find_vm("web").unwrap();
    let checkpoint = host
        .create_recovery_checkpoint(&vm, &CheckpointRequest::new(Consistency::Crash, "e3:agent:run:1"))
        .unwrap_or_else(|e| panic!("{e}"));
    let definition = host.capture_checkpoint_definition(&vm, &checkpoint).unwrap();
    let read = |path: &str| fs::read(lab.lab.host_file(path).unwrap()).unwrap();
    let config = host.open_config_files(&checkpoint).unwrap();
    let extension = |path: &str| path.rsplit_once('.').unwrap().1.to_owned();
    let config = config.iter().map(|file| (extension(&file.path), read(&file.path))).collect();
    let disks: Vec<_> = checkpoint.disks.iter().map(|disk| (disk.sasd_instance_id.clone(), read(&disk.path))).collect();
    let fingerprints = (0..disks.len()).map(|disk| lab.lab.disk_fingerprint("web", disk).unwrap()).collect();
    host.destroy_checkpoint(&checkpoint.path).unwrap();
    let before: Vec<_> = checkpoint.disks.iter().map(hyperv::ChainBefore::from).collect();
    host.wait_for_merge(&vm.id, &before, Duration::from_secs(60)).unwrap();
    Saved { definition, config, disks, fingerprints }
}

/// Writes the disks to new files.
fn write_disks(lab: &Lab, saved: &Saved) -> Vec<RestoredDisk> {
    let folder = lab.lab.host_file(DIRECTORY).unwrap();
    fs::create_dir_all(&folder).unwrap();
    let disks = saved.disks.iter().enumerate();
    disks
        .map(|(index, (instance_id, bytes))| {
            let path = format!(r"{DIRECTORY}\disk {index}.vhdx");
            fs::write(lab.lab.host_file(&path).unwrap(), bytes).unwrap();
            RestoredDisk { instance_id: instance_id.clone(), path, needs_bytes: None }
        })
        .collect()
}

/// Writes the configuration files as an import wants them; gives the path of the `.vmcx`.
fn write_config(lab: &Lab, saved: &Saved) -> String {
    let folder = format!(r"{DIRECTORY}\Virtual Machines");
    fs::create_dir_all(lab.lab.host_file(&folder).unwrap()).unwrap();
    let stem = format!(r"{folder}\{}", saved.definition.summary.vm_id);
    for (extension, bytes) in &saved.config {
        fs::write(lab.lab.host_file(&format!("{stem}.{extension}")).unwrap(), bytes).unwrap();
    }
    format!("{stem}.vmcx")
}

/// Makes the VM again by either way, with everything written before.
fn make(lab: &Lab, saved: &Saved, way: Way, wanted: &Recreation) -> Result<Recreated, hyperv::CreateError> {
    match way {
        Way::Import => lab.host.import_vm(&write_config(lab, saved), &saved.definition, wanted),
        Way::Build => lab.host.build_vm(&saved.definition, wanted),
    }
}

fn differences(lab: &Lab, saved: &Saved, made: &Recreated, wanted: &Recreation, way: Way) -> Vec<Difference> {
    let now = lab.host.capture_definition(&made.vm).unwrap();
    saved.definition.differences(&now, wanted, way)
}

fn unexplained(differences: &[Difference]) -> Vec<&Difference> {
    differences.iter().filter(|difference| difference.why == Why::Unexplained).collect()
}

fn remove_web(lab: &Lab) {
    lab.lab.stop_vm("web").unwrap();
    let vm = lab.host.find_vm("web").unwrap();
    lab.host.remove_vm(&vm.path).unwrap();
}

/// What must be as before after a failure: the VMs, the planned VMs.
fn registered(lab: &Lab) -> (Vec<String>, usize) {
    let vms = lab.host.list_vms().unwrap().into_iter().map(|vm| vm.id.to_string()).collect();
    (vms, lab.host.list_planned_vms().unwrap().len())
}

/// The switch names of the VM's adapters, connected ones only.
fn connections(lab: &Lab, made: &Recreated) -> Vec<String> {
    let now = lab.host.capture_definition(&made.vm).unwrap();
    let of_class = now.settings.iter().filter(|setting| setting.class == "Msvm_EthernetPortAllocationSettingData");
    of_class
        .map(|setting| setting.to_instance().unwrap())
        .filter(|connection| connection.get("EnabledState").as_u64() == Some(2))
        .map(|connection| connection.get("LastKnownSwitchName").as_str().unwrap_or_default().to_owned())
        .collect()
}

/// How many devices of a sub type there are.
fn count(definition: &Definition, sub_type: &str) -> usize {
    let instances = definition.settings.iter().map(|setting| setting.to_instance().unwrap());
    instances.filter(|setting| setting.get("ResourceSubType").as_str() == Some(sub_type)).count()
}

fn passed(obstacles: &[Obstacle]) -> Vec<ObstacleCode> {
    obstacles.iter().filter(|one| one.severity == Severity::Passed).map(|one| one.code).collect()
}

fn found(obstacles: &[Obstacle], severity: Severity) -> Vec<ObstacleCode> {
    obstacles.iter().filter(|one| one.severity == severity).map(|one| one.code).collect()
}

#[test]
fn a_copy_beside_the_original_has_its_own_identity() {
    for way in [Way::Import, Way::Build] {
        for (jobs, reference_outputs) in [
            (JobStyle::ByJob, ReferenceOutputs::Filled),
            (JobStyle::Synchronous, ReferenceOutputs::Filled),
            (JobStyle::Synchronous, ReferenceOutputs::Null2025),
        ] {
            let case = format!("{way:?} {jobs:?} {reference_outputs:?}");
            let lab = lab(LabOptions { jobs, reference_outputs, ..LabOptions::default() });
            add_web(&lab, VmOptions::default());
            let saved = save(&lab);
            let wanted = Recreation::as_copy("web (copy)", DIRECTORY, write_disks(&lab, &saved));
            let obstacles = lab.host.preflight(&saved.definition, &wanted, way).unwrap();
            assert_eq!(found(&obstacles, Severity::Block), [], "{case}: {obstacles:?}");
            assert_eq!(passed(&obstacles).len(), obstacles.len(), "{case}: {obstacles:?}");

            let made = make(&lab, &saved, way, &wanted).unwrap_or_else(|e| panic!("{case}: {e}: {:?}", e.error));
            assert_eq!(made.warnings, [], "{case}");
            assert_ne!(made.vm.id.as_str(), saved.definition.summary.vm_id, "{case}");
            assert_eq!((made.vm.name.as_str(), &made.vm.state), ("web (copy)", &VmState::Off), "{case}");
            assert_eq!(connections(&lab, &made), Vec::<String>::new(), "{case}");
            let slots: Vec<_> = made.vm.disks.iter().map(|disk| (disk.slot.to_string(), disk.path.clone())).collect();
            let expected: Vec<_> = wanted.disks.iter().zip(&saved.definition.disks).collect();
            let expected: Vec<_> =
                expected.iter().map(|(disk, was)| (was.slot.clone().unwrap(), disk.path.clone())).collect();
            assert_eq!(slots, expected, "{case}");
            let id = made.vm.id.to_string();
            for (disk, fingerprint) in saved.fingerprints.iter().enumerate() {
                assert_eq!(lab.lab.disk_fingerprint(&id, disk).unwrap(), *fingerprint, "{case}: disk {disk}");
            }
            let differences = differences(&lab, &saved, &made, &wanted, way);
            assert_eq!(unexplained(&differences), Vec::<&Difference>::new(), "{case}");
            assert!(differences.iter().any(|difference| difference.item == "id"), "{case}: {differences:?}");
            lab.host.start_vm(&made.vm).unwrap_or_else(|e| panic!("{case}: {e}"));
            lab.host.start_vm(&made.vm).unwrap_or_else(|e| panic!("{case}: runs already: {e}"));
            // It is a VM like any other now.
            let request = CheckpointRequest::new(Consistency::Application, "e3:agent:run:2");
            let vm = lab.host.vm(&made.vm.id).unwrap().unwrap();
            lab.host.create_recovery_checkpoint(&vm, &request).unwrap_or_else(|e| panic!("{case}: {e}"));
        }
    }
}

#[test]
fn the_original_comes_back_under_its_id() {
    let lab = lab(LabOptions::default());
    add_web(&lab, VmOptions { tpm: true, ..VmOptions::default() });
    let saved = save(&lab);
    let wanted = Recreation::as_original("web", DIRECTORY, write_disks(&lab, &saved));

    // While the original is there, nothing is tried.
    let before = registered(&lab);
    let error = make(&lab, &saved, Way::Import, &wanted).unwrap_err();
    assert!(matches!(error.error, Error::Exists { .. }), "{error}");
    assert_eq!(registered(&lab), before);
    let obstacles = lab.host.preflight(&saved.definition, &wanted, Way::Import).unwrap();
    assert_eq!(found(&obstacles, Severity::Block), [ObstacleCode::VmId], "{obstacles:?}");

    remove_web(&lab);
    let obstacles = lab.host.preflight(&saved.definition, &wanted, Way::Import).unwrap();
    assert_eq!(passed(&obstacles).len(), obstacles.len(), "{obstacles:?}");
    let made = make(&lab, &saved, Way::Import, &wanted).unwrap_or_else(|e| panic!("{e}: {:?}", e.error));
    assert_eq!(made.vm.id.as_str(), saved.definition.summary.vm_id);
    assert_eq!(made.warnings, []);
    assert_eq!(connections(&lab, &made), ["LAN"]);
    let differences = differences(&lab, &saved, &made, &wanted, Way::Import);
    let items: Vec<_> = differences.iter().map(|difference| difference.item.as_str()).collect();
    assert!(
        differences.iter().all(|difference| difference.why == Why::Wanted
            && (difference.item.ends_with(": path") || difference.item.ends_with("Root"))),
        "only places differ: {items:?}"
    );
    lab.host.start_vm(&made.vm).unwrap();
}

#[test]
fn another_host_has_other_switches_and_no_key_for_the_tpm() {
    let first = lab(LabOptions::default());
    add_web(&first, VmOptions { tpm: true, ..VmOptions::default() });
    let saved = save(&first);
    let switches = vec![
        LabSwitch { id: "11111111-9B3C-408E-8E30-5E16A3AEB444".into(), name: "Office".into() },
        LabSwitch { id: "22222222-9B3C-408E-8E30-5E16A3AEB444".into(), name: "Test".into() },
    ];
    let other = lab(LabOptions { host_name: "OTHER".into(), switches, ..LabOptions::default() });
    let wanted = Recreation::as_original("web", DIRECTORY, write_disks(&other, &saved));
    let obstacles = other.host.preflight(&saved.definition, &wanted, Way::Import).unwrap();
    assert_eq!(found(&obstacles, Severity::Decide), [ObstacleCode::Switches, ObstacleCode::Tpm], "{obstacles:?}");

    let made = make(&other, &saved, Way::Import, &wanted).unwrap_or_else(|e| panic!("{e}: {:?}", e.error));
    assert!(
        matches!(&made.warnings[..], [
            RecreateWarning::SwitchMissing { switch, .. },
            RecreateWarning::TpmOfOtherHost { host },
        ] if switch == "LAN" && host == "LABHOST"),
        "{:?}",
        made.warnings
    );
    assert_eq!(connections(&other, &made), Vec::<String>::new());
    let error = other.host.start_vm(&made.vm).unwrap_err();
    assert!(matches!(error, Error::TpmMayNotOpen { .. }), "{error}");
    assert!(error.advice().unwrap().contains("guardian"), "{error}");

    // Built from settings it starts, with an empty TPM or none, on the switch that was chosen for it.
    other.host.remove_vm(&made.vm.path).unwrap();
    let switches = BTreeMap::from([("LAN".to_owned(), "Test".to_owned())]);
    let network = NetworkChoice { reconnect: false, switches };
    let wanted = Recreation { network, tpm: hyperv::TpmChoice::Off, ..wanted };
    let made = make(&other, &saved, Way::Build, &wanted).unwrap_or_else(|e| panic!("{e}: {:?}", e.error));
    assert_eq!(made.warnings, [RecreateWarning::IdNotKept, RecreateWarning::TpmLeftOut]);
    assert_eq!(connections(&other, &made), ["Test"]);
    other.host.start_vm(&made.vm).unwrap();
}

#[test]
fn an_empty_tpm_under_the_former_key_protector_starts_on_the_former_host() {
    let lab = lab(LabOptions::default());
    add_web(&lab, VmOptions { tpm: true, ..VmOptions::default() });
    let saved = save(&lab);
    remove_web(&lab);
    let wanted = Recreation::as_original("web", DIRECTORY, write_disks(&lab, &saved));
    let made = make(&lab, &saved, Way::Build, &wanted).unwrap_or_else(|e| panic!("{e}: {:?}", e.error));
    assert_eq!(made.warnings, [RecreateWarning::IdNotKept, RecreateWarning::TpmEmpty]);
    assert!(made.vm.tpm);
    lab.host.start_vm(&made.vm).unwrap();
}

#[test]
fn what_a_host_cannot_import_can_be_built() {
    let first = lab(LabOptions::default());
    add_web(&first, VmOptions::default());
    let saved = save(&first);
    let old = LabOptions { max_configuration_version: "9.0".into(), ..LabOptions::default() };
    let other = lab(old);
    let wanted = Recreation::as_copy("web", DIRECTORY, write_disks(&other, &saved));
    let before = registered(&other);
    let error = make(&other, &saved, Way::Import, &wanted).unwrap_err();
    assert!(error.to_string().contains("10.0"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!((registered(&other), error.left_behind), (before, vec![]));

    let made = make(&other, &saved, Way::Build, &wanted).unwrap_or_else(|e| panic!("{e}: {:?}", e.error));
    let version = RecreateWarning::OtherVersion { was: "10.0".into(), is: "9.0".into() };
    assert_eq!(made.warnings, [version], "although the host's Windows should run 10.0");
    let differences = differences(&other, &saved, &made, &wanted, Way::Build);
    assert_eq!(unexplained(&differences), Vec::<&Difference>::new());
    other.host.start_vm(&made.vm).unwrap();
}

#[test]
fn everything_that_is_wrong_is_told_at_once_and_nothing_stays() {
    let first = lab(LabOptions::default());
    add_web(&first, VmOptions { processors: 8, memory_mib: 8192, ..VmOptions::default() });
    let saved = save(&first);
    let small = lab(LabOptions { processors: 4, memory_mib: 4096, ..LabOptions::default() });
    let wanted = Recreation::as_copy("web", DIRECTORY, write_disks(&small, &saved));
    let obstacles = small.host.preflight(&saved.definition, &wanted, Way::Import).unwrap();
    assert_eq!(
        found(&obstacles, Severity::Block),
        [ObstacleCode::Memory, ObstacleCode::Processors],
        "the preflight knows what the host will say: {obstacles:?}"
    );
    let before = registered(&small);
    let error = make(&small, &saved, Way::Import, &wanted).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("8 virtual processors") && text.contains("8192 MB"), "{text}");
    assert_eq!((registered(&small), error.left_behind), (before, vec![]));

    let wanted = Recreation { processors: Some(4), memory_mib: Some(1024), ..wanted };
    let obstacles = small.host.preflight(&saved.definition, &wanted, Way::Import).unwrap();
    assert_eq!(found(&obstacles, Severity::Block), [], "{obstacles:?}");
    for way in [Way::Import, Way::Build] {
        let made = make(&small, &saved, way, &wanted).unwrap_or_else(|e| panic!("{way:?}: {e}: {:?}", e.error));
        let differences = differences(&small, &saved, &made, &wanted, way);
        assert_eq!(unexplained(&differences), Vec::<&Difference>::new(), "{way:?}");
        small.host.start_vm(&made.vm).unwrap();
        small.host.turn_off_vm(&made.vm).unwrap();
        small.host.remove_vm(&made.vm.path).unwrap();
    }
}

#[test]
fn after_any_failure_nothing_is_left() {
    let lab = lab(LabOptions::default());
    add_web(&lab, VmOptions { tpm: true, ..VmOptions::default() });
    let saved = save(&lab);
    let disks = write_disks(&lab, &saved);
    let with_network = |wanted: Recreation| Recreation {
        network: NetworkChoice::as_before(),
        tpm: hyperv::TpmChoice::SameKeyProtector,
        ..wanted
    };
    let wanted = with_network(Recreation::as_copy("copy", DIRECTORY, disks));
    let before = registered(&lab);
    // Some methods answer without a job, so that none can fail.
    for (way, method, by_job) in [
        (Way::Import, "ImportSystemDefinition", true),
        (Way::Import, "ModifySystemSettings", false),
        (Way::Import, "ModifyResourceSettings", true),
        (Way::Import, "ValidatePlannedSystem", true),
        (Way::Import, "RealizePlannedSystem", true),
        (Way::Build, "DefineSystem", true),
        (Way::Build, "ModifySystemSettings", false),
        (Way::Build, "ModifyResourceSettings", true),
        (Way::Build, "AddResourceSettings", true),
        (Way::Build, "SetKeyProtector", false),
        (Way::Build, "ModifySecuritySettings", false),
    ] {
        let method = method.to_owned();
        let job_fails = Fault::JobFails {
            method: method.clone(),
            consistency_level: None,
            error_code: 32768,
            description: "It failed. (0x80070020)".into(),
        };
        let mut faults = vec![
            Fault::MethodReturns { method: method.clone(), return_value: 32775 },
            Fault::MethodUnreachable { method, hresult: 0x8007_06BA },
        ];
        faults.extend(by_job.then_some(job_fails));
        for fault in faults {
            lab.lab.inject(fault.clone()).unwrap();
            let error = make(&lab, &saved, way, &wanted).expect_err(&format!("{way:?} {fault:?}"));
            lab.lab.clear_faults().unwrap();
            assert_eq!(registered(&lab), before, "{way:?} {fault:?}: {error}");
            assert_eq!(error.left_behind, [], "{way:?} {fault:?}: {error}");
        }
    }
    // What cannot be removed is named.
    lab.lab.inject(Fault::MethodReturns { method: "ValidatePlannedSystem".into(), return_value: 32768 }).unwrap();
    lab.lab.inject(Fault::MethodReturns { method: "DestroySystem".into(), return_value: 32768 }).unwrap();
    let error = make(&lab, &saved, Way::Import, &wanted).unwrap_err();
    lab.lab.clear_faults().unwrap();
    let planned = lab.host.list_planned_vms().unwrap();
    assert_eq!(planned.len(), 1);
    assert_eq!(error.left_behind, [planned[0].path.clone()]);
    assert!(error.to_string().contains("left behind"), "{error}");
    lab.host.remove_vm(&planned[0].path).unwrap();
    assert_eq!(registered(&lab), before);
}

#[test]
fn a_disk_left_out_takes_its_drive_with_it() {
    for way in [Way::Import, Way::Build] {
        let lab = lab(LabOptions::default());
        add_web(&lab, VmOptions::default());
        let saved = save(&lab);
        let mut disks = write_disks(&lab, &saved);
        let left_out = disks.remove(0);
        let wanted = Recreation::as_copy("copy", DIRECTORY, disks);
        let obstacles = lab.host.preflight(&saved.definition, &wanted, way).unwrap();
        assert_eq!(found(&obstacles, Severity::Decide), [ObstacleCode::DisksLeftOut], "{way:?}: {obstacles:?}");
        let made = make(&lab, &saved, way, &wanted).unwrap_or_else(|e| panic!("{way:?}: {e}: {:?}", e.error));
        assert!(
            matches!(&made.warnings[..], [RecreateWarning::DiskLeftOut { path, .. }] if path.ends_with(".vhdx")),
            "{way:?}: {:?}",
            made.warnings
        );
        let slots: Vec<_> = made.vm.disks.iter().map(|disk| disk.slot.to_string()).collect();
        assert_eq!(slots, [saved.definition.disks[1].slot.clone().unwrap()], "{way:?}: the other keeps its slot");
        let now = lab.host.capture_definition(&made.vm).unwrap();
        assert_eq!(count(&now, "Microsoft:Hyper-V:Synthetic Disk Drive"), 1, "{way:?}: the drive went, too");
        let differences = differences(&lab, &saved, &made, &wanted, way);
        assert_eq!(unexplained(&differences), Vec::<&Difference>::new(), "{way:?}");

        // A misspelt disk must not be left out silently.
        let odd = RestoredDisk { instance_id: r"Microsoft:X\nowhere\0\0\L".into(), ..left_out };
        let wanted = Recreation { disks: vec![odd], ..wanted };
        let error = make(&lab, &saved, way, &wanted).unwrap_err();
        assert!(error.to_string().contains("never had"), "{way:?}: {error}");
        let obstacles = lab.host.preflight(&saved.definition, &wanted, way).unwrap();
        assert_eq!(found(&obstacles, Severity::Block), [ObstacleCode::DiskFiles], "{way:?}: {obstacles:?}");
    }
}

#[test]
fn what_only_the_former_host_could_give_is_named() {
    let first = lab(LabOptions { physical_disks: 1, ..LabOptions::default() });
    add_web(&first, VmOptions { physical_disks: vec![0], fibre_channel: true, ..VmOptions::default() });
    let saved = save(&first);
    let other = lab(LabOptions { host_name: "OTHER".into(), ..LabOptions::default() });
    let wanted = Recreation::as_copy("copy", DIRECTORY, write_disks(&other, &saved));
    for way in [Way::Import, Way::Build] {
        let obstacles = other.host.preflight(&saved.definition, &wanted, way).unwrap();
        assert_eq!(found(&obstacles, Severity::Block), [], "{way:?}: {obstacles:?}");
        let decide = found(&obstacles, Severity::Decide);
        assert_eq!(
            decide,
            [ObstacleCode::DisksLeftOut, ObstacleCode::Devices, ObstacleCode::Devices],
            "{way:?}: {obstacles:?}"
        );
        let made = make(&other, &saved, way, &wanted).unwrap_or_else(|e| panic!("{way:?}: {e}: {:?}", e.error));
        let left_out = |warning: &RecreateWarning| matches!(warning, RecreateWarning::DiskLeftOut { why, .. } if why.contains("physical disk"));
        assert_eq!(made.warnings.iter().filter(|warning| left_out(warning)).count(), 1, "{way:?}: {:?}", made.warnings);
        let not_built = made.warnings.iter().any(|one| matches!(one, RecreateWarning::DeviceNotBuilt { .. }));
        assert_eq!(not_built, way == Way::Build, "{way:?}: {:?}", made.warnings);
        let differences = differences(&other, &saved, &made, &wanted, way);
        assert_eq!(unexplained(&differences), Vec::<&Difference>::new(), "{way:?}");
        other.host.start_vm(&made.vm).unwrap_or_else(|e| panic!("{way:?}: {e}"));
        other.host.turn_off_vm(&made.vm).unwrap();
        other.host.remove_vm(&made.vm.path).unwrap();
    }
}

#[test]
fn a_generation_1_vm_boots_from_its_slot() {
    for way in [Way::Import, Way::Build] {
        let lab = lab(LabOptions::default());
        add_web(&lab, VmOptions { generation: 1, secure_boot: false, ..VmOptions::default() });
        let saved = save(&lab);
        let wanted = Recreation::as_copy("copy", DIRECTORY, write_disks(&lab, &saved));
        let made = make(&lab, &saved, way, &wanted).unwrap_or_else(|e| panic!("{way:?}: {e}: {:?}", e.error));
        assert_eq!(made.vm.generation, 1, "{way:?}");
        let slots: Vec<_> = made.vm.disks.iter().map(|disk| Some(disk.slot.to_string())).collect();
        let expected: Vec<_> = saved.definition.disks.iter().map(|disk| disk.slot.clone()).collect();
        assert_eq!(slots, expected, "{way:?}");
        assert!(expected[0].as_deref().unwrap().starts_with("IDE"), "{expected:?}");
        let differences = differences(&lab, &saved, &made, &wanted, way);
        assert_eq!(unexplained(&differences), Vec::<&Difference>::new(), "{way:?}");
        lab.host.start_vm(&made.vm).unwrap();
    }
}

/// Adds a device the way an administrator's tools do: a changed clone of its template.
fn add_device(client: &Client, vm: &str, class: &str, sub_type: &str, changes: Vec<(&str, CimValue)>) -> ObjectPath {
    let wql = format!(
        r"SELECT * FROM {class} WHERE ResourceSubType = 'Microsoft:Hyper-V:{sub_type}' AND InstanceID LIKE '%\\Default'"
    );
    let mut setting = client.only(&wql);
    setting.properties.extend(changes.into_iter().map(|(name, value)| (name.to_owned(), value)));
    let settings = client.associated(&client.vm_path(vm), "Msvm_SettingsDefineState", "Msvm_VirtualSystemSettingData");
    let output = client
        .call(
            &client.service("Msvm_VirtualSystemManagementService"),
            "AddResourceSettings",
            &[
                ("AffectedConfiguration", CimValue::Reference(settings[0].path.clone().unwrap())),
                ("ResourceSettings", texts(&[&hyperv::cim_xml::to_text(&setting).unwrap()])),
            ],
        )
        .unwrap();
    let (job, last) = client.wait(&output);
    assert_eq!(last.get("JobState").as_u64(), Some(7), "{last:?}");
    client.associated(&job, "Msvm_AffectedJobElement", class)[0].path.clone().unwrap()
}

fn texts(values: &[&str]) -> CimValue {
    CimValue::Array(CimType::String, values.iter().map(|value| CimValue::String(value.to_string())).collect())
}

fn path_value(path: &ObjectPath) -> CimValue {
    CimValue::String(path.as_str().to_owned())
}

const DEVICES: &str = "Msvm_ResourceAllocationSettingData";
const MEDIA: &str = "Msvm_StorageAllocationSettingData";
const CONNECTIONS: &str = "Msvm_EthernetPortAllocationSettingData";

#[test]
fn what_else_hangs_off_a_vm_is_made_again_or_named() {
    let lab = lab(LabOptions::default());
    add_web(&lab, VmOptions::default());
    lab.lab.stop_vm("web").unwrap();
    let client = Client::new(&lab.lab);
    // A second controller with a DVD drive that holds an image.
    let iso = r"C:\Images\tools & more.iso";
    let iso_file = lab.lab.host_file(iso).unwrap();
    fs::create_dir_all(iso_file.parent().unwrap()).unwrap();
    fs::write(&iso_file, b"CD001").unwrap();
    let controller = add_device(&client, "web", DEVICES, "Synthetic SCSI Controller", vec![]);
    let place = vec![("Parent", path_value(&controller)), ("AddressOnParent", CimValue::String("3".into()))];
    let drive = add_device(&client, "web", DEVICES, "Synthetic DVD Drive", place);
    let image = vec![("Parent", path_value(&drive)), ("HostResource", texts(&[iso]))];
    add_device(&client, "web", MEDIA, "Virtual CD/DVD Disk", image);
    // The adapter's connection is in a VLAN.
    let settings =
        client.associated(&client.vm_path("web"), "Msvm_SettingsDefineState", "Msvm_VirtualSystemSettingData");
    let path = settings[0].path.as_ref().unwrap();
    let connection = client.associated(path, "Msvm_VirtualSystemSettingDataComponent", CONNECTIONS);
    let vlan = Instance {
        class: "Msvm_EthernetSwitchPortVlanSettingData".into(),
        path: None,
        properties: [
            ("AccessVlanId".to_owned(), CimValue::Uint16(12)),
            ("OperationMode".to_owned(), CimValue::Uint32(1)),
        ]
        .into(),
    };
    let output = client
        .call(
            &client.service("Msvm_VirtualSystemManagementService"),
            "AddFeatureSettings",
            &[
                ("AffectedConfiguration", CimValue::Reference(connection[0].path.clone().unwrap())),
                ("FeatureSettings", texts(&[&hyperv::cim_xml::to_text(&vlan).unwrap()])),
            ],
        )
        .unwrap();
    assert_eq!(client.wait(&output).1.get("JobState").as_u64(), Some(7));
    // Its clock is its own.
    let time = client.associated(path, "Msvm_VirtualSystemSettingDataComponent", "Msvm_TimeSyncComponentSettingData");
    let mut time = time[0].clone();
    time.properties.insert("EnabledState".into(), CimValue::Uint16(3));
    let time = texts(&[&hyperv::cim_xml::to_text(&time).unwrap()]);
    let service = client.service("Msvm_VirtualSystemManagementService");
    let output = client.call(&service, "ModifyResourceSettings", &[("ResourceSettings", time)]).unwrap();
    assert_eq!(client.wait(&output).1.get("JobState").as_u64(), Some(7));
    // It boots from what came last before.
    let mut system = client.get(path).unwrap();
    let CimValue::Array(CimType::String, order) = system.get("BootSourceOrder").clone() else { panic!("{system:?}") };
    assert!(order.len() >= 2, "{order:?}");
    let order = CimValue::Array(CimType::String, order.into_iter().rev().collect());
    system.properties.insert("BootSourceOrder".into(), order);
    let system = CimValue::String(hyperv::cim_xml::to_text(&system).unwrap());
    client.call(&service, "ModifySystemSettings", &[("SystemSettings", system)]).unwrap();
    let saved = save(&lab);

    for way in [Way::Import, Way::Build] {
        let copy = Recreation::as_copy("copy", DIRECTORY, write_disks(&lab, &saved));
        let wanted = Recreation { network: NetworkChoice::as_before(), ..copy };
        let made = make(&lab, &saved, way, &wanted).unwrap_or_else(|e| panic!("{way:?}: {e}: {:?}", e.error));
        assert_eq!(made.warnings, [], "{way:?}");
        assert_eq!(connections(&lab, &made), ["LAN"], "{way:?}");
        let now = lab.host.capture_definition(&made.vm).unwrap();
        let differences = saved.definition.differences(&now, &wanted, way);
        assert_eq!(unexplained(&differences), Vec::<&Difference>::new(), "{way:?}");
        assert!(differences.iter().all(|one| one.why == Why::Wanted), "{way:?}: {differences:?}");
        let vlan = now.settings.iter().find(|setting| setting.class == "Msvm_EthernetSwitchPortVlanSettingData");
        let vlan = vlan.unwrap_or_else(|| panic!("{way:?}: the VLAN is gone")).to_instance().unwrap();
        assert_eq!(vlan.get("AccessVlanId").as_u64(), Some(12), "{way:?}");
        lab.host.start_vm(&made.vm).unwrap();
        lab.host.turn_off_vm(&made.vm).unwrap();
        lab.host.remove_vm(&made.vm.path).unwrap();
    }

    // A host that refuses the VLAN leaves the adapter open; one without the image leaves the drive empty.
    fs::remove_file(&iso_file).unwrap();
    lab.lab.inject(Fault::MethodReturns { method: "AddFeatureSettings".into(), return_value: 32770 }).unwrap();
    for way in [Way::Import, Way::Build] {
        let copy = Recreation::as_copy("copy", DIRECTORY, write_disks(&lab, &saved));
        let wanted = Recreation { network: NetworkChoice::as_before(), ..copy };
        let obstacles = lab.host.preflight(&saved.definition, &wanted, way).unwrap();
        assert_eq!(found(&obstacles, Severity::Decide), [ObstacleCode::Images], "{way:?}: {obstacles:?}");
        let made = make(&lab, &saved, way, &wanted).unwrap_or_else(|e| panic!("{way:?}: {e}: {:?}", e.error));
        let missing = RecreateWarning::ImageMissing { path: iso.into() };
        assert!(made.warnings.contains(&missing), "{way:?}: {:?}", made.warnings);
        if way == Way::Build {
            assert_eq!(connections(&lab, &made), Vec::<String>::new());
            let open = made.warnings.iter().any(|one| matches!(one, RecreateWarning::ConnectionFeatures { .. }));
            assert!(open, "{:?}", made.warnings);
        }
        lab.host.start_vm(&made.vm).unwrap();
        lab.host.turn_off_vm(&made.vm).unwrap();
        lab.host.remove_vm(&made.vm.path).unwrap();
    }
}

#[test]
fn a_file_copied_into_place_needs_its_access_entry_again() {
    let lab = lab(LabOptions::default());
    add_web(&lab, VmOptions::default());
    let saved = save(&lab);
    let wanted = Recreation::as_copy("copy", DIRECTORY, write_disks(&lab, &saved));
    let made = make(&lab, &saved, Way::Import, &wanted).unwrap_or_else(|e| panic!("{e}: {:?}", e.error));
    let file = lab.lab.host_file(&wanted.disks[0].path).unwrap();
    fs::copy(&file, file.with_extension("new")).unwrap();
    fs::rename(file.with_extension("new"), &file).unwrap();
    let error = lab.host.start_vm(&made.vm).unwrap_err();
    assert_eq!(error.hresults(), [0x8007_0005], "{error}");
    assert!(error.advice().unwrap().contains("grants the access"), "{error}");
    lab.host.grant_disk_access(&made.vm).unwrap();
    lab.host.start_vm(&made.vm).unwrap();

    lab.lab.stop_vm("copy").unwrap();
    lab.lab.inject(Fault::NoLogonRight).unwrap();
    let error = lab.host.start_vm(&made.vm).unwrap_err();
    assert!(error.advice().unwrap().contains("Log on as a service"), "{error}");
}

#[test]
fn a_guest_is_shut_down_before_its_vm_is_turned_off() {
    let lab = lab(LabOptions::default());
    add_web(&lab, VmOptions::default());
    let vm = lab.host.find_vm("web").unwrap();
    lab.host.save_vm(&vm).unwrap();
    assert_eq!(lab.host.vm(&vm.id).unwrap().unwrap().state, VmState::Saved);
    lab.host.start_vm(&vm).unwrap();
    assert!(lab.host.shut_down_guest(&vm, "restore", Duration::from_secs(120)).unwrap());
    assert!(lab.host.shut_down_guest(&vm, "restore", Duration::ZERO).unwrap(), "it is off already");
    lab.host.turn_off_vm(&vm).unwrap();

    // A guest without services is not waited for.
    let disks = [DiskSource::Empty { size_bytes: MIB }];
    lab.lab.add_vm("mute", &disks, VmOptions { guest: GuestFamily::Unknown, ..VmOptions::default() }).unwrap();
    let mute = lab.host.find_vm("mute").unwrap();
    let error = lab.host.shut_down_guest(&mute, "restore", Duration::from_secs(60)).unwrap_err();
    assert!(error.to_string().contains("shut down the guest"), "{error}");
    assert_eq!(lab.host.vm(&mute.id).unwrap().unwrap().state, VmState::Running);
}

#[test]
fn a_preflight_sees_room_and_collisions_before_anything_is_written() {
    let lab = lab(LabOptions::default());
    add_web(&lab, VmOptions::default());
    let saved = save(&lab);
    lab.lab.set_options(|options| options.free_bytes = 10 * MIB).unwrap();
    let disk = |index: usize, path: &str, needs_bytes| RestoredDisk {
        instance_id: saved.disks[index].0.clone(),
        path: path.into(),
        needs_bytes,
    };
    let codes = |disks: Vec<RestoredDisk>, root: &str| {
        let wanted = Recreation::as_copy("copy", root, disks);
        let obstacles = lab.host.preflight(&saved.definition, &wanted, Way::Import).unwrap();
        found(&obstacles, Severity::Block)
    };
    let (a, b) = (r"C:\New\a.vhdx", r"c:\new\A.VHDX");
    let small = Some(MIB);
    assert_eq!(codes(vec![disk(0, a, small), disk(1, r"C:\New\b.vhdx", small)], DIRECTORY), []);
    assert_eq!(
        codes(vec![disk(0, a, Some(6 * MIB)), disk(1, r"C:\New\b.vhdx", Some(6 * MIB))], DIRECTORY),
        [ObstacleCode::Space]
    );
    assert_eq!(codes(vec![disk(0, a, small), disk(1, b, small)], DIRECTORY), [ObstacleCode::Paths]);
    assert_eq!(codes(vec![disk(0, "a.vhdx", small)], "New"), [ObstacleCode::Paths, ObstacleCode::Paths]);
    assert_eq!(codes(vec![disk(0, a, None)], DIRECTORY), [ObstacleCode::DiskFiles]);
    let taken = lab.lab.disk_chain("web", 0).unwrap().remove(0);
    assert_eq!(codes(vec![disk(0, &taken, small)], DIRECTORY), [ObstacleCode::DiskFiles]);
    let copy = Recreation::as_original("web", DIRECTORY, vec![disk(0, a, small), disk(1, r"C:\New\b.vhdx", small)]);
    let wanted = Recreation { identity: Identity::New, ..copy };
    let obstacles = lab.host.preflight(&saved.definition, &wanted, Way::Import).unwrap();
    assert_eq!(
        found(&obstacles, Severity::Decide),
        [ObstacleCode::VmName, ObstacleCode::MacAddresses],
        "{obstacles:?}"
    );
}

#[test]
fn merging_that_was_switched_off_is_switched_on_again() {
    let lab = lab(LabOptions::default());
    add_web(&lab, VmOptions::default());
    let vm = lab.host.find_vm("web").unwrap();
    let client = Client::new(&lab.lab);
    let setting =
        client.only(&format!("SELECT * FROM Msvm_DiskMergeSettingData WHERE InstanceID = 'Microsoft:{}'", vm.id));
    let mut off = setting.clone();
    off.properties.insert("EnabledState".into(), CimValue::Uint16(0));
    let text = CimValue::String(hyperv::cim_xml::to_text(&off).unwrap());
    let service = client.service("Msvm_VirtualSystemManagementService");
    client.call(&service, "ModifyDiskMergeSettings", &[("SettingData", text)]).unwrap();

    let request = CheckpointRequest::new(Consistency::Crash, "e3:agent:run:1");
    let checkpoint = lab.host.create_recovery_checkpoint(&vm, &request).unwrap();
    lab.host.destroy_checkpoint(&checkpoint.path).unwrap();
    let before: Vec<_> = checkpoint.disks.iter().map(hyperv::ChainBefore::from).collect();
    let wait = || lab.host.wait_for_merge(&vm.id, &before, Duration::from_secs(120)).unwrap();
    let outcome = wait();
    assert!(matches!(outcome, hyperv::MergeOutcome::Blocked { merging_is_off: true, .. }), "{outcome:?}");
    lab.host.allow_merging(&vm.id).unwrap();
    assert_eq!(wait(), hyperv::MergeOutcome::Merged);
}

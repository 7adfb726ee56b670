//! Turning checkpoints into reference points, and the ids they record.

use std::sync::Arc;

use hyperv::seam::{CimValue, Instance, ObjectPath};
use hyperv::{Checkpoint, ConfigPaths, Consistency, ControllerKind, DiskSlot, ErrorKind, FrozenDisk, TrackingDefect};

use crate::script::*;

const CLASS: &str = "Msvm_VirtualSystemReferencePoint";
const OTHER_DISK: &str = "eeeeeeee-0000-1111-2222-333344445555";
const NO_LONGER_THERE: u32 = 0x8004_1002;

fn disk(location: u32, id: &str) -> FrozenDisk {
    let path = format!(r"C:\VMs\web\{location}.vhdx");
    FrozenDisk {
        slot: DiskSlot { controller: ControllerKind::Scsi, controller_number: 0, location },
        sasd_instance_id: format!(r"Microsoft:{CHECKPOINT}\{SCSI}\0\{location}\L"),
        chain: vec![path.clone()],
        path,
        virtual_disk_id: id.parse().unwrap(),
    }
}

fn checkpoint(disks: Vec<FrozenDisk>) -> Checkpoint {
    Checkpoint {
        path: ObjectPath::new(path_of("Msvm_VirtualSystemSettingData", CHECKPOINT)),
        instance_id: format!("Microsoft:{CHECKPOINT}"),
        vm_id: VM.parse().unwrap(),
        vm_name: "web".into(),
        tag: "tag".into(),
        consistency: Consistency::Application,
        disks,
        config_files: ConfigPaths { vmcx: "a".into(), vmrs: "b".into(), vmgs: "c".into() },
        warnings: vec![],
    }
}

fn identifier(location: u32) -> String {
    format!(r"Microsoft:{VM}\{SCSI}\0\{location}\L")
}

fn point(key: &str, disks: CimValue, ids: CimValue) -> Instance {
    instance(
        CLASS,
        key,
        vec![
            ("InstanceID", text(&format!(r"Microsoft:{VM}\{key}"))),
            ("VirtualSystemIdentifier", text(VM)),
            ("ReferencePointType", CimValue::Uint16(2)),
            ("ConsistencyLevel", CimValue::Uint16(1)),
            ("VirtualDiskIdentifiers", disks),
            ("ResilientChangeTrackingIdentifiers", ids),
        ],
    )
}

fn good_point(key: &str) -> Instance {
    point(key, texts(&[&identifier(0)]), texts(&["rctX:1"]))
}

/// The active setting at a location holds a file with an identity. The query needs its backslashes twice.
fn active_disk(script: &Arc<Script>, location: u32, path: &str, id: &str) {
    let (medium, _) = scsi_disk(VM, location, path);
    let quoted = identifier(location).replace('\\', r"\\");
    script.on_query(
        format!("SELECT * FROM Msvm_StorageAllocationSettingData WHERE InstanceID = '{quoted}'"),
        vec![medium],
    );
    script.on_disk(path, Ok(disk_data(id, None)));
}

fn points(script: &Arc<Script>, looks: &[&[Instance]]) {
    for look in looks {
        script.on_query(ALL_REFERENCE_POINTS_OF_VM, look.to_vec());
    }
}

#[test]
fn the_new_point_is_found_whatever_the_host_returns() {
    let foreign = good_point("foreign");
    let new = good_point("new");
    let reference = CimValue::Reference(ObjectPath::new(path_of(CLASS, "new")));
    type Case<'a> = (&'a str, &'a dyn Fn(&Arc<Script>));
    let cases: [Case<'_>; 5] = [
        ("returned at once", &|script| {
            script.on_call(METHOD, Ok(output(0, vec![("ResultingReferencePoint", reference.clone())])));
            script.on_get(new.clone());
        }),
        ("null although done (Server 2025)", &|script| script.on_call(METHOD, Ok(output(0, vec![])))),
        ("by the job's association", &|script| {
            script.on_call(METHOD, started(&job_path()));
            script.on_get(job(7, vec![]));
            script.on_query(job_results_query(CLASS), vec![new.clone()]);
        }),
        ("the job knows nothing", &|script| {
            script.on_call(METHOD, started(&job_path()));
            script.on_get(job(32768, vec![]));
            script.on_call("GetErrorEx", Ok(output(0, vec![("Errors", texts(&["a remark"]))])));
            script.on_query(job_results_query(CLASS), vec![]);
        }),
        ("the job expired", &|script| {
            script.on_call(METHOD, started(&job_path()));
            script.on_get_error(&job_path(), NO_LONGER_THERE);
            script.on_get_error(&path_of("Msvm_VirtualSystemSettingData", CHECKPOINT), NO_LONGER_THERE);
        }),
    ];
    for (name, prepare) in cases {
        let script = one_vm();
        points(&script, &[std::slice::from_ref(&foreign), &[foreign.clone(), new.clone()]]);
        active_disk(&script, 0, r"C:\VMs\web\0.avhdx", DISK);
        prepare(&script);
        let frozen = checkpoint(vec![disk(0, DISK)]);
        let made = script.host().convert_to_reference_point(&frozen).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(made.reference_point.path.as_str(), path_of(CLASS, "new"), "{name}");
        assert_eq!(made.reference_point.relative_path(), r#"Msvm_VirtualSystemReferencePoint.Key="new""#);
        assert_eq!(made.reference_point.consistency, Some(Consistency::Application));
        assert_eq!(made.rct_id(&frozen.disks[0]), Some("rctX:1"), "{name}");
        assert_eq!(made.defects, [], "{name}");
        assert_eq!(made.warnings.is_empty(), name != "the job knows nothing");
        let call = &script.calls(METHOD)[0];
        assert_eq!(call.parameters["AffectedSnapshot"], CimValue::Reference(frozen.path.clone()));
        assert_eq!(call.parameters["ReferencePointSettings"], text(""));
    }
}

const METHOD: &str = "ConvertToReferencePoint";

#[test]
fn a_point_beside_its_checkpoint_is_not_done() {
    let script = one_vm();
    points(&script, &[&[], &[good_point("new")]]);
    script.on_call(METHOD, Err(0x8007_06BA));
    script.on_get(settings(CHECKPOINT, "Snapshot:Recovery", "tag"));
    let error = script.host().convert_to_reference_point(&checkpoint(vec![disk(0, DISK)])).unwrap_err();
    assert_eq!(error.left_behind, [ObjectPath::new(path_of(CLASS, "new"))]);
    assert!(error.to_string().contains("not turned into"), "{error}");
}

#[test]
fn a_failed_conversion_names_the_point_that_appeared() {
    let script = one_vm();
    points(&script, &[&[], &[good_point("new")]]);
    script.on_call(METHOD, started(&job_path()));
    script
        .on_get(job(10, vec![("ErrorDescription", text("held (0x80070020)")), ("ErrorCode", CimValue::Uint16(32768))]));
    script.on_call("GetErrorEx", Err(0x8004_1001));
    let error = script.host().convert_to_reference_point(&checkpoint(vec![disk(0, DISK)])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert_eq!(error.left_behind.len(), 1);
}

/// Disks are found by the identity of the active file, wherever it is attached now; else by the slot they had.
#[test]
fn ids_follow_the_disk_not_the_slot() {
    let script = one_vm();
    let both = texts(&[&identifier(0), &identifier(1)]);
    points(&script, &[&[], &[point("new", both, texts(&["rctX:A", "rctX:B"]))]]);
    script.on_call(METHOD, Ok(output(0, vec![])));
    // The two disks have changed places since the checkpoint.
    active_disk(&script, 0, r"C:\one.avhdx", OTHER_DISK);
    active_disk(&script, 1, r"C:\zero.avhdx", DISK);
    let frozen = checkpoint(vec![disk(0, DISK), disk(1, OTHER_DISK)]);
    let made = script.host().convert_to_reference_point(&frozen).unwrap();
    assert_eq!(made.rct_id(&frozen.disks[0]), Some("rctX:B"));
    assert_eq!(made.rct_id(&frozen.disks[1]), Some("rctX:A"));

    // Both are gone from the VM: only the slot is left.
    let script = one_vm();
    let both = texts(&[&identifier(0), &identifier(1)]);
    points(&script, &[&[], &[point("new", both, texts(&["rctX:A", "rctX:B"]))]]);
    script.on_call(METHOD, Ok(output(0, vec![])));
    for location in [0, 1] {
        let quoted = identifier(location).replace('\\', r"\\");
        script
            .on_query(format!("SELECT * FROM Msvm_StorageAllocationSettingData WHERE InstanceID = '{quoted}'"), vec![]);
    }
    let made = script.host().convert_to_reference_point(&frozen).unwrap();
    assert_eq!(made.rct_id(&frozen.disks[0]), Some("rctX:A"));
}

#[test]
fn a_file_attached_twice_is_told_apart_by_slot() {
    let script = one_vm();
    let both = texts(&[&identifier(0), &identifier(1)]);
    points(&script, &[&[], &[point("new", both, texts(&["rctX:A", "rctX:B"]))]]);
    script.on_call(METHOD, Ok(output(0, vec![])));
    active_disk(&script, 0, r"C:\a.avhdx", DISK);
    active_disk(&script, 1, r"C:\b.avhdx", DISK);
    let frozen = checkpoint(vec![disk(0, DISK), disk(1, DISK)]);
    let made = script.host().convert_to_reference_point(&frozen).unwrap();
    assert_eq!(made.rct_id(&frozen.disks[0]), Some("rctX:A"));
    assert_eq!(made.rct_id(&frozen.disks[1]), Some("rctX:B"));
}

#[test]
fn arrays_that_cannot_be_trusted_give_no_ids() {
    let mut log_based = good_point("new");
    log_based.properties.insert("ReferencePointType".into(), CimValue::Uint16(1));
    let numbers = CimValue::Array(hyperv::seam::CimType::Uint16, vec![CimValue::Uint16(1)]);
    let one = || texts(&[&identifier(0)]);
    let cases = [
        (log_based, TrackingDefect::WrongType(1)),
        (point("new", one(), texts(&[])), TrackingDefect::NoIds { disks: 1 }),
        (point("new", one(), CimValue::Null), TrackingDefect::NoIds { disks: 1 }),
        (point("new", one(), numbers), TrackingDefect::NotStrings("ResilientChangeTrackingIdentifiers")),
        (point("new", text("x"), texts(&["rctX:1"])), TrackingDefect::NotStrings("VirtualDiskIdentifiers")),
        (
            point("new", texts(&[&identifier(0), &identifier(1)]), texts(&["rctX:1"])),
            TrackingDefect::DifferentLengths { disks: 2, ids: 1 },
        ),
        (point("new", one(), texts(&[""])), TrackingDefect::EmptyId(identifier(0))),
        (point("new", texts(&[]), texts(&[])), TrackingDefect::MissingDisk("SCSI 0:0".into())),
    ];
    for (new, defect) in cases {
        let script = one_vm();
        points(&script, &[&[], &[new]]);
        script.on_call(METHOD, Ok(output(0, vec![])));
        active_disk(&script, 0, r"C:\VMs\web\0.avhdx", DISK);
        let frozen = checkpoint(vec![disk(0, DISK)]);
        let made = script.host().convert_to_reference_point(&frozen).unwrap();
        assert_eq!(made.rct_id(&frozen.disks[0]), None, "{defect}");
        assert_eq!(made.defects, [defect]);
    }
}

#[test]
fn an_id_of_a_disk_that_was_not_frozen_is_reported() {
    let script = one_vm();
    points(&script, &[&[], &[good_point("new")]]);
    script.on_call(METHOD, Ok(output(0, vec![])));
    active_disk(&script, 0, r"C:\new.vhdx", OTHER_DISK);
    let made = script.host().convert_to_reference_point(&checkpoint(vec![disk(0, DISK)])).unwrap();
    assert_eq!(made.defects, [TrackingDefect::UnknownDisk(identifier(0))]);
    assert_eq!(made.ids, []);
}

/// The active file cannot be looked at: no guess by slot, because disks can have moved.
#[test]
fn a_disk_that_cannot_be_looked_at_gets_no_id() {
    let script = one_vm();
    points(&script, &[&[], &[good_point("new")]]);
    script.on_call(METHOD, Ok(output(0, vec![])));
    active_disk(&script, 0, r"C:\a.avhdx", DISK);
    script.on_disk(r"C:\a.avhdx", Err(32779));
    let made = script.host().convert_to_reference_point(&checkpoint(vec![disk(0, DISK)])).unwrap();
    assert_eq!(made.defects, [TrackingDefect::UnknownDisk(identifier(0))]);
}

#[test]
fn destroying_what_is_gone_is_a_success() {
    let script = one_vm();
    let path = ObjectPath::new(path_of(CLASS, "old"));
    script.on_call("DestroyReferencePoint", Err(NO_LONGER_THERE));
    script.on_get_error(path.as_str(), NO_LONGER_THERE);
    script.host().destroy_reference_point(&path).unwrap();
    let call = &script.calls("DestroyReferencePoint")[0];
    assert_eq!(call.parameters["AffectedReferencePoint"], CimValue::Reference(path));
    assert!(call.object.contains("Msvm_VirtualSystemReferencePointService"));
}

#[test]
fn all_points_are_listed() {
    let script = one_vm();
    points(&script, &[&[good_point("a"), good_point("b")]]);
    let listed = script.host().list_reference_points(&VM.parse().unwrap()).unwrap();
    assert_eq!(
        listed.iter().map(|point| point.instance_id.clone()).collect::<Vec<_>>(),
        ["a", "b"].map(|key| format!(r"Microsoft:{VM}\{key}"))
    );
}
